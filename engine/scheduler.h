#pragma once
/* The scheduler: many requests of token sequences in, packed batches to one forward function,
 * vectors back to each request.
 *
 * It knows no model and no text. One thread of its own takes batches and computes them; when to
 * start is decided in engine/batching.h. Requests take turns: a batch is filled with one
 * sequence of each waiting request after another, so a small request rides in the next batch
 * however large the others are. Within a batch sequences are sorted by length, long ones first,
 * so that threads which share it end together.
 *
 * Bounded: past max_queue_tokens waiting, submit says KITH_EBUSY.
 *
 * Owns: a submitted request's memory until its callback has returned. Thread: submit and stats
 * from any thread; callbacks come on the scheduler's thread, one at a time, and must not call
 * scheduler_free. */

#include <stdint.h>

#include "base/error.h"

struct model_batch;
struct scheduler;

struct scheduler_options {
    uint32_t dim;              /* floats of one vector */
    uint32_t batch_tokens;     /* a batch has at most so many, or one sequence alone */
    uint32_t sequence_tokens;  /* no sequence may be longer */
    int64_t batch_wait_us;     /* see engine/batching.h */
    uint64_t max_queue_tokens; /* waiting, of all requests */
    /* vectors: n_texts x dim, row-major. */
    int (*forward)(void *context, const struct model_batch *batch, float *vectors,
                   struct err *e);
    void *context;
};

struct scheduler_result {
    int code;             /* 0 or KITH_E*: then no vectors */
    const char *message;  /* why, where code is not 0 */
    const float *vectors; /* n x dim, in the request's order */
    uint32_t n, dim, n_tokens;
};

/* Sequence i is ids[offsets[i]] .. ids[offsets[i + 1] - 1]; all of them 1 .. sequence_tokens
 * long.
 */
struct scheduler_request {
    const int32_t *ids;
    const uint32_t *offsets; /* n + 1 */
    const uint32_t *splits;  /* n: tokens before those of type 1; NULL: there are none */
    uint32_t n;              /* at least 1 */
    void (*done)(void *arg, const struct scheduler_result *result);
    void *arg;
};

struct scheduler_stats {
    uint64_t queued_requests, queued_tokens; /* now */
    uint64_t batches, texts, tokens;         /* computed since the start */
};

int scheduler_new(struct scheduler **out, const struct scheduler_options *options,
                  struct err *e);
/* The batch under way is finished; requests that wait get KITH_ECLOSED. Every callback has
 * returned when this returns. */
void scheduler_free(struct scheduler *s);

/* Copies ids, offsets and splits. When it returns 0, done is called exactly once; otherwise
 * never. Errors: KITH_EBUSY, KITH_ELIMIT (one request larger than the whole queue),
 * KITH_EINVAL, KITH_ENOMEM. */
int scheduler_submit(struct scheduler *s, const struct scheduler_request *request,
                     struct err *e);
void scheduler_stats(struct scheduler *s, struct scheduler_stats *out);
