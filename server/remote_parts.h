#pragma once
/* How requests become HTTP requests: what remote_backend.c (the face), remote_job.c,
 * remote_call.c and remote_loop.c share.
 *
 *   the service's thread          this backend's thread
 *   embed: copy, queue ──► jobs ──► calls: texts of several jobs, at most batch_texts ──► HTTP
 *                           ▲ │                  │ good: vectors to their jobs
 *                           │ └─ past its time   │ may be better later: again after a pause
 *                           └────────────────────┘ else: to the fallback, or an error
 *
 * Only the arrivals are under the lock; jobs and calls belong to the thread. While fewer than
 * `parallel` calls are under way the next one takes what has come, at once: an idle endpoint
 * does not wait for company, a busy one gets full batches. Each call shares its room among the
 * jobs that wait, so a request of one text rides beside one of thousands.
 *
 * A job is answered when all its vectors are there or as soon as one call of its has failed. It
 * then leaves the list and the parts of its other calls, which go on for the sake of others or
 * are dropped.
 *
 * A text that the endpoint refuses must not fail those of other requests: a refused call of
 * several jobs is sent again as one call a job. */

#include <pthread.h>
#include <stdatomic.h>

#include "base/random.h"
#include "server/breaker.h"
#include "server/remote_backend.h"
#include "server/remote_fallback.h"
#include "server/remote_http.h"

struct remote_job { /* a request */
    struct remote_job *prev, *next;
    struct remote *owner;
    struct slice *texts; /* with their prompts; their bytes are behind them */
    uint32_t n, n_started, n_done;
    uint32_t n_tokens;
    unsigned n_calls; /* under way */
    size_t bytes;
    bool truncate;
    float *vectors; /* n x dim */
    int64_t arrived_us, deadline_us;
    void (*done)(void *arg, const struct backend_result *result);
    void *arg;
};

struct remote_part {        /* of a call: texts from .. from + n - 1 of a job */
    struct remote_job *job; /* NULL: it was answered meanwhile */
    uint32_t from, n;
    size_t bytes;
};

struct remote_call {           /* an HTTP request, with its repetitions */
    struct http_exchange http; /* first: what has ended is found by it */
    struct remote_call *next;
    bool running; /* else it waits for start_us */
    bool probe;   /* of the breaker */
    bool late;    /* a job of its did not wait any longer */
    unsigned attempt;
    int64_t start_us;
    struct buf body;
    struct remote_part *parts;
    uint32_t n_parts, n_texts;
    size_t bytes;
    struct err last; /* why the last attempt failed */
};

struct remote {
    struct remote_model model;
    struct remote_options options;
    char *address, *name, *key, *query_prompt, *document_prompt;
    struct remote_http *http;
    struct remote_fallback *fallback; /* or NULL */
    pthread_t thread;

    pthread_mutex_t lock; /* guards the four below */
    struct remote_job *arrivals, *last_arrival;
    size_t queued_bytes;
    bool closing;
    _Atomic uint64_t n_queued, n_batches, n_texts, n_tokens, n_retries, n_failed;
    atomic_int breaker_state;

    /* The thread's own. */
    struct remote_job jobs; /* the ring of all that are not answered */
    struct remote_call *calls;
    unsigned n_calls, n_running;
    struct breaker breaker;
    struct rng rng;
    int64_t last_good_us,
        hold_until_us;     /* no new call before that: the endpoint asked for it */
    struct err last, hold; /* the last failure; why new calls are held */
    bool check_due, on_fallback;
};

/* --- remote_job.c: all but make and free on the backend's thread --- */

/* The request with its texts copied, the prompt before each. */
int remote_job_make(struct remote *b, const struct backend_request *request,
                    struct remote_job **out, struct err *e);
void remote_job_free(struct remote_job *j);
void remote_job_append(struct remote *b, struct remote_job *j);
/* Answers with e, or has the fallback answer where the endpoint and not a text is at fault. */
void remote_job_fail(struct remote *b, struct remote_job *j, const struct err *e);
void remote_job_finish(struct remote *b, struct remote_job *j);
/* Whether it has texts that are in no call yet. */
bool remote_job_waits(const struct remote_job *j);
int64_t remote_job_deadline(const struct remote *b, const struct remote_job *j);
/* Tells the breaker of a success or a failure, and the log of what that changed. */
void remote_tell_breaker(struct remote *b, bool good, int64_t now_us);

/* --- remote_call.c --- */

/* A call with room for n parts, in the list; NULL when out of memory. */
struct remote_call *remote_call_new(struct remote *b, uint32_t n);
void remote_call_free(struct remote *b, struct remote_call *c);
/* Fills it with texts of the jobs from `first` on that wait. */
void remote_call_fill(struct remote *b, struct remote_call *c, struct remote_job *first);
void remote_call_run(struct remote *b, struct remote_call *c, int64_t now_us);
/* Its exchange has ended: what that means for it and its jobs. */
void remote_call_end(struct remote *b, struct remote_call *c);
unsigned remote_call_jobs(const struct remote_call *c); /* that still wait for it */

/* --- remote_loop.c, remote_backend.c --- */

void *remote_loop(void *backend);
/* Has the endpoint embed the texts that the fallback is compared by. */
void remote_check_fallback(struct remote *b);
