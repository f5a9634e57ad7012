/* Log and store together, as the server uses them: a child process writes and checkpoints and
 * tells through a pipe what is released; it is killed at random moments, or at its n-th system
 * call, or that call fails; then everything is opened again and must hold what was told. */
#define TEST_FAULTS 1
#include "tests/unit/storage_fixture.h"

#include "base/clock.h"
#include "base/epoch.h"
#include "storage/chunks.h"
#include "storage/store.h"
#include "storage/wal.h"

enum { SLOTS = 4000, STRIDE = 64, ARRAY = 9 };

/* ThreadSanitizer makes a process slow to start, and these tests start thousands. */
#ifdef __SANITIZE_THREAD__
enum { SHRINK = 10 };
#else
enum { SHRINK = 1 };
#endif

/* Record i of the log sets one slot to i, and is padded with bytes made from i. */
static uint32_t slot_of(uint64_t i)
{
    return (uint32_t)(i * 2654435761u % SLOTS);
}

static size_t padding_of(uint64_t i)
{
    return (size_t)(i * 7919 % 600);
}

struct side {
    struct store *s;
    struct wal *w;
    struct chunks *c;
    uint64_t applied;
};

static int apply(struct side *d, uint64_t i, struct err *e)
{
    struct records *r = chunks_records(d->c);
    uint32_t slot = slot_of(i);
    int rc = records_count(r) > slot ? 0 : records_grow(r, slot + 1, e);
    char *p = rc == 0 ? records_writable(r, slot, e) : NULL;
    if (p)
        memcpy(p, &i, 8);
    d->applied = i;
    return p ? 0 : e->code;
}

static int on_record(void *arg, const struct wal_record *r, struct err *e)
{
    struct side *d = arg;
    uint64_t i;
    if (r->bytes != 8 + padding_of(r->index))
        return err_set(e, KITH_ECORRUPT, "record %llu has the wrong size",
                       (unsigned long long)r->index);
    memcpy(&i, r->payload, 8);
    if (i != r->index || i != d->applied + 1)
        return err_set(e, KITH_ECORRUPT, "record %llu says %llu after %llu",
                       (unsigned long long)r->index, (unsigned long long)i,
                       (unsigned long long)d->applied);
    return apply(d, i, e);
}

static void close_side(struct side *d)
{
    struct err e;
    chunks_free(d->c);
    if (d->w)
        wal_close(d->w, &e);
    store_close(d->s);
    *d = (struct side){0};
}

static int open_side(struct side *d, const char *dir, enum wal_sync sync, struct err *e)
{
    struct store_options small = {.map_bytes = (size_t)1 << 28};
    struct wal_options o = {.sync = sync, .segment_bytes = 16 << 10};
    struct buf b;
    uint32_t n = 0;
    *d = (struct side){0};
    buf_init(&b);
    int rc = store_open(&d->s, dir, &small, e);
    if (rc == 0)
        d->applied = store_state(d->s).index;
    if (rc == 0 && d->applied && (rc = store_get(d->s, STORE_KEYS, 0, 0, &b, e)) == 0)
        n = load_u32(b.data);
    buf_deinit(&b);
    if (rc == 0)
        rc = chunks_open(&d->c, d->s, ARRAY, STRIDE, n, e);
    if (rc == 0)
        rc = wal_open(&d->w, dir, &o, d->applied, e);
    if (rc == 0)
        rc = wal_replay(d->w, d->applied, on_record, d, e);
    if (rc != 0)
        close_side(d);
    return rc;
}

static void checkpoint(struct side *d)
{
    struct err e;
    struct store_write *t;
    uint64_t upto = d->applied;
    uint32_t n = records_count(chunks_records(d->c));
    if (wal_flush(d->w, &e) != 0 || wal_sync_to(d->w, upto, &e) != 0)
        return;
    chunks_freeze(d->c);
    bool committed = false;
    if (store_begin(d->s, &t, &e) == 0) {
        char count[4];
        store_u32(count, n);
        if (chunks_write(d->c, t, &e) == 0 &&
            store_put(t, STORE_KEYS, 0, 0, count, sizeof count, &e) == 0)
            committed = store_commit(t, 1, upto, &e) == 0;
        else
            store_abort(t);
    }
    if (committed)
        committed = store_refresh(d->s, &e) == 0;
    chunks_settle(d->c, committed);
    store_refreshed(d->s);
    if (committed)
        wal_trim(d->w, upto, &e);
}

/* Never returns: opens (0xff.. through the pipe when that fails), writes, tells. */
static void child(const char *dir, enum wal_sync sync, int out, uint64_t n, uint64_t seed,
                  long nth, int errnum)
{
    struct side d;
    struct err e;
    struct rng r;
    char payload[700] = {0};
    rng_seed(&r, seed);
    if (nth)
        fault_arm(FAULT_ALL, nth, errnum);
    if (open_side(&d, dir, sync, &e) != 0) {
        if (!nth || errnum == 0 || (e.code != KITH_EIO && e.code != KITH_ENOSPC)) {
            fprintf(stderr, "child: %d %s\n", e.code, e.message);
            (void)!syscall(SYS_write, out, &(uint64_t){UINT64_MAX}, 8);
        }
        _exit(1);
    }
    for (uint64_t k = 0; k < n; k++) {
        uint64_t batch = rng_below(&r, 8) + 1;
        for (uint64_t j = 0; j < batch; j++) {
            uint64_t i = wal_last(d.w) + 1;
            if (wal_reserve(d.w, 8 + padding_of(i), 1, &e) != 0)
                break;
            memcpy(payload, &i, 8);
            if (apply(&d, i, &e) != 0)
                _exit(2);
            wal_append(d.w, 1, payload, 8 + padding_of(i));
        }
        wal_flush(d.w, &e);
        if (rng_below(&r, 30) == 0)
            checkpoint(&d);
        uint64_t released = wal_released(d.w);
        (void)!syscall(SYS_write, out, &released, 8);
    }
    _exit(0);
}

/* Runs a child, kills it after `kill_us` (0: not), returns the largest index it told. */
static uint64_t run(const char *dir, enum wal_sync sync, uint64_t n, uint64_t seed,
                    int64_t kill_us, long nth, int errnum, bool *ended)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 1 << 20);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(fds[0]);
        child(dir, sync, fds[1], n, seed, nth, errnum);
    }
    close(fds[1]);
    if (kill_us) {
        clock_sleep_us(kill_us);
        kill(pid, SIGKILL);
    }
    uint64_t told = 0, v;
    while (read(fds[0], &v, 8) == 8) {
        assert_true(v != UINT64_MAX);
        assert_true(v >= told);
        told = v;
    }
    close(fds[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) || WTERMSIG(status) == SIGKILL);
    *ended = WIFEXITED(status);
    return told;
}

static void on_finding(void *arg, const char *where, const char *what)
{
    (void)arg;
    print_message("%s: %s\n", where, what);
}

/* Opens what the child left; everything up to the last index must be there, and nothing else.
 */
static uint64_t verify(const char *dir, enum wal_sync sync, uint64_t told)
{
    static uint64_t expected[SLOTS];
    struct side d;
    struct err e;
    assert_ok(open_side(&d, dir, sync, &e));
    uint64_t last = wal_last(d.w), base = store_state(d.s).index;
    if (last < told)
        fail_msg("told %llu, found %llu", (unsigned long long)told, (unsigned long long)last);
    assert_int_equal(d.applied, last);
    memset(expected, 0, sizeof expected);
    for (uint64_t i = 1; i <= last; i++)
        expected[slot_of(i)] = i;
    epoch_enter();
    for (uint32_t k = 0; k < records_count(chunks_records(d.c)); k++) {
        const char *p = records_at(chunks_records(d.c), k, &e);
        if (!p)
            fail_msg("%s", e.message);
        assert_int_equal(load_u64(p), expected[k]);
    }
    epoch_exit();
    close_side(&d);
    assert_int_equal(store_check(dir, on_finding, NULL, &e), 0);
    assert_int_equal(wal_check(dir, base, on_finding, NULL, &e), 0);
    return last;
}

static void test_random_kills(void **unused)
{
    (void)unused;
    uint64_t seed = unit_seed(), total = 0;
    const char *more = getenv("CYCLES");
    int cycles = more ? atoi(more) : 100 / SHRINK;
    struct rng r;
    rng_seed(&r, seed);
    char dir[64];
    unit_dir_make(dir);
    for (int i = 0; i < cycles; i++) {
        enum wal_sync sync = (enum wal_sync)(i % 3);
        bool ended;
        uint64_t told = run(dir, sync, 1u << 30, rng_next(&r),
                            1000 + (int64_t)rng_below(&r, 30000), 0, 0, &ended);
        total = verify(dir, sync, told);
    }
    print_message("%llu records through %d kills\n", (unsigned long long)total, cycles);
    assert_true(total > 100);
    unit_remove(dir);
}

/* Killed at, or failed by, each system call of a short life in turn. */
static void test_each_call(void **unused)
{
    (void)unused;
    static const int errnums[] = {0, EIO, ENOSPC};
    uint64_t seed = unit_seed();
    for (int how = 0; how < 3; how++) {
        char dir[64];
        int points = 0;
        bool ended = false;
        unit_dir_make(dir);
        for (long nth = 1; nth < 400; nth += (1 + nth / 30) * SHRINK) {
            enum wal_sync sync = (enum wal_sync)(nth % 3);
            /* A new store now and then, so that its making is interrupted too. */
            if (nth < 60 || nth % 7 == 0)
                unit_remove(dir);
            mkdir(dir, 0755);
            uint64_t told =
                run(dir, sync, 40, seed + (uint64_t)nth, 0, nth, errnums[how], &ended);
            verify(dir, sync, told);
            points++;
        }
        print_message("%d points with %s\n", points,
                      errnums[how] ? strerror(errnums[how]) : "SIGKILL");
        unit_remove(dir);
    }
}

/* --- damage --- */

/* A random one of the files that matter, longer ones more often. */
static void damage(const char *dir, struct rng *r)
{
    static const char *const parts[] = {"store", "wal"};
    char path[512] = "", inner[512];
    uint64_t total = 0, bytes = 0;
    for (int i = 0; i < 2; i++) {
        char part[512];
        assert_true(unit_path(part, dir, parts[i]));
        DIR *d = opendir(part);
        struct dirent *entry;
        while ((entry = readdir(d)) != NULL) {
            struct stat st;
            if (!unit_path(inner, part, entry->d_name) || stat(inner, &st) != 0 ||
                (!strstr(inner, ".wal") && !strstr(inner, "data.mdb") &&
                 !strstr(inner, "durable")))
                continue;
            uint64_t weight = (uint64_t)st.st_size / 4096 + 3;
            total += weight;
            if (rng_below(r, total) < weight) {
                memcpy(path, inner, sizeof path);
                bytes = (uint64_t)st.st_size;
            }
        }
        closedir(d);
    }
    int fd = open(path, O_RDWR), how = (int)rng_below(r, 4);
    uint64_t at = rng_below(r, bytes);
    char page[4096] = {0};
    size_t n = bytes - at / 4096 * 4096 < 4096 ? bytes - at / 4096 * 4096 : 4096;
    if (how == 0) {
        assert_int_equal(pread(fd, page, 1, (off_t)at), 1);
        page[0] = (char)(page[0] ^ (1 << rng_below(r, 8)));
        assert_int_equal(pwrite(fd, page, 1, (off_t)at), 1);
    } else if (how == 1) {
        assert_int_equal(ftruncate(fd, (off_t)at), 0);
    } else {
        for (size_t i = 0; how == 2 && i < n; i++)
            page[i] = (char)rng_next(r);
        assert_int_equal(pwrite(fd, page, n, (off_t)(at / 4096 * 4096)), n);
    }
    close(fd);
}

/* After one damage anywhere: an error that names the place, or everything as it was. */
static void test_damaged_copies(void **unused)
{
    (void)unused;
    struct rng r;
    rng_seed(&r, unit_seed());
    const char *more = getenv("COPIES");
    int copies = more ? atoi(more) : 400 / SHRINK, refused = 0, found = 0;
    char made[64], dir[64];
    unit_dir_make(made);
    unit_dir_make(dir);
    bool ended;
    run(made, WAL_SYNC_ALWAYS, 400, rng_next(&r), 0, 0, 0, &ended);
    uint64_t told = verify(made, WAL_SYNC_ALWAYS, 0);
    for (int i = 0; i < copies; i++) {
        struct side d;
        struct err e = {0};
        unit_remove(dir);
        test_copy(made, dir);
        damage(dir, &r);
        if (open_side(&d, dir, (enum wal_sync)(i % 3), &e) != 0) {
            assert_int_equal(e.code, KITH_ECORRUPT);
            refused++;
            continue;
        }
        assert_int_equal(wal_last(d.w), told);
        assert_int_equal(d.applied, told);
        int wrong = 0;
        epoch_enter();
        for (uint32_t k = 0; k < records_count(chunks_records(d.c)); k++) {
            uint64_t newest = told;
            while (newest && slot_of(newest) != k)
                newest--;
            const char *p = records_at(chunks_records(d.c), k, &e);
            if (!p)
                assert_int_equal(e.code, KITH_ECORRUPT);
            else
                assert_int_equal(load_u64(p), newest);
            wrong += p == NULL;
        }
        epoch_exit();
        found += wrong > 0;
        close_side(&d);
    }
    print_message("of %d: %d refused, %d found when read\n", copies, refused, found);
    assert_true(refused > copies / 10);
    unit_remove(made);
    unit_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_kills),
        cmocka_unit_test(test_each_call),
        cmocka_unit_test(test_damaged_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
