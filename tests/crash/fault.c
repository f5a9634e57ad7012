/* A library to be preloaded into the server that makes the n-th system call which changes a
 * file below a directory fail, or kills the process before, after or in the middle of it.
 *
 * strace can inject too, but it counts each thread's calls by themselves and costs a stop of
 * the process for each; here one counter orders the calls of all threads, so every call of a
 * run can be the n-th. That none is missed is checked by a test against a trace of strace.
 *
 *   KITH_FAULT_DIR    only calls on files below it count
 *   KITH_FAULT_AT     the number of the call, from 1; 0 injects nothing
 *   KITH_FAULT_KIND   before | after | half: SIGKILL at that place (half: of a write's bytes)
 *                     short: a write returns after half of its bytes; or an errno's name
 *   KITH_FAULT_TIMES  this many calls of that kind of failure in a row (an errno's only; 1)
 *   KITH_FAULT_LOG    a file that gets a line for every call: number, name, path */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum fate { PASS, BEFORE, AFTER, HALF, SHORT, FAIL };

static char dir[4096];
static size_t dir_n;
static long at, times = 1;
static enum fate kind;
static int error;
static int log_fd = -1;
static _Atomic long counter;

#define REAL(name) ((__typeof__(&(name)))real(#name))

static void *real(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);
    if (!f)
        abort();
    return f;
}

__attribute__((constructor)) static void start(void)
{
    const char *d = getenv("KITH_FAULT_DIR"), *n = getenv("KITH_FAULT_AT");
    const char *k = getenv("KITH_FAULT_KIND"), *log = getenv("KITH_FAULT_LOG");
    if (!d)
        return;
    snprintf(dir, sizeof dir, "%s", d);
    at = n ? atol(n) : 0;
    if (getenv("KITH_FAULT_TIMES"))
        times = atol(getenv("KITH_FAULT_TIMES"));
    static const struct {
        const char *name;
        enum fate fate;
        int error;
    } kinds[] = {{"before", BEFORE, 0},   {"after", AFTER, 0}, {"half", HALF, 0},
                 {"short", SHORT, 0},     {"EIO", FAIL, EIO},  {"ENOSPC", FAIL, ENOSPC},
                 {"EDQUOT", FAIL, EDQUOT}};
    for (size_t i = 0; k && i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(k, kinds[i].name) == 0) {
            kind = kinds[i].fate;
            error = kinds[i].error;
        }
    if (log)
        log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    dir_n = strlen(dir); /* last: from here on calls count */
}

static enum fate count(const char *name, const char *path)
{
    if (dir_n == 0 || strncmp(path, dir, dir_n) != 0)
        return PASS;
    long n = atomic_fetch_add(&counter, 1) + 1;
    if (log_fd >= 0) {
        char line[4400];
        int len = snprintf(line, sizeof line, "%ld %s %s\n", n, name, path + dir_n);
        syscall(SYS_write, log_fd, line, (size_t)len);
    }
    if (at == 0 || n < at || n >= at + (kind == FAIL ? times : 1))
        return PASS;
    if (kind == BEFORE)
        kill(getpid(), SIGKILL);
    if (kind == FAIL)
        errno = error;
    return kind;
}

static enum fate count_fd(const char *name, int fd)
{
    char link[64], path[4096];
    if (dir_n == 0)
        return PASS;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n < 0)
        return PASS;
    path[n] = '\0';
    return count(name, path);
}

static enum fate count_at(const char *name, int dir_fd, const char *path)
{
    char link[64], whole[8192];
    if (dir_n == 0 || path[0] == '/' || dir_fd == AT_FDCWD)
        return count(name, path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir_fd);
    ssize_t n = readlink(link, whole, 4095);
    if (n < 0)
        return PASS;
    snprintf(whole + n, sizeof whole - (size_t)n, "/%s", path);
    return count(name, whole);
}

static void die_after(enum fate f)
{
    if (f == AFTER || f == HALF)
        kill(getpid(), SIGKILL);
}

/* The number of bytes to write now, of n. A kill takes effect between pages, a power cut
 * between sectors, so half a write ends at a multiple of 512 bytes in the file. */
static size_t portion(enum fate f, size_t n, off_t offset)
{
    if (f == HALF) {
        off_t end = (offset + (off_t)(n / 2)) & ~(off_t)511;
        return end > offset ? (size_t)(end - offset) : 0;
    }
    return f == SHORT && n > 1 ? n / 2 : n;
}

ssize_t write(int fd, const void *p, size_t n)
{
    enum fate f = count_fd("write", fd);
    if (f == FAIL)
        return -1;
    ssize_t w = REAL(write)(fd, p, portion(f, n, lseek(fd, 0, SEEK_CUR)));
    die_after(f);
    return w;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t offset)
{
    enum fate f = count_fd("pwrite64", fd);
    if (f == FAIL)
        return -1;
    ssize_t w = REAL(pwrite)(fd, p, portion(f, n, offset), offset);
    die_after(f);
    return w;
}

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t offset)
{
    return pwrite(fd, p, n, offset);
}

ssize_t writev(int fd, const struct iovec *v, int n)
{
    enum fate f = count_fd("writev", fd);
    if (f == FAIL)
        return -1;
    ssize_t w = REAL(writev)(fd, v, f == HALF || f == SHORT ? (n + 1) / 2 : n);
    die_after(f);
    return w;
}

ssize_t pwritev(int fd, const struct iovec *v, int n, off_t offset)
{
    enum fate f = count_fd("pwritev", fd);
    if (f == FAIL)
        return -1;
    ssize_t w = REAL(pwritev)(fd, v, f == HALF || f == SHORT ? (n + 1) / 2 : n, offset);
    die_after(f);
    return w;
}

ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t offset)
{
    return pwritev(fd, v, n, offset);
}

#define SIMPLE(declaration, call, counted)                                                     \
    declaration                                                                                \
    {                                                                                          \
        enum fate f = counted;                                                                 \
        if (f == FAIL)                                                                         \
            return -1;                                                                         \
        int rc = call;                                                                         \
        die_after(f);                                                                          \
        return rc;                                                                             \
    }

SIMPLE(int fsync(int fd), REAL(fsync)(fd), count_fd("fsync", fd))
SIMPLE(int fdatasync(int fd), REAL(fdatasync)(fd), count_fd("fdatasync", fd))
SIMPLE(int ftruncate(int fd, off_t n), REAL(ftruncate)(fd, n), count_fd("ftruncate", fd))
SIMPLE(int ftruncate64(int fd, off64_t n), REAL(ftruncate)(fd, n), count_fd("ftruncate", fd))
SIMPLE(int truncate(const char *path, off_t n), REAL(truncate)(path, n),
       count("truncate", path))
SIMPLE(int truncate64(const char *path, off64_t n), REAL(truncate)(path, n),
       count("truncate", path))
SIMPLE(int fallocate(int fd, int mode, off_t from, off_t n), REAL(fallocate)(fd, mode, from, n),
       count_fd("fallocate", fd))
SIMPLE(int fallocate64(int fd, int mode, off64_t from, off64_t n),
       REAL(fallocate)(fd, mode, from, n), count_fd("fallocate", fd))
SIMPLE(int rename(const char *a, const char *b), REAL(rename)(a, b), count("rename", b))
SIMPLE(int unlink(const char *path), REAL(unlink)(path), count("unlink", path))
SIMPLE(int unlinkat(int fd, const char *path, int flags), REAL(unlinkat)(fd, path, flags),
       count_at("unlinkat", fd, path))
SIMPLE(int mkdir(const char *path, mode_t mode), REAL(mkdir)(path, mode), count("mkdir", path))

/* Opening counts when it may make or cut a file. */
static int open_any(const char *path, int flags, mode_t mode)
{
    enum fate f = flags & (O_CREAT | O_TRUNC) ? count("openat", path) : PASS;
    if (f == FAIL)
        return -1;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    die_after(f);
    return fd;
}

#define OPEN(name)                                                                             \
    int name(const char *path, int flags, ...)                                                 \
    {                                                                                          \
        va_list args;                                                                          \
        va_start(args, flags);                                                                 \
        mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;                              \
        va_end(args);                                                                          \
        return open_any(path, flags, mode);                                                    \
    }

OPEN(open)
OPEN(open64)
