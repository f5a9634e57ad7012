#pragma once
/* INFO: what the server knows of itself, in Redis' field names where Redis has the field.
 * Thread: any. `held`: the caller has the shard's lock (inside EXEC). */

#include "base/bytes.h"

struct server;

/* Appends the sections asked for (n 0: the default ones; `all` and `everything` as Redis has
 * them). Unknown names give nothing. */
void info_write(struct server *s, const struct slice *sections, int n, bool held,
                struct buf *out);
/* CONFIG RESETSTAT. */
void info_reset(struct server *s);
