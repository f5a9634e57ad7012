/* Floats to blocks of one and of 32 elements.
 *
 * The plain quantizers follow ggml's reference: the scale is the largest magnitude over the
 * largest code (Q8_0), the signed value of largest magnitude over the most negative code (Q4_0,
 * Q5_0: there is one more negative code than there are positive ones, and the largest value
 * gets it), or the span over the number of steps (Q4_1, Q5_1). Codes come from the scale before
 * it is rounded to half precision. IQ4_NL searches, as the K types do.
 *
 * A scale that is zero as a half makes a block of zeros: its inverse may not be finite. */

#include <math.h>

#include "base/bytes.h"
#include "engine/blocks.h"
#include "engine/half.h"

enum { HALF_BYTES = 2, HIGH_BYTES = 4, NIBBLES = 16 };

static float inverse_of(float scale)
{
    return half_to_f32(half_from_f32(scale)) == 0.0f ? 0.0f : 1.0f / scale;
}

static int clamp_code(int code, int most)
{
    return code < 0 ? 0 : code > most ? most : code;
}

/* --- one element a block --- */

void block_encode_f32(const float *x, size_t n, unsigned char *p)
{
    for (size_t i = 0; i < n; i++)
        store_f32(p + 4 * i, x[i]);
}

void block_encode_f16(const float *x, size_t n, unsigned char *p)
{
    for (size_t i = 0; i < n; i++)
        store_u16(p + 2 * i, half_from_f32(x[i]));
}

void block_encode_bf16(const float *x, size_t n, unsigned char *p)
{
    for (size_t i = 0; i < n; i++)
        store_u16(p + 2 * i, half_bf16_from_f32(x[i]));
}

/* --- 32 elements a block --- */

/* The value of largest magnitude, with its sign; the first of several. */
static float largest_of(const float *x)
{
    float largest = 0;
    for (int i = 0; i < BLOCK_ELEMENTS; i++)
        if (fabsf(x[i]) > fabsf(largest))
            largest = x[i];
    return largest;
}

static void pack_nibbles(const int *codes, unsigned char *p)
{
    for (int j = 0; j < NIBBLES; j++)
        p[j] = (unsigned char)((codes[j] & 15) | (codes[j + NIBBLES] & 15) << 4);
}

static void pack_fifth_bits(const int *codes, unsigned char *p)
{
    uint32_t bits = 0;
    for (int i = 0; i < BLOCK_ELEMENTS; i++)
        bits |= (uint32_t)(codes[i] >> 4 & 1) << i;
    store_u32(p, bits);
}

void block_encode_q8_0(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += BLOCK_ELEMENTS, p += HALF_BYTES + BLOCK_ELEMENTS) {
        float d = fabsf(largest_of(x)) / 127.0f, inverse = inverse_of(d);
        store_u16(p, half_from_f32(d));
        for (int i = 0; i < BLOCK_ELEMENTS; i++)
            p[HALF_BYTES + i] = (unsigned char)(int8_t)roundf(x[i] * inverse);
    }
}

/* Codes 0 .. 2 * middle - 1 that stand for code - middle. */
static float codes_around(const float *x, int middle, int *codes)
{
    float d = largest_of(x) / (float)-middle, inverse = inverse_of(d);
    for (int i = 0; i < BLOCK_ELEMENTS; i++)
        codes[i] =
            clamp_code((int)floorf(x[i] * inverse + (float)middle + 0.5f), 2 * middle - 1);
    return d;
}

void block_encode_q4_0(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += BLOCK_ELEMENTS, p += NIBBLES) {
        int codes[BLOCK_ELEMENTS];
        store_u16(p, half_from_f32(codes_around(x, 8, codes)));
        p += HALF_BYTES;
        pack_nibbles(codes, p);
    }
}

void block_encode_q5_0(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += BLOCK_ELEMENTS, p += NIBBLES) {
        int codes[BLOCK_ELEMENTS];
        store_u16(p, half_from_f32(codes_around(x, 16, codes)));
        pack_fifth_bits(codes, p + HALF_BYTES);
        p += HALF_BYTES + HIGH_BYTES;
        pack_nibbles(codes, p);
    }
}

/* Codes 0 .. most over the span of the values; writes scale and offset to p. */
static void codes_over_span(const float *x, int most, int *codes, unsigned char *p)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < BLOCK_ELEMENTS; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float d = (high - low) / (float)most, inverse = inverse_of(d);
    for (int i = 0; i < BLOCK_ELEMENTS; i++)
        codes[i] = clamp_code((int)floorf((x[i] - low) * inverse + 0.5f), most);
    store_u16(p, half_from_f32(d));
    store_u16(p + HALF_BYTES, half_from_f32(low));
}

void block_encode_q4_1(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += BLOCK_ELEMENTS, p += NIBBLES) {
        int codes[BLOCK_ELEMENTS];
        codes_over_span(x, 15, codes, p);
        p += 2 * HALF_BYTES;
        pack_nibbles(codes, p);
    }
}

void block_encode_q5_1(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += BLOCK_ELEMENTS, p += NIBBLES) {
        int codes[BLOCK_ELEMENTS];
        codes_over_span(x, 31, codes, p);
        pack_fifth_bits(codes, p + 2 * HALF_BYTES);
        p += 2 * HALF_BYTES + HIGH_BYTES;
        pack_nibbles(codes, p);
    }
}

/* --- IQ4_NL --- */

/* The codes whose values are nearest to x * inverse: how many middles between neighbours lie
 * below it. Middle by middle for all elements, which the compiler makes vectors of. */
static void nearest_codes(const float *x, float inverse, int32_t *codes)
{
    float v[BLOCK_ELEMENTS];
    for (int i = 0; i < BLOCK_ELEMENTS; i++) {
        v[i] = x[i] * inverse;
        codes[i] = 0;
    }
    for (int t = 0; t < 15; t++) {
        float middle = 0.5f * (float)(block_iq4_nl_values[t] + block_iq4_nl_values[t + 1]);
        for (int i = 0; i < BLOCK_ELEMENTS; i++)
            codes[i] += v[i] > middle;
    }
}

/* With the codes that 1 / inverse gives, the scale that is best for them, and how much of the
 * weighted sum of squares it explains: minimising sum w (x - d t)^2 over d leaves
 * sum w x^2 - (sum w x t)^2 / sum w t^2, with w = x^2. */
static float explained(const float *x, float inverse, float *d)
{
    float xt = 0, tt = 0;
    int32_t codes[BLOCK_ELEMENTS];
    nearest_codes(x, inverse, codes);
    for (int i = 0; i < BLOCK_ELEMENTS; i++) {
        float t = block_iq4_nl_values[codes[i]], w = x[i] * x[i];
        xt += w * x[i] * t;
        tt += w * t * t;
    }
    *d = tt > 0 ? xt / tt : 0;
    return tt > 0 ? xt * xt / tt : 0;
}

static float search_iq4_nl(const float *x)
{
    enum { STEPS = 7 };
    float largest = largest_of(x), best = -1, best_d = 0;
    if (inverse_of(largest / 127.0f) == 0)
        return 0;
    /* Whichever end of the table the largest value is put near, and scales a little to both
     * sides of that. */
    for (int k = -STEPS; k <= STEPS; k++)
        for (int end = 0; end < 2; end++) {
            float t = (float)block_iq4_nl_values[end * 15] * (1.0f + 0.03f * (float)k), d;
            float gain = explained(x, t / largest, &d);
            if (gain > best && inverse_of(d) != 0) {
                best = gain;
                best_d = d;
            }
        }
    return best_d;
}

void block_encode_iq4_nl(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += BLOCK_ELEMENTS, p += NIBBLES) {
        uint16_t half = half_from_f32(search_iq4_nl(x));
        float inverse = inverse_of(half_to_f32(half));
        int32_t codes[BLOCK_ELEMENTS];
        store_u16(p, half);
        nearest_codes(x, inverse, codes);
        p += HALF_BYTES;
        pack_nibbles(codes, p);
    }
}
