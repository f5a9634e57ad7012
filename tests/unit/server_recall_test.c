/* Measured recall: the averages and the ef that follows from them, and the sampler on a real
 * set: the same figures as a scan of the test's own, none that a change of the set made up, and
 * no set kept that was dropped. */

#include "tests/unit/unit_dir.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/mem.h"
#include "index/vectors.h"
#include "server/recall_parts.h"
#include "server/vset.h"

/* --- averages --- */

static struct recall_sample sample_of(double first, double step)
{
    struct recall_sample s = {.own = 0.5, .weight = 1};
    for (int i = 0; i < RECALL_GRID; i++)
        s.grid[i] = fmin(1, first + step * i);
    return s;
}

static void nothing_measured_is_a_safe_ef(void **state)
{
    (void)state;
    struct recall *r = recall_new();
    struct recall_figures f;
    recall_figures(r, &f);
    assert_true(isnan(f.recall_at_10));
    assert_int_equal(f.n_samples, 0);
    assert_int_equal(f.n_grid, RECALL_GRID);
    assert_int_equal(f.grid[0].ef, 25);
    assert_true(isnan(f.grid[0].recall));
    assert_false(recall_wants_calibration(r));
    assert_int_equal(recall_ef(r, 0.9), RECALL_EF_UNKNOWN);
    assert_true(recall_wants_calibration(r));
    recall_free(r);
}

static void ef_follows_what_was_measured(void **state)
{
    (void)state;
    struct recall *r = recall_new();
    struct recall_sample s = sample_of(0.4, 0.1); /* 1.0 at ef 1600 */
    for (int i = 0; i < 1000; i++)
        recall_fold(r, &s);
    struct recall_figures f;
    recall_figures(r, &f);
    assert_true(fabs(f.recall_at_10 - 0.5) < 1e-9);
    assert_int_equal(f.n_samples, 1000);
    assert_true(fabs(f.grid[3].recall - 0.7) < 1e-9);
    /* The margin that is left of a full window: 4 percent of what is missing. */
    assert_int_equal(recall_ef(r, 0.1), 25);
    assert_in_range(recall_ef(r, 0.5), 50, 60);
    assert_in_range(recall_ef(r, 0.9), 800, 840);
    assert_int_equal(recall_ef(r, 1), 1600);
    uint32_t before = 0;
    for (double target = 0.3; target < 1; target += 0.001) {
        uint32_t ef = recall_ef(r, target);
        assert_true(ef >= before);
        assert_in_range(ef, 25, 1600);
        before = ef;
    }
    assert_false(recall_wants_calibration(r));
    recall_free(r);
}

static void few_samples_ask_for_a_margin(void **state)
{
    (void)state;
    struct recall *few = recall_new(), *many = recall_new();
    struct recall_sample s = sample_of(0.4, 0.1);
    for (int i = 0; i < 100; i++)
        recall_fold(many, &s);
    recall_fold(few, &s);
    for (double target = 0.45; target < 0.99; target += 0.01)
        assert_true(recall_ef(few, target) > recall_ef(many, target));
    /* Half the way from 0.8 to 1 is 0.9: the value at ef 800. */
    assert_int_equal(recall_ef(few, 0.8), 800);
    recall_ef(few, 0.9);
    assert_true(recall_wants_calibration(few));
    recall_free(few);
    recall_free(many);
}

static void what_is_not_reached_gets_the_largest(void **state)
{
    (void)state;
    struct recall *r = recall_new();
    struct recall_sample s = sample_of(0.5, 0.05); /* 0.8 at ef 1600 */
    recall_fold(r, &s);
    assert_int_equal(recall_ef(r, 0.95), 1600);
    /* A larger ef is taken to find no less, whatever chance measured. */
    s.grid[3] = 0.1; /* between 0.6 at ef 100 and 0.7 at 400 */
    for (int i = 0; i < 1000; i++)
        recall_fold(r, &s);
    assert_in_range(recall_ef(r, 0.58), 50, 100);
    assert_in_range(recall_ef(r, 0.65), 201, 400);
    recall_free(r);
}

static void old_samples_fade(void **state)
{
    (void)state;
    struct recall *r = recall_new();
    struct recall_sample bad = sample_of(0, 0), good = sample_of(1, 0);
    struct recall_figures f;
    bad.own = 0;
    good.own = 1;
    for (int i = 0; i < 1000; i++)
        recall_fold(r, &bad);
    for (int i = 0; i < 200; i++)
        recall_fold(r, &good);
    recall_figures(r, &f);
    assert_in_range((int)(f.recall_at_10 * 100), 80, 95);
    good.own = NAN; /* a vector of the set's own says nothing about searches */
    recall_fold(r, &good);
    struct recall_figures again;
    recall_figures(r, &again);
    assert_true(again.recall_at_10 == f.recall_at_10);
    assert_true(again.grid[0].recall > f.grid[0].recall);
    recall_free(r);
}

static void totals_are_of_all_sets_there_are(void **state)
{
    (void)state;
    struct recall_totals t;
    struct recall *r[3];
    recall_totals(&t);
    assert_int_equal(t.n_sets, 0);
    assert_true(isnan(t.mean) && isnan(t.worst));
    for (int i = 0; i < 3; i++) {
        struct recall_sample s = sample_of(1, 0);
        s.own = 0.5 + 0.25 * i;
        r[i] = recall_new();
        recall_fold(r[i], &s);
        recall_fold(r[i], &s);
    }
    recall_totals(&t);
    assert_int_equal(t.n_sets, 3);
    assert_int_equal(t.n_samples, 6);
    assert_true(t.mean == 0.75 && t.worst == 0.5);
    recall_free(r[1]);
    recall_free(r[0]);
    recall_totals(&t);
    assert_int_equal(t.n_sets, 1);
    assert_true(t.mean == 1 && t.worst == 1);
    recall_free(r[2]);
    recall_totals(&t);
    assert_int_equal(t.n_sets, 0);
}

/* --- a real set --- */

enum { DIM = 24, PATIENCE_S = 400 };

struct world {
    char dir[64];
    struct store *store;
    struct vset *v;
    struct index_scratch *scratch;
    struct recall_sampler *sampler;
    struct rng rng;
};

static void nothing(void *arg, struct vset *v)
{
    (void)arg;
    (void)v;
}

static void random_vector(struct rng *rng, float *out)
{
    for (int i = 0; i < DIM; i++)
        out[i] = (float)rng_unit(rng) - 0.5F;
}

static struct slice name_of(uint32_t name, char text[16])
{
    return (struct slice){text, (size_t)snprintf(text, 16, "e%u", name)};
}

static void put(struct world *w, uint32_t name, const float *vector)
{
    char text[16];
    struct err e = {0};
    bool added;
    struct vset_element element = {.name = name_of(name, text), .vector = vector};
    assert_int_equal(vset_add(w->v, &element, &added, &e), 0);
}

static void link_all(struct world *w)
{
    struct err e = {0};
    while (vset_link(w->v, w->scratch, &e) == 1)
        continue;
}

static void world_open(struct world *w, uint32_t n, enum vset_keep keep, uint32_t m)
{
    struct err e = {0};
    const struct vset_params params = {.index = {.kind = INDEX_HNSW,
                                                 .quant = INDEX_INT8,
                                                 .dim = DIM,
                                                 .m = m,
                                                 .ef_construction = 20},
                                       .keep = keep,
                                       .declared = true};
    rng_seed(&w->rng, unit_seed());
    unit_dir_make(w->dir);
    assert_int_equal(store_open(&w->store, w->dir, &(struct store_options){0}, &e), 0);
    const struct vset_options options = {
        .store = w->store, .tail_max = 64, .on_work = nothing, .on_dirty = nothing};
    assert_int_equal(vset_new(&w->v, 3, &params, NULL, &options, &e), 0);
    w->scratch = index_scratch_new();
    for (uint32_t i = 0; i < n; i++) {
        float vector[DIM];
        random_vector(&w->rng, vector);
        put(w, i, vector);
        link_all(w);
    }
    assert_int_equal(recall_sampler_start(&w->sampler, 50, &e), 0);
}

static void world_close(struct world *w)
{
    recall_sampler_stop(w->sampler);
    vset_unref(w->v);
    epoch_synchronize();
    store_close(w->store);
    index_scratch_free(w->scratch);
    unit_remove(w->dir);
}

static uint64_t samples(struct world *w, struct recall_figures *f)
{
    recall_figures(vset_recall(w->v), f);
    return f->n_samples;
}

/* Offers queries until so many are measured: the same one, or where vector is NULL any. */
static void sample(struct world *w, const float *vector, uint32_t ef, uint64_t n)
{
    struct recall_figures f;
    float any[DIM];
    int64_t end = clock_mono_us() + PATIENCE_S * INT64_C(1000000);
    while (samples(w, &f) < n) {
        assert_true(clock_mono_us() < end);
        if (!vector)
            random_vector(&w->rng, any);
        recall_offer(w->sampler, w->v, vector ? vector : any, ef);
        clock_sleep_us(1000);
    }
}

static float farthest_of_ten(struct world *w, const float *vector, float *all)
{
    uint32_t n = index_slots(vset_index(w->v)), found = 0;
    float stored[DIM], worst = 0;
    struct err e = {0};
    epoch_enter();
    for (uint32_t i = 0; i < n; i++) {
        const struct index_query q = {.vector = vector};
        int rc = 0;
        if (vset_params(w->v)->keep == VSET_KEEP_NONE)
            rc = index_distances(vset_index(w->v), w->scratch, &q, &i, 1, &all[i], &e);
        else if (vset_vector(w->v, i, stored, &e) == 0)
            all[i] = vector_distance(INDEX_COSINE, vector, stored, DIM);
        else
            all[i] = NAN;
        assert_int_equal(rc, 0);
    }
    epoch_exit();
    bool *taken = mem_calloc(n, sizeof *taken);
    for (; found < RECALL_K; found++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++)
            if (!taken[i] && !isnan(all[i]) && (best == n || all[i] < all[best]))
                best = i;
        taken[best] = true;
        worst = all[best];
    }
    mem_free(taken);
    return worst;
}

static void forget(struct recall *r)
{
    pthread_mutex_lock(&r->lock);
    memset(r->grid, 0, sizeof r->grid);
    memset(&r->own, 0, sizeof r->own);
    r->n_samples = 0;
    pthread_mutex_unlock(&r->lock);
}

/* One query again and again gives what a scan and a walk of the test's own give. */
static void figures_are_those_of_a_plain_count(enum vset_keep keep)
{
    enum { N = 1500, EF = 17 };
    struct world w;
    float vector[DIM];
    struct recall_figures f;
    world_open(&w, N, keep, 4);
    for (int round = 0; round < 3; round++) {
        random_vector(&w.rng, vector);
        forget(vset_recall(w.v));
        /* What still waits is of the query before: its figures are gone when it is over. */
        sample(&w, vector, EF, 1);
        forget(vset_recall(w.v));
        sample(&w, vector, EF, 3);
        samples(&w, &f);
        float *all = mem_alloc_n(index_slots(vset_index(w.v)), sizeof *all);
        float worst = farthest_of_ten(&w, vector, all);
        double best = 0;
        for (int i = -1; i < RECALL_GRID; i++) {
            struct index_hit hits[64];
            struct err e = {0};
            uint32_t k = keep == VSET_KEEP_NONE ? RECALL_K : 4 * RECALL_K, found = 0;
            const struct index_query q = {
                .vector = vector, .k = k, .ef = i < 0 ? EF : recall_grid[i]};
            epoch_enter();
            int64_t n = index_search(vset_index(w.v), w.scratch, &q, hits, &e);
            epoch_exit();
            for (int64_t j = 0; j < n; j++)
                found += all[hits[j].slot] <= worst;
            if (i < 0) {
                assert_true(fabs(f.recall_at_10 - found / (double)RECALL_K) < 1e-9);
                continue;
            }
            best = best < 1 ? found / (double)RECALL_K : 1;
            assert_true(fabs(f.grid[i].recall - best) < 1e-9);
        }
        mem_free(all);
    }
    world_close(&w);
}

static void codes_are_counted_as_a_plain_count_does(void **state)
{
    (void)state;
    figures_are_those_of_a_plain_count(VSET_KEEP_NONE);
}

static void full_vectors_are_counted_as_a_plain_count_does(void **state)
{
    (void)state;
    figures_are_those_of_a_plain_count(VSET_KEEP_F32);
}

/* Who asks for an ef and makes one search gets the set's own vectors measured as well. */
static void an_unknown_set_is_calibrated(void **state)
{
    (void)state;
    struct world w;
    struct recall_figures f;
    float vector[DIM];
    world_open(&w, 600, VSET_KEEP_NONE, 4);
    assert_int_equal(recall_ef(vset_recall(w.v), 0.9), RECALL_EF_UNKNOWN);
    random_vector(&w.rng, vector);
    sample(&w, vector, 50, 1);
    int64_t end = clock_mono_us() + PATIENCE_S * INT64_C(1000000);
    while (recall_wants_calibration(vset_recall(w.v))) {
        assert_true(clock_mono_us() < end);
        clock_sleep_us(1000);
    }
    /* One query and 28 vectors of a quarter each. */
    assert_true(samples(&w, &f) >= 29);
    assert_in_range(recall_ef(vset_recall(w.v), 0.9), 25, 1600);
    assert_true(f.grid[RECALL_GRID - 1].recall > 0.95);
    world_close(&w);
}

/* --- changes meanwhile --- */

struct churn {
    struct world *w;
    float query[DIM];
    _Atomic bool stop;
};

/* Adds, moves and removes elements near the query, so that the exact 10 nearest change all the
 * time, and leaves short pauses in which they do not. How short a pause can be for a sample to
 * fit in is the machine's to say: where many of them brought none, they are made longer. */
static void *churn_main(void *arg)
{
    enum { NEAR = 20, FIRST = 1000, IN_VAIN = 150 };
    struct churn *c = arg;
    struct recall_figures f;
    uint64_t seen = 0, pause_us = 300;
    int in_vain = 0;
    struct rng rng;
    rng_seed(&rng, 7);
    while (!atomic_load(&c->stop)) {
        char text[16];
        float vector[DIM];
        struct err e = {0};
        uint32_t name = FIRST + (uint32_t)rng_below(&rng, NEAR);
        random_vector(&rng, vector);
        for (int i = 0; i < DIM; i++)
            vector[i] = c->query[i] + vector[i] / 10;
        if (rng_below(&rng, 2))
            put(c->w, name, vector);
        else
            vset_remove(c->w->v, name_of(name, text), &e);
        if (rng_below(&rng, 8) == 0)
            link_all(c->w);
        epoch_collect();
        clock_sleep_us((int64_t)rng_below(&rng, pause_us));
        in_vain = samples(c->w, &f) > seen ? 0 : in_vain + 1;
        seen = f.n_samples;
        if (in_vain == IN_VAIN) {
            pause_us *= 2;
            in_vain = 0;
        }
    }
    return NULL;
}

/* A walk that keeps more candidates than the set has elements finds all that the graph leads
 * to, which now and then is all but one while neighbours of the removed are joined. What a
 * sample says below that would be made up by the change: without the rule for the removed it
 * is about 0.91. */
static void changes_are_no_misses(void **state)
{
    (void)state;
    struct world w;
    struct recall_figures f;
    pthread_t thread;
    struct churn c = {.w = &w};
    world_open(&w, 3000, VSET_KEEP_NONE, 8);
    random_vector(&w.rng, c.query);
    assert_int_equal(pthread_create(&thread, NULL, churn_main, &c), 0);
    sample(&w, c.query, 5000, 60);
    atomic_store(&c.stop, true);
    pthread_join(thread, NULL);
    samples(&w, &f);
    print_message("recall %.4f\n", f.recall_at_10);
    assert_true(f.recall_at_10 > 0.97);
    world_close(&w);
}

/* Until an offer of the set waits, or none does; where there is a vector, offers it. */
static void await_waiting(struct world *w, const float *vector, bool waiting)
{
    int64_t end = clock_mono_us() + PATIENCE_S * INT64_C(1000000);
    while (atomic_load(&vset_recall(w->v)->waiting) != waiting) {
        assert_true(clock_mono_us() < end);
        if (vector)
            recall_offer(w->sampler, w->v, vector, 50);
        clock_sleep_us(1000);
    }
}

static void a_dropped_set_is_let_go(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    float vector[DIM];
    world_open(&w, 50, VSET_KEEP_NONE, 4);
    random_vector(&w.rng, vector);
    recall_sampler_configure(w.sampler, 1e-6); /* it rests for long after the first */
    sample(&w, vector, 50, 1);
    await_waiting(&w, NULL, false);
    await_waiting(&w, vector, true);
    vset_mark_dropped(w.v);
    await_waiting(&w, NULL, false);
    recall_sampler_configure(w.sampler, 0);
    recall_offer(w.sampler, w.v, vector, 50); /* not taken */
    recall_offer(NULL, w.v, vector, 50);
    recall_sampler_stop(w.sampler);
    assert_int_equal(recall_sampler_start(&w.sampler, 0, &e), 0);
    world_close(&w);
}

/* Many sets, offers that find the queue full, and an end with offers still in it: what is
 * counted is given back, or the leak check says so. */
static void the_end_gives_back_what_waits(void **state)
{
    (void)state;
    enum { SETS = 60 };
    struct world w;
    struct vset *sets[SETS];
    struct err e = {0};
    float vector[DIM];
    world_open(&w, 50, VSET_KEEP_NONE, 4);
    recall_sampler_configure(w.sampler, 1e-6);
    random_vector(&w.rng, vector);
    const struct vset_options options = {
        .store = w.store, .tail_max = 64, .on_work = nothing, .on_dirty = nothing};
    for (uint32_t i = 0; i < SETS; i++) {
        bool added;
        struct vset_element element = {.name = {"e", 1}, .vector = vector};
        assert_int_equal(vset_new(&sets[i], 10 + i, vset_params(w.v), NULL, &options, &e), 0);
        assert_int_equal(vset_add(sets[i], &element, &added, &e), 0);
        recall_offer(w.sampler, sets[i], vector, 10);
        recall_offer(w.sampler, sets[i], vector, 10);
    }
    recall_sampler_stop(w.sampler);
    w.sampler = NULL;
    for (uint32_t i = 0; i < SETS; i++) {
        assert_false(atomic_load(&vset_recall(sets[i])->waiting));
        vset_unref(sets[i]);
    }
    world_close(&w);
}

static void no_memory_is_an_error(void **state)
{
    (void)state;
    struct recall_sampler *s;
    struct err e = {0};
    mem_fail_after(1);
    assert_null(recall_new());
    mem_fail_after(0);
    for (long n = 1; n <= 2; n++) {
        mem_fail_after(n);
        assert_int_equal(recall_sampler_start(&s, 1, &e), KITH_ENOMEM);
        mem_fail_after(0);
        assert_null(s);
    }
    recall_free(NULL);
    recall_sampler_stop(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_measured_is_a_safe_ef),
        cmocka_unit_test(ef_follows_what_was_measured),
        cmocka_unit_test(few_samples_ask_for_a_margin),
        cmocka_unit_test(what_is_not_reached_gets_the_largest),
        cmocka_unit_test(old_samples_fade),
        cmocka_unit_test(totals_are_of_all_sets_there_are),
        cmocka_unit_test(codes_are_counted_as_a_plain_count_does),
        cmocka_unit_test(full_vectors_are_counted_as_a_plain_count_does),
        cmocka_unit_test(an_unknown_set_is_calibrated),
        cmocka_unit_test(changes_are_no_misses),
        cmocka_unit_test(a_dropped_set_is_let_go),
        cmocka_unit_test(the_end_gives_back_what_waits),
        cmocka_unit_test(no_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
