#include "server/vset.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/epoch.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/random.h"
#include "server/blob.h"
#include "server/vset_parts.h"

enum { RECORD_VERSION = 1, RECORD_SLOT = UINT32_MAX };

struct vset *vset_ref(struct vset *v)
{
    atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
    return v;
}

static void free_parts(void *p)
{
    struct vset *v = p;
    index_free(v->index);
    for (int i = 0; i < VSET_ARRAYS; i++)
        chunks_free(v->arrays[i]);
    texts_deinit(&v->texts);
    texts_deinit(&v->texts_frozen);
    while (v->n_spare_texts > 0)
        mem_free(v->spare_texts[--v->n_spare_texts]);
    mem_free(v->table);
    mem_free(v->free_slots);
    buf_deinit(&v->frozen_record);
    pthread_mutex_destroy(&v->owner);
    mem_free(v);
}

void vset_unref(struct vset *v)
{
    /* After the last count nobody can come to it; those still reading stand in a bracket. */
    if (v && atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) == 1)
        epoch_retire(v, free_parts);
}

void vset_mark_dropped(struct vset *v)
{
    atomic_store(&v->dropped, true);
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

const struct index_params *vset_params(const struct vset *v)
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

uint64_t vset_replacements(const struct vset *v)
{
    return atomic_load(&v->replacements);
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

/* --- opening --- */

/* The index hands a slot back: no reader can hold it any more. Owner's lock held. */
static void slot_freed(void *arg, uint32_t slot)
{
    struct vset *v = arg;
    elems_release(v, slot);
    vset_dirtied(v);
}

static int open_arrays(struct vset *v, const uint32_t counts[VSET_ARRAYS], struct err *e)
{
    const uint32_t strides[VSET_ARRAYS] = {
        index_code_stride(&v->params), index_links_stride(&v->params),
        index_upper_stride(&v->params), ELEM_BYTES, NAME_UNIT_BYTES};
    for (int i = 0; i < VSET_ARRAYS; i++) {
        if (strides[i] == 0)
            continue;
        int rc = chunks_open(&v->arrays[i], v->options.store, v->id * 8 + (uint32_t)i,
                             strides[i], counts[i], e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static struct records *array_records(struct vset *v, enum vset_array which)
{
    return v->arrays[which] ? chunks_records(v->arrays[which]) : NULL;
}

static int open_index(struct vset *v, const void *state, size_t n, struct err *e)
{
    struct index_arrays arrays = {.codes = array_records(v, ARRAY_CODES),
                                  .links = array_records(v, ARRAY_LINKS),
                                  .upper = array_records(v, ARRAY_UPPER)};
    struct index_options options = {.owner = &v->owner,
                                    .tail_max = v->options.tail_max,
                                    .on_slot_free = slot_freed,
                                    .arg = v};
    return index_open(&v->index, &v->params, &arrays, &options, state, n, e);
}

static struct vset *allocate(uint32_t id, const struct vset_options *o)
{
    struct vset *v = mem_calloc(1, sizeof *v);
    if (!v)
        return NULL;
    v->id = id;
    v->options = *o;
    v->refs = 1;
    pthread_mutex_init(&v->owner, NULL);
    rng_seed(&v->rng, rng_entropy());
    return v;
}

int vset_new(struct vset **out, uint32_t id, const struct index_params *params,
             const struct vset_model *model, const struct vset_options *o, struct err *e)
{
    struct vset *v = allocate(id, o);
    if (!v)
        return err_set(e, KITH_ENOMEM, "out of memory for a vector set");
    v->params = *params;
    if (model)
        v->model = *model;
    const uint32_t none[VSET_ARRAYS] = {0};
    int rc = open_arrays(v, none, e);
    if (rc == 0)
        rc = open_index(v, NULL, 0, e);
    if (rc != 0) {
        free_parts(v);
        return rc;
    }
    *out = v;
    return 0;
}

/* The set's record: what a restart needs besides the arrays. */
static void write_record(struct vset *v, struct buf *b)
{
    buf_u8(b, RECORD_VERSION);
    buf_u8(b, (uint8_t)v->params.kind);
    buf_u8(b, (uint8_t)v->params.quant);
    buf_u32(b, v->params.dim);
    buf_u32(b, v->params.m);
    buf_u32(b, v->params.ef_construction);
    for (int i = 0; i < VSET_ARRAYS; i++)
        buf_u32(b, v->arrays[i] ? records_count(chunks_records(v->arrays[i])) : 0);
    buf_u32(b, vset_count(v));
    buf_u32(b, v->next_slot);
    buf_u32(b, v->free_unit);
    buf_u64(b, v->max_uid);
    buf_bytes(b, v->model.name, strlen(v->model.name));
    buf_bytes(b, v->model.hash, strlen(v->model.hash));
    buf_bytes(b, v->model.pooling, strlen(v->model.pooling));
    struct buf state;
    buf_init(&state);
    index_save(v->index, &state);
    buf_bytes(b, state.data, state.len);
    b->failed |= state.failed;
    buf_deinit(&state);
}

static bool read_word(struct reader *r, char *out, size_t size)
{
    size_t n;
    const void *p = read_bytes(r, &n);
    if (!p || n >= size)
        return false;
    memcpy(out, p, n);
    out[n] = '\0';
    return true;
}

static int read_record(struct vset *v, const struct buf *record, uint32_t *count, struct err *e)
{
    struct reader r = reader_of(record->data, record->len);
    uint32_t counts[VSET_ARRAYS];
    uint8_t version = read_u8(&r);
    if (version != RECORD_VERSION)
        return err_set(e, KITH_EFORMAT, "vector set %u has record version %u, not %d", v->id,
                       version, RECORD_VERSION);
    v->params.kind = (enum index_kind)read_u8(&r);
    v->params.quant = (enum index_quant)read_u8(&r);
    v->params.dim = read_u32(&r);
    v->params.m = read_u32(&r);
    v->params.ef_construction = read_u32(&r);
    for (int i = 0; i < VSET_ARRAYS; i++)
        counts[i] = read_u32(&r);
    *count = read_u32(&r);
    v->next_slot = read_u32(&r);
    v->free_unit = read_u32(&r);
    v->max_uid = read_u64(&r);
    bool words = read_word(&r, v->model.name, sizeof v->model.name) &&
                 read_word(&r, v->model.hash, sizeof v->model.hash) &&
                 read_word(&r, v->model.pooling, sizeof v->model.pooling);
    size_t n;
    const void *state = read_bytes(&r, &n);
    if (!words || !reader_done(&r) || v->next_slot > counts[ARRAY_ELEMS])
        return err_set(e, KITH_ECORRUPT, "the record of vector set %u is damaged", v->id);
    int rc = open_arrays(v, counts, e);
    return rc == 0 ? open_index(v, state, n, e) : rc;
}

int vset_load(struct vset **out, uint32_t id, const struct vset_options *o, struct err *e)
{
    struct buf record;
    buf_init(&record);
    int rc = store_get(o->store, STORE_BLOBS, id, RECORD_SLOT, &record, e);
    struct vset *v = rc == 0 ? allocate(id, o) : NULL;
    uint32_t count = 0;
    if (rc == 0)
        rc = v ? read_record(v, &record, &count, e) : err_set(e, KITH_ENOMEM, "out of memory");
    if (rc == 0)
        rc = elems_load(v, count, e);
    buf_deinit(&record);
    if (rc != 0) {
        if (v)
            free_parts(v);
        return err_wrap(e, "vector set %u", id);
    }
    *out = v;
    return 0;
}

/* --- changing --- */

static uint64_t level_seed(struct slice name)
{
    return hash64_seed(name.p, name.n, 0x6b697468);
}

/* A slot whose records exist in the arrays that have one record a slot. */
static int take_slot(struct vset *v, uint32_t *slot, struct err *e)
{
    if (v->n_free > 0) {
        *slot = v->free_slots[--v->n_free];
        return 0;
    }
    if (v->next_slot == INDEX_SLOT_NONE)
        return err_set(e, KITH_ELIMIT, "a vector set holds at most %u elements",
                       INDEX_SLOT_NONE);
    static const enum vset_array per_slot[] = {ARRAY_CODES, ARRAY_LINKS, ARRAY_ELEMS};
    for (int i = 0; i < 3; i++) {
        struct records *r = array_records(v, per_slot[i]);
        int rc = r ? records_grow(r, v->next_slot + 1, e) : 0;
        if (rc != 0)
            return rc;
    }
    *slot = v->next_slot++;
    return 0;
}

/* Makes the records of a slot writable, so that retire_slot finds them so and cannot fail half
 * way. */
static int prepare_retire(struct vset *v, uint32_t slot, struct err *e)
{
    struct err local;
    struct err *why = e ? e : &local;
    if (!records_writable(array_records(v, ARRAY_CODES), slot, why) ||
        !records_writable(array_records(v, ARRAY_ELEMS), slot, why))
        return why->code;
    return 0;
}

/* Takes the element of a slot out of results and texts; the slot itself comes back later. */
static int retire_slot(struct vset *v, uint32_t slot, struct err *e)
{
    int rc = prepare_retire(v, slot, e);
    if (rc == 0)
        rc = index_remove(v->index, slot, e);
    if (rc != 0)
        return rc;
    if (elems_has_text(v, slot))
        texts_forget(v, slot);
    return elems_set_state(v, slot, ELEM_REMOVED, e);
}

static int add_locked(struct vset *v, struct slice name, const float *vector,
                      const struct slice *text, uint32_t old, struct err *e)
{
    int rc = old == INDEX_SLOT_NONE ? table_reserve(v, e) : prepare_retire(v, old, e);
    if (rc == 0)
        rc = texts_reserve(v, e);
    uint32_t slot = 0;
    if (rc == 0)
        rc = take_slot(v, &slot, e);
    if (rc != 0)
        return rc;
    struct blob *kept = NULL;
    if (text && !(kept = blob_new(text->p, text->n)))
        rc = err_set(e, KITH_ENOMEM, "out of memory for the text");
    if (rc == 0)
        rc = elems_write(v, slot, name, text != NULL, e);
    if (rc == 0) {
        rc = index_add(v->index, slot, vector, level_seed(name), e);
        if (rc != 0)
            elems_release(v, slot);
    } else {
        slots_give_back(v, slot);
    }
    if (rc != 0) {
        blob_unref(kept);
        return rc;
    }
    if (kept)
        texts_keep(v, slot, kept);
    v->max_uid++;
    if (old == INDEX_SLOT_NONE) {
        table_put(v, name, slot);
        atomic_fetch_add_explicit(&v->count, 1, memory_order_relaxed);
        return 0;
    }
    table_replace(v, name, old, slot);
    /* Between the two: a search that saw the same number before and after either began when the
     * new slot was there, or ended when the old one still was. */
    atomic_fetch_add(&v->replacements, 1);
    return retire_slot(v, old, e);
}

int vset_add(struct vset *v, struct slice name, const float *vector, const struct slice *text,
             const struct vset_model *model, bool *added, struct err *e)
{
    if (name.n > VSET_NAME_MAX)
        return err_set(e, KITH_EINVAL, "element name of %zu bytes, at most %d are allowed",
                       name.n, VSET_NAME_MAX);
    epoch_enter();
    pthread_mutex_lock(&v->owner);
    uint32_t old;
    int rc = table_find(v, name, &old, e);
    vset_dirtied(v);
    if (rc == 0)
        rc = add_locked(v, name, vector, text, old, e);
    if (rc == 0 && model && !v->model.name[0])
        v->model = *model;
    pthread_mutex_unlock(&v->owner);
    epoch_exit();
    *added = rc == 0 && old == INDEX_SLOT_NONE;
    if (rc == 0)
        v->options.on_work(v->options.arg, v);
    return rc;
}

int vset_remove(struct vset *v, struct slice name, struct err *e)
{
    epoch_enter();
    pthread_mutex_lock(&v->owner);
    uint32_t slot;
    int rc = table_find(v, name, &slot, e);
    if (rc == 0)
        rc = slot == INDEX_SLOT_NONE ? KITH_ENOTFOUND : texts_reserve(v, e);
    if (rc == 0) {
        vset_dirtied(v);
        rc = retire_slot(v, slot, e);
    }
    if (rc == 0) {
        table_remove(v, name, slot);
        atomic_fetch_sub_explicit(&v->count, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&v->owner);
    epoch_exit();
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

int vset_find(struct vset *v, struct slice name, uint32_t *slot, struct err *e)
{
    epoch_enter();
    int rc = table_find(v, name, slot, e);
    epoch_exit();
    return rc == 0 && *slot == INDEX_SLOT_NONE
               ? err_set(e, KITH_ENOTFOUND, "element not found in set")
               : rc;
}

uint32_t vset_random(struct vset *v, uint32_t n, bool distinct, uint32_t *slots)
{
    uint32_t count = vset_count(v), found = 0;
    if (count == 0)
        return 0;
    epoch_enter();
    pthread_mutex_lock(&v->owner);
    if (!distinct) {
        for (; found < n; found++)
            slots[found] = table_random(v);
    } else {
        /* Reservoir sampling (Vitter 1985, algorithm R) over the table. */
        uint64_t seen = 0;
        for (uint32_t i = 0; i < v->table_size; i++) {
            uint32_t slot = table_at(v, i);
            if (slot == INDEX_SLOT_NONE)
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
    }
    pthread_mutex_unlock(&v->owner);
    epoch_exit();
    return found;
}

int vset_text(struct vset *v, uint32_t slot, struct buf *out, struct err *e)
{
    pthread_mutex_lock(&v->owner);
    int rc = texts_get(v, slot, out, e);
    pthread_mutex_unlock(&v->owner);
    return rc;
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
    out->max_uid = v->max_uid;
    out->memory_bytes =
        sizeof *v + index_heap_bytes(v->index) + (size_t)v->table_size * sizeof *v->table +
        (size_t)v->free_cap * sizeof *v->free_slots + v->texts.bytes + v->texts_frozen.bytes;
    for (int i = 0; i < VSET_ARRAYS; i++)
        if (v->arrays[i])
            out->memory_bytes += chunks_heap_bytes(v->arrays[i]);
    pthread_mutex_unlock(&v->owner);
}

int vset_digest(struct vset *v, uint64_t out[2], struct err *e)
{
    struct buf b;
    buf_init(&b);
    out[0] = out[1] = 0;
    int rc = 0;
    epoch_enter();
    pthread_mutex_lock(&v->owner);
    for (uint32_t i = 0; rc == 0 && i < v->table_size; i++) {
        uint32_t slot = table_at(v, i);
        if (slot == INDEX_SLOT_NONE)
            continue;
        struct index_code code;
        buf_clear(&b);
        if (!vset_name(v, slot, &b, e))
            rc = KITH_ECORRUPT;
        else if ((rc = index_code(v->index, slot, &code, e)) == 0) {
            buf_u32(&b, (uint32_t)b.len);
            buf_append(&b, code.bytes, code.n_bytes);
            buf_f32(&b, code.norm);
            rc = texts_get(v, slot, &b, e);
            if (rc == KITH_ENOTFOUND)
                rc = 0;
        }
        if (rc == 0 && b.failed)
            rc = err_set(e, KITH_ENOMEM, "out of memory");
        out[0] ^= hash64_seed(b.data, b.len, 1);
        out[1] ^= hash64_seed(b.data, b.len, 2);
    }
    pthread_mutex_unlock(&v->owner);
    epoch_exit();
    buf_deinit(&b);
    return rc;
}

/* --- checkpoint --- */

int vset_freeze(struct vset *v, struct err *e)
{
    int rc = 0;
    pthread_mutex_lock(&v->owner);
    v->dirty = false;
    buf_clear(&v->frozen_record);
    write_record(v, &v->frozen_record);
    if (v->frozen_record.failed) {
        v->dirty = true;
        rc = err_set(e, KITH_ENOMEM, "out of memory for the record of vector set %u", v->id);
    } else {
        for (int i = 0; i < VSET_ARRAYS; i++)
            if (v->arrays[i])
                chunks_freeze(v->arrays[i]);
        v->texts_frozen = v->texts;
        texts_init(&v->texts);
        v->frozen = true;
    }
    pthread_mutex_unlock(&v->owner);
    return rc;
}

int vset_write(struct vset *v, struct store_write *w, struct err *e)
{
    int rc = store_put(w, STORE_BLOBS, v->id, RECORD_SLOT, v->frozen_record.data,
                       v->frozen_record.len, e);
    if (rc == 0)
        rc = texts_write(v, w, e);
    for (int i = 0; rc == 0 && i < VSET_ARRAYS; i++)
        if (v->arrays[i])
            rc = chunks_write(v->arrays[i], w, e);
    return rc;
}

void vset_settle(struct vset *v, bool committed)
{
    pthread_mutex_lock(&v->owner);
    for (int i = 0; i < VSET_ARRAYS; i++)
        if (v->arrays[i])
            chunks_settle(v->arrays[i], committed);
    if (!committed) {
        texts_merge_back(v);
        vset_dirtied(v);
    }
    texts_deinit(&v->texts_frozen);
    v->frozen = false;
    pthread_mutex_unlock(&v->owner);
}

bool vset_frozen(struct vset *v)
{
    return v->frozen;
}

size_t vset_dirty_bytes(struct vset *v)
{
    size_t n = 0;
    pthread_mutex_lock(&v->owner);
    for (int i = 0; i < VSET_ARRAYS; i++)
        if (v->arrays[i])
            n += chunks_dirty_bytes(v->arrays[i]);
    n += v->texts.bytes + v->texts_frozen.bytes;
    pthread_mutex_unlock(&v->owner);
    return n;
}

int64_t vset_purge(struct store_write *w, uint32_t id, uint64_t limit, struct err *e)
{
    uint64_t done = 0;
    for (uint32_t i = 0; i < VSET_ARRAYS + 1 && (limit == 0 || done < limit); i++) {
        uint64_t left = limit ? limit - done : 0;
        int64_t n = i < VSET_ARRAYS ? store_delete_all(w, STORE_CHUNKS, id * 8 + i, left, e)
                                    : store_delete_all(w, STORE_BLOBS, id, left, e);
        if (n < 0)
            return n;
        done += (uint64_t)n;
    }
    return (int64_t)done;
}
