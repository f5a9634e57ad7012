#pragma once
/* A model of this machine that answers in the place of a remote one which does not, where both
 * are known to give the same vectors.
 *
 * Known means: a handful of fixed texts were embedded by both, and the cosine of each pair was
 * at least REMOTE_FALLBACK_COSINE. Vectors of two models in one set would be wrong answers
 * without an error, so a model that has not been compared is not used, and one that failed is
 * refused for the life of the process.
 *
 * Owns: the local backend. Thread: all functions from one thread but the state and the count,
 * from any; results come on the local model's thread. */

#include "engine/embedder.h"
#include "server/engine_backend.h"

#define REMOTE_FALLBACK_COSINE 0.99

enum fallback_state {
    FALLBACK_UNCHECKED,
    FALLBACK_CHECKING,
    FALLBACK_TRUSTED,
    FALLBACK_REFUSED
};

struct remote_fallback;

/* KITH_EINVAL: the model has not dim dimensions. */
int remote_fallback_open(struct remote_fallback **out, const char *path,
                         const struct embedder_options *options, uint32_t dim, struct err *e);
void remote_fallback_close(struct remote_fallback *f); /* answers what waits */

enum fallback_state remote_fallback_state(const struct remote_fallback *f);
const char *remote_fallback_state_name(const struct remote_fallback *f);
uint64_t remote_fallback_texts(const struct remote_fallback *f); /* answered so far */

/* The texts to compare by, where that is to be done now: the caller has the remote model embed
 * them and hands the vectors (n x dim, of length 1) to check, NULL where it could not. NULL
 * where there is nothing to do. */
const struct slice *remote_fallback_begin_check(struct remote_fallback *f, uint32_t *n);
void remote_fallback_check(struct remote_fallback *f, const float *remote);

/* As a backend's embed; only when trusted. */
void remote_fallback_embed(struct remote_fallback *f, const struct backend_request *request);
