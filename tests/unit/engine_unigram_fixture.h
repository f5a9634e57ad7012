#pragma once
/* A small Unigram tokenizer as the keys of a GGUF file, with a charsmap compiled from a few
 * rules, for the unit tests and the fuzzers' seeds. */

#include "base/mem.h"
#include "tests/unit/engine_fixture.h"

#define MARK "\xe2\x96\x81" /* U+2581 */

enum {
    UNIGRAM_BOS = 0,
    UNIGRAM_PAD = 1,
    UNIGRAM_EOS = 2,
    UNIGRAM_UNK = 3,
    UNIGRAM_FIRST = 4,
    CHARSMAP_UNITS = 512
};

struct unigram_piece {
    const char *text;
    float score;
    uint32_t type;
};

static const struct unigram_piece unigram_pieces[] = {
    {"<s>", 0, 3},       {"<pad>", 0, 3}, {"</s>", 0, 3},
    {"<unk>", 0, 2},     {MARK, -3, 1},   {MARK "ab", -4, 1},
    {"a", -5, 1},        {"b", -5.5f, 1}, {"abc", -9, 1},
    {"bc", -6, 1},       {"c", -7, 1},    {MARK "a", -4.5f, 1},
    {"\xc3\xa9", -6, 1}, {"aa", -6, 1},   {"\xe4\xb8\xad", -6.5f, 1},
    {"fi", -4, 1},       {"user", -1, 4}, {"<", -7, 1},
    {"s", -7, 1},        {">", -7, 1},    {MARK "x" MARK, -1, 1},
    {"never", -1, 5},    {"1", -8, 1},    {"aaaa", -11, 1},
};
enum { UNIGRAM_N = sizeof unigram_pieces / sizeof *unigram_pieces };

/* Sorted by key. */
static const struct {
    const char *from, *to;
} charsmap_rules[] = {
    {"\x01", ""},
    {"\t", " "},
    {"\r", " "},
    {"A", "a"},
    {"e\xcc\x81", "\xc3\xa9"},            /* e and an acute */
    {"\xc2\xb2", "2"},                    /* a two above the line */
    {"\xe2\x80\x8b", " "},                /* zero-width space */
    {"\xe2\x91\xa0", "1"},                /* a one in a circle */
    {"\xe3\x80\x80", " "},                /* ideographic space */
    {"\xef\xac\x81", "fi"},               /* the ligature */
    {"\xef\xb7\xba", "abc a abc aa abc"}, /* one character that becomes many */
};
enum { CHARSMAP_RULES = sizeof charsmap_rules / sizeof *charsmap_rules };

struct charsmap_build {
    uint32_t units[CHARSMAP_UNITS];
    bool used[CHARSMAP_UNITS], base_used[CHARSMAP_UNITS];
    uint32_t values[CHARSMAP_RULES];
};

static inline bool charsmap_base_fits(const struct charsmap_build *b, uint32_t base, int first,
                                      int last, size_t depth)
{
    if (base >= CHARSMAP_UNITS || b->base_used[base])
        return false;
    for (int i = first; i < last; i++)
        if (b->used[base ^ (unsigned char)charsmap_rules[i].from[depth]])
            return false;
    return true;
}

/* Places the children of the rules first .. last - 1, which agree in `depth` bytes, and returns
 * their state. A rule that ends at this depth comes first, and its child is the value. */
static inline uint32_t charsmap_place(struct charsmap_build *b, int first, int last,
                                      size_t depth)
{
    uint32_t base = 1;
    while (!charsmap_base_fits(b, base, first, last, depth))
        base++;
    b->base_used[base] = true;
    for (int i = first; i < last; i++)
        b->used[base ^ (unsigned char)charsmap_rules[i].from[depth]] = true;
    for (int i = first, next; i < last; i = next) {
        unsigned char c = (unsigned char)charsmap_rules[i].from[depth];
        for (next = i + 1; next < last && (unsigned char)charsmap_rules[next].from[depth] == c;)
            next++;
        if (!c) {
            b->units[base] = b->values[i] | 0x80000000u;
            continue;
        }
        uint32_t at = base ^ c, state = charsmap_place(b, i, next, depth + 1);
        bool ends = charsmap_rules[i].from[depth + 1] == '\0';
        b->units[at] = (at ^ state) << 10 | (ends ? 1u << 8 : 0) | c;
    }
    return base;
}

static inline void charsmap_build(struct buf *out)
{
    struct charsmap_build b = {0};
    struct buf strings = {0};
    for (int i = 0; i < CHARSMAP_RULES; i++) {
        b.values[i] = (uint32_t)strings.len;
        buf_append(&strings, charsmap_rules[i].to, strlen(charsmap_rules[i].to) + 1);
    }
    b.used[0] = true;
    b.units[0] = charsmap_place(&b, 0, CHARSMAP_RULES, 0) << 10;
    buf_u32(out, sizeof b.units);
    for (int i = 0; i < CHARSMAP_UNITS; i++)
        buf_u32(out, b.units[i]);
    buf_append(out, strings.data, strings.len);
    buf_deinit(&strings);
}

static inline void fixture_bytes(struct fixture *f, const char *key, const void *p, size_t n)
{
    fixture_key(f, key, GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_U8);
    buf_u64(&f->keys, n);
    buf_append(&f->keys, p, n);
}

/* Tokens, scores and types, and the ids of XLM-R. */
static inline void fixture_unigram_vocabulary(struct fixture *f,
                                              const struct unigram_piece *pieces, uint32_t n)
{
    fixture_string(f, "tokenizer.ggml.model", "t5");
    fixture_key(f, "tokenizer.ggml.tokens", GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_STRING);
    buf_u64(&f->keys, n);
    for (uint32_t i = 0; i < n; i++)
        fixture_text(&f->keys, pieces[i].text);
    fixture_key(f, "tokenizer.ggml.scores", GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_F32);
    buf_u64(&f->keys, n);
    for (uint32_t i = 0; i < n; i++)
        buf_f32(&f->keys, pieces[i].score);
    fixture_key(f, "tokenizer.ggml.token_type", GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_I32);
    buf_u64(&f->keys, n);
    for (uint32_t i = 0; i < n; i++)
        buf_u32(&f->keys, pieces[i].type);
    fixture_u32(f, "tokenizer.ggml.unknown_token_id", UNIGRAM_UNK);
    fixture_u32(f, "tokenizer.ggml.bos_token_id", UNIGRAM_BOS);
    fixture_u32(f, "tokenizer.ggml.eos_token_id", UNIGRAM_EOS);
    fixture_u32(f, "tokenizer.ggml.padding_token_id", UNIGRAM_PAD);
}

/* The whole tokenizer of this page, as a file without tensors. */
static inline void fixture_unigram(struct buf *out)
{
    struct fixture f;
    struct buf map = {0};
    fixture_init(&f);
    fixture_unigram_vocabulary(&f, unigram_pieces, UNIGRAM_N);
    charsmap_build(&map);
    fixture_bytes(&f, "tokenizer.ggml.precompiled_charsmap", map.data, map.len);
    fixture_u32(&f, "tokenizer.ggml.add_bos_token", 1);
    fixture_u32(&f, "tokenizer.ggml.add_eos_token", 1);
    fixture_finish(&f, out);
    fixture_deinit(&f);
    buf_deinit(&map);
}
