#pragma once
/* What the storage tests share: copies of directories, and faults in system calls.
 *
 * The fault hooks define pwrite, fdatasync, fsync, fallocate, rename and open in the test
 * program itself, so that the linker prefers them to libc's, for our library and for LMDB's.
 * Armed, the n-th call of the chosen kinds, and all after it until disarmed, fail with an errno
 * or end the process. */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/error.h"
#include "base/file.h"
#include "tests/unit/unit_dir.h"

static inline void test_copy(const char *from, const char *to)
{
    DIR *d = opendir(from);
    if (!d) {
        struct err e;
        struct file_map m;
        assert_int_equal(file_map_open(&m, from, &e), 0);
        int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        assert_true(fd >= 0);
        assert_int_equal(file_pwrite_all(fd, m.data, m.bytes, 0, &e), 0);
        close(fd);
        file_map_close(&m);
        return;
    }
    mkdir(to, 0755);
    struct dirent *entry;
    while ((entry = readdir(d)) != NULL) {
        char a[512], b[512];
        if (unit_path(a, from, entry->d_name) && unit_path(b, to, entry->d_name))
            test_copy(a, b);
    }
    closedir(d);
}

#define assert_ok(call)                                                                        \
    do {                                                                                       \
        int rc_ = (int)(call);                                                                 \
        if (rc_ != 0)                                                                          \
            fail_msg("%s: %d, %s", #call, rc_, e.message);                                     \
    } while (0)

#ifdef TEST_FAULTS
enum {
    FAULT_PWRITE = 1,
    FAULT_SYNC = 2,
    FAULT_FALLOCATE = 4,
    FAULT_RENAME = 8,
    FAULT_OPEN = 16,
    FAULT_ALL = 31
};
static _Atomic int fault_kinds, fault_errno;
static _Atomic long fault_countdown, fault_calls;

static inline void fault_arm(int kinds, long nth, int errnum)
{
    atomic_store(&fault_errno, errnum);
    atomic_store(&fault_countdown, nth);
    atomic_store(&fault_calls, 0);
    atomic_store(&fault_kinds, kinds);
}

static inline void fault_disarm(void)
{
    atomic_store(&fault_kinds, 0);
}

/* errno 0 means: end the process here, as kill -9 would. */
static inline bool fault_hits(int kind)
{
    if (!(atomic_load(&fault_kinds) & kind))
        return false;
    atomic_fetch_add(&fault_calls, 1);
    if (atomic_fetch_sub(&fault_countdown, 1) > 1)
        return false;
    if (atomic_load(&fault_errno) == 0)
        kill(getpid(), SIGKILL);
    errno = atomic_load(&fault_errno);
    return true;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t offset)
{
    return fault_hits(FAULT_PWRITE) ? -1 : syscall(SYS_pwrite64, fd, p, n, offset);
}

ssize_t pwritev(int fd, const struct iovec *v, int n, off_t offset)
{
    return fault_hits(FAULT_PWRITE) ? -1 : syscall(SYS_pwritev, fd, v, n, offset, 0);
}

ssize_t write(int fd, const void *p, size_t n)
{
    return fd > 2 && fault_hits(FAULT_PWRITE) ? -1 : syscall(SYS_write, fd, p, n);
}

int fdatasync(int fd)
{
    return fault_hits(FAULT_SYNC) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return fault_hits(FAULT_SYNC) ? -1 : (int)syscall(SYS_fsync, fd);
}

int fallocate(int fd, int mode, off_t offset, off_t n)
{
    return fault_hits(FAULT_FALLOCATE) ? -1 : (int)syscall(SYS_fallocate, fd, mode, offset, n);
}

int rename(const char *from, const char *to)
{
    return fault_hits(FAULT_RENAME)
               ? -1
               : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    int mode = flags & O_CREAT ? va_arg(ap, int) : 0;
    va_end(ap);
    return fault_hits(FAULT_OPEN) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
#endif
