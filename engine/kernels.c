#include "engine/kernels.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <pthread.h>

#include "engine/amx.h"
#endif

extern const struct product_kernels product_kernels_scalar;
extern const struct row_kernels row_kernels_scalar;
#if defined(__x86_64__)
extern const struct product_kernels product_kernels_avx2, product_kernels_avx512,
    product_kernels_avx512bf16, product_kernels_amx;
extern const struct row_kernels row_kernels_avx2, row_kernels_avx512;
#elif defined(__aarch64__)
extern const struct product_kernels product_kernels_neon;
extern const struct row_kernels row_kernels_neon;
#endif

/* A build with emulated sets (VARIANT=emulated) has those beyond AVX2 in AVX2's instructions:
 * they run where AVX2 does, and are used only when they are asked for. */
#if KITH_EMULATED_ISAS
enum { EMULATED = 1 };
#else
enum { EMULATED = 0 };
#endif

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
}

static bool has_avx512(void)
{
    return has_avx2() &&
           (EMULATED ||
            (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni")));
}

static bool has_avx512bf16(void)
{
    return has_avx512() && (EMULATED || __builtin_cpu_supports("avx512bf16"));
}

static pthread_once_t amx_once = PTHREAD_ONCE_INIT;
static struct err amx_why; /* code 0: it works */

static void try_amx(void)
{
    const struct amx_steps steps = {amx_announced, amx_permit, &product_kernels_amx,
                                    &product_kernels_avx512};
    amx_check(&steps, &amx_why);
}

static bool has_amx(void)
{
    if (!has_avx512bf16() || EMULATED)
        return has_avx512bf16();
    if (!amx_announced()) /* leaves nothing to be said */
        return false;
    pthread_once(&amx_once, try_amx);
    return amx_why.code == 0;
}

const char *engine_kernels_refused(void)
{
    return amx_why.message;
}
#else
const char *engine_kernels_refused(void)
{
    return "";
}
#endif

#if defined(__aarch64__)
/* What the Makefile's -march for this set allows the compiler. */
static bool has_neon(void)
{
    unsigned long needed = HWCAP_ASIMDDP | HWCAP_FPHP | HWCAP_ASIMDHP;
    return (getauxval(AT_HWCAP) & needed) == needed;
}
#endif

/* Best first. */
static const struct candidate {
    struct engine_kernels kernels;
    bool (*runs_here)(void);
    bool only_by_name;
} candidates[] = {
#if defined(__x86_64__)
    {{"amx", &product_kernels_amx, &row_kernels_avx512}, has_amx, EMULATED},
    {{"avx512bf16", &product_kernels_avx512bf16, &row_kernels_avx512},
     has_avx512bf16,
     EMULATED},
    {{"avx512", &product_kernels_avx512, &row_kernels_avx512}, has_avx512, EMULATED},
    {{"avx2", &product_kernels_avx2, &row_kernels_avx2}, has_avx2, false},
#elif defined(__aarch64__)
    {{"neon", &product_kernels_neon, &row_kernels_neon}, has_neon, false},
#endif
    {{"scalar", &product_kernels_scalar, &row_kernels_scalar}, always, false},
};

enum { N_CANDIDATES = sizeof candidates / sizeof candidates[0] };

static const struct engine_kernels *best(void)
{
    int i = 0;
    while (candidates[i].only_by_name || !candidates[i].runs_here())
        i++;
    return &candidates[i].kernels;
}

int engine_kernels_named(const struct engine_kernels **out, const char *name, struct err *e)
{
    for (int i = 0; i < N_CANDIDATES; i++) {
        if (strcmp(candidates[i].kernels.name, name) != 0)
            continue;
        if (!candidates[i].runs_here())
            return err_set(e, KITH_EUNSUPPORTED, "this processor cannot run the %s kernels",
                           name);
        *out = &candidates[i].kernels;
        return 0;
    }
    return err_set(e, KITH_EINVAL, "no kernels are called '%s'; the best here are '%s'", name,
                   best()->name);
}

int engine_kernels(const struct engine_kernels **out, struct err *e)
{
    const char *name = getenv("KITH_KERNELS");
    if (name && *name) {
        int rc = engine_kernels_named(out, name, e);
        return rc == 0 ? 0 : (err_wrap(e, "KITH_KERNELS"), rc);
    }
    *out = best();
    return 0;
}
