#pragma once
/* The log: segment files of records, appended in order, made durable in groups.
 *
 * It is the write-ahead log, the replication stream and the change feed at once. It does not
 * know what a payload means. A record is one atomic change: after a crash it is there whole or
 * not at all. Indexes count from 1 and have no gaps; epochs never decrease.
 *
 *   DIR/wal/00000000000000000001.wal   segment, named by its first index; preallocated, so
 *                                      that a full disk shows when a segment is made and
 *                                      never later
 *   DIR/wal/durable                    the newest index known durable, written (not synced)
 *                                      after each sync: lets recovery tell a torn tail, which
 *                                      it cuts, from damage to what was acknowledged, which
 *                                      it reports
 *   DIR/wal/lock                       held by the process that has the log open
 *
 * The bytes are drawn in storage/wal_format.h. A record also carries the index that was durable
 * when it was appended: where records after a broken one are whole, that tells blocks of one
 * unsynced group that a power cut let through out of order from damage to what was durable.
 *
 * Order of a write: wal_reserve (may refuse: no space), then the caller changes its memory,
 * then wal_append (cannot fail), then wal_flush or the log's own thread writes, then fdatasync,
 * then the durable index advances and on_advance is called. A failed fdatasync is final:
 * on_fatal is called once, the durable index never moves again, and the program must say so and
 * end.
 *
 * Owns: the directory DIR/wal. Thread: all but open, replay and close may be called from any
 * thread. The callbacks must be short. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct wal;

enum wal_sync {
    WAL_SYNC_ALWAYS,   /* durable = synced; the log's thread syncs as soon as something waits */
    WAL_SYNC_EVERYSEC, /* written at once, synced once a second */
    WAL_SYNC_NO        /* written at once, synced when the kernel likes */
};

struct wal_options {
    enum wal_sync sync;
    uint64_t segment_bytes; /* 0: 64 MiB. A larger record gets a segment of its own size */
    /* May be NULL. on_advance: the released index (wal_released) moved. Called without any lock
     * of the log's, by its thread, or by the wal_flush or wal_set_sync that moved it. */
    void (*on_advance)(void *arg);
    void (*on_fatal)(void *arg, const struct err *why);
    void *arg;
};

struct wal_record {
    uint64_t epoch, index;
    const void *payload;
    size_t bytes;
};

enum { WAL_PAYLOAD_MAX = 1 << 30 };

/* Opens or creates the log, checks it and cuts a torn tail. `after` is the index the checkpoint
 * stands for: the log must hold every record from after + 1 on, else KITH_ECORRUPT says which
 * are missing. Damage before the durable index is KITH_ECORRUPT with file and offset. A log
 * that is not there at all begins with after + 1. All records found are synced before it
 * returns. KITH_EBUSY: another process has it. */
int wal_open(struct wal **out, const char *dir, const struct wal_options *options,
             uint64_t after, struct err *e);
/* Flushes, syncs, stops the thread, frees. An error says that not all became durable. */
int wal_close(struct wal *w, struct err *e);

/* Calls fn for each record with an index greater than `after`, in order. Before the first
 * append. A non-zero return stops and is returned. */
int wal_replay(struct wal *w, uint64_t after,
               int (*fn)(void *arg, const struct wal_record *r, struct err *e), void *arg,
               struct err *e);

/* Makes sure that `bytes` of payload in at most `n_records` records can be appended without
 * failing. KITH_ENOSPC when the disk is full (try again later), KITH_ELIMIT past
 * WAL_PAYLOAD_MAX, KITH_EBUSY when more than the write buffer's limit waits to be written,
 * KITH_ECLOSED after a failed sync. Reservations do not add up: each covers the appends up to
 * the next. */
int wal_reserve(struct wal *w, size_t bytes, uint32_t n_records, struct err *e);
/* Gives back what is left of this thread's reservation; without it, it is held until the next.
 */
void wal_unreserve(struct wal *w);
/* Appends one record under the last reservation; returns its index. */
uint64_t wal_append(struct wal *w, uint64_t epoch, const void *payload, size_t bytes);

/* Writes what was appended to the file (page cache). Not needed with WAL_SYNC_ALWAYS, where the
 * log's thread does it; with the others the caller of many appends calls it once before
 * replying. Waits for nobody else's fdatasync. KITH_ENOSPC or KITH_EIO when the write failed:
 * it is kept and tried again. */
int wal_flush(struct wal *w, struct err *e);
/* Blocks until `index` is durable on the disk, whatever the sync mode; for checkpoints and
 * tests. */
int wal_sync_to(struct wal *w, uint64_t index, struct err *e);

uint64_t wal_last(const struct wal *w);    /* newest appended */
uint64_t wal_written(const struct wal *w); /* newest in the page cache: survives kill -9 */
uint64_t wal_durable(const struct wal *w); /* newest synced: survives a power cut */
/* The newest index whose effects may be shown to clients: durable with ALWAYS, else written. */
uint64_t wal_released(const struct wal *w);

void wal_set_sync(struct wal *w, enum wal_sync sync);
/* Removes whole segments that hold only records up to `upto`. */
int wal_trim(struct wal *w, uint64_t upto, struct err *e);
uint64_t wal_bytes(const struct wal *w); /* of records held, for INFO */
uint64_t wal_bytes_after(const struct wal *w,
                         uint64_t index); /* roughly; to plan checkpoints */

/* Offline: verifies every record; calls note for each finding (file, offset, what). Returns the
 * number of findings or a negative code. With note NULL the first finding is the error. A torn
 * tail is no finding. */
int wal_check(const char *dir, uint64_t after,
              void (*note)(void *arg, const char *where, const char *what), void *arg,
              struct err *e);
