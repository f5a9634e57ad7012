/* Attention of one head over one text, without padding.
 *
 * Both of its products run on the f32 product kernel: the keys transposed are a packed matrix
 * of head_size inputs and n_tokens outputs, the values one of n_tokens inputs and head_size
 * outputs. Queries go in blocks of ATTENTION_ROWS, so a text of n tokens needs ATTENTION_ROWS *
 * n scores and not n * n. The division by the softmax sum waits until after the second product,
 * where it costs head_size multiplications a row instead of n. */

#include <math.h>
#include <string.h>

#include "engine/bert_fast_internal.h"

/* n rows of head_size floats to panels of `panel` columns over n inputs. */
static void pack_values(const struct bert_fast *f, const float *rows, uint32_t n, float *panels)
{
    uint32_t panel = f->kernels->product->panel;
    for (uint32_t column = 0; column < f->head_size; column += panel) {
        uint32_t width = f->head_size - column < panel ? f->head_size - column : panel;
        for (uint32_t i = 0; i < n; i++, panels += panel) {
            memcpy(panels, rows + (size_t)i * f->qkv_stride + column, width * sizeof(float));
            memset(panels + width, 0, (panel - width) * sizeof(float));
        }
    }
}

void fast_attention(const struct bert_fast *f, struct fast_scratch *s, uint32_t first,
                    uint32_t n_tokens, uint32_t head)
{
    const struct product_kernels *product = f->kernels->product;
    uint32_t n_embd = f->b->n_embd, size = f->head_size, panel = product->panel;
    uint32_t n_panels = (n_tokens + panel - 1) / panel;
    uint32_t padded = (n_tokens + ROW_MULTIPLE - 1) / ROW_MULTIPLE * ROW_MULTIPLE;
    const float *q = f->qkv + (size_t)first * f->qkv_stride + (size_t)head * size;
    float *out = f->context + (size_t)first * n_embd + (size_t)head * size;

    product->transpose(q + n_embd, f->qkv_stride, n_tokens, size, 1.0f / sqrtf((float)size),
                       s->keys);
    pack_values(f, q + 2 * (size_t)n_embd, n_tokens, s->values);
    for (uint32_t row = 0; row < n_tokens; row += ATTENTION_ROWS) {
        uint32_t rows = n_tokens - row < ATTENTION_ROWS ? n_tokens - row : ATTENTION_ROWS;
        float sums[ATTENTION_ROWS];
        product->f32(q + (size_t)row * f->qkv_stride, f->qkv_stride, rows, s->keys, size,
                     n_panels, NULL, s->scores, padded);
        for (uint32_t r = 0; r < rows; r++) {
            float *scores = s->scores + (size_t)r * padded;
            for (uint32_t j = n_tokens; j < padded; j++)
                scores[j] = -INFINITY;
            sums[r] = f->kernels->row->softmax(scores, padded);
        }
        product->f32(s->scores, padded, rows, s->values, n_tokens, f->head_padded / panel, NULL,
                     s->mixed, f->head_padded);
        for (uint32_t r = 0; r < rows; r++) {
            float factor = 1.0f / sums[r], *to = out + (size_t)(row + r) * n_embd;
            const float *from = s->mixed + (size_t)r * f->head_padded;
            for (uint32_t i = 0; i < size; i++)
                to[i] = factor * from[i];
        }
    }
}
