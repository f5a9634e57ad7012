/* How a file is opened.
 *
 *   "GGUF" version n_tensors n_keys | keys | tensor infos | padding | data section
 *
 * One pass front to back with a bounded reader. Nothing is allocated in proportion to a count
 * before the count is known to fit the bytes that are left (a key takes at least 13 bytes, a
 * tensor info at least 32), so a short file cannot ask for much memory. Keys and tensors are
 * then sorted by name, which finds duplicates and gives the lookup; tensors are sorted once
 * more by offset, which finds overlaps. llama.cpp demands that tensors follow one another
 * without gaps; gaps are harmless and accepted here.
 *
 * Invariants after open:
 *   1. every `value` of a key has all its bytes inside the file, strings in arrays included;
 *   2. key names are unique, and tensor names are;
 *   3. a tensor's bytes are those its type and shape ask for, lie in the data section, and
 * belong to no other tensor. */

#include "engine/gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

enum { KEY_MIN_BYTES = 8 + 4 + 1, TENSOR_MIN_BYTES = 8 + 1 + 4 + 8 + 4 + 8 };

struct gguf_key {
    const char *name;
    size_t name_bytes;
    enum gguf_type type;
    enum gguf_type element; /* of an array */
    uint64_t n;             /* elements of an array, bytes of a string, else 1 */
    const unsigned char *value;
    const unsigned char *record; /* all of it, from the length of its name */
    size_t record_bytes;
};

struct gguf {
    struct file_map map;
    void *copy; /* of bytes opened from memory, or NULL */
    const unsigned char *data;
    size_t bytes;
    uint32_t version;
    uint64_t alignment; /* of the data section and each tensor in it */
    size_t n_keys, n_tensors;
    struct gguf_key *keys;         /* in the file's order */
    struct gguf_key **keys_sorted; /* by name */
    struct tensor *tensors;        /* in the file's order */
    struct tensor **by_name;       /* sorted by name */
};

static const unsigned char scalar_bytes[GGUF_N_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2,
    [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
    [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

static size_t left(const struct reader *r)
{
    return r->failed ? 0 : (size_t)(r->end - r->p);
}

/* A u64 length and that many bytes. */
static const char *read_string(struct reader *r, size_t *n)
{
    uint64_t bytes = read_u64(r);
    if (r->failed || bytes > left(r)) {
        r->failed = true;
        *n = 0;
        return NULL;
    }
    *n = (size_t)bytes;
    return read_raw(r, *n);
}

static int read_array(struct reader *r, struct gguf_key *k, struct err *e)
{
    uint32_t element = read_u32(r);
    uint64_t n = read_u64(r);
    if (r->failed)
        return err_set(e, KITH_EFORMAT, "key '%.*s' is cut short", (int)k->name_bytes, k->name);
    if (element >= GGUF_N_TYPES || element == GGUF_ARRAY)
        return err_set(e, KITH_EFORMAT, "key '%.*s' is an array of type %u", (int)k->name_bytes,
                       k->name, element);
    k->element = (enum gguf_type)element;
    k->n = n;
    k->value = r->p;
    if (element != GGUF_STRING) {
        if (n > left(r) / scalar_bytes[element])
            return err_set(e, KITH_EFORMAT, "key '%.*s' has more elements than the file",
                           (int)k->name_bytes, k->name);
        read_raw(r, (size_t)n * scalar_bytes[element]);
        return 0;
    }
    size_t bytes;
    for (uint64_t i = 0; i < n && !r->failed; i++)
        read_string(r, &bytes);
    if (r->failed)
        return err_set(e, KITH_EFORMAT, "a string of key '%.*s' runs out of the file",
                       (int)k->name_bytes, k->name);
    return 0;
}

static int read_key(struct reader *r, struct gguf_key *k, size_t i, struct err *e)
{
    k->name = read_string(r, &k->name_bytes);
    uint32_t type = read_u32(r);
    if (r->failed || k->name_bytes == 0 || k->name_bytes > 65535)
        return err_set(e, KITH_EFORMAT, "the name of key %zu is cut short, empty or too long",
                       i);
    if (type >= GGUF_N_TYPES)
        return err_set(e, KITH_EFORMAT, "key '%.*s' has the unknown type %u",
                       (int)k->name_bytes, k->name, type);
    k->type = (enum gguf_type)type;
    if (type == GGUF_ARRAY)
        return read_array(r, k, e);
    if (type == GGUF_STRING) {
        size_t n;
        k->value = (const unsigned char *)read_string(r, &n);
        k->n = n;
    } else {
        k->value = read_raw(r, scalar_bytes[type]);
        k->n = 1;
    }
    if (r->failed)
        return err_set(e, KITH_EFORMAT, "the value of key '%.*s' runs out of the file",
                       (int)k->name_bytes, k->name);
    return 0;
}

static int compare_bytes(const char *a, size_t n_a, const char *b, size_t n_b)
{
    int c = memcmp(a, b, n_a < n_b ? n_a : n_b);
    return c ? c : (n_a > n_b) - (n_a < n_b);
}

static int compare_keys(const void *a, const void *b)
{
    const struct gguf_key *x = *(struct gguf_key *const *)a, *y = *(struct gguf_key *const *)b;
    return compare_bytes(x->name, x->name_bytes, y->name, y->name_bytes);
}

static int compare_names(const void *a, const void *b)
{
    const struct tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int compare_data(const void *a, const void *b)
{
    const struct tensor *const *x = a, *const *y = b;
    const char *p = (*x)->data, *q = (*y)->data;
    return (p > q) - (p < q);
}

static int read_keys(struct gguf *g, struct reader *r, struct err *e)
{
    g->keys = mem_calloc(g->n_keys, sizeof *g->keys);
    g->keys_sorted = mem_calloc(g->n_keys, sizeof(struct gguf_key *));
    if (!g->keys || !g->keys_sorted)
        return err_set(e, KITH_ENOMEM, "out of memory for %zu keys", g->n_keys);
    for (size_t i = 0; i < g->n_keys; i++) {
        struct gguf_key *k = g->keys_sorted[i] = &g->keys[i];
        k->record = r->p;
        int rc = read_key(r, k, i, e);
        if (rc)
            return rc;
        k->record_bytes = (size_t)(r->p - k->record);
    }
    qsort(g->keys_sorted, g->n_keys, sizeof(struct gguf_key *), compare_keys);
    for (size_t i = 1; i < g->n_keys; i++)
        if (compare_keys(&g->keys_sorted[i - 1], &g->keys_sorted[i]) == 0)
            return err_set(e, KITH_EFORMAT, "key '%.*s' appears twice",
                           (int)g->keys_sorted[i]->name_bytes, g->keys_sorted[i]->name);
    return 0;
}

/* The bytes that the shape asks for; refuses products that overflow. */
static int shape_bytes(struct tensor *t, struct err *e)
{
    size_t row, total;
    int rc = tensor_row_bytes(t->type, t->ne[0], &row, e);
    if (rc)
        return err_wrap(e, "tensor '%s'", t->name);
    total = row;
    for (uint32_t d = 1; d < TENSOR_DIMS_MAX; d++)
        if (mem_mul_overflows(total, t->ne[d], &total))
            return err_set(e, KITH_EFORMAT, "the shape of tensor '%s' overflows", t->name);
    t->bytes = total;
    return 0;
}

/* Reads one tensor info; the offset counts from the data section, whose start is known later.
 */
static int read_tensor(struct reader *r, struct tensor *t, uint64_t *offset, size_t i,
                       struct err *e)
{
    size_t n;
    const char *name = read_string(r, &n);
    if (r->failed || n == 0 || n >= TENSOR_NAME_MAX || memchr(name, 0, n))
        return err_set(
            e, KITH_EFORMAT,
            "the name of tensor %zu is cut short, empty, has a NUL or more than %d bytes", i,
            TENSOR_NAME_MAX - 1);
    memcpy(t->name, name, n);
    t->n_dims = read_u32(r);
    if (!r->failed && (t->n_dims == 0 || t->n_dims > TENSOR_DIMS_MAX))
        return err_set(e, KITH_EFORMAT, "tensor '%s' has %u dimensions, 1 to %d are possible",
                       t->name, t->n_dims, TENSOR_DIMS_MAX);
    for (uint32_t d = 0; d < TENSOR_DIMS_MAX; d++) {
        t->ne[d] = !r->failed && d < t->n_dims ? read_u64(r) : 1;
        if (!r->failed && (t->ne[d] == 0 || t->ne[d] > INT64_MAX))
            return err_set(e, KITH_EFORMAT, "tensor '%s' has a dimension of %llu", t->name,
                           (unsigned long long)t->ne[d]);
    }
    uint32_t type = read_u32(r);
    *offset = read_u64(r);
    if (r->failed)
        return err_set(e, KITH_EFORMAT, "the description of tensor '%s' is cut short", t->name);
    t->type = (enum tensor_type)type; /* shape_bytes refuses what is not computed */
    return shape_bytes(t, e);
}

static int check_duplicates_and_overlaps(struct gguf *g, struct err *e)
{
    qsort(g->by_name, g->n_tensors, sizeof(struct tensor *), compare_data);
    for (size_t i = 1; i < g->n_tensors; i++) {
        const struct tensor *a = g->by_name[i - 1], *b = g->by_name[i];
        if ((const char *)b->data - (const char *)a->data < (ptrdiff_t)a->bytes)
            return err_set(e, KITH_EFORMAT, "tensors '%s' and '%s' overlap", a->name, b->name);
    }
    qsort(g->by_name, g->n_tensors, sizeof(struct tensor *), compare_names);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (strcmp(g->by_name[i - 1]->name, g->by_name[i]->name) == 0)
            return err_set(e, KITH_EFORMAT, "tensor '%s' appears twice", g->by_name[i]->name);
    return 0;
}

static int alignment_of(const struct gguf *g, uint64_t *alignment, struct err *e)
{
    *alignment = 32;
    int rc = gguf_get_uint(g, "general.alignment", alignment, e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (*alignment < GGUF_MIN_ALIGNMENT || *alignment > GGUF_MAX_ALIGNMENT ||
        (*alignment & (*alignment - 1)))
        return err_set(e, KITH_EFORMAT,
                       "general.alignment is %llu; a power of two from %d to %d is needed",
                       (unsigned long long)*alignment, GGUF_MIN_ALIGNMENT, GGUF_MAX_ALIGNMENT);
    return 0;
}

static int read_tensors(struct gguf *g, struct reader *r, struct err *e)
{
    uint64_t *offsets = mem_calloc(g->n_tensors, sizeof *offsets);
    g->tensors = mem_calloc(g->n_tensors, sizeof *g->tensors);
    g->by_name = mem_calloc(g->n_tensors, sizeof(struct tensor *));
    int rc = 0;
    if (!offsets || !g->tensors || !g->by_name)
        rc = err_set(e, KITH_ENOMEM, "out of memory for %zu tensors", g->n_tensors);
    for (size_t i = 0; i < g->n_tensors && !rc; i++)
        rc = read_tensor(r, &g->tensors[i], &offsets[i], i, e);
    if (!rc)
        rc = alignment_of(g, &g->alignment, e);
    if (!rc) {
        const uint64_t alignment = g->alignment;
        uint64_t start = (uint64_t)(r->p - g->data);
        start = (start + alignment - 1) & ~(alignment - 1);
        uint64_t room = start < g->bytes ? g->bytes - start : 0;
        for (size_t i = 0; i < g->n_tensors && !rc; i++) {
            struct tensor *t = &g->tensors[i];
            if (offsets[i] % alignment)
                rc = err_set(e, KITH_EFORMAT, "tensor '%s' is not aligned to %llu bytes",
                             t->name, (unsigned long long)alignment);
            else if (offsets[i] > room || t->bytes > room - offsets[i])
                rc = err_set(
                    e, KITH_EFORMAT,
                    "tensor '%s' needs %zu bytes at %llu of a data section of %llu: the "
                    "file is cut short or lies",
                    t->name, t->bytes, (unsigned long long)offsets[i],
                    (unsigned long long)room);
            else
                t->data = g->data + start + offsets[i];
            g->by_name[i] = t;
        }
    }
    if (!rc)
        rc = check_duplicates_and_overlaps(g, e);
    mem_free(offsets);
    return rc;
}

static int parse(struct gguf *g, struct err *e)
{
    if (g->bytes < 24 || memcmp(g->data, "GGUF", 4) != 0)
        return err_set(e, KITH_EFORMAT, "not a GGUF file: it does not begin with 'GGUF'");
    struct reader r = reader_of(g->data + 4, g->bytes - 4);
    g->version = read_u32(&r);
    if (g->version != 0 && (g->version & 0xffff) == 0)
        return err_set(e, KITH_EUNSUPPORTED,
                       "a big-endian GGUF file; a little-endian is needed");
    if (g->version != 2 && g->version != 3)
        return err_set(e, KITH_EUNSUPPORTED, "GGUF version %u; versions 2 and 3 are read",
                       g->version);
    uint64_t n_tensors = read_u64(&r), n_keys = read_u64(&r);
    if (n_keys > GGUF_MAX_KEYS || n_tensors > GGUF_MAX_TENSORS)
        return err_set(
            e, KITH_ELIMIT,
            "the file says it has %llu keys and %llu tensors; at most %d and %d are read",
            (unsigned long long)n_keys, (unsigned long long)n_tensors, GGUF_MAX_KEYS,
            GGUF_MAX_TENSORS);
    if (n_keys > left(&r) / KEY_MIN_BYTES || n_tensors > left(&r) / TENSOR_MIN_BYTES)
        return err_set(
            e, KITH_EFORMAT,
            "the file says it has %llu keys and %llu tensors, more than it has bytes for",
            (unsigned long long)n_keys, (unsigned long long)n_tensors);
    g->n_keys = (size_t)n_keys;
    g->n_tensors = (size_t)n_tensors;
    int rc = read_keys(g, &r, e);
    return rc ? rc : read_tensors(g, &r, e);
}

int gguf_open(struct gguf **out, const char *path, struct err *e)
{
    struct gguf *g = mem_calloc(1, sizeof *g);
    if (!g)
        return err_set(e, KITH_ENOMEM, "out of memory opening %s", path);
    int rc = file_map_open(&g->map, path, e);
    if (rc) {
        mem_free(g);
        return rc;
    }
    g->data = g->map.data;
    g->bytes = g->map.bytes;
    rc = parse(g, e);
    if (rc) {
        err_wrap(e, "%s", path);
        gguf_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

int gguf_open_memory(struct gguf **out, const void *data, size_t bytes, struct err *e)
{
    struct gguf *g = mem_calloc(1, sizeof *g);
    void *copy = mem_alloc_aligned(64, bytes);
    if (!g || !copy) {
        mem_free(g);
        mem_free(copy);
        return err_set(e, KITH_ENOMEM, "out of memory for a model of %zu bytes", bytes);
    }
    if (bytes)
        memcpy(copy, data, bytes);
    g->copy = copy;
    g->data = copy;
    g->bytes = bytes;
    int rc = parse(g, e);
    if (rc) {
        gguf_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    if (g->copy)
        mem_free(g->copy);
    else
        file_map_close(&g->map);
    mem_free(g->keys);
    mem_free(g->keys_sorted);
    mem_free(g->tensors);
    mem_free(g->by_name);
    mem_free(g);
}

uint32_t gguf_version(const struct gguf *g)
{
    return g->version;
}

size_t gguf_bytes(const struct gguf *g)
{
    return g->bytes;
}

void gguf_forget_pages(const struct gguf *g)
{
    if (!g->copy)
        file_map_forget(&g->map);
}

void gguf_hash(const struct gguf *g, char out[33])
{
    hash128_hex(g->data, g->bytes, out);
}

size_t gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct tensor *gguf_tensor_at(const struct gguf *g, size_t i)
{
    return &g->tensors[i];
}

const struct tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    size_t lo = 0, hi = g->n_tensors;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, g->by_name[mid]->name);
        if (c == 0)
            return g->by_name[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

size_t gguf_n_keys(const struct gguf *g)
{
    return g->n_keys;
}

void gguf_key_at(const struct gguf *g, size_t i, struct slice *name, struct slice *record)
{
    const struct gguf_key *k = &g->keys[i];
    *name = (struct slice){k->name, k->name_bytes};
    *record = (struct slice){(const char *)k->record, k->record_bytes};
}

uint64_t gguf_alignment(const struct gguf *g)
{
    return g->alignment;
}

static const struct gguf_key *find(const struct gguf *g, const char *name)
{
    const struct gguf_key wanted = {.name = name, .name_bytes = strlen(name)}, *p = &wanted;
    struct gguf_key **found = g->n_keys ? bsearch(&p, g->keys_sorted, g->n_keys,
                                                  sizeof(struct gguf_key *), compare_keys)
                                        : NULL;
    return found ? *found : NULL;
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

static int not_found(const char *key, struct err *e)
{
    return err_set(e, KITH_ENOTFOUND, "the model file has no key '%s'", key);
}

static bool load_int(const unsigned char *p, enum gguf_type type, int64_t *v, bool *too_big)
{
    *too_big = false;
    switch (type) {
    case GGUF_U8:
    case GGUF_BOOL:
        *v = p[0];
        return true;
    case GGUF_I8:
        *v = (int8_t)p[0];
        return true;
    case GGUF_U16:
        *v = load_u16(p);
        return true;
    case GGUF_I16:
        *v = (int16_t)load_u16(p);
        return true;
    case GGUF_U32:
        *v = load_u32(p);
        return true;
    case GGUF_I32:
        *v = (int32_t)load_u32(p);
        return true;
    case GGUF_U64:
        *too_big = load_u64(p) > INT64_MAX;
        *v = (int64_t)load_u64(p);
        return true;
    case GGUF_I64:
        *v = (int64_t)load_u64(p);
        return true;
    default:
        return false;
    }
}

static bool load_number(const unsigned char *p, enum gguf_type type, double *v)
{
    if (type == GGUF_F32) {
        *v = (double)load_f32(p);
        return true;
    }
    if (type == GGUF_F64) {
        uint64_t bits = load_u64(p);
        memcpy(v, &bits, sizeof *v);
        return true;
    }
    int64_t i;
    bool too_big;
    if (!load_int(p, type, &i, &too_big) || too_big)
        return false;
    *v = (double)i;
    return true;
}

/* Where the number of a key lies: a scalar, or an array whose elements are all the same bytes.
 */
static const unsigned char *one_number(const struct gguf_key *k, enum gguf_type *type)
{
    *type = k->type;
    if (k->type != GGUF_ARRAY)
        return k->type == GGUF_STRING ? NULL : k->value;
    *type = k->element;
    if (k->element == GGUF_STRING || k->n == 0)
        return NULL;
    size_t bytes = scalar_bytes[k->element];
    for (uint64_t i = 1; i < k->n; i++)
        if (memcmp(k->value, k->value + i * bytes, bytes) != 0)
            return NULL;
    return k->value;
}

int gguf_get_uint(const struct gguf *g, const char *key, uint64_t *v, struct err *e)
{
    const struct gguf_key *k = find(g, key);
    if (!k)
        return not_found(key, e);
    enum gguf_type type;
    const unsigned char *p = one_number(k, &type);
    int64_t i;
    bool too_big;
    if (!p || !load_int(p, type, &i, &too_big) || too_big || i < 0)
        return err_set(e, KITH_EFORMAT, "key '%s' is not one non-negative integer", key);
    *v = (uint64_t)i;
    return 0;
}

int gguf_get_f32(const struct gguf *g, const char *key, float *v, struct err *e)
{
    const struct gguf_key *k = find(g, key);
    if (!k)
        return not_found(key, e);
    enum gguf_type type;
    const unsigned char *p = one_number(k, &type);
    double d;
    if (!p || !load_number(p, type, &d) || !isfinite(d) || fabs(d) > 3e38)
        return err_set(e, KITH_EFORMAT, "key '%s' is not one finite number", key);
    *v = (float)d;
    return 0;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *v, struct err *e)
{
    uint64_t u;
    int rc = gguf_get_uint(g, key, &u, e);
    if (rc)
        return rc;
    if (u > 1)
        return err_set(e, KITH_EFORMAT, "key '%s' is %llu; a bool is 0 or 1", key,
                       (unsigned long long)u);
    *v = u == 1;
    return 0;
}

int gguf_get_string(const struct gguf *g, const char *key, const char **s, size_t *n,
                    struct err *e)
{
    const struct gguf_key *k = find(g, key);
    if (!k)
        return not_found(key, e);
    if (k->type != GGUF_STRING)
        return err_set(e, KITH_EFORMAT, "key '%s' is not a string", key);
    *s = (const char *)k->value;
    *n = (size_t)k->n;
    return 0;
}

int gguf_get_array(const struct gguf *g, const char *key, struct gguf_array *a, struct err *e)
{
    const struct gguf_key *k = find(g, key);
    if (!k)
        return not_found(key, e);
    if (k->type != GGUF_ARRAY)
        return err_set(e, KITH_EFORMAT, "key '%s' is not an array", key);
    *a = (struct gguf_array){.p = k->value, .type = k->element, .left = k->n};
    return 0;
}

bool gguf_array_string(struct gguf_array *a, const char **s, size_t *n)
{
    if (a->left == 0 || a->type != GGUF_STRING)
        return false;
    *n = (size_t)load_u64(a->p); /* inside the file: invariant 1 */
    *s = (const char *)a->p + 8;
    a->p += 8 + *n;
    a->left--;
    return true;
}

bool gguf_array_int(struct gguf_array *a, int64_t *v)
{
    bool too_big;
    if (a->left == 0 || !load_int(a->p, a->type, v, &too_big) || too_big)
        return false;
    a->p += scalar_bytes[a->type];
    a->left--;
    return true;
}

bool gguf_array_f32(struct gguf_array *a, float *v)
{
    if (a->left == 0 || a->type != GGUF_F32)
        return false;
    *v = load_f32(a->p);
    a->p += scalar_bytes[GGUF_F32];
    a->left--;
    return true;
}
