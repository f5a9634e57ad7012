#pragma once
/* Which models are put away so that the others keep within the memory they may take. A decision
 * and nothing else: no clock, no engine. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct models_plan_row {
    uint64_t bytes;  /* resident, of one that runs */
    int64_t used_us; /* when it was last asked */
    bool runs;       /* has a process */
    bool idle;       /* ready, and nothing is under way */
    bool away;       /* out: put it away */
};

/* Marks idle models as away, the least recently used first, until those that stay and a
 * newcomer of newcomer_bytes (0: there is none) take at most `limit`, or no idle one is left.
 * all[keep] is never marked; keep n: none is kept. Returns the bytes of those that stay and the
 * newcomer. */
uint64_t models_plan_room(struct models_plan_row *all, size_t n, size_t keep,
                          uint64_t newcomer_bytes, uint64_t limit);
