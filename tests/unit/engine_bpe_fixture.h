#pragma once
/* A small byte-level BPE tokenizer and a small SentencePiece BPE one as the keys of GGUF files,
 * for the unit tests and the fuzzers' seeds. */

#include "base/mem.h"
#include "base/utf8.h"
#include "tests/unit/engine_fixture.h"

#define SPACED "\xc4\xa0"   /* U+0120, a space in a byte-level vocabulary */
#define MARK "\xe2\x96\x81" /* U+2581, a space in SentencePiece's */

/* Two tokens that make a third, by rank. */
static const struct {
    const char *left, *right;
} bpe_merges[] = {
    {"h", "e"},       {"l", "l"},
    {"he", "ll"},     {"hell", "o"},
    {"a", "a"},       {"aa", "aa"},
    {"b", "a"},       {SPACED, "hello"},
    {"1", "2"},       {"\xc3\x83", "\xc2\xa9"}, /* é in two bytes */
    {"a", "b"},       {SPACED, SPACED},
    {"aaaa", "aaaa"}, {".", "."},
    {"'", "s"},       {"\xc3\xa5", "\xc2\xb8"},
    {"w", "o"},       {"wo", "r"},
};
enum { BPE_N_MERGES = sizeof bpe_merges / sizeof *bpe_merges };

/* What stands behind the bytes and the merges. "world" is a token that no merge makes. */
enum {
    BPE_BYTES = 256,
    BPE_WORLD = BPE_BYTES + BPE_N_MERGES,
    BPE_END,   /* <|endoftext|> */
    BPE_START, /* <|im_start|>, which the file calls normal */
    BPE_UNK,
    BPE_TOOL,
    BPE_TOOLS,
    BPE_N
};

static inline size_t bpe_fixture_byte(unsigned byte, char out[4])
{
    unsigned moved = 0x100;
    for (unsigned b = 0; b < byte; b++)
        moved += (b < 0x21 || b == 0x7f || (b > 0x7f && b < 0xa1) || b == 0xad);
    bool prints =
        !(byte < 0x21 || byte == 0x7f || (byte > 0x7f && byte < 0xa1) || byte == 0xad);
    return utf8_encode(prints ? byte : moved, out);
}

/* Tokens, types, merges and ids. */
static inline void fixture_bpe_vocabulary(struct fixture *f, const char *pre)
{
    static const char *const last[] = {"world", "<|endoftext|>", "<|im_start|>",
                                       "<unk>", "<tool>",        "<tool>s"};
    static const uint32_t types[] = {1, 3, 1, 2, 4, 4};
    fixture_string(f, "tokenizer.ggml.model", "gpt2");
    if (pre)
        fixture_string(f, "tokenizer.ggml.pre", pre);
    fixture_key(f, "tokenizer.ggml.tokens", GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_STRING);
    buf_u64(&f->keys, BPE_N);
    for (unsigned b = 0; b < BPE_BYTES; b++) {
        char text[5] = "";
        text[bpe_fixture_byte(b, text)] = '\0';
        fixture_text(&f->keys, text);
    }
    for (int i = 0; i < BPE_N_MERGES; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s%s", bpe_merges[i].left, bpe_merges[i].right);
        fixture_text(&f->keys, text);
    }
    for (int i = 0; i < BPE_N - BPE_WORLD; i++)
        fixture_text(&f->keys, last[i]);
    fixture_key(f, "tokenizer.ggml.token_type", GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_I32);
    buf_u64(&f->keys, BPE_N);
    for (int i = 0; i < BPE_N; i++)
        buf_u32(&f->keys, i < BPE_WORLD ? 1 : types[i - BPE_WORLD]);
    fixture_key(f, "tokenizer.ggml.merges", GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_STRING);
    buf_u64(&f->keys, BPE_N_MERGES);
    for (int i = 0; i < BPE_N_MERGES; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s %s", bpe_merges[i].left, bpe_merges[i].right);
        fixture_text(&f->keys, text);
    }
}

static inline void fixture_bpe(struct buf *out, const char *pre)
{
    struct fixture f;
    fixture_init(&f);
    fixture_bpe_vocabulary(&f, pre);
    fixture_u32(&f, "tokenizer.ggml.bos_token_id", BPE_END);
    fixture_u32(&f, "tokenizer.ggml.eos_token_id", BPE_END);
    fixture_finish(&f, out);
    fixture_deinit(&f);
}

/* --- SentencePiece --- */

struct spm_piece {
    const char *text;
    float score;
    uint32_t type;
};

static const struct spm_piece spm_pieces[] = {
    {"<unk>", 0, 2},       {"<s>", 0, 3},          {"</s>", 0, 3},
    {"<0xC3>", 0, 6},      {"<0xA9>", 0, 6},       {"<0x0A>", 0, 6},
    {MARK, -20, 1},        {"a", -21, 1},          {"b", -22, 1},
    {"c", -23, 1},         {"<", -24, 1},          {"s", -25, 1},
    {">", -26, 1},         {"ab", -1, 1},          {"bc", -2, 1},
    {"abc", -3, 1},        {MARK "a", -4, 1},      {"aa", -5, 1},
    {MARK "ab", -6, 1},    {"aaa", -5, 1},         {"\xe4\xb8\xad", -27, 1},
    {MARK MARK, 0, 4},     {MARK MARK MARK, 0, 4}, {"<t>", 0, 4},
    {"never", -1, 5},      {"s>", -7, 1},          {"<s", -8, 1},
    {"c" MARK "a", -9, 1},
};
enum { SPM_N = sizeof spm_pieces / sizeof *spm_pieces, SPM_UNK = 0, SPM_BOS = 1, SPM_EOS = 2 };

static inline void fixture_spm_vocabulary(struct fixture *f, const struct spm_piece *pieces,
                                          uint32_t n)
{
    fixture_string(f, "tokenizer.ggml.model", "llama");
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
}

static inline void fixture_spm(struct buf *out)
{
    struct fixture f;
    fixture_init(&f);
    fixture_spm_vocabulary(&f, spm_pieces, SPM_N);
    fixture_u32(&f, "tokenizer.ggml.unknown_token_id", SPM_UNK);
    fixture_u32(&f, "tokenizer.ggml.bos_token_id", SPM_BOS);
    fixture_u32(&f, "tokenizer.ggml.eos_token_id", SPM_EOS);
    fixture_finish(&f, out);
    fixture_deinit(&f);
}

/* --- what both tests do with a file --- */

static inline struct gguf *fixture_open(struct fixture *f)
{
    struct buf b = {0};
    struct gguf *g = NULL;
    fixture_finish(f, &b);
    fixture_deinit(f);
    gguf_open_memory(&g, b.data, b.len, NULL);
    buf_deinit(&b);
    return g;
}
