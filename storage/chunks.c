/* How chunks change hands.
 *
 * A slot of the table is a pointer to a chunk's records; readers load it and nothing else.
 * Three kinds of memory stand behind it: LMDB's map, a block on the heap, and nothing yet. The
 * rules:
 *
 *   1. A slot that was once set never becomes empty again. Only an empty slot is filled by a
 * reader (fault), under fill_lock; a full one is replaced by the owner alone. So a reader that
 * looked a chunk up long ago, in an older view, cannot put a stale pointer over a newer one:
 * either the slot is still empty, then the chunk was never written by this process and its
 * value is the same in every view, or it is full and the reader takes what is there.
 *   2. What leaves a slot is retired (base/epoch.h), never freed, so readers inside their
 * bracket keep it. A mapped chunk needs no retiring: the view it was found in outlives the
 * readers (store_refreshed waits for them).
 *   3. A frozen block is not written: the owner's next write makes a new block. So the
 * checkpointer reads the frozen list and its blocks without a lock.
 *   4. Nothing in settle can fail: the lists have their room before they are needed, and a
 * chunk that cannot be found in the map again stays on the heap.
 *   5. All chunks of the records that exist are stored by each checkpoint (growing makes a
 * chunk dirty), with exactly as many records as existed at the freeze. So a missing or a
 * shorter chunk is damage.
 *
 * A heap block is { 16 bytes | header of the stored value | records }, aligned to 64, so that
 * the records are too and the value can be handed to LMDB as it lies. A full chunk in the map
 * begins 16 + 48 bytes after a page boundary and is aligned as well; the last, shorter chunk of
 * an array may lie inside a leaf page at any even address, and is copied.
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

/* The owner's notes about a chunk. */
struct note {
    uint32_t capacity; /* records that the heap block has room for; 0: not on the heap */
    uint8_t state;
};

struct frozen {
    uint32_t chunk, n_records;
    char *records; /* in a heap block */
    uint32_t capacity;
};

struct chunks {
    struct records r; /* first: a struct records * is a struct chunks * */
    struct store *store;
    uint32_t array;
    uint32_t stored_n;  /* records that the owner said are stored: what a fault must find */
    size_t value_bytes; /* of a full chunk */
    uint32_t cap;       /* slots of the table */
    pthread_mutex_t fill_lock; /* filling empty slots, replacing the table */
    struct note *notes;        /* cap; fault sets capacity of an empty slot under fill_lock */
    uint32_t *dirty;
    uint32_t n_dirty, cap_dirty;
    struct frozen *frozen;
    uint32_t n_frozen, cap_frozen;
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

/* --- heap blocks
 * -------------------------------------------------------------------------------- */

static size_t block_bytes(const struct chunks *c, uint32_t capacity)
{
    return BLOCK_HEAD_BYTES + (size_t)capacity * c->r.stride;
}

/* Returns the block's records, zeroed from `used` on; NULL when out of memory. */
static char *block_new(struct chunks *c, uint32_t capacity, const char *from, uint32_t used)
{
    char *block = mem_alloc_aligned(RECORDS_ALIGN, block_bytes(c, capacity));
    if (!block)
        return NULL;
    char *records = block + BLOCK_HEAD_BYTES;
    size_t filled = (size_t)used * c->r.stride;
    if (filled)
        memcpy(records, from, filled);
    memset(records + filled, 0, (size_t)capacity * c->r.stride - filled);
    atomic_fetch_add_explicit(&c->heap_bytes, block_bytes(c, capacity), memory_order_relaxed);
    return records;
}

static void block_forget(struct chunks *c, uint32_t capacity)
{
    atomic_fetch_sub_explicit(&c->heap_bytes, block_bytes(c, capacity), memory_order_relaxed);
}

static void free_records(void *records)
{
    mem_free((char *)records - BLOCK_HEAD_BYTES);
}

static void block_retire(struct chunks *c, char *records, uint32_t capacity)
{
    block_forget(c, capacity);
    epoch_retire(records, free_records);
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

/* --- reading
 * ------------------------------------------------------------------------------------ */

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
    if (load_u32(d->value + 20) != c->r.stride || load_u32(d->value + 24) != d->n_records)
        return err_set(d->e, KITH_ECORRUPT,
                       "chunk %u of array %u has %u records of %u bytes, not %u of %u",
                       d->chunk, c->array, load_u32(d->value + 24), load_u32(d->value + 20),
                       d->n_records, c->r.stride);
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
        if (d.copy) {
            block_forget(c, d.n_records);
            free_records(d.copy);
        }
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
    if (d.copy) {
        block_forget(c, d.n_records);
        free_records(d.copy);
    }
    return there;
}

/* --- writing
 * ------------------------------------------------------------------------------------ */

static records_slot *slot_of(struct chunks *c, uint32_t chunk)
{
    return &atomic_load_explicit(&c->r.table, memory_order_relaxed)[chunk];
}

/* Room for one more in the dirty list and, so that settle cannot fail, for all frozen ones. */
static int dirty_reserve(struct chunks *c, uint32_t more, struct err *e)
{
    size_t need = (size_t)c->n_dirty + c->n_frozen + more;
    if (need <= c->cap_dirty)
        return 0;
    size_t cap = c->cap_dirty ? c->cap_dirty : 4;
    while (cap < need)
        cap *= 2;
    uint32_t *grown = mem_realloc_n(c->dirty, cap, sizeof *grown);
    if (!grown)
        return err_set(e, KITH_ENOMEM, "out of memory for a list of %zu chunks", cap);
    c->dirty = grown;
    struct frozen *list = c->n_frozen ? NULL : mem_realloc_n(c->frozen, cap, sizeof *list);
    if (list) {
        c->frozen = list;
        c->cap_frozen = (uint32_t)cap;
    } else if (!c->n_frozen) {
        return err_set(e, KITH_ENOMEM, "out of memory for a list of %zu chunks", cap);
    }
    c->cap_dirty = (uint32_t)cap;
    return 0;
}

static void mark_dirty(struct chunks *c, uint32_t chunk)
{
    struct note *note = &c->notes[chunk];
    note->state = note->state == CLEAN ? DIRTY : OVERWRITTEN;
    c->dirty[c->n_dirty++] = chunk;
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
        block_retire(c, before, had);
    return 0;
}

/* Makes a chunk writable with room for `need` records, `used` of which exist. */
static int make_dirty(struct chunks *c, uint32_t chunk, uint32_t used, uint32_t need,
                      struct err *e)
{
    struct note *note = &c->notes[chunk];
    if (used && !atomic_load_explicit(slot_of(c, chunk), memory_order_acquire) &&
        !fault(&c->r, chunk, e))
        return e && e->code ? e->code : KITH_ECORRUPT;
    bool listed = note->state == DIRTY || note->state == OVERWRITTEN;
    int rc = listed ? 0 : dirty_reserve(c, 1, e);
    if (rc != 0)
        return rc;
    if (note->capacity < need || note->state == FROZEN) {
        uint32_t capacity = note->capacity ? note->capacity : used;
        while (capacity < need)
            capacity = capacity * 2 > need ? capacity * 2 : need;
        if (capacity > c->r.per_chunk)
            capacity = c->r.per_chunk;
        if ((rc = replace(c, chunk, capacity, used, e)) != 0)
            return rc;
    }
    if (!listed)
        mark_dirty(c, chunk);
    return 0;
}

static char *writable(struct records *r, uint32_t i, struct err *e)
{
    struct chunks *c = chunks_of(r);
    uint32_t chunk = records_chunk_of(r, i), n = records_count(r);
    assert(i < n);
    struct note *note = &c->notes[chunk];
    if (note->state != DIRTY && note->state != OVERWRITTEN) {
        struct err own = {0};
        uint32_t used = records_in(c, n, chunk);
        epoch_enter();
        int rc = make_dirty(c, chunk, used, used, e ? e : &own);
        epoch_exit();
        if (rc != 0)
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
    struct err own = {0};
    if (n <= have)
        return 0;
    int rc = grow_table(c, records_chunk_of(r, n - 1), e);
    while (rc == 0 && have < n) {
        uint32_t chunk = records_chunk_of(r, have), used = records_in(c, have, chunk);
        uint32_t more = records_in(c, n, chunk);
        epoch_enter();
        rc = make_dirty(c, chunk, used, more, e ? e : &own);
        epoch_exit();
        if (rc == 0) {
            have += more - used;
            atomic_store_explicit(&r->n, have, memory_order_release);
        }
    }
    return rc;
}

static const struct records_ops ops = {fault, writable, grow};

/* --- open and free
 * ------------------------------------------------------------------------------ */

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
    for (uint32_t i = 0; i < c->n_frozen; i++) {
        if (c->notes[c->frozen[i].chunk].state == OVERWRITTEN)
            free_records(c->frozen[i].records);
    }
    for (uint32_t i = 0; i < c->cap; i++) {
        if (c->notes[i].capacity)
            free_records(atomic_load(&table[i]));
    }
    mem_free(table);
    mem_free(c->notes);
    mem_free(c->dirty);
    mem_free(c->frozen);
    pthread_mutex_destroy(&c->fill_lock);
    mem_free(c);
}

/* --- checkpoints
 * -------------------------------------------------------------------------------- */

void chunks_freeze(struct chunks *c)
{
    assert(c->n_frozen == 0 && "a checkpoint is under way with this array");
    uint32_t n = records_count(&c->r);
    for (uint32_t i = 0; i < c->n_dirty; i++) {
        uint32_t chunk = c->dirty[i];
        c->notes[chunk].state = FROZEN;
        c->frozen[i] = (struct frozen){
            .chunk = chunk,
            .n_records = records_in(c, n, chunk),
            .records = atomic_load_explicit(slot_of(c, chunk), memory_order_relaxed),
            .capacity = c->notes[chunk].capacity,
        };
    }
    c->n_frozen = c->n_dirty;
    c->n_dirty = 0;
}

bool chunks_frozen_any(const struct chunks *c)
{
    return c->n_frozen > 0;
}

static int by_chunk(const void *a, const void *b)
{
    uint32_t x = ((const struct frozen *)a)->chunk, y = ((const struct frozen *)b)->chunk;
    return x < y ? -1 : x > y;
}

int chunks_write(struct chunks *c, struct store_write *w, struct err *e)
{
    /* In the order of their keys LMDB fills its leaves, and the file gets them side by side. */
    if (c->n_frozen > 1)
        qsort(c->frozen, c->n_frozen, sizeof *c->frozen, by_chunk);
    for (uint32_t i = 0; i < c->n_frozen; i++) {
        const struct frozen *f = &c->frozen[i];
        char *value = f->records - CHUNK_HEADER_BYTES;
        size_t bytes = CHUNK_HEADER_BYTES + (size_t)f->n_records * c->r.stride;
        chunk_value_seal(value, bytes, c->array, f->chunk, c->r.stride, f->n_records);
        int rc = store_put(w, STORE_CHUNKS, c->array, f->chunk, value, bytes, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* A chunk that was written and not touched since: back into the map where it can be used there.
 */
static void settle_clean(struct chunks *c, const struct frozen *f)
{
    struct note *note = &c->notes[f->chunk];
    const char *value;
    size_t bytes;
    note->state = CLEAN;
    if (f->n_records < c->r.per_chunk ||
        store_chunk_find(c->store, c->array, f->chunk, &value, &bytes, NULL) != 0 ||
        bytes != c->value_bytes || (uintptr_t)(value + CHUNK_HEADER_BYTES) % RECORDS_ALIGN != 0)
        return;
    pthread_mutex_lock(&c->fill_lock);
    note->capacity = 0;
    atomic_store_explicit(slot_of(c, f->chunk), (char *)value + CHUNK_HEADER_BYTES,
                          memory_order_release);
    pthread_mutex_unlock(&c->fill_lock);
    block_retire(c, f->records, f->capacity);
}

void chunks_settle(struct chunks *c, bool committed)
{
    for (uint32_t i = 0; i < c->n_frozen; i++) {
        const struct frozen *f = &c->frozen[i];
        struct note *note = &c->notes[f->chunk];
        if (note->state == OVERWRITTEN) {
            note->state = DIRTY;
            count_dirty(c, f->capacity, false);
            block_retire(c, f->records, f->capacity);
        } else if (committed) {
            count_dirty(c, f->capacity, false);
            settle_clean(c, f);
        } else {
            note->state = DIRTY;
            c->dirty[c->n_dirty++] = f->chunk;
        }
    }
    c->n_frozen = 0;
}
