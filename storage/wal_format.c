#include "storage/wal_format.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

static const char segment_magic[8] = {'k', 'i', 't', 'h', 'w', 'a', 'l', '\n'};
static const char mark_magic[8] = {'k', 'i', 't', 'h', 'd', 'u', 'r', '\n'};

enum { WINDOW_BYTES = 256 * 1024 };

uint64_t wal_payload_hash(const void *payload, size_t bytes, uint64_t salt)
{
    return hash64_seed(payload, bytes, salt);
}

static uint32_t tag_of(const char *record, uint64_t salt)
{
    char fields[28];
    memcpy(fields, record + 8, 4);
    memcpy(fields + 4, record + 16, 24);
    return (uint32_t)hash64_seed(fields, sizeof fields, salt);
}

static uint64_t sum_of(const char *record, uint64_t payload_hash)
{
    return hash64_seed(record + 8, WAL_RECORD_HEADER_BYTES - 8, payload_hash);
}

void wal_encode_record(char *to, uint64_t salt, uint64_t payload_hash, uint32_t bytes,
                       uint64_t epoch, uint64_t index, uint64_t durable)
{
    store_u32(to + 8, bytes);
    store_u64(to + 16, epoch);
    store_u64(to + 24, index);
    store_u64(to + 32, durable);
    store_u32(to + 12, tag_of(to, salt));
    store_u64(to, sum_of(to, payload_hash));
}

void wal_encode_segment(char to[WAL_SEGMENT_HEADER_BYTES], uint64_t salt)
{
    memset(to, 0, WAL_SEGMENT_HEADER_BYTES);
    memcpy(to, segment_magic, 8);
    store_u32(to + 8, WAL_VERSION);
    store_u64(to + 16, salt);
    store_u64(to + 56, hash64(to, 56));
}

int wal_path(char out[WAL_PATH_MAX], const char *dir, const char *name, struct err *e)
{
    if (snprintf(out, WAL_PATH_MAX, "%s/wal%s%s", dir, *name ? "/" : "", name) >= WAL_PATH_MAX)
        return err_set(e, KITH_EINVAL, "path too long: %s/wal/%s", dir, name);
    return 0;
}

int wal_segment_path(char out[WAL_PATH_MAX], const char *dir, uint64_t first, struct err *e)
{
    char name[32];
    snprintf(name, sizeof name, "%020llu.wal", (unsigned long long)first);
    return wal_path(out, dir, name, e);
}

int wal_scan_open(struct wal_scan *s, const char *dir, uint64_t first, struct err *e)
{
    *s = (struct wal_scan){.fd = -1, .why = ""};
    int rc = wal_segment_path(s->path, dir, first, e);
    if (rc != 0)
        return rc;
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0)
        return err_set_errno(e, errno, "cannot open %s", s->path);
    struct stat st;
    char header[WAL_SEGMENT_HEADER_BYTES];
    ssize_t got = 0;
    if (fstat(s->fd, &st) != 0)
        rc = err_set_errno(e, errno, "cannot stat %s", s->path);
    else if ((got = file_pread_all(s->fd, header, sizeof header, 0, e)) < 0)
        rc = (int)got;
    else if (got < (ssize_t)sizeof header || memcmp(header, segment_magic, 8) != 0 ||
             load_u64(header + 56) != hash64(header, 56))
        rc = err_set(e, KITH_ECORRUPT, "%s:0: the segment's header is damaged", s->path);
    else if (load_u32(header + 8) != WAL_VERSION)
        rc = err_set(e, KITH_EFORMAT, "%s is of log version %u, this build reads version %d",
                     s->path, load_u32(header + 8), WAL_VERSION);
    if (rc != 0) {
        wal_scan_close(s);
        return rc;
    }
    s->bytes = (uint64_t)st.st_size;
    s->salt = load_u64(header + 16);
    s->offset = WAL_SEGMENT_HEADER_BYTES;
    return 0;
}

void wal_scan_close(struct wal_scan *s)
{
    if (s->fd >= 0)
        close(s->fd);
    mem_free(s->window);
    s->fd = -1;
    s->window = NULL;
    s->window_cap = s->window_len = 0;
}

/* The n bytes at an offset, n <= the file's rest: *out points into the window. */
static int peek(struct wal_scan *s, uint64_t offset, size_t n, const char **out, struct err *e)
{
    if (offset < s->window_at || offset + n > s->window_at + s->window_len) {
        size_t want = n > WINDOW_BYTES ? n : WINDOW_BYTES;
        if (want > s->bytes - offset)
            want = (size_t)(s->bytes - offset);
        if (want > s->window_cap) {
            char *grown = mem_realloc(s->window, want);
            if (!grown)
                return err_set(e, KITH_ENOMEM, "out of memory for %zu bytes of %s", want,
                               s->path);
            s->window = grown;
            s->window_cap = want;
        }
        s->window_len = 0;
        ssize_t got = file_pread_all(s->fd, s->window, want, offset, e);
        if (got < 0) {
            err_wrap(e, "%s", s->path);
            return (int)got;
        }
        if ((size_t)got < n)
            return err_set(e, KITH_EIO, "%s became shorter while it was read", s->path);
        s->window_at = offset;
        s->window_len = (size_t)got;
    }
    *out = s->window + (offset - s->window_at);
    return 0;
}

static bool all_zero(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i])
            return false;
    }
    return true;
}

/* Reads the record at an offset: 1, 0 with s->why, or a negative code. */
static int read_at(struct wal_scan *s, uint64_t offset, struct wal_entry *out, struct err *e)
{
    s->why = "the segment is full";
    if (offset > s->bytes || s->bytes - offset < WAL_RECORD_HEADER_BYTES)
        return 0;
    const char *p = NULL;
    int rc = peek(s, offset, WAL_RECORD_HEADER_BYTES, &p, e);
    if (rc != 0)
        return rc;
    s->why = "nothing but zeros";
    if (all_zero(p, WAL_RECORD_HEADER_BYTES))
        return 0;
    s->why = "the record's header does not match its tag";
    uint32_t length = load_u32(p + 8);
    if (load_u32(p + 12) != tag_of(p, s->salt))
        return 0;
    s->why = "the record is longer than the file";
    if (length > WAL_PAYLOAD_MAX || s->bytes - offset - WAL_RECORD_HEADER_BYTES < length)
        return 0;
    if ((rc = peek(s, offset, WAL_RECORD_HEADER_BYTES + (size_t)length, &p, e)) != 0)
        return rc;
    s->why = "the record's checksum is wrong";
    const char *payload = p + WAL_RECORD_HEADER_BYTES;
    if (load_u64(p) != sum_of(p, wal_payload_hash(payload, length, s->salt)))
        return 0;
    *out = (struct wal_entry){
        .record = {load_u64(p + 16), load_u64(p + 24), payload, length},
        .durable = load_u64(p + 32),
        .offset = offset,
    };
    return 1;
}

int wal_scan_next(struct wal_scan *s, struct wal_entry *out, struct err *e)
{
    int rc = read_at(s, s->offset, out, e);
    if (rc == 1)
        s->offset += wal_record_bytes(out->record.bytes);
    return rc;
}

/* The next offset at or after `offset` that is not in a hole of the file; the end when none. */
static uint64_t skip_hole(const struct wal_scan *s, uint64_t offset)
{
    off_t data = lseek(s->fd, (off_t)offset, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? s->bytes : offset;
    return (uint64_t)data > offset ? (uint64_t)data & ~(uint64_t)7 : offset;
}

int wal_scan_beyond(struct wal_scan *s, uint64_t index, uint64_t *durable, bool *any,
                    struct err *e)
{
    enum { STEP = 64 * 1024 };
    uint64_t at = s->offset, next_hole_check = at;
    *durable = 0;
    while (at < s->bytes) {
        if (at >= next_hole_check) {
            at = skip_hole(s, at);
            next_hole_check = at + STEP;
            if (at >= s->bytes)
                break;
        }
        size_t left = s->bytes - at < 8 ? (size_t)(s->bytes - at) : 8;
        const char *p = NULL;
        int rc = peek(s, at, left, &p, e);
        if (rc != 0)
            return rc;
        if (left < 8 || load_u64(p) != 0) {
            *any = *any || !all_zero(p, left);
            struct wal_entry found = {0};
            rc = read_at(s, at, &found, e);
            if (rc < 0)
                return rc;
            if (rc == 1 && found.record.index > index && found.durable > *durable)
                *durable = found.durable;
        }
        at += 8;
    }
    return 0;
}

void wal_boot_id(char out[WAL_BOOT_BYTES])
{
    memset(out, 0, WAL_BOOT_BYTES);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    char text[64];
    ssize_t n = read(fd, text, sizeof text);
    close(fd);
    if (n <= 0)
        return;
    store_u64(out, hash64_seed(text, (size_t)n, 1));
    store_u64(out + 8, hash64_seed(text, (size_t)n, 2));
}

void wal_mark_encode(char to[WAL_MARK_BYTES], uint64_t durable, uint64_t released,
                     const char boot[WAL_BOOT_BYTES])
{
    memcpy(to + 8, mark_magic, 8);
    store_u64(to + 16, durable);
    store_u64(to + 24, released);
    memcpy(to + 32, boot, WAL_BOOT_BYTES);
    store_u64(to, hash64(to + 8, WAL_MARK_BYTES - 8));
}

int wal_mark_read(const char *dir, struct wal_mark *out, struct err *e)
{
    *out = (struct wal_mark){0};
    char path[WAL_PATH_MAX];
    int rc = wal_path(path, dir, "durable", e);
    if (rc != 0)
        return rc;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : err_set_errno(e, errno, "cannot open %s", path);
    char bytes[WAL_MARK_BYTES + 1], boot[WAL_BOOT_BYTES];
    ssize_t got = file_pread_all(fd, bytes, sizeof bytes, 0, e);
    close(fd);
    if (got < 0)
        return (int)got;
    if (got != WAL_MARK_BYTES || memcmp(bytes + 8, mark_magic, 8) != 0 ||
        load_u64(bytes) != hash64(bytes + 8, WAL_MARK_BYTES - 8))
        return err_set(e, KITH_ECORRUPT,
                       "%s:0: the mark of the newest durable record is damaged; check the log, "
                       "then remove this file to trust the log as it is",
                       path);
    wal_boot_id(boot);
    out->present = true;
    out->durable = load_u64(bytes + 16);
    if (memcmp(bytes + 32, boot, WAL_BOOT_BYTES) == 0 && !all_zero(boot, WAL_BOOT_BYTES))
        out->released = load_u64(bytes + 24);
    return 0;
}
