#pragma once
/* A circuit breaker: whether a request to something that may be down is worth its wait. Pure:
 * the caller brings the time.
 *
 *             threshold failures in a row
 *    CLOSED ───────────────────────────────► OPEN ◄──────────────┐
 *      ▲                                       │ its wait is over  │ the probe failed:
 *      │ any success                           ▼                   │ twice the wait
 *      └────────────────────────────────── HALF_OPEN ─────────────┘
 *
 * While it is open, requests are refused at once. When the wait is over one request is let
 * through, the probe; the others are refused until its end is known. Results of requests that
 * were under way when it opened: a success closes it, a failure says nothing new.
 *
 * Thread: one owner. */

#include <stdbool.h>
#include <stdint.h>

enum { BREAKER_THRESHOLD = 5, BREAKER_WAIT_FIRST_MS = 1000, BREAKER_WAIT_MAX_MS = 60000 };

enum breaker_state { BREAKER_CLOSED, BREAKER_OPEN, BREAKER_HALF_OPEN };

struct breaker { /* zeroed: closed */
    enum breaker_state state;
    unsigned n_failures; /* in a row, while closed */
    int64_t wait_ms;     /* of the last opening */
    int64_t open_until_ms;
};

/* Whether a request may go. Where it turned the breaker half open, it is the probe: its end
 * must be told. */
bool breaker_admit(struct breaker *b, int64_t now_ms);
void breaker_succeeded(struct breaker *b);
void breaker_failed(struct breaker *b, int64_t now_ms);
const char *breaker_name(enum breaker_state state);
