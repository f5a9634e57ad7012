/* Random operations against a model that is an array of vectors: what is there, what the exact
 * search must answer, what a reopen must keep. And what must not hurt: memory that runs out at
 * any allocation, records full of noise, states that do not fit. */
#include "tests/unit/index_fixture.h"

enum { SEED = 90125 };

static struct rng rng;

struct model {
    bool *there;
    float *v; /* by slot */
    uint32_t n, dim, count;
};

static void model_init(struct model *m, uint32_t n, uint32_t dim)
{
    *m = (struct model){calloc(n, sizeof(bool)), calloc((size_t)n * dim, sizeof(float)), n, dim,
                        0};
}

static void model_deinit(struct model *m)
{
    free(m->there);
    free(m->v);
}

static double cosine(const float *a, const float *b, uint32_t dim)
{
    double dot = 0, aa = 0, bb = 0;
    for (uint32_t i = 0; i < dim; i++) {
        dot += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return aa > 0 && bb > 0 ? dot / sqrt(aa * bb) : 0;
}

static double sign_cosine(const float *a, const float *b, uint32_t dim)
{
    uint32_t differ = 0;
    for (uint32_t i = 0; i < dim; i++)
        differ += (a[i] > 0) != (b[i] > 0);
    return 1 - 2.0 * differ / dim;
}

static double length(const float *a, uint32_t dim)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++)
        sum += (double)a[i] * (double)a[i];
    return sqrt(sum);
}

/* How far a distance may be from that of the vectors themselves. */
static double tolerance(const struct index_params *p, const float *a, const float *b)
{
    static const double of_cosine[] = {
        [INDEX_F32] = 1e-5, [INDEX_INT8] = 0.03, [INDEX_F16] = 1e-3, [INDEX_BIN] = 1e-5};
    double n = length(a, p->dim), m = length(b, p->dim);
    return of_cosine[p->quant] * (p->metric == INDEX_COSINE ? 1 : (n + m) * (n + m));
}

static double distance(const struct index_params *p, const float *a, const float *b)
{
    double n = length(a, p->dim), m = length(b, p->dim);
    double c = p->quant == INDEX_BIN ? sign_cosine(a, b, p->dim) : cosine(a, b, p->dim);
    return p->metric == INDEX_COSINE ? 1 - c
           : p->metric == INDEX_L2   ? n * n + m * m - 2 * n * m * c
                                     : -n * m * c;
}

static int compare(const void *a, const void *b)
{
    const struct index_hit *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

/* index_distances must say of each hit what the search said, and NAN of all that is not there.
 */
static void check_distances(struct fixture *f, const float *query, const struct index_hit *hits,
                            uint32_t n)
{
    uint32_t n_all = f->n + 5, *slots = malloc(n_all * sizeof *slots);
    float *all = malloc(n_all * sizeof *all);
    struct index_query q = {.vector = query};
    struct err e;
    assert_int_equal(index_slots(f->index), f->n);
    for (uint32_t i = 0; i < n_all; i++)
        slots[i] = n_all - 1 - i;
    epoch_enter();
    assert_int_equal(index_distances(f->index, f->scratch, &q, slots, n_all, all, &e), 0);
    epoch_exit();
    uint32_t there = 0;
    for (uint32_t i = 0; i < n_all; i++)
        there += isnan(all[i]) ? 0 : 1;
    struct index_info info = index_info(f->index);
    assert_int_equal(there, info.n_linked + info.n_tail);
    for (uint32_t i = 0; i < n; i++)
        assert_true(all[n_all - 1 - hits[i].slot] == hits[i].distance);
    free(slots);
    free(all);
}

/* The exact search must give the model's nearest, in order, within rounding; the graph's hits
 * must be there, and be right about their distances. Returns the share it found. */
static double check_search(struct fixture *f, const struct model *m, uint32_t k)
{
    struct index_hit *truth = malloc(m->n * sizeof *truth),
                     *hits = malloc((k + 1) * sizeof *hits);
    struct index_hit *exact = malloc((k + 1) * sizeof *exact);
    float query[64];
    uint32_t n = 0, found = 0, expected = m->count < k ? m->count : k;
    for (uint32_t i = 0; i < m->dim; i++)
        query[i] = gauss(&rng);
    for (uint32_t s = 0; s < m->n; s++)
        if (m->there[s])
            truth[n++] = (struct index_hit){
                s, (float)distance(&f->params, query, m->v + (size_t)s * m->dim)};
    qsort(truth, n, sizeof *truth, compare);
    struct index_query q = {.vector = query, .k = k, .ef = 100, .exact = true};
    assert_int_equal(fixture_search(f, &q, exact), expected);
    q.exact = false;
    int64_t got = fixture_search(f, &q, hits);
    assert_true(got >= 0 && got <= (int64_t)expected);
    for (uint32_t i = 0; i < expected; i++) {
        assert_true(m->there[exact[i].slot]);
        assert_true(fabs((double)exact[i].distance - (double)truth[i].distance) <
                    tolerance(&f->params, query, m->v + (size_t)truth[i].slot * m->dim));
        assert_true(i == 0 || compare(&exact[i - 1], &exact[i]) < 0);
    }
    for (int64_t i = 0; i < got; i++) {
        const float *v = m->v + (size_t)hits[i].slot * m->dim;
        assert_true(m->there[hits[i].slot]);
        assert_true(i == 0 || compare(&hits[i - 1], &hits[i]) < 0);
        assert_true(fabs((double)hits[i].distance - distance(&f->params, query, v)) <
                    tolerance(&f->params, query, v));
        for (uint32_t j = 0; j < expected; j++)
            found += hits[i].slot == exact[j].slot;
    }
    check_distances(f, query, exact, expected);
    free(truth);
    free(hits);
    free(exact);
    return expected ? (double)found / expected : 1;
}

static void random_add(struct fixture *f, struct model *m)
{
    uint32_t slot = (uint32_t)rng_below(&rng, m->n);
    float v[64];
    for (uint32_t i = 0; i < m->dim; i++)
        v[i] = gauss(&rng) * 3;
    int rc = fixture_add(f, slot, v);
    if (m->there[slot])
        assert_int_equal(rc, KITH_EEXISTS);
    if (rc == 0) {
        m->there[slot] = true;
        m->count++;
        memcpy(m->v + (size_t)slot * m->dim, v, m->dim * sizeof *v);
    } else {
        assert_int_equal(rc, KITH_EEXISTS); /* or it waits to be handed back */
    }
}

static void random_remove(struct fixture *f, struct model *m)
{
    uint32_t slot = (uint32_t)rng_below(&rng, m->n);
    assert_int_equal(fixture_remove(f, slot), m->there[slot] ? 0 : KITH_ENOTFOUND);
    m->count -= m->there[slot];
    m->there[slot] = false;
}

static void check_vectors(struct fixture *f, const struct model *m)
{
    float v[64];
    struct err e;
    struct index_code code;
    for (uint32_t s = 0; s < m->n; s++) {
        if (!m->there[s])
            continue;
        const float *own = m->v + (size_t)s * m->dim;
        assert_int_equal(index_vector(f->index, s, v, &e), 0);
        if (f->params.quant == INDEX_BIN)
            assert_true(sign_cosine(v, own, m->dim) == 1 && fabsf(v[0]) == 1);
        else
            assert_true(cosine(v, own, m->dim) > 0.999);
        assert_int_equal(index_code(f->index, s, &code, &e), 0);
        assert_int_equal(code.n_bytes, f->params.quant == INDEX_F32   ? m->dim * 4
                                       : f->params.quant == INDEX_F16 ? m->dim * 2
                                       : f->params.quant == INDEX_BIN ? (m->dim + 63) / 64 * 8
                                                                      : m->dim);
        assert_true((code.range > 0) == (f->params.quant == INDEX_INT8));
        assert_true(fabs((double)code.norm / length(own, m->dim) - 1) < 1e-6);
    }
}

static void operations(enum index_kind kind, enum index_quant quant, enum index_metric metric,
                       int steps)
{
    enum { N = 400, DIM = 20 };
    struct fixture f;
    struct model m;
    struct err e = {0};
    double recall = 0;
    int searches = 0;
    model_init(&m, N, DIM);
    struct index_params params = {kind, quant, metric, DIM, 6, 40};
    fixture_open_as(&f, &params, N);
    free(f.freed);
    f.freed = malloc((size_t)steps * sizeof *f.freed);
    for (int step = 0; step < steps; step++) {
        uint64_t dice = rng_below(&rng, 100);
        bool shrinking = step / 1000 % 2;
        if (dice < (shrinking ? 20u : 40u)) {
            random_add(&f, &m);
        } else if (dice < 60) {
            random_remove(&f, &m);
        } else if (dice < 92) {
            assert_true(index_link(f.index, f.scratch, &e) >= 0);
        } else if (dice < 97) {
            recall += check_search(&f, &m, 1 + (uint32_t)rng_below(&rng, 20));
            searches++;
        } else if (dice < 98) {
            fixture_reopen(&f);
            fixture_check(&f);
        } else {
            struct index_info info = index_info(f.index);
            assert_int_equal(info.n_linked + info.n_tail, m.count);
        }
    }
    fixture_link_all(&f);
    fixture_check(&f);
    check_vectors(&f, &m);
    struct index_info info = index_info(f.index);
    assert_int_equal(info.n_linked, m.count);
    assert_int_equal(info.n_removing, 0);
    print_message("quantization %d, metric %d: recall of %d searches %.4f\n", (int)quant,
                  (int)metric, searches, recall / searches);
    assert_true(recall / searches > 0.97);
    fixture_close(&f);
    model_deinit(&m);
}

static void flat_is_the_model(void **state)
{
    (void)state;
    for (int quant = INDEX_F32; quant <= INDEX_BIN; quant++)
        for (int metric = INDEX_COSINE; metric <= INDEX_IP; metric++)
            operations(INDEX_FLAT, (enum index_quant)quant, (enum index_metric)metric,
                       2000 / SHRINK);
}

static void hnsw_is_near_the_model(void **state)
{
    (void)state;
    for (int quant = INDEX_F32; quant <= INDEX_BIN; quant++)
        for (int metric = INDEX_COSINE; metric <= INDEX_IP; metric++)
            operations(INDEX_HNSW, (enum index_quant)quant, (enum index_metric)metric,
                       6000 / SHRINK);
}

static void the_tail_says_when_it_is_full(void **state)
{
    (void)state;
    enum { N = 200, DIM = 4 };
    struct fixture f;
    struct model m;
    fixture_open(&f, INDEX_HNSW, INDEX_F32, DIM, 4, 20, N);
    index_free(f.index);
    f.options.tail_max = 50;
    assert_int_equal(index_open(&f.index, &f.params, &f.arrays, &f.options, NULL, 0, NULL), 0);
    model_init(&m, N, DIM);
    assert_false(index_link_pending(f.index));
    while (m.count < 50) {
        assert_false(index_tail_full(f.index));
        random_add(&f, &m);
    }
    assert_true(index_tail_full(f.index));
    while (m.count < 120) /* it says so, but takes what comes: a replay cannot wait */
        random_add(&f, &m);
    assert_true(check_search(&f, &m, 30) == 1);
    assert_int_equal(index_info(f.index).n_tail, 120);
    fixture_reopen(&f);
    assert_int_equal(index_info(f.index).n_tail, 120);
    assert_true(check_search(&f, &m, 30) == 1);
    fixture_link_all(&f);
    assert_false(index_tail_full(f.index));
    fixture_check(&f);
    fixture_close(&f);
    model_deinit(&m);
}

/* Every operation with its n-th allocation failing, for n = 1, 2, …, until it passes. */
static void memory_may_run_out_anywhere(void **state)
{
    (void)state;
    enum { N = 600 / SHRINK, DIM = 12 };
    struct fixture f;
    float *x = vectors(&rng, N, DIM, 0);
    struct index_hit hits[10];
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, 4, 20, N);
    long failures = 0;
    for (uint32_t i = 0; i < N; i++) {
        for (int op = 0; op < 4; op++) {
            if (op == 1 && i % 3)
                continue;
            for (long fail = 1;; fail++) {
                struct index_query q = {.vector = x, .k = 5, .ef = 10 + i / 10};
                struct err e = {0};
                int64_t rc;
                index_scratch_free(f.scratch);
                f.scratch = index_scratch_new();
                mem_fail_after(fail);
                rc = op == 0   ? fixture_add(&f, i, x + (size_t)i * DIM)
                     : op == 1 ? fixture_remove(&f, i / 2)
                     : op == 2 ? index_link(f.index, f.scratch, &e)
                               : fixture_search(&f, &q, hits);
                mem_fail_after(0);
                if (rc >= 0 || rc == KITH_ENOTFOUND)
                    break;
                assert_int_equal(rc, KITH_ENOMEM);
                failures++;
                assert_true(fail < 1000);
            }
        }
        if (i % 50 == 0) {
            fixture_link_all(&f);
            fixture_check(&f);
        }
    }
    fixture_link_all(&f);
    fixture_check(&f);
    print_message("%ld failures\n", failures);
    for (long fail = 1;; fail++) {
        struct index *y;
        struct buf saved;
        buf_init(&saved);
        index_save(f.index, &saved);
        mem_fail_after(fail);
        int rc = index_open(&y, &f.params, &f.arrays, &f.options, saved.data, saved.len, NULL);
        mem_fail_after(0);
        buf_deinit(&saved);
        if (rc == 0) {
            index_free(y);
            break;
        }
        assert_int_equal(rc, KITH_ENOMEM);
    }
    fixture_close(&f);
    free(x);
}

static void scribble(struct records *r, uint32_t keep_bytes, uint32_t limit)
{
    for (uint32_t i = 0; i < records_count(r); i++) {
        if (rng_below(&rng, 3))
            continue;
        char *p = records_writable(r, i, NULL);
        for (uint32_t at = keep_bytes; at + 4 <= r->stride; at += 4)
            if (rng_below(&rng, 2))
                store_u32(p + at,
                          (uint32_t)rng_below(&rng, rng_below(&rng, 2) ? limit : UINT32_MAX));
    }
}

static void noise_in_the_records_is_survived(void **state)
{
    (void)state;
    enum { N = 500, DIM = 12, M = 5 };
    struct index_hit hits[2 * M > 50 ? 2 * M : 50];
    for (int round = 0; round < 60 / SHRINK + 5; round++) {
        struct fixture f;
        struct err e = {0};
        float *x = vectors(&rng, N, DIM, 0);
        struct index_params params = {INDEX_HNSW,
                                      (enum index_quant)(INDEX_F32 + round % 4),
                                      (enum index_metric)(round / 4 % 3),
                                      DIM,
                                      M,
                                      20};
        fixture_open_as(&f, &params, N);
        free(f.freed);
        f.freed = malloc(20 * N * sizeof *f.freed);
        for (uint32_t i = 0; i < N - 50; i++)
            assert_int_equal(fixture_add(&f, i, x + (size_t)i * DIM), 0);
        fixture_link_all(&f);
        if (round % 3 != 0)
            scribble(f.arrays.links, 0, N);
        if (round % 3 != 1)
            scribble(f.arrays.upper, 0, N);
        if (round % 5 == 4)
            scribble(f.arrays.codes, 0, N);
        assert_true(round % 5 == 4 || index_check(f.index, NULL, NULL, &e) > 0);
        for (uint32_t i = 0; i < N; i++) {
            struct index_query q = {.vector = x + (size_t)i * DIM, .k = 50, .ef = 60};
            assert_true(fixture_search(&f, &q, hits) <= 50);
            epoch_enter();
            for (uint32_t level = 0; level < 3; level++)
                index_links(f.index, f.scratch, i, level, hits, &e);
            epoch_exit();
            if (rng_below(&rng, 2))
                fixture_remove(&f, i);
            else
                fixture_add(&f, i, x + (size_t)i * DIM);
            index_link(f.index, f.scratch, &e);
        }
        for (int i = 0; i < 2 * N; i++)
            index_link(f.index, f.scratch, &e);
        index_check(f.index, NULL, NULL, &e);
        fixture_close(&f);
        free(x);
    }
}

static void states_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    enum { N = 60, DIM = 4 };
    struct fixture f;
    float *x = vectors(&rng, N, DIM, 0);
    struct buf saved;
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, 4, 20, N);
    for (uint32_t i = 0; i < N - 10; i++)
        assert_int_equal(fixture_add(&f, i, x + (size_t)i * DIM), 0);
    for (int i = 0; i < 30; i++)
        assert_int_equal(index_link(f.index, f.scratch, NULL), 1);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(fixture_remove(&f, i * 2), 0);
    buf_init(&saved);
    index_save(f.index, &saved);
    for (size_t len = 0; len < saved.len; len++) {
        struct index *y;
        int rc = index_open(&y, &f.params, &f.arrays, &f.options, saved.data, len, NULL);
        if (len == 0 && rc == 0) {
            index_free(y);
            continue;
        }
        assert_true(rc == KITH_ECORRUPT || rc == KITH_EFORMAT);
    }
    for (int i = 0; i < 3000; i++) {
        struct index *y;
        char *copy = mem_dup(saved.data, saved.len);
        copy[rng_below(&rng, saved.len)] ^= (char)(1 << rng_below(&rng, 8));
        if (index_open(&y, &f.params, &f.arrays, &f.options, copy, saved.len, NULL) == 0) {
            struct index_hit hits[10];
            struct index_query q = {.vector = x, .k = 10, .ef = 10};
            epoch_enter();
            assert_true(index_search(y, f.scratch, &q, hits, NULL) >= 0);
            epoch_exit();
            index_free(y);
        }
        mem_free(copy);
    }
    /* Before version 2 there was no metric at the end, and all was COSINE. */
    struct index *y;
    struct index_params other = f.params;
    char *old = mem_dup(saved.data, saved.len);
    store_u32(old + 4, 1);
    assert_int_equal(index_open(&y, &f.params, &f.arrays, &f.options, old, saved.len - 4, NULL),
                     0);
    index_free(y);
    other.metric = INDEX_L2;
    assert_int_equal(index_open(&y, &other, &f.arrays, &f.options, old, saved.len - 4, NULL),
                     KITH_ECORRUPT);
    assert_int_equal(index_open(&y, &other, &f.arrays, &f.options, saved.data, saved.len, NULL),
                     KITH_ECORRUPT);
    store_u32(old + 4, 3);
    assert_int_equal(index_open(&y, &f.params, &f.arrays, &f.options, old, saved.len, NULL),
                     KITH_EFORMAT);
    mem_free(old);
    other.metric = (enum index_metric)3;
    assert_int_equal(index_open(&y, &other, &f.arrays, &f.options, NULL, 0, NULL), KITH_EINVAL);
    other = f.params;
    other.quant = (enum index_quant)5;
    assert_int_equal(index_open(&y, &other, &f.arrays, &f.options, NULL, 0, NULL), KITH_EINVAL);
    other.quant = INDEX_F32;
    assert_int_equal(index_open(&y, &other, &f.arrays, &f.options, NULL, 0, NULL), KITH_EINVAL);
    float bad[DIM] = {1, NAN, 0, 0};
    assert_int_equal(fixture_add(&f, N - 1, bad), KITH_EINVAL);
    bad[1] = INFINITY;
    assert_int_equal(fixture_add(&f, N - 1, bad), KITH_EINVAL);
    assert_int_equal(fixture_add(&f, N, x), KITH_EINVAL);
    buf_deinit(&saved);
    fixture_close(&f);
    free(x);
}

int main(void)
{
    printf("seed %d, kernels %s\n", SEED, index_kernels_name());
    rng_seed(&rng, SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flat_is_the_model),
        cmocka_unit_test(hnsw_is_near_the_model),
        cmocka_unit_test(the_tail_says_when_it_is_full),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(noise_in_the_records_is_survived),
        cmocka_unit_test(states_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
