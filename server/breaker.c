#include "server/breaker.h"

bool breaker_admit(struct breaker *b, int64_t now_ms)
{
    if (b->state == BREAKER_OPEN && now_ms >= b->open_until_ms) {
        b->state = BREAKER_HALF_OPEN;
        return true;
    }
    return b->state == BREAKER_CLOSED;
}

void breaker_succeeded(struct breaker *b)
{
    *b = (struct breaker){.state = BREAKER_CLOSED};
}

void breaker_failed(struct breaker *b, int64_t now_ms)
{
    if (b->state == BREAKER_OPEN)
        return;
    if (b->state == BREAKER_CLOSED && ++b->n_failures < BREAKER_THRESHOLD)
        return;
    if (b->state == BREAKER_CLOSED)
        b->wait_ms = BREAKER_WAIT_FIRST_MS;
    else if (b->wait_ms < BREAKER_WAIT_MAX_MS)
        b->wait_ms =
            b->wait_ms * 2 < BREAKER_WAIT_MAX_MS ? b->wait_ms * 2 : BREAKER_WAIT_MAX_MS;
    b->state = BREAKER_OPEN;
    b->open_until_ms = now_ms + b->wait_ms;
}

const char *breaker_name(enum breaker_state state)
{
    static const char *const names[] = {"closed", "open", "half-open"};
    return names[state];
}
