/* The request reader against every way a client can cut, mix or break its stream. */

#include <string.h>
#include <time.h>

#include "protocol/resp_read.h"
#include "tests/unit/unit.h"

static const struct resp_limits roomy = {
    .max_bulk_bytes = 512u << 20, .max_request_bytes = 1024u << 20, .authenticated = true};
static const struct resp_limits stranger = {
    .max_bulk_bytes = 512u << 20, .max_request_bytes = 1024u << 20, .authenticated = false};

/* Appends what comes out as text: "[a|b]" a request, "!message" an error. */
static bool drain(struct resp_reader *r, const struct resp_limits *limits,
                  struct resp_request *q, struct buf *out)
{
    for (;;) {
        struct err e = {0};
        switch (resp_reader_next(r, limits, q, &e)) {
        case RESP_INCOMPLETE:
            return true;
        case RESP_ERROR:
            buf_append_str(out, "!");
            buf_append_str(out, e.message);
            assert_int_not_equal(e.code, 0);
            return false;
        case RESP_REQUEST:
            assert_true(q->argc >= 1);
            for (int i = 0; i < q->argc; i++) {
                buf_append_str(out, i ? "|" : "[");
                buf_append(out, q->argv[i].p, q->argv[i].n);
            }
            buf_append_str(out, "]");
            resp_request_reset(q);
        }
    }
}

/* Feeds input in pieces: of `piece` bytes, or of random sizes where rng is given. */
static void feed(const char *input, size_t n, size_t piece, struct rng *rng,
                 const struct resp_limits *limits, struct buf *out)
{
    struct resp_reader *r = resp_reader_new();
    assert_non_null(r);
    struct resp_request q;
    resp_request_init(&q);
    bool good = true;
    for (size_t at = 0; good && at < n;) {
        size_t size = rng ? 1 + rng_below(rng, piece) : piece;
        size = size < n - at ? size : n - at;
        assert_int_equal(resp_reader_feed(r, input + at, size), 0);
        good = drain(r, limits, &q, out);
        at += size;
    }
    buf_append_str(out, resp_reader_idle(r) ? "" : "~");
    resp_request_deinit(&q);
    resp_reader_free(r);
}

static void expect(const char *input, size_t n, const struct resp_limits *limits,
                   const char *wanted)
{
    static const size_t pieces[] = {1, 2, 3, 7, 64, SIZE_MAX};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        struct buf out;
        buf_init(&out);
        feed(input, n, pieces[i], NULL, limits, &out);
        buf_u8(&out, 0);
        assert_string_equal(out.data, wanted);
        buf_deinit(&out);
    }
}

struct example {
    const char *input, *output;
};

static void expect_all(const struct example *x, size_t n, const struct resp_limits *limits)
{
    for (size_t i = 0; i < n; i++)
        expect(x[i].input, strlen(x[i].input), limits, x[i].output);
}
#define EXPECT_ALL(examples, limits)                                                           \
    expect_all(examples, sizeof examples / sizeof *examples, limits)

static void arrays_and_inline_mixed(void **state)
{
    (void)state;
    static const struct example good[] = {
        {"*1\r\n$4\r\nPING\r\n", "[PING]"},
        {"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", "[GET|]"},
        {"PING\r\n", "[PING]"},
        {"PING\n", "[PING]"},
        {"\r\n\r\n\nPING\r\n", "[PING]"},
        {"*0\r\nPING\r\n", "[PING]"},
        {"*-1\r\n*-12345\r\nPING\r\n", "[PING]"},
        {"set a 1\r\n*2\r\n$3\r\nget\r\n$1\r\na\r\nget b\r\n", "[set|a|1][get|a][get|b]"},
        {"*2\r\n$3\r\nget\r\n$1\r\na\r\n\r\n*1\r\n$1\r\nx\r\n", "[get|a][x]"},
        {"$5\r\n", "[$5]"},
        {"*1\r\n$4\r\n\r\n\r\n\r\n", "[\r\n\r\n]"},
        {"*1\r\n$4\r\nPIN", "~"},
        {"*", "~"},
        {"*-", "~"},
        {"PIN", "~"},
    };
    EXPECT_ALL(good, &roomy);
}

static void inline_quotes(void **state)
{
    (void)state;
    static const struct example quotes[] = {
        {"a \"b c\" d\r\n", "[a|b c|d]"},
        {"a 'b c' d\r\n", "[a|b c|d]"},
        {"a \"\" ''\r\n", "[a||]"},
        {"a x\"y z\"\r\n", "[a|xy z]"},
        {"\"\\x41\\x4a\\n\\t\\\\\\\"\\q\"\r\n", "[AJ\n\t\\\"q]"},
        {"\"\\x4\"\r\n", "[x4]"},
        {"'it\\'s' 'a\\n'\r\n", "[it's|a\\n]"},
        {"  \t a \t b  \r\n", "[a|b]"},
        {"a \"b\r\n", "!Protocol error: unbalanced quotes in request"},
        {"a 'b\r\n", "!Protocol error: unbalanced quotes in request"},
        {"a \"b\"c\r\n", "!Protocol error: unbalanced quotes in request"},
        {"a \"b\\\"\r\n", "!Protocol error: unbalanced quotes in request"},
    };
    struct buf out;
    for (size_t i = 0; i < sizeof quotes / sizeof *quotes; i++) {
        buf_init(&out);
        feed(quotes[i].input, strlen(quotes[i].input), SIZE_MAX, NULL, &roomy, &out);
        buf_u8(&out, 0);
        assert_memory_equal(out.data, quotes[i].output, strlen(quotes[i].output));
        buf_deinit(&out);
    }
}

static void refusals_have_redis_texts(void **state)
{
    (void)state;
    static const struct example bad[] = {
        {"*x\r\n", "!Protocol error: invalid multibulk length~"},
        {"*1\r\n$1\r\na\r\n*x\r\n", "[a]!Protocol error: invalid multibulk length~"},
        {"*01\r\n", "!Protocol error: invalid multibulk length~"},
        {"*+1\r\n", "!Protocol error: invalid multibulk length~"},
        {"*-x\r\n", "!Protocol error: invalid multibulk length~"},
        {"*1048577\r\n", "!Protocol error: invalid multibulk length~"},
        {"*3000000000\r\n", "!Protocol error: invalid multibulk length~"},
        {"*99999999999999999999\r\n", "!Protocol error: invalid multibulk length~"},
        {"*1\r\nfoo\r\n", "!Protocol error: expected '$', got 'f'~"},
        {"*1\r\n*1\r\n", "!Protocol error: expected '$', got '*'~"},
        {"*1\r\n:1\r\n", "!Protocol error: expected '$', got ':'~"},
        {"*1\r\n+a\r\n", "!Protocol error: expected '$', got '+'~"},
        {"*1\r\n-a\r\n", "!Protocol error: expected '$', got '-'~"},
        {"*1\r\n\xff\r\n", "!Protocol error: expected '$', got '\xff'~"},
        {"*1\r\n\n", "!Protocol error: expected '$', got '\n'~"},
        {"*1\r\n\"\r\n", "!Protocol error: expected '$', got '\"'~"},
        {"*1\r\n$-1\r\n", "!Protocol error: invalid bulk length~"},
        {"*1\r\n$x\r\n", "!Protocol error: invalid bulk length~"},
        {"*1\r\n$04\r\n", "!Protocol error: invalid bulk length~"},
        {"*1\r\n$536870913\r\n", "!Protocol error: invalid bulk length~"},
        {"*1\r\n$9223372036854775807\r\n", "!Protocol error: invalid bulk length~"},
        {"*2\r\n$1\r\na\r\n$x\r\n", "!Protocol error: invalid bulk length~"},
    };
    EXPECT_ALL(bad, &roomy);
}

static void strangers_are_kept_short(void **state)
{
    (void)state;
    static const struct example x[] = {
        {"*10\r\n", "~"},
        {"*11\r\n", "!Protocol error: unauthenticated multibulk length~"},
        {"*1\r\n$16384\r\n", "~"},
        {"*1\r\n$16385\r\n", "!Protocol error: unauthenticated bulk length~"},
    };
    EXPECT_ALL(x, &stranger);
}

static void one_request_is_bounded(void **state)
{
    (void)state;
    struct resp_limits small = {
        .max_bulk_bytes = 100, .max_request_bytes = 120, .authenticated = true};
    static const struct example x[] = {
        {"*1\r\n$101\r\n", "!Protocol error: invalid bulk length~"},
        {"*3\r\n$30\r\n012345678901234567890123456789\r\n$90\r\n", "~"},
        {"*3\r\n$30\r\n012345678901234567890123456789\r\n$91\r\n",
         "!Protocol error: request is larger than client-query-buffer-limit~"},
    };
    EXPECT_ALL(x, &small);
}

static void long_lines_are_refused(void **state)
{
    (void)state;
    size_t n = RESP_INLINE_MAX + 2;
    char *line = malloc(n);
    assert_non_null(line);
    static const struct {
        const char *start, *error;
    } x[] = {{"AA", "!Protocol error: too big inline request~"},
             {"*1", "!Protocol error: too big mbulk count string~"},
             {"*-", "!Protocol error: invalid multibulk length~"},
             {"*1\r\n$1", "!Protocol error: too big bulk count string~"}};
    for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
        memset(line, '1', n);
        memcpy(line, x[i].start, strlen(x[i].start));
        struct buf out;
        buf_init(&out);
        feed(line, n, 1000, NULL, &roomy, &out);
        buf_u8(&out, 0);
        assert_string_equal(out.data, x[i].error);
        buf_deinit(&out);
    }
    free(line);
}

/* What a client announces takes no memory before it has come. */
static void announcing_is_free(void **state)
{
    (void)state;
    struct resp_reader *r = resp_reader_new();
    struct resp_request q;
    resp_request_init(&q);
    struct err e;
    const char *input = "*1048576\r\n$1\r\na\r\n$500000000\r\n";
    assert_int_equal(resp_reader_feed(r, input, strlen(input)), 0);
    assert_int_equal(resp_reader_next(r, &roomy, &q, &e), RESP_INCOMPLETE);
    assert_int_equal(q.argc, 1);
    assert_true(q.argv_cap <= 16);
    assert_int_equal(resp_reader_wanted(r), 500000002);
    assert_int_equal(resp_reader_buffered(r), strlen("500000000\r\n"));
    assert_false(resp_reader_idle(r));
    resp_request_deinit(&q);
    resp_reader_free(r);
}

static void append_request(struct buf *in, struct buf *wanted, struct rng *rng)
{
    bool is_inline = rng_below(rng, 3) == 0;
    size_t argc = 1 + rng_below(rng, rng_below(rng, 50) == 0 ? 300 : 6);
    if (!is_inline)
        buf_printf(in, "*%zu\r\n", argc);
    for (size_t i = 0; i < argc; i++) {
        char arg[3000];
        size_t n = rng_below(rng, rng_below(rng, 20) == 0 ? sizeof arg : 12);
        n = is_inline && n == 0 ? 1 : n;
        for (size_t k = 0; k < n; k++)
            arg[k] = is_inline ? (char)('a' + rng_below(rng, 26)) : (char)rng_next(rng);
        if (is_inline)
            buf_append_str(in, i ? " " : "");
        else
            buf_printf(in, "$%zu\r\n", n);
        buf_append(in, arg, n);
        buf_append_str(in, is_inline ? "" : "\r\n");
        buf_append_str(wanted, i ? "|" : "[");
        buf_append(wanted, arg, n);
    }
    buf_append_str(in, is_inline ? "\r\n" : "");
    buf_append_str(wanted, "]");
}

static void random_streams_in_random_pieces(void **state)
{
    (void)state;
    uint64_t seed = unit_seed();
    struct rng rng;
    rng_seed(&rng, seed);
    for (int round = 0; round < 60; round++) {
        struct buf in, wanted, out;
        buf_init(&in);
        buf_init(&wanted);
        buf_init(&out);
        for (size_t i = 1 + rng_below(&rng, 200); i > 0; i--)
            append_request(&in, &wanted, &rng);
        feed(in.data, in.len, 1u << rng_below(&rng, 17), &rng, &roomy, &out);
        assert_int_equal(out.len, wanted.len);
        assert_memory_equal(out.data, wanted.data, out.len);
        buf_deinit(&in);
        buf_deinit(&wanted);
        buf_deinit(&out);
    }
}

/* Twice the bytes take about twice the time, however small the pieces. */
static void a_long_argument_is_linear(void **state)
{
    (void)state;
    enum { LONG = 32 << 20, PIECE = 16 << 10 };
    char *piece = calloc(1, PIECE);
    struct resp_reader *r = resp_reader_new();
    struct resp_request q;
    resp_request_init(&q);
    struct err e;
    char header[64];
    int n = snprintf(header, sizeof header, "*1\r\n$%d\r\n", LONG);
    assert_int_equal(resp_reader_feed(r, header, (size_t)n), 0);
    clock_t start = clock(); /* of the processor, whatever else the machine does */
    for (int at = 0; at < LONG; at += PIECE) {
        assert_int_equal(resp_reader_next(r, &roomy, &q, &e), RESP_INCOMPLETE);
        assert_int_equal(resp_reader_wanted(r), LONG - at + 2);
        assert_int_equal(resp_reader_feed(r, piece, PIECE), 0);
    }
    assert_int_equal(resp_reader_feed(r, "\r\n", 2), 0);
    assert_int_equal(resp_reader_next(r, &roomy, &q, &e), RESP_REQUEST);
    assert_int_equal(q.argv[0].n, LONG);
    assert_true(resp_reader_idle(r));
    assert_true(resp_reader_spare(r) <= 64 << 10); /* the memory went back */
    /* Quadratic would be 2048 copies of 16 MiB on the average: tens of seconds. */
    assert_true(clock() - start < 5 * CLOCKS_PER_SEC);
    resp_request_deinit(&q);
    resp_reader_free(r);
    free(piece);
}

/* Every allocation of ours fails once: an error comes out, nothing leaks. */
static void memory_runs_out(void **state)
{
    (void)state;
    const char *input = "*20\r\n"
                        "$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n"
                        "$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n"
                        "$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n"
                        "$1\r\na\r\n$1\r\na\r\nget x\r\n";
    int n_failed = 0;
    for (long n = 1;; n++) {
        mem_fail_after(n);
        struct resp_reader *r = resp_reader_new();
        bool whole = false;
        struct resp_request q;
        resp_request_init(&q);
        struct err e = {0};
        if (r && resp_reader_feed(r, input, strlen(input)) == 0)
            whole = resp_reader_next(r, &roomy, &q, &e) == RESP_REQUEST;
        mem_fail_after(0);
        if (r && !whole) {
            assert_int_equal(e.code, KITH_ENOMEM);
            assert_int_equal(resp_reader_next(r, &roomy, &q, &e), RESP_ERROR);
        }
        n_failed += !whole;
        resp_request_deinit(&q);
        resp_reader_free(r);
        if (whole)
            break;
    }
    assert_true(n_failed >= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays_and_inline_mixed),
        cmocka_unit_test(inline_quotes),
        cmocka_unit_test(refusals_have_redis_texts),
        cmocka_unit_test(strangers_are_kept_short),
        cmocka_unit_test(one_request_is_bounded),
        cmocka_unit_test(long_lines_are_refused),
        cmocka_unit_test(announcing_is_free),
        cmocka_unit_test(random_streams_in_random_pieces),
        cmocka_unit_test(a_long_argument_is_linear),
        cmocka_unit_test(memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
