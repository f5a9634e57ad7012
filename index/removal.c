/* The way of a removed slot: queue, job, buried, free.
 *
 * index_remove marks the code, so that the slot is out of every later result, and queues it. A
 * link worker unlinks it (hnsw_unlink.c; flat has nothing to unlink) and buries it. Two kinds
 * of people may still hold its number then: searches, which stand in an epoch, and link jobs
 * that were prepared before, which will check the states of what they chose when they commit.
 * It is given back when an epoch has passed and every job of before its burial has ended; so a
 * number that somebody holds never means another vector, and no generation counter is needed
 * beside it.
 *
 * Waiting for readers costs as long as the longest search, so it is done for a whole batch, and
 * without the lock. */
#include "base/epoch.h"
#include "index/hnsw.h"

int removal_reserve(struct index *x, struct err *e)
{
    /* Room for all removals in each list, so that later steps cannot fail. */
    size_t total = atomic_load(&x->n_removing) + (size_t)1;
    if (x->cap_buried < total) {
        size_t cap = x->cap_buried * 2 > total ? x->cap_buried * 2 : total + 15;
        struct buried *b = mem_realloc_n(x->buried, cap, sizeof *b);
        if (!b)
            return err_set(e, KITH_ENOMEM, "out of memory for %zu removals", total);
        x->buried = b;
        x->cap_buried = cap;
    }
    struct slot_list *q = &x->queue;
    if (q->n == q->cap && x->queue_first > q->cap / 2) {
        q->n -= x->queue_first;
        memmove(q->v, q->v + x->queue_first, q->n * sizeof *q->v);
        x->queue_first = 0;
    }
    /* Room for what jobs may give back, too. */
    if (q->n + total + 1 > q->cap) {
        size_t cap = (q->n + total) * 2 + 16;
        uint32_t *v = mem_realloc_n(q->v, cap, sizeof *v);
        if (!v)
            return err_set(e, KITH_ENOMEM, "out of memory for %zu removals", total);
        q->v = v;
        q->cap = cap;
    }
    return 0;
}

int removal_enqueue(struct index *x, uint32_t slot, struct err *e)
{
    int rc = removal_reserve(x, e);
    if (rc != 0)
        return rc;
    x->queue.v[x->queue.n++] = slot;
    atomic_fetch_add(&x->n_removing, 1);
    atomic_fetch_add(&x->n_queued, 1);
    return 0;
}

bool removal_claim(struct index *x, uint32_t *slot)
{
    if (x->queue_first == x->queue.n)
        return false;
    *slot = x->queue.v[x->queue_first++];
    if (x->queue_first == x->queue.n)
        x->queue_first = x->queue.n = 0;
    atomic_fetch_sub(&x->n_queued, 1);
    return true;
}

void removal_give_back(struct index *x, uint32_t slot)
{
    struct slot_list *q = &x->queue;
    if (x->queue_first > 0) {
        q->n -= x->queue_first;
        memmove(q->v, q->v + x->queue_first, q->n * sizeof *q->v);
        x->queue_first = 0;
    }
    q->v[q->n++] = slot;
    atomic_fetch_add(&x->n_queued, 1);
}

void removal_forget(struct index *x)
{
    atomic_fetch_sub(&x->n_removing, 1);
}

void removal_bury(struct index *x, uint32_t slot)
{
    x->buried[x->n_buried++] = (struct buried){slot, ++x->job_clock};
    atomic_fetch_add(&x->n_to_free, 1);
}

static uint64_t oldest_job(const struct index *x)
{
    uint64_t oldest = UINT64_MAX;
    for (const struct link_job *j = x->jobs; j; j = j->next)
        oldest = j->start < oldest ? j->start : oldest;
    return oldest;
}

/* 1, 0 for one that was freed before (a wrong file had named it twice), or a negative code. */
static int free_slot(struct index *x, uint32_t slot, struct err *e)
{
    uint32_t meta;
    int rc = index_meta(x, slot, &meta, e);
    if (rc < 0 || code_meta_state(meta) != CODE_REMOVED)
        return rc;
    if (x->arrays.links && (rc = hnsw_upper_free(x, slot, e)) != 0)
        return rc;
    rc = index_set_state(x, slot, CODE_FREE, e);
    return rc < 0 ? rc : 1;
}

int removal_reclaim(struct index *x, struct err *e)
{
    size_t n = x->n_buried, kept = 0;
    if (n == 0 || x->reclaiming)
        return 0;
    x->reclaiming = true;
    pthread_mutex_unlock(x->options.owner);
    epoch_synchronize();
    pthread_mutex_lock(x->options.owner);
    x->reclaiming = false;
    uint64_t oldest = oldest_job(x);
    int rc = 0, freed = 0;
    for (size_t i = 0; i < x->n_buried; i++) {
        struct buried b = x->buried[i];
        if (i >= n || b.stamp >= oldest || rc < 0 || (rc = free_slot(x, b.slot, e)) < 0) {
            x->buried[kept++] = b;
            continue;
        }
        freed++;
        atomic_fetch_sub(&x->n_removing, 1);
        atomic_fetch_sub(&x->n_to_free, 1);
        if (rc == 1 && x->options.on_slot_free)
            x->options.on_slot_free(x->options.arg, b.slot);
    }
    x->n_buried = kept;
    return rc < 0 ? rc : freed;
}

void removal_save(const struct index *x, struct buf *out)
{
    buf_varint(out, atomic_load(&((struct index *)(uintptr_t)x)->n_removing));
    for (size_t i = x->queue_first; i < x->queue.n; i++)
        buf_u32(out, x->queue.v[i]);
    for (const struct link_job *j = x->jobs; j; j = j->next)
        if (j->kind == LINK_REMOVE)
            buf_u32(out, j->slot);
    for (size_t i = 0; i < x->n_buried; i++)
        buf_u32(out, x->buried[i].slot);
}

void removal_deinit(struct index *x)
{
    mem_free(x->queue.v);
    mem_free(x->buried);
}
