/* Making and naming of segment files. A segment is whole and synced before it gets its name. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/random.h"
#include "storage/wal_internal.h"

enum { ZEROS_BYTES = 1 << 20 };

static int spare_path(const struct wal *w, unsigned id, char out[WAL_PATH_MAX], struct err *e)
{
    char name[32];
    snprintf(name, sizeof name, "spare-%u.tmp", id);
    return wal_path(out, w->dir, name, e);
}

/* Room on the disk for the whole segment, so that a full disk shows here. */
int wal_preallocate(int fd, uint64_t from, uint64_t bytes, const char *path, struct err *e)
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

int wal_segment_new(struct wal *w, unsigned id, size_t room, struct segment **out,
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
    rc = wal_preallocate(s->fd, 0, s->bytes, path, e);
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

void wal_segment_free(struct wal *w, struct segment *s)
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

int wal_segment_name(struct wal *w, struct segment *s, struct err *e)
{
    char from[WAL_PATH_MAX], to[WAL_PATH_MAX];
    int rc = spare_path(w, s->spare_id, from, e);
    if (rc == 0)
        rc = wal_segment_path(to, w->dir, s->first, e);
    if (rc == 0 && rename(from, to) != 0)
        rc = err_set_errno(e, errno, "cannot rename %s to %s", from, to);
    return rc;
}
