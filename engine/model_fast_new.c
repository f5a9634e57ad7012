/* Making a fast pass: shapes, packed weights, and the choice of outlier inputs. */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/random.h"
#include "engine/model_fast_internal.h"
#include "engine/pool.h"

enum { MATRICES_PER_LAYER = 4, SAMPLE_TOKENS_MAX = 256, SAMPLE_SEED = 12 };

/* The four products of each layer, then the dense layers: the order in which they are packed,
 * and that of the file of packed weights (packed_cache.h). */
uint32_t fast_n_matrices(const struct model *m)
{
    return m->n_layers * MATRICES_PER_LAYER + m->n_dense;
}

struct fast_source fast_source_at(const struct model *m, uint32_t i)
{
    if (i >= m->n_layers * MATRICES_PER_LAYER)
        return (struct fast_source){{&m->dense[i - m->n_layers * MATRICES_PER_LAYER].matrix},
                                    1};
    const struct model_layer *l = &m->layers[i / MATRICES_PER_LAYER];
    switch (i % MATRICES_PER_LAYER) {
    case 0:
        return (struct fast_source){{&l->q, &l->k, &l->v}, 3};
    case 1:
        return (struct fast_source){{&l->o}, 1};
    case 2:
        return l->gate.w ? (struct fast_source){{&l->gate, &l->up}, 2}
                         : (struct fast_source){{&l->up}, 1};
    default:
        return (struct fast_source){{&l->down}, 1};
    }
}

static struct fast_matrix *of_layer(struct fast_layer *l, uint32_t i)
{
    struct fast_matrix *all[MATRICES_PER_LAYER] = {&l->qkv, &l->o, &l->up, &l->down};
    return all[i];
}

struct fast_matrix *fast_matrix_at(struct model_fast *f, uint32_t i)
{
    return i < f->m->n_layers * MATRICES_PER_LAYER
               ? of_layer(&f->layers[i / MATRICES_PER_LAYER], i % MATRICES_PER_LAYER)
               : &f->dense[i - f->m->n_layers * MATRICES_PER_LAYER];
}

/* Dense layers see a text once, not a token: floats, whatever the layers have. */
enum model_precision fast_precision_at(const struct model_fast *f, uint32_t i)
{
    return i < f->m->n_layers * MATRICES_PER_LAYER ? f->precision : MODEL_F32;
}

static int set_shape(struct model_fast *f, struct err *e)
{
    const struct model *m = f->m;
    f->q_width = m->n_heads * m->head_size;
    f->kv_width = m->n_kv_heads * m->head_size;
    bool normed_heads = m->n_layers > 0 && m->layers[0].q_norm.w && !m->whole_qk_norm;
    if (m->n_embd % ROW_MULTIPLE || m->n_ff % ROW_MULTIPLE || f->q_width % ROW_MULTIPLE ||
        f->kv_width % ROW_MULTIPLE || (normed_heads && m->head_size % ROW_MULTIPLE))
        return err_set(e, KITH_EUNSUPPORTED,
                       "widths are multiples of %d in the fast pass, not n_embd %u, n_ff %u, "
                       "%u and %u heads of %u",
                       (int)ROW_MULTIPLE, m->n_embd, m->n_ff, m->n_heads, m->n_kv_heads,
                       m->head_size);
    f->head_even = (m->head_size + 1) / 2 * 2;
    f->head_padded = fast_pad(f, m->head_size);
    f->embd_padded = fast_pad(f, m->n_embd);
    f->up_padded = fast_pad(f, m->layers[0].gate.w ? 2 * m->n_ff : m->n_ff);
    f->qkv_stride = fast_pad(f, f->q_width + 2 * f->kv_width);
    f->ctx_padded = fast_pad(f, m->n_ctx);
    for (uint32_t i = 0; i < m->n_dense; i++) {
        uint32_t padded = fast_pad(f, (uint32_t)m->dense[i].matrix.n_rows);
        f->dense_padded = padded > f->dense_padded ? padded : f->dense_padded;
    }
    return 0;
}

static struct fast_norm norm_of(const struct model_norm *n)
{
    return (struct fast_norm){n->w ? n->w->data : NULL, n->b ? n->b->data : NULL};
}

/* Angles in double: at position 30,000 a float has lost three digits of them. */
static void fill_angles(const struct model *m, int table, uint32_t from, uint32_t to,
                        float *rows)
{
    const uint32_t half = m->n_rotary / 2;
    const double scale = table == 0 ? (double)m->rotary_scale : 1;
    for (uint32_t i = 0; i < half; i++) {
        double step = scale * pow((double)m->rotary_base[table], -(double)i / half);
        for (uint32_t p = from; p < to; p++) {
            float *row = rows + (size_t)p * m->n_rotary;
            row[i] = (float)cos(p * step);
            row[half + i] = (float)sin(p * step);
        }
    }
}

int fast_grow_rotary(struct model_fast *f, uint32_t n, struct err *e)
{
    const struct model *m = f->m;
    if (m->position != POSITION_ROTARY || n <= f->n_angles)
        return 0;
    uint32_t to = 512;
    while (to < n)
        to *= 2;
    for (int table = 0; table < ROTARY_BASES; table++) {
        if (m->rotary_base[table] <= 0)
            continue;
        float *rows = mem_realloc_n(f->rotary[table], to, m->n_rotary * sizeof(float));
        if (!rows)
            return err_set(e, KITH_ENOMEM, "out of memory for the angles of %u positions", to);
        f->rotary[table] = rows;
        fill_angles(m, table, f->n_angles, to, rows);
    }
    f->n_angles = to;
    return 0;
}

static void load_norms(struct fast_layer *to, const struct model_layer *from)
{
    to->attn_in = norm_of(&from->attn_in);
    to->attn_out = norm_of(&from->attn_out);
    to->attn_stream = norm_of(&from->attn_stream);
    to->attn_again = norm_of(&from->attn_again);
    to->ffn_in = norm_of(&from->ffn_in);
    to->ffn_out = norm_of(&from->ffn_out);
    to->ffn_stream = norm_of(&from->ffn_stream);
    to->q_norm = norm_of(&from->q_norm);
    to->k_norm = norm_of(&from->k_norm);
    to->window = from->window;
    to->rotary = from->rotary;
}

static int load_embeddings(struct model_fast *f, struct err *e)
{
    const struct model *m = f->m;
    size_t n = m->n_embd;
    if (m->type_embd) {
        f->types = mem_calloc(2, n * sizeof(float));
        if (!f->types)
            return err_set(e, KITH_ENOMEM, "out of memory for the token types");
        tensor_row_f32(m->type_embd, 0, f->types);
        if (m->n_types > 1)
            tensor_row_f32(m->type_embd, 1, f->types + n);
        for (size_t i = 0; i < n && m->n_types > 1; i++)
            f->types[n + i] -= f->types[i];
    }
    if (!m->position_embd)
        return 0;
    f->positions = mem_alloc_n(m->n_ctx, n * sizeof(float));
    if (!f->positions)
        return err_set(e, KITH_ENOMEM, "out of memory for %u positions", m->n_ctx);
    for (uint32_t p = 0; p < m->n_ctx; p++) {
        float *row = f->positions + p * n;
        tensor_row_f32(m->position_embd, p, row);
        for (size_t i = 0; i < n && f->types; i++)
            row[i] += f->types[i];
    }
    return 0;
}

static int load_vectors(struct model_fast *f, struct err *e)
{
    const struct model *m = f->m;
    f->layers = mem_calloc(m->n_layers, sizeof *f->layers);
    if (!f->layers)
        return err_set(e, KITH_ENOMEM, "out of memory for %u layers", m->n_layers);
    f->embd_norm = norm_of(&m->embd_norm);
    f->output_norm = norm_of(&m->output_norm);
    for (uint32_t l = 0; l < m->n_layers; l++)
        load_norms(&f->layers[l], &m->layers[l]);
    return load_embeddings(f, e);
}

static int pack_matrices(struct model_fast *f, struct err *e)
{
    int rc = 0;
    for (uint32_t i = 0; i < fast_n_matrices(f->m) && rc == 0; i++) {
        const struct fast_source source = fast_source_at(f->m, i);
        rc = fast_pack(f, fast_matrix_at(f, i), fast_precision_at(f, i), &source, e);
    }
    return rc;
}

/* Runs a fixed sample of token ids while every int8 product notes the largest magnitude of each
 * of its inputs. Any ids will do: the large inputs belong to the model, not to the text. */
static int run_sample(struct model_fast *f, struct err *e)
{
    static const uint32_t lengths[] = {2, 3, 4, 6, 10, 18, 34};
    enum { N_TEXTS = sizeof lengths / sizeof lengths[0] };
    int32_t ids[SAMPLE_TOKENS_MAX];
    uint32_t offsets[N_TEXTS + 1] = {0};
    struct rng rng;
    rng_seed(&rng, SAMPLE_SEED);
    for (int t = 0; t < N_TEXTS; t++)
        offsets[t + 1] = offsets[t] + (lengths[t] < f->m->n_ctx ? lengths[t] : f->m->n_ctx);
    for (uint32_t i = 0; i < offsets[N_TEXTS]; i++)
        ids[i] = (int32_t)rng_below(&rng, f->m->n_vocab);
    struct model_batch batch = {ids, offsets, N_TEXTS, offsets[N_TEXTS], NULL};
    struct pool *pool = NULL;
    float *out = mem_alloc_n(N_TEXTS, f->m->n_embd * sizeof *out);
    int rc =
        out ? pool_new(&pool, 1, e) : err_set(e, KITH_ENOMEM, "out of memory for a sample");
    if (rc == 0)
        rc = model_fast_forward(f, pool, &batch, out, e);
    pool_free(pool);
    mem_free(out);
    return rc;
}

static int choose_outliers(struct model_fast *f, struct err *e)
{
    const uint32_t n = f->m->n_layers * MATRICES_PER_LAYER;
    for (uint32_t i = 0; i < n; i++) {
        struct fast_matrix *m = fast_matrix_at(f, i);
        m->largest = mem_calloc(m->n_in, sizeof *m->largest);
        if (!m->largest)
            return err_set(e, KITH_ENOMEM, "out of memory for a sample");
    }
    int rc = run_sample(f, e);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        struct fast_matrix *m = fast_matrix_at(f, i);
        const struct fast_source source = fast_source_at(f->m, i);
        rc = fast_pack_outliers(f, m, &source, e);
        mem_free(m->largest);
        m->largest = NULL;
    }
    return rc;
}

int fast_resolve(enum model_precision *out, const struct model *m,
                 const struct engine_kernels *kernels, enum model_precision precision,
                 struct err *e)
{
    bool has_bf16 = kernels->product->bf16 != NULL;
    struct model_weights weights;
    model_weights(m, &weights);
    *out = precision;
    if (precision == MODEL_AUTO)
        *out = weights.quantized                                           ? MODEL_INT8
               : weights.type == TENSOR_BF16 && !weights.mixed && has_bf16 ? MODEL_BF16
                                                                           : MODEL_F32;
    if (*out == MODEL_BF16 && !has_bf16)
        return err_set(e, KITH_EUNSUPPORTED,
                       "the %s kernels have no bf16 products: they need a processor with "
                       "AVX512_BF16; f32 computes the same here",
                       kernels->name);
    return 0;
}

static void choose_kernels(struct model_fast *f)
{
    const struct row_kernels *row = f->kernels->row;
    f->norm = f->m->norm == NORM_RMS ? row->norm_rms : row->norm;
    f->activate = f->m->activation == ACTIVATION_GELU        ? row->gelu
                  : f->m->activation == ACTIVATION_GELU_TANH ? row->gelu_tanh
                                                             : row->silu;
}

/* Mapped matrices count as others do: the page cache holds them only as long as there is room,
 * but a pass that has to wait for the disk is as slow as if the model were away. */
size_t model_fast_bytes(const struct model_fast *f)
{
    const struct model *m = f->m;
    const struct product_kernels *product = f->kernels->product;
    size_t bytes = f->positions ? (size_t)m->n_ctx * m->n_embd * sizeof(float) : 0;
    for (uint32_t l = 0; l < m->n_layers; l++)
        for (uint32_t i = 0; i < MATRICES_PER_LAYER; i++)
            bytes += fast_matrix_bytes(of_layer(&f->layers[l], i), product);
    for (uint32_t i = 0; i < m->n_dense; i++)
        bytes += fast_matrix_bytes(&f->dense[i], product);
    return bytes;
}

enum model_precision model_fast_precision(const struct model_fast *f)
{
    return f->precision;
}

int fast_begin(struct model_fast **out, const struct model *m, enum model_precision precision,
               struct err *e)
{
    struct model_fast *f = mem_calloc(1, sizeof *f);
    if (!f)
        return err_set(e, KITH_ENOMEM, "out of memory for the model");
    f->m = m;
    int rc = engine_kernels(&f->kernels, e);
    if (rc == 0)
        rc = fast_resolve(&f->precision, m, f->kernels, precision, e);
    if (rc == 0)
        rc = set_shape(f, e);
    if (rc == 0)
        choose_kernels(f);
    if (rc == 0)
        rc = load_vectors(f, e);
    if (rc != 0) {
        model_fast_free(f);
        return rc;
    }
    *out = f;
    return 0;
}

int model_fast_new(struct model_fast **out, const struct model *m,
                   enum model_precision precision, struct err *e)
{
    struct model_fast *f = NULL;
    int rc = fast_begin(&f, m, precision, e);
    if (rc == 0)
        rc = pack_matrices(f, e);
    if (rc == 0 && f->precision == MODEL_INT8)
        rc = choose_outliers(f, e);
    if (rc != 0) {
        model_fast_free(f);
        return rc;
    }
    *out = f;
    return 0;
}
