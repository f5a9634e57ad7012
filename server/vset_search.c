/* A search from the question to the answer.
 *
 *   gather   the candidates of each query vector, in lists (search_gather.c)
 *   mend     slots that updates put in the place of others meanwhile go into the lists
 *   rank     full vectors, bounds, combining, excluded names, diversity: lists to one order
 *   copy     names and attributes of the wanted part of it
 *
 * inside one epoch bracket, in which no slot is given to another element. A long scan leaves it
 * now and then, so that nobody waits long for readers; when the set has changed by the end,
 * every candidate is looked at again in the last bracket.
 *
 * Updates. An update adds the element under a new slot, counts (vset_replacements), and removes
 * the old slot. A search that began before the new slot was there and came to the old one after
 * it had gone would miss the element altogether. So when the count has moved, the slots that
 * came are put into the lists, and ranking and copying are done again, until the count stands
 * still over them: then every element was found under its new slot, or its old one was still
 * there when its name was copied. An element can be met under both in the moment between; its
 * name tells, and the better one stays. Only where more updates came than vset_replacement
 * remembers, or more candidates went than there were to spare, the whole search is made again,
 * and at last with the set held.
 *
 * Pages. A walk that keeps more candidates can find other ones, so the first ten of a long list
 * need not be the ten of a short one. The fixed order of a question in pages is made of stages
 * of 1, 2, 4 .. times the first size: the results of the first stage, then those of the second
 * that were not in the first, and so on. A page makes the stages it reaches, the last of which
 * costs as much as all before it; it never depends on where the page begins. The first size is
 * ef (or what of the count is larger), so that the common pages lie in one stage. */
#include "server/vset_search.h"

#include <stdio.h>
#include <string.h>

#include "base/epoch.h"
#include "base/hash.h"
#include "server/attributes.h"
#include "server/search_diverse.h"
#include "server/search_parts.h"

/* Whole searches before the set is held. */
enum { TRIES = 3 };
/* Candidates beyond what is asked for, where they cost nothing: some may be removed meanwhile.
 */
enum { SPARE = 16 };
/* Elements that may be found though they are not counted: a set is changed one element at a
 * time, and the one that is on its way in or out can stay there for a whole search. */
enum { IN_FLIGHT = 1 };
/* Vectors looked at (or filters asked) in one epoch bracket: some milliseconds. Those who wait
 * for readers to leave, writers among them, wait no longer for a scan than that. */
enum { BRACKET_WORK = 32768 };
enum { STAGES = 32, MMR_POOL = 4, RESCORE_POOL = 4 };

struct stage {
    uint32_t size; /* results it is to give; 0: all that are near enough */
    uint32_t k;    /* candidates of each query vector */
    struct hit_list *lists;
};

static int no_memory(struct err *e)
{
    return err_set(e, KITH_ENOMEM, "out of memory for the results of a search");
}

/* --- sets of slots and of names: open addressing over indexes + 1 --- */

struct table {
    uint32_t *at;
    uint32_t mask;
};

static int table_init(struct table *t, uint32_t n, struct arena *arena, struct err *e)
{
    uint64_t size = 16;
    while (size < 2 * (uint64_t)n)
        size *= 2;
    t->at = arena_alloc(arena, size * sizeof *t->at);
    if (!t->at)
        return no_memory(e);
    memset(t->at, 0, size * sizeof *t->at);
    t->mask = (uint32_t)(size - 1);
    return 0;
}

/* False when the slot is in the table already. */
static bool slots_put(struct table *t, const struct ranked *all, uint32_t i)
{
    for (uint32_t p = (uint32_t)hash_mix(all[i].slot) & t->mask;; p = (p + 1) & t->mask) {
        if (t->at[p] == 0) {
            t->at[p] = i + 1;
            return true;
        }
        if (all[t->at[p] - 1].slot == all[i].slot)
            return false;
    }
}

static struct slice name_of(const struct vset_answer *a, const struct vset_found *f)
{
    return (struct slice){a->text.data + f->name_at, f->name_bytes};
}

/* --- ranking --- */

struct ranking {
    struct ranked *v; /* of all stages, in order */
    uint32_t n, cap;
    struct table slots;
};

static int copy_lists(struct search *s, const struct stage *stage, struct hit_list *out,
                      struct err *e)
{
    for (uint32_t i = 0; i < s->q->n_vectors; i++) {
        const struct hit_list *l = &stage->lists[i];
        out[i] = *l;
        if (!(out[i].v = arena_alloc(s->arena, l->n * sizeof *l->v)))
            return no_memory(e);
        if (l->n)
            memcpy(out[i].v, l->v, l->n * sizeof *l->v);
    }
    return 0;
}

static int distances_for_combining(void *arg, uint32_t vector, const uint32_t *slots,
                                   uint32_t n, float *out, struct err *e)
{
    struct search *s = arg;
    bool full = s->params->keep != VSET_KEEP_NONE && (s->q->rescore || s->q->exact);
    return search_distances(s, vector, full, slots, n, out, e);
}

static void cut_to_bounds(const struct search *s, struct hit_list *l)
{
    uint32_t n = 0;
    while (n < l->n && search_near_enough(s, l->v[n].distance))
        n++;
    l->n = n;
}

/* The lists as one, best first. */
static int join(struct search *s, struct hit_list *lists, struct ranked_list *out,
                struct err *e)
{
    enum index_metric metric = s->params->index.metric;
    for (uint32_t i = 0; i < s->q->n_vectors; i++)
        cut_to_bounds(s, &lists[i]);
    if (s->q->n_vectors > 1) {
        struct combine c = {s->q->combine, metric, distances_for_combining, s};
        return combine_lists(&c, lists, s->q->n_vectors, s->arena, out, e);
    }
    out->n = lists[0].n;
    if (!(out->v = arena_alloc(s->arena, out->n * sizeof *out->v)))
        return no_memory(e);
    for (uint32_t i = 0; i < out->n; i++)
        out->v[i] =
            (struct ranked){lists[0].v[i].slot, vset_score(metric, lists[0].v[i].distance)};
    return 0;
}

/* Takes out what earlier stages gave and what the question excludes. */
static int drop_known(struct search *s, const struct ranking *done, struct ranked_list *r,
                      struct err *e)
{
    const struct vset_query *q = s->q;
    struct buf name;
    buf_init(&name);
    uint32_t kept = 0;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < r->n; i++) {
        bool known = false;
        for (uint32_t p = (uint32_t)hash_mix(r->v[i].slot) & done->slots.mask;
             done->n && !known && done->slots.at[p]; p = (p + 1) & done->slots.mask)
            known = done->v[done->slots.at[p] - 1].slot == r->v[i].slot;
        buf_clear(&name);
        struct err why = {0};
        if (!known && q->n_exclude && !vset_name(s->set, r->v[i].slot, &name, &why)) {
            known = true; /* removed meanwhile */
            if (why.code != 0) {
                rc = why.code;
                if (e)
                    *e = why;
            }
        }
        for (uint32_t x = 0; !known && x < q->n_exclude; x++)
            known = slice_equal(q->exclude[x], (struct slice){name.data, name.len});
        if (name.failed)
            rc = no_memory(e);
        if (!known)
            r->v[kept++] = r->v[i];
    }
    r->n = kept;
    buf_deinit(&name);
    return rc;
}

/* Puts `want` of the pool in front, in the order diversity chooses them. */
static int diversify(struct search *s, struct ranked_list *r, uint32_t want, struct err *e)
{
    const struct vset_query *q = s->q;
    uint32_t dim = s->params->index.dim, n = 0;
    float *vectors = arena_alloc(s->arena, (size_t)r->n * dim * sizeof *vectors);
    double *relevance = arena_alloc(s->arena, r->n * sizeof *relevance);
    uint32_t *chosen = arena_alloc(s->arena, r->n * sizeof *chosen);
    struct ranked *out = arena_alloc(s->arena, r->n * sizeof *out);
    if (!vectors || !relevance || !chosen || !out)
        return no_memory(e);
    /* RRF's scores are at most n / (k + 1): brought to the scale of similarities. */
    double scale = q->n_vectors > 1 && q->combine == VSET_COMBINE_RRF
                       ? (COMBINE_RRF_K + 1.0) / q->n_vectors
                       : 1;
    for (uint32_t i = 0; i < r->n; i++) {
        int rc = vset_vector(s->set, r->v[i].slot, vectors + (size_t)n * dim, e);
        if (rc == KITH_ENOTFOUND)
            continue; /* removed meanwhile */
        if (rc != 0)
            return rc;
        relevance[n] = r->v[i].score * scale;
        r->v[n++] = r->v[i];
    }
    r->n = n;
    struct diverse d = {.metric = s->params->index.metric,
                        .dim = dim,
                        .vectors = vectors,
                        .relevance = relevance,
                        .n = r->n,
                        .lambda = q->mmr};
    int rc = diverse_choose(&d, want, s->arena, chosen, &n, e);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        out[i] = r->v[chosen[i]];
    r->v = out;
    r->n = n;
    return rc;
}

static int ranking_append(struct search *s, struct ranking *done, const struct ranked_list *r,
                          struct err *e)
{
    if (done->cap - done->n < r->n) {
        uint32_t cap = done->n + r->n;
        struct ranked *v = arena_alloc(s->arena, (size_t)cap * sizeof *v);
        if (!v)
            return no_memory(e);
        if (done->n)
            memcpy(v, done->v, done->n * sizeof *v);
        done->v = v;
        done->cap = cap;
        int rc = table_init(&done->slots, cap, s->arena, e);
        for (uint32_t i = 0; rc == 0 && i < done->n; i++)
            slots_put(&done->slots, done->v, i);
        if (rc != 0)
            return rc;
    }
    for (uint32_t i = 0; i < r->n; i++) {
        done->v[done->n] = r->v[i];
        done->n += slots_put(&done->slots, done->v, done->n);
    }
    return 0;
}

/* Adds what a stage gives; *last when nothing can come after it. */
static int rank_stage(struct search *s, const struct stage *stage, uint64_t need,
                      struct ranking *done, bool *last, struct err *e)
{
    const struct vset_query *q = s->q;
    struct hit_list *lists = arena_alloc(s->arena, q->n_vectors * sizeof *lists);
    struct ranked_list r = {0};
    if (!lists)
        return no_memory(e);
    int rc = copy_lists(s, stage, lists, e);
    if (rc == 0 && q->rescore && s->params->keep != VSET_KEEP_NONE)
        rc = search_rescore(s, UINT32_MAX, lists, e);
    if (rc == 0)
        rc = join(s, lists, &r, e);
    *last = stage->size == 0 || r.n < stage->size;
    if (rc == 0 && (done->n || q->n_exclude))
        rc = drop_known(s, done, &r, e);
    uint64_t want = stage->size && stage->size < need ? stage->size : need;
    want = want > done->n ? want - done->n : 0;
    if (rc == 0 && q->has_mmr)
        rc = diversify(s, &r, want < r.n ? (uint32_t)want : r.n, e);
    /* Of a stage that others follow exactly its size counts, or pages would see the spare ones.
     */
    if (q->paged && stage->size && r.n > stage->size - done->n)
        r.n = stage->size - done->n;
    return rc == 0 ? ranking_append(s, done, &r, e) : rc;
}

/* --- copying --- */

static void copy_attributes(struct search *s, struct vset_answer *a, struct vset_found *f)
{
    size_t n;
    const void *encoded = vset_attributes(s->set, f->slot, &n);
    struct slice json = encoded ? attributes_json(encoded, n) : (struct slice){0};
    f->has_attributes = encoded != NULL;
    f->attributes_at = a->text.len;
    f->attributes_bytes = json.n;
    buf_append(&a->text, json.p, json.n);
}

/* False when an element of this name stands before it. */
static bool names_put(struct table *t, const struct vset_answer *a, uint32_t i)
{
    struct slice name = name_of(a, &a->found[i]);
    for (uint32_t p = (uint32_t)hash64(name.p, name.n) & t->mask;; p = (p + 1) & t->mask) {
        if (t->at[p] == 0) {
            t->at[p] = i + 1;
            return true;
        }
        if (slice_equal(name, name_of(a, &a->found[t->at[p] - 1])))
            return false;
    }
}

/* The elements at places offset .. need-1 of those of the order that are still there. */
static int copy_found(struct search *s, const struct ranking *r, uint64_t need,
                      struct vset_answer *a, struct err *e)
{
    const struct vset_query *q = s->q;
    struct table names = {0};
    a->n = 0;
    buf_clear(&a->text);
    a->found = arena_alloc(s->arena, r->n * sizeof *a->found);
    int rc = a->found ? table_init(&names, r->n, s->arena, e) : no_memory(e);
    for (uint32_t i = 0; rc == 0 && i < r->n && a->n < need; i++) {
        struct vset_found *f = &a->found[a->n];
        struct err why = {0};
        *f = (struct vset_found){
            .slot = r->v[i].slot, .score = r->v[i].score, .name_at = a->text.len};
        if (!vset_live(s->set, f->slot))
            continue; /* removed meanwhile, or replaced: then its new slot is here too */
        if (!vset_name(s->set, f->slot, &a->text, &why)) {
            if (why.code != 0 && e)
                *e = why;
            rc = why.code;
            continue;
        }
        f->name_bytes = a->text.len - f->name_at;
        if (a->text.failed)
            return no_memory(e);
        if (q->with_attributes && a->n >= q->offset)
            copy_attributes(s, a, f);
        /* Attributes go with the element: what was removed before they were copied had some. */
        if (vset_live(s->set, f->slot) && names_put(&names, a, a->n))
            a->n++;
        else
            a->text.len = f->name_at;
    }
    if (a->text.failed)
        return no_memory(e);
    s->drained = a->n < need && r->n >= need;
    uint32_t skip = q->offset < a->n ? q->offset : a->n;
    a->found += skip;
    a->n -= skip;
    return rc;
}

/* --- one search --- */

static uint32_t clamp_u32(uint64_t v)
{
    return v < UINT32_MAX ? (uint32_t)v : UINT32_MAX;
}

static uint64_t power_of_two(uint64_t least)
{
    uint64_t p = 1;
    while (p < least)
        p *= 2;
    return p;
}

/* How many candidates a stage takes of each query vector. */
static uint32_t stage_candidates(const struct search *s, uint64_t size)
{
    const struct vset_query *q = s->q;
    uint64_t k = size + q->n_exclude;
    if (s->few)
        return clamp_u32(q->filter_ef < s->count ? q->filter_ef : s->count);
    if (q->has_mmr)
        k = size * MMR_POOL > q->ef ? size * MMR_POOL : q->ef;
    else if (q->n_vectors > 1 && k < q->ef)
        k = q->ef;
    if (q->has_mmr)
        k += q->n_exclude;
    if (q->rescore && s->params->keep != VSET_KEEP_NONE) {
        /* As many times the size as the question has it of its count. */
        uint64_t wanted = q->count ? (size * q->rescore + q->count - 1) / q->count : k;
        k = wanted > k ? wanted : k;
    }
    if (k + SPARE <= q->ef)
        k += SPARE;
    return clamp_u32(k < s->count ? k : (uint64_t)s->count + IN_FLIGHT);
}

static int gather_stage(struct search *s, uint64_t size, struct stage *stage, struct err *e)
{
    const struct vset_query *q = s->q;
    stage->size = clamp_u32(size);
    stage->k = size ? stage_candidates(s, size) : 0;
    stage->lists = arena_alloc(s->arena, q->n_vectors * sizeof *stage->lists);
    if (!stage->lists)
        return no_memory(e);
    memset(stage->lists, 0, q->n_vectors * sizeof *stage->lists);
    uint64_t ef = size > q->ef ? size : q->ef;
    if (s->few)
        s->admission.filter = NULL; /* an earlier stage has set it */
    int rc = search_gather(s, stage->k, clamp_u32(ef), stage->lists, e);
    for (uint32_t i = 0; rc == 0 && s->few && i < q->n_vectors; i++)
        if (stage->lists[i].n > stage->k)
            stage->lists[i].n = stage->k; /* a scan keeps some to spare */
    if (rc == 0 && s->few)
        search_filter_few(s, stage->lists);
    return rc;
}

/* The first of the sizes of stages; 0: one stage of all that are near enough. */
static uint64_t first_size(const struct vset_query *q, uint64_t need)
{
    if (q->count == 0)
        return 0;
    if (!q->paged)
        return need;
    uint64_t size = power_of_two(q->count);
    return q->has_mmr || size > q->ef ? size : q->ef;
}

static int gather_stages(struct search *s, uint64_t need, struct stage *stages, uint32_t *n,
                         struct err *e)
{
    int rc = 0;
    uint64_t size = first_size(s->q, need);
    for (*n = 0; rc == 0 && *n < STAGES; size *= 2) {
        rc = gather_stage(s, size, &stages[(*n)++], e);
        if (size == 0 || size >= need || size >= s->count)
            break;
    }
    return rc;
}

/* --- updates meanwhile --- */

int search_note_late(struct search *s, struct err *e)
{
    uint64_t now = vset_replacements(s->set);
    for (; s->seen < now; s->seen++) {
        if (s->n_late == s->cap_late) {
            uint32_t cap = s->cap_late ? 2 * s->cap_late : 64;
            uint32_t *v = arena_alloc(s->arena, cap * sizeof *v);
            if (!v)
                return no_memory(e);
            if (s->n_late)
                memcpy(v, s->late, s->n_late * sizeof *v);
            s->late = v;
            s->cap_late = cap;
        }
        if (!vset_replacement(s->set, s->seen, &s->late[s->n_late]))
            return KITH_EBUSY;
        s->n_late++;
    }
    return 0;
}

int search_breathe(struct search *s, uint32_t work, struct err *e)
{
    s->work += work;
    if (s->held || s->work < BRACKET_WORK)
        return 0;
    s->work = 0;
    int rc = search_note_late(s, e);
    epoch_exit();
    epoch_enter();
    s->breathed = true;
    return rc;
}

/* Puts what came since the last call into the lists. */
static int mend(struct search *s, struct stage *stages, uint32_t n, struct err *e)
{
    int rc = search_note_late(s, e);
    for (uint32_t i = 0; rc == 0 && i < s->n_late; i++)
        for (uint32_t j = 0; rc == 0 && j < n; j++)
            rc = search_add_slot(s, s->late[i], stages[j].k, stages[j].lists, e);
    s->account->overtaken |= s->n_late > 0;
    s->n_late = 0;
    return rc;
}

/* After gathering, in the bracket that is kept to the end. */
static int verify(struct search *s, struct stage *stages, uint32_t n, struct err *e)
{
    int rc = 0;
    if (s->breathed && vset_changes(s->set) != s->changes)
        for (uint32_t i = 0; rc == 0 && i < n; i++)
            rc = search_verify(s, stages[i].k, stages[i].lists, e);
    return rc;
}

static int rank_and_copy(struct search *s, const struct stage *stages, uint32_t n_stages,
                         uint64_t need, struct vset_answer *a, struct err *e)
{
    struct ranking done = {0};
    bool last = false;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && !last && i < n_stages; i++)
        rc = rank_stage(s, &stages[i], need, &done, &last, e);
    return rc == 0 ? copy_found(s, &done, need, a, e) : rc;
}

/* One attempt, inside an epoch bracket. KITH_EBUSY: too much changed in between. */
static int attempt(struct search *s, struct vset_answer *a, struct err *e)
{
    const struct vset_query *q = s->q;
    s->seen = vset_replacements(s->set);
    s->changes = vset_changes(s->set);
    s->count = vset_count(s->set);
    const uint64_t asked = q->count ? (uint64_t)q->offset + q->count : UINT64_MAX;
    const uint64_t most = (uint64_t)s->count + IN_FLIGHT;
    const uint64_t need = asked < most ? asked : most;
    a->n = 0;
    if (s->count <= q->offset)
        return 0;
    struct stage stages[STAGES];
    uint32_t n_stages = 0;
    int rc = search_filter_begin(s, e);
    if (rc == 0)
        rc = gather_stages(s, need, stages, &n_stages, e);
    if (rc == 0)
        rc = verify(s, stages, n_stages, e);
    do {
        if (rc == 0)
            rc = mend(s, stages, n_stages, e);
        if (rc == 0)
            rc = rank_and_copy(s, stages, n_stages, need, a, e);
    } while (rc == 0 && vset_replacements(s->set) != s->seen);
    search_filter_end(s);
    /* As many as there were at the beginning were kept, and more were asked for: what came
     * meanwhile may have pushed out what was there all the time, even if it is gone again. (All
     * within a radius are kept without a bound.) */
    bool crowded = asked > need && (q->count || a->n + (uint64_t)q->offset >= need);
    /* Or enough were kept, but so many of them are gone that those behind them are missed. */
    if (rc == 0 && (crowded || s->drained) && vset_changes(s->set) != s->changes)
        return KITH_EBUSY;
    return rc;
}

int vset_search(struct vset *v, const struct vset_query *q, struct index_scratch *scratch,
                struct arena *arena, struct vset_answer *a, struct err *e)
{
    *a = (struct vset_answer){.account.share = -1};
    buf_init(&a->text);
    int rc = KITH_EBUSY;
    for (int tries = 0; rc == KITH_EBUSY && tries <= TRIES; tries++) {
        struct search s = {.set = v,
                           .q = q,
                           .params = vset_params(v),
                           .index = vset_index(v),
                           .scratch = scratch,
                           .arena = arena,
                           .account = &a->account,
                           .held = tries == TRIES};
        if (s.held)
            vset_hold(v);
        epoch_enter();
        rc = attempt(&s, a, e);
        epoch_exit();
        if (s.held)
            vset_let_go(v);
    }
    if (rc == 0 && !vset_healthy(v))
        rc = err_set(e, KITH_ECORRUPT,
                     "attributes or times of the set are damaged, see kith-check");
    return rc;
}

void vset_answer_deinit(struct vset_answer *a)
{
    buf_deinit(&a->text);
}

/* --- the account in words --- */

const char *vset_account_plan(const struct vset_account *a)
{
    if (a->walked)
        return a->scanned ? "walk, then scan" : "walk";
    return a->scanned ? "scan" : "none";
}

static void print_why(const struct vset_account *a, char *out, size_t n)
{
    char passes[96] = "";
    if (a->share >= 0)
        snprintf(passes, sizeof passes,
                 "the filter passes %s%.3g %% of %u elements: ", a->used_bits ? "" : "about ",
                 a->share * 100, a->n_elements);
    switch (a->why) {
    case VSET_WHY_EMPTY:
        snprintf(out, n, "there is nothing to search");
        return;
    case VSET_WHY_TRUTH:
        snprintf(out, n, "%sTRUTH looks at every one", passes);
        return;
    case VSET_WHY_FLAT:
        snprintf(out, n, "%sthe set has no graph", passes);
        return;
    case VSET_WHY_COST:
        snprintf(out, n, "%sa scan of %u elements was expected to take %.3g us, a walk %.3g us",
                 passes, a->n_elements, a->scan_us, a->walk_us);
        return;
    }
}

void vset_account_reason(const struct vset_account *a, char *out, size_t n)
{
    print_why(a, out, n);
    size_t used = strlen(out);
    if (a->then == VSET_THEN_CUT)
        snprintf(out + used, n - used, "; the walk had looked at as many vectors as it may");
    else if (a->then == VSET_THEN_SHORT)
        snprintf(out + used, n - used, "; the walk found too few");
}
