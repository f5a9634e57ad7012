/* kith-server: reads the settings, opens the parts in order, waits for a signal, closes them in
 * the opposite order.
 *
 *   start:  settings → log → shard (recovers the data) → models → re-embedding → recall
 *           sampler → network
 *   stop:   network (no new clients, replies drain) → recall sampler → re-embedding → models
 *           → shard (final checkpoint)
 *
 * One thread takes all signals with sigwait; all others, and the engine process, never see
 * them.
 *
 *   SIGTERM, SIGINT   stop in order; a second one ends at once: the log has everything
 *   SIGHUP            open the log file again (log rotation)
 *
 * Exit status: 0 stopped in order, 1 could not start, 2 stopped but the final checkpoint
 * failed, 3 the data log could not be made durable. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "index/index.h"
#include "server/command.h"
#include "server/config.h"
#include "server/models.h"
#include "server/net.h"
#include "server/recall.h"
#include "server/reembed.h"
#include "server/server.h"
#include "server/settings.h"
#include "server/shard.h"
#include "server/slowlog.h"

enum {
    EXIT_STOPPED = 0,
    EXIT_NO_START = 1,
    EXIT_NO_CHECKPOINT = 2,
    EXIT_LOG_FAILED = 3,
    DRAIN_MS = 5000,
    PROGRESS_S = 5
};

struct program {
    struct server server;
    pthread_t signal_thread;
    sem_t stop;
    _Atomic bool recovering, ended;
    int64_t started_us;
    bool wrote_pidfile;
    /* The log's thread reads it; the shard is older and younger than the network. */
    _Atomic(struct net *) net;
    struct reembed *reembed;
};

/* --- signals --- */

static void taken_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGUSR1); /* the program's own: the thread ends */
}

static void on_stop_signal(struct program *p, int signal)
{
    if (atomic_exchange(&p->server.stopping, true)) {
        log_warning("second signal: ending at once, without a checkpoint");
        _exit(EXIT_NO_CHECKPOINT);
    }
    log_notice("%s: stopping", signal == SIGINT ? "interrupted" : "asked to end");
    sem_post(&p->stop);
}

static void *signal_main(void *arg)
{
    struct program *p = arg;
    sigset_t set;
    taken_signals(&set);
    const struct timespec tick = {.tv_sec = PROGRESS_S};
    for (;;) {
        int signal = sigtimedwait(&set, NULL, &tick);
        if (atomic_load(&p->ended))
            return NULL;
        if (signal < 0) {
            if (atomic_load(&p->recovering))
                log_notice("still opening %s, %" PRId64 " s so far", p->server.config->dir,
                           (clock_mono_us() - p->started_us) / 1000000);
            continue;
        }
        if (signal == SIGTERM || signal == SIGINT)
            on_stop_signal(p, signal);
        else if (signal == SIGHUP && log_reopen(p->server.config->logfile) == 0)
            log_notice("log file opened again");
        else if (signal == SIGHUP)
            log_warning("cannot open the log file %s again: %s", p->server.config->logfile,
                        strerror(errno));
    }
}

static int start_signals(struct program *p, struct err *e)
{
    sigset_t set;
    taken_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    sem_init(&p->stop, 0, 0);
    int rc = pthread_create(&p->signal_thread, NULL, signal_main, p);
    return rc ? err_set_errno(e, rc, "cannot start the signal thread") : 0;
}

static void stop_signals(struct program *p)
{
    atomic_store(&p->ended, true);
    pthread_kill(p->signal_thread, SIGUSR1);
    pthread_join(p->signal_thread, NULL);
    sem_destroy(&p->stop);
}

/* --- the shard's callbacks, on its log's thread --- */

static void on_released(void *arg)
{
    struct program *p = arg;
    struct net *net = atomic_load(&p->net);
    if (net)
        net_released(net);
}

static void on_fatal(void *arg, const struct err *why)
{
    (void)arg;
    /* What the disk holds is no longer known. No reply may leave and nothing more may be
     * written, a checkpoint least of all; the next start reads what is really there. */
    log_error("the data log failed and the server ends: %s", why->message);
    _exit(EXIT_LOG_FAILED);
}

/* --- starting --- */

static int ask_for_pages(int argc, char **argv)
{
    struct buf out;
    buf_init(&out);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            config_print_help(&out);
        else if (strcmp(argv[i], "--version") == 0 || strcmp(argv[i], "-v") == 0)
            buf_printf(&out, "kith-server %s (as Redis %s), kernels %s\n", KITH_VERSION,
                       KITH_REDIS_VERSION, index_kernels_name());
        else
            continue;
        break;
    }
    bool asked = out.len > 0;
    if (asked)
        fwrite(out.data, 1, out.len, stdout);
    buf_deinit(&out);
    return asked;
}

static void name_run(struct server *s)
{
    struct rng rng;
    rng_seed(&rng, rng_entropy());
    for (int i = 0; i < 40; i++)
        s->run_id[i] = "0123456789abcdef"[rng_below(&rng, 16)];
    s->started_unix_s = clock_wall_ms() / 1000;
    ssize_t n = readlink("/proc/self/exe", s->executable, sizeof s->executable - 1);
    s->executable[n > 0 ? n : 0] = '\0';
}

static int write_pidfile(struct program *p, struct err *e)
{
    const char *path = p->server.config->pidfile;
    char text[24];
    if (!*path)
        return 0;
    int n = snprintf(text, sizeof text, "%d\n", (int)getpid());
    int rc = file_write_whole(path, text, (size_t)n, e);
    p->wrote_pidfile = rc == 0;
    return rc;
}

static int open_shard(struct program *p, struct err *e)
{
    struct config *c = p->server.config;
    int rc = file_make_dirs(c->dir, e);
    if (rc != 0)
        return rc;
    struct shard_options o = {.on_released = on_released, .on_fatal = on_fatal, .arg = p};
    settings_shard_options(c, &o);
    p->started_us = clock_mono_us();
    atomic_store(&p->recovering, true);
    rc = shard_open(&p->server.shard, &o, e);
    atomic_store(&p->recovering, false);
    if (rc != 0)
        return rc;
    struct shard_stats stats;
    shard_stats(p->server.shard, &stats, false);
    uint64_t keys = 0;
    for (size_t db = 0; db < sizeof stats.n_keys / sizeof *stats.n_keys; db++)
        keys += stats.n_keys[db];
    log_notice("opened %s in %" PRId64 " ms: %" PRIu64 " keys, %" PRIu64
               " vectors, checkpoint at %" PRIu64 ", log up to %" PRIu64,
               c->dir, (clock_mono_us() - p->started_us) / 1000, keys, stats.n_vectors,
               stats.checkpoint_index, stats.log_last);
    return 0;
}

static int open_models(struct program *p, struct err *e)
{
    struct models_options o;
    int rc = settings_models_options(p->server.config, &o, e);
    if (rc == 0)
        rc = models_open(&p->server.models, &o, e);
    mem_free((void *)o.configured);
    return rc;
}

static int open_net(struct program *p, struct err *e)
{
    struct net *net = NULL;
    int rc = net_open(&net, &p->server, e);
    if (rc != 0)
        return rc;
    p->server.net = net;
    atomic_store(&p->net, net);
    rc = net_start(net, e);
    if (rc != 0) {
        atomic_store(&p->net, NULL);
        net_close(net, 0);
        p->server.net = NULL;
    }
    return rc;
}

static int open_parts(struct program *p, struct err *e)
{
    struct server *s = &p->server;
    command_init();
    s->slowlog = slowlog_new(s->config);
    if (!s->slowlog)
        return err_set(e, KITH_ENOMEM, "out of memory");
    int rc = open_shard(p, e);
    if (rc == 0)
        rc = write_pidfile(p, e); /* only now: the directory's lock says that we are the one */
    if (rc == 0)
        rc = open_models(p, e);
    if (rc == 0)
        rc = reembed_open(&p->reembed, s->shard, s->models, e);
    if (rc == 0)
        rc = recall_sampler_start(&s->recall,
                                  (double)atomic_load(&s->config->recall_sample_cost), e);
    if (rc == 0)
        rc = open_net(p, e);
    return rc;
}

/* --- stopping --- */

/* Closes what was opened; returns the exit status. */
static int close_parts(struct program *p, bool started)
{
    struct server *s = &p->server;
    struct err e = {0};
    int status = started ? EXIT_STOPPED : EXIT_NO_START;
    /* The log still releases while replies drain, so net_close comes before the pointer goes;
     * it keeps net_released out of a network that is no more. */
    if (s->net)
        net_close(s->net, DRAIN_MS);
    atomic_store(&p->net, NULL);
    s->net = NULL;
    recall_sampler_stop(s->recall); /* it counts sets of the shard */
    reembed_close(p->reembed);
    models_close(s->models);
    if (s->shard) {
        bool no_save = !started || atomic_load(&s->stop_without_save);
        if (!no_save)
            log_notice("final checkpoint");
        if (shard_close(s->shard, no_save, &e) != 0) {
            log_error("the data was not closed in order: %s. The log has everything",
                      e.message);
            status = started ? EXIT_NO_CHECKPOINT : EXIT_NO_START;
        }
    }
    slowlog_free(s->slowlog);
    if (p->wrote_pidfile)
        unlink(s->config->pidfile);
    return status;
}

int main(int argc, char **argv)
{
    static struct program p;
    struct err e = {0};
    if (ask_for_pages(argc, argv))
        return EXIT_STOPPED;
    if (config_new(&p.server.config, &e) != 0 ||
        config_load(p.server.config, argc - 1, argv + 1, &e) != 0) {
        fprintf(stderr, "kith-server: %s\n", e.message);
        config_free(p.server.config);
        return EXIT_NO_START;
    }
    struct config *c = p.server.config;
    if (log_open(c->logfile, "server") != 0) {
        fprintf(stderr, "kith-server: cannot open logfile %s: %s\n", c->logfile,
                strerror(errno));
        config_free(c);
        return EXIT_NO_START;
    }
    log_set_level((enum log_level)atomic_load(&c->loglevel));
    name_run(&p.server);
    log_notice("kith-server %s, process id %d, kernels %s, data in %s", KITH_VERSION,
               (int)getpid(), index_kernels_name(), c->dir);
    atomic_store(&c->maxclients, settings_fit_clients(atomic_load(&c->maxclients)));

    int status = EXIT_NO_START;
    if (start_signals(&p, &e) != 0) {
        log_error("%s", e.message);
    } else {
        bool started = open_parts(&p, &e) == 0;
        if (started) {
            log_notice("ready: port %" PRId64 " on %s%s%s", atomic_load(&c->port), c->bind,
                       *c->unixsocket ? ", " : "", c->unixsocket);
            while (sem_wait(&p.stop) != 0)
                continue;
        } else {
            log_error("cannot start: %s", e.message);
        }
        status = close_parts(&p, started);
        stop_signals(&p);
        if (started)
            log_notice("stopped%s", status == EXIT_STOPPED ? "" : ", not in order");
    }
    config_free(c);
    return status;
}
