#pragma once
/* The store: the LMDB environment, the durable home of everything.
 *
 * Three tables of checksummed values under pairs of 32-bit numbers, and a meta record. The
 * store does not know what they mean. Writing happens in one transaction at a time, the
 * checkpoint's; reading goes through one long-lived read transaction that the checkpoint renews
 * (see storage/chunks.h), so a pointer into the map stays valid until the reader leaves its
 * epoch bracket.
 *
 *   value = { u64 xxh3 of table, key and the bytes after | bytes }     (chunks: see chunks.h)
 *
 * LMDB trusts its file: a flipped bit is a wrong answer, a zeroed page an abort, a cut file a
 * SIGBUS. So store_open walks the file's trees with code of its own first (page numbers,
 * bounds, key order, every page used once or free), values carry checksums, counts of entries
 * and a sum over all keys are kept in the meta record and compared, and a SIGBUS or an LMDB
 * assertion inside the map turns into an unhealthy store and KITH_ECORRUPT, not into a dead
 * process.
 *
 * Owns: DIR/store/: data.mdb and lock.mdb, LMDB's; owner, the lock of the process; made, which
 * says that the store was once complete. Thread: reads from any thread; one writer. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct store;
struct store_write;

enum store_table { STORE_KEYS, STORE_BLOBS, STORE_CHUNKS, STORE_TABLES };

struct store_options {
    size_t map_bytes; /* 0: 1 TiB of address space, less where RLIMIT_AS or others need it */
    bool read_only;   /* for tools: no lock file of ours, no SIGBUS handler */
};

/* What the newest checkpoint stands for. */
struct store_state {
    uint64_t epoch, index; /* of the log; 0 in an empty store */
    uint64_t checkpoints;  /* how many were committed, ever */
};

/* A new directory is created; KITH_EBUSY when another process has it, KITH_ECORRUPT names the
 * place of the damage, KITH_EFORMAT a version this build does not read. */
int store_open(struct store **out, const char *dir, const struct store_options *options,
               struct err *e);
void store_close(struct store *s); /* after every chunk array on it was freed */
struct store_state store_state(struct store *s);
/* False after damage was met in the map of a running process: answers read since are suspect.
 */
bool store_healthy(const struct store *s);
uint64_t store_file_bytes(struct store *s);

/* A copy of the value (a, b), checked, appended to out. KITH_ENOTFOUND, KITH_ECORRUPT. */
int store_get(struct store *s, enum store_table table, uint32_t a, uint32_t b, struct buf *out,
              struct err *e);
/* Calls fn for every value of a table in key order, checked; stops at the first non-zero. The
 * bytes are valid during the call. Not for STORE_CHUNKS. */
int store_each(struct store *s, enum store_table table,
               int (*fn)(void *arg, uint32_t a, uint32_t b, const void *p, size_t n,
                         struct err *e),
               void *arg, struct err *e);

/* One checkpoint's transaction. After a failed put or delete only store_abort is allowed. LMDB
 * keeps what is put in memory until the commit; beyond some 130,000 values it spills to the
 * file, which works but leaks a little, so plan checkpoints smaller. */
int store_begin(struct store *s, struct store_write **out, struct err *e);
int store_put(struct store_write *w, enum store_table table, uint32_t a, uint32_t b,
              const void *p, size_t n, struct err *e);
int store_delete(struct store_write *w, enum store_table table, uint32_t a, uint32_t b,
                 struct err *e); /* absent is no error */
/* All (a, *) of a table, at most `limit` of them (0: all); returns how many were deleted, or a
 * negative code. A huge set is deleted over several checkpoints, since a long list of freed
 * pages makes LMDB's allocator slow. */
int64_t store_delete_all(struct store_write *w, enum store_table table, uint32_t a,
                         uint64_t limit, struct err *e);
/* Durable when it returns 0; a failed commit changes nothing and the store goes on. Either way
 * the transaction has ended. Thread: outside any epoch bracket. */
int store_commit(struct store_write *w, uint64_t epoch, uint64_t index, struct err *e);
void store_abort(struct store_write *w);
/* After a commit: opens the read transaction of the new state for everybody. Call chunks_settle
 * on every array that took part, then store_refreshed, which waits until no reader is left on
 * the old one and ends it. Where it fails the commit stands: settle with committed = true all
 * the same (the copies stay on the heap), then go on. Thread: the checkpointer, outside any
 * epoch bracket. */
int store_refresh(struct store *s, struct err *e);
void store_refreshed(struct store *s);
/* Gives disk and page cache of pages that hold nothing any more back to the system, where they
 * are more than slack_bytes; the file's length stays. *left_bytes: what could go after one more
 * commit, 0 where that is not worth it or the file system cannot. Its cost grows with the free
 * pages. Thread: the checkpointer, between a store_refreshed and the next store_begin. */
int store_trim(struct store *s, uint64_t slack_bytes, uint64_t *left_bytes, struct err *e);

/* Offline: walks pages, checks every value of every table. Returns the number of findings, each
 * told to note, or a negative code. With note NULL the first finding is the error. */
int store_check(const char *dir, void (*note)(void *arg, const char *where, const char *what),
                void *arg, struct err *e);
