/* Characters run through a small machine: normalise, treat spaces, append to the word. The best
 * cut of a word is found by the forward walk of Viterbi: `places[i]` holds the best score of
 * all cuts that end at byte i, and the piece that ends it. From each start one walk down the
 * trie of pieces gives all that begin there.
 *
 *   word   U+2581 h e l l o          a place before each byte and behind the last
 *   place  0      3 4 5 6 7 8        places inside a character are never reached
 *
 * Where no piece reaches over a place, all cuts go through it, so what lies before it is
 * decided and can be given out. A text without spaces (Chinese, Thai, a line of "====") is one
 * word, and is given out at such places when the window is full; when there was none in a whole
 * window the window grows, since then the first byte may depend on the last. Scores go on
 * across a cut and are never set back within a word, so that every sum has the roundings that
 * it has in one piece.
 *
 * Two things that look odd are those of Hugging Face's `tokenizers`, which these models are
 * used through; SentencePiece itself does otherwise:
 *   - the charsmap is asked for grapheme clusters below six bytes, and the shortest key at the
 *     cluster's start replaces all of it, so that of two marks on a letter the second may fall;
 *     longer clusters go character by character;
 *   - every U+2581 begins a word of its own, so a piece with one inside never matches.
 *
 * Rejected: the window as one array for the whole text, which is the plain way, at 17 bytes a
 * byte of text; and giving up exactness in a long word, which would be a silent difference. */

#include "engine/unigram.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/charsmap.h"
#include "engine/gguf.h"
#include "engine/piece_trie.h"
#include "engine/unicode.h"
#include "engine/vocabulary.h"

enum { ROOT, N_ROOTS };
enum { WINDOW_BYTES = 2048, CLUSTER_BYTES = 6 };

#define UNKNOWN_PENALTY 10.0
#define SPACE "\xe2\x96\x81"

struct unigram {
    struct vocabulary vocabulary;
    struct piece_trie trie;
    double *scores; /* of the vocabulary */
    double unk_score;
    int32_t unk;
    uint32_t longest; /* piece, in bytes */
    struct charsmap *map;
    bool space_prefix, merge_spaces, outer_spaces;
    const char *ascii[128]; /* what a single character becomes; NULL: itself */
};

/* --- loading --- */

static int load_scores(struct unigram *u, const struct gguf *g, struct err *e)
{
    struct gguf_array a;
    int rc = gguf_get_array(g, "tokenizer.ggml.scores", &a, e);
    if (rc)
        return rc;
    if (a.type != GGUF_F32 || a.left != u->vocabulary.n)
        return err_set(e, KITH_EFORMAT,
                       "tokenizer.ggml.scores must be an array of %u floats, one a token",
                       u->vocabulary.n);
    u->scores = mem_alloc_n(u->vocabulary.n, sizeof *u->scores);
    if (!u->scores)
        return err_set(e, KITH_ENOMEM, "out of memory for %u scores", u->vocabulary.n);
    double least = INFINITY;
    float score;
    for (uint32_t i = 0; gguf_array_f32(&a, &score); i++) {
        if (!isfinite(score))
            return err_set(e, KITH_EFORMAT, "tokenizer.ggml.scores: number %u is not finite",
                           i);
        /* Converters give ids that no token has a score of their own invention. */
        if (u->vocabulary.type[i] != TOKEN_UNUSED && (double)score < least)
            least = (double)score;
        u->scores[i] = u->vocabulary.type[i] == TOKEN_USER_DEFINED ? 0 : (double)score;
    }
    u->unk_score = least - UNKNOWN_PENALTY;
    return 0;
}

/* One byte of a charsmap: a number, or a string of one character up to U+00FF. */
static bool next_byte(struct gguf_array *a, uint8_t *byte)
{
    if (a->type != GGUF_STRING) {
        int64_t v;
        bool good = gguf_array_int(a, &v) && v >= INT8_MIN && v <= UINT8_MAX;
        *byte = good ? (uint8_t)v : 0;
        return good;
    }
    const char *s;
    size_t n;
    uint32_t c = 0;
    if (!gguf_array_string(a, &s, &n) || n < 1 || n > 2)
        return false;
    if (n == 1)
        c = (uint8_t)s[0];
    else if (utf8_valid_prefix(s, n) != n || utf8_decode(s, n, &c) != n || c > UINT8_MAX)
        return false;
    *byte = (uint8_t)c;
    return true;
}

static int load_charsmap(struct unigram *u, const struct gguf *g, struct err *e)
{
    static const char key[] = "tokenizer.ggml.precompiled_charsmap";
    struct gguf_array a;
    if (!gguf_has(g, key))
        return 0;
    int rc = gguf_get_array(g, key, &a, e);
    if (rc)
        return rc;
    size_t n = (size_t)a.left;
    uint8_t *bytes = mem_alloc(n);
    if (!bytes)
        return err_set(e, KITH_ENOMEM, "out of memory for the charsmap");
    for (size_t i = 0; i < n && !rc; i++)
        if (!next_byte(&a, &bytes[i]))
            rc = err_set(e, KITH_EFORMAT, "%s: element %zu of %zu is no byte", key, i, n);
    if (!rc)
        rc = charsmap_new(&u->map, bytes, n, e);
    mem_free(bytes);
    for (int c = 0; u->map && c < 128; c++) {
        size_t unused;
        u->ascii[c] = charsmap_find(u->map, &(char){(char)c}, 1, &unused);
    }
    return rc;
}

/* Marks the tokens that text must never become, whatever type the file gives them. */
static int mark_controls(struct unigram *u, const struct gguf *g, struct err *e)
{
    static const char *const keys[] = {
        "tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.padding_token_id", "tokenizer.ggml.seperator_token_id",
        "tokenizer.ggml.cls_token_id",     "tokenizer.ggml.mask_token_id",
    };
    int rc = vocabulary_id(&u->vocabulary, g, "tokenizer.ggml.unknown_token_id", 2, &u->unk, e);
    if (!rc)
        u->vocabulary.type[u->unk] = TOKEN_UNKNOWN;
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !rc; i++) {
        int32_t id;
        rc = vocabulary_id(&u->vocabulary, g, keys[i], -1, &id, e);
        if (!rc && id >= 0 && id != u->unk)
            u->vocabulary.type[id] = TOKEN_CONTROL;
    }
    return rc;
}

static int load_trie(struct unigram *u, struct err *e)
{
    int rc = piece_trie_init(&u->trie, N_ROOTS, e);
    for (uint32_t i = 0; i < u->vocabulary.n && !rc; i++) {
        size_t n;
        const char *s = vocabulary_token(&u->vocabulary, (int32_t)i, &n);
        uint8_t type = u->vocabulary.type[i];
        if ((type != TOKEN_NORMAL && type != TOKEN_USER_DEFINED) || n == 0 ||
            utf8_valid_prefix(s, n) != n)
            continue;
        if (n > UNIGRAM_MAX_PIECE)
            return err_set(e, KITH_ELIMIT, "token %u has %zu bytes; at most %d are taken", i, n,
                           UNIGRAM_MAX_PIECE);
        u->longest = n > u->longest ? (uint32_t)n : u->longest;
        rc = piece_trie_add(&u->trie, ROOT, s, n, (int32_t)i, e);
    }
    return rc;
}

static int load(struct unigram *u, const struct gguf *g, struct err *e)
{
    int rc;
    if ((rc = vocabulary_load(&u->vocabulary, g, e)) || (rc = mark_controls(u, g, e)) ||
        (rc = load_scores(u, g, e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.add_space_prefix", true, &u->space_prefix,
                              e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.remove_extra_whitespaces", true,
                              &u->merge_spaces, e)) ||
        (rc = vocabulary_flag(g, "tokenizer.ggml.normalizer.outer_spaces", false,
                              &u->outer_spaces, e)) ||
        (rc = load_charsmap(u, g, e)))
        return rc;
    return load_trie(u, e);
}

int unigram_new(struct unigram **out, const struct gguf *g, struct err *e)
{
    struct unigram *u = mem_calloc(1, sizeof *u);
    if (!u)
        return err_set(e, KITH_ENOMEM, "out of memory for the tokenizer");
    int rc = load(u, g, e);
    if (rc) {
        unigram_free(u);
        return rc;
    }
    *out = u;
    return 0;
}

void unigram_free(struct unigram *u)
{
    if (!u)
        return;
    vocabulary_deinit(&u->vocabulary);
    piece_trie_deinit(&u->trie);
    charsmap_free(u->map);
    mem_free(u->scores);
    mem_free(u);
}

/* --- the word --- */

/* The best cut up to a byte: its score, the piece that ends it. */
struct place {
    double score;
    int32_t id;
    uint32_t length; /* of that piece; 0: not reached yet */
};

struct encoder {
    const struct unigram *u;
    int32_t *ids;
    size_t max_ids, n_ids;
    bool started;    /* something was seen that is not dropped */
    bool gap;        /* the next character begins a word */
    bool after_unk;  /* the last token of this word that was given out is unknown */
    bool failed;     /* out of memory */
    size_t n;        /* bytes of the word in the window */
    size_t next;     /* the start whose pieces come next */
    size_t reach;    /* the furthest place that a piece reached */
    size_t cut;      /* the last place that all cuts go through */
    size_t capacity; /* of word, and of places less one */
    char *word;
    struct place *places;
    char *heap_word; /* NULL while the window is the one below */
    struct place *heap_places;
    struct place own_places[WINDOW_BYTES + 1];
    char own_word[WINDOW_BYTES];
};

static size_t char_bytes(char lead)
{
    unsigned char c = (unsigned char)lead;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

static inline void offer(struct encoder *x, size_t from, size_t to, double score, int32_t id)
{
    struct place *p = &x->places[to];
    if (p->length && !(score > p->score))
        return;
    *p = (struct place){score, id, (uint32_t)(to - from)};
    x->reach = to > x->reach ? to : x->reach;
}

/* Offers every piece that begins at the start, and the unknown character where none is just it.
 */
static void offer_pieces(struct encoder *x, size_t start)
{
    const struct unigram *u = x->u;
    const double score = x->places[start].score;
    const size_t one = char_bytes(x->word[start]);
    bool known = false;
    uint32_t node = ROOT;
    for (size_t i = start; i < x->n; i++) {
        node = piece_trie_child(&u->trie, node, (unsigned char)x->word[i]);
        if (!node)
            break;
        int32_t id = u->trie.node_id[node];
        if (id == PIECE_NONE)
            continue;
        offer(x, start, i + 1, u->scores[id] + score, id);
        known |= i + 1 - start == one;
    }
    if (!known)
        offer(x, start, start + one, u->unk_score + score, u->unk);
}

/* Goes on as far as the pieces that begin at a start are sure to lie in the window; when the
 * word is whole, to its end. */
static void advance(struct encoder *x, bool whole)
{
    while (x->next < x->n && (whole || x->next + x->u->longest <= x->n)) {
        if (x->reach <= x->next)
            x->cut = x->next;
        offer_pieces(x, x->next);
        x->next += char_bytes(x->word[x->next]);
    }
    if (whole)
        x->cut = x->n;
}

static void emit(struct encoder *x, int32_t id)
{
    bool unknown = id == x->u->unk;
    if (unknown && x->after_unk)
        return;
    x->after_unk = unknown;
    if (x->n_ids < x->max_ids)
        x->ids[x->n_ids] = id;
    x->n_ids++;
}

/* Gives out the pieces before the cut. The places link backwards; one walk turns them round. */
static void give_out(struct encoder *x)
{
    struct place *places = x->places, piece = places[x->cut];
    for (size_t at = x->cut; at > 0;) {
        at -= piece.length;
        struct place before = places[at];
        places[at] = piece;
        piece = before;
    }
    for (size_t at = 0; at < x->cut; at += places[at].length)
        emit(x, places[at].id);
}

/* Drops what lies before the cut; the place at the cut becomes the first. */
static void drop_decided(struct encoder *x)
{
    size_t cut = x->cut;
    give_out(x);
    memmove(x->word, x->word + cut, x->n - cut);
    memmove(x->places, x->places + cut, (x->n + 1 - cut) * sizeof *x->places);
    x->n -= cut;
    x->next -= cut;
    x->reach -= cut;
    x->cut = 0;
}

static void grow(struct encoder *x)
{
    size_t capacity = x->capacity * 2;
    char *word = mem_realloc(x->heap_word, capacity);
    if (word) {
        if (!x->heap_word)
            memcpy(word, x->own_word, x->n);
        x->word = x->heap_word = word;
    }
    struct place *places = mem_realloc_n(x->heap_places, capacity + 1, sizeof *places);
    if (places) {
        if (!x->heap_places)
            memcpy(places, x->own_places, (x->n + 1) * sizeof *places);
        x->places = x->heap_places = places;
    }
    if (word && places)
        x->capacity = capacity;
    else
        x->failed = true;
}

/* Room for n more bytes (at most CHARSMAP_MAX_BYTES). */
static bool make_room(struct encoder *x, size_t n)
{
    if (x->n + n <= x->capacity)
        return true;
    if (!x->failed)
        advance(x, false);
    if (x->cut > 0)
        drop_decided(x);
    /* Growing while half is taken keeps the moves of a byte few. */
    if (x->n + n > x->capacity / 2 && !x->failed)
        grow(x);
    return !x->failed;
}

static inline void append(struct encoder *x, const char *s, size_t n)
{
    if (!make_room(x, n))
        return;
    for (size_t i = 0; i < n; i++) {
        x->word[x->n++] = s[i];
        x->places[x->n].length = 0;
    }
}

static void end_word(struct encoder *x)
{
    if (x->n == 0 || x->failed)
        return;
    advance(x, true);
    give_out(x);
    x->n = x->next = x->reach = x->cut = 0;
    x->places[0] = (struct place){0};
    x->after_unk = false;
}

/* --- characters --- */

static void begin_word(struct encoder *x)
{
    end_word(x);
    append(x, SPACE, sizeof SPACE - 1);
}

/* With outer spaces the first of several begins a word; without them each waits for what
 * follows, and none that stands first or last is anything. */
static void put_space(struct encoder *x)
{
    const struct unigram *u = x->u;
    if (u->merge_spaces && !u->outer_spaces) {
        end_word(x);
        x->gap |= x->started;
        return;
    }
    if (!u->merge_spaces || !x->gap)
        begin_word(x);
    x->gap = x->started = true;
}

static bool is_space(const struct encoder *x, const char *s, size_t n)
{
    if (n == 1 && *s == ' ')
        return true;
    /* What merges and strips splits at all white space; U+0085 is what a charsmap may leave. */
    if (!x->u->merge_spaces || x->u->outer_spaces || (n == 1 && (*s < '\t' || *s > '\r')))
        return false;
    uint32_t c;
    utf8_decode(s, n, &c);
    return unicode_is_white_space(c);
}

/* One normalised character. */
static void put(struct encoder *x, const char *s, size_t n)
{
    if (is_space(x, s, n)) {
        put_space(x);
        return;
    }
    const struct unigram *u = x->u;
    bool stripped = u->merge_spaces && !u->outer_spaces;
    bool mark = n == 3 && memcmp(s, SPACE, 3) == 0;
    if (mark || (stripped && x->gap) || (!x->started && u->space_prefix))
        begin_word(x);
    x->started = true;
    x->gap = false;
    if (!mark)
        append(x, s, n);
}

static void put_all(struct encoder *x, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i += char_bytes(s[i]))
        put(x, s + i, char_bytes(s[i]));
}

static void put_cluster(struct encoder *x, const char *s, size_t n)
{
    const struct charsmap *map = x->u->map;
    size_t n_to;
    const char *to = n < CLUSTER_BYTES ? charsmap_find(map, s, n, &n_to) : NULL;
    if (to) {
        put_all(x, to, n_to);
        return;
    }
    for (size_t i = 0; i < n; i += char_bytes(s[i])) {
        size_t one = char_bytes(s[i]);
        to = charsmap_find(map, s + i, one, &n_to);
        if (to)
            put_all(x, to, n_to);
        else
            put(x, s + i, one);
    }
}

/* Two neighbours of ASCII never share a cluster, but for a line's end of two. */
static bool stands_alone(const char *s, size_t n)
{
    return (unsigned char)s[0] < 0x80 &&
           (n == 1 || ((unsigned char)s[1] < 0x80 && !(s[0] == '\r' && s[1] == '\n')));
}

static void put_text(struct encoder *x, const char *text, size_t n)
{
    const struct unigram *u = x->u;
    if (!u->map) {
        put_all(x, text, n);
        return;
    }
    for (size_t i = 0; i < n;) {
        if (stands_alone(text + i, n - i)) {
            const char *to = u->ascii[(unsigned char)text[i]];
            if (to)
                put_all(x, to, strlen(to));
            else
                put(x, text + i, 1);
            i++;
            continue;
        }
        size_t cluster = unicode_grapheme(text + i, n - i);
        put_cluster(x, text + i, cluster);
        i += cluster;
    }
}

int unigram_encode(const struct unigram *u, const char *text, size_t n_bytes, int32_t *ids,
                   size_t max_ids, size_t *n_ids, struct err *e)
{
    size_t valid = utf8_valid_prefix(text, n_bytes);
    if (valid != n_bytes)
        return err_set(e, KITH_EINVAL, "not UTF-8: the byte at offset %zu breaks the rules",
                       valid);
    struct encoder x;
    memset(&x, 0, offsetof(struct encoder, own_places));
    x.u = u;
    x.ids = ids;
    x.max_ids = max_ids;
    x.word = x.own_word;
    x.places = x.own_places;
    x.places[0] = (struct place){0};
    x.capacity = WINDOW_BYTES;
    put_text(&x, text, n_bytes);
    end_word(&x);
    mem_free(x.heap_word);
    mem_free(x.heap_places);
    if (x.failed)
        return err_set(e, KITH_ENOMEM, "out of memory for a word of more than %zu bytes",
                       x.capacity);
    *n_ids = x.n_ids;
    return 0;
}

const struct vocabulary *unigram_vocabulary(const struct unigram *u)
{
    return &u->vocabulary;
}

int32_t unigram_unk(const struct unigram *u)
{
    return u->unk;
}
