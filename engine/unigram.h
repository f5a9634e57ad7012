#pragma once
/* The Unigram tokenizer of SentencePiece models (XLM-R, bge-m3, multilingual-e5; GGUF calls it
 * `t5`): text to token ids, the same ids that Hugging Face's `tokenizers` gives.
 *
 *   normalise by the model's charsmap, merge spaces, write a space as U+2581
 *   every U+2581 begins a word; per word the cut into pieces whose scores have the largest sum;
 *   a character that is no piece is unknown, scored min - 10; neighbouring ones are one token
 *
 *   T. Kudo, Subword Regularization (2018), section 3; T. Kudo and J. Richardson, SentencePiece
 *   (2018).
 *
 * Text is always plain text: "<s>" in it is three characters, never the token. Hugging Face
 * matches special tokens inside the text; here a stored document must not be able to write
 * control tokens, so this one difference is wanted.
 *
 * What stands before and after a text is for engine/tokenizer.h to say.
 *
 * Memory: none from the heap while the bytes between two cuts that every way of cutting shares
 * are fewer than 2,048, which no word of a language reaches; past it 17 bytes a byte of such a
 * stretch. Time: linear in the normalised text, times the longest piece at worst.
 * Thread: immutable after new. Owns: nothing of the gguf; it may be closed after. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct gguf;
struct vocabulary;
struct unigram;

enum { UNIGRAM_MAX_PIECE = 512 }; /* bytes; a longer piece is KITH_ELIMIT */

/* Reads tokenizer.ggml.*: tokens and scores are needed; precompiled_charsmap may be an array of
 * bytes or of strings of one character each, or missing (nothing is normalised).
 * add_space_prefix and remove_extra_whitespaces default to true. normalizer.outer_spaces, false
 * where it is missing, is a key of this house: extra spaces are merged, but one at either end
 * of the text stays, as with a Hugging Face tokenizer that has Metaspace and nothing that
 * strips. */
int unigram_new(struct unigram **out, const struct gguf *g, struct err *e);
void unigram_free(struct unigram *u);

/* Writes the first max_ids ids and returns how many the whole text has in *n_ids (which may be
 * larger). Errors: KITH_EINVAL where the text is not UTF-8; the message has the byte offset.
 * KITH_ENOMEM. */
int unigram_encode(const struct unigram *u, const char *text, size_t n_bytes, int32_t *ids,
                   size_t max_ids, size_t *n_ids, struct err *e);

const struct vocabulary *unigram_vocabulary(const struct unigram *u);
int32_t unigram_unk(const struct unigram *u);
