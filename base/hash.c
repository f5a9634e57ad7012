#include "base/hash.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

uint64_t hash64(const void *p, size_t n)
{
    return XXH3_64bits(p, n);
}

uint64_t hash64_seed(const void *p, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(p, n, seed);
}

uint64_t hash_mix(uint64_t v)
{
    v ^= v >> 30;
    v *= 0xbf58476d1ce4e5b9u;
    v ^= v >> 27;
    v *= 0x94d049bb133111ebu;
    return v ^ (v >> 31);
}

void hash128_hex(const void *p, size_t n, char out[33])
{
    XXH128_hash_t h = XXH3_128bits(p, n);
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
}

struct hash_stream *hash_stream_new(void)
{
    XXH3_state_t *s = XXH3_createState();
    if (s)
        XXH3_64bits_reset(s);
    return (struct hash_stream *)s;
}

void hash_stream_update(struct hash_stream *s, const void *p, size_t n)
{
    XXH3_64bits_update((XXH3_state_t *)s, p, n);
}

uint64_t hash_stream_digest(const struct hash_stream *s)
{
    return XXH3_64bits_digest((const XXH3_state_t *)s);
}

void hash_stream_free(struct hash_stream *s)
{
    XXH3_freeState((XXH3_state_t *)s);
}

static unsigned crc16(const unsigned char *p, size_t n)
{
    unsigned crc = 0;
    for (size_t i = 0; i < n; i++) {
        crc ^= (unsigned)p[i] << 8;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 0x8000u) ? (crc << 1) ^ 0x1021u : crc << 1;
        crc &= 0xffffu;
    }
    return crc;
}

unsigned hash_slot(const void *key, size_t n)
{
    const char *start = key;
    const char *open = n ? memchr(start, '{', n) : NULL;
    if (open) {
        size_t rest = n - (size_t)(open - start) - 1;
        const char *close = rest ? memchr(open + 1, '}', rest) : NULL;
        if (close && close != open + 1)
            return crc16((const unsigned char *)open + 1, (size_t)(close - open - 1)) %
                   HASH_SLOTS;
    }
    return crc16(key, n) % HASH_SLOTS;
}
