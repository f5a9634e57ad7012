/* The counter `now` starts at 1. A reader publishes the value of `now` it saw in its slot; 0
 * means outside. What was unpublished before `now` was advanced to e+1 cannot be seen by a
 * reader whose slot is e+1 or more. So retire stamps with the value before its advance, and an
 * item may go when every slot is 0 or greater than its stamp.
 *
 * Enter stores the slot and then must not let its later loads of shared pointers move before
 * that store: both are sequentially consistent, as are the writer's advance and its scan of the
 * slots, so one of the two sees the other (Dekker). ThreadSanitizer does not model fences;
 * plain seq_cst operations on the slots keep it exact. */
#include "base/epoch.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"

struct slot {
    _Alignas(64) _Atomic uint64_t epoch;
    _Atomic int taken;
    unsigned depth; /* touched by its thread only */
    struct slot *next;
};

struct retired {
    struct retired *next;
    uint64_t stamp;
    void *p;
    void (*fn)(void *);
};

static _Atomic uint64_t now = 1;
static _Atomic(struct slot *)
    slots; /* only grows: at most one a thread that ever lived at once */
static pthread_mutex_t retired_lock = PTHREAD_MUTEX_INITIALIZER;
static struct retired *retired_first, **retired_end = &retired_first;
static pthread_key_t slot_key;
static pthread_once_t slot_key_once = PTHREAD_ONCE_INIT;
static _Thread_local struct slot *mine;

static void give_slot_back(void *p)
{
    struct slot *s = p;
    assert(s->depth == 0);
    mine = NULL;
    atomic_store(&s->taken, 0);
}

static void make_slot_key(void)
{
    pthread_key_create(&slot_key, give_slot_back);
}

static struct slot *take_slot(void)
{
    pthread_once(&slot_key_once, make_slot_key);
    struct slot *s;
    for (s = atomic_load(&slots); s; s = s->next) {
        int free_slot = 0;
        if (atomic_compare_exchange_strong(&s->taken, &free_slot, 1))
            break;
    }
    if (!s) {
        /* Not mem_alloc: a reader has no way to report an injected failure, and one cache line
         * a thread is all that is ever asked for. */
        s = aligned_alloc(64, sizeof *s);
        if (!s)
            abort();
        *s = (struct slot){.taken = 1};
        struct slot *head = atomic_load(&slots);
        do
            s->next = head;
        while (!atomic_compare_exchange_weak(&slots, &head, s));
    }
    pthread_setspecific(slot_key, s);
    mine = s;
    return s;
}

void epoch_enter(void)
{
    struct slot *s = mine ? mine : take_slot();
    if (s->depth++ == 0)
        atomic_store(&s->epoch, atomic_load(&now));
}

void epoch_exit(void)
{
    struct slot *s = mine;
    assert(s && s->depth > 0);
    if (--s->depth == 0)
        atomic_store(&s->epoch, 0);
}

bool epoch_inside(void)
{
    return mine && mine->depth > 0;
}

/* The smallest epoch a reader is in, or UINT64_MAX when all are outside. */
static uint64_t oldest_reader(void)
{
    uint64_t oldest = UINT64_MAX;
    for (struct slot *s = atomic_load(&slots); s; s = s->next) {
        uint64_t e = atomic_load(&s->epoch);
        if (e && e < oldest)
            oldest = e;
    }
    return oldest;
}

void epoch_retire(void *p, void (*fn)(void *))
{
    struct retired *r = mem_alloc(sizeof *r);
    if (!r) {
        epoch_synchronize();
        fn(p);
        return;
    }
    r->p = p;
    r->fn = fn;
    r->next = NULL;
    pthread_mutex_lock(&retired_lock);
    r->stamp = atomic_fetch_add(&now, 1);
    *retired_end = r;
    retired_end = &r->next;
    pthread_mutex_unlock(&retired_lock);
}

void epoch_collect(void)
{
    pthread_mutex_lock(&retired_lock);
    struct retired *ready = NULL, **end = &ready;
    if (retired_first) {
        uint64_t oldest = oldest_reader();
        while (retired_first && retired_first->stamp < oldest) {
            *end = retired_first;
            end = &retired_first->next;
            retired_first = retired_first->next;
        }
        *end = NULL;
        if (!retired_first)
            retired_end = &retired_first;
    }
    pthread_mutex_unlock(&retired_lock);
    while (ready) {
        struct retired *next = ready->next;
        ready->fn(ready->p);
        mem_free(ready);
        ready = next;
    }
}

void epoch_synchronize(void)
{
    assert(!epoch_inside());
    uint64_t before = atomic_fetch_add(&now, 1);
    for (int64_t pause = 1; oldest_reader() <= before; pause = pause < 256 ? pause * 2 : 256)
        clock_sleep_us(pause);
    epoch_collect();
}
