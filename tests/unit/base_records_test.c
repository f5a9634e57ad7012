#include "tests/unit/unit.h"

#include <string.h>

#include "base/epoch.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/records.h"

static void test_quotients_are_exact(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    for (int i = 0; i < 20000; i++) {
        struct records shape = {0};
        uint32_t per_chunk = 1 + (uint32_t)rng_below(&r, i % 2 ? 5000 : UINT32_MAX - 1);
        records_shape(&shape, per_chunk, 4);
        uint32_t at[] = {0, per_chunk - 1, per_chunk, UINT32_MAX, (uint32_t)rng_next(&r)};
        for (size_t j = 0; j < sizeof at / sizeof *at; j++)
            assert_int_equal(records_chunk_of(&shape, at[j]), at[j] / per_chunk);
    }
}

static void test_heap_array(void **state)
{
    (void)state;
    static const uint32_t strides[] = {4, 48, 100, 65536, 200000};
    for (size_t s = 0; s < sizeof strides / sizeof *strides; s++) {
        struct records *r = records_heap_new(strides[s]);
        uint32_t n = strides[s] > 1000 ? 20 : 5000;
        epoch_enter();
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(records_grow(r, i + 1, NULL), 0);
            char *p = records_writable(r, i, NULL);
            for (uint32_t b = 0; b < 4; b++)
                assert_int_equal(p[b], 0);
            memcpy(p, &i, sizeof i);
        }
        for (uint32_t i = 0; i < n; i++)
            assert_memory_equal(records_at(r, i, NULL), &i, sizeof i);
        epoch_exit();
        records_heap_free(r);
    }
    epoch_synchronize();
}

static void test_growth_without_memory(void **state)
{
    (void)state;
    struct records *r = records_heap_new(1000);
    assert_int_equal(records_grow(r, 10, NULL), 0);
    struct err e;
    for (long n = 1; n < 6; n++) {
        mem_fail_after(n);
        int rc = records_grow(r, 100000, &e);
        mem_fail_after(0);
        assert_int_equal(rc, KITH_ENOMEM);
        assert_int_equal(records_count(r), 10);
    }
    records_heap_free(r);
}

static void test_slots(void **state)
{
    (void)state;
    assert_int_equal(hash_slot("123456789", 9), 12739); /* the CRC's published check value */
    assert_int_equal(hash_slot("{user}.a", 8), hash_slot("user", 4));
    assert_int_equal(hash_slot("{}a", 3), hash_slot("{}a", 3));
    assert_int_not_equal(hash_slot("{}a", 3), hash_slot("", 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quotients_are_exact),
        cmocka_unit_test(test_heap_array),
        cmocka_unit_test(test_growth_without_memory),
        cmocka_unit_test(test_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
