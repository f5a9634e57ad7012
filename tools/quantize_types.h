#pragma once
/* Which type each tensor of a model becomes: the decision of kith-quantize, pure, without a
 * file. Thread: any.
 *
 * A recipe is one type for all matrices, or one of llama.cpp's mixes. Vectors, norms, biases,
 * position and token type embeddings and an expert's gate are few and sensitive: they are F32
 * in every recipe. A mix gives more bits where they count:
 *
 *   all mixes       the output matrix, or the token embedding where there is none: Q6_K
 *   q4_k_m, q5_k_m  attn_v and ffn_down of the first eighth of the layers, of the last, and of
 *                   every third between: Q6_K; a fused attn_qkv: Q5_K (q4_k_m) or Q6_K
 *   q4_k_s          attn_v of the first four layers and ffn_down of the first eighth: Q5_K
 *
 * A row that is no multiple of a superblock falls back, tensor by tensor: Q4_K to Q5_0, Q5_K to
 * Q5_1, Q6_K to Q8_0; one that is no multiple of 32 either, to F16.
 *
 *   llama.cpp, llama-quant.cpp; its exceptions for models of eight experts are not made here.
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/tensor.h"

enum quantize_mix { QUANTIZE_PURE, QUANTIZE_SMALL, QUANTIZE_MEDIUM };

struct quantize_recipe {
    const char *name;
    enum tensor_type type; /* of what no rule says otherwise */
    enum quantize_mix mix;
    uint32_t file_type; /* GGUF's general.file_type */
};

/* Of the model as a whole. */
struct quantize_model {
    uint32_t n_layers;
    bool has_output; /* an output matrix of its own */
};

const struct quantize_recipe *quantize_recipe_find(const char *name); /* NULL: no such recipe */
enum tensor_type quantize_type_of(const struct quantize_recipe *r,
                                  const struct quantize_model *m, const struct tensor *t);
/* The layer of "blk.N.what"; -1 where the name is of another form. *what is what follows. */
int64_t quantize_layer_of(const char *name, const char **what);
