/* kith-convert: a Hugging Face folder of an embedding model or a reranker to one GGUF file.
 *
 * The file is written front to back below a temporary name and renamed at the end, so a reader
 * never sees half a model. Names, keys and the choice of types are those that llama.cpp's own
 * converter uses for the architectures (hf_keys.c, hf_tensors.c), so its programs load the file
 * too. Matrices take the asked type; norms, biases, positions, token types and a reranker's
 * head are few and stay F32. The same input gives the same bytes. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/program.h"
#include "engine/tensor.h"
#include "tools/gguf_write.h"
#include "tools/hf_keys.h"
#include "tools/hf_model.h"
#include "tools/hf_tensors.h"

enum { PATH_BYTES = 4096 };

static const char help[] =
    "usage: kith-convert MODEL_DIR OUT.gguf [--type f32|f16|q8_0] [--pooling P]\n"
    "                    [--name NAME]\n"
    "\n"
    "Converts a Hugging Face folder to a GGUF file that kith-engine and llama.cpp load:\n"
    "embedding models of BERT, RoBERTa, XLM-R, nomic-embed-text, jina-embeddings-v2,\n"
    "ModernBERT, EmbeddingGemma and Qwen3-Embedding, and rerankers of BERT, RoBERTa, XLM-R\n"
    "and Qwen3. It reads config.json, model.safetensors or its shards, tokenizer.json (for\n"
    "BERT also vocab.txt), and sentence-transformers' modules.json with what it names. What\n"
    "would give other vectors than the original is refused, with the reason.\n"
    "\n"
    "  --type TYPE   of the matrices: f32, f16 (default) or q8_0, which the engine\n"
    "                computes with 8-bit integers\n"
    "  --pooling P   mean, cls, last or rank (a reranker), where the folder does not say:\n"
    "                a folder of Qwen3-Reranker takes rank\n"
    "  --name NAME   the model's name in the file; default: the folder's\n"
    "  --help        this page\n"
    "\n"
    "The same input gives the same bytes.\n";

struct options {
    const char *dir, *out;
    char name[256];
    enum tensor_type type;
    enum hf_pooling pooling;
};

/* --- tensors --- */

static int convert_row(const struct hf_part *p, uint64_t row, float *values, unsigned char *out,
                       struct err *e)
{
    int rc = hf_part_row(p, row, values, e);
    if (rc)
        return rc;
    const struct block_type *type = block_type(p->type);
    type->encode(values, (size_t)p->ne0 / type->elements, out);
    return 0;
}

static void show_progress(size_t done, size_t of)
{
    enum { WIDTH = 40 };
    static const char bar[] = "########################################";
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r[%-*.*s] %3zu%%%s", WIDTH, (int)(WIDTH * done / of), bar,
                100 * done / of, done == of ? "\n" : "");
}

/* --- the file --- */

static int write_data(int fd, uint64_t at, const struct hf_part *parts, size_t n, struct err *e)
{
    struct buf data;
    buf_init(&data);
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        const struct hf_part *p = &parts[i];
        size_t padded = (size_t)gguf_write_align(p->bytes), row_bytes = p->bytes / p->ne1;
        float *values = mem_alloc_n((size_t)p->ne0, sizeof *values);
        data.len = 0;
        unsigned char *to = (unsigned char *)buf_reserve(&data, padded);
        if (!values || !to)
            rc = err_set(e, KITH_ENOMEM, "out of memory for tensor '%s'", p->name);
        for (size_t r = 0; r < p->ne1 && !rc; r++)
            rc = convert_row(p, r, values, to + r * row_bytes, e);
        if (!rc) {
            memset(to + p->bytes, 0, padded - p->bytes);
            rc = file_pwrite_all(fd, to, padded, at, e);
        }
        at += padded;
        mem_free(values);
        show_progress(i + 1, n);
    }
    buf_deinit(&data);
    return rc;
}

static int write_file(const struct options *o, struct gguf_write *w,
                      const struct hf_part *parts, size_t n, struct err *e)
{
    char temporary[PATH_BYTES];
    if (snprintf(temporary, sizeof temporary, "%s.tmp-%d", o->out, (int)getpid()) >= PATH_BYTES)
        return err_set(e, KITH_EINVAL, "path too long: %s", o->out);
    struct buf head;
    buf_init(&head);
    int rc = gguf_write_finish(w, &head, e);
    int fd = -1;
    if (!rc) {
        fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd < 0)
            rc = err_set_errno(e, errno, "cannot create %s", temporary);
    }
    if (!rc)
        rc = file_pwrite_all(fd, head.data, head.len, 0, e);
    if (!rc)
        rc = write_data(fd, head.len, parts, n, e);
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

static int write_model(const struct options *o, const struct hf_model *m,
                       const struct hf_weights *weights, struct err *e)
{
    struct hf_part *parts;
    size_t n;
    int rc = hf_parts_plan(&parts, &n, weights, m, o->type, e);
    if (rc)
        return rc;
    struct gguf_write w;
    gguf_write_init(&w);
    hf_keys_write(&w, m, o->name, o->type);
    for (size_t i = 0; i < n && !rc; i++)
        rc = gguf_write_tensor(&w, parts[i].name, parts[i].type, parts[i].n_dims, parts[i].ne0,
                               parts[i].ne1, &parts[i].bytes, e);
    if (!rc)
        rc = write_file(o, &w, parts, n, e);
    gguf_write_deinit(&w);
    mem_free(parts);
    return rc;
}

static void print_notes(const struct options *o, const struct hf_model *m)
{
    if (m->pooling == HF_POOLING_UNKNOWN)
        fprintf(stderr,
                "kith-convert: note: %s has no modules.json; the engine pools by mean\n",
                o->dir);
    else if (m->pooling != HF_POOLING_RANK && !m->normalize)
        fprintf(stderr, "kith-convert: note: the model has no Normalize step; the engine "
                        "normalises all vectors\n");
}

static int convert(const struct options *o, struct err *e)
{
    struct hf_model m;
    int rc = hf_model_open(&m, o->dir, o->pooling, e);
    if (rc)
        return rc;
    struct hf_weights weights;
    rc = hf_weights_open(&weights, &m, o->dir, e);
    if (!rc) {
        rc = write_model(o, &m, &weights, e);
        hf_weights_close(&weights);
    }
    if (!rc)
        print_notes(o, &m);
    hf_model_close(&m);
    return rc;
}

/* --- the command line --- */

static int parse_type(const char *text, enum tensor_type *type)
{
    if (strcmp(text, "f32") == 0)
        *type = TENSOR_F32;
    else if (strcmp(text, "f16") == 0)
        *type = TENSOR_F16;
    else if (strcmp(text, "q8_0") == 0)
        *type = TENSOR_Q8_0;
    else
        return KITH_EINVAL;
    return 0;
}

static int parse_pooling(const char *text, enum hf_pooling *pooling)
{
    static const char *const names[] = {"", "mean", "cls", "last", "rank"};
    for (int i = HF_POOLING_MEAN; i <= HF_POOLING_RANK; i++)
        if (strcmp(names[i], text) == 0) {
            *pooling = (enum hf_pooling)i;
            return 0;
        }
    return KITH_EINVAL;
}

/* The last part of the folder's path. */
static void default_name(struct options *o)
{
    size_t n = strlen(o->dir);
    while (n > 1 && o->dir[n - 1] == '/')
        n--;
    size_t from = n;
    while (from > 0 && o->dir[from - 1] != '/')
        from--;
    snprintf(o->name, sizeof o->name, "%.*s", (int)(n - from), o->dir + from);
}

static int parse_options(struct options *o, int argc, char **argv, struct err *e)
{
    memset(o, 0, sizeof *o);
    o->type = TENSOR_F16;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(a, "--type") == 0) {
            if (!value || parse_type(value, &o->type))
                return err_set(e, KITH_EINVAL, "--type takes f32, f16 or q8_0");
            i++;
        } else if (strcmp(a, "--pooling") == 0) {
            if (!value || parse_pooling(value, &o->pooling))
                return err_set(e, KITH_EINVAL, "--pooling takes mean, cls, last or rank");
            i++;
        } else if (strcmp(a, "--name") == 0) {
            if (!value || !*value)
                return err_set(e, KITH_EINVAL, "--name takes a name");
            snprintf(o->name, sizeof o->name, "%s", value);
            i++;
        } else if (a[0] == '-') {
            return err_set(e, KITH_EINVAL, "unknown option '%s'", a);
        } else if (!o->dir) {
            o->dir = a;
        } else if (!o->out) {
            o->out = a;
        } else {
            return err_set(e, KITH_EINVAL, "'%s' is one path too many", a);
        }
    }
    if (!o->out)
        return err_set(e, KITH_EINVAL, "a model folder and an output file are needed");
    if (!o->name[0])
        default_name(o);
    return 0;
}

int main(int argc, char **argv)
{
    if (program_answers(argc, argv, "kith-convert", help))
        return 0;
    struct options o;
    struct err e = {0};
    if (parse_options(&o, argc, argv, &e)) {
        fprintf(stderr, "kith-convert: %s (see --help)\n", e.message);
        return 2;
    }
    if (convert(&o, &e)) {
        fprintf(stderr, "kith-convert: %s\n", e.message);
        return 1;
    }
    return 0;
}
