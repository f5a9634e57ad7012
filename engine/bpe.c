/* The file writes bytes as printable characters: those of Latin-1 that print stand for
 * themselves, the other 68 for U+0100 and on. That is undone once, at load: `raw` has each
 * token's true bytes, so that a word of the text is looked up as it stands.
 *
 *   file   U+0120 h e l l o        raw   ' ' h e l l o
 *
 * A merge is a pair of ids (engine/bpe_merge.h), so a word's texts are never put together. */

#include "engine/bpe.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/added_tokens.h"
#include "engine/bpe_merge.h"
#include "engine/gguf.h"
#include "engine/nfc.h"
#include "engine/pretokenizer.h"
#include "engine/token_index.h"
#include "engine/vocabulary.h"

enum { N_BYTES = 256, FIRST_MOVED = 0x100, LAST_MOVED = 0x143, OWN_WORD = 256 };

struct bpe {
    struct vocabulary vocabulary;
    struct added_tokens added;
    struct bpe_table merges;
    const struct pretokenizer *pre;
    char *raw;      /* all tokens' true bytes */
    size_t *raw_at; /* n + 1 offsets; a token that is no bytes is empty */
    struct token_index words;
    int32_t byte_ids[N_BYTES];
    int32_t unk;
    bool nfc, ignore_merges, space_prefix;
};

/* --- loading --- */

static bool prints(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* The byte that a character stands for; N_BYTES: none. */
static void fill_byte_of(uint16_t byte_of[LAST_MOVED + 1])
{
    unsigned moved = FIRST_MOVED;
    for (unsigned c = 0; c <= LAST_MOVED; c++)
        byte_of[c] = N_BYTES;
    for (unsigned byte = 0; byte < N_BYTES; byte++)
        byte_of[prints(byte) ? byte : moved++] = (uint16_t)byte;
}

/* The bytes behind the characters, or 0 where one stands for none. out has room for n. */
static size_t unmap(const uint16_t *byte_of, const char *s, size_t n, char *out)
{
    size_t length = 0;
    uint32_t c;
    if (utf8_valid_prefix(s, n) != n)
        return 0;
    for (size_t i = 0; i < n;) {
        i += utf8_decode(s + i, n - i, &c);
        if (c > LAST_MOVED || byte_of[c] == N_BYTES)
            return 0;
        out[length++] = (char)byte_of[c];
    }
    return length;
}

static int load_raw(struct bpe *b, const uint16_t *byte_of, struct err *e)
{
    const struct vocabulary *v = &b->vocabulary;
    b->raw = mem_alloc(v->at[v->n] + 1);
    b->raw_at = mem_alloc_n((size_t)v->n + 1, sizeof *b->raw_at);
    if (!b->raw || !b->raw_at)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", v->n);
    size_t at = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        size_t n;
        const char *s = vocabulary_token(v, (int32_t)i, &n);
        b->raw_at[i] = at;
        at += unmap(byte_of, s, n, b->raw + at);
    }
    b->raw_at[v->n] = at;
    int rc = token_index_init(&b->words, b->raw, b->raw_at, v->n, e);
    /* Text tokens first, so that none is hidden by a control token of the same letters. */
    for (int text = 1; text >= 0 && !rc; text--)
        for (uint32_t i = 0; i < v->n; i++)
            if (vocabulary_is_text(v, (int32_t)i) == (text == 1))
                token_index_add(&b->words, i);
    return rc;
}

/* Every byte that UTF-8 has must have a token, unless there is one for what is not known. */
static int load_bytes(struct bpe *b, struct err *e)
{
    for (unsigned byte = 0; byte < N_BYTES; byte++) {
        char c = (char)byte;
        int32_t id = token_index_find(&b->words, &c, 1);
        bool known = id >= 0 && vocabulary_is_text(&b->vocabulary, id);
        bool needed = byte < 0xf5 && byte != 0xc0 && byte != 0xc1;
        b->byte_ids[byte] = known ? id : b->unk;
        if (!known && needed && b->unk < 0)
            return err_set(e, KITH_EFORMAT,
                           "tokenizer.ggml.tokens has no token for the byte 0x%02x, and there "
                           "is no unknown_token_id",
                           byte);
    }
    return 0;
}

/* "A B": the pair becomes the token AB. room: bytes of the longest merge. */
static int add_merge(struct bpe *b, const uint16_t *byte_of, uint32_t rank, const char *s,
                     size_t n, char *room, struct err *e)
{
    const char *space = n > 1 ? memchr(s + 1, ' ', n - 1) : NULL;
    size_t n_left = space ? (size_t)(space - s) : n, n_right = space ? n - n_left - 1 : 0;
    size_t left_bytes = unmap(byte_of, s, n_left, room), right_bytes = 0;
    if (left_bytes && n_right)
        right_bytes = unmap(byte_of, space + 1, n_right, room + left_bytes);
    int32_t left = -1, right = -1, to = -1;
    if (left_bytes && right_bytes) {
        left = token_index_find(&b->words, room, left_bytes);
        right = token_index_find(&b->words, room + left_bytes, right_bytes);
        to = token_index_find(&b->words, room, left_bytes + right_bytes);
    }
    if (left < 0 || right < 0 || to < 0)
        return err_set(e, KITH_EFORMAT,
                       "tokenizer.ggml.merges: number %u, '%.*s', is not two tokens that make "
                       "a third",
                       rank, n > 64 ? 64 : (int)n, s);
    /* What ends in a control token is never merged, so that no text becomes one. */
    const struct vocabulary *v = &b->vocabulary;
    if (!vocabulary_is_text(v, left) || !vocabulary_is_text(v, right) ||
        !vocabulary_is_text(v, to))
        return 0;
    return bpe_table_add(&b->merges, left, right, rank, to, e);
}

static int load_merges(struct bpe *b, const struct gguf *g, const uint16_t *byte_of,
                       struct err *e)
{
    struct gguf_array merges;
    int rc = gguf_get_array(g, "tokenizer.ggml.merges", &merges, e);
    if (rc)
        return rc;
    if (merges.type != GGUF_STRING || merges.left >= BPE_NO_RANK)
        return err_set(e, KITH_EFORMAT, "tokenizer.ggml.merges must be an array of strings");
    size_t longest = 0, n;
    const char *s;
    for (struct gguf_array a = merges; gguf_array_string(&a, &s, &n);)
        longest = n > longest ? n : longest;
    char *room = mem_alloc(longest + 1);
    rc = room ? bpe_table_init(&b->merges, e)
              : err_set(e, KITH_ENOMEM, "out of memory for the merges");
    for (uint32_t rank = 0; !rc && gguf_array_string(&merges, &s, &n); rank++)
        rc = add_merge(b, byte_of, rank, s, n, room, e);
    mem_free(room);
    return rc;
}

static int refuse_pre(const char *name, size_t n, struct err *e)
{
    char known[440] = "";
    size_t length = 0;
    for (size_t i = 0; pretokenizer_name(i) && length < sizeof known; i++)
        length += (size_t)snprintf(known + length, sizeof known - length, "%s%s", i ? ", " : "",
                                   pretokenizer_name(i));
    return err_set(e, KITH_EUNSUPPORTED, "the pre-tokenizer is '%.*s'; known here are %s",
                   n > 32 ? 32 : (int)n, name, known);
}

/* Files that do not say are as old as Llama 3, which is told by its first token. */
static int load_pre(struct bpe *b, const struct gguf *g, struct err *e)
{
    static const char llama[] = "<|begin_of_text|>";
    const char *name;
    size_t n;
    int rc = gguf_get_string(g, "tokenizer.ggml.pre", &name, &n, e);
    if (rc == KITH_ENOTFOUND) {
        for (uint32_t i = 0; i < b->vocabulary.n && !b->pre; i++) {
            const char *s = vocabulary_token(&b->vocabulary, (int32_t)i, &n);
            if (n == sizeof llama - 1 && memcmp(s, llama, n) == 0)
                b->pre = pretokenizer_find("llama-bpe", 9);
        }
        return b->pre ? 0 : rc;
    }
    if (rc)
        return rc;
    b->pre = pretokenizer_find(name, n);
    return b->pre ? 0 : refuse_pre(name, n, e);
}

static int load(struct bpe *b, const struct gguf *g, struct err *e)
{
    uint16_t byte_of[LAST_MOVED + 1];
    int rc;
    fill_byte_of(byte_of);
    if ((rc = vocabulary_load(&b->vocabulary, g, e)) ||
        (rc = vocabulary_mark_controls(&b->vocabulary, g, &b->unk, e)) ||
        (rc = load_pre(b, g, e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.normalizer.nfc", b->pre->nfc, &b->nfc, e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.ignore_merges", b->pre->ignore_merges,
                              &b->ignore_merges, e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.add_space_prefix", false, &b->space_prefix,
                              e)) ||
        (rc = load_raw(b, byte_of, e)) || (rc = load_bytes(b, e)) ||
        (rc = load_merges(b, g, byte_of, e)))
        return rc;
    return added_tokens_init(&b->added, &b->vocabulary, false, e);
}

int bpe_new(struct bpe **out, const struct gguf *g, struct err *e)
{
    struct bpe *b = mem_calloc(1, sizeof *b);
    if (!b)
        return err_set(e, KITH_ENOMEM, "out of memory for the tokenizer");
    int rc = load(b, g, e);
    if (rc) {
        bpe_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

void bpe_free(struct bpe *b)
{
    if (!b)
        return;
    vocabulary_deinit(&b->vocabulary);
    added_tokens_deinit(&b->added);
    bpe_table_deinit(&b->merges);
    token_index_deinit(&b->words);
    mem_free(b->raw);
    mem_free(b->raw_at);
    mem_free(b);
}

/* --- encoding --- */

struct encoder {
    const struct bpe *b;
    int32_t *ids;
    size_t max_ids, n_ids;
    struct bpe_scratch scratch;
    int32_t *heap_word; /* for words that own_word does not hold */
    size_t heap_capacity;
    int32_t own_word[OWN_WORD];
};

static void emit(struct encoder *x, int32_t id)
{
    if (x->n_ids < x->max_ids)
        x->ids[x->n_ids] = id;
    x->n_ids++;
}

/* Room for the tokens of a word; NULL: out of memory. */
static int32_t *word_room(struct encoder *x, size_t n)
{
    if (n <= OWN_WORD)
        return x->own_word;
    if (n > x->heap_capacity) {
        mem_free(x->heap_word);
        x->heap_word = mem_alloc_n(n, sizeof *x->heap_word);
        x->heap_capacity = x->heap_word ? n : 0;
    }
    return x->heap_word;
}

static int put_word(struct encoder *x, const char *s, size_t n, struct err *e)
{
    const struct bpe *b = x->b;
    if (b->ignore_merges) {
        int32_t id = token_index_find(&b->words, s, n);
        if (id >= 0 && vocabulary_is_text(&b->vocabulary, id)) {
            emit(x, id);
            return 0;
        }
    }
    int32_t *word = word_room(x, n);
    if (!word)
        return err_set(e, KITH_ENOMEM, "out of memory for a word of %zu bytes", n);
    for (size_t i = 0; i < n; i++)
        word[i] = b->byte_ids[(unsigned char)s[i]];
    int rc = bpe_merge(&b->merges, &x->scratch, word, &n, e);
    for (size_t i = 0; i < n && !rc; i++)
        emit(x, word[i]);
    return rc;
}

static int put_words(struct encoder *x, const char *s, size_t n, struct err *e)
{
    struct pretokens words = pretokens_of(x->b->pre, s, n);
    const char *word;
    size_t n_word;
    int rc = 0;
    while (!rc && pretokens_next(&words, &word, &n_word))
        rc = put_word(x, word, n_word, e);
    return rc;
}

/* What lies between two user-defined tokens. */
static int put_plain(struct encoder *x, const char *s, size_t n, struct err *e)
{
    const struct bpe *b = x->b;
    bool prefix = b->space_prefix && n > 0 && s[0] != ' ';
    bool composed = !b->nfc || nfc_prefix(s, n) == n;
    if (composed && !prefix)
        return put_words(x, s, n, e);
    struct buf copy = {0};
    if (prefix)
        buf_u8(&copy, ' ');
    if (composed)
        buf_append(&copy, s, n);
    else
        nfc_normalise(&copy, s, n);
    int rc = copy.failed ? err_set(e, KITH_ENOMEM, "out of memory for a text of %zu bytes", n)
                         : put_words(x, copy.data, copy.len, e);
    buf_deinit(&copy);
    return rc;
}

int bpe_encode(const struct bpe *b, const char *text, size_t n_bytes, int32_t *ids,
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
    x.b = b;
    x.ids = ids;
    x.max_ids = max_ids;
    while (!rc && added_tokens_find(&b->added, text, n_bytes, &m)) {
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

const struct vocabulary *bpe_vocabulary(const struct bpe *b)
{
    return &b->vocabulary;
}

const struct pretokenizer *bpe_pretokenizer(const struct bpe *b)
{
    return b->pre;
}

int32_t bpe_unk(const struct bpe *b)
{
    return b->unk;
}
