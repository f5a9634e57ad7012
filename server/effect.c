#include "server/effect.h"

static void encode_model(struct buf *to, const struct vset_model *m)
{
    static const struct vset_model none;
    m = m ? m : &none;
    buf_bytes(to, m->name, strlen(m->name));
    buf_bytes(to, m->hash, strlen(m->hash));
    buf_bytes(to, m->pooling, strlen(m->pooling));
}

void effect_encode(struct buf *to, const struct effect *f)
{
    if (to->len == 0)
        buf_u8(to, EFFECT_VERSION);
    buf_u8(to, (uint8_t)f->op);
    buf_varint(to, f->db);
    buf_bytes(to, f->key.p, f->key.n);
    switch (f->op) {
    case EFFECT_SET:
        buf_bytes(to, f->value.p, f->value.n);
        buf_varint(to, (uint64_t)f->expire_ms);
        break;
    case EFFECT_APPEND:
    case EFFECT_VREM:
        buf_bytes(to, f->value.p, f->value.n);
        break;
    case EFFECT_EXPIRE:
        buf_varint(to, (uint64_t)f->expire_ms);
        break;
    case EFFECT_RENAME:
        buf_varint(to, f->to_db);
        buf_bytes(to, f->to_key.p, f->to_key.n);
        break;
    case EFFECT_VADD:
        buf_bytes(to, f->value.p, f->value.n);
        buf_u8(to, (uint8_t)f->quant);
        buf_varint(to, f->m);
        buf_varint(to, f->ef);
        encode_model(to, f->model);
        buf_u8(to, f->text != NULL);
        if (f->text)
            buf_bytes(to, f->text->p, f->text->n);
        buf_varint(to, f->dim);
        buf_append(to, f->vector, (size_t)f->dim * sizeof(float));
        break;
    case EFFECT_DEL:
    case EFFECT_FLUSH:
        break;
    }
}

static struct slice read_slice(struct reader *r)
{
    size_t n;
    const void *p = read_bytes(r, &n);
    return (struct slice){.p = p, .n = n};
}

static void read_word(struct reader *r, char *out, size_t size)
{
    struct slice s = read_slice(r);
    if (s.n >= size)
        r->failed = true;
    else if (s.n)
        memcpy(out, s.p, s.n);
}

static uint32_t read_u32_varint(struct reader *r)
{
    uint64_t v = read_varint(r);
    if (v > UINT32_MAX)
        r->failed = true;
    return (uint32_t)v;
}

static void decode_vadd(struct reader *r, struct effect *f, struct effect_storage *storage)
{
    f->value = read_slice(r);
    f->quant = (enum index_quant)read_u8(r);
    f->m = read_u32_varint(r);
    f->ef = read_u32_varint(r);
    storage->model = (struct vset_model){0};
    read_word(r, storage->model.name, sizeof storage->model.name);
    read_word(r, storage->model.hash, sizeof storage->model.hash);
    read_word(r, storage->model.pooling, sizeof storage->model.pooling);
    if (storage->model.name[0])
        f->model = &storage->model;
    if (read_u8(r)) {
        storage->text = read_slice(r);
        f->text = &storage->text;
    }
    f->dim = read_u32_varint(r);
    if (f->dim == 0 || f->dim > INDEX_DIM_MAX)
        r->failed = true;
    else
        f->vector = read_raw(r, (size_t)f->dim * sizeof(float));
}

bool effect_decode(struct reader *r, struct effect *f, struct effect_storage *storage)
{
    if (r->failed || r->p == r->end)
        return false;
    *f = (struct effect){0};
    f->op = (enum effect_op)read_u8(r);
    f->db = read_u32_varint(r);
    f->key = read_slice(r);
    switch (f->op) {
    case EFFECT_SET:
        f->value = read_slice(r);
        f->expire_ms = (int64_t)read_varint(r);
        break;
    case EFFECT_APPEND:
    case EFFECT_VREM:
        f->value = read_slice(r);
        break;
    case EFFECT_EXPIRE:
        f->expire_ms = (int64_t)read_varint(r);
        break;
    case EFFECT_RENAME:
        f->to_db = read_u32_varint(r);
        f->to_key = read_slice(r);
        break;
    case EFFECT_VADD:
        decode_vadd(r, f, storage);
        break;
    case EFFECT_DEL:
    case EFFECT_FLUSH:
        break;
    default:
        r->failed = true;
    }
    return !r->failed;
}
