#pragma once
/* The tail: slots that are searchable but not yet in the graph, in the order they came.
 *
 *   ring:  … done │ head … claimed … next … waiting … end │ …      position & (cap - 1)
 *
 * Searches read it without a lock: every slot that was in the tail when a search began is
 * either met in the scan, or its place reads NONE, and then (release, acquire) its links are
 * visible. So a search scans the tail first and walks the graph after. A ring that is full is
 * replaced by one twice as large; the old one goes when its readers have left.
 *
 * Thread: the owner, but for tail_ring_now and the atomics below it (any, inside an epoch) and
 * tail_count (any). */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct tail_ring {
    _Atomic uint32_t head, end; /* positions; their difference is at most cap */
    uint32_t next;              /* owner: all before it were claimed once */
    uint32_t cap;               /* a power of two */
    uint8_t *claimed;           /* owner: by position */
    _Atomic uint32_t slots[];   /* INDEX_SLOT_NONE where done */
};

struct tail {
    _Atomic(struct tail_ring *) ring;
    _Atomic uint32_t n;         /* slots in it */
    _Atomic uint32_t n_waiting; /* of them not claimed */
};

int tail_init(struct tail *t, struct err *e);
void tail_deinit(struct tail *t);
/* Makes sure that the next tail_push has room. Not inside an epoch. */
int tail_reserve(struct tail *t, struct err *e);
void tail_push(struct tail *t, uint32_t slot);
/* Takes the oldest slot that nobody works on; one that was given back comes after all others.
 */
bool tail_claim(struct tail *t, uint32_t *slot);
void tail_unclaim(struct tail *t, uint32_t slot);
void tail_drop(struct tail *t, uint32_t slot);         /* claimed or not */
void tail_save(const struct tail *t, struct buf *out); /* varint count, then u32 slots */
size_t tail_heap_bytes(const struct tail *t);

static inline uint32_t tail_count(const struct tail *t)
{
    return atomic_load_explicit(&((struct tail *)(uintptr_t)t)->n, memory_order_acquire);
}

static inline struct tail_ring *tail_ring_now(const struct tail *t)
{
    return atomic_load_explicit(&((struct tail *)(uintptr_t)t)->ring, memory_order_acquire);
}
