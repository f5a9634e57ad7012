#pragma once
/* When to start a batch, as a pure decision: no clock, no lock, no thread.
 *
 * An idle engine starts at once: waiting for company that may not come only adds to the
 * answer's time. Waiting pays in one case. When a batch that served several requests has just
 * ended, its clients have their answers and are about to ask again; started on the first one
 * back, every batch would be a small one. So after such a batch the next one waits, for at most
 * wait_us, until as many requests are back as were served, or a full batch is there.
 *
 * Thread: one owner. */

#include <stdbool.h>
#include <stdint.h>

struct batching {
    uint64_t budget_tokens; /* of a batch */
    int64_t wait_us;        /* 0: never wait */
    /* The state proper. */
    uint64_t queued_tokens;
    uint32_t queued_requests;
    bool computing;
    uint32_t expected;     /* requests worth waiting for, 0: start with any */
    int64_t wait_until_us; /* meaningful while expected > 0 */
};

enum batching_kind {
    BATCHING_SUBMITTED, /* a request of n_tokens entered the queue */
    BATCHING_TAKEN,     /* a batch of n_tokens left it, with the last text of n_requests */
    BATCHING_FINISHED,  /* the batch under way is done; it was the last of n_requests */
    BATCHING_TIME       /* nothing happened but time */
};

struct batching_event {
    enum batching_kind kind;
    int64_t now_us;
    uint64_t n_tokens;
    uint32_t n_requests;
};

struct batching_update {
    bool start;      /* take a batch now, and report it with BATCHING_TAKEN */
    int64_t wake_us; /* when to come back with BATCHING_TIME if nothing happens; -1: never */
};

void batching_init(struct batching *b, uint64_t budget_tokens, int64_t wait_us);
struct batching_update batching_step(struct batching *b, const struct batching_event *event);
