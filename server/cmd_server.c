/* Commands about the server: INFO, CONFIG, SLOWLOG, saving and stopping. None of them touches
 * keys, so they run without the shard; those that look into it give it back first, because the
 * functions they call take its lock themselves. That is not possible inside EXEC, which keeps
 * the shard from its first command to its last, so these are refused in MULTI. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/client.h"
#include "server/commands_shared.h"
#include "server/config.h"
#include "server/info.h"
#include "server/monitor.h"
#include "server/net.h"
#include "server/server.h"
#include "server/settings.h"
#include "server/shard.h"
#include "server/slowlog.h"

/* --- INFO --- */

static enum command_result cmd_info(struct client *c)
{
    struct buf text;
    buf_init(&text);
    worker_leave_shard(c);
    info_write(c->server, c->argv + 1, c->argc - 1, c->in_exec, &text);
    if (text.failed)
        resp_error(c->out, "OOM out of memory");
    else
        resp_verbatim(c->out, "txt", text.data ? text.data : "", text.len);
    buf_deinit(&text);
    return COMMAND_DONE;
}

/* --- CONFIG --- */

struct pairs {
    struct resp_out out; /* to a buffer of its own: the count comes first */
    size_t n;
};

static void put_pair(void *arg, const char *name, const char *value)
{
    struct pairs *p = arg;
    resp_bulk_str(p->out, name);
    resp_bulk_str(p->out, value);
    p->n++;
}

static enum command_result cmd_config_get(struct client *c)
{
    struct buf text;
    buf_init(&text);
    struct pairs p = {.out = {.to = &text, .proto = c->out.proto}};
    config_get(c->server->config, c->argv + 2, c->argc - 2, put_pair, &p);
    if (text.failed) {
        resp_error(c->out, "OOM out of memory");
    } else {
        resp_map(c->out, p.n);
        buf_append(c->out.to, text.data, text.len);
    }
    buf_deinit(&text);
    return COMMAND_DONE;
}

static void setting_changed(void *arg, const char *name)
{
    settings_changed(arg, name);
}

static enum command_result cmd_config_set(struct client *c)
{
    struct err e = {0};
    if (c->argc % 2 != 0) {
        resp_error(c->out, "ERR wrong number of arguments for 'config|set' command");
        return COMMAND_DONE;
    }
    worker_leave_shard(c);
    if (config_set(c->server->config, c->argv + 2, (c->argc - 2) / 2, setting_changed,
                   c->server, &e) != 0)
        resp_errorf(c->out, "ERR %s", e.message);
    else
        resp_ok(c->out);
    return COMMAND_DONE;
}

static enum command_result cmd_config_rewrite(struct client *c)
{
    struct err e = {0};
    int rc = config_rewrite(c->server->config, &e);
    if (rc == KITH_ENOTFOUND && !*config_file(c->server->config)) {
        resp_errorf(c->out, "ERR %s", e.message);
    } else if (rc != 0) {
        log_warning("CONFIG REWRITE failed: %s", e.message);
        resp_errorf(c->out, "ERR Rewriting config file: %s", e.message);
    } else {
        resp_ok(c->out);
    }
    return COMMAND_DONE;
}

static enum command_result cmd_config_resetstat(struct client *c)
{
    worker_leave_shard(c);
    info_reset(c->server);
    resp_ok(c->out);
    return COMMAND_DONE;
}

/* --- SLOWLOG --- */

static void begin_entries(void *arg, int64_t n)
{
    struct client *c = arg;
    resp_array(c->out, (size_t)n);
}

static void put_entry(void *arg, const struct slowlog_entry *e)
{
    struct client *c = arg;
    resp_array(c->out, 6);
    resp_int(c->out, (int64_t)e->id);
    resp_int(c->out, e->unix_s);
    resp_int(c->out, e->us);
    resp_array(c->out, (size_t)e->argc);
    for (int i = 0; i < e->argc; i++)
        resp_bulk(c->out, e->argv[i], e->argv_bytes[i]);
    resp_bulk_str(c->out, e->address);
    resp_bulk_str(c->out, e->name);
}

static enum command_result cmd_slowlog_get(struct client *c)
{
    int64_t n = 10;
    if (c->argc > 3) {
        reply_syntax_error(c);
    } else if (c->argc == 3 && (!arg_int(c->argv[2], &n) || n < -1)) {
        resp_error(c->out, "ERR count should be greater than or equal to -1");
    } else {
        slowlog_each(c->server->slowlog, n, begin_entries, put_entry, c);
    }
    return COMMAND_DONE;
}

static enum command_result cmd_slowlog_len(struct client *c)
{
    resp_int(c->out, slowlog_len(c->server->slowlog));
    return COMMAND_DONE;
}

static enum command_result cmd_slowlog_reset(struct client *c)
{
    slowlog_reset(c->server->slowlog);
    resp_ok(c->out);
    return COMMAND_DONE;
}

/* --- saving and stopping --- */

/* Waits for a checkpoint of everything up to the first call. COMMAND_DONE: *rc says how it
 * went. */
static enum command_result wait_for_checkpoint(struct client *c, int *rc, struct err *e)
{
    struct shard *s = c->server->shard;
    worker_leave_shard(c);
    /* On the list first, then looked: a checkpoint that ends in between wakes us once too often
     * instead of never. */
    shard_lock(s);
    waitlist_add(shard_checkpoint_waiters(s), client_ref(c));
    if (c->wait_ticket == 0)
        c->wait_ticket = shard_checkpoint_start(s);
    shard_unlock(s);
    int done = shard_checkpoint_done(s, c->wait_ticket, e);
    if (done == 0)
        return COMMAND_WAIT;
    c->wait_ticket = 0;
    *rc = done < 0 ? done : 0;
    return COMMAND_DONE;
}

static enum command_result cmd_save(struct client *c)
{
    struct err e = {0};
    int rc = 0;
    if (wait_for_checkpoint(c, &rc, &e) == COMMAND_WAIT)
        return COMMAND_WAIT;
    if (rc != 0)
        resp_errorf(c->out, "ERR the checkpoint failed: %s", e.message);
    else
        resp_ok(c->out);
    return COMMAND_DONE;
}

static enum command_result cmd_bgsave(struct client *c)
{
    if (c->argc > 2 || (c->argc == 2 && !slice_is(c->argv[1], "schedule"))) {
        reply_syntax_error(c);
        return COMMAND_DONE;
    }
    worker_leave_shard(c);
    shard_lock(c->server->shard);
    shard_checkpoint_start(c->server->shard);
    shard_unlock(c->server->shard);
    resp_simple(c->out, "Background saving started");
    return COMMAND_DONE;
}

static enum command_result cmd_lastsave(struct client *c)
{
    struct shard_stats stats;
    worker_leave_shard(c);
    shard_stats(c->server->shard, &stats, c->in_exec);
    resp_int(c->out, stats.last_checkpoint_unix_s > 0 ? stats.last_checkpoint_unix_s
                                                      : c->server->started_unix_s);
    return COMMAND_DONE;
}

static enum command_result cmd_shutdown(struct client *c)
{
    bool save = true, force = false;
    for (int i = 1; i < c->argc; i++) {
        if (slice_is(c->argv[i], "nosave")) {
            save = false;
        } else if (slice_is(c->argv[i], "force")) {
            force = true;
        } else if (slice_is(c->argv[i], "abort")) {
            resp_error(c->out, "ERR No shutdown in progress.");
            return COMMAND_DONE;
        } else if (!slice_is(c->argv[i], "save") && !slice_is(c->argv[i], "now")) {
            reply_syntax_error(c);
            return COMMAND_DONE;
        }
    }
    /* The checkpoint comes before the point of no return, so that its failure can be told. The
     * one at the end then has little left to write. */
    if (save && !force) {
        struct err e = {0};
        int rc = 0;
        if (wait_for_checkpoint(c, &rc, &e) == COMMAND_WAIT)
            return COMMAND_WAIT;
        if (rc != 0) {
            resp_errorf(c->out,
                        "ERR the checkpoint failed and the server goes on: %s. SHUTDOWN NOSAVE "
                        "loses nothing that is in the log",
                        e.message);
            return COMMAND_DONE;
        }
    }
    log_notice("SHUTDOWN was asked for by a client");
    atomic_store(&c->server->stop_without_save, !save);
    /* The program's signal thread is the one place that begins a stop. There is no reply: the
     * connection closes. */
    kill(getpid(), SIGTERM);
    return COMMAND_DONE;
}

/* --- small ones --- */

static enum command_result cmd_monitor(struct client *c)
{
    monitor_start(c);
    resp_ok(c->out);
    return COMMAND_DONE;
}

static enum command_result cmd_time(struct client *c)
{
    int64_t us = clock_wall_us();
    resp_array(c->out, 2);
    resp_bulkf(c->out, "%" PRId64, us / 1000000);
    resp_bulkf(c->out, "%" PRId64, us % 1000000);
    return COMMAND_DONE;
}

static enum command_result cmd_role(struct client *c)
{
    resp_array(c->out, 3);
    resp_bulk_str(c->out, "master");
    resp_int(c->out, 0);
    resp_array(c->out, 0);
    return COMMAND_DONE;
}

static enum command_result cmd_cluster(struct client *c)
{
    resp_error(c->out, "ERR This instance has cluster support disabled");
    return COMMAND_DONE;
}

static enum command_result cmd_module_list(struct client *c)
{
    resp_array(c->out, 1);
    resp_map(c->out, 4);
    resp_bulk_str(c->out, "name");
    resp_bulk_str(c->out, "vectorset");
    resp_bulk_str(c->out, "ver");
    resp_int(c->out, 1);
    resp_bulk_str(c->out, "path");
    resp_bulk_str(c->out, "");
    resp_bulk_str(c->out, "args");
    resp_array(c->out, 0);
    return COMMAND_DONE;
}

static void sleep_for(struct client *c, void *arg)
{
    const double *seconds = arg;
    clock_sleep_us((int64_t)(*seconds * 1e6));
    if (c->argc == 4)
        client_note(c, "slept %g s", *seconds);
    resp_ok(c->out);
}

enum command_result debug_sleep(struct client *c)
{
    double *seconds = arena_alloc(c->arena, sizeof *seconds);
    if (!seconds) {
        resp_error(c->out, "OOM out of memory");
        return COMMAND_DONE;
    }
    bool as_search = c->argc == 4 && slice_is(c->argv[3], "SEARCH");
    if (c->argc > 4 || (c->argc == 4 && !as_search)) {
        reply_syntax_error(c);
        return COMMAND_DONE;
    }
    if (!arg_double(c->argv[2], seconds) || *seconds < 0 || *seconds > 3600) {
        resp_error(c->out, "ERR DEBUG SLEEP takes seconds, from 0 to 3600");
        return COMMAND_DONE;
    }
    if (as_search)
        return client_offload_long(c, sleep_for, seconds);
    worker_leave_shard(c);
    sleep_for(c, seconds);
    return COMMAND_DONE;
}

/* --- the rows --- */

#define ALWAYS CMD_LOADING | CMD_NO_MULTI
#define ADMIN CMD_ADMIN | CMD_LOADING | CMD_NO_MULTI
#define HELP_ROW(since_version)                                                                \
    {                                                                                          \
        .name = "help", .arity = 2, .flags = CMD_LOADING, .run = reply_subcommands_help,       \
        .group = "server", .since = since_version, .complexity = "O(1)",                       \
        .summary = "Says what the subcommands are.", .syntax = ""                              \
    }

static const struct command config_subcommands[] = {
    {.name = "get",
     .arity = -3,
     .flags = ADMIN,
     .run = cmd_config_get,
     .group = "server",
     .since = "2.0.0",
     .complexity = "O(N) where N is the number of settings and patterns",
     .summary = "Returns the settings whose names match.",
     .syntax = "parameter [parameter ...]"},
    {.name = "set",
     .arity = -4,
     .flags = ADMIN,
     .run = cmd_config_set,
     .group = "server",
     .since = "2.0.0",
     .complexity = "O(N) where N is the number of settings given",
     .summary = "Changes settings, all of those given or none.",
     .syntax = "parameter value [parameter value ...]"},
    {.name = "rewrite",
     .arity = 2,
     .flags = ADMIN,
     .run = cmd_config_rewrite,
     .group = "server",
     .since = "2.8.0",
     .complexity = "O(N) where N is the size of the file",
     .summary = "Writes the settings into the file the server was started with.",
     .syntax = ""},
    {.name = "resetstat",
     .arity = 2,
     .flags = ADMIN,
     .run = cmd_config_resetstat,
     .group = "server",
     .since = "2.0.0",
     .complexity = "O(1)",
     .summary = "Sets the counters of INFO to zero.",
     .syntax = ""},
    HELP_ROW("5.0.0"),
    {.name = NULL}};

static const struct command slowlog_subcommands[] = {
    {.name = "get",
     .arity = -2,
     .flags = CMD_ADMIN | CMD_LOADING,
     .run = cmd_slowlog_get,
     .group = "server",
     .since = "2.2.12",
     .complexity = "O(N) where N is the number of entries returned",
     .summary = "Returns the newest slow commands.",
     .syntax = "[count]"},
    {.name = "len",
     .arity = 2,
     .flags = CMD_ADMIN | CMD_LOADING,
     .run = cmd_slowlog_len,
     .group = "server",
     .since = "2.2.12",
     .complexity = "O(1)",
     .summary = "Returns how many slow commands are kept.",
     .syntax = ""},
    {.name = "reset",
     .arity = 2,
     .flags = CMD_ADMIN | CMD_LOADING,
     .run = cmd_slowlog_reset,
     .group = "server",
     .since = "2.2.12",
     .complexity = "O(N) where N is the number of entries",
     .summary = "Forgets the slow commands.",
     .syntax = ""},
    HELP_ROW("6.2.0"),
    {.name = NULL}};

static const struct command module_subcommands[] = {
    {.name = "list",
     .arity = 2,
     .flags = CMD_ADMIN,
     .run = cmd_module_list,
     .group = "server",
     .since = "4.0.0",
     .complexity = "O(1)",
     .summary = "Returns the modules client libraries look for; they are built in.",
     .syntax = ""},
    HELP_ROW("5.0.0"),
    {.name = NULL}};

#define CLUSTER_ROW(word, since_version)                                                       \
    {                                                                                          \
        .name = word, .arity = 2, .flags = CMD_LOADING, .run = cmd_cluster,                    \
        .group = "cluster", .since = since_version, .complexity = "O(1)",                      \
        .summary = "Refused: the server is no cluster node.", .syntax = ""                     \
    }

static const struct command cluster_subcommands[] = {CLUSTER_ROW("info", "3.0.0"),
                                                     CLUSTER_ROW("slots", "3.0.0"),
                                                     CLUSTER_ROW("shards", "7.0.0"),
                                                     {.name = NULL}};

const struct command server_commands[] = {
    {.name = "bgsave",
     .arity = -1,
     .flags = CMD_ADMIN | CMD_NO_MULTI,
     .run = cmd_bgsave,
     .group = "server",
     .since = "1.0.0",
     .complexity = "O(1)",
     .summary = "Starts a checkpoint and returns at once.",
     .syntax = "[SCHEDULE]"},
    {.name = "cluster",
     .arity = -2,
     .subcommands = cluster_subcommands,
     .group = "cluster",
     .since = "3.0.0",
     .complexity = "Depends on subcommand.",
     .summary = "A container for cluster commands."},
    {.name = "command",
     .arity = -1,
     .flags = CMD_LOADING,
     .run = command_all,
     .subcommands = command_subcommands,
     .group = "server",
     .since = "2.8.13",
     .complexity = "O(N) where N is the number of commands",
     .summary = "Returns the details of all commands.",
     .syntax = ""},
    {.name = "config",
     .arity = -2,
     .subcommands = config_subcommands,
     .group = "server",
     .since = "2.0.0",
     .complexity = "Depends on subcommand.",
     .summary = "A container for commands about settings."},
    {.name = "info",
     .arity = -1,
     .flags = CMD_LOADING,
     .run = cmd_info,
     .group = "server",
     .since = "1.0.0",
     .complexity = "O(N) where N is the number of keys",
     .summary = "Returns facts and counters of the server.",
     .syntax = "[section [section ...]]"},
    {.name = "lastsave",
     .arity = 1,
     .flags = CMD_LOADING | CMD_FAST,
     .run = cmd_lastsave,
     .group = "server",
     .since = "1.0.0",
     .complexity = "O(1)",
     .summary = "Returns the Unix time of the last checkpoint.",
     .syntax = ""},
    {.name = "module",
     .arity = -2,
     .subcommands = module_subcommands,
     .group = "server",
     .since = "4.0.0",
     .complexity = "Depends on subcommand.",
     .summary = "A container for module commands."},
    {.name = "monitor",
     .arity = 1,
     .flags = ADMIN,
     .run = cmd_monitor,
     .group = "server",
     .since = "1.0.0",
     .complexity = "O(1)",
     .summary = "Sends this client every command the server runs.",
     .syntax = ""},
    {.name = "role",
     .arity = 1,
     .flags = CMD_LOADING | CMD_FAST | CMD_ADMIN,
     .run = cmd_role,
     .group = "server",
     .since = "2.8.12",
     .complexity = "O(1)",
     .summary = "Returns the part the server plays in replication.",
     .syntax = ""},
    {.name = "save",
     .arity = 1,
     .flags = CMD_ADMIN | CMD_NO_MULTI,
     .run = cmd_save,
     .group = "server",
     .since = "1.0.0",
     .complexity = "O(N) where N is what changed since the last checkpoint",
     .summary = "Makes a checkpoint and replies when it is on the disk.",
     .syntax = ""},
    {.name = "shutdown",
     .arity = -1,
     .flags = ADMIN,
     .run = cmd_shutdown,
     .group = "server",
     .since = "1.0.0",
     .complexity = "O(N) where N is what changed since the last checkpoint",
     .summary = "Makes a checkpoint and stops the server.",
     .syntax = "[NOSAVE | SAVE] [NOW] [FORCE] [ABORT]"},
    {.name = "slowlog",
     .arity = -2,
     .subcommands = slowlog_subcommands,
     .group = "server",
     .since = "2.2.12",
     .complexity = "Depends on subcommand.",
     .summary = "A container for commands about slow commands."},
    {.name = "time",
     .arity = 1,
     .flags = CMD_LOADING | CMD_FAST,
     .run = cmd_time,
     .group = "server",
     .since = "2.6.0",
     .complexity = "O(1)",
     .summary = "Returns the server's time.",
     .syntax = ""},
    {.name = NULL}};
