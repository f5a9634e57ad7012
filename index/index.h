#pragma once
/* Vector indexes behind one interface: flat (exact, and the oracle of all others) and hnsw.
 *
 * An index knows vectors by slot numbers, 0 .. n-1, that its owner gives out; it does not know
 * names, texts or where its arrays live. It keeps two record arrays it is handed:
 *   codes   one record a slot: the quantized vector
 *   links   hnsw, level 0: { count, up to 2M slots }; levels above in `upper`, one record a
 *           (slot, level), chained
 * Codes and links lie apart: a checkpoint rewrites every chunk touched since the last, linking
 * touches the links of dozens of old elements for each new one, and codes never change.
 *
 * Vectors are normalised on the way in, and the scale (L2 norm) is kept with the code; see
 * enum index_metric for what a distance is.
 *
 * A new vector is searchable at once and linked soon: index_add writes its code and puts it in
 * the *tail*, which searches scan flat; link workers (index_link) take it into the graph. A
 * removed vector leaves the results at once; index_link also unlinks it, repairs its neighbours
 * and hands the slot back through `on_slot_free` when no reader can hold it.
 *
 * Threads. One owner at a time (the lock handed to index_open) calls add, remove, save, and
 * commits; index_link may be called by many threads and takes the lock itself for its short
 * commit. Searches and the readers below them come from any thread, take no lock, and stand
 * inside an epoch bracket, which the caller keeps until it has turned slots into names; each
 * thread brings its own struct index_scratch. The owner's calls and index_link are made outside
 * of any bracket.
 *
 *   Y. Malkov and D. Yashunin, Efficient and robust approximate nearest neighbor search using
 *   Hierarchical Navigable Small World graphs (2018): algorithms 1 to 5. */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/records.h"

enum index_kind { INDEX_FLAT = 1, INDEX_HNSW = 2 };
enum index_quant { INDEX_F32 = 1, INDEX_INT8 = 2, INDEX_F16 = 3, INDEX_BIN = 4 };
/* What a distance is, smaller is nearer:
 *   COSINE  1 - cosine, in [0, 2]
 *   L2      the squared Euclidean distance
 *   IP      minus the inner product: any number
 * Whatever the metric, a code is the vector scaled to length 1, quantized, and the length
 * beside it; L2 and IP follow from the cosine of two codes and their lengths. */
enum index_metric { INDEX_COSINE = 0, INDEX_L2 = 1, INDEX_IP = 2 };

enum { INDEX_DIM_MAX = 65536, INDEX_M_MIN = 4, INDEX_M_MAX = 4096, INDEX_EF_MAX = 1000000 };
enum { INDEX_SLOT_NONE = UINT32_MAX };

struct index_params {
    enum index_kind kind;
    enum index_quant quant;
    enum index_metric metric;
    uint32_t dim;             /* 1 .. INDEX_DIM_MAX */
    uint32_t m;               /* links a level above 0; level 0 has 2m (flat: unused) */
    uint32_t ef_construction; /* default 200 */
};

/* The strides of the arrays an index of these parameters needs. */
uint32_t index_code_stride(const struct index_params *p);
uint32_t index_links_stride(const struct index_params *p); /* 0 where the kind has none */
uint32_t index_upper_stride(const struct index_params *p);

struct index_arrays {
    struct records *codes, *links, *upper; /* links and upper NULL for flat */
};

struct index_options {
    pthread_mutex_t *owner; /* the collection's lock */
    uint32_t tail_max; /* unlinked vectors at which index_tail_full says so; default 4,096 */
    /* Called with the owner's lock held when a removed slot may be given out again. */
    void (*on_slot_free)(void *arg, uint32_t slot);
    void *arg;
};

struct index;

/* `state` is what index_save wrote at the checkpoint the arrays stand for (NULL: a new index).
 * Work that was under way then (unlinked, half-removed slots) is found in it and resumed.
 * Errors: KITH_EINVAL, KITH_ENOMEM, KITH_ECORRUPT (state and arrays do not fit). */
int index_open(struct index **out, const struct index_params *params,
               const struct index_arrays *arrays, const struct index_options *options,
               const void *state, size_t state_bytes, struct err *e);
/* When no search and no link worker is inside. */
void index_free(struct index *x);
const struct index_params *index_params(const struct index *x);

/* Owner. vector: dim floats, finite; a zero vector has cosine 0 to everything (BIN, which knows
 * signs alone, takes every 0 for a minus). level_seed decides the level (hash of the element's
 * name), so that levels are the same on every node. The arrays must already have the slot: the
 * owner grows codes and links, the index grows upper. Errors: KITH_EINVAL, KITH_EEXISTS (in
 * use, or removed and not yet handed back), KITH_ENOMEM, KITH_ECORRUPT; nothing has changed
 * then. */
int index_add(struct index *x, uint32_t slot, const float *vector, uint64_t level_seed,
              struct err *e);
/* Owner. Errors: KITH_ENOTFOUND, KITH_ENOMEM, KITH_ECORRUPT; nothing has changed then. */
int index_remove(struct index *x, uint32_t slot, struct err *e);
/* Owner. With its errors, and then the next index_remove, of this slot and before the lock is
 * let go of, cannot fail. */
int index_prepare_remove(struct index *x, uint32_t slot, struct err *e);
/* Owner. What a checkpoint needs besides the arrays: entry point, counts, tail, pending
 * removals. Small. */
void index_save(struct index *x, struct buf *out);

/* True when writers should wait for link workers. Any thread. */
bool index_tail_full(const struct index *x);
/* Whether index_link has anything to do. Any thread. */
bool index_link_pending(const struct index *x);

struct index_scratch;
struct index_scratch *index_scratch_new(void); /* serves any index; grows as needed */
void index_scratch_free(struct index_scratch *s);
/* The codes that walks of graphs with this scratch have looked at so far. Its thread. */
uint64_t index_scratch_visits(const struct index_scratch *s);

/* Links one vector of the tail, unlinks one removed slot, or hands a batch of unlinked slots
 * back. Returns 1 when something was done, 0 when there is nothing to do now (what
 * index_link_pending still shows then waits for a call under way on another thread, which will
 * return 1), or a negative code (damage, out of memory: the vector stays in the tail and
 * searchable, and its turn comes again after all others; pause before the next call). Takes the
 * owner's lock for its commit; the caller holds no lock and stands in no epoch bracket. */
int index_link(struct index *x, struct index_scratch *s, struct err *e);

struct index_hit {
    uint32_t slot;
    float distance; /* see enum index_metric */
};

struct index_query {
    const float *vector; /* dim floats; need not be normalised */
    uint32_t slot;       /* or the stored vector of this slot, when vector is NULL */
    uint32_t k;          /* how many at most */
    uint32_t ef;         /* candidates kept; at least k is used */
    bool exact;          /* flat scan over everything, whatever the kind */
    /* Vectors looked at after which a walk of the graph ends with what it has: the bound on a
     * search whose accept mostly says no. 0: none. */
    uint32_t max_visits;
    /* May be NULL: keeps a hit only where it returns true. An exact scan asks it before it
     * computes a distance; a walk asks it once for each slot that would be kept. */
    bool (*accept)(void *arg, uint32_t slot);
    void *arg;
    struct index_search_stats *stats; /* NULL, or set at the end */
};

struct index_search_stats {
    uint32_t n_visits;   /* codes looked at */
    uint32_t n_rejected; /* slots that accept said no to */
    bool cut;            /* max_visits ended the walk */
};

/* Writes up to k hits, best first (ties by slot), and returns how many, or a negative code. */
int64_t index_search(struct index *x, struct index_scratch *s, const struct index_query *q,
                     struct index_hit *hits, struct err *e);

/* What a search of a share `selectivity` of all slots (those that accept says yes to; 1: no
 * accept) is expected to cost, to choose between a walk and an exact scan by. `codes` is time,
 * in units of one code looked at by a walk of this index; calls of accept come on top. An
 * estimate within a factor of 2 where a filter does not go with the vectors; where it does, a
 * walk may look at all there is, so give it max_visits = the codes of the scan. cost.c has the
 * measurements. Any thread. */
struct index_cost {
    double codes, accepts;
};
struct index_cost index_walk_cost(struct index *x, uint32_t k, uint32_t ef, double selectivity);
struct index_cost index_scan_cost(struct index *x, double selectivity);

/* The distance of each of n slots to the query (its vector or slot; nothing else of it is
 * looked at): out[i] is NAN where the slot holds no vector that a search would find. Any
 * thread, inside an epoch. Fast where the slots are in order. */
int index_distances(struct index *x, struct index_scratch *s, const struct index_query *q,
                    const uint32_t *slots, uint32_t n, float *out, struct err *e);
/* Slot numbers are below this; grows only. Any thread. */
uint32_t index_slots(struct index *x);

/* The stored vector as floats, with its length (for int8: code * range / 127 * norm). out: dim.
 */
int index_vector(struct index *x, uint32_t slot, float *out, struct err *e);
/* The code as stored: bytes, L2 norm, and for int8 the range (else 0). */
struct index_code {
    const void *bytes;
    size_t n_bytes;
    float norm, range;
};
int index_code(struct index *x, uint32_t slot, struct index_code *out, struct err *e);

/* The neighbours of a slot at a level of the graph, nearest first. hits: room for 2m. Returns
 * how many, or KITH_ENOTFOUND where the slot has no vector or does not reach the level; a slot
 * still in the tail has none. Any thread, inside an epoch. */
int64_t index_links(struct index *x, struct index_scratch *s, uint32_t slot, uint32_t level,
                    struct index_hit *hits, struct err *e);

struct index_info {
    uint32_t n_linked, n_tail, n_removing, max_level;
    uint32_t entry; /* INDEX_SLOT_NONE when empty */
};
struct index_info index_info(const struct index *x);
size_t index_heap_bytes(const struct index *x); /* besides the arrays */

/* Verifies the invariants (links point at live slots and back, levels chained, counts):
 * calls note for each finding. Owner, or offline. Returns the findings or a negative code. */
int64_t index_check(struct index *x, void (*note)(void *arg, uint32_t slot, const char *what),
                    void *arg, struct err *e);

/* Which kernels were chosen at start: "avx512", "avx2", "neon", "scalar"; KITH_KERNELS forces
 * one. */
const char *index_kernels_name(void);
