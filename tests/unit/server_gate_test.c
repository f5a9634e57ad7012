/* The gate against a plain twin: a list of (byte, index) where every byte waits for its own
 * index and for all bytes before it. */

#include <string.h>

#include "base/mem.h"
#include "server/gate.h"
#include "tests/unit/unit.h"

enum { BYTES = 4000 };

struct twin {
    uint64_t waits_for[BYTES]; /* of each byte in the buffer */
    size_t len;
};

static size_t twin_open(const struct twin *t, uint64_t released)
{
    size_t n = 0;
    while (n < t->len && t->waits_for[n] <= released)
        n++;
    return n;
}

static void twin_append(struct twin *t, size_t n, uint64_t index)
{
    for (size_t i = 0; i < n; i++)
        t->waits_for[t->len++] = index;
}

static void twin_consume(struct twin *t, size_t n)
{
    memmove(t->waits_for, t->waits_for + n, (t->len - n) * sizeof *t->waits_for);
    t->len -= n;
}

/* Replies are appended, indexes released and bytes sent in any order; both must agree on what
 * may leave. A reply that saw an older index than its predecessor leaves right behind it. */
static void agrees_with_the_twin(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, unit_seed());
    for (int round = 0; round < 300; round++) {
        struct gate g = {0};
        struct twin t = {.len = 0};
        uint64_t released = 0, newest = 0;
        for (int step = 0; step < 200; step++) {
            size_t n = 1 + rng_below(&rng, 20);
            if (t.len + n < BYTES && rng_below(&rng, 2)) {
                newest += rng_below(&rng, 3);
                uint64_t index = rng_below(&rng, 4) ? newest : rng_below(&rng, newest + 1);
                if (index > released)
                    assert_true(gate_close(&g, t.len, index));
                twin_append(&t, n, index);
            } else if (released < newest) {
                released += rng_below(&rng, newest - released + 1);
            }
            size_t may = gate_open(&g, released, t.len);
            assert_int_equal(may, twin_open(&t, released));
            if (rng_below(&rng, 3) == 0) {
                gate_consume(&g, may);
                twin_consume(&t, may);
            }
        }
        assert_int_equal(gate_open(&g, newest, t.len), t.len);
        assert_true(gate_is_open(&g));
        gate_deinit(&g);
    }
}

/* A stream of writes that never ends does not hold up what was released. */
static void a_stream_of_writes_starves_nothing(void **state)
{
    (void)state;
    struct gate g = {0};
    size_t len = 0;
    for (uint64_t index = 1; index <= 10000; index++) {
        assert_true(gate_close(&g, len, index));
        len += 5;
        if (index > 50)
            assert_int_equal(gate_open(&g, index - 50, len), len - 250);
    }
    assert_true(g.cap <= 256); /* the places of open marks are used again */
    gate_deinit(&g);
}

static void without_memory_it_opens_late_and_never_early(void **state)
{
    (void)state;
    struct gate g = {0};
    mem_fail_after(1);
    assert_false(gate_close(&g, 0, 1));
    mem_fail_after(0);
    assert_true(gate_close(&g, 0, 1));
    mem_fail_after(1);
    for (uint64_t index = 2; index <= 20; index++)
        assert_true(gate_close(&g, (size_t)index * 10, index));
    mem_fail_after(0);
    for (uint64_t released = 0; released < 20; released++)
        assert_true(gate_open(&g, released, 300) <= (released + 1) * 10);
    assert_int_equal(gate_open(&g, 20, 300), 300);
    gate_deinit(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_twin),
        cmocka_unit_test(a_stream_of_writes_starves_nothing),
        cmocka_unit_test(without_memory_it_opens_late_and_never_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
