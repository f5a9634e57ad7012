#pragma once
/* A vector set: named elements over an index, with their texts, and its place in the store.
 *
 * It joins the index (slots, vectors) with what the index does not know: element names, texts,
 * the model that made the vectors, and the five chunked arrays everything lives in:
 *
 *   array 8*id+0  codes   the index's quantized vectors
 *   array 8*id+1  links   the index's level 0 links
 *   array 8*id+2  upper   the index's links above
 *   array 8*id+3  elems   48 bytes a slot: { u32 name_n, u32 name_hash, u32 more, u32 state,
 *                         32 bytes of the name }
 *   array 8*id+4  names   32 bytes a unit: { u32 next, 28 bytes }: the rest of longer names,
 *                         chained from elems.more (unit + 1, 0: none)
 *   blob (id, slot)       the element's text
 *   blob (id, ~0)         the set's record: parameters, counts, the index's state
 *
 * An update of an element is a new slot and the removal of the old one. The table from names to
 * slots is in memory only; it is made from elems when the set is opened, in milliseconds.
 *
 * Threads. `owner` is the set's lock. Adding and removing need the shard's lock too (the order
 * of effects); link workers and the checkpointer take `owner` alone. vset_find needs the
 * shard's lock; searching and vset_name need an epoch bracket and a count (vset_ref), no lock.
 * Lock order: shard, then owner. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "index/index.h"
#include "storage/store.h"

enum { VSET_NAME_MAX = 65535, VSET_ARRAYS = 5 };

/* Which model made the vectors; name is "" when no text was ever embedded into the set. */
struct vset_model {
    char name[128], hash[33], pooling[16];
};

struct vset;

struct vset_options {
    struct store *store;
    uint32_t tail_max;
    /* Something is to be linked (or there is room again when `linked`): any lock may be held.
     */
    void (*on_work)(void *arg, struct vset *v);
    /* The set changed since its last freeze: called with its lock held, once until the freeze.
     */
    void (*on_dirty)(void *arg, struct vset *v);
    void *arg;
};

int vset_new(struct vset **out, uint32_t id, const struct index_params *params,
             const struct vset_model *model, const struct vset_options *o, struct err *e);
/* From the set's record in the store. */
int vset_load(struct vset **out, uint32_t id, const struct vset_options *o, struct err *e);
struct vset *vset_ref(struct vset *v);
void vset_unref(struct vset *v); /* not inside an epoch bracket */
/* The key is gone: nothing of it need be linked or written any more. */
void vset_mark_dropped(struct vset *v);
bool vset_dropped(struct vset *v);

uint32_t vset_id(const struct vset *v);
const struct index_params *vset_params(const struct vset *v);
struct vset_model vset_model(struct vset *v);
struct index *vset_index(struct vset *v);
uint32_t vset_count(struct vset *v);

/* Shard's lock held. text NULL: none is kept (an older one is dropped). *added tells whether
 * the name is new. model NULL: the vector did not come from a text. Changes nothing on error.
 */
int vset_add(struct vset *v, struct slice name, const float *vector, const struct slice *text,
             const struct vset_model *model, bool *added, struct err *e);
/* KITH_ENOTFOUND when there is no such element. */
int vset_remove(struct vset *v, struct slice name, struct err *e);
/* KITH_ENOTFOUND when there is no such element. */
int vset_find(struct vset *v, struct slice name, uint32_t *slot, struct err *e);
/* Up to n slots of elements; distinct when `distinct` (then at most vset_count of them). */
uint32_t vset_random(struct vset *v, uint32_t n, bool distinct, uint32_t *slots);

/* The element's name, appended to out; false when the slot holds no element (any more). Inside
 * the epoch bracket in which the slot was found. */
bool vset_name(struct vset *v, uint32_t slot, struct buf *out, struct err *e);
/* Changes when an update replaced a slot by another: a search that saw it change looks again.
 */
uint64_t vset_replacements(const struct vset *v);
/* Keeps the set as it is for the length of a search: the last resort of one that was overtaken
 * by updates again and again. Take it outside an epoch bracket. */
void vset_hold(struct vset *v);
void vset_let_go(struct vset *v);
/* KITH_ENOTFOUND when the element has no text. */
int vset_text(struct vset *v, uint32_t slot, struct buf *out, struct err *e);

struct vset_info {
    uint32_t count, n_linked, n_tail, n_removing, max_level;
    uint64_t max_uid; /* elements ever given a slot */
    size_t memory_bytes;
};
void vset_info(struct vset *v, struct vset_info *out);
/* Order-independent digest of names, vectors and texts. */
int vset_digest(struct vset *v, uint64_t out[2], struct err *e);

/* First-in-first-out queues of counted sets; a set stands at most once in each kind. No memory
 * is asked for. Thread: the queue's owner locks it. */
enum vset_queue_kind { VSET_QUEUE_LINK, VSET_QUEUE_DIRTY, VSET_QUEUE_KINDS };
struct vset_queue {
    enum vset_queue_kind kind;
    struct vset *first, *last;
};
void vset_queue_push(struct vset_queue *q,
                     struct vset *v);              /* takes a count; no-op when in one */
struct vset *vset_queue_pop(struct vset_queue *q); /* gives the count; NULL when empty */
struct vset *vset_queue_next(const struct vset_queue *q, const struct vset *v);
void vset_queue_clear(struct vset_queue *q);

/* Link workers: one piece of work; as index_link. */
int vset_link(struct vset *v, struct index_scratch *s, struct err *e);

/* Checkpoint. freeze under the shard's lock; write by the checkpointer; settle after it. */
int vset_freeze(struct vset *v, struct err *e);
int vset_write(struct vset *v, struct store_write *w, struct err *e);
void vset_settle(struct vset *v, bool committed);
bool vset_frozen(struct vset *v); /* between freeze and settle; the checkpointer asks */
size_t vset_dirty_bytes(struct vset *v);

/* Everything a set of this number has in the store, at most `limit` values of it. Returns how
 * many were deleted (fewer than limit: it is gone), or a negative code. */
int64_t vset_purge(struct store_write *w, uint32_t id, uint64_t limit, struct err *e);

/* Invariants of names, slots and index; for kith-check and tests. Returns findings or a code.
 */
int64_t vset_check(struct vset *v, void (*note)(void *arg, const char *what), void *arg,
                   struct err *e);
