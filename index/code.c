#include "index/code.h"

#include <math.h>
#include <string.h>

size_t code_bytes(enum index_quant quant, uint32_t dim)
{
    return quant == INDEX_F32 ? (size_t)dim * sizeof(float) : dim;
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

/* Scales x to length 1; a vector of length 0 (or too small to divide by) becomes zero. */
static float normalise(const float *x, uint32_t dim, float *unit)
{
    float norm = vector_norm(x, dim);
    double inverse = norm > 0 && isfinite(norm) ? 1.0 / (double)norm : 0;
    for (uint32_t i = 0; i < dim; i++)
        unit[i] = (float)((double)x[i] * inverse);
    return norm;
}

/* Quantizes a unit vector and returns the range that makes the code a unit vector again. */
static float quantize_unit(const float *unit, uint32_t dim, int8_t *out, int32_t *sum)
{
    const struct vector_kernels *k = kernels_get();
    float most = k->max_abs(unit, dim);
    *sum = k->quantize(unit, dim, most > 0 ? 127.0f / most : 0, out);
    int32_t squares = 0;
    for (uint32_t i = 0; i < dim; i++)
        squares += out[i] * out[i];
    return squares ? (float)(127.0 / sqrt(squares)) : 0;
}

int32_t code_encode(struct code *c, enum index_quant quant, uint32_t dim, const float *vector,
                    float *unit)
{
    c->norm = normalise(vector, dim, unit);
    c->range = 0;
    if (quant == INDEX_F32) {
        memcpy(c->bytes, unit, dim * sizeof *unit);
        return 0;
    }
    int32_t sum;
    c->range = quantize_unit(unit, dim, (int8_t *)c->bytes, &sum);
    memset(c->bytes + dim, 0, (4 - dim % 4) % 4);
    return sum;
}

void code_decode(const struct code *c, enum index_quant quant, uint32_t dim, float *out)
{
    if (quant == INDEX_F32) {
        const float *unit = (const float *)(const void *)c->bytes;
        for (uint32_t i = 0; i < dim; i++)
            out[i] = unit[i] * c->norm;
        return;
    }
    const int8_t *code = (const int8_t *)c->bytes;
    for (uint32_t i = 0; i < dim; i++)
        out[i] = (float)code[i] * c->range / 127.0f * c->norm;
}

static void bias(const int8_t *code, uint32_t dim, uint8_t *out)
{
    for (uint32_t i = 0; i < dim; i++)
        out[i] = (uint8_t)((uint8_t)code[i] ^ 0x80u);
}

void code_query_vector(struct code_query *q, enum index_quant quant, uint32_t dim,
                       const float *vector, float *row)
{
    *q = (struct code_query){kernels_get(), quant, dim, 1, row};
    normalise(vector, dim, row);
    if (quant == INDEX_INT8) {
        /* In place: byte i is written after float i / 4 and all before it were read. */
        int32_t sum;
        q->scale = quantize_unit(row, dim, (int8_t *)row, &sum) / 127.0f;
        bias((const int8_t *)row, dim, (uint8_t *)row);
    }
}

void code_query_code(struct code_query *q, enum index_quant quant, uint32_t dim,
                     const struct code *c, void *row)
{
    *q = (struct code_query){kernels_get(), quant, dim, 1, row};
    if (quant == INDEX_INT8) {
        q->scale = c->range / 127.0f;
        bias((const int8_t *)c->bytes, dim, row);
    } else {
        memcpy(row, c->bytes, dim * sizeof(float));
    }
}

/* Not-a-number, which only damaged floats can give, becomes the worst distance. */
static float clamp(float distance)
{
    return distance < 2 ? (distance > 0 ? distance : 0) : 2;
}

static float int8_distance(const struct code_query *q, const struct code *c, uint32_t meta,
                           int32_t product)
{
    int32_t dot = product - 128 * code_meta_sum(meta);
    return clamp(1.0f - (float)dot * (q->scale * (c->range / 127.0f)));
}

static void int8_distances(const struct code_query *q, const struct code *const *c, size_t n,
                           float *out)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint32_t meta[4];
        const int8_t *rows[4];
        int32_t product[4];
        for (size_t k = 0; k < 4; k++) {
            meta[k] = code_meta_load(c[i + k]);
            rows[k] = (const int8_t *)c[i + k]->bytes;
        }
        q->kernels->dot_u8i8_x4(q->row, rows, q->dim, product);
        for (size_t k = 0; k < 4; k++)
            out[i + k] = int8_distance(q, c[i + k], meta[k], product[k]);
    }
    for (; i < n; i++) {
        uint32_t meta = code_meta_load(c[i]);
        out[i] = int8_distance(
            q, c[i], meta, q->kernels->dot_u8i8(q->row, (const int8_t *)c[i]->bytes, q->dim));
    }
}

static const float *f32_row(const struct code *c)
{
    (void)code_meta_load(c); /* orders the row's contents before its use */
    return (const float *)(const void *)c->bytes;
}

void code_distances(const struct code_query *q, const struct code *const *c, size_t n,
                    float *out)
{
    if (q->quant == INDEX_INT8) {
        int8_distances(q, c, n, out);
        return;
    }
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float *rows[4];
        for (size_t k = 0; k < 4; k++)
            rows[k] = f32_row(c[i + k]);
        q->kernels->dot_f32_x4(q->row, rows, q->dim, out + i);
    }
    for (; i < n; i++)
        out[i] = q->kernels->dot_f32(q->row, f32_row(c[i]), q->dim);
    for (i = 0; i < n; i++)
        out[i] = clamp(1.0f - out[i]);
}
