/* Making a fast encoder: shapes, packed weights, and the choice of outlier inputs. */

#include <string.h>

#include "base/mem.h"
#include "base/random.h"
#include "engine/bert_fast_internal.h"
#include "engine/pool.h"

enum { MATRICES_PER_LAYER = 4, SAMPLE_TOKENS_MAX = 256, SAMPLE_SEED = 12 };

struct layer_sources {
    struct fast_source sources[MATRICES_PER_LAYER]; /* qkv, o, up, down */
};

static struct layer_sources sources_of(const struct bert_layer *l)
{
    return (struct layer_sources){{
        {{l->q_w, l->k_w, l->v_w}, {l->q_b, l->k_b, l->v_b}, 3},
        {{l->o_w}, {l->o_b}, 1},
        {{l->up_w}, {l->up_b}, 1},
        {{l->down_w}, {l->down_b}, 1},
    }};
}

static struct fast_matrix *matrix_of(struct fast_layer *l, int i)
{
    struct fast_matrix *all[MATRICES_PER_LAYER] = {&l->qkv, &l->o, &l->up, &l->down};
    return all[i];
}

static int set_shape(struct bert_fast *f, struct err *e)
{
    const struct bert *b = f->b;
    if (b->n_embd % ROW_MULTIPLE || b->n_ff % ROW_MULTIPLE || b->n_heads == 0 ||
        b->n_embd % b->n_heads)
        return err_set(e, KITH_EUNSUPPORTED,
                       "the fast encoder takes widths that are multiples of %d and of the "
                       "heads, not n_embd %u, n_ff %u, n_heads %u",
                       (int)ROW_MULTIPLE, b->n_embd, b->n_ff, b->n_heads);
    f->head_size = b->n_embd / b->n_heads;
    f->head_even = (f->head_size + 1) / 2 * 2;
    f->head_padded = fast_pad(f, f->head_size);
    f->embd_padded = fast_pad(f, b->n_embd);
    f->ff_padded = fast_pad(f, b->n_ff);
    f->qkv_stride = fast_pad(f, 3 * b->n_embd);
    f->ctx_padded = fast_pad(f, b->n_ctx);
    return 0;
}

static int load_vectors(struct bert_fast *f, struct err *e)
{
    const struct bert *b = f->b;
    size_t n = b->n_embd;
    f->positions = mem_alloc_n((size_t)b->n_ctx + 1, n * sizeof(float));
    f->embd_norm = mem_alloc_n(2, n * sizeof(float));
    f->layers = mem_calloc(b->n_layers, sizeof *f->layers);
    if (!f->positions || !f->embd_norm || !f->layers)
        return err_set(e, KITH_ENOMEM, "out of memory for the encoder");
    float *type = f->positions + b->n_ctx * n; /* one row more than positions, for the while */
    memset(type, 0, n * sizeof *type);
    if (b->type_embd)
        tensor_row_f32(b->type_embd, 0, type);
    for (uint32_t p = 0; p < b->n_ctx; p++) {
        float *row = f->positions + p * n;
        tensor_row_f32(b->position_embd, p, row);
        for (size_t i = 0; i < n; i++)
            row[i] += type[i];
    }
    tensor_row_f32(b->embd_norm_w, 0, f->embd_norm);
    tensor_row_f32(b->embd_norm_b, 0, f->embd_norm + n);
    for (uint32_t l = 0; l < b->n_layers; l++) {
        const struct bert_layer *from = &b->layers[l];
        float *norms = f->layers[l].norms = mem_alloc_n(N_NORMS, n * sizeof(float));
        if (!norms)
            return err_set(e, KITH_ENOMEM, "out of memory for the encoder");
        tensor_row_f32(from->attn_norm_w, 0, norms + NORM_ATTN_W * n);
        tensor_row_f32(from->attn_norm_b, 0, norms + NORM_ATTN_B * n);
        tensor_row_f32(from->out_norm_w, 0, norms + NORM_OUT_W * n);
        tensor_row_f32(from->out_norm_b, 0, norms + NORM_OUT_B * n);
    }
    return 0;
}

static int load_matrices(struct bert_fast *f, struct err *e)
{
    for (uint32_t l = 0; l < f->b->n_layers; l++) {
        struct layer_sources s = sources_of(&f->b->layers[l]);
        for (int i = 0; i < MATRICES_PER_LAYER; i++) {
            int rc = fast_pack(f, matrix_of(&f->layers[l], i), &s.sources[i], e);
            if (rc != 0)
                return rc;
        }
    }
    return 0;
}

/* Runs a fixed sample of token ids while every int8 product notes the largest magnitude of each
 * of its inputs. Any ids will do: the large inputs belong to the model, not to the text. */
static int run_sample(struct bert_fast *f, struct err *e)
{
    static const uint32_t lengths[] = {2, 3, 4, 6, 10, 18, 34};
    enum { N_TEXTS = sizeof lengths / sizeof lengths[0] };
    int32_t ids[SAMPLE_TOKENS_MAX];
    uint32_t offsets[N_TEXTS + 1] = {0};
    struct rng rng;
    rng_seed(&rng, SAMPLE_SEED);
    for (int t = 0; t < N_TEXTS; t++)
        offsets[t + 1] = offsets[t] + (lengths[t] < f->b->n_ctx ? lengths[t] : f->b->n_ctx);
    for (uint32_t i = 0; i < offsets[N_TEXTS]; i++)
        ids[i] = (int32_t)rng_below(&rng, f->b->n_vocab);
    struct bert_batch batch = {ids, offsets, N_TEXTS, offsets[N_TEXTS]};
    struct pool *pool = NULL;
    float *out = mem_alloc_n(N_TEXTS, f->b->n_embd * sizeof *out);
    int rc =
        out ? pool_new(&pool, 1, e) : err_set(e, KITH_ENOMEM, "out of memory for a sample");
    if (rc == 0)
        rc = bert_fast_forward(f, pool, &batch, out, e);
    pool_free(pool);
    mem_free(out);
    return rc;
}

static int choose_outliers(struct bert_fast *f, struct err *e)
{
    int rc = 0;
    for (uint32_t l = 0; l < f->b->n_layers; l++)
        for (int i = 0; i < MATRICES_PER_LAYER; i++) {
            struct fast_matrix *m = matrix_of(&f->layers[l], i);
            m->largest = mem_calloc(m->n_in, sizeof *m->largest);
            if (!m->largest)
                return err_set(e, KITH_ENOMEM, "out of memory for a sample");
        }
    rc = run_sample(f, e);
    for (uint32_t l = 0; rc == 0 && l < f->b->n_layers; l++) {
        struct layer_sources s = sources_of(&f->b->layers[l]);
        for (int i = 0; rc == 0 && i < MATRICES_PER_LAYER; i++) {
            struct fast_matrix *m = matrix_of(&f->layers[l], i);
            rc = fast_pack_outliers(f, m, &s.sources[i], e);
            mem_free(m->largest);
            m->largest = NULL;
        }
    }
    return rc;
}

static enum bert_precision resolve(const struct bert *b, enum bert_precision precision)
{
    if (precision != BERT_AUTO)
        return precision;
    struct bert_weights weights;
    bert_weights(b, &weights);
    return weights.quantized ? BERT_INT8 : BERT_F32;
}

enum bert_precision bert_fast_precision(const struct bert_fast *f)
{
    return f->precision;
}

int bert_fast_new(struct bert_fast **out, const struct bert *b, enum bert_precision precision,
                  struct err *e)
{
    struct bert_fast *f = mem_calloc(1, sizeof *f);
    if (!f)
        return err_set(e, KITH_ENOMEM, "out of memory for the encoder");
    f->b = b;
    f->precision = resolve(b, precision);
    int rc = engine_kernels(&f->kernels, e);
    if (rc == 0)
        rc = set_shape(f, e);
    if (rc == 0)
        rc = load_vectors(f, e);
    if (rc == 0)
        rc = load_matrices(f, e);
    if (rc == 0 && f->precision == BERT_INT8)
        rc = choose_outliers(f, e);
    if (rc != 0) {
        bert_fast_free(f);
        return rc;
    }
    *out = f;
    return 0;
}
