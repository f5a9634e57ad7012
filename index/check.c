/* Verifies what the other files keep. It reads every record, so it is for tests, for kith-check
 * and for people who doubt. */
#include "index/hnsw.h"

struct check {
    struct index *x;
    void (*note)(void *arg, uint32_t slot, const char *what);
    void *arg;
    int64_t n;
    uint32_t *list, n_linked, n_tail, n_removed, n_upper;
    unsigned max_level;
};

static void found(struct check *c, uint32_t slot, const char *what)
{
    c->n++;
    if (c->note)
        c->note(c->arg, slot, what);
}

static int check_link(struct check *c, uint32_t slot, unsigned level, uint32_t peer,
                      struct err *e)
{
    struct hnsw_list l;
    uint32_t meta;
    int rc = index_meta(c->x, peer, &meta, e);
    if (rc < 0)
        return rc;
    if (peer == slot)
        found(c, slot, "links to itself");
    enum code_state state = code_meta_state(meta);
    if (state != CODE_LINKED && state != CODE_REMOVED)
        found(c, slot, "links to a slot that is not in the graph");
    rc = hnsw_list_at(c->x, level, peer, &l, e);
    if (rc < 0)
        return rc;
    if (rc == 0)
        found(c, slot, "links to a slot that does not reach this level");
    else if (!hnsw_list_has(&l, slot))
        found(c, slot, "links to a slot that does not link back");
    return 0;
}

static int check_list(struct check *c, uint32_t slot, unsigned level, struct err *e)
{
    struct hnsw_list l;
    int rc = hnsw_list_at(c->x, level, slot, &l, e);
    if (rc < 0)
        return rc;
    if (rc == 0) {
        found(c, slot, "lacks the record of one of its levels");
        return 0;
    }
    uint32_t count = atomic_load(l.count);
    if (count > l.max) {
        found(c, slot, "has more links than there is room for");
        count = l.max;
    }
    uint32_t kept = hnsw_list_read(&l, index_n_slots(c->x), c->list);
    if (kept < count)
        found(c, slot, "links to a slot that does not exist");
    for (uint32_t i = 0; i < kept; i++) {
        for (uint32_t k = 0; k < i; k++)
            if (c->list[k] == c->list[i])
                found(c, slot, "links twice to the same slot");
        if ((rc = check_link(c, slot, level, c->list[i], e)) < 0)
            return rc;
    }
    return 0;
}

static int check_slot(struct check *c, uint32_t slot, struct err *e)
{
    uint32_t meta;
    int rc = index_meta(c->x, slot, &meta, e);
    if (rc < 0)
        return rc;
    unsigned level = code_meta_level(meta);
    switch (code_meta_state(meta)) {
    case CODE_FREE:
        return 0;
    case CODE_TAIL:
        c->n_tail++;
        return 0;
    case CODE_REMOVED:
        c->n_removed++;
        return 0;
    case CODE_LINKED:
        c->n_linked++;
        break;
    default:
        found(c, slot, "is in no known state");
        return 0;
    }
    if (c->x->params.kind == INDEX_FLAT)
        return 0;
    c->max_level = level > c->max_level ? level : c->max_level;
    c->n_upper += level;
    for (unsigned l = 0; l <= level && rc == 0; l++)
        rc = check_list(c, slot, l, e);
    return rc;
}

static void check_counts(struct check *c)
{
    struct index_info info = index_info(c->x);
    if (info.n_linked != c->n_linked)
        found(c, INDEX_SLOT_NONE, "the number of linked slots is not what was counted");
    if (info.n_tail != c->n_tail)
        found(c, INDEX_SLOT_NONE, "the tail's length is not what was counted");
    if (info.n_removing != c->n_removed)
        found(c, INDEX_SLOT_NONE, "the number of removed slots is not what was counted");
    if (c->x->params.kind == INDEX_FLAT)
        return;
    if (c->n_linked && info.entry == INDEX_SLOT_NONE)
        found(c, INDEX_SLOT_NONE, "there is no entry point");
    else if (c->n_linked && c->n_removed == 0 && info.max_level != c->max_level)
        found(c, info.entry, "is the entry point, but not of the highest level");
    if (c->n_upper > c->x->n_upper)
        found(c, INDEX_SLOT_NONE, "there are fewer upper records than levels");
}

int64_t index_check(struct index *x, void (*note)(void *arg, uint32_t slot, const char *what),
                    void *arg, struct err *e)
{
    struct check c = {.x = x, .note = note, .arg = arg};
    c.list = mem_alloc_n((size_t)x->max0 + 1, sizeof *c.list);
    if (!c.list)
        return err_set(e, KITH_ENOMEM, "out of memory for a check");
    int rc = 0;
    for (uint32_t slot = 0, n = index_n_slots(x); rc == 0 && slot < n; slot++)
        rc = check_slot(&c, slot, e);
    mem_free(c.list);
    if (rc < 0)
        return rc;
    check_counts(&c);
    return c.n;
}
