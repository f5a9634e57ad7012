#include "server/slowlog.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "server/client.h"
#include "server/config.h"

/* --- the slow log --- */

struct node {
    struct node *next; /* older */
    struct slowlog_entry entry;
};

struct slowlog {
    struct config *config;
    pthread_mutex_t lock;
    struct node *newest;
    int64_t n;
    uint64_t next_id;
};

struct slowlog *slowlog_new(struct config *config)
{
    struct slowlog *s = mem_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->config = config;
    pthread_mutex_init(&s->lock, NULL);
    return s;
}

static void free_node(struct node *node)
{
    for (int i = 0; i < node->entry.argc; i++)
        mem_free(node->entry.argv[i]);
    mem_free(node);
}

/* Drops all but the newest `keep`. The caller holds the lock. */
static void trim(struct slowlog *s, int64_t keep)
{
    struct node **at = &s->newest;
    for (int64_t i = 0; i < keep && *at; i++)
        at = &(*at)->next;
    struct node *node = *at;
    *at = NULL;
    while (node) {
        struct node *next = node->next;
        free_node(node);
        s->n--;
        node = next;
    }
}

void slowlog_free(struct slowlog *s)
{
    if (!s)
        return;
    trim(s, 0);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

/* The first argument that must not be kept, argc where there is none. */
static int first_secret(const struct client *c)
{
    if (slice_is(c->argv[0], "auth"))
        return 1;
    if (slice_is(c->argv[0], "hello"))
        return 2;
    if (c->argc > 2 && slice_is(c->argv[0], "config") && slice_is(c->argv[1], "set"))
        for (int i = 2; i + 1 < c->argc; i += 2)
            if (slice_is(c->argv[i], "requirepass"))
                return i + 1;
    return c->argc;
}

static bool keep_arg(struct slowlog_entry *e, const char *p, size_t n, const char *suffix)
{
    size_t extra = strlen(suffix);
    char *copy = mem_alloc(n + extra + 1);
    if (!copy)
        return false;
    memcpy(copy, p, n);
    memcpy(copy + n, suffix, extra + 1);
    e->argv_bytes[e->argc] = n + extra;
    e->argv[e->argc++] = copy;
    return true;
}

static bool keep_args(struct slowlog_entry *e, const struct client *c)
{
    int secret = first_secret(c);
    char note[64];
    for (int i = 0; i < c->argc; i++) {
        struct slice a = c->argv[i];
        bool kept;
        if (i == SLOWLOG_ARGS_MAX - 1 && c->argc > SLOWLOG_ARGS_MAX) {
            int n = snprintf(note, sizeof note, "... (%d more arguments)", c->argc - i);
            return keep_arg(e, note, (size_t)n, "");
        }
        if (i >= secret) {
            kept = keep_arg(e, "(redacted)", 10, "");
        } else if (a.n > SLOWLOG_ARG_BYTES_MAX) {
            snprintf(note, sizeof note, "... (%zu more bytes)", a.n - SLOWLOG_ARG_BYTES_MAX);
            kept = keep_arg(e, a.p, SLOWLOG_ARG_BYTES_MAX, note);
        } else {
            kept = keep_arg(e, a.p, a.n, "");
        }
        if (!kept)
            return false;
    }
    return true;
}

static bool keep_note(struct slowlog_entry *e, const struct client *c)
{
    char text[CLIENT_NOTE_BYTES + 3];
    if (c->note[0] == '\0')
        return true;
    int n = snprintf(text, sizeof text, "[%s]", c->note);
    return keep_arg(e, text, (size_t)n, "");
}

void slowlog_note(struct slowlog *s, const struct client *c, int64_t us)
{
    int64_t from =
        atomic_load_explicit(&s->config->slowlog_slower_than_us, memory_order_relaxed);
    if (from < 0 || us < from || c->argc < 1)
        return;
    struct node *node = mem_calloc(1, sizeof *node);
    if (!node)
        return;
    struct slowlog_entry *e = &node->entry;
    e->unix_s = clock_wall_ms() / 1000;
    e->us = us;
    client_address(c, e->address, sizeof e->address);
    snprintf(e->name, sizeof e->name, "%s", client_name(c));
    if (!keep_args(e, c) || !keep_note(e, c)) {
        free_node(node);
        return;
    }
    pthread_mutex_lock(&s->lock);
    e->id = s->next_id++;
    node->next = s->newest;
    s->newest = node;
    s->n++;
    trim(s, atomic_load(&s->config->slowlog_max_len));
    pthread_mutex_unlock(&s->lock);
}

int64_t slowlog_each(struct slowlog *s, int64_t n, void (*begin)(void *arg, int64_t n),
                     void (*fn)(void *arg, const struct slowlog_entry *e), void *arg)
{
    pthread_mutex_lock(&s->lock);
    if (n < 0 || n > s->n)
        n = s->n;
    if (begin)
        begin(arg, n);
    struct node *node = s->newest;
    for (int64_t i = 0; i < n; i++, node = node->next)
        fn(arg, &node->entry);
    pthread_mutex_unlock(&s->lock);
    return n;
}

int64_t slowlog_len(struct slowlog *s)
{
    pthread_mutex_lock(&s->lock);
    int64_t n = s->n;
    pthread_mutex_unlock(&s->lock);
    return n;
}

void slowlog_reset(struct slowlog *s)
{
    pthread_mutex_lock(&s->lock);
    trim(s, 0);
    pthread_mutex_unlock(&s->lock);
}

/* --- totals
 * ------------------------------------------------------------------------------------ A row's
 * address is its name in an open table that only grows: a slot is claimed by one
 * compare-and-swap and belongs to that row for ever. Each slot has a cache line of its own, so
 * that two threads that run different commands do not disturb each other. */

enum { COMMAND_SLOTS = 1024, ERROR_SLOTS = 64, ERROR_CODE_MAX = 24 };

struct command_slot {
    _Alignas(64) _Atomic(const struct command *) command;
    _Atomic uint64_t calls, us, failed;
};
static struct command_slot command_slots[COMMAND_SLOTS];

void command_stats_note(const struct command *c, int64_t us, bool error)
{
    uint64_t at = hash_mix((uint64_t)(uintptr_t)c);
    for (int i = 0; i < COMMAND_SLOTS; i++) {
        struct command_slot *s = &command_slots[(at + (uint64_t)i) % COMMAND_SLOTS];
        const struct command *has = atomic_load_explicit(&s->command, memory_order_acquire);
        if (!has && atomic_compare_exchange_strong(&s->command, &has, c))
            has = c;
        if (has != c)
            continue;
        atomic_fetch_add_explicit(&s->calls, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->us, us > 0 ? (uint64_t)us : 0, memory_order_relaxed);
        if (error)
            atomic_fetch_add_explicit(&s->failed, 1, memory_order_relaxed);
        return;
    }
}

void command_stats_each(void (*fn)(void *arg, const struct command *c, uint64_t calls,
                                   uint64_t us, uint64_t failed),
                        void *arg)
{
    for (int i = 0; i < COMMAND_SLOTS; i++) {
        struct command_slot *s = &command_slots[i];
        const struct command *c = atomic_load(&s->command);
        uint64_t calls = atomic_load(&s->calls);
        if (c && calls > 0)
            fn(arg, c, calls, atomic_load(&s->us), atomic_load(&s->failed));
    }
}

struct error_slot {
    char code[ERROR_CODE_MAX];
    uint64_t count;
};
static pthread_mutex_t error_lock = PTHREAD_MUTEX_INITIALIZER; /* errors are not the hot path */
static struct error_slot error_slots[ERROR_SLOTS];
static int n_error_slots;

void error_stats_note(struct slice code)
{
    pthread_mutex_lock(&error_lock);
    if (code.n == 0 || code.n >= ERROR_CODE_MAX)
        code = slice_of("OTHER");
    int i = 0;
    while (i < n_error_slots && !slice_equal(slice_of(error_slots[i].code), code))
        i++;
    if (i >= ERROR_SLOTS - 1) { /* the last slot is for all that came late */
        code = slice_of("OTHER");
        i = ERROR_SLOTS - 1;
    }
    if (i >= n_error_slots) {
        memset(&error_slots[i], 0, sizeof error_slots[i]);
        memcpy(error_slots[i].code, code.p, code.n);
        n_error_slots = i + 1;
    }
    error_slots[i].count++;
    pthread_mutex_unlock(&error_lock);
}

void error_stats_each(void (*fn)(void *arg, const char *code, uint64_t count), void *arg)
{
    pthread_mutex_lock(&error_lock);
    for (int i = 0; i < n_error_slots; i++)
        fn(arg, error_slots[i].code, error_slots[i].count);
    pthread_mutex_unlock(&error_lock);
}

void command_stats_reset(void)
{
    for (int i = 0; i < COMMAND_SLOTS; i++) {
        atomic_store(&command_slots[i].calls, 0);
        atomic_store(&command_slots[i].us, 0);
        atomic_store(&command_slots[i].failed, 0);
    }
    pthread_mutex_lock(&error_lock);
    n_error_slots = 0;
    pthread_mutex_unlock(&error_lock);
}
