#include "engine/embedder.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/gguf.h"
#include "engine/kernels.h"
#include "engine/pool.h"
#include "engine/tokenizer.h"

enum { MAX_THREADS = 1024 };

struct embedder {
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    uint32_t n_frame; /* tokens before and after a text */
    struct model model;
    struct model_fast *fast;
    struct pool *pool;
    struct scheduler *scheduler;
    struct embedder_info info;
};

void embedder_defaults(struct embedder_options *o)
{
    *o = (struct embedder_options){.precision = MODEL_AUTO,
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

static int describe(struct embedder *m, const char *path, struct err *e)
{
    struct embedder_info *info = &m->info;
    const struct engine_kernels *kernels;
    int rc = engine_kernels(&kernels, e);
    if (rc)
        return rc;
    struct model_weights weights;
    model_weights(&m->model, &weights);
    bool int8 = model_fast_precision(m->fast) == MODEL_INT8;
    copy_name(info, m->gguf, path);
    gguf_hash(m->gguf, info->hash);
    snprintf(info->arch, sizeof info->arch, "%s", m->model.arch);
    snprintf(info->type, sizeof info->type, "%s%s", tensor_type_name(weights.type),
             weights.mixed ? " mixed" : "");
    snprintf(info->precision, sizeof info->precision, "%s", int8 ? "int8" : "f32");
    snprintf(info->kernels, sizeof info->kernels, "%s", kernels->name);
    info->pooling = m->model.pooling == POOLING_CLS ? "cls" : "mean";
    info->dim = m->model.n_embd;
    info->context = m->model.n_ctx;
    info->n_threads = pool_threads(m->pool);
    return 0;
}

/* The tokenizer fits the model. */
static int check_vocabulary(struct embedder *m, struct err *e)
{
    const struct tokenizer_frame *frame = tokenizer_frame(m->tokenizer);
    m->n_frame = frame->n_before + frame->n_after;
    if (tokenizer_n_vocab(m->tokenizer) > m->model.n_vocab)
        return err_set(e, KITH_EFORMAT, "the tokenizer has %u tokens, the model only %u",
                       tokenizer_n_vocab(m->tokenizer), m->model.n_vocab);
    if (m->model.n_ctx <= m->n_frame)
        return err_set(e, KITH_EFORMAT, "a context of %u tokens holds no text", m->model.n_ctx);
    return 0;
}

static int forward(void *context, const struct model_batch *batch, float *vectors,
                   struct err *e)
{
    struct embedder *m = context;
    return model_fast_forward(m->fast, m->pool, batch, vectors, e);
}

static int start_scheduler(struct embedder *m, const struct embedder_options *o, struct err *e)
{
    uint32_t tokens = o->batch_tokens, most = model_fast_max_tokens(m->fast);
    if (tokens > most)
        tokens = most;
    if (tokens < m->model.n_ctx)
        tokens = m->model.n_ctx;
    m->info.batch_tokens = tokens;
    struct scheduler_options options = {.dim = m->model.n_embd,
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
    if ((rc = model_bind(&m->model, m->gguf, e)) ||
        (rc = tokenizer_new(&m->tokenizer, m->gguf, e)) || (rc = check_vocabulary(m, e)))
        return err_wrap(e, "%s", path), rc;
    if ((rc = model_fast_new(&m->fast, &m->model, o->precision, e)) ||
        (rc = pool_new(&m->pool, threads_of(o), e)) || (rc = describe(m, path, e)))
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
        model_fast_free(m->fast);
    tokenizer_free(m->tokenizer);
    model_unbind(&m->model);
    gguf_close(m->gguf);
    mem_free(m);
}

const struct embedder_info *embedder_info(const struct embedder *m)
{
    return &m->info;
}

const struct tokenizer *embedder_tokenizer(const struct embedder *m)
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

/* The ids of text i behind those of the frame that stand before it; *n is how many it has. Most
 * texts have no more tokens than bytes; where a normaliser made more of it, room for a whole
 * context is enough: past that the tokenizer only counts. */
static int encode_text(struct embedder *m, const struct embedder_text *text,
                       struct sequences *q, size_t room, size_t *n, struct err *e)
{
    const uint32_t before = tokenizer_frame(m->tokenizer)->n_before;
    size_t most = text->n < room ? text->n : room;
    for (;;) {
        int rc = make_room(q, most + m->n_frame, e);
        if (!rc)
            rc = tokenizer_encode(m->tokenizer, text->p, text->n, q->ids + q->n_ids + before,
                                  most, n, e);
        if (rc || *n <= most || most == room)
            return rc;
        most = room;
    }
}

/* Appends the sequence of text i (from 0). */
static int add_text(struct embedder *m, const struct embedder_request *request, uint32_t i,
                    struct sequences *q, struct err *e)
{
    const struct embedder_text *text = &request->texts[i];
    if (text->n == 0)
        return err_set(e, KITH_EINVAL, "text %u is empty", i + 1);
    const struct tokenizer_frame *frame = tokenizer_frame(m->tokenizer);
    const size_t context = m->model.n_ctx, room = context - m->n_frame;
    size_t n;
    int rc = encode_text(m, text, q, room, &n, e);
    if (rc)
        return err_wrap(e, "text %u", i + 1), rc;
    if (n > room && !request->truncate)
        return err_set(
            e, KITH_EINVAL,
            "text %u has %zu tokens, the model takes %zu: shorten it or give TRUNCATE", i + 1,
            n + m->n_frame, context);
    if (n > room)
        n = room;
    int32_t *ids = q->ids + q->n_ids;
    memcpy(ids, frame->before, frame->n_before * sizeof *ids);
    memcpy(ids + frame->n_before + n, frame->after, frame->n_after * sizeof *ids);
    q->n_ids += n + m->n_frame;
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
