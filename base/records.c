#include "base/records.h"

#include <string.h>

#include "base/epoch.h"
#include "base/mem.h"

enum { HEAP_CHUNK_BYTES = 64 * 1024 };

static const char *heap_fault(struct records *r, uint32_t chunk, struct err *e)
{
    (void)r;
    err_set(e, KITH_EINVAL, "chunk %u of a heap array does not exist", chunk);
    return NULL;
}

static char *heap_writable(struct records *r, uint32_t i, struct err *e)
{
    return (char *)records_at(r, i, e);
}

static int heap_grow(struct records *r, uint32_t n, struct err *e)
{
    uint32_t old = records_count(r);
    if (n <= old)
        return 0;
    uint32_t have = old ? records_chunk_of(r, old - 1) + 1 : 0;
    uint32_t need = records_chunk_of(r, n - 1) + 1;
    if (need > have) {
        records_slot *table = mem_calloc(need, sizeof *table);
        records_slot *before = atomic_load_explicit(&r->table, memory_order_relaxed);
        if (!table)
            return err_set(e, KITH_ENOMEM, "out of memory for %u records", n);
        for (uint32_t c = 0; c < have; c++)
            table[c] = before[c];
        for (uint32_t c = have; c < need; c++) {
            char *chunk = mem_alloc_aligned(64, (size_t)r->per_chunk * r->stride);
            if (!chunk) {
                while (c-- > have)
                    mem_free(table[c]);
                mem_free(table);
                return err_set(e, KITH_ENOMEM, "out of memory for %u records", n);
            }
            memset(chunk, 0, (size_t)r->per_chunk * r->stride);
            table[c] = chunk;
        }
        atomic_store_explicit(&r->table, table, memory_order_release);
        if (before)
            epoch_retire(before, mem_free);
    }
    atomic_store_explicit(&r->n, n, memory_order_release);
    return 0;
}

static const struct records_ops heap_ops = {heap_fault, heap_writable, heap_grow};

struct records *records_heap_new(uint32_t stride)
{
    struct records *r = mem_calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->ops = &heap_ops;
    records_shape(r, stride < HEAP_CHUNK_BYTES ? HEAP_CHUNK_BYTES / stride : 1, stride);
    return r;
}

void records_heap_free(struct records *r)
{
    if (!r)
        return;
    uint32_t n = records_count(r);
    records_slot *table = atomic_load(&r->table);
    for (uint32_t c = 0; n && c <= records_chunk_of(r, n - 1); c++)
        mem_free(table[c]);
    mem_free(table);
    mem_free(r);
}
