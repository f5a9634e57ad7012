#pragma once
/* IEEE 754 half precision and bfloat16 to and from float, in plain integer arithmetic. The fast
 * paths use the machine's own instructions; these are for loading, converting and the oracle.
 * Rounding is to nearest, ties to even; NaN stays NaN. Thread: any. */

#include <stdint.h>
#include <string.h>

static inline uint32_t half_bits_of_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float half_f32_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, m = h & 0x3ffu;
    if (exponent == 31)
        return half_f32_of_bits(sign | 0x7f800000u | m << 13);
    if (exponent == 0) {
        /* Zero or subnormal: m / 2^24 is exact in float. */
        float v = (float)m * 0x1p-24f;
        return half_f32_of_bits(sign | half_bits_of_f32(v));
    }
    return half_f32_of_bits(sign | (exponent + 112) << 23 | m << 13);
}

static inline uint16_t half_from_f32(float f)
{
    uint32_t u = half_bits_of_f32(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) {
        /* Below 2^-14: adding 0.5 lines the mantissa up so that the sum's own rounding, to
         * nearest even, is the one wanted. */
        float v = half_f32_of_bits(a) + 0.5f;
        return (uint16_t)(sign | (half_bits_of_f32(v) - 0x3f000000u));
    }
    uint32_t odd = a >> 13 & 1u;
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + odd) >> 13));
}

static inline float half_bf16_to_f32(uint16_t b)
{
    return half_f32_of_bits((uint32_t)b << 16);
}

static inline uint16_t half_bf16_from_f32(float f)
{
    uint32_t u = half_bits_of_f32(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
