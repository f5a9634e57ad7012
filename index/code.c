#include "index/code.h"

#include <string.h>

#include "base/bytes.h"
#include "index/vectors.h"

static size_t bin_words(uint32_t dim)
{
    return ((size_t)dim + 63) / 64;
}

size_t code_bytes(enum index_quant quant, uint32_t dim)
{
    switch (quant) {
    case INDEX_F32:
        return (size_t)dim * sizeof(float);
    case INDEX_F16:
        return (size_t)dim * sizeof(uint16_t);
    case INDEX_BIN:
        return bin_words(dim) * sizeof(uint64_t);
    default:
        return dim;
    }
}

float vector_norm(const float *x, size_t n)
{
    double sum[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++)
            sum[k] += (double)x[i + k] * (double)x[i + k];
    for (; i < n; i++)
        sum[0] += (double)x[i] * (double)x[i];
    return (float)sqrt(((sum[0] + sum[1]) + (sum[2] + sum[3])) +
                       ((sum[4] + sum[5]) + (sum[6] + sum[7])));
}

/* --- encoding --- */

/* Quantizes a unit vector and returns the range that makes the code a unit vector again. */
static float encode_int8(const float *unit, uint32_t dim, int8_t *out, int32_t *sum)
{
    const struct vector_kernels *k = kernels_get();
    float most = k->max_abs(unit, dim);
    *sum = k->quantize(unit, dim, most > 0 ? 127.0f / most : 0, out);
    int32_t squares = 0;
    for (uint32_t i = 0; i < dim; i++)
        squares += out[i] * out[i];
    return squares ? (float)(127.0 / sqrt(squares)) : 0;
}

/* As encode_int8; overwrites unit. */
static float encode_f16(float *unit, uint32_t dim, uint16_t *out)
{
    vector_to_half(unit, dim, out);
    vector_from_half(out, dim, unit);
    float length = vector_norm(unit, dim);
    return length > 0 ? 1.0f / length : 0;
}

static void encode_bin(const float *x, uint32_t dim, void *out)
{
    for (uint32_t first = 0; first < dim; first += 64) {
        uint64_t word = 0;
        for (uint32_t i = first; i < dim && i < first + 64; i++)
            word |= (uint64_t)(x[i] > 0) << (i - first);
        store_u64((char *)out + first / 8, word);
    }
}

int32_t code_encode(struct code *c, const struct index_params *p, const float *vector,
                    float *work)
{
    int32_t sum = 0;
    size_t bytes = code_bytes(p->quant, p->dim);
    c->norm = vector_normalise(vector, p->dim, work);
    c->range = 0;
    switch (p->quant) {
    case INDEX_F32:
        memcpy(c->bytes, work, bytes);
        break;
    case INDEX_F16:
        c->range = encode_f16(work, p->dim, (uint16_t *)(void *)c->bytes);
        break;
    case INDEX_BIN:
        encode_bin(vector, p->dim, c->bytes);
        break;
    default:
        c->range = encode_int8(work, p->dim, (int8_t *)c->bytes, &sum);
    }
    memset(c->bytes + bytes, 0, (4 - bytes % 4) % 4);
    return sum;
}

void code_decode(const struct code *c, const struct index_params *p, float *out)
{
    const float *unit = (const float *)(const void *)c->bytes;
    const int8_t *code = (const int8_t *)c->bytes;
    switch (p->quant) {
    case INDEX_F32:
        for (uint32_t i = 0; i < p->dim; i++)
            out[i] = unit[i] * c->norm;
        break;
    case INDEX_F16:
        vector_from_half((const uint16_t *)(const void *)c->bytes, p->dim, out);
        for (uint32_t i = 0; i < p->dim; i++)
            out[i] = out[i] * c->range * c->norm;
        break;
    case INDEX_BIN:
        for (uint32_t i = 0; i < p->dim; i++)
            out[i] = c->bytes[i / 8] >> i % 8 & 1 ? 1.0f : -1.0f;
        break;
    default:
        for (uint32_t i = 0; i < p->dim; i++)
            out[i] = (float)code[i] * c->range / 127.0f * c->norm;
    }
}

/* --- queries --- */

/* Codes as the query's side of a product (kernels.h), in place or not. */
static void center(const struct vector_kernels *k, const int8_t *code, uint32_t dim,
                   uint8_t *out)
{
    uint8_t by = (uint8_t)k->int8_center;
    for (uint32_t i = 0; i < dim; i++)
        out[i] = (uint8_t)((uint8_t)code[i] + by);
}

/* With floats against halves the query is not rounded; with int8 it is, for VNNI: the exact
 * scan finds 0.9926 of the nearest 10 of 20,000 x 384 either way (bench-index's manifold). */
void code_query_vector(struct code_query *q, const struct index_params *p, const float *vector,
                       float *row)
{
    *q = (struct code_query){kernels_get(), p->quant, p->metric, p->dim, 0, 1, row};
    q->norm = vector_normalise(vector, p->dim, row);
    if (p->quant == INDEX_INT8) {
        /* In place: byte i is written after float i / 4 and all before it were read. */
        int32_t sum;
        q->scale = encode_int8(row, p->dim, (int8_t *)row, &sum) / 127.0f;
        center(q->kernels, (const int8_t *)row, p->dim, (uint8_t *)row);
    } else if (p->quant == INDEX_BIN) {
        encode_bin(vector, p->dim, row);
    }
}

void code_query_code(struct code_query *q, const struct index_params *p, const struct code *c,
                     void *row)
{
    *q = (struct code_query){kernels_get(), p->quant, p->metric, p->dim, c->norm, 1, row};
    if (p->quant == INDEX_INT8) {
        q->scale = c->range / 127.0f;
        center(q->kernels, (const int8_t *)c->bytes, p->dim, row);
    } else if (p->quant == INDEX_F16) {
        q->scale = c->range;
        vector_from_half((const uint16_t *)(const void *)c->bytes, p->dim, row);
    } else {
        memcpy(row, c->bytes, code_bytes(p->quant, p->dim));
    }
}

/* --- distances ---
 *
 * One function a quantization, each with the same two loops: four codes at a time, then one by
 * one. */

/* cosine, and 1 - cosine as exactly as it is known. */
static inline float by_metric(const struct code_query *q, const struct code *c, float cosine,
                              float away)
{
    if (q->metric == INDEX_COSINE)
        return code_clamp(away);
    float product = q->norm * c->norm, difference = q->norm - c->norm;
    if (q->metric == INDEX_IP)
        return code_no_nan(0.0f - product * cosine);
    return code_no_nan(difference * difference + 2.0f * product * code_clamp(away));
}

static const void *row_of(const struct code *c)
{
    (void)code_meta_load(c); /* orders the row's contents before its use */
    return c->bytes;
}

static inline float int8_distance(const struct code_query *q, const struct code *c,
                                  int32_t product)
{
    int32_t dot = product - q->kernels->int8_center * code_meta_sum(code_meta_load(c));
    float cosine = (float)dot * (q->scale * (c->range / 127.0f));
    return by_metric(q, c, cosine, 1.0f - cosine);
}

static void int8_distances(const struct code_query *q, const struct code *const *c, size_t n,
                           float *out)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const int8_t *rows[4];
        int32_t products[4];
        for (size_t k = 0; k < 4; k++)
            rows[k] = row_of(c[i + k]);
        q->kernels->dot_i8_x4(q->row, rows, q->dim, products);
        for (size_t k = 0; k < 4; k++)
            out[i + k] = int8_distance(q, c[i + k], products[k]);
    }
    for (; i < n; i++)
        out[i] = int8_distance(q, c[i], q->kernels->dot_i8(q->row, row_of(c[i]), q->dim));
}

static inline float f32_distance(const struct code_query *q, const struct code *c, float cosine)
{
    return by_metric(q, c, cosine, 1.0f - cosine);
}

static void f32_distances(const struct code_query *q, const struct code *const *c, size_t n,
                          float *out)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float *rows[4];
        float dots[4];
        for (size_t k = 0; k < 4; k++)
            rows[k] = row_of(c[i + k]);
        q->kernels->dot_f32_x4(q->row, rows, q->dim, dots);
        for (size_t k = 0; k < 4; k++)
            out[i + k] = f32_distance(q, c[i + k], dots[k]);
    }
    for (; i < n; i++)
        out[i] = f32_distance(q, c[i], q->kernels->dot_f32(q->row, row_of(c[i]), q->dim));
}

static inline float f16_distance(const struct code_query *q, const struct code *c, float dot)
{
    float cosine = dot * (q->scale * c->range);
    return by_metric(q, c, cosine, 1.0f - cosine);
}

static void f16_distances(const struct code_query *q, const struct code *const *c, size_t n,
                          float *out)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const uint16_t *rows[4];
        float dots[4];
        for (size_t k = 0; k < 4; k++)
            rows[k] = row_of(c[i + k]);
        q->kernels->dot_f16_x4(q->row, rows, q->dim, dots);
        for (size_t k = 0; k < 4; k++)
            out[i + k] = f16_distance(q, c[i + k], dots[k]);
    }
    for (; i < n; i++)
        out[i] = f16_distance(q, c[i], q->kernels->dot_f16(q->row, row_of(c[i]), q->dim));
}

static inline float bin_distance(const struct code_query *q, const struct code *c,
                                 uint32_t differ)
{
    float away = (float)differ * 2.0f / (float)q->dim;
    return by_metric(q, c, 1.0f - away, away);
}

static void bin_distances(const struct code_query *q, const struct code *const *c, size_t n,
                          float *out)
{
    size_t words = bin_words(q->dim), i = 0;
    for (; i + 4 <= n; i += 4) {
        const void *rows[4];
        uint32_t differ[4];
        for (size_t k = 0; k < 4; k++)
            rows[k] = row_of(c[i + k]);
        q->kernels->hamming_x4(q->row, rows, words, differ);
        for (size_t k = 0; k < 4; k++)
            out[i + k] = bin_distance(q, c[i + k], differ[k]);
    }
    for (; i < n; i++)
        out[i] = bin_distance(q, c[i], q->kernels->hamming(q->row, row_of(c[i]), words));
}

void code_distances(const struct code_query *q, const struct code *const *c, size_t n,
                    float *out)
{
    switch (q->quant) {
    case INDEX_F32:
        f32_distances(q, c, n, out);
        break;
    case INDEX_F16:
        f16_distances(q, c, n, out);
        break;
    case INDEX_BIN:
        bin_distances(q, c, n, out);
        break;
    default:
        int8_distances(q, c, n, out);
    }
}
