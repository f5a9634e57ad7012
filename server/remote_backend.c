#include "server/remote_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/remote_parts.h"

enum { KEY_MAX_BYTES = 4096, URL_MAX_BYTES = 200 };

void remote_defaults(struct remote_options *o)
{
    *o = (struct remote_options){.timeout_ms = 10000,
                                 .retries = 3,
                                 .batch_texts = 64,
                                 .parallel = 4,
                                 .queue_bytes = 8u << 20};
    embedder_defaults(&o->embedder);
}

/* --- requests --- */

static void remote_embed(void *self, const struct backend_request *request)
{
    struct remote *b = self;
    struct remote_job *j = NULL;
    struct err e;
    int rc = remote_job_make(b, request, &j, &e);
    if (rc) {
        backend_refuse(request, &e);
        return;
    }
    pthread_mutex_lock(&b->lock);
    if (b->queued_bytes > 0 && b->queued_bytes + j->bytes > b->options.queue_bytes) {
        rc = err_set(&e, KITH_EBUSY,
                     "%zu bytes of text wait for the remote model, the queue holds %" PRIu64,
                     b->queued_bytes, b->options.queue_bytes);
    } else {
        *(b->last_arrival ? &b->last_arrival->next : &b->arrivals) = j;
        b->last_arrival = j;
        b->queued_bytes += j->bytes;
        atomic_fetch_add(&b->n_queued, 1);
    }
    pthread_mutex_unlock(&b->lock);
    if (rc) {
        remote_job_free(j);
        backend_refuse(request, &e);
        return;
    }
    remote_http_wake(b->http);
}

static void on_checked(void *arg, const struct backend_result *result)
{
    const struct remote *b = arg;
    remote_fallback_check(b->fallback, result->code ? NULL : result->values);
}

void remote_check_fallback(struct remote *b)
{
    struct backend_request request = {.done = on_checked, .arg = b};
    b->check_due = false;
    request.texts = b->fallback ? remote_fallback_begin_check(b->fallback, &request.n) : NULL;
    if (request.texts)
        remote_embed(b, &request);
}

static void remote_rerank(void *self, struct slice query, const struct backend_request *request)
{
    (void)self;
    (void)query;
    struct err e;
    err_set(&e, KITH_EUNSUPPORTED, "a remote model gives vectors and no scores");
    backend_refuse(request, &e);
}

/* --- what it says of itself --- */

static void remote_describe(void *self, struct backend_pairs *p)
{
    const struct remote *b = self;
    char hash[33] = "";
    remote_api_hash(&b->model, hash, NULL); /* it was made once at the start */
    backend_pair(p, "kind", "remote");
    backend_pair(p, "tasks", "embed");
    backend_pair(p, "name", "%s", b->name);
    backend_pair(p, "hash", "%s", hash);
    backend_pair(p, "pooling", "remote");
    backend_pair(p, "arch", "%s", remote_style_name(b->model.style));
    backend_pair(p, "type", "remote");
    backend_pair(p, "precision", "remote");
    backend_pair(p, "kernels", "remote");
    backend_pair(p, "path", "%s", b->address);
    backend_pair(p, "dim", "%u", b->model.dim);
    backend_pair(p, "context", "%u", b->options.context);
    backend_pair(p, "bytes", "0");
    backend_pair(p, "query-prompt", "%s", b->query_prompt);
    backend_pair(p, "document-prompt", "%s", b->document_prompt);
    backend_pair(p, "dims", "%s", "");
}

static void remote_stats(void *self, struct backend_stats *out)
{
    struct remote *b = self;
    *out = (struct backend_stats){.queued_requests = atomic_load(&b->n_queued),
                                  .batches = atomic_load(&b->n_batches),
                                  .texts = atomic_load(&b->n_texts),
                                  .tokens = atomic_load(&b->n_tokens)};
}

static void remote_report(void *self, struct backend_pairs *p)
{
    struct remote *b = self;
    backend_pair(p, "breaker", "%s",
                 breaker_name((enum breaker_state)atomic_load(&b->breaker_state)));
    backend_pair(p, "retries", "%" PRIu64, atomic_load(&b->n_retries));
    backend_pair(p, "failed", "%" PRIu64, atomic_load(&b->n_failed));
    backend_pair(p, "fallback", "%s",
                 b->fallback ? remote_fallback_state_name(b->fallback) : "none");
    backend_pair(p, "fallback-texts", "%" PRIu64,
                 b->fallback ? remote_fallback_texts(b->fallback) : 0);
}

/* --- open, close --- */

static void free_remote(struct remote *b)
{
    remote_http_close(b->http);
    remote_fallback_close(b->fallback);
    if (b->key)
        explicit_bzero(b->key, strlen(b->key));
    mem_free(b->key);
    mem_free(b->address);
    mem_free(b->name);
    mem_free(b->query_prompt);
    mem_free(b->document_prompt);
    pthread_mutex_destroy(&b->lock);
    mem_free(b);
}

static void remote_close(void *self)
{
    struct remote *b = self;
    pthread_mutex_lock(&b->lock);
    b->closing = true;
    pthread_mutex_unlock(&b->lock);
    remote_http_wake(b->http);
    pthread_join(b->thread, NULL);
    free_remote(b);
}

/* The key of a file's only line, in memory of its own. Nothing of it is in a message. */
static int read_key(const char *path, char **out, struct err *e)
{
    char bytes[KEY_MAX_BYTES + 1];
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot read the key file %s", path);
    if (fstat(fd, &st) == 0 && (st.st_mode & (S_IRWXG | S_IRWXO)))
        log_warning("the key file %s is open to others than its owner; chmod 600 %s", path,
                    path);
    ssize_t got = read(fd, bytes, sizeof bytes);
    int failed = errno;
    close(fd);
    if (got < 0)
        return err_set_errno(e, failed, "cannot read the key file %s", path);
    size_t n = (size_t)got;
    while (n > 0 && strchr(" \t\r\n", bytes[n - 1]))
        n--;
    int rc = 0;
    if (n == 0 || (size_t)got == sizeof bytes)
        rc = err_set(e, KITH_EINVAL, "the key file %s must hold one line of 1 to %d bytes",
                     path, KEY_MAX_BYTES);
    for (size_t i = 0; i < n && !rc; i++)
        if (bytes[i] <= ' ' || bytes[i] > '~')
            rc =
                err_set(e, KITH_EINVAL,
                        "the key file %s must hold one line of printable ASCII without spaces; "
                        "its byte %zu is none",
                        path, i + 1);
    bytes[rc ? 0 : n] = '\0';
    if (!rc && !(*out = mem_strdup(bytes)))
        rc = err_set(e, KITH_ENOMEM, "out of memory");
    explicit_bzero(bytes, sizeof bytes);
    return rc;
}

static char *copy(const char *s)
{
    return mem_strdup(s ? s : "");
}

static int copy_options(struct remote *b, const struct remote_options *o, struct err *e)
{
    struct buf address = {0};
    bool plain_far;
    char hash[33];
    int rc = strlen(o->url) > URL_MAX_BYTES
                 ? err_set(e, KITH_EINVAL, "--url has more than %d bytes", URL_MAX_BYTES)
                 : remote_http_check_url(o->url, &plain_far, e);
    if (rc)
        return rc;
    if (plain_far && o->key_file && !o->insecure_key)
        return err_set(e, KITH_EINVAL,
                       "--url %s would show the key to the network: use https, or give "
                       "--insecure-key",
                       o->url);
    remote_api_address(o->style, o->url, &address);
    buf_u8(&address, 0);
    b->address = address.failed ? NULL : mem_strdup(address.data);
    buf_deinit(&address);
    b->name = copy(o->model);
    b->query_prompt = copy(o->query_prompt);
    b->document_prompt = copy(o->document_prompt);
    if (!b->address || !b->name || !b->query_prompt || !b->document_prompt)
        return err_set(e, KITH_ENOMEM, "out of memory");
    if (o->key_file && (rc = read_key(o->key_file, &b->key, e)))
        return rc;
    b->model = (struct remote_model){.style = o->style,
                                     .name = b->name,
                                     .dim = o->dim,
                                     .send_dimensions = o->send_dimensions,
                                     .secret = b->key};
    return remote_api_hash(&b->model, hash, e);
}

static int open_parts(struct remote *b, const struct remote_options *o, struct err *e)
{
    int rc = copy_options(b, o, e);
    if (rc)
        return rc;
    const struct remote_http_options http = {
        .address = b->address, .key = b->key, .ca_file = o->ca_file, .parallel = o->parallel};
    if ((rc = remote_http_open(&b->http, &http, e)))
        return rc;
    if (o->fallback &&
        (rc = remote_fallback_open(&b->fallback, o->fallback, &o->embedder, o->dim, e)))
        return rc;
    int failed = pthread_create(&b->thread, NULL, remote_loop, b);
    return failed ? err_set_errno(e, failed, "cannot start the remote model's thread") : 0;
}

int remote_backend_open(struct engine_backend *out, const struct remote_options *o,
                        struct err *e)
{
    struct remote *b = mem_calloc(1, sizeof *b);
    if (!b)
        return err_set(e, KITH_ENOMEM, "out of memory");
    b->options = *o;
    b->jobs.next = b->jobs.prev = &b->jobs;
    b->check_due = true;
    pthread_mutex_init(&b->lock, NULL);
    rng_seed(&b->rng, rng_entropy());
    int rc = open_parts(b, o, e);
    if (rc) {
        free_remote(b);
        return rc;
    }
    *out = (struct engine_backend){.self = b,
                                   .describe = remote_describe,
                                   .embed = remote_embed,
                                   .rerank = remote_rerank,
                                   .stats = remote_stats,
                                   .report = remote_report,
                                   .close = remote_close};
    return 0;
}
