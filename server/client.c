#include "server/client.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/net_private.h"

enum { NUMBER_TEXT_MAX = 256 };

/* --- replies and arguments --- */

void reply_wrong_type(struct client *c)
{
    resp_error(c->out, "WRONGTYPE Operation against a key holding the wrong kind of value");
}

void reply_syntax_error(struct client *c)
{
    resp_error(c->out, "ERR syntax error");
}

void reply_not_integer(struct client *c)
{
    resp_error(c->out, "ERR value is not an integer or out of range");
}

bool reply_invalid(struct client *c, const char *what, int at, const char *allowed)
{
    if (at >= c->argc)
        resp_errorf(c->out, "ERR invalid %s: nothing follows it, it takes %s", what, allowed);
    else
        resp_errorf(c->out, "ERR invalid %s: '%.*s', it takes %s", what,
                    slice_shown(c->argv[at]), c->argv[at].p, allowed);
    return false;
}

/* A message that already begins with an error's code (ENGINE, OOM, MISCONF) keeps it. */
static bool has_code(const char *message)
{
    size_t n = strspn(message, "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    return n >= 3 && message[n] == ' ';
}

void reply_err(struct client *c, const struct err *e)
{
    if (has_code(e->message))
        resp_error(c->out, e->message);
    else if (e->code == KITH_ENOMEM)
        resp_errorf(c->out, "OOM %s", e->message);
    else if (e->code == KITH_EBUSY)
        resp_errorf(c->out, "BUSY %s", e->message);
    else
        resp_errorf(c->out, "ERR %s", e->message);
}

/* As strict as Redis: no sign but '-', no leading zero, no space. */
bool arg_int(struct slice s, int64_t *v)
{
    bool negative = s.n > 0 && s.p[0] == '-';
    size_t i = negative ? 1 : 0;
    if (s.n == i || s.n - i > 19 || (s.p[i] == '0' && s.n > 1))
        return false;
    uint64_t sum = 0;
    for (; i < s.n; i++) {
        unsigned digit = (unsigned)(s.p[i] - '0');
        if (digit > 9 || __builtin_mul_overflow(sum, 10u, &sum) ||
            __builtin_add_overflow(sum, digit, &sum))
            return false;
    }
    if (sum > (uint64_t)INT64_MAX + (negative ? 1 : 0))
        return false;
    *v = (int64_t)(negative ? 0 - sum : sum);
    return true;
}

bool arg_double(struct slice s, double *v)
{
    char text[NUMBER_TEXT_MAX], *end;
    if (s.n == 0 || s.n >= sizeof text || s.p[0] == ' ' || (s.p[0] >= '\t' && s.p[0] <= '\r'))
        return false;
    memcpy(text, s.p, s.n);
    text[s.n] = '\0';
    errno = 0;
    double value = strtod(text, &end);
    bool overflow = errno == ERANGE && (isinf(value) || value == 0);
    if (end != text + s.n || isnan(value) || overflow)
        return false;
    *v = value;
    return true;
}

void client_address(const struct client *c, char *out, size_t n)
{
    const struct connection *conn = (const struct connection *)c;
    snprintf(out, n, "%s", conn->peer);
}

const char *client_name(const struct client *c)
{
    const struct connection *conn = (const struct connection *)c;
    return conn->name ? conn->name : "";
}

/* --- waking --- */

struct wake {
    struct post post; /* first */
    struct wake *next;
    struct client_ref ref;
};

static void run_wake(struct worker *w, struct post *self)
{
    struct wake *wake = (struct wake *)self;
    struct connection *conn = worker_find(w, wake->ref.id);
    if (conn)
        connection_unblock(conn);
    mem_free(wake);
}

static void wake_all_of(struct worker *w, void *arg)
{
    (void)arg;
    atomic_store(&w->wake_all_blocked, true);
    worker_wake(w);
}

static struct wake *wake_new(struct client_ref r)
{
    struct wake *wake = mem_alloc(sizeof *wake);
    if (wake)
        *wake = (struct wake){.post.fn = run_wake, .ref = r};
    return wake;
}

static void wake_send(struct wake *wake)
{
    if (!worker_post_node(wake->ref.worker, &wake->post))
        mem_free(wake); /* the worker is no more, and so is the client */
}

struct client_ref client_ref(const struct client *c)
{
    return (struct client_ref){.worker = c->worker, .id = c->id};
}

void client_wake(struct client_ref r)
{
    struct wake *wake = wake_new(r);
    if (wake)
        wake_send(wake);
    else /* no memory: all of them look again, and those that must still wait do */
        net_with_live_worker(r.worker, wake_all_of, NULL);
}

struct waitlist {
    pthread_mutex_t lock;
    struct wake *first;
};

struct waitlist *waitlist_new(void)
{
    struct waitlist *w = mem_calloc(1, sizeof *w);
    if (w)
        pthread_mutex_init(&w->lock, NULL);
    return w;
}

void waitlist_free(struct waitlist *w)
{
    if (!w)
        return;
    for (struct wake *wake = w->first, *next; wake; wake = next) {
        next = wake->next;
        mem_free(wake);
    }
    pthread_mutex_destroy(&w->lock);
    mem_free(w);
}

/* The node of the later wake is taken now, so that waking cannot fail. */
void waitlist_add(struct waitlist *w, struct client_ref r)
{
    struct wake *wake = wake_new(r);
    if (!wake) {
        client_wake(r);
        return;
    }
    pthread_mutex_lock(&w->lock);
    wake->next = w->first;
    w->first = wake;
    pthread_mutex_unlock(&w->lock);
}

void waitlist_wake_all(struct waitlist *w)
{
    pthread_mutex_lock(&w->lock);
    struct wake *newest = w->first, *oldest = NULL;
    w->first = NULL;
    pthread_mutex_unlock(&w->lock);
    while (newest) { /* who waits longest runs first */
        struct wake *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest) {
        struct wake *next = oldest->next;
        wake_send(oldest);
        oldest = next;
    }
}
