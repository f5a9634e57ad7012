/* kith-engine: the process that runs the model. protocol/engine_wire.md says what it speaks.
 *
 *   reader (the main thread)            scheduler's thread
 *   read → parse → tokenize → queue ──► batch → compute → callback: write VECTORS
 *        └─ PING: write PONG
 *
 * The reader never computes and never waits for a batch, so a PING is answered while one runs.
 * Both threads write whole messages under one lock. The socket blocks: a server that does not
 * read its answers holds the scheduler up, which is the right pressure, for it is the only
 * client.
 *
 * The process ends with its server: at the end of the stream, and by a signal of the kernel
 * should the server die while this side is busy. */

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/program.h"
#include "engine/embedder.h"
#include "engine/tokenizer.h"
#include "protocol/resp_read.h"
#include "protocol/resp_write.h"

enum { EXIT_USAGE = 2, EXIT_NO_MODEL = 2, READ_BYTES = 256 * 1024, ID_MAX_BYTES = 20 };

static const char help[] =
    "usage: kith-engine --model FILE.gguf [options]\n"
    "\n"
    "Runs an embedding model for kith-server, which starts it and talks to it over a\n"
    "socket (protocol/engine_wire.md). These modes are for people:\n"
    "\n"
    "  --embed TEXT           prints the vector of TEXT, a number a word\n"
    "  --tokenize TEXT        prints TEXT's tokens, a line each: id, tab, piece\n"
    "  --tokenize-file FILE   takes each line of FILE ('-': standard input) as a text and\n"
    "                         prints its tokens' ids in a line\n"
    "\n"
    "  --model FILE.gguf      the model; kith-convert makes one\n"
    "  --fd N                 the socket's descriptor (default 3)\n"
    "  --threads N            of the compute pool (default 0: one a processor)\n"
    "  --precision P          auto, f32 or int8 (default auto: int8 where weights are "
    "quantized)\n"
    "  --batch-tokens N       most tokens of one batch (default 2048)\n"
    "  --batch-wait-us N      longest wait for company after a shared batch (default 300)\n"
    "  --queue-tokens N       most tokens that may wait (default 1048576);\n"
    "                         also --max-queue-tokens\n"
    "  --version, --help\n";

struct options {
    const char *model, *embed, *tokenize, *tokenize_file;
    int fd;
    struct embedder_options embedder;
};

/* --- the command line ------------------------------------------------------------------------
 */

static int parse_count(const char *name, const char *text, int64_t min, int64_t max, int64_t *v,
                       struct err *e)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno || end == text || *end || n < min || n > max)
        return err_set(e, KITH_EINVAL,
                       "%s takes a number from %" PRId64 " to %" PRId64 ", not '%s'", name, min,
                       max, text);
    *v = n;
    return 0;
}

static int parse_precision(const char *text, enum bert_precision *precision, struct err *e)
{
    static const struct {
        const char *name;
        enum bert_precision precision;
    } names[] = {{"auto", BERT_AUTO}, {"f32", BERT_F32}, {"int8", BERT_INT8}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i].name) == 0) {
            *precision = names[i].precision;
            return 0;
        }
    return err_set(e, KITH_EINVAL, "--precision takes auto, f32 or int8, not '%s'", text);
}

static int parse_option(struct options *o, const char *name, const char *value, struct err *e)
{
    struct embedder_options *m = &o->embedder;
    int64_t n = 0;
    int rc = 0;
    if (strcmp(name, "--model") == 0) {
        o->model = value;
    } else if (strcmp(name, "--embed") == 0) {
        o->embed = value;
    } else if (strcmp(name, "--tokenize") == 0) {
        o->tokenize = value;
    } else if (strcmp(name, "--tokenize-file") == 0) {
        o->tokenize_file = value;
    } else if (strcmp(name, "--precision") == 0) {
        rc = parse_precision(value, &m->precision, e);
    } else if (strcmp(name, "--fd") == 0) {
        rc = parse_count(name, value, 0, 65535, &n, e);
        o->fd = (int)n;
    } else if (strcmp(name, "--threads") == 0) {
        rc = parse_count(name, value, 0, 1024, &n, e);
        m->n_threads = (unsigned)n;
    } else if (strcmp(name, "--batch-tokens") == 0) {
        rc = parse_count(name, value, 1, 1 << 24, &n, e);
        m->batch_tokens = (uint32_t)n;
    } else if (strcmp(name, "--batch-wait-us") == 0) {
        rc = parse_count(name, value, 0, 1000000, &n, e);
        m->batch_wait_us = n;
    } else if (strcmp(name, "--queue-tokens") == 0 || strcmp(name, "--max-queue-tokens") == 0) {
        rc = parse_count(name, value, 1, INT32_MAX, &n, e);
        m->max_queue_tokens = (uint64_t)n;
    } else {
        rc = err_set(e, KITH_EINVAL, "unknown option '%s'", name);
    }
    return rc;
}

static int parse_options(struct options *o, int argc, char **argv, struct err *e)
{
    memset(o, 0, sizeof *o);
    o->fd = 3;
    embedder_defaults(&o->embedder);
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            return err_set(e, KITH_EINVAL, "%s takes a value", argv[i]);
        int rc = parse_option(o, argv[i], argv[i + 1], e);
        if (rc)
            return rc;
    }
    return o->model ? 0 : err_set(e, KITH_EINVAL, "--model is needed");
}

/* --- the modes for people --------------------------------------------------------------------
 */

struct printed {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
    int code;
};

static void print_vector(void *arg, const struct scheduler_result *result)
{
    struct printed *p = arg;
    for (uint32_t i = 0; !result->code && i < result->dim; i++)
        printf("%s%.9g", i ? " " : "", (double)result->vectors[i]);
    if (result->code)
        fprintf(stderr, "kith-engine: %s\n", result->message);
    else
        putchar('\n');
    pthread_mutex_lock(&p->lock);
    p->done = true;
    p->code = result->code;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static int embed_once(struct embedder *m, const char *text, struct err *e)
{
    struct printed p = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    const struct slice t = {.p = text, .n = strlen(text)};
    const struct embedder_request request = {
        .texts = &t, .n = 1, .done = print_vector, .arg = &p};
    int rc = embedder_submit(m, &request, e);
    if (rc)
        return rc;
    pthread_mutex_lock(&p.lock);
    while (!p.done)
        pthread_cond_wait(&p.changed, &p.lock);
    pthread_mutex_unlock(&p.lock);
    return p.code ? err_set(e, p.code, "no vector") : 0;
}

/* The ids of a text in their frame, in memory that the caller frees. */
static int encode_framed(const struct tokenizer *t, const char *text, size_t n_bytes,
                         int32_t **ids, size_t *n_ids, struct err *e)
{
    const struct tokenizer_frame *frame = tokenizer_frame(t);
    size_t n = 0;
    *ids = NULL;
    int rc = tokenizer_encode(t, text, n_bytes, NULL, 0, &n, e);
    if (rc)
        return rc;
    *n_ids = frame->n_before + n + frame->n_after;
    *ids = mem_alloc_n(*n_ids, sizeof **ids);
    if (!*ids)
        return err_set(e, KITH_ENOMEM, "out of memory for %zu tokens", n);
    memcpy(*ids, frame->before, frame->n_before * sizeof **ids);
    rc = tokenizer_encode(t, text, n_bytes, *ids + frame->n_before, n, &n, e);
    memcpy(*ids + frame->n_before + n, frame->after, frame->n_after * sizeof **ids);
    return rc;
}

static int tokenize_once(struct embedder *m, const char *text, struct err *e)
{
    const struct tokenizer *t = embedder_tokenizer(m);
    size_t n = 0, n_text;
    int32_t *ids;
    int rc = encode_framed(t, text, strlen(text), &ids, &n, e);
    for (size_t i = 0; i < n && !rc; i++) {
        const char *piece = tokenizer_token(t, ids[i], &n_text);
        printf("%d\t%.*s\n", ids[i], (int)n_text, piece);
    }
    mem_free(ids);
    return rc;
}

/* A line that cannot be tokenized gives an empty one, and is named on standard error. */
static int tokenize_lines(struct embedder *m, FILE *from, struct err *e)
{
    char *line = NULL;
    size_t capacity = 0, n_lines = 0, n_refused = 0;
    for (ssize_t length; (length = getline(&line, &capacity, from)) >= 0;) {
        size_t n = 0, bytes = (size_t)length;
        int32_t *ids;
        struct err why = {0};
        n_lines++;
        if (bytes > 0 && line[bytes - 1] == '\n')
            bytes--;
        if (encode_framed(embedder_tokenizer(m), line, bytes, &ids, &n, &why)) {
            fprintf(stderr, "kith-engine: line %zu: %s\n", n_lines, why.message);
            n_refused++;
            n = 0;
        }
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i ? " " : "", ids[i]);
        putchar('\n');
        mem_free(ids);
    }
    free(line);
    return n_refused == 0
               ? 0
               : err_set(e, KITH_EINVAL, "%zu of %zu lines have no tokens", n_refused, n_lines);
}

static int tokenize_file(struct embedder *m, const char *path, struct err *e)
{
    FILE *from = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (!from)
        return err_set_errno(e, errno, "cannot read %s", path);
    int rc = tokenize_lines(m, from, e);
    if (!rc && ferror(from))
        rc = err_set(e, KITH_EIO, "cannot read %s to its end", path);
    if (from != stdin)
        fclose(from);
    return rc;
}

/* --- the service -----------------------------------------------------------------------------
 */

struct service {
    int fd;
    struct embedder *embedder;
    pthread_mutex_t write_lock;
    struct buf out;      /* the message that is being written; under write_lock */
    atomic_bool closing; /* nobody reads any more: write nothing */
};

/* A request under way. */
struct ticket {
    struct service *service;
    char id[ID_MAX_BYTES + 1];
};

/* Begins a message of n parts; the lock is held until end_message. */
static struct resp_out begin_message(struct service *s, size_t n)
{
    pthread_mutex_lock(&s->write_lock);
    buf_clear(&s->out);
    struct resp_out o = {.to = &s->out, .proto = 2};
    resp_array(o, n);
    return o;
}

static void end_message(struct service *s)
{
    const char *p = s->out.data;
    size_t left = s->out.len;
    if (s->out.failed) {
        /* An answer that cannot be written would leave its request waiting for ever. */
        log_error("out of memory for an answer; ending the link");
        atomic_store(&s->closing, true);
        shutdown(s->fd, SHUT_RDWR);
    }
    while (left > 0 && !atomic_load(&s->closing)) {
        ssize_t sent = send(s->fd, p, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            atomic_store(&s->closing, true);
            break;
        }
        p += sent;
        left -= (size_t)sent;
    }
    pthread_mutex_unlock(&s->write_lock);
}

static void send_error(struct service *s, const char *id, int code, const char *message)
{
    bool wrong = code == KITH_EINVAL || code == KITH_ELIMIT;
    struct resp_out o = begin_message(s, 4);
    resp_bulk_str(o, "ERROR");
    resp_bulk_str(o, id);
    resp_bulk_str(o, wrong ? "INVALID" : code == KITH_EBUSY ? "BUSY" : "INTERNAL");
    resp_bulk_str(o, message);
    end_message(s);
}

/* The request's answer; on the scheduler's thread. */
static void answer(void *arg, const struct scheduler_result *result)
{
    struct ticket *t = arg;
    struct service *s = t->service;
    if (result->code) {
        send_error(s, t->id, result->code, result->message);
    } else {
        struct resp_out o = begin_message(s, 6);
        resp_bulk_str(o, "VECTORS");
        resp_bulk_str(o, t->id);
        resp_bulkf(o, "%u", result->n);
        resp_bulkf(o, "%u", result->dim);
        resp_bulkf(o, "%u", result->n_tokens);
        resp_bulk(o, result->vectors, (size_t)result->n * result->dim * sizeof(float));
        end_message(s);
    }
    mem_free(t);
}

static bool read_id(char id[ID_MAX_BYTES + 1], struct slice word)
{
    if (word.n == 0 || word.n > ID_MAX_BYTES)
        return false;
    for (size_t i = 0; i < word.n; i++)
        if (word.p[i] < '0' || word.p[i] > '9')
            return false;
    memcpy(id, word.p, word.n);
    id[word.n] = '\0';
    return true;
}

static int submit(struct service *s, struct ticket *t, const struct resp_request *q,
                  struct err *e)
{
    uint32_t n = (uint32_t)q->argc - 3;
    struct slice *texts = mem_alloc_n(n, sizeof *texts);
    if (!texts)
        return err_set(e, KITH_ENOMEM, "out of memory for %u texts", n);
    for (uint32_t i = 0; i < n; i++)
        texts[i] = (struct slice){.p = q->argv[i + 3].p, .n = q->argv[i + 3].n};
    const struct embedder_request request = {
        .texts = texts,
        .n = n,
        .truncate = memchr(q->argv[2].p, 't', q->argv[2].n) != NULL,
        .done = answer,
        .arg = t};
    int rc = embedder_submit(s->embedder, &request, e);
    mem_free(texts);
    return rc;
}

static bool on_embed(struct service *s, const struct resp_request *q)
{
    char id[ID_MAX_BYTES + 1];
    if (q->argc < 4 || !read_id(id, q->argv[1]))
        return false;
    struct ticket *t = mem_alloc(sizeof *t);
    if (!t) {
        send_error(s, id, KITH_ENOMEM, "out of memory");
        return true;
    }
    t->service = s;
    memcpy(t->id, id, sizeof id);
    struct err e = {0};
    int rc = submit(s, t, q, &e);
    if (rc) {
        mem_free(t);
        send_error(s, id, rc, e.message);
    }
    return true;
}

static bool on_ping(struct service *s, const struct resp_request *q)
{
    char id[ID_MAX_BYTES + 1];
    if (q->argc != 2 || !read_id(id, q->argv[1]))
        return false;
    struct scheduler_stats stats;
    embedder_stats(s->embedder, &stats);
    struct resp_out o = begin_message(s, 6);
    resp_bulk_str(o, "PONG");
    resp_bulk_str(o, id);
    resp_bulkf(o, "%" PRIu64, stats.queued_requests);
    resp_bulkf(o, "%" PRIu64, stats.batches);
    resp_bulkf(o, "%" PRIu64, stats.tokens);
    resp_bulkf(o, "%" PRIu64, stats.texts);
    end_message(s);
    return true;
}

static bool on_message(struct service *s, const struct resp_request *q)
{
    if (slice_is(q->argv[0], "EMBED"))
        return on_embed(s, q);
    if (slice_is(q->argv[0], "PING"))
        return on_ping(s, q);
    return false;
}

/* All messages that are whole. False when the stream has lost its meaning. */
static bool read_messages(struct service *s, struct resp_reader *r, struct resp_request *q)
{
    static const struct resp_limits limits = {.max_bulk_bytes = RESP_BULK_MAX,
                                              .max_request_bytes = RESP_BULK_MAX,
                                              .authenticated = true};
    for (;;) {
        struct err e = {0};
        enum resp_status status = resp_reader_next(r, &limits, q, &e);
        if (status == RESP_INCOMPLETE)
            return true;
        if (status == RESP_ERROR) {
            log_error("the server's stream cannot be read: %s", e.message);
            return false;
        }
        bool known = on_message(s, q);
        if (!known)
            log_error("the server sent a message that engine_wire.md does not have: %.*s",
                      (int)(q->argv[0].n > 32 ? 32 : q->argv[0].n), q->argv[0].p);
        resp_request_reset(q);
        if (!known)
            return false;
    }
}

/* Until the end of the stream: 0; 1 when it broke. */
static int read_stream(struct service *s)
{
    struct resp_reader *r = resp_reader_new();
    char *bytes = mem_alloc(READ_BYTES);
    struct resp_request q;
    resp_request_init(&q);
    int status = r && bytes ? -1 : 1;
    while (status < 0) {
        ssize_t n = read(s->fd, bytes, READ_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            status = n == 0 || errno == ECONNRESET ? 0 : 1;
        else if (resp_reader_feed(r, bytes, (size_t)n) || !read_messages(s, r, &q))
            status = 1;
    }
    resp_request_deinit(&q);
    mem_free(bytes);
    resp_reader_free(r);
    return status;
}

static void send_ready(struct service *s, const char *path)
{
    const struct embedder_info *info = embedder_info(s->embedder);
    const char *const pairs[][2] = {
        {"name", info->name},       {"hash", info->hash}, {"pooling", info->pooling},
        {"arch", info->arch},       {"type", info->type}, {"precision", info->precision},
        {"kernels", info->kernels}, {"path", path},
    };
    enum { N_PAIRS = sizeof pairs / sizeof *pairs, N_COUNTS = 4 };
    struct resp_out o = begin_message(s, 1 + 2 * (N_PAIRS + N_COUNTS));
    resp_bulk_str(o, "READY");
    for (size_t i = 0; i < N_PAIRS; i++) {
        resp_bulk_str(o, pairs[i][0]);
        resp_bulk_str(o, pairs[i][1]);
    }
    resp_bulk_str(o, "dim");
    resp_bulkf(o, "%u", info->dim);
    resp_bulk_str(o, "context");
    resp_bulkf(o, "%u", info->context);
    resp_bulk_str(o, "threads");
    resp_bulkf(o, "%u", info->n_threads);
    resp_bulk_str(o, "batch-tokens");
    resp_bulkf(o, "%u", info->batch_tokens);
    end_message(s);
}

static int serve(const struct options *o)
{
    /* The parent may have died before the request to be told; its socket then ends at once. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    struct stat st;
    if (fstat(o->fd, &st) != 0 || !S_ISSOCK(st.st_mode)) {
        fprintf(stderr,
                "kith-engine: descriptor %d is no socket; kith-server starts this program, "
                "--help says what else it does\n",
                o->fd);
        return EXIT_USAGE;
    }
    struct service s = {.fd = o->fd, .write_lock = PTHREAD_MUTEX_INITIALIZER};
    buf_init(&s.out);
    struct err e = {0};
    int status = EXIT_NO_MODEL;
    if (embedder_open(&s.embedder, o->model, &o->embedder, &e)) {
        struct resp_out out = begin_message(&s, 2);
        resp_bulk_str(out, "FAIL");
        resp_bulk_str(out, e.message);
        end_message(&s);
    } else {
        send_ready(&s, o->model);
        status = read_stream(&s);
        atomic_store(&s.closing, true);
        shutdown(s.fd, SHUT_RDWR); /* wakes a callback that waits to write */
        embedder_close(s.embedder);
    }
    buf_deinit(&s.out);
    return status;
}

static int run_once(const struct options *o)
{
    struct embedder *m;
    struct err e = {0};
    if (embedder_open(&m, o->model, &o->embedder, &e)) {
        fprintf(stderr, "kith-engine: %s\n", e.message);
        return EXIT_NO_MODEL;
    }
    int rc = o->embed           ? embed_once(m, o->embed, &e)
             : o->tokenize_file ? tokenize_file(m, o->tokenize_file, &e)
                                : tokenize_once(m, o->tokenize, &e);
    embedder_close(m);
    if (rc)
        fprintf(stderr, "kith-engine: %s\n", e.message);
    return rc ? 1 : 0;
}

int main(int argc, char **argv)
{
    if (program_answers(argc, argv, "kith-engine", help))
        return 0;
    struct options o;
    struct err e = {0};
    if (parse_options(&o, argc, argv, &e)) {
        fprintf(stderr, "kith-engine: %s (see --help)\n", e.message);
        return EXIT_USAGE;
    }
    log_open(NULL, "engine");
    return o.embed || o.tokenize || o.tokenize_file ? run_once(&o) : serve(&o);
}
