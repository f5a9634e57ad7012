#pragma once
/* The WordPiece tokenizer of BERT models: text to token ids, the same ids that Hugging Face's
 * BertTokenizerFast gives.
 *
 *   clean text, isolate CJK characters, NFD and drop marks of category Mn, lower-case
 *   split at white space, each punctuation character a word of its own
 *   per word the longest piece of the vocabulary first; a word that cannot be cut, or has more
 *   than 100 characters, is [UNK]
 *
 *   M. Schuster and K. Nakajima, Japanese and Korean Voice Search (2012), section 3;
 *   Unicode Standard Annex 15 (NFD).
 *
 * Text is always plain text: the characters "[CLS]" in it are a bracket, a word and a bracket,
 * never the token. Hugging Face matches special tokens inside the text; here a stored document
 * must not be able to write control tokens, so this one difference is wanted.
 *
 * [CLS] and [SEP] are not put around the ids: what a sequence looks like is the caller's.
 * Thread: immutable after new. Owns: nothing of the gguf; it may be closed after. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct gguf;
struct vocabulary;
struct wordpiece;

/* Reads tokenizer.ggml.*: word-initial tokens carry U+2581 before them, as llama.cpp's
 * converter writes them. That the model is `bert` is for engine/tokenizer.h to see.
 * normalizer.lowercase and .strip_accents default to true, as for the uncased models. */
int wordpiece_new(struct wordpiece **out, const struct gguf *g, struct err *e);
void wordpiece_free(struct wordpiece *w);

/* Writes the first max_ids ids and returns how many the whole text has in *n_ids (which may be
 * larger). Errors: KITH_EINVAL where the text is not UTF-8; the message has the byte offset. */
int wordpiece_encode(const struct wordpiece *w, const char *text, size_t n_bytes, int32_t *ids,
                     size_t max_ids, size_t *n_ids, struct err *e);

const struct vocabulary *wordpiece_vocabulary(const struct wordpiece *w);
int32_t wordpiece_cls(const struct wordpiece *w);
int32_t wordpiece_sep(const struct wordpiece *w);
int32_t wordpiece_unk(const struct wordpiece *w);
