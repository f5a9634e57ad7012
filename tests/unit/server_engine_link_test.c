/* The engine link against a child process that behaves well, crashes, hangs, talks nonsense or
 * never loads. The child is this very program: started with --model it speaks the engine's side
 * of the wire, and the texts it is given tell it what to do. */
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "protocol/resp_read.h"
#include "protocol/resp_write.h"
#include "server/engine_link.h"
#include "tests/unit/unit_dir.h"

enum { DIM = 4 };

/* Nothing here may fail because the machine is slow: a wait is long, for it only ends when what
 * is waited for never comes, and an engine has all the time it wants unless its silence is the
 * test. */
enum { NEVER_MS = 600000, PATIENCE_MS = 100000 };

/* --- the child --- */

static void vector_of(struct slice text, float *v)
{
    uint64_t h = hash64(text.p, text.n);
    for (int i = 0; i < DIM; i++)
        v[i] = (float)(h >> (16 * i) & 0xffff);
}

static void say(struct buf *out)
{
    for (size_t done = 0; done < out->len;) {
        ssize_t n = send(3, out->data + done, out->len - done, MSG_NOSIGNAL);
        if (n <= 0)
            _exit(0);
        done += (size_t)n;
    }
    buf_clear(out);
}

static void say_ready(struct buf *out, const char *tasks)
{
    const char *const words[] = {
        "READY", "name", "fake", "hash",  "0123", "pooling",   "mean", "dim",   "4",  "context",
        "512",   "arch", "bert", "extra", "x",    "precision", "f32",  "tasks", tasks};
    struct resp_out o = {.to = out, .proto = 2};
    resp_array(o, sizeof words / sizeof *words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        resp_bulk_str(o, words[i]);
    say(out);
}

/* The score of a document is its length. */
static void answer_rerank(struct buf *out, const struct slice *argv, int argc)
{
    struct resp_out o = {.to = out, .proto = 2};
    float scores[64];
    int n = argc - 4;
    for (int i = 0; i < n; i++)
        scores[i] = (float)argv[4 + i].n;
    resp_array(o, 5);
    resp_bulk_str(o, "SCORES");
    resp_bulk(o, argv[1].p, argv[1].n);
    resp_bulkf(o, "%d", n);
    resp_bulkf(o, "%d", 7);
    resp_bulk(o, scores, (size_t)n * sizeof *scores);
    say(out);
}

static bool has_flag(struct slice flags, char flag)
{
    return memchr(flags.p, flag, flags.n) != NULL;
}

static void answer_embed(struct buf *out, const struct slice *argv, int argc)
{
    struct resp_out o = {.to = out, .proto = 2};
    int n = argc - 3;
    float v[64 * DIM];
    for (int i = 0; i < n; i++) {
        struct slice text = argv[3 + i];
        if (slice_is(text, "CRASH"))
            raise(SIGKILL);
        if (slice_is(text, "EXIT"))
            _exit(7);
        if (slice_is(text, "HANG"))
            pause();
        if (slice_is(text, "GARBAGE")) {
            buf_append_str(out, "*1\r\n$-7\r\n");
            say(out);
        }
        if (slice_is(text, "SILENT"))
            return;
        if (slice_is(text, "BAD")) {
            resp_array(o, 4);
            resp_bulk_str(o, "ERROR");
            resp_bulk(o, argv[1].p, argv[1].n);
            resp_bulk_str(o, "INVALID");
            resp_bulk_str(o, "text 1 is bad");
            say(out);
            return;
        }
        vector_of(text, v + i * DIM);
        if (slice_is(text, "FLAGS"))
            for (int f = 0; f < DIM; f++)
                v[i * DIM + f] = has_flag(argv[2], "tqd-"[f]);
    }
    bool wrong = n > 0 && slice_is(argv[3], "WRONG");
    resp_array(o, 6);
    resp_bulk_str(o, "VECTORS");
    resp_bulk(o, argv[1].p, argv[1].n);
    resp_bulkf(o, "%d", n);
    resp_bulkf(o, "%d", wrong ? DIM + 1 : DIM);
    resp_bulkf(o, "%d", n);
    resp_bulk(o, v, (size_t)n * DIM * sizeof *v);
    say(out);
}

static int be_the_engine(const char *model)
{
    static const struct resp_limits limits = {
        .max_bulk_bytes = 1 << 26, .max_request_bytes = 1 << 26, .authenticated = true};
    struct buf out;
    buf_init(&out);
    alarm(300); /* a child told to hang must not outlive a test that failed */
    if (strcmp(model, "broken") == 0) {
        buf_append_str(&out, "*2\r\n$4\r\nFAIL\r\n$8\r\nno magic\r\n");
        say(&out);
        return 2;
    }
    if (strncmp(model, "slow:", 5) == 0)
        while (access(model + 5, F_OK) != 0) /* until the parent makes the file */
            clock_sleep_us(1000);
    say_ready(&out, strncmp(model, "slow:", 5) == 0 ? "embed"
                    : strcmp(model, "good") == 0    ? "embed"
                                                    : model);
    struct resp_reader *reader = resp_reader_new();
    struct resp_request q;
    struct err e = {0};
    resp_request_init(&q);
    char bytes[8192];
    ssize_t n;
    while ((n = recv(3, bytes, sizeof bytes, 0)) > 0) {
        resp_reader_feed(reader, bytes, (size_t)n);
        while (resp_reader_next(reader, &limits, &q, &e) == RESP_REQUEST) {
            if (slice_is(q.argv[0], "PING")) {
                buf_append_str(&out, "*6\r\n$4\r\nPONG\r\n$1\r\n0\r\n$1\r\n0\r\n$2\r\n11\r\n"
                                     "$2\r\n22\r\n$2\r\n33\r\n");
                say(&out);
            } else if (slice_is(q.argv[0], "RERANK")) {
                answer_rerank(&out, q.argv, q.argc);
            } else {
                answer_embed(&out, q.argv, q.argc);
            }
            resp_request_reset(&q);
        }
    }
    return 0;
}

/* --- the parent --- */

struct call {
    _Atomic int answers;
    int code;
    char message[512];
    uint32_t n, dim;
    float vectors[64 * DIM];
};

static void done(void *arg, const struct engine_answer *a)
{
    struct call *call = arg;
    call->code = a->code;
    snprintf(call->message, sizeof call->message, "%s", a->message ? a->message : "");
    call->n = a->n;
    call->dim = a->dim;
    if (a->code == 0)
        memcpy(call->vectors, a->vectors, (size_t)a->n * a->dim * sizeof(float));
    atomic_fetch_add(&call->answers, 1);
}

/* What the link called back for. */
static _Atomic int starts, readies, changes;

static void on_start(void *arg)
{
    (void)arg;
    atomic_fetch_add(&starts, 1);
}

static void on_ready(void *arg, const struct engine_model *model)
{
    (void)arg;
    assert_string_equal(model->name, "fake");
    atomic_fetch_add(&readies, 1);
}

static void on_change(void *arg)
{
    (void)arg;
    atomic_fetch_add(&changes, 1);
}

static struct engine_link *open_as(const char *model, int64_t timeout_ms, int64_t queue_tokens,
                                   bool away)
{
    struct err e = {0};
    struct engine_link *l = NULL;
    const char *const arguments[] = {"--model", model, NULL};
    struct engine_link_options o = {.program = "/proc/self/exe",
                                    .label = "m",
                                    .arguments = arguments,
                                    .queue_tokens = queue_tokens,
                                    .timeout_ms = timeout_ms,
                                    .away = away,
                                    .on_start = on_start,
                                    .on_ready = on_ready,
                                    .on_change = on_change};
    assert_int_equal(engine_link_open(&l, &o, &e), 0);
    return l;
}

static struct engine_link *open_link(const char *model, int64_t timeout_ms,
                                     int64_t queue_tokens)
{
    return open_as(model, timeout_ms, queue_tokens, false);
}

static int send_request(struct engine_link *l, enum engine_task task, const struct slice *texts,
                        uint32_t n, bool truncate, enum engine_role role, struct call *call)
{
    struct engine_request q = {.task = task,
                               .texts = texts,
                               .n = n,
                               .truncate = truncate,
                               .role = role,
                               .done = done,
                               .arg = call};
    return engine_ask(l, &q);
}

static int send_texts(struct engine_link *l, const struct slice *texts, uint32_t n,
                      struct call *call)
{
    return send_request(l, ENGINE_EMBED, texts, n, false, ENGINE_ROLE_NONE, call);
}

static void ask(struct engine_link *l, struct call *call, const char *text)
{
    struct slice s = slice_of(text);
    send_texts(l, &s, 1, call);
}

static void wait_answer(struct call *call)
{
    for (int i = 0; i < PATIENCE_MS && atomic_load(&call->answers) == 0; i++)
        clock_sleep_us(1000);
    assert_int_equal(atomic_load(&call->answers), 1);
}

static void wait_up(struct engine_link *l)
{
    struct engine_model m;
    for (int i = 0; i < PATIENCE_MS && !engine_link_model(l, &m); i++)
        clock_sleep_us(1000);
    assert_true(engine_link_model(l, &m));
}

static void assert_vectors(const struct call *call, const char *text)
{
    float want[DIM];
    vector_of(slice_of(text), want);
    assert_int_equal(call->code, 0);
    assert_int_equal(call->dim, DIM);
    assert_memory_equal(call->vectors, want, sizeof want);
}

static void texts_become_vectors(void **state)
{
    (void)state;
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    static struct call early, many;
    ask(l, &early, "before it is ready"); /* waits for the model */
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    struct engine_model m;
    assert_true(engine_link_model(l, &m));
    assert_string_equal(m.name, "fake");
    assert_int_equal(m.dim, DIM);
    wait_answer(&early);
    assert_vectors(&early, "before it is ready");
    struct slice texts[60];
    char names[60][24];
    for (int i = 0; i < 60; i++) {
        snprintf(names[i], sizeof names[i], "text %d", i);
        texts[i] = slice_of(names[i]);
    }
    assert_int_equal(send_texts(l, texts, 60, &many), 0);
    wait_answer(&many);
    assert_int_equal(many.n, 60);
    for (int i = 0; i < 60; i++) {
        float want[DIM];
        vector_of(texts[i], want);
        assert_memory_equal(many.vectors + i * DIM, want, sizeof want);
    }
    static struct call bad, none;
    ask(l, &bad, "BAD");
    wait_answer(&bad);
    assert_int_equal(bad.code, KITH_EINVAL);
    assert_string_equal(bad.message, "ERR text 1 is bad");
    assert_int_not_equal(send_texts(l, texts, 0, &none), 0);
    assert_int_equal(atomic_load(&none.answers), 1);
    struct engine_stats stats;
    engine_link_stats(l, &stats);
    assert_true(stats.up && stats.pid > 0);
    assert_int_equal(stats.restarts, 0);
    assert_int_equal(stats.queued, 0);
    engine_link_close(l);
}

/* Many requests under way with long texts: the socket is full and the rest is sent by the link.
 */
static void a_full_socket_loses_nothing(void **state)
{
    (void)state;
    enum { CALLS = 400, BYTES = 20000 };
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 10000000);
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    struct call *calls = calloc(CALLS, sizeof *calls);
    char *text = malloc(BYTES + 1);
    for (int i = 0; i < CALLS; i++) {
        memset(text, 'a' + i % 26, BYTES);
        snprintf(text, 16, "%d", i);
        text[strlen(text)] = ' ';
        text[BYTES] = '\0';
        ask(l, &calls[i], text);
    }
    for (int i = 0; i < CALLS; i++) {
        memset(text, 'a' + i % 26, BYTES);
        snprintf(text, 16, "%d", i);
        text[strlen(text)] = ' ';
        text[BYTES] = '\0';
        wait_answer(&calls[i]);
        assert_vectors(&calls[i], text);
    }
    free(text);
    free(calls);
    engine_link_close(l);
}

/* The engine dies of a text. All that wait are told, at once and not when they have waited for
 * NEVER_MS; one that is silent is given silent_ms. */
static void dies(const char *text, const char *says, int64_t silent_ms)
{
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    static struct call waiting, cause, after;
    memset(&waiting, 0, sizeof waiting);
    memset(&cause, 0, sizeof cause);
    memset(&after, 0, sizeof after);
    engine_link_set_timeout(l, silent_ms);
    ask(l, &waiting, "SILENT");
    ask(l, &cause, text);
    wait_answer(&waiting);
    engine_link_set_timeout(l, NEVER_MS); /* the next one is not to die */
    wait_answer(&cause);
    if (!strstr(waiting.message, says) || strncmp(waiting.message, "ENGINE ", 7) != 0)
        fail_msg("%s: %s", text, waiting.message);
    assert_string_equal(waiting.message, cause.message);
    wait_up(l);
    ask(l, &after, "again");
    wait_answer(&after);
    assert_vectors(&after, "again");
    struct engine_stats stats;
    engine_link_stats(l, &stats);
    assert_int_equal(stats.restarts, 1);
    engine_link_close(l);
}

static void a_crash_is_answered_at_once(void **state)
{
    (void)state;
    dies("CRASH", "stopped (signal 9); it is being restarted, try again", NEVER_MS);
    dies("EXIT", "stopped (exit status 7)", NEVER_MS);
}

static void nonsense_ends_the_engine(void **state)
{
    (void)state;
    dies("GARBAGE", "not the protocol", NEVER_MS);
}

static void silence_ends_the_engine(void **state)
{
    (void)state;
    dies("HANG", "did not answer for", 300);
}

static void vectors_of_a_wrong_shape_are_refused(void **state)
{
    (void)state;
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    static struct call call;
    ask(l, &call, "WRONG");
    wait_answer(&call);
    assert_int_equal(call.code, KITH_EPROTO);
    engine_link_close(l);
}

static void a_poisoned_text_slows_restarts_down(void **state)
{
    (void)state;
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    int64_t from = clock_mono_us();
    for (int i = 0; i < 4; i++) {
        struct call call = {0};
        wait_up(l);
        ask(l, &call, "CRASH");
        wait_answer(&call);
        struct call refused = {0};
        ask(l, &refused, "while it is down");
        wait_answer(&refused);
        if (refused.code != 0) /* unless it is up again by now */
            assert_non_null(strstr(refused.message, "the next start is tried in"));
    }
    /* 100 + 200 + 400 ms lie between four crashes. */
    assert_true(clock_mono_us() - from > 650 * 1000);
    engine_link_close(l);
}

static void a_broken_model_is_told_and_tried_again(void **state)
{
    (void)state;
    struct err e = {0};
    struct engine_link *l = open_link("broken", NEVER_MS, 100000);
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), KITH_ECLOSED);
    assert_non_null(strstr(e.message, "no magic"));
    static struct call call;
    ask(l, &call, "text");
    wait_answer(&call);
    assert_non_null(strstr(call.message, "no magic"));
    struct engine_stats stats = {0};
    for (int i = 0; i < PATIENCE_MS && stats.restarts < 2; i++) {
        clock_sleep_us(1000);
        engine_link_stats(l, &stats);
    }
    assert_true(stats.restarts >= 2);
    engine_link_close(l);
    const char *const arguments[] = {"--model", "m", NULL};
    struct engine_link_options o = {.program = "/nowhere/kith-engine",
                                    .label = "m",
                                    .arguments = arguments,
                                    .queue_tokens = 1000,
                                    .timeout_ms = 1000};
    assert_int_equal(engine_link_open(&l, &o, &e), 0);
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), KITH_ECLOSED);
    assert_non_null(strstr(e.message, "/nowhere/kith-engine"));
    engine_link_close(l);
}

static void nobody_waits_for_a_slow_load(void **state)
{
    (void)state;
    char dir[64], go[80], model[96];
    unit_dir_make(dir);
    snprintf(go, sizeof go, "%s/go", dir);
    snprintf(model, sizeof model, "slow:%s", go); /* loads until the file is there */
    struct engine_link *l = open_link(model, 200, 100000);
    static struct call early, late, after;
    ask(l, &early, "early");
    wait_answer(&early);
    assert_non_null(strstr(early.message, "still loading"));
    ask(l, &late, "late");
    assert_int_equal(atomic_load(&late.answers), 1);
    engine_link_set_timeout(l, NEVER_MS);
    fclose(fopen(go, "w"));
    wait_up(l); /* it was not killed for being slow */
    ask(l, &after, "after");
    wait_answer(&after);
    assert_vectors(&after, "after");
    struct engine_stats stats;
    engine_link_stats(l, &stats);
    assert_int_equal(stats.restarts, 0);
    engine_link_close(l);
    unit_remove(dir);
}

static void the_queue_is_bounded(void **state)
{
    (void)state;
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 10); /* 80 bytes */
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    static struct call first, second, third;
    char text[101];
    memset(text, 'x', 100);
    text[100] = '\0';
    ask(l, &first, "SILENT"); /* stays under way */
    ask(l, &second, text);
    assert_int_equal(second.code, KITH_EBUSY);
    assert_int_equal(strncmp(second.message, "BUSY ", 5), 0);
    ask(l, &third, "short");
    wait_answer(&third);
    assert_vectors(&third, "short");
    engine_link_close(l); /* answers the first */
    assert_int_equal(atomic_load(&first.answers), 1);
    assert_non_null(strstr(first.message, "shutting down"));
}

static void closing_leaves_no_child(void **state)
{
    (void)state;
    for (int hang = 0; hang < 2; hang++) {
        struct err e = {0};
        struct engine_link *l = open_link("good", NEVER_MS, 1000);
        assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
        struct engine_stats stats;
        engine_link_stats(l, &stats);
        static struct call call;
        memset(&call, 0, sizeof call);
        if (hang)
            ask(l, &call, "HANG");
        engine_link_close(l); /* and not when a hanging one has had its NEVER_MS */
        assert_int_equal(kill(stats.pid, 0), -1);
        if (hang)
            assert_int_equal(atomic_load(&call.answers), 1);
    }
}

static void running_out_of_memory_answers_too(void **state)
{
    (void)state;
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    for (long n = 1; n <= 4; n++) {
        struct call call = {0};
        mem_fail_after(n);
        ask(l, &call, "some text");
        clock_sleep_us(20000);
        mem_fail_after(0);
        wait_answer(&call); /* a vector, or why not; never silence */
        wait_up(l);
    }
    engine_link_close(l);
}

static void wait_pid_gone(int pid)
{
    for (int i = 0; i < PATIENCE_MS && kill(pid, 0) == 0; i++)
        clock_sleep_us(1000);
    assert_int_equal(kill(pid, 0), -1);
}

/* Put away, its process is gone; asked again, it is another one and no restart. */
static void put_away_and_brought_back(void **state)
{
    (void)state;
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    struct engine_stats before, after;
    int started = atomic_load(&starts), ready = atomic_load(&readies);
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    for (int round = 1; round <= 3; round++) {
        static struct call call;
        memset(&call, 0, sizeof call);
        wait_up(l);
        engine_link_stats(l, &before);
        assert_true(engine_link_put_away(l, NULL));
        assert_false(engine_link_put_away(l, NULL)); /* it is away */
        if (round > 1)
            wait_pid_gone(before.pid); /* else the request comes while it still ends */
        ask(l, &call, "text");
        wait_answer(&call);
        assert_vectors(&call, "text");
        engine_link_stats(l, &after);
        assert_int_not_equal(after.pid, before.pid);
        assert_int_equal(after.restarts, 0);
        assert_int_equal(after.returns, round);
        assert_true(after.state == ENGINE_READY);
    }
    assert_true(atomic_load(&starts) >= started + 3);
    assert_true(atomic_load(&readies) >= ready + 3);
    engine_link_close(l);
}

static void a_busy_engine_is_not_put_away(void **state)
{
    (void)state;
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    static struct call silent, after;
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    ask(l, &silent, "SILENT");
    assert_false(engine_link_put_away(l, NULL));
    assert_int_equal(atomic_load(&silent.answers), 0);
    assert_true(engine_link_put_away(l, "ENGINE it is too large")); /* unless it must be */
    wait_answer(&silent);
    assert_string_equal(silent.message, "ENGINE it is too large");
    ask(l, &after, "text");
    wait_answer(&after);
    assert_vectors(&after, "text");
    engine_link_close(l);
}

static void away_from_the_start(void **state)
{
    (void)state;
    struct engine_link *l = open_as("good", NEVER_MS, 100000, true);
    struct engine_stats stats;
    static struct call call;
    clock_sleep_us(20000);
    engine_link_stats(l, &stats);
    assert_true(stats.state == ENGINE_AWAY && stats.pid == 0);
    ask(l, &call, "text");
    wait_answer(&call);
    assert_vectors(&call, "text");
    engine_link_stats(l, &stats);
    assert_int_equal(stats.returns, 0);
    engine_link_close(l);
    l = open_as("good", NEVER_MS, 100000, true);
    engine_link_close(l); /* nothing ever ran */
}

static void roles_are_letters(void **state)
{
    (void)state;
    static const struct {
        bool truncate;
        enum engine_role role;
        float t, q, d, none;
    } rows[] = {{false, ENGINE_ROLE_NONE, 0, 0, 0, 1},
                {true, ENGINE_ROLE_NONE, 1, 0, 0, 0},
                {true, ENGINE_ROLE_QUERY, 1, 1, 0, 0},
                {false, ENGINE_ROLE_DOCUMENT, 0, 0, 1, 0}};
    struct err e = {0};
    struct engine_link *l = open_link("good", NEVER_MS, 100000);
    struct slice text = slice_of("FLAGS");
    assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct call call = {0};
        send_request(l, ENGINE_EMBED, &text, 1, rows[i].truncate, rows[i].role, &call);
        wait_answer(&call);
        assert_true(call.vectors[0] == rows[i].t && call.vectors[1] == rows[i].q);
        assert_true(call.vectors[2] == rows[i].d && call.vectors[3] == rows[i].none);
    }
    engine_link_close(l);
}

static void a_task_the_model_has_not(void **state)
{
    (void)state;
    struct err e = {0};
    const struct slice texts[] = {slice_of("query"), slice_of("four"), slice_of("seven!!")};
    for (int reranks = 0; reranks < 2; reranks++) {
        struct engine_link *l = open_link(reranks ? "rerank" : "good", NEVER_MS, 100000);
        assert_int_equal(engine_link_wait_ready(l, PATIENCE_MS, &e), 0);
        struct call embed = {0}, rerank = {0};
        send_texts(l, texts, 3, &embed);
        send_request(l, ENGINE_RERANK, texts, 3, false, ENGINE_ROLE_NONE, &rerank);
        wait_answer(&embed);
        wait_answer(&rerank);
        assert_int_equal(embed.code, reranks ? KITH_EUNSUPPORTED : 0);
        assert_int_equal(rerank.code, reranks ? 0 : KITH_EUNSUPPORTED);
        assert_non_null(strstr((reranks ? embed : rerank).message, "model 'm'"));
        if (reranks) {
            assert_int_equal(rerank.n, 2);
            assert_int_equal(rerank.dim, 1);
            assert_true(rerank.vectors[0] == 4 && rerank.vectors[1] == 7);
        }
        engine_link_close(l);
    }
}

/* Nobody knows the tasks while the model is loaded: those that it then has not are taken out
 * from between the others. */
static void tasks_that_waited_for_the_model(void **state)
{
    (void)state;
    char dir[64], go[80], model[96];
    unit_dir_make(dir);
    snprintf(go, sizeof go, "%s/go", dir);
    snprintf(model, sizeof model, "slow:%s", go);
    struct engine_link *l = open_link(model, NEVER_MS, 100000);
    const struct slice texts[] = {slice_of("query"), slice_of("document")};
    static struct call calls[9];
    for (int i = 0; i < 9; i++)
        send_request(l, i % 3 == 1 ? ENGINE_RERANK : ENGINE_EMBED, texts, 2, false,
                     ENGINE_ROLE_NONE, &calls[i]);
    fclose(fopen(go, "w"));
    for (int i = 0; i < 9; i++) {
        wait_answer(&calls[i]);
        assert_int_equal(calls[i].code, i % 3 == 1 ? KITH_EUNSUPPORTED : 0);
        assert_int_equal(calls[i].n, i % 3 == 1 ? 0 : 2);
    }
    engine_link_close(l);
    unit_remove(dir);
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "--model") == 0)
        _exit(be_the_engine(argv[2])); /* what the child leaves is the kernel's to free */
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_become_vectors),
        cmocka_unit_test(a_full_socket_loses_nothing),
        cmocka_unit_test(a_crash_is_answered_at_once),
        cmocka_unit_test(nonsense_ends_the_engine),
        cmocka_unit_test(silence_ends_the_engine),
        cmocka_unit_test(vectors_of_a_wrong_shape_are_refused),
        cmocka_unit_test(a_poisoned_text_slows_restarts_down),
        cmocka_unit_test(a_broken_model_is_told_and_tried_again),
        cmocka_unit_test(nobody_waits_for_a_slow_load),
        cmocka_unit_test(the_queue_is_bounded),
        cmocka_unit_test(closing_leaves_no_child),
        cmocka_unit_test(running_out_of_memory_answers_too),
        cmocka_unit_test(put_away_and_brought_back),
        cmocka_unit_test(a_busy_engine_is_not_put_away),
        cmocka_unit_test(away_from_the_start),
        cmocka_unit_test(roles_are_letters),
        cmocka_unit_test(a_task_the_model_has_not),
        cmocka_unit_test(tasks_that_waited_for_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
