/* The dispatcher: from a request that was read to a reply in the buffer.
 *
 *   read ──► prepare ──► texts? ── no, and nothing waits before it ──► execute at once
 *                          │                                              ▲
 *                          └─ yes, or behind one that waits ──► queue ────┘ in order
 *
 * A command with texts is sent to the engine when it is read and takes its place in the queue;
 * the commands behind it are read ahead, so that the texts of a whole pipeline share batches,
 * but run strictly in order. What waits is bounded in number and bytes: a full queue stops the
 * reading of this connection, and TCP tells the client.
 *
 * A command waits at the head of the queue in three ways: for its vectors (TEXTS_SENT); because
 * its function, or the shard, returned COMMAND_WAIT (blocked), which client_wake ends; or for
 * the search thread that has the rest of it (offload.c).
 *
 * The engine answers on a thread of its own, perhaps when the client has gone. The answer
 * therefore names client and request by number; it is posted to the worker, which looks both up
 * and frees the answer when either is no more.
 *
 * Which model a text is for depends on the set it goes to, and that is looked at when the
 * command is read: a look, no more, for the commands before it may still make or replace the
 * set. So the command looks again when it runs, with the shard entered: was the vector made by
 * another model than the set has now, its result is COMMAND_TEXTS. Then its texts are embedded
 * anew, and with them those of all commands behind it that go to the same set, so that a
 * pipeline whose first command makes the set still shares batches. */

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/config.h"
#include "server/effect.h"
#include "server/keyspace.h"
#include "server/models.h"
#include "server/monitor.h"
#include "server/net_private.h"
#include "server/server.h"
#include "server/shard.h"
#include "server/shard_parts.h"
#include "server/slowlog.h"

enum { SHOWN_ARG_BYTES = 128 };

enum outcome {
    OUTCOME_DONE,
    OUTCOME_WAITS,     /* stays at the head of the queue until it is woken */
    OUTCOME_OFFLOADED, /* likewise, until it is back from its search thread */
    OUTCOME_TEXTS,     /* likewise, until its texts are embedded anew */
    OUTCOME_KEPT       /* the request belongs to the transaction now */
};

/* --- texts --- */

struct embed_job {
    struct post post; /* first */
    struct worker *worker;
    uint64_t client_id, seq;
    struct embedding embedding; /* points into what follows */
    struct engine_model model;
    float *vectors;
    char message[512];
};

static void job_free(struct embed_job *job)
{
    if (!job)
        return;
    mem_free(job->vectors);
    mem_free(job);
}

static void on_embedded(struct worker *w, struct post *self)
{
    struct embed_job *job = (struct embed_job *)self;
    struct connection *conn = worker_find(w, job->client_id);
    struct request *q = conn ? STAILQ_FIRST(&conn->queue) : NULL;
    while (q && q->seq != job->seq)
        q = STAILQ_NEXT(q, next);
    if (!q) {
        job_free(job);
        return;
    }
    q->job = job;
    q->embedding = job->embedding;
    q->embedding.named = q->texts_named;
    q->embedding.n_again = q->n_again;
    q->texts = TEXTS_READY;
    if (q == STAILQ_FIRST(&conn->queue))
        worker_mark_resume(conn);
}

/* On the link's thread, or on ours when the engine refuses at once. */
static void take_answer(void *arg, const struct engine_answer *a)
{
    struct embed_job *job = arg;
    struct embedding *into = &job->embedding;
    into->code = a->code;
    snprintf(job->message, sizeof job->message, "%s", a->message ? a->message : "");
    if (a->code == 0) {
        into->n = a->n;
        into->dim = a->dim;
        job->model = *a->model;
        into->model = &job->model;
        job->vectors = mem_alloc_n((size_t)a->n * a->dim, sizeof *job->vectors);
        if (job->vectors) {
            memcpy(job->vectors, a->vectors, (size_t)a->n * a->dim * sizeof *job->vectors);
        } else {
            into->code = KITH_ENOMEM;
            snprintf(job->message, sizeof job->message, "OOM no memory for the vectors");
        }
    }
    into->vectors = job->vectors;
    into->message = job->message;
    if (!worker_post_node(job->worker, &job->post))
        job_free(job);
}

static void texts_fail(struct request *q, int code, const char *message)
{
    q->embedding = (struct embedding){.code = code, .message = message};
    q->texts = TEXTS_READY;
}

/* The texts side by side, as the engine's link takes them; NULL when out of memory. */
static struct slice *gather(const struct command_texts *texts)
{
    struct slice *all = mem_alloc_n(texts->n, sizeof *all);
    for (uint32_t i = 0; all && i < texts->n; i++)
        all[i] = texts->first[(size_t)i * texts->step];
    return all;
}

/* The model of the set as it is now; name "": there is no set, or it has none. */
static struct vset_model set_model(struct connection *conn, struct slice key)
{
    struct worker *w = conn->client.worker;
    struct shard *shard = conn->client.server->shard;
    struct vset_model model = {0};
    bool held = w->shard_held; /* by an earlier command of the batch */
    if (!held)
        shard_lock(shard);
    struct key *k = keyspace_find(shard->keyspace, conn->client.db, key, clock_wall_ms());
    if (k && k->type == OBJECT_VSET)
        model = vset_model(k->vset);
    if (!held)
        shard_unlock(shard);
    return model;
}

static void send_texts(struct connection *conn, struct request *q)
{
    struct command_texts texts = {0};
    struct models *models = conn->client.server->models;
    q->command->texts(q->parsed.argv, q->parsed.argc, &texts);
    if (texts.n == 0) {
        q->texts = TEXTS_NONE;
        return;
    }
    struct vset_model of_set = {0};
    q->texts_named = texts.model.n > 0;
    q->texts_key = texts.key;
    if (texts.key && !q->texts_named && !models_single(models))
        of_set = set_model(conn, q->parsed.argv[texts.key]);
    struct embed_job *job = mem_calloc(1, sizeof *job);
    struct slice *gathered = NULL;
    if (job && texts.step > 1 && !(gathered = gather(&texts))) {
        mem_free(job);
        job = NULL;
    }
    if (!job) {
        texts_fail(q, KITH_ENOMEM, "OOM no memory to ask the engine");
        return;
    }
    job->post.fn = on_embedded;
    job->worker = conn->client.worker;
    job->client_id = conn->client.id;
    job->seq = q->seq;
    q->texts = TEXTS_SENT;
    struct models_request ask = {.task = texts.task ? texts.task : ENGINE_EMBED,
                                 .name = texts.model,
                                 .hash = of_set.hash,
                                 .pooling = of_set.pooling,
                                 .texts = gathered ? gathered : texts.first,
                                 .n = texts.n,
                                 .truncate = texts.truncate,
                                 .role = texts.role,
                                 .done = take_answer,
                                 .arg = job};
    models_ask(models, &ask); /* the answer comes through take_answer also when it fails */
    mem_free(gathered);
}

/* Whether the texts of both go to one set and neither names its model. */
static bool same_set(const struct request *a, const struct request *b)
{
    return a->texts_key && b->texts_key && !b->texts_named &&
           slice_equal(a->parsed.argv[a->texts_key], b->parsed.argv[b->texts_key]);
}

/* The command at the head of the queue needs its texts embedded anew, and so will those behind
 * it that go to the same set. What was made of them, or is being made, is dropped: it is named
 * by the number that the request no longer has. */
static void send_texts_again(struct connection *conn)
{
    struct request *first = STAILQ_FIRST(&conn->queue), *q;
    STAILQ_FOREACH(q, &conn->queue, next)
    {
        if ((q->texts != TEXTS_READY && q->texts != TEXTS_SENT) || !same_set(first, q))
            continue;
        job_free(q->job);
        q->job = NULL;
        q->seq = conn->next_seq++;
        q->n_again += q == first;
        send_texts(conn, q);
    }
    if (first->texts == TEXTS_READY) /* no memory to ask: it says so when it runs */
        worker_mark_resume(conn);
}

/* --- requests --- */

void dispatch_request_free(struct request *q)
{
    job_free(q->job);
    resp_request_deinit(&q->parsed);
    mem_free(q);
}

void dispatch_release(struct connection *conn, struct request *q)
{
    if (offload_forget(q))
        return;
    job_free(q->job);
    q->job = NULL;
    worker_request_give(conn->client.worker, q);
}

void dispatch_forget(struct connection *conn)
{
    struct request *q;
    while ((q = STAILQ_FIRST(&conn->queue))) {
        STAILQ_REMOVE_HEAD(&conn->queue, next);
        dispatch_release(conn, q);
    }
    conn->n_queued = 0;
    conn->queued_bytes = 0;
    if (conn->partial)
        dispatch_release(conn, conn->partial);
    conn->partial = NULL;
}

static void enqueue(struct connection *conn, struct request *q)
{
    STAILQ_INSERT_TAIL(&conn->queue, q, next);
    conn->n_queued++;
    conn->queued_bytes += q->parsed.bytes;
}

static void enqueue_first(struct connection *conn, struct request *q)
{
    STAILQ_INSERT_HEAD(&conn->queue, q, next);
    conn->n_queued++;
    conn->queued_bytes += q->parsed.bytes;
}

static void dequeue(struct connection *conn, struct request *q)
{
    STAILQ_REMOVE_HEAD(&conn->queue, next);
    conn->n_queued--;
    conn->queued_bytes -= q->parsed.bytes;
}

static bool queue_full(const struct connection *conn)
{
    return conn->n_queued >= QUEUE_MAX || conn->queued_bytes >= QUEUE_BYTES_MAX;
}

static bool arity_fits(const struct command *c, int argc)
{
    return c->arity >= 0 ? argc == c->arity : argc >= -c->arity;
}

static void prepare(struct connection *conn, struct request *q)
{
    q->seq = conn->next_seq++;
    q->refusal = NULL;
    q->command = command_lookup(q->parsed.argv, q->parsed.argc);
    q->texts = TEXTS_NONE;
    q->n_again = 0;
    if (q->command && q->command->texts && arity_fits(q->command, q->parsed.argc)) {
        q->texts = TEXTS_UNSENT;
        if (conn->authenticated)
            send_texts(conn, q);
    }
}

static void prepare_refusal(struct request *q, const struct err *why)
{
    q->refusal = arena_dup(&q->parsed.arena, why->message, strlen(why->message) + 1);
    if (!q->refusal)
        q->refusal = "out of memory";
    q->command = NULL;
    q->texts = TEXTS_NONE;
}

/* --- what may not run --- */

static void reply_unknown_command(struct client *c)
{
    char args[2 * SHOWN_ARG_BYTES];
    size_t n = 0;
    args[0] = '\0';
    for (int i = 1; i < c->argc && n < SHOWN_ARG_BYTES; i++) {
        int room = (int)(SHOWN_ARG_BYTES - n);
        int length = c->argv[i].n < (size_t)room ? (int)c->argv[i].n : room;
        int wrote = snprintf(args + n, sizeof args - n, "'%.*s' ", length, c->argv[i].p);
        n += wrote > 0 ? (size_t)wrote : 0;
    }
    int name = c->argv[0].n < SHOWN_ARG_BYTES ? (int)c->argv[0].n : SHOWN_ARG_BYTES;
    resp_errorf(c->out, "ERR unknown command '%.*s', with args beginning with: %s", name,
                c->argv[0].p, args);
}

static void reply_unknown_subcommand(struct client *c, const struct command *parent)
{
    char upper[32];
    size_t n = 0;
    for (; parent->name[n] && n < sizeof upper - 1; n++)
        upper[n] = (char)toupper((unsigned char)parent->name[n]);
    upper[n] = '\0';
    int length = c->argv[1].n < SHOWN_ARG_BYTES ? (int)c->argv[1].n : SHOWN_ARG_BYTES;
    resp_errorf(c->out, "ERR unknown subcommand '%.*s'. Try %s HELP.", length, c->argv[1].p,
                upper);
}

/* A web page can make a browser send us HTTP. Its lines are unknown commands, but one of its
 * body might not be: so these two end the connection. */
static bool is_http(struct slice name)
{
    return slice_is(name, "post") || slice_is(name, "host:");
}

static void reply_unknown(struct client *c)
{
    if (is_http(c->argv[0])) {
        log_warning("HTTP spoken by client %s: its connection is closed",
                    connection_of(c)->peer);
        connection_close_after_reply(connection_of(c));
        return;
    }
    const struct command *parent = command_by_name(c->argv[0]);
    if (!parent || !parent->subcommands)
        reply_unknown_command(c);
    else if (c->argc < 2)
        resp_errorf(c->out, "ERR wrong number of arguments for '%s' command", parent->name);
    else
        reply_unknown_subcommand(c, parent);
}

static void reply_arity(struct client *c)
{
    const struct command *parent = command_parent(c->command);
    resp_errorf(c->out, "ERR wrong number of arguments for '%s%s%s' command",
                parent ? parent->name : "", parent ? "|" : "", c->command->name);
}

/* Whether the running command may run now; else the error was replied. */
static bool admit(struct connection *conn)
{
    struct client *c = &conn->client;
    if (!c->command) {
        reply_unknown(c);
        return false;
    }
    if (!arity_fits(c->command, c->argc)) {
        reply_arity(c);
        return false;
    }
    if (!conn->authenticated && !(c->command->flags & CMD_NO_AUTH)) {
        conn->authenticated = !auth_required(c->server); /* it may have been taken away */
        if (!conn->authenticated) {
            resp_error(c->out, "NOAUTH Authentication required.");
            return false;
        }
    }
    if (conn->in_multi && c->command->flags & CMD_NO_MULTI) {
        resp_error(c->out, "ERR Command not allowed inside a transaction");
        return false;
    }
    return true;
}

/* --- running --- */

void dispatch_set_running(struct connection *conn, struct request *q)
{
    struct client *c = &conn->client;
    conn->running = q;
    c->note[0] = '\0';
    c->argc = q->parsed.argc;
    c->argv = q->parsed.argv;
    c->arena = &q->parsed.arena;
    c->command = q->command;
    c->embedding = q->texts == TEXTS_READY ? &q->embedding : NULL;
}

size_t dispatch_effect_bytes(const struct request *q)
{
    /* A component of VALUES becomes a float, a name may be deleted because it expired before it
     * is written anew. */
    size_t n =
        q->parsed.bytes * 2 + (size_t)q->parsed.argc * EFFECT_ARG_BYTES + EFFECT_OVERHEAD_BYTES;
    if (q->command && q->command->flags & CMD_MANY_EFFECTS && q->parsed.argc > 1)
        n += (size_t)q->parsed.argc * q->parsed.argv[1].n;
    if (q->texts == TEXTS_READY && q->embedding.code == 0)
        n += q->embedding.n * (q->embedding.dim * sizeof(float) + sizeof(struct vset_model));
    return n;
}

/* Leaves the shard; what was replied waits for all that was changed until now. */
static void raise_gate(struct connection *conn)
{
    worker_take_shard(conn->client.worker);
    uint64_t gate = shard_leave(conn->client.server->shard);
    if (gate > conn->batch_gate)
        conn->batch_gate = gate;
    /* A read may have removed what expired, and then it waits for the log too. */
    conn->client.worker->wrote |= conn->batch_gate > shard_released(conn->client.server->shard);
}

enum command_result dispatch_in_shard(struct connection *conn, unsigned flags, size_t bytes,
                                      enum command_result (*fn)(struct client *c))
{
    struct client *c = &conn->client;
    if (!(flags & (CMD_WRITE | CMD_READONLY)) || c->in_exec)
        return fn(c);
    struct worker *w = c->worker;
    struct shard *shard = c->server->shard;
    worker_take_shard(w);
    bool refused = false;
    if (shard_enter(shard, c, flags, bytes, &refused) == COMMAND_WAIT)
        return COMMAND_WAIT;
    if (refused)
        return COMMAND_DONE;
    enum command_result result = fn(c);
    if (result == COMMAND_OFFLOADED)
        return result; /* it showed nothing yet */
    raise_gate(conn);  /* also when nothing was written, and a search gave the shard back */
    w->wrote |= (flags & CMD_WRITE) != 0;
    return result;
}

static bool replied_error(const struct connection *conn, size_t reply_start)
{
    return conn->out.len > reply_start && conn->out.data[reply_start] == '-';
}

/* The code of an error reply is its first word. */
static void note_error(struct connection *conn, size_t reply_start)
{
    if (!replied_error(conn, reply_start))
        return;
    const char *p = conn->out.data + reply_start + 1;
    size_t left = conn->out.len - reply_start - 1, n = 0;
    while (n < left && p[n] != ' ' && p[n] != '\r')
        n++;
    error_stats_note((struct slice){.p = p, .n = n});
    atomic_fetch_add_explicit(&conn->client.worker->counters.errors, 1, memory_order_relaxed);
}

static void note(struct connection *conn, size_t reply_start, int64_t took_us)
{
    struct client *c = &conn->client;
    note_error(conn, reply_start);
    command_stats_note(c->command, took_us, replied_error(conn, reply_start));
    slowlog_note(c->server->slowlog, c, took_us);
    if (!(c->command->flags & (CMD_NO_MONITOR | CMD_ADMIN)))
        monitor_feed(c);
    atomic_fetch_add_explicit(&c->worker->counters.commands, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&conn->shown.n_commands, 1, memory_order_relaxed);
}

void dispatch_note(struct connection *conn, size_t reply_start)
{
    struct worker *w = conn->client.worker;
    int64_t now_us = clock_mono_us(), took_us = now_us - w->now_us;
    w->now_us = now_us;
    note(conn, reply_start, took_us);
}

/* CLIENT REPLY: takes the reply away again where the client wants none. */
static void apply_reply_mode(struct connection *conn, size_t reply_start)
{
    if (conn->reply_off || conn->reply_skip)
        conn->out.len = reply_start;
    conn->reply_skip = conn->reply_skip_next;
    conn->reply_skip_next = false;
}

static enum outcome execute(struct connection *conn, struct request *q)
{
    struct client *c = &conn->client;
    size_t reply_start = conn->out.len;
    dispatch_set_running(conn, q);
    if (q->refusal) {
        resp_errorf(c->out, "ERR %s", q->refusal);
        connection_close_after_reply(conn);
        return OUTCOME_DONE;
    }
    if (!admit(conn)) {
        conn->multi_failed |= conn->in_multi;
        note_error(conn, reply_start);
    } else if (conn->in_multi && !(c->command->flags & CMD_IN_MULTI)) {
        transaction_queue(conn, q);
        resp_simple(c->out, "QUEUED");
        apply_reply_mode(conn, reply_start);
        return OUTCOME_KEPT;
    } else {
        enum command_result result = dispatch_in_shard(
            conn, c->command->flags, dispatch_effect_bytes(q), c->command->run);
        if (result != COMMAND_DONE) {
            conn->out.len = reply_start;
            return result == COMMAND_WAIT    ? OUTCOME_WAITS
                   : result == COMMAND_TEXTS ? OUTCOME_TEXTS
                                             : OUTCOME_OFFLOADED;
        }
        dispatch_note(conn, reply_start);
    }
    if (conn->reply_off || conn->reply_skip || conn->reply_skip_next)
        apply_reply_mode(conn, reply_start);
    return OUTCOME_DONE;
}

/* The command is back from its search thread: what execute does after it ran. */
static void settle(struct connection *conn, struct request *q)
{
    size_t reply_start = conn->out.len;
    dispatch_set_running(conn, q);
    int64_t took_us = offload_settle(conn, q);
    raise_gate(conn);
    note(conn, reply_start, took_us);
    conn->client.worker->now_us = clock_mono_us();
    if (conn->reply_off || conn->reply_skip || conn->reply_skip_next)
        apply_reply_mode(conn, reply_start);
}

static bool stopped(const struct connection *conn)
{
    return conn->closed || conn->close_after_reply || conn->out.failed;
}

/* False when the connection's time is over; it goes on in the next round. */
static bool in_time(struct connection *conn, int64_t until_us)
{
    if (conn->client.worker->now_us <= until_us)
        return true;
    worker_mark_resume(conn);
    return false;
}

/* Runs from the head of the queue. True when it is empty and there is time left. */
static bool run_queue(struct connection *conn, int64_t until_us)
{
    struct request *q;
    while ((q = STAILQ_FIRST(&conn->queue))) {
        if (stopped(conn) || conn->blocked)
            return false;
        if (q->texts == TEXTS_UNSENT && conn->authenticated)
            send_texts(conn, q);
        if (q->texts == TEXTS_SENT)
            return false;
        if (q->offload && !offload_done(q->offload))
            return false;
        dequeue(conn, q); /* before it may move to the transaction's list */
        enum outcome outcome = OUTCOME_DONE;
        if (q->offload)
            settle(conn, q);
        else
            outcome = execute(conn, q);
        if (outcome == OUTCOME_WAITS || outcome == OUTCOME_OFFLOADED ||
            outcome == OUTCOME_TEXTS) {
            enqueue_first(conn, q);
            if (outcome == OUTCOME_WAITS)
                connection_block(conn);
            if (outcome != OUTCOME_TEXTS)
                return false;
            send_texts_again(conn);
            continue; /* and wait, as for any texts */
        }
        if (outcome == OUTCOME_DONE)
            dispatch_release(conn, q);
        if (!in_time(conn, until_us))
            return false;
    }
    return true;
}

/* Takes the next request from the reader into conn->partial. */
static enum resp_status next_request(struct connection *conn)
{
    struct worker *w = conn->client.worker;
    struct config *config = w->server->config;
    if (!conn->partial && !(conn->partial = worker_request_take(w))) {
        connection_close(conn);
        return RESP_INCOMPLETE;
    }
    struct resp_limits limits = {
        .max_bulk_bytes = (size_t)atomic_load(&config->proto_max_bulk_len),
        .max_request_bytes = (size_t)atomic_load(&config->client_query_buffer_limit),
        .authenticated = conn->authenticated};
    struct err e = {0};
    enum resp_status status =
        resp_reader_next(conn->reader, &limits, &conn->partial->parsed, &e);
    if (status == RESP_REQUEST)
        prepare(conn, conn->partial);
    else if (status == RESP_ERROR)
        prepare_refusal(conn->partial, &e);
    return status;
}

/* Runs the request that was just read, or puts it behind those that wait. */
static void run_or_queue(struct connection *conn)
{
    struct request *q = conn->partial;
    conn->partial = NULL;
    if (!STAILQ_EMPTY(&conn->queue) || q->texts == TEXTS_SENT) {
        enqueue(conn, q);
        return;
    }
    switch (execute(conn, q)) {
    case OUTCOME_WAITS:
        enqueue(conn, q);
        connection_block(conn);
        break;
    case OUTCOME_OFFLOADED:
        enqueue(conn, q);
        break;
    case OUTCOME_TEXTS:
        enqueue(conn, q); /* the queue was empty */
        send_texts_again(conn);
        break;
    case OUTCOME_KEPT:
        break;
    case OUTCOME_DONE:
        job_free(q->job);
        q->job = NULL;
        resp_request_reset(&q->parsed);
        conn->partial = q;
        break;
    }
}

static void read_ahead(struct connection *conn, int64_t until_us)
{
    while (conn->reader && !conn->input_broken && !stopped(conn) && !queue_full(conn)) {
        enum resp_status status = next_request(conn);
        if (status == RESP_INCOMPLETE)
            break;
        run_or_queue(conn);
        if (status == RESP_ERROR) {
            /* The stream has no meaning from here on. The refusal closes when its turn comes.
             */
            connection_end_input(conn);
            conn->input_broken = true;
            break;
        }
        if (!in_time(conn, until_us))
            break;
    }
    if (conn->partial && conn->partial->parsed.argc == 0 && conn->reader &&
        resp_reader_idle(conn->reader)) {
        dispatch_release(conn, conn->partial);
        conn->partial = NULL;
    }
}

void dispatch_run(struct connection *conn)
{
    if (stopped(conn)) {
        worker_mark_dirty(conn);
        return;
    }
    struct worker *w = conn->client.worker;
    if (w->turn_id != conn->client.id) {
        w->turn_id = conn->client.id;
        w->other_turn_us = w->now_us;
    }
    w->now_us = clock_mono_us();
    int64_t until_us = w->now_us + SLICE_US;
    atomic_store_explicit(&conn->shown.active_us, w->now_us, memory_order_relaxed);
    connection_batch_begin(conn);
    /* When the server stops, too: what was received is answered. */
    if (run_queue(conn, until_us) || !conn->is_resume)
        read_ahead(conn, until_us);
    /* Not while something that was read is still to be run: what waits here must stay bounded.
     */
    connection_want_read(conn, !queue_full(conn) && !conn->is_resume);
    connection_batch_end(conn);
}
