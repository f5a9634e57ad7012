/* The store against a model in memory: random transactions, failed commits, damaged copies. */
#define TEST_FAULTS 1
#include "tests/unit/storage_fixture.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include "base/epoch.h"
#include "storage/chunks.h"
#include "storage/store.h"

enum { KEYS = 400, VALUE_MAX = 9000 };

static const struct store_options small = {.map_bytes = (size_t)1 << 30};

/* Seeds of the values; 0: absent. */
struct model {
    uint64_t seeds[2][KEYS];
    uint64_t index;
};

static size_t value_of(uint64_t seed, char *out)
{
    struct rng r;
    rng_seed(&r, seed);
    size_t n = (size_t)rng_below(&r, rng_below(&r, 4) ? 300 : VALUE_MAX);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = rng_next(&r);
        memcpy(out + i, &v, n - i < 8 ? n - i : 8);
    }
    return n;
}

/* A key's two numbers: several a, several b each. */
static uint32_t a_of(int k)
{
    return (uint32_t)k % 7 * 1000003u;
}

static uint32_t b_of(int k)
{
    return (uint32_t)k * 77777u;
}

struct visit {
    const struct model *m;
    int table, n;
    uint32_t a, b;
};

static int on_value(void *arg, uint32_t a, uint32_t b, const void *p, size_t n, struct err *e)
{
    struct visit *v = arg;
    static char expected[VALUE_MAX + 8];
    if (v->n && (a < v->a || (a == v->a && b <= v->b)))
        return err_set(e, KITH_EINVAL, "out of order");
    v->a = a;
    v->b = b;
    for (int k = 0; k < KEYS; k++) {
        if (a_of(k) != a || b_of(k) != b)
            continue;
        size_t want =
            v->m->seeds[v->table][k] ? value_of(v->m->seeds[v->table][k], expected) : 0;
        if (!v->m->seeds[v->table][k] || want != n || memcmp(expected, p, n) != 0)
            return err_set(e, KITH_EINVAL, "a wrong value");
        v->n++;
        return 0;
    }
    return err_set(e, KITH_EINVAL, "an unknown key");
}

/* 0: all is as in the model; KITH_ECORRUPT: damage was reported. Anything else fails the test.
 */
static int compare(struct store *s, const struct model *m)
{
    static char expected[VALUE_MAX + 8];
    struct err e = {0};
    struct buf b;
    buf_init(&b);
    int rc = 0;
    for (int t = 0; t < 2 && rc == 0; t++) {
        struct visit v = {.m = m, .table = t};
        int n = 0;
        for (int k = 0; k < KEYS && rc == 0; k++) {
            buf_clear(&b);
            rc = store_get(s, (enum store_table)t, a_of(k), b_of(k), &b, &e);
            uint64_t seed = m->seeds[t][k];
            n += seed != 0;
            if (rc == KITH_ENOTFOUND && !seed) {
                rc = 0;
            } else if (rc == 0) {
                assert_true(seed != 0);
                assert_int_equal(b.len, value_of(seed, expected));
                assert_memory_equal(b.data, expected, b.len);
            }
        }
        if (rc == 0)
            rc = store_each(s, (enum store_table)t, on_value, &v, &e);
        if (rc == 0)
            assert_int_equal(v.n, n);
    }
    buf_deinit(&b);
    if (rc != 0 && rc != KITH_ECORRUPT)
        fail_msg("%d: %s", rc, e.message);
    return rc;
}

/* Random changes in one transaction; m becomes what a commit would give. */
static int change(struct store_write *w, struct rng *r, struct model *m, struct err *e)
{
    static char value[VALUE_MAX + 8];
    int rc = 0;
    for (uint64_t n = rng_below(r, 80); n > 0 && rc == 0; n--) {
        int k = (int)rng_below(r, KEYS), t = (int)rng_below(r, 2);
        enum store_table table = (enum store_table)t;
        if (rng_below(r, 3)) {
            uint64_t seed = rng_next(r) | 1;
            rc = store_put(w, table, a_of(k), b_of(k), value, value_of(seed, value), e);
            m->seeds[t][k] = seed;
        } else if (rng_below(r, 20)) {
            rc = store_delete(w, table, a_of(k), b_of(k), e);
            m->seeds[t][k] = 0;
        } else {
            int64_t gone = store_delete_all(w, table, a_of(k), 0, e), expected = 0;
            rc = gone < 0 ? (int)gone : 0;
            for (int i = k % 7; i < KEYS; i += 7) {
                expected += m->seeds[t][i] != 0;
                m->seeds[t][i] = 0;
            }
            if (rc == 0)
                assert_int_equal(gone, expected);
        }
    }
    return rc;
}

/* One checkpoint; 0, or the error after which the store must be as before. */
static int checkpoint(struct store *s, struct rng *r, struct model *m, bool commit,
                      struct err *e)
{
    struct store_write *w;
    struct model next = *m;
    int rc = store_begin(s, &w, e);
    if (rc != 0)
        return rc;
    rc = change(w, r, &next, e);
    if (rc != 0 || !commit) {
        store_abort(w);
        return rc;
    }
    rc = store_commit(w, 3, m->index + 1, e);
    if (rc == 0) {
        next.index++;
        *m = next;
        rc = store_refresh(s, e);
        store_refreshed(s);
        uint64_t left;
        if (rc == 0 && rng_below(r, 2))
            rc = store_trim(s, 0, &left, e);
    }
    return rc;
}

static void note(void *arg, const char *where, const char *what)
{
    if (arg)
        print_message("%s: %s\n", where, what);
}

static void test_model(void **unused)
{
    (void)unused;
    struct rng r;
    rng_seed(&r, unit_seed());
    char dir[64];
    struct store *s;
    struct model m = {0};
    struct err e = {0};
    unit_dir_make(dir);
    for (int life = 0; life < 20; life++) {
        assert_ok(store_open(&s, dir, &small, &e));
        struct store *other;
        assert_int_equal(store_open(&other, dir, &small, &e), KITH_EBUSY);
        assert_int_equal(store_state(s).index, m.index);
        assert_int_equal(store_state(s).epoch, m.index ? 3 : 0);
        assert_int_equal(compare(s, &m), 0);
        for (uint64_t n = rng_below(&r, 12); n > 0; n--)
            assert_ok(checkpoint(s, &r, &m, rng_below(&r, 4) != 0, &e));
        assert_int_equal(compare(s, &m), 0);
        assert_int_equal(store_state(s).index, m.index);
        store_close(s);
        assert_int_equal(store_check(dir, note, dir, &e), 0);
    }
    assert_ok(store_open(&s, dir, &(struct store_options){.read_only = true}, &e));
    assert_int_equal(compare(s, &m), 0);
    store_close(s);
    unit_remove(dir);
}

/* Every system call of a checkpoint fails once: nothing changes, and the store goes on. */
static void test_failed_calls(void **unused)
{
    (void)unused;
    struct rng r;
    rng_seed(&r, unit_seed());
    char dir[64];
    struct store *s;
    struct model m = {0};
    struct err e = {0};
    int failures = 0;
    unit_dir_make(dir);
    assert_ok(store_open(&s, dir, &small, &e));
    assert_ok(checkpoint(s, &r, &m, true, &e));
    for (int errnum = EIO, round = 0; round < 2; errnum = ENOSPC, round++) {
        for (long nth = 1; nth < 60; nth++) {
            fault_arm(FAULT_PWRITE | FAULT_SYNC, nth, errnum);
            int rc = checkpoint(s, &r, &m, true, &e);
            bool hit = atomic_load(&fault_calls) >= nth;
            fault_disarm();
            assert_int_equal(rc != 0, hit);
            failures += hit;
            if (hit)
                assert_true(rc == KITH_EIO || rc == KITH_ENOSPC);
            struct buf b;
            buf_init(&b);
            assert_true(store_get(s, STORE_KEYS, 0, 0, &b, &e) ==
                        (m.seeds[0][0] ? 0 : KITH_ENOTFOUND));
            buf_deinit(&b);
            /* Where LMDB gave its environment up, the next begin opens another one. */
            struct store_write *w;
            assert_ok(store_begin(s, &w, &e));
            store_abort(w);
            assert_int_equal(compare(s, &m), 0);
            assert_ok(checkpoint(s, &r, &m, true, &e));
            assert_int_equal(compare(s, &m), 0);
            if (nth % 5 == 0) {
                store_close(s);
                assert_int_equal(store_check(dir, note, dir, &e), 0);
                assert_ok(store_open(&s, dir, &small, &e));
                assert_int_equal(compare(s, &m), 0);
            }
        }
    }
    assert_true(failures > 4);
    print_message("%d checkpoints failed\n", failures);
    store_close(s);
    unit_remove(dir);
}

/* --- damage --- */

static void damage(const char *path, struct rng *r, uint64_t bytes)
{
    int fd = open(path, O_RDWR);
    char page[4096];
    assert_true(fd >= 0);
    /* Half of the damage goes where it hurts: the first bytes of pages. */
    uint64_t page_at = rng_below(r, bytes / 4096) * 4096;
    switch (rng_below(r, 5)) {
    case 0: /* a bit anywhere */
    case 1: /* a bit in a page's header or its first offsets */
    {
        uint64_t at = rng_below(r, 2) ? rng_below(r, bytes) : page_at + rng_below(r, 64);
        assert_int_equal(pread(fd, page, 1, (off_t)at), 1);
        page[0] = (char)(page[0] ^ (1 << rng_below(r, 8)));
        assert_int_equal(pwrite(fd, page, 1, (off_t)at), 1);
        break;
    }
    case 2:
        memset(page, 0, sizeof page);
        assert_int_equal(pwrite(fd, page, sizeof page, (off_t)page_at), sizeof page);
        break;
    case 3:
        for (int i = 0; i < 4096; i++)
            page[i] = (char)rng_next(r);
        assert_int_equal(pwrite(fd, page, sizeof page, (off_t)page_at), sizeof page);
        break;
    default:
        assert_int_equal(ftruncate(fd, (off_t)rng_below(r, bytes)), 0);
    }
    close(fd);
}

static void test_damaged_copies(void **unused)
{
    (void)unused;
    struct rng r;
    rng_seed(&r, unit_seed());
    char made[64], dir[64], path[128];
    struct store *s;
    struct model m = {0};
    struct err e = {0};
    unit_dir_make(made);
    unit_dir_make(dir);
    assert_ok(store_open(&s, made, &small, &e));
    for (int i = 0; i < 12; i++)
        assert_ok(checkpoint(s, &r, &m, true, &e));
    uint64_t bytes = store_file_bytes(s);
    store_close(s);
    snprintf(path, sizeof path, "%s/store/data.mdb", dir);
    int refused = 0, found = 0, irrelevant = 0;
    for (int i = 0; i < 700; i++) {
        struct model now = m;
        unit_remove(dir);
        test_copy(made, dir);
        damage(path, &r, bytes);
        int rc = store_open(&s, dir, &small, &e);
        if (rc != 0) {
            assert_true(rc == KITH_ECORRUPT);
            assert_non_null(strstr(e.message, "data.mdb"));
            assert_true(store_check(dir, note, NULL, &e) != 0);
            refused++;
            continue;
        }
        assert_int_equal(store_state(s).index, m.index);
        rc = compare(s, &now);
        found += rc != 0;
        irrelevant += rc == 0;
        /* Writing over it must not spread the damage. */
        for (int k = 0; k < 3 && rc == 0; k++)
            rc = checkpoint(s, &r, &now, true, &e);
        if (rc == 0)
            assert_int_equal(compare(s, &now), 0);
        store_close(s);
    }
    print_message("of 700: %d refused at open, %d found when read, %d without effect\n",
                  refused, found, irrelevant);
    assert_true(refused > 100 && found > 20 && irrelevant > 20);
    unit_remove(made);
    unit_remove(dir);
}

/* The file is cut while the store has it open: reads fail, plain reads see zeros, and nobody
 * dies. */
static void test_cut_while_open(void **unused)
{
    (void)unused;
    char dir[64], path[128];
    struct store *s;
    struct chunks *c;
    struct store_write *w;
    struct err e = {0};
    struct buf b;
    static char value[VALUE_MAX];
    buf_init(&b);
    unit_dir_make(dir);
    assert_ok(store_open(&s, dir, &small, &e));
    assert_ok(chunks_open(&c, s, 1, 64, 0, &e));
    assert_ok(records_grow(chunks_records(c), 5000, &e));
    chunks_freeze(c);
    assert_ok(store_begin(s, &w, &e));
    assert_ok(chunks_write(c, w, &e));
    for (uint32_t i = 0; i < 50; i++)
        assert_ok(store_put(w, STORE_BLOBS, 1, i, value, sizeof value, &e));
    assert_ok(store_commit(w, 1, 1, &e));
    assert_ok(store_refresh(s, &e));
    chunks_settle(c, true);
    store_refreshed(s);
    assert_true(store_healthy(s));
    epoch_enter();
    const char *mapped = records_at(chunks_records(c), 0, &e);
    assert_non_null(mapped);
    snprintf(path, sizeof path, "%s/store/data.mdb", dir);
    assert_int_equal(truncate(path, 8192), 0);
    /* A plain read of a mapped chunk: zeros, and the store knows. */
    volatile const char *p = mapped;
    assert_int_equal(p[0] + p[30000], 0);
    epoch_exit();
    assert_false(store_healthy(s));
    assert_int_equal(store_get(s, STORE_BLOBS, 1, 40, &b, &e), KITH_ECORRUPT);
    assert_int_equal(store_begin(s, &w, &e), KITH_ECORRUPT);
    chunks_free(c);
    store_close(s);
    assert_int_equal(store_open(&s, dir, &small, &e), KITH_ECORRUPT);
    buf_deinit(&b);
    unit_remove(dir);
}

/* The same where LMDB itself meets the end of the file, in a read and in a checkpoint. */
static void test_cut_under_lmdb(void **unused)
{
    (void)unused;
    for (int writing = 0; writing < 2; writing++) {
        char dir[64], path[128];
        static char value[VALUE_MAX];
        struct store *s;
        struct store_write *w;
        struct err e = {0};
        unit_dir_make(dir);
        assert_ok(store_open(&s, dir, &small, &e));
        assert_ok(store_begin(s, &w, &e));
        for (uint32_t i = 0; i < 3000; i++)
            assert_ok(store_put(w, STORE_KEYS, 1, i, value, 200, &e));
        assert_ok(store_commit(w, 1, 1, &e));
        assert_ok(store_refresh(s, &e));
        store_refreshed(s);
        snprintf(path, sizeof path, "%s/store/data.mdb", dir);
        assert_int_equal(truncate(path, (off_t)store_file_bytes(s) / 2), 0);
        fflush(NULL);
        /* In a child: what LMDB had allocated when a write was cut short stays lost. */
        pid_t pid = fork();
        if (pid == 0) {
            int rc = 0;
            struct buf b;
            buf_init(&b);
            if (writing && store_begin(s, &w, &e) != 0)
                _exit(2);
            for (uint32_t i = 0; i < 3000 && rc == 0; i++)
                rc = writing ? store_put(w, STORE_KEYS, 1, i, value, 300, &e)
                             : store_get(s, STORE_KEYS, 1, i, &b, &e);
            if (writing)
                store_abort(w);
            bool ok = rc == KITH_ECORRUPT && !store_healthy(s) &&
                      store_get(s, STORE_KEYS, 1, 0, &b, &e) == KITH_ECORRUPT;
            store_close(s);
            _exit(ok ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        store_close(s);
        unit_remove(dir);
    }
}

/* Less address space than a store would like. */
static void test_little_address_space(void **unused)
{
    (void)unused;
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    print_message("skipped: a sanitizer takes terabytes of address space itself\n");
    skip();
#endif
    struct rlimit old, little;
    char dir[64];
    struct store *s;
    struct err e = {0};
    unit_dir_make(dir);
    assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
    little = old;
    little.rlim_cur = (rlim_t)3 << 30;
    assert_int_equal(setrlimit(RLIMIT_AS, &little), 0);
    int rc = store_open(&s, dir, NULL, &e);
    assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
    assert_ok(rc);
    store_close(s);
    unit_remove(dir);
}

static uint64_t blocks_bytes(const char *dir)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/store/data.mdb", dir);
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void put_large(struct store *s, uint32_t n, char fill)
{
    static char value[64 * 1024];
    struct store_write *w;
    struct err e = {0};
    memset(value, fill, sizeof value);
    assert_ok(store_begin(s, &w, &e));
    for (uint32_t i = 0; i < n; i++)
        assert_ok(store_put(w, STORE_BLOBS, 7, i, value, sizeof value - i, &e));
    assert_ok(store_commit(w, 1, 1, &e));
    assert_ok(store_refresh(s, &e));
    store_refreshed(s);
}

/* What rewriting frees is given back, and nothing else. */
static void test_trim(void **unused)
{
    (void)unused;
    enum { N = 100 };
    char dir[64];
    struct store *s;
    struct err e = {0};
    unit_dir_make(dir);
    assert_ok(store_open(&s, dir, &small, &e));
    for (char fill = 'a'; fill < 'f'; fill++)
        put_large(s, N, fill);
    uint64_t before = blocks_bytes(dir), live = (uint64_t)N * 64 * 1024, left;
    assert_ok(store_trim(s, (uint64_t)1 << 30, &left, &e));
    assert_true(left == 0 && blocks_bytes(dir) == before);
    assert_ok(store_trim(s, live / 8, &left, &e));
    /* The newest commit and the one before it stay. */
    uint64_t after = blocks_bytes(dir);
    assert_true(before > 2 * live + live / 2 && after < 2 * live + live / 4 && after > live);
    assert_true(left > live / 2 && left < live + live / 4);
    struct store_write *w;
    assert_ok(store_begin(s, &w, &e));
    assert_ok(store_commit(w, 1, 2, &e));
    assert_ok(store_refresh(s, &e));
    store_refreshed(s);
    assert_ok(store_trim(s, live / 8, &left, &e));
    assert_true(left < live / 8 && blocks_bytes(dir) < live + live / 4);
    for (int round = 0; round < 2; round++) {
        struct buf b;
        buf_init(&b);
        for (uint32_t i = 0; i < N; i++) {
            buf_clear(&b);
            assert_ok(store_get(s, STORE_BLOBS, 7, i, &b, &e));
            assert_int_equal(b.len, 64 * 1024 - i);
            assert_true(b.data[0] == 'e' && b.data[b.len - 1] == 'e');
        }
        buf_deinit(&b);
        store_close(s);
        assert_int_equal(store_check(dir, note, dir, &e), 0);
        assert_ok(store_open(&s, dir, &small, &e));
    }
    store_close(s);
    unit_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_failed_calls),
        cmocka_unit_test(test_damaged_copies),
        cmocka_unit_test(test_cut_while_open),
        cmocka_unit_test(test_cut_under_lmdb),
        cmocka_unit_test(test_little_address_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
