/* Blocks of every type: values that a block can hold come back as they are, others within the
 * type's error; the codes of the int8 pass; names of what is not computed. That the layouts are
 * GGUF's is asked by tests/integration/test_quantize.py, which states them a second time. */

#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/random.h"
#include "engine/half.h"
#include "engine/tensor.h"
#include "tests/unit/unit.h"

enum { SEED = 11, ROUNDS = 200, N = SUPERBLOCK_ELEMENTS, ROW_BYTES = N * 4 };

static const struct {
    enum tensor_type type;
    size_t elements, bytes;
    double relative; /* of the root mean square of values from a normal distribution */
    double int8;     /* what codes of 8 bits add to it */
} rows[] = {
    {TENSOR_F32, 1, 4, 0, 0.008},         {TENSOR_F16, 1, 2, 0.0005, 0.008},
    {TENSOR_BF16, 1, 2, 0.004, 0.008},    {TENSOR_Q8_0, 32, 34, 0.009, 0},
    {TENSOR_Q4_0, 32, 18, 0.13, 0},       {TENSOR_Q4_1, 32, 20, 0.12, 0.008},
    {TENSOR_Q5_0, 32, 22, 0.065, 0},      {TENSOR_Q5_1, 32, 24, 0.06, 0.008},
    {TENSOR_Q4_K, 256, 144, 0.11, 0.008}, {TENSOR_Q5_K, 256, 176, 0.055, 0.008},
    {TENSOR_Q6_K, 256, 210, 0.03, 0.008}, {TENSOR_IQ4_NL, 32, 18, 0.12, 0},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

static struct rng rng;

static float normal(void)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)rng_unit(&rng);
    return sum - 6;
}

static void there_and_back(enum tensor_type type, const float *x, unsigned char *bytes,
                           float *y)
{
    const struct block_type *b = block_type(type);
    b->encode(x, N / b->elements, bytes);
    b->decode(bytes, N / b->elements, y);
}

static double relative_error(const float *x, const float *y)
{
    double squares = 0, errors = 0;
    for (int i = 0; i < N; i++) {
        squares += (double)x[i] * (double)x[i];
        errors += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    }
    return squares > 0 ? sqrt(errors / squares) : sqrt(errors);
}

static void sizes_are_those_of_the_format(void **state)
{
    (void)state;
    enum tensor_type type;
    size_t n = 0;
    while (block_type_at(n, &type))
        n++;
    assert_int_equal(n, N_ROWS);
    for (int r = 0; r < N_ROWS; r++) {
        assert_int_equal(tensor_block_elements(rows[r].type), rows[r].elements);
        assert_int_equal(tensor_block_bytes(rows[r].type), rows[r].bytes);
    }
    assert_null(block_type((enum tensor_type)10));
}

static void errors_are_bounded(void **state)
{
    (void)state;
    for (int r = 0; r < N_ROWS; r++)
        for (int round = 0; round < ROUNDS; round++) {
            /* From the smallest weights that halves scale to large ones, off the middle too. */
            float x[N], y[N], size = ldexpf(1, round % 24 - 12), off = round % 3 == 0;
            unsigned char bytes[ROW_BYTES];
            for (int i = 0; i < N; i++)
                x[i] = size * (normal() + off);
            there_and_back(rows[r].type, x, bytes, y);
            double error = relative_error(x, y);
            if (!(error <= rows[r].relative))
                fail_msg("%s, round %d: error %.4f, at most %.4f",
                         tensor_type_name(rows[r].type), round, error, rows[r].relative);
        }
}

/* Random blocks of the type, made by encoding, then decoded, are values the block can hold:
 * encoding them again may choose other scales, but must not lose anything that matters. */
static void held_values_come_back(void **state)
{
    (void)state;
    static const enum tensor_type exact[] = {TENSOR_F32,  TENSOR_F16,  TENSOR_BF16,
                                             TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q5_0};
    static const enum tensor_type near[] = {TENSOR_Q4_1, TENSOR_Q5_1, TENSOR_IQ4_NL,
                                            TENSOR_Q6_K};
    for (int round = 0; round < ROUNDS; round++) {
        float x[N], y[N], z[N];
        unsigned char bytes[ROW_BYTES];
        for (int i = 0; i < N; i++)
            x[i] = normal();
        for (size_t t = 0; t < sizeof exact / sizeof *exact; t++) {
            there_and_back(exact[t], x, bytes, y);
            there_and_back(exact[t], y, bytes, z);
            if (relative_error(y, z) != 0)
                fail_msg("%s, round %d: not the same again", tensor_type_name(exact[t]), round);
        }
        for (size_t t = 0; t < sizeof near / sizeof *near; t++) {
            there_and_back(near[t], x, bytes, y);
            there_and_back(near[t], y, bytes, z);
            if (!(relative_error(y, z) < 0.012))
                fail_msg("%s, round %d: error %.5f of values it holds",
                         tensor_type_name(near[t]), round, relative_error(y, z));
        }
    }
}

/* Q4_K and Q5_K with scales and minima that use all 6 bits, and codes that use all of theirs.
 */
static void k_values_come_back(void **state)
{
    (void)state;
    for (int fifth = 0; fifth < 2; fifth++)
        for (int round = 0; round < ROUNDS; round++) {
            const int most = fifth ? 31 : 15;
            float x[N], y[N], d = 0.0078125f, dmin = 0.03125f;
            unsigned char bytes[ROW_BYTES];
            for (int j = 0; j < 8; j++) {
                int s = j == 3 ? 63 : 20 + (int)rng_below(&rng, 44);
                int m = j == 5 ? 63 : (int)rng_below(&rng, 64);
                for (int i = 0; i < 32; i++) {
                    int q = i == 0   ? 0
                            : i == 1 ? most
                                     : (int)rng_below(&rng, (uint64_t)most + 1);
                    x[32 * j + i] = d * (float)s * (float)q - dmin * (float)m;
                }
                /* A minimum above all values is none that a block can say. */
                if (x[32 * j] > 0)
                    x[32 * j] = 0;
            }
            there_and_back(fifth ? TENSOR_Q5_K : TENSOR_Q4_K, x, bytes, y);
            if (!(relative_error(x, y) < 1e-6))
                fail_msg("Q%d_K, round %d: error %g", fifth ? 5 : 4, round,
                         relative_error(x, y));
        }
}

static void extremes(void **state)
{
    (void)state;
    for (int r = 0; r < N_ROWS; r++) {
        static const float values[] = {0, 65504, -65504, 1e-30f, -1e-42f, 6e-8f, -1, 1};
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            float x[N], y[N];
            unsigned char bytes[ROW_BYTES];
            for (int i = 0; i < N; i++)
                x[i] = values[v];
            there_and_back(rows[r].type, x, bytes, y);
            double most = fmax(fabs((double)values[v]) * 0.02, 1e-6);
            for (int i = 0; i < N; i++)
                if (!(fabs((double)x[i] - (double)y[i]) <= most))
                    fail_msg("%s: %g became %g", tensor_type_name(rows[r].type), (double)x[i],
                             (double)y[i]);
        }
    }
}

/* A row as int8 codes: exact where the type is codes, near elsewhere. */
static void rows_of_codes(void **state)
{
    (void)state;
    for (int r = 0; r < N_ROWS; r++)
        for (int round = 0; round < ROUNDS; round++) {
            float x[2 * N], y[N], z[N], scales[N / BLOCK_ELEMENTS];
            unsigned char bytes[2 * ROW_BYTES];
            int8_t codes[N];
            const struct block_type *b = block_type(rows[r].type);
            struct tensor t = {
                .type = rows[r].type, .n_dims = 2, .ne = {N, 2, 1, 1}, .data = bytes};
            for (int i = 0; i < 2 * N; i++)
                x[i] = normal();
            b->encode(x, 2 * N / b->elements, bytes);
            tensor_row_f32(&t, 1, y);
            tensor_row_int8(&t, 1, codes, scales);
            for (int i = 0; i < N; i++) {
                assert_true(codes[i] >= -127);
                z[i] = scales[i / BLOCK_ELEMENTS] * (float)codes[i];
            }
            double error = relative_error(y, z);
            if (!(error <= rows[r].int8))
                fail_msg("%s, round %d: error %.5f, at most %.5f", b->name, round, error,
                         rows[r].int8);
        }
}

/* Codes on a grid use a part of its step: much nearer than any scale would be. */
static void offsets_meet_the_grid(void **state)
{
    (void)state;
    double with_step = 0, without = 0;
    for (int round = 0; round < ROUNDS; round++) {
        float x[N], y[N], z[N], scales[N / BLOCK_ELEMENTS];
        unsigned char bytes[ROW_BYTES];
        int8_t codes[N];
        for (int i = 0; i < N; i++)
            x[i] = normal();
        there_and_back(TENSOR_Q4_1, x, bytes, y);
        struct tensor t = {.n_dims = 1, .ne = {N, 1, 1, 1}};
        for (int grid = 0; grid < 2; grid++) {
            t.type = grid ? TENSOR_Q4_1 : TENSOR_F32;
            t.data = grid ? (const void *)bytes : (const void *)y;
            tensor_row_int8(&t, 0, codes, scales);
            for (int i = 0; i < N; i++)
                z[i] = scales[i / BLOCK_ELEMENTS] * (float)codes[i];
            *(grid ? &with_step : &without) += relative_error(y, z);
        }
    }
    assert_true(with_step < 0.7 * without);
}

static void codes_of_what_is_no_number(void **state)
{
    (void)state;
    unsigned char q8_0[34] = {0x00, 0x3c}; /* d = 1 */
    int8_t codes[BLOCK_ELEMENTS];
    float scale, values[BLOCK_ELEMENTS] = {1, NAN};
    struct tensor t = {.type = TENSOR_Q8_0, .n_dims = 1, .ne = {32, 1, 1, 1}, .data = q8_0};
    q8_0[5] = 0x80; /* a code of -128, which no kernel takes */
    tensor_row_int8(&t, 0, codes, &scale);
    assert_true(codes[3] == -127 && fabsf(scale * -127 + 128) < 1e-4f);
    t.type = TENSOR_F32;
    t.data = values;
    tensor_row_int8(&t, 0, codes, &scale);
    assert_true(isnan(scale));
    values[0] = values[1] = 0;
    tensor_row_int8(&t, 0, codes, &scale);
    assert_true(scale == 0 && codes[0] == 0);
}

static void foreign_types_have_names(void **state)
{
    (void)state;
    bool removed;
    struct err e;
    size_t n;
    assert_string_equal(block_foreign_name(10, &removed), "Q2_K");
    assert_false(removed);
    assert_string_equal(block_foreign_name(36, &removed), "IQ4_NL_4_4");
    assert_true(removed);
    assert_null(block_foreign_name(43, &removed));
    for (uint32_t id = 0; id < 64; id++) { /* each id is ours, foreign, or none */
        bool ours = block_type((enum tensor_type)id) != NULL;
        assert_false(ours && block_foreign_name(id, &removed) != NULL);
        assert_true(ours || block_foreign_name(id, &removed) || id > 42);
        if (ours)
            continue;
        assert_int_equal(tensor_row_bytes((enum tensor_type)id, 256, &n, &e),
                         KITH_EUNSUPPORTED);
        const char *name = block_foreign_name(id, &removed);
        assert_non_null(strstr(e.message, name ? name : "unknown"));
        assert_non_null(strstr(e.message, name && removed ? "removed" : "IQ4_NL and BF16 are"));
    }
}

int main(void)
{
    printf("seed %d\n", SEED);
    rng_seed(&rng, SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_those_of_the_format),
        cmocka_unit_test(errors_are_bounded),
        cmocka_unit_test(held_values_come_back),
        cmocka_unit_test(k_values_come_back),
        cmocka_unit_test(extremes),
        cmocka_unit_test(rows_of_codes),
        cmocka_unit_test(offsets_meet_the_grid),
        cmocka_unit_test(codes_of_what_is_no_number),
        cmocka_unit_test(foreign_types_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
