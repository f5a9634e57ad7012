#include "storage/store_guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

/* Written under the lock, read by the signal handler: an entry counts while its size is not 0.
 */
struct map {
    _Atomic uintptr_t base;
    _Atomic size_t bytes;
    _Atomic(_Atomic bool *) healthy;
};

enum { MAPS_MAX = 256, MAP_PAGE_BYTES = 4096 };

static struct map maps[MAPS_MAX];
static pthread_mutex_t maps_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;

struct guard {
    sigjmp_buf jump;
    struct guard *outer;
};
static _Thread_local struct guard *innermost;

int guarded(int (*fn)(void *arg), void *arg)
{
    struct guard g = {.outer = innermost};
    /* The handler runs with SA_NODEFER, so there is no signal mask to restore. */
    if (sigsetjmp(g.jump, 0) != 0) {
        innermost = g.outer;
        return GUARD_DAMAGED;
    }
    innermost = &g;
    int rc = fn(arg);
    innermost = g.outer;
    return rc;
}

void guard_escape(void)
{
    if (innermost)
        siglongjmp(innermost->jump, 1);
}

static struct map *find(uintptr_t address)
{
    for (int i = 0; i < MAPS_MAX; i++) {
        size_t bytes = atomic_load(&maps[i].bytes);
        if (bytes && address - atomic_load(&maps[i].base) < bytes)
            return &maps[i];
    }
    return NULL;
}

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    (void)context;
    uintptr_t address = (uintptr_t)info->si_addr;
    struct map *m = find(address);
    if (!m) {
        /* Not ours: the instruction faults again under whoever was there before. */
        sigaction(signal, &before, NULL);
        return;
    }
    atomic_store(atomic_load(&m->healthy), false);
    guard_escape();
    void *page = (void *)(address & ~(uintptr_t)(MAP_PAGE_BYTES - 1));
    if (mmap(page, MAP_PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        sigaction(signal, &before, NULL);
}

/* Puts the handler in place, also where somebody has set another one since. */
static void install(void)
{
    struct sigaction now;
    struct sigaction ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGBUS, NULL, &now) == 0 && now.sa_sigaction != on_sigbus) {
        before = now;
        sigaction(SIGBUS, &ours, NULL);
    }
}

int guard_map_add(const void *base, size_t bytes, _Atomic bool *healthy, struct err *e)
{
    int rc = KITH_ELIMIT;
    pthread_mutex_lock(&maps_lock);
    install();
    for (int i = 0; i < MAPS_MAX && rc != 0; i++) {
        if (atomic_load(&maps[i].bytes) != 0)
            continue;
        atomic_store(&maps[i].base, (uintptr_t)base);
        atomic_store(&maps[i].healthy, healthy);
        atomic_store(&maps[i].bytes, bytes);
        rc = 0;
    }
    pthread_mutex_unlock(&maps_lock);
    return rc == 0 ? 0
                   : err_set(e, rc, "more than %d stores are open in one process", MAPS_MAX);
}

void guard_map_remove(const void *base)
{
    pthread_mutex_lock(&maps_lock);
    for (int i = 0; i < MAPS_MAX; i++) {
        if (atomic_load(&maps[i].base) == (uintptr_t)base)
            atomic_store(&maps[i].bytes, 0);
    }
    pthread_mutex_unlock(&maps_lock);
}
