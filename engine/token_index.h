#pragma once
/* From a token's text to its id: a hash table over texts that lie elsewhere.
 *
 * Thread: immutable once filled. Owns: the table, not the texts, which must outlive it. Errors:
 * KITH_ENOMEM. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { TOKEN_NONE = -1 };

struct token_index {
    const char *text;
    const size_t *at; /* token i is text[at[i]] .. text[at[i + 1] - 1] */
    uint32_t *slots;  /* id + 1, 0: empty */
    uint32_t mask;    /* slots - 1 */
};

/* Room for n tokens. */
int token_index_init(struct token_index *t, const char *text, const size_t *at, uint32_t n,
                     struct err *e);
void token_index_deinit(struct token_index *t);
/* The first of two equal texts keeps the place; an empty one is not added. */
void token_index_add(struct token_index *t, uint32_t id);
int32_t token_index_find(const struct token_index *t, const char *s, size_t n);
