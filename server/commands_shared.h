#pragma once
/* Command functions whose row stands in another file than their body, and what several command
 * files need of the table. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "server/command.h"

struct client;

/* DEBUG SLEEP seconds [SEARCH]: keeps the client's I/O thread busy, or a search thread, for
 * tests of what others notice. */
enum command_result debug_sleep(struct client *c);

/* COMMAND's subcommands (cmd_command.c), and COMMAND without one. */
extern const struct command command_subcommands[];
enum command_result command_all(struct client *c);

/* HELP of any container, made of its rows. */
enum command_result reply_subcommands_help(struct client *c);
/* "get", or "config|get" for a subcommand. */
void command_full_name(const struct command *c, char *out, size_t n);

/* What VCREATE and VADD have in common (cmd_vcreate.c): a number among the arguments; false:
 * the error, which names the option, was replied. */
enum { VSET_M_DEFAULT = 16, VSET_EF_DEFAULT = 200 };
bool arg_in_range(struct client *c, const char *option, struct slice a, int64_t low,
                  int64_t high, uint32_t *out);
bool arg_vset_m(struct client *c, struct slice a, uint32_t *m);
bool arg_vset_ef(struct client *c, struct slice a, uint32_t *ef);
enum command_result command_vcreate(struct client *c);
/* VREEMBED (cmd_vreembed.c). */
enum command_result command_vreembed(struct client *c);
