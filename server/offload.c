/* The rest of a command on a search thread, and its way back.
 *
 *   I/O thread     client_offload ──► the request goes back to the head of its queue ──► others
 *                       │                                                                run
 *   search thread       └──► fn(copy of the client) replies into a buffer of the job's own ──┐
 *                                                                                            │
 *   I/O thread     settle: shard's lock, gate, reply into the connection's buffer ◄── inbox ─┘
 *
 * Who owns what. The job is the pool's until it ran, then the post's, then the I/O thread's.
 * Meanwhile the request (argv, arena, vectors) belongs to the connection's queue, where nobody
 * touches its contents while the job runs: it is the head, and the head is not run again until
 * the job is back. A connection that closes leaves the request to the job (offload_forget), and
 * the way back frees both. When the worker has gone as well (net_close) the search thread does.
 * So fn never sees the connection, which its I/O thread reads, writes and frees as it likes:
 * it has a copy of what a command may look at.
 *
 * When to hand over. It costs two changes of thread, and what is gained is the time of others.
 * So a search runs in place unless somebody else would wait for it: another connection is ready
 * now, has searches out, or had its turn a moment ago. The last is what finds out about clients
 * that send the next request when they have read the reply: each is alone whenever it comes,
 * because the others wait for this very thread. Rejected: always handing over, which makes the
 * searches of a lone client slower by the two changes; only looking at what is ready now, which
 * keeps two such clients on one thread for ever.
 *
 * The gate. A search that left the shard sees changes that were made meanwhile, also those of a
 * command that is still inside the shard: they have no place in the log yet, so no look at the
 * newest index, however late, covers them. Therefore the index is read with the shard's lock,
 * after the search: whoever made what it saw has left the shard by then, and appended. A search
 * in place does the same (dispatch_in_shard). */
#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"
#include "server/config.h"
#include "server/net_private.h"
#include "server/search_pool.h"
#include "server/server.h"

enum { OTHERS_US = 10000 }; /* how long ago a moment ago is */

struct offload {
    struct search_job job; /* first */
    struct post post;
    struct worker *worker;
    struct connection *conn; /* NULL when it has gone; the I/O thread's */
    struct request *request;
    bool done; /* the I/O thread's */
    void (*fn)(struct client *c, void *arg);
    void *arg;
    struct client client;
    struct buf out;
    int64_t before_us, ran_us; /* what the command took before, and fn */
};

/* --- on a search thread --- */

static void offload_free(struct offload *o)
{
    buf_deinit(&o->out);
    mem_free(o);
}

static void run_job(struct search_job *self)
{
    struct offload *o = (struct offload *)self;
    int64_t start_us = clock_mono_us();
    o->fn(&o->client, o->arg);
    o->ran_us = clock_mono_us() - start_us;
    if (worker_post_node(o->worker, &o->post))
        return;
    dispatch_request_free(o->request);
    offload_free(o);
}

/* --- on the I/O thread --- */

static void on_ran(struct worker *w, struct post *self)
{
    struct offload *o = (struct offload *)((char *)self - offsetof(struct offload, post));
    w->n_offloaded--;
    o->done = true;
    if (o->conn) {
        worker_mark_resume(o->conn);
        return;
    }
    dispatch_request_free(o->request);
    offload_free(o);
}

static bool others_wait(const struct connection *conn)
{
    const struct worker *w = conn->client.worker;
    return w->n_offloaded > 0 || w->now_us - w->other_turn_us < OTHERS_US ||
           event_base_get_num_events(w->base, EVENT_BASE_COUNT_ACTIVE) > 0;
}

static enum command_result run_here(struct client *c, void (*fn)(struct client *c, void *arg),
                                    void *arg)
{
    worker_leave_shard(c);
    fn(c, arg);
    return COMMAND_DONE;
}

static enum command_result hand_over(struct client *c, void (*fn)(struct client *c, void *arg),
                                     void *arg, bool is_long)
{
    struct connection *conn = connection_of(c);
    struct worker *w = c->worker;
    struct offload *o = NULL;
    bool single = atomic_load(&c->server->config->vset_force_single_threaded) != 0;
    if (w->net->searches && !c->in_exec && !single)
        o = mem_calloc(1, sizeof *o);
    if (!o)
        return run_here(c, fn, arg);
    o->job.run = run_job;
    o->job.is_long = is_long;
    o->post.fn = on_ran;
    o->worker = w;
    o->conn = conn;
    o->request = conn->running;
    o->fn = fn;
    o->arg = arg;
    buf_init(&o->out);
    o->client = *c;
    o->client.worker = NULL;
    o->client.out.to = &o->out;
    conn->running->offload = o;
    w->n_offloaded++;
    atomic_fetch_add_explicit(&w->counters.offloaded, 1, memory_order_relaxed);
    int64_t now_us = clock_mono_us();
    o->before_us = now_us - w->now_us;
    w->now_us = now_us;
    worker_leave_shard(c); /* who waits for it need not wait for the rest of the batch */
    search_pool_put(w->net->searches, &o->job);
    return COMMAND_OFFLOADED;
}

enum command_result client_offload(struct client *c, void (*fn)(struct client *c, void *arg),
                                   void *arg)
{
    if (c->in_exec || !others_wait(connection_of(c)))
        return run_here(c, fn, arg);
    return hand_over(c, fn, arg, false);
}

enum command_result client_offload_long(struct client *c,
                                        void (*fn)(struct client *c, void *arg), void *arg)
{
    return hand_over(c, fn, arg, true);
}

bool offload_done(const struct offload *o)
{
    return o->done;
}

int64_t offload_settle(struct connection *conn, struct request *q)
{
    struct offload *o = q->offload;
    struct client *c = &conn->client;
    q->offload = NULL;
    memcpy(c->note, o->client.note, sizeof c->note);
    buf_append(&conn->out, o->out.data, o->out.len);
    conn->out.failed |= o->out.failed;
    int64_t took_us = o->before_us + o->ran_us;
    offload_free(o);
    return took_us;
}

bool offload_forget(struct request *q)
{
    struct offload *o = q->offload;
    if (o && !o->done) {
        o->conn = NULL;
        return true;
    }
    if (o)
        offload_free(o);
    q->offload = NULL;
    return false;
}

void client_note(struct client *c, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(c->note, sizeof c->note, format, ap);
    va_end(ap);
}
