#include "tools/hf_tensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/half.h"

/* A dimension of a tensor, by what it counts. */
enum dim {
    NONE, /* a vector has no rows */
    EMBD,
    EMBD_3,
    FF,
    FF_2,
    Q,  /* heads times their size */
    KV, /* the same of keys and values */
    HEAD,
    VOCAB,
    POSITIONS,
    TYPES,
    LABELS,
    N_DIMS
};

enum {
    F32 = 1 << 0,       /* whatever type is asked for: few values, or read one by one */
    NOT_FIRST = 1 << 1, /* the first layer has none */
    SECOND = 1 << 2,    /* the source has twice the rows, and these are the second half */
    FIRST = 1 << 3,     /* the first half */
    PLUS_1 = 1 << 4,    /* Gemma's norms multiply by 1 + weight */
    BEHIND = 1 << 5     /* rows that are never read lie before (hf_model.unused_positions) */
};

struct row {
    const char *from, *to;
    enum dim out, in; /* a vector has `in` values */
    unsigned flags;
};

struct table {
    const struct row *before;
    const char *layer_from; /* "encoder.layer": its number follows */
    const struct row *layer, *after;
};

/* --- the tables; a row without names ends each --- */

static const struct row end[] = {{NULL, NULL, NONE, NONE, 0}};

#define LINEAR(from_, to_, out_, in_)                                                          \
    {from_ ".weight", to_ ".weight", out_, in_, 0},                                            \
    {                                                                                          \
        from_ ".bias", to_ ".bias", NONE, out_, F32                                            \
    }
#define MATRIX(from_, to_, out_, in_)                                                          \
    {                                                                                          \
        from_ ".weight", to_ ".weight", out_, in_, 0                                           \
    }
#define NORM(from_, to_)                                                                       \
    {from_ ".weight", to_ ".weight", NONE, EMBD, F32},                                         \
    {                                                                                          \
        from_ ".bias", to_ ".bias", NONE, EMBD, F32                                            \
    }
#define SCALE(from_, to_, in_, flags_)                                                         \
    {                                                                                          \
        from_ ".weight", to_ ".weight", NONE, in_, F32 | (flags_)                              \
    }
#define END                                                                                    \
    {                                                                                          \
        NULL, NULL, NONE, NONE, 0                                                              \
    }

#define BERT_EMBEDDINGS                                                                        \
    {"embeddings.token_type_embeddings.weight", "token_types.weight", TYPES, EMBD, F32},       \
        NORM("embeddings.LayerNorm", "token_embd_norm")

#define BERT_ATTENTION                                                                         \
    LINEAR("attention.self.query", "attn_q", EMBD, EMBD),                                      \
        LINEAR("attention.self.key", "attn_k", EMBD, EMBD),                                    \
        LINEAR("attention.self.value", "attn_v", EMBD, EMBD),                                  \
        LINEAR("attention.output.dense", "attn_output", EMBD, EMBD),                           \
        NORM("attention.output.LayerNorm", "attn_output_norm")

static const struct row bert_before[] = {
    MATRIX("embeddings.word_embeddings", "token_embd", VOCAB, EMBD),
    {"embeddings.position_embeddings.weight", "position_embd.weight", POSITIONS, EMBD,
     F32 | BEHIND},
    BERT_EMBEDDINGS,
    END,
};
static const struct row bert_layer[] = {
    BERT_ATTENTION,
    LINEAR("intermediate.dense", "ffn_up", FF, EMBD),
    LINEAR("output.dense", "ffn_down", EMBD, FF),
    NORM("output.LayerNorm", "layer_output_norm"),
    END,
};
static const struct row pooler_head[] = {
    {"pooler.dense.weight", "cls.weight", EMBD, EMBD, F32},
    {"pooler.dense.bias", "cls.bias", NONE, EMBD, F32},
    {"classifier.weight", "cls.output.weight", LABELS, EMBD, F32},
    {"classifier.bias", "cls.output.bias", NONE, LABELS, F32},
    END,
};
static const struct row classifier_head[] = {
    {"classifier.dense.weight", "cls.weight", EMBD, EMBD, F32},
    {"classifier.dense.bias", "cls.bias", NONE, EMBD, F32},
    {"classifier.out_proj.weight", "cls.output.weight", LABELS, EMBD, F32},
    {"classifier.out_proj.bias", "cls.output.bias", NONE, LABELS, F32},
    END,
};

/* fc12 is the gate: fc2(silu(fc12 x) fc11 x). */
static const struct row nomic_before[] = {
    MATRIX("embeddings.word_embeddings", "token_embd", VOCAB, EMBD),
    {"embeddings.token_type_embeddings.weight", "token_types.weight", TYPES, EMBD, F32},
    NORM("emb_ln", "token_embd_norm"),
    END,
};
static const struct row nomic_layer[] = {
    MATRIX("attn.Wqkv", "attn_qkv", EMBD_3, EMBD),
    MATRIX("attn.out_proj", "attn_output", EMBD, EMBD),
    NORM("norm1", "attn_output_norm"),
    MATRIX("mlp.fc11", "ffn_up", FF, EMBD),
    MATRIX("mlp.fc12", "ffn_gate", FF, EMBD),
    MATRIX("mlp.fc2", "ffn_down", EMBD, FF),
    NORM("norm2", "layer_output_norm"),
    END,
};

/* The first half of gated_layers is the gate; of up_gated_layer, in the models that also have
 * norms on queries and keys, it is the second. */
static const struct row jina_before[] = {
    MATRIX("embeddings.word_embeddings", "token_embd", VOCAB, EMBD),
    BERT_EMBEDDINGS,
    END,
};
static const struct row jina_layer[] = {
    BERT_ATTENTION,
    {"mlp.gated_layers.weight", "ffn_gate.weight", FF, EMBD, FIRST},
    {"mlp.gated_layers.weight", "ffn_up.weight", FF, EMBD, SECOND},
    LINEAR("mlp.wo", "ffn_down", EMBD, FF),
    NORM("mlp.layernorm", "layer_output_norm"),
    END,
};
static const struct row jina_qk_layer[] = {
    BERT_ATTENTION,
    NORM("attention.self.layer_norm_q", "attn_q_norm"),
    NORM("attention.self.layer_norm_k", "attn_k_norm"),
    NORM("layer_norm_1", "attn_norm_2"),
    {"mlp.up_gated_layer.weight", "ffn_up.weight", FF, EMBD, FIRST},
    {"mlp.up_gated_layer.weight", "ffn_gate.weight", FF, EMBD, SECOND},
    LINEAR("mlp.down_layer", "ffn_down", EMBD, FF),
    NORM("layer_norm_2", "layer_output_norm"),
    END,
};

/* The first half of Wi is the gate, as GGUF's fused ffn_up has it for this architecture. */
static const struct row modern_before[] = {
    MATRIX("embeddings.tok_embeddings", "token_embd", VOCAB, EMBD),
    SCALE("embeddings.norm", "token_embd_norm", EMBD, 0),
    END,
};
static const struct row modern_layer[] = {
    SCALE("attn_norm", "attn_norm", EMBD, NOT_FIRST),
    MATRIX("attn.Wqkv", "attn_qkv", EMBD_3, EMBD),
    MATRIX("attn.Wo", "attn_output", EMBD, EMBD),
    SCALE("mlp_norm", "ffn_norm", EMBD, 0),
    MATRIX("mlp.Wi", "ffn_up", FF_2, EMBD),
    MATRIX("mlp.Wo", "ffn_down", EMBD, FF),
    END,
};
static const struct row modern_after[] = {SCALE("final_norm", "output_norm", EMBD, 0), END};

#define DECODER_ATTENTION(flags)                                                               \
    MATRIX("self_attn.q_proj", "attn_q", Q, EMBD),                                             \
        MATRIX("self_attn.k_proj", "attn_k", KV, EMBD),                                        \
        MATRIX("self_attn.v_proj", "attn_v", KV, EMBD),                                        \
        MATRIX("self_attn.o_proj", "attn_output", EMBD, Q),                                    \
        SCALE("self_attn.q_norm", "attn_q_norm", HEAD, flags),                                 \
        SCALE("self_attn.k_norm", "attn_k_norm", HEAD, flags)
#define DECODER_FF                                                                             \
    MATRIX("mlp.gate_proj", "ffn_gate", FF, EMBD), MATRIX("mlp.up_proj", "ffn_up", FF, EMBD),  \
        MATRIX("mlp.down_proj", "ffn_down", EMBD, FF)

static const struct row decoder_before[] = {
    MATRIX("embed_tokens", "token_embd", VOCAB, EMBD),
    END,
};
static const struct row gemma_layer[] = {
    SCALE("input_layernorm", "attn_norm", EMBD, PLUS_1),
    DECODER_ATTENTION(PLUS_1),
    SCALE("post_attention_layernorm", "post_attention_norm", EMBD, PLUS_1),
    SCALE("pre_feedforward_layernorm", "ffn_norm", EMBD, PLUS_1),
    DECODER_FF,
    SCALE("post_feedforward_layernorm", "post_ffw_norm", EMBD, PLUS_1),
    END,
};
static const struct row gemma_after[] = {SCALE("norm", "output_norm", EMBD, PLUS_1), END};
static const struct row qwen3_layer[] = {
    SCALE("input_layernorm", "attn_norm", EMBD, 0),
    DECODER_ATTENTION(0),
    SCALE("post_attention_layernorm", "ffn_norm", EMBD, 0),
    DECODER_FF,
    END,
};
static const struct row qwen3_after[] = {SCALE("norm", "output_norm", EMBD, 0), END};

static const struct table tables[] = {
    [HF_BERT] = {bert_before, "encoder.layer", bert_layer, end},
    [HF_NOMIC_BERT] = {nomic_before, "encoder.layers", nomic_layer, end},
    [HF_JINA_BERT_V2] = {jina_before, "encoder.layer", jina_layer, end},
    [HF_MODERN_BERT] = {modern_before, "layers", modern_layer, modern_after},
    [HF_GEMMA_EMBEDDING] = {decoder_before, "layers", gemma_layer, gemma_after},
    [HF_QWEN3] = {decoder_before, "layers", qwen3_layer, qwen3_after},
};

/* --- a plan --- */

struct plan {
    const struct hf_weights *weights;
    const struct hf_model *model;
    enum tensor_type type;
    uint64_t dims[N_DIMS];
    struct hf_part *parts;
    size_t n, cap;
    struct err *e;
};

/* A checkpoint of a bare model names its tensors directly; one with a head puts the model's
 * name before. */
static const char *const prefixes[] = {"", "bert.", "roberta.", "model."};
enum { N_PREFIXES = sizeof prefixes / sizeof *prefixes };

static const struct safetensor *find_source(const struct hf_weights *w, const char *name)
{
    for (size_t i = 0; i < N_PREFIXES; i++) {
        char prefixed[256];
        if (snprintf(prefixed, sizeof prefixed, "%s%s", prefixes[i], name) >=
            (int)sizeof prefixed)
            continue;
        for (size_t f = 0; f < w->n; f++) {
            const struct safetensor *t = safetensors_find(&w->files[f], prefixed);
            if (t)
                return t;
        }
    }
    return NULL;
}

static int check_source(const struct hf_part *p, uint64_t rows, struct err *e)
{
    const struct safetensor *t = p->from;
    unsigned n_dims = rows ? 2 : 1;
    bool fits = t->n_dims == n_dims && t->shape[n_dims - 1] == p->ne0 &&
                (n_dims == 1 || t->shape[0] == rows);
    if (!fits)
        return err_set(e, KITH_EFORMAT,
                       "tensor '%s' has %u dimensions, [%llu, %llu]; [%llu, %llu] is expected",
                       t->name, t->n_dims,
                       (unsigned long long)(t->n_dims > 1 ? t->shape[0] : 1),
                       (unsigned long long)(t->n_dims ? t->shape[t->n_dims > 1] : 0),
                       (unsigned long long)(rows ? rows : 1), (unsigned long long)p->ne0);
    if (strcmp(t->dtype, "F32") != 0 && strcmp(t->dtype, "F16") != 0 &&
        strcmp(t->dtype, "BF16") != 0)
        return err_set(e, KITH_EUNSUPPORTED, "tensor '%s' is %s; F32, F16 or BF16 is needed",
                       t->name, t->dtype);
    return 0;
}

static int refuse_missing(const char *name, uint64_t rows, uint64_t columns, struct err *e)
{
    if (rows)
        return err_set(e, KITH_EFORMAT, "model.safetensors has no tensor '%s' of [%llu, %llu]",
                       name, (unsigned long long)rows, (unsigned long long)columns);
    return err_set(e, KITH_EFORMAT, "model.safetensors has no tensor '%s' of [%llu]", name,
                   (unsigned long long)columns);
}

static struct hf_part *new_part(struct plan *p)
{
    struct hf_part *grown = mem_grow(p->parts, p->n, &p->cap, 64, sizeof *p->parts);
    if (!grown) {
        err_set(p->e, KITH_ENOMEM, "out of memory for %zu tensors", p->n);
        return NULL;
    }
    p->parts = grown;
    memset(&grown[p->n], 0, sizeof *grown);
    return &grown[p->n++];
}

/* What a source is to have: rows (0: a vector) of ne0. */
static int plan_part(struct plan *p, const char *to, const struct safetensor *from,
                     const char *from_name, uint64_t source_rows, uint64_t ne0, uint64_t ne1,
                     enum tensor_type type, struct hf_part **out)
{
    if (!from)
        return refuse_missing(from_name, source_rows, ne0, p->e);
    struct hf_part *part = new_part(p);
    if (!part)
        return KITH_ENOMEM;
    snprintf(part->name, sizeof part->name, "%s", to);
    part->from = from;
    part->n_dims = source_rows ? 2 : 1;
    part->ne0 = ne0;
    part->ne1 = source_rows ? ne1 : 1;
    /* A row that is no multiple of the block cannot be Q8_0. */
    part->type = ne0 % tensor_block_elements(type) ? TENSOR_F16 : type;
    *out = part;
    return check_source(part, source_rows, p->e);
}

static int plan_row(struct plan *p, const struct row *r, const char *from_prefix,
                    const char *to_prefix)
{
    char from[128], to[TENSOR_NAME_MAX];
    snprintf(from, sizeof from, "%s%s", from_prefix, r->from);
    snprintf(to, sizeof to, "%s%s", to_prefix, r->to);
    uint64_t rows = p->dims[r->out], skip = r->flags & BEHIND ? p->model->unused_positions : 0;
    uint64_t source_rows = r->flags & (FIRST | SECOND) ? 2 * rows : rows + skip;
    struct hf_part *part;
    int rc = plan_part(p, to, find_source(p->weights, from), from, source_rows, p->dims[r->in],
                       rows, r->flags & F32 ? TENSOR_F32 : p->type, &part);
    if (rc)
        return rc;
    part->first_row = r->flags & SECOND ? rows : skip;
    part->plus_one = (r->flags & PLUS_1) != 0;
    return 0;
}

static int plan_rows(struct plan *p, const struct row *rows, const char *from_prefix,
                     const char *to_prefix, bool first)
{
    int rc = 0;
    for (const struct row *r = rows; r->from && !rc; r++)
        if (!(first && (r->flags & NOT_FIRST)))
            rc = plan_row(p, r, from_prefix, to_prefix);
    return rc;
}

/* The linear layers behind the pooling, in files of their own. */
static int plan_dense(struct plan *p)
{
    for (unsigned i = 0; i < p->weights->n_dense; i++) {
        const struct hf_dense *d = &p->model->dense[i];
        char to[TENSOR_NAME_MAX];
        snprintf(to, sizeof to, "dense_%u.weight", i + 2);
        struct hf_part *part;
        int rc = plan_part(p, to, safetensors_find(&p->weights->dense[i], "linear.weight"),
                           "linear.weight", d->out, d->in, d->out, p->type, &part);
        if (rc) {
            err_wrap(p->e, "%.64s", d->dir);
            return rc;
        }
    }
    return 0;
}

/* "yes" is the first row, "no" the second. */
static int plan_yes_no(struct plan *p)
{
    const struct hf_model *m = p->model;
    const char *name = m->tied ? "embed_tokens.weight" : "lm_head.weight";
    struct hf_part *part;
    int rc = plan_part(p, "cls.output.weight", find_source(p->weights, name), name, m->n_vocab,
                       m->n_embd, HF_PICKS, TENSOR_F32, &part);
    if (rc)
        return rc;
    part->picked = true;
    part->picks[0] = (uint64_t)m->yes;
    part->picks[1] = (uint64_t)m->no;
    return 0;
}

static int plan_head(struct plan *p)
{
    switch (p->model->head) {
    case HF_HEAD_POOLER:
        return plan_rows(p, pooler_head, "", "", false);
    case HF_HEAD_CLASSIFIER:
        return plan_rows(p, classifier_head, "", "", false);
    case HF_HEAD_YES_NO:
        return plan_yes_no(p);
    default:
        return plan_dense(p);
    }
}

/* --- what is left over --- */

static bool starts(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);
    return n >= k && strcmp(s + n - k, with) == 0;
}

/* Heads for other tasks may lie beside the encoder. Inside it each tensor has a meaning, but
 * for tables that are computed. */
static bool must_be_used(const char *name)
{
    for (size_t i = 1; i < N_PREFIXES; i++)
        if (starts(name, prefixes[i])) {
            name += strlen(prefixes[i]);
            break;
        }
    return (starts(name, "encoder.") || starts(name, "layers.") ||
            starts(name, "embeddings.")) &&
           !ends(name, "position_ids") && !ends(name, "token_type_ids") &&
           !ends(name, "inv_freq");
}

static int check_left_over(const struct plan *p)
{
    for (size_t f = 0; f < p->weights->n; f++)
        for (size_t i = 0; i < p->weights->files[f].n; i++) {
            const struct safetensor *t = &p->weights->files[f].entries[i];
            bool used = !must_be_used(t->name);
            for (size_t k = 0; k < p->n && !used; k++)
                used = p->parts[k].from == t;
            if (!used)
                return err_set(p->e, KITH_EUNSUPPORTED,
                               "tensor '%s' has no place in a %s model of %u layers, and would "
                               "be lost",
                               t->name, p->model->arch, p->model->n_layers);
        }
    return 0;
}

/* --- the whole --- */

static void set_dims(struct plan *p, const struct hf_model *m)
{
    uint64_t *d = p->dims;
    d[EMBD] = m->n_embd;
    d[EMBD_3] = 3 * (uint64_t)m->n_embd;
    d[FF] = m->n_ff;
    d[FF_2] = 2 * (uint64_t)m->n_ff;
    d[Q] = (uint64_t)m->n_heads * m->head_dim;
    d[KV] = (uint64_t)m->n_kv_heads * m->head_dim;
    d[HEAD] = m->head_dim;
    d[VOCAB] = m->n_vocab;
    d[POSITIONS] = m->n_ctx;
    d[TYPES] = m->n_types;
    d[LABELS] = 1;
}

int hf_parts_plan(struct hf_part **parts, size_t *n, const struct hf_weights *w,
                  const struct hf_model *m, enum tensor_type type, struct err *e)
{
    struct plan p = {.weights = w, .model = m, .type = type, .e = e};
    const struct table *t = &tables[m->family];
    const struct row *layer = t->layer;
    if (m->family == HF_JINA_BERT_V2 &&
        find_source(w, "encoder.layer.0.mlp.up_gated_layer.weight"))
        layer = jina_qk_layer;
    set_dims(&p, m);
    int rc = plan_rows(&p, t->before, "", "", false);
    for (uint32_t l = 0; l < m->n_layers && !rc; l++) {
        char from[64], to[32];
        snprintf(from, sizeof from, "%s.%u.", t->layer_from, l);
        snprintf(to, sizeof to, "blk.%u.", l);
        rc = plan_rows(&p, layer, from, to, l == 0);
    }
    if (!rc)
        rc = plan_rows(&p, t->after, "", "", false);
    if (!rc)
        rc = plan_head(&p);
    if (!rc)
        rc = check_left_over(&p);
    if (rc) {
        mem_free(p.parts);
        return rc;
    }
    *parts = p.parts;
    *n = p.n;
    return 0;
}

/* --- values --- */

static float source_value(const struct safetensor *t, size_t i)
{
    if (t->dtype[0] == 'B')
        return half_bf16_to_f32(load_u16(t->data + 2 * i));
    if (t->dtype[1] == '1')
        return half_to_f32(load_u16(t->data + 2 * i));
    return load_f32(t->data + 4 * i);
}

int hf_part_row(const struct hf_part *p, uint64_t row, float *values, struct err *e)
{
    size_t n = (size_t)p->ne0;
    size_t at = (size_t)(p->picked ? p->picks[row] : p->first_row + row) * n;
    for (size_t i = 0; i < n; i++) {
        values[i] = source_value(p->from, at + i);
        if (p->plus_one)
            values[i] += 1;
        if (!isfinite(values[i]))
            return err_set(e, KITH_EFORMAT, "tensor '%s' holds a value that is not finite",
                           p->from->name);
    }
    return 0;
}
