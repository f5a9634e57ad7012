#pragma once
/* Reads requests: what clients send, as arrays of bulk strings or as inline commands, pipelined
 * and mixed in one stream.
 *
 * It knows no sockets and no commands: bytes are fed, requests come out. Every size that a
 * client announces is held against the limits as soon as its line is there, before memory is
 * taken for it; the texts of the refusals are those of Redis. After RESP_ERROR the stream has
 * no meaning any more: the connection is to be closed.
 *
 * Owns: the bytes fed and not yet parsed. The arguments of a request live in the request's
 * arena. Thread: one owner a reader; no shared state. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

enum {
    RESP_ARGS_MAX = 1024 * 1024,
    RESP_ARGS_MAX_UNAUTHENTICATED = 10,
    RESP_BULK_MAX_UNAUTHENTICATED = 16 * 1024,
    RESP_INLINE_MAX = 64 * 1024,
    RESP_BULK_MAX =
        1024 * 1024 * 1024 /* whatever the limits say: the buffer is counted in int */
};

struct resp_limits {
    size_t max_bulk_bytes;    /* of one argument */
    size_t max_request_bytes; /* of all arguments of one request */
    bool authenticated;       /* false: the two limits for strangers hold as well */
};

/* A request that is being read, or was. Zeroed by resp_request_init, used again after
 * resp_request_reset without giving its memory back. */
struct resp_request {
    struct slice *argv; /* in the arena, as the bytes it points to */
    int argc;
    int argv_cap;
    size_t bytes; /* of all arguments */
    struct arena arena;
};

void resp_request_init(struct resp_request *q);
void resp_request_reset(struct resp_request *q);
void resp_request_deinit(struct resp_request *q);

enum resp_status {
    RESP_INCOMPLETE, /* feed more */
    RESP_REQUEST,    /* the request is whole, argc >= 1 */
    RESP_ERROR       /* e says why: "Protocol error: ...", to be sent after "-ERR " */
};

struct resp_reader;
struct resp_reader *resp_reader_new(void); /* NULL when out of memory */
void resp_reader_free(struct resp_reader *r);

/* Takes a copy of n bytes. 0, KITH_ENOMEM or KITH_ELIMIT. */
int resp_reader_feed(struct resp_reader *r, const void *p, size_t n);
/* Goes on with the request q: the same one until it is whole. Empty requests are skipped. */
enum resp_status resp_reader_next(struct resp_reader *r, const struct resp_limits *limits,
                                  struct resp_request *q, struct err *e);

/* Nothing is buffered and no request has begun: the reader may be freed and made anew later. */
bool resp_reader_idle(const struct resp_reader *r);
/* Bytes fed and not yet parsed. */
size_t resp_reader_buffered(const struct resp_reader *r);
/* Memory of the buffer that holds nothing now. */
size_t resp_reader_spare(const struct resp_reader *r);
/* How many bytes the argument under way still lacks, 0 when that is not known. */
size_t resp_reader_wanted(const struct resp_reader *r);
