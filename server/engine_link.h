#pragma once
/* The server's side of the engine: starts kith-engine, watches it, restarts it with back-off,
 * and carries texts to it and vectors back (protocol/engine_wire.md).
 *
 * A request under way when the engine dies or is stopped gets its answer, an ENGINE error, at
 * once; when the engine hangs (a PING without its PONG for timeout_ms; one is sent each second)
 * the engine is killed first. So a client never waits for a dead engine. A request that comes
 * while the model is being loaded waits for it, at most timeout_ms from the engine's start.
 * Texts are bounded: past engine-queue-tokens' worth of bytes a request is refused with BUSY.
 *
 * Owns: the child process and one thread that reads its answers. Thread: engine_embed from any
 * thread; `done` is called on the link's thread and must only hand over (worker_post). */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct engine_link;

struct engine_model { /* what READY said */
    char name[128], hash[33], pooling[16], arch[32], type[16], precision[16], kernels[16];
    uint32_t dim, context;
};

struct engine_link_options {
    const char *program, *model, *precision; /* program NULL: kith-engine beside this binary */
    int64_t threads, batch_tokens, batch_wait_us, queue_tokens, timeout_ms;
};

struct engine_answer {
    int code;            /* 0 or KITH_E* */
    const char *message; /* a whole error reply without '-', "ENGINE ..." or "ERR ..." */
    uint32_t n, dim, n_tokens;
    const float *vectors; /* n x dim; valid during the call */
};

/* Starts the child and returns at once; engine_link_wait_ready waits for READY or FAIL. */
int engine_link_open(struct engine_link **out, const struct engine_link_options *o,
                     struct err *e);
int engine_link_wait_ready(struct engine_link *l, int64_t timeout_ms, struct err *e);
void engine_link_close(struct engine_link *l);

/* Sends n texts (copied). done is called exactly once, also when this returns an error code:
 * then before it returns. */
int engine_embed(struct engine_link *l, const struct slice *texts, uint32_t n, bool truncate,
                 void (*done)(void *arg, const struct engine_answer *a), void *arg);

/* False while the engine is down; then *model keeps what it last was (a set's model can still
 * be named). */
bool engine_link_model(struct engine_link *l, struct engine_model *model);

struct engine_stats {
    bool up;
    int pid;
    uint64_t restarts, requests, texts, tokens, batches, queued, failed;
    char last_error[256];
};
void engine_link_stats(struct engine_link *l, struct engine_stats *out);
void engine_link_set_timeout(struct engine_link *l, int64_t timeout_ms); /* any thread */
