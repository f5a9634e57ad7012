#pragma once
/* Re-embedding: the vectors of a set made anew from its kept texts by another model, in the
 * background, while the set is searched and written as before; then, in one step, the set has
 * them.
 *
 * Knows the shard and the models, no client. Owns: one thread of low priority for all jobs and
 * the list of jobs. Thread: all functions with the shard's lock held, but for open and close.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct effect;
struct engine_model;
struct key;
struct models;
struct reembed;
struct shard;

enum { REEMBED_JOBS_MAX = 8 };

/* Finds the jobs that were under way when the server ended, and starts the thread. Before the
 * first client. */
int reembed_open(struct reembed **out, struct shard *s, struct models *m, struct err *e);
/* What is under way stays as far as it is, for the next reembed_open. After the last client,
 * before the models are closed. NULL is allowed. */
void reembed_close(struct reembed *r);

/* Makes the successor of the set of a key by effects and begins. Of the set nothing is asked
 * but that it has no job under way. KITH_ELIMIT: too many jobs. */
int reembed_start(struct reembed *r, struct key *k, const struct engine_model *model,
                  uint32_t dim, bool truncate, struct err *e);
/* Ends the job of a key by an effect; KITH_ENOTFOUND: there is none. */
int reembed_cancel(struct reembed *r, struct key *k, struct err *e);
/* The name of the model of the job under way for a key, or NULL. */
const char *reembed_running(struct reembed *r, const struct key *k);
uint32_t reembed_count(const struct reembed *r); /* jobs under way */

struct reembed_view {
    const char *state; /* none, running, failed */
    char model[128];   /* as it is registered, or else what its file says; of none "" */
    uint64_t n_done, n_total;
    double rate;                 /* texts a second, since the job began or the server started */
    char error[ERR_MESSAGE_MAX]; /* why it failed, what it waits for, or "" */
    size_t memory_bytes;         /* of the successor and the job */
};
void reembed_look(struct reembed *r, const struct key *k, struct reembed_view *out);

/* Whether writers of this key are to wait (shard_wake_writers wakes them): the job is at its
 * last elements. Bounded in time. */
bool reembed_holds(const struct reembed *r, uint32_t db, struct slice key);
/* effect_do tells of each change that was made. */
void reembed_note(struct reembed *r, const struct effect *f);
