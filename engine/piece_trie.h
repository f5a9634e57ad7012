#pragma once
/* A trie over bytes for the pieces of a vocabulary: several roots, and at each node the id of
 * the token that ends there. An edge is a slot of one open-addressing table keyed by (node,
 * byte), so the pieces that begin at a place are found in one walk of as many probes as the
 * longest has bytes.
 *
 *   node 0 --'t'--> 7 --'o'--> 8 (id of "to")      key = node << 8 | byte
 *
 * Thread: immutable once filled. Errors: KITH_ENOMEM, KITH_ELIMIT. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { PIECE_NONE = -1 };

struct piece_edge {
    uint32_t key;
    uint32_t child; /* 0: the slot is empty, for no edge leads to a root */
};

struct piece_trie {
    struct piece_edge *edges;
    uint32_t edge_mask; /* slots - 1 */
    uint32_t n_nodes, nodes_capacity;
    int32_t *node_id; /* the token that ends at the node, or PIECE_NONE */
};

/* The nodes 0 .. n_roots - 1 are roots. */
int piece_trie_init(struct piece_trie *t, uint32_t n_roots, struct err *e);
void piece_trie_deinit(struct piece_trie *t);
/* The first of two equal pieces keeps the place. */
int piece_trie_add(struct piece_trie *t, uint32_t root, const char *piece, size_t n, int32_t id,
                   struct err *e);

static inline uint32_t piece_trie_slot(uint32_t key, uint32_t mask)
{
    return (key * 2654435769u >> 7) & mask;
}

/* The node behind `byte`, or 0 where there is none. */
static inline uint32_t piece_trie_child(const struct piece_trie *t, uint32_t node,
                                        unsigned char byte)
{
    uint32_t key = node << 8 | byte;
    for (uint32_t s = piece_trie_slot(key, t->edge_mask);; s = (s + 1) & t->edge_mask) {
        const struct piece_edge *edge = &t->edges[s];
        if (edge->key == key || edge->child == 0)
            return edge->child;
    }
}
