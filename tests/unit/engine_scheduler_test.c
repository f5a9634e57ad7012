/* The scheduler with a forward function that the test controls: a vector says which sequence it
 * is of, and the function can be held, made to fail, or to give a value that is no number. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/random.h"
#include "engine/model.h"
#include "engine/scheduler.h"
#include "tests/unit/unit.h"

enum { DIM = 4, BATCH_TOKENS = 32, LONGEST = 50, MAX_BATCHES = 4096 };

struct fake {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held;    /* forward waits while it is */
    bool entered; /* forward is inside */
    int fail;     /* what forward returns */
    bool nan;
    uint32_t n_batches;
    uint32_t first_texts[MAX_BATCHES]; /* texts of each batch */
};

static int fake_forward(void *context, const struct model_batch *batch, float *vectors,
                        struct err *e)
{
    struct fake *f = context;
    pthread_mutex_lock(&f->lock);
    f->entered = true;
    pthread_cond_broadcast(&f->changed);
    while (f->held)
        pthread_cond_wait(&f->changed, &f->lock);
    f->entered = false;
    if (f->n_batches < MAX_BATCHES)
        f->first_texts[f->n_batches++] = batch->n_texts;
    int fail = f->fail;
    bool nan = f->nan;
    pthread_mutex_unlock(&f->lock);
    if (fail)
        return err_set(e, fail, "told to fail");
    uint32_t longest = UINT32_MAX;
    for (uint32_t t = 0; t < batch->n_texts; t++) {
        uint32_t n = batch->offsets[t + 1] - batch->offsets[t];
        if (n > longest || n == 0 || (batch->n_tokens > BATCH_TOKENS && batch->n_texts > 1))
            return err_set(e, KITH_EINVAL, "the batch is not sorted or too large");
        longest = n;
        float sum = 0;
        for (uint32_t i = batch->offsets[t]; i < batch->offsets[t + 1]; i++)
            sum += (float)batch->ids[i];
        for (uint32_t d = 0; d < DIM; d++)
            vectors[t * DIM + d] = d == 0           ? (float)batch->ids[batch->offsets[t]]
                                   : d == 1         ? sum
                                   : d == 2         ? (float)n
                                   : d == 3 && !nan ? (float)(batch->splits[t] + 1)
                                   : nan            ? NAN
                                                    : 0;
    }
    return 0;
}

static void hold(struct fake *f, bool held)
{
    pthread_mutex_lock(&f->lock);
    f->held = held;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

static void wait_entered(struct fake *f)
{
    pthread_mutex_lock(&f->lock);
    while (!f->entered)
        pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
}

static struct scheduler *start(struct fake *f, uint64_t max_queue)
{
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    const struct scheduler_options o = {DIM,       BATCH_TOKENS, LONGEST, 100,
                                        max_queue, fake_forward, f};
    struct scheduler *s;
    struct err e;
    assert_int_equal(scheduler_new(&s, &o, &e), 0);
    return s;
}

/* A request of n texts whose first ids are `mark`, mark + 1, ...; the answer is checked. */
struct asked {
    int32_t mark;
    uint32_t n, n_tokens;
    uint32_t lengths[16];
    atomic_int calls;
    atomic_int code;
    atomic_bool right;
};

/* Every other request has texts of two types, the others go without. */
static bool has_splits(int32_t mark)
{
    return mark % 200 == 100;
}

static void on_done(void *arg, const struct scheduler_result *r)
{
    struct asked *a = arg;
    bool right = r->n == a->n && r->dim == DIM && r->n_tokens == a->n_tokens;
    for (uint32_t i = 0; i < a->n && !r->code; i++) {
        const float *v = r->vectors + (size_t)i * DIM;
        right = right && (int32_t)v[0] == a->mark + (int32_t)i &&
                (uint32_t)v[2] == a->lengths[i] &&
                (uint32_t)v[3] == (has_splits(a->mark) ? a->lengths[i] / 2 + 1 : 0);
    }
    atomic_store(&a->right, right);
    atomic_store(&a->code, r->code);
    atomic_fetch_add(&a->calls, 1);
}

static int ask(struct scheduler *s, struct asked *a, int32_t mark, uint32_t n,
               const uint32_t *lengths, struct err *e)
{
    int32_t ids[16 * LONGEST] = {0};
    uint32_t offsets[17] = {0}, splits[16];
    memset(a, 0, sizeof *a);
    a->mark = mark;
    a->n = n;
    for (uint32_t i = 0; i < n; i++) {
        a->lengths[i] = lengths[i];
        ids[offsets[i]] = mark + (int32_t)i;
        offsets[i + 1] = offsets[i] + lengths[i];
        splits[i] = lengths[i] / 2;
    }
    a->n_tokens = offsets[n];
    const struct scheduler_request q = {ids, offsets, has_splits(mark) ? splits : NULL,
                                        n,   on_done, a};
    return scheduler_submit(s, &q, e);
}

static void wait_called(const struct asked *a)
{
    for (int i = 0; i < 200000 && atomic_load(&a->calls) == 0; i++)
        clock_sleep_us(500);
    assert_int_equal(atomic_load(&a->calls), 1);
}

static void answers_in_the_requests_order(void **state)
{
    (void)state;
    struct fake f;
    struct scheduler *s = start(&f, 10000);
    struct asked a;
    struct err e;
    const uint32_t lengths[] = {3, 32, 1, 7, 32, 2};
    assert_int_equal(ask(s, &a, 100, 6, lengths, &e), 0);
    wait_called(&a);
    assert_int_equal(a.code, 0);
    assert_true(a.right);
    struct scheduler_stats stats;
    scheduler_stats(s, &stats);
    assert_int_equal(stats.texts, 6);
    assert_int_equal(stats.tokens, 77);
    assert_int_equal(stats.queued_tokens, 0);
    scheduler_free(s);
}

/* A one-text request that comes after a huge one rides in the next batch. */
static void small_requests_overtake(void **state)
{
    (void)state;
    struct fake f;
    struct scheduler *s = start(&f, 10000);
    struct asked first, large, small;
    struct err e;
    const uint32_t lengths[] = {16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16};
    hold(&f, true);
    assert_int_equal(ask(s, &first, 1, 1, lengths, &e), 0);
    wait_entered(&f);
    assert_int_equal(ask(s, &large, 100, 16, lengths, &e), 0);
    assert_int_equal(ask(s, &small, 500, 1, lengths, &e), 0);
    hold(&f, false);
    wait_called(&small);
    wait_called(&large);
    assert_true(small.right && large.right);
    /* first alone; then one of large and small; then seven of two and one of one. */
    assert_int_equal(f.first_texts[0], 1);
    assert_int_equal(f.first_texts[1], 2);
    assert_int_equal(f.n_batches, 1 + 1 + 8);
    scheduler_free(s);
}

static void bounded_queue(void **state)
{
    (void)state;
    struct fake f;
    struct scheduler *s = start(&f, 40);
    struct asked a, b, c, d;
    struct err e;
    const uint32_t lengths[] = {30, 30};
    hold(&f, true);
    assert_int_equal(ask(s, &a, 1, 1, lengths, &e), 0);
    wait_entered(&f); /* a is out of the queue */
    assert_int_equal(ask(s, &b, 2, 1, lengths, &e), 0);
    assert_int_equal(ask(s, &c, 3, 1, lengths, &e), KITH_EBUSY);
    assert_int_equal(ask(s, &d, 4, 2, lengths, &e), KITH_ELIMIT);
    hold(&f, false);
    wait_called(&b);
    assert_int_equal(c.calls, 0);
    const uint32_t zero[] = {0}, long_one[] = {LONGEST + 1};
    assert_int_equal(ask(s, &c, 3, 1, zero, &e), KITH_EINVAL);
    assert_int_equal(ask(s, &c, 3, 1, long_one, &e), KITH_EINVAL);
    scheduler_free(s);
}

/* A batch that fails fails its requests as wholes, also what of them still waits; others go on.
 */
static void failure_is_contained(void **state)
{
    (void)state;
    struct fake f;
    struct scheduler *s = start(&f, 10000);
    struct asked large, after;
    struct err e;
    const uint32_t lengths[] = {32, 32, 32, 32};
    hold(&f, true);
    f.fail = KITH_ENOMEM;
    assert_int_equal(ask(s, &large, 1, 4, lengths, &e), 0);
    wait_entered(&f);
    hold(&f, false);
    wait_called(&large);
    assert_int_equal(large.code, KITH_ENOMEM);
    struct scheduler_stats stats;
    scheduler_stats(s, &stats);
    assert_int_equal(stats.queued_tokens, 0);
    assert_int_equal(stats.queued_requests, 0);
    pthread_mutex_lock(&f.lock);
    f.fail = 0;
    f.nan = true;
    pthread_mutex_unlock(&f.lock);
    assert_int_equal(ask(s, &after, 9, 1, lengths, &e), 0);
    wait_called(&after);
    assert_int_equal(after.code, KITH_ECORRUPT);
    pthread_mutex_lock(&f.lock);
    f.nan = false;
    pthread_mutex_unlock(&f.lock);
    assert_int_equal(ask(s, &after, 9, 1, lengths, &e), 0);
    wait_called(&after);
    assert_int_equal(after.code, 0);
    scheduler_free(s);
}

static void *free_scheduler(void *s)
{
    scheduler_free(s);
    return NULL;
}

/* A sequence longer than a batch goes alone, in its turn: what came later does not go before it
 * for ever, and what fits beside others does not wait for it. */
static void a_long_one_goes_alone(void **state)
{
    (void)state;
    struct fake f;
    struct scheduler *s = start(&f, 10000);
    struct asked first, small, long_one, later;
    struct err e;
    const uint32_t one[] = {8}, longest[] = {LONGEST};
    hold(&f, true);
    assert_int_equal(ask(s, &first, 1, 1, one, &e), 0);
    wait_entered(&f);
    assert_int_equal(ask(s, &small, 10, 1, one, &e), 0);
    assert_int_equal(ask(s, &long_one, 20, 1, longest, &e), 0);
    assert_int_equal(ask(s, &later, 30, 1, one, &e), 0);
    hold(&f, false);
    wait_called(&first);
    wait_called(&small);
    wait_called(&later);
    wait_called(&long_one);
    assert_true(small.right && long_one.right && later.right);
    scheduler_free(s);
    assert_int_equal(f.n_batches, 3); /* the first; the small one and the later; the long one */
    assert_int_equal(f.first_texts[1], 2);
    assert_int_equal(f.first_texts[2], 1);
}

static void stop_cancels_what_waits(void **state)
{
    (void)state;
    struct fake f;
    struct scheduler *s = start(&f, 64);
    struct asked a, b, probe;
    struct err e;
    const uint32_t lengths[] = {32, 32};
    hold(&f, true);
    assert_int_equal(ask(s, &a, 1, 1, lengths, &e), 0);
    wait_entered(&f);
    assert_int_equal(ask(s, &b, 2, 2, lengths, &e), 0);
    pthread_t stopper;
    assert_int_equal(pthread_create(&stopper, NULL, free_scheduler, s), 0);
    /* The queue is full, so a probe says BUSY until the stop has been asked for. */
    while (ask(s, &probe, 3, 1, lengths, &e) == KITH_EBUSY)
        clock_sleep_us(100);
    assert_int_equal(e.code, KITH_ECLOSED);
    hold(&f, false);
    pthread_join(stopper, NULL);
    assert_int_equal(a.calls, 1);
    assert_int_equal(a.code, 0);
    assert_int_equal(b.calls, 1);
    assert_int_equal(b.code, KITH_ECLOSED);
}

static void out_of_memory_is_an_answer(void **state)
{
    (void)state;
    struct fake f;
    struct scheduler *s = start(&f, 10000);
    struct asked a;
    struct err e;
    const uint32_t lengths[] = {3, 4};
    int rc = KITH_ENOMEM;
    long n = 1;
    for (; rc == KITH_ENOMEM && n < 100; n++) {
        mem_fail_after(n);
        rc = ask(s, &a, 1, 2, lengths, &e);
        mem_fail_after(0);
    }
    assert_int_equal(rc, 0);
    assert_true(n > 6);
    wait_called(&a);
    assert_true(a.right);
    scheduler_free(s);
}

enum { CLIENTS = 4, ASKS = 300 };

struct client {
    struct scheduler *s;
    uint64_t seed;
    int wrong;
};

static void *client_main(void *arg)
{
    struct client *c = arg;
    struct rng rng;
    rng_seed(&rng, c->seed);
    for (int i = 0; i < ASKS; i++) {
        struct asked a;
        struct err e;
        uint32_t lengths[16], n = 1 + (uint32_t)rng_below(&rng, 16);
        for (uint32_t t = 0; t < n; t++)
            lengths[t] = 1 + (uint32_t)rng_below(&rng, LONGEST);
        int rc = ask(c->s, &a, (int32_t)rng_below(&rng, 1000), n, lengths, &e);
        while (!rc && atomic_load(&a.calls) == 0)
            clock_sleep_us(20);
        if (rc || atomic_load(&a.code) || !atomic_load(&a.right))
            c->wrong++;
    }
    return NULL;
}

static void many_clients(void **state)
{
    (void)state;
    const uint64_t seed = rng_entropy();
    print_message("seed %llu\n", (unsigned long long)seed);
    struct fake f;
    struct scheduler *s = start(&f, 1u << 20);
    struct client clients[CLIENTS];
    pthread_t threads[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){s, seed + (uint64_t)i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, client_main, &clients[i]), 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(clients[i].wrong, 0);
    }
    scheduler_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_in_the_requests_order),
        cmocka_unit_test(small_requests_overtake),
        cmocka_unit_test(bounded_queue),
        cmocka_unit_test(failure_is_contained),
        cmocka_unit_test(a_long_one_goes_alone),
        cmocka_unit_test(stop_cancels_what_waits),
        cmocka_unit_test(out_of_memory_is_an_answer),
        cmocka_unit_test(many_clients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
