/* VREEMBED: another model for a set, in the background (reembed.h). */
#include <string.h>

#include "base/epoch.h"
#include "server/commands_shared.h"
#include "server/data.h"
#include "server/models.h"
#include "server/reembed.h"
#include "server/server.h"

struct vreembed {
    struct slice model;
    uint32_t dim; /* 0: the model's own */
    bool truncate;
    struct engine_model engine;
};

static bool parse(struct client *c, struct vreembed *a)
{
    *a = (struct vreembed){0};
    for (int i = 2; i < c->argc; i++) {
        struct slice o = c->argv[i];
        bool more = i + 1 < c->argc;
        if (slice_is(o, "TRUNCATE")) {
            a->truncate = true;
        } else if (slice_is(o, "MODEL") && more) {
            a->model = c->argv[++i];
            if (a->model.n == 0)
                return reply_invalid(c, "MODEL", i, "the name of a model");
        } else if (slice_is(o, "DIM") && more) {
            if (!arg_in_range(c, "DIM", c->argv[++i], 1, INDEX_DIM_MAX, &a->dim))
                return false;
        } else if (slice_is(o, "MODEL") || slice_is(o, "DIM")) {
            resp_errorf(c->out, "ERR VREEMBED option '%.*s' has no value", slice_shown(o), o.p);
            return false;
        } else {
            resp_errorf(c->out,
                        "ERR invalid VREEMBED option '%.*s': MODEL and DIM are allowed, each "
                        "with a value, and TRUNCATE; or CANCEL alone",
                        slice_shown(o), o.p);
            return false;
        }
    }
    if (a->model.n == 0)
        resp_error(c->out, "ERR VREEMBED takes MODEL and its name, or CANCEL");
    return a->model.n > 0;
}

/* The name of one element that has no text, appended to out. */
static void find_textless(struct vset *v, struct buf *out)
{
    uint32_t end = vset_slots(v);
    bool found = false;
    for (uint32_t slot = 0; slot < end && !found; slot++) {
        epoch_enter();
        found = vset_live(v, slot) && !vset_has_text(v, slot) && vset_name(v, slot, out, NULL);
        epoch_exit();
    }
}

/* Whether the set can be re-embedded at all; else the error was replied. */
static bool set_allows(struct client *c, struct key *k)
{
    struct vset_info info;
    const char *running = reembed_running(data_reembed(c), k);
    if (running) {
        resp_errorf(c->out,
                    "ERR this key is being re-embedded already, with model '%s': VREEMBED key "
                    "CANCEL ends that",
                    running);
        return false;
    }
    if (vset_params(k->vset)->projection_dim) {
        resp_error(c->out, "ERR the set was made with REDUCE: its vectors are projections, and "
                           "VREEMBED makes whole ones");
        return false;
    }
    vset_info(k->vset, &info);
    if (info.n_texts >= info.count)
        return true;
    struct buf name;
    buf_init(&name);
    find_textless(k->vset, &name);
    struct slice shown = {name.data, name.len};
    resp_errorf(
        c->out,
        "ERR VREEMBED needs the text of every element: %u of %u have none, '%.*s' among "
        "them",
        info.count - info.n_texts, info.count, slice_shown(shown), shown.p);
    buf_deinit(&name);
    return false;
}

/* The model, ready. COMMAND_DONE with *ok false: the error was replied. */
static enum command_result find_model(struct client *c, struct vreembed *a, bool *ok)
{
    struct err e = {0};
    char allowed[160];
    waitlist_add(models_waiters(c->server->models), client_ref(c));
    int rc = models_ready(c->server->models, a->model, &a->engine, &e);
    if (rc == 0)
        return COMMAND_WAIT;
    *ok = false;
    if (rc == KITH_ENOTFOUND)
        err_wrap(&e, "invalid MODEL");
    if (rc < 0) {
        reply_err(c, &e);
        return COMMAND_DONE;
    }
    const struct engine_model *m = &a->engine;
    if (!(m->tasks & ENGINE_EMBED)) {
        resp_errorf(c->out, "ERR invalid MODEL: '%s' reranks and makes no vectors", m->name);
        return COMMAND_DONE;
    }
    if (a->dim == 0)
        a->dim = m->dim;
    *ok = engine_model_allows_dim(m, a->dim);
    if (*ok)
        return COMMAND_DONE;
    engine_model_dims_text(m, allowed, sizeof allowed);
    resp_errorf(c->out, "ERR invalid DIM: model '%s' makes vectors of %s dimensions, not %u",
                m->name, allowed, a->dim);
    return COMMAND_DONE;
}

static bool is_new(struct client *c, const struct vreembed *a, struct vset *v)
{
    struct vset_model m = vset_model(v);
    if (strcmp(m.hash, a->engine.hash) != 0 || strcmp(m.pooling, a->engine.pooling) != 0 ||
        vset_params(v)->index.dim != a->dim)
        return true;
    resp_errorf(c->out,
                "ERR the set's vectors are of model '%s' (%s, pooling %s) and %u dimensions "
                "already: there is nothing to do",
                m.name, m.hash, m.pooling, a->dim);
    return false;
}

static enum command_result cancel(struct client *c, struct key *k)
{
    struct err e = {0};
    if (reembed_cancel(data_reembed(c), k, &e) == 0)
        resp_ok(c->out);
    else
        reply_err(c, &e);
    return COMMAND_DONE;
}

enum command_result command_vreembed(struct client *c)
{
    struct vreembed a;
    struct err e = {0};
    bool ok = true, cancels = c->argc == 3 && slice_is(c->argv[2], "CANCEL");
    if (!cancels && !parse(c, &a))
        return COMMAND_DONE;
    /* Looked at without an effect first: while the model is brought up the command waits. */
    struct key *k = keyspace_find(data_keyspace(c), c->db, c->argv[1], data_now_ms(c));
    if (k && k->type == OBJECT_VSET && !cancels) {
        if (!set_allows(c, k))
            return COMMAND_DONE;
        if (find_model(c, &a, &ok) == COMMAND_WAIT)
            return COMMAND_WAIT;
        if (!ok || !is_new(c, &a, k->vset))
            return COMMAND_DONE;
    }
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_VSET, &k))
        return COMMAND_DONE;
    if (!k)
        resp_error(c->out, "ERR no such key");
    else if (cancels)
        return cancel(c, k);
    else if (reembed_start(data_reembed(c), k, &a.engine, a.dim, a.truncate, &e) == 0)
        resp_ok(c->out);
    else
        reply_err(c, &e);
    return COMMAND_DONE;
}
