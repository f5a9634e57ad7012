#pragma once
/* The compute pool: a fixed set of threads that run one parallel job at a time, together with
 * the caller. Workers spin for a moment after a job and then sleep, so that the many short jobs
 * of a forward pass start in about a microsecond and an idle engine uses no processor. When
 * they are woken they are bound to processors other than the caller's, of those that the
 * process may use at pool_new; the caller itself is left where it is. Thread: one caller at a
 * time. */

#include <stdint.h>

#include "base/error.h"

struct pool;
/* n_threads counts the caller: 1 means no threads of its own. */
int pool_new(struct pool **out, unsigned n_threads, struct err *e);
void pool_free(struct pool *p);
unsigned pool_threads(const struct pool *p);
/* Calls fn(arg, part, thread) for every part 0 .. n_parts-1, each once, on any thread; thread
 * is 0 .. pool_threads-1. Parts are taken in order from a shared counter, so that a slow core
 * takes fewer. Returns when all are done. */
void pool_run(struct pool *p, uint32_t n_parts,
              void (*fn)(void *arg, uint32_t part, unsigned thread), void *arg);
/* No job comes for now: workers sleep at once. Without it they spin for a moment, on processors
 * where who is to take the result away may have to run. */
void pool_rest(struct pool *p);
