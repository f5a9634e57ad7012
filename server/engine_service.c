#include "server/engine_service.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "protocol/resp_read.h"
#include "protocol/resp_write.h"

enum { READ_BYTES = 256 * 1024, ID_MAX_BYTES = 20 };

struct service {
    int fd;
    struct engine_backend backend;
    pthread_mutex_t write_lock;
    struct buf out;      /* the message that is being written; under write_lock */
    atomic_bool closing; /* nobody reads any more: write nothing */
};

/* A request under way. */
struct ticket {
    struct service *service;
    bool scores;
    char id[ID_MAX_BYTES + 1];
};

/* --- writing --- */

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

static const char *error_word(int code)
{
    if (code == KITH_EINVAL || code == KITH_ELIMIT || code == KITH_EUNSUPPORTED)
        return "INVALID";
    return code == KITH_EBUSY ? "BUSY" : "INTERNAL";
}

static void send_error(struct service *s, const char *id, int code, const char *message)
{
    struct resp_out o = begin_message(s, 4);
    resp_bulk_str(o, "ERROR");
    resp_bulk_str(o, id);
    resp_bulk_str(o, error_word(code));
    resp_bulk_str(o, message);
    end_message(s);
}

/* Writes the words of pairs and frees them. */
static void put_pairs(struct service *s, struct resp_out o, struct backend_pairs *pairs)
{
    const char *word = pairs->bytes.data;
    for (size_t i = 0; i < 2 * pairs->n && !pairs->bytes.failed; i++) {
        resp_bulk_str(o, word);
        word += strlen(word) + 1;
    }
    s->out.failed |= pairs->bytes.failed;
    buf_deinit(&pairs->bytes);
}

/* The request's answer; on any thread. */
static void answer(void *arg, const struct backend_result *result)
{
    struct ticket *t = arg;
    struct service *s = t->service;
    if (result->code) {
        send_error(s, t->id, result->code, result->message);
    } else {
        struct resp_out o = begin_message(s, t->scores ? 5 : 6);
        resp_bulk_str(o, t->scores ? "SCORES" : "VECTORS");
        resp_bulk_str(o, t->id);
        resp_bulkf(o, "%u", result->n);
        if (!t->scores)
            resp_bulkf(o, "%u", result->dim);
        resp_bulkf(o, "%u", result->n_tokens);
        resp_bulk(o, result->values, (size_t)result->n * result->dim * sizeof(float));
        end_message(s);
    }
    mem_free(t);
}

static void send_ready(struct service *s)
{
    struct backend_pairs pairs = {0};
    s->backend.describe(s->backend.self, &pairs);
    struct resp_out o = begin_message(s, 1 + 2 * pairs.n);
    resp_bulk_str(o, "READY");
    put_pairs(s, o, &pairs);
    end_message(s);
}

/* --- requests --- */

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

/* '-' or letters, each at most once, and not both roles. */
static bool read_flags(struct slice word, bool roles, struct backend_request *request)
{
    if (word.n == 1 && word.p[0] == '-')
        return true;
    for (size_t i = 0; i < word.n; i++) {
        const char letter = word.p[i];
        if (letter == 't' && !request->truncate)
            request->truncate = true;
        else if (letter == 'q' && roles && request->role == BACKEND_PLAIN)
            request->role = BACKEND_QUERY;
        else if (letter == 'd' && roles && request->role == BACKEND_PLAIN)
            request->role = BACKEND_DOCUMENT;
        else
            return false;
    }
    return word.n > 0;
}

/* EMBED id flags text [text ...] and RERANK id flags query document [document ...]: false where
 * the words are not that. */
static bool on_texts(struct service *s, const struct resp_request *q, bool rerank)
{
    char id[ID_MAX_BYTES + 1];
    struct backend_request request = {.done = answer};
    const int first = rerank ? 4 : 3;
    if (q->argc <= first || !read_id(id, q->argv[1]) ||
        !read_flags(q->argv[2], !rerank, &request))
        return false;
    struct ticket *t = mem_alloc(sizeof *t);
    if (!t) {
        send_error(s, id, KITH_ENOMEM, "out of memory");
        return true;
    }
    *t = (struct ticket){.service = s, .scores = rerank};
    memcpy(t->id, id, sizeof id);
    request.texts = q->argv + first;
    request.n = (uint32_t)(q->argc - first);
    request.arg = t;
    if (rerank)
        s->backend.rerank(s->backend.self, q->argv[3], &request);
    else
        s->backend.embed(s->backend.self, &request);
    return true;
}

static bool on_ping(struct service *s, const struct resp_request *q)
{
    char id[ID_MAX_BYTES + 1];
    if (q->argc != 2 || !read_id(id, q->argv[1]))
        return false;
    struct backend_stats stats;
    struct backend_pairs pairs = {0};
    s->backend.stats(s->backend.self, &stats);
    if (s->backend.report)
        s->backend.report(s->backend.self, &pairs);
    struct resp_out o = begin_message(s, 6 + 2 * pairs.n);
    resp_bulk_str(o, "PONG");
    resp_bulk_str(o, id);
    resp_bulkf(o, "%" PRIu64, stats.queued_requests);
    resp_bulkf(o, "%" PRIu64, stats.batches);
    resp_bulkf(o, "%" PRIu64, stats.tokens);
    resp_bulkf(o, "%" PRIu64, stats.texts);
    put_pairs(s, o, &pairs);
    end_message(s);
    return true;
}

static bool on_message(struct service *s, const struct resp_request *q)
{
    if (slice_is(q->argv[0], "EMBED"))
        return on_texts(s, q, false);
    if (slice_is(q->argv[0], "RERANK"))
        return on_texts(s, q, true);
    if (slice_is(q->argv[0], "PING"))
        return on_ping(s, q);
    return false;
}

/* --- reading --- */

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
        /* One that waits in read is woken each time the server has read an answer, as if there
         * were room to write now, and takes the processor from the server just then. */
        struct pollfd wanted = {.fd = s->fd, .events = POLLIN};
        ssize_t n = poll(&wanted, 1, -1) < 0 ? -1 : read(s->fd, bytes, READ_BYTES);
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

int engine_service_run(int fd, const struct engine_backend *backend)
{
    struct service s = {.fd = fd, .backend = *backend, .write_lock = PTHREAD_MUTEX_INITIALIZER};
    buf_init(&s.out);
    send_ready(&s);
    int status = read_stream(&s);
    atomic_store(&s.closing, true);
    shutdown(fd, SHUT_RDWR); /* wakes a callback that waits to write */
    s.backend.close(s.backend.self);
    buf_deinit(&s.out);
    return status;
}

void engine_service_fail(int fd, const char *message)
{
    struct service s = {.fd = fd, .write_lock = PTHREAD_MUTEX_INITIALIZER};
    buf_init(&s.out);
    struct resp_out o = begin_message(&s, 2);
    resp_bulk_str(o, "FAIL");
    resp_bulk_str(o, message);
    end_message(&s);
    buf_deinit(&s.out);
}
