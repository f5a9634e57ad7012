#include "server/search_memo.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/hash.h"
#include "base/mem.h"

/* A share is measured again when this part of the set has changed since. */
static const double SHARE_DRIFT = 0.1;

struct memo_entry {
    char *text; /* NULL: the entry is free */
    size_t n_text;
    uint64_t hash;
    uint64_t used; /* the memo's clock at its last use */
    double share;
    uint64_t share_changes;
    uint32_t share_count;
    double regret_us;
    uint64_t regret_changes;
    struct match_bits *bits;
    uint64_t bits_changes;
};

struct search_memo {
    pthread_mutex_t lock;
    uint64_t clock;
    struct memo_entry entries[MEMO_FILTERS];
};

struct match_bits *match_bits_new(uint32_t n_slots)
{
    size_t n_words = ((size_t)n_slots + 63) / 64;
    struct match_bits *b = mem_calloc(1, sizeof *b + n_words * sizeof *b->words);
    if (b) {
        b->refs = 1;
        b->n_slots = n_slots;
    }
    return b;
}

static struct match_bits *bits_ref(struct match_bits *b)
{
    if (b)
        atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void match_bits_unref(struct match_bits *b)
{
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1)
        mem_free(b);
}

static void entry_clear(struct memo_entry *n)
{
    mem_free(n->text);
    match_bits_unref(n->bits);
    *n = (struct memo_entry){0};
}

struct search_memo *search_memo_new(void)
{
    struct search_memo *m = mem_calloc(1, sizeof *m);
    if (m)
        pthread_mutex_init(&m->lock, NULL);
    return m;
}

void search_memo_free(struct search_memo *m)
{
    if (!m)
        return;
    for (int i = 0; i < MEMO_FILTERS; i++)
        entry_clear(&m->entries[i]);
    pthread_mutex_destroy(&m->lock);
    mem_free(m);
}

size_t search_memo_bytes(struct search_memo *m)
{
    size_t n = sizeof *m;
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < MEMO_FILTERS; i++) {
        struct memo_entry *x = &m->entries[i];
        n += x->n_text;
        if (x->bits)
            n += sizeof *x->bits + ((size_t)x->bits->n_slots + 63) / 64 * sizeof(uint64_t);
    }
    pthread_mutex_unlock(&m->lock);
    return n;
}

static struct memo_entry *find(struct search_memo *m, struct slice filter, uint64_t hash)
{
    for (int i = 0; i < MEMO_FILTERS; i++) {
        struct memo_entry *x = &m->entries[i];
        if (x->text && x->hash == hash &&
            slice_equal((struct slice){x->text, x->n_text}, filter)) {
            x->used = ++m->clock;
            return x;
        }
    }
    return NULL;
}

/* The entry of the filter, made in the place of the one unused longest where there is none.
 * NULL when the text is too long to be kept, or memory is out: then nothing is remembered. */
static struct memo_entry *find_or_make(struct search_memo *m, struct slice filter)
{
    uint64_t hash = hash64(filter.p, filter.n);
    struct memo_entry *x = find(m, filter, hash);
    if (x || filter.n > MEMO_TEXT_BYTES)
        return x;
    char *text = mem_dup(filter.p, filter.n ? filter.n : 1);
    if (!text)
        return NULL;
    x = &m->entries[0];
    for (int i = 1; i < MEMO_FILTERS; i++)
        if (m->entries[i].used < x->used)
            x = &m->entries[i];
    entry_clear(x);
    x->text = text;
    x->n_text = filter.n;
    x->hash = hash;
    x->used = ++m->clock;
    x->share = -1;
    return x;
}

static uint64_t apart(uint64_t a, uint64_t b)
{
    return a < b ? b - a : a - b;
}

void search_memo_find(struct search_memo *m, struct slice filter, uint64_t changes,
                      uint32_t count, struct memo_facts *out)
{
    *out = (struct memo_facts){.share = -1};
    pthread_mutex_lock(&m->lock);
    struct memo_entry *x = find(m, filter, hash64(filter.p, filter.n));
    if (x) {
        uint64_t drift = apart(changes, x->share_changes);
        if ((double)drift <=
            SHARE_DRIFT * (double)(count < x->share_count ? count : x->share_count))
            out->share = x->share;
        if (x->regret_changes == changes)
            out->regret_us = x->regret_us;
        if (x->bits && x->bits_changes == changes) {
            out->bits = bits_ref(x->bits);
        } else {
            match_bits_unref(x->bits);
            x->bits = NULL;
        }
    }
    pthread_mutex_unlock(&m->lock);
}

void search_memo_note_share(struct search_memo *m, struct slice filter, uint64_t changes,
                            uint32_t count, double share)
{
    pthread_mutex_lock(&m->lock);
    struct memo_entry *x = find_or_make(m, filter);
    if (x) {
        x->share = share;
        x->share_changes = changes;
        x->share_count = count;
    }
    pthread_mutex_unlock(&m->lock);
}

void search_memo_note_regret(struct search_memo *m, struct slice filter, uint64_t changes,
                             double us)
{
    pthread_mutex_lock(&m->lock);
    struct memo_entry *x = find_or_make(m, filter);
    if (x) {
        if (x->regret_changes != changes) {
            x->regret_changes = changes;
            x->regret_us = 0;
        }
        x->regret_us += us;
    }
    pthread_mutex_unlock(&m->lock);
}

void search_memo_note_bits(struct search_memo *m, struct slice filter, uint64_t changes,
                           struct match_bits *bits)
{
    pthread_mutex_lock(&m->lock);
    struct memo_entry *x = find_or_make(m, filter);
    if (x) {
        match_bits_unref(x->bits);
        x->bits = bits_ref(bits);
        x->bits_changes = changes;
    }
    pthread_mutex_unlock(&m->lock);
}
