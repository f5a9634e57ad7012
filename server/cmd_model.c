/* MODEL: the models of the server, loaded, unloaded and looked at.
 *
 * A change is begun at the command's first run and its result is asked for at every later one;
 * meanwhile the client waits (COMMAND_WAIT) and nobody else does. */
#include <inttypes.h>
#include <stdio.h>

#include "server/client.h"
#include "server/commands_shared.h"
#include "server/models.h"
#include "server/server.h"

/* --- LOAD, UNLOAD, DEFAULT --- */

/* The rest of a command that changes something, also from its second run on. */
static enum command_result wait_for_change(struct client *c, const struct err *refusal)
{
    struct models *m = c->server->models;
    struct err e = {0};
    if (c->wait_ticket == 0) {
        reply_err(c, refusal);
        return COMMAND_DONE;
    }
    waitlist_add(models_waiters(m), client_ref(c)); /* first: it may end between */
    int done = models_change_done(m, c->wait_ticket, &e);
    if (done == 0)
        return COMMAND_WAIT;
    c->wait_ticket = 0;
    if (done > 0)
        resp_ok(c->out);
    else
        reply_err(c, &e);
    return COMMAND_DONE;
}

static enum command_result model_load(struct client *c)
{
    struct err e = {0};
    struct model_spec spec;
    if (c->wait_ticket == 0 && model_spec_read(&spec, c->argv + 2, c->argc - 2, &e) == 0 &&
        model_spec_make_absolute(&spec, &e) == 0)
        c->wait_ticket = models_load(c->server->models, &spec, &e);
    return wait_for_change(c, &e);
}

static enum command_result model_unload(struct client *c)
{
    struct err e = {0};
    if (c->wait_ticket == 0)
        c->wait_ticket = models_unload(c->server->models, c->argv[2], &e);
    return wait_for_change(c, &e);
}

static enum command_result model_default(struct client *c)
{
    struct err e = {0};
    struct model_view v;
    if (c->argc > 3) {
        resp_error(c->out, "ERR MODEL DEFAULT takes one name, or none to ask for it");
        return COMMAND_DONE;
    }
    if (c->argc == 3) {
        if (c->wait_ticket == 0)
            c->wait_ticket = models_choose_default(c->server->models, c->argv[2], &e);
        return wait_for_change(c, &e);
    }
    if (models_view(c->server->models, (struct slice){0}, &v))
        resp_bulk_str(c->out, v.spec.name);
    else
        resp_null(c->out);
    return COMMAND_DONE;
}

/* --- LIST, INFO --- */

static void put_str(struct resp_out out, const char *key, const char *value)
{
    resp_bulk_str(out, key);
    resp_bulk_str(out, value);
}

static void put_int(struct resp_out out, const char *key, uint64_t value)
{
    resp_bulk_str(out, key);
    resp_int(out, value < INT64_MAX ? (int64_t)value : INT64_MAX);
}

struct listing {
    struct resp_out out;
    size_t n;
};

static void count_model(void *arg, const struct model_view *v)
{
    (void)v;
    ((struct listing *)arg)->n++;
}

static void list_model(void *arg, const struct model_view *v)
{
    struct listing *l = arg;
    if (l->n == 0)
        return; /* it came after they were counted */
    l->n--;
    resp_map(l->out, 7);
    put_str(l->out, "name", v->spec.name);
    put_str(l->out, "path", v->spec.source);
    put_str(l->out, "state", v->state);
    put_int(l->out, "default", v->is_default);
    put_str(l->out, "tasks", engine_tasks_word(v->model.tasks));
    put_int(l->out, "dim", v->model.dim);
    put_int(l->out, "bytes", v->bytes);
}

/* The array is as long as was said, also when a model went between. */
static enum command_result model_list(struct client *c)
{
    struct buf text;
    struct listing l = {.out = {.to = &text, .proto = c->out.proto}};
    buf_init(&text);
    models_each(c->server->models, count_model, &l);
    size_t announced = l.n;
    models_each(c->server->models, list_model, &l);
    if (text.failed) {
        resp_error(c->out, "OOM out of memory for the list");
    } else {
        resp_array(c->out, announced - l.n);
        buf_append(c->out.to, text.data, text.len);
    }
    buf_deinit(&text);
    return COMMAND_DONE;
}

static void put_prompts(struct resp_out out, const struct engine_model *m)
{
    resp_bulk_str(out, "prompts");
    resp_map(out, (size_t)(m->prompt_query[0] != '\0') + (m->prompt_document[0] != '\0'));
    if (m->prompt_query[0])
        put_str(out, "query", m->prompt_query);
    if (m->prompt_document[0])
        put_str(out, "document", m->prompt_document);
}

static enum command_result model_info(struct client *c)
{
    struct model_view v;
    struct resp_out out = c->out;
    if (!models_view(c->server->models, c->argv[2], &v) || c->argv[2].n == 0) {
        resp_errorf(out, "ERR no model '%.*s' is registered: MODEL LIST shows those that are",
                    slice_shown(c->argv[2]), c->argv[2].p);
        return COMMAND_DONE;
    }
    const struct engine_model *m = &v.model;
    const struct engine_stats *s = &v.stats;
    resp_map(out, 26);
    put_str(out, "name", v.spec.name);
    put_str(out, "model", m->name);
    put_str(out, "path", v.spec.source);
    put_str(out, "state", v.state);
    put_int(out, "default", v.is_default);
    put_str(out, "arch", m->arch);
    put_str(out, "type", m->type);
    put_int(out, "dim", m->dim);
    put_str(out, "dims", m->dims);
    put_int(out, "context", m->context);
    put_str(out, "pooling", m->pooling);
    put_prompts(out, m);
    put_str(out, "tasks", engine_tasks_word(m->tasks));
    put_str(out, "precision", m->precision);
    put_str(out, "kernels", m->kernels);
    put_int(out, "bytes", v.bytes);
    put_int(out, "threads", m->threads);
    put_str(out, "hash", m->hash);
    put_int(out, "pid", (uint64_t)s->pid);
    put_int(out, "requests", s->requests);
    put_int(out, "texts", s->texts);
    put_int(out, "tokens", s->tokens);
    put_int(out, "failed", s->failed);
    put_int(out, "restarts", s->restarts);
    put_int(out, "returns", s->returns);
    put_str(out, "last-error", s->last_error);
    return COMMAND_DONE;
}

/* --- the rows --- */

#define CHANGES CMD_ADMIN | CMD_NO_MULTI

static const struct command model_subcommands[] = {
    {.name = "default",
     .arity = -2,
     .flags = CHANGES,
     .run = model_default,
     .group = "engine",
     .since = "kith 0.1.0",
     .complexity = "O(1)",
     .summary =
         "Chooses the model for texts that name none and go to no set of another model, or "
         "returns its name. The choice outlives a restart.",
     .syntax = "[name]"},
    {.name = "help",
     .arity = 2,
     .flags = CMD_LOADING,
     .run = reply_subcommands_help,
     .group = "engine",
     .since = "kith 0.1.0",
     .complexity = "O(1)",
     .summary = "Says what the subcommands are.",
     .syntax = ""},
    {.name = "info",
     .arity = 3,
     .flags = 0,
     .run = model_info,
     .group = "engine",
     .since = "kith 0.1.0",
     .complexity = "O(1)",
     .summary = "Returns what a model is and how it is doing.",
     .syntax = "name"},
    {.name = "list",
     .arity = 2,
     .flags = 0,
     .run = model_list,
     .group = "engine",
     .since = "kith 0.1.0",
     .complexity = "O(N) with N the models",
     .summary =
         "Returns the registered models. State is ready, loading, away (put away for want "
         "of memory; the next request brings it back), down (its process ended and is "
         "started again) or refused (larger than engine-memory-limit).",
     .syntax = ""},
    {.name = "load",
     .arity = -4,
     .flags = CHANGES,
     .run = model_load,
     .group = "engine",
     .since = "kith 0.1.0",
     .complexity = "O(N) with N the bytes of the file",
     .summary =
         "Loads a GGUF file as a model of that name, in a process of its own, and replies "
         "when it is ready; a restart of the server loads it again. A relative path begins at "
         "the server's directory at work. In place of the path STYLE+URL#MODEL is a model "
         "behind "
         "an HTTP endpoint of the style openai or ollama, which takes DIM and the options "
         "behind "
         "it (kith-engine(1)). To load it again as it is does nothing.",
     .syntax =
         "name path [DEFAULT] [THREADS threads] [PRECISION auto | PRECISION f32 | PRECISION "
         "int8 | PRECISION bf16] [DIM dim] [CONTEXT tokens] [QUERY-PROMPT prompt] "
         "[DOCUMENT-PROMPT prompt] "
         "[KEY-FILE path] [CA-FILE path] [TIMEOUT-MS milliseconds] [RETRIES retries] "
         "[BATCH-TEXTS texts] [PARALLEL requests] [FALLBACK path] [SEND-DIMENSIONS]"},
    {.name = "unload",
     .arity = 3,
     .flags = CHANGES,
     .run = model_unload,
     .group = "engine",
     .since = "kith 0.1.0",
     .complexity = "O(1)",
     .summary =
         "Ends a model's process and forgets the model; texts under way get an error. The "
         "default model goes last.",
     .syntax = "name"},
    {.name = NULL}};

const struct command model_commands[] = {
    {.name = "model",
     .arity = -2,
     .subcommands = model_subcommands,
     .group = "engine",
     .since = "kith 0.1.0",
     .complexity = "Depends on subcommand.",
     .summary = "A container for commands about embedding models and rerankers."},
    {.name = NULL}};
