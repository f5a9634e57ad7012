/* hnswlib as a peer: reads the same floats as the servers are sent, builds with one thread, and
 * answers one query at a time with one thread, in process.
 *
 *   peer-hnswlib BASE QUERIES DIM N M EF_CONSTRUCTION
 *
 * BASE and QUERIES are rows of f32. Then a command a line on standard input, a line of JSON for
 * each on standard output:
 *   build                  adds all N, scaled to length 1 (the metric is the inner product)
 *   search EF ROUNDS OUT   asks all queries ROUNDS times; OUT gets the found rows, u32, 10 each,
 *                          of the first round */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include <hnswlib/hnswlib.h>

static const size_t K = 10;

[[noreturn]] static void die(const std::string &what)
{
    std::cerr << "peer-hnswlib: " << what << std::endl;
    exit(1);
}

struct rows {
    const float *p;
    size_t n, dim;

    rows(const char *path, size_t d) : dim(d)
    {
        struct stat s;
        int fd = open(path, O_RDONLY);
        if (fd < 0 || fstat(fd, &s) != 0)
            die(std::string("cannot read ") + path);
        void *at = mmap(nullptr, (size_t)s.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED)
            die(std::string("cannot map ") + path);
        close(fd);
        p = static_cast<const float *>(at);
        n = (size_t)s.st_size / (d * sizeof(float));
    }

    void unit(size_t row, float *out) const
    {
        const float *v = p + row * dim;
        float sum = 0;
        for (size_t i = 0; i < dim; i++)
            sum += v[i] * v[i];
        float scale = sum > 0 ? 1 / std::sqrt(sum) : 0;
        for (size_t i = 0; i < dim; i++)
            out[i] = v[i] * scale;
    }
};

typedef std::chrono::steady_clock clock_type;

static double seconds_since(clock_type::time_point start)
{
    return std::chrono::duration<double>(clock_type::now() - start).count();
}

static void build(hnswlib::HierarchicalNSW<float> &graph, const rows &base, size_t n)
{
    std::vector<float> v(base.dim);
    bool terminal = isatty(STDERR_FILENO);
    auto start = clock_type::now();
    for (size_t i = 0; i < n; i++) {
        base.unit(i, v.data());
        graph.addPoint(v.data(), i);
        if (terminal && i % 1024 == 0 && seconds_since(start) > 1)
            fprintf(stderr, "\r  hnswlib builds           %3.0f %% %6.0f/s %4.0f s\033[K",
                    100.0 * (double)i / (double)n, (double)i / seconds_since(start),
                    seconds_since(start));
    }
    double seconds = seconds_since(start);
    if (terminal)
        fputs("\r\033[K", stderr);
    printf("{\"n\": %zu, \"seconds\": %.6f}\n", n, seconds);
}

static void search(hnswlib::HierarchicalNSW<float> &graph, const std::vector<float> &queries,
                   size_t dim, size_t ef, size_t rounds, const std::string &out)
{
    size_t n = queries.size() / dim;
    std::vector<uint32_t> found(n * K, UINT32_MAX);
    std::vector<double> us;
    us.reserve(n * rounds);
    graph.setEf(ef);
    auto start = clock_type::now();
    for (size_t i = 0; i < n * rounds; i++) {
        auto before = clock_type::now();
        auto hits = graph.searchKnn(queries.data() + i % n * dim, K);
        us.push_back(seconds_since(before) * 1e6);
        for (size_t j = hits.size(); i < n && j-- > 0; hits.pop())
            found[i * K + j] = (uint32_t)hits.top().second;
    }
    double seconds = seconds_since(start);
    std::sort(us.begin(), us.end());
    FILE *f = fopen(out.c_str(), "wb");
    if (!f || fwrite(found.data(), sizeof found[0], found.size(), f) != found.size() ||
        fclose(f) != 0)
        die("cannot write " + out);
    printf("{\"queries\": %zu, \"seconds\": %.6f, \"rate\": %.2f, \"p50_us\": %.2f, "
           "\"p99_us\": %.2f}\n",
           us.size(), seconds, (double)us.size() / seconds, us[us.size() / 2],
           us[us.size() * 99 / 100]);
}

int main(int argc, char **argv)
{
    if (argc != 7)
        die("usage: peer-hnswlib BASE QUERIES DIM N M EF_CONSTRUCTION");
    size_t dim = strtoull(argv[3], nullptr, 10), n = strtoull(argv[4], nullptr, 10);
    size_t m = strtoull(argv[5], nullptr, 10), ef_construction = strtoull(argv[6], nullptr, 10);
    rows base(argv[1], dim), asked(argv[2], dim);
    if (base.n < n)
        die("too few rows");
    std::vector<float> queries(asked.n * dim);
    for (size_t i = 0; i < asked.n; i++)
        asked.unit(i, queries.data() + i * dim);
    hnswlib::InnerProductSpace space(dim);
    hnswlib::HierarchicalNSW<float> graph(&space, n, m, ef_construction);
    for (std::string word; std::cin >> word; fflush(stdout)) {
        if (word == "build") {
            build(graph, base, n);
        } else if (word == "search") {
            size_t ef, rounds;
            std::string out;
            if (!(std::cin >> ef >> rounds >> out))
                die("search EF ROUNDS OUT");
            search(graph, queries, dim, ef, rounds, out);
        } else {
            die("unknown command " + word);
        }
    }
    return 0;
}
