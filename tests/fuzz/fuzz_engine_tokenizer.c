/* Text of any bytes through the tokenizer. Checked beside memory: invalid UTF-8 is refused
 * where it begins, ids are of the vocabulary, little room gives a prefix of what much room
 * gives, and spaces around the text change nothing. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/wordpiece.h"
#include "tests/unit/engine_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct wordpiece *tokenizer(void)
{
    static struct wordpiece *w; /* for the life of the process: the vocabulary never changes */
    if (w)
        return w;
    const struct fixture_shape shape = {4, 2, 8, 16, 1};
    struct buf b = {0};
    struct gguf *g;
    fixture_model(&b, &shape, TENSOR_F32);
    if (gguf_open_memory(&g, b.data, b.len, NULL) || wordpiece_new(&w, g, NULL))
        abort();
    gguf_close(g);
    buf_deinit(&b);
    return w;
}

static void check(bool good)
{
    if (!good)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct wordpiece *w = tokenizer();
    const char *text = (const char *)data;
    size_t most = 4 * size + 1, n = 0, n_few = 0, n_spaced = 0;
    int32_t *ids = malloc(most * sizeof *ids), *spaced = malloc(most * sizeof *ids), few[3];
    char *with_spaces = malloc(size + 2);
    if (!ids || !spaced || !with_spaces)
        abort();
    struct err e;
    int rc = wordpiece_encode(w, text, size, ids, most, &n, &e);
    check((rc == 0) == (utf8_valid_prefix(text, size) == size));
    if (rc == 0) {
        check(n < most);
        for (size_t i = 0; i < n; i++)
            check(ids[i] >= 0 && (uint32_t)ids[i] < wordpiece_n_vocab(w));
        check(wordpiece_encode(w, text, size, few, 3, &n_few, &e) == 0 && n_few == n);
        check(memcmp(few, ids, (n < 3 ? n : 3) * sizeof *ids) == 0);
        with_spaces[0] = ' ';
        memcpy(with_spaces + 1, data, size);
        with_spaces[size + 1] = '\n';
        check(wordpiece_encode(w, with_spaces, size + 2, spaced, most, &n_spaced, &e) == 0);
        check(n_spaced == n && memcmp(ids, spaced, n * sizeof *ids) == 0);
    }
    free(ids);
    free(spaced);
    free(with_spaces);
    return 0;
}
