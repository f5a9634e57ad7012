#include "engine/tokenizer.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/bpe.h"
#include "engine/gguf.h"
#include "engine/pretokenizer.h"
#include "engine/spm.h"
#include "engine/unigram.h"
#include "engine/vocabulary.h"
#include "engine/wordpiece.h"

/* One kind of tokenizer. open fills impl, vocabulary, unk, frame and, where it has one, pair of
 * the tokenizer. */
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
    struct tokenizer_pair_frame pair;
};

/* The form of pairs is that of the frame, with one or two of its last token between. */
static void set_pair_frame(struct tokenizer *t, uint32_t n_between)
{
    const struct tokenizer_frame *f = &t->frame;
    if (f->n_before != 1 || f->n_after != 1)
        return;
    t->pair = (struct tokenizer_pair_frame){.known = true,
                                            .before = {f->before[0]},
                                            .between = {f->after[0], f->after[0]},
                                            .after = {f->after[0]},
                                            .n_before = 1,
                                            .n_between = n_between,
                                            .n_after = 1};
}

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
    t->frame = (struct tokenizer_frame){{wordpiece_cls(w)}, {wordpiece_sep(w)}, 1, 1};
    set_pair_frame(t, 1);
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

/* --- frames --- */

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

/* Both tokens of the frame, with what is usual for the kind. */
struct usual_frame {
    bool bos, eos;
    const char *bos_key, *eos_key;
    int64_t bos_id, eos_id; /* where the key is missing; -1: there is none */
};

static int load_frame(struct tokenizer *t, const struct gguf *g, const struct usual_frame *u,
                      struct err *e)
{
    struct tokenizer_frame *f = &t->frame;
    int rc = load_frame_token(t->vocabulary, g, "tokenizer.ggml.add_bos_token", u->bos,
                              u->bos_key, u->bos_id, &f->before[0], &f->n_before, e);
    if (!rc)
        rc = load_frame_token(t->vocabulary, g, "tokenizer.ggml.add_eos_token", u->eos,
                              u->eos_key, u->eos_id, &f->after[0], &f->n_after, e);
    return rc;
}

static const char bos_key[] = "tokenizer.ggml.bos_token_id";
static const char eos_key[] = "tokenizer.ggml.eos_token_id";

/* --- Unigram --- */

static int open_unigram(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct unigram *u;
    int rc = unigram_new(&u, g, e);
    if (rc)
        return rc;
    t->impl = u;
    t->vocabulary = unigram_vocabulary(u);
    t->unk = unigram_unk(u);
    rc = load_frame(t, g, &(struct usual_frame){false, true, bos_key, eos_key, -1, 1}, e);
    set_pair_frame(t, 2);
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

/* --- byte-level BPE --- */

static bool string_is(const struct gguf *g, const char *key, const char *value)
{
    const char *s;
    size_t n;
    return gguf_get_string(g, key, &s, &n, NULL) == 0 && n == strlen(value) &&
           memcmp(s, value, n) == 0;
}

/* Whether the vector is that of the last token (pooling 3). */
static bool pools_last(const struct gguf *g)
{
    const char *arch;
    size_t n;
    char key[96];
    uint64_t pooling;
    if (gguf_get_string(g, "general.architecture", &arch, &n, NULL) || n > 64)
        return false;
    snprintf(key, sizeof key, "%.*s.pooling_type", (int)n, arch);
    return gguf_get_uint(g, key, &pooling, NULL) == 0 && pooling == 3;
}

/* Qwen's embedding models end a text with <|endoftext|>, which is not the end of a turn that
 * eos_token_id may name. Files older than the flag do not say so. */
static int frame_of_qwen(struct tokenizer *t, const struct gguf *g)
{
    static const char end[] = "<|endoftext|>";
    const char *pre = bpe_pretokenizer(t->impl)->name;
    if (gguf_has(g, "tokenizer.ggml.add_eos_token") || strncmp(pre, "qwen", 4) != 0 ||
        !pools_last(g))
        return 0;
    int rc = tokenizer_special(t, end, sizeof end - 1, &t->frame.after[0], NULL);
    t->frame.n_after = rc ? 0 : 1;
    return 0;
}

static int open_bpe(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    static const char cls_key[] = "tokenizer.ggml.cls_token_id";
    static const char sep_key[] = "tokenizer.ggml.seperator_token_id";
    struct bpe *b;
    int rc = bpe_new(&b, g, e);
    if (rc)
        return rc;
    t->impl = b;
    t->vocabulary = bpe_vocabulary(b);
    t->unk = bpe_unk(b);
    const struct pretokenizer *pre = bpe_pretokenizer(b);
    struct usual_frame usual = {pre->add_bos, false, bos_key, eos_key, -1, -1};
    if (pre->pair != PAIR_NONE) {
        usual.bos = usual.eos = true;
        usual.bos_key = gguf_has(g, cls_key) ? cls_key : bos_key;
        usual.eos_key = gguf_has(g, sep_key) ? sep_key : eos_key;
    }
    rc = load_frame(t, g, &usual, e);
    if (pre->pair != PAIR_NONE)
        set_pair_frame(t, pre->pair == PAIR_TWO_SEPARATORS ? 2 : 1);
    return rc ? rc : frame_of_qwen(t, g);
}

static void free_bpe(void *impl)
{
    bpe_free(impl);
}

static int encode_bpe(const void *impl, const char *text, size_t n_bytes, int32_t *ids,
                      size_t max_ids, size_t *n_ids, struct err *e)
{
    return bpe_encode(impl, text, n_bytes, ids, max_ids, n_ids, e);
}

/* --- SentencePiece BPE --- */

static int open_spm(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct spm *p;
    int rc = spm_new(&p, g, e);
    if (rc)
        return rc;
    t->impl = p;
    t->vocabulary = spm_vocabulary(p);
    t->unk = spm_unk(p);
    bool embeds = string_is(g, "general.architecture", "gemma-embedding");
    return load_frame(t, g, &(struct usual_frame){true, embeds, bos_key, eos_key, 1, 2}, e);
}

static void free_spm(void *impl)
{
    spm_free(impl);
}

static int encode_spm(const void *impl, const char *text, size_t n_bytes, int32_t *ids,
                      size_t max_ids, size_t *n_ids, struct err *e)
{
    return spm_encode(impl, text, n_bytes, ids, max_ids, n_ids, e);
}

/* --- the face --- */

static const struct kind kinds[] = {
    {"bert", open_wordpiece, free_wordpiece, encode_wordpiece},
    {"t5", open_unigram, free_unigram, encode_unigram},
    {"gpt2", open_bpe, free_bpe, encode_bpe},
    {"llama", open_spm, free_spm, encode_spm},
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
    return &t->pair;
}

static bool in_frame(const struct tokenizer_frame *f, int32_t id)
{
    return (f->n_before && f->before[0] == id) || (f->n_after && f->after[0] == id);
}

int tokenizer_special(const struct tokenizer *t, const char *text, size_t n, int32_t *id,
                      struct err *e)
{
    const struct vocabulary *v = t->vocabulary;
    const struct slice wanted = {text, n};
    for (uint32_t i = 0; i < v->n; i++) {
        struct slice token;
        token.p = vocabulary_token(v, (int32_t)i, &token.n);
        /* A BERT file may have no types. */
        bool control = v->type[i] == TOKEN_CONTROL || in_frame(&t->frame, (int32_t)i);
        if (control && slice_equal(token, wanted)) {
            *id = (int32_t)i;
            return 0;
        }
    }
    return err_set(e, KITH_ENOTFOUND, "the tokenizer has no control token '%.*s'",
                   slice_shown(wanted), text);
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
