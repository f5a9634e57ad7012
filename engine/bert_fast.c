/* The fast forward pass.
 *
 * Everything but attention is local to a token. So a layer is two jobs of the pool, and a
 * forward pass of L layers has 2 L + 2 with embedding and pooling:
 *
 *   rows      embeddings, LN                                    ┐
 *             quantize, qkv                                     ┘ first job
 *   heads     attention of one (text, head) a part              ┐
 *   rows      quantize, o, +h, LN, quantize, up, GELU,          │ once a layer
 *             quantize, down, +h, LN, quantize, qkv of the next ┘
 *
 * A part of a `rows` job is a block of up to BLOCK_ROWS tokens, which takes all those steps
 * with its activations in the second-level cache (48 x 1536 floats are 288 KiB) while the
 * weights stream past once a block. Texts lie one after another without padding. A large batch
 * goes in groups of whole texts of about 512 tokens a thread, so that activations between jobs
 * stay in the shared cache and memory does not grow with the batch.
 *
 * Rejected: handing out whole texts, each through all layers without a barrier. Threads would
 * idle unless there are many texts of similar length, and one long text would run on one
 * thread.
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
 * A few inputs of a product are ten times larger than the rest, always the same ones (input 99
 * of the residual stream, one or two neurons in each layer). They would set the scale of the
 * whole row. They are found at load by running a fixed sample of token ids (bert_fast_new.c),
 * and enter the product as floats; all that a poor choice can cost is precision. Short texts
 * have few tokens to average the rounding over, so they get a second plane: what the first
 * codes left out is quantized again and multiplied as one more row. That depends on the text's
 * length alone, so a text has the same vector in whatever batch it comes. */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "engine/bert_fast_internal.h"
#include "engine/pool.h"

enum { ALIGNMENT = 64, MAX_TOKENS = 1 << 20 };

/* --- memory --- */

static void scratch_free(struct bert_fast *f)
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

static size_t scratch_layout(const struct bert_fast *f, struct fast_scratch *s, float *base)
{
    size_t used = 0;
    uint32_t widest = f->ff_padded > f->qkv_stride ? f->ff_padded : f->qkv_stride;
    uint32_t panel = f->kernels->product->panel;
    s->wide = take(base, &used, (size_t)BLOCK_ROWS * f->ff_padded);
    s->narrow = take(base, &used, (size_t)BLOCK_ROWS * f->embd_padded);
    s->second = take(base, &used, f->precision == BERT_INT8 ? (size_t)BLOCK_ROWS * widest : 0);
    s->residue = take(base, &used, widest);
    s->keys = take(base, &used, (size_t)f->head_size * (f->ctx_padded + panel));
    s->values = take(base, &used, (size_t)f->head_padded * f->ctx_padded);
    s->scores = take(base, &used, (size_t)ATTENTION_ROWS * f->ctx_padded);
    s->mixed = take(base, &used, (size_t)ATTENTION_ROWS * f->head_padded);
    uint32_t coded = panel > ATTENTION_ROWS ? panel : ATTENTION_ROWS;
    s->codes16 = take(base, &used, (size_t)coded * f->head_padded / 2);
    s->rows.scales = take(base, &used, 2 * BLOCK_ROWS);
    s->rows.side = take(base, &used, (size_t)2 * BLOCK_ROWS * N_SIDE);
    s->twice = take(base, &used, BLOCK_ROWS);
    return used;
}

static int scratch_grow(struct bert_fast *f, unsigned n_threads, struct err *e)
{
    if (n_threads <= f->n_scratch)
        return 0;
    scratch_free(f);
    f->scratch = mem_calloc(n_threads, sizeof *f->scratch);
    if (!f->scratch)
        goto nomem;
    uint32_t widest_in = f->b->n_ff > f->b->n_embd ? f->b->n_ff : f->b->n_embd;
    for (; f->n_scratch < n_threads; f->n_scratch++) {
        struct fast_scratch *s = &f->scratch[f->n_scratch];
        s->rows.stride = widest_in + ALIGNMENT; /* rows must not fall on the same cache sets */
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

static void group_free(struct bert_fast *f)
{
    mem_free(f->hidden);
    mem_free(f->qkv);
    mem_free(f->context);
    mem_free(f->short_text);
    f->hidden = f->qkv = f->context = NULL;
    f->short_text = NULL;
    f->group_capacity = 0;
}

static int group_grow(struct bert_fast *f, uint32_t n_tokens, struct err *e)
{
    if (n_tokens <= f->group_capacity)
        return 0;
    group_free(f);
    size_t row = (size_t)n_tokens * sizeof(float);
    f->hidden = mem_alloc_aligned(ALIGNMENT, row * f->b->n_embd);
    f->qkv = mem_alloc_aligned(ALIGNMENT, row * f->qkv_stride);
    f->context = mem_alloc_aligned(ALIGNMENT, row * f->b->n_embd);
    f->short_text = mem_alloc_n(n_tokens, sizeof *f->short_text);
    if (!f->hidden || !f->qkv || !f->context || !f->short_text) {
        group_free(f);
        return err_set(e, KITH_ENOMEM, "out of memory for the activations of %u tokens",
                       n_tokens);
    }
    f->group_capacity = n_tokens;
    return 0;
}

/* --- the jobs of a group --- */

struct job {
    struct bert_fast *f;
    const struct bert_batch *batch;
    uint32_t first_text, n_texts, first_token, n_tokens;
    uint32_t block_rows, layer;
    float *out;
};

static uint32_t block_start(const struct job *j, uint32_t part, uint32_t *n_rows)
{
    uint32_t first = part * j->block_rows, left = j->n_tokens - first;
    *n_rows = left < j->block_rows ? left : j->block_rows;
    return first;
}

static void project_qkv(const struct job *j, struct fast_scratch *s, uint32_t layer,
                        uint32_t first, uint32_t n_rows)
{
    struct bert_fast *f = j->f;
    uint32_t n_embd = f->b->n_embd;
    fast_product(f, s, &f->layers[layer].qkv, f->hidden + (size_t)first * n_embd, n_embd, first,
                 n_rows, f->qkv + (size_t)first * f->qkv_stride, f->qkv_stride);
}

static void job_embed(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    struct bert_fast *f = j->f;
    const struct bert *b = f->b;
    uint32_t n_rows, first = block_start(j, part, &n_rows), text = j->first_text;
    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t token = j->first_token + first + r;
        while (token >= j->batch->offsets[text + 1])
            text++;
        float *h = f->hidden + (size_t)(first + r) * b->n_embd;
        uint32_t position = token - j->batch->offsets[text];
        tensor_row_f32(b->token_embd, (uint64_t)j->batch->ids[token], h);
        f->kernels->row->norm(h, f->positions + (size_t)position * b->n_embd, f->embd_norm,
                              f->embd_norm + b->n_embd, b->n_embd, b->norm_eps);
    }
    project_qkv(j, &f->scratch[thread], 0, first, n_rows);
}

static void job_attention(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    struct bert_fast *f = j->f;
    uint32_t text = j->first_text + part / f->b->n_heads;
    const uint32_t *offsets = j->batch->offsets;
    fast_attention(f, &f->scratch[thread], offsets[text] - j->first_token,
                   offsets[text + 1] - offsets[text], part % f->b->n_heads);
}

/* h = LN(h + W x) for a block whose W x lies in s->narrow. */
static void add_and_norm(struct bert_fast *f, const struct fast_scratch *s, const float *norms,
                         uint32_t first, uint32_t n_rows)
{
    uint32_t n_embd = f->b->n_embd;
    for (uint32_t r = 0; r < n_rows; r++)
        f->kernels->row->norm(f->hidden + (size_t)(first + r) * n_embd,
                              s->narrow + (size_t)r * f->embd_padded, norms, norms + n_embd,
                              n_embd, f->b->norm_eps);
}

static void job_rows(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    struct bert_fast *f = j->f;
    struct fast_scratch *s = &f->scratch[thread];
    const struct fast_layer *layer = &f->layers[j->layer];
    uint32_t n_embd = f->b->n_embd, n_rows, first = block_start(j, part, &n_rows);
    float *h = f->hidden + (size_t)first * n_embd;

    fast_product(f, s, &layer->o, f->context + (size_t)first * n_embd, n_embd, first, n_rows,
                 s->narrow, f->embd_padded);
    add_and_norm(f, s, layer->norms + (size_t)NORM_ATTN_W * n_embd, first, n_rows);
    fast_product(f, s, &layer->up, h, n_embd, first, n_rows, s->wide, f->ff_padded);
    for (uint32_t r = 0; r < n_rows; r++)
        f->kernels->row->gelu(s->wide + (size_t)r * f->ff_padded, f->b->n_ff);
    fast_product(f, s, &layer->down, s->wide, f->ff_padded, first, n_rows, s->narrow,
                 f->embd_padded);
    add_and_norm(f, s, layer->norms + (size_t)NORM_OUT_W * n_embd, first, n_rows);
    if (j->layer + 1 < f->b->n_layers)
        project_qkv(j, s, j->layer + 1, first, n_rows);
}

static void job_pool(void *arg, uint32_t part, unsigned thread)
{
    const struct job *j = arg;
    const struct bert *b = j->f->b;
    uint32_t text = j->first_text + part;
    uint32_t first = j->batch->offsets[text] - j->first_token;
    uint32_t n =
        b->pooling == POOLING_CLS ? 1 : j->batch->offsets[text + 1] - j->batch->offsets[text];
    float *out = j->out + (size_t)text * b->n_embd;
    (void)thread;
    memset(out, 0, b->n_embd * sizeof *out);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t i = 0; i < b->n_embd; i++)
            out[i] += j->f->hidden[(size_t)(first + r) * b->n_embd + i];
    double squares = 0;
    for (uint32_t i = 0; i < b->n_embd; i++) {
        out[i] /= (float)n;
        squares += (double)out[i] * (double)out[i];
    }
    if (b->normalize && squares > 0)
        for (uint32_t i = 0; i < b->n_embd; i++)
            out[i] = (float)((double)out[i] / sqrt(squares));
}

/* Equal blocks, a multiple of the threads where there is work enough for it. */
static uint32_t block_rows(uint32_t n_tokens, unsigned n_threads)
{
    uint32_t blocks = (n_tokens + BLOCK_ROWS - 1) / BLOCK_ROWS;
    blocks = (blocks + n_threads - 1) / n_threads * n_threads;
    uint32_t rows = (n_tokens + blocks - 1) / blocks;
    return rows < 24 ? rows : (rows + 5) / 6 * 6; /* whole tiles of six rows */
}

static void run_group(struct pool *pool, struct job *j)
{
    struct bert_fast *f = j->f;
    for (uint32_t t = j->first_text; t < j->first_text + j->n_texts; t++) {
        uint32_t n = j->batch->offsets[t + 1] - j->batch->offsets[t];
        memset(f->short_text + (j->batch->offsets[t] - j->first_token), n < TWO_PLANES_BELOW,
               n);
    }
    j->block_rows = block_rows(j->n_tokens, pool_threads(pool));
    uint32_t n_blocks = (j->n_tokens + j->block_rows - 1) / j->block_rows;
    pool_run(pool, n_blocks, job_embed, j);
    for (j->layer = 0; j->layer < f->b->n_layers; j->layer++) {
        pool_run(pool, j->n_texts * f->b->n_heads, job_attention, j);
        pool_run(pool, n_blocks, job_rows, j);
    }
    pool_run(pool, j->n_texts, job_pool, j);
}

/* --- the public functions --- */

static int check_batch(const struct bert_fast *f, const struct bert_batch *batch, struct err *e)
{
    const struct bert *b = f->b;
    if (batch->n_texts == 0 || batch->n_tokens > MAX_TOKENS || batch->offsets[0] != 0 ||
        batch->offsets[batch->n_texts] != batch->n_tokens)
        return err_set(e, KITH_EINVAL, "a batch of %u texts and %u tokens cannot be run",
                       batch->n_texts, batch->n_tokens);
    for (uint32_t t = 0; t < batch->n_texts; t++) {
        uint32_t from = batch->offsets[t], to = batch->offsets[t + 1];
        if (to <= from || to - from > b->n_ctx)
            return err_set(e, KITH_EINVAL, "text %u must have 1 to %u tokens", t, b->n_ctx);
    }
    for (uint32_t i = 0; i < batch->n_tokens; i++)
        if (batch->ids[i] < 0 || (uint32_t)batch->ids[i] >= b->n_vocab)
            return err_set(e, KITH_EINVAL, "token id %d is not in the vocabulary of %u",
                           (int)batch->ids[i], b->n_vocab);
    return 0;
}

int bert_fast_forward(struct bert_fast *f, struct pool *pool, const struct bert_batch *batch,
                      float *out, struct err *e)
{
    unsigned n_threads = pool_threads(pool);
    uint32_t group = GROUP_TOKENS_PER_THREAD * n_threads;
    int rc = check_batch(f, batch, e);
    if (rc != 0)
        return rc;
    if (group < f->b->n_ctx)
        group = f->b->n_ctx;
    if ((rc = scratch_grow(f, n_threads, e)) != 0 ||
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

uint32_t bert_fast_max_tokens(const struct bert_fast *f)
{
    (void)f;
    return MAX_TOKENS;
}

void bert_fast_free(struct bert_fast *f)
{
    if (!f)
        return;
    for (uint32_t l = 0; f->layers && l < f->b->n_layers; l++) {
        struct fast_layer *layer = &f->layers[l];
        fast_matrix_deinit(&layer->qkv);
        fast_matrix_deinit(&layer->o);
        fast_matrix_deinit(&layer->up);
        fast_matrix_deinit(&layer->down);
        mem_free(layer->norms);
    }
    mem_free(f->layers);
    mem_free(f->positions);
    mem_free(f->embd_norm);
    scratch_free(f);
    group_free(f);
    mem_free(f);
}
