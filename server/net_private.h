#pragma once
/* What the files of the network share: workers, connections, requests. Nobody else includes
 * this, but for the commands that are about connections (cmd_connection.c, cmd_client.c,
 * cmd_transaction.c) and the monitor feed.
 *
 * Who owns what
 *
 *   net ──► worker (a thread, a loop) ──► connection ──► reader, queue of requests, out, marks
 *
 * Everything of a worker is touched by its own thread only, but for: the inbox (its lock), the
 * list of connections with the texts in them (clients_lock: the owner holds it to change,
 * others to read), and the fields marked as atomics. */

#include <event2/event.h>
#include <event2/event_struct.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "protocol/resp_read.h"
#include "server/client.h"
#include "server/gate.h"
#include "server/net.h"

struct connection;
struct embed_job;
struct offload;
struct search_pool;

/* Work handed to a worker by another thread. The node belongs to whoever posts until fn runs,
 * to fn from then on. */
struct post {
    struct post *next;
    void (*fn)(struct worker *w, struct post *self);
};

/* A command that was read. */
struct request {
    STAILQ_ENTRY(request) next;
    struct resp_request parsed;
    const struct command *command; /* NULL: unknown, or refusal is set */
    const char *refusal;           /* in the arena: a protocol error to reply before closing */
    uint64_t seq;                  /* names it to the engine's answer, with the client's id */
    enum { TEXTS_UNSENT, TEXTS_NONE, TEXTS_SENT, TEXTS_READY } texts;
    bool texts_named;           /* the command names its texts' model */
    int texts_key;              /* else the argument with the set's name, or 0 */
    unsigned n_again;           /* how often its texts were embedded anew */
    struct embedding embedding; /* when TEXTS_READY */
    struct embed_job *job;      /* holds the vectors of embedding, or NULL */
    struct offload *offload;    /* a search thread has the rest of it, or NULL */
};
STAILQ_HEAD(request_list, request);

struct watched_key {
    struct watched_key *next;
    uint32_t db;
    uint64_t version;
    size_t n;
    char key[];
};

/* What CLIENT LIST of any thread may read while the owner runs. Published once a batch. */
struct connection_shown {
    _Atomic(const struct command *) command;
    _Atomic int64_t active_us;
    _Atomic uint64_t bytes_in, bytes_out, n_commands;
    _Atomic uint64_t buffered, spare, argv_bytes, multi_bytes, out_bytes;
    _Atomic int n_multi, n_watched, db, proto;
    _Atomic unsigned flags; /* SHOWN_* */
};
enum {
    SHOWN_MULTI = 1,
    SHOWN_DIRTY = 2,
    SHOWN_BLOCKED = 4,
    SHOWN_MONITOR = 8,
    SHOWN_NO_EVICT = 16,
    SHOWN_NO_TOUCH = 32,
    SHOWN_CLOSING = 64,
    SHOWN_WRITING = 128
};

struct connection {
    struct client client; /* first: a client is a connection to those who include this header */
    int fd;
    bool is_unix;
    struct event read_event, write_event;
    bool reading, writing; /* which of them is added */

    struct resp_reader *reader; /* NULL while idle for long */
    struct request *partial;    /* being read, or NULL */
    struct request *running;    /* whose arguments the client's are */
    struct request_list queue;  /* read and waiting: for vectors, or behind one that waits */
    uint32_t n_queued;
    size_t queued_bytes;
    uint64_t next_seq;
    bool blocked; /* the head of the queue returned COMMAND_WAIT */

    struct buf out;
    size_t out_sent;
    struct gate gate;
    uint64_t batch_gate; /* newest log index a reply of this batch could have seen */
    size_t batch_start;  /* where the batch's replies begin in out */

    bool authenticated, monitor, no_evict, no_touch;
    bool reply_off, reply_skip, reply_skip_next;
    bool at_eof;            /* the peer sends no more; what was read is still answered */
    bool input_broken;      /* the protocol was broken; the refusal is queued or sent */
    bool close_after_reply; /* reads and runs nothing more */
    bool closed;            /* the descriptor is gone; the struct is freed after the round */
    int64_t close_by_us;    /* deadline of at_eof and close_after_reply */

    /* MULTI */
    bool in_multi, multi_failed;
    struct request_list multi;
    uint32_t n_multi;
    size_t multi_bytes;
    struct watched_key *watched;
    int n_watched;

    /* Written under the worker's clients_lock. */
    char *name, *lib_name, *lib_ver; /* NULL: none */
    char peer[CLIENT_ADDRESS_BYTES], local[CLIENT_ADDRESS_BYTES];
    int64_t created_us;
    struct connection_shown shown;

    TAILQ_ENTRY(connection) in_clients;
    LIST_ENTRY(connection) in_bucket;
    TAILQ_ENTRY(connection) in_dirty, in_resume, in_gated;
    bool is_dirty, is_resume, is_gated;
    SLIST_ENTRY(connection) in_dead;
};
TAILQ_HEAD(connection_list, connection);
LIST_HEAD(connection_bucket, connection);
SLIST_HEAD(connection_stack, connection);

enum {
    READ_BYTES = 16 * 1024,            /* a read of commands; see resp_read.c on its size */
    READ_BYTES_LARGE = 256 * 1024,     /* a read inside a long argument */
    READS_A_ROUND = 4,                 /* of one connection, then the others have their turn */
    SLICE_US = 2000,                   /* of commands of one connection, likewise */
    QUEUE_MAX = 1024,                  /* commands read ahead of one that waits */
    QUEUE_BYTES_MAX = 4 * 1024 * 1024, /* and their arguments */
    CLIENT_BUCKETS = 1024,
    REQUEST_POOL_MAX = 64,
    TICK_MS = 100
};

struct worker_counters {
    _Atomic uint64_t commands, bytes_in, bytes_out, errors, blocked, offloaded, polls,
        polls_in_vain;
};

struct worker {
    struct net *net;
    struct server *server;
    unsigned number;
    pthread_t thread;
    bool running;
    struct event_base *base;
    struct event *wake_event, *tick_event;
    int wake_fd;
    unsigned n_ticks;

    pthread_mutex_t inbox_lock;
    struct post *inbox, **inbox_tail;
    bool inbox_signalled;           /* under inbox_lock: the wake_fd is set */
    _Atomic bool wake_all_blocked;  /* a wake could not be allocated */
    _Atomic bool waits_for_release; /* some reply waits for the log */

    pthread_mutex_t clients_lock;
    struct connection_list clients;
    struct connection_bucket buckets[CLIENT_BUCKETS];
    unsigned n_clients;

    /* The round. */
    struct connection_list dirty, resume, gated;
    struct connection_stack dead;
    bool shard_held, wrote;
    bool stirred;   /* something was read, here or from the inbox */
    bool posted;    /* another thread has posted something */
    bool alone;     /* there is one processor: who polls keeps others from it */
    int64_t now_us; /* when the last command ended */
    /* Whose turn it is, and when another connection last had one. */
    uint64_t turn_id;
    int64_t other_turn_us;
    unsigned n_offloaded; /* searches that are not back yet */
    char *read_buffer;
    struct request_list pool;
    unsigned n_pool;

    bool draining, finished;
    int64_t drain_until_us;
    struct worker_counters counters;
    struct {
        _Atomic unsigned n; /* monitors among the worker's connections */
        pthread_mutex_t lock;
        struct buf pending; /* lines for them, under the lock */
    } monitors;
};

struct listener {
    int fd;
    bool is_unix;
    struct event *event;
};

struct net {
    struct net *next_live;
    struct server *server;
    struct worker *workers;
    unsigned n_workers, next_worker;
    struct listener *listeners;
    unsigned n_listeners;
    bool accept_paused; /* out of descriptors: until the next tick */
    char *unix_path;
    struct search_pool *searches; /* NULL: search-threads is 0 */
    _Atomic uint64_t n_clients, n_received, n_rejected;
    _Atomic unsigned n_monitors;
    /* The rate, sampled by the first worker's tick. */
    uint64_t rate_last_count;
    int64_t rate_last_us;
    _Atomic double ops_per_second;
};

/* --- worker.c --- */
int worker_init(struct worker *w, struct net *net, unsigned number, struct err *e);
int worker_start(struct worker *w, struct err *e);
void worker_deinit(struct worker *w); /* after its thread was joined */
/* Puts the node in the inbox and wakes the worker. False when the worker is no more: then the
 * node is still the caller's. Any thread. */
bool worker_post_node(struct worker *w, struct post *p);
void worker_wake(struct worker *w);
struct connection *worker_find(struct worker *w, uint64_t id);
void worker_take_shard(struct worker *w);
void worker_give_shard(struct worker *w);
void worker_mark_dirty(struct connection *conn);  /* has something to write, or to close */
void worker_mark_resume(struct connection *conn); /* has something to run */
struct request *worker_request_take(struct worker *w);
void worker_request_give(struct worker *w, struct request *q);

/* --- net.c --- */
/* Runs fn under the lock that keeps workers from going away; false when w is no live worker. */
bool net_with_live_worker(const struct worker *w, void (*fn)(struct worker *w, void *arg),
                          void *arg);
void net_accept_pause(struct net *n);
void net_accept_resume(struct net *n);
void net_accept_stop(struct net *n);
void net_sample_rate(struct net *n, int64_t now_us);

/* --- connection.c --- */
/* Takes over the descriptor, also on failure. On the worker's thread. */
void connection_open(struct worker *w, int fd, bool is_unix);
void connection_close(struct connection *conn);
void connection_free(struct connection *conn);
void connection_flush(struct connection *conn); /* writes what the gate lets go */
void connection_batch_begin(struct connection *conn);
void connection_batch_end(struct connection *conn);
void connection_end_input(struct connection *conn); /* reads no more, answers what was read */
void connection_want_read(struct connection *conn, bool want);
/* True when nothing is under way and nothing is left to write. */
bool connection_settled(const struct connection *conn);
void connection_sweep(struct connection *conn, int64_t now_us); /* once a second */
void connection_block(struct connection *conn);   /* its command returned COMMAND_WAIT */
void connection_unblock(struct connection *conn); /* runs it again soon */
void connection_publish(struct connection *conn);
/* Replies, lets the replies before it go, then closes. */
void connection_close_after_reply(struct connection *conn);
static inline struct connection *connection_of(struct client *c)
{
    return (struct connection *)c;
}

/* --- dispatch.c --- */
/* Runs what is queued and what is buffered, until it waits, is empty or its time is over. */
void dispatch_run(struct connection *conn);
void dispatch_forget(struct connection *conn); /* frees everything queued */
void dispatch_release(struct connection *conn, struct request *q);
/* The same for a request whose connection has gone. Any thread. */
void dispatch_request_free(struct request *q);
/* What a request may put into the log at most. */
size_t dispatch_effect_bytes(const struct request *q);
/* Runs fn with the shard entered for these flags and bytes (or plainly, when they do not touch
 * data) and raises the batch's gate. */
enum command_result dispatch_in_shard(struct connection *conn, unsigned flags, size_t bytes,
                                      enum command_result (*fn)(struct client *c));
/* Makes q the running command of the client. */
void dispatch_set_running(struct connection *conn, struct request *q);
/* After a command ran: time, statistics, slow log, monitors. reply_start: where its reply
 * begins. */
void dispatch_note(struct connection *conn, size_t reply_start);

/* --- offload.c: requests with an offload --- */
bool offload_done(const struct offload *o);
/* When it is done: moves the reply and the note to the connection, and returns how long the
 * command took. */
int64_t offload_settle(struct connection *conn, struct request *q);
/* The connection lets the request go. True when a search thread still needs it, and will free
 * it. */
bool offload_forget(struct request *q);

/* --- cmd_transaction.c --- */
void transaction_queue(struct connection *conn, struct request *q);
void transaction_discard(struct connection *conn); /* also forgets the watched keys */

/* --- cmd_connection.c, cmd_client.c --- */
/* Whether a password is asked for now. */
bool auth_required(struct server *s);
extern const struct command client_subcommands[];
/* Sets one of the three texts of a client; empty takes it away. False when out of memory. */
bool client_text_valid(struct slice text);
bool client_set_text(struct connection *conn, char **field, struct slice text);
