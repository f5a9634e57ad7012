#pragma once
/* The inside of a vector set, shared by vset.c (the whole), vset_elems.c (slots, names and
 * their table) and vset_texts.c (texts not yet in the store). No other file includes it. */

#include <pthread.h>
#include <stdatomic.h>

#include "base/dict.h"
#include "base/random.h"
#include "server/vset.h"
#include "storage/chunks.h"

enum vset_array { ARRAY_CODES, ARRAY_LINKS, ARRAY_UPPER, ARRAY_ELEMS, ARRAY_NAMES };

enum { ELEM_BYTES = 48, ELEM_PREFIX = 32, NAME_UNIT_BYTES = 32, NAME_UNIT_DATA = 28 };

/* elems.state. A removed slot keeps its record until the index hands it back, then is zero. */
enum { ELEM_FREE = 0, ELEM_LIVE = 1, ELEM_LIVE_TEXT = 2, ELEM_REMOVED = 3 };

struct elem { /* as stored; little-endian */
    uint32_t name_n, name_hash, more;
    _Atomic uint32_t state; /* the only field that changes while readers look */
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

struct vset {
    _Atomic uint32_t refs;
    _Atomic bool dropped;
    struct vset_place places[VSET_QUEUE_KINDS]; /* the lock of each queue */
    pthread_mutex_t owner;
    uint32_t id;
    struct vset_options options;
    struct index_params params;
    struct vset_model model; /* owner */
    struct index *index;
    struct chunks *arrays[VSET_ARRAYS];
    _Atomic uint32_t count;
    _Atomic uint64_t replacements;
    /* The owner's: */
    uint64_t max_uid;
    uint32_t next_slot; /* slots below were given out at least once */
    uint32_t free_unit; /* head of the free name units, unit + 1 */
    uint32_t *free_slots;
    uint32_t n_free, free_cap;
    /* Names to slots: { u32 name hash, u32 slot + 1 }, 0 empty; open addressing, linear
     * probing, no tombstones. The hash spares a look at the element for nearly every probe that
     * fails. */
    uint64_t *table;
    uint32_t table_size; /* power of two, or 0 */
    struct texts texts, texts_frozen;
    struct text_entry *spare_texts[2];
    uint32_t n_spare_texts;
    struct buf frozen_record;
    struct rng rng;
    bool dirty, frozen; /* frozen: the checkpointer's */
};

void vset_dirtied(struct vset *v); /* owner */

/* vset_elems.c; owner's lock and an epoch bracket unless said otherwise */
int elems_load(struct vset *v, uint32_t count, struct err *e);
int elems_write(struct vset *v, uint32_t slot, struct slice name, bool text, struct err *e);
int elems_set_state(struct vset *v, uint32_t slot, uint32_t state, struct err *e);
bool elems_has_text(struct vset *v, uint32_t slot);
void elems_release(struct vset *v, uint32_t slot); /* name units and slot become free */
void slots_give_back(struct vset *v, uint32_t slot);
int table_reserve(struct vset *v, struct err *e);
/* *slot is INDEX_SLOT_NONE when there is no such name; an error only for damaged elements. */
int table_find(struct vset *v, struct slice name, uint32_t *slot, struct err *e);
void table_put(struct vset *v, struct slice name, uint32_t slot);
void table_replace(struct vset *v, struct slice name, uint32_t old, uint32_t slot);
void table_remove(struct vset *v, struct slice name, uint32_t slot);
uint32_t table_at(const struct vset *v, uint32_t i);
uint32_t table_random(struct vset *v);

/* vset_texts.c; owner's lock */
void texts_init(struct texts *t);
void texts_deinit(struct texts *t);
int texts_reserve(struct vset *v, struct err *e); /* one keep and one forget cannot fail now */
struct blob;
void texts_keep(struct vset *v, uint32_t slot, struct blob *text); /* takes over text */
void texts_forget(struct vset *v, uint32_t slot);
int texts_get(struct vset *v, uint32_t slot, struct buf *out, struct err *e);
int texts_write(struct vset *v, struct store_write *w, struct err *e);
void texts_merge_back(struct vset *v);
