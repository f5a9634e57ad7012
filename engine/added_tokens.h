#pragma once
/* The user-defined tokens of a vocabulary: a text that has one's letters becomes that token,
 * before anything else is done to it; the leftmost first, of several that begin at one place
 * the longest. Control tokens are never among them.
 *
 * Thread: immutable after init. Errors: KITH_ELIMIT, KITH_ENOMEM. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/piece_trie.h"

struct vocabulary;

enum { ADDED_TOKEN_MAX_BYTES = 512 }; /* a longer one is KITH_ELIMIT */

struct added_tokens {
    struct piece_trie trie;
    bool fold;
    bool any, begins[256]; /* by the first byte */
};

/* What was matched: the bytes before it are plain. */
struct added_match {
    size_t at, length;
    int32_t id;
};

/* fold: a space and U+2581 are the same, in tokens and in texts, as in SentencePiece. */
int added_tokens_init(struct added_tokens *a, const struct vocabulary *v, bool fold,
                      struct err *e);
void added_tokens_deinit(struct added_tokens *a);
/* False where there is none in s. */
bool added_tokens_find(const struct added_tokens *a, const char *s, size_t n,
                       struct added_match *m);
