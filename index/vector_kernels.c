/* The kernels of kernels.h, written once and compiled once per instruction set: KITH_ISA is the
 * set's name and KITH_ISA_<name> is 1.
 *
 * The wide paths are intrinsics through SIMDe: AVX2 and AVX-512, or NEON, where a wide vector
 * is two of 128 bits. A dot product of 384 int8 is six loads of 64 bytes a code: the loop waits
 * for memory, not for multiplications, so the x4 forms run four codes side by side to keep four
 * rows of cache misses in flight and to load the query once. The tail of n that fills no vector
 * goes through the next narrower width and then one by one.
 *
 * Rejected: the sign trick (|a| * sign(b, a)) instead of the +128 bias: two operations more for
 * each 64 bytes, while the sum of a code is computed once, when it is written. */
#include "index/kernels.h"

#include <math.h>
#include <string.h>

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)

static inline float half_value(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, most = h & 0x7c00u, low = h & 0x3ffu, bits;
    float value;
    if (most == 0) { /* a multiple of 2^-24 */
        value = (float)low * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else if (most == 0x7c00u) {
        bits = sign | 0x7f800000u | low << 13 | (low ? 0x400000u : 0);
    } else {
        bits = sign | ((uint32_t)(h & 0x7fffu) + (112u << 10)) << 13;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t half_of(float x)
{
    uint32_t bits, half;
    memcpy(&bits, &x, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u)
        half = 0x7e00u | (size >> 13 & 0x3ffu);
    else if (size >= 0x477ff000u) /* 65,520: half-way to what would come after 65,504 */
        half = 0x7c00u;
    else if (size < 0x38800000u) /* below 2^-14: a multiple of 2^-24 */
        half = (uint32_t)lrintf(fabsf(x) * 0x1p24f);
    else /* the carry of a mantissa that is rounded up goes where it should, into the exponent
          */
        half = (size - (112u << 23) + 0xfffu + (size >> 13 & 1)) >> 13;
    return (uint16_t)(sign | half);
}

static inline uint64_t load_word(const void *p, size_t i)
{
    uint64_t word;
    memcpy(&word, (const char *)p + i * sizeof word, sizeof word);
    return word;
}

#if !KITH_ISA_neon

/* One word at a time in every set of x86: with a POPCNT for each, codes of the usual dimensions
 * (6 to 24 words) are counted in fewer steps than a vector's worth of table look-ups takes to
 * add up. */
static uint32_t hamming(const void *a, const void *b, size_t n)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (uint64_t)__builtin_popcountll(load_word(a, i) ^ load_word(b, i));
    return (uint32_t)sum;
}

static void hamming_x4(const void *q, const void *const c[4], size_t n, uint32_t out[4])
{
    uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t word = load_word(q, i);
        s0 += (uint64_t)__builtin_popcountll(word ^ load_word(c[0], i));
        s1 += (uint64_t)__builtin_popcountll(word ^ load_word(c[1], i));
        s2 += (uint64_t)__builtin_popcountll(word ^ load_word(c[2], i));
        s3 += (uint64_t)__builtin_popcountll(word ^ load_word(c[3], i));
    }
    out[0] = (uint32_t)s0;
    out[1] = (uint32_t)s1;
    out[2] = (uint32_t)s2;
    out[3] = (uint32_t)s3;
}

#endif

#if KITH_ISA_scalar

enum { INT8_CENTER = 128 };

static float dot_f16(const float *q, const uint16_t *c, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += q[i] * half_value(c[i]);
    return sum;
}

static void dot_f16_x4(const float *q, const uint16_t *const c[4], size_t n, float out[4])
{
    for (int k = 0; k < 4; k++)
        out[k] = dot_f16(q, c[k], n);
}

static void to_half(const float *x, size_t n, uint16_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = half_of(x[i]);
}

static void from_half(const uint16_t *x, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = half_value(x[i]);
}

static float dot_f32(const float *a, const float *b, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void dot_f32_x4(const float *q, const float *const c[4], size_t n, float out[4])
{
    for (int k = 0; k < 4; k++)
        out[k] = dot_f32(q, c[k], n);
}

static int32_t dot_i8(const uint8_t *q, const int8_t *c, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (int32_t)q[i] * c[i];
    return sum;
}

static void dot_i8_x4(const uint8_t *q, const int8_t *const c[4], size_t n, int32_t out[4])
{
    for (int k = 0; k < 4; k++)
        out[k] = dot_i8(q, c[k], n);
}

static float max_abs(const float *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

static int32_t quantize(const float *x, size_t n, float scale, int8_t *out)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = (int8_t)lrintf(x[i] * scale);
        sum += out[i];
    }
    return sum;
}

#else

/* The wide vectors of a set: one step of the integer dot product takes I8_STEP bytes, of the
 * float one F32_STEP floats. */
#if KITH_ISA_neon

#include <simde/arm/neon.h>

enum { INT8_CENTER = 0, I8_STEP = 32, F32_STEP = 8 };
#define wide_i simde_int32x4x2_t
#define wide_f simde_float32x4x2_t

static inline wide_i wide_i_zero(void)
{
    return (wide_i){{simde_vdupq_n_s32(0), simde_vdupq_n_s32(0)}};
}

static inline wide_f wide_f_zero(void)
{
    return (wide_f){{simde_vdupq_n_f32(0), simde_vdupq_n_f32(0)}};
}

static inline wide_f wide_f_load(const float *p)
{
    return (wide_f){{simde_vld1q_f32(p), simde_vld1q_f32(p + 4)}};
}

static inline wide_f wide_f_load_half(const uint16_t *p)
{
    const simde_float16 *h = (const void *)p;
    return (wide_f){
        {simde_vcvt_f32_f16(simde_vld1_f16(h)), simde_vcvt_f32_f16(simde_vld1_f16(h + 4))}};
}

static inline wide_f wide_f_fma(wide_f a, wide_f b, wide_f sum)
{
    return (wide_f){{simde_vfmaq_f32(sum.val[0], a.val[0], b.val[0]),
                     simde_vfmaq_f32(sum.val[1], a.val[1], b.val[1])}};
}

static inline float wide_f_sum(wide_f v)
{
    return simde_vaddvq_f32(simde_vaddq_f32(v.val[0], v.val[1]));
}

static inline simde_int8x16_t load_i8(const void *p)
{
    return simde_vld1q_s8(p);
}

static inline wide_i wide_dot(wide_i sum, const uint8_t *q, const int8_t *c)
{
    return (wide_i){{simde_vdotq_s32(sum.val[0], load_i8(q), load_i8(c)),
                     simde_vdotq_s32(sum.val[1], load_i8(q + 16), load_i8(c + 16))}};
}

static inline int32_t wide_i_sum(wide_i v)
{
    return simde_vaddvq_s32(simde_vaddq_s32(v.val[0], v.val[1]));
}

static inline void wide_i_sum4(wide_i a, wide_i b, wide_i c, wide_i d, int32_t out[4])
{
    simde_int32x4_t ab = simde_vpaddq_s32(simde_vaddq_s32(a.val[0], a.val[1]),
                                          simde_vaddq_s32(b.val[0], b.val[1]));
    simde_int32x4_t cd = simde_vpaddq_s32(simde_vaddq_s32(c.val[0], c.val[1]),
                                          simde_vaddq_s32(d.val[0], d.val[1]));
    simde_vst1q_s32(out, simde_vpaddq_s32(ab, cd));
}

/* What is left after the wide steps: 16 bytes, then one by one. */
static inline int32_t dot_i8_rest(const uint8_t *q, const int8_t *c, size_t n)
{
    int32_t sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        sum += simde_vaddvq_s32(
            simde_vdotq_s32(simde_vdupq_n_s32(0), load_i8(q + i), load_i8(c + i)));
    for (; i < n; i++)
        sum += (int32_t)(int8_t)q[i] * c[i];
    return sum;
}

/* Bits are counted a byte, and UDOT with ones adds up four of the counts. */
static inline simde_uint32x4_t bits_add(simde_uint32x4_t sum, simde_uint8x16_t a, const void *b)
{
    simde_uint8x16_t bits = simde_vcntq_u8(simde_veorq_u8(a, simde_vld1q_u8(b)));
    return simde_vdotq_u32(sum, bits, simde_vdupq_n_u8(1));
}

static uint32_t hamming(const void *a, const void *b, size_t n)
{
    const char *pa = a, *pb = b;
    simde_uint32x4_t sum = simde_vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 2 <= n; i += 2)
        sum = bits_add(sum, simde_vld1q_u8((const void *)(pa + 8 * i)), pb + 8 * i);
    uint32_t rest =
        i < n ? (uint32_t)__builtin_popcountll(load_word(a, i) ^ load_word(b, i)) : 0;
    return simde_vaddvq_u32(sum) + rest;
}

static void hamming_x4(const void *q, const void *const c[4], size_t n, uint32_t out[4])
{
    const char *c0 = c[0], *c1 = c[1], *c2 = c[2], *c3 = c[3];
    simde_uint32x4_t s0 = simde_vdupq_n_u32(0), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 2 <= n; i += 2) {
        size_t at = 8 * i;
        simde_uint8x16_t v = simde_vld1q_u8((const void *)((const char *)q + at));
        s0 = bits_add(s0, v, c0 + at);
        s1 = bits_add(s1, v, c1 + at);
        s2 = bits_add(s2, v, c2 + at);
        s3 = bits_add(s3, v, c3 + at);
    }
    simde_vst1q_u32(out, simde_vpaddq_u32(simde_vpaddq_u32(s0, s1), simde_vpaddq_u32(s2, s3)));
    if (i < n)
        for (int k = 0; k < 4; k++)
            out[k] += (uint32_t)__builtin_popcountll(load_word(q, i) ^ load_word(c[k], i));
}

static void to_half(const float *x, size_t n, uint16_t *out)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        simde_vst1_u16(out + i,
                       simde_vreinterpret_u16_f16(simde_vcvt_f16_f32(simde_vld1q_f32(x + i))));
    for (; i < n; i++)
        out[i] = half_of(x[i]);
}

static void from_half(const uint16_t *x, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        simde_vst1q_f32(out + i, simde_vcvt_f32_f16(simde_vld1_f16((const void *)(x + i))));
    for (; i < n; i++)
        out[i] = half_value(x[i]);
}

static float max_abs(const float *x, size_t n)
{
    simde_float32x4_t most = simde_vdupq_n_f32(0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        most = simde_vmaxnmq_f32(most, simde_vabsq_f32(simde_vld1q_f32(x + i)));
    float result = simde_vmaxvq_f32(most);
    for (; i < n; i++)
        result = fabsf(x[i]) > result ? fabsf(x[i]) : result;
    return result;
}

static int32_t quantize(const float *x, size_t n, float scale, int8_t *out)
{
    simde_int32x4_t total = simde_vdupq_n_s32(0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        wide_f v = wide_f_load(x + i); /* SIMDe 0.7 cannot round as it converts */
        simde_int32x4_t low =
            simde_vcvtq_s32_f32(simde_vrndnq_f32(simde_vmulq_n_f32(v.val[0], scale)));
        simde_int32x4_t high =
            simde_vcvtq_s32_f32(simde_vrndnq_f32(simde_vmulq_n_f32(v.val[1], scale)));
        total = simde_vaddq_s32(total, simde_vaddq_s32(low, high));
        simde_vst1_s8(out + i, simde_vqmovn_s16(simde_vcombine_s16(simde_vqmovn_s32(low),
                                                                   simde_vqmovn_s32(high))));
    }
    int32_t sum = simde_vaddvq_s32(total);
    for (; i < n; i++) {
        out[i] = (int8_t)lrintf(x[i] * scale);
        sum += out[i];
    }
    return sum;
}

#else

#include <simde/x86/avx2.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

static inline float sum_f32(simde__m256 v)
{
    simde__m128 s =
        simde_mm_add_ps(simde_mm256_castps256_ps128(v), simde_mm256_extractf128_ps(v, 1));
    s = simde_mm_add_ps(s, simde_mm_movehl_ps(s, s));
    s = simde_mm_add_ss(s, simde_mm_shuffle_ps(s, s, 1));
    return simde_mm_cvtss_f32(s);
}

static inline int32_t sum_i32(simde__m256i v)
{
    simde__m128i s =
        simde_mm_add_epi32(simde_mm256_castsi256_si128(v), simde_mm256_extracti128_si256(v, 1));
    s = simde_mm_add_epi32(s, simde_mm_shuffle_epi32(s, 0x4e));
    s = simde_mm_add_epi32(s, simde_mm_shuffle_epi32(s, 0xb1));
    return simde_mm_cvtsi128_si32(s);
}

static inline simde__m256i load_i8(const void *p)
{
    return simde_mm256_loadu_si256(p);
}

enum { INT8_CENTER = 128 };

#if KITH_ISA_avx512

#include <simde/x86/avx512.h>

enum { I8_STEP = 64, F32_STEP = 16 };
#define wide_i simde__m512i
#define wide_f simde__m512
#define wide_i_zero simde_mm512_setzero_si512
#define wide_f_zero simde_mm512_setzero_ps
#define wide_f_load simde_mm512_loadu_ps
#define wide_f_fma simde_mm512_fmadd_ps

static inline simde__m512i wide_dot(simde__m512i sum, const uint8_t *q, const int8_t *c)
{
    return simde_mm512_dpbusd_epi32(sum, simde_mm512_loadu_si512(q),
                                    simde_mm512_loadu_si512(c));
}

static inline simde__m256i fold_i(simde__m512i v)
{
    return simde_mm256_add_epi32(simde_mm512_castsi512_si256(v),
                                 simde_mm512_extracti64x4_epi64(v, 1));
}

/* SIMDe 0.7 has no name for this one; this set is built for x86 alone. */
static inline simde__m512 wide_f_load_half(const uint16_t *p)
{
#if KITH_EMULATED_ISAS
    float values[F32_STEP];
    for (int i = 0; i < F32_STEP; i += 8)
        simde_mm256_storeu_ps(
            values + i, simde_mm256_cvtph_ps(simde_mm_loadu_si128((const void *)(p + i))));
    return simde_mm512_loadu_ps(values);
#else
    return _mm512_cvtph_ps(simde_mm256_loadu_si256((const void *)p));
#endif
}

static inline float wide_f_sum(simde__m512 v)
{
    simde__m256 low = simde_mm512_castps512_ps256(v);
    simde__m256 high =
        simde_mm256_castpd_ps(simde_mm512_extractf64x4_pd(simde_mm512_castps_pd(v), 1));
    return sum_f32(simde_mm256_add_ps(low, high));
}

#else

enum { I8_STEP = 32, F32_STEP = 8 };
#define wide_i simde__m256i
#define wide_f simde__m256
#define wide_i_zero simde_mm256_setzero_si256
#define wide_f_zero simde_mm256_setzero_ps
#define wide_f_load simde_mm256_loadu_ps
#define wide_f_fma simde_mm256_fmadd_ps
#define fold_i(v) (v)
#define wide_f_sum sum_f32

static inline simde__m256 wide_f_load_half(const uint16_t *p)
{
    return simde_mm256_cvtph_ps(simde_mm_loadu_si128((const void *)p));
}

/* Widened to 16 bits first: the u8 x i8 instruction of this set saturates. */
static inline simde__m256i wide_dot(simde__m256i sum, const uint8_t *q, const int8_t *c)
{
    simde__m256i vq = load_i8(q), vc = load_i8(c);
    simde__m256i low =
        simde_mm256_madd_epi16(simde_mm256_cvtepu8_epi16(simde_mm256_castsi256_si128(vq)),
                               simde_mm256_cvtepi8_epi16(simde_mm256_castsi256_si128(vc)));
    simde__m256i high =
        simde_mm256_madd_epi16(simde_mm256_cvtepu8_epi16(simde_mm256_extracti128_si256(vq, 1)),
                               simde_mm256_cvtepi8_epi16(simde_mm256_extracti128_si256(vc, 1)));
    return simde_mm256_add_epi32(sum, simde_mm256_add_epi32(low, high));
}

#endif

static inline int32_t wide_i_sum(wide_i v)
{
    return sum_i32(fold_i(v));
}

/* The sums of four vectors, added up side by side. */
static inline void wide_i_sum4(wide_i a, wide_i b, wide_i c, wide_i d, int32_t out[4])
{
    simde__m256i s = simde_mm256_hadd_epi32(simde_mm256_hadd_epi32(fold_i(a), fold_i(b)),
                                            simde_mm256_hadd_epi32(fold_i(c), fold_i(d)));
    simde_mm_storeu_si128((void *)out, simde_mm_add_epi32(simde_mm256_castsi256_si128(s),
                                                          simde_mm256_extracti128_si256(s, 1)));
}

/* What is left after the wide steps: 16 bytes at a time, then one by one. */
static inline int32_t dot_i8_rest(const uint8_t *q, const int8_t *c, size_t n)
{
    simde__m256i wide = simde_mm256_setzero_si256();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        simde__m256i vq =
            simde_mm256_cvtepu8_epi16(simde_mm_loadu_si128((const void *)(q + i)));
        simde__m256i vc =
            simde_mm256_cvtepi8_epi16(simde_mm_loadu_si128((const void *)(c + i)));
        wide = simde_mm256_add_epi32(wide, simde_mm256_madd_epi16(vq, vc));
    }
    int32_t sum = sum_i32(wide);
    for (; i < n; i++)
        sum += (int32_t)q[i] * c[i];
    return sum;
}

static void to_half(const float *x, size_t n, uint16_t *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        simde_mm_storeu_si128(
            (void *)(out + i),
            simde_mm256_cvtps_ph(simde_mm256_loadu_ps(x + i), SIMDE_MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++)
        out[i] = half_of(x[i]);
}

static void from_half(const uint16_t *x, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        simde_mm256_storeu_ps(
            out + i, simde_mm256_cvtph_ps(simde_mm_loadu_si128((const void *)(x + i))));
    for (; i < n; i++)
        out[i] = half_value(x[i]);
}

static float max_abs(const float *x, size_t n)
{
    simde__m256 sign = simde_mm256_set1_ps(-0.0f), most = simde_mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        most =
            simde_mm256_max_ps(most, simde_mm256_andnot_ps(sign, simde_mm256_loadu_ps(x + i)));
    float lanes[8], result = 0;
    simde_mm256_storeu_ps(lanes, most);
    for (int k = 0; k < 8; k++)
        result = lanes[k] > result ? lanes[k] : result;
    for (; i < n; i++)
        result = fabsf(x[i]) > result ? fabsf(x[i]) : result;
    return result;
}

static int32_t quantize(const float *x, size_t n, float scale, int8_t *out)
{
    simde__m256 s = simde_mm256_set1_ps(scale);
    simde__m256i total = simde_mm256_setzero_si256();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        simde__m256i v =
            simde_mm256_cvtps_epi32(simde_mm256_mul_ps(simde_mm256_loadu_ps(x + i), s));
        total = simde_mm256_add_epi32(total, v);
        simde__m128i h = simde_mm_packs_epi32(simde_mm256_castsi256_si128(v),
                                              simde_mm256_extracti128_si256(v, 1));
        simde_mm_storel_epi64((void *)(out + i), simde_mm_packs_epi16(h, h));
    }
    int32_t sum = sum_i32(total);
    for (; i < n; i++) {
        out[i] = (int8_t)lrintf(x[i] * scale);
        sum += out[i];
    }
    return sum;
}

#endif

static int32_t dot_i8(const uint8_t *q, const int8_t *c, size_t n)
{
    wide_i a = wide_i_zero();
    size_t i = 0;
    for (; i + I8_STEP <= n; i += I8_STEP)
        a = wide_dot(a, q + i, c + i);
    int32_t sum = wide_i_sum(a);
    return i == n ? sum : sum + dot_i8_rest(q + i, c + i, n - i);
}

static void dot_i8_x4(const uint8_t *q, const int8_t *const c[4], size_t n, int32_t out[4])
{
    const int8_t *c0 = c[0], *c1 = c[1], *c2 = c[2], *c3 = c[3];
    wide_i s0 = wide_i_zero(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + I8_STEP <= n; i += I8_STEP) {
        s0 = wide_dot(s0, q + i, c0 + i);
        s1 = wide_dot(s1, q + i, c1 + i);
        s2 = wide_dot(s2, q + i, c2 + i);
        s3 = wide_dot(s3, q + i, c3 + i);
    }
    wide_i_sum4(s0, s1, s2, s3, out);
    if (i < n)
        for (int k = 0; k < 4; k++)
            out[k] += dot_i8_rest(q + i, c[k] + i, n - i);
}

/* One sum only and no choice left to the compiler in what follows the wide steps, so that a
 * distance has the same bits whether its code came alone or among four. */
static float dot_f32(const float *a, const float *b, size_t n)
{
    wide_f s = wide_f_zero();
    size_t i = 0;
    for (; i + F32_STEP <= n; i += F32_STEP)
        s = wide_f_fma(wide_f_load(a + i), wide_f_load(b + i), s);
    float sum = wide_f_sum(s);
    for (; i < n; i++)
        sum = fmaf(a[i], b[i], sum);
    return sum;
}

static void dot_f32_x4(const float *q, const float *const c[4], size_t n, float out[4])
{
    const float *c0 = c[0], *c1 = c[1], *c2 = c[2], *c3 = c[3];
    wide_f s0 = wide_f_zero(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + F32_STEP <= n; i += F32_STEP) {
        wide_f v = wide_f_load(q + i);
        s0 = wide_f_fma(v, wide_f_load(c0 + i), s0);
        s1 = wide_f_fma(v, wide_f_load(c1 + i), s1);
        s2 = wide_f_fma(v, wide_f_load(c2 + i), s2);
        s3 = wide_f_fma(v, wide_f_load(c3 + i), s3);
    }
    out[0] = wide_f_sum(s0);
    out[1] = wide_f_sum(s1);
    out[2] = wide_f_sum(s2);
    out[3] = wide_f_sum(s3);
    for (; i < n; i++)
        for (int k = 0; k < 4; k++)
            out[k] = fmaf(q[i], c[k][i], out[k]);
}

static float dot_f16(const float *a, const uint16_t *b, size_t n)
{
    wide_f s = wide_f_zero();
    size_t i = 0;
    for (; i + F32_STEP <= n; i += F32_STEP)
        s = wide_f_fma(wide_f_load(a + i), wide_f_load_half(b + i), s);
    float sum = wide_f_sum(s);
    for (; i < n; i++)
        sum = fmaf(a[i], half_value(b[i]), sum);
    return sum;
}

static void dot_f16_x4(const float *q, const uint16_t *const c[4], size_t n, float out[4])
{
    const uint16_t *c0 = c[0], *c1 = c[1], *c2 = c[2], *c3 = c[3];
    wide_f s0 = wide_f_zero(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + F32_STEP <= n; i += F32_STEP) {
        wide_f v = wide_f_load(q + i);
        s0 = wide_f_fma(v, wide_f_load_half(c0 + i), s0);
        s1 = wide_f_fma(v, wide_f_load_half(c1 + i), s1);
        s2 = wide_f_fma(v, wide_f_load_half(c2 + i), s2);
        s3 = wide_f_fma(v, wide_f_load_half(c3 + i), s3);
    }
    out[0] = wide_f_sum(s0);
    out[1] = wide_f_sum(s1);
    out[2] = wide_f_sum(s2);
    out[3] = wide_f_sum(s3);
    for (; i < n; i++)
        for (int k = 0; k < 4; k++)
            out[k] = fmaf(q[i], half_value(c[k][i]), out[k]);
}

#endif

extern const struct vector_kernels PASTE(vector_kernels, KITH_ISA);
const struct vector_kernels PASTE(vector_kernels, KITH_ISA) = {
    .name = TEXT(KITH_ISA),
    .dot_f32 = dot_f32,
    .dot_f32_x4 = dot_f32_x4,
    .int8_center = INT8_CENTER,
    .dot_i8 = dot_i8,
    .dot_i8_x4 = dot_i8_x4,
    .dot_f16 = dot_f16,
    .dot_f16_x4 = dot_f16_x4,
    .hamming = hamming,
    .hamming_x4 = hamming_x4,
    .to_half = to_half,
    .from_half = from_half,
    .max_abs = max_abs,
    .quantize = quantize,
};
