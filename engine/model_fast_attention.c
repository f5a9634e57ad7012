/* Attention of the heads of one text that share keys and values, without padding.
 *
 * A block of queries is multiplied with the keys that one of its tokens sees, in whole panels:
 * all of them, those before it (causal), or those around it (a window); within the panels what
 * a token does not see is set to minus infinity. So a window costs its width, not the text's.
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

#include "engine/model_fast_internal.h"

/* What a block of queries sees: keys first .. end - 1, and first is a panel's first. */
struct span {
    uint32_t first, end, n_panels, padded; /* padded: columns of a row of scores */
};

static uint32_t round_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

static struct span span_of(const struct model_fast *f, const struct fast_layer *layer,
                           uint32_t row, uint32_t n_rows, uint32_t n_tokens)
{
    uint32_t panel = f->kernels->product->panel, last = row + n_rows - 1, first = 0,
             end = n_tokens;
    if (layer->window) {
        first = row > layer->window ? (row - layer->window) / panel * panel : 0;
        end = last + layer->window < n_tokens ? last + layer->window + 1 : n_tokens;
    }
    if (f->m->causal)
        end = last + 1;
    uint32_t n_panels = (end - first + panel - 1) / panel;
    end = first + n_panels * panel < n_tokens ? first + n_panels * panel : n_tokens;
    return (struct span){first, end, n_panels, round_up(n_panels * panel, ROW_MULTIPLE)};
}

/* Scores of query t, of the keys of the span: ALiBi's share is taken off, what t does not see
 * becomes nothing. What they will be multiplied with is `factor`. */
static void mask_row(const struct model_fast *f, const struct fast_layer *layer, uint32_t t,
                     const struct span *span, float slope, float factor, float *scores)
{
    uint32_t from = 0, to = span->end;
    if (layer->window) {
        from = t > layer->window ? t - layer->window : 0;
        to = t + layer->window + 1 < to ? t + layer->window + 1 : to;
    }
    if (f->m->causal && t + 1 < to)
        to = t + 1;
    if (slope > 0) {
        float step = slope / factor;
        for (uint32_t u = span->first; u < span->end; u++)
            scores[u - span->first] -= step * (float)(t > u ? t - u : u - t);
    }
    for (uint32_t u = span->first; u < from; u++)
        scores[u - span->first] = -INFINITY;
    for (uint32_t u = to; u < span->first + span->padded; u++)
        scores[u - span->first] = -INFINITY;
}

static float slope_of(const struct model_fast *f, uint32_t head)
{
    return f->m->position == POSITION_ALIBI ? model_alibi_slope(f->m, head) : 0;
}

/* n rows of head_size floats to panels of `panel` columns over n inputs. */
static void pack_values(const struct model_fast *f, const float *rows, uint32_t n,
                        float *panels)
{
    uint32_t panel = f->kernels->product->panel, size = f->m->head_size;
    for (uint32_t column = 0; column < size; column += panel) {
        uint32_t width = size - column < panel ? size - column : panel;
        for (uint32_t i = 0; i < n; i++, panels += panel) {
            memcpy(panels, rows + (size_t)i * f->qkv_stride + column, width * sizeof(float));
            memset(panels + width, 0, (panel - width) * sizeof(float));
        }
    }
}

/* mixed = scores x the values of the span; the panels of values have n_tokens lines. */
static void mix_f32(const struct model_fast *f, struct fast_scratch *s, uint32_t n_rows,
                    const struct span *span, uint32_t n_tokens)
{
    const struct product_kernels *product = f->kernels->product;
    uint32_t panel = product->panel, n_panels = f->head_padded / panel;
    if (span->end - span->first == n_tokens) {
        product->f32(s->scores, span->padded, n_rows, s->values, n_tokens, n_panels, NULL,
                     s->mixed, f->head_padded);
        return;
    }
    for (uint32_t p = 0; p < n_panels; p++)
        product->f32(s->scores, span->padded, n_rows,
                     s->values + ((size_t)p * n_tokens + span->first) * panel,
                     span->end - span->first, 1, NULL, s->mixed + (size_t)p * panel,
                     f->head_padded);
}

/* Rows of mixed, multiplied, to where the heads' results go. */
static void put_context(const struct model_fast *f, const float *mixed, float factor, float *to)
{
    for (uint32_t i = 0; i < f->m->head_size; i++)
        to[i] = factor * mixed[i];
}

static void head_f32(const struct model_fast *f, struct fast_scratch *s,
                     const struct fast_layer *layer, uint32_t first, uint32_t n_tokens,
                     uint32_t head)
{
    const struct product_kernels *product = f->kernels->product;
    uint32_t size = f->m->head_size;
    float slope = slope_of(f, head);
    const float *q = f->qkv + (size_t)first * f->qkv_stride + (size_t)head * size;
    float *out = f->context + (size_t)first * f->q_width + (size_t)head * size;
    for (uint32_t row = 0; row < n_tokens; row += ATTENTION_ROWS) {
        uint32_t rows = n_tokens - row < ATTENTION_ROWS ? n_tokens - row : ATTENTION_ROWS;
        float sums[ATTENTION_ROWS];
        struct span span = span_of(f, layer, row, rows, n_tokens);
        product->f32(q + (size_t)row * f->qkv_stride, f->qkv_stride, rows,
                     s->keys + (size_t)span.first * size, size, span.n_panels, NULL, s->scores,
                     span.padded);
        for (uint32_t r = 0; r < rows; r++) {
            float *scores = s->scores + (size_t)r * span.padded;
            mask_row(f, layer, row + r, &span, slope, 1, scores);
            sums[r] = f->kernels->row->softmax(scores, span.padded);
        }
        mix_f32(f, s, rows, &span, n_tokens);
        for (uint32_t r = 0; r < rows; r++)
            put_context(f, s->mixed + (size_t)r * f->head_padded, 1.0f / sums[r],
                        out + (size_t)(row + r) * f->q_width);
    }
}

/* --- in 16 bits --- */

enum { KEY_CODES = 4095, VALUE_CODES = 2047 };
_Static_assert(KEY_CODES *KEY_CODES <= INT16_PRODUCT_MAX, "sums of scores fit");
_Static_assert(SOFTMAX_ONE *VALUE_CODES <= INT16_PRODUCT_MAX, "sums of values fit");

/* What the floats of one head in n rows are multiplied with to become codes up to `most`. */
static float code_factor(const struct model_fast *f, const float *rows, uint32_t n, int most)
{
    float largest = f->kernels->row->largest(rows, f->qkv_stride, n, f->m->head_size);
    return largest > 0 ? (float)most / largest : 1;
}

/* One row of a head as codes, an even number of them. */
static void code_row(const struct model_fast *f, const float *row, float factor, int16_t *out)
{
    out[f->head_even - 1] = 0;
    f->kernels->row->quantize16(row, f->m->head_size, factor, out);
}

/* A panel of `panel` tokens by the features of the head, two features a line. */
static void pack_keys16(const struct model_fast *f, struct fast_scratch *s, const float *rows,
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
static void pack_values16(const struct model_fast *f, struct fast_scratch *s, const float *rows,
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

static void mix_int16(const struct model_fast *f, struct fast_scratch *s, uint32_t n_rows,
                      const struct span *span, uint32_t n_tokens)
{
    const struct product_kernels *product = f->kernels->product;
    const int16_t *codes = (const int16_t *)(void *)s->scores,
                  *values = (const int16_t *)(void *)s->values;
    uint32_t panel = product->panel, n_panels = f->head_padded / panel;
    size_t line = 2 * (size_t)panel, lines = (n_tokens + 1) / 2;
    uint32_t even = (span->end - span->first + 1) / 2 * 2;
    if (span->end - span->first == n_tokens) {
        product->int16(codes, 2 * (size_t)span->padded, n_rows, values, even, n_panels,
                       s->mixed, f->head_padded);
        return;
    }
    for (uint32_t p = 0; p < n_panels; p++)
        product->int16(codes, 2 * (size_t)span->padded, n_rows,
                       values + (p * lines + span->first / 2) * line, even, 1,
                       s->mixed + (size_t)p * panel, f->head_padded);
}

static void head_int16(const struct model_fast *f, struct fast_scratch *s,
                       const struct fast_layer *layer, uint32_t first, uint32_t n_tokens,
                       uint32_t head, float k_factor, float v_factor)
{
    const struct product_kernels *product = f->kernels->product;
    uint32_t size = f->m->head_size;
    float slope = slope_of(f, head);
    const float *q = f->qkv + (size_t)first * f->qkv_stride + (size_t)head * size;
    float *out = f->context + (size_t)first * f->q_width + (size_t)head * size;
    for (uint32_t row = 0; row < n_tokens; row += ATTENTION_ROWS) {
        uint32_t rows = n_tokens - row < ATTENTION_ROWS ? n_tokens - row : ATTENTION_ROWS;
        float sums[ATTENTION_ROWS], factors[ATTENTION_ROWS];
        struct span span = span_of(f, layer, row, rows, n_tokens);
        for (uint32_t r = 0; r < rows; r++) {
            const float *from = q + (size_t)(row + r) * f->qkv_stride;
            float one = code_factor(f, from, 1, KEY_CODES);
            factors[r] = f->m->attention_scale / (one * k_factor);
            code_row(f, from, one, s->codes16 + (size_t)r * f->head_even);
        }
        product->int16(s->codes16, f->head_even, rows,
                       (const int16_t *)(void *)s->keys + (size_t)span.first * f->head_even,
                       f->head_even, span.n_panels, s->scores, span.padded);
        for (uint32_t r = 0; r < rows; r++) {
            float *scores = s->scores + (size_t)r * span.padded;
            mask_row(f, layer, row + r, &span, slope, factors[r], scores);
            sums[r] = f->kernels->row->softmax_codes(scores, span.padded, factors[r],
                                                     (int16_t *)(void *)scores);
        }
        mix_int16(f, s, rows, &span, n_tokens);
        for (uint32_t r = 0; r < rows; r++)
            put_context(f, s->mixed + (size_t)r * f->head_padded, 1.0f / (sums[r] * v_factor),
                        out + (size_t)(row + r) * f->q_width);
    }
}

void fast_attention(const struct model_fast *f, struct fast_scratch *s,
                    const struct fast_layer *layer, uint32_t first, uint32_t n_tokens,
                    uint32_t kv_head)
{
    uint32_t size = f->m->head_size, group = f->m->n_heads / f->m->n_kv_heads;
    const float *k = f->qkv + (size_t)first * f->qkv_stride + f->q_width +
                     (size_t)kv_head * size,
                *v = k + f->kv_width;
    if (f->precision != MODEL_INT8) {
        f->kernels->product->transpose(k, f->qkv_stride, n_tokens, size, f->m->attention_scale,
                                       s->keys);
        pack_values(f, v, n_tokens, s->values);
        for (uint32_t i = 0; i < group; i++)
            head_f32(f, s, layer, first, n_tokens, kv_head * group + i);
        return;
    }
    float k_factor = code_factor(f, k, n_tokens, KEY_CODES);
    float v_factor = code_factor(f, v, n_tokens, VALUE_CODES);
    pack_keys16(f, s, k, n_tokens, k_factor);
    pack_values16(f, s, v, n_tokens, v_factor);
    for (uint32_t i = 0; i < group; i++)
        head_int16(f, s, layer, first, n_tokens, kv_head * group + i, k_factor, v_factor);
}
