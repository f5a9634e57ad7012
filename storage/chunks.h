#pragma once
/* Chunked arrays: record arrays (base/records.h) that live in the store.
 *
 * A chunk is one LMDB value of CHUNK_PAGES pages' worth of bytes, so that no page is wasted,
 * and begins with a header that makes its records start on a cache line (LMDB puts 16 bytes of
 * its own before a value on pages of its own):
 *
 *   value = { u64 xxh3 of the rest | u32 magic | u32 array | u32 chunk | u32 stride |
 *             u32 n_records | 20 bytes zero | records }            48-byte header
 *
 * A record larger than that gets chunks of the next multiple of CHUNK_PAGES that holds one. The
 * last chunk of an array is stored, and held, only as large as its records need (a set of ten
 * elements costs kilobytes); it is copied to the heap when read, all others are used in place.
 *
 * States of a chunk:
 *
 *   mapped ──writable──► dirty ──freeze──► frozen ──settle──► mapped
 *                          ▲                  │
 *                          └──── writable ────┘ (a new copy; the frozen one is still written)
 *
 * A checkpoint: under every owner's lock at once chunks_freeze (no copying: the dirty list
 * changes hands); then without locks chunks_write each into the transaction; store_commit;
 * store_refresh; chunks_settle under the owner's lock; store_refreshed. If the commit failed,
 * chunks_settle with committed = false puts the frozen chunks back among the dirty.
 *
 * Owns: heap copies. Thread: as records.h; freeze and settle need the owner's lock, write is
 * the checkpointer's. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/records.h"
#include "storage/store.h"

enum { CHUNK_PAGES = 16, CHUNK_HEADER_BYTES = 48 };

struct chunks;

/* n_records is what the owner remembers of the array as of the checkpoint, that is, its count
 * at the freeze (0: a new one); a chunk that should exist and does not, or is not exactly as
 * long, is KITH_ECORRUPT when it is read. */
int chunks_open(struct chunks **out, struct store *s, uint32_t array, uint32_t stride,
                uint32_t n_records, struct err *e);
/* When no reader is inside and no checkpoint is under way with it. The stored chunks stay. */
void chunks_free(struct chunks *c);
struct records *chunks_records(struct chunks *c);

size_t chunks_dirty_bytes(const struct chunks *c); /* dirty and frozen; atomic read */
size_t chunks_heap_bytes(const struct chunks *c);  /* all heap memory held */

void chunks_freeze(struct chunks *c);
bool chunks_frozen_any(const struct chunks *c); /* whether chunks_write has anything to do */
int chunks_write(struct chunks *c, struct store_write *w, struct err *e);
void chunks_settle(struct chunks *c, bool committed);

/* Dirty and frozen bytes of all arrays of a store, kept by the arrays: to plan checkpoints. */
size_t store_dirty_bytes(const struct store *s);
