/* How the link works.
 *
 * One thread owns the child and the reading side. It starts the child, polls its socket, and
 * when the child ends for whatever reason it answers everything under way, waits a little
 * longer each time, and starts the next one:
 *
 *        start            READY                 end of stream, PING unanswered, nonsense
 *   DOWN ─────► LOADING ────────► READY ──────────────┐
 *     ▲          ▲ │ FAIL, end      │ put away         │
 *     └──────────┼─┴── back-off 100 ms .. 10 s ◄───────┘
 *                └───── AWAY ◄──────┘
 *             a request
 *
 * An engine is put away only while nothing is under way (or all of it was answered), so that
 * the outgoing buffer holds nothing its successor should not get. A request that comes while
 * the old child still ends is already the next one's: the state is LOADING from then on.
 *
 * Requests are numbered and kept in a table until their answer comes. A request that arrives
 * while the engine is loading waits in the outgoing buffer, but no longer than
 * engine-timeout-ms after the start: then all that wait are answered with an error and new ones
 * are refused at once, while the loading goes on. So nobody waits for an engine longer than the
 * engine may be silent.
 *
 * The outgoing side is one buffer under the lock. Whoever adds a request also tries to send,
 * which does not block; what the socket does not take is sent by the link's thread when poll
 * says so. The buffer is bounded by bytes_limit, which stands for engine-queue-tokens.
 *
 * Callbacks run without the lock. A request is taken out of the table before its callback runs,
 * so it runs once whoever finds it first: the answer, the engine's death, or the end of the
 * link. */
#include "server/engine_link.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "protocol/resp_read.h"
#include "protocol/resp_write.h"
#include "server/engine_process.h"

enum {
    BUCKETS = 1024,
    BYTES_A_TOKEN =
        8, /* generous: English has about 4, and a refusal too early is the worse fault */
    READ_BYTES = 16 * 1024,
    PING_INTERVAL_MS = 1000,
    ARGUMENTS_MAX = 32,
    BACKOFF_FIRST_MS = 100,
    BACKOFF_MAX_MS = 10000,
    GOOD_LIFE_MS = 10000,
    LOAD_LIMIT_MS = 600000,
    STATUS_WAIT_MS = 200,
    CLOSE_WAIT_MS = 2000,
    PROGRAM_MAX = 4096
};

#define CLOSING "ENGINE the engine of model '%s' is shutting down"
#define SLOW_LOAD "ENGINE the engine of model '%s' is still loading it, try again"

struct request {
    struct request *next;
    uint64_t id;
    enum engine_task task;
    uint32_t n;                   /* of the texts; of ENGINE_RERANK of the documents */
    size_t message_at, message_n; /* in the outgoing buffer, while nothing was sent yet */
    size_t bytes;
    void (*done)(void *arg, const struct engine_answer *a);
    void *arg;
};

struct engine_link {
    char program[PROGRAM_MAX];
    char *label;
    char *arguments[ARGUMENTS_MAX]; /* after the program's name; NULL-terminated */
    void (*on_start)(void *arg);
    void (*on_ready)(void *arg, const struct engine_model *model);
    void (*on_change)(void *arg);
    void *arg;
    _Atomic int64_t timeout_ms;
    size_t bytes_limit;
    int wake_fd;
    pthread_t thread;

    pthread_mutex_t lock; /* guards all down to the next comment */
    pthread_cond_t changed;
    enum engine_state state;
    bool closing, slow_load;
    bool tried;  /* the first start came to READY or to its end */
    bool ending; /* put away: the child that runs is to end, without a word */
    struct engine_process process;
    struct buf out;
    size_t out_sent;
    struct request *buckets[BUCKETS];
    size_t bytes_waiting;
    uint64_t next_id;
    int64_t next_start_us;
    struct engine_model model;
    struct engine_stats stats;

    /* The link's thread only. */
    struct resp_reader *reader;
    struct resp_request message;
    char read_buffer[READ_BYTES];
    float *vectors;
    size_t vectors_cap;
    bool returning; /* the next start is no restart: it was put away */
    int64_t started_us, last_ping_us, backoff_ms;
    int64_t
        unanswered_us; /* when the oldest PING without a PONG was sent, 0 when there is none */
    char end_reason[512];
};

static void tell(struct engine_link *l)
{
    if (l->on_change)
        l->on_change(l->arg);
}

/* --- requests --- */

static void answer_error(void (*done)(void *, const struct engine_answer *), void *arg,
                         int code, const char *message)
{
    struct engine_answer a = {.code = code, .message = message};
    done(arg, &a);
}

/* Takes the request out of the table; NULL when it was answered already. Lock held. */
static struct request *take_request(struct engine_link *l, uint64_t id)
{
    struct request **at = &l->buckets[id % BUCKETS];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    struct request *r = *at;
    if (r) {
        *at = r->next;
        l->bytes_waiting -= r->bytes;
        l->stats.queued--;
    }
    return r;
}

/* Takes all out, in no order. Lock held. */
static struct request *take_all(struct engine_link *l)
{
    struct request *all = NULL;
    for (int b = 0; b < BUCKETS; b++)
        while (l->buckets[b]) {
            struct request *r = take_request(l, l->buckets[b]->id);
            r->next = all;
            all = r;
        }
    return all;
}

/* Answers everything that waits with one error and empties the outgoing buffer. Lock not held.
 */
static void fail_all(struct engine_link *l, int code, const char *message)
{
    pthread_mutex_lock(&l->lock);
    struct request *r = take_all(l);
    buf_clear(&l->out);
    l->out_sent = 0;
    for (struct request *i = r; i; i = i->next)
        l->stats.failed++;
    pthread_mutex_unlock(&l->lock);
    while (r) {
        struct request *next = r->next;
        answer_error(r->done, r->arg, code, message);
        mem_free(r);
        r = next;
    }
}

/* --- sending --- */

/* Sends what the socket takes. An error is not handled here: the reading side meets it too.
 * Lock held. */
static void send_some(struct engine_link *l)
{
    while (l->process.fd >= 0 && l->out_sent < l->out.len) {
        ssize_t n = send(l->process.fd, l->out.data + l->out_sent, l->out.len - l->out_sent,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        l->out_sent += (size_t)n;
    }
    if (l->out_sent == l->out.len) {
        buf_clear(&l->out);
        l->out_sent = 0;
    } else if (l->out_sent > l->out.len / 2) {
        buf_consume(&l->out, l->out_sent);
        l->out_sent = 0;
    }
}

static void wake(struct engine_link *l)
{
    uint64_t one = 1;
    ssize_t n = write(l->wake_fd, &one, sizeof one);
    (void)n; /* a full counter wakes as well */
}

static void put_request(struct engine_link *l, uint64_t id, const struct engine_request *q)
{
    char flags[4];
    size_t n = 0;
    if (q->truncate)
        flags[n++] = 't';
    if (q->role != ENGINE_ROLE_NONE)
        flags[n++] = q->role == ENGINE_ROLE_QUERY ? 'q' : 'd';
    if (n == 0)
        flags[n++] = '-';
    struct resp_out o = {.to = &l->out, .proto = 2};
    resp_array(o, (size_t)q->n + 3);
    resp_bulk_str(o, q->task == ENGINE_RERANK ? "RERANK" : "EMBED");
    resp_bulkf(o, "%" PRIu64, id);
    resp_bulk(o, flags, n);
    for (uint32_t i = 0; i < q->n; i++)
        resp_bulk(o, q->texts[i].p, q->texts[i].n);
}

/* What is said to a request for a task that the model does not have. Lock held. */
static void say_unfit(const struct engine_link *l, enum engine_task task, char *message,
                      size_t size)
{
    if (task == ENGINE_RERANK)
        snprintf(
            message, size,
            "ERR model '%s' makes vectors and does not rerank: EMBED asks it, RERANK takes "
            "a reranker",
            l->label);
    else
        snprintf(message, size,
                 "ERR model '%s' reranks and makes no vectors: RERANK asks it, EMBED takes an "
                 "embedding model",
                 l->label);
}

/* Why a request cannot be taken now; 0 when it can. Lock held. */
static int refuse(struct engine_link *l, size_t bytes, const struct engine_request *q,
                  char *message, size_t size)
{
    int64_t left_ms = (l->next_start_us - clock_mono_us()) / 1000;
    if (l->closing) {
        snprintf(message, size, CLOSING, l->label);
        return KITH_ECLOSED;
    }
    if (q->n < (q->task == ENGINE_RERANK ? 2u : 1u)) {
        snprintf(message, size, "ERR there is no text to %s",
                 q->task == ENGINE_RERANK ? "rerank" : "embed");
        return KITH_EINVAL;
    }
    if (l->state == ENGINE_READY && !(l->model.tasks & q->task)) {
        say_unfit(l, q->task, message, size);
        return KITH_EUNSUPPORTED;
    }
    if (l->state == ENGINE_DOWN) {
        snprintf(
            message, size,
            "ENGINE the embedding engine of model '%s' is down (%s); the next start is tried "
            "in %" PRId64 " ms",
            l->label, l->stats.last_error[0] ? l->stats.last_error : "not started yet",
            left_ms > 0 ? left_ms : 0);
        return KITH_ECLOSED;
    }
    if (l->slow_load) {
        snprintf(message, size, SLOW_LOAD, l->label);
        return KITH_ECLOSED;
    }
    if (l->bytes_waiting > 0 && l->bytes_waiting + bytes > l->bytes_limit) {
        snprintf(message, size,
                 "BUSY the embedding engine of model '%s' has %zu bytes of text waiting; raise "
                 "engine-queue-tokens or try again",
                 l->label, l->bytes_waiting);
        return KITH_EBUSY;
    }
    return 0;
}

/* The request joins those under way; what it says is in the outgoing buffer from `at` on. Lock
 * held. */
static void add_request(struct engine_link *l, struct request *r,
                        const struct engine_request *q, size_t bytes, size_t at)
{
    *r = (struct request){.id = l->next_id++,
                          .task = q->task,
                          .n = q->task == ENGINE_RERANK ? q->n - 1 : q->n,
                          .message_at = at,
                          .message_n = l->out.len - at,
                          .bytes = bytes,
                          .done = q->done,
                          .arg = q->arg};
    r->next = l->buckets[r->id % BUCKETS];
    l->buckets[r->id % BUCKETS] = r;
    l->bytes_waiting += bytes;
    l->stats.queued++;
}

/* Leaves AWAY; the thread does the rest. Lock held. */
static void begin_return(struct engine_link *l)
{
    l->state = ENGINE_LOADING;
    l->slow_load = false;
}

int engine_ask(struct engine_link *l, const struct engine_request *q)
{
    char message[1024];
    size_t bytes = 0;
    for (uint32_t i = 0; i < q->n; i++)
        bytes += q->texts[i].n;
    struct request *r = mem_alloc(sizeof *r);
    pthread_mutex_lock(&l->lock);
    l->stats.requests++;
    l->stats.texts += q->n;
    int rc = refuse(l, bytes, q, message, sizeof message);
    size_t before = l->out.len;
    if (rc == 0) {
        if (r)
            put_request(l, l->next_id, q);
        if (!r || l->out.failed) {
            l->out.len = before;
            l->out.failed = false;
            snprintf(message, sizeof message, "OOM out of memory for %zu bytes of text", bytes);
            rc = KITH_ENOMEM;
        }
    }
    if (rc != 0) {
        l->stats.failed++;
        pthread_mutex_unlock(&l->lock);
        mem_free(r);
        answer_error(q->done, q->arg, rc, message);
        return rc;
    }
    add_request(l, r, q, bytes, before);
    bool rouse = l->state == ENGINE_AWAY;
    if (rouse)
        begin_return(l);
    if (l->state == ENGINE_READY) {
        send_some(l);
        rouse = l->out.len > 0;
    }
    pthread_mutex_unlock(&l->lock);
    if (rouse)
        wake(l);
    return 0;
}

void engine_link_bring_back(struct engine_link *l)
{
    pthread_mutex_lock(&l->lock);
    bool away = l->state == ENGINE_AWAY && !l->closing;
    if (away)
        begin_return(l);
    pthread_mutex_unlock(&l->lock);
    if (away) {
        wake(l);
        tell(l);
    }
}

bool engine_link_put_away(struct engine_link *l, const char *why)
{
    pthread_mutex_lock(&l->lock);
    bool runs = l->state == ENGINE_READY || (why && l->state == ENGINE_LOADING);
    bool puts = runs && !l->closing && (why || l->stats.queued == 0);
    if (puts) {
        l->state = ENGINE_AWAY;
        l->ending = true;
        l->stats.up = false;
        if (!why) { /* what is left is at most half a PING */
            buf_clear(&l->out);
            l->out_sent = 0;
        }
    }
    pthread_mutex_unlock(&l->lock);
    if (puts && why)
        fail_all(l, KITH_ELIMIT, why);
    if (puts)
        wake(l);
    return puts;
}

/* --- what the engine says --- */

static void set_end(struct engine_link *l, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void set_end(struct engine_link *l, const char *format, ...)
{
    if (l->end_reason[0])
        return; /* the first reason is the cause */
    va_list ap;
    va_start(ap, format);
    vsnprintf(l->end_reason, sizeof l->end_reason, format, ap);
    va_end(ap);
}

static bool word_number(struct slice s, uint64_t *v)
{
    char copy[24], *end;
    if (s.n == 0 || s.n >= sizeof copy || s.p[0] < '0' || s.p[0] > '9')
        return false;
    memcpy(copy, s.p, s.n);
    copy[s.n] = '\0';
    *v = strtoull(copy, &end, 10);
    return *end == '\0';
}

/* Requests that waited for the model while nobody knew its tasks, and that it does not have:
 * out of the table and, as nothing was sent yet, out of the buffer. Lock held. */
static struct request *take_unfit(struct engine_link *l)
{
    struct request *unfit = NULL;
    size_t kept = 0;
    for (uint64_t id = l->next_id - l->stats.queued; id < l->next_id && l->stats.queued; id++) {
        struct request *r = l->buckets[id % BUCKETS];
        while (r && r->id != id)
            r = r->next;
        if (!r)
            continue;
        if (r->task & l->model.tasks) {
            memmove(l->out.data + kept, l->out.data + r->message_at, r->message_n);
            kept += r->message_n;
            continue;
        }
        take_request(l, id);
        l->stats.failed++;
        r->next = unfit;
        unfit = r;
    }
    l->out.len = kept;
    return unfit;
}

static bool on_ready(struct engine_link *l, const struct slice *words, int n)
{
    struct engine_model m;
    if (!engine_model_read(&m, words + 1, n - 1))
        return false;
    int64_t now = clock_mono_us();
    log_notice("engine %s ready: model %s, %" PRIu32 " dimensions, context %" PRIu32
               ", %s, kernels %s, precision %s, loaded in %" PRId64 " ms",
               l->label, m.name, m.dim, m.context, m.type, m.kernels, m.precision,
               (now - l->started_us) / 1000);
    l->last_ping_us = now;
    l->unanswered_us = 0;
    if (l->on_ready)
        l->on_ready(l->arg, &m);
    pthread_mutex_lock(&l->lock);
    if (l->ending) { /* put away meanwhile */
        pthread_mutex_unlock(&l->lock);
        return true;
    }
    l->model = m;
    struct request *unfit = take_unfit(l);
    l->state = ENGINE_READY;
    l->slow_load = false;
    l->tried = true;
    l->stats.up = true;
    send_some(l);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    while (unfit) {
        char message[512];
        struct request *r = unfit;
        unfit = r->next;
        say_unfit(l, r->task, message, sizeof message);
        answer_error(r->done, r->arg, KITH_EUNSUPPORTED, message);
        mem_free(r);
    }
    tell(l);
    return true;
}

/* VECTORS id n dim n_tokens blob, or SCORES id n n_tokens blob. */
static bool on_vectors(struct engine_link *l, const struct slice *words, int n)
{
    bool scores = slice_is(words[0], "SCORES");
    uint64_t id, n_texts, dim = 1, tokens;
    if (n != (scores ? 5 : 6) || !word_number(words[1], &id) ||
        !word_number(words[2], &n_texts) || (!scores && !word_number(words[3], &dim)) ||
        !word_number(words[n - 2], &tokens))
        return false;
    struct slice blob = words[n - 1];
    pthread_mutex_lock(&l->lock);
    struct request *r = take_request(l, id);
    uint32_t want_dim = scores ? 1 : l->model.dim;
    pthread_mutex_unlock(&l->lock);
    if (!r)
        return true; /* given up before the answer came */
    struct engine_answer a = {
        .n = r->n, .dim = want_dim, .n_tokens = (uint32_t)tokens, .model = &l->model};
    size_t floats = (size_t)r->n * want_dim;
    bool fits = scores == (r->task == ENGINE_RERANK) && n_texts == r->n && dim == want_dim &&
                blob.n == floats * sizeof(float);
    if (fits && floats > l->vectors_cap) {
        float *bigger = mem_realloc_n(l->vectors, floats, sizeof(float));
        if (bigger) {
            l->vectors = bigger;
            l->vectors_cap = floats;
        } else {
            a.code = KITH_ENOMEM;
            a.message = "OOM out of memory for the engine's vectors";
        }
    }
    if (!fits) {
        a.code = KITH_EPROTO;
        a.message = "ENGINE the embedding engine answered with vectors of a wrong shape";
    } else if (a.code == 0) {
        memcpy(l->vectors, blob.p, blob.n); /* the socket's bytes are not aligned */
        a.vectors = l->vectors;
    }
    r->done(r->arg, &a);
    mem_free(r);
    return fits;
}

static bool on_error(struct engine_link *l, const struct slice *words, int n)
{
    uint64_t id;
    if (n != 4 || !word_number(words[1], &id))
        return false;
    int code = KITH_EIO;
    const char *prefix = "ENGINE";
    if (slice_is(words[2], "INVALID")) {
        code = KITH_EINVAL;
        prefix = "ERR";
    } else if (slice_is(words[2], "BUSY")) {
        code = KITH_EBUSY;
        prefix = "BUSY";
    }
    pthread_mutex_lock(&l->lock);
    struct request *r = take_request(l, id);
    if (r)
        l->stats.failed++;
    pthread_mutex_unlock(&l->lock);
    if (!r)
        return true;
    char message[1024];
    snprintf(message, sizeof message, "%s %.*s", prefix,
             (int)(words[3].n < 900 ? words[3].n : 900), words[3].p);
    answer_error(r->done, r->arg, code, message);
    mem_free(r);
    return true;
}

static bool on_pong(struct engine_link *l, const struct slice *words, int n)
{
    uint64_t v[4];
    if (n < 6)
        return false;
    for (int i = 0; i < 4; i++)
        if (!word_number(words[i + 2], &v[i]))
            return false;
    l->unanswered_us = 0;
    pthread_mutex_lock(&l->lock);
    l->stats.batches = v[1];
    l->stats.tokens = v[2];
    pthread_mutex_unlock(&l->lock);
    return true;
}

static bool on_message(struct engine_link *l, const struct slice *words, int n)
{
    pthread_mutex_lock(&l->lock);
    bool ready = l->state == ENGINE_READY, ending = l->ending;
    pthread_mutex_unlock(&l->lock);
    if (n < 1)
        return false;
    if (ending)
        return true; /* the last words of one that is put away */
    if (!ready && slice_is(words[0], "READY"))
        return on_ready(l, words, n);
    if (!ready && slice_is(words[0], "FAIL") && n == 2) {
        set_end(l, "the model could not be loaded: %.*s",
                (int)(words[1].n < 440 ? words[1].n : 440), words[1].p);
        return true;
    }
    if (ready && (slice_is(words[0], "VECTORS") || slice_is(words[0], "SCORES")))
        return on_vectors(l, words, n);
    if (ready && slice_is(words[0], "ERROR"))
        return on_error(l, words, n);
    if (ready && slice_is(words[0], "PONG"))
        return on_pong(l, words, n);
    return false;
}

/* Reads what is there and acts on whole messages. False when the child is to be given up. */
static bool read_some(struct engine_link *l)
{
    static const struct resp_limits limits = {.max_bulk_bytes = RESP_BULK_MAX,
                                              .max_request_bytes = RESP_BULK_MAX,
                                              .authenticated = true};
    ssize_t got = recv(l->process.fd, l->read_buffer, READ_BYTES, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (got <= 0)
        return false; /* how it ended is what waitpid says */
    struct err e = {0};
    if (resp_reader_feed(l->reader, l->read_buffer, (size_t)got) != 0) {
        set_end(l, "out of memory reading its answers");
        return false;
    }
    for (;;) {
        enum resp_status status = resp_reader_next(l->reader, &limits, &l->message, &e);
        if (status == RESP_INCOMPLETE)
            return true;
        bool good = status == RESP_REQUEST && on_message(l, l->message.argv, l->message.argc);
        resp_request_reset(&l->message);
        if (!good) {
            set_end(l, "it said something that is not the protocol %s", e.message);
            return false;
        }
    }
}

/* --- the child's life --- */

/* What the last child left unfinished must not be read as the next one's. */
static bool fresh_reader(struct engine_link *l)
{
    resp_reader_free(l->reader);
    resp_request_reset(&l->message);
    l->reader = resp_reader_new();
    return l->reader != NULL;
}

static bool start_child(struct engine_link *l)
{
    const char *argv[ARGUMENTS_MAX + 1] = {l->program};
    for (int i = 0; l->arguments[i]; i++)
        argv[i + 1] = l->arguments[i];
    if (l->on_start)
        l->on_start(l->arg);
    struct err e = {0};
    struct engine_process p;
    l->started_us = clock_mono_us();
    l->end_reason[0] = '\0';
    int rc = fresh_reader(l) ? engine_process_start(&p, argv, &e)
                             : err_set(&e, KITH_ENOMEM, "out of memory");
    pthread_mutex_lock(&l->lock);
    if (rc == 0) {
        l->process = p;
        if (!l->ending)
            l->state = ENGINE_LOADING;
        l->slow_load = false;
        l->stats.pid = p.pid;
        if (l->tried && l->returning)
            l->stats.returns++;
        else if (l->tried)
            l->stats.restarts++;
    }
    pthread_mutex_unlock(&l->lock);
    l->returning = false;
    if (rc != 0)
        set_end(l, "%s", e.message);
    else
        log_notice("engine %s started with process id %d", l->label, p.pid);
    tell(l);
    return rc == 0;
}

/* Asks for a sign of life and looks how old the last one is. `quiet`: nothing can be read now,
 * so silence is the engine's and not our own lateness. False when the child is to be given up.
 */
static bool keep_time(struct engine_link *l, bool quiet)
{
    int64_t now = clock_mono_us(), timeout_ms = atomic_load(&l->timeout_ms);
    int64_t age_ms = (now - l->started_us) / 1000;
    pthread_mutex_lock(&l->lock);
    bool ready = l->state == ENGINE_READY, ending = l->ending;
    pthread_mutex_unlock(&l->lock);
    if (ending)
        return true;
    if (!ready) {
        if (age_ms > LOAD_LIMIT_MS) {
            set_end(l, "it did not finish loading in %d s", LOAD_LIMIT_MS / 1000);
            return false;
        }
        if (age_ms > timeout_ms && !l->slow_load) {
            pthread_mutex_lock(&l->lock);
            l->slow_load = true;
            pthread_mutex_unlock(&l->lock);
            char message[256];
            snprintf(message, sizeof message, SLOW_LOAD, l->label);
            fail_all(l, KITH_ECLOSED, message);
            tell(l);
        }
        return true;
    }
    if (quiet && l->unanswered_us > 0 && now - l->unanswered_us > timeout_ms * 1000) {
        set_end(l, "it did not answer for %" PRId64 " ms", (now - l->unanswered_us) / 1000);
        return false;
    }
    int64_t interval_ms = timeout_ms / 2 < PING_INTERVAL_MS ? timeout_ms / 2 : PING_INTERVAL_MS;
    if (now - l->last_ping_us >= interval_ms * 1000) {
        l->last_ping_us = now;
        if (l->unanswered_us == 0)
            l->unanswered_us = now;
        pthread_mutex_lock(&l->lock);
        if (l->state == ENGINE_READY) {
            struct resp_out o = {.to = &l->out, .proto = 2};
            resp_array(o, 2);
            resp_bulk_str(o, "PING");
            resp_bulk_str(o, "0");
            send_some(l);
        }
        pthread_mutex_unlock(&l->lock);
    }
    return true;
}

static void drain_wake(struct engine_link *l)
{
    uint64_t counter;
    ssize_t n = read(l->wake_fd, &counter, sizeof counter);
    (void)n;
}

/* Serves the child until it ends, is given up, or the link closes. */
static void serve_child(struct engine_link *l)
{
    for (;;) {
        pthread_mutex_lock(&l->lock);
        bool leaving = l->closing || l->ending;
        if (l->state == ENGINE_READY)
            send_some(l);
        bool sending = l->state == ENGINE_READY && l->out.len > 0;
        pthread_mutex_unlock(&l->lock);
        if (leaving)
            return;
        struct pollfd fds[2] = {
            {.fd = l->process.fd, .events = (short)(sending ? POLLIN | POLLOUT : POLLIN)},
            {.fd = l->wake_fd, .events = POLLIN}};
        int64_t timeout_ms = atomic_load(&l->timeout_ms);
        int wait = timeout_ms / 4 < PING_INTERVAL_MS / 4 ? (int)timeout_ms / 4 + 1
                                                         : PING_INTERVAL_MS / 4;
        int rc = poll(fds, 2, wait);
        if (rc < 0 && errno != EINTR) {
            set_end(l, "poll: %s", strerror(errno));
            return;
        }
        if (rc > 0 && fds[1].revents)
            drain_wake(l);
        bool readable = rc > 0 && (fds[0].revents & (POLLIN | POLLHUP | POLLERR));
        if (readable && !read_some(l))
            return;
        if (!keep_time(l, !readable))
            return;
    }
}

/* The child of an engine that was put away ends in order; what came meanwhile is for the next.
 */
static void end_child(struct engine_link *l)
{
    char how[64];
    pthread_mutex_lock(&l->lock);
    engine_process_hang_up(&l->process);
    pthread_mutex_unlock(&l->lock);
    if (engine_process_reap(&l->process, CLOSE_WAIT_MS, how, sizeof how) != 0)
        engine_process_kill(&l->process);
    while (engine_process_reap(&l->process, 1000, how, sizeof how) != 0)
        continue;
    pthread_mutex_lock(&l->lock);
    l->ending = false;
    l->stats.pid = 0;
    l->tried = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    l->returning = true;
    l->backoff_ms = 0;
    log_notice("engine %s put away", l->label);
    tell(l);
}

/* Ends the child if it has not ended, tells everybody, and plans the next start. */
static void bury_child(struct engine_link *l)
{
    char how[64] = "no status", reason[512], message[1024];
    pthread_mutex_lock(&l->lock);
    bool closing = l->closing;
    bool was_ready = l->state == ENGINE_READY;
    l->state = ENGINE_DOWN;
    l->stats.up = false;
    l->stats.pid = 0;
    int64_t life_ms = (clock_mono_us() - l->started_us) / 1000;
    l->backoff_ms = was_ready && life_ms > GOOD_LIFE_MS ? BACKOFF_FIRST_MS
                    : l->backoff_ms == 0                ? BACKOFF_FIRST_MS
                                                        : l->backoff_ms * 2;
    if (l->backoff_ms > BACKOFF_MAX_MS)
        l->backoff_ms = BACKOFF_MAX_MS;
    l->next_start_us = clock_mono_us() + l->backoff_ms * 1000;
    engine_process_hang_up(&l->process);
    pthread_mutex_unlock(&l->lock);

    bool told = l->end_reason[0] != '\0';
    int64_t wait_ms = closing ? CLOSE_WAIT_MS : told ? 0 : STATUS_WAIT_MS;
    if (closing) {
        snprintf(message, sizeof message, CLOSING, l->label);
        fail_all(l, KITH_ECLOSED, message);
    }
    if (engine_process_reap(&l->process, wait_ms, how, sizeof how) != 0)
        engine_process_kill(&l->process);
    if (told)
        snprintf(reason, sizeof reason, "%s", l->end_reason);
    else
        snprintf(reason, sizeof reason, "%s", how);
    snprintf(message, sizeof message,
             "ENGINE the embedding engine of model '%s' stopped (%s); it is being restarted, "
             "try again",
             l->label, reason);
    fail_all(l, KITH_ECLOSED, message);
    while (engine_process_reap(&l->process, 1000, how, sizeof how) != 0)
        continue;
    pthread_mutex_lock(&l->lock);
    snprintf(l->stats.last_error, sizeof l->stats.last_error, "%.*s",
             (int)sizeof l->stats.last_error - 1, reason);
    l->tried = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (!closing)
        log_warning("engine %s stopped: %s; it is started again in %" PRId64 " ms", l->label,
                    reason, l->backoff_ms);
    tell(l);
}

/* Until the next child is to be started; false: until the end of the link. */
static bool wait_for_start(struct engine_link *l)
{
    for (;;) {
        pthread_mutex_lock(&l->lock);
        bool closing = l->closing, away = l->state == ENGINE_AWAY;
        int64_t left_ms =
            l->state == ENGINE_LOADING ? 0 : (l->next_start_us - clock_mono_us() + 999) / 1000;
        pthread_mutex_unlock(&l->lock);
        if (closing)
            return false;
        if (!away && left_ms <= 0)
            return true;
        struct pollfd fd = {.fd = l->wake_fd, .events = POLLIN};
        if (poll(&fd, 1, away ? -1 : (int)left_ms) > 0)
            drain_wake(l);
    }
}

static void *link_main(void *arg)
{
    struct engine_link *l = arg;
    while (wait_for_start(l)) {
        if (start_child(l))
            serve_child(l);
        pthread_mutex_lock(&l->lock);
        bool ending = l->ending && !l->closing;
        pthread_mutex_unlock(&l->lock);
        if (ending)
            end_child(l);
        else
            bury_child(l);
    }
    return NULL;
}

/* --- opening, closing, looking --- */

static int find_program(char *out, size_t n, const char *given, struct err *e)
{
    if (given && *given) {
        if (snprintf(out, n, "%s", given) >= (int)n)
            return err_set(e, KITH_EINVAL, "engine-path is too long");
        return 0;
    }
    static const char name[] = "kith-engine";
    ssize_t got = readlink("/proc/self/exe", out, n - sizeof name);
    if (got < 0)
        return err_set_errno(e, errno, "cannot find this program's own path");
    out[got] = '\0';
    char *slash = strrchr(out, '/');
    memcpy(slash ? slash + 1 : out, name, sizeof name);
    return 0;
}

static void free_link(struct engine_link *l)
{
    if (l->wake_fd >= 0)
        close(l->wake_fd);
    buf_deinit(&l->out);
    if (l->reader)
        resp_reader_free(l->reader);
    resp_request_deinit(&l->message);
    mem_free(l->vectors);
    mem_free(l->label);
    for (int i = 0; i < ARGUMENTS_MAX; i++)
        mem_free(l->arguments[i]);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

static bool copy_arguments(struct engine_link *l, const char *const *arguments)
{
    for (int i = 0; arguments[i]; i++) {
        assert(i + 1 < ARGUMENTS_MAX);
        if (!(l->arguments[i] = mem_strdup(arguments[i])))
            return false;
    }
    return true;
}

int engine_link_open(struct engine_link **out, const struct engine_link_options *o,
                     struct err *e)
{
    struct engine_link *l = mem_calloc(1, sizeof *l);
    if (!l)
        return err_set(e, KITH_ENOMEM, "out of memory");
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    resp_request_init(&l->message);
    l->process.fd = -1;
    /* Unless away, LOADING as good as is: the thread starts the child first of all. */
    l->state = o->away ? ENGINE_AWAY : ENGINE_LOADING;
    l->returning = o->away;
    l->started_us = clock_mono_us();
    l->bytes_limit = (size_t)o->queue_tokens * BYTES_A_TOKEN;
    l->label = mem_strdup(o->label);
    l->on_start = o->on_start;
    l->on_ready = o->on_ready;
    l->on_change = o->on_change;
    l->arg = o->arg;
    bool copied = l->label && copy_arguments(l, o->arguments);
    l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    engine_link_set_timeout(l, o->timeout_ms);
    int rc = find_program(l->program, sizeof l->program, o->program, e);
    if (rc == 0 && !copied)
        rc = err_set(e, KITH_ENOMEM, "out of memory");
    if (rc == 0 && l->wake_fd < 0)
        rc = err_set_errno(e, errno, "eventfd");
    if (rc == 0) {
        int failed = pthread_create(&l->thread, NULL, link_main, l);
        if (failed)
            rc = err_set_errno(e, failed, "cannot start the engine link's thread");
    }
    if (rc != 0) {
        free_link(l);
        return rc;
    }
    *out = l;
    return 0;
}

int engine_link_wait_ready(struct engine_link *l, int64_t timeout_ms, struct err *e)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&l->lock);
    while (!l->tried && pthread_cond_timedwait(&l->changed, &l->lock, &until) == 0)
        continue;
    int rc = 0;
    if (!l->tried)
        rc =
            err_set(e, KITH_EBUSY, "the engine was not ready after %" PRId64 " ms", timeout_ms);
    else if (l->state != ENGINE_READY)
        rc = err_set(e, KITH_ECLOSED, "%s", l->stats.last_error);
    pthread_mutex_unlock(&l->lock);
    return rc;
}

void engine_link_shut(struct engine_link *l)
{
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    pthread_mutex_unlock(&l->lock);
    wake(l);
}

void engine_link_close(struct engine_link *l)
{
    if (!l)
        return;
    engine_link_shut(l);
    pthread_join(l->thread, NULL);
    free_link(l);
}

bool engine_link_model(struct engine_link *l, struct engine_model *model)
{
    pthread_mutex_lock(&l->lock);
    *model = l->model;
    bool up = l->state == ENGINE_READY;
    pthread_mutex_unlock(&l->lock);
    return up;
}

void engine_link_stats(struct engine_link *l, struct engine_stats *out)
{
    pthread_mutex_lock(&l->lock);
    *out = l->stats;
    out->state = l->state;
    out->slow_load = l->slow_load;
    out->tried = l->tried;
    pthread_mutex_unlock(&l->lock);
}

void engine_link_set_timeout(struct engine_link *l, int64_t timeout_ms)
{
    atomic_store(&l->timeout_ms, timeout_ms);
}
