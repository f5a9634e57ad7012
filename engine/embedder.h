#pragma once
/* Texts to vectors, and pairs of texts to scores: one model file with its tokenizer, its
 * forward pass and its scheduler, behind two functions. It knows no protocol and no socket. How
 * texts become tokens says engine/framing.h.
 *
 * Owns: the model file's map, a thread, and a compute pool. Thread: all functions from any
 * thread but open and close; callbacks come on the scheduler's thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "engine/framing.h"
#include "engine/model.h"
#include "engine/scheduler.h"

struct embedder;
struct tokenizer;

struct embedder_options {
    enum model_precision precision;
    unsigned n_threads; /* of the compute pool, the scheduler's counted; 0: one a processor */
    uint32_t batch_tokens; /* a text that is longer goes alone */
    int64_t batch_wait_us; /* see engine/batching.h */
    uint64_t max_queue_tokens;
    bool packed_cache; /* packed weights are kept beside the model file: packed_cache.h */
};

/* Where the packed weights came from. */
enum embedder_weights {
    EMBEDDER_PACKED,  /* from the model file, into memory of this process */
    EMBEDDER_WRITTEN, /* the same, then written to packed_path and mapped from there */
    EMBEDDER_MAPPED   /* from packed_path as it was */
};

/* What the model is, in words. */
struct embedder_info {
    char name[128];
    char hash[33]; /* XXH3-128 of the model file */
    /* type: of most bytes of the layers' matrices, and " mixed" where there are others */
    char arch[MODEL_ARCH_MAX], type[16], precision[16], kernels[16];
    const char *pooling; /* "mean", "cls", "last" or "rank" */
    bool embeds, reranks;
    const char *query_prompt, *document_prompt, *dims; /* see engine/profile.h */
    uint32_t dim, context, batch_tokens;
    unsigned n_threads;
    size_t bytes; /* that stay in memory: packed weights, tables, the rows of tokens */
    enum embedder_weights weights;
    int64_t pack_us, write_us;  /* 0: not done */
    const char *packed_path;    /* "": the option is off */
    bool packed_damaged;        /* the file that was there was not what was written to it */
    const char *packed_refused; /* why the file that was there was not used; "": no reason */
    const char *packed_failed;  /* why none was written; "": no reason */
};

struct embedder_request {
    const struct slice *texts;
    uint32_t n;
    bool truncate;
    enum embedder_role role; /* whose words are put before each text */
    void (*done)(void *arg, const struct scheduler_result *result);
    void *arg;
};

/* The query against each document; the result has n x 1 scores, as the model's head gives them:
 * larger is nearer, and 1 / (1 + exp(-score)) is what its makers call a probability. */
struct embedder_rerank_request {
    struct slice query;
    const struct slice *documents;
    uint32_t n;
    bool truncate;
    void (*done)(void *arg, const struct scheduler_result *result);
    void *arg;
};

void embedder_defaults(struct embedder_options *o);
int embedder_open(struct embedder **out, const char *path, const struct embedder_options *o,
                  struct err *e);
/* The batch under way is finished, requests that wait get KITH_ECLOSED. */
void embedder_close(struct embedder *m);

const struct embedder_info *embedder_info(const struct embedder *m);
const struct tokenizer *embedder_tokenizer(const struct embedder *m);

/* Tokenizes on the caller's thread and queues; texts need not live on. When it returns 0, done
 * is called exactly once; otherwise never. KITH_EINVAL and KITH_ELIMIT: the request is wrong,
 * the message names the text (counted from 1) and what would be right. KITH_EUNSUPPORTED: the
 * model gives scores and no vectors, or the other way. KITH_EBUSY: the queue is
 * full. */
int embedder_submit(struct embedder *m, const struct embedder_request *request, struct err *e);
int embedder_rerank(struct embedder *m, const struct embedder_rerank_request *request,
                    struct err *e);
void embedder_stats(struct embedder *m, struct scheduler_stats *out);
