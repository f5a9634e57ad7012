/* Every kernel of every instruction set this processor has, against the formula in double
 * precision and against the scalar variant, on random and on extreme inputs. */

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/random.h"
#include "engine/kernels.h"
#include "tests/unit/unit.h"

enum { SEED = 20, ROWS_MAX = 14, INT8_ROWS_MAX = 70, PANELS_MAX = 3, N_MAX = 1536 };

static const char *const names[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};
static struct rng rng;

static float uniform(float from, float to)
{
    return from + (to - from) * (float)rng_unit(&rng);
}

static void fill(float *x, size_t n, float from, float to)
{
    for (size_t i = 0; i < n; i++)
        x[i] = uniform(from, to);
}

static void *make(size_t bytes)
{
    void *p = calloc(1, bytes);
    assert_non_null(p);
    return p;
}

/* Runs the check with every table that this machine has. */
static void each(void (*check)(const struct engine_kernels *k))
{
    rng_seed(&rng, SEED);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct engine_kernels *k;
        if (engine_kernels_named(&k, names[i], NULL) != 0)
            continue;
        assert_string_equal(k->name, names[i]);
        check(k);
    }
}

/* --- products --- */

static void check_f32(const struct engine_kernels *k)
{
    static const uint32_t inputs[] = {1, 3, 32, 100, 385};
    uint32_t panel = k->product->panel, width = PANELS_MAX * panel;
    assert_int_equal(ROW_MULTIPLE % panel, 0);
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        uint32_t n = inputs[i], stride = n + 5;
        float *a = make(ROWS_MAX * stride * sizeof *a);
        float *w = make((size_t)width * n * sizeof *w), *bias = make(width * sizeof *bias);
        float *c = make((size_t)ROWS_MAX * width * sizeof *c);
        fill(a, (size_t)ROWS_MAX * stride, -1, 1);
        fill(w, (size_t)width * n, -1, 1);
        fill(bias, width, -3, 3);
        for (uint32_t rows = 1; rows <= ROWS_MAX; rows++)
            for (uint32_t panels = 1; panels <= PANELS_MAX; panels++) {
                const float *b = rows % 2 ? bias : NULL;
                k->product->f32(a, stride, rows, w, n, panels, b, c, width);
                for (uint32_t r = 0; r < rows; r++)
                    for (uint32_t j = 0; j < panels * panel; j++) {
                        double y = b ? b[j] : 0;
                        for (uint32_t x = 0; x < n; x++)
                            y += (double)a[r * stride + x] *
                                 (double)w[((size_t)(j / panel) * n + x) * panel + j % panel];
                        assert_true(fabs(y - (double)c[r * width + j]) < 2e-5);
                    }
            }
        free(a);
        free(w);
        free(bias);
        free(c);
    }
}

static void f32_product(void **state)
{
    (void)state;
    each(check_f32);
}

struct int8_case {
    struct int8_rows rows;
    char *panels;
    float *side_weights;
    const struct product_kernels *product;
    uint32_t n_blocks, n_panels, panel;
};

static char *block_of(const struct int8_case *t, uint32_t j, uint32_t k)
{
    return t->panels + ((size_t)(j / t->panel) * t->n_blocks + k / INT8_BLOCK) *
                           int8_block_bytes(t->product);
}

static int8_t *weight_at(const struct int8_case *t, uint32_t j, uint32_t k)
{
    return (int8_t *)block_of(t, j, k) + k % INT8_BLOCK / 4 * 4 * t->panel + j % t->panel * 4 +
           k % 4;
}

static float *scale_at(const struct int8_case *t, uint32_t j, uint32_t k)
{
    return (float *)(void *)(block_of(t, j, k) + (size_t)INT8_BLOCK * t->panel) + j % t->panel;
}

static struct int8_range *range_at(const struct int8_case *t, uint32_t r, uint32_t k)
{
    uint32_t i = t->product->block_ranges ? k / INT8_BLOCK : 0;
    return &t->rows.ranges[r * t->rows.n_ranges + i];
}

static struct int8_case int8_case_new(const struct product_kernels *product, uint32_t n_blocks)
{
    uint32_t panel = product->panel;
    struct int8_case t = {
        .product = product, .n_blocks = n_blocks, .n_panels = PANELS_MAX, .panel = panel};
    t.rows.stride = n_blocks * INT8_BLOCK + 7;
    t.rows.codes = make(INT8_ROWS_MAX * t.rows.stride);
    t.rows.n_ranges = int8_ranges(product, n_blocks * INT8_BLOCK);
    t.rows.ranges = make(INT8_ROWS_MAX * t.rows.n_ranges * sizeof *t.rows.ranges);
    t.rows.side = make(INT8_ROWS_MAX * sizeof *t.rows.side);
    t.panels = make(PANELS_MAX * n_blocks * int8_block_bytes(product));
    t.side_weights = make((size_t)PANELS_MAX * N_SIDE * panel * sizeof(float));
    return t;
}

static void int8_case_free(struct int8_case *t)
{
    free(t->rows.codes);
    free(t->rows.ranges);
    free(t->rows.side);
    free(t->panels);
    free(t->side_weights);
}

enum pattern { RANDOM, HIGHEST, LOWEST, OPPOSED, ZERO, N_PATTERNS };

static uint8_t code_of(enum pattern p, uint32_t k, bool block_ranges)
{
    uint8_t first = block_ranges ? 0 : 1, last = block_ranges ? 127 : 255;
    switch (p) {
    case HIGHEST:
        return last;
    case LOWEST:
        return first;
    case OPPOSED:
        return k % 2 ? last : first;
    case ZERO:
        return (uint8_t)(last / 2 + 1);
    default:
        return (uint8_t)(first + rng_below(&rng, last + 1u - first));
    }
}

static int8_t weight_of(enum pattern p, uint32_t k)
{
    switch (p) {
    case HIGHEST:
        return 127;
    case LOWEST:
        return -127;
    case OPPOSED:
        return k % 2 ? 127 : -127;
    case ZERO:
        return 0;
    default:
        return (int8_t)((int)rng_below(&rng, 255) - 127);
    }
}

/* SIDE_SUM's weights and a block's sums must be those of the dequantized weights, as the packer
 * makes them. */
static void int8_case_fill(struct int8_case *t, enum pattern codes, enum pattern weights)
{
    uint32_t n = t->n_blocks * INT8_BLOCK;
    for (uint32_t r = 0; r < INT8_ROWS_MAX; r++) {
        for (uint32_t k = 0; k < n; k++)
            t->rows.codes[r * t->rows.stride + k] = code_of(codes, k, t->product->block_ranges);
        for (uint32_t i = 0; i < t->rows.n_ranges; i++)
            t->rows.ranges[r * t->rows.n_ranges + i] =
                (struct int8_range){uniform(0.001f, 0.02f), uniform(-1, 1)};
        fill(t->rows.side[r], N_SIDE, -1, 1);
    }
    fill(t->side_weights, (size_t)PANELS_MAX * N_SIDE * t->panel, -1, 1);
    for (uint32_t j = 0; j < PANELS_MAX * t->panel; j++) {
        double sum = 0, block_sum = 0;
        for (uint32_t k = 0; k < n; k++) {
            if (k % INT8_BLOCK == 0) {
                *scale_at(t, j, k) = uniform(0.0005f, 0.002f);
                block_sum = 0;
            }
            *weight_at(t, j, k) = weight_of(weights, k);
            block_sum += (double)*scale_at(t, j, k) * *weight_at(t, j, k);
            sum += (double)*scale_at(t, j, k) * *weight_at(t, j, k);
            if (t->product->block_ranges)
                scale_at(t, j, k)[t->panel] = (float)block_sum;
        }
        t->side_weights[((size_t)(j / t->panel) * N_SIDE + SIDE_SUM) * t->panel +
                        j % t->panel] = (float)sum;
    }
}

/* Row ranges leave their offset to SIDE_SUM, whose value is a random one here. */
static double int8_expected(const struct int8_case *t, uint32_t r, uint32_t j,
                            double *magnitude)
{
    double y = 0;
    *magnitude =
        1; /* of the terms that are rounded: 128 is taken out of the codes and put back */
    for (uint32_t k = 0; k < t->n_blocks * INT8_BLOCK; k++) {
        const struct int8_range *range = range_at(t, r, k);
        double offset = t->product->block_ranges ? (double)range->offset : 0;
        double w = (double)*scale_at(t, j, k) * *weight_at(t, j, k);
        y += ((double)range->scale * t->rows.codes[r * t->rows.stride + k] + offset) * w;
        *magnitude += ((double)range->scale * 255 + fabs(offset)) * fabs(w);
    }
    for (uint32_t i = 0; i < N_SIDE; i++)
        y +=
            (double)t->rows.side[r][i] *
            (double)t
                ->side_weights[((size_t)(j / t->panel) * N_SIDE + i) * t->panel + j % t->panel];
    return y;
}

static void check_int8_rows(const struct engine_kernels *k, const struct int8_case *t,
                            uint32_t first, uint32_t rows)
{
    const float untouched = 12345;
    uint32_t width = PANELS_MAX * t->panel;
    float *c = make((size_t)(rows + 1) * width * sizeof *c);
    for (uint32_t j = 0; j < width; j++)
        c[rows * width + j] = untouched;
    k->product->int8(&t->rows, first, rows, t->panels, t->n_blocks, t->n_panels,
                     t->side_weights, c, width);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t j = 0; j < width; j++) {
            double magnitude, y = int8_expected(t, first + r, j, &magnitude);
            assert_true(fabs(y - (double)c[r * width + j]) < 2e-6 * magnitude);
        }
    for (uint32_t j = 0; j < width; j++)
        assert_true(c[rows * width + j] == untouched);
    free(c);
}

/* Rows around the sizes of tiles, blocks around the numbers that are added up together. */
static void check_int8(const struct engine_kernels *k)
{
    static const uint32_t blocks[] = {1, 5, 12};
    static const uint32_t counts[] = {1, 6, 13, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 70};
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++)
        for (int p = 0; p < N_PATTERNS * N_PATTERNS; p++) {
            struct int8_case t = int8_case_new(k->product, blocks[b]);
            int8_case_fill(&t, (enum pattern)(p / N_PATTERNS), (enum pattern)(p % N_PATTERNS));
            uint32_t rows = 1 + (uint32_t)rng_below(&rng, 40);
            check_int8_rows(k, &t, (uint32_t)rng_below(&rng, INT8_ROWS_MAX - rows + 1), rows);
            for (size_t i = 0; p == 0 && i < sizeof counts / sizeof *counts; i++)
                check_int8_rows(k, &t, INT8_ROWS_MAX - counts[i], counts[i]);
            int8_case_free(&t);
        }
}

static void check_tiles(const struct engine_kernels *k)
{
    const struct product_kernels *p = k->product;
    assert_int_equal(48 % p->f32_rows, 0);
    assert_int_equal(48 % p->int8_rows, 0);
}

static void tiles_divide_a_block(void **state)
{
    (void)state;
    each(check_tiles);
}

static void int8_product(void **state)
{
    (void)state;
    each(check_int8);
}

static int16_t word_of(enum pattern p, uint32_t k, int most)
{
    switch (p) {
    case HIGHEST:
        return (int16_t)most;
    case LOWEST:
        return (int16_t)-most;
    case OPPOSED:
        return (int16_t)(k % 2 ? most : -most);
    case ZERO:
        return 0;
    default:
        return (int16_t)((int)rng_below(&rng, 2 * (uint64_t)most + 1) - most);
    }
}

/* Sums of whole blocks are exact, and few blocks round to the same float. */
static void check_int16(const struct engine_kernels *k)
{
    static const uint32_t inputs[] = {2, 30, 32, 34, 64, 66, 96, 128, 450};
    enum { MOST_A = SOFTMAX_ONE, MOST_W = INT16_PRODUCT_MAX / SOFTMAX_ONE };
    uint32_t panel = k->product->panel, width = PANELS_MAX * panel;
    float *c = make((size_t)ROWS_MAX * width * sizeof *c);
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        uint32_t n = inputs[i], stride = n + 6;
        int16_t *a = make(ROWS_MAX * stride * sizeof *a);
        int16_t *w = make((size_t)width * n * sizeof *w);
        for (int p = 0; p < N_PATTERNS * N_PATTERNS; p++) {
            uint32_t rows = 1 + (uint32_t)rng_below(&rng, ROWS_MAX);
            for (uint32_t x = 0; x < ROWS_MAX * stride; x++)
                a[x] = word_of((enum pattern)(p / N_PATTERNS), x % stride, MOST_A);
            for (uint32_t x = 0; x < width * n; x++)
                w[x] = word_of((enum pattern)(p % N_PATTERNS), x, MOST_W);
            k->product->int16(a, stride, rows, w, n, PANELS_MAX, c, width);
            for (uint32_t r = 0; r < rows; r++)
                for (uint32_t j = 0; j < width; j++) {
                    const int16_t *column = w + (size_t)(j / panel) * n * panel + j % panel * 2;
                    double y = 0, magnitude = 1;
                    for (uint32_t x = 0; x < n; x++) {
                        double term = (double)a[r * stride + x] *
                                      column[(size_t)(x / 2) * 2 * panel + x % 2];
                        y += term;
                        magnitude += fabs(term);
                    }
                    assert_true(fabs(y - (double)c[r * width + j]) <= 2e-7 * magnitude);
                }
        }
        free(a);
        free(w);
    }
    free(c);
}

static void int16_product(void **state)
{
    (void)state;
    each(check_int16);
}

static float bf16_value(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* VDPBF16PS rounds its sums in an order of its own: the bound is that of float sums. */
static void check_bf16(const struct engine_kernels *k)
{
    static const uint32_t inputs[] = {2, 30, 64, 386};
    uint32_t panel = k->product->panel, width = PANELS_MAX * panel;
    assert_true((k->product->bf16 == NULL) == (k->product->round_bf16 == NULL));
    for (size_t i = 0; k->product->bf16 && i < sizeof inputs / sizeof *inputs; i++) {
        uint32_t n = inputs[i], stride = n + 6;
        uint16_t *a = make(ROWS_MAX * stride * sizeof *a);
        uint16_t *w = make((size_t)width * n * sizeof *w);
        float *c = make((size_t)ROWS_MAX * width * sizeof *c),
              *bias = make(width * sizeof *bias);
        for (uint32_t x = 0; x < ROWS_MAX * stride; x++)
            a[x] = bf16_of(uniform(-1, 1));
        for (uint32_t x = 0; x < width * n; x++)
            w[x] = bf16_of(uniform(-1, 1));
        fill(bias, width, -3, 3);
        for (uint32_t rows = 1; rows <= ROWS_MAX; rows++) {
            uint32_t panels = 1 + rows % PANELS_MAX;
            const float *b = rows % 2 ? bias : NULL;
            k->product->bf16(a, stride, rows, w, n, panels, b, c, width);
            for (uint32_t r = 0; r < rows; r++)
                for (uint32_t j = 0; j < panels * panel; j++) {
                    const uint16_t *column =
                        w + (size_t)(j / panel) * n * panel + j % panel * 2;
                    double y = b ? (double)b[j] : 0;
                    for (uint32_t x = 0; x < n; x++)
                        y += (double)bf16_value(a[r * stride + x]) *
                             (double)bf16_value(column[(size_t)(x / 2) * 2 * panel + x % 2]);
                    assert_true(fabs(y - (double)c[r * width + j]) < 2e-5);
                }
        }
        free(a);
        free(w);
        free(c);
        free(bias);
    }
}

/* To nearest, at the middle to the even one; the carry of a mantissa goes into the exponent. */
static void check_round_bf16(const struct engine_kernels *k)
{
    static const struct {
        float x;
        uint16_t expected;
    } cases[] = {{1.0f, 0x3f80},      {0x1.01p0f, 0x3f80},     {0x1.010002p0f, 0x3f81},
                 {0x1.03p0f, 0x3f82}, {-0x1.01p0f, 0xbf80},    {-0x1.03p0f, 0xbf82},
                 {0x1.ffp0f, 0x4000}, {0x1.fefffep0f, 0x3fff}, {0x1.fffffep127f, 0x7f80},
                 {INFINITY, 0x7f80},  {-0.0f, 0x8000}};
    enum { N = sizeof cases / sizeof *cases, TIMES = 5 }; /* more than a vector, and a rest */
    float x[TIMES * N + 1];
    uint16_t out[TIMES * N + 2];
    if (!k->product->round_bf16)
        return;
    for (int i = 0; i < TIMES * N; i++)
        x[i] = cases[i % N].x;
    x[TIMES * N] = NAN;
    out[TIMES * N + 1] = 77;
    k->product->round_bf16(x, TIMES * N + 1, out);
    for (int i = 0; i < TIMES * N; i++)
        assert_int_equal(out[i], cases[i % N].expected);
    assert_true(isnan(bf16_value(out[TIMES * N])));
    assert_int_equal(out[TIMES * N + 1], 77);
}

static void bf16_product(void **state)
{
    (void)state;
    each(check_bf16);
    each(check_round_bf16);
}

static void check_transpose(const struct engine_kernels *k)
{
    static const struct {
        uint32_t n, width;
    } shapes[] = {{1, 1}, {3, 32}, {16, 16}, {33, 20}, {70, 64}};
    uint32_t panel = k->product->panel;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        uint32_t n = shapes[i].n, width = shapes[i].width, stride = width + 3;
        uint32_t n_panels = (n + panel - 1) / panel;
        float *rows = make((size_t)n * stride * sizeof *rows);
        float *out = make((size_t)n_panels * panel * width * sizeof *out);
        fill(rows, (size_t)n * stride, -1, 1);
        memset(out, 0xff, (size_t)n_panels * panel * width * sizeof *out);
        k->product->transpose(rows, stride, n, width, 0.5f, out);
        for (uint32_t j = 0; j < n_panels * panel; j++)
            for (uint32_t x = 0; x < width; x++) {
                float expected = j < n ? 0.5f * rows[(size_t)j * stride + x] : 0;
                assert_true(out[((size_t)(j / panel) * width + x) * panel + j % panel] ==
                            expected);
            }
        free(rows);
        free(out);
    }
}

static void transposed(void **state)
{
    (void)state;
    each(check_transpose);
}

/* --- rows --- */

static double gelu_of(double x)
{
    return 0.5 * x * (1 + erf(x / sqrt(2)));
}

static double gelu_tanh_of(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double silu_of(double x)
{
    return x / (1 + exp(-x));
}

/* Alone and as a gate. */
static void check_activation(void (*f)(float *, const float *, uint32_t), double (*of)(double))
{
    enum { N = 32000 };
    static float x[N], y[N], gated[N], up[N];
    for (int i = 0; i < N; i++)
        x[i] = -12.0f + 24.0f * (float)i / N;
    const float edges[] = {0.0f, -0.0f, 5.2f, -5.2f, 1e10f, -1e10f, 1e-30f, 1e12f};
    memcpy(x, edges, sizeof edges);
    memcpy(y, x, sizeof y);
    memcpy(gated, x, sizeof gated);
    fill(up, N, -2, 2);
    f(y, NULL, N);
    f(gated, up, N);
    for (int i = 0; i < N; i++) {
        double v = (double)x[i], expected = of(v), bound = 2e-6 * fmax(1, fabs(v));
        assert_true(fabs((double)y[i] - expected) <= bound);
        assert_true(fabs((double)gated[i] - expected * (double)up[i]) <= 2.1 * bound);
    }
}

static void check_activations(const struct engine_kernels *k)
{
    check_activation(k->row->gelu, gelu_of);
    check_activation(k->row->gelu_tanh, gelu_tanh_of);
    check_activation(k->row->silu, silu_of);
}

static void activations(void **state)
{
    (void)state;
    each(check_activations);
}

static void check_rotate(const struct engine_kernels *k)
{
    enum { HALF_MAX = 70 };
    static float x[2 * HALF_MAX], y[2 * HALF_MAX], c[HALF_MAX], s[HALF_MAX];
    for (uint32_t half = 1; half <= HALF_MAX; half++) {
        fill(x, 2 * half, -3, 3);
        for (uint32_t i = 0; i < half; i++) {
            c[i] = cosf((float)i + 0.3f);
            s[i] = sinf((float)i + 0.3f);
        }
        memcpy(y, x, sizeof y);
        k->row->rotate(y, c, s, half);
        for (uint32_t i = 0; i < half; i++) {
            double a = (double)x[i], b = (double)x[half + i], u = (double)c[i],
                   v = (double)s[i];
            assert_true(fabs((double)y[i] - (a * u - b * v)) < 1e-5);
            assert_true(fabs((double)y[half + i] - (a * v + b * u)) < 1e-5);
        }
    }
}

static void turned_by_angles(void **state)
{
    (void)state;
    each(check_rotate);
}

static void check_softmax(const struct engine_kernels *k)
{
    static const float ranges[] = {0.001f, 1, 20, 300, 1e30f};
    static float x[512], y[512];
    for (uint32_t n = ROW_MULTIPLE; n <= 512; n += 5 * ROW_MULTIPLE)
        for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
            uint32_t real = n - (uint32_t)rng_below(&rng, ROW_MULTIPLE);
            double top = -INFINITY, sum = 0;
            for (uint32_t j = 0; j < n; j++)
                x[j] = y[j] = j < real ? uniform(-ranges[i], ranges[i]) : -INFINITY;
            for (uint32_t j = 0; j < real; j++)
                top = (double)x[j] > top ? (double)x[j] : top;
            for (uint32_t j = 0; j < real; j++)
                sum += exp((double)x[j] - top);
            double got = (double)k->row->softmax(y, n);
            assert_true(fabs(got - sum) < 2e-6 * sum);
            for (uint32_t j = 0; j < n; j++) {
                double expected = exp((double)x[j] - top);
                /* The difference itself is rounded, hence the second term. */
                double bound = expected * (1e-6 + 2e-7 * fabs((double)x[j] - top)) + 1e-37;
                assert_true(j >= real ? y[j] < 1e-37f : fabs((double)y[j] - expected) <= bound);
            }
        }
}

static void check_softmax_codes(const struct engine_kernels *k)
{
    static const float ranges[] = {0.001f, 1, 20, 300};
    static float x[512], y[512];
    for (uint32_t n = ROW_MULTIPLE; n <= 512; n += 5 * ROW_MULTIPLE)
        for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
            uint32_t real = n - (uint32_t)rng_below(&rng, ROW_MULTIPLE);
            const float factor = 0.37f;
            double top = -INFINITY, sum = 0;
            for (uint32_t j = 0; j < n; j++)
                x[j] = y[j] = j < real ? uniform(-ranges[i], ranges[i]) : -INFINITY;
            for (uint32_t j = 0; j < real; j++)
                top = (double)x[j] > top ? (double)x[j] : top;
            int16_t *codes = (int16_t *)(void *)y; /* in place, as it is used */
            double got = (double)k->row->softmax_codes(y, n, factor, codes);
            for (uint32_t j = 0; j < n; j++) {
                double expected = exp((double)factor * ((double)x[j] - top)) * SOFTMAX_ONE;
                assert_true(fabs(codes[j] - (j < real ? expected : 0)) <=
                            0.5 + 1e-4 * expected);
                sum += codes[j];
            }
            assert_true(fabs(got - sum) <= 1e-6 * sum);
        }
}

static void check_quantize16(const struct engine_kernels *k)
{
    enum { ROWS = 5, STRIDE = 100 };
    static float x[ROWS * STRIDE];
    static int16_t codes[STRIDE + 1];
    assert_true(k->row->largest(x, STRIDE, 0, 64) == 0);
    for (uint32_t n = 1; n <= STRIDE; n++) {
        float most = 0;
        fill(x, ROWS * STRIDE, -3, 3);
        for (uint32_t r = 0; r < ROWS; r++)
            for (uint32_t i = 0; i < n; i++)
                most = fmaxf(most, fabsf(x[r * STRIDE + i]));
        assert_true(k->row->largest(x, STRIDE, ROWS, n) == most);
        float factor = 4095 / most;
        codes[n] = 77;
        k->row->quantize16(x, n, factor, codes);
        for (uint32_t i = 0; i < n; i++)
            assert_true(fabs(codes[i] - (double)x[i] * (double)factor) <= 0.5 + 1e-3);
        assert_int_equal(codes[n], 77);
    }
}

static void softmax_rows(void **state)
{
    (void)state;
    each(check_softmax);
    each(check_softmax_codes);
}

static void rows_to_words(void **state)
{
    (void)state;
    each(check_quantize16);
}

/* Both norms: what is added, to where it goes, with and without a shift. */
static void check_norm_of(const struct engine_kernels *k, bool rms)
{
    static float h[N_MAX], x[N_MAX], w[N_MAX], b[N_MAX], y[N_MAX], out[N_MAX];
    for (uint32_t n = ROW_MULTIPLE; n <= N_MAX; n += 11 * ROW_MULTIPLE)
        for (int i = 0; i < 12; i++) {
            float mean = i % 6 < 3 ? 0 : 50, spread = i % 3 == 0 ? 1e-3f : 3;
            bool add = i % 2, shift = i < 6, apart = i % 4 == 0;
            fill(h, n, mean - spread, mean + spread);
            fill(x, n, -1, 1);
            fill(w, n, -2, 2);
            fill(b, n, -1, 1);
            double m = 0, v = 0;
            for (uint32_t j = 0; j < n && !rms; j++)
                m += ((double)h[j] + (add ? (double)x[j] : 0)) / n;
            for (uint32_t j = 0; j < n; j++) {
                double d = (double)h[j] + (add ? (double)x[j] : 0) - m;
                v += d * d / n;
            }
            memcpy(y, h, sizeof y);
            (rms ? k->row->norm_rms : k->row->norm)(apart ? out : y, y, add ? x : NULL, w,
                                                    shift ? b : NULL, n, 1e-12f);
            for (uint32_t j = 0; j < n; j++) {
                double sum = (double)h[j] + (add ? (double)x[j] : 0), d = sum - m;
                double expected =
                    d / sqrt(v + 1e-12) * (double)w[j] + (shift ? (double)b[j] : 0);
                /* h + x and the sum are rounded to the precision of the mean. */
                double bound = 1e-5 + 4e-6 * fabs(m) / sqrt(v);
                assert_true(fabs((double)(apart ? out : y)[j] - expected) < bound);
                assert_true(!apart || fabs((double)y[j] - sum) < 1e-5);
            }
        }
}

static void check_norm(const struct engine_kernels *k)
{
    check_norm_of(k, false);
    check_norm_of(k, true);
}

static void norms(void **state)
{
    (void)state;
    each(check_norm);
}

static void check_quantize(const struct engine_kernels *k)
{
    static float x[N_MAX], back[N_MAX];
    static uint8_t codes[N_MAX];
    static struct int8_range ranges[N_MAX / INT8_BLOCK];
    bool by_block = k->product->block_ranges;
    for (uint32_t n = ROW_MULTIPLE; n <= N_MAX; n += 11 * ROW_MULTIPLE)
        for (int i = 0; i < 8; i++) {
            float lo = i == 0 ? 0 : i == 1 ? -0.17f : -3, largest = 0, widest = 0;
            fill(x, n, lo, i == 2 ? lo : 3); /* 2: a constant row */
            if (i == 3)
                memset(x, 0, sizeof x);
            if (i == 4)
                x[n - 1] = 1000;
            if (i == 5)
                fill(x, n, -1e37f, 1e37f);
            if (i == 6)
                fill(x, n, 100.0f, 100.001f);
            if (i == 7)
                x[0] = -1e38f, x[1] = 1e38f;
            k->row->quantize(x, n, codes, ranges);
            uint32_t span = n / int8_ranges(k->product, n);
            for (uint32_t j = 0; j < n; j += span)
                k->row->residue(x + j, span, codes + j, ranges[j / span], back + j);
            for (uint32_t j = 0; j < n; j++)
                largest = fmaxf(largest, fabsf(x[j]));
            for (uint32_t j = 0; j < n; j++) {
                struct int8_range range = ranges[j / span];
                double y = (double)range.scale * codes[j] + (double)range.offset;
                double bound = 0.501 * (double)range.scale + 1e-6 * (double)largest + 1e-28;
                assert_true(by_block ? codes[j] <= 127 : codes[j] >= 1);
                assert_true(fabs(y - (double)x[j]) <= bound);
                assert_true(fabs((double)back[j] - ((double)x[j] - y)) <=
                            1e-6 * (double)largest + 128e-6 * (double)range.scale);
                widest = fmaxf(widest, range.scale);
            }
            /* A range no wider than its values, to which a step too large would be no error. */
            assert_true((double)widest <=
                        2 * (double)largest / (by_block ? 127 : 254) * 1.001 + 1e-28);
        }
    /* Not a number: any codes, but no trap and nothing outside the row. */
    for (uint32_t j = 0; j < ROW_MULTIPLE; j++)
        x[j] = j % 3 ? NAN : INFINITY;
    codes[ROW_MULTIPLE] = 77;
    k->row->quantize(x, ROW_MULTIPLE, codes, ranges);
    assert_int_equal(codes[ROW_MULTIPLE], 77);
    for (uint32_t j = 0; j < ROW_MULTIPLE; j++)
        assert_true(by_block ? codes[j] <= 127 : codes[j] >= 1);
}

static void quantized_rows(void **state)
{
    (void)state;
    each(check_quantize);
}

#if KITH_EMULATED_ISAS
/* Else the tests above would pass by leaving them out. */
static void emulated_by_name_alone(void **state)
{
    (void)state;
    static const char *const emulated[] = {"avx512", "avx512bf16", "amx"};
    const struct engine_kernels *k;
    unsetenv("KITH_KERNELS");
    for (size_t i = 0; i < sizeof emulated / sizeof *emulated; i++) {
        assert_int_equal(engine_kernels(&k, NULL), 0);
        assert_string_not_equal(k->name, emulated[i]);
        assert_int_equal(engine_kernels_named(&k, emulated[i], NULL), 0);
        assert_string_equal(k->name, emulated[i]);
    }
}
#endif

static void chosen_by_name(void **state)
{
    (void)state;
    const struct engine_kernels *k;
    struct err e;
    unsetenv("KITH_KERNELS");
    assert_int_equal(engine_kernels(&k, &e), 0);
    setenv("KITH_KERNELS", "scalar", 1);
    assert_int_equal(engine_kernels(&k, &e), 0);
    assert_string_equal(k->name, "scalar");
    setenv("KITH_KERNELS", "abacus", 1);
    assert_int_equal(engine_kernels(&k, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "abacus"));
    unsetenv("KITH_KERNELS");
}

int main(void)
{
    printf("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_product),
        cmocka_unit_test(tiles_divide_a_block),
        cmocka_unit_test(int8_product),
        cmocka_unit_test(bf16_product),
        cmocka_unit_test(transposed),
        cmocka_unit_test(activations),
        cmocka_unit_test(turned_by_angles),
        cmocka_unit_test(int16_product),
        cmocka_unit_test(rows_to_words),
        cmocka_unit_test(softmax_rows),
        cmocka_unit_test(norms),
        cmocka_unit_test(quantized_rows),
        cmocka_unit_test(chosen_by_name),
#if KITH_EMULATED_ISAS
        cmocka_unit_test(emulated_by_name_alone),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
