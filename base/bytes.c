#include "base/bytes.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/mem.h"

enum { BUF_KEEP_BYTES = 64 * 1024, BUF_FIRST_BYTES = 256 };

struct slice slice_of(const char *s)
{
    return (struct slice){.p = s, .n = strlen(s)};
}

bool slice_cut(struct slice *rest, char end, struct slice *part)
{
    if (rest->n == 0)
        return false;
    const char *at = memchr(rest->p, end, rest->n);
    part->p = rest->p;
    part->n = at ? (size_t)(at - rest->p) : rest->n;
    size_t used = part->n + (at ? 1 : 0);
    rest->p += used;
    rest->n -= used;
    return true;
}

bool slice_count(struct slice s, uint64_t *v)
{
    uint64_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9' || __builtin_mul_overflow(n, 10, &n) ||
            __builtin_add_overflow(n, (uint64_t)(s.p[i] - '0'), &n))
            return false;
    }
    *v = n;
    return s.n > 0;
}

bool slice_is(struct slice s, const char *word)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned char a = (unsigned char)s.p[i], b = (unsigned char)word[i];
        if (b == '\0')
            return false;
        if (a >= 'A' && a <= 'Z')
            a = (unsigned char)(a + 32);
        if (b >= 'A' && b <= 'Z')
            b = (unsigned char)(b + 32);
        if (a != b)
            return false;
    }
    return word[s.n] == '\0';
}

void buf_init(struct buf *b)
{
    memset(b, 0, sizeof *b);
}

void buf_deinit(struct buf *b)
{
    mem_free(b->data);
    buf_init(b);
}

void buf_clear(struct buf *b)
{
    if (b->cap > BUF_KEEP_BYTES)
        buf_deinit(b);
    b->len = 0;
    b->failed = false;
}

char *buf_reserve(struct buf *b, size_t n)
{
    if (n <= b->cap - b->len)
        return b->data + b->len;
    size_t need;
    if (__builtin_add_overflow(b->len, n, &need)) {
        b->failed = true;
        return NULL;
    }
    size_t cap = b->cap ? b->cap : BUF_FIRST_BYTES;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    char *data = mem_realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        return NULL;
    }
    b->data = data;
    b->cap = cap;
    return b->data + b->len;
}

void buf_append(struct buf *b, const void *p, size_t n)
{
    char *to = buf_reserve(b, n);
    if (to && n) {
        memcpy(to, p, n);
        b->len += n;
    }
}

void buf_append_str(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_printf(struct buf *b, const char *format, ...)
{
    va_list ap, again;
    va_start(ap, format);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    if (n >= 0) {
        char *to = buf_reserve(b, (size_t)n + 1);
        if (to) {
            vsnprintf(to, (size_t)n + 1, format, again);
            b->len += (size_t)n;
        }
    }
    va_end(again);
}

void buf_u8(struct buf *b, uint8_t v)
{
    buf_append(b, &v, 1);
}

void buf_u32(struct buf *b, uint32_t v)
{
    buf_append(b, &v, sizeof v);
}

void buf_u64(struct buf *b, uint64_t v)
{
    buf_append(b, &v, sizeof v);
}

void buf_f32(struct buf *b, float v)
{
    buf_append(b, &v, sizeof v);
}

void buf_varint(struct buf *b, uint64_t v)
{
    unsigned char out[10];
    size_t n = 0;
    do {
        out[n] = (unsigned char)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        v >>= 7;
        n++;
    } while (v);
    buf_append(b, out, n);
}

void buf_bytes(struct buf *b, const void *p, size_t n)
{
    buf_varint(b, n);
    buf_append(b, p, n);
}

void buf_consume(struct buf *b, size_t n)
{
    if (n >= b->len) {
        b->len = 0;
        return;
    }
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
}

struct reader reader_of(const void *p, size_t n)
{
    const unsigned char *start = p;
    return (struct reader){.p = start, .end = start ? start + n : start, .failed = false};
}

const void *read_raw(struct reader *r, size_t n)
{
    if (r->failed || n > (size_t)(r->end - r->p)) {
        r->failed = true;
        return NULL;
    }
    const void *p = r->p;
    r->p += n;
    return p;
}

uint8_t read_u8(struct reader *r)
{
    const unsigned char *p = read_raw(r, 1);
    return p ? *p : 0;
}

uint32_t read_u32(struct reader *r)
{
    const void *p = read_raw(r, 4);
    return p ? load_u32(p) : 0;
}

uint64_t read_u64(struct reader *r)
{
    const void *p = read_raw(r, 8);
    return p ? load_u64(p) : 0;
}

float read_f32(struct reader *r)
{
    const void *p = read_raw(r, 4);
    return p ? load_f32(p) : 0.0f;
}

uint64_t read_varint(struct reader *r)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        uint8_t byte = read_u8(r);
        if (r->failed)
            return 0;
        if (shift == 63 && byte > 1)
            break;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return v;
    }
    r->failed = true;
    return 0;
}

const void *read_bytes(struct reader *r, size_t *n)
{
    uint64_t len = read_varint(r);
    const void *p = len <= SIZE_MAX ? read_raw(r, (size_t)len) : NULL;
    *n = p ? (size_t)len : 0;
    return p;
}

bool reader_done(const struct reader *r)
{
    return !r->failed && r->p == r->end;
}
