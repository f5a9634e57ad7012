/* Link workers: threads that take new vectors from the tails of sets into their graphs, and
 * finish removals. Sets with work stand in one queue; workers go round it and do a few links of
 * each, so that one big import does not starve the others, and several workers may serve one
 * set. They run at a lower priority than those who answer clients. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/shard_parts.h"

enum { LINKS_PER_TURN = 32, LINKER_NICE = 5, DAMAGE_PAUSE_US = 100000, NOTHING_PAUSE_US = 200 };

void linker_notify(void *arg, struct vset *v)
{
    struct shard *s = arg;
    pthread_mutex_lock(&s->linker.lock);
    vset_queue_push(&s->linker.work, v);
    pthread_cond_signal(&s->linker.wake);
    pthread_mutex_unlock(&s->linker.lock);
}

uint64_t linker_pending(struct shard *s)
{
    uint64_t n = 0;
    pthread_mutex_lock(&s->linker.lock);
    for (struct vset *v = s->linker.work.first; v; v = vset_queue_next(&s->linker.work, v))
        n += index_info(vset_index(v)).n_tail;
    pthread_mutex_unlock(&s->linker.lock);
    return n;
}

/* The next set with work, counted; waits. It goes to the back of the queue at once, so that
 * other workers may serve it too. NULL when stopping. */
static struct vset *next_set(struct linker *l)
{
    struct vset *v = NULL;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && !l->work.first)
            pthread_cond_wait(&l->wake, &l->lock);
        if (l->stop)
            break;
        v = vset_queue_pop(&l->work);
        if (!vset_dropped(v) && index_link_pending(vset_index(v))) {
            vset_queue_push(&l->work, v);
            break;
        }
        vset_unref(v);
        v = NULL;
    }
    pthread_mutex_unlock(&l->lock);
    return v;
}

static void *link_main(void *arg)
{
    struct shard *s = arg;
    struct index_scratch *scratch = NULL;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), LINKER_NICE);
    for (struct vset *v; (v = next_set(&s->linker)); vset_unref(v)) {
        struct err e = {0};
        int rc = 1;
        if (!scratch && !(scratch = index_scratch_new()))
            rc = err_set(&e, KITH_ENOMEM, "out of memory");
        for (int i = 0; rc == 1 && i < LINKS_PER_TURN && !vset_dropped(v); i++)
            rc = vset_link(v, scratch, &e);
        if (rc < 0) {
            log_warning("linking in vector set %u: %s; it is tried again", vset_id(v),
                        e.message);
            clock_sleep_us(DAMAGE_PAUSE_US);
        } else if (rc == 0) {
            clock_sleep_us(NOTHING_PAUSE_US); /* others are at the last pieces */
        }
        shard_wake_writers(s);
    }
    index_scratch_free(scratch);
    return NULL;
}

int linker_start(struct shard *s, struct err *e)
{
    struct linker *l = &s->linker;
    unsigned n = s->options.link_threads;
    if (n == 0)
        n = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    l->threads = mem_calloc(n, sizeof *l->threads);
    if (!l->threads)
        return err_set(e, KITH_ENOMEM, "out of memory");
    for (; l->n_threads < n; l->n_threads++)
        if (pthread_create(&l->threads[l->n_threads], NULL, link_main, s) != 0) {
            linker_stop(s);
            return err_set(e, KITH_EIO, "cannot start a link thread");
        }
    return 0;
}

void linker_stop(struct shard *s)
{
    struct linker *l = &s->linker;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->wake);
    pthread_mutex_unlock(&l->lock);
    for (unsigned i = 0; i < l->n_threads; i++)
        pthread_join(l->threads[i], NULL);
    mem_free(l->threads);
    l->threads = NULL;
    l->n_threads = 0;
}
