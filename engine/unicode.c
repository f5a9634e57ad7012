#include "engine/unicode.h"

#include <stdbool.h>
#include <stddef.h>
#include <utf8proc.h>

#include "base/utf8.h"

struct range {
    uint32_t first, last;
};

/* Ranges in which every mark, punctuation and format character is younger than Unicode 8.0
 * (DerivedAge.txt), or has changed category since; what else lies in a range is a letter
 * anyway. */
static const struct range younger[] = {
    {0x61d, 0x61d},     {0x7fd, 0x7fd},     {0x890, 0x8e2},     {0x9fd, 0x9fe},
    {0xa76, 0xa76},     {0xafa, 0xaff},     {0xb55, 0xb55},     {0xc04, 0xc3c},
    {0xc77, 0xc77},     {0xc84, 0xc84},     {0xd00, 0xd00},     {0xd3b, 0xd3c},
    {0xd81, 0xd81},     {0xeba, 0xeba},     {0xece, 0xece},     {0x180f, 0x1886},
    {0x1abf, 0x1ace},   {0x1b7d, 0x1b7e},   {0x1df6, 0x1dfb},   {0x2e43, 0x2e5d},
    {0xa82c, 0xa82c},   {0xa8c5, 0xa8c5},   {0xa8ff, 0xa8ff},   {0xa9bd, 0xa9bd},
    {0x10d24, 0x10f89}, {0x11070, 0x11074}, {0x110c2, 0x110cd}, {0x111cf, 0x111cf},
    {0x1123e, 0x11241}, {0x1133b, 0x1133b}, {0x11438, 0x1145e}, {0x11660, 0x1166c},
    {0x116b9, 0x116b9}, {0x1182f, 0x11fff}, {0x12ff1, 0x13455}, {0x16e97, 0x16f4f},
    {0x16fe2, 0x16fe4}, {0x1cf00, 0x1cf46}, {0x1e000, 0x1e4ef}, {0x1e944, 0x1e95f},
};

/* The blocks that BERT's own code calls Chinese characters. Hangul and kana are not among them.
 * The gap before U+2B920 is in the original and in every model trained behind it. */
static const struct range ideographs[] = {
    {0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfaff},   {0x20000, 0x2a6df},
    {0x2a700, 0x2b73f}, {0x2b740, 0x2b81f}, {0x2b920, 0x2ceaf}, {0x2f800, 0x2fa1f},
};

static bool in_ranges(uint32_t c, const struct range *r, size_t n)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (c > r[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && c >= r[lo].first;
}

static bool is_space(uint32_t c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

static bool is_ascii_symbol(uint32_t c)
{
    return c < 0x7f && c > ' ' && !(c >= '0' && c <= '9') &&
           !((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}

static enum unicode_class class_of_category(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_MN:
        return UNICODE_MARK;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return UNICODE_PUNCTUATION;
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CO:
        return UNICODE_DROPPED;
    default:
        return UNICODE_LETTER;
    }
}

enum unicode_class unicode_class_of(uint32_t c)
{
    if (is_space(c))
        return UNICODE_SPACE;
    if (is_ascii_symbol(c))
        return UNICODE_PUNCTUATION;
    if (c == 0xfffd)
        return UNICODE_DROPPED;
    if (c >= 0x3400 && in_ranges(c, ideographs, sizeof ideographs / sizeof *ideographs))
        return UNICODE_CJK;
    /* Three changed category since 8.0. */
    if (c == 0x166d || c == 0x111c9)
        return UNICODE_PUNCTUATION;
    if (c == 0x1734)
        return UNICODE_MARK;
    enum unicode_class class = class_of_category(c);
    if (class != UNICODE_LETTER && in_ranges(c, younger, sizeof younger / sizeof *younger))
        return UNICODE_LETTER;
    return class;
}

unsigned unicode_decompose(uint32_t c, uint32_t out[UNICODE_DECOMPOSED_MAX])
{
    utf8proc_int32_t parts[UNICODE_DECOMPOSED_MAX];
    utf8proc_ssize_t n =
        utf8proc_decompose_char((utf8proc_int32_t)c, parts, UNICODE_DECOMPOSED_MAX,
                                UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, NULL);
    if (n < 1 || n > UNICODE_DECOMPOSED_MAX) {
        out[0] = c;
        return 1;
    }
    for (utf8proc_ssize_t i = 0; i < n; i++)
        out[i] = (uint32_t)parts[i];
    return (unsigned)n;
}

uint32_t unicode_lower(uint32_t c)
{
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
}

uint8_t unicode_combining_class(uint32_t c)
{
    return (uint8_t)utf8proc_get_property((utf8proc_int32_t)c)->combining_class;
}

bool unicode_is_white_space(uint32_t c)
{
    return (c >= 0x9 && c <= 0xd) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

size_t unicode_grapheme(const char *s, size_t n)
{
    utf8proc_int32_t state = 0;
    uint32_t c, next;
    size_t end = utf8_decode(s, n, &c);
    while (end < n) {
        size_t step = utf8_decode(s + end, n - end, &next);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)c, (utf8proc_int32_t)next,
                                             &state))
            break;
        end += step;
        c = next;
    }
    return end;
}
