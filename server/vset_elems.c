/* Slots, names, and the table from names to slots.
 *
 * A name of up to 32 bytes lies whole in its element record, so that a search's reply touches
 * one cache line a hit. A longer one goes on in a chain of 32-byte units of the names array;
 * units are fixed so that they never fragment, and the free ones are chained through their own
 * next fields.
 *
 *   elem  { n=40, hash, more=7, state } "first 32 bytes of the na"     more - 1 = 6
 *   unit 6 { next=0 } "rest of it"
 *
 * A record is written before its slot is published (index_add) and not again before the index
 * has handed the slot back, which it does when no reader can hold it; so readers need no lock.
 */
#include "base/epoch.h"
#include "base/hash.h"
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

static const struct elem *elem_at(struct vset *v, uint32_t slot, struct err *e)
{
    return (const struct elem *)(const void *)records_at(elems(v), slot, e);
}

static uint32_t elem_state(const struct elem *el)
{
    return atomic_load_explicit(&el->state, memory_order_acquire);
}

static uint32_t hash_name(struct slice name)
{
    return (uint32_t)hash64(name.p, name.n);
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
        const char *p = records_at(names(v), v->free_unit - 1, e);
        if (!p)
            return KITH_ECORRUPT;
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
        uint32_t unit;
        int rc = take_unit(v, &unit, e);
        char *p = rc == 0 ? records_writable(names(v), unit - 1, e) : NULL;
        if (!p) {
            free_units(v, before);
            return rc ? rc : KITH_ENOMEM;
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

int elems_write(struct vset *v, uint32_t slot, struct slice name, bool text, struct err *e)
{
    uint32_t more = 0;
    size_t prefix = name.n < ELEM_PREFIX ? name.n : ELEM_PREFIX;
    int rc = write_units(v, (struct slice){name.p + prefix, name.n - prefix}, &more, e);
    if (rc != 0)
        return rc;
    struct elem *el = (struct elem *)(void *)records_writable(elems(v), slot, e);
    if (!el) {
        free_units(v, more);
        return KITH_ENOMEM;
    }
    el->name_n = (uint32_t)name.n;
    el->name_hash = hash_name(name);
    el->more = more;
    memset(el->prefix, 0, sizeof el->prefix);
    memcpy(el->prefix, name.p, prefix);
    atomic_store_explicit(&el->state, text ? ELEM_LIVE_TEXT : ELEM_LIVE, memory_order_release);
    return 0;
}

int elems_set_state(struct vset *v, uint32_t slot, uint32_t state, struct err *e)
{
    struct elem *el = (struct elem *)(void *)records_writable(elems(v), slot, e);
    if (!el)
        return KITH_ENOMEM;
    atomic_store_explicit(&el->state, state, memory_order_release);
    return 0;
}

bool elems_has_text(struct vset *v, uint32_t slot)
{
    const struct elem *el = elem_at(v, slot, NULL);
    return el && elem_state(el) == ELEM_LIVE_TEXT;
}

void slots_give_back(struct vset *v, uint32_t slot)
{
    if (v->n_free == v->free_cap) {
        uint32_t cap = v->free_cap ? v->free_cap * 2 : 64;
        uint32_t *slots = mem_realloc_n(v->free_slots, cap, sizeof *slots);
        if (!slots)
            return; /* found again by elems_load at the next start */
        v->free_slots = slots;
        v->free_cap = cap;
    }
    v->free_slots[v->n_free++] = slot;
}

void elems_release(struct vset *v, uint32_t slot)
{
    struct elem *el = (struct elem *)(void *)records_writable(elems(v), slot, NULL);
    if (!el)
        return;
    free_units(v, el->more);
    el->more = el->name_n = el->name_hash = 0;
    atomic_store_explicit(&el->state, ELEM_FREE, memory_order_release);
    slots_give_back(v, slot);
}

/* Whether the element's name is this one. Damage in the chain is an error in e. */
static int name_equals(struct vset *v, const struct elem *el, struct slice name, bool *equal,
                       struct err *e)
{
    *equal = false;
    size_t prefix = name.n < ELEM_PREFIX ? name.n : ELEM_PREFIX;
    if (el->name_n != name.n || memcmp(el->prefix, name.p, prefix) != 0)
        return 0;
    uint32_t unit = el->more;
    for (size_t at = prefix; at < name.n; at += NAME_UNIT_DATA) {
        if (!unit || unit > records_count(names(v)))
            return err_set(e, KITH_ECORRUPT, "a name's chain is broken at unit %u", unit);
        const char *p = records_at(names(v), unit - 1, e);
        if (!p)
            return KITH_ECORRUPT;
        size_t n = name.n - at < NAME_UNIT_DATA ? name.n - at : NAME_UNIT_DATA;
        if (memcmp(p + 4, name.p + at, n) != 0)
            return 0;
        unit = load_u32(p);
    }
    *equal = true;
    return 0;
}

bool vset_name(struct vset *v, uint32_t slot, struct buf *out, struct err *e)
{
    const struct elem *el = elem_at(v, slot, e);
    if (!el || elem_state(el) == ELEM_FREE)
        return false;
    size_t prefix = el->name_n < ELEM_PREFIX ? el->name_n : ELEM_PREFIX;
    buf_append(out, el->prefix, prefix);
    uint32_t unit = el->more;
    for (size_t at = prefix; at < el->name_n; at += NAME_UNIT_DATA) {
        const char *p =
            unit && unit <= records_count(names(v)) ? records_at(names(v), unit - 1, e) : NULL;
        if (!p) {
            err_set(e, KITH_ECORRUPT, "the name of slot %u of vector set %u is damaged", slot,
                    v->id);
            return false;
        }
        buf_append(out, p + 4,
                   el->name_n - at < NAME_UNIT_DATA ? el->name_n - at : NAME_UNIT_DATA);
        unit = load_u32(p);
    }
    return true;
}

/* --- the table --- */

static uint64_t entry_of(uint32_t hash, uint32_t slot)
{
    return (uint64_t)hash << 32 | (slot + 1);
}

static uint32_t entry_home(const struct vset *v, uint64_t entry)
{
    return (uint32_t)hash_mix(entry >> 32) & (v->table_size - 1);
}

static void insert_entry(struct vset *v, uint64_t entry)
{
    uint32_t at = entry_home(v, entry);
    while (v->table[at])
        at = (at + 1) & (v->table_size - 1);
    v->table[at] = entry;
}

static int table_resize(struct vset *v, uint64_t need, struct err *e)
{
    uint64_t size = 16;
    while (size < need + need / 3 + 1)
        size *= 2;
    if (size <= v->table_size)
        return 0;
    uint64_t *before = v->table, *table = mem_calloc(size, sizeof *table);
    if (!table)
        return err_set(e, KITH_ENOMEM, "out of memory for a table of %llu names",
                       (unsigned long long)need);
    uint32_t old_size = v->table_size;
    v->table = table;
    v->table_size = (uint32_t)size;
    for (uint32_t i = 0; i < old_size; i++)
        if (before[i])
            insert_entry(v, before[i]);
    mem_free(before);
    return 0;
}

int table_reserve(struct vset *v, struct err *e)
{
    return table_resize(v, (uint64_t)vset_count(v) + 1, e);
}

/* The position of the name in the table, or table_size when it is not there. */
static int table_position(struct vset *v, struct slice name, uint32_t *position, struct err *e)
{
    *position = v->table_size;
    if (v->table_size == 0)
        return 0;
    uint32_t hash = hash_name(name);
    uint32_t at = entry_home(v, entry_of(hash, 0));
    for (; v->table[at]; at = (at + 1) & (v->table_size - 1)) {
        if (v->table[at] >> 32 != hash)
            continue;
        const struct elem *el = elem_at(v, (uint32_t)v->table[at] - 1, e);
        bool equal;
        int rc = el ? name_equals(v, el, name, &equal, e) : KITH_ECORRUPT;
        if (rc != 0)
            return rc;
        if (equal) {
            *position = at;
            return 0;
        }
    }
    return 0;
}

int table_find(struct vset *v, struct slice name, uint32_t *slot, struct err *e)
{
    uint32_t at;
    int rc = table_position(v, name, &at, e);
    *slot = rc == 0 && at < v->table_size ? (uint32_t)v->table[at] - 1 : INDEX_SLOT_NONE;
    return rc;
}

static uint32_t position_of_slot(struct vset *v, struct slice name, uint32_t slot)
{
    uint64_t entry = entry_of(hash_name(name), slot);
    uint32_t at = entry_home(v, entry);
    while (v->table[at] != entry)
        at = (at + 1) & (v->table_size - 1);
    return at;
}

void table_put(struct vset *v, struct slice name, uint32_t slot)
{
    insert_entry(v, entry_of(hash_name(name), slot));
}

void table_replace(struct vset *v, struct slice name, uint32_t old, uint32_t slot)
{
    v->table[position_of_slot(v, name, old)] = entry_of(hash_name(name), slot);
}

void table_remove(struct vset *v, struct slice name, uint32_t slot)
{
    /* Knuth, The Art of Computer Programming 3, section 6.4, algorithm R: what follows in the
     * run moves up where its home allows. */
    uint32_t mask = v->table_size - 1, hole = position_of_slot(v, name, slot);
    for (uint32_t at = (hole + 1) & mask; v->table[at]; at = (at + 1) & mask) {
        uint32_t home = entry_home(v, v->table[at]);
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            v->table[hole] = v->table[at];
            hole = at;
        }
    }
    v->table[hole] = 0;
}

uint32_t table_at(const struct vset *v, uint32_t i)
{
    return v->table[i] ? (uint32_t)v->table[i] - 1 : INDEX_SLOT_NONE;
}

uint32_t table_random(struct vset *v)
{
    for (;;) { /* never called on an empty table */
        uint32_t slot = table_at(v, (uint32_t)rng_below(&v->rng, v->table_size));
        if (slot != INDEX_SLOT_NONE)
            return slot;
    }
}

int elems_load(struct vset *v, uint32_t count, struct err *e)
{
    epoch_enter();
    int rc = table_resize(v, count, e);
    uint32_t live = 0;
    for (uint32_t slot = v->next_slot; rc == 0 && slot-- > 0;) {
        const struct elem *el = elem_at(v, slot, e);
        if (!el) {
            rc = KITH_ECORRUPT;
            break;
        }
        switch (elem_state(el)) {
        case ELEM_LIVE:
        case ELEM_LIVE_TEXT:
            if (live++ < count)
                insert_entry(v, entry_of(el->name_hash, slot));
            break;
        case ELEM_FREE:
            slots_give_back(v, slot);
            break;
        default: /* removed: the index hands it back */
            break;
        }
    }
    epoch_exit();
    if (rc == 0 && live != count)
        rc = err_set(e, KITH_ECORRUPT, "%u elements are there, %u are recorded", live, count);
    atomic_store(&v->count, live);
    return rc;
}

int64_t vset_check(struct vset *v, void (*note)(void *, const char *), void *arg, struct err *e)
{
    int64_t findings = 0;
    struct buf name;
    buf_init(&name);
    epoch_enter();
    pthread_mutex_lock(&v->owner);
    for (uint32_t i = 0; i < v->table_size; i++) {
        uint32_t slot = table_at(v, i), found;
        if (slot == INDEX_SLOT_NONE)
            continue;
        struct err why = {0};
        buf_clear(&name);
        const char *what = NULL;
        struct index_code code;
        if (!vset_name(v, slot, &name, &why))
            what = why.message[0] ? why.message : "an element of the table is not live";
        else if (table_find(v, (struct slice){name.data, name.len}, &found, &why) != 0)
            what = why.message;
        else if (found != slot)
            what = "two elements have the same name, or the recorded hash of one is wrong";
        else if (index_code(v->index, slot, &code, &why) != 0)
            what = why.message;
        if (what) {
            findings++;
            note(arg, what);
        }
    }
    struct buf text;
    buf_init(&text);
    for (uint32_t slot = 0; slot < v->next_slot; slot++) {
        const struct elem *el = elem_at(v, slot, NULL);
        if (!el || elem_state(el) != ELEM_LIVE_TEXT)
            continue;
        struct err why = {0};
        buf_clear(&text);
        if (texts_get(v, slot, &text, &why) != 0) {
            findings++;
            note(arg, why.message[0] ? why.message : "the text of an element is missing");
        }
    }
    buf_deinit(&text);
    pthread_mutex_unlock(&v->owner);
    epoch_exit();
    buf_deinit(&name);
    (void)e;
    return findings;
}
