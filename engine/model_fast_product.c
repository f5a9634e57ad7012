/* One product over a block of rows: quantize, multiply, and add the second plane of short
 * texts. */

#include <math.h>

#include "engine/model_fast_internal.h"

/* The range of input k of row r. */
static struct int8_range range_of(const struct int8_rows *rows, uint32_t r, uint32_t k)
{
    return rows->ranges[(size_t)r * rows->n_ranges + (rows->n_ranges > 1 ? k / INT8_BLOCK : 0)];
}

/* n_in floats to codes and ranges at index r of the thread's rows. */
static void quantize(const struct model_fast *f, struct int8_rows *rows,
                     const struct fast_matrix *m, const float *x, uint32_t r)
{
    struct int8_range *ranges = rows->ranges + (size_t)r * rows->n_ranges;
    f->kernels->row->quantize(x, m->n_in, rows->codes + r * rows->stride, ranges);
    for (uint32_t t = 0; t < OUTLIERS_MAX; t++)
        rows->side[r][t] = 0;
    rows->side[r][SIDE_SUM] = f->kernels->product->block_ranges ? 0 : ranges->offset;
}

/* Row x at index r; the outlier inputs count as zero for the codes' range and go into the side
 * values as they are. */
static void quantize_row(const struct model_fast *f, struct int8_rows *rows,
                         const struct fast_matrix *m, float *x, uint32_t r)
{
    const uint8_t *codes = rows->codes + r * rows->stride;
    float *side = rows->side[r], kept[OUTLIERS_MAX];
    for (uint32_t t = 0; t < m->n_outliers; t++) {
        kept[t] = x[m->outliers[t]];
        x[m->outliers[t]] = 0;
    }
    quantize(f, rows, m, x, r);
    for (uint32_t t = 0; t < m->n_outliers; t++) {
        uint32_t k = m->outliers[t];
        x[k] = kept[t];
        f->kernels->row->residue(&kept[t], 1, codes + k, range_of(rows, r, k), &side[t]);
    }
    side[SIDE_BIAS] = 1;
}

/* What row r's codes left out, as codes of its own at index `second`. */
static void quantize_residue(const struct model_fast *f, struct fast_scratch *s,
                             const struct fast_matrix *m, const float *x, uint32_t r,
                             uint32_t second)
{
    struct int8_rows *rows = &s->rows;
    const uint8_t *codes = rows->codes + r * rows->stride;
    uint32_t span = m->n_in / rows->n_ranges;
    for (uint32_t k = 0; k < m->n_in; k += span)
        f->kernels->row->residue(x + k, span, codes + k, range_of(rows, r, k), s->residue + k);
    for (uint32_t t = 0; t < m->n_outliers; t++)
        s->residue[m->outliers[t]] = 0;
    quantize(f, rows, m, s->residue, second);
    rows->side[second][SIDE_BIAS] = 0;
}

static void note_largest(const struct fast_matrix *m, const float *x)
{
    for (uint32_t k = 0; k < m->n_in; k++)
        if (fabsf(x[k]) > m->largest[k])
            m->largest[k] = fabsf(x[k]);
}

void fast_product(const struct model_fast *f, struct fast_scratch *s,
                  const struct fast_matrix *m, float *x, size_t x_stride, uint32_t first,
                  uint32_t n_rows, float *c, size_t c_stride)
{
    const struct product_kernels *product = f->kernels->product;
    if (m->precision == MODEL_F32) {
        product->f32(x, x_stride, n_rows, m->f32, m->n_in, m->n_panels, m->bias, c, c_stride);
        return;
    }
    if (m->precision == MODEL_BF16) {
        for (uint32_t r = 0; r < n_rows; r++)
            product->round_bf16(x + r * x_stride, m->n_in, s->bf16 + (size_t)r * m->n_in);
        product->bf16(s->bf16, m->n_in, n_rows, m->bf16, m->n_in, m->n_panels, m->bias, c,
                      c_stride);
        return;
    }
    uint32_t n_twice = 0, n_blocks = m->n_in / INT8_BLOCK;
    s->rows.n_ranges = int8_ranges(product, m->n_in);
    for (uint32_t r = 0; r < n_rows; r++) {
        float *row = x + r * x_stride;
        if (m->largest)
            note_largest(m, row);
        quantize_row(f, &s->rows, m, row, r);
        if (f->two_planes[first + r]) {
            quantize_residue(f, s, m, row, r, n_rows + n_twice);
            s->twice[n_twice++] = r;
        }
    }
    product->int8(&s->rows, 0, n_rows, m->int8, n_blocks, m->n_panels, m->side, c, c_stride);
    if (n_twice == 0)
        return;
    uint32_t padded = m->n_panels * product->panel;
    product->int8(&s->rows, n_rows, n_twice, m->int8, n_blocks, m->n_panels, m->side, s->second,
                  padded);
    for (uint32_t i = 0; i < n_twice; i++) {
        float *row = c + s->twice[i] * c_stride;
        const float *more = s->second + (size_t)i * padded;
        for (uint32_t j = 0; j < padded; j++)
            row[j] += more[j];
    }
}
