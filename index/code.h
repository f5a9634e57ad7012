#pragma once
/* Code records: a vector as the index keeps it, its state, and distances between codes.
 *
 *   { f32 norm | f32 range | u32 meta | bytes }
 *     meta, from the low bit: state 3 | level 5 | sum 24 (signed: the sum of the int8 codes)
 *     bytes: f32   the unit vector u, dim floats
 *            int8  dim signed bytes, then 0 to a multiple of 4
 *            f16   dim halves, then 0 to a multiple of 4
 *            bin   a bit a dimension, 1 where it is above 0: words of 64, the first dimension
 * in the lowest bit, little-endian
 *
 * int8: c[i] = round(u[i] * 127 / max|u|), and range = 127 / |c|, so that the decoded vector
 * c * range / 127 has length 1 exactly. (max|u| itself, the textbook range, is the same within
 * half a step, but leaves each code a length of its own, about 1 +- 0.001, which would be noise
 * in every distance: an element would not even be its own nearest.) f16: range = 1 / |c| for
 * the same reason. So the cosine of two codes is dot(a, b) * range_a * range_b / 127^2 (f16:
 * without the 127s), and for bin 1 - 2 h / dim, h the number of bits that differ. From a cosine
 * c and the lengths n, m of the vectors come
 *
 *   cosine  1 - c        L2  (n - m)^2 + 2 n m (1 - c)        IP  - n m c
 *
 * L2 is n^2 + m^2 - 2 n m c, written so that it is never negative and 0 for equal codes.
 *
 * Meta is the only field that changes while readers look: it is stored with release after the
 * rest of the record, and read with acquire before it. */

#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "index/index.h"
#include "index/kernels.h"

struct code {
    float norm, range;
    _Atomic uint32_t meta;
    unsigned char bytes[];
};

enum { CODE_HEADER_BYTES = 12, CODE_LEVEL_MAX = 16 };

/* What a slot is. A new record is zero, so free. */
enum code_state {
    CODE_FREE = 0,
    CODE_TAIL = 1,    /* searchable, not in the graph */
    CODE_LINKED = 2,  /* in the graph (flat: simply there) */
    CODE_REMOVED = 3, /* out of the results; its slot is not yet free */
};

static inline uint32_t code_meta(enum code_state state, unsigned level, int32_t sum)
{
    return (uint32_t)state | level << 3 | (uint32_t)sum << 8;
}

static inline enum code_state code_meta_state(uint32_t meta)
{
    return (enum code_state)(meta & 7);
}

static inline unsigned code_meta_level(uint32_t meta)
{
    return meta >> 3 & 31;
}

static inline int32_t code_meta_sum(uint32_t meta)
{
    return (int32_t)meta >> 8;
}

static inline uint32_t code_meta_load(const struct code *c)
{
    return atomic_load_explicit(&((struct code *)(uintptr_t)c)->meta, memory_order_acquire);
}

size_t code_bytes(enum index_quant quant, uint32_t dim); /* of `bytes`, without padding */

/* Writes all but meta, and returns the sum that belongs into it. work: dim floats. A vector of
 * length 0 gives range 0 and zero bytes. Thread: the slot's owner, nobody reads it. */
int32_t code_encode(struct code *c, const struct index_params *p, const float *vector,
                    float *work);
/* The vector with its length; for bin +1 and -1 alone. */
void code_decode(const struct code *c, const struct index_params *p, float *out);

/* The Euclidean length. Plain C with a fixed order of additions, so that every machine gets the
 * same codes from the same floats. */
float vector_norm(const float *x, size_t n);

/* One side of many distances. */
struct code_query {
    const struct vector_kernels *kernels;
    enum index_quant quant;
    enum index_metric metric;
    uint32_t dim;
    float norm;  /* the length of the vector */
    float scale; /* what the row must be multiplied with to have length 1; bin: unused */
    /* f32, f16: floats; int8: code + the kernels' int8_center, a byte each; bin: as stored */
    const void *row;
};

/* row: room for dim floats, which the query points into. */
void code_query_vector(struct code_query *q, const struct index_params *p, const float *vector,
                       float *row);
void code_query_code(struct code_query *q, const struct index_params *p, const struct code *c,
                     void *row);

/* out[i] = the distance of q and c[i], by the metric of q. Never not-a-number (which only
 * damaged floats can give: it becomes the worst there is), never -0. */
void code_distances(const struct code_query *q, const struct code *const *c, size_t n,
                    float *out);

/* 1 - cosine within its bounds; not-a-number becomes 2. */
static inline float code_clamp(float distance)
{
    return distance < 2 ? (distance > 0 ? distance : 0) : 2;
}

static inline float code_no_nan(float distance)
{
    return distance == distance ? distance : INFINITY;
}
