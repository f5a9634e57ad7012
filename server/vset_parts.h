#pragma once
/* The inside of a vector set, shared by its files and included by no other:
 *   vset.c             the whole: opening, adding, removing, asking
 *   vset_store.c       its record, checkpoints
 *   vset_elems.c       slots and names
 *   vset_table.c       from names to slots
 *   vset_texts.c       texts not yet in the store
 *   vset_attributes.c  attributes and the room they take
 *   vset_times.c       when elements expire
 *   vset_kept.c        full vectors
 *   vset_order.c       names in order
 *   vset_check.c       invariants, digest
 *
 * Unless said otherwise a function wants the owner's lock and no epoch bracket around it: what
 * leaves an array is retired, and retiring may have to wait for readers. The short reads of an
 * owner bring a bracket of their own. */

#include <pthread.h>
#include <stdatomic.h>

#include "base/dict.h"
#include "base/random.h"
#include "server/vset.h"
#include "storage/chunks.h"

enum vset_array {
    ARRAY_CODES,
    ARRAY_LINKS,
    ARRAY_UPPER,
    ARRAY_ELEMS,
    ARRAY_NAMES,
    ARRAY_ATTRIBUTES,
    ARRAY_TIMES,
    ARRAY_KEPT
};

enum {
    ELEM_BYTES = 48,
    ELEM_PREFIX = 28,
    NAME_UNIT_BYTES = 32,
    NAME_UNIT_DATA = 28,
    ATTRIBUTE_UNIT_BYTES = 32,
    TIME_BYTES = 8
};

/* elems.state. A removed slot keeps its record until the index hands it back, then is zero. */
enum { ELEM_FREE = 0, ELEM_LIVE = 1, ELEM_LIVE_TEXT = 2, ELEM_REMOVED = 3 };

/* Of the newest replacements the slots are remembered. */
enum { REPLACEMENTS_KEPT = 128 };

/* elems.attributes of an element that was given an empty text as its attributes. */
enum { ATTRIBUTES_EMPTY = UINT32_MAX };

struct elem { /* as stored; little-endian */
    uint32_t name_n, name_hash, more;
    /* The only fields that change while readers look. */
    _Atomic uint32_t state, attributes;
    char prefix[ELEM_PREFIX];
};
_Static_assert(sizeof(struct elem) == ELEM_BYTES, "the record is 48 bytes on disk");

struct text_entry;

struct texts {
    struct dict by_slot;
    size_t bytes;
};

struct vset_place {
    struct vset *next;
    bool queued;
};

struct name_segment;

/* From names to slots, see vset_table.c. Changed with the shard's lock held too, so that this
 * alone is enough to look. */
struct name_table {
    struct name_segment **directory; /* 1 << depth of them */
    uint32_t depth;
    uint32_t n;
    size_t bytes;
};

enum { ATTRIBUTE_CLASSES = 56 };

struct run_batch;

/* Free runs of attribute units, see vset_attributes.c. */
struct attribute_room {
    uint32_t heads[ATTRIBUTE_CLASSES]; /* first free run of each size class, unit + 1 */
    uint64_t classes;                  /* bit c: heads[c] is not 0 */
    struct run_batch *open;            /* filled with runs that left their elements */
    struct run_batch *waiting;         /* for readers to leave, oldest first */
    struct run_batch **waiting_end;
    uint32_t n_waiting;
};

struct due {
    int64_t expire_ms;
    uint32_t slot;
};

/* Elements that expire, see vset_times.c. */
struct times {
    struct due *heap; /* smallest first; entries of elements that are gone are skipped */
    uint32_t n, cap;
    uint32_t n_expiring;
    _Atomic int64_t next_ms; /* of the heap's first; any thread reads it */
};

struct order;

struct vset {
    _Atomic uint32_t refs;
    _Atomic bool dropped, gone;
    struct vset_place places[VSET_QUEUE_KINDS]; /* the lock of each queue */
    pthread_mutex_t owner;
    uint32_t id;
    struct vset_options options;
    struct vset_params params;
    struct vset_model model; /* owner */
    struct index *index;
    struct recall *recall;
    struct search_memo *memo;
    struct key *key; /* the shard's lock */
    struct chunks *arrays[VSET_ARRAYS];
    _Atomic uint32_t count;
    _Atomic uint64_t replacements, changes;
    _Atomic uint32_t replaced_by[REPLACEMENTS_KEPT]; /* new slots, by number */
    _Atomic bool damaged; /* met by a reader who had no way to say so */
    /* The owner's: */
    uint64_t max_uid;
    uint32_t next_slot; /* slots below were given out at least once */
    uint32_t free_unit; /* head of the free name units, unit + 1 */
    uint32_t n_attributes, n_texts;
    uint32_t *free_slots;
    uint32_t n_free;
    size_t free_cap;
    struct name_table table;
    struct attribute_room room;
    struct times times;
    struct order *order; /* NULL before it was first asked for */
    struct texts texts, texts_frozen;
    struct text_entry *spare_texts[2];
    uint32_t n_spare_texts;
    struct buf frozen_record;
    struct rng rng;
    bool dirty, frozen; /* frozen: the checkpointer's */
};

void vset_dirtied(struct vset *v);
void vset_free_parts(void *v);

static inline struct records *vset_array(struct vset *v, enum vset_array which)
{
    return v->arrays[which] ? chunks_records(v->arrays[which]) : NULL;
}

/* vset_store.c */
int vset_open_arrays(struct vset *v, const uint32_t counts[VSET_ARRAYS], struct err *e);
int vset_open_index(struct vset *v, const void *state, size_t n, struct err *e);
struct vset *vset_allocate(uint32_t id, const struct vset_options *o);

/* vset_elems.c. The record of a slot; NULL (with the reason in e) when it is damaged. Inside a
 * bracket. */
const struct elem *elem_at(struct vset *v, uint32_t slot, struct err *e);
static inline uint32_t elem_state(const struct elem *el)
{
    return atomic_load_explicit(&((struct elem *)(uintptr_t)el)->state, memory_order_acquire);
}
static inline uint32_t elem_attributes(const struct elem *el)
{
    return atomic_load_explicit(&((struct elem *)(uintptr_t)el)->attributes,
                                memory_order_acquire);
}
static inline bool elem_live(const struct elem *el)
{
    uint32_t state = elem_state(el);
    return state == ELEM_LIVE || state == ELEM_LIVE_TEXT;
}
int elems_load(struct vset *v, uint32_t count, struct err *e);
/* Makes the records of a slot writable, so that the functions below cannot fail for it before
 * the lock is let go of. */
int elems_prepare(struct vset *v, uint32_t slot, struct err *e);
int elems_write(struct vset *v, uint32_t slot, struct slice name, bool text,
                uint32_t attributes, struct err *e);
void elems_set_removed(struct vset *v, uint32_t slot);
void elems_set_attributes(struct vset *v, uint32_t slot, uint32_t attributes);
uint32_t elems_attributes(struct vset *v, uint32_t slot);
bool elems_has_text(struct vset *v, uint32_t slot);
void elems_release(struct vset *v, uint32_t slot); /* name units and slot become free */
void slots_give_back(struct vset *v, uint32_t slot);
/* Both inside a bracket. Whether the element's name is this one, and how the two compare (as
 * memcmp, a beginning before the whole). Errors: damage. */
int elems_name_equals(struct vset *v, const struct elem *el, struct slice name, bool *equal,
                      struct err *e);
int elems_name_compare(struct vset *v, const struct elem *el, struct slice name, int *result,
                       struct err *e);

/* vset_table.c; the shard's lock is enough for finding and walking */
uint32_t table_hash(struct slice name);
int table_expect(struct vset *v, uint32_t count, struct err *e); /* of an empty one */
void table_deinit(struct name_table *t);
int table_reserve(struct vset *v, uint32_t hash, struct err *e); /* the next put cannot fail */
/* *slot is INDEX_SLOT_NONE when there is no such name; an error only for damaged elements. */
int table_find(struct vset *v, struct slice name, uint32_t *slot, struct err *e);
void table_put(struct name_table *t, uint32_t hash, uint32_t slot);
void table_replace(struct name_table *t, uint32_t hash, uint32_t old, uint32_t slot);
void table_remove(struct name_table *t, uint32_t hash, uint32_t slot);
uint32_t table_random(const struct name_table *t, struct rng *r); /* of one that is not empty */
/* All slots, one a call, then INDEX_SLOT_NONE; start with {0}. Nothing may change between. */
struct table_walk {
    uint64_t segment;
    uint32_t at;
};
uint32_t table_next(const struct name_table *t, struct table_walk *w);

/* vset_texts.c */
void texts_init(struct texts *t);
void texts_deinit(struct texts *t);
int texts_reserve(struct vset *v, struct err *e); /* one keep and one forget cannot fail now */
struct blob;
void texts_keep(struct vset *v, uint32_t slot, struct blob *text); /* takes over text */
void texts_forget(struct vset *v, uint32_t slot);
int texts_get(struct vset *v, uint32_t slot, struct buf *out, struct err *e);
int texts_write(struct vset *v, struct store_write *w, struct err *e);
void texts_merge_back(struct vset *v);

/* vset_attributes.c. A place is what elems.attributes holds. */
void attributes_init(struct attribute_room *room);
void attributes_deinit(struct attribute_room *room);
/* Puts encoded attributes into a place of their own, which nobody sees yet. */
int attributes_store(struct vset *v, const struct buf *encoded, uint32_t *place, struct err *e);
void attributes_discard(struct vset *v, uint32_t place); /* one that nobody ever saw */
/* The place is taken from its element; it is used again when no reader is left. Cannot fail
 * once it was reserved. */
int attributes_reserve_retire(struct vset *v, struct err *e);
void attributes_retire(struct vset *v, uint32_t place);
void attributes_save(const struct vset *v, struct buf *out);
int attributes_load(struct vset *v, struct reader *r, struct err *e);
size_t attributes_room_bytes(const struct attribute_room *room);
int64_t attributes_check(struct vset *v, void (*note)(void *arg, const char *what), void *arg,
                         struct err *e);

/* vset_times.c */
void times_deinit(struct times *t);
int times_load(struct vset *v, struct err *e);
/* Room for one more, and the time in the record of a slot that nobody sees yet (0: none). */
int times_write(struct vset *v, uint32_t slot, int64_t expire_ms, struct err *e);
void times_add(struct vset *v, uint32_t slot, int64_t expire_ms); /* the slot is live now */
void times_forget(struct vset *v, uint32_t slot);                 /* it is about to go */
size_t times_heap_bytes(const struct times *t);

/* vset_kept.c */
uint32_t kept_stride(const struct vset_params *p); /* 0: none are kept */
int kept_write(struct vset *v, uint32_t slot, const float *vector, struct err *e);

/* vset_order.c. With the shard's lock too. What cannot be done drops the order. */
void order_free(struct order *o);
void order_add(struct vset *v, uint32_t slot, struct slice name);
void order_replace(struct vset *v, uint32_t old, uint32_t slot, struct slice name);
void order_remove(struct vset *v, uint32_t slot, struct slice name);
size_t order_bytes(const struct order *o);
int64_t order_check(struct vset *v, void (*note)(void *arg, const char *what), void *arg);
