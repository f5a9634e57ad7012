#pragma once
/* What kith-engine has behind its socket: something that turns texts into vectors or scores.
 * The service (server/engine_service.h) speaks the wire and knows no models; a backend has a
 * model, in this process or elsewhere, and knows no wire.
 *
 * Thread: the service calls embed, rerank, describe, stats and report from one thread, and they
 * must not wait for a result. `done` comes from any thread, also before the call that asked has
 * returned, and exactly once for every call. After close has returned none comes any more. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct backend_result {
    int code;            /* 0 or KITH_E*: then no values */
    const char *message; /* why, where code is not 0: a sentence for people */
    const float *values; /* n x dim vectors of length 1, row-major; of a rerank n raw scores */
    uint32_t n, dim;     /* dim is 1 of a rerank */
    uint32_t n_tokens;   /* that were computed, as far as the backend knows */
};

/* Whose prompt goes before a text, where the model has one. */
enum backend_role { BACKEND_PLAIN, BACKEND_QUERY, BACKEND_DOCUMENT };

struct backend_request {
    const struct slice *texts; /* read during the call only */
    uint32_t n;                /* at least 1 */
    bool truncate;             /* texts longer than the context are cut, else refused */
    enum backend_role role;    /* of a rerank: BACKEND_PLAIN */
    void (*done)(void *arg, const struct backend_result *result);
    void *arg;
};

struct backend_stats {
    uint64_t queued_requests;        /* now */
    uint64_t batches, texts, tokens; /* since the start */
};

/* Words and their values, as READY has them. */
struct backend_pairs {
    struct buf bytes; /* key NUL value NUL ... */
    size_t n;
};

void backend_pair(struct backend_pairs *p, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

struct engine_backend {
    void *self;
    /* What READY says of the model (protocol/engine_wire.md). */
    void (*describe)(void *self, struct backend_pairs *pairs);
    void (*embed)(void *self, const struct backend_request *request);
    /* The score of each text, a document, for the query. */
    void (*rerank)(void *self, struct slice query, const struct backend_request *request);
    void (*stats)(void *self, struct backend_stats *out);
    /* What PONG says besides the stats; NULL: nothing. */
    void (*report)(void *self, struct backend_pairs *pairs);
    /* What waits is answered with KITH_ECLOSED; frees the backend. */
    void (*close)(void *self);
};

/* Answers a request that is refused. */
void backend_refuse(const struct backend_request *request, const struct err *e);
