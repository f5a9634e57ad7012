/* One pass, no allocation, no normalised copy of the text.
 *
 * Characters run through a small machine: classify, decompose, drop marks, lower-case, append
 * to the word. The word has a fixed place, since one of more than 100 characters is [UNK]
 * whatever it says; so a text of any length needs no memory, and a hostile one cannot make a
 * step slow. ASCII goes by a table of 128 entries; only other bytes are decoded.
 *
 * NFD also orders marks by their combining class. Marks of category Mn are dropped, so the
 * order matters only for the few others with a class (musical stems, some Indic signs, marks
 * younger than the categories). They wait in `pending` until a character of class 0 comes.
 *
 * The vocabulary is one piece_trie with two roots, one for pieces that begin a word and one for
 * those that go on, so the longest piece at a place is found in one walk. Rejected: a hash of
 * every candidate substring, as the reference does, which is quadratic in the length of the
 * word.
 *
 *   root 0 --'t'--> 7 --'o'--> 8 (id of "to")
 *   root 1 --'i'--> 9 --'n'--> ... --'g'--> (id of "##ing") */

#include "engine/wordpiece.h"

#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "engine/gguf.h"
#include "engine/piece_trie.h"
#include "engine/unicode.h"
#include "engine/vocabulary.h"

enum { WORD_MAX_CHARS = 100 };
enum { ROOT_INITIAL, ROOT_CONTINUATION, N_ROOTS };

struct wordpiece {
    struct piece_trie trie;
    struct vocabulary vocabulary;
    int32_t unk, cls, sep;
    bool lower, strip_accents;
};

/* --- loading --- */

static bool begins_word(const char *s, size_t n)
{
    return n > 3 && memcmp(s, "\xe2\x96\x81", 3) == 0;
}

static int load_trie(struct wordpiece *w, struct err *e)
{
    int rc = piece_trie_init(&w->trie, N_ROOTS, e);
    for (uint32_t i = 0; i < w->vocabulary.n && !rc; i++) {
        size_t n;
        const char *s = vocabulary_token(&w->vocabulary, (int32_t)i, &n);
        if (w->vocabulary.type[i] == TOKEN_CONTROL || n == 0 || utf8_valid_prefix(s, n) != n)
            continue;
        uint32_t root = begins_word(s, n) ? ROOT_INITIAL : ROOT_CONTINUATION;
        size_t skip = root == ROOT_INITIAL ? 3 : 0;
        rc = piece_trie_add(&w->trie, root, s + skip, n - skip, (int32_t)i, e);
    }
    return rc;
}

static int load_settings(struct wordpiece *w, const struct gguf *g, struct err *e)
{
    const struct vocabulary *v = &w->vocabulary;
    const char *cls_key = gguf_has(g, "tokenizer.ggml.cls_token_id")
                              ? "tokenizer.ggml.cls_token_id"
                              : "tokenizer.ggml.bos_token_id";
    int rc = vocabulary_id(v, g, "tokenizer.ggml.unknown_token_id", 100, &w->unk, e);
    if (!rc)
        rc = vocabulary_id(v, g, cls_key, 101, &w->cls, e);
    /* The misspelling is the format's own. */
    if (!rc)
        rc = vocabulary_id(v, g, "tokenizer.ggml.seperator_token_id", 102, &w->sep, e);
    if (!rc)
        rc = vocabulary_flag(g, "tokenizer.ggml.normalizer.lowercase", true, &w->lower, e);
    if (!rc)
        rc = vocabulary_flag(g, "tokenizer.ggml.normalizer.strip_accents", w->lower,
                             &w->strip_accents, e);
    return rc;
}

static int load(struct wordpiece *w, const struct gguf *g, struct err *e)
{
    int rc = vocabulary_load(&w->vocabulary, g, e);
    if (!rc)
        rc = load_settings(w, g, e);
    if (!rc)
        rc = load_trie(w, e);
    return rc;
}

int wordpiece_new(struct wordpiece **out, const struct gguf *g, struct err *e)
{
    struct wordpiece *w = mem_calloc(1, sizeof *w);
    if (!w)
        return err_set(e, KITH_ENOMEM, "out of memory for the tokenizer");
    int rc = load(w, g, e);
    if (rc) {
        wordpiece_free(w);
        return rc;
    }
    *out = w;
    return 0;
}

void wordpiece_free(struct wordpiece *w)
{
    if (!w)
        return;
    piece_trie_deinit(&w->trie);
    vocabulary_deinit(&w->vocabulary);
    mem_free(w);
}

/* --- encoding --- */

struct encoder {
    const struct wordpiece *w;
    int32_t *ids;
    size_t max_ids, n_ids;
    size_t word_bytes;
    unsigned word_chars; /* may pass WORD_MAX_CHARS, then the word is no longer kept */
    unsigned n_pending;
    uint32_t pending[WORD_MAX_CHARS];
    char word[WORD_MAX_CHARS * 4];
};

static void emit(struct encoder *x, int32_t id)
{
    if (x->n_ids < x->max_ids)
        x->ids[x->n_ids] = id;
    x->n_ids++;
}

/* Cuts the word into pieces, or gives [UNK] for the whole of it. */
static void end_word(struct encoder *x)
{
    if (x->word_chars == 0)
        return;
    size_t n = x->word_bytes, first = x->n_ids;
    bool cut = x->word_chars <= WORD_MAX_CHARS;
    for (size_t at = 0; cut && at < n;) {
        uint32_t node = at == 0 ? ROOT_INITIAL : ROOT_CONTINUATION;
        int32_t id = PIECE_NONE;
        size_t end = at;
        for (size_t i = at; i < n; i++) {
            node = piece_trie_child(&x->w->trie, node, (unsigned char)x->word[i]);
            if (!node)
                break;
            if (x->w->trie.node_id[node] != PIECE_NONE) {
                id = x->w->trie.node_id[node];
                end = i + 1;
            }
        }
        cut = id != PIECE_NONE;
        if (cut)
            emit(x, id);
        at = end;
    }
    if (!cut) {
        x->n_ids = first;
        emit(x, x->w->unk);
    }
    x->word_chars = 0;
    x->word_bytes = 0;
}

static void append(struct encoder *x, uint32_t c)
{
    if (x->word_chars++ < WORD_MAX_CHARS)
        x->word_bytes += utf8_encode(c, x->word + x->word_bytes);
    else
        x->word_chars = WORD_MAX_CHARS + 1;
}

static void append_cased(struct encoder *x, uint32_t c)
{
    if (!x->w->lower) {
        append(x, c);
    } else if (c == 0x130) { /* the one capital whose lower case is two characters */
        append(x, 'i');
        append(x, 0x307);
    } else {
        append(x, unicode_lower(c));
    }
}

/* Puts the waiting marks into the word in the order of their class; equal ones keep theirs.
 * They are of few classes, so a pass for each is quick. */
static void flush_pending(struct encoder *x)
{
    unsigned done = 0, class = 0;
    while (done < x->n_pending) {
        unsigned next = 256;
        for (unsigned i = 0; i < x->n_pending; i++) {
            unsigned order = unicode_combining_class(x->pending[i]);
            if (order > class && order < next)
                next = order;
        }
        class = next;
        for (unsigned i = 0; i < x->n_pending; i++)
            if (unicode_combining_class(x->pending[i]) == class) {
                append_cased(x, x->pending[i]);
                done++;
            }
    }
    x->n_pending = 0;
}

/* One character of the decomposed text that is neither space nor dropped. */
static void put_decomposed(struct encoder *x, uint32_t c)
{
    enum unicode_class class = unicode_class_of(c);
    uint8_t order = unicode_combining_class(c);
    if (order == 0)
        flush_pending(x);
    if (class == UNICODE_MARK)
        return;
    if (order != 0) {
        /* More than a word can hold: it is [UNK] already, so the order no longer matters. */
        if (x->n_pending == WORD_MAX_CHARS)
            flush_pending(x);
        x->pending[x->n_pending++] = c;
    } else if (class == UNICODE_PUNCTUATION) {
        end_word(x);
        append(x, c);
        end_word(x);
    } else {
        append_cased(x, c);
    }
}

static void put_wide(struct encoder *x, uint32_t c)
{
    enum unicode_class class = unicode_class_of(c);
    if (class == UNICODE_DROPPED)
        return;
    if (class == UNICODE_SPACE || class == UNICODE_CJK) {
        flush_pending(x);
        end_word(x);
        if (class == UNICODE_SPACE)
            return;
    }
    if (x->w->strip_accents) {
        uint32_t parts[UNICODE_DECOMPOSED_MAX];
        unsigned n = unicode_decompose(c, parts);
        for (unsigned i = 0; i < n; i++)
            put_decomposed(x, parts[i]);
    } else if (class == UNICODE_PUNCTUATION) {
        end_word(x);
        append(x, c);
        end_word(x);
    } else {
        append_cased(x, c);
    }
    if (class == UNICODE_CJK) {
        flush_pending(x);
        end_word(x);
    }
}

enum ascii_kind { ASCII_WORD, ASCII_SPACE, ASCII_SYMBOL, ASCII_DROPPED };

static enum ascii_kind ascii_kind_of(unsigned char c)
{
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r')
        return ASCII_SPACE;
    if (c < ' ' || c == 0x7f)
        return ASCII_DROPPED;
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return ASCII_WORD;
    return ASCII_SYMBOL;
}

static void put_ascii(struct encoder *x, unsigned char c)
{
    enum ascii_kind kind = ascii_kind_of(c);
    if (kind == ASCII_DROPPED)
        return;
    if (x->n_pending)
        flush_pending(x);
    if (kind == ASCII_WORD) {
        if (x->word_chars < WORD_MAX_CHARS) {
            bool capital = x->w->lower && c >= 'A' && c <= 'Z';
            x->word[x->word_bytes++] = (char)(capital ? c | 0x20 : c);
            x->word_chars++;
        } else {
            x->word_chars = WORD_MAX_CHARS + 1;
        }
        return;
    }
    end_word(x);
    if (kind == ASCII_SYMBOL) {
        x->word[0] = (char)c;
        x->word_bytes = x->word_chars = 1;
        end_word(x);
    }
}

int wordpiece_encode(const struct wordpiece *w, const char *text, size_t n_bytes, int32_t *ids,
                     size_t max_ids, size_t *n_ids, struct err *e)
{
    size_t valid = utf8_valid_prefix(text, n_bytes);
    if (valid != n_bytes)
        return err_set(e, KITH_EINVAL, "not UTF-8: the byte at offset %zu breaks the rules",
                       valid);
    struct encoder x;
    x.w = w;
    x.ids = ids;
    x.max_ids = max_ids;
    x.n_ids = x.word_bytes = x.word_chars = x.n_pending = 0;
    for (size_t i = 0; i < n_bytes;) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x80) {
            put_ascii(&x, c);
            i++;
        } else {
            uint32_t wide;
            i += utf8_decode(text + i, n_bytes - i, &wide);
            put_wide(&x, wide);
        }
    }
    flush_pending(&x);
    end_word(&x);
    *n_ids = x.n_ids;
    return 0;
}

const struct vocabulary *wordpiece_vocabulary(const struct wordpiece *w)
{
    return &w->vocabulary;
}

int32_t wordpiece_cls(const struct wordpiece *w)
{
    return w->cls;
}

int32_t wordpiece_sep(const struct wordpiece *w)
{
    return w->sep;
}

int32_t wordpiece_unk(const struct wordpiece *w)
{
    return w->unk;
}
