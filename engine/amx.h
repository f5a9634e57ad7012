#pragma once
/* Whether this process may compute with AMX's tiles.
 *
 * On some virtual machines tiles are announced and permitted, and some programs die of SIGILL
 * all the same when they first load one. So a processor is believed only after a child process
 * has multiplied with tiles, on its first thread and on another, and the products were right.
 *
 * It knows no table and remembers nothing; engine/kernels.c asks once. Thread: any, but best
 * before there are others, since it forks and since the permission is the process's. */

#include <stdbool.h>

#include "engine/kernels.h"

/* The steps, so that tests can have each of them fail. */
struct amx_steps {
    bool (*announced)(void);
    int (*permit)(void);                  /* 0 or errno */
    const struct product_kernels *tiles;  /* the product to be tried: its int8 */
    const struct product_kernels *oracle; /* one with the same panels */
};

/* What CPUID says. */
bool amx_announced(void);
/* Asks the kernel for the tiles' state in this process and all its threads. */
int amx_permit(void);

/* 0, or KITH_EUNSUPPORTED with what failed. */
int amx_check(const struct amx_steps *steps, struct err *e);
