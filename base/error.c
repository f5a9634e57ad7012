#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const names[] = {
    "ok",     "invalid", "no memory", "i/o error", "no space",  "corrupt", "not found",
    "exists", "busy",    "closed",    "protocol",  "too large", "format",  "unsupported",
};

const char *err_name(int code)
{
    size_t i = (size_t)-code;
    return code <= 0 && i < sizeof names / sizeof *names ? names[i] : "unknown";
}

int err_set(struct err *e, int code, const char *format, ...)
{
    if (e) {
        e->code = code;
        va_list ap;
        va_start(ap, format);
        vsnprintf(e->message, sizeof e->message, format, ap);
        va_end(ap);
    }
    return code;
}

static int code_of_errno(int errnum)
{
    switch (errnum) {
    case ENOSPC:
    case EDQUOT:
        return KITH_ENOSPC;
    case ENOMEM:
        return KITH_ENOMEM;
    case ENOENT:
        return KITH_ENOTFOUND;
    case EEXIST:
        return KITH_EEXISTS;
    default:
        return KITH_EIO;
    }
}

int err_set_errno(struct err *e, int errnum, const char *format, ...)
{
    int code = code_of_errno(errnum);
    if (!e)
        return code;
    e->code = code;
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(e->message, sizeof e->message, format, ap);
    va_end(ap);
    if (n < 0)
        n = 0;
    if ((size_t)n < sizeof e->message - 3) {
        char text[128];
        /* The GNU strerror_r may return a static string instead of filling the buffer. */
        const char *s = strerror_r(errnum, text, sizeof text);
        snprintf(e->message + n, sizeof e->message - (size_t)n, ": %s", s);
    }
    return code;
}

int err_wrap(struct err *e, const char *format, ...)
{
    if (!e)
        return KITH_EINVAL;
    char old[ERR_MESSAGE_MAX];
    memcpy(old, e->message, sizeof old);
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(e->message, sizeof e->message, format, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n + 3 < sizeof e->message) {
        /* A message that is too long is cut: by hand, for the compiler warns of snprintf. */
        size_t kept = strnlen(old, sizeof e->message - (size_t)n - 3);
        memcpy(e->message + n, ": ", 2);
        memcpy(e->message + n + 2, old, kept);
        e->message[(size_t)n + 2 + kept] = '\0';
    }
    return e->code;
}
