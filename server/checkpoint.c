/* The checkpoint: every change since the last one, and the log index they stand for, in one
 * transaction of the store.
 *
 *   1 freeze   shard's lock: keyspace and changed sets hand over what is dirty; L = newest
 * index. Nothing is copied but a small record a set, so this is short. 2 sync     the log is
 * made durable up to L: the store never runs ahead of it. 3 write    keys in small pieces (the
 * lock is taken for each), sets without any lock. 4 commit   the transaction, with L in it. 5
 * settle   sets point at the new state in the map; the log before L may go.
 *
 * When 2, 3 or 4 fails, what was handed over is dirty again and the next checkpoint takes it
 * along; the log keeps everything since the last good one, so nothing is lost but room. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/client.h"
#include "server/shard_parts.h"
#include "storage/chunks.h"

enum {
    DRAIN_BATCH = 256,
    PURGE_PER_CHECKPOINT = 20000,
    TRIM_SLACK_BYTES = 2 << 20,
    TRIM_REST_MS = 1000,
    CHECKPOINT_NICE = 5,
    RETRY_AFTER_FAILURE_MS = 1000,
    DIRTY_KEYS_MAX = 500000 /* each costs some 200 bytes while dirty */
};

void checkpoint_set_dirty(void *arg, struct vset *v)
{
    struct shard *s = arg;
    struct checkpoint_state *c = &s->checkpoint;
    pthread_mutex_lock(&c->dirty_lock);
    vset_queue_push(&c->dirty, v);
    pthread_mutex_unlock(&c->dirty_lock);
}

int checkpoint_purge_reserve(struct shard *s)
{
    struct checkpoint_state *c = &s->checkpoint;
    uint32_t *purge =
        mem_grow(c->purge, c->n_purge + c->n_sets, &c->purge_cap, 64, sizeof *purge);
    if (!purge)
        return KITH_ENOMEM;
    c->purge = purge;
    c->n_sets++;
    return 0;
}

void checkpoint_purge_unreserve(struct shard *s)
{
    s->checkpoint.n_sets--;
}

void checkpoint_purge_later(struct shard *s, uint32_t set_id)
{
    s->checkpoint.n_sets--;
    s->checkpoint.purge[s->checkpoint.n_purge++] = set_id;
}

/* --- one checkpoint --- */

struct round {          /* what one checkpoint took over */
    struct vset **sets; /* frozen, counted */
    uint32_t n_sets;
    uint32_t *purge;
    uint32_t n_purge, n_purged; /* purge[0 .. n_purged) are gone from the store */
    uint32_t n_purgeable;       /* before the first that a search may still be in */
    uint64_t index, epoch, next_key_id;
    uint32_t next_set_id;
    struct buf record;
};

/* The changed sets, popped from the queue; all of them or, out of memory, none. */
static int take_dirty(struct checkpoint_state *c, struct round *r, struct err *e)
{
    int rc = 0;
    size_t cap = 0;
    pthread_mutex_lock(&c->dirty_lock);
    while (c->dirty.first) {
        struct vset **sets = mem_grow(r->sets, r->n_sets, &cap, 64, sizeof *sets);
        if (!sets) {
            rc = err_set(e, KITH_ENOMEM, "out of memory for a checkpoint");
            break;
        }
        r->sets = sets;
        r->sets[r->n_sets++] = vset_queue_pop(&c->dirty);
    }
    for (uint32_t i = 0; rc != 0 && i < r->n_sets; i++) {
        vset_queue_push(&c->dirty, r->sets[i]);
        vset_unref(r->sets[i]);
    }
    pthread_mutex_unlock(&c->dirty_lock);
    if (rc != 0)
        r->n_sets = 0;
    return rc;
}

static int freeze_sets(struct shard *s, struct round *r, struct err *e)
{
    int rc = take_dirty(&s->checkpoint, r, e);
    for (uint32_t i = 0; i < r->n_sets; i++) {
        if (vset_dropped(r->sets[i]))
            continue;
        if (rc == 0)
            rc = vset_freeze(r->sets[i], e);
        if (rc != 0) /* it stays dirty, and so do those after it */
            checkpoint_set_dirty(s, r->sets[i]);
    }
    return rc;
}

static int freeze(struct shard *s, struct round *r, struct err *e)
{
    struct checkpoint_state *c = &s->checkpoint;
    shard_lock(s);
    r->purge = c->n_purge ? mem_dup(c->purge, c->n_purge * sizeof *c->purge) : NULL;
    r->n_purge = r->purge ? c->n_purge : 0;
    shard_settle_leaving(s);
    while (r->n_purgeable < r->n_purge && !shard_set_leaving(s, r->purge[r->n_purgeable]))
        r->n_purgeable++;
    keyspace_freeze(s->keyspace);
    int rc = freeze_sets(s, r, e);
    r->index = wal_last(s->wal);
    r->epoch = s->epoch;
    r->next_set_id = s->next_set_id;
    r->next_key_id = keyspace_next_id(s->keyspace);
    shard_unlock(s);
    return rc;
}

static int write_keys(struct shard *s, struct store_write *w, struct err *e)
{
    struct key_image *images = mem_alloc_n(DRAIN_BATCH, sizeof *images);
    if (!images)
        return err_set(e, KITH_ENOMEM, "out of memory for a checkpoint");
    struct buf b;
    buf_init(&b);
    int rc = 0;
    for (;;) {
        shard_lock(s);
        uint64_t n = keyspace_drain(s->keyspace, images, DRAIN_BATCH);
        shard_unlock(s);
        if (n == 0)
            break;
        for (uint64_t i = 0; i < n; i++) {
            struct key_image *k = &images[i];
            uint32_t a = (uint32_t)(k->id >> 32), id = (uint32_t)k->id;
            if (rc == 0 && k->deleted) {
                rc = store_delete(w, STORE_KEYS, a, id, e);
            } else if (rc == 0) {
                buf_clear(&b);
                recovery_write_key(k, &b);
                rc = b.failed ? err_set(e, KITH_ENOMEM, "out of memory for a checkpoint")
                              : store_put(w, STORE_KEYS, a, id, b.data, b.len, e);
            }
            blob_unref(k->string);
        }
        if (rc != 0)
            break;
    }
    buf_deinit(&b);
    mem_free(images);
    return rc;
}

/* A set dropped since the freeze is written all the same: the keys of this checkpoint name it.
 */
static int write_sets(struct round *r, struct store_write *w, struct err *e)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < r->n_sets; i++)
        if (vset_frozen(r->sets[i]))
            rc = vset_write(r->sets[i], w, e);
    return rc;
}

static int purge_dropped(struct round *r, struct store_write *w, struct err *e)
{
    uint64_t left = PURGE_PER_CHECKPOINT;
    while (r->n_purged < r->n_purgeable && left > 0) {
        int64_t n = vset_purge(w, r->purge[r->n_purged], left, e);
        if (n < 0)
            return (int)n;
        if ((uint64_t)n < left)
            r->n_purged++;
        left -= (uint64_t)n;
    }
    return 0;
}

static int write_all(struct shard *s, struct round *r, struct store_write *w, struct err *e)
{
    int rc = write_keys(s, w, e);
    if (rc == 0)
        rc = write_sets(r, w, e);
    if (rc == 0)
        rc = purge_dropped(r, w, e);
    if (rc != 0)
        return rc;
    recovery_write_record(&r->record, r->next_key_id, r->next_set_id, r->purge + r->n_purged,
                          r->n_purge - r->n_purged);
    if (r->record.failed)
        return err_set(e, KITH_ENOMEM, "out of memory for a checkpoint");
    return store_put(w, STORE_KEYS, SHARD_RECORD_A, SHARD_RECORD_B, r->record.data,
                     r->record.len, e);
}

static int write_and_commit(struct shard *s, struct round *r, struct err *e)
{
    int rc = wal_sync_to(s->wal, r->index, e);
    if (rc != 0)
        return rc;
    struct store_write *w;
    rc = store_begin(s->store, &w, e);
    if (rc != 0)
        return rc;
    rc = write_all(s, r, w, e);
    if (rc != 0) {
        store_abort(w);
        return rc;
    }
    return store_commit(w, r->epoch, r->index, e);
}

/* Ids that are gone from the store leave the shard's list; those dropped meanwhile stand
 * behind. */
static void forget_purged(struct shard *s, const struct round *r)
{
    struct checkpoint_state *c = &s->checkpoint;
    c->n_purge -= r->n_purged;
    if (c->n_purge)
        memmove(c->purge, c->purge + r->n_purged, c->n_purge * sizeof *c->purge);
}

/* Gives back what a checkpoint leaves behind: pages of the store and memory of the heap.
 *
 * While checkpoints follow each other, freed pages are soon used again: then a quarter of the
 * file may lie idle. At rest all of it goes, which takes one more commit for what the last one
 * freed. */
static void give_back(struct shard *s)
{
    struct checkpoint_state *c = &s->checkpoint;
    bool busy = store_dirty_bytes(s->store) > 0;
    uint64_t slack = busy ? store_file_bytes(s->store) / 4 : TRIM_SLACK_BYTES, left;
    struct err e = {0};
    if (store_trim(s->store, slack, &left, &e) != 0)
        log_warning("free room of the store was not given back: %s", e.message);
    if (!busy)
        mem_trim(); /* the copies of chunks that were just written */
    pthread_mutex_lock(&c->lock);
    c->trim_rest = left > TRIM_SLACK_BYTES;
    pthread_mutex_unlock(&c->lock);
}

int checkpoint_now(struct shard *s, struct err *e)
{
    struct round r = {0};
    buf_init(&r.record);
    int rc = freeze(s, &r, e);
    if (rc == 0)
        rc = write_and_commit(s, &r, e);
    bool committed = rc == 0;
    /* A commit that cannot be shown to readers leaves them on the old state, which is still
     * held: the sets keep their heap copies as if it had failed, and the next checkpoint
     * repeats it. */
    bool refreshed = committed && store_refresh(s->store, e) == 0;
    for (uint32_t i = 0; i < r.n_sets; i++)
        if (vset_frozen(r.sets[i]))
            vset_settle(r.sets[i], refreshed);
    if (refreshed) {
        store_refreshed(s->store);
        give_back(s);
    }
    shard_lock(s);
    keyspace_thaw(s->keyspace, committed);
    if (committed)
        forget_purged(s, &r);
    shard_unlock(s);
    if (committed) {
        struct err trim;
        if (wal_trim(s->wal, r.index, &trim) != 0)
            log_warning("old log segments could not be removed: %s", trim.message);
    }
    for (uint32_t i = 0; i < r.n_sets; i++)
        vset_unref(r.sets[i]);
    mem_free(r.sets);
    mem_free(r.purge);
    buf_deinit(&r.record);
    return rc;
}

/* --- when --- */

static uint64_t dirty_bytes(struct shard *s)
{
    return keyspace_dirty_bytes(s->keyspace) + store_dirty_bytes(s->store);
}

bool checkpoint_behind(struct shard *s)
{
    return dirty_bytes(s) > s->options.checkpoint_dirty_limit;
}

static void request(struct checkpoint_state *c)
{
    if (c->requested == c->started)
        c->requested++;
    pthread_cond_signal(&c->wake);
}

void checkpoint_plan(struct shard *s)
{
    struct checkpoint_state *c = &s->checkpoint;
    bool changed = wal_last(s->wal) != store_state(s->store).index || dirty_bytes(s) > 0;
    bool large = wal_bytes_after(s->wal, store_state(s->store).index) >
                     s->options.checkpoint_log_bytes ||
                 keyspace_dirty_count(s->keyspace) > DIRTY_KEYS_MAX ||
                 dirty_bytes(s) > s->options.checkpoint_dirty_limit / 2;
    int64_t now = clock_mono_us();
    pthread_mutex_lock(&c->lock);
    int64_t since_ms = (now - c->last_start_mono_us) / 1000;
    bool due = large || (changed && since_ms / 1000 >= s->options.checkpoint_interval_s) ||
               (!changed && c->trim_rest && since_ms >= TRIM_REST_MS);
    if (due && !c->running && (c->last_rc == 0 || since_ms >= RETRY_AFTER_FAILURE_MS))
        request(c);
    pthread_mutex_unlock(&c->lock);
}

bool shard_checkpoint_broken(struct shard *s, struct err *why)
{
    struct checkpoint_state *c = &s->checkpoint;
    pthread_mutex_lock(&c->lock);
    bool broken = c->last_rc != 0;
    *why = c->last_error;
    pthread_mutex_unlock(&c->lock);
    return broken;
}

static void *checkpoint_main(void *arg)
{
    struct shard *s = arg;
    struct checkpoint_state *c = &s->checkpoint;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), CHECKPOINT_NICE);
    pthread_mutex_lock(&c->lock);
    while (!c->stop) {
        if (c->requested == c->started) {
            pthread_cond_wait(&c->wake, &c->lock);
            continue;
        }
        uint64_t ticket = ++c->started;
        c->running = true;
        c->last_start_mono_us = clock_mono_us();
        pthread_mutex_unlock(&c->lock);

        struct err e = {0};
        int64_t start = clock_mono_us();
        int rc = checkpoint_now(s, &e);
        int64_t took_ms = (clock_mono_us() - start) / 1000;
        if (rc != 0)
            log_warning("the checkpoint failed and is tried again: %s", e.message);
        else
            log_info("checkpoint at index %llu in %lld ms",
                     (unsigned long long)store_state(s->store).index, (long long)took_ms);

        pthread_mutex_lock(&c->lock);
        c->running = false;
        c->last_rc = rc;
        c->last_error = e;
        c->last_took_ms = took_ms;
        if (rc == 0)
            c->last_unix_s = clock_wall_ms() / 1000;
        c->done = ticket;
        pthread_mutex_unlock(&c->lock);
        waitlist_wake_all(c->waiters);
        shard_wake_writers(s);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

int checkpoint_start(struct shard *s, struct err *e)
{
    s->checkpoint.last_unix_s = clock_wall_ms() / 1000;
    s->checkpoint.last_start_mono_us = clock_mono_us();
    if (pthread_create(&s->checkpoint.thread, NULL, checkpoint_main, s) != 0)
        return err_set(e, KITH_EIO, "cannot start the checkpoint thread");
    return 0;
}

void checkpoint_stop(struct shard *s)
{
    struct checkpoint_state *c = &s->checkpoint;
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
}

uint64_t shard_checkpoint_start(struct shard *s)
{
    struct checkpoint_state *c = &s->checkpoint;
    pthread_mutex_lock(&c->lock);
    request(c);
    uint64_t ticket = c->requested;
    pthread_mutex_unlock(&c->lock);
    return ticket;
}

int shard_checkpoint_done(struct shard *s, uint64_t ticket, struct err *e)
{
    struct checkpoint_state *c = &s->checkpoint;
    pthread_mutex_lock(&c->lock);
    int rc = c->done < ticket ? 0 : c->last_rc == 0 ? 1 : c->last_rc;
    if (rc < 0 && e)
        *e = c->last_error;
    pthread_mutex_unlock(&c->lock);
    return rc;
}

struct waitlist *shard_checkpoint_waiters(struct shard *s)
{
    return s->checkpoint.waiters;
}
