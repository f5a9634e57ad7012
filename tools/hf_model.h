#pragma once
/* What a Hugging Face folder of an embedding model or a reranker says about itself:
 * config.json, the tokenizer's files, and sentence-transformers' modules. It refuses, with the
 * reason, whatever would make the converted model give other vectors than the original. Tensors
 * are tools/hf_tensors.h.
 *
 *   hf_config.c      config.json, a function for each family
 *   hf_tokenizer.c   the vocabulary, what the kinds of tokenizers share, WordPiece
 *   hf_unigram.c, hf_bpe.c   the other kinds
 *   hf_modules.c     modules.json and what it names, prompts
 *
 * Thread: one owner. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* GGUF's `pooling_type`, and no word of it. */
enum hf_pooling {
    HF_POOLING_UNKNOWN = 0,
    HF_POOLING_MEAN = 1,
    HF_POOLING_CLS = 2,
    HF_POOLING_LAST = 3,
    HF_POOLING_RANK = 4
};

enum hf_family {
    HF_BERT, /* and RoBERTa, XLM-R */
    HF_NOMIC_BERT,
    HF_JINA_BERT_V2,
    HF_MODERN_BERT,
    HF_GEMMA_EMBEDDING,
    HF_QWEN3
};

/* Where a reranker's score comes from. */
enum hf_head {
    HF_HEAD_NONE,
    HF_HEAD_POOLER,     /* BERT: pooler and classifier */
    HF_HEAD_CLASSIFIER, /* RoBERTa: classifier.dense and classifier.out_proj */
    HF_HEAD_YES_NO      /* two rows of the output matrix, those of two tokens */
};

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
    HF_BOS, /* this and the next not in WordPiece models */
    HF_EOS,
    HF_N_SPECIALS
};

enum hf_tokenizer {
    HF_WORDPIECE,
    HF_UNIGRAM,
    HF_BYTE_BPE, /* GPT-2's kind */
    HF_SPM_BPE   /* SentencePiece's BPE */
};

/* tokenizer.ggml.token_type */
enum hf_token_type {
    HF_TOKEN_NORMAL = 1,
    HF_TOKEN_UNKNOWN = 2,
    HF_TOKEN_CONTROL = 3,
    HF_TOKEN_USER_DEFINED = 4,
    HF_TOKEN_UNUSED = 5,
    HF_TOKEN_BYTE = 6
};

enum { HF_DENSE_MAX = 2, HF_MATRYOSHKA_MAX = 32, HF_MODULE_PATH_BYTES = 256 };

/* A linear layer behind the pooling, without bias. */
struct hf_dense {
    char dir[HF_MODULE_PATH_BYTES]; /* in the model's folder */
    uint32_t in, out;
};

struct hf_model {
    enum hf_family family;
    const char *arch; /* as GGUF calls it */
    uint32_t n_layers, n_embd, n_heads, n_ff, n_ctx, n_vocab;
    uint32_t n_types; /* 0: none */
    uint32_t n_kv_heads, head_dim;
    float norm_eps;
    bool rms_norm, causal;
    /* Local attention: 0, or the whole width of the window, both sides; each pattern-th layer
     * is global. */
    uint32_t window, window_pattern;
    float rope_base, rope_base_local; /* 0: none */
    float rope_factor;                /* of linear scaling, of the global layers; 1: none */
    bool tied;                        /* the output matrix is the embedding's */
    enum hf_pooling pooling;
    bool normalize; /* a Normalize module is there; false too where nothing is said */
    /* RoBERTa numbers positions from its padding token's id + 1: the rows of the position table
     * before that are never read. n_ctx does not count them. */
    uint32_t unused_positions;
    enum hf_head head;
    int32_t yes, no; /* token ids; -1: not said */
    struct hf_dense dense[HF_DENSE_MAX];
    unsigned n_dense;
    char *query_prompt, *document_prompt; /* NULL: none */
    uint32_t matryoshka[HF_MATRYOSHKA_MAX];
    unsigned n_matryoshka;

    enum hf_tokenizer tokenizer;
    bool lower, strip_accents; /* WordPiece */
    /* Unigram: see engine/unigram.h. */
    bool space_prefix, merge_spaces, outer_spaces;
    unsigned char *charsmap;
    size_t charsmap_bytes; /* 0: no normaliser */
    const char *pre;       /* byte BPE: GGUF's name of the pre-tokenizer */
    bool nfc;              /* byte BPE: the text is normalised so */
    char **merges;         /* both kinds of BPE: "left right", by rank */
    size_t n_merges;
    float *scores; /* Unigram and SentencePiece BPE: n_vocab; 0 where an id is unused */
    /* What stands around a text, and a second separator between the two of a pair. */
    bool add_bos, add_eos, add_sep;
    /* n_vocab, as the vocabulary has them ("##ing"); NULL where an id is unused */
    char **tokens;
    uint8_t *types; /* n_vocab: enum hf_token_type */
    struct hf_special specials[HF_N_SPECIALS];
};

/* `pooling`: what the user asks for, HF_POOLING_UNKNOWN for what the folder says. */
int hf_model_open(struct hf_model *m, const char *dir, enum hf_pooling pooling, struct err *e);
void hf_model_close(struct hf_model *m);
