/* The format of values, and the check of a whole store without LMDB. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "storage/chunks.h"
#include "storage/lmdb_check.h"
#include "storage/store_map.h"

const char *const store_table_names[STORE_TABLES_ALL] = {"keys", "blobs", "chunks", "meta"};

void store_key_encode(char to[STORE_KEY_BYTES], uint32_t a, uint32_t b)
{
    store_u32(to, __builtin_bswap32(a));
    store_u32(to + 4, __builtin_bswap32(b));
}

void store_key_decode(const char from[STORE_KEY_BYTES], uint32_t *a, uint32_t *b)
{
    *a = __builtin_bswap32(load_u32(from));
    *b = __builtin_bswap32(load_u32(from + 4));
}

uint64_t store_value_hash(unsigned table, uint32_t a, uint32_t b, const void *p, size_t n)
{
    return hash64_seed(p, n, hash_mix(((uint64_t)a << 32 | b) + hash_mix(table + 1)));
}

int store_value_check(unsigned table, uint32_t a, uint32_t b, const void *value, size_t n,
                      struct err *e)
{
    if (table == STORE_CHUNKS)
        return chunk_value_check(a, b, value, n, e);
    const char *p = value;
    if (n < STORE_HASH_BYTES ||
        load_u64(p) !=
            store_value_hash(table, a, b, p + STORE_HASH_BYTES, n - STORE_HASH_BYTES))
        return err_set(e, KITH_ECORRUPT, "the value (%u, %u) of table %s is damaged", a, b,
                       store_table_names[table]);
    return 0;
}

void chunk_value_seal(char *value, size_t n, uint32_t array, uint32_t chunk, uint32_t stride,
                      uint32_t n_records)
{
    memset(value, 0, CHUNK_HEADER_BYTES);
    store_u32(value + 8, CHUNK_MAGIC);
    store_u32(value + 12, array);
    store_u32(value + 16, chunk);
    store_u32(value + 20, stride);
    store_u32(value + CHUNK_N_RECORDS_AT, n_records);
    store_u64(value, hash64(value + 8, n - 8));
}

int chunk_value_check(uint32_t array, uint32_t chunk, const void *value, size_t n,
                      struct err *e)
{
    const char *p = value;
    if (n < CHUNK_HEADER_BYTES || load_u32(p + 8) != CHUNK_MAGIC || load_u32(p + 12) != array ||
        load_u32(p + 16) != chunk ||
        n - CHUNK_HEADER_BYTES !=
            (uint64_t)load_u32(p + 20) * load_u32(p + CHUNK_N_RECORDS_AT) ||
        load_u64(p) != hash64(p + 8, n - 8))
        return err_set(e, KITH_ECORRUPT, "chunk %u of array %u is damaged", chunk, array);
    return 0;
}

void store_meta_encode(char to[STORE_META_BYTES], const struct store_meta *m)
{
    memset(to, 0, STORE_META_BYTES);
    store_u32(to + 8, STORE_VERSION);
    store_u64(to + 16, m->state.epoch);
    store_u64(to + 24, m->state.index);
    store_u64(to + 32, m->state.checkpoints);
    store_u64(to + 40, m->txnid);
    for (int t = 0; t < STORE_TABLES; t++) {
        store_u64(to + 48 + 16 * t, m->n_entries[t]);
        store_u64(to + 56 + 16 * t, m->key_sum[t]);
    }
    store_u64(to, store_value_hash(STORE_META, 0, 0, to + 8, STORE_META_BYTES - 8));
}

static int meta_decode(const char *p, size_t n, struct store_meta *m, struct err *e)
{
    int rc = store_value_check(STORE_META, 0, 0, p, n, e);
    if (rc != 0)
        return rc;
    if (n < 12 || load_u32(p + 8) != STORE_VERSION)
        return err_set(e, KITH_EFORMAT,
                       "the store is of version %u, this build reads version %d",
                       n < 12 ? 0 : load_u32(p + 8), STORE_VERSION);
    if (n != STORE_META_BYTES)
        return err_set(e, KITH_ECORRUPT, "the store's meta record has %zu bytes", n);
    m->state = (struct store_state){load_u64(p + 16), load_u64(p + 24), load_u64(p + 32)};
    m->txnid = load_u64(p + 40);
    for (int t = 0; t < STORE_TABLES; t++) {
        m->n_entries[t] = load_u64(p + 48 + 16 * t);
        m->key_sum[t] = load_u64(p + 56 + 16 * t);
    }
    return 0;
}

struct verifying {
    bool values; /* read and check every value */
    bool has_meta;
    struct store_meta meta;
    struct buf buf;
};

static int on_entry(void *arg, int fd, const struct lmdb_table *table, const void *key,
                    size_t key_bytes, uint64_t offset, size_t bytes, struct err *e)
{
    struct verifying *v = arg;
    unsigned t = 0;
    while (t < STORE_TABLES_ALL && strcmp(table->name, store_table_names[t]) != 0)
        t++;
    uint32_t a, b;
    if (t == STORE_TABLES_ALL || key_bytes != STORE_KEY_BYTES)
        return err_set(e, KITH_ECORRUPT, "a key of %zu bytes in table %s", key_bytes,
                       table->name);
    if (t != STORE_META && !v->values)
        return 0;
    store_key_decode(key, &a, &b);
    buf_clear(&v->buf);
    char *p = buf_reserve(&v->buf, bytes + 1); /* an empty value is one, too */
    if (!p)
        return err_set(e, KITH_ENOMEM, "out of memory checking a value of %zu bytes", bytes);
    ssize_t got = file_pread_all(fd, p, bytes, offset, e);
    if (got < 0)
        return (int)got;
    if ((size_t)got != bytes)
        return err_set(e, KITH_ECORRUPT, "a value runs over the end of the file");
    if (t != STORE_META)
        return store_value_check(t, a, b, p, bytes, e);
    v->has_meta = a == 0 && b == 0;
    return v->has_meta
               ? meta_decode(p, bytes, &v->meta, e)
               : err_set(e, KITH_ECORRUPT, "an unknown record (%u, %u) in table meta", a, b);
}

/* The meta record against what the walk saw. */
static int compare(const struct verifying *v, const struct lmdb_summary *sum, const char *path,
                   struct err *e)
{
    if (!v->has_meta || sum->n_tables != STORE_TABLES_ALL)
        return err_set(e, KITH_ECORRUPT, "%s: the meta record or a table is missing", path);
    if (v->meta.txnid != sum->txnid)
        return err_set(e, KITH_ECORRUPT,
                       "%s: page %u: the meta page says transaction %llu, its record %llu",
                       path, (unsigned)(sum->txnid & 1), (unsigned long long)sum->txnid,
                       (unsigned long long)v->meta.txnid);
    for (uint32_t i = 0; i < sum->n_tables; i++) {
        for (int t = 0; t < STORE_TABLES; t++) {
            if (strcmp(sum->tables[i].name, store_table_names[t]) == 0 &&
                (sum->tables[i].n_entries != v->meta.n_entries[t] ||
                 sum->tables[i].key_sum != v->meta.key_sum[t]))
                return err_set(e, KITH_ECORRUPT,
                               "%s: the keys of table %s are not those that were written", path,
                               store_table_names[t]);
        }
    }
    return 0;
}

int store_verify(const char *path, struct store_meta *out, bool *fresh, struct err *e)
{
    struct verifying v = {0};
    struct lmdb_summary sum;
    struct stat st;
    *out = (struct store_meta){0};
    *fresh = true;
    if (stat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_set_errno(e, errno, "cannot stat %s", path);
    if (st.st_size == 0)
        return 0;
    struct lmdb_check_options options = {.entry = on_entry, .entry_arg = &v};
    buf_init(&v.buf);
    int rc = lmdb_check(path, &options, &sum, e);
    buf_deinit(&v.buf);
    if (rc != 0 || sum.empty)
        return rc;
    *fresh = false;
    *out = v.meta;
    return compare(&v, &sum, path, e);
}

int store_check(const char *dir, void (*note)(void *arg, const char *where, const char *what),
                void *arg, struct err *e)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/store/data.mdb", dir) >= (int)sizeof path)
        return err_set(e, KITH_EINVAL, "path too long: %s", dir);
    struct verifying v = {.values = true};
    struct lmdb_summary sum;
    struct lmdb_check_options options = {
        .note = note, .note_arg = arg, .entry = on_entry, .entry_arg = &v};
    buf_init(&v.buf);
    int rc = lmdb_check(path, &options, &sum, e);
    buf_deinit(&v.buf);
    if (rc != 0 || sum.empty)
        return rc;
    struct err why;
    if (compare(&v, &sum, path, &why) == 0)
        return 0;
    note(arg, path, why.message);
    return 1;
}
