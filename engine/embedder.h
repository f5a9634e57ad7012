#pragma once
/* Text to vectors: one model file with its tokenizer, its forward pass and its scheduler,
 * behind two functions. It knows no protocol and no socket.
 *
 * A text becomes its pieces in the tokenizer's frame, [CLS] pieces [SEP] or what the model has
 * in their place. One that is longer than the model's context is refused, or, when the caller
 * asked for it, cut: the first pieces that the context holds, with the frame whole. An empty
 * text is refused; one of nothing but spaces has the tokens of the frame.
 *
 * Owns: the model file's map, a thread, and a compute pool. Thread: all functions from any
 * thread but open and close; callbacks come on the scheduler's thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model.h"
#include "engine/scheduler.h"

struct embedder;
struct tokenizer;

struct embedder_options {
    enum model_precision precision;
    unsigned n_threads; /* of the compute pool, the scheduler's counted; 0: one a processor */
    uint32_t batch_tokens; /* raised to the context where it is less */
    int64_t batch_wait_us; /* see engine/batching.h */
    uint64_t max_queue_tokens;
};

/* What the model is, in words. */
struct embedder_info {
    char name[128];
    char hash[33]; /* XXH3-128 of the model file */
    /* type: of most bytes of the layers' matrices, and " mixed" where there are others */
    char arch[16], type[16], precision[16], kernels[16];
    const char *pooling; /* "mean" or "cls" */
    uint32_t dim, context, batch_tokens;
    unsigned n_threads;
};

struct embedder_text {
    const char *p;
    size_t n;
};

struct embedder_request {
    const struct embedder_text *texts;
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
 * the message names the text (counted from 1) and what would be right. KITH_EBUSY: the queue is
 * full. */
int embedder_submit(struct embedder *m, const struct embedder_request *request, struct err *e);
void embedder_stats(struct embedder *m, struct scheduler_stats *out);
