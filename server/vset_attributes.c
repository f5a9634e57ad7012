/* Attributes, and the room they take.
 *
 * The array of attributes is made of 32-byte units. Encoded attributes (server/attributes.h)
 * lie in a *run* of units that does not cross a chunk, so that a reader gets them as one piece.
 * Every unit of the array belongs to one run, and a run is one of:
 *
 *   used     begins with the encoded form, whose first u32 is its length and never 0
 *   free     { u32 0 | u32 units | u32 next free run of its size class, unit + 1 }
 *   retired  as it was when it was used: its element has let go of it, readers may not have
 *
 * Free runs stand in lists by size: one for each size up to 32 units, above that four for each
 * doubling. A new run takes the best list that has one, cuts off what is too much, and else
 * goes to the end of the array; what is left of a chunk there becomes free. Neighbours are not
 * joined: attributes of a set are mostly of like sizes, and what is cut off serves the smaller
 * ones, so room is reused as long as sizes do not change for good.
 *
 * A retired run is noted in a batch, in memory. A full batch is handed to epoch_retire, which
 * marks it ready when no reader of before is left; then its runs are freed by the next change.
 * A checkpoint writes the batches into the set's record: no reader survives a restart, so what
 * they name is free then. Nothing is written into a run that somebody may be reading.
 *
 * Chains and batches that come from a damaged file are checked at each step; a chain that is
 * wrong is cut, and kith-check tells.
 *
 * Rejected: lists in memory alone, made at start from the runs that are used, which would read
 * the whole array at each start. */
#include "server/attributes.h"

#include "base/epoch.h"
#include "base/mem.h"
#include "server/vset_parts.h"

enum { FREE_UNITS_AT = 4, FREE_NEXT_AT = 8, EXACT_CLASSES = 32 };
enum { BATCH_RUNS = 64, BATCHES_MAX = 64 };

struct run {
    uint32_t place; /* unit + 1 */
    uint32_t n_units;
};

/* Counted by the set and by the epoch that it waits for: a set may be freed first. */
struct run_batch {
    struct run_batch *next;
    _Atomic int refs;
    _Atomic bool ready;
    uint32_t n;
    struct run runs[BATCH_RUNS];
};

static struct records *units(const struct vset *v)
{
    return chunks_records(v->arrays[ARRAY_ATTRIBUTES]);
}

static uint32_t units_for(size_t bytes)
{
    return (uint32_t)((bytes + ATTRIBUTE_UNIT_BYTES - 1) / ATTRIBUTE_UNIT_BYTES);
}

/* Whether units place - 1 and the n - 1 after it exist and lie in one chunk. */
static bool run_exists(const struct vset *v, uint32_t place, uint32_t n)
{
    struct records *r = units(v);
    uint32_t count = records_count(r), first = place - 1;
    return place != 0 && first < count && n != 0 && n <= count - first &&
           records_chunk_of(r, first) == records_chunk_of(r, first + n - 1);
}

/* --- size classes --- */

/* The class of free runs of n units. */
static unsigned class_of(uint32_t n)
{
    if (n <= EXACT_CLASSES)
        return n - 1;
    unsigned log = 31u - (unsigned)__builtin_clz(n);
    return EXACT_CLASSES + (log - 5) * 4 + (n >> (log - 2) & 3);
}

/* The first class all of whose runs have at least n units. */
static unsigned class_for(uint32_t n)
{
    unsigned class = class_of(n);
    if (n <= EXACT_CLASSES)
        return class;
    unsigned log = 5 + (class - EXACT_CLASSES) / 4, quarter = (class - EXACT_CLASSES) % 4;
    return class + ((4 + quarter) << (log - 2) < n);
}

static void set_head(struct attribute_room *room, unsigned class, uint32_t place)
{
    room->heads[class] = place;
    if (place)
        room->classes |= (uint64_t)1 << class;
    else
        room->classes &= ~((uint64_t)1 << class);
}

/* --- free runs --- */

/* False when its chunk could not be made writable. */
static bool free_run(struct vset *v, struct run run)
{
    char *p = records_writable(units(v), run.place - 1, NULL);
    if (!p)
        return false;
    unsigned class = class_of(run.n_units);
    store_u32(p, 0);
    store_u32(p + FREE_UNITS_AT, run.n_units);
    store_u32(p + FREE_NEXT_AT, v->room.heads[class]);
    set_head(&v->room, class, run.place);
    return true;
}

/* Units that were just made, in dirty chunks. */
static void free_range(struct vset *v, uint32_t from, uint32_t to)
{
    uint32_t per_chunk = units(v)->per_chunk;
    while (from < to) {
        uint32_t n = per_chunk - from % per_chunk;
        n = n < to - from ? n : to - from;
        (void)free_run(v, (struct run){from + 1, n});
        from += n;
    }
}

/* What stands at the head of a list; false, and the list is cut, when it is no free run of that
 * class. */
static bool read_head(struct vset *v, unsigned class, struct run *run, uint32_t *next)
{
    uint32_t place = v->room.heads[class];
    epoch_enter();
    const char *p = run_exists(v, place, 1) ? records_at(units(v), place - 1, NULL) : NULL;
    bool ok = p && load_u32(p) == 0;
    *run = (struct run){place, ok ? load_u32(p + FREE_UNITS_AT) : 0};
    *next = ok ? load_u32(p + FREE_NEXT_AT) : 0;
    epoch_exit();
    ok = ok && run_exists(v, place, run->n_units) && class_of(run->n_units) == class;
    if (!ok)
        set_head(&v->room, class, 0);
    return ok;
}

/* Takes n units of the head of a class; false when it has none of that length. */
static int take_from(struct vset *v, unsigned class, uint32_t n, uint32_t *place, struct err *e)
{
    struct run run;
    uint32_t next;
    *place = 0;
    if (!v->room.heads[class] || !read_head(v, class, &run, &next) || run.n_units < n)
        return 0;
    if (!records_writable(units(v), run.place - 1, e))
        return e->code;
    set_head(&v->room, class, next);
    if (run.n_units > n)
        (void)free_run(v, (struct run){run.place + n, run.n_units - n});
    *place = run.place;
    return 0;
}

static int extend(struct vset *v, uint32_t n, uint32_t *place, struct err *e)
{
    struct records *r = units(v);
    uint32_t have = records_count(r), room = r->per_chunk - have % r->per_chunk;
    uint32_t rest = room < n ? room : 0;
    if (n > r->per_chunk || have > UINT32_MAX - 2 * r->per_chunk)
        return err_set(e, KITH_ELIMIT, "the attributes of a vector set fill %u units at most",
                       UINT32_MAX);
    int rc = records_grow(r, have + rest + n, e);
    if (rc != 0) {
        free_range(v, have, records_count(r));
        return rc;
    }
    free_range(v, have, have + rest);
    *place = have + rest + 1;
    return 0;
}

static int allocate(struct vset *v, uint32_t n, uint32_t *place, struct err *e)
{
    /* The first of its own class may be long enough, all of those above are. */
    int rc = take_from(v, class_of(n), n, place, e);
    uint64_t above = ~(uint64_t)0 << class_for(n);
    while (rc == 0 && !*place && v->room.classes & above)
        rc = take_from(v, (unsigned)__builtin_ctzll(v->room.classes & above), n, place, e);
    return rc == 0 && !*place ? extend(v, n, place, e) : rc;
}

/* --- batches --- */

static void batch_unref(struct run_batch *b)
{
    if (b && atomic_fetch_sub(&b->refs, 1) == 1)
        mem_free(b);
}

static void batch_ready(void *p)
{
    struct run_batch *b = p;
    atomic_store(&b->ready, true);
    batch_unref(b);
}

/* Frees the runs of the oldest batches that nobody can be reading any more. */
static void reuse_ready(struct vset *v)
{
    struct attribute_room *room = &v->room;
    for (struct run_batch *b; (b = room->waiting) && atomic_load(&b->ready);) {
        while (b->n > 0 && free_run(v, b->runs[b->n - 1]))
            b->n--;
        if (b->n > 0)
            return; /* out of memory; another time */
        room->waiting = b->next;
        if (!b->next)
            room->waiting_end = &room->waiting;
        room->n_waiting--;
        batch_unref(b);
    }
}

static void enqueue(struct attribute_room *room, struct run_batch *b)
{
    *room->waiting_end = b;
    room->waiting_end = &b->next;
    room->n_waiting++;
}

static struct run_batch *batch_new(void)
{
    struct run_batch *b = mem_calloc(1, sizeof *b);
    if (b)
        b->refs = 1;
    return b;
}

static void close_batch(struct vset *v)
{
    struct run_batch *b = v->room.open;
    v->room.open = NULL;
    enqueue(&v->room, b);
    atomic_fetch_add(&b->refs, 1);
    epoch_retire(b, batch_ready);
    epoch_collect();
    if (v->room.n_waiting > BATCHES_MAX)
        epoch_synchronize(); /* a search takes milliseconds; what waits stays bounded */
    reuse_ready(v);
}

int attributes_reserve_retire(struct vset *v, struct err *e)
{
    if (!v->room.open && !(v->room.open = batch_new()))
        return err_set(e, KITH_ENOMEM, "out of memory for attributes");
    return 0;
}

/* The run of a place, by what lies there; n_units 0 where that is nothing. */
static struct run run_at(struct vset *v, uint32_t place)
{
    struct run run = {place, 0};
    epoch_enter();
    const char *p = run_exists(v, place, 1) ? records_at(units(v), place - 1, NULL) : NULL;
    uint32_t bytes = p ? load_u32(p) : 0;
    epoch_exit();
    if (bytes && bytes <= ATTRIBUTES_MAX_BYTES && run_exists(v, place, units_for(bytes)))
        run.n_units = units_for(bytes);
    return run;
}

void attributes_retire(struct vset *v, uint32_t place)
{
    if (place == 0 || place == ATTRIBUTES_EMPTY)
        return;
    struct run_batch *b = v->room.open;
    struct run run = run_at(v, place);
    if (run.n_units == 0)
        return; /* damaged: its room is lost, and kith-check tells */
    b->runs[b->n++] = run;
    if (b->n == BATCH_RUNS)
        close_batch(v);
}

/* --- storing and reading --- */

int attributes_store(struct vset *v, const struct buf *encoded, uint32_t *place, struct err *e)
{
    reuse_ready(v);
    int rc = allocate(v, units_for(encoded->len), place, e);
    if (rc != 0)
        return rc;
    /* In a dirty chunk, whose pointer is good until something else is written there. */
    char *p = records_writable(units(v), *place - 1, e);
    memcpy(p, encoded->data, encoded->len);
    return 0;
}

void attributes_discard(struct vset *v, uint32_t place)
{
    if (place != 0 && place != ATTRIBUTES_EMPTY)
        (void)free_run(v, run_at(v, place)); /* dirty, so it cannot fail */
}

int vset_read_attributes(struct vset *v, uint32_t slot, const void **encoded, size_t *n,
                         struct err *e)
{
    *encoded = NULL;
    *n = 0;
    const struct elem *el = elem_at(v, slot, e);
    if (!el)
        return KITH_ECORRUPT;
    uint32_t place = elem_attributes(el);
    if (place == 0)
        return 0;
    if (place == ATTRIBUTES_EMPTY) {
        *encoded = "";
        return 0;
    }
    if (!run_exists(v, place, 1))
        return err_set(e, KITH_ECORRUPT, "the attributes of slot %u are nowhere", slot);
    const char *p = records_at(units(v), place - 1, e);
    if (!p)
        return KITH_ECORRUPT;
    size_t bytes = load_u32(p);
    if (bytes == 0 || bytes > ATTRIBUTES_MAX_BYTES || !run_exists(v, place, units_for(bytes)))
        return err_set(e, KITH_ECORRUPT, "the attributes of slot %u are damaged", slot);
    *encoded = p;
    *n = bytes;
    return 0;
}

const void *vset_attributes(struct vset *v, uint32_t slot, size_t *n)
{
    const void *encoded;
    if (vset_read_attributes(v, slot, &encoded, n, NULL) != 0)
        atomic_store_explicit(&v->damaged, true, memory_order_relaxed);
    return encoded;
}

bool vset_healthy(const struct vset *v)
{
    return !atomic_load_explicit(&v->damaged, memory_order_relaxed);
}

/* --- keeping --- */

void attributes_init(struct attribute_room *room)
{
    *room = (struct attribute_room){0};
    room->waiting_end = &room->waiting;
}

void attributes_deinit(struct attribute_room *room)
{
    batch_unref(room->open);
    for (struct run_batch *b = room->waiting, *next; b; b = next) {
        next = b->next;
        batch_unref(b);
    }
}

static void save_batch(const struct run_batch *b, struct buf *out)
{
    for (uint32_t i = 0; i < b->n; i++) {
        buf_varint(out, b->runs[i].place);
        buf_varint(out, b->runs[i].n_units);
    }
}

void attributes_save(const struct vset *v, struct buf *out)
{
    const struct attribute_room *room = &v->room;
    for (int i = 0; i < ATTRIBUTE_CLASSES; i++)
        buf_varint(out, room->heads[i]);
    uint64_t n = room->open ? room->open->n : 0;
    for (const struct run_batch *b = room->waiting; b; b = b->next)
        n += b->n;
    buf_varint(out, n);
    for (const struct run_batch *b = room->waiting; b; b = b->next)
        save_batch(b, out);
    if (room->open)
        save_batch(room->open, out);
}

static uint32_t read_place(struct reader *r)
{
    uint64_t place = read_varint(r);
    if (place > UINT32_MAX)
        r->failed = true;
    return (uint32_t)place;
}

int attributes_load(struct vset *v, struct reader *r, struct err *e)
{
    for (unsigned i = 0; i < ATTRIBUTE_CLASSES; i++)
        set_head(&v->room, i, read_place(r));
    struct run_batch *b = NULL;
    for (uint64_t n = read_varint(r); n > 0 && !r->failed; n--) {
        struct run run = {.place = read_place(r)};
        run.n_units = read_place(r);
        if (r->failed || !run_exists(v, run.place, run.n_units))
            return err_set(e, KITH_ECORRUPT, "the list of retired attributes is damaged");
        if (!b || b->n == BATCH_RUNS) {
            if (!(b = batch_new()))
                return err_set(e, KITH_ENOMEM, "out of memory for attributes");
            b->ready = true;
            enqueue(&v->room, b);
        }
        b->runs[b->n++] = run;
    }
    return 0;
}

size_t attributes_room_bytes(const struct attribute_room *room)
{
    return (room->n_waiting + (room->open != NULL)) * sizeof(struct run_batch);
}

/* --- checking --- */

struct units_check {
    struct vset *v;
    uint8_t *used; /* a bit a unit */
    uint32_t n;
    void (*note)(void *arg, const char *what);
    void *arg;
    int64_t findings;
};

static void found(struct units_check *c, const char *what)
{
    c->findings++;
    c->note(c->arg, what);
}

/* Marks the units of a run; false, and a finding, when one of them is another run's. */
static bool mark(struct units_check *c, struct run run, const char *what)
{
    bool clean = true;
    for (uint32_t i = run.place - 1; i < run.place - 1 + run.n_units; i++) {
        clean &= !(c->used[i / 8] >> (i % 8) & 1);
        c->used[i / 8] |= (uint8_t)(1u << (i % 8));
    }
    if (!clean)
        found(c, what);
    return clean;
}

static void check_used(struct units_check *c)
{
    struct vset *v = c->v;
    struct table_walk w = {0};
    for (uint32_t slot; (slot = table_next(&v->table, &w)) != INDEX_SLOT_NONE;) {
        uint32_t place = elems_attributes(v, slot);
        if (place == 0 || place == ATTRIBUTES_EMPTY)
            continue;
        size_t n;
        epoch_enter();
        const void *p = vset_attributes(v, slot, &n);
        bool whole = p && attributes_bytes(p, n) == n;
        epoch_exit();
        if (!whole)
            found(c, "the attributes of an element are damaged");
        else
            mark(c, run_at(v, place), "attributes of two elements lie in the same place");
    }
}

static void check_free(struct units_check *c)
{
    struct vset *v = c->v;
    for (unsigned class = 0; class < ATTRIBUTE_CLASSES; class ++) {
        uint32_t place = v->room.heads[class];
        while (place) {
            epoch_enter();
            const char *p =
                run_exists(v, place, 1) ? records_at(units(v), place - 1, NULL) : NULL;
            struct run run = {place, p && load_u32(p) == 0 ? load_u32(p + FREE_UNITS_AT) : 0};
            uint32_t next = p ? load_u32(p + FREE_NEXT_AT) : 0;
            epoch_exit();
            if (!run_exists(v, place, run.n_units) || class_of(run.n_units) != class) {
                found(c, "a list of free attribute units is broken");
                break;
            }
            if (!mark(c, run, "a free attribute unit is in use"))
                break;
            place = next;
        }
    }
    for (const struct run_batch *b = v->room.waiting; b; b = b->next)
        for (uint32_t i = 0; i < b->n; i++)
            mark(c, b->runs[i], "a retired attribute unit is in use");
    for (uint32_t i = 0; v->room.open && i < v->room.open->n; i++)
        mark(c, v->room.open->runs[i], "a retired attribute unit is in use");
}

int64_t attributes_check(struct vset *v, void (*note)(void *, const char *), void *arg,
                         struct err *e)
{
    struct units_check c = {.v = v, .n = records_count(units(v)), .note = note, .arg = arg};
    c.used = mem_calloc((size_t)c.n / 8 + 1, 1);
    if (!c.used)
        return err_set(e, KITH_ENOMEM, "out of memory for checking attributes");
    check_used(&c);
    check_free(&c);
    uint32_t lost = 0;
    for (uint32_t i = 0; i < c.n; i++)
        lost += !(c.used[i / 8] >> (i % 8) & 1);
    if (lost)
        found(&c, "attribute units belong to no element and to no list of free ones");
    mem_free(c.used);
    return c.findings;
}
