/* The fast forward pass against the plain one, on small models of random weights: every
 * instruction set, precision and weight type; a batch against its texts one by one; any number
 * of threads; batches of several groups; bad batches; memory that runs out at every allocation.
 */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/random.h"
#include "engine/half.h"
#include "engine/kernels.h"
#include "engine/model.h"
#include "engine/pool.h"
#include "tests/unit/unit.h"

enum { SEED = 7, N_LAYERS = 2, N_VOCAB = 60, N_CTX = 45, TENSORS_MAX = 96, TEXTS_MAX = 50 };

/* Texts that every table and every type is compared on; an emulated processor (tools/
 * check-arm64.sh) takes a hundred times as long for each. */
#if defined(KITH_EMULATED)
enum { COMPARED = 2 };
#else
enum { COMPARED = 8 };
#endif

struct rig {
    struct model model;
    struct model_layer layers[N_LAYERS];
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
static const struct tensor *add(struct rig *m, enum tensor_type type, uint32_t n_in,
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

static struct model_matrix matrix(struct rig *m, enum tensor_type type, uint32_t n_in,
                                  uint32_t n_rows, bool bias, float spread)
{
    return (struct model_matrix){.w = add(m, type, n_in, n_rows, 0, spread),
                                 .b = bias ? add(m, TENSOR_F32, n_rows, 1, 0, 0.5f) : NULL,
                                 .n_rows = n_rows};
}

static struct model_norm norm(struct rig *m, uint32_t n)
{
    bool rms = m->model.norm == NORM_RMS;
    return (struct model_norm){.w = add(m, TENSOR_F32, n, 1, 1, 0.5f),
                               .b = rms ? NULL : add(m, TENSOR_F32, n, 1, 0, 0.2f)};
}

/* Two rows of one tensor, as files have them that fuse matrices. */
static void fuse(struct rig *m, enum tensor_type type, struct model_matrix *a,
                 struct model_matrix *b, uint32_t n_in, uint32_t n_rows, float spread)
{
    struct model_matrix both = matrix(m, type, n_in, 2 * n_rows, true, spread);
    *a = *b = both;
    a->n_rows = b->n_rows = n_rows;
    b->first_row = n_rows;
}

/* What a rig has beside its sizes. */
struct parts {
    const char *name;
    enum model_position position;
    enum model_norm_kind norm;
    enum model_activation activation;
    bool gated, fused, causal, pre_norm, branch_norm, again, whole_norm, head_norm;
    uint32_t kv_divisor, window, n_rotary; /* of two layers the second has the window */
    uint32_t dense, labels;
    enum pooling pooling;
};

static const struct parts bert_parts = {.name = "bert", .pooling = POOLING_MEAN};

static void rig_layer(struct rig *m, enum tensor_type type, const struct parts *p, int i)
{
    const struct model *b = &m->model;
    struct model_layer *y = &m->layers[i];
    uint32_t d = b->n_embd, q = b->n_heads * b->head_size, kv = b->n_kv_heads * b->head_size;
    float spread = 1.5f / sqrtf((float)d);
    bool bias = b->norm == NORM_LAYER;
    y->q = matrix(m, type, d, q, bias, spread * 2);
    y->k = matrix(m, type, d, kv, bias, spread * 2);
    y->v = matrix(m, type, d, kv, bias, spread);
    y->o = matrix(m, type, q, d, bias, spread);
    if (p->gated && p->fused)
        fuse(m, type, &y->gate, &y->up, d, b->n_ff, spread);
    else if (p->gated)
        y->gate = matrix(m, type, d, b->n_ff, bias, spread);
    if (!y->up.w)
        y->up = matrix(m, type, d, b->n_ff, bias, spread);
    y->down = matrix(m, type, b->n_ff, d, bias, spread);
    if (p->pre_norm && (i > 0 || p->head_norm))
        y->attn_in = norm(m, d);
    if (p->pre_norm)
        y->ffn_in = norm(m, d);
    else
        y->attn_stream = norm(m, d), y->ffn_stream = norm(m, d);
    if (p->branch_norm)
        y->attn_out = norm(m, d), y->ffn_out = norm(m, d);
    if (p->again)
        y->attn_again = norm(m, d);
    if (p->head_norm || p->whole_norm) {
        y->q_norm = norm(m, p->whole_norm ? q : b->head_size);
        y->k_norm = norm(m, p->whole_norm ? kv : b->head_size);
    }
    y->window = i == 1 ? p->window : 0;
    y->rotary = y->window ? 1 : 0;
}

static void rig_make(struct rig *m, enum tensor_type type, uint32_t n_embd, uint32_t n_heads,
                     uint32_t n_ff, const struct parts *p)
{
    *m = (struct rig){0};
    rng_seed(&m->rng, SEED);
    struct model *b = &m->model;
    *b = (struct model){.n_layers = N_LAYERS,
                        .n_embd = n_embd,
                        .n_heads = n_heads,
                        .n_kv_heads = n_heads / (p->kv_divisor ? p->kv_divisor : 1),
                        .head_size = n_embd / n_heads,
                        .n_ff = n_ff,
                        .n_ctx = N_CTX,
                        .n_vocab = N_VOCAB,
                        .position = p->position,
                        .norm = p->norm,
                        .activation = p->activation,
                        .causal = p->causal,
                        .whole_qk_norm = p->whole_norm,
                        .norm_eps = 1e-12f,
                        .embd_scale = p->branch_norm ? sqrtf((float)n_embd) : 1,
                        .attention_scale = 1.0f / sqrtf((float)(n_embd / n_heads)),
                        .alibi_bias = 8,
                        .n_rotary = p->n_rotary,
                        .rotary_base = {1000, 100},
                        .rotary_scale = 0.5f,
                        .pooling = p->pooling,
                        .normalize = p->pooling != POOLING_RANK,
                        .layers = m->layers};
    b->token_embd = add(m, type, n_embd, N_VOCAB, 0, 1);
    if (p->position == POSITION_LEARNED) {
        b->position_embd = add(m, TENSOR_F32, n_embd, N_CTX, 0, 0.3f);
        b->type_embd = add(m, TENSOR_F32, n_embd, 2, 0, 0.3f);
        b->n_types = 2;
    }
    if (!p->head_norm)
        b->embd_norm = norm(m, n_embd);
    if (p->pre_norm)
        b->output_norm = norm(m, n_embd);
    for (int l = 0; l < N_LAYERS; l++)
        rig_layer(m, type, p, l);
    uint32_t in = n_embd;
    for (uint32_t i = 0; i < p->dense; i++) {
        bool last = i + 1 == p->dense;
        uint32_t out = last && p->labels ? p->labels : last ? 48 : 96;
        b->dense[b->n_dense++] = (struct model_dense){
            .matrix = matrix(m, type, in, out, true, 0.5f / sqrtf((float)in)),
            .tanh = !last && p->labels};
        in = out;
    }
}

static void rig_init(struct rig *m, enum tensor_type type, uint32_t n_embd, uint32_t n_heads,
                     uint32_t n_ff, enum pooling pooling)
{
    struct parts p = bert_parts;
    p.pooling = pooling;
    rig_make(m, type, n_embd, n_heads, n_ff, &p);
}

static void rig_deinit(struct rig *m)
{
    for (unsigned i = 0; i < m->n_tensors; i++)
        free(m->data[i]);
}

struct texts {
    int32_t ids[TEXTS_MAX * N_CTX];
    uint32_t offsets[TEXTS_MAX + 1], splits[TEXTS_MAX];
    struct model_batch batch;
};

/* n texts of all lengths: 1, N_CTX, one token several times, and random ones. */
static void texts_fill(struct texts *t, uint32_t n, struct rng *rng)
{
    t->offsets[0] = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t length = i == 0   ? 1
                          : i == 1 ? N_CTX
                          : i == 2 ? 8
                                   : 1 + (uint32_t)rng_below(rng, N_CTX);
        t->offsets[i + 1] = t->offsets[i] + length;
    }
    for (uint32_t i = 0; i < t->offsets[n]; i++)
        t->ids[i] = (int32_t)rng_below(rng, N_VOCAB);
    for (uint32_t i = t->offsets[2] + 1; n > 2 && i < t->offsets[3]; i++)
        t->ids[i] = t->ids[t->offsets[2]];
    for (uint32_t i = 0; i < n; i++)
        t->splits[i] = i % 3 ? (t->offsets[i + 1] - t->offsets[i] + 1) / 2 : UINT32_MAX;
    t->batch = (struct model_batch){t->ids, t->offsets, n, t->offsets[n], t->splits};
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

/* The text gets two planes of codes whatever the number of features is: with row ranges for its
 * length, with block ranges for its different tokens. */
static bool is_brief(const int32_t *ids, uint32_t n, bool block_ranges)
{
    uint32_t n_different = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = 0;
        while (before < i && ids[before] != ids[i])
            before++;
        n_different += before == i;
    }
    return block_ranges ? n_different < 6 : n < 12;
}

static double worst_cosine(const struct rig *m, const struct model_batch *batch,
                           const float *vectors, bool brief_only)
{
    double worst = 1;
    const struct engine_kernels *k;
    assert_int_equal(engine_kernels(&k, NULL), 0);
    uint32_t n_embd = model_dim(&m->model);
    float *expected = vectors_new(1, n_embd);
    for (uint32_t t = 0; t < batch->n_texts; t++) {
        uint32_t from = batch->offsets[t], to = batch->offsets[t + 1];
        if (brief_only && !is_brief(batch->ids + from, to - from, k->product->block_ranges))
            continue;
        assert_int_equal(model_reference_forward(&m->model, batch->ids + from, to - from,
                                                 batch->splits[t], expected, NULL),
                         0);
        worst = fmin(worst, cosine(expected, vectors + (size_t)t * n_embd, n_embd));
    }
    free(expected);
    return worst;
}

/* The worst cosine, and the worst of the brief texts. */
static double run_and_compare(const struct rig *m, enum model_precision precision,
                              const struct model_batch *batch, double *brief)
{
    struct model_fast *f;
    struct pool *pool;
    float *out = vectors_new(batch->n_texts, model_dim(&m->model));
    assert_int_equal(model_fast_new(&f, &m->model, precision, NULL), 0);
    assert_int_equal(pool_new(&pool, 2, NULL), 0);
    assert_int_equal(model_fast_forward(f, pool, batch, out, NULL), 0);
    double worst = worst_cosine(m, batch, out, false);
    *brief = worst_cosine(m, batch, out, true);
    model_fast_free(f);
    pool_free(pool);
    free(out);
    return worst;
}

static void matches_the_reference(void **state)
{
    (void)state;
    static const char *const isas[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};
    static const struct {
        uint32_t n_embd, n_heads, n_ff;
        enum pooling pooling;
    } shapes[] = {{64, 2, 128, POOLING_MEAN},
                  {96, 4, 160, POOLING_CLS},
                  {128, 2, 64, POOLING_MEAN},
                  {256, 4, 96, POOLING_MEAN}, /* features enough for one plane */
                  {32, 1, 32, POOLING_MEAN}}; /* one block, which is a row as well */
    static struct texts texts;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int q8 = 0; q8 < 2; q8++) {
            struct rig m;
            rig_init(&m, q8 ? TENSOR_Q8_0 : TENSOR_F32, shapes[s].n_embd, shapes[s].n_heads,
                     shapes[s].n_ff, shapes[s].pooling);
            texts_fill(&texts, COMPARED, &m.rng);
            for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
                const struct engine_kernels *k;
                if (engine_kernels_named(&k, isas[i], NULL) != 0)
                    continue;
                setenv("KITH_KERNELS", isas[i], 1);
                double brief, chosen = run_and_compare(&m, MODEL_AUTO, &texts.batch, &brief);
                double f32 = run_and_compare(&m, MODEL_F32, &texts.batch, &brief);
                double int8 = run_and_compare(&m, MODEL_INT8, &texts.batch, &brief);
                printf("%-6s n_embd %3u %-4s worst cosine f32 %.7f int8 %.6f "
                       "short %.9f\n",
                       isas[i], shapes[s].n_embd, q8 ? "Q8_0" : "F32", f32, int8, brief);
                assert_true(f32 > 0.999999);
                /* Texts with a second plane of codes are left with the weights' error. Of the
                 * others a model with random weights magnifies what they have. */
                assert_true(int8 > (shapes[s].n_embd < 256 ? 0.99995 : 0.99));
                if (q8)
                    assert_true(brief < 1 && brief > 0.99999998);
                assert_true(chosen == (q8 ? int8 : f32));
            }
            rig_deinit(&m);
        }
    unsetenv("KITH_KERNELS");
}

/* The parts that the architectures have, in their combinations and in some of nobody's. */
static const struct parts all_parts[] = {
    {.name = "nomic-bert",
     .position = POSITION_ROTARY,
     .activation = ACTIVATION_SILU,
     .gated = true,
     .n_rotary = 32,
     .pooling = POOLING_MEAN},
    {.name = "jina-bert-v2",
     .position = POSITION_ALIBI,
     .gated = true,
     .fused = true,
     .again = true,
     .whole_norm = true,
     .pooling = POOLING_MEAN},
    {.name = "ALiBi",
     .position = POSITION_ALIBI,
     .activation = ACTIVATION_GELU_TANH,
     .pooling = POOLING_CLS},
    {.name = "modern-bert",
     .position = POSITION_ROTARY,
     .gated = true,
     .fused = true,
     .pre_norm = true,
     .window = 4,
     .n_rotary = 32,
     .pooling = POOLING_CLS},
    {.name = "gemma-embedding",
     .position = POSITION_ROTARY,
     .norm = NORM_RMS,
     .activation = ACTIVATION_GELU_TANH,
     .gated = true,
     .pre_norm = true,
     .branch_norm = true,
     .head_norm = true,
     .kv_divisor = 4,
     .window = 8,
     .n_rotary = 32,
     .dense = 2,
     .pooling = POOLING_MEAN},
    {.name = "qwen3",
     .position = POSITION_ROTARY,
     .norm = NORM_RMS,
     .activation = ACTIVATION_SILU,
     .gated = true,
     .causal = true,
     .pre_norm = true,
     .head_norm = true,
     .kv_divisor = 2,
     .n_rotary = 32,
     .pooling = POOLING_LAST},
    {.name = "causal window",
     .position = POSITION_ROTARY,
     .norm = NORM_RMS,
     .causal = true,
     .pre_norm = true,
     .head_norm = true,
     .window = 5,
     .n_rotary = 12,
     .pooling = POOLING_LAST},
    {.name = "bert, rank", .dense = 2, .labels = 1, .pooling = POOLING_RANK},
    {.name = "qwen3, rank",
     .position = POSITION_ROTARY,
     .norm = NORM_RMS,
     .activation = ACTIVATION_SILU,
     .gated = true,
     .causal = true,
     .pre_norm = true,
     .head_norm = true,
     .kv_divisor = 2,
     .n_rotary = 32,
     .dense = 1,
     .labels = 2,
     .pooling = POOLING_RANK},
};

/* How far from the plain pass's: one minus the worst cosine, or the farthest score as a share
 * of the largest. */
static double worst_of(const struct rig *m, uint32_t n_texts, const float *expected,
                       const float *got)
{
    uint32_t dim = model_dim(&m->model);
    double worst = 0, largest = 0;
    for (uint32_t t = 0; t < n_texts; t++) {
        const float *a = expected + (size_t)t * dim, *b = got + (size_t)t * dim;
        if (m->model.pooling != POOLING_RANK) {
            worst = fmax(worst, 1 - cosine(a, b, dim));
            continue;
        }
        worst = fmax(worst, fabs((double)a[0] - (double)b[0]));
        largest = fmax(largest, fabs((double)a[0]));
    }
    if (m->model.pooling != POOLING_RANK)
        return worst;
    assert_true(largest > 0.01);
    return worst / largest;
}

static void check_fast(const struct rig *m, const struct parts *p, const char *isa,
                       enum model_precision precision, const struct model_batch *batch,
                       const float *expected)
{
    struct model_fast *f;
    struct pool *pool;
    bool f32 = precision == MODEL_F32, rank = p->pooling == POOLING_RANK;
    float *out = vectors_new(batch->n_texts, model_dim(&m->model));
    assert_int_equal(model_fast_new(&f, &m->model, precision, NULL), 0);
    assert_int_equal(pool_new(&pool, 2, NULL), 0);
    assert_int_equal(model_fast_forward(f, pool, batch, out, NULL), 0);
    double off = worst_of(m, batch->n_texts, expected, out);
    printf("%-6s %-16s %-4s off by %.2e\n", isa, p->name, f32 ? "f32" : "int8", off);
    /* Attention over random weights is far sharper than that of trained ones: in 8 bits a
     * score of one token may well move. */
    assert_true(off < (f32 ? (rank ? 1e-4 : 1e-10) : (rank ? 0.15 : 0.01)));
    assert_true(f32 || off > 1e-12); /* it is another way of computing */
    model_fast_free(f);
    pool_free(pool);
    free(out);
}

/* The plain pass once, and every instruction set and precision against it. */
static void check_parts(const struct parts *p, enum tensor_type type)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};
    static struct texts texts;
    struct rig m;
    rig_make(&m, type, 128, 4, 96, p);
    texts_fill(&texts, 8, &m.rng);
    const struct model_batch *batch = &texts.batch;
    uint32_t dim = model_dim(&m.model);
    float *expected = vectors_new(batch->n_texts, dim);
    for (uint32_t t = 0; t < batch->n_texts; t++)
        assert_int_equal(model_reference_forward(&m.model, batch->ids + batch->offsets[t],
                                                 batch->offsets[t + 1] - batch->offsets[t],
                                                 batch->splits[t], expected + (size_t)t * dim,
                                                 NULL),
                         0);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        const struct engine_kernels *k;
        if (engine_kernels_named(&k, isas[i], NULL) != 0)
            continue;
        setenv("KITH_KERNELS", isas[i], 1);
        check_fast(&m, p, isas[i], MODEL_F32, batch, expected);
        check_fast(&m, p, isas[i], MODEL_INT8, batch, expected);
    }
    unsetenv("KITH_KERNELS");
    free(expected);
    rig_deinit(&m);
}

static void every_architecture(void **state)
{
    (void)state;
    for (size_t p = 0; p < sizeof all_parts / sizeof *all_parts; p++) {
        check_parts(&all_parts[p], TENSOR_F32);
        check_parts(&all_parts[p], TENSOR_Q8_0);
    }
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
        struct rig m;
        struct model_weights weights;
        struct model_fast *f;
        rig_init(&m, type, 256, 4, 512, POOLING_MEAN);
        texts_fill(&texts, COMPARED, &m.rng);
        model_weights(&m.model, &weights);
        bool blocks = tensor_block_elements(type) > 1;
        assert_true(weights.type == type && !weights.mixed && weights.quantized == blocks);
        assert_int_equal(model_fast_new(&f, &m.model, MODEL_AUTO, NULL), 0);
        const struct engine_kernels *k;
        assert_int_equal(engine_kernels(&k, NULL), 0);
        bool bf16 = type == TENSOR_BF16 && k->product->bf16;
        assert_int_equal(model_fast_precision(f), blocks ? MODEL_INT8
                                                  : bf16 ? MODEL_BF16
                                                         : MODEL_F32);
        model_fast_free(f);
        double brief, worst = run_and_compare(&m, MODEL_AUTO, &texts.batch, &brief);
        printf("%-6s worst cosine %.7f\n", tensor_type_name(type), worst);
        rig_deinit(&m);
    }
}

/* With every set that has the product, and the error of those that have none. The weights are
 * BF16 in the file and in the product, so what differs is the rounding of activations. */
static void bf16_products(void **state)
{
    (void)state;
    static const char *const isas[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};
    static struct texts texts;
    struct rig m;
    int n_with = 0;
    rig_init(&m, TENSOR_BF16, 128, 4, 320, POOLING_MEAN);
    texts_fill(&texts, COMPARED, &m.rng);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        const struct engine_kernels *k;
        struct model_fast *f;
        struct err e;
        double brief;
        if (engine_kernels_named(&k, isas[i], NULL) != 0)
            continue;
        setenv("KITH_KERNELS", isas[i], 1);
        assert_int_equal(model_fast_new(&f, &m.model, MODEL_AUTO, NULL), 0);
        assert_int_equal(model_fast_precision(f), k->product->bf16 ? MODEL_BF16 : MODEL_F32);
        size_t bytes = model_fast_bytes(f);
        model_fast_free(f);
        assert_int_equal(model_fast_new(&f, &m.model, MODEL_F32, NULL), 0);
        size_t f32_bytes = model_fast_bytes(f);
        model_fast_free(f);
        if (!k->product->bf16) {
            assert_int_equal(model_fast_new(&f, &m.model, MODEL_BF16, &e), KITH_EUNSUPPORTED);
            assert_non_null(strstr(e.message, "AVX512_BF16"));
            continue;
        }
        n_with++;
        assert_true(bytes < f32_bytes * 6 / 10);
        double worst = run_and_compare(&m, MODEL_AUTO, &texts.batch, &brief);
        printf("%-10s BF16 worst cosine %.7f\n", isas[i], worst);
        assert_true(worst > 0.9999);
        assert_true(worst < 0.99999999); /* it is another way of computing */
    }
    assert_true(n_with > 0); /* scalar at the least */
    unsetenv("KITH_KERNELS");
    /* One matrix more exact than that: auto does not round it. */
    m.layers[0].v.w = add(&m, TENSOR_F32, 128, 128, 0, 0.1f);
    setenv("KITH_KERNELS", "scalar", 1);
    struct model_fast *f;
    assert_int_equal(model_fast_new(&f, &m.model, MODEL_AUTO, NULL), 0);
    assert_int_equal(model_fast_precision(f), MODEL_F32);
    model_fast_free(f);
    unsetenv("KITH_KERNELS");
    rig_deinit(&m);
}

/* One matrix of another type: the model is mixed, and one of floats makes all of it f32. */
static void mixed_types(void **state)
{
    (void)state;
    struct rig m;
    struct model_weights weights;
    rig_init(&m, TENSOR_Q5_0, 256, 4, 512, POOLING_MEAN);
    m.layers[1].down.w = add(&m, TENSOR_Q6_K, 512, 256, 0, 0.1f);
    model_weights(&m.model, &weights);
    assert_true(weights.type == TENSOR_Q5_0 && weights.mixed && weights.quantized);
    m.layers[0].v.w = add(&m, TENSOR_F16, 256, 256, 0, 0.1f);
    model_weights(&m.model, &weights);
    assert_true(weights.mixed && !weights.quantized);
    static struct texts texts;
    double brief;
    texts_fill(&texts, COMPARED, &m.rng);
    assert_true(run_and_compare(&m, MODEL_AUTO, &texts.batch, &brief) > 0.999999);
    assert_true(run_and_compare(&m, MODEL_INT8, &texts.batch, &brief) > near_enough);
    rig_deinit(&m);
}

/* The same texts in one batch of several groups, one by one, and with other numbers of threads.
 */
static void a_batch_equals_its_texts(void **state)
{
    (void)state;
    static struct texts texts;
    struct rig m;
    rig_init(&m, TENSOR_Q8_0, 64, 2, 128, POOLING_MEAN);
    texts_fill(&texts, TEXTS_MAX, &m.rng);
    assert_true(texts.batch.n_tokens > 512); /* more than a group of one thread */
    uint32_t n = m.model.n_embd;
    float *together = vectors_new(TEXTS_MAX, n), *alone = vectors_new(TEXTS_MAX, n);
    for (unsigned threads = 1; threads <= 3; threads += 2)
        for (int precision = MODEL_F32; precision <= MODEL_INT8; precision++) {
            struct model_fast *f;
            struct pool *pool;
            assert_int_equal(
                model_fast_new(&f, &m.model, (enum model_precision)precision, NULL), 0);
            assert_int_equal(pool_new(&pool, threads, NULL), 0);
            for (uint32_t t = 0; t < TEXTS_MAX; t++) {
                uint32_t from = texts.offsets[t], offsets[] = {0, texts.offsets[t + 1] - from};
                struct model_batch one = {texts.ids + from, offsets, 1, offsets[1],
                                          texts.splits + t};
                assert_int_equal(model_fast_forward(f, pool, &one, alone + t * n, NULL), 0);
            }
            assert_int_equal(model_fast_forward(f, pool, &texts.batch, together, NULL), 0);
            for (uint32_t i = 0; i < TEXTS_MAX * n; i++)
                assert_true(fabsf(together[i] - alone[i]) < 1e-5f);
            model_fast_free(f);
            pool_free(pool);
        }
    free(together);
    free(alone);
    rig_deinit(&m);
}

/* However the rows of texts are cut into blocks for the threads, their vectors are the same. */
static void any_length_on_any_number_of_threads(void **state)
{
    (void)state;
    enum { DIM = 64, THREADS = 5, TEXTS = 4 };
    static int32_t ids[TEXTS * N_CTX];
    static float out[THREADS][TEXTS * DIM];
    struct rig m;
    rig_init(&m, TENSOR_Q8_0, DIM, 2, 128, POOLING_MEAN);
    for (int i = 0; i < TEXTS * N_CTX; i++)
        ids[i] = (int32_t)rng_below(&m.rng, m.model.n_vocab);
    for (int precision = MODEL_F32; precision <= MODEL_INT8; precision++) {
        struct model_fast *f;
        struct pool *pools[THREADS];
        assert_int_equal(model_fast_new(&f, &m.model, (enum model_precision)precision, NULL),
                         0);
        for (unsigned t = 0; t < THREADS; t++)
            assert_int_equal(pool_new(&pools[t], t + 1, NULL), 0);
        for (uint32_t n = 1; n <= TEXTS * N_CTX; n++) {
            uint32_t offsets[TEXTS + 1] = {0};
            struct model_batch batch = {ids, offsets, 0, n, NULL};
            for (uint32_t end = 0; end < n; offsets[++batch.n_texts] = end)
                end = end + N_CTX < n ? end + N_CTX : n;
            for (unsigned t = 0; t < THREADS; t++)
                assert_int_equal(model_fast_forward(f, pools[t], &batch, out[t], NULL), 0);
            for (unsigned t = 1; t < THREADS; t++)
                for (uint32_t i = 0; i < batch.n_texts * DIM; i++)
                    assert_true(fabsf(out[t][i] - out[0][i]) < 1e-5f);
        }
        for (unsigned t = 0; t < THREADS; t++)
            pool_free(pools[t]);
        model_fast_free(f);
    }
    rig_deinit(&m);
}

static void refuses_bad_batches(void **state)
{
    (void)state;
    struct rig m;
    struct model_fast *f;
    struct pool *pool;
    struct err e;
    int32_t ids[N_CTX + 1] = {0};
    float *out = vectors_new(2, 64);
    rig_init(&m, TENSOR_F32, 64, 2, 128, POOLING_MEAN);
    assert_int_equal(model_fast_new(&f, &m.model, MODEL_AUTO, &e), 0);
    assert_int_equal(pool_new(&pool, 1, &e), 0);
    assert_true(model_fast_max_tokens(f) >= 8192);

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
        struct model_batch batch = {ids, bad[i].offsets, bad[i].n_texts, bad[i].n_tokens, NULL};
        assert_int_equal(model_fast_forward(f, pool, &batch, out, &e), KITH_EINVAL);
    }
    uint32_t offsets[] = {0, 3};
    struct model_batch batch = {ids, offsets, 1, 3, NULL};
    for (int i = 0; i < 2; i++) {
        ids[2] = i ? -1 : N_VOCAB;
        assert_int_equal(model_fast_forward(f, pool, &batch, out, &e), KITH_EINVAL);
    }
    ids[2] = N_VOCAB - 1;
    assert_int_equal(model_fast_forward(f, pool, &batch, out, &e), 0);
    model_fast_free(f);
    model_fast_free(NULL);
    pool_free(pool);

    m.model.n_ff = 136;
    assert_int_equal(model_fast_new(&f, &m.model, MODEL_AUTO, &e), KITH_EUNSUPPORTED);
    m.model.n_ff = 128;
    setenv("KITH_KERNELS", "abacus", 1);
    assert_int_equal(model_fast_new(&f, &m.model, MODEL_AUTO, &e), KITH_EINVAL);
    unsetenv("KITH_KERNELS");
    rig_deinit(&m);
    free(out);
}

/* Every allocation of new and of forward fails once; afterwards the same encoder still works.
 */
static void survives_exhausted_memory(void **state)
{
    (void)state;
    static struct texts texts;
    struct rig m;
    struct err e;
    rig_init(&m, TENSOR_Q8_0, 64, 2, 128, POOLING_MEAN);
    texts_fill(&texts, 6, &m.rng);
    float *out = vectors_new(6, 64), *expected = vectors_new(6, 64);
    for (int precision = MODEL_F32; precision <= MODEL_INT8; precision++) {
        struct model_fast *f = NULL;
        struct pool *pool;
        long n = 1;
        for (int rc = KITH_ENOMEM; rc != 0; n++) {
            mem_fail_after(n);
            rc = model_fast_new(&f, &m.model, (enum model_precision)precision, &e);
            mem_fail_after(0);
            assert_true(rc == 0 || rc == KITH_ENOMEM);
        }
        assert_true(n > 20);
        assert_int_equal(pool_new(&pool, 3, &e), 0);
        n = 1;
        for (int rc = KITH_ENOMEM; rc != 0; n++) {
            mem_fail_after(n);
            rc = model_fast_forward(f, pool, &texts.batch, out, &e);
            mem_fail_after(0);
            assert_true(rc == 0 || rc == KITH_ENOMEM);
        }
        assert_true(n > 5);
        struct model_fast *fresh;
        assert_int_equal(model_fast_new(&fresh, &m.model, (enum model_precision)precision, &e),
                         0);
        assert_int_equal(model_fast_forward(fresh, pool, &texts.batch, expected, &e), 0);
        assert_memory_equal(out, expected, 6 * 64 * sizeof *out);
        model_fast_free(fresh);
        model_fast_free(f);
        pool_free(pool);
    }
    free(out);
    free(expected);
    rig_deinit(&m);
}

int main(void)
{
    printf("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_the_reference),
        cmocka_unit_test(every_architecture),
        cmocka_unit_test(every_type_matches_the_reference),
        cmocka_unit_test(bf16_products),
        cmocka_unit_test(mixed_types),
        cmocka_unit_test(a_batch_equals_its_texts),
        cmocka_unit_test(any_length_on_any_number_of_threads),
        cmocka_unit_test(refuses_bad_batches),
        cmocka_unit_test(survives_exhausted_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
