/* The projection multiplies by a matrix of +1 and -1 that is never made: with rows and columns
 * numbered in binary, H[i][j] is the product over the bits of (-1)^(bit of i * bit of j), so
 * the product with a vector falls apart into one step of sums and differences for each bit (the
 * fast Walsh-Hadamard transform), P log2 P additions instead of from * to. */
#include "index/vectors.h"

#include <math.h>
#include <string.h>

#include "index/code.h"

/* As many floats as a difference is made of at a time. */
enum { BLOCK = 256 };

static double dot_slow(const float *a, const float *b, uint32_t dim)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* A kernel's sum, again in double where floats overflow. */
static double dot(const float *a, const float *b, uint32_t dim)
{
    float sum = kernels_get()->dot_f32(a, b, dim);
    return isfinite(sum) ? (double)sum : dot_slow(a, b, dim);
}

/* Of the differences, not from the lengths and the product: what is near is a small difference
 * of long vectors. */
static double squared_difference(const float *a, const float *b, uint32_t dim)
{
    float block[BLOCK];
    double sum = 0;
    for (uint32_t first = 0; first < dim; first += BLOCK) {
        uint32_t n = dim - first < BLOCK ? dim - first : BLOCK;
        for (uint32_t i = 0; i < n; i++)
            block[i] = a[first + i] - b[first + i];
        sum += dot(block, block, n);
    }
    return sum;
}

float vector_distance(enum index_metric metric, const float *a, const float *b, uint32_t dim)
{
    if (metric == INDEX_L2)
        return code_no_nan((float)squared_difference(a, b, dim));
    double product = dot(a, b, dim);
    if (metric == INDEX_IP)
        return code_no_nan((float)(0.0 - product));
    double lengths = (double)vector_norm(a, dim) * (double)vector_norm(b, dim);
    return code_clamp(1.0f - (lengths == 0 ? 0.0f : (float)(product / lengths)));
}

void vector_to_half(const float *x, uint32_t n, uint16_t *out)
{
    kernels_get()->to_half(x, n, out);
}

void vector_from_half(const uint16_t *x, uint32_t n, float *out)
{
    kernels_get()->from_half(x, n, out);
}

/* A vector too small to divide by becomes zero, too. */
float vector_normalise(const float *x, uint32_t n, float *out)
{
    float norm = vector_norm(x, n);
    double inverse = norm > 0 && isfinite(norm) ? 1.0 / (double)norm : 0;
    for (uint32_t i = 0; i < n; i++)
        out[i] = (float)((double)x[i] * inverse);
    return norm;
}

uint32_t vector_project_work(uint32_t from, uint32_t to)
{
    uint32_t most = from > to ? from : to, power = 1;
    while (power < most && power < UINT32_C(1) << 31)
        power *= 2;
    return power;
}

void vector_project(const float *x, uint32_t from, float *out, uint32_t to, float *work)
{
    uint32_t n = vector_project_work(from, to);
    memcpy(work, x, from * sizeof *x);
    memset(work + from, 0, (n - from) * sizeof *work);
    for (uint32_t half = 1; half < n; half *= 2) {
        for (uint32_t first = 0; first < n; first += 2 * half) {
            float *low = work + first, *high = low + half;
            for (uint32_t i = 0; i < half; i++) {
                float a = low[i], b = high[i];
                low[i] = a + b;
                high[i] = a - b;
            }
        }
    }
    double scale = from ? 1.0 / sqrt(from) : 0;
    for (uint32_t i = 0; i < to; i++)
        out[i] = (float)((double)work[i] * scale);
}
