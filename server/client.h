#pragma once
/* A client as a command sees it. The connection behind it (sockets, buffers, parsing, the gate)
 * is net.c's and stays there.
 *
 * Thread: a client belongs to one I/O thread; a command runs there, but for a rest of it that
 * was given to client_offload. client_wake may be called from any thread. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "protocol/resp_write.h"
#include "server/command.h"

struct server;
struct worker;

/* What the engine answered for the texts of the running command. */
struct embedding {
    int code;            /* 0 or KITH_E*; then message says why ("ENGINE ..." or "ERR ...") */
    const char *message; /* a whole error reply without '-' */
    uint32_t n, dim;
    const float *vectors; /* n x dim, row-major; of RERANK the n scores, and dim is 1 */
    const struct engine_model *model; /* that made them; NULL where code is not 0 */
    bool named;                       /* the command named its model */
    unsigned n_again;                 /* how often it was embedded anew */
};

enum { CLIENT_NOTE_BYTES = 160 };

struct client {
    /* The running command. */
    int argc;
    struct slice *argv;
    const struct command *command;
    const struct embedding *embedding; /* NULL unless the row has texts and there were some */
    struct arena *arena;               /* lives until the command is done */
    struct resp_out out;               /* where to reply, in the client's protocol */

    /* The session. */
    uint64_t id;
    uint32_t db;
    bool in_exec; /* the command runs inside EXEC: the shard must not be left */
    /* A command that returns COMMAND_WAIT may keep a number here for its next run; 0 at its
     * first, and it puts 0 back when it is done. */
    uint64_t wait_ticket;
    struct worker *worker; /* NULL where the command was handed over (client_offload) */
    struct server *server;
    char note[CLIENT_NOTE_BYTES + 1]; /* client_note */
};

/* Replies of every day. */
void reply_wrong_type(struct client *c);
void reply_syntax_error(struct client *c);
void reply_not_integer(struct client *c);
/* -ERR invalid <what>: argument `at`, which may be missing, and what it takes; false. */
bool reply_invalid(struct client *c, const char *what, int at, const char *allowed);
void reply_err(struct client *c,
               const struct err *e); /* -ERR message, or -OOM, -ENGINE by code */

/* Parses a whole argument; false (and nothing replied) when it is no such number. */
bool arg_int(struct slice s, int64_t *v);
bool arg_double(struct slice s, double *v); /* finite or inf; NaN is refused */

enum { CLIENT_ADDRESS_BYTES = 128 }; /* the longest path of a Unix socket, ":0" and a NUL */
/* "ip:port", "[ip6]:port" or "path:0" of the peer, and what CLIENT SETNAME gave ("" when
 * nothing). */
void client_address(const struct client *c, char *out, size_t n);
const char *client_name(const struct client *c);

/* Runs fn(c, arg), the rest of a command that needs neither the shard nor the connection: it
 * searches what it holds a reference to and replies. `return client_offload(...)` is the last
 * thing a command does; nothing was replied before it. The shard is left first
 * (worker_leave_shard); inside EXEC it is not, and fn runs right here, as it does with
 * vset-force-single-threaded-execution.
 *
 * Else fn runs right here, or, when others wait for this I/O thread, beside it (search-threads,
 * offload.c). A hand-over costs some ten microseconds, and where nobody waits nobody gains by
 * it. client_offload is for what takes about a millisecond; client_offload_long, for what may
 * take longer than other clients may be kept waiting, never runs on an I/O thread unless
 * search-threads is 0.
 *
 * Where it was handed over c is a copy: argc, argv, command, embedding, arena, out, db, in_exec
 * and server are as they were and stay until fn has returned; c->worker is NULL, and no
 * function that asks for the connection (client_address, client_name, client_ref, worker_*,
 * data_*) may be called.
 *
 * fn is always run, once, also when the client goes or the server stops meanwhile: it frees
 * what arg holds. arg may lie in c->arena, not on the stack of the command. */
enum command_result client_offload(struct client *c, void (*fn)(struct client *c, void *arg),
                                   void *arg);
enum command_result client_offload_long(struct client *c,
                                        void (*fn)(struct client *c, void *arg), void *arg);
/* One line about how the running command went, at most CLIENT_NOTE_BYTES of it, which the slow
 * log shows behind the arguments, in brackets. A later one takes its place. Also inside fn of
 * client_offload. */
void client_note(struct client *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A handle that outlives the client: a client that has gone is simply not found. */
struct client_ref {
    struct worker *worker;
    uint64_t id;
};
struct client_ref client_ref(const struct client *c);
/* Runs the waiting command of the client again, on its own thread. Any thread. */
void client_wake(struct client_ref r);

/* Clients that wait for the same thing. */
struct waitlist;
struct waitlist *waitlist_new(void);
void waitlist_free(struct waitlist *w);
void waitlist_add(struct waitlist *w, struct client_ref r);
void waitlist_wake_all(struct waitlist *w); /* and empties it; any thread */
