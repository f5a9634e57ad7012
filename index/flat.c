/* Scans: the exact search over every slot, and the search of the tail.
 *
 * An exact scan reads its codes once, in order, and waits for memory: 100,000 int8 codes of 384
 * dimensions are 40 MB for one query. The processor's own prefetcher stops at each page, so the
 * scan asks for codes 12 KiB before it needs them (index_scan_lead), into the second-level
 * cache: the first level has too few places to wait in (into it, or with a quarter of the
 * distance, the same scan took 1.5 times as long; without, 2.3 times).
 *
 * With a filter, accept comes before the distance. Where it takes few, only the first line of a
 * code is asked for ahead of time, and the rest when it was taken; those taken are gathered, so
 * that their rows arrive while more are being asked about and go through the kernels four at a
 * time. */
#include "index/state.h"

enum { SCAN_BATCH = 16, LINE = 64 };

struct scan {
    struct index *x;
    const struct code_query *q;
    const struct index_query *query;
    struct keys *out;
    size_t most;
    bool accept_first; /* ask before the distance is computed, or only for what would be kept */
    uint32_t n_seen, n_asked, n_rejected;
    uint32_t n; /* gathered */
    uint32_t slots[SCAN_BATCH];
    const struct code *codes[SCAN_BATCH];
};

static bool scan_accepts(struct scan *c, uint32_t slot)
{
    if (!c->query->accept)
        return true;
    bool yes = c->query->accept(c->query->arg, slot);
    c->n_asked++;
    c->n_rejected += !yes;
    return yes;
}

static void scan_flush(struct scan *c)
{
    float distances[SCAN_BATCH];
    code_distances(c->q, c->codes, c->n, distances);
    c->n_seen += c->n;
    for (uint32_t i = 0; i < c->n; i++) {
        uint64_t key = key_of(distances[i], c->slots[i]);
        if (c->out->n == c->most && key >= ~c->out->v[0])
            continue;
        if (c->accept_first || scan_accepts(c, c->slots[i]))
            heap_keep(c->out, c->most, key);
    }
    c->n = 0;
}

/* Whether most codes are needed whole. */
static bool scan_is_dense(const struct scan *c)
{
    return !c->query->accept || c->n_rejected * 2 <= c->n_asked;
}

static void scan_code(struct scan *c, uint32_t slot, const struct code *code)
{
    enum code_state state = code_meta_state(code_meta_load(code));
    if (state != CODE_TAIL && state != CODE_LINKED)
        return;
    if (c->accept_first) {
        if (!scan_accepts(c, slot))
            return;
        if (!scan_is_dense(c))
            index_prefetch(code, LINE, c->x->arrays.codes->stride);
    }
    c->slots[c->n] = slot;
    c->codes[c->n] = code;
    if (++c->n == SCAN_BATCH)
        scan_flush(c);
}

static void scan_end(struct scan *c)
{
    scan_flush(c);
    c->query->stats->n_visits += c->n_seen;
    c->query->stats->n_rejected += c->n_rejected;
}

/* Walks along the records of an array. */
struct cursor {
    struct records *records;
    uint32_t slot, chunk_end; /* the next, and the first of the next chunk */
    const char *p;
};

static const char *cursor_next(struct cursor *c, struct err *e)
{
    if (c->slot == c->chunk_end) {
        c->p = records_at(c->records, c->slot, e);
        if (!c->p)
            return NULL;
        c->chunk_end = (records_chunk_of(c->records, c->slot) + 1) * c->records->per_chunk;
    }
    const char *at = c->p;
    c->p += c->records->stride;
    c->slot++;
    return at;
}

int flat_scan(struct index *x, struct index_scratch *s, const struct code_query *q, size_t most,
              const struct index_query *query, struct err *e)
{
    struct scan c = {.x = x,
                     .q = q,
                     .query = query,
                     .out = &s->far,
                     .most = most,
                     .accept_first = query->accept};
    struct cursor here = {.records = x->arrays.codes}, ahead = here;
    uint32_t n = index_n_slots(x), stride = x->arrays.codes->stride;
    uint64_t lead = index_scan_lead(x);
    s->far.n = s->tail.n = 0;
    int rc = keys_reserve(&s->far, most, e);
    if (rc != 0)
        return rc;
    while (here.slot < n) {
        while (ahead.slot < n && ahead.slot < here.slot + lead) {
            const char *p = cursor_next(&ahead, e);
            if (!p)
                return index_damage(e);
            index_prefetch(p, 0, scan_is_dense(&c) ? stride : LINE);
        }
        uint32_t slot = here.slot;
        const char *p = cursor_next(&here, e);
        if (!p)
            return index_damage(e);
        scan_code(&c, slot, (const struct code *)(const void *)p);
    }
    scan_end(&c);
    return 0;
}

int tail_scan(struct index *x, struct index_scratch *s, const struct code_query *q, size_t most,
              const struct index_query *query, struct err *e)
{
    struct scan c = {.x = x, .q = q, .query = query, .out = &s->tail, .most = most};
    struct tail_ring *r = tail_ring_now(&x->tail);
    uint32_t end = atomic_load_explicit(&r->end, memory_order_acquire);
    uint32_t p = atomic_load_explicit(&r->head, memory_order_acquire);
    uint32_t n = (uint32_t)s->n_stamps;
    if (p == end)
        return 0;
    int rc = keys_reserve(&s->tail, most, e);
    if (rc != 0)
        return rc;
    /* A head that moved past `end` since it was read makes the difference negative. */
    for (uint32_t left = end - p <= r->cap ? end - p : 0; left; left--, p++) {
        uint32_t slot = atomic_load_explicit(&r->slots[p & (r->cap - 1)], memory_order_acquire);
        if (slot >= n || slot >= records_count(x->arrays.codes) || !scratch_visit(s, slot))
            continue;
        const struct code *code = index_code_at(x, slot, e);
        if (!code)
            return index_damage(e);
        index_prefetch(code, LINE, x->arrays.codes->stride);
        scan_code(&c, slot, code);
    }
    scan_end(&c);
    return 0;
}
