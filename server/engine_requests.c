/* What is asked of an engine: the table of requests under way, and the buffer they are sent
 * from. engine_link.c says how it fits in. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "protocol/resp_write.h"
#include "server/engine_link_parts.h"

void link_answer_error(void (*done)(void *, const struct engine_answer *), void *arg, int code,
                       const char *message)
{
    struct engine_answer a = {.code = code, .message = message};
    done(arg, &a);
}

/* Takes the request out of the table; NULL when it was answered already. Lock held. */
struct request *link_take_request(struct engine_link *l, uint64_t id)
{
    struct request **at = &l->buckets[id % LINK_BUCKETS];
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
    for (int b = 0; b < LINK_BUCKETS; b++)
        while (l->buckets[b]) {
            struct request *r = link_take_request(l, l->buckets[b]->id);
            r->next = all;
            all = r;
        }
    return all;
}

/* Answers everything that waits with one error and empties the outgoing buffer. Lock not held.
 */
void link_fail_all(struct engine_link *l, int code, const char *message)
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
        link_answer_error(r->done, r->arg, code, message);
        mem_free(r);
        r = next;
    }
}

/* --- sending --- */

/* Sends what the socket takes. An error is not handled here: the reading side meets it too.
 * Lock held. */
void link_send_some(struct engine_link *l)
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

void link_wake(struct engine_link *l)
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
void link_say_unfit(const struct engine_link *l, enum engine_task task, char *message,
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
        snprintf(message, size, LINK_CLOSING, l->label);
        return KITH_ECLOSED;
    }
    if (q->n < (q->task == ENGINE_RERANK ? 2u : 1u)) {
        snprintf(message, size, "ERR there is no text to %s",
                 q->task == ENGINE_RERANK ? "rerank" : "embed");
        return KITH_EINVAL;
    }
    if (l->state == ENGINE_READY && !(l->model.tasks & q->task)) {
        link_say_unfit(l, q->task, message, size);
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
        snprintf(message, size, LINK_SLOW_LOAD, l->label);
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
    r->next = l->buckets[r->id % LINK_BUCKETS];
    l->buckets[r->id % LINK_BUCKETS] = r;
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
        link_answer_error(q->done, q->arg, rc, message);
        return rc;
    }
    add_request(l, r, q, bytes, before);
    bool rouse = l->state == ENGINE_AWAY;
    if (rouse)
        begin_return(l);
    if (l->state == ENGINE_READY) {
        link_send_some(l);
        rouse = l->out.len > 0;
    }
    pthread_mutex_unlock(&l->lock);
    if (rouse)
        link_wake(l);
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
        link_wake(l);
        link_tell(l);
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
        link_fail_all(l, KITH_ELIMIT, why);
    if (puts)
        link_wake(l);
    return puts;
}
/* Requests that waited for the model while nobody knew its tasks, and that it does not have:
 * out of the table and, as nothing was sent yet, out of the buffer. Lock held. */
struct request *link_take_unfit(struct engine_link *l)
{
    struct request *unfit = NULL;
    size_t kept = 0;
    for (uint64_t id = l->next_id - l->stats.queued; id < l->next_id && l->stats.queued; id++) {
        struct request *r = l->buckets[id % LINK_BUCKETS];
        while (r && r->id != id)
            r = r->next;
        if (!r)
            continue;
        if (r->task & l->model.tasks) {
            memmove(l->out.data + kept, l->out.data + r->message_at, r->message_n);
            kept += r->message_n;
            continue;
        }
        link_take_request(l, id);
        l->stats.failed++;
        r->next = unfit;
        unfit = r;
    }
    l->out.len = kept;
    return unfit;
}
