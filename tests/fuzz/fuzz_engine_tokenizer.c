/* Bytes through a tokenizer; the first byte chooses which. Even: the rest is text for WordPiece
 * or Unigram. Odd: the rest is laid over the file of the small Unigram tokenizer (two bytes say
 * where), which is opened and, if it is taken, cuts a fixed text.
 *
 * Checked beside memory: invalid UTF-8 is refused where it begins, ids are of the vocabulary
 * and no control tokens, little room gives a prefix of what much room gives, and spaces around
 * the text change nothing. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/tokenizer.h"
#include "tests/unit/engine_unigram_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CHOOSE_FILE = 1, CHOOSE_UNIGRAM = 2 }; /* bits of the first byte */

static void check(bool good)
{
    if (!good)
        abort();
}

static const struct tokenizer *tokenizer(int which)
{
    static struct tokenizer *made[2]; /* for the life of the process: they never change */
    if (made[which])
        return made[which];
    const struct fixture_shape shape = {4, 2, 8, 16, 1};
    struct buf b = {0};
    struct gguf *g;
    if (which)
        fixture_unigram(&b);
    else
        fixture_model(&b, &shape, TENSOR_F32);
    if (gguf_open_memory(&g, b.data, b.len, NULL) || tokenizer_new(&made[which], g, NULL))
        abort();
    gguf_close(g);
    buf_deinit(&b);
    return made[which];
}

/* A byte of text gives at most four ids of WordPiece (the parts of a character), or six of
 * Unigram (the fixture's longest replacement has 17 bytes for 3). */
static void cut(const struct tokenizer *t, const char *text, size_t size)
{
    size_t most = 6 * size + 2, n = 0, n_few = 0, n_spaced = 0;
    int32_t *ids = malloc(most * sizeof *ids), *spaced = malloc(most * sizeof *ids), few[3];
    char *with_spaces = malloc(size + 2);
    if (!ids || !spaced || !with_spaces)
        abort();
    struct err e;
    int rc = tokenizer_encode(t, text, size, ids, most, &n, &e);
    check((rc == 0) == (utf8_valid_prefix(text, size) == size));
    if (rc == 0) {
        const struct tokenizer_frame *frame = tokenizer_frame(t);
        check(n < most);
        for (size_t i = 0; i < n; i++)
            check(ids[i] >= 0 && (uint32_t)ids[i] < tokenizer_n_vocab(t) &&
                  ids[i] != frame->before[0] && ids[i] != frame->after[0]);
        check(tokenizer_encode(t, text, size, few, 3, &n_few, &e) == 0 && n_few == n);
        check(memcmp(few, ids, (n < 3 ? n : 3) * sizeof *ids) == 0);
        with_spaces[0] = ' ';
        memcpy(with_spaces + 1, text, size);
        with_spaces[size + 1] = ' ';
        /* A mark at the start of the text would sit on the space. */
        if (size > 0 && (unsigned char)text[0] < 0x80) {
            check(tokenizer_encode(t, with_spaces, size + 2, spaced, most, &n_spaced, &e) == 0);
            check(n_spaced == n && memcmp(ids, spaced, n * sizeof *ids) == 0);
        }
    }
    free(ids);
    free(spaced);
    free(with_spaces);
}

static void damage(const uint8_t *data, size_t size)
{
    static const char text[] = "A\xe3\x80\x80 e\xcc\x81 \xef\xac\x81 zz \xef\xb7\xba"
                               "abcaaaa\xe2\x91\xa0\x01\r\n<s> \xe4\xb8\xad";
    struct buf b = {0};
    struct gguf *g;
    struct tokenizer *t;
    struct err e;
    fixture_unigram(&b);
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
    if (data[0] & CHOOSE_FILE)
        damage(data + 1, size - 1);
    else
        cut(tokenizer((data[0] & CHOOSE_UNIGRAM) != 0), (const char *)data + 1, size - 1);
    return 0;
}
