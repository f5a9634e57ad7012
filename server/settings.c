#include "server/settings.h"

#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/config.h"
#include "server/config_file.h"
#include "server/models.h"
#include "server/recall.h"
#include "server/server.h"
#include "server/shard.h"

enum { OTHER_FILES = 64 }; /* log segments, the store, pipes, listeners */

void settings_shard_options(struct config *c, struct shard_options *o)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t link_threads = atomic_load(&c->link_threads);
    if (link_threads == 0)
        link_threads = processors > 2 ? processors / 2 : 1;
    o->dir = c->dir;
    o->appendfsync = config_word(c, "appendfsync");
    o->checkpoint_log_bytes = (uint64_t)atomic_load(&c->checkpoint_log_bytes);
    o->checkpoint_dirty_limit = (uint64_t)atomic_load(&c->checkpoint_dirty_limit);
    o->log_segment_bytes = (uint64_t)atomic_load(&c->log_segment_bytes);
    o->maxmemory = (uint64_t)atomic_load(&c->maxmemory);
    o->checkpoint_interval_s = (uint32_t)atomic_load(&c->checkpoint_interval_s);
    o->link_threads = (unsigned)link_threads;
    o->tail_max = (uint32_t)atomic_load(&c->vset_tail_max);
}

/* The model of `embedder`, and one for each line of `model`. */
static int configured_models(struct config *c, struct model_spec **out, int *n, struct err *e)
{
    size_t lines = 1;
    for (const char *p = c->models; *p; p++)
        lines += *p == '\n';
    struct model_spec *specs = mem_calloc(lines + 1, sizeof *specs);
    if (!specs)
        return err_set(e, KITH_ENOMEM, "out of memory");
    int rc = 0, count = 0;
    if (*c->embedder) {
        const struct slice words[] = {slice_of("default"), slice_of(c->embedder)};
        rc = model_spec_read(&specs[count++], words, 2, e);
        if (rc != 0)
            err_wrap(e, "embedder");
    }
    struct buf store;
    buf_init(&store);
    for (const char *p = c->models; *p && rc == 0;) {
        struct slice words[CONFIG_WORDS_MAX], line = {.p = p, .n = strcspn(p, "\n")};
        buf_clear(&store);
        int n_words = config_split_line(line, &store, words, e);
        rc = n_words < 0 ? n_words : model_spec_read(&specs[count++], words, n_words, e);
        p += line.n + (p[line.n] != '\0');
    }
    buf_deinit(&store);
    if (rc != 0) {
        mem_free(specs);
        return rc;
    }
    *out = specs;
    *n = count;
    return 0;
}

int settings_models_options(struct config *c, struct models_options *o, struct err *e)
{
    struct model_spec *specs = NULL;
    int n = 0, rc = configured_models(c, &specs, &n, e);
    *o = (struct models_options){
        .program = *c->engine_path ? c->engine_path : NULL,
        .dir = c->dir,
        .precision = c->engine_precision,
        .packed_cache = atomic_load(&c->engine_packed_cache) == 1,
        .threads = atomic_load(&c->engine_threads),
        .batch_tokens = atomic_load(&c->engine_batch_tokens),
        .batch_wait_us = atomic_load(&c->engine_batch_wait_us),
        .queue_tokens = atomic_load(&c->engine_queue_tokens),
        .timeout_ms = atomic_load(&c->engine_timeout_ms),
        .memory_limit = (uint64_t)atomic_load(&c->engine_memory_limit),
        .configured = specs,
        .n_configured = n,
    };
    return rc;
}

int64_t settings_fit_clients(int64_t maxclients)
{
    struct rlimit limit;
    rlim_t want = (rlim_t)maxclients + OTHER_FILES;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return maxclients;
    if (limit.rlim_cur < want) {
        struct rlimit raised = {.rlim_cur = want,
                                .rlim_max = limit.rlim_max < want ? want : limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) != 0) {
            raised = (struct rlimit){.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
            setrlimit(RLIMIT_NOFILE, &raised);
        }
        getrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur >= want)
        return maxclients;
    int64_t fit = (int64_t)limit.rlim_cur - OTHER_FILES;
    log_warning("maxclients %" PRId64 " needs %" PRId64 " open files and only %" PRId64
                " are allowed: %" PRId64 " clients fit (raise ulimit -n)",
                maxclients, (int64_t)want, (int64_t)limit.rlim_cur, fit > 1 ? fit : 1);
    return fit > 1 ? fit : 1;
}

void settings_changed(struct server *s, const char *name)
{
    static const char *const of_shard[] = {
        "appendfsync", "checkpoint-interval", "checkpoint-log-bytes", "checkpoint-dirty-limit",
        "maxmemory",   "vset-tail-max"};
    for (size_t i = 0; i < sizeof of_shard / sizeof *of_shard; i++)
        if (strcmp(name, of_shard[i]) == 0) {
            struct shard_options o = {0};
            settings_shard_options(s->config, &o);
            shard_configure(s->shard, &o);
        }
    if (strcmp(name, "recall-sample-cost") == 0 && s->recall)
        recall_sampler_configure(s->recall,
                                 (double)atomic_load(&s->config->recall_sample_cost));
    else if (strcmp(name, "loglevel") == 0)
        log_set_level((enum log_level)atomic_load(&s->config->loglevel));
    else if (strcmp(name, "maxclients") == 0)
        atomic_store(&s->config->maxclients,
                     settings_fit_clients(atomic_load(&s->config->maxclients)));
    else if (strcmp(name, "engine-timeout-ms") == 0)
        models_set_timeout(s->models, atomic_load(&s->config->engine_timeout_ms));
    else if (strcmp(name, "engine-memory-limit") == 0)
        models_set_limit(s->models, (uint64_t)atomic_load(&s->config->engine_memory_limit));
}
