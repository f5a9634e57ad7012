#pragma once
/* Record arrays: fixed-size records behind a table of chunks.
 *
 * This is the shape that storage gives and the index uses; it stands on the floor so that
 * neither knows the other. Record i lies in chunk i / per_chunk, at (i % per_chunk) * stride:
 * one load and one multiplication more than a flat array.
 *
 *   table ──► [ptr][ptr][ 0 ][ptr] …      0: not looked at yet; records_at faults it in
 *               │    └──► chunk in the store's map, read-only: nothing to load at start
 *               └──► chunk on the heap, written since the last checkpoint
 *
 * Readers (records_at) take no lock and stand inside an epoch bracket: a pointer they got stays
 * readable until they leave, though it may go stale. The one owner (records_writable,
 * records_grow) holds the collection's lock. Fields that readers read while the owner writes
 * must be atomics of the reader's and owner's own; records_at orders the chunk's first contents
 * before its pointer. A record is zero until first written. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct records;

struct records_ops {
    /* Slow path of records_at: gives the chunk's bytes (and publishes them in the table), or
     * NULL when its checksum is wrong or memory is out (the reason goes into e). Thread: any,
     * inside an epoch. */
    const char *(*fault)(struct records *r, uint32_t chunk, struct err *e);
    /* See records_writable. */
    char *(*writable)(struct records *r, uint32_t i, struct err *e);
    /* See records_grow. */
    int (*grow)(struct records *r, uint32_t n, struct err *e);
};

typedef _Atomic(char *) records_slot;

struct records {
    _Atomic(records_slot *) table;
    uint64_t magic;     /* floor(2^64 / per_chunk) + 1: exact quotients for 32-bit i */
    uint32_t per_chunk; /* records in a full chunk, at least 1 */
    uint32_t stride;    /* bytes a record */
    _Atomic uint32_t n; /* records that exist; grows only */
    const struct records_ops *ops;
};

/* Sets magic, per_chunk and stride. */
static inline void records_shape(struct records *r, uint32_t per_chunk, uint32_t stride)
{
    r->per_chunk = per_chunk;
    r->stride = stride;
    r->magic = per_chunk == 1 ? 0 : UINT64_MAX / per_chunk + 1;
}

static inline uint32_t records_chunk_of(const struct records *r, uint32_t i)
{
    if (r->per_chunk == 1)
        return i;
    __extension__ typedef unsigned __int128 wide;
    return (uint32_t)(((wide)i * r->magic) >> 64);
}

/* The record i, i < n. NULL only when its chunk is damaged or memory is out, with the reason in
 * e (which may be NULL). Owns: the array; valid until the caller leaves its epoch bracket. */
static inline const char *records_at(struct records *r, uint32_t i, struct err *e)
{
    uint32_t chunk = records_chunk_of(r, i);
    records_slot *table = atomic_load_explicit(&r->table, memory_order_acquire);
    const char *p = atomic_load_explicit(&table[chunk], memory_order_acquire);
    if (__builtin_expect(p == NULL, 0)) {
        p = r->ops->fault(r, chunk, e);
        if (!p)
            return NULL;
    }
    return p + (size_t)(i - chunk * r->per_chunk) * r->stride;
}

/* The record i < n for writing: the first write to a chunk since the last checkpoint copies it
 * to the heap. The pointer is good until the next writable, grow or checkpoint of this array;
 * do not keep it. Thread: the owner. */
static inline char *records_writable(struct records *r, uint32_t i, struct err *e)
{
    return r->ops->writable(r, i, e);
}

/* Makes records 0 .. n-1 exist (new ones zero). Thread: the owner. */
static inline int records_grow(struct records *r, uint32_t n, struct err *e)
{
    return r->ops->grow(r, n, e);
}

static inline uint32_t records_count(struct records *r)
{
    return atomic_load_explicit(&r->n, memory_order_acquire);
}

/* A record array on the heap alone, for tests, benches and temporary indexes. */
struct records *records_heap_new(uint32_t stride);
void records_heap_free(struct records *r);
