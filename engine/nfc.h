#pragma once
/* Canonical composition (NFC), which some tokenizers put before all else.
 *
 *   Unicode Standard Annex 15, sections 1.3 and 9.
 *
 * Most text is composed already; nfc_prefix says how far that is plain to see, so that no copy
 * is made of it. Time: linear, whatever marks follow each other. Thread: any. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

/* How many bytes of valid UTF-8 are their own normal form whatever follows them; n: all. */
size_t nfc_prefix(const char *s, size_t n);
/* Appends the normal form of valid UTF-8. When memory runs out, out->failed is set. */
void nfc_normalise(struct buf *out, const char *s, size_t n);
/* A character that normalises to itself and that nothing before it can change: a text may be
 * cut before it. For the test. */
bool nfc_is_inert(uint32_t code_point);
