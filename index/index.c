/* The index as its owner sees it: open, add, remove, save; search and the link step hand on to
 * the files below.
 *
 * What index_save writes, little-endian:
 *
 *   { u32 'KIDX' | u32 version 2 | u32 kind | u32 quant | u32 dim | u32 m | u32 entry slot |
 *     u32 entry level | u32 n_linked | u32 n_upper | u32 upper_free |
 *     varint n, u32 slots[n]: the tail | varint n, u32 slots[n]: removed, not yet free |
 *     u32 metric, from version 2 on (before, all was COSINE) }
 *
 * A later version adds fields at the end and is read by its number; an unknown one is refused.
 * The state of each slot is in its code, so the two lists are only where to begin, and a
 * removal that was half done (links gone, slot not yet free) is simply done again. */
#include "index/index.h"

#include <math.h>

#include "base/hash.h"
#include "index/hnsw.h"

enum { STATE_MAGIC = 0x5844494b, STATE_VERSION = 2, TAIL_MAX_DEFAULT = 4096, FREE_BATCH = 64 };

uint32_t index_code_stride(const struct index_params *p)
{
    return CODE_HEADER_BYTES + ((uint32_t)code_bytes(p->quant, p->dim) + 3) / 4 * 4;
}

uint32_t index_links_stride(const struct index_params *p)
{
    return p->kind == INDEX_HNSW ? LINKS_HEADER_BYTES + 8 * p->m : 0;
}

uint32_t index_upper_stride(const struct index_params *p)
{
    return p->kind == INDEX_HNSW ? UPPER_HEADER_BYTES + 4 * p->m : 0;
}

static int check_params(const struct index_params *p, const struct index_arrays *a,
                        struct err *e)
{
    bool hnsw = p->kind == INDEX_HNSW;
    if (!hnsw && p->kind != INDEX_FLAT)
        return err_set(e, KITH_EINVAL, "index kind %d is not known", (int)p->kind);
    if (p->quant < INDEX_F32 || p->quant > INDEX_BIN)
        return err_set(e, KITH_EINVAL, "quantization %d is not known", (int)p->quant);
    if (p->metric > INDEX_IP)
        return err_set(e, KITH_EINVAL, "metric %d is not known", (int)p->metric);
    if (p->dim < 1 || p->dim > INDEX_DIM_MAX)
        return err_set(e, KITH_EINVAL, "%u dimensions; 1 to %d are possible", p->dim,
                       INDEX_DIM_MAX);
    if (hnsw && (p->m < INDEX_M_MIN || p->m > INDEX_M_MAX))
        return err_set(e, KITH_EINVAL, "m is %u; %d to %d are possible", p->m, INDEX_M_MIN,
                       INDEX_M_MAX);
    if (hnsw && p->ef_construction > INDEX_EF_MAX)
        return err_set(e, KITH_EINVAL, "ef_construction is %u; up to %d is possible",
                       p->ef_construction, INDEX_EF_MAX);
    if (!a->codes || a->codes->stride != index_code_stride(p) ||
        (hnsw && (!a->links || a->links->stride != index_links_stride(p) || !a->upper ||
                  a->upper->stride != index_upper_stride(p))))
        return err_set(e, KITH_EINVAL, "the arrays do not have the strides of the index");
    return 0;
}

static int load_state(struct index *x, const void *state, size_t bytes, struct err *e)
{
    struct reader r = reader_of(state, bytes);
    if (read_u32(&r) != STATE_MAGIC)
        return err_set(e, KITH_ECORRUPT, "the saved state is not that of an index");
    uint32_t version = read_u32(&r);
    if (version < 1 || version > STATE_VERSION)
        return err_set(e, KITH_EFORMAT, "index state of version %u; this build reads 1 to %d",
                       version, STATE_VERSION);
    if (read_u32(&r) != (uint32_t)x->params.kind || read_u32(&r) != (uint32_t)x->params.quant ||
        read_u32(&r) != x->params.dim || read_u32(&r) != x->params.m)
        return err_set(e, KITH_ECORRUPT, "the saved state is of an index of other parameters");
    uint32_t n = index_n_slots(x), slot = read_u32(&r), level = read_u32(&r);
    x->entry = entry_pack(level, slot);
    x->n_linked = read_u32(&r);
    x->n_upper = read_u32(&r);
    x->upper_free = read_u32(&r);
    uint32_t upper_have = x->arrays.upper ? records_count(x->arrays.upper) : 0;
    if (r.failed || (slot != INDEX_SLOT_NONE && slot >= n) || level > CODE_LEVEL_MAX ||
        x->n_linked > n || x->n_upper > upper_have || x->upper_free > upper_have)
        return err_set(e, KITH_ECORRUPT,
                       "the saved state of the index does not fit its arrays");
    for (int list = 0; list < 2; list++) {
        for (uint64_t left = read_varint(&r); left && !r.failed; left--) {
            slot = read_u32(&r);
            if (r.failed || slot >= n)
                return err_set(e, KITH_ECORRUPT, "the saved state names slot %u of %u", slot,
                               n);
            int rc = list == 0 ? tail_reserve(&x->tail, e) : removal_enqueue(x, slot, e);
            if (rc != 0)
                return rc;
            if (list == 0)
                tail_push(&x->tail, slot);
        }
    }
    uint32_t metric = version >= 2 ? read_u32(&r) : INDEX_COSINE;
    if (!reader_done(&r))
        return err_set(e, KITH_ECORRUPT, "the saved state of the index has a wrong length");
    if (metric != (uint32_t)x->params.metric)
        return err_set(e, KITH_ECORRUPT, "the saved state is of an index of another metric");
    return 0;
}

int index_open(struct index **out, const struct index_params *params,
               const struct index_arrays *arrays, const struct index_options *options,
               const void *state, size_t state_bytes, struct err *e)
{
    int rc = check_params(params, arrays, e);
    if (rc != 0)
        return rc;
    if (!options || !options->owner)
        return err_set(e, KITH_EINVAL, "an index needs its owner's lock");
    struct index *x = mem_calloc(1, sizeof *x);
    if (!x)
        return err_set(e, KITH_ENOMEM, "out of memory for an index");
    x->params = *params;
    x->arrays = *arrays;
    x->options = *options;
    if (x->options.tail_max == 0)
        x->options.tail_max = TAIL_MAX_DEFAULT;
    if (x->params.ef_construction == 0)
        x->params.ef_construction = 200;
    if (params->kind == INDEX_FLAT) {
        x->arrays.links = x->arrays.upper = NULL;
    } else {
        x->max0 = 2 * params->m;
        x->max = params->m;
    }
    x->entry = entry_pack(0, INDEX_SLOT_NONE);
    if ((rc = tail_init(&x->tail, e)) != 0)
        goto fail;
    if (state && (rc = load_state(x, state, state_bytes, e)) != 0)
        goto fail_tail;
    *out = x;
    return 0;
fail_tail:
    tail_deinit(&x->tail);
    removal_deinit(x);
fail:
    mem_free(x);
    return rc;
}

void index_free(struct index *x)
{
    if (!x)
        return;
    tail_deinit(&x->tail);
    removal_deinit(x);
    mem_free(x);
}

const struct index_params *index_params(const struct index *x)
{
    return &x->params;
}

/* --- the owner's side --- */

int index_meta(struct index *x, uint32_t slot, uint32_t *meta, struct err *e)
{
    *meta = 0;
    if (slot >= index_n_slots(x))
        return 0;
    const struct code *c = index_code_at(x, slot, e);
    if (!c)
        return index_damage(e);
    *meta = code_meta_load(c);
    return 0;
}

int index_set_state(struct index *x, uint32_t slot, enum code_state state, struct err *e)
{
    struct code *c = (struct code *)(void *)records_writable(x->arrays.codes, slot, e);
    if (!c)
        return index_damage(e);
    uint32_t meta = code_meta_load(c);
    meta = code_meta(state, code_meta_level(meta), code_meta_sum(meta));
    atomic_store_explicit(&c->meta, meta, memory_order_release);
    return 0;
}

/* floor(-ln(u) / ln(m)) for u = hash / 2^64, by comparing u with 1/m, 1/m^2, … in whole
 * numbers, so that every machine gets the same level. */
static unsigned level_of(const struct index *x, uint64_t seed)
{
    uint64_t hash = hash_mix(seed), bound = UINT64_MAX / x->params.m;
    unsigned level = 0;
    while (hash < bound && level < CODE_LEVEL_MAX) {
        level++;
        bound /= x->params.m;
    }
    return level;
}

int index_add(struct index *x, uint32_t slot, const float *vector, uint64_t level_seed,
              struct err *e)
{
    if (slot >= index_n_slots(x))
        return err_set(e, KITH_EINVAL, "slot %u is past the arrays' %u records", slot,
                       index_n_slots(x));
    if (!isfinite(vector_norm(vector, x->params.dim)))
        return err_set(e, KITH_EINVAL,
                       "the vector has an element that is not finite, or is too "
                       "long to be measured");
    bool hnsw = x->params.kind == INDEX_HNSW;
    uint32_t meta;
    int rc = index_meta(x, slot, &meta, e);
    if (rc != 0)
        return rc;
    if (code_meta_state(meta) != CODE_FREE)
        return err_set(e, KITH_EEXISTS, "slot %u is in use", slot);
    float *unit = mem_alloc_n(x->params.dim, sizeof *unit);
    if (!unit)
        return err_set(e, KITH_ENOMEM, "out of memory for a vector");
    if (hnsw && (rc = tail_reserve(&x->tail, e)) != 0)
        goto done;
    struct code *c = (struct code *)(void *)records_writable(x->arrays.codes, slot, e);
    if (!c) {
        rc = index_damage(e);
        goto done;
    }
    int32_t sum = code_encode(c, &x->params, vector, unit);
    meta = code_meta(hnsw ? CODE_TAIL : CODE_LINKED, hnsw ? level_of(x, level_seed) : 0, sum);
    atomic_store_explicit(&c->meta, meta, memory_order_release);
    if (hnsw)
        tail_push(&x->tail, slot);
    else
        atomic_fetch_add(&x->n_linked, 1);
done:
    mem_free(unit);
    return rc;
}

int index_prepare_remove(struct index *x, uint32_t slot, struct err *e)
{
    uint32_t meta;
    int rc = index_meta(x, slot, &meta, e);
    if (rc != 0)
        return rc;
    enum code_state state = code_meta_state(meta);
    if (state != CODE_TAIL && state != CODE_LINKED)
        return err_set(e, KITH_ENOTFOUND, "slot %u holds no vector", slot);
    if (!records_writable(x->arrays.codes, slot, e))
        return index_damage(e);
    return removal_reserve(x, e);
}

int index_remove(struct index *x, uint32_t slot, struct err *e)
{
    /* So that nothing can fail once the removal is queued. */
    int rc = index_prepare_remove(x, slot, e);
    uint32_t meta = 0;
    if (rc != 0 || (rc = index_meta(x, slot, &meta, e)) != 0 ||
        (rc = removal_enqueue(x, slot, e)) != 0 ||
        (rc = index_set_state(x, slot, CODE_REMOVED, e)) != 0)
        return rc;
    if (code_meta_state(meta) == CODE_TAIL)
        tail_drop(&x->tail, slot);
    else
        atomic_fetch_sub(&x->n_linked, 1);
    return 0;
}

void index_save(struct index *x, struct buf *out)
{
    uint64_t entry = index_entry(x);
    buf_u32(out, STATE_MAGIC);
    buf_u32(out, STATE_VERSION);
    buf_u32(out, (uint32_t)x->params.kind);
    buf_u32(out, (uint32_t)x->params.quant);
    buf_u32(out, x->params.dim);
    buf_u32(out, x->params.m);
    buf_u32(out, entry_slot(entry));
    buf_u32(out, entry_level(entry));
    buf_u32(out, atomic_load(&x->n_linked));
    buf_u32(out, x->n_upper);
    buf_u32(out, x->upper_free);
    tail_save(&x->tail, out);
    removal_save(x, out);
    buf_u32(out, (uint32_t)x->params.metric);
}

/* --- linking --- */

bool index_tail_full(const struct index *x)
{
    return tail_count(&x->tail) >= x->options.tail_max;
}

bool index_link_pending(const struct index *x)
{
    struct index *own = (struct index *)(uintptr_t)x;
    return atomic_load(&own->tail.n_waiting) || atomic_load(&own->n_queued) ||
           atomic_load(&own->n_to_free);
}

/* Takes the next thing to do into j. Owner. */
static bool claim(struct index *x, struct link_job *j)
{
    j->kind = LINK_REMOVE;
    if (!removal_claim(x, &j->slot)) {
        if (!tail_claim(&x->tail, &j->slot))
            return false;
        j->kind = LINK_INSERT;
    }
    j->start = ++x->job_clock;
    j->next = x->jobs;
    x->jobs = j;
    return true;
}

static void leave(struct index *x, struct link_job *j)
{
    struct link_job **at = &x->jobs;
    while (*at != j)
        at = &(*at)->next;
    *at = j->next;
}

static int prepare(struct index *x, struct index_scratch *s, struct link_job *j, struct err *e)
{
    if (x->params.kind == INDEX_FLAT)
        return 0;
    return j->kind == LINK_INSERT ? link_prepare(x, s, j, e) : unlink_prepare(x, s, j, e);
}

/* 1 done, 0 to be prepared again, or a negative code. */
static int commit(struct index *x, struct index_scratch *s, struct link_job *j, struct err *e)
{
    if (j->kind == LINK_INSERT)
        return link_commit(x, s, j, e);
    uint32_t meta;
    int rc = index_meta(x, j->slot, &meta, e);
    if (rc < 0)
        return rc;
    if (code_meta_state(meta) != CODE_REMOVED) {
        removal_forget(x); /* only a wrong file can have named it */
        return 1;
    }
    if (x->params.kind == INDEX_HNSW && (rc = unlink_commit(x, s, j, meta, e)) < 0)
        return rc;
    removal_bury(x, j->slot);
    return 1;
}

/* Prepares without the lock and commits with it, again where the commit says so. */
static int work(struct index *x, struct index_scratch *s, struct link_job *j, struct err *e)
{
    for (;;) {
        int rc = prepare(x, s, j, e);
        pthread_mutex_lock(x->options.owner);
        if (rc == 0)
            rc = commit(x, s, j, e);
        if (rc != 0)
            leave(x, j);
        if (rc < 0 && j->kind == LINK_INSERT)
            tail_unclaim(&x->tail, j->slot);
        else if (rc < 0)
            removal_give_back(x, j->slot);
        pthread_mutex_unlock(x->options.owner);
        if (rc != 0)
            return rc;
    }
}

int index_link(struct index *x, struct index_scratch *s, struct err *e)
{
    int rc = scratch_fit(s, x->params.dim, index_batch_size(x), e);
    if (rc != 0)
        return rc;
    if (!s->job && !(s->job = mem_calloc(1, sizeof *s->job)))
        return err_set(e, KITH_ENOMEM, "out of memory for a link job");
    pthread_mutex_lock(x->options.owner);
    bool claimed = false;
    if (x->n_buried < FREE_BATCH || (rc = removal_reclaim(x, e)) == 0) {
        claimed = claim(x, s->job);
        if (!claimed && rc == 0)
            rc = removal_reclaim(x, e);
    }
    pthread_mutex_unlock(x->options.owner);
    if (!claimed)
        return rc > 0 ? 1 : rc;
    return work(x, s, s->job, e);
}

/* --- searching --- */

/* The two heaps, nearest first, into hits. */
static int64_t collect(struct index_scratch *s, size_t k, struct index_hit *hits, struct err *e)
{
    int rc = heap_drain(&s->far, &s->list, e);
    if (rc == 0)
        rc = heap_drain(&s->tail, &s->near, e);
    if (rc != 0)
        return rc;
    size_t a = 0, b = 0, n = 0;
    while (n < k && (a < s->list.n || b < s->near.n)) {
        bool first = b == s->near.n || (a < s->list.n && s->list.v[a] < s->near.v[b]);
        uint64_t key = first ? s->list.v[a++] : s->near.v[b++];
        hits[n++] = (struct index_hit){key_slot(key), key_distance(key)};
    }
    return (int64_t)n;
}

int64_t index_search(struct index *x, struct index_scratch *s, const struct index_query *q,
                     struct index_hit *hits, struct err *e)
{
    uint32_t n = index_n_slots(x);
    struct index_search_stats stats = {0};
    struct index_query own = *q; /* with stats in any case */
    struct code_query query;
    int rc = index_make_query(x, s, q, &query, e);
    if (rc != 0)
        return rc;
    size_t k = q->k < n ? q->k : n, ef = q->ef < n ? q->ef : n;
    own.stats = &stats;
    s->far.n = s->tail.n = 0;
    if (k == 0)
        rc = 0;
    else if (q->exact || x->params.kind == INDEX_FLAT)
        rc = flat_scan(x, s, &query, k, &own, e);
    else
        rc = hnsw_search(x, s, &query, k, ef < k ? k : ef, &own, e);
    if (q->stats)
        *q->stats = stats;
    return rc < 0 ? rc : collect(s, k, hits, e);
}

int index_vector(struct index *x, uint32_t slot, float *out, struct err *e)
{
    const struct code *c;
    int rc = index_live_code(x, slot, &c, e);
    if (rc == 0)
        code_decode(c, &x->params, out);
    return rc;
}

int index_code(struct index *x, uint32_t slot, struct index_code *out, struct err *e)
{
    const struct code *c;
    int rc = index_live_code(x, slot, &c, e);
    if (rc == 0)
        *out = (struct index_code){c->bytes, code_bytes(x->params.quant, x->params.dim),
                                   c->norm, x->params.quant == INDEX_INT8 ? c->range : 0};
    return rc;
}

int64_t index_links(struct index *x, struct index_scratch *s, uint32_t slot, uint32_t level,
                    struct index_hit *hits, struct err *e)
{
    const struct code *c;
    struct hnsw_list list;
    struct code_query q;
    int rc = index_live_code(x, slot, &c, e);
    if (rc == 0)
        rc = scratch_fit(s, x->params.dim, index_batch_size(x), e);
    if (rc != 0)
        return rc;
    unsigned top = code_meta_level(code_meta_load(c));
    if (x->params.kind == INDEX_FLAT || level > top)
        return err_set(e, KITH_ENOTFOUND, "slot %u does not reach level %u", slot, level);
    if ((rc = hnsw_list_at(x, level, slot, &list, e)) <= 0)
        return rc;
    uint32_t n = hnsw_list_read(&list, index_n_slots(x), s->slots);
    for (uint32_t i = 0; i < n; i++)
        if (!(s->codes[i] = index_code_at(x, s->slots[i], e)))
            return index_damage(e);
    code_query_code(&q, &x->params, c, s->query_row);
    code_distances(&q, s->codes, n, s->distances);
    if ((rc = keys_reserve(&s->list, n, e)) != 0)
        return rc;
    s->list.n = 0;
    for (uint32_t i = 0; i < n; i++)
        if (code_meta_state(code_meta_load(s->codes[i])) == CODE_LINKED)
            s->list.v[s->list.n++] = key_of(s->distances[i], s->slots[i]);
    keys_sort(&s->list);
    for (size_t i = 0; i < s->list.n; i++)
        hits[i] = (struct index_hit){key_slot(s->list.v[i]), key_distance(s->list.v[i])};
    return (int64_t)s->list.n;
}

struct index_info index_info(const struct index *x)
{
    struct index *own = (struct index *)(uintptr_t)x;
    uint64_t entry = index_entry(own);
    return (struct index_info){.n_linked = atomic_load(&own->n_linked),
                               .n_tail = tail_count(&x->tail),
                               .n_removing = atomic_load(&own->n_removing),
                               .max_level = entry_none(entry) ? 0 : entry_level(entry),
                               .entry = entry_slot(entry)};
}

size_t index_heap_bytes(const struct index *x)
{
    return sizeof *x + tail_heap_bytes(&x->tail) + x->queue.cap * sizeof *x->queue.v +
           x->cap_buried * sizeof *x->buried;
}
