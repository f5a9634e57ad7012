#include "server/successor.h"

#include "server/keyspace.h"
#include "server/vset.h"

enum { FLAG_TRUNCATE = 1 };

void successor_write_name(struct buf *to, const struct successor_place *place)
{
    buf_u8(to, place->truncate ? FLAG_TRUNCATE : 0);
    buf_u8(to, (uint8_t)place->db);
    buf_append(to, place->key.p, place->key.n);
}

bool successor_read_name(struct slice name, struct successor_place *place)
{
    const unsigned char *p = (const unsigned char *)name.p;
    if (name.n < SUCCESSOR_PREFIX_BYTES || p[0] > FLAG_TRUNCATE || p[1] >= KEYSPACE_DBS)
        return false;
    *place = (struct successor_place){
        .db = p[1],
        .key = {name.p + SUCCESSOR_PREFIX_BYTES, name.n - SUCCESSOR_PREFIX_BYTES},
        .truncate = p[0] & FLAG_TRUNCATE};
    return true;
}

int successor_find(struct keyspace *ks, uint32_t db, struct slice key, struct key **out)
{
    *out = NULL;
    if (db >= KEYSPACE_DBS || keyspace_count(ks, KEYSPACE_HIDDEN_DB) == 0)
        return 0;
    struct buf name;
    buf_init(&name);
    for (int truncate = 0; truncate < 2 && !*out && !name.failed; truncate++) {
        buf_clear(&name);
        successor_write_name(&name, &(struct successor_place){db, key, truncate});
        if (!name.failed)
            *out =
                keyspace_find_raw(ks, KEYSPACE_HIDDEN_DB, (struct slice){name.data, name.len});
    }
    int rc = name.failed ? KITH_ENOMEM : 0;
    buf_deinit(&name);
    return rc;
}

struct looking {
    uint32_t db;
    struct key *found;
};

static void look_at(void *arg, struct key *k)
{
    struct looking *l = arg;
    struct successor_place place;
    if (successor_read_name(key_name(k), &place) && place.db == l->db)
        l->found = k;
}

struct key *successor_of_db(struct keyspace *ks, uint32_t db)
{
    struct looking l = {.db = db};
    if (keyspace_count(ks, KEYSPACE_HIDDEN_DB) > 0)
        keyspace_each(ks, KEYSPACE_HIDDEN_DB, look_at, &l);
    return l.found;
}

static void add_to_totals(void *arg, struct key *k)
{
    struct successor_totals *t = arg;
    t->n_sets += k->type == OBJECT_VSET;
    t->n_vectors += k->type == OBJECT_VSET ? vset_count(k->vset) : 0;
}

struct successor_totals successor_totals(struct keyspace *ks)
{
    struct successor_totals t = {0};
    if (keyspace_count(ks, KEYSPACE_HIDDEN_DB) > 0)
        keyspace_each(ks, KEYSPACE_HIDDEN_DB, add_to_totals, &t);
    return t;
}
