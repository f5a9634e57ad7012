#include "server/remote_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

enum {
    CALL_TEXT_BYTES = 4 << 20, /* of one call, unless a single text has more */
    RETRY_FIRST_MS = 100,
    RETRY_MAX_MS = 5000,
    HOLD_MAX_MS = 60000, /* then it is asked again, whatever it said */
    COMPLAINT_BYTES = 160
};

void remote_call_free(struct remote *b, struct remote_call *c)
{
    struct remote_call **at = &b->calls;
    while (*at && *at != c)
        at = &(*at)->next;
    if (*at) {
        *at = c->next;
        b->n_calls--;
    }
    if (c->running)
        b->n_running--;
    remote_http_cancel(b->http, &c->http);
    for (uint32_t i = 0; i < c->n_parts; i++)
        if (c->parts[i].job)
            c->parts[i].job->n_calls--;
    buf_deinit(&c->http.answer);
    buf_deinit(&c->body);
    mem_free(c->parts);
    mem_free(c);
}

struct remote_call *remote_call_new(struct remote *b, uint32_t n)
{
    struct remote_call *c = mem_calloc(1, sizeof *c);
    if (c && !(c->parts = mem_calloc(n, sizeof *c->parts))) {
        mem_free(c);
        c = NULL;
    }
    if (c) {
        c->next = b->calls;
        b->calls = c;
        b->n_calls++;
    }
    return c;
}

static void add_part(struct remote_call *c, const struct remote_part *p)
{
    c->parts[c->n_parts++] = *p;
    c->n_texts += p->n;
    c->bytes += p->bytes;
    p->job->n_calls++;
}

/* Takes up to `most` more texts of part p's job into the part. */
static void extend_part(const struct remote *b, struct remote_call *c, struct remote_part *p,
                        uint32_t most)
{
    const struct remote_job *j = p->job;
    while (most > 0 && c->n_texts < b->options.batch_texts && p->from + p->n < j->n) {
        const size_t bytes = j->texts[p->from + p->n].n;
        if (c->n_texts > 0 && c->bytes + bytes > CALL_TEXT_BYTES)
            break;
        p->n++;
        p->bytes += bytes;
        c->n_texts++;
        c->bytes += bytes;
        most--;
    }
}

/* Fills a call with texts of the jobs that wait and are cut or not as the first of them: an
 * equal share each, then what room is left in their order. Jobs that have more go behind the
 * others. */
void remote_call_fill(struct remote *b, struct remote_call *c, struct remote_job *first)
{
    uint32_t n = 0, most = b->options.batch_texts;
    for (struct remote_job *j = first; j != &b->jobs && n < most; j = j->next)
        n += remote_job_waits(j) && j->truncate == first->truncate;
    for (struct remote_job *j = first; j != &b->jobs && c->n_parts < n; j = j->next) {
        if (!remote_job_waits(j) || j->truncate != first->truncate)
            continue;
        const struct remote_part p = {.job = j, .from = j->n_started};
        add_part(c, &p);
        extend_part(b, c, &c->parts[c->n_parts - 1], most / n);
        if (c->parts[c->n_parts - 1].n == 0) { /* its text is too large for what is left */
            c->n_parts--;
            j->n_calls--;
            break;
        }
    }
    for (uint32_t i = 0; i < c->n_parts; i++) {
        struct remote_job *j = c->parts[i].job;
        extend_part(b, c, &c->parts[i], most);
        j->n_started += c->parts[i].n;
        if (remote_job_waits(j)) {
            j->prev->next = j->next;
            j->next->prev = j->prev;
            remote_job_append(b, j);
        }
    }
}

static int make_body(struct remote *b, struct remote_call *c, struct err *e)
{
    struct slice *texts = mem_alloc_n(c->n_texts, sizeof *texts);
    uint32_t n = 0;
    if (!texts)
        return err_set(e, KITH_ENOMEM, "out of memory for %u texts", c->n_texts);
    for (uint32_t i = 0; i < c->n_parts; i++)
        for (uint32_t k = 0; k < c->parts[i].n; k++)
            texts[n++] = c->parts[i].job->texts[c->parts[i].from + k];
    int rc = remote_api_request(&b->model, texts, n, c->parts[0].job->truncate, &c->body, e);
    mem_free(texts);
    c->http.body = (struct slice){.p = c->body.data, .n = c->body.len};
    c->http.answer_limit = remote_api_answer_limit(&b->model, n);
    return rc;
}

static void fail_call(struct remote *b, struct remote_call *c, const struct err *e)
{
    for (uint32_t i = 0; i < c->n_parts; i++)
        if (c->parts[i].job) /* which takes itself out of all parts */
            remote_job_fail(b, c->parts[i].job, e);
    remote_call_free(b, c);
}

void remote_call_run(struct remote *b, struct remote_call *c, int64_t now_us)
{
    struct err e;
    int rc = c->body.len ? 0 : make_body(b, c, &e);
    if (!rc)
        rc = remote_http_start(b->http, &c->http, &e);
    if (rc) {
        if (c->probe)
            remote_tell_breaker(b, false, now_us);
        fail_call(b, c, &e);
        return;
    }
    c->running = true;
    b->n_running++;
}

/* --- the end of a call --- */

enum verdict {
    GOOD,
    AGAIN,  /* may be better later */
    WRONG,  /* the endpoint does not do its work */
    REFUSED /* it does, and does not want this */
};

static enum verdict judge_status(struct remote *b, const struct remote_call *c, struct err *e)
{
    const long status = c->http.status;
    char said[COMPLAINT_BYTES], pause[64] = "";
    if (c->http.retry_after_ms > 0)
        snprintf(pause, sizeof pause, "; it asks for a pause of %" PRId64 " ms",
                 c->http.retry_after_ms);
    remote_api_complaint(&b->model,
                         (struct slice){.p = c->http.answer.data, .n = c->http.answer.len},
                         said, sizeof said);
    const bool text = status == 400 || status == 413 || status == 422;
    err_set(e, text ? KITH_EINVAL : KITH_EIO,
            "%s: HTTP %ld%s%s, expected 200 with %u vectors of %u numbers%s%s", b->address,
            status, *said ? ": " : "", said, c->n_texts, b->model.dim,
            status >= 300 && status < 400 ? "; redirects are not followed" : "", pause);
    if (status == 408 || status == 429 || status >= 500)
        return AGAIN;
    return status >= 400 ? REFUSED : WRONG;
}

/* vectors: where those of a good answer go. */
static enum verdict judge(struct remote *b, struct remote_call *c, float *vectors,
                          uint32_t *n_tokens, struct err *e)
{
    const struct http_exchange *x = &c->http;
    if (x->end != HTTP_ANSWERED) {
        char status[24] = "no HTTP status";
        if (x->status)
            snprintf(status, sizeof status, "HTTP %ld", x->status);
        err_set(e, x->end == HTTP_TOO_LARGE ? KITH_EPROTO : KITH_EIO,
                "%s: %s: %s, expected %u vectors of %u numbers", b->address, status, x->why,
                c->n_texts, b->model.dim);
        return x->end == HTTP_BROKEN ? AGAIN : WRONG;
    }
    if (x->status != 200)
        return judge_status(b, c, e);
    const struct slice body = {.p = x->answer.data, .n = x->answer.len};
    if (remote_api_answer(&b->model, body, c->n_texts, vectors, n_tokens, e) == 0)
        return GOOD;
    err_wrap(e, "%s: HTTP 200", b->address);
    return WRONG;
}

static void deliver(struct remote *b, struct remote_call *c, const float *vectors,
                    uint32_t n_tokens)
{
    const size_t dim = b->model.dim;
    uint32_t at = 0;
    /* Counted first: who has its answer sees it in the counts. */
    atomic_fetch_add(&b->n_batches, 1);
    atomic_fetch_add(&b->n_texts, c->n_texts);
    atomic_fetch_add(&b->n_tokens, n_tokens);
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const struct remote_part *p = &c->parts[i];
        struct remote_job *j = p->job;
        if (j) {
            memcpy(j->vectors + p->from * dim, vectors + at * dim, p->n * dim * sizeof(float));
            j->n_done += p->n;
            /* The endpoint counts a whole call: each job gets what its bytes are of it. */
            j->n_tokens += (uint32_t)((uint64_t)n_tokens * p->bytes / c->bytes);
        }
        at += p->n;
    }
    for (uint32_t i = 0; i < c->n_parts; i++)
        if (c->parts[i].job && c->parts[i].job->n_done == c->parts[i].job->n)
            remote_job_finish(b, c->parts[i].job);
}

static void on_good(struct remote *b, struct remote_call *c, const float *vectors,
                    uint32_t n_tokens, int64_t now_us)
{
    b->last_good_us = now_us;
    remote_tell_breaker(b, true, now_us);
    if (b->on_fallback)
        log_notice("the remote model answers again in the fallback's place");
    b->on_fallback = false;
    b->check_due = true;
    deliver(b, c, vectors, n_tokens);
    remote_call_free(b, c);
}

/* The latest time at which somebody still waits for the call; 0: nobody does. */
static int64_t call_deadline(const struct remote *b, const struct remote_call *c)
{
    int64_t latest = 0;
    for (uint32_t i = 0; i < c->n_parts; i++)
        if (c->parts[i].job && remote_job_deadline(b, c->parts[i].job) > latest)
            latest = remote_job_deadline(b, c->parts[i].job);
    return latest;
}

/* Plans the next attempt; false where there is none. */
static bool plan_retry(struct remote *b, struct remote_call *c, int64_t now_us)
{
    if (c->attempt >= b->options.retries || b->breaker.state != BREAKER_CLOSED)
        return false;
    int64_t pause_ms = c->attempt < 16 ? (int64_t)RETRY_FIRST_MS << c->attempt : RETRY_MAX_MS;
    if (pause_ms > RETRY_MAX_MS)
        pause_ms = RETRY_MAX_MS;
    /* Half of it by chance, so that those who failed together do not come back together. */
    int64_t pause_us = (int64_t)((double)pause_ms * 1000 * (0.5 + rng_unit(&b->rng) / 2));
    if (c->http.retry_after_ms * 1000 > pause_us)
        pause_us = c->http.retry_after_ms * 1000;
    if (now_us + pause_us >= call_deadline(b, c))
        return false;
    c->start_us = now_us + pause_us;
    c->attempt++;
    atomic_fetch_add(&b->n_retries, 1);
    return true;
}

unsigned remote_call_jobs(const struct remote_call *c)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < c->n_parts; i++)
        n += c->parts[i].job != NULL;
    return n;
}

/* One call for each job of c, in its place. */
static void split_call(struct remote *b, struct remote_call *c, int64_t now_us)
{
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const struct remote_part *p = &c->parts[i];
        if (!p->job)
            continue;
        struct remote_call *alone = remote_call_new(b, 1);
        if (alone) {
            add_part(alone, p);
            alone->start_us = now_us;
        } else {
            struct err e;
            err_set(&e, KITH_ENOMEM, "out of memory for an HTTP request");
            remote_job_fail(b, p->job, &e);
        }
    }
    remote_call_free(b, c);
}

void remote_call_end(struct remote *b, struct remote_call *c)
{
    const int64_t now_us = clock_mono_us();
    uint32_t n_tokens = 0;
    struct err e = {0};
    float *vectors = mem_alloc_n(c->n_texts, b->model.dim * sizeof *vectors);
    c->running = false;
    b->n_running--;
    enum verdict verdict = WRONG;
    if (vectors)
        verdict = judge(b, c, vectors, &n_tokens, &e);
    else
        err_set(&e, KITH_ENOMEM, "out of memory for %u vectors", c->n_texts);
    if (verdict == AGAIN && c->http.retry_after_ms > 0) {
        const int64_t ms = c->http.retry_after_ms;
        b->hold_until_us = now_us + (ms < HOLD_MAX_MS ? ms : HOLD_MAX_MS) * 1000;
        b->hold = e;
    }
    if (verdict != GOOD)
        c->last = b->last = e;
    if (verdict == GOOD) {
        on_good(b, c, vectors, n_tokens, now_us);
    } else if (verdict == REFUSED) {
        remote_tell_breaker(b, true, now_us);
        if (e.code == KITH_EINVAL && c->n_parts > 1)
            split_call(b, c, now_us);
        else
            fail_call(b, c, &e);
    } else if (verdict != AGAIN || !plan_retry(b, c, now_us)) {
        remote_tell_breaker(b, false, now_us);
        log_warning("%s (attempt %u)", e.message, c->attempt + 1);
        fail_call(b, c, &e);
    }
    mem_free(vectors);
}
