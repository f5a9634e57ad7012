#pragma once
/* The parts of the fast forward pass, shared by model_fast*.c and by nobody else. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "engine/kernels.h"
#include "engine/model.h"

/* One product: y = W x + bias, packed for the chosen kernels. Several weights with the same
 * input (query, key, value) are stacked into one. Owns: its block, unless that is mapped, and
 * largest. */
struct fast_matrix {
    enum model_precision precision; /* not MODEL_AUTO */
    uint32_t n_in, n_out, n_panels;
    void *block; /* fast_matrix_bytes, with the arrays below in it */
    bool mapped; /* the block is a part of the model_fast's map: not ours, and read-only */
    /* MODEL_F32, MODEL_BF16 */
    float *f32;     /* panels of the one */
    uint16_t *bf16; /* or of the other */
    float *bias;    /* n_panels * panel */
    /* MODEL_INT8 */
    void *int8;  /* panels */
    float *side; /* n_panels x N_SIDE x panel */
    uint32_t n_outliers, outliers[OUTLIERS_MAX];
    float *largest; /* n_in maxima of |x|, while calibrating; else NULL */
};

/* What a product is packed from: up to three matrices, stacked. */
struct fast_source {
    const struct model_matrix *parts[3];
    unsigned n;
};

/* A norm as the kernels take it; weight NULL: there is none. Owns: nothing, the vectors are
 * the model's. */
struct fast_norm {
    const float *weight, *bias;
};

struct fast_layer {
    struct fast_matrix qkv, o, up, down; /* up: the gate's rows first, where there is one */
    struct fast_norm attn_in, attn_out, attn_stream, attn_again, ffn_in, ffn_out, ffn_stream;
    struct fast_norm q_norm, k_norm;
    uint32_t window;
    uint32_t rotary; /* which of the tables of angles */
};

/* What one thread works in. Blocks of rows have up to BLOCK_ROWS rows, and as many again for
 * the second planes of short texts. */
struct fast_scratch {
    struct int8_rows rows;
    uint32_t *twice;  /* BLOCK_ROWS: which rows have a second plane, in order */
    float *wide;      /* BLOCK_ROWS x padded outputs of up, or of a dense layer */
    float *narrow;    /* BLOCK_ROWS x padded n_embd, or the same */
    float *normed;    /* BLOCK_ROWS x n_embd: a branch's input; NULL where norms are behind */
    float *before;    /* BLOCK_ROWS x n_embd: the stream before the layer, for attn_again */
    float *second;    /* BLOCK_ROWS x the widest padded output; NULL but in MODEL_INT8 */
    uint16_t *bf16;   /* BLOCK_ROWS x the widest input; NULL but in MODEL_BF16 */
    float *residue;   /* the widest input */
    float *keys;      /* n_ctx keys of one head, transposed */
    float *values;    /* n_ctx values of one head */
    float *scores;    /* ATTENTION_ROWS x padded n_ctx */
    float *mixed;     /* ATTENTION_ROWS x padded head size */
    int16_t *codes16; /* rows of one head: queries, or what is on its way into a panel */
    float *block;     /* the one allocation behind the above */
};

enum {
    BLOCK_ROWS = 48,
    ATTENTION_ROWS = 24,
    GROUP_TOKENS_PER_THREAD = 512,
    /* What gets two planes of codes, see model_fast.c: texts of fewer tokens than this where a
     * row has one range, of fewer different ones than that where it has a range for each block,
     * and all texts of a model with fewer features. */
    TWO_PLANES_TOKENS = 12,
    TWO_PLANES_DIFFERENT = 6,
    TWO_PLANES_FEATURES = 256
};

struct model_fast {
    const struct model *m;
    const struct engine_kernels *kernels;
    enum model_precision precision; /* of the layers: not MODEL_AUTO */
    uint32_t q_width, kv_width;     /* of all heads together */
    uint32_t head_even, head_padded, embd_padded, up_padded, dense_padded, qkv_stride,
        ctx_padded;
    struct fast_layer *layers;
    float *positions; /* n_ctx x n_embd: position + type 0; NULL: no positions are learned */
    float *types;     /* n_embd each: type 0, and type 1 less type 0; NULL: no types */
    float *rotary[ROTARY_BASES]; /* n_angles x n_rotary: the cosines of a place, its sines */
    uint32_t n_angles;           /* places that the tables have; they grow with the texts */
    struct fast_norm embd_norm, output_norm;
    struct fast_matrix dense[DENSE_MAX];
    struct file_map packed; /* the file that mapped matrices lie in */
    void (*norm)(float *out, float *h, const float *x, const float *weight, const float *bias,
                 uint32_t n, float eps);
    void (*activate)(float *x, const float *up, uint32_t n);

    struct fast_scratch *scratch; /* one a thread */
    unsigned n_scratch;
    /* Activations of the group at work, for group_capacity tokens. */
    uint32_t group_capacity;
    float *hidden;    /* x n_embd */
    float *qkv;       /* x qkv_stride */
    float *context;   /* x q_width */
    float *pooled;    /* x n_embd, a row a text */
    bool *two_planes; /* the token's text has a second plane of codes */
};

/* Multiples of the panel, the row multiple, or both. */
uint32_t fast_pad(const struct model_fast *f, uint32_t n);

/* model_fast_new.c: a pass with all but its matrices; angles for texts of n tokens; and the
 * matrices in the order in which they are packed, with what they are packed from. */
int fast_begin(struct model_fast **out, const struct model *m, enum model_precision precision,
               struct err *e);
int fast_grow_rotary(struct model_fast *f, uint32_t n, struct err *e);
uint32_t fast_n_matrices(const struct model *m);
struct fast_matrix *fast_matrix_at(struct model_fast *f, uint32_t i);
struct fast_source fast_source_at(const struct model *m, uint32_t i);
enum model_precision fast_precision_at(const struct model_fast *f, uint32_t i);
/* What the layers are computed in. KITH_EUNSUPPORTED: these kernels cannot what was asked for.
 */
int fast_resolve(enum model_precision *out, const struct model *m,
                 const struct engine_kernels *kernels, enum model_precision precision,
                 struct err *e);

/* model_fast_pack.c */
/* The sizes of a matrix, from which its bytes follow. */
int fast_matrix_shape(const struct model_fast *f, struct fast_matrix *m,
                      enum model_precision precision, const struct fast_source *source,
                      struct err *e);
/* The matrix lies in this block from now on: one of its own, or a part of a map. */
void fast_matrix_place(struct fast_matrix *m, const struct product_kernels *product,
                       void *block, bool mapped);
int fast_pack(const struct model_fast *f, struct fast_matrix *m, enum model_precision precision,
              const struct fast_source *source, struct err *e);
/* Chooses the inputs with the largest m->largest as outliers and fills their side weights. */
int fast_pack_outliers(const struct model_fast *f, struct fast_matrix *m,
                       const struct fast_source *source, struct err *e);
void fast_matrix_deinit(struct fast_matrix *m);
size_t fast_matrix_bytes(const struct fast_matrix *m, const struct product_kernels *product);

/* model_fast_product.c: c[r] = W x[r] + bias for the rows first .. first + n_rows - 1 of the
 * group, in the precision of m. x is scratch of ours: it is changed and restored. */
void fast_product(const struct model_fast *f, struct fast_scratch *s,
                  const struct fast_matrix *m, float *x, size_t x_stride, uint32_t first,
                  uint32_t n_rows, float *c, size_t c_stride);

/* model_fast_attention.c: the heads of one text that share a head of keys and values, from
 * f->qkv to f->context. */
void fast_attention(const struct model_fast *f, struct fast_scratch *s,
                    const struct fast_layer *layer, uint32_t first, uint32_t n_tokens,
                    uint32_t kv_head);
