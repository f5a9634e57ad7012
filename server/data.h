#pragma once
/* What the data commands (cmd_key.c, cmd_string.c, cmd_v*.c, cmd_text.c) share: finding keys of
 * a type in the client's database, and making effects. All with the shard entered. */

#include <stdbool.h>
#include <stdint.h>

#include "server/client.h"
#include "server/effect.h"
#include "server/keyspace.h"

struct reembed;

struct keyspace *data_keyspace(struct client *c);
int64_t data_now_ms(struct client *c);

/* The live key, counted as a hit or a miss; NULL when there is none. Of a vector set elements
 * whose time has come are removed first, a bounded number. */
struct key *data_find(struct client *c, struct slice name);
/* Before a write: an expired key of that name is deleted by an effect first. */
struct key *data_find_for_write(struct client *c, struct slice name);
/* The live key when it has this type or there is none (then *k is NULL); false, and WRONGTYPE
 * replied, when it has another. */
bool data_find_type(struct client *c, struct slice name, enum object_type type, struct key **k);
bool data_find_type_for_write(struct client *c, struct slice name, enum object_type type,
                              struct key **k);

/* effect_do in the client's database; false, and an error replied, when it failed. */
bool data_do(struct client *c, struct effect *f);
bool data_set(struct client *c, struct slice name, struct slice value, int64_t expire_ms);
bool data_delete(struct client *c, struct slice name);
bool data_expire(struct client *c, struct slice name, int64_t expire_ms);

/* Parks the client until link workers or a checkpoint made room; true when it was parked. */
bool data_wait_for_room(struct client *c);
/* Parks a writer of the set of argv[1] while its re-embedding is at the last elements. */
bool data_wait_for_reembed(struct client *c);
struct reembed *data_reembed(struct client *c);
