#pragma once
/* What settings mean to the parts of the server: at start, and when CONFIG SET changes one.
 * Thread: any; the shard's lock must not be held. */

#include <stdint.h>

#include "base/error.h"

struct config;
struct server;
struct shard_options;
struct models_options;

/* Fills all but the callbacks. dir points into the config. */
void settings_shard_options(struct config *c, struct shard_options *o);
/* What it points to is the caller's to free (mem_free of `configured`). */
int settings_models_options(struct config *c, struct models_options *o, struct err *e);
/* Raises the limit of open files for this many clients; returns how many fit. */
int64_t settings_fit_clients(int64_t maxclients);
/* Tells the parts that the setting of this name has a new value. */
void settings_changed(struct server *s, const char *name);
