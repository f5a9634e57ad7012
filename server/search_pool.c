#include "server/search_pool.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

enum { WORST_FADES = 64 }; /* the longest job's time shrinks by one part of so many a job */

struct search_pool {
    pthread_t *threads;
    unsigned n_threads, n_helpers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    /* Under the lock. */
    struct search_job *first, **tail;
    unsigned n_queued, n_queued_long;
    unsigned n_asleep; /* threads that nobody has woken */
    unsigned n_waking; /* threads that were woken and have not looked at the queue yet */
    int64_t worst_us;  /* the longest a job took, fading */
    bool stop;
};

/* --- with the lock --- */

static bool jobs_are_short(const struct search_pool *p)
{
    return p->worst_us < SEARCH_SHORT_US;
}

static unsigned wanted_awake(const struct search_pool *p)
{
    if (!jobs_are_short(p) || p->n_queued_long > 0)
        return p->n_threads;
    return p->n_threads > p->n_helpers ? p->n_threads - p->n_helpers : 1;
}

/* Has one more thread look at the queue, when there is one that should. */
static void wake_one(struct search_pool *p)
{
    if (p->n_asleep == 0 || p->n_threads - p->n_asleep >= wanted_awake(p))
        return;
    p->n_asleep--;
    p->n_waking++;
    pthread_cond_signal(&p->wake);
}

/* The first job, or the first that is not long; NULL when there is none. */
static struct search_job *pop(struct search_pool *p, bool also_long)
{
    struct search_job **at = &p->first, *job;
    while ((job = *at) && job->is_long && !also_long)
        at = &job->next;
    if (!job)
        return NULL;
    *at = job->next;
    if (!*at)
        p->tail = at;
    p->n_queued--;
    p->n_queued_long -= job->is_long;
    return job;
}

static int64_t cpu_us(const struct rusage *u)
{
    return (u->ru_utime.tv_sec + u->ru_stime.tv_sec) * INT64_C(1000000) + u->ru_utime.tv_usec +
           u->ru_stime.tv_usec;
}

/* How long the job kept its thread. That the processor was given to another process meanwhile
 * does not make it a long one: that comes to all threads alike. */
static int64_t run_and_measure(struct search_job *job)
{
    struct rusage before, after;
    getrusage(RUSAGE_THREAD, &before);
    int64_t start_us = clock_mono_us();
    job->run(job);
    int64_t took_us = clock_mono_us() - start_us;
    if (took_us < SEARCH_SHORT_US)
        return took_us;
    getrusage(RUSAGE_THREAD, &after);
    bool slept = after.ru_nvcsw > before.ru_nvcsw;
    return slept ? took_us : cpu_us(&after) - cpu_us(&before);
}

/* Gives the lock back while the job runs. */
static void run(struct search_pool *p, struct search_job *job)
{
    bool is_long = job->is_long;
    pthread_mutex_unlock(&p->lock);
    int64_t took_us = run_and_measure(job);
    pthread_mutex_lock(&p->lock);
    if (is_long)
        return; /* it was known, and says nothing about the others */
    p->worst_us -= p->worst_us / WORST_FADES;
    if (took_us > p->worst_us)
        p->worst_us = took_us;
}

/* --- the threads --- */

static void *search_main(void *arg)
{
    struct search_pool *p = arg;
    pthread_mutex_lock(&p->lock);
    do {
        while (p->n_waking == 0 && !p->stop)
            pthread_cond_wait(&p->wake, &p->lock);
        if (p->n_waking > 0)
            p->n_waking--;
        for (struct search_job *job; (job = pop(p, true));)
            run(p, job);
        p->n_asleep++;
    } while (!p->stop);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int search_pool_new(struct search_pool **out, unsigned n_threads, unsigned n_helpers,
                    struct err *e)
{
    if (n_threads == 0) {
        long n = sysconf(_SC_NPROCESSORS_ONLN);
        n_threads = n > 0 ? (unsigned)n : 1;
    }
    struct search_pool *p = mem_calloc(1, sizeof *p);
    if (!p)
        return err_set(e, KITH_ENOMEM, "out of memory for the search threads");
    p->n_helpers = n_helpers;
    p->tail = &p->first;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->threads = mem_calloc(n_threads, sizeof *p->threads);
    if (!p->threads) {
        search_pool_free(p);
        return err_set(e, KITH_ENOMEM, "out of memory for the search threads");
    }
    pthread_mutex_lock(&p->lock);
    int rc = 0;
    while (rc == 0 && p->n_threads < n_threads) {
        rc = pthread_create(&p->threads[p->n_threads], NULL, search_main, p);
        p->n_threads += rc == 0;
    }
    p->n_asleep = p->n_threads;
    pthread_mutex_unlock(&p->lock);
    if (rc) {
        search_pool_free(p);
        return err_set_errno(e, rc, "cannot start a search thread");
    }
    *out = p;
    return 0;
}

unsigned search_pool_threads(const struct search_pool *p)
{
    return p ? p->n_threads : 0;
}

void search_pool_put(struct search_pool *p, struct search_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&p->lock);
    *p->tail = job;
    p->tail = &job->next;
    p->n_queued++;
    p->n_queued_long += job->is_long;
    wake_one(p);
    pthread_mutex_unlock(&p->lock);
}

bool search_pool_help(struct search_pool *p)
{
    pthread_mutex_lock(&p->lock);
    struct search_job *job = NULL;
    if (p->n_queued > p->n_waking) {
        if (jobs_are_short(p))
            job = pop(p, false);
        if (job)
            run(p, job);
        else
            wake_one(p); /* put while jobs were short, and now they are not */
    }
    pthread_mutex_unlock(&p->lock);
    return job != NULL;
}

void search_pool_free(struct search_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    mem_free(p->threads);
    mem_free(p);
}
