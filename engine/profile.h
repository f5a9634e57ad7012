#pragma once
/* What a model wants to be told, beside the text: the words that its makers put before a query
 * and before a document, the dimensions its vectors may be cut to, and the frame of words that
 * a language model ranks in.
 *
 * The model file says it: `kith.prompt.query`, `kith.prompt.document`, `kith.matryoshka.dims`
 * (an array), `tokenizer.chat_template.rerank`. Files of other converters have none of these,
 * so the published models are known by their architecture and name (a table in profile.c); what
 * was taken from there is told like all else.
 *
 * Owns: copies; the gguf may be closed. Thread: immutable after load. */

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct gguf;
struct model;

enum { PROFILE_DIMS_BYTES = 160 };

struct profile {
    char *query_prompt, *document_prompt; /* "" where there is none */
    /* The dimensions below its own that a vector may be cut to: "" none, a list "128,256", or
     * a range "32-1024". */
    char dims[PROFILE_DIMS_BYTES];
    char *
        rerank_template; /* with {query} and {document}; NULL: the tokenizer's frame of pairs */
};

/* name: the model's, as the file says it. Errors: KITH_EFORMAT (the message names the key),
 * KITH_ENOMEM. */
int profile_load(struct profile *p, const struct gguf *g, const struct model *m,
                 const char *name, struct err *e);
void profile_deinit(struct profile *p);
