/* Scans: the exact search over every slot, and the search of the tail. */
#include "index/state.h"

enum { SCAN_BATCH = 16 };

struct scan {
    struct index *x;
    const struct code_query *q;
    const struct index_query *query;
    struct keys *out;
    size_t most;
    uint32_t n;
    uint32_t slots[SCAN_BATCH];
    const struct code *codes[SCAN_BATCH];
};

static void scan_flush(struct scan *c)
{
    float distances[SCAN_BATCH];
    code_distances(c->q, c->codes, c->n, distances);
    for (uint32_t i = 0; i < c->n; i++) {
        uint64_t key = key_of(distances[i], c->slots[i]);
        if (c->out->n == c->most && key >= ~c->out->v[0])
            continue;
        if (!c->query->accept || c->query->accept(c->query->arg, c->slots[i]))
            heap_keep(c->out, c->most, key);
    }
    c->n = 0;
}

static int scan_slot(struct scan *c, uint32_t slot, struct err *e)
{
    const struct code *code = index_code_at(c->x, slot, e);
    if (!code)
        return index_damage(e);
    enum code_state state = code_meta_state(code_meta_load(code));
    if (state != CODE_TAIL && state != CODE_LINKED)
        return 0;
    c->slots[c->n] = slot;
    c->codes[c->n] = code;
    if (++c->n == SCAN_BATCH)
        scan_flush(c);
    return 0;
}

int flat_scan(struct index *x, struct index_scratch *s, const struct code_query *q, size_t most,
              const struct index_query *query, struct err *e)
{
    struct scan c = {.x = x, .q = q, .query = query, .out = &s->far, .most = most};
    s->far.n = s->tail.n = 0;
    int rc = keys_reserve(&s->far, most, e);
    for (uint32_t slot = 0, n = index_n_slots(x); rc == 0 && slot < n; slot++)
        rc = scan_slot(&c, slot, e);
    if (rc == 0)
        scan_flush(&c);
    return rc;
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
    /* A head that moved past `end` since it was read makes the difference negative. */
    for (uint32_t left = end - p <= r->cap ? end - p : 0; rc == 0 && left; left--, p++) {
        uint32_t slot = atomic_load_explicit(&r->slots[p & (r->cap - 1)], memory_order_acquire);
        if (slot < n && slot < records_count(x->arrays.codes) && scratch_visit(s, slot))
            rc = scan_slot(&c, slot, e);
    }
    if (rc == 0)
        scan_flush(&c);
    return rc;
}
