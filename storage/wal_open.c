/* Opening, closing and everything about the log as a set of files: recovery, replay, trimming,
 * sizes, the offline check. What recovery decides is argued in storage/wal_survey.c; here it is
 * done, in an order that may be interrupted anywhere and begun again. */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "storage/wal.h"
#include "storage/wal_internal.h"

enum { SEGMENT_BYTES_DEFAULT = 64 << 20, SEGMENT_BYTES_MIN = 4096 };

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
    if (is_end && wal_preallocate(s->fd, s->bytes, w->options.segment_bytes, path, NULL) == 0 &&
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
    wal_write_mark(w);
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
        rc = wal_segment_new(w, w->next_spare_id++, 0, &w->current, e);
        if (rc == 0) {
            w->oldest = w->current;
            w->current->first = v.last + 1;
            rc = wal_segment_name(w, w->current, e);
            w->current->named = rc == 0;
        }
    }
    if (rc == 0 && unlinkat(w->dir_fd, WAL_ABANDONED, 0) != 0 && errno != ENOENT)
        rc = err_set_errno(e, errno, "cannot remove %s/wal/" WAL_ABANDONED, w->dir);
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
        wal_segment_free(w, s);
    }
    wal_segment_free(w, w->spare);
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
        int why = pthread_create(&w->thread, NULL, wal_thread, w);
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
