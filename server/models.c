/* How the registry works.
 *
 * One process a model. All models could live in one kith-engine, with one socket and one pool
 * of threads, and that was the other way to do it. But a model that crashes takes its process
 * with it, as does one whose file is cut short under its map (SIGBUS), and a process that is
 * put away gives its memory back to the system whole, whatever its allocator, its map and its
 * threads held. So a fault of a model costs its own requests and nothing else, and "put away"
 * is the end of a process and no code. What it costs: a thread here and a pool of threads there
 * for each model, and two models of one file read it into memory twice where they unpack it
 * (the map itself is shared).
 *
 * Who does what
 *
 *   any thread     models_ask: chooses under the lock, asks the link without it
 *   a link's       says READY, died, is slow: under the lock it notes what the model is, makes
 *                  room before a start, and sends the keeper to look
 *   the keeper     ends changes (LOAD, UNLOAD, DEFAULT), writes models.conf, puts models away
 *                  when all of them take too much, closes links
 *
 * Only the keeper takes models out of the list and only it writes the file, so a change is
 * durable before its result is given, and two of them cannot cross. It is the one thread that
 * may wait: for the disk, and for a child to end.
 *
 * The lock is held for some comparisons and never while anybody waits. It comes before a link's
 * lock; links call back without theirs. A thread that goes into a link leaves the lock and
 * counts itself (users), and the keeper closes a link only when nobody is in it.
 *
 * Memory. What a model takes is known when it is there: READY says so, or the resident set of
 * its process does. Before that a guess would be wrong by a factor (a float16 file computed in
 * float32, a map that is only partly read), so a model is started and looked at then. But what
 * is known already is used: what it took the last time, or the file's size, which is the least
 * it can be, decides who is put away before the start; and a file larger than the limit is
 * refused at once. Only models that have nothing under way are put away. Where all others are
 * busy the limit is passed until one of them is not. */
#include "server/models.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/client.h"
#include "server/engine_process.h"
#include "server/models_parts.h"

enum { NAMES_SHOWN = 200 };

/* --- one model --- */

void models_look(struct models *m)
{
    m->changed = true;
    pthread_cond_signal(&m->look);
}

static void on_start(void *arg)
{
    struct model *d = arg;
    pthread_mutex_lock(&d->registry->lock);
    models_make_room(d->registry, d);
    pthread_mutex_unlock(&d->registry->lock);
}

static void on_ready(void *arg, const struct engine_model *model)
{
    struct model *d = arg;
    struct models *m = d->registry;
    pthread_mutex_lock(&m->lock);
    m->facts_dirty |= strcmp(d->known.hash, model->hash) != 0 ||
                      strcmp(d->known.name, model->name) != 0 ||
                      strcmp(d->known.pooling, model->pooling) != 0;
    d->known = *model;
    d->used_us = clock_mono_us();
    pthread_mutex_unlock(&m->lock);
}

static void on_change(void *arg)
{
    struct model *d = arg;
    struct models *m = d->registry;
    pthread_mutex_lock(&m->lock);
    models_look(m);
    pthread_mutex_unlock(&m->lock);
    waitlist_wake_all(m->waiters);
}

/* The child's whole command line, but for its name. */
static int open_link(struct models *m, struct model *d, struct err *e)
{
    struct model_arguments a;
    char tokens[24], wait_us[24], queue[24];
    snprintf(tokens, sizeof tokens, "%" PRId64, m->batch_tokens);
    snprintf(wait_us, sizeof wait_us, "%" PRId64, m->batch_wait_us);
    snprintf(queue, sizeof queue, "%" PRId64, m->queue_tokens);
    model_spec_arguments(&d->spec, m->precision, m->threads, &a);
    const char *words[MODEL_ARGUMENTS_MAX + 9];
    size_t n = 0;
    while (a.words[n]) {
        words[n] = a.words[n];
        n++;
    }
    const char *const shared[] = {"--packed-cache",
                                  m->packed_cache ? "yes" : "no",
                                  "--batch-tokens",
                                  tokens,
                                  "--batch-wait-us",
                                  wait_us,
                                  "--queue-tokens",
                                  queue,
                                  NULL};
    memcpy(words + n, shared, sizeof shared);
    struct engine_link_options o = {.program = m->program,
                                    .label = d->spec.name,
                                    .arguments = words,
                                    .queue_tokens = m->queue_tokens,
                                    .timeout_ms = m->timeout_ms,
                                    .away = true,
                                    .on_start = on_start,
                                    .on_ready = on_ready,
                                    .on_change = on_change,
                                    .arg = d};
    return engine_link_open(&d->link, &o, e);
}

int model_register(struct models *m, const struct model_spec *spec, struct model **out,
                   struct err *e)
{
    struct model *d = mem_calloc(1, sizeof *d);
    if (!d)
        return err_set(e, KITH_ENOMEM, "out of memory");
    d->registry = m;
    d->spec = *spec;
    d->used_us = clock_mono_us();
    int rc = open_link(m, d, e);
    if (rc != 0) {
        mem_free(d);
        return rc;
    }
    log_notice("model %s is %s", spec->name, spec->source);
    TAILQ_INSERT_TAIL(&m->list, d, next);
    atomic_fetch_add(&m->n_models, 1);
    *out = d;
    return 0;
}

uint64_t model_bytes(struct model *d, const struct engine_stats *stats)
{
    if (stats->pid <= 0)
        return 0;
    if (stats->state == ENGINE_READY && d->known.bytes > 0)
        return d->known.bytes;
    return process_resident_bytes(stats->pid);
}

uint64_t model_file_bytes(const struct model_spec *spec)
{
    struct stat st;
    return spec->kind == MODEL_FILE && stat(spec->source, &st) == 0 && S_ISREG(st.st_mode)
               ? (uint64_t)st.st_size
               : 0;
}

int model_too_large(const struct model_spec *spec, uint64_t bytes, uint64_t limit,
                    struct err *e)
{
    return err_set(e, KITH_ELIMIT,
                   "model '%s' takes %" PRIu64 " bytes, more than the %" PRIu64
                   " that engine-memory-limit allows to all models together",
                   spec->name, bytes, limit);
}

/* --- choosing --- */

struct model *model_find(struct models *m, struct slice name)
{
    struct model *d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (!d->leaving && slice_equal(name, slice_of(d->spec.name)))
            return d;
    }
    return NULL;
}

/* By the name it is registered under, or else by the one its file says. */
static struct model *find_any_name(struct models *m, struct slice name)
{
    struct model *d = model_find(m, name);
    if (d)
        return d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (!d->leaving && d->known.hash[0] && slice_equal(name, slice_of(d->known.name)))
            return d;
    }
    return NULL;
}

/* Whether it has the task, or may have it: nothing is known yet. */
static bool may(const struct model *d, enum engine_task task)
{
    return !d->known.hash[0] || (d->known.tasks & task);
}

struct model *model_default(struct models *m)
{
    struct model *d = m->default_name[0] ? model_find(m, slice_of(m->default_name)) : NULL;
    if (d)
        return d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (!d->leaving && !d->is_new && may(d, ENGINE_EMBED))
            return d;
    }
    return NULL;
}

/* The default first where it is one of several with this hash, then one that is up. */
static struct model *find_hash(struct models *m, const char *hash, const char *pooling)
{
    struct model *d, *best = NULL, *first = model_default(m);
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (d->leaving || strcmp(d->known.hash, hash) != 0 ||
            (pooling && strcmp(d->known.pooling, pooling) != 0))
            continue;
        struct engine_stats stats;
        engine_link_stats(d->link, &stats);
        if (d == first)
            return d;
        if (!best || stats.state == ENGINE_READY)
            best = d;
    }
    return best;
}

/* The first that is known to rerank; *unknown: one of which nothing is known yet. */
static struct model *find_reranker(struct models *m, struct model **unknown)
{
    struct model *d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (d->leaving)
            continue;
        if (!d->known.hash[0])
            *unknown = d;
        else if (d->known.tasks & ENGINE_RERANK)
            return d;
    }
    return NULL;
}

static void list_names(struct models *m, char *out, size_t size)
{
    size_t n = 0;
    struct model *d;
    snprintf(out, size, "none");
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (!d->leaving && n < size)
            n += (size_t)snprintf(out + n, size - n, "%s%s", n ? ", " : "", d->spec.name);
    }
}

static int no_such_model(struct models *m, struct slice name, struct err *e)
{
    char names[NAMES_SHOWN];
    list_names(m, names, sizeof names);
    return err_set(
        e, KITH_ENOTFOUND,
        "no model '%.*s' is registered (there is: %s): MODEL LOAD %.*s PATH loads one",
        slice_shown(name), name.p, names, slice_shown(name), name.p);
}

/* The model for a request, or NULL and why. Lock held. */
static struct model *choose(struct models *m, const struct models_request *r, struct err *e)
{
    struct model *d = NULL, *unknown = NULL;
    if (r->name.n > 0) {
        d = find_any_name(m, r->name);
        if (!d)
            no_such_model(m, r->name, e);
        return d;
    }
    if (r->task == ENGINE_RERANK) {
        d = find_reranker(m, &unknown);
        if (!d && unknown)
            err_set(
                e, KITH_ECLOSED,
                "ENGINE no reranker is loaded; model '%s' is not ready yet and may be one, try "
                "again",
                unknown->spec.name);
        else if (!d)
            err_set(e, KITH_EUNSUPPORTED,
                    "ENGINE no reranker is loaded: MODEL LOAD name FILE.gguf loads one");
        return d;
    }
    /* A set whose model is not here is told so when the command runs and knows the set for
     * sure. */
    if (r->hash && *r->hash)
        d = find_hash(m, r->hash, r->pooling);
    if (!d)
        d = model_default(m);
    if (!d)
        err_set(e, KITH_EUNSUPPORTED,
                "ENGINE no embedding model is loaded: start kith-server with --embedder "
                "FILE.gguf, or MODEL LOAD name FILE.gguf");
    return d;
}

/* --- asking --- */

static int refuse(const struct models_request *r, struct err *e)
{
    char message[ERR_MESSAGE_MAX + 16];
    bool has_code = strncmp(e->message, "ENGINE ", 7) == 0;
    snprintf(message, sizeof message, "%s%s",
             has_code                                            ? ""
             : e->code == KITH_ELIMIT || e->code == KITH_ECLOSED ? "ENGINE "
                                                                 : "ERR ",
             e->message);
    struct engine_answer a = {.code = e->code, .message = message};
    r->done(r->arg, &a);
    return e->code;
}

static int check_task(const struct model *d, enum engine_task task, struct err *e)
{
    if (may(d, task))
        return 0;
    if (task == ENGINE_RERANK)
        return err_set(e, KITH_EUNSUPPORTED,
                       "model '%s' makes vectors and does not rerank: EMBED asks it, RERANK "
                       "takes a reranker",
                       d->spec.name);
    return err_set(e, KITH_EUNSUPPORTED,
                   "model '%s' reranks and makes no vectors: RERANK asks it, EMBED takes an "
                   "embedding model",
                   d->spec.name);
}

int models_ask(struct models *m, const struct models_request *r)
{
    struct err e = {0};
    pthread_mutex_lock(&m->lock);
    struct model *d = choose(m, r, &e);
    if (d && d->refusal[0])
        err_set(&e, KITH_ELIMIT, "%s", d->refusal);
    else if (d && check_task(d, r->task, &e) == 0)
        d->users++;
    if (e.code == 0)
        d->used_us = clock_mono_us();
    pthread_mutex_unlock(&m->lock);
    if (e.code != 0)
        return refuse(r, &e);
    struct engine_request q = {.task = r->task,
                               .texts = r->texts,
                               .n = r->n,
                               .truncate = r->truncate,
                               .role = r->role,
                               .done = r->done,
                               .arg = r->arg};
    int rc = engine_ask(d->link, &q);
    pthread_mutex_lock(&m->lock);
    if (--d->users == 0 && d->leaving)
        models_look(m);
    pthread_mutex_unlock(&m->lock);
    return rc;
}

bool models_known(struct models *m, const struct models_request *r, struct engine_model *model)
{
    struct err e = {0};
    *model = (struct engine_model){0};
    pthread_mutex_lock(&m->lock);
    struct model *d = choose(m, r, &e);
    if (d)
        *model = d->known;
    pthread_mutex_unlock(&m->lock);
    return model->hash[0] != '\0';
}

bool models_single(struct models *m)
{
    return atomic_load_explicit(&m->n_models, memory_order_relaxed) <= 1;
}

int models_ready(struct models *m, struct slice name, struct engine_model *model, struct err *e)
{
    struct engine_stats stats;
    pthread_mutex_lock(&m->lock);
    struct model *d = find_any_name(m, name);
    int rc = 0;
    if (!d)
        rc = no_such_model(m, name, e);
    else if (d->refusal[0])
        rc = err_set(e, KITH_ELIMIT, "ENGINE %s", d->refusal);
    if (rc == 0) {
        engine_link_stats(d->link, &stats);
        if (stats.state == ENGINE_AWAY) {
            d->used_us = clock_mono_us();
            d->users++;
        } else if (stats.state == ENGINE_READY) {
            rc = 1;
            *model = d->known;
        } else if (stats.state == ENGINE_DOWN) {
            rc = err_set(e, KITH_ECLOSED, "ENGINE the engine of model '%s' is down (%.300s)",
                         d->spec.name, stats.last_error);
        } else if (stats.slow_load) {
            rc = err_set(e, KITH_ECLOSED, "ENGINE model '%s' is still being loaded, try again",
                         d->spec.name);
        }
    }
    bool away = rc == 0 && stats.state == ENGINE_AWAY;
    pthread_mutex_unlock(&m->lock);
    if (away) {
        engine_link_bring_back(d->link);
        pthread_mutex_lock(&m->lock);
        if (--d->users == 0 && d->leaving)
            models_look(m);
        pthread_mutex_unlock(&m->lock);
    }
    return rc;
}

struct waitlist *models_waiters(struct models *m)
{
    return m->waiters;
}

/* --- looking --- */

/* Lock held. */
static void view(struct models *m, struct model *d, struct model_view *v)
{
    static const char *const states[] = {[ENGINE_DOWN] = "down",
                                         [ENGINE_LOADING] = "loading",
                                         [ENGINE_READY] = "ready",
                                         [ENGINE_AWAY] = "away"};
    v->spec = d->spec;
    v->model = d->known;
    engine_link_stats(d->link, &v->stats);
    v->state = d->refusal[0] ? "refused" : states[v->stats.state];
    if (d->refusal[0])
        snprintf(v->stats.last_error, sizeof v->stats.last_error, "%s", d->refusal);
    v->bytes = model_bytes(d, &v->stats);
    v->is_default = d == model_default(m);
}

void models_each(struct models *m, void (*fn)(void *arg, const struct model_view *v), void *arg)
{
    size_t n = 0, room = atomic_load(&m->n_models) + 8;
    struct model_view *views = mem_calloc(room, sizeof *views);
    struct model *d;
    if (!views)
        return;
    pthread_mutex_lock(&m->lock);
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (!d->leaving && n < room)
            view(m, d, &views[n++]);
    }
    pthread_mutex_unlock(&m->lock);
    for (size_t i = 0; i < n; i++)
        fn(arg, &views[i]);
    mem_free(views);
}

bool models_view(struct models *m, struct slice name, struct model_view *out)
{
    pthread_mutex_lock(&m->lock);
    struct model *d = name.n > 0 ? find_any_name(m, name) : model_default(m);
    if (d)
        view(m, d, out);
    pthread_mutex_unlock(&m->lock);
    return d != NULL;
}

uint64_t models_limit(struct models *m)
{
    pthread_mutex_lock(&m->lock);
    uint64_t limit = m->limit;
    pthread_mutex_unlock(&m->lock);
    return limit;
}

/* --- settings --- */

static uint64_t limit_of(uint64_t setting)
{
    if (setting > 0)
        return setting;
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
}

void models_set_limit(struct models *m, uint64_t memory_limit)
{
    struct model *d;
    pthread_mutex_lock(&m->lock);
    m->limit = limit_of(memory_limit);
    TAILQ_FOREACH(d, &m->list, next)
    {
        uint64_t least = d->last_bytes ? d->last_bytes : model_file_bytes(&d->spec);
        if (least <= m->limit)
            d->refusal[0] = '\0';
    }
    models_look(m);
    pthread_mutex_unlock(&m->lock);
}

void models_set_timeout(struct models *m, int64_t timeout_ms)
{
    struct model *d;
    pthread_mutex_lock(&m->lock);
    m->timeout_ms = timeout_ms;
    TAILQ_FOREACH(d, &m->list, next)
    {
        engine_link_set_timeout(d->link, timeout_ms);
    }
    pthread_mutex_unlock(&m->lock);
}

/* --- opening, closing --- */

/* Starts what has room, the default first. Nothing is known of who will be asked; what does not
 * fit is started when it is. */
static void start_all(struct models *m)
{
    struct model *first = model_default(m), *d;
    uint64_t total = 0;
    for (int others = 0; others < 2; others++)
        TAILQ_FOREACH(d, &m->list, next)
        {
            if ((d == first) == (bool)others)
                continue;
            struct err e = {0};
            uint64_t file = model_file_bytes(&d->spec);
            uint64_t least = d->last_bytes > file ? d->last_bytes : file;
            if (file > m->limit) {
                model_too_large(&d->spec, file, m->limit, &e);
                log_warning("%s", e.message);
                snprintf(d->refusal, sizeof d->refusal, "%.*s", (int)sizeof d->refusal - 1,
                         e.message);
            } else if (total + least <= m->limit) {
                total += least;
                engine_link_bring_back(d->link);
            }
        }
}

static void free_models(struct models *m)
{
    struct model *d;
    struct change *c;
    struct unloaded *u;
    TAILQ_FOREACH(d, &m->list, next)
    {
        engine_link_shut(d->link); /* all of them, so that they end together */
    }
    while ((d = TAILQ_FIRST(&m->list))) {
        TAILQ_REMOVE(&m->list, d, next);
        engine_link_close(d->link);
        mem_free(d);
    }
    while ((c = TAILQ_FIRST(&m->changes))) {
        TAILQ_REMOVE(&m->changes, c, next);
        mem_free(c);
    }
    while ((u = SLIST_FIRST(&m->unloaded))) {
        SLIST_REMOVE_HEAD(&m->unloaded, next);
        mem_free(u);
    }
    waitlist_free(m->waiters);
    pthread_cond_destroy(&m->look);
    pthread_mutex_destroy(&m->lock);
    mem_free(m->program);
    mem_free(m->precision);
    mem_free(m);
}

static int init(struct models *m, const struct models_options *o, struct err *e)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&m->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&m->look, &monotonic);
    pthread_condattr_destroy(&monotonic);
    TAILQ_INIT(&m->list);
    TAILQ_INIT(&m->changes);
    SLIST_INIT(&m->unloaded);
    m->next_ticket = 1;
    m->packed_cache = o->packed_cache;
    m->threads = o->threads;
    m->batch_tokens = o->batch_tokens;
    m->batch_wait_us = o->batch_wait_us;
    m->queue_tokens = o->queue_tokens;
    m->timeout_ms = o->timeout_ms;
    m->limit = limit_of(o->memory_limit);
    m->waiters = waitlist_new();
    m->precision = mem_strdup(o->precision ? o->precision : "auto");
    m->program = o->program ? mem_strdup(o->program) : NULL;
    if (!m->waiters || !m->precision || (o->program && !m->program))
        return err_set(e, KITH_ENOMEM, "out of memory");
    if (snprintf(m->path, sizeof m->path, "%s/models.conf", o->dir) >= (int)sizeof m->path)
        return err_set(e, KITH_EINVAL, "path too long: %s", o->dir);
    return 0;
}

int models_open(struct models **out, const struct models_options *o, struct err *e)
{
    struct models *m = mem_calloc(1, sizeof *m);
    if (!m)
        return err_set(e, KITH_ENOMEM, "out of memory");
    int rc = init(m, o, e);
    if (rc == 0)
        rc = models_file_load(m, o->configured, o->n_configured, e);
    if (rc == 0) {
        start_all(m); /* before the keeper, which takes the lock */
        int failed = pthread_create(&m->keeper, NULL, models_keeper_main, m);
        if (failed)
            rc = err_set_errno(e, failed, "cannot start the thread that keeps the models");
    }
    if (rc != 0) {
        free_models(m);
        return rc;
    }
    *out = m;
    return 0;
}

void models_close(struct models *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->lock);
    m->closing = true;
    models_look(m);
    pthread_mutex_unlock(&m->lock);
    pthread_join(m->keeper, NULL);
    free_models(m);
}
