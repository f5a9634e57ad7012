#pragma once
/* Bytes: little-endian loads and stores, a growable buffer, and a reader that cannot run over.
 *
 * All on-disk and on-wire integers of the house are little-endian and unaligned; they are read
 * and written only through these functions. Thread: no shared state. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint32_t load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t load_u64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline float load_f32(const void *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store_u16(void *p, uint16_t v)
{
    memcpy(p, &v, sizeof v);
}
static inline void store_u32(void *p, uint32_t v)
{
    memcpy(p, &v, sizeof v);
}
static inline void store_u64(void *p, uint64_t v)
{
    memcpy(p, &v, sizeof v);
}
static inline void store_f32(void *p, float v)
{
    memcpy(p, &v, sizeof v);
}
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "kith runs on little-endian machines");

/* A range of bytes that someone else owns. */
struct slice {
    const char *p;
    size_t n;
};

static inline bool slice_equal(struct slice a, struct slice b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

/* Whether the bytes are this word, ASCII letters in either case. */
bool slice_is(struct slice s, const char *word);
struct slice slice_of(const char *s);

/* Takes what stands before the next `end` off the front of *rest, and the `end`; without one,
 * all there is. False when nothing is left. */
bool slice_cut(struct slice *rest, char end, struct slice *part);
/* Decimal digits and nothing else, of a number that fits; else false, and *v is anything. */
bool slice_count(struct slice s, uint64_t *v);

/* How many of its bytes a message quotes, for "%.*s": someone else chose its length. */
static inline int slice_shown(struct slice s)
{
    return s.n < 64 ? (int)s.n : 64;
}

/* A growable byte buffer. An append that runs out of memory sets `failed` and changes nothing
 * else; a writer may append many times and look at `failed` once. */
struct buf {
    char *data;
    size_t len, cap;
    bool failed;
};

void buf_init(struct buf *b);
void buf_deinit(struct buf *b);
void buf_clear(struct buf *b); /* keeps the memory, up to a modest size */
/* Makes room for n more bytes; returns where they go, or NULL (and sets failed). */
char *buf_reserve(struct buf *b, size_t n);
void buf_append(struct buf *b, const void *p, size_t n);
void buf_append_str(struct buf *b, const char *s);
void buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_u8(struct buf *b, uint8_t v);
void buf_u32(struct buf *b, uint32_t v);
void buf_u64(struct buf *b, uint64_t v);
void buf_f32(struct buf *b, float v);
void buf_varint(struct buf *b, uint64_t v);             /* LEB128, at most 10 bytes */
void buf_bytes(struct buf *b, const void *p, size_t n); /* varint length, then the bytes */
void buf_consume(struct buf *b, size_t n);              /* drops the first n bytes */

/* Reads a byte range front to back. The first read past the end sets `failed`, and every read
 * from then on gives zero: look at `failed` (or reader_done) once at the end. */
struct reader {
    const unsigned char *p, *end;
    bool failed;
};

struct reader reader_of(const void *p, size_t n);
uint8_t read_u8(struct reader *r);
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);
float read_f32(struct reader *r);
uint64_t read_varint(struct reader *r);
/* A varint length and that many bytes, pointing into the range; *n is 0 on failure. */
const void *read_bytes(struct reader *r, size_t *n);
const void *read_raw(struct reader *r, size_t n);
bool reader_done(const struct reader *r); /* all was read and nothing failed */
