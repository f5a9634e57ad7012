#pragma once
/* What every unit test includes: cmocka with its headers in order, and a printed seed. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/random.h"

/* KITH_SEED=N repeats a run. */
static inline uint64_t unit_seed(void)
{
    const char *given = getenv("KITH_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 10) : rng_entropy();
    printf("seed %llu (KITH_SEED repeats it)\n", (unsigned long long)seed);
    return seed;
}
