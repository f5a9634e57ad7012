#pragma once
/* A client as a command sees it. The connection behind it (sockets, buffers, parsing, the gate)
 * is net.c's and stays there.
 *
 * Thread: a client belongs to one I/O thread; a command runs there. client_wake may be called
 * from any thread. */

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
    const float *vectors; /* n x dim, row-major */
};

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
    struct worker *worker;
    struct server *server;
};

/* Replies of every day. */
void reply_wrong_type(struct client *c);
void reply_syntax_error(struct client *c);
void reply_not_integer(struct client *c);
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
