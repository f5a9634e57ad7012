/* Binding: every tensor and key of the description is looked up and checked here, once, so that
 * the forward passes may trust shapes and types. Dimensions have limits far above any published
 * model, so that no product of two of them overflows and a lying file cannot ask for the moon.
 */

#include "engine/bert.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/gguf.h"

enum {
    MAX_LAYERS = 256,
    MAX_EMBD = 16384,
    MAX_FF = 1 << 17,
    MAX_CTX = 1 << 17,
    MAX_VOCAB = 1 << 22,
    MAX_TYPES = 1 << 10
};

static int get_dimension(const struct gguf *g, const char *key, uint32_t max, uint32_t *v,
                         struct err *e)
{
    uint64_t u;
    int rc = gguf_get_uint(g, key, &u, e);
    if (rc)
        return rc;
    if (u < 1 || u > max)
        return err_set(e, KITH_EFORMAT, "key '%s' is %" PRIu64 "; 1 to %u is possible", key, u,
                       max);
    *v = (uint32_t)u;
    return 0;
}

static int get_pooling(struct bert *b, const struct gguf *g, struct err *e)
{
    uint64_t pooling = POOLING_MEAN;
    int rc = gguf_get_uint(g, "bert.pooling_type", &pooling, e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (pooling != POOLING_MEAN && pooling != POOLING_CLS)
        return err_set(e, KITH_EUNSUPPORTED,
                       "bert.pooling_type is %" PRIu64
                       "; 1 (mean) and 2 (CLS) are computed here",
                       pooling);
    b->pooling = (enum pooling)pooling;
    /* GGUF does not say whether vectors are normalised; sentence-transformers' models are, and
     * cosine is what they were trained for. */
    b->normalize = true;
    return 0;
}

static int bind_keys(struct bert *b, const struct gguf *g, struct err *e)
{
    const char *arch;
    size_t n;
    int rc = gguf_get_string(g, "general.architecture", &arch, &n, e);
    if (rc)
        return rc;
    if (n != 4 || memcmp(arch, "bert", 4) != 0)
        return err_set(e, KITH_EUNSUPPORTED,
                       "the architecture is '%.*s'; 'bert' is computed here",
                       n > 64 ? 64 : (int)n, arch);
    bool causal = false;
    rc = gguf_get_bool(g, "bert.attention.causal", &causal, e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (causal)
        return err_set(e, KITH_EUNSUPPORTED,
                       "bert.attention.causal is true; an encoder sees all");
    if ((rc = get_dimension(g, "bert.block_count", MAX_LAYERS, &b->n_layers, e)) ||
        (rc = get_dimension(g, "bert.embedding_length", MAX_EMBD, &b->n_embd, e)) ||
        (rc = get_dimension(g, "bert.attention.head_count", MAX_EMBD, &b->n_heads, e)) ||
        (rc = get_dimension(g, "bert.feed_forward_length", MAX_FF, &b->n_ff, e)) ||
        (rc = get_dimension(g, "bert.context_length", MAX_CTX, &b->n_ctx, e)) ||
        (rc = gguf_get_f32(g, "bert.attention.layer_norm_epsilon", &b->norm_eps, e)))
        return rc;
    if (b->n_embd % b->n_heads)
        return err_set(e, KITH_EFORMAT, "%u features do not divide into %u heads", b->n_embd,
                       b->n_heads);
    if (!(b->norm_eps > 0 && b->norm_eps < 1))
        return err_set(e, KITH_EFORMAT, "bert.attention.layer_norm_epsilon is %g",
                       (double)b->norm_eps);
    return get_pooling(b, g, e);
}

static const struct tensor *need(const struct gguf *g, const char *name, struct err *e)
{
    const struct tensor *t = gguf_tensor(g, name);
    if (!t)
        err_set(e, KITH_EFORMAT, "the model file has no tensor '%s'", name);
    return t;
}

static int wrong_shape(const struct tensor *t, uint64_t ne0, uint64_t ne1, struct err *e)
{
    return err_set(e, KITH_EFORMAT,
                   "tensor '%s' has the shape {%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                   "}; {%" PRIu64 ", %" PRIu64 "} is expected",
                   t->name, t->ne[0], t->ne[1], t->ne[2], t->ne[3], ne0, ne1);
}

static int bind_matrix(const struct tensor **out, const struct gguf *g, const char *name,
                       uint64_t in, uint64_t rows, struct err *e)
{
    const struct tensor *t = need(g, name, e);
    if (!t)
        return KITH_EFORMAT;
    if (t->ne[0] != in || t->ne[1] != rows || t->ne[2] != 1 || t->ne[3] != 1)
        return wrong_shape(t, in, rows, e);
    *out = t;
    return 0;
}

/* Biases and norms: F32, so that every pass may read them in place. */
static int bind_vector(const struct tensor **out, const struct gguf *g, const char *name,
                       uint64_t n, struct err *e)
{
    int rc = bind_matrix(out, g, name, n, 1, e);
    if (!rc && (*out)->type != TENSOR_F32)
        return err_set(e, KITH_EUNSUPPORTED, "tensor '%s' is %s; biases and norms must be F32",
                       name, tensor_type_name((*out)->type));
    return rc;
}

/* An embedding table, whose number of rows the tensor itself tells. */
static int bind_table(const struct tensor **out, const struct gguf *g, const char *name,
                      uint64_t in, uint32_t max_rows, uint32_t *rows, struct err *e)
{
    const struct tensor *t = need(g, name, e);
    if (!t)
        return KITH_EFORMAT;
    if (t->ne[0] != in || t->ne[1] > max_rows || t->ne[2] != 1 || t->ne[3] != 1)
        return wrong_shape(t, in, max_rows, e);
    *out = t;
    *rows = (uint32_t)t->ne[1];
    return 0;
}

/* Models that know no segments (RoBERTa and its kin) may leave the table out. */
static int bind_types(struct bert *b, const struct gguf *g, struct err *e)
{
    if (!gguf_tensor(g, "token_types.weight"))
        return 0;
    return bind_table(&b->type_embd, g, "token_types.weight", b->n_embd, MAX_TYPES, &b->n_types,
                      e);
}

static int bind_tables(struct bert *b, const struct gguf *g, struct err *e)
{
    uint32_t positions = 0;
    int rc;
    if ((rc = bind_table(&b->token_embd, g, "token_embd.weight", b->n_embd, MAX_VOCAB,
                         &b->n_vocab, e)) ||
        (rc = bind_table(&b->position_embd, g, "position_embd.weight", b->n_embd, MAX_CTX,
                         &positions, e)) ||
        (rc = bind_types(b, g, e)) ||
        (rc = bind_vector(&b->embd_norm_w, g, "token_embd_norm.weight", b->n_embd, e)) ||
        (rc = bind_vector(&b->embd_norm_b, g, "token_embd_norm.bias", b->n_embd, e)))
        return rc;
    if (positions < b->n_ctx)
        b->n_ctx = positions;
    return 0;
}

/* One weight or bias of a layer: where its pointer goes, what it is called, its shape. */
struct part {
    const struct tensor **out;
    const char *name;
    uint64_t in, rows; /* rows 0: a vector */
};

static int bind_layer(struct bert *b, uint32_t i, const struct gguf *g, struct err *e)
{
    struct bert_layer *l = &b->layers[i];
    const uint64_t d = b->n_embd, ff = b->n_ff;
    const struct part parts[] = {
        {&l->q_w, "attn_q.weight", d, d},
        {&l->q_b, "attn_q.bias", d, 0},
        {&l->k_w, "attn_k.weight", d, d},
        {&l->k_b, "attn_k.bias", d, 0},
        {&l->v_w, "attn_v.weight", d, d},
        {&l->v_b, "attn_v.bias", d, 0},
        {&l->o_w, "attn_output.weight", d, d},
        {&l->o_b, "attn_output.bias", d, 0},
        {&l->attn_norm_w, "attn_output_norm.weight", d, 0},
        {&l->attn_norm_b, "attn_output_norm.bias", d, 0},
        {&l->up_w, "ffn_up.weight", d, ff},
        {&l->up_b, "ffn_up.bias", ff, 0},
        {&l->down_w, "ffn_down.weight", ff, d},
        {&l->down_b, "ffn_down.bias", d, 0},
        {&l->out_norm_w, "layer_output_norm.weight", d, 0},
        {&l->out_norm_b, "layer_output_norm.bias", d, 0},
    };
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        char name[TENSOR_NAME_MAX];
        snprintf(name, sizeof name, "blk.%u.%s", i, parts[p].name);
        int rc = parts[p].rows
                     ? bind_matrix(parts[p].out, g, name, parts[p].in, parts[p].rows, e)
                     : bind_vector(parts[p].out, g, name, parts[p].in, e);
        if (rc)
            return rc;
    }
    return 0;
}

int bert_bind(struct bert *b, const struct gguf *g, struct err *e)
{
    memset(b, 0, sizeof *b);
    int rc = bind_keys(b, g, e);
    if (!rc)
        rc = bind_tables(b, g, e);
    if (!rc) {
        b->layers = mem_calloc(b->n_layers, sizeof *b->layers);
        if (!b->layers)
            rc = err_set(e, KITH_ENOMEM, "out of memory for %u layers", b->n_layers);
    }
    for (uint32_t i = 0; i < b->n_layers && !rc; i++)
        rc = bind_layer(b, i, g, e);
    if (rc)
        bert_unbind(b);
    return rc;
}

void bert_unbind(struct bert *b)
{
    mem_free(b->layers);
    b->layers = NULL;
}

void bert_weights(const struct bert *b, struct bert_weights *out)
{
    size_t bytes[TENSOR_TYPES_END] = {0};
    *out = (struct bert_weights){.quantized = true};
    for (uint32_t i = 0; i < b->n_layers; i++) {
        const struct bert_layer *l = &b->layers[i];
        const struct tensor *const matrices[] = {l->q_w, l->k_w,  l->v_w,
                                                 l->o_w, l->up_w, l->down_w};
        for (size_t m = 0; m < sizeof matrices / sizeof *matrices; m++) {
            bytes[matrices[m]->type] += matrices[m]->bytes;
            if (tensor_block_elements(matrices[m]->type) == 1)
                out->quantized = false;
        }
    }
    int n_types = 0;
    for (int t = 0; t < TENSOR_TYPES_END; t++) {
        n_types += bytes[t] > 0;
        if (bytes[t] > bytes[out->type])
            out->type = (enum tensor_type)t;
    }
    out->mixed = n_types > 1;
}
