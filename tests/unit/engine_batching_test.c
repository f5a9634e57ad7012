/* The batching decision, driven by a made-up clock. */

#include "base/random.h"
#include "engine/batching.h"
#include "tests/unit/unit.h"

enum { BUDGET = 100, WAIT = 300 };

static struct batching_update step(struct batching *b, enum batching_kind kind, int64_t now,
                                   uint64_t n_tokens, uint32_t n_requests)
{
    const struct batching_event event = {kind, now, n_tokens, n_requests};
    return batching_step(b, &event);
}

static void idle_never_waits(void **state)
{
    (void)state;
    struct batching b;
    batching_init(&b, BUDGET, WAIT);
    assert_false(step(&b, BATCHING_TIME, 0, 0, 0).start);
    assert_true(step(&b, BATCHING_TIME, 0, 0, 0).wake_us == -1);
    assert_true(step(&b, BATCHING_SUBMITTED, 5, 7, 0).start);
}

static void one_client_never_waits(void **state)
{
    (void)state;
    struct batching b;
    batching_init(&b, BUDGET, WAIT);
    for (int64_t now = 0; now < 5000; now += 1000) {
        assert_true(step(&b, BATCHING_SUBMITTED, now, 7, 0).start);
        assert_false(step(&b, BATCHING_TAKEN, now, 7, 1).start);
        assert_false(step(&b, BATCHING_FINISHED, now + 500, 0, 1).start);
    }
}

static void nothing_starts_while_computing(void **state)
{
    (void)state;
    struct batching b;
    batching_init(&b, BUDGET, WAIT);
    step(&b, BATCHING_SUBMITTED, 0, 7, 0);
    step(&b, BATCHING_TAKEN, 0, 7, 1);
    struct batching_update u = step(&b, BATCHING_SUBMITTED, 1, BUDGET, 0);
    assert_false(u.start);
    assert_true(u.wake_us == -1);
    assert_true(step(&b, BATCHING_FINISHED, 2, 0, 1).start);
}

/* After a batch of three requests, two are not worth a batch until the deadline or the third.
 */
static void waits_for_company(void **state)
{
    (void)state;
    struct batching b;
    for (int ending = 0; ending < 3; ending++) {
        batching_init(&b, BUDGET, WAIT);
        for (int i = 0; i < 3; i++)
            step(&b, BATCHING_SUBMITTED, 0, 10, 0);
        step(&b, BATCHING_TAKEN, 0, 30, 3);
        step(&b, BATCHING_FINISHED, 1000, 0, 3);
        assert_false(step(&b, BATCHING_SUBMITTED, 1010, 10, 0).start);
        struct batching_update u = step(&b, BATCHING_SUBMITTED, 1020, 10, 0);
        assert_false(u.start);
        assert_true(u.wake_us == 1000 + WAIT);
        if (ending == 0)
            u = step(&b, BATCHING_SUBMITTED, 1030, 10, 0); /* all three are back */
        else if (ending == 1)
            u = step(&b, BATCHING_TIME, 1000 + WAIT, 0, 0); /* time is up */
        else
            u = step(&b, BATCHING_SUBMITTED, 1030, BUDGET, 0); /* a full batch */
        assert_true(u.start);
        /* The wait is over for good: the next lone request starts at once. */
        step(&b, BATCHING_TAKEN, 1400, b.queued_tokens, b.queued_requests);
        step(&b, BATCHING_FINISHED, 1500, 0, 1);
        assert_true(step(&b, BATCHING_SUBMITTED, 1501, 10, 0).start);
    }
}

static void zero_wait_never_waits(void **state)
{
    (void)state;
    struct batching b;
    batching_init(&b, BUDGET, 0);
    for (int i = 0; i < 3; i++)
        step(&b, BATCHING_SUBMITTED, 0, 10, 0);
    step(&b, BATCHING_TAKEN, 0, 30, 3);
    step(&b, BATCHING_FINISHED, 10, 0, 3);
    assert_true(step(&b, BATCHING_SUBMITTED, 10, 10, 0).start);
}

/* A thousand schedules: whenever something waits and nothing computes, there is a start, or a
 * time to come back at that is at most WAIT ahead; so no request is forgotten. */
static void never_forgets(void **state)
{
    (void)state;
    const uint64_t seed = rng_entropy();
    print_message("seed %llu\n", (unsigned long long)seed);
    struct rng rng;
    rng_seed(&rng, seed);
    for (int schedule = 0; schedule < 1000; schedule++) {
        struct batching b;
        batching_init(&b, BUDGET, WAIT);
        int64_t now = 0;
        uint32_t under_way = 0;
        for (int i = 0; i < 200; i++) {
            now += (int64_t)rng_below(&rng, 200);
            struct batching_update u;
            if (b.computing && rng_below(&rng, 2))
                u = step(&b, BATCHING_FINISHED, now, 0, under_way);
            else if (rng_below(&rng, 2))
                u = step(&b, BATCHING_SUBMITTED, now, 1 + rng_below(&rng, 60), 0);
            else
                u = step(&b, BATCHING_TIME, now, 0, 0);
            if (u.start) {
                assert_false(b.computing);
                assert_true(b.queued_requests > 0);
                under_way = 1 + (uint32_t)rng_below(&rng, b.queued_requests);
                uint64_t tokens = under_way == b.queued_requests ? b.queued_tokens : 0;
                step(&b, BATCHING_TAKEN, now, tokens, under_way);
            } else if (!b.computing && b.queued_requests > 0) {
                assert_true(u.wake_us > now && u.wake_us <= now + WAIT);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idle_never_waits),
        cmocka_unit_test(one_client_never_waits),
        cmocka_unit_test(nothing_starts_while_computing),
        cmocka_unit_test(waits_for_company),
        cmocka_unit_test(zero_wait_never_waits),
        cmocka_unit_test(never_forgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
