#include "index/kernels.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "index/index.h"

extern const struct vector_kernels vector_kernels_scalar;
#if defined(__x86_64__)
#include <cpuid.h>
extern const struct vector_kernels vector_kernels_avx2, vector_kernels_avx512;
#elif defined(__aarch64__)
#include <sys/auxv.h>
extern const struct vector_kernels vector_kernels_neon;
#endif

/* A build with emulated sets (VARIANT=emulated) has those beyond AVX2 in AVX2's instructions:
 * they run where AVX2 does, and are used only when they are asked for. */
#if KITH_EMULATED_ISAS
enum { EMULATED = 1 };
#else
enum { EMULATED = 0 };
#endif

static const struct vector_kernels *chosen;
static pthread_once_t chosen_once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
static bool has_avx512(void)
{
    return EMULATED ||
           (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vnni"));
}
#endif

const struct vector_kernels *kernels_named(const char *name)
{
    if (strcmp(name, "scalar") == 0)
        return &vector_kernels_scalar;
#if defined(__x86_64__)
    /* F16C is older than AVX2 and asked for by number: clang's builtin does not know it. */
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        return NULL;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("bmi2"))
        return NULL;
    if (strcmp(name, "avx2") == 0)
        return &vector_kernels_avx2;
    if (strcmp(name, "avx512") == 0 && has_avx512())
        return &vector_kernels_avx512;
#elif defined(__aarch64__)
    /* What the Makefile's -march for this set allows the compiler. */
    unsigned long needed = HWCAP_ASIMDDP | HWCAP_FPHP | HWCAP_ASIMDHP;
    if (strcmp(name, "neon") == 0 && (getauxval(AT_HWCAP) & needed) == needed)
        return &vector_kernels_neon;
#endif
    return NULL;
}

static void choose(void)
{
    /* The first is the one that may be emulated. */
    static const char *const best_first[] = {"avx512", "avx2", "neon", "scalar"};
    const char *forced = getenv("KITH_KERNELS");
    chosen = forced ? kernels_named(forced) : NULL;
    for (size_t i = EMULATED; !chosen; i++)
        chosen = kernels_named(best_first[i]);
}

const struct vector_kernels *kernels_get(void)
{
    pthread_once(&chosen_once, choose);
    return chosen;
}

const char *index_kernels_name(void)
{
    return kernels_get()->name;
}
