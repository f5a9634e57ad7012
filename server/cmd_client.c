/* The subcommands of CLIENT.
 *
 * LIST and KILL look at connections of all workers. The list of each worker and the texts in it
 * are read under its clients_lock; the numbers are atomics that the owner publishes once a
 * batch, so those of a running client may be a batch old. A connection is closed only by its
 * own worker: KILL posts the wish. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "server/commands_shared.h"
#include "server/net_private.h"
#include "server/server.h"

/* --- the texts of a client --- */

bool client_text_valid(struct slice s)
{
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '!' || s.p[i] > '~')
            return false;
    }
    return true;
}

bool client_set_text(struct connection *conn, char **field, struct slice text)
{
    char *copy = NULL;
    if (text.n > 0) {
        copy = mem_alloc(text.n + 1);
        if (!copy)
            return false;
        memcpy(copy, text.p, text.n);
        copy[text.n] = '\0';
    }
    struct worker *w = conn->client.worker;
    pthread_mutex_lock(&w->clients_lock);
    char *old = *field;
    *field = copy;
    pthread_mutex_unlock(&w->clients_lock);
    mem_free(old);
    return true;
}

static enum command_result id_run(struct client *c)
{
    resp_int(c->out, (int64_t)c->id);
    return COMMAND_DONE;
}

static enum command_result getname_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (conn->name)
        resp_bulk_str(c->out, conn->name);
    else
        resp_null(c->out);
    return COMMAND_DONE;
}

static void set_and_reply(struct client *c, char **field, struct slice text)
{
    if (client_set_text(connection_of(c), field, text))
        resp_ok(c->out);
    else
        resp_error(c->out, "OOM no memory for the text");
}

static enum command_result setname_run(struct client *c)
{
    if (client_text_valid(c->argv[2]))
        set_and_reply(c, &connection_of(c)->name, c->argv[2]);
    else
        resp_error(c->out,
                   "ERR Client names cannot contain spaces, newlines or special characters.");
    return COMMAND_DONE;
}

static enum command_result setinfo_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    bool name = slice_is(c->argv[2], "lib-name"), version = slice_is(c->argv[2], "lib-ver");
    if (!name && !version) {
        resp_errorf(c->out, "ERR Unrecognized option '%.*s'",
                    (int)(c->argv[2].n < 128 ? c->argv[2].n : 128), c->argv[2].p);
    } else if (!client_text_valid(c->argv[3])) {
        resp_errorf(c->out, "ERR %s cannot contain spaces, newlines or special characters.",
                    name ? "lib-name" : "lib-ver");
    } else {
        set_and_reply(c, name ? &conn->lib_name : &conn->lib_ver, c->argv[3]);
    }
    return COMMAND_DONE;
}

/* --- LIST and INFO --- */

static void append_flags(struct buf *out, unsigned shown, bool is_unix)
{
    char flags[16];
    size_t n = 0;
    if (shown & SHOWN_MONITOR)
        flags[n++] = 'O';
    if (shown & SHOWN_MULTI)
        flags[n++] = 'x';
    if (shown & SHOWN_BLOCKED)
        flags[n++] = 'b';
    if (shown & SHOWN_DIRTY)
        flags[n++] = 'd';
    if (shown & SHOWN_CLOSING)
        flags[n++] = 'c';
    if (is_unix)
        flags[n++] = 'U';
    if (shown & SHOWN_NO_EVICT)
        flags[n++] = 'e';
    if (shown & SHOWN_NO_TOUCH)
        flags[n++] = 'T';
    if (n == 0)
        flags[n++] = 'N';
    buf_printf(out, " flags=%.*s", (int)n, flags);
}

static void append_command(struct buf *out, const struct command *command)
{
    const struct command *parent = command ? command_parent(command) : NULL;
    buf_printf(out, " cmd=%s%s%s", parent ? parent->name : "", parent ? "|" : "",
               command ? command->name : "NULL");
}

/* One line as CLIENT LIST has it, without the line end. Under the worker's clients_lock. */
static void append_line(struct buf *out, const struct connection *conn, int64_t now_us)
{
    const struct connection_shown *s = &conn->shown;
    unsigned shown = atomic_load(&s->flags);
    uint64_t out_bytes = atomic_load(&s->out_bytes), argv = atomic_load(&s->argv_bytes);
    uint64_t multi = atomic_load(&s->multi_bytes), in = atomic_load(&s->buffered);
    uint64_t spare = atomic_load(&s->spare);
    buf_printf(out, "id=%" PRIu64 " addr=%s laddr=%s fd=%d name=%s", conn->client.id,
               conn->peer, conn->local, conn->fd, conn->name ? conn->name : "");
    buf_printf(out, " age=%" PRId64 " idle=%" PRId64, (now_us - conn->created_us) / 1000000,
               (now_us - atomic_load(&s->active_us)) / 1000000);
    append_flags(out, shown, conn->is_unix);
    buf_printf(out, " db=%d sub=0 psub=0 ssub=0 multi=%d watch=%d", atomic_load(&s->db),
               atomic_load(&s->n_multi), atomic_load(&s->n_watched));
    buf_printf(out, " qbuf=%" PRIu64 " qbuf-free=%" PRIu64, in, spare);
    buf_printf(out, " argv-mem=%" PRIu64 " multi-mem=%" PRIu64, argv, multi);
    buf_printf(out, " rbs=0 rbp=0 obl=%" PRIu64 " oll=0 omem=%" PRIu64 " tot-mem=%" PRIu64,
               out_bytes, out_bytes, in + spare + argv + multi + out_bytes + sizeof *conn);
    buf_printf(out, " events=%s", shown & SHOWN_WRITING ? "rw" : "r");
    append_command(out, atomic_load(&s->command));
    buf_printf(out, " user=default redir=-1 resp=%d lib-name=%s lib-ver=%s io-thread=%u",
               atomic_load(&s->proto), conn->lib_name ? conn->lib_name : "",
               conn->lib_ver ? conn->lib_ver : "", conn->client.worker->number);
    buf_printf(out, " tot-net-in=%" PRIu64 " tot-net-out=%" PRIu64 " tot-cmds=%" PRIu64,
               atomic_load(&s->bytes_in), atomic_load(&s->bytes_out),
               atomic_load(&s->n_commands));
}

/* Calls fn for every connection, its worker's clients_lock held. */
static void each_connection(struct net *n, void (*fn)(struct connection *conn, void *arg),
                            void *arg)
{
    for (unsigned i = 0; i < n->n_workers; i++) {
        struct worker *w = &n->workers[i];
        pthread_mutex_lock(&w->clients_lock);
        struct connection *conn;
        TAILQ_FOREACH(conn, &w->clients, in_clients)
        fn(conn, arg);
        pthread_mutex_unlock(&w->clients_lock);
    }
}

/* What a client must be to be listed or killed. Zero or NULL members ask for nothing. */
struct filter {
    const struct slice *ids;
    int n_ids;
    struct slice addr, laddr;
    bool nobody, skip_me;
    int64_t min_age_s;
    uint64_t me;
};

static bool id_listed(const struct filter *f, uint64_t id)
{
    for (int i = 0; i < f->n_ids; i++) {
        int64_t wanted;
        if (arg_int(f->ids[i], &wanted) && (uint64_t)wanted == id)
            return true;
    }
    return f->n_ids == 0;
}

static bool same_text(struct slice wanted, const char *is)
{
    return !wanted.p || slice_equal(wanted, slice_of(is));
}

static bool fits(const struct filter *f, const struct connection *conn)
{
    int64_t age_s = (clock_mono_us() - conn->created_us) / 1000000;
    return !f->nobody && !(f->skip_me && conn->client.id == f->me) &&
           id_listed(f, conn->client.id) && same_text(f->addr, conn->peer) &&
           same_text(f->laddr, conn->local) && (f->min_age_s == 0 || age_s >= f->min_age_s);
}

/* TYPE: all clients are normal ones; none of the other kinds is served yet. */
static bool filter_type(struct client *c, struct slice type, struct filter *f)
{
    bool other = slice_is(type, "master") || slice_is(type, "replica") ||
                 slice_is(type, "slave") || slice_is(type, "pubsub");
    if (!other && !slice_is(type, "normal")) {
        resp_errorf(c->out, "ERR Unknown client type '%.*s'",
                    (int)(type.n < 128 ? type.n : 128), type.p);
        return false;
    }
    f->nobody |= other;
    return true;
}

struct listing {
    struct buf text;
    struct filter filter;
    int64_t now_us;
};

static void list_one(struct connection *conn, void *arg)
{
    struct listing *l = arg;
    if (!fits(&l->filter, conn))
        return;
    append_line(&l->text, conn, l->now_us);
    buf_append(&l->text, "\n", 1);
}

static bool ids_valid(struct client *c, const struct slice *ids, int n)
{
    for (int i = 0; i < n; i++) {
        int64_t id;
        if (!arg_int(ids[i], &id) || id < 1) {
            resp_error(c->out, "ERR Invalid client ID");
            return false;
        }
    }
    return true;
}

static bool list_options(struct client *c, struct filter *f)
{
    if (c->argc == 2)
        return true;
    if (c->argc == 4 && slice_is(c->argv[2], "type"))
        return filter_type(c, c->argv[3], f);
    if (c->argc > 3 && slice_is(c->argv[2], "id")) {
        f->ids = c->argv + 3;
        f->n_ids = c->argc - 3;
        return ids_valid(c, f->ids, f->n_ids);
    }
    reply_syntax_error(c);
    return false;
}

static void reply_text(struct client *c, struct buf *text)
{
    if (text->failed)
        resp_error(c->out, "OOM no memory for the list");
    else
        resp_verbatim(c->out, "txt", text->data ? text->data : "", text->len);
    buf_deinit(text);
}

static enum command_result list_run(struct client *c)
{
    struct listing l = {.now_us = clock_mono_us()};
    if (!list_options(c, &l.filter))
        return COMMAND_DONE;
    connection_publish(connection_of(c));
    buf_init(&l.text);
    each_connection(c->worker->net, list_one, &l);
    reply_text(c, &l.text);
    return COMMAND_DONE;
}

static enum command_result info_run(struct client *c)
{
    struct buf text;
    buf_init(&text);
    connection_publish(connection_of(c));
    append_line(&text, connection_of(c), clock_mono_us());
    buf_append(&text, "\n", 1);
    reply_text(c, &text);
    return COMMAND_DONE;
}

/* --- KILL --- */

struct kill {
    struct post post; /* first */
    uint64_t id;
};

static void run_kill(struct worker *w, struct post *self)
{
    struct kill *k = (struct kill *)self;
    struct connection *conn = worker_find(w, k->id);
    if (conn)
        connection_close(conn);
    mem_free(k);
}

struct killing {
    struct filter filter;
    int64_t n_killed;
    bool failed;
};

static void kill_one(struct connection *conn, void *arg)
{
    struct killing *all = arg;
    if (!fits(&all->filter, conn))
        return;
    all->n_killed++;
    if (conn->client.id == all->filter.me) {
        connection_close_after_reply(conn);
        return;
    }
    struct kill *k = mem_alloc(sizeof *k);
    if (!k) {
        all->failed = true;
        return;
    }
    *k = (struct kill){.post.fn = run_kill, .id = conn->client.id};
    if (!worker_post_node(conn->client.worker, &k->post))
        mem_free(k);
}

static bool kill_skip_me(struct client *c, struct slice word, struct filter *f)
{
    f->skip_me = slice_is(word, "yes");
    if (f->skip_me || slice_is(word, "no"))
        return true;
    reply_syntax_error(c);
    return false;
}

static bool kill_age(struct client *c, struct slice word, struct filter *f)
{
    if (!arg_int(word, &f->min_age_s)) {
        reply_not_integer(c);
        return false;
    }
    if (f->min_age_s > 0)
        return true;
    resp_error(c->out, "ERR maxage should be greater than 0");
    return false;
}

static bool kill_user(struct client *c, struct slice user, struct filter *f)
{
    (void)f; /* "default" is all there are */
    if (slice_equal(user, slice_of("default")))
        return true;
    resp_errorf(c->out, "ERR No such user '%.*s'", (int)(user.n < 128 ? user.n : 128), user.p);
    return false;
}

static bool kill_option(struct client *c, const struct slice *pair, struct filter *f)
{
    if (slice_is(pair[0], "id")) {
        f->ids = pair + 1;
        f->n_ids = 1;
        int64_t id;
        if (arg_int(pair[1], &id) && id > 0)
            return true;
        resp_error(c->out, "ERR client-id should be greater than 0");
        return false;
    }
    if (slice_is(pair[0], "type"))
        return filter_type(c, pair[1], f);
    if (slice_is(pair[0], "user"))
        return kill_user(c, pair[1], f);
    if (slice_is(pair[0], "skipme"))
        return kill_skip_me(c, pair[1], f);
    if (slice_is(pair[0], "maxage"))
        return kill_age(c, pair[1], f);
    if (slice_is(pair[0], "addr"))
        f->addr = pair[1];
    else if (slice_is(pair[0], "laddr"))
        f->laddr = pair[1];
    else
        reply_syntax_error(c);
    return slice_is(pair[0], "addr") || slice_is(pair[0], "laddr");
}

static enum command_result kill_run(struct client *c)
{
    struct killing all = {.filter = {.me = c->id, .skip_me = true}};
    bool by_address = c->argc == 3;
    if (by_address) {
        all.filter.addr = c->argv[2];
        all.filter.skip_me = false;
    } else if (c->argc % 2 != 0) {
        reply_syntax_error(c);
        return COMMAND_DONE;
    }
    for (int i = 2; !by_address && i < c->argc; i += 2) {
        if (!kill_option(c, &c->argv[i], &all.filter))
            return COMMAND_DONE;
    }
    each_connection(c->worker->net, kill_one, &all);
    if (all.failed)
        resp_error(c->out, "OOM no memory to end them all");
    else if (!by_address)
        resp_int(c->out, all.n_killed);
    else if (all.n_killed)
        resp_ok(c->out);
    else
        resp_error(c->out, "ERR No such client");
    return COMMAND_DONE;
}

/* --- switches --- */

static void switch_run(struct client *c, bool *into)
{
    if (slice_is(c->argv[2], "on"))
        *into = true;
    else if (slice_is(c->argv[2], "off"))
        *into = false;
    else {
        reply_syntax_error(c);
        return;
    }
    resp_ok(c->out);
}

static enum command_result no_evict_run(struct client *c)
{
    switch_run(c, &connection_of(c)->no_evict);
    return COMMAND_DONE;
}

static enum command_result no_touch_run(struct client *c)
{
    switch_run(c, &connection_of(c)->no_touch);
    return COMMAND_DONE;
}

static enum command_result reply_run(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (slice_is(c->argv[2], "on")) {
        conn->reply_off = conn->reply_skip = false;
        resp_ok(c->out);
    } else if (slice_is(c->argv[2], "off")) {
        conn->reply_off = true;
    } else if (slice_is(c->argv[2], "skip")) {
        conn->reply_skip_next = !conn->reply_off;
    } else {
        reply_syntax_error(c);
    }
    return COMMAND_DONE;
}

#define SUB(word, n, function, since_, summary_, syntax_)                                      \
    {                                                                                          \
        .name = word, .arity = n, .flags = CMD_LOADING, .run = function,                       \
        .group = "connection", .since = since_, .complexity = "O(1)", .summary = summary_,     \
        .syntax = syntax_                                                                      \
    }

const struct command client_subcommands[] = {
    SUB("getname", 2, getname_run, "2.6.9", "Returns the name of the connection.", ""),
    SUB("help", 2, reply_subcommands_help, "5.0.0",
        "Returns helpful text about the different subcommands.", ""),
    SUB("id", 2, id_run, "5.0.0", "Returns the unique client ID of the connection.", ""),
    SUB("info", 2, info_run, "6.2.0", "Returns information about the connection.", ""),
    {.name = "kill",
     .arity = -3,
     .flags = CMD_ADMIN | CMD_LOADING,
     .run = kill_run,
     .group = "connection",
     .since = "2.4.0",
     .complexity = "O(N) where N is the number of client connections",
     .summary = "Terminates open connections.",
     .syntax = "ip:port | [ID id] [TYPE NORMAL | MASTER | REPLICA | PUBSUB] [USER username] "
               "[ADDR ip:port] [LADDR ip:port] [SKIPME YES | NO] [MAXAGE seconds]"},
    {.name = "list",
     .arity = -2,
     .flags = CMD_ADMIN | CMD_LOADING,
     .run = list_run,
     .group = "connection",
     .since = "2.4.0",
     .complexity = "O(N) where N is the number of client connections",
     .summary = "Lists open connections.",
     .syntax = "[TYPE NORMAL | MASTER | REPLICA | PUBSUB] [ID client-id [client-id ...]]"},
    SUB("no-evict", 3, no_evict_run, "7.0.0",
        "Sets the client eviction mode of the connection.", "ON | OFF"),
    SUB("no-touch", 3, no_touch_run, "7.2.0",
        "Controls whether commands sent by the client affect the LRU/LFU of accessed keys.",
        "ON | OFF"),
    SUB("reply", 3, reply_run, "3.2.0", "Instructs the server whether to reply to commands.",
        "ON | OFF | SKIP"),
    SUB("setinfo", 4, setinfo_run, "7.2.0",
        "Sets information specific to the client or connection.",
        "LIB-NAME libname | LIB-VER libver"),
    SUB("setname", 3, setname_run, "2.6.9", "Sets the connection name.", "connection-name"),
    {.name = NULL},
};
