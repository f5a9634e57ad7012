/* A connection: its life, its reading, its writing. Which replies may leave is gate.h's.
 *
 * What a slow reader leaves unread is bounded by client-output-buffer-limit: past it the client
 * is closed. Its requests are read on until then, as in Redis: client libraries send a whole
 * pipeline before they read the first reply, and a server that stopped reading would wait for
 * ever. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/config.h"
#include "server/monitor.h"
#include "server/net_private.h"
#include "server/server.h"
#include "server/shard.h"

enum {
    OUT_COMPACT_BYTES = 64 * 1024, /* sent bytes at the front before the rest is moved */
    IDLE_TRIM_US = 2 * 1000 * 1000,
    LAST_WORDS_US = 10 * 1000 * 1000 /* for a client that leaves to read what it asked for */
};

static _Atomic uint64_t next_client_id = 1;

/* --- opening and closing --- */

static void address_text(const struct sockaddr_storage *a, char out[CLIENT_ADDRESS_BYTES])
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)a;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        snprintf(out, CLIENT_ADDRESS_BYTES, "%s:%u", host, ntohs(in->sin_port));
    } else if (a->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)a;
        inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
        snprintf(out, CLIENT_ADDRESS_BYTES, "[%s]:%u", host, ntohs(in->sin6_port));
    } else {
        snprintf(out, CLIENT_ADDRESS_BYTES, "?:0");
    }
}

static void name_ends(struct connection *conn)
{
    if (conn->is_unix) {
        const char *path = conn->client.worker->net->unix_path;
        snprintf(conn->peer, sizeof conn->peer, "%.120s:0", path ? path : "");
        memcpy(conn->local, conn->peer, sizeof conn->local);
        return;
    }
    struct sockaddr_storage a = {0};
    socklen_t n = sizeof a;
    getpeername(conn->fd, (struct sockaddr *)&a, &n);
    address_text(&a, conn->peer);
    n = sizeof a;
    getsockname(conn->fd, (struct sockaddr *)&a, &n);
    address_text(&a, conn->local);
}

static void set_socket_options(struct connection *conn)
{
    if (conn->is_unix)
        return;
    int on = 1;
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    int idle = (int)atomic_load(&conn->client.server->config->tcp_keepalive_s);
    if (idle <= 0)
        return;
    int interval = idle / 3 > 0 ? idle / 3 : 1, probes = 3;
    setsockopt(conn->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(conn->fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(conn->fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(conn->fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

static void on_readable(evutil_socket_t fd, short what, void *arg);
static void on_writable(evutil_socket_t fd, short what, void *arg);

void connection_open(struct worker *w, int fd, bool is_unix)
{
    struct connection *conn = w->draining ? NULL : mem_calloc(1, sizeof *conn);
    if (!conn) {
        close(fd);
        atomic_fetch_sub(&w->net->n_clients, 1);
        return;
    }
    conn->client.id = atomic_fetch_add(&next_client_id, 1);
    conn->client.worker = w;
    conn->client.server = w->server;
    buf_init(&conn->out);
    conn->client.out = (struct resp_out){.to = &conn->out, .proto = 2};
    conn->fd = fd;
    conn->is_unix = is_unix;
    conn->authenticated = !auth_required(w->server);
    STAILQ_INIT(&conn->queue);
    STAILQ_INIT(&conn->multi);
    conn->created_us = clock_mono_us();
    atomic_store(&conn->shown.active_us, conn->created_us);
    set_socket_options(conn);
    name_ends(conn);
    event_assign(&conn->read_event, w->base, fd, EV_READ | EV_PERSIST, on_readable, conn);
    event_assign(&conn->write_event, w->base, fd, EV_WRITE | EV_PERSIST, on_writable, conn);
    connection_publish(conn);
    pthread_mutex_lock(&w->clients_lock);
    TAILQ_INSERT_TAIL(&w->clients, conn, in_clients);
    w->n_clients++;
    pthread_mutex_unlock(&w->clients_lock);
    LIST_INSERT_HEAD(&w->buckets[conn->client.id % CLIENT_BUCKETS], conn, in_bucket);
    connection_want_read(conn, true);
}

/* Leaves every list at once; the struct itself stays until the round is over, for whoever is
 * still walking. */
void connection_close(struct connection *conn)
{
    if (conn->closed)
        return;
    struct worker *w = conn->client.worker;
    conn->closed = true;
    if (conn->reading)
        event_del(&conn->read_event);
    if (conn->writing)
        event_del(&conn->write_event);
    conn->reading = conn->writing = false;
    if (conn->monitor)
        monitor_stop(&conn->client);
    if (conn->blocked) {
        conn->blocked = false;
        atomic_fetch_sub(&w->counters.blocked, 1);
    }
    if (conn->is_dirty)
        TAILQ_REMOVE(&w->dirty, conn, in_dirty);
    if (conn->is_resume)
        TAILQ_REMOVE(&w->resume, conn, in_resume);
    if (conn->is_gated)
        TAILQ_REMOVE(&w->gated, conn, in_gated);
    conn->is_dirty = conn->is_resume = conn->is_gated = false;
    LIST_REMOVE(conn, in_bucket);
    pthread_mutex_lock(&w->clients_lock);
    TAILQ_REMOVE(&w->clients, conn, in_clients);
    w->n_clients--;
    pthread_mutex_unlock(&w->clients_lock);
    close(conn->fd);
    atomic_fetch_sub(&w->net->n_clients, 1);
    SLIST_INSERT_HEAD(&w->dead, conn, in_dead);
}

void connection_free(struct connection *conn)
{
    dispatch_forget(conn);
    transaction_discard(conn);
    resp_reader_free(conn->reader);
    buf_deinit(&conn->out);
    gate_deinit(&conn->gate);
    mem_free(conn->name);
    mem_free(conn->lib_name);
    mem_free(conn->lib_ver);
    mem_free(conn);
}

static void close_because(struct connection *conn, const char *why)
{
    log_notice("closing client %s: %s", conn->peer, why);
    connection_close(conn);
}

void connection_close_after_reply(struct connection *conn)
{
    if (!conn->close_after_reply) {
        conn->close_after_reply = true;
        conn->close_by_us = clock_mono_us() + LAST_WORDS_US;
        connection_want_read(conn, false);
    }
    worker_mark_dirty(conn);
}

bool connection_settled(const struct connection *conn)
{
    bool nothing_to_run = conn->close_after_reply || STAILQ_EMPTY(&conn->queue);
    return nothing_to_run && !conn->is_resume && conn->out_sent == conn->out.len;
}

void connection_block(struct connection *conn)
{
    if (conn->blocked)
        return;
    conn->blocked = true;
    atomic_fetch_add(&conn->client.worker->counters.blocked, 1);
}

void connection_unblock(struct connection *conn)
{
    if (!conn->blocked)
        return;
    conn->blocked = false;
    atomic_fetch_sub(&conn->client.worker->counters.blocked, 1);
    worker_mark_resume(conn);
}

/* --- reading --- */

void connection_want_read(struct connection *conn, bool want)
{
    want = want && !conn->closed && !conn->at_eof && !conn->close_after_reply &&
           !conn->client.worker->draining;
    if (want == conn->reading)
        return;
    conn->reading = want;
    if (want)
        event_add(&conn->read_event, NULL);
    else
        event_del(&conn->read_event);
}

void connection_end_input(struct connection *conn)
{
    conn->at_eof = true;
    conn->close_by_us = clock_mono_us() + LAST_WORDS_US;
    connection_want_read(conn, false);
}

/* The peer has sent all it will. What it asked for is still answered: a shell pipe into nc
 * closes its side before the log has released the reply. */
static void on_eof(struct connection *conn)
{
    connection_end_input(conn);
    if (conn->monitor || connection_settled(conn))
        connection_close(conn);
    else
        worker_mark_dirty(conn);
}

/* One read; false when there is no more for now, or the connection is closed. */
static bool read_some(struct connection *conn)
{
    struct worker *w = conn->client.worker;
    if (!conn->reader && !(conn->reader = resp_reader_new())) {
        close_because(conn, "out of memory for its reader");
        return false;
    }
    size_t want = resp_reader_wanted(conn->reader) > READ_BYTES ? READ_BYTES_LARGE : READ_BYTES;
    ssize_t n = recv(conn->fd, w->read_buffer, want, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n < 0) {
        connection_close(conn);
        return false;
    }
    if (n == 0) {
        on_eof(conn);
        return false;
    }
    atomic_fetch_add_explicit(&w->counters.bytes_in, (uint64_t)n, memory_order_relaxed);
    atomic_fetch_add_explicit(&conn->shown.bytes_in, (uint64_t)n, memory_order_relaxed);
    if (resp_reader_feed(conn->reader, w->read_buffer, (size_t)n)) {
        close_because(conn, "out of memory for its query buffer");
        return false;
    }
    dispatch_run(conn);
    return (size_t)n == want && conn->reading && !conn->is_resume;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct connection *conn = arg;
    conn->client.worker->stirred = true;
    for (int i = 0; i < READS_A_ROUND; i++) {
        if (!read_some(conn))
            return;
    }
}

/* --- the gate --- */

void connection_batch_begin(struct connection *conn)
{
    conn->batch_gate = 0;
    conn->batch_start = conn->out.len;
}

void connection_batch_end(struct connection *conn)
{
    worker_give_shard(conn->client.worker);
    bool shows_something = conn->batch_gate && conn->out.len > conn->batch_start;
    if (shows_something && conn->batch_gate > shard_released(conn->client.server->shard) &&
        !gate_close(&conn->gate, conn->batch_start, conn->batch_gate))
        close_because(conn, "out of memory for its gate");
    if (!conn->closed) {
        connection_publish(conn);
        worker_mark_dirty(conn);
    }
}

/* --- writing --- */

static void want_write(struct connection *conn, bool want)
{
    if (want == conn->writing)
        return;
    conn->writing = want;
    if (want)
        event_add(&conn->write_event, NULL);
    else
        event_del(&conn->write_event);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    worker_mark_dirty(arg);
}

/* Drops the sent part of the buffer: all of it, or the front when it has grown long. */
static void compact_out(struct connection *conn)
{
    if (conn->out_sent == conn->out.len) {
        buf_clear(&conn->out);
        conn->out_sent = 0;
        return;
    }
    if (conn->out_sent < OUT_COMPACT_BYTES || conn->out_sent < conn->out.len / 2)
        return;
    buf_consume(&conn->out, conn->out_sent);
    gate_consume(&conn->gate, conn->out_sent);
    conn->out_sent = 0;
}

/* False when the connection broke. */
static bool send_up_to(struct connection *conn, size_t limit)
{
    while (conn->out_sent < limit) {
        ssize_t n = send(conn->fd, conn->out.data + conn->out_sent, limit - conn->out_sent,
                         MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN;
        conn->out_sent += (size_t)n;
        atomic_fetch_add_explicit(&conn->client.worker->counters.bytes_out, (uint64_t)n,
                                  memory_order_relaxed);
        atomic_fetch_add_explicit(&conn->shown.bytes_out, (uint64_t)n, memory_order_relaxed);
    }
    return true;
}

void connection_flush(struct connection *conn)
{
    struct worker *w = conn->client.worker;
    if (conn->closed)
        return;
    if (conn->out.failed) {
        close_because(conn, "out of memory for its replies");
        return;
    }
    size_t limit = conn->out.len;
    if (!gate_is_open(&conn->gate))
        limit = gate_open(&conn->gate, shard_released(w->server->shard), limit);
    if (!send_up_to(conn, limit)) {
        connection_close(conn);
        return;
    }
    want_write(conn, conn->out_sent < limit);
    compact_out(conn);
    atomic_store_explicit(&conn->shown.out_bytes, conn->out.len - conn->out_sent,
                          memory_order_relaxed);
    if ((conn->close_after_reply || conn->at_eof) && connection_settled(conn)) {
        connection_close(conn);
        return;
    }
    int64_t max = atomic_load(&conn->client.server->config->client_output_buffer_limit);
    if (max > 0 && conn->out.len - conn->out_sent > (size_t)max) {
        close_because(conn, "it left more than client-output-buffer-limit unread");
        return;
    }
    bool gated = !gate_is_open(&conn->gate) && !conn->writing;
    if (gated && !conn->is_gated)
        TAILQ_INSERT_TAIL(&w->gated, conn, in_gated);
    else if (!gated && conn->is_gated)
        TAILQ_REMOVE(&w->gated, conn, in_gated);
    conn->is_gated = gated;
}

/* --- now and then --- */

/* Gives back the memory of a connection that has been quiet for a while. */
static void trim(struct connection *conn)
{
    if (conn->reader && !conn->partial && resp_reader_idle(conn->reader)) {
        resp_reader_free(conn->reader);
        conn->reader = NULL;
    }
    if (conn->out.len == 0)
        buf_deinit(&conn->out);
}

void connection_sweep(struct connection *conn, int64_t now_us)
{
    bool running = !conn->close_after_reply && !STAILQ_EMPTY(&conn->queue);
    if (conn->at_eof && running)
        conn->close_by_us = now_us + LAST_WORDS_US;
    if ((conn->at_eof || conn->close_after_reply) && now_us >= conn->close_by_us) {
        connection_close(conn);
        return;
    }
    int64_t idle_us = now_us - atomic_load(&conn->shown.active_us);
    int64_t timeout_s = atomic_load(&conn->client.server->config->timeout_s);
    bool busy = conn->blocked || conn->monitor || !STAILQ_EMPTY(&conn->queue);
    if (timeout_s > 0 && !busy && idle_us > timeout_s * 1000000)
        close_because(conn, "idle for longer than timeout");
    else if (idle_us > IDLE_TRIM_US)
        trim(conn);
}

static unsigned shown_flags(const struct connection *conn)
{
    unsigned f = 0;
    f |= conn->in_multi ? SHOWN_MULTI : 0u;
    f |= conn->multi_failed ? SHOWN_DIRTY : 0u;
    f |= conn->blocked ? SHOWN_BLOCKED : 0u;
    f |= conn->monitor ? SHOWN_MONITOR : 0u;
    f |= conn->no_evict ? SHOWN_NO_EVICT : 0u;
    f |= conn->no_touch ? SHOWN_NO_TOUCH : 0u;
    f |= conn->close_after_reply ? SHOWN_CLOSING : 0u;
    f |= conn->writing ? SHOWN_WRITING : 0u;
    return f;
}

void connection_publish(struct connection *conn)
{
    struct connection_shown *s = &conn->shown;
#define SHOW(field, value) atomic_store_explicit(&s->field, (value), memory_order_relaxed)
    SHOW(command, conn->client.command);
    SHOW(buffered, conn->reader ? resp_reader_buffered(conn->reader) : 0);
    SHOW(spare, conn->reader ? resp_reader_spare(conn->reader) : 0);
    SHOW(argv_bytes, conn->queued_bytes + (conn->partial ? conn->partial->parsed.bytes : 0));
    SHOW(multi_bytes, conn->multi_bytes);
    SHOW(out_bytes, conn->out.len - conn->out_sent);
    SHOW(n_multi, conn->in_multi ? (int)conn->n_multi : -1);
    SHOW(n_watched, conn->n_watched);
    SHOW(db, (int)conn->client.db);
    SHOW(proto, conn->client.out.proto);
    SHOW(flags, shown_flags(conn));
#undef SHOW
}
