#pragma once
/* Joins the ordered lists that several query vectors gave into one.
 *
 *   RRF  reciprocal rank fusion: sum over the lists of 1 / (60 + rank), rank from 1
 *        (G. Cormack, C. Clarke, S. Buettcher, Reciprocal Rank Fusion outperforms Condorcet and
 *        individual Rank Learning Methods, SIGIR 2009)
 *   MAX  the best of an element's scores
 *   AVG  the mean of an element's scores over all query vectors; those of lists it is not in
 * are computed
 *
 * Knows lists and scores, not the set they came from. Thread: any. */

#include <stdint.h>

#include "base/error.h"
#include "base/mem.h"
#include "index/index.h"
#include "server/vset_search.h"

enum { COMBINE_RRF_K = 60 };

struct hit_list {
    struct index_hit *v; /* in an arena */
    uint32_t n, cap;
};

/* A candidate with its score; slot and score order it. */
struct ranked {
    uint32_t slot;
    double score;
};
struct ranked_list {
    struct ranked *v;
    uint32_t n;
};

/* Best first, ties by slot. */
void ranked_sort(struct ranked_list *r);

struct combine {
    enum vset_combine how;
    enum index_metric metric;
    /* AVG: the distances of n slots to query vector `vector`; NAN where a slot is gone. */
    int (*distances)(void *arg, uint32_t vector, const uint32_t *slots, uint32_t n, float *out,
                     struct err *e);
    void *arg;
};

/* Every slot of any of the lists, once, best first. Errors: KITH_ENOMEM, those of distances. */
int combine_lists(const struct combine *c, const struct hit_list *lists, uint32_t n_lists,
                  struct arena *arena, struct ranked_list *out, struct err *e);
