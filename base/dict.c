#include "base/dict.h"

#include "base/error.h"
#include "base/mem.h"

enum { FIRST_SIZE = 4, MOVE_BUCKETS = 4, MOVE_EMPTY_MAX = 64 };

void dict_init(struct dict *d)
{
    *d = (struct dict){0};
}

void dict_deinit(struct dict *d)
{
    mem_free(d->table[0]);
    mem_free(d->table[1]);
    dict_init(d);
}

static bool resizing(const struct dict *d)
{
    return d->table[1] != NULL;
}

static void move_some(struct dict *d)
{
    uint64_t empty = MOVE_EMPTY_MAX;
    for (int n = 0; n < MOVE_BUCKETS && d->used[0] > 0; n++) {
        while (!d->table[0][d->moved]) {
            d->moved++;
            if (--empty == 0)
                return;
        }
        for (struct dict_node *node = d->table[0][d->moved], *next; node; node = next) {
            next = node->next;
            uint64_t b = node->hash & (d->size[1] - 1);
            node->next = d->table[1][b];
            d->table[1][b] = node;
            d->used[0]--;
            d->used[1]++;
        }
        d->table[0][d->moved++] = NULL;
    }
    if (d->used[0] == 0) {
        mem_free(d->table[0]);
        d->table[0] = d->table[1];
        d->size[0] = d->size[1];
        d->used[0] = d->used[1];
        d->table[1] = NULL;
        d->size[1] = d->used[1] = d->moved = 0;
    }
}

static void start_resize(struct dict *d, uint64_t size)
{
    struct dict_node **t = mem_calloc(size, sizeof *t);
    if (!t)
        return;
    d->table[1] = t;
    d->size[1] = size;
    d->used[1] = 0;
    d->moved = 0;
}

static void resize_step(struct dict *d)
{
    if (resizing(d)) {
        move_some(d);
        return;
    }
    if (d->used[0] >= d->size[0])
        start_resize(d, d->size[0] * 2);
    else if (d->size[0] > FIRST_SIZE && d->used[0] < d->size[0] / 8)
        start_resize(d, d->size[0] / 2);
}

struct dict_node *dict_find(const struct dict *d, uint64_t hash,
                            bool (*equal)(const struct dict_node *, const void *),
                            const void *key)
{
    for (int t = 0; t < 2 && d->table[t]; t++)
        for (struct dict_node *n = d->table[t][hash & (d->size[t] - 1)]; n; n = n->next)
            if (n->hash == hash && equal(n, key))
                return n;
    return NULL;
}

int dict_insert(struct dict *d, struct dict_node *n)
{
    if (!d->table[0]) {
        d->table[0] = mem_calloc(FIRST_SIZE, sizeof *d->table[0]);
        if (!d->table[0])
            return KITH_ENOMEM;
        d->size[0] = FIRST_SIZE;
    }
    resize_step(d);
    int t = resizing(d) ? 1 : 0;
    uint64_t b = n->hash & (d->size[t] - 1);
    n->next = d->table[t][b];
    d->table[t][b] = n;
    d->used[t]++;
    return 0;
}

void dict_remove(struct dict *d, struct dict_node *n)
{
    for (int t = 0; t < 2 && d->table[t]; t++)
        for (struct dict_node **at = &d->table[t][n->hash & (d->size[t] - 1)]; *at;
             at = &(*at)->next)
            if (*at == n) {
                *at = n->next;
                d->used[t]--;
                resize_step(d);
                return;
            }
}

static uint64_t reverse_bits(uint64_t v)
{
    uint64_t r = 0;
    for (int i = 0; i < 64; i++, v >>= 1)
        r = r << 1 | (v & 1);
    return r;
}

/* Adds one to the cursor's bits under mask, counting from the highest of them down. */
static uint64_t next_cursor(uint64_t cursor, uint64_t mask)
{
    cursor |= ~mask;
    return reverse_bits(reverse_bits(cursor) + 1);
}

static void visit(struct dict_node *n, void (*fn)(void *, struct dict_node *), void *arg)
{
    for (struct dict_node *next; n; n = next) {
        next = n->next;
        fn(arg, n);
    }
}

uint64_t dict_scan(const struct dict *d, uint64_t cursor,
                   void (*fn)(void *, struct dict_node *), void *arg)
{
    if (dict_count(d) == 0)
        return 0;
    if (!resizing(d)) {
        uint64_t mask = d->size[0] - 1;
        visit(d->table[0][cursor & mask], fn, arg);
        return next_cursor(cursor, mask);
    }
    int small = d->size[0] <= d->size[1] ? 0 : 1, large = 1 - small;
    uint64_t small_mask = d->size[small] - 1, large_mask = d->size[large] - 1;
    visit(d->table[small][cursor & small_mask], fn, arg);
    /* Every bucket of the large table that the small one's bucket expands to. */
    do {
        visit(d->table[large][cursor & large_mask], fn, arg);
        cursor = next_cursor(cursor, large_mask);
    } while (cursor & (small_mask ^ large_mask));
    return cursor;
}

void dict_each(const struct dict *d, void (*fn)(void *, struct dict_node *), void *arg)
{
    for (int t = 0; t < 2 && d->table[t]; t++)
        for (uint64_t b = 0; b < d->size[t]; b++)
            visit(d->table[t][b], fn, arg);
}

struct dict_node *dict_random(const struct dict *d, struct rng *r)
{
    if (dict_count(d) == 0)
        return NULL;
    uint64_t total = d->size[0] + d->size[1];
    struct dict_node *n = NULL;
    while (!n) {
        uint64_t b = rng_below(r, total);
        n = b < d->size[0] ? d->table[0][b] : d->table[1][b - d->size[0]];
    }
    uint64_t length = 0;
    for (struct dict_node *m = n; m; m = m->next)
        length++;
    for (uint64_t i = rng_below(r, length); i > 0; i--)
        n = n->next;
    return n;
}

size_t dict_memory_bytes(const struct dict *d)
{
    return (size_t)(d->size[0] + d->size[1]) * sizeof(struct dict_node *);
}
