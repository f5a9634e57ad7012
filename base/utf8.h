#pragma once
/* UTF-8: validation and decoding (RFC 3629: no surrogates, no overlong forms, at most
 * U+10FFFF). */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The offset of the first byte that breaks the rules, or n when all is well. */
size_t utf8_valid_prefix(const char *s, size_t n);
/* Decodes one code point of valid UTF-8 at s (n > 0 bytes left); returns its length in bytes.
 */
size_t utf8_decode(const char *s, size_t n, uint32_t *code_point);
/* Writes 1 to 4 bytes; returns how many. */
size_t utf8_encode(uint32_t code_point, char out[4]);
