#include "index/tail.h"

#include "base/epoch.h"
#include "base/mem.h"
#include "index/index.h"

enum { RING_FIRST = 16 };

static struct tail_ring *ring_new(uint32_t cap)
{
    size_t slots = (size_t)cap * sizeof(_Atomic uint32_t);
    struct tail_ring *r = mem_calloc(1, sizeof *r + slots + cap);
    if (r) {
        r->cap = cap;
        r->claimed = (uint8_t *)(r->slots + cap);
    }
    return r;
}

int tail_init(struct tail *t, struct err *e)
{
    struct tail_ring *r = ring_new(RING_FIRST);
    if (!r)
        return err_set(e, KITH_ENOMEM, "out of memory for the tail of an index");
    atomic_store(&t->ring, r);
    return 0;
}

void tail_deinit(struct tail *t)
{
    mem_free(tail_ring_now(t));
}

static uint32_t slot_at(struct tail_ring *r, uint32_t position)
{
    return atomic_load_explicit(&r->slots[position & (r->cap - 1)], memory_order_relaxed);
}

static uint32_t ring_head(struct tail_ring *r)
{
    return atomic_load_explicit(&r->head, memory_order_relaxed);
}

static uint32_t ring_end(struct tail_ring *r)
{
    return atomic_load_explicit(&r->end, memory_order_relaxed);
}

static void ring_append(struct tail_ring *r, uint32_t slot, uint8_t claimed)
{
    uint32_t end = ring_end(r);
    r->claimed[end & (r->cap - 1)] = claimed;
    atomic_store_explicit(&r->slots[end & (r->cap - 1)], slot, memory_order_release);
    atomic_store_explicit(&r->end, end + 1, memory_order_release);
}

int tail_reserve(struct tail *t, struct err *e)
{
    struct tail_ring *old = tail_ring_now(t);
    if (ring_end(old) - ring_head(old) < old->cap)
        return 0;
    struct tail_ring *r = old->cap <= UINT32_MAX / 4 ? ring_new(old->cap * 2) : NULL;
    if (!r)
        return err_set(e, KITH_ENOMEM, "out of memory for a tail of %u vectors", old->cap);
    for (uint32_t p = ring_head(old); p != ring_end(old); p++)
        if (slot_at(old, p) != INDEX_SLOT_NONE)
            ring_append(r, slot_at(old, p), old->claimed[p & (old->cap - 1)]);
    atomic_store_explicit(&t->ring, r, memory_order_release);
    epoch_retire(old, mem_free);
    return 0;
}

void tail_push(struct tail *t, uint32_t slot)
{
    ring_append(tail_ring_now(t), slot, 0);
    atomic_fetch_add(&t->n, 1);
    atomic_fetch_add(&t->n_waiting, 1);
}

bool tail_claim(struct tail *t, uint32_t *slot)
{
    struct tail_ring *r = tail_ring_now(t);
    uint32_t head = ring_head(r), end = ring_end(r);
    if (atomic_load(&t->n_waiting) == 0)
        return false;
    if (r->next - head > end - head)
        r->next = head; /* the head has passed it */
    for (uint32_t step = 0; step <= end - head; step++, r->next++) {
        if (r->next == end)
            r->next = head;
        uint8_t *claimed = &r->claimed[r->next & (r->cap - 1)];
        uint32_t found = slot_at(r, r->next);
        if (found != INDEX_SLOT_NONE && !*claimed) {
            *claimed = 1;
            *slot = found;
            r->next++;
            atomic_fetch_sub(&t->n_waiting, 1);
            return true;
        }
    }
    return false;
}

/* The position of a slot; it is there. */
static uint32_t find(struct tail_ring *r, uint32_t slot)
{
    uint32_t p = ring_head(r), end = ring_end(r);
    while (p != end && slot_at(r, p) != slot)
        p++;
    return p;
}

void tail_unclaim(struct tail *t, uint32_t slot)
{
    struct tail_ring *r = tail_ring_now(t);
    uint32_t p = find(r, slot);
    if (p != ring_end(r)) {
        r->claimed[p & (r->cap - 1)] = 0;
        atomic_fetch_add(&t->n_waiting, 1);
    }
}

void tail_drop(struct tail *t, uint32_t slot)
{
    struct tail_ring *r = tail_ring_now(t);
    uint32_t p = find(r, slot), end = ring_end(r);
    if (p == end)
        return;
    if (!r->claimed[p & (r->cap - 1)])
        atomic_fetch_sub(&t->n_waiting, 1);
    atomic_store_explicit(&r->slots[p & (r->cap - 1)], INDEX_SLOT_NONE, memory_order_release);
    atomic_fetch_sub(&t->n, 1);
    uint32_t head = ring_head(r);
    while (head != end && slot_at(r, head) == INDEX_SLOT_NONE)
        head++;
    atomic_store_explicit(&r->head, head, memory_order_release);
}

void tail_save(const struct tail *t, struct buf *out)
{
    struct tail_ring *r = tail_ring_now(t);
    buf_varint(out, tail_count(t));
    for (uint32_t p = ring_head(r); p != ring_end(r); p++)
        if (slot_at(r, p) != INDEX_SLOT_NONE)
            buf_u32(out, slot_at(r, p));
}

size_t tail_heap_bytes(const struct tail *t)
{
    struct tail_ring *r = tail_ring_now(t);
    return sizeof *r + (size_t)r->cap * (sizeof(_Atomic uint32_t) + 1);
}
