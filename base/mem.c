#include "base/mem.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

static atomic_long fail_countdown; /* 0: off; n: the n-th allocation from now fails */

static bool injected_failure(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) == 0)
        return false;
    long left = atomic_fetch_sub_explicit(&fail_countdown, 1, memory_order_relaxed);
    if (left > 1)
        return false;
    atomic_store_explicit(&fail_countdown, 1, memory_order_relaxed); /* and all after it */
    return true;
}

void mem_fail_after(long n)
{
    atomic_store(&fail_countdown, n);
}

void mem_trim(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

bool mem_mul_overflows(size_t a, size_t b, size_t *product)
{
    return __builtin_mul_overflow(a, b, product);
}

void *mem_alloc(size_t bytes)
{
    return injected_failure() ? NULL : malloc(bytes ? bytes : 1);
}

void *mem_calloc(size_t n, size_t bytes)
{
    return injected_failure() ? NULL : calloc(n ? n : 1, bytes ? bytes : 1);
}

void *mem_alloc_n(size_t n, size_t bytes)
{
    size_t total;
    return mem_mul_overflows(n, bytes, &total) ? NULL : mem_alloc(total);
}

void *mem_realloc(void *p, size_t bytes)
{
    return injected_failure() ? NULL : realloc(p, bytes ? bytes : 1);
}

void *mem_realloc_n(void *p, size_t n, size_t bytes)
{
    size_t total;
    return mem_mul_overflows(n, bytes, &total) ? NULL : mem_realloc(p, total);
}

void *mem_grow(void *array, size_t n, size_t *cap, size_t first, size_t bytes)
{
    if (n < *cap)
        return array;
    size_t more = *cap ? *cap * 2 : first;
    void *grown = mem_realloc_n(array, more, bytes);
    if (grown)
        *cap = more;
    return grown;
}

void *mem_alloc_aligned(size_t alignment, size_t bytes)
{
    void *p = NULL;
    if (injected_failure() || posix_memalign(&p, alignment, bytes ? bytes : 1) != 0)
        return NULL;
    return p;
}

void *mem_dup(const void *p, size_t bytes)
{
    void *copy = mem_alloc(bytes);
    if (copy && bytes)
        memcpy(copy, p, bytes);
    return copy;
}

char *mem_strdup(const char *s)
{
    return mem_dup(s, strlen(s) + 1);
}

void mem_free(void *p)
{
    free(p);
}

struct arena_block {
    struct arena_block *next;
    size_t size;
    _Alignas(16) char data[];
};

void arena_init(struct arena *a)
{
    a->head = NULL;
    a->used = 0;
}

void arena_deinit(struct arena *a)
{
    for (struct arena_block *b = a->head, *next; b; b = next) {
        next = b->next;
        mem_free(b);
    }
    arena_init(a);
}

void arena_reset(struct arena *a)
{
    /* Keep the oldest block, which has the standard size, and drop those grown beyond it. */
    while (a->head && a->head->next) {
        struct arena_block *next = a->head->next;
        mem_free(a->head);
        a->head = next;
    }
    if (a->head && a->head->size > ARENA_BLOCK_BYTES) {
        mem_free(a->head);
        a->head = NULL;
    }
    a->used = 0;
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX - 16 - sizeof(struct arena_block))
        return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    if (!a->head || a->head->size - a->used < bytes) {
        size_t size = bytes > ARENA_BLOCK_BYTES ? bytes : ARENA_BLOCK_BYTES;
        struct arena_block *b = mem_alloc(sizeof *b + size);
        if (!b)
            return NULL;
        b->size = size;
        b->next = a->head;
        a->head = b;
        a->used = 0;
    }
    void *p = a->head->data + a->used;
    a->used += bytes;
    return p;
}

void *arena_dup(struct arena *a, const void *p, size_t bytes)
{
    void *copy = arena_alloc(a, bytes);
    if (copy && bytes)
        memcpy(copy, p, bytes);
    return copy;
}
