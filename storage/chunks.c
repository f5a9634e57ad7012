/* How chunks change hands.
 *
 * A slot of the table is a pointer to a chunk's records; readers load it and nothing else.
 * Three kinds of memory stand behind it: LMDB's map, a block on the heap, and nothing yet. The
 * rules:
 *
 *   1. A slot that was once set never becomes empty again. Only an empty slot is filled by a
 *      reader (fault), under fill_lock; a full one is replaced by the owner alone. So a reader
 *      that looked a chunk up long ago, in an older view, cannot put a stale pointer over a
 *      newer one: either the slot is still empty, then the chunk was never written by this
 *      process and its value is the same in every view, or it is full and the reader takes
 *      what is there.
 *   2. What leaves a slot is retired (base/epoch.h), never freed, so readers inside their
 *      bracket keep it. A mapped chunk needs no retiring: the view it was found in outlives
 *      the readers (store_refreshed waits for them).
 *   3. A frozen block is not written: the owner's next write makes a new block. So the
 *      checkpointer reads the frozen list and its blocks without a lock.
 *   4. Nothing in freeze and settle can fail: the lists run through the notes and the blocks
 *      themselves, and a chunk that cannot be found in the map again stays on the heap.
 *   5. All chunks of the records that exist are stored by each checkpoint (growing makes a
 *      chunk dirty), with exactly as many records as existed at the freeze. So a missing or a
 *      shorter chunk is damage.
 *
 * A heap block is { link, 16 bytes | header of the stored value | records }, aligned to 64, so
 * that the records are too and the value can be handed to LMDB as it lies. A full chunk in the
 * map begins 16 + 48 bytes after a page boundary and is aligned as well; the last, shorter
 * chunk of an array may lie inside a leaf page at any even address, and is copied.
 *
 * Rejected: emptying all slots at a checkpoint, so that readers fault them again in the new
 * view: that is what LMDB's contract asks to the letter, but costs every reader a lookup per
 * chunk after each checkpoint, and makes rule 1 impossible. */
#include "storage/chunks.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/epoch.h"
#include "base/mem.h"
#include "storage/store_map.h"

enum { PAGE_BYTES = 4096, PAGE_HEADER_BYTES = 16, BLOCK_HEAD_BYTES = 64, RECORDS_ALIGN = 64 };

enum state {
    CLEAN,      /* stored as it is; in the map, on the heap, or not looked at yet */
    DIRTY,      /* in the dirty list */
    FROZEN,     /* in the frozen list */
    OVERWRITTEN /* in both: written again since the freeze, its slot is a newer block */
};

enum { NO_CHUNK = UINT32_MAX };

/* The owner's notes about a chunk. */
struct note {
    uint32_t capacity; /* records that the heap block has room for; 0: not on the heap */
    uint32_t next;     /* in the dirty list */
    uint32_t state;
};

/* The head of a heap block, before its records. */
struct block {
    struct block *next; /* in the frozen list or the garbage */
    uint32_t chunk, capacity;
    char value[CHUNK_HEADER_BYTES]; /* the stored value begins here */
};
_Static_assert(sizeof(struct block) == BLOCK_HEAD_BYTES, "records of a block are aligned");

struct chunks {
    struct records r; /* first: a struct records * is a struct chunks * */
    struct store *store;
    uint32_t array;
    uint32_t stored_n;         /* records the owner said are stored: what a fault must find */
    size_t value_bytes;        /* of a full chunk */
    uint32_t cap;              /* slots of the table */
    pthread_mutex_t fill_lock; /* filling empty slots, replacing the table */
    struct note *notes;        /* cap; fault sets capacity of an empty slot under fill_lock */
    uint32_t dirty;            /* first of the list, or NO_CHUNK */
    struct block *frozen;
    uint32_t n_frozen;
    struct block *garbage; /* out of their slots, not retired yet */
    _Atomic size_t dirty_bytes, heap_bytes;
};

static struct chunks *chunks_of(struct records *r)
{
    return (struct chunks *)(void *)r;
}

struct records *chunks_records(struct chunks *c)
{
    return &c->r;
}

size_t chunks_dirty_bytes(const struct chunks *c)
{
    return atomic_load_explicit(&c->dirty_bytes, memory_order_relaxed);
}

size_t chunks_heap_bytes(const struct chunks *c)
{
    return atomic_load_explicit(&c->heap_bytes, memory_order_relaxed);
}

/* --- heap blocks --- */

static size_t block_bytes(const struct chunks *c, uint32_t capacity)
{
    return BLOCK_HEAD_BYTES + (size_t)capacity * c->r.stride;
}

/* Returns the block's records, zeroed from `used` on; NULL when out of memory. */
static char *block_new(struct chunks *c, uint32_t capacity, const char *from, uint32_t used)
{
    struct block *block = mem_alloc_aligned(RECORDS_ALIGN, block_bytes(c, capacity));
    if (!block)
        return NULL;
    *block = (struct block){.capacity = capacity};
    char *records = (char *)(block + 1);
    size_t filled = (size_t)used * c->r.stride;
    if (filled)
        memcpy(records, from, filled);
    memset(records + filled, 0, (size_t)capacity * c->r.stride - filled);
    atomic_fetch_add_explicit(&c->heap_bytes, block_bytes(c, capacity), memory_order_relaxed);
    return records;
}

static struct block *block_of(char *records)
{
    return (struct block *)(void *)records - 1;
}

static void block_free(struct chunks *c, struct block *block)
{
    atomic_fetch_sub_explicit(&c->heap_bytes, block_bytes(c, block->capacity),
                              memory_order_relaxed);
    mem_free(block);
}

static void free_garbage(void *p)
{
    for (struct block *block = p, *next; block; block = next) {
        next = block->next;
        mem_free(block);
    }
}

/* Retires what left its slots. Out of memory epoch_retire waits for the readers, which it must
 * not do for a caller that is one: then the garbage waits for the next call. */
static void retire_garbage(struct chunks *c)
{
    struct block *garbage = c->garbage;
    if (!garbage || epoch_inside())
        return;
    c->garbage = NULL;
    for (struct block *block = garbage; block; block = block->next)
        atomic_fetch_sub_explicit(&c->heap_bytes, block_bytes(c, block->capacity),
                                  memory_order_relaxed);
    epoch_retire(garbage, free_garbage);
}

static void discard(struct chunks *c, struct block *block)
{
    block->next = c->garbage;
    c->garbage = block;
}

static void count_dirty(struct chunks *c, uint32_t capacity, bool add)
{
    size_t bytes = block_bytes(c, capacity);
    _Atomic size_t *all = store_dirty_counter(c->store);
    if (add) {
        atomic_fetch_add_explicit(&c->dirty_bytes, bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(all, bytes, memory_order_relaxed);
    } else {
        atomic_fetch_sub_explicit(&c->dirty_bytes, bytes, memory_order_relaxed);
        atomic_fetch_sub_explicit(all, bytes, memory_order_relaxed);
    }
}

/* --- reading --- */

/* Records of a chunk when the array has n. */
static uint32_t records_in(const struct chunks *c, uint32_t n, uint32_t chunk)
{
    uint64_t before = (uint64_t)chunk * c->r.per_chunk;
    if (n <= before)
        return 0;
    return n - before < c->r.per_chunk ? (uint32_t)(n - before) : c->r.per_chunk;
}

struct reading {
    struct chunks *c;
    uint32_t chunk, n_records;
    const char *value;
    size_t bytes;
    char *copy; /* the records on the heap, where they cannot be used in place */
    struct err *e;
};

/* Checks a stored value and copies it where need be; guarded, since it touches the map. */
static int do_read(void *arg)
{
    struct reading *d = arg;
    struct chunks *c = d->c;
    uintptr_t page = (uintptr_t)d->value & ~(uintptr_t)(PAGE_BYTES - 1);
    if (d->bytes > PAGE_BYTES)
        madvise((void *)page, d->bytes + ((uintptr_t)d->value - page), MADV_WILLNEED);
    int rc = chunk_value_check(c->array, d->chunk, d->value, d->bytes, d->e);
    if (rc != 0)
        return rc;
    if (load_u32(d->value + 20) != c->r.stride ||
        load_u32(d->value + CHUNK_N_RECORDS_AT) != d->n_records)
        return err_set(d->e, KITH_ECORRUPT,
                       "chunk %u of array %u has %u records of %u bytes, not %u of %u",
                       d->chunk, c->array, load_u32(d->value + CHUNK_N_RECORDS_AT),
                       load_u32(d->value + 20), d->n_records, c->r.stride);
    const char *records = d->value + CHUNK_HEADER_BYTES;
    if (d->n_records == c->r.per_chunk && (uintptr_t)records % RECORDS_ALIGN == 0)
        return 0;
    d->copy = block_new(c, d->n_records, records, d->n_records);
    return d->copy ? 0 : err_set(d->e, KITH_ENOMEM, "out of memory for chunk %u", d->chunk);
}

static const char *fault(struct records *r, uint32_t chunk, struct err *e)
{
    struct chunks *c = chunks_of(r);
    struct reading d = {.c = c, .chunk = chunk, .e = e};
    d.n_records = records_in(c, c->stored_n, chunk);
    int rc = store_chunk_find(c->store, c->array, chunk, &d.value, &d.bytes, e);
    if (rc == KITH_ENOTFOUND)
        rc = err_set(e, KITH_ECORRUPT, "chunk %u of array %u is missing from the store", chunk,
                     c->array);
    if (rc == 0)
        rc = store_guarded(c->store, do_read, &d, e);
    if (rc != 0) {
        if (d.copy)
            block_free(c, block_of(d.copy));
        return NULL;
    }
    pthread_mutex_lock(&c->fill_lock);
    records_slot *slot = &atomic_load_explicit(&r->table, memory_order_relaxed)[chunk];
    char *there = atomic_load_explicit(slot, memory_order_acquire);
    if (!there) {
        there = d.copy ? d.copy : (char *)d.value + CHUNK_HEADER_BYTES;
        c->notes[chunk].capacity = d.copy ? d.n_records : 0;
        atomic_store_explicit(slot, there, memory_order_release);
        d.copy = NULL;
    }
    pthread_mutex_unlock(&c->fill_lock);
    if (d.copy)
        block_free(c, block_of(d.copy));
    return there;
}

/* --- writing --- */

static records_slot *slot_of(struct chunks *c, uint32_t chunk)
{
    return &atomic_load_explicit(&c->r.table, memory_order_relaxed)[chunk];
}

static void mark_dirty(struct chunks *c, uint32_t chunk)
{
    struct note *note = &c->notes[chunk];
    note->state = note->state == CLEAN ? DIRTY : OVERWRITTEN;
    note->next = c->dirty;
    c->dirty = chunk;
    count_dirty(c, note->capacity, true);
}

/* Puts a new block of the given capacity, with the first `used` records of what is there, into
 * the slot of a chunk. */
static int replace(struct chunks *c, uint32_t chunk, uint32_t capacity, uint32_t used,
                   struct err *e)
{
    struct note *note = &c->notes[chunk];
    char *before = atomic_load_explicit(slot_of(c, chunk), memory_order_relaxed);
    uint32_t had = note->capacity;
    char *records = block_new(c, capacity, before, used);
    if (!records)
        return err_set(e, KITH_ENOMEM, "out of memory for chunk %u of array %u", chunk,
                       c->array);
    pthread_mutex_lock(&c->fill_lock);
    note->capacity = capacity;
    atomic_store_explicit(slot_of(c, chunk), records, memory_order_release);
    pthread_mutex_unlock(&c->fill_lock);
    if (note->state == DIRTY || note->state == OVERWRITTEN) {
        count_dirty(c, had, false);
        count_dirty(c, capacity, true);
    }
    /* A frozen block stays with the frozen list, a mapped one with its view. */
    if (had && note->state != FROZEN)
        discard(c, block_of(before));
    return 0;
}

/* Makes a chunk writable with room for `need` records, `used` of which exist. */
static int make_dirty(struct chunks *c, uint32_t chunk, uint32_t used, uint32_t need,
                      struct err *e)
{
    struct note *note = &c->notes[chunk];
    if (used && !atomic_load_explicit(slot_of(c, chunk), memory_order_acquire)) {
        struct err why = {0};
        epoch_enter();
        const char *found = fault(&c->r, chunk, &why);
        epoch_exit();
        if (!found)
            return err_set(e, why.code, "%s", why.message);
    }
    if (note->capacity < need || note->state == FROZEN) {
        uint32_t capacity = note->capacity ? note->capacity : used;
        if (capacity < need)
            capacity = need < 2 * (uint64_t)capacity ? 2 * capacity : need;
        if (capacity > c->r.per_chunk)
            capacity = c->r.per_chunk;
        int rc = replace(c, chunk, capacity, used, e);
        if (rc != 0)
            return rc;
    }
    if (note->state == CLEAN || note->state == FROZEN)
        mark_dirty(c, chunk);
    retire_garbage(c);
    return 0;
}

static char *writable(struct records *r, uint32_t i, struct err *e)
{
    struct chunks *c = chunks_of(r);
    uint32_t chunk = records_chunk_of(r, i), n = records_count(r);
    assert(i < n);
    struct note *note = &c->notes[chunk];
    if (note->state == CLEAN || note->state == FROZEN) {
        uint32_t used = records_in(c, n, chunk);
        if (make_dirty(c, chunk, used, used, e) != 0)
            return NULL;
    }
    return atomic_load_explicit(slot_of(c, chunk), memory_order_relaxed) +
           (size_t)(i - chunk * r->per_chunk) * r->stride;
}

/* Room for chunks up to and including the given one. */
static int grow_table(struct chunks *c, uint32_t chunk, struct err *e)
{
    if (chunk < c->cap)
        return 0;
    size_t cap = c->cap ? c->cap : 1;
    while (cap <= chunk)
        cap *= 2;
    records_slot *table = mem_calloc(cap, sizeof *table);
    struct note *notes = mem_calloc(cap, sizeof *notes);
    if (!table || !notes) {
        mem_free(table);
        mem_free(notes);
        return err_set(e, KITH_ENOMEM, "out of memory for a table of %zu chunks", cap);
    }
    pthread_mutex_lock(&c->fill_lock);
    records_slot *before = atomic_load_explicit(&c->r.table, memory_order_relaxed);
    for (uint32_t i = 0; i < c->cap; i++) {
        table[i] = atomic_load_explicit(&before[i], memory_order_relaxed);
        notes[i] = c->notes[i];
    }
    mem_free(c->notes);
    c->notes = notes;
    c->cap = (uint32_t)cap;
    atomic_store_explicit(&c->r.table, table, memory_order_release);
    pthread_mutex_unlock(&c->fill_lock);
    if (before)
        epoch_retire(before, mem_free);
    return 0;
}

/* Chunk by chunk, so that what was grown before memory ran out is consistent. */
static int grow(struct records *r, uint32_t n, struct err *e)
{
    struct chunks *c = chunks_of(r);
    uint32_t have = records_count(r);
    if (n <= have)
        return 0;
    int rc = grow_table(c, records_chunk_of(r, n - 1), e);
    while (rc == 0 && have < n) {
        uint32_t chunk = records_chunk_of(r, have), used = records_in(c, have, chunk);
        uint32_t more = records_in(c, n, chunk);
        rc = make_dirty(c, chunk, used, more, e);
        if (rc == 0) {
            have += more - used;
            atomic_store_explicit(&r->n, have, memory_order_release);
        }
    }
    return rc;
}

static const struct records_ops ops = {fault, writable, grow};

/* --- open and free --- */

int chunks_open(struct chunks **out, struct store *s, uint32_t array, uint32_t stride,
                uint32_t n_records, struct err *e)
{
    *out = NULL;
    if (stride == 0 || stride > INT32_MAX)
        return err_set(e, KITH_EINVAL, "records of %u bytes", stride);
    struct chunks *c = mem_calloc(1, sizeof *c);
    if (!c)
        return err_set(e, KITH_ENOMEM, "out of memory opening array %u", array);
    size_t unit = (size_t)CHUNK_PAGES * PAGE_BYTES,
           head = PAGE_HEADER_BYTES + CHUNK_HEADER_BYTES;
    size_t pages_bytes = (head + stride + unit - 1) / unit * unit;
    uint32_t per_chunk = (uint32_t)((pages_bytes - head) / stride);
    records_shape(&c->r, per_chunk, stride);
    c->r.ops = &ops;
    c->store = s;
    c->array = array;
    c->stored_n = n_records;
    c->dirty = NO_CHUNK;
    c->value_bytes = CHUNK_HEADER_BYTES + (size_t)per_chunk * stride;
    pthread_mutex_init(&c->fill_lock, NULL);
    int rc = n_records ? grow_table(c, records_chunk_of(&c->r, n_records - 1), e) : 0;
    if (rc != 0) {
        chunks_free(c);
        return rc;
    }
    atomic_store(&c->r.n, n_records);
    *out = c;
    return 0;
}

void chunks_free(struct chunks *c)
{
    if (!c)
        return;
    atomic_fetch_sub_explicit(store_dirty_counter(c->store), chunks_dirty_bytes(c),
                              memory_order_relaxed);
    records_slot *table = atomic_load(&c->r.table);
    for (struct block *f = c->frozen, *next; f; f = next) {
        next = f->next;
        if (c->notes[f->chunk].state == OVERWRITTEN)
            mem_free(f);
    }
    for (uint32_t i = 0; i < c->cap; i++) {
        if (c->notes[i].capacity)
            mem_free(block_of(atomic_load(&table[i])));
    }
    free_garbage(c->garbage);
    mem_free(table);
    mem_free(c->notes);
    pthread_mutex_destroy(&c->fill_lock);
    mem_free(c);
}

/* --- checkpoints --- */

void chunks_freeze(struct chunks *c)
{
    assert(!c->frozen && "a checkpoint is under way with this array");
    uint32_t n = records_count(&c->r);
    for (uint32_t chunk = c->dirty; chunk != NO_CHUNK; chunk = c->notes[chunk].next) {
        struct block *f =
            block_of(atomic_load_explicit(slot_of(c, chunk), memory_order_relaxed));
        c->notes[chunk].state = FROZEN;
        f->chunk = chunk;
        store_u32(f->value + CHUNK_N_RECORDS_AT, records_in(c, n, chunk));
        f->next = c->frozen;
        c->frozen = f;
        c->n_frozen++;
    }
    c->dirty = NO_CHUNK;
}

bool chunks_frozen_any(const struct chunks *c)
{
    return c->frozen != NULL;
}

static uint32_t frozen_records(const struct block *f)
{
    return load_u32(f->value + CHUNK_N_RECORDS_AT);
}

static int by_chunk(const void *a, const void *b)
{
    uint32_t x = (*(struct block *const *)a)->chunk, y = (*(struct block *const *)b)->chunk;
    return x < y ? -1 : x > y;
}

int chunks_write(struct chunks *c, struct store_write *w, struct err *e)
{
    if (!c->frozen)
        return 0;
    /* In the order of their keys LMDB fills its leaves, and the file gets them side by side. */
    struct block **sorted = mem_alloc_n(c->n_frozen, sizeof(struct block *));
    if (!sorted)
        return err_set(e, KITH_ENOMEM, "out of memory writing %u chunks", c->n_frozen);
    uint32_t n = 0;
    for (struct block *f = c->frozen; f; f = f->next)
        sorted[n++] = f;
    qsort(sorted, n, sizeof(struct block *), by_chunk);
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        struct block *f = sorted[i];
        size_t bytes = CHUNK_HEADER_BYTES + (size_t)frozen_records(f) * c->r.stride;
        chunk_value_seal(f->value, bytes, c->array, f->chunk, c->r.stride, frozen_records(f));
        rc = store_put(w, STORE_CHUNKS, c->array, f->chunk, f->value, bytes, e);
    }
    mem_free(sorted);
    return rc;
}

/* A chunk that was written and not touched since: back into the map where it can be used. */
static void settle_clean(struct chunks *c, struct block *f)
{
    struct note *note = &c->notes[f->chunk];
    const char *value;
    size_t bytes;
    note->state = CLEAN;
    if (frozen_records(f) < c->r.per_chunk || !store_view_is_newest(c->store) ||
        store_chunk_find(c->store, c->array, f->chunk, &value, &bytes, NULL) != 0 ||
        bytes != c->value_bytes || (uintptr_t)(value + CHUNK_HEADER_BYTES) % RECORDS_ALIGN != 0)
        return;
    pthread_mutex_lock(&c->fill_lock);
    note->capacity = 0;
    atomic_store_explicit(slot_of(c, f->chunk), (char *)value + CHUNK_HEADER_BYTES,
                          memory_order_release);
    pthread_mutex_unlock(&c->fill_lock);
    discard(c, f);
}

void chunks_settle(struct chunks *c, bool committed)
{
    for (struct block *f = c->frozen, *next; f; f = next) {
        struct note *note = &c->notes[f->chunk];
        next = f->next;
        if (note->state == OVERWRITTEN) {
            note->state = DIRTY;
            count_dirty(c, f->capacity, false);
            discard(c, f);
        } else if (committed) {
            count_dirty(c, f->capacity, false);
            settle_clean(c, f);
        } else {
            note->state = DIRTY;
            note->next = c->dirty;
            c->dirty = f->chunk;
        }
    }
    c->frozen = NULL;
    c->n_frozen = 0;
    retire_garbage(c);
}
