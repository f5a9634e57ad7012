/* Taking a removed slot out of the graph.
 *
 * Its neighbours are exactly those who point at it (hnsw.h), and each loses one link. To keep
 * the graph as good as if the slot had never been there, they are joined with each other: the
 * pairs among them, nearest first, until each has one link more or no room. A neighbour that
 * has become poor nevertheless searches the graph anew, as if it were being inserted, and the
 * links it finds are added to those it has. All this is computed in prepare; the commit only
 * takes the links out and makes those of the new ones that still make sense. */
#include "base/epoch.h"
#include "index/hnsw.h"

/* Pairs are compared within windows of this many neighbours (nearest to the removed slot
 * first), so that a removal at the largest m costs thousands of distances and not millions. */
enum { WINDOW = 64 };

static int add_member(struct slot_list *l, uint32_t slot, struct err *e)
{
    if (l->n == l->cap) {
        size_t cap = l->cap * 2 + 64;
        uint32_t *v = mem_realloc_n(l->v, cap, sizeof *v);
        if (!v)
            return err_set(e, KITH_ENOMEM, "out of memory for %zu neighbours", cap);
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = slot;
    return 0;
}

/* The linked neighbours of a slot at a level, nearest first, into j->members. */
static int collect_members(struct index *x, struct index_scratch *s, struct link_job *j,
                           unsigned level, struct err *e)
{
    struct hnsw_list l;
    j->members.n = 0;
    int rc = hnsw_list_at(x, level, j->slot, &l, e);
    if (rc <= 0)
        return rc;
    const struct code *self = index_code_at(x, j->slot, e);
    uint32_t n = hnsw_list_read(&l, index_n_slots(x), s->slots), kept = 0;
    if (!self)
        return index_damage(e);
    for (uint32_t i = 0; i < n; i++) {
        const struct code *c = index_code_at(x, s->slots[i], e);
        if (!c)
            return index_damage(e);
        if (s->slots[i] == j->slot || code_meta_state(code_meta_load(c)) != CODE_LINKED)
            continue;
        s->slots[kept] = s->slots[i];
        s->codes[kept++] = c;
    }
    struct code_query q;
    code_query_code(&q, &x->params, self, s->query_row);
    code_distances(&q, s->codes, kept, s->distances);
    if ((rc = keys_reserve(&j->pairs, kept, e)) != 0)
        return rc;
    j->pairs.n = 0;
    for (uint32_t i = 0; i < kept; i++)
        j->pairs.v[j->pairs.n++] = key_of(s->distances[i], s->slots[i]);
    keys_sort(&j->pairs);
    for (size_t i = 0; rc == 0 && i < j->pairs.n; i++)
        rc = add_member(&j->members, key_slot(j->pairs.v[i]), e);
    return rc;
}

/* What is known of the members of one window. */
struct window {
    uint32_t n;
    const uint32_t *slots;
    int room[WINDOW]; /* links it could take, the removed slot's place included */
    bool lost[WINDOW], joined[WINDOW][WINDOW];
};

static int look_at_window(struct index *x, struct index_scratch *s, struct link_job *j,
                          unsigned level, struct window *w, struct err *e)
{
    j->pairs.n = 0;
    int rc = keys_reserve(&j->pairs, (size_t)w->n * w->n / 2 + 1, e);
    if (rc != 0)
        return rc;
    for (uint32_t i = 0; i < w->n; i++) {
        struct hnsw_list l;
        if ((rc = hnsw_list_at(x, level, w->slots[i], &l, e)) < 0)
            return rc;
        w->lost[i] = rc == 1;
        w->room[i] = 0;
        memset(w->joined[i], 0, sizeof w->joined[i]);
        if (rc == 0)
            continue;
        w->room[i] = (int)l.max - (int)hnsw_list_read(&l, index_n_slots(x), s->slots) + 1;
        for (uint32_t k = 0; k < w->n; k++)
            w->joined[i][k] = hnsw_list_has(&l, w->slots[k]);
    }
    for (uint32_t i = 0; i < w->n; i++)
        if (!(s->kept[i] = index_code_at(x, w->slots[i], e)))
            return index_damage(e);
    for (uint32_t i = 0; i + 1 < w->n; i++) {
        struct code_query q;
        float distances[WINDOW];
        code_query_code(&q, &x->params, s->kept[i], s->pair_row);
        code_distances(&q, s->kept + i + 1, w->n - i - 1, distances);
        for (uint32_t k = i + 1; k < w->n; k++)
            if (!w->joined[i][k] && !w->joined[k][i])
                j->pairs.v[j->pairs.n++] = key_of(distances[k - i - 1], i * WINDOW + k);
    }
    keys_sort(&j->pairs);
    return 0;
}

static int join_window(struct index *x, struct index_scratch *s, struct link_job *j,
                       unsigned level, struct window *w, struct err *e)
{
    int rc = look_at_window(x, s, j, level, w, e);
    for (size_t p = 0; rc == 0 && p < j->pairs.n; p++) {
        uint32_t i = key_slot(j->pairs.v[p]) / WINDOW, k = key_slot(j->pairs.v[p]) % WINDOW;
        if ((!w->lost[i] && !w->lost[k]) || w->room[i] <= 0 || w->room[k] <= 0)
            continue;
        w->lost[i] = w->lost[k] = false;
        w->room[i]--;
        w->room[k]--;
        struct link_edge edge = {.a = w->slots[i],
                                 .b = w->slots[k],
                                 .level = level,
                                 .distance = key_distance(j->pairs.v[p])};
        rc = link_job_add(j, &edge, e);
    }
    return rc;
}

/* Plans a search's worth of links for a slot that has few. */
static int enrich(struct index *x, struct index_scratch *s, struct link_job *j, unsigned level,
                  uint32_t slot, struct err *e)
{
    uint32_t n = index_n_slots(x);
    uint64_t best;
    unsigned top;
    struct code_query q;
    const struct code *c = index_code_at(x, slot, e);
    if (!c)
        return index_damage(e);
    code_query_code(&q, &x->params, c, s->query_row);
    int rc = hnsw_descend(x, s, &q, level, n, &best, &top, e);
    if (rc != 0 || level > top)
        return rc < 0 ? rc : 0;
    if ((rc = scratch_visit_none(s, n, e)) == 0 &&
        (rc = hnsw_search_layer(x, s, &q, level, n, x->params.ef_construction, best, NULL,
                                e)) == 0 &&
        (rc = heap_drain(&s->far, &s->list, e)) == 0)
        rc = link_plan_level(x, s, j, slot, level, link_wanted(x, level), e);
    return rc;
}

static int repair_level(struct index *x, struct index_scratch *s, struct link_job *j,
                        unsigned level, struct err *e)
{
    struct window w;
    int rc = collect_members(x, s, j, level, e);
    uint32_t poor = (level ? x->max : x->max0) / 4;
    for (size_t first = 0; rc >= 0 && first < j->members.n; first += WINDOW) {
        size_t left = j->members.n - first;
        w.n = left < WINDOW ? (uint32_t)left : WINDOW;
        w.slots = j->members.v + first;
        if ((rc = join_window(x, s, j, level, &w, e)) < 0)
            return rc;
        for (uint32_t i = 0; rc >= 0 && i < w.n; i++) {
            uint32_t has = (level ? x->max : x->max0) - (uint32_t)w.room[i];
            if (has < poor)
                rc = enrich(x, s, j, level, w.slots[i], e);
        }
    }
    return rc < 0 ? rc : 0;
}

int unlink_prepare(struct index *x, struct index_scratch *s, struct link_job *j, struct err *e)
{
    epoch_enter();
    j->n_edges = 0;
    const struct code *c = index_code_at(x, j->slot, e);
    int rc = c ? 0 : index_damage(e);
    unsigned level = c ? code_meta_level(code_meta_load(c)) : 0;
    for (unsigned l = 0; rc == 0 && l <= level; l++)
        rc = repair_level(x, s, j, l, e);
    epoch_exit();
    return rc;
}

int unlink_commit(struct index *x, struct index_scratch *s, struct link_job *j, uint32_t meta,
                  struct err *e)
{
    int rc = hnsw_entry_without(x, j->slot, e);
    if (rc == 0)
        rc = hnsw_detach(x, j->slot, code_meta_level(meta), e);
    for (size_t i = 0; rc >= 0 && i < j->n_edges; i++) {
        uint32_t a;
        if ((rc = index_meta(x, j->edges[i].a, &a, e)) == 0 &&
            code_meta_state(a) == CODE_LINKED)
            rc = link_connect(x, s, &j->edges[i], false, e);
    }
    return rc < 0 ? rc : 0;
}
