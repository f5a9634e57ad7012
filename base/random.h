#pragma once
/* A small fast generator (xoshiro256**, Blackman and Vigna 2018). Seeded, so that tests can
 * print a seed and repeat; not for secrets. Thread: one owner a state. */

#include <stdint.h>

struct rng {
    uint64_t s[4];
};

void rng_seed(struct rng *r, uint64_t seed);
uint64_t rng_next(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t n); /* 0 .. n-1, n > 0, unbiased */
double rng_unit(struct rng *r);                /* [0, 1) */
uint64_t rng_entropy(void);                    /* a seed from the system */
