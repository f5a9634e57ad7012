#pragma once
/* The inside of the shard, shared by shard.c (the write path), apply.c (effects into memory),
 * checkpoint.c, linker.c and recovery.c, and read by the key and vector commands through
 * server/data.h. No other file includes it. */

#include <pthread.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "server/keyspace.h"
#include "server/shard.h"
#include "server/vset.h"
#include "storage/store.h"
#include "storage/wal.h"

struct effect;
struct reembed;

struct checkpoint_state { /* guarded by `lock` unless said otherwise */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    uint64_t requested, started, done; /* tickets */
    int last_rc;
    struct err last_error;
    int64_t last_unix_s, last_took_ms, last_start_mono_us;
    bool running;
    bool trim_rest; /* an empty checkpoint would let free pages of the store go */
    struct waitlist *waiters;
    struct vset_queue dirty; /* sets changed since the last freeze; lock `dirty_lock` */
    pthread_mutex_t dirty_lock;
    uint32_t *purge; /* ids of dropped sets still in the store; shard's lock */
    size_t purge_cap;
    uint32_t n_purge, n_sets; /* n_sets: alive, each may need a place in purge */
};

struct linker {
    pthread_t *threads;
    unsigned n_threads;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    struct vset_queue work; /* sets with something to link */
};

struct shard {
    pthread_mutex_t lock;
    struct shard_options options;
    int lock_file;
    struct wal *wal;
    struct store *store;
    struct keyspace *keyspace;
    uint64_t epoch;
    uint32_t next_set_id;
    struct buf effects;  /* of the running command */
    size_t reserved;     /* bytes of the log the running thread has reserved for it, 0: none */
    size_t expiry_bytes; /* of them used for what expired meanwhile */
    struct vset_queue expiring; /* sets that have elements with a time */
    struct vset_queue leaving;  /* replaced sets that a search may still be in */
    bool switching;             /* a set is being replaced, and not deleted */
    struct reembed *reembed;    /* NULL while the log is replayed, and in tools */
    int64_t now_ms;             /* the time all commands of a batch see */
    int64_t reload_until_ms;    /* writers wait for a DEBUG RELOAD until then at most */
    bool keep_stored;           /* a dropped set is only let go, not deleted from the store */
    struct waitlist *room;      /* writers that wait for link workers or a checkpoint */
    _Atomic bool waiting_for_room;
    _Atomic bool failed; /* the log's sync failed: the process is about to end */
    uint64_t n_vectors;  /* of all sets */
    uint64_t expired_keys, expired_elements, hits, misses;
    _Atomic uint64_t used_memory; /* as last sampled */
    uint64_t unmeasured_bytes;    /* of writes since a write last sampled it */
    struct checkpoint_state checkpoint;
    struct linker linker;
};

/* Log space kept ready beyond what a command's arguments may become. */
enum { RESERVE_SLACK_BYTES = 256 * 1024 };

/* shard.c */
/* Reserves room for a change of so many bytes; why none can be taken now, 0 when it can. */
int shard_admit(struct shard *s, size_t bytes, struct err *e);
/* The same for a change that no client asked for just now, held to what holds for theirs:
 * KITH_EBUSY: try again a little later; KITH_ENOMEM: used memory is past maxmemory. */
int shard_admit_background(struct shard *s, size_t bytes, struct err *e);
/* Lets go of replaced sets that no search is in any more. */
void shard_settle_leaving(struct shard *s);
/* Whether a set's values must stay in the store for now, although it was replaced. */
bool shard_set_leaving(struct shard *s, uint32_t set_id);
void shard_wake_writers(struct shard *s);                    /* any thread */
struct shard *shard_allocate(const struct shard_options *o); /* nothing opened yet */
void shard_release(struct shard *s); /* what is open of keyspace, sets, store and lock */

/* apply.c: shard's lock held (or replaying, alone) */
int shard_apply(struct shard *s, struct effect *f, struct err *e);
void shard_drop_vset(void *arg, struct vset *v);                 /* keyspace_hooks */
void shard_place_vset(void *arg, struct vset *v, struct key *k); /* keyspace_hooks */
struct vset_options shard_vset_options(struct shard *s);

/* expiry.c: shard's lock held, no effect of a command is half done */
void shard_expiry_watch(struct shard *s, struct vset *v); /* it has elements with a time */
/* The timer's turn; true when there is more to do at once. */
bool shard_expire(struct shard *s);
/* Before somebody looks at a set: removes some of its elements whose time has come. The set and
 * its key may be gone then. */
void shard_expire_elements(struct shard *s, struct vset *v);

/* linker.c */
int linker_start(struct shard *s, struct err *e);
void linker_stop(struct shard *s);
void linker_notify(void *arg, struct vset *v); /* vset_options.on_work */
uint64_t linker_pending(struct shard *s);      /* vectors not yet linked, of all sets */

/* checkpoint.c */
int checkpoint_start(struct shard *s, struct err *e);
void checkpoint_stop(struct shard *s);
void checkpoint_set_dirty(void *arg, struct vset *v); /* vset_options.on_dirty */
void checkpoint_plan(struct shard *s);                /* from the tick, shard's lock held */
/* Ids of dropped sets, to be deleted from the store in pieces. Room for one more set is
 * reserved when a set is made, so that dropping cannot fail. Shard's lock held. */
int checkpoint_purge_reserve(struct shard *s);
void checkpoint_purge_unreserve(struct shard *s); /* the set was not made after all */
void checkpoint_purge_later(struct shard *s, uint32_t set_id);
/* Whether the last checkpoint failed, and why. */
bool shard_checkpoint_broken(struct shard *s, struct err *why);
bool checkpoint_behind(struct shard *s); /* past the dirty limit: writers must wait */
int checkpoint_now(struct shard *s, struct err *e); /* the work itself */

/* recovery.c */
int recovery_load(struct shard *s, struct err *e);   /* from the store */
int recovery_replay(struct shard *s, struct err *e); /* then from the log */
/* The shard's own record in the store: ids to come, sets to purge. */
enum { SHARD_RECORD_A = 0, SHARD_RECORD_B = 0 };
void recovery_write_record(struct buf *b, uint64_t next_key_id, uint32_t next_set_id,
                           const uint32_t *purge, uint32_t n_purge);
void recovery_write_key(const struct key_image *k, struct buf *b);
