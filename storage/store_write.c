/* How checkpoints are written.
 *
 * LMDB learns what to free from the header of the old value's first page, which no check at
 * open has read; so before a value is replaced or deleted that header is held against the
 * key's entry, and a damaged one fails the transaction instead of freeing somebody
 * else's pages. A value that changes its number of pages is deleted first: LMDB would else keep
 * a longer run for a shorter value written twice in a transaction, which the walk at open takes
 * for damage.
 *
 * A commit whose last write, the meta page's, fails leaves the LMDB environment unusable for
 * good (MDB_FATAL_ERROR), though the file is as before. Another one is then opened on
 * the same file, by the commit or by the next store_begin, after a sync that puts the old meta
 * page on the disk before any page is reused. The broken one stays mapped until store_close,
 * since chunks point into its map; its read transaction is left alone, because both
 * environments share the reader table's slots. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/epoch.h"
#include "storage/lmdb_check.h"
#include "storage/store.h"
#include "storage/store_guard.h"
#include "storage/store_internal.h"

enum {
    /* LMDB puts a value on pages of its own when node, key and value exceed me_nodemax. */
    INLINE_BYTES_MAX = 2038 - 8 - STORE_KEY_BYTES,
    OVERFLOW_HEADER_BYTES = 16
};

static int sync_file(struct store *s, struct err *e)
{
    int fd = open(s->path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot open %s", s->path);
    int rc = fdatasync(fd) == 0 ? 0 : err_set_errno(e, errno, "cannot sync %s", s->path);
    close(fd);
    return rc;
}

static void change_view(struct store *s, struct env *env, MDB_txn *txn)
{
    pthread_mutex_lock(&s->view_lock);
    s->old = s->view;
    s->view = (struct view){env, txn};
    pthread_mutex_unlock(&s->view_lock);
}

/* After a failed meta page: see the head of this file. */
static int reopen(struct store *s, struct err *e)
{
    struct env *env;
    int rc = sync_file(s, e);
    if (rc == 0)
        rc = store_env_open(s, false, &env, e);
    if (rc != 0)
        return rc;
    env->next = s->env;
    s->env = env;
    change_view(s, env, env->txn[0]);
    s->old = (struct view){0};
    epoch_synchronize();
    return 0;
}

static int do_begin(void *arg)
{
    struct store_write *w = arg;
    return mdb_txn_begin(w->store->env->mdb, NULL, 0, &w->txn);
}

int store_begin(struct store *s, struct store_write **out, struct err *e)
{
    *out = NULL;
    assert(!s->writing && "one writer at a time");
    if (!atomic_load(&s->healthy))
        return store_unhealthy(s, e);
    if (s->options.read_only)
        return err_set(e, KITH_EINVAL, "the store was opened for reading");
    int rc = s->env->fatal ? reopen(s, e) : 0;
    if (rc != 0)
        return rc;
    s->write = (struct store_write){.store = s, .meta = s->meta};
    rc = store_convert(s, guarded(do_begin, &s->write), e, "cannot begin a checkpoint");
    if (rc != 0)
        return rc;
    s->write.meta.txnid = mdb_txn_id(s->write.txn);
    s->writing = true;
    *out = &s->write;
    return 0;
}

static uint64_t pages_of(size_t n)
{
    return n <= INLINE_BYTES_MAX ? 0 : (OVERFLOW_HEADER_BYTES - 1 + n) / LMDB_PAGE_BYTES + 1;
}

/* A value that is to be replaced or deleted: its first page must say what its entry says. Pages
 * that this transaction wrote lie on LMDB's heap. */
static bool page_is_sound(const struct env *env, const MDB_val *v)
{
    uintptr_t at = (uintptr_t)v->mv_data - (uintptr_t)env->base;
    if (v->mv_size <= INLINE_BYTES_MAX || at >= env->map_bytes)
        return true;
    const char *page = (const char *)v->mv_data - OVERFLOW_HEADER_BYTES;
    return at % LMDB_PAGE_BYTES == OVERFLOW_HEADER_BYTES &&
           load_u64(page) == at / LMDB_PAGE_BYTES && load_u16(page + 10) == 4 &&
           load_u32(page + 12) == pages_of(v->mv_size);
}

struct change {
    struct store_write *w;
    unsigned table;
    uint32_t a, b;
    const void *p; /* NULL: delete */
    size_t n;
    uint64_t limit, n_deleted;
};

static void count_key(struct store_write *w, unsigned table, const char *key, int sign)
{
    if (table >= STORE_TABLES)
        return;
    w->meta.n_entries[table] += (uint64_t)(int64_t)sign;
    w->meta.key_sum[table] += (uint64_t)(int64_t)sign * lmdb_key_hash(key, STORE_KEY_BYTES);
}

static int do_change(void *arg)
{
    struct change *c = arg;
    struct env *env = c->w->store->env;
    MDB_txn *txn = c->w->txn;
    MDB_dbi dbi = env->dbi[c->table];
    char bytes[STORE_KEY_BYTES];
    store_key_encode(bytes, c->a, c->b);
    MDB_val key = {sizeof bytes, bytes}, old;
    size_t head = c->table == STORE_CHUNKS ? 0 : STORE_HASH_BYTES;
    int rc = mdb_get(txn, dbi, &key, &old);
    if (rc != 0 && rc != MDB_NOTFOUND)
        return rc;
    bool exists = rc == 0;
    if (exists && !page_is_sound(env, &old))
        return MDB_CORRUPTED;
    if (exists && (!c->p || pages_of(old.mv_size) != pages_of(head + c->n))) {
        if ((rc = mdb_del(txn, dbi, &key, NULL)) != 0)
            return rc;
    }
    if (exists != (c->p != NULL))
        count_key(c->w, c->table, bytes, exists ? -1 : 1);
    if (!c->p)
        return 0;
    MDB_val value = {head + c->n, NULL};
    if ((rc = mdb_put(txn, dbi, &key, &value, MDB_RESERVE)) != 0)
        return rc;
    if (head)
        store_u64(value.mv_data, store_value_hash(c->table, c->a, c->b, c->p, c->n));
    if (c->n)
        memcpy((char *)value.mv_data + head, c->p, c->n);
    return 0;
}

static int change(struct change *c, int (*fn)(void *arg), struct err *e)
{
    struct store_write *w = c->w;
    if (w->failed)
        return err_set(e, KITH_EINVAL, "the checkpoint failed before; it can only be aborted");
    int rc = guarded(fn, c);
    if (rc != 0)
        w->failed = true;
    if (rc == GUARD_DAMAGED)
        w->txn = NULL;
    return store_convert(w->store, rc, e, "cannot write");
}

int store_put(struct store_write *w, enum store_table table, uint32_t a, uint32_t b,
              const void *p, size_t n, struct err *e)
{
    if (n > UINT32_MAX - STORE_HASH_BYTES)
        return err_set(e, KITH_ELIMIT, "a value of %zu bytes", n);
    return change(
        &(struct change){.w = w, .table = table, .a = a, .b = b, .p = p ? p : "", .n = n},
        do_change, e);
}

int store_delete(struct store_write *w, enum store_table table, uint32_t a, uint32_t b,
                 struct err *e)
{
    return change(&(struct change){.w = w, .table = table, .a = a, .b = b}, do_change, e);
}

static int do_delete_all(void *arg)
{
    struct change *c = arg;
    struct env *env = c->w->store->env;
    MDB_cursor *cursor;
    char bytes[STORE_KEY_BYTES];
    store_key_encode(bytes, c->a, 0);
    MDB_val key = {sizeof bytes, bytes}, value;
    int rc = mdb_cursor_open(c->w->txn, env->dbi[c->table], &cursor);
    if (rc != 0)
        return rc;
    MDB_cursor_op op = MDB_SET_RANGE;
    while ((c->limit == 0 || c->n_deleted < c->limit) &&
           (rc = mdb_cursor_get(cursor, &key, &value, op)) == 0 &&
           memcmp(key.mv_data, bytes, 4) == 0) {
        op = MDB_NEXT;
        char gone[STORE_KEY_BYTES];
        memcpy(gone, key.mv_data, sizeof gone);
        rc = page_is_sound(env, &value) ? mdb_cursor_del(cursor, 0) : MDB_CORRUPTED;
        if (rc != 0)
            break;
        count_key(c->w, c->table, gone, -1);
        c->n_deleted++;
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int64_t store_delete_all(struct store_write *w, enum store_table table, uint32_t a,
                         uint64_t limit, struct err *e)
{
    struct change c = {.w = w, .table = table, .a = a, .limit = limit};
    int rc = change(&c, do_delete_all, e);
    return rc != 0 ? rc : (int64_t)c.n_deleted;
}

static int do_commit(void *arg)
{
    struct store_write *w = arg;
    MDB_txn *txn = w->txn;
    char key[STORE_KEY_BYTES], meta[STORE_META_BYTES];
    store_key_encode(key, 0, 0);
    store_meta_encode(meta, &w->meta);
    int rc = mdb_put(txn, w->store->env->dbi[STORE_META], &(MDB_val){sizeof key, key},
                     &(MDB_val){sizeof meta, meta}, 0);
    if (rc != 0)
        return rc;
    w->txn = NULL; /* a commit ends it, also where it fails */
    return mdb_txn_commit(txn);
}

static int do_abort(void *arg)
{
    struct store_write *w = arg;
    mdb_txn_abort(w->txn);
    return 0;
}

void store_abort(struct store_write *w)
{
    if (w->txn)
        guarded(do_abort, w);
    w->txn = NULL;
    w->store->writing = false;
}

/* Whether LMDB gave the environment up. It refuses even to begin reading then. */
static int probe(void *arg)
{
    struct env *env = arg;
    MDB_txn *txn;
    int rc = mdb_txn_begin(env->mdb, NULL, 0, &txn);
    if (rc == 0)
        mdb_txn_abort(txn);
    return rc;
}

int store_commit(struct store_write *w, uint64_t epoch, uint64_t index, struct err *e)
{
    struct store *s = w->store;
    int rc = 0;
    if (w->failed)
        rc = err_set(e, KITH_EINVAL, "the checkpoint failed before; it can only be aborted");
    w->meta.state = (struct store_state){epoch, index, s->meta.state.checkpoints + 1};
    if (rc == 0)
        rc = store_convert(s, guarded(do_commit, w), e, "cannot commit a checkpoint");
    if (rc == 0) {
        pthread_mutex_lock(&s->meta_lock);
        s->meta = w->meta;
        pthread_mutex_unlock(&s->meta_lock);
    } else if (atomic_load(&s->healthy)) {
        s->env->fatal = guarded(probe, s->env) == MDB_PANIC;
    }
    store_abort(w);
    if (s->env->fatal)
        (void)reopen(s, NULL); /* else the next store_begin tries again, and tells why */
    return rc;
}

static int do_renew(void *arg)
{
    return mdb_txn_renew(arg);
}

int store_refresh(struct store *s, struct err *e)
{
    assert(!s->old.txn && "store_refreshed is missing");
    if (!atomic_load(&s->healthy))
        return store_unhealthy(s, e);
    struct env *env = s->env;
    MDB_txn *next = s->view.txn == env->txn[0] ? env->txn[1] : env->txn[0];
    int rc = store_convert(s, guarded(do_renew, next), e, "cannot read the new checkpoint");
    if (rc == 0)
        change_view(s, env, next);
    return rc;
}

static int do_reset(void *arg)
{
    mdb_txn_reset(arg);
    return 0;
}

void store_refreshed(struct store *s)
{
    if (!s->old.txn)
        return;
    epoch_synchronize();
    guarded(do_reset, s->old.txn);
    s->old = (struct view){0};
}
