#include "engine/tokenizer.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/gguf.h"
#include "engine/unigram.h"
#include "engine/vocabulary.h"
#include "engine/wordpiece.h"

/* One kind of tokenizer. open fills impl, vocabulary, unk and frame of the tokenizer. */
struct kind {
    const char *model;
    int (*open)(struct tokenizer *t, const struct gguf *g, struct err *e);
    void (*free)(void *impl);
    int (*encode)(const void *impl, const char *text, size_t n_bytes, int32_t *ids,
                  size_t max_ids, size_t *n_ids, struct err *e);
};

struct tokenizer {
    const struct kind *kind;
    void *impl;
    const struct vocabulary *vocabulary; /* the implementation's */
    int32_t unk;
    struct tokenizer_frame frame;
    struct tokenizer_pair_frame pair; /* n_between 0: none */
};

/* --- WordPiece --- */

static int open_wordpiece(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct wordpiece *w;
    int rc = wordpiece_new(&w, g, e);
    if (rc)
        return rc;
    t->impl = w;
    t->vocabulary = wordpiece_vocabulary(w);
    t->unk = wordpiece_unk(w);
    int32_t cls = wordpiece_cls(w), sep = wordpiece_sep(w);
    t->frame = (struct tokenizer_frame){{cls}, {sep}, 1, 1};
    t->pair = (struct tokenizer_pair_frame){{cls}, {sep}, {sep}, 1, 1, 1};
    return 0;
}

static void free_wordpiece(void *impl)
{
    wordpiece_free(impl);
}

static int encode_wordpiece(const void *impl, const char *text, size_t n_bytes, int32_t *ids,
                            size_t max_ids, size_t *n_ids, struct err *e)
{
    return wordpiece_encode(impl, text, n_bytes, ids, max_ids, n_ids, e);
}

/* --- Unigram --- */

/* A frame token that is asked for (by its flag, or where the flag is missing by the kind) must
 * have an id. */
static int load_frame_token(const struct vocabulary *v, const struct gguf *g, const char *flag,
                            bool wanted, const char *key, int64_t otherwise, int32_t *id,
                            uint32_t *n, struct err *e)
{
    int rc = vocabulary_flag(g, flag, wanted, &wanted, e);
    if (rc || !wanted)
        return rc;
    rc = vocabulary_id(v, g, key, otherwise, id, e);
    if (!rc && *id < 0)
        return err_set(e, KITH_EFORMAT, "key '%s' is true, but there is no '%s'", flag, key);
    *n = 1;
    return rc;
}

static int open_unigram(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct unigram *u;
    int rc = unigram_new(&u, g, e);
    if (rc)
        return rc;
    t->impl = u;
    t->vocabulary = unigram_vocabulary(u);
    t->unk = unigram_unk(u);
    struct tokenizer_frame *f = &t->frame;
    rc = load_frame_token(t->vocabulary, g, "tokenizer.ggml.add_bos_token", false,
                          "tokenizer.ggml.bos_token_id", -1, &f->before[0], &f->n_before, e);
    if (!rc)
        rc = load_frame_token(t->vocabulary, g, "tokenizer.ggml.add_eos_token", true,
                              "tokenizer.ggml.eos_token_id", 1, &f->after[0], &f->n_after, e);
    if (f->n_before && f->n_after) {
        int32_t bos = f->before[0], eos = f->after[0];
        t->pair = (struct tokenizer_pair_frame){{bos}, {eos, eos}, {eos}, 1, 2, 1};
    }
    return rc;
}

static void free_unigram(void *impl)
{
    unigram_free(impl);
}

static int encode_unigram(const void *impl, const char *text, size_t n_bytes, int32_t *ids,
                          size_t max_ids, size_t *n_ids, struct err *e)
{
    return unigram_encode(impl, text, n_bytes, ids, max_ids, n_ids, e);
}

/* --- the face --- */

static const struct kind kinds[] = {
    {"bert", open_wordpiece, free_wordpiece, encode_wordpiece},
    {"t5", open_unigram, free_unigram, encode_unigram},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static const struct kind *find_kind(const char *model, size_t n)
{
    for (size_t i = 0; i < N_KINDS; i++)
        if (strlen(kinds[i].model) == n && memcmp(kinds[i].model, model, n) == 0)
            return &kinds[i];
    return NULL;
}

static int refuse_kind(const char *model, size_t n, struct err *e)
{
    char known[128] = "";
    size_t length = 0;
    for (size_t i = 0; i < N_KINDS; i++)
        length += (size_t)snprintf(known + length, sizeof known - length, "%s'%s'",
                                   i ? ", " : "", kinds[i].model);
    return err_set(e, KITH_EUNSUPPORTED, "the tokenizer is '%.*s'; known here are %s",
                   n > 64 ? 64 : (int)n, model, known);
}

int tokenizer_new(struct tokenizer **out, const struct gguf *g, struct err *e)
{
    const char *model;
    size_t n;
    int rc = gguf_get_string(g, "tokenizer.ggml.model", &model, &n, e);
    if (rc)
        return rc;
    const struct kind *kind = find_kind(model, n);
    if (!kind)
        return refuse_kind(model, n, e);
    struct tokenizer *t = mem_calloc(1, sizeof *t);
    if (!t)
        return err_set(e, KITH_ENOMEM, "out of memory for the tokenizer");
    t->kind = kind;
    rc = kind->open(t, g, e);
    if (rc) {
        tokenizer_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    if (t->impl)
        t->kind->free(t->impl);
    mem_free(t);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n_bytes, int32_t *ids,
                     size_t max_ids, size_t *n_ids, struct err *e)
{
    return t->kind->encode(t->impl, text, n_bytes, ids, max_ids, n_ids, e);
}

const struct tokenizer_frame *tokenizer_frame(const struct tokenizer *t)
{
    return &t->frame;
}

const struct tokenizer_pair_frame *tokenizer_pair_frame(const struct tokenizer *t)
{
    return t->pair.n_between ? &t->pair : NULL;
}

int tokenizer_special(const struct tokenizer *t, const char *text, size_t n, int32_t *id)
{
    const struct vocabulary *v = t->vocabulary;
    for (uint32_t i = 0; i < v->n; i++) {
        size_t length;
        const char *token = vocabulary_token(v, (int32_t)i, &length);
        if (v->type[i] == TOKEN_CONTROL && length == n && memcmp(token, text, n) == 0) {
            *id = (int32_t)i;
            return 0;
        }
    }
    return KITH_ENOTFOUND;
}

const char *tokenizer_model(const struct tokenizer *t)
{
    return t->kind->model;
}

uint32_t tokenizer_n_vocab(const struct tokenizer *t)
{
    return t->vocabulary->n;
}

int32_t tokenizer_unk(const struct tokenizer *t)
{
    return t->unk;
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id, size_t *n)
{
    return vocabulary_token(t->vocabulary, id, n);
}
