#include "engine/added_tokens.h"

#include <string.h>

#include "base/utf8.h"
#include "engine/vocabulary.h"

enum { ROOT, N_ROOTS };

/* The first character of s as it is matched: its bytes, or, folded, a space. */
static inline size_t step(bool fold, const char *s, size_t n, unsigned char *byte)
{
    bool space = fold && n >= 3 && memcmp(s, "\xe2\x96\x81", 3) == 0;
    *byte = space ? ' ' : (unsigned char)*s;
    return space ? 3 : 1;
}

static int add(struct added_tokens *a, const char *s, size_t n, int32_t id, struct err *e)
{
    char text[ADDED_TOKEN_MAX_BYTES];
    size_t length = 0;
    if (n == 0 || utf8_valid_prefix(s, n) != n)
        return 0;
    if (n > sizeof text)
        return err_set(e, KITH_ELIMIT,
                       "token %d is user-defined and has %zu bytes; at most %d are taken", id,
                       n, ADDED_TOKEN_MAX_BYTES);
    for (size_t i = 0; i < n;) {
        unsigned char byte;
        i += step(a->fold, s + i, n - i, &byte);
        text[length++] = (char)byte;
    }
    a->any = a->begins[(unsigned char)text[0]] = true;
    if (a->fold && text[0] == ' ')
        a->begins[0xe2] = true;
    return piece_trie_add(&a->trie, ROOT, text, length, id, e);
}

int added_tokens_init(struct added_tokens *a, const struct vocabulary *v, bool fold,
                      struct err *e)
{
    memset(a, 0, sizeof *a);
    a->fold = fold;
    int rc = piece_trie_init(&a->trie, N_ROOTS, e);
    for (uint32_t i = 0; i < v->n && !rc; i++) {
        size_t n;
        const char *s = vocabulary_token(v, (int32_t)i, &n);
        if (v->type[i] == TOKEN_USER_DEFINED)
            rc = add(a, s, n, (int32_t)i, e);
    }
    return rc;
}

void added_tokens_deinit(struct added_tokens *a)
{
    piece_trie_deinit(&a->trie);
    memset(a, 0, sizeof *a);
}

/* The longest token that s begins with. */
static bool match_at(const struct added_tokens *a, const char *s, size_t n,
                     struct added_match *m)
{
    bool found = false;
    uint32_t node = ROOT;
    for (size_t i = 0; i < n;) {
        unsigned char byte;
        i += step(a->fold, s + i, n - i, &byte);
        node = piece_trie_child(&a->trie, node, byte);
        if (!node)
            break;
        if (a->trie.node_id[node] == PIECE_NONE)
            continue;
        found = true;
        m->id = a->trie.node_id[node];
        m->length = i;
    }
    return found;
}

bool added_tokens_find(const struct added_tokens *a, const char *s, size_t n,
                       struct added_match *m)
{
    for (size_t i = 0; a->any && i < n; i++)
        if (a->begins[(unsigned char)s[i]] && match_at(a, s + i, n - i, m)) {
            m->at = i;
            return true;
        }
    return false;
}
