/* What stands between two products: one row of activations in, one row out.
 *
 * Everything here is memory-light and short, so each function makes as few passes over the row
 * as its formula allows and leaves overlap to the processor. n is a multiple of ROW_MULTIPLE,
 * so there are no tails; softmax rows are padded with -INFINITY by the caller.
 *
 * The two functions that libm would compute element by element are polynomials:
 *
 *   exp   n = round(x / ln 2), r = x - n ln 2 in two steps, a polynomial of degree 6 in r,
 *         and n added to the exponent. Relative error below 1e-6.
 *
 *   erf   erf(x / sqrt 2) = x P(u), u = 2 x^2 / 5.2^2 - 1, for |x| <= 5.2 (beyond it erf is
 *         1 to 2e-7). P is a minimax fit in the weight x (Lawson's iteration over Chebyshev
 *         nodes) of degree 12; absolute error of erf below 8e-7 in f32. Mapping x^2 to
 *         [-1, 1] keeps the terms small: the plain series in x loses all digits near 5.
 *
 * Rejected: formula 7.1.26 of Abramowitz and Stegun for erf, which needs an exponential and a
 * division; the tanh form of GELU, which is another function (3e-4 apart).
 *
 * Quantization is around the middle of the row's range, not around zero: GELU's output lies
 * between -0.17 and a few, so symmetric codes would leave half of the range unused. Measured on
 * all-MiniLM-L6-v2, the error of the down product falls by a factor of three. */

#include "engine/kernels.h"
#include "engine/lanes.h"

/* x at most 80. degree 4: relative error below 5e-5, for what becomes a code of 14 bits. */
KERNEL_INLINE vf lanes_exp(vf x, const int degree)
{
    x = vf_max(x, vf_set(-87.0f));
    vf rounded = vf_fma(x, vf_set(1.44269504f), vf_set(LANES_ROUNDER));
    vf n = vf_sub(rounded, vf_set(LANES_ROUNDER));
    vf r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.0f / 24);
    if (degree == 6) {
        p = vf_fma(vf_set(1.0f / 720), r, vf_set(1.0f / 120));
        p = vf_fma(p, r, vf_set(1.0f / 24));
    }
    p = vf_fma(p, r, vf_set(1.0f / 6));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(p, r, vf_set(1.0f));
    p = vf_fma(p, r, vf_set(1.0f));
    vi exponent = vi_shift_to_exponent(vi_sub(vi_of_bits(rounded), vi_set(LANES_ROUNDER_BITS)));
    return vf_of_bits(vi_add(vi_of_bits(p), exponent));
}

KERNEL_INLINE vf lanes_gelu(vf x)
{
    static const float p[] = {
        0.27189987897872925f,   -0.13548539578914642f,  0.10005681216716766f,
        -0.07991915196180344f,  0.06387627869844437f,   -0.048929546028375626f,
        0.03640735149383545f,   -0.026928020641207695f, 0.016052760183811188f,
        -0.006143789738416672f, 0.004644116386771202f,  -0.0053808419033885f,
        0.002157307229936123f};
    enum { DEGREE = sizeof p / sizeof p[0] - 1 };
    vf z = vf_min(vf_max(x, vf_set(-5.2f)), vf_set(5.2f));
    vf u = vf_fma(vf_mul(z, z), vf_set(2.0f / (5.2f * 5.2f)), vf_set(-1.0f));
    vf y = vf_set(p[DEGREE]);
#pragma GCC unroll 16
    for (int i = DEGREE - 1; i >= 0; i--)
        y = vf_fma(y, u, vf_set(p[i]));
    vf half = vf_mul(x, vf_set(0.5f));
    return vf_fma(half, vf_mul(z, y), half);
}

/* 1 / (1 + exp(-z)) */
KERNEL_INLINE vf lanes_logistic(vf z)
{
    vf one = vf_set(1);
    z = vf_max(vf_min(z, vf_set(80.0f)), vf_set(-80.0f));
    return vf_div(one, vf_add(one, lanes_exp(vf_sub(vf_set(0), z), 6)));
}

/* x/2 (1 + tanh(y)) = x / (1 + exp(-2 y)) */
KERNEL_INLINE vf lanes_gelu_tanh(vf x)
{
    vf cubic = vf_fma(vf_mul(vf_mul(x, x), vf_set(0.044715f)), x, x);
    return vf_mul(x, lanes_logistic(vf_mul(cubic, vf_set(1.5957691216f))));
}

KERNEL_INLINE vf lanes_silu(vf x)
{
    return vf_mul(x, lanes_logistic(x));
}

/* h += x, and the sum of h. */
KERNEL_INLINE vf add_and_sum(float *h, const float *x, uint32_t n)
{
    vf sum = vf_set(0);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf v = vf_load(h + i);
        if (x) {
            v = vf_add(v, vf_load(x + i));
            vf_store(h + i, v);
        }
        sum = vf_add(sum, v);
    }
    return sum;
}

KERNEL_INLINE void scale_row(float *out, const float *h, vf mean, vf scale, const float *weight,
                             const float *bias, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += LANES) {
        vf d = vf_mul(vf_sub(vf_load(h + i), mean), scale);
        vf_store(out + i, bias ? vf_fma(d, vf_load(weight + i), vf_load(bias + i))
                               : vf_mul(d, vf_load(weight + i)));
    }
}

static void norm(float *out, float *h, const float *x, const float *weight, const float *bias,
                 uint32_t n, float eps)
{
    vf sum = add_and_sum(h, x, n);
    /* The variance in a second pass: the sum of squares minus the square of the sum loses
     * digits where the mean is large. */
    vf mean = vf_set(vf_sum(sum) / (float)n), squares = vf_set(0);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf d = vf_sub(vf_load(h + i), mean);
        squares = vf_fma(d, d, squares);
    }
    vf scale = vf_set(1.0f / sqrtf(vf_sum(squares) / (float)n + eps));
    scale_row(out, h, mean, scale, weight, bias, n);
}

static void norm_rms(float *out, float *h, const float *x, const float *weight,
                     const float *bias, uint32_t n, float eps)
{
    vf squares = vf_set(0);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf v = vf_load(h + i);
        if (x) {
            v = vf_add(v, vf_load(x + i));
            vf_store(h + i, v);
        }
        squares = vf_fma(v, v, squares);
    }
    vf scale = vf_set(1.0f / sqrtf(vf_sum(squares) / (float)n + eps));
    scale_row(out, h, vf_set(0), scale, weight, bias, n);
}

static void add(float *h, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += LANES)
        vf_store(h + i, vf_add(vf_load(h + i), vf_load(x + i)));
}

#define ACTIVATE(name, lanes)                                                                  \
    static void name(float *x, const float *up, uint32_t n)                                    \
    {                                                                                          \
        for (uint32_t i = 0; i < n; i += LANES) {                                              \
            vf y = lanes(vf_load(x + i));                                                      \
            vf_store(x + i, up ? vf_mul(y, vf_load(up + i)) : y);                              \
        }                                                                                      \
    }

ACTIVATE(gelu, lanes_gelu)
ACTIVATE(gelu_tanh, lanes_gelu_tanh)
ACTIVATE(silu, lanes_silu)

static void rotate(float *x, const float *cos, const float *sin, uint32_t half)
{
    uint32_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        vf a = vf_load(x + i), b = vf_load(x + half + i);
        vf c = vf_load(cos + i), s = vf_load(sin + i);
        vf_store(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
        vf_store(x + half + i, vf_fma(a, s, vf_mul(b, c)));
    }
    for (; i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = a * sin[i] + b * cos[i];
    }
}

static float softmax(float *x, uint32_t n)
{
    vf largest = vf_load(x);
    for (uint32_t i = LANES; i < n; i += LANES)
        largest = vf_max(largest, vf_load(x + i));
    vf top = vf_set(vf_largest(largest)), sum = vf_set(0);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf y = lanes_exp(vf_sub(vf_load(x + i), top), 6);
        vf_store(x + i, y);
        sum = vf_add(sum, y);
    }
    return vf_sum(sum);
}

static float softmax_codes(const float *x, uint32_t n, float factor, int16_t *out)
{
    vf largest = vf_load(x);
    for (uint32_t i = LANES; i < n; i += LANES)
        largest = vf_max(largest, vf_load(x + i));
    vf top = vf_set(vf_largest(largest)), scale = vf_set(factor), one = vf_set(SOFTMAX_ONE);
    vf rounder = vf_set(LANES_ROUNDER);
    vi base = vi_set(LANES_ROUNDER_BITS), sum = vi_set(0);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf y = lanes_exp(vf_mul(vf_sub(vf_load(x + i), top), scale), 4);
        vi codes = vi_sub(vi_of_bits(vf_fma(y, one, rounder)), base);
        vi_store_words(out + i, codes);
        sum = vi_add(sum, codes);
    }
    return vf_sum(vf_of_vi(sum));
}

enum { ROWS_AHEAD = 8 };

static float largest(const float *x, size_t stride, uint32_t n_rows, uint32_t n)
{
    vf most = vf_set(0), zero = vf_set(0);
    float rest = 0;
    for (uint32_t r = 0; r < n_rows; r++, x += stride) {
        /* Rows of one head lie pages apart, where the processor does not look ahead. */
        for (size_t at = 0; at < n * sizeof *x; at += CACHE_LINE)
            __builtin_prefetch((const char *)x + ROWS_AHEAD * stride * sizeof *x + at);
        uint32_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            vf v = vf_load(x + i);
            most = vf_max(most, vf_max(v, vf_sub(zero, v)));
        }
        for (; i < n; i++)
            rest = fabsf(x[i]) > rest ? fabsf(x[i]) : rest;
    }
    float all = vf_largest(most);
    return all > rest ? all : rest;
}

static void quantize16(const float *x, uint32_t n, float factor, int16_t *out)
{
    vf scale = vf_set(factor), rounder = vf_set(LANES_ROUNDER);
    vi base = vi_set(LANES_ROUNDER_BITS);
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vi_store_words(out + i,
                       vi_sub(vi_of_bits(vf_fma(vf_load(x + i), scale, rounder)), base));
    for (; i < n; i++) { /* as above, whatever x is */
        float rounded = x[i] * factor + LANES_ROUNDER;
        int32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        out[i] = (int16_t)(bits - LANES_ROUNDER_BITS);
    }
}

/* One range, to codes in first .. last. */
KERNEL_INLINE struct int8_range quantize_range(const float *x, uint32_t n, float first,
                                               float last, uint8_t *codes)
{
    vf low = vf_load(x), high = low;
    for (uint32_t i = LANES; i < n; i += LANES) {
        vf v = vf_load(x + i);
        low = vf_min(low, v);
        high = vf_max(high, v);
    }
    float lo = vf_smallest(low), hi = vf_largest(high), half = 0.5f * (last - first);
    float middle = 0.5f * lo + 0.5f * hi, step = (0.5f * hi - 0.5f * lo) / half;
    if (!(step > 1e-30f))
        step = 1e-30f; /* all are the same: the offset says it all */
    vf inverse = vf_set(1.0f / step), center = vf_set(middle), least = vf_set(first);
    vf mean = vf_set(first + half), most = vf_set(last), rounder = vf_set(LANES_ROUNDER);
    vi base = vi_set(LANES_ROUNDER_BITS);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf v = vf_fma(vf_sub(vf_load(x + i), center), inverse, mean);
        v = vf_min(vf_max(v, least), most);
        vi_store_bytes(codes + i, vi_sub(vi_of_bits(vf_add(v, rounder)), base));
    }
    return (struct int8_range){step, middle - (first + half) * step};
}

static void quantize(const float *x, uint32_t n, uint8_t *codes, struct int8_range *ranges)
{
    if (!BLOCK_RANGES)
        *ranges = quantize_range(x, n, 1, 255, codes);
    for (uint32_t i = 0; BLOCK_RANGES && i < n; i += INT8_BLOCK)
        *ranges++ = quantize_range(x + i, INT8_BLOCK, 0, 127, codes + i);
}

static void residue(const float *x, uint32_t n, const uint8_t *codes, struct int8_range range,
                    float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] - (range.scale * (float)codes[i] + range.offset);
}

extern const struct row_kernels KERNEL_TABLE(row_kernels_);
const struct row_kernels KERNEL_TABLE(row_kernels_) = {
    .norm = norm,
    .norm_rms = norm_rms,
    .add = add,
    .gelu = gelu,
    .gelu_tanh = gelu_tanh,
    .silu = silu,
    .rotate = rotate,
    .softmax = softmax,
    .softmax_codes = softmax_codes,
    .largest = largest,
    .quantize16 = quantize16,
    .quantize = quantize,
    .residue = residue,
};
