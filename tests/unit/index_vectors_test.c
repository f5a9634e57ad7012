/* Distances, halves, lengths and the projection of plain vectors, each against its definition
 * in double. */
#include "index/vectors.h"

#include "tests/unit/index_fixture.h"

enum { SEED = 1867 };

static struct rng rng;

static double plain(enum index_metric metric, const float *a, const float *b, uint32_t dim)
{
    double dot = 0, aa = 0, bb = 0, square = 0;
    for (uint32_t i = 0; i < dim; i++) {
        double difference = (double)a[i] - (double)b[i];
        dot += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
        square += difference * difference;
    }
    return metric == INDEX_L2   ? square
           : metric == INDEX_IP ? -dot
                                : 1 - (aa > 0 && bb > 0 ? dot / sqrt(aa * bb) : 0);
}

static void distances_are_by_definition(void **state)
{
    (void)state;
    for (int round = 0; round < 600; round++) {
        uint32_t dim = 1 + (uint32_t)rng_below(&rng, round % 20 ? 200 : 3000);
        float *x = vectors(&rng, 2, dim, 0), scale = (float)pow(10, round % 7 - 3);
        for (uint32_t i = 0; i < 2 * dim; i++)
            x[i] *= scale;
        for (int m = INDEX_COSINE; m <= INDEX_IP; m++) {
            double size = m == INDEX_COSINE ? 1 : (double)(scale * scale) * (double)dim;
            double want = plain((enum index_metric)m, x, x + dim, dim);
            double got = (double)vector_distance((enum index_metric)m, x, x + dim, dim);
            assert_true(fabs(got - want) <= 1e-5 * size);
            double self = (double)vector_distance((enum index_metric)m, x, x, dim);
            assert_true(fabs(self - plain((enum index_metric)m, x, x, dim)) <= 1e-5 * size);
        }
        free(x);
    }
}

/* A small difference of long vectors, and sums past the largest float. */
static void distances_keep_their_digits(void **state)
{
    (void)state;
    enum { DIM = 40 };
    float a[DIM], b[DIM], zero[DIM] = {0};
    for (int i = 0; i < DIM; i++) {
        a[i] = 1000;
        b[i] = i ? 1000 : 1000.5f;
    }
    assert_true(vector_distance(INDEX_L2, a, b, DIM) == 0.25f);
    assert_true(vector_distance(INDEX_L2, a, a, DIM) == 0);
    assert_true(vector_distance(INDEX_COSINE, a, zero, DIM) == 1);
    assert_true(vector_distance(INDEX_COSINE, zero, zero, DIM) == 1);
    assert_true(vector_distance(INDEX_IP, a, zero, DIM) == 0);
    assert_false(signbit(vector_distance(INDEX_IP, a, zero, DIM)));
    for (int i = 0; i < DIM; i++)
        a[i] = b[i] = i % 2 ? 1e30f : -1e30f;
    assert_true(vector_distance(INDEX_COSINE, a, b, DIM) < 1e-6f);
    assert_true(vector_distance(INDEX_L2, a, b, DIM) == 0);
    assert_true(vector_distance(INDEX_IP, a, b, DIM) == -INFINITY);
    a[0] = NAN;
    assert_true(vector_distance(INDEX_COSINE, a, b, DIM) == 2);
    assert_true(vector_distance(INDEX_L2, a, b, DIM) == INFINITY);
    assert_true(vector_distance(INDEX_IP, a, b, DIM) == INFINITY);
}

static void halves_round_trip(void **state)
{
    (void)state;
    enum { N = 65536 };
    uint16_t *half = malloc(N * sizeof *half), *back = malloc(N * sizeof *back);
    float *x = malloc(N * sizeof *x);
    for (uint32_t i = 0; i < N; i++)
        half[i] = (uint16_t)i;
    vector_from_half(half, N, x);
    vector_to_half(x, N, back);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(back[i], (i & 0x7fff) > 0x7c00 ? i | 0x200 : i);
    for (uint32_t i = 0; i < N; i++)
        x[i] = gauss(&rng) * 0.05f;
    vector_to_half(x, N, half);
    vector_from_half(half, N, x);
    vector_to_half(x, N, back);
    assert_memory_equal(half, back, N * sizeof *half);
    x[0] = 1e9f;
    vector_to_half(x, 1, half);
    assert_int_equal(half[0], 0x7c00);
    free(half);
    free(back);
    free(x);
}

static void lengths_become_one(void **state)
{
    (void)state;
    float x[33], out[33];
    for (int round = 0; round < 100; round++) {
        double sum = 0, length = 0;
        for (int i = 0; i < 33; i++) {
            x[i] = gauss(&rng) * (float)pow(10, round % 30 - 15);
            sum += (double)x[i] * (double)x[i];
        }
        float norm = vector_normalise(x, 33, out);
        assert_true(fabs((double)norm / sqrt(sum) - 1) < 1e-6);
        for (int i = 0; i < 33; i++)
            length += (double)out[i] * (double)out[i];
        assert_true(fabs(length - 1) < 1e-6);
        assert_true(vector_normalise(x, 33, x) == norm);
        assert_memory_equal(x, out, sizeof x);
    }
    memset(x, 0, sizeof x);
    assert_true(vector_normalise(x, 33, out) == 0);
    assert_memory_equal(x, out, sizeof x);
}

static void check_projection(uint32_t from, uint32_t to)
{
    uint32_t n = vector_project_work(from, to);
    float *x = vectors(&rng, 1, from, 0), *out = malloc(to * sizeof *out),
          *work = malloc(n * sizeof *work);
    assert_true(n >= from && n >= to && (n & (n - 1)) == 0);
    assert_true(n == 1 || n / 2 < from || n / 2 < to);
    vector_project(x, from, out, to, work);
    for (uint32_t i = 0; i < to; i++) {
        double want = 0;
        for (uint32_t j = 0; j < from; j++)
            want += __builtin_popcount(i & j) % 2 ? -(double)x[j] : (double)x[j];
        assert_true(fabs(want / sqrt(from) - (double)out[i]) < 1e-5);
    }
    if (to <= from) { /* in place */
        vector_project(x, from, x, to, work);
        assert_memory_equal(x, out, to * sizeof *out);
    }
    free(x);
    free(out);
    free(work);
}

static void projections_follow_the_formula(void **state)
{
    (void)state;
    for (uint32_t from = 1; from <= 40; from++)
        for (uint32_t to = 1; to <= 40; to++)
            check_projection(from, to);
    check_projection(384, 64);
    check_projection(1536, 256);
    check_projection(100, 700);
    check_projection(1024, 1024);
}

int main(void)
{
    printf("seed %d, kernels %s\n", SEED, index_kernels_name());
    rng_seed(&rng, SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_are_by_definition),
        cmocka_unit_test(distances_keep_their_digits),
        cmocka_unit_test(halves_round_trip),
        cmocka_unit_test(lengths_become_one),
        cmocka_unit_test(projections_follow_the_formula),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
