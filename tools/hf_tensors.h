#pragma once
/* Which tensors a model's GGUF file has, and from which tensors of the Hugging Face folder each
 * is made: a table for each family (hf_tensors.c). Knows names and shapes, and turns values
 * from one to the other; what is written where is kith_convert's.
 *
 * Owns: the maps of the safetensors files. Thread: immutable after open. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/tensor.h"
#include "tools/hf_model.h"
#include "tools/safetensors.h"

enum { HF_SHARDS_MAX = 512, HF_PICKS = 2 };

struct hf_weights {
    struct safetensors *files;
    size_t n;
    struct safetensors dense[HF_DENSE_MAX];
    unsigned n_dense;
};

/* model.safetensors, or what model.safetensors.index.json names, and those of Dense layers. */
int hf_weights_open(struct hf_weights *w, const struct hf_model *m, const char *dir,
                    struct err *e);
void hf_weights_close(struct hf_weights *w);

/* One tensor to write: rows ne1 of ne0 values. */
struct hf_part {
    char name[TENSOR_NAME_MAX]; /* in the GGUF file */
    const struct safetensor *from;
    enum tensor_type type;
    unsigned n_dims;
    uint64_t ne0, ne1;
    uint64_t first_row; /* of the source */
    uint64_t picks[HF_PICKS];
    bool picked;   /* row r is picks[r] of the source instead */
    bool plus_one; /* 1 is added to each value */
    size_t bytes;
};

/* *parts is the caller's (mem_free), in the order of the file. A tensor that is missing, or of
 * another shape or type, is named with what was expected; so is one that the family has no
 * place for. */
int hf_parts_plan(struct hf_part **parts, size_t *n, const struct hf_weights *w,
                  const struct hf_model *m, enum tensor_type type, struct err *e);
/* Row `row` of the part as ne0 floats; KITH_EFORMAT where one is not finite. */
int hf_part_row(const struct hf_part *p, uint64_t row, float *values, struct err *e);
