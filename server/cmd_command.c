/* COMMAND: the table, as clients ask for it. Everything here is read off the rows; what Redis
 * keeps beside them (categories, key specifications, the arguments of DOCS) is derived. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "server/client.h"
#include "server/command_syntax.h"
#include "server/commands_shared.h"
#include "server/glob.h"

/* --- names --- */

void command_full_name(const struct command *c, char *out, size_t n)
{
    const struct command *parent = command_parent(c);
    snprintf(out, n, "%s%s%s", parent ? parent->name : "", parent ? "|" : "", c->name);
}

/* A row by "get" or "config|get"; *parent is set for the latter. */
static const struct command *find_row(struct slice name, const struct command **parent)
{
    const char *bar = memchr(name.p, '|', name.n);
    *parent = NULL;
    if (!bar)
        return command_by_name(name);
    size_t head = (size_t)(bar - name.p);
    *parent = command_by_name((struct slice){.p = name.p, .n = head});
    struct slice tail = {.p = bar + 1, .n = name.n - head - 1};
    const struct command *sub = *parent ? (*parent)->subcommands : NULL;
    while (sub && sub->name && !slice_is(tail, sub->name))
        sub++;
    return sub && sub->name ? sub : NULL;
}

/* --- flags and categories --- */

typedef void (*word_fn)(void *arg, const char *word);

static void each_flag(const struct command *c, word_fn fn, void *arg)
{
    static const struct {
        unsigned flag;
        const char *word;
    } words[] = {
        {CMD_WRITE, "write"},     {CMD_READONLY, "readonly"}, {CMD_DENYOOM, "denyoom"},
        {CMD_ADMIN, "admin"},     {CMD_LOADING, "loading"},   {CMD_FAST, "fast"},
        {CMD_NO_AUTH, "no_auth"}, {CMD_NO_MULTI, "no_multi"}, {CMD_NO_MONITOR, "skip_monitor"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (c->flags & words[i].flag)
            fn(arg, words[i].word);
}

static void each_category(const struct command *c, word_fn fn, void *arg)
{
    char category[64];
    const char *group = strcmp(c->group, "generic") == 0        ? "keyspace"
                        : strcmp(c->group, "transactions") == 0 ? "transaction"
                        : strcmp(c->group, "server") == 0       ? NULL
                        : strcmp(c->group, "cluster") == 0      ? NULL
                                                                : c->group;
    if (c->flags & CMD_WRITE)
        fn(arg, "@write");
    if (c->flags & CMD_READONLY)
        fn(arg, "@read");
    if (group) {
        snprintf(category, sizeof category, "@%s", group);
        fn(arg, category);
    }
    if (c->flags & CMD_ADMIN) {
        fn(arg, "@admin");
        fn(arg, "@dangerous");
    }
    fn(arg, c->flags & CMD_FAST ? "@fast" : "@slow");
}

struct words {
    struct resp_out out;
    size_t n;
    bool simple;
};

static void put_word(void *arg, const char *word)
{
    struct words *w = arg;
    w->n++;
    if (!w->out.to)
        return;
    if (w->simple)
        resp_simple(w->out, word);
    else
        resp_bulk_str(w->out, word);
}

static void put_words(struct resp_out out, const struct command *c,
                      void (*each)(const struct command *c, word_fn fn, void *arg))
{
    struct words counted = {.n = 0};
    each(c, put_word, &counted);
    resp_set(out, counted.n);
    struct words put = {.out = out, .simple = true};
    each(c, put_word, &put);
}

/* --- COMMAND and COMMAND INFO --- */

static void put_key_specs(struct resp_out out, const struct command *c)
{
    if (c->first_key == 0) {
        resp_set(out, 0);
        return;
    }
    resp_set(out, 1);
    resp_map(out, 3);
    resp_bulk_str(out, "flags");
    resp_set(out, 2);
    resp_simple(out, c->flags & CMD_WRITE ? "RW" : "RO");
    resp_simple(out, c->flags & CMD_WRITE ? "update" : "access");
    resp_bulk_str(out, "begin_search");
    resp_map(out, 2);
    resp_bulk_str(out, "type");
    resp_bulk_str(out, "index");
    resp_bulk_str(out, "spec");
    resp_map(out, 1);
    resp_bulk_str(out, "index");
    resp_int(out, c->first_key);
    resp_bulk_str(out, "find_keys");
    resp_map(out, 2);
    resp_bulk_str(out, "type");
    resp_bulk_str(out, "range");
    resp_bulk_str(out, "spec");
    resp_map(out, 3);
    resp_bulk_str(out, "lastkey");
    resp_int(out, c->last_key >= 0 ? c->last_key - c->first_key : c->last_key);
    resp_bulk_str(out, "keystep");
    resp_int(out, c->key_step);
    resp_bulk_str(out, "limit");
    resp_int(out, 0);
}

static size_t count_subcommands(const struct command *c)
{
    size_t n = 0;
    while (c->subcommands && c->subcommands[n].name)
        n++;
    return n;
}

static void put_info(struct resp_out out, const struct command *c, const struct command *parent)
{
    resp_array(out, 10);
    if (parent)
        resp_bulkf(out, "%s|%s", parent->name, c->name);
    else
        resp_bulk_str(out, c->name);
    resp_int(out, c->arity);
    put_words(out, c, each_flag);
    resp_int(out, c->first_key);
    resp_int(out, c->last_key);
    resp_int(out, c->key_step);
    put_words(out, c, each_category);
    resp_array(out, 0); /* tips */
    put_key_specs(out, c);
    resp_array(out, count_subcommands(c));
    for (const struct command *sub = c->subcommands; sub && sub->name; sub++)
        put_info(out, sub, c);
}

static void put_one_info(void *arg, const struct command *c)
{
    struct client *to = arg;
    put_info(to->out, c, NULL);
}

enum command_result command_all(struct client *c)
{
    resp_array(c->out, (size_t)command_count());
    command_each(put_one_info, c);
    return COMMAND_DONE;
}

static enum command_result cmd_info(struct client *c)
{
    if (c->argc == 2)
        return command_all(c);
    resp_array(c->out, (size_t)c->argc - 2);
    for (int i = 2; i < c->argc; i++) {
        const struct command *parent, *row = find_row(c->argv[i], &parent);
        if (row)
            put_info(c->out, row, parent);
        else
            resp_null(c->out);
    }
    return COMMAND_DONE;
}

static enum command_result cmd_count(struct client *c)
{
    resp_int(c->out, command_count());
    return COMMAND_DONE;
}

/* --- COMMAND DOCS --- */

static void put_field(struct resp_out out, const char *name, const char *value)
{
    resp_bulk_str(out, name);
    resp_bulk_str(out, value);
}

static void put_docs(struct client *to, const struct command *c, const struct command *parent)
{
    struct resp_out out = to->out;
    struct syntax *syntax = syntax_parse(to->arena, c->syntax ? c->syntax : "");
    size_t n_subcommands = count_subcommands(c);
    if (parent)
        resp_bulkf(out, "%s|%s", parent->name, c->name);
    else
        resp_bulk_str(out, c->name);
    resp_map(out, 4u + (syntax ? 1 : 0) + (n_subcommands ? 1 : 0));
    put_field(out, "summary", c->summary);
    put_field(out, "since", c->since);
    put_field(out, "group", c->group);
    put_field(out, "complexity", c->complexity);
    if (syntax) {
        resp_bulk_str(out, "arguments");
        syntax_put(syntax, out, c->first_key != 0);
    }
    if (n_subcommands == 0)
        return;
    resp_bulk_str(out, "subcommands");
    resp_map(out, n_subcommands);
    for (const struct command *sub = c->subcommands; sub->name; sub++)
        put_docs(to, sub, c);
}

static void put_one_docs(void *arg, const struct command *c)
{
    put_docs(arg, c, NULL);
}

static enum command_result cmd_docs(struct client *c)
{
    const struct command *parent;
    if (c->argc == 2) {
        resp_map(c->out, (size_t)command_count());
        command_each(put_one_docs, c);
        return COMMAND_DONE;
    }
    size_t n = 0;
    for (int i = 2; i < c->argc; i++)
        n += find_row(c->argv[i], &parent) != NULL;
    resp_map(c->out, n);
    for (int i = 2; i < c->argc; i++) {
        const struct command *row = find_row(c->argv[i], &parent);
        if (row)
            put_docs(c, row, parent);
    }
    return COMMAND_DONE;
}

/* --- COMMAND LIST --- */

struct list {
    struct resp_out out; /* a buffer of its own: the count comes first */
    size_t n;
    struct slice filter;
    enum { LIST_ALL, LIST_PATTERN, LIST_CATEGORY, LIST_NONE } kind;
    bool matched;
};

static void match_category(void *arg, const char *word)
{
    struct list *l = arg;
    l->matched |= slice_is(l->filter, word + 1);
}

static void list_row(struct list *l, const struct command *c, const struct command *parent)
{
    char name[96];
    snprintf(name, sizeof name, "%s%s%s", parent ? parent->name : "", parent ? "|" : "",
             c->name);
    l->matched = l->kind == LIST_ALL;
    if (l->kind == LIST_PATTERN)
        l->matched = glob_match(l->filter, slice_of(name), true);
    else if (l->kind == LIST_CATEGORY)
        each_category(c, match_category, l);
    if (l->matched) {
        resp_bulk_str(l->out, name);
        l->n++;
    }
    for (const struct command *sub = c->subcommands; sub && sub->name; sub++)
        list_row(l, sub, c);
}

static void list_one(void *arg, const struct command *c)
{
    list_row(arg, c, NULL);
}

static enum command_result cmd_list(struct client *c)
{
    struct list l = {.kind = LIST_ALL};
    if (c->argc != 2) {
        bool filter = c->argc == 5 && slice_is(c->argv[2], "filterby");
        if (filter && slice_is(c->argv[3], "pattern")) {
            l.kind = LIST_PATTERN;
        } else if (filter && slice_is(c->argv[3], "aclcat")) {
            l.kind = LIST_CATEGORY;
        } else if (filter && slice_is(c->argv[3], "module")) {
            l.kind = LIST_NONE;
        } else {
            reply_syntax_error(c);
            return COMMAND_DONE;
        }
        l.filter = c->argv[4];
    }
    struct buf names;
    buf_init(&names);
    l.out = (struct resp_out){.to = &names, .proto = c->out.proto};
    command_each(list_one, &l);
    if (names.failed) {
        resp_error(c->out, "OOM out of memory");
    } else {
        resp_array(c->out, l.n);
        buf_append(c->out.to, names.data, names.len);
    }
    buf_deinit(&names);
    return COMMAND_DONE;
}

/* --- COMMAND GETKEYS --- */

static enum command_result cmd_getkeys(struct client *c)
{
    const struct slice *argv = c->argv + 2;
    int argc = c->argc - 2;
    const struct command *row = command_lookup(argv, argc);
    if (!row || !row->run) {
        resp_error(c->out, "ERR Invalid command specified");
        return COMMAND_DONE;
    }
    if (row->first_key == 0) {
        resp_error(c->out, "ERR The command has no key arguments");
        return COMMAND_DONE;
    }
    if ((row->arity > 0 && row->arity != argc) || argc < -row->arity) {
        resp_error(c->out, "ERR Invalid number of arguments specified for command");
        return COMMAND_DONE;
    }
    int last = row->last_key < 0 ? argc + row->last_key : row->last_key;
    size_t n = 0;
    for (int i = row->first_key; i <= last && i < argc; i += row->key_step)
        n++;
    resp_array(c->out, n);
    for (int i = row->first_key; i <= last && i < argc; i += row->key_step)
        resp_bulk(c->out, argv[i].p, argv[i].n);
    return COMMAND_DONE;
}

/* --- HELP of every container --- */

static void upper(char *s)
{
    for (; *s; s++)
        if (*s >= 'a' && *s <= 'z')
            *s = (char)(*s - 32);
}

enum command_result reply_subcommands_help(struct client *c)
{
    const struct command *parent = command_by_name(c->argv[0]);
    char line[256], name[64];
    resp_array(c->out, 1 + 2 * count_subcommands(parent));
    snprintf(name, sizeof name, "%s", parent->name);
    upper(name);
    snprintf(line, sizeof line,
             "%s <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", name);
    resp_simple(c->out, line);
    for (const struct command *sub = parent->subcommands; sub->name; sub++) {
        snprintf(name, sizeof name, "%s", sub->name);
        upper(name);
        snprintf(line, sizeof line, "%s%s%s", name, sub->syntax && *sub->syntax ? " " : "",
                 sub->syntax ? sub->syntax : "");
        resp_simple(c->out, line);
        snprintf(line, sizeof line, "    %s", sub->summary);
        resp_simple(c->out, line);
    }
    return COMMAND_DONE;
}

/* --- the rows --- */

const struct command command_subcommands[] = {
    {.name = "count",
     .arity = 2,
     .flags = CMD_LOADING,
     .run = cmd_count,
     .group = "server",
     .since = "2.8.13",
     .complexity = "O(1)",
     .summary = "Returns how many commands there are.",
     .syntax = ""},
    {.name = "docs",
     .arity = -2,
     .flags = CMD_LOADING,
     .run = cmd_docs,
     .group = "server",
     .since = "7.0.0",
     .complexity = "O(N) where N is the number of commands asked for",
     .summary = "Returns what commands do and take.",
     .syntax = "[command-name [command-name ...]]"},
    {.name = "getkeys",
     .arity = -3,
     .flags = CMD_LOADING,
     .run = cmd_getkeys,
     .group = "server",
     .since = "2.8.13",
     .complexity = "O(N) where N is the number of arguments",
     .summary = "Returns the keys of a whole command.",
     .syntax = "command [arg [arg ...]]"},
    {.name = "help",
     .arity = 2,
     .flags = CMD_LOADING,
     .run = reply_subcommands_help,
     .group = "server",
     .since = "5.0.0",
     .complexity = "O(1)",
     .summary = "Says what the subcommands are.",
     .syntax = ""},
    {.name = "info",
     .arity = -2,
     .flags = CMD_LOADING,
     .run = cmd_info,
     .group = "server",
     .since = "2.8.13",
     .complexity = "O(N) where N is the number of commands asked for",
     .summary = "Returns the table's rows of commands.",
     .syntax = "[command-name [command-name ...]]"},
    {.name = "list",
     .arity = -2,
     .flags = CMD_LOADING,
     .run = cmd_list,
     .group = "server",
     .since = "7.0.0",
     .complexity = "O(N) where N is the number of commands",
     .summary = "Returns the names of the commands.",
     .syntax = "[FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]"},
    {.name = NULL}};
