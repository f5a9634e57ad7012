#pragma once
/* Byte-level BPE (GPT-2 and all that came after it, RoBERTa, ModernBERT, Qwen, Llama 3; GGUF
 * calls it `gpt2`): text to token ids, the same ids that Hugging Face's `tokenizers` gives.
 *
 *   take out the user-defined tokens; normalise (NFC) where the model was trained so
 *   cut into words as `tokenizer.ggml.pre` says (engine/pretokenizer.h)
 *   per word: its bytes are the first tokens, then merge by rank (engine/bpe_merge.h)
 *
 *   A. Radford et al., Language Models are Unsupervised Multitask Learners (2019), section 2.2.
 *
 * Text is always plain text: "<|im_start|>" in it is what its letters merge to, never the
 * token. Hugging Face matches special tokens inside the text; here a stored document must not
 * be able to write control tokens, so this one difference is wanted.
 *
 * What stands before and after a text is for engine/tokenizer.h to say.
 *
 * Memory: none for words of up to 256 bytes in text that is composed already; past that 32
 * bytes a byte of the word, and a copy of a text that is not composed. Time: n log n for a word
 * of n bytes, linear in the words. Thread: immutable after new. Owns: nothing of the gguf; it
 * may be closed after. */

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct bpe;
struct gguf;
struct pretokenizer;
struct vocabulary;

/* Reads tokenizer.ggml.*: tokens, merges and pre are needed. normalizer.nfc and ignore_merges
 * are keys of this house; where they are missing the pre-tokenizer's name says.
 * Errors: KITH_EUNSUPPORTED where the pre-tokenizer is not known (the message has its name and
 * those that are), KITH_EFORMAT, KITH_ELIMIT, KITH_ENOTFOUND (a key is missing), KITH_ENOMEM.
 */
int bpe_new(struct bpe **out, const struct gguf *g, struct err *e);
void bpe_free(struct bpe *b);

/* Writes the first max_ids ids and returns how many the whole text has in *n_ids (which may be
 * larger). Errors: KITH_EINVAL where the text is not UTF-8; the message has the byte offset.
 * KITH_ENOMEM. */
int bpe_encode(const struct bpe *b, const char *text, size_t n_bytes, int32_t *ids,
               size_t max_ids, size_t *n_ids, struct err *e);

const struct vocabulary *bpe_vocabulary(const struct bpe *b);
const struct pretokenizer *bpe_pretokenizer(const struct bpe *b);
int32_t bpe_unk(const struct bpe *b); /* -1: there is none, for each byte has a token */
