#include "tests/unit/unit.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/mem.h"

enum { READERS = 3, SWAPS = 3000, ALIVE = 0x600dcafe, DEAD = 0xdead };

struct object {
    _Atomic unsigned state;
};

static _Atomic(struct object *) shared;
static atomic_bool stop;
static atomic_uint n_freed;

static void kill_object(void *p)
{
    struct object *o = p;
    atomic_store(&o->state, DEAD);
    atomic_fetch_add(&n_freed, 1);
    mem_free(o);
}

static struct object *make_object(void)
{
    struct object *o = mem_alloc(sizeof *o);
    atomic_init(&o->state, ALIVE);
    return o;
}

static void *read_for_ever(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        epoch_enter();
        struct object *o = atomic_load(&shared);
        for (int i = 0; i < 50; i++)
            if (atomic_load(&o->state) != ALIVE)
                abort(); /* a bare read of freed memory: ASan would say so too */
        epoch_exit();
    }
    return NULL;
}

static void test_readers_never_see_the_dead(void **state)
{
    (void)state;
    pthread_t threads[READERS];
    atomic_store(&shared, make_object());
    atomic_store(&stop, false);
    for (int i = 0; i < READERS; i++)
        pthread_create(&threads[i], NULL, read_for_ever, NULL);
    for (int i = 0; i < SWAPS; i++) {
        struct object *old = atomic_exchange(&shared, make_object());
        if (i % 100 == 0) {
            epoch_synchronize();
            kill_object(old);
        } else {
            epoch_retire(old, kill_object);
        }
        if (i % 16 == 0)
            epoch_collect();
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    epoch_synchronize();
    assert_int_equal(atomic_load(&n_freed), SWAPS);
    kill_object(atomic_load(&shared));
}

static void test_inside_keeps_and_nests(void **state)
{
    (void)state;
    atomic_store(&n_freed, 0);
    epoch_enter();
    epoch_enter();
    epoch_retire(make_object(), kill_object);
    epoch_exit();
    assert_true(epoch_inside());
    epoch_collect();
    assert_int_equal(atomic_load(&n_freed), 0);
    epoch_exit();
    assert_false(epoch_inside());
    epoch_collect();
    assert_int_equal(atomic_load(&n_freed), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_readers_never_see_the_dead),
        cmocka_unit_test(test_inside_keeps_and_nests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
