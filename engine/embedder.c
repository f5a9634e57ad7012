#include "engine/embedder.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/gguf.h"
#include "engine/kernels.h"
#include "engine/pool.h"
#include "engine/wordpiece.h"

enum { FRAME_TOKENS = 2, MAX_THREADS = 1024 };

struct embedder {
    struct gguf *gguf;
    struct wordpiece *tokenizer;
    struct bert bert;
    struct bert_fast *fast;
    struct pool *pool;
    struct scheduler *scheduler;
    struct embedder_info info;
};

void embedder_defaults(struct embedder_options *o)
{
    *o = (struct embedder_options){.precision = BERT_AUTO,
                                   .n_threads = 0,
                                   .batch_tokens = 2048,
                                   .batch_wait_us = 300,
                                   .max_queue_tokens = 1u << 20};
}

/* --- open --- */

static void copy_name(struct embedder_info *info, const struct gguf *g, const char *path)
{
    const char *s;
    size_t n;
    const char *slash = strrchr(path, '/');
    snprintf(info->name, sizeof info->name, "%s", slash ? slash + 1 : path);
    if (gguf_get_string(g, "general.name", &s, &n, NULL) == 0 && n > 0 &&
        n < sizeof info->name && !memchr(s, 0, n)) {
        memcpy(info->name, s, n);
        info->name[n] = '\0';
    }
}

static int describe(struct embedder *m, const char *path, enum bert_precision precision,
                    struct err *e)
{
    struct embedder_info *info = &m->info;
    const struct engine_kernels *kernels;
    int rc = engine_kernels(&kernels, e);
    if (rc)
        return rc;
    enum tensor_type type = m->bert.layers[0].q_w->type;
    bool int8 = precision == BERT_INT8 || (precision == BERT_AUTO && type == TENSOR_Q8_0);
    copy_name(info, m->gguf, path);
    gguf_hash(m->gguf, info->hash);
    snprintf(info->arch, sizeof info->arch, "bert");
    snprintf(info->type, sizeof info->type, "%s", tensor_type_name(type));
    snprintf(info->precision, sizeof info->precision, "%s", int8 ? "int8" : "f32");
    snprintf(info->kernels, sizeof info->kernels, "%s", kernels->name);
    info->pooling = m->bert.pooling == POOLING_CLS ? "cls" : "mean";
    info->dim = m->bert.n_embd;
    info->context = m->bert.n_ctx;
    info->n_threads = pool_threads(m->pool);
    return 0;
}

static int check_vocabulary(const struct embedder *m, struct err *e)
{
    if (wordpiece_n_vocab(m->tokenizer) > m->bert.n_vocab)
        return err_set(e, KITH_EFORMAT, "the tokenizer has %u tokens, the model only %u",
                       wordpiece_n_vocab(m->tokenizer), m->bert.n_vocab);
    if (m->bert.n_ctx <= FRAME_TOKENS)
        return err_set(e, KITH_EFORMAT, "a context of %u tokens holds no text", m->bert.n_ctx);
    return 0;
}

static int forward(void *context, const struct bert_batch *batch, float *vectors, struct err *e)
{
    struct embedder *m = context;
    return bert_fast_forward(m->fast, m->pool, batch, vectors, e);
}

static int start_scheduler(struct embedder *m, const struct embedder_options *o, struct err *e)
{
    uint32_t tokens = o->batch_tokens, most = bert_fast_max_tokens(m->fast);
    if (tokens > most)
        tokens = most;
    if (tokens < m->bert.n_ctx)
        tokens = m->bert.n_ctx;
    m->info.batch_tokens = tokens;
    struct scheduler_options options = {.dim = m->bert.n_embd,
                                        .batch_tokens = tokens,
                                        .batch_wait_us = o->batch_wait_us,
                                        .max_queue_tokens = o->max_queue_tokens,
                                        .forward = forward,
                                        .context = m};
    return scheduler_new(&m->scheduler, &options, e);
}

static unsigned threads_of(const struct embedder_options *o)
{
    long n = o->n_threads ? (long)o->n_threads : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (unsigned)n;
}

static int open_parts(struct embedder *m, const char *path, const struct embedder_options *o,
                      struct err *e)
{
    int rc;
    if ((rc = gguf_open(&m->gguf, path, e)))
        return rc;
    if ((rc = bert_bind(&m->bert, m->gguf, e)) ||
        (rc = wordpiece_new(&m->tokenizer, m->gguf, e)) || (rc = check_vocabulary(m, e)))
        return err_wrap(e, "%s", path), rc;
    if ((rc = bert_fast_new(&m->fast, &m->bert, o->precision, e)) ||
        (rc = pool_new(&m->pool, threads_of(o), e)) ||
        (rc = describe(m, path, o->precision, e)))
        return rc;
    return start_scheduler(m, o, e);
}

int embedder_open(struct embedder **out, const char *path, const struct embedder_options *o,
                  struct err *e)
{
    struct embedder *m = mem_calloc(1, sizeof *m);
    if (!m)
        return err_set(e, KITH_ENOMEM, "out of memory for the model");
    int rc = open_parts(m, path, o, e);
    if (rc) {
        embedder_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

void embedder_close(struct embedder *m)
{
    if (!m)
        return;
    scheduler_free(m->scheduler);
    if (m->pool)
        pool_free(m->pool);
    if (m->fast)
        bert_fast_free(m->fast);
    wordpiece_free(m->tokenizer);
    bert_unbind(&m->bert);
    gguf_close(m->gguf);
    mem_free(m);
}

const struct embedder_info *embedder_info(const struct embedder *m)
{
    return &m->info;
}

const struct wordpiece *embedder_tokenizer(const struct embedder *m)
{
    return m->tokenizer;
}

void embedder_stats(struct embedder *m, struct scheduler_stats *out)
{
    scheduler_stats(m->scheduler, out);
}

/* --- submit --- */

/* The sequences of a request as they are made. */
struct sequences {
    int32_t *ids;
    size_t n_ids, capacity;
    uint32_t *offsets;
};

static int make_room(struct sequences *q, size_t n, struct err *e)
{
    if (n <= q->capacity - q->n_ids)
        return 0;
    size_t capacity = q->capacity ? q->capacity * 2 : 256;
    while (capacity < q->n_ids + n)
        capacity *= 2;
    int32_t *ids = mem_realloc_n(q->ids, capacity, sizeof *ids);
    if (!ids)
        return err_set(e, KITH_ENOMEM, "out of memory for the texts' tokens");
    q->ids = ids;
    q->capacity = capacity;
    return 0;
}

/* Appends the sequence of text i (from 0). Room for a whole context is enough: past it the
 * tokenizer only counts. */
static int add_text(struct embedder *m, const struct embedder_request *request, uint32_t i,
                    struct sequences *q, struct err *e)
{
    const struct embedder_text *text = &request->texts[i];
    if (text->n == 0)
        return err_set(e, KITH_EINVAL, "text %u is empty", i + 1);
    const size_t context = m->bert.n_ctx, room = context - FRAME_TOKENS;
    /* A token comes of at least one byte, or of one character cut into at most four. */
    size_t most = text->n > room / 4 ? room : text->n * 4;
    int rc = make_room(q, most + FRAME_TOKENS, e);
    if (rc)
        return rc;
    size_t n;
    rc = wordpiece_encode(m->tokenizer, text->p, text->n, q->ids + q->n_ids + 1, most, &n, e);
    if (rc)
        return err_wrap(e, "text %u", i + 1), rc;
    if (n > room && !request->truncate)
        return err_set(
            e, KITH_EINVAL,
            "text %u has %zu tokens, the model takes %zu: shorten it or give TRUNCATE", i + 1,
            n + FRAME_TOKENS, context);
    if (n > room)
        n = room;
    q->ids[q->n_ids] = wordpiece_cls(m->tokenizer);
    q->ids[q->n_ids + 1 + n] = wordpiece_sep(m->tokenizer);
    q->n_ids += n + FRAME_TOKENS;
    q->offsets[i + 1] = (uint32_t)q->n_ids;
    return q->n_ids <= INT32_MAX ? 0
                                 : err_set(e, KITH_ELIMIT, "the texts have too many tokens");
}

int embedder_submit(struct embedder *m, const struct embedder_request *request, struct err *e)
{
    if (request->n == 0)
        return err_set(e, KITH_EINVAL, "a request without texts");
    struct sequences q = {0};
    q.offsets = mem_alloc_n((size_t)request->n + 1, sizeof *q.offsets);
    int rc = q.offsets ? 0 : err_set(e, KITH_ENOMEM, "out of memory for %u texts", request->n);
    if (!rc)
        q.offsets[0] = 0;
    for (uint32_t i = 0; i < request->n && !rc; i++)
        rc = add_text(m, request, i, &q, e);
    if (!rc) {
        struct scheduler_request sequences = {.ids = q.ids,
                                              .offsets = q.offsets,
                                              .n = request->n,
                                              .done = request->done,
                                              .arg = request->arg};
        rc = scheduler_submit(m->scheduler, &sequences, e);
    }
    mem_free(q.ids);
    mem_free(q.offsets);
    return rc;
}
