#include "tools/gguf_write.h"

#include <string.h>

#include "engine/gguf.h"

enum { ALIGNMENT = 32, VERSION = 3 };

void gguf_write_init(struct gguf_write *w)
{
    memset(w, 0, sizeof *w);
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

uint64_t gguf_write_align(uint64_t offset)
{
    return (offset + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
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

void gguf_write_array_end(struct gguf_write *w, const char *key)
{
    begin_key(w, key, GGUF_ARRAY);
    buf_u32(&w->keys, w->array_type);
    buf_u64(&w->keys, w->array_n);
    buf_append(&w->keys, w->array.data, w->array.len);
}

int gguf_write_tensor(struct gguf_write *w, const char *name, enum tensor_type type,
                      unsigned n_dims, uint64_t ne0, uint64_t ne1, size_t *bytes, struct err *e)
{
    int rc = tensor_row_bytes(type, ne0, bytes, e);
    if (rc)
        return err_wrap(e, "tensor '%s'", name);
    *bytes *= ne1;
    put_string(&w->infos, name, strlen(name));
    buf_u32(&w->infos, n_dims);
    buf_u64(&w->infos, ne0);
    if (n_dims == 2)
        buf_u64(&w->infos, ne1);
    buf_u32(&w->infos, (uint32_t)type);
    buf_u64(&w->infos, w->data_bytes);
    w->data_bytes = gguf_write_align(w->data_bytes + *bytes);
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
    while (!head->failed && head->len % ALIGNMENT)
        buf_u8(head, 0);
    if (head->failed || w->keys.failed || w->infos.failed || w->array.failed)
        return err_set(e, KITH_ENOMEM, "out of memory for the file's header");
    return 0;
}
