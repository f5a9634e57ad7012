#pragma once
/* What the rest of the storage room sees of a store beyond storage/store.h. For the room only.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/store.h"

/* --- the format of values --- */

enum { STORE_META = STORE_TABLES, STORE_TABLES_ALL, STORE_HASH_BYTES = 8, STORE_KEY_BYTES = 8 };
enum { CHUNK_MAGIC = 0x6b68636bu /* "kchk" */, CHUNK_N_RECORDS_AT = 24 /* in the header */ };

extern const char *const store_table_names[STORE_TABLES_ALL];

/* Big-endian, so that LMDB's order of bytes is the order of the numbers. */
void store_key_encode(char to[STORE_KEY_BYTES], uint32_t a, uint32_t b);
void store_key_decode(const char from[STORE_KEY_BYTES], uint32_t *a, uint32_t *b);
/* The checksum of a value's n bytes behind the hash. */
uint64_t store_value_hash(unsigned table, uint32_t a, uint32_t b, const void *p, size_t n);
/* KITH_ECORRUPT when a stored value is not what was written under this key. */
int store_value_check(unsigned table, uint32_t a, uint32_t b, const void *value, size_t n,
                      struct err *e);
int chunk_value_check(uint32_t array, uint32_t chunk, const void *value, size_t n,
                      struct err *e);
void chunk_value_seal(char *value, size_t n, uint32_t array, uint32_t chunk, uint32_t stride,
                      uint32_t n_records);

/* The record in the table "meta" under (0, 0):
 *   { u64 hash | u32 version | u32 zero | u64 epoch | u64 index | u64 checkpoints | u64 txnid |
 *     STORE_TABLES x { u64 entries | u64 sum of the keys' hashes } }
 * txnid is LMDB's number of the transaction that wrote it. */
struct store_meta {
    struct store_state state;
    uint64_t txnid;
    uint64_t n_entries[STORE_TABLES], key_sum[STORE_TABLES];
};
enum { STORE_META_BYTES = 48 + 16 * STORE_TABLES, STORE_VERSION = 1 };
void store_meta_encode(char to[STORE_META_BYTES], const struct store_meta *m);

/* Verifies the data file before LMDB opens it. *fresh: there is nothing in it yet. */
int store_verify(const char *path, struct store_meta *out, bool *fresh, struct err *e);

/* --- what chunks need --- */

/* The value (a, b) of STORE_CHUNKS as of the read transaction, unchecked, in the map. Valid
 * until the caller leaves its epoch bracket, and as long as nothing newer was stored under the
 * key. */
int store_chunk_find(struct store *s, uint32_t a, uint32_t b, const char **p, size_t *n,
                     struct err *e);
/* Whether reads see the newest commit (a refresh may have failed). Thread: the checkpointer. */
bool store_view_is_newest(struct store *s);
/* fn(arg) as a guarded call: KITH_ECORRUPT when damage in the map cut it short. */
int store_guarded(struct store *s, int (*fn)(void *arg), void *arg, struct err *e);
_Atomic size_t *store_dirty_counter(struct store *s);
