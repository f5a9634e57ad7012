/* Packed weights in a file: that they are the ones of memory bit for bit, that nothing else is
 * taken for them, and that no trouble with the file keeps a model from loading. */

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/version.h"
#include "engine/embedder.h"
#include "engine/packed_cache.h"
#include "engine/pool.h"
#include "tests/unit/engine_fixture.h"
#include "tests/unit/engine_packed_fixture.h"
#include "tests/unit/unit_dir.h"

enum {
    N_EMBD = 64,
    N_IDS = 7,
    HEAD = PACKED_FIXTURE_HEAD,
    ROW = PACKED_FIXTURE_ROW,
    N_MATRICES = PACKED_FIXTURE_MATRICES
};

static const struct fixture_shape shape = {
    .n_embd = N_EMBD, .n_heads = 2, .n_ff = 128, .n_ctx = 12, .n_layers = 2};
static const int32_t ids[N_IDS] = {2, 5, 6, 9, 18, 21, 3};
static char dir[64], best[16];

/* --- the format alone --- */

static void format_file(struct buf *out)
{
    struct packed_matrix m[N_MATRICES];
    char path[128];
    struct err e = {0};
    snprintf(path, sizeof path, "%s/format", dir);
    packed_fixture_matrices(m);
    if (packed_cache_write(path, 0600, &packed_fixture_identity, m, N_MATRICES, &e) ||
        file_read_whole(path, 1 << 20, out, &e))
        fail_msg("%s", e.message);
}

/* The bytes in memory of exactly their number, so that a sanitizer sees a read past them. */
static int read_format(const char *file, size_t n, struct packed_matrix m[N_MATRICES],
                       struct err *e)
{
    char *exact = malloc(n ? n : 1);
    assert_non_null(exact);
    memcpy(exact, file, n);
    packed_fixture_shapes(m);
    int rc = packed_cache_read(exact, n, &packed_fixture_identity, m, N_MATRICES, e);
    if (rc != 0)
        for (int i = 0; i < N_MATRICES; i++) /* and nothing was said of it */
            assert_true(m[i].data == NULL && m[i].outliers[0] == 0);
    free(exact);
    return rc;
}

static void what_was_written_is_read(void **state)
{
    (void)state;
    struct packed_matrix want[N_MATRICES], m[N_MATRICES];
    struct buf b = {0};
    struct err e = {0};
    packed_fixture_matrices(want);
    packed_fixture_shapes(m);
    format_file(&b);
    assert_int_equal(b.len, HEAD + N_MATRICES * ROW + 256 + 64 + 192 + 8);
    assert_int_equal(
        packed_cache_read(b.data, b.len, &packed_fixture_identity, m, N_MATRICES, &e), 0);
    for (int i = 0; i < N_MATRICES; i++) {
        assert_memory_equal(m[i].data, want[i].data, want[i].bytes);
        assert_memory_equal(m[i].outliers, want[i].outliers, sizeof m[i].outliers);
        assert_int_equal(((const char *)m[i].data - b.data) % PACKED_CACHE_ALIGNMENT, 0);
    }
    buf_deinit(&b);
}

static void sign(struct buf *b)
{
    store_u64(b->data + b->len - 8, hash64(b->data, b->len - 8));
}

/* One field at a time says something else, under a checksum that is right. */
static void refuses_each_lie(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint32_t value;
        int code;
        const char *word;
    } lies[] = {
        {0, 0, KITH_EFORMAT, "no file of packed weights"},
        {7, 'k', KITH_EFORMAT, "no file of packed weights"},
        {8, 0, KITH_EFORMAT, "version 0"},
        {8, PACKED_CACHE_VERSION + 1, KITH_EFORMAT, "version 3, this program reads 2"},
        {12, 8, KITH_EFORMAT, "another width"},
        {16, 0, KITH_ECORRUPT, "header"},
        {20, 1, KITH_ECORRUPT, "header"},
        {24, 'A', KITH_EFORMAT, "other kernels"},
        {36, 1, KITH_EFORMAT, "other kernels"},
        {40, 'f', KITH_EFORMAT, "another precision"},
        {56, '9', KITH_EFORMAT, "another version of kith"},
        {72, 'f', KITH_EFORMAT, "another model file"},
        {100, 'f', KITH_EFORMAT, "another model file"},
        {104, N_MATRICES - 1, KITH_ECORRUPT, "header"},
        {104, UINT32_MAX, KITH_ECORRUPT, "header"},
        {108, 1, KITH_ECORRUPT, "header"},
        {124, 1, KITH_ECORRUPT, "header"},
        {HEAD + 0, 0, KITH_ECORRUPT, "matrix 0 is not the model's"},
        {HEAD + 4, UINT32_MAX, KITH_ECORRUPT, "matrix 0 is not the model's"},
        {HEAD + ROW + 8, 1, KITH_ECORRUPT, "matrix 1 is not the model's"},
        {HEAD + ROW + 12, 1, KITH_ECORRUPT, "matrix 1 is not the model's"},
        {HEAD + 2 * ROW + 16, 1 << 30, KITH_ECORRUPT, "matrix 2 is not the model's"},
        {HEAD + 20, 6, KITH_ECORRUPT, "matrix 0 is not the model's"},
        {HEAD + 24, MODEL_F32, KITH_ECORRUPT, "matrix 0 is not the model's"},
        {HEAD + 28, 3, KITH_ECORRUPT, "matrix 0 is not the model's"},
        {HEAD + 2 * ROW + 28, 1, KITH_ECORRUPT, "matrix 2 is not the model's"},
        {HEAD + 32, 64, KITH_ECORRUPT, "matrix 0 of 64 inputs has the outlier 64"},
        {HEAD + 44, UINT32_MAX, KITH_ECORRUPT, "has the outlier 4294967295"},
        {HEAD + ROW + 32, 32, KITH_ECORRUPT, "matrix 1 of 32 inputs has the outlier 32"},
        {HEAD + ROW + 44, 1, KITH_ECORRUPT, "matrix 1 has the outlier 1 twice"},
        {HEAD + 2 * ROW + 32, 1, KITH_ECORRUPT, "matrix 2 has too many outliers"},
        {HEAD + 2 * ROW + 44, 1, KITH_ECORRUPT, "matrix 2 has too many outliers"},
        {HEAD + 48, 1, KITH_ECORRUPT, "matrix 0 is not the model's"},
        {HEAD + 3 * ROW - 4, 1, KITH_ECORRUPT, "matrix 2 is not the model's"},
    };
    struct buf whole = {0}, b = {0};
    format_file(&whole);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct packed_matrix m[N_MATRICES];
        struct err e = {0};
        buf_clear(&b);
        buf_append(&b, whole.data, whole.len);
        store_u32(b.data + lies[i].at, lies[i].value);
        assert_memory_not_equal(b.data, whole.data, whole.len);
        sign(&b);
        assert_int_equal(read_format(b.data, b.len, m, &e), lies[i].code);
        if (!strstr(e.message, lies[i].word))
            fail_msg("%zu: '%s' does not say '%s'", lies[i].at, e.message, lies[i].word);
    }
    /* Other outliers than those that were written are no lie that can be seen. */
    struct packed_matrix m[N_MATRICES];
    struct err e = {0};
    store_u32(whole.data + HEAD + 32, 62);
    assert_int_equal(read_format(whole.data, whole.len, m, &e), KITH_ECORRUPT);
    assert_string_equal(e.message, "its checksum is wrong");
    sign(&whole);
    assert_int_equal(read_format(whole.data, whole.len, m, &e), 0);
    assert_int_equal(m[0].outliers[0], 62);
    buf_deinit(&whole);
    buf_deinit(&b);
}

static void refuses_every_changed_byte_and_length(void **state)
{
    (void)state;
    struct packed_matrix m[N_MATRICES];
    struct buf b = {0};
    struct err e = {0};
    format_file(&b);
    const size_t n = b.len;
    assert_int_equal(read_format(b.data, n, m, &e), 0);
    for (size_t i = 0; i < n; i++)
        for (int bit = 0; bit < 8; bit += 7) {
            b.data[i] = (char)(b.data[i] ^ 1 << bit);
            assert_int_not_equal(read_format(b.data, n, m, &e), 0);
            b.data[i] = (char)(b.data[i] ^ 1 << bit);
        }
    for (size_t length = 0; length < n; length++)
        assert_int_equal(read_format(b.data, length, m, &e), KITH_ECORRUPT);
    for (int more = 0; more < 70; more++) {
        buf_u8(&b, 0);
        assert_int_equal(read_format(b.data, b.len, m, &e), KITH_ECORRUPT);
    }
    /* Cut and signed anew. */
    b.len = n - PACKED_CACHE_ALIGNMENT;
    sign(&b);
    assert_int_equal(read_format(b.data, b.len, m, &e), KITH_ECORRUPT);
    assert_non_null(strstr(e.message, "instead of"));
    buf_deinit(&b);
}

/* --- with a model --- */

struct rig {
    char path[128], packed[192];
    struct gguf *gguf;
    struct model model;
    char hash[33];
};

static void write_model(const char *path, enum tensor_type type, int variant)
{
    struct buf b = {0};
    struct err e = {0};
    fixture_model(&b, &shape, type);
    b.data[b.len - 4096] = (char)(b.data[b.len - 4096] + variant); /* in a weight */
    if (file_write_whole(path, b.data, b.len, &e))
        fail_msg("%s", e.message);
    buf_deinit(&b);
}

static void rig_init(struct rig *r, const char *name, enum tensor_type type)
{
    struct err e = {0};
    snprintf(r->path, sizeof r->path, "%s/%s", dir, name);
    snprintf(r->packed, sizeof r->packed, "%s.%s-%s.packed", r->path, best,
             type == TENSOR_F32 ? "f32" : "int8");
    write_model(r->path, type, 0);
    if (gguf_open(&r->gguf, r->path, &e) || model_bind(&r->model, r->gguf, &e))
        fail_msg("%s", e.message);
    gguf_hash(r->gguf, r->hash);
}

static void rig_deinit(struct rig *r)
{
    model_unbind(&r->model);
    gguf_close(r->gguf);
}

static void forward(struct model_fast *f, float out[N_EMBD])
{
    const struct model_batch batch = {ids, (const uint32_t[]){0, N_IDS}, 1, N_IDS, NULL};
    struct pool *pool;
    struct err e = {0};
    if (pool_new(&pool, 1, &e) || model_fast_forward(f, pool, &batch, out, &e))
        fail_msg("%s", e.message);
    pool_free(pool);
}

/* Also those of the pass that has written the file and moved into it. */
static void mapped_vectors_are_those_of_memory(void **state)
{
    (void)state;
    static const enum tensor_type types[] = {TENSOR_F32, TENSOR_Q8_0};
    static const char *const kernels[] = {"scalar", best};
    for (int i = 0; i < 4; i++) {
        struct rig r;
        struct model_fast *f, *mapped;
        struct model_packed p = {0};
        struct err e = {0};
        float want[N_EMBD], got[N_EMBD];
        setenv("KITH_KERNELS", kernels[i / 2], 1);
        rig_init(&r, "same", types[i % 2]);
        p.model_path = r.path;
        p.model_hash = r.hash;
        assert_int_equal(model_fast_map(&f, &r.model, MODEL_AUTO, &p, &e), KITH_ENOTFOUND);
        if (model_fast_new(&f, &r.model, MODEL_AUTO, &e))
            fail_msg("%s", e.message);
        size_t bytes = model_fast_bytes(f);
        forward(f, want);
        if (model_fast_save(f, &p, &e) || model_fast_map(&mapped, &r.model, MODEL_AUTO, &p, &e))
            fail_msg("%s", e.message);
        assert_non_null(strstr(p.path, kernels[i / 2]));
        forward(f, got);
        assert_memory_equal(got, want, sizeof got);
        model_fast_free(f);
        /* The file is written once more, and emptied: the map is of the one before. */
        if (model_fast_new(&f, &r.model, MODEL_AUTO, &e) || model_fast_save(f, &p, &e))
            fail_msg("%s", e.message);
        model_fast_free(f);
        assert_int_equal(truncate(p.path, 0), 0);
        forward(mapped, got);
        assert_memory_equal(got, want, sizeof got);
        assert_int_equal(model_fast_bytes(mapped), bytes);
        assert_true(p.bytes > bytes - sizeof(float) * N_EMBD * shape.n_ctx);
        model_fast_free(mapped);
        unlink(p.path);
        rig_deinit(&r);
    }
    unsetenv("KITH_KERNELS");
}

/* The bytes of the scalar kernels' panels, and of some with sums. Where this fails weights are
 * packed differently than by programs that are out there: PACKED_CACHE_VERSION has to grow. */
static void packed_bytes_are_those_of_the_version(void **state)
{
    (void)state;
    static const struct {
        const char *kernels;
        enum tensor_type type;
        uint64_t hash;
    } cases[] = {{"scalar", TENSOR_F32, 0x54df2f124db576b4},
                 {"scalar", TENSOR_Q8_0, 0x92fddd89cbe81cc7},
                 {"avx2", TENSOR_Q8_0, 0x6a2a2e3f48befbb6}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct engine_kernels *k;
        if (engine_kernels_named(&k, cases[i].kernels, NULL) != 0)
            continue;
        setenv("KITH_KERNELS", cases[i].kernels, 1);
        struct rig r;
        struct model_fast *f;
        struct buf b = {0};
        struct err e = {0};
        rig_init(&r, "golden", cases[i].type);
        struct model_packed p = {.model_path = r.path, .model_hash = r.hash};
        if (model_fast_new(&f, &r.model, MODEL_AUTO, &e) || model_fast_save(f, &p, &e) ||
            file_read_whole(p.path, 1 << 24, &b, &e))
            fail_msg("%s", e.message);
        size_t from = HEAD; /* behind what names the version */
        uint64_t hash = hash64(b.data + from, b.len - 8 - from);
        if (PACKED_CACHE_VERSION != 2 || hash != cases[i].hash)
            fail_msg("%d: 0x%016llx", PACKED_CACHE_VERSION, (unsigned long long)hash);
        model_fast_free(f);
        unlink(p.path);
        buf_deinit(&b);
        rig_deinit(&r);
    }
    unsetenv("KITH_KERNELS");
}

static void survives_exhausted_memory(void **state)
{
    (void)state;
    struct rig r;
    struct model_fast *f, *mapped;
    struct err e = {0};
    float want[N_EMBD], got[N_EMBD];
    rig_init(&r, "memory", TENSOR_Q8_0);
    struct model_packed p = {.model_path = r.path, .model_hash = r.hash};
    assert_int_equal(model_fast_new(&f, &r.model, MODEL_AUTO, &e), 0);
    forward(f, want);
    long n = 1;
    for (int rc = KITH_ENOMEM; rc != 0; n++) {
        mem_fail_after(n);
        rc = model_fast_save(f, &p, &e);
        mem_fail_after(0);
        assert_true(rc == 0 || rc == KITH_ENOMEM);
        forward(f, got);
        assert_memory_equal(got, want, sizeof got);
    }
    assert_true(n > 4);
    n = 1;
    for (int rc = KITH_ENOMEM; rc != 0; n++) {
        mem_fail_after(n);
        rc = model_fast_map(&mapped, &r.model, MODEL_AUTO, &p, &e);
        mem_fail_after(0);
        assert_true(rc == 0 || rc == KITH_ENOMEM);
    }
    assert_true(n > 5);
    forward(mapped, got);
    assert_memory_equal(got, want, sizeof got);
    model_fast_free(mapped);
    model_fast_free(f);
    unlink(p.path);
    rig_deinit(&r);
}

/* --- as a whole: what an embedder says and leaves behind --- */

struct opened {
    enum embedder_weights weights;
    bool damaged;
    char refused[512], failed[512], path[512];
    float vector[N_EMBD];
    int code;
    _Atomic bool done;
};

static void on_done(void *arg, const struct scheduler_result *result)
{
    struct opened *o = arg;
    o->code = result->code;
    if (result->code == 0)
        memcpy(o->vector, result->vectors, sizeof o->vector);
    o->done = true;
}

static void open_with(struct opened *out, const char *path, bool packed_cache)
{
    struct embedder_options o;
    struct embedder *m;
    struct err e = {0};
    embedder_defaults(&o);
    assert_true(o.packed_cache);
    o.n_threads = 1;
    o.packed_cache = packed_cache;
    memset(out, 0, sizeof *out);
    if (embedder_open(&m, path, &o, &e))
        fail_msg("%s", e.message);
    const struct embedder_info *info = embedder_info(m);
    out->weights = info->weights;
    out->damaged = info->packed_damaged;
    snprintf(out->refused, sizeof out->refused, "%s", info->packed_refused);
    snprintf(out->failed, sizeof out->failed, "%s", info->packed_failed);
    snprintf(out->path, sizeof out->path, "%s", info->packed_path);
    const struct slice text = slice_of("the token is ab");
    const struct embedder_request q = {.texts = &text, .n = 1, .done = on_done, .arg = out};
    if (embedder_submit(m, &q, &e))
        fail_msg("%s", e.message);
    while (!out->done)
        clock_sleep_us(100);
    embedder_close(m);
}

/* Opens it, expects what is said, and the vector of a load without files. */
static void expect_open(const char *path, enum embedder_weights weights, const char *refused,
                        const char *failed)
{
    struct opened plain, o;
    open_with(&plain, path, false);
    assert_int_equal(plain.weights, EMBEDDER_PACKED);
    assert_string_equal(plain.path, "");
    open_with(&o, path, true);
    if (o.weights != weights || (*refused ? !strstr(o.refused, refused) : *o.refused) ||
        (*failed ? !strstr(o.failed, failed) : *o.failed))
        fail_msg("%d, '%s', '%s'", (int)o.weights, o.refused, o.failed);
    assert_true(plain.code == 0 && o.code == 0);
    assert_memory_equal(o.vector, plain.vector, sizeof o.vector);
}

static void expect_nothing_but(const char *path, const char *packed, bool there)
{
    char temporary[256];
    snprintf(temporary, sizeof temporary, "%s.tmp", packed);
    assert_true(file_exists(path));
    assert_int_equal(file_exists(packed), there);
    assert_false(file_exists(temporary));
}

static void flip(const char *path, long at)
{
    struct err e = {0};
    char c;
    int fd = open(path, O_RDWR);
    struct stat st;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    uint64_t offset = (uint64_t)(at < 0 ? st.st_size + at : at);
    assert_int_equal(file_pread_all(fd, &c, 1, offset, &e), 1);
    c = (char)(c ^ 0x10);
    assert_int_equal(file_pwrite_all(fd, &c, 1, offset, &e), 0);
    close(fd);
}

static void written_once_then_mapped(void **state)
{
    (void)state;
    struct rig r;
    struct opened o;
    struct stat first, second;
    rig_init(&r, "usual", TENSOR_Q8_0);
    rig_deinit(&r);
    open_with(&o, r.path, false);
    expect_nothing_but(r.path, r.packed, false);
    assert_int_equal(chmod(r.path, 0640), 0);
    expect_open(r.path, EMBEDDER_WRITTEN, "", "");
    expect_nothing_but(r.path, r.packed, true);
    assert_int_equal(stat(r.packed, &first), 0);
    assert_int_equal(first.st_mode & 0777, 0640); /* the model's, whatever the umask */
    expect_open(r.path, EMBEDDER_MAPPED, "", "");
    assert_int_equal(stat(r.packed, &second), 0);
    assert_true(first.st_ino == second.st_ino);
    unlink(r.packed); /* which anyone may do at any time */
    expect_open(r.path, EMBEDDER_WRITTEN, "", "");
    unlink(r.packed);
}

static void what_is_damaged_is_written_anew(void **state)
{
    (void)state;
    static const long places[] = {0, 8, 12, 24, 72, HEAD + 32, 4096, -9, -1};
    struct rig r;
    struct opened o;
    rig_init(&r, "damaged", TENSOR_Q8_0);
    rig_deinit(&r);
    expect_open(r.path, EMBEDDER_WRITTEN, "", "");
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        flip(r.packed, places[i]);
        expect_open(r.path, EMBEDDER_WRITTEN, "it", "");
        expect_open(r.path, EMBEDDER_MAPPED, "", "");
    }
    flip(r.packed, 5000);
    open_with(&o, r.path, true);
    assert_true(o.damaged);
    assert_int_equal(truncate(r.packed, 5000), 0);
    expect_open(r.path, EMBEDDER_WRITTEN, "5000 bytes instead of", "");
    assert_int_equal(truncate(r.packed, 0), 0);
    expect_open(r.path, EMBEDDER_WRITTEN, "cut short", "");
    unlink(r.packed);
    assert_int_equal(mkfifo(r.packed, 0600), 0); /* nobody writes to it */
    expect_open(r.path, EMBEDDER_WRITTEN, "not a regular file", "");
    expect_open(r.path, EMBEDDER_MAPPED, "", "");
    unlink(r.packed);
}

static void another_model_or_kernels(void **state)
{
    (void)state;
    struct rig r;
    struct opened o;
    char scalar[192];
    rig_init(&r, "other", TENSOR_Q8_0);
    rig_deinit(&r);
    expect_open(r.path, EMBEDDER_WRITTEN, "", "");
    write_model(r.path, TENSOR_Q8_0, 1); /* another of the same shape */
    expect_open(r.path, EMBEDDER_WRITTEN, "another model file", "");
    expect_open(r.path, EMBEDDER_MAPPED, "", "");
    open_with(&o, r.path, true);
    assert_false(o.damaged);

    /* Those of one set of kernels under the name of another's. */
    snprintf(scalar, sizeof scalar, "%s.scalar-int8.packed", r.path);
    if (strcmp(scalar, r.packed) != 0) {
        setenv("KITH_KERNELS", "scalar", 1);
        assert_int_equal(rename(r.packed, scalar), 0);
        expect_open(r.path, EMBEDDER_WRITTEN, "it", ""); /* the panels' width, or the name */
        expect_open(r.path, EMBEDDER_MAPPED, "", "");
        unsetenv("KITH_KERNELS");
    }
    unlink(scalar);
    unlink(r.packed);
}

/* Root may write everywhere, so what is in the way is no permission. */
static void what_cannot_be_written(void **state)
{
    (void)state;
    struct rig r;
    char temporary[256], victim[128];
    struct rlimit old, small;
    struct buf b = {0};
    struct err e = {0};
    rig_init(&r, "unwritable", TENSOR_F32);
    rig_deinit(&r);
    snprintf(temporary, sizeof temporary, "%s.tmp", r.packed);

    assert_int_equal(mkdir(temporary, 0700), 0);
    expect_open(r.path, EMBEDDER_PACKED, "", "cannot create");
    rmdir(temporary);
    expect_nothing_but(r.path, r.packed, false);

    assert_int_equal(mkdir(r.packed, 0700), 0);
    expect_open(r.path, EMBEDDER_PACKED, "not a regular file", "cannot rename");
    rmdir(r.packed);
    expect_nothing_but(r.path, r.packed, false);

    snprintf(victim, sizeof victim, "%s/victim", dir);
    assert_int_equal(file_write_whole(victim, "mine", 4, &e), 0);
    assert_int_equal(symlink(victim, temporary), 0);
    expect_open(r.path, EMBEDDER_PACKED, "", "cannot create");
    assert_int_equal(file_read_whole(victim, 64, &b, &e), 0);
    assert_memory_equal(b.data, "mine", 4);
    buf_deinit(&b);
    unlink(temporary);

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){.rlim_cur = 4096, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    expect_open(r.path, EMBEDDER_PACKED, "", "no room");
    expect_nothing_but(r.path, r.packed, false);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);

    /* Another process is at it, and then was killed. */
    int fd = open(temporary, O_RDWR | O_CREAT, 0600);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    expect_open(r.path, EMBEDDER_PACKED, "", "another process writes");
    assert_true(file_exists(temporary));
    assert_int_equal(ftruncate(fd, 10 << 20), 0);
    close(fd);
    expect_open(r.path, EMBEDDER_WRITTEN, "", "");
    expect_nothing_but(r.path, r.packed, true);
    expect_open(r.path, EMBEDDER_MAPPED, "", "");
    unlink(r.packed);
}

/* Many processes find no file, and write one, at the same time. */
static void writers_at_once(void **state)
{
    (void)state;
    enum { N_PROCESSES = 6, ROUNDS = 5 };
    struct rig r;
    struct opened want;
    rig_init(&r, "crowd", TENSOR_Q8_0);
    rig_deinit(&r);
    open_with(&want, r.path, false);
    for (int round = 0; round < ROUNDS; round++) {
        pid_t pids[N_PROCESSES];
        for (int i = 0; i < N_PROCESSES; i++) {
            pids[i] = fork();
            assert_true(pids[i] >= 0);
            if (pids[i] == 0) {
                struct opened o;
                open_with(&o, r.path, true);
                _exit(memcmp(o.vector, want.vector, sizeof o.vector) == 0 && !*o.refused ? 0
                                                                                         : 1);
            }
        }
        for (int i = 0; i < N_PROCESSES; i++) {
            int status;
            assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
            assert_int_equal(status, 0);
        }
        expect_nothing_but(r.path, r.packed, true);
        expect_open(r.path, EMBEDDER_MAPPED, "", "");
        unlink(r.packed);
    }
}

static int start(void **state)
{
    (void)state;
    const struct engine_kernels *kernels;
    struct err e;
    unit_dir_make(dir);
    if (engine_kernels(&kernels, &e))
        return -1;
    snprintf(best, sizeof best, "%s", kernels->name);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(refuses_each_lie),
        cmocka_unit_test(refuses_every_changed_byte_and_length),
        cmocka_unit_test(mapped_vectors_are_those_of_memory),
        cmocka_unit_test(packed_bytes_are_those_of_the_version),
        cmocka_unit_test(survives_exhausted_memory),
        cmocka_unit_test(written_once_then_mapped),
        cmocka_unit_test(what_is_damaged_is_written_anew),
        cmocka_unit_test(another_model_or_kernels),
        cmocka_unit_test(what_cannot_be_written),
        cmocka_unit_test(writers_at_once),
    };
    return cmocka_run_group_tests(tests, start, NULL);
}
