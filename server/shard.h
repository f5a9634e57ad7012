#pragma once
/* The shard: one range of hash slots, its keys, its owner, and the one write path.
 *
 * Its owner is whoever holds its lock: an I/O thread takes it at the first command of a
 * pipelined batch that touches data and gives it back at the end of the batch (worker_shard_*
 * in net.c), so that a batch costs one lock. There is one shard today; everything that would
 * differ with several goes through this struct.
 *
 *   shard_enter   refuses writes that cannot be made durable (disk full, log failed, memory) or
 *                 says wait (too much unsaved); reserves log space
 *   the command   checks, and calls effect_* (server/effect.h): each changes memory and encodes
 * itself shard_leave   appends what was encoded as one log record; the reply's gate is the
 * newest index
 *
 * Thread: all functions with the lock held unless they say otherwise. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "server/command.h"

struct shard;
struct client;

void shard_lock(struct shard *s);   /* any thread, not re-entrant */
void shard_unlock(struct shard *s); /* by the thread that locked */

/* Before a command, or once before all commands of an EXEC with the sum of their bytes
 * (dispatch_effect_bytes). COMMAND_DONE with *refused set means that an
 * error was replied and the command must not run; COMMAND_WAIT that the client was parked. */
enum command_result shard_enter(struct shard *s, struct client *c, unsigned flags,
                                size_t log_bytes, bool *refused);
/* After it. Returns the log index the reply must wait for (see net.c on the gate). */
uint64_t shard_leave(struct shard *s);

/* Another number after every change of the key, also when it came and went between: for WATCH.
 */
uint64_t shard_key_version(struct shard *s, uint32_t db, struct slice key);

/* For INFO, DBSIZE and the timer. */
struct shard_stats {
    uint64_t n_keys[16], n_expires[16];
    uint64_t n_vector_sets, n_vectors, n_unlinked, n_reembedding;
    uint64_t expired_keys, expired_elements, hits, misses;
    uint64_t log_last, log_written, log_durable, log_bytes;
    uint64_t checkpoint_index, n_checkpoints, store_bytes, dirty_bytes;
    int64_t last_checkpoint_unix_s, last_checkpoint_ms;
    bool checkpoint_running;
    bool last_checkpoint_ok;
    char write_refusal[ERR_MESSAGE_MAX]; /* why writes are refused now, "" when they are not */
};
/* Takes the lock itself unless the caller holds it (inside EXEC). */
void shard_stats(struct shard *s, struct shard_stats *out, bool held);
void shard_reset_stats(struct shard *s); /* takes the lock itself */
uint64_t
shard_used_memory(struct shard *s); /* of the allocator, sampled by the tick; no lock */

/* The timer's work: expired keys, checkpoint planning, memory pressure. Ten times a second from
 * the first I/O thread, takes the lock itself. */
void shard_tick(struct shard *s);

/* The newest log index that may be shown to clients; any thread, no lock. */
uint64_t shard_released(const struct shard *s);
/* Writes what the batch appended to the log (no-op with appendfsync always); any thread, no
 * lock. */
void shard_flush(struct shard *s);

struct shard_options {
    const char *dir;
    const char *appendfsync; /* always | everysec | no */
    uint64_t checkpoint_log_bytes, checkpoint_dirty_limit, maxmemory;
    uint64_t log_segment_bytes; /* 0: the log's default */
    uint32_t checkpoint_interval_s;
    unsigned link_threads;
    uint32_t tail_max;
    /* From the log's thread: replies may go (calls net's workers); and a fatal failure. */
    void (*on_released)(void *arg);
    void (*on_fatal)(void *arg, const struct err *why);
    void *arg;
};
/* Opens the directory, recovers (checkpoint, then log), starts link workers and checkpointer.
 */
int shard_open(struct shard **out, const struct shard_options *o, struct err *e);
/* Final checkpoint unless `no_save`; stops the threads. Nobody may be inside. */
int shard_close(struct shard *s, bool no_save, struct err *e);
/* Settings that change at run time: appendfsync, checkpoint-*, maxmemory, link-threads... */
void shard_configure(struct shard *s, const struct shard_options *o); /* takes the lock */

/* Asks for a checkpoint and parks the client's waitlist until one that includes everything up
 * to now is committed. Returns a ticket for shard_checkpoint_done. */
uint64_t shard_checkpoint_start(struct shard *s);
/* 0: not yet; 1: committed; negative: it failed, e says why. */
int shard_checkpoint_done(struct shard *s, uint64_t ticket, struct err *e);
struct waitlist;
struct waitlist *shard_checkpoint_waiters(struct shard *s);

/* DEBUG. An order-independent digest of all data, or of the value of one key; and: everything
 * again from the store, which returns 1 when done, 0 when the client was parked until a
 * checkpoint is made, or an error. */
int shard_digest(struct shard *s, uint64_t out[2], struct err *e);
struct key;
int shard_digest_value(struct shard *s, struct key *k, uint64_t out[2], struct err *e);
int shard_reload(struct shard *s, struct client *c, struct err *e);

/* Offline: everything of a data directory, nothing is changed. Returns the number of findings
 * or a negative code. */
struct shard_check_report {
    void (*note)(void *arg, const char *where, const char *what);
    void (*progress)(void *arg, uint64_t n_elements); /* or NULL */
    void *arg;
    uint64_t n_keys, n_sets, n_elements; /* filled */
};
int64_t shard_check(const char *dir, struct shard_check_report *report, struct err *e);
