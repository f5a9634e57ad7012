/* Text to vectors as a whole, on the small model of engine_fixture.h: what is refused and how
 * it is said, what truncation keeps, and that vectors are the reference's. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "engine/embedder.h"
#include "engine/wordpiece.h"
#include "tests/unit/engine_fixture.h"
#include "tests/unit/unit.h"

enum { N_EMBD = 64, N_CTX = 12 };

static const struct fixture_shape shape = {
    .n_embd = N_EMBD, .n_heads = 2, .n_ff = 128, .n_ctx = N_CTX, .n_layers = 2};

static char path[64];
static struct embedder *embedder;

struct answer {
    atomic_int calls;
    int code;
    uint32_t n, n_tokens;
    float vectors[4][N_EMBD];
    char message[256];
};

static void on_done(void *arg, const struct scheduler_result *r)
{
    struct answer *a = arg;
    a->code = r->code;
    a->n = r->n;
    a->n_tokens = r->n_tokens;
    if (r->code)
        snprintf(a->message, sizeof a->message, "%s", r->message);
    else
        memcpy(a->vectors, r->vectors, (size_t)r->n * r->dim * sizeof(float));
    atomic_store(&a->calls, 1);
}

static int embed(struct answer *a, const char *const *texts, uint32_t n, bool truncate,
                 struct err *e)
{
    struct embedder_text list[8];
    memset(a, 0, sizeof *a);
    for (uint32_t i = 0; i < n; i++)
        list[i] = (struct embedder_text){texts[i], strlen(texts[i])};
    const struct embedder_request q = {list, n, truncate, on_done, a};
    int rc = embedder_submit(embedder, &q, e);
    for (int i = 0; !rc && i < 200000 && !atomic_load(&a->calls); i++)
        clock_sleep_us(500);
    assert_true(rc || atomic_load(&a->calls) == 1);
    return rc;
}

static void expect_vector(const float *got, const int32_t *ids, uint32_t n)
{
    struct gguf *g;
    struct bert b;
    struct err e;
    float want[N_EMBD];
    assert_int_equal(gguf_open(&g, path, &e), 0);
    assert_int_equal(bert_bind(&b, g, &e), 0);
    assert_int_equal(bert_reference_forward(&b, ids, n, want, &e), 0);
    double dot = 0;
    for (int i = 0; i < N_EMBD; i++)
        dot += (double)want[i] * (double)got[i];
    assert_true(fabs(dot - 1) < 1e-4);
    bert_unbind(&b);
    gguf_close(g);
}

static void vectors_are_the_references(void **state)
{
    (void)state;
    struct answer a;
    struct err e;
    const char *texts[] = {"the token", "ab", "vectors is the e", " "};
    assert_int_equal(embed(&a, texts, 4, false, &e), 0);
    assert_int_equal(a.code, 0);
    assert_int_equal(a.n, 4);
    assert_int_equal(a.n_tokens, 4 + 3 + 7 + 2);
    const int32_t first[] = {2, 5, 6, 3}, blank[] = {2, 3};
    expect_vector(a.vectors[0], first, 4);
    expect_vector(a.vectors[3], blank, 2);
}

static void refusals_name_the_text(void **state)
{
    (void)state;
    struct answer a;
    struct err e;
    const char *with_empty[] = {"the", ""}, *invalid[] = {"the", "a", "b\xff"};
    const char *too_long[] = {"a a a a a a a a a a", "a a a a a a a a a a a"};
    assert_int_equal(embed(&a, with_empty, 2, false, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "text 2 is empty"));
    assert_int_equal(embed(&a, invalid, 3, false, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "text 3"));
    assert_non_null(strstr(e.message, "offset 1"));
    assert_int_equal(embed(&a, too_long, 2, false, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "text 2 has 13 tokens, the model takes 12"));
    assert_int_equal(embed(&a, too_long, 0, false, &e), KITH_EINVAL);
    assert_int_equal(embed(&a, too_long, 1, false, &e), 0); /* exactly the context */
    assert_int_equal(a.n_tokens, N_CTX);
}

static void truncation_keeps_the_frame(void **state)
{
    (void)state;
    struct answer a;
    struct err e;
    const char *text[] = {"the a a a a a a a a ab token token token the"};
    assert_int_equal(embed(&a, text, 1, true, &e), 0);
    assert_int_equal(a.code, 0);
    assert_int_equal(a.n_tokens, N_CTX);
    int32_t ids[N_CTX] = {2, 5};
    for (int i = 2; i < 10; i++)
        ids[i] = 18;
    ids[10] = 21;
    ids[11] = 3;
    expect_vector(a.vectors[0], ids, N_CTX);
}

static void tells_what_it_is(void **state)
{
    (void)state;
    const struct embedder_info *info = embedder_info(embedder);
    assert_string_equal(info->name, "fixture");
    assert_string_equal(info->arch, "bert");
    assert_string_equal(info->type, "F32");
    assert_string_equal(info->precision, "f32");
    assert_string_equal(info->pooling, "mean");
    assert_int_equal(strlen(info->hash), 32);
    assert_int_equal(info->dim, N_EMBD);
    assert_int_equal(info->context, N_CTX);
    assert_int_equal(info->batch_tokens, 64);
}

/* Opening with each allocation failing in turn neither crashes nor leaks. */
static void open_survives_failed_allocations(void **state)
{
    (void)state;
    struct embedder_options o;
    embedder_defaults(&o);
    o.n_threads = 1;
    int rc = KITH_ENOMEM;
    long n = 1;
    for (; rc == KITH_ENOMEM && n < 500; n++) {
        struct embedder *m;
        struct err e;
        mem_fail_after(n);
        rc = embedder_open(&m, path, &o, &e);
        mem_fail_after(0);
        if (!rc)
            embedder_close(m);
    }
    assert_int_equal(rc, 0);
    assert_true(n > 15);
}

static int open_embedder(void **state)
{
    (void)state;
    struct buf b;
    struct err e = {0};
    struct embedder_options o;
    buf_init(&b);
    fixture_model(&b, &shape, TENSOR_F32);
    snprintf(path, sizeof path, "/tmp/kith-embedder-test-%d.gguf", (int)getpid());
    embedder_defaults(&o);
    o.n_threads = 2;
    o.batch_tokens = 64;
    int rc = file_write_whole(path, b.data, b.len, &e);
    if (!rc)
        rc = embedder_open(&embedder, path, &o, &e);
    if (rc)
        print_error("%s\n", e.message);
    buf_deinit(&b);
    return rc;
}

static int close_embedder(void **state)
{
    (void)state;
    embedder_close(embedder);
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_are_the_references),
        cmocka_unit_test(refusals_name_the_text),
        cmocka_unit_test(truncation_keeps_the_frame),
        cmocka_unit_test(tells_what_it_is),
        cmocka_unit_test(open_survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, open_embedder, close_embedder);
}
