/* VCREATE: a vector set declared before its first element. */
#include <stdio.h>
#include <string.h>

#include "server/commands_shared.h"
#include "server/data.h"
#include "server/models.h"
#include "server/server.h"

bool arg_in_range(struct client *c, const char *option, struct slice a, int64_t low,
                  int64_t high, uint32_t *out)
{
    int64_t v;
    if (arg_int(a, &v) && v >= low && v <= high) {
        *out = (uint32_t)v;
        return true;
    }
    resp_errorf(c->out, "ERR invalid %s: %lld to %lld are allowed, not '%.*s'", option,
                (long long)low, (long long)high, slice_shown(a), a.p);
    return false;
}

bool arg_vset_m(struct client *c, struct slice a, uint32_t *m)
{
    return arg_in_range(c, "M", a, INDEX_M_MIN, INDEX_M_MAX, m);
}

bool arg_vset_ef(struct client *c, struct slice a, uint32_t *ef)
{
    return arg_in_range(c, "EF", a, 1, INDEX_EF_MAX, ef);
}

struct vcreate {
    struct vset_params params;
    struct vset_model model;    /* name "": not asked for */
    struct engine_model engine; /* dim 0: not asked for */
    struct slice model_name;
    bool links_named; /* M or EF */
};

/* What VCREATE can be told in words, and what it means. */
struct word {
    const char *text;
    int value;
};
static const struct word metric_words[] = {
    {"COSINE", INDEX_COSINE}, {"L2", INDEX_L2}, {"IP", INDEX_IP}, {0}};
static const struct word kind_words[] = {{"HNSW", INDEX_HNSW}, {"FLAT", INDEX_FLAT}, {0}};
static const struct word quant_words[] = {
    {"F32", INDEX_F32}, {"F16", INDEX_F16}, {"Q8", INDEX_INT8}, {"BIN", INDEX_BIN}, {0}};
static const struct word keep_words[] = {
    {"NONE", VSET_KEEP_NONE}, {"F32", VSET_KEEP_F32}, {"F16", VSET_KEEP_F16}, {0}};

static const char *word_of(const struct word *words, int value)
{
    while (words->text && words->value != value)
        words++;
    return words->text ? words->text : "?";
}

/* Argument i as one of the words; the option's name stands before it. */
static bool parse_word(struct client *c, int i, const struct word *words, int *value)
{
    struct slice a = c->argv[i], option = c->argv[i - 1];
    for (const struct word *w = words; w->text; w++)
        if (slice_is(a, w->text)) {
            *value = w->value;
            return true;
        }
    char allowed[64] = "";
    for (const struct word *w = words; w->text; w++) {
        size_t n = strlen(allowed);
        snprintf(allowed + n, sizeof allowed - n, "%s%s", n ? " or " : "", w->text);
    }
    resp_errorf(c->out, "ERR invalid %.*s: %s, not '%.*s'", slice_shown(option), option.p,
                allowed, slice_shown(a), a.p);
    return false;
}

/* The model that is to make the set's vectors. It is brought up where it is away: what it is
 * may have changed since it was. COMMAND_DONE with *ok false: the error was replied. */
static enum command_result find_model(struct client *c, struct vcreate *a, bool *ok)
{
    struct err e = {0};
    waitlist_add(models_waiters(c->server->models), client_ref(c));
    int rc = models_ready(c->server->models, a->model_name, &a->engine, &e);
    *ok = rc > 0;
    if (rc == 0)
        return COMMAND_WAIT;
    if (rc == KITH_ENOTFOUND)
        err_wrap(&e, "invalid MODEL");
    if (rc > 0 && !(a->engine.tasks & ENGINE_EMBED)) {
        *ok = false;
        err_set(&e, KITH_EINVAL, "invalid MODEL: '%s' reranks and makes no vectors",
                a->engine.name);
    }
    if (!*ok) {
        reply_err(c, &e);
        return COMMAND_DONE;
    }
    memcpy(a->model.name, a->engine.name, sizeof a->model.name);
    memcpy(a->model.hash, a->engine.hash, sizeof a->model.hash);
    memcpy(a->model.pooling, a->engine.pooling, sizeof a->model.pooling);
    return COMMAND_DONE;
}

#define VCREATE_OPTIONS                                                                        \
    "DIM, METRIC, INDEX, QUANT, KEEP, M, EF and MODEL are allowed, each with a value"

/* The option at argv[i] and its value after it. */
static bool parse_vcreate_option(struct client *c, int i, struct vcreate *a)
{
    struct index_params *p = &a->params.index;
    struct slice o = c->argv[i], value = c->argv[i + 1];
    int word = 0;
    bool ok;
    if (slice_is(o, "DIM")) {
        ok = arg_in_range(c, "DIM", value, 1, INDEX_DIM_MAX, &p->dim);
    } else if (slice_is(o, "METRIC")) {
        ok = parse_word(c, i + 1, metric_words, &word);
        p->metric = (enum index_metric)word;
    } else if (slice_is(o, "INDEX")) {
        ok = parse_word(c, i + 1, kind_words, &word);
        p->kind = (enum index_kind)word;
    } else if (slice_is(o, "QUANT")) {
        ok = parse_word(c, i + 1, quant_words, &word);
        p->quant = (enum index_quant)word;
    } else if (slice_is(o, "KEEP")) {
        ok = parse_word(c, i + 1, keep_words, &word);
        a->params.keep = (enum vset_keep)word;
    } else if (slice_is(o, "M")) {
        ok = a->links_named = arg_vset_m(c, value, &p->m);
    } else if (slice_is(o, "EF")) {
        ok = a->links_named = arg_vset_ef(c, value, &p->ef_construction);
    } else if (slice_is(o, "MODEL")) {
        a->model_name = value;
        ok = value.n > 0 || reply_invalid(c, "MODEL", i + 1, "the name of a model");
    } else {
        resp_errorf(c->out, "ERR invalid VCREATE option '%.*s': " VCREATE_OPTIONS,
                    slice_shown(o), o.p);
        ok = false;
    }
    return ok;
}

static bool parse_vcreate(struct client *c, struct vcreate *a)
{
    *a = (struct vcreate){.params = {.index = {.kind = INDEX_HNSW,
                                               .quant = INDEX_INT8,
                                               .metric = INDEX_COSINE,
                                               .m = VSET_M_DEFAULT,
                                               .ef_construction = VSET_EF_DEFAULT},
                                     .declared = true}};
    uint32_t *dim = &a->params.index.dim;
    for (int i = 2; i < c->argc; i += 2) {
        if (i + 1 >= c->argc) {
            resp_errorf(c->out, "ERR VCREATE option '%.*s' has no value: " VCREATE_OPTIONS,
                        slice_shown(c->argv[i]), c->argv[i].p);
            return false;
        }
        if (!parse_vcreate_option(c, i, a))
            return false;
    }
    const char *wrong =
        *dim == 0 && a->model_name.n == 0 ? "ERR VCREATE takes DIM, or a MODEL" : NULL;
    if (a->params.index.kind == INDEX_FLAT && a->links_named)
        wrong = "ERR M and EF belong to INDEX HNSW: INDEX FLAT has no graph";
    if (wrong)
        resp_error(c->out, wrong);
    return !wrong;
}

/* The set's dimension: the model's, or one its vectors may be cut to. */
static bool settle_dim(struct client *c, struct vcreate *a)
{
    char allowed[160];
    uint32_t *dim = &a->params.index.dim;
    if (!a->engine.dim)
        return true;
    if (*dim == 0)
        *dim = a->engine.dim;
    if (engine_model_allows_dim(&a->engine, *dim))
        return true;
    engine_model_dims_text(&a->engine, allowed, sizeof allowed);
    resp_errorf(c->out, "ERR invalid DIM: model '%s' makes vectors of %s dimensions, not %u",
                a->engine.name, allowed, *dim);
    return false;
}

static bool same_params(const struct vset_params *a, const struct vset_params *b)
{
    const struct index_params *x = &a->index, *y = &b->index;
    return x->kind == y->kind && x->quant == y->quant && x->metric == y->metric &&
           x->dim == y->dim && x->m == y->m && x->ef_construction == y->ef_construction &&
           a->projection_dim == b->projection_dim && a->keep == b->keep &&
           a->declared == b->declared;
}

/* A start script may declare the same set again and again; anything else is a surprise. */
static void reply_existing(struct client *c, const struct vcreate *a, struct vset *v)
{
    const struct vset_params *p = vset_params(v);
    const struct index_params *x = &p->index;
    struct vset_model m = vset_model(v);
    if (!same_params(&a->params, p))
        resp_errorf(c->out,
                    "ERR the key exists already: a set made by %s, DIM %u METRIC %s INDEX %s "
                    "QUANT %s KEEP %s M %u EF %u",
                    p->declared ? "VCREATE" : "VADD", x->dim, word_of(metric_words, x->metric),
                    word_of(kind_words, x->kind), word_of(quant_words, x->quant),
                    word_of(keep_words, p->keep), x->m, x->ef_construction);
    else if (a->engine.dim &&
             (strcmp(m.hash, a->model.hash) != 0 || strcmp(m.pooling, a->model.pooling) != 0))
        resp_errorf(c->out,
                    "ERR the key exists already: a set of model '%s' (%s, pooling %s), not "
                    "'%s' (%s, pooling %s)",
                    m.name, m.hash, m.pooling, a->model.name, a->model.hash, a->model.pooling);
    else
        resp_ok(c->out);
}

enum command_result command_vcreate(struct client *c)
{
    struct vcreate a;
    struct key *k;
    bool ok = parse_vcreate(c, &a);
    if (ok && a.model_name.n > 0 && find_model(c, &a, &ok) == COMMAND_WAIT)
        return COMMAND_WAIT;
    if (!ok || !settle_dim(c, &a) || !data_find_type_for_write(c, c->argv[1], OBJECT_VSET, &k))
        return COMMAND_DONE;
    if (k) {
        reply_existing(c, &a, k->vset);
        return COMMAND_DONE;
    }
    struct effect f = {.op = EFFECT_VCREATE,
                       .key = c->argv[1],
                       .params = &a.params,
                       .model = a.engine.dim ? &a.model : NULL};
    if (data_do(c, &f))
        resp_ok(c->out);
    return COMMAND_DONE;
}
