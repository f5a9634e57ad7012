#include "server/search_diverse.h"

#include <math.h>

#include "index/vectors.h"
#include "server/vset_search.h"

static int no_memory(struct err *e)
{
    return err_set(e, KITH_ENOMEM, "out of memory for choosing different results");
}

/* Cosines are asked of every pair, so the lengths are taken out once. */
static const float *unit_vectors(const struct diverse *d, struct arena *arena)
{
    if (d->metric != INDEX_COSINE)
        return d->vectors;
    float *unit = arena_alloc(arena, (size_t)d->n * d->dim * sizeof *unit);
    for (uint32_t i = 0; unit && i < d->n; i++)
        vector_normalise(d->vectors + (size_t)i * d->dim, d->dim, unit + (size_t)i * d->dim);
    return unit;
}

static double similarity(const struct diverse *d, const float *a, const float *b)
{
    if (d->metric != INDEX_COSINE)
        return vset_score(d->metric, vector_distance(d->metric, a, b, d->dim));
    return vset_score(INDEX_COSINE, 1 + vector_distance(INDEX_IP, a, b, d->dim));
}

int diverse_choose(const struct diverse *d, uint32_t want, struct arena *arena,
                   uint32_t *chosen, uint32_t *n_chosen, struct err *e)
{
    *n_chosen = 0;
    if (d->n == 0 || want == 0)
        return 0;
    const float *unit = unit_vectors(d, arena);
    double *nearest = arena_alloc(arena, d->n * sizeof *nearest); /* to any that was chosen */
    bool *taken = arena_alloc(arena, d->n * sizeof *taken);
    if (!unit || !nearest || !taken)
        return no_memory(e);
    for (uint32_t i = 0; i < d->n; i++) {
        nearest[i] = 0;
        taken[i] = false;
    }
    while (*n_chosen < want && *n_chosen < d->n) {
        uint32_t best = UINT32_MAX;
        double best_value = 0;
        for (uint32_t i = 0; i < d->n; i++) {
            double value = d->lambda * d->relevance[i] - (1 - d->lambda) * nearest[i];
            if (!taken[i] && (best == UINT32_MAX || value > best_value)) {
                best = i;
                best_value = value;
            }
        }
        taken[best] = true;
        for (uint32_t i = 0; i < d->n; i++) {
            if (taken[i])
                continue;
            double s = similarity(d, unit + (size_t)i * d->dim, unit + (size_t)best * d->dim);
            nearest[i] = *n_chosen == 0 ? s : fmax(nearest[i], s);
        }
        chosen[(*n_chosen)++] = best;
    }
    return 0;
}
