#pragma once
/* Files: whole reads and writes, directories made durable, and the one-owner lock. Thread: any.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/bytes.h"
#include "base/error.h"

/* Writes all n bytes at the offset, repeating short writes and EINTR. */
int file_pwrite_all(int fd, const void *p, size_t n, uint64_t offset, struct err *e);
/* Reads up to n bytes at the offset; returns how many (fewer only at the end of the file), or a
 * negative code. */
ssize_t file_pread_all(int fd, void *p, size_t n, uint64_t offset, struct err *e);
/* A whole file into out (appended). Refuses files over max_bytes with KITH_ELIMIT. */
int file_read_whole(const char *path, size_t max_bytes, struct buf *out, struct err *e);
/* Replaces path as a whole: temporary file beside it, fdatasync, rename, directory sync. */
int file_write_whole(const char *path, const void *p, size_t n, struct err *e);
int file_sync_dir(const char *dir, struct err *e);

/* A file that is written piece by piece and then takes the place of `path` as a whole, for what
 * is too large to lie in memory once more. The temporary file beside it, `path`.tmp, has the
 * same name for all writers and is locked: there is never more than one of it, and what a
 * killed writer left is overwritten by the next. */
struct file_replacement {
    char path[4096], temporary[4096 + 8];
    int fd;         /* -1: none */
    uint64_t bytes; /* appended until now */
};
/* bytes: what will be appended, for which room is asked for at once; mode: the permissions,
 * whatever the umask. KITH_EBUSY: someone else is writing it. */
int file_replace_begin(struct file_replacement *r, const char *path, uint64_t bytes,
                       mode_t mode, struct err *e);
int file_replace_append(struct file_replacement *r, const void *p, size_t n, struct err *e);
/* fsync, rename, directory sync. After an error the replacement is cancelled. */
int file_replace_commit(struct file_replacement *r, struct err *e);
/* Leaves everything as it was; also after a commit, where there is nothing to do. */
void file_replace_cancel(struct file_replacement *r);
int file_make_dirs(const char *dir, struct err *e); /* like mkdir -p */
bool file_exists(const char *path);

/* A read-only private map of a whole file. */
struct file_map {
    const void *data;
    size_t bytes;
};
int file_map_open(struct file_map *m, const char *path, struct err *e);
/* Lets the system take the pages back that were read until now; they come again when needed. */
void file_map_forget(const struct file_map *m);
void file_map_close(struct file_map *m);

/* Takes the lock file (created if need be) for this process; KITH_EBUSY names the holder's pid.
 * Returns the descriptor to close (file_unlock), or a negative code. */
int file_lock(const char *path, struct err *e);
void file_unlock(int fd);
