/* Coming back: the state of the newest checkpoint from the store, then the log after it.
 *
 *   shard record (key table, 0/0) = version u8, next key id u64, next set id u32,
 *                                   n u32, n x u32 ids of dropped sets still to be purged
 *   key record (key table, id)    = version u8, type u8, db u8, expire u64 (ms, 0: never),
 *                                   name bytes, then a string's bytes or a set's id u32 */
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/effect.h"
#include "server/shard_parts.h"

enum { SHARD_RECORD_VERSION = 1, KEY_RECORD_VERSION = 1, PROGRESS_EVERY_US = 1000000 };

void recovery_write_record(struct buf *b, uint64_t next_key_id, uint32_t next_set_id,
                           const uint32_t *purge, uint32_t n_purge)
{
    buf_u8(b, SHARD_RECORD_VERSION);
    buf_u64(b, next_key_id);
    buf_u32(b, next_set_id);
    buf_u32(b, n_purge);
    for (uint32_t i = 0; i < n_purge; i++)
        buf_u32(b, purge[i]);
}

void recovery_write_key(const struct key_image *k, struct buf *b)
{
    buf_u8(b, KEY_RECORD_VERSION);
    buf_u8(b, k->type);
    buf_u8(b, k->db);
    buf_u64(b, (uint64_t)k->expire_ms);
    buf_bytes(b, k->name.p, k->name.n);
    if (k->type == OBJECT_STRING)
        buf_bytes(b, k->string->data, k->string->n);
    else
        buf_u32(b, k->set_id);
}

static int read_shard_record(struct shard *s, struct reader *r, struct err *e)
{
    if (read_u8(r) != SHARD_RECORD_VERSION)
        return err_set(e, KITH_EFORMAT,
                       "the shard's record has a version this build does not read");
    keyspace_set_next_id(s->keyspace, read_u64(r));
    s->next_set_id = read_u32(r);
    uint32_t n = read_u32(r);
    for (uint32_t i = 0; i < n && !r->failed; i++) {
        if (checkpoint_purge_reserve(s) != 0)
            return err_set(e, KITH_ENOMEM, "out of memory");
        checkpoint_purge_later(s, read_u32(r));
    }
    return reader_done(r) ? 0 : err_set(e, KITH_ECORRUPT, "the shard's record is damaged");
}

static int load_value(struct shard *s, struct key *k, uint8_t type, struct reader *r,
                      struct err *e)
{
    if (type == OBJECT_STRING) {
        size_t n;
        const void *p = read_bytes(r, &n);
        k->string = blob_new(p, n);
        if (!k->string)
            return err_set(e, KITH_ENOMEM, "out of memory for the value of a key");
        k->type = OBJECT_STRING;
        return 0;
    }
    uint32_t set_id = read_u32(r);
    struct vset_options options = shard_vset_options(s);
    if (checkpoint_purge_reserve(s) != 0)
        return err_set(e, KITH_ENOMEM, "out of memory");
    int rc = vset_load(&k->vset, set_id, &options, e);
    if (rc != 0)
        return err_wrap(e, "key \"%.*s\"", (int)(k->name_n < 64 ? k->name_n : 64), k->name);
    k->type = OBJECT_VSET;
    k->set_id = set_id;
    vset_set_key(k->vset, k);
    if (vset_next_expiry(k->vset) != INT64_MAX)
        shard_expiry_watch(s, k->vset);
    s->n_vectors += vset_count(k->vset);
    if (index_link_pending(vset_index(k->vset)))
        linker_notify(s, k->vset);
    return 0;
}

static int load_key(void *arg, uint32_t a, uint32_t b, const void *p, size_t n, struct err *e)
{
    struct shard *s = arg;
    struct reader r = reader_of(p, n);
    if (a == SHARD_RECORD_A && b == SHARD_RECORD_B)
        return read_shard_record(s, &r, e);
    uint64_t id = (uint64_t)a << 32 | b;
    uint8_t version = read_u8(&r), type = read_u8(&r), db = read_u8(&r);
    int64_t expire_ms = (int64_t)read_u64(&r);
    struct slice name;
    name.p = read_bytes(&r, &name.n);
    if (version != KEY_RECORD_VERSION)
        return err_set(e, KITH_EFORMAT, "key %llu has record version %u, not %d",
                       (unsigned long long)id, version, KEY_RECORD_VERSION);
    if (r.failed || db >= KEYSPACE_ALL_DBS || (type != OBJECT_STRING && type != OBJECT_VSET) ||
        keyspace_find_raw(s->keyspace, db, name))
        return err_set(e, KITH_ECORRUPT, "the record of key %llu is damaged",
                       (unsigned long long)id);
    struct key *k = keyspace_restore(s->keyspace, id, db, name);
    if (!k)
        return err_set(e, KITH_ENOMEM, "out of memory for a key");
    int rc = load_value(s, k, type, &r, e);
    if (rc == 0 && !reader_done(&r))
        rc = err_set(e, KITH_ECORRUPT, "the record of key %llu is damaged",
                     (unsigned long long)id);
    if (rc == 0 && expire_ms && keyspace_restore_expire(s->keyspace, k, expire_ms) != 0)
        rc = err_set(e, KITH_ENOMEM, "out of memory for a key");
    return rc;
}

int recovery_load(struct shard *s, struct err *e)
{
    struct store_state state = store_state(s->store);
    s->epoch = state.epoch ? state.epoch : 1;
    return store_each(s->store, STORE_KEYS, load_key, s, e);
}

struct replay {
    struct shard *s;
    struct buf vector; /* the one being applied: in a record it may lie anywhere */
    uint64_t n;
    int64_t start_us, said_us;
};

static int align_vector(struct replay *x, struct effect *f, struct err *e)
{
    buf_clear(&x->vector);
    buf_append(&x->vector, f->vector, (size_t)f->dim * sizeof(float));
    if (x->vector.failed)
        return err_set(e, KITH_ENOMEM, "out of memory for a vector");
    f->vector = x->vector.data;
    return 0;
}

/* What was logged was applied once, so what cannot be applied now is not what was logged. */
static int replay_failed(const struct wal_record *record, int rc, struct err *e)
{
    if (rc != KITH_ENOMEM && rc != KITH_EIO)
        e->code = KITH_ECORRUPT;
    return err_wrap(e, "log record %llu", (unsigned long long)record->index);
}

static int replay_record(void *arg, const struct wal_record *record, struct err *e)
{
    struct replay *x = arg;
    struct reader r = reader_of(record->payload, record->bytes);
    uint8_t version = read_u8(&r);
    if (version != EFFECT_VERSION)
        return err_set(e, KITH_EFORMAT, "log record %llu has version %u, not %d",
                       (unsigned long long)record->index, version, EFFECT_VERSION);
    struct effect f;
    struct effect_storage storage;
    while (effect_decode(&r, &f, &storage)) {
        int rc = f.op == EFFECT_VADD ? align_vector(x, &f, e) : 0;
        if (rc == 0)
            rc = shard_apply(x->s, &f, e);
        if (rc != 0)
            return replay_failed(record, rc, e);
    }
    if (r.failed)
        return err_set(e, KITH_ECORRUPT, "log record %llu is damaged",
                       (unsigned long long)record->index);
    x->s->epoch = record->epoch > x->s->epoch ? record->epoch : x->s->epoch;
    x->n++;
    int64_t now = x->n % 1024 == 0 ? clock_mono_us() : 0;
    if (now - x->said_us > PROGRESS_EVERY_US) {
        log_notice("recovering: %llu changes of the log", (unsigned long long)x->n);
        x->said_us = now;
    }
    return 0;
}

int recovery_replay(struct shard *s, struct err *e)
{
    struct replay x = {.s = s, .start_us = clock_mono_us()};
    x.said_us = x.start_us;
    buf_init(&x.vector);
    int rc = wal_replay(s->wal, store_state(s->store).index, replay_record, &x, e);
    buf_deinit(&x.vector);
    if (rc == 0)
        log_info("recovered: checkpoint at index %llu and %llu changes of the log in %lld ms",
                 (unsigned long long)store_state(s->store).index, (unsigned long long)x.n,
                 (long long)((clock_mono_us() - x.start_us) / 1000));
    return rc;
}
