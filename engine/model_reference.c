/* The plain forward pass: the formulas of model.h in the order they are written there, in
 * float, with no kernel, no quantised activation and no approximation of erf, exp or tanh. It
 * is the oracle of the fast pass and shares no code with it.
 *
 * Activations are kept feature by feature, x[feature][token], so that the innermost loop of a
 * product runs over tokens: each output is still one plain sum from the first feature to the
 * last, and the compiler may do several tokens at once without changing a single rounding. */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "engine/model.h"

enum { ROWS = 4, TILE = 8 }; /* outputs and tokens whose sums are kept at hand */

struct scratch {
    float *h, *x, *before; /* feature-major, n_embd x n tokens: the stream, a branch's input and
                            * output, the stream as the layer found it */
    float *q, *k, *v, *a;  /* the same, as wide as their heads together */
    float *up, *gate;      /* n_ff x n tokens */
    float *weights;        /* one matrix as floats, and ROWS - 1 rows of zeros */
    float *tile;           /* TILE tokens of a product's input, zeros past the last */
    float *scores;         /* n tokens */
    float *values;         /* one head's v, token by token */
    float *row;            /* two of the widest vectors, row_width apart */
    size_t row_width;
    void *block;
};

/* Gives the next n floats of a block, at a multiple of 64 bytes. */
static float *carve(float **at, size_t n)
{
    float *p = *at;
    *at += (n + 15) & ~(size_t)15;
    return p;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static int scratch_init(struct scratch *s, const struct model *m, uint32_t n, struct err *e)
{
    /* model_bind keeps every dimension small enough for these sums and products. */
    size_t d = m->n_embd, heads = (size_t)m->n_heads * m->head_size,
           kv = (size_t)m->n_kv_heads * m->head_size;
    size_t wide = larger(larger(m->n_ff, d), heads);
    for (uint32_t i = 0; i < m->n_dense; i++)
        wide = larger(wide, larger((size_t)m->dense[i].matrix.w->ne[0],
                                   (size_t)m->dense[i].matrix.n_rows));
    size_t weights = (wide + ROWS - 1) * wide;
    size_t floats = (3 * d + 2 * heads + 2 * kv + 2 * (size_t)m->n_ff) * n + weights +
                    wide * TILE + n + (size_t)n * m->head_size + 2 * wide + 16 * (size_t)16;
    float *p = mem_alloc_aligned(64, floats * sizeof(float));
    if (!p)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", n);
    s->block = p;
    s->h = carve(&p, d * n);
    s->x = carve(&p, d * n);
    s->before = carve(&p, d * n);
    s->q = carve(&p, heads * n);
    s->a = carve(&p, heads * n);
    s->k = carve(&p, kv * n);
    s->v = carve(&p, kv * n);
    s->up = carve(&p, (size_t)m->n_ff * n);
    s->gate = carve(&p, (size_t)m->n_ff * n);
    s->weights = carve(&p, weights);
    s->tile = carve(&p, wide * TILE);
    s->scores = carve(&p, n);
    s->values = carve(&p, (size_t)n * m->head_size);
    s->row = carve(&p, 2 * wide);
    s->row_width = wide;
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
static void linear(const struct model_matrix *m, const float *in, uint32_t n, float *out,
                   struct scratch *s)
{
    const float *bias = m->b ? (const float *)m->b->data + m->first_row : NULL;
    size_t n_in = (size_t)m->w->ne[0], n_out = (size_t)m->n_rows;
    for (size_t r = 0; r < n_out; r++)
        tensor_row_f32(m->w, m->first_row + r, s->weights + r * n_in);
    memset(s->weights + n_out * n_in, 0, (ROWS - 1) * n_in * sizeof(float));
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
                    out[r * n + t0 + t] = sums[r - r0][t] + (bias ? bias[r] : 0);
        }
    }
}

/* x normed over its features, token by token, to out, which may be x; without a norm, copied.
 */
static void normalize(const struct model *m, const struct model_norm *norm, const float *x,
                      uint32_t n_features, uint32_t n, float *out)
{
    if (!norm->w) {
        if (out != x)
            memcpy(out, x, (size_t)n_features * n * sizeof *x);
        return;
    }
    const float *scale = norm->w->data, *shift = norm->b ? norm->b->data : NULL;
    for (uint32_t t = 0; t < n; t++) {
        float mean = 0, variance = 0;
        for (size_t i = 0; i < n_features && m->norm == NORM_LAYER; i++)
            mean += x[i * n + t];
        mean /= (float)n_features;
        for (size_t i = 0; i < n_features; i++) {
            float d = x[i * n + t] - mean;
            variance += d * d;
        }
        variance /= (float)n_features;
        float inverse = 1.0f / sqrtf(variance + m->norm_eps);
        for (size_t i = 0; i < n_features; i++)
            out[i * n + t] =
                (x[i * n + t] - mean) * inverse * scale[i] + (shift ? shift[i] : 0);
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

/* --- attention --- */

static void norm_heads(const struct model *m, const struct model_norm *norm, uint32_t n_heads,
                       float *x, uint32_t n)
{
    uint32_t parts = m->whole_qk_norm ? 1 : n_heads, size = n_heads / parts * m->head_size;
    for (uint32_t p = 0; p < parts; p++)
        normalize(m, norm, x + (size_t)p * size * n, size, n, x + (size_t)p * size * n);
}

/* Turns the pairs (i, i + half) of each head by the angle of the token's place. */
static void rotate(const struct model *m, uint32_t table, uint32_t n_heads, float *x,
                   uint32_t n)
{
    const uint32_t half = m->n_rotary / 2;
    const double scale = table == 0 ? (double)m->rotary_scale : 1;
    for (uint32_t head = 0; head < n_heads; head++)
        for (uint32_t i = 0; i < half; i++) {
            float *a = x + ((size_t)head * m->head_size + i) * n, *b = a + (size_t)half * n;
            double step = scale * pow((double)m->rotary_base[table], -(double)i / half);
            for (uint32_t t = 0; t < n; t++) {
                float c = (float)cos(t * step), s = (float)sin(t * step), u = a[t], v = b[t];
                a[t] = u * c - v * s;
                b[t] = u * s + v * c;
            }
        }
}

static bool sees(const struct model *m, const struct model_layer *l, uint32_t t, uint32_t u)
{
    uint32_t distance = t > u ? t - u : u - t;
    return !(m->causal && u > t) && !(l->window && distance > l->window);
}

/* a = softmax(scale q k + bias) v, head by head, over the tokens that a token sees. */
static void attention(const struct model *m, const struct model_layer *l, struct scratch *s,
                      uint32_t n)
{
    size_t width = m->head_size, group = m->n_heads / m->n_kv_heads;
    for (size_t head = 0; head < m->n_heads; head++) {
        const float *q = s->q + head * width * n, *k = s->k + head / group * width * n;
        const float *v = s->v + head / group * width * n;
        float *a = s->a + head * width * n;
        float slope = m->position == POSITION_ALIBI ? model_alibi_slope(m, (uint32_t)head) : 0;
        for (size_t u = 0; u < n; u++)
            for (size_t i = 0; i < width; i++)
                s->values[u * width + i] = v[i * n + u];
        for (uint32_t t = 0; t < n; t++) {
            memset(s->scores, 0, n * sizeof(float));
            for (size_t i = 0; i < width; i++)
                for (size_t u = 0; u < n; u++)
                    s->scores[u] += q[i * n + t] * k[i * n + u];
            for (uint32_t u = 0; u < n; u++)
                s->scores[u] = sees(m, l, t, u) ? s->scores[u] * m->attention_scale -
                                                      slope * (float)(t > u ? t - u : u - t)
                                                : -INFINITY;
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

/* --- the pass --- */

static float activate(enum model_activation activation, float x)
{
    switch (activation) {
    case ACTIVATION_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case ACTIVATION_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    default:
        return x / (1.0f + expf(-x));
    }
}

static void add_row(const struct tensor *t, uint64_t row, float scale, float *x,
                    uint32_t n_features, uint32_t n, uint32_t token, float *scratch)
{
    tensor_row_f32(t, row, scratch);
    for (size_t i = 0; i < n_features; i++)
        x[i * n + token] += scale * scratch[i];
}

static void embed(const struct model *m, const int32_t *ids, uint32_t n, uint32_t split,
                  struct scratch *s)
{
    memset(s->h, 0, (size_t)m->n_embd * n * sizeof(float));
    for (uint32_t t = 0; t < n; t++) {
        add_row(m->token_embd, (uint64_t)ids[t], m->embd_scale, s->h, m->n_embd, n, t, s->row);
        if (m->type_embd)
            add_row(m->type_embd, t >= split && m->n_types > 1, 1, s->h, m->n_embd, n, t,
                    s->row);
        if (m->position_embd)
            add_row(m->position_embd, t, 1, s->h, m->n_embd, n, t, s->row);
    }
    normalize(m, &m->embd_norm, s->h, m->n_embd, n, s->h);
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void layer(const struct model *m, const struct model_layer *l, uint32_t n,
                  struct scratch *s)
{
    size_t values = (size_t)m->n_embd * n;
    memcpy(s->before, s->h, values * sizeof *s->h);
    normalize(m, &l->attn_in, s->h, m->n_embd, n, s->x);
    linear(&l->q, s->x, n, s->q, s);
    linear(&l->k, s->x, n, s->k, s);
    linear(&l->v, s->x, n, s->v, s);
    norm_heads(m, &l->q_norm, m->n_heads, s->q, n);
    norm_heads(m, &l->k_norm, m->n_kv_heads, s->k, n);
    if (m->position == POSITION_ROTARY) {
        rotate(m, l->rotary, m->n_heads, s->q, n);
        rotate(m, l->rotary, m->n_kv_heads, s->k, n);
    }
    attention(m, l, s, n);
    linear(&l->o, s->a, n, s->x, s);
    normalize(m, &l->attn_out, s->x, m->n_embd, n, s->x);
    add(s->h, s->x, values);
    normalize(m, &l->attn_stream, s->h, m->n_embd, n, s->h);
    if (l->attn_again.w) {
        add(s->h, s->before, values);
        normalize(m, &l->attn_again, s->h, m->n_embd, n, s->h);
    }

    normalize(m, &l->ffn_in, s->h, m->n_embd, n, s->x);
    linear(&l->up, s->x, n, s->up, s);
    if (l->gate.w)
        linear(&l->gate, s->x, n, s->gate, s);
    for (size_t i = 0; i < (size_t)m->n_ff * n; i++)
        s->up[i] = l->gate.w ? activate(m->activation, s->gate[i]) * s->up[i]
                             : activate(m->activation, s->up[i]);
    linear(&l->down, s->up, n, s->x, s);
    normalize(m, &l->ffn_out, s->x, m->n_embd, n, s->x);
    add(s->h, s->x, values);
    normalize(m, &l->ffn_stream, s->h, m->n_embd, n, s->h);
}

/* The pooled vector to s->row. */
static void pool_tokens(const struct model *m, uint32_t n, struct scratch *s)
{
    bool mean = m->pooling == POOLING_MEAN;
    bool last = m->pooling == POOLING_LAST || (m->pooling == POOLING_RANK && m->causal);
    for (size_t i = 0; i < m->n_embd; i++) {
        float sum = s->h[i * n + (last ? n - 1 : 0)];
        for (size_t t = 1; mean && t < n; t++)
            sum += s->h[i * n + t];
        s->row[i] = mean ? sum / (float)n : sum;
    }
}

static void finish(const struct model *m, struct scratch *s, float *out)
{
    float *x = s->row, *y = s->row + s->row_width;
    size_t width = m->n_embd;
    for (uint32_t i = 0; i < m->n_dense; i++) {
        const struct model_dense *dense = &m->dense[i];
        linear(&dense->matrix, x, 1, y, s);
        width = (size_t)dense->matrix.n_rows;
        for (size_t k = 0; k < width; k++)
            x[k] = dense->tanh ? tanhf(y[k]) : y[k];
    }
    if (m->pooling == POOLING_RANK) {
        out[0] = width == 2 ? x[0] - x[1] : x[0];
        return;
    }
    float square = 0;
    for (size_t i = 0; i < width; i++)
        square += x[i] * x[i];
    float norm = sqrtf(square);
    for (size_t i = 0; i < width; i++)
        out[i] = m->normalize && norm > 0 ? x[i] / norm : x[i];
}

int model_reference_forward(const struct model *m, const int32_t *ids, uint32_t n_tokens,
                            uint32_t split, float *out, struct err *e)
{
    if (n_tokens < 1 || n_tokens > m->n_ctx)
        return err_set(e, KITH_EINVAL, "%u tokens; the model takes 1 to %u", n_tokens,
                       m->n_ctx);
    for (uint32_t t = 0; t < n_tokens; t++)
        if (ids[t] < 0 || (uint32_t)ids[t] >= m->n_vocab)
            return err_set(e, KITH_EINVAL, "token id %d at %u; the model has %u tokens", ids[t],
                           t, m->n_vocab);
    struct scratch s = {0};
    int rc = scratch_init(&s, m, n_tokens, e);
    if (rc)
        return rc;
    embed(m, ids, n_tokens, split, &s);
    for (uint32_t i = 0; i < m->n_layers; i++)
        layer(m, &m->layers[i], n_tokens, &s);
    normalize(m, &m->output_norm, s.h, m->n_embd, n_tokens, s.h);
    pool_tokens(m, n_tokens, &s);
    finish(m, &s, out);
    mem_free(s.block);
    return 0;
}
