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

/* --- the categories of regular expressions --- */

/* What Unicode 15.1 and 16.0 assigned, which this machine's utf8proc may not know. */
static const struct newcomer {
    uint32_t first, last;
    enum unicode_kind kind;
} newcomers[] = {
    {0x897, 0x897, UNICODE_COMBINING},     {0x1b4e, 0x1b4f, UNICODE_PUNCT},
    {0x1b7f, 0x1b7f, UNICODE_PUNCT},       {0x1c89, 0x1c89, UNICODE_UPPER},
    {0x1c8a, 0x1c8a, UNICODE_LOWER},       {0x2427, 0x2429, UNICODE_SYMBOL},
    {0x2ffc, 0x2fff, UNICODE_SYMBOL},      {0x31e4, 0x31e5, UNICODE_SYMBOL},
    {0x31ef, 0x31ef, UNICODE_SYMBOL},      {0xa7cb, 0xa7cc, UNICODE_UPPER},
    {0xa7cd, 0xa7cd, UNICODE_LOWER},       {0xa7da, 0xa7da, UNICODE_UPPER},
    {0xa7db, 0xa7db, UNICODE_LOWER},       {0xa7dc, 0xa7dc, UNICODE_UPPER},
    {0x105c0, 0x105f3, UNICODE_CASELESS},  {0x10d40, 0x10d49, UNICODE_NUMBER},
    {0x10d4a, 0x10d4f, UNICODE_CASELESS},  {0x10d50, 0x10d65, UNICODE_UPPER},
    {0x10d69, 0x10d6d, UNICODE_COMBINING}, {0x10d6e, 0x10d6e, UNICODE_PUNCT},
    {0x10d6f, 0x10d6f, UNICODE_CASELESS},  {0x10d70, 0x10d85, UNICODE_LOWER},
    {0x10d8e, 0x10d8f, UNICODE_SYMBOL},    {0x10ec2, 0x10ec4, UNICODE_CASELESS},
    {0x10efc, 0x10efc, UNICODE_COMBINING}, {0x11380, 0x11389, UNICODE_CASELESS},
    {0x1138b, 0x1138b, UNICODE_CASELESS},  {0x1138e, 0x1138e, UNICODE_CASELESS},
    {0x11390, 0x113b5, UNICODE_CASELESS},  {0x113b7, 0x113b7, UNICODE_CASELESS},
    {0x113b8, 0x113c0, UNICODE_COMBINING}, {0x113c2, 0x113c2, UNICODE_COMBINING},
    {0x113c5, 0x113c5, UNICODE_COMBINING}, {0x113c7, 0x113ca, UNICODE_COMBINING},
    {0x113cc, 0x113d0, UNICODE_COMBINING}, {0x113d1, 0x113d1, UNICODE_CASELESS},
    {0x113d2, 0x113d2, UNICODE_COMBINING}, {0x113d3, 0x113d3, UNICODE_CASELESS},
    {0x113d4, 0x113d5, UNICODE_PUNCT},     {0x113d7, 0x113d8, UNICODE_PUNCT},
    {0x113e1, 0x113e2, UNICODE_COMBINING}, {0x116d0, 0x116e3, UNICODE_NUMBER},
    {0x11bc0, 0x11be0, UNICODE_CASELESS},  {0x11be1, 0x11be1, UNICODE_PUNCT},
    {0x11bf0, 0x11bf9, UNICODE_NUMBER},    {0x11f5a, 0x11f5a, UNICODE_COMBINING},
    {0x13460, 0x143fa, UNICODE_CASELESS},  {0x16100, 0x1611d, UNICODE_CASELESS},
    {0x1611e, 0x1612f, UNICODE_COMBINING}, {0x16130, 0x16139, UNICODE_NUMBER},
    {0x16d40, 0x16d6c, UNICODE_CASELESS},  {0x16d6d, 0x16d6f, UNICODE_PUNCT},
    {0x16d70, 0x16d79, UNICODE_NUMBER},    {0x18cff, 0x18cff, UNICODE_CASELESS},
    {0x1cc00, 0x1ccef, UNICODE_SYMBOL},    {0x1ccf0, 0x1ccf9, UNICODE_NUMBER},
    {0x1cd00, 0x1ceb3, UNICODE_SYMBOL},    {0x1e5d0, 0x1e5ed, UNICODE_CASELESS},
    {0x1e5ee, 0x1e5ef, UNICODE_COMBINING}, {0x1e5f0, 0x1e5f0, UNICODE_CASELESS},
    {0x1e5f1, 0x1e5fa, UNICODE_NUMBER},    {0x1e5ff, 0x1e5ff, UNICODE_PUNCT},
    {0x1f8b2, 0x1f8bb, UNICODE_SYMBOL},    {0x1f8c0, 0x1f8c1, UNICODE_SYMBOL},
    {0x1fa89, 0x1fa89, UNICODE_SYMBOL},    {0x1fa8f, 0x1fa8f, UNICODE_SYMBOL},
    {0x1fabe, 0x1fabe, UNICODE_SYMBOL},    {0x1fac6, 0x1fac6, UNICODE_SYMBOL},
    {0x1fadc, 0x1fadc, UNICODE_SYMBOL},    {0x1fadf, 0x1fadf, UNICODE_SYMBOL},
    {0x1fae9, 0x1fae9, UNICODE_SYMBOL},    {0x1fbcb, 0x1fbef, UNICODE_SYMBOL},
    {0x2ebf0, 0x2ee5d, UNICODE_CASELESS},
};

static unsigned newcomer_kind(uint32_t c)
{
    size_t lo = 0, hi = sizeof newcomers / sizeof *newcomers;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (c > newcomers[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    bool found = lo < sizeof newcomers / sizeof *newcomers && c >= newcomers[lo].first;
    return found ? newcomers[lo].kind : UNICODE_REST;
}

unsigned unicode_kind_of(uint32_t c)
{
    static const uint16_t kinds[] = {
        [UTF8PROC_CATEGORY_LU] = UNICODE_UPPER,     [UTF8PROC_CATEGORY_LT] = UNICODE_UPPER,
        [UTF8PROC_CATEGORY_LL] = UNICODE_LOWER,     [UTF8PROC_CATEGORY_LM] = UNICODE_CASELESS,
        [UTF8PROC_CATEGORY_LO] = UNICODE_CASELESS,  [UTF8PROC_CATEGORY_MN] = UNICODE_COMBINING,
        [UTF8PROC_CATEGORY_MC] = UNICODE_COMBINING, [UTF8PROC_CATEGORY_ME] = UNICODE_COMBINING,
        [UTF8PROC_CATEGORY_ND] = UNICODE_NUMBER,    [UTF8PROC_CATEGORY_NL] = UNICODE_NUMBER,
        [UTF8PROC_CATEGORY_NO] = UNICODE_NUMBER,    [UTF8PROC_CATEGORY_PC] = UNICODE_PUNCT,
        [UTF8PROC_CATEGORY_PD] = UNICODE_PUNCT,     [UTF8PROC_CATEGORY_PS] = UNICODE_PUNCT,
        [UTF8PROC_CATEGORY_PE] = UNICODE_PUNCT,     [UTF8PROC_CATEGORY_PI] = UNICODE_PUNCT,
        [UTF8PROC_CATEGORY_PF] = UNICODE_PUNCT,     [UTF8PROC_CATEGORY_PO] = UNICODE_PUNCT,
        [UTF8PROC_CATEGORY_SM] = UNICODE_SYMBOL,    [UTF8PROC_CATEGORY_SC] = UNICODE_SYMBOL,
        [UTF8PROC_CATEGORY_SK] = UNICODE_SYMBOL,    [UTF8PROC_CATEGORY_SO] = UNICODE_SYMBOL,
    };
    if (unicode_is_white_space(c))
        return c == '\r' || c == '\n' ? UNICODE_NEWLINE : UNICODE_BLANK;
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    if (category == UTF8PROC_CATEGORY_CN)
        return newcomer_kind(c);
    unsigned kind = (size_t)category < sizeof kinds / sizeof *kinds ? kinds[category] : 0;
    return kind ? kind : UNICODE_REST;
}

const uint16_t unicode_ascii_kinds[128] = {
    [0 ... 8] = UNICODE_REST,       ['\t'] = UNICODE_BLANK,
    ['\n'] = UNICODE_NEWLINE,       [11 ... 12] = UNICODE_BLANK,
    ['\r'] = UNICODE_NEWLINE,       [14 ... 31] = UNICODE_REST,
    [' '] = UNICODE_BLANK,          ['!' ... '#'] = UNICODE_PUNCT,
    ['$'] = UNICODE_SYMBOL,         ['%' ... '*'] = UNICODE_PUNCT,
    ['+'] = UNICODE_SYMBOL,         [',' ... '/'] = UNICODE_PUNCT,
    ['0' ... '9'] = UNICODE_NUMBER, [':' ... ';'] = UNICODE_PUNCT,
    ['<' ... '>'] = UNICODE_SYMBOL, ['?' ... '@'] = UNICODE_PUNCT,
    ['A' ... 'Z'] = UNICODE_UPPER,  ['[' ... ']'] = UNICODE_PUNCT,
    ['^'] = UNICODE_SYMBOL,         ['_'] = UNICODE_PUNCT,
    ['`'] = UNICODE_SYMBOL,         ['a' ... 'z'] = UNICODE_LOWER,
    ['{'] = UNICODE_PUNCT,          ['|'] = UNICODE_SYMBOL,
    ['}'] = UNICODE_PUNCT,          ['~'] = UNICODE_SYMBOL,
    [127] = UNICODE_REST,
};

size_t unicode_compose(uint32_t *c, size_t n)
{
    utf8proc_ssize_t left = utf8proc_normalize_utf32((utf8proc_int32_t *)c, (utf8proc_ssize_t)n,
                                                     UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    return left < 0 ? n : (size_t)left;
}
