/* Power cuts, simulated: every write, sync, rename and unlink of a log in use is recorded; then
 * images of the directory are made as a disk may have them after a cut at any moment, with
 * unsynced writes lost, kept or torn at sectors, and unsynced changes of the directory lost
 * from some point on. Each must open, with everything that was durable at the cut.
 *
 * The recording defines the system calls in the test program, so that the linker prefers them
 * to libc's. A write counts as synced when it had ended before the sync began, and the sync
 * before the cut. */
#include "tests/unit/storage_fixture.h"

#include <pthread.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "storage/wal_format.h"

enum { OPS_MAX = 20000, FILES_MAX = 400, SEGMENT_BYTES = 4096, NAME_BYTES = 64, SECTOR = 512 };

enum kind { WRITE, SIZE, SYNC_BEGIN, SYNC_END, CREATE, RENAME, UNLINK, DURABLE, TRIMMED };

struct op {
    enum kind kind;
    int file;               /* -1: the directory */
    uint64_t offset, bytes; /* DURABLE, TRIMMED: offset is the index */
    char *data;
    char from[NAME_BYTES], to[NAME_BYTES];
};

static struct op ops[OPS_MAX];
static int n_ops;
static ino_t inodes[FILES_MAX]; /* of file ids; the newest wins */
static int n_files;
static char recorded_dir[80]; /* DIR/wal; "" records nothing */
static pthread_mutex_t ops_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *name_in(const char *path)
{
    size_t n = strlen(recorded_dir);
    return n && strncmp(path, recorded_dir, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

/* The file id behind a descriptor; -1 the directory; -2 none of ours. */
static int file_of(int fd)
{
    struct stat st, dir;
    if (!*recorded_dir || fstat(fd, &st) != 0 || stat(recorded_dir, &dir) != 0)
        return -2;
    if (st.st_ino == dir.st_ino && st.st_dev == dir.st_dev)
        return -1;
    for (int i = n_files - 1; i >= 0; i--) {
        if (inodes[i] == st.st_ino)
            return i;
    }
    return -2;
}

static struct op *record(enum kind kind, int file)
{
    assert_true(n_ops < OPS_MAX);
    struct op *o = &ops[n_ops++];
    *o = (struct op){.kind = kind, .file = file};
    return o;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t offset)
{
    ssize_t done = syscall(SYS_pwrite64, fd, p, n, offset);
    pthread_mutex_lock(&ops_lock);
    int file = file_of(fd);
    if (file >= 0 && done > 0) {
        struct op *o = record(WRITE, file);
        o->offset = (uint64_t)offset;
        o->bytes = (uint64_t)done;
        o->data = malloc((size_t)done);
        memcpy(o->data, p, (size_t)done);
    }
    pthread_mutex_unlock(&ops_lock);
    return done;
}

static int sync_call(long call, int fd)
{
    pthread_mutex_lock(&ops_lock);
    int file = file_of(fd);
    if (file >= -1)
        record(SYNC_BEGIN, file);
    pthread_mutex_unlock(&ops_lock);
    int rc = (int)syscall(call, fd);
    if (file < -1)
        return rc;
    clock_sleep_us(200); /* a disk's time, in which others go on */
    pthread_mutex_lock(&ops_lock);
    record(SYNC_END, file);
    pthread_mutex_unlock(&ops_lock);
    return rc;
}

int fdatasync(int fd)
{
    return sync_call(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return sync_call(SYS_fsync, fd);
}

int fallocate(int fd, int mode, off_t offset, off_t n)
{
    int rc = (int)syscall(SYS_fallocate, fd, mode, offset, n);
    pthread_mutex_lock(&ops_lock);
    int file = file_of(fd);
    if (file >= 0)
        record(SIZE, file)->bytes = (uint64_t)(offset + n);
    pthread_mutex_unlock(&ops_lock);
    return rc;
}

int rename(const char *from, const char *to)
{
    pthread_mutex_lock(&ops_lock);
    int rc = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    const char *a = name_in(from), *b = name_in(to);
    if (a && b) {
        struct op *o = record(RENAME, -1);
        snprintf(o->from, NAME_BYTES, "%s", a);
        snprintf(o->to, NAME_BYTES, "%s", b);
    }
    pthread_mutex_unlock(&ops_lock);
    return rc;
}

int unlink(const char *path)
{
    pthread_mutex_lock(&ops_lock);
    int rc = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (name_in(path))
        snprintf(record(UNLINK, -1)->from, NAME_BYTES, "%s", name_in(path));
    pthread_mutex_unlock(&ops_lock);
    return rc;
}

int open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    int mode = flags & O_CREAT ? va_arg(ap, int) : 0;
    va_end(ap);
    pthread_mutex_lock(&ops_lock);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    const char *name = name_in(path);
    if (fd >= 0 && name && (flags & O_CREAT)) {
        struct stat st;
        assert_int_equal(fstat(fd, &st), 0);
        assert_true(n_files < FILES_MAX);
        inodes[n_files] = st.st_ino;
        snprintf(record(CREATE, n_files++)->to, NAME_BYTES, "%s", name);
    }
    pthread_mutex_unlock(&ops_lock);
    return fd;
}

static void tell(enum kind kind, uint64_t index)
{
    pthread_mutex_lock(&ops_lock);
    record(kind, -2)->offset = index;
    pthread_mutex_unlock(&ops_lock);
}

/* --- a log in use --- */

struct life {
    struct wal *w;
    pthread_mutex_t append_lock;
    uint64_t seed;
    _Atomic bool stop;
};

static size_t payload_of(uint64_t i, char *out)
{
    struct rng r;
    rng_seed(&r, i);
    size_t n = (size_t)rng_below(&r, 900);
    for (size_t k = 0; k < n; k++)
        out[k] = (char)rng_next(&r);
    return n;
}

static void *append_some(void *arg)
{
    struct life *l = arg;
    struct rng r;
    struct err e;
    char payload[1000];
    rng_seed(&r, l->seed ^ (uint64_t)(uintptr_t)&r);
    while (!atomic_load(&l->stop)) {
        pthread_mutex_lock(&l->append_lock);
        assert_ok(wal_reserve(l->w, 1000, 1, &e));
        size_t n = payload_of(wal_last(l->w) + 1, payload);
        uint64_t i = wal_append(l->w, 1, payload, n);
        pthread_mutex_unlock(&l->append_lock);
        if (rng_below(&r, 2))
            assert_ok(wal_flush(l->w, &e));
        if (rng_below(&r, 10) == 0) {
            assert_ok(wal_sync_to(l->w, i, &e));
            tell(DURABLE, i);
        }
        clock_sleep_us((int64_t)rng_below(&r, 300));
    }
    return NULL;
}

static void on_advance(void *arg)
{
    struct life *l = arg;
    tell(DURABLE, wal_durable(l->w));
}

static void live(const char *dir, enum wal_sync sync, uint64_t seed)
{
    struct err e;
    struct life l = {.append_lock = PTHREAD_MUTEX_INITIALIZER, .seed = seed};
    struct wal_options o = {
        .sync = sync, .segment_bytes = SEGMENT_BYTES, .on_advance = on_advance, .arg = &l};
    snprintf(recorded_dir, sizeof recorded_dir, "%s/wal", dir);
    assert_ok(wal_open(&l.w, dir, &o, 0, &e));
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, append_some, &l), 0);
    for (int i = 0; i < 20; i++) {
        clock_sleep_us(6000);
        uint64_t upto = wal_durable(l.w) / 2;
        tell(TRIMMED, upto);
        assert_ok(wal_trim(l.w, upto, &e));
    }
    atomic_store(&l.stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_ok(wal_close(l.w, &e));
    recorded_dir[0] = '\0';
}

/* --- images --- */

struct image {
    char name[NAME_BYTES];
    int file;
};

/* Whether a sync of the file (-1: the directory) began after the operation and ended before the
 * cut. One thread syncs a file at a time. */
static bool is_synced(int file, int op, int cut)
{
    bool begun = false;
    for (int i = op + 1; i < cut; i++) {
        if (ops[i].file != file)
            continue;
        begun = begun || ops[i].kind == SYNC_BEGIN;
        if (begun && ops[i].kind == SYNC_END)
            return true;
    }
    return false;
}

static bool is_name_change(const struct op *o)
{
    return o->kind == CREATE || o->kind == RENAME || o->kind == UNLINK;
}

static int apply_names(struct image *names, int cut, struct rng *r)
{
    int n = 0, until = cut;
    for (int i = 0; i < cut; i++) {
        if (is_name_change(&ops[i]) && !is_synced(-1, i, cut) && rng_below(r, 3) == 0) {
            until = i;
            break;
        }
    }
    for (int i = 0; i < until; i++) {
        const struct op *o = &ops[i];
        if (!is_name_change(o))
            continue;
        int from = -1, to = -1;
        for (int k = 0; k < n; k++) {
            from = strcmp(names[k].name, o->from) == 0 ? k : from;
            to = strcmp(names[k].name, o->to) == 0 ? k : to;
        }
        if (o->kind == CREATE) {
            if (to < 0)
                memcpy(names[to = n++].name, o->to, NAME_BYTES);
            names[to].file = o->file;
        } else if (o->kind == RENAME) {
            if (to < 0) {
                memcpy(names[from].name, o->to, NAME_BYTES);
            } else {
                names[to].file = names[from].file;
                names[from] = names[--n];
            }
        } else if (from >= 0) {
            names[from] = names[--n];
        }
    }
    return n;
}

static void write_image(const char *dir, const struct image *image, int cut, struct rng *r)
{
    static char bytes[64 << 10];
    static const char other_boot[WAL_BOOT_BYTES] = "another boot";
    uint64_t size = 0;
    memset(bytes, 0, sizeof bytes);
    for (int i = 0; i < cut; i++) {
        const struct op *o = &ops[i];
        if (o->file != image->file || (o->kind != WRITE && o->kind != SIZE))
            continue;
        uint64_t end = o->offset + o->bytes;
        assert_true(end <= sizeof bytes);
        size = end > size ? end : size;
        if (o->kind == SIZE)
            continue;
        bool synced = is_synced(o->file, i, cut), torn = rng_below(r, 4) == 0;
        if (!synced && !torn && rng_below(r, 2))
            continue;
        for (uint64_t at = 0; at < o->bytes;) {
            uint64_t n = SECTOR - (o->offset + at) % SECTOR;
            n = n < o->bytes - at ? n : o->bytes - at;
            if (synced || !torn || rng_below(r, 2))
                memcpy(bytes + o->offset + at, o->data + at, n);
            at += n;
        }
    }
    if (strcmp(image->name, "durable") == 0 && size == WAL_MARK_BYTES)
        wal_mark_encode(bytes, load_u64(bytes + 16), load_u64(bytes + 24), other_boot);
    char wal[80], path[512];
    snprintf(wal, sizeof wal, "%s/wal", dir);
    assert_true(unit_path(path, wal, image->name));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, 0), size);
    close(fd);
}

static int on_record(void *arg, const struct wal_record *r, struct err *e)
{
    uint64_t *next = arg;
    char expected[1000];
    size_t n = payload_of(r->index, expected);
    if (r->index != (*next)++ || r->bytes != n || memcmp(expected, r->payload, n) != 0)
        return err_set(e, KITH_EINVAL, "record %llu is wrong", (unsigned long long)r->index);
    return 0;
}

static void check_cut(const char *dir, int cut, struct rng *r)
{
    static struct image names[FILES_MAX];
    struct err e;
    struct wal *w;
    struct wal_options o = {.segment_bytes = SEGMENT_BYTES};
    char wal[128];
    uint64_t durable = 0, trimmed = 0;
    for (int i = 0; i < cut; i++) {
        if (ops[i].kind == DURABLE && ops[i].offset > durable)
            durable = ops[i].offset;
        if (ops[i].kind == TRIMMED && ops[i].offset > trimmed)
            trimmed = ops[i].offset;
    }
    unit_remove(dir);
    mkdir(dir, 0755);
    snprintf(wal, sizeof wal, "%s/wal", dir);
    mkdir(wal, 0755);
    int n = apply_names(names, cut, r);
    for (int i = 0; i < n; i++) {
        if (strcmp(names[i].name, "lock") != 0)
            write_image(dir, &names[i], cut, r);
    }
    uint64_t next = trimmed + 1;
    if (wal_open(&w, dir, &o, trimmed, &e) != 0)
        fail_msg("cut at %d, durable %llu: %s", cut, (unsigned long long)durable, e.message);
    assert_ok(wal_replay(w, trimmed, on_record, &next, &e));
    if (next <= durable)
        fail_msg("cut at %d: durable %llu, found %llu", cut, (unsigned long long)durable,
                 (unsigned long long)next - 1);
    assert_ok(wal_close(w, &e));
}

static void test_cuts(void **unused)
{
    (void)unused;
    uint64_t seed = unit_seed();
    struct rng r;
    rng_seed(&r, seed);
    for (int mode = WAL_SYNC_ALWAYS; mode <= WAL_SYNC_NO; mode++) {
        char dir[64], after[64];
        unit_dir_make(dir);
        unit_dir_make(after);
        n_ops = n_files = 0;
        live(dir, (enum wal_sync)mode, seed);
        int recorded = n_ops, first = 0, cuts = 0;
        /* The log's own making is the business of the first file and its mark. */
        while (first < recorded && ops[first].kind != DURABLE)
            first++;
        for (; cuts < 150; cuts++)
            check_cut(after, first + (int)rng_below(&r, (uint64_t)(recorded - first) + 1), &r);
        print_message("mode %d: %d operations, %d cuts\n", mode, recorded, cuts);
        for (int i = 0; i < recorded; i++)
            free(ops[i].data);
        unit_remove(dir);
        unit_remove(after);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cuts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
