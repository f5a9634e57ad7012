#pragma once
/* A GGUF model file, opened for reading: its keys and its tensors. It knows the container and
 * nothing of what a key or a tensor means.
 *
 * The file is untrusted. At open every length, count, type, name and range is checked, so that
 * afterwards no accessor can run out of the file: strings and arrays lie inside it, names are
 * unique, and tensors are aligned, inside the data section and do not overlap. Integer metadata
 * is not type-stable across writers (u32, i32, u64, bool, or an array with one value a layer),
 * so the accessors coerce.
 *
 * Mapped, not copied: weights of gigabytes are then shared with the page cache and with every
 * other process that has the model open, and a start costs nothing. The price is that a file
 * cut short by someone else while it is mapped raises SIGBUS on a later read. That is accepted:
 * the engine is a process of its own that the server restarts, and a model is replaced by
 * writing a new file and renaming it, which leaves the old map whole.
 *
 *   ggml docs/gguf.md, versions 2 and 3, little-endian.
 *
 * Owns: strings, arrays and tensors point into the map and live as long as the gguf.
 * Thread: immutable after open. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "engine/tensor.h"

struct gguf;

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_N_TYPES
};

/* Announced limits; larger is KITH_ELIMIT. */
enum {
    GGUF_MAX_KEYS = 1 << 16,
    GGUF_MAX_TENSORS = 1 << 16,
    GGUF_MIN_ALIGNMENT = 32,
    GGUF_MAX_ALIGNMENT = 1 << 20
};

/* Errors: KITH_EFORMAT (the message says where and what), KITH_EUNSUPPORTED (a tensor type that
 * is not computed here), KITH_ELIMIT, KITH_ENOMEM, and those of opening a file. */
int gguf_open(struct gguf **out, const char *path, struct err *e);
/* The same for bytes in memory, which are copied. */
int gguf_open_memory(struct gguf **out, const void *data, size_t bytes, struct err *e);
void gguf_close(struct gguf *g);

uint32_t gguf_version(const struct gguf *g);
size_t gguf_bytes(const struct gguf *g);
/* The XXH3-128 of the whole file: what a model is called wherever vectors remember theirs.
 * Reads the file once through. */
void gguf_hash(const struct gguf *g, char out[33]);

/* Lets the system take back the pages of the map that were read until now; they come again
 * where they are needed. For after the weights were packed. */
void gguf_forget_pages(const struct gguf *g);

size_t gguf_n_tensors(const struct gguf *g);
const struct tensor *gguf_tensor_at(const struct gguf *g, size_t i); /* in the file's order */
const struct tensor *gguf_tensor(const struct gguf *g, const char *name); /* NULL: not there */

size_t gguf_n_keys(const struct gguf *g);
/* Key i in the file's order: its name, and the bytes it has there, name, type and value, for a
 * writer that copies it. */
void gguf_key_at(const struct gguf *g, size_t i, struct slice *name, struct slice *record);
uint64_t gguf_alignment(const struct gguf *g); /* of the data section and each tensor */
bool gguf_has(const struct gguf *g, const char *key);

/* Each returns 0, KITH_ENOTFOUND when there is no such key, or KITH_EFORMAT when its value
 * cannot be read as asked; the message names the key. An array of numbers that are all the same
 * reads as that number. */
int gguf_get_uint(const struct gguf *g, const char *key, uint64_t *v, struct err *e);
int gguf_get_f32(const struct gguf *g, const char *key, float *v, struct err *e);
int gguf_get_bool(const struct gguf *g, const char *key, bool *v, struct err *e);
/* Not NUL-terminated; may hold any byte. */
int gguf_get_string(const struct gguf *g, const char *key, const char **s, size_t *n,
                    struct err *e);

/* A walk over an array of strings, of integers or of floats. */
struct gguf_array {
    const unsigned char *p;
    enum gguf_type type;
    uint64_t left;
};
int gguf_get_array(const struct gguf *g, const char *key, struct gguf_array *a, struct err *e);
/* The next element; false at the end or where the elements are of another kind. */
bool gguf_array_string(struct gguf_array *a, const char **s, size_t *n);
bool gguf_array_int(struct gguf_array *a, int64_t *v);
bool gguf_array_f32(struct gguf_array *a, float *v);
