#include "engine/batching.h"

void batching_init(struct batching *b, uint64_t budget_tokens, int64_t wait_us)
{
    *b = (struct batching){.budget_tokens = budget_tokens, .wait_us = wait_us};
}

static void apply(struct batching *b, const struct batching_event *event)
{
    switch (event->kind) {
    case BATCHING_SUBMITTED:
        b->queued_tokens += event->n_tokens;
        b->queued_requests++;
        break;
    case BATCHING_TAKEN:
        b->queued_tokens -= event->n_tokens;
        b->queued_requests -= event->n_requests;
        b->computing = true;
        b->expected = 0;
        break;
    case BATCHING_FINISHED:
        b->computing = false;
        b->expected = event->n_requests > 1 && b->wait_us > 0 ? event->n_requests : 0;
        b->wait_until_us = event->now_us + b->wait_us;
        break;
    case BATCHING_TIME:
        break;
    }
}

struct batching_update batching_step(struct batching *b, const struct batching_event *event)
{
    apply(b, event);
    if (b->expected > 0 && event->now_us >= b->wait_until_us)
        b->expected = 0;
    struct batching_update update = {.start = false, .wake_us = -1};
    if (b->computing || b->queued_requests == 0)
        return update;
    if (b->queued_requests >= b->expected || b->queued_tokens >= b->budget_tokens)
        update.start = true;
    else
        update.wake_us = b->wait_until_us;
    return update;
}
