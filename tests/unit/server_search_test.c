/* The searches of a vector set against a plain model: every metric, full vectors kept or not,
 * filters of every share, elements whose time has come, pages, radius, several vectors; and
 * under updates. */
#include "tests/unit/unit_dir.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/mem.h"
#include "index/vectors.h"
#include "server/filter.h"
#include "server/search_memo.h"
#include "server/vset_search.h"

/* Sanitizers slow a scan down most of all. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { N = 600, ROUNDS = 30, UPDATES = 1500 };
#else
enum { N = 3000, ROUNDS = 150, UPDATES = 8000 };
#endif
enum { DIM = 12, NOW_MS = 1000 };

struct element {
    bool exists, has_attributes;
    float vector[DIM];
    uint32_t u; /* the attribute: below 10,000 */
    int64_t expire_ms;
};

struct world {
    char dir[64];
    struct store *store;
    struct vset_params params;
    struct vset *v;
    struct index_scratch *scratch;
    struct arena arena;
    struct rng r;
    struct element all[N];
};

static void nothing(void *arg, struct vset *v)
{
    (void)arg;
    (void)v;
}

static struct slice text(const char *s)
{
    return (struct slice){s, strlen(s)};
}

static struct slice name_of(uint32_t i, char out[16])
{
    return (struct slice){out, (size_t)snprintf(out, 16, "e%u", i)};
}

static float gauss(struct rng *r)
{
    double u = 1 - rng_unit(r), v = rng_unit(r);
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static void put(struct world *w, uint32_t i)
{
    struct element *x = &w->all[i];
    char name[16], json[32];
    struct slice attributes =
        x->has_attributes ? (struct slice){json, (size_t)snprintf(json, 32, "{\"u\":%u}", x->u)}
                          : (struct slice){"", 0};
    struct vset_element element = {.name = name_of(i, name),
                                   .vector = x->vector,
                                   .attributes = x->has_attributes ? &attributes : NULL,
                                   .expire_ms = x->expire_ms};
    bool added;
    struct err e;
    assert_int_equal(vset_add(w->v, &element, &added, &e), 0);
    x->exists = true;
}

static void link_all(struct world *w)
{
    struct err e;
    int rc;
    while ((rc = vset_link(w->v, w->scratch, &e)) > 0)
        ;
    assert_int_equal(rc, 0);
}

static void random_vector(struct world *w, float *out)
{
    for (int d = 0; d < DIM; d++)
        out[d] = gauss(&w->r);
}

static void fill(struct world *w)
{
    for (uint32_t i = 0; i < N; i++) {
        struct element *x = &w->all[i];
        random_vector(w, x->vector);
        x->u = (uint32_t)rng_below(&w->r, 10000);
        x->has_attributes = rng_below(&w->r, 20) != 0;
        x->expire_ms =
            rng_below(&w->r, 10) == 0 ? (int64_t)rng_below(&w->r, 2 * NOW_MS) + 1 : 0;
        put(w, i);
        if (i % 5 != 0)
            link_all(w); /* so that some of the last stay in the tail */
    }
}

static void world_open(struct world *w, enum index_quant quant, enum index_metric metric,
                       enum vset_keep keep)
{
    struct err e;
    memset(w, 0, sizeof *w);
    rng_seed(&w->r, unit_seed());
    unit_dir_make(w->dir);
    assert_int_equal(store_open(&w->store, w->dir, &(struct store_options){0}, &e), 0);
    struct vset_options options = {
        .store = w->store, .tail_max = 4096, .on_work = nothing, .on_dirty = nothing};
    w->params = (struct vset_params){.index = {.kind = INDEX_HNSW,
                                               .quant = quant,
                                               .metric = metric,
                                               .dim = DIM,
                                               .m = 16,
                                               .ef_construction = 100},
                                     .keep = keep,
                                     .declared = true};
    w->scratch = index_scratch_new();
    arena_init(&w->arena);
    assert_int_equal(vset_new(&w->v, 1, &w->params, NULL, &options, &e), 0);
    fill(w);
}

static void world_close(struct world *w)
{
    vset_unref(w->v);
    epoch_synchronize();
    store_close(w->store);
    index_scratch_free(w->scratch);
    arena_deinit(&w->arena);
    unit_remove(w->dir);
}

/* --- asking --- */

static struct vset_query question(const float *vector)
{
    return (struct vset_query){.vectors = vector,
                               .n_vectors = 1,
                               .count = 10,
                               .ef = 100,
                               .now_ms = NOW_MS,
                               .has_expired = true};
}

static void ask(struct world *w, const struct vset_query *q, struct vset_answer *a)
{
    struct err e = {0};
    int rc = vset_search(w->v, q, w->scratch, &w->arena, a, &e);
    if (rc != 0)
        fail_msg("search: %d %s", rc, e.message);
}

static uint32_t found(const struct vset_answer *a, uint32_t i)
{
    const char *name = a->text.data + a->found[i].name_at;
    assert_int_equal(name[0], 'e');
    char digits[16] = {0};
    assert_true(a->found[i].name_bytes < sizeof digits);
    memcpy(digits, name + 1, a->found[i].name_bytes - 1);
    return (uint32_t)strtoul(digits, NULL, 10);
}

static bool alive(const struct world *w, uint32_t i)
{
    const struct element *x = &w->all[i];
    return x->exists && (x->expire_ms == 0 || x->expire_ms > NOW_MS);
}

static bool passes(const struct world *w, uint32_t i, uint32_t below)
{
    return alive(w, i) && w->all[i].has_attributes && w->all[i].u < below;
}

static double true_score(const struct world *w, const float *query, uint32_t i)
{
    enum index_metric m = w->params.index.metric;
    return vset_score(m, vector_distance(m, query, w->all[i].vector, DIM));
}

/* In order, alive, each once; every score near the true one. */
static void check_answer(const struct world *w, const float *query, const struct vset_answer *a,
                         double tolerance)
{
    static uint8_t seen[N];
    memset(seen, 0, sizeof seen);
    for (uint32_t i = 0; i < a->n; i++) {
        uint32_t x = found(a, i);
        assert_true(x < N && alive(w, x) && !seen[x]);
        seen[x] = 1;
        assert_true(i == 0 || a->found[i - 1].score >= a->found[i].score);
        if (query)
            assert_true(fabs(a->found[i].score - true_score(w, query, x)) <= tolerance);
    }
}

/* How many elements are better than this score by more than the tolerance. */
static uint32_t better(const struct world *w, const float *query, double score, uint32_t below,
                       double tolerance)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < N; i++)
        n += (below ? passes(w, i, below) : alive(w, i)) &&
             true_score(w, query, i) > score + tolerance;
    return n;
}

static uint32_t how_many(const struct world *w, uint32_t below)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < N; i++)
        n += below ? passes(w, i, below) : alive(w, i);
    return n;
}

/* --- tests --- */

static void check_truth(enum index_quant quant, enum index_metric metric, enum vset_keep keep,
                        double tolerance)
{
    struct world *w = mem_calloc(1, sizeof *w);
    float query[DIM];
    world_open(w, quant, metric, keep);
    for (int round = 0; round < ROUNDS; round++) {
        struct vset_answer a;
        random_vector(w, query);
        struct vset_query q = question(query);
        q.exact = true;
        q.count = 1 + (uint32_t)rng_below(&w->r, 30);
        ask(w, &q, &a);
        assert_int_equal(a.n, q.count);
        check_answer(w, query, &a, tolerance);
        assert_true(better(w, query, a.found[a.n - 1].score, 0, 2 * tolerance) < q.count);
        vset_answer_deinit(&a);
        arena_reset(&w->arena);
    }
    world_close(w);
    mem_free(w);
}

static void test_truth_is_exact(void **state)
{
    (void)state;
    check_truth(INDEX_F32, INDEX_COSINE, VSET_KEEP_NONE, 1e-5);
    check_truth(INDEX_F32, INDEX_L2, VSET_KEEP_NONE, 1e-4);
    check_truth(INDEX_F32, INDEX_IP, VSET_KEEP_NONE, 1e-4);
    check_truth(INDEX_INT8, INDEX_COSINE, VSET_KEEP_F32, 1e-6);
    check_truth(INDEX_BIN, INDEX_L2, VSET_KEEP_F32, 1e-6);
    check_truth(INDEX_INT8, INDEX_IP, VSET_KEEP_F16, 3e-2);
}

static void test_rescoring_orders_by_full_vectors(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    float query[DIM];
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_F32);
    for (int round = 0; round < ROUNDS; round++) {
        struct vset_answer a;
        random_vector(w, query);
        struct vset_query q = question(query);
        q.rescore = 40;
        ask(w, &q, &a);
        assert_int_equal(a.n, 10);
        check_answer(w, query, &a, 1e-6);
        assert_true(better(w, query, a.found[9].score, 0, 0) <= 10);
        vset_answer_deinit(&a);
        arena_reset(&w->arena);
    }
    world_close(w);
    mem_free(w);
}

/* As many as there are, up to count, whatever the share, how often it was asked, and the bound
 * on the walk; and nearly always the right ones. */
static void test_a_filter_returns_what_there_is(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    static const uint32_t belows[] = {9000, 5000, 2000, 500, 100, 30, 3, 1};
    float query[DIM];
    uint64_t n_right = 0, n_all = 0;
    world_open(w, INDEX_F32, INDEX_COSINE, VSET_KEEP_NONE);
    for (int round = 0; round < ROUNDS * 4; round++) {
        uint32_t below = belows[rng_below(&w->r, 8)];
        char expression[32];
        struct err e;
        struct filter *filter;
        struct vset_answer a;
        snprintf(expression, sizeof expression, ".u < %u", below);
        assert_int_equal(filter_compile(&filter, text(expression), &e), 0);
        random_vector(w, query);
        struct vset_query q = question(query);
        q.filter = filter;
        q.filter_text = text(expression);
        q.count = 1 + (uint32_t)rng_below(&w->r, 40);
        q.filter_ef = rng_below(&w->r, 2) ? q.count + (uint32_t)rng_below(&w->r, 2000) : 0;
        q.exact = rng_below(&w->r, 8) == 0;
        ask(w, &q, &a);
        uint32_t there = how_many(w, below);
        assert_int_equal(a.n, q.count < there ? q.count : there);
        check_answer(w, query, &a, 1e-5);
        for (uint32_t i = 0; i < a.n; i++)
            assert_true(passes(w, found(&a, i), below));
        if (a.n) {
            uint32_t worse = better(w, query, a.found[a.n - 1].score, below, 1e-5);
            n_all += a.n;
            n_right += worse < a.n ? a.n : a.n - (worse - a.n);
        }
        /* A change of attributes counts at once, also where bits were kept. */
        uint32_t i = (uint32_t)rng_below(&w->r, N);
        if (rng_below(&w->r, 20) == 0) {
            char name[16], json[32];
            w->all[i].u = (uint32_t)rng_below(&w->r, 10000);
            w->all[i].has_attributes = true;
            snprintf(json, sizeof json, "{\"u\":%u}", w->all[i].u);
            assert_int_equal(vset_set_attributes(w->v, name_of(i, name), text(json), &e), 0);
        }
        vset_answer_deinit(&a);
        filter_free(filter);
        arena_reset(&w->arena);
    }
    assert_true((double)n_right >= 0.95 * (double)n_all);
    world_close(w);
    mem_free(w);
}

/* A bound below count: of the 7 nearest those that match, and they alone. */
static void test_a_bound_below_count_bounds_the_answer(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    struct filter *filter;
    struct err e;
    float query[DIM];
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_NONE);
    assert_int_equal(filter_compile(&filter, text(".u < 5000"), &e), 0);
    for (int round = 0; round < ROUNDS; round++) {
        struct vset_answer near, matching;
        random_vector(w, query);
        struct vset_query q = question(query);
        q.count = 7;
        ask(w, &q, &near);
        q.count = 10;
        q.filter = filter;
        q.filter_text = text(".u < 5000");
        q.filter_ef = 7;
        ask(w, &q, &matching);
        uint32_t n = 0;
        for (uint32_t i = 0; i < near.n; i++) {
            if (!passes(w, found(&near, i), 5000))
                continue;
            assert_true(n < matching.n);
            assert_int_equal(near.found[i].slot, matching.found[n++].slot);
        }
        assert_int_equal(n, matching.n);
        vset_answer_deinit(&near);
        vset_answer_deinit(&matching);
        arena_reset(&w->arena);
    }
    filter_free(filter);
    world_close(w);
    mem_free(w);
}

static void test_bits_are_made_and_dropped(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    struct filter *filter;
    struct vset_answer a;
    struct err e;
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_NONE);
    assert_int_equal(filter_compile(&filter, text(".u < 100"), &e), 0);
    struct vset_query q = question(w->all[0].vector);
    q.filter = filter;
    q.filter_text = text(".u < 100");
    q.exact = true;
    for (int round = 0; round < 3; round++) {
        ask(w, &q, &a);
        assert_int_equal(a.account.used_bits, round == 1);
        assert_true(round != 1 || a.account.n_visits < N / 10);
        vset_answer_deinit(&a);
        if (round == 1)
            put(w, 1);
    }
    filter_free(filter);
    world_close(w);
    mem_free(w);
}

static void check_pages(struct world *w, struct vset_query q, uint32_t page, uint32_t total)
{
    static uint8_t seen[N];
    uint32_t n = 0;
    memset(seen, 0, sizeof seen);
    q.paged = true;
    q.count = page;
    for (q.offset = 0; q.offset < total; q.offset += page) {
        struct vset_answer a;
        ask(w, &q, &a);
        for (uint32_t i = 0; i < a.n; i++) {
            uint32_t x = found(&a, i);
            assert_false(seen[x]);
            seen[x] = 1;
        }
        n += a.n;
        assert_true(a.n == page || q.offset + page >= total);
        vset_answer_deinit(&a);
        arena_reset(&w->arena);
    }
    assert_true(n >= total);
}

static void test_pages_do_not_overlap(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    float query[3 * DIM];
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_F16);
    link_all(w);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 3; i++)
            random_vector(w, query + i * DIM);
        struct vset_query q = question(query);
        q.ef = 20; /* so that walks differ as they get longer */
        check_pages(w, q, 7, 200);
        check_pages(w, q, 40, how_many(w, 0));
        q.has_mmr = true;
        q.mmr = 0.6;
        check_pages(w, q, 6, 60);
        q.has_mmr = false;
        q.rescore = 28;
        check_pages(w, q, 7, 150);
        q.rescore = 0;
        q.n_vectors = 3;
        check_pages(w, q, 7, 150);
        q.combine = VSET_COMBINE_AVG;
        check_pages(w, q, 7, 100);
    }
    world_close(w);
    mem_free(w);
}

static void test_filtered_pages_do_not_overlap(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    float query[DIM];
    struct filter *filter;
    struct err e;
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_NONE);
    assert_int_equal(filter_compile(&filter, text(".u < 7000"), &e), 0);
    for (int round = 0; round < 5; round++) {
        random_vector(w, query);
        struct vset_query q = question(query);
        q.ef = 10;
        q.filter = filter;
        q.filter_text = text(".u < 7000");
        check_pages(w, q, 9, how_many(w, 7000));
        put(w, 3); /* the bits are gone */
    }
    filter_free(filter);
    world_close(w);
    mem_free(w);
}

static int compare_scores(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x > y ? -1 : x < y;
}

/* Of all distances there are, the one at this rank or the first after it behind which there is
 * room: n elements are nearer, each counted (two may be equally near). */
static double radius_of(struct world *w, const float *query, uint32_t rank, uint32_t *n)
{
    enum index_metric m = w->params.index.metric;
    static double scores[N];
    uint32_t n_alive = 0;
    for (uint32_t i = 0; i < N; i++)
        if (alive(w, i))
            scores[n_alive++] = true_score(w, query, i);
    qsort(scores, n_alive, sizeof *scores, compare_scores);
    while (scores[rank - 1] - scores[rank] <= 1e-4)
        rank++;
    double middle = (scores[rank - 1] + scores[rank]) / 2;
    *n = rank;
    return m == INDEX_COSINE ? 2 * (1 - middle) : m == INDEX_L2 ? 1 / middle - 1 : middle;
}

static void check_radius(enum index_metric metric, enum vset_keep keep)
{
    struct world *w = mem_calloc(1, sizeof *w);
    float query[DIM];
    world_open(w, INDEX_F32, metric, keep);
    for (int round = 0; round < 8; round++) {
        struct vset_answer a;
        uint32_t n;
        random_vector(w, query);
        struct vset_query q = question(query);
        q.has_radius = true;
        q.radius = radius_of(w, query, 1 + (uint32_t)rng_below(&w->r, 60), &n);
        q.count = 0;
        q.exact = round % 2;
        q.rescore = keep != VSET_KEEP_NONE && !q.exact;
        ask(w, &q, &a);
        check_answer(w, query, &a, 1e-4);
        if (q.exact)
            assert_int_equal(a.n, n);
        assert_true(a.n <= n && a.n + 1 + n / 20 >= n);
        vset_answer_deinit(&a);
        q.count = 3;
        ask(w, &q, &a);
        assert_int_equal(a.n, n < 3 ? n : 3);
        vset_answer_deinit(&a);
        arena_reset(&w->arena);
    }
    world_close(w);
    mem_free(w);
}

static void test_radius_finds_all_that_are_near(void **state)
{
    (void)state;
    check_radius(INDEX_COSINE, VSET_KEEP_NONE);
    check_radius(INDEX_COSINE, VSET_KEEP_F32);
    check_radius(INDEX_L2, VSET_KEEP_NONE);
    check_radius(INDEX_IP, VSET_KEEP_NONE);
}

/* 64 vectors, so that the scan leaves its bracket on a small set already. */
static void test_the_mean_score_of_many_vectors(void **state)
{
    (void)state;
    enum { VECTORS = 64 };
    struct world *w = mem_calloc(1, sizeof *w);
    static float queries[VECTORS * DIM];
    struct vset_answer a;
    world_open(w, INDEX_F32, INDEX_COSINE, VSET_KEEP_NONE);
    for (int i = 0; i < VECTORS; i++)
        random_vector(w, queries + i * DIM);
    struct vset_query q = question(queries);
    q.n_vectors = VECTORS;
    q.combine = VSET_COMBINE_AVG;
    q.exact = true;
    q.ef = N; /* every element is a candidate */
    ask(w, &q, &a);
    assert_int_equal(a.n, 10);
    double worst = 0;
    for (uint32_t i = 0; i < a.n; i++) {
        double sum = 0;
        for (int j = 0; j < VECTORS; j++)
            sum += true_score(w, queries + j * DIM, found(&a, i));
        worst = sum / VECTORS;
        assert_true(fabs(worst - a.found[i].score) < 1e-5);
    }
    uint32_t n_better = 0;
    for (uint32_t i = 0; i < N; i++) {
        double sum = 0;
        for (int j = 0; j < VECTORS; j++)
            sum += true_score(w, queries + j * DIM, i);
        n_better += alive(w, i) && sum / VECTORS > worst + 1e-5;
    }
    assert_true(n_better <= 9);
    vset_answer_deinit(&a);
    world_close(w);
    mem_free(w);
}

static void test_names_are_excluded(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    struct vset_answer first, second;
    struct slice names[5];
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_NONE);
    struct vset_query q = question(w->all[7].vector);
    q.exact = true;
    q.count = 15;
    ask(w, &q, &first);
    for (uint32_t i = 0; i < 5; i++)
        names[i] = (struct slice){first.text.data + first.found[2 * i].name_at,
                                  first.found[2 * i].name_bytes};
    q.exclude = names;
    q.n_exclude = 5;
    q.count = 10;
    ask(w, &q, &second);
    assert_int_equal(second.n, 10);
    for (uint32_t i = 0, j = 0; i < 10; i++, j++) {
        while (j % 2 == 0 && j < 10)
            j++;
        assert_int_equal(second.found[i].slot, first.found[j].slot);
    }
    vset_answer_deinit(&first);
    vset_answer_deinit(&second);
    world_close(w);
    mem_free(w);
}

static void test_attributes_come_along(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    struct vset_answer a;
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_NONE);
    struct vset_query q = question(w->all[7].vector);
    q.with_attributes = true;
    q.count = 200;
    ask(w, &q, &a);
    assert_int_equal(a.n, 200);
    for (uint32_t i = 0; i < a.n; i++) {
        const struct vset_found *f = &a.found[i];
        char json[32];
        const struct element *x = &w->all[found(&a, i)];
        assert_int_equal(f->has_attributes, x->has_attributes);
        snprintf(json, sizeof json, "{\"u\":%u}", x->u);
        if (f->has_attributes)
            assert_true(slice_equal(text(json), (struct slice){a.text.data + f->attributes_at,
                                                               f->attributes_bytes}));
    }
    vset_answer_deinit(&a);
    world_close(w);
    mem_free(w);
}

static void test_a_search_without_memory_says_so(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    float queries[2 * DIM];
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_F32);
    random_vector(w, queries);
    random_vector(w, queries + DIM);
    struct vset_query q = question(queries);
    q.n_vectors = 2;
    q.rescore = 400;
    q.count = 100;
    q.has_mmr = true;
    q.mmr = 0.5;
    int failed = 0;
    for (long n = 1;; n++) {
        struct vset_answer a;
        struct err e = {0};
        arena_deinit(&w->arena);
        arena_init(&w->arena);
        mem_fail_after(n);
        int rc = vset_search(w->v, &q, w->scratch, &w->arena, &a, &e);
        mem_fail_after(0);
        vset_answer_deinit(&a);
        if (rc == 0)
            break;
        assert_int_equal(rc, KITH_ENOMEM);
        assert_true(e.message[0] != '\0');
        failed++;
    }
    assert_true(failed > 3);
    world_close(w);
    mem_free(w);
}

/* --- under updates --- */

static _Atomic bool done;
static _Atomic uint32_t n_searches;

struct searcher {
    struct world *w;
    uint64_t seed;
    uint32_t n_misses, n_doubles, n_short, n_overtaken;
};

/* The elements below FIXED are updated all the time and never removed, with the same vector. */
enum { FIXED = 50, SEARCHERS = 2, SEARCHES_LEAST = 300 };

static void search_once(struct searcher *s, struct rng *r, struct index_scratch *scratch,
                        struct arena *arena, const struct filter *filter)
{
    uint32_t target = (uint32_t)rng_below(r, FIXED);
    float queries[20 * DIM];
    for (int i = 0; i < 20; i++)
        memcpy(queries + i * DIM, s->w->all[target].vector, DIM * sizeof *queries);
    struct vset_query q = question(queries);
    struct vset_answer a;
    struct err e = {0};
    q.exact = rng_below(r, 2);
    if (q.exact && rng_below(r, 3) == 0)
        q.n_vectors = 20; /* long enough to leave its bracket */
    if (rng_below(r, 2)) {
        q.filter = filter;
        q.filter_text = text(".u >= 0");
    }
    q.count = 5;
    q.combine = VSET_COMBINE_MAX;
    int rc = vset_search(s->w->v, &q, scratch, arena, &a, &e);
    bool met = false;
    for (uint32_t i = 0; rc == 0 && i < a.n; i++) {
        met |= found(&a, i) == target;
        for (uint32_t j = 0; j < i; j++)
            s->n_doubles += found(&a, i) == found(&a, j);
    }
    n_searches++;
    s->n_misses += rc != 0 || !met;
    s->n_short += a.n < q.count;
    s->n_overtaken += a.account.overtaken;
    vset_answer_deinit(&a);
    arena_reset(arena);
}

static void *searcher_main(void *arg)
{
    struct searcher *s = arg;
    struct index_scratch *scratch = index_scratch_new();
    struct filter *filter;
    struct arena arena;
    struct rng r;
    struct err e;
    rng_seed(&r, s->seed);
    arena_init(&arena);
    if (filter_compile(&filter, text(".u >= 0"), &e) == 0) {
        while (!done)
            search_once(s, &r, scratch, &arena, filter);
        filter_free(filter);
    }
    arena_deinit(&arena);
    index_scratch_free(scratch);
    return NULL;
}

static void *linker_main(void *arg)
{
    struct world *w = arg;
    struct index_scratch *scratch = index_scratch_new();
    struct err e;
    while (!done)
        if (vset_link(w->v, scratch, &e) <= 0)
            clock_sleep_us(20);
    index_scratch_free(scratch);
    return NULL;
}

/* Elements are updated, removed, added and given attributes; who is there all the time is in
 * every answer that it must be in, and once. */
static void test_updates_hide_nobody(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    world_open(w, INDEX_INT8, INDEX_COSINE, VSET_KEEP_NONE);
    pthread_t threads[SEARCHERS], linker;
    struct searcher searchers[SEARCHERS] = {0};
    struct err e;
    for (uint32_t i = 0; i < FIXED; i++) {
        w->all[i].has_attributes = true;
        w->all[i].expire_ms = 0;
        put(w, i);
    }
    done = false;
    n_searches = 0;
    assert_int_equal(pthread_create(&linker, NULL, linker_main, w), 0);
    for (int i = 0; i < SEARCHERS; i++) {
        searchers[i].w = w;
        searchers[i].seed = rng_next(&w->r);
        assert_int_equal(pthread_create(&threads[i], NULL, searcher_main, &searchers[i]), 0);
    }
    for (int i = 0; i < UPDATES || n_searches < SEARCHES_LEAST; i++) {
        char name[16], json[32];
        uint32_t x = (uint32_t)rng_below(&w->r, FIXED), y = FIXED;
        y += (uint32_t)rng_below(&w->r, N - FIXED);
        put(w, x);
        if (i % 4 == 0 && w->all[y].exists) {
            assert_int_equal(vset_remove(w->v, name_of(y, name), &e), 0);
            w->all[y].exists = false;
        } else if (i % 4 == 1) {
            random_vector(w, w->all[y].vector);
            put(w, y);
        } else if (i % 4 == 2) {
            snprintf(json, sizeof json, "{\"u\":%d}", i);
            assert_int_equal(vset_set_attributes(w->v, name_of(x, name), text(json), &e), 0);
        }
    }
    done = true;
    uint32_t n_overtaken = 0;
    for (int i = 0; i < SEARCHERS; i++) {
        pthread_join(threads[i], NULL);
        n_overtaken += searchers[i].n_overtaken;
        assert_int_equal(searchers[i].n_misses, 0);
        assert_int_equal(searchers[i].n_doubles, 0);
        assert_int_equal(searchers[i].n_short, 0);
    }
    pthread_join(linker, NULL);
    printf("%u searches, %u overtaken by updates\n", (uint32_t)n_searches, n_overtaken);
    world_close(w);
    mem_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truth_is_exact),
        cmocka_unit_test(test_rescoring_orders_by_full_vectors),
        cmocka_unit_test(test_a_filter_returns_what_there_is),
        cmocka_unit_test(test_a_bound_below_count_bounds_the_answer),
        cmocka_unit_test(test_bits_are_made_and_dropped),
        cmocka_unit_test(test_pages_do_not_overlap),
        cmocka_unit_test(test_filtered_pages_do_not_overlap),
        cmocka_unit_test(test_radius_finds_all_that_are_near),
        cmocka_unit_test(test_the_mean_score_of_many_vectors),
        cmocka_unit_test(test_names_are_excluded),
        cmocka_unit_test(test_attributes_come_along),
        cmocka_unit_test(test_a_search_without_memory_says_so),
        cmocka_unit_test(test_updates_hide_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
