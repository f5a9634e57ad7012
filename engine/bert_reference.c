/* The plain forward pass: the formulas of bert.h in the order they are written there, in float,
 * with no kernel, no quantised activation and no approximation of erf or exp. It is the oracle
 * of the fast pass and shares no code with it.
 *
 * Activations are kept feature by feature, x[feature][token], so that the innermost loop of a
 * product runs over tokens: each output is still one plain sum from the first feature to the
 * last, and the compiler may do several tokens at once without changing a single rounding. */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "engine/bert.h"

enum { ROWS = 4, TILE = 8 }; /* outputs and tokens whose sums are kept at hand */

struct scratch {
    float *h, *q, *k, *v, *a, *up; /* feature-major: n_embd (up: n_ff) x n tokens */
    float *weights;                /* one matrix as floats, and ROWS - 1 rows of zeros */
    float *tile;                   /* TILE tokens of a product's input, zeros past the last */
    float *scores;                 /* n tokens */
    float *values;                 /* one head's v, token by token */
    float *row;                    /* n_embd: one row of a table, or of one head's result */
    void *block;
};

/* Gives the next n floats of a block, at a multiple of 64 bytes. */
static float *carve(float **at, size_t n)
{
    float *p = *at;
    *at += (n + 15) & ~(size_t)15;
    return p;
}

static int scratch_init(struct scratch *s, const struct bert *b, uint32_t n, struct err *e)
{
    /* bert_bind keeps every dimension small enough for these sums and products. */
    size_t wide = b->n_ff > b->n_embd ? b->n_ff : b->n_embd, d = (size_t)b->n_embd * n;
    size_t weights = wide * b->n_embd + (ROWS - 1) * wide;
    size_t floats = 5 * d + (size_t)b->n_ff * n + weights + wide * TILE + n + d + b->n_embd +
                    11 * (size_t)16;
    float *p = mem_alloc_aligned(64, floats * sizeof(float));
    if (!p)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", n);
    s->block = p;
    float **arrays[] = {&s->h, &s->q, &s->k, &s->v, &s->a};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] = carve(&p, d);
    s->up = carve(&p, (size_t)b->n_ff * n);
    s->weights = carve(&p, weights);
    s->tile = carve(&p, wide * TILE);
    s->scores = carve(&p, n);
    s->values = carve(&p, (size_t)n * (b->n_embd / b->n_heads));
    s->row = carve(&p, b->n_embd);
    memset(s->weights, 0, weights * sizeof(float));
    return 0;
}

/* Four tokens; the compiler maps it to what every machine has. */
typedef float four __attribute__((vector_size(16)));

/* sums[r][t] = sum over i of rows[r][i] x[i][t] */
static void tile_sums(const float *rows, size_t n_in, const four (*x)[2],
                      float sums[ROWS][TILE])
{
    four s00 = {0}, s01 = {0}, s10 = {0}, s11 = {0}, s20 = {0}, s21 = {0}, s30 = {0}, s31 = {0};
    for (size_t i = 0; i < n_in; i++) {
        float w0 = rows[i], w1 = rows[n_in + i], w2 = rows[2 * n_in + i],
              w3 = rows[3 * n_in + i];
        s00 += w0 * x[i][0], s01 += w0 * x[i][1];
        s10 += w1 * x[i][0], s11 += w1 * x[i][1];
        s20 += w2 * x[i][0], s21 += w2 * x[i][1];
        s30 += w3 * x[i][0], s31 += w3 * x[i][1];
    }
    const four all[ROWS][2] = {{s00, s01}, {s10, s11}, {s20, s21}, {s30, s31}};
    memcpy(sums, all, sizeof all);
}

/* out[row][token] = bias[row] + sum over i of w[row][i] in[i][token] */
static void linear(const struct tensor *w, const struct tensor *bias, const float *in,
                   uint32_t n, float *out, struct scratch *s)
{
    const float *bias_of = bias->data;
    size_t n_in = (size_t)w->ne[0], n_out = (size_t)w->ne[1];
    for (size_t r = 0; r < n_out; r++)
        tensor_row_f32(w, r, s->weights + r * n_in);
    for (size_t t0 = 0; t0 < n; t0 += TILE) {
        size_t width = n - t0 < TILE ? n - t0 : TILE;
        memset(s->tile, 0, n_in * TILE * sizeof(float));
        for (size_t i = 0; i < n_in; i++)
            memcpy(s->tile + i * TILE, in + i * n + t0, width * sizeof(float));
        for (size_t r0 = 0; r0 < n_out; r0 += ROWS) {
            float sums[ROWS][TILE];
            tile_sums(s->weights + r0 * n_in, n_in, (const four(*)[2])s->tile, sums);
            for (size_t r = r0; r < r0 + ROWS && r < n_out; r++)
                for (size_t t = 0; t < width; t++)
                    out[r * n + t0 + t] = sums[r - r0][t] + bias_of[r];
        }
    }
}

/* Layer normalisation of every token over its features. */
static void layer_norm(float *x, uint32_t n_features, uint32_t n, const struct tensor *w,
                       const struct tensor *bias, float eps)
{
    const float *scale = w->data, *shift = bias->data;
    for (uint32_t t = 0; t < n; t++) {
        float mean = 0, variance = 0;
        for (size_t i = 0; i < n_features; i++)
            mean += x[i * n + t];
        mean /= (float)n_features;
        for (size_t i = 0; i < n_features; i++) {
            float d = x[i * n + t] - mean;
            variance += d * d;
        }
        variance /= (float)n_features;
        float inverse = 1.0f / sqrtf(variance + eps);
        for (size_t i = 0; i < n_features; i++)
            x[i * n + t] = (x[i * n + t] - mean) * inverse * scale[i] + shift[i];
    }
}

static void softmax(float *x, uint32_t n)
{
    float max = x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    for (uint32_t i = 0; i < n; i++)
        x[i] /= sum;
}

/* a = softmax(q k / sqrt(d)) v, head by head, every token seeing every token. */
static void attention(const struct bert *b, struct scratch *s, uint32_t n)
{
    size_t width = b->n_embd / b->n_heads;
    float scale = 1.0f / sqrtf((float)width);
    for (size_t head = 0; head < b->n_heads; head++) {
        const float *q = s->q + head * width * n, *k = s->k + head * width * n;
        const float *v = s->v + head * width * n;
        float *a = s->a + head * width * n;
        for (size_t u = 0; u < n; u++)
            for (size_t i = 0; i < width; i++)
                s->values[u * width + i] = v[i * n + u];
        for (size_t t = 0; t < n; t++) {
            memset(s->scores, 0, n * sizeof(float));
            for (size_t i = 0; i < width; i++)
                for (size_t u = 0; u < n; u++)
                    s->scores[u] += q[i * n + t] * k[i * n + u];
            for (size_t u = 0; u < n; u++)
                s->scores[u] *= scale;
            softmax(s->scores, n);
            memset(s->row, 0, width * sizeof(float));
            for (size_t u = 0; u < n; u++)
                for (size_t i = 0; i < width; i++)
                    s->row[i] += s->scores[u] * s->values[u * width + i];
            for (size_t i = 0; i < width; i++)
                a[i * n + t] = s->row[i];
        }
    }
}

static void add_rows(const struct tensor *t, uint64_t row, float *x, uint32_t n_features,
                     uint32_t n, uint32_t token, float *scratch)
{
    tensor_row_f32(t, row, scratch);
    for (size_t i = 0; i < n_features; i++)
        x[i * n + token] += scratch[i];
}

static void embed(const struct bert *b, const int32_t *ids, uint32_t n, struct scratch *s)
{
    memset(s->h, 0, (size_t)b->n_embd * n * sizeof(float));
    for (uint32_t t = 0; t < n; t++) {
        add_rows(b->token_embd, (uint64_t)ids[t], s->h, b->n_embd, n, t, s->row);
        if (b->type_embd)
            add_rows(b->type_embd, 0, s->h, b->n_embd, n, t, s->row);
        add_rows(b->position_embd, t, s->h, b->n_embd, n, t, s->row);
    }
    layer_norm(s->h, b->n_embd, n, b->embd_norm_w, b->embd_norm_b, b->norm_eps);
}

static void layer(const struct bert *b, const struct bert_layer *l, uint32_t n,
                  struct scratch *s)
{
    size_t values = (size_t)b->n_embd * n;
    linear(l->q_w, l->q_b, s->h, n, s->q, s);
    linear(l->k_w, l->k_b, s->h, n, s->k, s);
    linear(l->v_w, l->v_b, s->h, n, s->v, s);
    attention(b, s, n);
    linear(l->o_w, l->o_b, s->a, n, s->q, s);
    for (size_t i = 0; i < values; i++)
        s->h[i] += s->q[i];
    layer_norm(s->h, b->n_embd, n, l->attn_norm_w, l->attn_norm_b, b->norm_eps);

    linear(l->up_w, l->up_b, s->h, n, s->up, s);
    for (size_t i = 0; i < (size_t)b->n_ff * n; i++)
        s->up[i] = 0.5f * s->up[i] * (1.0f + erff(s->up[i] * 0.70710678f));
    linear(l->down_w, l->down_b, s->up, n, s->q, s);
    for (size_t i = 0; i < values; i++)
        s->h[i] += s->q[i];
    layer_norm(s->h, b->n_embd, n, l->out_norm_w, l->out_norm_b, b->norm_eps);
}

static void pool_tokens(const struct bert *b, const float *h, uint32_t n, float *out)
{
    float square = 0;
    for (size_t i = 0; i < b->n_embd; i++) {
        float sum = h[i * n];
        for (size_t t = 1; b->pooling == POOLING_MEAN && t < n; t++)
            sum += h[i * n + t];
        out[i] = b->pooling == POOLING_MEAN ? sum / (float)n : sum;
        square += out[i] * out[i];
    }
    float norm = sqrtf(square);
    for (size_t i = 0; b->normalize && norm > 0 && i < b->n_embd; i++)
        out[i] /= norm;
}

int bert_reference_forward(const struct bert *b, const int32_t *ids, uint32_t n_tokens,
                           float *out, struct err *e)
{
    if (n_tokens < 1 || n_tokens > b->n_ctx)
        return err_set(e, KITH_EINVAL, "%u tokens; the model takes 1 to %u", n_tokens,
                       b->n_ctx);
    for (uint32_t t = 0; t < n_tokens; t++)
        if (ids[t] < 0 || (uint32_t)ids[t] >= b->n_vocab)
            return err_set(e, KITH_EINVAL, "token id %d at %u; the model has %u tokens", ids[t],
                           t, b->n_vocab);
    struct scratch s = {0};
    int rc = scratch_init(&s, b, n_tokens, e);
    if (rc)
        return rc;
    embed(b, ids, n_tokens, &s);
    for (uint32_t i = 0; i < b->n_layers; i++)
        layer(b, &b->layers[i], n_tokens, &s);
    pool_tokens(b, s.h, n_tokens, out);
    mem_free(s.block);
    return 0;
}
