/* Binding: every tensor and key of the description is looked up and checked here, once, so that
 * the forward passes may trust shapes and types. Dimensions have limits far above any published
 * model, so that no product of two of them overflows and a lying file cannot ask for the moon.
 *
 * A file may leave out what its architecture may leave out, and have what nobody asked for; it
 * is refused where the vectors would be others than its maker's. */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/gguf.h"
#include "engine/model_architecture.h"

enum {
    MAX_LAYERS = 256,
    MAX_EMBD = 16384,
    MAX_HEAD = 4096,
    MAX_WIDTH = 1 << 17, /* of all heads together */
    MAX_FF = 1 << 17,
    MAX_CTX = 1 << 17,
    MAX_VOCAB = 1 << 22,
    MAX_TYPES = 1 << 10,
    KEY_BYTES = 96
};

/* The one that is bound, and from what. */
struct binder {
    struct model *m;
    const struct architecture *arch;
    const struct gguf *g;
    struct err *e;
};

/* --- keys ----------------------------------------------------------------------------------
 */

static const char *key_of(const struct binder *b, const char *suffix, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%s.%s", b->arch->name, suffix);
    return key;
}

/* Where the key is missing *v stays. */
static int get_uint(const struct binder *b, const char *suffix, uint64_t max, uint32_t *v)
{
    char key[KEY_BYTES];
    uint64_t u = *v;
    int rc = gguf_get_uint(b->g, key_of(b, suffix, key), &u, b->e);
    if (rc == KITH_ENOTFOUND)
        return 0;
    if (rc)
        return rc;
    if (u > max)
        return err_set(b->e, KITH_EFORMAT,
                       "key '%s' is %" PRIu64 "; 1 to %" PRIu64 " is possible", key, u, max);
    *v = (uint32_t)u;
    return 0;
}

static int get_dimension(const struct binder *b, const char *suffix, uint64_t max, uint32_t *v)
{
    char key[KEY_BYTES];
    uint64_t u;
    int rc = gguf_get_uint(b->g, key_of(b, suffix, key), &u, b->e);
    if (rc)
        return rc;
    if (u < 1 || u > max)
        return err_set(b->e, KITH_EFORMAT,
                       "key '%s' is %" PRIu64 "; 1 to %" PRIu64 " is possible", key, u, max);
    *v = (uint32_t)u;
    return 0;
}

/* Where the key is missing *v stays; else it is a positive number. */
static int get_positive(const struct binder *b, const char *suffix, float *v)
{
    char key[KEY_BYTES];
    float f;
    int rc = gguf_get_f32(b->g, key_of(b, suffix, key), &f, b->e);
    if (rc == KITH_ENOTFOUND)
        return 0;
    if (rc)
        return rc;
    if (!(f > 0 && isfinite(f)))
        return err_set(b->e, KITH_EFORMAT, "key '%s' is %g; a number above 0 is expected", key,
                       (double)f);
    *v = f;
    return 0;
}

static int bind_architecture(struct binder *b)
{
    const char *name;
    size_t n;
    int rc = gguf_get_string(b->g, "general.architecture", &name, &n, b->e);
    if (rc)
        return rc;
    b->arch = architecture_find(name, n);
    if (b->arch) {
        snprintf(b->m->arch, sizeof b->m->arch, "%s", b->arch->name);
        return 0;
    }
    char known[256];
    model_architectures(known, sizeof known);
    return err_set(b->e, KITH_EUNSUPPORTED, "the architecture is '%.*s'; computed here are %s",
                   n > 64 ? 64 : (int)n, name, known);
}

static int check_causal(const struct binder *b)
{
    char key[KEY_BYTES];
    bool causal = b->arch->causal;
    int rc = gguf_get_bool(b->g, key_of(b, "attention.causal", key), &causal, b->e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (causal && !b->arch->causal)
        return err_set(b->e, KITH_EUNSUPPORTED,
                       "key '%s' is true, but a token of this architecture sees all others",
                       key);
    b->m->causal = causal;
    return 0;
}

/* The heads: how many, how wide. */
static int bind_heads(const struct binder *b)
{
    struct model *m = b->m;
    int rc = get_dimension(b, "attention.head_count", MAX_EMBD, &m->n_heads);
    if (rc)
        return rc;
    m->n_kv_heads = m->n_heads;
    m->head_size = m->n_embd / m->n_heads;
    uint32_t value_size = 0;
    if ((rc = get_uint(b, "attention.head_count_kv", MAX_EMBD, &m->n_kv_heads)) ||
        (rc = get_uint(b, "attention.key_length", MAX_HEAD, &m->head_size)) ||
        (rc = get_uint(b, "attention.value_length", MAX_HEAD, &value_size)))
        return rc;
    char key[KEY_BYTES];
    if (!gguf_has(b->g, key_of(b, "attention.key_length", key)) && m->n_embd % m->n_heads)
        return err_set(b->e, KITH_EFORMAT, "%u features do not divide into %u heads", m->n_embd,
                       m->n_heads);
    if (m->n_kv_heads < 1 || m->n_heads % m->n_kv_heads)
        return err_set(b->e, KITH_EFORMAT, "%u heads of queries do not divide among %u of keys",
                       m->n_heads, m->n_kv_heads);
    if (m->head_size < 1 || (uint64_t)m->head_size * m->n_heads > MAX_WIDTH)
        return err_set(b->e, KITH_EFORMAT, "%u heads of %u features; at most %d together",
                       m->n_heads, m->head_size, (int)MAX_WIDTH);
    if (value_size && value_size != m->head_size)
        return err_set(b->e, KITH_EUNSUPPORTED,
                       "heads have keys of %u and values of %u features; equal ones are "
                       "computed here",
                       m->head_size, value_size);
    m->attention_scale = 1.0f / sqrtf((float)m->head_size);
    return get_positive(b, "attention.scale", &m->attention_scale);
}

static int bind_rotary_scaling(const struct binder *b)
{
    char key[KEY_BYTES];
    const char *type;
    size_t n;
    int rc = gguf_get_string(b->g, key_of(b, "rope.scaling.type", key), &type, &n, b->e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    bool linear = rc == KITH_ENOTFOUND || (n == 6 && memcmp(type, "linear", 6) == 0);
    if (!linear && !(n == 4 && memcmp(type, "none", 4) == 0))
        return err_set(b->e, KITH_EUNSUPPORTED,
                       "key '%s' is '%.*s'; 'none' and 'linear' are computed here", key,
                       n > 32 ? 32 : (int)n, type);
    float factor = 1;
    if (linear)
        rc = get_positive(b, "rope.scaling.factor", &factor);
    b->m->rotary_scale = 1.0f / factor;
    return rc == KITH_ENOTFOUND ? 0 : rc;
}

static int bind_position(const struct binder *b)
{
    struct model *m = b->m;
    m->position = b->arch->position;
    m->alibi_bias = b->arch->alibi_bias;
    if (m->position == POSITION_ALIBI)
        return get_positive(b, "attention.max_alibi_bias", &m->alibi_bias);
    if (m->position != POSITION_ROTARY)
        return 0;
    m->n_rotary = m->head_size;
    m->rotary_base[0] = b->arch->rotary_base;
    m->rotary_base[1] = b->arch->rotary_base_window;
    int rc;
    if ((rc = get_uint(b, "rope.dimension_count", MAX_HEAD, &m->n_rotary)) ||
        (rc = get_positive(b, "rope.freq_base", &m->rotary_base[0])) ||
        (rc = get_positive(b, "rope.freq_base_swa", &m->rotary_base[1])))
        return rc;
    if (m->n_rotary < 2 || m->n_rotary % 2 || m->n_rotary > m->head_size)
        return err_set(b->e, KITH_EFORMAT,
                       "key '%s.rope.dimension_count' is %u; an even number of 2 to %u is "
                       "expected",
                       m->arch, m->n_rotary, m->head_size);
    return bind_rotary_scaling(b);
}

static int bind_pooling(const struct binder *b)
{
    char key[KEY_BYTES];
    uint64_t pooling = 0;
    int rc = gguf_get_uint(b->g, key_of(b, "pooling_type", key), &pooling, b->e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (pooling == 0) /* none: a language model that was not asked for vectors, or no word */
        pooling = b->arch->pooling;
    if (pooling > POOLING_RANK || (pooling == POOLING_RANK && !b->arch->may_rank))
        return err_set(b->e, KITH_EUNSUPPORTED,
                       "key '%s' is %" PRIu64
                       "; 1 (mean), 2 (CLS)%s 3 (last)%s are computed here",
                       key, pooling, b->arch->may_rank ? "," : " and",
                       b->arch->may_rank ? " and 4 (rank)" : "");
    b->m->pooling = (enum pooling)pooling;
    /* GGUF does not say whether vectors are normalised; sentence-transformers' models are, and
     * cosine is what they were trained for. */
    b->m->normalize = pooling != POOLING_RANK;
    return 0;
}

static int bind_keys(struct binder *b)
{
    struct model *m = b->m;
    int rc = bind_architecture(b);
    if (rc)
        return rc;
    m->norm = b->arch->norm;
    m->activation = b->arch->activation;
    if ((rc = check_causal(b)) ||
        (rc = get_dimension(b, "block_count", MAX_LAYERS, &m->n_layers)) ||
        (rc = get_dimension(b, "embedding_length", MAX_EMBD, &m->n_embd)) ||
        (rc = get_dimension(b, "feed_forward_length", MAX_FF, &m->n_ff)) ||
        (rc = get_dimension(b, "context_length", MAX_CTX, &m->n_ctx)) || (rc = bind_heads(b)))
        return rc;
    char key[KEY_BYTES];
    key_of(b,
           m->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon"
                               : "attention.layer_norm_epsilon",
           key);
    if ((rc = gguf_get_f32(b->g, key, &m->norm_eps, b->e)))
        return rc;
    if (!(m->norm_eps > 0 && m->norm_eps < 1))
        return err_set(b->e, KITH_EFORMAT,
                       "key '%s' is %g; a number between 0 and 1 is expected", key,
                       (double)m->norm_eps);
    m->embd_scale = b->arch->scale_embd ? sqrtf((float)m->n_embd) : 1;
    if ((rc = bind_position(b)))
        return rc;
    return bind_pooling(b);
}

/* --- tensors -------------------------------------------------------------------------------
 */

static const struct tensor *need(const struct binder *b, const char *name)
{
    const struct tensor *t = gguf_tensor(b->g, name);
    if (!t)
        err_set(b->e, KITH_EFORMAT, "the model file has no tensor '%s'", name);
    return t;
}

static int check_shape(const struct binder *b, const struct tensor *t, uint64_t ne0,
                       uint64_t ne1)
{
    if (t->ne[0] == ne0 && t->ne[1] == ne1 && t->ne[2] == 1 && t->ne[3] == 1)
        return 0;
    return err_set(b->e, KITH_EFORMAT,
                   "tensor '%s' has the shape {%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                   "}; {%" PRIu64 ", %" PRIu64 "} is expected",
                   t->name, t->ne[0], t->ne[1], t->ne[2], t->ne[3], ne0, ne1);
}

/* Biases and norms: F32, so that every pass may read them in place. Where the tensor is missing
 * and may be, *out stays NULL. */
static int bind_vector(const struct binder *b, const char *name, uint64_t n, bool must,
                       const struct tensor **out)
{
    const struct tensor *t = gguf_tensor(b->g, name);
    if (!t)
        return must && !need(b, name) ? KITH_EFORMAT : 0;
    int rc = check_shape(b, t, n, 1);
    if (rc)
        return rc;
    if (t->type != TENSOR_F32)
        return err_set(b->e, KITH_EUNSUPPORTED,
                       "tensor '%s' is %s; biases and norms must be F32", name,
                       tensor_type_name(t->type));
    *out = t;
    return 0;
}

/* prefix "blk.3." or "": the matrix prefix + stem + ".weight" with its bias. */
static int bind_matrix(const struct binder *b, const char *prefix, const char *stem,
                       uint64_t in, uint64_t rows, bool bias, struct model_matrix *out)
{
    char name[TENSOR_NAME_MAX];
    snprintf(name, sizeof name, "%s%s.weight", prefix, stem);
    const struct tensor *t = need(b, name);
    int rc = t ? check_shape(b, t, in, rows) : KITH_EFORMAT;
    if (rc)
        return rc;
    out->w = t;
    out->first_row = 0;
    out->n_rows = rows;
    snprintf(name, sizeof name, "%s%s.bias", prefix, stem);
    return bind_vector(b, name, rows, bias, &out->b);
}

static bool has_tensor(const struct binder *b, const char *prefix, const char *name)
{
    char full[TENSOR_NAME_MAX];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return gguf_tensor(b->g, full) != NULL;
}

enum presence { MUST, MAY };

static int bind_norm(const struct binder *b, const char *prefix, const char *stem, uint64_t n,
                     enum presence presence, struct model_norm *out)
{
    char name[TENSOR_NAME_MAX];
    snprintf(name, sizeof name, "%s%s.weight", prefix, stem);
    int rc = bind_vector(b, name, n, presence == MUST, &out->w);
    if (rc || !out->w)
        return rc;
    snprintf(name, sizeof name, "%s%s.bias", prefix, stem);
    return bind_vector(b, name, n, b->arch->norm_bias, &out->b);
}

/* An embedding table, whose number of rows the tensor itself tells. */
static int bind_table(const struct binder *b, const char *name, uint32_t max_rows,
                      const struct tensor **out, uint32_t *rows)
{
    const struct tensor *t = need(b, name);
    if (!t)
        return KITH_EFORMAT;
    int rc = check_shape(b, t, b->m->n_embd, t->ne[1] > max_rows ? max_rows : t->ne[1]);
    if (rc)
        return rc;
    *out = t;
    *rows = (uint32_t)t->ne[1];
    return 0;
}

static int bind_tables(const struct binder *b)
{
    struct model *m = b->m;
    int rc = bind_table(b, "token_embd.weight", MAX_VOCAB, &m->token_embd, &m->n_vocab);
    if (!rc && m->position == POSITION_LEARNED) {
        uint32_t positions = 0;
        rc = bind_table(b, "position_embd.weight", MAX_CTX, &m->position_embd, &positions);
        if (!rc && positions < m->n_ctx)
            m->n_ctx = positions;
    }
    /* Models that know no segments (RoBERTa and its kin) may leave the table out. */
    if (!rc && gguf_tensor(b->g, "token_types.weight"))
        rc = bind_table(b, "token_types.weight", MAX_TYPES, &m->type_embd, &m->n_types);
    if (!rc && b->arch->embd_norm)
        rc = bind_norm(b, "", "token_embd_norm", m->n_embd, MUST, &m->embd_norm);
    if (!rc && b->arch->output_norm)
        rc = bind_norm(b, "", "output_norm", m->n_embd, MUST, &m->output_norm);
    return rc;
}

/* --- layers --------------------------------------------------------------------------------
 */

static struct model_matrix rows_of(const struct model_matrix *m, uint64_t first, uint64_t n)
{
    struct model_matrix part = *m;
    part.first_row = first;
    part.n_rows = n;
    return part;
}

static int bind_attention(const struct binder *b, const char *prefix, struct model_layer *l)
{
    const struct model *m = b->m;
    const bool bias = b->arch->linear_bias;
    const uint64_t d = m->n_embd, q = (uint64_t)m->n_heads * m->head_size,
                   kv = (uint64_t)m->n_kv_heads * m->head_size;
    int rc;
    if (has_tensor(b, prefix, "attn_qkv.weight")) {
        struct model_matrix all = {0};
        if ((rc = bind_matrix(b, prefix, "attn_qkv", d, q + 2 * kv, bias, &all)))
            return rc;
        l->q = rows_of(&all, 0, q);
        l->k = rows_of(&all, q, kv);
        l->v = rows_of(&all, q + kv, kv);
    } else if ((rc = bind_matrix(b, prefix, "attn_q", d, q, bias, &l->q)) ||
               (rc = bind_matrix(b, prefix, "attn_k", d, kv, bias, &l->k)) ||
               (rc = bind_matrix(b, prefix, "attn_v", d, kv, bias, &l->v))) {
        return rc;
    }
    if (b->arch->head_norm &&
        (rc = bind_norm(b, prefix, "attn_q_norm", m->head_size, MUST, &l->q_norm)) == 0)
        rc = bind_norm(b, prefix, "attn_k_norm", m->head_size, MUST, &l->k_norm);
    else if (!b->arch->head_norm &&
             (rc = bind_norm(b, prefix, "attn_q_norm", q, MAY, &l->q_norm)) == 0)
        rc = bind_norm(b, prefix, "attn_k_norm", kv, l->q_norm.w ? MUST : MAY, &l->k_norm);
    if (rc)
        return rc;
    return bind_matrix(b, prefix, "attn_output", q, d, bias, &l->o);
}

static int bind_feed_forward(const struct binder *b, const char *prefix, struct model_layer *l)
{
    const bool bias = b->arch->linear_bias;
    const uint64_t d = b->m->n_embd, ff = b->m->n_ff;
    int rc;
    if (b->arch->gated && !has_tensor(b, prefix, "ffn_gate.weight")) {
        struct model_matrix both = {0}; /* the rows of the gate come first */
        if ((rc = bind_matrix(b, prefix, "ffn_up", d, 2 * ff, bias, &both)))
            return rc;
        l->gate = rows_of(&both, 0, ff);
        l->up = rows_of(&both, ff, ff);
    } else {
        if (b->arch->gated && (rc = bind_matrix(b, prefix, "ffn_gate", d, ff, bias, &l->gate)))
            return rc;
        if ((rc = bind_matrix(b, prefix, "ffn_up", d, ff, bias, &l->up)))
            return rc;
    }
    return bind_matrix(b, prefix, "ffn_down", ff, d, bias, &l->down);
}

static int bind_norms(const struct binder *b, const char *prefix, uint32_t i,
                      struct model_layer *l)
{
    const uint64_t d = b->m->n_embd;
    int rc;
    if (b->arch->post_norm) {
        if ((rc = bind_norm(b, prefix, "attn_output_norm", d, MUST, &l->attn_stream)) ||
            (rc = bind_norm(b, prefix, "attn_norm_2", d, MAY, &l->attn_again)))
            return rc;
        return bind_norm(b, prefix, "layer_output_norm", d, MUST, &l->ffn_stream);
    }
    bool first_absent = i == 0 && b->arch->first_attn_in_absent;
    if ((rc = bind_norm(b, prefix, "attn_norm", d, first_absent ? MAY : MUST, &l->attn_in)) ||
        (rc = bind_norm(b, prefix, "ffn_norm", d, MUST, &l->ffn_in)) || !b->arch->branch_norm)
        return rc;
    if ((rc = bind_norm(b, prefix, "post_attention_norm", d, MUST, &l->attn_out)))
        return rc;
    return bind_norm(b, prefix, "post_ffw_norm", d, MUST, &l->ffn_out);
}

/* Which layers see a window only, and how far: a token's own place does not count. */
static int bind_windows(const struct binder *b)
{
    struct model *m = b->m;
    uint32_t span = 0, period = b->arch->window_period;
    int rc;
    if ((rc = get_uint(b, "attention.sliding_window", MAX_CTX, &span)) ||
        (rc = get_uint(b, "attention.sliding_window_pattern", MAX_LAYERS, &period)))
        return rc;
    if (span == 0)
        return 0;
    if (b->arch->window_period == 0)
        return err_set(b->e, KITH_EUNSUPPORTED,
                       "key '%s.attention.sliding_window' is %u; this architecture is computed "
                       "without windows",
                       m->arch, span);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        bool sees_all = period == 0 || i % period == (b->arch->first_sees_all ? 0 : period - 1);
        if (sees_all)
            continue;
        m->layers[i].window = m->causal ? span - 1 : span / 2;
        m->layers[i].rotary = 1;
        if (m->layers[i].window == 0)
            return err_set(b->e, KITH_EUNSUPPORTED,
                           "key '%s.attention.sliding_window' is %u; 2 or more is expected",
                           m->arch, span);
    }
    return 0;
}

static int bind_layers(const struct binder *b)
{
    struct model *m = b->m;
    m->layers = mem_calloc(m->n_layers, sizeof *m->layers);
    if (!m->layers)
        return err_set(b->e, KITH_ENOMEM, "out of memory for %u layers", m->n_layers);
    int rc = bind_windows(b);
    for (uint32_t i = 0; i < m->n_layers && !rc; i++) {
        char prefix[24];
        snprintf(prefix, sizeof prefix, "blk.%u.", i);
        struct model_layer *l = &m->layers[i];
        if (!(rc = bind_attention(b, prefix, l)) && !(rc = bind_feed_forward(b, prefix, l)))
            rc = bind_norms(b, prefix, i, l);
    }
    m->whole_qk_norm = !rc && !b->arch->head_norm && m->layers[0].q_norm.w;
    return rc;
}

/* --- what stands behind the pooled vector ---------------------------------------------------
 */

static int bind_dense(const struct binder *b, const char *stem, uint32_t in, bool tanh)
{
    struct model *m = b->m;
    char name[TENSOR_NAME_MAX];
    snprintf(name, sizeof name, "%s.weight", stem);
    const struct tensor *t = need(b, name);
    if (!t)
        return KITH_EFORMAT;
    struct model_dense *dense = &m->dense[m->n_dense];
    uint64_t rows = t->ne[1] > MAX_EMBD ? MAX_EMBD : t->ne[1];
    int rc = bind_matrix(b, "", stem, in, rows, false, &dense->matrix);
    if (rc)
        return rc;
    dense->tanh = tanh;
    m->n_dense++;
    return 0;
}

static int bind_output(const struct binder *b)
{
    struct model *m = b->m;
    uint32_t width = m->n_embd;
    int rc = 0;
    if (m->pooling != POOLING_RANK) {
        static const char *const stems[DENSE_MAX] = {"dense_2", "dense_3"};
        for (int i = 0; i < DENSE_MAX && !rc && has_tensor(b, stems[i], ".weight"); i++) {
            rc = bind_dense(b, stems[i], width, false);
            width = rc ? 0 : (uint32_t)m->dense[i].matrix.n_rows;
        }
        return rc;
    }
    if (has_tensor(b, "cls", ".weight")) {
        rc = bind_dense(b, "cls", width, true);
        width = rc ? 0 : (uint32_t)m->dense[0].matrix.n_rows;
    }
    if (rc || (rc = bind_dense(b, "cls.output", width, false)))
        return rc;
    uint64_t n = m->dense[m->n_dense - 1].matrix.n_rows;
    if (n == 1 || (n == 2 && m->causal))
        return 0;
    return err_set(b->e, KITH_EUNSUPPORTED,
                   "tensor 'cls.output.weight' has %" PRIu64
                   " labels; a model that ranks has one%s",
                   n, m->causal ? ", or two (yes and no)" : "");
}

int model_bind(struct model *m, const struct gguf *g, struct err *e)
{
    memset(m, 0, sizeof *m);
    struct binder b = {.m = m, .g = g, .e = e};
    int rc = bind_keys(&b);
    if (!rc)
        rc = bind_tables(&b);
    if (!rc)
        rc = bind_layers(&b);
    if (!rc)
        rc = bind_output(&b);
    if (rc)
        model_unbind(m);
    return rc;
}
