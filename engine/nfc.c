/* Text is cut before each inert character, one that normalises to itself, has combining class 0
 * and is never the second of a composition. What lies between two cuts and is longer than one
 * character is decomposed, put in canonical order and composed; all else is copied.
 *
 * The order within a run of marks is by insertion where it is short, as it is in any language,
 * and by one pass a class where it is not: a page of marks must not take a page squared. */

#include "engine/nfc.h"

#include "base/mem.h"
#include "base/utf8.h"
#include "engine/unicode.h"

/* Holds every character that is not inert, and some letters between them; inert ones beside it
 * only cost time. engine_unicode_test holds it against utf8proc. */
static const struct {
    uint32_t first, last;
} not_inert[] = {{0x300, 0x387},     {0x483, 0x487},     {0x591, 0x5c7},     {0x610, 0x61a},
                 {0x64b, 0x670},     {0x6d6, 0x6ed},     {0x711, 0x711},     {0x730, 0x74a},
                 {0x7eb, 0x7fd},     {0x816, 0x82d},     {0x859, 0x85b},     {0x898, 0x89f},
                 {0x8ca, 0x8ff},     {0x93c, 0x95f},     {0x9bc, 0x9df},     {0x9fe, 0x9fe},
                 {0xa33, 0xa5e},     {0xabc, 0xacd},     {0xb3c, 0xb5d},     {0xbbe, 0xbd7},
                 {0xc3c, 0xc56},     {0xcbc, 0xcd6},     {0xd3b, 0xd57},     {0xdca, 0xddf},
                 {0xe38, 0xe4b},     {0xeb8, 0xecb},     {0xf18, 0xf19},     {0xf35, 0xfc6},
                 {0x102e, 0x103a},   {0x108d, 0x108d},   {0x1161, 0x1175},   {0x11a8, 0x11c2},
                 {0x135d, 0x135f},   {0x1714, 0x1715},   {0x1734, 0x1734},   {0x17d2, 0x17dd},
                 {0x18a9, 0x18a9},   {0x1939, 0x193b},   {0x1a17, 0x1a18},   {0x1a60, 0x1a7f},
                 {0x1ab0, 0x1ace},   {0x1b34, 0x1b44},   {0x1b6b, 0x1b73},   {0x1baa, 0x1bab},
                 {0x1be6, 0x1bf3},   {0x1c37, 0x1c37},   {0x1cd0, 0x1cf9},   {0x1dc0, 0x1dff},
                 {0x1f71, 0x1f7d},   {0x1fbb, 0x2001},   {0x20d0, 0x20f0},   {0x2126, 0x212b},
                 {0x2329, 0x232a},   {0x2adc, 0x2adc},   {0x2cef, 0x2cf1},   {0x2d7f, 0x2d7f},
                 {0x2de0, 0x2dff},   {0x302a, 0x302f},   {0x3099, 0x309a},   {0xa66f, 0xa67d},
                 {0xa69e, 0xa69f},   {0xa6f0, 0xa6f1},   {0xa806, 0xa806},   {0xa82c, 0xa82c},
                 {0xa8c4, 0xa8c4},   {0xa8e0, 0xa8f1},   {0xa92b, 0xa92d},   {0xa953, 0xa953},
                 {0xa9b3, 0xa9c0},   {0xaab0, 0xaac1},   {0xaaf6, 0xaaf6},   {0xabed, 0xabed},
                 {0xf900, 0xfad9},   {0xfb1d, 0xfb4e},   {0xfe20, 0xfe2f},   {0x101fd, 0x101fd},
                 {0x102e0, 0x102e0}, {0x10376, 0x1037a}, {0x10a0d, 0x10a0f}, {0x10a38, 0x10a3f},
                 {0x10ae5, 0x10ae6}, {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff},
                 {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11046, 0x11046}, {0x11070, 0x1107f},
                 {0x110b9, 0x110ba}, {0x11100, 0x11102}, {0x11127, 0x11134}, {0x11173, 0x11173},
                 {0x111c0, 0x111ca}, {0x11235, 0x11236}, {0x112e9, 0x112ea}, {0x1133b, 0x11374},
                 {0x11442, 0x1145e}, {0x114b0, 0x114c3}, {0x115af, 0x115c0}, {0x1163f, 0x1163f},
                 {0x116b6, 0x116b7}, {0x1172b, 0x1172b}, {0x11839, 0x1183a}, {0x11930, 0x11943},
                 {0x119e0, 0x119e0}, {0x11a34, 0x11a47}, {0x11a99, 0x11a99}, {0x11c3f, 0x11c3f},
                 {0x11d42, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16af0, 0x16af4},
                 {0x16b30, 0x16b36}, {0x16ff0, 0x16ff1}, {0x1bc9e, 0x1bc9e}, {0x1d15e, 0x1d18b},
                 {0x1d1aa, 0x1d1c0}, {0x1d242, 0x1d244}, {0x1e000, 0x1e02a}, {0x1e08f, 0x1e08f},
                 {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
                 {0x1e8d0, 0x1e8d6}, {0x1e944, 0x1e94a}, {0x2f800, 0x2fa1d}};

enum { FIRST_NOT_INERT = 0x300, SHORT_RUN = 16, N_CLASSES = 256 };

bool nfc_is_inert(uint32_t c)
{
    if (c < FIRST_NOT_INERT || (c >= 0x3400 && c <= 0x9fff) || (c >= 0xac00 && c <= 0xd7a3))
        return true;
    size_t lo = 0, hi = sizeof not_inert / sizeof *not_inert;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (c > not_inert[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo == sizeof not_inert / sizeof *not_inert || c < not_inert[lo].first;
}

size_t nfc_prefix(const char *s, size_t n)
{
    size_t start = 0; /* of the last character, which what follows may change */
    for (size_t i = 0; i < n;) {
        /* U+0300 is cc 80: what begins with a lower byte is inert. */
        if ((unsigned char)s[i] < 0xcc) {
            start = i;
            i += (unsigned char)s[i] < 0x80 ? 1 : 2;
            continue;
        }
        uint32_t c;
        size_t length = utf8_decode(s + i, n - i, &c);
        if (!nfc_is_inert(c))
            return start;
        start = i;
        i += length;
    }
    return n;
}

/* Code points that grow; `failed` as in struct buf. */
struct points {
    uint32_t *c, *other; /* other: room of the same size for sorting */
    size_t n, capacity;
    bool failed;
};

static void push(struct points *p, uint32_t c)
{
    if (p->n == p->capacity) {
        size_t capacity = p->capacity ? p->capacity * 2 : 64;
        uint32_t *points = mem_realloc_n(p->c, capacity, sizeof *points);
        p->c = points ? points : p->c;
        uint32_t *other = mem_realloc_n(p->other, capacity, sizeof *other);
        p->other = other ? other : p->other;
        p->failed |= !points || !other;
        if (p->failed)
            return;
        p->capacity = capacity;
    }
    p->c[p->n++] = c;
}

static void sort_short(uint32_t *c, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        uint32_t one = c[i];
        uint8_t class = unicode_combining_class(one);
        size_t k = i;
        for (; k > 0 && unicode_combining_class(c[k - 1]) > class; k--)
            c[k] = c[k - 1];
        c[k] = one;
    }
}

static void sort_long(uint32_t *c, uint32_t *other, size_t n)
{
    size_t at[N_CLASSES + 1] = {0};
    for (size_t i = 0; i < n; i++)
        at[unicode_combining_class(c[i]) + 1]++;
    for (size_t class = 0; class < N_CLASSES; class ++)
        at[class + 1] += at[class];
    for (size_t i = 0; i < n; i++)
        other[at[unicode_combining_class(c[i])]++] = c[i];
    memcpy(c, other, n * sizeof *c);
}

/* Marks that follow each other in the order of their class; equal ones keep theirs. */
static void order(struct points *p)
{
    for (size_t i = 0; i < p->n;) {
        size_t end = i;
        while (end < p->n && unicode_combining_class(p->c[end]) != 0)
            end++;
        if (end - i > SHORT_RUN)
            sort_long(p->c + i, p->other, end - i);
        else if (end > i)
            sort_short(p->c + i, end - i);
        i = end + 1;
    }
}

/* Normalises what lies between two cuts. */
static void put_segment(struct buf *out, struct points *p, const char *s, size_t n)
{
    p->n = 0;
    for (size_t i = 0; i < n && !p->failed;) {
        uint32_t c, parts[UNICODE_DECOMPOSED_MAX];
        i += utf8_decode(s + i, n - i, &c);
        unsigned n_parts = unicode_decompose(c, parts);
        for (unsigned k = 0; k < n_parts && !p->failed; k++)
            push(p, parts[k]);
    }
    if (p->failed)
        return;
    order(p);
    p->n = unicode_compose(p->c, p->n);
    for (size_t i = 0; i < p->n; i++) {
        char bytes[4];
        buf_append(out, bytes, utf8_encode(p->c[i], bytes));
    }
}

void nfc_normalise(struct buf *out, const char *s, size_t n)
{
    struct points p = {0};
    for (size_t at = 0; at < n && !p.failed && !out->failed;) {
        size_t plain = nfc_prefix(s + at, n - at), end = at + plain;
        if (plain > 0)
            buf_append(out, s + at, plain);
        if (end == n)
            break;
        /* The last character before the first that is not inert, and all up to the next that
         * is. */
        at = end;
        uint32_t c;
        end += utf8_decode(s + end, n - end, &c);
        while (end < n) {
            size_t length = utf8_decode(s + end, n - end, &c);
            if (nfc_is_inert(c))
                break;
            end += length;
        }
        put_segment(out, &p, s + at, end - at);
        at = end;
    }
    out->failed |= p.failed;
    mem_free(p.c);
    mem_free(p.other);
}
