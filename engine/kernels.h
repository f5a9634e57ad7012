#pragma once
/* The inner loops of a transformer, once for every instruction set.
 *
 * A table of plain functions: products of packed matrices, and the operations on one row of
 * activations that stand between products. They know no model, allocate nothing, cannot fail.
 * `*_kernels.c` is compiled for scalar and, on x86, AVX2 and AVX-512 (with VNNI), on ARM NEON
 * (ARMv8.2 with the dot products and half precision), products also for AVX-512 with BF16 and
 * for that with AMX; engine_kernels() picks one table at start from what the processor has.
 * KITH_KERNELS=scalar|avx2|avx512|avx512bf16|amx|neon asks for one by name. The scalar variant
 * is the oracle of the others.
 *
 * A packed matrix is cut into panels of P = `panel` output columns (two vectors). k runs down:
 *
 *   f32 panel, 4 P bytes a line:
 *      k = 0       [w(0,k) w(1,k) ... w(P-1,k)]
 *      k = 1       [ ...                      ]
 *
 *   int8 panel, for each block of 32 inputs 8 lines of 4 P bytes, then the scales:
 *      k = 0..3    [w(0,0) w(0,1) w(0,2) w(0,3) | w(1,0) ... | ... w(P-1,3)]
 *      ...
 *      k = 28..31  [w(0,28) ...                                           ]
 *      scales      [s(0) s(1) ... s(P-1)]   f32; weight = s * w
 *      sums        [s(0) (w(0,0) + ... + w(0,31)) ...]   f32; with block ranges only
 *
 * Four inputs of one column lie together because that is what one lane of VPDPBUSD takes. The
 * last panel is filled with zeros, and results are written panel by panel: rows of C have room
 * for n_panels * P floats. Weight codes lie in -127 .. 127.
 *
 * Activations of the int8 product. A row x of n_in floats is cut into ranges, which each have a
 * scale and an offset: x[k] = scale * code[k] + offset. A set has one of two ways:
 *
 *   row ranges     one range, codes in 1 .. 255
 *   block ranges   a range for each block of 32 inputs, codes in 0 .. 127
 *
 * The second is for a set without a product of bytes that adds in 32 bits: two 8-bit codes
 * times two weights do not fit 16 bits, two 7-bit codes do, and the narrower ranges make up for
 * the bit. What the codes leave out enters at full precision, as N_SIDE floats a row:
 *
 *   y[j] = sum over blocks of s(j) * (scale * sum over k of code[k] w(j,k)
 *                                     + offset * sum over k of w(j,k))
 *          + sum over t of side[t] * side_weights[t][j]
 *
 *   side[0 .. 3]     what the codes leave out of up to four outlier inputs; their weights
 *   side[SIDE_SUM]   the row range's offset, which is taken here and not at each block, or 0;
 *                    the sum of the column's weights
 *   side[SIDE_BIAS]  1; the bias
 *
 * The block sums are exact integers below 2^24, so all variants agree to float rounding.
 *
 * The int16 product is for attention, whose two sides are both activations:
 *
 *   int16 panel, 4 P bytes a line:
 *      k = 0, 1    [w(0,0) w(0,1) | w(1,0) w(1,1) | ... w(P-1,1)]
 *
 * The bf16 panel has bfloat16 in the same places, since VDPBF16PS takes pairs as well.
 *
 * The int16 product's sums run over INT16_BLOCK inputs in integers, which are exact where the
 * codes of one side times those of the other stay within INT16_PRODUCT_MAX, and then in floats.
 * Thread: all functions are pure but for their outputs. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum {
    INT8_BLOCK = 32,
    OUTLIERS_MAX = 4,
    SIDE_SUM = OUTLIERS_MAX,
    SIDE_BIAS,
    N_SIDE,
    INT16_BLOCK = 64,
    INT16_PRODUCT_MAX = (1 << 25) - 1,
    SOFTMAX_ONE = 16383, /* what softmax_codes writes for the largest */
    ROW_MULTIPLE = 32    /* row kernels take n in multiples of this */
};

struct int8_range {
    float scale, offset;
};

/* Rows of quantized activations. Row r has its codes at codes + r * stride, its ranges at
 * ranges + r * n_ranges. */
struct int8_rows {
    uint8_t *codes;
    size_t stride; /* bytes */
    struct int8_range *ranges;
    uint32_t n_ranges; /* int8_ranges(): the same for all rows */
    float (*side)[N_SIDE];
};

struct product_kernels {
    uint32_t panel;    /* output columns of a panel */
    bool block_ranges; /* how activations become codes, and whether panels have sums */
    /* Rows of a whole tile; fewer at a time take longer for each. They divide 48. */
    uint32_t f32_rows, int8_rows;
    /* c[r][j] = bias[j] + sum_k a[r][k] w[j][k], for n_panels panels; bias may be NULL. */
    void (*f32)(const float *a, size_t a_stride, uint32_t n_rows, const float *panels,
                uint32_t k, uint32_t n_panels, const float *bias, float *c, size_t c_stride);
    /* Rows first .. first + n_rows - 1 of a, to c[0 ..]. n_blocks = n_in / INT8_BLOCK;
     * side_weights is n_panels x N_SIDE x panel. */
    void (*int8)(const struct int8_rows *a, uint32_t first, uint32_t n_rows, const void *panels,
                 uint32_t n_blocks, uint32_t n_panels, const float *side_weights, float *c,
                 size_t c_stride);
    /* c[r][j] = sum_k a[r][k] w[j][k], for n_panels panels; k and a_stride are even. */
    void (*int16)(const int16_t *a, size_t a_stride, uint32_t n_rows, const int16_t *panels,
                  uint32_t k, uint32_t n_panels, float *c, size_t c_stride);
    /* As f32, of bfloat16 on both sides; k and a_stride are even. Sums are floats in an order
     * of each set's own, and numbers too small to be normal may count as zero. NULL, both of
     * them, where the set has no such product: the f32 one would be as fast. */
    void (*bf16)(const uint16_t *a, size_t a_stride, uint32_t n_rows, const uint16_t *panels,
                 uint32_t k, uint32_t n_panels, const float *bias, float *c, size_t c_stride);
    /* n floats to bfloat16, rounded to nearest even. */
    void (*round_bf16)(const float *x, uint32_t n, uint16_t *out);
    /* n rows of `width` floats, multiplied by `factor`, to f32 panels whose columns are those
     * rows: k = width, ceil(n / panel) panels, the last filled with zeros. */
    void (*transpose)(const float *rows, size_t stride, uint32_t n, uint32_t width,
                      float factor, float *panels);
};

struct row_kernels {
    /* h += x, where x is not NULL; out = LN(h) * weight + bias, bias may be NULL, out may be h.
     * J. Ba et al., Layer Normalization (2016). */
    void (*norm)(float *out, float *h, const float *x, const float *weight, const float *bias,
                 uint32_t n, float eps);
    /* The same with h / sqrt(mean h^2 + eps) * weight. B. Zhang and R. Sennrich, Root Mean
     * Square Layer Normalization (2019). */
    void (*norm_rms)(float *out, float *h, const float *x, const float *weight,
                     const float *bias, uint32_t n, float eps);
    void (*add)(float *h, const float *x, uint32_t n);
    /* x = act(x) up, or act(x) where up is NULL:
     *   gelu       x/2 (1 + erf(x / sqrt 2)); absolute error below 2e-6 * max(1, |x|)
     *   gelu_tanh  x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
     *   silu       x / (1 + exp(-x)); of both the relative error is below 2e-6 */
    void (*gelu)(float *x, const float *up, uint32_t n);
    void (*gelu_tanh)(float *x, const float *up, uint32_t n);
    void (*silu)(float *x, const float *up, uint32_t n);
    /* Pairs (x[i], x[half + i]) turned by the angle of cos[i], sin[i]; half may be anything. */
    void (*rotate)(float *x, const float *cos, const float *sin, uint32_t half);
    /* x = exp(x - max x), not yet divided by the sum, which is returned. Values of -INFINITY
     * count as nothing. */
    float (*softmax)(float *x, uint32_t n);
    /* out = exp(factor (x - max x)) in units of 1 / SOFTMAX_ONE, rounded; returns the sum of
     * out. factor > 0; -INFINITY counts as nothing. out may begin where x does. */
    float (*softmax_codes)(const float *x, uint32_t n, float factor, int16_t *out);
    /* The largest |x| of rows of n, 0 for none; and round(x * factor), which fits 16 bits. n
     * may be anything. */
    float (*largest)(const float *x, size_t stride, uint32_t n_rows, uint32_t n);
    void (*quantize16)(const float *x, uint32_t n, float factor, int16_t *out);
    /* Codes and ranges as the set's int8 product takes them; the error is at most half of a
     * range's scale. */
    void (*quantize)(const float *x, uint32_t n, uint8_t *codes, struct int8_range *ranges);
    /* out = x - (scale * code + offset), of n inputs of one range */
    void (*residue)(const float *x, uint32_t n, const uint8_t *codes, struct int8_range range,
                    float *out);
};

/* Ranges of a row of n_in inputs. */
static inline uint32_t int8_ranges(const struct product_kernels *k, uint32_t n_in)
{
    return k->block_ranges ? n_in / INT8_BLOCK : 1;
}

/* Bytes of a block in an int8 panel: weights, scales, sums. */
static inline size_t int8_block_bytes(const struct product_kernels *k)
{
    return k->panel * (INT8_BLOCK + (k->block_ranges ? 2 : 1) * sizeof(float));
}

struct engine_kernels {
    const char *name;
    const struct product_kernels *product;
    const struct row_kernels *row;
};

/* The best table of this processor, or the one KITH_KERNELS names (KITH_EUNSUPPORTED where the
 * processor or the build lacks it, KITH_EINVAL where the name is none). The first call may
 * fork, see amx.h. */
int engine_kernels(const struct engine_kernels **out, struct err *e);
/* After that: why a set that this processor announces was not taken, "" where there is nothing
 * to say. For a log. */
const char *engine_kernels_refused(void);
/* By name; the same errors. For tests and benches. */
int engine_kernels_named(const struct engine_kernels **out, const char *name, struct err *e);
