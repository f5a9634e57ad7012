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
#include "engine/pool.h"
#include "engine/tokenizer.h"
#include "tests/unit/engine_unigram_fixture.h"
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
    struct slice list[8];
    memset(a, 0, sizeof *a);
    for (uint32_t i = 0; i < n; i++)
        list[i] = (struct slice){texts[i], strlen(texts[i])};
    const struct embedder_request q = {
        .texts = list, .n = n, .truncate = truncate, .done = on_done, .arg = a};
    int rc = embedder_submit(embedder, &q, e);
    for (int i = 0; !rc && i < 200000 && !atomic_load(&a->calls); i++)
        clock_sleep_us(500);
    assert_true(rc || atomic_load(&a->calls) == 1);
    return rc;
}

static void expect_vector(const float *got, const int32_t *ids, uint32_t n)
{
    struct gguf *g;
    struct model b;
    struct err e;
    float want[N_EMBD];
    assert_int_equal(gguf_open(&g, path, &e), 0);
    assert_int_equal(model_bind(&b, g, &e), 0);
    assert_int_equal(model_reference_forward(&b, ids, n, UINT32_MAX, want, &e), 0);
    double dot = 0;
    for (int i = 0; i < N_EMBD; i++)
        dot += (double)want[i] * (double)got[i];
    assert_true(fabs(dot - 1) < 1e-4);
    model_unbind(&b);
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
    o.packed_cache = false; /* engine_packed_cache_test has it */
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
    o.packed_cache = false;
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

/* A Unigram tokenizer before the same encoder: its frame, and a text whose normaliser makes
 * more tokens of it than it has bytes. */
static void frames_of_another_tokenizer(void **state)
{
    (void)state;
    struct fixture f;
    struct buf b = {0}, map = {0};
    struct err e = {0};
    struct answer a;
    struct embedder *usual = embedder;
    char other[80];
    fixture_init(&f);
    fixture_bert_keys(&f, &shape);
    fixture_unigram_vocabulary(&f, unigram_pieces, FIXTURE_N_TOKENS);
    charsmap_build(&map);
    fixture_bytes(&f, "tokenizer.ggml.precompiled_charsmap", map.data, map.len);
    fixture_u32(&f, "tokenizer.ggml.add_bos_token", 1);
    fixture_model_tensors(&f, &shape, TENSOR_F32);
    fixture_finish(&f, &b);
    fixture_deinit(&f);
    snprintf(other, sizeof other, "%s.t5", path);
    assert_int_equal(file_write_whole(other, b.data, b.len, &e), 0);
    struct embedder_options o;
    embedder_defaults(&o);
    o.packed_cache = false;
    o.n_threads = 1;
    if (embedder_open(&embedder, other, &o, &e))
        fail_msg("%s", e.message);
    unlink(other);
    assert_int_equal(embed(&a, (const char *[]){"ab", "  ", "\xef\xb7\xba"}, 3, false, &e), 0);
    assert_int_equal(a.n_tokens, (1 + 2) + 2 + (9 + 2));
    assert_int_equal(embed(&a, (const char *[]){"\xef\xb7\xba a a"}, 1, false, &e),
                     KITH_EINVAL);
    assert_non_null(strstr(e.message, "text 1 has 13 tokens, the model takes 12"));
    assert_int_equal(embed(&a, (const char *[]){"\xef\xb7\xba a a"}, 1, true, &e), 0);
    assert_int_equal(a.n_tokens, N_CTX);
    embedder_close(embedder);
    embedder = usual;
    buf_deinit(&b);
    buf_deinit(&map);
}

/* RoBERTa's kin may have no table of token types. */
static void token_types_may_be_absent(void **state)
{
    (void)state;
    static const char name[] = "token_types.weight";
    struct buf b = {0};
    struct gguf *g;
    struct model model;
    struct model_fast *fast;
    struct pool *pool;
    struct err e = {0};
    fixture_model(&b, &shape, TENSOR_F32);
    char *at = memmem(b.data, b.len, name, sizeof name - 1);
    assert_non_null(at);
    memcpy(at, "TOKEN", 5); /* now a tensor that nobody asks for */
    if (gguf_open_memory(&g, b.data, b.len, &e) || model_bind(&model, g, &e) ||
        model_fast_new(&fast, &model, MODEL_F32, &e) || pool_new(&pool, 1, &e))
        fail_msg("%s", e.message);
    assert_null(model.type_embd);
    assert_int_equal(model.n_types, 0);
    const int32_t ids[] = {2, 5, 6, 9, 3};
    const struct model_batch batch = {ids, (const uint32_t[]){0, 5}, 1, 5, NULL};
    float want[N_EMBD], got[N_EMBD];
    assert_int_equal(model_reference_forward(&model, ids, 5, UINT32_MAX, want, &e), 0);
    assert_int_equal(model_fast_forward(fast, pool, &batch, got, &e), 0);
    double dot = 0;
    for (int i = 0; i < N_EMBD; i++)
        dot += (double)want[i] * (double)got[i];
    assert_true(dot > 0.99999);
    pool_free(pool);
    model_fast_free(fast);
    model_unbind(&model);
    gguf_close(g);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_are_the_references),
        cmocka_unit_test(refusals_name_the_text),
        cmocka_unit_test(truncation_keeps_the_frame),
        cmocka_unit_test(tells_what_it_is),
        cmocka_unit_test(open_survives_failed_allocations),
        cmocka_unit_test(frames_of_another_tokenizer),
        cmocka_unit_test(token_types_may_be_absent),
    };
    return cmocka_run_group_tests(tests, open_embedder, close_embedder);
}
