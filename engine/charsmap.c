/* Checking the trie: all nodes that any key could reach are visited once, from the root down. A
 * state of a walk is the index to which the next byte is XORed, so each state has at most 255
 * children; damaged offsets may lead two ways to one state or in a circle, which harms no
 * lookup, since a lookup ends with its text. So a mark for each unit is enough to end the
 * visit. */

#include "engine/charsmap.h"

#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/utf8.h"

struct charsmap {
    uint32_t *units;
    char *strings;
    uint32_t n_units, n_strings; /* the latter in bytes */
    uint32_t root;
};

static uint32_t offset_of(uint32_t unit)
{
    return (unit >> 10) << ((unit & 0x200u) >> 6);
}

static uint32_t label_of(uint32_t unit)
{
    return unit & 0x800000ffu; /* bit 31 makes a value no byte's label */
}

static bool ends_key(uint32_t unit)
{
    return unit >> 8 & 1;
}

static uint32_t value_of(uint32_t unit)
{
    return unit & 0x7fffffffu;
}

/* The unit behind byte c, or n_units where there is none. */
static uint32_t child(const struct charsmap *m, uint32_t state, uint32_t c)
{
    uint32_t at = state ^ c;
    return at < m->n_units && label_of(m->units[at]) == c ? at : m->n_units;
}

static int check_value(const struct charsmap *m, uint32_t state, struct err *e)
{
    uint32_t value = state < m->n_units ? value_of(m->units[state]) : m->n_strings;
    if (value >= m->n_strings)
        return err_set(e, KITH_EFORMAT,
                       "precompiled_charsmap: unit %u of %u names no replacement", state,
                       m->n_units);
    const char *s = m->strings + value;
    size_t n = strlen(s); /* the last byte is NUL */
    if (n > CHARSMAP_MAX_BYTES)
        return err_set(e, KITH_ELIMIT,
                       "precompiled_charsmap: a replacement of %zu bytes, %d are taken", n,
                       CHARSMAP_MAX_BYTES);
    if (utf8_valid_prefix(s, n) != n)
        return err_set(e, KITH_EFORMAT,
                       "precompiled_charsmap: the replacement at byte %u is not UTF-8", value);
    return 0;
}

static int check_trie(const struct charsmap *m, struct err *e)
{
    uint32_t *states = mem_alloc_n((size_t)m->n_units + 1, sizeof *states);
    bool *seen = mem_calloc(m->n_units, sizeof *seen);
    int rc = states && seen ? 0 : err_set(e, KITH_ENOMEM, "out of memory for the charsmap");
    size_t n = 0;
    if (!rc)
        states[n++] = m->root;
    while (n > 0 && !rc) {
        uint32_t state = states[--n];
        for (uint32_t c = 1; c < 256 && !rc; c++) {
            uint32_t at = child(m, state, c);
            if (at == m->n_units || seen[at])
                continue;
            seen[at] = true;
            uint32_t next = at ^ offset_of(m->units[at]);
            if (ends_key(m->units[at]))
                rc = check_value(m, next, e);
            states[n++] = next;
        }
    }
    mem_free(states);
    mem_free(seen);
    return rc;
}

static int load(struct charsmap *m, const unsigned char *bytes, size_t n, struct err *e)
{
    size_t trie = n >= 4 ? load_u32(bytes) : 0;
    if (trie < 4 || trie % 4 || trie >= n - 4 || n > UINT32_MAX / 4 || bytes[n - 1] != 0)
        return err_set(e, KITH_EFORMAT,
                       "precompiled_charsmap: %zu bytes with a trie of %zu; the trie is a "
                       "multiple of 4, and strings that end with NUL follow it",
                       n, trie);
    m->n_units = (uint32_t)(trie / 4);
    m->n_strings = (uint32_t)(n - 4 - trie);
    m->units = mem_alloc_n(m->n_units, sizeof *m->units);
    m->strings = mem_dup(bytes + 4 + trie, m->n_strings);
    if (!m->units || !m->strings)
        return err_set(e, KITH_ENOMEM, "out of memory for the charsmap");
    for (uint32_t i = 0; i < m->n_units; i++)
        m->units[i] = load_u32(bytes + 4 + 4 * (size_t)i);
    m->root = offset_of(m->units[0]);
    return check_trie(m, e);
}

int charsmap_new(struct charsmap **out, const void *bytes, size_t n, struct err *e)
{
    struct charsmap *m = mem_calloc(1, sizeof *m);
    if (!m)
        return err_set(e, KITH_ENOMEM, "out of memory for the charsmap");
    int rc = load(m, bytes, n, e);
    if (rc) {
        charsmap_free(m);
        return rc;
    }
    *out = m;
    return 0;
}

void charsmap_free(struct charsmap *m)
{
    if (!m)
        return;
    mem_free(m->units);
    mem_free(m->strings);
    mem_free(m);
}

const char *charsmap_find(const struct charsmap *m, const char *s, size_t n, size_t *n_out)
{
    uint32_t state = m->root;
    for (size_t i = 0; i < n && s[i]; i++) {
        uint32_t at = child(m, state, (unsigned char)s[i]);
        if (at == m->n_units)
            return NULL;
        state = at ^ offset_of(m->units[at]);
        if (ends_key(m->units[at])) {
            const char *to = m->strings + value_of(m->units[state]);
            *n_out = strlen(to);
            return to;
        }
    }
    return NULL;
}
