#pragma once
/* Vector kernels: the inner loops of the index, one table an instruction set.
 *
 * vector_kernels.c is written once and compiled once for each set; a table is chosen at the
 * first use by what the processor has, or by KITH_KERNELS ("scalar", "avx2", "avx512", "neon"),
 * which may only ask for less than there is. The scalar table is the oracle: integer kernels
 * agree with it exactly, float sums within rounding.
 *
 * Pointers need no alignment beyond that of their element, n may be anything. Thread: any. */

#include <stddef.h>
#include <stdint.h>

struct vector_kernels {
    const char *name;
    /* The sum of a[i] * b[i]. */
    float (*dot_f32)(const float *a, const float *b, size_t n);
    void (*dot_f32_x4)(const float *q, const float *const c[4], size_t n, float out[4]);
    /* The sum of q[i] * c[i], where q[i] is an int8 code + int8_center. With 128 it is an
     * unsigned byte, which is the shape of the VNNI instruction; with 0 the code as it is, for
     * machines that multiply signed bytes. The caller takes int8_center * sum(c) away. Exact:
     * |result| stays below 255 * 128 * INDEX_DIM_MAX < 2^31. */
    int32_t int8_center;
    int32_t (*dot_i8)(const uint8_t *q, const int8_t *c, size_t n);
    void (*dot_i8_x4)(const uint8_t *q, const int8_t *const c[4], size_t n, int32_t out[4]);
    /* The sum of q[i] * c[i], c in half precision. */
    float (*dot_f16)(const float *q, const uint16_t *c, size_t n);
    void (*dot_f16_x4)(const float *q, const uint16_t *const c[4], size_t n, float out[4]);
    /* How many bits differ in n words of 8 bytes each; needs no alignment at all. */
    uint32_t (*hamming)(const void *a, const void *b, size_t n);
    void (*hamming_x4)(const void *q, const void *const c[4], size_t n, uint32_t out[4]);
    /* IEEE 754 binary16, rounded to nearest even; a not-a-number keeps the upper bits of its
     * payload and becomes quiet. Every table gives the same bits. */
    void (*to_half)(const float *x, size_t n, uint16_t *out);
    void (*from_half)(const uint16_t *x, size_t n, float *out);
    /* The largest |x[i]|; 0 for n = 0. */
    float (*max_abs)(const float *x, size_t n);
    /* out[i] = x[i] * scale, rounded to nearest even; the caller's scale keeps it within -127
     * .. 127. Returns the sum of out. Every table gives the same bytes. */
    int32_t (*quantize)(const float *x, size_t n, float scale, int8_t *out);
};

/* The table in use. */
const struct vector_kernels *kernels_get(void);
/* The table of that name, NULL when this build or this processor lacks it. For tests. */
const struct vector_kernels *kernels_named(const char *name);
