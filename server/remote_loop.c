#include "server/remote_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum { LOOK_MS = 1000 }; /* the longest sleep */

static const struct remote_call *call_of(const struct remote *b, const struct remote_job *j)
{
    for (const struct remote_call *c = b->calls; c; c = c->next)
        for (uint32_t i = 0; i < c->n_parts; i++)
            if (c->parts[i].job == j)
                return c;
    return NULL;
}

static void fail_late(struct remote *b, struct remote_job *j)
{
    const struct remote_call *c = call_of(b, j);
    const long status = c ? remote_http_status(&c->http) : 0;
    const bool before = c && c->last.code;
    char came[32] = "no HTTP status";
    struct err e;
    if (status)
        snprintf(came, sizeof came, "HTTP %ld", status);
    err_set(&e, KITH_EIO,
            "%s: %s: no whole answer within %" PRId64
            " ms, expected %u vectors of %u numbers%s%.180s",
            b->address, came, b->options.timeout_ms, j->n, b->model.dim,
            before ? "; before that: " : "", before ? c->last.message : "");
    b->last = e;
    for (struct remote_call *of = b->calls; of; of = of->next)
        for (uint32_t i = 0; i < of->n_parts; i++)
            of->late |= of->parts[i].job == j;
    remote_job_fail(b, j, &e);
}

/* Jobs past their time get their answer, then calls that nobody waits for are dropped. */
static void expire(struct remote *b, int64_t now_us)
{
    for (struct remote_job *j = b->jobs.next, *next; j != &b->jobs; j = next) {
        next = j->next;
        if (now_us >= remote_job_deadline(b, j))
            fail_late(b, j);
    }
    for (struct remote_call *c = b->calls, *next; c; c = next) {
        next = c->next;
        if (remote_call_jobs(c) > 0)
            continue;
        /* One whose jobs ended by another call's failure says nothing of the endpoint, but a
         * probe must have an end. */
        if (c->late || c->probe) {
            remote_tell_breaker(b, false, now_us);
            log_warning("%s", b->last.message);
        }
        remote_call_free(b, c);
    }
}

static struct remote_job *first_waiting(struct remote *b)
{
    struct remote_job *j = b->jobs.next;
    while (j != &b->jobs && !remote_job_waits(j))
        j = j->next;
    return j != &b->jobs ? j : NULL;
}

static void fail_waiting(struct remote *b, int64_t until_us, const struct err *e)
{
    for (struct remote_job *j = b->jobs.next, *next; j != &b->jobs; j = next) {
        next = j->next;
        if (remote_job_waits(j) && remote_job_deadline(b, j) < until_us)
            remote_job_fail(b, j, e);
    }
}

/* The next call to run, an old one or a new; NULL where there is none to run now. */
static struct remote_call *next_call(struct remote *b, int64_t now_us)
{
    struct err e;
    for (struct remote_call *c = b->calls; c; c = c->next)
        if (!c->running && c->start_us <= now_us && remote_call_jobs(c) > 0)
            return c;
    if (b->n_calls >= b->options.parallel || !first_waiting(b))
        return NULL;
    if (now_us < b->hold_until_us) {
        fail_waiting(b, b->hold_until_us, &b->hold); /* the others wait */
        return NULL;
    }
    if (!breaker_admit(&b->breaker, now_us / 1000)) {
        const int64_t left_ms = b->breaker.open_until_ms - now_us / 1000;
        err_set(&e, KITH_EIO,
                "%s did not answer %d requests in a row and is left alone for another %" PRId64
                " ms; the last failure: %.250s",
                b->address, BREAKER_THRESHOLD, left_ms > 0 ? left_ms : 0, b->last.message);
        fail_waiting(b, INT64_MAX, &e);
        return NULL;
    }
    atomic_store(&b->breaker_state, (int)b->breaker.state);
    struct remote_call *c = remote_call_new(b, b->options.batch_texts);
    if (!c) {
        if (b->breaker.state == BREAKER_HALF_OPEN)
            remote_tell_breaker(b, false, now_us);
        err_set(&e, KITH_ENOMEM, "out of memory for an HTTP request");
        fail_waiting(b, INT64_MAX, &e);
        return NULL;
    }
    c->probe = b->breaker.state == BREAKER_HALF_OPEN;
    remote_call_fill(b, c, first_waiting(b));
    for (uint32_t i = 0; i < c->n_parts; i++) {
        struct remote_job *j = c->parts[i].job;
        const int64_t from = j->arrived_us > b->last_good_us ? j->arrived_us : b->last_good_us;
        j->deadline_us = from + b->options.timeout_ms * 1000;
    }
    return c;
}

static int wait_ms(const struct remote *b, int64_t now_us)
{
    int64_t until_us = now_us + LOOK_MS * 1000;
    for (const struct remote_job *j = b->jobs.next; j != &b->jobs; j = j->next) {
        const int64_t at = remote_job_deadline(b, j);
        until_us = at < until_us ? at : until_us;
        if (remote_job_waits(j) && b->hold_until_us > now_us && b->hold_until_us < until_us)
            until_us = b->hold_until_us;
    }
    for (const struct remote_call *c = b->calls; c; c = c->next)
        if (!c->running && c->start_us < until_us)
            until_us = c->start_us;
    return until_us > now_us ? (int)((until_us - now_us + 999) / 1000) : 1;
}

/* False when the backend closes. */
static bool take_arrivals(struct remote *b)
{
    pthread_mutex_lock(&b->lock);
    struct remote_job *j = b->arrivals;
    bool closing = b->closing;
    b->arrivals = b->last_arrival = NULL;
    pthread_mutex_unlock(&b->lock);
    while (j) {
        struct remote_job *next = j->next;
        remote_job_append(b, j);
        j = next;
    }
    return !closing;
}

void *remote_loop(void *arg)
{
    struct remote *b = arg;
    while (take_arrivals(b)) {
        const int64_t now_us = clock_mono_us();
        expire(b, now_us);
        if (b->check_due)
            remote_check_fallback(b);
        for (struct remote_call *c;
             b->n_running < b->options.parallel && (c = next_call(b, now_us));)
            remote_call_run(b, c, now_us);
        struct http_exchange *x = remote_http_wait(b->http, wait_ms(b, now_us));
        for (; x; x = remote_http_wait(b->http, 0))
            remote_call_end(b, (struct remote_call *)x);
    }
    struct err e;
    err_set(&e, KITH_ECLOSED, "the engine is shutting down");
    while (b->jobs.next != &b->jobs)
        remote_job_fail(b, b->jobs.next, &e);
    while (b->calls)
        remote_call_free(b, b->calls);
    return NULL;
}
