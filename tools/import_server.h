#pragma once
/* Talking to a kith-server from a tool, over hiredis: connections, requests of many arguments,
 * replies as errors. Thread: a connection belongs to one. */

#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct server_address {
    const char *host, *unix_path; /* the path, where there is one */
    const char *user, *password;  /* NULL: do not log in, or not by name */
    int port;
};

/* Connects and logs in. *out is to be freed by redisFree also on failure, unless NULL. */
int server_connect(const struct server_address *o, redisContext **out, struct err *e);

/* A reply to what was appended; NULL: the connection is lost, or an error that was replied,
 * with its text. */
redisReply *server_reply(redisContext *c, struct err *e);
/* Sends and waits. n: the lengths, NULL where all arguments are strings. */
redisReply *server_command(redisContext *c, int argc, const char **argv, const size_t *n,
                           struct err *e);
/* What went wrong with the connection, as an error. */
int server_lost(redisContext *c, struct err *e);
/* Writes all that was appended. */
int server_flush(redisContext *c, struct err *e);

/* A request as it grows; what its arguments point to lives until it is appended. */
struct request {
    const char **argv;
    size_t *lengths;
    size_t n, cap;
    bool failed;
};

void request_put(struct request *q, const char *p, size_t n);
void request_put_str(struct request *q, const char *s);
void request_free(struct request *q);
/* Appends it to the connection's output and empties it, also on failure. */
int request_append(struct request *q, redisContext *c, struct err *e);
