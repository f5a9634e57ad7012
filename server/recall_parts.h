#pragma once
/* What recall.c (the averages) and recall_sampler.c (the thread that measures) share. No other
 * file but their test includes it. */

#include <pthread.h>
#include <stdatomic.h>

#include "server/recall.h"

enum { RECALL_K = 10, RECALL_GRID = 7 };
extern const uint32_t recall_grid[RECALL_GRID];

/* An exponential average: the mean of all so far until their weights reach a window, then each
 * new one takes its share of it. */
struct recall_average {
    double value, weight;
};

struct recall {
    /* Of recall_offer: read without a lock by every search. */
    _Atomic bool waiting;          /* an offer of this set is queued or measured */
    _Atomic int64_t next_offer_us; /* none is taken before; clock_mono_us */
    _Atomic bool asked;            /* for an ef, when too little was known */

    pthread_mutex_t lock; /* of what follows */
    struct recall_average own, grid[RECALL_GRID];
    uint64_t n_samples;

    /* The list of all that have samples; its own lock. */
    struct recall *next, *previous;
    bool listed;
};

struct recall_sample {
    double own;               /* NAN: it was no search's query */
    double grid[RECALL_GRID]; /* recall at each ef */
    double weight;
};
void recall_fold(struct recall *r, const struct recall_sample *sample);
/* Whether somebody asked for an ef and too little is known to tell it well. */
bool recall_wants_calibration(struct recall *r);
