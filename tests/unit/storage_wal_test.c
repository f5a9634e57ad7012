/* The log: what was acknowledged comes back, in order and unchanged, or opening says where it
 * is damaged; torn tails are cut; full disks and failed syncs behave as the header says. */
#define TEST_FAULTS 1
#include "tests/unit/storage_fixture.h"

#include <pthread.h>
#include <sys/mount.h>

#include "base/clock.h"
#include "base/mem.h"
#include "storage/wal.h"

enum { SMALL_SEGMENT = 4096 };

/* The payload of record i is made from i, so that any reader knows what it should be. */
static size_t payload_of(uint64_t i, size_t max, char *out)
{
    struct rng r;
    rng_seed(&r, i * 2654435761u);
    size_t n = (size_t)rng_below(&r, max);
    for (size_t k = 0; k < n; k++)
        out[k] = (char)rng_next(&r);
    return n;
}

struct replayed {
    uint64_t next, epoch;
    size_t max;
};

static int on_record(void *arg, const struct wal_record *r, struct err *e)
{
    struct replayed *p = arg;
    static char expected[1 << 17];
    size_t n = payload_of(r->index, p->max, expected);
    if (r->index != p->next || r->bytes != n || memcmp(r->payload, expected, n) != 0 ||
        r->epoch < p->epoch)
        return err_set(e, KITH_EINVAL, "record %llu is not what was appended",
                       (unsigned long long)r->index);
    p->next++;
    p->epoch = r->epoch;
    return 0;
}

static int append_one(struct wal *w, size_t max, struct err *e)
{
    static _Thread_local char payload[1 << 17];
    int rc = wal_reserve(w, max, 1, e);
    if (rc == 0) {
        /* The index is ours to guess only where one thread appends. */
        size_t n = payload_of(wal_last(w) + 1, max, payload);
        wal_append(w, 1 + wal_last(w) / 100, payload, n);
    }
    return rc;
}

/* Opens, checks every record from after + 1 on, returns the last index; closes unless `out`. */
static uint64_t reopen(const char *dir, const struct wal_options *o, size_t max, uint64_t after,
                       struct wal **out)
{
    struct wal *w;
    struct err e = {0};
    struct replayed p = {.next = after + 1, .max = max};
    assert_ok(wal_open(&w, dir, o, after, &e));
    assert_ok(wal_replay(w, after, on_record, &p, &e));
    assert_int_equal(p.next, wal_last(w) + 1);
    uint64_t last = wal_last(w);
    if (out)
        *out = w;
    else
        assert_ok(wal_close(w, &e));
    return last;
}

static void test_modes(void **unused)
{
    (void)unused;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct err e = {0};
    for (int mode = WAL_SYNC_ALWAYS; mode <= WAL_SYNC_NO; mode++) {
        char dir[64];
        struct wal *w;
        struct wal_options o = {.sync = (enum wal_sync)mode, .segment_bytes = SMALL_SEGMENT};
        uint64_t last = 0, trimmed = 0;
        unit_dir_make(dir);
        for (int life = 0; life < 12; life++) {
            assert_int_equal(reopen(dir, &o, 3000, trimmed, &w), last);
            for (uint64_t n = rng_below(&r, 60); n > 0; n--) {
                assert_ok(append_one(w, 3000, &e));
                if (rng_below(&r, 3) == 0)
                    assert_ok(wal_flush(w, &e));
                if (mode != WAL_SYNC_ALWAYS && rng_below(&r, 9) == 0) {
                    assert_ok(wal_flush(w, &e));
                    assert_int_equal(wal_released(w), wal_last(w));
                }
            }
            last = wal_last(w);
            if (rng_below(&r, 2)) {
                assert_ok(wal_sync_to(w, last, &e));
                assert_int_equal(wal_durable(w), last);
                assert_int_equal(wal_released(w), last);
                trimmed += rng_below(&r, last - trimmed + 1);
                assert_ok(wal_trim(w, trimmed, &e));
                assert_true(wal_bytes_after(w, trimmed) <= wal_bytes(w));
            }
            assert_ok(wal_close(w, &e));
        }
        assert_int_equal(wal_check(dir, trimmed, NULL, NULL, &e), 0);
        unit_remove(dir);
    }
}

static void test_sizes(void **unused)
{
    (void)unused;
    char dir[64];
    struct wal *w;
    struct err e = {0};
    struct wal_options o = {.sync = WAL_SYNC_ALWAYS, .segment_bytes = SMALL_SEGMENT};
    unit_dir_make(dir);
    reopen(dir, &o, 100000, 0, &w);
    /* Records larger than a segment, and more than one replacement of an empty segment. */
    for (int i = 0; i < 30; i++)
        assert_ok(append_one(w, 100000, &e));
    for (size_t n = 1000; n < 100000; n *= 2)
        assert_ok(wal_reserve(w, n, 3, &e));
    assert_ok(append_one(w, 100000, &e));
    assert_int_equal(wal_reserve(w, (size_t)WAL_PAYLOAD_MAX + 1, 1, &e), KITH_ELIMIT);
    assert_int_equal(wal_sync_to(w, 1000, &e), KITH_EINVAL);
    wal_set_sync(w, WAL_SYNC_NO);
    assert_ok(append_one(w, 100000, &e));
    assert_ok(wal_flush(w, &e));
    assert_int_equal(wal_released(w), wal_last(w));
    wal_set_sync(w, WAL_SYNC_ALWAYS);
    assert_ok(append_one(w, 100000, &e));
    assert_ok(wal_sync_to(w, wal_last(w), &e));
    /* A second opener is refused. */
    struct wal *other;
    assert_int_equal(wal_open(&other, dir, &o, 0, &e), KITH_EBUSY);
    assert_ok(wal_close(w, &e));
    assert_int_equal(reopen(dir, &o, 100000, 0, NULL), 33);
    unit_remove(dir);
}

/* --- many appenders --- */

enum { WRITERS = 4, EACH = 400 };

struct crowd {
    struct wal *w;
    _Atomic int advances;
    _Atomic uint64_t seen;
    _Atomic bool backwards;
};

static void on_advance(void *arg)
{
    struct crowd *c = arg;
    uint64_t now = wal_released(c->w), before = atomic_load(&c->seen);
    atomic_fetch_add(&c->advances, 1);
    while (before < now && !atomic_compare_exchange_weak(&c->seen, &before, now))
        ;
}

static void *append_many(void *arg)
{
    struct crowd *c = arg;
    struct err e = {0};
    uint64_t newest = 0;
    for (uint32_t i = 0; i < EACH; i++) {
        char payload[200] = {0};
        uint64_t me = (uint64_t)(uintptr_t)&newest;
        memcpy(payload, &me, 8);
        memcpy(payload + 8, &i, 4);
        assert_ok(wal_reserve(c->w, 400, 2, &e));
        uint64_t a = wal_append(c->w, 1, payload, 12 + i % 180);
        uint64_t b = i % 2 ? wal_append(c->w, 1, payload, 0) : a;
        if (a <= newest || b < a)
            atomic_store(&c->backwards, true);
        newest = b;
        if (i % 16 == 0)
            assert_ok(wal_flush(c->w, &e));
        if (i % 64 == 0)
            assert_ok(wal_sync_to(c->w, newest, &e));
    }
    return NULL;
}

static int count_records(void *arg, const struct wal_record *r, struct err *e)
{
    (void)e;
    (void)r;
    ++*(uint64_t *)arg;
    return 0;
}

static void test_appenders(void **unused)
{
    (void)unused;
    for (int mode = WAL_SYNC_ALWAYS; mode <= WAL_SYNC_NO; mode++) {
        char dir[64];
        struct err e = {0};
        struct crowd c = {0};
        struct wal_options o = {.sync = (enum wal_sync)mode,
                                .segment_bytes = 16 << 10,
                                .on_advance = on_advance,
                                .arg = &c};
        unit_dir_make(dir);
        assert_ok(wal_open(&c.w, dir, &o, 0, &e));
        pthread_t threads[WRITERS];
        for (int i = 0; i < WRITERS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, append_many, &c), 0);
        for (int i = 0; i < 50; i++) {
            assert_ok(wal_trim(c.w, 0, &e));
            clock_sleep_us(100);
        }
        for (int i = 0; i < WRITERS; i++)
            pthread_join(threads[i], NULL);
        assert_int_equal(wal_last(c.w), WRITERS * EACH * 3 / 2);
        assert_ok(wal_sync_to(c.w, wal_last(c.w), &e));
        assert_ok(wal_close(c.w, &e));
        assert_int_equal(atomic_load(&c.seen), WRITERS * EACH * 3 / 2);
        assert_true(atomic_load(&c.advances) > 0);
        assert_false(atomic_load(&c.backwards));
        uint64_t n = 0;
        o.on_advance = NULL;
        assert_ok(wal_open(&c.w, dir, &o, 0, &e));
        assert_ok(wal_replay(c.w, 0, count_records, &n, &e));
        assert_int_equal(n, WRITERS * EACH * 3 / 2);
        assert_ok(wal_close(c.w, &e));
        unit_remove(dir);
    }
}

/* --- damage --- */

/* A log of `groups` synced groups of three records, in segments of 4 KiB, and its copy. */
static uint64_t make_small(const char *dir, int groups, size_t max)
{
    struct wal *w;
    struct err e = {0};
    struct wal_options o = {.sync = WAL_SYNC_NO, .segment_bytes = SMALL_SEGMENT};
    assert_ok(wal_open(&w, dir, &o, 0, &e));
    for (int i = 0; i < groups; i++) {
        for (int k = 0; k < 3; k++)
            assert_ok(append_one(w, max, &e));
        assert_ok(wal_sync_to(w, wal_last(w), &e));
    }
    uint64_t last = wal_last(w);
    assert_ok(wal_close(w, &e));
    return last;
}

/* Opens a damaged copy: an error that names the place, or the records 1 .. n; returns n or the
 * code. */
static int64_t open_damaged(const char *dir, size_t max)
{
    struct wal *w;
    struct err e = {0};
    struct replayed p = {.next = 1, .max = max};
    struct wal_options o = {.segment_bytes = SMALL_SEGMENT};
    int rc = wal_open(&w, dir, &o, 0, &e);
    if (rc != 0) {
        assert_true(rc == KITH_ECORRUPT || rc == KITH_EFORMAT);
        assert_non_null(strstr(e.message, "wal"));
        return rc;
    }
    assert_ok(wal_replay(w, 0, on_record, &p, &e));
    assert_int_equal(wal_last(w), p.next - 1);
    /* The log goes on where it ends, and what follows is found again. */
    assert_ok(append_one(w, max, &e));
    assert_ok(wal_close(w, &e));
    assert_int_equal(reopen(dir, &o, max, 0, NULL), p.next);
    return (int64_t)p.next - 1;
}

struct victim {
    char name[512];
    size_t bytes;
    char *data;
};

static int list_files(const char *dir, struct victim *out, int max)
{
    char wal[512];
    snprintf(wal, sizeof wal, "%s/wal", dir);
    DIR *d = opendir(wal);
    struct dirent *entry;
    int n = 0;
    while (n < max && (entry = readdir(d)) != NULL) {
        struct stat st;
        char path[512];
        if (!unit_path(path, wal, entry->d_name) || strcmp(entry->d_name, "lock") == 0)
            continue;
        assert_int_equal(stat(path, &st), 0);
        memcpy(out[n].name, path, sizeof path);
        out[n++].bytes = (size_t)st.st_size;
    }
    closedir(d);
    return n;
}

static void poke(const char *path, size_t offset, const void *p, size_t n)
{
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, p, n, (off_t)offset), n);
    close(fd);
}

static void test_bit_flips(void **unused)
{
    (void)unused;
    char made[64], dir[64];
    struct victim files[8];
    unit_dir_make(made);
    unit_dir_make(dir);
    uint64_t last = make_small(made, 4, 150);
    int n_files = list_files(made, files, 8), errors = 0, runs = 0;
    for (int f = 0; f < n_files; f++) {
        for (size_t at = 0; at < files[f].bytes; at++) {
            /* The preallocated rest is all alike. */
            if (at > 2200 && at % 37)
                continue;
            char path[512], byte;
            unit_remove(dir);
            test_copy(made, dir);
            snprintf(path, sizeof path, "%s%s", dir, files[f].name + strlen(made));
            int fd = open(path, O_RDONLY);
            assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
            close(fd);
            byte = (char)(byte ^ (1 << at % 8));
            poke(path, at, &byte, 1);
            int64_t got = open_damaged(dir, 150);
            assert_true(got < 0 || got == (int64_t)last);
            errors += got < 0;
            runs++;
        }
    }
    print_message("%d of %d flips were refused, the rest did not matter\n", errors, runs);
    assert_true(errors > 1000 && errors < runs);
    unit_remove(made);
    unit_remove(dir);
}

/* The file cut, or zeroed from a byte on, with the mark and without. */
static void test_torn(void **unused)
{
    (void)unused;
    char made[64], dir[64], segment[128], mark[128];
    static const char zeros[SMALL_SEGMENT];
    unit_dir_make(made);
    unit_dir_make(dir);
    uint64_t last = make_small(made, 4, 150);
    snprintf(segment, sizeof segment, "%s/wal/00000000000000000001.wal", dir);
    snprintf(mark, sizeof mark, "%s/wal/durable", dir);
    int64_t longest = 0;
    for (size_t at = 64; at < 2300; at += at < 600 ? 1 : 5) {
        for (int how = 0; how < 4; how++) {
            unit_remove(dir);
            test_copy(made, dir);
            if (how & 1)
                unlink(mark);
            if (how & 2)
                poke(segment, at, zeros, SMALL_SEGMENT - at);
            else
                assert_int_equal(truncate(segment, (off_t)at), 0);
            int64_t got = open_damaged(dir, 150);
            /* With the mark nothing may be missing; without it, records from a group on. */
            if (how & 1) {
                assert_true(got >= longest || got + 1 >= longest);
                longest = got > longest ? got : longest;
            } else {
                assert_true(got < 0 || got == (int64_t)last);
            }
        }
    }
    assert_int_equal(longest, last);
    unit_remove(made);
    unit_remove(dir);
}

/* A hole in the middle with valid records after it, whose `durable` field proves it. */
static void test_proof(void **unused)
{
    (void)unused;
    char dir[64], path[128];
    static const char zeros[512];
    struct err e = {0};
    struct wal *w;
    struct wal_options o = {0};
    unit_dir_make(dir);
    uint64_t last = make_small(dir, 60, 150);
    snprintf(path, sizeof path, "%s/wal/durable", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/wal/00000000000000000001.wal", dir);
    poke(path, 1000, zeros, sizeof zeros);
    assert_int_equal(wal_open(&w, dir, &o, 0, &e), KITH_ECORRUPT);
    assert_non_null(strstr(e.message, path));
    /* A segment that is gone. */
    unlink(path);
    assert_int_equal(wal_open(&w, dir, &o, 0, &e), KITH_ECORRUPT);
    assert_int_equal(wal_check(dir, 0, NULL, NULL, &e), KITH_ECORRUPT);
    /* What the checkpoint has is not needed. */
    assert_int_equal(reopen(dir, &o, 150, last - 1, NULL), last);
    /* But a log that ends before the checkpoint is none. */
    assert_int_equal(wal_open(&w, dir, &o, last + 1, &e), KITH_ECORRUPT);
    unit_remove(dir);
}

/* Blocks of one unsynced group that came to the disk out of order are torn, not damaged. */
static void test_unordered_group(void **unused)
{
    (void)unused;
    char dir[64], path[128];
    static const char zeros[300];
    struct wal *w;
    struct err e = {0};
    struct wal_options o = {.sync = WAL_SYNC_NO};
    unit_dir_make(dir);
    assert_ok(wal_open(&w, dir, &o, 0, &e));
    for (int i = 0; i < 20; i++)
        assert_ok(append_one(w, 150, &e));
    assert_ok(wal_close(w, &e));
    /* The mark as a power cut may leave it: older than the group. */
    snprintf(path, sizeof path, "%s/wal/durable", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/wal/00000000000000000001.wal", dir);
    poke(path, 900, zeros, sizeof zeros);
    int64_t got = open_damaged(dir, 150);
    assert_true(got >= 0 && got < 20);
    unit_remove(dir);
}

/* --- full disks, failed syncs --- */

static void test_no_room(void **unused)
{
    (void)unused;
    for (int mode = WAL_SYNC_ALWAYS; mode <= WAL_SYNC_NO; mode++) {
        char dir[64];
        struct wal *w;
        struct err e = {0};
        struct wal_options o = {.sync = (enum wal_sync)mode, .segment_bytes = SMALL_SEGMENT};
        unit_dir_make(dir);
        reopen(dir, &o, 1000, 0, &w);
        int rc = 0, appended = 0;
        fault_arm(FAULT_FALLOCATE, 1, ENOSPC);
        while (appended < 100 && (rc = append_one(w, 1000, &e)) == 0)
            appended++;
        assert_int_equal(rc, KITH_ENOSPC);
        assert_int_equal(append_one(w, 1000, &e), KITH_ENOSPC);
        /* What was appended needs no room. */
        assert_ok(wal_sync_to(w, wal_last(w), &e));
        fault_disarm();
        for (int i = 0; i < 20; i++)
            assert_ok(append_one(w, 1000, &e));
        assert_ok(wal_sync_to(w, wal_last(w), &e));

        /* A write that fails although the room was reserved: kept, and written later. */
        uint64_t before = wal_released(w);
        assert_ok(wal_reserve(w, 1000, 1, &e));
        fault_arm(FAULT_PWRITE, 1, ENOSPC);
        char payload[1000];
        wal_append(w, 1, payload, payload_of(wal_last(w) + 1, 1000, payload));
        assert_int_equal(wal_sync_to(w, wal_last(w), &e), KITH_ENOSPC);
        assert_int_equal(wal_reserve(w, 10, 1, &e), KITH_ENOSPC);
        if (mode != WAL_SYNC_ALWAYS)
            assert_int_equal(wal_flush(w, &e), KITH_ENOSPC);
        assert_int_equal(wal_released(w), before);
        fault_disarm();
        for (int i = 0; i < 60000 && wal_reserve(w, 10, 1, &e) != 0; i++)
            clock_sleep_us(1000);
        assert_ok(append_one(w, 1000, &e));
        assert_ok(wal_sync_to(w, wal_last(w), &e));
        uint64_t last = wal_last(w);
        assert_ok(wal_close(w, &e));
        assert_int_equal(reopen(dir, &o, 1000, 0, NULL), last);
        unit_remove(dir);
    }
}

static _Atomic int fatal_calls;

static void on_fatal(void *arg, const struct err *why)
{
    (void)arg;
    assert_int_equal(why->code, KITH_EIO);
    atomic_fetch_add(&fatal_calls, 1);
}

static void test_failed_sync(void **unused)
{
    (void)unused;
    for (int mode = WAL_SYNC_ALWAYS; mode <= WAL_SYNC_NO; mode++) {
        char dir[64];
        struct wal *w;
        struct err e = {0};
        struct wal_options o = {.sync = (enum wal_sync)mode, .on_fatal = on_fatal};
        unit_dir_make(dir);
        atomic_store(&fatal_calls, 0);
        reopen(dir, &o, 1000, 0, &w);
        assert_ok(append_one(w, 1000, &e));
        assert_ok(wal_sync_to(w, 1, &e));
        fault_arm(FAULT_SYNC, 1, EIO);
        assert_ok(append_one(w, 1000, &e));
        assert_int_equal(wal_sync_to(w, 2, &e), KITH_ECLOSED);
        fault_disarm();
        assert_int_equal(wal_sync_to(w, 2, &e), KITH_ECLOSED);
        assert_int_equal(append_one(w, 1000, &e), KITH_ECLOSED);
        assert_int_equal(wal_flush(w, &e), KITH_ECLOSED);
        assert_int_equal(wal_durable(w), 1);
        assert_true(mode != WAL_SYNC_ALWAYS || wal_released(w) == 1);
        assert_true(wal_close(w, &e) < 0);
        assert_int_equal(atomic_load(&fatal_calls), 1);
        /* It was written, so this kernel still has it. */
        assert_int_equal(reopen(dir, &o, 1000, 0, NULL), 2);
        unit_remove(dir);
    }
}

/* On a file system that is really full, where we may mount one. */
static void test_small_disk(void **unused)
{
    (void)unused;
    char dir[64], fill[128];
    unit_dir_make(dir);
    if (mount("tmpfs", dir, "tmpfs", 0, "size=256k") != 0) {
        print_message("skipped: cannot mount a tmpfs: %s\n", strerror(errno));
        rmdir(dir);
        skip();
    }
    struct wal *w;
    struct err e = {0};
    struct wal_options o = {.sync = WAL_SYNC_ALWAYS, .segment_bytes = 16 << 10};
    reopen(dir, &o, 1000, 0, &w);
    snprintf(fill, sizeof fill, "%s/fill", dir);
    int fd = open(fill, O_WRONLY | O_CREAT, 0644);
    static const char block[4096];
    while (write(fd, block, sizeof block) == (ssize_t)sizeof block)
        ;
    close(fd);
    int rc = 0, n = 0;
    while ((rc = append_one(w, 1000, &e)) == 0 && n++ < 1000)
        ;
    assert_int_equal(rc, KITH_ENOSPC);
    assert_ok(wal_sync_to(w, wal_last(w), &e));
    uint64_t last = wal_last(w);
    assert_ok(wal_close(w, &e));
    /* A restart on the full disk, and room again. */
    assert_int_equal(reopen(dir, &o, 1000, 0, &w), last);
    unlink(fill);
    for (int i = 0; i < 30; i++)
        assert_ok(append_one(w, 1000, &e));
    last = wal_last(w);
    assert_ok(wal_close(w, &e));
    assert_int_equal(reopen(dir, &o, 1000, 0, NULL), last);
    umount(dir);
    rmdir(dir);
}

static void test_out_of_memory(void **unused)
{
    (void)unused;
    char dir[64];
    struct err e = {0};
    struct wal_options o = {.sync = WAL_SYNC_ALWAYS, .segment_bytes = SMALL_SEGMENT};
    unit_dir_make(dir);
    uint64_t acknowledged = 0;
    for (long fail = 1; fail < 400; fail += 1 + fail / 40) {
        struct wal *w;
        struct replayed p = {.next = 1, .max = 2000};
        mem_fail_after(fail);
        int rc = wal_open(&w, dir, &o, 0, &e);
        if (rc == 0) {
            rc = wal_replay(w, 0, on_record, &p, &e);
            for (int i = 0; i < 10 && rc == 0; i++)
                rc = append_one(w, 2000, &e);
            if (rc == 0)
                rc = wal_sync_to(w, wal_last(w), &e);
            uint64_t released = wal_released(w);
            acknowledged = released > acknowledged ? released : acknowledged;
            assert_true(rc == 0 || rc == KITH_ENOMEM);
            mem_fail_after(0);
            wal_close(w, &e);
        }
        mem_fail_after(0);
        assert_true(rc == 0 || rc == KITH_ENOMEM);
        assert_true(reopen(dir, &o, 2000, 0, NULL) >= acknowledged);
    }
    unit_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_appenders),
        cmocka_unit_test(test_bit_flips),
        cmocka_unit_test(test_torn),
        cmocka_unit_test(test_proof),
        cmocka_unit_test(test_unordered_group),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_failed_sync),
        cmocka_unit_test(test_small_disk),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
