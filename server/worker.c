/* A worker: one thread, one event loop, its connections, one round after the other.
 *
 *   wait for events ──► read, parse, run ──► run who was woken ──► flush the log once ──► write
 *        ▲                (callbacks)          (resume list)        (if anything wrote) (dirty
 * list) └──────────────────────────────────────────────────────────────────────────────────┘
 *
 * Replies are written at the end of a round and not in the callbacks, so that one flush of the
 * log serves all connections of the round. With appendfsync everysec or no the flush opens
 * their gates and the replies leave in the same round; with always they go to the gated list,
 * and the log's thread wakes the worker when it has released more (net_released).
 *
 * The libevent base is used by its thread alone and therefore has no locks. The one door for
 * other threads is the inbox with its eventfd. A worker may be gone when someone posts to it
 * (the engine answers late, a checkpoint ends after the network closed): net.c keeps the list
 * of live workers, and a post to one that is not there fails.
 *
 * The shard's lock is taken at the first command of a batch that touches data and given back at
 * the end of the batch. Never is it held while the loop waits, flushes the log or writes to
 * sockets. */

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/log.h"
#include "server/config.h"
#include "server/monitor.h"
#include "server/net_private.h"
#include "server/search_pool.h"
#include "server/server.h"
#include "server/shard.h"

enum { TICKS_A_SWEEP = 1000 / TICK_MS };

/* --- the inbox --- */

static void signal_locked(struct worker *w)
{
    if (w->inbox_signalled)
        return;
    w->inbox_signalled = true;
    uint64_t one = 1;
    /* It can only fail when the counter is full, and then the worker is awake anyway. */
    ssize_t n = write(w->wake_fd, &one, sizeof one);
    (void)n;
}

void worker_wake(struct worker *w)
{
    pthread_mutex_lock(&w->inbox_lock);
    signal_locked(w);
    pthread_mutex_unlock(&w->inbox_lock);
}

static void push(struct worker *w, void *arg)
{
    struct post *p = arg;
    p->next = NULL;
    pthread_mutex_lock(&w->inbox_lock);
    *w->inbox_tail = p;
    w->inbox_tail = &p->next;
    signal_locked(w);
    pthread_mutex_unlock(&w->inbox_lock);
}

bool worker_post_node(struct worker *w, struct post *p)
{
    return net_with_live_worker(w, push, p);
}

struct call {
    struct post post; /* first */
    void (*fn)(void *arg);
    void *arg;
};

static void run_call(struct worker *w, struct post *self)
{
    (void)w;
    struct call *call = (struct call *)self;
    call->fn(call->arg);
    mem_free(call);
}

bool worker_post(struct worker *w, void (*fn)(void *arg), void *arg)
{
    struct call *call = mem_alloc(sizeof *call);
    if (!call)
        return false;
    *call = (struct call){.post.fn = run_call, .fn = fn, .arg = arg};
    if (worker_post_node(w, &call->post))
        return true;
    mem_free(call);
    return false;
}

static void drain_inbox(struct worker *w)
{
    pthread_mutex_lock(&w->inbox_lock);
    struct post *p = w->inbox;
    w->inbox = NULL;
    w->inbox_tail = &w->inbox;
    w->inbox_signalled = false;
    pthread_mutex_unlock(&w->inbox_lock);
    w->posted = w->posted || p;
    while (p) {
        struct post *next = p->next;
        p->fn(w, p);
        p = next;
    }
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    struct worker *w = arg;
    w->stirred = true;
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof count);
    (void)n;
    if (atomic_exchange(&w->wake_all_blocked, false)) {
        struct connection *conn;
        TAILQ_FOREACH(conn, &w->clients, in_clients)
        {
            if (conn->blocked)
                connection_unblock(conn);
        }
    }
    drain_inbox(w);
}

/* --- small things of the round --- */

struct connection *worker_find(struct worker *w, uint64_t id)
{
    struct connection *conn;
    LIST_FOREACH(conn, &w->buckets[id % CLIENT_BUCKETS], in_bucket)
    {
        if (conn->client.id == id)
            return conn;
    }
    return NULL;
}

void worker_take_shard(struct worker *w)
{
    if (w->shard_held)
        return;
    shard_lock(w->server->shard);
    w->shard_held = true;
}

void worker_give_shard(struct worker *w)
{
    if (!w->shard_held)
        return;
    w->shard_held = false;
    shard_unlock(w->server->shard);
}

void worker_leave_shard(struct client *c)
{
    if (!c->in_exec)
        worker_give_shard(c->worker);
}

void worker_mark_dirty(struct connection *conn)
{
    if (conn->is_dirty || conn->closed)
        return;
    conn->is_dirty = true;
    TAILQ_INSERT_TAIL(&conn->client.worker->dirty, conn, in_dirty);
}

void worker_mark_resume(struct connection *conn)
{
    if (conn->is_resume || conn->closed)
        return;
    conn->is_resume = true;
    TAILQ_INSERT_TAIL(&conn->client.worker->resume, conn, in_resume);
}

struct request *worker_request_take(struct worker *w)
{
    struct request *q = STAILQ_FIRST(&w->pool);
    if (q) {
        STAILQ_REMOVE_HEAD(&w->pool, next);
        w->n_pool--;
        return q;
    }
    q = mem_calloc(1, sizeof *q);
    if (q)
        resp_request_init(&q->parsed);
    return q;
}

void worker_request_give(struct worker *w, struct request *q)
{
    if (w->n_pool >= REQUEST_POOL_MAX) {
        resp_request_deinit(&q->parsed);
        mem_free(q);
        return;
    }
    resp_request_reset(&q->parsed);
    STAILQ_INSERT_HEAD(&w->pool, q, next);
    w->n_pool++;
}

/* --- the round --- */

/* Each that is on the list now, once: who is put back waits for the next round. */
static void run_resumed(struct worker *w)
{
    struct connection *conn, *last = TAILQ_LAST(&w->resume, connection_list);
    while ((conn = TAILQ_FIRST(&w->resume))) {
        bool done = conn == last;
        TAILQ_REMOVE(&w->resume, conn, in_resume);
        conn->is_resume = false;
        dispatch_run(conn);
        if (done)
            return;
    }
}

static void flush_dirty(struct worker *w)
{
    struct connection *conn;
    while ((conn = TAILQ_FIRST(&w->dirty))) {
        TAILQ_REMOVE(&w->dirty, conn, in_dirty);
        conn->is_dirty = false;
        connection_flush(conn);
    }
}

/* Writes what the log has released meanwhile. The flag is raised before the log is looked at
 * once more: a release after that look finds it and wakes us, one before is seen by the look.
 */
static void flush_gated(struct worker *w)
{
    while (!TAILQ_EMPTY(&w->gated)) {
        atomic_store(&w->waits_for_release, true);
        uint64_t released = shard_released(w->server->shard);
        bool opened = false;
        struct connection *conn, *next;
        for (conn = TAILQ_FIRST(&w->gated); conn; conn = next) {
            next = TAILQ_NEXT(conn, in_gated);
            if (gate_next(&conn->gate) <= released) {
                opened = true;
                TAILQ_REMOVE(&w->gated, conn, in_gated);
                conn->is_gated = false;
                worker_mark_dirty(conn);
            }
        }
        if (!opened)
            return;
        flush_dirty(w);
    }
    atomic_store_explicit(&w->waits_for_release, false, memory_order_relaxed);
}

static void free_dead(struct worker *w)
{
    struct connection *conn;
    while ((conn = SLIST_FIRST(&w->dead))) {
        SLIST_REMOVE_HEAD(&w->dead, in_dead);
        connection_free(conn);
    }
}

static void finish_round(struct worker *w)
{
    worker_give_shard(w);
    if (w->wrote) {
        w->wrote = false;
        shard_flush(w->server->shard);
    }
    monitor_deliver(w);
    flush_dirty(w);
    flush_gated(w);
    free_dead(w);
}

static void close_settled(struct worker *w)
{
    struct connection *conn, *next;
    bool late = clock_mono_us() >= w->drain_until_us;
    for (conn = TAILQ_FIRST(&w->clients); conn; conn = next) {
        next = TAILQ_NEXT(conn, in_clients);
        if (late || connection_settled(conn))
            connection_close(conn);
    }
    w->finished = TAILQ_EMPTY(&w->clients);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct worker *w = arg;
    int64_t now_us = clock_mono_us();
    if (w->number == 0) {
        shard_tick(w->server->shard);
        net_sample_rate(w->net, now_us);
        net_accept_resume(w->net);
        epoch_collect();
    }
    if (++w->n_ticks % TICKS_A_SWEEP)
        return;
    struct connection *conn, *next;
    for (conn = TAILQ_FIRST(&w->clients); conn; conn = next) {
        next = TAILQ_NEXT(conn, in_clients);
        connection_sweep(conn, now_us);
    }
}

static bool has_work(const struct worker *w)
{
    return !TAILQ_EMPTY(&w->resume) || !TAILQ_EMPTY(&w->dirty);
}

static void count_one(_Atomic uint64_t *n)
{
    atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
}

/* A thread that sleeps is on its way again only some twenty microseconds after the next request
 * came, because its processor sleeps as well. A client that asks again as soon as it has the
 * reply is faster than that, so after a round in which something came the worker looks for a
 * while (busy-poll-us) before it sleeps. Not while a client waits for another thread, which
 * needs the processor: who was handed a text often runs next where we do. And not after another
 * thread's answer, for the same holds of the client, which saw the processors taken meanwhile.
 * True when something came. */
static bool poll_for_events(struct worker *w)
{
    int64_t for_us = atomic_load(&w->server->config->busy_poll_us);
    bool waits = w->n_offloaded > 0 ||
                 atomic_load_explicit(&w->counters.blocked, memory_order_relaxed) > 0;
    if (!w->stirred || w->posted || w->alone || waits || for_us == 0)
        return false;
    int64_t until_us = clock_mono_us() + for_us;
    w->stirred = false;
    do
        event_base_loop(w->base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    while (!w->stirred && !has_work(w) && clock_mono_us() < until_us);
    count_one(w->stirred ? &w->counters.polls : &w->counters.polls_in_vain);
    return w->stirred;
}

static void wait_for_events(struct worker *w)
{
    if (!has_work(w) && poll_for_events(w))
        return;
    w->stirred = w->posted = false;
    event_base_loop(w->base, EVLOOP_ONCE | (has_work(w) ? EVLOOP_NONBLOCK : 0));
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    while (!w->finished) {
        wait_for_events(w);
        run_resumed(w);
        finish_round(w);
        if (w->n_offloaded > 0)
            search_pool_help(w->net->searches); /* its end comes through the inbox */
        if (w->draining)
            close_settled(w);
    }
    free_dead(w);
    return NULL;
}

/* --- life --- */

static int new_base(struct worker *w, struct err *e)
{
    struct event_config *config = event_config_new();
    if (!config)
        return err_set(e, KITH_ENOMEM, "out of memory for an event loop");
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    w->base = event_base_new_with_config(config);
    event_config_free(config);
    return w->base ? 0 : err_set(e, KITH_ENOMEM, "cannot make an event loop");
}

int worker_init(struct worker *w, struct net *net, unsigned number, struct err *e)
{
    memset(w, 0, sizeof *w);
    w->net = net;
    w->server = net->server;
    w->number = number;
    w->alone = sysconf(_SC_NPROCESSORS_ONLN) == 1;
    w->inbox_tail = &w->inbox;
    pthread_mutex_init(&w->inbox_lock, NULL);
    pthread_mutex_init(&w->clients_lock, NULL);
    pthread_mutex_init(&w->monitors.lock, NULL);
    buf_init(&w->monitors.pending);
    TAILQ_INIT(&w->clients);
    TAILQ_INIT(&w->dirty);
    TAILQ_INIT(&w->resume);
    TAILQ_INIT(&w->gated);
    STAILQ_INIT(&w->pool);
    SLIST_INIT(&w->dead);
    w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->wake_fd < 0)
        return err_set_errno(e, errno, "cannot make an eventfd");
    w->read_buffer = mem_alloc(READ_BYTES_LARGE);
    if (!w->read_buffer)
        return err_set(e, KITH_ENOMEM, "out of memory for a read buffer");
    int rc = new_base(w, e);
    if (rc)
        return rc;
    w->wake_event = event_new(w->base, w->wake_fd, EV_READ | EV_PERSIST, on_wake, w);
    w->tick_event = event_new(w->base, -1, EV_PERSIST, on_tick, w);
    struct timeval every = {.tv_usec = TICK_MS * 1000};
    if (!w->wake_event || !w->tick_event || event_add(w->wake_event, NULL) ||
        event_add(w->tick_event, &every))
        return err_set(e, KITH_ENOMEM, "out of memory for events");
    return 0;
}

int worker_start(struct worker *w, struct err *e)
{
    int rc = pthread_create(&w->thread, NULL, worker_main, w);
    if (rc)
        return err_set_errno(e, rc, "cannot start an I/O thread");
    w->running = true;
    return 0;
}

void worker_deinit(struct worker *w)
{
    drain_inbox(w);
    struct connection *conn;
    while ((conn = TAILQ_FIRST(&w->clients)))
        connection_close(conn);
    free_dead(w);
    struct request *q;
    while ((q = STAILQ_FIRST(&w->pool))) {
        STAILQ_REMOVE_HEAD(&w->pool, next);
        resp_request_deinit(&q->parsed);
        mem_free(q);
    }
    if (w->wake_event)
        event_free(w->wake_event);
    if (w->tick_event)
        event_free(w->tick_event);
    if (w->base)
        event_base_free(w->base);
    if (w->wake_fd >= 0)
        close(w->wake_fd);
    mem_free(w->read_buffer);
    pthread_mutex_destroy(&w->inbox_lock);
    pthread_mutex_destroy(&w->clients_lock);
    pthread_mutex_destroy(&w->monitors.lock);
    buf_deinit(&w->monitors.pending);
}
