#pragma once
/* A hash table of intrusive nodes that grows a little at a time and can be walked by a cursor.
 *
 * The owner embeds struct dict_node, hashes and compares; the table only links. Growing and
 * shrinking move a few buckets at each insert and remove, so that no single call is long. A
 * scan by cursor returns every node that was there from its beginning to its end at least once,
 * whatever was inserted, removed or resized in between (the cursor counts with its bits
 * reversed, so that a bucket's successors after a resize are visited together). Thread: one
 * owner. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/random.h"

struct dict_node {
    struct dict_node *next;
    uint64_t hash;
};

struct dict {
    struct dict_node **table[2]; /* [1] is the new one while resizing */
    uint64_t size[2];            /* powers of two, or 0 */
    uint64_t used[2];
    uint64_t moved; /* buckets of table[0] already moved */
};

void dict_init(struct dict *d);
void dict_deinit(struct dict *d); /* the nodes are the owner's */

static inline uint64_t dict_count(const struct dict *d)
{
    return d->used[0] + d->used[1];
}

/* The node with this hash for which equal(node, key) holds, or NULL. */
struct dict_node *dict_find(const struct dict *d, uint64_t hash,
                            bool (*equal)(const struct dict_node *n, const void *key),
                            const void *key);
/* n->hash is set by the caller; the key must not be there yet. KITH_ENOMEM only for the very
 * first table; a later growth that gets no memory is tried again at the next insert. */
int dict_insert(struct dict *d, struct dict_node *n);
void dict_remove(struct dict *d, struct dict_node *n); /* n is in the table */

/* Visits one or a few buckets; returns the next cursor, 0 when the scan is complete. Start with
 * 0. fn must not change the table. */
uint64_t dict_scan(const struct dict *d, uint64_t cursor,
                   void (*fn)(void *arg, struct dict_node *n), void *arg);
void dict_each(const struct dict *d, void (*fn)(void *arg, struct dict_node *n), void *arg);
/* A node chosen at random (nearly uniformly); NULL when empty. */
struct dict_node *dict_random(const struct dict *d, struct rng *r);
size_t dict_memory_bytes(const struct dict *d);
