/* Slots and names.
 *
 * A name of up to 28 bytes lies whole in its element record, so that a search's reply touches
 * one cache line a hit. A longer one goes on in a chain of 32-byte units of the names array;
 * units are fixed so that they never fragment, and the free ones are chained through their own
 * next fields.
 *
 *   elem  { n=40, hash, more=7, state, attributes } "first 28 bytes of "   more - 1 = 6
 *   unit 6 { next=0 } "rest of it"
 *
 * A record is written before its slot is published (index_add) and not again before the index
 * has handed the slot back, which it does when no reader can hold it; so readers need no lock.
 * Two fields are not like that: the state, which becomes ELEM_REMOVED, and the place of the
 * attributes; both are single words. */
#include "base/epoch.h"
#include "base/mem.h"
#include "server/vset_parts.h"

static struct records *elems(struct vset *v)
{
    return chunks_records(v->arrays[ARRAY_ELEMS]);
}

static struct records *names(struct vset *v)
{
    return chunks_records(v->arrays[ARRAY_NAMES]);
}

const struct elem *elem_at(struct vset *v, uint32_t slot, struct err *e)
{
    return (const struct elem *)(const void *)records_at(elems(v), slot, e);
}

/* For the owner; NULL only where elems_prepare was not asked. */
static struct elem *writable_elem(struct vset *v, uint32_t slot, struct err *e)
{
    return (struct elem *)(void *)records_writable(elems(v), slot, e);
}

/* --- name units --- */

static void free_units(struct vset *v, uint32_t first)
{
    /* A unit that cannot be written (out of memory, damage) is lost until the set is rewritten;
     * it is never given out twice, since the chain is cut before it. */
    while (first) {
        char *unit = records_writable(names(v), first - 1, NULL);
        if (!unit)
            return;
        uint32_t next = load_u32(unit);
        store_u32(unit, v->free_unit);
        v->free_unit = first;
        first = next;
    }
}

static int take_unit(struct vset *v, uint32_t *unit, struct err *e)
{
    if (v->free_unit) {
        const char *p = records_writable(names(v), v->free_unit - 1, e);
        if (!p)
            return e->code;
        *unit = v->free_unit;
        v->free_unit = load_u32(p);
        if (v->free_unit > records_count(names(v)))
            v->free_unit = 0;
        return 0;
    }
    uint32_t n = records_count(names(v));
    int rc = records_grow(names(v), n + 1, e);
    *unit = n + 1;
    return rc;
}

static int write_units(struct vset *v, struct slice rest, uint32_t *first, struct err *e)
{
    uint32_t before = 0; /* written back to front, so that each unit is written once */
    size_t n_units = (rest.n + NAME_UNIT_DATA - 1) / NAME_UNIT_DATA;
    for (size_t i = n_units; i-- > 0;) {
        uint32_t unit = 0;
        int rc = take_unit(v, &unit, e);
        char *p = rc == 0 ? records_writable(names(v), unit - 1, e) : NULL;
        if (!p) {
            free_units(v, before);
            return rc ? rc : e->code;
        }
        size_t at = i * NAME_UNIT_DATA, n = rest.n - at;
        n = n < NAME_UNIT_DATA ? n : NAME_UNIT_DATA;
        memset(p, 0, NAME_UNIT_BYTES);
        store_u32(p, before);
        memcpy(p + 4, rest.p + at, n);
        before = unit;
    }
    *first = before;
    return 0;
}

/* --- elements --- */

int elems_prepare(struct vset *v, uint32_t slot, struct err *e)
{
    return writable_elem(v, slot, e) ? 0 : e->code;
}

int elems_write(struct vset *v, uint32_t slot, struct slice name, bool text,
                uint32_t attributes, struct err *e)
{
    uint32_t more = 0;
    size_t prefix = name.n < ELEM_PREFIX ? name.n : ELEM_PREFIX;
    int rc = write_units(v, (struct slice){name.p + prefix, name.n - prefix}, &more, e);
    if (rc != 0)
        return rc;
    struct elem *el = writable_elem(v, slot, e);
    if (!el) {
        free_units(v, more);
        return e->code;
    }
    el->name_n = (uint32_t)name.n;
    el->name_hash = table_hash(name);
    el->more = more;
    memset(el->prefix, 0, sizeof el->prefix);
    memcpy(el->prefix, name.p, prefix);
    atomic_store_explicit(&el->attributes, attributes, memory_order_relaxed);
    atomic_store_explicit(&el->state, text ? ELEM_LIVE_TEXT : ELEM_LIVE, memory_order_release);
    return 0;
}

void elems_set_removed(struct vset *v, uint32_t slot)
{
    struct elem *el = writable_elem(v, slot, NULL);
    if (!el)
        return;
    /* Its attributes too, so that who comes later does not take what lies there by then for
     * them. */
    atomic_store_explicit(&el->state, ELEM_REMOVED, memory_order_release);
    atomic_store_explicit(&el->attributes, 0, memory_order_release);
}

void elems_set_attributes(struct vset *v, uint32_t slot, uint32_t attributes)
{
    struct elem *el = writable_elem(v, slot, NULL);
    if (el)
        atomic_store_explicit(&el->attributes, attributes, memory_order_release);
}

uint32_t elems_attributes(struct vset *v, uint32_t slot)
{
    epoch_enter();
    const struct elem *el = elem_at(v, slot, NULL);
    uint32_t attributes = el ? elem_attributes(el) : 0;
    epoch_exit();
    return attributes;
}

bool elems_has_text(struct vset *v, uint32_t slot)
{
    epoch_enter();
    const struct elem *el = elem_at(v, slot, NULL);
    bool has = el && elem_state(el) == ELEM_LIVE_TEXT;
    epoch_exit();
    return has;
}

void slots_give_back(struct vset *v, uint32_t slot)
{
    uint32_t *slots = mem_grow(v->free_slots, v->n_free, &v->free_cap, 64, sizeof *slots);
    if (!slots)
        return; /* found again by elems_load at the next start */
    v->free_slots = slots;
    v->free_slots[v->n_free++] = slot;
}

void elems_release(struct vset *v, uint32_t slot)
{
    struct elem *el = writable_elem(v, slot, NULL);
    if (!el)
        return; /* it stays removed, and is found again by elems_load */
    free_units(v, el->more);
    el->more = el->name_n = el->name_hash = 0;
    atomic_store_explicit(&el->attributes, 0, memory_order_relaxed);
    atomic_store_explicit(&el->state, ELEM_FREE, memory_order_release);
    slots_give_back(v, slot);
}

/* One piece of a name after another: the prefix, then the units of the chain. */
struct pieces {
    struct vset *v;
    const struct elem *el;
    size_t at; /* bytes given so far */
    uint32_t unit;
};

/* The next piece in *out; false at the end. Damage is an error in *rc. */
static bool next_piece(struct pieces *x, struct slice *out, int *rc, struct err *e)
{
    size_t n = x->el->name_n - x->at;
    *rc = 0;
    if (n == 0)
        return false;
    if (x->at == 0) {
        *out = (struct slice){x->el->prefix, n < ELEM_PREFIX ? n : ELEM_PREFIX};
        x->unit = x->el->more;
    } else {
        const char *p = x->unit && x->unit <= records_count(names(x->v))
                            ? records_at(names(x->v), x->unit - 1, e)
                            : NULL;
        if (!p) {
            *rc =
                err_set(e, KITH_ECORRUPT, "the chain of a name is broken at unit %u", x->unit);
            return false;
        }
        *out = (struct slice){p + 4, n < NAME_UNIT_DATA ? n : NAME_UNIT_DATA};
        x->unit = load_u32(p);
    }
    x->at += out->n;
    return true;
}

int elems_name_equals(struct vset *v, const struct elem *el, struct slice name, bool *equal,
                      struct err *e)
{
    struct pieces x = {.v = v, .el = el};
    struct slice piece;
    int rc = 0;
    *equal = false;
    if (el->name_n != name.n)
        return 0;
    while (next_piece(&x, &piece, &rc, e))
        if (memcmp(piece.p, name.p + x.at - piece.n, piece.n) != 0)
            return 0;
    *equal = rc == 0;
    return rc;
}

int elems_name_compare(struct vset *v, const struct elem *el, struct slice name, int *result,
                       struct err *e)
{
    struct pieces x = {.v = v, .el = el};
    struct slice piece;
    int rc = 0;
    *result = 0;
    while (*result == 0 && next_piece(&x, &piece, &rc, e)) {
        size_t from = x.at - piece.n, left = name.n - from;
        size_t n = piece.n < left ? piece.n : left;
        *result = n ? memcmp(piece.p, name.p + from, n) : 0;
        if (*result == 0 && n < piece.n)
            *result = 1; /* the other name is the beginning of this one */
    }
    if (rc == 0 && *result == 0 && x.at < name.n)
        *result = -1;
    return rc;
}

bool vset_live(struct vset *v, uint32_t slot)
{
    const struct elem *el =
        slot < records_count(vset_array(v, ARRAY_ELEMS)) ? elem_at(v, slot, NULL) : NULL;
    return el && elem_live(el);
}

bool vset_has_text(struct vset *v, uint32_t slot)
{
    const struct elem *el =
        slot < records_count(vset_array(v, ARRAY_ELEMS)) ? elem_at(v, slot, NULL) : NULL;
    return el && elem_state(el) == ELEM_LIVE_TEXT;
}

bool vset_name(struct vset *v, uint32_t slot, struct buf *out, struct err *e)
{
    const struct elem *el = elem_at(v, slot, e);
    if (!el || elem_state(el) == ELEM_FREE)
        return false;
    struct pieces x = {.v = v, .el = el};
    struct slice piece;
    int rc = 0;
    while (next_piece(&x, &piece, &rc, e))
        buf_append(out, piece.p, piece.n);
    if (rc != 0) {
        err_wrap(e, "slot %u of vector set %u", slot, v->id);
        return false;
    }
    return true;
}

int elems_load(struct vset *v, uint32_t count, struct err *e)
{
    int rc = 0;
    uint32_t live = 0;
    v->n_attributes = v->n_texts = 0;
    epoch_enter(); /* nothing is retired here */
    for (uint32_t slot = v->next_slot; rc == 0 && slot-- > 0;) {
        const struct elem *el = elem_at(v, slot, e);
        if (!el) {
            rc = KITH_ECORRUPT;
        } else if (elem_live(el)) {
            v->n_attributes += elem_attributes(el) != 0;
            v->n_texts += elem_state(el) == ELEM_LIVE_TEXT;
            if (live++ < count && (rc = table_reserve(v, el->name_hash, e)) == 0)
                table_put(&v->table, el->name_hash, slot);
        } else if (elem_state(el) == ELEM_FREE) {
            slots_give_back(v, slot);
        } /* a removed one is handed back by the index */
    }
    epoch_exit();
    if (rc == 0 && live != count)
        rc = err_set(e, KITH_ECORRUPT, "%u elements are there, %u are recorded", live, count);
    atomic_store(&v->count, live);
    return rc;
}
