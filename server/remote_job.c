#include "server/remote_parts.h"

#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/utf8.h"

static int check_texts(const struct backend_request *request, const char *prompt, size_t *bytes,
                       struct err *e)
{
    *bytes = 0;
    for (uint32_t i = 0; i < request->n; i++) {
        const struct slice t = request->texts[i];
        if (t.n == 0)
            return err_set(e, KITH_EINVAL, "text %u is empty", i + 1);
        const size_t valid = utf8_valid_prefix(t.p, t.n);
        if (valid < t.n)
            return err_set(e, KITH_EINVAL,
                           "text %u: not UTF-8: the byte at offset %zu breaks the rules", i + 1,
                           valid);
        *bytes += t.n + strlen(prompt);
    }
    return 0;
}

int remote_job_make(struct remote *b, const struct backend_request *request,
                    struct remote_job **out, struct err *e)
{
    const char *prompt = request->role == BACKEND_QUERY      ? b->query_prompt
                         : request->role == BACKEND_DOCUMENT ? b->document_prompt
                                                             : "";
    const size_t n_prompt = strlen(prompt), heads = request->n * sizeof(struct slice);
    size_t bytes;
    int rc = check_texts(request, prompt, &bytes, e);
    if (rc)
        return rc;
    struct remote_job *j = mem_calloc(1, sizeof *j);
    if (!j || !(j->texts = mem_alloc(heads + bytes)) ||
        !(j->vectors = mem_alloc_n(request->n, b->model.dim * sizeof(float)))) {
        if (j)
            remote_job_free(j);
        return err_set(e, KITH_ENOMEM, "out of memory for %u texts", request->n);
    }
    char *to = (char *)j->texts + heads;
    for (uint32_t i = 0; i < request->n; i++) {
        const struct slice t = request->texts[i];
        j->texts[i] = (struct slice){.p = to, .n = n_prompt + t.n};
        memcpy(to, prompt, n_prompt);
        memcpy(to + n_prompt, t.p, t.n);
        to += n_prompt + t.n;
    }
    j->owner = b;
    j->n = request->n;
    j->bytes = bytes;
    j->truncate = request->truncate;
    j->done = request->done;
    j->arg = request->arg;
    j->arrived_us = clock_mono_us();
    *out = j;
    return 0;
}

void remote_job_free(struct remote_job *j)
{
    mem_free(j->vectors);
    mem_free(j->texts);
    mem_free(j);
}

/* The job's bytes and place are free again. Any thread. */
static void count_out(struct remote *b, const struct remote_job *j)
{
    pthread_mutex_lock(&b->lock);
    b->queued_bytes -= j->bytes;
    pthread_mutex_unlock(&b->lock);
    atomic_fetch_sub(&b->n_queued, 1);
}

static void answer(struct remote_job *j, const struct backend_result *result)
{
    count_out(j->owner, j);
    j->done(j->arg, result);
    remote_job_free(j);
}

/* Takes the job out of the list and of its calls. */
static void withdraw(struct remote *b, struct remote_job *j)
{
    j->prev->next = j->next;
    j->next->prev = j->prev;
    for (struct remote_call *c = b->calls; c; c = c->next)
        for (uint32_t i = 0; i < c->n_parts; i++)
            if (c->parts[i].job == j)
                c->parts[i].job = NULL;
}

void remote_job_append(struct remote *b, struct remote_job *j)
{
    j->prev = b->jobs.prev;
    j->next = &b->jobs;
    j->prev->next = j;
    b->jobs.prev = j;
}

static void on_fallback(void *arg, const struct backend_result *result)
{
    answer(arg, result);
}

void remote_job_fail(struct remote *b, struct remote_job *j, const struct err *e)
{
    const bool endpoint = e->code == KITH_EIO || e->code == KITH_EPROTO;
    withdraw(b, j);
    if (endpoint && b->fallback && remote_fallback_state(b->fallback) == FALLBACK_TRUSTED) {
        const struct backend_request request = {.texts = j->texts,
                                                .n = j->n,
                                                .truncate = j->truncate,
                                                .done = on_fallback,
                                                .arg = j};
        if (!b->on_fallback)
            log_warning("the fallback answers: %s", e->message);
        b->on_fallback = true;
        remote_fallback_embed(b->fallback, &request);
        return;
    }
    const struct backend_result result = {.code = e->code, .message = e->message};
    atomic_fetch_add(&b->n_failed, 1);
    answer(j, &result);
}

void remote_job_finish(struct remote *b, struct remote_job *j)
{
    withdraw(b, j);
    const struct backend_result result = {
        .values = j->vectors, .n = j->n, .dim = b->model.dim, .n_tokens = j->n_tokens};
    answer(j, &result);
}

bool remote_job_waits(const struct remote_job *j)
{
    return j->n_started < j->n;
}

int64_t remote_job_deadline(const struct remote *b, const struct remote_job *j)
{
    const int64_t from = j->arrived_us > b->last_good_us ? j->arrived_us : b->last_good_us;
    return j->n_calls > 0 ? j->deadline_us : from + b->options.timeout_ms * 1000;
}

/* --- the breaker, told and heard --- */

void remote_tell_breaker(struct remote *b, bool good, int64_t now_us)
{
    const enum breaker_state before = b->breaker.state;
    if (good)
        breaker_succeeded(&b->breaker);
    else
        breaker_failed(&b->breaker, now_us / 1000);
    atomic_store(&b->breaker_state, (int)b->breaker.state);
    if (b->breaker.state == before)
        return;
    if (good)
        log_notice("%s answers again", b->address);
    else
        log_warning("%s is left alone for %" PRId64 " ms: %s", b->address, b->breaker.wait_ms,
                    b->last.message);
}
