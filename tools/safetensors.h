#pragma once
/* A safetensors file, opened for reading: names, types, shapes and where the bytes lie. The
 * header is JSON from a stranger: its length, every offset, and the product of every shape are
 * checked at open, and tensors may not overlap.
 *
 *   u64 header length | header (JSON) | data; offsets count from the data's start
 *   huggingface.co/docs/safetensors, "Format"
 *
 * Owns: the map and the entries. Thread: immutable after open. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

enum { SAFETENSORS_DIMS_MAX = 8 };

struct safetensor {
    char *name;
    char dtype[8]; /* "F32", "F16", "BF16", "I64", ... */
    unsigned n_dims;
    uint64_t shape[SAFETENSORS_DIMS_MAX]; /* the slowest dimension first */
    const unsigned char *data;
    size_t bytes;
};

struct safetensors {
    struct file_map map;
    struct safetensor *entries; /* by offset */
    size_t n;
};

int safetensors_open(struct safetensors *s, const char *path, struct err *e);
void safetensors_close(struct safetensors *s);
const struct safetensor *safetensors_find(const struct safetensors *s, const char *name);
