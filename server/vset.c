/* The whole: making a set, adding, removing, asking. */
#include "server/vset.h"

#include "base/epoch.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/random.h"
#include "server/attributes.h"
#include "server/blob.h"
#include "server/recall.h"
#include "server/search_memo.h"
#include "server/vset_parts.h"

enum { RANDOM_TRIES = 64, DISTINCT_BY_TRIES = 64 };

bool vset_params_valid(const struct vset_params *p)
{
    const struct index_params *x = &p->index;
    bool hnsw = x->kind == INDEX_HNSW;
    return (hnsw || x->kind == INDEX_FLAT) && x->quant >= INDEX_F32 && x->quant <= INDEX_BIN &&
           (unsigned)x->metric <= INDEX_IP && (unsigned)p->keep <= VSET_KEEP_F16 &&
           x->dim >= 1 && x->dim <= INDEX_DIM_MAX &&
           (!hnsw || (x->m >= INDEX_M_MIN && x->m <= INDEX_M_MAX)) &&
           x->ef_construction <= INDEX_EF_MAX &&
           (p->projection_dim == 0 ||
            (p->projection_dim >= x->dim && p->projection_dim <= INDEX_DIM_MAX));
}

struct vset *vset_ref(struct vset *v)
{
    atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
    return v;
}

void vset_free_parts(void *p)
{
    struct vset *v = p;
    index_free(v->index);
    for (int i = 0; i < VSET_ARRAYS; i++)
        chunks_free(v->arrays[i]);
    texts_deinit(&v->texts);
    texts_deinit(&v->texts_frozen);
    while (v->n_spare_texts > 0)
        mem_free(v->spare_texts[--v->n_spare_texts]);
    attributes_deinit(&v->room);
    times_deinit(&v->times);
    table_deinit(&v->table);
    order_free(v->order);
    search_memo_free(v->memo);
    recall_free(v->recall);
    mem_free(v->free_slots);
    buf_deinit(&v->frozen_record);
    pthread_mutex_destroy(&v->owner);
    mem_free(v);
}

void vset_unref(struct vset *v)
{
    /* After the last count nobody can come to it; those still reading stand in a bracket. */
    if (v && atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) == 1)
        epoch_retire(v, vset_free_parts);
}

bool vset_alone(const struct vset *v)
{
    return atomic_load_explicit(&v->refs, memory_order_acquire) == 1;
}

void vset_mark_dropped(struct vset *v)
{
    atomic_store(&v->dropped, true);
}

void vset_mark_gone(struct vset *v)
{
    atomic_store(&v->gone, true);
}

bool vset_gone(struct vset *v)
{
    return atomic_load(&v->gone);
}

bool vset_dropped(struct vset *v)
{
    return atomic_load(&v->dropped);
}

void vset_queue_push(struct vset_queue *q, struct vset *v)
{
    struct vset_place *place = &v->places[q->kind];
    if (place->queued)
        return;
    place->queued = true;
    place->next = NULL;
    vset_ref(v);
    if (q->last)
        q->last->places[q->kind].next = v;
    else
        q->first = v;
    q->last = v;
}

struct vset *vset_queue_pop(struct vset_queue *q)
{
    struct vset *v = q->first;
    if (!v)
        return NULL;
    q->first = v->places[q->kind].next;
    if (!q->first)
        q->last = NULL;
    v->places[q->kind].queued = false;
    return v;
}

struct vset *vset_queue_next(const struct vset_queue *q, const struct vset *v)
{
    return v->places[q->kind].next;
}

void vset_queue_clear(struct vset_queue *q)
{
    for (struct vset *v; (v = vset_queue_pop(q));)
        vset_unref(v);
}

uint32_t vset_id(const struct vset *v)
{
    return v->id;
}

const struct vset_params *vset_params(const struct vset *v)
{
    return &v->params;
}

struct vset_model vset_model(struct vset *v)
{
    pthread_mutex_lock(&v->owner);
    struct vset_model m = v->model;
    pthread_mutex_unlock(&v->owner);
    return m;
}

struct index *vset_index(struct vset *v)
{
    return v->index;
}

uint32_t vset_count(struct vset *v)
{
    return atomic_load_explicit(&v->count, memory_order_relaxed);
}

struct key *vset_key(const struct vset *v)
{
    return v->key;
}

void vset_set_key(struct vset *v, struct key *k)
{
    v->key = k;
}

struct recall *vset_recall(struct vset *v)
{
    return v->recall;
}

struct search_memo *vset_memo(struct vset *v)
{
    return v->memo;
}

uint64_t vset_replacements(const struct vset *v)
{
    return atomic_load(&v->replacements);
}

bool vset_replacement(const struct vset *v, uint64_t i, uint32_t *slot)
{
    *slot = atomic_load_explicit(&v->replaced_by[i % REPLACEMENTS_KEPT], memory_order_acquire);
    /* The place of number i is written again when so many were made after it. */
    return vset_replacements(v) - i < REPLACEMENTS_KEPT;
}

uint64_t vset_changes(const struct vset *v)
{
    return atomic_load(&v->changes);
}

void vset_hold(struct vset *v)
{
    pthread_mutex_lock(&v->owner);
}

void vset_let_go(struct vset *v)
{
    pthread_mutex_unlock(&v->owner);
}

void vset_dirtied(struct vset *v)
{
    if (!v->dirty) {
        v->dirty = true;
        v->options.on_dirty(v->options.arg, v);
    }
}

/* --- making --- */

/* The index hands a slot back: no reader can hold it any more. Owner's lock held. */
static void slot_freed(void *arg, uint32_t slot)
{
    struct vset *v = arg;
    elems_release(v, slot);
    vset_dirtied(v);
}

int vset_open_index(struct vset *v, const void *state, size_t n, struct err *e)
{
    struct index_arrays arrays = {.codes = vset_array(v, ARRAY_CODES),
                                  .links = vset_array(v, ARRAY_LINKS),
                                  .upper = vset_array(v, ARRAY_UPPER)};
    struct index_options options = {.owner = &v->owner,
                                    .tail_max = v->options.tail_max,
                                    .on_slot_free = slot_freed,
                                    .arg = v};
    return index_open(&v->index, &v->params.index, &arrays, &options, state, n, e);
}

struct vset *vset_allocate(uint32_t id, const struct vset_options *o)
{
    struct vset *v = mem_calloc(1, sizeof *v);
    if (!v)
        return NULL;
    v->id = id;
    v->options = *o;
    v->refs = 1;
    v->times.next_ms = INT64_MAX;
    attributes_init(&v->room);
    pthread_mutex_init(&v->owner, NULL);
    rng_seed(&v->rng, rng_entropy());
    v->memo = search_memo_new();
    v->recall = recall_new();
    if (!v->memo || !v->recall) {
        vset_free_parts(v);
        return NULL;
    }
    return v;
}

int vset_new(struct vset **out, uint32_t id, const struct vset_params *params,
             const struct vset_model *model, const struct vset_options *o, struct err *e)
{
    if (!vset_params_valid(params))
        return err_set(e, KITH_EINVAL, "a vector set cannot be made with these parameters");
    struct vset *v = vset_allocate(id, o);
    if (!v)
        return err_set(e, KITH_ENOMEM, "out of memory for a vector set");
    v->params = *params;
    if (model)
        v->model = *model;
    const uint32_t none[VSET_ARRAYS] = {0};
    int rc = vset_open_arrays(v, none, e);
    if (rc == 0)
        rc = vset_open_index(v, NULL, 0, e);
    if (rc == 0)
        rc = table_expect(v, 0, e);
    if (rc != 0) {
        vset_free_parts(v);
        return rc;
    }
    vset_dirtied(v); /* one that was declared may stay empty, and is stored all the same */
    *out = v;
    return 0;
}

/* --- changing --- */

static uint64_t level_seed(struct slice name)
{
    return hash64_seed(name.p, name.n, 0x6b697468);
}

static void changed(struct vset *v)
{
    atomic_fetch_add(&v->changes, 1);
}

/* A slot whose records exist in the arrays that have one record a slot. */
static int take_slot(struct vset *v, uint32_t *slot, struct err *e)
{
    if (v->n_free > 0) {
        *slot = v->free_slots[v->n_free - 1];
    } else {
        static const enum vset_array per_slot[] = {ARRAY_CODES, ARRAY_LINKS, ARRAY_ELEMS,
                                                   ARRAY_KEPT};
        if (v->next_slot == INDEX_SLOT_NONE)
            return err_set(e, KITH_ELIMIT, "a vector set holds at most %u elements",
                           INDEX_SLOT_NONE);
        for (size_t i = 0; i < sizeof per_slot / sizeof *per_slot; i++) {
            struct records *r = vset_array(v, per_slot[i]);
            int rc = r ? records_grow(r, v->next_slot + 1, e) : 0;
            if (rc != 0)
                return rc;
        }
        *slot = v->next_slot;
    }
    int rc = elems_prepare(v, *slot, e);
    if (rc != 0)
        return rc;
    if (v->n_free > 0)
        v->n_free--;
    else
        v->next_slot++;
    return 0;
}

/* After this retire_slot cannot fail. */
static int prepare_retire(struct vset *v, uint32_t slot, struct err *e)
{
    int rc = elems_prepare(v, slot, e);
    if (rc == 0)
        rc = texts_reserve(v, e);
    if (rc == 0)
        rc = attributes_reserve_retire(v, e);
    return rc == 0 ? index_prepare_remove(v->index, slot, e) : rc;
}

/* Takes the element of a slot out of results and texts; the slot itself comes back later.
 * moved: its attributes are another slot's now. */
static void retire_slot(struct vset *v, uint32_t slot, bool moved)
{
    uint32_t attributes = elems_attributes(v, slot);
    (void)index_remove(v->index, slot, NULL);
    if (elems_has_text(v, slot)) {
        texts_forget(v, slot);
        v->n_texts--;
    }
    times_forget(v, slot);
    elems_set_removed(v, slot);
    if (attributes && !moved) {
        v->n_attributes--;
        attributes_retire(v, attributes);
    }
}

/* What an add has taken so far, to give it back when the rest fails. */
struct adding {
    const struct vset_element *x;
    uint32_t old, slot;  /* INDEX_SLOT_NONE: none */
    uint32_t attributes; /* its place, or 0 */
    bool moved;          /* which was the old slot's */
    struct blob *text;
};

static int reserve(struct vset *v, const struct adding *a, struct err *e)
{
    if (a->old != INDEX_SLOT_NONE)
        return prepare_retire(v, a->old, e);
    int rc = table_reserve(v, table_hash(a->x->name), e);
    return rc == 0 ? texts_reserve(v, e) : rc;
}

/* The place of the element's attributes; encoded is empty where it has none of its own. */
static int place_attributes(struct vset *v, struct adding *a, const struct buf *encoded,
                            struct err *e)
{
    bool is_new = a->old == INDEX_SLOT_NONE;
    if (encoded->len > 0)
        return attributes_store(v, encoded, &a->attributes, e);
    if (a->x->attributes) {
        a->attributes = is_new ? ATTRIBUTES_EMPTY : 0;
    } else if (!is_new) {
        a->attributes = elems_attributes(v, a->old);
        a->moved = a->attributes != 0;
    }
    return 0;
}

static int fill_slot(struct vset *v, struct adding *a, const struct buf *encoded, struct err *e)
{
    const struct vset_element *x = a->x;
    if (x->text && !(a->text = blob_new(x->text->p, x->text->n)))
        return err_set(e, KITH_ENOMEM, "out of memory for the text");
    int rc = place_attributes(v, a, encoded, e);
    if (rc == 0)
        rc = times_write(v, a->slot, x->expire_ms, e);
    if (rc == 0)
        rc = kept_write(v, a->slot, x->vector, e);
    if (rc == 0)
        rc = elems_write(v, a->slot, x->name, x->text != NULL, a->attributes, e);
    return rc == 0 ? index_add(v->index, a->slot, x->vector, level_seed(x->name), e) : rc;
}

static void undo(struct vset *v, struct adding *a)
{
    if (!a->moved)
        attributes_discard(v, a->attributes);
    if (a->slot != INDEX_SLOT_NONE)
        elems_release(v, a->slot);
    blob_unref(a->text);
}

/* The new slot takes the place of the old one. */
static void replace_slot(struct vset *v, const struct adding *a)
{
    table_replace(&v->table, table_hash(a->x->name), a->old, a->slot);
    order_replace(v, a->old, a->slot, a->x->name);
    changed(v);
    uint64_t n = vset_replacements(v);
    atomic_store_explicit(&v->replaced_by[n % REPLACEMENTS_KEPT], a->slot,
                          memory_order_release);
    /* Between the two: a search that saw the same number before and after either began when the
     * new slot was there, or ended when the old one still was. */
    atomic_store(&v->replacements, n + 1);
    retire_slot(v, a->old, a->moved);
}

static int add_locked(struct vset *v, const struct vset_element *x, const struct buf *encoded,
                      uint32_t old, struct err *e)
{
    struct adding a = {.x = x, .old = old, .slot = INDEX_SLOT_NONE};
    int rc = reserve(v, &a, e);
    if (rc == 0)
        rc = take_slot(v, &a.slot, e);
    if (rc == 0)
        rc = fill_slot(v, &a, encoded, e);
    if (rc != 0) {
        undo(v, &a);
        return rc;
    }
    if (a.text) {
        texts_keep(v, a.slot, a.text);
        v->n_texts++;
    }
    v->max_uid++;
    v->n_attributes += a.attributes && !a.moved;
    times_add(v, a.slot, x->expire_ms);
    if (old == INDEX_SLOT_NONE) {
        table_put(&v->table, table_hash(x->name), a.slot);
        order_add(v, a.slot, x->name);
        atomic_fetch_add_explicit(&v->count, 1, memory_order_relaxed);
    } else {
        replace_slot(v, &a);
    }
    if (x->model && !v->model.name[0])
        v->model = *x->model;
    changed(v);
    return 0;
}

static int find_slot(struct vset *v, struct slice name, uint32_t *slot, struct err *e)
{
    epoch_enter();
    int rc = table_find(v, name, slot, e);
    epoch_exit();
    return rc;
}

int vset_add(struct vset *v, const struct vset_element *element, bool *added, struct err *e)
{
    struct slice name = element->name;
    struct err local;
    struct buf encoded;
    e = e ? e : &local;
    *added = false;
    if (name.n > VSET_NAME_MAX)
        return err_set(e, KITH_EINVAL, "element name of %zu bytes, at most %d are allowed",
                       name.n, VSET_NAME_MAX);
    buf_init(&encoded);
    uint32_t old = INDEX_SLOT_NONE;
    int rc = element->attributes && element->attributes->n > 0
                 ? attributes_encode(*element->attributes, &encoded, e)
                 : 0;
    if (rc == 0) {
        pthread_mutex_lock(&v->owner);
        rc = find_slot(v, name, &old, e);
        vset_dirtied(v);
        if (rc == 0)
            rc = add_locked(v, element, &encoded, old, e);
        pthread_mutex_unlock(&v->owner);
    }
    buf_deinit(&encoded);
    *added = rc == 0 && old == INDEX_SLOT_NONE;
    if (rc == 0)
        v->options.on_work(v->options.arg, v);
    return rc;
}

static int set_attributes_locked(struct vset *v, uint32_t slot, const struct buf *encoded,
                                 struct err *e)
{
    uint32_t place = 0, before = elems_attributes(v, slot);
    int rc = elems_prepare(v, slot, e);
    if (rc == 0)
        rc = attributes_reserve_retire(v, e);
    if (rc == 0 && encoded->len > 0)
        rc = attributes_store(v, encoded, &place, e);
    if (rc != 0)
        return rc;
    elems_set_attributes(v, slot, place);
    v->n_attributes += (place != 0);
    v->n_attributes -= (before != 0);
    changed(v);
    attributes_retire(v, before);
    return 0;
}

int vset_set_attributes(struct vset *v, struct slice name, struct slice json, struct err *e)
{
    struct err local;
    struct buf encoded;
    uint32_t slot;
    e = e ? e : &local;
    buf_init(&encoded);
    int rc = json.n > 0 ? attributes_encode(json, &encoded, e) : 0;
    if (rc == 0) {
        pthread_mutex_lock(&v->owner);
        rc = find_slot(v, name, &slot, e);
        if (rc == 0 && slot == INDEX_SLOT_NONE)
            rc = err_set(e, KITH_ENOTFOUND, "element not found in set");
        if (rc == 0) {
            vset_dirtied(v);
            rc = set_attributes_locked(v, slot, &encoded, e);
        }
        pthread_mutex_unlock(&v->owner);
    }
    buf_deinit(&encoded);
    return rc;
}

int vset_remove(struct vset *v, struct slice name, struct err *e)
{
    struct err local;
    uint32_t slot;
    e = e ? e : &local;
    pthread_mutex_lock(&v->owner);
    int rc = find_slot(v, name, &slot, e);
    if (rc == 0 && slot == INDEX_SLOT_NONE)
        rc = err_set(e, KITH_ENOTFOUND, "element not found in set");
    if (rc == 0) {
        vset_dirtied(v);
        rc = prepare_retire(v, slot, e);
    }
    if (rc == 0) {
        order_remove(v, slot, name);
        table_remove(&v->table, table_hash(name), slot);
        atomic_fetch_sub_explicit(&v->count, 1, memory_order_relaxed);
        retire_slot(v, slot, false);
        changed(v);
    }
    pthread_mutex_unlock(&v->owner);
    if (rc == 0)
        v->options.on_work(v->options.arg, v);
    return rc;
}

int vset_link(struct vset *v, struct index_scratch *s, struct err *e)
{
    int rc = index_link(v->index, s, e);
    if (rc != 0) {
        pthread_mutex_lock(&v->owner);
        vset_dirtied(v);
        pthread_mutex_unlock(&v->owner);
    }
    return rc;
}

/* --- asking --- */

static bool expired(struct vset *v, uint32_t slot, int64_t now_ms)
{
    int64_t at = now_ms ? vset_expires_at(v, slot) : 0;
    return at && at <= now_ms;
}

int vset_find(struct vset *v, struct slice name, int64_t now_ms, uint32_t *slot, struct err *e)
{
    epoch_enter();
    int rc = table_find(v, name, slot, e);
    int64_t at = 0;
    if (rc == 0 && *slot != INDEX_SLOT_NONE && now_ms)
        rc = vset_read_expiry(v, *slot, &at, e);
    if (rc == 0 && at && at <= now_ms)
        *slot = INDEX_SLOT_NONE;
    epoch_exit();
    return rc == 0 && *slot == INDEX_SLOT_NONE
               ? err_set(e, KITH_ENOTFOUND, "element not found in set")
               : rc;
}

/* Reservoir sampling (Vitter 1985, algorithm R) over the table. */
static uint32_t sample_all(struct vset *v, int64_t now_ms, uint32_t n, uint32_t *slots)
{
    struct table_walk w = {0};
    uint32_t found = 0;
    uint64_t seen = 0;
    for (uint32_t slot; (slot = table_next(&v->table, &w)) != INDEX_SLOT_NONE;) {
        if (expired(v, slot, now_ms))
            continue;
        seen++;
        if (found < n) {
            slots[found++] = slot;
        } else {
            uint64_t at = rng_below(&v->rng, seen);
            if (at < n)
                slots[at] = slot;
        }
    }
    return found;
}

/* One element whose time has not come; INDEX_SLOT_NONE when there is none. */
static uint32_t sample_one(struct vset *v, int64_t now_ms)
{
    uint32_t slot;
    for (int tries = 0; tries < RANDOM_TRIES; tries++) {
        slot = table_random(&v->table, &v->rng);
        if (!expired(v, slot, now_ms))
            return slot;
    }
    return sample_all(v, now_ms, 1, &slot) == 1 ? slot : INDEX_SLOT_NONE;
}

static bool among(const uint32_t *slots, uint32_t n, uint32_t slot)
{
    for (uint32_t i = 0; i < n; i++)
        if (slots[i] == slot)
            return true;
    return false;
}

uint32_t vset_random(struct vset *v, int64_t now_ms, uint32_t n, bool distinct, uint32_t *slots)
{
    uint32_t found = 0, slot;
    if (vset_count(v) == 0 || n == 0)
        return 0;
    pthread_mutex_lock(&v->owner);
    epoch_enter();
    /* A few of many are drawn one by one; those drawn twice are drawn again. */
    bool few = n <= DISTINCT_BY_TRIES && n <= v->table.n / 2;
    for (int tries = 0; few && distinct && found < n && tries < 4 * DISTINCT_BY_TRIES; tries++)
        if ((slot = sample_one(v, now_ms)) != INDEX_SLOT_NONE && !among(slots, found, slot))
            slots[found++] = slot;
    if (distinct && found < n)
        found = sample_all(v, now_ms, n, slots);
    while (!distinct && found < n && (slot = sample_one(v, now_ms)) != INDEX_SLOT_NONE)
        slots[found++] = slot;
    epoch_exit();
    pthread_mutex_unlock(&v->owner);
    return found;
}

int vset_text(struct vset *v, uint32_t slot, struct buf *out, struct err *e)
{
    pthread_mutex_lock(&v->owner);
    int rc = texts_get(v, slot, out, e);
    pthread_mutex_unlock(&v->owner);
    return rc;
}

uint32_t vset_slots(struct vset *v)
{
    pthread_mutex_lock(&v->owner);
    uint32_t n = v->next_slot;
    pthread_mutex_unlock(&v->owner);
    return n;
}

void vset_info(struct vset *v, struct vset_info *out)
{
    struct index_info x = index_info(v->index);
    *out = (struct vset_info){.count = vset_count(v),
                              .n_linked = x.n_linked,
                              .n_tail = x.n_tail,
                              .n_removing = x.n_removing,
                              .max_level = x.max_level};
    pthread_mutex_lock(&v->owner);
    out->n_attributes = v->n_attributes;
    out->n_texts = v->n_texts;
    out->n_expiring = v->times.n_expiring;
    out->max_uid = v->max_uid;
    out->memory_bytes = sizeof *v + index_heap_bytes(v->index) + v->table.bytes +
                        v->free_cap * sizeof *v->free_slots + v->texts.bytes +
                        v->texts_frozen.bytes + attributes_room_bytes(&v->room) +
                        times_heap_bytes(&v->times) + order_bytes(v->order) +
                        search_memo_bytes(v->memo);
    for (int i = 0; i < VSET_ARRAYS; i++)
        if (v->arrays[i])
            out->memory_bytes += chunks_heap_bytes(v->arrays[i]);
    pthread_mutex_unlock(&v->owner);
}
