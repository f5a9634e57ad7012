/* The vector set commands. */
#include <math.h>
#include <stdio.h>

#include "base/epoch.h"
#include "server/data.h"
#include "server/net.h"
#include "server/server.h"
#include "server/shard_parts.h"
#include "server/vector_args.h"

enum { M_DEFAULT = 16, EF_BUILD_DEFAULT = 200, EF_SEARCH_DEFAULT = 100, COUNT_DEFAULT = 10 };
/* An update of an element while a search runs can hide it; then the search is made again, and
 * at last with updates held off. */
enum { SEARCH_TRIES = 3 };

static bool find_set(struct client *c, struct vset **v)
{
    struct key *k;
    if (!data_find_type(c, c->argv[1], OBJECT_VSET, &k))
        return false;
    *v = k ? k->vset : NULL;
    return true;
}

/* --- VADD --- */

struct vadd {
    struct vector_arg vector;
    struct slice element;
    enum index_quant quant;
    uint32_t m, ef;
};

static bool option_in_range(struct client *c, int i, int64_t low, int64_t high, uint32_t *out)
{
    int64_t v;
    if (i < c->argc && arg_int(c->argv[i], &v) && v >= low && v <= high) {
        *out = (uint32_t)v;
        return true;
    }
    return false;
}

static bool parse_vadd(struct client *c, struct vadd *a)
{
    if (!vector_arg_parse(c, 2, &a->vector))
        return false;
    if (a->vector.next >= c->argc) {
        resp_error(c->out, "ERR invalid vector specification: the element's name is missing");
        return false;
    }
    a->element = c->argv[a->vector.next];
    a->quant = INDEX_INT8;
    a->m = M_DEFAULT;
    a->ef = EF_BUILD_DEFAULT;
    for (int i = a->vector.next + 1; i < c->argc; i++) {
        struct slice o = c->argv[i];
        if (slice_is(o, "NOQUANT")) {
            a->quant = INDEX_F32;
        } else if (slice_is(o, "Q8")) {
            a->quant = INDEX_INT8;
        } else if (slice_is(o, "CAS")) {
            /* Every insert is searched for its neighbours in the background here. */
        } else if (slice_is(o, "TRUNCATE") && a->vector.text) {
            /* The engine was told when the command was read. */
        } else if (slice_is(o, "EF")) {
            if (!option_in_range(c, ++i, 1, INDEX_EF_MAX, &a->ef)) {
                resp_error(c->out, "ERR invalid EF");
                return false;
            }
        } else if (slice_is(o, "M")) {
            if (!option_in_range(c, ++i, INDEX_M_MIN, INDEX_M_MAX, &a->m)) {
                resp_error(c->out, "ERR invalid M");
                return false;
            }
        } else {
            resp_error(c->out, "ERR invalid option after element");
            return false;
        }
    }
    return true;
}

static bool fits_set(struct client *c, const struct vadd *a, struct vset *v)
{
    const struct index_params *p = vset_params(v);
    if (!vector_arg_fits(c, &a->vector, v))
        return false;
    if (p->quant != a->quant) {
        resp_error(c->out, "ERR asked quantization mismatch with existing vector set");
        return false;
    }
    if (p->m != a->m) {
        resp_error(c->out, "ERR asked M value mismatch with existing vector set");
        return false;
    }
    return true;
}

static enum command_result run_vadd(struct client *c)
{
    struct vadd a;
    struct key *k = keyspace_find(data_keyspace(c), c->db, c->argv[1], data_now_ms(c));
    if (k && k->type == OBJECT_VSET && index_tail_full(vset_index(k->vset)) &&
        data_wait_for_room(c))
        return COMMAND_WAIT;
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_VSET, &k) || !parse_vadd(c, &a) ||
        (k && !fits_set(c, &a, k->vset)))
        return COMMAND_DONE;
    struct effect f = {.op = EFFECT_VADD,
                       .key = c->argv[1],
                       .value = a.element,
                       .quant = a.quant,
                       .m = a.m,
                       .ef = a.ef,
                       .dim = a.vector.dim,
                       .vector = a.vector.values,
                       .model = a.vector.text ? &a.vector.model : NULL,
                       .text = a.vector.text};
    if (data_do(c, &f))
        resp_bool(c->out, f.added);
    return COMMAND_DONE;
}

static enum command_result run_vrem(struct client *c)
{
    struct key *k;
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_VSET, &k))
        return COMMAND_DONE;
    uint32_t slot;
    struct err e = {0};
    int rc = k ? vset_find(k->vset, c->argv[2], &slot, &e) : KITH_ENOTFOUND;
    if (rc == KITH_ENOTFOUND) {
        resp_bool(c->out, false);
        return COMMAND_DONE;
    }
    if (rc != 0) {
        reply_err(c, &e);
        return COMMAND_DONE;
    }
    struct effect f = {.op = EFFECT_VREM, .key = c->argv[1], .value = c->argv[2]};
    if (data_do(c, &f))
        resp_bool(c->out, true);
    return COMMAND_DONE;
}

/* --- VSIM --- */

struct vsim {
    struct vset *set;
    struct vector_arg vector; /* values NULL: by element */
    uint32_t slot;            /* of ELE */
    uint32_t count, ef;
    double epsilon;
    bool with_scores, exact;
};

static bool parse_vsim_target(struct client *c, struct vsim *q, int *next)
{
    if (!slice_is(c->argv[2], "ELE")) {
        if (!slice_is(c->argv[2], "FP32") && !slice_is(c->argv[2], "VALUES") &&
            !slice_is(c->argv[2], "TEXT")) {
            resp_error(c->out, "ERR vector type must be ELE, FP32 or VALUES");
            return false;
        }
        bool ok = vector_arg_parse(c, 2, &q->vector) && vector_arg_fits(c, &q->vector, q->set);
        *next = q->vector.next;
        return ok;
    }
    struct err e = {0};
    *next = 4;
    if (vset_find(q->set, c->argv[3], &q->slot, &e) == 0)
        return true;
    reply_err(c, &e);
    return false;
}

static bool parse_vsim_option(struct client *c, struct vsim *q, int *i)
{
    struct slice o = c->argv[*i];
    if (slice_is(o, "WITHSCORES")) {
        q->with_scores = true;
    } else if (slice_is(o, "TRUTH")) {
        q->exact = true;
    } else if (slice_is(o, "NOTHREAD")) {
        /* Searches always run on the connection's own thread. */
    } else if (slice_is(o, "TRUNCATE") && q->vector.text) {
        /* The engine was told when the command was read. */
    } else if (slice_is(o, "COUNT")) {
        if (!option_in_range(c, ++*i, 1, UINT32_MAX, &q->count)) {
            resp_error(c->out, "ERR invalid COUNT");
            return false;
        }
    } else if (slice_is(o, "EF")) {
        if (!option_in_range(c, ++*i, 1, INDEX_EF_MAX, &q->ef)) {
            resp_error(c->out, "ERR invalid EF");
            return false;
        }
    } else if (slice_is(o, "EPSILON")) {
        if (++*i >= c->argc || !arg_double(c->argv[*i], &q->epsilon) || q->epsilon <= 0) {
            resp_error(c->out, "ERR invalid EPSILON");
            return false;
        }
    } else {
        resp_error(c->out, "ERR syntax error in VSIM command");
        return false;
    }
    return true;
}

static bool parse_vsim(struct client *c, struct vsim *q)
{
    int i;
    if (!parse_vsim_target(c, q, &i))
        return false;
    q->count = COUNT_DEFAULT;
    q->ef = EF_SEARCH_DEFAULT;
    q->epsilon = 2.0;
    for (; i < c->argc; i++)
        if (!parse_vsim_option(c, q, &i))
            return false;
    return true;
}

struct found {
    struct index_hit *hits;
    uint32_t *name_n;
    uint32_t n;
    struct buf names; /* one after another */
};

/* One pass: hits and their names. Returns 0 or a code. */
static int search_once(struct vsim *q, struct index_scratch *scratch, uint32_t k,
                       struct found *f, struct err *e)
{
    struct index_query query = {
        .vector = q->vector.values, .slot = q->slot, .k = k, .ef = q->ef, .exact = q->exact};
    f->n = 0;
    buf_clear(&f->names);
    int64_t n = index_search(vset_index(q->set), scratch, &query, f->hits, e);
    if (n < 0)
        return (int)n;
    for (int64_t i = 0; i < n; i++) {
        if ((double)f->hits[i].distance / 2 > q->epsilon)
            continue;
        size_t before = f->names.len;
        struct err why = {0};
        if (!vset_name(q->set, f->hits[i].slot, &f->names, &why)) {
            if (why.code != 0) {
                if (e)
                    *e = why;
                return why.code;
            }
            continue; /* removed meanwhile */
        }
        f->name_n[f->n] = (uint32_t)(f->names.len - before);
        f->hits[f->n++] = f->hits[i];
    }
    return f->names.failed ? err_set(e, KITH_ENOMEM, "out of memory for the names") : 0;
}

static int search(struct vsim *q, struct found *f, struct arena *arena, struct err *e)
{
    uint32_t n = vset_count(q->set), k = q->count < n ? q->count : n;
    struct index_scratch *scratch = thread_scratch();
    f->hits = arena_alloc(arena, (size_t)k * sizeof *f->hits);
    f->name_n = arena_alloc(arena, (size_t)k * sizeof *f->name_n);
    if (!scratch || !f->hits || !f->name_n)
        return err_set(e, KITH_ENOMEM, "out of memory for the search");
    if (k == 0)
        return 0;
    int rc = 0;
    for (int tries = 0; tries < SEARCH_TRIES; tries++) {
        uint64_t before = vset_replacements(q->set);
        epoch_enter();
        rc = search_once(q, scratch, k, f, e);
        epoch_exit();
        if (rc != 0 || vset_replacements(q->set) == before)
            return rc;
    }
    vset_hold(q->set);
    epoch_enter();
    rc = search_once(q, scratch, k, f, e);
    epoch_exit();
    vset_let_go(q->set);
    return rc;
}

static void reply_found(struct client *c, const struct vsim *q, const struct found *f)
{
    if (q->with_scores)
        resp_map(c->out, f->n);
    else
        resp_array(c->out, f->n);
    const char *name = f->names.data;
    for (uint32_t i = 0; i < f->n; i++) {
        resp_bulk(c->out, name, f->name_n[i]);
        if (q->with_scores)
            resp_double(c->out, 1.0 - (double)f->hits[i].distance / 2);
        name += f->name_n[i];
    }
}

static enum command_result run_vsim(struct client *c)
{
    struct vsim q = {0};
    if (!find_set(c, &q.set))
        return COMMAND_DONE;
    if (!q.set) {
        resp_array(c->out, 0); /* before any argument is looked at, as Redis does */
        return COMMAND_DONE;
    }
    if (!parse_vsim(c, &q))
        return COMMAND_DONE;
    vset_ref(q.set);
    struct store *store = c->server->shard->store;
    worker_leave_shard(c);
    struct found f = {0};
    struct err e = {0};
    int rc = search(&q, &f, c->arena, &e);
    if (rc == 0 && !store_healthy(store))
        rc = err_set(&e, KITH_ECORRUPT, "the data file is damaged, see the log and kith-check");
    if (rc == 0)
        reply_found(c, &q, &f);
    else
        reply_err(c, &e);
    buf_deinit(&f.names);
    vset_unref(q.set);
    return COMMAND_DONE;
}

/* --- asking about a set or an element --- */

static enum command_result run_vcard(struct client *c)
{
    struct vset *v;
    if (find_set(c, &v))
        resp_int(c->out, v ? vset_count(v) : 0);
    return COMMAND_DONE;
}

static enum command_result run_vdim(struct client *c)
{
    struct vset *v;
    if (!find_set(c, &v))
        return COMMAND_DONE;
    if (v)
        resp_int(c->out, vset_params(v)->dim);
    else
        resp_error(c->out, "ERR key does not exist");
    return COMMAND_DONE;
}

/* The set of argv[1] and the slot of argv[2]; false when there is none (*error tells whether an
 * error was replied). */
static bool find_element(struct client *c, struct vset **v, uint32_t *slot, bool *error)
{
    struct err e = {0};
    *error = true;
    if (!find_set(c, v))
        return false;
    int rc = *v ? vset_find(*v, c->argv[2], slot, &e) : KITH_ENOTFOUND;
    *error = rc != 0 && rc != KITH_ENOTFOUND;
    if (*error)
        reply_err(c, &e);
    return rc == 0;
}

static enum command_result run_vismember(struct client *c)
{
    struct vset *v;
    uint32_t slot;
    bool error, found = find_element(c, &v, &slot, &error);
    if (!error)
        resp_bool(c->out, found);
    return COMMAND_DONE;
}

static const char *quant_name(enum index_quant q)
{
    return q == INDEX_F32 ? "f32" : "int8";
}

static int reply_raw(struct client *c, struct vset *v, uint32_t slot, struct err *e)
{
    struct index_code code;
    int rc = index_code(vset_index(v), slot, &code, e);
    if (rc != 0)
        return rc;
    bool int8 = vset_params(v)->quant == INDEX_INT8;
    resp_array(c->out, int8 ? 4 : 3);
    resp_simple(c->out, quant_name(vset_params(v)->quant));
    resp_bulk(c->out, code.bytes, code.n_bytes);
    resp_double(c->out, (double)code.norm);
    if (int8)
        resp_double(c->out, (double)code.range);
    return 0;
}

static int reply_vector(struct client *c, struct vset *v, uint32_t slot, struct err *e)
{
    uint32_t dim = vset_params(v)->dim;
    float *values = arena_alloc(c->arena, (size_t)dim * sizeof *values);
    if (!values)
        return err_set(e, KITH_ENOMEM, "out of memory for the vector");
    int rc = index_vector(vset_index(v), slot, values, e);
    if (rc != 0)
        return rc;
    resp_array(c->out, dim);
    for (uint32_t i = 0; i < dim; i++)
        resp_double(c->out, (double)values[i]);
    return 0;
}

static enum command_result run_vemb(struct client *c)
{
    struct vset *v;
    uint32_t slot;
    bool error, raw = c->argc == 4 && slice_is(c->argv[3], "RAW");
    if (c->argc > 4 || (c->argc == 4 && !raw)) {
        resp_error(c->out, c->argc > 4 ? "ERR wrong number of arguments for 'vemb' command"
                                       : "ERR invalid option");
        return COMMAND_DONE;
    }
    if (!find_element(c, &v, &slot, &error)) {
        if (!error)
            resp_null(c->out);
        return COMMAND_DONE;
    }
    struct err e = {0};
    epoch_enter();
    int rc = raw ? reply_raw(c, v, slot, &e) : reply_vector(c, v, slot, &e);
    epoch_exit();
    if (rc != 0)
        reply_err(c, &e);
    return COMMAND_DONE;
}

static void info_str(struct client *c, const char *name, const char *value)
{
    resp_bulk_str(c->out, name);
    resp_bulk_str(c->out, value);
}

static void info_int(struct client *c, const char *name, uint64_t value)
{
    resp_bulk_str(c->out, name);
    resp_int(c->out, (int64_t)value);
}

static enum command_result run_vinfo(struct client *c)
{
    struct vset *v;
    if (!find_set(c, &v))
        return COMMAND_DONE;
    if (!v) {
        resp_null_array(c->out);
        return COMMAND_DONE;
    }
    struct vset_info info;
    struct vset_model model = vset_model(v);
    const struct index_params *p = vset_params(v);
    vset_info(v, &info);
    resp_map(c->out, 14);
    info_str(c, "quant-type", quant_name(p->quant));
    info_int(c, "hnsw-m", p->m);
    info_int(c, "vector-dim", p->dim);
    info_int(c, "projection-input-dim", 0);
    info_int(c, "size", info.count);
    info_int(c, "max-level", info.max_level);
    info_int(c, "attributes-count", 0);
    info_int(c, "vset-uid", vset_id(v));
    info_int(c, "hnsw-max-node-uid", info.max_uid);
    info_int(c, "unlinked", info.n_tail);
    info_int(c, "memory-bytes", info.memory_bytes);
    info_str(c, "model", model.name);
    info_str(c, "model-hash", model.hash);
    info_str(c, "model-pooling", model.pooling);
    return COMMAND_DONE;
}

/* --- VRANDMEMBER --- */

static void reply_names(struct client *c, struct vset *v, const uint32_t *slots, uint32_t n,
                        bool single)
{
    struct buf name;
    buf_init(&name);
    if (!single)
        resp_array(c->out, n);
    for (uint32_t i = 0; i < n; i++) {
        struct err e = {0};
        buf_clear(&name);
        epoch_enter();
        bool ok = vset_name(v, slots[i], &name, &e);
        epoch_exit();
        if (ok)
            resp_bulk(c->out, name.data, name.len);
        else
            resp_null(c->out); /* damaged; the shard is held, so it cannot have been removed */
    }
    buf_deinit(&name);
}

static enum command_result run_vrandmember(struct client *c)
{
    struct vset *v;
    if (c->argc > 3) {
        resp_error(c->out, "ERR wrong number of arguments for 'vrandmember' command");
        return COMMAND_DONE;
    }
    int64_t count = 1;
    bool single = c->argc == 2;
    if (!find_set(c, &v))
        return COMMAND_DONE;
    if (!single && !arg_int(c->argv[2], &count)) {
        resp_error(c->out, "ERR COUNT value is not an integer");
        return COMMAND_DONE;
    }
    if (!v || count == 0) {
        if (single)
            resp_null(c->out);
        else
            resp_array(c->out, 0);
        return COMMAND_DONE;
    }
    bool distinct = count > 0;
    uint64_t want = distinct ? (uint64_t)count : 0 - (uint64_t)count;
    if (distinct && want > vset_count(v))
        want = vset_count(v);
    if (want > UINT32_MAX / sizeof(uint32_t)) {
        resp_errorf(c->out,
                    "ERR COUNT value is out of range: at most %zu elements are returned",
                    UINT32_MAX / sizeof(uint32_t));
        return COMMAND_DONE;
    }
    uint32_t *slots = arena_alloc(c->arena, (size_t)want * sizeof *slots);
    if (!slots) {
        resp_error(c->out, "OOM out of memory for the reply");
        return COMMAND_DONE;
    }
    uint32_t n = vset_random(v, (uint32_t)want, distinct, slots);
    reply_names(c, v, slots, n, single);
    return COMMAND_DONE;
}

const struct command vector_commands[] = {
    {"vadd", -5, CMD_WRITE | CMD_DENYOOM, 1, 1, 1, run_vadd, vector_arg_texts, NULL,
     "vector_set", "8.0.0", "O(log N) with N the elements of the set, in the background",
     "Adds an element to a vector set, or replaces its vector. With TEXT the engine makes the "
     "vector and the text is kept with the element.",
     "key (FP32 blob | VALUES num vector [vector ...] | TEXT text) element [TRUNCATE] [CAS] "
     "[NOQUANT | Q8] [EF build-exploration-factor] [M numlinks]"},
    {"vsim", -4, CMD_READONLY, 1, 1, 1, run_vsim, vector_arg_texts, NULL, "vector_set", "8.0.0",
     "O(log N) with N the elements of the set",
     "Returns the elements most similar to a vector, an element or a text.",
     "key (ELE element | FP32 blob | VALUES num vector [vector ...] | TEXT text) [TRUNCATE] "
     "[WITHSCORES] [COUNT num] [EPSILON delta] [EF search-exploration-factor] [TRUTH] "
     "[NOTHREAD]"},
    {"vrem", 3, CMD_WRITE, 1, 1, 1, run_vrem, NULL, NULL, "vector_set", "8.0.0",
     "O(log N) with N the elements of the set, in the background",
     "Removes an element from a vector set; the last one takes the key with it.",
     "key element"},
    {"vcard", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vcard, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns the number of elements of a vector set.", "key"},
    {"vdim", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vdim, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns the dimension of a vector set.", "key"},
    {"vemb", -3, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vemb, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns the vector of an element, as kept; RAW: the code itself.",
     "key element [RAW]"},
    {"vinfo", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vinfo, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns facts about a vector set.", "key"},
    {"vismember", 3, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vismember, NULL, NULL, "vector_set",
     "8.0.0", "O(1)", "Tells whether an element is in a vector set.", "key element"},
    {"vrandmember", -2, CMD_READONLY, 1, 1, 1, run_vrandmember, NULL, NULL, "vector_set",
     "8.0.0", "O(N) with N the elements returned",
     "Returns random elements: distinct ones, or with repeats where count is negative.",
     "key [count]"},
    {0},
};
