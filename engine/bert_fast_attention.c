/* Attention of one head over one text, without padding.
 *
 * Both of its products run on the f32 product kernel: the keys transposed are a packed matrix
 * of head_size inputs and n_tokens outputs, the values one of n_tokens inputs and head_size
 * outputs. Queries go in blocks of ATTENTION_ROWS, so a text of n tokens needs ATTENTION_ROWS *
 * n scores and not n * n. The division by the softmax sum waits until after the second product,
 * where it costs head_size multiplications a row instead of n.
 *
 * With int8 weights both products run in 16 bits, twice as fast: each query has a scale of its
 * own, the keys and the values of a head one each (codes of 12 and 11 bits), and the softmax
 * has 14 bits, so that what 512 faint tokens have together is not lost; it is divided by the
 * sum of its rounded values. On all-MiniLM-L6-v2 a text of 450 tokens takes 0.86 of the time.
 * The worst cosine of the golden texts is 0.99918 so and 0.99920 with floats here, which is
 * what any small change does to the codes of the activations: with one scale for all queries it
 * was 0.99898.
 */

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

static void attention_f32(const struct bert_fast *f, struct fast_scratch *s, uint32_t first,
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

/* --- in 16 bits --- */

enum { KEY_CODES = 4095, VALUE_CODES = 2047 };
_Static_assert(KEY_CODES *KEY_CODES <= INT16_PRODUCT_MAX, "sums of scores fit");
_Static_assert(SOFTMAX_ONE *VALUE_CODES <= INT16_PRODUCT_MAX, "sums of values fit");

/* What the floats of one head in n rows are multiplied with to become codes up to `most`. */
static float code_factor(const struct bert_fast *f, const float *rows, uint32_t n, int most)
{
    float largest = f->kernels->row->largest(rows, f->qkv_stride, n, f->head_size);
    return largest > 0 ? (float)most / largest : 1;
}

/* One row of a head as codes, an even number of them. */
static void code_row(const struct bert_fast *f, const float *row, float factor, int16_t *out)
{
    out[f->head_even - 1] = 0;
    f->kernels->row->quantize16(row, f->head_size, factor, out);
}

/* A panel of `panel` tokens by the features of the head, two features a line. */
static void pack_keys16(const struct bert_fast *f, struct fast_scratch *s, const float *rows,
                        uint32_t n, float factor)
{
    uint32_t panel = f->kernels->product->panel, pairs = f->head_even / 2;
    int16_t *out = (void *)s->keys;
    for (uint32_t first = 0; first < n; first += panel, out += 2 * (size_t)panel * pairs) {
        uint32_t columns = n - first < panel ? n - first : panel;
        for (uint32_t j = 0; j < columns; j++)
            code_row(f, rows + (size_t)(first + j) * f->qkv_stride, factor,
                     s->codes16 + (size_t)j * f->head_even);
        memset(s->codes16 + (size_t)columns * f->head_even, 0,
               (size_t)(panel - columns) * f->head_even * sizeof *s->codes16);
        for (uint32_t i = 0; i < pairs; i++)
            for (uint32_t j = 0; j < panel; j++)
                memcpy(out + 2 * (size_t)(i * panel + j),
                       s->codes16 + 2 * (size_t)(j * pairs + i), 2 * sizeof *out);
    }
}

/* Panels of `panel` features by the tokens, two tokens a line; a last odd one goes with zeros.
 */
static void pack_values16(const struct bert_fast *f, struct fast_scratch *s, const float *rows,
                          uint32_t n, float factor)
{
    uint32_t panel = f->kernels->product->panel;
    size_t line = 2 * (size_t)panel, lines = (n + 1) / 2;
    int16_t *even = s->codes16, *odd = even + f->head_padded;
    memset(even, 0, line * f->head_padded / panel * sizeof *even);
    for (uint32_t t = 0; t < n; t += 2) {
        code_row(f, rows + (size_t)t * f->qkv_stride, factor, even);
        if (t + 1 < n)
            code_row(f, rows + (size_t)(t + 1) * f->qkv_stride, factor, odd);
        else
            memset(odd, 0, f->head_padded * sizeof *odd);
        for (uint32_t column = 0; column < f->head_padded; column += panel) {
            int16_t *out =
                (int16_t *)(void *)s->values + column / panel * lines * line + t / 2 * line;
            for (uint32_t j = 0; j < panel; j++) {
                out[2 * j] = even[column + j];
                out[2 * j + 1] = odd[column + j];
            }
        }
    }
}

static void attention_int16(const struct bert_fast *f, struct fast_scratch *s, uint32_t first,
                            uint32_t n_tokens, uint32_t head)
{
    const struct product_kernels *product = f->kernels->product;
    uint32_t n_embd = f->b->n_embd, size = f->head_size, panel = product->panel;
    uint32_t n_panels = (n_tokens + panel - 1) / panel, even = (n_tokens + 1) / 2 * 2;
    uint32_t padded = (n_tokens + ROW_MULTIPLE - 1) / ROW_MULTIPLE * ROW_MULTIPLE;
    const float *q = f->qkv + (size_t)first * f->qkv_stride + (size_t)head * size;
    const float *k = q + n_embd, *v = k + n_embd;
    float *out = f->context + (size_t)first * n_embd + (size_t)head * size;
    float k_factor = code_factor(f, k, n_tokens, KEY_CODES);
    float v_factor = code_factor(f, v, n_tokens, VALUE_CODES);

    pack_keys16(f, s, k, n_tokens, k_factor);
    pack_values16(f, s, v, n_tokens, v_factor);
    for (uint32_t row = 0; row < n_tokens; row += ATTENTION_ROWS) {
        uint32_t rows = n_tokens - row < ATTENTION_ROWS ? n_tokens - row : ATTENTION_ROWS;
        float sums[ATTENTION_ROWS], factors[ATTENTION_ROWS];
        for (uint32_t r = 0; r < rows; r++) {
            const float *from = q + (size_t)(row + r) * f->qkv_stride;
            float one = code_factor(f, from, 1, KEY_CODES);
            factors[r] = 1.0f / (sqrtf((float)size) * one * k_factor);
            code_row(f, from, one, s->codes16 + (size_t)r * f->head_even);
        }
        product->int16(s->codes16, f->head_even, rows, (const int16_t *)(void *)s->keys,
                       f->head_even, n_panels, s->scores, padded);
        for (uint32_t r = 0; r < rows; r++) {
            float *scores = s->scores + (size_t)r * padded;
            for (uint32_t j = n_tokens; j < padded; j++)
                scores[j] = -INFINITY;
            sums[r] = f->kernels->row->softmax_codes(scores, padded, factors[r],
                                                     (int16_t *)(void *)scores);
        }
        product->int16((const int16_t *)(void *)s->scores, 2 * (size_t)padded, rows,
                       (const int16_t *)(void *)s->values, even, f->head_padded / panel,
                       s->mixed, f->head_padded);
        for (uint32_t r = 0; r < rows; r++) {
            float scale = 1.0f / (sums[r] * v_factor), *to = out + (size_t)(row + r) * n_embd;
            const float *from = s->mixed + (size_t)r * f->head_padded;
            for (uint32_t i = 0; i < size; i++)
                to[i] = scale * from[i];
        }
    }
}

void fast_attention(const struct bert_fast *f, struct fast_scratch *s, uint32_t first,
                    uint32_t n_tokens, uint32_t head)
{
    if (f->precision == BERT_INT8)
        attention_int16(f, s, first, n_tokens, head);
    else
        attention_f32(f, s, first, n_tokens, head);
}
