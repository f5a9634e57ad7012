/* How the log works.
 *
 *   appenders ──memcpy──► active buffer ──swap──► in-flight buffer ──pwrite──► segment
 * ──fdatasync (lock)                  (io lock)                    (io lock)          (log
 * thread)
 *
 * Appenders copy records into the active buffer under a short lock; a group is whatever
 * gathered there while the group before was written and synced, so a thousand clients share one
 * fdatasync. Positions in the stream of appended bytes (pos) map to segments by each segment's
 * start_pos, and the choice of the segment is made in wal_reserve, before the caller commits to
 * anything:
 *
 *   - the sum of all outstanding reservations fits into the current segment's preallocated rest
 *     (and into the buffer's memory), so an append needs neither memory nor disk;
 *   - where it does not, the log rolls to the spare segment, which the log's thread makes ahead
 * of time; only when there is none yet does a reservation wait, and only there does a full disk
 *     show. Nothing is remembered of a refusal, so the next reservation tries again.
 *
 * A segment is made under a temporary name, preallocated, given its header and synced; it gets
 * its real name when its first record is written, and the directory is synced before that
 * record counts as durable. Killed between any two system calls, the directory holds a log that
 * wal_survey can read: a spare nobody refers to, an empty last segment, or a tail nobody was
 * told of.
 *
 * A pwrite that fails (a full or broken disk, although the room was preallocated) keeps its
 * group in flight and is tried again every few milliseconds, and reservations are refused until
 * it succeeds: the bytes are still ours. A failed fsync is final: the kernel may have dropped
 * the pages, and a second fsync that succeeds proves nothing (Rebello et al., Can applications
 * recover from fsync failures?, ATC'20).
 *
 * Lock order: io, then lock. Callbacks are called with neither.
 *
 * Rejected: O_DIRECT (needs aligned padding of every group, and loses the page cache that makes
 * written records survive a killed process); one file a writer (replay would have to merge). */
#include "storage/wal.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/random.h"
#include "storage/wal_format.h"

enum {
    SEGMENT_BYTES_DEFAULT = 64 << 20,
    SEGMENT_BYTES_MIN = 4096,
    BUFFER_LIMIT_BYTES = 64 << 20, /* past it wal_reserve says KITH_EBUSY */
    BUFFER_KEEP_BYTES = 4 << 20,   /* a larger idle buffer is given back */
    RETRY_US = 10 * 1000,
    SYNC_EVERY_US = 1000 * 1000,
    ZEROS_BYTES = 1 << 20
};

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

/* --- the four indexes --- */

uint64_t wal_last(const struct wal *w)
{
    return atomic_load_explicit(&w->last, memory_order_acquire);
}

uint64_t wal_written(const struct wal *w)
{
    return atomic_load_explicit(&w->written, memory_order_acquire);
}

uint64_t wal_durable(const struct wal *w)
{
    return atomic_load_explicit(&w->durable, memory_order_acquire);
}

uint64_t wal_released(const struct wal *w)
{
    return atomic_load_explicit(&w->released, memory_order_acquire);
}

/* Under the lock: moves the released index to what the sync mode allows; true when it moved. It
 * never moves back, also not when the mode becomes stricter. */
static bool release(struct wal *w)
{
    uint64_t upto = w->sync == WAL_SYNC_ALWAYS ? wal_durable(w) : wal_written(w);
    if (atomic_load(&w->failed) || upto <= wal_released(w))
        return false;
    atomic_store_explicit(&w->released, upto, memory_order_release);
    return true;
}

static void tell_advance(struct wal *w)
{
    if (w->options.on_advance)
        w->options.on_advance(w->options.arg);
}

/* The mark is a witness for recovery, never a promise of its own: that it could not be written
 * only makes recovery less strict, so the error is ignored. */
static void write_mark(struct wal *w)
{
    char mark[WAL_MARK_BYTES];
    pthread_mutex_lock(&w->mark_lock);
    wal_mark_encode(mark, wal_durable(w), wal_released(w), w->boot);
    (void)file_pwrite_all(w->mark_fd, mark, sizeof mark, 0, NULL);
    pthread_mutex_unlock(&w->mark_lock);
}

/* --- segments --- */

static int spare_path(const struct wal *w, unsigned id, char out[WAL_PATH_MAX], struct err *e)
{
    char name[32];
    snprintf(name, sizeof name, "spare-%u.tmp", id);
    return wal_path(out, w->dir, name, e);
}

/* Room on the disk for the whole segment, so that a full disk shows here. */
static int preallocate(int fd, uint64_t from, uint64_t bytes, const char *path, struct err *e)
{
    if (from >= bytes)
        return 0;
    int rc;
    do
        rc = fallocate(fd, 0, (off_t)from, (off_t)(bytes - from));
    while (rc != 0 && errno == EINTR);
    if (rc == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return err_set_errno(e, errno, "cannot preallocate %llu bytes for %s",
                             (unsigned long long)bytes, path);
    char *zeros = mem_calloc(1, ZEROS_BYTES);
    if (!zeros)
        return err_set(e, KITH_ENOMEM, "out of memory preallocating %s", path);
    rc = 0;
    for (uint64_t at = from; at < bytes && rc == 0; at += ZEROS_BYTES) {
        uint64_t n = bytes - at < ZEROS_BYTES ? bytes - at : ZEROS_BYTES;
        rc = file_pwrite_all(fd, zeros, (size_t)n, at, e);
    }
    mem_free(zeros);
    if (rc != 0)
        err_wrap(e, "cannot preallocate %s", path);
    return rc;
}

/* A synced, empty segment under a temporary name, with room for at least `room` of records. */
static int segment_new(struct wal *w, unsigned id, size_t room, struct segment **out,
                       struct err *e)
{
    char path[WAL_PATH_MAX], header[WAL_SEGMENT_HEADER_BYTES];
    int rc = spare_path(w, id, path, e);
    if (rc != 0)
        return rc;
    struct segment *s = mem_calloc(1, sizeof *s);
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory for a segment of the log");
    s->spare_id = id;
    s->salt = rng_entropy();
    s->used = WAL_SEGMENT_HEADER_BYTES;
    s->bytes = w->options.segment_bytes;
    if (s->bytes - s->used < room)
        s->bytes = s->used + room;
    s->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (s->fd < 0) {
        rc = err_set_errno(e, errno, "cannot create %s", path);
        mem_free(s);
        return rc;
    }
    wal_encode_segment(header, s->salt);
    rc = preallocate(s->fd, 0, s->bytes, path, e);
    if (rc == 0 && (rc = file_pwrite_all(s->fd, header, sizeof header, 0, e)) != 0)
        err_wrap(e, "%s", path);
    if (rc == 0 && fsync(s->fd) != 0)
        rc = err_set_errno(e, errno, "cannot sync %s", path);
    if (rc != 0) {
        close(s->fd);
        unlink(path);
        mem_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

static void segment_free(struct wal *w, struct segment *s)
{
    char path[WAL_PATH_MAX];
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    if (!s->named && spare_path(w, s->spare_id, path, NULL) == 0)
        unlink(path);
    mem_free(s);
}

static int segment_name(struct wal *w, struct segment *s, struct err *e)
{
    char from[WAL_PATH_MAX], to[WAL_PATH_MAX];
    int rc = spare_path(w, s->spare_id, from, e);
    if (rc == 0)
        rc = wal_segment_path(to, w->dir, s->first, e);
    if (rc == 0 && rename(from, to) != 0)
        rc = err_set_errno(e, errno, "cannot rename %s to %s", from, to);
    return rc;
}

/* Under the lock: the spare becomes the current segment. */
static void roll(struct wal *w)
{
    struct segment *s = w->spare, *before = w->current;
    w->spare = NULL;
    s->first = wal_last(w) + 1;
    s->start_pos = w->active_pos + w->active.len;
    if (before->first == s->first) {
        /* The current one is still empty but too small. No byte of the stream belongs to it, so
         * nobody is writing it; where it has its name already, the new one takes it over. */
        if (w->oldest == before) {
            w->oldest = s;
        } else {
            struct segment *p = w->oldest;
            while (p->next != before)
                p = p->next;
            p->next = s;
        }
        w->current = s;
        if (w->target == before)
            w->target = s;
        segment_free(w, before);
    } else {
        before->next = s;
        w->current = s;
    }
    pthread_cond_signal(&w->work);
}

/* --- reserve and append --- */

static struct claim *my_claim(struct wal *w)
{
    pthread_t me = pthread_self();
    for (size_t i = 0; i < w->n_claims; i++) {
        if (pthread_equal(w->claims[i].thread, me))
            return &w->claims[i];
    }
    if (w->n_claims == w->cap_claims) {
        size_t cap = w->cap_claims ? w->cap_claims * 2 : 16;
        struct claim *grown = mem_realloc_n(w->claims, cap, sizeof *grown);
        if (!grown)
            return NULL;
        w->claims = grown;
        w->cap_claims = cap;
    }
    w->claims[w->n_claims] = (struct claim){.thread = me};
    return &w->claims[w->n_claims++];
}

static bool group_reserve(struct group *g, size_t room)
{
    if (g->cap - g->len >= room)
        return true;
    size_t cap = g->cap ? g->cap : 64 * 1024;
    while (cap - g->len < room)
        cap *= 2;
    char *grown = mem_realloc(g->data, cap);
    if (!grown)
        return false;
    g->data = grown;
    g->cap = cap;
    return true;
}

static size_t room_of(const struct segment *s)
{
    return s->bytes > s->used ? (size_t)(s->bytes - s->used) : 0;
}

/* Under the lock: makes `room` bytes fit into the current segment; waits for a spare if need
 * be. */
static int reserve_segment(struct wal *w, size_t room, struct err *e)
{
    while (room_of(w->current) < room) {
        if (w->spare && room_of(w->spare) >= room) {
            roll(w);
            continue;
        }
        if (atomic_load(&w->failed) || w->closing)
            return err_set(e, KITH_ECLOSED, "the log is closed");
        if (w->spare_wanted < room)
            w->spare_wanted = room;
        /* An attempt that is under way may have met a disk that was still full. */
        uint64_t ticket = w->spare_begun + 1;
        pthread_cond_signal(&w->work);
        while (w->spare_ended < ticket && !atomic_load(&w->failed) && !w->closing)
            pthread_cond_wait(&w->done, &w->lock);
        if (w->spare_ended >= ticket && w->spare_error.code != 0)
            return err_set(e, w->spare_error.code, "%s", w->spare_error.message);
    }
    return 0;
}

int wal_reserve(struct wal *w, size_t bytes, uint32_t n_records, struct err *e)
{
    if (bytes > WAL_PAYLOAD_MAX)
        return err_set(e, KITH_ELIMIT,
                       "a change of %zu bytes is larger than the log's limit of %d", bytes,
                       WAL_PAYLOAD_MAX);
    size_t need = bytes + (size_t)n_records * (WAL_RECORD_HEADER_BYTES + 7);
    pthread_mutex_lock(&w->lock);
    w->touched = true;
    int rc = 0;
    struct claim *claim = my_claim(w);
    if (claim) {
        w->claimed -= claim->left;
        claim->left = 0;
    }
    size_t waiting = w->active.len + w->flying.len;
    if (atomic_load(&w->failed))
        rc = err_set(e, KITH_ECLOSED, "the log stopped after a failed sync");
    else if (w->closing)
        rc = err_set(e, KITH_ECLOSED, "the log is closed");
    else if (w->write_error.code != 0)
        rc = err_set(e, w->write_error.code, "%s", w->write_error.message);
    else if (waiting > 0 && waiting + need > BUFFER_LIMIT_BYTES)
        rc = err_set(e, KITH_EBUSY, "%zu bytes wait to be written to the log", waiting);
    else if (!claim || !group_reserve(&w->active, w->claimed + need))
        rc = err_set(e, KITH_ENOMEM, "out of memory for %zu bytes of the log", need);
    else
        rc = reserve_segment(w, w->claimed + need, e);
    /* Waiting may have let others in: take the sum again, now that the lock is ours for good.
     */
    while (rc == 0 && (room_of(w->current) < w->claimed + need ||
                       w->active.cap - w->active.len < w->claimed + need)) {
        if (!group_reserve(&w->active, w->claimed + need))
            rc = err_set(e, KITH_ENOMEM, "out of memory for %zu bytes of the log", need);
        else
            rc = reserve_segment(w, w->claimed + need, e);
    }
    if (rc == 0) {
        claim = my_claim(w);
        claim->left = need;
        w->claimed += need;
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

void wal_unreserve(struct wal *w)
{
    pthread_mutex_lock(&w->lock);
    for (size_t i = 0; i < w->n_claims; i++) {
        if (!pthread_equal(w->claims[i].thread, pthread_self()))
            continue;
        w->claimed -= w->claims[i].left;
        w->claims[i].left = 0;
        break;
    }
    pthread_mutex_unlock(&w->lock);
}

uint64_t wal_append(struct wal *w, uint64_t epoch, const void *payload, size_t bytes)
{
    size_t total = wal_record_bytes(bytes);
    pthread_mutex_lock(&w->lock);
    struct claim *claim = my_claim(w);
    assert(claim && claim->left >= total && "wal_append needs a wal_reserve that covers it");
    assert(epoch >= w->last_epoch);
    claim->left -= total;
    w->claimed -= total;
    struct segment *s = w->current;
    uint64_t index = wal_last(w) + 1;
    char *to = w->active.data + w->active.len;
    memcpy(to + WAL_RECORD_HEADER_BYTES, payload, bytes);
    memset(to + WAL_RECORD_HEADER_BYTES + bytes, 0, total - WAL_RECORD_HEADER_BYTES - bytes);
    wal_encode_record(to, s->salt, wal_payload_hash(payload, bytes, s->salt), (uint32_t)bytes,
                      epoch, index, wal_durable(w));
    w->active.len += total;
    s->used += total;
    w->last_epoch = epoch;
    atomic_store_explicit(&w->last, index, memory_order_release);
    bool half = !w->spare && s->used > s->bytes / 2;
    if (w->asleep && (w->sync == WAL_SYNC_ALWAYS || half))
        pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);
    return index;
}

/* --- writing and syncing --- */

/* Under io: writes the in-flight group from flying_done on. */
static int write_flying(struct wal *w, struct err *e)
{
    while (w->flying_done < w->flying.len) {
        uint64_t pos = w->flying_pos + w->flying_done;
        size_t n = w->flying.len - w->flying_done;
        pthread_mutex_lock(&w->lock);
        struct segment *s = w->target;
        while (s->next && s->next->start_pos <= pos)
            s = s->next;
        if (s->next && s->next->start_pos - pos < n)
            n = (size_t)(s->next->start_pos - pos);
        w->target = s;
        s->dirty = true;
        pthread_mutex_unlock(&w->lock);
        if (!s->named) {
            int rc = segment_name(w, s, e);
            if (rc != 0)
                return rc;
            pthread_mutex_lock(&w->lock);
            s->named = true;
            w->dir_dirty = true;
            pthread_mutex_unlock(&w->lock);
        }
        uint64_t offset = WAL_SEGMENT_HEADER_BYTES + (pos - s->start_pos);
        int rc = file_pwrite_all(s->fd, w->flying.data + w->flying_done, n, offset, e);
        if (rc != 0) {
            err_wrap(e, "log segment %llu", (unsigned long long)s->first);
            return rc;
        }
        w->flying_done += n;
    }
    return 0;
}

static void group_reset(struct group *g)
{
    if (g->cap > BUFFER_KEEP_BYTES) {
        mem_free(g->data);
        *g = (struct group){0};
    }
    g->len = 0;
}

/* Under io: what is in flight from a failed write, then everything appended before the call. */
static int write_pending(struct wal *w, struct err *e)
{
    bool moved = false;
    int rc = 0;
    for (int round = 0; round < 2 && rc == 0; round++) {
        pthread_mutex_lock(&w->lock);
        if (w->flying.len == 0 && w->active.len > 0) {
            /* The buffers change places; outstanding claims need their room in the new active.
             */
            group_reset(&w->flying);
            if (w->flying.cap < w->claimed && !group_reserve(&w->flying, w->claimed))
                rc = err_set(e, KITH_ENOMEM, "out of memory for the log's second buffer");
            else {
                struct group g = w->flying;
                w->flying = w->active;
                w->active = g;
                w->flying_pos = w->active_pos;
                w->active_pos += w->flying.len;
                w->flying_done = 0;
                w->flying_last = wal_last(w);
                round = 1;
            }
        }
        bool any = w->flying.len > 0;
        pthread_mutex_unlock(&w->lock);
        if (rc == 0 && any)
            rc = write_flying(w, e);
        pthread_mutex_lock(&w->lock);
        if (rc == 0 && any) {
            w->flying.len = 0;
            atomic_store_explicit(&w->written, w->flying_last, memory_order_release);
            moved = release(w) || moved;
        }
        if (rc != 0)
            w->retry_at_us = clock_mono_us() + RETRY_US;
        err_set(&w->write_error, rc, "%s", rc && e ? e->message : "");
        if (rc != 0)
            pthread_cond_signal(&w->work);
        pthread_mutex_unlock(&w->lock);
        if (!any)
            break;
    }
    if (moved && !atomic_load(&w->failed))
        write_mark(w);
    if (moved)
        tell_advance(w);
    return rc;
}

static int write_locked(struct wal *w, struct err *e)
{
    struct err why = {0};
    pthread_mutex_lock(&w->io);
    int rc = write_pending(w, &why);
    pthread_mutex_unlock(&w->io);
    if (rc != 0 && e)
        *e = why;
    return rc;
}

int wal_flush(struct wal *w, struct err *e)
{
    pthread_mutex_lock(&w->lock);
    bool needed = w->sync != WAL_SYNC_ALWAYS;
    pthread_mutex_unlock(&w->lock);
    if (atomic_load(&w->failed))
        return err_set(e, KITH_ECLOSED, "the log stopped after a failed sync");
    return needed ? write_locked(w, e) : 0;
}

static void fail_for_good(struct wal *w, const struct err *why)
{
    pthread_mutex_lock(&w->lock);
    bool first = !atomic_exchange(&w->failed, true);
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
    if (first && w->options.on_fatal)
        w->options.on_fatal(w->options.arg, why);
}

/* The log's thread: makes everything written so far durable. */
static void sync_written(struct wal *w)
{
    struct err why = {0};
    int rc = 0;
    pthread_mutex_lock(&w->lock);
    uint64_t target = wal_written(w);
    bool dir_dirty = w->dir_dirty;
    w->dir_dirty = false;
    for (struct segment *s = w->oldest; s && rc == 0; s = s->next) {
        if (!s->dirty)
            continue;
        s->dirty = false;
        /* Only this thread closes a segment's descriptor, and a trim leaves open ones alone. */
        pthread_mutex_unlock(&w->lock);
        if (fdatasync(s->fd) != 0)
            rc = err_set_errno(&why, errno, "cannot sync log segment %llu",
                               (unsigned long long)s->first);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    if (rc == 0 && dir_dirty && fsync(w->dir_fd) != 0)
        rc = err_set_errno(&why, errno, "cannot sync the directory %s/wal", w->dir);
    if (rc != 0) {
        fail_for_good(w, &why);
        return;
    }
    pthread_mutex_lock(&w->lock);
    atomic_store_explicit(&w->durable, target, memory_order_release);
    for (struct segment *s = w->oldest; s->next && s->next->first <= target + 1; s = s->next) {
        if (s->fd >= 0 && !s->dirty) {
            close(s->fd);
            s->fd = -1;
        }
    }
    bool moved = release(w);
    w->sync_at_us = clock_mono_us() + SYNC_EVERY_US;
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
    write_mark(w);
    if (moved)
        tell_advance(w);
}

/* --- the log's thread --- */

struct plan {
    bool write, sync, spare;
    int64_t wake_us; /* 0: when signalled */
};

static void sooner(int64_t *wake, int64_t at)
{
    if (*wake == 0 || at < *wake)
        *wake = at;
}

/* Under the lock: what is to be done now, and when to look again if nothing is. */
static struct plan plan(const struct wal *w, int64_t now)
{
    struct plan p = {0};
    if (atomic_load(&w->failed))
        return p;
    bool pending = w->active.len > 0 || w->flying.len > 0;
    bool unsynced = wal_written(w) > wal_durable(w);
    bool wanted = w->sync_wanted > wal_durable(w);
    bool rolled =
        false; /* a full segment is synced soon in any mode, so that it can be closed */
    for (const struct segment *s = w->oldest; s->next && !rolled; s = s->next)
        rolled = s->dirty;
    bool timed = w->sync == WAL_SYNC_EVERYSEC && (pending || unsynced);
    bool now_due = w->sync == WAL_SYNC_ALWAYS || wanted || w->closing;
    if (timed && now >= w->sync_at_us)
        now_due = true;
    else if (timed)
        sooner(&p.wake_us, w->sync_at_us);
    bool retrying = w->write_error.code != 0;
    if (pending && (now_due || retrying)) {
        p.write = !retrying || now >= w->retry_at_us || w->closing;
        if (!p.write)
            sooner(&p.wake_us, w->retry_at_us);
    }
    p.sync = (p.write && now_due) || (unsynced && (now_due || rolled));
    const struct segment *c = w->current;
    p.spare = !w->closing && (w->spare_wanted > 0 || (!w->spare && w->spare_error.code == 0 &&
                                                      c->used > c->bytes / 2));
    return p;
}

/* Makes the spare. A failure is told to those who wait; the attempts made ahead of need stop
 * until a reservation asks. */
static void make_spare(struct wal *w)
{
    pthread_mutex_lock(&w->lock);
    size_t room = w->spare_wanted;
    uint64_t attempt = ++w->spare_begun;
    w->spare_wanted = 0;
    unsigned id = w->next_spare_id++;
    pthread_mutex_unlock(&w->lock);
    struct segment *s = NULL;
    struct err why = {0};
    int rc = segment_new(w, id, room, &s, &why);
    pthread_mutex_lock(&w->lock);
    w->spare_error = why;
    w->spare_error.code = rc;
    struct segment *old = s ? w->spare : NULL;
    if (s)
        w->spare = s;
    w->spare_ended = attempt;
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
    segment_free(w, old);
}

static void sleep_until(struct wal *w, int64_t wake_us)
{
    w->asleep = true;
    if (wake_us == 0) {
        pthread_cond_wait(&w->work, &w->lock);
    } else {
        struct timespec at = {.tv_sec = wake_us / 1000000, .tv_nsec = wake_us % 1000000 * 1000};
        pthread_cond_timedwait(&w->work, &w->lock, &at);
    }
    w->asleep = false;
}

static void *log_thread(void *arg)
{
    struct wal *w = arg;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        struct plan p = plan(w, clock_mono_us());
        bool idle = !p.write && !p.sync && !p.spare;
        if (idle && w->closing)
            break;
        if (idle) {
            sleep_until(w, p.wake_us);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        bool ok = !p.write || write_locked(w, NULL) == 0;
        if (p.sync && ok)
            sync_written(w);
        if (p.spare)
            make_spare(w);
        pthread_mutex_lock(&w->lock);
        if (!ok) {
            pthread_cond_broadcast(&w->done);
            if (w->closing)
                break;
        }
    }
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int wal_sync_to(struct wal *w, uint64_t index, struct err *e)
{
    int rc = 0;
    pthread_mutex_lock(&w->lock);
    if (index > wal_last(w))
        rc = err_set(e, KITH_EINVAL, "the log ends at %llu, %llu cannot be synced",
                     (unsigned long long)wal_last(w), (unsigned long long)index);
    while (rc == 0 && wal_durable(w) < index) {
        if (atomic_load(&w->failed) || w->closing) {
            rc = err_set(e, KITH_ECLOSED, "the log stopped after a failed sync");
        } else if (w->write_error.code != 0) {
            rc = err_set(e, w->write_error.code, "%s", w->write_error.message);
        } else {
            if (w->sync_wanted < index)
                w->sync_wanted = index;
            pthread_cond_signal(&w->work);
            pthread_cond_wait(&w->done, &w->lock);
        }
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

void wal_set_sync(struct wal *w, enum wal_sync sync)
{
    pthread_mutex_lock(&w->lock);
    w->sync = sync;
    w->sync_at_us = clock_mono_us() + SYNC_EVERY_US;
    bool moved = release(w);
    pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);
    if (moved) {
        write_mark(w);
        tell_advance(w);
    }
}

/* --- open --- */

static int remove_temporaries(struct wal *w, struct err *e)
{
    char path[WAL_PATH_MAX];
    int rc = wal_path(path, w->dir, "", e);
    if (rc != 0)
        return rc;
    DIR *d = opendir(path);
    if (!d)
        return err_set_errno(e, errno, "cannot open directory %s", path);
    struct dirent *entry;
    while ((entry = readdir(d)) != NULL) {
        if (strstr(entry->d_name, ".tmp") && unlinkat(dirfd(d), entry->d_name, 0) != 0 &&
            rc == 0)
            rc = err_set_errno(e, errno, "cannot remove %s/%s", path, entry->d_name);
    }
    closedir(d);
    return rc;
}

/* Cuts everything after the end that the survey found: later segments first and from the newest
 * back, so that a cut that was interrupted is found and done again. */
static int cut_tail(struct wal *w, struct wal_survey *v, struct err *e)
{
    char path[WAL_PATH_MAX];
    int rc = 0;
    while (rc == 0 && v->n_segments > v->end_segment + 1) {
        rc = wal_segment_path(path, w->dir, v->firsts[v->n_segments - 1], e);
        if (rc == 0 && unlink(path) != 0)
            rc = err_set_errno(e, errno, "cannot remove the torn segment %s", path);
        if (rc == 0)
            rc = wal_path(path, w->dir, "", e);
        if (rc == 0)
            rc = file_sync_dir(path, e);
        if (rc == 0)
            v->n_segments--;
    }
    if (rc == 0)
        rc = wal_segment_path(path, w->dir, v->firsts[v->end_segment], e);
    if (rc == 0 && truncate(path, (off_t)v->end_offset) != 0)
        rc = err_set_errno(e, errno, "cannot cut the torn tail of %s", path);
    return rc;
}

/* Reopens a segment that a former process made. */
static int adopt(struct wal *w, const struct wal_survey *v, uint32_t i, struct err *e)
{
    struct wal_scan scan;
    bool is_end = i == v->end_segment, obsolete = i < v->start;
    struct segment *s = mem_calloc(1, sizeof *s);
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory opening the log");
    s->first = v->firsts[i];
    s->fd = -1;
    s->named = true;
    if (w->current)
        w->current->next = s;
    else
        w->oldest = s;
    w->current = s;
    char path[WAL_PATH_MAX];
    struct stat st;
    int rc = wal_segment_path(path, w->dir, s->first, e);
    if (rc == 0 && stat(path, &st) != 0)
        rc = err_set_errno(e, errno, "cannot stat %s", path);
    if (rc != 0)
        return rc;
    s->bytes = (uint64_t)st.st_size;
    s->used = is_end ? v->end_offset : s->bytes;
    if (obsolete)
        return 0;
    if ((rc = wal_scan_open(&scan, w->dir, s->first, e)) != 0)
        return rc;
    s->salt = scan.salt;
    wal_scan_close(&scan);
    /* Records that a killed process wrote and never synced become durable here, before anybody
     * is shown them. */
    s->fd = open(path, O_RDWR | O_CLOEXEC);
    if (s->fd < 0)
        return err_set_errno(e, errno, "cannot open %s", path);
    if (is_end && preallocate(s->fd, s->bytes, w->options.segment_bytes, path, NULL) == 0 &&
        s->bytes < w->options.segment_bytes)
        s->bytes = w->options.segment_bytes;
    if (fsync(s->fd) != 0)
        return err_set_errno(e, errno, "cannot sync %s", path);
    if (!is_end) {
        close(s->fd);
        s->fd = -1;
    }
    return 0;
}

static int open_mark(struct wal *w, struct err *e)
{
    char path[WAL_PATH_MAX], mark[WAL_MARK_BYTES];
    int rc = wal_path(path, w->dir, "durable", e);
    if (rc != 0)
        return rc;
    wal_boot_id(w->boot);
    /* Whole and synced once; from then on it is rewritten in place, which needs no room. */
    if (!file_exists(path)) {
        wal_mark_encode(mark, wal_durable(w), wal_released(w), w->boot);
        if ((rc = file_write_whole(path, mark, sizeof mark, e)) != 0)
            return rc;
    }
    w->mark_fd = open(path, O_WRONLY | O_CLOEXEC);
    if (w->mark_fd < 0)
        return err_set_errno(e, errno, "cannot open %s", path);
    write_mark(w);
    return 0;
}

static int recover(struct wal *w, uint64_t after, struct err *e)
{
    struct wal_survey v;
    int rc = remove_temporaries(w, e);
    if (rc == 0)
        rc = wal_survey(&v, w->dir, after, NULL, NULL, NULL, e);
    if (rc != 0)
        return rc;
    if (v.torn)
        rc = cut_tail(w, &v, e);
    for (uint32_t i = 0; i < v.n_segments && rc == 0; i++)
        rc = adopt(w, &v, i, e);
    if (rc == 0 && v.n_segments == 0) {
        rc = segment_new(w, w->next_spare_id++, 0, &w->current, e);
        if (rc == 0) {
            w->oldest = w->current;
            w->current->first = v.last + 1;
            rc = segment_name(w, w->current, e);
            w->current->named = rc == 0;
        }
    }
    if (rc == 0 && fsync(w->dir_fd) != 0)
        rc = err_set_errno(e, errno, "cannot sync the directory %s/wal", w->dir);
    if (rc == 0) {
        /* The stream's positions count from the first byte after the recovered end. */
        w->current->start_pos = 0;
        w->active_pos = w->current->used - WAL_SEGMENT_HEADER_BYTES;
        w->target = w->current;
        w->last_epoch = v.last_epoch;
        atomic_store(&w->last, v.last);
        atomic_store(&w->written, v.last);
        atomic_store(&w->durable, v.last);
        atomic_store(&w->released, v.last);
        rc = open_mark(w, e);
    }
    wal_survey_deinit(&v);
    return rc;
}

static void wal_free(struct wal *w)
{
    for (struct segment *s = w->oldest, *next; s; s = next) {
        next = s->next;
        segment_free(w, s);
    }
    segment_free(w, w->spare);
    if (w->mark_fd >= 0)
        close(w->mark_fd);
    if (w->dir_fd >= 0)
        close(w->dir_fd);
    if (w->lock_fd >= 0)
        file_unlock(w->lock_fd);
    mem_free(w->active.data);
    mem_free(w->flying.data);
    mem_free(w->claims);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->done);
    pthread_mutex_destroy(&w->io);
    pthread_mutex_destroy(&w->lock);
    pthread_mutex_destroy(&w->mark_lock);
    mem_free(w);
}

static void init_locks(struct wal *w)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->io, NULL);
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->mark_lock, NULL);
    pthread_cond_init(&w->work, &monotonic);
    pthread_cond_init(&w->done, NULL);
    pthread_condattr_destroy(&monotonic);
}

static int open_directory(struct wal *w, struct err *e)
{
    char path[WAL_PATH_MAX];
    int rc = wal_path(path, w->dir, "", e);
    if (rc == 0)
        rc = file_make_dirs(path, e);
    if (rc == 0)
        rc = file_sync_dir(w->dir, e);
    if (rc != 0)
        return rc;
    w->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->dir_fd < 0)
        return err_set_errno(e, errno, "cannot open directory %s", path);
    if ((rc = wal_path(path, w->dir, "lock", e)) != 0)
        return rc;
    w->lock_fd = file_lock(path, e);
    return w->lock_fd < 0 ? w->lock_fd : 0;
}

int wal_open(struct wal **out, const char *dir, const struct wal_options *options,
             uint64_t after, struct err *e)
{
    *out = NULL;
    struct wal *w = mem_calloc(1, sizeof *w);
    if (!w)
        return err_set(e, KITH_ENOMEM, "out of memory opening the log");
    w->lock_fd = w->dir_fd = w->mark_fd = -1;
    w->options = *options;
    if (w->options.segment_bytes == 0)
        w->options.segment_bytes = SEGMENT_BYTES_DEFAULT;
    if (w->options.segment_bytes < SEGMENT_BYTES_MIN)
        w->options.segment_bytes = SEGMENT_BYTES_MIN;
    w->sync = options->sync;
    init_locks(w);
    int rc = 0;
    if (snprintf(w->dir, sizeof w->dir, "%s", dir) >= (int)sizeof w->dir)
        rc = err_set(e, KITH_EINVAL, "path too long: %s", dir);
    if (rc == 0)
        rc = open_directory(w, e);
    if (rc == 0)
        rc = recover(w, after, e);
    if (rc == 0) {
        int why = pthread_create(&w->thread, NULL, log_thread, w);
        if (why != 0)
            rc = err_set_errno(e, why, "cannot start the log's thread");
    }
    if (rc != 0) {
        wal_free(w);
        return rc;
    }
    *out = w;
    return 0;
}

int wal_close(struct wal *w, struct err *e)
{
    if (!w)
        return 0;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    pthread_cond_signal(&w->work);
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    int rc = 0;
    if (wal_durable(w) != wal_last(w))
        rc = err_set(e, w->write_error.code ? w->write_error.code : KITH_EIO,
                     "the log was closed with its records after %llu not durable: %s",
                     (unsigned long long)wal_durable(w),
                     w->write_error.code ? w->write_error.message : "a sync failed");
    wal_free(w);
    return rc;
}

/* --- replay, trim, sizes, check --- */

static int replay_segment(struct wal *w, const struct segment *s, uint64_t after,
                          uint64_t *next,
                          int (*fn)(void *arg, const struct wal_record *r, struct err *e),
                          void *arg, struct err *e)
{
    struct wal_scan scan;
    struct wal_entry r;
    uint64_t upto = s->next ? s->next->first - 1 : wal_last(w), index = s->first;
    int rc = wal_scan_open(&scan, w->dir, s->first, e);
    while (rc == 0 && index <= upto) {
        rc = wal_scan_next(&scan, &r, e);
        if (rc < 0)
            break;
        if (rc == 0 || r.record.index != index) {
            rc = err_set(e, KITH_ECORRUPT, "%s:%llu: record %llu is damaged (%s)", scan.path,
                         (unsigned long long)scan.offset, (unsigned long long)index,
                         rc == 0 ? scan.why : "another record is there");
            break;
        }
        rc = index > after ? fn(arg, &r.record, e) : 0;
        index++;
    }
    wal_scan_close(&scan);
    *next = index;
    return rc;
}

int wal_replay(struct wal *w, uint64_t after,
               int (*fn)(void *arg, const struct wal_record *r, struct err *e), void *arg,
               struct err *e)
{
    assert(!w->touched && "wal_replay comes before the first append");
    uint64_t next = after + 1;
    int rc = 0;
    if (w->oldest->first > next)
        return err_set(e, KITH_ENOTFOUND, "the log begins at record %llu, %llu was asked for",
                       (unsigned long long)w->oldest->first, (unsigned long long)next);
    for (struct segment *s = w->oldest; s && rc == 0; s = s->next) {
        if (s->next && s->next->first <= after + 1)
            continue;
        rc = replay_segment(w, s, after, &next, fn, arg, e);
    }
    return rc;
}

int wal_trim(struct wal *w, uint64_t upto, struct err *e)
{
    for (;;) {
        char path[WAL_PATH_MAX];
        pthread_mutex_lock(&w->lock);
        struct segment *s = w->oldest;
        bool can = s->next && s->next->first - 1 <= upto &&
                   s->next->first - 1 <= wal_durable(w) && s->fd < 0 && !s->dirty &&
                   w->target != s;
        int rc = can ? wal_segment_path(path, w->dir, s->first, e) : 0;
        if (can && rc == 0 && unlink(path) != 0 && errno != ENOENT)
            rc = err_set_errno(e, errno, "cannot remove %s", path);
        if (can && rc == 0) {
            w->oldest = s->next;
            mem_free(s);
        }
        pthread_mutex_unlock(&w->lock);
        if (!can || rc != 0)
            return rc;
    }
}

uint64_t wal_bytes(const struct wal *w)
{
    struct wal *m = (struct wal *)w; /* const to its callers, the lock aside */
    pthread_mutex_lock(&m->lock);
    uint64_t bytes = 0;
    for (const struct segment *s = w->oldest; s; s = s->next)
        bytes += s->used;
    pthread_mutex_unlock(&m->lock);
    return bytes;
}

uint64_t wal_bytes_after(const struct wal *w, uint64_t index)
{
    struct wal *m = (struct wal *)w;
    uint64_t bytes = 0;
    pthread_mutex_lock(&m->lock);
    for (struct segment *s = w->oldest; s; s = s->next) {
        uint64_t end = s->next ? s->next->first : wal_last(w) + 1;
        if (end <= index + 1 || end == s->first)
            continue;
        uint64_t n = end - s->first, after = index >= s->first ? end - 1 - index : n;
        bytes += (uint64_t)((double)(s->used - WAL_SEGMENT_HEADER_BYTES) * (double)after /
                            (double)n);
    }
    pthread_mutex_unlock(&m->lock);
    return bytes;
}

int wal_check(const char *dir, uint64_t after,
              void (*note)(void *arg, const char *where, const char *what), void *arg,
              struct err *e)
{
    struct wal_survey v;
    uint32_t findings = 0;
    int rc = wal_survey(&v, dir, after, note, arg, &findings, e);
    if (rc != 0)
        return rc;
    wal_survey_deinit(&v);
    return (int)findings;
}
