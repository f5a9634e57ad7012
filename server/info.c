#include "server/info.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/clock.h"
#include "index/index.h"
#include "server/commands_shared.h"
#include "server/config.h"
#include "server/engine_process.h"
#include "server/models.h"
#include "server/net.h"
#include "server/recall.h"
#include "server/server.h"
#include "server/shard.h"
#include "server/slowlog.h"

/* What one INFO is made of: taken once, so that sections agree with each other. */
struct info {
    struct server *server;
    struct shard_stats shard;
    struct net_stats net;
    struct buf *out;
};

static uint64_t since(uint64_t now, _Atomic uint64_t *then)
{
    return now - atomic_load(then);
}

static void line_human(struct buf *out, const char *field, uint64_t bytes)
{
    static const char units[] = "BKMGTP";
    double v = (double)bytes;
    int unit = 0;
    while (v >= 1024 && units[unit + 1]) {
        v /= 1024;
        unit++;
    }
    buf_printf(out, unit == 0 ? "%s:%.0f%c\r\n" : "%s:%.2f%c\r\n", field, v, units[unit]);
}

static void info_server(struct info *i)
{
    struct server *s = i->server;
    struct utsname os;
    if (uname(&os) != 0)
        memset(&os, 0, sizeof os);
    int64_t up = clock_wall_ms() / 1000 - s->started_unix_s;
    buf_printf(i->out,
               "redis_version:" KITH_REDIS_VERSION "\r\nkith_version:" KITH_VERSION "\r\n"
               "redis_mode:standalone\r\nos:%s %s %s\r\narch_bits:%zu\r\n"
               "multiplexing_api:epoll\r\ngcc_version:%d.%d.%d\r\nprocess_id:%d\r\n"
               "run_id:%s\r\ntcp_port:%" PRId64 "\r\nserver_time_usec:%" PRId64 "\r\n"
               "uptime_in_seconds:%" PRId64 "\r\nuptime_in_days:%" PRId64 "\r\n"
               "hz:10\r\nexecutable:%s\r\nconfig_file:%s\r\nio_threads_active:%d\r\n"
               "search_threads:%u\r\n",
               os.sysname, os.release, os.machine, sizeof(void *) * 8, __GNUC__, __GNUC_MINOR__,
               __GNUC_PATCHLEVEL__, (int)getpid(), s->run_id, atomic_load(&s->config->port),
               clock_wall_us(), up, up / 86400, s->executable, config_file(s->config),
               atomic_load(&s->config->io_threads) > 1, i->net.search_threads);
}

static void info_clients(struct info *i)
{
    buf_printf(i->out,
               "connected_clients:%" PRIu64 "\r\ncluster_connections:0\r\nmaxclients:%" PRId64
               "\r\nblocked_clients:%" PRIu64 "\r\ntracking_clients:0\r\n",
               i->net.connected_clients, atomic_load(&i->server->config->maxclients),
               i->net.blocked_clients);
}

static void info_memory(struct info *i)
{
    uint64_t used = shard_used_memory(i->server->shard),
             resident = process_resident_bytes(getpid());
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    uint64_t peak = (uint64_t)usage.ru_maxrss * 1024; /* pages; the allocator may hold more */
    peak = peak > used ? peak : used;
    uint64_t total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t limit = (uint64_t)atomic_load(&i->server->config->maxmemory);
    struct buf *out = i->out;
    buf_printf(out, "used_memory:%" PRIu64 "\r\n", used);
    line_human(out, "used_memory_human", used);
    buf_printf(out, "used_memory_rss:%" PRIu64 "\r\n", resident);
    line_human(out, "used_memory_rss_human", resident);
    buf_printf(out, "used_memory_peak:%" PRIu64 "\r\n", peak);
    line_human(out, "used_memory_peak_human", peak);
    buf_printf(out, "total_system_memory:%" PRIu64 "\r\n", total);
    line_human(out, "total_system_memory_human", total);
    buf_printf(out, "maxmemory:%" PRIu64 "\r\n", limit);
    line_human(out, "maxmemory_human", limit);
    buf_printf(out,
               "maxmemory_policy:noeviction\r\nmem_fragmentation_ratio:%.2f\r\n"
               "mem_dirty_chunks:%" PRIu64 "\r\nmem_allocator:libc\r\n",
               used > 0 ? (double)resident / (double)used : 0, i->shard.dirty_bytes);
}

static void info_persistence(struct info *i)
{
    const struct shard_stats *s = &i->shard;
    bool refused = s->write_refusal[0] != '\0';
    int64_t saved =
        s->last_checkpoint_unix_s > 0 ? s->last_checkpoint_unix_s : i->server->started_unix_s;
    buf_printf(i->out,
               "loading:0\r\nasync_loading:0\r\nrdb_changes_since_last_save:%" PRIu64 "\r\n"
               "rdb_bgsave_in_progress:%d\r\nrdb_last_save_time:%" PRId64 "\r\n"
               "rdb_last_bgsave_status:%s\r\nrdb_last_bgsave_time_sec:%" PRId64 "\r\n"
               "rdb_current_bgsave_time_sec:-1\r\nrdb_saves:%" PRIu64 "\r\n"
               "aof_enabled:1\r\naof_rewrite_in_progress:0\r\naof_rewrite_scheduled:0\r\n"
               "aof_last_rewrite_time_sec:-1\r\naof_current_rewrite_time_sec:-1\r\n"
               "aof_last_bgrewrite_status:ok\r\naof_last_write_status:%s\r\n"
               "aof_current_size:%" PRIu64 "\r\naof_base_size:0\r\n",
               s->log_last - s->checkpoint_index, s->checkpoint_running, saved,
               s->last_checkpoint_ok ? "ok" : "err",
               s->n_checkpoints > 0 ? s->last_checkpoint_ms / 1000 : -1, s->n_checkpoints,
               refused ? "err" : "ok", s->log_bytes);
    buf_printf(i->out,
               "log_last_index:%" PRIu64 "\r\nlog_written_index:%" PRIu64
               "\r\nlog_durable_index:%" PRIu64 "\r\ncheckpoint_index:%" PRIu64
               "\r\nlast_checkpoint_ms:%" PRId64 "\r\nstore_bytes:%" PRIu64
               "\r\nwrites_refused:%s\r\n",
               s->log_last, s->log_written, s->log_durable, s->checkpoint_index,
               s->last_checkpoint_ms, s->store_bytes, s->write_refusal);
}

static void info_stats(struct info *i)
{
    struct server_reset *r = &i->server->reset;
    buf_printf(
        i->out,
        "total_connections_received:%" PRIu64 "\r\ntotal_commands_processed:%" PRIu64 "\r\n"
        "instantaneous_ops_per_sec:%.0f\r\ntotal_net_input_bytes:%" PRIu64 "\r\n"
        "total_net_output_bytes:%" PRIu64 "\r\nrejected_connections:%" PRIu64 "\r\n"
        "expired_keys:%" PRIu64 "\r\nexpired_elements:%" PRIu64
        "\r\nevicted_keys:0\r\nkeyspace_hits:%" PRIu64 "\r\nkeyspace_misses:%" PRIu64
        "\r\npubsub_channels:0\r\npubsub_patterns:0\r\n"
        "latest_fork_usec:0\r\ntotal_forks:0\r\ntotal_error_replies:%" PRIu64 "\r\n"
        "searches_offloaded:%" PRIu64 "\r\nbusy_polls:%" PRIu64 "\r\n"
        "busy_polls_in_vain:%" PRIu64 "\r\n",
        since(i->net.connections_received, &r->connections),
        since(i->net.commands_processed, &r->commands), i->net.ops_per_second,
        since(i->net.bytes_in, &r->bytes_in), since(i->net.bytes_out, &r->bytes_out),
        since(i->net.rejected_connections, &r->rejected), i->shard.expired_keys,
        i->shard.expired_elements, i->shard.hits, i->shard.misses,
        since(i->net.error_replies, &r->errors),
        since(i->net.searches_offloaded, &r->offloaded), since(i->net.busy_polls, &r->polls),
        since(i->net.busy_polls_in_vain, &r->polls_in_vain));
}

void info_reset(struct server *s)
{
    struct net_stats net;
    shard_reset_stats(s->shard);
    net_stats(s->net, &net);
    struct server_reset *r = &s->reset;
    atomic_store(&r->connections, net.connections_received);
    atomic_store(&r->commands, net.commands_processed);
    atomic_store(&r->bytes_in, net.bytes_in);
    atomic_store(&r->bytes_out, net.bytes_out);
    atomic_store(&r->rejected, net.rejected_connections);
    atomic_store(&r->errors, net.error_replies);
    atomic_store(&r->offloaded, net.searches_offloaded);
    atomic_store(&r->polls, net.busy_polls);
    atomic_store(&r->polls_in_vain, net.busy_polls_in_vain);
    command_stats_reset();
}

static void info_replication(struct info *i)
{
    buf_printf(i->out,
               "role:master\r\nconnected_slaves:0\r\nmaster_failover_state:no-failover\r\n"
               "master_replid:%s\r\nmaster_repl_offset:%" PRIu64 "\r\nsecond_repl_offset:-1\r\n"
               "repl_backlog_active:0\r\n",
               i->server->run_id, i->shard.log_last);
}

static void info_cpu(struct info *i)
{
    struct rusage self, children;
    getrusage(RUSAGE_SELF, &self);
    getrusage(RUSAGE_CHILDREN, &children);
    buf_printf(i->out,
               "used_cpu_sys:%ld.%06ld\r\nused_cpu_user:%ld.%06ld\r\n"
               "used_cpu_sys_children:%ld.%06ld\r\nused_cpu_user_children:%ld.%06ld\r\n",
               self.ru_stime.tv_sec, self.ru_stime.tv_usec, self.ru_utime.tv_sec,
               self.ru_utime.tv_usec, children.ru_stime.tv_sec, children.ru_stime.tv_usec,
               children.ru_utime.tv_sec, children.ru_utime.tv_usec);
}

static void info_modules(struct info *i)
{
    /* Client libraries look for the module before they use its commands. */
    buf_append_str(i->out, "module:name=vectorset,ver=1,api=1,filters=0,usedby=[],using=[],"
                           "options=[]\r\n");
}

static void one_command(void *arg, const struct command *c, uint64_t calls, uint64_t us,
                        uint64_t failed)
{
    char name[96];
    command_full_name(c, name, sizeof name);
    buf_printf(arg,
               "cmdstat_%s:calls=%" PRIu64 ",usec=%" PRIu64
               ",usec_per_call=%.2f,rejected_calls=0,failed_calls=%" PRIu64 "\r\n",
               name, calls, us, (double)us / (double)calls, failed);
}

static void info_commandstats(struct info *i)
{
    command_stats_each(one_command, i->out);
}

static void one_error(void *arg, const char *code, uint64_t count)
{
    buf_printf(arg, "errorstat_%s:count=%" PRIu64 "\r\n", code, count);
}

static void info_errorstats(struct info *i)
{
    error_stats_each(one_error, i->out);
}

static void info_cluster(struct info *i)
{
    buf_append_str(i->out, "cluster_enabled:0\r\n");
}

static void info_keyspace(struct info *i)
{
    for (size_t db = 0; db < sizeof i->shard.n_keys / sizeof *i->shard.n_keys; db++)
        if (i->shard.n_keys[db] > 0)
            buf_printf(i->out,
                       "db%zu:keys=%" PRIu64 ",expires=%" PRIu64 ",avg_ttl=0,subexpiry=0\r\n",
                       db, i->shard.n_keys[db], i->shard.n_expires[db]);
}

static void info_vectors(struct info *i)
{
    buf_printf(i->out,
               "vector_sets:%" PRIu64 "\r\nvectors:%" PRIu64 "\r\nvectors_unlinked:%" PRIu64
               "\r\nvector_kernels:%s\r\n",
               i->shard.n_vector_sets, i->shard.n_vectors, i->shard.n_unlinked,
               index_kernels_name());
}

static void one_recall(struct buf *out, const char *name, double recall)
{
    if (isnan(recall))
        buf_printf(out, "%s:\r\n", name);
    else
        buf_printf(out, "%s:%.4f\r\n", name, recall);
}

/* What searches found of the exact 10 nearest, as sampled (recall.h). */
static void info_vectorsets(struct info *i)
{
    struct recall_totals t;
    recall_totals(&t);
    buf_printf(i->out, "recall_sampled_sets:%" PRIu64 "\r\nrecall_samples:%" PRIu64 "\r\n",
               t.n_sets, t.n_samples);
    one_recall(i->out, "recall_at_10_mean", t.mean);
    one_recall(i->out, "recall_at_10_worst", t.worst);
    buf_printf(i->out, "reembeddings_running:%" PRIu64 "\r\n", i->shard.n_reembedding);
}

static void one_model(void *arg, const struct model_view *v)
{
    buf_printf(arg,
               "model_%s:state=%s,default=%d,tasks=%s,dim=%" PRIu32 ",pid=%d,bytes=%" PRIu64
               ",requests=%" PRIu64 ",texts=%" PRIu64 ",tokens=%" PRIu64 ",queued=%" PRIu64
               ",failed=%" PRIu64 ",restarts=%" PRIu64 ",returns=%" PRIu64 "\r\n",
               v->spec.name, v->state, v->is_default, engine_tasks_word(v->model.tasks),
               v->model.dim, v->stats.pid, v->bytes, v->stats.requests, v->stats.texts,
               v->stats.tokens, v->stats.queued, v->stats.failed, v->stats.restarts,
               v->stats.returns);
}

static void sum_bytes(void *arg, const struct model_view *v)
{
    *(uint64_t *)arg += v->bytes;
}

/* The fields without a name are those of the default model. */
static void info_engine(struct info *i)
{
    struct models *models = i->server->models;
    struct model_view v;
    uint64_t bytes = 0;
    bool enabled = models_view(models, (struct slice){0}, &v);
    models_each(models, sum_bytes, &bytes);
    buf_printf(i->out,
               "engine_enabled:%d\r\nengine_memory_limit:%" PRIu64
               "\r\nengine_memory_used:%" PRIu64 "\r\n",
               enabled, models_limit(models), bytes);
    if (enabled) {
        const struct engine_stats *s = &v.stats;
        const struct engine_model *m = &v.model;
        buf_printf(i->out,
                   "engine_up:%d\r\nengine_pid:%d\r\nengine_restarts:%" PRIu64
                   "\r\nengine_requests:%" PRIu64 "\r\nengine_texts:%" PRIu64
                   "\r\nengine_tokens:%" PRIu64 "\r\nengine_batches:%" PRIu64
                   "\r\nengine_queued:%" PRIu64 "\r\nengine_failed:%" PRIu64
                   "\r\nengine_last_error:%s\r\n",
                   s->up, s->pid, s->restarts, s->requests, s->texts, s->tokens, s->batches,
                   s->queued, s->failed, s->last_error);
        if (m->dim > 0)
            buf_printf(i->out,
                       "engine_model:%s\r\nengine_model_hash:%s\r\nengine_model_dim:%" PRIu32
                       "\r\nengine_model_context:%" PRIu32
                       "\r\nengine_model_arch:%s\r\nengine_model_pooling:%s\r\n"
                       "engine_model_type:%s\r\nengine_precision:%s\r\nengine_kernels:%s\r\n",
                       m->name, m->hash, m->dim, m->context, m->arch, m->pooling, m->type,
                       m->precision, m->kernels);
    }
    models_each(models, one_model, i->out);
}

static const struct section {
    const char *name, *title;
    bool by_default;
    void (*write)(struct info *i);
} sections[] = {
    {"server", "Server", true, info_server},
    {"clients", "Clients", true, info_clients},
    {"memory", "Memory", true, info_memory},
    {"persistence", "Persistence", true, info_persistence},
    {"stats", "Stats", true, info_stats},
    {"replication", "Replication", true, info_replication},
    {"cpu", "CPU", true, info_cpu},
    {"modules", "Modules", true, info_modules},
    {"commandstats", "Commandstats", false, info_commandstats},
    {"errorstats", "Errorstats", true, info_errorstats},
    {"cluster", "Cluster", true, info_cluster},
    {"engine", "Engine", true, info_engine},
    {"vectors", "Vectors", true, info_vectors},
    {"vectorsets", "Vectorsets", true, info_vectorsets},
    {"keyspace", "Keyspace", true, info_keyspace},
};

static bool wanted(const struct section *s, const struct slice *names, int n)
{
    if (n == 0)
        return s->by_default;
    for (int i = 0; i < n; i++)
        if (slice_is(names[i], s->name) || slice_is(names[i], "all") ||
            slice_is(names[i], "everything") ||
            (slice_is(names[i], "default") && s->by_default))
            return true;
    return false;
}

void info_write(struct server *s, const struct slice *names, int n, bool held, struct buf *out)
{
    struct info i = {.server = s, .out = out};
    shard_stats(s->shard, &i.shard, held);
    net_stats(s->net, &i.net);
    bool first = true;
    for (size_t k = 0; k < sizeof sections / sizeof *sections; k++) {
        if (!wanted(&sections[k], names, n))
            continue;
        buf_printf(out, "%s# %s\r\n", first ? "" : "\r\n", sections[k].title);
        sections[k].write(&i);
        first = false;
    }
}
