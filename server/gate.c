#include "server/gate.h"

#include <string.h>

#include "base/mem.h"

enum { MARKS_FIRST = 8 };

void gate_deinit(struct gate *g)
{
    mem_free(g->marks);
    memset(g, 0, sizeof *g);
}

/* Room for one mark more: the places of those that are open, or more memory. */
static bool make_room(struct gate *g)
{
    if (g->n < g->cap)
        return true;
    if (g->first > 0) {
        g->n -= g->first;
        memmove(g->marks, g->marks + g->first, g->n * sizeof *g->marks);
        g->first = 0;
        return true;
    }
    struct gate_mark *marks = mem_grow(g->marks, g->n, &g->cap, MARKS_FIRST, sizeof *marks);
    if (!marks)
        return false;
    g->marks = marks;
    return true;
}

bool gate_close(struct gate *g, size_t start, uint64_t index)
{
    if (!gate_is_open(g) && index <= gate_newest(g))
        return true; /* they wait behind it anyway */
    if (make_room(g)) {
        g->marks[g->n++] = (struct gate_mark){.start = start, .index = index};
        return true;
    }
    if (gate_is_open(g))
        return false;
    g->marks[g->n - 1].index = index;
    return true;
}

size_t gate_open(struct gate *g, uint64_t released, size_t len)
{
    while (g->first < g->n && g->marks[g->first].index <= released)
        g->first++;
    if (!gate_is_open(g))
        return g->marks[g->first].start;
    g->first = g->n = 0;
    return len;
}

void gate_consume(struct gate *g, size_t n)
{
    for (uint32_t i = g->first; i < g->n; i++)
        g->marks[i].start -= n;
}
