#pragma once
/* What an engine says of its model in READY (protocol/engine_wire.md), as a struct and as
 * words, and what follows from it: which tasks it has, which dimensions its vectors may be cut
 * to.
 *
 * Knows no engine and no registry. Thread: no shared state. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

enum engine_task { ENGINE_EMBED = 1, ENGINE_RERANK = 2 };

struct engine_model {
    char name[128], hash[33], pooling[16], arch[32], type[16], precision[16], kernels[16];
    char dims[128];                               /* "", "128,256,512", "32-1024" */
    char prompt_query[256], prompt_document[256]; /* put before texts of that role; "" none */
    uint32_t dim, context, threads;               /* dim 0: it makes no vectors */
    uint64_t bytes;                               /* resident; 0: it does not say */
    unsigned tasks;                               /* of engine_task */
};

/* From n words, key and value in turn; keys that are not known are passed over. False when it
 * is no description of a model: no hash, a task that is not known and no other, vectors without
 * a dimension. */
bool engine_model_read(struct engine_model *m, const struct slice *words, int n);
/* Calls fn with every key and value that engine_model_read needs to make *m again. */
void engine_model_write(const struct engine_model *m,
                        void (*fn)(void *arg, const char *key, const char *value), void *arg);

/* "embed", "rerank" or "embed,rerank". */
const char *engine_tasks_word(unsigned tasks);
/* Whether the model's vectors may be cut to n dimensions; its own number always may. */
bool engine_model_allows_dim(const struct engine_model *m, uint32_t n);
/* "" or what is allowed, for a message: "128,256,512 or 1024". */
void engine_model_dims_text(const struct engine_model *m, char *out, size_t size);
/* The first n of a vector's numbers, scaled to length 1: the shorter vector of a model that was
 * trained so (Kusupati et al., Matryoshka Representation Learning, 2022). A vector of zeros
 * stays one. */
void engine_vector_cut(const float *vector, uint32_t n, float *out);
