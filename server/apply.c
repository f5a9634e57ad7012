/* Effects into memory: the same code for a live command, a restart and (later) a replica. */
#include <stdio.h>

#include "server/effect.h"
#include "server/reembed.h"
#include "server/shard_parts.h"
#include "server/successor.h"

static int no_memory(struct err *e)
{
    return err_set(e, KITH_ENOMEM, "out of memory");
}

static int apply_set(struct shard *s, const struct effect *f, struct err *e)
{
    struct keyspace *ks = s->keyspace;
    struct blob *b = blob_new(f->value.p, f->value.n);
    struct key *successor;
    if (!b || keyspace_reserve_dirty(ks, 3) != 0 ||
        successor_find(ks, f->db, f->key, &successor) != 0) {
        blob_unref(b);
        return no_memory(e);
    }
    struct key *k = keyspace_find_raw(ks, f->db, f->key), *made = NULL;
    if (!k)
        k = made = keyspace_create(ks, f->db, f->key);
    if (!k || (f->expire_ms && key_set_expire(ks, k, f->expire_ms) != 0)) {
        if (made)
            keyspace_delete(ks, made);
        blob_unref(b);
        return no_memory(e);
    }
    key_set_string(ks, k, b);
    if (!f->expire_ms)
        (void)key_set_expire(ks, k, 0); /* taking a time away needs no memory */
    if (successor)
        keyspace_delete(ks, successor);
    return 0;
}

static int apply_append(struct shard *s, const struct effect *f, struct err *e)
{
    struct keyspace *ks = s->keyspace;
    struct key *k = keyspace_find_raw(ks, f->db, f->key);
    if (!k)
        return apply_set(s, f, e);
    if (k->type != OBJECT_STRING)
        return err_set(e, KITH_EINVAL, "append to a key that holds no string");
    if (keyspace_reserve_dirty(ks, 1) != 0)
        return no_memory(e);
    key_touch(ks, k);
    struct blob *b = blob_append(k->string, f->value.p, f->value.n);
    if (!b)
        return no_memory(e);
    k->string = b;
    return 0;
}

static int apply_delete(struct shard *s, const struct effect *f, struct err *e)
{
    struct key *successor;
    if (keyspace_reserve_dirty(s->keyspace, 2) != 0 ||
        successor_find(s->keyspace, f->db, f->key, &successor) != 0)
        return no_memory(e);
    struct key *k = keyspace_find_raw(s->keyspace, f->db, f->key);
    if (k)
        keyspace_delete(s->keyspace, k);
    if (successor)
        keyspace_delete(s->keyspace, successor);
    return 0;
}

static int apply_expire(struct shard *s, const struct effect *f, struct err *e)
{
    if (keyspace_reserve_dirty(s->keyspace, 1) != 0)
        return no_memory(e);
    struct key *k = keyspace_find_raw(s->keyspace, f->db, f->key);
    return !k || key_set_expire(s->keyspace, k, f->expire_ms) == 0 ? 0 : no_memory(e);
}

static int apply_rename(struct shard *s, const struct effect *f, struct err *e)
{
    struct keyspace *ks = s->keyspace;
    struct key *of_from, *of_to;
    if (keyspace_reserve_dirty(ks, 5) != 0 ||
        successor_find(ks, f->db, f->key, &of_from) != 0 ||
        successor_find(ks, f->to_db, f->to_key, &of_to) != 0)
        return no_memory(e);
    struct key *k = keyspace_find_raw(ks, f->db, f->key);
    if (!k)
        return err_set(e, KITH_ENOTFOUND, "no such key");
    struct key *old = keyspace_find_raw(ks, f->to_db, f->to_key);
    if (old == k)
        return 0;
    if (old)
        keyspace_delete(ks, old);
    if (keyspace_rename(ks, k, f->to_db, f->to_key) != 0)
        return no_memory(e);
    if (of_from)
        keyspace_delete(ks, of_from);
    if (of_to)
        keyspace_delete(ks, of_to);
    return 0;
}

static int apply_flush(struct shard *s, const struct effect *f, struct err *e)
{
    struct keyspace *ks = s->keyspace;
    bool all = f->db == EFFECT_ALL_DBS;
    uint64_t n = keyspace_count(ks, KEYSPACE_HIDDEN_DB) + (all ? 0 : keyspace_count(ks, f->db));
    if (keyspace_reserve_dirty(ks, n) != 0 ||
        keyspace_flush(ks, all ? KEYSPACE_DBS : f->db) != 0)
        return no_memory(e);
    for (struct key *k; !all && (k = successor_of_db(ks, f->db));)
        keyspace_delete(ks, k);
    return 0;
}

struct vset_options shard_vset_options(struct shard *s)
{
    return (struct vset_options){.store = s->store,
                                 .tail_max = s->options.tail_max,
                                 .on_work = linker_notify,
                                 .on_dirty = checkpoint_set_dirty,
                                 .arg = s};
}

void shard_drop_vset(void *arg, struct vset *v)
{
    struct shard *s = arg;
    vset_mark_dropped(v);
    s->n_vectors -= vset_count(v);
    if (s->switching) {
        /* Its searches go on: its values stay in the store until they have left. */
        checkpoint_purge_later(s, vset_id(v));
        vset_queue_push(&s->leaving, v);
    } else if (!s->keep_stored) {
        vset_mark_gone(v);
        checkpoint_purge_later(s, vset_id(v));
    }
    vset_unref(v);
}

void shard_place_vset(void *arg, struct vset *v, struct key *k)
{
    (void)arg;
    vset_set_key(v, k);
}

static int make_set(struct shard *s, const struct effect *f, struct key **out, struct err *e)
{
    struct vset_options options = shard_vset_options(s);
    struct vset *v;
    if (!f->params)
        return err_set(e, KITH_ENOTFOUND, "no such vector set");
    if (checkpoint_purge_reserve(s) != 0)
        return no_memory(e);
    int rc = keyspace_reserve_dirty(s->keyspace, 3) != 0
                 ? no_memory(e)
                 : vset_new(&v, s->next_set_id, f->params, f->model, &options, e);
    if (rc != 0) {
        checkpoint_purge_unreserve(s);
        return rc;
    }
    struct key *k = keyspace_create(s->keyspace, f->db, f->key);
    if (!k) {
        checkpoint_purge_unreserve(s);
        vset_mark_dropped(v); /* so that no checkpoint writes it */
        vset_unref(v);
        return no_memory(e);
    }
    key_set_vset(s->keyspace, k, v, s->next_set_id++);
    *out = k;
    return 0;
}

static int apply_vcreate(struct shard *s, const struct effect *f, struct err *e)
{
    struct key *k;
    if (keyspace_find_raw(s->keyspace, f->db, f->key))
        return err_set(e, KITH_EEXISTS, "the key exists");
    return make_set(s, f, &k, e);
}

static int apply_vadd(struct shard *s, struct effect *f, struct err *e)
{
    struct key *k = keyspace_find_raw(s->keyspace, f->db, f->key), *made = NULL;
    if (k && k->type != OBJECT_VSET)
        return err_set(e, KITH_EINVAL, "the key holds no vector set");
    const struct vset_params *p = k ? vset_params(k->vset) : f->params;
    if (p && p->index.dim != f->dim)
        return err_set(e, KITH_EINVAL, "Vector dimension mismatch - got %u but set has %u",
                       f->dim, p->index.dim);
    if (!k) {
        /* Room to take it away again. */
        int rc = keyspace_reserve_dirty(s->keyspace, 4) != 0 ? no_memory(e)
                                                             : make_set(s, f, &made, e);
        if (rc != 0)
            return rc;
        k = made;
    }
    f->made = made != NULL;
    struct vset_element element = {.name = f->value,
                                   .vector = f->vector,
                                   .text = f->text,
                                   .model = f->model,
                                   .attributes = f->attributes,
                                   .expire_ms = f->expire_ms};
    int rc = vset_add(k->vset, &element, &f->added, e);
    if (rc == 0) {
        key_changed_inside(s->keyspace, k);
        s->n_vectors += f->added;
        if (f->expire_ms)
            shard_expiry_watch(s, k->vset);
    } else if (made) {
        keyspace_delete(s->keyspace, made);
    }
    return rc;
}

static int apply_vsetattr(struct shard *s, const struct effect *f, struct err *e)
{
    struct key *k = keyspace_find_raw(s->keyspace, f->db, f->key);
    if (!k || k->type != OBJECT_VSET)
        return err_set(e, KITH_ENOTFOUND, "no such vector set");
    int rc = vset_set_attributes(k->vset, f->value, *f->attributes, e);
    if (rc == 0)
        key_changed_inside(s->keyspace, k);
    return rc;
}

static int apply_vrem(struct shard *s, struct effect *f, struct err *e)
{
    struct key *successor;
    if (keyspace_reserve_dirty(s->keyspace, 2) != 0 ||
        successor_find(s->keyspace, f->db, f->key, &successor) != 0)
        return no_memory(e);
    struct key *k = keyspace_find_raw(s->keyspace, f->db, f->key);
    if (!k || k->type != OBJECT_VSET)
        return err_set(e, KITH_ENOTFOUND, "no such vector set");
    int rc = vset_remove(k->vset, f->value, e);
    if (rc != 0)
        return rc;
    s->n_vectors--;
    /* As with every collection an empty one is no key, but for one that was declared; and a
     * successor stays until the set it is for has gone. */
    bool stays = vset_params(k->vset)->declared || f->db == KEYSPACE_HIDDEN_DB;
    if (vset_count(k->vset) > 0 || stays) {
        key_changed_inside(s->keyspace, k);
        return 0;
    }
    keyspace_delete(s->keyspace, k);
    if (successor)
        keyspace_delete(s->keyspace, successor);
    return 0;
}

static int apply_vswitch(struct shard *s, const struct effect *f, struct err *e)
{
    struct keyspace *ks = s->keyspace;
    struct key *successor, *k = keyspace_find_raw(ks, f->db, f->key);
    if (keyspace_reserve_dirty(ks, 2) != 0 ||
        successor_find(ks, f->db, f->key, &successor) != 0)
        return no_memory(e);
    if (!k || k->type != OBJECT_VSET || !successor)
        return err_set(e, KITH_ENOTFOUND, "no such vector set, or it has no successor");
    s->switching = true;
    keyspace_replace_vset(ks, k, successor);
    s->switching = false;
    return 0;
}

/* Effects that may be on a successor. */
static bool on_hidden(enum effect_op op)
{
    return op == EFFECT_DEL || op == EFFECT_VCREATE || op == EFFECT_VADD || op == EFFECT_VREM ||
           op == EFFECT_VSETATTR;
}

int shard_apply(struct shard *s, struct effect *f, struct err *e)
{
    bool db_ok = f->db < KEYSPACE_DBS || (f->op == EFFECT_FLUSH && f->db == EFFECT_ALL_DBS) ||
                 (f->db == KEYSPACE_HIDDEN_DB && on_hidden(f->op));
    if (!db_ok || f->to_db >= KEYSPACE_DBS)
        return err_set(e, KITH_EINVAL, "database %u does not exist", db_ok ? f->to_db : f->db);
    switch (f->op) {
    case EFFECT_SET:
        return apply_set(s, f, e);
    case EFFECT_APPEND:
        return apply_append(s, f, e);
    case EFFECT_DEL:
        return apply_delete(s, f, e);
    case EFFECT_EXPIRE:
        return apply_expire(s, f, e);
    case EFFECT_RENAME:
        return apply_rename(s, f, e);
    case EFFECT_FLUSH:
        return apply_flush(s, f, e);
    case EFFECT_VADD:
        return apply_vadd(s, f, e);
    case EFFECT_VREM:
        return apply_vrem(s, f, e);
    case EFFECT_VCREATE:
        return apply_vcreate(s, f, e);
    case EFFECT_VSETATTR:
        return apply_vsetattr(s, f, e);
    case EFFECT_VSWITCH:
        return apply_vswitch(s, f, e);
    }
    return err_set(e, KITH_EINVAL, "unknown effect %d", (int)f->op);
}

int effect_do(struct shard *s, struct effect *f, struct err *e)
{
    if (!buf_reserve(&s->effects, effect_bytes(f))) {
        s->effects.failed = false;
        return no_memory(e);
    }
    int rc = shard_apply(s, f, e);
    if (rc == 0)
        effect_encode(&s->effects, f);
    if (rc == 0 && s->reembed)
        reembed_note(s->reembed, f);
    return rc;
}
