/* Every instruction set against the scalar table, on every length near the widths of the
 * vectors, and codes: what encode writes, decode and distances must agree with plain
 * arithmetic. */
#include <math.h>
#include <string.h>

#include "base/random.h"
#include "index/scratch.h"
#include "tests/unit/unit.h"

enum { LONGEST = 1100, SEED = 20260 };

static struct rng rng;
static float *x[5];
static uint8_t *u;
static int8_t *c[4];
static uint16_t *h[4];

static const enum index_quant quants[] = {INDEX_F32, INDEX_INT8, INDEX_F16, INDEX_BIN};
enum { N_QUANTS = sizeof quants / sizeof *quants };

static struct index_params params(enum index_quant quant, enum index_metric metric,
                                  uint32_t dim)
{
    return (struct index_params){
        .kind = INDEX_FLAT, .quant = quant, .metric = metric, .dim = dim};
}

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
        h[k] = malloc(n * sizeof **h + 1);
        kernels_named("scalar")->to_half(x[k + 1], n, h[k]);
    }
}

static void drop(void)
{
    for (int k = 0; k < 5; k++)
        free(x[k]);
    free(u);
    for (int k = 0; k < 4; k++)
        free(c[k]);
    for (int k = 0; k < 4; k++)
        free(h[k]);
}

static void check_bits(const struct vector_kernels *t, size_t n)
{
    uint32_t four[4];
    const void *rows[4] = {c[0], c[1], c[2], c[3]};
    t->hamming_x4(u, rows, n / 8, four);
    for (int k = 0; k < 4; k++) {
        uint32_t differ = 0;
        for (size_t i = 0; i < n / 8 * 64; i++)
            differ += (u[i / 8] ^ (uint8_t)c[k][i / 8]) >> i % 8 & 1;
        assert_int_equal(four[k], differ);
        assert_int_equal(t->hamming(u, rows[k], n / 8), differ);
    }
}

static void check_halves(const struct vector_kernels *t, size_t n)
{
    const struct vector_kernels *oracle = kernels_named("scalar");
    const uint16_t *const rows[4] = {h[0], h[1], h[2], h[3]};
    float four[4], *floats = malloc(n * sizeof *floats + 1);
    uint16_t *halves = malloc(n * sizeof *halves + 1);
    t->dot_f16_x4(x[0], rows, n, four);
    for (int k = 0; k < 4; k++) {
        float expected = oracle->dot_f16(x[0], rows[k], n);
        assert_true(fabsf(four[k] - expected) <= 1e-6f * (float)(n + 1));
        assert_true(t->dot_f16(x[0], rows[k], n) == four[k]);
        t->to_half(x[k + 1], n, halves);
        assert_memory_equal(halves, h[k], n * sizeof *halves);
        t->from_half(h[k], n, floats);
        assert_true(fabsf(oracle->dot_f32(x[0], floats, n) - expected) <=
                    1e-6f * (float)(n + 1));
    }
    free(floats);
    free(halves);
}

/* Codes of any value, as a table wants them on the query's side, and what it makes of them: the
 * product of the codes, exactly. */
static void check_int8(const struct vector_kernels *t, size_t n)
{
    const int8_t *const rows[4] = {c[0], c[1], c[2], c[3]};
    uint8_t *q = malloc(n + 1);
    int32_t products[4];
    for (size_t i = 0; i < n; i++)
        q[i] = (uint8_t)((int8_t)u[i] + t->int8_center);
    t->dot_i8_x4(q, rows, n, products);
    for (int k = 0; k < 4; k++) {
        int32_t expected = 0;
        for (size_t i = 0; i < n; i++)
            expected += ((int8_t)u[i] + t->int8_center) * rows[k][i];
        assert_int_equal(products[k], expected);
        assert_int_equal(t->dot_i8(q, rows[k], n), expected);
    }
    free(q);
}

static void check_length(const struct vector_kernels *t, size_t n)
{
    const struct vector_kernels *oracle = kernels_named("scalar");
    float dots[4];
    fill(n);
    const float *const rows[4] = {x[1], x[2], x[3], x[4]};
    t->dot_f32_x4(x[0], rows, n, dots);
    for (int k = 0; k < 4; k++) {
        float expected = oracle->dot_f32(x[0], rows[k], n);
        assert_true(fabsf(dots[k] - expected) <= 1e-6f * (float)(n + 1));
        assert_true(t->dot_f32(x[0], rows[k], n) == dots[k]);
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
    check_int8(t, n);
    check_bits(t, n);
    check_halves(t, n);
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
#if KITH_EMULATED_ISAS /* else it could be left out above */
    assert_non_null(kernels_named("avx512"));
#endif
}

static void extreme_products_do_not_overflow(void **state)
{
    (void)state;
    static const int extremes[] = {127, -128};
    uint8_t *q = malloc(INDEX_DIM_MAX);
    int8_t *code = malloc(INDEX_DIM_MAX);
    const struct vector_kernels *t = kernels_get();
    for (int i = 0; i < 4; i++) {
        int a = extremes[i / 2] + t->int8_center, b = extremes[i % 2];
        memset(q, a, INDEX_DIM_MAX);
        memset(code, b, INDEX_DIM_MAX);
        assert_int_equal(t->dot_i8(q, code, INDEX_DIM_MAX), a * b * INDEX_DIM_MAX);
    }
    free(q);
    free(code);
}

/* Every pattern of a half and, for the way back, every float that lies on, between or just
 * beside two halves: rounding must go to the nearer, at the middle to the even one. */
static void halves_are_exact(void **state)
{
    (void)state;
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    enum { ALL = 65536 };
    uint16_t *half = malloc(ALL * sizeof *half), *back = malloc(ALL * sizeof *back);
    float *value = malloc(ALL * sizeof *value), *expected = malloc(ALL * sizeof *expected);
    for (uint32_t i = 0; i < ALL; i++) {
        uint32_t most = i >> 10 & 31, low = i & 1023;
        half[i] = (uint16_t)i;
        expected[i] = most == 31 ? (low ? NAN : INFINITY)
                      : most     ? ldexpf((float)(1024 + low), (int)most - 25)
                                 : ldexpf((float)low, -24);
        expected[i] = i >> 15 ? -expected[i] : expected[i];
    }
    for (size_t t = 0; t < sizeof names / sizeof *names; t++) {
        const struct vector_kernels *k = kernels_named(names[t]);
        if (!k)
            continue;
        k->from_half(half, ALL, value);
        k->to_half(value, ALL, back);
        for (uint32_t i = 0; i < ALL; i++) {
            bool nan = (i & 0x7fff) > 0x7c00;
            assert_true(nan ? isnan(value[i])
                            : memcmp(&value[i], &expected[i], sizeof *value) == 0);
            assert_int_equal(back[i], nan ? i | 0x200 : i);
        }
        /* Positive ones up to the last: what lies between it and 65,536 rounds to infinity. */
        for (uint32_t i = 0; i < 0x7c00; i++) {
            float above = i + 1 < 0x7c00 ? expected[i + 1] : 65536.0f;
            float middle = (expected[i] + above) / 2,
                  in[6] = {nextafterf(middle, 0),  middle,  nextafterf(middle, INFINITY),
                           -nextafterf(middle, 0), -middle, -nextafterf(middle, INFINITY)};
            uint16_t out[6], even = (uint16_t)(i + (i & 1));
            k->to_half(in, 6, out);
            const uint16_t want[6] = {(uint16_t)i, even, (uint16_t)(i + 1)};
            for (int a = 0; a < 3; a++) {
                assert_int_equal(out[a], want[a]);
                assert_int_equal(out[a + 3], want[a] | 0x8000);
            }
        }
    }
    free(half);
    free(back);
    free(value);
    free(expected);
}

static struct code *encoded(const struct index_params *p, const float *v)
{
    struct code *code = calloc(1, index_code_stride(p));
    float *work = malloc(p->dim * sizeof *work);
    int32_t sum = code_encode(code, p, v, work);
    code->meta = code_meta(CODE_LINKED, 3, sum);
    free(work);
    return code;
}

static void codes_keep_their_vectors(void **state)
{
    (void)state;
    enum { DIM = 77 };
    float v[DIM], back[DIM], row[DIM];
    for (int which = 0; which < N_QUANTS; which++) {
        struct index_params p = params(quants[which], INDEX_COSINE, DIM);
        for (int round = 0; round < 100; round++) {
            for (int i = 0; i < DIM; i++)
                v[i] = (float)((rng_unit(&rng) - 0.4) * pow(10, round % 9 - 4));
            struct code *code = encoded(&p, v);
            assert_int_equal(code_meta_level(code->meta), 3);
            assert_int_equal(code_meta_state(code->meta), CODE_LINKED);
            code_decode(code, &p, back);
            float norm = vector_norm(v, DIM), off = 0;
            assert_true(code->norm == norm);
            for (int i = 0; i < DIM; i++)
                off = fmaxf(off, fabsf(back[i] - v[i]) / norm);
            if (p.quant == INDEX_BIN) {
                for (int i = 0; i < DIM; i++)
                    assert_true(back[i] == (v[i] > 0 ? 1.0f : -1.0f));
            } else {
                assert_true(fabsf(vector_norm(back, DIM) / norm - 1) < 1e-5f);
                assert_true(off < (p.quant == INDEX_F32   ? 1e-6f
                                   : p.quant == INDEX_F16 ? 3e-4f
                                                          : 0.003f));
            }
            struct code_query q;
            const struct code *one[1] = {code};
            float distance;
            code_query_vector(&q, &p, v, row);
            code_distances(&q, one, 1, &distance);
            assert_true(distance < 1e-5f);
            code_query_code(&q, &p, code, row);
            code_distances(&q, one, 1, &distance);
            assert_true(distance < 1e-6f);
            free(code);
        }
    }
}

/* What a metric says of two vectors, from what their codes decode to. */
static double plain_distance(const struct index_params *p, const struct code *a,
                             const struct code *b)
{
    float *x0 = malloc(p->dim * sizeof *x0), *x1 = malloc(p->dim * sizeof *x1);
    double dot = 0, aa = 0, bb = 0, n = (double)a->norm, m = (double)b->norm;
    code_decode(a, p, x0);
    code_decode(b, p, x1);
    for (uint32_t i = 0; i < p->dim; i++) {
        dot += (double)x0[i] * (double)x1[i];
        aa += (double)x0[i] * (double)x0[i];
        bb += (double)x1[i] * (double)x1[i];
    }
    free(x0);
    free(x1);
    double cosine = aa > 0 && bb > 0 ? dot / sqrt(aa * bb) : 0;
    return p->metric == INDEX_COSINE ? 1 - cosine
           : p->metric == INDEX_L2   ? n * n + m * m - 2 * n * m * cosine
                                     : -n * m * cosine;
}

static void distances_follow_the_metric(void **state)
{
    (void)state;
    enum { DIM = 100, N = 7 };
    float v[DIM], w[DIM], row[DIM], distances[N];
    struct code *codes[N];
    struct code_query q;
    for (int which = 0; which < N_QUANTS * 3; which++) {
        struct index_params p = params(quants[which / 3], (enum index_metric)(which % 3), DIM);
        for (int i = 0; i < DIM; i++)
            v[i] = (float)(rng_unit(&rng) - 0.5);
        for (int k = 0; k < N; k++) {
            for (int i = 0; i < DIM; i++)
                w[i] = (float)(rng_unit(&rng) - 0.5) * 30 + (float)k * v[i];
            codes[k] = encoded(&p, w);
        }
        struct code *own = encoded(&p, v);
        double scale = p.metric == INDEX_COSINE ? 1 : 30.0 * 30 * DIM / 12;
        code_query_code(&q, &p, own, row);
        code_distances(&q, (const struct code *const *)codes, N, distances);
        for (int k = 0; k < N; k++)
            assert_true(fabs(plain_distance(&p, own, codes[k]) - (double)distances[k]) <
                        1e-6 * scale);
        code_query_vector(&q, &p, v, row);
        code_distances(&q, (const struct code *const *)codes, N, distances);
        for (int k = 0; k < N; k++) {
            assert_true(fabs(plain_distance(&p, own, codes[k]) - (double)distances[k]) <
                        (p.quant == INDEX_F16 ? 1e-4 : 1e-6) * scale);
            free(codes[k]);
        }
        free(own);
    }
}

static void zero_vectors_are_far_from_all(void **state)
{
    (void)state;
    float zero[20] = {0}, one[20] = {1}, row[20], distance;
    for (int which = 0; which < N_QUANTS * 3; which++) {
        struct index_params p = params(quants[which / 3], (enum index_metric)(which % 3), 20);
        struct code *z = encoded(&p, zero);
        struct code_query q;
        const struct code *list[1] = {z};
        bool cosine = p.metric == INDEX_COSINE, bin = p.quant == INDEX_BIN;
        code_query_vector(&q, &p, one, row);
        code_distances(&q, list, 1, &distance);
        /* By their signs alone, two in 40 of the way round apart. */
        assert_true(distance == (cosine && bin ? 0.1f : p.metric == INDEX_IP ? 0 : 1.0f));
        assert_false(signbit(distance));
        code_query_vector(&q, &p, zero, row);
        code_distances(&q, list, 1, &distance);
        assert_true(distance == (cosine && !bin ? 1.0f : 0));
        code_decode(z, &p, row);
        for (int i = 0; i < 20; i++)
            assert_true(row[i] == (bin ? -1.0f : 0));
        free(z);
    }
}

static void keys_keep_the_order_of_distances(void **state)
{
    (void)state;
    static const float rising[] = {-INFINITY, -3e38f, -2,   -1, -1e-30f, -1e-45f, 0,
                                   1e-45f,    1,      1.5f, 2,  3e38f,   INFINITY};
    enum { N = sizeof rising / sizeof *rising };
    for (int i = 0; i < N; i++) {
        assert_true(key_distance(key_of(rising[i], 7)) == rising[i]);
        assert_int_equal(key_slot(key_of(rising[i], 7)), 7);
        assert_true(key_of(rising[i], 7) < key_of(rising[i], 8));
        assert_true(i == 0 || key_of(rising[i - 1], UINT32_MAX) < key_of(rising[i], 0));
    }
    /* Damaged floats: the worst, whatever the metric. */
    float v[8] = {1, 2, 3}, row[8], distance;
    for (int which = 0; which < N_QUANTS * 3; which++) {
        struct index_params p = params(quants[which / 3], (enum index_metric)(which % 3), 8);
        struct code *code = encoded(&p, v);
        const struct code *list[1] = {code};
        struct code_query q;
        code->norm = code->range = -NAN;
        if (p.quant == INDEX_F32)
            memset(code->bytes, 0xff, 32);
        code_query_vector(&q, &p, v, row);
        code_distances(&q, list, 1, &distance);
        if (p.metric != INDEX_COSINE)
            assert_true(distance == INFINITY);
        else
            assert_true(distance == (p.quant == INDEX_BIN ? 0 : 2.0f));
        free(code);
    }
}

int main(void)
{
    printf("seed %d, kernels %s\n", SEED, index_kernels_name());
    rng_seed(&rng, SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_set_agrees_with_scalar),
        cmocka_unit_test(extreme_products_do_not_overflow),
        cmocka_unit_test(halves_are_exact),
        cmocka_unit_test(codes_keep_their_vectors),
        cmocka_unit_test(distances_follow_the_metric),
        cmocka_unit_test(zero_vectors_are_far_from_all),
        cmocka_unit_test(keys_keep_the_order_of_distances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
