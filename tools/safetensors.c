#include "tools/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

enum { HEADER_MAX_BYTES = 100 * 1000 * 1000 }; /* the format's own limit */

static size_t dtype_bytes(const char *dtype)
{
    static const struct {
        const char *name;
        size_t bytes;
    } types[] = {
        {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4},  {"I16", 2},
        {"I8", 1},  {"U64", 8}, {"U32", 4}, {"U16", 2},  {"U8", 1},  {"BOOL", 1},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(dtype, types[i].name) == 0)
            return types[i].bytes;
    return 0;
}

static int parse_shape(struct safetensor *t, const json_t *shape, size_t *bytes, struct err *e)
{
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_DIMS_MAX)
        return err_set(e, KITH_EFORMAT, "tensor '%s' has no shape of at most %d dimensions",
                       t->name, SAFETENSORS_DIMS_MAX);
    t->n_dims = (unsigned)json_array_size(shape);
    for (unsigned d = 0; d < t->n_dims; d++) {
        const json_t *v = json_array_get(shape, d);
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return err_set(e, KITH_EFORMAT, "tensor '%s' has a dimension that is no count",
                           t->name);
        t->shape[d] = (uint64_t)json_integer_value(v);
        if (mem_mul_overflows(*bytes, t->shape[d], bytes))
            return err_set(e, KITH_EFORMAT, "the shape of tensor '%s' overflows", t->name);
    }
    return 0;
}

static int parse_entry(struct safetensor *t, const char *name, const json_t *v,
                       const unsigned char *data, size_t data_bytes, struct err *e)
{
    t->name = mem_strdup(name);
    if (!t->name)
        return err_set(e, KITH_ENOMEM, "out of memory");
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    size_t bytes = dtype ? dtype_bytes(dtype) : 0;
    if (!bytes)
        return err_set(e, KITH_EFORMAT, "tensor '%s' has the unknown type '%s'", name,
                       dtype ? dtype : "(none)");
    memcpy(t->dtype, dtype, strlen(dtype) + 1);
    int rc = parse_shape(t, json_object_get(v, "shape"), &bytes, e);
    if (rc)
        return rc;
    const json_t *offsets = json_object_get(v, "data_offsets");
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to) ||
        json_integer_value(from) < 0 || json_integer_value(to) < json_integer_value(from))
        return err_set(e, KITH_EFORMAT, "tensor '%s' has no data_offsets [from, to]", name);
    uint64_t begin = (uint64_t)json_integer_value(from), end = (uint64_t)json_integer_value(to);
    if (end > data_bytes)
        return err_set(e, KITH_EFORMAT,
                       "tensor '%s' ends at %llu of %zu data bytes: the file is cut short",
                       name, (unsigned long long)end, data_bytes);
    if (end - begin != bytes)
        return err_set(e, KITH_EFORMAT,
                       "tensor '%s' has %llu bytes, its type and shape ask for %zu", name,
                       (unsigned long long)(end - begin), bytes);
    t->data = data + begin;
    t->bytes = bytes;
    return 0;
}

static int compare_entries(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;
    return (x->data > y->data) - (x->data < y->data);
}

static int parse_header(struct safetensors *s, json_t *header, size_t header_bytes,
                        struct err *e)
{
    const unsigned char *data = (const unsigned char *)s->map.data + 8 + header_bytes;
    size_t data_bytes = s->map.bytes - 8 - header_bytes;
    s->entries = mem_calloc(json_object_size(header), sizeof *s->entries);
    if (!s->entries)
        return err_set(e, KITH_ENOMEM, "out of memory");
    const char *name;
    json_t *v;
    json_object_foreach(header, name, v)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        int rc = parse_entry(&s->entries[s->n++], name, v, data, data_bytes, e);
        if (rc)
            return rc;
    }
    qsort(s->entries, s->n, sizeof *s->entries, compare_entries);
    for (size_t i = 1; i < s->n; i++)
        if (s->entries[i - 1].data + s->entries[i - 1].bytes > s->entries[i].data)
            return err_set(e, KITH_EFORMAT, "tensors '%s' and '%s' overlap",
                           s->entries[i - 1].name, s->entries[i].name);
    return 0;
}

int safetensors_open(struct safetensors *s, const char *path, struct err *e)
{
    memset(s, 0, sizeof *s);
    int rc = file_map_open(&s->map, path, e);
    if (rc)
        return rc;
    uint64_t header_bytes = s->map.bytes >= 8 ? load_u64(s->map.data) : 0;
    if (header_bytes < 2 || header_bytes > HEADER_MAX_BYTES ||
        header_bytes > s->map.bytes - 8) {
        rc = err_set(e, KITH_EFORMAT,
                     "%s: no safetensors file, or cut short: a header of %llu bytes in %zu",
                     path, (unsigned long long)header_bytes, s->map.bytes);
        safetensors_close(s);
        return rc;
    }
    json_error_t where;
    json_t *header = json_loadb((const char *)s->map.data + 8, (size_t)header_bytes,
                                JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(header))
        rc = err_set(e, KITH_EFORMAT, "the header is no JSON object: %s", where.text);
    else
        rc = parse_header(s, header, (size_t)header_bytes, e);
    json_decref(header);
    if (rc) {
        err_wrap(e, "%s", path);
        safetensors_close(s);
    }
    return rc;
}

void safetensors_close(struct safetensors *s)
{
    for (size_t i = 0; i < s->n; i++)
        mem_free(s->entries[i].name);
    mem_free(s->entries);
    file_map_close(&s->map);
    memset(s, 0, sizeof *s);
}

const struct safetensor *safetensors_find(const struct safetensors *s, const char *name)
{
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->entries[i].name, name) == 0)
            return &s->entries[i];
    return NULL;
}
