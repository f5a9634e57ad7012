#include "engine/embedder.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/gguf.h"
#include "engine/kernels.h"
#include "engine/pool.h"
#include "engine/profile.h"
#include "engine/tokenizer.h"

enum { MAX_THREADS = 1024 };

struct embedder {
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct profile profile;
    struct framing framing;
    struct model model;
    struct model_fast *fast;
    struct pool *pool;
    struct scheduler *scheduler;
    struct embedder_info info;
    struct model_packed packed;
    struct err packed_refused, packed_failed;
};

void embedder_defaults(struct embedder_options *o)
{
    *o = (struct embedder_options){.precision = MODEL_AUTO,
                                   .n_threads = 0,
                                   .batch_tokens = 2048,
                                   .batch_wait_us = 300,
                                   .max_queue_tokens = 1u << 20,
                                   .packed_cache = true};
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

static int describe(struct embedder *m, struct err *e)
{
    static const char *const poolings[] = {[POOLING_MEAN] = "mean",
                                           [POOLING_CLS] = "cls",
                                           [POOLING_LAST] = "last",
                                           [POOLING_RANK] = "rank"};
    struct embedder_info *info = &m->info;
    const struct engine_kernels *kernels;
    int rc = engine_kernels(&kernels, e);
    if (rc)
        return rc;
    struct model_weights weights;
    model_weights(&m->model, &weights);
    snprintf(info->arch, sizeof info->arch, "%s", m->model.arch);
    snprintf(info->type, sizeof info->type, "%s%s", tensor_type_name(weights.type),
             weights.mixed ? " mixed" : "");
    snprintf(info->precision, sizeof info->precision, "%s",
             model_precision_name(model_fast_precision(m->fast)));
    snprintf(info->kernels, sizeof info->kernels, "%s", kernels->name);
    info->pooling = poolings[m->model.pooling];
    info->reranks = m->model.pooling == POOLING_RANK;
    info->embeds = !info->reranks;
    info->query_prompt = m->profile.query_prompt;
    info->document_prompt = m->profile.document_prompt;
    info->dims = m->profile.dims;
    info->dim = model_dim(&m->model);
    info->context = m->model.n_ctx;
    info->n_threads = pool_threads(m->pool);
    info->bytes = model_fast_bytes(m->fast) + m->model.token_embd->bytes;
    info->packed_path = m->packed.path;
    info->packed_damaged = m->packed_refused.code == KITH_ECORRUPT;
    info->packed_refused = m->packed_refused.message;
    info->packed_failed = m->packed_failed.message;
    return 0;
}

/* --- weights --- */

static int pack(struct embedder *m, const struct embedder_options *o, struct err *e)
{
    int64_t start = clock_mono_us();
    int rc = model_fast_new(&m->fast, &m->model, o->precision, e);
    m->info.pack_us = clock_mono_us() - start;
    return rc;
}

/* The weights were read after the file was hashed, so it is hashed again: a file that was
 * changed in between has other weights than its name says. */
static void save(struct embedder *m)
{
    char hash[sizeof m->info.hash];
    int64_t start = clock_mono_us();
    gguf_hash(m->gguf, hash);
    int rc = strcmp(hash, m->info.hash) != 0
                 ? err_set(&m->packed_failed, KITH_EBUSY,
                           "the model file was changed while it was loaded")
                 : model_fast_save(m->fast, &m->packed, &m->packed_failed);
    m->info.write_us = clock_mono_us() - start;
    if (rc == 0)
        m->info.weights = EMBEDDER_WRITTEN;
}

/* A file of packed weights that cannot be used or written never keeps a model from loading. */
static int load_weights(struct embedder *m, const char *path, const struct embedder_options *o,
                        struct err *e)
{
    if (!o->packed_cache)
        return pack(m, o, e);
    m->packed.model_path = path;
    m->packed.model_hash = m->info.hash;
    int rc = model_fast_map(&m->fast, &m->model, o->precision, &m->packed, &m->packed_refused);
    if (rc == 0) {
        m->info.weights = EMBEDDER_MAPPED;
        return 0;
    }
    if (rc == KITH_ENOTFOUND)
        m->packed_refused = (struct err){0};
    rc = pack(m, o, e);
    if (rc == 0)
        save(m);
    m->packed.model_path = NULL; /* the caller's */
    return rc;
}

/* The tokenizer fits the model. */
static int check_vocabulary(struct embedder *m, struct err *e)
{
    if (tokenizer_n_vocab(m->tokenizer) > m->model.n_vocab)
        return err_set(e, KITH_EFORMAT, "the tokenizer has %u tokens, the model only %u",
                       tokenizer_n_vocab(m->tokenizer), m->model.n_vocab);
    if (m->model.pooling == POOLING_RANK && !framing_has_pairs(&m->framing))
        return err_set(e, KITH_EUNSUPPORTED,
                       "the model ranks pairs of texts, for which its tokenizer '%s' has no "
                       "frame",
                       tokenizer_model(m->tokenizer));
    return 0;
}

static int forward(void *context, const struct model_batch *batch, float *vectors,
                   struct err *e)
{
    struct embedder *m = context;
    int rc = model_fast_forward(m->fast, m->pool, batch, vectors, e);
    pool_rest(m->pool);
    return rc;
}

static int start_scheduler(struct embedder *m, const struct embedder_options *o, struct err *e)
{
    uint32_t tokens = o->batch_tokens, most = model_fast_max_tokens(m->fast);
    if (tokens > most)
        tokens = most;
    m->info.batch_tokens = tokens;
    struct scheduler_options options = {.dim = model_dim(&m->model),
                                        .batch_tokens = tokens,
                                        .sequence_tokens = m->model.n_ctx,
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
    gguf_hash(m->gguf, m->info.hash);
    copy_name(&m->info, m->gguf, path);
    if ((rc = model_bind(&m->model, m->gguf, e)) ||
        (rc = tokenizer_new(&m->tokenizer, m->gguf, e)) ||
        (rc = profile_load(&m->profile, m->gguf, &m->model, m->info.name, e)) ||
        (rc = framing_init(&m->framing, m->tokenizer, &m->profile, m->model.n_ctx, e)) ||
        (rc = check_vocabulary(m, e)))
        return err_wrap(e, "%s", path), rc;
    if ((rc = load_weights(m, path, o, e)) || (rc = pool_new(&m->pool, threads_of(o), e)) ||
        (rc = describe(m, e)))
        return rc;
    gguf_forget_pages(m->gguf);
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
    framing_deinit(&m->framing);
    profile_deinit(&m->profile);
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

/* The sequences, whole or not, to the scheduler; they are freed. */
static int submit(struct embedder *m, struct sequences *q, int rc,
                  void (*done)(void *arg, const struct scheduler_result *result), void *arg,
                  struct err *e)
{
    if (!rc) {
        struct scheduler_request request = {.ids = q->ids,
                                            .offsets = q->offsets,
                                            .splits = m->info.reranks ? q->splits : NULL,
                                            .n = q->n,
                                            .done = done,
                                            .arg = arg};
        rc = scheduler_submit(m->scheduler, &request, e);
    }
    sequences_deinit(q);
    return rc;
}

int embedder_submit(struct embedder *m, const struct embedder_request *r, struct err *e)
{
    struct sequences q;
    if (!m->info.embeds)
        return err_set(e, KITH_EUNSUPPORTED,
                       "model '%s' ranks documents and gives no vectors: it is for RERANK",
                       m->info.name);
    if (r->n == 0)
        return err_set(e, KITH_EINVAL, "a request without texts");
    int rc = sequences_init(&q, r->n, e);
    for (uint32_t i = 0; i < r->n && !rc; i++)
        rc = framing_add_text(&m->framing, r->role, r->texts[i], i + 1, r->truncate, &q, e);
    return submit(m, &q, rc, r->done, r->arg, e);
}

int embedder_rerank(struct embedder *m, const struct embedder_rerank_request *r, struct err *e)
{
    struct sequences q;
    if (!m->info.reranks)
        return err_set(e, KITH_EUNSUPPORTED,
                       "model '%s' gives vectors and ranks no documents: RERANK takes a "
                       "reranker",
                       m->info.name);
    if (r->n == 0)
        return err_set(e, KITH_EINVAL, "a request without documents");
    int rc = sequences_init(&q, r->n, e);
    for (uint32_t i = 0; i < r->n && !rc; i++)
        rc =
            framing_add_pair(&m->framing, r->query, r->documents[i], i + 1, r->truncate, &q, e);
    return submit(m, &q, rc, r->done, r->arg, e);
}
