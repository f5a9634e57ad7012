#pragma once
/* What commands cost: the slow log (the newest commands that took long, with their arguments)
 * and the totals a command and an error code, for INFO.
 *
 * The totals are relaxed atomics in a fixed table, so that noting costs no lock; the slow log
 * takes its lock only for a command that is slow. Both are bounded: the log by slowlog-max-len
 * and by cutting arguments, the error table by a fixed number of codes (those past it count as
 * OTHER).
 *
 * Thread: any. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "server/client.h"

struct config;
struct slowlog;

/* Reads its limits from the config, which must outlive it. NULL when out of memory. */
struct slowlog *slowlog_new(struct config *config);
void slowlog_free(struct slowlog *s);
/* Keeps the running command of c when it took at least slowlog-log-slower-than. Secrets (AUTH,
 * HELLO, CONFIG SET requirepass) are not kept. A note (client_note) comes as one more argument
 * behind all that are kept, in brackets. */
void slowlog_note(struct slowlog *s, const struct client *c, int64_t us);

enum { SLOWLOG_ARGS_MAX = 32, SLOWLOG_ARG_BYTES_MAX = 128 };

struct slowlog_entry {
    uint64_t id;
    int64_t unix_s, us;
    int argc;
    /* NUL-terminated copies, argv_bytes long; one more than arguments are kept, for the note.
     */
    char *argv[SLOWLOG_ARGS_MAX + 1];
    size_t argv_bytes[SLOWLOG_ARGS_MAX + 1];
    char address[CLIENT_ADDRESS_BYTES], name[64];
};

/* Calls fn for the newest entries, at most n (all where n < 0), newest first, under the log's
 * lock. Returns how many there were. begin, which may be NULL, is told that number before. */
int64_t slowlog_each(struct slowlog *s, int64_t n, void (*begin)(void *arg, int64_t n),
                     void (*fn)(void *arg, const struct slowlog_entry *e), void *arg);
int64_t slowlog_len(struct slowlog *s);
void slowlog_reset(struct slowlog *s);

/* Totals of the process. An `error` is a command that replied one. */
void command_stats_note(const struct command *c, int64_t us, bool error);
/* The code is the first word of an error reply ("ERR", "WRONGTYPE"). */
void error_stats_note(struct slice code);
void command_stats_reset(void); /* errors too */
void command_stats_each(void (*fn)(void *arg, const struct command *c, uint64_t calls,
                                   uint64_t us, uint64_t failed),
                        void *arg);
void error_stats_each(void (*fn)(void *arg, const char *code, uint64_t count), void *arg);
