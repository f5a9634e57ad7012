#pragma once
/* The tokens of a model file: their texts and types, copied, so that the file may be closed.
 * What every tokenizer reads of tokenizer.ggml.* before it reads what is its own.
 *
 * Thread: immutable after load. Errors: KITH_EFORMAT (the message names the key), KITH_ENOMEM.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct gguf;

/* tokenizer.ggml.token_type; a file without it has normal tokens only. */
enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
};

enum { VOCABULARY_MAX = 1 << 22 };

struct vocabulary {
    char *text;    /* all tokens' bytes */
    size_t *at;    /* n + 1 offsets */
    uint8_t *type; /* n */
    uint32_t n;
};

int vocabulary_load(struct vocabulary *v, const struct gguf *g, struct err *e);
void vocabulary_deinit(struct vocabulary *v);
/* 0 <= id < n; not NUL-terminated. */
const char *vocabulary_token(const struct vocabulary *v, int32_t id, size_t *n);

/* The id under a key, or `otherwise` where the key is missing (negative: none, *id is -1). */
int vocabulary_id(const struct vocabulary *v, const struct gguf *g, const char *key,
                  int64_t otherwise, int32_t *id, struct err *e);
int vocabulary_flag(const struct gguf *g, const char *key, bool otherwise, bool *v,
                    struct err *e);

/* Marks what no text may become, whatever type the file gives it: the ids under the keys of
 * special tokens, and the tokens that every reader of GGUF takes for the end of a turn. One
 * that does not look like a control token keeps its type, for some files name a comma as their
 * first token. *unk: the id of unknown_token_id, or -1. */
int vocabulary_mark_controls(struct vocabulary *v, const struct gguf *g, int32_t *unk,
                             struct err *e);
/* What plain text may become, by merging or as it stands. */
static inline bool vocabulary_is_text(const struct vocabulary *v, int32_t id)
{
    return v->type[id] == TOKEN_NORMAL || v->type[id] == TOKEN_USER_DEFINED;
}
