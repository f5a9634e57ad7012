#pragma once
/* Cutting texts into chunks that a model can take, for kith-import.
 *
 * A server counts tokens only by embedding, so the size of a chunk is an estimate that errs on
 * the high side for the languages a model was made for (text_tokens). Who needs certainty asks
 * the server and cuts again what it refuses.
 *
 * A chunk is a range of the text, trimmed of white space. Every character of the text but white
 * space at borders is in some chunk, in order, and no chunk has more than the estimated tokens
 * that were asked for; what is packed:
 *
 *   TOKENS     words: runs without white space; a CJK character is a word of its own
 *   SENTENCES  sentences: up to . ! or ? and closing quotes or brackets before white space, up
 *              to one of the CJK marks, or up to a blank line; one longer than a chunk is cut
 *              between words
 *   HEADINGS   the sections of a Markdown text (lines of one to six # and a blank, outside of
 *              fenced code), each cut by sentences, with the path of its headings
 *   NONE       the whole text is one chunk
 *
 * Only a word that is longer than a chunk is cut, between characters. Thread: no state. */

#include <stddef.h>

#include "base/bytes.h"
#include "base/error.h"

enum chunk_mode { CHUNK_TOKENS, CHUNK_SENTENCES, CHUNK_HEADINGS, CHUNK_NONE };

struct chunk_options {
    enum chunk_mode mode;
    size_t n_tokens; /* the most a chunk may have, estimated; 1 or more */
    /* The most tokens of the end of a chunk that are said again at the beginning of the next,
     * in whole words or sentences; at most half of n_tokens. */
    size_t overlap;
};

struct chunk {
    struct slice text;
    struct slice heading; /* "Part > Chapter"; empty without HEADINGS or above the first */
};

/* The estimated tokens: one for each four letters of a word or part of them, for two digits,
 * and for every other character that is no white space. Valid UTF-8. */
size_t text_tokens(struct slice text);

/* Calls each for every chunk of the valid UTF-8, front to back; what is not 0 ends it and is
 * returned. KITH_ENOMEM for the headings. */
int text_chunks(struct slice text, const struct chunk_options *o,
                int (*each)(void *arg, const struct chunk *c), void *arg);
