/* The fast forward pass.
 *
 * Everything but attention is local to a token. So a layer is two jobs of the pool, and a
 * forward pass of L layers has 2 L + 2 with embedding and pooling (2 L + 3 with dense layers):
 *
 *   rows      embeddings, norm                                      ┐
 *             norm, quantize, qkv, angles                           ┘ first job
 *   heads     attention of one (text, key and value head) a part    ┐
 *   rows      quantize, o, norm, +h, norm, quantize, up, GELU,      │ once a layer
 *             quantize, down, norm, +h, norm, quantize, qkv of the  │
 *             next, angles                                          ┘
 *
 * Of the norms each model has some; a missing one costs a test of a pointer.
 *
 * A part of a `rows` job is a block of up to BLOCK_ROWS tokens, which takes all those steps
 * with its activations in the second-level cache (48 x 1536 floats are 288 KiB) while the
 * weights stream past once a block. Texts lie one after another without padding. A large batch
 * goes in groups of whole texts of about 512 tokens a thread, so that activations between jobs
 * stay in the shared cache and memory does not grow with the batch.
 *
 * Rejected: handing out whole texts, each through all layers without a barrier. Threads would
 * idle unless there are many texts of similar length, and one long text would run on one
 * thread. And, for up to 48 tokens, to share the columns of a product instead of the rows, so
 * that each core reads half of the weights: 10 to 25 % slower on two cores of Zen 3, for norms
 * and codes are then one thread's work, and half of every result comes from another core's
 * cache.
 *
 * Precision of the int8 path, measured on all-MiniLM-L6-v2 against the f32 original: one minus
 * the cosine in millionths, mean and worst over a few dozen mostly short texts, the hardest
 * ones (the last line: over 657 texts of 2 to 450 tokens, odd characters and random ids among
 * them).
 *
 *   Q8_0 weights, exact activations                          240 /    550
 *   + symmetric codes, one scale a row                      3950 / 18,900
 *   + codes around the middle of the row                    1820 /  5,600
 *   + 4 outlier inputs a product as floats                   440 /  1,190
 *   + a second plane of codes for texts below 12 tokens      220 /    700
 *
 * That is with 8-bit codes and one range a row. Where a set takes 7-bit codes and a range for
 * each 32 inputs instead (kernels.h), the finer ranges are worth the bit: 320 to 540 millionths
 * on the points of bench_embed_kernels, where row ranges have 290 to 590, and 7 bits with row
 * ranges 650 to 1,200. A second plane is wanted there for texts of fewer than 6 different
 * tokens only: without it, of 5,000 texts of 3 to 12 tokens, the worst of 6 or more has 910,
 * of fewer 1,700, and "........" 1,100, one error eight times.
 *
 * A few inputs of a product are ten times larger than the rest, always the same ones (input 99
 * of the residual stream, one or two neurons in each layer). They would set the scale of the
 * whole row. They are found at load by running a fixed sample of token ids (model_fast_new.c),
 * and enter the product as floats; all that a poor choice can cost is precision. Short texts
 * have few tokens to average the rounding over, so they get a second plane: what the first
 * codes left out is quantized again and multiplied as one more row. Models of fewer than 256
 * features average over as little, and are so small that nobody will feel it: they get it for
 * all texts. That depends on the text and the model alone, so a text has the same vector in
 * whatever batch it comes. */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "engine/model_fast_internal.h"
#include "engine/pool.h"

enum { ALIGNMENT = 64, MAX_TOKENS = 1 << 20 };

/* --- memory --- */

static void scratch_free(struct model_fast *f)
{
    for (unsigned i = 0; i < f->n_scratch; i++) {
        mem_free(f->scratch[i].block);
        mem_free(f->scratch[i].rows.codes);
    }
    mem_free(f->scratch);
    f->scratch = NULL;
    f->n_scratch = 0;
}

/* One allocation of floats behind all pointers: counted with base NULL, then handed out. */
static void *take(float *base, size_t *used, size_t n)
{
    void *p = base ? base + *used : NULL;
    *used += (n + 15) / 16 * 16;
    return p;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Of the products of the layers. */
static uint32_t widest_in(const struct model_fast *f)
{
    return larger(larger(f->m->n_ff, f->m->n_embd), f->q_width);
}

static size_t scratch_layout(const struct model_fast *f, struct fast_scratch *s, float *base)
{
    const struct model *m = f->m;
    const struct fast_layer *first = &f->layers[0];
    size_t used = 0;
    uint32_t widest = larger(larger(f->up_padded, f->qkv_stride), f->embd_padded);
    uint32_t panel = f->kernels->product->panel;
    bool normed = first->ffn_in.weight != NULL, again = first->attn_again.weight != NULL;
    s->wide = take(base, &used, (size_t)BLOCK_ROWS * larger(f->up_padded, f->dense_padded));
    s->narrow = take(base, &used, (size_t)BLOCK_ROWS * larger(f->embd_padded, f->dense_padded));
    s->normed = take(base, &used, normed ? (size_t)BLOCK_ROWS * m->n_embd : 0);
    s->before = take(base, &used, again ? (size_t)BLOCK_ROWS * m->n_embd : 0);
    s->second = take(base, &used, f->precision == MODEL_INT8 ? (size_t)BLOCK_ROWS * widest : 0);
    s->bf16 =
        take(base, &used, f->precision == MODEL_BF16 ? BLOCK_ROWS / 2 * (size_t)widest : 0);
    s->residue = take(base, &used, widest);
    s->keys = take(base, &used, (size_t)m->head_size * (f->ctx_padded + panel));
    s->values = take(base, &used, (size_t)f->head_padded * f->ctx_padded);
    s->scores = take(base, &used, (size_t)ATTENTION_ROWS * f->ctx_padded);
    s->mixed = take(base, &used, (size_t)ATTENTION_ROWS * f->head_padded);
    uint32_t coded = larger(panel, ATTENTION_ROWS);
    s->codes16 = take(base, &used, (size_t)coded * f->head_padded / 2);
    size_t ranges = (size_t)2 * BLOCK_ROWS * int8_ranges(f->kernels->product, widest_in(f));
    s->rows.ranges = take(base, &used, ranges * sizeof *s->rows.ranges / sizeof(float));
    s->rows.side = take(base, &used, (size_t)2 * BLOCK_ROWS * N_SIDE);
    s->twice = take(base, &used, BLOCK_ROWS);
    return used;
}

static int scratch_grow(struct model_fast *f, unsigned n_threads, struct err *e)
{
    if (n_threads <= f->n_scratch)
        return 0;
    scratch_free(f);
    f->scratch = mem_calloc(n_threads, sizeof *f->scratch);
    if (!f->scratch)
        goto nomem;
    for (; f->n_scratch < n_threads; f->n_scratch++) {
        struct fast_scratch *s = &f->scratch[f->n_scratch];
        /* Rows must not fall on the same cache sets. */
        s->rows.stride = widest_in(f) + ALIGNMENT;
        s->block = mem_alloc_aligned(ALIGNMENT, scratch_layout(f, s, NULL) * sizeof(float));
        s->rows.codes = mem_alloc_aligned(ALIGNMENT, 2 * BLOCK_ROWS * s->rows.stride);
        if (!s->block || !s->rows.codes) {
            mem_free(s->block);
            mem_free(s->rows.codes);
            goto nomem;
        }
        scratch_layout(f, s, s->block);
    }
    return 0;
nomem:
    scratch_free(f);
    return err_set(e, KITH_ENOMEM, "out of memory for the scratch of %u threads", n_threads);
}

static void group_free(struct model_fast *f)
{
    mem_free(f->hidden);
    mem_free(f->qkv);
    mem_free(f->context);
    mem_free(f->pooled);
    mem_free(f->two_planes);
    f->hidden = f->qkv = f->context = f->pooled = NULL;
    f->two_planes = NULL;
    f->group_capacity = 0;
}

static int group_grow(struct model_fast *f, uint32_t n_tokens, struct err *e)
{
    if (n_tokens <= f->group_capacity)
        return 0;
    group_free(f);
    size_t row = (size_t)n_tokens * sizeof(float);
    f->hidden = mem_alloc_aligned(ALIGNMENT, row * f->m->n_embd);
    f->qkv = mem_alloc_aligned(ALIGNMENT, row * f->qkv_stride);
    f->context = mem_alloc_aligned(ALIGNMENT, row * f->q_width);
    f->pooled = f->m->n_dense ? mem_alloc_aligned(ALIGNMENT, row * f->m->n_embd) : NULL;
    f->two_planes = mem_alloc_n(n_tokens, sizeof *f->two_planes);
    if (!f->hidden || !f->qkv || !f->context || !f->two_planes ||
        (f->m->n_dense && !f->pooled)) {
        group_free(f);
        return err_set(e, KITH_ENOMEM, "out of memory for the activations of %u tokens",
                       n_tokens);
    }
    f->group_capacity = n_tokens;
    return 0;
}

/* --- the jobs of a group --- */

struct job {
    struct model_fast *f;
    const struct model_batch *batch;
    uint32_t first_text, n_texts, first_token, n_tokens;
    uint32_t n_blocks, n_units, unit_rows; /* see cut_blocks() */
    uint32_t layer;
    float *out;
};

static uint32_t block_start(const struct job *j, uint32_t part, uint32_t *n_rows)
{
    uint32_t first = (uint32_t)((uint64_t)part * j->n_units / j->n_blocks) * j->unit_rows;
    uint32_t end = (uint32_t)((part + 1ull) * j->n_units / j->n_blocks) * j->unit_rows;
    *n_rows = (end < j->n_tokens ? end : j->n_tokens) - first;
    return first;
}

/* out = N(h + x), h += x, for n_rows rows of n_embd; x NULL: nothing is added. */
static void norm_rows(const struct model_fast *f, const struct fast_norm *norm, float *out,
                      float *h, const float *x, size_t x_stride, uint32_t n_rows)
{
    uint32_t n_embd = f->m->n_embd;
    for (uint32_t r = 0; r < n_rows; r++, out += n_embd, h += n_embd)
        f->norm(out, h, x ? x + r * x_stride : NULL, norm->weight, norm->bias, n_embd,
                f->m->norm_eps);
}

/* Each head, or all heads as one, normed in place. */
static void norm_heads(const struct model_fast *f, const struct fast_norm *norm, float *x,
                       uint32_t width)
{
    uint32_t size = f->m->whole_qk_norm ? width : f->m->head_size;
    for (uint32_t i = 0; i < width; i += size)
        f->norm(x + i, x + i, NULL, norm->weight, norm->bias, size, f->m->norm_eps);
}

static void rotate_heads(const struct model_fast *f, const float *angles, float *x,
                         uint32_t n_heads)
{
    uint32_t half = f->m->n_rotary / 2;
    for (uint32_t head = 0; head < n_heads; head++, x += f->m->head_size)
        f->kernels->row->rotate(x, angles, angles + half, half);
}

/* Of the group's token: its place in its text, whose number is at or after *text. */
static uint32_t place_of(const struct job *j, uint32_t row, uint32_t *text)
{
    uint32_t token = j->first_token + row;
    while (token >= j->batch->offsets[*text + 1])
        ++*text;
    return token - j->batch->offsets[*text];
}

/* Queries and keys of a block as attention takes them: normed and turned. */
static void finish_qkv(const struct job *j, const struct fast_layer *layer, uint32_t first,
                       uint32_t n_rows)
{
    struct model_fast *f = j->f;
    const struct model *m = f->m;
    uint32_t text = j->first_text;
    for (uint32_t r = first; r < first + n_rows; r++) {
        float *q = f->qkv + (size_t)r * f->qkv_stride, *k = q + f->q_width;
        if (layer->q_norm.weight) {
            norm_heads(f, &layer->q_norm, q, f->q_width);
            norm_heads(f, &layer->k_norm, k, f->kv_width);
        }
        if (m->position == POSITION_ROTARY) {
            const float *angles =
                f->rotary[layer->rotary] + (size_t)place_of(j, r, &text) * m->n_rotary;
            rotate_heads(f, angles, q, m->n_heads);
            rotate_heads(f, angles, k, m->n_kv_heads);
        }
    }
}

static void project_qkv(const struct job *j, struct fast_scratch *s, uint32_t l, uint32_t first,
                        uint32_t n_rows)
{
    struct model_fast *f = j->f;
    const struct fast_layer *layer = &f->layers[l];
    uint32_t n_embd = f->m->n_embd;
    float *x = f->hidden + (size_t)first * n_embd;
    if (layer->attn_in.weight) {
        norm_rows(f, &layer->attn_in, s->normed, x, NULL, 0, n_rows);
        x = s->normed;
    }
    fast_product(f, s, &layer->qkv, x, n_embd, first, n_rows,
                 f->qkv + (size_t)first * f->qkv_stride, f->qkv_stride);
    if (layer->q_norm.weight || f->m->position == POSITION_ROTARY)
        finish_qkv(j, layer, first, n_rows);
}

/* The stream of one token before the first layer. */
static void embed_token(const struct job *j, uint32_t token, uint32_t text, uint32_t place)
{
    struct model_fast *f = j->f;
    const struct model *m = f->m;
    const struct row_kernels *row = f->kernels->row;
    float *h = f->hidden + (size_t)(token - j->first_token) * m->n_embd;
    tensor_row_f32(m->token_embd, (uint64_t)j->batch->ids[token], h);
    for (uint32_t i = 0; i < m->n_embd && m->embd_scale != 1; i++)
        h[i] *= m->embd_scale;
    if (f->types && j->batch->splits && place >= j->batch->splits[text])
        row->add(h, f->types + m->n_embd, m->n_embd);
    const float *x = f->positions ? f->positions + (size_t)place * m->n_embd : f->types;
    if (f->embd_norm.weight)
        f->norm(h, h, x, f->embd_norm.weight, f->embd_norm.bias, m->n_embd, m->norm_eps);
    else if (x)
        row->add(h, x, m->n_embd);
}

static void job_embed(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    uint32_t n_rows, first = block_start(j, part, &n_rows), text = j->first_text;
    for (uint32_t r = first; r < first + n_rows; r++) {
        uint32_t place = place_of(j, r, &text);
        embed_token(j, j->first_token + r, text, place);
    }
    project_qkv(j, &j->f->scratch[thread], 0, first, n_rows);
}

static void job_attention(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    struct model_fast *f = j->f;
    uint32_t n_heads = f->m->n_kv_heads, text = j->first_text + part / n_heads;
    const uint32_t *offsets = j->batch->offsets;
    fast_attention(f, &f->scratch[thread], &f->layers[j->layer], offsets[text] - j->first_token,
                   offsets[text + 1] - offsets[text], part % n_heads);
}

/* What a branch gave, in s->narrow, joins the stream: h = N_stream(h + N_out(narrow)). Where
 * the norm behind it, of the next branch, can take the sum along, that is left to it: then
 * true. */
static bool join(const struct model_fast *f, struct fast_scratch *s, float *h, uint32_t n_rows,
                 const struct fast_norm *out, const struct fast_norm *stream, bool norm_follows)
{
    uint32_t n_embd = f->m->n_embd;
    for (uint32_t r = 0; out->weight && r < n_rows; r++) {
        float *x = s->narrow + (size_t)r * f->embd_padded;
        f->norm(x, x, NULL, out->weight, out->bias, n_embd, f->m->norm_eps);
    }
    if (stream->weight) {
        norm_rows(f, stream, h, h, s->narrow, f->embd_padded, n_rows);
        return false;
    }
    for (uint32_t r = 0; !norm_follows && r < n_rows; r++)
        f->kernels->row->add(h + (size_t)r * n_embd, s->narrow + (size_t)r * f->embd_padded,
                             n_embd);
    return norm_follows;
}

/* From what the heads of a block said to the stream after attention. */
static bool attention_branch(const struct job *j, struct fast_scratch *s, uint32_t first,
                             uint32_t n_rows)
{
    struct model_fast *f = j->f;
    const struct fast_layer *layer = &f->layers[j->layer];
    uint32_t n_embd = f->m->n_embd;
    float *h = f->hidden + (size_t)first * n_embd;
    if (layer->attn_again.weight)
        memcpy(s->before, h, (size_t)n_rows * n_embd * sizeof *h);
    fast_product(f, s, &layer->o, f->context + (size_t)first * f->q_width, f->q_width, first,
                 n_rows, s->narrow, f->embd_padded);
    bool left = join(f, s, h, n_rows, &layer->attn_out, &layer->attn_stream,
                     layer->ffn_in.weight != NULL);
    if (layer->attn_again.weight)
        norm_rows(f, &layer->attn_again, h, h, s->before, n_embd, n_rows);
    return left;
}

static void job_rows(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    struct model_fast *f = j->f;
    struct fast_scratch *s = &f->scratch[thread];
    const struct fast_layer *layer = &f->layers[j->layer];
    uint32_t n_embd = f->m->n_embd, n_ff = f->m->n_ff, n_rows,
             first = block_start(j, part, &n_rows);
    float *h = f->hidden + (size_t)first * n_embd, *x = h;
    bool gated = layer->up.n_out > n_ff;

    bool left = attention_branch(j, s, first, n_rows);
    if (layer->ffn_in.weight) {
        norm_rows(f, &layer->ffn_in, s->normed, h, left ? s->narrow : NULL, f->embd_padded,
                  n_rows);
        x = s->normed;
    }
    fast_product(f, s, &layer->up, x, n_embd, first, n_rows, s->wide, f->up_padded);
    for (uint32_t r = 0; r < n_rows; r++) {
        float *wide = s->wide + (size_t)r * f->up_padded;
        f->activate(wide, gated ? wide + n_ff : NULL, n_ff);
    }
    fast_product(f, s, &layer->down, s->wide, f->up_padded, first, n_rows, s->narrow,
                 f->embd_padded);
    join(f, s, h, n_rows, &layer->ffn_out, &layer->ffn_stream, false);
    if (j->layer + 1 < f->m->n_layers)
        project_qkv(j, s, j->layer + 1, first, n_rows);
    else if (f->output_norm.weight)
        norm_rows(f, &f->output_norm, h, h, NULL, 0, n_rows);
}

/* --- from tokens to a vector --- */

/* To length 1, but for a score; a vector of zeros stays. */
static void finish_vector(const struct model *m, float *out, uint32_t n)
{
    double squares = 0;
    for (uint32_t i = 0; i < n; i++)
        squares += (double)out[i] * (double)out[i];
    for (uint32_t i = 0; m->normalize && squares > 0 && i < n; i++)
        out[i] = (float)((double)out[i] / sqrt(squares));
}

static void job_pool(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    const struct model_fast *f = j->f;
    const struct model *m = f->m;
    uint32_t text = j->first_text + part, n = 1;
    uint32_t first = j->batch->offsets[text] - j->first_token,
             length = j->batch->offsets[text + 1] - j->batch->offsets[text];
    if (m->pooling == POOLING_MEAN)
        n = length;
    else if (m->pooling == POOLING_LAST || (m->pooling == POOLING_RANK && m->causal))
        first += length - 1;
    float *out =
        m->n_dense ? f->pooled + (size_t)part * m->n_embd : j->out + (size_t)text * m->n_embd;
    (void)thread;
    memset(out, 0, m->n_embd * sizeof *out);
    for (uint32_t r = 0; r < n; r++)
        f->kernels->row->add(out, f->hidden + (size_t)(first + r) * m->n_embd, m->n_embd);
    for (uint32_t i = 0; i < m->n_embd; i++)
        out[i] /= (float)n;
    if (!m->n_dense)
        finish_vector(m, out, m->n_embd);
}

/* The dense layers of up to BLOCK_ROWS texts. */
static void job_dense(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    struct model_fast *f = j->f;
    const struct model *m = f->m;
    struct fast_scratch *s = &f->scratch[thread];
    uint32_t first = part * BLOCK_ROWS, left = j->n_texts - first,
             n = left < BLOCK_ROWS ? left : BLOCK_ROWS, dim = model_dim(m);
    float *x = f->pooled + (size_t)first * m->n_embd, *y = s->wide;
    size_t stride = m->n_embd;
    for (uint32_t i = 0; i < m->n_dense; i++) {
        fast_product(f, s, &f->dense[i], x, stride, 0, n, y, f->dense_padded);
        for (size_t k = 0; m->dense[i].tanh && k < (size_t)n * f->dense_padded; k++)
            y[k] = tanhf(y[k]);
        x = y;
        y = y == s->wide ? s->narrow : s->wide;
        stride = f->dense_padded;
    }
    for (uint32_t t = 0; t < n; t++) {
        const float *row = x + t * stride;
        float *out = j->out + (size_t)(j->first_text + first + t) * dim;
        memcpy(out, row, dim * sizeof *out);
        if (m->pooling == POOLING_RANK && f->dense[m->n_dense - 1].n_out == 2)
            out[0] = row[0] - row[1];
        finish_vector(m, out, dim);
    }
}

/* Blocks as equal as can be of units, which are whole tiles of the product, or rows where that
 * would be too coarse; a multiple of the threads where there is work enough for it. A tile's
 * rows divide BLOCK_ROWS, so no block has more. */
static void cut_blocks(struct job *j, unsigned n_threads)
{
    const struct product_kernels *product = j->f->kernels->product;
    uint32_t tile = j->f->precision == MODEL_INT8 ? product->int8_rows : product->f32_rows;
    j->n_blocks = (j->n_tokens + BLOCK_ROWS - 1) / BLOCK_ROWS;
    j->n_blocks = (j->n_blocks + n_threads - 1) / n_threads * n_threads;
    j->unit_rows = j->n_tokens / j->n_blocks < BLOCK_ROWS / 2 ? 1 : tile;
    j->n_units = (j->n_tokens + j->unit_rows - 1) / j->unit_rows;
    if (j->n_blocks > j->n_units)
        j->n_blocks = j->n_units;
}

static bool needs_two_planes(const struct model_fast *f, const int32_t *ids, uint32_t n)
{
    if (f->m->n_embd < TWO_PLANES_FEATURES)
        return true;
    if (!f->kernels->product->block_ranges)
        return n < TWO_PLANES_TOKENS;
    int32_t different[TWO_PLANES_DIFFERENT];
    uint32_t n_different = 0;
    for (uint32_t i = 0; i < n && n_different < TWO_PLANES_DIFFERENT; i++) {
        uint32_t at = 0;
        while (at < n_different && different[at] != ids[i])
            at++;
        different[at] = ids[i];
        n_different += at == n_different;
    }
    return n_different < TWO_PLANES_DIFFERENT;
}

static void run_group(struct pool *pool, struct job *j)
{
    struct model_fast *f = j->f;
    for (uint32_t t = j->first_text; t < j->first_text + j->n_texts; t++) {
        uint32_t from = j->batch->offsets[t], n = j->batch->offsets[t + 1] - from;
        memset(f->two_planes + (from - j->first_token),
               needs_two_planes(f, j->batch->ids + from, n), n);
    }
    cut_blocks(j, pool_threads(pool));
    pool_run(pool, j->n_blocks, job_embed, j);
    for (j->layer = 0; j->layer < f->m->n_layers; j->layer++) {
        pool_run(pool, j->n_texts * f->m->n_kv_heads, job_attention, j);
        pool_run(pool, j->n_blocks, job_rows, j);
    }
    pool_run(pool, j->n_texts, job_pool, j);
    if (f->m->n_dense)
        pool_run(pool, (j->n_texts + BLOCK_ROWS - 1) / BLOCK_ROWS, job_dense, j);
}

/* --- the public functions --- */

static int check_batch(const struct model_fast *f, const struct model_batch *batch,
                       struct err *e)
{
    const struct model *m = f->m;
    if (batch->n_texts == 0 || batch->n_tokens > MAX_TOKENS || batch->offsets[0] != 0 ||
        batch->offsets[batch->n_texts] != batch->n_tokens)
        return err_set(e, KITH_EINVAL, "a batch of %u texts and %u tokens cannot be run",
                       batch->n_texts, batch->n_tokens);
    for (uint32_t t = 0; t < batch->n_texts; t++) {
        uint32_t from = batch->offsets[t], to = batch->offsets[t + 1];
        if (to <= from || to - from > m->n_ctx)
            return err_set(e, KITH_EINVAL, "text %u must have 1 to %u tokens", t, m->n_ctx);
    }
    for (uint32_t i = 0; i < batch->n_tokens; i++)
        if (batch->ids[i] < 0 || (uint32_t)batch->ids[i] >= m->n_vocab)
            return err_set(e, KITH_EINVAL, "token id %d is not in the vocabulary of %u",
                           (int)batch->ids[i], m->n_vocab);
    return 0;
}

static uint32_t longest_text(const struct model_batch *batch)
{
    uint32_t longest = 0;
    for (uint32_t t = 0; t < batch->n_texts; t++)
        longest = larger(longest, batch->offsets[t + 1] - batch->offsets[t]);
    return longest;
}

int model_fast_forward(struct model_fast *f, struct pool *pool, const struct model_batch *batch,
                       float *out, struct err *e)
{
    unsigned n_threads = pool_threads(pool);
    uint32_t group = GROUP_TOKENS_PER_THREAD * n_threads;
    int rc = check_batch(f, batch, e);
    if (rc != 0)
        return rc;
    uint32_t longest = longest_text(batch);
    group = larger(group, longest);
    if ((rc = scratch_grow(f, n_threads, e)) != 0 ||
        (rc = fast_grow_rotary(f, longest, e)) != 0 ||
        (rc = group_grow(f, batch->n_tokens < group ? batch->n_tokens : group, e)) != 0)
        return rc;
    struct job j = {.f = f, .batch = batch, .out = out};
    for (uint32_t text = 0; text < batch->n_texts; text += j.n_texts) {
        j.first_text = text;
        j.first_token = batch->offsets[text];
        for (j.n_texts = 1; text + j.n_texts < batch->n_texts; j.n_texts++)
            if (batch->offsets[text + j.n_texts + 1] - j.first_token > group)
                break;
        j.n_tokens = batch->offsets[text + j.n_texts] - j.first_token;
        run_group(pool, &j);
    }
    return 0;
}

uint32_t model_fast_max_tokens(const struct model_fast *f)
{
    (void)f;
    return MAX_TOKENS;
}

void model_fast_free(struct model_fast *f)
{
    if (!f)
        return;
    for (uint32_t l = 0; f->layers && l < f->m->n_layers; l++) {
        struct fast_layer *layer = &f->layers[l];
        fast_matrix_deinit(&layer->qkv);
        fast_matrix_deinit(&layer->o);
        fast_matrix_deinit(&layer->up);
        fast_matrix_deinit(&layer->down);
    }
    for (int i = 0; i < DENSE_MAX; i++)
        fast_matrix_deinit(&f->dense[i]);
    for (int i = 0; i < ROTARY_BASES; i++)
        mem_free(f->rotary[i]);
    mem_free(f->layers);
    mem_free(f->positions);
    mem_free(f->types);
    file_map_close(&f->packed);
    scratch_free(f);
    group_free(f);
    mem_free(f);
}
