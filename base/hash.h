#pragma once
/* XXH3 hashes (the only door to xxHash). Checksums on disk use seed 0 and the 64-bit form;
 * model files are named by the 128-bit form. Not cryptographic: never a defence against an
 * attacker. */

#include <stddef.h>
#include <stdint.h>

uint64_t hash64(const void *p, size_t n);
uint64_t hash64_seed(const void *p, size_t n, uint64_t seed);
/* A strong mix of one integer (splitmix64's finaliser). */
uint64_t hash_mix(uint64_t v);
/* The 128-bit hash as 32 lower-case hex digits and a NUL. */
void hash128_hex(const void *p, size_t n, char out[33]);

/* The hash of bytes that do not lie together. */
struct hash_stream;
struct hash_stream *hash_stream_new(void); /* NULL when out of memory */
void hash_stream_update(struct hash_stream *s, const void *p, size_t n);
uint64_t hash_stream_digest(const struct hash_stream *s);
void hash_stream_free(struct hash_stream *s);

/* The Redis cluster slot of a key (CRC16/XMODEM of the key or of its {tag}, modulo 16,384). */
enum { HASH_SLOTS = 16384 };
unsigned hash_slot(const void *key, size_t n);
