#include "tests/unit/unit.h"

#include "base/dict.h"
#include "base/hash.h"
#include "base/mem.h"

enum { KEYS = 5000 };

struct entry {
    struct dict_node node;
    uint32_t key;
    bool in, throughout, seen;
};

static bool equal(const struct dict_node *n, const void *key)
{
    return ((const struct entry *)n)->key == *(const uint32_t *)key;
}

static struct entry *make_entries(uint64_t spread)
{
    struct entry *e = mem_calloc(KEYS, sizeof *e);
    for (uint32_t i = 0; i < KEYS; i++) {
        e[i].key = i;
        e[i].node.hash = hash_mix(i) % spread; /* a small spread makes long chains */
    }
    return e;
}

static void check_all(struct dict *d, struct entry *e)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < KEYS; i++) {
        struct dict_node *found = dict_find(d, e[i].node.hash, equal, &i);
        assert_ptr_equal(found, e[i].in ? &e[i].node : NULL);
        n += e[i].in;
    }
    assert_int_equal(dict_count(d), n);
}

static void toggle(struct dict *d, struct entry *e)
{
    if (e->in)
        dict_remove(d, &e->node);
    else
        assert_int_equal(dict_insert(d, &e->node), 0);
    e->in = !e->in;
}

static void test_model(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct entry *e = make_entries(r.s[0] % 2 ? 700 : UINT64_MAX);
    struct dict d;
    dict_init(&d);
    for (int phase = 0; phase < 20; phase++) {
        uint64_t range = 1 + rng_below(&r, KEYS);
        for (int i = 0; i < 2000; i++)
            toggle(&d, &e[rng_below(&r, range)]);
        check_all(&d, e);
    }
    for (int i = 0; i < 1000 && dict_count(&d); i++)
        assert_true(((struct entry *)dict_random(&d, &r))->in);
    dict_deinit(&d);
    mem_free(e);
}

static void mark(void *arg, struct dict_node *n)
{
    (void)arg;
    ((struct entry *)n)->seen = true;
}

static void test_scan_during_changes(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct entry *e = make_entries(UINT64_MAX);
    for (int round = 0; round < 30; round++) {
        struct dict d;
        dict_init(&d);
        uint64_t start = rng_below(&r, KEYS);
        for (uint64_t i = 0; i < KEYS; i++) {
            e[i].in = e[i].seen = false;
            e[i].throughout = i < start && i % 3 == 0;
            if (i < start)
                toggle(&d, &e[i]);
        }
        uint64_t cursor = 0;
        bool grow = round % 2;
        do {
            cursor = dict_scan(&d, cursor, mark, NULL);
            for (int i = 0; i < 20; i++) { /* grows or shrinks while it is walked */
                struct entry *x = &e[rng_below(&r, KEYS)];
                if (!x->throughout && x->in != grow)
                    toggle(&d, x);
            }
        } while (cursor);
        for (uint64_t i = 0; i < KEYS; i++)
            if (e[i].throughout)
                assert_true(e[i].seen);
        dict_deinit(&d);
    }
    mem_free(e);
}

static void test_without_memory(void **state)
{
    (void)state;
    struct entry *e = make_entries(UINT64_MAX);
    struct dict d;
    dict_init(&d);
    mem_fail_after(1);
    assert_int_not_equal(dict_insert(&d, &e[0].node), 0);
    mem_fail_after(0);
    toggle(&d, &e[0]);
    mem_fail_after(1);
    for (int i = 1; i < 100; i++) /* cannot grow, still takes everything */
        toggle(&d, &e[i]);
    mem_fail_after(0);
    check_all(&d, e);
    dict_deinit(&d);
    mem_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_scan_during_changes),
        cmocka_unit_test(test_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
