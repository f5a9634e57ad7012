#pragma once
/* What a Hugging Face folder of a BERT or XLM-R encoder says about itself: config.json, the
 * tokenizer's files, and sentence-transformers' pooling. It refuses, with the reason, whatever
 * would make the converted model give other vectors than the original. Thread: one owner. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum hf_pooling { HF_POOLING_UNKNOWN = 0, HF_POOLING_MEAN = 1, HF_POOLING_CLS = 2 };

struct hf_special {
    const char *name; /* as tokenizer_config.json calls it: "cls_token" */
    const char *key;  /* as GGUF calls its id */
    char text[64];
    int32_t id; /* -1: not in the vocabulary */
};

enum hf_special_index {
    HF_UNK,
    HF_SEP,
    HF_PAD,
    HF_CLS,
    HF_MASK,
    HF_BOS, /* this and the next in Unigram models only */
    HF_EOS,
    HF_N_SPECIALS
};

enum hf_tokenizer { HF_WORDPIECE, HF_UNIGRAM };

struct hf_model {
    uint32_t n_layers, n_embd, n_heads, n_ff, n_ctx, n_vocab, n_types;
    float norm_eps;
    enum hf_pooling pooling;
    bool normalize; /* a Normalize module is there; false too where nothing is said */
    /* RoBERTa numbers positions from its padding token's id + 1: the rows of the position table
     * before that are never read. n_ctx does not count them. */
    uint32_t unused_positions;
    enum hf_tokenizer tokenizer;
    bool lower, strip_accents; /* WordPiece */
    /* Unigram: see engine/unigram.h. */
    bool space_prefix, merge_spaces, outer_spaces;
    float *scores; /* n_vocab; 0 where an id is unused */
    unsigned char *charsmap;
    size_t charsmap_bytes; /* 0: no normaliser */
    char *
        *tokens; /* n_vocab, as the vocabulary has them ("##ing"); NULL where an id is unused */
    bool *control; /* n_vocab */
    struct hf_special specials[HF_N_SPECIALS];
};

int hf_model_open(struct hf_model *m, const char *dir, struct err *e);
void hf_model_close(struct hf_model *m);
