/* The engine against sentence-transformers: for 300 recorded texts the tokenizer must give the
 * same ids, and the vectors of the reference and of the fast pass must point the same way:
 * cosine at least 0.9999 for F32 and F16 files, 0.999 for Q8_0.
 *
 * Needs build/models/all-MiniLM-L6-v2.*.gguf (engine/README.md says how to make them); a file
 * that is not there is skipped, with the reason printed. The fast pass computes every text
 * (under a sanitizer sixty). The reference is slow by design and computes every sixth, of the
 * other files every thirtieth; KITH_GOLDEN_ALL=1 makes it compute all, which takes half a
 * minute. */

#include <math.h>

#include "engine/gguf.h"
#include "engine/model.h"
#include "engine/pool.h"
#include "engine/tokenizer.h"
#include "tests/unit/engine_golden.h"
#include "tests/unit/unit.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { REFERENCE_STEP = 50, REFERENCE_STEP_OTHERS = 150, FAST_TEXTS = 60 };
#else
enum { REFERENCE_STEP = 6, REFERENCE_STEP_OTHERS = 30, FAST_TEXTS = 300 };
#endif

enum { BATCH_TOKENS = 2048 };

struct golden_model {
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct model model;
};

struct worst {
    double cosine;
    uint32_t text;
};

static struct golden golden;

static double cosine(const float *a, const float *b)
{
    double dot = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < GOLDEN_DIM; i++) {
        dot += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return dot / sqrt(aa * bb);
}

static void open_model(struct golden_model *m, const char *type)
{
    char path[128];
    struct err e = {0};
    snprintf(path, sizeof path, "build/models/all-MiniLM-L6-v2.%s.gguf", type);
    if (!file_exists(path)) {
        print_message("skipped: no %s (see engine/README.md)\n", path);
        skip();
    }
    if (gguf_open(&m->gguf, path, &e) || tokenizer_new(&m->tokenizer, m->gguf, &e) ||
        model_bind(&m->model, m->gguf, &e))
        fail_msg("%s", e.message);
    assert_int_equal(m->model.n_embd, GOLDEN_DIM);
}

static void close_model(struct golden_model *m)
{
    model_unbind(&m->model);
    tokenizer_free(m->tokenizer);
    gguf_close(m->gguf);
}

static void compare(struct worst *w, uint32_t text, const float *vector)
{
    double c = cosine(vector, golden.texts[text].vector);
    if (!(c >= w->cosine))
        *w = (struct worst){c, text};
}

static void judge(const char *what, const char *type, const struct worst *w, double least)
{
    print_message("%s, %s: worst cosine %.7f (text %u)\n", type, what, w->cosine, w->text);
    if (!(w->cosine >= least))
        fail_msg("%s, %s: cosine %.7f of text %u, %.4f is needed", type, what, w->cosine,
                 w->text, least);
}

static void check_reference(const struct golden_model *m, const char *type, uint32_t step,
                            double least)
{
    struct worst w = {2, 0};
    if (getenv("KITH_GOLDEN_ALL"))
        step = 1;
    for (uint32_t i = 0; i < golden.n; i += step) {
        const struct golden_text *t = &golden.texts[i];
        float vector[GOLDEN_DIM];
        struct err e = {0};
        if (model_reference_forward(&m->model, t->ids, t->n_ids, UINT32_MAX, vector, &e))
            fail_msg("text %u: %s", i, e.message);
        compare(&w, i, vector);
    }
    judge("reference", type, &w, least);
}

/* All texts through the fast pass, packed as the scheduler would. */
static void check_fast(const struct golden_model *m, const char *type, double least)
{
    static int32_t ids[BATCH_TOKENS];
    static uint32_t offsets[GOLDEN_MAX_TEXTS + 1];
    static float vectors[GOLDEN_MAX_TEXTS * GOLDEN_DIM];
    struct model_fast *fast;
    struct pool *pool;
    struct err e = {0};
    if (model_fast_new(&fast, &m->model, MODEL_AUTO, &e) || pool_new(&pool, 2, &e))
        fail_msg("%s", e.message);
    struct worst w = {2, 0};
    for (uint32_t first = 0; first < FAST_TEXTS;) {
        uint32_t n = 0, n_tokens = 0;
        while (first + n < FAST_TEXTS &&
               n_tokens + golden.texts[first + n].n_ids <= BATCH_TOKENS) {
            const struct golden_text *t = &golden.texts[first + n];
            memcpy(ids + n_tokens, t->ids, t->n_ids * sizeof *ids);
            offsets[n++] = n_tokens;
            n_tokens += t->n_ids;
        }
        offsets[n] = n_tokens;
        const struct model_batch batch = {ids, offsets, n, n_tokens, NULL};
        if (model_fast_forward(fast, pool, &batch, vectors, &e))
            fail_msg("%s", e.message);
        for (uint32_t i = 0; i < n; i++)
            compare(&w, first + i, vectors + (size_t)i * GOLDEN_DIM);
        first += n;
    }
    judge("fast", type, &w, least);
    pool_free(pool);
    model_fast_free(fast);
}

/* The ids of a golden text cut to n tokens, or n times its first one, in its frame. */
static uint32_t short_text(const struct golden_text *t, uint32_t n, bool repeated, int32_t *ids)
{
    uint32_t inner = t->n_ids - 2 < n && !repeated ? t->n_ids - 2 : n;
    ids[0] = t->ids[0];
    for (uint32_t i = 1; i <= inner; i++)
        ids[i] = t->ids[repeated ? 1 : i];
    ids[inner + 1] = t->ids[t->n_ids - 1];
    return inner + 2;
}

/* What is quantized has few tokens to average over in texts of 3 to 12, or the same error in
 * each where they are all the same. */
static void short_texts_agree(void **state)
{
    (void)state;
    struct golden_model exact, coded;
    struct model_fast *f32, *q8;
    struct pool *pool;
    struct worst w = {2, 0};
    struct err e = {0};
    open_model(&exact, "f32");
    open_model(&coded, "q8_0");
    if (model_fast_new(&f32, &exact.model, MODEL_F32, &e) ||
        model_fast_new(&q8, &coded.model, MODEL_AUTO, &e) || pool_new(&pool, 2, &e))
        fail_msg("%s", e.message);
    for (uint32_t i = 0; i < 2 * FAST_TEXTS; i++) {
        const struct golden_text *t = &golden.texts[i / 2];
        int32_t ids[16];
        float a[GOLDEN_DIM], b[GOLDEN_DIM];
        uint32_t offsets[2] = {0, short_text(t, 1 + i / 2 % 10, i % 2, ids)};
        const struct model_batch batch = {ids, offsets, 1, offsets[1], NULL};
        if (t->n_ids < 3)
            continue;
        if (model_fast_forward(f32, pool, &batch, a, &e) ||
            model_fast_forward(q8, pool, &batch, b, &e))
            fail_msg("%s", e.message);
        double c = cosine(a, b);
        if (!(c >= w.cosine))
            w = (struct worst){c, i / 2};
    }
    judge("short, beside f32", "q8_0", &w, 0.999);
    pool_free(pool);
    model_fast_free(f32);
    model_fast_free(q8);
    close_model(&exact);
    close_model(&coded);
}

static void check_model(const char *type, uint32_t step, double least)
{
    struct golden_model m;
    open_model(&m, type);
    check_reference(&m, type, step, least);
    check_fast(&m, type, least);
    close_model(&m);
}

static void f32_agrees(void **state)
{
    (void)state;
    check_model("f32", REFERENCE_STEP, 0.9999);
}

static void f16_agrees(void **state)
{
    (void)state;
    check_model("f16", REFERENCE_STEP_OTHERS, 0.9999);
}

static void q8_0_agrees(void **state)
{
    (void)state;
    check_model("q8_0", REFERENCE_STEP_OTHERS, 0.999);
}

static void tokens_agree(void **state)
{
    (void)state;
    struct golden_model m;
    open_model(&m, "f16");
    for (uint32_t i = 0; i < golden.n; i++) {
        const struct golden_text *t = &golden.texts[i];
        int32_t ids[GOLDEN_MAX_IDS];
        size_t n;
        struct err e = {0};
        if (tokenizer_encode(m.tokenizer, t->text, t->n_bytes, ids, GOLDEN_MAX_IDS, &n, &e))
            fail_msg("text %u: %s", i, e.message);
        assert_int_equal(n + 2, t->n_ids);
        assert_int_equal(t->ids[0], tokenizer_frame(m.tokenizer)->before[0]);
        assert_int_equal(t->ids[n + 1], tokenizer_frame(m.tokenizer)->after[0]);
        assert_memory_equal(ids, t->ids + 1, n * sizeof *ids);
    }
    close_model(&m);
}

static int open_golden(void **state)
{
    (void)state;
    if (golden_open(&golden) && golden.n == 300)
        return 0;
    print_error("tests/golden/embeddings.* cannot be read; run from the repository's root\n");
    return -1;
}

static int close_golden(void **state)
{
    (void)state;
    golden_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_agree),      cmocka_unit_test(f32_agrees),
        cmocka_unit_test(f16_agrees),        cmocka_unit_test(q8_0_agrees),
        cmocka_unit_test(short_texts_agree),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
