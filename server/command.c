/* The table of commands: all rows of the cmd_*.c files behind one hash of their lower-case
 * names.
 *
 * The hash is open addressing over a fixed power of two; names are short, so a lookup is one
 * pass over the name and, nearly always, one comparison. Subcommands are few and are searched.
 */

#include "server/command.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 1024, NAME_MAX_BYTES = 32, COMMANDS_MAX = 512 };

static const struct command *const groups[] = {
    connection_commands, server_commands,     transaction_commands, key_commands,
    string_commands,     vset_write_commands, vset_read_commands,   search_commands,
    text_commands,       model_commands,
};
enum { N_GROUPS = sizeof groups / sizeof groups[0] };

static const struct command *slots[SLOTS];
static const struct command *sorted[COMMANDS_MAX];
static int n_commands;

static inline char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

static inline unsigned slot_of(const char *name, size_t n)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)lower(name[i])) * 16777619u;
    return (h ^ h >> 15) & (SLOTS - 1);
}

static inline bool same_name(const char *name, const char *given, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (name[i] != lower(given[i]) || name[i] == '\0')
            return false;
    }
    return name[n] == '\0';
}

static int by_name(const void *a, const void *b)
{
    const struct command *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

void command_init(void)
{
    if (n_commands)
        return;
    for (int g = 0; g < N_GROUPS; g++) {
        for (const struct command *c = groups[g]; c->name && n_commands < COMMANDS_MAX; c++) {
            unsigned at = slot_of(c->name, strlen(c->name));
            while (slots[at])
                at = (at + 1) & (SLOTS - 1);
            slots[at] = c;
            sorted[n_commands++] = c;
        }
    }
    qsort(sorted, (size_t)n_commands, sizeof sorted[0], by_name);
}

const struct command *command_by_name(struct slice name)
{
    if (name.n == 0 || name.n > NAME_MAX_BYTES)
        return NULL;
    for (unsigned at = slot_of(name.p, name.n); slots[at]; at = (at + 1) & (SLOTS - 1)) {
        if (same_name(slots[at]->name, name.p, name.n))
            return slots[at];
    }
    return NULL;
}

const struct command *command_lookup(const struct slice *argv, int argc)
{
    const struct command *c = command_by_name(argv[0]);
    if (!c || !c->subcommands)
        return c;
    if (argc < 2)
        return c->run ? c : NULL;
    for (const struct command *sub = c->subcommands; sub->name; sub++) {
        if (slice_is(argv[1], sub->name))
            return sub;
    }
    return NULL;
}

const struct command *command_parent(const struct command *c)
{
    for (int i = 0; i < n_commands; i++) {
        for (const struct command *sub = sorted[i]->subcommands; sub && sub->name; sub++) {
            if (sub == c)
                return sorted[i];
        }
    }
    return NULL;
}

void command_each(void (*fn)(void *arg, const struct command *c), void *arg)
{
    for (int i = 0; i < n_commands; i++)
        fn(arg, sorted[i]);
}

int command_count(void)
{
    return n_commands;
}
