/* From names to slots, in memory only: at most some 11 bytes an element at any size, and no
 * insert that moves more than a few thousand entries.
 *
 * Extendible hashing (R. Fagin et al., Extendible hashing: a fast access method for dynamic
 * files, 1979) over small open-addressed segments:
 *
 *   directory, indexed by the first `depth` bits of the hash; segments of a smaller depth stand
 *   in it several times
 *     [0] ──► segment { depth 2, size, n | entries }
 *     [1] ──► segment { depth 2 … }
 *     [2] ─┬► segment { depth 1 … }
 *     [3] ─┘
 *
 * A segment grows by a quarter when it is 85% full, so it is 68% full at least (8 / 0.68 = 11.8
 * bytes an element at worst, 10.4 on average); one that has 4,096 places is split in two
 * instead. An entry is { u32 hash, u32 slot + 1 }, 0: empty; linear probing, no tombstones. The
 * hash spares a look at the element for nearly every probe that fails.
 *
 * Rejected: one table of powers of two, which is twice as large as needed after it has doubled,
 * and stops writers for tens of milliseconds while it does; entries without the hash, which
 * would be half as large but cost a cache miss for every probe. */
#include "base/hash.h"
#include "base/mem.h"
#include "server/vset_parts.h"

enum {
    SEGMENT_MIN = 8,
    SEGMENT_MAX = 4096,
    FILL_PERCENT = 85,
    ENTRIES_PER_PLACE = 512, /* elements there must be for each place of the directory */
    DEPTH_MAX = 24,
    PICK_TRIES = 64
};

struct name_segment {
    uint32_t size, n, depth;
    uint32_t unused; /* entries are aligned */
    uint64_t entries[];
};

uint32_t table_hash(struct slice name)
{
    return (uint32_t)hash64(name.p, name.n);
}

static uint64_t entry_of(uint32_t hash, uint32_t slot)
{
    return (uint64_t)hash << 32 | (slot + 1);
}

static uint32_t entry_hash(uint64_t entry)
{
    return (uint32_t)(entry >> 32);
}

static uint32_t place_of(const struct name_table *t, uint32_t hash)
{
    return t->depth ? hash >> (32 - t->depth) : 0;
}

static struct name_segment *segment_of(const struct name_table *t, uint32_t hash)
{
    return t->directory[place_of(t, hash)];
}

/* Where an entry would stand if nothing were in its way. The first bits of the hash are the
 * same in all of a segment, so they are mixed first. */
static uint32_t home_of(const struct name_segment *s, uint32_t hash)
{
    return (uint32_t)((hash_mix(hash) >> 32) * s->size >> 32);
}

static uint32_t after(const struct name_segment *s, uint32_t at)
{
    return at + 1 == s->size ? 0 : at + 1;
}

static uint32_t distance(const struct name_segment *s, uint32_t from, uint32_t to)
{
    return to >= from ? to - from : to + s->size - from;
}

static size_t segment_bytes(uint32_t size)
{
    return sizeof(struct name_segment) + (size_t)size * sizeof(uint64_t);
}

static struct name_segment *segment_new(uint32_t size, uint32_t depth)
{
    struct name_segment *s = mem_calloc(1, segment_bytes(size));
    if (s) {
        s->size = size;
        s->depth = depth;
    }
    return s;
}

static void insert(struct name_segment *s, uint64_t entry)
{
    uint32_t at = home_of(s, entry_hash(entry));
    while (s->entries[at])
        at = after(s, at);
    s->entries[at] = entry;
    s->n++;
}

static bool full(const struct name_segment *s)
{
    return ((uint64_t)s->n + 1) * 100 > (uint64_t)s->size * FILL_PERCENT;
}

/* The size of a segment for n entries, with some room to grow. */
static uint32_t size_for(uint32_t n)
{
    uint32_t size = n + n / 3 + 2;
    return size < SEGMENT_MIN ? SEGMENT_MIN : size;
}

/* Puts a segment into all places of the directory that its depth covers. */
static void place_segment(struct name_table *t, struct name_segment *s, uint32_t hash)
{
    uint32_t n = 1u << (t->depth - s->depth);
    uint32_t from = place_of(t, hash) & ~(n - 1);
    for (uint32_t i = 0; i < n; i++)
        t->directory[from + i] = s;
}

static int resize(struct name_table *t, struct name_segment *old, uint32_t size, uint32_t hash)
{
    struct name_segment *s = segment_new(size, old->depth);
    if (!s)
        return KITH_ENOMEM;
    for (uint32_t i = 0; i < old->size; i++)
        if (old->entries[i])
            insert(s, old->entries[i]);
    place_segment(t, s, hash);
    t->bytes += segment_bytes(size) - segment_bytes(old->size);
    mem_free(old);
    return 0;
}

static int deepen(struct name_table *t)
{
    size_t n = (size_t)1 << t->depth;
    struct name_segment **directory = mem_alloc_n(n * 2, sizeof(struct name_segment *));
    if (!directory)
        return KITH_ENOMEM;
    for (size_t i = 0; i < 2 * n; i++)
        directory[i] = t->directory[i / 2];
    mem_free(t->directory);
    t->directory = directory;
    t->bytes += n * sizeof(struct name_segment *);
    t->depth++;
    return 0;
}

/* Whether the directory may grow: hashes that all begin alike must not make it huge. */
static bool may_deepen(const struct name_table *t)
{
    return t->depth < DEPTH_MAX && ((uint64_t)2 << t->depth) * ENTRIES_PER_PLACE <= t->n;
}

static int split(struct name_table *t, struct name_segment *old, uint32_t hash)
{
    if (old->depth == t->depth && deepen(t) != 0)
        return KITH_ENOMEM;
    uint32_t bit = 1u << (31 - old->depth), n_upper = 0;
    for (uint32_t i = 0; i < old->size; i++)
        n_upper += old->entries[i] && entry_hash(old->entries[i]) & bit;
    struct name_segment *lower = segment_new(size_for(old->n - n_upper), old->depth + 1);
    struct name_segment *upper = segment_new(size_for(n_upper), old->depth + 1);
    if (!lower || !upper) {
        mem_free(lower);
        mem_free(upper);
        return KITH_ENOMEM;
    }
    for (uint32_t i = 0; i < old->size; i++)
        if (old->entries[i])
            insert(entry_hash(old->entries[i]) & bit ? upper : lower, old->entries[i]);
    place_segment(t, lower, hash & ~bit);
    place_segment(t, upper, hash | bit);
    t->bytes += segment_bytes(lower->size) + segment_bytes(upper->size);
    t->bytes -= segment_bytes(old->size);
    mem_free(old);
    return 0;
}

int table_expect(struct vset *v, uint32_t count, struct err *e)
{
    struct name_table *t = &v->table;
    uint32_t depth = 0;
    while (count >> depth > SEGMENT_MAX / 2)
        depth++;
    size_t n = (size_t)1 << depth;
    t->directory = mem_calloc(n, sizeof(struct name_segment *));
    if (!t->directory)
        goto fail;
    t->depth = depth;
    t->bytes = n * sizeof(struct name_segment *);
    for (size_t i = 0; i < n; i++) {
        uint32_t size = count ? size_for(count >> depth) : SEGMENT_MIN;
        t->directory[i] = segment_new(size, depth);
        if (!t->directory[i])
            goto fail;
        t->bytes += segment_bytes(size);
    }
    return 0;
fail:
    table_deinit(t);
    return err_set(e, KITH_ENOMEM, "out of memory for a table of %u names", count);
}

void table_deinit(struct name_table *t)
{
    size_t n = t->directory ? (size_t)1 << t->depth : 0;
    for (size_t i = 0; i < n; i++) {
        struct name_segment *s = t->directory[i];
        if (s && (i & (((size_t)1 << (t->depth - s->depth)) - 1)) == 0)
            mem_free(s);
    }
    mem_free(t->directory);
    *t = (struct name_table){0};
}

int table_reserve(struct vset *v, uint32_t hash, struct err *e)
{
    struct name_table *t = &v->table;
    struct name_segment *s;
    while (full(s = segment_of(t, hash))) {
        bool may_split = s->size >= SEGMENT_MAX && s->depth < DEPTH_MAX &&
                         (s->depth < t->depth || may_deepen(t));
        uint32_t size = s->size + s->size / 4 + 2;
        if (!may_split && s->size < SEGMENT_MAX && size > SEGMENT_MAX)
            size = SEGMENT_MAX;
        int rc = may_split ? split(t, s, hash) : resize(t, s, size, hash);
        if (rc != 0)
            return err_set(e, rc, "out of memory for a table of %u names", t->n + 1);
    }
    return 0;
}

/* The entry of the name, or NULL. */
static int find_entry(struct vset *v, struct slice name, uint64_t **found, struct err *e)
{
    uint32_t hash = table_hash(name);
    struct name_segment *s = segment_of(&v->table, hash);
    *found = NULL;
    for (uint32_t at = home_of(s, hash); s->entries[at]; at = after(s, at)) {
        if (entry_hash(s->entries[at]) != hash)
            continue;
        const struct elem *el = elem_at(v, (uint32_t)s->entries[at] - 1, e);
        bool equal;
        int rc = el ? elems_name_equals(v, el, name, &equal, e) : KITH_ECORRUPT;
        if (rc != 0)
            return rc;
        if (equal) {
            *found = &s->entries[at];
            return 0;
        }
    }
    return 0;
}

int table_find(struct vset *v, struct slice name, uint32_t *slot, struct err *e)
{
    uint64_t *entry;
    int rc = find_entry(v, name, &entry, e);
    *slot = rc == 0 && entry ? (uint32_t)*entry - 1 : INDEX_SLOT_NONE;
    return rc;
}

static uint32_t position_of(const struct name_segment *s, uint32_t hash, uint32_t slot)
{
    uint64_t entry = entry_of(hash, slot);
    uint32_t at = home_of(s, hash);
    while (s->entries[at] != entry)
        at = after(s, at);
    return at;
}

void table_put(struct name_table *t, uint32_t hash, uint32_t slot)
{
    insert(segment_of(t, hash), entry_of(hash, slot));
    t->n++;
}

void table_replace(struct name_table *t, uint32_t hash, uint32_t old, uint32_t slot)
{
    struct name_segment *s = segment_of(t, hash);
    s->entries[position_of(s, hash, old)] = entry_of(hash, slot);
}

void table_remove(struct name_table *t, uint32_t hash, uint32_t slot)
{
    /* Knuth, The Art of Computer Programming 3, section 6.4, algorithm R: what follows in the
     * run moves up where its home allows. */
    struct name_segment *s = segment_of(t, hash);
    uint32_t hole = position_of(s, hash, slot);
    for (uint32_t at = after(s, hole); s->entries[at]; at = after(s, at)) {
        uint32_t home = home_of(s, entry_hash(s->entries[at]));
        if (distance(s, home, at) >= distance(s, hole, at)) {
            s->entries[hole] = s->entries[at];
            hole = at;
        }
    }
    s->entries[hole] = 0;
    s->n--;
    t->n--;
    /* Without memory it stays as it is. */
    if (s->size > 4 * SEGMENT_MIN && s->n < s->size / 4)
        (void)resize(t, s, size_for(s->n), hash);
}

/* --- walking --- */

static uint64_t places_of(const struct name_table *t, uint64_t place)
{
    return (uint64_t)1 << (t->depth - t->directory[place]->depth);
}

uint32_t table_next(const struct name_table *t, struct table_walk *w)
{
    while (w->segment >> t->depth == 0) {
        const struct name_segment *s = t->directory[w->segment];
        while (w->at < s->size) {
            uint64_t entry = s->entries[w->at++];
            if (entry)
                return (uint32_t)entry - 1;
        }
        w->segment += places_of(t, w->segment);
        w->at = 0;
    }
    return INDEX_SLOT_NONE;
}

/* The k-th entry of all, k < n. */
static uint32_t kth(const struct name_table *t, uint32_t k)
{
    struct table_walk w = {0};
    while (k >= t->directory[w.segment]->n) {
        k -= t->directory[w.segment]->n;
        w.segment += places_of(t, w.segment);
    }
    uint32_t slot = table_next(t, &w);
    while (k-- > 0)
        slot = table_next(t, &w);
    return slot;
}

uint32_t table_random(const struct name_table *t, struct rng *r)
{
    /* A segment of depth d is met with a chance of 1 / 2^d; taken with one of n 2^d / M, every
     * entry has the same chance. Few segments are so empty that this is not done soon. */
    uint64_t most = t->depth ? (uint64_t)SEGMENT_MAX << t->depth : 1;
    for (int tries = 0; tries < PICK_TRIES; tries++) {
        const struct name_segment *s = t->directory[rng_below(r, (uint64_t)1 << t->depth)];
        if (rng_below(r, most) >= (uint64_t)s->n << s->depth)
            continue;
        uint64_t entry = s->entries[rng_below(r, s->size)];
        for (; !entry && tries < PICK_TRIES; tries++)
            entry = s->entries[rng_below(r, s->size)];
        if (entry)
            return (uint32_t)entry - 1;
    }
    return kth(t, (uint32_t)rng_below(r, t->n));
}
