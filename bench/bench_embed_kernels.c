/* The encoder alone, in this process: tokens a second of the fast forward pass at several
 * lengths and batch sizes, its cosine to the plain f32 pass, and the share of the processor's
 * peak that its products reach. bench/embed_onnx.py is the peer.
 *
 * Every point is timed once a round, all points in turn, so that a disturbance of the machine
 * hits all alike; the median of the rounds is printed. */

#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/random.h"
#include "engine/gguf.h"
#include "engine/kernels.h"
#include "engine/model.h"
#include "engine/pool.h"

enum { ROUNDS_MAX = 101, COSINE_TEXTS = 2, SEED = 1 };

static const struct point {
    uint32_t tokens, texts;
} points[] = {{16, 1}, {16, 64}, {128, 1}, {128, 64}, {450, 1}, {450, 16}};

enum { N_POINTS = sizeof points / sizeof points[0] };

struct options {
    const char *model, *original, *csv;
    unsigned threads, rounds;
    enum model_precision precision;
};

struct subject {
    struct model_fast *fast;
    struct pool *pool;
    uint32_t n_embd;
    int32_t *ids[N_POINTS];
    uint32_t *offsets[N_POINTS];
    float *out;
    double seconds[N_POINTS][ROUNDS_MAX];
};

/* --- the processor's peak, one core: independent instructions in a loop --- */

#if defined(__x86_64__)
#define SIX(op, v, a, b, c, d, e, f) op(v, a) op(v, b) op(v, c) op(v, d) op(v, e) op(v, f)
#define TWELVE(op, v) SIX(op, v, 0, 1, 2, 3, 4, 5) SIX(op, v, 6, 7, 8, 9, 10, 11)
#define PEAK_LOOP(op, v, times)                                                                \
    for (long i = 0; i < (times); i++)                                                         \
    __asm__ volatile(TWELVE(op, v)::                                                           \
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",     \
                           "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14")
#define FMA(v, i) "vfmadd231ps %%" v "12,%%" v "13,%%" v #i "\n\t"
#define VNNI(v, i) "vpdpbusd %%" v "12,%%" v "13,%%" v #i "\n\t"
/* As many bytes as one VPDPBUSD takes, without it: products of bytes, pairs of those, and an
 * addition. */
#define PAIRS(v, i)                                                                            \
    "vpmaddubsw %%" v "12,%%" v "13,%%" v "14\n\t"                                             \
    "vpmaddwd %%" v "13,%%" v "14,%%" v "14\n\t"                                               \
    "vpaddd %%" v "14,%%" v #i ",%%" v #i "\n\t"

enum { PEAK_TIMES = 4000000, PEAK_PASSES = 3 };

/* The best rate of an instruction with so many products, in giga-operations (a product and its
 * addition are two). */
#define MEASURE(out, op, v, products)                                                          \
    for (int pass = 0; pass < PEAK_PASSES; pass++) {                                           \
        int64_t start = clock_mono_ns();                                                       \
        PEAK_LOOP(op, v, PEAK_TIMES);                                                          \
        double seconds = (double)(clock_mono_ns() - start) * 1e-9;                             \
        *(out) = fmax(*(out), 12.0 * PEAK_TIMES * (products)*2 / seconds * 1e-9);              \
    }

/* 0 where not known. */
static void measure_peak(double *int8_gops, double *f32_gflops)
{
    *int8_gops = *f32_gflops = 0;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return;
    __asm__ volatile("vxorps %%xmm12,%%xmm12,%%xmm12\n\tvxorps %%xmm13,%%xmm13,%%xmm13" ::
                         : "xmm12", "xmm13"); /* the rest of the vectors, too */
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) {
        MEASURE(int8_gops, VNNI, "zmm", 64)
        MEASURE(f32_gflops, FMA, "zmm", 16)
    } else {
        MEASURE(int8_gops, PAIRS, "ymm", 32)
        MEASURE(f32_gflops, FMA, "ymm", 8)
    }
    __asm__ volatile("vzeroupper" ::: "xmm0");
}
#else
static void measure_peak(double *int8_gops, double *f32_gflops)
{
    *int8_gops = *f32_gflops = 0;
}
#endif

/* Operations of the weight products of one token. */
static double product_operations(const struct model *b)
{
    double embd = b->n_embd, ff = b->n_ff;
    return 2.0 * b->n_layers * (4 * embd * embd + 2 * embd * ff);
}

/* --- the points --- */

static int subject_init(struct subject *s, const struct model *b, const struct options *o,
                        struct err *e)
{
    struct rng rng;
    rng_seed(&rng, SEED);
    s->n_embd = b->n_embd;
    s->out = mem_alloc_n(64, b->n_embd * sizeof(float));
    for (int i = 0; i < N_POINTS; i++) {
        uint32_t n = points[i].tokens * points[i].texts;
        s->ids[i] = mem_alloc_n(n, sizeof(int32_t));
        s->offsets[i] = mem_alloc_n(points[i].texts + 1, sizeof(uint32_t));
        if (!s->out || !s->ids[i] || !s->offsets[i])
            return err_set(e, KITH_ENOMEM, "out of memory for the texts");
        for (uint32_t k = 0; k < n; k++)
            s->ids[i][k] = (int32_t)rng_below(&rng, b->n_vocab);
        for (uint32_t t = 0; t <= points[i].texts; t++)
            s->offsets[i][t] = t * points[i].tokens;
    }
    int rc = pool_new(&s->pool, o->threads, e);
    return rc ? rc : model_fast_new(&s->fast, b, o->precision, e);
}

static void subject_deinit(struct subject *s)
{
    for (int i = 0; i < N_POINTS; i++) {
        mem_free(s->ids[i]);
        mem_free(s->offsets[i]);
    }
    mem_free(s->out);
    model_fast_free(s->fast);
    pool_free(s->pool);
}

static int run_point(struct subject *s, int i, struct err *e)
{
    struct model_batch batch = {s->ids[i], s->offsets[i], points[i].texts,
                                points[i].texts * points[i].tokens, NULL};
    return model_fast_forward(s->fast, s->pool, &batch, s->out, e);
}

/* The worst cosine of the first texts of the point to the plain pass over `original`. */
static int measure_cosine(struct subject *s, const struct model *original, int i, double *worst,
                          struct err *e)
{
    float *expected = mem_alloc_n(s->n_embd, sizeof *expected);
    int rc = expected ? run_point(s, i, e) : err_set(e, KITH_ENOMEM, "out of memory");
    *worst = 1;
    for (uint32_t t = 0; rc == 0 && t < points[i].texts && t < COSINE_TEXTS; t++) {
        const float *got = s->out + (size_t)t * s->n_embd;
        double dot = 0, aa = 0, bb = 0;
        rc = model_reference_forward(original, s->ids[i] + s->offsets[i][t], points[i].tokens,
                                     UINT32_MAX, expected, e);
        for (uint32_t k = 0; rc == 0 && k < s->n_embd; k++) {
            dot += (double)expected[k] * (double)got[k];
            aa += (double)expected[k] * (double)expected[k];
            bb += (double)got[k] * (double)got[k];
        }
        *worst = fmin(*worst, dot / sqrt(aa * bb));
    }
    mem_free(expected);
    return rc;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure(struct subject *s, unsigned rounds, struct err *e)
{
    for (unsigned round = 0; round < rounds; round++)
        for (int i = 0; i < N_POINTS; i++) {
            int64_t start = clock_mono_ns();
            int rc = run_point(s, i, e);
            if (rc != 0)
                return rc;
            s->seconds[i][round] = (double)(clock_mono_ns() - start) * 1e-9;
        }
    return 0;
}

static int report(struct subject *s, const struct model *b, const struct model *original,
                  const struct options *o, struct err *e)
{
    double int8_gops, f32_gflops;
    const struct engine_kernels *k;
    int rc = engine_kernels(&k, e);
    if (rc != 0)
        return rc;
    bool int8 = model_fast_precision(s->fast) == MODEL_INT8;
    FILE *csv = o->csv ? fopen(o->csv, "a") : NULL;
    if (o->csv && !csv)
        return err_set(e, KITH_EIO, "cannot write %s", o->csv);
    measure_peak(&int8_gops, &f32_gflops);
    double peak = (int8 ? int8_gops : f32_gflops) * o->threads;
    printf("%s kernels, %s, %u threads; one core's peak: int8 %.0f GOP/s, f32 %.0f GFLOP/s\n",
           k->name, int8 ? "int8" : "f32", o->threads, int8_gops, f32_gflops);
    printf("%7s %6s %10s %10s %12s %8s %10s\n", "tokens", "texts", "median ms", "tokens/s",
           "products G/s", "of peak", "cosine");
    for (int i = 0; rc == 0 && i < N_POINTS; i++) {
        double cosine, n = points[i].tokens * points[i].texts;
        if ((rc = measure_cosine(s, original, i, &cosine, e)) != 0)
            break;
        qsort(s->seconds[i], o->rounds, sizeof(double), compare_doubles);
        double median = s->seconds[i][o->rounds / 2];
        double speed = product_operations(b) * n / median * 1e-9;
        printf("%7u %6u %10.2f %10.0f %12.0f %7.0f%% %10.6f\n", points[i].tokens,
               points[i].texts, median * 1e3, n / median, speed,
               peak > 0 ? 100 * speed / peak : 0, cosine);
        if (csv)
            fprintf(csv, "kith-%s,%s,%u,%u,%u,%.3f,%.0f,%.7f\n", k->name, int8 ? "int8" : "f32",
                    o->threads, points[i].tokens, points[i].texts, median * 1e3, n / median,
                    cosine);
    }
    if (csv && fclose(csv) != 0 && rc == 0)
        rc = err_set(e, KITH_EIO, "cannot write %s", o->csv);
    return rc;
}

static int bench(const struct options *o, struct err *e)
{
    struct gguf *g = NULL, *g_original = NULL;
    struct model b = {0}, original = {0};
    struct subject *s = mem_calloc(1, sizeof *s);
    int rc = s ? gguf_open(&g, o->model, e) : err_set(e, KITH_ENOMEM, "out of memory");
    if (rc == 0)
        rc = gguf_open(&g_original, o->original, e);
    if (rc == 0)
        rc = model_bind(&b, g, e);
    if (rc == 0)
        rc = model_bind(&original, g_original, e);
    if (rc == 0)
        rc = subject_init(s, &b, o, e);
    if (rc == 0)
        rc = measure(s, o->rounds, e);
    if (rc == 0)
        rc = report(s, &b, &original, o, e);
    if (s)
        subject_deinit(s);
    mem_free(s);
    model_unbind(&b);
    model_unbind(&original);
    gguf_close(g);
    gguf_close(g_original);
    return rc;
}

static void usage(FILE *to)
{
    fputs("usage: bench-embed-kernels [options]\n"
          "  --model FILE       the GGUF model to run"
          " (build/models/all-MiniLM-L6-v2.q8_0.gguf)\n"
          "  --original FILE    the model whose plain pass is the truth (the .f32.gguf)\n"
          "  --precision P      auto, int8 or f32 (auto: int8 for quantized weights)\n"
          "  --threads N        threads of the pool (2)\n"
          "  --rounds N         timed rounds, at most 101 (7)\n"
          "  --csv FILE         append a row for each point: engine, precision, threads, "
          "tokens,\n"
          "                     texts, median ms, tokens/s, worst cosine\n"
          "KITH_KERNELS=scalar|avx2|avx512 chooses the kernels.\n",
          to);
}

static bool parse(int argc, char **argv, struct options *o)
{
    static const struct option names[] = {{"model", required_argument, NULL, 'm'},
                                          {"original", required_argument, NULL, 'o'},
                                          {"precision", required_argument, NULL, 'p'},
                                          {"threads", required_argument, NULL, 't'},
                                          {"rounds", required_argument, NULL, 'r'},
                                          {"csv", required_argument, NULL, 'c'},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (c) {
        case 'm':
            o->model = optarg;
            break;
        case 'o':
            o->original = optarg;
            break;
        case 'c':
            o->csv = optarg;
            break;
        case 't':
            o->threads = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'r':
            o->rounds = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'p':
            o->precision = strcmp(optarg, "int8") == 0  ? MODEL_INT8
                           : strcmp(optarg, "f32") == 0 ? MODEL_F32
                                                        : MODEL_AUTO;
            break;
        case 'h':
            usage(stdout);
            exit(0);
        default:
            return false;
        }
    }
    return optind == argc && o->rounds >= 1 && o->rounds <= ROUNDS_MAX;
}

int main(int argc, char **argv)
{
    struct options o = {"build/models/all-MiniLM-L6-v2.q8_0.gguf",
                        "build/models/all-MiniLM-L6-v2.f32.gguf",
                        NULL,
                        2,
                        7,
                        MODEL_AUTO};
    struct err e;
    if (!parse(argc, argv, &o)) {
        usage(stderr);
        return 2;
    }
    if (bench(&o, &e) != 0) {
        fprintf(stderr, "bench-embed-kernels: %s\n", e.message);
        return 1;
    }
    return 0;
}
