#pragma once
/* The command line of kith-engine, checked. */

#include "engine/embedder.h"
#include "server/engine_backend.h"

struct engine_options {
    const char *model;
    int fd;
    struct embedder_options embedder;
    /* The modes for people: at most one of embed, rerank, tokenize, tokenize_file. */
    const char *embed, *rerank, *tokenize, *tokenize_file;
    enum backend_role role;
    struct slice *documents; /* of rerank */
    uint32_t n_documents;
};

extern const char engine_options_help[];

/* The words of argv live on in *o. */
int engine_options_parse(struct engine_options *o, int argc, char **argv, struct err *e);
void engine_options_deinit(struct engine_options *o);
