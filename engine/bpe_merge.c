/* A word of a few letters, nearly all there are, is merged by looking at all its pairs each
 * time: that is a scan of one cache line, and two pairs to look up a merge.
 *
 * Longer ones (a line of "====", a page without a space) keep their pairs' ranks in a
 * tournament, a tree in an array whose root has the lowest:
 *
 *   tree   [1] lowest of all, [2] [3] of each half, ..., [size + i] of the pair at place i
 *
 * The lowest is found by going down, left where both sides are equal, so the leftmost of equals
 * comes first as it must; a merge changes three places and their ways up. Tokens are a list
 * linked by places. Rejected: a heap of pairs, which is as quick, but holds pairs that are long
 * gone and so takes three times the memory, 16 bytes for each of three pairs a byte. */

#include "engine/bpe_merge.h"

#include <string.h>

#include "base/mem.h"

enum { FEW = 32, FIRST_SLOTS = 4096 };

static inline uint32_t slot_of(int32_t left, int32_t right, uint32_t mask)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (uint32_t)((key * 0x9e3779b97f4a7c15u) >> 32) & mask;
}

static inline const struct bpe_pair *find(const struct bpe_table *t, int32_t left,
                                          int32_t right)
{
    for (uint32_t s = slot_of(left, right, t->mask);; s = (s + 1) & t->mask) {
        const struct bpe_pair *p = &t->slots[s];
        if ((p->left == left && p->right == right) || p->rank == BPE_NO_RANK)
            return p;
    }
}

/* --- the table --- */

static int resize(struct bpe_table *t, uint32_t n_slots)
{
    struct bpe_pair *slots = mem_alloc_n(n_slots, sizeof *slots);
    if (!slots)
        return KITH_ENOMEM;
    for (uint32_t s = 0; s < n_slots; s++)
        slots[s] = (struct bpe_pair){-1, -1, BPE_NO_RANK, -1};
    for (uint32_t s = 0; t->slots && s <= t->mask; s++) {
        const struct bpe_pair *p = &t->slots[s];
        if (p->rank == BPE_NO_RANK)
            continue;
        uint32_t at = slot_of(p->left, p->right, n_slots - 1);
        while (slots[at].rank != BPE_NO_RANK)
            at = (at + 1) & (n_slots - 1);
        slots[at] = *p;
    }
    mem_free(t->slots);
    t->slots = slots;
    t->mask = n_slots - 1;
    return 0;
}

int bpe_table_init(struct bpe_table *t, struct err *e)
{
    memset(t, 0, sizeof *t);
    return resize(t, FIRST_SLOTS) ? err_set(e, KITH_ENOMEM, "out of memory for the merges") : 0;
}

void bpe_table_deinit(struct bpe_table *t)
{
    mem_free(t->slots);
    memset(t, 0, sizeof *t);
}

int bpe_table_add(struct bpe_table *t, int32_t left, int32_t right, uint32_t rank, int32_t to,
                  struct err *e)
{
    if (t->n >= UINT32_MAX / 8)
        return err_set(e, KITH_ELIMIT, "the tokenizer has too many merges");
    /* Half of the slots stay free: most lookups are of pairs that are not there. */
    if (t->n >= t->mask / 2 && resize(t, (t->mask + 1) * 2))
        return err_set(e, KITH_ENOMEM, "out of memory for %u merges", t->n);
    struct bpe_pair *p = (struct bpe_pair *)find(t, left, right);
    if (p->rank != BPE_NO_RANK)
        return 0;
    *p = (struct bpe_pair){left, right, rank, to};
    t->n++;
    return 0;
}

void bpe_scratch_deinit(struct bpe_scratch *s)
{
    mem_free(s->block);
    memset(s, 0, sizeof *s);
}

/* --- few tokens --- */

static size_t merge_few(const struct bpe_table *t, int32_t *ids, size_t n)
{
    uint32_t rank[FEW];
    int32_t to[FEW];
    for (size_t i = 0; i + 1 < n; i++) {
        const struct bpe_pair *p = find(t, ids[i], ids[i + 1]);
        rank[i] = p->rank;
        to[i] = p->to;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            best = rank[i] < rank[best] ? i : best;
        if (rank[best] == BPE_NO_RANK)
            break;
        ids[best] = to[best];
        for (size_t i = best + 1; i + 1 < n; i++) {
            ids[i] = ids[i + 1];
            rank[i] = rank[i + 1];
            to[i] = to[i + 1];
        }
        n--;
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const struct bpe_pair *p = find(t, ids[i], ids[i + 1]);
            rank[i] = p->rank;
            to[i] = p->to;
        }
    }
    return n;
}

/* --- many tokens --- */

/* The list and the tournament over n places. A place that is merged away has no rank. */
struct many {
    const struct bpe_table *table;
    int32_t *ids;
    uint32_t *next, *before, *tree;
    uint32_t n, size; /* size: a power of two, at least n */
};

static void set_rank(struct many *m, uint32_t place, uint32_t rank)
{
    uint32_t i = m->size + place;
    m->tree[i] = rank;
    for (i /= 2; i; i /= 2) {
        uint32_t l = m->tree[2 * i], r = m->tree[2 * i + 1], lowest = l < r ? l : r;
        if (m->tree[i] == lowest)
            break;
        m->tree[i] = lowest;
    }
}

static uint32_t rank_at(const struct many *m, uint32_t place)
{
    uint32_t right = m->next[place];
    return right < m->n ? find(m->table, m->ids[place], m->ids[right])->rank : BPE_NO_RANK;
}

static uint32_t lowest_place(const struct many *m)
{
    uint32_t i = 1;
    while (i < m->size)
        i = m->tree[2 * i] == m->tree[i] ? 2 * i : 2 * i + 1;
    return i - m->size;
}

static void prepare(struct many *m)
{
    for (uint32_t i = 0; i < m->n; i++) {
        m->next[i] = i + 1;
        m->before[i] = i - 1; /* of the first: past all places */
    }
    for (uint32_t i = 0; i < m->size; i++)
        m->tree[m->size + i] = i < m->n ? rank_at(m, i) : BPE_NO_RANK;
    for (uint32_t i = m->size - 1; i; i--) {
        uint32_t l = m->tree[2 * i], r = m->tree[2 * i + 1];
        m->tree[i] = l < r ? l : r;
    }
}

static size_t merge_many(struct many *m)
{
    prepare(m);
    while (m->tree[1] != BPE_NO_RANK) {
        uint32_t at = lowest_place(m), gone = m->next[at], after = m->next[gone];
        m->ids[at] = find(m->table, m->ids[at], m->ids[gone])->to;
        m->next[at] = after;
        if (after < m->n)
            m->before[after] = at;
        set_rank(m, gone, BPE_NO_RANK);
        set_rank(m, at, rank_at(m, at));
        if (m->before[at] < m->n)
            set_rank(m, m->before[at], rank_at(m, m->before[at]));
    }
    size_t n = 0;
    for (uint32_t i = 0; i < m->n; i = m->next[i])
        m->ids[n++] = m->ids[i];
    return n;
}

int bpe_merge(const struct bpe_table *t, struct bpe_scratch *s, int32_t *ids, size_t *n,
              struct err *e)
{
    if (*n <= FEW) {
        *n = merge_few(t, ids, *n);
        return 0;
    }
    if (*n > INT32_MAX / 4)
        return err_set(e, KITH_ELIMIT, "a word of %zu characters is too long", *n);
    struct many m = {.table = t, .ids = ids, .n = (uint32_t)*n, .size = FEW};
    while (m.size < m.n)
        m.size *= 2;
    size_t need = 2 * ((size_t)m.n + m.size);
    if (need > s->capacity) {
        mem_free(s->block);
        s->block = mem_alloc_n(need, sizeof *s->block);
        s->capacity = s->block ? need : 0;
        if (!s->block)
            return err_set(e, KITH_ENOMEM, "out of memory for a word of %zu characters", *n);
    }
    m.next = s->block;
    m.before = m.next + m.n;
    m.tree = m.before + m.n;
    *n = merge_many(&m);
    return 0;
}
