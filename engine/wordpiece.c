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
 * The vocabulary is one trie with two roots, one for pieces that begin a word and one for those
 * that go on; an edge is a slot of one open-addressing table keyed by (node, byte), so the
 * longest piece at a place is found in one walk of as many probes as it has bytes. Rejected: a
 * hash of every candidate substring, as the reference does, which is quadratic in the length of
 * the word.
 *
 *   node 0 ──'t'──► 7 ──'o'──► 8 (id of "to")      key = node << 8 | byte
 *   node 1 ──'i'──► 9 ──'n'──► … ──'g'──► (id of "##ing") */

#include "engine/wordpiece.h"

#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/gguf.h"
#include "engine/unicode.h"

enum {
    WORD_MAX_CHARS = 100,
    ROOT_INITIAL = 0,
    ROOT_CONTINUATION = 1,
    MAX_NODES = 1 << 23, /* so that node << 8 | byte fits 31 bits */
    MAX_VOCAB = 1 << 22,
    NO_ID = -1,
    TOKEN_CONTROL = 3
};

struct edge {
    uint32_t key;
    uint32_t child; /* 0: the slot is empty, for no edge leads to a root */
};

struct wordpiece {
    struct edge *edges;
    uint32_t edge_mask; /* slots - 1 */
    uint32_t n_nodes, nodes_capacity;
    int32_t *node_id; /* the token that ends at the node, or NO_ID */
    char *text;       /* all tokens' bytes */
    size_t *text_at;  /* n_vocab + 1 offsets */
    uint32_t n_vocab;
    int32_t unk, cls, sep;
    bool lower, strip_accents;
};

/* --- the trie --- */

static uint32_t slot_of(uint32_t key, uint32_t mask)
{
    return (key * 2654435769u >> 7) & mask;
}

static uint32_t trie_child(const struct wordpiece *w, uint32_t node, unsigned char byte)
{
    uint32_t key = node << 8 | byte;
    for (uint32_t s = slot_of(key, w->edge_mask);; s = (s + 1) & w->edge_mask) {
        const struct edge *edge = &w->edges[s];
        if (edge->key == key || edge->child == 0)
            return edge->child;
    }
}

static void trie_put(struct edge *edges, uint32_t mask, uint32_t key, uint32_t child)
{
    uint32_t s = slot_of(key, mask);
    while (edges[s].child != 0)
        s = (s + 1) & mask;
    edges[s] = (struct edge){.key = key, .child = child};
}

/* Room for one more node and its edge: at most a quarter of the slots are taken, since a miss
 * ends the walk of every piece. */
static int trie_grow(struct wordpiece *w)
{
    if (w->n_nodes == w->nodes_capacity) {
        uint32_t capacity = w->nodes_capacity ? w->nodes_capacity * 2 : 1024;
        int32_t *ids = mem_realloc_n(w->node_id, capacity, sizeof *ids);
        if (!ids)
            return KITH_ENOMEM;
        w->node_id = ids;
        w->nodes_capacity = capacity;
    }
    if (w->edges && (uint64_t)w->n_nodes * 4 < (uint64_t)w->edge_mask + 1)
        return 0;
    uint32_t slots = w->edges ? (w->edge_mask + 1) * 2 : 4096;
    struct edge *edges = mem_calloc(slots, sizeof *edges);
    if (!edges)
        return KITH_ENOMEM;
    for (uint32_t s = 0; w->edges && s <= w->edge_mask; s++)
        if (w->edges[s].child)
            trie_put(edges, slots - 1, w->edges[s].key, w->edges[s].child);
    mem_free(w->edges);
    w->edges = edges;
    w->edge_mask = slots - 1;
    return 0;
}

static int trie_add(struct wordpiece *w, uint32_t root, const char *piece, size_t n, int32_t id,
                    struct err *e)
{
    uint32_t node = root;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)piece[i];
        uint32_t child = trie_child(w, node, byte);
        if (!child) {
            if (w->n_nodes >= MAX_NODES)
                return err_set(e, KITH_ELIMIT, "the vocabulary is too large");
            if (trie_grow(w))
                return err_set(e, KITH_ENOMEM, "out of memory for the vocabulary");
            child = w->n_nodes++;
            w->node_id[child] = NO_ID;
            trie_put(w->edges, w->edge_mask, node << 8 | byte, child);
        }
        node = child;
    }
    if (w->node_id[node] == NO_ID)
        w->node_id[node] = id;
    return 0;
}

/* --- loading --- */

static bool begins_word(const char *s, size_t n)
{
    return n > 3 && memcmp(s, "\xe2\x96\x81", 3) == 0;
}

/* Copies the token texts into one block, so that the model file need not stay open. */
static int load_texts(struct wordpiece *w, struct gguf_array tokens, struct err *e)
{
    w->n_vocab = (uint32_t)tokens.left;
    w->text_at = mem_alloc_n((size_t)w->n_vocab + 1, sizeof *w->text_at);
    size_t total = 0, n;
    const char *s;
    for (struct gguf_array a = tokens; gguf_array_string(&a, &s, &n);)
        total += n;
    w->text = mem_alloc(total);
    if (!w->text_at || !w->text)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", w->n_vocab);
    size_t at = 0;
    uint32_t i = 0;
    for (struct gguf_array a = tokens; gguf_array_string(&a, &s, &n); i++) {
        w->text_at[i] = at;
        if (n)
            memcpy(w->text + at, s, n);
        at += n;
    }
    w->text_at[i] = at;
    return 0;
}

static int load_trie(struct wordpiece *w, const struct gguf *g, struct err *e)
{
    struct gguf_array types = {0};
    if (gguf_has(g, "tokenizer.ggml.token_type")) {
        int rc = gguf_get_array(g, "tokenizer.ggml.token_type", &types, e);
        if (rc)
            return rc;
    }
    if (trie_grow(w))
        return err_set(e, KITH_ENOMEM, "out of memory for the vocabulary");
    w->n_nodes = 2;
    w->node_id[ROOT_INITIAL] = w->node_id[ROOT_CONTINUATION] = NO_ID;
    for (uint32_t i = 0; i < w->n_vocab; i++) {
        size_t n;
        const char *s = wordpiece_token(w, (int32_t)i, &n);
        int64_t type;
        bool control = gguf_array_int(&types, &type) && type == TOKEN_CONTROL;
        if (control || n == 0 || utf8_valid_prefix(s, n) != n)
            continue;
        uint32_t root = begins_word(s, n) ? ROOT_INITIAL : ROOT_CONTINUATION;
        size_t skip = root == ROOT_INITIAL ? 3 : 0;
        int rc = trie_add(w, root, s + skip, n - skip, (int32_t)i, e);
        if (rc)
            return rc;
    }
    return 0;
}

/* An id of the vocabulary from a key, with a default where the key is missing. */
static int load_id(const struct wordpiece *w, const struct gguf *g, const char *key,
                   uint64_t otherwise, int32_t *id, struct err *e)
{
    uint64_t v = otherwise;
    int rc = gguf_get_uint(g, key, &v, e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (v >= w->n_vocab)
        return err_set(e, KITH_EFORMAT,
                       "key '%s' is %llu, past the %u tokens of the vocabulary", key,
                       (unsigned long long)v, w->n_vocab);
    *id = (int32_t)v;
    return 0;
}

static int load_flag(const struct gguf *g, const char *key, bool otherwise, bool *v,
                     struct err *e)
{
    *v = otherwise;
    int rc = gguf_get_bool(g, key, v, e);
    return rc == KITH_ENOTFOUND ? 0 : rc;
}

static int load_settings(struct wordpiece *w, const struct gguf *g, struct err *e)
{
    const char *cls_key = gguf_has(g, "tokenizer.ggml.cls_token_id")
                              ? "tokenizer.ggml.cls_token_id"
                              : "tokenizer.ggml.bos_token_id";
    int rc = load_id(w, g, "tokenizer.ggml.unknown_token_id", 100, &w->unk, e);
    if (!rc)
        rc = load_id(w, g, cls_key, 101, &w->cls, e);
    /* The misspelling is the format's own. */
    if (!rc)
        rc = load_id(w, g, "tokenizer.ggml.seperator_token_id", 102, &w->sep, e);
    if (!rc)
        rc = load_flag(g, "tokenizer.ggml.normalizer.lowercase", true, &w->lower, e);
    if (!rc)
        rc = load_flag(g, "tokenizer.ggml.normalizer.strip_accents", w->lower,
                       &w->strip_accents, e);
    return rc;
}

static int load(struct wordpiece *w, const struct gguf *g, struct err *e)
{
    const char *model;
    size_t n;
    struct gguf_array tokens;
    int rc = gguf_get_string(g, "tokenizer.ggml.model", &model, &n, e);
    if (rc)
        return rc;
    if (n != 4 || memcmp(model, "bert", 4) != 0)
        return err_set(e, KITH_EUNSUPPORTED, "the tokenizer is '%.*s'; 'bert' is spoken here",
                       n > 64 ? 64 : (int)n, model);
    rc = gguf_get_array(g, "tokenizer.ggml.tokens", &tokens, e);
    if (rc)
        return rc;
    if (tokens.type != GGUF_STRING || tokens.left == 0 || tokens.left > MAX_VOCAB)
        return err_set(e, KITH_EFORMAT,
                       "tokenizer.ggml.tokens must be an array of 1 to %d strings", MAX_VOCAB);
    rc = load_texts(w, tokens, e);
    if (!rc)
        rc = load_settings(w, g, e);
    if (!rc)
        rc = load_trie(w, g, e);
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
    mem_free(w->edges);
    mem_free(w->node_id);
    mem_free(w->text);
    mem_free(w->text_at);
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
        int32_t id = NO_ID;
        size_t end = at;
        for (size_t i = at; i < n; i++) {
            node = trie_child(x->w, node, (unsigned char)x->word[i]);
            if (!node)
                break;
            if (x->w->node_id[node] != NO_ID) {
                id = x->w->node_id[node];
                end = i + 1;
            }
        }
        cut = id != NO_ID;
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

uint32_t wordpiece_n_vocab(const struct wordpiece *w)
{
    return w->n_vocab;
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

const char *wordpiece_token(const struct wordpiece *w, int32_t id, size_t *n)
{
    *n = w->text_at[id + 1] - w->text_at[id];
    return w->text + w->text_at[id];
}
