#pragma once
/* The engine as a child process: started with one end of a socket pair as its descriptor 3,
 * killed, reaped. Knows nothing of what is said over the socket. Thread: one owner. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct engine_process {
    int pid; /* 0: none */
    int fd;  /* our end, non-blocking, close-on-exec; -1: none */
};

/* What a process has in memory; 0 where it cannot be asked. */
uint64_t process_resident_bytes(int pid);

/* argv ends with NULL; argv[0] is the program's path. All signals are at their default in the
 * child, and it has a process group of its own, so that Ctrl-C at a terminal reaches the server
 * only, which then stops the engine in order. */
int engine_process_start(struct engine_process *p, const char *const *argv, struct err *e);
void engine_process_hang_up(
    struct engine_process *p); /* closes our end: the child sees the end */
void engine_process_kill(struct engine_process *p);
/* Waits at most this long for its end; 0 and how it ended in text, or KITH_EBUSY: still there.
 */
int engine_process_reap(struct engine_process *p, int64_t wait_ms, char *text, size_t n);
