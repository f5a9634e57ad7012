#include "server/search_args.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/epoch.h"
#include "index/vectors.h"
#include "server/data.h"
#include "server/recall.h"
#include "server/server.h"
#include "server/vector_args.h"

/* A filter's nearest lie farther apart than those of all, so a filtered walk keeps more where
 * nobody says how many: where half passes, 100 find 0.94 and 140 find 0.97 (bench/vsets.py). */
enum { COUNT_DEFAULT = 10, EF_DEFAULT = 100, EF_DEFAULT_FILTERED = 140, RESCORE_DEFAULT = 4 };

/* One command's arguments while they are read. */
struct parse {
    struct client *c;
    struct search_args *a;
    float *vectors; /* room for SEARCH_VECTORS_MAX, made at the first */
    uint32_t n_vectors;
    bool several, has_count, has_rescore, has_combine;
    bool text; /* TRUNCATE and MODEL are allowed */
};

static bool fail(struct client *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool fail(struct client *c, const char *format, ...)
{
    char message[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(message, sizeof message, format, ap);
    va_end(ap);
    resp_error(c->out, message);
    return false;
}

static bool option_int(struct client *c, const char *name, int at, int64_t low, int64_t high,
                       uint32_t *out)
{
    int64_t v;
    if (at < c->argc && arg_int(c->argv[at], &v) && v >= low && v <= high) {
        *out = (uint32_t)v;
        return true;
    }
    char allowed[80];
    snprintf(allowed, sizeof allowed, "a whole number from %lld to %lld", (long long)low,
             (long long)high);
    reply_invalid(c, name, at, allowed);
    return false;
}

static bool option_double(struct client *c, const char *name, int at, double low, bool open,
                          double high, const char *allowed, double *out)
{
    double v;
    if (at < c->argc && arg_double(c->argv[at], &v) && (open ? v > low : v >= low) &&
        v <= high) {
        *out = v;
        return true;
    }
    reply_invalid(c, name, at, allowed);
    return false;
}

static bool out_of_memory(struct client *c)
{
    return fail(c, "OOM out of memory for the search");
}

/* --- vectors --- */

static bool add_vector(struct parse *p, const float *values)
{
    uint32_t dim = vset_params(p->a->set)->index.dim;
    size_t room = p->several ? SEARCH_VECTORS_MAX : 1;
    if (!p->vectors &&
        !(p->vectors = arena_alloc(p->c->arena, room * dim * sizeof *p->vectors)))
        return out_of_memory(p->c);
    memcpy(p->vectors + (size_t)p->n_vectors++ * dim, values, dim * sizeof *values);
    return true;
}

/* The vector of an element, as a search would be asked by it. A binary code decodes to +1 and
 * -1; the length that L2 and IP go by stands beside it. */
static int element_vector(struct vset *v, uint32_t slot, float *out, struct err *e)
{
    const struct vset_params *p = vset_params(v);
    struct index_code code;
    epoch_enter();
    int rc = vset_vector(v, slot, out, e);
    if (rc == 0 && p->index.quant == INDEX_BIN && p->keep == VSET_KEEP_NONE &&
        (rc = index_code(vset_index(v), slot, &code, e)) == 0)
        for (uint32_t i = 0; i < p->index.dim; i++)
            out[i] *= code.norm / sqrtf((float)p->index.dim);
    epoch_exit();
    return rc;
}

static bool find_element_vector(struct parse *p, struct slice name, float *out)
{
    struct err e = {0};
    uint32_t slot;
    int rc = vset_find(p->a->set, name, data_now_ms(p->c), &slot, &e);
    if (rc == KITH_ENOTFOUND)
        return fail(p->c, "ERR element not found in set: '%.*s'", slice_shown(name), name.p);
    if (rc == 0)
        rc = element_vector(p->a->set, slot, out, &e);
    if (rc != 0)
        reply_err(p->c, &e);
    return rc == 0;
}

static bool parse_element(struct parse *p, struct slice name)
{
    uint32_t dim = vset_params(p->a->set)->index.dim;
    float *values = arena_alloc(p->c->arena, dim * sizeof *values);
    if (!values)
        return out_of_memory(p->c);
    return find_element_vector(p, name, values) && add_vector(p, values);
}

/* ELE e | FP32 blob | VALUES n v .. (and TEXT text, where it stands alone). */
static bool parse_item(struct parse *p, int *at)
{
    struct client *c = p->c;
    struct slice kind = c->argv[*at];
    if (slice_is(kind, "ELE") && *at + 1 < c->argc) {
        *at += 2;
        return parse_element(p, c->argv[*at - 1]);
    }
    bool text = slice_is(kind, "TEXT") && !p->several;
    if (!text && !slice_is(kind, "FP32") && !slice_is(kind, "VALUES") && !slice_is(kind, "ELE"))
        return fail(c, "ERR vector type must be ELE, FP32 or VALUES%s, not '%.*s'",
                    p->several ? "" : " (or TEXT, VECS, TEXTS)", slice_shown(kind), kind.p);
    struct vector_arg vector;
    if (!vector_arg_parse(c, *at, &vector) || !vector_arg_fits(c, &vector, p->a->set))
        return false;
    *at = vector.next;
    p->text = text;
    return add_vector(p, vector.values);
}

static bool parse_vecs(struct parse *p, int *at)
{
    uint32_t n;
    p->several = true;
    if (!option_int(p->c, "vector specification: VECS", ++*at, 1, SEARCH_VECTORS_MAX, &n))
        return false;
    ++*at;
    for (uint32_t i = 0; i < n; i++) {
        if (*at >= p->c->argc)
            return fail(
                p->c, "ERR invalid vector specification: VECS announces %u vectors, %u follow",
                n, i);
        if (!parse_item(p, at))
            return false;
    }
    return true;
}

static bool parse_texts(struct parse *p, int *at)
{
    struct client *c = p->c;
    const struct embedding *m = c->embedding;
    uint32_t n;
    p->several = p->text = true;
    if (!option_int(c, "vector specification: TEXTS", ++*at, 1, SEARCH_VECTORS_MAX, &n))
        return false;
    int first = *at + 1;
    if ((int64_t)n > c->argc - first)
        return fail(c, "ERR invalid vector specification: TEXTS announces %u texts, %d follow",
                    n, c->argc - first);
    if (!m || m->code != 0 || m->n != n)
        return fail(c, "%s",
                    m && m->message ? m->message : "ENGINE the texts were not embedded");
    for (uint32_t i = 0; i < n; i++) {
        struct vector_arg vector = {.values = m->vectors + (size_t)i * m->dim,
                                    .dim = m->dim,
                                    .text = &c->argv[first + (int)i]};
        memcpy(vector.model.name, m->model->name, sizeof vector.model.name);
        memcpy(vector.model.hash, m->model->hash, sizeof vector.model.hash);
        memcpy(vector.model.pooling, m->model->pooling, sizeof vector.model.pooling);
        if (!vector_arg_fits(c, &vector, p->a->set) || !add_vector(p, vector.values))
            return false;
    }
    *at = first + (int)n;
    return true;
}

void search_args_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    static const char *const with_value[] = {"COUNT",     "EPSILON", "EF",      "FILTER",
                                             "FILTER-EF", "RESCORE", "COMBINE", "MMR",
                                             "RADIUS",    "OFFSET",  NULL};
    int64_t n = 1;
    bool several = argc > 3 && slice_is(argv[2], "TEXTS");
    int first = several ? 4 : 3;
    if (argc < 4 || (!several && !slice_is(argv[2], "TEXT")) ||
        (several &&
         (!arg_int(argv[3], &n) || n < 1 || n > SEARCH_VECTORS_MAX || n > argc - first)))
        return;
    *out = (struct command_texts){
        .first = &argv[first], .n = (uint32_t)n, .role = ENGINE_ROLE_QUERY, .key = 1};
    vector_arg_text_options(argv, first + (int)n, argc, with_value, out);
}

/* --- VRECOMMEND --- */

/* sum += the vectors of n elements from argv[at] on; each of length 1 where only directions
 * count. */
static bool add_examples(struct parse *p, int at, uint32_t n, double *sum)
{
    const struct index_params *x = &vset_params(p->a->set)->index;
    float *values = arena_alloc(p->c->arena, x->dim * sizeof *values);
    if (!values)
        return out_of_memory(p->c);
    for (uint32_t i = 0; i < n; i++) {
        if (!find_element_vector(p, p->c->argv[at + (int)i], values))
            return false;
        if (x->metric == INDEX_COSINE)
            vector_normalise(values, x->dim, values);
        for (uint32_t d = 0; d < x->dim; d++)
            sum[d] += (double)values[d] / n;
    }
    return true;
}

static bool parse_example_count(struct parse *p, const char *word, int *at, uint32_t *n)
{
    if (!option_int(p->c, word, ++*at, 1, INT32_MAX, n))
        return false;
    ++*at;
    return *n <= (uint32_t)(p->c->argc - *at) ||
           fail(p->c, "ERR invalid %s: it announces %u elements, %d arguments follow", word, *n,
                p->c->argc - *at);
}

/* POS n e.. [NEG m e..]: with both, avg(pos) + (avg(pos) - avg(neg)), the feedback formula of
 * Rocchio (1971) in the form that Qdrant calls average_vector. */
static bool parse_examples(struct parse *p, int *at)
{
    struct client *c = p->c;
    uint32_t dim = vset_params(p->a->set)->index.dim, n_pos, n_neg = 0;
    double *pos = arena_alloc(c->arena, 2 * dim * sizeof *pos), *neg = pos + dim;
    float *query = arena_alloc(c->arena, dim * sizeof *query);
    if (!pos || !query)
        return out_of_memory(c);
    memset(pos, 0, 2 * dim * sizeof *pos);
    if (!slice_is(c->argv[*at], "POS"))
        return fail(c,
                    "ERR syntax error in VRECOMMEND command: POS n element .. comes first, "
                    "not '%.*s'",
                    slice_shown(c->argv[*at]), c->argv[*at].p);
    if (!parse_example_count(p, "POS", at, &n_pos) || !add_examples(p, *at, n_pos, pos))
        return false;
    int first_pos = *at, first_neg = *at += (int)n_pos;
    if (*at < c->argc && slice_is(c->argv[*at], "NEG")) {
        if (!parse_example_count(p, "NEG", at, &n_neg) || !add_examples(p, *at, n_neg, neg))
            return false;
        first_neg = *at;
        *at += (int)n_neg;
    }
    for (uint32_t d = 0; d < dim; d++)
        query[d] = (float)(n_neg ? 2 * pos[d] - neg[d] : pos[d]);
    struct slice *exclude = arena_alloc(c->arena, (n_pos + n_neg) * sizeof *exclude);
    if (!exclude)
        return out_of_memory(c);
    memcpy(exclude, c->argv + first_pos, n_pos * sizeof *exclude);
    memcpy(exclude + n_pos, c->argv + first_neg, n_neg * sizeof *exclude);
    p->a->q.exclude = exclude;
    p->a->q.n_exclude = n_pos + n_neg;
    return add_vector(p, query);
}

/* --- options --- */

static bool parse_filter(struct parse *p, int at)
{
    struct err e = {0};
    struct search_args *a = p->a;
    if (at >= p->c->argc)
        return reply_invalid(p->c, "FILTER", at, "an expression");
    filter_free(a->filter);
    a->filter = NULL;
    a->q.filter_text = p->c->argv[at];
    if (filter_compile(&a->filter, a->q.filter_text, &e) == 0)
        return true;
    a->filter = NULL;
    reply_err(p->c, &e);
    return false;
}

static bool parse_ef(struct parse *p, int *i)
{
    struct search_args *a = p->a;
    a->ef_auto = *i + 1 < p->c->argc && slice_is(p->c->argv[*i + 1], "AUTO");
    if (!a->ef_auto)
        return option_int(p->c, "EF", ++*i, 1, INDEX_EF_MAX, &a->q.ef);
    *i += 2;
    return option_double(p->c, "EF AUTO", *i, 0, true, 1,
                         "the wanted recall: a number above 0 and up to 1", &a->target);
}

static bool parse_radius(struct parse *p, int at)
{
    struct vset_query *q = &p->a->q;
    q->has_radius = true;
    switch (vset_params(p->a->set)->index.metric) {
    case INDEX_COSINE:
        return option_double(p->c, "RADIUS", at, 0, false, 2,
                             "a distance 1 - cosine from 0 to 2", &q->radius);
    case INDEX_L2:
        return option_double(p->c, "RADIUS", at, 0, false, (double)INFINITY,
                             "a Euclidean distance of 0 or more", &q->radius);
    case INDEX_IP:
        break;
    }
    return option_double(p->c, "RADIUS", at, -(double)INFINITY, false, (double)INFINITY,
                         "the least inner product, a number", &q->radius);
}

static bool parse_combine(struct parse *p, int at)
{
    static const char *const names[] = {"RRF", "MAX", "AVG"};
    p->has_combine = true;
    for (int i = 0; at < p->c->argc && i < 3; i++) {
        if (slice_is(p->c->argv[at], names[i])) {
            p->a->q.combine = (enum vset_combine)i;
            return true;
        }
    }
    return reply_invalid(p->c, "COMBINE", at, "RRF, MAX or AVG");
}

static bool parse_flag(struct parse *p, struct slice o)
{
    struct search_args *a = p->a;
    if (slice_is(o, "WITHSCORES"))
        a->with_scores = true;
    else if (slice_is(o, "WITHATTRIBS"))
        a->with_attributes = a->q.with_attributes = true;
    else if (slice_is(o, "TRUTH"))
        a->q.exact = true;
    else if (slice_is(o, "EXPLAIN"))
        a->explain = true;
    else if (slice_is(o, "NOTHREAD"))
        a->no_thread = true;
    else
        /* The engine was told of TRUNCATE when the command was read. */
        return slice_is(o, "TRUNCATE") && p->text;
    return true;
}

static bool parse_option(struct parse *p, int *i)
{
    struct client *c = p->c;
    struct vset_query *q = &p->a->q;
    struct slice o = c->argv[*i];
    if (parse_flag(p, o))
        return true;
    if (slice_is(o, "MODEL") && p->text) {
        ++*i; /* as TRUNCATE: known since the command was read */
        return *i < c->argc || reply_invalid(c, "MODEL", *i, "the name of a model");
    }
    if (slice_is(o, "COUNT")) {
        p->has_count = true;
        return option_int(c, "COUNT", ++*i, 1, UINT32_MAX, &q->count);
    }
    if (slice_is(o, "EPSILON")) {
        q->has_epsilon = true;
        return option_double(c, "EPSILON", ++*i, 0, true, (double)INFINITY, "a number above 0",
                             &q->epsilon);
    }
    if (slice_is(o, "EF"))
        return parse_ef(p, i);
    if (slice_is(o, "FILTER"))
        return parse_filter(p, ++*i);
    if (slice_is(o, "FILTER-EF"))
        return option_int(c, "FILTER-EF", ++*i, 0, UINT32_MAX, &q->filter_ef);
    if (slice_is(o, "RESCORE")) {
        p->has_rescore = true;
        return option_int(c, "RESCORE", ++*i, 0, INDEX_EF_MAX, &q->rescore);
    }
    if (slice_is(o, "COMBINE"))
        return parse_combine(p, ++*i);
    if (slice_is(o, "MMR")) {
        q->has_mmr = true;
        return option_double(c, "MMR", ++*i, 0, false, 1, "a number from 0 to 1", &q->mmr);
    }
    if (slice_is(o, "RADIUS"))
        return parse_radius(p, ++*i);
    if (slice_is(o, "OFFSET")) {
        q->paged = true;
        return option_int(c, "OFFSET", ++*i, 0, UINT32_MAX, &q->offset);
    }
    return fail(c, "ERR syntax error in %s command: '%.*s' is no option of it",
                slice_is(slice_of(c->command->name), "VSIM") ? "VSIM" : "VRECOMMEND",
                slice_shown(o), o.p);
}

/* --- what the options mean together --- */

static bool settle_rescore(struct parse *p)
{
    struct vset_query *q = &p->a->q;
    bool keeps = vset_params(p->a->set)->keep != VSET_KEEP_NONE;
    if (!p->has_rescore) {
        uint64_t wanted = q->count ? (uint64_t)q->count * RESCORE_DEFAULT : 1;
        q->rescore = !keeps ? 0 : wanted < UINT32_MAX ? (uint32_t)wanted : UINT32_MAX;
    } else if (q->rescore && !keeps) {
        return fail(p->c, "ERR invalid RESCORE: the set keeps no full vectors; make it with "
                          "VCREATE and KEEP F32 or KEEP F16");
    } else if (q->rescore && q->rescore < q->count) {
        return fail(p->c,
                    "ERR invalid RESCORE: %u candidates for COUNT %u, it takes at least "
                    "COUNT, or 0 for none",
                    q->rescore, q->count);
    }
    if (q->exact)
        q->rescore = 0; /* its distances are those of full vectors */
    return true;
}

static bool settle(struct parse *p)
{
    struct search_args *a = p->a;
    struct vset_query *q = &a->q;
    if (q->has_radius && !p->has_count)
        q->count = 0;
    if (p->has_combine && !p->several)
        return fail(p->c,
                    "ERR invalid COMBINE: it joins several vectors, given by VECS or TEXTS");
    if (q->has_mmr && (q->count == 0 || q->count > SEARCH_MMR_COUNT_MAX))
        return fail(p->c,
                    "ERR invalid MMR: it chooses COUNT results, and takes a COUNT of at "
                    "most %d",
                    SEARCH_MMR_COUNT_MAX);
    if (!settle_rescore(p))
        return false;
    if (a->ef_auto)
        q->ef = recall_ef(vset_recall(a->set), a->target);
    else if (q->ef == 0)
        q->ef = a->filter ? EF_DEFAULT_FILTERED : EF_DEFAULT;
    q->vectors = p->vectors;
    q->n_vectors = p->n_vectors;
    q->filter = a->filter;
    q->now_ms = data_now_ms(p->c);
    q->has_expired = vset_next_expiry(a->set) <= q->now_ms;
    a->offer = q->n_vectors == 1 && !q->filter;
    return true;
}

static bool parse_all(struct parse *p, bool (*target)(struct parse *p, int *at))
{
    int at = 2;
    struct search_args *a = p->a;
    a->q.count = COUNT_DEFAULT;
    bool ok = target(p, &at);
    for (; ok && at < p->c->argc; at++)
        ok = parse_option(p, &at);
    if (ok)
        ok = settle(p);
    if (!ok) {
        filter_free(a->filter);
        a->filter = NULL;
    }
    return ok;
}

static bool parse_vsim_target(struct parse *p, int *at)
{
    if (slice_is(p->c->argv[*at], "VECS"))
        return parse_vecs(p, at);
    return slice_is(p->c->argv[*at], "TEXTS") ? parse_texts(p, at) : parse_item(p, at);
}

bool search_args_vsim(struct client *c, struct vset *set, struct search_args *a)
{
    *a = (struct search_args){.set = set};
    return parse_all(&(struct parse){.c = c, .a = a}, parse_vsim_target);
}

bool search_args_vrecommend(struct client *c, struct vset *set, struct search_args *a)
{
    *a = (struct search_args){.set = set};
    return parse_all(&(struct parse){.c = c, .a = a}, parse_examples);
}
