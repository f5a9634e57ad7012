#pragma once
/* A tensor as a model file stores it: a type, a shape, and bytes in the file's map.
 *
 * Shapes are GGUF's: ne[0] is the contiguous dimension (input features), ne[1] the number of
 * rows (output features). A Hugging Face weight [out, in] has ne = {in, out}. Block layouts are
 * in docs/design.md, "Weights". Thread: immutable after load. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum tensor_type { /* the ids of GGUF */
                   TENSOR_F32 = 0,
                   TENSOR_F16 = 1,
                   TENSOR_Q8_0 = 8,
                   TENSOR_BF16 = 30
};

enum { TENSOR_NAME_MAX = 64, TENSOR_DIMS_MAX = 4 };

struct tensor {
    char name[TENSOR_NAME_MAX]; /* NUL-terminated */
    enum tensor_type type;
    uint32_t n_dims;
    uint64_t ne[TENSOR_DIMS_MAX]; /* trailing dimensions are 1 */
    const void *data; /* Owns: the map of the model file; at least 32-byte aligned */
    size_t bytes;
};

/* Elements and bytes of one block; 0 where the type is not one we compute. */
size_t tensor_block_elements(enum tensor_type type);
size_t tensor_block_bytes(enum tensor_type type);
const char *tensor_type_name(enum tensor_type type);
/* Bytes of a row of ne0 elements; KITH_EFORMAT where ne0 is no multiple of the block. */
int tensor_row_bytes(enum tensor_type type, uint64_t ne0, size_t *bytes, struct err *e);
/* Row `row` as ne[0] floats. */
void tensor_row_f32(const struct tensor *t, uint64_t row, float *out);
