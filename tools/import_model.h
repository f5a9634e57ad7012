#pragma once
/* Which of the server's models embeds what is imported, and what is known of it: the one that
 * was named, else the one that made the set's vectors, else the server's default.
 *
 * Thread: one. */

#include <stdint.h>

#include "tools/import_server.h"

struct import_model {
    char alias[80]; /* as the server has it registered */
    char name[128], hash[40];
    unsigned context;
};

/* 1: *m is known; 0: it is still being loaded, ask again; negative: there is none, or the set
 * has the vectors of another, e says which. key NULL: no set. name NULL: none was named. */
int import_model_find(redisContext *c, const char *name, const char *key,
                      struct import_model *m, struct err *e);
/* The tokens that the model has computed since it started; 0 when it cannot be asked. */
uint64_t import_model_tokens(redisContext *c, const struct import_model *m);
