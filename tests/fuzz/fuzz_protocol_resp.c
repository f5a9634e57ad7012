/* The request reader fed with anything, in pieces that the input itself chooses.
 *
 * Byte 0 chooses the limits, byte 1 the size of the pieces. What must hold: no crash; a request
 * that comes out is within the limits; the same bytes in one piece give the same requests and
 * end the same way. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "protocol/resp_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct run {
    uint64_t hash;
    size_t n_requests;
    bool broken;
};

static void take(struct run *run, const struct resp_limits *limits,
                 const struct resp_request *q)
{
    size_t bytes = 0;
    if (q->argc < 1 || q->argc > RESP_ARGS_MAX)
        abort();
    for (int i = 0; i < q->argc; i++) {
        bytes += q->argv[i].n;
        run->hash = hash64_seed(q->argv[i].p, q->argv[i].n, run->hash + q->argv[i].n);
        if (q->argv[i].n > limits->max_bulk_bytes && q->argv[i].n > RESP_INLINE_MAX)
            abort();
    }
    if (bytes != q->bytes)
        abort();
    run->n_requests++;
}

static struct run parse(const uint8_t *data, size_t n, size_t piece,
                        const struct resp_limits *limits)
{
    struct run run = {0};
    struct resp_reader *r = resp_reader_new();
    struct resp_request q;
    resp_request_init(&q);
    for (size_t at = 0; r && at < n && !run.broken; at += piece) {
        size_t size = piece < n - at ? piece : n - at;
        if (resp_reader_feed(r, data + at, size))
            abort();
        enum resp_status status;
        struct err e;
        while ((status = resp_reader_next(r, limits, &q, &e)) == RESP_REQUEST) {
            take(&run, limits, &q);
            resp_request_reset(&q);
        }
        run.broken = status == RESP_ERROR;
        if (resp_reader_wanted(r) > limits->max_bulk_bytes + 64)
            abort();
    }
    resp_request_deinit(&q);
    resp_reader_free(r);
    return run;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2)
        return 0;
    struct resp_limits limits = {.max_bulk_bytes = data[0] & 2 ? 1000 : 1u << 20,
                                 .max_request_bytes = data[0] & 4 ? 2000 : 4u << 20,
                                 .authenticated = data[0] & 1};
    struct run whole = parse(data + 2, n - 2, n, &limits);
    struct run pieces = parse(data + 2, n - 2, (size_t)data[1] + 1, &limits);
    if (whole.hash != pieces.hash || whole.n_requests != pieces.n_requests ||
        whole.broken != pieces.broken)
        abort();
    return 0;
}
