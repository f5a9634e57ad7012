/* Bytes through a tokenizer; the first byte chooses which. Even: the rest is text for
 * WordPiece, Unigram, byte-level BPE (with one of the pre-tokenizers) or SentencePiece BPE.
 * Odd: the rest is laid over the file of a small tokenizer of such a kind (two bytes say
 * where), which is opened and, if it is taken, cuts a fixed text.
 *
 * Checked beside memory: invalid UTF-8 is refused where it begins, ids are of the vocabulary
 * and no control tokens, little room gives a prefix of what much room gives, and, for WordPiece
 * and Unigram, spaces around the text change nothing. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/tokenizer.h"
#include "tests/unit/engine_bpe_fixture.h"
#include "tests/unit/engine_unigram_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first byte: bit 0 a file, bits 1 and 2 the kind, the rest the pre-tokenizer. */
enum kind { WORDPIECE, UNIGRAM, BPE, SPM, N_KINDS };
enum { CHOOSE_FILE = 1 };

/* One for each way to cut, and for each form of frame. */
static const char *const pre_names[] = {"llama-bpe",   "qwen2",       "qwen35",    "gpt-2",
                                        "roberta-bpe", "modern-bert", "starcoder", "gpt-4o",
                                        "tekken",      "deepseek-v3", "default"};
enum { N_PRE = sizeof pre_names / sizeof *pre_names };

static enum kind kind_of(uint8_t byte)
{
    return (enum kind)(byte >> 1 & 3);
}

static void check(bool good)
{
    if (!good)
        abort();
}

static void write_file(struct buf *b, enum kind kind, unsigned pre)
{
    const struct fixture_shape shape = {4, 2, 8, 16, 1};
    switch (kind) {
    case UNIGRAM:
        fixture_unigram(b);
        break;
    case BPE:
        fixture_bpe(b, pre_names[pre]);
        break;
    case SPM:
        fixture_spm(b);
        break;
    default:
        fixture_model(b, &shape, TENSOR_F32);
    }
}

static const struct tokenizer *tokenizer(enum kind kind, unsigned pre)
{
    /* For the life of the process: they never change. */
    static struct tokenizer *made[N_KINDS][N_PRE];
    struct tokenizer **t = &made[kind][kind == BPE ? pre : 0];
    if (*t)
        return *t;
    struct buf b = {0};
    struct gguf *g;
    write_file(&b, kind, pre);
    if (gguf_open_memory(&g, b.data, b.len, NULL) || tokenizer_new(t, g, NULL))
        abort();
    gguf_close(g);
    buf_deinit(&b);
    return *t;
}

static bool is_control(const struct tokenizer *t, enum kind kind, int32_t id)
{
    const struct tokenizer_frame *f = tokenizer_frame(t);
    if (kind == BPE)
        return id == BPE_END || id == BPE_START || id == BPE_UNK;
    if (kind == SPM)
        return id == SPM_BOS || id == SPM_EOS;
    return id == f->before[0] || id == f->after[0];
}

/* A byte of text gives at most four ids of WordPiece (the parts of a character), six of Unigram
 * (the fixture's longest replacement has 17 bytes for 3), three of BPE (composed text grows by
 * less) and two of SentencePiece (a space before each fragment). */
static void cut(enum kind kind, unsigned pre, const char *text, size_t size)
{
    const struct tokenizer *t = tokenizer(kind, pre);
    size_t most = 6 * size + 2, n = 0, n_few = 0, n_spaced = 0;
    int32_t *ids = malloc(most * sizeof *ids), *spaced = malloc(most * sizeof *ids), few[3];
    char *with_spaces = malloc(size + 2);
    if (!ids || !spaced || !with_spaces)
        abort();
    struct err e;
    int rc = tokenizer_encode(t, text, size, ids, most, &n, &e);
    check((rc == 0) == (utf8_valid_prefix(text, size) == size));
    if (rc == 0) {
        check(n < most);
        for (size_t i = 0; i < n; i++)
            check(ids[i] >= 0 && (uint32_t)ids[i] < tokenizer_n_vocab(t) &&
                  !is_control(t, kind, ids[i]));
        check(tokenizer_encode(t, text, size, few, 3, &n_few, &e) == 0 && n_few == n);
        check(memcmp(few, ids, (n < 3 ? n : 3) * sizeof *ids) == 0);
        with_spaces[0] = ' ';
        memcpy(with_spaces + 1, text, size);
        with_spaces[size + 1] = ' ';
        /* A mark at the start of the text would sit on the space. */
        if (kind <= UNIGRAM && size > 0 && (unsigned char)text[0] < 0x80) {
            check(tokenizer_encode(t, with_spaces, size + 2, spaced, most, &n_spaced, &e) == 0);
            check(n_spaced == n && memcmp(ids, spaced, n * sizeof *ids) == 0);
        }
    }
    free(ids);
    free(spaced);
    free(with_spaces);
}

static void damage(enum kind kind, unsigned pre, const uint8_t *data, size_t size)
{
    static const char text[] =
        "A\xe3\x80\x80 e\xcc\x81 \xef\xac\x81 zz \xef\xb7\xba"
        "abcaaaa\xe2\x91\xa0\x01\r\n<s> \xe4\xb8\xad hello<tool>s 123<t>";
    struct buf b = {0};
    struct gguf *g;
    struct tokenizer *t;
    struct err e;
    write_file(&b, kind == WORDPIECE ? UNIGRAM : kind, pre);
    size_t at = size < 2 ? 0 : (size_t)(data[0] | data[1] << 8) % b.len;
    for (size_t i = 2; i < size && at + i - 2 < b.len; i++)
        b.data[at + i - 2] = (char)(b.data[at + i - 2] ^ data[i]);
    if (gguf_open_memory(&g, b.data, b.len, &e) == 0) {
        if (tokenizer_new(&t, g, &e) == 0) {
            int32_t ids[512];
            size_t n = 0;
            check(tokenizer_encode(t, text, sizeof text - 1, ids, 512, &n, &e) == 0);
            for (size_t i = 0; i < n && i < 512; i++)
                check(ids[i] >= 0 && (uint32_t)ids[i] < tokenizer_n_vocab(t));
            tokenizer_free(t);
        }
        gguf_close(g);
    }
    buf_deinit(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const enum kind kind = kind_of(data[0]);
    const unsigned pre = (data[0] >> 3) % N_PRE;
    if (data[0] & CHOOSE_FILE)
        damage(kind, pre, data + 1, size - 1);
    else
        cut(kind, pre, (const char *)data + 1, size - 1);
    return 0;
}
