#pragma once
/* Command functions whose row stands in another file than their body, and what several command
 * files need of the table. */

#include <stddef.h>

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
