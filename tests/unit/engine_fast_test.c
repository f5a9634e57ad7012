/* The fast forward pass against the plain one, on small models of random weights: every
 * instruction set, precision and weight type; a batch against its texts one by one; any number
 * of threads; batches of several groups; bad batches; memory that runs out at every allocation.
 */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/random.h"
#include "engine/bert.h"
#include "engine/half.h"
#include "engine/kernels.h"
#include "engine/pool.h"
#include "tests/unit/unit.h"

enum { SEED = 7, N_LAYERS = 2, N_VOCAB = 60, N_CTX = 45, TENSORS_MAX = 64, TEXTS_MAX = 50 };

struct model {
    struct bert bert;
    struct bert_layer layers[N_LAYERS];
    struct tensor tensors[TENSORS_MAX];
    void *data[TENSORS_MAX];
    unsigned n_tensors;
    struct rng rng;
};

/* By the scale as the file keeps it, unlike the table's encoder, whose codes come from the
 * scale before it is rounded. */
static void write_q8_0(unsigned char *out, const float *x)
{
    float largest = 0;
    for (int i = 0; i < 32; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    uint16_t half = half_from_f32(largest / 127);
    float scale = half_to_f32(half);
    memcpy(out, &half, sizeof half);
    for (int i = 0; i < 32; i++)
        out[2 + i] = (unsigned char)(int8_t)lrintf(scale > 0 ? x[i] / scale : 0);
}

/* Random weights around `center`. In norms (center 1) feature 5 is much larger than the rest,
 * as a few features of real models are: codes that had to span it would be far too coarse. */
static const struct tensor *add(struct model *m, enum tensor_type type, uint32_t n_in,
                                uint32_t n_rows, float center, float spread)
{
    struct tensor *t = &m->tensors[m->n_tensors];
    size_t n = (size_t)n_in * n_rows;
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = center + spread * ((float)rng_unit(&m->rng) * 2 - 1);
    if (center > 0)
        x[5] *= 8;
    if (n_in % tensor_block_elements(type))
        type = TENSOR_Q8_0; /* as kith-quantize falls back */
    const struct block_type *block = block_type(type);
    size_t n_blocks = n / block->elements;
    unsigned char *blocks = malloc(n_blocks * block->bytes);
    assert_non_null(blocks);
    if (type == TENSOR_Q8_0)
        for (size_t i = 0; i < n_blocks; i++)
            write_q8_0(blocks + i * 34, x + i * 32);
    else
        block->encode(x, n_blocks, blocks);
    free(x);
    *t = (struct tensor){.type = type,
                         .n_dims = n_rows > 1 ? 2 : 1,
                         .ne = {n_in, n_rows, 1, 1},
                         .bytes = n_blocks * block->bytes};
    t->data = m->data[m->n_tensors++] = blocks;
    return t;
}

static void model_init(struct model *m, enum tensor_type type, uint32_t n_embd,
                       uint32_t n_heads, uint32_t n_ff, enum pooling pooling)
{
    *m = (struct model){0};
    rng_seed(&m->rng, SEED);
    struct bert *b = &m->bert;
    *b = (struct bert){.n_layers = N_LAYERS,
                       .n_embd = n_embd,
                       .n_heads = n_heads,
                       .n_ff = n_ff,
                       .n_ctx = N_CTX,
                       .n_vocab = N_VOCAB,
                       .n_types = 2,
                       .norm_eps = 1e-12f,
                       .pooling = pooling,
                       .normalize = true,
                       .layers = m->layers};
    b->token_embd = add(m, type, n_embd, N_VOCAB, 0, 1);
    b->position_embd = add(m, TENSOR_F32, n_embd, N_CTX, 0, 0.3f);
    b->type_embd = add(m, TENSOR_F32, n_embd, 2, 0, 0.1f);
    b->embd_norm_w = add(m, TENSOR_F32, n_embd, 1, 1, 0.5f);
    b->embd_norm_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.2f);
    float spread = 1.5f / sqrtf((float)n_embd);
    for (int l = 0; l < N_LAYERS; l++) {
        struct bert_layer *y = &m->layers[l];
        y->q_w = add(m, type, n_embd, n_embd, 0, spread * 2);
        y->k_w = add(m, type, n_embd, n_embd, 0, spread * 2);
        y->v_w = add(m, type, n_embd, n_embd, 0, spread);
        y->o_w = add(m, type, n_embd, n_embd, 0, spread);
        y->up_w = add(m, type, n_embd, n_ff, 0, spread);
        y->down_w = add(m, type, n_ff, n_embd, 0, spread);
        y->q_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.5f);
        y->k_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.5f);
        y->v_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.5f);
        y->o_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.5f);
        y->up_b = add(m, TENSOR_F32, n_ff, 1, 0, 0.5f);
        y->down_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.5f);
        y->attn_norm_w = add(m, TENSOR_F32, n_embd, 1, 1, 0.5f);
        y->attn_norm_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.2f);
        y->out_norm_w = add(m, TENSOR_F32, n_embd, 1, 1, 0.5f);
        y->out_norm_b = add(m, TENSOR_F32, n_embd, 1, 0, 0.2f);
    }
}

static void model_deinit(struct model *m)
{
    for (unsigned i = 0; i < m->n_tensors; i++)
        free(m->data[i]);
}

struct texts {
    int32_t ids[TEXTS_MAX * N_CTX];
    uint32_t offsets[TEXTS_MAX + 1];
    struct bert_batch batch;
};

/* n texts of all lengths: 1, N_CTX and random ones between. */
static void texts_fill(struct texts *t, uint32_t n, struct rng *rng)
{
    t->offsets[0] = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t length = i == 0 ? 1 : i == 1 ? N_CTX : 1 + (uint32_t)rng_below(rng, N_CTX);
        t->offsets[i + 1] = t->offsets[i] + length;
    }
    for (uint32_t i = 0; i < t->offsets[n]; i++)
        t->ids[i] = (int32_t)rng_below(rng, N_VOCAB);
    t->batch = (struct bert_batch){t->ids, t->offsets, n, t->offsets[n]};
}

static float *vectors_new(uint32_t n_texts, uint32_t n_embd)
{
    float *p = calloc((size_t)n_texts * n_embd, sizeof *p);
    assert_non_null(p);
    return p;
}

static double cosine(const float *a, const float *b, uint32_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint32_t i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return ab / sqrt(aa * bb);
}

/* Over the texts of fewer than `below` tokens. */
static double worst_cosine(const struct model *m, const struct bert_batch *batch,
                           const float *vectors, uint32_t below)
{
    double worst = 1;
    uint32_t n_embd = m->bert.n_embd;
    float *expected = vectors_new(1, n_embd);
    for (uint32_t t = 0; t < batch->n_texts; t++) {
        uint32_t from = batch->offsets[t], to = batch->offsets[t + 1];
        if (to - from >= below)
            continue;
        assert_int_equal(
            bert_reference_forward(&m->bert, batch->ids + from, to - from, expected, NULL), 0);
        worst = fmin(worst, cosine(expected, vectors + (size_t)t * n_embd, n_embd));
    }
    free(expected);
    return worst;
}

/* The worst cosine, and the worst of the texts that get two planes of codes. */
static double run_and_compare(const struct model *m, enum bert_precision precision,
                              const struct bert_batch *batch, double *brief)
{
    struct bert_fast *f;
    struct pool *pool;
    float *out = vectors_new(batch->n_texts, m->bert.n_embd);
    assert_int_equal(bert_fast_new(&f, &m->bert, precision, NULL), 0);
    assert_int_equal(pool_new(&pool, 2, NULL), 0);
    assert_int_equal(bert_fast_forward(f, pool, batch, out, NULL), 0);
    double worst = worst_cosine(m, batch, out, UINT32_MAX);
    *brief = worst_cosine(m, batch, out, 12);
    bert_fast_free(f);
    pool_free(pool);
    free(out);
    return worst;
}

static void matches_the_reference(void **state)
{
    (void)state;
    static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
    static const struct {
        uint32_t n_embd, n_heads, n_ff;
        enum pooling pooling;
    } shapes[] = {
        {64, 2, 128, POOLING_MEAN}, {96, 4, 160, POOLING_CLS}, {128, 2, 64, POOLING_MEAN}};
    static struct texts texts;
    for (int s = 0; s < 3; s++)
        for (int q8 = 0; q8 < 2; q8++) {
            struct model m;
            model_init(&m, q8 ? TENSOR_Q8_0 : TENSOR_F32, shapes[s].n_embd, shapes[s].n_heads,
                       shapes[s].n_ff, shapes[s].pooling);
            texts_fill(&texts, 8, &m.rng);
            for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
                const struct engine_kernels *k;
                if (engine_kernels_named(&k, isas[i], NULL) != 0)
                    continue;
                setenv("KITH_KERNELS", isas[i], 1);
                double brief, chosen = run_and_compare(&m, BERT_AUTO, &texts.batch, &brief);
                double f32 = run_and_compare(&m, BERT_F32, &texts.batch, &brief);
                double int8 = run_and_compare(&m, BERT_INT8, &texts.batch, &brief);
                printf("%-6s n_embd %3u %-4s worst cosine f32 %.7f int8 %.6f "
                       "short %.9f\n",
                       isas[i], shapes[s].n_embd, q8 ? "Q8_0" : "F32", f32, int8, brief);
                assert_true(f32 > 0.999999);
                assert_true(int8 > 0.99995);
                /* Short texts have a second plane of codes, which leaves the weights' error. */
                if (q8)
                    assert_true(brief < 1 && brief > 0.999999);
                assert_true(chosen == (q8 ? int8 : f32));
            }
            model_deinit(&m);
        }
    unsetenv("KITH_KERNELS");
}

/* Random weights make attention far sharper than trained ones do, so that the 8 bits of the
 * activations show; wrong codes or scales would leave no likeness at all. */
static const double near_enough = 0.995;

/* Every type of the table: AUTO is int8 where weights are blocks and f32 elsewhere, and either
 * way near the plain pass over the same weights. */
static void every_type_matches_the_reference(void **state)
{
    (void)state;
    static struct texts texts;
    enum tensor_type type;
    for (size_t i = 0; block_type_at(i, &type); i++) {
        struct model m;
        struct bert_weights weights;
        struct bert_fast *f;
        model_init(&m, type, 256, 4, 512, POOLING_MEAN);
        texts_fill(&texts, 8, &m.rng);
        bert_weights(&m.bert, &weights);
        bool blocks = tensor_block_elements(type) > 1;
        assert_true(weights.type == type && !weights.mixed && weights.quantized == blocks);
        assert_int_equal(bert_fast_new(&f, &m.bert, BERT_AUTO, NULL), 0);
        assert_int_equal(bert_fast_precision(f), blocks ? BERT_INT8 : BERT_F32);
        bert_fast_free(f);
        double brief, worst = run_and_compare(&m, BERT_AUTO, &texts.batch, &brief);
        printf("%-6s worst cosine %.7f\n", tensor_type_name(type), worst);
        model_deinit(&m);
    }
}

/* One matrix of another type: the model is mixed, and one of floats makes all of it f32. */
static void mixed_types(void **state)
{
    (void)state;
    struct model m;
    struct bert_weights weights;
    model_init(&m, TENSOR_Q5_0, 256, 4, 512, POOLING_MEAN);
    m.layers[1].down_w = add(&m, TENSOR_Q6_K, 512, 256, 0, 0.1f);
    bert_weights(&m.bert, &weights);
    assert_true(weights.type == TENSOR_Q5_0 && weights.mixed && weights.quantized);
    m.layers[0].v_w = add(&m, TENSOR_F16, 256, 256, 0, 0.1f);
    bert_weights(&m.bert, &weights);
    assert_true(weights.mixed && !weights.quantized);
    static struct texts texts;
    double brief;
    texts_fill(&texts, 8, &m.rng);
    assert_true(run_and_compare(&m, BERT_AUTO, &texts.batch, &brief) > 0.999999);
    assert_true(run_and_compare(&m, BERT_INT8, &texts.batch, &brief) > near_enough);
    model_deinit(&m);
}

/* The same texts in one batch of several groups, one by one, and with other numbers of threads.
 */
static void a_batch_equals_its_texts(void **state)
{
    (void)state;
    static struct texts texts;
    struct model m;
    model_init(&m, TENSOR_Q8_0, 64, 2, 128, POOLING_MEAN);
    texts_fill(&texts, TEXTS_MAX, &m.rng);
    assert_true(texts.batch.n_tokens > 512); /* more than a group of one thread */
    uint32_t n = m.bert.n_embd;
    float *together = vectors_new(TEXTS_MAX, n), *alone = vectors_new(TEXTS_MAX, n);
    for (unsigned threads = 1; threads <= 3; threads += 2)
        for (int precision = BERT_F32; precision <= BERT_INT8; precision++) {
            struct bert_fast *f;
            struct pool *pool;
            assert_int_equal(bert_fast_new(&f, &m.bert, (enum bert_precision)precision, NULL),
                             0);
            assert_int_equal(pool_new(&pool, threads, NULL), 0);
            for (uint32_t t = 0; t < TEXTS_MAX; t++) {
                uint32_t from = texts.offsets[t], offsets[] = {0, texts.offsets[t + 1] - from};
                struct bert_batch one = {texts.ids + from, offsets, 1, offsets[1]};
                assert_int_equal(bert_fast_forward(f, pool, &one, alone + t * n, NULL), 0);
            }
            assert_int_equal(bert_fast_forward(f, pool, &texts.batch, together, NULL), 0);
            for (uint32_t i = 0; i < TEXTS_MAX * n; i++)
                assert_true(fabsf(together[i] - alone[i]) < 1e-5f);
            bert_fast_free(f);
            pool_free(pool);
        }
    free(together);
    free(alone);
    model_deinit(&m);
}

static void refuses_bad_batches(void **state)
{
    (void)state;
    struct model m;
    struct bert_fast *f;
    struct pool *pool;
    struct err e;
    int32_t ids[N_CTX + 1] = {0};
    float *out = vectors_new(2, 64);
    model_init(&m, TENSOR_F32, 64, 2, 128, POOLING_MEAN);
    assert_int_equal(bert_fast_new(&f, &m.bert, BERT_AUTO, &e), 0);
    assert_int_equal(pool_new(&pool, 1, &e), 0);
    assert_true(bert_fast_max_tokens(f) >= 8192);

    const struct {
        uint32_t offsets[3], n_texts, n_tokens;
    } bad[] = {
        {{0, 0, 0}, 0, 0},
        {{0, 0, 0}, 1, 0},
        {{0, 3, 3}, 2, 3},
        {{0, 5, 4}, 2, 4},
        {{1, 3, 3}, 1, 3},
        {{0, 3, 3}, 1, 4},
        {{0, N_CTX + 1, 0}, 1, N_CTX + 1},
        {{0, 0, 3}, 2, 3},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct bert_batch batch = {ids, bad[i].offsets, bad[i].n_texts, bad[i].n_tokens};
        assert_int_equal(bert_fast_forward(f, pool, &batch, out, &e), KITH_EINVAL);
    }
    uint32_t offsets[] = {0, 3};
    struct bert_batch batch = {ids, offsets, 1, 3};
    for (int i = 0; i < 2; i++) {
        ids[2] = i ? -1 : N_VOCAB;
        assert_int_equal(bert_fast_forward(f, pool, &batch, out, &e), KITH_EINVAL);
    }
    ids[2] = N_VOCAB - 1;
    assert_int_equal(bert_fast_forward(f, pool, &batch, out, &e), 0);
    bert_fast_free(f);
    bert_fast_free(NULL);
    pool_free(pool);

    m.bert.n_ff = 136;
    assert_int_equal(bert_fast_new(&f, &m.bert, BERT_AUTO, &e), KITH_EUNSUPPORTED);
    m.bert.n_ff = 128;
    setenv("KITH_KERNELS", "abacus", 1);
    assert_int_equal(bert_fast_new(&f, &m.bert, BERT_AUTO, &e), KITH_EINVAL);
    unsetenv("KITH_KERNELS");
    model_deinit(&m);
    free(out);
}

/* Every allocation of new and of forward fails once; afterwards the same encoder still works.
 */
static void survives_exhausted_memory(void **state)
{
    (void)state;
    static struct texts texts;
    struct model m;
    struct err e;
    model_init(&m, TENSOR_Q8_0, 64, 2, 128, POOLING_MEAN);
    texts_fill(&texts, 6, &m.rng);
    float *out = vectors_new(6, 64), *expected = vectors_new(6, 64);
    for (int precision = BERT_F32; precision <= BERT_INT8; precision++) {
        struct bert_fast *f = NULL;
        struct pool *pool;
        long n = 1;
        for (int rc = KITH_ENOMEM; rc != 0; n++) {
            mem_fail_after(n);
            rc = bert_fast_new(&f, &m.bert, (enum bert_precision)precision, &e);
            mem_fail_after(0);
            assert_true(rc == 0 || rc == KITH_ENOMEM);
        }
        assert_true(n > 20);
        assert_int_equal(pool_new(&pool, 3, &e), 0);
        n = 1;
        for (int rc = KITH_ENOMEM; rc != 0; n++) {
            mem_fail_after(n);
            rc = bert_fast_forward(f, pool, &texts.batch, out, &e);
            mem_fail_after(0);
            assert_true(rc == 0 || rc == KITH_ENOMEM);
        }
        assert_true(n > 5);
        struct bert_fast *fresh;
        assert_int_equal(bert_fast_new(&fresh, &m.bert, (enum bert_precision)precision, &e), 0);
        assert_int_equal(bert_fast_forward(fresh, pool, &texts.batch, expected, &e), 0);
        assert_memory_equal(out, expected, 6 * 64 * sizeof *out);
        bert_fast_free(fresh);
        bert_fast_free(f);
        pool_free(pool);
    }
    free(out);
    free(expected);
    model_deinit(&m);
}

int main(void)
{
    printf("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_the_reference),
        cmocka_unit_test(every_type_matches_the_reference),
        cmocka_unit_test(mixed_types),
        cmocka_unit_test(a_batch_equals_its_texts),
        cmocka_unit_test(refuses_bad_batches),
        cmocka_unit_test(survives_exhausted_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
