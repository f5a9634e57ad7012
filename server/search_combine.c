#include "server/search_combine.h"

#include <math.h>
#include <stdlib.h>

/* One place in one list. */
struct place {
    uint32_t slot, list, rank;
    float distance;
};

static int by_slot(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    if (x->slot != y->slot)
        return x->slot < y->slot ? -1 : 1;
    return (x->list > y->list) - (x->list < y->list);
}

static int by_score(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->score > y->score || x->score < y->score)
        return x->score > y->score ? -1 : 1;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

void ranked_sort(struct ranked_list *r)
{
    if (r->n > 1)
        qsort(r->v, r->n, sizeof *r->v, by_score);
}

static int no_memory(struct err *e)
{
    return err_set(e, KITH_ENOMEM, "out of memory for joining the lists of several vectors");
}

/* AVG: the places that an element does not have, computed. scores: n_slots x n_lists, NAN where
 * there is none yet. */
static int fill_missing(const struct combine *c, const struct ranked_list *all, double *scores,
                        uint32_t n_lists, struct arena *arena, struct err *e)
{
    uint32_t *slots = arena_alloc(arena, (size_t)all->n * sizeof *slots);
    uint32_t *at = arena_alloc(arena, (size_t)all->n * sizeof *at);
    float *distances = arena_alloc(arena, (size_t)all->n * sizeof *distances);
    if (!slots || !at || !distances)
        return no_memory(e);
    for (uint32_t l = 0; l < n_lists; l++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < all->n; i++) {
            if (isnan(scores[(size_t)i * n_lists + l])) {
                slots[n] = all->v[i].slot;
                at[n++] = i;
            }
        }
        int rc = n ? c->distances(c->arg, l, slots, n, distances, e) : 0;
        if (rc != 0)
            return rc;
        for (uint32_t i = 0; i < n; i++)
            if (!isnan(distances[i]))
                scores[(size_t)at[i] * n_lists + l] = vset_score(c->metric, distances[i]);
    }
    return 0;
}

static int average(const struct combine *c, const struct place *places, uint32_t n_places,
                   uint32_t n_lists, struct arena *arena, struct ranked_list *all,
                   struct err *e)
{
    size_t n_scores, bytes;
    if (mem_mul_overflows(all->n, n_lists, &n_scores) ||
        mem_mul_overflows(n_scores, sizeof(double), &bytes))
        return no_memory(e);
    double *scores = arena_alloc(arena, bytes);
    if (!scores)
        return no_memory(e);
    for (size_t i = 0; i < n_scores; i++)
        scores[i] = (double)NAN;
    for (uint32_t i = 0, row = 0; i < n_places; i++) {
        if (i > 0 && places[i].slot != places[i - 1].slot)
            row++;
        scores[(size_t)row * n_lists + places[i].list] =
            vset_score(c->metric, places[i].distance);
    }
    int rc = fill_missing(c, all, scores, n_lists, arena, e);
    uint32_t kept = 0;
    for (uint32_t i = 0; rc == 0 && i < all->n; i++) {
        double sum = 0;
        for (uint32_t l = 0; l < n_lists; l++)
            sum += scores[(size_t)i * n_lists + l];
        if (!isnan(sum)) /* else it was removed meanwhile */
            all->v[kept++] = (struct ranked){all->v[i].slot, sum / n_lists};
    }
    all->n = kept;
    return rc;
}

int combine_lists(const struct combine *c, const struct hit_list *lists, uint32_t n_lists,
                  struct arena *arena, struct ranked_list *out, struct err *e)
{
    size_t total = 0;
    for (uint32_t l = 0; l < n_lists; l++)
        total += lists[l].n;
    *out = (struct ranked_list){0};
    if (total == 0)
        return 0;
    struct place *places = total <= UINT32_MAX && total <= SIZE_MAX / sizeof *places
                               ? arena_alloc(arena, total * sizeof *places)
                               : NULL;
    out->v = places ? arena_alloc(arena, total * sizeof *out->v) : NULL;
    if (!out->v)
        return no_memory(e);
    uint32_t n = 0;
    for (uint32_t l = 0; l < n_lists; l++)
        for (uint32_t i = 0; i < lists[l].n; i++)
            places[n++] = (struct place){lists[l].v[i].slot, l, i + 1, lists[l].v[i].distance};
    qsort(places, n, sizeof *places, by_slot);
    for (uint32_t i = 0; i < n; i++) {
        bool first = i == 0 || places[i].slot != places[i - 1].slot;
        double score = c->how == VSET_COMBINE_RRF ? 1.0 / (COMBINE_RRF_K + places[i].rank)
                                                  : vset_score(c->metric, places[i].distance);
        struct ranked *r = &out->v[first ? out->n++ : out->n - 1];
        if (first)
            *r = (struct ranked){places[i].slot, score};
        else if (c->how == VSET_COMBINE_RRF)
            r->score += score;
        else if (score > r->score)
            r->score = score;
    }
    int rc = c->how == VSET_COMBINE_AVG ? average(c, places, n, n_lists, arena, out, e) : 0;
    ranked_sort(out);
    return rc;
}
