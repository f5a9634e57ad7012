/* Chunked arrays against plain arrays in memory: random writes, growth, checkpoints that commit
 * or fail, reopening; readers in threads; allocation failures at every place. */
#include "tests/unit/storage_fixture.h"

#include <pthread.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/mem.h"
#include "storage/chunks.h"

enum { ARRAYS = 5, RECORDS_MAX = 3000 };
static const uint32_t strides[ARRAYS] = {8, 64, 200, 3000, 70000};
static const uint32_t limits[ARRAYS] = {RECORDS_MAX, RECORDS_MAX, 1500, 90, 7};

/* The model of a record is the seed of its bytes; 0 is a record never written. */
struct model {
    uint32_t n;
    uint64_t seeds[RECORDS_MAX];
};

struct world {
    char dir[64];
    struct store *store;
    struct chunks *arrays[ARRAYS];
    struct model now[ARRAYS], frozen[ARRAYS], stored[ARRAYS];
    uint64_t index;
};

static const struct store_options small = {.map_bytes = (size_t)1 << 30};

static void fill(char *record, uint32_t stride, uint64_t seed)
{
    struct rng r;
    rng_seed(&r, seed);
    for (uint32_t i = 0; i < stride; i += 8) {
        uint64_t v = seed ? rng_next(&r) : 0;
        memcpy(record + i, &v, stride - i < 8 ? stride - i : 8);
    }
}

static void check_record(struct world *w, int a, uint32_t i)
{
    static char expected[70000];
    struct err e = {0};
    epoch_enter();
    const char *p = records_at(chunks_records(w->arrays[a]), i, &e);
    if (!p)
        fail_msg("array %d record %u: %s", a, i, e.message);
    fill(expected, strides[a], w->now[a].seeds[i]);
    assert_memory_equal(p, expected, strides[a]);
    epoch_exit();
}

static void check_all(struct world *w)
{
    for (int a = 0; a < ARRAYS; a++) {
        assert_int_equal(records_count(chunks_records(w->arrays[a])), w->now[a].n);
        for (uint32_t i = 0; i < w->now[a].n; i++)
            check_record(w, a, i);
    }
}

static void open_world(struct world *w)
{
    struct err e = {0};
    assert_ok(store_open(&w->store, w->dir, &small, &e));
    assert_int_equal(store_state(w->store).index, w->index);
    memcpy(w->now, w->stored, sizeof w->now);
    for (int a = 0; a < ARRAYS; a++)
        assert_ok(
            chunks_open(&w->arrays[a], w->store, (uint32_t)a + 7, strides[a], w->now[a].n, &e));
}

static void close_world(struct world *w)
{
    for (int a = 0; a < ARRAYS; a++)
        chunks_free(w->arrays[a]);
    epoch_synchronize();
    assert_int_equal(store_dirty_bytes(w->store), 0);
    store_close(w->store);
    w->store = NULL;
}

static void mutate(struct world *w, struct rng *r, int times)
{
    struct err e = {0};
    for (int k = 0; k < times; k++) {
        int a = (int)rng_below(r, ARRAYS);
        struct model *m = &w->now[a];
        if (m->n < limits[a] && (m->n == 0 || rng_below(r, 4) == 0)) {
            uint32_t more = (uint32_t)rng_below(r, rng_below(r, 10) ? 4 : limits[a]) + 1;
            uint32_t n = m->n + more < limits[a] ? m->n + more : limits[a];
            assert_ok(records_grow(chunks_records(w->arrays[a]), n, &e));
            m->n = n;
        }
        uint32_t i = (uint32_t)rng_below(r, m->n);
        char *p = records_writable(chunks_records(w->arrays[a]), i, &e);
        if (!p)
            fail_msg("writable: %s", e.message);
        m->seeds[i] = rng_next(r) | 1;
        fill(p, strides[a], m->seeds[i]);
        check_record(w, a, i);
    }
}

/* One checkpoint, with writes between its steps; `how` 0 commits, 1 aborts, 2 commits and then
 * pretends that the refresh failed. */
static void checkpoint(struct world *w, struct rng *r, int how)
{
    struct err e = {0};
    struct store_write *t;
    memcpy(w->frozen, w->now, sizeof w->now);
    for (int a = 0; a < ARRAYS; a++)
        chunks_freeze(w->arrays[a]);
    mutate(w, r, 10);
    assert_ok(store_begin(w->store, &t, &e));
    for (int a = 0; a < ARRAYS; a++) {
        assert_ok(chunks_write(w->arrays[a], t, &e));
        mutate(w, r, 3);
    }
    if (how == 1) {
        store_abort(t);
    } else {
        w->index++;
        assert_ok(store_commit(t, 1, w->index, &e));
        memcpy(w->stored, w->frozen, sizeof w->stored);
        mutate(w, r, 3);
        if (how == 0)
            assert_ok(store_refresh(w->store, &e));
    }
    mutate(w, r, 3);
    for (int a = 0; a < ARRAYS; a++)
        chunks_settle(w->arrays[a], how != 1);
    mutate(w, r, 3);
    store_refreshed(w->store);
}

static void test_model(void **unused)
{
    (void)unused;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct world *w = calloc(1, sizeof *w);
    unit_dir_make(w->dir);
    open_world(w);
    for (int round = 0; round < 60; round++) {
        mutate(w, &r, (int)rng_below(&r, 60));
        if (rng_below(&r, 2))
            checkpoint(w, &r, rng_below(&r, 3) ? 0 : (int)rng_below(&r, 3));
        if (rng_below(&r, 6) == 0)
            check_all(w);
        if (rng_below(&r, 8) == 0) {
            close_world(w);
            open_world(w);
            if (rng_below(&r, 2))
                check_all(w);
        }
    }
    check_all(w);
    close_world(w);
    unit_remove(w->dir);
    free(w);
}

/* --- readers in threads --- */

enum { SHARED_N = 20000, SHARED_STRIDE = 64 };

struct shared {
    struct chunks *c;
    pthread_mutex_t owner;
    _Atomic bool stop;
    _Atomic uint64_t reads;
    _Atomic uint32_t bad;
    uint64_t seed;
};

/* A record is eight atomics: its number, and a version that only grows. */
static void *read_shared(void *arg)
{
    struct shared *s = arg;
    struct rng r;
    rng_seed(&r, s->seed + (uint64_t)(uintptr_t)&r);
    while (!atomic_load(&s->stop)) {
        epoch_enter();
        for (int k = 0; k < 50; k++) {
            uint32_t n = records_count(chunks_records(s->c));
            uint32_t i = (uint32_t)rng_below(&r, n);
            struct err e;
            _Atomic uint64_t *p = (void *)(uintptr_t)records_at(chunks_records(s->c), i, &e);
            uint64_t a = p ? atomic_load_explicit(&p[0], memory_order_relaxed) : 0;
            if (!p || (a != 0 && a != i + 1u))
                atomic_fetch_add(&s->bad, 1);
        }
        epoch_exit();
        atomic_fetch_add(&s->reads, 50);
    }
    return NULL;
}

static void *write_shared(void *arg)
{
    struct shared *s = arg;
    struct rng r;
    struct err e;
    rng_seed(&r, s->seed);
    while (!atomic_load(&s->stop)) {
        pthread_mutex_lock(&s->owner);
        uint32_t n = records_count(chunks_records(s->c));
        if (n < SHARED_N && rng_below(&r, 3) == 0 &&
            records_grow(chunks_records(s->c), n + (uint32_t)rng_below(&r, 40) + 1, &e) != 0)
            atomic_fetch_add(&s->bad, 1);
        uint32_t i = (uint32_t)rng_below(&r, n);
        _Atomic uint64_t *p = (void *)records_writable(chunks_records(s->c), i, &e);
        if (p)
            atomic_store_explicit(&p[0], i + 1u, memory_order_relaxed);
        else
            atomic_fetch_add(&s->bad, 1);
        pthread_mutex_unlock(&s->owner);
    }
    return NULL;
}

static void checkpoint_shared(struct shared *s, struct store *store, bool commit)
{
    struct err e = {0};
    struct store_write *t;
    pthread_mutex_lock(&s->owner);
    chunks_freeze(s->c);
    pthread_mutex_unlock(&s->owner);
    assert_ok(store_begin(store, &t, &e));
    assert_ok(chunks_write(s->c, t, &e));
    if (commit) {
        assert_ok(store_commit(t, 1, 1, &e));
        assert_ok(store_refresh(store, &e));
    } else {
        store_abort(t);
    }
    pthread_mutex_lock(&s->owner);
    chunks_settle(s->c, commit);
    pthread_mutex_unlock(&s->owner);
    store_refreshed(store);
}

static void test_readers(void **unused)
{
    (void)unused;
    char dir[64];
    struct err e = {0};
    struct store *store;
    struct shared s = {.owner = PTHREAD_MUTEX_INITIALIZER, .seed = unit_seed()};
    unit_dir_make(dir);
    uint32_t n = 0;
    for (int life = 0; life < 3; life++) {
        assert_ok(store_open(&store, dir, &small, &e));
        assert_ok(chunks_open(&s.c, store, 1, SHARED_STRIDE, n, &e));
        if (n == 0)
            assert_ok(records_grow(chunks_records(s.c), 5000, &e));
        atomic_store(&s.stop, false);
        pthread_t readers[3], writer;
        for (int i = 0; i < 3; i++)
            assert_int_equal(pthread_create(&readers[i], NULL, read_shared, &s), 0);
        assert_int_equal(pthread_create(&writer, NULL, write_shared, &s), 0);
        for (int k = 0; k < 12; k++) {
            /* On a busy machine the readers may not have begun; a checkpoint without any would
             * attack nothing. */
            uint64_t before = atomic_load(&s.reads);
            for (int wait = 0; wait < 10000 && atomic_load(&s.reads) == before; wait++)
                clock_sleep_us(200);
            checkpoint_shared(&s, store, k % 4 != 3);
        }
        atomic_store(&s.stop, true);
        for (int i = 0; i < 3; i++)
            pthread_join(readers[i], NULL);
        pthread_join(writer, NULL);
        checkpoint_shared(&s, store, true);
        n = records_count(chunks_records(s.c));
        chunks_free(s.c);
        store_close(store);
    }
    assert_int_equal(atomic_load(&s.bad), 0);
    assert_true(atomic_load(&s.reads) > 0);
    unit_remove(dir);
}

/* --- out of memory --- */

/* One life of a store with a few chunks; returns the first error. */
static int small_life(const char *dir, uint32_t n_before, uint32_t *n_after)
{
    struct err e = {0};
    struct store *s = NULL;
    struct chunks *c = NULL;
    struct store_write *t = NULL;
    int rc = store_open(&s, dir, &small, &e);
    if (rc == 0)
        rc = chunks_open(&c, s, 3, 100, n_before, &e);
    for (uint32_t i = 0; rc == 0 && i < 4; i++) {
        uint32_t n = records_count(chunks_records(c));
        rc = records_grow(chunks_records(c), n + 300, &e);
        char *p = rc == 0 ? records_writable(chunks_records(c), n / 2, &e) : NULL;
        if (rc == 0 && !p)
            rc = e.code;
        if (p)
            memset(p, 1, 100);
        n = records_count(chunks_records(c));
        if (c)
            chunks_freeze(c);
        bool committed = false;
        if (rc == 0 && (rc = store_begin(s, &t, &e)) == 0) {
            rc = chunks_write(c, t, &e);
            if (rc == 0)
                rc = store_commit(t, 1, n, &e);
            else
                store_abort(t);
            committed = rc == 0;
            if (rc == 0) {
                *n_after = n;
                rc = store_refresh(s, &e);
            }
        }
        chunks_settle(c, committed);
        store_refreshed(s);
    }
    chunks_free(c);
    store_close(s);
    if (rc != 0 && rc != KITH_ENOMEM)
        print_message("%d %s\n", rc, e.message);
    return rc;
}

static void test_out_of_memory(void **unused)
{
    (void)unused;
    char dir[64];
    uint32_t n = 0;
    unit_dir_make(dir);
    assert_int_equal(small_life(dir, 0, &n), 0);
    for (long fail = 1;; fail++) {
        uint32_t before = n;
        mem_fail_after(fail);
        int rc = small_life(dir, before, &n);
        mem_fail_after(0);
        if (rc == 0)
            break;
        assert_int_equal(rc, KITH_ENOMEM);
        assert_true(fail < 1000);
    }
    assert_int_equal(small_life(dir, n, &n), 0);
    unit_remove(dir);
}

static void test_damage(void **unused)
{
    (void)unused;
    char dir[64];
    struct err e = {0};
    struct store *s;
    struct chunks *c;
    uint32_t n = 0;
    unit_dir_make(dir);
    assert_int_equal(small_life(dir, 0, &n), 0);
    /* An array that remembers more, or fewer, records than are stored. */
    for (uint32_t wrong = n - 1; wrong <= n + 2000; wrong += wrong < n ? 2 : 1999) {
        assert_ok(store_open(&s, dir, &small, &e));
        assert_ok(chunks_open(&c, s, 3, 100, wrong, &e));
        epoch_enter();
        assert_null(records_at(chunks_records(c), wrong - 1, &e));
        assert_int_equal(e.code, KITH_ECORRUPT);
        epoch_exit();
        chunks_free(c);
        store_close(s);
    }
    /* Another stride than the stored one. */
    assert_ok(store_open(&s, dir, &small, &e));
    assert_ok(chunks_open(&c, s, 3, 104, n, &e));
    epoch_enter();
    assert_null(records_at(chunks_records(c), 0, &e));
    assert_int_equal(e.code, KITH_ECORRUPT);
    epoch_exit();
    assert_null(records_writable(chunks_records(c), 0, &e));
    chunks_free(c);
    store_close(s);
    unit_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_readers),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
