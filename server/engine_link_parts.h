#pragma once
/* What the files of an engine's link share: engine_link.c (the child's life), engine_requests.c
 * (what is asked and sent), engine_answers.c (what the child says). Nobody else includes this.
 * engine_link.c opens with how it works. */

#include <pthread.h>
#include <stdatomic.h>

#include "protocol/resp_read.h"
#include "server/engine_link.h"
#include "server/engine_process.h"

enum {
    LINK_BUCKETS = 1024,
    LINK_ARGUMENTS_MAX = 64, /* a remote model with all its options has 41 */
    LINK_PROGRAM_MAX = 4096,
    LINK_READ_BYTES = 16 * 1024
};

/* The one %s is the link's label. */
#define LINK_CLOSING "ENGINE the engine of model '%s' is shutting down"
#define LINK_SLOW_LOAD "ENGINE the engine of model '%s' is still loading it, try again"

struct request {
    struct request *next;
    uint64_t id;
    enum engine_task task;
    uint32_t n;                   /* of the texts; of ENGINE_RERANK of the documents */
    size_t message_at, message_n; /* in the outgoing buffer, while nothing was sent yet */
    size_t bytes;
    void (*done)(void *arg, const struct engine_answer *a);
    void *arg;
};

struct engine_link {
    char program[LINK_PROGRAM_MAX];
    char *label;
    char *arguments[LINK_ARGUMENTS_MAX]; /* after the program's name; NULL-terminated */
    void (*on_start)(void *arg);
    void (*on_ready)(void *arg, const struct engine_model *model);
    void (*on_change)(void *arg);
    void *arg;
    _Atomic int64_t timeout_ms;
    size_t bytes_limit;
    int wake_fd;
    pthread_t thread;

    pthread_mutex_t lock; /* guards all down to the next comment */
    pthread_cond_t changed;
    enum engine_state state;
    bool closing, slow_load;
    bool tried;  /* the first start came to READY or to its end */
    bool ending; /* put away: the child that runs is to end, without a word */
    struct engine_process process;
    struct buf out;
    size_t out_sent;
    struct request *buckets[LINK_BUCKETS];
    size_t bytes_waiting;
    uint64_t next_id;
    int64_t next_start_us;
    struct engine_model model;
    struct engine_stats stats;

    /* The link's thread only. */
    struct resp_reader *reader;
    struct resp_request message;
    char read_buffer[LINK_READ_BYTES];
    float *vectors;
    size_t vectors_cap;
    bool returning; /* the next start is no restart: it was put away */
    int64_t started_us, last_ping_us, backoff_ms;
    int64_t
        unanswered_us; /* when the oldest PING without a PONG was sent, 0 when there is none */
    char end_reason[512];
};

/* --- engine_requests.c --- */
void link_answer_error(void (*done)(void *, const struct engine_answer *), void *arg, int code,
                       const char *message);
/* Takes the request out of the table; NULL when it was answered already. Lock held. */
struct request *link_take_request(struct engine_link *l, uint64_t id);
/* Requests that waited for the model while nobody knew its tasks, and that it does not have:
 * out of the table and, as nothing was sent yet, out of the buffer. Lock held. */
struct request *link_take_unfit(struct engine_link *l);
void link_say_unfit(const struct engine_link *l, enum engine_task task, char *message,
                    size_t size);
/* Answers everything that waits with one error and empties the outgoing buffer. Lock not held.
 */
void link_fail_all(struct engine_link *l, int code, const char *message);
/* Sends what the socket takes. Lock held. */
void link_send_some(struct engine_link *l);
void link_wake(struct engine_link *l); /* the link's thread */

/* --- engine_answers.c; on the link's thread --- */
/* Reads what is there and acts on whole messages. False when the child is to be given up. */
bool link_read_some(struct engine_link *l);
/* Why the child is given up; the first reason is the cause. */
void link_set_end(struct engine_link *l, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* --- engine_link.c --- */
void link_tell(struct engine_link *l); /* calls on_change; lock not held */
