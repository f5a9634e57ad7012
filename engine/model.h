#pragma once
/* A transformer that turns token ids into one vector or score a text: its description bound to
 * the tensors of a model file, its plain forward pass, and the fast one.
 *
 * One description serves every architecture; a table in model_architecture.c says which parts
 * each has. h is the stream of one token, n_embd wide; every N below is LayerNorm or RMSNorm as
 * the model has it, and a norm that the model lacks is left out:
 *
 *   h = N_embd(scale token[id] + type[t] + position[p])
 *   per layer:
 *     a = Wo attention(Wqkv N_attn_in(h));   h = N_attn_stream(h + N_attn_out(a))
 *                                            h = N_attn_again(h + h before the layer)
 *     f = Wdown act(Wgate x) * Wup x, or Wdown act(Wup x), with x = N_ffn_in(h)
 *                                            h = N_ffn_stream(h + N_ffn_out(f))
 *   h = N_output(h); pooled over the tokens of a text; dense layers; L2 normalisation
 *
 *                     position         norms                      feed-forward    attention
 *   bert              learned          stream (post-norm)         GELU            all
 *   nomic-bert        rotary           stream                     SiLU, gated     all
 *   jina-bert-v2      ALiBi            stream (again)             GELU, gated     all
 *   modern-bert       rotary, 2 bases  in (pre-norm), output      GELU, gated     2 of 3
 * windows gemma-embedding   rotary, 2 bases  in and out, RMS, q k       GELU tanh, gated 5 of 6
 * windows qwen3             rotary           in, output, RMS, q k       SiLU, gated     causal
 *
 * attention: softmax(scale q k' + bias) v over the tokens that a token sees; a key and value
 * head serves n_heads / n_kv_heads queries. GELU is the exact x/2 (1 + erf(x / sqrt 2)), GELU
 * tanh its form with tanh, SiLU x / (1 + exp(-x)).
 *
 *   J. Devlin et al., BERT (2019), section 3; N. Reimers and I. Gurevych, Sentence-BERT (2019),
 *   section 3 (mean pooling); J. Su et al., RoFormer (2021), section 3.2 (rotary); O. Press et
 *   al., Train Short, Test Long (2022), section 3 (ALiBi; here symmetric); N. Shazeer, GLU
 *   Variants (2020); B. Zhang and R. Sennrich, RMSNorm (2019); J. Ainslie et al., GQA (2023).
 *
 * model_reference_forward is the oracle of model_fast_forward and is kept for ever beside it.
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/tensor.h"

struct gguf;
struct pool;

enum pooling { POOLING_MEAN = 1, POOLING_CLS = 2, POOLING_LAST = 3, POOLING_RANK = 4 };

enum model_position { POSITION_LEARNED, POSITION_ROTARY, POSITION_ALIBI };
enum model_norm_kind { NORM_LAYER, NORM_RMS };
enum model_activation { ACTIVATION_GELU, ACTIVATION_GELU_TANH, ACTIVATION_SILU, N_ACTIVATIONS };

enum { ROTARY_BASES = 2, DENSE_MAX = 2, MODEL_ARCH_MAX = 24 };

/* Some rows of a tensor {in, rows} and, with w NULL, no matrix at all. Several matrices may be
 * fused into one tensor. Owns: nothing; the tensors belong to the gguf. */
struct model_matrix {
    const struct tensor *w, *b; /* b NULL: no bias; else a vector with the tensor's rows */
    uint64_t first_row, n_rows;
};

struct model_norm {
    const struct tensor *w, *b; /* w NULL: no norm; b NULL: nothing is added */
};

struct model_layer {
    struct model_matrix q, k, v, o;
    struct model_matrix gate, up, down; /* gate without w: a feed-forward that is not gated */
    struct model_norm attn_in, attn_out, attn_stream, attn_again, ffn_in, ffn_out, ffn_stream;
    struct model_norm q_norm, k_norm; /* over a head, or over all heads: see whole_qk_norm */
    uint32_t window;                  /* tokens seen on either side; 0: all */
    uint32_t rotary;                  /* which of rotary_base */
};

/* What stands behind the pooled vector, one after the other. */
struct model_dense {
    struct model_matrix matrix;
    bool tanh;
};

struct model {
    char arch[MODEL_ARCH_MAX];
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_size, n_ff, n_ctx, n_vocab, n_types;
    enum model_position position;
    enum model_norm_kind norm;
    enum model_activation activation;
    bool causal, whole_qk_norm;
    float norm_eps, embd_scale, attention_scale, alibi_bias;
    uint32_t
        n_rotary; /* the first dimensions of a head, which are turned in pairs (i, i + n/2) */
    float rotary_base[ROTARY_BASES], rotary_scale; /* angle = position * scale * base^(-2i/n) */
    enum pooling pooling;
    bool normalize;
    const struct tensor *token_embd, *position_embd;
    const struct tensor *type_embd; /* NULL: the model has none, and n_types is 0 */
    struct model_norm embd_norm, output_norm;
    uint32_t n_dense;
    struct model_dense dense[DENSE_MAX];
    struct model_layer *layers;
};

/* Finds and checks every tensor and key; an error names the tensor or key and what was
 * expected. m->layers is freed by model_unbind. */
int model_bind(struct model *m, const struct gguf *g, struct err *e);
void model_unbind(struct model *m);

/* The names of the architectures that are computed, as "bert, qwen3, ...". */
void model_architectures(char *out, size_t n);

/* Floats that come out for a text: n_embd, or what the last dense layer makes of it. A model
 * that ranks gives one, its score: the layer's one output, or the first of two ("yes") minus
 * the second ("no"). */
uint32_t model_dim(const struct model *m);

/* What ALiBi adds to a score for each token of distance, negated: 2^(-bias (head + 1) / n)
 * where n, the number of heads, is a power of two, else the paper's mixture of the powers
 * around. */
float model_alibi_slope(const struct model *m, uint32_t head);

/* What the matrices of the layers are stored as. */
struct model_weights {
    enum tensor_type type; /* that of most of their bytes */
    bool mixed;            /* there are others */
    bool quantized;        /* all of them have a type of blocks */
};
void model_weights(const struct model *m, struct model_weights *out);

/* Several texts packed one after another, without padding. */
struct model_batch {
    const int32_t *ids; /* n_tokens */
    const uint32_t
        *offsets; /* n_texts + 1: text t is ids[offsets[t]] .. ids[offsets[t + 1] - 1] */
    uint32_t n_texts, n_tokens;
    const uint32_t *splits; /* n_texts: tokens of a text before those of type 1; NULL: all */
};

/* One text of n_tokens ids (1 .. n_ctx, each < n_vocab), those from `split` of type 1, to
 * out[model_dim], in f32 throughout. Thread: any. Errors: KITH_ENOMEM, KITH_EINVAL. */
int model_reference_forward(const struct model *m, const int32_t *ids, uint32_t n_tokens,
                            uint32_t split, float *out, struct err *e);

/* How the matrix products are computed. AUTO: int8 when all matrices of the layers have a type
 * of blocks, whichever; bf16 when all are BF16 and the kernels have such a product (the
 * activations are rounded to bfloat16 there); else f32. */
enum model_precision { MODEL_AUTO, MODEL_F32, MODEL_INT8, MODEL_BF16 };
const char *model_precision_name(enum model_precision precision); /* "auto", "f32" ... */

struct model_fast;
/* Repacks the weights for the kernels chosen for this machine; keeps m, which must outlive it.
 * Errors: KITH_EUNSUPPORTED for widths that are no multiples, and for MODEL_BF16 where the
 * kernels lack it. */
int model_fast_new(struct model_fast **out, const struct model *m,
                   enum model_precision precision, struct err *e);
void model_fast_free(struct model_fast *f);

/* Where packed weights are kept between loads: engine/packed_cache.h. */
struct model_packed {
    const char *model_path, *model_hash; /* as gguf_hash gives it */
    char path[4096];                     /* out: the file of packed weights */
    uint64_t bytes;                      /* out: of it */
};
/* The same pass as model_fast_new makes, with its weights mapped from the file. KITH_ENOTFOUND:
 * there is none; KITH_EFORMAT: it is for something else; KITH_ECORRUPT: it is damaged; others
 * as of model_fast_new. The message does not name the file. */
int model_fast_map(struct model_fast **out, const struct model *m,
                   enum model_precision precision, struct model_packed *packed, struct err *e);
/* Writes the file, and computes from its map from then on: the copy that this process had for
 * itself is freed. The weights must be those of model_hash. After an error it computes with
 * what it has, and there is no file or the one that was there. Not while a forward is running.
 */
int model_fast_save(struct model_fast *f, struct model_packed *packed, struct err *e);

/* out: n_texts x model_dim, row-major. Scratch memory is kept between calls and grows to
 * the largest batch; at most max_tokens (see model_fast_max_tokens) a call.
 * Thread: one caller at a time a model_fast; the work is shared among the pool's threads. */
int model_fast_forward(struct model_fast *f, struct pool *pool, const struct model_batch *batch,
                       float *out, struct err *e);
uint32_t model_fast_max_tokens(const struct model_fast *f);
enum model_precision model_fast_precision(const struct model_fast *f); /* not AUTO */
/* Of the packed weights and tables. */
size_t model_fast_bytes(const struct model_fast *f);
