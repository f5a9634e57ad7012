/* bench-index: how fast an index is built and searched, and how much it finds.
 *
 * Vectors come from a stated generator, so that a figure can be repeated elsewhere:
 *   manifold   z ~ N(0,1)^latent, x = A z + noise * N(0,1)^dim, A fixed, N(0,1/latent) entries:
 *              data of low intrinsic dimension, as embeddings are
 *   clusters   a centre of 1,000 plus 0.5 * N(0,1)^dim
 *   random     N(0,1)^dim, the hardest
 * and are multiplied by exp(spread * N(0,1)), for metrics that know lengths. Queries are drawn
 * as the vectors are. Recall is against the exact nearest by the float vectors, so it counts
 * what quantization loses, too; "walk" is against the exact nearest by the codes.
 *
 * With --filter, each element passes with that probability, whatever its vector, and searches
 * accept only those that pass; accept is one look at an array of bytes.
 *
 * The bound beside each rate: the codes that a query touched, times the rate, over the
 * bandwidth of a plain sequential read measured in the same run. */
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
    double noise, spread, filter;
    enum index_quant quant;
    enum index_metric metric;
    uint64_t seed;
    uint32_t churn;
};

static const char *const quant_names[] = {
    [INDEX_F32] = "f32", [INDEX_INT8] = "int8", [INDEX_F16] = "f16", [INDEX_BIN] = "bin"};
static const char *const metric_names[] = {
    [INDEX_COSINE] = "cosine", [INDEX_L2] = "l2", [INDEX_IP] = "ip"};

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
        double length = o->spread > 0 ? exp(o->spread * gauss(&r)) : 1;
        for (uint32_t d = 0; d < o->dim; d++)
            v[d] = (float)(v[d] * length);
    }
    mem_free(basis);
    mem_free(z);
    return x;
}

static void set_open(struct set *s, enum index_kind kind, enum index_quant quant,
                     const struct options *o)
{
    struct err e = {0};
    s->params = (struct index_params){.kind = kind,
                                      .quant = quant,
                                      .metric = o->metric,
                                      .dim = o->dim,
                                      .m = o->m,
                                      .ef_construction = o->ef_construction};
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

/* Who passes the filter; NULL: all. */
static uint8_t *passes;

static bool pass(void *arg, uint32_t slot)
{
    (void)arg;
    return passes[slot];
}

static void draw_filter(const struct options *o)
{
    struct rng r;
    if (o->filter >= 1)
        return;
    passes = need(mem_alloc(o->n));
    rng_seed(&r, o->seed + 2);
    for (uint32_t i = 0; i < o->n; i++)
        passes[i] = rng_unit(&r) < o->filter;
}

static struct index_query query_of(const struct options *o, const float *x, uint32_t i,
                                   uint32_t ef)
{
    return (struct index_query){.vector = x + ((size_t)o->n + i) * o->dim,
                                .k = o->k,
                                .ef = ef,
                                .exact = ef == 0,
                                .accept = passes ? pass : NULL};
}

/* The k nearest of each query, o->k places each; those that do not exist are no slot. */
static struct index_hit *exact_hits(struct set *s, const struct options *o, const float *x)
{
    struct err e;
    size_t total = (size_t)o->n_queries * o->k;
    struct index_hit *hits = need(mem_alloc_n(total, sizeof *hits));
    struct index_scratch *scratch = need(index_scratch_new());
    for (size_t i = 0; i < total; i++)
        hits[i].slot = INDEX_SLOT_NONE;
    for (uint32_t i = 0; i < o->n_queries; i++) {
        struct index_query q = query_of(o, x, i, 0);
        epoch_enter();
        if (index_search(s->index, scratch, &q, hits + (size_t)i * o->k, &e) < 0)
            die(e.message);
        epoch_exit();
    }
    index_scratch_free(scratch);
    return hits;
}

static struct index_hit *true_hits(const struct options *o, const float *x)
{
    struct set flat = {0};
    set_open(&flat, INDEX_FLAT, INDEX_F32, o);
    for (uint32_t i = 0; i < o->n; i++)
        add_one(&flat, i, x + (size_t)i * o->dim, i);
    struct index_hit *hits = exact_hits(&flat, o, x);
    set_close(&flat);
    return hits;
}

static uint64_t n_places(const struct options *o, const struct index_hit *truth)
{
    uint64_t n = 0;
    for (size_t i = 0; i < (size_t)o->n_queries * o->k; i++)
        n += truth[i].slot != INDEX_SLOT_NONE;
    return n ? n : 1;
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
    double recall, walk, qps, p50_us, p99_us, visits, rejected;
};

/* What is to be found: by the vectors, and by the codes. */
struct truth {
    struct index_hit *vectors, *codes;
};

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct point search_all(struct set *s, const struct options *o, const float *x,
                               const struct truth *truth, uint32_t ef)
{
    struct index_scratch *scratch = need(index_scratch_new());
    struct index_hit *hits = need(mem_alloc_n(o->k, sizeof *hits));
    double *us = need(mem_alloc_n(o->n_queries, sizeof *us));
    struct err e;
    uint64_t found = 0, walked = 0, visits = 0, rejected = 0;
    double total = 0;
    for (int round = 0; round < 2; round++) { /* the first one warms */
        found = walked = visits = rejected = 0;
        total = 0;
        for (uint32_t i = 0; i < o->n_queries; i++) {
            struct index_query q = query_of(o, x, i, ef);
            struct index_search_stats stats;
            q.stats = &stats;
            int64_t start = clock_mono_ns();
            epoch_enter();
            int64_t n = index_search(s->index, scratch, &q, hits, &e);
            epoch_exit();
            us[i] = (double)(clock_mono_ns() - start) / 1e3;
            total += us[i];
            if (n < 0)
                die(e.message);
            found += common(hits, truth->vectors + (size_t)i * o->k, n, o->k);
            walked += common(hits, truth->codes + (size_t)i * o->k, n, o->k);
            visits += stats.n_visits;
            rejected += stats.n_rejected;
        }
    }
    qsort(us, o->n_queries, sizeof *us, compare_doubles);
    struct point p = {(double)found / (double)n_places(o, truth->vectors),
                      (double)walked / (double)n_places(o, truth->codes),
                      o->n_queries / total * 1e6,
                      us[o->n_queries / 2],
                      us[o->n_queries * 99 / 100],
                      (double)visits / o->n_queries,
                      (double)rejected / o->n_queries};
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
    uint32_t upper = records_count(s->arrays.upper);
    size_t heap = index_heap_bytes(s->index);
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
    printf("records above level 0: %u before, %u after; heap: %zu bytes before, %zu after\n",
           upper, records_count(s->arrays.upper), heap, index_heap_bytes(s->index));
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
                   struct index_hit *vectors, const char *what)
{
    static const uint32_t efs[] = {10, 20, 40, 60, 80, 100, 150, 200, 300, 0};
    double gb = read_bandwidth();
    size_t code = s->arrays.codes->stride;
    struct truth truth = {vectors, exact_hits(s, o, x)};
    FILE *csv = o->csv ? fopen(o->csv, "a") : NULL;
    printf("a plain sequential read gets %.1f GB/s\n", gb);
    printf("%-8s %8s %8s %10s %9s %9s %9s %9s %9s\n", "ef", "recall", "walk", "queries/s",
           "p50 us", "p99 us", "codes", "rejected", "GB/s");
    for (size_t i = 0; i < sizeof efs / sizeof *efs; i++) {
        struct point p = search_all(s, o, x, &truth, efs[i]);
        printf("%-8u %8.4f %8.4f %10.0f %9.1f %9.1f %9.0f %9.0f %9.1f\n", efs[i], p.recall,
               p.walk, p.qps, p.p50_us, p.p99_us, p.visits, p.rejected,
               p.visits * p.qps * (double)code / 1e9);
        if (csv)
            fprintf(csv, "%s,%s,%s,%s,%g,%u,%u,%s,%u,%u,%u,%.4f,%.4f,%.0f,%.1f,%.1f,%.0f\n",
                    what, o->generator, quant_names[o->quant], metric_names[o->metric],
                    o->filter, o->n, o->dim, index_kernels_name(), o->m, o->ef_construction,
                    efs[i], p.recall, p.walk, p.qps, p.p50_us, p.p99_us, p.visits);
    }
    if (csv)
        fclose(csv);
    mem_free(truth.codes);
}

static void usage(void)
{
    puts(
        "bench-index [--generator manifold|clusters|random] [--n N] [--dim D] [--latent L]\n"
        "            [--noise S] [--spread S] [--queries Q] [--k K] [--m M]\n"
        "            [--ef-construction E] [--quant int8|f32|f16|bin] [--metric cosine|l2|ip]\n"
        "            [--filter SELECTIVITY] [--threads T] [--churn ROUNDS] [--seed S]\n"
        "            [--csv FILE]\n"
        "ef 0 in the table is the exact scan. CSV: what, generator, quant, metric, "
        "selectivity,\n"
        "n, dim, kernels, m, ef_construction, ef, recall, recall of the walk, queries/s, p50 "
        "us,\n"
        "p99 us, codes.");
}

static size_t named(const char *name, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (names[i] && strcmp(names[i], name) == 0)
            return i;
    usage();
    exit(2);
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
                                          {"metric", 1, 0, 'i'},
                                          {"filter", 1, 0, 'f'},
                                          {"spread", 1, 0, 'p'},
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
            o->quant = (enum index_quant)named(optarg, quant_names, 5);
            break;
        case 'i':
            o->metric = (enum index_metric)named(optarg, metric_names, 3);
            break;
        case 'f':
            o->filter = strtod(optarg, NULL);
            break;
        case 'p':
            o->spread = strtod(optarg, NULL);
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
                        .filter = 1,
                        .quant = INDEX_INT8,
                        .seed = 1};
    parse(argc, argv, &o);
    printf(
        "%s, n %u, dim %u, latent %u, noise %g, spread %g, m %u, ef_construction %u, %s, %s, "
        "filter %g, kernels %s, seed %llu\n",
        o.generator, o.n, o.dim, o.latent, o.noise, o.spread, o.m, o.ef_construction,
        quant_names[o.quant], metric_names[o.metric], o.filter, index_kernels_name(),
        (unsigned long long)o.seed);
    float *x = generate(&o);
    draw_filter(&o);
    struct index_hit *truth = true_hits(&o, x);
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
    mem_free(passes);
    mem_free(truth);
    mem_free(x);
    return 0;
}
