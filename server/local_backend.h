#pragma once
/* A model file of this machine, computed in this process: engine/embedder.h behind the
 * interface of server/engine_backend.h.
 *
 * Owns: the embedder. Thread: see engine_backend.h; results come on the scheduler's thread. */

#include "engine/embedder.h"
#include "server/engine_backend.h"

/* Loads the model; *out is closed by its own close. */
int local_backend_open(struct engine_backend *out, const char *path,
                       const struct embedder_options *options, struct err *e);
/* The embedder behind a backend of local_backend_open. */
struct embedder *local_backend_embedder(const struct engine_backend *b);
