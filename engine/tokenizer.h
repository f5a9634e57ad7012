#pragma once
/* Text to token ids, whatever the model's kind of tokenizer: the one face of all of them,
 * chosen by `tokenizer.ggml.model`.
 *
 *   bert    engine/wordpiece.h    [CLS] text [SEP]
 *   t5      engine/unigram.h      <s> text </s> or text </s>, as the file says
 *   gpt2    engine/bpe.h          as the file says, or as is usual for its pre-tokenizer
 *   llama   engine/spm.h          <s> text, or as the file says
 *
 * Text is plain text: none becomes a control token. What stands before and after a text is the
 * frame, which the caller puts around the ids. A program that writes a prompt of its own, with
 * control tokens between texts of others, has them from tokenizer_special.
 *
 * Thread: immutable after new. Owns: nothing of the gguf; it may be closed after. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct gguf;
struct tokenizer;

enum { TOKENIZER_FRAME_MAX = 1, TOKENIZER_BETWEEN_MAX = 2 };

struct tokenizer_frame {
    int32_t before[TOKENIZER_FRAME_MAX], after[TOKENIZER_FRAME_MAX];
    uint32_t n_before, n_after;
};

/* What stands around and between two texts that a cross-encoder reads as one sequence. */
struct tokenizer_pair_frame {
    bool known; /* false: this tokenizer has no form for pairs */
    int32_t before[TOKENIZER_FRAME_MAX], between[TOKENIZER_BETWEEN_MAX],
        after[TOKENIZER_FRAME_MAX];
    uint32_t n_before, n_between, n_after;
};

/* Errors: KITH_EUNSUPPORTED where the model is another kind (the message has its name and those
 * that are known), KITH_EFORMAT, KITH_ELIMIT, KITH_ENOTFOUND (a key is missing), KITH_ENOMEM.
 */
int tokenizer_new(struct tokenizer **out, const struct gguf *g, struct err *e);
void tokenizer_free(struct tokenizer *t);

/* Writes the first max_ids ids and returns how many the whole text has in *n_ids (which may be
 * larger), without the frame. Errors: KITH_EINVAL where the text is not UTF-8; the message has
 * the byte offset. KITH_ENOMEM. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n_bytes, int32_t *ids,
                     size_t max_ids, size_t *n_ids, struct err *e);

const struct tokenizer_frame *tokenizer_frame(const struct tokenizer *t);
/* bert: [CLS] a [SEP] b [SEP]. t5 with both frame tokens, and gpt2 as RoBERTa has it:
 * <s> a </s> </s> b </s>. gpt2 as ModernBERT has it: [CLS] a [SEP] b [SEP]. None else. */
const struct tokenizer_pair_frame *tokenizer_pair_frame(const struct tokenizer *t);
/* The control token that is spelled so, for prompts that a program makes; never for a text of
 * someone else. Walks the vocabulary: to be asked once. Errors: KITH_ENOTFOUND. */
int tokenizer_special(const struct tokenizer *t, const char *text, size_t n, int32_t *id,
                      struct err *e);
const char *tokenizer_model(const struct tokenizer *t); /* "bert", "t5", "gpt2", "llama" */
uint32_t tokenizer_n_vocab(const struct tokenizer *t);
int32_t tokenizer_unk(const struct tokenizer *t); /* -1: it has none */
/* The token as the model file has it, 0 <= id < n_vocab; not NUL-terminated. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id, size_t *n);
