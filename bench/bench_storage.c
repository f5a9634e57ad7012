/* What the storage room reaches: appends a second and group sizes by sync mode and number of
 * writers, checkpoint speed, and the time to open a store. A table for people, one CSV row a
 * point.
 *
 * The physical bound printed beside the log is a bare loop of 4 KiB pwrite and fdatasync on the
 * same disk; beside the checkpoint, of 1 MiB pwrites with one fdatasync at the end. */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "storage/chunks.h"
#include "storage/store.h"
#include "storage/wal.h"

static const char usage[] =
    "bench-storage [--dir DIR] [--seconds S] [--bytes B] [--chunks N]\n"
    "  --dir DIR    where to work; a folder in it is made and left (default /tmp)\n"
    "  --seconds S  for each point of the log (default 1)\n"
    "  --bytes B    payload of a record (default 3000)\n"
    "  --chunks N   64 KiB chunks of the checkpoint (default 4000)\n"
    "Prints a table, and lines beginning with 'csv,' for machines.\n";

struct settings {
    char dir[512];
    double seconds;
    size_t bytes;
    uint32_t n_chunks;
};

static int die(const char *what, const struct err *e)
{
    fprintf(stderr, "%s: %s\n", what, e->message);
    exit(1);
}

/* --- the log --- */

struct load {
    struct wal *w;
    size_t bytes;
    _Atomic bool stop;
    _Atomic uint64_t groups;
};

static void on_advance(void *arg)
{
    struct load *l = arg;
    atomic_fetch_add(&l->groups, 1);
}

/* A client that waits for its record to be released, as one connection would. */
static void *write_records(void *arg)
{
    struct load *l = arg;
    struct err e;
    char *payload = calloc(1, l->bytes);
    while (payload && !atomic_load_explicit(&l->stop, memory_order_relaxed)) {
        if (wal_reserve(l->w, l->bytes, 1, &e) != 0)
            die("reserve", &e);
        uint64_t index = wal_append(l->w, 1, payload, l->bytes);
        if (wal_flush(l->w, &e) != 0)
            die("flush", &e);
        if (wal_released(l->w) < index && wal_sync_to(l->w, index, &e) != 0)
            die("sync", &e);
    }
    free(payload);
    return NULL;
}

static void bench_log(const struct settings *s, enum wal_sync sync, int writers)
{
    static const char *const names[] = {"always", "everysec", "no"};
    struct load l = {.bytes = s->bytes};
    struct wal_options o = {.sync = sync, .on_advance = on_advance, .arg = &l};
    struct err e;
    pthread_t threads[64];
    char dir[600];
    snprintf(dir, sizeof dir, "%s/log-%s-%d", s->dir, names[sync], writers);
    if (wal_open(&l.w, dir, &o, 0, &e) != 0)
        die("open", &e);
    int64_t begin = clock_mono_us();
    for (int i = 0; i < writers; i++)
        pthread_create(&threads[i], NULL, write_records, &l);
    while ((double)(clock_mono_us() - begin) < s->seconds * 1e6) {
        clock_sleep_us(20000);
        wal_trim(l.w, wal_released(l.w), &e);
    }
    atomic_store(&l.stop, true);
    for (int i = 0; i < writers; i++)
        pthread_join(threads[i], NULL);
    double seconds = (double)(clock_mono_us() - begin) / 1e6, n = (double)wal_last(l.w);
    double groups = (double)atomic_load(&l.groups);
    if (wal_close(l.w, &e) != 0)
        die("close", &e);
    printf("log  %-9s %3d writers  %9.0f records/s  %7.1f MB/s  %6.1f records a group\n",
           names[sync], writers, n / seconds, n * (double)s->bytes / seconds / 1e6,
           groups > 0 ? n / groups : 0.0);
    printf("csv,log,%s,%d,%zu,%.0f,%.2f\n", names[sync], writers, s->bytes, n / seconds,
           groups > 0 ? n / groups : 0.0);
}

static void bench_bound(const struct settings *s)
{
    char path[600];
    static char block[1 << 20];
    snprintf(path, sizeof path, "%s/bound", s->dir);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644), n = 0;
    if (fd < 0 || fallocate(fd, 0, 0, 256 << 20) != 0) {
        fprintf(stderr, "cannot measure the disk: %s\n", strerror(errno));
        return;
    }
    int64_t begin = clock_mono_us();
    for (; n < 100000 && clock_mono_us() - begin < 500000; n++) {
        if (pwrite(fd, block, 4096, (off_t)n * 4096 % (255 << 20)) != 4096 ||
            fdatasync(fd) != 0)
            break;
    }
    double syncs = n * 1e6 / (double)(clock_mono_us() - begin);
    begin = clock_mono_us();
    for (off_t at = 0; at < 256 << 20; at += (off_t)sizeof block) {
        if (pwrite(fd, block, sizeof block, at) != sizeof block)
            break;
    }
    fdatasync(fd);
    double mb = 256 * 1.048576e6 / (double)(clock_mono_us() - begin);
    close(fd);
    unlink(path);
    printf("disk %9.0f fdatasync/s of 4 KiB, %.0f MB/s written and synced\n", syncs, mb);
    printf("csv,disk,%.0f,%.0f\n", syncs, mb);
}

/* --- checkpoints --- */

enum { ARRAY = 1, STRIDE = 4096 };

struct times {
    int64_t freeze, write, commit, refresh, settle, done;
};

static void checkpoint(struct store *s, struct chunks *c, uint64_t index, struct times *t)
{
    struct store_write *w;
    struct err e;
    int64_t begin = clock_mono_us();
    chunks_freeze(c);
    t->freeze = clock_mono_us() - begin;
    if (store_begin(s, &w, &e) != 0 || chunks_write(c, w, &e) != 0)
        die("write", &e);
    t->write = clock_mono_us() - begin - t->freeze;
    int64_t at = clock_mono_us();
    if (store_commit(w, 1, index, &e) != 0)
        die("commit", &e);
    t->commit = clock_mono_us() - at;
    at = clock_mono_us();
    if (store_refresh(s, &e) != 0)
        die("refresh", &e);
    t->refresh = clock_mono_us() - at;
    at = clock_mono_us();
    chunks_settle(c, true);
    t->settle = clock_mono_us() - at;
    store_refreshed(s);
    t->done = clock_mono_us() - begin;
}

static void touch(struct chunks *c, uint32_t per_chunk, uint32_t n_chunks, uint32_t step)
{
    struct err e;
    for (uint32_t k = 0; k < n_chunks; k += step) {
        char *p = records_writable(chunks_records(c), k * per_chunk, &e);
        if (!p)
            die("writable", &e);
        p[0]++;
    }
}

static void bench_checkpoints(const struct settings *s)
{
    struct store *store;
    struct chunks *c;
    struct err e;
    struct times t;
    char dir[600];
    snprintf(dir, sizeof dir, "%s/store", s->dir);
    if (store_open(&store, dir, NULL, &e) != 0 ||
        chunks_open(&c, store, ARRAY, STRIDE, 0, &e) != 0)
        die("open", &e);
    uint32_t per_chunk = chunks_records(c)->per_chunk, n = s->n_chunks * per_chunk;
    if (records_grow(chunks_records(c), n, &e) != 0)
        die("grow", &e);
    static const char *const names[] = {"new", "all", "all", "1 of 10", "1 of 100"};
    static const uint32_t steps[] = {1, 1, 1, 10, 100};
    for (uint32_t round = 0; round < 5; round++) {
        if (round > 0)
            touch(c, per_chunk, s->n_chunks, steps[round]);
        double mb = (double)store_dirty_bytes(store) / 1e6;
        checkpoint(store, c, round + 1, &t);
        printf("checkpoint %-8s %8.1f MB %8.0f MB/s | ms: freeze %.2f write %.1f commit %.1f "
               "refresh %.2f settle %.2f all %.1f | file %.0f MB\n",
               names[round], mb, mb * 1e6 / (double)t.done, (double)t.freeze / 1e3,
               (double)t.write / 1e3, (double)t.commit / 1e3, (double)t.refresh / 1e3,
               (double)t.settle / 1e3, (double)t.done / 1e3,
               (double)store_file_bytes(store) / 1e6);
        printf("csv,checkpoint,%s,%.1f,%.0f,%lld,%lld\n", names[round], mb,
               mb * 1e6 / (double)t.done, (long long)t.settle, (long long)t.done);
    }
    chunks_free(c);
    store_close(store);
    int64_t begin = clock_mono_us();
    if (store_open(&store, dir, NULL, &e) != 0)
        die("open", &e);
    double open_ms = (double)(clock_mono_us() - begin) / 1e3;
    begin = clock_mono_us();
    if (chunks_open(&c, store, ARRAY, STRIDE, n, &e) != 0)
        die("open", &e);
    for (uint32_t k = 0; k < s->n_chunks; k++) {
        if (!records_at(chunks_records(c), k * per_chunk, &e))
            die("read", &e);
    }
    double read_ms = (double)(clock_mono_us() - begin) / 1e3;
    printf("open %.2f ms, first read and checksum of every chunk %.2f ms\n", open_ms, read_ms);
    printf("csv,open,%u,%.3f,%.3f\n", s->n_chunks, open_ms, read_ms);
    chunks_free(c);
    store_close(store);
}

int main(int argc, char **argv)
{
    struct settings s = {.dir = "/tmp", .seconds = 1, .bytes = 3000, .n_chunks = 4000};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--help") == 0 || !value) {
            fputs(usage, stdout);
            return strcmp(argv[i], "--help") == 0 ? 0 : 2;
        }
        if (strcmp(argv[i], "--dir") == 0)
            snprintf(s.dir, sizeof s.dir, "%s", value);
        else if (strcmp(argv[i], "--seconds") == 0)
            s.seconds = atof(value);
        else if (strcmp(argv[i], "--bytes") == 0)
            s.bytes = (size_t)atol(value);
        else if (strcmp(argv[i], "--chunks") == 0)
            s.n_chunks = (uint32_t)atol(value);
        else {
            fputs(usage, stderr);
            return 2;
        }
        i++;
    }
    strncat(s.dir, "/kith-bench-XXXXXX", sizeof s.dir - strlen(s.dir) - 1);
    if (!mkdtemp(s.dir)) {
        fprintf(stderr, "cannot make %s: %s\n", s.dir, strerror(errno));
        return 1;
    }
    printf("working in %s\n", s.dir);
    bench_bound(&s);
    static const int writers[] = {1, 4, 16, 64};
    for (int sync = WAL_SYNC_ALWAYS; sync <= WAL_SYNC_NO; sync++) {
        for (int i = 0; i < 4; i++)
            bench_log(&s, (enum wal_sync)sync, writers[i]);
    }
    bench_checkpoints(&s);
    return 0;
}
