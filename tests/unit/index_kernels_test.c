/* Every instruction set against the scalar table, on every length near the widths of the
 * vectors, and codes: what encode writes, decode and distances must agree with plain
 * arithmetic. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "index/code.h"

enum { LONGEST = 1100, SEED = 20260 };

static struct rng rng;
static float *x[5];
static uint8_t *u;
static int8_t *c[4];

/* Blocks of exactly n elements, so that a sanitizer sees a read past the end. */
static void fill(size_t n)
{
    for (int k = 0; k < 5; k++) {
        x[k] = malloc(n * sizeof **x + 1);
        for (size_t i = 0; i < n; i++)
            x[k][i] = (float)(rng_unit(&rng) * 2 - 1);
    }
    u = malloc(n + 1);
    for (size_t i = 0; i < n; i++)
        u[i] = (uint8_t)rng_next(&rng);
    for (int k = 0; k < 4; k++) {
        c[k] = malloc(n + 1);
        for (size_t i = 0; i < n; i++)
            c[k][i] = (int8_t)rng_next(&rng);
    }
}

static void drop(void)
{
    for (int k = 0; k < 5; k++)
        free(x[k]);
    free(u);
    for (int k = 0; k < 4; k++)
        free(c[k]);
}

static void check_length(const struct vector_kernels *t, size_t n)
{
    const struct vector_kernels *oracle = kernels_named("scalar");
    int32_t products[4];
    float dots[4];
    fill(n);
    const float *const rows[4] = {x[1], x[2], x[3], x[4]};
    const int8_t *const codes[4] = {c[0], c[1], c[2], c[3]};
    t->dot_f32_x4(x[0], rows, n, dots);
    t->dot_u8i8_x4(u, codes, n, products);
    for (int k = 0; k < 4; k++) {
        float expected = oracle->dot_f32(x[0], rows[k], n);
        assert_true(fabsf(dots[k] - expected) <= 1e-6f * (float)(n + 1));
        assert_true(fabsf(t->dot_f32(x[0], rows[k], n) - expected) <= 1e-6f * (float)(n + 1));
        assert_int_equal(products[k], oracle->dot_u8i8(u, codes[k], n));
        assert_int_equal(products[k], t->dot_u8i8(u, codes[k], n));
    }
    float most = t->max_abs(x[0], n);
    assert_true(most == oracle->max_abs(x[0], n));
    if (n) {
        int8_t *a = malloc(n), *b = malloc(n);
        int32_t sum = t->quantize(x[0], n, 127.0f / most, a);
        assert_int_equal(sum, oracle->quantize(x[0], n, 127.0f / most, b));
        assert_memory_equal(a, b, n);
        free(a);
        free(b);
    }
    drop();
}

static void every_set_agrees_with_scalar(void **state)
{
    (void)state;
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct vector_kernels *t = kernels_named(names[i]);
        if (!t) {
            print_message("%s is not here\n", names[i]);
            continue;
        }
        assert_string_equal(t->name, names[i]);
        for (size_t n = 0; n <= 200; n++)
            check_length(t, n);
        for (int round = 0; round < 50; round++)
            check_length(t, rng_below(&rng, LONGEST));
    }
    assert_null(kernels_named("abacus"));
}

static void extreme_products_do_not_overflow(void **state)
{
    (void)state;
    uint8_t *q = malloc(INDEX_DIM_MAX);
    int8_t *code = malloc(INDEX_DIM_MAX);
    memset(q, 255, INDEX_DIM_MAX);
    memset(code, 127, INDEX_DIM_MAX);
    const struct vector_kernels *t = kernels_get();
    assert_int_equal(t->dot_u8i8(q, code, INDEX_DIM_MAX), 255 * 127 * INDEX_DIM_MAX);
    memset(code, -128, INDEX_DIM_MAX);
    assert_int_equal(t->dot_u8i8(q, code, INDEX_DIM_MAX), -255 * 128 * INDEX_DIM_MAX);
    free(q);
    free(code);
}

static struct code *encoded(enum index_quant quant, uint32_t dim, const float *v)
{
    struct code *code = calloc(1, CODE_HEADER_BYTES + 4 * ((size_t)dim + 1));
    float *unit = malloc(dim * sizeof *unit);
    int32_t sum = code_encode(code, quant, dim, v, unit);
    code->meta = code_meta(CODE_LINKED, 3, sum);
    free(unit);
    return code;
}

static void codes_keep_their_vectors(void **state)
{
    (void)state;
    enum { DIM = 77 };
    float v[DIM], back[DIM], row[DIM];
    for (int quant = INDEX_F32; quant <= INDEX_INT8; quant++) {
        for (int round = 0; round < 100; round++) {
            for (int i = 0; i < DIM; i++)
                v[i] = (float)((rng_unit(&rng) - 0.4) * pow(10, round % 9 - 4));
            struct code *code = encoded((enum index_quant)quant, DIM, v);
            assert_int_equal(code_meta_level(code->meta), 3);
            assert_int_equal(code_meta_state(code->meta), CODE_LINKED);
            code_decode(code, (enum index_quant)quant, DIM, back);
            float norm = vector_norm(v, DIM), off = 0;
            assert_true(fabsf(vector_norm(back, DIM) / norm - 1) < 1e-5f);
            for (int i = 0; i < DIM; i++)
                off = fmaxf(off, fabsf(back[i] - v[i]) / norm);
            assert_true(off < (quant == INDEX_F32 ? 1e-6f : 0.003f));
            struct code_query q;
            const struct code *one[1] = {code};
            float distance;
            code_query_vector(&q, (enum index_quant)quant, DIM, v, row);
            code_distances(&q, one, 1, &distance);
            assert_true(distance < 1e-5f);
            code_query_code(&q, (enum index_quant)quant, DIM, code, row);
            code_distances(&q, one, 1, &distance);
            assert_true(distance < 1e-5f);
            free(code);
        }
    }
}

static void distances_are_cosines(void **state)
{
    (void)state;
    enum { DIM = 100, N = 7 };
    float v[DIM], w[N][DIM], row[DIM], distances[N];
    struct code *codes[N];
    struct code_query q;
    for (int quant = INDEX_F32; quant <= INDEX_INT8; quant++) {
        for (int i = 0; i < DIM; i++)
            v[i] = (float)(rng_unit(&rng) - 0.5);
        for (int k = 0; k < N; k++) {
            for (int i = 0; i < DIM; i++)
                w[k][i] = (float)(rng_unit(&rng) - 0.5) * 30 + (float)k * v[i];
            codes[k] = encoded((enum index_quant)quant, DIM, w[k]);
        }
        code_query_vector(&q, (enum index_quant)quant, DIM, v, row);
        code_distances(&q, (const struct code *const *)codes, N, distances);
        for (int k = 0; k < N; k++) {
            double dot = 0, a = 0, b = 0;
            for (int i = 0; i < DIM; i++) {
                dot += (double)v[i] * (double)w[k][i];
                a += (double)v[i] * (double)v[i];
                b += (double)w[k][i] * (double)w[k][i];
            }
            double expected = 1 - dot / sqrt(a * b);
            assert_true(fabs(expected - (double)distances[k]) <
                        (quant == INDEX_F32 ? 1e-6 : 0.01));
            free(codes[k]);
        }
    }
}

static void zero_vectors_are_far_from_all(void **state)
{
    (void)state;
    float zero[20] = {0}, one[20] = {1}, row[20], distance;
    for (int quant = INDEX_F32; quant <= INDEX_INT8; quant++) {
        struct code *z = encoded((enum index_quant)quant, 20, zero);
        struct code_query q;
        const struct code *list[1] = {z};
        code_query_vector(&q, (enum index_quant)quant, 20, one, row);
        code_distances(&q, list, 1, &distance);
        assert_true(distance == 1.0f);
        code_query_vector(&q, (enum index_quant)quant, 20, zero, row);
        code_distances(&q, list, 1, &distance);
        assert_true(distance == 1.0f);
        code_decode(z, (enum index_quant)quant, 20, row);
        assert_memory_equal(row, zero, sizeof zero);
        free(z);
    }
}

int main(void)
{
    printf("seed %d, kernels %s\n", SEED, index_kernels_name());
    rng_seed(&rng, SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_set_agrees_with_scalar),
        cmocka_unit_test(extreme_products_do_not_overflow),
        cmocka_unit_test(codes_keep_their_vectors),
        cmocka_unit_test(distances_are_cosines),
        cmocka_unit_test(zero_vectors_are_far_from_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
