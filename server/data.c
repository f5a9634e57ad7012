#include "server/data.h"

#include "server/reembed.h"
#include "server/server.h"
#include "server/shard_parts.h"

struct keyspace *data_keyspace(struct client *c)
{
    return c->server->shard->keyspace;
}

int64_t data_now_ms(struct client *c)
{
    return c->server->shard->now_ms;
}

/* The key after elements of it that expired have gone, perhaps with the key. */
static struct key *without_expired(struct client *c, struct key *k, struct slice name)
{
    struct shard *s = c->server->shard;
    if (!k || k->type != OBJECT_VSET || vset_next_expiry(k->vset) > s->now_ms)
        return k;
    shard_expire_elements(s, k->vset);
    return keyspace_find(s->keyspace, c->db, name, s->now_ms);
}

struct key *data_find(struct client *c, struct slice name)
{
    struct shard *s = c->server->shard;
    struct key *k = keyspace_find(s->keyspace, c->db, name, s->now_ms);
    k = without_expired(c, k, name);
    if (k)
        s->hits++;
    else
        s->misses++;
    return k;
}

struct key *data_find_for_write(struct client *c, struct slice name)
{
    struct shard *s = c->server->shard;
    struct key *k = keyspace_find_raw(s->keyspace, c->db, name);
    if (!k || !k->expire_ms || k->expire_ms > s->now_ms)
        return without_expired(c, k, name);
    struct effect f = {.op = EFFECT_DEL, .db = c->db, .key = name};
    struct err e;
    if (effect_do(s, &f, &e) == 0)
        s->expired_keys++;
    return NULL;
}

static bool of_type(struct client *c, struct key *k, enum object_type type)
{
    if (!k || k->type == type)
        return true;
    reply_wrong_type(c);
    return false;
}

bool data_find_type(struct client *c, struct slice name, enum object_type type, struct key **k)
{
    *k = data_find(c, name);
    return of_type(c, *k, type);
}

bool data_find_type_for_write(struct client *c, struct slice name, enum object_type type,
                              struct key **k)
{
    *k = data_find_for_write(c, name);
    return of_type(c, *k, type);
}

bool data_do(struct client *c, struct effect *f)
{
    struct err e = {0};
    f->db = c->db;
    if (f->op != EFFECT_RENAME)
        f->to_db = 0;
    if (effect_do(c->server->shard, f, &e) == 0)
        return true;
    reply_err(c, &e);
    return false;
}

bool data_set(struct client *c, struct slice name, struct slice value, int64_t expire_ms)
{
    struct effect f = {.op = EFFECT_SET, .key = name, .value = value, .expire_ms = expire_ms};
    return data_do(c, &f);
}

bool data_delete(struct client *c, struct slice name)
{
    struct effect f = {.op = EFFECT_DEL, .key = name};
    return data_do(c, &f);
}

bool data_expire(struct client *c, struct slice name, int64_t expire_ms)
{
    struct effect f = {.op = EFFECT_EXPIRE, .key = name, .expire_ms = expire_ms};
    return data_do(c, &f);
}

bool data_wait_for_room(struct client *c)
{
    struct shard *s = c->server->shard;
    if (c->in_exec)
        return false; /* a transaction cannot stop half way; it is bounded by its own length */
    waitlist_add(s->room, client_ref(c));
    atomic_store(&s->waiting_for_room, true);
    return true;
}

struct reembed *data_reembed(struct client *c)
{
    return c->server->shard->reembed;
}

bool data_wait_for_reembed(struct client *c)
{
    return reembed_holds(data_reembed(c), c->db, c->argv[1]) && data_wait_for_room(c);
}
