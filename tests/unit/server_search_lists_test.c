/* What a search makes of its lists: combining, diversity, and the memory of filters. */
#include "tests/unit/unit.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "index/vectors.h"
#include "server/search_combine.h"
#include "server/search_diverse.h"
#include "server/search_memo.h"

static struct slice text(const char *s)
{
    return (struct slice){s, strlen(s)};
}

/* --- combining --- */

static struct index_hit first_hits[] = {{1, 0.1f}, {2, 0.2f}, {3, 0.3f}};
static struct index_hit second_hits[] = {{3, 0.05f}, {1, 0.6f}, {4, 0.7f}};
static const struct hit_list lists[] = {{first_hits, 3, 3}, {second_hits, 3, 3}};

/* Of what no list says: 2 is 0.9 from the second vector, 4 is 0.4 from the first, 5 is gone. */
static int distances(void *arg, uint32_t vector, const uint32_t *slots, uint32_t n, float *out,
                     struct err *e)
{
    (void)e;
    for (uint32_t i = 0; i < n; i++) {
        ++*(uint32_t *)arg;
        assert_true((vector == 0 && slots[i] == 4) || (vector == 1 && slots[i] == 2));
        out[i] = vector == 0 ? 0.4f : 0.9f;
    }
    return 0;
}

static void check_order(const struct ranked_list *r, const uint32_t *slots,
                        const double *scores, uint32_t n)
{
    assert_int_equal(r->n, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(r->v[i].slot, slots[i]);
        assert_true(fabs(r->v[i].score - scores[i]) < 1e-6);
    }
}

static struct ranked_list combined(enum vset_combine how, uint32_t *asked, struct arena *arena)
{
    struct ranked_list r;
    struct err e = {0};
    struct combine c = {how, INDEX_COSINE, distances, asked};
    assert_int_equal(combine_lists(&c, lists, 2, arena, &r, &e), 0);
    return r;
}

static void test_rrf(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena);
    uint32_t asked = 0;
    struct ranked_list r = combined(VSET_COMBINE_RRF, &asked, &arena);
    check_order(&r, (uint32_t[]){1, 3, 2, 4},
                (double[]){1 / 61.0 + 1 / 62.0, 1 / 63.0 + 1 / 61.0, 1 / 62.0, 1 / 63.0}, 4);
    assert_int_equal(asked, 0);
    arena_deinit(&arena);
}

static void test_max(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena);
    uint32_t asked = 0;
    struct ranked_list r = combined(VSET_COMBINE_MAX, &asked, &arena);
    check_order(&r, (uint32_t[]){3, 1, 2, 4}, (double[]){0.975, 0.95, 0.9, 0.65}, 4);
    assert_int_equal(asked, 0);
    arena_deinit(&arena);
}

static void test_avg_computes_what_is_missing(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena);
    uint32_t asked = 0;
    struct ranked_list r = combined(VSET_COMBINE_AVG, &asked, &arena);
    check_order(&r, (uint32_t[]){3, 1, 2, 4}, (double[]){0.9125, 0.825, 0.725, 0.725}, 4);
    assert_int_equal(asked, 2);
    arena_deinit(&arena);
}

static void test_combine_of_nothing(void **state)
{
    (void)state;
    struct arena arena;
    struct ranked_list r;
    struct combine c = {VSET_COMBINE_RRF, INDEX_COSINE, distances, NULL};
    const struct hit_list none[2] = {{0}};
    arena_init(&arena);
    assert_int_equal(combine_lists(&c, none, 2, &arena, &r, NULL), 0);
    assert_int_equal(r.n, 0);
    arena_deinit(&arena);
}

/* --- diversity --- */

enum { POOL = 40, DIM = 8 };

/* The formula as it stands in the paper, without anything remembered. */
static uint32_t slow_next(const struct diverse *d, const uint32_t *chosen, uint32_t n)
{
    uint32_t best = UINT32_MAX;
    double best_value = 0;
    for (uint32_t i = 0; i < d->n; i++) {
        bool taken = false;
        double nearest = n ? -1 : 0;
        for (uint32_t j = 0; j < n; j++) {
            taken |= chosen[j] == i;
            nearest =
                fmax(nearest,
                     vset_score(d->metric, vector_distance(d->metric, d->vectors + i * DIM,
                                                           d->vectors + chosen[j] * DIM, DIM)));
        }
        double value = d->lambda * d->relevance[i] - (1 - d->lambda) * nearest;
        if (!taken && (best == UINT32_MAX || value > best_value)) {
            best = i;
            best_value = value;
        }
    }
    return best;
}

static double value_of(const struct diverse *d, const uint32_t *chosen, uint32_t n, uint32_t i)
{
    double nearest = n ? -1 : 0;
    for (uint32_t j = 0; j < n; j++)
        nearest = fmax(
            nearest, vset_score(d->metric, vector_distance(d->metric, d->vectors + i * DIM,
                                                           d->vectors + chosen[j] * DIM, DIM)));
    return d->lambda * d->relevance[i] - (1 - d->lambda) * nearest;
}

static void test_mmr_follows_the_formula(void **state)
{
    (void)state;
    struct rng r;
    struct arena arena;
    rng_seed(&r, unit_seed());
    arena_init(&arena);
    for (int round = 0; round < 60; round++) {
        float vectors[POOL * DIM];
        double relevance[POOL];
        for (int i = 0; i < POOL * DIM; i++)
            vectors[i] = (float)(rng_unit(&r) - 0.5);
        for (int i = 0; i < POOL; i++)
            relevance[i] = 1 - i * 0.01;
        struct diverse d = {.metric = (enum index_metric)(round % 2),
                            .dim = DIM,
                            .vectors = vectors,
                            .relevance = relevance,
                            .n = POOL,
                            .lambda = rng_unit(&r)};
        uint32_t chosen[POOL], n;
        assert_int_equal(diverse_choose(&d, 15, &arena, chosen, &n, NULL), 0);
        assert_int_equal(n, 15);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t want = slow_next(&d, chosen, i);
            /* Cosines of unit vectors are rounded another way: equal values may change places.
             */
            assert_true(fabs(value_of(&d, chosen, i, want) -
                             value_of(&d, chosen, i, chosen[i])) < 1e-5);
            for (uint32_t j = 0; j < i; j++)
                assert_int_not_equal(chosen[i], chosen[j]);
        }
        arena_reset(&arena);
    }
    arena_deinit(&arena);
}

static void test_mmr_of_lambda_1_keeps_the_order(void **state)
{
    (void)state;
    struct arena arena;
    float vectors[4 * DIM] = {0};
    double relevance[4] = {0.9, 0.8, 0.8, 0.1};
    arena_init(&arena);
    for (int i = 0; i < 4; i++)
        vectors[i * DIM] = 1; /* all the same */
    struct diverse d = {INDEX_COSINE, DIM, vectors, relevance, 4, 1};
    uint32_t chosen[4], n;
    assert_int_equal(diverse_choose(&d, 9, &arena, chosen, &n, NULL), 0);
    assert_int_equal(n, 4);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(chosen[i], i);
    arena_deinit(&arena);
}

/* --- the memory of filters --- */

static void test_memo_shares_grow_old(void **state)
{
    (void)state;
    struct search_memo *m = search_memo_new();
    struct memo_facts f;
    search_memo_find(m, text(".a"), 5, 1000, &f);
    assert_true(f.share < 0 && f.bits == NULL);
    search_memo_note_share(m, text(".a"), 5, 1000, 0.25);
    search_memo_find(m, text(".a"), 100, 1000, &f);
    assert_true(f.share > 0.24 && f.share < 0.26);
    search_memo_find(m, text(".b"), 5, 1000, &f);
    assert_true(f.share < 0);
    search_memo_find(m, text(".a"), 106, 1000, &f); /* a tenth of it changed */
    assert_true(f.share < 0);
    search_memo_free(m);
}

static void test_memo_regret_is_of_one_state(void **state)
{
    (void)state;
    struct search_memo *m = search_memo_new();
    struct memo_facts f;
    search_memo_note_regret(m, text(".a"), 7, 10);
    search_memo_note_regret(m, text(".a"), 7, 5);
    search_memo_find(m, text(".a"), 7, 10, &f);
    assert_true(f.regret_us > 14.9 && f.regret_us < 15.1);
    search_memo_find(m, text(".a"), 8, 10, &f);
    assert_true(f.regret_us < 0.1);
    search_memo_note_regret(m, text(".a"), 8, 1);
    search_memo_find(m, text(".a"), 8, 10, &f);
    assert_true(f.regret_us < 1.1);
    search_memo_free(m);
}

static void test_memo_bits_go_with_the_first_change(void **state)
{
    (void)state;
    struct search_memo *m = search_memo_new();
    struct match_bits *b = match_bits_new(130);
    struct memo_facts f, again;
    b->words[2] = 2; /* slot 129 */
    b->n_matches = 1;
    search_memo_note_bits(m, text(".a"), 3, b);
    match_bits_unref(b);
    search_memo_find(m, text(".a"), 3, 100, &f);
    assert_non_null(f.bits);
    assert_true(match_bits_get(f.bits, 129) && !match_bits_get(f.bits, 128));
    assert_false(match_bits_get(f.bits, 130)); /* came after the bits */
    search_memo_find(m, text(".a"), 4, 100, &again);
    assert_null(again.bits);
    assert_true(match_bits_get(f.bits, 129)); /* whoever has them still does */
    match_bits_unref(f.bits);
    search_memo_find(m, text(".a"), 3, 100, &again);
    assert_null(again.bits);
    search_memo_free(m);
}

static void test_memo_is_bounded(void **state)
{
    (void)state;
    struct search_memo *m = search_memo_new();
    struct memo_facts f;
    static char longest[MEMO_TEXT_BYTES + 1];
    memset(longest, 'x', sizeof longest);
    for (int i = 0; i < 3 * MEMO_FILTERS; i++) {
        char name[16];
        snprintf(name, sizeof name, ".f%d", i);
        search_memo_note_share(m, text(name), 1, 100, 0.5);
        search_memo_find(m, text(".f0"), 1, 100, &f); /* used again and again: stays */
        assert_true(f.share > 0);
    }
    search_memo_find(m, text(".f1"), 1, 100, &f);
    assert_true(f.share < 0);
    search_memo_note_share(m, (struct slice){longest, sizeof longest}, 1, 100, 0.5);
    search_memo_find(m, (struct slice){longest, sizeof longest}, 1, 100, &f);
    assert_true(f.share < 0);
    assert_true(search_memo_bytes(m) < 8192);
    search_memo_free(m);
    search_memo_free(NULL);
}

static void test_memo_without_memory(void **state)
{
    (void)state;
    struct search_memo *m = search_memo_new();
    struct memo_facts f;
    mem_fail_after(1);
    search_memo_note_share(m, text(".a"), 1, 100, 0.5);
    struct match_bits *none = match_bits_new(64);
    mem_fail_after(0);
    assert_null(none);
    search_memo_find(m, text(".a"), 1, 100, &f);
    assert_true(f.share < 0);
    search_memo_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rrf),
        cmocka_unit_test(test_max),
        cmocka_unit_test(test_avg_computes_what_is_missing),
        cmocka_unit_test(test_combine_of_nothing),
        cmocka_unit_test(test_mmr_follows_the_formula),
        cmocka_unit_test(test_mmr_of_lambda_1_keeps_the_order),
        cmocka_unit_test(test_memo_shares_grow_old),
        cmocka_unit_test(test_memo_regret_is_of_one_state),
        cmocka_unit_test(test_memo_bits_go_with_the_first_change),
        cmocka_unit_test(test_memo_is_bounded),
        cmocka_unit_test(test_memo_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
