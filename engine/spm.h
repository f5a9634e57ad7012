#pragma once
/* The BPE tokenizer of SentencePiece models (Llama 2, Mistral, Gemma; GGUF calls it `llama`):
 * text to token ids, the same ids that SentencePiece and Hugging Face's `tokenizers` give.
 *
 *   take out the user-defined tokens; a space is U+2581, one stands before the text
 *   the characters are the first tokens, then neighbours merge (engine/bpe_merge.h), those that
 *   make the token with the highest score first
 *   a character that is no token becomes its bytes' tokens, <0x00> to <0xFF>, or unknown;
 *   neighbouring unknown ones are one token
 *
 *   T. Kudo and J. Richardson, SentencePiece (2018).
 *
 * A file that has merges beside the scores, as one made from a tokenizer.json, is merged by
 * their order: the two may differ where one token can be made in two ways.
 *
 * Text is always plain text: "</s>" in it is four characters, never the token. Hugging Face
 * matches special tokens inside the text; here a stored document must not be able to write
 * control tokens, so this one difference is wanted.
 *
 * What stands before and after a text is for engine/tokenizer.h to say.
 *
 * Memory: none while the characters between two that no token joins are fewer than 512; past it
 * 36 bytes a character of such a stretch. Time: n log n for a stretch of n characters, linear
 * in the stretches. Thread: immutable after new. Owns: nothing of the gguf; it may be closed
 * after. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct gguf;
struct spm;
struct vocabulary;

enum { SPM_MAX_PIECE = 512 }; /* bytes; a longer piece is KITH_ELIMIT */

/* Reads tokenizer.ggml.*: tokens, and merges or scores, are needed. add_space_prefix defaults
 * to true, remove_extra_whitespaces to false. Errors: KITH_EUNSUPPORTED where there is a
 * charsmap, KITH_EFORMAT, KITH_ELIMIT, KITH_ENOTFOUND (a key is missing), KITH_ENOMEM. */
int spm_new(struct spm **out, const struct gguf *g, struct err *e);
void spm_free(struct spm *p);

/* Writes the first max_ids ids and returns how many the whole text has in *n_ids (which may be
 * larger). Errors: KITH_EINVAL where the text is not UTF-8; the message has the byte offset.
 * KITH_ENOMEM. */
int spm_encode(const struct spm *p, const char *text, size_t n_bytes, int32_t *ids,
               size_t max_ids, size_t *n_ids, struct err *e);

const struct vocabulary *spm_vocabulary(const struct spm *p);
int32_t spm_unk(const struct spm *p);
