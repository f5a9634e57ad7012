#include "server/net.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/config.h"
#include "server/net_private.h"
#include "server/search_pool.h"
#include "server/server.h"

enum { ACCEPTS_A_ROUND = 128, ADDRESSES_MAX = 16, LISTENERS_MAX = 2 * ADDRESSES_MAX + 1 };

/* The nets that are open, so that a late wake or answer finds its worker gone and not freed. */
static pthread_mutex_t live_lock = PTHREAD_MUTEX_INITIALIZER;
static struct net *live_nets;

static void live_add(struct net *n)
{
    pthread_mutex_lock(&live_lock);
    n->next_live = live_nets;
    live_nets = n;
    pthread_mutex_unlock(&live_lock);
}

static void live_remove(struct net *n)
{
    pthread_mutex_lock(&live_lock);
    for (struct net **at = &live_nets; *at; at = &(*at)->next_live) {
        if (*at == n) {
            *at = n->next_live;
            break;
        }
    }
    pthread_mutex_unlock(&live_lock);
}

bool net_with_live_worker(const struct worker *w, void (*fn)(struct worker *w, void *arg),
                          void *arg)
{
    bool found = false;
    pthread_mutex_lock(&live_lock);
    for (struct net *n = live_nets; n && !found; n = n->next_live) {
        for (unsigned i = 0; i < n->n_workers && !found; i++) {
            if (&n->workers[i] == w) {
                fn(&n->workers[i], arg);
                found = true;
            }
        }
    }
    pthread_mutex_unlock(&live_lock);
    return found;
}

void net_released(struct net *wanted)
{
    pthread_mutex_lock(&live_lock);
    for (struct net *n = live_nets; n; n = n->next_live) {
        for (unsigned i = 0; n == wanted && i < n->n_workers; i++) {
            if (atomic_exchange(&n->workers[i].waits_for_release, false))
                worker_wake(&n->workers[i]);
        }
    }
    pthread_mutex_unlock(&live_lock);
}

/* --- accepting --- */

struct handover {
    struct post post; /* first */
    int fd;
    bool is_unix;
};

static void take_over(struct worker *w, struct post *self)
{
    struct handover *h = (struct handover *)self;
    connection_open(w, h->fd, h->is_unix);
    mem_free(h);
}

/* Gives the descriptor to the next worker in turn. */
static void deal(struct net *n, int fd, bool is_unix)
{
    struct worker *w = &n->workers[n->next_worker++ % n->n_workers];
    if (w->number == 0) {
        connection_open(w, fd, is_unix); /* this thread's own */
        return;
    }
    struct handover *h = mem_alloc(sizeof *h);
    if (h) {
        *h = (struct handover){.post.fn = take_over, .fd = fd, .is_unix = is_unix};
        if (worker_post_node(w, &h->post))
            return;
        mem_free(h);
    }
    atomic_fetch_sub(&n->n_clients, 1);
    close(fd);
}

static void refuse(struct net *n, int fd, const char *why)
{
    ssize_t sent = send(fd, why, strlen(why), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)sent; /* it is closed either way */
    close(fd);
    atomic_fetch_add(&n->n_rejected, 1);
}

static bool is_loopback(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)a;
        return (ntohl(in->sin_addr.s_addr) >> 24) == 127;
    }
    if (a->ss_family == AF_INET6) {
        const struct in6_addr *in6 = &((const struct sockaddr_in6 *)a)->sin6_addr;
        return IN6_IS_ADDR_LOOPBACK(in6) ||
               (IN6_IS_ADDR_V4MAPPED(in6) && in6->s6_addr[12] == 127);
    }
    return true;
}

static void admit(struct net *n, int fd, bool is_unix, const struct sockaddr_storage *from)
{
    if (!is_unix && !is_loopback(from) && config_protected(n->server->config)) {
        refuse(
            n, fd,
            "-DENIED kith is running in protected mode: no password is set, and only clients "
            "of this machine are served. Set requirepass, or protected-mode no.\r\n");
        return;
    }
    uint64_t max = (uint64_t)atomic_load(&n->server->config->maxclients);
    if (atomic_fetch_add(&n->n_clients, 1) >= max) {
        atomic_fetch_sub(&n->n_clients, 1);
        refuse(n, fd, "-ERR max number of clients reached\r\n");
        return;
    }
    atomic_fetch_add(&n->n_received, 1);
    deal(n, fd, is_unix);
}

/* On the first worker's thread. A full backlog does not keep its connections waiting: after
 * some accepts the loop has its turn. */
static void on_accept(evutil_socket_t listen_fd, short what, void *arg)
{
    (void)what;
    struct net *n = arg;
    for (int i = 0; i < ACCEPTS_A_ROUND; i++) {
        struct sockaddr_storage from = {0};
        socklen_t from_len = sizeof from;
        int fd = accept4(listen_fd, (struct sockaddr *)&from, &from_len,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            admit(n, fd, from.ss_family == AF_UNIX, &from);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            log_warning("cannot accept a connection: %s", strerror(errno));
            net_accept_pause(n);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return; /* EAGAIN: that was all */
        }
    }
}

void net_accept_pause(struct net *n)
{
    n->accept_paused = true;
    for (unsigned i = 0; i < n->n_listeners; i++)
        event_del(n->listeners[i].event);
}

void net_accept_resume(struct net *n)
{
    if (!n->accept_paused)
        return;
    n->accept_paused = false;
    for (unsigned i = 0; i < n->n_listeners; i++)
        event_add(n->listeners[i].event, NULL);
}

void net_accept_stop(struct net *n)
{
    for (unsigned i = 0; i < n->n_listeners; i++) {
        event_free(n->listeners[i].event);
        close(n->listeners[i].fd);
    }
    n->n_listeners = 0;
    n->accept_paused = false;
}

/* --- listening --- */

static int add_listener(struct net *n, int fd, bool is_unix, struct err *e)
{
    struct listener *l = &n->listeners[n->n_listeners];
    l->event = event_new(n->workers[0].base, fd, EV_READ | EV_PERSIST, on_accept, n);
    if (!l->event || event_add(l->event, NULL)) {
        if (l->event)
            event_free(l->event);
        close(fd);
        return err_set(e, KITH_ENOMEM, "out of memory for a listener");
    }
    l->fd = fd;
    l->is_unix = is_unix;
    n->n_listeners++;
    return 0;
}

static int listen_socket(const struct addrinfo *a, int backlog)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, backlog)) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* One word of `bind`: an address, * or ::*, after an optional - that lets it be absent. */
static int listen_tcp(struct net *n, const char *word, const char *port, struct err *e)
{
    bool optional = word[0] == '-';
    const char *host = optional ? word + 1 : word;
    if (strcmp(host, "*") == 0)
        host = "0.0.0.0";
    else if (strcmp(host, "::*") == 0)
        host = "::";
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    int rc = getaddrinfo(host, port, &hints, &found);
    if (rc)
        return optional ? 0 : err_set(e, KITH_EINVAL, "bind %s: %s", word, gai_strerror(rc));
    int backlog = (int)atomic_load(&n->server->config->tcp_backlog);
    int fd = listen_socket(found, backlog), saved = errno;
    freeaddrinfo(found);
    if (fd >= 0)
        return add_listener(n, fd, false, e);
    bool absent = saved == EADDRNOTAVAIL || saved == EAFNOSUPPORT || saved == ENOPROTOOPT;
    if (optional && absent)
        return 0;
    return err_set_errno(e, saved, "cannot listen on %s port %s", host, port);
}

static int listen_all_tcp(struct net *n, struct err *e)
{
    struct config *config = n->server->config;
    int64_t port = atomic_load(&config->port);
    if (port == 0)
        return 0;
    char port_text[16], *words = mem_strdup(config->bind ? config->bind : "*");
    if (!words)
        return err_set(e, KITH_ENOMEM, "out of memory for the addresses to bind");
    snprintf(port_text, sizeof port_text, "%d", (int)port);
    int rc = 0, n_words = 0;
    char *rest = words, *word;
    while (rc == 0 && (word = strtok_r(rest, " \t", &rest))) {
        if (n_words++ == ADDRESSES_MAX)
            rc = err_set(e, KITH_ELIMIT, "bind: at most %d addresses", ADDRESSES_MAX);
        else
            rc = listen_tcp(n, word, port_text, e);
    }
    mem_free(words);
    if (rc == 0 && n->n_listeners == 0)
        rc = err_set(e, KITH_EINVAL, "bind: none of the addresses \"%s\" is of this machine",
                     config->bind ? config->bind : "");
    return rc;
}

static int listen_unix(struct net *n, struct err *e)
{
    struct config *config = n->server->config;
    const char *path = config->unixsocket;
    if (!path || !*path)
        return 0;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return err_set(e, KITH_EINVAL, "unixsocket: the path is longer than %zu bytes",
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path));
    n->unix_path = mem_strdup(path);
    if (!n->unix_path)
        return err_set(e, KITH_ENOMEM, "out of memory for the socket's path");
    unlink(path); /* left by a server that was killed */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot make a Unix socket");
    mode_t mode = (mode_t)atomic_load(&config->unixsocketperm);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || (mode && chmod(path, mode)) ||
        listen(fd, (int)atomic_load(&config->tcp_backlog))) {
        int rc = err_set_errno(e, errno, "cannot listen on %s", path);
        close(fd);
        return rc;
    }
    return add_listener(n, fd, true, e);
}

/* --- life --- */

static void net_free(struct net *n)
{
    net_accept_stop(n);
    for (unsigned i = 0; i < n->n_workers; i++)
        worker_deinit(&n->workers[i]);
    if (n->unix_path)
        unlink(n->unix_path);
    mem_free(n->unix_path);
    mem_free(n->listeners);
    mem_free(n->workers);
    mem_free(n);
}

static int init_workers(struct net *n, struct err *e)
{
    unsigned wanted = (unsigned)atomic_load(&n->server->config->io_threads);
    n->workers = mem_calloc(wanted ? wanted : 1, sizeof *n->workers);
    n->listeners = mem_calloc(LISTENERS_MAX, sizeof *n->listeners);
    if (!n->workers || !n->listeners)
        return err_set(e, KITH_ENOMEM, "out of memory for the I/O threads");
    do {
        int rc = worker_init(&n->workers[n->n_workers], n, n->n_workers, e);
        n->n_workers++; /* also a half made one is taken apart by net_free */
        if (rc)
            return rc;
    } while (n->n_workers < wanted);
    return 0;
}

int net_open(struct net **out, struct server *server, struct err *e)
{
    command_init();
    struct net *n = mem_calloc(1, sizeof *n);
    if (!n)
        return err_set(e, KITH_ENOMEM, "out of memory for the network");
    n->server = server;
    int rc = init_workers(n, e);
    if (rc == 0)
        rc = listen_all_tcp(n, e);
    if (rc == 0)
        rc = listen_unix(n, e);
    if (rc) {
        net_free(n);
        return rc;
    }
    *out = n;
    return 0;
}

struct drain {
    struct post post; /* first */
    int64_t until_us;
};

static void start_drain(struct worker *w, struct post *self)
{
    struct drain *d = (struct drain *)self;
    w->draining = true;
    w->drain_until_us = d->until_us;
    if (w->number == 0)
        net_accept_stop(w->net);
    struct connection *conn;
    TAILQ_FOREACH(conn, &w->clients, in_clients)
    connection_want_read(conn, false);
}

/* Asks every running worker to end and waits for it. */
static void join_workers(struct net *n, int64_t drain_ms)
{
    struct drain *drains = mem_calloc(n->n_workers, sizeof *drains);
    int64_t until_us = clock_mono_us() + drain_ms * 1000;
    struct drain one;
    for (unsigned i = 0; i < n->n_workers; i++) {
        if (!n->workers[i].running)
            continue;
        /* Without memory they end one after the other, each with a node that lies here. */
        struct drain *d = drains ? &drains[i] : &one;
        *d = (struct drain){.post.fn = start_drain, .until_us = until_us};
        worker_post_node(&n->workers[i], &d->post);
        if (!drains)
            pthread_join(n->workers[i].thread, NULL);
    }
    for (unsigned i = 0; drains && i < n->n_workers; i++) {
        if (n->workers[i].running)
            pthread_join(n->workers[i].thread, NULL);
    }
    mem_free(drains);
}

int net_start(struct net *n, struct err *e)
{
    live_add(n);
    int64_t n_searches = atomic_load(&n->server->config->search_threads);
    int rc = 0;
    if (n_searches != 0)
        rc = search_pool_new(&n->searches, n_searches > 0 ? (unsigned)n_searches : 0,
                             n->n_workers, e);
    for (unsigned i = 0; rc == 0 && i < n->n_workers; i++)
        rc = worker_start(&n->workers[i], e); /* net_close joins those that run */
    return rc;
}

void net_close(struct net *n, int64_t drain_ms)
{
    if (!n)
        return;
    join_workers(n, drain_ms);
    live_remove(n);
    search_pool_free(n->searches); /* searches whose clients have gone end first */
    net_free(n);
}

/* --- figures --- */

static uint64_t sum_commands(struct net *n)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n->n_workers; i++)
        sum += atomic_load_explicit(&n->workers[i].counters.commands, memory_order_relaxed);
    return sum;
}

/* Smoothed over about a second, as the clients of INFO expect it to be. */
void net_sample_rate(struct net *n, int64_t now_us)
{
    uint64_t count = sum_commands(n);
    if (n->rate_last_us && now_us > n->rate_last_us) {
        double seconds = (double)(now_us - n->rate_last_us) / 1e6;
        double now = (double)(count - n->rate_last_count) / seconds;
        double before = atomic_load(&n->ops_per_second);
        double weight = seconds < 1 ? seconds : 1;
        atomic_store(&n->ops_per_second, before + (now - before) * weight);
    }
    n->rate_last_us = now_us;
    n->rate_last_count = count;
}

void net_stats(struct net *n, struct net_stats *out)
{
    memset(out, 0, sizeof *out);
    out->connections_received = atomic_load(&n->n_received);
    out->rejected_connections = atomic_load(&n->n_rejected);
    out->connected_clients = atomic_load(&n->n_clients);
    out->ops_per_second = atomic_load(&n->ops_per_second);
    out->search_threads = search_pool_threads(n->searches);
    for (unsigned i = 0; i < n->n_workers; i++) {
        struct worker_counters *c = &n->workers[i].counters;
        out->commands_processed += atomic_load(&c->commands);
        out->bytes_in += atomic_load(&c->bytes_in);
        out->bytes_out += atomic_load(&c->bytes_out);
        out->error_replies += atomic_load(&c->errors);
        out->searches_offloaded += atomic_load(&c->offloaded);
        out->busy_polls += atomic_load(&c->polls);
        out->busy_polls_in_vain += atomic_load(&c->polls_in_vain);
        out->blocked_clients += atomic_load(&c->blocked);
    }
}
