/* The offline check of a data directory: the log's records, the store's pages and values, then
 * what they mean: keys, sets, names, texts, links. Nothing is written. */
#include <stdio.h>

#include "base/epoch.h"
#include "base/file.h"
#include "base/mem.h"
#include "server/shard_parts.h"
#include "server/successor.h"

struct check {
    struct shard_check_report *report;
    struct key *key;
    int64_t findings;
};

static void found(struct check *c, const char *where, const char *what)
{
    c->findings++;
    c->report->note(c->report->arg, where, what);
}

static void file_note(void *arg, const char *where, const char *what)
{
    found(arg, where, what);
}

static void key_where(const struct key *k, char *out, size_t n)
{
    struct successor_place of = {.db = k->db, .key = key_name(k)};
    bool hidden = k->db == KEYSPACE_HIDDEN_DB && successor_read_name(key_name(k), &of);
    snprintf(out, n, "%sdb %u, key \"%.*s\"", hidden ? "successor of " : "", of.db,
             slice_shown(of.key), of.key.p);
}

static void set_note(void *arg, const char *what)
{
    struct check *c = arg;
    char where[128];
    key_where(c->key, where, sizeof where);
    found(c, where, what);
}

static void slot_note(void *arg, uint32_t slot, const char *what)
{
    struct check *c = arg;
    char where[160];
    key_where(c->key, where, sizeof where - 24);
    size_t n = strlen(where);
    snprintf(where + n, sizeof where - n, ", slot %u", slot);
    found(c, where, what);
}

static void check_key(void *arg, struct key *k)
{
    struct check *c = arg;
    struct shard_check_report *r = c->report;
    r->n_keys++;
    if (k->type != OBJECT_VSET)
        return;
    c->key = k;
    r->n_sets++;
    r->n_elements += vset_count(k->vset);
    struct err e = {0};
    if (vset_check(k->vset, set_note, c, &e) < 0)
        set_note(c, e.message);
    if (index_check(vset_index(k->vset), slot_note, c, &e) < 0)
        set_note(c, e.message);
    if (r->progress)
        r->progress(r->arg, r->n_elements);
}

static int check_meaning(const char *dir, struct check *c, struct err *e)
{
    struct shard_options options = {.dir = dir};
    struct shard *s = shard_allocate(&options);
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory");
    int rc = store_open(&s->store, dir, &(struct store_options){.read_only = true}, e);
    if (rc == 0) {
        struct err damage = {0};
        if (recovery_load(s, &damage) != 0)
            found(c, "keys", damage.message);
        else
            for (uint32_t db = 0; db < KEYSPACE_ALL_DBS; db++)
                keyspace_each(s->keyspace, db, check_key, c);
    }
    shard_release(s);
    return rc;
}

int64_t shard_check(const char *dir, struct shard_check_report *report, struct err *e)
{
    struct check c = {.report = report};
    char path[4096];
    if (snprintf(path, sizeof path, "%s/kith.lock", dir) >= (int)sizeof path)
        return err_set(e, KITH_EINVAL, "the path is too long: %s", dir);
    if (!file_exists(path))
        return err_set(e, KITH_ENOTFOUND, "%s is no kith data directory: it has no kith.lock",
                       dir);
    int lock = file_lock(path, e);
    if (lock < 0)
        return err_wrap(e, "a server is running on %s", dir);
    int64_t rc = store_check(dir, file_note, &c, e);
    if (rc == 0)
        rc = check_meaning(dir, &c, e);
    uint64_t after = 0;
    struct store *s;
    if (rc >= 0 && store_open(&s, dir, &(struct store_options){.read_only = true}, NULL) == 0) {
        after = store_state(s).index;
        store_close(s);
    }
    if (rc >= 0) {
        int n = wal_check(dir, after, file_note, &c, e);
        rc = n < 0 ? n : 0;
    }
    file_unlock(lock);
    return rc < 0 ? rc : c.findings;
}
