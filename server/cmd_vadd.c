/* Changing vector sets: VCREATE, VADD, VMADD, VREM, VSETATTR.
 *
 * All of a command is parsed and held against the set before its first effect, so that an error
 * changes nothing; an effect carries what came of it (the projected vector, the time at which
 * an element expires), never the question.
 *
 * A set made by VADD is held against every later VADD with Redis' defaults filled in: to a set
 * made with NOQUANT each VADD says NOQUANT. A set made by VCREATE knows what it wants, and only
 * what a VADD names is compared. */
#include <stdio.h>
#include <string.h>

#include "server/attributes.h"
#include "server/data.h"
#include "server/engine_link.h"
#include "server/server.h"
#include "server/vector_args.h"

enum { M_DEFAULT = 16, EF_BUILD_DEFAULT = 200 };

static bool parse_number(struct client *c, const char *option, struct slice a, int64_t low,
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

static bool parse_m(struct client *c, struct slice a, uint32_t *m)
{
    return parse_number(c, "M", a, INDEX_M_MIN, INDEX_M_MAX, m);
}

static bool parse_ef(struct client *c, struct slice a, uint32_t *ef)
{
    return parse_number(c, "EF", a, 1, INDEX_EF_MAX, ef);
}

/* --- what VADD and VMADD have in common --- */

struct add {
    uint32_t reduce; /* 0: not asked for */
    bool has_quant, has_m;
    enum index_quant quant;
    uint32_t m, ef;
    int64_t expire_ms; /* 0: never */
};

static const struct add add_defaults = {
    .quant = INDEX_INT8, .m = M_DEFAULT, .ef = EF_BUILD_DEFAULT};

enum parsed { PARSED, PARSED_NOT_MINE, PARSED_ERROR /* replied */ };

static bool parse_expire(struct client *c, int i, int64_t *expire_ms)
{
    int64_t v;
    if (!arg_int(c->argv[i + 1], &v)) {
        reply_not_integer(c);
        return false;
    }
    bool seconds = slice_is(c->argv[i], "EX");
    if (v <= 0 || (seconds && __builtin_mul_overflow(v, 1000, &v)) ||
        __builtin_add_overflow(v, data_now_ms(c), &v)) {
        resp_errorf(c->out, "ERR invalid expire time in '%s' command", c->command->name);
        return false;
    }
    if (*expire_ms != 0) {
        resp_error(c->out, "ERR an element is given one time: EX or PX, once");
        return false;
    }
    *expire_ms = v;
    return true;
}

static void set_quant(struct add *a, enum index_quant quant)
{
    a->has_quant = true;
    a->quant = quant;
}

/* The option at argv[*i], before `end`; moves *i past it. */
static enum parsed parse_option(struct client *c, int *i, int end, struct add *a)
{
    struct slice o = c->argv[*i];
    bool more = *i + 1 < end;
    bool ok = true;
    if (slice_is(o, "NOQUANT")) {
        set_quant(a, INDEX_F32);
    } else if (slice_is(o, "Q8")) {
        set_quant(a, INDEX_INT8);
    } else if (slice_is(o, "BIN")) {
        set_quant(a, INDEX_BIN);
    } else if (slice_is(o, "CAS")) {
        /* Every insert is searched for its neighbours in the background here. */
    } else if (slice_is(o, "EF") && more) {
        ok = parse_ef(c, c->argv[++*i], &a->ef);
    } else if (slice_is(o, "M") && more) {
        ok = a->has_m = parse_m(c, c->argv[++*i], &a->m);
    } else if ((slice_is(o, "EX") || slice_is(o, "PX")) && more) {
        ok = parse_expire(c, (*i)++, &a->expire_ms);
    } else {
        return PARSED_NOT_MINE;
    }
    ++*i;
    return ok ? PARSED : PARSED_ERROR;
}

static bool options_fit(struct client *c, const struct add *a, const struct vset_params *p)
{
    static const char *const words[] = {
        [INDEX_F32] = "NOQUANT", [INDEX_F16] = "F16", [INDEX_INT8] = "Q8", [INDEX_BIN] = "BIN"};
    bool quant_asked = a->has_quant || !p->declared, m_asked = a->has_m || !p->declared;
    if (quant_asked && a->quant != p->index.quant)
        resp_errorf(c->out,
                    "ERR asked quantization mismatch with existing vector set: asked %s, the "
                    "set has %s",
                    words[a->quant], words[p->index.quant]);
    else if (m_asked && a->m != p->index.m)
        resp_errorf(c->out,
                    "ERR asked M value mismatch with existing vector set: asked %u, the set "
                    "has %u",
                    a->m, p->index.m);
    else
        return true;
    return false;
}

static bool dim_mismatch(struct client *c, uint32_t got, const struct vset_params *p)
{
    if (p->projection_dim)
        resp_errorf(c->out,
                    "ERR Vector dimension mismatch - got %u but set has %u: it takes REDUCE %u "
                    "and vectors of %u",
                    got, p->index.dim, p->index.dim, p->projection_dim);
    else
        resp_errorf(c->out, "ERR Vector dimension mismatch - got %u but set has %u", got,
                    p->index.dim);
    return false;
}

/* Whether the vector may go into the set, in Redis' order of checks; projects it. A set made
 * with REDUCE wants REDUCE each time. */
static bool vector_fits(struct client *c, const struct add *a, struct vector_arg *vector,
                        struct vset *v)
{
    const struct vset_params *p = vset_params(v);
    bool projected = p->projection_dim != 0;
    if (!vector_arg_model_fits(c, vector, v))
        return false;
    if ((projected ? a->reduce : vector->dim) != p->index.dim)
        return dim_mismatch(c, vector->dim, p);
    if (!projected && a->reduce) {
        resp_error(c->out, "ERR cannot add projection to existing set without projection");
        return false;
    }
    if (projected && vector->dim != p->projection_dim) {
        resp_errorf(c->out,
                    "ERR Input dimension mismatch for projection - got %u but projection "
                    "expects %u",
                    vector->dim, p->projection_dim);
        return false;
    }
    return !projected || vector_arg_project(c, vector, p->index.dim);
}

/* The parameters of the set this makes, where there is none; projects the vector. */
static bool vector_founds(struct client *c, const struct add *a, struct vector_arg *vector,
                          struct vset_params *p)
{
    *p = (struct vset_params){.index = {.kind = INDEX_HNSW,
                                        .quant = a->quant,
                                        .metric = INDEX_COSINE,
                                        .m = a->m,
                                        .ef_construction = a->ef},
                              .projection_dim = a->reduce ? vector->dim : 0};
    if (a->reduce && !vector_arg_project(c, vector, a->reduce))
        return false;
    p->index.dim = vector->dim;
    return true;
}

/* An element whose time has come is removed before it is added anew, as a key would be: what it
 * had does not live on, and it counts as new. */
static bool remove_expired(struct client *c, struct vset *v, struct slice element,
                           bool *removed)
{
    uint32_t slot;
    struct err e = {0};
    *removed = false;
    if (vset_next_expiry(v) > data_now_ms(c) ||
        vset_find(v, element, data_now_ms(c), &slot, &e) != KITH_ENOTFOUND ||
        vset_find(v, element, 0, &slot, &e) != 0)
        return true;
    struct effect f = {.op = EFFECT_VREM, .key = c->argv[1], .value = element};
    *removed = data_do(c, &f);
    return *removed;
}

/* The set of argv[1], NULL when there is none; elements that are about to be added: every
 * `step`-th argument from `first`, n of them. */
static bool find_for_add(struct client *c, int first, int n, int step, struct vset **v)
{
    struct key *k;
    bool removed = false;
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_VSET, &k))
        return false;
    for (int i = 0; i < n && k; i++) {
        if (!remove_expired(c, k->vset, c->argv[first + i * step], &removed))
            return false;
        if (removed) /* perhaps the last one, and the key went with it */
            k = data_find_for_write(c, c->argv[1]);
    }
    *v = k ? k->vset : NULL;
    return true;
}

/* Whether the command waits until link workers have made room in the set's tail. */
static bool waits_for_room(struct client *c)
{
    struct key *k = keyspace_find(data_keyspace(c), c->db, c->argv[1], data_now_ms(c));
    return k && k->type == OBJECT_VSET && index_tail_full(vset_index(k->vset)) &&
           data_wait_for_room(c);
}

/* --- VADD --- */

struct vadd {
    struct add add;
    struct vector_arg vector;
    int element; /* the argument */
    const struct slice *attributes;
};

static bool bad_vadd_option(struct client *c, struct slice o)
{
    const char *why = "is none of CAS, NOQUANT, Q8, BIN, M, EF, EX, PX and SETATTR";
    if (slice_is(o, "TRUNCATE"))
        why = "goes with TEXT";
    else if (slice_is(o, "M") || slice_is(o, "EF") || slice_is(o, "EX") || slice_is(o, "PX") ||
             slice_is(o, "SETATTR"))
        why = "takes a value, and nothing follows it";
    resp_errorf(c->out, "ERR invalid option after element: '%.*s' %s", slice_shown(o), o.p,
                why);
    return false;
}

static bool parse_vadd(struct client *c, struct vadd *a)
{
    int i = 2;
    *a = (struct vadd){.add = add_defaults};
    if (!vector_arg_reduce(c, &i, &a->add.reduce) || !vector_arg_parse(c, i, &a->vector))
        return false;
    if (a->add.reduce > a->vector.dim) {
        resp_errorf(c->out,
                    "ERR invalid vector specification: REDUCE to %u dimensions, but the vector "
                    "has %u",
                    a->add.reduce, a->vector.dim);
        return false;
    }
    if (a->vector.next >= c->argc) {
        resp_error(c->out, "ERR wrong number of arguments for 'vadd' command");
        return false;
    }
    a->element = a->vector.next;
    for (i = a->element + 1; i < c->argc;) {
        enum parsed parsed = parse_option(c, &i, c->argc, &a->add);
        if (parsed == PARSED_ERROR)
            return false;
        if (parsed == PARSED)
            continue;
        if (slice_is(c->argv[i], "SETATTR") && i + 1 < c->argc) {
            a->attributes = &c->argv[i + 1];
            i += 2;
        } else if (slice_is(c->argv[i], "TRUNCATE") && a->vector.text) {
            i++; /* The engine was told when the command was read. */
        } else {
            return bad_vadd_option(c, c->argv[i]);
        }
    }
    return true;
}

static enum command_result run_vadd(struct client *c)
{
    struct vadd a;
    struct vset *v;
    struct vset_params params;
    if (waits_for_room(c))
        return COMMAND_WAIT;
    if (!parse_vadd(c, &a) || !find_for_add(c, a.element, 1, 1, &v))
        return COMMAND_DONE;
    if (v ? !options_fit(c, &a.add, vset_params(v)) || !vector_fits(c, &a.add, &a.vector, v)
          : !vector_founds(c, &a.add, &a.vector, &params))
        return COMMAND_DONE;
    struct effect f = {.op = EFFECT_VADD,
                       .key = c->argv[1],
                       .value = c->argv[a.element],
                       .expire_ms = a.add.expire_ms,
                       .params = v ? NULL : &params,
                       .dim = a.vector.dim,
                       .vector = a.vector.values,
                       .model = a.vector.text ? &a.vector.model : NULL,
                       .text = a.vector.text,
                       .attributes = a.attributes};
    if (data_do(c, &f))
        resp_bool(c->out, f.added);
    return COMMAND_DONE;
}

/* TRUNCATE counts where VADD reads options: after the element, and not as an option's value. */
static void vadd_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    int at = argc > 5 && slice_is(argv[2], "REDUCE") ? 4 : 2;
    if (argc < at + 3 || !slice_is(argv[at], "TEXT"))
        return;
    out->first = &argv[at + 1];
    out->n = 1;
    static const char *const with_value[] = {"EF", "M", "EX", "PX", "SETATTR"};
    for (int i = at + 3; i < argc; i++) {
        out->truncate |= slice_is(argv[i], "TRUNCATE");
        for (size_t k = 0; k < sizeof with_value / sizeof *with_value; k++)
            if (slice_is(argv[i], with_value[k])) {
                i++;
                break;
            }
    }
}

/* --- VMADD --- */

/* VMADD key [REDUCE dim] [options] FP32 n [ATTRS] { element blob [json] }
 *                                  VALUES n dim [ATTRS] { element v1 .. vdim [json] }
 * The number of arguments tells the word ATTRS from an element of that name: n records with
 * attributes and the word are never as many as n without. */
struct vmadd {
    struct add add;
    bool fp32, attributes;
    int n, step, first; /* records, arguments of each, the first one's element */
    int64_t dim;        /* of VALUES */
    struct vector_arg *vectors;
};

static bool check_records(struct client *c, struct vmadd *a, int at)
{
    int64_t have = c->argc - at, each = a->fp32 ? 2 : 1 + a->dim;
    a->attributes = have > 0 && slice_is(c->argv[at], "ATTRS") && have - 1 == a->n * (each + 1);
    if (!a->attributes && have != a->n * each) {
        resp_errorf(c->out,
                    "ERR VMADD announces %d elements, so %lld arguments must follow, or ATTRS "
                    "and %lld; %lld do",
                    a->n, (long long)(a->n * each), (long long)(a->n * (each + 1)),
                    (long long)have);
        return false;
    }
    a->first = at + (a->attributes ? 1 : 0);
    a->step = (int)each + (a->attributes ? 1 : 0);
    return true;
}

/* "FP32 n" or "VALUES n dim" at argv[at]. */
static bool parse_form(struct client *c, struct vmadd *a, int at)
{
    int64_t n = 0;
    a->fp32 = slice_is(c->argv[at], "FP32");
    int after = at + (a->fp32 ? 2 : 3);
    if (after > c->argc || !arg_int(c->argv[at + 1], &n) || n < 1 || n > c->argc) {
        resp_errorf(c->out, "ERR VMADD takes the number of elements after %s, 1 or more",
                    a->fp32 ? "FP32" : "VALUES");
        return false;
    }
    if (!a->fp32 &&
        (!arg_int(c->argv[at + 2], &a->dim) || a->dim < 1 || a->dim > INDEX_DIM_MAX)) {
        resp_errorf(c->out,
                    "ERR invalid vector specification: VMADD takes the number of dimensions "
                    "after VALUES n, 1 to %d, not '%.*s'",
                    INDEX_DIM_MAX, slice_shown(c->argv[at + 2]), c->argv[at + 2].p);
        return false;
    }
    a->n = (int)n;
    return check_records(c, a, after);
}

static bool check_element(struct client *c, struct slice element,
                          const struct slice *attributes, struct buf *scratch)
{
    struct err e = {0};
    if (element.n > VSET_NAME_MAX) {
        resp_errorf(c->out,
                    "ERR element '%.*s...' has a name of %zu bytes, at most %d are allowed",
                    slice_shown(element), element.p, element.n, VSET_NAME_MAX);
        return false;
    }
    buf_clear(scratch);
    if (!attributes || attributes->n == 0 || attributes_encode(*attributes, scratch, &e) == 0)
        return true;
    err_wrap(&e, "element '%.*s'", slice_shown(element), element.p);
    reply_err(c, &e);
    return false;
}

static bool parse_records(struct client *c, struct vmadd *a)
{
    a->vectors = arena_alloc(c->arena, (size_t)a->n * sizeof *a->vectors);
    if (!a->vectors) {
        resp_error(c->out, "OOM out of memory for the vectors");
        return false;
    }
    struct buf scratch;
    buf_init(&scratch);
    bool ok = true;
    for (int i = 0; i < a->n && ok; i++) {
        int at = a->first + i * a->step;
        struct slice element = c->argv[at];
        struct vector_arg *v = &a->vectors[i];
        ok = (a->fp32 ? vector_arg_parse_blob(c, at + 1, element, v)
                      : vector_arg_parse_numbers(c, at + 1, a->dim, element, v)) &&
             check_element(c, element, a->attributes ? &c->argv[at + a->step - 1] : NULL,
                           &scratch);
        if (ok && a->add.reduce > v->dim) {
            resp_errorf(c->out,
                        "ERR invalid vector specification: element '%.*s': REDUCE to %u "
                        "dimensions, but the vector has %u",
                        slice_shown(element), element.p, a->add.reduce, v->dim);
            ok = false;
        }
    }
    buf_deinit(&scratch);
    return ok;
}

static bool parse_vmadd(struct client *c, struct vmadd *a)
{
    int i = 2;
    *a = (struct vmadd){.add = add_defaults};
    if (!vector_arg_reduce(c, &i, &a->add.reduce))
        return false;
    while (i < c->argc && !slice_is(c->argv[i], "FP32") && !slice_is(c->argv[i], "VALUES")) {
        enum parsed parsed = parse_option(c, &i, c->argc, &a->add);
        if (parsed == PARSED_ERROR)
            return false;
        if (parsed == PARSED_NOT_MINE) {
            resp_errorf(c->out, "ERR invalid option before FP32 or VALUES: '%.*s'",
                        slice_shown(c->argv[i]), c->argv[i].p);
            return false;
        }
    }
    if (i >= c->argc) {
        resp_error(c->out, "ERR VMADD takes FP32 or VALUES and the elements after its options");
        return false;
    }
    return parse_form(c, a, i) && parse_records(c, a);
}

/* All vectors against the set, or against the set that the first of them makes. */
static bool records_fit(struct client *c, struct vmadd *a, struct vset *v,
                        struct vset_params *params)
{
    uint32_t given = a->vectors[0].dim;
    for (int i = 0; i < a->n; i++) {
        if (a->vectors[i].dim == given)
            continue;
        struct slice element = c->argv[a->first + i * a->step];
        resp_errorf(c->out,
                    "ERR Vector dimension mismatch - got %u but set has %u: element '%.*s'",
                    a->vectors[i].dim, given, slice_shown(element), element.p);
        return false;
    }
    if (v ? !options_fit(c, &a->add, vset_params(v)) || !vector_fits(c, &a->add, a->vectors, v)
          : !vector_founds(c, &a->add, a->vectors, params))
        return false;
    for (int i = 1; i < a->n; i++)
        if (a->add.reduce && !vector_arg_project(c, &a->vectors[i], a->add.reduce))
            return false;
    return true;
}

/* What can still fail is memory, or damage to the set; then what went before it stays, and the
 * error says how much that is. */
static void add_records(struct client *c, const struct vmadd *a,
                        const struct vset_params *params)
{
    int64_t added = 0;
    for (int i = 0; i < a->n; i++) {
        int at = a->first + i * a->step;
        struct effect f = {.op = EFFECT_VADD,
                           .db = c->db,
                           .key = c->argv[1],
                           .value = c->argv[at],
                           .expire_ms = a->add.expire_ms,
                           .params = params,
                           .dim = a->vectors[i].dim,
                           .vector = a->vectors[i].values,
                           .attributes = a->attributes ? &c->argv[at + a->step - 1] : NULL};
        struct err e = {0};
        if (effect_do(c->server->shard, &f, &e) != 0) {
            err_wrap(&e, "after %d of %d elements", i, a->n);
            reply_err(c, &e);
            return;
        }
        added += f.added ? 1 : 0;
    }
    resp_int(c->out, added);
}

static enum command_result run_vmadd(struct client *c)
{
    struct vmadd a;
    struct vset *v;
    struct vset_params params;
    if (waits_for_room(c))
        return COMMAND_WAIT;
    if (parse_vmadd(c, &a) && find_for_add(c, a.first, a.n, a.step, &v) &&
        records_fit(c, &a, v, &params))
        add_records(c, &a, v ? NULL : &params);
    return COMMAND_DONE;
}

/* --- VCREATE --- */

struct vcreate {
    struct vset_params params;
    struct vset_model model; /* name "": not asked for */
    uint32_t model_dim;
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

/* The engine's model, which alone can make vectors for the set. */
static bool parse_model(struct client *c, struct slice name, struct vcreate *a)
{
    struct engine_model m = {0};
    if (!c->server->engine) {
        resp_error(c->out, "ENGINE no embedding model is loaded: start kith-server with "
                           "--embedder FILE.gguf");
        return false;
    }
    engine_link_model(c->server->engine, &m);
    if (m.dim == 0) {
        resp_error(c->out, "ENGINE the embedding model is still being loaded");
        return false;
    }
    if (!slice_equal(name, slice_of(m.name))) {
        resp_errorf(c->out, "ERR invalid MODEL: the engine runs '%s', not '%.*s'", m.name,
                    slice_shown(name), name.p);
        return false;
    }
    memcpy(a->model.name, m.name, sizeof a->model.name);
    memcpy(a->model.hash, m.hash, sizeof a->model.hash);
    memcpy(a->model.pooling, m.pooling, sizeof a->model.pooling);
    a->model_dim = m.dim;
    return true;
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
        ok = parse_number(c, "DIM", value, 1, INDEX_DIM_MAX, &p->dim);
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
        ok = a->links_named = parse_m(c, value, &p->m);
    } else if (slice_is(o, "EF")) {
        ok = a->links_named = parse_ef(c, value, &p->ef_construction);
    } else if (slice_is(o, "MODEL")) {
        ok = parse_model(c, value, a);
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
                                               .m = M_DEFAULT,
                                               .ef_construction = EF_BUILD_DEFAULT},
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
    if (a->model_dim && *dim && *dim != a->model_dim) {
        resp_errorf(c->out, "ERR invalid DIM: model '%s' makes %u dimensions, not %u",
                    a->model.name, a->model_dim, *dim);
        return false;
    }
    if (a->model_dim)
        *dim = a->model_dim;
    const char *wrong = *dim == 0 ? "ERR VCREATE takes DIM, or the engine's MODEL" : NULL;
    if (a->params.index.kind == INDEX_FLAT && a->links_named)
        wrong = "ERR M and EF belong to INDEX HNSW: INDEX FLAT has no graph";
    if (wrong)
        resp_error(c->out, wrong);
    return !wrong;
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
    else if (a->model_dim &&
             (strcmp(m.hash, a->model.hash) != 0 || strcmp(m.pooling, a->model.pooling) != 0))
        resp_errorf(c->out,
                    "ERR the key exists already: a set of model '%s' (%s, pooling %s), the "
                    "engine runs '%s' (%s, pooling %s)",
                    m.name, m.hash, m.pooling, a->model.name, a->model.hash, a->model.pooling);
    else
        resp_ok(c->out);
}

static enum command_result run_vcreate(struct client *c)
{
    struct vcreate a;
    struct key *k;
    if (!parse_vcreate(c, &a) || !data_find_type_for_write(c, c->argv[1], OBJECT_VSET, &k))
        return COMMAND_DONE;
    if (k) {
        reply_existing(c, &a, k->vset);
        return COMMAND_DONE;
    }
    struct effect f = {.op = EFFECT_VCREATE,
                       .key = c->argv[1],
                       .params = &a.params,
                       .model = a.model_dim ? &a.model : NULL};
    if (data_do(c, &f))
        resp_ok(c->out);
    return COMMAND_DONE;
}

/* --- VREM, VSETATTR --- */

/* Makes the effect on the element of argv[2]; replies whether there was one. */
static enum command_result change_element(struct client *c, struct effect *f)
{
    struct key *k;
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_VSET, &k))
        return COMMAND_DONE;
    uint32_t slot;
    struct err e = {0};
    int rc = k ? vset_find(k->vset, c->argv[2], data_now_ms(c), &slot, &e) : KITH_ENOTFOUND;
    f->key = c->argv[1];
    f->value = c->argv[2];
    if (rc == KITH_ENOTFOUND)
        resp_bool(c->out, false);
    else if (rc != 0)
        reply_err(c, &e);
    else if (data_do(c, f))
        resp_bool(c->out, true);
    return COMMAND_DONE;
}

static enum command_result run_vrem(struct client *c)
{
    struct effect f = {.op = EFFECT_VREM};
    return change_element(c, &f);
}

static enum command_result run_vsetattr(struct client *c)
{
    struct effect f = {.op = EFFECT_VSETATTR, .attributes = &c->argv[3]};
    return change_element(c, &f);
}

const struct command vset_write_commands[] = {
    {"vcreate", -4, CMD_WRITE | CMD_DENYOOM, 1, 1, 1, run_vcreate, NULL, NULL, "vector_set",
     "kith 0.1.0", "O(1)",
     "Declares an empty vector set: its dimension (or the model whose texts it will hold), "
     "metric, index, quantization, and whether full vectors are kept beside the codes. It "
     "stays "
     "when its last element goes, and a VADD to it need not repeat QUANT and M. To declare a "
     "set again exactly as it is does nothing.",
     "key [DIM dim] [METRIC <COSINE | L2 | IP>] [INDEX <HNSW | FLAT>] "
     "[QUANT <F32 | F16 | Q8 | BIN>] [KEEP <NONE | F32 | F16>] [M numlinks] "
     "[EF build-exploration-factor] [MODEL model]"},
    {"vadd", -5, CMD_WRITE | CMD_DENYOOM, 1, 1, 1, run_vadd, vadd_texts, NULL, "vector_set",
     "8.0.0", "O(log N) with N the elements of the set, in the background",
     "Adds an element to a vector set, or replaces its vector. With TEXT the engine makes the "
     "vector and the text is kept with the element; with EX or PX the element goes when its "
     "time has come.",
     "key [REDUCE dim] <FP32 blob | VALUES num vector [vector ...] | TEXT text> element "
     "[TRUNCATE] [CAS] [NOQUANT | Q8 | BIN] [EF build-exploration-factor] [SETATTR attributes] "
     "[M numlinks] [EX seconds | PX milliseconds]"},
    {"vmadd", -6, CMD_WRITE | CMD_DENYOOM | CMD_MANY_EFFECTS, 1, 1, 1, run_vmadd, NULL, NULL,
     "vector_set", "kith 0.1.0",
     "O(M log N) with M the elements added and N the elements of the set, in the background",
     "Adds many elements to a vector set at once, all or none of them, and returns how many "
     "are "
     "new. With ATTRS each element's attributes follow its vector.",
     "key [REDUCE dim] [CAS] [NOQUANT | Q8 | BIN] [EF build-exploration-factor] [M numlinks] "
     "[EX seconds | PX milliseconds] <FP32 num [ATTRS] element blob [attributes] "
     "[element blob [attributes] ...] | VALUES num dim [ATTRS] element vector [vector ...] "
     "[attributes] [element vector [vector ...] [attributes] ...]>"},
    {"vrem", 3, CMD_WRITE, 1, 1, 1, run_vrem, NULL, NULL, "vector_set", "8.0.0",
     "O(log N) with N the elements of the set, in the background",
     "Removes an element from a vector set; the last one takes the key with it, unless VCREATE "
     "made it.",
     "key element"},
    {"vsetattr", 4, CMD_WRITE | CMD_FAST, 1, 1, 1, run_vsetattr, NULL, NULL, "vector_set",
     "8.0.0", "O(1)",
     "Gives an element attributes, a JSON object, in place of those it has; an empty string "
     "takes them away.",
     "key element attributes"},
    {0},
};
