/* The records of the graph and the few ways to change them. Readers look on all the time, so
 * each field is an atomic, a list is changed link by link, and at any moment every number in it
 * is a slot that was in the graph when the reader came. Numbers read are checked before they
 * are used: a damaged file may lead a walk astray, never out of the arrays. */
#include "index/hnsw.h"

static uint32_t load(const _Atomic uint32_t *p)
{
    return atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)p, memory_order_acquire);
}

static void store(_Atomic uint32_t *p, uint32_t v)
{
    atomic_store_explicit(p, v, memory_order_release);
}

static struct hnsw_list list_level0(struct index *x, const char *record)
{
    _Atomic uint32_t *p = (_Atomic uint32_t *)(uintptr_t)record;
    return (struct hnsw_list){p, p + LINKS_HEADER_BYTES / 4, x->max0};
}

static struct hnsw_list list_above(struct index *x, const char *record)
{
    _Atomic uint32_t *p = (_Atomic uint32_t *)(uintptr_t)record;
    return (struct hnsw_list){p + 2, p + UPPER_HEADER_BYTES / 4, x->max};
}

/* The number + 1 of a slot's record at a level above 0. 1, 0 or a negative code. */
static int upper_of(struct index *x, unsigned level, uint32_t slot, uint32_t *record,
                    struct err *e)
{
    const char *p = records_at(x->arrays.links, slot, e);
    if (!p)
        return index_damage(e);
    uint32_t at = load((const _Atomic uint32_t *)(const void *)p + 1);
    uint32_t n = records_count(x->arrays.upper);
    for (; at != 0 && at <= n; level--) {
        if (level == 1) {
            *record = at;
            return 1;
        }
        p = records_at(x->arrays.upper, at - 1, e);
        if (!p)
            return index_damage(e);
        at = load((const _Atomic uint32_t *)(const void *)p + 1);
    }
    return 0;
}

int hnsw_list_at(struct index *x, unsigned level, uint32_t slot, struct hnsw_list *out,
                 struct err *e)
{
    const char *p;
    if (level == 0) {
        p = records_at(x->arrays.links, slot, e);
        if (!p)
            return index_damage(e);
        *out = list_level0(x, p);
        return 1;
    }
    uint32_t record;
    int rc = upper_of(x, level, slot, &record, e);
    if (rc <= 0)
        return rc;
    p = records_at(x->arrays.upper, record - 1, e);
    if (!p)
        return index_damage(e);
    *out = list_above(x, p);
    return 1;
}

int hnsw_list_writable(struct index *x, unsigned level, uint32_t slot, struct hnsw_list *out,
                       struct err *e)
{
    char *p;
    if (level == 0) {
        p = records_writable(x->arrays.links, slot, e);
        if (!p)
            return index_damage(e);
        *out = list_level0(x, p);
        return 1;
    }
    uint32_t record;
    int rc = upper_of(x, level, slot, &record, e);
    if (rc <= 0)
        return rc;
    p = records_writable(x->arrays.upper, record - 1, e);
    if (!p)
        return index_damage(e);
    *out = list_above(x, p);
    return 1;
}

uint32_t hnsw_list_read(const struct hnsw_list *l, uint32_t n, uint32_t *out)
{
    uint32_t count = load(l->count), kept = 0;
    if (count > l->max)
        count = l->max;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = load(&l->slots[i]);
        if (slot < n)
            out[kept++] = slot;
    }
    return kept;
}

static uint32_t list_count(const struct hnsw_list *l)
{
    uint32_t count = load(l->count);
    return count < l->max ? count : l->max;
}

static uint32_t list_find(const struct hnsw_list *l, uint32_t slot)
{
    uint32_t count = list_count(l), i = 0;
    while (i < count && load(&l->slots[i]) != slot)
        i++;
    return i;
}

bool hnsw_list_has(const struct hnsw_list *l, uint32_t slot)
{
    return list_find(l, slot) < list_count(l);
}

/* --- changes --- */

int hnsw_upper_new(struct index *x, uint32_t slot, unsigned level, struct err *e)
{
    struct records *upper = x->arrays.upper;
    uint32_t record = x->upper_free;
    int rc;
    if (record == 0 || record > records_count(upper)) {
        record = x->n_upper + 1;
        if (record > records_count(upper) && (rc = records_grow(upper, record, e)) != 0)
            return rc;
    }
    /* What it hangs on: the slot's record at the level below. */
    struct records *below = level == 1 ? x->arrays.links : upper;
    uint32_t at = slot;
    if (level > 1) {
        rc = upper_of(x, level - 1, slot, &at, e);
        if (rc <= 0)
            return rc < 0
                       ? rc
                       : err_set(e, KITH_ECORRUPT, "slot %u has no level %u", slot, level - 1);
        at--;
    }
    if (!records_writable(below, at, e))
        return index_damage(e);
    _Atomic uint32_t *p = (_Atomic uint32_t *)(void *)records_writable(upper, record - 1, e);
    if (!p)
        return index_damage(e);
    if (record == x->upper_free)
        x->upper_free = load(p + 1);
    else
        x->n_upper = record;
    store(p + 2, 0);
    store(p + 1, 0);
    store(p, slot);
    p = (_Atomic uint32_t *)(void *)records_writable(below, at, e);
    if (!p)
        return index_damage(e);
    store(p + 1, record);
    return 0;
}

int hnsw_upper_free(struct index *x, uint32_t slot, struct err *e)
{
    uint32_t n = records_count(x->arrays.upper);
    _Atomic uint32_t *p =
        (_Atomic uint32_t *)(void *)records_writable(x->arrays.links, slot, e);
    if (!p)
        return index_damage(e);
    uint32_t at = load(p + 1);
    store(p + 1, 0);
    for (unsigned level = 0; at != 0 && at <= n && level < CODE_LEVEL_MAX; level++) {
        p = (_Atomic uint32_t *)(void *)records_writable(x->arrays.upper, at - 1, e);
        if (!p)
            return index_damage(e); /* the rest of the chain is lost room, nothing else */
        if (load(p) != slot)
            break;
        uint32_t next = load(p + 1);
        store(p, INDEX_SLOT_NONE);
        store(p + 2, 0);
        store(p + 1, x->upper_free);
        x->upper_free = at;
        at = next;
    }
    return 0;
}

/* Both lists in their writable form, so that changing the one cannot leave the other behind:
 * the writable of a record that is writable already does not fail. 1, 0 or a negative code. */
static int make_writable(struct index *x, unsigned level, uint32_t a, uint32_t b, struct err *e)
{
    struct hnsw_list l;
    int rc = hnsw_list_writable(x, level, a, &l, e);
    return rc <= 0 ? rc : hnsw_list_writable(x, level, b, &l, e);
}

static int list_add(struct index *x, unsigned level, uint32_t to, uint32_t slot, struct err *e)
{
    struct hnsw_list l;
    int rc = hnsw_list_writable(x, level, to, &l, e);
    if (rc <= 0)
        return rc;
    uint32_t count = list_count(&l);
    if (count < l.max) {
        store(&l.slots[count], slot);
        store(l.count, count + 1);
    }
    return 0;
}

static int list_cut(struct index *x, unsigned level, uint32_t from, uint32_t slot,
                    struct err *e)
{
    struct hnsw_list l;
    int rc = hnsw_list_writable(x, level, from, &l, e);
    if (rc <= 0)
        return rc;
    uint32_t count = list_count(&l), i = list_find(&l, slot);
    if (i < count) {
        store(&l.slots[i], load(&l.slots[count - 1]));
        store(l.count, count - 1);
    }
    return 0;
}

int hnsw_join(struct index *x, unsigned level, uint32_t a, uint32_t b, struct err *e)
{
    int rc = make_writable(x, level, a, b, e);
    if (rc <= 0)
        return rc;
    rc = list_add(x, level, a, b, e);
    return rc < 0 ? rc : list_add(x, level, b, a, e);
}

int hnsw_part(struct index *x, unsigned level, uint32_t a, uint32_t b, struct err *e)
{
    int rc = make_writable(x, level, a, b, e);
    if (rc <= 0)
        return rc;
    rc = list_cut(x, level, a, b, e);
    return rc < 0 ? rc : list_cut(x, level, b, a, e);
}

int hnsw_detach(struct index *x, uint32_t slot, unsigned level, struct err *e)
{
    uint32_t n = index_n_slots(x);
    for (unsigned l = 0; l <= level; l++) {
        struct hnsw_list list;
        int rc = hnsw_list_writable(x, l, slot, &list, e);
        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        uint32_t count;
        while ((count = list_count(&list)) > 0) {
            uint32_t peer = load(&list.slots[count - 1]);
            if (peer < n && peer != slot && (rc = hnsw_part(x, l, peer, slot, e)) < 0)
                return rc;
            if ((rc = hnsw_list_writable(x, l, slot, &list, e)) <= 0)
                return rc;
            if (list_count(&list) == count)
                store(list.count, count - 1); /* a link without its twin, or to nowhere */
        }
    }
    return 0;
}

/* --- the entry point --- */

/* A linked neighbour of a slot at a level, or NONE. */
static int linked_neighbour(struct index *x, unsigned level, uint32_t slot, uint32_t *out,
                            struct err *e)
{
    struct hnsw_list l;
    *out = INDEX_SLOT_NONE;
    int rc = hnsw_list_at(x, level, slot, &l, e);
    if (rc <= 0)
        return rc;
    for (uint32_t i = 0, n = index_n_slots(x); i < list_count(&l); i++) {
        uint32_t peer = load(&l.slots[i]), meta;
        if (peer >= n || peer == slot)
            continue;
        if ((rc = index_meta(x, peer, &meta, e)) < 0)
            return rc;
        if (code_meta_state(meta) == CODE_LINKED && code_meta_level(meta) >= level) {
            *out = peer;
            return 0;
        }
    }
    return 0;
}

/* Looks through every upper record, then every code, for the highest linked slot but one. */
static int highest_but(struct index *x, uint32_t slot, uint64_t *best, struct err *e)
{
    bool found = false;
    uint32_t n = index_n_slots(x), n_upper = records_count(x->arrays.upper);
    if (n_upper > x->n_upper)
        n_upper = x->n_upper;
    for (uint32_t pass = 0; pass < 2 && !found; pass++) {
        for (uint32_t i = 0; i < (pass == 0 ? n_upper : n); i++) {
            uint32_t peer = i, meta;
            if (pass == 0) {
                const char *p = records_at(x->arrays.upper, i, e);
                if (!p)
                    return index_damage(e);
                peer = load((const _Atomic uint32_t *)(const void *)p);
            }
            if (peer >= n || peer == slot)
                continue;
            int rc = index_meta(x, peer, &meta, e);
            if (rc < 0)
                return rc;
            if (code_meta_state(meta) != CODE_LINKED)
                continue;
            if (!found || code_meta_level(meta) > entry_level(*best)) {
                *best = entry_pack(code_meta_level(meta), peer);
                found = true;
            }
            if (pass == 1)
                break; /* no upper record was left, so all are at level 0 */
        }
    }
    return found;
}

int hnsw_entry_without(struct index *x, uint32_t slot, struct err *e)
{
    uint64_t entry = index_entry(x), next = entry_pack(0, INDEX_SLOT_NONE);
    if (entry_slot(entry) != slot)
        return 0;
    if (atomic_load(&x->n_linked) > 0) {
        uint32_t peer;
        int rc = linked_neighbour(x, entry_level(entry), slot, &peer, e);
        if (rc < 0)
            return rc;
        if (peer != INDEX_SLOT_NONE)
            next = entry_pack(entry_level(entry), peer);
        else if ((rc = highest_but(x, slot, &next, e)) < 0)
            return rc;
    }
    atomic_store_explicit(&x->entry, next, memory_order_release);
    return 0;
}
