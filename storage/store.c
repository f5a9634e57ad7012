/* How the store uses LMDB.
 *
 * Reading. One read transaction, the view, serves everybody. Looking a key up in it takes a
 * short mutex (LMDB wants one user of a transaction at a time); the bytes found are then used
 * outside of it, inside an epoch bracket. After a commit store_refresh makes a new view; the
 * old transaction goes on until store_refreshed saw every reader of that time leave, so nothing
 * a reader holds is ever given back to LMDB's list of free pages under its feet. Both
 * transactions of an environment are allocated when it is opened: renewing one cannot fail for
 * lack of memory.
 *
 * A value that no transaction rewrote lies on the same pages in the next view: LMDB copies on
 * write and never moves an overflow run. So pointers to clean chunks survive a refresh, and
 * only those of written chunks are looked up again (storage/chunks.c).
 *
 * Writing is told in storage/store_write.c.
 *
 * What LMDB must not be trusted with, and what is done: flipped bits (the walk at open,
 * checksums in values), a cut file and assertions (storage/store_guard.c), a full disk (no
 * WRITEMAP, so a failed write fails one transaction). */
#include "storage/store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/epoch.h"
#include "base/file.h"
#include "base/mem.h"
#include "storage/chunks.h"
#include "storage/lmdb_check.h"
#include "storage/store_guard.h"
#include "storage/store_internal.h"

enum {
    READERS_MAX = 1024,
    LOCK_FILE_BYTES = 128 * 1024,
    NEW_STORE_BYTES_MAX = 16 * LMDB_PAGE_BYTES
};

#define MAP_BYTES_DEFAULT ((size_t)1 << 40)

/* --- errors --- */

int store_unhealthy(struct store *s, struct err *e)
{
    return err_set(e, KITH_ECORRUPT,
                   "%s: damage was met in the map of the running process; restart to check it",
                   s->path);
}

int store_convert(struct store *s, int rc, struct err *e, const char *what)
{
    switch (rc) {
    case 0:
        return 0;
    case GUARD_DAMAGED:
        atomic_store(&s->healthy, false);
        return store_unhealthy(s, e);
    case MDB_NOTFOUND:
        return err_set(e, KITH_ENOTFOUND, "%s: not found", what);
    case MDB_MAP_FULL:
        return err_set(e, KITH_ENOSPC, "%s: %s: the map of %zu bytes is full", s->path, what,
                       s->env ? s->env->map_bytes : 0);
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
    case MDB_BAD_DBI:
    case MDB_INCOMPATIBLE:
        return err_set(e, KITH_ECORRUPT, "%s: %s: %s", s->path, what, mdb_strerror(rc));
    case MDB_VERSION_MISMATCH:
        return err_set(e, KITH_EFORMAT, "%s: %s: %s", s->path, what, mdb_strerror(rc));
    case MDB_TXN_FULL:
        return err_set(e, KITH_ELIMIT, "%s: %s: too much in one checkpoint", s->path, what);
    default:
        if (rc > 0)
            return err_set_errno(e, rc, "%s: %s", s->path, what);
        return err_set(e, KITH_EIO, "%s: %s: %s", s->path, what, mdb_strerror(rc));
    }
}

static void on_lmdb_assert(MDB_env *mdb, const char *message)
{
    (void)message;
    struct env *env = mdb_env_get_userctx(mdb);
    atomic_store(&env->store->healthy, false);
    guard_escape();
}

int store_guarded(struct store *s, int (*fn)(void *arg), void *arg, struct err *e)
{
    int rc = guarded(fn, arg);
    if (rc == GUARD_DAMAGED)
        return store_convert(s, rc, e, "");
    return atomic_load(&s->healthy) ? rc : store_unhealthy(s, e);
}

/* --- the environment --- */

struct opening {
    struct env *env;
    size_t map_bytes;
    bool fresh;
    struct store_meta *meta;
};

static int make_tables(struct opening *o)
{
    struct env *env = o->env;
    bool read_only = env->store->options.read_only;
    MDB_txn *txn;
    int rc = mdb_txn_begin(env->mdb, NULL, o->fresh ? 0 : MDB_RDONLY, &txn);
    if (rc != 0)
        return rc;
    for (int t = 0; t < STORE_TABLES_ALL && rc == 0; t++)
        rc = mdb_dbi_open(txn, store_table_names[t], o->fresh ? MDB_CREATE : 0, &env->dbi[t]);
    if (rc == 0 && o->fresh && !read_only) {
        char key[STORE_KEY_BYTES], meta[STORE_META_BYTES];
        o->meta->txnid = mdb_txn_id(txn);
        store_key_encode(key, 0, 0);
        store_meta_encode(meta, o->meta);
        rc = mdb_put(txn, env->dbi[STORE_META], &(MDB_val){sizeof key, key},
                     &(MDB_val){sizeof meta, meta}, 0);
    }
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc;
    }
    return mdb_txn_commit(txn);
}

/* LMDB does not tell where its map lies. The meta record sits in a leaf page, whose first word
 * is the page's number: the walk at open made sure of that. */
static int find_base(struct env *env)
{
    char key[STORE_KEY_BYTES];
    MDB_val found;
    store_key_encode(key, 0, 0);
    int rc = mdb_get(env->txn[0], env->dbi[STORE_META], &(MDB_val){sizeof key, key}, &found);
    if (rc != 0)
        return rc;
    uintptr_t page = (uintptr_t)found.mv_data & ~(uintptr_t)(LMDB_PAGE_BYTES - 1);
    env->base = (const char *)(page - load_u64((const void *)page) * LMDB_PAGE_BYTES);
    return 0;
}

static int open_lmdb(void *arg)
{
    struct opening *o = arg;
    struct env *env = o->env;
    struct store *s = env->store;
    unsigned flags = MDB_NOTLS | MDB_NORDAHEAD;
    if (s->options.read_only)
        flags |= MDB_RDONLY | MDB_NOLOCK;
    char dir[PATH_BYTES];
    snprintf(dir, sizeof dir, "%.*s", (int)(strlen(s->path) - strlen("/data.mdb")), s->path);
    int rc = mdb_env_create(&env->mdb), dead;
    if (rc != 0)
        return rc;
    mdb_env_set_userctx(env->mdb, env);
    mdb_env_set_assert(env->mdb, on_lmdb_assert);
    mdb_env_set_maxreaders(env->mdb, READERS_MAX);
    mdb_env_set_maxdbs(env->mdb, STORE_TABLES_ALL);
    mdb_env_set_mapsize(env->mdb, o->map_bytes);
    if ((rc = mdb_env_open(env->mdb, dir, flags, 0644)) != 0)
        return rc;
    if (!s->options.read_only)
        mdb_reader_check(env->mdb, &dead);
    if ((rc = make_tables(o)) != 0)
        return rc;
    for (int i = 0; i < 2; i++) {
        if ((rc = mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, &env->txn[i])) != 0)
            return rc;
    }
    mdb_txn_reset(env->txn[1]);
    return find_base(env);
}

static int close_lmdb(void *arg)
{
    struct env *env = arg;
    for (int i = 0; i < 2; i++) {
        if (env->txn[i])
            mdb_txn_abort(env->txn[i]);
        env->txn[i] = NULL;
    }
    if (env->mdb)
        mdb_env_close(env->mdb);
    env->mdb = NULL;
    return 0;
}

static void env_free(struct env *env)
{
    if (env->base && !env->store->options.read_only)
        guard_map_remove(env->base);
    /* A close that damage cuts short leaks what LMDB held; the process is told to end anyway.
     */
    guarded(close_lmdb, env);
    mem_free(env);
}

/* The address space to reserve: a map once reserved is never enlarged. */
static size_t map_bytes_wanted(const struct store *s)
{
    if (s->options.map_bytes)
        return s->options.map_bytes & ~(size_t)(LMDB_PAGE_BYTES - 1);
    struct rlimit limit;
    size_t bytes = MAP_BYTES_DEFAULT;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur / 2 < bytes)
        bytes = (size_t)(limit.rlim_cur / 2) & ~(size_t)(LMDB_PAGE_BYTES - 1);
    return bytes;
}

int store_env_open(struct store *s, bool fresh, struct env **out, struct err *e)
{
    size_t floor = 2 * (size_t)store_file_bytes(s) + (16u << 20);
    for (size_t bytes = map_bytes_wanted(s);;
         bytes = (bytes / 2) & ~(size_t)(LMDB_PAGE_BYTES - 1)) {
        struct env *env = mem_calloc(1, sizeof *env);
        if (!env)
            return err_set(e, KITH_ENOMEM, "out of memory opening %s", s->path);
        env->store = s;
        env->map_bytes = bytes;
        struct opening o = {.env = env, .map_bytes = bytes, .fresh = fresh, .meta = &s->meta};
        int rc = guarded(open_lmdb, &o);
        if (rc == 0) {
            if (s->options.read_only ||
                (rc = guard_map_add(env->base, bytes, &s->healthy, e)) == 0)
                *out = env;
            else
                env_free(env);
            return rc;
        }
        env_free(env);
        /* Less address space may do, where it is limited or others have taken it. */
        if (rc != ENOMEM || bytes / 2 < floor)
            return store_convert(s, rc, e, "cannot open");
    }
}

/* --- open and close --- */

static const char made_text[] = "kith store 1\n";

/* The file `made` says that the store was once complete: a data file that is gone or empty is
 * then damage, and not the beginning of a new store. */
static int check_made(struct store *s, bool fresh, struct err *e)
{
    char path[PATH_BYTES + 16];
    snprintf(path, sizeof path, "%s/store/made", s->dir);
    if (fresh && file_exists(path))
        return err_set(
            e, KITH_ECORRUPT,
            "%s is missing or empty, but there was a store; restore it, or remove %s to "
            "begin anew",
            s->path, path);
    return 0;
}

/* A process that was killed while it made the store may leave a part of the first pages.
 * Without `made`, and no larger than a new store is, the file never held anything: it is begun
 * again. (If it did, the log does not fit to an empty store, and its owner will say so.) */
static int begin_again(struct store *s, int rc, bool *fresh, struct err *e)
{
    char path[PATH_BYTES + 16];
    snprintf(path, sizeof path, "%s/store/made", s->dir);
    if (s->options.read_only || file_exists(path) || store_file_bytes(s) > NEW_STORE_BYTES_MAX)
        return rc;
    if (unlink(s->path) != 0)
        return err_set_errno(e, errno, "cannot remove the unfinished %s", s->path);
    *fresh = true;
    return 0;
}

static int write_made(struct store *s, struct err *e)
{
    char path[PATH_BYTES + 16];
    snprintf(path, sizeof path, "%s/store/made", s->dir);
    if (file_exists(path))
        return 0;
    /* LMDB syncs its file but not the directories; this syncs both. */
    int rc = file_sync_dir(s->dir, e);
    return rc ? rc : file_write_whole(path, made_text, sizeof made_text - 1, e);
}

static int take_lock(struct store *s, struct err *e)
{
    char path[PATH_BYTES + 16];
    snprintf(path, sizeof path, "%s/store", s->dir);
    int rc = file_make_dirs(path, e);
    if (rc != 0)
        return rc;
    snprintf(path, sizeof path, "%s/store/owner", s->dir);
    if ((s->lock_fd = file_lock(path, e)) < 0)
        return s->lock_fd;
    /* LMDB maps its lock file shared: on a full disk a hole in it would be a SIGBUS. That the
     * room cannot be had is no reason to refuse a store that may have it already. */
    snprintf(path, sizeof path, "%s/store/lock.mdb", s->dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd >= 0) {
        (void)!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, LOCK_FILE_BYTES);
        close(fd);
    }
    return 0;
}

static void store_free(struct store *s)
{
    for (struct env *env = s->env, *next; env; env = next) {
        next = env->next;
        env_free(env);
    }
    if (s->lock_fd >= 0)
        file_unlock(s->lock_fd);
    pthread_mutex_destroy(&s->view_lock);
    pthread_mutex_destroy(&s->meta_lock);
    mem_free(s);
}

int store_open(struct store **out, const char *dir, const struct store_options *options,
               struct err *e)
{
    *out = NULL;
    struct store *s = mem_calloc(1, sizeof *s);
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory opening the store");
    s->lock_fd = -1;
    if (options)
        s->options = *options;
    atomic_store(&s->healthy, true);
    pthread_mutex_init(&s->view_lock, NULL);
    pthread_mutex_init(&s->meta_lock, NULL);
    int rc = 0;
    bool fresh = true;
    snprintf(s->dir, sizeof s->dir, "%s", dir);
    if (snprintf(s->path, sizeof s->path, "%s/store/data.mdb", dir) >= (int)sizeof s->path)
        rc = err_set(e, KITH_EINVAL, "path too long: %s", dir);
    if (rc == 0 && !s->options.read_only)
        rc = take_lock(s, e);
    if (rc == 0)
        rc = store_verify(s->path, &s->meta, &fresh, e);
    if (rc == KITH_ECORRUPT)
        rc = begin_again(s, rc, &fresh, e);
    if (rc == 0)
        rc = check_made(s, fresh, e);
    if (rc == 0 && fresh && s->options.read_only)
        rc = err_set(e, KITH_ENOTFOUND, "there is no store in %s", dir);
    if (rc == 0)
        rc = store_env_open(s, fresh, &s->env, e);
    if (rc == 0 && !s->options.read_only)
        rc = write_made(s, e);
    if (rc != 0) {
        store_free(s);
        return rc;
    }
    s->view = (struct view){s->env, s->env->txn[0]};
    *out = s;
    return 0;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    assert(!s->writing && "store_close inside a checkpoint");
    store_free(s);
}

struct store_state store_state(struct store *s)
{
    pthread_mutex_lock(&s->meta_lock);
    struct store_state state = s->meta.state;
    pthread_mutex_unlock(&s->meta_lock);
    return state;
}

bool store_healthy(const struct store *s)
{
    return atomic_load(&s->healthy);
}

uint64_t store_file_bytes(struct store *s)
{
    struct stat st;
    return stat(s->path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

_Atomic size_t *store_dirty_counter(struct store *s)
{
    return &s->dirty_bytes;
}

size_t store_dirty_bytes(const struct store *s)
{
    return atomic_load_explicit(&s->dirty_bytes, memory_order_relaxed);
}

/* --- reading --- */

struct lookup {
    MDB_txn *txn;
    MDB_dbi dbi;
    unsigned table;
    uint32_t a, b;
    MDB_val found;
    struct buf *out;
    struct err *e;
};

static int do_get(void *arg)
{
    struct lookup *l = arg;
    char key[STORE_KEY_BYTES];
    store_key_encode(key, l->a, l->b);
    return mdb_get(l->txn, l->dbi, &(MDB_val){sizeof key, key}, &l->found);
}

static int find(struct store *s, struct lookup *l, struct err *e)
{
    if (!atomic_load(&s->healthy))
        return store_unhealthy(s, e);
    pthread_mutex_lock(&s->view_lock);
    l->txn = s->view.txn;
    l->dbi = s->view.env->dbi[l->table];
    int rc = guarded(do_get, l);
    pthread_mutex_unlock(&s->view_lock);
    if (rc == MDB_NOTFOUND)
        return err_set(e, KITH_ENOTFOUND, "there is no value (%u, %u) in table %s", l->a, l->b,
                       store_table_names[l->table]);
    return store_convert(s, rc, e, "cannot read");
}

static int do_copy(void *arg)
{
    struct lookup *l = arg;
    int rc = store_value_check(l->table, l->a, l->b, l->found.mv_data, l->found.mv_size, l->e);
    if (rc != 0)
        return rc;
    size_t skip = l->table == STORE_CHUNKS ? 0 : STORE_HASH_BYTES, n = l->found.mv_size - skip;
    char *to = n ? buf_reserve(l->out, n) : NULL;
    if (n && !to)
        return err_set(l->e, KITH_ENOMEM, "out of memory for a value of %zu bytes", n);
    if (n)
        memcpy(to, (char *)l->found.mv_data + skip, n);
    l->out->len += n;
    return 0;
}

int store_get(struct store *s, enum store_table table, uint32_t a, uint32_t b, struct buf *out,
              struct err *e)
{
    struct lookup l = {.table = table, .a = a, .b = b, .out = out, .e = e};
    epoch_enter();
    int rc = find(s, &l, e);
    if (rc == 0)
        rc = store_guarded(s, do_copy, &l, e);
    epoch_exit();
    return rc;
}

int store_chunk_find(struct store *s, uint32_t a, uint32_t b, const char **p, size_t *n,
                     struct err *e)
{
    struct lookup l = {.table = STORE_CHUNKS, .a = a, .b = b};
    int rc = find(s, &l, e);
    if (rc == 0) {
        *p = l.found.mv_data;
        *n = l.found.mv_size;
    }
    return rc;
}

bool store_view_is_newest(struct store *s)
{
    return mdb_txn_id(s->view.txn) == s->meta.txnid;
}

struct scan {
    struct store *s;
    unsigned table;
    MDB_txn *txn;
    MDB_cursor *cursor;
    MDB_val key, value;
    MDB_cursor_op op;
    uint32_t a, b;
    struct err *e;
};

static int scan_begin(void *arg)
{
    struct scan *c = arg;
    pthread_mutex_lock(&c->s->view_lock);
    struct env *env = c->s->view.env;
    pthread_mutex_unlock(&c->s->view_lock);
    int rc = mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, &c->txn);
    return rc ? rc : mdb_cursor_open(c->txn, env->dbi[c->table], &c->cursor);
}

static int scan_step(void *arg)
{
    struct scan *c = arg;
    int rc = mdb_cursor_get(c->cursor, &c->key, &c->value, c->op);
    c->op = MDB_NEXT;
    if (rc == MDB_NOTFOUND)
        return 1;
    if (rc != 0)
        return store_convert(c->s, rc, c->e, "cannot read");
    if (c->key.mv_size != STORE_KEY_BYTES)
        return err_set(c->e, KITH_ECORRUPT, "%s: a key of %zu bytes", c->s->path,
                       c->key.mv_size);
    store_key_decode(c->key.mv_data, &c->a, &c->b);
    return store_value_check(c->table, c->a, c->b, c->value.mv_data, c->value.mv_size, c->e);
}

static int scan_end(void *arg)
{
    struct scan *c = arg;
    if (c->cursor)
        mdb_cursor_close(c->cursor);
    if (c->txn)
        mdb_txn_abort(c->txn);
    return 0;
}

int store_each(struct store *s, enum store_table table,
               int (*fn)(void *arg, uint32_t a, uint32_t b, const void *p, size_t n,
                         struct err *e),
               void *arg, struct err *e)
{
    if (!atomic_load(&s->healthy))
        return store_unhealthy(s, e);
    /* A read transaction of its own: it may take long, and must not hold up the lookups. */
    struct scan c = {.s = s, .table = table, .op = MDB_FIRST, .e = e};
    int rc = store_convert(s, guarded(scan_begin, &c), e, "cannot read");
    while (rc == 0 && (rc = store_guarded(s, scan_step, &c, e)) == 0)
        rc = fn(arg, c.a, c.b, (char *)c.value.mv_data + STORE_HASH_BYTES,
                c.value.mv_size - STORE_HASH_BYTES, e);
    guarded(scan_end, &c);
    return rc == 1 ? 0 : rc;
}
