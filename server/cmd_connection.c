/* PING, ECHO, HELLO, AUTH, SELECT, QUIT, RESET, and the row of CLIENT (its subcommands are in
 * cmd_client.c). */

#include <string.h>

#include "server/config.h"
#include "server/monitor.h"
#include "server/net_private.h"
#include "server/server.h"

static enum command_result ping_run(struct client *c)
{
    if (c->argc > 2)
        resp_error(c->out, "ERR wrong number of arguments for 'ping' command");
    else if (c->argc == 2)
        resp_bulk(c->out, c->argv[1].p, c->argv[1].n);
    else
        resp_simple(c->out, "PONG");
    return COMMAND_DONE;
}

static enum command_result echo_run(struct client *c)
{
    resp_bulk(c->out, c->argv[1].p, c->argv[1].n);
    return COMMAND_DONE;
}

static enum command_result select_run(struct client *c)
{
    int64_t db;
    if (!arg_int(c->argv[1], &db)) {
        reply_not_integer(c);
    } else if (db < 0 || db >= atomic_load(&c->server->config->databases)) {
        resp_error(c->out, "ERR DB index is out of range");
    } else {
        c->db = (uint32_t)db;
        resp_ok(c->out);
    }
    return COMMAND_DONE;
}

/* --- who it is --- */

bool auth_required(struct server *s)
{
    config_lock(s->config);
    bool required = s->config->requirepass && *s->config->requirepass;
    config_unlock(s->config);
    return required;
}

/* Looks at every byte given, whether or not the ones before were right, so that the time tells
 * only the length of what the client itself sent. */
static bool same_secret(struct slice given, const char *secret)
{
    size_t n = strlen(secret);
    unsigned char differs = given.n != n;
    for (size_t i = 0; i < given.n; i++)
        differs |= (unsigned char)((unsigned char)given.p[i] ^ (unsigned char)secret[i % n]);
    return differs == 0;
}

/* Whether the password opens the one user there is, "default". */
static bool authenticate(struct connection *conn, struct slice user, struct slice password)
{
    struct server *s = conn->client.server;
    struct slice default_user = {.p = "default", .n = 7};
    bool right_user = slice_equal(user, default_user);
    config_lock(s->config);
    const char *secret = s->config->requirepass;
    bool right = right_user && (!secret || !*secret || same_secret(password, secret));
    config_unlock(s->config);
    if (right)
        conn->authenticated = true;
    return right;
}

static void reply_wrong_password(struct client *c)
{
    resp_error(c->out, "WRONGPASS invalid username-password pair or user is disabled.");
}

static enum command_result auth_run(struct client *c)
{
    if (c->argc > 3) {
        reply_syntax_error(c);
        return COMMAND_DONE;
    }
    if (c->argc == 2 && !auth_required(c->server)) {
        resp_error(c->out, "ERR AUTH <password> called without any password configured for the "
                           "default user. Are you sure your configuration is correct?");
        return COMMAND_DONE;
    }
    struct slice user = c->argc == 3 ? c->argv[1] : slice_of("default");
    if (authenticate(connection_of(c), user, c->argv[c->argc - 1]))
        resp_ok(c->out);
    else
        reply_wrong_password(c);
    return COMMAND_DONE;
}

/* The options after the protocol's number: AUTH user password, SETNAME name. */
static bool hello_options(struct client *c, struct slice *name)
{
    struct connection *conn = connection_of(c);
    for (int i = 2; i < c->argc; i++) {
        int more = c->argc - i - 1;
        if (slice_is(c->argv[i], "auth") && more >= 2) {
            if (!authenticate(conn, c->argv[i + 1], c->argv[i + 2])) {
                reply_wrong_password(c);
                return false;
            }
            i += 2;
        } else if (slice_is(c->argv[i], "setname") && more >= 1) {
            *name = c->argv[++i];
            if (!client_text_valid(*name)) {
                resp_error(c->out,
                           "ERR Client names cannot contain spaces, newlines or special "
                           "characters.");
                return false;
            }
        } else {
            resp_errorf(c->out, "ERR Syntax error in HELLO option '%.*s'",
                        (int)(c->argv[i].n < 128 ? c->argv[i].n : 128), c->argv[i].p);
            return false;
        }
    }
    return true;
}

/* What MODULE LIST replies, by that command itself. */
static void reply_modules(struct client *c)
{
    const struct slice words[] = {slice_of("module"), slice_of("list")};
    const struct command *list = command_lookup(words, 2);
    if (list)
        list->run(c);
    else
        resp_array(c->out, 0);
}

static void hello_reply(struct client *c)
{
    resp_map(c->out, 7);
    resp_bulk_str(c->out, "server");
    resp_bulk_str(c->out, "redis");
    resp_bulk_str(c->out, "version");
    resp_bulk_str(c->out, KITH_REDIS_VERSION);
    resp_bulk_str(c->out, "proto");
    resp_int(c->out, c->out.proto);
    resp_bulk_str(c->out, "id");
    resp_int(c->out, (int64_t)c->id);
    resp_bulk_str(c->out, "mode");
    resp_bulk_str(c->out, "standalone");
    resp_bulk_str(c->out, "role");
    resp_bulk_str(c->out, "master");
    resp_bulk_str(c->out, "modules");
    reply_modules(c);
}

static enum command_result hello_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    int64_t proto = c->out.proto;
    struct slice name = {0};
    if (c->argc >= 2 && !arg_int(c->argv[1], &proto)) {
        resp_error(c->out, "ERR Protocol version is not an integer or out of range");
        return COMMAND_DONE;
    }
    if (proto < 2 || proto > 3) {
        resp_error(c->out, "NOPROTO unsupported protocol version");
        return COMMAND_DONE;
    }
    if (!hello_options(c, &name))
        return COMMAND_DONE;
    if (!conn->authenticated) {
        resp_error(
            c->out,
            "NOAUTH HELLO must be called with the client already authenticated, otherwise "
            "the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the "
            "client and select the RESP protocol version at the same time");
        return COMMAND_DONE;
    }
    if (name.p && !client_set_text(conn, &conn->name, name)) {
        resp_error(c->out, "OOM no memory for the client's name");
        return COMMAND_DONE;
    }
    c->out.proto = (int)proto;
    hello_reply(c);
    return COMMAND_DONE;
}

/* --- leaving --- */

static enum command_result quit_run(struct client *c)
{
    resp_ok(c->out);
    connection_close_after_reply(connection_of(c));
    return COMMAND_DONE;
}

static enum command_result reset_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    transaction_discard(conn);
    monitor_stop(c);
    conn->no_evict = conn->no_touch = false;
    conn->reply_off = conn->reply_skip = conn->reply_skip_next = false;
    conn->authenticated = !auth_required(c->server);
    client_set_text(conn, &conn->name, (struct slice){0});
    c->db = 0;
    c->out.proto = 2;
    resp_simple(c->out, "RESET");
    return COMMAND_DONE;
}

const struct command connection_commands[] = {
    {.name = "ping",
     .arity = -1,
     .flags = CMD_FAST | CMD_LOADING,
     .run = ping_run,
     .group = "connection",
     .since = "1.0.0",
     .complexity = "O(1)",
     .summary = "Returns the server's liveliness response.",
     .syntax = "[message]"},
    {.name = "echo",
     .arity = 2,
     .flags = CMD_FAST | CMD_LOADING,
     .run = echo_run,
     .group = "connection",
     .since = "1.0.0",
     .complexity = "O(1)",
     .summary = "Returns the given string.",
     .syntax = "message"},
    {.name = "hello",
     .arity = -1,
     .flags = CMD_FAST | CMD_LOADING | CMD_NO_AUTH | CMD_NO_MONITOR,
     .run = hello_run,
     .group = "connection",
     .since = "6.0.0",
     .complexity = "O(1)",
     .summary = "Handshakes with the server.",
     .syntax = "[protover [AUTH username password] [SETNAME clientname]]"},
    {.name = "auth",
     .arity = -2,
     .flags = CMD_FAST | CMD_LOADING | CMD_NO_AUTH | CMD_NO_MONITOR,
     .run = auth_run,
     .group = "connection",
     .since = "1.0.0",
     .complexity = "O(N), where N is the length of the password given",
     .summary = "Authenticates the connection.",
     .syntax = "[username] password"},
    {.name = "select",
     .arity = 2,
     .flags = CMD_FAST | CMD_LOADING,
     .run = select_run,
     .group = "connection",
     .since = "1.0.0",
     .complexity = "O(1)",
     .summary = "Changes the selected database.",
     .syntax = "index"},
    {.name = "quit",
     .arity = -1,
     .flags = CMD_FAST | CMD_LOADING | CMD_NO_AUTH | CMD_IN_MULTI,
     .run = quit_run,
     .group = "connection",
     .since = "1.0.0",
     .complexity = "O(1)",
     .summary = "Closes the connection.",
     .syntax = ""},
    {.name = "reset",
     .arity = 1,
     .flags = CMD_FAST | CMD_LOADING | CMD_NO_AUTH | CMD_IN_MULTI,
     .run = reset_run,
     .group = "connection",
     .since = "6.2.0",
     .complexity = "O(1)",
     .summary = "Resets the connection.",
     .syntax = ""},
    {.name = "client",
     .arity = -2,
     .subcommands = client_subcommands,
     .group = "connection",
     .since = "2.4.0",
     .complexity = "Depends on subcommand.",
     .summary = "A container for client connection commands.",
     .syntax = "subcommand [argument ...]"},
    {.name = NULL},
};
