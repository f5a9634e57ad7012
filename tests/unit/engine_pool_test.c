/* The compute pool: every part once, on a thread of its own index, over many short jobs;
 * sleeping workers wake; failures at start leave nothing behind. Run under TSan for the rest.
 */

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/random.h"
#include "engine/pool.h"
#include "tests/unit/unit.h"

enum { PARTS_MAX = 300, THREADS_MAX = 5 };

struct tally {
    atomic_uint calls[PARTS_MAX];
    unsigned plain[PARTS_MAX]; /* no atomic: TSan sees it if two threads get one part */
    atomic_uint on_thread[THREADS_MAX];
    unsigned n_threads;
};

static void count_part(void *arg, uint32_t part, unsigned thread)
{
    struct tally *t = arg;
    assert_true(part < PARTS_MAX);
    assert_true(thread < t->n_threads);
    t->plain[part]++;
    atomic_fetch_add(&t->calls[part], 1);
    atomic_fetch_add(&t->on_thread[thread], 1);
}

static void run_and_check(struct pool *p, uint32_t n_parts)
{
    static struct tally t;
    memset(&t, 0, sizeof t);
    t.n_threads = pool_threads(p);
    pool_run(p, n_parts, count_part, &t);
    for (uint32_t i = 0; i < PARTS_MAX; i++) {
        assert_int_equal(atomic_load(&t.calls[i]), i < n_parts ? 1 : 0);
        assert_int_equal(t.plain[i], i < n_parts ? 1 : 0);
    }
}

static void every_part_runs_once(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, 1);
    printf("seed 1\n");
    for (unsigned threads = 1; threads <= THREADS_MAX; threads++) {
        struct pool *p;
        assert_int_equal(pool_new(&p, threads, NULL), 0);
        assert_int_equal(pool_threads(p), threads);
        run_and_check(p, 0);
        run_and_check(p, 1);
        run_and_check(p, PARTS_MAX);
        for (int job = 0; job < 300; job++)
            run_and_check(p, (uint32_t)rng_below(&rng, 20));
        pool_free(p);
    }
}

static void add_one(void *arg, uint32_t part, unsigned thread)
{
    uint64_t *sums = arg;
    (void)thread;
    sums[part * 16]++; /* a cache line a part */
}

static void many_short_jobs(void **state)
{
    (void)state;
    enum { JOBS = 5000, PARTS = 6 };
    static uint64_t sums[PARTS * 16];
    struct pool *p;
    assert_int_equal(pool_new(&p, 3, NULL), 0);
    for (int job = 0; job < JOBS; job++)
        pool_run(p, PARTS, add_one, sums); /* what one job wrote the next one reads */
    for (int i = 0; i < PARTS; i++)
        assert_int_equal(sums[i * 16], JOBS);
    pool_free(p);
}

static void sleepers_wake(void **state)
{
    (void)state;
    struct pool *p;
    assert_int_equal(pool_new(&p, 3, NULL), 0);
    for (int i = 0; i < 5; i++) {
        clock_sleep_us(5000); /* far beyond the spinning */
        run_and_check(p, 50);
    }
    for (int i = 0; i < 2000; i++) {
        pool_rest(p); /* while some still spin, or are on their way to sleep */
        run_and_check(p, 50);
    }
    pool_free(p);
}

static void slow_part(void *arg, uint32_t part, unsigned thread)
{
    atomic_uint *threads_seen = arg;
    (void)part;
    clock_sleep_us(3000);
    atomic_fetch_or(threads_seen, 1u << thread);
}

static void work_is_shared_and_awaited(void **state)
{
    (void)state;
    struct pool *p;
    atomic_uint seen = 0;
    assert_int_equal(pool_new(&p, 2, NULL), 0);
    /* The caller has to sleep for the last part. On a busy machine the other thread may come
     * too late for one job, but not for all of them. */
    for (int i = 0; i < 4 || (i < 1000 && atomic_load(&seen) != 3); i++)
        pool_run(p, 9, slow_part, &seen);
    assert_int_equal(atomic_load(&seen), 3);
    pool_free(p);
}

/* On how many processors may thread 1 run? */
static void count_processors(void *arg, uint32_t part, unsigned thread)
{
    atomic_uint *processors = arg;
    cpu_set_t mask;
    (void)part;
    assert_int_equal(sched_getaffinity(0, sizeof mask, &mask), 0);
    if (thread == 1)
        atomic_store(processors, (unsigned)CPU_COUNT(&mask));
    clock_sleep_us(3000);
}

/* They are placed when they are woken, so they get time to fall asleep before each job; on a
 * busy machine that may take some. */
static void workers_get(unsigned n_threads, unsigned n_processors)
{
    struct pool *p;
    atomic_uint processors = 0; /* 0 before the worker had a part */
    assert_int_equal(pool_new(&p, n_threads, NULL), 0);
    for (int i = 0; i < 5 || (i < 500 && atomic_load(&processors) != n_processors); i++) {
        clock_sleep_us(5000);
        pool_run(p, 3 * n_threads, count_processors, &processors);
    }
    pool_free(p);
    assert_int_equal(atomic_load(&processors), n_processors);
}

static void workers_are_kept_off_the_callers_processor(void **state)
{
    (void)state;
    cpu_set_t before, after;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    unsigned n = (unsigned)CPU_COUNT(&before);
    if (n >= 2)
        workers_get(2, n - 1);
    if (n >= 3)
        workers_get(n, 1);
    workers_get(n + 1, n); /* more threads than processors */
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after)); /* the caller is nobody's to place */
}

static void refuses_and_fails_cleanly(void **state)
{
    (void)state;
    struct pool *p = NULL;
    struct err e;
    assert_int_equal(pool_new(&p, 0, &e), KITH_EINVAL);
    assert_int_equal(pool_new(&p, 1u << 20, &e), KITH_EINVAL);
    for (long n = 1;; n++) {
        mem_fail_after(n);
        int rc = pool_new(&p, 4, &e);
        mem_fail_after(0);
        if (rc == 0)
            break;
        assert_int_equal(rc, KITH_ENOMEM);
        assert_true(n < 10);
    }
    pool_free(p);
    pool_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_part_runs_once),
        cmocka_unit_test(many_short_jobs),
        cmocka_unit_test(sleepers_wake),
        cmocka_unit_test(work_is_shared_and_awaited),
        cmocka_unit_test(workers_are_kept_off_the_callers_processor),
        cmocka_unit_test(refuses_and_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
