/* The write path. See shard.h for its shape. */
#include <assert.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/client.h"
#include "server/effect.h"
#include "server/reembed.h"
#include "server/shard_parts.h"
#include "server/successor.h"
#include "storage/chunks.h"

enum { MEASURE_EVERY_BYTES = 1024 * 1024, EXPIRY_TURNS_PER_TICK = 5 };

void shard_lock(struct shard *s)
{
    pthread_mutex_lock(&s->lock);
    s->now_ms = clock_wall_ms();
}

void shard_unlock(struct shard *s)
{
    assert(s->effects.len == 0);
    pthread_mutex_unlock(&s->lock);
}

/* --- entering and leaving --- */

static uint64_t memory_in_use(void)
{
    struct mallinfo2 m = mallinfo2();
    return (uint64_t)m.uordblks + (uint64_t)m.hblkhd;
}

/* Asking the allocator takes too long for every write, so it is asked at each tick and whenever
 * the writes since then could have passed the limit by more than a small part of it. */
static bool past_memory_limit(struct shard *s, size_t log_bytes)
{
    uint64_t limit = s->options.maxmemory;
    if (!limit)
        return false;
    uint64_t part = limit / 64 > MEASURE_EVERY_BYTES ? limit / 64 : MEASURE_EVERY_BYTES;
    uint64_t used = atomic_load_explicit(&s->used_memory, memory_order_relaxed);
    if (used <= limit && (s->unmeasured_bytes += log_bytes) > part) {
        used = memory_in_use();
        atomic_store_explicit(&s->used_memory, used, memory_order_relaxed);
        s->unmeasured_bytes = 0;
    }
    return used > limit;
}

int shard_admit(struct shard *s, size_t bytes, struct err *e)
{
    if (atomic_load(&s->failed))
        return err_set(e, KITH_EIO, "the log failed and the server is stopping");
    int rc = wal_reserve(s->wal, bytes, 1, e);
    s->reserved = rc == 0 ? bytes : 0; /* a refused command does not come to shard_leave */
    return rc;
}

enum command_result shard_enter(struct shard *s, struct client *c, unsigned flags,
                                size_t log_bytes, bool *refused)
{
    *refused = false;
    if (!(flags & CMD_WRITE))
        return COMMAND_DONE;
    if (s->now_ms < s->reload_until_ms) {
        atomic_store(&s->waiting_for_room, true);
        waitlist_add(s->room, client_ref(c));
        return COMMAND_WAIT;
    }
    if ((flags & CMD_DENYOOM) && past_memory_limit(s, log_bytes)) {
        resp_error(c->out, "OOM command not allowed when used memory > 'maxmemory'.");
        *refused = true;
        return COMMAND_DONE;
    }
    if (checkpoint_behind(s)) {
        struct err why;
        if (shard_checkpoint_broken(s, &why)) {
            resp_errorf(
                c->out,
                "MISCONF changes cannot be saved: %s; writes are refused until they can",
                why.message);
            *refused = true;
            return COMMAND_DONE;
        }
        atomic_store(&s->waiting_for_room, true);
        waitlist_add(s->room, client_ref(c));
        checkpoint_plan(s);
        return COMMAND_WAIT;
    }
    struct err e;
    int rc = shard_admit(s, log_bytes + RESERVE_SLACK_BYTES, &e);
    if (rc == KITH_EBUSY) {
        atomic_store(&s->waiting_for_room, true);
        waitlist_add(s->room, client_ref(c));
        return COMMAND_WAIT;
    }
    if (rc != 0) {
        resp_errorf(c->out,
                    "MISCONF the log cannot be written: %s; writes are refused until it can",
                    e.message);
        *refused = true;
    }
    return COMMAND_DONE;
}

/* What a thread does not use must not stay with it: it may not write again for a long time, and
 * the others would make segments large enough for everybody's. */
static void give_back_room(struct shard *s)
{
    if (s->reserved)
        wal_unreserve(s->wal);
    s->reserved = s->expiry_bytes = 0;
}

/* A change was made that is longer than what was reserved for it. It is in memory already; when
 * the log has no room for it either, the only truth left is what a restart finds. */
static void reserve_more(struct shard *s)
{
    struct err e;
    if (wal_reserve(s->wal, s->effects.len, 1, &e) != 0) {
        err_wrap(&e, "a change that was already made does not fit into the log");
        s->options.on_fatal(s->options.arg, &e);
    }
}

int shard_admit_background(struct shard *s, size_t bytes, struct err *e)
{
    if (s->now_ms < s->reload_until_ms)
        return err_set(e, KITH_EBUSY, "the data is being loaded anew");
    if (past_memory_limit(s, bytes))
        return err_set(e, KITH_ENOMEM, "used memory is past 'maxmemory'");
    if (checkpoint_behind(s)) {
        checkpoint_plan(s);
        return err_set(e, KITH_EBUSY, "a checkpoint is behind");
    }
    int rc = shard_admit(s, bytes + RESERVE_SLACK_BYTES, e);
    return rc == 0 ? 0 : err_set(e, KITH_EBUSY, "the log cannot be written now");
}

uint64_t shard_leave(struct shard *s)
{
    if (s->effects.len > 0) {
        if (s->effects.len > s->reserved)
            reserve_more(s);
        wal_append(s->wal, s->epoch, s->effects.data, s->effects.len);
        buf_clear(&s->effects);
    }
    give_back_room(s);
    return wal_last(s->wal);
}

uint64_t shard_released(const struct shard *s)
{
    return wal_released(s->wal);
}

void shard_flush(struct shard *s)
{
    struct err e;
    if (wal_written(s->wal) < wal_last(s->wal) && wal_flush(s->wal, &e) != 0)
        log_warning("the log could not be written, replies wait for it: %s", e.message);
}

uint64_t shard_key_version(struct shard *s, uint32_t db, struct slice key)
{
    return keyspace_version(s->keyspace, db, key, s->now_ms);
}

void shard_settle_leaving(struct shard *s)
{
    struct vset *first = NULL;
    while (s->leaving.first && s->leaving.first != first) {
        struct vset *v = vset_queue_pop(&s->leaving);
        if (!vset_alone(v)) {
            vset_queue_push(&s->leaving, v);
            first = first ? first : v;
        }
        vset_unref(v);
    }
}

bool shard_set_leaving(struct shard *s, uint32_t set_id)
{
    for (struct vset *v = s->leaving.first; v; v = vset_queue_next(&s->leaving, v))
        if (vset_id(v) == set_id)
            return true;
    return false;
}

void shard_wake_writers(struct shard *s)
{
    if (atomic_exchange(&s->waiting_for_room, false))
        waitlist_wake_all(s->room);
}

/* --- the timer --- */

void shard_tick(struct shard *s)
{
    atomic_store_explicit(&s->used_memory, memory_in_use(), memory_order_relaxed);
    shard_lock(s);
    bool more = shard_expire(s);
    shard_settle_leaving(s);
    checkpoint_plan(s);
    shard_unlock(s);
    /* In turns, so that what expires all at once does not keep clients waiting. */
    for (int i = 1; more && i < EXPIRY_TURNS_PER_TICK; i++) {
        shard_lock(s);
        more = shard_expire(s);
        shard_unlock(s);
    }
    shard_flush(s);
    shard_wake_writers(s);
    epoch_collect();
}

uint64_t shard_used_memory(struct shard *s)
{
    return atomic_load_explicit(&s->used_memory, memory_order_relaxed);
}

/* --- figures --- */

void shard_stats(struct shard *s, struct shard_stats *out, bool held)
{
    *out = (struct shard_stats){0};
    struct err e = {0};
    if (!held)
        shard_lock(s);
    for (uint32_t db = 0; db < KEYSPACE_DBS; db++) {
        out->n_keys[db] = keyspace_count(s->keyspace, db);
        out->n_expires[db] = keyspace_count_expires(s->keyspace, db);
    }
    struct successor_totals hidden = successor_totals(s->keyspace);
    out->n_vector_sets = s->checkpoint.n_sets - hidden.n_sets;
    out->n_vectors = s->n_vectors - hidden.n_vectors;
    out->n_unlinked = linker_pending(s);
    out->n_reembedding = s->reembed ? reembed_count(s->reembed) : 0;
    out->expired_keys = s->expired_keys;
    out->expired_elements = s->expired_elements;
    out->hits = s->hits;
    out->misses = s->misses;
    /* More than a small write needs, so that it says so before, and never after, one is
     * refused. Inside a transaction that writes the answer is known: it was admitted. */
    if (s->reserved == 0) {
        if (shard_admit(s, RESERVE_SLACK_BYTES * 2, &e) != 0)
            snprintf(out->write_refusal, sizeof out->write_refusal, "%s", e.message);
        give_back_room(s);
    }
    out->dirty_bytes = keyspace_dirty_bytes(s->keyspace) + store_dirty_bytes(s->store);
    if (!held)
        shard_unlock(s);
    struct store_state state = store_state(s->store);
    out->log_last = wal_last(s->wal);
    out->log_written = wal_written(s->wal);
    out->log_durable = wal_durable(s->wal);
    out->log_bytes = wal_bytes(s->wal);
    out->checkpoint_index = state.index;
    out->n_checkpoints = state.checkpoints;
    out->store_bytes = store_file_bytes(s->store);
    struct checkpoint_state *c = &s->checkpoint;
    pthread_mutex_lock(&c->lock);
    out->last_checkpoint_unix_s = c->last_unix_s;
    out->last_checkpoint_ms = c->last_took_ms;
    out->checkpoint_running = c->running;
    out->last_checkpoint_ok = c->last_rc == 0;
    pthread_mutex_unlock(&c->lock);
}

void shard_reset_stats(struct shard *s)
{
    shard_lock(s);
    s->expired_keys = s->expired_elements = s->hits = s->misses = 0;
    shard_unlock(s);
}

/* --- opening and closing --- */

static void released(void *arg)
{
    struct shard *s = arg;
    s->options.on_released(s->options.arg);
    shard_wake_writers(s); /* those that wait for the log's buffer */
}

static void fatal(void *arg, const struct err *why)
{
    struct shard *s = arg;
    atomic_store(&s->failed, true);
    s->options.on_fatal(s->options.arg, why);
}

static enum wal_sync sync_mode(const char *word)
{
    return strcmp(word, "no") == 0         ? WAL_SYNC_NO
           : strcmp(word, "everysec") == 0 ? WAL_SYNC_EVERYSEC
                                           : WAL_SYNC_ALWAYS;
}

void shard_release(struct shard *s)
{
    s->keep_stored = true;
    keyspace_free(s->keyspace);
    vset_queue_clear(&s->checkpoint.dirty);
    vset_queue_clear(&s->linker.work);
    vset_queue_clear(&s->expiring);
    vset_queue_clear(&s->leaving);
    epoch_synchronize(); /* sets free their arrays, which stand on the store */
    if (s->store)
        store_close(s->store);
    if (s->lock_file >= 0)
        file_unlock(s->lock_file);
    waitlist_free(s->room);
    waitlist_free(s->checkpoint.waiters);
    mem_free(s->checkpoint.purge);
    buf_deinit(&s->effects);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->checkpoint.lock);
    pthread_mutex_destroy(&s->checkpoint.dirty_lock);
    pthread_cond_destroy(&s->checkpoint.wake);
    pthread_mutex_destroy(&s->linker.lock);
    pthread_cond_destroy(&s->linker.wake);
    mem_free(s);
}

struct shard *shard_allocate(const struct shard_options *o)
{
    struct shard *s = mem_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->options = *o;
    s->lock_file = -1;
    s->epoch = 1;
    s->next_set_id = 1;
    buf_init(&s->effects);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->checkpoint.lock, NULL);
    pthread_mutex_init(&s->checkpoint.dirty_lock, NULL);
    pthread_cond_init(&s->checkpoint.wake, NULL);
    pthread_mutex_init(&s->linker.lock, NULL);
    pthread_cond_init(&s->linker.wake, NULL);
    s->checkpoint.dirty.kind = VSET_QUEUE_DIRTY;
    s->linker.work.kind = VSET_QUEUE_LINK;
    s->expiring.kind = VSET_QUEUE_EXPIRY;
    s->leaving.kind = VSET_QUEUE_LEAVING;
    s->room = waitlist_new();
    s->checkpoint.waiters = waitlist_new();
    s->keyspace = keyspace_new(&(struct keyspace_hooks){shard_drop_vset, shard_place_vset, s});
    if (!s->room || !s->checkpoint.waiters || !s->keyspace) {
        shard_release(s);
        return NULL;
    }
    return s;
}

static int open_files(struct shard *s, struct err *e)
{
    char path[4096];
    int rc = file_make_dirs(s->options.dir, e);
    if (rc != 0)
        return rc;
    if (snprintf(path, sizeof path, "%s/kith.lock", s->options.dir) >= (int)sizeof path)
        return err_set(e, KITH_EINVAL, "the path of the data directory is too long: %s",
                       s->options.dir);
    s->lock_file = file_lock(path, e);
    if (s->lock_file < 0)
        return err_wrap(e, "the data directory %s is in use", s->options.dir);
    return store_open(&s->store, s->options.dir, &(struct store_options){0}, e);
}

static int open_log(struct shard *s, struct err *e)
{
    struct wal_options options = {.sync = sync_mode(s->options.appendfsync),
                                  .segment_bytes = s->options.log_segment_bytes,
                                  .on_advance = released,
                                  .on_fatal = fatal,
                                  .arg = s};
    return wal_open(&s->wal, s->options.dir, &options, store_state(s->store).index, e);
}

int shard_open(struct shard **out, const struct shard_options *o, struct err *e)
{
    struct shard *s = shard_allocate(o);
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory");
    int rc = open_files(s, e);
    if (rc == 0)
        rc = recovery_load(s, e);
    if (rc == 0)
        rc = open_log(s, e);
    if (rc != 0)
        goto fail;
    rc = recovery_replay(s, e);
    if (rc != 0)
        goto fail_log;
    rc = linker_start(s, e);
    if (rc != 0)
        goto fail_log;
    rc = checkpoint_start(s, e);
    if (rc != 0)
        goto fail_linker;
    *out = s;
    return 0;
fail_linker:
    linker_stop(s);
fail_log:
    wal_close(s->wal, NULL);
fail:
    shard_release(s);
    return rc;
}

int shard_close(struct shard *s, bool no_save, struct err *e)
{
    linker_stop(s);
    checkpoint_stop(s);
    int rc = 0;
    if (!no_save && !atomic_load(&s->failed))
        rc = checkpoint_now(s, e);
    int closed = wal_close(s->wal, rc == 0 ? e : NULL);
    shard_release(s);
    return rc ? rc : closed;
}

void shard_configure(struct shard *s, const struct shard_options *o)
{
    shard_lock(s);
    s->options.checkpoint_log_bytes = o->checkpoint_log_bytes;
    s->options.checkpoint_dirty_limit = o->checkpoint_dirty_limit;
    s->options.checkpoint_interval_s = o->checkpoint_interval_s;
    s->options.maxmemory = o->maxmemory;
    s->options.tail_max = o->tail_max;
    wal_set_sync(s->wal, sync_mode(o->appendfsync));
    shard_unlock(s);
}
