#pragma once
/* The inside of an index: what its files share. Everything not atomic belongs to the owner (the
 * holder of options.owner), but for params, arrays and options, which never change. */

#include <stdatomic.h>

#include "index/code.h"
#include "index/index.h"
#include "index/scratch.h"
#include "index/tail.h"

struct slot_list {
    uint32_t *v;
    size_t n, cap;
};

/* A removed slot whose links are gone: readers and link jobs of before `stamp` may still hold
 * it. */
struct buried {
    uint32_t slot;
    uint64_t stamp;
};

struct index {
    struct index_params params;
    struct index_arrays arrays;
    struct index_options options;
    uint32_t max0, max; /* links at level 0 and above */

    _Atomic uint64_t entry; /* level << 32 | slot */
    _Atomic uint32_t n_linked, n_removing;
    struct tail tail;

    uint32_t n_upper;    /* records of `upper` ever used */
    uint32_t upper_free; /* first free record + 1, chained through `next`; 0: none */

    /* A removed slot is in one of: queue, a job, buried. */
    struct slot_list queue;
    size_t queue_first;
    struct buried *buried;
    size_t n_buried, cap_buried;
    _Atomic uint32_t n_queued, n_to_free; /* what others may read of the two */
    bool reclaiming;                      /* a worker waits for readers on their behalf */

    struct link_job *jobs; /* under way: between its claim and its commit */
    uint64_t job_clock;
};

static inline uint64_t entry_pack(unsigned level, uint32_t slot)
{
    return (uint64_t)level << 32 | slot;
}

static inline uint32_t entry_slot(uint64_t entry)
{
    return (uint32_t)entry;
}

static inline unsigned entry_level(uint64_t entry)
{
    return (unsigned)(entry >> 32);
}

static inline bool entry_none(uint64_t entry)
{
    return entry_slot(entry) == INDEX_SLOT_NONE;
}

static inline uint64_t index_entry(struct index *x)
{
    return atomic_load_explicit(&x->entry, memory_order_acquire);
}

/* Slots that every array has. */
static inline uint32_t index_n_slots(struct index *x)
{
    uint32_t n = records_count(x->arrays.codes);
    if (x->arrays.links && records_count(x->arrays.links) < n)
        n = records_count(x->arrays.links);
    return n;
}

static inline const struct code *index_code_at(struct index *x, uint32_t slot, struct err *e)
{
    return (const struct code *)(const void *)records_at(x->arrays.codes, slot, e);
}

/* The code of records_at's failure: e has it, or it is damage. */
static inline int index_damage(const struct err *e)
{
    return e && e->code < 0 ? e->code : KITH_ECORRUPT;
}

/* The longest list a scratch must hold: that of a slot and a newcomer. */
static inline size_t index_batch_size(const struct index *x)
{
    return x->max0 + 2 < 64 ? 64 : x->max0 + 2;
}

/* How many codes ahead a scan asks for; flat.c says why. */
static inline uint32_t index_scan_lead(const struct index *x)
{
    enum { AHEAD_BYTES = 12288 };
    return AHEAD_BYTES / x->arrays.codes->stride + 1;
}

/* Asks for the lines of a record from byte `from` on, into the second-level cache. */
static inline void index_prefetch(const void *record, uint32_t from, uint32_t bytes)
{
    for (uint32_t at = from; at < bytes; at += 64)
        __builtin_prefetch((const char *)record + at, 0, 2);
}

/* distances.c: the code of a slot that holds a vector; a query's own form of itself, in
 * s->query_row (and scratch_fit). Inside an epoch. */
int index_live_code(struct index *x, uint32_t slot, const struct code **out, struct err *e);
int index_make_query(struct index *x, struct index_scratch *s, const struct index_query *q,
                     struct code_query *out, struct err *e);

/* The slot's meta, or CODE_FREE's where there is no such slot. Owner. */
int index_meta(struct index *x, uint32_t slot, uint32_t *meta, struct err *e);
int index_set_state(struct index *x, uint32_t slot, enum code_state state, struct err *e);

/* flat.c: scans into s->tail the `most` nearest of the tail, marking them as visited. */
int tail_scan(struct index *x, struct index_scratch *s, const struct code_query *q, size_t most,
              const struct index_query *query, struct err *e);
int flat_scan(struct index *x, struct index_scratch *s, const struct code_query *q, size_t most,
              const struct index_query *query, struct err *e);

/* removal.c: from index_remove to on_slot_free. */
int removal_reserve(struct index *x, struct err *e); /* the next one cannot fail */
int removal_enqueue(struct index *x, uint32_t slot, struct err *e);
bool removal_claim(struct index *x, uint32_t *slot);
void removal_give_back(struct index *x, uint32_t slot);
void removal_forget(struct index *x); /* one that was claimed and is no removal */
void removal_bury(struct index *x, uint32_t slot);
/* Waits for readers, then frees what can be freed. Called and returns with the lock held; lets
 * go of it while it waits. Returns how many were freed, or a negative code. */
int removal_reclaim(struct index *x, struct err *e);
void removal_save(const struct index *x, struct buf *out);
void removal_deinit(struct index *x);
