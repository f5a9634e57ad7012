#pragma once
/* Epoch-based reclamation: readers never lock, writers never free under a reader's feet.
 *
 * A reader brackets its use of shared pointers with epoch_enter/epoch_exit (they nest). A
 * writer that has unpublished something hands it to epoch_retire, and it is freed once every
 * reader that could have seen it has left. epoch_synchronize waits for that moment instead.
 *
 *   K. Fraser, Practical lock-freedom (2004), section 5.2.3; one global counter, one slot a
 * thread.
 *
 * A bracket must be short: no system call that may block, no lock that a writer holds while it
 * synchronizes. Thread: any; a thread's slot is taken at its first enter and given back when
 * the thread ends. */

#include <stdbool.h>

void epoch_enter(void);
void epoch_exit(void);
bool epoch_inside(void); /* for assertions */

/* Calls fn(p) later, on some thread that calls retire, collect or synchronize. Out of memory it
 * synchronizes and calls fn at once; so never call it inside a bracket. */
void epoch_retire(void *p, void (*fn)(void *p));
/* Frees what can be freed now. Called now and then by the server's timer. */
void epoch_collect(void);
/* Returns when every reader that was inside at the call has left, all retired before is freed.
 * Never inside a bracket. */
void epoch_synchronize(void);
