/* How the log works.
 *
 *   appenders ──memcpy──► active buffer       under `lock`
 *   active ──swap──► in-flight buffer         under `io` and `lock`
 *   in-flight ──pwrite──► segment             under `io`, by the log's thread or wal_flush
 *   segment ──fdatasync──► disk               by the log's thread, without a lock
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
 *     of time; only when there is none yet does a reservation wait, and only there does a full
 *     disk show. Nothing is remembered of a refusal, so the next reservation tries again.
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
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "storage/wal_internal.h"

enum {
    BUFFER_LIMIT_BYTES = 64 << 20, /* past it wal_reserve says KITH_EBUSY */
    BUFFER_KEEP_BYTES = 4 << 20,   /* a larger idle buffer is given back */
    RETRY_US = 10 * 1000,
    SYNC_EVERY_US = 1000 * 1000
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
void wal_write_mark(struct wal *w)
{
    char mark[WAL_MARK_BYTES];
    pthread_mutex_lock(&w->mark_lock);
    wal_mark_encode(mark, wal_durable(w), wal_released(w), w->boot);
    (void)file_pwrite_all(w->mark_fd, mark, sizeof mark, 0, NULL);
    pthread_mutex_unlock(&w->mark_lock);
}

/* --- reserve and append --- */

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
        wal_segment_free(w, before);
    } else {
        before->next = s;
        w->current = s;
    }
    pthread_cond_signal(&w->work);
}

static struct claim *my_claim(struct wal *w)
{
    pthread_t me = pthread_self();
    for (size_t i = 0; i < w->n_claims; i++) {
        if (pthread_equal(w->claims[i].thread, me))
            return &w->claims[i];
    }
    struct claim *grown = mem_grow(w->claims, w->n_claims, &w->cap_claims, 16, sizeof *grown);
    if (!grown)
        return NULL;
    w->claims = grown;
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
        pthread_mutex_unlock(&w->lock);
        if (!s->named) {
            int rc = wal_segment_name(w, s, e);
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
        /* After the write: a sync that runs meanwhile must not take the mark away before the
         * bytes are there. */
        pthread_mutex_lock(&w->lock);
        s->dirty = true;
        pthread_mutex_unlock(&w->lock);
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
static int write_pending(struct wal *w, bool *moved, struct err *e)
{
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
            *moved = release(w) || *moved;
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
    return rc;
}

static int write_locked(struct wal *w, struct err *e)
{
    struct err why = {0};
    bool moved = false;
    pthread_mutex_lock(&w->io);
    int rc = write_pending(w, &moved, &why);
    pthread_mutex_unlock(&w->io);
    if (moved) {
        wal_write_mark(w);
        tell_advance(w);
    }
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
    wal_write_mark(w);
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
    int rc = wal_segment_new(w, id, room, &s, &why);
    pthread_mutex_lock(&w->lock);
    w->spare_error = why;
    w->spare_error.code = rc;
    struct segment *old = s ? w->spare : NULL;
    if (s)
        w->spare = s;
    w->spare_ended = attempt;
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
    wal_segment_free(w, old);
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

void *wal_thread(void *arg)
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
        wal_write_mark(w);
        tell_advance(w);
    }
}
