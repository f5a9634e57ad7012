/* The table of commands: every row complete, and the syntax column read as COMMAND DOCS shows
 * it. */
#include <string.h>

#include "base/mem.h"
#include "protocol/resp_write.h"
#include "server/command.h"
#include "server/command_syntax.h"
#include "server/commands_shared.h"
#include "tests/unit/unit.h"

static void check_row(const struct command *c, const struct command *parent)
{
    char name[96];
    command_full_name(c, name, sizeof name);
    if (!c->summary || !*c->summary || !c->group || !*c->group || !c->since || !*c->since ||
        !c->complexity || !*c->complexity)
        fail_msg("%s lacks summary, group, since or complexity", name);
    if (!c->run && !c->subcommands)
        fail_msg("%s does nothing", name);
    if (c->arity == 0 || (parent && abs(c->arity) < 2))
        fail_msg("%s has arity %d", name, c->arity);
    for (const char *p = c->name; *p; p++)
        if (*p >= 'A' && *p <= 'Z')
            fail_msg("%s is not lower case", name);
    if ((c->flags & CMD_WRITE) && (c->flags & CMD_READONLY))
        fail_msg("%s both writes and only reads", name);
    if (c->first_key > 0 && (c->key_step < 1 || c->last_key == 0))
        fail_msg("%s has keys without a step or an end", name);
    if (c->first_key > 0 && !(c->flags & (CMD_WRITE | CMD_READONLY)) &&
        strcmp(c->group, "transactions") != 0) /* WATCH enters it by itself */
        fail_msg("%s has keys and runs without the shard", name);
    if (c->run && !c->syntax)
        fail_msg("%s has no syntax", name);
    if (c->syntax && strpbrk(c->syntax, "(){}"))
        fail_msg("%s: groups stand in < >, not '%s'", name, c->syntax);
    /* A command of a fixed number of arguments cannot have optional ones, nor the reverse. */
    if (c->run && c->syntax && !c->subcommands) {
        bool open = strchr(c->syntax, '[') || strstr(c->syntax, "...");
        if (c->arity > 0 && open)
            fail_msg("%s takes exactly %d arguments, its syntax says '%s'", name, c->arity,
                     c->syntax);
    }
    for (const struct command *sub = c->subcommands; sub && sub->name; sub++) {
        assert_ptr_equal(command_parent(sub), c);
        check_row(sub, c);
        for (const struct command *other = c->subcommands; other != sub; other++)
            assert_string_not_equal(other->name, sub->name);
    }
}

struct order {
    const char *last;
    int n;
};

static void check_one(void *arg, const struct command *c)
{
    struct order *o = arg;
    check_row(c, NULL);
    if (o->last && strcmp(o->last, c->name) >= 0)
        fail_msg("%s after %s: twice or out of order", c->name, o->last);
    o->last = c->name;
    o->n++;
    assert_ptr_equal(command_by_name(slice_of(c->name)), c);
}

static void every_row_is_complete(void **state)
{
    (void)state;
    struct order o = {0};
    command_each(check_one, &o);
    assert_int_equal(o.n, command_count());
    assert_true(o.n > 40);
}

static void subcommands_are_found_by_their_container(void **state)
{
    (void)state;
    struct slice get[] = {slice_of("CONFIG"), slice_of("Get"), slice_of("*")};
    const struct command *c = command_lookup(get, 3);
    assert_non_null(c);
    char name[96];
    command_full_name(c, name, sizeof name);
    assert_string_equal(name, "config|get");
    assert_null(command_lookup(get, 1)); /* CONFIG alone is nothing */
    struct slice bare = slice_of("command");
    assert_non_null(command_lookup(&bare, 1)); /* COMMAND alone is */
    struct slice unknown[] = {slice_of("config"), slice_of("gets")};
    assert_null(command_lookup(unknown, 2));
}

/* The tree as one line: name:type[=token][?][*](children). */
static const char *tree(const char *text)
{
    static char line[1024];
    struct arena a;
    arena_init(&a);
    struct buf out;
    buf_init(&out);
    struct syntax *s = syntax_parse(&a, text);
    line[0] = '\0';
    if (s) {
        syntax_put(s, (struct resp_out){.to = &out, .proto = 3}, true);
        buf_u8(&out, 0);
        snprintf(line, sizeof line, "%s", out.data);
        for (char *p = line; *p; p++)
            if (*p == '\r' || *p == '\n')
                *p = ' ';
    }
    buf_deinit(&out);
    arena_deinit(&a);
    return line;
}

static void syntax_becomes_arguments(void **state)
{
    (void)state;
    assert_string_equal(tree(""), "");
    const char *t = tree("key [key ...]");
    assert_non_null(strstr(t, "*1  %5  $4  name  $3  key  $4  type  $3  key"));
    assert_non_null(strstr(t, "flags  ~1  +multiple"));
    t = tree("key value [NX | XX] [EX seconds | KEEPTTL]");
    assert_non_null(strstr(t, "*4  "));
    assert_non_null(strstr(t, "$5  oneof"));
    assert_non_null(strstr(t, "$10  pure-token  $5  token  $2  NX"));
    assert_non_null(strstr(t, "seconds  $4  type  $7  integer"));
    assert_non_null(strstr(t, "token  $2  EX"));
    t = tree("parameter value [parameter value ...]");
    assert_non_null(strstr(t, "*1  "));
    assert_non_null(strstr(t, "$5  block  $5  flags  ~1  +multiple  $9  arguments  *2"));
    t = tree("ON | OFF");
    assert_non_null(strstr(t, "*1  "));
    assert_non_null(strstr(t, "$5  oneof  $9  arguments  *2"));
    t = tree("[section [section ...]]");
    assert_non_null(strstr(t, "*1  "));
    assert_non_null(strstr(t, "~2  +optional  +multiple"));
    /* Whatever is written, it ends and stays in bounds. */
    static const char *const odd[] = {"[",   "]",   "a ] b", "<a|",        "|",    "[...]",
                                      "...", "[[[", "a|b",   "[a [b] ...", "<> []"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        tree(odd[i]);
}

static int enter(void **state)
{
    (void)state;
    command_init();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_complete),
        cmocka_unit_test(subcommands_are_found_by_their_container),
        cmocka_unit_test(syntax_becomes_arguments),
    };
    return cmocka_run_group_tests(tests, enter, NULL);
}
