#pragma once
/* What a Hugging Face folder of a BERT encoder says about itself: config.json, the tokenizer's
 * files, and sentence-transformers' pooling. It refuses, with the reason, whatever would make
 * the converted model give other vectors than the original. Thread: one owner. */

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

enum { HF_N_SPECIALS = 5 };

struct hf_model {
    uint32_t n_layers, n_embd, n_heads, n_ff, n_ctx, n_vocab, n_types;
    float norm_eps;
    enum hf_pooling pooling;
    bool normalize; /* a Normalize module is there; false too where nothing is said */
    bool lower, strip_accents;
    char *
        *tokens; /* n_vocab, as the vocabulary has them ("##ing"); NULL where an id is unused */
    bool *control; /* n_vocab */
    struct hf_special specials[HF_N_SPECIALS];
};

int hf_model_open(struct hf_model *m, const char *dir, struct err *e);
void hf_model_close(struct hf_model *m);
