#pragma once
/* The engine's side of the link to kith-server: reads requests from the socket, has a backend
 * answer them, writes the answers (protocol/engine_wire.md). It knows no models.
 *
 *   reader (the caller's thread)        the backend's threads
 *   read → parse → backend's embed ───► … → done: write VECTORS
 *        └─ PING: write PONG
 *
 * The reader never computes and never waits for a result, so a PING is answered while one is
 * computed. All threads write whole messages under one lock. The socket blocks: a server that
 * does not read its answers holds the backend up, which is the right pressure, for it is the
 * only client. */

#include "server/engine_backend.h"

/* Says READY and serves until the end of the stream (0) or until it breaks (1), then closes the
 * backend. The socket stays the caller's, shut down. */
int engine_service_run(int fd, const struct engine_backend *backend);
/* Says FAIL: there is no backend. */
void engine_service_fail(int fd, const char *message);
