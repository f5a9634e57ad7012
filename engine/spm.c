/* Nothing says where a word ends: a whole page is one sequence of characters to merge. But two
 * neighbours that are nowhere neighbours inside a token are never in one token, so the sequence
 * may be cut there, whatever the vocabulary; that leaves stretches of a word or so. `joints`
 * has a bit for each pair of characters that is inside some token, at a place of a hash, so
 * that a chance hit only makes a stretch longer.
 *
 *   U+2581 t h e | U+2581 c a t      no token has e U+2581 inside
 *
 * With scores, each way to cut a token into two tokens is a merge of it, ranked by its score;
 * the leftmost of equals comes first. */

#include "engine/spm.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/added_tokens.h"
#include "engine/bpe_merge.h"
#include "engine/gguf.h"
#include "engine/token_index.h"
#include "engine/vocabulary.h"

#define SPACE "\xe2\x96\x81"

enum { N_BYTES = 256, N_ASCII = 128, SPACE_POINT = 0x2581, OWN_WORD = 512, CHAR_TOKENS = 4 };
enum { MIN_JOINT_BITS = 1 << 10, MAX_JOINT_BITS = 1 << 26 };

struct spm {
    struct vocabulary vocabulary;
    struct added_tokens added;
    struct bpe_table merges;
    struct token_index pieces;
    uint64_t *joints;
    uint32_t joint_mask; /* bits - 1 */
    int32_t byte_ids[N_BYTES], ascii_ids[N_ASCII];
    int32_t unk;
    bool space_prefix, merge_spaces;
};

/* The token of a text, if text may become it. */
static int32_t find_text(const struct spm *p, const char *s, size_t n)
{
    int32_t id = token_index_find(&p->pieces, s, n);
    return id >= 0 && vocabulary_is_text(&p->vocabulary, id) ? id : TOKEN_NONE;
}

/* --- loading --- */

/* Text tokens first, so that none is hidden by a control token of the same letters. */
static int load_pieces(struct spm *p, struct err *e)
{
    const struct vocabulary *v = &p->vocabulary;
    int rc = token_index_init(&p->pieces, v->text, v->at, v->n, e);
    for (int text = 1; text >= 0 && !rc; text--)
        for (uint32_t i = 0; i < v->n && !rc; i++) {
            size_t n;
            const char *s = vocabulary_token(v, (int32_t)i, &n);
            if (vocabulary_is_text(v, (int32_t)i) != (text == 1) ||
                utf8_valid_prefix(s, n) != n)
                continue;
            if (n > SPM_MAX_PIECE)
                rc = err_set(e, KITH_ELIMIT, "token %u has %zu bytes; at most %d are taken", i,
                             n, SPM_MAX_PIECE);
            else
                token_index_add(&p->pieces, i);
        }
    for (unsigned c = 0; c < N_ASCII && !rc; c++)
        p->ascii_ids[c] = find_text(p, &(char){(char)c}, 1);
    return rc;
}

/* <0x00> to <0xFF> are bytes, whatever type the file gives them. */
static void load_bytes(struct spm *p)
{
    struct vocabulary *v = &p->vocabulary;
    for (unsigned byte = 0; byte < N_BYTES; byte++)
        p->byte_ids[byte] = TOKEN_NONE;
    for (uint32_t i = 0; i < v->n; i++) {
        size_t n;
        const char *s = vocabulary_token(v, (int32_t)i, &n);
        unsigned byte;
        char copy[7] = "", again[7];
        if (n != 6 || memcmp(s, "<0x", 3) != 0)
            continue;
        memcpy(copy, s, n);
        if (sscanf(copy, "<0x%2X>", &byte) != 1)
            continue;
        snprintf(again, sizeof again, "<0x%02X>", byte & 0xff);
        if (memcmp(copy, again, n) == 0 && p->byte_ids[byte] == TOKEN_NONE) {
            p->byte_ids[byte] = (int32_t)i;
            v->type[i] = TOKEN_BYTE;
        }
    }
}

/* --- merges --- */

/* Higher scores have lower ranks; equal ones the same. */
static uint32_t rank_of(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 is 0 */
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

/* Every way to make token `to` of two. */
static int add_ways(struct spm *p, int32_t to, uint32_t rank, struct err *e)
{
    size_t n;
    uint32_t c;
    const char *s = vocabulary_token(&p->vocabulary, to, &n);
    int rc = 0;
    for (size_t cut = utf8_decode(s, n, &c); cut < n && !rc;
         cut += utf8_decode(s + cut, n - cut, &c)) {
        int32_t left = find_text(p, s, cut);
        if (left < 0)
            continue;
        int32_t right = find_text(p, s + cut, n - cut);
        if (right >= 0)
            rc = bpe_table_add(&p->merges, left, right, rank, to, e);
    }
    return rc;
}

static int merges_of_scores(struct spm *p, const struct gguf *g, struct err *e)
{
    const struct vocabulary *v = &p->vocabulary;
    struct gguf_array a;
    float score;
    int rc = gguf_get_array(g, "tokenizer.ggml.scores", &a, e);
    if (rc)
        return rc;
    if (a.type != GGUF_F32 || a.left != v->n)
        return err_set(e, KITH_EFORMAT,
                       "tokenizer.ggml.scores must be an array of %u floats, one a token",
                       v->n);
    for (uint32_t i = 0; gguf_array_f32(&a, &score) && !rc; i++) {
        size_t n;
        const char *s = vocabulary_token(v, (int32_t)i, &n);
        if (!isfinite(score))
            return err_set(e, KITH_EFORMAT, "tokenizer.ggml.scores: number %u is not finite",
                           i);
        /* A user-defined token is taken out before, and never made. */
        if (v->type[i] == TOKEN_NORMAL && n > 0 && utf8_valid_prefix(s, n) == n)
            rc = add_ways(p, (int32_t)i, rank_of(score), e);
    }
    return rc;
}

/* "A B": the pair becomes the token AB. room: bytes of the longest merge. */
static int add_merge(struct spm *p, uint32_t rank, const char *s, size_t n, char *room,
                     struct err *e)
{
    const char *space = n > 1 ? memchr(s + 1, ' ', n - 1) : NULL;
    size_t n_left = space ? (size_t)(space - s) : n, n_right = space ? n - n_left - 1 : 0;
    int32_t left = -1, right = -1, to = -1;
    if (n_right) {
        memcpy(room, s, n_left);
        memcpy(room + n_left, space + 1, n_right);
        left = token_index_find(&p->pieces, s, n_left);
        right = token_index_find(&p->pieces, space + 1, n_right);
        to = token_index_find(&p->pieces, room, n_left + n_right);
    }
    if (left < 0 || right < 0 || to < 0)
        return err_set(e, KITH_EFORMAT,
                       "tokenizer.ggml.merges: number %u, '%.*s', is not two tokens that make "
                       "a third",
                       rank, n > 64 ? 64 : (int)n, s);
    /* What ends in a control token is never merged, so that no text becomes one. */
    const struct vocabulary *v = &p->vocabulary;
    if (!vocabulary_is_text(v, left) || !vocabulary_is_text(v, right) ||
        !vocabulary_is_text(v, to))
        return 0;
    return bpe_table_add(&p->merges, left, right, rank, to, e);
}

static int merges_of_file(struct spm *p, struct gguf_array merges, struct err *e)
{
    if (merges.type != GGUF_STRING || merges.left >= BPE_NO_RANK)
        return err_set(e, KITH_EFORMAT, "tokenizer.ggml.merges must be an array of strings");
    size_t longest = 0, n;
    const char *s;
    for (struct gguf_array a = merges; gguf_array_string(&a, &s, &n);)
        longest = n > longest ? n : longest;
    char *room = mem_alloc(longest + 1);
    int rc = room ? 0 : err_set(e, KITH_ENOMEM, "out of memory for the merges");
    for (uint32_t rank = 0; !rc && gguf_array_string(&merges, &s, &n); rank++)
        rc = add_merge(p, rank, s, n, room, e);
    mem_free(room);
    return rc;
}

static int load_merges(struct spm *p, const struct gguf *g, struct err *e)
{
    struct gguf_array merges;
    int rc = bpe_table_init(&p->merges, e);
    if (rc)
        return rc;
    rc = gguf_get_array(g, "tokenizer.ggml.merges", &merges, e);
    if (!rc && merges.left > 0)
        return merges_of_file(p, merges, e);
    return rc && rc != KITH_ENOTFOUND ? rc : merges_of_scores(p, g, e);
}

/* --- joints --- */

static inline uint32_t joint_of(const struct spm *p, uint32_t a, uint32_t b)
{
    uint64_t key = (uint64_t)a << 21 | b;
    return (uint32_t)((key * 0x9e3779b97f4a7c15u) >> 32) & p->joint_mask;
}

static inline bool joins(const struct spm *p, uint32_t a, uint32_t b)
{
    uint32_t joint = joint_of(p, a, b);
    return p->joints[joint / 64] >> joint % 64 & 1;
}

static int load_joints(struct spm *p, struct err *e)
{
    const struct vocabulary *v = &p->vocabulary;
    uint32_t bits = MIN_JOINT_BITS;
    while (bits < MAX_JOINT_BITS && bits / 8 < v->at[v->n])
        bits *= 2;
    p->joint_mask = bits - 1;
    p->joints = mem_calloc(bits / 64, sizeof *p->joints);
    if (!p->joints)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", v->n);
    for (uint32_t i = 0; i < v->n; i++) {
        size_t n;
        uint32_t before, c;
        const char *s = vocabulary_token(v, (int32_t)i, &n);
        if (!vocabulary_is_text(v, (int32_t)i) || n == 0 || utf8_valid_prefix(s, n) != n)
            continue;
        for (size_t at = utf8_decode(s, n, &before); at < n; before = c) {
            at += utf8_decode(s + at, n - at, &c);
            uint32_t joint = joint_of(p, before, c);
            p->joints[joint / 64] |= (uint64_t)1 << joint % 64;
        }
    }
    return 0;
}

static int load(struct spm *p, const struct gguf *g, struct err *e)
{
    int rc;
    if (gguf_has(g, "tokenizer.ggml.precompiled_charsmap"))
        return err_set(e, KITH_EUNSUPPORTED,
                       "the tokenizer is 'llama' and has a precompiled_charsmap, which is "
                       "known here for 't5' only");
    if ((rc = vocabulary_load(&p->vocabulary, g, e)) ||
        (rc = vocabulary_mark_controls(&p->vocabulary, g, &p->unk, e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.add_space_prefix", true, &p->space_prefix,
                              e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.remove_extra_whitespaces", false,
                              &p->merge_spaces, e)))
        return rc;
    if (p->unk < 0)
        p->unk = 0; /* every SentencePiece model has one, and first unless it says */
    p->vocabulary.type[p->unk] = TOKEN_UNKNOWN;
    load_bytes(p);
    if ((rc = load_pieces(p, e)) ||
        (rc = added_tokens_init(&p->added, &p->vocabulary, true, e)) ||
        (rc = load_joints(p, e)))
        return rc;
    return load_merges(p, g, e);
}

int spm_new(struct spm **out, const struct gguf *g, struct err *e)
{
    struct spm *p = mem_calloc(1, sizeof *p);
    if (!p)
        return err_set(e, KITH_ENOMEM, "out of memory for the tokenizer");
    int rc = load(p, g, e);
    if (rc) {
        spm_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

void spm_free(struct spm *p)
{
    if (!p)
        return;
    vocabulary_deinit(&p->vocabulary);
    added_tokens_deinit(&p->added);
    bpe_table_deinit(&p->merges);
    token_index_deinit(&p->pieces);
    mem_free(p->joints);
    mem_free(p);
}

/* --- encoding --- */

struct encoder {
    const struct spm *p;
    int32_t *ids;
    size_t max_ids, n_ids;
    bool after_unk;  /* the last token of this text is unknown */
    uint32_t before; /* the last character of the stretch */
    size_t n, capacity;
    int32_t *word; /* the tokens of the stretch: own_word or heap_word */
    int32_t *heap_word;
    struct bpe_scratch scratch;
    int32_t own_word[OWN_WORD];
};

static void emit(struct encoder *x, int32_t id)
{
    bool unknown = id == x->p->unk;
    if (unknown && x->after_unk)
        return;
    x->after_unk = unknown;
    if (x->n_ids < x->max_ids)
        x->ids[x->n_ids] = id;
    x->n_ids++;
}

static int end_stretch(struct encoder *x, struct err *e)
{
    int rc = bpe_merge(&x->p->merges, &x->scratch, x->word, &x->n, e);
    for (size_t i = 0; i < x->n && !rc; i++)
        emit(x, x->word[i]);
    x->n = 0;
    return rc;
}

static int grow(struct encoder *x, struct err *e)
{
    size_t capacity = x->capacity * 2;
    int32_t *word = mem_realloc_n(x->heap_word, capacity, sizeof *word);
    if (!word)
        return err_set(e, KITH_ENOMEM, "out of memory for a word of more than %zu characters",
                       x->capacity);
    if (!x->heap_word)
        memcpy(word, x->own_word, x->n * sizeof *word);
    x->word = x->heap_word = word;
    x->capacity = capacity;
    return 0;
}

/* The tokens of one character: itself, its bytes, or unknown. */
static size_t first_tokens(const struct spm *p, const char *s, size_t n,
                           int32_t out[CHAR_TOKENS])
{
    out[0] =
        (unsigned char)s[0] < N_ASCII ? p->ascii_ids[(unsigned char)s[0]] : find_text(p, s, n);
    if (out[0] >= 0)
        return 1;
    for (size_t i = 0; i < n; i++) {
        out[i] = p->byte_ids[(unsigned char)s[i]];
        if (out[i] == TOKEN_NONE) {
            out[0] = p->unk;
            return 1;
        }
    }
    return n;
}

static int put(struct encoder *x, const char *s, size_t n, uint32_t c, struct err *e)
{
    int rc = 0;
    if (x->n && !joins(x->p, x->before, c))
        rc = end_stretch(x, e);
    if (!rc && x->n + CHAR_TOKENS > x->capacity)
        rc = grow(x, e);
    if (rc)
        return rc;
    x->n += first_tokens(x->p, s, n, x->word + x->n);
    x->before = c;
    return 0;
}

static int put_space(struct encoder *x, struct err *e)
{
    return put(x, SPACE, sizeof SPACE - 1, SPACE_POINT, e);
}

/* What lies between two user-defined tokens. */
static int put_plain(struct encoder *x, const char *s, size_t n, struct err *e)
{
    const bool merge = x->p->merge_spaces;
    bool gap = false, started = false;
    int rc = 0;
    x->after_unk = false;
    for (size_t i = 0; i < n && !rc;) {
        uint32_t c;
        size_t length = utf8_decode(s + i, n - i, &c);
        if (merge && c == ' ') {
            gap = started;
            i++;
            continue;
        }
        if (gap || (!started && x->p->space_prefix))
            rc = put_space(x, e);
        started = true;
        gap = false;
        if (!rc)
            rc = c == ' ' ? put_space(x, e) : put(x, s + i, length, c, e);
        i += length;
    }
    return rc ? rc : end_stretch(x, e);
}

int spm_encode(const struct spm *p, const char *text, size_t n_bytes, int32_t *ids,
               size_t max_ids, size_t *n_ids, struct err *e)
{
    size_t valid = utf8_valid_prefix(text, n_bytes);
    if (valid != n_bytes)
        return err_set(e, KITH_EINVAL, "not UTF-8: the byte at offset %zu breaks the rules",
                       valid);
    struct encoder x;
    struct added_match m;
    int rc = 0;
    memset(&x, 0, offsetof(struct encoder, own_word));
    x.p = p;
    x.ids = ids;
    x.max_ids = max_ids;
    x.word = x.own_word;
    x.capacity = OWN_WORD;
    while (!rc && added_tokens_find(&p->added, text, n_bytes, &m)) {
        rc = put_plain(&x, text, m.at, e);
        emit(&x, m.id);
        text += m.at + m.length;
        n_bytes -= m.at + m.length;
    }
    if (!rc)
        rc = put_plain(&x, text, n_bytes, e);
    bpe_scratch_deinit(&x.scratch);
    mem_free(x.heap_word);
    *n_ids = rc ? 0 : x.n_ids;
    return rc;
}

const struct vocabulary *spm_vocabulary(const struct spm *p)
{
    return &p->vocabulary;
}

int32_t spm_unk(const struct spm *p)
{
    return p->unk;
}
