#pragma once
/* What the files of hf_model share; nobody else includes this. */

#include "tools/hf_json.h"
#include "tools/hf_model.h"

/* config.json; tokens come after, for they need n_vocab. */
int hf_read_config(struct hf_model *m, const char *dir, struct err *e);
int hf_read_tokenizer(struct hf_model *m, const char *dir, struct err *e);
/* Pooling, dense layers, prompts; after the tokens, for a reranker has two of them. */
int hf_read_modules(struct hf_model *m, const char *dir, enum hf_pooling asked, struct err *e);

/* Gives id its text; the same twice is well, two texts are not. */
int hf_put_token(struct hf_model *m, const char *text, size_t n, int64_t id, struct err *e);
/* -1: there is none. */
int32_t hf_find_token(const struct hf_model *m, const char *text);
/* vocab: {"text": id, ...} of WordPiece and BPE. */
int hf_read_vocab(struct hf_model *m, const json_t *vocab, struct err *e);

/* tokenizer.json of the kinds; each reads its normalizer, pre-tokenizer and model. */
int hf_read_unigram(struct hf_model *m, const json_t *tokenizer, struct err *e);
int hf_read_bpe(struct hf_model *m, const json_t *tokenizer, struct err *e);
