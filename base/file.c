#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

int file_pwrite_all(int fd, const void *p, size_t n, uint64_t offset, struct err *e)
{
    const char *from = p;
    while (n > 0) {
        ssize_t w = pwrite(fd, from, n, (off_t)offset);
        if (w < 0) {
            if (errno == EINTR)
                continue;
            return err_set_errno(e, errno, "write of %zu bytes at %llu", n,
                                 (unsigned long long)offset);
        }
        from += w;
        n -= (size_t)w;
        offset += (uint64_t)w;
    }
    return 0;
}

ssize_t file_pread_all(int fd, void *p, size_t n, uint64_t offset, struct err *e)
{
    char *to = p;
    size_t done = 0;
    while (done < n) {
        ssize_t r = pread(fd, to + done, n - done, (off_t)(offset + done));
        if (r < 0) {
            if (errno == EINTR)
                continue;
            return err_set_errno(e, errno, "read of %zu bytes at %llu", n - done,
                                 (unsigned long long)(offset + done));
        }
        if (r == 0)
            break;
        done += (size_t)r;
    }
    return (ssize_t)done;
}

int file_read_whole(const char *path, size_t max_bytes, struct buf *out, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot open %s", path);
    int rc = 0;
    struct stat st;
    if (fstat(fd, &st) != 0) {
        rc = err_set_errno(e, errno, "cannot stat %s", path);
    } else if (!S_ISREG(st.st_mode)) {
        rc = err_set(e, KITH_EINVAL, "%s is not a regular file", path);
    } else if ((uint64_t)st.st_size > max_bytes) {
        rc = err_set(e, KITH_ELIMIT, "%s has %lld bytes, at most %zu are read", path,
                     (long long)st.st_size, max_bytes);
    } else if (st.st_size > 0) {
        char *to = buf_reserve(out, (size_t)st.st_size);
        ssize_t got = to ? file_pread_all(fd, to, (size_t)st.st_size, 0, e)
                         : err_set(e, KITH_ENOMEM, "out of memory reading %s", path);
        if (got < 0)
            rc = (int)got;
        else
            out->len += (size_t)got;
    }
    close(fd);
    return rc;
}

static int sync_dir_of(const char *path, struct err *e)
{
    char dir[4096];
    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (!slash)
        snprintf(dir, sizeof dir, ".");
    else if (slash == dir)
        dir[1] = '\0';
    else
        *slash = '\0';
    return file_sync_dir(dir, e);
}

int file_write_whole(const char *path, const void *p, size_t n, struct err *e)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.tmp-%d", path, (int)getpid()) >=
        (int)sizeof temporary)
        return err_set(e, KITH_EINVAL, "path too long: %s", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot create %s", temporary);
    int rc = file_pwrite_all(fd, p, n, 0, e);
    if (rc == 0 && fdatasync(fd) != 0)
        rc = err_set_errno(e, errno, "cannot sync %s", temporary);
    if (close(fd) != 0 && rc == 0)
        rc = err_set_errno(e, errno, "cannot close %s", temporary);
    if (rc == 0 && rename(temporary, path) != 0)
        rc = err_set_errno(e, errno, "cannot rename %s to %s", temporary, path);
    if (rc != 0) {
        unlink(temporary);
        return rc;
    }
    return sync_dir_of(path, e);
}

/* The lock is taken on the file that has the name: its owner may have renamed it, or a writer
 * that failed removed it, between our open and our lock. */
static int lock_temporary(const struct file_replacement *r, struct err *e)
{
    struct stat ours, named;
    if (flock(r->fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? err_set(e, KITH_EBUSY, "another process writes %s", r->path)
                   : err_set_errno(e, errno, "cannot lock %s", r->temporary);
    if (fstat(r->fd, &ours) != 0)
        return err_set_errno(e, errno, "cannot stat %s", r->temporary);
    if (!S_ISREG(ours.st_mode))
        return err_set(e, KITH_EINVAL, "%s is not a regular file", r->temporary);
    if (lstat(r->temporary, &named) != 0 || ours.st_dev != named.st_dev ||
        ours.st_ino != named.st_ino)
        return err_set(e, KITH_EBUSY, "another process wrote %s just now", r->path);
    return 0;
}

int file_replace_begin(struct file_replacement *r, const char *path, uint64_t bytes,
                       mode_t mode, struct err *e)
{
    *r = (struct file_replacement){.fd = -1};
    if (snprintf(r->path, sizeof r->path, "%s", path) >= (int)sizeof r->path)
        return err_set(e, KITH_EINVAL, "path too long: %s", path);
    snprintf(r->temporary, sizeof r->temporary, "%s.tmp", r->path);
    r->fd = open(r->temporary, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, mode);
    if (r->fd < 0)
        return err_set_errno(e, errno, "cannot create %s", r->temporary);
    int rc = lock_temporary(r, e);
    if (rc != 0) { /* not ours to remove */
        close(r->fd);
        r->fd = -1;
        return rc;
    }
    if (fchmod(r->fd, mode) != 0)
        rc = err_set_errno(e, errno, "cannot write %s", r->temporary);
    /* Not every file system can do it; where it can, a full disk is known before it is. */
    else if (fallocate(r->fd, 0, 0, (off_t)bytes) != 0 && (errno == ENOSPC || errno == EFBIG))
        rc = err_set_errno(e, errno, "no room for the %llu bytes of %s",
                           (unsigned long long)bytes, path);
    if (rc != 0)
        file_replace_cancel(r);
    return rc;
}

int file_replace_append(struct file_replacement *r, const void *p, size_t n, struct err *e)
{
    int rc = file_pwrite_all(r->fd, p, n, r->bytes, e);
    if (rc != 0)
        return err_wrap(e, "%s", r->temporary), rc;
    r->bytes += n;
    return 0;
}

int file_replace_commit(struct file_replacement *r, struct err *e)
{
    int rc = 0;
    if (ftruncate(r->fd, (off_t)r->bytes) != 0 || fsync(r->fd) != 0)
        rc = err_set_errno(e, errno, "cannot sync %s", r->temporary);
    else if (rename(r->temporary, r->path) != 0)
        rc = err_set_errno(e, errno, "cannot rename %s to %s", r->temporary, r->path);
    if (rc != 0) {
        file_replace_cancel(r);
        return rc;
    }
    close(r->fd);
    r->fd = -1;
    return sync_dir_of(r->path, e);
}

void file_replace_cancel(struct file_replacement *r)
{
    if (r->fd < 0)
        return;
    unlink(r->temporary);
    close(r->fd);
    r->fd = -1;
}

int file_sync_dir(const char *dir, struct err *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot open directory %s", dir);
    int rc = 0;
    if (fsync(fd) != 0)
        rc = err_set_errno(e, errno, "cannot sync directory %s", dir);
    close(fd);
    return rc;
}

int file_make_dirs(const char *dir, struct err *e)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path)
        return err_set(e, KITH_EINVAL, "path too long: %s", dir);
    for (char *p = path + 1;; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char was = *p;
        *p = '\0';
        if (mkdir(path, 0755) != 0 && errno != EEXIST)
            return err_set_errno(e, errno, "cannot create directory %s", path);
        *p = was;
        if (!was)
            break;
    }
    struct stat st;
    if (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode))
        return err_set(e, KITH_EINVAL, "%s is not a directory", dir);
    return 0;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int file_map_open(struct file_map *m, const char *path, struct err *e)
{
    *m = (struct file_map){0};
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a pipe is refused, not awaited */
    if (fd < 0)
        return err_set_errno(e, errno, "cannot open %s", path);
    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) != 0) {
        rc = err_set_errno(e, errno, "cannot stat %s", path);
    } else if (!S_ISREG(st.st_mode)) {
        rc = err_set(e, KITH_EINVAL, "%s is not a regular file", path);
    } else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            rc = err_set_errno(e, errno, "cannot map %s", path);
        else
            *m = (struct file_map){.data = p, .bytes = (size_t)st.st_size};
    }
    close(fd);
    return rc;
}

void file_map_forget(const struct file_map *m)
{
    if (m->data)
        madvise((void *)(uintptr_t)m->data, m->bytes, MADV_DONTNEED); /* only advice */
}

void file_map_close(struct file_map *m)
{
    if (m->data)
        munmap((void *)m->data, m->bytes);
    *m = (struct file_map){0};
}

int file_lock(const char *path, struct err *e)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot open the lock file %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        char pid[32] = "";
        ssize_t n = pread(fd, pid, sizeof pid - 1, 0);
        if (n > 0)
            pid[strcspn(pid, "\n")] = '\0';
        close(fd);
        if (why == EWOULDBLOCK)
            return err_set(e, KITH_EBUSY, "%s is held by the process %s", path,
                           *pid ? pid : "of another user");
        return err_set_errno(e, why, "cannot lock %s", path);
    }
    char pid[32];
    int n = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
    /* The pid is there to help a person; a full disk must not keep the owner out. */
    if (ftruncate(fd, 0) == 0 && pwrite(fd, pid, (size_t)n, 0) != n)
        (void)ftruncate(fd, 0);
    return fd;
}

void file_unlock(int fd)
{
    close(fd);
}
