#pragma once
/* Maximal marginal relevance: chooses from a pool of candidates so that each is near the query
 * and unlike those chosen before it.
 *
 *   next = argmax over the rest of lambda * relevance - (1 - lambda) * max similarity to a
 * chosen
 *
 *   J. Carbonell, J. Goldstein, The Use of MMR, Diversity-Based Reranking for Reordering
 *   Documents and Producing Summaries, SIGIR 1998.
 *
 * Knows vectors and numbers, not the set they came from. Thread: any. */

#include <stdint.h>

#include "base/error.h"
#include "base/mem.h"
#include "index/index.h"

struct diverse {
    enum index_metric metric;
    uint32_t dim;
    const float *vectors;    /* n x dim, row-major */
    const double *relevance; /* n, best first; on the scale of vset_score */
    uint32_t n;
    double lambda;
};

/* Writes the places of `want` candidates (of all where there are fewer) in the order they were
 * chosen, and how many. A tie goes to the more relevant. O(want * n * dim). */
int diverse_choose(const struct diverse *d, uint32_t want, struct arena *arena,
                   uint32_t *chosen, uint32_t *n_chosen, struct err *e);
