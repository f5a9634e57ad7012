#pragma once
/* The models of a server: each has a name and a kith-engine process of its own.
 *
 * Registers models (MODEL LOAD, the settings `embedder` and `model`, models.conf), chooses the
 * one that a text is for, carries the texts to it, and keeps what all of them take within
 * engine-memory-limit: the least recently used that have nothing to do are put away, and a
 * request brings them back. What was changed at run time is durable before it is confirmed.
 *
 * Knows nothing of connections and keys: who asks says which model its set has.
 *
 * Owns: the links (engine_link.h) and one thread, the keeper. Thread: any, unless said. Errors:
 * the message is a whole error reply without '-' where a request is answered, a sentence
 * without a code elsewhere. */

#include <stdbool.h>
#include <stdint.h>

#include "server/engine_link.h"
#include "server/model_spec.h"

struct models;
struct waitlist;

struct models_options {
    const char *program; /* NULL: kith-engine beside this binary */
    const char *dir;     /* of models.conf */
    const char *precision;
    bool packed_cache;
    int64_t threads, batch_tokens, batch_wait_us, queue_tokens, timeout_ms;
    uint64_t memory_limit;               /* bytes; 0: half of the machine's memory */
    const struct model_spec *configured; /* copied; in order, the default is the first */
    int n_configured;                    /* unless one of them says DEFAULT */
};

/* Registers what is configured and what models.conf says, and starts what has room; returns
 * without waiting for any of them. Fails on a models.conf that cannot be read or understood. */
int models_open(struct models **out, const struct models_options *o, struct err *e);
/* Ends all engines; everything under way is answered with an error. */
void models_close(struct models *m);
void models_set_limit(struct models *m, uint64_t memory_limit);
void models_set_timeout(struct models *m, int64_t timeout_ms);

/* --- asking --- */

struct models_request {
    enum engine_task task;
    struct slice name;   /* the model that was named; empty: none */
    const char *hash;    /* else that of the set the texts are for; NULL or "": it has none */
    const char *pooling; /* with hash */
    const struct slice *texts;
    uint32_t n;
    bool truncate;
    enum engine_role role;
    void (*done)(void *arg, const struct engine_answer *a); /* as of engine_ask */
    void *arg;
};
/* Sends the texts to the model that is named; else to that of the hash; else to the default (of
 * ENGINE_RERANK: to the first that has the task). A model that is away is brought back, and its
 * texts wait for it. done is called exactly once, also when this returns an error: then before
 * it returns. This is also what a background thread uses. */
int models_ask(struct models *m, const struct models_request *r);

/* What is known of the model that models_ask would choose for r (of which the texts are not
 * looked at), from now or from when it was last up. False: it would choose none, or nothing is
 * known yet; then *model is empty. */
bool models_known(struct models *m, const struct models_request *r, struct engine_model *model);
/* Whether a request without a name can go to one model only: then the set need not be looked
 * at.
 */
bool models_single(struct models *m);

/* The model of this name, ready: 1; 0: it is being brought up, wait for models_waiters and ask
 * again; negative: there is none, or it could not be brought up, e says why. */
int models_ready(struct models *m, struct slice name, struct engine_model *model,
                 struct err *e);

/* --- changing --- */

/* Each begins a change and returns its ticket; 0: it is refused, e says why. */
uint64_t models_load(struct models *m, const struct model_spec *spec, struct err *e);
uint64_t models_unload(struct models *m, struct slice name, struct err *e);
uint64_t models_choose_default(struct models *m, struct slice name, struct err *e);
/* 0: not yet, wait for models_waiters; 1: done and durable; negative: it failed and left
 * nothing behind, e says why. A result is given once. */
int models_change_done(struct models *m, uint64_t ticket, struct err *e);
/* Woken whenever a change ended or a model's state moved. */
struct waitlist *models_waiters(struct models *m);

/* --- looking --- */

struct model_view {
    struct model_spec spec;
    struct engine_model model; /* hash "": nothing is known yet */
    struct engine_stats stats;
    const char *state; /* ready, loading, away, down, refused */
    uint64_t bytes;    /* resident now, 0 when no process runs; else what READY said or RSS */
    bool is_default;
};
/* Calls fn with each model, in the order they were registered, on a copy. */
void models_each(struct models *m, void (*fn)(void *arg, const struct model_view *v),
                 void *arg);
/* The one of this name, or with an empty name the default; false: there is none. */
bool models_view(struct models *m, struct slice name, struct model_view *out);
uint64_t models_limit(struct models *m);
