/* The search of the graph (algorithms 2 and 5 of the paper).
 *
 * A search waits for memory: each expanded slot brings up to 2m codes from anywhere. So one
 * expansion first collects its unvisited links, asks for all their codes at once (prefetch),
 * and only then computes, four codes at a time; the list of a slot is asked for when it becomes
 * a candidate, and again when it is likely to be next. They are asked for into the second-level
 * cache, for the reason that flat.c gives (100,000 x 384 int8, ef 181: 165 us instead of 260).
 * Candidates and results are heaps of (distance, slot) packed in an integer.
 *
 * Removed slots are still walked through until they are unlinked, and so are those a filter
 * rejects: they lead to others, but take no place among the results. So the graph stays as
 * connected as without a filter, and accept is asked only about slots that would be kept: one
 * in seven of the codes looked at.
 *
 * Rejected: to step over those that a filter rejects to their neighbours, and to compute
 * distances for those that pass alone (ACORN-1, Patel et al. 2024). It saves distances and pays
 * with questions, which cost more. 100,000 x 384 int8, selectivity 0.01: ef 10 by the plain
 * rule looks at 17,500 codes, asks 2,700 times and finds 0.97; stepping over needs ef 100 and
 * 51,000 questions to find 0.91. At 0.1, for 0.88: 5,000 codes and 700 questions against 2,000
 * and 20,000.
 *
 * Rejected, all measured on 100,000 x 384 int8 at ef 181, where it takes 160 us: codes in two
 * planes of half bytes, of which the lower is read for near ones only (halves the lines a code
 * takes, but random lines cost less the more of them lie side by side, 22 ns for 4 and 27 for
 * 7, and unpacking costs more than that: 190 us); two slots expanded at once, or the next one's
 * codes asked for while these are compared (2 % at best: what is short is lines in flight, not
 * time to ask for them); to stop when the best ten have not changed for long (less found for
 * the same codes) or when the next is so much farther than the tenth (5 % fewer codes, but ef
 * would no longer say how many are kept); visited slots in bits (2 %, and wiping them takes 30
 * us at ten millions); huge pages (7 %, but the codes lie in the store's map). */
#include "index/hnsw.h"

/* The distances of the m slots in s->slots. */
static int batch_distances(struct index *x, struct index_scratch *s, const struct code_query *q,
                           uint32_t m, struct err *e)
{
    for (uint32_t i = 0; i < m; i++) {
        s->codes[i] = index_code_at(x, s->slots[i], e);
        if (!s->codes[i])
            return index_damage(e);
        index_prefetch(s->codes[i], 0, x->arrays.codes->stride);
    }
    code_distances(q, s->codes, m, s->distances);
    s->n_visits += m;
    return 0;
}

static void prefetch_list(struct index *x, unsigned level, uint32_t slot)
{
    if (level > 0)
        return;
    const char *p = records_at(x->arrays.links, slot, NULL);
    if (p)
        index_prefetch(p, 0, x->arrays.links->stride);
}

int hnsw_greedy(struct index *x, struct index_scratch *s, const struct code_query *q,
                unsigned level, uint32_t n, uint64_t *best, struct err *e)
{
    for (bool better = true; better;) {
        struct hnsw_list l;
        int rc = hnsw_list_at(x, level, key_slot(*best), &l, e);
        if (rc <= 0)
            return rc;
        uint32_t m = hnsw_list_read(&l, n, s->slots);
        if ((rc = batch_distances(x, s, q, m, e)) < 0)
            return rc;
        better = false;
        for (uint32_t i = 0; i < m; i++) {
            uint64_t key = key_of(s->distances[i], s->slots[i]);
            if (key < *best) {
                *best = key;
                better = true;
            }
        }
    }
    return 0;
}

static bool accepted(const struct index_query *query, const struct code *c, uint32_t slot)
{
    if (code_meta_state(code_meta_load(c)) != CODE_LINKED)
        return false;
    if (!query || !query->accept || query->accept(query->arg, slot))
        return true;
    query->stats->n_rejected++;
    return false;
}

/* The unvisited links of a slot into s->slots. How many, or a negative code. In one pass, with
 * nothing to be read again after a stamp is written: that is 3 % of a search. */
static int64_t unvisited_links(struct index *x, struct index_scratch *s, unsigned level,
                               uint32_t n, uint32_t slot, struct err *e)
{
    struct hnsw_list l;
    int rc = hnsw_list_at(x, level, slot, &l, e);
    if (rc <= 0)
        return rc;
    uint32_t count = atomic_load_explicit(l.count, memory_order_acquire), kept = 0;
    uint32_t *out = s->slots;
    uint8_t *stamp = s->stamp;
    const uint8_t generation = s->generation;
    for (uint32_t i = 0; i < count && i < l.max; i++) {
        uint32_t peer = atomic_load_explicit(&l.slots[i], memory_order_acquire);
        if (peer >= n)
            continue;
        out[kept] = peer;
        kept += stamp[peer] != generation;
        stamp[peer] = generation;
    }
    return kept;
}

int hnsw_search_layer(struct index *x, struct index_scratch *s, const struct code_query *q,
                      unsigned level, uint32_t n, size_t ef, uint64_t from,
                      const struct index_query *query, struct err *e)
{
    struct keys *near = &s->near, *far = &s->far;
    int rc;
    near->n = far->n = 0;
    if ((rc = keys_reserve(far, ef, e)) != 0 || (rc = keys_reserve(near, 1, e)) != 0)
        return rc;
    heap_push(near, from);
    if (scratch_visit(s, key_slot(from))) {
        const struct code *c = index_code_at(x, key_slot(from), e);
        if (!c)
            return index_damage(e);
        if (accepted(query, c, key_slot(from)))
            heap_push(far, ~from);
    }
    uint64_t worst = far->n == ef ? ~far->v[0] : UINT64_MAX;
    uint64_t visits_left = query && query->max_visits ? query->max_visits : UINT64_MAX;
    while (near->n && near->v[0] <= worst && visits_left > 0) {
        uint32_t slot = key_slot(heap_pop(near));
        int64_t m = unvisited_links(x, s, level, n, slot, e);
        if (m < 0)
            return (int)m;
        if (near->n)
            prefetch_list(x, level, key_slot(near->v[0]));
        if ((rc = batch_distances(x, s, q, (uint32_t)m, e)) < 0 ||
            (rc = keys_reserve(near, near->n + (size_t)m, e)) < 0)
            return rc;
        visits_left -= (uint64_t)m < visits_left ? (uint64_t)m : visits_left;
        for (int64_t i = 0; i < m; i++) {
            uint64_t key = key_of(s->distances[i], s->slots[i]);
            if (key >= worst)
                continue;
            heap_push(near, key);
            prefetch_list(x, level, s->slots[i]);
            if (!accepted(query, s->codes[i], s->slots[i]))
                continue;
            heap_keep(far, ef, key);
            if (far->n == ef)
                worst = ~far->v[0];
        }
    }
    if (query)
        query->stats->cut = near->n && near->v[0] <= worst;
    return 0;
}

int hnsw_descend(struct index *x, struct index_scratch *s, const struct code_query *q,
                 unsigned level, uint32_t n, uint64_t *best, unsigned *top, struct err *e)
{
    uint64_t entry = index_entry(x);
    *top = 0;
    if (entry_none(entry) || entry_slot(entry) >= n)
        return 1;
    *top = entry_level(entry);
    s->slots[0] = entry_slot(entry);
    int rc = batch_distances(x, s, q, 1, e);
    if (rc < 0)
        return rc;
    *best = key_of(s->distances[0], s->slots[0]);
    for (unsigned l = *top; l > level; l--)
        if ((rc = hnsw_greedy(x, s, q, l, n, best, e)) < 0)
            return rc;
    return 0;
}

int hnsw_search(struct index *x, struct index_scratch *s, const struct code_query *q, size_t k,
                size_t ef, const struct index_query *query, struct err *e)
{
    uint32_t n = index_n_slots(x);
    uint64_t best;
    unsigned top;
    s->far.n = s->tail.n = 0;
    uint64_t visits = s->n_visits;
    int rc = scratch_visit_none(s, n, e);
    if (rc == 0)
        rc = tail_scan(x, s, q, k, query, e);
    if (rc == 0)
        rc = hnsw_descend(x, s, q, 0, n, &best, &top, e);
    if (rc == 0)
        rc = hnsw_search_layer(x, s, q, 0, n, ef, best, query, e);
    query->stats->n_visits += (uint32_t)(s->n_visits - visits);
    return rc < 0 ? rc : 0;
}
