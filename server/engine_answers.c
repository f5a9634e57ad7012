/* What an engine says: its messages, read and acted on. engine_link.c says how it fits in. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/engine_link_parts.h"

void link_set_end(struct engine_link *l, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void link_set_end(struct engine_link *l, const char *format, ...)
{
    if (l->end_reason[0])
        return; /* the first reason is the cause */
    va_list ap;
    va_start(ap, format);
    vsnprintf(l->end_reason, sizeof l->end_reason, format, ap);
    va_end(ap);
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
    struct request *unfit = link_take_unfit(l);
    l->state = ENGINE_READY;
    l->slow_load = false;
    l->tried = true;
    l->stats.up = true;
    link_send_some(l);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    while (unfit) {
        char message[512];
        struct request *r = unfit;
        unfit = r->next;
        link_say_unfit(l, r->task, message, sizeof message);
        link_answer_error(r->done, r->arg, KITH_EUNSUPPORTED, message);
        mem_free(r);
    }
    link_tell(l);
    return true;
}

/* VECTORS id n dim n_tokens blob, or SCORES id n n_tokens blob. */
static bool on_vectors(struct engine_link *l, const struct slice *words, int n)
{
    bool scores = slice_is(words[0], "SCORES");
    uint64_t id, n_texts, dim = 1, tokens;
    if (n != (scores ? 5 : 6) || !slice_count(words[1], &id) ||
        !slice_count(words[2], &n_texts) || (!scores && !slice_count(words[3], &dim)) ||
        !slice_count(words[n - 2], &tokens))
        return false;
    struct slice blob = words[n - 1];
    pthread_mutex_lock(&l->lock);
    struct request *r = link_take_request(l, id);
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
    if (n != 4 || !slice_count(words[1], &id))
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
    struct request *r = link_take_request(l, id);
    if (r)
        l->stats.failed++;
    pthread_mutex_unlock(&l->lock);
    if (!r)
        return true;
    char message[1024];
    snprintf(message, sizeof message, "%s %.*s", prefix,
             (int)(words[3].n < 900 ? words[3].n : 900), words[3].p);
    link_answer_error(r->done, r->arg, code, message);
    mem_free(r);
    return true;
}

static bool on_pong(struct engine_link *l, const struct slice *words, int n)
{
    uint64_t v[4];
    if (n < 6)
        return false;
    for (int i = 0; i < 4; i++)
        if (!slice_count(words[i + 2], &v[i]))
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
        link_set_end(l, "the model could not be loaded: %.*s",
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
bool link_read_some(struct engine_link *l)
{
    static const struct resp_limits limits = {.max_bulk_bytes = RESP_BULK_MAX,
                                              .max_request_bytes = RESP_BULK_MAX,
                                              .authenticated = true};
    ssize_t got = recv(l->process.fd, l->read_buffer, LINK_READ_BYTES, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (got <= 0)
        return false; /* how it ended is what waitpid says */
    struct err e = {0};
    if (resp_reader_feed(l->reader, l->read_buffer, (size_t)got) != 0) {
        link_set_end(l, "out of memory reading its answers");
        return false;
    }
    for (;;) {
        enum resp_status status = resp_reader_next(l->reader, &limits, &l->message, &e);
        if (status == RESP_INCOMPLETE)
            return true;
        bool good = status == RESP_REQUEST && on_message(l, l->message.argv, l->message.argc);
        resp_request_reset(&l->message);
        if (!good) {
            link_set_end(l, "it said something that is not the protocol %s", e.message);
            return false;
        }
    }
}
