#include "server/vector_args.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include "index/vectors.h"
#include "server/models.h"
#include "server/server.h"

/* Redis' words first, then whose vector it is where there are several, then what is wrong. */
static bool bad_vector(struct client *c, struct slice element, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool bad_vector(struct client *c, struct slice element, const char *format, ...)
{
    char what[256];
    va_list ap;
    va_start(ap, format);
    vsnprintf(what, sizeof what, format, ap);
    va_end(ap);
    if (element.n > 0)
        resp_errorf(c->out, "ERR invalid vector specification: element '%.*s': %s",
                    slice_shown(element), element.p, what);
    else
        resp_errorf(c->out, "ERR invalid vector specification: %s", what);
    return false;
}

static const struct slice nobody;

static bool check_dim(struct client *c, int64_t dim, struct slice element)
{
    return (dim > 0 && dim <= INDEX_DIM_MAX) ||
           bad_vector(c, element, "%lld dimensions, 1 to %d are allowed", (long long)dim,
                      INDEX_DIM_MAX);
}

/* Every component (the first is component 1), and the length: the index keeps vectors at length
 * 1 and the length beside them. */
static bool check_finite(struct client *c, const float *values, uint32_t dim,
                         struct slice element)
{
    double squares = 0;
    for (uint32_t i = 0; i < dim; i++) {
        if (!isfinite(values[i]))
            return bad_vector(c, element, "component %u is %s, components must be finite",
                              i + 1, isnan(values[i]) ? "not a number" : "infinite");
        squares += (double)values[i] * (double)values[i];
    }
    return isfinite((float)sqrt(squares)) ||
           bad_vector(c, element, "its length is %g, more than a float32 can be",
                      sqrt(squares));
}

static bool out_of_memory(struct client *c)
{
    resp_error(c->out, "OOM out of memory for the vector");
    return false;
}

bool vector_arg_parse_blob(struct client *c, int at, struct slice element,
                           struct vector_arg *out)
{
    struct slice blob = c->argv[at];
    if (blob.n == 0 || blob.n % sizeof(float) != 0)
        return bad_vector(c, element,
                          "an FP32 blob of %zu bytes, it must be a multiple of 4 and not empty",
                          blob.n);
    if (!check_dim(c, (int64_t)(blob.n / sizeof(float)), element))
        return false;
    float *values = arena_dup(c->arena, blob.p, blob.n); /* aligned */
    if (!values)
        return out_of_memory(c);
    *out = (struct vector_arg){
        .values = values, .dim = (uint32_t)(blob.n / sizeof(float)), .next = at + 1};
    return check_finite(c, values, out->dim, element);
}

bool vector_arg_parse_numbers(struct client *c, int at, int64_t n, struct slice element,
                              struct vector_arg *out)
{
    if (!check_dim(c, n, element))
        return false;
    if (n > c->argc - at)
        return bad_vector(c, element, "VALUES announces %lld components, %d arguments follow",
                          (long long)n, c->argc - at);
    float *values = arena_alloc(c->arena, (size_t)n * sizeof *values);
    if (!values)
        return out_of_memory(c);
    for (int i = 0; i < (int)n; i++) {
        double v;
        struct slice a = c->argv[at + i];
        if (!arg_double(a, &v))
            return bad_vector(c, element, "component %d is '%.*s', not a number", i + 1,
                              slice_shown(a), a.p);
        values[i] = (float)v;
    }
    *out = (struct vector_arg){.values = values, .dim = (uint32_t)n, .next = at + (int)n};
    return check_finite(c, values, out->dim, element);
}

static bool parse_values(struct client *c, int at, struct vector_arg *out)
{
    int64_t n;
    if (!arg_int(c->argv[at], &n))
        return bad_vector(c, nobody, "VALUES takes a count first, 1 to %d, not '%.*s'",
                          INDEX_DIM_MAX, slice_shown(c->argv[at]), c->argv[at].p);
    return vector_arg_parse_numbers(c, at + 1, n, nobody, out);
}

bool vector_arg_reduce(struct client *c, int *at, uint32_t *dim)
{
    int64_t n;
    *dim = 0;
    if (*at + 1 >= c->argc || !slice_is(c->argv[*at], "REDUCE"))
        return true;
    struct slice a = c->argv[*at + 1];
    if (!arg_int(a, &n) || n < 1 || n > INDEX_DIM_MAX)
        return bad_vector(c, nobody, "REDUCE takes a number of dimensions, 1 to %d, not '%.*s'",
                          INDEX_DIM_MAX, slice_shown(a), a.p);
    *dim = (uint32_t)n;
    *at += 2;
    return true;
}

bool vector_arg_project(struct client *c, struct vector_arg *a, uint32_t dim)
{
    if (dim > a->dim)
        return bad_vector(c, nobody, "REDUCE to %u dimensions, but the vector has %u", dim,
                          a->dim);
    float *values = arena_alloc(c->arena, dim * sizeof *values);
    float *work = arena_alloc(c->arena, vector_project_work(a->dim, dim) * sizeof *work);
    if (!values || !work)
        return out_of_memory(c);
    vector_project(a->values, a->dim, values, dim, work);
    a->values = values;
    a->dim = dim;
    return check_finite(c, values, dim, nobody);
}

/* The vector of text number `text`, from 0, of the command. */
static bool take_embedding(struct client *c, uint32_t text, struct slice element,
                           struct vector_arg *out)
{
    const struct embedding *m = c->embedding;
    if (!m || m->code != 0 || m->n <= text) {
        resp_error(c->out, m && m->message ? m->message : "ENGINE the text was not embedded");
        return false;
    }
    memcpy(out->model.name, m->model->name, sizeof out->model.name);
    memcpy(out->model.hash, m->model->hash, sizeof out->model.hash);
    memcpy(out->model.pooling, m->model->pooling, sizeof out->model.pooling);
    out->values = m->vectors + (size_t)text * m->dim;
    out->dim = m->dim;
    return check_dim(c, m->dim, element) && check_finite(c, out->values, m->dim, element);
}

bool vector_arg_take_text(struct client *c, int at, uint32_t text, struct slice element,
                          struct vector_arg *out)
{
    *out = (struct vector_arg){.text = &c->argv[at], .next = at + 1};
    return take_embedding(c, text, element, out);
}

bool vector_arg_parse(struct client *c, int at, struct vector_arg *out)
{
    *out = (struct vector_arg){.next = at + 2};
    if (at + 1 >= c->argc)
        return bad_vector(c, nobody, "a vector is FP32 blob, VALUES n v1 .. vn or TEXT text");
    if (slice_is(c->argv[at], "FP32"))
        return vector_arg_parse_blob(c, at + 1, nobody, out);
    if (slice_is(c->argv[at], "VALUES"))
        return parse_values(c, at + 1, out);
    if (slice_is(c->argv[at], "TEXT")) {
        out->text = &c->argv[at + 1];
        return take_embedding(c, 0, nobody, out);
    }
    return bad_vector(c, nobody, "'%.*s' is none of FP32, VALUES and TEXT",
                      slice_shown(c->argv[at]), c->argv[at].p);
}

bool vector_arg_model_fits(struct client *c, const struct vector_arg *a, struct vset *v)
{
    struct vset_model m = vset_model(v);
    if (!a->text || !m.name[0] ||
        (strcmp(m.hash, a->model.hash) == 0 && strcmp(m.pooling, a->model.pooling) == 0))
        return true;
    resp_errorf(c->out,
                "ERR the set's vectors were made by model '%s' (%s, pooling %s), the engine "
                "runs '%s' (%s, pooling %s): their vectors cannot be compared; MODEL LOAD name "
                "PATH loads the set's model",
                m.name, m.hash, m.pooling, a->model.name, a->model.hash, a->model.pooling);
    return false;
}

static bool cut(struct client *c, struct vector_arg *a, uint32_t dim)
{
    float *values = arena_alloc(c->arena, dim * sizeof *values);
    if (!values)
        return out_of_memory(c);
    engine_vector_cut(a->values, dim, values);
    a->values = values;
    a->dim = dim;
    return true;
}

bool vector_arg_cut_to_set(struct client *c, struct vector_arg *a, struct vset *v)
{
    const struct vset_params *p = vset_params(v);
    if (!a->text || a->dim <= p->index.dim || p->projection_dim || !vset_model(v).name[0] ||
        !engine_model_allows_dim(c->embedding->model, p->index.dim))
        return true;
    return cut(c, a, p->index.dim);
}

bool vector_arg_fits(struct client *c, struct vector_arg *a, struct vset *v)
{
    const struct vset_params *p = vset_params(v);
    if (!vector_arg_model_fits(c, a, v) || !vector_arg_cut_to_set(c, a, v))
        return false;
    if (a->dim == p->index.dim)
        return true;
    if (p->projection_dim == 0) {
        resp_errorf(c->out, "ERR Vector dimension mismatch - got %u but set has %u", a->dim,
                    p->index.dim);
        return false;
    }
    if (a->dim != p->projection_dim) {
        resp_errorf(c->out,
                    "ERR Input dimension mismatch for projection - got %u but projection "
                    "expects %u",
                    a->dim, p->projection_dim);
        return false;
    }
    return vector_arg_project(c, a, p->index.dim);
}

bool vector_arg_texts_again(struct client *c, struct vset *v)
{
    enum { AGAIN_MAX = 3 };
    const struct embedding *m = c->embedding;
    struct vset_model set = {0};
    struct engine_model right;
    if (!m || m->code != 0 || m->named || c->in_exec || m->n_again >= AGAIN_MAX)
        return false;
    if (v)
        set = vset_model(v);
    if (set.name[0] && strcmp(set.hash, m->model->hash) == 0 &&
        strcmp(set.pooling, m->model->pooling) == 0)
        return false;
    struct models_request ask = {
        .task = ENGINE_EMBED, .hash = set.hash, .pooling = set.pooling};
    return models_known(c->server->models, &ask, &right) &&
           (strcmp(right.hash, m->model->hash) != 0 ||
            strcmp(right.pooling, m->model->pooling) != 0);
}

void vector_arg_text_options(const struct slice *argv, int at, int end,
                             const char *const *with_value, struct command_texts *out)
{
    for (int i = at; i < end; i++) {
        if (slice_is(argv[i], "TRUNCATE")) {
            out->truncate = true;
        } else if (slice_is(argv[i], "MODEL") && i + 1 < end) {
            out->model = argv[++i];
        } else {
            for (const char *const *w = with_value; *w; w++)
                if (slice_is(argv[i], *w)) {
                    i++;
                    break;
                }
        }
    }
}

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *p)
{
    index_scratch_free(p);
}

static void make_scratch_key(void)
{
    pthread_key_create(&scratch_key, free_scratch);
}

struct index_scratch *thread_scratch(void)
{
    pthread_once(&scratch_once, make_scratch_key);
    struct index_scratch *s = pthread_getspecific(scratch_key);
    if (!s && (s = index_scratch_new()))
        pthread_setspecific(scratch_key, s);
    return s;
}
