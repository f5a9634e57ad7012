#pragma once
/* Writes replies in RESP2 or RESP3 into a buffer.
 *
 * One call a reply element; aggregates announce their count first. What RESP2 lacks is written
 * as Redis writes it there: a map as a flat array, a double as a bulk string, a boolean
 * as :1/:0, null as $-1 or *-1. Thread: no shared state. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

struct resp_out {
    struct buf *to;
    int proto; /* 2 or 3 */
};

void resp_simple(struct resp_out o, const char *s); /* +OK */
void resp_ok(struct resp_out o);
/* message without the leading '-' and without line ends (they become spaces), "ERR ..." */
void resp_error(struct resp_out o, const char *message);
void resp_errorf(struct resp_out o, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void resp_int(struct resp_out o, int64_t v);
void resp_double(struct resp_out o, double v);
void resp_bool(struct resp_out o, bool v);
void resp_bulk(struct resp_out o, const void *p, size_t n);
void resp_bulk_str(struct resp_out o, const char *s);
void resp_bulkf(struct resp_out o, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void resp_verbatim(struct resp_out o, const char *type3, const void *p, size_t n);
void resp_null(struct resp_out o);       /* $-1 or _ */
void resp_null_array(struct resp_out o); /* *-1 or _ */
void resp_array(struct resp_out o, size_t n);
void resp_map(struct resp_out o, size_t n_pairs);
void resp_set(struct resp_out o, size_t n);
void resp_push(struct resp_out o, size_t n);
