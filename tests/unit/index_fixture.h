#pragma once
/* An index with its arrays and lock, as an owner would keep it, for the tests of the index
 * room. */

#include <math.h>
#include <string.h>

#include "base/epoch.h"
#include "base/mem.h"
#include "index/index.h"
#include "tests/unit/unit.h"

/* Sanitizers slow the kernels down most of all, and an emulated processor everything, so their
 * builds take smaller sets: what they look for does not need the size, what recall needs is
 * measured in the release build. */
#if defined(__SANITIZE_THREAD__)
enum { SHRINK = 20 };
#elif defined(__SANITIZE_ADDRESS__) || defined(KITH_EMULATED)
enum { SHRINK = 5 };
#else
enum { SHRINK = 1 };
#endif

struct fixture {
    struct index_params params;
    struct index_arrays arrays;
    struct index_options options;
    pthread_mutex_t lock;
    struct index *index;
    struct index_scratch *scratch;
    uint32_t *freed; /* slots handed back, in order */
    uint32_t n_freed;
    uint32_t n;
};

static inline void fixture_slot_free(void *arg, uint32_t slot)
{
    struct fixture *f = arg;
    f->freed[f->n_freed++] = slot;
}

static inline void fixture_open_as(struct fixture *f, const struct index_params *params,
                                   uint32_t n)
{
    struct err e = {0};
    *f = (struct fixture){.params = *params, .n = n};
    pthread_mutex_init(&f->lock, NULL);
    f->freed = malloc(n * sizeof *f->freed);
    f->options =
        (struct index_options){.owner = &f->lock, .on_slot_free = fixture_slot_free, .arg = f};
    f->arrays.codes = records_heap_new(index_code_stride(&f->params));
    if (params->kind == INDEX_HNSW) {
        f->arrays.links = records_heap_new(index_links_stride(&f->params));
        f->arrays.upper = records_heap_new(index_upper_stride(&f->params));
        assert_int_equal(records_grow(f->arrays.links, n, &e), 0);
    }
    assert_int_equal(records_grow(f->arrays.codes, n, &e), 0);
    assert_int_equal(index_open(&f->index, &f->params, &f->arrays, &f->options, NULL, 0, &e),
                     0);
    f->scratch = index_scratch_new();
}

static inline void fixture_open(struct fixture *f, enum index_kind kind, enum index_quant quant,
                                uint32_t dim, uint32_t m, uint32_t ef_construction, uint32_t n)
{
    struct index_params p = {kind, quant, INDEX_COSINE, dim, m, ef_construction};
    fixture_open_as(f, &p, n);
}

static inline void fixture_close(struct fixture *f)
{
    index_free(f->index);
    index_scratch_free(f->scratch);
    records_heap_free(f->arrays.codes);
    records_heap_free(f->arrays.links);
    records_heap_free(f->arrays.upper);
    pthread_mutex_destroy(&f->lock);
    free(f->freed);
    epoch_collect();
}

static inline void fixture_reopen(struct fixture *f)
{
    struct buf state;
    struct err e = {0};
    buf_init(&state);
    pthread_mutex_lock(&f->lock);
    index_save(f->index, &state);
    pthread_mutex_unlock(&f->lock);
    assert_false(state.failed);
    index_free(f->index);
    int rc =
        index_open(&f->index, &f->params, &f->arrays, &f->options, state.data, state.len, &e);
    if (rc != 0)
        fail_msg("reopen: %s", e.message);
    buf_deinit(&state);
}

static inline int fixture_add(struct fixture *f, uint32_t slot, const float *v)
{
    struct err e;
    pthread_mutex_lock(&f->lock);
    int rc = index_add(f->index, slot, v, slot, &e);
    pthread_mutex_unlock(&f->lock);
    return rc;
}

static inline int fixture_remove(struct fixture *f, uint32_t slot)
{
    struct err e;
    pthread_mutex_lock(&f->lock);
    int rc = index_remove(f->index, slot, &e);
    pthread_mutex_unlock(&f->lock);
    return rc;
}

static inline void fixture_link_all(struct fixture *f)
{
    struct err e = {0};
    int rc;
    while ((rc = index_link(f->index, f->scratch, &e)) > 0)
        ;
    if (rc < 0)
        fail_msg("link: %s", e.message);
    assert_false(index_link_pending(f->index));
}

static inline int64_t fixture_search(struct fixture *f, const struct index_query *q,
                                     struct index_hit *hits)
{
    struct err e = {0};
    epoch_enter();
    int64_t n = index_search(f->index, f->scratch, q, hits, &e);
    epoch_exit();
    return n;
}

static inline void fixture_note(void *arg, uint32_t slot, const char *what)
{
    (void)arg;
    print_message("slot %u %s\n", slot, what);
}

static inline void fixture_check(struct fixture *f)
{
    struct err e = {0};
    assert_int_equal(index_check(f->index, fixture_note, NULL, &e), 0);
}

/* --- vectors --- */

static inline float gauss(struct rng *r)
{
    double u = 1 - rng_unit(r), v = rng_unit(r);
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

/* n x dim, row-major. spread 0: N(0,1)^dim; else around one of n_centres. */
static inline float *vectors(struct rng *r, uint32_t n, uint32_t dim, uint32_t n_centres)
{
    float *x = malloc((size_t)n * dim * sizeof *x);
    float *centres = malloc((size_t)(n_centres + 1) * dim * sizeof *centres);
    for (size_t i = 0; i < (size_t)n_centres * dim; i++)
        centres[i] = gauss(r);
    for (uint32_t i = 0; i < n; i++) {
        size_t c = n_centres ? rng_below(r, n_centres) : 0;
        for (uint32_t d = 0; d < dim; d++)
            x[(size_t)i * dim + d] =
                n_centres ? centres[c * dim + d] + 0.5f * gauss(r) : gauss(r);
    }
    free(centres);
    return x;
}

/* The share of the exact nearest k that the graph finds. */
static inline double recall_of(struct fixture *f, const float *queries, uint32_t n_queries,
                               uint32_t k, uint32_t ef)
{
    struct index_hit *a = malloc(k * sizeof *a), *b = malloc(k * sizeof *b);
    uint32_t found = 0, total = 0;
    for (uint32_t i = 0; i < n_queries; i++) {
        struct index_query q = {
            .vector = queries + (size_t)i * f->params.dim, .k = k, .ef = ef};
        int64_t n = fixture_search(f, &q, a);
        q.exact = true;
        int64_t m = fixture_search(f, &q, b);
        assert_true(n >= 0 && m >= 0);
        for (int64_t x = 0; x < n; x++)
            for (int64_t y = 0; y < m; y++)
                found += a[x].slot == b[y].slot;
        total += (uint32_t)m;
    }
    free(a);
    free(b);
    return total ? (double)found / total : 1;
}
