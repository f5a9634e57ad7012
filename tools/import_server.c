#include "tools/import_server.h"

#include <string.h>
#include <sys/time.h>

#include "base/mem.h"

enum { CONNECT_SECONDS = 10 };

int server_lost(redisContext *c, struct err *e)
{
    return err_set(e, KITH_EIO, "the connection to the server was lost: %s",
                   c->errstr[0] ? c->errstr : "it was closed");
}

redisReply *server_reply(redisContext *c, struct err *e)
{
    void *r = NULL;
    if (redisGetReply(c, &r) != REDIS_OK || !r) {
        server_lost(c, e);
        return NULL;
    }
    redisReply *reply = r;
    if (reply->type != REDIS_REPLY_ERROR)
        return reply;
    err_set(e, KITH_EINVAL, "%s", reply->str);
    freeReplyObject(reply);
    return NULL;
}

redisReply *server_command(redisContext *c, int argc, const char **argv, const size_t *n,
                           struct err *e)
{
    if (redisAppendCommandArgv(c, argc, argv, n) != REDIS_OK) {
        err_set(e, KITH_ENOMEM, "out of memory for a request");
        return NULL;
    }
    return server_reply(c, e);
}

static int login(const struct server_address *o, redisContext *c, struct err *e)
{
    if (!o->password)
        return 0;
    const char *argv[] = {"AUTH", o->user ? o->user : o->password, o->password};
    redisReply *r = server_command(c, o->user ? 3 : 2, argv, NULL, e);
    if (!r)
        return err_wrap(e, "cannot log in"), KITH_EINVAL;
    freeReplyObject(r);
    return 0;
}

int server_connect(const struct server_address *o, redisContext **out, struct err *e)
{
    struct timeval patience = {.tv_sec = CONNECT_SECONDS};
    redisContext *c = o->unix_path ? redisConnectUnixWithTimeout(o->unix_path, patience)
                                   : redisConnectWithTimeout(o->host, o->port, patience);
    *out = c;
    if (!c)
        return err_set(e, KITH_ENOMEM, "out of memory for a connection");
    if (c->err && o->unix_path)
        return err_set(e, KITH_EIO, "cannot connect to %s: %s", o->unix_path, c->errstr);
    if (c->err)
        return err_set(e, KITH_EIO, "cannot connect to %s:%d: %s", o->host, o->port, c->errstr);
    return login(o, c, e);
}

/* --- requests --- */

void request_put(struct request *q, const char *p, size_t n)
{
    if (q->n == q->cap) {
        size_t cap = q->cap ? q->cap * 2 : 256;
        const char **argv = mem_realloc_n((void *)q->argv, cap, sizeof *argv);
        size_t *lengths = argv ? mem_realloc_n(q->lengths, cap, sizeof *lengths) : NULL;
        q->argv = argv ? argv : q->argv;
        q->lengths = lengths ? lengths : q->lengths;
        q->failed |= !lengths;
        if (q->failed)
            return;
        q->cap = cap;
    }
    q->argv[q->n] = p;
    q->lengths[q->n++] = n;
}

void request_put_str(struct request *q, const char *s)
{
    request_put(q, s, strlen(s));
}

void request_free(struct request *q)
{
    mem_free((void *)q->argv);
    mem_free(q->lengths);
}

int request_append(struct request *q, redisContext *c, struct err *e)
{
    bool ok =
        !q->failed && redisAppendCommandArgv(c, (int)q->n, q->argv, q->lengths) == REDIS_OK;
    request_free(q);
    *q = (struct request){0};
    return ok ? 0 : err_set(e, KITH_ENOMEM, "out of memory for a request");
}

int server_flush(redisContext *c, struct err *e)
{
    for (int done = 0; !done;)
        if (redisBufferWrite(c, &done) != REDIS_OK)
            return server_lost(c, e);
    return 0;
}
