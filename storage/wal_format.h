#pragma once
/* The bytes of the log: what storage/wal.c appends and what recovery, replay and the offline
 * check read. For the storage room only.
 *
 *   segment = header | record | record | … | zeros up to the preallocated size
 *   header  = { u64 magic | u32 version | u32 zero | u64 salt | 32 bytes zero |
 *               u64 xxh3 of the 56 bytes before }                                   64 bytes
 *   record  = { u64 sum | u32 length | u32 tag | u64 epoch | u64 index | u64 durable |
 *               payload, padded with zeros to 8 bytes }
 *     tag   = low half of xxh3(length, epoch, index, durable) seeded with the salt
 *     sum   = xxh3 of the header's bytes 8..40, seeded with xxh3(payload) seeded with the salt
 *
 * The salt is random for each segment. It keeps a payload from being taken for a record, even
 * one that a client made to look like one, and old blocks of the disk from being taken for new
 * ones. The tag lets a search for records skip anything else without hashing a whole payload.
 * `durable` is the index known durable when the record was appended: a valid record with
 * durable >= i proves that record i was on the disk, so that if i is broken it is damaged and
 * not torn.
 *
 *   durable = { u64 xxh3 of the rest | u64 magic | u64 durable | u64 released | 16 bytes boot
 * id }
 *
 * Rewritten in place after each sync and, where replies do not wait for syncs, each write.
 * `released` binds only while the kernel that wrote it still runs (the boot id): what was
 * written survives a killed process but not a power cut. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "storage/wal.h"

enum {
    WAL_SEGMENT_HEADER_BYTES = 64,
    WAL_RECORD_HEADER_BYTES = 40,
    WAL_VERSION = 1,
    WAL_PATH_MAX = 4096,
    WAL_BOOT_BYTES = 16
};

static inline size_t wal_record_bytes(size_t payload)
{
    return (WAL_RECORD_HEADER_BYTES + payload + 7) & ~(size_t)7;
}

/* Encodes the header of a record whose payload has the given hash (wal_payload_hash). */
uint64_t wal_payload_hash(const void *payload, size_t bytes, uint64_t salt);
void wal_encode_record(char *to, uint64_t salt, uint64_t payload_hash, uint32_t bytes,
                       uint64_t epoch, uint64_t index, uint64_t durable);
void wal_encode_segment(char to[WAL_SEGMENT_HEADER_BYTES], uint64_t salt);

/* DIR/wal/NAME; KITH_EINVAL when it does not fit. */
int wal_path(char out[WAL_PATH_MAX], const char *dir, const char *name, struct err *e);
int wal_segment_path(char out[WAL_PATH_MAX], const char *dir, uint64_t first, struct err *e);

/* Reads one segment front to back. */
struct wal_scan {
    int fd;
    char path[WAL_PATH_MAX];
    uint64_t bytes; /* of the file */
    uint64_t offset;
    uint64_t salt;
    const char *why; /* what is wrong with the bytes at offset, after a 0 */
    char *window;
    size_t window_cap, window_len;
    uint64_t window_at;
};

struct wal_entry {
    struct wal_record record; /* the payload is valid until the next call */
    uint64_t durable;
    uint64_t offset; /* of the record in its file */
};

/* KITH_ECORRUPT for a damaged header, KITH_EFORMAT for a version that is not ours. */
int wal_scan_open(struct wal_scan *s, const char *dir, uint64_t first, struct err *e);
void wal_scan_close(struct wal_scan *s);
/* 1: *out is the next record; 0: the bytes at s->offset are no valid record; negative: the file
 * could not be read. */
int wal_scan_next(struct wal_scan *s, struct wal_entry *out, struct err *e);
/* What lies at and after s->offset: the largest `durable` of any valid record there with an
 * index above `index` (0: none), and whether any byte is not zero. */
int wal_scan_beyond(struct wal_scan *s, uint64_t index, uint64_t *durable, bool *any,
                    struct err *e);

/* A file of this name beside the segments says that a lost log is given up; it goes with the
 * next open. */
#define WAL_ABANDONED "abandoned"

struct wal_mark {
    bool present;
    uint64_t durable, released; /* released is 0 where it does not bind */
};

int wal_mark_read(const char *dir, struct wal_mark *out, struct err *e);
enum { WAL_MARK_BYTES = 48 };
void wal_mark_encode(char to[WAL_MARK_BYTES], uint64_t durable, uint64_t released,
                     const char boot[WAL_BOOT_BYTES]);
void wal_boot_id(char out[WAL_BOOT_BYTES]); /* zeros where the system has none */

typedef void wal_note_fn(void *arg, const char *where, const char *what);

/* What recovery found. Segments before `start` hold only records the checkpoint has; they were
 * not looked at. */
struct wal_survey {
    uint64_t *firsts; /* n_segments, ascending; owned by the survey */
    uint32_t n_segments, start;
    uint64_t last; /* newest valid record; first - 1 of the last segment when it is empty */
    uint64_t last_epoch;  /* of that record; 0 when none was read */
    uint32_t end_segment; /* where it ends: firsts[] number, and offset in it */
    uint64_t end_offset;
    bool torn; /* there is something after the end, to be cut */
    struct wal_mark mark;
};

/* Lists and verifies. With `note` every segment is verified and each finding noted and counted
 * into *findings; without, the first finding is the error. */
int wal_survey(struct wal_survey *out, const char *dir, uint64_t after, wal_note_fn *note,
               void *arg, uint32_t *findings, struct err *e);
void wal_survey_deinit(struct wal_survey *v);
