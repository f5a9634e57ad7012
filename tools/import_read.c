#include "tools/import_read.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"

enum { NUMBER_DIGITS_MAX = 15, CSV_COLUMNS_MAX = 4096, WHAT_BYTES = 384 };

static const char *const id_names[] = {"id", "_id", NULL};
static const char *const text_names[] = {"text", "content", "body", NULL};

static int bad(const struct import_sink *sink, const char *file, size_t line,
               const char *format, ...) __attribute__((format(printf, 4, 5)));

static int bad(const struct import_sink *sink, const char *file, size_t line,
               const char *format, ...)
{
    char what[WHAT_BYTES];
    va_list ap;
    va_start(ap, format);
    vsnprintf(what, sizeof what, format, ap);
    va_end(ap);
    return sink->bad(sink->arg, file, line, what);
}

static bool blank(struct slice s)
{
    for (size_t i = 0; i < s.n; i++)
        if (!strchr(" \t\r\n\f\v", s.p[i]) || s.p[i] == '\0')
            return false;
    return true;
}

static bool is_utf8(struct slice s)
{
    return utf8_valid_prefix(s.p, s.n) == s.n;
}

static size_t skip_mark(struct slice bytes)
{
    return bytes.n >= 3 && memcmp(bytes.p, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

static bool wanted(const struct import_fields *f, const char *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(f->names[i], name) == 0)
            return true;
    return f->all;
}

/* The names a field may have: the one that was asked for, or the usual ones. */
struct candidates {
    const char *one[2];
    const char *const *names;
};

static const char *const *candidates(struct candidates *c, const char *asked,
                                     const char *const *usual)
{
    c->one[0] = asked;
    c->one[1] = NULL;
    return asked ? c->one : usual;
}

static const char *describe(const char *const *names, char *out, size_t n)
{
    size_t at = 0;
    out[0] = '\0';
    for (; *names && at < n; names++)
        at += (size_t)snprintf(out + at, n - at, "%s'%s'", at > 0 ? " or " : "", *names);
    return out;
}

/* What a record has to have, whatever it was read from. */
static int give(const struct import_sink *sink, const struct import_record *r)
{
    if (blank(r->text))
        return bad(sink, r->file, r->line, "the text is empty");
    if (r->id.n == 0)
        return bad(sink, r->file, r->line, "the id is empty");
    if (memchr(r->id.p, '\0', r->id.n))
        return bad(sink, r->file, r->line, "the id has a NUL byte");
    return sink->record(sink->arg, r);
}

/* --- JSONL --- */

static json_t *find_field(json_t *object, const char *const *names, const char **found)
{
    for (; *names; names++) {
        json_t *v = json_object_get(object, *names);
        if (v) {
            *found = *names;
            return v;
        }
    }
    return NULL;
}

static int missing(const struct import_sink *sink, const char *file, size_t line,
                   const char *const *names)
{
    char words[128];
    return bad(sink, file, line, "there is no field %s", describe(names, words, sizeof words));
}

/* Moves the fields that are wanted over; 0, or the name of one that must not be. */
static const char *take_attributes(json_t *from, json_t *to, const struct import_fields *f,
                                   const char *id, const char *text)
{
    const char *name;
    json_t *value;
    json_object_foreach(from, name, value)
    {
        if (strcmp(name, id) == 0 || strcmp(name, text) == 0 || !wanted(f, name))
            continue;
        if (name[0] == '_')
            return name;
        json_object_set(to, name, value);
    }
    return NULL;
}

static int use_object(const struct import_record *place, json_t *object,
                      const struct import_fields *f, const struct import_sink *sink)
{
    struct candidates ids, texts;
    const char *const *id_from = candidates(&ids, f->id, id_names);
    const char *const *text_from = candidates(&texts, f->text, text_names);
    const char *id_name = "", *text_name = "";
    struct import_record r = *place;
    json_t *id = find_field(object, id_from, &id_name);
    json_t *text = find_field(object, text_from, &text_name);
    if (!id || !text)
        return missing(sink, r.file, r.line, id ? text_from : id_from);
    char number[32];
    if (json_is_integer(id)) {
        int n = snprintf(number, sizeof number, "%lld", (long long)json_integer_value(id));
        r.id = (struct slice){.p = number, .n = (size_t)n};
    } else if (json_is_string(id)) {
        r.id = (struct slice){.p = json_string_value(id), .n = json_string_length(id)};
    } else {
        return bad(sink, r.file, r.line, "field '%s' is no string and no whole number",
                   id_name);
    }
    if (!json_is_string(text))
        return bad(sink, r.file, r.line, "field '%s' is no string", text_name);
    r.text = (struct slice){.p = json_string_value(text), .n = json_string_length(text)};
    const char *kept = take_attributes(object, r.attributes, f, id_name, text_name);
    if (kept)
        return bad(sink, r.file, r.line,
                   "field '%s': names that begin with '_' are kept for kith-import; leave it "
                   "out with --attributes",
                   kept);
    return give(sink, &r);
}

static int read_line(const struct import_record *place, struct slice line,
                     const struct import_fields *f, const struct import_sink *sink)
{
    size_t valid = utf8_valid_prefix(line.p, line.n);
    if (valid < line.n)
        return bad(sink, place->file, place->line, "byte %zu is not valid UTF-8", valid + 1);
    json_error_t where;
    json_t *object =
        json_loadb(line.p, line.n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!object)
        return bad(sink, place->file, place->line, "no JSON, byte %d: %s", where.position,
                   where.text);
    struct import_record r = *place;
    r.attributes = json_object();
    int rc;
    if (!json_is_object(object) || !r.attributes)
        rc = bad(sink, place->file, place->line, "no JSON object");
    else
        rc = use_object(&r, object, f, sink);
    json_decref(r.attributes);
    json_decref(object);
    return rc;
}

int import_read_jsonl(const char *file, struct slice bytes, const struct import_fields *f,
                      const struct import_sink *sink)
{
    struct import_record place = {.file = file, .line = 1};
    int rc = 0;
    for (size_t at = skip_mark(bytes); at < bytes.n && rc == 0; place.line++) {
        const char *newline = memchr(bytes.p + at, '\n', bytes.n - at);
        size_t end = newline ? (size_t)(newline - bytes.p) : bytes.n;
        struct slice line = {.p = bytes.p + at, .n = end - at};
        place.end = newline ? end + 1 : end;
        if (!blank(line))
            rc = read_line(&place, line, f, sink);
        at = place.end;
    }
    return rc;
}

/* --- CSV --- */

/* One row at a time: its fields lie in `text`, each ended by a NUL, and end where `ends` says.
 */
struct csv {
    struct slice bytes;
    size_t at, line, row_line; /* the next byte and its line; the line the row began on */
    struct buf text;
    size_t ends[CSV_COLUMNS_MAX];
    size_t n;
    const char *wrong; /* with the row, or NULL */
};

static void end_field(struct csv *c)
{
    if (c->n < CSV_COLUMNS_MAX)
        c->ends[c->n++] = c->text.len;
    else
        c->wrong = "a row has at most 4096 fields";
    buf_append(&c->text, "", 1);
}

static void quoted_field(struct csv *c)
{
    for (c->at++;;) {
        const char *from = c->bytes.p + c->at;
        const char *quote = memchr(from, '"', c->bytes.n - c->at);
        size_t n = quote ? (size_t)(quote - from) : c->bytes.n - c->at;
        for (size_t i = 0; i < n; i++)
            c->line += from[i] == '\n';
        if (n > 0)
            buf_append(&c->text, from, n);
        c->at += n;
        if (!quote) {
            c->wrong = "the quote that opens a field has no end";
            return;
        }
        c->at++;
        if (c->at >= c->bytes.n || c->bytes.p[c->at] != '"')
            return;
        buf_append(&c->text, "\"", 1);
        c->at++;
    }
}

static bool at_row_end(const struct csv *c)
{
    if (c->at >= c->bytes.n || c->bytes.p[c->at] == '\n')
        return true;
    return c->bytes.p[c->at] == '\r' &&
           (c->at + 1 == c->bytes.n || c->bytes.p[c->at + 1] == '\n');
}

static void plain_field(struct csv *c)
{
    size_t from = c->at;
    for (; !at_row_end(c) && c->bytes.p[c->at] != ','; c->at++)
        if (c->bytes.p[c->at] == '"')
            c->wrong = "a quote stands inside of a field that does not begin with one";
    if (c->at > from)
        buf_append(&c->text, c->bytes.p + from, c->at - from);
}

static void next_line(struct csv *c)
{
    while (c->at < c->bytes.n && c->bytes.p[c->at] != '\n')
        c->at++;
    if (c->at < c->bytes.n)
        c->at++;
    c->line++;
}

/* The next row that is not blank; false at the end of the file. */
static bool next_row(struct csv *c)
{
    while (c->at < c->bytes.n && at_row_end(c))
        next_line(c);
    if (c->at >= c->bytes.n)
        return false;
    c->row_line = c->line;
    c->text.len = 0;
    c->n = 0;
    c->wrong = NULL;
    for (;;) {
        if (c->at < c->bytes.n && c->bytes.p[c->at] == '"')
            quoted_field(c);
        else
            plain_field(c);
        end_field(c);
        if (!at_row_end(c) && c->bytes.p[c->at] != ',' && !c->wrong)
            c->wrong = "text stands behind the quote that ends a field";
        if (c->wrong || at_row_end(c))
            break;
        c->at++;
    }
    next_line(c);
    if (c->text.failed)
        c->wrong = "out of memory for the row";
    return true;
}

static struct slice field(const struct csv *c, size_t i)
{
    size_t from = i ? c->ends[i - 1] + 1 : 0;
    return (struct slice){.p = c->text.data + from, .n = c->ends[i] - from};
}

/* Written as JSON writes numbers: 0.5 and -3 but not 007, +1 or .5. */
static json_t *number_of(struct slice s)
{
    size_t digits = 0;
    for (size_t i = 0; i < s.n; i++) {
        digits += s.p[i] >= '0' && s.p[i] <= '9';
        if (!strchr("+-.eE0123456789", s.p[i]) || s.p[i] == '\0')
            return NULL;
    }
    if (digits == 0 || digits > NUMBER_DIGITS_MAX)
        return NULL;
    return json_loadb(s.p, s.n, JSON_DECODE_ANY, NULL);
}

struct header {
    char **names;
    size_t n, id, text;
};

static void header_free(struct header *h)
{
    for (size_t i = 0; h->names && i < h->n; i++)
        mem_free(h->names[i]);
    mem_free(h->names);
}

/* Which column has one of the names; n when none has. */
static size_t find_column(const struct header *h, const char *const *names)
{
    for (; *names; names++)
        for (size_t i = 0; i < h->n; i++)
            if (strcmp(h->names[i], *names) == 0)
                return i;
    return h->n;
}

/* Without a header that can be used a file has no rows, whatever the sink says to that. */
static int read_header(const struct import_sink *sink, const char *file, const struct csv *c,
                       struct header *h, const struct import_fields *f, bool *usable)
{
    *usable = false;
    if (c->wrong)
        return bad(sink, file, c->row_line, "%s", c->wrong);
    if (!is_utf8((struct slice){.p = c->text.data, .n = c->text.len}))
        return bad(sink, file, c->row_line, "the header is not valid UTF-8");
    h->names = mem_calloc(c->n, sizeof *h->names);
    h->n = c->n;
    for (size_t i = 0; i < h->n; i++) {
        struct slice name = field(c, i);
        if (memchr(name.p, '\0', name.n))
            return bad(sink, file, c->row_line, "the header has a NUL byte");
        if (!h->names || !(h->names[i] = mem_strdup(name.p)))
            return bad(sink, file, c->row_line, "out of memory for the header");
        for (size_t k = 0; k < i; k++)
            if (strcmp(h->names[k], h->names[i]) == 0)
                return bad(sink, file, c->row_line, "two fields are named '%s'", h->names[i]);
    }
    struct candidates ids, texts;
    const char *const *id_from = candidates(&ids, f->id, id_names);
    const char *const *text_from = candidates(&texts, f->text, text_names);
    h->id = find_column(h, id_from);
    h->text = find_column(h, text_from);
    if (h->id == h->n || h->text == h->n)
        return missing(sink, file, c->row_line, h->id == h->n ? id_from : text_from);
    for (size_t i = 0; i < h->n; i++)
        if (h->names[i][0] == '_' && i != h->id && i != h->text && wanted(f, h->names[i]))
            return bad(sink, file, c->row_line,
                       "field '%s': names that begin with '_' are kept for kith-import; leave "
                       "it out with --attributes",
                       h->names[i]);
    *usable = true;
    return 0;
}

static int use_row(const struct csv *c, const struct header *h, const char *file,
                   const struct import_fields *f, const struct import_sink *sink)
{
    if (c->wrong)
        return bad(sink, file, c->row_line, "%s", c->wrong);
    if (c->n != h->n)
        return bad(sink, file, c->row_line, "the row has %zu fields, the header %zu", c->n,
                   h->n);
    if (!is_utf8((struct slice){.p = c->text.data, .n = c->text.len}))
        return bad(sink, file, c->row_line, "the row is not valid UTF-8");
    struct import_record r = {.file = file,
                              .line = c->row_line,
                              .end = c->at,
                              .id = field(c, h->id),
                              .text = field(c, h->text),
                              .attributes = json_object()};
    for (size_t i = 0; i < h->n; i++) {
        if (i == h->id || i == h->text || !wanted(f, h->names[i]))
            continue;
        struct slice s = field(c, i);
        json_t *v = number_of(s);
        json_object_set_new(r.attributes, h->names[i], v ? v : json_stringn(s.p, s.n));
    }
    int rc = give(sink, &r);
    json_decref(r.attributes);
    return rc;
}

int import_read_csv(const char *file, struct slice bytes, const struct import_fields *f,
                    const struct import_sink *sink)
{
    struct header h = {0};
    struct csv *c = mem_calloc(1, sizeof *c);
    if (!c)
        return bad(sink, file, 1, "out of memory");
    c->bytes = bytes;
    c->at = skip_mark(bytes);
    c->line = 1;
    int rc = 0;
    if (!next_row(c)) {
        rc = bad(sink, file, 1, "the file has no header");
    } else {
        bool usable;
        rc = read_header(sink, file, c, &h, f, &usable);
        while (rc == 0 && usable && next_row(c))
            rc = use_row(c, &h, file, f, sink);
    }
    header_free(&h);
    buf_deinit(&c->text);
    mem_free(c);
    return rc;
}

/* --- texts --- */

int import_read_text(const char *file, struct slice bytes, const struct import_sink *sink)
{
    size_t mark = skip_mark(bytes), valid = utf8_valid_prefix(bytes.p, bytes.n);
    if (valid < bytes.n) {
        size_t line = 1;
        for (size_t i = 0; i < valid; i++)
            line += bytes.p[i] == '\n';
        return bad(sink, file, line, "byte %zu of the file is not valid UTF-8", valid + 1);
    }
    struct import_record r = {.file = file,
                              .line = 1,
                              .end = bytes.n,
                              .id = slice_of(file),
                              .text = {.p = bytes.p + mark, .n = bytes.n - mark},
                              .attributes = json_object()};
    int rc = give(sink, &r);
    json_decref(r.attributes);
    return rc;
}
