#pragma once
/* What the tokenizers ask of Unicode (the only door to utf8proc).
 *
 * For BERT, unicode_class_of. Models were trained behind a tokenizer whose character categories
 * are those of Unicode 8.0, and still are. A character that came later is an ordinary letter to
 * it, whatever it is today. So must it be here: another class would give other ids.
 * Decomposition and lower case are those of the current standard on both sides.
 *
 * For byte-level BPE, unicode_kind: the categories of the regular expressions that cut a text
 * into words (\p{L}, \p{N}, \s, ...), by Unicode 16.0. Thread: any. */

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

/* What a character is to a regular expression: exactly one of these. */
enum unicode_kind {
    UNICODE_UPPER = 1 << 0,     /* Lu, Lt */
    UNICODE_LOWER = 1 << 1,     /* Ll */
    UNICODE_CASELESS = 1 << 2,  /* Lm, Lo */
    UNICODE_COMBINING = 1 << 3, /* M */
    UNICODE_NUMBER = 1 << 4,    /* N */
    UNICODE_PUNCT = 1 << 5,     /* P */
    UNICODE_SYMBOL = 1 << 6,    /* S */
    UNICODE_NEWLINE = 1 << 7,   /* \r and \n */
    UNICODE_BLANK = 1 << 8,     /* the rest of \s: White_Space */
    UNICODE_REST = 1 << 9       /* controls, formats, private use, what is not assigned */
};

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

unsigned unicode_kind_of(uint32_t code_point); /* an enum unicode_kind */
/* The same for the first 128, without a call. */
extern const uint16_t unicode_ascii_kinds[128];

/* Composes, in place, n decomposed code points in canonical order; returns how many are left
 * (Unicode Standard Annex 15). */
size_t unicode_compose(uint32_t *code_points, size_t n);
