/* The threads that searches run on: every job runs once, in order, and nobody waits in vain. */
#include "tests/unit/unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/search_pool.h"

enum { JOBS = 2000 };

struct task {
    struct search_job job; /* first */
    _Atomic unsigned *n_run;
    unsigned nth; /* which one it was to run */
    pthread_t thread;
    _Atomic bool *hold; /* runs until this is true */
    _Atomic bool started;
    int64_t least_us;
};

static void run_task(struct search_job *self)
{
    struct task *t = (struct task *)self;
    t->thread = pthread_self();
    atomic_store(&t->started, true);
    while (t->hold && !atomic_load(t->hold))
        clock_sleep_us(50);
    if (t->least_us > 0)
        clock_sleep_us(t->least_us);
    t->nth = atomic_fetch_add(t->n_run, 1);
}

static void wait_for(_Atomic unsigned *n_run, unsigned n)
{
    while (atomic_load(n_run) < n)
        clock_sleep_us(50);
}

static void one_thread_runs_all_in_order(void **state)
{
    (void)state;
    struct search_pool *p;
    static struct task tasks[JOBS];
    _Atomic unsigned n_run = 0;
    assert_int_equal(search_pool_new(&p, 1, 1, NULL), 0);
    assert_int_equal(search_pool_threads(p), 1);
    for (int i = 0; i < JOBS; i++) {
        tasks[i] = (struct task){.job.run = run_task, .n_run = &n_run};
        search_pool_put(p, &tasks[i].job);
    }
    search_pool_free(p); /* which runs what is queued */
    assert_int_equal(n_run, JOBS);
    for (unsigned i = 0; i < JOBS; i++)
        assert_int_equal(tasks[i].nth, i);
}

struct putter {
    struct search_pool *pool;
    struct task tasks[JOBS];
    _Atomic unsigned *n_run;
    unsigned n_helped;
};

static void *put_all(void *arg)
{
    struct putter *me = arg;
    for (int i = 0; i < JOBS; i++) {
        me->tasks[i] = (struct task){.job.run = run_task, .n_run = me->n_run};
        search_pool_put(me->pool, &me->tasks[i].job);
        if (i % 3 == 0)
            me->n_helped += search_pool_help(me->pool);
    }
    return NULL;
}

static void all_run_once_whoever_puts_and_helps(void **state)
{
    (void)state;
    static struct putter putters[3];
    pthread_t threads[3];
    _Atomic unsigned n_run = 0;
    struct search_pool *p;
    assert_int_equal(search_pool_new(&p, 3, 3, NULL), 0);
    for (int i = 0; i < 3; i++) {
        putters[i] = (struct putter){.pool = p, .n_run = &n_run};
        assert_int_equal(pthread_create(&threads[i], NULL, put_all, &putters[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    wait_for(&n_run, 3 * JOBS);
    search_pool_free(p);
    assert_int_equal(n_run, 3 * JOBS);
}

/* Two threads and a helper, short jobs: one thread works, and the helper has the next. */
static void a_helper_takes_what_waits_while_jobs_are_short(void **state)
{
    (void)state;
    struct search_pool *p;
    _Atomic unsigned n_run = 0;
    _Atomic bool go = false;
    struct task first = {.job.run = run_task, .n_run = &n_run, .hold = &go};
    struct task second = {.job.run = run_task, .n_run = &n_run};
    assert_int_equal(search_pool_new(&p, 2, 1, NULL), 0);
    assert_false(search_pool_help(p));
    search_pool_put(p, &first.job);
    while (!atomic_load(&first.started)) /* it is left to the thread that was woken for it */
        assert_false(search_pool_help(p));
    search_pool_put(p, &second.job);
    assert_true(search_pool_help(p));
    assert_true(pthread_equal(second.thread, pthread_self()));
    assert_int_equal(n_run, 1);
    atomic_store(&go, true);
    wait_for(&n_run, 2);
    assert_false(pthread_equal(first.thread, pthread_self()));
    search_pool_free(p);
}

static void a_helper_takes_no_long_job(void **state)
{
    (void)state;
    struct search_pool *p;
    _Atomic unsigned n_run = 0;
    _Atomic bool go = false;
    struct task held[2], last[2];
    assert_int_equal(search_pool_new(&p, 2, 1, NULL), 0);
    for (int i = 0; i < 2; i++) { /* a thread is woken for each */
        held[i] = (struct task){
            .job = {.run = run_task, .is_long = true}, .n_run = &n_run, .hold = &go};
        search_pool_put(p, &held[i].job);
    }
    for (int i = 0; i < 2; i++)
        while (!atomic_load(&held[i].started))
            assert_false(search_pool_help(p));
    last[0] = (struct task){.job = {.run = run_task, .is_long = true}, .n_run = &n_run};
    last[1] = (struct task){.job.run = run_task, .n_run = &n_run};
    search_pool_put(p, &last[0].job);
    assert_false(search_pool_help(p));
    search_pool_put(p, &last[1].job);
    assert_true(search_pool_help(p));
    assert_false(atomic_load(&last[0].started));
    assert_true(pthread_equal(last[1].thread, pthread_self()));
    atomic_store(&go, true);
    search_pool_free(p);
    assert_int_equal(n_run, 4);
    assert_int_equal(last[1].nth, 0);
}

static void jobs_that_turn_out_long_are_left_to_the_threads(void **state)
{
    (void)state;
    struct search_pool *p;
    _Atomic unsigned n_run = 0;
    _Atomic bool go = false;
    struct task slow = {.job.run = run_task, .n_run = &n_run, .least_us = SEARCH_SHORT_US * 2};
    struct task brief = {.job.run = run_task, .n_run = &n_run};
    struct task held = {.job.run = run_task, .n_run = &n_run, .hold = &go};
    struct task third = {.job.run = run_task, .n_run = &n_run};
    assert_int_equal(search_pool_new(&p, 2, 1, NULL), 0);
    /* From the end of the slow one on jobs are long, and the brief one comes after its end. */
    search_pool_put(p, &slow.job);
    search_pool_put(p, &brief.job);
    wait_for(&n_run, 2);
    search_pool_put(p, &held.job);
    search_pool_put(p, &third.job);
    while (atomic_load(&n_run) < 3) { /* the second thread has it, though the first is held */
        assert_false(search_pool_help(p));
        clock_sleep_us(50);
    }
    assert_false(pthread_equal(third.thread, pthread_self()));
    atomic_store(&go, true);
    search_pool_free(p);
    assert_int_equal(n_run, 4);
}

static void no_memory_leaves_nothing(void **state)
{
    (void)state;
    struct search_pool *p = NULL;
    for (long n = 1; n <= 2; n++) {
        struct err e = {0};
        mem_fail_after(n);
        int rc = search_pool_new(&p, 2, 1, &e);
        mem_fail_after(0);
        assert_int_equal(rc, KITH_ENOMEM);
        assert_null(p);
    }
    search_pool_free(NULL);
    assert_int_equal(search_pool_threads(NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_thread_runs_all_in_order),
        cmocka_unit_test(all_run_once_whoever_puts_and_helps),
        cmocka_unit_test(a_helper_takes_what_waits_while_jobs_are_short),
        cmocka_unit_test(a_helper_takes_no_long_job),
        cmocka_unit_test(jobs_that_turn_out_long_are_left_to_the_threads),
        cmocka_unit_test(no_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
