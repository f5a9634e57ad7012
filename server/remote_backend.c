/* How requests become HTTP requests.
 *
 *   the service's thread          this backend's thread
 *   embed: copy, queue ──► jobs ──► calls: texts of several jobs, at most batch_texts ──► HTTP
 *                           ▲ │                  │ good: vectors to their jobs
 *                           │ └─ past its time   │ may be better later: again after a pause
 *                           └────────────────────┘ else: the jobs fail, or the fallback has
 * them
 *
 * Only the arrivals are under the lock; jobs and calls belong to the thread. While fewer than
 * `parallel` calls are under way the next one takes what has come, at once: an idle endpoint
 * does not wait for company, a busy one gets full batches. Each call shares its room among the
 * jobs that wait, so a request of one text rides beside one of thousands.
 *
 * A job is answered when all its vectors are there or as soon as one call of its has failed. It
 * then leaves the list and the parts of its other calls, which go on for the sake of others or
 * are dropped.
 *
 * A text that the endpoint refuses must not fail those of other requests: a refused call of
 * several jobs is sent again as one call a job. */
#include "server/remote_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/random.h"
#include "base/utf8.h"
#include "server/breaker.h"
#include "server/remote_fallback.h"
#include "server/remote_http.h"

enum {
    KEY_MAX_BYTES = 4096,
    URL_MAX_BYTES = 1024,
    CALL_TEXT_BYTES = 4 << 20, /* of one call, unless a single text has more */
    RETRY_FIRST_MS = 100,
    RETRY_MAX_MS = 5000,
    HOLD_MAX_MS = 60000, /* then it is asked again, whatever it said */
    LOOK_MS = 1000,      /* the longest sleep */
    COMPLAINT_BYTES = 160
};

struct job { /* a request */
    struct job *prev, *next;
    struct remote *owner;
    struct slice *texts; /* with their prompts; their bytes are behind them */
    uint32_t n, n_started, n_done;
    uint32_t n_tokens;
    unsigned n_calls; /* under way */
    size_t bytes;
    bool truncate;
    float *vectors; /* n x dim */
    int64_t arrived_us, deadline_us;
    void (*done)(void *arg, const struct backend_result *result);
    void *arg;
};

struct part {        /* of a call: texts from .. from + n - 1 of a job */
    struct job *job; /* NULL: it was answered meanwhile */
    uint32_t from, n;
    size_t bytes;
};

struct call {                  /* an HTTP request, with its repetitions */
    struct http_exchange http; /* first: what has ended is found by it */
    struct call *next;
    bool running; /* else it waits for start_us */
    bool probe;   /* of the breaker */
    bool late;    /* a job of its did not wait any longer */
    unsigned attempt;
    int64_t start_us;
    struct buf body;
    struct part *parts;
    uint32_t n_parts, n_texts;
    size_t bytes;
    struct err last; /* why the last attempt failed */
};

struct remote {
    struct remote_model model;
    struct remote_options options;
    char *address, *name, *key, *query_prompt, *document_prompt;
    struct remote_http *http;
    struct remote_fallback *fallback; /* or NULL */
    pthread_t thread;

    pthread_mutex_t lock; /* guards the next three */
    struct job *arrivals, *last_arrival;
    size_t queued_bytes;
    bool closing;
    _Atomic uint64_t n_queued, n_batches, n_texts, n_tokens, n_retries, n_failed;
    atomic_int breaker_state;

    /* The thread's own. */
    struct job jobs; /* the ring of all that are not answered */
    struct call *calls;
    unsigned n_calls, n_running;
    struct breaker breaker;
    struct rng rng;
    int64_t last_good_us,
        hold_until_us;     /* no new call before that: the endpoint asked for it */
    struct err last, hold; /* the last failure; why new calls are held */
    bool check_due, on_fallback;
};

void remote_defaults(struct remote_options *o)
{
    *o = (struct remote_options){.timeout_ms = 10000,
                                 .retries = 3,
                                 .batch_texts = 64,
                                 .parallel = 4,
                                 .queue_bytes = 8u << 20};
    embedder_defaults(&o->embedder);
}

/* --- jobs --- */

static void free_job(struct job *j)
{
    mem_free(j->vectors);
    mem_free(j->texts);
    mem_free(j);
}

/* The job's bytes and place are free again. Any thread. */
static void count_out(struct remote *b, const struct job *j)
{
    pthread_mutex_lock(&b->lock);
    b->queued_bytes -= j->bytes;
    pthread_mutex_unlock(&b->lock);
    atomic_fetch_sub(&b->n_queued, 1);
}

static void answer(struct job *j, const struct backend_result *result)
{
    count_out(j->owner, j);
    j->done(j->arg, result);
    free_job(j);
}

/* Takes the job out of the list and of its calls. */
static void withdraw(struct remote *b, struct job *j)
{
    j->prev->next = j->next;
    j->next->prev = j->prev;
    for (struct call *c = b->calls; c; c = c->next)
        for (uint32_t i = 0; i < c->n_parts; i++)
            if (c->parts[i].job == j)
                c->parts[i].job = NULL;
}

static void append_job(struct remote *b, struct job *j)
{
    j->prev = b->jobs.prev;
    j->next = &b->jobs;
    j->prev->next = j;
    b->jobs.prev = j;
}

static void on_fallback(void *arg, const struct backend_result *result)
{
    answer(arg, result);
}

/* Answers with e, or has the fallback answer where the endpoint and not a text is at fault. */
static void fail_job(struct remote *b, struct job *j, const struct err *e)
{
    const bool endpoint = e->code == KITH_EIO || e->code == KITH_EPROTO;
    withdraw(b, j);
    if (endpoint && b->fallback && remote_fallback_state(b->fallback) == FALLBACK_TRUSTED) {
        const struct backend_request request = {.texts = j->texts,
                                                .n = j->n,
                                                .truncate = j->truncate,
                                                .done = on_fallback,
                                                .arg = j};
        if (!b->on_fallback)
            log_warning("the fallback answers: %s", e->message);
        b->on_fallback = true;
        remote_fallback_embed(b->fallback, &request);
        return;
    }
    const struct backend_result result = {.code = e->code, .message = e->message};
    atomic_fetch_add(&b->n_failed, 1);
    answer(j, &result);
}

static void finish_job(struct remote *b, struct job *j)
{
    withdraw(b, j);
    const struct backend_result result = {
        .values = j->vectors, .n = j->n, .dim = b->model.dim, .n_tokens = j->n_tokens};
    answer(j, &result);
}

static int64_t deadline_of(const struct remote *b, const struct job *j)
{
    const int64_t from = j->arrived_us > b->last_good_us ? j->arrived_us : b->last_good_us;
    return j->n_calls > 0 ? j->deadline_us : from + b->options.timeout_ms * 1000;
}

/* --- the breaker, told and heard --- */

static void breaker_told(struct remote *b, bool good, int64_t now_us)
{
    const enum breaker_state before = b->breaker.state;
    if (good)
        breaker_succeeded(&b->breaker);
    else
        breaker_failed(&b->breaker, now_us / 1000);
    atomic_store(&b->breaker_state, (int)b->breaker.state);
    if (b->breaker.state == before)
        return;
    if (good)
        log_notice("%s answers again", b->address);
    else
        log_warning("%s is left alone for %" PRId64 " ms: %s", b->address, b->breaker.wait_ms,
                    b->last.message);
}

/* --- calls --- */

static void free_call(struct remote *b, struct call *c)
{
    struct call **at = &b->calls;
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

/* A call with room for n parts, in the list; NULL when out of memory. */
static struct call *new_call(struct remote *b, uint32_t n)
{
    struct call *c = mem_calloc(1, sizeof *c);
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

static void add_part(struct call *c, const struct part *p)
{
    c->parts[c->n_parts++] = *p;
    c->n_texts += p->n;
    c->bytes += p->bytes;
    p->job->n_calls++;
}

/* Takes up to `most` more texts of part p's job into the part. */
static void extend_part(const struct remote *b, struct call *c, struct part *p, uint32_t most)
{
    const struct job *j = p->job;
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

static bool waits(const struct job *j)
{
    return j->n_started < j->n;
}

/* Fills a call with texts of the jobs that wait and are cut or not as the first of them: an
 * equal share each, then what room is left in their order. Jobs that have more go behind the
 * others. */
static void fill_call(struct remote *b, struct call *c, struct job *first)
{
    uint32_t n = 0, most = b->options.batch_texts;
    for (struct job *j = first; j != &b->jobs && n < most; j = j->next)
        n += waits(j) && j->truncate == first->truncate;
    for (struct job *j = first; j != &b->jobs && c->n_parts < n; j = j->next) {
        if (!waits(j) || j->truncate != first->truncate)
            continue;
        const struct part p = {.job = j, .from = j->n_started};
        add_part(c, &p);
        extend_part(b, c, &c->parts[c->n_parts - 1], most / n);
        if (c->parts[c->n_parts - 1].n == 0) { /* its text is too large for what is left */
            c->n_parts--;
            j->n_calls--;
            break;
        }
    }
    for (uint32_t i = 0; i < c->n_parts; i++) {
        struct job *j = c->parts[i].job;
        extend_part(b, c, &c->parts[i], most);
        j->n_started += c->parts[i].n;
        if (waits(j)) {
            j->prev->next = j->next;
            j->next->prev = j->prev;
            append_job(b, j);
        }
    }
}

static int make_body(struct remote *b, struct call *c, struct err *e)
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

static void fail_call(struct remote *b, struct call *c, const struct err *e)
{
    for (uint32_t i = 0; i < c->n_parts; i++)
        if (c->parts[i].job) /* which takes itself out of all parts */
            fail_job(b, c->parts[i].job, e);
    free_call(b, c);
}

static void run_call(struct remote *b, struct call *c, int64_t now_us)
{
    struct err e;
    int rc = c->body.len ? 0 : make_body(b, c, &e);
    if (!rc)
        rc = remote_http_start(b->http, &c->http, &e);
    if (rc) {
        if (c->probe)
            breaker_told(b, false, now_us);
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

static enum verdict judge_status(struct remote *b, const struct call *c, struct err *e)
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
static enum verdict judge(struct remote *b, struct call *c, float *vectors, uint32_t *n_tokens,
                          struct err *e)
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

static void deliver(struct remote *b, struct call *c, const float *vectors, uint32_t n_tokens)
{
    const size_t dim = b->model.dim;
    uint32_t at = 0;
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const struct part *p = &c->parts[i];
        struct job *j = p->job;
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
            finish_job(b, c->parts[i].job);
    atomic_fetch_add(&b->n_batches, 1);
    atomic_fetch_add(&b->n_texts, c->n_texts);
    atomic_fetch_add(&b->n_tokens, n_tokens);
}

static void on_good(struct remote *b, struct call *c, const float *vectors, uint32_t n_tokens,
                    int64_t now_us)
{
    b->last_good_us = now_us;
    breaker_told(b, true, now_us);
    if (b->on_fallback)
        log_notice("the remote model answers again in the fallback's place");
    b->on_fallback = false;
    b->check_due = true;
    deliver(b, c, vectors, n_tokens);
    free_call(b, c);
}

/* The latest time at which somebody still waits for the call; 0: nobody does. */
static int64_t call_deadline(const struct remote *b, const struct call *c)
{
    int64_t latest = 0;
    for (uint32_t i = 0; i < c->n_parts; i++)
        if (c->parts[i].job && deadline_of(b, c->parts[i].job) > latest)
            latest = deadline_of(b, c->parts[i].job);
    return latest;
}

/* Plans the next attempt; false where there is none. */
static bool plan_retry(struct remote *b, struct call *c, int64_t now_us)
{
    if (c->probe || c->attempt >= b->options.retries)
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

static unsigned n_jobs_of(const struct call *c)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < c->n_parts; i++)
        n += c->parts[i].job != NULL;
    return n;
}

/* One call for each job of c, in its place. */
static void split_call(struct remote *b, struct call *c, int64_t now_us)
{
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const struct part *p = &c->parts[i];
        if (!p->job)
            continue;
        struct call *alone = new_call(b, 1);
        if (alone) {
            add_part(alone, p);
            alone->start_us = now_us;
        } else {
            struct err e;
            err_set(&e, KITH_ENOMEM, "out of memory for an HTTP request");
            fail_job(b, p->job, &e);
        }
    }
    free_call(b, c);
}

static void end_call(struct remote *b, struct call *c)
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
        breaker_told(b, true, now_us);
        if (e.code == KITH_EINVAL && n_jobs_of(c) > 1)
            split_call(b, c, now_us);
        else
            fail_call(b, c, &e);
    } else if (verdict != AGAIN || !plan_retry(b, c, now_us)) {
        breaker_told(b, false, now_us);
        log_warning("%s (attempt %u)", e.message, c->attempt + 1);
        fail_call(b, c, &e);
    }
    mem_free(vectors);
}

/* --- the thread --- */

static const struct call *call_of(const struct remote *b, const struct job *j)
{
    for (const struct call *c = b->calls; c; c = c->next)
        for (uint32_t i = 0; i < c->n_parts; i++)
            if (c->parts[i].job == j)
                return c;
    return NULL;
}

static void fail_late(struct remote *b, struct job *j)
{
    const struct call *c = call_of(b, j);
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
    for (struct call *of = b->calls; of; of = of->next)
        for (uint32_t i = 0; i < of->n_parts; i++)
            of->late |= of->parts[i].job == j;
    fail_job(b, j, &e);
}

/* Jobs past their time get their answer, then calls that nobody waits for are dropped. */
static void expire(struct remote *b, int64_t now_us)
{
    for (struct job *j = b->jobs.next, *next; j != &b->jobs; j = next) {
        next = j->next;
        if (now_us >= deadline_of(b, j))
            fail_late(b, j);
    }
    for (struct call *c = b->calls, *next; c; c = next) {
        next = c->next;
        if (n_jobs_of(c) > 0)
            continue;
        /* One whose jobs ended by another call's failure says nothing of the endpoint, but a
         * probe must have an end. */
        if (c->late || c->probe) {
            breaker_told(b, false, now_us);
            log_warning("%s", b->last.message);
        }
        free_call(b, c);
    }
}

static struct job *first_waiting(struct remote *b)
{
    struct job *j = b->jobs.next;
    while (j != &b->jobs && !waits(j))
        j = j->next;
    return j != &b->jobs ? j : NULL;
}

static void fail_waiting(struct remote *b, int64_t until_us, const struct err *e)
{
    for (struct job *j = b->jobs.next, *next; j != &b->jobs; j = next) {
        next = j->next;
        if (waits(j) && deadline_of(b, j) < until_us)
            fail_job(b, j, e);
    }
}

/* The next call to run, an old one or a new; NULL where there is none to run now. */
static struct call *next_call(struct remote *b, int64_t now_us)
{
    struct err e;
    for (struct call *c = b->calls; c; c = c->next)
        if (!c->running && c->start_us <= now_us)
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
    struct call *c = new_call(b, b->options.batch_texts);
    if (!c) {
        if (b->breaker.state == BREAKER_HALF_OPEN)
            breaker_told(b, false, now_us);
        err_set(&e, KITH_ENOMEM, "out of memory for an HTTP request");
        fail_waiting(b, INT64_MAX, &e);
        return NULL;
    }
    c->probe = b->breaker.state == BREAKER_HALF_OPEN;
    fill_call(b, c, first_waiting(b));
    for (uint32_t i = 0; i < c->n_parts; i++) {
        struct job *j = c->parts[i].job;
        const int64_t from = j->arrived_us > b->last_good_us ? j->arrived_us : b->last_good_us;
        j->deadline_us = from + b->options.timeout_ms * 1000;
    }
    return c;
}

static int wait_ms(const struct remote *b, int64_t now_us)
{
    int64_t until_us = now_us + LOOK_MS * 1000;
    for (const struct job *j = b->jobs.next; j != &b->jobs; j = j->next) {
        const int64_t at = deadline_of(b, j);
        until_us = at < until_us ? at : until_us;
        if (waits(j) && b->hold_until_us > now_us && b->hold_until_us < until_us)
            until_us = b->hold_until_us;
    }
    for (const struct call *c = b->calls; c; c = c->next)
        if (!c->running && c->start_us < until_us)
            until_us = c->start_us;
    return until_us > now_us ? (int)((until_us - now_us + 999) / 1000) : 1;
}

/* False when the backend closes. */
static bool take_arrivals(struct remote *b)
{
    pthread_mutex_lock(&b->lock);
    struct job *j = b->arrivals;
    bool closing = b->closing;
    b->arrivals = b->last_arrival = NULL;
    pthread_mutex_unlock(&b->lock);
    while (j) {
        struct job *next = j->next;
        append_job(b, j);
        j = next;
    }
    return !closing;
}

static void check_fallback(struct remote *b);

static void *remote_main(void *arg)
{
    struct remote *b = arg;
    while (take_arrivals(b)) {
        const int64_t now_us = clock_mono_us();
        expire(b, now_us);
        if (b->check_due)
            check_fallback(b);
        for (struct call *c; b->n_running < b->options.parallel && (c = next_call(b, now_us));)
            run_call(b, c, now_us);
        struct http_exchange *x = remote_http_wait(b->http, wait_ms(b, now_us));
        for (; x; x = remote_http_wait(b->http, 0))
            end_call(b, (struct call *)x);
    }
    struct err e;
    err_set(&e, KITH_ECLOSED, "the engine is shutting down");
    while (b->jobs.next != &b->jobs)
        fail_job(b, b->jobs.next, &e);
    while (b->calls)
        free_call(b, b->calls);
    return NULL;
}

/* --- requests --- */

static int check_texts(const struct backend_request *request, const char *prompt, size_t *bytes,
                       struct err *e)
{
    *bytes = 0;
    for (uint32_t i = 0; i < request->n; i++) {
        const struct slice t = request->texts[i];
        if (t.n == 0)
            return err_set(e, KITH_EINVAL, "text %u is empty", i + 1);
        const size_t valid = utf8_valid_prefix(t.p, t.n);
        if (valid < t.n)
            return err_set(e, KITH_EINVAL,
                           "text %u: not UTF-8: the byte at offset %zu breaks the rules", i + 1,
                           valid);
        *bytes += t.n + strlen(prompt);
    }
    return 0;
}

/* The request with its texts copied, the prompt before each. */
static int make_job(struct remote *b, const struct backend_request *request, struct job **out,
                    struct err *e)
{
    const char *prompt = request->role == BACKEND_QUERY      ? b->query_prompt
                         : request->role == BACKEND_DOCUMENT ? b->document_prompt
                                                             : "";
    const size_t n_prompt = strlen(prompt), heads = request->n * sizeof(struct slice);
    size_t bytes;
    int rc = check_texts(request, prompt, &bytes, e);
    if (rc)
        return rc;
    struct job *j = mem_calloc(1, sizeof *j);
    if (!j || !(j->texts = mem_alloc(heads + bytes)) ||
        !(j->vectors = mem_alloc_n(request->n, b->model.dim * sizeof(float)))) {
        if (j)
            free_job(j);
        return err_set(e, KITH_ENOMEM, "out of memory for %u texts", request->n);
    }
    char *to = (char *)j->texts + heads;
    for (uint32_t i = 0; i < request->n; i++) {
        const struct slice t = request->texts[i];
        j->texts[i] = (struct slice){.p = to, .n = n_prompt + t.n};
        memcpy(to, prompt, n_prompt);
        memcpy(to + n_prompt, t.p, t.n);
        to += n_prompt + t.n;
    }
    j->owner = b;
    j->n = request->n;
    j->bytes = bytes;
    j->truncate = request->truncate;
    j->done = request->done;
    j->arg = request->arg;
    j->arrived_us = clock_mono_us();
    *out = j;
    return 0;
}

static void remote_embed(void *self, const struct backend_request *request)
{
    struct remote *b = self;
    struct job *j = NULL;
    struct err e;
    int rc = make_job(b, request, &j, &e);
    if (rc) {
        backend_refuse(request, &e);
        return;
    }
    pthread_mutex_lock(&b->lock);
    if (b->queued_bytes > 0 && b->queued_bytes + j->bytes > b->options.queue_bytes) {
        rc = err_set(&e, KITH_EBUSY,
                     "%zu bytes of text wait for the remote model, the queue holds %" PRIu64,
                     b->queued_bytes, b->options.queue_bytes);
    } else {
        *(b->last_arrival ? &b->last_arrival->next : &b->arrivals) = j;
        b->last_arrival = j;
        b->queued_bytes += j->bytes;
        atomic_fetch_add(&b->n_queued, 1);
    }
    pthread_mutex_unlock(&b->lock);
    if (rc) {
        free_job(j);
        backend_refuse(request, &e);
        return;
    }
    remote_http_wake(b->http);
}

static void on_checked(void *arg, const struct backend_result *result)
{
    const struct remote *b = arg;
    remote_fallback_check(b->fallback, result->code ? NULL : result->values);
}

/* Has the endpoint embed the texts that the fallback is compared by. */
static void check_fallback(struct remote *b)
{
    struct backend_request request = {.done = on_checked, .arg = b};
    b->check_due = false;
    request.texts = b->fallback ? remote_fallback_begin_check(b->fallback, &request.n) : NULL;
    if (request.texts)
        remote_embed(b, &request);
}

static void remote_rerank(void *self, struct slice query, const struct backend_request *request)
{
    (void)self;
    (void)query;
    struct err e;
    err_set(&e, KITH_EUNSUPPORTED, "a remote model gives vectors and no scores");
    backend_refuse(request, &e);
}

/* --- what it says of itself --- */

static void remote_describe(void *self, struct backend_pairs *p)
{
    const struct remote *b = self;
    char hash[33] = "";
    remote_api_hash(&b->model, hash, NULL); /* it was made once at the start */
    backend_pair(p, "kind", "remote");
    backend_pair(p, "tasks", "embed");
    backend_pair(p, "name", "%s", b->name);
    backend_pair(p, "hash", "%s", hash);
    backend_pair(p, "pooling", "remote");
    backend_pair(p, "arch", "%s", remote_style_name(b->model.style));
    backend_pair(p, "type", "remote");
    backend_pair(p, "precision", "remote");
    backend_pair(p, "kernels", "remote");
    backend_pair(p, "path", "%s", b->address);
    backend_pair(p, "dim", "%u", b->model.dim);
    backend_pair(p, "context", "%u", b->options.context);
    backend_pair(p, "bytes", "0");
    backend_pair(p, "query-prompt", "%s", b->query_prompt);
    backend_pair(p, "document-prompt", "%s", b->document_prompt);
    backend_pair(p, "dims", "%s", "");
}

static void remote_stats(void *self, struct backend_stats *out)
{
    struct remote *b = self;
    *out = (struct backend_stats){.queued_requests = atomic_load(&b->n_queued),
                                  .batches = atomic_load(&b->n_batches),
                                  .texts = atomic_load(&b->n_texts),
                                  .tokens = atomic_load(&b->n_tokens)};
}

static void remote_report(void *self, struct backend_pairs *p)
{
    struct remote *b = self;
    backend_pair(p, "breaker", "%s",
                 breaker_name((enum breaker_state)atomic_load(&b->breaker_state)));
    backend_pair(p, "retries", "%" PRIu64, atomic_load(&b->n_retries));
    backend_pair(p, "failed", "%" PRIu64, atomic_load(&b->n_failed));
    backend_pair(p, "fallback", "%s",
                 b->fallback ? remote_fallback_state_name(b->fallback) : "none");
    backend_pair(p, "fallback-texts", "%" PRIu64,
                 b->fallback ? remote_fallback_texts(b->fallback) : 0);
}

/* --- open, close --- */

static void free_remote(struct remote *b)
{
    remote_http_close(b->http);
    remote_fallback_close(b->fallback);
    if (b->key)
        explicit_bzero(b->key, strlen(b->key));
    mem_free(b->key);
    mem_free(b->address);
    mem_free(b->name);
    mem_free(b->query_prompt);
    mem_free(b->document_prompt);
    pthread_mutex_destroy(&b->lock);
    mem_free(b);
}

static void remote_close(void *self)
{
    struct remote *b = self;
    pthread_mutex_lock(&b->lock);
    b->closing = true;
    pthread_mutex_unlock(&b->lock);
    remote_http_wake(b->http);
    pthread_join(b->thread, NULL);
    free_remote(b);
}

/* The key of a file's only line, in memory of its own. Nothing of it is in a message. */
static int read_key(const char *path, char **out, struct err *e)
{
    char bytes[KEY_MAX_BYTES + 1];
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot read the key file %s", path);
    if (fstat(fd, &st) == 0 && (st.st_mode & (S_IRWXG | S_IRWXO)))
        log_warning("the key file %s is open to others than its owner; chmod 600 %s", path,
                    path);
    ssize_t got = read(fd, bytes, sizeof bytes);
    int failed = errno;
    close(fd);
    if (got < 0)
        return err_set_errno(e, failed, "cannot read the key file %s", path);
    size_t n = (size_t)got;
    while (n > 0 && strchr(" \t\r\n", bytes[n - 1]))
        n--;
    int rc = 0;
    if (n == 0 || (size_t)got == sizeof bytes)
        rc = err_set(e, KITH_EINVAL, "the key file %s must hold one line of 1 to %d bytes",
                     path, KEY_MAX_BYTES);
    for (size_t i = 0; i < n && !rc; i++)
        if (bytes[i] <= ' ' || bytes[i] > '~')
            rc =
                err_set(e, KITH_EINVAL,
                        "the key file %s must hold one line of printable ASCII without spaces; "
                        "its byte %zu is none",
                        path, i + 1);
    bytes[rc ? 0 : n] = '\0';
    if (!rc && !(*out = mem_strdup(bytes)))
        rc = err_set(e, KITH_ENOMEM, "out of memory");
    explicit_bzero(bytes, sizeof bytes);
    return rc;
}

static char *copy(const char *s)
{
    return mem_strdup(s ? s : "");
}

static int copy_options(struct remote *b, const struct remote_options *o, struct err *e)
{
    struct buf address = {0};
    bool plain_far;
    char hash[33];
    int rc = strlen(o->url) > URL_MAX_BYTES
                 ? err_set(e, KITH_EINVAL, "--url has more than %d bytes", URL_MAX_BYTES)
                 : remote_http_check_url(o->url, &plain_far, e);
    if (rc)
        return rc;
    if (plain_far && o->key_file && !o->insecure_key)
        return err_set(e, KITH_EINVAL,
                       "--url %s would show the key to the network: use https, or give "
                       "--insecure-key",
                       o->url);
    remote_api_address(o->style, o->url, &address);
    buf_u8(&address, 0);
    b->address = address.failed ? NULL : mem_strdup(address.data);
    buf_deinit(&address);
    b->name = copy(o->model);
    b->query_prompt = copy(o->query_prompt);
    b->document_prompt = copy(o->document_prompt);
    if (!b->address || !b->name || !b->query_prompt || !b->document_prompt)
        return err_set(e, KITH_ENOMEM, "out of memory");
    if (o->key_file && (rc = read_key(o->key_file, &b->key, e)))
        return rc;
    b->model = (struct remote_model){.style = o->style,
                                     .name = b->name,
                                     .dim = o->dim,
                                     .send_dimensions = o->send_dimensions,
                                     .secret = b->key};
    return remote_api_hash(&b->model, hash, e);
}

static int open_parts(struct remote *b, const struct remote_options *o, struct err *e)
{
    int rc = copy_options(b, o, e);
    if (rc)
        return rc;
    const struct remote_http_options http = {
        .address = b->address, .key = b->key, .ca_file = o->ca_file, .parallel = o->parallel};
    if ((rc = remote_http_open(&b->http, &http, e)))
        return rc;
    if (o->fallback &&
        (rc = remote_fallback_open(&b->fallback, o->fallback, &o->embedder, o->dim, e)))
        return rc;
    int failed = pthread_create(&b->thread, NULL, remote_main, b);
    return failed ? err_set_errno(e, failed, "cannot start the remote model's thread") : 0;
}

int remote_backend_open(struct engine_backend *out, const struct remote_options *o,
                        struct err *e)
{
    struct remote *b = mem_calloc(1, sizeof *b);
    if (!b)
        return err_set(e, KITH_ENOMEM, "out of memory");
    b->options = *o;
    b->jobs.next = b->jobs.prev = &b->jobs;
    b->check_due = true;
    pthread_mutex_init(&b->lock, NULL);
    rng_seed(&b->rng, rng_entropy());
    int rc = open_parts(b, o, e);
    if (rc) {
        free_remote(b);
        return rc;
    }
    *out = (struct engine_backend){.self = b,
                                   .describe = remote_describe,
                                   .embed = remote_embed,
                                   .rerank = remote_rerank,
                                   .stats = remote_stats,
                                   .report = remote_report,
                                   .close = remote_close};
    return 0;
}
