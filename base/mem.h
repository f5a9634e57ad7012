#pragma once
/* Allocation that may fail, with checked products, and the arena of a command.
 *
 * Every allocation of the house goes through here, so that a test can make the n-th one fail
 * (mem_fail_after) and see that nothing leaks and nothing breaks. Sizes that someone else chose
 * (a client, a file, a peer) must use the _n functions: they refuse products that overflow.
 *
 * Thread: all functions are safe from any thread but the arena's, which has one owner. */

#include <stdbool.h>
#include <stddef.h>

void *mem_alloc(size_t bytes);             /* NULL when out of memory */
void *mem_calloc(size_t n, size_t bytes);  /* n * bytes, zeroed; NULL also on overflow */
void *mem_alloc_n(size_t n, size_t bytes); /* n * bytes; NULL also on overflow */
void *mem_realloc(void *p, size_t bytes);  /* p is kept on failure */
void *mem_realloc_n(void *p, size_t n, size_t bytes);
/* The array with room for one more than its n items: where all *cap are taken, twice as many,
 * or `first`. NULL when out of memory: then it is as it was. */
void *mem_grow(void *array, size_t n, size_t *cap, size_t first, size_t bytes);
void *mem_alloc_aligned(size_t alignment, size_t bytes); /* freed by mem_free */
char *mem_strdup(const char *s);
void *mem_dup(const void *p, size_t bytes);
void mem_free(void *p);
/* Gives memory that was freed back to the system where the allocator keeps it. Takes some
 * milliseconds a gigabyte; for quiet moments. */
void mem_trim(void);

bool mem_mul_overflows(size_t a, size_t b, size_t *product);

/* For tests: the n-th allocation from now (1 = the next one) and all after it fail; 0 turns the
 * injection off. */
void mem_fail_after(long n);

/* An arena: many small allocations that live exactly as long as one command. Reset keeps one
 * block, so a steady stream of commands allocates nothing. */
struct arena_block;
struct arena {
    struct arena_block *head;
    size_t used; /* in head */
};

enum { ARENA_BLOCK_BYTES = 16 * 1024 };

void arena_init(struct arena *a);
void arena_deinit(struct arena *a);
void arena_reset(struct arena *a);
void *arena_alloc(struct arena *a, size_t bytes); /* 16-byte aligned; NULL when out of memory */
void *arena_dup(struct arena *a, const void *p, size_t bytes);
