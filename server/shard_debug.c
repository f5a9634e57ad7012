/* DEBUG DIGEST and DEBUG RELOAD: for tests that the data is what it should be, and that what a
 * checkpoint wrote is what it took. */
#include "base/hash.h"
#include "base/log.h"
#include "server/client.h"
#include "server/shard_parts.h"

struct digest {
    struct shard *s;
    uint64_t out[2];
    struct buf b;
    int rc;
    struct err *e;
};

static void digest_set(struct digest *d, struct vset *v)
{
    const struct vset_params *p = vset_params(v);
    struct vset_model model = vset_model(v);
    uint64_t elements[2];
    d->rc = vset_digest(v, d->s->now_ms, elements, d->e);
    buf_u8(&d->b, (uint8_t)p->index.kind);
    buf_u8(&d->b, (uint8_t)p->index.quant);
    buf_u8(&d->b, (uint8_t)p->index.metric);
    buf_u8(&d->b, (uint8_t)p->keep);
    buf_u8(&d->b, p->declared);
    buf_u32(&d->b, p->index.dim);
    buf_u32(&d->b, p->index.m);
    buf_u32(&d->b, p->index.ef_construction);
    buf_u32(&d->b, p->projection_dim);
    buf_bytes(&d->b, model.name, strlen(model.name));
    buf_bytes(&d->b, model.hash, strlen(model.hash));
    buf_bytes(&d->b, model.pooling, strlen(model.pooling));
    buf_u64(&d->b, elements[0]);
    buf_u64(&d->b, elements[1]);
}

static void digest_value(struct digest *d, const struct key *k)
{
    buf_u8(&d->b, k->type);
    buf_u64(&d->b, (uint64_t)k->expire_ms);
    if (k->type == OBJECT_STRING)
        buf_append(&d->b, k->string->data, k->string->n);
    else
        digest_set(d, k->vset);
    if (d->rc == 0 && d->b.failed)
        d->rc = err_set(d->e, KITH_ENOMEM, "out of memory");
    d->out[0] ^= hash64_seed(d->b.data, d->b.len, 1);
    d->out[1] ^= hash64_seed(d->b.data, d->b.len, 2);
}

static void digest_key(void *arg, struct key *k)
{
    struct digest *d = arg;
    if (d->rc != 0 || (k->expire_ms && k->expire_ms <= d->s->now_ms))
        return;
    buf_clear(&d->b);
    buf_u8(&d->b, k->db);
    buf_bytes(&d->b, k->name, k->name_n);
    digest_value(d, k);
}

int shard_digest_value(struct shard *s, struct key *k, uint64_t out[2], struct err *e)
{
    struct digest d = {.s = s, .e = e};
    digest_value(&d, k);
    buf_deinit(&d.b);
    out[0] = d.out[0];
    out[1] = d.out[1];
    return d.rc;
}

int shard_digest(struct shard *s, uint64_t out[2], struct err *e)
{
    struct digest d = {.s = s, .e = e};
    for (uint32_t db = 0; db < KEYSPACE_ALL_DBS; db++)
        keyspace_each(s->keyspace, db, digest_key, &d);
    buf_deinit(&d.b);
    out[0] = d.out[0];
    out[1] = d.out[1];
    return d.rc;
}

static bool all_is_in_the_store(struct shard *s)
{
    struct checkpoint_state *c = &s->checkpoint;
    pthread_mutex_lock(&c->lock);
    bool idle = !c->running && c->requested == c->started;
    pthread_mutex_unlock(&c->lock);
    return idle && wal_last(s->wal) == store_state(s->store).index;
}

static int reload(struct shard *s, struct err *e)
{
    struct checkpoint_state *c = &s->checkpoint;
    struct keyspace *before = s->keyspace;
    struct keyspace *fresh =
        keyspace_new(&(struct keyspace_hooks){shard_drop_vset, shard_place_vset, s});
    if (!fresh)
        return err_set(e, KITH_ENOMEM, "out of memory");
    uint32_t n_sets = c->n_sets, n_purge = c->n_purge, next_set_id = s->next_set_id;
    keyspace_continue_versions(fresh, before);
    s->keyspace = fresh;
    c->n_sets = c->n_purge = 0;
    int rc = recovery_load(s, e);
    /* Those that are put away are only let go: their arrays in the store belong to the others.
     */
    s->keep_stored = true;
    keyspace_free(rc == 0 ? before : fresh);
    s->keep_stored = false;
    if (rc != 0) {
        s->keyspace = before;
        c->n_sets = n_sets;
        c->n_purge = n_purge;
        s->next_set_id = next_set_id;
    }
    return rc;
}

/* Writers are held back while a reload waits for its checkpoint, or it would start over after
 * each of their changes. When the client that asked has gone, they wait this long and no
 * longer. */
enum { RELOAD_PATIENCE_MS = 1000 };

int shard_reload(struct shard *s, struct client *c, struct err *e)
{
    if (!all_is_in_the_store(s)) {
        s->reload_until_ms = s->now_ms + RELOAD_PATIENCE_MS;
        /* Onto the list first, so that a checkpoint that ends at once still wakes the client.
         */
        waitlist_add(s->checkpoint.waiters, client_ref(c));
        shard_checkpoint_start(s);
        return 0;
    }
    int rc = reload(s, e);
    s->reload_until_ms = 0;
    shard_wake_writers(s);
    return rc == 0 ? 1 : rc;
}
