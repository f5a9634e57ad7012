/* kith-quantize: a GGUF model file of floats to one of smaller weights.
 *
 * Tensors keep their order, names and shapes; quantize_types.h says which type each becomes.
 * All metadata is copied byte for byte but general.file_type and general.quantization_version,
 * which say what was made. A row of a tensor depends on nothing but its own values, so rows are
 * shared among threads and the same input still gives the same bytes.
 *
 * The file is written below a temporary name and renamed at the end: a reader never sees half a
 * model. Memory is bounded by the rows under way, not by the model. */

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/program.h"
#include "engine/gguf.h"
#include "engine/pool.h"
#include "tools/gguf_write.h"
#include "tools/quantize_types.h"

enum { PATH_BYTES = 4096, CHUNK_BYTES = 8 << 20, ROWS_PER_PART = 16, THREADS_MAX = 256 };

/* The largest finite half; scales are halves. */
static const float half_max = 65504.0f;

static const char help[] =
    "usage: kith-quantize IN.gguf OUT.gguf --type TYPE [--requantize] [--threads N]\n"
    "\n"
    "Makes the matrices of a GGUF model smaller. IN holds F32, F16 or BF16 weights.\n"
    "\n"
    "  --type TYPE    one type for all matrices:\n"
    "                   q8_0 q6_k q5_1 q5_0 q5_k q4_1 q4_0 q4_k iq4_nl f16 bf16 f32\n"
    "                 or a mix of them, as llama.cpp names it:\n"
    "                   q5_k_m q4_k_m q4_k_s\n"
    "  --requantize   take an IN that is quantized already, whose loss then adds up\n"
    "  --threads N    default: one a processor\n"
    "  --version, --help\n"
    "\n"
    "Vectors, norms, biases, position and token type embeddings become F32. A row that\n"
    "is no multiple of 256 cannot be of a K type: Q4_K becomes Q5_0 there, Q5_K Q5_1 and\n"
    "Q6_K Q8_0. The same input gives the same bytes.\n";

struct options {
    const char *in, *out;
    const struct quantize_recipe *recipe;
    bool requantize;
    unsigned n_threads;
};

/* One tensor to write. */
struct part {
    const struct tensor *from;
    enum tensor_type type;
    uint64_t offset, n_rows; /* offset: in the data section */
    size_t bytes, row_bytes;
    double error; /* square root of sum (x - y)^2 / sum x^2 */
};

/* --- what is written --- */

static bool is_file_key(struct slice name, const char *key)
{
    return name.n == strlen(key) && memcmp(name.p, key, name.n) == 0;
}

static void copy_keys(struct gguf_write *w, const struct gguf *g, uint32_t file_type)
{
    const struct {
        const char *key;
        uint32_t value;
    } ours[] = {{"general.file_type", file_type}, {"general.quantization_version", 2}};
    enum { N_OURS = sizeof ours / sizeof *ours };
    for (size_t i = 0; i < gguf_n_keys(g); i++) {
        struct slice name, record;
        int o = 0;
        gguf_key_at(g, i, &name, &record);
        while (o < N_OURS && !is_file_key(name, ours[o].key))
            o++;
        if (o < N_OURS)
            gguf_write_u32(w, ours[o].key, ours[o].value);
        else
            gguf_write_record(w, record.p, record.n);
    }
    for (int o = 0; o < N_OURS; o++)
        if (!gguf_has(g, ours[o].key))
            gguf_write_u32(w, ours[o].key, ours[o].value);
}

static struct quantize_model model_of(const struct gguf *g)
{
    struct quantize_model m = {.has_output = gguf_tensor(g, "output.weight") != NULL};
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const char *what;
        int64_t layer = quantize_layer_of(gguf_tensor_at(g, i)->name, &what);
        if (layer >= m.n_layers)
            m.n_layers = (uint32_t)layer + 1;
    }
    return m;
}

static int plan(struct part *parts, struct gguf_write *w, const struct gguf *g,
                const struct options *o, struct err *e)
{
    const struct quantize_model m = model_of(g);
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct tensor *t = gguf_tensor_at(g, i);
        if (tensor_block_elements(t->type) > 1 && !o->requantize)
            return err_set(e, KITH_EINVAL,
                           "tensor '%s' is %s already: quantize a file of F32, F16 or BF16 "
                           "weights, or give --requantize and lose twice",
                           t->name, tensor_type_name(t->type));
        struct part *p = &parts[i];
        p->from = t;
        p->type = quantize_type_of(o->recipe, &m, t);
        p->offset = w->data_bytes;
        int rc = gguf_write_tensor_shaped(w, t->name, p->type, t->n_dims, t->ne, &p->bytes, e);
        if (!rc)
            rc = tensor_row_bytes(p->type, t->ne[0], &p->row_bytes, e);
        if (rc)
            return rc;
        p->n_rows = t->ne[1] * t->ne[2] * t->ne[3];
    }
    return 0;
}

/* --- rows --- */

/* Some rows of one tensor, shared among the pool's threads. */
struct chunk {
    const struct part *part;
    uint64_t first, n_rows;
    unsigned char *out;
    float *scratch; /* two rows a thread */
    struct outcome {
        double squares, errors;
        const char *refused; /* why a value cannot be written, or NULL */
    } * outcomes;            /* one a part of the chunk: summed in order, whoever made it */
};

static const char *refuse(const float *x, size_t n, enum tensor_type type)
{
    bool halves = type != TENSOR_F32 && type != TENSOR_BF16;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            return "a value that is not finite";
        if (halves && fabsf(x[i]) > half_max)
            return "a value above 65504, which this type cannot scale to";
    }
    return NULL;
}

static void quantize_rows(void *arg, uint32_t index, unsigned thread)
{
    struct chunk *c = arg;
    const struct part *p = c->part;
    const struct block_type *type = block_type(p->type);
    size_t n = (size_t)p->from->ne[0];
    float *x = c->scratch + 2 * n * thread, *y = x + n;
    struct outcome *outcome = &c->outcomes[index];
    *outcome = (struct outcome){0};
    uint64_t to = (uint64_t)(index + 1) * ROWS_PER_PART;
    for (uint64_t r = (uint64_t)index * ROWS_PER_PART; r < to && r < c->n_rows; r++) {
        unsigned char *out = c->out + r * p->row_bytes;
        tensor_row_f32(p->from, c->first + r, x);
        outcome->refused = refuse(x, n, p->type);
        if (outcome->refused)
            return;
        type->encode(x, n / type->elements, out);
        type->decode(out, n / type->elements, y);
        for (size_t i = 0; i < n; i++) {
            double error = (double)x[i] - (double)y[i];
            outcome->squares += (double)x[i] * (double)x[i];
            outcome->errors += error * error;
        }
    }
}

static int write_tensor(struct part *p, struct pool *pool, int fd, uint64_t at, struct err *e)
{
    uint64_t n = CHUNK_BYTES / p->row_bytes + 1;
    n = n > p->n_rows ? p->n_rows : n;
    uint32_t n_outcomes = (uint32_t)((n + ROWS_PER_PART - 1) / ROWS_PER_PART);
    struct chunk c = {.part = p};
    c.out = mem_alloc_n((size_t)n, p->row_bytes);
    c.scratch = mem_alloc_n((size_t)p->from->ne[0], 2 * pool_threads(pool) * sizeof(float));
    c.outcomes = mem_calloc(n_outcomes, sizeof *c.outcomes);
    int rc = c.out && c.scratch && c.outcomes
                 ? 0
                 : err_set(e, KITH_ENOMEM, "out of memory for tensor '%s'", p->from->name);
    double squares = 0, errors = 0;
    for (; !rc && c.first < p->n_rows; c.first += c.n_rows) {
        c.n_rows = p->n_rows - c.first < n ? p->n_rows - c.first : n;
        uint32_t n_parts = (uint32_t)((c.n_rows + ROWS_PER_PART - 1) / ROWS_PER_PART);
        pool_run(pool, n_parts, quantize_rows, &c);
        for (uint32_t i = 0; i < n_parts && !rc; i++) {
            squares += c.outcomes[i].squares;
            errors += c.outcomes[i].errors;
            if (c.outcomes[i].refused)
                rc = err_set(e, KITH_EFORMAT, "tensor '%s' holds %s", p->from->name,
                             c.outcomes[i].refused);
        }
        if (!rc)
            rc = file_pwrite_all(fd, c.out, (size_t)c.n_rows * p->row_bytes,
                                 at + c.first * p->row_bytes, e);
    }
    p->error = squares > 0 ? sqrt(errors / squares) : 0;
    mem_free(c.out);
    mem_free(c.scratch);
    mem_free(c.outcomes);
    return rc;
}

static void show_progress(uint64_t done, uint64_t of)
{
    enum { WIDTH = 40 };
    static const char bar[] = "########################################";
    double share = of ? (double)done / (double)of : 1;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r[%-*.*s] %3.0f%%%s", WIDTH, (int)(WIDTH * share), bar, 100 * share,
                done == of ? "\n" : "");
}

/* --- the file --- */

static int write_data(int fd, uint64_t start, uint64_t data_bytes, struct part *parts, size_t n,
                      unsigned n_threads, struct err *e)
{
    struct pool *pool = NULL;
    int rc = pool_new(&pool, n_threads, e);
    for (size_t i = 0; i < n && !rc; i++) {
        rc = write_tensor(&parts[i], pool, fd, start + parts[i].offset, e);
        if (!rc)
            show_progress(i + 1, n);
    }
    /* What lies between tensors, and after the last, was never written: it reads as zeros. */
    if (!rc && ftruncate(fd, (off_t)(start + data_bytes)) != 0)
        rc = err_set_errno(e, errno, "cannot set the length of the file");
    pool_free(pool);
    return rc;
}

static int write_file(const struct options *o, struct gguf_write *w, struct part *parts,
                      size_t n, struct err *e)
{
    char temporary[PATH_BYTES];
    if (snprintf(temporary, sizeof temporary, "%s.tmp-%d", o->out, (int)getpid()) >= PATH_BYTES)
        return err_set(e, KITH_EINVAL, "path too long: %s", o->out);
    struct buf head;
    buf_init(&head);
    int rc = gguf_write_finish(w, &head, e), fd = -1;
    if (!rc && (fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) < 0)
        rc = err_set_errno(e, errno, "cannot create %s", temporary);
    if (!rc)
        rc = file_pwrite_all(fd, head.data, head.len, 0, e);
    if (!rc)
        rc = write_data(fd, head.len, w->data_bytes, parts, n, o->n_threads, e);
    if (!rc && fdatasync(fd) != 0)
        rc = err_set_errno(e, errno, "cannot sync %s", temporary);
    if (fd >= 0)
        close(fd);
    if (!rc && rename(temporary, o->out) != 0)
        rc = err_set_errno(e, errno, "cannot rename %s to %s", temporary, o->out);
    if (rc && fd >= 0)
        unlink(temporary);
    buf_deinit(&head);
    return rc;
}

/* --- the table --- */

struct sum {
    uint64_t n, elements, before, after;
    double errors, worst;
};

static void print_row(const char *name, const struct sum *s)
{
    printf("%-7s %8llu %15llu %15llu %13.3f %11.5f %11.5f\n", name, (unsigned long long)s->n,
           (unsigned long long)s->before, (unsigned long long)s->after,
           8.0 * (double)s->after / (double)s->elements, s->errors / (double)s->n, s->worst);
}

static void add_part(struct sum *s, const struct part *p)
{
    s->n++;
    s->elements += p->from->ne[0] * p->n_rows;
    s->before += p->from->bytes;
    s->after += p->bytes;
    s->errors += p->error;
    s->worst = p->error > s->worst ? p->error : s->worst;
}

/* The error of a tensor is that of its values, relative to their own root mean square. */
static void print_table(const struct part *parts, size_t n)
{
    enum tensor_type type;
    struct sum all = {0};
    printf("%-7s %8s %15s %15s %13s %11s %11s\n", "type", "tensors", "bytes before",
           "bytes after", "bits a weight", "mean error", "worst error");
    for (size_t i = 0; block_type_at(i, &type); i++) {
        struct sum s = {0};
        for (size_t p = 0; p < n; p++)
            if (parts[p].type == type) {
                add_part(&s, &parts[p]);
                add_part(&all, &parts[p]);
            }
        if (s.n)
            print_row(tensor_type_name(type), &s);
    }
    if (all.n)
        print_row("all", &all);
}

/* --- the command line --- */

/* Under whatever names: IN is mapped while OUT is written, and a rename would lose it. */
static int refuse_same_file(const struct options *o, struct err *e)
{
    struct stat in, out;
    if (stat(o->in, &in) == 0 && stat(o->out, &out) == 0 && in.st_dev == out.st_dev &&
        in.st_ino == out.st_ino)
        return err_set(e, KITH_EINVAL, "IN and OUT are the same file, %s", o->in);
    return 0;
}

static int quantize(const struct options *o, struct err *e)
{
    struct gguf *g;
    int rc = refuse_same_file(o, e);
    if (!rc)
        rc = gguf_open(&g, o->in, e);
    if (rc)
        return rc;
    size_t n = gguf_n_tensors(g);
    struct part *parts = mem_calloc(n + 1, sizeof *parts);
    struct gguf_write w;
    gguf_write_init(&w);
    w.alignment = gguf_alignment(g);
    copy_keys(&w, g, o->recipe->file_type);
    rc = parts ? plan(parts, &w, g, o, e)
               : err_set(e, KITH_ENOMEM, "out of memory for %zu tensors", n);
    if (!rc)
        rc = write_file(o, &w, parts, n, e);
    if (!rc)
        print_table(parts, n);
    gguf_write_deinit(&w);
    mem_free(parts);
    gguf_close(g);
    return rc;
}

static int parse_threads(const char *text, unsigned *n, struct err *e)
{
    char *end = NULL;
    unsigned long v = text && *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : 0;
    if (v < 1 || v > THREADS_MAX || *end)
        return err_set(e, KITH_EINVAL, "--threads takes a number from 1 to %d", THREADS_MAX);
    *n = (unsigned)v;
    return 0;
}

static int parse_options(struct options *o, int argc, char **argv, struct err *e)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    *o = (struct options){.n_threads = processors < 1             ? 1
                                       : processors > THREADS_MAX ? THREADS_MAX
                                                                  : (unsigned)processors};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(a, "--type") == 0) {
            if (!value || !(o->recipe = quantize_recipe_find(value)))
                return err_set(e, KITH_EINVAL,
                               "--type is '%s'; f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, "
                               "q4_k, q5_k, q6_k, iq4_nl, q4_k_s, q4_k_m or q5_k_m is possible",
                               value ? value : "");
            i++;
        } else if (strcmp(a, "--threads") == 0) {
            int rc = parse_threads(value, &o->n_threads, e);
            if (rc)
                return rc;
            i++;
        } else if (strcmp(a, "--requantize") == 0) {
            o->requantize = true;
        } else if (a[0] == '-') {
            return err_set(e, KITH_EINVAL, "unknown option '%s'", a);
        } else if (!o->in) {
            o->in = a;
        } else if (!o->out) {
            o->out = a;
        } else {
            return err_set(e, KITH_EINVAL, "'%s' is one path too many", a);
        }
    }
    if (!o->out)
        return err_set(e, KITH_EINVAL, "a model file and an output file are needed");
    return o->recipe ? 0 : err_set(e, KITH_EINVAL, "--type is needed");
}

int main(int argc, char **argv)
{
    if (program_answers(argc, argv, "kith-quantize", help))
        return 0;
    struct options o;
    struct err e = {0};
    if (parse_options(&o, argc, argv, &e)) {
        fprintf(stderr, "kith-quantize: %s (see --help)\n", e.message);
        return 2;
    }
    if (quantize(&o, &e)) {
        fprintf(stderr, "kith-quantize: %s\n", e.message);
        return 1;
    }
    return 0;
}
