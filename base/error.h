#pragma once
/* One error space for the whole house.
 *
 * Functions that can fail return 0 or a negative code of this table, and leave a sentence for
 * people in a `struct err` the caller hands in (it may be NULL). errno, LMDB's and others'
 * codes are converted at the border, by the module that called them. A message says what was
 * wrong and what would be right; on the way up each level may put its own context before it.
 *
 * Libraries never print, exit or abort on bad input. Assertions are for programmer errors only,
 * never for bytes from a client, a disk, a model file or a peer. */

#include <stdarg.h>

enum {
    KITH_OK = 0,
    KITH_EINVAL = -1, /* an argument is wrong */
    KITH_ENOMEM = -2, /* out of memory, or past a memory limit */
    KITH_EIO = -3,    /* a system call failed for a reason of the device */
    KITH_ENOSPC = -4, /* no room left on the disk */
    KITH_ECORRUPT =
        -5, /* stored bytes are not what was written: checksum or invariant broken */
    KITH_ENOTFOUND = -6,
    KITH_EEXISTS = -7,
    KITH_EBUSY = -8,        /* in use, or a bounded queue is full */
    KITH_ECLOSED = -9,      /* the other side, or the module, is shutting down */
    KITH_EPROTO = -10,      /* bytes that do not follow the protocol */
    KITH_ELIMIT = -11,      /* larger than an announced limit */
    KITH_EFORMAT = -12,     /* a file is not of the format, or of a version we do not read */
    KITH_EUNSUPPORTED = -13 /* a correct request that this build or model cannot serve */
};

enum { ERR_MESSAGE_MAX = 512 };

struct err {
    int code;
    char message[ERR_MESSAGE_MAX];
};

/* A short fixed name of the code ("no space", "corrupt"); never NULL. */
const char *err_name(int code);

/* Writes code and message; returns code, so that `return err_set(e, KITH_EINVAL, ...)` reads
 * well. e may be NULL. */
int err_set(struct err *e, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As err_set, and appends ": " and the text of errno. ENOSPC and EDQUOT become KITH_ENOSPC,
 * ENOMEM KITH_ENOMEM, ENOENT KITH_ENOTFOUND, EEXIST KITH_EEXISTS, all others KITH_EIO. */
int err_set_errno(struct err *e, int errnum, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "context: " before the message; returns e's code (or KITH_EINVAL where e is NULL). */
int err_wrap(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
