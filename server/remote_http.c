#include "server/remote_http.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

struct remote_http {
    CURLM *multi;
    struct curl_slist *headers;
    char *address, *ca_file;
    bool near; /* this machine: no proxy stands between */
};

/* --- addresses --- */

static bool is_near(const char *host)
{
    struct in_addr v4;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return strcmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0;
}

/* A part of a URL, or NULL; freed by curl_free. */
static char *part_of(CURLU *u, CURLUPart part)
{
    char *text = NULL;
    return curl_url_get(u, part, &text, 0) == CURLUE_OK ? text : NULL;
}

static int look_at_url(const char *url, bool *near, bool *encrypted, struct err *e)
{
    CURLU *u = curl_url();
    if (!u)
        return err_set(e, KITH_ENOMEM, "out of memory");
    char *host = NULL, *scheme = NULL, *user = NULL, *query = NULL, *fragment = NULL;
    int rc = 0;
    CURLUcode bad = curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME);
    if (!bad) {
        host = part_of(u, CURLUPART_HOST);
        scheme = part_of(u, CURLUPART_SCHEME);
        user = part_of(u, CURLUPART_USER);
        query = part_of(u, CURLUPART_QUERY);
        fragment = part_of(u, CURLUPART_FRAGMENT);
    }
    *encrypted = scheme && strcmp(scheme, "https") == 0;
    *near = host && is_near(host);
    if (user) /* which may be a secret: it is not shown */
        rc = err_set(e, KITH_EINVAL, "--url has a user in it; give a key in --key-file");
    else if (bad || !host || !(*encrypted || (scheme && strcmp(scheme, "http") == 0)))
        rc = err_set(e, KITH_EINVAL,
                     "--url takes http://HOST[:PORT][/PATH] or https://..., not '%.200s'", url);
    else if (query || fragment)
        rc = err_set(e, KITH_EINVAL, "--url takes no query and no fragment: '%.200s'", url);
    curl_free(host);
    curl_free(scheme);
    curl_free(user);
    curl_free(query);
    curl_free(fragment);
    curl_url_cleanup(u);
    return rc;
}

int remote_http_check_url(const char *url, bool *plain_far, struct err *e)
{
    bool near, encrypted;
    int rc = look_at_url(url, &near, &encrypted, e);
    *plain_far = !near && !encrypted;
    return rc;
}

/* --- open, close --- */

/* True when out of memory. */
static bool add_header(struct remote_http *h, const char *line)
{
    struct curl_slist *more = curl_slist_append(h->headers, line);
    h->headers = more ? more : h->headers;
    return !more;
}

static int make_headers(struct remote_http *h, const char *key, struct err *e)
{
    /* "Expect:" takes out the wait for a 100 that curl makes before large bodies. */
    bool failed = add_header(h, "Content-Type: application/json") ||
                  add_header(h, "Accept: application/json") || add_header(h, "Expect:");
    if (key) {
        struct buf line = {0};
        buf_printf(&line, "Authorization: Bearer %s", key);
        buf_u8(&line, 0);
        failed = failed || line.failed || add_header(h, line.data);
        if (line.data)
            explicit_bzero(line.data, line.len);
        buf_deinit(&line);
    }
    return failed ? err_set(e, KITH_ENOMEM, "out of memory") : 0;
}

int remote_http_open(struct remote_http **out, const struct remote_http_options *o,
                     struct err *e)
{
    bool encrypted;
    if (curl_global_init(CURL_GLOBAL_DEFAULT))
        return err_set(e, KITH_EIO, "libcurl cannot be started");
    struct remote_http *h = mem_calloc(1, sizeof *h);
    int rc = h ? 0 : err_set(e, KITH_ENOMEM, "out of memory");
    if (rc)
        return rc;
    h->multi = curl_multi_init();
    h->address = mem_strdup(o->address);
    h->ca_file = o->ca_file ? mem_strdup(o->ca_file) : NULL;
    if (!h->multi || !h->address || (o->ca_file && !h->ca_file))
        rc = err_set(e, KITH_ENOMEM, "out of memory");
    if (!rc)
        rc = make_headers(h, o->key, e);
    if (!rc)
        rc = look_at_url(o->address, &h->near, &encrypted, e);
    if (rc) {
        remote_http_close(h);
        return rc;
    }
    curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, (long)o->parallel);
    *out = h;
    return 0;
}

void remote_http_close(struct remote_http *h)
{
    if (!h)
        return;
    curl_multi_cleanup(h->multi);
    for (struct curl_slist *line = h->headers; line; line = line->next)
        explicit_bzero(line->data, strlen(line->data)); /* one of them has the key */
    curl_slist_free_all(h->headers);
    mem_free(h->address);
    mem_free(h->ca_file);
    mem_free(h);
    curl_global_cleanup();
}

/* --- exchanges --- */

static size_t take_answer(char *p, size_t size, size_t n, void *arg)
{
    struct http_exchange *x = arg;
    size_t bytes = size * n;
    if (bytes > x->answer_limit - x->answer.len) {
        x->end = HTTP_TOO_LARGE;
        return 0; /* curl ends the transfer */
    }
    buf_append(&x->answer, p, bytes);
    return x->answer.failed ? 0 : bytes;
}

static CURLcode set_up(struct remote_http *h, struct http_exchange *x, CURL *easy)
{
    CURLcode bad = CURLE_OK;
#define SET(option, value) (bad = bad ? bad : curl_easy_setopt(easy, option, value))
    SET(CURLOPT_URL, h->address);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_POSTFIELDS, x->body.p);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)x->body.n);
    SET(CURLOPT_HTTPHEADER, h->headers);
    SET(CURLOPT_USERAGENT, "kith-engine");
    SET(CURLOPT_WRITEFUNCTION, take_answer);
    SET(CURLOPT_WRITEDATA, x);
    SET(CURLOPT_PRIVATE, x);
    SET(CURLOPT_ERRORBUFFER, x->why);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_QUICK_EXIT, 1L); /* a name that resolves slowly holds up no end */
    if (h->near)
        SET(CURLOPT_NOPROXY, "*");
    if (h->ca_file) {
        SET(CURLOPT_CAINFO, h->ca_file);
        SET(CURLOPT_CAPATH, NULL);
    }
#undef SET
    return bad;
}

int remote_http_start(struct remote_http *h, struct http_exchange *x, struct err *e)
{
    CURL *easy = curl_easy_init();
    buf_clear(&x->answer);
    x->answer.failed = false;
    x->end = HTTP_ANSWERED;
    x->status = 0;
    x->retry_after_ms = 0;
    x->why[0] = '\0';
    if (!easy || set_up(h, x, easy) || curl_multi_add_handle(h->multi, easy)) {
        curl_easy_cleanup(easy);
        return err_set(e, KITH_ENOMEM, "out of memory for an HTTP request");
    }
    x->handle = easy;
    return 0;
}

void remote_http_cancel(struct remote_http *h, struct http_exchange *x)
{
    if (!x->handle)
        return;
    curl_multi_remove_handle(h->multi, x->handle);
    curl_easy_cleanup(x->handle);
    x->handle = NULL;
}

long remote_http_status(const struct http_exchange *x)
{
    long status = 0;
    if (!x->handle)
        return x->status;
    curl_easy_getinfo(x->handle, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

static void note_end(struct http_exchange *x, CURLcode code)
{
    curl_off_t retry_after_s = 0;
    curl_easy_getinfo(x->handle, CURLINFO_RETRY_AFTER, &retry_after_s);
    if (retry_after_s > 0)
        x->retry_after_ms =
            retry_after_s < INT32_MAX ? retry_after_s * 1000 : INT64_C(1000) * INT32_MAX;
    if (x->end == HTTP_ANSWERED && code != CURLE_OK)
        x->end = code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
                         code == CURLE_SSL_ISSUER_ERROR
                     ? HTTP_UNTRUSTED
                     : HTTP_BROKEN;
    if (x->end == HTTP_TOO_LARGE)
        snprintf(x->why, sizeof x->why, "the answer is longer than %zu bytes", x->answer_limit);
    else if (code != CURLE_OK && x->answer.failed)
        snprintf(x->why, sizeof x->why, "out of memory for the answer");
    else if (code != CURLE_OK && !x->why[0])
        snprintf(x->why, sizeof x->why, "%s", curl_easy_strerror(code));
}

static struct http_exchange *ended(struct remote_http *h)
{
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(h->multi, &left));) {
        struct http_exchange *x = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        const CURLcode code = m->data.result; /* m ends with its handle */
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &x);
        x->status = remote_http_status(x);
        note_end(x, code);
        remote_http_cancel(h, x);
        return x;
    }
    return NULL;
}

struct http_exchange *remote_http_wait(struct remote_http *h, int wait_ms)
{
    int running;
    curl_multi_perform(h->multi, &running);
    struct http_exchange *x = ended(h);
    if (x || wait_ms <= 0)
        return x;
    curl_multi_poll(h->multi, NULL, 0, wait_ms, NULL);
    curl_multi_perform(h->multi, &running);
    return ended(h);
}

void remote_http_wake(struct remote_http *h)
{
    curl_multi_wakeup(h->multi);
}
