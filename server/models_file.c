/* models.conf: what was changed at run time, in lines like those of a settings file.
 *
 *   model NAME PATH [THREADS n] [PRECISION p]   was loaded
 *   unload NAME PATH                            the settings have it, and it was unloaded
 *   default NAME                                was made the default
 *   ready NAME key value ...                    what READY last said: a model that is away can
 * be found by its hash
 *
 * It is read after the settings, and what it says counts: it is younger. An `unload` line holds
 * for the very model it names, so that another path in the settings is a new model. The file is
 * replaced as a whole and is small. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/config_file.h"
#include "server/models_parts.h"

enum { FILE_MAX_BYTES = 16 * 1024 * 1024 };

/* --- writing --- */

static void write_pair(void *arg, const char *key, const char *value)
{
    struct buf *out = arg;
    buf_printf(out, " %s ", key);
    config_quote_word(out, slice_of(value));
}

void models_file_compose(struct models *m, struct buf *out)
{
    struct model *d;
    struct unloaded *u;
    buf_append_str(out, "# Written by kith-server: what MODEL LOAD, UNLOAD and DEFAULT did.\n");
    SLIST_FOREACH(u, &m->unloaded, next)
    {
        buf_printf(out, "unload %s ", u->name);
        config_quote_word(out, slice_of(u->source));
        buf_u8(out, '\n');
    }
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (d->configured || d->is_new || d->leaving)
            continue;
        struct model_spec spec = d->spec;
        spec.is_default = false; /* has its own line */
        buf_append_str(out, "model ");
        model_spec_write(&spec, out);
        buf_u8(out, '\n');
    }
    if (m->default_chosen && m->default_name[0])
        buf_printf(out, "default %s\n", m->default_name);
    TAILQ_FOREACH(d, &m->list, next)
    {
        if (d->is_new || d->leaving || !d->known.hash[0])
            continue;
        struct engine_model known = d->known;
        if (known.bytes == 0)
            known.bytes = d->last_bytes;
        buf_printf(out, "ready %s", d->spec.name);
        engine_model_write(&known, write_pair, out);
        buf_u8(out, '\n');
    }
}

/* --- reading --- */

static int read_unload(struct models *m, const struct slice *words, int n, struct err *e)
{
    if (n != 3 || !model_name_valid(words[1]) || words[2].n > MODEL_SOURCE_MAX)
        return err_set(e, KITH_EFORMAT, "unload takes a model's name and path");
    struct unloaded *u = mem_calloc(1, sizeof *u);
    if (!u)
        return err_set(e, KITH_ENOMEM, "out of memory");
    memcpy(u->name, words[1].p, words[1].n);
    memcpy(u->source, words[2].p, words[2].n);
    SLIST_INSERT_HEAD(&m->unloaded, u, next);
    return 0;
}

static int read_model(struct models *m, const struct slice *words, int n, struct err *e)
{
    struct model_spec spec;
    struct model *d;
    int rc = model_spec_read(&spec, words + 1, n - 1, e);
    if (rc != 0)
        return rc;
    if (model_find(m, slice_of(spec.name)))
        return err_set(e, KITH_EFORMAT, "model '%s' is there twice", spec.name);
    return model_register(m, &spec, &d, e);
}

static int read_ready(struct models *m, const struct slice *words, int n, struct err *e)
{
    struct model *d = n > 1 ? model_find(m, words[1]) : NULL;
    struct engine_model known;
    if (n < 2 || !engine_model_read(&known, words + 2, n - 2))
        return err_set(e, KITH_EFORMAT, "ready takes a model's name and what it is");
    if (!d)
        return 0; /* the settings have it no more */
    d->known = known;
    d->last_bytes = known.bytes;
    d->known.bytes = 0; /* of a process that is no more */
    return 0;
}

static int read_default(struct models *m, const struct slice *words, int n, struct err *e)
{
    if (n != 2 || !model_name_valid(words[1]))
        return err_set(e, KITH_EFORMAT, "default takes a model's name");
    if (!model_find(m, words[1])) {
        log_warning("the default model '%.*s' of models.conf is not in the settings any more",
                    slice_shown(words[1]), words[1].p);
        return 0;
    }
    snprintf(m->default_name, sizeof m->default_name, "%.*s", (int)words[1].n, words[1].p);
    m->default_chosen = true;
    return 0;
}

/* The file's lines come by kind: those that say what of the settings counts first. */
static const struct pass {
    const char *word;
    int (*read)(struct models *m, const struct slice *words, int n, struct err *e);
} passes[] = {{"unload", read_unload},
              {"model", read_model},
              {"ready", read_ready},
              {"default", read_default}};
enum { N_PASSES = sizeof passes / sizeof *passes, PASS_UNLOAD = 0, PASS_MODEL = 1 };

static int check_word(struct slice word, struct err *e)
{
    for (int i = 0; i < N_PASSES; i++)
        if (slice_is(word, passes[i].word))
            return 0;
    return err_set(e, KITH_EFORMAT, "'%.*s' is none of unload, model, default and ready",
                   slice_shown(word), word.p);
}

/* Reads the lines of one kind; every pass checks that all words are known. */
static int read_pass(struct models *m, const struct buf *text, const struct pass *pass,
                     struct err *e)
{
    struct buf store;
    buf_init(&store);
    struct slice left = {.p = text->data, .n = text->len}, line;
    int rc = 0;
    for (int number = 1; rc == 0 && slice_cut(&left, '\n', &line); number++) {
        struct slice words[CONFIG_WORDS_MAX];
        buf_clear(&store);
        int n = config_split_line(line, &store, words, e);
        rc = n > 0 ? check_word(words[0], e) : n;
        if (rc == 0 && n > 0 && slice_is(words[0], pass->word))
            rc = pass->read(m, words, n, e);
        if (rc != 0)
            err_wrap(e, "%s:%d", m->path, number);
    }
    buf_deinit(&store);
    return rc;
}

/* Whether the file has a `model` line of this name. */
static bool file_has_model(const struct buf *text, const char *name)
{
    struct buf store;
    buf_init(&store);
    struct slice left = {.p = text->data, .n = text->len}, line;
    bool found = false;
    while (!found && slice_cut(&left, '\n', &line)) {
        struct slice words[CONFIG_WORDS_MAX];
        buf_clear(&store);
        int n = config_split_line(line, &store, words, NULL);
        found = n > 1 && slice_is(words[0], "model") && slice_equal(words[1], slice_of(name));
    }
    buf_deinit(&store);
    return found;
}

static bool was_unloaded(struct models *m, const struct model_spec *spec)
{
    struct unloaded *u;
    SLIST_FOREACH(u, &m->unloaded, next)
    {
        if (strcmp(u->name, spec->name) == 0 && strcmp(u->source, spec->source) == 0)
            return true;
    }
    return false;
}

static int register_configured(struct models *m, const struct model_spec *spec,
                               const struct buf *text, struct err *e)
{
    struct model *d;
    if (was_unloaded(m, spec))
        return 0;
    if (file_has_model(text, spec->name)) {
        log_warning("model %s of the settings was replaced by MODEL LOAD: %s counts",
                    spec->name, m->path);
        return 0;
    }
    if (model_find(m, slice_of(spec->name)))
        return err_set(e, KITH_EINVAL, "the settings have two models '%s'", spec->name);
    int rc = model_register(m, spec, &d, e);
    if (rc != 0)
        return rc;
    d->configured = true;
    if (spec->is_default)
        memcpy(m->default_name, spec->name, sizeof m->default_name);
    return 0;
}

int models_file_load(struct models *m, const struct model_spec *configured, int n,
                     struct err *e)
{
    struct buf text;
    int rc = 0;
    buf_init(&text);
    if (file_exists(m->path))
        rc = file_read_whole(m->path, FILE_MAX_BYTES, &text, e);
    if (rc == 0)
        rc = read_pass(m, &text, &passes[PASS_UNLOAD], e);
    for (int i = 0; i < n && rc == 0; i++)
        rc = register_configured(m, &configured[i], &text, e);
    for (int i = PASS_MODEL; i < N_PASSES && rc == 0; i++)
        rc = read_pass(m, &text, &passes[i], e);
    buf_deinit(&text);
    return rc;
}
