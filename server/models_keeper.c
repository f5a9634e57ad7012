/* The keeper: ends changes, keeps the memory within its limit, writes models.conf. models.c
 * says how it fits in. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/client.h"
#include "server/models_parts.h"
#include "server/models_plan.h"

enum {
    RESULTS_KEPT = 256,  /* of clients that went before they asked for it */
    OVER_LIMIT_MS = 200, /* how often is looked whether a busy one is idle now */
    ROWS_ON_STACK = 64
};

/* --- memory --- */

/* Puts away what must go so that newcomer_bytes have room. Lock held. Returns whether the limit
 * is kept. */
static bool make_room(struct models *m, const struct model *newcomer, uint64_t newcomer_bytes)
{
    struct models_plan_row on_stack[ROWS_ON_STACK], *rows = on_stack;
    size_t n = 0, count = 0;
    struct model *d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        count++;
    }
    if (count > ROWS_ON_STACK && !(rows = mem_alloc_n(count, sizeof *rows)))
        return false; /* looked at again */
    TAILQ_FOREACH(d, &m->list, next)
    {
        struct engine_stats s;
        engine_link_stats(d->link, &s);
        uint64_t bytes = model_bytes(d, &s);
        if (s.state == ENGINE_READY && bytes > 0)
            d->last_bytes = bytes;
        rows[n++] = (struct models_plan_row){
            .bytes = bytes,
            .used_us = d->used_us,
            .runs = d != newcomer && (s.state == ENGINE_READY || s.state == ENGINE_LOADING),
            .idle = s.state == ENGINE_READY && s.queued == 0 && d->users == 0 && !d->is_new};
    }
    uint64_t total = models_plan_room(rows, n, n, newcomer_bytes, m->limit);
    n = 0;
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (rows[n++].away && engine_link_put_away(d->link, NULL))
            log_notice("model %s is put away: %" PRIu64
                       " bytes of models are more than the %" PRIu64 " allowed",
                       d->spec.name, total + rows[n - 1].bytes, m->limit);
    }
    if (rows != on_stack)
        mem_free(rows);
    return total <= m->limit;
}

/* One that is larger than all may be together does not run, whoever asks for it. Lock held. */
static void refuse_large(struct models *m)
{
    struct model *d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        struct engine_stats s;
        struct err e = {0};
        engine_link_stats(d->link, &s);
        uint64_t bytes = s.state == ENGINE_READY ? model_bytes(d, &s) : 0;
        if (bytes <= m->limit || d->is_new || d->leaving || d->refusal[0])
            continue;
        d->last_bytes = bytes;
        model_too_large(&d->spec, bytes, m->limit, &e);
        log_warning("%s", e.message);
        snprintf(d->refusal, sizeof d->refusal, "%.*s", (int)sizeof d->refusal - 1, e.message);
    }
}

void models_make_room(struct models *m, struct model *d)
{
    refuse_large(m); /* or one would be put away for its size and be asked for again */
    uint64_t file = model_file_bytes(&d->spec);
    make_room(m, d, d->last_bytes > file ? d->last_bytes : file);
}

/* Ends those that are refused and run all the same. The lock is left for the answers of what is
 * under way; the keeper alone takes models out of the list. */
static void end_refused(struct models *m)
{
    struct model *d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        char why[sizeof d->refusal + 16];
        struct engine_stats s;
        engine_link_stats(d->link, &s);
        if (!d->refusal[0] || (s.state != ENGINE_READY && s.state != ENGINE_LOADING))
            continue;
        snprintf(why, sizeof why, "ENGINE %s", d->refusal);
        pthread_mutex_unlock(&m->lock);
        engine_link_put_away(d->link, why);
        pthread_mutex_lock(&m->lock);
    }
}

/* --- models.conf --- */

/* Writes it as it is to be now. The lock is left meanwhile. */
static int write_file(struct models *m, struct err *e)
{
    struct buf text;
    buf_init(&text);
    models_file_compose(m, &text);
    m->facts_dirty = false;
    pthread_mutex_unlock(&m->lock);
    int rc = text.failed ? err_set(e, KITH_ENOMEM, "out of memory")
                         : file_write_whole(m->path, text.data, text.len, e);
    buf_deinit(&text);
    pthread_mutex_lock(&m->lock);
    return rc;
}

/* --- changes --- */

static void end_change(struct models *m, struct change *c)
{
    c->done = true;
    c->model = NULL;
    unsigned n_done = 0;
    struct change *oldest = NULL, *i;
    TAILQ_FOREACH(i, &m->changes, next)
    {
        if (!i->done)
            continue;
        n_done++;
        oldest = oldest ? oldest : i;
    }
    if (n_done > RESULTS_KEPT && oldest) {
        TAILQ_REMOVE(&m->changes, oldest, next);
        mem_free(oldest);
    }
}

/* Takes the model out, for good. The lock is left while its child ends. Changes that wait for
 * it get `why`, once its name is free. */
static void remove_model(struct models *m, struct model *d, const struct err *why)
{
    struct change *c, *following;
    d->leaving = true;
    engine_link_shut(d->link);
    while (d->users > 0)
        pthread_cond_wait(&m->look, &m->lock);
    pthread_mutex_unlock(&m->lock);
    engine_link_close(d->link);
    pthread_mutex_lock(&m->lock);
    TAILQ_REMOVE(&m->list, d, next);
    atomic_fetch_sub(&m->n_models, 1);
    for (c = TAILQ_FIRST(&m->changes); c; c = following) {
        following = TAILQ_NEXT(c, next);
        if (c->model != d || c->done)
            continue;
        c->result = *why;
        end_change(m, c);
    }
    mem_free(d);
}

static int set_default(struct models *m, const struct model *d, struct err *e)
{
    char before[sizeof m->default_name];
    bool chosen = m->default_chosen;
    if (d->known.hash[0] && !(d->known.tasks & ENGINE_EMBED))
        return err_set(e, KITH_EUNSUPPORTED,
                       "model '%s' reranks and makes no vectors: it cannot be the default",
                       d->spec.name);
    memcpy(before, m->default_name, sizeof before);
    memcpy(m->default_name, d->spec.name, sizeof m->default_name);
    m->default_chosen = true;
    int rc = write_file(m, e);
    if (rc != 0) {
        memcpy(m->default_name, before, sizeof before);
        m->default_chosen = chosen;
    }
    return rc;
}

/* The model of a LOAD is there: 0, or why it cannot stay. */
static int settle_load(struct models *m, struct change *c, struct err *e)
{
    struct model *d = c->model;
    struct engine_stats s;
    engine_link_stats(d->link, &s);
    uint64_t bytes = model_bytes(d, &s);
    if (bytes > m->limit)
        return model_too_large(&d->spec, bytes, m->limit, e);
    if (!d->is_new)
        return c->make_default ? set_default(m, d, e) : 0;
    d->is_new = false; /* models.conf has it from now on */
    int rc = c->make_default ? set_default(m, d, e) : write_file(m, e);
    if (rc != 0)
        d->is_new = true;
    return rc;
}

/* False: it is not over yet. */
static bool end_load(struct models *m, struct change *c)
{
    struct model *d = c->model;
    struct engine_stats s;
    struct err e = {0};
    engine_link_stats(d->link, &s);
    bool there =
        s.state == ENGINE_READY || (s.state == ENGINE_AWAY && s.tried && !d->refusal[0]);
    bool failed = s.state == ENGINE_DOWN && s.tried;
    if (d->refusal[0])
        err_set(&e, KITH_ELIMIT, "%s", d->refusal);
    else if (failed)
        err_set(&e, KITH_EINVAL, "model '%s': %.400s", d->spec.name, s.last_error);
    else if (!there || !c->begun)
        return false;
    else
        settle_load(m, c, &e);
    if (e.code != 0 && d->is_new) {
        log_warning("%s", e.message);
        remove_model(m, d, &e);
    } else {
        c->result = e;
        end_change(m, c);
    }
    return true;
}

/* The model is hidden already. */
static void end_unload(struct models *m, struct change *c)
{
    struct model *d = c->model;
    struct err e = {0}, gone = {0};
    struct unloaded *u = NULL;
    char name[sizeof d->spec.name];
    memcpy(name, d->spec.name, sizeof name);
    if (d->configured && (u = mem_calloc(1, sizeof *u))) {
        memcpy(u->name, d->spec.name, sizeof u->name);
        memcpy(u->source, d->spec.source, sizeof u->source);
        SLIST_INSERT_HEAD(&m->unloaded, u, next);
    }
    bool was_default = strcmp(m->default_name, name) == 0;
    if (was_default)
        m->default_name[0] = '\0';
    int rc =
        d->configured && !u ? err_set(&e, KITH_ENOMEM, "out of memory") : write_file(m, &e);
    if (rc != 0) {
        if (u)
            SLIST_REMOVE(&m->unloaded, u, unloaded, next);
        mem_free(u);
        if (was_default)
            memcpy(m->default_name, name, sizeof name);
        d->leaving = false;
        c->result = e;
        end_change(m, c);
        return;
    }
    c->model = NULL; /* so that what is said to the others is not said to this one */
    err_set(&gone, KITH_ENOTFOUND, "model '%s' was unloaded", name);
    remove_model(m, d, &gone);
    end_change(m, c);
    log_notice("model %s was unloaded", name);
}

static void end_default(struct models *m, struct change *c)
{
    struct err e = {0};
    if (!c->model->leaving)
        set_default(m, c->model, &e);
    else
        err_set(&e, KITH_ENOTFOUND, "model '%s' is being unloaded", c->model->spec.name);
    c->result = e;
    end_change(m, c);
}

/* Ends one change that can be; false: there is none. The list may be another one afterwards. */
static bool end_one(struct models *m)
{
    struct change *c;
    TAILQ_FOREACH(c, &m->changes, next)
    {
        if (c->done)
            continue;
        switch (c->kind) {
        case CHANGE_LOAD:
            if (end_load(m, c))
                return true;
            break;
        case CHANGE_UNLOAD:
            end_unload(m, c);
            return true;
        case CHANGE_DEFAULT:
            end_default(m, c);
            return true;
        }
    }
    return false;
}

/* --- the thread --- */

static void wait_for_work(struct models *m, bool over_limit)
{
    struct timespec until;
    if (m->changed || m->closing)
        return;
    if (!over_limit) {
        pthread_cond_wait(&m->look, &m->lock);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += OVER_LIMIT_MS * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&m->look, &m->lock, &until);
}

void *models_keeper_main(void *models)
{
    struct models *m = models;
    struct err e = {0};
    pthread_mutex_lock(&m->lock);
    while (!m->closing) {
        m->changed = false;
        bool ended = false;
        while (!m->closing && end_one(m))
            ended = true;
        refuse_large(m);
        end_refused(m);
        bool fits = make_room(m, NULL, 0);
        if (m->facts_dirty && write_file(m, &e) != 0)
            log_warning("what the models are is not noted: %s", e.message);
        if (ended) {
            pthread_mutex_unlock(&m->lock);
            waitlist_wake_all(m->waiters);
            pthread_mutex_lock(&m->lock);
        }
        wait_for_work(m, !fits);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* --- beginning changes, on any thread --- */

static uint64_t begin_change(struct models *m, enum change_kind kind, struct model *d,
                             bool make_default, struct err *e)
{
    struct change *c = mem_calloc(1, sizeof *c);
    if (!c) {
        err_set(e, KITH_ENOMEM, "out of memory");
        return 0;
    }
    c->kind = kind;
    c->ticket = m->next_ticket++;
    c->model = d;
    c->make_default = make_default;
    TAILQ_INSERT_TAIL(&m->changes, c, next);
    models_look(m);
    return c->ticket;
}

/* The model that a LOAD is about: one that is there, or a new one. */
static struct model *model_to_load(struct models *m, const struct model_spec *spec,
                                   struct err *e)
{
    struct model *d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (strcmp(d->spec.name, spec->name) == 0)
            break;
    }
    if (!d) {
        uint64_t bytes = model_file_bytes(spec);
        if (bytes > m->limit)
            model_too_large(spec, bytes, m->limit, e);
        else if (model_register(m, spec, &d, e) == 0)
            d->is_new = true;
        return d;
    }
    if (d->leaving)
        err_set(e, KITH_EBUSY, "model '%s' is being unloaded, try again", spec->name);
    else if (strcmp(d->spec.source, spec->source) != 0)
        err_set(e, KITH_EEXISTS,
                "model '%s' is registered already, with %.200s: MODEL UNLOAD %s first",
                spec->name, d->spec.source, spec->name);
    else if (!model_spec_same(&d->spec, spec))
        err_set(e, KITH_EEXISTS,
                "model '%s' is registered already, with other THREADS or PRECISION: MODEL "
                "UNLOAD %s first",
                spec->name, spec->name);
    else
        return d;
    return NULL;
}

uint64_t models_load(struct models *m, const struct model_spec *spec, struct err *e)
{
    uint64_t ticket = 0;
    struct change *c;
    pthread_mutex_lock(&m->lock);
    struct model *d = model_to_load(m, spec, e);
    if (d)
        ticket = begin_change(m, CHANGE_LOAD, d, spec->is_default, e);
    if (d)
        d->users++;
    pthread_mutex_unlock(&m->lock);
    if (!d)
        return 0;
    engine_link_bring_back(d->link);
    pthread_mutex_lock(&m->lock);
    d->users--;
    TAILQ_FOREACH(c, &m->changes, next)
    {
        c->begun |= c->ticket == ticket;
    }
    models_look(m);
    pthread_mutex_unlock(&m->lock);
    return ticket;
}

/* Whether another model would take the place of a default that goes. */
static bool another_embeds(struct models *m, const struct model *than)
{
    struct model *d;
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (d != than && !d->leaving && (!d->known.hash[0] || d->known.tasks & ENGINE_EMBED))
            return true;
    }
    return false;
}

static uint64_t no_model(struct models *m, struct slice name, struct err *e)
{
    pthread_mutex_unlock(&m->lock);
    err_set(e, KITH_ENOTFOUND, "no model '%.*s' is registered: MODEL LIST shows those that are",
            slice_shown(name), name.p);
    return 0;
}

uint64_t models_unload(struct models *m, struct slice name, struct err *e)
{
    uint64_t ticket = 0;
    pthread_mutex_lock(&m->lock);
    struct model *d = model_find(m, name);
    if (!d)
        return no_model(m, name, e);
    if (d == model_default(m) && another_embeds(m, d))
        err_set(e, KITH_EBUSY,
                "model '%s' is the default: choose another with MODEL DEFAULT first",
                d->spec.name);
    else
        ticket = begin_change(m, CHANGE_UNLOAD, d, false, e);
    d->leaving = ticket != 0;
    pthread_mutex_unlock(&m->lock);
    return ticket;
}

uint64_t models_choose_default(struct models *m, struct slice name, struct err *e)
{
    pthread_mutex_lock(&m->lock);
    struct model *d = model_find(m, name);
    if (!d)
        return no_model(m, name, e);
    uint64_t ticket = begin_change(m, CHANGE_DEFAULT, d, true, e);
    pthread_mutex_unlock(&m->lock);
    return ticket;
}

int models_change_done(struct models *m, uint64_t ticket, struct err *e)
{
    struct change *c;
    int rc;
    pthread_mutex_lock(&m->lock);
    TAILQ_FOREACH(c, &m->changes, next)
    {
        if (c->ticket == ticket)
            break;
    }
    if (!c)
        rc = err_set(e, KITH_ENOTFOUND, "the change's result was asked for too late");
    else if (!c->done)
        rc = 0;
    else if (c->result.code != 0)
        rc = err_set(e, c->result.code, "%s", c->result.message);
    else
        rc = 1;
    if (c && rc != 0) {
        TAILQ_REMOVE(&m->changes, c, next);
        mem_free(c);
    }
    pthread_mutex_unlock(&m->lock);
    return rc;
}
