#pragma once
/* The BERT encoder: its description bound to tensors, its plain forward pass, and the fast one.
 *
 *   h = LN(token[id] + type[0] + position[p])
 *   per layer:  h = LN(h + Wo attn(h) + bo);  h = LN(h + W2 gelu(W1 h + b1) + b2)
 *   gelu is the exact one, x/2 (1 + erf(x / sqrt 2)); attention is not causal, scale 1/sqrt(d)
 *   pooling over the tokens of a text (CLS and SEP count), then L2 normalisation
 *
 *   J. Devlin et al., BERT (2019), section 3; N. Reimers and I. Gurevych, Sentence-BERT (2019),
 *   section 3 (mean pooling).
 *
 * bert_reference_forward is the oracle of bert_fast_forward and is kept for ever beside it. */

#include <stdbool.h>
#include <stdint.h>

#include "engine/tensor.h"

struct gguf;
struct pool;

enum pooling { POOLING_MEAN = 1, POOLING_CLS = 2 }; /* GGUF's `pooling_type` */

/* Weights are {in, out}; biases and norms are vectors. Owns: the tensors belong to the gguf. */
struct bert_layer {
    const struct tensor *q_w, *q_b, *k_w, *k_b, *v_w, *v_b, *o_w, *o_b;
    const struct tensor *attn_norm_w, *attn_norm_b;
    const struct tensor *up_w, *up_b, *down_w, *down_b;
    const struct tensor *out_norm_w, *out_norm_b;
};

struct bert {
    uint32_t n_layers, n_embd, n_heads, n_ff, n_ctx, n_vocab, n_types;
    float norm_eps;
    enum pooling pooling;
    bool normalize;
    const struct tensor *token_embd, *position_embd, *embd_norm_w, *embd_norm_b;
    const struct tensor *type_embd; /* NULL: the model has none, and n_types is 0 */
    struct bert_layer *layers;
};

/* Finds and checks every tensor and key; an error names the tensor or key and what was
 * expected. b->layers is freed by bert_unbind. */
int bert_bind(struct bert *b, const struct gguf *g, struct err *e);
void bert_unbind(struct bert *b);

/* What the matrices of the layers are stored as. */
struct bert_weights {
    enum tensor_type type; /* that of most of their bytes */
    bool mixed;            /* there are others */
    bool quantized;        /* all of them have a type of blocks */
};
void bert_weights(const struct bert *b, struct bert_weights *out);

/* One text of n_tokens ids (1 .. n_ctx, each < n_vocab) to out[n_embd], in f32 throughout.
 * Thread: any. Errors: KITH_ENOMEM, KITH_EINVAL. */
int bert_reference_forward(const struct bert *b, const int32_t *ids, uint32_t n_tokens,
                           float *out, struct err *e);

/* Several texts packed one after another, without padding. */
struct bert_batch {
    const int32_t *ids; /* n_tokens */
    const uint32_t
        *offsets; /* n_texts + 1: text t is ids[offsets[t]] .. ids[offsets[t + 1] - 1] */
    uint32_t n_texts, n_tokens;
};

/* How the matrix products are computed. AUTO: int8 when all matrices of the layers have a type
 * of blocks, whichever, else f32. */
enum bert_precision { BERT_AUTO, BERT_F32, BERT_INT8 };

struct bert_fast;
/* Repacks the weights for the kernels chosen for this machine; keeps b, which must outlive it.
 */
int bert_fast_new(struct bert_fast **out, const struct bert *b, enum bert_precision precision,
                  struct err *e);
void bert_fast_free(struct bert_fast *f);
/* out: n_texts x n_embd, row-major. Scratch memory is kept between calls and grows to
 * the largest batch; at most max_tokens (see bert_fast_max_tokens) a call.
 * Thread: one caller at a time a bert_fast; the work is shared among the pool's threads. */
int bert_fast_forward(struct bert_fast *f, struct pool *pool, const struct bert_batch *batch,
                      float *out, struct err *e);
uint32_t bert_fast_max_tokens(const struct bert_fast *f);
enum bert_precision bert_fast_precision(const struct bert_fast *f); /* F32 or INT8 */
