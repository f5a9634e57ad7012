#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

static int out_fd = 2;
static bool colour;
static char out_role[16] = "kith";
static _Atomic int threshold = LOG_INFO;

static const char *const level_names[] = {"debug", "verbose", "notice", "warning", "error"};
static const char *const level_colours[] = {"\033[2m", "", "", "\033[33m", "\033[31m"};

int log_open(const char *path, const char *role)
{
    snprintf(out_role, sizeof out_role, "%s", role);
    if (!path || !*path) {
        out_fd = 2;
        colour = isatty(2);
        return 0;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        return KITH_EIO;
    out_fd = fd;
    colour = false;
    return 0;
}

int log_reopen(const char *path)
{
    if (!path || !*path || out_fd == 2)
        return 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        return KITH_EIO;
    int rc =
        dup3(fd, out_fd, O_CLOEXEC); /* one step, so that writers never see a closed file */
    close(fd);
    return rc < 0 ? KITH_EIO : 0;
}

void log_set_level(enum log_level level)
{
    atomic_store(&threshold, (int)level);
}

int log_level_parse(const char *name)
{
    for (int i = 0; i < (int)(sizeof level_names / sizeof *level_names); i++)
        if (strcmp(level_names[i], name) == 0)
            return i;
    return KITH_EINVAL;
}

const char *log_level_name(enum log_level level)
{
    return level_names[level];
}

static void write_line(enum log_level level, const char *format, va_list ap)
{
    if ((int)level < atomic_load_explicit(&threshold, memory_order_relaxed))
        return;
    char line[2048], message[1600], date[32];
    vsnprintf(message, sizeof message, format, ap);
    struct timeval tv;
    struct tm tm;
    gettimeofday(&tv, NULL);
    localtime_r(&tv.tv_sec, &tm);
    strftime(date, sizeof date, "%d %b %Y %H:%M:%S", &tm);
    int n = snprintf(line, sizeof line, "%d:%s %s.%03d %s%s%s %s\n", (int)getpid(), out_role,
                     date, (int)(tv.tv_usec / 1000), colour ? level_colours[level] : "",
                     level_names[level], colour ? "\033[0m" : "", message);
    if (n < 0)
        return;
    if ((size_t)n >= sizeof line) {
        n = (int)sizeof line - 1;
        line[n - 1] = '\n';
    }
    for (ssize_t done = 0; done < n;) {
        ssize_t w = write(out_fd, line + done, (size_t)(n - done));
        if (w < 0 && errno != EINTR)
            return; /* nowhere left to say it */
        if (w > 0)
            done += w;
    }
}

#define LEVEL_FUNCTION(name, level)                                                            \
    void name(const char *format, ...)                                                         \
    {                                                                                          \
        va_list ap;                                                                            \
        va_start(ap, format);                                                                  \
        write_line(level, format, ap);                                                         \
        va_end(ap);                                                                            \
    }

LEVEL_FUNCTION(log_debug, LOG_DEBUG)
LEVEL_FUNCTION(log_info, LOG_INFO)
LEVEL_FUNCTION(log_notice, LOG_NOTICE)
LEVEL_FUNCTION(log_warning, LOG_WARNING)
LEVEL_FUNCTION(log_error, LOG_ERROR)
