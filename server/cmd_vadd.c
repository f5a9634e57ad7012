/* Changing vector sets: VADD, VMADD, VREM, VSETATTR; VCREATE is in cmd_vcreate.c.
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
#include "server/commands_shared.h"
#include "server/data.h"
#include "server/server.h"
#include "server/vector_args.h"

/* --- what VADD and VMADD have in common --- */

struct add {
    uint32_t reduce; /* 0: not asked for */
    bool has_quant, has_m;
    enum index_quant quant;
    uint32_t m, ef;
    int64_t expire_ms; /* 0: never */
};

static const struct add add_defaults = {
    .quant = INDEX_INT8, .m = VSET_M_DEFAULT, .ef = VSET_EF_DEFAULT};

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
        ok = arg_vset_ef(c, c->argv[++*i], &a->ef);
    } else if (slice_is(o, "M") && more) {
        ok = a->has_m = arg_vset_m(c, c->argv[++*i], &a->m);
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
    if (!vector_arg_model_fits(c, vector, v) || !vector_arg_cut_to_set(c, vector, v))
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

/* Whether the command can run now: there is room in the set's tail, its texts were embedded by
 * the set's model, and it is not about to get another. */
static enum command_result begin(struct client *c)
{
    if (data_wait_for_reembed(c))
        return COMMAND_WAIT;
    struct key *k = keyspace_find(data_keyspace(c), c->db, c->argv[1], data_now_ms(c));
    struct vset *v = k && k->type == OBJECT_VSET ? k->vset : NULL;
    if (vector_arg_texts_again(c, v))
        return COMMAND_TEXTS;
    return v && index_tail_full(vset_index(v)) && data_wait_for_room(c) ? COMMAND_WAIT
                                                                        : COMMAND_DONE;
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
    if (slice_is(o, "TRUNCATE") || slice_is(o, "MODEL"))
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
        } else if (slice_is(c->argv[i], "MODEL") && a->vector.text && i + 1 < c->argc) {
            i += 2; /* likewise */
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
    enum command_result result = begin(c);
    if (result != COMMAND_DONE)
        return result;
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

/* TRUNCATE and MODEL count where VADD reads options: after the element, and not as an option's
 * value. */
static void vadd_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    int at = argc > 5 && slice_is(argv[2], "REDUCE") ? 4 : 2;
    if (argc < at + 3 || !slice_is(argv[at], "TEXT"))
        return;
    static const char *const with_value[] = {"EF", "M", "EX", "PX", "SETATTR", NULL};
    *out = (struct command_texts){
        .first = &argv[at + 1], .n = 1, .role = ENGINE_ROLE_DOCUMENT, .key = 1};
    vector_arg_text_options(argv, at + 3, argc, with_value, out);
}

/* --- VMADD --- */

/* VMADD key [REDUCE dim] [options] FP32 n [ATTRS] { element blob [json] }
 *                                  VALUES n dim [ATTRS] { element v1 .. vdim [json] }
 *                                  TEXT n [ATTRS] { element text [json] }
 * The number of arguments tells the word ATTRS from an element of that name: n records with
 * attributes and the word are never as many as n without. */
enum vmadd_form { FORM_FP32, FORM_VALUES, FORM_TEXT };
static const char *const form_words[] = {"FP32", "VALUES", "TEXT"};

struct vmadd {
    struct add add;
    enum vmadd_form form;
    bool attributes, truncate, model;
    int n, step, first; /* records, arguments of each, the first one's element */
    int64_t dim;        /* of VALUES */
    struct vector_arg *vectors;
};

static bool is_form(struct slice word, enum vmadd_form *form)
{
    for (int i = FORM_FP32; i <= FORM_TEXT; i++)
        if (slice_is(word, form_words[i])) {
            *form = (enum vmadd_form)i;
            return true;
        }
    return false;
}

/* Where n records of `each` arguments stand that begin, or the word before them does, at
 * argv[at]. False: neither way do the arguments come out even. */
static bool place_records(const struct slice *argv, int argc, int at, int64_t each,
                          struct vmadd *a)
{
    int64_t have = argc - at;
    a->attributes = have > 0 && slice_is(argv[at], "ATTRS") && have - 1 == a->n * (each + 1);
    a->first = at + (a->attributes ? 1 : 0);
    a->step = (int)each + (a->attributes ? 1 : 0);
    return a->attributes || have == a->n * each;
}

static bool check_records(struct client *c, struct vmadd *a, int at)
{
    int64_t have = c->argc - at, each = a->form == FORM_VALUES ? 1 + a->dim : 2;
    if (place_records(c->argv, c->argc, at, each, a))
        return true;
    resp_errorf(c->out,
                "ERR VMADD announces %d elements, so %lld arguments must follow, or ATTRS "
                "and %lld; %lld do",
                a->n, (long long)(a->n * each), (long long)(a->n * (each + 1)),
                (long long)have);
    return false;
}

/* "FP32 n", "VALUES n dim" or "TEXT n" at argv[at]. */
static bool parse_form(struct client *c, struct vmadd *a, int at)
{
    int64_t n = 0;
    bool values = a->form == FORM_VALUES;
    int after = at + (values ? 3 : 2);
    if (after > c->argc || !arg_int(c->argv[at + 1], &n) || n < 1 || n > c->argc) {
        resp_errorf(c->out, "ERR VMADD takes the number of elements after %s, 1 or more",
                    form_words[a->form]);
        return false;
    }
    if (values &&
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

/* The engine numbers the texts of a request from 1; whose it is says the element's name. */
static bool embedding_fails(struct client *c, const struct vmadd *a)
{
    const struct embedding *m = c->embedding;
    if (m && m->code == 0 && m->n == (uint32_t)a->n)
        return false;
    const char *message = m && m->message ? m->message : "ENGINE the texts were not embedded";
    int text = 0;
    if (sscanf(message, "ERR text %d ", &text) == 1 && text >= 1 && text <= a->n) {
        struct slice element = c->argv[a->first + (text - 1) * a->step];
        resp_errorf(c->out, "ERR element '%.*s': %s", slice_shown(element), element.p,
                    message + strlen("ERR "));
    } else {
        resp_error(c->out, message);
    }
    return true;
}

static bool parse_vector(struct client *c, const struct vmadd *a, int i)
{
    int at = a->first + i * a->step;
    struct slice element = c->argv[at];
    struct vector_arg *v = &a->vectors[i];
    if (a->form == FORM_TEXT)
        return vector_arg_take_text(c, at + 1, (uint32_t)i, element, v);
    if (a->form == FORM_FP32)
        return vector_arg_parse_blob(c, at + 1, element, v);
    return vector_arg_parse_numbers(c, at + 1, a->dim, element, v);
}

static bool parse_records(struct client *c, struct vmadd *a)
{
    if (a->form == FORM_TEXT && embedding_fails(c, a))
        return false;
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
        ok = parse_vector(c, a, i) &&
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
    while (i < c->argc && !is_form(c->argv[i], &a->form)) {
        if (slice_is(c->argv[i], "TRUNCATE")) {
            a->truncate = true;
            i++;
            continue;
        }
        if (slice_is(c->argv[i], "MODEL") && i + 1 < c->argc) {
            a->model = true;
            i += 2;
            continue;
        }
        enum parsed parsed = parse_option(c, &i, c->argc, &a->add);
        if (parsed == PARSED_ERROR)
            return false;
        if (parsed == PARSED_NOT_MINE) {
            resp_errorf(c->out, "ERR invalid option before FP32, VALUES or TEXT: '%.*s'",
                        slice_shown(c->argv[i]), c->argv[i].p);
            return false;
        }
    }
    if (i >= c->argc) {
        resp_error(c->out,
                   "ERR VMADD takes FP32, VALUES or TEXT and the elements after its options");
        return false;
    }
    if ((a->truncate || a->model) && a->form != FORM_TEXT) {
        resp_errorf(c->out, "ERR invalid option before %s: %s goes with TEXT",
                    form_words[a->form], a->truncate ? "TRUNCATE" : "MODEL");
        return false;
    }
    return parse_form(c, a, i) && parse_records(c, a);
}

/* Where VMADD reads them: what cannot be read here is refused by parse_vmadd, unembedded. */
static void vmadd_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    static const char *const with_value[] = {"EF", "M", "EX", "PX", NULL};
    struct vmadd a = {0};
    int64_t n;
    int from = argc > 3 && slice_is(argv[2], "REDUCE") ? 4 : 2, i = from;
    for (; i < argc && !is_form(argv[i], &a.form); i++)
        if (slice_is(argv[i], "EF") || slice_is(argv[i], "M") || slice_is(argv[i], "EX") ||
            slice_is(argv[i], "PX") || slice_is(argv[i], "MODEL"))
            i++;
    if (i + 2 >= argc || a.form != FORM_TEXT || !arg_int(argv[i + 1], &n) || n < 1 || n > argc)
        return;
    a.n = (int)n;
    if (!place_records(argv, argc, i + 2, 2, &a))
        return;
    *out = (struct command_texts){.first = &argv[a.first + 1],
                                  .n = (uint32_t)a.n,
                                  .step = (uint32_t)a.step,
                                  .role = ENGINE_ROLE_DOCUMENT,
                                  .key = 1};
    vector_arg_text_options(argv, from, i, with_value, out);
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
        if (a->add.reduce ? !vector_arg_project(c, &a->vectors[i], a->add.reduce)
                          : v && !vector_arg_cut_to_set(c, &a->vectors[i], v))
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
                           .model = a->vectors[i].text ? &a->vectors[i].model : NULL,
                           .text = a->vectors[i].text,
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
    enum command_result result = begin(c);
    if (result != COMMAND_DONE)
        return result;
    if (parse_vmadd(c, &a) && find_for_add(c, a.first, a.n, a.step, &v) &&
        records_fit(c, &a, v, &params))
        add_records(c, &a, v ? NULL : &params);
    return COMMAND_DONE;
}

/* --- VREM, VSETATTR --- */

/* Makes the effect on the element of argv[2]; replies whether there was one. */
static enum command_result change_element(struct client *c, struct effect *f)
{
    struct key *k;
    if (data_wait_for_reembed(c))
        return COMMAND_WAIT;
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
    {"vcreate", -4, CMD_WRITE | CMD_DENYOOM, 1, 1, 1, command_vcreate, NULL, NULL, "vector_set",
     "kith 0.1.0", "O(1)",
     "Declares an empty vector set: its dimension (or the model whose texts it will hold; with "
     "both, a dimension that the model's vectors may be cut to), metric, index, quantization, "
     "and whether full vectors are kept beside the codes. It "
     "stays "
     "when its last element goes, and a VADD to it need not repeat QUANT and M. To declare a "
     "set again exactly as it is does nothing.",
     "key [DIM dim] [METRIC <COSINE | L2 | IP>] [INDEX <HNSW | FLAT>] "
     "[QUANT <F32 | F16 | Q8 | BIN>] [KEEP <NONE | F32 | F16>] [M numlinks] "
     "[EF build-exploration-factor] [MODEL model]"},
    {"vadd", -5, CMD_WRITE | CMD_DENYOOM, 1, 1, 1, run_vadd, vadd_texts, NULL, "vector_set",
     "8.0.0", "O(log N) with N the elements of the set, in the background",
     "Adds an element to a vector set, or replaces its vector. With TEXT a model makes the "
     "vector (the one named, else the set's, else the default) and the text is kept with the "
     "element; with EX or PX the element goes when its "
     "time has come.",
     "key [REDUCE dim] <FP32 blob | VALUES num vector [vector ...] | TEXT text> element "
     "[TRUNCATE] [MODEL model] [CAS] [NOQUANT | Q8 | BIN] [EF build-exploration-factor] "
     "[SETATTR attributes] [M numlinks] [EX seconds | PX milliseconds]"},
    {"vmadd", -6, CMD_WRITE | CMD_DENYOOM | CMD_MANY_EFFECTS, 1, 1, 1, run_vmadd, vmadd_texts,
     NULL, "vector_set", "kith 0.1.0",
     "O(M log N) with M the elements added and N the elements of the set, in the background",
     "Adds many elements to a vector set at once, all or none of them, and returns how many "
     "are "
     "new. With TEXT the engine makes all vectors in one request and the texts are kept. With "
     "ATTRS each element's attributes follow its vector or text.",
     "key [REDUCE dim] [TRUNCATE] [MODEL model] [CAS] [NOQUANT | Q8 | BIN] [EF "
     "build-exploration-factor] "
     "[M numlinks] [EX seconds | PX milliseconds] <FP32 num [ATTRS] element blob [attributes] "
     "[element blob [attributes] ...] | VALUES num dim [ATTRS] element vector [vector ...] "
     "[attributes] [element vector [vector ...] [attributes] ...] | TEXT num [ATTRS] element "
     "text [attributes] [element text [attributes] ...]>"},
    {"vrem", 3, CMD_WRITE, 1, 1, 1, run_vrem, NULL, NULL, "vector_set", "8.0.0",
     "O(log N) with N the elements of the set, in the background",
     "Removes an element from a vector set; the last one takes the key with it, unless VCREATE "
     "made it.",
     "key element"},
    {"vreembed", -3, CMD_WRITE | CMD_NO_MULTI, 1, 1, 1, command_vreembed, NULL, NULL,
     "vector_set", "kith 0.1.0", "O(N) with N the elements of the set, in the background",
     "Makes the vectors of a set anew from its kept texts with another model, in the "
     "background; until the set has them, all at once, it is searched and written as before. "
     "DIM: a dimension that the model's vectors may be cut to; TRUNCATE cuts texts that are "
     "longer than the model's context. VINFO shows how far it is; CANCEL ends it.",
     "key <MODEL model [DIM dim] [TRUNCATE] | CANCEL>"},
    {"vsetattr", 4, CMD_WRITE | CMD_FAST, 1, 1, 1, run_vsetattr, NULL, NULL, "vector_set",
     "8.0.0", "O(1)",
     "Gives an element attributes, a JSON object, in place of those it has; an empty string "
     "takes them away.",
     "key element attributes"},
    {0},
};
