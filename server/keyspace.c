#include "server/keyspace.h"

#include <assert.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/random.h"

struct dirty_entry {
    struct key *key; /* NULL: merged into a newer entry of the same key */
    bool captured;   /* then the rest is the key's state at the freeze */
    bool deleted;
    uint8_t type;
    int64_t expire_ms;
    uint32_t set_id;
    struct blob *string;
};

/* Entries never move (keys point at them), so two sets are joined without allocating. */
enum { DIRTY_BLOCK = 256 };

struct dirty_block {
    struct dirty_block *next;
    uint32_t n;
    struct dirty_entry entries[DIRTY_BLOCK];
};

struct dirty_set {
    struct dirty_block *first, *last;
    uint64_t n;
    size_t bytes; /* roughly, of the values */
};

struct database {
    struct dict keys;
    uint64_t n_expires;
};

enum { GONE_PLACES = 8192 };

struct keyspace {
    struct database dbs[KEYSPACE_ALL_DBS];
    struct key **heap; /* by expire_ms, smallest first; a key knows its place */
    uint64_t heap_n;
    size_t heap_cap;
    struct dirty_set current, frozen;
    struct dirty_block *drain_block; /* how far the frozen set was drained */
    uint32_t drain_at;
    struct dirty_block *spare; /* reserved for key_touch */
    uint64_t n_spare;
    uint64_t generation; /* of current; frozen has generation - 1 while freezing */
    bool freezing;
    uint64_t next_id, next_version;
    /* The version at which a key of that hash was last deleted: what WATCH compares while there
     * is no key. Two names may share a place; then a transaction is refused once too often. */
    uint64_t gone[GONE_PLACES];
    struct keyspace_hooks hooks;
    struct rng rng;
};

struct keyspace *keyspace_new(const struct keyspace_hooks *hooks)
{
    struct keyspace *ks = mem_calloc(1, sizeof *ks);
    if (!ks)
        return NULL;
    ks->generation = 2; /* a clean key has 0, never equal to a live generation */
    ks->next_id = 1;
    ks->hooks = *hooks;
    rng_seed(&ks->rng, rng_entropy());
    return ks;
}

static void drop_value(struct keyspace *ks, struct key *k)
{
    if (k->type == OBJECT_STRING)
        blob_unref(k->string);
    else if (k->type == OBJECT_VSET)
        ks->hooks.vset_drop(ks->hooks.arg, k->vset);
    k->type = OBJECT_NONE;
}

static void key_unref(struct key *k)
{
    if (--k->refs == 0)
        mem_free(k);
}

static void dirty_deinit(struct dirty_set *d)
{
    for (struct dirty_block *b = d->first, *next; b; b = next) {
        next = b->next;
        for (uint32_t i = 0; i < b->n; i++) {
            blob_unref(b->entries[i].string);
            if (b->entries[i].key)
                key_unref(b->entries[i].key);
        }
        mem_free(b);
    }
    *d = (struct dirty_set){0};
}

static void free_key(void *arg, struct dict_node *n)
{
    struct key *k = (struct key *)n;
    drop_value(arg, k);
    key_unref(k);
}

void keyspace_free(struct keyspace *ks)
{
    if (!ks)
        return;
    dirty_deinit(&ks->current);
    dirty_deinit(&ks->frozen);
    for (int db = 0; db < KEYSPACE_ALL_DBS; db++) {
        dict_each(&ks->dbs[db].keys, free_key, ks);
        dict_deinit(&ks->dbs[db].keys);
    }
    for (struct dirty_block *b = ks->spare, *next; b; b = next) {
        next = b->next;
        mem_free(b);
    }
    mem_free(ks->heap);
    mem_free(ks);
}

/* --- expiry heap --- */

static void heap_put(struct keyspace *ks, uint64_t at, struct key *k)
{
    ks->heap[at] = k;
    k->expire_at = at + 1;
}

static void heap_up(struct keyspace *ks, uint64_t at)
{
    struct key *k = ks->heap[at];
    while (at > 0 && ks->heap[(at - 1) / 2]->expire_ms > k->expire_ms) {
        heap_put(ks, at, ks->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_put(ks, at, k);
}

static void heap_down(struct keyspace *ks, uint64_t at)
{
    struct key *k = ks->heap[at];
    for (;;) {
        uint64_t child = 2 * at + 1;
        if (child >= ks->heap_n)
            break;
        if (child + 1 < ks->heap_n &&
            ks->heap[child + 1]->expire_ms < ks->heap[child]->expire_ms)
            child++;
        if (ks->heap[child]->expire_ms >= k->expire_ms)
            break;
        heap_put(ks, at, ks->heap[child]);
        at = child;
    }
    heap_put(ks, at, k);
}

static void heap_remove(struct keyspace *ks, struct key *k)
{
    if (!k->expire_at)
        return;
    uint64_t at = k->expire_at - 1;
    k->expire_at = 0;
    ks->dbs[k->db].n_expires--;
    struct key *last = ks->heap[--ks->heap_n];
    if (last == k)
        return;
    heap_put(ks, at, last);
    heap_up(ks, at);
    heap_down(ks, last->expire_at - 1);
}

static int heap_add(struct keyspace *ks, struct key *k)
{
    struct key **heap = mem_grow(ks->heap, ks->heap_n, &ks->heap_cap, 64, sizeof *heap);
    if (!heap)
        return KITH_ENOMEM;
    ks->heap = heap;
    ks->dbs[k->db].n_expires++;
    heap_put(ks, ks->heap_n++, k);
    heap_up(ks, ks->heap_n - 1);
    return 0;
}

struct key *keyspace_expired(struct keyspace *ks, int64_t now_ms)
{
    return ks->heap_n > 0 && ks->heap[0]->expire_ms <= now_ms ? ks->heap[0] : NULL;
}

int keyspace_restore_expire(struct keyspace *ks, struct key *k, int64_t expire_ms)
{
    k->expire_ms = expire_ms;
    return heap_add(ks, k);
}

int key_set_expire(struct keyspace *ks, struct key *k, int64_t expire_ms)
{
    if (expire_ms == k->expire_ms)
        return 0;
    key_touch(ks, k);
    if (expire_ms == 0) {
        heap_remove(ks, k);
        k->expire_ms = 0;
        return 0;
    }
    if (k->expire_at) {
        k->expire_ms = expire_ms;
        heap_up(ks, k->expire_at - 1);
        heap_down(ks, k->expire_at - 1);
        return 0;
    }
    k->expire_ms = expire_ms;
    int rc = heap_add(ks, k);
    if (rc != 0)
        k->expire_ms = 0;
    return rc;
}

/* --- keys --- */

struct lookup {
    struct slice name;
};

static bool key_is(const struct dict_node *n, const void *key)
{
    const struct lookup *l = key;
    return slice_equal(key_name((const struct key *)n), l->name);
}

struct key *keyspace_find_raw(struct keyspace *ks, uint32_t db, struct slice name)
{
    struct lookup l = {name};
    return (struct key *)dict_find(&ks->dbs[db].keys, hash64(name.p, name.n), key_is, &l);
}

struct key *keyspace_find(struct keyspace *ks, uint32_t db, struct slice name, int64_t now_ms)
{
    struct key *k = keyspace_find_raw(ks, db, name);
    return k && k->expire_ms && k->expire_ms <= now_ms ? NULL : k;
}

static struct key *add_key(struct keyspace *ks, uint64_t id, uint32_t db, struct slice name)
{
    assert(db < KEYSPACE_ALL_DBS);
    if (name.n > KEY_NAME_MAX)
        return NULL;
    struct key *k = mem_alloc(sizeof *k + name.n);
    if (!k)
        return NULL;
    *k = (struct key){.id = id, .refs = 1, .db = (uint8_t)db, .name_n = (uint32_t)name.n};
    if (name.n)
        memcpy(k->name, name.p, name.n);
    k->node.hash = hash64(name.p, name.n);
    if (dict_insert(&ks->dbs[db].keys, &k->node) != 0) {
        mem_free(k);
        return NULL;
    }
    return k;
}

struct key *keyspace_create(struct keyspace *ks, uint32_t db, struct slice name)
{
    if (keyspace_reserve_dirty(ks, 1) != 0)
        return NULL;
    struct key *k = add_key(ks, ks->next_id, db, name);
    if (k) {
        ks->next_id++;
        key_touch(ks, k);
    }
    return k;
}

struct key *keyspace_restore(struct keyspace *ks, uint64_t id, uint32_t db, struct slice name)
{
    struct key *k = add_key(ks, id, db, name);
    if (k)
        k->version = ++ks->next_version;
    return k;
}

int keyspace_reserve_dirty(struct keyspace *ks, uint64_t n)
{
    uint64_t room = ks->current.last ? DIRTY_BLOCK - ks->current.last->n : 0;
    while (room + ks->n_spare * DIRTY_BLOCK < n) {
        struct dirty_block *b = mem_alloc(sizeof *b);
        if (!b)
            return KITH_ENOMEM;
        b->n = 0;
        b->next = ks->spare;
        ks->spare = b;
        ks->n_spare++;
    }
    return 0;
}

static struct dirty_entry *dirty_add(struct keyspace *ks, struct key *k)
{
    struct dirty_set *d = &ks->current;
    if (!d->last || d->last->n == DIRTY_BLOCK) {
        struct dirty_block *b = ks->spare;
        assert(b); /* keyspace_reserve_dirty */
        ks->spare = b->next;
        ks->n_spare--;
        b->next = NULL;
        if (d->last)
            d->last->next = b;
        else
            d->first = b;
        d->last = b;
    }
    struct dirty_entry *entry = &d->last->entries[d->last->n++];
    *entry = (struct dirty_entry){.key = k};
    d->n++;
    return entry;
}

static size_t value_bytes(const struct key *k)
{
    return sizeof *k + k->name_n + (k->type == OBJECT_STRING ? k->string->n : 0);
}

static void capture(struct dirty_entry *entry, struct key *k)
{
    entry->captured = true;
    entry->deleted = k->deleted;
    entry->type = k->type;
    entry->expire_ms = k->expire_ms;
    entry->set_id = k->set_id;
    entry->string = k->type == OBJECT_STRING ? blob_ref(k->string) : NULL;
}

void key_touch(struct keyspace *ks, struct key *k)
{
    k->version = ++ks->next_version;
    if (k->dirty_generation == ks->generation)
        return;
    if (ks->freezing && k->dirty_generation == ks->generation - 1 && !k->dirty->captured)
        capture(k->dirty, k);
    k->dirty = dirty_add(ks, k);
    k->dirty_generation = ks->generation;
    k->refs++;
    ks->current.bytes += value_bytes(k);
}

void key_changed_inside(struct keyspace *ks, struct key *k)
{
    k->version = ++ks->next_version;
}

void key_set_string(struct keyspace *ks, struct key *k, struct blob *b)
{
    key_touch(ks, k);
    drop_value(ks, k);
    k->type = OBJECT_STRING;
    k->string = b;
    ks->current.bytes += b->n;
}

void key_set_vset(struct keyspace *ks, struct key *k, struct vset *v, uint32_t set_id)
{
    key_touch(ks, k);
    drop_value(ks, k);
    k->type = OBJECT_VSET;
    k->vset = v;
    k->set_id = set_id;
    ks->hooks.vset_place(ks->hooks.arg, v, k);
}

static uint64_t *gone_place(struct keyspace *ks, uint32_t db, uint64_t hash)
{
    return &ks->gone[(hash_mix(db) ^ hash) % GONE_PLACES];
}

uint64_t keyspace_version(struct keyspace *ks, uint32_t db, struct slice name, int64_t now_ms)
{
    struct key *k = keyspace_find(ks, db, name, now_ms);
    return k ? k->version : *gone_place(ks, db, hash64(name.p, name.n));
}

void keyspace_delete(struct keyspace *ks, struct key *k)
{
    key_touch(ks, k);
    *gone_place(ks, k->db, k->node.hash) = k->version;
    heap_remove(ks, k);
    dict_remove(&ks->dbs[k->db].keys, &k->node);
    drop_value(ks, k);
    k->deleted = true;
    key_unref(k);
}

struct collected {
    struct key **keys;
    uint64_t n;
};

static void collect_key(void *arg, struct dict_node *n)
{
    struct collected *c = arg;
    c->keys[c->n++] = (struct key *)n;
}

int keyspace_flush(struct keyspace *ks, uint32_t db)
{
    bool all = db >= KEYSPACE_DBS;
    uint32_t from = all ? 0 : db, to = all ? KEYSPACE_ALL_DBS : db + 1;
    for (uint32_t i = from; i < to; i++) {
        struct collected c = {0};
        uint64_t n = dict_count(&ks->dbs[i].keys);
        if (n == 0)
            continue;
        c.keys = mem_alloc_n(n, sizeof *c.keys);
        if (!c.keys || keyspace_reserve_dirty(ks, n) != 0) {
            mem_free(c.keys);
            return KITH_ENOMEM;
        }
        dict_each(&ks->dbs[i].keys, collect_key, &c);
        for (uint64_t k = 0; k < c.n; k++)
            keyspace_delete(ks, c.keys[k]);
        mem_free(c.keys);
    }
    return 0;
}

int keyspace_rename(struct keyspace *ks, struct key *k, uint32_t db, struct slice name)
{
    int64_t expire_ms = k->expire_ms;
    if (keyspace_reserve_dirty(ks, 2) != 0)
        return KITH_ENOMEM;
    struct key *to = keyspace_create(ks, db, name);
    if (!to)
        return KITH_ENOMEM;
    if (key_set_expire(ks, to, expire_ms) != 0) {
        keyspace_delete(ks, to);
        return KITH_ENOMEM;
    }
    key_touch(ks, k); /* a checkpoint under way captures the old owner of the value first */
    to->type = k->type;
    to->set_id = k->set_id;
    if (k->type == OBJECT_VSET) {
        to->vset = k->vset;
        ks->hooks.vset_place(ks->hooks.arg, to->vset, to);
    } else {
        to->string = k->string;
    }
    k->type = OBJECT_NONE;
    keyspace_delete(ks, k);
    return 0;
}

void keyspace_replace_vset(struct keyspace *ks, struct key *k, struct key *from)
{
    assert(from->type == OBJECT_VSET);
    key_touch(ks, from); /* a checkpoint under way captures the old owner of the value first */
    key_set_vset(ks, k, from->vset, from->set_id);
    from->type = OBJECT_NONE;
    keyspace_delete(ks, from);
}

uint64_t keyspace_count(struct keyspace *ks, uint32_t db)
{
    return dict_count(&ks->dbs[db].keys);
}

uint64_t keyspace_count_expires(struct keyspace *ks, uint32_t db)
{
    return ks->dbs[db].n_expires;
}

struct each {
    void (*fn)(void *, struct key *);
    void *arg;
};

static void each_node(void *arg, struct dict_node *n)
{
    struct each *each = arg;
    each->fn(each->arg, (struct key *)n);
}

uint64_t keyspace_scan(struct keyspace *ks, uint32_t db, uint64_t cursor,
                       void (*fn)(void *, struct key *), void *arg)
{
    struct each each = {fn, arg};
    return dict_scan(&ks->dbs[db].keys, cursor, each_node, &each);
}

void keyspace_each(struct keyspace *ks, uint32_t db, void (*fn)(void *, struct key *),
                   void *arg)
{
    struct each each = {fn, arg};
    dict_each(&ks->dbs[db].keys, each_node, &each);
}

struct key *keyspace_random(struct keyspace *ks, uint32_t db)
{
    return (struct key *)dict_random(&ks->dbs[db].keys, &ks->rng);
}

size_t key_memory_bytes(const struct key *k)
{
    size_t n = sizeof *k + k->name_n + sizeof(struct dict_node *);
    if (k->type == OBJECT_STRING)
        n += sizeof(struct blob) + k->string->cap;
    return n;
}

/* --- dirty keys --- */

uint64_t keyspace_dirty_count(struct keyspace *ks)
{
    return ks->current.n;
}

size_t keyspace_dirty_bytes(struct keyspace *ks)
{
    return ks->current.bytes + ks->frozen.bytes;
}

void keyspace_freeze(struct keyspace *ks)
{
    assert(!ks->freezing);
    ks->frozen = ks->current;
    ks->current = (struct dirty_set){0};
    ks->drain_block = ks->frozen.first;
    ks->drain_at = 0;
    ks->generation++;
    ks->freezing = true;
}

uint64_t keyspace_drain(struct keyspace *ks, struct key_image *images, uint64_t max)
{
    uint64_t n = 0;
    while (n < max && ks->drain_block) {
        if (ks->drain_at == ks->drain_block->n) {
            ks->drain_block = ks->drain_block->next;
            ks->drain_at = 0;
            continue;
        }
        struct dirty_entry *entry = &ks->drain_block->entries[ks->drain_at++];
        struct key *k = entry->key;
        if (!k)
            continue;
        if (!entry->captured)
            capture(entry, k);
        images[n++] = (struct key_image){
            .id = k->id,
            .deleted = entry->deleted,
            .db = k->db,
            .type = entry->type,
            .expire_ms = entry->expire_ms,
            .name = key_name(k),
            .string = entry->string,
            .set_id = entry->set_id,
        };
        entry->string = NULL; /* now the image's */
    }
    return n;
}

/* The failed checkpoint's keys are dirty again: its blocks go before the newer ones, and a key
 * that stands in both keeps its newer entry. */
static void merge_back(struct keyspace *ks, struct dirty_set *old)
{
    for (struct dirty_block *b = old->first; b; b = b->next)
        for (uint32_t i = 0; i < b->n; i++) {
            struct dirty_entry *entry = &b->entries[i];
            struct key *k = entry->key;
            blob_unref(entry->string);
            *entry = (struct dirty_entry){.key = k};
            if (!k)
                continue;
            if (k->dirty_generation == ks->generation) {
                entry->key = NULL;
                key_unref(k);
            } else {
                k->dirty_generation = ks->generation;
                k->dirty = entry;
            }
        }
    if (!old->first)
        return;
    old->last->next = ks->current.first;
    ks->current.first = old->first;
    if (!ks->current.last)
        ks->current.last = old->last;
    ks->current.n += old->n;
    ks->current.bytes += old->bytes;
}

void keyspace_thaw(struct keyspace *ks, bool committed)
{
    assert(ks->freezing);
    ks->freezing = false;
    struct dirty_set old = ks->frozen;
    ks->frozen = (struct dirty_set){0};
    if (committed)
        dirty_deinit(&old);
    else
        merge_back(ks, &old);
}

uint64_t keyspace_next_id(const struct keyspace *ks)
{
    return ks->next_id;
}

void keyspace_set_next_id(struct keyspace *ks, uint64_t id)
{
    ks->next_id = id;
}

void keyspace_continue_versions(struct keyspace *ks, const struct keyspace *before)
{
    ks->next_version = before->next_version;
    memcpy(ks->gone, before->gone, sizeof ks->gone);
}
