/* Recovery of the log fed with any segment file.
 *
 * Byte 0 chooses how much of the input is made valid first, so that the fuzzer gets past the
 * checksums: bit 0 the segment's header, bit 1 the tags and sums of the records, bit 2 splits
 * the input into two segments. What must hold: no crash; opening either says what is damaged or
 * gives a log whose records count from 1, that takes another record, and that opens again with
 * all of them. */

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "storage/wal_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { INPUT_MAX = 64 * 1024, INDEX_AT_SPLIT = 4 };

static char dir[64], wal[80];

static void empty_dir(void)
{
    DIR *d = opendir(wal);
    struct dirent *entry;
    while (d && (entry = readdir(d)) != NULL)
        unlinkat(dirfd(d), entry->d_name, 0);
    if (d)
        closedir(d);
}

static void remove_dir(void)
{
    empty_dir();
    rmdir(wal);
    rmdir(dir);
}

static void prepare_dir(void)
{
    struct err e;
    if (!*dir) {
        snprintf(dir, sizeof dir, "%s/kith-fuzz-wal-%d",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (int)getpid());
        snprintf(wal, sizeof wal, "%s/wal", dir);
        if (file_make_dirs(wal, &e) != 0 || atexit(remove_dir) != 0)
            abort();
    }
}

/* Makes what looks like records into valid ones. */
static void seal(char *p, size_t n, uint64_t salt)
{
    size_t at = WAL_SEGMENT_HEADER_BYTES;
    while (at + WAL_RECORD_HEADER_BYTES <= n) {
        uint32_t length = load_u32(p + at + 8);
        if (length > n - at - WAL_RECORD_HEADER_BYTES)
            break;
        wal_encode_record(
            p + at, salt, wal_payload_hash(p + at + WAL_RECORD_HEADER_BYTES, length, salt),
            length, load_u64(p + at + 16), load_u64(p + at + 24), load_u64(p + at + 32));
        at += wal_record_bytes(length);
    }
}

static void write_segment(uint64_t first, const uint8_t *data, size_t n, unsigned how)
{
    static char bytes[INPUT_MAX + WAL_SEGMENT_HEADER_BYTES];
    char path[WAL_PATH_MAX];
    memcpy(bytes, data, n);
    if (n >= WAL_SEGMENT_HEADER_BYTES) {
        uint64_t salt = load_u64(bytes + 16);
        if (how & 1)
            wal_encode_segment(bytes, salt);
        if (how & 2)
            seal(bytes, n, salt);
    }
    if (wal_segment_path(path, dir, first, NULL) != 0)
        abort();
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || file_pwrite_all(fd, bytes, n, 0, NULL) != 0)
        abort();
    close(fd);
}

static int on_record(void *arg, const struct wal_record *r, struct err *e)
{
    (void)e;
    uint64_t *next = arg;
    if (r->index != (*next)++)
        abort();
    return 0;
}

/* The newest index, or 0 with *rc set. */
static uint64_t open_once(int *rc, bool append)
{
    struct wal_options o = {.sync = WAL_SYNC_NO, .segment_bytes = 4096};
    struct wal *w;
    struct err e;
    uint64_t next = 1;
    *rc = wal_open(&w, dir, &o, 0, &e);
    if (*rc != 0)
        return 0;
    if (wal_replay(w, 0, on_record, &next, &e) != 0 || next != wal_last(w) + 1)
        abort();
    if (append) {
        if (wal_reserve(w, 5, 1, &e) != 0)
            abort();
        /* Epochs never decrease; the largest is past any that the input holds. */
        wal_append(w, UINT64_MAX, "hello", 5);
    }
    uint64_t last = wal_last(w);
    if (wal_close(w, &e) != 0)
        abort();
    return last;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 1 || n > INPUT_MAX)
        return 0;
    unsigned how = data[0];
    data++;
    n--;
    prepare_dir();
    empty_dir();
    size_t split = how & 4 ? n / 2 & ~(size_t)7 : n;
    write_segment(1, data, split, how);
    if (split < n)
        write_segment(INDEX_AT_SPLIT, data + split, n - split, how);
    struct err e;
    int rc, findings = wal_check(dir, 0, NULL, NULL, &e);
    if (findings != 0 && findings != KITH_ECORRUPT && findings != KITH_EFORMAT)
        abort();
    uint64_t last = open_once(&rc, true);
    if (rc != 0) {
        if (rc != KITH_ECORRUPT && rc != KITH_EFORMAT)
            abort();
        return 0;
    }
    if (open_once(&rc, false) != last || rc != 0)
        abort();
    return 0;
}
