/* kith-convert: a Hugging Face folder of a BERT or XLM-R encoder to one GGUF file.
 *
 * The file is written front to back below a temporary name and renamed at the end, so a reader
 * never sees half a model. Names, keys and the choice of types are those that llama.cpp's own
 * converter uses for the architecture `bert`, so its programs load the file too. Matrices take
 * the asked type; norms, biases, positions and token types are few and stay F32. The same input
 * gives the same bytes. */

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/program.h"
#include "engine/half.h"
#include "engine/tensor.h"
#include "tools/gguf_write.h"
#include "tools/hf_model.h"
#include "tools/safetensors.h"

enum { PATH_BYTES = 4096, PARTS_PER_LAYER = 16, PARTS_BEFORE = 5 };

static const char help[] =
    "usage: kith-convert MODEL_DIR OUT.gguf [--type f32|f16|q8_0] [--name NAME]\n"
    "\n"
    "Converts a Hugging Face folder of a BERT or XLM-R encoder (config.json,\n"
    "model.safetensors, tokenizer.json, or for BERT vocab.txt, and sentence-transformers'\n"
    "modules.json and pooling) to a GGUF file that kith-engine and llama.cpp load.\n"
    "\n"
    "  --type TYPE   of the matrices: f32, f16 (default) or q8_0, which the engine\n"
    "                computes with 8-bit integers\n"
    "  --name NAME   the model's name in the file; default: the folder's\n"
    "  --help        this page\n"
    "\n"
    "The same input gives the same bytes.\n";

struct options {
    const char *dir, *out;
    char name[256];
    enum tensor_type type;
};

/* One tensor to write: where it comes from and what it becomes. */
struct part {
    char name[TENSOR_NAME_MAX]; /* in the GGUF file */
    const struct safetensor *from;
    enum tensor_type type;
    unsigned n_dims;
    uint64_t ne0, ne1;
    uint64_t skip; /* rows of the source that are left out at its beginning */
    size_t bytes;
};

/* --- what is written --- */

static void write_general(struct gguf_write *w, const struct hf_model *m,
                          const struct options *o)
{
    static const struct {
        enum tensor_type type;
        uint32_t file_type;
    } file_types[] = {{TENSOR_F32, 0}, {TENSOR_F16, 1}, {TENSOR_Q8_0, 7}};
    gguf_write_string(w, "general.architecture", "bert");
    gguf_write_string(w, "general.type", "model");
    gguf_write_string(w, "general.name", o->name);
    for (size_t i = 0; i < sizeof file_types / sizeof *file_types; i++)
        if (file_types[i].type == o->type)
            gguf_write_u32(w, "general.file_type", file_types[i].file_type);
    gguf_write_u32(w, "general.quantization_version", 2);
    gguf_write_u32(w, "bert.block_count", m->n_layers);
    gguf_write_u32(w, "bert.context_length", m->n_ctx);
    gguf_write_u32(w, "bert.embedding_length", m->n_embd);
    gguf_write_u32(w, "bert.feed_forward_length", m->n_ff);
    gguf_write_u32(w, "bert.attention.head_count", m->n_heads);
    gguf_write_f32(w, "bert.attention.layer_norm_epsilon", m->norm_eps);
    gguf_write_bool(w, "bert.attention.causal", false);
    if (m->pooling != HF_POOLING_UNKNOWN)
        gguf_write_u32(w, "bert.pooling_type", (uint32_t)m->pooling);
}

/* A WordPiece token's text as GGUF has it: word-initial ones after U+2581, continuations
 * without '##', bracketed ones as they are. */
static void add_token(struct gguf_write *w, const char *token)
{
    char marked[1024];
    size_t n = strlen(token);
    if (n > 2 && token[0] == '#' && token[1] == '#') {
        gguf_write_strings_add(w, token + 2, n - 2);
    } else if ((n > 1 && token[0] == '[' && token[n - 1] == ']') || n + 3 > sizeof marked) {
        gguf_write_strings_add(w, token, n);
    } else {
        memcpy(marked, "\xe2\x96\x81", 3);
        memcpy(marked + 3, token, n);
        gguf_write_strings_add(w, marked, n + 3);
    }
}

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, UNUSED = 5 };

static void write_wordpiece(struct gguf_write *w, const struct hf_model *m)
{
    gguf_write_string(w, "tokenizer.ggml.model", "bert");
    gguf_write_string(w, "tokenizer.ggml.pre", "bert-bge");
    gguf_write_bool(w, "tokenizer.ggml.normalizer.lowercase", m->lower);
    gguf_write_bool(w, "tokenizer.ggml.normalizer.strip_accents", m->strip_accents);
}

static void write_unigram(struct gguf_write *w, const struct hf_model *m)
{
    gguf_write_string(w, "tokenizer.ggml.model", "t5");
    gguf_write_string(w, "tokenizer.ggml.pre", "default");
    gguf_write_bool(w, "tokenizer.ggml.add_space_prefix", m->space_prefix);
    gguf_write_bool(w, "tokenizer.ggml.remove_extra_whitespaces", m->merge_spaces);
    gguf_write_bool(w, "tokenizer.ggml.normalizer.outer_spaces", m->outer_spaces);
    if (m->charsmap_bytes)
        gguf_write_u8s(w, "tokenizer.ggml.precompiled_charsmap", m->charsmap,
                       m->charsmap_bytes);
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_write_bool(w, "tokenizer.ggml.add_eos_token", true);
    gguf_write_f32s_begin(w);
    for (uint32_t i = 0; i < m->n_vocab; i++)
        gguf_write_f32s_add(w, m->scores[i]);
    gguf_write_array_end(w, "tokenizer.ggml.scores");
}

static int32_t type_of(const struct hf_model *m, uint32_t id)
{
    if (!m->tokens[id])
        return UNUSED;
    if (m->tokenizer == HF_UNIGRAM && (int32_t)id == m->specials[HF_UNK].id)
        return UNKNOWN;
    return m->control[id] ? CONTROL : NORMAL;
}

static void write_tokenizer(struct gguf_write *w, const struct hf_model *m)
{
    gguf_write_u32(w, "tokenizer.ggml.token_type_count", m->n_types);
    if (m->tokenizer == HF_UNIGRAM)
        write_unigram(w, m);
    else
        write_wordpiece(w, m);
    gguf_write_strings_begin(w);
    for (uint32_t i = 0; i < m->n_vocab; i++) {
        char unused[32];
        snprintf(unused, sizeof unused, "[PAD%u]", i);
        const char *token = m->tokens[i] ? m->tokens[i] : unused;
        if (m->tokenizer == HF_UNIGRAM)
            gguf_write_strings_add(w, token, strlen(token));
        else
            add_token(w, token);
    }
    gguf_write_array_end(w, "tokenizer.ggml.tokens");
    gguf_write_i32s_begin(w);
    for (uint32_t i = 0; i < m->n_vocab; i++)
        gguf_write_i32s_add(w, type_of(m, i));
    gguf_write_array_end(w, "tokenizer.ggml.token_type");
    for (int i = 0; i < HF_N_SPECIALS; i++)
        if (m->specials[i].id >= 0)
            gguf_write_u32(w, m->specials[i].key, (uint32_t)m->specials[i].id);
}

/* --- tensors --- */

static int check_source(const struct part *p, struct err *e)
{
    const struct safetensor *t = p->from;
    uint64_t rows = t->n_dims == 2 ? t->shape[0] : 1;
    uint64_t in = t->n_dims == 2 ? t->shape[1] : t->n_dims == 1 ? t->shape[0] : 0;
    if (t->n_dims != p->n_dims || rows != p->ne1 + p->skip || in != p->ne0)
        return err_set(e, KITH_EFORMAT,
                       "tensor '%s' has %u dimensions, [%llu, %llu]; [%llu, %llu] is expected",
                       t->name, t->n_dims, (unsigned long long)rows, (unsigned long long)in,
                       (unsigned long long)(p->ne1 + p->skip), (unsigned long long)p->ne0);
    if (strcmp(t->dtype, "F32") != 0 && strcmp(t->dtype, "F16") != 0 &&
        strcmp(t->dtype, "BF16") != 0)
        return err_set(e, KITH_EUNSUPPORTED, "tensor '%s' is %s; F32, F16 or BF16 is needed",
                       t->name, t->dtype);
    return 0;
}

/* A checkpoint of a bare model names its tensors directly, one with a head puts "bert." or
 * "roberta." before. */
static const struct safetensor *find_source(const struct safetensors *s, const char *name)
{
    static const char *const prefixes[] = {"", "bert.", "roberta."};
    const struct safetensor *t = NULL;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes && !t; i++) {
        char prefixed[256];
        if (snprintf(prefixed, sizeof prefixed, "%s%s", prefixes[i], name) <
            (int)sizeof prefixed)
            t = safetensors_find(s, prefixed);
    }
    return t;
}

static int plan_part(struct part *p, const struct safetensors *s, const char *from,
                     enum tensor_type type, uint64_t ne0, uint64_t ne1, struct err *e)
{
    p->from = find_source(s, from);
    if (!p->from)
        return err_set(e, KITH_EFORMAT, "model.safetensors has no tensor '%s'", from);
    p->n_dims = ne1 ? 2 : 1;
    p->ne0 = ne0;
    p->ne1 = ne1 ? ne1 : 1;
    /* A row that is no multiple of the block cannot be Q8_0. */
    p->type = ne0 % tensor_block_elements(type) ? TENSOR_F16 : type;
    return check_source(p, e);
}

static int plan_layer(struct part *parts, uint32_t layer, const struct safetensors *s,
                      const struct hf_model *m, enum tensor_type type, struct err *e)
{
    const uint64_t d = m->n_embd, ff = m->n_ff;
    const struct {
        const char *from, *to;
        uint64_t ne0, ne1; /* ne1 0: a vector */
    } rows[] = {
        {"attention.self.query.weight", "attn_q.weight", d, d},
        {"attention.self.query.bias", "attn_q.bias", d, 0},
        {"attention.self.key.weight", "attn_k.weight", d, d},
        {"attention.self.key.bias", "attn_k.bias", d, 0},
        {"attention.self.value.weight", "attn_v.weight", d, d},
        {"attention.self.value.bias", "attn_v.bias", d, 0},
        {"attention.output.dense.weight", "attn_output.weight", d, d},
        {"attention.output.dense.bias", "attn_output.bias", d, 0},
        {"attention.output.LayerNorm.weight", "attn_output_norm.weight", d, 0},
        {"attention.output.LayerNorm.bias", "attn_output_norm.bias", d, 0},
        {"intermediate.dense.weight", "ffn_up.weight", d, ff},
        {"intermediate.dense.bias", "ffn_up.bias", ff, 0},
        {"output.dense.weight", "ffn_down.weight", ff, d},
        {"output.dense.bias", "ffn_down.bias", d, 0},
        {"output.LayerNorm.weight", "layer_output_norm.weight", d, 0},
        {"output.LayerNorm.bias", "layer_output_norm.bias", d, 0},
    };
    _Static_assert(sizeof rows / sizeof *rows == PARTS_PER_LAYER, "a row for each part");
    for (size_t i = 0; i < PARTS_PER_LAYER; i++) {
        char from[128];
        snprintf(from, sizeof from, "encoder.layer.%u.%s", layer, rows[i].from);
        snprintf(parts[i].name, sizeof parts[i].name, "blk.%u.%s", layer, rows[i].to);
        int rc = plan_part(&parts[i], s, from, rows[i].ne1 ? type : TENSOR_F32, rows[i].ne0,
                           rows[i].ne1, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int plan_tensors(struct part *parts, const struct safetensors *s,
                        const struct hf_model *m, enum tensor_type type, struct err *e)
{
    const uint64_t d = m->n_embd;
    const struct {
        const char *from, *to;
        enum tensor_type type;
        uint64_t ne1, skip;
    } rows[] = {
        {"embeddings.word_embeddings.weight", "token_embd.weight", type, m->n_vocab, 0},
        {"embeddings.position_embeddings.weight", "position_embd.weight", TENSOR_F32, m->n_ctx,
         m->unused_positions},
        {"embeddings.token_type_embeddings.weight", "token_types.weight", TENSOR_F32,
         m->n_types, 0},
        {"embeddings.LayerNorm.weight", "token_embd_norm.weight", TENSOR_F32, 0, 0},
        {"embeddings.LayerNorm.bias", "token_embd_norm.bias", TENSOR_F32, 0, 0},
    };
    _Static_assert(sizeof rows / sizeof *rows == PARTS_BEFORE, "a row for each part");
    int rc = 0;
    for (size_t i = 0; i < PARTS_BEFORE && !rc; i++) {
        snprintf(parts[i].name, sizeof parts[i].name, "%s", rows[i].to);
        parts[i].skip = rows[i].skip;
        rc = plan_part(&parts[i], s, rows[i].from, rows[i].type, d, rows[i].ne1, e);
    }
    for (uint32_t l = 0; l < m->n_layers && !rc; l++)
        rc = plan_layer(parts + PARTS_BEFORE + (size_t)l * PARTS_PER_LAYER, l, s, m, type, e);
    return rc;
}

static float source_value(const struct safetensor *t, size_t i)
{
    if (t->dtype[0] == 'B')
        return half_bf16_to_f32(load_u16(t->data + 2 * i));
    if (t->dtype[1] == '1')
        return half_to_f32(load_u16(t->data + 2 * i));
    return load_f32(t->data + 4 * i);
}

static int convert_row(const struct part *p, size_t row, float *values, unsigned char *out,
                       struct err *e)
{
    size_t n = (size_t)p->ne0;
    for (size_t i = 0; i < n; i++) {
        values[i] = source_value(p->from, ((size_t)p->skip + row) * n + i);
        if (!isfinite(values[i]))
            return err_set(e, KITH_EFORMAT, "tensor '%s' holds a value that is not finite",
                           p->from->name);
    }
    const struct block_type *type = block_type(p->type);
    type->encode(values, n / type->elements, out);
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

static int write_data(int fd, uint64_t at, const struct part *parts, size_t n, struct err *e)
{
    struct buf data;
    buf_init(&data);
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        const struct part *p = &parts[i];
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

static int write_file(const struct options *o, struct gguf_write *w, const struct part *parts,
                      size_t n, struct err *e)
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
                       const struct safetensors *s, struct err *e)
{
    size_t n = PARTS_BEFORE + (size_t)m->n_layers * PARTS_PER_LAYER;
    struct part *parts = mem_calloc(n, sizeof *parts);
    if (!parts)
        return err_set(e, KITH_ENOMEM, "out of memory for %zu tensors", n);
    struct gguf_write w;
    gguf_write_init(&w);
    write_general(&w, m, o);
    write_tokenizer(&w, m);
    int rc = plan_tensors(parts, s, m, o->type, e);
    for (size_t i = 0; i < n && !rc; i++)
        rc = gguf_write_tensor(&w, parts[i].name, parts[i].type, parts[i].n_dims, parts[i].ne0,
                               parts[i].ne1, &parts[i].bytes, e);
    if (!rc)
        rc = write_file(o, &w, parts, n, e);
    gguf_write_deinit(&w);
    mem_free(parts);
    return rc;
}

static int convert(const struct options *o, struct err *e)
{
    char path[PATH_BYTES];
    if (snprintf(path, sizeof path, "%s/model.safetensors", o->dir) >= PATH_BYTES)
        return err_set(e, KITH_EINVAL, "path too long: %s", o->dir);
    struct hf_model m;
    int rc = hf_model_open(&m, o->dir, e);
    if (rc)
        return rc;
    struct safetensors s;
    rc = safetensors_open(&s, path, e);
    if (!rc) {
        rc = write_model(o, &m, &s, e);
        safetensors_close(&s);
    }
    if (!rc && m.pooling == HF_POOLING_UNKNOWN)
        fprintf(stderr,
                "kith-convert: note: %s has no modules.json; the engine pools by mean\n",
                o->dir);
    else if (!rc && !m.normalize)
        fprintf(stderr, "kith-convert: note: the model has no Normalize step; the engine "
                        "normalises all vectors\n");
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
