/* Weights into panels (drawn in kernels.h), once, at load.
 *
 * The int8 panels have a signed code for each weight and a float scale for 32 inputs of a
 * column. Q8_0, Q4_0, Q5_0 and IQ4_NL are just that already, so their weights are computed with
 * exactly as the file has them, at the speed of Q8_0. All other types go through floats and are
 * quantized by Q8_0's rule, without rounding the scale to half precision (tensor_row_int8);
 * README.md, "Formats", says what that adds to their error. Kernels for each layout would need
 * less memory and be slower: a batch computes many tokens a weight, so what counts is the
 * work at each product, not the bytes. */

#include <string.h>

#include "base/mem.h"
#include "engine/half.h"
#include "engine/model_fast_internal.h"

enum { ALIGNMENT = 64 };

uint32_t fast_pad(const struct model_fast *f, uint32_t n)
{
    uint32_t to =
        f->kernels->product->panel > ROW_MULTIPLE ? f->kernels->product->panel : ROW_MULTIPLE;
    return (n + to - 1) / to * to;
}

void fast_matrix_deinit(struct fast_matrix *m)
{
    if (!m->mapped)
        mem_free(m->block);
    mem_free(m->largest);
    *m = (struct fast_matrix){0};
}

/* Before the panels: the bias, or the side weights. */
static size_t small_bytes(const struct fast_matrix *m, const struct product_kernels *product)
{
    size_t columns = (size_t)m->n_panels * product->panel,
           bytes = columns * (m->precision == MODEL_INT8 ? N_SIDE : 1) * sizeof(float);
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static size_t panels_bytes(const struct fast_matrix *m, const struct product_kernels *product)
{
    size_t elements = (size_t)m->n_panels * product->panel * m->n_in;
    switch (m->precision) {
    case MODEL_INT8:
        return (size_t)m->n_panels * (m->n_in / INT8_BLOCK) * int8_block_bytes(product);
    case MODEL_BF16:
        return elements * sizeof(uint16_t);
    default:
        return elements * sizeof(float);
    }
}

size_t fast_matrix_bytes(const struct fast_matrix *m, const struct product_kernels *product)
{
    return small_bytes(m, product) + panels_bytes(m, product);
}

void fast_matrix_place(struct fast_matrix *m, const struct product_kernels *product,
                       void *block, bool mapped)
{
    void *panels = (char *)block + small_bytes(m, product);
    m->block = block;
    m->mapped = mapped;
    if (m->precision == MODEL_INT8) {
        m->side = block;
        m->int8 = panels;
        return;
    }
    m->bias = block;
    if (m->precision == MODEL_BF16)
        m->bf16 = panels;
    else
        m->f32 = panels;
}

/* Output j of the stack: which tensor, and which of its rows. */
static const struct model_matrix *source_row(const struct fast_source *source, uint32_t j,
                                             uint64_t *row)
{
    unsigned i = 0;
    while (j >= source->parts[i]->n_rows)
        j -= (uint32_t)source->parts[i++]->n_rows;
    *row = source->parts[i]->first_row + j;
    return source->parts[i];
}

static float bias_of(const struct model_matrix *part, uint64_t row)
{
    return part->b ? ((const float *)part->b->data)[row] : 0;
}

static void pack_row_f32(struct fast_matrix *m, uint32_t panel, uint32_t j, const float *row)
{
    float *out = m->f32 + (size_t)(j / panel) * m->n_in * panel + j % panel;
    for (uint32_t k = 0; k < m->n_in; k++)
        out[(size_t)k * panel] = row[k];
}

static void pack_row_bf16(struct fast_matrix *m, uint32_t panel, uint32_t j, const float *row)
{
    uint16_t *out = m->bf16 + (size_t)(j / panel) * m->n_in * panel + 2 * (j % panel);
    for (uint32_t k = 0; k < m->n_in; k++)
        out[(size_t)(k / 2) * 2 * panel + k % 2] = half_bf16_from_f32(row[k]);
}

static void pack_row_int8(struct fast_matrix *m, const struct product_kernels *product,
                          uint32_t j, const int8_t *codes, const float *scales)
{
    uint32_t n_blocks = m->n_in / INT8_BLOCK, panel = product->panel, column = j % panel;
    size_t block_bytes = int8_block_bytes(product);
    char *block = (char *)m->int8 + (size_t)(j / panel) * n_blocks * block_bytes;
    float sum = 0;
    for (uint32_t b = 0; b < n_blocks; b++, block += block_bytes, codes += INT8_BLOCK) {
        int total = 0;
        for (uint32_t k = 0; k < INT8_BLOCK; k++) {
            block[k / 4 * 4 * panel + 4 * column + k % 4] = (char)codes[k];
            total += codes[k];
        }
        float *lines = (float *)(void *)(block + (size_t)panel * INT8_BLOCK);
        lines[column] = scales[b];
        if (product->block_ranges)
            lines[panel + column] = scales[b] * (float)total;
        sum += scales[b] * (float)total;
    }
    float *side = m->side + (size_t)(j / panel) * N_SIDE * panel + column;
    side[SIDE_SUM * panel] = sum;
}

int fast_matrix_shape(const struct model_fast *f, struct fast_matrix *m,
                      enum model_precision precision, const struct fast_source *source,
                      struct err *e)
{
    uint32_t panel = f->kernels->product->panel;
    size_t elements, bytes;
    m->precision = precision;
    m->n_in = (uint32_t)source->parts[0]->w->ne[0];
    m->n_out = 0;
    for (unsigned i = 0; i < source->n; i++)
        m->n_out += (uint32_t)source->parts[i]->n_rows;
    m->n_panels = (m->n_out + panel - 1) / panel;
    if (mem_mul_overflows((size_t)m->n_panels * panel, (size_t)m->n_in + N_SIDE, &elements) ||
        mem_mul_overflows(elements, sizeof(float), &bytes))
        return err_set(e, KITH_ENOMEM, "a weight of %u x %u is too large", m->n_in, m->n_out);
    return 0;
}

static int allocate(struct fast_matrix *m, const struct product_kernels *product, struct err *e)
{
    size_t bytes = fast_matrix_bytes(m, product);
    void *block = mem_alloc_aligned(ALIGNMENT, bytes);
    if (!block)
        return err_set(e, KITH_ENOMEM, "out of memory for packed weights of %u x %u", m->n_in,
                       m->n_out);
    memset(block, 0, bytes);
    fast_matrix_place(m, product, block, false);
    return 0;
}

int fast_pack(const struct model_fast *f, struct fast_matrix *m, enum model_precision precision,
              const struct fast_source *source, struct err *e)
{
    const struct product_kernels *product = f->kernels->product;
    uint32_t panel = product->panel;
    int rc = fast_matrix_shape(f, m, precision, source, e);
    if (rc != 0)
        return rc;
    float *row = mem_alloc_n(m->n_in, sizeof *row);
    int8_t *codes = mem_alloc_n(m->n_in, sizeof *codes);
    rc = row && codes ? allocate(m, product, e)
                      : err_set(e, KITH_ENOMEM, "out of memory for a weight row");
    for (uint32_t j = 0; j < m->n_out && rc == 0; j++) {
        uint64_t source_j;
        const struct model_matrix *part = source_row(source, j, &source_j);
        float bias = bias_of(part, source_j);
        if (precision == MODEL_F32) {
            tensor_row_f32(part->w, source_j, row);
            m->bias[j] = bias;
            pack_row_f32(m, panel, j, row);
        } else if (precision == MODEL_BF16) {
            tensor_row_f32(part->w, source_j, row);
            m->bias[j] = bias;
            pack_row_bf16(m, panel, j, row);
        } else {
            tensor_row_int8(part->w, source_j, codes, row); /* row: the scales */
            pack_row_int8(m, product, j, codes, row);
            m->side[((size_t)(j / panel) * N_SIDE + SIDE_BIAS) * panel + j % panel] = bias;
        }
    }
    mem_free(row);
    mem_free(codes);
    return rc;
}

int fast_pack_outliers(const struct model_fast *f, struct fast_matrix *m,
                       const struct fast_source *source, struct err *e)
{
    uint32_t panel = f->kernels->product->panel;
    float *row = mem_alloc_n(m->n_in, sizeof *row);
    if (!row)
        return err_set(e, KITH_ENOMEM, "out of memory for a weight row");
    for (m->n_outliers = 0; m->n_outliers < OUTLIERS_MAX; m->n_outliers++) {
        uint32_t best = 0;
        for (uint32_t k = 1; k < m->n_in; k++)
            if (m->largest[k] > m->largest[best])
                best = k;
        m->outliers[m->n_outliers] = best;
        m->largest[best] = -1;
    }
    for (uint32_t j = 0; j < m->n_out; j++) {
        uint64_t source_j;
        const struct model_matrix *part = source_row(source, j, &source_j);
        tensor_row_f32(part->w, source_j, row);
        for (uint32_t t = 0; t < m->n_outliers; t++)
            m->side[((size_t)(j / panel) * N_SIDE + t) * panel + j % panel] =
                row[m->outliers[t]];
    }
    mem_free(row);
    return 0;
}
