/* The keyspace against a plain model, with checkpoints that take their time. */
#include "tests/unit/unit.h"

#include <string.h>

#include "base/mem.h"
#include "server/keyspace.h"

enum { NAMES = 300, STEPS = 20000, IMAGES = 7 };

struct model {
    bool exists;
    uint32_t value;
    int64_t expire_ms;
};

/* What the store would hold: by key number. */
struct stored {
    bool exists;
    uint32_t name, value;
    int64_t expire_ms;
};

enum { IDS = STEPS + NAMES };

struct world {
    struct keyspace *ks;
    struct model now[NAMES], frozen[NAMES];
    struct stored *store, *writing; /* IDS each; writing is the transaction under way */
    struct rng r;
    bool freezing;
};

static void no_vset(void *arg, struct vset *v)
{
    (void)arg;
    (void)v;
    abort();
}

static void no_place(void *arg, struct vset *v, struct key *k)
{
    (void)arg;
    (void)v;
    (void)k;
    abort();
}

static struct slice name_of(uint32_t i, char out[16])
{
    int n = snprintf(out, 16, "key:%u", i);
    return (struct slice){out, (size_t)n};
}

static void change(struct world *w)
{
    char text[16];
    uint32_t i = (uint32_t)rng_below(&w->r, NAMES);
    struct slice name = name_of(i, text);
    struct model *m = &w->now[i];
    struct key *k = keyspace_find_raw(w->ks, 0, name);
    assert_int_equal(k != NULL, m->exists);
    assert_int_equal(keyspace_reserve_dirty(w->ks, 4), 0);
    switch (rng_below(&w->r, 6)) {
    case 0:
    case 1:
    case 2: {
        uint32_t v = (uint32_t)rng_next(&w->r);
        if (!k)
            k = keyspace_create(w->ks, 0, name);
        key_set_string(w->ks, k, blob_new(&v, sizeof v));
        m->exists = true;
        m->value = v;
        break;
    }
    case 3:
        if (k)
            keyspace_delete(w->ks, k);
        *m = (struct model){0};
        break;
    case 4:
        if (k) {
            int64_t at = rng_below(&w->r, 3) ? (int64_t)rng_below(&w->r, 100000) + 1 : 0;
            assert_int_equal(key_set_expire(w->ks, k, at), 0);
            m->expire_ms = at;
        }
        break;
    case 5: {
        uint32_t to = (uint32_t)rng_below(&w->r, NAMES);
        char to_text[16];
        struct key *old = keyspace_find_raw(w->ks, 0, name_of(to, to_text));
        if (!k || to == i)
            break;
        if (old)
            keyspace_delete(w->ks, old);
        assert_int_equal(keyspace_rename(w->ks, k, 0, name_of(to, to_text)), 0);
        w->now[to] = *m;
        *m = (struct model){0};
        break;
    }
    }
}

static void drain(struct world *w)
{
    struct key_image images[IMAGES];
    uint64_t n = keyspace_drain(w->ks, images, IMAGES);
    for (uint64_t i = 0; i < n; i++) {
        struct stored *s = &w->writing[images[i].id];
        *s = (struct stored){0};
        if (!images[i].deleted) {
            s->exists = true;
            char name[16] = {0};
            memcpy(name, images[i].name.p, images[i].name.n);
            s->name = (uint32_t)strtoul(name + 4, NULL, 10);
            s->expire_ms = images[i].expire_ms;
            assert_int_equal(images[i].string->n, 4);
            s->value = load_u32(images[i].string->data);
        }
        blob_unref(images[i].string);
    }
    if (n > 0)
        return;
    /* All given: the store must now be the state at the freeze. A failed commit leaves the old.
     */
    bool committed = rng_below(&w->r, 3) != 0;
    keyspace_thaw(w->ks, committed);
    w->freezing = false;
    if (!committed)
        return;
    memcpy(w->store, w->writing, IDS * sizeof *w->store);
    uint32_t seen = 0, want = 0;
    for (uint32_t id = 0; id < IDS; id++)
        if (w->store[id].exists) {
            struct model *m = &w->frozen[w->store[id].name];
            assert_true(m->exists);
            assert_int_equal(m->value, w->store[id].value);
            assert_int_equal(m->expire_ms, w->store[id].expire_ms);
            seen++;
        }
    for (uint32_t i = 0; i < NAMES; i++)
        want += w->frozen[i].exists;
    assert_int_equal(seen, want);
}

static void test_checkpoints_hold_the_state_at_the_freeze(void **state)
{
    (void)state;
    struct world *w = mem_calloc(1, sizeof *w);
    w->store = mem_calloc(IDS, sizeof *w->store);
    w->writing = mem_calloc(IDS, sizeof *w->writing);
    rng_seed(&w->r, unit_seed());
    w->ks =
        keyspace_new(&(struct keyspace_hooks){.vset_drop = no_vset, .vset_place = no_place});
    for (int step = 0; step < STEPS; step++) {
        change(w);
        if (!w->freezing && rng_below(&w->r, 200) == 0) {
            keyspace_freeze(w->ks);
            memcpy(w->frozen, w->now, sizeof w->now);
            memcpy(w->writing, w->store, IDS * sizeof *w->store);
            w->freezing = true;
        } else if (w->freezing && rng_below(&w->r, 3) == 0) {
            drain(w);
        }
    }
    while (w->freezing)
        drain(w);
    uint64_t keys = 0, expires = 0;
    for (uint32_t i = 0; i < NAMES; i++) {
        keys += w->now[i].exists;
        expires += w->now[i].exists && w->now[i].expire_ms;
    }
    assert_int_equal(keyspace_count(w->ks, 0), keys);
    assert_int_equal(keyspace_count_expires(w->ks, 0), expires);
    keyspace_free(w->ks);
    mem_free(w->store);
    mem_free(w->writing);
    mem_free(w);
}

static void test_expiry_order(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct keyspace *ks =
        keyspace_new(&(struct keyspace_hooks){.vset_drop = no_vset, .vset_place = no_place});
    char text[16];
    for (uint32_t i = 0; i < NAMES; i++) {
        struct key *k = keyspace_create(ks, i % KEYSPACE_DBS, name_of(i, text));
        assert_int_equal(keyspace_reserve_dirty(ks, 2), 0);
        key_set_string(ks, k, blob_new("v", 1));
        assert_int_equal(key_set_expire(ks, k, 1 + (int64_t)rng_below(&r, 1000)), 0);
    }
    int64_t last = 0;
    uint32_t n = 0;
    for (struct key *k; (k = keyspace_expired(ks, 1000)); n++) {
        assert_true(k->expire_ms >= last);
        last = k->expire_ms;
        assert_null(keyspace_find(ks, k->db, key_name(k), 1000));
        assert_int_equal(keyspace_reserve_dirty(ks, 1), 0);
        keyspace_delete(ks, k);
    }
    assert_int_equal(n, NAMES);
    keyspace_free(ks);
}

static void test_versions_for_watch(void **state)
{
    (void)state;
    struct keyspace *ks =
        keyspace_new(&(struct keyspace_hooks){.vset_drop = no_vset, .vset_place = no_place});
    char text[16];
    struct key *k = keyspace_create(ks, 0, name_of(1, text));
    key_set_string(ks, k, blob_new("a", 1));
    uint64_t first = k->version;
    key_set_string(ks, k, blob_new("a", 1));
    assert_true(k->version != first);
    first = k->version;
    key_changed_inside(ks, k);
    assert_true(k->version != first);
    first = k->version;
    assert_int_equal(keyspace_flush(ks, 0), 0);
    k = keyspace_create(ks, 0, name_of(1, text));
    key_set_string(ks, k, blob_new("a", 1));
    assert_true(k->version > first);
    keyspace_free(ks);
}

static void test_shared_values_are_not_changed_in_place(void **state)
{
    (void)state;
    struct blob *a = blob_new("abc", 3), *held = blob_ref(a);
    struct blob *b = blob_append(a, "def", 3);
    assert_ptr_not_equal(b, held);
    assert_int_equal(held->n, 3);
    assert_memory_equal(b->data, "abcdef", 6);
    struct blob *c = blob_append(b, "g", 1);
    assert_ptr_equal(c, b); /* alone and with room: in place */
    assert_int_equal(c->n, 7);
    blob_unref(held);
    blob_unref(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkpoints_hold_the_state_at_the_freeze),
        cmocka_unit_test(test_expiry_order),
        cmocka_unit_test(test_versions_for_watch),
        cmocka_unit_test(test_shared_values_are_not_changed_in_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
