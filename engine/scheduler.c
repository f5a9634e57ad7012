/* One mutex guards the queue, the decision's state and the counters. The thread holds it while
 * it fills a batch (copying ids, microseconds) and lets it go while it computes and while
 * callbacks run, so submitters never wait for either.
 *
 * A request is one allocation: header, order, offsets, ids, vectors. It lies in the queue until
 * its last sequence is taken, and lives until its last vector is there. Only the scheduler's
 * thread takes requests out, so between two holds of the lock a request it works on cannot go
 * away. */

#include "engine/scheduler.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/batching.h"
#include "engine/model.h"

struct request {
    struct request *next;
    void (*done)(void *arg, const struct scheduler_result *result);
    void *arg;
    uint32_t n, n_tokens;
    uint32_t taken;    /* sequences order[0 .. taken - 1] are in a batch or done */
    uint32_t computed; /* of those, how many have their vectors */
    bool answered;     /* or about to be */
    uint32_t *order;   /* n: sequence numbers, the longest first */
    uint32_t *offsets; /* n + 1 */
    uint32_t *splits;  /* n, or NULL */
    int32_t *ids;      /* n_tokens */
    float *vectors;    /* n x dim */
};

/* One sequence of the batch under way. */
struct slot {
    struct request *request;
    uint32_t sequence, n_tokens;
};

struct scheduler {
    struct scheduler_options options;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;
    struct request *head, *tail;
    struct batching batching;
    struct scheduler_stats stats;
    /* The batch under way; the thread's alone. A sequence has at least one token, so a batch
     * has at most batch_capacity sequences. */
    struct slot *slots;
    uint32_t n_slots;
    uint32_t *offsets, *splits;
    int32_t *ids;
    float *vectors;
};

static uint32_t length_of(const struct request *r, uint32_t sequence)
{
    return r->offsets[sequence + 1] - r->offsets[sequence];
}

/* --- requests --- */

struct length {
    uint32_t n_tokens, sequence;
};

static int longest_first(const void *a, const void *b)
{
    const struct length *x = a, *y = b;
    if (x->n_tokens != y->n_tokens)
        return x->n_tokens < y->n_tokens ? 1 : -1;
    return (x->sequence > y->sequence) - (x->sequence < y->sequence);
}

static int sort_order(struct request *r)
{
    struct length *lengths = mem_alloc_n(r->n, sizeof *lengths);
    if (!lengths)
        return KITH_ENOMEM;
    for (uint32_t i = 0; i < r->n; i++)
        lengths[i] = (struct length){.n_tokens = length_of(r, i), .sequence = i};
    qsort(lengths, r->n, sizeof *lengths, longest_first);
    for (uint32_t i = 0; i < r->n; i++)
        r->order[i] = lengths[i].sequence;
    mem_free(lengths);
    return 0;
}

static void request_free(struct request *r)
{
    if (!r)
        return;
    mem_free(r->order);
    mem_free(r->offsets);
    mem_free(r->splits);
    mem_free(r->ids);
    mem_free(r->vectors);
    mem_free(r);
}

static struct request *request_new(const struct scheduler *s,
                                   const struct scheduler_request *from)
{
    struct request *r = mem_calloc(1, sizeof *r);
    size_t floats;
    if (!r || mem_mul_overflows(from->n, s->options.dim, &floats)) {
        mem_free(r);
        return NULL;
    }
    r->done = from->done;
    r->arg = from->arg;
    r->n = from->n;
    r->n_tokens = from->offsets[from->n];
    r->order = mem_alloc_n(r->n, sizeof *r->order);
    r->offsets = mem_dup(from->offsets, ((size_t)r->n + 1) * sizeof *r->offsets);
    r->splits = from->splits ? mem_dup(from->splits, r->n * sizeof *r->splits) : NULL;
    r->ids = mem_dup(from->ids, (size_t)r->n_tokens * sizeof *r->ids);
    r->vectors = mem_alloc_n(floats, sizeof *r->vectors);
    if (!r->order || !r->offsets || (from->splits && !r->splits) || !r->ids || !r->vectors ||
        sort_order(r)) {
        request_free(r);
        return NULL;
    }
    return r;
}

/* Tells the request's owner, without the lock, and frees it. */
static void finish(const struct scheduler *s, struct request *r, int code, const char *message)
{
    struct scheduler_result result = {.code = code,
                                      .message = message,
                                      .vectors = code ? NULL : r->vectors,
                                      .n = r->n,
                                      .dim = s->options.dim,
                                      .n_tokens = r->n_tokens};
    r->done(r->arg, &result);
    request_free(r);
}

/* --- a batch --- */

static int longest_slot_first(const void *a, const void *b)
{
    const struct slot *x = a, *y = b;
    return (x->n_tokens < y->n_tokens) - (x->n_tokens > y->n_tokens);
}

/* Takes sequences into slots, a round over the waiting requests at a time, until a round finds
 * nothing that fits. One that is longer than a batch goes alone, when its request is the first:
 * a batch begins with the first, so that none is passed over for ever. Returns the tokens
 * taken. */
static uint32_t fill_slots(struct scheduler *s)
{
    uint32_t n_tokens = 0;
    s->n_slots = 0;
    for (bool more = true; more;) {
        more = false;
        for (struct request *r = s->head; r; r = r->next) {
            if (r->taken == r->n)
                continue;
            uint32_t sequence = r->order[r->taken], n = length_of(r, sequence);
            if (n_tokens > 0 && (uint64_t)n_tokens + n > s->options.batch_tokens)
                continue;
            s->slots[s->n_slots++] = (struct slot){r, sequence, n};
            r->taken++;
            n_tokens += n;
            more = true;
        }
    }
    return n_tokens;
}

/* Requests of which nothing waits any more leave the queue; returns how many. */
static uint32_t drop_taken(struct scheduler *s)
{
    uint32_t dropped = 0;
    struct request **at = &s->head;
    s->tail = NULL;
    while (*at) {
        if ((*at)->taken == (*at)->n) {
            *at = (*at)->next;
            dropped++;
        } else {
            s->tail = *at;
            at = &(*at)->next;
        }
    }
    return dropped;
}

static void take_batch(struct scheduler *s, struct model_batch *batch)
{
    uint32_t n_tokens = fill_slots(s);
    uint32_t n_requests = drop_taken(s);
    qsort(s->slots, s->n_slots, sizeof *s->slots, longest_slot_first);
    uint32_t at = 0;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        const struct slot *slot = &s->slots[i];
        const int32_t *ids = slot->request->ids + slot->request->offsets[slot->sequence];
        const uint32_t *splits = slot->request->splits;
        s->offsets[i] = at;
        s->splits[i] = splits ? splits[slot->sequence] : UINT32_MAX;
        memcpy(s->ids + at, ids, slot->n_tokens * sizeof *ids);
        at += slot->n_tokens;
    }
    s->offsets[s->n_slots] = at;
    *batch = (struct model_batch){.ids = s->ids,
                                  .offsets = s->offsets,
                                  .n_texts = s->n_slots,
                                  .n_tokens = n_tokens,
                                  .splits = s->splits};
    struct batching_event event = {
        .kind = BATCHING_TAKEN, .n_tokens = n_tokens, .n_requests = n_requests};
    batching_step(&s->batching, &event);
}

static int compute(struct scheduler *s, const struct model_batch *batch, struct err *e)
{
    int rc = s->options.forward(s->options.context, batch, s->vectors, e);
    size_t floats = (size_t)batch->n_texts * s->options.dim;
    for (size_t i = 0; i < floats && !rc; i++)
        if (!isfinite(s->vectors[i]))
            rc = err_set(e, KITH_ECORRUPT,
                         "the model gave a value that is not a number: its "
                         "weights are damaged");
    return rc;
}

/* Takes a request that failed out of the queue, with the sequences of it that still wait. */
static void withdraw(struct scheduler *s, struct request *r)
{
    uint64_t n_tokens = 0;
    for (uint32_t i = r->taken; i < r->n; i++)
        n_tokens += length_of(r, r->order[i]);
    r->taken = r->n;
    s->batching.queued_tokens -= n_tokens;
    s->batching.queued_requests -= drop_taken(s);
}

/* Hands each vector to its request and answers the requests that are whole, or all of them when
 * the batch failed, in the order in which the batch names them. */
static uint32_t deliver(struct scheduler *s, const struct model_batch *batch, int code,
                        const struct err *e)
{
    uint32_t n_answers = 0;
    struct request *first = NULL, **last = &first;
    for (uint32_t i = 0; i < batch->n_texts; i++) {
        const struct slot *slot = &s->slots[i];
        struct request *r = slot->request;
        memcpy(r->vectors + (size_t)slot->sequence * s->options.dim,
               s->vectors + (size_t)i * s->options.dim, s->options.dim * sizeof(float));
        r->computed++;
        if (r->answered || (!code && r->computed < r->n))
            continue;
        if (r->taken < r->n) {
            pthread_mutex_lock(&s->lock);
            withdraw(s, r);
            pthread_mutex_unlock(&s->lock);
        }
        r->answered = true;
        r->next = NULL; /* it has left the queue */
        *last = r;
        last = &r->next;
        n_answers++;
    }
    for (struct request *r = first, *next; r; r = next) {
        next = r->next;
        finish(s, r, code, code ? e->message : NULL);
    }
    return n_answers;
}

/* --- the thread --- */

static void run_batch(struct scheduler *s)
{
    struct model_batch batch;
    struct err e = {0};
    take_batch(s, &batch);
    pthread_mutex_unlock(&s->lock);
    int code = compute(s, &batch, &e);
    pthread_mutex_lock(&s->lock);
    s->stats.batches++;
    s->stats.texts += batch.n_texts;
    s->stats.tokens += batch.n_tokens;
    pthread_mutex_unlock(&s->lock);
    uint32_t n_requests = deliver(s, &batch, code, &e);
    pthread_mutex_lock(&s->lock);
    struct batching_event event = {
        .kind = BATCHING_FINISHED, .now_us = clock_mono_us(), .n_requests = n_requests};
    batching_step(&s->batching, &event);
}

static void wait_for_change(struct scheduler *s, int64_t until_us)
{
    if (until_us < 0) {
        pthread_cond_wait(&s->changed, &s->lock);
        return;
    }
    struct timespec t = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    pthread_cond_timedwait(&s->changed, &s->lock, &t);
}

static void *scheduler_main(void *arg)
{
    struct scheduler *s = arg;
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        struct batching_event event = {.kind = BATCHING_TIME, .now_us = clock_mono_us()};
        struct batching_update update = batching_step(&s->batching, &event);
        if (update.start)
            run_batch(s);
        else
            wait_for_change(s, update.wake_us);
    }
    struct request *left = s->head;
    s->head = s->tail = NULL;
    pthread_mutex_unlock(&s->lock);
    while (left) {
        struct request *next = left->next;
        finish(s, left, KITH_ECLOSED, "the engine is stopping");
        left = next;
    }
    return NULL;
}

/* --- outside --- */

static int init_lock(struct scheduler *s)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr))
        return KITH_ENOMEM;
    int rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    if (!rc)
        rc = pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    if (rc)
        return KITH_ENOMEM;
    if (pthread_mutex_init(&s->lock, NULL)) {
        pthread_cond_destroy(&s->changed);
        return KITH_ENOMEM;
    }
    return 0;
}

/* Tokens of the largest batch there can be. */
static uint32_t batch_capacity(const struct scheduler_options *o)
{
    return o->batch_tokens > o->sequence_tokens ? o->batch_tokens : o->sequence_tokens;
}

static void free_memory(struct scheduler *s)
{
    mem_free(s->slots);
    mem_free(s->offsets);
    mem_free(s->splits);
    mem_free(s->ids);
    mem_free(s->vectors);
    mem_free(s);
}

int scheduler_new(struct scheduler **out, const struct scheduler_options *options,
                  struct err *e)
{
    struct scheduler *s = mem_calloc(1, sizeof *s);
    const uint32_t capacity = batch_capacity(options);
    size_t floats = 0;
    if (s && !mem_mul_overflows(capacity, options->dim, &floats)) {
        s->options = *options;
        s->slots = mem_alloc_n(capacity, sizeof *s->slots);
        s->offsets = mem_alloc_n((size_t)capacity + 1, sizeof *s->offsets);
        s->splits = mem_alloc_n(capacity, sizeof *s->splits);
        s->ids = mem_alloc_n(capacity, sizeof *s->ids);
        s->vectors = mem_alloc_n(floats, sizeof *s->vectors);
    }
    if (!s || !s->slots || !s->offsets || !s->splits || !s->ids || !s->vectors ||
        init_lock(s)) {
        if (s)
            free_memory(s);
        return err_set(e, KITH_ENOMEM, "out of memory for batches of %u tokens", capacity);
    }
    batching_init(&s->batching, options->batch_tokens, options->batch_wait_us);
    int errnum = pthread_create(&s->thread, NULL, scheduler_main, s);
    if (errnum) {
        pthread_cond_destroy(&s->changed);
        pthread_mutex_destroy(&s->lock);
        free_memory(s);
        return err_set_errno(e, errnum, "cannot start the scheduler's thread");
    }
    *out = s;
    return 0;
}

void scheduler_free(struct scheduler *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free_memory(s);
}

static int check_request(const struct scheduler *s, const struct scheduler_request *request,
                         struct err *e)
{
    if (request->n == 0)
        return err_set(e, KITH_EINVAL, "a request without texts");
    for (uint32_t i = 0; i < request->n; i++) {
        uint32_t from = request->offsets[i], to = request->offsets[i + 1];
        if (to <= from || to - from > s->options.sequence_tokens)
            return err_set(e, KITH_EINVAL, "text %u has %lld tokens; 1 to %u fit a batch",
                           i + 1, (long long)to - (long long)from, s->options.sequence_tokens);
    }
    if (request->offsets[request->n] > s->options.max_queue_tokens)
        return err_set(
            e, KITH_ELIMIT,
            "the request has %u tokens, the queue takes %llu: send fewer texts at once",
            request->offsets[request->n], (unsigned long long)s->options.max_queue_tokens);
    return 0;
}

int scheduler_submit(struct scheduler *s, const struct scheduler_request *request,
                     struct err *e)
{
    int rc = check_request(s, request, e);
    if (rc)
        return rc;
    struct request *r = request_new(s, request);
    if (!r)
        return err_set(e, KITH_ENOMEM, "out of memory for %u texts", request->n);
    pthread_mutex_lock(&s->lock);
    uint64_t waiting = s->batching.queued_tokens;
    if (s->stop) {
        rc = err_set(e, KITH_ECLOSED, "the engine is stopping");
    } else if (waiting + r->n_tokens > s->options.max_queue_tokens) {
        rc = err_set(
            e, KITH_EBUSY, "%llu tokens wait already, at most %llu may: try again later",
            (unsigned long long)waiting, (unsigned long long)s->options.max_queue_tokens);
    } else {
        if (s->tail)
            s->tail->next = r;
        else
            s->head = r;
        s->tail = r;
        struct batching_event event = {
            .kind = BATCHING_SUBMITTED, .now_us = clock_mono_us(), .n_tokens = r->n_tokens};
        struct batching_update update = batching_step(&s->batching, &event);
        if (update.start || update.wake_us >= 0)
            pthread_cond_signal(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc)
        request_free(r);
    return rc;
}

void scheduler_stats(struct scheduler *s, struct scheduler_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    out->queued_requests = s->batching.queued_requests;
    out->queued_tokens = s->batching.queued_tokens;
    pthread_mutex_unlock(&s->lock);
}
