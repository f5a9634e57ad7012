#include "tools/gguf_write.h"

#include <string.h>

#include "base/mem.h"
#include "engine/gguf.h"

enum { ALIGNMENT = 32, VERSION = 3 };

void gguf_write_init(struct gguf_write *w)
{
    memset(w, 0, sizeof *w);
    w->alignment = ALIGNMENT;
    buf_init(&w->keys);
    buf_init(&w->infos);
    buf_init(&w->array);
}

void gguf_write_deinit(struct gguf_write *w)
{
    buf_deinit(&w->keys);
    buf_deinit(&w->infos);
    buf_deinit(&w->array);
}

static uint64_t aligned(uint64_t offset, uint64_t alignment)
{
    return (offset + alignment - 1) & ~(alignment - 1);
}

uint64_t gguf_write_align(uint64_t offset)
{
    return aligned(offset, ALIGNMENT);
}

static void put_string(struct buf *b, const char *s, size_t n)
{
    buf_u64(b, n);
    buf_append(b, s, n);
}

static void begin_key(struct gguf_write *w, const char *key, uint32_t type)
{
    put_string(&w->keys, key, strlen(key));
    buf_u32(&w->keys, type);
    w->n_keys++;
}

void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t v)
{
    begin_key(w, key, GGUF_U32);
    buf_u32(&w->keys, v);
}

void gguf_write_f32(struct gguf_write *w, const char *key, float v)
{
    begin_key(w, key, GGUF_F32);
    buf_f32(&w->keys, v);
}

void gguf_write_bool(struct gguf_write *w, const char *key, bool v)
{
    begin_key(w, key, GGUF_BOOL);
    buf_u8(&w->keys, v);
}

void gguf_write_string(struct gguf_write *w, const char *key, const char *s)
{
    begin_key(w, key, GGUF_STRING);
    put_string(&w->keys, s, strlen(s));
}

void gguf_write_u8s(struct gguf_write *w, const char *key, const void *bytes, size_t n)
{
    begin_key(w, key, GGUF_ARRAY);
    buf_u32(&w->keys, GGUF_U8);
    buf_u64(&w->keys, n);
    buf_append(&w->keys, bytes, n);
}

static void begin_array(struct gguf_write *w, uint32_t type)
{
    w->array.len = 0;
    w->array_type = type;
    w->array_n = 0;
}

void gguf_write_strings_begin(struct gguf_write *w)
{
    begin_array(w, GGUF_STRING);
}

void gguf_write_strings_add(struct gguf_write *w, const char *s, size_t n)
{
    put_string(&w->array, s, n);
    w->array_n++;
}

void gguf_write_i32s_begin(struct gguf_write *w)
{
    begin_array(w, GGUF_I32);
}

void gguf_write_i32s_add(struct gguf_write *w, int32_t v)
{
    buf_u32(&w->array, (uint32_t)v);
    w->array_n++;
}

void gguf_write_u32s_begin(struct gguf_write *w)
{
    begin_array(w, GGUF_U32);
}

void gguf_write_u32s_add(struct gguf_write *w, uint32_t v)
{
    buf_u32(&w->array, v);
    w->array_n++;
}

void gguf_write_f32s_begin(struct gguf_write *w)
{
    begin_array(w, GGUF_F32);
}

void gguf_write_f32s_add(struct gguf_write *w, float v)
{
    buf_f32(&w->array, v);
    w->array_n++;
}

void gguf_write_array_end(struct gguf_write *w, const char *key)
{
    begin_key(w, key, GGUF_ARRAY);
    buf_u32(&w->keys, w->array_type);
    buf_u64(&w->keys, w->array_n);
    buf_append(&w->keys, w->array.data, w->array.len);
}

void gguf_write_record(struct gguf_write *w, const void *record, size_t n)
{
    buf_append(&w->keys, record, n);
    w->n_keys++;
}

int gguf_write_tensor(struct gguf_write *w, const char *name, enum tensor_type type,
                      unsigned n_dims, uint64_t ne0, uint64_t ne1, size_t *bytes, struct err *e)
{
    const uint64_t ne[] = {ne0, ne1};
    return gguf_write_tensor_shaped(w, name, type, n_dims, ne, bytes, e);
}

int gguf_write_tensor_shaped(struct gguf_write *w, const char *name, enum tensor_type type,
                             unsigned n_dims, const uint64_t *ne, size_t *bytes, struct err *e)
{
    int rc = tensor_row_bytes(type, ne[0], bytes, e);
    if (rc)
        return err_wrap(e, "tensor '%s'", name);
    put_string(&w->infos, name, strlen(name));
    buf_u32(&w->infos, n_dims);
    for (unsigned d = 0; d < n_dims; d++) {
        buf_u64(&w->infos, ne[d]);
        if (d > 0 && mem_mul_overflows(*bytes, ne[d], bytes))
            return err_set(e, KITH_EFORMAT, "the shape of tensor '%s' overflows", name);
    }
    buf_u32(&w->infos, (uint32_t)type);
    buf_u64(&w->infos, w->data_bytes);
    w->data_bytes = aligned(w->data_bytes + *bytes, w->alignment);
    w->n_tensors++;
    return 0;
}

int gguf_write_finish(struct gguf_write *w, struct buf *head, struct err *e)
{
    buf_append_str(head, "GGUF");
    buf_u32(head, VERSION);
    buf_u64(head, w->n_tensors);
    buf_u64(head, w->n_keys);
    buf_append(head, w->keys.data, w->keys.len);
    buf_append(head, w->infos.data, w->infos.len);
    while (!head->failed && head->len % w->alignment)
        buf_u8(head, 0);
    if (head->failed || w->keys.failed || w->infos.failed || w->array.failed)
        return err_set(e, KITH_ENOMEM, "out of memory for the file's header");
    return 0;
}
