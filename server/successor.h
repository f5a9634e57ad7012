#pragma once
/* Successors: vector sets that are being made to take the place of others.
 *
 * A successor is an ordinary key of an ordinary vector set in the hidden database, so that
 * effects, checkpoints, recovery and checks serve it as they serve every set. Its name says
 * whose it is:
 *
 *   name = flags u8 (bit 0: texts are cut to the model's context), db u8, the set's key
 *
 * What ends the set ends its successor: each effect that deletes, replaces or renames a key
 * also deletes the successor of that key (apply.c). So a key that was deleted and made anew
 * never meets the successor of the set it held before, on any machine that replays the log.
 *
 * Thread: all functions with the shard's lock held, but for the names. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

struct key;
struct keyspace;

struct successor_place {
    uint32_t db;
    struct slice key; /* of the set it is for */
    bool truncate;
};

enum { SUCCESSOR_PREFIX_BYTES = 2 };

void successor_write_name(struct buf *to, const struct successor_place *place);
/* The key points into the name. False: it is no such name. */
bool successor_read_name(struct slice name, struct successor_place *place);

/* The successor of a set, NULL when it has none. KITH_ENOMEM only where there are successors;
 * it asks for no memory when there is none. */
int successor_find(struct keyspace *ks, uint32_t db, struct slice key, struct key **out);
/* Any one of the sets of a database; NULL: none is left. */
struct key *successor_of_db(struct keyspace *ks, uint32_t db);

struct successor_totals {
    uint64_t n_sets, n_vectors;
};
struct successor_totals successor_totals(struct keyspace *ks);
