/* config.json: which family, its dimensions, and everything in it that would change vectors and
 * is not computed. Keys are those that transformers and the models' own code write; where both
 * spell one thing differently, both are read. */

#include <stdio.h>
#include <string.h>

#include "tools/hf_parts.h"

static int check_heads(struct hf_model *m, struct err *e)
{
    if (m->n_embd % m->n_heads)
        return err_set(e, KITH_EFORMAT, "config.json: %u features do not divide into %u heads",
                       m->n_embd, m->n_heads);
    m->n_kv_heads = m->n_heads;
    m->head_dim = m->n_embd / m->n_heads;
    return 0;
}

static int read_eps(struct hf_model *m, const json_t *config, const char *key, double otherwise,
                    struct err *e)
{
    const json_t *eps = json_object_get(config, key);
    m->norm_eps = (float)(json_is_number(eps) ? json_number_value(eps) : otherwise);
    if (!(m->norm_eps > 0 && m->norm_eps < 1))
        return err_set(e, KITH_EFORMAT, "config.json: '%s' is %g", key, (double)m->norm_eps);
    return 0;
}

/* --- rotary positions --- */

/* Only the plain form and the linear one are computed. */
static int read_rope_scaling(const json_t *scaling, float *factor, struct err *e)
{
    *factor = 1;
    if (!scaling || json_is_null(scaling))
        return 0;
    const char *type = hf_text(scaling, "rope_type");
    type = type ? type : hf_text(scaling, "type");
    if (!type || strcmp(type, "default") == 0)
        return 0;
    if (strcmp(type, "linear") != 0)
        return err_set(e, KITH_EUNSUPPORTED,
                       "config.json: the rope scaling is '%s'; 'default' and 'linear' can be "
                       "converted",
                       type);
    return hf_want_number(scaling, "factor", 1, factor, e);
}

/* The base of one kind of layers: from rope_parameters (by kind, or one for all), else from the
 * older key of its own. */
static int read_rope(const json_t *config, const char *kind, const char *older,
                     double otherwise, float *base, float *factor, struct err *e)
{
    const json_t *rope = json_object_get(config, "rope_parameters");
    const json_t *of_kind = kind ? json_object_get(rope, kind) : NULL;
    rope = of_kind ? of_kind : rope;
    int rc;
    if (json_is_object(rope) && json_object_get(rope, "rope_theta"))
        rc = hf_want_number(rope, "rope_theta", otherwise, base, e);
    else
        rc = hf_want_number(config, older, otherwise, base, e);
    if (!rc)
        rc = read_rope_scaling(json_is_object(rope) ? rope : NULL, factor, e);
    float part = 1;
    if (!rc)
        rc = hf_want_number(json_is_object(rope) ? rope : config, "partial_rotary_factor", 1,
                            &part, e);
    if (!rc && part != 1)
        rc = err_set(e, KITH_EUNSUPPORTED,
                     "config.json: 'partial_rotary_factor' is %g; only 1 can be converted",
                     (double)part);
    return rc;
}

/* --- local layers --- */

/* The scale of positions is one for all layers. */
static int refuse_scaled(const struct hf_model *m, float local_factor, struct err *e)
{
    if (m->rope_factor != 1 || local_factor != 1)
        return err_set(
            e, KITH_EUNSUPPORTED,
            "config.json: the rope of global layers is scaled by %g, of local ones by "
            "%g; in a model that has both only 1 can be converted",
            (double)m->rope_factor, (double)local_factor);
    return 0;
}

/* Which layers are global must be each pattern-th: the last of each (`last`), or the first. */
static int check_layer_types(const struct hf_model *m, const json_t *config, bool last,
                             struct err *e)
{
    const json_t *types = json_object_get(config, "layer_types");
    if (!types || json_is_null(types))
        return 0;
    if (json_array_size(types) != m->n_layers)
        return err_set(e, KITH_EFORMAT, "config.json: 'layer_types' names %zu layers of %u",
                       json_array_size(types), m->n_layers);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        bool global = (last ? i + 1 : i) % m->window_pattern == 0;
        const char *want = global ? "full_attention" : "sliding_attention";
        if (!type || strcmp(type, want) != 0)
            return err_set(e, KITH_EUNSUPPORTED,
                           "config.json: layer %u is '%s'; with a global layer in %u it must "
                           "be '%s'",
                           i, type ? type : "(no text)", m->window_pattern, want);
    }
    return 0;
}

/* The distance from one global layer to the next, where the list alone tells it. */
static uint32_t pattern_of(const json_t *config, bool last, uint32_t otherwise)
{
    size_t i;
    const json_t *types = json_object_get(config, "layer_types");
    for (i = last ? 0 : 1; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type && strcmp(type, "full_attention") == 0)
            return (uint32_t)(last ? i + 1 : i);
    }
    return otherwise;
}

/* --- the families --- */

/* What all families but nomic-embed-text call by the same names. */
static int read_sizes(struct hf_model *m, const json_t *config, struct err *e)
{
    int rc;
    if ((rc = hf_need_count(config, "num_hidden_layers", NULL, &m->n_layers, e)) ||
        (rc = hf_need_count(config, "hidden_size", NULL, &m->n_embd, e)) ||
        (rc = hf_need_count(config, "num_attention_heads", NULL, &m->n_heads, e)) ||
        (rc = hf_need_count(config, "intermediate_size", NULL, &m->n_ff, e)) ||
        (rc = hf_need_count(config, "max_position_embeddings", NULL, &m->n_ctx, e)) ||
        (rc = hf_need_count(config, "vocab_size", NULL, &m->n_vocab, e)))
        return rc;
    return 0;
}

static int read_bert_sizes(struct hf_model *m, const json_t *config, struct err *e)
{
    int rc;
    if ((rc = hf_need_text(config, "hidden_act", "gelu", e)) ||
        (rc = read_sizes(m, config, e)) ||
        (rc = hf_need_count(config, "type_vocab_size", NULL, &m->n_types, e)) ||
        (rc = read_eps(m, config, "layer_norm_eps", 1e-12, e)))
        return rc;
    return check_heads(m, e);
}

/* jina-embeddings-v2: BERT with ALiBi and a gated feed-forward part. */
static int read_jina(struct hf_model *m, const json_t *config, struct err *e)
{
    m->family = HF_JINA_BERT_V2;
    m->arch = "jina-bert-v2";
    int rc = hf_need_text(config, "feed_forward_type", "geglu", e);
    return rc ? rc : read_bert_sizes(m, config, e);
}

static int read_bert(struct hf_model *m, const json_t *config, struct err *e)
{
    const char *positions = hf_text(config, "position_embedding_type");
    if (positions && strcmp(positions, "alibi") == 0)
        return read_jina(m, config, e);
    m->family = HF_BERT;
    m->arch = "bert";
    int rc = hf_need_text(config, "position_embedding_type", "absolute", e);
    return rc ? rc : read_bert_sizes(m, config, e);
}

static int read_roberta(struct hf_model *m, const json_t *config, struct err *e)
{
    m->family = HF_BERT;
    m->arch = "bert";
    int rc = hf_need_text(config, "position_embedding_type", "absolute", e);
    if (!rc)
        rc = read_bert_sizes(m, config, e);
    if (rc)
        return rc;
    const json_t *pad = json_object_get(config, "pad_token_id");
    json_int_t id = pad ? json_integer_value(pad) : 1;
    if (id < 0 || id + 1 >= (json_int_t)m->n_ctx || (pad && !json_is_integer(pad)))
        return err_set(e, KITH_EFORMAT,
                       "config.json: 'pad_token_id' is %lld, with %u position embeddings",
                       (long long)id, m->n_ctx);
    m->unused_positions = (uint32_t)id + 1;
    m->n_ctx -= m->unused_positions;
    return 0;
}

/* nomic-embed-text: its own code's names (n_embd) or those of transformers (hidden_size). */
static int read_nomic(struct hf_model *m, const json_t *config, struct err *e)
{
    static const char *const without[] = {"qkv_proj_bias",  "mlp_fc1_bias",
                                          "mlp_fc2_bias",   "prenorm",
                                          "use_rms_norm",   "rotary_emb_interleaved",
                                          "parallel_block", "causal",
                                          "attention_bias", "mlp_bias"};
    m->family = HF_NOMIC_BERT;
    m->arch = "nomic-bert";
    int rc = 0;
    for (size_t i = 0; i < sizeof without / sizeof *without && !rc; i++)
        rc = hf_need_bool(config, without[i], false, e);
    const json_t *every = json_object_get(config, "moe_every_n_layers");
    if (!rc && json_integer_value(every) > 0)
        rc =
            err_set(e, KITH_EUNSUPPORTED,
                    "config.json: 'moe_every_n_layers' is %lld; a model with experts cannot be "
                    "converted",
                    (long long)json_integer_value(every));
    uint32_t trained;
    float part = 1;
    if (rc || (rc = hf_need_text(config, "activation_function", "swiglu", e)) ||
        (rc = hf_need_text(config, "hidden_act", "silu", e)) ||
        (rc = hf_need_count(config, "n_layer", "num_hidden_layers", &m->n_layers, e)) ||
        (rc = hf_need_count(config, "n_embd", "hidden_size", &m->n_embd, e)) ||
        (rc = hf_need_count(config, "n_head", "num_attention_heads", &m->n_heads, e)) ||
        (rc = hf_need_count(config, "n_inner", "intermediate_size", &m->n_ff, e)) ||
        (rc = hf_need_count(config, "n_positions", "max_position_embeddings", &m->n_ctx, e)) ||
        (rc = hf_need_count(config, "vocab_size", NULL, &m->n_vocab, e)) ||
        (rc = hf_need_count(config, "type_vocab_size", NULL, &m->n_types, e)) ||
        (rc = read_eps(m, config,
                       json_object_get(config, "layer_norm_epsilon") ? "layer_norm_epsilon"
                                                                     : "layer_norm_eps",
                       1e-12, e)) ||
        (rc = read_rope(config, NULL, "rotary_emb_base", 1000, &m->rope_base, &m->rope_factor,
                        e)) ||
        (rc = hf_want_number(config, "rotary_emb_fraction", 1, &part, e)) ||
        (rc = hf_want_count(config, "max_trained_positions", m->n_ctx, &trained, e)))
        return rc;
    if (part != 1)
        return err_set(e, KITH_EUNSUPPORTED,
                       "config.json: 'rotary_emb_fraction' is %g; only 1 can be converted",
                       (double)part);
    /* Past the trained length the original changes its base with the length of the text
     * (rotary_scaling_factor); that is not computed, so the context ends there. */
    if (m->n_ctx > trained)
        m->n_ctx = trained;
    return check_heads(m, e);
}

static int read_modern(struct hf_model *m, const json_t *config, struct err *e)
{
    static const char *const without[] = {"norm_bias", "attention_bias", "mlp_bias"};
    m->family = HF_MODERN_BERT;
    m->arch = "modern-bert";
    int rc = 0;
    for (size_t i = 0; i < sizeof without / sizeof *without && !rc; i++)
        rc = hf_need_bool(config, without[i], false, e);
    float local_factor;
    if (rc || (rc = hf_need_text(config, "hidden_activation", "gelu", e)) ||
        (rc = hf_need_text(config, "position_embedding_type", "absolute", e)) ||
        (rc = read_sizes(m, config, e)) ||
        (rc = hf_need_count(config, "local_attention", NULL, &m->window, e)) ||
        (rc = hf_want_count(config, "global_attn_every_n_layers", pattern_of(config, false, 3),
                            &m->window_pattern, e)) ||
        (rc = read_eps(m, config, "norm_eps", 1e-5, e)) ||
        (rc = read_rope(config, "full_attention", "global_rope_theta", 160000, &m->rope_base,
                        &m->rope_factor, e)) ||
        (rc = read_rope(config, "sliding_attention", "local_rope_theta", 10000,
                        &m->rope_base_local, &local_factor, e)) ||
        (rc = check_layer_types(m, config, false, e)))
        return rc;
    rc = refuse_scaled(m, local_factor, e);
    return rc ? rc : check_heads(m, e);
}

/* What Gemma and Qwen have alike. */
static int read_decoder_sizes(struct hf_model *m, const json_t *config, struct err *e)
{
    m->rms_norm = true;
    m->tied = !json_is_false(json_object_get(config, "tie_word_embeddings"));
    int rc;
    if ((rc = hf_need_bool(config, "attention_bias", false, e)) ||
        (rc = hf_need_count(config, "num_hidden_layers", NULL, &m->n_layers, e)) ||
        (rc = hf_need_count(config, "hidden_size", NULL, &m->n_embd, e)) ||
        (rc = hf_need_count(config, "num_attention_heads", NULL, &m->n_heads, e)) ||
        (rc = hf_need_count(config, "num_key_value_heads", "num_attention_heads",
                            &m->n_kv_heads, e)) ||
        (rc = hf_need_count(config, "intermediate_size", NULL, &m->n_ff, e)) ||
        (rc = hf_need_count(config, "max_position_embeddings", NULL, &m->n_ctx, e)) ||
        (rc = hf_need_count(config, "vocab_size", NULL, &m->n_vocab, e)) ||
        (rc = hf_need_count(config, "head_dim", NULL, &m->head_dim, e)) ||
        (rc = read_eps(m, config, "rms_norm_eps", 1e-6, e)))
        return rc;
    if (m->n_heads % m->n_kv_heads)
        return err_set(e, KITH_EFORMAT,
                       "config.json: %u heads do not share %u heads of keys and values",
                       m->n_heads, m->n_kv_heads);
    return 0;
}

static int read_gemma(struct hf_model *m, const json_t *config, struct err *e)
{
    m->family = HF_GEMMA_EMBEDDING;
    m->arch = "gemma-embedding";
    int rc = read_decoder_sizes(m, config, e);
    if (rc)
        return rc;
    if (!hf_is_true(config, "use_bidirectional_attention"))
        return err_set(e, KITH_EUNSUPPORTED,
                       "config.json: 'use_bidirectional_attention' is not true; of gemma3_text "
                       "only embedding models can be converted");
    static const char no_cap[] = "scores that are capped cannot be converted";
    uint32_t scalar;
    const char *pattern = json_object_get(config, "sliding_window_pattern")
                              ? "sliding_window_pattern"
                              : "_sliding_window_pattern";
    float local_factor;
    if ((rc = hf_need_text(config, "hidden_activation", "gelu_pytorch_tanh", e)) ||
        (rc = hf_need_absent(config, "attn_logit_softcapping", no_cap, e)) ||
        (rc = hf_need_absent(config, "final_logit_softcapping", no_cap, e)) ||
        (rc = hf_need_count(config, "query_pre_attn_scalar", NULL, &scalar, e)) ||
        (rc = hf_need_count(config, "sliding_window", NULL, &m->window, e)) ||
        (rc = hf_want_count(config, pattern, pattern_of(config, true, 6), &m->window_pattern,
                            e)) ||
        (rc = read_rope(config, "full_attention", "rope_theta", 1e6, &m->rope_base,
                        &m->rope_factor, e)) ||
        (rc = read_rope(config, "sliding_attention", "rope_local_base_freq", 10000,
                        &m->rope_base_local, &local_factor, e)) ||
        (rc = check_layer_types(m, config, true, e)))
        return rc;
    if (!json_is_object(json_object_get(config, "rope_parameters")))
        rc = read_rope_scaling(json_object_get(config, "rope_scaling"), &m->rope_factor, e);
    if (!rc)
        rc = refuse_scaled(m, local_factor, e);
    if (!rc && scalar != m->head_dim)
        rc =
            err_set(e, KITH_EUNSUPPORTED,
                    "config.json: 'query_pre_attn_scalar' is %u; %u, which is head_dim, can be "
                    "converted",
                    scalar, m->head_dim);
    return rc;
}

static int read_qwen3(struct hf_model *m, const json_t *config, struct err *e)
{
    m->family = HF_QWEN3;
    m->arch = "qwen3";
    m->causal = true;
    int rc = read_decoder_sizes(m, config, e);
    if (rc || (rc = hf_need_text(config, "hidden_act", "silu", e)) ||
        (rc = hf_need_bool(config, "use_sliding_window", false, e)) ||
        (rc = read_rope(config, NULL, "rope_theta", 10000, &m->rope_base, &m->rope_factor, e)))
        return rc;
    if (!json_is_object(json_object_get(config, "rope_parameters")))
        rc = read_rope_scaling(json_object_get(config, "rope_scaling"), &m->rope_factor, e);
    const json_t *types = json_object_get(config, "layer_types");
    for (size_t i = 0; i < json_array_size(types) && !rc; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, "full_attention") != 0)
            rc = err_set(e, KITH_EUNSUPPORTED,
                         "config.json: layer %zu is '%s'; of qwen3 only 'full_attention' can "
                         "be converted",
                         i, type ? type : "(no text)");
    }
    return rc;
}

static const struct family {
    const char *model_type;
    int (*read)(struct hf_model *m, const json_t *config, struct err *e);
} families[] = {
    {"bert", read_bert},        {"roberta", read_roberta},   {"xlm-roberta", read_roberta},
    {"nomic_bert", read_nomic}, {"modernbert", read_modern}, {"gemma3_text", read_gemma},
    {"qwen3", read_qwen3},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

static int refuse_family(const char *type, struct err *e)
{
    char known[256] = "";
    size_t n = 0;
    for (size_t i = 0; i < N_FAMILIES; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%s'%s'",
                              i == 0               ? ""
                              : i + 1 < N_FAMILIES ? ", "
                                                   : " and ",
                              families[i].model_type);
    return err_set(e, KITH_EUNSUPPORTED,
                   "config.json: 'model_type' is '%.64s'; %s can be converted",
                   type ? type : "(no text)", known);
}

/* --- heads and dimensions --- */

/* A cross-encoder says so by its class. */
static int read_head(struct hf_model *m, const json_t *config, struct err *e)
{
    const char *class =
        json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    const char *found = class ? strstr(class, "ForSequenceClassification") : NULL;
    if (!found)
        return 0;
    if (m->family != HF_BERT)
        return err_set(e, KITH_EUNSUPPORTED,
                       "config.json: the class is '%.64s'; cross-encoders of BERT, RoBERTa and "
                       "XLM-R can be converted",
                       class);
    const json_t *labels = json_object_get(config, "id2label");
    size_t n = labels ? json_object_size(labels) : 0;
    const json_t *count = json_object_get(config, "num_labels");
    if (!labels)
        n = json_is_integer(count) ? (size_t)json_integer_value(count) : 2;
    if (n != 1)
        return err_set(
            e, KITH_EUNSUPPORTED,
            "config.json: the classifier has %zu labels; a cross-encoder with one can "
            "be converted",
            n);
    m->head = strncmp(class, "Bert", 4) == 0 ? HF_HEAD_POOLER : HF_HEAD_CLASSIFIER;
    return 0;
}

static int read_matryoshka(struct hf_model *m, const json_t *config, struct err *e)
{
    const json_t *dims = json_object_get(config, "matryoshka_dims");
    if (!dims)
        dims = json_object_get(config, "matryoshka_dimensions");
    if (!dims || json_is_null(dims))
        return 0;
    if (!json_is_array(dims) || json_array_size(dims) > HF_MATRYOSHKA_MAX)
        return err_set(e, KITH_EFORMAT,
                       "config.json: the matryoshka dimensions are no list of at most %d",
                       HF_MATRYOSHKA_MAX);
    for (size_t i = 0; i < json_array_size(dims); i++) {
        json_int_t v = json_integer_value(json_array_get(dims, i));
        if (v < 1 || v > m->n_embd)
            return err_set(e, KITH_EFORMAT,
                           "config.json: a matryoshka dimension is %lld, of a model of %u",
                           (long long)v, m->n_embd);
        m->matryoshka[m->n_matryoshka++] = (uint32_t)v;
    }
    return 0;
}

int hf_read_config(struct hf_model *m, const char *dir, struct err *e)
{
    json_t *config;
    int rc = hf_json_load(&config, dir, "config.json", e);
    if (rc)
        return rc;
    m->rope_factor = 1;
    m->yes = m->no = -1;
    const json_t *said = json_object_get(config, "model_type");
    const char *type = said ? json_string_value(said) : "bert";
    const struct family *f = NULL;
    for (size_t i = 0; i < N_FAMILIES && type && !f; i++)
        if (strcmp(families[i].model_type, type) == 0)
            f = &families[i];
    rc = f ? f->read(m, config, e) : refuse_family(type, e);
    if (!rc)
        rc = read_head(m, config, e);
    if (!rc)
        rc = read_matryoshka(m, config, e);
    json_decref(config);
    return rc;
}
