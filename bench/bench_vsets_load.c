/* bench-vsets-load: puts vectors into a vector set over TCP, asks for the nearest of others,
 * and is never what is waited for. It speaks to kith and to Redis alike.
 *
 * Vectors are rows of little-endian f32 in a file that is mapped; element e<i> has row i. All
 * of a search's requests are encoded before the clock starts, and each connection has a thread
 * that sends one, waits for its reply, and sends the next: what is measured is what a client
 * sees. Writes keep a number of commands in flight on each connection.
 *
 * The result is one line of JSON on standard output. Progress goes to a terminal on standard
 * error once a phase has taken a second. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <hiredis/hiredis.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

enum { MAX_CONNECTIONS = 256, MAX_EXTRA = 32, MARK = 512, READ_BYTES = 1 << 16 };
enum { SEND_BYTES = 1 << 18 };

enum mode { MODE_SEARCH, MODE_ADD, MODE_REMOVE, MODE_ATTRIBUTES, MODES };

static const char *const mode_names[] = {"search", "add", "remove", "attributes"};
static const char *const mode_commands[] = {"VSIM", "VADD", "VREM", "VSETATTR"};

struct options {
    enum mode mode;
    const char *host, *key, *vectors, *ids, *attributes, *out, *curve, *note;
    int port;
    uint32_t dim, count, ef, connections, rounds, pipeline, n_extra;
    uint64_t first, n;
    bool linked;
    const char *extra[MAX_EXTRA];
};

struct request {
    char *bytes;
    size_t n;
};

/* What the threads share. `next` is the next request to take, `done` how many were answered. */
struct run {
    const struct options *o;
    const float *vectors;
    const uint32_t *ids; /* NULL: first, first + 1, ... */
    struct {
        const char **line;
        size_t n;
    } attributes;
    struct request *requests; /* a search's, one a query */
    uint64_t n_queries, total;
    _Atomic uint64_t next, done, n_short;
    float *us;       /* total: microseconds of each search */
    uint32_t *found; /* n_queries x count, the first answer to each query */
    int64_t *marks;  /* when each MARK-th write was acknowledged */
    int64_t start_ns;
};

static void die(const char *what, const char *more)
{
    fprintf(stderr, "bench-vsets-load: %s%s%s\n", what, more ? ": " : "", more ? more : "");
    exit(1);
}

static void *need(void *p)
{
    if (!p)
        die("out of memory", NULL);
    return p;
}

/* --- a connection
 * ------------------------------------------------------------------------------- */

struct wire {
    redisContext *context;
    char buffer[READ_BYTES];
};

static struct wire *wire_open(const struct options *o)
{
    struct wire *w = need(mem_alloc(sizeof *w));
    int one = 1;
    w->context = redisConnect(o->host, o->port);
    if (!w->context || w->context->err)
        die("cannot connect", w->context ? w->context->errstr : NULL);
    if (setsockopt(w->context->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die("TCP_NODELAY", strerror(errno));
    return w;
}

static void wire_close(struct wire *w)
{
    redisFree(w->context);
    mem_free(w);
}

static void wire_send(struct wire *w, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(w->context->fd, p, n, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            die("send", strerror(errno));
        if (sent > 0) {
            p += sent;
            n -= (size_t)sent;
        }
    }
}

/* The next reply, which the caller frees. An error reply ends the program. */
static redisReply *wire_reply(struct wire *w)
{
    for (;;) {
        void *reply = NULL;
        if (redisReaderGetReply(w->context->reader, &reply) != REDIS_OK)
            die("not a reply", w->context->reader->errstr);
        redisReply *r = reply;
        if (r && r->type == REDIS_REPLY_ERROR)
            die("the server refuses", r->str);
        if (r)
            return r;
        ssize_t n = recv(w->context->fd, w->buffer, sizeof w->buffer, 0);
        if (n == 0)
            die("the server closed the connection", NULL);
        if (n > 0)
            redisReaderFeed(w->context->reader, w->buffer, (size_t)n);
        else if (errno != EINTR)
            die("recv", strerror(errno));
    }
}

/* --- searches
 * ----------------------------------------------------------------------------------- */

static struct request encode_search(const struct options *o, const float *vector)
{
    const char *argv[10 + MAX_EXTRA] = {"VSIM", o->key, "FP32", (const char *)vector, "COUNT"};
    size_t lengths[10 + MAX_EXTRA];
    char count[16], ef[16];
    int argc = 6;
    snprintf(count, sizeof count, "%u", o->count);
    snprintf(ef, sizeof ef, "%u", o->ef);
    argv[5] = count;
    if (o->ef) {
        argv[argc++] = "EF";
        argv[argc++] = ef;
    }
    for (uint32_t i = 0; i < o->n_extra; i++)
        argv[argc++] = o->extra[i];
    for (int i = 0; i < argc; i++)
        lengths[i] = i == 3 ? o->dim * sizeof *vector : strlen(argv[i]);
    struct request r;
    int n = redisFormatCommandArgv(&r.bytes, argc, argv, lengths);
    if (n < 0)
        die("out of memory", NULL);
    r.n = (size_t)n;
    return r;
}

static void keep_found(struct run *run, uint64_t query, const redisReply *r)
{
    uint32_t *row = run->found + query * run->o->count;
    for (size_t i = 0; i < run->o->count; i++) {
        const redisReply *name = i < r->elements ? r->element[i] : NULL;
        row[i] = name && name->type == REDIS_REPLY_STRING && name->str[0] == 'e'
                     ? (uint32_t)strtoul(name->str + 1, NULL, 10)
                     : UINT32_MAX;
    }
}

static void *search_thread(void *arg)
{
    struct run *run = arg;
    struct wire *w = wire_open(run->o);
    for (;;) {
        uint64_t i = atomic_fetch_add(&run->next, 1);
        int64_t start = clock_mono_ns();
        if (i >= run->total)
            break;
        const struct request *request = &run->requests[i % run->n_queries];
        wire_send(w, request->bytes, request->n);
        redisReply *r = wire_reply(w);
        run->us[i] = (float)(clock_mono_ns() - start) / 1e3f;
        if (r->type != REDIS_REPLY_ARRAY)
            die("VSIM did not answer with an array", NULL);
        if (i < run->n_queries) {
            keep_found(run, i, r);
            run->n_short += r->elements < run->o->count;
        }
        freeReplyObject(r);
        atomic_fetch_add(&run->done, 1);
    }
    wire_close(w);
    return NULL;
}

/* --- writes
 * ------------------------------------------------------------------------------------- */

struct out {
    char *p;
    size_t n, room;
};

static void out_bytes(struct out *out, const void *p, size_t n)
{
    if (out->n + n > out->room) {
        out->room = 2 * (out->n + n);
        out->p = need(mem_realloc(out->p, out->room));
    }
    memcpy(out->p + out->n, p, n);
    out->n += n;
}

static void out_word(struct out *out, const void *p, size_t n)
{
    char head[32];
    out_bytes(out, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", n));
    out_bytes(out, p, n);
    out_bytes(out, "\r\n", 2);
}

static void out_text(struct out *out, const char *text)
{
    out_word(out, text, strlen(text));
}

static void out_attributes(struct out *out, const struct run *run, uint64_t id)
{
    if (id >= run->attributes.n)
        die("too few lines in", run->o->attributes);
    const char *line = run->attributes.line[id];
    out_word(out, line, strcspn(line, "\n"));
}

static void encode_write(struct out *out, const struct run *run, uint64_t i)
{
    const struct options *o = run->o;
    uint64_t id = run->ids ? run->ids[i] : o->first + i;
    bool add = o->mode == MODE_ADD, json = run->attributes.line;
    unsigned argc = add ? 5 + o->n_extra + (json ? 2 : 0) : json ? 4 : 3;
    char name[24], head[24];
    int name_n = snprintf(name, sizeof name, "e%llu", (unsigned long long)id);
    out_bytes(out, head, (size_t)snprintf(head, sizeof head, "*%u\r\n", argc));
    out_text(out, mode_commands[o->mode]);
    out_text(out, o->key);
    if (add) {
        out_text(out, "FP32");
        out_word(out, run->vectors + id * o->dim, o->dim * sizeof(float));
    }
    out_word(out, name, (size_t)name_n);
    for (uint32_t j = 0; add && j < o->n_extra; j++)
        out_text(out, o->extra[j]);
    if (add && json)
        out_text(out, "SETATTR");
    if (json)
        out_attributes(out, run, id);
}

static void acknowledged(struct run *run, struct wire *w)
{
    redisReply *r = wire_reply(w);
    if (r->type != REDIS_REPLY_INTEGER || r->integer != 1)
        die("a write changed nothing", NULL);
    freeReplyObject(r);
    uint64_t done = atomic_fetch_add(&run->done, 1) + 1;
    if (done % MARK == 0)
        run->marks[done / MARK] = clock_mono_ns();
}

static void *write_thread(void *arg)
{
    struct run *run = arg;
    struct wire *w = wire_open(run->o);
    struct out out = {0};
    uint32_t flying = 0;
    bool more = true;
    while (more || flying > 0) {
        while (more && flying < run->o->pipeline) {
            uint64_t i = atomic_fetch_add(&run->next, 1);
            if (i >= run->total) {
                more = false;
                break;
            }
            encode_write(&out, run, i);
            flying++;
            if (out.n > SEND_BYTES) {
                wire_send(w, out.p, out.n);
                out.n = 0;
            }
        }
        wire_send(w, out.p, out.n);
        out.n = 0;
        for (uint32_t least = more ? run->o->pipeline / 2 : 0; flying > least; flying--)
            acknowledged(run, w);
    }
    mem_free(out.p);
    wire_close(w);
    return NULL;
}

/* --- running
 * ------------------------------------------------------------------------------------ */

static void show(const struct run *run, const char *what, uint64_t done, uint64_t total)
{
    static const char full[] = "########################################";
    double seconds = (double)(clock_mono_ns() - run->start_ns) / 1e9;
    double part = total ? (double)done / (double)total : 1;
    if (seconds < 1 || !isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r  %-24s [%-40.*s] %3.0f %% %8.0f/s %4.0f s\033[K", what,
            (int)(40 * part), full, 100 * part, (double)done / seconds, seconds);
}

static void hide(void)
{
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
}

/* Runs `body` on every connection; returns the seconds from connecting to the last
 * reply. */
static double run_threads(struct run *run, void *(*body)(void *))
{
    pthread_t threads[MAX_CONNECTIONS];
    run->next = run->done = run->n_short = 0;
    run->start_ns = clock_mono_ns();
    for (uint32_t i = 0; i < run->o->connections; i++)
        if (pthread_create(&threads[i], NULL, body, run) != 0)
            die("cannot start a thread", NULL);
    for (uint32_t i = 0; i < run->o->connections; i++) {
        struct timespec until;
        do {
            show(run, run->o->note, run->done, run->total);
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 250000000;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
        } while (pthread_timedjoin_np(threads[i], NULL, &until) != 0);
    }
    hide();
    return (double)(clock_mono_ns() - run->start_ns) / 1e9;
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void write_file(const char *path, const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0)
        die("cannot write", path);
}

static void search(struct run *run)
{
    const struct options *o = run->o;
    run->n_queries = o->n;
    run->requests = need(mem_alloc_n(o->n, sizeof *run->requests));
    for (uint64_t i = 0; i < o->n; i++)
        run->requests[i] = encode_search(o, run->vectors + (o->first + i) * o->dim);
    run->us = need(mem_alloc_n(o->n * o->rounds, sizeof *run->us));
    run->found = need(mem_alloc_n(o->n * o->count, sizeof *run->found));
    memset(run->found, 0xff, o->n * o->count * sizeof *run->found);
    run->total = o->n * o->rounds;
    double seconds = run_threads(run, search_thread);
    uint64_t n = run->done;
    qsort(run->us, n, sizeof *run->us, compare_floats);
    printf("{\"queries\": %llu, \"seconds\": %.6f, \"rate\": %.2f, \"p50_us\": %.2f, "
           "\"p99_us\": %.2f, \"short\": %llu}\n",
           (unsigned long long)n, seconds, (double)n / seconds, (double)run->us[n / 2],
           (double)run->us[n * 99 / 100], (unsigned long long)run->n_short);
    if (o->out)
        write_file(o->out, run->found, o->n * o->count * sizeof *run->found);
    for (uint64_t i = 0; i < o->n; i++)
        redisFreeCommand(run->requests[i].bytes);
    mem_free(run->requests);
    mem_free(run->us);
    mem_free(run->found);
}

/* What VINFO says under a name; 0 where it has no such field, as Redis' has none. */
static uint64_t info_field(const redisReply *info, const char *field)
{
    for (size_t i = 0; i + 1 < info->elements; i += 2)
        if (info->element[i]->str && strcmp(info->element[i]->str, field) == 0)
            return (uint64_t)info->element[i + 1]->integer;
    return 0;
}

/* Until every vector is in the graph and every removed one out of it. */
static void wait_linked(struct run *run)
{
    struct wire *w = wire_open(run->o);
    struct out out = {0};
    out_bytes(&out, "*2\r\n", 4);
    out_text(&out, "VINFO");
    out_text(&out, run->o->key);
    for (uint64_t left = 1, most = 0; left > 0;) {
        wire_send(w, out.p, out.n);
        redisReply *r = wire_reply(w);
        left = info_field(r, "unlinked") + info_field(r, "removing");
        freeReplyObject(r);
        most = left > most ? left : most;
        show(run, "linking", most - left, most);
        if (left > 0)
            clock_sleep_us(10000);
    }
    hide();
    mem_free(out.p);
    wire_close(w);
}

static void write_curve(const struct run *run, const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f)
        die("cannot write", path);
    fputs("acknowledged,seconds\n", f);
    for (uint64_t i = 1; i <= run->total / MARK; i++)
        fprintf(f, "%llu,%.6f\n", (unsigned long long)(i * MARK),
                (double)(run->marks[i] - run->start_ns) / 1e9);
    if (fclose(f) != 0)
        die("cannot write", path);
}

static void load(struct run *run)
{
    const struct options *o = run->o;
    run->total = o->n;
    run->marks = need(mem_calloc(o->n / MARK + 1, sizeof *run->marks));
    double seconds = run_threads(run, write_thread), linked = seconds;
    if (o->linked) {
        wait_linked(run);
        linked = (double)(clock_mono_ns() - run->start_ns) / 1e9;
    }
    printf("{\"n\": %llu, \"acknowledged_s\": %.6f, \"linked_s\": %.6f}\n",
           (unsigned long long)o->n, seconds, linked);
    if (o->curve)
        write_curve(run, o->curve);
    mem_free(run->marks);
}

/* --- the command line
 * --------------------------------------------------------------------------- */

static const void *map_file(const char *path, size_t *bytes)
{
    struct stat s;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &s) != 0 || s.st_size == 0)
        die("cannot read", path);
    void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        die("cannot map", path);
    close(fd);
    *bytes = (size_t)s.st_size;
    return p;
}

static void read_lines(struct run *run, const char *path)
{
    size_t bytes, at = 0, n = 0;
    const char *text = map_file(path, &bytes);
    if (text[bytes - 1] != '\n')
        die("the last line has no end in", path);
    for (size_t i = 0; i < bytes; i++)
        at += text[i] == '\n';
    run->attributes.line = need(mem_alloc_n(at, sizeof *run->attributes.line));
    for (const char *p = text; p < text + bytes; p = strchr(p, '\n') + 1)
        run->attributes.line[n++] = p;
    run->attributes.n = n;
}

static void usage(void)
{
    puts("bench-vsets-load search|add|remove|attributes --port P --key K --vectors FILE --dim "
         "D\n"
         "   all     [--host H] [--first ROW] [--n ROWS] [--connections C] [--extra WORD]...\n"
         "           [--note TEXT]\n"
         "   search  [--count 10] [--ef N] [--rounds R]\n"
         "           [--out FILE: u32, rows x count]\n"
         "   add     [--pipeline 256] [--ids FILE: u32] [--attributes FILE: JSON a line]\n"
         "           [--linked] [--curve FILE]\n"
         "   remove  [--pipeline 256] [--ids FILE] [--linked]\n"
         "   attributes  --attributes FILE [--pipeline 256] [--ids FILE]");
}

static const struct option option_table[] = {
    {"host", 1, 0, 'h'},    {"port", 1, 0, 'p'},        {"key", 1, 0, 'k'},
    {"vectors", 1, 0, 'v'}, {"dim", 1, 0, 'd'},         {"first", 1, 0, 'f'},
    {"n", 1, 0, 'n'},       {"count", 1, 0, 'c'},       {"ef", 1, 0, 'e'},
    {"rounds", 1, 0, 'r'},  {"connections", 1, 0, 'C'}, {"out", 1, 0, 'o'},
    {"extra", 1, 0, 'x'},   {"ids", 1, 0, 'i'},         {"attributes", 1, 0, 'a'},
    {"linked", 0, 0, 'l'},  {"curve", 1, 0, 'u'},       {"pipeline", 1, 0, 'P'},
    {"note", 1, 0, 'N'},    {"help", 0, 0, '?'},        {0, 0, 0, 0}};

static void parse_text(struct options *o, int c, const char *text)
{
    switch (c) {
    case 'h':
        o->host = text;
        break;
    case 'k':
        o->key = text;
        break;
    case 'v':
        o->vectors = text;
        break;
    case 'o':
        o->out = text;
        break;
    case 'i':
        o->ids = text;
        break;
    case 'a':
        o->attributes = text;
        break;
    case 'u':
        o->curve = text;
        break;
    case 'N':
        o->note = text;
        break;
    case 'x':
        if (o->n_extra == MAX_EXTRA)
            die("too many --extra", NULL);
        o->extra[o->n_extra++] = text;
        break;
    case 'l':
        o->linked = true;
        break;
    default:
        usage();
        exit(2);
    }
}

static void parse(int argc, char **argv, struct options *o)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        usage();
        exit(argc < 2 ? 2 : 0);
    }
    o->mode = MODES;
    for (unsigned i = 0; i < MODES; i++)
        if (strcmp(argv[1], mode_names[i]) == 0)
            o->mode = i;
    o->note = argv[1];
    for (int c; (c = getopt_long(argc - 1, argv + 1, "", option_table, NULL)) != -1;) {
        uint64_t number = optarg ? strtoull(optarg, NULL, 10) : 0;
        uint32_t *small = c == 'd'   ? &o->dim
                          : c == 'c' ? &o->count
                          : c == 'e' ? &o->ef
                          : c == 'r' ? &o->rounds
                          : c == 'C' ? &o->connections
                          : c == 'P' ? &o->pipeline
                                     : NULL;
        if (small)
            *small = (uint32_t)number;
        else if (c == 'f')
            o->first = number;
        else if (c == 'n')
            o->n = number;
        else if (c == 'p')
            o->port = (int)number;
        else
            parse_text(o, c, optarg);
    }
    if (o->mode == MODES || !o->port || !o->key || !o->vectors || !o->dim ||
        (o->mode == MODE_ATTRIBUTES && !o->attributes) || !o->connections ||
        o->connections > MAX_CONNECTIONS || !o->pipeline || !o->rounds) {
        usage();
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct options o = {
        .host = "127.0.0.1", .count = 10, .connections = 1, .rounds = 1, .pipeline = 256};
    parse(argc, argv, &o);
    size_t bytes, id_bytes = 0;
    struct run run = {.o = &o};
    run.vectors = map_file(o.vectors, &bytes);
    uint64_t rows = bytes / (o.dim * sizeof(float));
    if (o.ids) {
        run.ids = map_file(o.ids, &id_bytes);
        o.n = id_bytes / sizeof *run.ids;
        for (uint64_t i = 0; i < o.n; i++)
            if (run.ids[i] >= rows)
                die("an id is past the end of", o.vectors);
    } else if (!o.n && o.first < rows) {
        o.n = rows - o.first;
    }
    if (!o.n || (!o.ids && (o.first >= rows || o.n > rows - o.first)))
        die("too few rows in", o.vectors);
    if (o.attributes && o.mode != MODE_REMOVE)
        read_lines(&run, o.attributes);
    if (o.mode == MODE_SEARCH)
        search(&run);
    else
        load(&run);
    return 0;
}
