/* MULTI, EXEC, DISCARD, WATCH, UNWATCH.
 *
 * EXEC enters the shard once, for all its commands, and leaves it once: what they change
 * becomes one record of the log, so a crash keeps all of it or nothing. Waiting (for room in
 * the log, for a checkpoint) happens at that entrance and parks the EXEC as a whole. Commands
 * with texts have their vectors before they are queued.
 *
 * WATCH notes the version of a key. The versions are compared inside EXEC's stay in the shard,
 * so nothing comes between the comparison and the commands. */

#include <string.h>

#include "server/net_private.h"
#include "server/server.h"
#include "server/shard.h"

void transaction_queue(struct connection *conn, struct request *q)
{
    STAILQ_INSERT_TAIL(&conn->multi, q, next);
    conn->n_multi++;
    conn->multi_bytes += dispatch_effect_bytes(q);
}

static void unwatch(struct connection *conn)
{
    for (struct watched_key *k = conn->watched, *next; k; k = next) {
        next = k->next;
        mem_free(k);
    }
    conn->watched = NULL;
    conn->n_watched = 0;
}

void transaction_discard(struct connection *conn)
{
    struct request *q;
    while ((q = STAILQ_FIRST(&conn->multi))) {
        STAILQ_REMOVE_HEAD(&conn->multi, next);
        dispatch_release(conn, q);
    }
    conn->n_multi = 0;
    conn->multi_bytes = 0;
    conn->in_multi = false;
    conn->multi_failed = false;
    unwatch(conn);
}

static enum command_result multi_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (conn->in_multi) {
        resp_error(c->out, "ERR MULTI calls can not be nested");
        return COMMAND_DONE;
    }
    conn->in_multi = true;
    resp_ok(c->out);
    return COMMAND_DONE;
}

static enum command_result discard_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (!conn->in_multi) {
        resp_error(c->out, "ERR DISCARD without MULTI");
        return COMMAND_DONE;
    }
    transaction_discard(conn);
    resp_ok(c->out);
    return COMMAND_DONE;
}

static bool watched_changed(struct connection *conn)
{
    for (struct watched_key *k = conn->watched; k; k = k->next) {
        struct slice key = {.p = k->key, .n = k->n};
        if (shard_key_version(conn->client.server->shard, k->db, key) != k->version)
            return true;
    }
    return false;
}

/* Inside the shard, when any command or watch asks for it. */
static enum command_result exec_body(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (watched_changed(conn)) {
        resp_null_array(c->out);
        return COMMAND_DONE;
    }
    resp_array(c->out, conn->n_multi);
    c->in_exec = true;
    struct request *q;
    STAILQ_FOREACH(q, &conn->multi, next)
    {
        size_t reply_start = conn->out.len;
        dispatch_set_running(conn, q);
        if (c->command->run(c) == COMMAND_WAIT) {
            conn->out.len = reply_start;
            resp_errorf(c->out, "ERR '%s' would have to wait and may not inside a transaction",
                        c->command->name);
        }
        dispatch_note(conn, reply_start);
    }
    c->in_exec = false;
    return COMMAND_DONE;
}

static enum command_result exec_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (!conn->in_multi) {
        resp_error(c->out, "ERR EXEC without MULTI");
        return COMMAND_DONE;
    }
    if (conn->multi_failed) {
        transaction_discard(conn);
        resp_error(c->out, "EXECABORT Transaction discarded because of previous errors.");
        return COMMAND_DONE;
    }
    unsigned flags = conn->watched ? CMD_READONLY : 0;
    struct request *q;
    STAILQ_FOREACH(q, &conn->multi, next)
    flags |= q->command->flags;
    struct client exec = *c; /* to be the running command again afterwards */
    int64_t start_us = c->worker->now_us;
    enum command_result result = dispatch_in_shard(conn, flags, conn->multi_bytes, exec_body);
    if (result == COMMAND_WAIT)
        return COMMAND_WAIT;
    c->argc = exec.argc;
    c->argv = exec.argv;
    c->command = exec.command;
    c->arena = exec.arena;
    c->embedding = NULL;
    c->note[0] = '\0';
    c->worker->now_us = start_us;
    transaction_discard(conn);
    return COMMAND_DONE;
}

static bool watch_key(struct connection *conn, struct slice key)
{
    struct client *c = &conn->client;
    for (struct watched_key *k = conn->watched; k; k = k->next) {
        if (k->db == c->db && k->n == key.n && memcmp(k->key, key.p, key.n) == 0)
            return true;
    }
    struct watched_key *k = mem_alloc(sizeof *k + key.n);
    if (!k)
        return false;
    k->db = c->db;
    k->n = key.n;
    memcpy(k->key, key.p, key.n);
    worker_take_shard(c->worker);
    k->version = shard_key_version(c->server->shard, c->db, key);
    k->next = conn->watched;
    conn->watched = k;
    conn->n_watched++;
    return true;
}

static enum command_result watch_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (conn->in_multi) {
        resp_error(c->out, "ERR WATCH inside MULTI is not allowed");
        return COMMAND_DONE;
    }
    for (int i = 1; i < c->argc; i++) {
        if (!watch_key(conn, c->argv[i])) {
            resp_error(c->out, "OOM no memory to watch a key");
            return COMMAND_DONE;
        }
    }
    resp_ok(c->out);
    return COMMAND_DONE;
}

static enum command_result unwatch_run(struct client *c)
{
    unwatch(connection_of(c));
    resp_ok(c->out);
    return COMMAND_DONE;
}

const struct command transaction_commands[] = {
    {.name = "multi",
     .arity = 1,
     .flags = CMD_FAST | CMD_LOADING | CMD_IN_MULTI,
     .run = multi_run,
     .group = "transactions",
     .since = "1.2.0",
     .complexity = "O(1)",
     .summary = "Starts a transaction.",
     .syntax = ""},
    {.name = "exec",
     .arity = 1,
     .flags = CMD_LOADING | CMD_IN_MULTI | CMD_NO_MONITOR,
     .run = exec_run,
     .group = "transactions",
     .since = "1.2.0",
     .complexity = "Depends on commands in the transaction",
     .summary = "Executes all commands in a transaction.",
     .syntax = ""},
    {.name = "discard",
     .arity = 1,
     .flags = CMD_FAST | CMD_LOADING | CMD_IN_MULTI,
     .run = discard_run,
     .group = "transactions",
     .since = "2.0.0",
     .complexity = "O(N), when N is the number of queued commands",
     .summary = "Discards a transaction.",
     .syntax = ""},
    {.name = "watch",
     .arity = -2,
     .flags = CMD_FAST | CMD_LOADING | CMD_IN_MULTI,
     .first_key = 1,
     .last_key = -1,
     .key_step = 1,
     .run = watch_run,
     .group = "transactions",
     .since = "2.2.0",
     .complexity = "O(1) for every key.",
     .summary = "Monitors changes to keys to determine the execution of a transaction.",
     .syntax = "key [key ...]"},
    {.name = "unwatch",
     .arity = 1,
     .flags = CMD_FAST | CMD_LOADING,
     .run = unwatch_run,
     .group = "transactions",
     .since = "2.2.0",
     .complexity = "O(1)",
     .summary = "Forgets about watched keys of a transaction.",
     .syntax = ""},
    {.name = NULL},
};
