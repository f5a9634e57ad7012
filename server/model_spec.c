#include "server/model_spec.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/client.h"
#include "server/config_file.h"

static const char *const precisions[] = {"auto", "f32", "int8"};

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
    return err_set(e, KITH_EINVAL, "invalid PRECISION: auto, f32 or int8, not '%.*s'",
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

static int read_option(struct model_spec *s, const struct slice *words, int n, int *at,
                       struct err *e)
{
    struct slice o = words[*at];
    if (slice_is(o, "DEFAULT")) {
        s->is_default = true;
        ++*at;
        return 0;
    }
    bool threads = slice_is(o, "THREADS"), precision = slice_is(o, "PRECISION");
    if (!threads && !precision)
        return err_set(e, KITH_EINVAL,
                       "'%.*s' is no option of a model: DEFAULT, THREADS n and PRECISION p are "
                       "allowed",
                       slice_shown(o), o.p);
    if (*at + 1 >= n)
        return err_set(e, KITH_EINVAL, "%s takes a value, and nothing follows it",
                       threads ? "THREADS" : "PRECISION");
    struct slice value = words[*at + 1];
    *at += 2;
    return threads ? read_threads(s, value, e) : read_precision(s, value, e);
}

int model_spec_read(struct model_spec *s, const struct slice *words, int n, struct err *e)
{
    *s = (struct model_spec){.kind = MODEL_FILE, .threads = -1};
    if (n < 2)
        return err_set(e, KITH_EINVAL, "a model takes a name and a path");
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
    int rc = 0;
    for (int at = 2; at < n && rc == 0;)
        rc = read_option(s, words, n, &at, e);
    return rc;
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
}

bool model_spec_same(const struct model_spec *a, const struct model_spec *b)
{
    return a->kind == b->kind && a->threads == b->threads &&
           strcmp(a->source, b->source) == 0 && strcmp(a->precision, b->precision) == 0;
}

int model_spec_make_absolute(struct model_spec *s, struct err *e)
{
    char cwd[PATH_MAX], joined[sizeof s->source];
    if (s->kind != MODEL_FILE || s->source[0] == '/')
        return 0;
    if (!getcwd(cwd, sizeof cwd))
        return err_set_errno(e, errno, "cannot find the directory of %.200s", s->source);
    int n = snprintf(joined, sizeof joined, "%s/%s", cwd, s->source);
    if (n < 0 || (size_t)n >= sizeof joined)
        return err_set(e, KITH_ELIMIT, "the model's path is too long: %.200s", s->source);
    memcpy(s->source, joined, (size_t)n + 1);
    return 0;
}

void model_spec_arguments(const struct model_spec *s, const char *precision, int64_t threads,
                          struct model_arguments *out)
{
    snprintf(out->threads, sizeof out->threads, "%" PRId64,
             s->threads >= 0 ? (int64_t)s->threads : threads);
    const char *const words[] = {"--model",     s->source,
                                 "--threads",   out->threads,
                                 "--precision", s->precision[0] ? s->precision : precision,
                                 NULL};
    memcpy(out->words, words, sizeof words);
}
