#pragma once
/* The server's side of one engine: starts kith-engine, watches it, restarts it with back-off,
 * puts it away and brings it back, and carries texts to it and vectors or scores back
 * (protocol/engine_wire.md).
 *
 * A request under way when the engine dies or is stopped gets its answer, an ENGINE error, at
 * once; when the engine hangs (a PING without its PONG for timeout_ms; one is sent each second)
 * the engine is killed first. So a client never waits for a dead engine. A request that comes
 * while the model is being loaded waits for it, at most timeout_ms from the engine's start; one
 * that comes while the engine is away starts it. Texts are bounded: past engine-queue-tokens'
 * worth of bytes a request is refused with BUSY.
 *
 * Does not know what other engines there are, nor what memory they may take: models.h.
 *
 * Owns: the child process and one thread that reads its answers. Thread: engine_ask from any
 * thread; `done` is called on the link's thread and must only hand over (worker_post). */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "server/engine_model.h"

struct engine_link;

struct engine_link_options {
    const char *program;          /* NULL: kith-engine beside this binary */
    const char *label;            /* names the model in the log and in errors */
    const char *const *arguments; /* the child's, after its name, NULL-terminated */
    int64_t queue_tokens, timeout_ms;
    bool away; /* nothing is started before the first request */
    /* Each may be NULL; called on the link's thread, no lock held. */
    void (*on_start)(void *arg); /* a child is about to be started */
    /* It is ready: before the first request goes to it. */
    void (*on_ready)(void *arg, const struct engine_model *model);
    void (*on_change)(void *arg); /* engine_link_stats says something else now */
    void *arg;
};

struct engine_answer {
    int code;            /* 0 or KITH_E* */
    const char *message; /* a whole error reply without '-', "ENGINE ..." or "ERR ..." */
    uint32_t n, dim, n_tokens;
    const float *vectors; /* n x dim; of ENGINE_RERANK the n scores, dim is 1. Valid during the
                             call, as what follows */
    const struct engine_model *model; /* that made them */
};

/* Starts the child (unless away) and returns at once; engine_link_wait_ready waits for READY or
 * FAIL. */
int engine_link_open(struct engine_link **out, const struct engine_link_options *o,
                     struct err *e);
int engine_link_wait_ready(struct engine_link *l, int64_t timeout_ms, struct err *e);
/* Begins the end: everything under way is answered, new requests are refused. */
void engine_link_shut(struct engine_link *l);
void engine_link_close(struct engine_link *l); /* waits for the child's end, 2 s at most */

/* Which prompt of its own the model puts before the texts. */
enum engine_role { ENGINE_ROLE_NONE, ENGINE_ROLE_QUERY, ENGINE_ROLE_DOCUMENT };

struct engine_request {
    enum engine_task task;
    const struct slice *texts; /* copied; of ENGINE_RERANK the query, then the documents */
    uint32_t n;
    bool truncate; /* texts longer than the model's context */
    enum engine_role role;
    /* Called exactly once, also when engine_ask returns an error code: then before it returns.
     */
    void (*done)(void *arg, const struct engine_answer *a);
    void *arg;
};
int engine_ask(struct engine_link *l, const struct engine_request *q);

/* Ends the engine until it is asked again. With why NULL only an engine that has nothing to do;
 * else those under way are answered with it (a whole error reply). False: it is busy, or does
 * not run. */
bool engine_link_put_away(struct engine_link *l, const char *why);
/* Starts one that is away, as a request would. */
void engine_link_bring_back(struct engine_link *l);

/* False while the engine is down; then *model keeps what it last was (a set's model can still
 * be named). */
bool engine_link_model(struct engine_link *l, struct engine_model *model);

enum engine_state { ENGINE_DOWN, ENGINE_LOADING, ENGINE_READY, ENGINE_AWAY };

struct engine_stats {
    enum engine_state state;
    bool up, slow_load; /* slow_load: it loads for longer than timeout_ms */
    bool tried;         /* the first start came to READY or to its end */
    int pid;
    uint64_t restarts, returns; /* after a death, after it was put away */
    uint64_t requests, texts, tokens, batches, queued, failed;
    char last_error[512];
};
void engine_link_stats(struct engine_link *l, struct engine_stats *out);
void engine_link_set_timeout(struct engine_link *l, int64_t timeout_ms); /* any thread */
