#pragma once
/* HTTP POSTs to one address, many at a time, on the thread of their owner. The door to libcurl:
 * kith-server does not link it.
 *
 * Certificates are checked, redirects are not followed, connections are kept. A time-out is the
 * owner's affair: it cancels. An exchange's answer is bounded by its limit.
 *
 * Owns: connections. Thread: one owner; remote_http_wake from any. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct remote_http;

struct remote_http_options {
    const char *address;
    const char *key;     /* of "Authorization: Bearer", or NULL */
    const char *ca_file; /* certificates to trust instead of the system's, or NULL */
    unsigned parallel;   /* most exchanges at a time */
};

/* http or https, with a host and without user, query and fragment; *plain_far: not encrypted
 * and not to this machine. */
int remote_http_check_url(const char *url, bool *plain_far, struct err *e);

enum http_end {
    HTTP_ANSWERED,  /* status and answer are whole */
    HTTP_BROKEN,    /* no connection, or it broke: may be tried again */
    HTTP_UNTRUSTED, /* the other side's certificate */
    HTTP_TOO_LARGE  /* the answer is longer than its limit */
};

struct http_exchange {
    struct slice body; /* must live as long as the exchange */
    size_t answer_limit;
    /* Its end: */
    enum http_end end;
    long status; /* 0: none came */
    struct buf answer;
    int64_t retry_after_ms; /* 0: not said */
    char why[256];          /* where end is not HTTP_ANSWERED */
    void *handle;           /* while it runs */
};

int remote_http_open(struct remote_http **out, const struct remote_http_options *o,
                     struct err *e);
void remote_http_close(struct remote_http *h); /* cancels what runs */

/* The caller has set body and answer_limit; the answer's buffer is used again. */
int remote_http_start(struct remote_http *h, struct http_exchange *x, struct err *e);
void remote_http_cancel(struct remote_http *h, struct http_exchange *x);
/* What came so far of one that runs. */
long remote_http_status(const struct http_exchange *x);

/* One exchange that has ended, or NULL when wait_ms passed without one or it was woken. */
struct http_exchange *remote_http_wait(struct remote_http *h, int wait_ms);
void remote_http_wake(struct remote_http *h);
