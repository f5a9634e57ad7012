/* Asking about vector sets and their elements: everything that reads one and is no search. All
 * of it runs with the shard entered; slots found there stay what they are until the command
 * ends, and names and codes are read inside an epoch bracket (server/vset.h). */
#include <math.h>
#include <stdio.h>

#include "base/epoch.h"
#include "server/attributes.h"
#include "server/data.h"
#include "server/recall.h"
#include "server/reembed.h"
#include "server/vector_args.h"
#include "server/vset_search.h"

static bool find_set(struct client *c, struct vset **v)
{
    struct key *k;
    if (!data_find_type(c, c->argv[1], OBJECT_VSET, &k))
        return false;
    *v = k ? k->vset : NULL;
    return true;
}

enum found { FOUND, FOUND_NOTHING, FOUND_ERROR /* replied */ };

/* The set of argv[1] and the slot of an element. */
static enum found find_element(struct client *c, struct slice name, struct vset **v,
                               uint32_t *slot)
{
    struct err e = {0};
    if (!find_set(c, v))
        return FOUND_ERROR;
    int rc = *v ? vset_find(*v, name, data_now_ms(c), slot, &e) : KITH_ENOTFOUND;
    if (rc == 0)
        return FOUND;
    if (rc == KITH_ENOTFOUND)
        return FOUND_NOTHING;
    reply_err(c, &e);
    return FOUND_ERROR;
}

static enum command_result wrong_arity(struct client *c)
{
    resp_errorf(c->out, "ERR wrong number of arguments for '%s' command", c->command->name);
    return COMMAND_DONE;
}

static enum command_result out_of_memory(struct client *c)
{
    resp_error(c->out, "OOM out of memory for the reply");
    return COMMAND_DONE;
}

/* A reply that can fail on the way (damage, memory) is made beside the client's output and goes
 * there whole or not at all. */
struct draft {
    struct buf buf;
    struct resp_out out;
};

static void draft_begin(struct draft *d, struct client *c)
{
    buf_init(&d->buf);
    d->out = (struct resp_out){.to = &d->buf, .proto = c->out.proto};
}

static enum command_result draft_end(struct draft *d, struct client *c, int rc,
                                     const struct err *e)
{
    if (rc != 0)
        reply_err(c, e);
    else if (d->buf.failed)
        out_of_memory(c);
    else
        buf_append(c->out.to, d->buf.data, d->buf.len);
    buf_deinit(&d->buf);
    return COMMAND_DONE;
}

/* --- VCARD, VDIM, VISMEMBER --- */

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
        resp_int(c->out, vset_params(v)->index.dim);
    else
        resp_error(c->out, "ERR key does not exist");
    return COMMAND_DONE;
}

static enum command_result run_vismember(struct client *c)
{
    struct vset *v;
    uint32_t slot;
    enum found found = find_element(c, c->argv[2], &v, &slot);
    if (found != FOUND_ERROR)
        resp_bool(c->out, found == FOUND);
    return COMMAND_DONE;
}

/* --- VEMB --- */

static const char *quant_name(enum index_quant q)
{
    switch (q) {
    case INDEX_F32:
        return "f32";
    case INDEX_INT8:
        return "int8";
    case INDEX_F16:
        return "f16";
    case INDEX_BIN:
        return "bin";
    }
    return "unknown";
}

static int put_raw(struct resp_out out, struct vset *v, uint32_t slot, struct err *e)
{
    struct index_code code;
    enum index_quant quant = vset_params(v)->index.quant;
    int rc = index_code(vset_index(v), slot, &code, e);
    if (rc != 0)
        return rc;
    resp_array(out, quant == INDEX_INT8 ? 4 : 3);
    resp_simple(out, quant_name(quant));
    resp_bulk(out, code.bytes, code.n_bytes);
    resp_double(out, (double)code.norm);
    if (quant == INDEX_INT8)
        resp_double(out, (double)code.range);
    return 0;
}

/* room: dim floats */
static int put_vector(struct resp_out out, struct vset *v, uint32_t slot, float *room,
                      struct err *e)
{
    uint32_t dim = vset_params(v)->index.dim;
    int rc = vset_vector(v, slot, room, e);
    if (rc != 0)
        return rc;
    resp_array(out, dim);
    for (uint32_t i = 0; i < dim; i++)
        resp_double(out, (double)room[i]);
    return 0;
}

static float *vector_room(struct client *c, struct vset *v)
{
    return arena_alloc(c->arena, vset_params(v)->index.dim * sizeof(float));
}

static enum command_result run_vemb(struct client *c)
{
    struct vset *v;
    uint32_t slot;
    bool raw = c->argc > 3;
    for (int i = 3; i < c->argc; i++)
        if (!slice_is(c->argv[i], "RAW")) {
            reply_invalid(c, "option", i, "RAW");
            return COMMAND_DONE;
        }
    enum found found = find_element(c, c->argv[2], &v, &slot);
    if (found == FOUND_NOTHING)
        resp_null(c->out);
    if (found != FOUND)
        return COMMAND_DONE;
    float *room = vector_room(c, v);
    if (!room)
        return out_of_memory(c);
    struct err e = {0};
    struct draft d;
    draft_begin(&d, c);
    epoch_enter();
    int rc = raw ? put_raw(d.out, v, slot, &e) : put_vector(d.out, v, slot, room, &e);
    epoch_exit();
    return draft_end(&d, c, rc, &e);
}

/* --- VLINKS --- */

struct vlinks {
    struct vset *v;
    uint32_t slot;
    bool with_scores;
    int64_t now_ms;
    struct index_hit *hits; /* room for 2m */
};

/* One neighbour; false where it is no element any more: removed and not yet unlinked, or its
 * time has come. */
static bool put_neighbour(struct resp_out out, const struct vlinks *l,
                          const struct index_hit *hit, struct buf *name, struct err *e)
{
    int64_t expires_at = vset_expires_at(l->v, hit->slot);
    buf_clear(name);
    if ((expires_at != 0 && expires_at <= l->now_ms) || !vset_name(l->v, hit->slot, name, e))
        return false;
    resp_bulk(out, name->data, name->len);
    if (l->with_scores)
        resp_double(out, vset_score(vset_params(l->v)->index.metric, hit->distance));
    return true;
}

/* The first n hits as one level. */
static int put_level(struct resp_out out, const struct vlinks *l, int64_t n, struct err *e)
{
    struct buf level, name;
    buf_init(&level);
    buf_init(&name);
    struct resp_out to = {.to = &level, .proto = out.proto};
    struct err why = {0};
    size_t shown = 0;
    for (int64_t i = 0; i < n && why.code == 0; i++)
        shown += put_neighbour(to, l, &l->hits[i], &name, &why) ? 1 : 0;
    if (l->with_scores)
        resp_map(out, shown);
    else
        resp_array(out, shown);
    buf_append(out.to, level.data, level.len);
    out.to->failed |= level.failed || name.failed;
    buf_deinit(&level);
    buf_deinit(&name);
    if (why.code != 0 && e)
        *e = why;
    return why.code;
}

/* Highest level first, down to level 0, which every element has, if only without a link. */
static int put_levels(struct resp_out out, const struct vlinks *l, struct err *e)
{
    struct index *x = vset_index(l->v);
    struct index_scratch *s = thread_scratch();
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory for the links");
    uint32_t level = index_info(x).max_level;
    int64_t n = index_links(x, s, l->slot, level, l->hits, e);
    while (n == KITH_ENOTFOUND && level > 0)
        n = index_links(x, s, l->slot, --level, l->hits, e);
    resp_array(out, (size_t)level + 1);
    for (;;) {
        if (n < 0 && n != KITH_ENOTFOUND)
            return (int)n;
        int rc = put_level(out, l, n, e);
        if (rc != 0 || level == 0)
            return rc;
        n = index_links(x, s, l->slot, --level, l->hits, e);
    }
}

static enum command_result run_vlinks(struct client *c)
{
    struct vlinks l = {.with_scores = c->argc == 4, .now_ms = data_now_ms(c)};
    if (c->argc > 4 || (l.with_scores && !slice_is(c->argv[3], "WITHSCORES")))
        return wrong_arity(c);
    enum found found = find_element(c, c->argv[2], &l.v, &l.slot);
    if (found == FOUND_NOTHING)
        resp_null(c->out);
    if (found != FOUND)
        return COMMAND_DONE;
    const struct index_params *p = &vset_params(l.v)->index;
    if (!(l.hits = arena_alloc(c->arena, (size_t)2 * p->m * sizeof *l.hits)))
        return out_of_memory(c);
    struct err e = {0};
    struct draft d;
    int rc;
    draft_begin(&d, c);
    epoch_enter();
    if (p->kind == INDEX_FLAT) { /* no graph: one level without a link */
        resp_array(d.out, 1);
        rc = put_level(d.out, &l, 0, &e);
    } else {
        rc = put_levels(d.out, &l, &e);
    }
    epoch_exit();
    return draft_end(&d, c, rc, &e);
}

/* --- VINFO --- */

static void info_str(struct resp_out out, const char *name, const char *value)
{
    resp_simple(out, name);
    resp_simple(out, value);
}

static void info_int(struct resp_out out, const char *name, uint64_t value)
{
    resp_simple(out, name);
    resp_int(out, (int64_t)value);
}

static const char *metric_name(enum index_metric m)
{
    return m == INDEX_L2 ? "L2" : m == INDEX_IP ? "IP" : "COSINE";
}

static const char *keep_name(enum vset_keep k)
{
    return k == VSET_KEEP_F32 ? "f32" : k == VSET_KEEP_F16 ? "f16" : "none";
}

/* What was measured of the set's recall: of searches as they were asked, and at each ef tried.
 */
static void info_recall(struct resp_out out, struct vset *v)
{
    struct recall_figures f = {.recall_at_10 = NAN};
    recall_figures(vset_recall(v), &f);
    resp_simple(out, "recall-at-10");
    if (isnan(f.recall_at_10))
        resp_null(out);
    else
        resp_double(out, f.recall_at_10);
    info_int(out, "recall-samples", f.n_samples);
    size_t n = 0;
    for (uint32_t i = 0; i < f.n_grid; i++)
        n += isnan(f.grid[i].recall) ? 0 : 1;
    resp_simple(out, "recall-by-ef");
    resp_map(out, n);
    for (uint32_t i = 0; i < f.n_grid; i++) {
        if (isnan(f.grid[i].recall))
            continue;
        resp_int(out, f.grid[i].ef);
        resp_double(out, f.grid[i].recall);
    }
}

static void info_reembed(struct resp_out out, const struct reembed_view *r)
{
    info_str(out, "reembed-state", r->state);
    resp_simple(out, "reembed-model");
    resp_bulk_str(out, r->model);
    info_int(out, "reembed-done", r->n_done);
    info_int(out, "reembed-total", r->n_total);
    resp_simple(out, "reembed-rate");
    resp_double(out, r->rate);
    resp_simple(out, "reembed-error");
    resp_bulk_str(out, r->error);
}

/* Redis' nine fields in Redis' order, then ours. */
static enum command_result run_vinfo(struct client *c)
{
    struct vset *v;
    struct reembed_view reembed;
    if (!find_set(c, &v))
        return COMMAND_DONE;
    if (!v) {
        resp_null_array(c->out);
        return COMMAND_DONE;
    }
    struct vset_info info;
    struct vset_model model = vset_model(v);
    const struct vset_params *p = vset_params(v);
    vset_info(v, &info);
    reembed_look(data_reembed(c), vset_key(v), &reembed);
    resp_map(c->out, 29);
    info_str(c->out, "quant-type", quant_name(p->index.quant));
    info_int(c->out, "hnsw-m", p->index.m);
    info_int(c->out, "vector-dim", p->index.dim);
    info_int(c->out, "projection-input-dim", p->projection_dim);
    info_int(c->out, "size", info.count);
    info_int(c->out, "max-level", info.max_level);
    info_int(c->out, "attributes-count", info.n_attributes);
    info_int(c->out, "vset-uid", vset_id(v));
    info_int(c->out, "hnsw-max-node-uid", info.max_uid);
    info_str(c->out, "metric", metric_name(p->index.metric));
    info_str(c->out, "index", p->index.kind == INDEX_FLAT ? "FLAT" : "HNSW");
    info_str(c->out, "keep", keep_name(p->keep));
    info_int(c->out, "ef-construction", p->index.ef_construction);
    info_int(c->out, "declared", p->declared);
    info_int(c->out, "unlinked", info.n_tail);
    info_int(c->out, "memory-bytes", info.memory_bytes + reembed.memory_bytes);
    info_int(c->out, "expiring", info.n_expiring);
    info_recall(c->out, v);
    resp_simple(c->out, "model");
    resp_bulk_str(c->out, model.name);
    resp_simple(c->out, "model-hash");
    resp_bulk_str(c->out, model.hash);
    resp_simple(c->out, "model-pooling");
    resp_bulk_str(c->out, model.pooling);
    info_reembed(c->out, &reembed);
    return COMMAND_DONE;
}

/* --- VGETATTR, VGET --- */

/* The JSON as it came, or null. Inside an epoch. */
static int put_attributes(struct resp_out out, struct vset *v, uint32_t slot, struct err *e)
{
    size_t n;
    const void *encoded;
    int rc = vset_read_attributes(v, slot, &encoded, &n, e);
    if (rc != 0)
        return rc;
    struct slice json = encoded ? attributes_json(encoded, n) : (struct slice){0};
    if (encoded)
        resp_bulk(out, json.p, json.n);
    else
        resp_null(out);
    return 0;
}

static enum command_result run_vgetattr(struct client *c)
{
    struct vset *v;
    uint32_t slot;
    enum found found = find_element(c, c->argv[2], &v, &slot);
    if (found == FOUND_NOTHING)
        resp_null(c->out);
    if (found != FOUND)
        return COMMAND_DONE;
    struct err e = {0};
    epoch_enter();
    int rc = put_attributes(c->out, v, slot, &e);
    epoch_exit();
    if (rc != 0)
        reply_err(c, &e);
    return COMMAND_DONE;
}

enum field { FIELD_VECTOR = 1, FIELD_ATTRS = 2, FIELD_TEXT = 4, FIELD_TTL = 8 };
enum { FIELD_ALL = FIELD_VECTOR | FIELD_ATTRS | FIELD_TEXT | FIELD_TTL };

static const struct {
    enum field field;
    const char *word, *name;
} fields[] = {{FIELD_VECTOR, "VECTOR", "vector"},
              {FIELD_ATTRS, "ATTRS", "attrs"},
              {FIELD_TEXT, "TEXT", "text"},
              {FIELD_TTL, "TTL", "ttl"}};
enum { N_FIELDS = sizeof fields / sizeof *fields };

/* VGET key n element[n] [VECTOR] [ATTRS] [TEXT] [TTL] */
static bool parse_vget(struct client *c, int *n, unsigned *wanted)
{
    int64_t count;
    if (!arg_int(c->argv[2], &count) || count < 1 || count > c->argc - 3) {
        resp_errorf(c->out, "ERR VGET takes the number of elements, 1 to the %d that follow",
                    c->argc - 3);
        return false;
    }
    *n = (int)count;
    *wanted = 0;
    for (int i = 3 + *n; i < c->argc; i++) {
        unsigned field = 0;
        for (size_t k = 0; k < N_FIELDS; k++)
            if (slice_is(c->argv[i], fields[k].word))
                field = fields[k].field;
        if (!field) {
            struct slice a = c->argv[i];
            resp_errorf(c->out,
                        "ERR VGET has the fields VECTOR, ATTRS, TEXT and TTL, not '%.*s'",
                        slice_shown(a), a.p);
            return false;
        }
        *wanted |= field;
    }
    if (*wanted == 0)
        *wanted = FIELD_ALL;
    return true;
}

static int put_text(struct resp_out out, struct vset *v, uint32_t slot, struct err *e)
{
    struct buf text;
    buf_init(&text);
    int rc = vset_text(v, slot, &text, e);
    if (rc == 0)
        resp_bulk(out, text.data, text.len);
    else if (rc == KITH_ENOTFOUND)
        resp_null(out);
    out.to->failed |= text.failed;
    buf_deinit(&text);
    return rc == KITH_ENOTFOUND ? 0 : rc;
}

/* Seconds as TTL rounds them; -1: never. */
static int64_t seconds_left(struct vset *v, uint32_t slot, int64_t now_ms)
{
    int64_t at = vset_expires_at(v, slot);
    return at == 0 ? -1 : at <= now_ms ? 0 : (at - now_ms + 500) / 1000;
}

struct vget {
    struct vset *v;
    unsigned wanted;
    int64_t now_ms;
    float *room;
};

static int put_fields(struct resp_out out, const struct vget *g, uint32_t slot, struct err *e)
{
    int rc = 0;
    resp_map(out, (size_t)__builtin_popcount(g->wanted));
    for (size_t k = 0; k < N_FIELDS && rc == 0; k++) {
        if (!(g->wanted & fields[k].field))
            continue;
        resp_bulk_str(out, fields[k].name);
        switch (fields[k].field) {
        case FIELD_VECTOR:
            rc = put_vector(out, g->v, slot, g->room, e);
            break;
        case FIELD_ATTRS:
            rc = put_attributes(out, g->v, slot, e);
            break;
        case FIELD_TEXT:
            rc = put_text(out, g->v, slot, e);
            break;
        case FIELD_TTL:
            resp_int(out, seconds_left(g->v, slot, g->now_ms));
            break;
        }
    }
    return rc;
}

static enum command_result run_vget(struct client *c)
{
    struct vget g = {.now_ms = data_now_ms(c)};
    int n;
    if (!parse_vget(c, &n, &g.wanted) || !find_set(c, &g.v))
        return COMMAND_DONE;
    if (g.v && !(g.room = vector_room(c, g.v)))
        return out_of_memory(c);
    struct err e = {0};
    struct draft d;
    draft_begin(&d, c);
    resp_array(d.out, (size_t)n);
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        uint32_t slot;
        rc = g.v ? vset_find(g.v, c->argv[3 + i], g.now_ms, &slot, &e) : KITH_ENOTFOUND;
        if (rc == 0) {
            epoch_enter();
            rc = put_fields(d.out, &g, slot, &e);
            epoch_exit();
        } else if (rc == KITH_ENOTFOUND) {
            resp_null(d.out);
            rc = 0;
        }
    }
    return draft_end(&d, c, rc, &e);
}

/* --- VRANDMEMBER, VRANGE --- */

/* The shard is held, so none of the slots can have been removed since they were found. */
static enum command_result reply_names(struct client *c, struct vset *v, const uint32_t *slots,
                                       int64_t n, bool single)
{
    struct err e = {0};
    struct draft d;
    struct buf name;
    buf_init(&name);
    draft_begin(&d, c);
    if (!single)
        resp_array(d.out, (size_t)n);
    int rc = 0;
    epoch_enter();
    for (int64_t i = 0; i < n && rc == 0; i++) {
        buf_clear(&name);
        if (vset_name(v, slots[i], &name, &e))
            resp_bulk(d.out, name.data, name.len);
        else
            rc = e.code != 0 ? e.code
                             : err_set(&e, KITH_ECORRUPT, "an element's slot has no name");
    }
    epoch_exit();
    d.buf.failed |= name.failed;
    buf_deinit(&name);
    return draft_end(&d, c, rc, &e);
}

static enum command_result run_vrandmember(struct client *c)
{
    enum { MOST = UINT32_MAX / sizeof(uint32_t) };
    struct vset *v;
    int64_t count = 1;
    bool single = c->argc == 2;
    if (c->argc > 3)
        return wrong_arity(c);
    if (!single && !arg_int(c->argv[2], &count)) {
        resp_errorf(c->out, "ERR COUNT value is not an integer: '%.*s'",
                    slice_shown(c->argv[2]), c->argv[2].p);
        return COMMAND_DONE;
    }
    if (count == 0) {
        resp_array(c->out, 0);
        return COMMAND_DONE;
    }
    if (!find_set(c, &v))
        return COMMAND_DONE;
    if (!v || vset_count(v) == 0) {
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
    if (want > MOST) {
        resp_errorf(c->out,
                    "ERR COUNT value is out of range: at most %zu elements are returned",
                    (size_t)MOST);
        return COMMAND_DONE;
    }
    uint32_t *slots = arena_alloc(c->arena, (size_t)want * sizeof *slots);
    if (!slots)
        return out_of_memory(c);
    uint32_t n = vset_random(v, data_now_ms(c), (uint32_t)want, distinct, slots);
    if (single && n == 0) {
        resp_null(c->out);
        return COMMAND_DONE;
    }
    return reply_names(c, v, slots, n, single);
}

/* "-", "+", "[name" or "(name". */
static bool parse_bound(struct slice a, struct vset_bound *b, char *sign)
{
    *sign = a.n == 1 && (a.p[0] == '-' || a.p[0] == '+') ? a.p[0] : '\0';
    *b = (struct vset_bound){.all = *sign != '\0'};
    if (b->all)
        return true;
    if (a.n < 2 || (a.p[0] != '[' && a.p[0] != '('))
        return false;
    b->open = a.p[0] == '(';
    b->name = (struct slice){.p = a.p + 1, .n = a.n - 1};
    return true;
}

struct vrange {
    struct vset_bound from, to;
    int64_t count;
};

static bool parse_vrange(struct client *c, struct vrange *r)
{
    char from_sign, to_sign;
    static const char bounds[] = "[name, (name, - or +";
    r->count = -1;
    if (c->argc == 5 && !arg_int(c->argv[4], &r->count))
        return reply_invalid(c, "COUNT value", 4, "a whole number");
    if (!parse_bound(c->argv[2], &r->from, &from_sign))
        return reply_invalid(c, "start range format", 2, bounds);
    if (!parse_bound(c->argv[3], &r->to, &to_sign))
        return reply_invalid(c, "end range format", 3, bounds);
    if (from_sign == '+' || to_sign == '-') {
        resp_error(c->out, "ERR '-' can only be used as first argument, '+' only as second");
        return false;
    }
    return true;
}

static enum command_result run_vrange(struct client *c)
{
    struct vset *v;
    struct vrange r;
    if (c->argc > 5)
        return wrong_arity(c);
    if (!parse_vrange(c, &r) || !find_set(c, &v))
        return COMMAND_DONE;
    uint32_t limit = v ? vset_count(v) : 0;
    if (r.count >= 0 && r.count < limit)
        limit = (uint32_t)r.count;
    if (limit == 0) {
        resp_array(c->out, 0);
        return COMMAND_DONE;
    }
    uint32_t *slots = arena_alloc(c->arena, (size_t)limit * sizeof *slots);
    if (!slots)
        return out_of_memory(c);
    struct err e = {0};
    int64_t n = vset_range(v, data_now_ms(c), &r.from, &r.to, limit, slots, &e);
    if (n >= 0)
        return reply_names(c, v, slots, n, false);
    reply_err(c, &e);
    return COMMAND_DONE;
}

const struct command vset_read_commands[] = {
    {"vcard", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vcard, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns the number of elements of a vector set.", "key"},
    {"vdim", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vdim, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns the dimension of a vector set: the reduced one where REDUCE made it.",
     "key"},
    {"vemb", -3, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vemb, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns the vector of an element, as kept; RAW: the code itself.",
     "key element [RAW]"},
    {"vlinks", -3, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vlinks, NULL, NULL, "vector_set",
     "8.0.0", "O(1)",
     "Returns the neighbours of an element in the graph, level by level, the highest first.",
     "key element [WITHSCORES]"},
    {"vinfo", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vinfo, NULL, NULL, "vector_set", "8.0.0",
     "O(1)", "Returns facts about a vector set.", "key"},
    {"vgetattr", 3, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vgetattr, NULL, NULL, "vector_set",
     "8.0.0", "O(1)", "Returns the attributes of an element, as they came.", "key element"},
    {"vget", -4, CMD_READONLY, 1, 1, 1, run_vget, NULL, NULL, "vector_set", "kith 0.1.0",
     "O(N) with N the elements asked for",
     "Returns what is kept of several elements: vector, attributes, text and the seconds until "
     "each expires (-1: never); all of them, or the ones named. Nil where there is no such "
     "element.",
     "key num element [element ...] [VECTOR] [ATTRS] [TEXT] [TTL]"},
    {"vismember", 3, CMD_READONLY | CMD_FAST, 1, 1, 1, run_vismember, NULL, NULL, "vector_set",
     "8.0.0", "O(1)", "Tells whether an element is in a vector set.", "key element"},
    {"vrandmember", -2, CMD_READONLY, 1, 1, 1, run_vrandmember, NULL, NULL, "vector_set",
     "8.0.0", "O(N) with N the elements returned",
     "Returns random elements: distinct ones, or with repeats where count is negative.",
     "key [count]"},
    {"vrange", -4, CMD_READONLY, 1, 1, 1, run_vrange, NULL, NULL, "vector_set", "8.4.0",
     "O(log K + M) with K the elements of the set and M the elements returned; the first one "
     "of a set sorts its names",
     "Returns elements by the order of their names: [name and (name are bounds with and "
     "without "
     "the name, - and + the ends.",
     "key min max [count]"},
    {0},
};
