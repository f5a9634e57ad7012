/* How a set is re-embedded.
 *
 *   VREEMBED ──► a successor (successor.h): an empty set with the new model, which nobody sees
 *                     │
 *   thread  ┌─► take: what of the set the successor has not, a batch    (shard, 2 ms)
 *           │   ask:  its texts to the model                            (nothing is held)
 *           └── put:  vectors, texts, attributes, times to the successor (shard, one record)
 *                     │  nothing is left
 *               switch: one effect gives the successor the set's key, the old set is dropped
 *
 * All of the work is a comparison of the two sets (reembed_batch.c). What a writer changes
 * meanwhile is noted by name (reembed_note) and compared again; an element that changed while
 * its text was out is not stored, because it was noted. A restart knows from the successor that
 * there is a job, and compares everything once: a look at each element instead of a vector.
 *
 * Writers. Each write makes work, so the last elements would never be the last. When few are
 * left writers of this set wait, as they do when its tail is full, until the switch: one more
 * batch, a fraction of a second. What counts as few is in reembed_names.h. They wait five
 * seconds at most, and not at all once the model has failed to answer: a job cannot stop them.
 * Inside EXEC nobody can wait, and what is written there is compared as always.
 *
 * Why not in place, element by element: a search would compare vectors of two models, or the
 * set would need two indexes under one name and each search a merge of scores that have nothing
 * to do with each other. Why a hidden database and not memory only: an import of a million
 * texts takes hours, and a restart must not begin it anew; the log, checkpoints and kith-check
 * serve a successor without a line of their own. It costs the vectors twice while it lasts, and
 * texts and attributes too: they are in the log once more, so that replaying it needs nothing
 * but the log.
 *
 * The old set after the switch. Searches that are under way go on in it and answer from it
 * alone, so its values stay in the store until they have left (shard_parts.h, `leaving`), where
 * those of a deleted set may go at once.
 *
 * A model that dies, is away or busy only delays: the batch is taken again, later. What ends a
 * job: its set is deleted, renamed or emptied; CANCEL; a text that the model cannot take or an
 * element that has none; no memory; the model is not registered any more, which is also found
 * out after a restart. Then the successor is dropped, and VINFO says why.
 *
 * Locks: the jobs are the shard's; the inbox has one of its own, taken last, for waking the
 * thread. The thread alone frees jobs, so it may hold one while it waits for vectors. */
#include "server/reembed.h"

#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/effect.h"
#include "server/models.h"
#include "server/reembed_parts.h"
#include "server/shard_parts.h"
#include "server/successor.h"

enum {
    REEMBED_NICE = 5,
    FAILED_KEPT = 64, /* jobs that failed and may still be looked at */
    PAUSE_US = 4000,  /* twice a stay: while it only compares, the shard is for others */
    RETRY_ROOM_US = 5000,
    RETRY_MODEL_US = 500000
};

TAILQ_HEAD(job_list, reembed_job);

struct reembed {
    struct shard *shard;
    struct models *models;
    struct job_list jobs; /* the shard's lock, as what follows */
    uint32_t n_running, n_failed;
    struct reembed_inbox *inbox;
    pthread_t thread;
    struct reembed_batch batch; /* the thread's */
};

/* --- the thread rests --- */

/* Rests until then or until there is news; false when the thread is to end. */
static bool rest(struct reembed *r, int64_t until_us)
{
    struct reembed_inbox *in = r->inbox;
    pthread_mutex_lock(&in->lock);
    while (!in->stop && !in->news && clock_mono_us() < until_us)
        reembed_inbox_wait(in, until_us);
    in->news = false;
    bool goes_on = !in->stop;
    pthread_mutex_unlock(&in->lock);
    return goes_on;
}

/* --- jobs; the shard's lock --- */

static void job_free(struct reembed_job *job)
{
    reembed_names_deinit(&job->again);
    mem_free(job);
}

static struct reembed_job *job_new(const struct successor_place *place, struct slice hidden,
                                   uint32_t live_id, const struct vset_model *model,
                                   uint32_t dim)
{
    struct reembed_job *job = mem_calloc(1, sizeof *job + hidden.n);
    if (!job)
        return NULL;
    char *name = (char *)(job + 1);
    memcpy(name, hidden.p, hidden.n);
    job->db = place->db;
    job->live_id = live_id;
    job->hidden = (struct slice){name, hidden.n};
    job->key = (struct slice){name + SUCCESSOR_PREFIX_BYTES, hidden.n - SUCCESSOR_PREFIX_BYTES};
    job->truncate = place->truncate;
    job->model = *model;
    job->dim = dim;
    job->started_us = clock_mono_us();
    reembed_names_init(&job->again);
    return job;
}

static bool is_running(const struct reembed_job *job)
{
    return !job->over && !job->failed;
}

/* The job of a key, under way or failed, of the set that the key holds now; else NULL. */
static struct reembed_job *find_job(struct reembed *r, uint32_t db, struct slice key,
                                    uint32_t live_id)
{
    struct reembed_job *job;
    TAILQ_FOREACH(job, &r->jobs, next)
    {
        if (!job->over && job->db == db && job->live_id == live_id &&
            slice_equal(job->key, key))
            return job;
    }
    return NULL;
}

static void let_writers_go(struct reembed *r, struct reembed_job *job)
{
    if (!job->holding)
        return;
    job->holding = false;
    shard_wake_writers(r->shard);
}

static void end_job(struct reembed *r, struct reembed_job *job)
{
    if (is_running(job))
        r->n_running--;
    if (job->failed)
        r->n_failed--;
    job->over = true;
    job->failed = false;
    let_writers_go(r, job);
    reembed_inbox_tell(r->inbox, false);
}

static void forget_oldest_failed(struct reembed *r)
{
    struct reembed_job *job;
    TAILQ_FOREACH(job, &r->jobs, next)
    {
        if (job->failed && !job->over && !job->drop) {
            end_job(r, job);
            return;
        }
    }
}

static void fail_job(struct reembed *r, struct reembed_job *job, const char *why)
{
    log_warning("re-embedding of key '%.*s' of database %u with model %s failed: %s",
                slice_shown(job->key), job->key.p, job->db, job->model.name, why);
    snprintf(job->error, sizeof job->error, "%s", why);
    r->n_running--;
    if (r->n_failed >= FAILED_KEPT)
        forget_oldest_failed(r);
    r->n_failed++;
    job->failed = job->drop = true;
    reembed_names_clear(&job->again);
    let_writers_go(r, job);
}

/* The successor or the set is gone. */
static void job_gone(struct reembed *r, struct reembed_job *job)
{
    log_notice("re-embedding of key '%.*s' of database %u ends: the set is gone",
               slice_shown(job->key), job->key.p, job->db);
    end_job(r, job);
}

int reembed_start(struct reembed *r, struct key *k, const struct engine_model *model,
                  uint32_t dim, bool truncate, struct err *e)
{
    struct shard *s = r->shard;
    struct successor_place place = {.db = k->db, .key = key_name(k), .truncate = truncate};
    struct vset_params params = *vset_params(k->vset);
    struct vset_model made_by = {0};
    struct reembed_job *before = find_job(r, k->db, key_name(k), k->set_id);
    if (r->n_running >= REEMBED_JOBS_MAX)
        return err_set(
            e, KITH_ELIMIT,
            "%u vector sets are being re-embedded, and no more at a time are allowed",
            r->n_running);
    memcpy(made_by.name, model->name, sizeof made_by.name);
    memcpy(made_by.hash, model->hash, sizeof made_by.hash);
    memcpy(made_by.pooling, model->pooling, sizeof made_by.pooling);
    params.index.dim = dim;
    struct buf hidden;
    buf_init(&hidden);
    successor_write_name(&hidden, &place);
    struct reembed_job *job = NULL;
    if (!hidden.failed)
        job =
            job_new(&place, (struct slice){hidden.data, hidden.len}, k->set_id, &made_by, dim);
    buf_deinit(&hidden);
    if (!job)
        return err_set(e, KITH_ENOMEM, "out of memory");
    int rc = before && before->drop ? reembed_drop(s, before, e) : 0;
    struct effect f = {.op = EFFECT_VCREATE,
                       .db = KEYSPACE_HIDDEN_DB,
                       .key = job->hidden,
                       .params = &params,
                       .model = &made_by};
    if (rc == 0)
        rc = effect_do(s, &f, e);
    if (rc != 0) {
        job_free(job);
        return rc;
    }
    if (before)
        end_job(r, before);
    job->successor_id = keyspace_find_raw(s->keyspace, KEYSPACE_HIDDEN_DB, job->hidden)->set_id;
    job->scan_end = vset_slots(k->vset);
    TAILQ_INSERT_TAIL(&r->jobs, job, next);
    r->n_running++;
    log_notice("re-embedding of key '%.*s' of database %u begins: %u elements, model %s (%s)",
               slice_shown(job->key), job->key.p, job->db, vset_count(k->vset), job->model.name,
               job->model.hash);
    reembed_inbox_tell(r->inbox, false);
    return 0;
}

int reembed_cancel(struct reembed *r, struct key *k, struct err *e)
{
    struct reembed_job *job = find_job(r, k->db, key_name(k), k->set_id);
    if (!job || !is_running(job))
        return err_set(e, KITH_ENOTFOUND, "no re-embedding of this key is under way");
    struct effect f = {.op = EFFECT_DEL, .db = KEYSPACE_HIDDEN_DB, .key = job->hidden};
    int rc = effect_do(r->shard, &f, e);
    if (rc != 0)
        return rc;
    log_notice("re-embedding of key '%.*s' of database %u is cancelled", slice_shown(job->key),
               job->key.p, job->db);
    end_job(r, job);
    return 0;
}

const char *reembed_running(struct reembed *r, const struct key *k)
{
    struct vset *live, *successor;
    struct reembed_job *job = find_job(r, k->db, key_name(k), k->set_id);
    if (!job || !is_running(job) || !reembed_sets(r->shard, job, &live, &successor))
        return NULL;
    return job->model.name;
}

uint32_t reembed_count(const struct reembed *r)
{
    return r->n_running;
}

struct naming {
    const struct vset_model *model;
    char *out;
    size_t size;
};

static void name_model(void *arg, const struct model_view *v)
{
    struct naming *x = arg;
    if (strcmp(v->model.hash, x->model->hash) == 0 &&
        strcmp(v->model.pooling, x->model->pooling) == 0)
        snprintf(x->out, x->size, "%s", v->spec.name);
}

void reembed_look(struct reembed *r, const struct key *k, struct reembed_view *out)
{
    struct reembed_job *job = find_job(r, k->db, key_name(k), k->set_id);
    struct vset *live, *successor;
    *out = (struct reembed_view){.state = "none"};
    if (!job || (!job->failed && !reembed_sets(r->shard, job, &live, &successor)))
        return;
    memcpy(out->model, job->model.name, sizeof out->model);
    struct naming naming = {&job->model, out->model, sizeof out->model};
    models_each(r->models, name_model, &naming);
    memcpy(out->error, job->error, sizeof out->error);
    out->state = job->failed ? "failed" : "running";
    if (job->failed)
        return;
    struct vset_info info;
    vset_info(successor, &info);
    out->n_done = info.count;
    out->n_total = vset_count(live);
    out->rate = (double)job->n_texts * 1e6 / (double)(clock_mono_us() - job->started_us + 1);
    out->memory_bytes = info.memory_bytes + job->again.bytes + sizeof *job + job->hidden.n;
}

bool reembed_holds(const struct reembed *r, uint32_t db, struct slice key)
{
    const struct reembed_job *job;
    TAILQ_FOREACH(job, &r->jobs, next)
    {
        if (is_running(job) && job->holding && job->db == db && slice_equal(job->key, key))
            return true;
    }
    return false;
}

void reembed_note(struct reembed *r, const struct effect *f)
{
    struct reembed_job *job;
    bool on_element = f->op == EFFECT_VADD || f->op == EFFECT_VREM || f->op == EFFECT_VSETATTR;
    if (r->n_running == 0 || !on_element)
        return;
    TAILQ_FOREACH(job, &r->jobs, next)
    {
        if (!is_running(job) || job->from_start || job->db != f->db ||
            !slice_equal(job->key, f->key))
            continue;
        if (!reembed_names_add(&job->again, f->value)) {
            job->from_start = true;
            reembed_names_clear(&job->again);
        }
    }
}

/* --- waiting --- */

static void end_hold(struct reembed *r, struct reembed_job *job)
{
    shard_lock(r->shard);
    job->no_hold_before_us = clock_mono_us() + RETRY_MODEL_US;
    let_writers_go(r, job);
    shard_unlock(r->shard);
}

static bool is_over(struct reembed *r, const struct reembed_job *job)
{
    shard_lock(r->shard);
    bool over = job->over;
    shard_unlock(r->shard);
    return over;
}

/* False: the job or the thread is to end, and the answer is nobody's. Writers that wait for it
 * are let go when their time is over. */
static bool wait_for(struct reembed *r, struct reembed_job *job, struct reembed_asked *a,
                     int64_t hold_until_us)
{
    struct reembed_inbox *in = r->inbox;
    bool over = false;
    pthread_mutex_lock(&in->lock);
    while (!a->done && !in->stop && !over) {
        bool too_long = clock_mono_us() >= hold_until_us;
        if (!too_long && !in->news) {
            reembed_inbox_wait(in, hold_until_us);
            continue;
        }
        in->news = false;
        pthread_mutex_unlock(&in->lock);
        over = is_over(r, job);
        if (too_long)
            end_hold(r, job);
        hold_until_us = too_long ? INT64_MAX : hold_until_us;
        pthread_mutex_lock(&in->lock);
    }
    bool done = a->done;
    a->abandoned = !done;
    pthread_mutex_unlock(&in->lock);
    return done;
}

/* --- the thread --- */

/* The job goes on later; writers need not wait for that. Shard's lock held. */
static void delay(struct reembed *r, struct reembed_job *job, int64_t us, const char *why)
{
    int64_t now_us = clock_mono_us();
    job->retry_us = now_us + us;
    if (us >= RETRY_MODEL_US || now_us > job->hold_until_us) {
        job->no_hold_before_us = job->retry_us + RETRY_MODEL_US;
        let_writers_go(r, job);
    }
    snprintf(job->error, sizeof job->error, "%s", why);
}

static void finish(struct reembed *r, struct reembed_job *job, struct err *e)
{
    int rc = reembed_switch(r->shard, job, e);
    if (rc == KITH_EBUSY) {
        delay(r, job, RETRY_ROOM_US, e->message);
    } else if (rc != 0) {
        fail_job(r, job, e->message);
    } else {
        log_notice("re-embedding of key '%.*s' of database %u is done: model %s, %llu texts in "
                   "%lld ms",
                   slice_shown(job->key), job->key.p, job->db, job->model.name,
                   (unsigned long long)job->n_texts,
                   (long long)((clock_mono_us() - job->started_us) / 1000));
        end_job(r, job);
    }
}

/* Errors of taking and putting, with the shard's lock. */
static void settle_error(struct reembed *r, struct reembed_job *job, int rc, struct err *e)
{
    if (rc == KITH_ENOTFOUND)
        job_gone(r, job);
    else
        fail_job(r, job, e->message);
}

/* The first stay; true when there is a batch to go on with. */
static bool take(struct reembed *r, struct reembed_job *job, int64_t *hold_until_us)
{
    struct shard *s = r->shard;
    struct err e = {0};
    bool goes_on = false;
    shard_lock(s);
    if (job->over) {
        /* It was ended meanwhile. */
    } else if (job->failed) {
        if (reembed_drop(s, job, &e) == 0)
            job->drop = false;
        else
            job->retry_us = clock_mono_us() + RETRY_MODEL_US;
    } else {
        int rc = reembed_take(s, job, &r->batch, &e);
        if (rc != 0)
            settle_error(r, job, rc, &e);
        else if (r->batch.complete)
            finish(r, job, &e);
        else
            goes_on = r->batch.n > 0;
    }
    *hold_until_us = job->holding ? job->hold_until_us : INT64_MAX;
    shard_leave(s);
    shard_unlock(s);
    shard_flush(s);
    return goes_on;
}

/* The last stay, again until there is room for it. */
static void put(struct reembed *r, struct reembed_job *job, const struct reembed_asked *a)
{
    struct shard *s = r->shard;
    int rc;
    do {
        struct err e = {0};
        shard_lock(s);
        rc = job->over || job->failed
                 ? 0
                 : reembed_put(s, job, &r->batch, a ? a->vectors : NULL, a ? a->dim : 0, &e);
        if (rc == KITH_EBUSY) {
            if (job->holding && clock_mono_us() > job->hold_until_us)
                let_writers_go(r, job);
        } else if (rc != 0) {
            settle_error(r, job, rc, &e);
        } else {
            job->n_texts += r->batch.n_texts;
            job->error[0] = job->failed ? job->error[0] : '\0';
        }
        shard_leave(s);
        shard_unlock(s);
        shard_flush(s);
    } while (rc == KITH_EBUSY && rest(r, clock_mono_us() + RETRY_ROOM_US));
}

/* Whose text the model could not take says the element's name, not the number. */
static void name_element(const struct reembed_batch *b, const char *message, char *out,
                         size_t size)
{
    int number = 0;
    bool numbered = sscanf(message, "ERR text %d ", &number) == 1;
    const char *bare = strncmp(message, "ERR ", 4) == 0 ? message + 4 : message;
    for (uint32_t i = 0; numbered && i < b->n; i++)
        if (b->entries[i].text == number - 1) {
            struct slice name = reembed_entry_name(b, i);
            snprintf(out, size, "element '%.*s': %.300s%s", slice_shown(name), name.p, bare,
                     strstr(bare, " tokens") ? "; VREEMBED with TRUNCATE cuts texts" : "");
            return;
        }
    snprintf(out, size, "%s", bare);
}

/* Whether the answer can be stored; else what it means for the job. */
static bool judge(struct reembed *r, struct reembed_job *job, const struct reembed_asked *a)
{
    char why[ERR_MESSAGE_MAX];
    bool same = strcmp(a->hash, job->model.hash) == 0 &&
                strcmp(a->pooling, job->model.pooling) == 0 && a->dim >= job->dim &&
                a->n == r->batch.n_texts;
    if (a->code == 0 && same)
        return true;
    shard_lock(r->shard);
    if (job->over || job->failed) {
        /* It was ended meanwhile. */
    } else if (a->code != 0 && strncmp(a->message, "ERR ", 4) == 0) {
        name_element(&r->batch, a->message, why, sizeof why);
        fail_job(r, job, why);
    } else {
        /* Of another model: it went between our look and the question, and the next look says
         * so. */
        reembed_put_back(job, &r->batch);
        delay(r, job, RETRY_MODEL_US, a->code != 0 ? a->message : "another model answered");
    }
    shard_unlock(r->shard);
    return false;
}

/* Whether the job's model can be asked now; else the batch is taken again, or the job ends. */
static bool model_here(struct reembed *r, struct reembed_job *job)
{
    enum reembed_model where = reembed_find_model(r->models, job);
    char why[ERR_MESSAGE_MAX];
    if (where == REEMBED_MODEL_HERE)
        return true;
    snprintf(why, sizeof why, "model '%s' (%s, pooling %s) is not %s", job->model.name,
             job->model.hash, job->model.pooling,
             where == REEMBED_MODEL_GONE ? "registered any more" : "loaded yet");
    shard_lock(r->shard);
    if (is_running(job) && where == REEMBED_MODEL_GONE) {
        fail_job(r, job, why);
    } else if (is_running(job)) {
        reembed_put_back(job, &r->batch);
        delay(r, job, RETRY_MODEL_US, why);
    }
    shard_unlock(r->shard);
    return false;
}

static void step(struct reembed *r, struct reembed_job *job)
{
    int64_t hold_until_us;
    bool some = take(r, job, &hold_until_us);
    if (!some || r->batch.n_texts == 0) {
        if (some)
            put(r, job, NULL);
        clock_sleep_us(PAUSE_US);
        return;
    }
    if (!model_here(r, job))
        return;
    struct reembed_asked *a = reembed_ask(r->models, r->inbox, job, &r->batch);
    if (!a) {
        shard_lock(r->shard);
        if (is_running(job))
            fail_job(r, job, "out of memory");
        shard_unlock(r->shard);
        return;
    }
    if (!wait_for(r, job, a, hold_until_us))
        return;
    if (judge(r, job, a))
        put(r, job, a);
    reembed_asked_free(a);
}

/* The next job that has something to do, in turn; NULL, and when to look again, when none has.
 */
static struct reembed_job *pick(struct reembed *r, int64_t *until_us)
{
    struct reembed_job *job, *next, *found = NULL;
    int64_t now_us = clock_mono_us();
    *until_us = INT64_MAX;
    shard_lock(r->shard);
    for (job = TAILQ_FIRST(&r->jobs); job; job = next) {
        next = TAILQ_NEXT(job, next);
        if (job->over) {
            TAILQ_REMOVE(&r->jobs, job, next);
            job_free(job);
        } else if (!found && (is_running(job) || job->drop)) {
            if (job->retry_us <= now_us)
                found = job;
            else if (job->retry_us < *until_us)
                *until_us = job->retry_us;
        }
    }
    if (found) {
        TAILQ_REMOVE(&r->jobs, found, next);
        TAILQ_INSERT_TAIL(&r->jobs, found, next);
    }
    shard_unlock(r->shard);
    return found;
}

static bool stopping(struct reembed *r)
{
    pthread_mutex_lock(&r->inbox->lock);
    bool stop = r->inbox->stop;
    pthread_mutex_unlock(&r->inbox->lock);
    return stop;
}

static void *reembed_main(void *arg)
{
    struct reembed *r = arg;
    int64_t until_us;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), REEMBED_NICE);
    while (!stopping(r)) {
        struct reembed_job *job = pick(r, &until_us);
        if (job)
            step(r, job);
        else
            rest(r, until_us);
    }
    return NULL;
}

/* --- opening, closing --- */

struct resuming {
    struct reembed *r;
    int rc;
};

/* A successor whose set is not there cannot be: what ended the one ended the other. Should one
 * be all the same, its job finds that out and drops it. */
static void resume(void *arg, struct key *h)
{
    struct resuming *x = arg;
    struct reembed *r = x->r;
    struct successor_place place;
    if (h->type != OBJECT_VSET || !successor_read_name(key_name(h), &place)) {
        log_warning("key %llu of the hidden database is no successor of a set",
                    (unsigned long long)h->id);
        return;
    }
    struct key *k = keyspace_find_raw(r->shard->keyspace, place.db, place.key);
    struct vset_model model = vset_model(h->vset);
    struct reembed_job *job = job_new(&place, key_name(h), k ? k->set_id : 0, &model,
                                      vset_params(h->vset)->index.dim);
    if (!job) {
        x->rc = KITH_ENOMEM;
        return;
    }
    job->successor_id = h->set_id;
    job->from_start = true;
    TAILQ_INSERT_TAIL(&r->jobs, job, next);
    r->n_running++;
    if (!k || k->type != OBJECT_VSET) {
        fail_job(r, job, "its set is gone");
        return;
    }
    log_notice("re-embedding of key '%.*s' of database %u goes on: %u of %u elements, model %s "
               "(%s)",
               slice_shown(job->key), job->key.p, job->db, vset_count(h->vset),
               vset_count(k->vset), job->model.name, job->model.hash);
}

static void free_all(struct reembed *r)
{
    struct reembed_job *job;
    while ((job = TAILQ_FIRST(&r->jobs))) {
        TAILQ_REMOVE(&r->jobs, job, next);
        job_free(job);
    }
    pthread_mutex_lock(&r->inbox->lock);
    reembed_inbox_unref(r->inbox);
    buf_deinit(&r->batch.bytes);
    mem_free(r);
}

int reembed_open(struct reembed **out, struct shard *s, struct models *m, struct err *e)
{
    struct reembed *r = mem_calloc(1, sizeof *r);
    if (!r || !(r->inbox = reembed_inbox_new())) {
        mem_free(r);
        return err_set(e, KITH_ENOMEM, "out of memory");
    }
    r->shard = s;
    r->models = m;
    TAILQ_INIT(&r->jobs);
    buf_init(&r->batch.bytes);
    struct resuming x = {.r = r};
    shard_lock(s);
    keyspace_each(s->keyspace, KEYSPACE_HIDDEN_DB, resume, &x);
    if (x.rc == 0)
        s->reembed = r;
    shard_unlock(s);
    int failed = 0;
    if (x.rc == 0)
        failed = pthread_create(&r->thread, NULL, reembed_main, r);
    if (x.rc == 0 && !failed) {
        *out = r;
        return 0;
    }
    shard_lock(s);
    s->reembed = NULL;
    shard_unlock(s);
    free_all(r);
    return failed ? err_set_errno(e, failed, "cannot start the thread that re-embeds")
                  : err_set(e, KITH_ENOMEM, "out of memory");
}

void reembed_close(struct reembed *r)
{
    if (!r)
        return;
    reembed_inbox_tell(r->inbox, true);
    pthread_join(r->thread, NULL);
    shard_lock(r->shard);
    r->shard->reembed = NULL;
    shard_unlock(r->shard);
    free_all(r);
}
