#include "engine/piece_trie.h"

#include <string.h>

#include "base/mem.h"

enum { MAX_NODES = 1 << 23 }; /* so that node << 8 | byte fits 31 bits */

static void put(struct piece_edge *edges, uint32_t mask, uint32_t key, uint32_t child)
{
    uint32_t s = piece_trie_slot(key, mask);
    while (edges[s].child != 0)
        s = (s + 1) & mask;
    edges[s] = (struct piece_edge){.key = key, .child = child};
}

/* Room for one more node and its edge: at most a quarter of the slots are taken, since a miss
 * ends the walk of every piece. */
static int grow(struct piece_trie *t)
{
    if (t->n_nodes == t->nodes_capacity) {
        uint32_t capacity = t->nodes_capacity ? t->nodes_capacity * 2 : 1024;
        int32_t *ids = mem_realloc_n(t->node_id, capacity, sizeof *ids);
        if (!ids)
            return KITH_ENOMEM;
        t->node_id = ids;
        t->nodes_capacity = capacity;
    }
    if (t->edges && (uint64_t)t->n_nodes * 4 < (uint64_t)t->edge_mask + 1)
        return 0;
    uint32_t slots = t->edges ? (t->edge_mask + 1) * 2 : 4096;
    struct piece_edge *edges = mem_calloc(slots, sizeof *edges);
    if (!edges)
        return KITH_ENOMEM;
    for (uint32_t s = 0; t->edges && s <= t->edge_mask; s++)
        if (t->edges[s].child)
            put(edges, slots - 1, t->edges[s].key, t->edges[s].child);
    mem_free(t->edges);
    t->edges = edges;
    t->edge_mask = slots - 1;
    return 0;
}

int piece_trie_init(struct piece_trie *t, uint32_t n_roots, struct err *e)
{
    memset(t, 0, sizeof *t);
    if (grow(t))
        return err_set(e, KITH_ENOMEM, "out of memory for the vocabulary");
    for (t->n_nodes = 0; t->n_nodes < n_roots; t->n_nodes++)
        t->node_id[t->n_nodes] = PIECE_NONE;
    return 0;
}

void piece_trie_deinit(struct piece_trie *t)
{
    mem_free(t->edges);
    mem_free(t->node_id);
    memset(t, 0, sizeof *t);
}

int piece_trie_add(struct piece_trie *t, uint32_t root, const char *piece, size_t n, int32_t id,
                   struct err *e)
{
    uint32_t node = root;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)piece[i];
        uint32_t child = piece_trie_child(t, node, byte);
        if (!child) {
            if (t->n_nodes >= MAX_NODES)
                return err_set(e, KITH_ELIMIT, "the vocabulary is too large");
            if (grow(t))
                return err_set(e, KITH_ENOMEM, "out of memory for the vocabulary");
            child = t->n_nodes++;
            t->node_id[child] = PIECE_NONE;
            put(t->edges, t->edge_mask, node << 8 | byte, child);
        }
        node = child;
    }
    if (t->node_id[node] == PIECE_NONE)
        t->node_id[node] = id;
    return 0;
}
