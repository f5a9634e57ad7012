/* bench-index: how fast an index is built and searched, and how much it finds.
 *
 * Vectors come from a stated generator, so that a figure can be repeated elsewhere:
 *   manifold   z ~ N(0,1)^latent, x = A z + noise * N(0,1)^dim, A fixed, N(0,1/latent) entries:
 * data of low intrinsic dimension, as embeddings are clusters   a centre of 1,000 plus 0.5 *
 * N(0,1)^dim random     N(0,1)^dim, the hardest Queries are drawn as the vectors are. Recall is
 * against the exact nearest by the float vectors, so it counts what quantization loses, too.
 *
 * The bound beside each rate: the codes and links that a query touched, times the rate, over
 * the bandwidth of a plain sequential read measured in the same run. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/mem.h"
#include "base/random.h"
#include "index/index.h"

struct options {
    const char *generator, *csv;
    uint32_t n, dim, latent, n_queries, m, ef_construction, k, threads;
    double noise;
    enum index_quant quant;
    uint64_t seed;
    uint32_t churn;
};

struct set {
    struct index_params params;
    struct index_arrays arrays;
    pthread_mutex_t lock;
    struct index *index;
};

static void die(const char *what)
{
    fprintf(stderr, "bench-index: %s\n", what);
    exit(1);
}

static void *need(void *p)
{
    if (!p)
        die("out of memory");
    return p;
}

static double gauss(struct rng *r)
{
    double u = 1 - rng_unit(r), v = rng_unit(r);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static float *generate(const struct options *o)
{
    size_t total = (size_t)o->n + o->n_queries;
    uint32_t rows = strcmp(o->generator, "clusters") == 0 ? 1000 : o->latent;
    float *x = need(mem_alloc_n(total * o->dim, sizeof *x));
    float *basis = need(mem_alloc_n((size_t)rows * o->dim, sizeof *basis));
    float *z = need(mem_alloc_n(o->latent, sizeof *z));
    struct rng r;
    rng_seed(&r, o->seed);
    for (size_t i = 0; i < (size_t)rows * o->dim; i++)
        basis[i] = (float)gauss(&r);
    for (size_t i = 0; i < total; i++) {
        float *v = x + i * o->dim;
        double noise = 1;
        memset(v, 0, o->dim * sizeof *v);
        if (strcmp(o->generator, "manifold") == 0) {
            noise = o->noise;
            for (uint32_t a = 0; a < o->latent; a++) {
                z[a] = (float)(gauss(&r) / sqrt(o->latent));
                for (uint32_t d = 0; d < o->dim; d++)
                    v[d] += z[a] * basis[(size_t)a * o->dim + d];
            }
        } else if (strcmp(o->generator, "clusters") == 0) {
            noise = 0.5;
            memcpy(v, basis + rng_below(&r, rows) * o->dim, o->dim * sizeof *v);
        }
        for (uint32_t d = 0; d < o->dim; d++)
            v[d] += (float)(noise * gauss(&r));
    }
    mem_free(basis);
    mem_free(z);
    return x;
}

static void set_open(struct set *s, enum index_kind kind, enum index_quant quant,
                     const struct options *o)
{
    struct err e = {0};
    s->params = (struct index_params){kind, quant, o->dim, o->m, o->ef_construction};
    s->arrays.codes = need(records_heap_new(index_code_stride(&s->params)));
    if (kind == INDEX_HNSW) {
        s->arrays.links = need(records_heap_new(index_links_stride(&s->params)));
        s->arrays.upper = need(records_heap_new(index_upper_stride(&s->params)));
    }
    pthread_mutex_init(&s->lock, NULL);
    struct index_options options = {.owner = &s->lock};
    if (records_grow(s->arrays.codes, o->n, &e) ||
        (s->arrays.links && records_grow(s->arrays.links, o->n, &e)) ||
        index_open(&s->index, &s->params, &s->arrays, &options, NULL, 0, &e))
        die(e.message);
}

static void set_close(struct set *s)
{
    index_free(s->index);
    records_heap_free(s->arrays.codes);
    records_heap_free(s->arrays.links);
    records_heap_free(s->arrays.upper);
    pthread_mutex_destroy(&s->lock);
}

static _Atomic bool adding_done;

static void *link_worker(void *arg)
{
    struct set *s = arg;
    struct index_scratch *scratch = need(index_scratch_new());
    struct err e;
    for (;;) {
        bool last = adding_done;
        int rc = index_link(s->index, scratch, &e);
        if (rc < 0)
            die(e.message);
        if (rc == 0 && last)
            break;
        if (rc == 0)
            clock_sleep_us(50);
    }
    index_scratch_free(scratch);
    return NULL;
}

static void add_one(struct set *s, uint32_t slot, const float *v, uint64_t seed)
{
    struct err e;
    while (index_tail_full(s->index))
        clock_sleep_us(200);
    pthread_mutex_lock(&s->lock);
    int rc = index_add(s->index, slot, v, seed, &e);
    pthread_mutex_unlock(&s->lock);
    if (rc != 0)
        die(e.message);
}

static double build(struct set *s, const struct options *o, const float *x, uint32_t threads)
{
    pthread_t workers[64];
    int64_t start = clock_mono_us();
    adding_done = false;
    for (uint32_t t = 0; t < threads; t++)
        pthread_create(&workers[t], NULL, link_worker, s);
    for (uint32_t i = 0; i < o->n; i++)
        add_one(s, i, x + (size_t)i * o->dim, i);
    adding_done = true;
    for (uint32_t t = 0; t < threads; t++)
        pthread_join(workers[t], NULL);
    return (double)(clock_mono_us() - start) / 1e6;
}

static void exact_hits(const struct options *o, const float *x, struct index_hit *hits)
{
    struct set flat = {0};
    struct err e;
    set_open(&flat, INDEX_FLAT, INDEX_F32, o);
    struct index_scratch *scratch = need(index_scratch_new());
    for (uint32_t i = 0; i < o->n; i++)
        add_one(&flat, i, x + (size_t)i * o->dim, i);
    for (uint32_t i = 0; i < o->n_queries; i++) {
        struct index_query q = {.vector = x + ((size_t)o->n + i) * o->dim, .k = o->k};
        if (index_search(flat.index, scratch, &q, hits + (size_t)i * o->k, &e) < 0)
            die(e.message);
    }
    index_scratch_free(scratch);
    set_close(&flat);
}

static uint32_t common(const struct index_hit *a, const struct index_hit *b, int64_t n,
                       uint32_t k)
{
    uint32_t found = 0;
    for (int64_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < k; j++)
            found += a[i].slot == b[j].slot;
    return found;
}

struct point {
    double recall, qps, p50_us, p99_us, visits;
};

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct point search_all(struct set *s, const struct options *o, const float *x,
                               const struct index_hit *truth, uint32_t ef)
{
    struct index_scratch *scratch = need(index_scratch_new());
    struct index_hit *hits = need(mem_alloc_n(o->k, sizeof *hits));
    double *us = need(mem_alloc_n(o->n_queries, sizeof *us));
    struct err e;
    uint64_t found = 0, visits = 0;
    double total = 0;
    for (int round = 0; round < 2; round++) { /* the first one warms */
        total = 0;
        found = 0;
        visits = index_scratch_visits(scratch);
        for (uint32_t i = 0; i < o->n_queries; i++) {
            struct index_query q = {.vector = x + ((size_t)o->n + i) * o->dim,
                                    .k = o->k,
                                    .ef = ef,
                                    .exact = ef == 0};
            int64_t start = clock_mono_ns();
            epoch_enter();
            int64_t n = index_search(s->index, scratch, &q, hits, &e);
            epoch_exit();
            us[i] = (double)(clock_mono_ns() - start) / 1e3;
            total += us[i];
            if (n < 0)
                die(e.message);
            found += common(hits, truth + (size_t)i * o->k, n, o->k);
        }
    }
    qsort(us, o->n_queries, sizeof *us, compare_doubles);
    struct point p = {
        (double)found / ((double)o->n_queries * o->k), o->n_queries / total * 1e6,
        us[o->n_queries / 2], us[o->n_queries * 99 / 100],
        ef == 0 ? o->n : (double)(index_scratch_visits(scratch) - visits) / o->n_queries};
    mem_free(us);
    mem_free(hits);
    index_scratch_free(scratch);
    return p;
}

/* Removes and adds anew a tenth of the set, o->churn times. */
static void churn(struct set *s, const struct options *o, const float *x)
{
    struct index_scratch *scratch = need(index_scratch_new());
    struct rng r;
    struct err e;
    rng_seed(&r, o->seed + 1);
    uint32_t *slots = need(mem_alloc_n(o->n, sizeof *slots));
    for (uint32_t i = 0; i < o->n; i++)
        slots[i] = i;
    for (uint32_t round = 0; round < o->churn; round++) {
        uint32_t tenth = o->n / 10;
        for (uint32_t i = 0; i < tenth; i++) {
            uint32_t other = i + (uint32_t)rng_below(&r, o->n - i), t = slots[i];
            slots[i] = slots[other];
            slots[other] = t;
            pthread_mutex_lock(&s->lock);
            if (index_remove(s->index, slots[i], &e) != 0)
                die(e.message);
            pthread_mutex_unlock(&s->lock);
        }
        int64_t start = clock_mono_us();
        while (index_link(s->index, scratch, &e) > 0)
            ;
        double removed = (double)(clock_mono_us() - start) / 1e6;
        for (uint32_t i = 0; i < tenth; i++) {
            add_one(s, slots[i], x + (size_t)slots[i] * o->dim, slots[i]);
            if (index_link(s->index, scratch, &e) < 0)
                die(e.message);
        }
        printf("churn round %u: %.0f removals/s\n", round + 1, tenth / removed);
    }
    mem_free(slots);
    index_scratch_free(scratch);
}

static double read_bandwidth(void)
{
    size_t bytes = (size_t)256 << 20;
    uint64_t *p = need(mem_alloc(bytes)), sum = 0;
    memset(p, 1, bytes);
    int64_t start = clock_mono_ns();
    for (size_t i = 0; i < bytes / 8; i++)
        sum += p[i];
    double gb = (double)bytes / (double)(clock_mono_ns() - start);
    mem_free(p);
    return sum == 0 ? 0 : gb; /* sum is used, so that the loop stays */
}

static void report(struct set *s, const struct options *o, const float *x,
                   const struct index_hit *truth, const char *what)
{
    static const uint32_t efs[] = {10, 20, 40, 60, 80, 100, 150, 200, 300, 0};
    double gb = read_bandwidth();
    size_t code = s->arrays.codes->stride;
    FILE *csv = o->csv ? fopen(o->csv, "a") : NULL;
    printf("a plain sequential read gets %.1f GB/s\n", gb);
    printf("%-8s %8s %10s %9s %9s %9s %9s\n", "ef", "recall", "queries/s", "p50 us", "p99 us",
           "codes", "GB/s");
    for (size_t i = 0; i < sizeof efs / sizeof *efs; i++) {
        struct point p = search_all(s, o, x, truth, efs[i]);
        printf("%-8u %8.4f %10.0f %9.1f %9.1f %9.0f %9.1f\n", efs[i], p.recall, p.qps, p.p50_us,
               p.p99_us, p.visits, p.visits * p.qps * (double)code / 1e9);
        if (csv)
            fprintf(csv, "%s,%s,%s,%u,%u,%s,%u,%u,%u,%.4f,%.0f,%.1f,%.1f,%.0f\n", what,
                    o->generator, o->quant == INDEX_F32 ? "f32" : "int8", o->n, o->dim,
                    index_kernels_name(), o->m, o->ef_construction, efs[i], p.recall, p.qps,
                    p.p50_us, p.p99_us, p.visits);
    }
    if (csv)
        fclose(csv);
}

static void usage(void)
{
    puts("bench-index [--generator manifold|clusters|random] [--n N] [--dim D] [--latent L]\n"
         "            [--noise S] [--queries Q] [--k K] [--m M] [--ef-construction E]\n"
         "            [--quant int8|f32] [--threads T] [--churn ROUNDS] [--seed S] [--csv "
         "FILE]\n"
         "ef 0 in the table is the exact scan. CSV: what, generator, quant, n, dim, kernels, "
         "m,\n"
         "ef_construction, ef, recall, queries/s, p50 us, p99 us.");
}

static void parse(int argc, char **argv, struct options *o)
{
    static const struct option table[] = {{"generator", 1, 0, 'g'},
                                          {"n", 1, 0, 'n'},
                                          {"dim", 1, 0, 'd'},
                                          {"latent", 1, 0, 'l'},
                                          {"noise", 1, 0, 'o'},
                                          {"queries", 1, 0, 'q'},
                                          {"k", 1, 0, 'k'},
                                          {"m", 1, 0, 'm'},
                                          {"ef-construction", 1, 0, 'e'},
                                          {"quant", 1, 0, 'u'},
                                          {"threads", 1, 0, 't'},
                                          {"churn", 1, 0, 'r'},
                                          {"seed", 1, 0, 's'},
                                          {"csv", 1, 0, 'c'},
                                          {"help", 0, 0, 'h'},
                                          {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        uint32_t number = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
        switch (c) {
        case 'g':
            o->generator = optarg;
            break;
        case 'n':
            o->n = number;
            break;
        case 'd':
            o->dim = number;
            break;
        case 'l':
            o->latent = number;
            break;
        case 'o':
            o->noise = strtod(optarg, NULL);
            break;
        case 'q':
            o->n_queries = number;
            break;
        case 'k':
            o->k = number;
            break;
        case 'm':
            o->m = number;
            break;
        case 'e':
            o->ef_construction = number;
            break;
        case 'u':
            o->quant = strcmp(optarg, "f32") == 0 ? INDEX_F32 : INDEX_INT8;
            break;
        case 't':
            o->threads = number < 64 ? number : 64;
            break;
        case 'r':
            o->churn = number;
            break;
        case 's':
            o->seed = number;
            break;
        case 'c':
            o->csv = optarg;
            break;
        default:
            usage();
            exit(c == 'h' ? 0 : 2);
        }
    }
}

int main(int argc, char **argv)
{
    struct options o = {.generator = "manifold",
                        .n = 100000,
                        .dim = 384,
                        .latent = 48,
                        .n_queries = 1000,
                        .m = 16,
                        .ef_construction = 200,
                        .k = 10,
                        .threads = 1,
                        .noise = 0.05,
                        .quant = INDEX_INT8,
                        .seed = 1};
    parse(argc, argv, &o);
    printf("%s, n %u, dim %u, latent %u, noise %g, m %u, ef_construction %u, %s, kernels %s, "
           "seed %llu\n",
           o.generator, o.n, o.dim, o.latent, o.noise, o.m, o.ef_construction,
           o.quant == INDEX_F32 ? "f32" : "int8", index_kernels_name(),
           (unsigned long long)o.seed);
    float *x = generate(&o);
    struct index_hit *truth = need(mem_alloc_n((size_t)o.n_queries * o.k, sizeof *truth));
    exact_hits(&o, x, truth);
    struct set s = {0};
    set_open(&s, INDEX_HNSW, o.quant, &o);
    double seconds = build(&s, &o, x, o.threads);
    double upper = (double)records_count(s.arrays.upper) * s.arrays.upper->stride / o.n;
    printf("built with %u link threads in %.1f s: %.0f vectors/s, %.1f bytes a vector\n",
           o.threads, seconds, o.n / seconds,
           s.arrays.codes->stride + s.arrays.links->stride + upper);
    report(&s, &o, x, truth, "built");
    if (o.churn) {
        churn(&s, &o, x);
        report(&s, &o, x, truth, "churned");
    }
    set_close(&s);
    mem_free(truth);
    mem_free(x);
    return 0;
}
