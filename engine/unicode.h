#pragma once
/* What the tokenizers ask of Unicode (the only door to utf8proc).
 *
 * Models were trained behind a tokenizer whose character categories are those of Unicode 8.0,
 * and still are. A character that came later is an ordinary letter to it, whatever it is today.
 * So must it be here: another class would give other ids. Decomposition and lower case are
 * those of the current standard on both sides. Thread: any. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum unicode_class {
    UNICODE_LETTER, /* part of a word: letters, digits, symbols, all that is nothing below */
    UNICODE_SPACE,
    UNICODE_DROPPED, /* controls, formats, private use, U+FFFD: as if they were not there */
    UNICODE_MARK,    /* category Mn: dropped after decomposition */
    UNICODE_PUNCTUATION,
    UNICODE_CJK /* ideographs: each is a word of its own */
};

enum { UNICODE_DECOMPOSED_MAX = 8 };

enum unicode_class unicode_class_of(uint32_t code_point);
/* The canonical decomposition, fully expanded; returns how many (1 for most). */
unsigned unicode_decompose(uint32_t code_point, uint32_t out[UNICODE_DECOMPOSED_MAX]);
uint32_t unicode_lower(uint32_t code_point);
uint8_t unicode_combining_class(uint32_t code_point);
/* White_Space of the current standard, unlike UNICODE_SPACE. */
bool unicode_is_white_space(uint32_t code_point);
/* The length of the extended grapheme cluster (Unicode Standard Annex 29) that valid UTF-8 of
 * n > 0 bytes begins with. */
size_t unicode_grapheme(const char *s, size_t n);
