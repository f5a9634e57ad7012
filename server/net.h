#pragma once
/* The network: listeners, I/O threads (workers), connections, and the gate that holds replies
 * until what they show is durable.
 *
 * A worker is a thread with a libevent loop and its own connections. One round of its loop:
 * read every ready socket, parse, run the commands (taking the shard's lock once), then flush
 * the log once, then write the replies whose gate is open. Replies whose index is not yet
 * released wait in their connection, in order, until the log's thread calls net_released.
 *
 * A long read-only rest of a command (a search) may run on a search thread meanwhile
 * (client_offload, offload.c): its connection waits for it, the others of the worker go on.
 *
 * Thread: each worker owns its connections; worker_post is the only door between threads. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "server/client.h"

struct net;
struct server;

/* Binds and listens per the config; then net_start starts the workers. */
int net_open(struct net **out, struct server *server, struct err *e);
int net_start(struct net *n, struct err *e);
/* Stops accepting, lets what is under way finish and replies drain (at most drain_ms), joins
 * the workers, closes everything. */
void net_close(struct net *n, int64_t drain_ms);
/* The released log index moved: any thread. */
void net_released(struct net *n);

/* Runs fn(arg) on the worker's thread soon; false, and fn is never run, when memory is out or
 * the worker is no more (net_close). Any thread. There is no limit here: what is posted is
 * bounded by what the worker itself asked for. */
bool worker_post(struct worker *w, void (*fn)(void *arg), void *arg);
/* Gives the shard back before a long read-only piece of a command (a search); no-op inside
 * EXEC. The worker takes it again when the next command needs it, and before the reply's gate
 * is set: what a search saw without the lock has its place in the log only when whoever changed
 * it has left the shard. */
void worker_leave_shard(struct client *c);

struct net_stats {
    uint64_t connections_received, rejected_connections, commands_processed, connected_clients,
        bytes_in, bytes_out, blocked_clients, error_replies, searches_offloaded, busy_polls,
        busy_polls_in_vain;
    unsigned search_threads;
    double ops_per_second; /* over the last second or so */
};
void net_stats(struct net *n, struct net_stats *out);
