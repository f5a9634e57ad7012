/* What it costs a batch of commands to reach the shard: by taking its lock on the I/O thread
 * (what the server does), or by handing the batch to a thread that owns the shard and waiting
 * for its answer. The batch itself does the same work in both. */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"

enum { ROUNDS = 7, BATCHES = 40000 };

struct owner {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int commands; /* of the batch handed over, 0: none */
    bool stop;
    int answered; /* eventfd */
    uint64_t state;
};

/* About what a SET costs in memory: a few dependent mixes a command. */
static void work(struct owner *o, int commands)
{
    for (int i = 0; i < commands * 16; i++)
        o->state = hash_mix(o->state + 1);
}

static void *own(void *arg)
{
    struct owner *o = arg;
    pthread_mutex_lock(&o->lock);
    while (!o->stop) {
        if (o->commands == 0) {
            pthread_cond_wait(&o->wake, &o->lock);
            continue;
        }
        work(o, o->commands);
        o->commands = 0;
        uint64_t one = 1;
        if (write(o->answered, &one, sizeof one) != (ssize_t)sizeof one)
            abort();
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

static double by_lock(struct owner *o, int commands)
{
    int64_t start = clock_mono_ns();
    for (int i = 0; i < BATCHES; i++) {
        pthread_mutex_lock(&o->lock);
        work(o, commands);
        pthread_mutex_unlock(&o->lock);
    }
    return (double)(clock_mono_ns() - start) / BATCHES;
}

static double by_owner(struct owner *o, int commands)
{
    int64_t start = clock_mono_ns();
    for (int i = 0; i < BATCHES; i++) {
        uint64_t one;
        pthread_mutex_lock(&o->lock);
        o->commands = commands;
        pthread_cond_signal(&o->wake);
        pthread_mutex_unlock(&o->lock);
        if (read(o->answered, &one, sizeof one) != (ssize_t)sizeof one)
            abort();
    }
    return (double)(clock_mono_ns() - start) / BATCHES;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        bool help = strcmp(argv[1], "--help") == 0;
        fprintf(help ? stdout : stderr, "usage: bench-handover\n"
                                        "Nanoseconds a batch of 1, 16 and 256 commands takes "
                                        "by lock and by owner thread.\n");
        return help ? 0 : 2;
    }
    static const int sizes[] = {1, 16, 256};
    struct owner o = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
    o.answered = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    if (o.answered < 0 || pthread_create(&thread, NULL, own, &o) != 0) {
        fprintf(stderr, "bench-handover: cannot start\n");
        return 1;
    }
    printf("commands,lock_ns,owner_ns,ratio   (medians of %d alternating rounds)\n", ROUNDS);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        double lock[ROUNDS], owner[ROUNDS];
        for (int r = 0; r < ROUNDS; r++) {
            lock[r] = by_lock(&o, sizes[s]);
            owner[r] = by_owner(&o, sizes[s]);
        }
        qsort(lock, ROUNDS, sizeof *lock, compare);
        qsort(owner, ROUNDS, sizeof *owner, compare);
        printf("%d,%.0f,%.0f,%.2f\n", sizes[s], lock[ROUNDS / 2], owner[ROUNDS / 2],
               owner[ROUNDS / 2] / lock[ROUNDS / 2]);
    }
    pthread_mutex_lock(&o.lock);
    o.stop = true;
    pthread_cond_signal(&o.wake);
    pthread_mutex_unlock(&o.lock);
    pthread_join(thread, NULL);
    return 0;
}
