/* How a vector set stands in the store: its arrays, its record, its part of a checkpoint.
 *
 *   record = version u8, kind u8, quant u8, metric u8, keep u8, declared u8, dim u32, m u32,
 *            ef u32, projection u32, records of each array 8 x u32, elements u32, next slot
 * u32, first free name unit u32, slots ever given out u64, free attribute runs 56 x varint,
 *            retired attribute runs varint n, n x { varint, varint }, model 3 x bytes,
 *            state of the index bytes */
#include "base/mem.h"
#include "server/blob.h"
#include "server/vset_parts.h"

enum { RECORD_VERSION = 1, RECORD_SLOT = UINT32_MAX };

int vset_open_arrays(struct vset *v, const uint32_t counts[VSET_ARRAYS], struct err *e)
{
    const struct index_params *p = &v->params.index;
    const uint32_t strides[VSET_ARRAYS] = {
        index_code_stride(p), index_links_stride(p),  index_upper_stride(p),
        ELEM_BYTES,           NAME_UNIT_BYTES,        ATTRIBUTE_UNIT_BYTES,
        TIME_BYTES,           kept_stride(&v->params)};
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

void vset_model_encode(struct buf *to, const struct vset_model *m)
{
    static const struct vset_model none;
    m = m ? m : &none;
    buf_bytes(to, m->name, strlen(m->name));
    buf_bytes(to, m->hash, strlen(m->hash));
    buf_bytes(to, m->pooling, strlen(m->pooling));
}

static void read_word(struct reader *r, char *out, size_t size)
{
    size_t n;
    const void *p = read_bytes(r, &n);
    if (n >= size)
        r->failed = true;
    else if (n)
        memcpy(out, p, n);
}

void vset_model_read(struct reader *r, struct vset_model *m)
{
    *m = (struct vset_model){0};
    read_word(r, m->name, sizeof m->name);
    read_word(r, m->hash, sizeof m->hash);
    read_word(r, m->pooling, sizeof m->pooling);
}

static void write_record(struct vset *v, struct buf *b)
{
    const struct vset_params *p = &v->params;
    buf_u8(b, RECORD_VERSION);
    buf_u8(b, (uint8_t)p->index.kind);
    buf_u8(b, (uint8_t)p->index.quant);
    buf_u8(b, (uint8_t)p->index.metric);
    buf_u8(b, (uint8_t)p->keep);
    buf_u8(b, p->declared);
    buf_u32(b, p->index.dim);
    buf_u32(b, p->index.m);
    buf_u32(b, p->index.ef_construction);
    buf_u32(b, p->projection_dim);
    for (int i = 0; i < VSET_ARRAYS; i++)
        buf_u32(b, v->arrays[i] ? records_count(chunks_records(v->arrays[i])) : 0);
    buf_u32(b, vset_count(v));
    buf_u32(b, v->next_slot);
    buf_u32(b, v->free_unit);
    buf_u64(b, v->max_uid);
    attributes_save(v, b);
    vset_model_encode(b, &v->model);
    struct buf state;
    buf_init(&state);
    index_save(v->index, &state);
    buf_bytes(b, state.data, state.len);
    b->failed |= state.failed;
    buf_deinit(&state);
}

static int damaged(const struct vset *v, struct err *e)
{
    return err_set(e, KITH_ECORRUPT, "the record of vector set %u is damaged", v->id);
}

static void read_params(struct reader *r, struct vset_params *p)
{
    p->index.kind = (enum index_kind)read_u8(r);
    p->index.quant = (enum index_quant)read_u8(r);
    p->index.metric = (enum index_metric)read_u8(r);
    p->keep = (enum vset_keep)read_u8(r);
    p->declared = read_u8(r) != 0;
    p->index.dim = read_u32(r);
    p->index.m = read_u32(r);
    p->index.ef_construction = read_u32(r);
    p->projection_dim = read_u32(r);
}

/* Whether the arrays have a record for each slot that was given out. */
static bool counts_fit(const struct vset *v, const uint32_t counts[VSET_ARRAYS])
{
    return v->next_slot <= counts[ARRAY_ELEMS] && v->free_unit <= counts[ARRAY_NAMES] &&
           (v->params.keep == VSET_KEEP_NONE || v->next_slot <= counts[ARRAY_KEPT]);
}

static int read_record(struct vset *v, const struct buf *record, uint32_t *count, struct err *e)
{
    struct reader r = reader_of(record->data, record->len);
    uint32_t counts[VSET_ARRAYS];
    uint8_t version = read_u8(&r);
    if (version != RECORD_VERSION)
        return err_set(e, KITH_EFORMAT, "vector set %u has record version %u, not %d", v->id,
                       version, RECORD_VERSION);
    read_params(&r, &v->params);
    for (int i = 0; i < VSET_ARRAYS; i++)
        counts[i] = read_u32(&r);
    *count = read_u32(&r);
    v->next_slot = read_u32(&r);
    v->free_unit = read_u32(&r);
    v->max_uid = read_u64(&r);
    if (r.failed || !vset_params_valid(&v->params) || !counts_fit(v, counts))
        return damaged(v, e);
    int rc = vset_open_arrays(v, counts, e);
    if (rc == 0)
        rc = attributes_load(v, &r, e);
    if (rc != 0)
        return rc;
    vset_model_read(&r, &v->model);
    size_t n;
    const void *state = read_bytes(&r, &n);
    return reader_done(&r) ? vset_open_index(v, state, n, e) : damaged(v, e);
}

int vset_load(struct vset **out, uint32_t id, const struct vset_options *o, struct err *e)
{
    struct buf record;
    struct err local;
    e = e ? e : &local;
    buf_init(&record);
    int rc = store_get(o->store, STORE_BLOBS, id, RECORD_SLOT, &record, e);
    struct vset *v = rc == 0 ? vset_allocate(id, o) : NULL;
    uint32_t count = 0;
    if (rc == 0)
        rc = v ? read_record(v, &record, &count, e) : err_set(e, KITH_ENOMEM, "out of memory");
    if (rc == 0)
        rc = table_expect(v, count, e);
    if (rc == 0)
        rc = elems_load(v, count, e);
    if (rc == 0)
        rc = times_load(v, e);
    buf_deinit(&record);
    if (rc != 0) {
        if (v)
            vset_free_parts(v);
        return err_wrap(e, "vector set %u", id);
    }
    *out = v;
    return 0;
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
