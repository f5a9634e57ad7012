#pragma once
/* What the files of the log share: the state of an open log. For storage/wal*.c only; how it
 * works is told in storage/wal.c. */

#include <pthread.h>
#include <stdatomic.h>

#include "storage/wal_format.h"

struct segment {
    struct segment *next;
    uint64_t first;     /* index of its first record */
    uint64_t start_pos; /* of its first record in the stream */
    uint64_t bytes;     /* preallocated */
    uint64_t used;      /* offset after the last appended record */
    uint64_t salt;
    unsigned spare_id; /* of its temporary name */
    int fd;            /* -1 when it will not be written again and is synced */
    bool named;        /* under its real name */
    bool dirty;        /* written since the last sync */
};

/* What a thread reserved and has not appended yet. */
struct claim {
    pthread_t thread;
    size_t left;
};

struct group {
    char *data;
    size_t len, cap;
};

struct wal {
    char dir[WAL_PATH_MAX];
    struct wal_options options;
    int lock_fd, dir_fd, mark_fd;
    char boot[WAL_BOOT_BYTES];
    pthread_t thread;
    bool touched; /* appended to */

    pthread_mutex_t io; /* the in-flight group and all writing of records */
    struct group flying;
    size_t flying_done;     /* bytes of it that are written */
    uint64_t flying_pos;    /* of its first byte */
    uint64_t flying_last;   /* index of its last record */
    struct segment *target; /* where the next byte of it goes, or an older one */

    pthread_mutex_t lock; /* everything below */
    pthread_cond_t work;  /* to the log's thread */
    pthread_cond_t done;  /* from it */
    struct group active;
    uint64_t active_pos;
    struct segment *oldest, *current, *spare;
    struct claim *claims;
    size_t n_claims, cap_claims, claimed; /* claimed: the sum of all claims' left */
    uint64_t last_epoch;
    uint64_t sync_wanted;              /* index that somebody waits for */
    size_t spare_wanted;               /* room that a reservation waits for; 0: none does */
    uint64_t spare_begun, spare_ended; /* attempts to make a spare */
    struct err spare_error;            /* of the last try */
    struct err write_error;            /* code 0: none */
    unsigned next_spare_id;
    enum wal_sync sync;
    bool asleep, closing, dir_dirty;
    int64_t retry_at_us, sync_at_us;

    pthread_mutex_t mark_lock; /* writing of the mark file */
    _Atomic bool failed;       /* a sync failed: final */
    _Atomic uint64_t last, written, durable, released;
};

/* storage/wal_segment.c */
int wal_preallocate(int fd, uint64_t from, uint64_t bytes, const char *path, struct err *e);
/* A synced, empty segment under a temporary name, with room for at least `room` of records. */
int wal_segment_new(struct wal *w, unsigned id, size_t room, struct segment **out,
                    struct err *e);
/* Gives it its real name; the directory is still to be synced. */
int wal_segment_name(struct wal *w, struct segment *s, struct err *e);
void wal_segment_free(struct wal *w, struct segment *s);

/* storage/wal.c */
void *wal_thread(void *arg);
void wal_write_mark(struct wal *w);
