#include "engine/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/mem.h"

/* How a job starts and ends.
 *
 *   state:  | generation : 47 bits | OPEN : 1 bit | workers inside : 16 bits |
 *
 * The caller writes the job's fields, then publishes a new generation with OPEN set. A worker
 * that sees an open generation joins by adding one to the low bits, takes parts from the shared
 * counter until none is left, and takes its one away again. When the caller finds no part left
 * it clears OPEN, after which nobody can join, and waits until the count is zero: only then may
 * the fields change. So a worker that is asleep or was taken off its core never delays a job it
 * did not join, and the caller alone can finish any job.
 *
 * Rejected: a barrier that every worker must pass. It is simpler, but one worker that has lost
 * its core then holds up every one of the dozen short jobs of a forward pass.
 *
 * Sleeping. Both sides spin for a moment and then wait on a condition. The sleeper announces
 * itself (sleepers, caller_sleeps) before it looks at the state a last time under the lock, and
 * the other side changes the state before it looks at the announcement, all sequentially
 * consistent: one of the two always sees the other.
 *
 * Processors. The scheduler likes to wake a thread where its waker runs, and where two threads
 * take turns at spinning and sleeping it has no reason to part them for milliseconds, which is
 * a whole short text: two threads on one of two processors were slower than one thread (7.2 ms
 * instead of 5.9 for ten tokens after a rest). So before the caller wakes the workers it sends
 * them to other processors than its own; where the pool has a thread for every processor, each
 * to one of its own. Neither keeps anybody else away: a worker that has lost its processor
 * takes fewer parts. A pool with more threads than processors leaves all to the scheduler. */

enum { INSIDE_BITS = 16, SPINS = 4000 };

static const uint64_t OPEN = (uint64_t)1 << INSIDE_BITS;
static const uint64_t INSIDE = ((uint64_t)1 << INSIDE_BITS) - 1;
static const uint64_t GENERATION = (uint64_t)1 << (INSIDE_BITS + 1);

struct worker {
    struct pool *pool;
    pthread_t thread;
    unsigned index;
};

struct pool {
    _Alignas(64) _Atomic uint64_t state;
    _Alignas(64) _Atomic uint32_t next_part;
    _Alignas(64) atomic_uint sleepers;
    atomic_bool caller_sleeps;
    atomic_bool resting; /* no reason to spin */
    atomic_bool stop;

    /* The job; written by the caller while nobody is inside. */
    void (*fn)(void *arg, uint32_t part, unsigned thread);
    void *arg;
    uint32_t n_parts;

    pthread_mutex_t lock; /* only for sleeping and waking */
    pthread_cond_t work, done;
    unsigned n_workers;
    struct worker *workers;

    cpu_set_t allowed; /* what the process may use, as it was at the start */
    int placed_for;    /* the caller's processor when the workers were placed; -1: never */
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* --- where the threads run --- */

/* The n-th allowed processor behind `cpu`, in a circle. */
static size_t processor_after(const cpu_set_t *allowed, size_t cpu, unsigned n)
{
    while (n > 0) {
        cpu = (cpu + 1) % CPU_SETSIZE;
        n -= CPU_ISSET(cpu, allowed) ? 1 : 0;
    }
    return cpu;
}

/* By the caller. What the system refuses is left as it was. */
static void place_workers(struct pool *p)
{
    int here = sched_getcpu();
    size_t cpu = (size_t)here;
    unsigned n_allowed = (unsigned)CPU_COUNT(&p->allowed);
    if (here < 0 || here == p->placed_for || !CPU_ISSET(cpu, &p->allowed) ||
        p->n_workers + 1 > n_allowed)
        return;
    p->placed_for = here;
    for (unsigned i = 0; i < p->n_workers; i++) {
        cpu_set_t mask = p->allowed;
        CPU_CLR(cpu, &mask);
        if (p->n_workers + 1 == n_allowed) {
            CPU_ZERO(&mask);
            CPU_SET(processor_after(&p->allowed, cpu, i + 1), &mask);
        }
        pthread_setaffinity_np(p->workers[i].thread, sizeof mask, &mask);
    }
}

/* --- the job --- */

static void take_parts(struct pool *p, unsigned thread)
{
    for (;;) {
        uint32_t part = atomic_fetch_add_explicit(&p->next_part, 1, memory_order_relaxed);
        if (part >= p->n_parts)
            return;
        p->fn(p->arg, part, thread);
    }
}

/* Waits until the state differs from `seen` in generation and is open, or the pool stops. */
static bool wait_for_job(struct pool *p, uint64_t seen)
{
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&p->resting, memory_order_relaxed))
            break;
        uint64_t s = atomic_load_explicit(&p->state, memory_order_acquire);
        if ((s & OPEN) && s / GENERATION != seen)
            return true;
        relax();
    }
    bool job = false;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!atomic_load(&p->stop)) {
        uint64_t s = atomic_load(&p->state);
        job = (s & OPEN) && s / GENERATION != seen;
        if (job)
            break;
        pthread_cond_wait(&p->work, &p->lock);
    }
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return job;
}

static void leave_job(struct pool *p)
{
    uint64_t before = atomic_fetch_sub(&p->state, 1);
    if ((before & INSIDE) == 1 && !(before & OPEN) && atomic_load(&p->caller_sleeps)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_signal(&p->done);
        pthread_mutex_unlock(&p->lock);
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    uint64_t seen = 0;
    while (wait_for_job(p, seen)) {
        uint64_t s = atomic_load(&p->state);
        while ((s & OPEN) && !atomic_compare_exchange_weak(&p->state, &s, s + 1))
            ;
        if (!(s & OPEN))
            continue;
        seen = s / GENERATION;
        take_parts(p, w->index);
        leave_job(p);
    }
    return NULL;
}

static void wait_until_empty(struct pool *p)
{
    for (int spin = 0; spin < SPINS; spin++) {
        if (!(atomic_load_explicit(&p->state, memory_order_acquire) & INSIDE))
            return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->state) & INSIDE)
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(struct pool *p, uint32_t n_parts,
              void (*fn)(void *arg, uint32_t part, unsigned thread), void *arg)
{
    if (p->n_workers == 0 || n_parts < 2) {
        for (uint32_t part = 0; part < n_parts; part++)
            fn(arg, part, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n_parts = n_parts;
    atomic_store_explicit(&p->next_part, 0, memory_order_relaxed);
    atomic_store_explicit(&p->resting, false, memory_order_relaxed);
    uint64_t generation =
        atomic_load_explicit(&p->state, memory_order_relaxed) / GENERATION + 1;
    atomic_store(&p->state, generation * GENERATION | OPEN);
    if (atomic_load(&p->sleepers) > 0) {
        place_workers(p);
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->lock);
    }
    take_parts(p, 0);
    atomic_fetch_and(&p->state, ~OPEN);
    wait_until_empty(p);
}

void pool_rest(struct pool *p)
{
    atomic_store_explicit(&p->resting, true, memory_order_relaxed);
}

unsigned pool_threads(const struct pool *p)
{
    return p->n_workers + 1;
}

static void stop_workers(struct pool *p)
{
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_workers; i++)
        pthread_join(p->workers[i].thread, NULL);
}

int pool_new(struct pool **out, unsigned n_threads, struct err *e)
{
    if (n_threads < 1 || n_threads > INSIDE)
        return err_set(e, KITH_EINVAL, "a pool has 1 to %u threads, not %u", (unsigned)INSIDE,
                       n_threads);
    struct pool *p = mem_alloc_aligned(_Alignof(struct pool), sizeof *p);
    struct worker *workers = mem_calloc(n_threads, sizeof *workers);
    if (!p || !workers) {
        mem_free(workers);
        mem_free(p);
        return err_set(e, KITH_ENOMEM, "out of memory for a pool of %u threads", n_threads);
    }
    *p = (struct pool){.workers = workers, .placed_for = -1};
    if (sched_getaffinity(0, sizeof p->allowed, &p->allowed) != 0)
        CPU_ZERO(&p->allowed); /* more processors than a cpu_set_t has: nobody is placed */
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    for (unsigned i = 0; i + 1 < n_threads; i++) {
        struct worker *w = &workers[i];
        *w = (struct worker){.pool = p, .index = i + 1};
        int rc = pthread_create(&w->thread, NULL, worker_main, w);
        if (rc != 0) {
            pool_free(p);
            return err_set_errno(e, rc, "cannot start thread %u of the compute pool", i + 1);
        }
        p->n_workers++;
    }
    *out = p;
    return 0;
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    stop_workers(p);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    mem_free(p->workers);
    mem_free(p);
}
