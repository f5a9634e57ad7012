#pragma once
/* A vector set: named elements over an index, with their texts, and its place in the store.
 *
 * It joins the index (slots, vectors) with what the index does not know: element names, texts,
 * the model that made the vectors, attributes, expiry, and the chunked arrays it all lives in:
 *
 *   array 8*id+0  codes   the index's quantized vectors
 *   array 8*id+1  links   the index's level 0 links
 *   array 8*id+2  upper   the index's links above
 *   array 8*id+3  elems   48 bytes a slot: { u32 name_n, u32 name_hash, u32 more, u32 state,
 *                         u32 attributes, 28 bytes of the name }
 *   array 8*id+4  names   32 bytes a unit: { u32 next, 28 bytes }: the rest of longer names,
 *                         chained from elems.more (unit + 1, 0: none)
 *   array 8*id+5  attrs   32 bytes a unit: encoded attributes (attributes.h) in runs of units
 *                         that lie in one chunk, from elems.attributes (unit + 1, 0: none)
 *   array 8*id+6  times   8 bytes a slot: when the element expires (ms since 1970, 0: never);
 *                         has records only once some element was given a time
 *   array 8*id+7  kept    the full vector of a slot, where the set keeps them: f32 as they
 * came, or f16 of the vector scaled to length 1 (its length is in the code) blob (id, slot) the
 * element's text blob (id, ~0)         the set's record: parameters, counts, the index's state
 *
 * An update of an element is a new slot and the removal of the old one. The table from names to
 * slots is in memory only; it is made from elems when the set is opened, in milliseconds.
 *
 * The order of names (VRANGE) and the queue of times are in memory only too, and made when they
 * are first needed.
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

enum { VSET_NAME_MAX = 65535, VSET_ARRAYS = 8 };

enum vset_keep { VSET_KEEP_NONE = 0, VSET_KEEP_F32 = 1, VSET_KEEP_F16 = 2 };

/* What a set is made with; never changes. */
struct vset_params {
    struct index_params index;
    uint32_t projection_dim; /* REDUCE: dimensions of the vectors that are projected; 0: none */
    enum vset_keep keep;
    /* Made by VCREATE: stays when its last element goes, and a VADD that names no quantization
     * or M takes the set's. */
    bool declared;
};

/* Whether a set can be made so: what no command and no record may go past. */
bool vset_params_valid(const struct vset_params *p);

/* One element to add, or its new state. Everything points to the caller's memory. */
struct vset_element {
    struct slice name;
    const float *vector;            /* params.index.dim floats: projected already */
    const struct slice *text;       /* NULL: none is kept (an older one is dropped) */
    const struct vset_model *model; /* NULL: the vector did not come from a text */
    const struct slice *attributes; /* JSON, or empty; NULL: keeps those there are */
    int64_t expire_ms;              /* ms since 1970; 0: never (an older time is dropped) */
};

/* Which model made the vectors; name is "" when no text was ever embedded into the set. */
struct vset_model {
    char name[128], hash[33], pooling[16];
};

/* As three words, in effects and in the set's record; NULL: none. A word that is too long fails
 * the reader. */
void vset_model_encode(struct buf *to, const struct vset_model *m);
void vset_model_read(struct reader *r, struct vset_model *m);

struct vset;
struct key;

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

int vset_new(struct vset **out, uint32_t id, const struct vset_params *params,
             const struct vset_model *model, const struct vset_options *o, struct err *e);
/* From the set's record in the store. */
int vset_load(struct vset **out, uint32_t id, const struct vset_options *o, struct err *e);
struct vset *vset_ref(struct vset *v);
void vset_unref(struct vset *v); /* not inside an epoch bracket */
/* Whether the caller's count is the only one: of a set that cannot be found any more it stays
 * so. */
bool vset_alone(const struct vset *v);
/* The key is gone: nothing of it need be linked or written any more. */
void vset_mark_dropped(struct vset *v);
/* And its arrays may be deleted from the store from now on: what a search that still runs has
 * read of them may be anything, and its answer must not be shown. */
void vset_mark_gone(struct vset *v);
bool vset_gone(struct vset *v);
bool vset_dropped(struct vset *v);

uint32_t vset_id(const struct vset *v);
const struct vset_params *vset_params(const struct vset *v);
struct vset_model vset_model(struct vset *v);
struct index *vset_index(struct vset *v);
uint32_t vset_count(struct vset *v);
/* Slots ever given out: all elements are in those below. One that is added or updated later may
 * stand in any. Shard's lock held. */
uint32_t vset_slots(struct vset *v);

/* The key that holds the set, kept by the keyspace's hooks; shard's lock held. */
struct key *vset_key(const struct vset *v);
void vset_set_key(struct vset *v, struct key *k);

/* What searches of this set have learnt; locks of their own. */
struct recall *vset_recall(struct vset *v);
struct search_memo *vset_memo(struct vset *v);

/* Shard's lock held. *added tells whether the name is new. Changes nothing on error; errors are
 * also those of attributes_encode. Attributes of an empty text are none for an element that is
 * there, and an empty text for a new one, as in Redis. */
int vset_add(struct vset *v, const struct vset_element *element, bool *added, struct err *e);
/* Shard's lock held. json empty: takes them away. KITH_ENOTFOUND when there is no such element;
 * errors of attributes_encode. */
int vset_set_attributes(struct vset *v, struct slice name, struct slice json, struct err *e);
/* KITH_ENOTFOUND when there is no such element. */
int vset_remove(struct vset *v, struct slice name, struct err *e);
/* KITH_ENOTFOUND when there is no such element, or its time has come by now_ms (0: whatever its
 * time). */
int vset_find(struct vset *v, struct slice name, int64_t now_ms, uint32_t *slot, struct err *e);
/* Up to n slots of elements whose time has not come; distinct when `distinct` (then at most
 * vset_count of them). Fewer than n otherwise only when there is none. */
uint32_t vset_random(struct vset *v, int64_t now_ms, uint32_t n, bool distinct,
                     uint32_t *slots);

/* The element's name, appended to out; false when the slot holds no element (any more). Inside
 * the epoch bracket in which the slot was found. */
bool vset_name(struct vset *v, uint32_t slot, struct buf *out, struct err *e);
/* Whether the slot holds an element. No lock, inside an epoch bracket; where it does, what
 * belongs to the slot (name, attributes, time, vector) can be read until the bracket's end. A
 * search knows that of the slots that the index gave it. */
bool vset_live(struct vset *v, uint32_t slot);
/* Changes when an update replaced a slot by another: a search that saw it change looks again.
 */
uint64_t vset_replacements(const struct vset *v);
/* The slot that replacement i put into the place of another, i < vset_replacements; false when
 * too many came after it. A search that was overtaken looks at these instead of everything. */
bool vset_replacement(const struct vset *v, uint64_t i, uint32_t *slot);
/* Counts what changed what a search can find (elements added, replaced and removed, attributes
 * changed): one more after each change, when it can be seen. */
uint64_t vset_changes(const struct vset *v);
/* Keeps the set as it is for the length of a search: the last resort of one that was overtaken
 * by updates again and again. Take it outside an epoch bracket. */
void vset_hold(struct vset *v);
void vset_let_go(struct vset *v);
/* Whether the slot holds an element that has a text. No lock, inside an epoch bracket. */
bool vset_has_text(struct vset *v, uint32_t slot);
/* KITH_ENOTFOUND when the element has no text. */
int vset_text(struct vset *v, uint32_t slot, struct buf *out, struct err *e);

/* Encoded attributes (attributes.h) of a slot, *n bytes; NULL where it has none. What is not
 * NULL and of 0 bytes is an empty text, which a new element may be given, and which is counted.
 * No lock, inside an epoch bracket, good until its end. */
const void *vset_attributes(struct vset *v, uint32_t slot, size_t *n);
/* When the element of a slot expires (ms since 1970, 0: never). No lock, inside an epoch. */
int64_t vset_expires_at(struct vset *v, uint32_t slot);
/* False once one of the two met damage, which they have no other way to tell: what a filter
 * then said may be wrong, so a search answers with KITH_ECORRUPT. Any thread. */
bool vset_healthy(const struct vset *v);
/* The same two for who can tell: KITH_ECORRUPT. */
int vset_read_attributes(struct vset *v, uint32_t slot, const void **encoded, size_t *n,
                         struct err *e);
int vset_read_expiry(struct vset *v, uint32_t slot, int64_t *expire_ms, struct err *e);
/* Shard's lock held. The name of one element whose time has come, appended to out; false when
 * there is none. What removes it is an effect. */
bool vset_expired(struct vset *v, int64_t now_ms, struct buf *out);
/* When the next element expires; INT64_MAX: none will. Shard's lock held. */
int64_t vset_next_expiry(struct vset *v);
/* The vector of a slot: as it came where the set keeps full vectors, else decoded from its
 * code. Inside an epoch. out: params.index.dim floats. */
int vset_vector(struct vset *v, uint32_t slot, float *out, struct err *e);

/* Names in the order of memcmp. A bound with `open` leaves its name out; `all`: no bound. */
struct vset_bound {
    struct slice name;
    bool open, all;
};
/* Up to `limit` slots of the elements between two bounds whose time has not come, in order; how
 * many, or a negative code. The order is kept from the first call on. Shard's lock held. */
int64_t vset_range(struct vset *v, int64_t now_ms, const struct vset_bound *from,
                   const struct vset_bound *to, uint32_t limit, uint32_t *slots, struct err *e);

struct vset_info {
    uint32_t count, n_linked, n_tail, n_removing, max_level;
    uint32_t n_attributes, n_expiring, n_texts;
    uint64_t max_uid; /* elements ever given a slot */
    size_t memory_bytes;
};
void vset_info(struct vset *v, struct vset_info *out);
/* Order-independent digest of names, vectors, attributes, times and texts, of the elements
 * whose time has not come. */
int vset_digest(struct vset *v, int64_t now_ms, uint64_t out[2], struct err *e);

/* First-in-first-out queues of counted sets; a set stands at most once in each kind. No memory
 * is asked for. Thread: the queue's owner locks it. */
enum vset_queue_kind {
    VSET_QUEUE_LINK,
    VSET_QUEUE_DIRTY,
    VSET_QUEUE_EXPIRY,
    VSET_QUEUE_LEAVING,
    VSET_QUEUE_KINDS
};
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
