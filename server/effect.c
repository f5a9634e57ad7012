#include "server/effect.h"

static void encode_params(struct buf *to, const struct vset_params *p)
{
    buf_u8(to, (uint8_t)p->index.kind);
    buf_u8(to, (uint8_t)p->index.quant);
    buf_u8(to, (uint8_t)p->index.metric);
    buf_u8(to, (uint8_t)p->keep);
    buf_u8(to, p->declared);
    buf_varint(to, p->index.dim);
    buf_varint(to, p->index.m);
    buf_varint(to, p->index.ef_construction);
    buf_varint(to, p->projection_dim);
}

static void encode_optional(struct buf *to, const struct slice *s)
{
    buf_u8(to, s != NULL);
    if (s)
        buf_bytes(to, s->p, s->n);
}

static void encode_vadd(struct buf *to, const struct effect *f)
{
    buf_bytes(to, f->value.p, f->value.n);
    buf_u8(to, f->made);
    if (f->made)
        encode_params(to, f->params);
    vset_model_encode(to, f->model);
    encode_optional(to, f->text);
    encode_optional(to, f->attributes);
    buf_varint(to, (uint64_t)f->expire_ms);
    buf_varint(to, f->dim);
    buf_append(to, f->vector, (size_t)f->dim * sizeof(float));
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
        encode_vadd(to, f);
        break;
    case EFFECT_VCREATE:
        encode_params(to, f->params);
        vset_model_encode(to, f->model);
        break;
    case EFFECT_VSETATTR:
        buf_bytes(to, f->value.p, f->value.n);
        buf_bytes(to, f->attributes->p, f->attributes->n);
        break;
    case EFFECT_DEL:
    case EFFECT_FLUSH:
    case EFFECT_VSWITCH:
        break;
    }
}

size_t effect_bytes(const struct effect *f)
{
    return EFFECT_OVERHEAD_BYTES + f->key.n + f->value.n + f->to_key.n +
           (f->text ? f->text->n : 0) + (f->attributes ? f->attributes->n : 0) +
           (size_t)f->dim * sizeof(float);
}

/* --- decoding --- */

static struct slice read_slice(struct reader *r)
{
    size_t n;
    const void *p = read_bytes(r, &n);
    return (struct slice){.p = p, .n = n};
}

static uint32_t read_u32_varint(struct reader *r)
{
    uint64_t v = read_varint(r);
    if (v > UINT32_MAX)
        r->failed = true;
    return (uint32_t)v;
}

static int64_t read_time(struct reader *r)
{
    uint64_t v = read_varint(r);
    if (v > INT64_MAX)
        r->failed = true;
    return (int64_t)v;
}

static bool read_flag(struct reader *r)
{
    uint8_t v = read_u8(r);
    if (v > 1)
        r->failed = true;
    return v == 1;
}

static void read_model(struct reader *r, struct effect *f, struct vset_model *m)
{
    vset_model_read(r, m);
    if (m->name[0])
        f->model = m;
}

static void read_params(struct reader *r, struct effect *f, struct vset_params *p)
{
    *p = (struct vset_params){0};
    p->index.kind = (enum index_kind)read_u8(r);
    p->index.quant = (enum index_quant)read_u8(r);
    p->index.metric = (enum index_metric)read_u8(r);
    p->keep = (enum vset_keep)read_u8(r);
    p->declared = read_flag(r);
    p->index.dim = read_u32_varint(r);
    p->index.m = read_u32_varint(r);
    p->index.ef_construction = read_u32_varint(r);
    p->projection_dim = read_u32_varint(r);
    if (!vset_params_valid(p))
        r->failed = true;
    f->params = p;
}

static const struct slice *read_optional(struct reader *r, struct slice *s)
{
    if (!read_flag(r))
        return NULL;
    *s = read_slice(r);
    return s;
}

static void decode_vadd(struct reader *r, struct effect *f, struct effect_storage *storage)
{
    f->value = read_slice(r);
    f->made = read_flag(r);
    if (f->made)
        read_params(r, f, &storage->params);
    read_model(r, f, &storage->model);
    f->text = read_optional(r, &storage->text);
    f->attributes = read_optional(r, &storage->attributes);
    f->expire_ms = read_time(r);
    f->dim = read_u32_varint(r);
    if (f->dim == 0 || f->dim > INDEX_DIM_MAX || (f->made && f->params->index.dim != f->dim))
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
        f->expire_ms = read_time(r);
        break;
    case EFFECT_APPEND:
    case EFFECT_VREM:
        f->value = read_slice(r);
        break;
    case EFFECT_EXPIRE:
        f->expire_ms = read_time(r);
        break;
    case EFFECT_RENAME:
        f->to_db = read_u32_varint(r);
        f->to_key = read_slice(r);
        break;
    case EFFECT_VADD:
        decode_vadd(r, f, storage);
        break;
    case EFFECT_VCREATE:
        read_params(r, f, &storage->params);
        read_model(r, f, &storage->model);
        break;
    case EFFECT_VSETATTR:
        f->value = read_slice(r);
        storage->attributes = read_slice(r);
        f->attributes = &storage->attributes;
        break;
    case EFFECT_DEL:
    case EFFECT_FLUSH:
    case EFFECT_VSWITCH:
        break;
    default:
        r->failed = true;
    }
    return !r->failed;
}
