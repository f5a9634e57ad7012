#pragma once
/* Names of elements to be taken again, each once, first come first served; and how far the one
 * who takes them is behind those who add.
 *
 * Knows no set and no shard. Thread: one owner at a time. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/dict.h"

struct reembed_name;

struct reembed_names {
    struct dict by_name;
    struct reembed_name *first, *last;
    uint64_t n;
    size_t bytes;
};

void reembed_names_init(struct reembed_names *q);
void reembed_names_deinit(struct reembed_names *q);
void reembed_names_clear(struct reembed_names *q);
/* A name that is there already keeps its place. False: out of memory, or there would be more
 * than are worth remembering; then nothing was added. */
bool reembed_names_add(struct reembed_names *q, struct slice name);
/* The oldest, appended to out, and takes it away; false when there is none. Out of memory
 * (out->failed) it stays. */
bool reembed_names_take(struct reembed_names *q, struct buf *out);

/* When writers wait. While they add names as others are taken, `left` may never come to zero.
 * So they are made to wait once few are left, and what counts as few grows with each lap: a lap
 * is over when as many were taken as were left at its beginning. Who adds more slowly than is
 * taken needs a lap or two; a last lap there is for everyone. */
struct reembed_pace {
    uint32_t laps;
    uint64_t lap_left;
};
enum { REEMBED_FEW = 64, REEMBED_FEW_MOST = 4096, REEMBED_LAPS = 12 };
/* After `taken` names were taken and `left` are; whether writers should wait from now on. */
bool reembed_pace_step(struct reembed_pace *p, uint64_t taken, uint64_t left);
