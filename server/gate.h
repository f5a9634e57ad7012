#pragma once
/* The gate of one connection: which of its replies may leave, by what the log has released.
 *
 * Replies lie in one buffer, in order. Those of a batch that saw, or made, an effect whose log
 * index is not released yet are marked: from this place on, wait for that index.
 *
 *   out   [ sent | may leave        | waits for 17      | waits for 19   ]
 *                                   ^ marks[first]      ^ marks[first+1]
 *
 * A mark waits only for its own index: a client that writes without a pause does not hold up
 * its earlier replies. Reads in a server where nothing is being written set no mark at all.
 * Rejected: one index for the whole connection, which starves exactly there; one mark a reply,
 * which costs memory a reply and lets nothing go earlier, for one flush serves the whole batch.
 *
 * Which index that is, is the dispatcher's to know (net.h): the newest at the moment the
 * command leaves the shard, and for a search that had left it before, the newest once it has
 * been entered again after the search.
 *
 * It knows no log and no socket: indexes and offsets only. Thread: one owner. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gate_mark {
    size_t start;
    uint64_t index;
};

struct gate {                /* all zero is an open gate */
    struct gate_mark *marks; /* ascending in start and index */
    uint32_t n, first;
    size_t cap;
};

void gate_deinit(struct gate *g);
/* Replies from `start` on, not before those of earlier marks, wait for index. When memory is
 * out the newest mark takes them over, which lets go later than needed and never too early;
 * false when there is no mark that could. */
bool gate_close(struct gate *g, size_t start, uint64_t index);
/* How much of `len` bytes may leave now; forgets the marks that are open. */
size_t gate_open(struct gate *g, uint64_t released, size_t len);
/* The first n bytes of the buffer are gone; they had left. */
void gate_consume(struct gate *g, size_t n);

static inline bool gate_is_open(const struct gate *g)
{
    return g->first == g->n;
}
/* The index that the next replies to leave wait for. Not of an open gate. */
static inline uint64_t gate_next(const struct gate *g)
{
    return g->marks[g->first].index;
}
/* The newest index waited for, 0 when the gate is open. */
static inline uint64_t gate_newest(const struct gate *g)
{
    return gate_is_open(g) ? 0 : g->marks[g->n - 1].index;
}
