/* The JSON parser is ours and not jansson's, for what attributes need and a tree of objects
 * cannot give: one pass over the text that leaves the form a filter reads, no allocation beside
 * the output, strings left where they are, the place of an error in bytes of the text as it
 * came, and a bound on nesting without a stack of calls. A hundred bytes take a quarter of a
 * microsecond; making and freeing jansson's tree of them takes ten times that.
 *
 * Encoding reserves the most that json.n bytes can need behind out's end and builds the parts
 * there, each at its widest distance; the last step moves them together:
 *
 *   | header | fields ...     | items ...   | (the JSON comes here) | unescaped strings ... |
 *
 * A field takes at least 5 bytes of JSON ("":0,), an item 2 (0,), and an unescaped string is
 * shorter than what it came from. */
#include "server/attributes.h"

#include <stdio.h>

#include "base/hash.h"
#include "base/utf8.h"
#include "server/number.h"

enum {
    VERSION = 1,
    HEADER_BYTES = 16,
    FIELD_BYTES = 16,
    ITEM_BYTES = 8,
    LINEAR_FIELDS = 16, /* up to here a look at every hash beats a binary search */
    FOUND_MAX = 32
};

struct field {
    uint32_t hash;
    uint16_t name_at, name_n;
    uint64_t value;
};
_Static_assert(sizeof(struct field) == FIELD_BYTES, "it is stored");

/* --- values --- */

static const uint64_t BOXED = UINT64_C(0xffff) << 48;

static uint64_t pack(enum attribute_type type, size_t at, size_t n)
{
    return BOXED | (uint64_t)type << 32 | (uint64_t)(uint16_t)at << 16 | (uint16_t)n;
}

uint64_t attribute_pack_number(double number)
{
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

uint64_t attribute_pack_string(size_t at, size_t n)
{
    return pack(ATTRIBUTE_STRING, at, n);
}

uint32_t attribute_name_hash(struct slice name)
{
    return (uint32_t)hash64(name.p, name.n);
}

/* --- encoding: the parser --- */

struct encoder {
    const char *json;
    size_t n, at;
    char *fields, *items, *extra;
    size_t n_fields, n_items, n_extra;
    struct err *e;
};

/* One byte as a message shows it. */
static const char *describe_byte(const struct encoder *w, size_t at, char found[FOUND_MAX])
{
    unsigned char c = at < w->n ? (unsigned char)w->json[at] : 0;
    if (at >= w->n)
        snprintf(found, FOUND_MAX, "the end");
    else if (c > ' ' && c < 0x7f)
        snprintf(found, FOUND_MAX, "'%c'", c);
    else
        snprintf(found, FOUND_MAX, "byte 0x%02x", c);
    return found;
}

static int expected(struct encoder *w, const char *what)
{
    char found[FOUND_MAX];
    return err_set(w->e, KITH_EINVAL,
                   "attributes must be a JSON object: expected %s at byte %zu, found %s", what,
                   w->at + 1, describe_byte(w, w->at, found));
}

static char peek(const struct encoder *w)
{
    return w->at < w->n ? w->json[w->at] : '\0';
}

static void skip_space(struct encoder *w)
{
    while (w->at < w->n && (w->json[w->at] == ' ' || w->json[w->at] == '\n' ||
                            w->json[w->at] == '\r' || w->json[w->at] == '\t'))
        w->at++;
}

/* --- strings --- */

/* How many bytes from here on stand for themselves: no quote, no backslash, no control. Eight
 * at a time: the lowest bit that is set marks the first such byte rightly, those above it may
 * be borrows. */
static size_t plain_run(const char *p, size_t n)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), tops = ones << 7;
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        uint64_t v = load_u64(p + i), quote = v ^ ones * '"', slash = v ^ ones * '\\';
        uint64_t hit =
            (((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((v - ones * ' ') & ~v)) &
            tops;
        if (hit)
            return i + (size_t)__builtin_ctzll(hit) / 8;
    }
    while (i < n && p[i] != '"' && p[i] != '\\' && (unsigned char)p[i] >= ' ')
        i++;
    return i;
}

static int hex_digits(struct encoder *w, uint32_t *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++, w->at++) {
        char c = peek(w);
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16)
            return expected(w, "four hexadecimal digits after \\u");
        *unit = *unit << 4 | digit;
    }
    return 0;
}

/* Behind "\u": one code point, of one or two units. */
static int unicode_escape(struct encoder *w, uint32_t *code_point)
{
    uint32_t low;
    size_t start = w->at;
    if (hex_digits(w, code_point))
        return KITH_EINVAL;
    if (*code_point < 0xd800 || *code_point > 0xdfff)
        return 0;
    if (*code_point < 0xdc00) {
        if (w->n - w->at < 2 || w->json[w->at] != '\\' || w->json[w->at + 1] != 'u')
            return expected(w, "the second half of a surrogate pair (\\udc00 to \\udfff)");
        w->at += 2;
        start = w->at;
        if (hex_digits(w, &low))
            return KITH_EINVAL;
        if (low >= 0xdc00 && low <= 0xdfff) {
            *code_point = 0x10000 + ((*code_point - 0xd800) << 10) + (low - 0xdc00);
            return 0;
        }
        w->at = start;
        return expected(w, "the second half of a surrogate pair (dc00 to dfff)");
    }
    w->at = start;
    return expected(w, "a character or the first half of a surrogate pair");
}

/* Behind a backslash: what it stands for goes to `to`; *n is its bytes. */
static int escape(struct encoder *w, char to[4], size_t *n)
{
    static const char from[] = "\"\\/bfnrt", stand_for[] = "\"\\/\b\f\n\r\t";
    char c = peek(w);
    const char *one = c ? strchr(from, c) : NULL;
    *n = 1;
    if (one) {
        *to = stand_for[one - from];
        w->at++;
        return 0;
    }
    if (c != 'u')
        return expected(w, "one of \" \\ / b f n r t u after a backslash");
    w->at++;
    uint32_t code_point;
    if (unicode_escape(w, &code_point))
        return KITH_EINVAL;
    *n = utf8_encode(code_point, to);
    return 0;
}

/* The string that begins with the quote here: where its bytes lie in the text to come. A string
 * with escapes is written out behind the JSON; where `keep` is false it is only checked. */
static int string(struct encoder *w, bool keep, uint16_t *at, uint16_t *bytes)
{
    size_t start = ++w->at, kept = w->n_extra, run = start;
    bool escaped = false;
    for (;;) {
        w->at += plain_run(w->json + w->at, w->n - w->at);
        char c = peek(w);
        if (w->at < w->n && c == '"' && !escaped)
            break;
        if (keep && escaped) {
            memcpy(w->extra + kept, w->json + run, w->at - run);
            kept += w->at - run;
        }
        if (w->at < w->n && c == '"')
            break;
        if (w->at >= w->n || c != '\\')
            return expected(w, w->at >= w->n
                                   ? "'\"' at the end of a string"
                                   : "an escape (\\n, \\u000a) instead of a control character");
        if (keep && !escaped) {
            memcpy(w->extra + kept, w->json + start, w->at - start);
            kept += w->at - start;
        }
        char to[4];
        size_t n;
        escaped = true;
        w->at++;
        if (escape(w, to, &n))
            return KITH_EINVAL;
        if (keep) {
            memcpy(w->extra + kept, to, n);
            kept += n;
        }
        run = w->at;
    }
    *at = (uint16_t)(escaped ? w->n + w->n_extra : start);
    *bytes = (uint16_t)(escaped ? kept - w->n_extra : w->at - start);
    w->n_extra = kept;
    w->at++;
    return 0;
}

/* --- numbers and words --- */

static bool digits(struct encoder *w)
{
    size_t start = w->at;
    while (peek(w) >= '0' && peek(w) <= '9')
        w->at++;
    return w->at > start;
}

static int number(struct encoder *w, double *value)
{
    size_t start = w->at;
    if (peek(w) == '-')
        w->at++;
    if (peek(w) == '0')
        w->at++;
    else if (!digits(w))
        return expected(w, w->at > start ? "a digit" : "a value");
    if (peek(w) == '.') {
        w->at++;
        if (!digits(w))
            return expected(w, "a digit after '.'");
    }
    if (peek(w) == 'e' || peek(w) == 'E') {
        w->at++;
        if (peek(w) == '+' || peek(w) == '-')
            w->at++;
        if (!digits(w))
            return expected(w, "a digit of the exponent");
    }
    /* The object's closing brace is still to come; until then there are bytes to stop at. */
    if (w->at >= w->n)
        return expected(w, "',' or '}'");
    *value = number_decimal(w->json + start, w->json + w->at);
    return 0;
}

/* true, false, null or a number: all that is neither a string nor nested. */
static int scalar(struct encoder *w, uint64_t *value)
{
    static const struct {
        const char *word;
        size_t n;
    } words[] = {{"true", 4}, {"false", 5}, {"null", 4}};
    double plain = 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (peek(w) != words[i].word[0])
            continue;
        if (w->n - w->at < words[i].n || memcmp(w->json + w->at, words[i].word, words[i].n))
            return expected(w, "true, false or null");
        w->at += words[i].n;
        *value = i == 2 ? pack(ATTRIBUTE_NULL, 0, 0) : attribute_pack_number(i == 0 ? 1 : 0);
        return 0;
    }
    if (number(w, &plain))
        return KITH_EINVAL;
    *value = attribute_pack_number(plain);
    return 0;
}

/* --- what is nested --- */

static int member_name(struct encoder *w, bool keep, uint16_t *at, uint16_t *bytes)
{
    skip_space(w);
    if (peek(w) != '"')
        return expected(w, "'\"' before a name");
    if (string(w, keep, at, bytes))
        return KITH_EINVAL;
    skip_space(w);
    if (peek(w) != ':')
        return expected(w, "':'");
    w->at++;
    skip_space(w);
    return 0;
}

static int too_deep(struct encoder *w)
{
    return err_set(w->e, KITH_ELIMIT,
                   "attributes may be nested %d deep, and byte %zu begins a deeper level",
                   ATTRIBUTES_DEPTH_MAX, w->at + 1);
}

/* Behind a value inside something nested: *more tells whether another one follows; levels that
 * close are taken from depth. `objects`: bit i is set where level i is an object. */
static int after_value(struct encoder *w, uint64_t objects, unsigned *depth, bool *more)
{
    uint16_t at, bytes;
    *more = false;
    while (*depth > 0) {
        bool object = objects >> (*depth - 1) & 1;
        skip_space(w);
        if (peek(w) == ',') {
            w->at++;
            skip_space(w);
            *more = true;
            return object ? member_name(w, false, &at, &bytes) : 0;
        }
        if (peek(w) != (object ? '}' : ']'))
            return expected(w, object ? "',' or '}'" : "',' or ']'");
        w->at++;
        --*depth;
    }
    return 0;
}

/* Checks the object or array that begins here, inside `outside` levels. */
static int skip_nested(struct encoder *w, unsigned outside, bool *has_object)
{
    uint64_t objects = 0, value;
    uint16_t at, bytes;
    unsigned depth = 0;
    bool more = true;
    int rc = 0;
    while (more && !rc) {
        char c = peek(w);
        if (c == '{' || c == '[') {
            if (outside + depth == ATTRIBUTES_DEPTH_MAX)
                return too_deep(w);
            objects &= ~(UINT64_C(1) << depth);
            objects |= (uint64_t)(c == '{') << depth++;
            *has_object |= c == '{';
            w->at++;
            skip_space(w);
            if (peek(w) == (c == '{' ? '}' : ']')) {
                w->at++;
                depth--;
                rc = after_value(w, objects, &depth, &more);
            } else if (c == '{') {
                rc = member_name(w, false, &at, &bytes);
            }
            continue;
        }
        rc = c == '"' ? string(w, false, &at, &bytes) : scalar(w, &value);
        if (!rc)
            rc = after_value(w, objects, &depth, &more);
    }
    return rc;
}
_Static_assert(ATTRIBUTES_DEPTH_MAX <= 64, "one bit a level");

static int plain_value(struct encoder *w, uint64_t *value)
{
    uint16_t at, bytes;
    if (peek(w) != '"')
        return scalar(w, value);
    if (string(w, true, &at, &bytes))
        return KITH_EINVAL;
    *value = pack(ATTRIBUTE_STRING, at, bytes);
    return 0;
}

/* An array that is a field's value. */
static int tuple(struct encoder *w, uint64_t *value)
{
    size_t first = w->n_items, extra = w->n_extra;
    bool has_object = false;
    int rc = 0;
    w->at++;
    skip_space(w);
    if (peek(w) == ']') {
        w->at++;
        *value = pack(ATTRIBUTE_TUPLE, first, 0);
        return 0;
    }
    for (;; w->at++, skip_space(w)) {
        uint64_t item = pack(ATTRIBUTE_TUPLE, 0, 0);
        if (peek(w) == '[' || peek(w) == '{')
            rc = skip_nested(w, 2, &has_object);
        else
            rc = plain_value(w, &item);
        if (rc)
            return rc;
        store_u64(w->items + ITEM_BYTES * w->n_items++, item);
        skip_space(w);
        if (peek(w) == ']')
            break;
        if (peek(w) != ',')
            return expected(w, "',' or ']'");
    }
    w->at++;
    *value = pack(ATTRIBUTE_TUPLE, first, w->n_items - first);
    if (has_object) {
        w->n_items = first;
        w->n_extra = extra;
        *value = pack(ATTRIBUTE_OTHER, 0, 0);
    }
    return 0;
}

static int field_value(struct encoder *w, uint64_t *value)
{
    bool has_object = false;
    if (peek(w) == '[')
        return tuple(w, value);
    if (peek(w) != '{')
        return plain_value(w, value);
    *value = pack(ATTRIBUTE_OTHER, 0, 0);
    return skip_nested(w, 1, &has_object);
}

/* --- the fields, in the order of their hashes --- */

static struct field field_at(const char *fields, size_t i)
{
    struct field f;
    memcpy(&f, fields + FIELD_BYTES * i, sizeof f);
    return f;
}

/* The first of n fields whose hash is not below this one. */
static size_t field_lower(const char *fields, size_t n, uint32_t hash)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (load_u32(fields + FIELD_BYTES * middle) < hash)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct slice text_of(const struct encoder *w, uint16_t at, uint16_t n)
{
    return (struct slice){.p = at < w->n ? w->json + at : w->extra + (at - w->n), .n = n};
}

static void add_field(struct encoder *w, uint16_t name_at, uint16_t name_n, uint64_t value)
{
    struct slice name = text_of(w, name_at, name_n);
    struct field f = {attribute_name_hash(name), name_at, name_n, value};
    size_t i = field_lower(w->fields, w->n_fields, f.hash);
    for (size_t same = i; same < w->n_fields; same++) {
        struct field old = field_at(w->fields, same);
        if (old.hash != f.hash)
            break;
        if (slice_equal(text_of(w, old.name_at, old.name_n), name)) {
            memcpy(w->fields + FIELD_BYTES * same, &f, sizeof f);
            return;
        }
    }
    memmove(w->fields + FIELD_BYTES * (i + 1), w->fields + FIELD_BYTES * i,
            FIELD_BYTES * (w->n_fields - i));
    memcpy(w->fields + FIELD_BYTES * i, &f, sizeof f);
    w->n_fields++;
}

static int object(struct encoder *w)
{
    skip_space(w);
    if (peek(w) != '{')
        return expected(w, "'{'");
    w->at++;
    skip_space(w);
    bool more = peek(w) != '}';
    for (; more; w->at += more) {
        uint16_t at, bytes;
        uint64_t value;
        int rc = member_name(w, true, &at, &bytes);
        if (!rc)
            rc = field_value(w, &value);
        if (rc)
            return rc;
        add_field(w, at, bytes, value);
        skip_space(w);
        more = peek(w) == ',';
        if (!more && peek(w) != '}')
            return expected(w, "',' or '}'");
    }
    w->at++;
    skip_space(w);
    return w->at < w->n ? expected(w, "nothing more") : 0;
}

static int too_long(struct err *e, size_t bytes)
{
    return err_set(e, KITH_ELIMIT,
                   "attributes take %zu bytes with their index, and %d are allowed", bytes,
                   ATTRIBUTES_MAX_BYTES);
}

/* Moves the parts together; how long they are. */
static size_t assemble(const struct encoder *w, char *base)
{
    char *items = base + HEADER_BYTES + FIELD_BYTES * w->n_fields;
    char *text = items + ITEM_BYTES * w->n_items;
    size_t bytes = (size_t)(text - base) + w->n + w->n_extra;
    memmove(items, w->items, ITEM_BYTES * w->n_items);
    memcpy(text, w->json, w->n);
    memmove(text + w->n, w->extra, w->n_extra);
    store_u32(base, (uint32_t)bytes);
    store_u16(base + 4, VERSION);
    store_u16(base + 6, (uint16_t)w->n_fields);
    store_u16(base + 8, (uint16_t)w->n_items);
    store_u16(base + 10, (uint16_t)w->n);
    store_u32(base + 12, 0);
    return bytes;
}

int attributes_encode(struct slice json, struct buf *out, struct err *e)
{
    if (json.n > ATTRIBUTES_MAX_BYTES - HEADER_BYTES)
        return too_long(e, json.n + HEADER_BYTES);
    struct encoder w = {.json = json.p, .n = json.n, .e = e};
    size_t fields_max = FIELD_BYTES * (json.n / 5 + 1),
           items_max = ITEM_BYTES * (json.n / 2 + 1);
    char *base = buf_reserve(out, HEADER_BYTES + fields_max + items_max + 2 * json.n);
    if (!base)
        return err_set(e, KITH_ENOMEM, "out of memory for attributes of %zu bytes", json.n);
    w.fields = base + HEADER_BYTES;
    w.items = w.fields + fields_max;
    w.extra = w.items + items_max + json.n;
    w.at = utf8_valid_prefix(json.p, json.n);
    if (w.at < json.n)
        return expected(&w, "UTF-8");
    w.at = 0;
    int rc = object(&w);
    if (rc)
        return rc;
    size_t bytes =
        HEADER_BYTES + FIELD_BYTES * w.n_fields + ITEM_BYTES * w.n_items + json.n + w.n_extra;
    if (bytes > ATTRIBUTES_MAX_BYTES)
        return too_long(e, bytes);
    out->len += assemble(&w, base);
    return 0;
}

/* --- reading --- */

struct parts {
    const char *fields, *items;
    size_t n_fields, n_items;
    struct slice text;
    size_t json_n;
};

static bool read_parts(const void *encoded, size_t n, struct parts *p)
{
    const char *base = encoded;
    if (n < HEADER_BYTES || load_u16(base + 4) != VERSION)
        return false;
    size_t bytes = load_u32(base);
    p->n_fields = load_u16(base + 6);
    p->n_items = load_u16(base + 8);
    p->json_n = load_u16(base + 10);
    p->fields = base + HEADER_BYTES;
    p->items = p->fields + FIELD_BYTES * p->n_fields;
    p->text.p = p->items + ITEM_BYTES * p->n_items;
    size_t before = (size_t)(p->text.p - base);
    if (bytes > n || before + p->json_n > bytes)
        return false;
    p->text.n = bytes - before;
    return true;
}

size_t attributes_bytes(const void *encoded, size_t n)
{
    struct parts p;
    return read_parts(encoded, n, &p) ? load_u32(encoded) : 0;
}

struct slice attributes_json(const void *encoded, size_t n)
{
    struct parts p;
    if (!read_parts(encoded, n, &p))
        return (struct slice){0};
    return (struct slice){.p = p.text.p, .n = p.json_n};
}

static bool inside(struct slice text, size_t at, size_t n)
{
    return at + n <= text.n;
}

/* A value whose strings lie in text and whose tuples are n of these items. */
static struct attribute_value unpack(uint64_t value, struct slice text, const char *items,
                                     size_t n_items)
{
    struct attribute_value v = {.type = ATTRIBUTE_NUMBER};
    if ((value & BOXED) != BOXED) {
        memcpy(&v.number, &value, sizeof v.number);
        return v;
    }
    size_t n = (uint16_t)value, at = (uint16_t)(value >> 16);
    v.type = ATTRIBUTE_OTHER;
    switch ((uint16_t)(value >> 32)) {
    case ATTRIBUTE_STRING:
        if (!inside(text, at, n))
            return v;
        v.type = ATTRIBUTE_STRING;
        v.string = (struct slice){.p = text.p + at, .n = n};
        return v;
    case ATTRIBUTE_TUPLE:
        if (at + n > n_items)
            return v;
        v.type = ATTRIBUTE_TUPLE;
        v.string = text;
        v.items = items + ITEM_BYTES * at;
        v.n_items = (uint32_t)n;
        return v;
    case ATTRIBUTE_NULL:
        v.type = ATTRIBUTE_NULL;
        return v;
    default:
        return v;
    }
}

struct attribute_value attributes_find(const void *encoded, size_t n, struct slice name,
                                       uint32_t hash)
{
    struct parts p;
    if (!read_parts(encoded, n, &p))
        return (struct attribute_value){.type = ATTRIBUTE_NONE};
    size_t i = p.n_fields > LINEAR_FIELDS ? field_lower(p.fields, p.n_fields, hash) : 0;
    for (; i < p.n_fields; i++) {
        uint32_t found = load_u32(p.fields + FIELD_BYTES * i);
        if (found > hash)
            break;
        if (found < hash)
            continue;
        struct field f = field_at(p.fields, i);
        if (inside(p.text, f.name_at, f.name_n) &&
            slice_equal((struct slice){.p = p.text.p + f.name_at, .n = f.name_n}, name))
            return unpack(f.value, p.text, p.items, p.n_items);
    }
    return (struct attribute_value){.type = ATTRIBUTE_NONE};
}

struct attribute_value attribute_item(const struct attribute_value *tuple, uint32_t i)
{
    if (tuple->type != ATTRIBUTE_TUPLE || i >= tuple->n_items)
        return (struct attribute_value){.type = ATTRIBUTE_NONE};
    return unpack(load_u64((const char *)tuple->items + (size_t)ITEM_BYTES * i), tuple->string,
                  tuple->items, 0);
}
