#pragma once
/* The block layouts of weights: from stored bytes to floats, to 8-bit codes, and back. One row
 * of one table a type; who needs to know what a type is asks the table. It knows no tensor and
 * no file.
 *
 * A block holds a fixed number of elements that share scales. f16 is a half, bytes lie in the
 * order they are listed, little-endian; "nibbles" puts element j in the low half of byte j and
 * element j + 16 in its high half.
 *
 *   F32 F16 BF16    one element: 4 bytes, 2 bytes, the upper 2 bytes of a float
 *   Q8_0     34 B of 32    | f16 d | i8 q[32] |                             x = d q
 *   Q4_0     18 B of 32    | f16 d | nibbles q |                            x = d (q - 8)
 *   Q4_1     20 B of 32    | f16 d | f16 m | nibbles q |                    x = d q + m
 *   Q5_0     22 B of 32    | f16 d | u32 bit 4 of q | nibbles q |           x = d (q - 16)
 *   Q5_1     24 B of 32    | f16 d | f16 m | u32 bit 4 of q | nibbles q |   x = d q + m
 *   IQ4_NL   18 B of 32    | f16 d | nibbles q |                            x = d T[q]
 *   Q4_K    144 B of 256   | f16 d | f16 dmin | 8 x (6-bit s, 6-bit m) | nibbles q |
 *   Q5_K    176 B of 256   | f16 d | f16 dmin | the same | bits 4 of q | nibbles q |
 *                          x = d s q - dmin m, s and m for each 32 elements
 *   Q6_K    210 B of 256   | low 4 bits of q | high 2 bits | i8 s[16] | f16 d |
 *                          x = d s (q - 32), s for each 16 elements
 *
 * Layouts and the rules of the plain quantizers: ggml, ggml-common.h and ggml-quants.c. What
 * the K types add to them is in blocks_encode_k.c.
 *
 * Thread: all functions are pure but for their outputs. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tensor_type { /* the ids of GGUF */
                   TENSOR_F32 = 0,
                   TENSOR_F16 = 1,
                   TENSOR_Q4_0 = 2,
                   TENSOR_Q4_1 = 3,
                   TENSOR_Q5_0 = 6,
                   TENSOR_Q5_1 = 7,
                   TENSOR_Q8_0 = 8,
                   TENSOR_Q4_K = 12,
                   TENSOR_Q5_K = 13,
                   TENSOR_Q6_K = 14,
                   TENSOR_IQ4_NL = 20,
                   TENSOR_BF16 = 30,
                   TENSOR_TYPES_END /* above all ids */
};

enum { BLOCK_ELEMENTS = 32, SUPERBLOCK_ELEMENTS = 256 };

struct block_type {
    const char *name;
    uint32_t elements, bytes; /* of one block */
    /* n blocks to n * elements floats. */
    void (*decode)(const unsigned char *blocks, size_t n, float *out);
    /* The other way. Values are finite and at most 65504 in magnitude. The same values give the
     * same bytes on every machine. */
    void (*encode)(const float *x, size_t n, unsigned char *blocks);
    /* One block as codes in -127 .. 127 with x = scale * code exactly; false where this block
     * has no such codes. NULL where no block of the type has. */
    bool (*codes)(const unsigned char *block, int8_t *codes, float *scale);
    /* The distance between neighbouring values among the elements 32 j .. 32 j + 31, which all
     * lie on one such grid. NULL where they do not. */
    float (*step)(const unsigned char *block, int j);
};

/* NULL where the type is not one we compute. */
const struct block_type *block_type(enum tensor_type type);
/* The types of the table in the order of their ids, for whoever lists them; NULL past the end.
 */
const struct block_type *block_type_at(size_t i, enum tensor_type *type);

/* How GGUF calls an id that is not computed here, NULL where it has no such id; *removed where
 * it once had. */
const char *block_foreign_name(uint32_t id, bool *removed);

/* The values of IQ4_NL's codes, ascending. */
extern const int8_t block_iq4_nl_values[16];

/* The 6-bit scale and minimum of 32 elements (j = 0 .. 7) in the 12 bytes of Q4_K and Q5_K:
 *
 *   byte     0 .. 3               4 .. 7               8 .. 11
 *   low      s[j], 6 bits         m[j], 6 bits         s[j + 4], low 4 bits
 *   high     s[j + 4], high 2     m[j + 4], high 2     m[j + 4], low 4 bits         */
static inline void block_k_scales(const unsigned char *p, int j, unsigned *s, unsigned *m)
{
    if (j < 4) {
        *s = p[j] & 63u;
        *m = p[j + 4] & 63u;
    } else {
        *s = (p[j + 4] & 15u) | (p[j - 4] >> 6 & 3u) << 4;
        *m = (p[j + 4] >> 4 & 15u) | (p[j] >> 6 & 3u) << 4;
    }
}

/* blocks_encode.c, blocks_encode_k.c: the encoders, for the table alone. */
void block_encode_f32(const float *x, size_t n, unsigned char *blocks);
void block_encode_f16(const float *x, size_t n, unsigned char *blocks);
void block_encode_bf16(const float *x, size_t n, unsigned char *blocks);
void block_encode_q8_0(const float *x, size_t n, unsigned char *blocks);
void block_encode_q4_0(const float *x, size_t n, unsigned char *blocks);
void block_encode_q4_1(const float *x, size_t n, unsigned char *blocks);
void block_encode_q5_0(const float *x, size_t n, unsigned char *blocks);
void block_encode_q5_1(const float *x, size_t n, unsigned char *blocks);
void block_encode_iq4_nl(const float *x, size_t n, unsigned char *blocks);
void block_encode_q4_k(const float *x, size_t n, unsigned char *blocks);
void block_encode_q5_k(const float *x, size_t n, unsigned char *blocks);
void block_encode_q6_k(const float *x, size_t n, unsigned char *blocks);
