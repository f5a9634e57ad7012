#pragma once
/* A small file of packed weights: what it is for and what is in it, for its test and for the
 * seeds of its fuzzer. */

#include <string.h>

#include "base/random.h"
#include "engine/model.h"
#include "engine/packed_cache.h"

enum { PACKED_FIXTURE_MATRICES = 3, PACKED_FIXTURE_HEAD = 128, PACKED_FIXTURE_ROW = 64 };

static const struct packed_identity packed_fixture_identity = {
    .model = "0123456789abcdef0123456789abcdef",
    .kernels = "avx2",
    .precision = "int8",
    .panel = 16,
};

/* As a model has them: two with outliers, one without; sizes of no round number. */
static inline void packed_fixture_matrices(struct packed_matrix m[PACKED_FIXTURE_MATRICES])
{
    static char data[PACKED_FIXTURE_MATRICES][200];
    struct rng rng;
    rng_seed(&rng, 3);
    for (int i = 0; i < PACKED_FIXTURE_MATRICES; i++)
        for (size_t k = 0; k < sizeof data[i]; k++)
            data[i][k] = (char)rng_below(&rng, 256);
    m[0] = (struct packed_matrix){.n_in = 64,
                                  .n_out = 5,
                                  .precision = MODEL_INT8,
                                  .bytes = 200,
                                  .n_outliers = 4,
                                  .outliers = {63, 0, 7, 8},
                                  .data = data[0]};
    m[1] = (struct packed_matrix){.n_in = 32,
                                  .n_out = 3,
                                  .precision = MODEL_INT8,
                                  .bytes = 64,
                                  .n_outliers = 4,
                                  .outliers = {1, 2, 3, 4},
                                  .data = data[1]};
    m[2] = (struct packed_matrix){
        .n_in = 5, .n_out = 2, .precision = MODEL_F32, .bytes = 129, .data = data[2]};
}

/* The same as a reader knows them, who has yet to find the rest. */
static inline void packed_fixture_shapes(struct packed_matrix m[PACKED_FIXTURE_MATRICES])
{
    packed_fixture_matrices(m);
    for (int i = 0; i < PACKED_FIXTURE_MATRICES; i++) {
        m[i].data = NULL;
        memset(m[i].outliers, 0, sizeof m[i].outliers);
    }
}
