#pragma once
/* Writes a GGUF file (version 3): keys first, then tensors, in the order they are added, so
 * that the same input gives the same bytes. The reader is engine/gguf.h.
 *
 * An append that runs out of memory is reported by gguf_write_finish. Thread: one owner. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "engine/tensor.h"

struct gguf_write {
    struct buf keys, infos;
    uint64_t n_keys, n_tensors;
    uint64_t data_bytes; /* of the tensors announced so far, with their padding */
    uint64_t alignment;  /* of the data section and of each tensor: 32, unless set after init to
                            what general.alignment says */
    struct buf array;    /* the open array */
    uint32_t array_type;
    uint64_t array_n;
};

void gguf_write_init(struct gguf_write *w);
void gguf_write_deinit(struct gguf_write *w);

void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t v);
void gguf_write_f32(struct gguf_write *w, const char *key, float v);
void gguf_write_bool(struct gguf_write *w, const char *key, bool v);
void gguf_write_string(struct gguf_write *w, const char *key, const char *s);
/* An array of n bytes. */
void gguf_write_u8s(struct gguf_write *w, const char *key, const void *bytes, size_t n);

/* An array is filled between begin and end. */
void gguf_write_strings_begin(struct gguf_write *w);
void gguf_write_strings_add(struct gguf_write *w, const char *s, size_t n);
void gguf_write_i32s_begin(struct gguf_write *w);
void gguf_write_i32s_add(struct gguf_write *w, int32_t v);
void gguf_write_u32s_begin(struct gguf_write *w);
void gguf_write_u32s_add(struct gguf_write *w, uint32_t v);
void gguf_write_f32s_begin(struct gguf_write *w);
void gguf_write_f32s_add(struct gguf_write *w, float v);
void gguf_write_array_end(struct gguf_write *w, const char *key);

/* A key as another file has it: name, type and value. */
void gguf_write_record(struct gguf_write *w, const void *record, size_t n);

/* Announces a tensor of ne1 rows of ne0 (n_dims 1: ne1 is 1); *bytes is how many its data has.
 */
int gguf_write_tensor(struct gguf_write *w, const char *name, enum tensor_type type,
                      unsigned n_dims, uint64_t ne0, uint64_t ne1, size_t *bytes,
                      struct err *e);
/* The same for any shape of up to four dimensions. */
int gguf_write_tensor_shaped(struct gguf_write *w, const char *name, enum tensor_type type,
                             unsigned n_dims, const uint64_t *ne, size_t *bytes, struct err *e);
/* Everything before the data section, padded to its start, into head. */
int gguf_write_finish(struct gguf_write *w, struct buf *head, struct err *e);
/* Where the next tensor's data begins after one that ends at `offset`, aligned to 32. */
uint64_t gguf_write_align(uint64_t offset);
