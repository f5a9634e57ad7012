#include "server/monitor.h"

#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "server/net_private.h"

enum { PENDING_MAX_BYTES = 16 * 1024 * 1024 };

void monitor_start(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (conn->monitor)
        return;
    conn->monitor = true;
    atomic_fetch_add(&c->worker->monitors.n, 1);
    atomic_fetch_add(&c->worker->net->n_monitors, 1);
}

void monitor_stop(struct client *c)
{
    struct connection *conn = connection_of(c);
    if (!conn->monitor)
        return;
    conn->monitor = false;
    atomic_fetch_sub(&c->worker->monitors.n, 1);
    atomic_fetch_sub(&c->worker->net->n_monitors, 1);
}

/* An argument in quotes, as MONITOR shows it: what is not printable as an escape. */
static void append_quoted(struct buf *out, struct slice s)
{
    buf_append(out, " \"", 2);
    for (size_t i = 0; i < s.n; i++) {
        unsigned char byte = (unsigned char)s.p[i];
        static const char from[] = "\\\"\n\r\t\a\b", to[] = "\\\"nrtab";
        const char *at = byte ? strchr(from, byte) : NULL;
        if (at)
            buf_append(out, (char[]){'\\', to[at - from]}, 2);
        else if (byte >= ' ' && byte <= '~')
            buf_append(out, &s.p[i], 1);
        else
            buf_printf(out, "\\x%02x", byte);
    }
    buf_append(out, "\"", 1);
}

static void append_feed(struct buf *out, const struct client *c)
{
    const struct connection *conn = (const struct connection *)c;
    int64_t now_us = clock_wall_us();
    buf_printf(out, "+%" PRId64 ".%06" PRId64 " [%u %s%s]", now_us / 1000000, now_us % 1000000,
               c->db, conn->is_unix ? "unix:" : "", conn->peer);
    for (int i = 0; i < c->argc; i++)
        append_quoted(out, c->argv[i]);
    buf_append(out, "\r\n", 2);
}

void monitor_feed(struct client *c)
{
    struct net *n = c->worker->net;
    if (atomic_load_explicit(&n->n_monitors, memory_order_relaxed) == 0)
        return;
    for (unsigned i = 0; i < n->n_workers; i++) {
        struct worker *w = &n->workers[i];
        if (atomic_load(&w->monitors.n) == 0)
            continue;
        pthread_mutex_lock(&w->monitors.lock);
        bool was_empty = w->monitors.pending.len == 0;
        if (w->monitors.pending.len <= PENDING_MAX_BYTES)
            append_feed(&w->monitors.pending, c);
        pthread_mutex_unlock(&w->monitors.lock);
        if (was_empty && w != c->worker)
            worker_wake(w);
    }
}

void monitor_deliver(struct worker *w)
{
    if (atomic_load_explicit(&w->net->n_monitors, memory_order_relaxed) == 0)
        return;
    pthread_mutex_lock(&w->monitors.lock);
    struct buf lines = w->monitors.pending;
    buf_init(&w->monitors.pending);
    pthread_mutex_unlock(&w->monitors.lock);
    bool lost = lines.failed || lines.len > PENDING_MAX_BYTES;
    struct connection *conn, *next;
    for (conn = TAILQ_FIRST(&w->clients); lines.len && conn; conn = next) {
        next = TAILQ_NEXT(conn, in_clients);
        if (!conn->monitor)
            continue;
        if (lost) {
            connection_close(conn);
            continue;
        }
        buf_append(&conn->out, lines.data, lines.len);
        worker_mark_dirty(conn);
    }
    buf_deinit(&lines);
}
