/* The candidates of each query vector: by walks, by one scan for all of them, or by walks that
 * turn out not to be enough and the scan after them.
 *
 * The scan chooses its slots itself (all of them, or those whose bit is set) and asks the index
 * for their distances in batches, in order, so that memory streams. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "index/vectors.h"
#include "server/search_parts.h"

enum { BATCH = 1024, LIST_FIRST = 256 };
/* A scan keeps that many more than asked for: some may be gone when they are verified. */
enum { SCAN_SPARE = 16 };
/* A full vector costs as much as so many codes. */
enum { FULL_WORK = 8 };
/* RADIUS without COUNT: each walk keeps this many times the candidates of the one before. */
enum { RADIUS_GROWTH = 4 };

static int no_memory(struct err *e)
{
    return err_set(e, KITH_ENOMEM, "out of memory for the candidates of a search");
}

double vset_score(enum index_metric metric, float distance)
{
    if (metric == INDEX_L2)
        return 1 / (1 + sqrt((double)distance));
    return metric == INDEX_IP ? 0.0 - (double)distance : 1 - (double)distance / 2;
}

bool search_near_enough(const struct search *s, float distance)
{
    const struct vset_query *q = s->q;
    enum index_metric metric = s->params->index.metric;
    if (q->has_epsilon) {
        /* Redis' own comparison where Redis has one. */
        bool far = metric == INDEX_COSINE ? (double)distance / 2 > q->epsilon
                                          : vset_score(metric, distance) < 1 - q->epsilon;
        if (far)
            return false;
    }
    if (!q->has_radius)
        return true;
    float radius = (float)q->radius;
    if (metric == INDEX_L2)
        return sqrtf(distance) <= radius;
    return metric == INDEX_IP ? -distance >= radius : distance <= radius;
}

/* --- ordered lists --- */

static bool hit_before(struct index_hit a, struct index_hit b)
{
    return a.distance < b.distance || (!(a.distance > b.distance) && a.slot < b.slot);
}

static int compare_hits(const void *a, const void *b)
{
    const struct index_hit *x = a, *y = b;
    return hit_before(*x, *y) ? -1 : hit_before(*y, *x);
}

void hits_sort(struct index_hit *v, uint32_t n)
{
    if (n > 1)
        qsort(v, n, sizeof *v, compare_hits);
}

static int list_reserve(struct hit_list *l, uint64_t cap, struct arena *arena, struct err *e)
{
    if (cap <= l->cap)
        return 0;
    if (cap < 2 * (uint64_t)l->cap)
        cap = 2 * (uint64_t)l->cap;
    struct index_hit *v =
        cap <= UINT32_MAX ? arena_alloc(arena, (size_t)cap * sizeof *v) : NULL;
    if (!v)
        return no_memory(e);
    if (l->n)
        memcpy(v, l->v, l->n * sizeof *v);
    l->v = v;
    l->cap = (uint32_t)cap;
    return 0;
}

/* A heap whose top is the worst of the k best so far. */
static void heap_sink(struct hit_list *l, struct index_hit hit)
{
    uint32_t i = 0;
    for (;;) {
        uint32_t down = 2 * i + 1;
        if (down >= l->n)
            break;
        if (down + 1 < l->n && hit_before(l->v[down], l->v[down + 1]))
            down++;
        if (!hit_before(hit, l->v[down]))
            break;
        l->v[i] = l->v[down];
        i = down;
    }
    l->v[i] = hit;
}

static void heap_rise(struct hit_list *l, struct index_hit hit)
{
    uint32_t i = l->n++;
    while (i > 0 && hit_before(l->v[(i - 1) / 2], hit)) {
        l->v[i] = l->v[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    l->v[i] = hit;
}

/* --- distances --- */

static const float *query_vector(const struct search *s, uint32_t i)
{
    return s->q->vectors + (size_t)i * s->params->index.dim;
}

static int full_distances(struct search *s, uint32_t i, const uint32_t *slots, uint32_t n,
                          float *out, struct err *e)
{
    const struct index_params *p = &s->params->index;
    if (!s->row && !(s->row = arena_alloc(s->arena, p->dim * sizeof *s->row)))
        return no_memory(e);
    for (uint32_t j = 0; j < n; j++) {
        if (isnan(out[j]))
            continue;
        int rc = vset_vector(s->set, slots[j], s->row, e);
        if (rc != 0)
            return rc;
        out[j] = vector_distance(p->metric, query_vector(s, i), s->row, p->dim);
    }
    return 0;
}

int search_distances(struct search *s, uint32_t i, bool full, const uint32_t *slots, uint32_t n,
                     float *out, struct err *e)
{
    struct index_query query = {.vector = query_vector(s, i)};
    int rc = index_distances(s->index, s->scratch, &query, slots, n, out, e);
    s->account->n_visits += n;
    return rc == 0 && full ? full_distances(s, i, slots, n, out, e) : rc;
}

int search_rescore(struct search *s, uint32_t n, struct hit_list *lists, struct err *e)
{
    for (uint32_t i = 0; i < s->q->n_vectors; i++) {
        struct hit_list *l = &lists[i];
        l->n = l->n < n ? l->n : n;
        uint32_t *slots = arena_alloc(s->arena, l->n * sizeof *slots);
        float *distances = arena_alloc(s->arena, l->n * sizeof *distances);
        if (!slots || !distances)
            return no_memory(e);
        for (uint32_t j = 0; j < l->n; j++)
            slots[j] = l->v[j].slot;
        int rc = search_distances(s, i, true, slots, l->n, distances, e);
        if (rc != 0)
            return rc;
        uint32_t kept = 0;
        for (uint32_t j = 0; j < l->n; j++)
            if (!isnan(distances[j]))
                l->v[kept++] = (struct index_hit){slots[j], distances[j]};
        l->n = kept;
        hits_sort(l->v, l->n);
    }
    return 0;
}

/* --- the scan --- */

struct scan {
    struct search *s;
    struct hit_list *lists;
    uint32_t k; /* 0: all that are near enough */
    bool full;
    uint32_t n;
    uint32_t *slots;
    float *distances;
};

/* Whether distances are those of full vectors already where candidates are looked for. */
static bool scans_full(const struct search *s, uint32_t k)
{
    return s->params->keep != VSET_KEEP_NONE && (s->q->exact || (k == 0 && s->q->rescore));
}

static int scan_take(struct scan *c, struct hit_list *l, struct index_hit hit, struct err *e)
{
    if (isnan(hit.distance))
        return 0;
    if (c->k == 0) {
        if (!search_near_enough(c->s, hit.distance))
            return 0;
        int rc = list_reserve(l, (uint64_t)l->n + 1, c->s->arena, e);
        if (rc == 0)
            l->v[l->n++] = hit;
        return rc;
    }
    if (l->n < c->k)
        heap_rise(l, hit);
    else if (hit_before(hit, l->v[0]))
        heap_sink(l, hit);
    return 0;
}

static int scan_flush(struct scan *c, struct err *e)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && c->n && i < c->s->q->n_vectors; i++) {
        rc = search_distances(c->s, i, c->full, c->slots, c->n, c->distances, e);
        for (uint32_t j = 0; rc == 0 && j < c->n; j++)
            rc =
                scan_take(c, &c->lists[i], (struct index_hit){c->slots[j], c->distances[j]}, e);
    }
    c->n = 0;
    return rc;
}

static int scan_slot(struct scan *c, uint32_t slot, struct err *e)
{
    struct search *s = c->s;
    if (s->admission.has_expired && !admission_slot(&s->admission, slot))
        return 0;
    c->slots[c->n++] = slot;
    return c->n == BATCH ? scan_flush(c, e) : 0;
}

static int scan_slots(struct scan *c, struct err *e)
{
    const struct match_bits *bits = c->s->bits;
    int rc = 0;
    uint32_t n = bits ? bits->n_slots : index_slots(c->s->index);
    for (uint32_t slot = 0; rc == 0 && !bits && slot < n; slot++)
        rc = scan_slot(c, slot, e);
    for (uint32_t w = 0; rc == 0 && bits && w < (n + 63) / 64; w++)
        for (uint64_t word = bits->words[w]; rc == 0 && word; word &= word - 1)
            rc = scan_slot(c, w * 64 + (uint32_t)__builtin_ctzll(word), e);
    return rc == 0 ? scan_flush(c, e) : rc;
}

static int scan(struct search *s, uint32_t k, struct hit_list *lists, struct err *e)
{
    int rc = search_filter_bits(s, e);
    struct scan c = {.s = s, .lists = lists, .k = k, .full = scans_full(s, k)};
    if (k)
        c.k = k < UINT32_MAX - SCAN_SPARE ? k + SCAN_SPARE : UINT32_MAX;
    c.slots = arena_alloc(s->arena, BATCH * sizeof *c.slots);
    c.distances = arena_alloc(s->arena, BATCH * sizeof *c.distances);
    if (rc == 0 && (!c.slots || !c.distances))
        rc = no_memory(e);
    for (uint32_t i = 0; rc == 0 && i < s->q->n_vectors; i++) {
        lists[i].n = 0;
        rc = list_reserve(&lists[i], k ? c.k : LIST_FIRST, s->arena, e);
    }
    if (rc == 0)
        rc = scan_slots(&c, e);
    for (uint32_t i = 0; rc == 0 && i < s->q->n_vectors; i++)
        hits_sort(lists[i].v, lists[i].n);
    s->account->scanned = true;
    return rc;
}

/* --- walks --- */

static int walk(struct search *s, uint32_t i, uint32_t k, uint32_t ef, uint32_t max_visits,
                struct hit_list *l, bool *cut, struct err *e)
{
    struct index_search_stats stats = {0};
    struct index_query query = {.vector = query_vector(s, i),
                                .k = k,
                                .ef = ef,
                                .max_visits = max_visits,
                                .stats = &stats};
    if (admission_needed(&s->admission)) {
        query.accept = admission_accept;
        query.arg = &s->admission;
    }
    l->n = 0;
    int rc = list_reserve(l, k, s->arena, e);
    if (rc != 0)
        return rc;
    uint64_t before = index_scratch_visits(s->scratch);
    int64_t n = index_search(s->index, s->scratch, &query, l->v, e);
    if (n < 0)
        return (int)n;
    l->n = (uint32_t)n;
    *cut = stats.cut;
    s->account->n_visits += index_scratch_visits(s->scratch) - before;
    s->account->walked = true;
    s->account->ef = ef > k ? ef : k;
    return 0;
}

/* How many a walk must find at least, where that is known. */
static uint32_t expected(const struct search *s, uint32_t k)
{
    uint32_t there = s->count;
    if (s->bits && s->bits->n_matches < there)
        there = s->bits->n_matches;
    return k < there ? k : there;
}

/* True when the walks found enough. */
static int walk_all(struct search *s, uint32_t k, uint32_t ef, uint32_t max_visits,
                    struct hit_list *lists, bool *enough, struct err *e)
{
    *enough = true;
    for (uint32_t i = 0; *enough && i < s->q->n_vectors; i++) {
        bool cut = false;
        int rc = walk(s, i, k, ef, max_visits, &lists[i], &cut, e);
        if (rc != 0)
            return rc;
        *enough = !cut && lists[i].n >= expected(s, k);
        if (!*enough)
            s->account->then = cut ? VSET_THEN_CUT : VSET_THEN_SHORT;
    }
    return 0;
}

static int gather_best(struct search *s, uint32_t k, uint32_t ef, struct hit_list *lists,
                       struct err *e)
{
    struct search_plan p = search_plan(s, k, ef);
    if (p.how == SEARCH_SCAN)
        return scan(s, k, lists, e);
    bool enough;
    int rc = walk_all(s, k, ef, p.max_visits, lists, &enough, e);
    return rc == 0 && !enough ? scan(s, k, lists, e) : rc;
}

/* Whether a list goes on beyond what is near enough. Where full vectors will decide, the
 * distances by codes are only nearly right: then a quarter of the list must lie beyond. */
static bool reaches_beyond(const struct search *s, const struct hit_list *l)
{
    uint32_t at = s->q->rescore ? l->n - 1 - (l->n - 1) / 4 : l->n - 1;
    return !search_near_enough(s, l->v[at].distance);
}

static int gather_near(struct search *s, uint32_t ef, struct hit_list *lists, struct err *e)
{
    for (uint64_t k = ef; k < s->count; k *= RADIUS_GROWTH) {
        struct search_plan p = search_plan(s, (uint32_t)k, (uint32_t)k);
        bool enough = false;
        if (p.how == SEARCH_SCAN)
            break;
        int rc = walk_all(s, (uint32_t)k, (uint32_t)k, p.max_visits, lists, &enough, e);
        if (rc != 0)
            return rc;
        if (!enough)
            break;
        bool all = true;
        for (uint32_t i = 0; i < s->q->n_vectors; i++)
            all &= lists[i].n < k || reaches_beyond(s, &lists[i]);
        if (all)
            return 0;
    }
    search_plan(s, s->count, s->count);
    return scan(s, 0, lists, e);
}

int search_gather(struct search *s, uint32_t k, uint32_t ef, struct hit_list *lists,
                  struct err *e)
{
    return k ? gather_best(s, k, ef, lists, e) : gather_near(s, ef, lists, e);
}

/* --- latecomers --- */

static int list_insert(struct hit_list *l, struct index_hit hit, uint32_t k,
                       struct arena *arena, struct err *e)
{
    uint32_t at = l->n;
    for (uint32_t i = 0; i < l->n; i++)
        if (l->v[i].slot == hit.slot)
            return 0;
    while (at > 0 && hit_before(hit, l->v[at - 1]))
        at--;
    uint32_t most = l->n > k ? l->n : k;
    if (k && at >= most)
        return 0;
    if (k && l->n == most)
        l->n--;
    int rc = list_reserve(l, (uint64_t)l->n + 1, arena, e);
    if (rc != 0)
        return rc;
    memmove(l->v + at + 1, l->v + at, (l->n - at) * sizeof *l->v);
    l->v[at] = hit;
    l->n++;
    return 0;
}

/* Asks the filter itself: bits are of before. */
static bool may_be_in(const struct search *s, uint32_t slot)
{
    struct admission now = s->admission;
    now.bits = NULL;
    return !admission_needed(&now) || admission_slot(&now, slot);
}

static int verify_list(struct search *s, uint32_t i, bool full, struct hit_list *l,
                       struct err *e)
{
    uint32_t *slots = arena_alloc(s->arena, l->n * sizeof *slots), n = 0;
    float *distances = arena_alloc(s->arena, l->n * sizeof *distances);
    if (!slots || !distances)
        return no_memory(e);
    for (uint32_t j = 0; j < l->n; j++)
        if (may_be_in(s, l->v[j].slot))
            slots[n++] = l->v[j].slot;
    int rc = search_distances(s, i, full, slots, n, distances, e);
    l->n = 0;
    for (uint32_t j = 0; rc == 0 && j < n; j++)
        if (!isnan(distances[j]))
            l->v[l->n++] = (struct index_hit){slots[j], distances[j]};
    hits_sort(l->v, l->n);
    return rc;
}

int search_verify(struct search *s, uint32_t k, struct hit_list *lists, struct err *e)
{
    for (uint32_t i = 0; i < s->q->n_vectors; i++) {
        uint32_t before = lists[i].n;
        int rc = verify_list(s, i, scans_full(s, k), &lists[i], e);
        if (rc != 0)
            return rc;
        if (k && lists[i].n < k && lists[i].n < before)
            return KITH_EBUSY;
    }
    return 0;
}

int search_add_slot(struct search *s, uint32_t slot, uint32_t k, struct hit_list *lists,
                    struct err *e)
{
    if (!may_be_in(s, slot))
        return 0;
    for (uint32_t i = 0; i < s->q->n_vectors; i++) {
        float distance;
        int rc = search_distances(s, i, scans_full(s, k), &slot, 1, &distance, e);
        if (rc == 0 && !isnan(distance))
            rc = list_insert(&lists[i], (struct index_hit){slot, distance}, k, s->arena, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}
