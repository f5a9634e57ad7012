#pragma once
/* What a command is: one table row and one function.
 *
 * The rows stand beside the functions in the cmd_*.c files, each file exporting one array that
 * ends with a row of NULL name; command.c joins them. The same rows make COMMAND, COMMAND DOCS
 * and docs/commands.md. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "server/engine_link.h"

struct client;

enum command_flag {
    CMD_WRITE = 1 << 0,    /* may change data: runs with the shard entered */
    CMD_READONLY = 1 << 1, /* reads data: runs with the shard entered */
    CMD_FAST = 1 << 2,
    CMD_ADMIN = 1 << 3,
    CMD_DENYOOM = 1 << 4,      /* refused past maxmemory */
    CMD_NO_AUTH = 1 << 5,      /* allowed before AUTH */
    CMD_NO_MULTI = 1 << 6,     /* refused inside MULTI */
    CMD_IN_MULTI = 1 << 7,     /* runs at once inside MULTI instead of being queued */
    CMD_LOADING = 1 << 8,      /* allowed while the data is being loaded */
    CMD_NO_MONITOR = 1 << 9,   /* not shown to MONITOR (AUTH, HELLO) */
    CMD_MANY_EFFECTS = 1 << 10 /* an effect for every few arguments, each naming the key */
};

enum command_result {
    COMMAND_DONE,
    /* Nothing was done and nothing replied: run me again when the client is woken
     * (client_wake). Only before the first effect. */
    COMMAND_WAIT,
    /* A search thread has the rest of it (client_offload). */
    COMMAND_OFFLOADED,
    /* Nothing was done and nothing replied: the texts were embedded by another model than this
     * command's set has now. Embed them anew and run me again. */
    COMMAND_TEXTS
};

/* The texts of a command that must be embedded before it runs: the dispatcher sends them to the
 * engine when the command is read, so that pipelined commands share batches, and runs the
 * command with client_embedding() set when the vectors are there. */
struct command_texts {
    const struct slice *first;
    uint32_t n;    /* 0: none, run at once */
    uint32_t step; /* arguments from one text to the next; 0 counts as 1 */
    bool truncate;
    enum engine_task task; /* 0 counts as ENGINE_EMBED */
    enum engine_role role;
    struct slice model; /* the one that is named; empty: the set's, else the default */
    int key;            /* the argument that names the set; 0: there is none */
};

struct command {
    const char *name; /* lower case; for a subcommand its own word */
    int arity;        /* with the name; negative: at least */
    unsigned flags;
    int first_key, last_key, key_step; /* 0 where there are none */
    enum command_result (*run)(struct client *c);
    void (*texts)(const struct slice *argv, int argc, struct command_texts *out); /* or NULL */
    const struct command *subcommands; /* NULL-terminated; run is NULL then */
    const char *group, *since, *complexity, *summary;
    const char *syntax; /* of the arguments: "key [NX | XX] [EX seconds]" */
};

/* The arrays of the cmd_*.c files. */
extern const struct command connection_commands[], server_commands[], transaction_commands[],
    key_commands[], string_commands[], vset_write_commands[], vset_read_commands[],
    search_commands[], text_commands[], model_commands[];

/* By name, ASCII case ignored; a subcommand when there is one. NULL when unknown. */
const struct command *command_lookup(const struct slice *argv, int argc);
const struct command *command_by_name(struct slice name);
/* The command that c is a subcommand of, or NULL. */
const struct command *command_parent(const struct command *c);
/* Calls fn for every command (not subcommands) in name order. */
void command_each(void (*fn)(void *arg, const struct command *c), void *arg);
int command_count(void);
/* Builds the lookup table; once, before the first connection. */
void command_init(void);
