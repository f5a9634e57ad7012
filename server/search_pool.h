#pragma once
/* Threads that take jobs from one queue, first come first served: where searches run that would
 * keep an I/O thread from its other clients (offload.c).
 *
 * Waking a thread and being woken by it cost as much as a short search. So while jobs are short
 * the pool keeps as many threads asleep as there are I/O threads, and an I/O thread that has
 * nothing else to do takes a job that waits (search_pool_help): all processors work, and most
 * jobs change no thread. A job that is long, as whoever puts it knows, has a thread woken for
 * it, and no I/O thread takes it. When others turn out long as well (one of the last hundred
 * took SEARCH_SHORT_US), all are treated so.
 *
 * It knows nothing of clients and of what a job does. It bounds nothing: whoever puts jobs does
 * (a connection has at most one). A job belongs to the pool from search_pool_put until its run
 * is called, and to run from then on. Thread: any. */

#include <stdbool.h>

#include "base/error.h"

enum { SEARCH_SHORT_US = 2000 };

struct search_pool;
struct search_job {
    struct search_job *next; /* the pool's */
    bool is_long;            /* for the pool's own threads only */
    void (*run)(struct search_job *self);
};

/* n_threads of 0: as many as the machine has processors. n_helpers: threads that call
 * search_pool_help. */
int search_pool_new(struct search_pool **out, unsigned n_threads, unsigned n_helpers,
                    struct err *e);
unsigned search_pool_threads(const struct search_pool *p); /* 0 for NULL */
void search_pool_put(struct search_pool *p, struct search_job *job);
/* Runs one short job that no thread of the pool is on its way to take. Whoever puts jobs calls
 * it until it is false before it sleeps, or some would wait without need. */
bool search_pool_help(struct search_pool *p);
/* Runs what is queued to its end and joins the threads. Nobody puts any more. */
void search_pool_free(struct search_pool *p);
