#include "engine/blocks.h"

#include "base/bytes.h"
#include "engine/half.h"

enum { HALF_BYTES = 2, HIGH_BYTES = 4, NIBBLES = 16, K_SCALES_BYTES = 12 };

const int8_t block_iq4_nl_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

static float load_half(const unsigned char *p)
{
    return half_to_f32(load_u16(p));
}

/* --- one element a block --- */

static void decode_f32(const unsigned char *p, size_t n, float *out)
{
    memcpy(out, p, n * sizeof *out);
}

static void decode_f16(const unsigned char *p, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = load_half(p + 2 * i);
}

static void decode_bf16(const unsigned char *p, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = half_bf16_to_f32(load_u16(p + 2 * i));
}

/* --- 32 elements a block --- */

/* 32 codes of 4 bits, and of 5 where `high` points to the fifth ones. */
static void unpack_nibbles(const unsigned char *p, const unsigned char *high, int codes[32])
{
    uint32_t bits = high ? load_u32(high) : 0;
    for (int j = 0; j < NIBBLES; j++) {
        codes[j] = (p[j] & 15) | (int)(bits >> j & 1u) << 4;
        codes[j + NIBBLES] = p[j] >> 4 | (int)(bits >> (j + NIBBLES) & 1u) << 4;
    }
}

/* Codes around `middle`, which fit a signed byte as they are. */
static void codes_around(const int raw[32], int middle, int8_t *codes)
{
    for (int i = 0; i < BLOCK_ELEMENTS; i++)
        codes[i] = (int8_t)(raw[i] - middle);
}

static bool codes_q8_0(const unsigned char *p, int8_t *codes, float *scale)
{
    *scale = load_half(p);
    bool fits = true;
    for (int i = 0; i < BLOCK_ELEMENTS; i++) {
        codes[i] = (int8_t)p[HALF_BYTES + i];
        fits = fits && codes[i] != INT8_MIN;
    }
    return fits;
}

static bool codes_q4_0(const unsigned char *p, int8_t *codes, float *scale)
{
    int raw[BLOCK_ELEMENTS];
    *scale = load_half(p);
    unpack_nibbles(p + HALF_BYTES, NULL, raw);
    codes_around(raw, 8, codes);
    return true;
}

static bool codes_q5_0(const unsigned char *p, int8_t *codes, float *scale)
{
    int raw[BLOCK_ELEMENTS];
    *scale = load_half(p);
    unpack_nibbles(p + HALF_BYTES + HIGH_BYTES, p + HALF_BYTES, raw);
    codes_around(raw, 16, codes);
    return true;
}

static bool codes_iq4_nl(const unsigned char *p, int8_t *codes, float *scale)
{
    int raw[BLOCK_ELEMENTS];
    *scale = load_half(p);
    unpack_nibbles(p + HALF_BYTES, NULL, raw);
    for (int i = 0; i < BLOCK_ELEMENTS; i++)
        codes[i] = block_iq4_nl_values[raw[i]];
    return true;
}

/* The types whose values are a scale times a code: their codes say it all. */
static void decode_codes(const unsigned char *p, size_t n, size_t bytes,
                         bool (*of)(const unsigned char *, int8_t *, float *), float *out)
{
    for (size_t b = 0; b < n; b++, p += bytes, out += BLOCK_ELEMENTS) {
        int8_t codes[BLOCK_ELEMENTS];
        float scale;
        of(p, codes, &scale);
        for (int i = 0; i < BLOCK_ELEMENTS; i++)
            out[i] = scale * (float)codes[i];
    }
}

static void decode_q8_0(const unsigned char *p, size_t n, float *out)
{
    decode_codes(p, n, 34, codes_q8_0, out);
}

static void decode_q4_0(const unsigned char *p, size_t n, float *out)
{
    decode_codes(p, n, 18, codes_q4_0, out);
}

static void decode_q5_0(const unsigned char *p, size_t n, float *out)
{
    decode_codes(p, n, 22, codes_q5_0, out);
}

static void decode_iq4_nl(const unsigned char *p, size_t n, float *out)
{
    decode_codes(p, n, 18, codes_iq4_nl, out);
}

/* A scale and an offset: Q4_1 and, with fifth bits, Q5_1. */
static void decode_with_offset(const unsigned char *p, size_t n, bool fifth, float *out)
{
    for (size_t b = 0; b < n; b++, out += BLOCK_ELEMENTS) {
        float d = load_half(p), m = load_half(p + HALF_BYTES);
        const unsigned char *high = fifth ? p + 2 * HALF_BYTES : NULL;
        p += 2 * HALF_BYTES + (fifth ? HIGH_BYTES : 0);
        int codes[BLOCK_ELEMENTS];
        unpack_nibbles(p, high, codes);
        p += NIBBLES;
        for (int i = 0; i < BLOCK_ELEMENTS; i++)
            out[i] = d * (float)codes[i] + m;
    }
}

static void decode_q4_1(const unsigned char *p, size_t n, float *out)
{
    decode_with_offset(p, n, false, out);
}

static void decode_q5_1(const unsigned char *p, size_t n, float *out)
{
    decode_with_offset(p, n, true, out);
}

static float step_of_block(const unsigned char *p, int j)
{
    (void)j;
    return load_half(p);
}

/* --- 256 elements a block --- */

/* Q4_K and Q5_K: 64 elements share 32 bytes of nibbles, the low ones first; of the fifth bits,
 * bit 2 g and 2 g + 1 of byte l belong to element l of the two halves of group g. */
static void decode_k_offset(const unsigned char *p, size_t n, bool fifth, float *out)
{
    for (size_t b = 0; b < n; b++) {
        float d = load_half(p), dmin = load_half(p + HALF_BYTES);
        const unsigned char *scales = p + 2 * HALF_BYTES, *high = scales + K_SCALES_BYTES;
        const unsigned char *nibbles = fifth ? high + 32 : high;
        for (int j = 0; j < 8; j++, out += 32) {
            const unsigned char *q = nibbles + 32 * (j / 2);
            unsigned s, m;
            block_k_scales(scales, j, &s, &m);
            float scale = d * (float)s, offset = dmin * (float)m;
            for (int l = 0; l < 32; l++) {
                int code = j % 2 ? q[l] >> 4 : q[l] & 15;
                if (fifth)
                    code |= (high[l] >> j & 1) << 4;
                out[l] = scale * (float)code - offset;
            }
        }
        p = nibbles + 128;
    }
}

static void decode_q4_k(const unsigned char *p, size_t n, float *out)
{
    decode_k_offset(p, n, false, out);
}

static void decode_q5_k(const unsigned char *p, size_t n, float *out)
{
    decode_k_offset(p, n, true, out);
}

static float step_of_group(const unsigned char *p, int j)
{
    unsigned s, m;
    block_k_scales(p + 2 * HALF_BYTES, j, &s, &m);
    return load_half(p) * (float)s;
}

/* Each half of 128 elements has 64 bytes of nibbles and 32 of high bits; element 32 k + l of it
 * takes nibble k / 2 of byte l + 32 (k % 2) and bits 2 k, 2 k + 1 of byte l. */
static void decode_q6_k(const unsigned char *p, size_t n, float *out)
{
    for (size_t b = 0; b < n; b++, p += 210) {
        float d = load_half(p + 208);
        for (int half = 0; half < 2; half++) {
            const unsigned char *low = p + 64 * half, *high = p + 128 + 32 * half;
            const unsigned char *scales = p + 192 + 8 * half;
            for (int k = 0; k < 4; k++)
                for (int l = 0; l < 32; l++) {
                    int nibble = low[l + 32 * (k % 2)] >> 4 * (k / 2) & 15;
                    int code = (nibble | (high[l] >> 2 * k & 3) << 4) - 32;
                    float scale = d * (float)(int8_t)scales[l / 16 + 2 * k];
                    *out++ = scale * (float)code;
                }
        }
    }
}

/* --- the table --- */

static const struct {
    enum tensor_type type;
    struct block_type block;
} table[] = {
    {TENSOR_F32, {"F32", 1, 4, decode_f32, block_encode_f32, NULL, NULL}},
    {TENSOR_F16, {"F16", 1, 2, decode_f16, block_encode_f16, NULL, NULL}},
    {TENSOR_Q4_0, {"Q4_0", 32, 18, decode_q4_0, block_encode_q4_0, codes_q4_0, NULL}},
    {TENSOR_Q4_1, {"Q4_1", 32, 20, decode_q4_1, block_encode_q4_1, NULL, step_of_block}},
    {TENSOR_Q5_0, {"Q5_0", 32, 22, decode_q5_0, block_encode_q5_0, codes_q5_0, NULL}},
    {TENSOR_Q5_1, {"Q5_1", 32, 24, decode_q5_1, block_encode_q5_1, NULL, step_of_block}},
    {TENSOR_Q8_0, {"Q8_0", 32, 34, decode_q8_0, block_encode_q8_0, codes_q8_0, NULL}},
    {TENSOR_Q4_K, {"Q4_K", 256, 144, decode_q4_k, block_encode_q4_k, NULL, step_of_group}},
    {TENSOR_Q5_K, {"Q5_K", 256, 176, decode_q5_k, block_encode_q5_k, NULL, step_of_group}},
    {TENSOR_Q6_K, {"Q6_K", 256, 210, decode_q6_k, block_encode_q6_k, NULL, NULL}},
    {TENSOR_IQ4_NL, {"IQ4_NL", 32, 18, decode_iq4_nl, block_encode_iq4_nl, codes_iq4_nl, NULL}},
    {TENSOR_BF16, {"BF16", 1, 2, decode_bf16, block_encode_bf16, NULL, NULL}},
};

enum { N_TYPES = sizeof table / sizeof *table };

const struct block_type *block_type(enum tensor_type type)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (table[i].type == type)
            return &table[i].block;
    return NULL;
}

const struct block_type *block_type_at(size_t i, enum tensor_type *type)
{
    if (i >= N_TYPES)
        return NULL;
    *type = table[i].type;
    return &table[i].block;
}

const char *block_foreign_name(uint32_t id, bool *removed)
{
    static const struct {
        const char *name;
        bool removed;
    } names[] = {
        [4] = {"Q4_2", true},        [5] = {"Q4_3", true},        [9] = {"Q8_1", false},
        [10] = {"Q2_K", false},      [11] = {"Q3_K", false},      [15] = {"Q8_K", false},
        [16] = {"IQ2_XXS", false},   [17] = {"IQ2_XS", false},    [18] = {"IQ3_XXS", false},
        [19] = {"IQ1_S", false},     [21] = {"IQ3_S", false},     [22] = {"IQ2_S", false},
        [23] = {"IQ4_XS", false},    [24] = {"I8", false},        [25] = {"I16", false},
        [26] = {"I32", false},       [27] = {"I64", false},       [28] = {"F64", false},
        [29] = {"IQ1_M", false},     [31] = {"Q4_0_4_4", true},   [32] = {"Q4_0_4_8", true},
        [33] = {"Q4_0_8_8", true},   [34] = {"TQ1_0", false},     [35] = {"TQ2_0", false},
        [36] = {"IQ4_NL_4_4", true}, [37] = {"IQ4_NL_4_8", true}, [38] = {"IQ4_NL_8_8", true},
        [39] = {"MXFP4", false},     [40] = {"NVFP4", false},     [41] = {"Q1_0", false},
        [42] = {"Q2_0", false},
    };
    if (id >= sizeof names / sizeof *names)
        return NULL;
    *removed = names[id].removed;
    return names[id].name;
}
