#pragma once
/* The parts of the fast encoder, shared by bert_fast*.c and by nobody else. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/bert.h"
#include "engine/kernels.h"

/* One product: y = W x + bias, packed for the chosen kernels. Several weights with the same
 * input (query, key, value) are stacked into one. Owns: all it points to. */
struct fast_matrix {
    uint32_t n_in, n_out, n_panels;
    /* BERT_F32 */
    float *f32;  /* panels */
    float *bias; /* n_panels * panel */
    /* BERT_INT8 */
    void *int8;  /* panels */
    float *side; /* n_panels x N_SIDE x panel */
    uint32_t n_outliers, outliers[OUTLIERS_MAX];
    float *largest; /* n_in maxima of |x|, while calibrating; else NULL */
};

/* What a product is packed from: up to three weights stacked, with their biases. */
struct fast_source {
    const struct tensor *weights[3], *biases[3];
    unsigned n;
};

struct fast_layer {
    struct fast_matrix qkv, o, up, down;
    float *
        norms; /* n_embd each: weight and bias after attention, weight and bias of the output */
};

enum { NORM_ATTN_W, NORM_ATTN_B, NORM_OUT_W, NORM_OUT_B, N_NORMS };

/* What one thread works in. Blocks of rows have up to BLOCK_ROWS rows, and as many again for
 * the second planes of short texts. */
struct fast_scratch {
    struct int8_rows rows;
    uint32_t *twice;  /* BLOCK_ROWS: which rows have a second plane, in order */
    float *wide;      /* BLOCK_ROWS x padded n_ff */
    float *narrow;    /* BLOCK_ROWS x padded n_embd */
    float *second;    /* BLOCK_ROWS x the widest padded output; NULL in BERT_F32 */
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
    /* Texts shorter than this get two planes of codes, see bert_fast.c. */
    TWO_PLANES_BELOW = 12
};

struct bert_fast {
    const struct bert *b;
    const struct engine_kernels *kernels;
    enum bert_precision precision; /* BERT_F32 or BERT_INT8 */
    uint32_t head_size, head_even, head_padded, embd_padded, ff_padded, qkv_stride, ctx_padded;
    struct fast_layer *layers;
    float *positions; /* n_ctx x n_embd: position + type 0 */
    float *embd_norm; /* weight, bias */

    struct fast_scratch *scratch; /* one a thread */
    unsigned n_scratch;
    /* Activations of the group at work, for group_capacity tokens. */
    uint32_t group_capacity;
    float *hidden;    /* x n_embd */
    float *qkv;       /* x qkv_stride */
    float *context;   /* x n_embd */
    bool *short_text; /* the token belongs to a text below TWO_PLANES_BELOW */
};

/* Multiples of the panel, the row multiple, or both. */
uint32_t fast_pad(const struct bert_fast *f, uint32_t n);

/* bert_fast_pack.c */
int fast_pack(struct bert_fast *f, struct fast_matrix *m, const struct fast_source *source,
              struct err *e);
/* Chooses the inputs with the largest m->largest as outliers and fills their side weights. */
int fast_pack_outliers(const struct bert_fast *f, struct fast_matrix *m,
                       const struct fast_source *source, struct err *e);
void fast_matrix_deinit(struct fast_matrix *m);

/* bert_fast_product.c: c[r] = W x[r] + bias for the rows first .. first + n_rows - 1 of the
 * group, in the precision of f. x is scratch of ours: it is changed and restored. */
void fast_product(const struct bert_fast *f, struct fast_scratch *s,
                  const struct fast_matrix *m, float *x, size_t x_stride, uint32_t first,
                  uint32_t n_rows, float *c, size_t c_stride);

/* bert_fast_attention.c: one head of one text, from f->qkv to f->context. */
void fast_attention(const struct bert_fast *f, struct fast_scratch *s, uint32_t first,
                    uint32_t n_tokens, uint32_t head);
