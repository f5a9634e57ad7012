/* The breaker: when it opens, how long for, who may go, and a random run against a plain model
 * of the same rules. */

#include "unit.h"

#include "server/breaker.h"

static void fail_times(struct breaker *b, int n, int64_t now_ms)
{
    for (int i = 0; i < n; i++)
        breaker_failed(b, now_ms);
}

static void opens_after_failures_in_a_row(void **state)
{
    (void)state;
    struct breaker b = {0};
    fail_times(&b, BREAKER_THRESHOLD - 1, 0);
    assert_true(breaker_admit(&b, 0));
    breaker_succeeded(&b); /* which begins the row anew */
    fail_times(&b, BREAKER_THRESHOLD - 1, 0);
    assert_true(breaker_admit(&b, 0));
    breaker_failed(&b, 10);
    assert_int_equal(b.state, BREAKER_OPEN);
    assert_false(breaker_admit(&b, 10));
    assert_false(breaker_admit(&b, 10 + BREAKER_WAIT_FIRST_MS - 1));
}

static void lets_one_probe_through(void **state)
{
    (void)state;
    struct breaker b = {0};
    fail_times(&b, BREAKER_THRESHOLD, 0);
    assert_true(breaker_admit(&b, BREAKER_WAIT_FIRST_MS));
    assert_int_equal(b.state, BREAKER_HALF_OPEN);
    for (int64_t ms = 0; ms < 1000000; ms += 1000)
        assert_false(breaker_admit(&b, BREAKER_WAIT_FIRST_MS + ms));
    breaker_succeeded(&b);
    assert_int_equal(b.state, BREAKER_CLOSED);
    assert_true(breaker_admit(&b, 0));
    fail_times(&b, BREAKER_THRESHOLD - 1, 0); /* a whole row again */
    assert_int_equal(b.state, BREAKER_CLOSED);
}

static void waits_twice_as_long_up_to_a_minute(void **state)
{
    (void)state;
    static const int64_t waits_ms[] = {1000,  2000,  4000,  8000, 16000,
                                       32000, 60000, 60000, 60000};
    struct breaker b = {0};
    int64_t now = 5;
    fail_times(&b, BREAKER_THRESHOLD, now);
    for (size_t i = 0; i < sizeof waits_ms / sizeof *waits_ms; i++) {
        assert_false(breaker_admit(&b, now + waits_ms[i] - 1));
        now += waits_ms[i];
        assert_true(breaker_admit(&b, now));
        breaker_failed(&b, now);
    }
    now += BREAKER_WAIT_MAX_MS;
    assert_true(breaker_admit(&b, now));
    breaker_succeeded(&b);
    fail_times(&b, BREAKER_THRESHOLD, now); /* and from the first wait again */
    assert_true(breaker_admit(&b, now + BREAKER_WAIT_FIRST_MS));
}

static void late_results_of_before(void **state)
{
    (void)state;
    struct breaker b = {0};
    fail_times(&b, BREAKER_THRESHOLD, 0);
    fail_times(&b, 20, 900); /* were under way: neither longer nor later */
    assert_true(breaker_admit(&b, BREAKER_WAIT_FIRST_MS));
    breaker_failed(&b, BREAKER_WAIT_FIRST_MS);
    breaker_succeeded(&b); /* an old one was answered after all */
    assert_true(breaker_admit(&b, BREAKER_WAIT_FIRST_MS));
    assert_int_equal(b.state, BREAKER_CLOSED);
}

/* Whatever happens: never two probes at a time, nothing goes before its time, and a breaker
 * that is asked long after the last failure always lets one through. */
static void random_runs(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    for (int run = 0; run < 2000; run++) {
        struct breaker b = {0};
        int64_t now = 0, closed_until = 0;
        unsigned row = 0;
        bool probing = false;
        for (int step = 0; step < 200; step++) {
            now += (int64_t)rng_below(&r, 3000);
            const enum breaker_state before = b.state;
            switch (rng_below(&r, 4)) {
            case 0:
                breaker_succeeded(&b);
                row = 0;
                probing = false;
                assert_int_equal(b.state, BREAKER_CLOSED);
                break;
            case 1:
                breaker_failed(&b, now);
                if (before == BREAKER_CLOSED)
                    assert_int_equal(b.state == BREAKER_OPEN, ++row == BREAKER_THRESHOLD);
                else
                    assert_int_equal(b.state, BREAKER_OPEN);
                if (before != BREAKER_OPEN && b.state == BREAKER_OPEN)
                    closed_until = now + b.wait_ms, row = 0, probing = false;
                assert_true(b.wait_ms <= BREAKER_WAIT_MAX_MS);
                break;
            default: {
                const bool goes = breaker_admit(&b, now);
                assert_int_equal(goes, before == BREAKER_CLOSED ||
                                           (before == BREAKER_OPEN && now >= closed_until));
                if (goes && before == BREAKER_OPEN) {
                    assert_false(probing);
                    probing = true;
                }
            }
            }
        }
        if (b.state == BREAKER_OPEN)
            assert_true(breaker_admit(&b, now + BREAKER_WAIT_MAX_MS));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_after_failures_in_a_row),
        cmocka_unit_test(lets_one_probe_through),
        cmocka_unit_test(waits_twice_as_long_up_to_a_minute),
        cmocka_unit_test(late_results_of_before),
        cmocka_unit_test(random_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
