#pragma once
/* What the files of the store share: the state of an open store. For storage/store*.c only; how
 * it works is told in storage/store.c. */

#include <lmdb.h>
#include <pthread.h>

#include "storage/store_map.h"

enum { PATH_BYTES = 4096 };

struct env {
    struct env *next; /* opened before, broken since */
    struct store *store;
    MDB_env *mdb;
    MDB_dbi dbi[STORE_TABLES_ALL];
    MDB_txn *txn[2]; /* read transactions: the view's, and the next one's */
    const char *base;
    size_t map_bytes;
    bool fatal; /* a commit failed at the meta page */
};

struct view {
    struct env *env;
    MDB_txn *txn;
};

struct store_write {
    struct store *store;
    MDB_txn *txn; /* NULL once LMDB ended it, or after damage cut a call short */
    struct store_meta meta;
    bool failed;
};

struct store {
    char dir[PATH_BYTES], path[PATH_BYTES];
    struct store_options options;
    int lock_fd;
    struct env *env;
    pthread_mutex_t view_lock; /* view, and every call of LMDB on its transaction */
    struct view view, old;
    pthread_mutex_t meta_lock; /* meta */
    struct store_meta meta;    /* of the newest commit */
    struct store_write write;
    bool writing;
    _Atomic bool healthy;
    _Atomic size_t dirty_bytes;
};

/* LMDB's codes, errno's, and the guard's, converted at the border. */
int store_convert(struct store *s, int rc, struct err *e, const char *what);
int store_unhealthy(struct store *s, struct err *e); /* the error of a store that is not */
int store_env_open(struct store *s, bool fresh, struct env **out, struct err *e);
