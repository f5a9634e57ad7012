#include "server/config.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "server/config_file.h"
#include "server/config_table.h"
#include "server/glob.h"

struct config_state {
    pthread_mutex_t lock;
    char *file;  /* absolute; NULL without one */
    bool *given; /* by settings' index: said by a file, an option or CONFIG SET */
};

void config_lock(struct config *c)
{
    pthread_mutex_lock(&c->state->lock);
}

void config_unlock(struct config *c)
{
    pthread_mutex_unlock(&c->state->lock);
}

static int take_defaults(struct config *c, struct err *e)
{
    for (const struct setting *s = settings; s->name; s++) {
        struct slice words[4];
        int n = 0;
        char copy[64];
        snprintf(copy, sizeof copy, "%s", s->fallback);
        if (s->type == SETTING_OUTPUT_LIMIT) {
            char *save = NULL;
            for (char *w = strtok_r(copy, " ", &save); w && n < 4;
                 w = strtok_r(NULL, " ", &save))
                words[n++] = slice_of(w);
        } else {
            words[n++] = slice_of(copy);
        }
        struct setting_value v;
        int rc = setting_parse(s, words, n, &v, e);
        if (rc != 0)
            return err_wrap(e, "default of %s", s->name);
        setting_apply(c, s, &v);
    }
    return 0;
}

int config_new(struct config **out, struct err *e)
{
    struct config *c = mem_calloc(1, sizeof *c);
    if (!c)
        return err_set(e, KITH_ENOMEM, "out of memory");
    c->state = mem_calloc(1, sizeof *c->state);
    if (!c->state) {
        mem_free(c);
        return err_set(e, KITH_ENOMEM, "out of memory");
    }
    pthread_mutex_init(&c->state->lock, NULL);
    c->state->given = mem_calloc((size_t)settings_count(), sizeof *c->state->given);
    int rc = c->state->given ? take_defaults(c, e) : err_set(e, KITH_ENOMEM, "out of memory");
    if (rc != 0) {
        config_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

void config_free(struct config *c)
{
    if (!c)
        return;
    for (const struct setting *s = settings; s->name; s++)
        if (s->type == SETTING_STRING || s->type == SETTING_MODELS) {
            struct setting_value nothing = {0};
            setting_apply(c, s, &nothing); /* frees the text */
        }
    pthread_mutex_destroy(&c->state->lock);
    mem_free(c->state->file);
    mem_free(c->state->given);
    mem_free(c->state);
    mem_free(c);
}

int config_apply(struct config *c, struct slice name, const struct slice *words, int n,
                 struct err *e)
{
    const struct setting *s = setting_find(name);
    if (!s) {
        const char *near = setting_nearest(name);
        return err_set(e, KITH_EINVAL, "unknown setting '%.*s'%s%s%s", slice_shown(name),
                       name.p, near ? "; did you mean '" : "", near ? near : "",
                       near ? "'?" : "");
    }
    struct setting_value v;
    int rc = setting_parse(s, words, n, &v, e);
    if (rc != 0) {
        setting_value_deinit(&v);
        return err_wrap(e, "%s%s%.*s", s->name, n > 0 ? " " : "",
                        n > 0 ? slice_shown(words[0]) : 0, n > 0 ? words[0].p : "");
    }
    config_lock(c);
    setting_apply(c, s, &v);
    c->state->given[s - settings] = true;
    config_unlock(c);
    setting_value_deinit(&v);
    return 0;
}

void config_set_file(struct config *c, char *path)
{
    mem_free(c->state->file);
    c->state->file = path;
}

bool config_given(const struct config *c, int setting)
{
    return c->state->given[setting];
}

const char *config_file(const struct config *c)
{
    return c->state->file ? c->state->file : "";
}

/* --- CONFIG GET and SET ---------------------------------------------------------------------
 */

void config_get(struct config *c, const struct slice *patterns, int n,
                void (*fn)(void *arg, const char *name, const char *value), void *arg)
{
    struct buf value;
    buf_init(&value);
    config_lock(c);
    for (const struct setting *s = settings; s->name; s++) {
        bool wanted = false;
        for (int i = 0; i < n && !wanted; i++)
            wanted = glob_match(patterns[i], slice_of(s->name), true);
        if (!wanted)
            continue;
        buf_clear(&value);
        setting_print(c, s, &value);
        buf_u8(&value, '\0');
        if (!value.failed)
            fn(arg, s->name, value.data);
    }
    config_unlock(c);
    buf_deinit(&value);
}

static int refuse_set(struct err *e, const char *name)
{
    char why[ERR_MESSAGE_MAX];
    snprintf(why, sizeof why, "%s", e ? e->message : "");
    return err_set(e, KITH_EINVAL, "CONFIG SET failed (possibly related to argument '%s') - %s",
                   name, why);
}

/* CONFIG SET gives a list as one argument; it is cut at spaces here. */
static int split_list(struct slice text, struct slice *words, int max)
{
    int n = 0;
    for (size_t i = 0; i < text.n && n < max;) {
        while (i < text.n && text.p[i] == ' ')
            i++;
        size_t from = i;
        while (i < text.n && text.p[i] != ' ')
            i++;
        if (i > from)
            words[n++] = (struct slice){.p = text.p + from, .n = i - from};
    }
    if (n == 0)
        words[n++] = (struct slice){.p = "", .n = 0};
    return n;
}

static int parse_pair(const struct slice *pair, const struct setting **setting,
                      struct setting_value *v, struct err *e)
{
    const struct setting *s = setting_find(pair[0]);
    if (!s) {
        const char *near = setting_nearest(pair[0]);
        return err_set(e, KITH_EINVAL,
                       "Unknown option or number of arguments for CONFIG SET - '%.*s'%s%s%s",
                       slice_shown(pair[0]), pair[0].p, near ? "; did you mean '" : "",
                       near ? near : "", near ? "'?" : "");
    }
    *setting = s;
    struct slice words[16];
    int n = 1;
    words[0] = pair[1];
    if (s->flags & SETTING_LIST)
        n = split_list(pair[1], words, 16);
    int rc = setting_parse(s, words, n, v, e);
    if (rc == 0 && !(s->flags & SETTING_CHANGEABLE) && s->type != SETTING_FIXED)
        rc = err_set(e, KITH_EINVAL, "can't set immutable config; it is read at start");
    return rc == 0 ? 0 : refuse_set(e, s->name);
}

int config_set(struct config *c, const struct slice *pairs, int n_pairs,
               void (*changed)(void *arg, const char *name), void *arg, struct err *e)
{
    struct err local;
    e = e ? e : &local;
    if (n_pairs > settings_count())
        return err_set(e, KITH_EINVAL, "CONFIG SET failed - more pairs than settings");
    const struct setting **which = mem_calloc((size_t)n_pairs, sizeof *which);
    struct setting_value *values = mem_calloc((size_t)n_pairs, sizeof *values);
    int rc = which && values ? 0 : err_set(e, KITH_ENOMEM, "out of memory");
    for (int i = 0; i < n_pairs && rc == 0; i++) {
        rc = parse_pair(pairs + 2 * i, &which[i], &values[i], e);
        for (int j = 0; j < i && rc == 0; j++)
            if (which[j] == which[i]) {
                err_set(e, KITH_EINVAL, "duplicate parameter");
                rc = refuse_set(e, which[i]->name);
            }
    }
    if (rc == 0) {
        config_lock(c);
        for (int i = 0; i < n_pairs; i++) {
            setting_apply(c, which[i], &values[i]);
            c->state->given[which[i] - settings] = true;
        }
        config_unlock(c);
        for (int i = 0; i < n_pairs; i++)
            if (changed)
                changed(arg, which[i]->name);
    }
    for (int i = 0; i < n_pairs && values; i++)
        setting_value_deinit(&values[i]);
    mem_free(values);
    mem_free(which);
    return rc;
}

bool config_protected(struct config *c)
{
    if (!atomic_load_explicit(&c->protected_mode, memory_order_relaxed))
        return false;
    config_lock(c);
    bool open = c->requirepass[0] == '\0';
    config_unlock(c);
    return open;
}

const char *config_word(struct config *c, const char *name)
{
    const struct setting *s = setting_find(slice_of(name));
    if (!s || s->type != SETTING_WORD)
        return "";
    _Atomic int *at = (_Atomic int *)(void *)((char *)c + s->offset);
    return s->words[atomic_load(at)];
}

/* --- pages made of the table --- */

static void print_allowed(const struct setting *s, struct buf *out)
{
    if (s->words) {
        for (int i = 0; s->words[i]; i++)
            buf_printf(out, "%s%s", i ? ", " : "", s->words[i]);
        return;
    }
    switch (s->type) {
    case SETTING_INT:
        if (s->max == INT64_MAX)
            buf_printf(out, "from %" PRId64, s->min);
        else
            buf_printf(out, "%" PRId64 " to %" PRId64, s->min, s->max);
        break;
    case SETTING_OCTAL:
        buf_printf(out, "octal, up to %" PRIo64, (uint64_t)s->max);
        break;
    case SETTING_BYTES:
        buf_append_str(out, "bytes (kb, mb, gb)");
        if (s->min > 0)
            buf_printf(out, ", from %" PRId64 "mb", s->min >> 20);
        if (s->max != INT64_MAX)
            buf_printf(out, ", up to %" PRId64 "mb", s->max >> 20);
        break;
    case SETTING_OUTPUT_LIMIT:
        buf_append_str(out, "`normal HARD 0 0`");
        break;
    case SETTING_MODELS:
        buf_append_str(out, "a name and a path");
        break;
    default:
        buf_append_str(out, "text");
    }
}

void config_print_markdown(struct buf *out)
{
    buf_append_str(
        out,
        "# Settings\n\n"
        "Made by `make docs` from the table in `server/config_table.c`; edit there.\n\n"
        "A setting is read from the configuration file (`name value`, one a line, `#` begins a "
        "comment line,\nquotes as in redis.conf, `include FILE` reads another), then from the "
        "command line (`--name value`);\nthe last one wins. Live settings can be changed with "
        "CONFIG SET, and CONFIG REWRITE writes them back.\n"
        "Sizes may carry a unit: k and m are powers of 1000, kb, mb and gb of 1024.\n");
    const char *group = "";
    for (const struct setting *s = settings; s->name; s++) {
        if (strcmp(group, s->group) != 0) {
            group = s->group;
            buf_printf(out,
                       "\n## %c%s\n\n| setting | default | allowed | live | meaning |\n"
                       "| --- | --- | --- | --- | --- |\n",
                       group[0] - 32, group + 1);
        }
        buf_printf(out, "| `%s` | %s%s%s | ", s->name, *s->fallback ? "`" : "empty",
                   s->fallback, *s->fallback ? "`" : "");
        print_allowed(s, out);
        buf_printf(out, " | %s | %s |\n", s->flags & SETTING_CHANGEABLE ? "yes" : "no",
                   s->help);
    }
}

void config_print_help(struct buf *out)
{
    buf_append_str(out, "Usage: kith-server [FILE] [--name value ...]\n"
                        "       kith-server --help | --version\n\n"
                        "FILE has the form of redis.conf. Settings, with their defaults:\n");
    const char *group = "";
    for (const struct setting *s = settings; s->name; s++) {
        if (strcmp(group, s->group) != 0)
            buf_printf(out, "\n%s\n", group = s->group);
        char head[80];
        snprintf(head, sizeof head, "--%s %s", s->name, *s->fallback ? s->fallback : "\"\"");
        buf_printf(out, "  %-42s %s\n", head, s->help);
    }
    buf_append_str(out,
                   "\nExit status: 0 stopped in order; 1 wrong settings or could not start; "
                   "2 stopped without its\nfinal checkpoint (the log has everything); 3 the "
                   "log could not be written.\n");
}
