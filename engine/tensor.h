#pragma once
/* A tensor as a model file stores it: a type, a shape, and bytes in the file's map.
 *
 * Shapes are GGUF's: ne[0] is the contiguous dimension (input features), ne[1] the number of
 * rows (output features). A Hugging Face weight [out, in] has ne = {in, out}. Block layouts are
 * drawn in blocks.h. Thread: immutable after load. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/blocks.h"

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
/* The types that are computed, as "F32, F16, ... and BF16". */
void tensor_type_list(char *out, size_t n);
/* Bytes of a row of ne0 elements; KITH_EFORMAT where ne0 is no multiple of the block,
 * KITH_EUNSUPPORTED where the type is not one we compute: the message names it. */
int tensor_row_bytes(enum tensor_type type, uint64_t ne0, size_t *bytes, struct err *e);
/* Row `row` as ne[0] floats. */
void tensor_row_f32(const struct tensor *t, uint64_t row, float *out);
/* Row `row`, of a multiple of 32 elements, as codes in -127 .. 127 and a scale for each 32.
 * Exact for Q8_0, Q4_0, Q5_0 and IQ4_NL (but for a Q8_0 block with a code of -128). All other
 * types are quantized to the nearest code of a scale of (largest magnitude) / 127. A block with
 * a value that is not finite has the scale NaN. */
void tensor_row_int8(const struct tensor *t, uint64_t row, int8_t *codes, float *scales);
