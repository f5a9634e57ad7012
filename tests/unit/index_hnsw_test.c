/* What the graph finds, against the exact scan; what it keeps under churn; its corners. */
#include "index/hnsw.h"
#include "tests/unit/index_fixture.h"

enum { SEED = 4711 };

static struct rng rng;

static void build(struct fixture *f, const float *x)
{
    for (uint32_t i = 0; i < f->n; i++) {
        assert_int_equal(fixture_add(f, i, x + (size_t)i * f->params.dim), 0);
        if (index_tail_full(f->index))
            fixture_link_all(f);
    }
    fixture_link_all(f);
}

static void finds_what_is_near(void **state)
{
    (void)state;
    enum { N = 20000 / SHRINK, DIM = 64, QUERIES = 100 };
    static const struct {
        uint32_t centres, ef;
        enum index_quant quant;
        uint32_t n;
    } cases[] = {{200, 50, INDEX_INT8, N}, {0, 300, INDEX_INT8, N}, {0, 150, INDEX_F32, N / 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        float *x = vectors(&rng, cases[i].n + QUERIES, DIM, cases[i].centres);
        fixture_open(&f, INDEX_HNSW, cases[i].quant, DIM, 16, 120, cases[i].n);
        build(&f, x);
        fixture_check(&f);
        double r = recall_of(&f, x + (size_t)cases[i].n * DIM, QUERIES, 10, cases[i].ef);
        print_message("n %u, %u centres, ef %u: recall@10 %.4f\n", cases[i].n, cases[i].centres,
                      cases[i].ef, r);
        assert_true(r >= 0.95);
        struct index_info info = index_info(f.index);
        assert_int_equal(info.n_linked, cases[i].n);
        assert_int_equal(info.n_tail, 0);
        assert_true(info.max_level >= 2);
        fixture_close(&f);
        free(x);
    }
}

static void recall_survives_churn(void **state)
{
    (void)state;
    enum { N = 4000 / SHRINK, DIM = 32, QUERIES = 200, EF = 60 };
    static const struct {
        uint32_t centres;
        enum index_quant quant;
    } cases[] = {{0, INDEX_INT8}, {40, INDEX_INT8}, {0, INDEX_F32}, {0, INDEX_BIN}};
    for (size_t which = 0; which < sizeof cases / sizeof *cases; which++) {
        struct fixture f;
        uint32_t centres = cases[which].centres;
        enum index_quant quant = cases[which].quant;
        /* Twice as many vectors as slots: what comes in is not what went. */
        float *x = vectors(&rng, 2 * N + QUERIES, DIM, centres),
              *now = malloc(N * DIM * sizeof *x);
        uint32_t *order = malloc(N * sizeof *order), next = N;
        fixture_open(&f, INDEX_HNSW, quant, DIM, 16, 100, N);
        build(&f, x);
        memcpy(now, x, N * DIM * sizeof *x);
        for (uint32_t i = 0; i < N; i++)
            order[i] = i;
        for (int round = 0; round < 10; round++) {
            for (uint32_t i = 0; i < N / 10; i++) {
                uint32_t other = i + (uint32_t)rng_below(&rng, N - i), t = order[i];
                order[i] = order[other];
                order[other] = t;
                assert_int_equal(fixture_remove(&f, order[i]), 0);
            }
            f.n_freed = 0;
            fixture_link_all(&f);
            assert_int_equal(f.n_freed, N / 10);
            for (uint32_t i = 0; i < N / 10; i++, next++) {
                memcpy(now + (size_t)order[i] * DIM, x + (size_t)next * DIM, DIM * sizeof *x);
                assert_int_equal(fixture_add(&f, order[i], x + (size_t)next * DIM), 0);
            }
            fixture_link_all(&f);
        }
        fixture_check(&f);
        double churned = recall_of(&f, x + (size_t)2 * N * DIM, QUERIES, 10, EF);
        uint32_t upper = records_count(f.arrays.upper);
        fixture_close(&f);
        fixture_open(&f, INDEX_HNSW, quant, DIM, 16, 100, N);
        build(&f, now);
        double fresh = recall_of(&f, x + (size_t)2 * N * DIM, QUERIES, 10, EF);
        print_message("quantization %d, %u centres: recall@10 fresh %.4f, churned %.4f\n",
                      (int)quant, centres, fresh, churned);
        assert_true(churned >= fresh - 0.005);
        assert_true(upper <= records_count(f.arrays.upper) * 5 / 4);
        fixture_close(&f);
        free(x);
        free(now);
        free(order);
    }
}

static void everything_can_go_and_come_back(void **state)
{
    (void)state;
    enum { N = 300, DIM = 16 };
    struct fixture f;
    float *x = vectors(&rng, N, DIM, 0);
    struct index_hit hits[N];
    struct index_query q = {.vector = x, .k = N, .ef = N};
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, 4, 20, N);
    assert_int_equal(fixture_search(&f, &q, hits), 0);
    for (int round = 0; round < 4; round++) {
        build(&f, x);
        assert_int_equal(fixture_search(&f, &q, hits), N);
        assert_int_equal(hits[0].slot, 0);
        assert_int_equal(fixture_add(&f, 0, x), KITH_EEXISTS);
        f.n_freed = 0;
        /* Always the entry point, and every now and then before the last one is unlinked. */
        for (uint32_t left = N; left-- > 0;) {
            struct index_info info = index_info(f.index);
            uint32_t slot = info.entry;
            if (round == 1)
                slot = left;
            if (round == 2 && fixture_remove(&f, slot) != 0)
                slot = left;
            if (round != 2)
                assert_int_equal(fixture_remove(&f, slot), 0);
            if (round == 3 || left % 7 == 0)
                fixture_link_all(&f);
            if (round == 3 || left % 7 == 0)
                fixture_check(&f);
            if (round == 0 && left % 7 != 0) {
                struct err e;
                assert_true(index_link(f.index, f.scratch, &e) == 1);
            }
        }
        for (uint32_t i = 0; i < N; i++)
            fixture_remove(&f, i);
        fixture_link_all(&f);
        assert_int_equal(f.n_freed, N);
        struct index_info info = index_info(f.index);
        assert_int_equal(info.entry, INDEX_SLOT_NONE);
        assert_int_equal(info.n_linked + info.n_tail + info.n_removing, 0);
        assert_int_equal(fixture_search(&f, &q, hits), 0);
        assert_int_equal(fixture_remove(&f, 0), KITH_ENOTFOUND);
    }
    fixture_close(&f);
    free(x);
}

static void equal_vectors_are_all_found(void **state)
{
    (void)state;
    enum { N = 500, DIM = 8 };
    float *x = vectors(&rng, N, DIM, 0), square = 0;
    struct index_hit hits[N];
    for (uint32_t i = 0; i < DIM; i++) { /* longer than all others, for the inner product */
        x[i] *= 10;
        square += x[i] * x[i];
    }
    for (uint32_t i = N / 2; i < N; i++) /* after the others: they could do without them */
        memcpy(x + (size_t)i * DIM, x, DIM * sizeof *x);
    memset(x + DIM, 0, DIM * sizeof *x);
    for (int which = 0; which < 12; which++) {
        struct index_params p = {INDEX_HNSW,
                                 (enum index_quant)(INDEX_F32 + which / 3),
                                 (enum index_metric)(which % 3),
                                 DIM,
                                 8,
                                 50};
        struct fixture f;
        float nearest = p.metric == INDEX_IP ? -square : 0;
        fixture_open_as(&f, &p, N);
        build(&f, x);
        fixture_check(&f);
        struct index_query q = {.vector = x, .k = 100, .ef = 100};
        assert_int_equal(fixture_search(&f, &q, hits), 100);
        for (int i = 0; i < 100; i++)
            assert_true(fabsf(hits[i].distance - nearest) <
                        1e-5f * (p.metric == INDEX_COSINE ? 1 : square));
        /* Neither the copies nor the others are an island. */
        for (uint32_t i = 0; i < N; i += 25) {
            q = (struct index_query){.vector = x + (size_t)i * DIM, .k = N, .ef = N};
            assert_int_equal(fixture_search(&f, &q, hits), N);
        }
        fixture_close(&f);
    }
    free(x);
}

/* Lengths that differ widely: by L2 and the inner product they count as much as directions. */
static void metrics_that_know_lengths(void **state)
{
    (void)state;
    enum { N = 6000 / SHRINK, DIM = 32, QUERIES = 100, EF = 150 };
    for (int metric = INDEX_L2; metric <= INDEX_IP; metric++) {
        struct index_params p = {INDEX_HNSW, INDEX_INT8, (enum index_metric)metric,
                                 DIM,        16,         120};
        struct fixture f;
        float *x = vectors(&rng, N + QUERIES, DIM, 100);
        for (uint32_t i = 0; i < N + QUERIES; i++) {
            float scale = expf(0.5f * gauss(&rng));
            for (uint32_t d = 0; d < DIM; d++)
                x[(size_t)i * DIM + d] *= scale;
        }
        fixture_open_as(&f, &p, N);
        build(&f, x);
        fixture_check(&f);
        double r = recall_of(&f, x + (size_t)N * DIM, QUERIES, 10, EF);
        print_message("metric %d: recall@10 %.4f\n", metric, r);
        assert_true(r >= 0.95);
        fixture_close(&f);
        free(x);
    }
}

static bool odd(void *arg, uint32_t slot)
{
    ++*(uint32_t *)arg;
    return slot % 2;
}

static void filters_and_limits(void **state)
{
    (void)state;
    enum { N = 2000, DIM = 24 };
    struct fixture f;
    float *x = vectors(&rng, N, DIM, 20);
    struct index_hit hits[N], exact[N];
    uint32_t asked = 0;
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, 8, 80, N);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(fixture_add(&f, i, x + (size_t)i * DIM), 0);
    for (uint32_t i = 0; i < N / 2; i++) /* half in the graph, half in the tail */
        assert_int_equal(index_link(f.index, f.scratch, NULL), 1);
    assert_int_equal(index_info(f.index).n_linked, N / 2);
    for (uint32_t i = 0; i < 50; i++) {
        struct index_search_stats stats;
        struct index_query q = {
            .slot = i * 40, .k = 10, .ef = 100, .accept = odd, .arg = &asked, .stats = &stats};
        asked = 0;
        assert_int_equal(fixture_search(&f, &q, hits), 10);
        assert_true(stats.n_visits >= asked && asked > stats.n_rejected);
        assert_true(stats.n_rejected > 0 && !stats.cut);
        q.exact = true;
        asked = 0;
        assert_int_equal(fixture_search(&f, &q, exact), 10);
        /* Everybody is asked about, and only those who pass are looked at. */
        assert_int_equal(asked, N);
        assert_int_equal(stats.n_rejected, N / 2);
        assert_int_equal(stats.n_visits, N / 2);
        assert_false(stats.cut);
        uint32_t same = 0;
        for (int a = 0; a < 10; a++) {
            assert_int_equal(hits[a].slot % 2, 1);
            assert_true(a == 0 || hits[a - 1].distance <= hits[a].distance);
            for (int b = 0; b < 10; b++)
                same += hits[a].slot == exact[b].slot;
        }
        assert_true(same >= 8);
    }
    fixture_link_all(&f);
    asked = 0;
    struct index_search_stats stats;
    struct index_query q = {.vector = x,
                            .k = N,
                            .ef = N,
                            .max_visits = 100,
                            .accept = odd,
                            .arg = &asked,
                            .stats = &stats};
    fixture_search(&f, &q, hits);
    assert_true(asked >= 90 && asked <= 100 + 16);
    assert_true(stats.cut);
    q.max_visits = 0;
    fixture_search(&f, &q, hits);
    assert_false(stats.cut);
    q = (struct index_query){.vector = x, .k = 0, .ef = 10};
    assert_int_equal(fixture_search(&f, &q, hits), 0);
    q = (struct index_query){.slot = N + 5, .k = 1};
    assert_int_equal(fixture_search(&f, &q, hits), KITH_ENOTFOUND);
    fixture_close(&f);
    free(x);
}

/* What was measured (cost.c), within a factor of two, and the order of what it decides. */
static void costs_say_which_is_cheaper(void **state)
{
    (void)state;
    enum { N = 100000, DIM = 384 };
    static const struct {
        double selectivity, codes;
    } measured[] = {{1, 2725}, {0.5, 4944}, {0.1, 18307}, {0.01, 175000}};
    struct fixture f;
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, 16, 200, N);
    for (size_t i = 0; i < sizeof measured / sizeof *measured; i++) {
        struct index_cost c = index_walk_cost(f.index, 10, 100, measured[i].selectivity);
        assert_true(c.codes > measured[i].codes / 2 && c.codes < measured[i].codes * 2);
        assert_true((c.accepts == 0) == (i == 0));
    }
    double last = 0;
    for (double s = 1; s > 1e-12; s /= 3) {
        struct index_cost walk = index_walk_cost(f.index, 10, 100, s);
        struct index_cost scan = index_scan_cost(f.index, s);
        assert_true(walk.codes >= last && walk.accepts <= N && scan.accepts <= N);
        assert_true(s < 0.1 || walk.codes < scan.codes);
        assert_true(s > 0.01 || walk.codes > scan.codes);
        last = walk.codes;
    }
    fixture_close(&f);
}

static void links_are_shown(void **state)
{
    (void)state;
    enum { N = 400, DIM = 8, M = 6 };
    struct fixture f;
    float *x = vectors(&rng, N, DIM, 0);
    struct index_hit hits[2 * M], back[2 * M];
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, M, 40, N);
    build(&f, x);
    struct err e;
    epoch_enter();
    for (uint32_t i = 0; i < N; i++) {
        int64_t n = index_links(f.index, f.scratch, i, 0, hits, &e);
        assert_true(n > 0 && n <= 2 * M);
        for (int64_t k = 0; k < n; k++) {
            bool found = false;
            int64_t m = index_links(f.index, f.scratch, hits[k].slot, 0, back, &e);
            for (int64_t b = 0; b < m; b++)
                found |= back[b].slot == i;
            assert_true(found);
            assert_true(k == 0 || hits[k - 1].distance <= hits[k].distance);
        }
    }
    uint32_t entry = index_info(f.index).entry, top = index_info(f.index).max_level;
    assert_true(index_links(f.index, f.scratch, entry, top, hits, &e) >= 0);
    assert_int_equal(index_links(f.index, f.scratch, entry, top + 1, hits, &e), KITH_ENOTFOUND);
    assert_int_equal(index_links(f.index, f.scratch, N, 0, hits, &e), KITH_ENOTFOUND);
    epoch_exit();
    fixture_close(&f);
    free(x);
}

/* A worker between prepare and commit may have chosen a slot that is removed meanwhile: here
 * one that stands still there, which no pair of real threads does on demand. */
static void slots_wait_for_jobs_under_way(void **state)
{
    (void)state;
    enum { N = 50, DIM = 8 };
    struct fixture f;
    float *x = vectors(&rng, N, DIM, 0);
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, 4, 20, N);
    build(&f, x);
    struct link_job job = {.kind = LINK_INSERT, .start = ++f.index->job_clock};
    f.index->jobs = &job;
    assert_int_equal(fixture_remove(&f, 7), 0);
    assert_int_equal(index_link(f.index, f.scratch, NULL), 1); /* unlinks */
    assert_int_equal(index_link(f.index, f.scratch, NULL), 0); /* may not free */
    assert_true(index_link_pending(f.index));
    assert_int_equal(f.n_freed, 0);
    assert_int_equal(fixture_add(&f, 7, x), KITH_EEXISTS);
    f.index->jobs = NULL;
    assert_int_equal(index_link(f.index, f.scratch, NULL), 1);
    assert_int_equal(f.n_freed, 1);
    assert_int_equal(f.freed[0], 7);
    assert_int_equal(fixture_add(&f, 7, x), 0);
    fixture_link_all(&f);
    fixture_check(&f);
    fixture_close(&f);
    free(x);
}

int main(void)
{
    printf("seed %d, kernels %s\n", SEED, index_kernels_name());
    rng_seed(&rng, SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_is_near),
        cmocka_unit_test(recall_survives_churn),
        cmocka_unit_test(everything_can_go_and_come_back),
        cmocka_unit_test(equal_vectors_are_all_found),
        cmocka_unit_test(metrics_that_know_lengths),
        cmocka_unit_test(filters_and_limits),
        cmocka_unit_test(costs_say_which_is_cheaper),
        cmocka_unit_test(links_are_shown),
        cmocka_unit_test(slots_wait_for_jobs_under_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
