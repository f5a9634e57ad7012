#pragma once
/* The server's side of kith-import: what is there already, and what has to be embedded and
 * stored, with several batches on the way at once.
 *
 * Chunks are handed in a document at a time. One connection asks what the set has of it: the
 * names that begin with the document's (VRANGE) and the hash in the attributes of its chunks
 * (VGET); what is unchanged is left alone, what the document no longer has is removed. The rest
 * goes out in batches, each one VMADD on one of several other connections, so that the engine
 * has the next batch while we wait for the last. As a batch is all or nothing, what is stored
 * is what a later run finds, wherever this one was ended.
 *
 * A chunk that the server refuses because the model cannot take that many tokens is stored in
 * pieces: NAME, NAME.2, NAME.3 ..., in one batch; the first has the hash of the whole chunk and
 * the number of pieces. When the server refuses a batch, halves of it are tried, until the
 * chunk is found.
 *
 * Attributes that are written beside the user's: `_hash` (XXH3-64 of text, attributes and
 * model, 16 hex digits), `_pieces` where there are several. Thread: one. */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tools/import_model.h"

struct import_chunk { /* name, text and attributes are the store's from then on */
    char *name;
    struct slice text; /* mem_alloc'ed */
    json_t *attributes;
    const char *file; /* lives as long as the store */
    size_t line;
    unsigned piece_tokens; /* 0: whole; else the most estimated tokens of a piece */
    bool alone;            /* a batch of its own */
    char hash[17];
};

struct import_options {
    struct server_address address;
    const char *key;
    const char *model; /* the one that was named; NULL: none */
    unsigned n_connections, n_batch;
    int64_t wait_ms; /* how long a busy or restarting engine is waited for */
    bool split;      /* a chunk that is too long is stored in pieces, else it is bad */
    bool embed_only; /* EMBED instead of VMADD, and nothing is looked up */
    /* What the server refuses; not 0 ends the import. */
    int (*bad)(void *arg, const char *file, size_t line, const char *what);
    void (*progress)(void *arg); /* at least after each reply */
    void *arg;
    const volatile int *stop; /* not 0: send nothing more */
};

struct import_counts {
    uint64_t stored, unchanged, removed, split, retries;
};

struct import_store;

/* Connects, waits until the model is up, and refuses a set of another one. */
int import_store_open(struct import_store **out, const struct import_options *o, struct err *e);
void import_store_free(struct import_store *s);

const struct import_model *import_store_model(const struct import_store *s);
const struct import_counts *import_store_counts(const struct import_store *s);
/* The tokens that the engine has embedded since it started; 0 when it cannot be asked. */
uint64_t import_store_tokens(struct import_store *s);

/* The chunks of one document, which are named ID#1 .. ID#n, or, where numbered is false, one
 * that is named ID. Takes the n chunks, not the array, also on failure. */
int import_store_document(struct import_store *s, const char *id, bool numbered,
                          struct import_chunk *chunks, size_t n, struct err *e);
/* Sends all there is (unless *stop) and waits for every answer. */
int import_store_finish(struct import_store *s, struct err *e);
