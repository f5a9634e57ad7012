/* The header is a function of the identity and the shapes, so a reader makes the one that it
 * would write and compares: the file's own numbers are never used, but for outliers. */

#include "engine/packed_cache.h"

#include <string.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/version.h"

enum {
    MAGIC_BYTES = 8,
    NAME_BYTES = 16,
    HASH_BYTES = 32,
    VERSION_AT = 8,
    HEAD_BYTES = 128,
    ROW_BYTES = 64,
    OUTLIERS_AT = 32, /* in a row */
    CHECKSUM_BYTES = 8
};

static const char magic[MAGIC_BYTES + 1] = "KITHPACK";

static const struct {
    uint32_t at, bytes;
    const char *wrong;
} identity_fields[] = {
    {12, 4, "it has panels of another width"},
    {24, NAME_BYTES, "it is for other kernels"},
    {40, NAME_BYTES, "it is of another precision"},
    {56, NAME_BYTES, "it was written by another version of kith"},
    {72, HASH_BYTES, "it was made of another model file"},
};

static size_t align(size_t n)
{
    return (n + PACKED_CACHE_ALIGNMENT - 1) / PACKED_CACHE_ALIGNMENT * PACKED_CACHE_ALIGNMENT;
}

static size_t header_bytes(uint32_t n)
{
    return HEAD_BYTES + (size_t)n * ROW_BYTES;
}

static void append_text(struct buf *b, const char *text, size_t bytes)
{
    char padded[HASH_BYTES] = {0};
    memcpy(padded, text, strnlen(text, bytes));
    buf_append(b, padded, bytes);
}

static void append_zeros(struct buf *b, size_t until)
{
    static const char zeros[HEAD_BYTES];
    buf_append(b, zeros, until - b->len);
}

/* *file_bytes is what the whole file has. */
static int make_header(struct buf *b, const struct packed_identity *id,
                       const struct packed_matrix *matrices, uint32_t n, size_t *file_bytes,
                       struct err *e)
{
    size_t bytes = header_bytes(n);
    for (uint32_t i = 0; i < n; i++)
        bytes += align(matrices[i].bytes);
    *file_bytes = bytes + CHECKSUM_BYTES;
    buf_append(b, magic, MAGIC_BYTES);
    buf_u32(b, PACKED_CACHE_VERSION);
    buf_u32(b, id->panel);
    buf_u64(b, *file_bytes);
    append_text(b, id->kernels, NAME_BYTES);
    append_text(b, id->precision, NAME_BYTES);
    append_text(b, KITH_VERSION, NAME_BYTES);
    append_text(b, id->model, HASH_BYTES);
    buf_u32(b, n);
    append_zeros(b, HEAD_BYTES);
    size_t offset = header_bytes(n);
    for (uint32_t i = 0; i < n; i++) {
        const struct packed_matrix *m = &matrices[i];
        buf_u64(b, offset);
        buf_u64(b, m->bytes);
        buf_u32(b, m->n_in);
        buf_u32(b, m->n_out);
        buf_u32(b, m->precision);
        buf_u32(b, m->n_outliers);
        for (uint32_t t = 0; t < OUTLIERS_MAX; t++)
            buf_u32(b, t < m->n_outliers ? m->outliers[t] : 0);
        append_zeros(b, header_bytes(i + 1));
        offset += align(m->bytes);
    }
    return b->failed ? err_set(e, KITH_ENOMEM, "out of memory for the list of packed weights")
                     : 0;
}

/* --- reading --- */

static int check_identity(const char *file, size_t file_bytes, const char *expected,
                          struct err *e)
{
    if (file_bytes < HEAD_BYTES + CHECKSUM_BYTES)
        return err_set(e, KITH_ECORRUPT, "it is cut short: it has %zu bytes", file_bytes);
    if (memcmp(file, magic, MAGIC_BYTES) != 0)
        return err_set(e, KITH_EFORMAT, "it is no file of packed weights");
    if (load_u32(file + VERSION_AT) != PACKED_CACHE_VERSION)
        return err_set(e, KITH_EFORMAT, "it is of version %u, this program reads %d",
                       load_u32(file + VERSION_AT), PACKED_CACHE_VERSION);
    for (size_t i = 0; i < sizeof identity_fields / sizeof *identity_fields; i++) {
        uint32_t at = identity_fields[i].at;
        if (memcmp(file + at, expected + at, identity_fields[i].bytes) != 0)
            return err_set(e, KITH_EFORMAT, "%s", identity_fields[i].wrong);
    }
    return 0;
}

/* The outliers of a row of the file. */
static int check_outliers(const struct packed_matrix *m, uint32_t index, const char *row,
                          uint32_t *out, struct err *e)
{
    for (uint32_t t = 0; t < OUTLIERS_MAX; t++) {
        out[t] = load_u32(row + OUTLIERS_AT + t * sizeof *out);
        if (t >= m->n_outliers) {
            if (out[t] != 0)
                return err_set(e, KITH_ECORRUPT, "its matrix %u has too many outliers", index);
            continue;
        }
        if (out[t] >= m->n_in)
            return err_set(e, KITH_ECORRUPT, "its matrix %u of %u inputs has the outlier %u",
                           index, m->n_in, out[t]);
        for (uint32_t before = 0; before < t; before++)
            if (out[before] == out[t])
                return err_set(e, KITH_ECORRUPT, "its matrix %u has the outlier %u twice",
                               index, out[t]);
    }
    return 0;
}

/* All of the header but the outliers is what would be written. */
static int check_matrices(const char *file, const char *expected,
                          const struct packed_matrix *matrices, uint32_t n, struct err *e)
{
    if (memcmp(file, expected, HEAD_BYTES) != 0)
        return err_set(e, KITH_ECORRUPT, "its header is damaged");
    for (uint32_t i = 0; i < n; i++) {
        const char *row = file + header_bytes(i), *want = expected + header_bytes(i);
        const size_t behind = OUTLIERS_AT + sizeof matrices->outliers;
        uint32_t outliers[OUTLIERS_MAX];
        if (memcmp(row, want, OUTLIERS_AT) != 0 ||
            memcmp(row + behind, want + behind, ROW_BYTES - behind) != 0)
            return err_set(e, KITH_ECORRUPT, "its matrix %u is not the model's", i);
        int rc = check_outliers(&matrices[i], i, row, outliers, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int packed_cache_read(const void *file, size_t file_bytes, const struct packed_identity *id,
                      struct packed_matrix *matrices, uint32_t n, struct err *e)
{
    const char *p = file;
    struct buf expected = {0};
    size_t bytes;
    int rc = make_header(&expected, id, matrices, n, &bytes, e);
    if (rc == 0)
        rc = check_identity(p, file_bytes, expected.data, e);
    if (rc == 0 && file_bytes != bytes)
        rc = err_set(e, KITH_ECORRUPT, "it has %zu bytes instead of %zu", file_bytes, bytes);
    if (rc == 0)
        rc = check_matrices(p, expected.data, matrices, n, e);
    if (rc == 0 && hash64(p, bytes - CHECKSUM_BYTES) != load_u64(p + bytes - CHECKSUM_BYTES))
        rc = err_set(e, KITH_ECORRUPT, "its checksum is wrong");
    size_t offset = header_bytes(n);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        struct packed_matrix *m = &matrices[i];
        memcpy(m->outliers, p + header_bytes(i) + OUTLIERS_AT, sizeof m->outliers);
        m->data = p + offset;
        offset += align(m->bytes);
    }
    buf_deinit(&expected);
    return rc;
}

/* --- writing --- */

struct output {
    struct file_replacement file;
    struct hash_stream *hash;
};

static int put(struct output *o, const void *p, size_t n, struct err *e)
{
    hash_stream_update(o->hash, p, n);
    return file_replace_append(&o->file, p, n, e);
}

static int put_matrix(struct output *o, const struct packed_matrix *m, struct err *e)
{
    static const char zeros[PACKED_CACHE_ALIGNMENT];
    int rc = put(o, m->data, m->bytes, e);
    return rc != 0 ? rc : put(o, zeros, align(m->bytes) - m->bytes, e);
}

int packed_cache_write(const char *path, mode_t mode, const struct packed_identity *id,
                       const struct packed_matrix *matrices, uint32_t n, struct err *e)
{
    struct output o = {.file.fd = -1, .hash = hash_stream_new()};
    struct buf header = {0};
    size_t bytes;
    int rc = o.hash ? make_header(&header, id, matrices, n, &bytes, e)
                    : err_set(e, KITH_ENOMEM, "out of memory for a checksum");
    if (rc == 0)
        rc = file_replace_begin(&o.file, path, bytes, mode, e);
    if (rc == 0)
        rc = put(&o, header.data, header.len, e);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        rc = put_matrix(&o, &matrices[i], e);
    if (rc == 0) {
        char sum[CHECKSUM_BYTES];
        store_u64(sum, hash_stream_digest(o.hash));
        rc = file_replace_append(&o.file, sum, sizeof sum, e);
    }
    if (rc == 0)
        rc = file_replace_commit(&o.file, e);
    file_replace_cancel(&o.file);
    buf_deinit(&header);
    hash_stream_free(o.hash);
    return rc;
}
