#include "engine/token_index.h"

#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

int token_index_init(struct token_index *t, const char *text, const size_t *at, uint32_t n,
                     struct err *e)
{
    uint32_t slots = 64;
    while (slots / 2 < n)
        slots *= 2;
    *t = (struct token_index){text, at, mem_calloc(slots, sizeof *t->slots), slots - 1};
    return t->slots ? 0 : err_set(e, KITH_ENOMEM, "out of memory for %u tokens", n);
}

void token_index_deinit(struct token_index *t)
{
    mem_free(t->slots);
    memset(t, 0, sizeof *t);
}

/* Where the text is, or the empty slot where it would be. */
static uint32_t slot_of(const struct token_index *t, const char *s, size_t n)
{
    for (uint32_t i = (uint32_t)hash64(s, n) & t->mask;; i = (i + 1) & t->mask) {
        if (!t->slots[i])
            return i;
        const size_t *at = t->at + t->slots[i] - 1;
        if (at[1] - at[0] == n && memcmp(t->text + at[0], s, n) == 0)
            return i;
    }
}

void token_index_add(struct token_index *t, uint32_t id)
{
    size_t n = t->at[id + 1] - t->at[id];
    if (n == 0)
        return;
    uint32_t slot = slot_of(t, t->text + t->at[id], n);
    if (!t->slots[slot])
        t->slots[slot] = id + 1;
}

int32_t token_index_find(const struct token_index *t, const char *s, size_t n)
{
    if (n == 0)
        return TOKEN_NONE;
    uint32_t slot = slot_of(t, s, n);
    return t->slots[slot] ? (int32_t)(t->slots[slot] - 1) : TOKEN_NONE;
}
