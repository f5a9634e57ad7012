#pragma once
/* Calls that may meet damage in a memory map. For the storage room only.
 *
 * A map whose file was cut or whose disk fails raises SIGBUS, and LMDB aborts on what it takes
 * for impossible. Inside guarded() both end the call instead of the process. A SIGBUS in a
 * registered map outside of it, in somebody's plain read of a chunk, gets a page of zeros to
 * read. Either way the map's `healthy` becomes false, and its owner must not trust what it read
 * since.
 *
 * Thread: any. guarded() nests. What the call had locked or allocated inside LMDB is lost when
 * it is cut short; the caller's own locks stay the caller's. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum { GUARD_DAMAGED = -1000 };

/* fn(arg), or GUARD_DAMAGED when it was cut short. */
int guarded(int (*fn)(void *arg), void *arg);
/* To be called where LMDB is about to abort: leaves the guarded call, does not return inside
 * one. */
void guard_escape(void);

/* Registers an address range and sees to it that the handler is in place. KITH_ELIMIT when
 * there are too many. */
int guard_map_add(const void *base, size_t bytes, _Atomic bool *healthy, struct err *e);
void guard_map_remove(const void *base);
