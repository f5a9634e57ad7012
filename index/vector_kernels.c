/* The kernels of kernels.h, written once and compiled once per instruction set: KITH_ISA is the
 * set's name and KITH_ISA_<name> is 1.
 *
 * The wide paths are x86 intrinsics through SIMDe, which are the intrinsics themselves on x86
 * and become NEON elsewhere. A dot product of 384 int8 is six loads of 64 bytes a code: the
 * loop waits for memory, not for multiplications, so the x4 forms run four codes side by side
 * to keep four rows of cache misses in flight and to load the query once. The tail of n that
 * fills no vector goes through the next narrower width and then one by one.
 *
 * Rejected: the sign trick (|a| * sign(b, a)) instead of the +128 bias: two operations more for
 * each 64 bytes, while the sum of a code is computed once, when it is written. */
#include "index/kernels.h"

#include <math.h>

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)

#if KITH_ISA_scalar

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

static int32_t dot_u8i8(const uint8_t *q, const int8_t *c, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (int32_t)q[i] * c[i];
    return sum;
}

static void dot_u8i8_x4(const uint8_t *q, const int8_t *const c[4], size_t n, int32_t out[4])
{
    for (int k = 0; k < 4; k++)
        out[k] = dot_u8i8(q, c[k], n);
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

#include <simde/x86/avx2.h>
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

#if KITH_ISA_avx512

#include <simde/x86/avx512.h>

/* One step of the integer dot product takes U8_STEP bytes, of the float one F32_STEP floats. */
enum { U8_STEP = 64, F32_STEP = 16 };
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

static inline int32_t wide_i_sum(simde__m512i v)
{
    return sum_i32(simde_mm256_add_epi32(simde_mm512_castsi512_si256(v),
                                         simde_mm512_extracti64x4_epi64(v, 1)));
}

static inline float wide_f_sum(simde__m512 v)
{
    simde__m256 low = simde_mm512_castps512_ps256(v);
    simde__m256 high =
        simde_mm256_castpd_ps(simde_mm512_extractf64x4_pd(simde_mm512_castps_pd(v), 1));
    return sum_f32(simde_mm256_add_ps(low, high));
}

#else

enum { U8_STEP = 32, F32_STEP = 8 };
#define wide_i simde__m256i
#define wide_f simde__m256
#define wide_i_zero simde_mm256_setzero_si256
#define wide_f_zero simde_mm256_setzero_ps
#define wide_f_load simde_mm256_loadu_ps
#define wide_f_fma simde_mm256_fmadd_ps
#define wide_i_sum sum_i32
#define wide_f_sum sum_f32

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

/* What is left after the wide steps: 16 bytes at a time, then one by one. */
static inline int32_t dot_u8i8_rest(const uint8_t *q, const int8_t *c, size_t n)
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

static int32_t dot_u8i8(const uint8_t *q, const int8_t *c, size_t n)
{
    wide_i a = wide_i_zero();
    size_t i = 0;
    for (; i + U8_STEP <= n; i += U8_STEP)
        a = wide_dot(a, q + i, c + i);
    int32_t sum = wide_i_sum(a);
    return i == n ? sum : sum + dot_u8i8_rest(q + i, c + i, n - i);
}

static void dot_u8i8_x4(const uint8_t *q, const int8_t *const c[4], size_t n, int32_t out[4])
{
    const int8_t *c0 = c[0], *c1 = c[1], *c2 = c[2], *c3 = c[3];
    wide_i s0 = wide_i_zero(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + U8_STEP <= n; i += U8_STEP) {
        s0 = wide_dot(s0, q + i, c0 + i);
        s1 = wide_dot(s1, q + i, c1 + i);
        s2 = wide_dot(s2, q + i, c2 + i);
        s3 = wide_dot(s3, q + i, c3 + i);
    }
    out[0] = wide_i_sum(s0);
    out[1] = wide_i_sum(s1);
    out[2] = wide_i_sum(s2);
    out[3] = wide_i_sum(s3);
    if (i < n)
        for (int k = 0; k < 4; k++)
            out[k] += dot_u8i8_rest(q + i, c[k] + i, n - i);
}

/* One sum only, so that a distance has the same bits whether its code came alone or among four.
 */
static float dot_f32(const float *a, const float *b, size_t n)
{
    wide_f s = wide_f_zero();
    size_t i = 0;
    for (; i + F32_STEP <= n; i += F32_STEP)
        s = wide_f_fma(wide_f_load(a + i), wide_f_load(b + i), s);
    float sum = wide_f_sum(s);
    for (; i < n; i++)
        sum += a[i] * b[i];
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
            out[k] += q[i] * c[k][i];
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

extern const struct vector_kernels PASTE(vector_kernels, KITH_ISA);
const struct vector_kernels PASTE(vector_kernels, KITH_ISA) = {
    TEXT(KITH_ISA), dot_f32, dot_f32_x4, dot_u8i8, dot_u8i8_x4, max_abs, quantize,
};
