/* Half precision and the tensor types: every bit pattern of a half, ties and edges of rounding,
 * and rows read back as floats. */

#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/random.h"
#include "engine/half.h"
#include "engine/tensor.h"
#include "tests/unit/unit.h"

/* The value of a half by the definition of IEEE 754, in double. */
static double half_value(uint16_t h)
{
    int exponent = h >> 10 & 31;
    double m = h & 1023, sign = h & 0x8000 ? -1 : 1;
    if (exponent == 31)
        return m != 0 ? (double)NAN : sign * (double)INFINITY;
    return sign * (exponent ? ldexp(1 + m / 1024, exponent - 15) : ldexp(m / 1024, -14));
}

static void every_half_round_trips(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        double want = half_value(h);
        float got = half_to_f32(h);
        if (isnan(want)) {
            assert_true(isnan(got));
            assert_true(isnan(half_to_f32(half_from_f32(got))));
            continue;
        }
        assert_true((double)got == want);
        assert_int_equal(half_from_f32(got), h);
    }
}

/* Rounding picks the nearer neighbour, and the even one of two equally near. */
static void rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 0x7bff; i++) {
        double lo = half_value((uint16_t)i), hi = half_value((uint16_t)(i + 1));
        float middle = (float)((lo + hi) / 2); /* exact: one bit more than a half has */
        uint16_t even = (uint16_t)(i + (i & 1));
        assert_int_equal(half_from_f32(middle), even);
        assert_int_equal(half_from_f32(-middle), even | 0x8000);
        assert_int_equal(half_from_f32(nextafterf(middle, 0)), i);
        assert_int_equal(half_from_f32(nextafterf(middle, INFINITY)), i + 1);
    }
    assert_int_equal(half_from_f32(65519.0f), 0x7bff);
    assert_int_equal(half_from_f32(65520.0f), 0x7c00);
    assert_int_equal(half_from_f32(1e-30f), 0);
}

static void bf16_rounds(void **state)
{
    (void)state;
    assert_int_equal(half_bf16_from_f32(1.0f), 0x3f80);
    assert_int_equal(half_bf16_from_f32(1.00390625f), 0x3f80); /* a tie, down to even */
    assert_int_equal(half_bf16_from_f32(1.01171875f), 0x3f82); /* a tie, up to even */
    assert_true(isnan(half_bf16_to_f32(half_bf16_from_f32(NAN))));
    assert_true(half_bf16_to_f32(0xc040) == -3.0f);
}

static void rows_of_each_type(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, 7);
    unsigned char bytes[2 * 2 * 34];
    float want[2][64], got[64];
    struct tensor t = {.n_dims = 2, .ne = {64, 2, 1, 1}, .data = bytes};
    t.type = TENSOR_Q8_0;
    for (int b = 0; b < 4; b++) {
        store_u16(bytes + b * 34, half_from_f32(0.25f * (float)(b + 1)));
        for (int i = 0; i < 32; i++) {
            int8_t q = (int8_t)(rng_below(&rng, 256) - 128);
            bytes[b * 34 + 2 + i] = (unsigned char)q;
            want[b / 2][b % 2 * 32 + i] = 0.25f * (float)(b + 1) * (float)q;
        }
    }
    for (uint64_t r = 0; r < 2; r++) {
        tensor_row_f32(&t, r, got);
        assert_memory_equal(got, want[r], sizeof got);
    }
    t.type = TENSOR_BF16;
    t.ne[0] = 4;
    store_u16(bytes + 8, 0x3f80);
    tensor_row_f32(&t, 1, got);
    assert_true(got[0] == 1.0f);
    t.type = TENSOR_F16;
    store_u16(bytes + 8, 0x3c00);
    tensor_row_f32(&t, 1, got);
    assert_true(got[0] == 1.0f);
    t.type = TENSOR_F32;
    store_f32(bytes + 16, -2.5f);
    tensor_row_f32(&t, 1, got);
    assert_true(got[0] == -2.5f);
}

static void row_bytes(void **state)
{
    (void)state;
    size_t n;
    struct err e;
    assert_int_equal(tensor_row_bytes(TENSOR_Q8_0, 384, &n, &e), 0);
    assert_int_equal(n, 408);
    assert_int_equal(tensor_row_bytes(TENSOR_Q8_0, 33, &n, &e), KITH_EFORMAT);
    assert_int_equal(tensor_row_bytes(TENSOR_Q6_K, 512, &n, &e), 0);
    assert_int_equal(n, 420);
    assert_int_equal(tensor_row_bytes(TENSOR_Q6_K, 384, &n, &e), KITH_EFORMAT);
    assert_int_equal(tensor_row_bytes(TENSOR_F32, UINT64_MAX / 2, &n, &e), KITH_EFORMAT);
    assert_int_equal(tensor_row_bytes((enum tensor_type)10, 256, &n, &e), KITH_EUNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_round_trips),
        cmocka_unit_test(rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds),
        cmocka_unit_test(rows_of_each_type),
        cmocka_unit_test(row_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
