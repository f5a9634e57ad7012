/* From the text of a filter to its program, in one pass: precedence climbing (Richards, BCPL;
 * Norvell, "Parsing Expressions by Recursive Descent", 1999) that emits code as it returns.
 *
 * Registers are given out as a stack: an operator takes the registers of its operands back and
 * its result gets the lowest free one, so their number is bounded by the nesting. Operators of
 * constants are computed here, by the function that computes them in a run.
 *
 * Redis sorts operators onto a stack without looking at where they stand, and so takes some
 * texts that its grammar does not have: operators behind their operands (`1 2 +`), `()`, and
 * `a not in b`, which it reads as `(not a) in b`. They are refused here. It refuses some that
 * are plainly meant: `!!1`, `1e-5`, `(.a == null)` (its `null` must stand before a space);
 * these are taken.
 *
 * A comma behind the last item of a tuple, a `-` that belongs to a field's name (`.a-1`), a
 * word right before another (`1 andnot 0`) and a `-` that is part of a number wherever a value
 * may begin, and is refused there before anything else, are as Redis has them. */
#include "base/mem.h"
#include "base/utf8.h"
#include "server/filter_program.h"
#include "server/number.h"

#include <assert.h>
#include <stdio.h>

struct compiler {
    struct filter *f;
    const char *p; /* the text, ended by a NUL */
    size_t n, at;
    uint32_t live; /* registers in use */
    struct err *e;
};

/* --- errors --- */

enum { TAIL_ROOM = 140, AROUND_ROOM = 60 };

struct message {
    char s[ERR_MESSAGE_MAX];
    size_t n;
};

/* How one character of a text is shown: as it is, a space for a line's end, \xNN for what a
 * reply must not hold. Returns the bytes of it. */
static size_t show_one(const char *p, size_t n, char shown[8], size_t *shown_n)
{
    unsigned char c = (unsigned char)*p;
    size_t bytes = 1;
    while (bytes < n && bytes < 4 && ((unsigned char)p[bytes] & 0xc0) == 0x80)
        bytes++;
    if (c >= 0x80 && utf8_valid_prefix(p, bytes) == bytes) {
        memcpy(shown, p, bytes);
        *shown_n = bytes;
        return bytes;
    }
    if (c == '\n' || c == '\r' || c == '\t')
        *shown_n = 1, shown[0] = ' ';
    else if (c >= ' ' && c < 0x7f)
        *shown_n = 1, shown[0] = (char)c;
    else
        *shown_n = (size_t)snprintf(shown, 8, "\\x%02x", c);
    return 1;
}

/* How much room the characters up to the place take. */
static size_t shown_room(const char *p, size_t n)
{
    size_t room = 0, one;
    char shown[8];
    for (size_t i = 0; i < n; room += one)
        i += show_one(p + i, n - i, shown, &one);
    return room;
}

static void say(struct message *m, const char *p, size_t n)
{
    if (n > sizeof m->s - 1 - m->n)
        n = sizeof m->s - 1 - m->n;
    memcpy(m->s + m->n, p, n);
    m->n += n;
    m->s[m->n] = '\0';
}

static void say_text(struct message *m, const char *p, size_t n, size_t room)
{
    for (size_t i = 0, one; i < n; room -= one) {
        char shown[8];
        size_t bytes = show_one(p + i, n - i, shown, &one);
        if (one > room) {
            say(m, "...", 3);
            return;
        }
        say(m, shown, one);
        i += bytes;
    }
}

/* The text around the place, with a caret before it. */
static void say_place(struct message *m, const char *p, size_t n, size_t place)
{
    size_t from = place > AROUND_ROOM ? place - AROUND_ROOM : 0, one;
    char shown[8];
    while (from < place && ((unsigned char)p[from] & 0xc0) == 0x80)
        from++;
    while (shown_room(p + from, place - from) > AROUND_ROOM)
        from += show_one(p + from, place - from, shown, &one);
    if (from > 0)
        say(m, "...", 3);
    say_text(m, p + from, place - from, AROUND_ROOM);
    say(m, "^", 1);
    say_text(m, p + place, n - place, AROUND_ROOM);
}

static int wrong_at(struct compiler *c, int code, size_t place, const char *what)
{
    struct message m = {.n = 0};
    char where[40];
    size_t tail = place < c->n ? place : 0;
    say(&m, "syntax error in FILTER expression near: ", 40);
    say_text(&m, c->p + tail, c->n - tail, TAIL_ROOM);
    say(&m, " (", 2);
    say(&m, what, strlen(what));
    say(&m, where, (size_t)snprintf(where, sizeof where, " at %zu: ", place + 1));
    say_place(&m, c->p, c->n, place);
    say(&m, ")", 1);
    return err_set(c->e, code, "%s", m.s);
}

static int wrong(struct compiler *c, size_t place, const char *what)
{
    return wrong_at(c, KITH_EINVAL, place, what);
}

/* --- the parts of the program --- */

static int append(struct compiler *c, struct buf *b, const void *p, size_t n)
{
    buf_append(b, p, n);
    return b->failed ? err_set(c->e, KITH_ENOMEM, "out of memory for a filter") : 0;
}

static int add_constant(struct compiler *c, const struct attribute_value *v, uint32_t *operand)
{
    struct buf *b = &c->f->constants;
    *operand = filter_operand(FILTER_CONSTANT, (uint32_t)(b->len / sizeof *v));
    return append(c, b, v, sizeof *v);
}

static int add_field(struct compiler *c, size_t place, struct slice name, uint32_t *operand)
{
    struct filter_field field = {.name = name, .hash = attribute_name_hash(name)};
    const struct filter_field *fields = (const struct filter_field *)c->f->fields.data;
    uint32_t n = (uint32_t)(c->f->fields.len / sizeof field);
    for (uint32_t i = 0; i < n; i++)
        if (fields[i].hash == field.hash && slice_equal(fields[i].name, name)) {
            *operand = filter_operand(FILTER_FIELD, i);
            return 0;
        }
    if (n == FILTER_FIELDS_MAX)
        return wrong_at(c, KITH_ELIMIT, place, "at most 256 different fields are allowed");
    *operand = filter_operand(FILTER_FIELD, n);
    return append(c, &c->f->fields, &field, sizeof field);
}

static bool is_register(uint32_t operand)
{
    return filter_kind(operand) == FILTER_REGISTER;
}

static bool is_constant(uint32_t operand)
{
    return filter_kind(operand) == FILTER_CONSTANT;
}

/* A copy, whose items can be read: they lie where the buffer has them at this moment. */
static struct attribute_value constant(const struct compiler *c, uint32_t operand)
{
    struct attribute_value v;
    memcpy(&v, c->f->constants.data + filter_index(operand) * sizeof v, sizeof v);
    if (v.n_items > 0)
        v.items = c->f->items.data + (uintptr_t)v.items;
    return v;
}

/* One operand: a, and b is the same. */
static int emit(struct compiler *c, enum filter_op op, uint32_t a, uint32_t b,
                uint32_t *operand)
{
    c->live -= is_register(a);
    if (op > FILTER_NOT)
        c->live -= is_register(b);
    struct filter_code code = {.op = (uint16_t)op, .to = (uint16_t)c->live++, .a = a, .b = b};
    assert(c->live <= FILTER_REGISTERS);
    *operand = filter_operand(FILTER_REGISTER, code.to);
    return append(c, &c->f->code, &code, sizeof code);
}

/* An operator's code, or its value where its operands are constants. */
static int add_operator(struct compiler *c, enum filter_op op, uint32_t a, uint32_t b,
                        uint32_t *operand)
{
    if (!is_constant(a) || !is_constant(b))
        return emit(c, op, a, b, operand);
    struct attribute_value va = constant(c, a), vb = constant(c, b);
    struct attribute_value v = {.type = ATTRIBUTE_NUMBER, .number = filter_apply(op, &va, &vb)};
    return add_constant(c, &v, operand);
}

/* --- values --- */

static bool is_space(char ch)
{
    return ch == ' ' || (ch >= '\t' && ch <= '\r');
}

static bool is_digit(char ch)
{
    return ch >= '0' && ch <= '9';
}

static bool is_name(char ch)
{
    return is_digit(ch) || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || ch == '_' ||
           ch == '-';
}

static void skip_space(struct compiler *c)
{
    while (is_space(c->p[c->at]))
        c->at++;
}

static bool here(const struct compiler *c, const char *word)
{
    return strncmp(c->p + c->at, word, strlen(word)) == 0;
}

static int number(struct compiler *c, double *value)
{
    size_t start = c->at;
    c->at += c->p[c->at] == '-';
    while (is_digit(c->p[c->at]))
        c->at++;
    if (c->p[c->at] == '.')
        for (c->at++; is_digit(c->p[c->at]);)
            c->at++;
    if (c->p[c->at] == 'e' || c->p[c->at] == 'E') {
        c->at++;
        if (c->p[c->at] == '-' || c->p[c->at] == '+')
            c->at++;
        if (!is_digit(c->p[c->at]))
            return wrong(c, c->at, "a digit of the exponent was expected");
        while (is_digit(c->p[c->at]))
            c->at++;
    }
    *value = number_decimal(c->p + start, c->p + c->at);
    return 0;
}

/* A backslash protects the next byte from ending the string, and stays in it. */
static int string(struct compiler *c, size_t *start, size_t *bytes)
{
    size_t place = c->at;
    char quote = c->p[c->at++];
    *start = c->at;
    while (c->at < c->n && c->p[c->at] != quote)
        c->at += c->p[c->at] == '\\' && c->at + 1 < c->n ? 2 : 1;
    if (c->at >= c->n)
        return wrong(c, place, "this string is not closed");
    *bytes = c->at++ - *start;
    return 0;
}

static bool number_begins(const struct compiler *c)
{
    return is_digit(c->p[c->at]) || (c->p[c->at] == '-' && is_digit(c->p[c->at + 1]));
}

static int tuple_item(struct compiler *c, uint64_t *item)
{
    size_t start = 0, bytes = 0;
    double value;
    int rc;
    if (number_begins(c)) {
        if (!(rc = number(c, &value)))
            *item = attribute_pack_number(value);
        return rc;
    }
    if (c->p[c->at] != '"' && c->p[c->at] != '\'')
        return wrong(c, c->at, "a number, a string or ']' was expected");
    if (!(rc = string(c, &start, &bytes)))
        *item = attribute_pack_string(start, bytes);
    return rc;
}

static int tuple(struct compiler *c, uint32_t *operand)
{
    struct buf *items = &c->f->items;
    struct attribute_value v = {.type = ATTRIBUTE_TUPLE,
                                .string = {.p = c->p, .n = c->n},
                                .items = (const void *)(uintptr_t)items->len};
    for (c->at++, skip_space(c); c->p[c->at] != ']'; v.n_items++) {
        uint64_t item;
        int rc = tuple_item(c, &item);
        if (!rc)
            rc = append(c, items, &item, sizeof item);
        if (rc)
            return rc;
        skip_space(c);
        if (c->p[c->at] == ',')
            c->at++;
        else if (c->p[c->at] != ']')
            return wrong(c, c->at, "',' or ']' was expected");
        skip_space(c);
    }
    c->at++;
    return add_constant(c, &v, operand);
}

enum place { A_VALUE, AN_OPERATOR };

/* What was expected here; and for what people write who know another language, what they
 * should have written. */
static const char *hint(const struct compiler *c, enum place place)
{
    static const struct {
        enum place place;
        const char *word, *say;
    } hints[] = {
        {A_VALUE, "NOT", "a value was expected (words are in lower case)"},
        {A_VALUE, "NULL", "a value was expected (words are in lower case)"},
        {A_VALUE, "true", "a value was expected (true is 1)"},
        {A_VALUE, "false", "a value was expected (false is 0)"},
        {A_VALUE, "-", "a value was expected ('-' in front belongs to a number alone)"},
        {A_VALUE, "", "a value was expected"},
        {AN_OPERATOR, "not", "an operator was expected (it is written: not (a in b))"},
        {AN_OPERATOR, "AND", "an operator was expected (words are in lower case)"},
        {AN_OPERATOR, "OR", "an operator was expected (words are in lower case)"},
        {AN_OPERATOR, "IN", "an operator was expected (words are in lower case)"},
        {AN_OPERATOR, "=", "an operator was expected ('==' compares)"},
        {AN_OPERATOR, "", "an operator was expected"},
    };
    size_t i = 0;
    while (hints[i].place != place || !here(c, hints[i].word))
        i++;
    return hints[i].say;
}

static int expression(struct compiler *c, int lowest, unsigned depth, uint32_t *operand);

static int nested(struct compiler *c, unsigned depth, uint32_t *operand)
{
    size_t place = c->at++;
    int rc = expression(c, 0, depth + 1, operand);
    if (rc)
        return rc;
    if (c->p[c->at] == ')') {
        c->at++;
        return 0;
    }
    return c->at == c->n ? wrong(c, place, "this '(' is not closed")
                         : wrong(c, c->at, hint(c, AN_OPERATOR));
}

static int atom(struct compiler *c, unsigned depth, uint32_t *operand)
{
    struct attribute_value v = {.type = ATTRIBUTE_NUMBER};
    size_t start = c->at, bytes = 0;
    char ch = c->p[c->at];
    int rc;
    if (number_begins(c)) {
        rc = number(c, &v.number);
        return rc ? rc : add_constant(c, &v, operand);
    }
    switch (ch) {
    case '(':
        return nested(c, depth, operand);
    case '[':
        return tuple(c, operand);
    case '"':
    case '\'':
        rc = string(c, &start, &bytes);
        v.type = ATTRIBUTE_STRING;
        v.string = (struct slice){.p = c->p + start, .n = bytes};
        return rc ? rc : add_constant(c, &v, operand);
    case '.':
        for (c->at++; is_name(c->p[c->at]);)
            c->at++;
        if (c->at == start + 1)
            return wrong(c, c->at, "the name of a field was expected");
        return add_field(
            c, start, (struct slice){.p = c->p + start + 1, .n = c->at - start - 1}, operand);
    default:
        if (!here(c, "null"))
            return wrong(c, c->at, hint(c, A_VALUE));
        c->at += 4;
        v.type = ATTRIBUTE_NULL;
        return add_constant(c, &v, operand);
    }
}

/* Any number of nots, then an atom. */
static int unary(struct compiler *c, unsigned depth, uint32_t *operand)
{
    size_t nots = 0;
    for (;; nots++) {
        skip_space(c);
        if (c->p[c->at] == '!')
            c->at++;
        else if (here(c, "not"))
            c->at += 3;
        else
            break;
    }
    int rc = atom(c, depth, operand);
    /* Three nots are one, and four are two. */
    for (nots -= nots > 2 ? (nots - 1) / 2 * 2 : 0; nots > 0 && !rc; nots--)
        rc = add_operator(c, FILTER_NOT, *operand, *operand, operand);
    return rc;
}

/* --- operators of two sides --- */

enum { POWER = 5 };
static const struct binary {
    const char *word;
    int precedence;
    enum filter_op op;
} operators[] = {{"or", 0, FILTER_OR},  {"||", 0, FILTER_OR},      {"and", 1, FILTER_AND},
                 {"&&", 1, FILTER_AND}, {">=", 2, FILTER_GE},      {">", 2, FILTER_GT},
                 {"<=", 2, FILTER_LE},  {"<", 2, FILTER_LT},       {"==", 2, FILTER_EQ},
                 {"!=", 2, FILTER_NE},  {"in", 2, FILTER_IN},      {"+", 3, FILTER_ADD},
                 {"-", 3, FILTER_SUB},  {"**", POWER, FILTER_POW}, {"*", 4, FILTER_MUL},
                 {"/", 4, FILTER_DIV},  {"%", 4, FILTER_MOD}};

/* The operator here, NULL when there is none; a longer one stands before what it begins with.
 */
static const struct binary *operator_here(const struct compiler *c)
{
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        if (here(c, operators[i].word))
            return &operators[i];
    return NULL;
}

/* `and` and `or`, behind their word: the right side is skipped where the left one decides. */
static int either(struct compiler *c, const struct binary *o, unsigned depth, uint32_t left,
                  uint32_t *operand)
{
    struct buf *code = &c->f->code;
    size_t before = code->len;
    uint32_t right;
    struct filter_code skip = {.op = (uint16_t)o->op, .a = left};
    c->live -= is_register(left);
    skip.to = (uint16_t)c->live;
    int rc = append(c, code, &skip, sizeof skip);
    if (!rc)
        rc = expression(c, o->precedence + 1, depth, &right);
    if (rc)
        return rc;
    if (is_constant(left) && is_constant(right)) {
        code->len = before;
        return add_operator(c, o->op, left, right, operand);
    }
    struct filter_code last;
    memcpy(&last, code->data + code->len - sizeof last, sizeof last);
    if (is_register(right) && last.op <= FILTER_IN)
        *operand =
            right; /* 0 or 1 already, and in the register where the skip leaves its own */
    else
        rc = emit(c, FILTER_TRUTH, right, right, operand);
    if (rc)
        return rc;
    skip.b = (uint32_t)(code->len / sizeof skip);
    memcpy(code->data + before, &skip, sizeof skip);
    return 0;
}

/* Operators of at least this precedence; leaves off at what is none of them. */
static int expression(struct compiler *c, int lowest, unsigned depth, uint32_t *operand)
{
    if (depth > FILTER_DEPTH_MAX)
        return wrong_at(c, KITH_ELIMIT, c->at, "at most 100 levels of nesting are allowed");
    int rc = unary(c, depth, operand);
    while (!rc) {
        skip_space(c);
        const struct binary *o = operator_here(c);
        if (!o || o->precedence < lowest)
            return 0;
        c->at += strlen(o->word);
        uint32_t left = *operand, right;
        if (o->precedence < 2) {
            rc = either(c, o, depth, left, operand);
            continue;
        }
        rc = o->precedence == POWER ? expression(c, POWER, depth + 1, &right)
                                    : expression(c, o->precedence + 1, depth, &right);
        if (!rc)
            rc = add_operator(c, o->op, left, right, operand);
    }
    return rc;
}

/* Tuples point to their items once these move no more. */
static void settle_tuples(struct filter *f)
{
    struct attribute_value *v = (struct attribute_value *)f->constants.data;
    for (size_t n = f->constants.len / sizeof *v; n > 0; n--, v++)
        if (v->n_items > 0)
            v->items = f->items.data + (uintptr_t)v->items;
}

int filter_compile(struct filter **out, struct slice text, struct err *e)
{
    *out = NULL;
    if (text.n > FILTER_MAX_BYTES)
        return err_set(e, KITH_ELIMIT, "FILTER expression of %zu bytes: at most %d are allowed",
                       text.n, FILTER_MAX_BYTES);
    struct filter *f = mem_calloc(1, sizeof *f);
    if (!f || !(f->text = mem_alloc(text.n + 1))) {
        filter_free(f);
        return err_set(e, KITH_ENOMEM, "out of memory for a filter");
    }
    if (text.n)
        memcpy(f->text, text.p, text.n);
    f->text[text.n] = '\0';
    f->n_text = text.n;
    struct compiler c = {.f = f, .p = f->text, .n = text.n, .e = e};
    int rc = expression(&c, 0, 0, &f->result);
    if (!rc && c.at < c.n)
        rc = wrong(&c, c.at,
                   c.p[c.at] == ')' ? "this ')' closes nothing" : hint(&c, AN_OPERATOR));
    if (rc) {
        filter_free(f);
        return rc;
    }
    settle_tuples(f);
    *out = f;
    return 0;
}

void filter_free(struct filter *f)
{
    if (!f)
        return;
    buf_deinit(&f->code);
    buf_deinit(&f->fields);
    buf_deinit(&f->constants);
    buf_deinit(&f->items);
    mem_free(f->text);
    mem_free(f);
}
