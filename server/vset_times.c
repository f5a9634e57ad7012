/* When elements expire.
 *
 * The time of a slot lies in an array of its own, 8 bytes a slot, which has no records before
 * the first element is given a time. It is written before the slot is published and not again
 * before it has been handed back, so readers need no lock; a slot that is used again has its
 * old time written over, and one that is free may keep it.
 *
 * Which one is next is asked of a heap in memory, made from the array when a set is opened.
 * Entries of elements that are gone stay until they come to the top, and when they are more
 * than half of all the heap is made anew. An entry holds when its slot is live and has that
 * time; so one that was left behind by an earlier element of the same slot and time is as good
 * as the right one.
 *
 * Nothing expires here by itself: vset_expired names an element, and an effect removes it. */
#include "base/epoch.h"
#include "base/mem.h"
#include "server/vset_parts.h"

enum { HEAP_SLACK = 64 };

static struct records *times(struct vset *v)
{
    return chunks_records(v->arrays[ARRAY_TIMES]);
}

int vset_read_expiry(struct vset *v, uint32_t slot, int64_t *expire_ms, struct err *e)
{
    *expire_ms = 0;
    if (slot >= records_count(times(v)))
        return 0;
    const char *p = records_at(times(v), slot, e);
    if (!p)
        return KITH_ECORRUPT;
    *expire_ms = (int64_t)load_u64(p);
    return 0;
}

int64_t vset_expires_at(struct vset *v, uint32_t slot)
{
    int64_t at;
    if (vset_read_expiry(v, slot, &at, NULL) != 0)
        atomic_store_explicit(&v->damaged, true, memory_order_relaxed);
    return at;
}

/* --- the heap --- */

static void publish(struct times *t)
{
    int64_t next = t->n ? t->heap[0].expire_ms : INT64_MAX;
    atomic_store_explicit(&t->next_ms, next, memory_order_release);
}

static void sift_up(struct times *t, uint32_t at)
{
    struct due d = t->heap[at];
    for (; at > 0 && t->heap[(at - 1) / 2].expire_ms > d.expire_ms; at = (at - 1) / 2)
        t->heap[at] = t->heap[(at - 1) / 2];
    t->heap[at] = d;
}

static void sift_down(struct times *t, uint32_t at)
{
    struct due d = t->heap[at];
    for (uint32_t child; (child = 2 * at + 1) < t->n; at = child) {
        if (child + 1 < t->n && t->heap[child + 1].expire_ms < t->heap[child].expire_ms)
            child++;
        if (t->heap[child].expire_ms >= d.expire_ms)
            break;
        t->heap[at] = t->heap[child];
    }
    t->heap[at] = d;
}

static void pop(struct times *t)
{
    t->heap[0] = t->heap[--t->n];
    if (t->n > 0)
        sift_down(t, 0);
}

/* Whether the entry's element is there, with that time. Inside a bracket. */
static bool entry_holds(struct vset *v, const struct due *d)
{
    int64_t at;
    const struct elem *el = elem_at(v, d->slot, NULL);
    return el && elem_live(el) && vset_read_expiry(v, d->slot, &at, NULL) == 0 &&
           at == d->expire_ms;
}

static void make_heap(struct times *t)
{
    for (uint32_t i = t->n / 2; i-- > 0;)
        sift_down(t, i);
}

static void sweep(struct vset *v)
{
    struct times *t = &v->times;
    uint32_t n = 0;
    epoch_enter();
    for (uint32_t i = 0; i < t->n; i++)
        if (entry_holds(v, &t->heap[i]))
            t->heap[n++] = t->heap[i];
    epoch_exit();
    t->n = n;
    make_heap(t);
    publish(t);
}

static int reserve(struct times *t, uint32_t n, struct err *e)
{
    if (n <= t->cap)
        return 0;
    uint32_t cap = n < 16 ? 16 : n > UINT32_MAX / 2 ? UINT32_MAX : n + n / 2;
    struct due *heap = mem_realloc_n(t->heap, cap, sizeof *heap);
    if (!heap)
        return err_set(e, KITH_ENOMEM, "out of memory for %u elements that expire", n);
    t->heap = heap;
    t->cap = cap;
    return 0;
}

/* --- from outside --- */

int times_write(struct vset *v, uint32_t slot, int64_t expire_ms, struct err *e)
{
    struct times *t = &v->times;
    int64_t before;
    epoch_enter();
    int rc = vset_read_expiry(v, slot, &before, e);
    epoch_exit();
    if (rc != 0)
        return rc;
    if (expire_ms) {
        if (t->n > HEAP_SLACK + 2 * (uint64_t)t->n_expiring)
            sweep(v);
        rc = reserve(t, t->n + 1, e);
        if (rc == 0)
            rc = records_grow(times(v), slot + 1, e);
        if (rc != 0)
            return rc;
    }
    if (before == expire_ms)
        return 0;
    char *p = records_writable(times(v), slot, e);
    if (!p)
        return e->code;
    store_u64(p, (uint64_t)expire_ms);
    return 0;
}

void times_add(struct vset *v, uint32_t slot, int64_t expire_ms)
{
    struct times *t = &v->times;
    if (!expire_ms)
        return;
    t->heap[t->n++] = (struct due){expire_ms, slot};
    sift_up(t, t->n - 1);
    t->n_expiring++;
    publish(t);
}

void times_forget(struct vset *v, uint32_t slot)
{
    int64_t at;
    epoch_enter();
    (void)vset_read_expiry(v, slot, &at, NULL);
    epoch_exit();
    if (at && v->times.n_expiring > 0)
        v->times.n_expiring--;
}

bool vset_expired(struct vset *v, int64_t now_ms, struct buf *out)
{
    struct times *t = &v->times;
    bool found = false;
    if (vset_next_expiry(v) > now_ms)
        return false;
    pthread_mutex_lock(&v->owner);
    epoch_enter();
    while (!found && t->n > 0) {
        if (!entry_holds(v, &t->heap[0])) {
            pop(t);
            continue;
        }
        if (t->heap[0].expire_ms > now_ms)
            break;
        size_t before = out->len;
        struct err why = {0};
        found = vset_name(v, t->heap[0].slot, out, &why) && !out->failed;
        if (out->failed)
            break; /* out of memory; another time */
        if (!found) {
            out->len = before;
            pop(t); /* damaged, and nothing can name it */
        }
    }
    epoch_exit();
    publish(t);
    pthread_mutex_unlock(&v->owner);
    return found;
}

int64_t vset_next_expiry(struct vset *v)
{
    return atomic_load_explicit(&v->times.next_ms, memory_order_acquire);
}

int times_load(struct vset *v, struct err *e)
{
    struct times *t = &v->times;
    int rc = 0;
    if (records_count(times(v)) == 0)
        return 0;
    epoch_enter(); /* nothing is retired here */
    struct table_walk w = {0};
    for (uint32_t slot; rc == 0 && (slot = table_next(&v->table, &w)) != INDEX_SLOT_NONE;) {
        int64_t at;
        rc = vset_read_expiry(v, slot, &at, e);
        if (rc == 0 && at && (rc = reserve(t, t->n + 1, e)) == 0)
            t->heap[t->n++] = (struct due){at, slot};
    }
    epoch_exit();
    t->n_expiring = t->n;
    make_heap(t);
    publish(t);
    return rc;
}

void times_deinit(struct times *t)
{
    mem_free(t->heap);
}

size_t times_heap_bytes(const struct times *t)
{
    return (size_t)t->cap * sizeof *t->heap;
}
