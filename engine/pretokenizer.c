/* A match never looks at a character more than a few times: where an expression goes back, it
 * does so over characters of known kinds, and where to is noted on the way. */

#include "engine/pretokenizer.h"

#include <stdint.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/unicode.h"

enum {
    LETTER = UNICODE_UPPER | UNICODE_LOWER | UNICODE_CASELESS,
    MARK = UNICODE_COMBINING,
    NUMBER = UNICODE_NUMBER,
    SPACE = UNICODE_NEWLINE | UNICODE_BLANK,
    NEWLINE = UNICODE_NEWLINE,
    SYMBOL = UNICODE_PUNCT | UNICODE_SYMBOL,
    ALL = (UNICODE_REST << 1) - 1,
    OTHER = ALL & ~(SPACE | LETTER | NUMBER), /* [^\s\p{L}\p{N}] */
    /* The two halves of a word by case share what has none. */
    HEAD = UNICODE_UPPER | UNICODE_CASELESS | MARK,
    TAIL = UNICODE_LOWER | UNICODE_CASELESS | MARK
};

/* The kind of the character at s and its length; 0 and 0 at the end. */
static inline unsigned kind_at(const char *s, size_t n, size_t *length)
{
    *length = 0;
    if (n == 0)
        return 0;
    unsigned char b = (unsigned char)s[0];
    if (b < 0x80) {
        *length = 1;
        return unicode_ascii_kinds[b];
    }
    uint32_t c;
    *length = utf8_decode(s, n, &c);
    return unicode_kind_of(c);
}

/* Where the run of these kinds that begins at `from` ends, or at most `most` characters. */
static inline size_t run_of(const char *s, size_t n, size_t from, unsigned kinds, size_t most)
{
    size_t length;
    while (most-- && kind_at(s + from, n - from, &length) & kinds)
        from += length;
    return from;
}

static inline size_t run(const char *s, size_t n, size_t from, unsigned kinds)
{
    return run_of(s, n, from, kinds, SIZE_MAX);
}

/* --- parts that the expressions share --- */

/* 's|'t|'re|'ve|'m|'ll|'d. In any case: (?i:...), in which U+017F is an s too. */
static size_t contraction(const char *s, size_t n, bool any_case)
{
    if (n < 2 || s[0] != '\'')
        return 0;
    char fold = any_case ? 0x20 : 0;
    char a = (char)(s[1] | fold), b = n > 2 ? (char)(s[2] | fold) : '\0';
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return 3;
    return any_case && n > 2 && s[1] == '\xc5' && s[2] == '\xbf' ? 3 : 0;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+, or without the first. */
static size_t white(const char *s, size_t n, bool newlines)
{
    size_t end = 0, last = 0, behind_newline = 0, length;
    for (unsigned kind; (kind = kind_at(s + end, n - end, &length)) & SPACE;) {
        last = end;
        end += length;
        if (kind & NEWLINE)
            behind_newline = end;
    }
    if (newlines && behind_newline)
        return behind_newline;
    return end == n || last == 0 ? end : last;
}

/*  ?[kinds]+[\r\n]*, where slash: [\r\n/]*. */
static size_t symbols(const char *s, size_t n, unsigned kinds, bool slash)
{
    size_t from = n && s[0] == ' ', end = run(s, n, from, kinds);
    if (end == from)
        return 0;
    while (end < n && (s[end] == '\r' || s[end] == '\n' || (slash && s[end] == '/')))
        end++;
    return end;
}

/* [^\r\n\p{L}\p{N}]?[kinds]+ */
static size_t word(const char *s, size_t n, unsigned kinds, unsigned no_prefix)
{
    size_t length, next;
    unsigned kind = kind_at(s, n, &length);
    if (kind & kinds)
        return run(s, n, length, kinds);
    if (kind & no_prefix || !(kind_at(s + length, n - length, &next) & kinds))
        return 0;
    return run(s, n, length + next, kinds);
}

/* --- llama-bpe, qwen2, qwen35 --- */

static inline size_t modern(const char *s, size_t n, unsigned letters, size_t digits)
{
    size_t end;
    if ((end = contraction(s, n, true)) ||
        (end = word(s, n, letters, NEWLINE | LETTER | NUMBER)) ||
        (end = run_of(s, n, 0, NUMBER, digits)) ||
        (end = symbols(s, n, OTHER & ~letters, false)))
        return end;
    return white(s, n, true);
}

static size_t match_llama(const char *s, size_t n)
{
    return modern(s, n, LETTER, 3);
}

static size_t match_qwen2(const char *s, size_t n)
{
    return modern(s, n, LETTER, 1);
}

static size_t match_qwen35(const char *s, size_t n)
{
    return modern(s, n, LETTER | MARK, 1);
}

/* --- gpt-4o, tekken: words by case --- */

/* [head]*[tail]+ from `at`. What has no case is of both, so where no lower letter follows the
 * run of the first, the last of it that is of both is given back to be the second. */
static size_t lower_word(const char *s, size_t n, size_t at)
{
    size_t length, given_back = 0;
    unsigned kind;
    while ((kind = kind_at(s + at, n - at, &length)) & HEAD) {
        at += length;
        if (kind & TAIL)
            given_back = at;
    }
    return kind & TAIL ? run(s, n, at, TAIL) : given_back;
}

/* [head]+[tail]* from `at`. */
static size_t upper_word(const char *s, size_t n, size_t at)
{
    size_t end = run(s, n, at, HEAD);
    return end == at ? 0 : run(s, n, end, TAIL);
}

static size_t cased_word(const char *s, size_t n)
{
    size_t length, end = 0;
    unsigned kind = kind_at(s, n, &length);
    bool prefix = kind && !(kind & (NEWLINE | LETTER | NUMBER));
    if (prefix)
        end = lower_word(s, n, length);
    if (!end)
        end = lower_word(s, n, 0);
    if (!end && prefix)
        end = upper_word(s, n, length);
    return end ? end : upper_word(s, n, 0);
}

static size_t match_gpt_4o(const char *s, size_t n)
{
    size_t end = cased_word(s, n);
    if (end)
        return end + contraction(s + end, n - end, true);
    if ((end = run_of(s, n, 0, NUMBER, 3)) || (end = symbols(s, n, OTHER, true)))
        return end;
    return white(s, n, true);
}

static size_t match_tekken(const char *s, size_t n)
{
    size_t end;
    if ((end = cased_word(s, n)) || (end = run_of(s, n, 0, NUMBER, 1)) ||
        (end = symbols(s, n, OTHER, true)))
        return end;
    return white(s, n, true);
}

/* --- gpt-2, starcoder --- */

static size_t match_gpt_2(const char *s, size_t n)
{
    size_t length, end = contraction(s, n, false), from = n && s[0] == ' ';
    if (end)
        return end;
    unsigned kind = kind_at(s + from, n - from, &length);
    if (kind & LETTER)
        return run(s, n, from + length, LETTER);
    if (kind & NUMBER)
        return run(s, n, from + length, NUMBER);
    if (kind & OTHER)
        return run(s, n, from + length, OTHER);
    return white(s, n, false);
}

/* What cuts digits off is not the expression, and knows the numbers of Unicode 17.0. */
static size_t match_one_number(const char *s, size_t n)
{
    uint32_t c;
    size_t length;
    if (kind_at(s, n, &length) & NUMBER)
        return length;
    if (length < 4)
        return 0;
    utf8_decode(s, n, &c);
    bool young = (c >= 0x11de0 && c <= 0x11de9) || (c >= 0x16ff4 && c <= 0x16ff6);
    return young ? length : 0;
}

/* --- deepseek-v3 --- */

static size_t match_three_numbers(const char *s, size_t n)
{
    return run_of(s, n, 0, NUMBER, 3);
}

/* [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]+ */
static size_t match_ideographs(const char *s, size_t n)
{
    size_t end = 0;
    for (uint32_t c; n - end >= 3;) {
        size_t length = utf8_decode(s + end, n - end, &c);
        if (!((c >= 0x4e00 && c <= 0x9fa5) || (c >= 0x3040 && c <= 0x30ff)))
            break;
        end += length;
    }
    return end;
}

/* [!-/:-~][A-Za-z]+ of ASCII, with each punctuation or symbol but no letter for the first. */
static size_t ascii_symbol_word(const char *s, size_t n)
{
    size_t end = 1;
    unsigned char b = n ? (unsigned char)s[0] : 0;
    if (b >= 0x80 || !(unicode_ascii_kinds[b] & SYMBOL))
        return 0;
    while (end < n && (unsigned char)s[end] < 0x80 &&
           unicode_ascii_kinds[(unsigned char)s[end]] & LETTER)
        end++;
    return end > 1 ? end : 0;
}

static size_t match_deepseek_v3(const char *s, size_t n)
{
    size_t end;
    if ((end = ascii_symbol_word(s, n)) ||
        (end = word(s, n, LETTER | MARK, NEWLINE | LETTER | SYMBOL)) ||
        (end = symbols(s, n, SYMBOL, false)))
        return end;
    return white(s, n, true);
}

/* --- default: for models that say nothing better --- */

static size_t match_punctuation(const char *s, size_t n)
{
    size_t end = 0, length;
    for (unsigned kind; (kind = kind_at(s + end, n - end, &length));) {
        bool symbol = kind & UNICODE_SYMBOL && length == 1 && s[end] != '`';
        if (!(kind & UNICODE_PUNCT) && !symbol)
            break;
        end += length;
    }
    return end;
}

static size_t match_numbers(const char *s, size_t n)
{
    return run(s, n, 0, NUMBER);
}

static size_t match_three_digits(const char *s, size_t n)
{
    for (size_t i = 0; i < 3; i++)
        if (i >= n || s[i] < '0' || s[i] > '9')
            return 0;
    return 3;
}

/* --- the names --- */

#define LLAMA(name_)                                                                           \
    {                                                                                          \
        .name = name_, .stages = {match_llama}, .ignore_merges = true, .add_bos = true         \
    }
#define GPT_2(name_, nfc_, pair_)                                                              \
    {                                                                                          \
        .name = name_, .stages = {match_gpt_2}, .nfc = nfc_, .pair = pair_                     \
    }
#define DIGITS(name_, nfc_)                                                                    \
    {                                                                                          \
        .name = name_, .stages = {match_one_number, match_gpt_2}, .nfc = nfc_                  \
    }

static const struct pretokenizer known[] = {
    LLAMA("llama-bpe"),
    LLAMA("llama3"),
    LLAMA("llama-v3"),
    LLAMA("falcon3"),
    LLAMA("pixtral"),
    LLAMA("lfm2"),
    {.name = "smaug-bpe", .stages = {match_llama}},
    {.name = "dbrx", .stages = {match_llama}},
    {.name = "glm4", .stages = {match_llama}},
    {.name = "qwen2", .stages = {match_qwen2}, .nfc = true},
    {.name = "qwen35", .stages = {match_qwen35}, .nfc = true},
    {.name = "deepseek-r1-qwen", .stages = {match_qwen2}},
    {.name = "stablelm2", .stages = {match_qwen2}},
    GPT_2("gpt-2", false, PAIR_NONE),
    GPT_2("phi-2", false, PAIR_NONE),
    GPT_2("mpt", true, PAIR_NONE),
    GPT_2("olmo", true, PAIR_NONE),
    GPT_2("exaone4", false, PAIR_NONE),
    GPT_2("roberta-bpe", false, PAIR_TWO_SEPARATORS),
    GPT_2("jina-v1-en", false, PAIR_TWO_SEPARATORS),
    GPT_2("jina-v2-code", false, PAIR_TWO_SEPARATORS),
    GPT_2("jina-v2-de", false, PAIR_TWO_SEPARATORS),
    GPT_2("jina-v2-es", false, PAIR_TWO_SEPARATORS),
    GPT_2("jina-de", false, PAIR_TWO_SEPARATORS),
    GPT_2("jina-es", false, PAIR_TWO_SEPARATORS),
    GPT_2("modern-bert", true, PAIR_ONE_SEPARATOR),
    DIGITS("smollm", false),
    DIGITS("starcoder", false),
    DIGITS("refact", false),
    DIGITS("command-r", true),
    {.name = "gpt-4o", .stages = {match_gpt_4o}},
    {.name = "o200k", .stages = {match_gpt_4o}},
    {.name = "llama4", .stages = {match_gpt_4o}},
    {.name = "tekken", .stages = {match_tekken}, .ignore_merges = true, .add_bos = true},
    {.name = "deepseek-v3",
     .stages = {match_three_numbers, match_ideographs, match_deepseek_v3}},
    {.name = "deepseek-r1",
     .stages = {match_three_numbers, match_ideographs, match_deepseek_v3}},
    {.name = "default",
     .stages = {match_punctuation, match_gpt_2, match_numbers, match_three_digits}},
};
enum { N_KNOWN = sizeof known / sizeof *known };

const struct pretokenizer *pretokenizer_find(const char *name, size_t n)
{
    for (size_t i = 0; i < N_KNOWN; i++)
        if (strlen(known[i].name) == n && memcmp(known[i].name, name, n) == 0)
            return &known[i];
    return NULL;
}

const char *pretokenizer_name(size_t i)
{
    return i < N_KNOWN ? known[i].name : NULL;
}

/* --- the walk --- */

struct pretokens pretokens_of(const struct pretokenizer *pre, const char *s, size_t n)
{
    return (struct pretokens){.pre = pre, .s = s, .n = n};
}

/* The match at s, or all up to the next one. */
static size_t cut(size_t (*match)(const char *s, size_t n), const char *s, size_t n)
{
    size_t end = match(s, n);
    if (end)
        return end;
    do {
        uint32_t c;
        end += utf8_decode(s + end, n - end, &c);
    } while (end < n && !match(s + end, n - end));
    return end;
}

bool pretokens_next(struct pretokens *w, const char **word_, size_t *n)
{
    if (w->at == w->n)
        return false;
    size_t end = w->n;
    for (size_t i = 0; i < PRETOKENIZER_STAGES && w->pre->stages[i]; i++) {
        if (w->end[i] <= w->at)
            w->end[i] = w->at + cut(w->pre->stages[i], w->s + w->at, end - w->at);
        end = w->end[i];
    }
    *word_ = w->s + w->at;
    *n = end - w->at;
    w->at = end;
    return true;
}
