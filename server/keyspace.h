#pragma once
/* The keyspace: sixteen databases of keys in memory, with expiry, versions, and the list of
 * what changed since the last checkpoint. One more database, which no client can select, holds
 * the sets that are being made to take the place of others (successor.h).
 *
 * Memory is the truth at run time. A key has a number (id) under which the store keeps its
 * record; names of any length and bytes are thus no matter to the store, and a new key is an
 * append there.
 *
 * Dirty keys. key_touch, called before every change, puts the key into the current dirty set. A
 * checkpoint takes that set away whole (keyspace_freeze, no copying) and reads it in small
 * pieces with the lock given back in between (keyspace_drain); a key that is changed again
 * meanwhile has its old state captured by key_touch first. So what a checkpoint writes is the
 * state at the freeze.
 *
 * Thread: all functions with the shard's lock held. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/dict.h"
#include "base/error.h"
#include "server/blob.h"

enum {
    KEYSPACE_DBS = 16, /* those of clients */
    KEYSPACE_HIDDEN_DB = 16,
    KEYSPACE_ALL_DBS = 17,
    KEY_NAME_MAX = 512 * 1024 * 1024
};

enum object_type { OBJECT_NONE = 0, OBJECT_STRING = 1, OBJECT_VSET = 2 };

struct vset;
struct dirty_entry;

struct key {
    struct dict_node node; /* first */
    uint64_t id, version;
    int64_t expire_ms;         /* wall time, 0: never */
    uint64_t expire_at;        /* position in the expiry heap + 1, 0: not there */
    uint64_t dirty_generation; /* of the dirty set it was last put in */
    struct dirty_entry *dirty; /* its place there */
    uint32_t refs;             /* the table and the dirty sets; the lock guards it */
    uint32_t name_n;
    uint8_t db, type;
    bool deleted;
    uint32_t set_id; /* of a vector set: its number in the store */
    union {
        struct blob *string;
        struct vset *vset;
    };
    char name[];
};

static inline struct slice key_name(const struct key *k)
{
    return (struct slice){.p = k->name, .n = k->name_n};
}

struct keyspace;

struct keyspace_hooks { /* how the keyspace holds what it does not know */
    void (*vset_drop)(void *arg, struct vset *v);                 /* the key is gone for good */
    void (*vset_place)(void *arg, struct vset *v, struct key *k); /* k holds it from now on */
    void *arg;
};

struct keyspace *keyspace_new(const struct keyspace_hooks *hooks);
void keyspace_free(struct keyspace *ks);

/* The key, or NULL when there is none or it has expired. */
struct key *keyspace_find(struct keyspace *ks, uint32_t db, struct slice name, int64_t now_ms);
/* The same, but also an expired one. */
struct key *keyspace_find_raw(struct keyspace *ks, uint32_t db, struct slice name);
/* Another number after every change of the key, also when it came and went in between. */
uint64_t keyspace_version(struct keyspace *ks, uint32_t db, struct slice name, int64_t now_ms);
/* A new key of no type yet; the caller gives it its value at once. NULL when out of memory. */
struct key *keyspace_create(struct keyspace *ks, uint32_t db, struct slice name);
/* As found in the store at start: keeps its id and is clean. */
struct key *keyspace_restore(struct keyspace *ks, uint64_t id, uint32_t db, struct slice name);
int keyspace_restore_expire(struct keyspace *ks, struct key *k, int64_t expire_ms);
/* Makes room so that the next key_touch of n keys cannot fail. */
int keyspace_reserve_dirty(struct keyspace *ks, uint64_t n);

/* Before a change: into the dirty set, a new version. */
void key_touch(struct keyspace *ks, struct key *k);
void key_set_string(struct keyspace *ks, struct key *k, struct blob *b); /* takes over b */
/* Takes over v, which is in the store under set_id. What changes inside a set is the set's own
 * to track (server/vset.h); the key only says which set it is. */
void key_set_vset(struct keyspace *ks, struct key *k, struct vset *v, uint32_t set_id);
/* A change inside the set: a new version for WATCH, nothing for the store. */
void key_changed_inside(struct keyspace *ks, struct key *k);
int key_set_expire(struct keyspace *ks, struct key *k, int64_t expire_ms); /* KITH_ENOMEM */
void keyspace_delete(struct keyspace *ks, struct key *k);
/* db >= KEYSPACE_DBS: all of them, the hidden one too. Takes over what it needs; KITH_ENOMEM
 * changes nothing. */
int keyspace_flush(struct keyspace *ks, uint32_t db);
/* Gives k's value to a new key of that name (which must not exist); k is deleted. */
int keyspace_rename(struct keyspace *ks, struct key *k, uint32_t db, struct slice name);
/* Gives from's vector set to k, which keeps its name and time and lets go of the set it has;
 * from is deleted. Two keys were reserved (keyspace_reserve_dirty): it cannot fail. */
void keyspace_replace_vset(struct keyspace *ks, struct key *k, struct key *from);

uint64_t keyspace_count(struct keyspace *ks, uint32_t db);
uint64_t keyspace_count_expires(struct keyspace *ks, uint32_t db);
/* The next key whose time has come, or NULL. */
struct key *keyspace_expired(struct keyspace *ks, int64_t now_ms);
uint64_t keyspace_scan(struct keyspace *ks, uint32_t db, uint64_t cursor,
                       void (*fn)(void *arg, struct key *k), void *arg);
void keyspace_each(struct keyspace *ks, uint32_t db, void (*fn)(void *arg, struct key *k),
                   void *arg);
struct key *keyspace_random(struct keyspace *ks, uint32_t db);
size_t key_memory_bytes(const struct key *k);

/* One changed key as of the freeze. */
struct key_image {
    uint64_t id;
    bool deleted;
    uint8_t db, type;
    int64_t expire_ms;
    struct slice name;
    struct blob *string; /* holds a count of its own; release with blob_unref */
    uint32_t set_id;
};

uint64_t keyspace_dirty_count(struct keyspace *ks);
size_t keyspace_dirty_bytes(struct keyspace *ks);
/* Takes the dirty set for a checkpoint; one at a time. */
void keyspace_freeze(struct keyspace *ks);
/* Up to max images of the frozen set; 0 when all were given. Names point at the keys, which
 * stay until keyspace_thaw. */
uint64_t keyspace_drain(struct keyspace *ks, struct key_image *images, uint64_t max);
/* The checkpoint is over; when it failed the frozen keys are dirty again. */
void keyspace_thaw(struct keyspace *ks, bool committed);

uint64_t keyspace_next_id(const struct keyspace *ks);
void keyspace_set_next_id(struct keyspace *ks, uint64_t id);
/* So that a WATCH made on `before` cannot match by chance. */
void keyspace_continue_versions(struct keyspace *ks, const struct keyspace *before);
