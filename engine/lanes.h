#pragma once
/* One vector of floats, as wide as the instruction set this file is compiled for.
 *
 * Only the kernel files include this. It gives them a handful of operations on `vf` (LANES
 * floats) and `vi` (LANES 32-bit integers), so that everything that is not bound to one
 * instruction is written once. AVX-512 has 16 lanes, AVX2 8, NEON 4, everything else 1: the
 * scalar variant is then the plain formula, element by element, and serves as the oracle of the
 * others.
 *
 * SIMDe 0.7.4 lacks the 512-bit int-to-float conversion and the horizontal sums; they are made
 * from the compiler's vector conversion and from halves. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { CACHE_LINE = 64 }; /* bytes that one prefetch brings */

#if KITH_EMULATED_ISAS
/* An instruction is a page of others there, of which hundreds of copies take minutes to
 * compile. */
#define KERNEL_INLINE static __attribute__((noinline, unused))
#else
#define KERNEL_INLINE static inline __attribute__((always_inline, unused))
#endif
#define LANES_PASTE_(a, b) a##b
#define LANES_PASTE(a, b) LANES_PASTE_(a, b)
/* KERNEL_TABLE(row_kernels_) names this variant's table: row_kernels_avx2. */
#define KERNEL_TABLE(prefix) LANES_PASTE(prefix, KITH_ISA)

/* Which of the two ways activations become codes (kernels.h): what the row kernels write is
 * what the products take. */
#if defined(KITH_ISA_avx2)
enum { BLOCK_RANGES = 1 };
#else
enum { BLOCK_RANGES = 0 };
#endif

#if defined(KITH_ISA_avx512)
#include <simde/x86/avx512.h>

#define LANES 16
#define vf simde__m512
#define vi simde__m512i

KERNEL_INLINE vf vf_load(const float *p)
{
    return simde_mm512_loadu_ps(p);
}
KERNEL_INLINE void vf_store(float *p, vf v)
{
    simde_mm512_storeu_ps(p, v);
}
KERNEL_INLINE vf vf_set(float x)
{
    return simde_mm512_set1_ps(x);
}
KERNEL_INLINE vf vf_add(vf a, vf b)
{
    return simde_mm512_add_ps(a, b);
}
KERNEL_INLINE vf vf_sub(vf a, vf b)
{
    return simde_mm512_sub_ps(a, b);
}
KERNEL_INLINE vf vf_mul(vf a, vf b)
{
    return simde_mm512_mul_ps(a, b);
}
KERNEL_INLINE vf vf_div(vf a, vf b)
{
    return simde_mm512_div_ps(a, b);
}
KERNEL_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return simde_mm512_fmadd_ps(a, b, c);
}
KERNEL_INLINE vf vf_min(vf a, vf b)
{
    return simde_mm512_min_ps(a, b);
}
KERNEL_INLINE vf vf_max(vf a, vf b)
{
    return simde_mm512_max_ps(a, b);
}
KERNEL_INLINE vi vi_of_bits(vf v)
{
    return simde_mm512_castps_si512(v);
}
KERNEL_INLINE vf vf_of_bits(vi v)
{
    return simde_mm512_castsi512_ps(v);
}
KERNEL_INLINE vi vi_set(int32_t x)
{
    return simde_mm512_set1_epi32(x);
}
KERNEL_INLINE vi vi_load(const int32_t *p)
{
    return simde_mm512_loadu_si512(p);
}
KERNEL_INLINE vi vi_add(vi a, vi b)
{
    return simde_mm512_add_epi32(a, b);
}
KERNEL_INLINE vi vi_sub(vi a, vi b)
{
    return simde_mm512_sub_epi32(a, b);
}
KERNEL_INLINE vi vi_shift_to_exponent(vi a)
{
    return simde_mm512_slli_epi32(a, 23);
}
KERNEL_INLINE vf vf_of_vi(vi v)
{
    typedef int32_t ints __attribute__((vector_size(64)));
    typedef float floats __attribute__((vector_size(64)));
    return (vf) __builtin_convertvector((ints)v, floats);
}
KERNEL_INLINE void vi_store_bytes(uint8_t *p, vi v) /* each lane in 0 .. 255 */
{
    simde__m128i low = simde_mm512_cvtsepi32_epi8(vi_sub(v, vi_set(128)));
    simde_mm_storeu_si128((simde__m128i *)p, simde_mm_xor_si128(low, simde_mm_set1_epi8(-128)));
}
KERNEL_INLINE void vi_store_words(int16_t *p, vi v) /* each lane in -32768 .. 32767 */
{
    simde_mm256_storeu_si256((simde__m256i *)p, simde_mm512_cvtsepi32_epi16(v));
}
KERNEL_INLINE simde__m256 vf_half(vf v, int upper)
{
    simde__m512d d = simde_mm512_castps_pd(v);
    return simde_mm256_castpd_ps(upper ? simde_mm512_extractf64x4_pd(d, 1)
                                       : simde_mm512_castpd512_pd256(d));
}

#elif defined(KITH_ISA_avx2)
#include <simde/x86/avx2.h>
#include <simde/x86/fma.h>

#define LANES 8
#define vf simde__m256
#define vi simde__m256i

KERNEL_INLINE vf vf_load(const float *p)
{
    return simde_mm256_loadu_ps(p);
}
KERNEL_INLINE void vf_store(float *p, vf v)
{
    simde_mm256_storeu_ps(p, v);
}
KERNEL_INLINE vf vf_set(float x)
{
    return simde_mm256_set1_ps(x);
}
KERNEL_INLINE vf vf_add(vf a, vf b)
{
    return simde_mm256_add_ps(a, b);
}
KERNEL_INLINE vf vf_sub(vf a, vf b)
{
    return simde_mm256_sub_ps(a, b);
}
KERNEL_INLINE vf vf_mul(vf a, vf b)
{
    return simde_mm256_mul_ps(a, b);
}
KERNEL_INLINE vf vf_div(vf a, vf b)
{
    return simde_mm256_div_ps(a, b);
}
KERNEL_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return simde_mm256_fmadd_ps(a, b, c);
}
KERNEL_INLINE vf vf_min(vf a, vf b)
{
    return simde_mm256_min_ps(a, b);
}
KERNEL_INLINE vf vf_max(vf a, vf b)
{
    return simde_mm256_max_ps(a, b);
}
KERNEL_INLINE vi vi_of_bits(vf v)
{
    return simde_mm256_castps_si256(v);
}
KERNEL_INLINE vf vf_of_bits(vi v)
{
    return simde_mm256_castsi256_ps(v);
}
KERNEL_INLINE vi vi_set(int32_t x)
{
    return simde_mm256_set1_epi32(x);
}
KERNEL_INLINE vi vi_add(vi a, vi b)
{
    return simde_mm256_add_epi32(a, b);
}
KERNEL_INLINE vi vi_sub(vi a, vi b)
{
    return simde_mm256_sub_epi32(a, b);
}
KERNEL_INLINE vi vi_shift_to_exponent(vi a)
{
    return simde_mm256_slli_epi32(a, 23);
}
KERNEL_INLINE vf vf_of_vi(vi v)
{
    return simde_mm256_cvtepi32_ps(v);
}
KERNEL_INLINE void vi_store_bytes(uint8_t *p, vi v) /* each lane in 0 .. 255 */
{
    simde__m128i words = simde_mm_packs_epi32(simde_mm256_castsi256_si128(v),
                                              simde_mm256_extracti128_si256(v, 1));
    simde_mm_storel_epi64((simde__m128i *)p, simde_mm_packus_epi16(words, words));
}
KERNEL_INLINE void vi_store_words(int16_t *p, vi v) /* each lane in -32768 .. 32767 */
{
    simde_mm_storeu_si128((simde__m128i *)p,
                          simde_mm_packs_epi32(simde_mm256_castsi256_si128(v),
                                               simde_mm256_extracti128_si256(v, 1)));
}

#elif defined(KITH_ISA_neon)
#include <simde/arm/neon.h>

#define LANES 4
#define vf simde_float32x4_t
#define vi simde_int32x4_t

KERNEL_INLINE vf vf_load(const float *p)
{
    return simde_vld1q_f32(p);
}
KERNEL_INLINE void vf_store(float *p, vf v)
{
    simde_vst1q_f32(p, v);
}
KERNEL_INLINE vf vf_set(float x)
{
    return simde_vdupq_n_f32(x);
}
KERNEL_INLINE vf vf_add(vf a, vf b)
{
    return simde_vaddq_f32(a, b);
}
KERNEL_INLINE vf vf_sub(vf a, vf b)
{
    return simde_vsubq_f32(a, b);
}
KERNEL_INLINE vf vf_mul(vf a, vf b)
{
    return simde_vmulq_f32(a, b);
}
KERNEL_INLINE vf vf_div(vf a, vf b)
{
    return a / b; /* SIMDe 0.7.4 has no vdivq */
}
KERNEL_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return simde_vfmaq_f32(c, a, b);
}
/* Of a number and what is none the number: as elsewhere when the number comes second, which is
 * how a bound is written. */
KERNEL_INLINE vf vf_min(vf a, vf b)
{
    return simde_vminnmq_f32(a, b);
}
KERNEL_INLINE vf vf_max(vf a, vf b)
{
    return simde_vmaxnmq_f32(a, b);
}
KERNEL_INLINE vi vi_of_bits(vf v)
{
    return simde_vreinterpretq_s32_f32(v);
}
KERNEL_INLINE vf vf_of_bits(vi v)
{
    return simde_vreinterpretq_f32_s32(v);
}
KERNEL_INLINE vi vi_set(int32_t x)
{
    return simde_vdupq_n_s32(x);
}
KERNEL_INLINE vi vi_add(vi a, vi b)
{
    return simde_vaddq_s32(a, b);
}
KERNEL_INLINE vi vi_sub(vi a, vi b)
{
    return simde_vsubq_s32(a, b);
}
KERNEL_INLINE vi vi_shift_to_exponent(vi a)
{
    return simde_vshlq_n_s32(a, 23);
}
KERNEL_INLINE vf vf_of_vi(vi v)
{
    return simde_vcvtq_f32_s32(v);
}
KERNEL_INLINE void vi_store_bytes(uint8_t *p, vi v) /* each lane in 0 .. 255 */
{
    simde_int16x4_t words = simde_vqmovn_s32(v);
    simde_uint8x8_t bytes = simde_vqmovun_s16(simde_vcombine_s16(words, words));
    uint32_t four = simde_vget_lane_u32(simde_vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &four, sizeof four);
}
KERNEL_INLINE void vi_store_words(int16_t *p, vi v) /* each lane in -32768 .. 32767 */
{
    simde_vst1_s16(p, simde_vqmovn_s32(v));
}

#else

#define LANES 1
#define vf float
#define vi int32_t

KERNEL_INLINE vf vf_load(const float *p)
{
    return *p;
}
KERNEL_INLINE void vf_store(float *p, vf v)
{
    *p = v;
}
KERNEL_INLINE vf vf_set(float x)
{
    return x;
}
KERNEL_INLINE vf vf_add(vf a, vf b)
{
    return a + b;
}
KERNEL_INLINE vf vf_sub(vf a, vf b)
{
    return a - b;
}
KERNEL_INLINE vf vf_mul(vf a, vf b)
{
    return a * b;
}
KERNEL_INLINE vf vf_div(vf a, vf b)
{
    return a / b;
}
KERNEL_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
KERNEL_INLINE vf vf_min(vf a, vf b)
{
    return a < b ? a : b;
}
KERNEL_INLINE vf vf_max(vf a, vf b)
{
    return a > b ? a : b;
}
KERNEL_INLINE vi vi_of_bits(vf v)
{
    vi bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}
KERNEL_INLINE vf vf_of_bits(vi v)
{
    vf x;
    memcpy(&x, &v, sizeof x);
    return x;
}
KERNEL_INLINE vi vi_set(int32_t x)
{
    return x;
}
KERNEL_INLINE vi vi_add(vi a, vi b)
{
    return a + b;
}
KERNEL_INLINE vi vi_sub(vi a, vi b)
{
    return a - b;
}
KERNEL_INLINE vi vi_shift_to_exponent(vi a)
{
    return (vi)((uint32_t)a << 23);
}
KERNEL_INLINE vf vf_of_vi(vi v)
{
    return (float)v;
}
KERNEL_INLINE void vi_store_bytes(uint8_t *p, vi v) /* in 0 .. 255 */
{
    *p = (uint8_t)v;
}
KERNEL_INLINE void vi_store_words(int16_t *p, vi v) /* in -32768 .. 32767 */
{
    *p = (int16_t)v;
}

#endif

/* Horizontal sum, maximum and minimum: on x86 halves down to four lanes, then a shuffle or two.
 */
#if defined(KITH_ISA_neon)
KERNEL_INLINE float vf_sum(vf v)
{
    return simde_vaddvq_f32(v);
}
KERNEL_INLINE float vf_largest(vf v)
{
    return simde_vmaxvq_f32(v);
}
KERNEL_INLINE float vf_smallest(vf v)
{
    return simde_vminvq_f32(v);
}
#elif LANES > 1
KERNEL_INLINE simde__m128 lanes_fold(vf v, simde__m128 (*op)(simde__m128, simde__m128),
                                     simde__m256 (*wide)(simde__m256, simde__m256))
{
#if LANES == 16
    simde__m256 half = wide(vf_half(v, 0), vf_half(v, 1));
#else
    simde__m256 half = v;
    (void)wide;
#endif
    simde__m128 q = op(simde_mm256_castps256_ps128(half), simde_mm256_extractf128_ps(half, 1));
    q = op(q, simde_mm_movehl_ps(q, q));
    return op(q, simde_mm_shuffle_ps(q, q, 1));
}
KERNEL_INLINE float vf_sum(vf v)
{
    return simde_mm_cvtss_f32(lanes_fold(v, simde_mm_add_ps, simde_mm256_add_ps));
}
KERNEL_INLINE float vf_largest(vf v)
{
    return simde_mm_cvtss_f32(lanes_fold(v, simde_mm_max_ps, simde_mm256_max_ps));
}
KERNEL_INLINE float vf_smallest(vf v)
{
    return simde_mm_cvtss_f32(lanes_fold(v, simde_mm_min_ps, simde_mm256_min_ps));
}
#else
KERNEL_INLINE float vf_sum(vf v)
{
    return v;
}
KERNEL_INLINE float vf_largest(vf v)
{
    return v;
}
KERNEL_INLINE float vf_smallest(vf v)
{
    return v;
}
#endif

/* Adding 1.5 * 2^23 rounds to the nearest integer (ties to even) and leaves it in the low bits.
 */
#define LANES_ROUNDER 12582912.0f
#define LANES_ROUNDER_BITS 0x4B400000
