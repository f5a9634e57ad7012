#include "engine/vocabulary.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "engine/gguf.h"

/* Texts in one block, the offsets beside it. */
static int load_texts(struct vocabulary *v, struct gguf_array tokens, struct err *e)
{
    v->n = (uint32_t)tokens.left;
    v->at = mem_alloc_n((size_t)v->n + 1, sizeof *v->at);
    size_t total = 0, n;
    const char *s;
    for (struct gguf_array a = tokens; gguf_array_string(&a, &s, &n);)
        total += n;
    v->text = mem_alloc(total);
    if (!v->at || !v->text)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", v->n);
    size_t at = 0;
    uint32_t i = 0;
    for (struct gguf_array a = tokens; gguf_array_string(&a, &s, &n); i++) {
        v->at[i] = at;
        if (n)
            memcpy(v->text + at, s, n);
        at += n;
    }
    v->at[i] = at;
    return 0;
}

/* A type that is not known, or missing at the end of a short array, is a normal token. */
static int load_types(struct vocabulary *v, const struct gguf *g, struct err *e)
{
    struct gguf_array types = {0};
    v->type = mem_alloc(v->n);
    if (!v->type)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", v->n);
    if (gguf_has(g, "tokenizer.ggml.token_type")) {
        int rc = gguf_get_array(g, "tokenizer.ggml.token_type", &types, e);
        if (rc)
            return rc;
    }
    for (uint32_t i = 0; i < v->n; i++) {
        int64_t type;
        bool known =
            gguf_array_int(&types, &type) && type >= TOKEN_NORMAL && type <= TOKEN_BYTE;
        v->type[i] = known ? (uint8_t)type : TOKEN_NORMAL;
    }
    return 0;
}

int vocabulary_load(struct vocabulary *v, const struct gguf *g, struct err *e)
{
    struct gguf_array tokens;
    memset(v, 0, sizeof *v);
    int rc = gguf_get_array(g, "tokenizer.ggml.tokens", &tokens, e);
    if (rc)
        return rc;
    if (tokens.type != GGUF_STRING || tokens.left == 0 || tokens.left > VOCABULARY_MAX)
        return err_set(e, KITH_EFORMAT,
                       "tokenizer.ggml.tokens must be an array of 1 to %d strings",
                       VOCABULARY_MAX);
    rc = load_texts(v, tokens, e);
    if (!rc)
        rc = load_types(v, g, e);
    return rc;
}

void vocabulary_deinit(struct vocabulary *v)
{
    mem_free(v->text);
    mem_free(v->at);
    mem_free(v->type);
    memset(v, 0, sizeof *v);
}

const char *vocabulary_token(const struct vocabulary *v, int32_t id, size_t *n)
{
    *n = v->at[id + 1] - v->at[id];
    return v->text + v->at[id];
}

int vocabulary_id(const struct vocabulary *v, const struct gguf *g, const char *key,
                  int64_t otherwise, int32_t *id, struct err *e)
{
    uint64_t given;
    int rc = gguf_get_uint(g, key, &given, e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (rc && otherwise < 0) {
        *id = -1;
        return 0;
    }
    if (rc)
        given = (uint64_t)otherwise;
    if (given >= v->n)
        return err_set(e, KITH_EFORMAT,
                       "key '%s' is %" PRIu64 ", past the %u tokens of the vocabulary", key,
                       given, v->n);
    *id = (int32_t)given;
    return 0;
}

int vocabulary_flag(const struct gguf *g, const char *key, bool otherwise, bool *v,
                    struct err *e)
{
    *v = otherwise;
    int rc = gguf_get_bool(g, key, v, e);
    return rc == KITH_ENOTFOUND ? 0 : rc;
}

static bool looks_special(const char *s, size_t n)
{
    return n > 2 && ((s[0] == '<' && s[n - 1] == '>') || (s[0] == '[' && s[n - 1] == ']'));
}

static bool ends_a_turn(const char *s, size_t n)
{
    static const char *const texts[] = {
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<start_of_turn>",
        "<|begin_of_text|>",
        "<EOT>",
        "<end_of_utterance>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<\xef\xbd\x9c"
        "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strlen(texts[i]) == n && memcmp(texts[i], s, n) == 0)
            return true;
    return false;
}

int vocabulary_mark_controls(struct vocabulary *v, const struct gguf *g, int32_t *unk,
                             struct err *e)
{
    static const char *const keys[] = {
        "tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.padding_token_id", "tokenizer.ggml.seperator_token_id",
        "tokenizer.ggml.cls_token_id",     "tokenizer.ggml.mask_token_id",
    };
    int rc = vocabulary_id(v, g, "tokenizer.ggml.unknown_token_id", -1, unk, e);
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !rc; i++) {
        int32_t id = -1;
        size_t n;
        rc = vocabulary_id(v, g, keys[i], -1, &id, e);
        if (rc || id < 0)
            continue;
        const char *s = vocabulary_token(v, id, &n);
        if (looks_special(s, n))
            v->type[id] = TOKEN_CONTROL;
    }
    for (uint32_t i = 0; i < v->n && !rc; i++) {
        size_t n;
        const char *s = vocabulary_token(v, (int32_t)i, &n);
        if (vocabulary_is_text(v, (int32_t)i) && looks_special(s, n) && ends_a_turn(s, n))
            v->type[i] = TOKEN_CONTROL;
    }
    if (!rc && *unk >= 0) {
        size_t n;
        const char *s = vocabulary_token(v, *unk, &n);
        if (looks_special(s, n))
            v->type[*unk] = TOKEN_UNKNOWN;
    }
    return rc;
}
