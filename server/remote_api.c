#include "server/remote_api.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

enum {
    ANSWER_BYTES = 64 * 1024, /* of an answer, around its vectors */
    VECTOR_BYTES = 1024,      /* of a vector, around its numbers */
    NUMBER_BYTES = 40,        /* the longest a number is written, with a comma and spaces */
    COMPLAINT_READ = 4096     /* of a body that is looked at for a complaint */
};

/* --- names --- */

static const char *const style_names[] = {
    [REMOTE_OPENAI] = "openai", [REMOTE_OLLAMA] = "ollama"};

const char *remote_style_name(enum remote_style style)
{
    return style_names[style];
}

int remote_style_parse(const char *name, enum remote_style *style, struct err *e)
{
    for (size_t i = 0; i < sizeof style_names / sizeof *style_names; i++)
        if (strcmp(name, style_names[i]) == 0) {
            *style = (enum remote_style)i;
            return 0;
        }
    return err_set(e, KITH_EINVAL, "--remote takes openai or ollama, not '%s'", name);
}

void remote_api_address(enum remote_style style, const char *url, struct buf *to)
{
    size_t n = strlen(url);
    while (n > 0 && url[n - 1] == '/')
        n--;
    buf_append(to, url, n);
    if (style == REMOTE_OLLAMA)
        buf_append_str(to, "/api/embed");
    else if (n > 3 && memcmp(url + n - 3, "/v1", 3) == 0)
        buf_append_str(to, "/embeddings");
    else
        buf_append_str(to, "/v1/embeddings");
}

int remote_api_hash(const struct remote_model *m, char out[33], struct err *e)
{
    struct buf b = {0};
    const char *style = remote_style_name(m->style);
    buf_append(&b, style, strlen(style) + 1);
    buf_append(&b, m->name, strlen(m->name) + 1);
    buf_printf(&b, "%" PRIu32, m->dim);
    int rc = b.failed ? err_set(e, KITH_ENOMEM, "out of memory") : 0;
    if (!rc)
        hash128_hex(b.data, b.len, out);
    buf_deinit(&b);
    return rc;
}

/* --- requests --- */

static int dump_to(const char *bytes, size_t n, void *to)
{
    buf_append(to, bytes, n);
    return ((struct buf *)to)->failed ? -1 : 0;
}

int remote_api_request(const struct remote_model *m, const struct slice *texts, uint32_t n,
                       bool truncate, struct buf *to, struct err *e)
{
    json_t *root = json_object(), *input = json_array();
    int failed = !root || !input;
    for (uint32_t i = 0; i < n && !failed; i++)
        failed = json_array_append_new(input, json_stringn(texts[i].p, texts[i].n));
    failed = failed || json_object_set_new(root, "model", json_string(m->name));
    /* What was given to set_new is its own, also when it fails. */
    failed = failed || json_object_set(root, "input", input);
    if (m->style == REMOTE_OPENAI)
        failed = failed || json_object_set_new(root, "encoding_format", json_string("float"));
    else
        failed = failed || json_object_set_new(root, "truncate", json_boolean(truncate));
    if (m->send_dimensions)
        failed = failed || json_object_set_new(root, "dimensions", json_integer(m->dim));
    failed = failed || json_dump_callback(root, dump_to, to, JSON_COMPACT);
    json_decref(input);
    json_decref(root);
    return failed ? err_set(e, KITH_ENOMEM,
                            "no request could be made of %" PRIu32
                            " texts: out of memory, or a text is not UTF-8",
                            n)
                  : 0;
}

/* --- answers --- */

size_t remote_api_answer_limit(const struct remote_model *m, uint32_t n)
{
    return ANSWER_BYTES + (size_t)n * (VECTOR_BYTES + (size_t)m->dim * NUMBER_BYTES);
}

static const char *type_name(const json_t *j)
{
    static const char *const names[] = {"an object",  "an array", "a string", "an integer",
                                        "a fraction", "true",     "false",    "null"};
    return j ? names[json_typeof(j)] : "missing";
}

/* One vector as numbers of a length of 1; i counts from 0. */
static int read_vector(const struct remote_model *m, const json_t *from, uint32_t i, float *to,
                       struct err *e)
{
    double largest = 0, squares = 0;
    if (!json_is_array(from))
        return err_set(e, KITH_EPROTO, "vector %u is %s, expected an array of %u numbers",
                       i + 1, type_name(from), m->dim);
    if (json_array_size(from) != m->dim)
        return err_set(e, KITH_EPROTO, "vector %u: got %zu dimensions, expected %u", i + 1,
                       json_array_size(from), m->dim);
    for (uint32_t k = 0; k < m->dim; k++) {
        const json_t *number = json_array_get(from, k);
        if (!json_is_number(number))
            return err_set(e, KITH_EPROTO, "vector %u: number %u is %s, expected a number",
                           i + 1, k + 1, type_name(number));
        const double v = json_number_value(number);
        to[k] = (float)v;
        if (!isfinite(to[k]))
            return err_set(e, KITH_EPROTO,
                           "vector %u: number %u is %g, expected one that is finite as float32",
                           i + 1, k + 1, v);
        largest = fabs(v) > largest ? fabs(v) : largest;
    }
    if (largest == 0)
        return err_set(e, KITH_EPROTO, "vector %u is all zeros, expected one with a direction",
                       i + 1);
    /* Squares of small numbers would lose their digits. */
    for (uint32_t k = 0; k < m->dim; k++) {
        const double v = json_number_value(json_array_get(from, k)) / largest;
        squares += v * v;
        to[k] = (float)v;
    }
    const float scale = (float)(1 / sqrt(squares));
    for (uint32_t k = 0; k < m->dim; k++)
        to[k] *= scale;
    return 0;
}

static int check_count(const json_t *list, const char *name, uint32_t n, struct err *e)
{
    if (!json_is_array(list))
        return err_set(e, KITH_EPROTO, "'%s' is %s, expected an array of %u vectors", name,
                       type_name(list), n);
    if (json_array_size(list) != n)
        return err_set(e, KITH_EPROTO, "'%s' has %zu vectors, expected %u", name,
                       json_array_size(list), n);
    return 0;
}

/* The place of item i of data: what its index says, or its own place where no item has one. */
static int place_of(const json_t *item, bool indexed, uint32_t i, uint32_t n, bool *taken,
                    uint32_t *place, struct err *e)
{
    const json_t *index = json_object_get(item, "index");
    *place = i;
    if (!json_is_object(item))
        return err_set(e, KITH_EPROTO, "item %u of 'data' is %s, expected an object", i + 1,
                       type_name(item));
    if (!index && !indexed)
        return 0;
    const json_int_t at = json_integer_value(index);
    if (!indexed || !json_is_integer(index) || at < 0 || at >= (json_int_t)n || taken[at])
        return err_set(e, KITH_EPROTO,
                       "item %u of 'data': 'index' is %s (%" JSON_INTEGER_FORMAT
                       "), expected each of 0 to %u once",
                       i + 1, type_name(index), at, n - 1);
    taken[at] = true;
    *place = (uint32_t)at;
    return 0;
}

static int read_openai(const struct remote_model *m, const json_t *root, uint32_t n,
                       float *vectors, struct err *e)
{
    const json_t *data = json_object_get(root, "data");
    int rc = check_count(data, "data", n, e);
    if (rc)
        return rc;
    bool *taken = mem_calloc(n, sizeof *taken);
    if (!taken)
        return err_set(e, KITH_ENOMEM, "out of memory for %u vectors", n);
    const bool indexed = json_object_get(json_array_get(data, 0), "index") != NULL;
    for (uint32_t i = 0; i < n && !rc; i++) {
        const json_t *item = json_array_get(data, i);
        uint32_t place;
        rc = place_of(item, indexed, i, n, taken, &place, e);
        if (!rc)
            rc = read_vector(m, json_object_get(item, "embedding"), i,
                             vectors + (size_t)place * m->dim, e);
    }
    mem_free(taken);
    return rc;
}

static int read_ollama(const struct remote_model *m, const json_t *root, uint32_t n,
                       float *vectors, struct err *e)
{
    const json_t *list = json_object_get(root, "embeddings");
    int rc = check_count(list, "embeddings", n, e);
    for (uint32_t i = 0; i < n && !rc; i++)
        rc = read_vector(m, json_array_get(list, i), i, vectors + (size_t)i * m->dim, e);
    return rc;
}

static uint32_t read_tokens(const struct remote_model *m, const json_t *root)
{
    const json_t *j = m->style == REMOTE_OPENAI
                          ? json_object_get(json_object_get(root, "usage"), "prompt_tokens")
                          : json_object_get(root, "prompt_eval_count");
    const json_int_t n = json_integer_value(j);
    return n > 0 && n <= INT32_MAX ? (uint32_t)n : 0;
}

/* jansson quotes the body after " near ", which may be anything. */
static int not_json(const struct remote_model *m, struct slice body, uint32_t n,
                    const json_error_t *where, struct err *e)
{
    char begin[48];
    const char *near = strstr(where->text, " near ");
    remote_api_complaint(m, body, begin, sizeof begin);
    return err_set(e, KITH_EPROTO,
                   "the answer is not JSON (%.*s at byte %d): '%s', expected %u vectors of %u "
                   "numbers",
                   (int)(near ? near - where->text : 80), where->text, where->position, begin,
                   n, m->dim);
}

int remote_api_answer(const struct remote_model *m, struct slice body, uint32_t n,
                      float *vectors, uint32_t *n_tokens, struct err *e)
{
    json_error_t where;
    *n_tokens = 0;
    if (n == 0)
        return err_set(e, KITH_EINVAL, "an answer to no texts");
    json_t *root = json_loadb(body.n ? body.p : "", body.n, JSON_REJECT_DUPLICATES, &where);
    if (!root && json_error_code(&where) == json_error_out_of_memory)
        return err_set(e, KITH_ENOMEM, "out of memory for an answer of %zu bytes", body.n);
    if (!root)
        return not_json(m, body, n, &where, e);
    int rc =
        !json_is_object(root)
            ? err_set(e, KITH_EPROTO, "the answer is %s, expected an object", type_name(root))
        : m->style == REMOTE_OPENAI ? read_openai(m, root, n, vectors, e)
                                    : read_ollama(m, root, n, vectors, e);
    if (!rc)
        *n_tokens = read_tokens(m, root);
    json_decref(root);
    return rc;
}

/* --- complaints --- */

/* {"error": {"message": M}}, {"error": M}, {"message": M}, {"detail": M}; else NULL. */
static const char *complaint_of(const json_t *root)
{
    const json_t *error = json_object_get(root, "error");
    const json_t *const places[] = {json_object_get(error, "message"), error,
                                    json_object_get(root, "message"),
                                    json_object_get(root, "detail")};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (json_is_string(places[i]))
            return json_string_value(places[i]);
    return NULL;
}

static void hide(char *text, const char *secret)
{
    const size_t n = secret ? strlen(secret) : 0;
    for (char *at = text; n > 0 && (at = strstr(at, secret));)
        memset(at, '*', n);
}

void remote_api_complaint(const struct remote_model *m, struct slice body, char *out,
                          size_t size)
{
    char text[COMPLAINT_READ + 1];
    json_t *root = json_loadb(body.n ? body.p : "", body.n, 0, NULL);
    const char *said = complaint_of(root);
    const char *from = said ? said : body.p;
    size_t n = said ? strlen(said) : body.n;
    n = n < COMPLAINT_READ ? n : COMPLAINT_READ;
    for (size_t i = 0; i < n; i++)
        text[i] = from[i] >= ' ' && from[i] <= '~' ? from[i] : ' ';
    text[n] = '\0';
    hide(text, m->secret);
    snprintf(out, size, "%s", text);
    json_decref(root);
}
