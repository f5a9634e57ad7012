#pragma once
/* The normaliser of SentencePiece models: a compiled map from short strings to what they become
 * (`precompiled_charsmap`), NFKC and a few more as a rule.
 *
 *   u32 bytes of the trie | the trie, u32 units, little-endian | replacements, each ended by
 * NUL
 *
 * The trie is a double array walked by XOR (darts-clone): a unit is either a node (label in its
 * low byte, bit 8: a key ends here, offset to its children above bit 9) or, with bit 31, a
 * value: the place of the replacement.
 *
 * The map comes from an untrusted file. All that a walk can reach is checked at new; what no
 * walk reaches is never read. Owns: a copy. Thread: immutable after new. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct charsmap;

/* Longest replacement that is taken, in bytes; NFKC's longest has 33. */
enum { CHARSMAP_MAX_BYTES = 256 };

/* Errors: KITH_EFORMAT, KITH_ELIMIT, KITH_ENOMEM. */
int charsmap_new(struct charsmap **out, const void *bytes, size_t n, struct err *e);
void charsmap_free(struct charsmap *m);

/* What the shortest key becomes that s begins with, or NULL where there is none. May be empty
 * (the text is dropped). Not NUL-terminated. */
const char *charsmap_find(const struct charsmap *m, const char *s, size_t n, size_t *n_out);
