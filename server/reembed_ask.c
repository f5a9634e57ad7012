/* Asking a model for a batch's vectors, and the inbox in which the thread of re-embedding hears
 * of the answer, of changed jobs and of its end. See reembed.c. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "server/models.h"
#include "server/reembed_parts.h"

/* --- the inbox --- */

struct reembed_inbox *reembed_inbox_new(void)
{
    struct reembed_inbox *in = mem_calloc(1, sizeof *in);
    pthread_condattr_t monotonic;
    if (!in)
        return NULL;
    pthread_mutex_init(&in->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&in->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    in->refs = 1;
    return in;
}

void reembed_inbox_unref(struct reembed_inbox *in)
{
    bool last = --in->refs == 0;
    pthread_mutex_unlock(&in->lock);
    if (!last)
        return;
    pthread_cond_destroy(&in->wake);
    pthread_mutex_destroy(&in->lock);
    mem_free(in);
}

void reembed_inbox_tell(struct reembed_inbox *in, bool stop)
{
    pthread_mutex_lock(&in->lock);
    in->news = true;
    in->stop |= stop;
    pthread_cond_signal(&in->wake);
    pthread_mutex_unlock(&in->lock);
}

void reembed_inbox_wait(struct reembed_inbox *in, int64_t until_us)
{
    struct timespec at = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    if (until_us == INT64_MAX)
        pthread_cond_wait(&in->wake, &in->lock);
    else
        pthread_cond_timedwait(&in->wake, &in->lock, &at);
}

/* --- the model --- */

struct finding {
    struct models *models;
    bool unknown; /* one of which nothing is known yet may be it */
};

static void look_at_model(void *arg, const struct model_view *v)
{
    struct finding *x = arg;
    struct engine_model ignored;
    struct err e = {0};
    if (!v->model.hash[0] && models_ready(x->models, slice_of(v->spec.name), &ignored, &e) >= 0)
        x->unknown = true;
    else if (!v->model.hash[0] && e.code != KITH_ENOTFOUND && e.code != KITH_ELIMIT)
        x->unknown = true; /* it is down, or slow to load */
}

enum reembed_model reembed_find_model(struct models *models, const struct reembed_job *job)
{
    struct engine_model known;
    struct models_request ask = {
        .task = ENGINE_EMBED, .hash = job->model.hash, .pooling = job->model.pooling};
    if (models_known(models, &ask, &known) && strcmp(known.hash, job->model.hash) == 0 &&
        strcmp(known.pooling, job->model.pooling) == 0)
        return REEMBED_MODEL_HERE;
    struct finding x = {.models = models};
    models_each(models, look_at_model, &x);
    return x.unknown ? REEMBED_MODEL_UNKNOWN : REEMBED_MODEL_GONE;
}

/* --- asking --- */

void reembed_asked_free(struct reembed_asked *a)
{
    mem_free(a->vectors);
    mem_free(a);
}

/* On a link's thread, or on ours. */
static void on_answer(void *arg, const struct engine_answer *answer)
{
    struct reembed_asked *a = arg;
    struct reembed_inbox *in = a->inbox;
    a->code = answer->code;
    snprintf(a->message, sizeof a->message, "%s", answer->message ? answer->message : "");
    if (answer->code == 0) {
        size_t n = (size_t)answer->n * answer->dim;
        a->n = answer->n;
        a->dim = answer->dim;
        memcpy(a->hash, answer->model->hash, sizeof a->hash);
        memcpy(a->pooling, answer->model->pooling, sizeof a->pooling);
        a->vectors = mem_alloc_n(n, sizeof *a->vectors);
        if (a->vectors)
            memcpy(a->vectors, answer->vectors, n * sizeof *a->vectors);
        else
            a->code = KITH_ENOMEM;
    }
    pthread_mutex_lock(&in->lock);
    bool abandoned = a->abandoned;
    a->done = true;
    pthread_cond_signal(&in->wake);
    if (abandoned)
        reembed_asked_free(a);
    reembed_inbox_unref(in);
}

struct reembed_asked *reembed_ask(struct models *models, struct reembed_inbox *inbox,
                                  const struct reembed_job *job, const struct reembed_batch *b)
{
    struct slice texts[REEMBED_TEXTS];
    struct reembed_asked *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    for (uint32_t i = 0; i < b->n; i++)
        if (b->entries[i].text >= 0)
            texts[b->entries[i].text] = reembed_entry_text(b, i);
    a->inbox = inbox;
    pthread_mutex_lock(&inbox->lock);
    inbox->refs++;
    pthread_mutex_unlock(&inbox->lock);
    struct models_request request = {.task = ENGINE_EMBED,
                                     .hash = job->model.hash,
                                     .pooling = job->model.pooling,
                                     .texts = texts,
                                     .n = b->n_texts,
                                     .truncate = job->truncate,
                                     .role = ENGINE_ROLE_DOCUMENT,
                                     .done = on_answer,
                                     .arg = a};
    models_ask(models, &request);
    return a;
}
