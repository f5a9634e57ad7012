#include "server/vector_args.h"

#include <math.h>
#include <pthread.h>

#include "server/engine_link.h"
#include "server/server.h"

static bool check_dim(struct client *c, uint64_t dim)
{
    if (dim > 0 && dim <= INDEX_DIM_MAX)
        return true;
    resp_errorf(c->out,
                "ERR invalid vector specification: %llu dimensions, 1 to %d are allowed",
                (unsigned long long)dim, INDEX_DIM_MAX);
    return false;
}

static bool check_finite(struct client *c, const float *values, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++)
        if (!isfinite(values[i])) {
            resp_errorf(c->out,
                        "ERR invalid vector specification: component %u is %s, components must "
                        "be finite",
                        i, isnan(values[i]) ? "not a number" : "infinite");
            return false;
        }
    return true;
}

static bool out_of_memory(struct client *c)
{
    resp_error(c->out, "OOM out of memory for the vector");
    return false;
}

static bool parse_blob(struct client *c, struct slice blob, struct vector_arg *out)
{
    if (blob.n == 0 || blob.n % sizeof(float) != 0) {
        resp_errorf(c->out,
                    "ERR invalid vector specification: an FP32 blob of %zu bytes, it must be a "
                    "multiple of 4 and not empty",
                    blob.n);
        return false;
    }
    if (!check_dim(c, blob.n / sizeof(float)))
        return false;
    float *values = arena_dup(c->arena, blob.p, blob.n); /* aligned */
    if (!values)
        return out_of_memory(c);
    out->values = values;
    out->dim = (uint32_t)(blob.n / sizeof(float));
    return check_finite(c, values, out->dim);
}

static bool parse_values(struct client *c, int at, struct vector_arg *out)
{
    int64_t n;
    if (at >= c->argc || !arg_int(c->argv[at], &n)) {
        resp_error(c->out, "ERR invalid vector specification: VALUES takes a count first");
        return false;
    }
    if (!check_dim(c, n < 0 ? 0 : (uint64_t)n))
        return false;
    if (n > c->argc - at - 1) {
        resp_errorf(c->out,
                    "ERR invalid vector specification: VALUES announces %lld components, %d "
                    "arguments follow",
                    (long long)n, c->argc - at - 1);
        return false;
    }
    float *values = arena_alloc(c->arena, (size_t)n * sizeof *values);
    if (!values)
        return out_of_memory(c);
    for (int64_t i = 0; i < n; i++) {
        double v;
        struct slice a = c->argv[at + 1 + i];
        if (!arg_double(a, &v)) {
            resp_errorf(
                c->out,
                "ERR invalid vector specification: component %lld is '%.*s', not a number",
                (long long)i, (int)(a.n < 32 ? a.n : 32), a.p);
            return false;
        }
        values[i] = (float)v;
    }
    out->values = values;
    out->dim = (uint32_t)n;
    out->next = at + 1 + (int)n;
    return check_finite(c, values, out->dim);
}

static bool take_embedding(struct client *c, struct vector_arg *out)
{
    const struct embedding *m = c->embedding;
    if (!m || m->code != 0 || m->n < 1) {
        resp_error(c->out, m && m->message ? m->message : "ENGINE the text was not embedded");
        return false;
    }
    struct engine_model model = {0};
    if (c->server->engine)
        engine_link_model(c->server->engine, &model);
    memcpy(out->model.name, model.name, sizeof out->model.name);
    memcpy(out->model.hash, model.hash, sizeof out->model.hash);
    memcpy(out->model.pooling, model.pooling, sizeof out->model.pooling);
    out->values = m->vectors;
    out->dim = m->dim;
    return check_dim(c, m->dim) && check_finite(c, m->vectors, m->dim);
}

bool vector_arg_parse(struct client *c, int at, struct vector_arg *out)
{
    *out = (struct vector_arg){.next = at + 2};
    bool more = at + 1 < c->argc;
    if (more && slice_is(c->argv[at], "FP32"))
        return parse_blob(c, c->argv[at + 1], out);
    if (more && slice_is(c->argv[at], "VALUES"))
        return parse_values(c, at + 1, out);
    if (more && slice_is(c->argv[at], "TEXT")) {
        out->text = &c->argv[at + 1];
        return take_embedding(c, out);
    }
    resp_error(c->out, "ERR invalid vector specification");
    return false;
}

bool vector_arg_fits(struct client *c, const struct vector_arg *a, struct vset *v)
{
    struct vset_model m = vset_model(v);
    if (a->text && m.name[0] &&
        (strcmp(m.hash, a->model.hash) != 0 || strcmp(m.pooling, a->model.pooling) != 0)) {
        resp_errorf(
            c->out,
            "ERR the set's vectors were made by model '%s' (%s, pooling %s), the engine "
            "runs '%s' (%s, pooling %s): their vectors cannot be compared",
            m.name, m.hash, m.pooling, a->model.name, a->model.hash, a->model.pooling);
        return false;
    }
    uint32_t dim = vset_params(v)->dim;
    if (a->dim != dim) {
        resp_errorf(c->out, "ERR Vector dimension mismatch - got %u but set has %u", a->dim,
                    dim);
        return false;
    }
    return true;
}

void vector_arg_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    if (argc < 4 || !slice_is(argv[2], "TEXT"))
        return;
    out->first = &argv[3];
    out->n = 1;
    for (int i = 4; i < argc; i++)
        out->truncate |= slice_is(argv[i], "TRUNCATE");
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
