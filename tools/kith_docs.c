/* kith-docs: prints the pages of docs/ that are made of the server's tables, so that they
 * cannot say something else than the code. `make docs` writes them, `make lint` compares.
 *
 *   kith-docs commands        docs/commands.md, from the command rows
 *   kith-docs configuration   docs/configuration.md, from the settings */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/program.h"
#include "server/command.h"
#include "server/config.h"

static void upper_name(struct buf *out, const char *name)
{
    for (; *name; name++)
        buf_u8(out, (uint8_t)(*name >= 'a' && *name <= 'z' ? *name - 32 : *name));
}

static void put_command(struct buf *out, const struct command *c, const struct command *parent)
{
    buf_append_str(out, parent ? "\n#### " : "\n### ");
    if (parent) {
        upper_name(out, parent->name);
        buf_u8(out, ' ');
    }
    upper_name(out, c->name);
    if (c->run) {
        buf_append_str(out, "\n\n```\n");
        if (parent) {
            upper_name(out, parent->name);
            buf_u8(out, ' ');
        }
        upper_name(out, c->name);
        if (c->syntax && *c->syntax)
            buf_printf(out, " %s", c->syntax);
        buf_append_str(out, "\n```");
    }
    buf_printf(out, "\n\n%s\n", c->summary);
    if (c->run)
        buf_printf(out, "\nSince %s. Complexity: %s.%s%s%s\n", c->since, c->complexity,
                   c->flags & CMD_WRITE ? " Writes." : "",
                   c->flags & CMD_ADMIN ? " For operators." : "",
                   c->flags & CMD_NO_MULTI ? " Not inside MULTI." : "");
    for (const struct command *sub = c->subcommands; sub && sub->name; sub++)
        put_command(out, sub, c);
}

struct page {
    struct buf *out;
    const char *group; /* put the commands of this group */
    const char *next;  /* the first group name after it in the alphabet */
};

static void look_at_group(void *arg, const struct command *c)
{
    struct page *p = arg;
    if (strcmp(c->group, p->group) > 0 && (!p->next || strcmp(c->group, p->next) < 0))
        p->next = c->group;
}

static void put_of_group(void *arg, const struct command *c)
{
    struct page *p = arg;
    if (strcmp(c->group, p->group) == 0)
        put_command(p->out, c, NULL);
}

static void print_commands(struct buf *out)
{
    command_init();
    buf_printf(
        out,
        "# Commands\n\nMade by `make docs` from the rows in `server/cmd_*.c`; edit there.\n\n"
        "Any Redis client speaks to kith. Capital words are typed as they stand, others are "
        "values;\n`[ ]` is optional, `|` separates choices, `...` repeats. There are %d "
        "commands.\n",
        command_count());
    struct page p = {.out = out, .group = ""};
    for (command_each(look_at_group, &p); p.next; command_each(look_at_group, &p)) {
        p.group = p.next;
        p.next = NULL;
        buf_printf(out, "\n## %c%s\n", p.group[0] - 32, p.group + 1);
        command_each(put_of_group, &p);
    }
}

int main(int argc, char **argv)
{
    static const char help[] = "usage: kith-docs commands | configuration\n";
    struct buf out;
    if (program_answers(argc, argv, "kith-docs", help))
        return 0;
    buf_init(&out);
    if (argc == 2 && strcmp(argv[1], "commands") == 0)
        print_commands(&out);
    else if (argc == 2 && strcmp(argv[1], "configuration") == 0)
        config_print_markdown(&out);
    if (out.len == 0 || out.failed) {
        fputs(help, stderr);
        return 2;
    }
    size_t written = fwrite(out.data, 1, out.len, stdout);
    int status = written == out.len && fflush(stdout) == 0 ? 0 : 1;
    buf_deinit(&out);
    return status;
}
