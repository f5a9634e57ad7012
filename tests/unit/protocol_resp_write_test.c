/* Every reply element, byte for byte, in both protocols. */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "protocol/resp_write.h"
#include "tests/unit/unit.h"

static void expect(struct buf *b, const char *wanted)
{
    assert_false(b->failed);
    assert_int_equal(b->len, strlen(wanted));
    assert_memory_equal(b->data, wanted, b->len);
    b->len = 0;
}

#define BOTH(call, resp2, resp3)                                                               \
    do {                                                                                       \
        struct resp_out o = {.to = &b, .proto = 2};                                            \
        call;                                                                                  \
        expect(&b, resp2);                                                                     \
        o.proto = 3;                                                                           \
        call;                                                                                  \
        expect(&b, resp3);                                                                     \
    } while (0)

static void every_element(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    BOTH(resp_ok(o), "+OK\r\n", "+OK\r\n");
    BOTH(resp_simple(o, "PONG"), "+PONG\r\n", "+PONG\r\n");
    BOTH(resp_error(o, "ERR a\r\nb"), "-ERR a  b\r\n", "-ERR a  b\r\n");
    BOTH(resp_errorf(o, "ERR %d", 7), "-ERR 7\r\n", "-ERR 7\r\n");
    BOTH(resp_int(o, 0), ":0\r\n", ":0\r\n");
    BOTH(resp_int(o, -1), ":-1\r\n", ":-1\r\n");
    BOTH(resp_int(o, INT64_MAX), ":9223372036854775807\r\n", ":9223372036854775807\r\n");
    BOTH(resp_int(o, INT64_MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n");
    BOTH(resp_double(o, 1.5), "$3\r\n1.5\r\n", ",1.5\r\n");
    BOTH(resp_double(o, 0.1), "$3\r\n0.1\r\n", ",0.1\r\n");
    BOTH(resp_double(o, INFINITY), "$3\r\ninf\r\n", ",inf\r\n");
    BOTH(resp_double(o, -INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n");
    BOTH(resp_double(o, NAN), "$3\r\nnan\r\n", ",nan\r\n");
    BOTH(resp_bool(o, true), ":1\r\n", "#t\r\n");
    BOTH(resp_bool(o, false), ":0\r\n", "#f\r\n");
    BOTH(resp_bulk(o, "a\r\n", 3), "$3\r\na\r\n\r\n", "$3\r\na\r\n\r\n");
    BOTH(resp_bulk(o, NULL, 0), "$0\r\n\r\n", "$0\r\n\r\n");
    BOTH(resp_bulk_str(o, "ab"), "$2\r\nab\r\n", "$2\r\nab\r\n");
    BOTH(resp_bulkf(o, "%s-%d", "a", 1), "$3\r\na-1\r\n", "$3\r\na-1\r\n");
    BOTH(resp_verbatim(o, "txt", "abc", 3), "$3\r\nabc\r\n", "=7\r\ntxt:abc\r\n");
    BOTH(resp_null(o), "$-1\r\n", "_\r\n");
    BOTH(resp_null_array(o), "*-1\r\n", "_\r\n");
    BOTH(resp_array(o, 3), "*3\r\n", "*3\r\n");
    BOTH(resp_map(o, 3), "*6\r\n", "%3\r\n");
    BOTH(resp_set(o, 3), "*3\r\n", "~3\r\n");
    BOTH(resp_push(o, 3), "*3\r\n", ">3\r\n");
    buf_deinit(&b);
}

/* Longer than any buffer on the stack. */
static void long_texts(void **state)
{
    (void)state;
    char *text = malloc(5001);
    memset(text, 'x', 5000);
    text[5000] = '\0';
    struct buf b;
    buf_init(&b);
    struct resp_out o = {.to = &b, .proto = 2};
    resp_bulkf(o, "<%s>", text);
    assert_int_equal(b.len, 7 + 5002 + 2);
    assert_memory_equal(b.data, "$5002\r\n<xxx", 11);
    assert_memory_equal(b.data + b.len - 4, "x>\r\n", 4);
    b.len = 0;
    resp_error(o, text);
    assert_int_equal(b.len, 5003);
    b.len = 0;
    resp_errorf(o, "ERR %s", text); /* cut, but a whole line */
    assert_memory_equal(b.data, "-ERR x", 6);
    assert_memory_equal(b.data + b.len - 2, "\r\n", 2);
    buf_deinit(&b);
    free(text);
}

static void no_memory_marks_the_buffer(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    struct resp_out o = {.to = &b, .proto = 3};
    mem_fail_after(1);
    resp_bulk(o, "a", 1);
    resp_int(o, 1);
    resp_error(o, "ERR a");
    resp_verbatim(o, "txt", "a", 1);
    resp_map(o, 1);
    mem_fail_after(0);
    assert_true(b.failed);
    assert_int_equal(b.len, 0);
    resp_bulk(o, "a", SIZE_MAX);
    assert_true(b.failed);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_element),
        cmocka_unit_test(long_texts),
        cmocka_unit_test(no_memory_marks_the_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
