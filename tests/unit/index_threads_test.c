/* Everything at once: an owner that adds and removes, two link workers, searchers, and a
 * checkpointer that saves and counts. Made for ThreadSanitizer; the answers are checked, too:
 * whatever was there before a search began and after it ended must not come back as something
 * else, and what was removed before must not come back at all. */
#include <assert.h>

#include "base/clock.h"
#include "tests/unit/index_fixture.h"

enum { SEED = 3141, N = 600, DIM = 16, OPERATIONS = 4000, STABLE = 100 };

static struct fixture f;
static float *x;
static _Atomic bool done;
/* By slot: odd while it is certainly gone, counts the changes. */
static _Atomic uint32_t change[N];
static _Atomic uint64_t n_searches, n_saves;
static bool can_add[N];

static void slot_is_free(void *arg, uint32_t slot)
{
    (void)arg;
    can_add[slot] = true; /* under the owner's lock */
}

static void *link_worker(void *arg)
{
    struct index_scratch *s = index_scratch_new();
    struct err e;
    (void)arg;
    while (!done || index_link_pending(f.index)) {
        int rc = index_link(f.index, s, &e);
        assert(rc >= 0);
        if (rc == 0)
            clock_sleep_us(20);
    }
    index_scratch_free(s);
    return NULL;
}

static void look(struct index_scratch *s, struct rng *r, struct index_hit *hits)
{
    uint32_t before[N], target = (uint32_t)rng_below(r, N);
    bool exact = rng_below(r, 8) == 0, found = false;
    struct index_query q = {
        .vector = x + (size_t)target * DIM, .k = 10, .ef = 60, .exact = exact};
    epoch_enter();
    for (uint32_t i = 0; i < N; i++)
        before[i] = atomic_load(&change[i]);
    int64_t n = index_search(f.index, s, &q, hits, NULL);
    assert(n >= 0);
    for (int64_t i = 0; i < n; i++) {
        uint32_t slot = hits[i].slot, now = atomic_load(&change[slot]);
        assert(slot < N && (i == 0 || hits[i - 1].distance <= hits[i].distance));
        /* Gone before the search and not back since: it must not be among the hits. */
        assert(!(before[slot] % 2 == 1 && now == before[slot]));
        for (int64_t k = 0; k < i; k++) /* met in the tail and again in the graph */
            assert(hits[k].slot != slot);
        found |= slot == target;
    }
    epoch_exit();
    if (target < STABLE && exact) /* never removed: the exact search must see it */
        assert(found && hits[0].slot == target);
    n_searches++;
}

static void *searcher(void *arg)
{
    struct index_scratch *s = index_scratch_new();
    struct index_hit hits[10];
    struct rng r;
    rng_seed(&r, SEED + (uint64_t)(uintptr_t)arg);
    while (!done)
        look(s, &r, hits);
    index_scratch_free(s);
    return NULL;
}

static void *checkpointer(void *arg)
{
    (void)arg;
    while (!done) {
        struct buf state;
        buf_init(&state);
        pthread_mutex_lock(&f.lock);
        index_save(f.index, &state);
        struct index_info info = index_info(f.index);
        pthread_mutex_unlock(&f.lock);
        assert(!state.failed && info.n_linked + info.n_tail + info.n_removing <= N);
        buf_deinit(&state);
        n_saves++;
        clock_sleep_us(500);
    }
    return NULL;
}

static void add(uint32_t slot)
{
    struct err e;
    pthread_mutex_lock(&f.lock);
    if (can_add[slot]) {
        atomic_fetch_add(&change[slot], 1);
        int rc = index_add(f.index, slot, x + (size_t)slot * DIM, slot, &e);
        assert(rc == 0);
        can_add[slot] = false;
    }
    pthread_mutex_unlock(&f.lock);
}

static void drop(uint32_t slot)
{
    struct err e;
    pthread_mutex_lock(&f.lock);
    if (index_remove(f.index, slot, &e) == 0)
        atomic_fetch_add(&change[slot], 1);
    pthread_mutex_unlock(&f.lock);
}

static void all_at_once(void **state)
{
    (void)state;
    struct rng rng;
    pthread_t threads[5];
    rng_seed(&rng, SEED);
    x = vectors(&rng, N, DIM, 10);
    fixture_open(&f, INDEX_HNSW, INDEX_INT8, DIM, 5, 30, N);
    index_free(f.index);
    f.options.on_slot_free = slot_is_free;
    f.options.tail_max = 64;
    assert_int_equal(index_open(&f.index, &f.params, &f.arrays, &f.options, NULL, 0, NULL), 0);
    for (uint32_t i = 0; i < N; i++) {
        can_add[i] = true;
        change[i] = 1;
    }
    for (uint32_t i = 0; i < STABLE; i++)
        add(i);
    pthread_create(&threads[0], NULL, link_worker, NULL);
    pthread_create(&threads[1], NULL, link_worker, NULL);
    pthread_create(&threads[2], NULL, searcher, (void *)1);
    pthread_create(&threads[3], NULL, searcher, (void *)2);
    pthread_create(&threads[4], NULL, checkpointer, NULL);
    for (int i = 0; i < OPERATIONS; i++) {
        uint32_t slot = STABLE + (uint32_t)rng_below(&rng, N - STABLE);
        if (rng_below(&rng, 5) < 3)
            add(slot);
        else
            drop(slot);
        while (index_tail_full(f.index))
            clock_sleep_us(50);
        if (i % 16 == 0)
            clock_sleep_us(20);
    }
    done = true;
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    fixture_link_all(&f);
    fixture_check(&f);
    uint32_t there = 0;
    for (uint32_t i = 0; i < N; i++)
        there += change[i] % 2 == 0;
    assert_int_equal(index_info(f.index).n_linked, there);
    double r = recall_of(&f, x, 100, 10, 60);
    print_message("%llu searches, %llu saves, %u left, recall@10 %.4f\n",
                  (unsigned long long)n_searches, (unsigned long long)n_saves, there, r);
    /* Nearly always above 0.99. But with m 5 a few slots may come to be an island that no walk
     * reaches, depending on the order in which the threads commit, and a query among them finds
     * nothing: 0.95 once in 300 runs. */
    assert_true(r > 0.9);
    fixture_reopen(&f);
    fixture_check(&f);
    fixture_close(&f);
    free(x);
}

int main(void)
{
    printf("seed %d, kernels %s\n", SEED, index_kernels_name());
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
