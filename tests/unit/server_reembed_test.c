/* What of re-embedding is pure: names in order, when writers wait, names of successors; and the
 * keyspace's part of a switch, also under a checkpoint. */
#include "tests/unit/unit.h"

#include <string.h>

#include "base/mem.h"
#include "server/keyspace.h"
#include "server/reembed_names.h"
#include "server/successor.h"
#include "server/vset.h"

enum { NAMES = 200, STEPS = 20000 };

static struct slice name_of(uint32_t i, char out[16])
{
    int n = snprintf(out, 16, "e%u", i);
    return (struct slice){.p = out, .n = (size_t)n};
}

/* Against a plain array. */
static void test_names_come_in_order_and_once(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct reembed_names q;
    uint32_t waiting[NAMES], n = 0;
    bool there[NAMES] = {false};
    struct buf out;
    char text[16];
    reembed_names_init(&q);
    buf_init(&out);
    for (int i = 0; i < STEPS; i++) {
        if (rng_below(&r, 100) < 55) {
            uint32_t name = (uint32_t)rng_below(&r, NAMES);
            assert_true(reembed_names_add(&q, name_of(name, text)));
            if (!there[name])
                waiting[n++] = name;
            there[name] = true;
        } else {
            buf_clear(&out);
            assert_int_equal(reembed_names_take(&q, &out), n > 0);
            if (n > 0) {
                struct slice got = {out.data, out.len};
                assert_true(slice_equal(got, name_of(waiting[0], text)));
                there[waiting[0]] = false;
                memmove(waiting, waiting + 1, --n * sizeof *waiting);
            }
        }
        assert_int_equal(q.n, n);
        if (rng_below(&r, 1000) == 0) {
            reembed_names_clear(&q);
            assert_int_equal(q.bytes, 0);
            memset(there, 0, sizeof there);
            n = 0;
        }
    }
    reembed_names_deinit(&q);
    buf_deinit(&out);
}

static void test_names_are_bounded_and_fail_whole(void **state)
{
    (void)state;
    struct reembed_names q;
    char *name = mem_calloc(1, VSET_NAME_MAX);
    uint32_t n = 0;
    assert_non_null(name);
    reembed_names_init(&q);
    for (bool added = true; added; n += added) {
        memcpy(name, &n, sizeof n);
        added = reembed_names_add(&q, (struct slice){name, VSET_NAME_MAX});
        assert_true(n < 2000); /* 128 MiB */
    }
    assert_true(n > 500); /* 32 MiB */
    assert_int_equal(q.n, n);
    reembed_names_clear(&q);
    for (long at = 1; at <= 2; at++) { /* the name, and the first table */
        mem_fail_after(at);
        assert_false(reembed_names_add(&q, slice_of("e")));
        mem_fail_after(0);
        assert_int_equal(q.n, 0);
    }
    assert_true(reembed_names_add(&q, slice_of("")));
    struct buf out;
    buf_init(&out);
    assert_true(reembed_names_take(&q, &out));
    assert_int_equal(out.len, 0);
    buf_deinit(&out);
    reembed_names_deinit(&q);
    mem_free(name);
}

/* Batches of 64 are taken; meanwhile `per_batch` names are added where writers do not wait. How
 * many batches until nothing is left; *held: in how many of them writers waited. */
static uint32_t batches_until_done(uint64_t left, uint64_t per_batch, uint32_t *held)
{
    struct reembed_pace p = {0};
    bool hold = false;
    uint32_t n = 0;
    for (*held = 0; left > 0; n++) {
        uint64_t taken = left < 64 ? left : 64;
        left -= taken;
        hold |= reembed_pace_step(&p, taken, left); /* until the end, as in reembed_batch.c */
        *held += hold;
        left += hold ? 0 : per_batch;
        assert_true(n < 10000000);
    }
    return n;
}

static void test_it_ends_whatever_writers_do(void **state)
{
    (void)state;
    uint32_t held;
    /* Nobody writes: writers would have waited for the last batches only. */
    assert_int_equal(batches_until_done(64 * 1000, 0, &held), 1000);
    assert_true(held <= REEMBED_FEW_MOST / 64 + 1);
    for (uint64_t left = 1; left <= 100000; left = left * 3 + 1)
        for (uint64_t per_batch = 1; per_batch <= 32; per_batch += 3) {
            /* They write half as fast as is taken, or more slowly: for few they wait. */
            uint32_t n = batches_until_done(left, per_batch, &held);
            assert_true(n > 0 && held <= REEMBED_FEW_MOST / 64 + 1);
        }
    /* As fast, and faster: it ends all the same, after so many laps. */
    assert_true(batches_until_done(640, 64, &held) > 0);
    assert_true(batches_until_done(640, 80, &held) > 0);
    assert_true(held > 0);
}

/* --- successors --- */

static void test_names_of_successors(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    for (uint32_t db = 0; db < KEYSPACE_DBS; db++)
        for (int truncate = 0; truncate < 2; truncate++) {
            struct successor_place place = {db, {"k\0y", 3}, truncate}, back;
            buf_clear(&b);
            successor_write_name(&b, &place);
            assert_true(successor_read_name((struct slice){b.data, b.len}, &back));
            assert_int_equal(back.db, db);
            assert_int_equal(back.truncate, truncate);
            assert_true(slice_equal(back.key, place.key));
        }
    struct successor_place back;
    assert_false(successor_read_name((struct slice){"", 0}, &back));
    assert_false(successor_read_name((struct slice){"\0", 1}, &back));
    assert_false(successor_read_name((struct slice){"\2\0k", 3}, &back));
    assert_false(successor_read_name((struct slice){"\0\20k", 3}, &back));
    assert_true(successor_read_name((struct slice){"\0\17", 2}, &back));
    assert_int_equal(back.key.n, 0);
    buf_deinit(&b);
}

/* Sets that are only looked at as addresses. */
struct hooks {
    const void *dropped, *placed;
    const struct key *at;
};

static void on_drop(void *arg, struct vset *v)
{
    ((struct hooks *)arg)->dropped = v;
}

static void on_place(void *arg, struct vset *v, struct key *k)
{
    struct hooks *h = arg;
    h->placed = v;
    h->at = k;
}

static struct key *add_set(struct keyspace *ks, uint32_t db, struct slice name, void *set,
                           uint32_t id)
{
    assert_int_equal(keyspace_reserve_dirty(ks, 2), 0);
    struct key *k = keyspace_create(ks, db, name);
    assert_non_null(k);
    key_set_vset(ks, k, set, id);
    return k;
}

static struct key *add_successor(struct keyspace *ks, uint32_t db, const char *key,
                                 bool truncate, void *set, uint32_t id)
{
    struct buf b;
    buf_init(&b);
    successor_write_name(&b, &(struct successor_place){db, slice_of(key), truncate});
    struct key *k = add_set(ks, KEYSPACE_HIDDEN_DB, (struct slice){b.data, b.len}, set, id);
    buf_deinit(&b);
    return k;
}

static void test_finding_successors(void **state)
{
    (void)state;
    struct hooks h = {0};
    struct keyspace *ks = keyspace_new(&(struct keyspace_hooks){on_drop, on_place, &h});
    struct key *found;
    char sets[3];
    mem_fail_after(1); /* nothing is asked for where there is none */
    assert_int_equal(successor_find(ks, 0, slice_of("v"), &found), 0);
    mem_fail_after(0);
    assert_null(found);
    struct key *a = add_successor(ks, 0, "v", false, &sets[0], 1);
    struct key *b = add_successor(ks, 3, "v", true, &sets[1], 2);
    assert_int_equal(successor_find(ks, 0, slice_of("v"), &found), 0);
    assert_ptr_equal(found, a);
    assert_int_equal(successor_find(ks, 3, slice_of("v"), &found), 0);
    assert_ptr_equal(found, b);
    assert_int_equal(successor_find(ks, 1, slice_of("v"), &found), 0);
    assert_null(found);
    /* A successor has none, whatever its name says. */
    assert_int_equal(successor_find(ks, KEYSPACE_HIDDEN_DB, slice_of("v"), &found), 0);
    assert_null(found);
    assert_ptr_equal(successor_of_db(ks, 3), b);
    assert_null(successor_of_db(ks, 1));
    mem_fail_after(1);
    assert_int_equal(successor_find(ks, 0, slice_of("v"), &found), KITH_ENOMEM);
    mem_fail_after(0);
    /* One database leaves the hidden one alone, all of them do not. */
    assert_int_equal(keyspace_flush(ks, 0), 0);
    assert_int_equal(keyspace_count(ks, KEYSPACE_HIDDEN_DB), 2);
    assert_int_equal(keyspace_flush(ks, KEYSPACE_DBS), 0);
    assert_int_equal(keyspace_count(ks, KEYSPACE_HIDDEN_DB), 0);
    keyspace_free(ks);
}

/* The image of one key as the checkpoint writes it. */
static struct key_image drained(struct keyspace *ks, uint64_t id)
{
    struct key_image images[8], found = {0};
    for (uint64_t n; (n = keyspace_drain(ks, images, 8)) > 0;)
        for (uint64_t i = 0; i < n; i++)
            if (images[i].id == id)
                found = images[i];
    return found;
}

static void test_a_switch_keeps_the_key_and_its_time(void **state)
{
    (void)state;
    char sets[2];
    for (int freeze = 0; freeze < 2; freeze++) {
        struct hooks h = {0};
        struct keyspace *ks = keyspace_new(&(struct keyspace_hooks){on_drop, on_place, &h});
        struct key *k = add_set(ks, 0, slice_of("v"), &sets[0], 7);
        struct key *s = add_successor(ks, 0, "v", false, &sets[1], 8);
        uint64_t k_id = k->id, s_id = s->id, version = k->version;
        assert_int_equal(key_set_expire(ks, k, 12345), 0);
        if (freeze)
            keyspace_freeze(ks);
        assert_int_equal(keyspace_reserve_dirty(ks, 2), 0);
        keyspace_replace_vset(ks, k, s);
        assert_ptr_equal(h.dropped, &sets[0]);
        assert_ptr_equal(h.placed, &sets[1]);
        assert_ptr_equal(h.at, k);
        assert_true(k->version > version); /* for WATCH */
        assert_int_equal(k->expire_ms, 12345);
        assert_int_equal(k->set_id, 8);
        assert_int_equal(keyspace_count(ks, KEYSPACE_HIDDEN_DB), 0);
        assert_int_equal(keyspace_count_expires(ks, 0), 1);
        if (freeze) {
            /* What is written is the state before it, of both keys. */
            assert_int_equal(drained(ks, k_id).set_id, 7);
            keyspace_thaw(ks, true);
            keyspace_freeze(ks);
            assert_int_equal(drained(ks, k_id).set_id, 8);
            keyspace_thaw(ks, true);
        } else {
            keyspace_freeze(ks);
            assert_true(drained(ks, s_id).deleted);
            keyspace_thaw(ks, true);
        }
        keyspace_free(ks);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_come_in_order_and_once),
        cmocka_unit_test(test_names_are_bounded_and_fail_whole),
        cmocka_unit_test(test_it_ends_whatever_writers_do),
        cmocka_unit_test(test_names_of_successors),
        cmocka_unit_test(test_finding_successors),
        cmocka_unit_test(test_a_switch_keeps_the_key_and_its_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
