#include "index/scratch.h"

#include <stdlib.h>

#include "index/hnsw.h"

int keys_reserve(struct keys *k, size_t cap, struct err *e)
{
    if (cap <= k->cap)
        return 0;
    size_t want = k->cap * 2 > cap ? k->cap * 2 : cap;
    uint64_t *v = mem_realloc_n(k->v, want, sizeof *v);
    if (!v)
        return err_set(e, KITH_ENOMEM, "out of memory for %zu search candidates", want);
    k->v = v;
    k->cap = want;
    return 0;
}

static int compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

void keys_sort(struct keys *k)
{
    if (k->n > 64) {
        qsort(k->v, k->n, sizeof *k->v, compare_keys);
        return;
    }
    for (size_t i = 1; i < k->n; i++) {
        uint64_t key = k->v[i];
        size_t at = i;
        for (; at > 0 && k->v[at - 1] > key; at--)
            k->v[at] = k->v[at - 1];
        k->v[at] = key;
    }
}

int heap_drain(struct keys *h, struct keys *out, struct err *e)
{
    int rc = keys_reserve(out, h->n, e);
    if (rc != 0)
        return rc;
    out->n = h->n;
    while (h->n) {
        size_t last = h->n - 1;
        out->v[last] = ~heap_pop(h);
    }
    return 0;
}

struct index_scratch *index_scratch_new(void)
{
    return mem_calloc(1, sizeof(struct index_scratch));
}

void index_scratch_free(struct index_scratch *s)
{
    if (!s)
        return;
    mem_free(s->near.v);
    mem_free(s->far.v);
    mem_free(s->tail.v);
    mem_free(s->list.v);
    mem_free(s->stamp);
    mem_free(s->query_row);
    mem_free(s->pair_row);
    mem_free(s->slots);
    mem_free(s->codes);
    mem_free(s->kept);
    mem_free(s->distances);
    link_job_free(s->job);
    mem_free(s);
}

uint64_t index_scratch_visits(const struct index_scratch *s)
{
    return s->n_visits;
}

static int fit_rows(struct index_scratch *s, uint32_t dim, struct err *e)
{
    if (dim <= s->n_row)
        return 0;
    size_t bytes = ((size_t)dim * sizeof(float) + 63) / 64 * 64;
    float *query = mem_alloc_aligned(64, bytes), *pair = mem_alloc_aligned(64, bytes);
    if (!query || !pair) {
        mem_free(query);
        mem_free(pair);
        return err_set(e, KITH_ENOMEM, "out of memory for a query of %u dimensions", dim);
    }
    mem_free(s->query_row);
    mem_free(s->pair_row);
    s->query_row = query;
    s->pair_row = pair;
    s->n_row = dim;
    return 0;
}

int scratch_fit(struct index_scratch *s, uint32_t dim, size_t n_batch, struct err *e)
{
    int rc = fit_rows(s, dim, e);
    if (rc != 0 || n_batch <= s->n_batch)
        return rc;
    uint32_t *slots = mem_alloc_n(n_batch, sizeof *slots);
    const struct code **codes = mem_alloc_n(n_batch, sizeof *codes);
    const struct code **kept = mem_alloc_n(n_batch, sizeof *kept);
    float *distances = mem_alloc_n(n_batch, sizeof *distances);
    if (!slots || !codes || !kept || !distances) {
        mem_free(slots);
        mem_free(codes);
        mem_free(kept);
        mem_free(distances);
        return err_set(e, KITH_ENOMEM, "out of memory for a batch of %zu links", n_batch);
    }
    mem_free(s->slots);
    mem_free(s->codes);
    mem_free(s->kept);
    mem_free(s->distances);
    s->slots = slots;
    s->codes = codes;
    s->kept = kept;
    s->distances = distances;
    s->n_batch = n_batch;
    return 0;
}

int scratch_visit_none(struct index_scratch *s, size_t n, struct err *e)
{
    if (n > s->n_stamps) {
        size_t want = s->n_stamps * 2 > n ? s->n_stamps * 2 : n;
        uint8_t *stamp = mem_realloc(s->stamp, want);
        if (!stamp)
            return err_set(e, KITH_ENOMEM, "out of memory for a visited set of %zu", want);
        s->stamp = stamp;
        s->n_stamps = want;
        s->generation = UINT8_MAX;
    }
    if (s->generation == UINT8_MAX) {
        memset(s->stamp, 0, s->n_stamps);
        s->generation = 0;
    }
    s->generation++;
    return 0;
}
