#include "server/local_backend.h"

#include <inttypes.h>

#include "base/log.h"
#include "base/mem.h"

struct local_backend {
    struct embedder *embedder;
    char *path;
};

/* A request that the embedder has. */
struct ticket {
    void (*done)(void *arg, const struct backend_result *result);
    void *arg;
};

static void on_result(void *arg, const struct scheduler_result *r)
{
    struct ticket *t = arg;
    const struct backend_result result = {.code = r->code,
                                          .message = r->message,
                                          .values = r->vectors,
                                          .n = r->n,
                                          .dim = r->dim,
                                          .n_tokens = r->n_tokens};
    t->done(t->arg, &result);
    mem_free(t);
}

/* query: of a rerank, else NULL. */
static void local_submit(struct local_backend *b, const struct slice *query,
                         const struct backend_request *request)
{
    static const enum embedder_role roles[] = {[BACKEND_PLAIN] = EMBEDDER_PLAIN,
                                               [BACKEND_QUERY] = EMBEDDER_QUERY,
                                               [BACKEND_DOCUMENT] = EMBEDDER_DOCUMENT};
    struct ticket *t = mem_alloc(sizeof *t);
    struct err e = {0};
    int rc;
    if (!t) {
        rc = err_set(&e, KITH_ENOMEM, "out of memory");
    } else if (query) {
        *t = (struct ticket){.done = request->done, .arg = request->arg};
        const struct embedder_rerank_request r = {.query = *query,
                                                  .documents = request->texts,
                                                  .n = request->n,
                                                  .truncate = request->truncate,
                                                  .done = on_result,
                                                  .arg = t};
        rc = embedder_rerank(b->embedder, &r, &e);
    } else {
        *t = (struct ticket){.done = request->done, .arg = request->arg};
        const struct embedder_request r = {.texts = request->texts,
                                           .n = request->n,
                                           .truncate = request->truncate,
                                           .role = roles[request->role],
                                           .done = on_result,
                                           .arg = t};
        rc = embedder_submit(b->embedder, &r, &e);
    }
    if (rc) {
        mem_free(t);
        backend_refuse(request, &e);
    }
}

static void local_embed(void *self, const struct backend_request *request)
{
    local_submit(self, NULL, request);
}

static void local_rerank(void *self, struct slice query, const struct backend_request *request)
{
    local_submit(self, &query, request);
}

static void local_describe(void *self, struct backend_pairs *p)
{
    const struct local_backend *b = self;
    const struct embedder_info *info = embedder_info(b->embedder);
    backend_pair(p, "kind", "local");
    backend_pair(p, "tasks", "%s%s%s", info->embeds ? "embed" : "",
                 info->embeds && info->reranks ? "," : "", info->reranks ? "rerank" : "");
    backend_pair(p, "name", "%s", info->name);
    backend_pair(p, "hash", "%s", info->hash);
    backend_pair(p, "pooling", "%s", info->pooling);
    backend_pair(p, "arch", "%s", info->arch);
    backend_pair(p, "type", "%s", info->type);
    backend_pair(p, "precision", "%s", info->precision);
    backend_pair(p, "kernels", "%s", info->kernels);
    backend_pair(p, "path", "%s", b->path);
    backend_pair(p, "dim", "%u", info->dim);
    backend_pair(p, "context", "%u", info->context);
    backend_pair(p, "bytes", "%zu", info->bytes);
    backend_pair(p, "query-prompt", "%s", info->query_prompt);
    backend_pair(p, "document-prompt", "%s", info->document_prompt);
    backend_pair(p, "dims", "%s", info->dims);
    backend_pair(p, "threads", "%u", info->n_threads);
    backend_pair(p, "batch-tokens", "%u", info->batch_tokens);
}

static void local_stats(void *self, struct backend_stats *out)
{
    const struct local_backend *b = self;
    struct scheduler_stats stats;
    embedder_stats(b->embedder, &stats);
    *out = (struct backend_stats){.queued_requests = stats.queued_requests,
                                  .batches = stats.batches,
                                  .texts = stats.texts,
                                  .tokens = stats.tokens};
}

static void local_close(void *self)
{
    struct local_backend *b = self;
    embedder_close(b->embedder);
    mem_free(b->path);
    mem_free(b);
}

/* How the weights came, and what was wrong with the file that keeps them. */
static void log_weights(const struct embedder_info *info)
{
    if (*info->packed_refused)
        (info->packed_damaged ? log_warning
                              : log_notice)("the packed weights in %s are not used: %s",
                                            info->packed_path, info->packed_refused);
    if (*info->packed_failed)
        log_warning("packed weights stay in memory and are not kept in %s: %s",
                    info->packed_path, info->packed_failed);
    if (info->weights == EMBEDDER_MAPPED)
        log_notice("model %s: weights mapped from %s", info->name, info->packed_path);
    else if (info->weights == EMBEDDER_WRITTEN)
        log_notice("model %s: weights packed in %" PRId64 " ms, written in %" PRId64
                   " ms to %s and mapped from it",
                   info->name, info->pack_us / 1000, info->write_us / 1000, info->packed_path);
    else
        log_notice("model %s: weights packed in %" PRId64 " ms", info->name,
                   info->pack_us / 1000);
}

int local_backend_open(struct engine_backend *out, const char *path,
                       const struct embedder_options *options, struct err *e)
{
    struct local_backend *b = mem_calloc(1, sizeof *b);
    if (!b || !(b->path = mem_strdup(path))) {
        mem_free(b);
        return err_set(e, KITH_ENOMEM, "out of memory");
    }
    int rc = embedder_open(&b->embedder, path, options, e);
    if (rc) {
        mem_free(b->path);
        mem_free(b);
        return rc;
    }
    log_weights(embedder_info(b->embedder));
    *out = (struct engine_backend){.self = b,
                                   .describe = local_describe,
                                   .embed = local_embed,
                                   .rerank = local_rerank,
                                   .stats = local_stats,
                                   .close = local_close};
    return 0;
}

struct embedder *local_backend_embedder(const struct engine_backend *b)
{
    return ((const struct local_backend *)b->self)->embedder;
}
