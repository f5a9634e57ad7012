#pragma once
/* What one thread needs while it searches or links: heaps, the visited set, rows for queries.
 * Serves any index and only grows, so that a steady stream of searches allocates nothing.
 * Thread: one owner. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "index/code.h"

/* A (distance, slot) as one integer, so that keys compare as distances do, ties by slot, with
 * one instruction. The bits of a float that is not negative grow with it, those of a negative
 * one fall: the first get their sign bit set, the second are inverted. Distances are never
 * not-a-number nor -0 (code_distances). */
static inline uint64_t key_of(float distance, uint32_t slot)
{
    uint32_t bits;
    memcpy(&bits, &distance, sizeof bits);
    bits ^= bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31;
    return (uint64_t)bits << 32 | slot;
}

static inline uint32_t key_slot(uint64_t key)
{
    return (uint32_t)key;
}

static inline float key_distance(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    float distance;
    bits ^= bits >> 31 ? UINT32_C(1) << 31 : UINT32_MAX;
    memcpy(&distance, &bits, sizeof distance);
    return distance;
}

/* A growable array of keys, also used as a binary min-heap (of ~key for a max-heap). */
struct keys {
    uint64_t *v;
    size_t n, cap;
};

int keys_reserve(struct keys *k, size_t cap, struct err *e);
void keys_sort(struct keys *k); /* ascending */
/* Empties a max-heap (of ~key) into out, ascending. */
int heap_drain(struct keys *h, struct keys *out, struct err *e);

/* The heap functions need room for one more. */
static inline void heap_push(struct keys *h, uint64_t key)
{
    size_t i = h->n++;
    while (i > 0) {
        size_t up = (i - 1) / 2;
        if (h->v[up] <= key)
            break;
        h->v[i] = h->v[up];
        i = up;
    }
    h->v[i] = key;
}

/* Puts key in the place of the least. */
static inline void heap_replace(struct keys *h, uint64_t key)
{
    size_t i = 0, n = h->n;
    for (;;) {
        size_t down = 2 * i + 1;
        if (down >= n)
            break;
        if (down + 1 < n)
            down += h->v[down + 1] < h->v[down];
        if (h->v[down] >= key)
            break;
        h->v[i] = h->v[down];
        i = down;
    }
    h->v[i] = key;
}

static inline uint64_t heap_pop(struct keys *h)
{
    uint64_t least = h->v[0], last = h->v[--h->n];
    if (h->n)
        heap_replace(h, last);
    return least;
}

/* Keeps the `most` least keys in a max-heap (so of ~key). */
static inline void heap_keep(struct keys *h, size_t most, uint64_t key)
{
    if (h->n < most)
        heap_push(h, ~key);
    else if (~key > h->v[0])
        heap_replace(h, ~key);
}

struct link_job;

struct index_scratch {
    struct keys near; /* to be expanded, nearest first */
    struct keys far;  /* kept so far, a max-heap: ~key */
    struct keys tail; /* kept from the tail, a max-heap: ~key */
    struct keys list; /* sorted candidates */
    /* Visited: stamp[slot] == generation. One byte a slot stays in the cache; every 255
     * searches it is wiped. */
    uint8_t *stamp;
    size_t n_stamps;
    uint8_t generation;
    /* Rows that code_query_* fill: the search's, and that of pairs compared in passing. */
    float *query_row, *pair_row;
    size_t n_row;
    /* Lists of slots, their codes and distances, n_batch of each. */
    uint32_t *slots;
    const struct code **codes, **kept;
    float *distances;
    size_t n_batch;
    uint64_t n_visits;
    struct link_job *job; /* hnsw_link.c */
};

/* Room for rows of dim floats and batches of n_batch slots. */
int scratch_fit(struct index_scratch *s, uint32_t dim, size_t n_batch, struct err *e);
/* Forgets what was visited; room for slots 0 .. n-1. */
int scratch_visit_none(struct index_scratch *s, size_t n, struct err *e);

static inline bool scratch_visit(struct index_scratch *s, uint32_t slot)
{
    bool first = s->stamp[slot] != s->generation;
    s->stamp[slot] = s->generation;
    return first;
}
