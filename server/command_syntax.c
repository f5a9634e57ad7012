#include "server/command_syntax.h"

#include <string.h>

enum kind { KIND_VALUE, KIND_TOKEN, KIND_BLOCK, KIND_ONEOF };

struct node {
    struct node *next, *children;
    enum kind kind;
    struct slice name, token; /* token.n 0: none */
    bool optional, multiple;
};

struct syntax {
    struct node *first;
};

struct parser {
    struct arena *arena;
    const char *p;
    bool failed;
    bool repeats; /* "..." was met in the sequence just read */
};

static struct node *new_node(struct parser *s, enum kind kind, struct slice name)
{
    struct node *n = arena_alloc(s->arena, sizeof *n);
    if (!n) {
        s->failed = true;
        return NULL;
    }
    *n = (struct node){.kind = kind, .name = name};
    return n;
}

static bool at_end(const struct parser *s)
{
    return *s->p == '\0' || *s->p == ']' || *s->p == '>' || *s->p == '|';
}

static void skip_spaces(struct parser *s)
{
    while (*s->p == ' ')
        s->p++;
}

static struct slice read_word(struct parser *s)
{
    struct slice w = {.p = s->p};
    while (*s->p && !strchr(" []<>|", *s->p))
        s->p++;
    w.n = (size_t)(s->p - w.p);
    return w;
}

static bool is_token(struct slice w)
{
    bool letter = false;
    for (size_t i = 0; i < w.n; i++) {
        if (w.p[i] >= 'a' && w.p[i] <= 'z')
            return false;
        letter |= w.p[i] >= 'A' && w.p[i] <= 'Z';
    }
    return letter || w.n == 1; /* a lone sign, such as = or * */
}

static struct node *read_alternatives(struct parser *s, char close);

/* A bracket or a word; NULL for "..." and on failure. */
static struct node *read_item(struct parser *s)
{
    if (*s->p == '[' || *s->p == '<') {
        bool optional = *s->p == '[';
        s->p++;
        struct node *n = read_alternatives(s, optional ? ']' : '>');
        if (n && optional)
            n->optional = true;
        return n;
    }
    struct slice w = read_word(s);
    if (w.n == 3 && memcmp(w.p, "...", 3) == 0) {
        s->repeats = true;
        return NULL;
    }
    return new_node(s, is_token(w) ? KIND_TOKEN : KIND_VALUE, w);
}

static size_t list_length(const struct node *n)
{
    size_t length = 0;
    for (; n; n = n->next)
        length++;
    return length;
}

static bool same_names(const struct node *a, const struct node *b)
{
    for (; a && b; a = a->next, b = b->next)
        if (a->kind != b->kind || !slice_equal(a->name, b->name))
            return false;
    return !a && !b;
}

/* "x [x ...]": the items before, when they are what the bracket repeats, become many. */
static bool fold_repetition(struct parser *s, struct node **first, const struct node *bracket)
{
    const struct node single = {.kind = bracket->kind, .name = bracket->name};
    const struct node *repeated = bracket->kind == KIND_BLOCK ? bracket->children : &single;
    size_t length = list_length(*first), want = list_length(repeated);
    if (length < want)
        return false;
    struct node **from = first;
    for (size_t i = 0; i < length - want; i++)
        from = &(*from)->next;
    if (!same_names(*from, repeated))
        return false;
    if (want == 1) {
        (*from)->multiple = true;
        return true;
    }
    struct node *block = new_node(s, KIND_BLOCK, slice_of("data"));
    if (!block)
        return false;
    block->children = *from;
    block->multiple = true;
    *from = block;
    return true;
}

/* A token takes the value after it: EX seconds is one argument. */
static void join_tokens(struct node *first)
{
    for (struct node *n = first; n; n = n->next) {
        struct node *value = n->next;
        if (n->kind != KIND_TOKEN || !value || value->kind != KIND_VALUE || value->optional)
            continue;
        n->kind = KIND_VALUE;
        n->token = n->name;
        n->name = value->name;
        n->multiple = value->multiple;
        n->next = value->next;
    }
}

static struct node *read_sequence(struct parser *s)
{
    struct node *first = NULL, **end = &first;
    s->repeats = false;
    for (skip_spaces(s); !at_end(s) && !s->failed; skip_spaces(s)) {
        bool outer_repeats = s->repeats;
        s->repeats = false;
        bool bracket = *s->p == '[';
        struct node *n = read_item(s);
        bool inner_repeats = bracket && s->repeats;
        s->repeats = outer_repeats || (!bracket && s->repeats);
        if (!n)
            continue;
        if (inner_repeats && fold_repetition(s, &first, n)) {
            for (end = &first; *end;)
                end = &(*end)->next;
            continue;
        }
        n->multiple |= inner_repeats;
        *end = n;
        end = &n->next;
    }
    join_tokens(first);
    return first;
}

/* One node for a list: itself when it is one, a block otherwise. */
static struct node *wrap(struct parser *s, struct node *list)
{
    if (list && !list->next)
        return list;
    struct node *block = new_node(s, KIND_BLOCK, slice_of("block"));
    if (block)
        block->children = list;
    return block;
}

static struct node *read_alternatives(struct parser *s, char close)
{
    struct node *first = wrap(s, read_sequence(s)), **end = first ? &first->next : NULL;
    bool repeats = s->repeats;
    if (*s->p == '|') {
        struct node *choice = new_node(s, KIND_ONEOF, slice_of("choice"));
        while (*s->p == '|' && !s->failed && end) {
            s->p++;
            *end = wrap(s, read_sequence(s));
            end = *end ? &(*end)->next : NULL;
            repeats |= s->repeats;
        }
        if (!choice || !end)
            return NULL;
        choice->children = first;
        first = choice;
    }
    if (*s->p == close)
        s->p++;
    s->repeats = repeats;
    return first;
}

struct syntax *syntax_parse(struct arena *a, const char *text)
{
    struct parser s = {.arena = a, .p = text};
    struct syntax *syntax = arena_alloc(a, sizeof *syntax);
    if (!syntax)
        return NULL;
    syntax->first = read_sequence(&s);
    if (*s.p == '|') { /* a choice without brackets: it is the only argument */
        s.p = text;
        syntax->first = read_alternatives(&s, '|');
    }
    return syntax->first && !s.failed ? syntax : NULL;
}

/* --- writing --- */

static const char *type_of(const struct node *n, bool has_keys)
{
    static const char *const integers[] = {"seconds",
                                           "milliseconds",
                                           "count",
                                           "cursor",
                                           "index",
                                           "num",
                                           "dim",
                                           "offset",
                                           "increment",
                                           "db",
                                           "ef",
                                           "numlinks",
                                           "timeout",
                                           "decrement",
                                           "samples",
                                           "protover",
                                           "start",
                                           "end",
                                           "bytes",
                                           "build-exploration-factor",
                                           "search-exploration-factor",
                                           "unix-time-seconds",
                                           "unix-time-milliseconds"};
    static const char *const doubles[] = {"epsilon", "score", "weight", "delta"};
    if (n->kind == KIND_TOKEN)
        return "pure-token";
    if (n->kind == KIND_BLOCK)
        return "block";
    if (n->kind == KIND_ONEOF)
        return "oneof";
    if (has_keys && (slice_is(n->name, "key") || slice_is(n->name, "newkey") ||
                     slice_is(n->name, "source") || slice_is(n->name, "destination")))
        return "key";
    if (slice_is(n->name, "pattern"))
        return "pattern";
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        if (slice_is(n->name, integers[i]))
            return "integer";
    for (size_t i = 0; i < sizeof doubles / sizeof *doubles; i++)
        if (slice_is(n->name, doubles[i]))
            return "double";
    return "string";
}

static void put_lower(struct resp_out out, struct slice s)
{
    char copy[64];
    size_t n = s.n < sizeof copy ? s.n : sizeof copy;
    for (size_t i = 0; i < n; i++)
        copy[i] = (char)(s.p[i] >= 'A' && s.p[i] <= 'Z' ? s.p[i] + 32 : s.p[i]);
    resp_bulk(out, copy, n);
}

static void put_list(const struct node *first, struct resp_out out, bool has_keys)
{
    resp_array(out, list_length(first));
    for (const struct node *n = first; n; n = n->next) {
        const char *type = type_of(n, has_keys);
        bool key = strcmp(type, "key") == 0, flags = n->optional || n->multiple;
        struct slice token = n->kind == KIND_TOKEN ? n->name : n->token;
        resp_map(out, 2u + (n->kind == KIND_VALUE) + key + (token.n > 0) + flags +
                          (n->children != NULL));
        resp_bulk_str(out, "name");
        put_lower(out, n->name);
        resp_bulk_str(out, "type");
        resp_bulk_str(out, type);
        if (n->kind == KIND_VALUE) {
            resp_bulk_str(out, "display_text");
            resp_bulk(out, n->name.p, n->name.n);
        }
        if (key) {
            resp_bulk_str(out, "key_spec_index");
            resp_int(out, 0);
        }
        if (token.n > 0) {
            resp_bulk_str(out, "token");
            resp_bulk(out, token.p, token.n);
        }
        if (flags) {
            resp_bulk_str(out, "flags");
            resp_set(out, (size_t)n->optional + n->multiple);
            if (n->optional)
                resp_simple(out, "optional");
            if (n->multiple)
                resp_simple(out, "multiple");
        }
        if (n->children) {
            resp_bulk_str(out, "arguments");
            put_list(n->children, out, has_keys);
        }
    }
}

void syntax_put(const struct syntax *s, struct resp_out out, bool has_keys)
{
    put_list(s->first, out, has_keys);
}
