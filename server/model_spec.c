#include "server/model_spec.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/client.h"
#include "server/config_file.h"

static const char *const precisions[] = {"auto", "f32", "int8", "bf16"};

/* Options of remote models: kith-engine has each under the same name in small letters, and says
 * of a number or a word what is allowed. A number of the table is a place in model_spec.remote.
 */
enum option_form { OPTION_WORD, OPTION_PATH, OPTION_FLAG };
static const struct {
    const char *name, *argument;
    enum option_form form;
} remote_options[MODEL_REMOTE_OPTIONS] = {
    {"DIM", "--dim", OPTION_WORD},
    {"CONTEXT", "--context", OPTION_WORD},
    {"QUERY-PROMPT", "--query-prompt", OPTION_WORD},
    {"DOCUMENT-PROMPT", "--document-prompt", OPTION_WORD},
    {"KEY-FILE", "--key-file", OPTION_PATH},
    {"CA-FILE", "--ca-file", OPTION_PATH},
    {"TIMEOUT-MS", "--timeout-ms", OPTION_WORD},
    {"RETRIES", "--retries", OPTION_WORD},
    {"BATCH-TEXTS", "--batch-texts", OPTION_WORD},
    {"PARALLEL", "--parallel", OPTION_WORD},
    {"FALLBACK", "--fallback", OPTION_PATH},
    {"SEND-DIMENSIONS", "--send-dimensions", OPTION_FLAG},
};
enum { REMOTE_DIM = 0 };
static const char *const remote_styles[] = {"openai", "ollama"};
static const char file_options[] = "DEFAULT, THREADS n and PRECISION p";
static const char remote_option_names[] =
    "DEFAULT, THREADS n, PRECISION p, DIM n, CONTEXT n, QUERY-PROMPT p, DOCUMENT-PROMPT p, "
    "KEY-FILE f, CA-FILE f, TIMEOUT-MS n, RETRIES n, BATCH-TEXTS n, PARALLEL n, FALLBACK f and "
    "SEND-DIMENSIONS";

bool model_name_valid(struct slice name)
{
    if (name.n == 0 || name.n > MODEL_NAME_MAX)
        return false;
    for (size_t i = 0; i < name.n; i++) {
        char c = name.p[i];
        bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                    (c >= '0' && c <= '9') || (c != '\0' && strchr("._:/-", c));
        if (!good)
            return false;
    }
    return true;
}

static int read_precision(struct model_spec *s, struct slice value, struct err *e)
{
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++)
        if (slice_is(value, precisions[i])) {
            snprintf(s->precision, sizeof s->precision, "%s", precisions[i]);
            return 0;
        }
    return err_set(e, KITH_EINVAL, "invalid PRECISION: auto, f32, int8 or bf16, not '%.*s'",
                   slice_shown(value), value.p);
}

static int read_threads(struct model_spec *s, struct slice value, struct err *e)
{
    int64_t n;
    if (!arg_int(value, &n) || n < 0 || n > MODEL_THREADS_MAX)
        return err_set(e, KITH_EINVAL, "invalid THREADS: 0 (one a processor) to %d, not '%.*s'",
                       MODEL_THREADS_MAX, slice_shown(value), value.p);
    s->threads = (int)n;
    return 0;
}

/* The option's number, or -1. */
static int find_remote_option(struct slice word)
{
    for (int i = 0; i < MODEL_REMOTE_OPTIONS; i++)
        if (slice_is(word, remote_options[i].name))
            return i;
    return -1;
}

static int read_remote_value(struct model_spec *s, int option, struct slice value,
                             struct err *e)
{
    if (value.n == 0 || value.n > MODEL_REMOTE_VALUE_MAX || memchr(value.p, '\0', value.n))
        return err_set(e, KITH_EINVAL,
                       "invalid %s: 1 to %d bytes without a zero byte are allowed",
                       remote_options[option].name, MODEL_REMOTE_VALUE_MAX);
    memcpy(s->remote[option], value.p, value.n);
    s->remote[option][value.n] = '\0';
    return 0;
}

static int read_option(struct model_spec *s, const struct slice *words, int n, int *at,
                       struct err *e)
{
    struct slice o = words[(*at)++];
    bool threads = slice_is(o, "THREADS"), precision = slice_is(o, "PRECISION");
    int option = s->kind == MODEL_REMOTE ? find_remote_option(o) : -1;
    if (slice_is(o, "DEFAULT")) {
        s->is_default = true;
        return 0;
    }
    if (!threads && !precision && option < 0)
        return err_set(e, KITH_EINVAL, "'%.*s' is no option of a model%s: %s are allowed",
                       slice_shown(o), o.p, s->kind == MODEL_REMOTE ? "" : " file",
                       s->kind == MODEL_REMOTE ? remote_option_names : file_options);
    if (option >= 0 && remote_options[option].form == OPTION_FLAG)
        return read_remote_value(s, option, slice_of("yes"), e);
    if (*at >= n)
        return err_set(e, KITH_EINVAL, "%.*s takes a value, and nothing follows it",
                       slice_shown(o), o.p);
    struct slice value = words[(*at)++];
    return threads     ? read_threads(s, value, e)
           : precision ? read_precision(s, value, e)
                       : read_remote_value(s, option, value, e);
}

/* "style+URL#model": where the URL begins and the model's name does; false: it is a path. */
static bool split_remote(const char *source, size_t *url, size_t *model)
{
    for (size_t i = 0; i < sizeof remote_styles / sizeof *remote_styles; i++) {
        size_t n = strlen(remote_styles[i]);
        if (strncmp(source, remote_styles[i], n) != 0 || source[n] != '+')
            continue;
        const char *name = strrchr(source, '#');
        *url = n + 1;
        *model = name ? (size_t)(name - source) + 1 : 0;
        return true;
    }
    return false;
}

static int check_remote(const struct model_spec *s, struct err *e)
{
    size_t url = 0, model = 0;
    split_remote(s->source, &url, &model);
    if (model == 0 || s->source[model] == '\0')
        return err_set(e, KITH_EINVAL,
                       "a remote model is STYLE+URL#MODEL, as "
                       "ollama+http://127.0.0.1:11434#nomic-embed-text; '%.200s' has no #MODEL",
                       s->source);
    if (!s->remote[REMOTE_DIM][0])
        return err_set(e, KITH_EINVAL,
                       "a remote model needs DIM n, the dimensions of its vectors");
    return 0;
}

int model_spec_read(struct model_spec *s, const struct slice *words, int n, struct err *e)
{
    *s = (struct model_spec){.kind = MODEL_FILE, .threads = -1};
    if (n < 2)
        return err_set(e, KITH_EINVAL, "a model takes a name and a path or STYLE+URL#MODEL");
    if (!model_name_valid(words[0]))
        return err_set(e, KITH_EINVAL, "invalid model name '%.*s': " MODEL_NAMES_ALLOWED,
                       slice_shown(words[0]), words[0].p);
    if (words[1].n == 0 || words[1].n > MODEL_SOURCE_MAX ||
        memchr(words[1].p, '\0', words[1].n))
        return err_set(e, KITH_EINVAL,
                       "invalid path of a model: 1 to %d bytes without a zero byte are allowed",
                       MODEL_SOURCE_MAX);
    memcpy(s->name, words[0].p, words[0].n);
    memcpy(s->source, words[1].p, words[1].n);
    size_t url, model;
    s->kind = split_remote(s->source, &url, &model) ? MODEL_REMOTE : MODEL_FILE;
    int rc = 0;
    for (int at = 2; at < n && rc == 0;)
        rc = read_option(s, words, n, &at, e);
    return rc == 0 && s->kind == MODEL_REMOTE ? check_remote(s, e) : rc;
}

void model_spec_write(const struct model_spec *s, struct buf *out)
{
    config_quote_word(out, slice_of(s->name));
    buf_u8(out, ' ');
    config_quote_word(out, slice_of(s->source));
    if (s->is_default)
        buf_append_str(out, " DEFAULT");
    if (s->threads >= 0)
        buf_printf(out, " THREADS %d", s->threads);
    if (s->precision[0])
        buf_printf(out, " PRECISION %s", s->precision);
    for (int i = 0; i < MODEL_REMOTE_OPTIONS; i++) {
        if (!s->remote[i][0])
            continue;
        buf_printf(out, " %s", remote_options[i].name);
        if (remote_options[i].form == OPTION_FLAG)
            continue;
        buf_u8(out, ' ');
        config_quote_word(out, slice_of(s->remote[i]));
    }
}

bool model_spec_same(const struct model_spec *a, const struct model_spec *b)
{
    if (a->kind != b->kind || a->threads != b->threads || strcmp(a->source, b->source) != 0 ||
        strcmp(a->precision, b->precision) != 0)
        return false;
    for (int i = 0; i < MODEL_REMOTE_OPTIONS; i++)
        if (strcmp(a->remote[i], b->remote[i]) != 0)
            return false;
    return true;
}

/* A path of `size` bytes that begins elsewhere is one from here. */
static int make_absolute(char *path, size_t size, struct err *e)
{
    char cwd[PATH_MAX];
    size_t n = strlen(path);
    if (path[0] == '/' || n == 0)
        return 0;
    if (!getcwd(cwd, sizeof cwd))
        return err_set_errno(e, errno, "cannot find the directory of %.200s", path);
    size_t before = strlen(cwd) + 1;
    if (before + n >= size)
        return err_set(e, KITH_ELIMIT, "a model's path is too long: %.200s", path);
    memmove(path + before, path, n + 1);
    memcpy(path, cwd, before - 1);
    path[before - 1] = '/';
    return 0;
}

int model_spec_make_absolute(struct model_spec *s, struct err *e)
{
    if (s->kind == MODEL_FILE)
        return make_absolute(s->source, sizeof s->source, e);
    int rc = 0;
    for (int i = 0; i < MODEL_REMOTE_OPTIONS && rc == 0; i++)
        if (remote_options[i].form == OPTION_PATH)
            rc = make_absolute(s->remote[i], sizeof s->remote[i], e);
    return rc;
}

static size_t remote_arguments(const struct model_spec *s, struct model_arguments *out)
{
    size_t url = 0, model = 0, n = 0;
    split_remote(s->source, &url, &model);
    snprintf(out->style, sizeof out->style, "%.*s", (int)(url - 1), s->source);
    snprintf(out->url, sizeof out->url, "%.*s", (int)(model - 1 - url), s->source + url);
    const char *const words[] = {"--remote", out->style,       "--url",
                                 out->url,   "--remote-model", s->source + model};
    for (; n < sizeof words / sizeof *words; n++)
        out->words[n] = words[n];
    for (int i = 0; i < MODEL_REMOTE_OPTIONS; i++) {
        if (!s->remote[i][0])
            continue;
        out->words[n++] = remote_options[i].argument;
        if (remote_options[i].form != OPTION_FLAG)
            out->words[n++] = s->remote[i];
    }
    return n;
}

void model_spec_arguments(const struct model_spec *s, const char *precision, int64_t threads,
                          struct model_arguments *out)
{
    snprintf(out->threads, sizeof out->threads, "%" PRId64,
             s->threads >= 0 ? (int64_t)s->threads : threads);
    size_t n = 0;
    if (s->kind == MODEL_REMOTE) {
        n = remote_arguments(s, out);
    } else {
        out->words[n++] = "--model";
        out->words[n++] = s->source;
    }
    out->words[n++] = "--threads";
    out->words[n++] = out->threads;
    out->words[n++] = "--precision";
    out->words[n++] = s->precision[0] ? s->precision : precision;
    out->words[n] = NULL;
}
