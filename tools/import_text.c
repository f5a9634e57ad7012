/* A chunk is packed from atoms, words or sentences, as long as the estimate allows. The
 * estimate of a run of atoms is never more than the sum of theirs (a run of letters that is cut
 * costs more in parts than whole), so the sum is what is compared with the limit. */
#include "tools/import_text.h"

#include <stdbool.h>
#include <string.h>

#include "base/utf8.h"

enum { LETTERS_PER_TOKEN = 4, DIGITS_PER_TOKEN = 2, HEADING_LEVELS = 6 };

/* --- characters --- */

static bool is_space(uint32_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

static bool is_letter(uint32_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_digit(uint32_t c)
{
    return c >= '0' && c <= '9';
}

/* Scripts without blanks between words. */
static bool is_cjk(uint32_t c)
{
    return (c >= 0x2E80 && c <= 0x9FFF && c != 0x3000) || (c >= 0xF900 && c <= 0xFAFF) ||
           (c >= 0xFF01 && c <= 0xFF60) || (c >= 0x20000 && c <= 0x3FFFF);
}

static bool is_cjk_stop(uint32_t c)
{
    return c == 0x3002 || c == 0xFF01 || c == 0xFF1F || c == 0xFF61;
}

static bool is_stop(uint32_t c)
{
    return c == '.' || c == '!' || c == '?' || c == 0x2026;
}

static bool is_closing(uint32_t c)
{
    return c == '"' || c == '\'' || c == ')' || c == ']' || c == '}' || c == 0xBB ||
           c == 0x2019 || c == 0x201D || (c >= 0x3009 && c <= 0x3011 && c % 2 == 1) ||
           c == 0xFF09;
}

/* The character at `at`, 0 at the end; *next is what follows it. */
static uint32_t char_at(struct slice t, size_t at, size_t *next)
{
    uint32_t c = 0;
    *next = at < t.n ? at + utf8_decode(t.p + at, t.n - at, &c) : at;
    return c;
}

/* Counts from `at`, and stops behind the character that makes them more than the limit. */
static size_t count_tokens(struct slice t, size_t at, size_t limit, size_t *end)
{
    size_t tokens = 0, letters = 0, digits = 0;
    for (size_t next; at < t.n && tokens <= limit; at = next) {
        uint32_t c = char_at(t, at, &next);
        letters = is_letter(c) ? letters + 1 : 0;
        digits = is_digit(c) ? digits + 1 : 0;
        if (letters > 0)
            tokens += letters % LETTERS_PER_TOKEN == 1;
        else if (digits > 0)
            tokens += digits % DIGITS_PER_TOKEN == 1;
        else
            tokens += !is_space(c);
    }
    *end = at;
    return tokens;
}

size_t text_tokens(struct slice text)
{
    size_t end;
    return count_tokens(text, 0, SIZE_MAX, &end);
}

static size_t tokens_between(struct slice t, size_t from, size_t to)
{
    return text_tokens((struct slice){.p = t.p + from, .n = to - from});
}

/* --- atoms: where the one at `at` ends, with the white space behind it --- */

static size_t skip_space(struct slice t, size_t at, unsigned *newlines)
{
    *newlines = 0;
    for (size_t next; at < t.n; at = next) {
        uint32_t c = char_at(t, at, &next);
        if (!is_space(c))
            break;
        *newlines += c == '\n';
    }
    return at;
}

static size_t word_end(struct slice t, size_t at)
{
    unsigned newlines;
    size_t next;
    at = skip_space(t, at, &newlines);
    bool first = true;
    for (; at < t.n; at = next, first = false) {
        uint32_t c = char_at(t, at, &next);
        if (is_space(c) || (is_cjk(c) && !first))
            break;
        if (is_cjk(c)) {
            at = next;
            break;
        }
    }
    return skip_space(t, at, &newlines);
}

static size_t sentence_end(struct slice t, size_t at)
{
    unsigned newlines;
    size_t next;
    at = skip_space(t, at, &newlines);
    bool stopped = false; /* after . ! ? and what closes behind them */
    for (; at < t.n; at = next) {
        uint32_t c = char_at(t, at, &next);
        if (is_space(c)) {
            next = skip_space(t, at, &newlines);
            if (stopped || newlines > 1)
                return next;
            continue;
        }
        if (is_cjk_stop(c)) {
            uint32_t after;
            size_t end = next, behind;
            while ((after = char_at(t, end, &behind)) != 0 &&
                   (is_closing(after) || is_cjk_stop(after)))
                end = behind;
            return skip_space(t, end, &newlines);
        }
        stopped = is_stop(c) || (stopped && is_closing(c));
    }
    return at;
}

static size_t character_end(struct slice t, size_t at)
{
    size_t next;
    char_at(t, at, &next);
    return next;
}

typedef size_t atom_fn(struct slice t, size_t at);

/* --- packing --- */

/* As much of the text as the limit lets one look at from `at`, or all of it: so a text without
 * a border is not read to its end for each of its chunks. */
static struct slice in_reach(struct slice t, size_t at, size_t limit)
{
    size_t end;
    size_t tokens = count_tokens(t, at, limit, &end);
    return tokens > limit ? (struct slice){.p = t.p, .n = end} : t;
}

/* The end of the atoms from `at` that fit together; `at` when not even the first does. */
static size_t pack(struct slice t, size_t at, size_t limit, atom_fn *atom)
{
    struct slice reach = in_reach(t, at, limit);
    size_t tokens = 0;
    while (at < reach.n) {
        size_t end = atom(reach, at);
        tokens += tokens_between(t, at, end);
        if (tokens > limit || (end == reach.n && end < t.n))
            break;
        at = end;
    }
    return at;
}

/* Where the next chunk begins: the first border behind `from` with no more than the overlap
 * between it and `end`, if what comes next still fits behind that; else `end`. */
static size_t next_begin(struct slice t, size_t from, size_t end, const struct chunk_options *o,
                         atom_fn *atom)
{
    if (o->overlap == 0 || end >= t.n)
        return end;
    struct slice reach = in_reach(t, end, o->n_tokens);
    size_t left = 0, coming = tokens_between(t, end, atom(reach, end));
    struct slice chunk = {.p = t.p, .n = end};
    for (size_t at = from; at < end;) {
        size_t next = atom(chunk, at);
        left += tokens_between(t, at, next);
        at = next;
    }
    for (size_t at = from; at < end;) {
        size_t next = atom(chunk, at);
        left -= tokens_between(t, at, next);
        at = next;
        if (at < end && left <= o->overlap && left + coming <= o->n_tokens)
            return at;
    }
    return end;
}

static struct slice trimmed(struct slice t, size_t from, size_t to)
{
    unsigned newlines;
    struct slice whole = {.p = t.p, .n = to};
    from = skip_space(whole, from, &newlines);
    size_t end = from;
    for (size_t at = from, next; at < to; at = next)
        if (!is_space(char_at(whole, at, &next)))
            end = next;
    return (struct slice){.p = t.p + from, .n = end - from};
}

static int give(struct slice t, size_t from, size_t to, struct slice heading,
                int (*each)(void *arg, const struct chunk *c), void *arg)
{
    struct chunk c = {.text = trimmed(t, from, to), .heading = heading};
    return c.text.n > 0 ? each(arg, &c) : 0;
}

static int cut(struct slice t, const struct chunk_options *o, struct slice heading,
               int (*each)(void *arg, const struct chunk *c), void *arg)
{
    atom_fn *const finer[] = {sentence_end, word_end, character_end};
    size_t first = o->mode == CHUNK_TOKENS ? 1 : 0;
    for (size_t at = 0; at < t.n;) {
        size_t end = at, i = first;
        while (end == at && i < sizeof finer / sizeof *finer)
            end = pack(t, at, o->n_tokens, finer[i++]);
        int rc = give(t, at, end, heading, each, arg);
        if (rc)
            return rc;
        at = i == first + 1 ? next_begin(t, at, end, o, finer[first]) : end;
    }
    return 0;
}

/* --- sections --- */

/* The level of a heading line, 0 for any other line. */
static unsigned heading_level(struct slice line)
{
    unsigned n = 0;
    while (n < line.n && line.p[n] == '#')
        n++;
    bool blank = n < line.n && (line.p[n] == ' ' || line.p[n] == '\t');
    return n <= HEADING_LEVELS && blank ? n : 0;
}

/* Three or more of ` or ~ open fenced code; a fence at least as long of the same, with nothing
 * behind it, ends it. */
struct fence {
    char mark; /* 0: outside */
    size_t length;
};

static void see_fence(struct fence *f, struct slice line)
{
    size_t at = 0, n = 0;
    while (at < line.n && at < 4 && line.p[at] == ' ')
        at++;
    if (at >= line.n || at == 4 || (line.p[at] != '`' && line.p[at] != '~'))
        return;
    while (at + n < line.n && line.p[at + n] == line.p[at])
        n++;
    if (n < 3)
        return;
    struct slice rest = {.p = line.p + at + n, .n = line.n - at - n};
    if (!f->mark)
        *f = (struct fence){.mark = line.p[at], .length = n};
    else if (line.p[at] == f->mark && n >= f->length && trimmed(rest, 0, rest.n).n == 0)
        f->mark = 0;
}

struct sections {
    size_t ends[HEADING_LEVELS + 1]; /* of the path of each level, in `path` */
    struct buf path;
};

/* The words of a heading line, without marks at either end. */
static struct slice heading_words(struct slice line, unsigned level)
{
    struct slice words = trimmed(line, level, line.n);
    size_t n = words.n;
    while (n > 0 && words.p[n - 1] == '#')
        n--;
    bool closed = n == 0 || words.p[n - 1] == ' ' || words.p[n - 1] == '\t';
    return closed ? trimmed(words, 0, n) : words;
}

static void enter_section(struct sections *s, struct slice line, unsigned level)
{
    s->path.len = s->ends[level - 1];
    struct slice words = heading_words(line, level);
    if (words.n > 0) {
        if (s->path.len > 0)
            buf_append_str(&s->path, " > ");
        buf_append(&s->path, words.p, words.n);
    }
    for (unsigned i = level; i <= HEADING_LEVELS; i++)
        s->ends[i] = s->path.len;
}

static int cut_sections(struct slice t, const struct chunk_options *o,
                        int (*each)(void *arg, const struct chunk *c), void *arg)
{
    struct sections s = {0};
    struct fence fence = {0};
    buf_init(&s.path);
    int rc = 0;
    for (size_t at = 0, from = 0; at < t.n && rc == 0;) {
        const char *newline = memchr(t.p + at, '\n', t.n - at);
        size_t end = newline ? (size_t)(newline - t.p) + 1 : t.n;
        struct slice line = {.p = t.p + at, .n = end - at};
        see_fence(&fence, line);
        unsigned level = fence.mark ? 0 : heading_level(line);
        if (level > 0 || end == t.n) {
            size_t to = level > 0 ? at : end;
            struct slice path = {.p = s.path.data, .n = s.path.len};
            rc = cut((struct slice){.p = t.p + from, .n = to - from}, o, path, each, arg);
            from = to;
        }
        if (level > 0) {
            enter_section(&s, line, level);
            if (end == t.n && rc == 0)
                rc = cut(line, o, (struct slice){.p = s.path.data, .n = s.path.len}, each, arg);
        }
        at = end;
    }
    if (rc == 0 && s.path.failed)
        rc = KITH_ENOMEM;
    buf_deinit(&s.path);
    return rc;
}

int text_chunks(struct slice text, const struct chunk_options *o,
                int (*each)(void *arg, const struct chunk *c), void *arg)
{
    struct slice no_heading = {0};
    if (o->mode == CHUNK_HEADINGS)
        return cut_sections(text, o, each, arg);
    if (o->mode == CHUNK_NONE)
        return give(text, 0, text.n, no_heading, each, arg);
    return cut(text, o, no_heading, each, arg);
}
