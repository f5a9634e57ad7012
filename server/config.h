#pragma once
/* The settings: one table row each (name, type, default, range, changeable at run time, help),
 * read from a file of redis.conf's form, then from --name value options, then CONFIG SET.
 *
 * Thread: strings and what is not changeable are fixed after start; numbers that CONFIG SET can
 * change are atomics, read anywhere. CONFIG GET/SET/REWRITE run one at a time under the
 * config's own lock. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct config {
    /* fixed at start */
    _Atomic int64_t port, io_threads, search_threads, busy_poll_us, databases, tcp_backlog,
        unixsocketperm;
    char *bind, *unixsocket, *dir, *logfile, *pidfile;
    char *embedder, *engine_path, *engine_precision;
    char *models; /* a line a model, as model_spec.h has them */
    _Atomic int64_t engine_threads, engine_batch_tokens, engine_batch_wait_us,
        engine_queue_tokens, link_threads, log_segment_bytes;
    _Atomic int engine_packed_cache; /* 1: yes */

    /* changeable */
    _Atomic int64_t maxclients, timeout_s, tcp_keepalive_s, maxmemory, slowlog_slower_than_us,
        slowlog_max_len, proto_max_bulk_len, client_query_buffer_limit,
        client_output_buffer_limit, engine_timeout_ms, engine_memory_limit,
        checkpoint_interval_s, checkpoint_log_bytes, checkpoint_dirty_limit, vset_tail_max,
        recall_sample_cost;
    _Atomic int appendfsync, loglevel;      /* index into the row's words; use config_word */
    _Atomic int protected_mode;             /* 1: yes; see config_protected */
    _Atomic int vset_force_single_threaded; /* 1: yes */
    char *requirepass;                      /* changeable: read under config_lock */

    struct config_state *state; /* file name, lock, what was set where */
};

int config_new(struct config **out, struct err *e); /* all defaults */
void config_free(struct config *c);
/* argv after the program's name: [FILE] [--name value ...]. An error names the setting, what
 * came and what is allowed, with file and line where it came from a file. */
int config_load(struct config *c, int argc, char **argv, struct err *e);

/* CONFIG GET: calls fn with name and value of every setting whose name matches one of the glob
 * patterns. Thread: any; fn runs under the config's lock. */
void config_get(struct config *c, const struct slice *patterns, int n,
                void (*fn)(void *arg, const char *name, const char *value), void *arg);
/* CONFIG SET of n pairs, all or none. changed is told every name that took effect, after the
 * lock was given back. The message of an error is Redis' whole sentence without the code. */
int config_set(struct config *c, const struct slice *pairs, int n_pairs,
               void (*changed)(void *arg, const char *name), void *arg, struct err *e);
/* Writes the file again, keeping its comments and order; settings that differ from what the
 * file says are replaced or added. KITH_ENOTFOUND when the server was started without a file.
 */
int config_rewrite(struct config *c, struct err *e);
/* Whether clients from other machines must be turned away: protected-mode is on and there is no
 * password. Takes the lock. */
bool config_protected(struct config *c);
/* The word of a setting that is one of several ("always", "notice"). */
const char *config_word(struct config *c, const char *name);
const char *config_file(const struct config *c); /* absolute, "" without one */
void config_lock(struct config *c);
void config_unlock(struct config *c);

/* docs/configuration.md and the text of --help are made of the table. */
void config_print_markdown(struct buf *out);
void config_print_help(struct buf *out);
