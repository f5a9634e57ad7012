#pragma once
/* How byte-level BPE cuts a text into words before it merges: the regular expressions of the
 * published tokenizers, each as a matcher by hand. Chosen by `tokenizer.ggml.pre`.
 *
 *   llama-bpe   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
 *               | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   qwen2       the same with \p{N}
 *   qwen35      the same with [\p{L}\p{M}]+, and without \p{M} in what is no letter
 *   gpt-4o      words by case: upper, then lower; their contraction behind them
 *   tekken      as gpt-4o, with \p{N} and without contractions
 *   gpt-2       's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   starcoder   each \p{N} apart, then gpt-2 on what lies between
 *   deepseek-v3 \p{N}{1,3}, then runs of ideographs and kana, then an expression of its own
 *   default     \p{P} and some symbols, then gpt-2, then \p{N}+, then three digits
 *
 * With each name come the defaults that go with it. It knows no tokens. Time: constant a
 * character. Thread: any. */

#include <stdbool.h>
#include <stddef.h>

enum { PRETOKENIZER_STAGES = 4 };

/* What a sequence of two texts looks like. */
enum pair_form {
    PAIR_NONE,
    PAIR_ONE_SEPARATOR, /* [CLS] a [SEP] b [SEP] */
    PAIR_TWO_SEPARATORS /* <s> a </s> </s> b </s> */
};

struct pretokenizer {
    const char *name;
    /* The bytes of the match at s, 0 where there is none; what lies between two matches is a
     * word of its own. Each stage cuts the words of the one before it. */
    size_t (*stages[PRETOKENIZER_STAGES])(const char *s, size_t n);
    bool ignore_merges; /* a word that is a token is not merged */
    bool nfc, add_bos;
    enum pair_form pair; /* an encoder's tokenizer: has both frame tokens */
};

/* NULL where the name is not known. */
const struct pretokenizer *pretokenizer_find(const char *name, size_t n);
/* The i-th name, NULL behind the last. */
const char *pretokenizer_name(size_t i);

/* A walk over the words of a text. */
struct pretokens {
    const struct pretokenizer *pre;
    const char *s;
    size_t n, at, end[PRETOKENIZER_STAGES];
};

/* s is valid UTF-8. */
struct pretokens pretokens_of(const struct pretokenizer *pre, const char *s, size_t n);
bool pretokens_next(struct pretokens *w, const char **word, size_t *n);
