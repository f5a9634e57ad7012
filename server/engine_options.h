#pragma once
/* The command line of kith-engine, checked. */

#include "engine/embedder.h"
#include "server/engine_backend.h"
#include "server/remote_backend.h"

struct engine_options {
    const char *model; /* of this machine; NULL where is_remote */
    struct embedder_options embedder;
    struct remote_options remote;
    bool is_remote, any_remote; /* --remote; any option of remote models */
    int fd;
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
