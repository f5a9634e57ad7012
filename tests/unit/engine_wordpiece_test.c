/* The tokenizer on a vocabulary of a few pieces, one rule a test; and on random bytes. (That
 * the ids of the real model's vocabulary are right is what engine_golden_test asserts, those of
 * another published one engine_vocabularies_test.) */

#include <string.h>

#include "base/mem.h"
#include "base/random.h"
#include "base/utf8.h"
#include "engine/tokenizer.h"
#include "engine/unicode.h"
#include "tests/unit/engine_fixture.h"
#include "tests/unit/unit.h"

#define CONTINUED(s) s
#define WORD(s) "\xe2\x96\x81" s

static const char *const vocabulary[] = {
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    WORD("ab"),
    CONTINUED("c"),
    CONTINUED("cd"),
    WORD("a"),
    CONTINUED("b"),
    WORD("."),
    WORD("e"),
    CONTINUED("\xcc\x81"),
    WORD("\xe4\xb8\xad"),
    WORD("["),
    WORD("]"),
    WORD("cls"),
    WORD("\xef\xac\x81"),
    WORD("i"),
    WORD("A"),
    WORD("x"),
    CONTINUED("x"),
    WORD("\xc3\xa9"),
};
enum { N_VOCABULARY = sizeof vocabulary / sizeof *vocabulary, UNK = 1 };

static struct tokenizer *make(bool lower, const char *extra_key, uint32_t extra_value)
{
    struct fixture f;
    fixture_init(&f);
    fixture_string(&f, "tokenizer.ggml.model", "bert");
    fixture_strings(&f, "tokenizer.ggml.tokens", vocabulary, N_VOCABULARY);
    fixture_u32(&f, "tokenizer.ggml.unknown_token_id", UNK);
    fixture_u32(&f, "tokenizer.ggml.cls_token_id", 2);
    fixture_u32(&f, "tokenizer.ggml.seperator_token_id", 3);
    if (!lower)
        fixture_u32(&f, "tokenizer.ggml.normalizer.lowercase", 0);
    if (extra_key)
        fixture_u32(&f, extra_key, extra_value);
    struct buf b;
    buf_init(&b);
    fixture_finish(&f, &b);
    fixture_deinit(&f);
    struct gguf *g;
    struct tokenizer *w = NULL;
    struct err e;
    assert_int_equal(gguf_open_memory(&g, b.data, b.len, &e), 0);
    tokenizer_new(&w, g, &e);
    gguf_close(g);
    buf_deinit(&b);
    return w;
}

/* The text's pieces in one line: "ab c .", with ? for [UNK]. */
static const char *pieces(const struct tokenizer *w, const char *text)
{
    static char line[4096];
    int32_t ids[256];
    size_t n, length = 0;
    struct err e;
    assert_int_equal(tokenizer_encode(w, text, strlen(text), ids, 256, &n, &e), 0);
    assert_true(n <= 256);
    line[0] = '\0';
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = tokenizer_token(w, ids[i], &bytes);
        if (ids[i] == UNK) {
            piece = "?";
            bytes = 1;
        } else if (bytes > 3 && memcmp(piece, WORD(""), 3) == 0) {
            piece += 3;
            bytes -= 3;
        }
        length += (size_t)snprintf(line + length, sizeof line - length, "%s%.*s", i ? " " : "",
                                   (int)bytes, piece);
    }
    return line;
}

static void rules(void **state)
{
    (void)state;
    struct tokenizer *w = make(true, NULL, 0);
    assert_non_null(w);
    assert_string_equal(pieces(w, ""), "");
    assert_string_equal(pieces(w, " \t\r\n"), "");
    assert_string_equal(pieces(w, "abcd"), "ab cd"); /* the longest piece first */
    assert_string_equal(pieces(w, "abcb"), "ab c b");
    assert_string_equal(pieces(w, "abe"),
                        "?"); /* no way back: the word is unknown as a whole */
    assert_string_equal(pieces(w, "ab abe ab"), "ab ? ab");
    assert_string_equal(pieces(w, "AB.aBc"), "ab . ab c");
    assert_string_equal(pieces(w, "a\x01\x7f"
                                  "b\xe2\x80\x8b."),
                        "ab ."); /* controls and zero-width space are not there */
    assert_string_equal(pieces(w, "a\xc2\xa0"
                                  "a\xe3\x80\x80.\xe2\x80\xa8"
                                  "a"),
                        "a a . a");                  /* wide spaces */
    assert_string_equal(pieces(w, "\xc3\xa9"), "e"); /* é is e and a mark */
    assert_string_equal(pieces(w, "e\xcc\x81\xcc\xa3"), "e");
    assert_string_equal(pieces(w, "\xc3\x89"), "e");
    assert_string_equal(pieces(w, "\xc4\xb0"), "i"); /* İ */
    assert_string_equal(pieces(w, "a\xe4\xb8\xad"
                                  "a"),
                        "a \xe4\xb8\xad a");                        /* an ideograph is a word */
    assert_string_equal(pieces(w, "[CLS]"), "[ cls ]");             /* never the token */
    assert_string_equal(pieces(w, "\xef\xac\x81"), "\xef\xac\x81"); /* NFD, not NFKD */
    assert_string_equal(pieces(w, "\xef\xbf\xbd"
                                  "a"),
                        "a"); /* U+FFFD */
    tokenizer_free(w);
}

static void longest_word(void **state)
{
    (void)state;
    struct tokenizer *w = make(true, NULL, 0);
    char text[512];
    int32_t ids[512];
    size_t n;
    struct err e;
    memset(text, 'x', sizeof text);
    assert_int_equal(tokenizer_encode(w, text, 100, ids, 512, &n, &e), 0);
    assert_int_equal(n, 100);
    assert_int_equal(tokenizer_encode(w, text, 101, ids, 512, &n, &e), 0);
    assert_int_equal(n, 1);
    assert_int_equal(ids[0], UNK);
    /* Characters count, not bytes: a hundred marks that are dropped are none. */
    char marked[512] = "x";
    for (size_t i = 0; i < 200; i++)
        memcpy(marked + 1 + 2 * i, "\xcc\x81", 2);
    assert_int_equal(tokenizer_encode(w, marked, 401, ids, 512, &n, &e), 0);
    assert_int_equal(n, 1);
    assert_int_not_equal(ids[0], UNK);
    tokenizer_free(w);
}

static void cased(void **state)
{
    (void)state;
    struct tokenizer *w = make(false, NULL, 0);
    assert_string_equal(pieces(w, "A a \xc3\xa9 AB"), "A a \xc3\xa9 ?");
    tokenizer_free(w);
    w = make(true, "tokenizer.ggml.normalizer.strip_accents", 0);
    assert_string_equal(pieces(w, "\xc3\x89"), "\xc3\xa9");
    tokenizer_free(w);
}

static void pairs_and_special_tokens(void **state)
{
    (void)state;
    struct tokenizer *w = make(true, NULL, 0);
    const struct tokenizer_pair_frame *p = tokenizer_pair_frame(w);
    int32_t id;
    struct err e;
    assert_true(p->known && p->n_before == 1 && p->n_between == 1 && p->n_after == 1);
    assert_int_equal(p->before[0], 2);
    assert_int_equal(p->between[0], 3);
    assert_int_equal(p->after[0], 3);
    /* The file has no types; the frame's tokens are special all the same. */
    assert_int_equal(tokenizer_special(w, "[SEP]", 5, &id, &e), 0);
    assert_int_equal(id, 3);
    assert_int_equal(tokenizer_special(w, "c", 1, &id, &e), KITH_ENOTFOUND);
    tokenizer_free(w);
}

static void counts_past_the_room(void **state)
{
    (void)state;
    struct tokenizer *w = make(true, NULL, 0);
    int32_t ids[3] = {-7, -7, -7};
    size_t n;
    struct err e;
    assert_int_equal(tokenizer_encode(w, "a . a . a", 9, ids, 2, &n, &e), 0);
    assert_int_equal(n, 5);
    assert_int_equal(ids[2], -7);
    assert_int_equal(tokenizer_encode(w, "abe abe", 7, NULL, 0, &n, &e), 0);
    assert_int_equal(n, 2);
    tokenizer_free(w);
}

static void refuses_bad_utf8(void **state)
{
    (void)state;
    struct tokenizer *w = make(true, NULL, 0);
    int32_t ids[8];
    size_t n;
    struct err e;
    assert_int_equal(tokenizer_encode(w, "ab \xc3(", 5, ids, 8, &n, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "offset 3"));
    tokenizer_free(w);
}

static void refuses_bad_vocabularies(void **state)
{
    (void)state;
    struct fixture f;
    struct buf b;
    for (int i = 0; i < 3; i++) {
        fixture_init(&f);
        buf_init(&b);
        fixture_string(&f, "tokenizer.ggml.model", i == 0 ? "rwkv" : "bert");
        if (i != 1)
            fixture_strings(&f, "tokenizer.ggml.tokens", vocabulary, N_VOCABULARY);
        /* i == 2: [CLS] is 101 when nothing is said, past this vocabulary. */
        fixture_finish(&f, &b);
        struct gguf *g;
        struct tokenizer *w;
        struct err e;
        assert_int_equal(gguf_open_memory(&g, b.data, b.len, &e), 0);
        static const int codes[] = {KITH_EUNSUPPORTED, KITH_ENOTFOUND, KITH_EFORMAT};
        assert_int_equal(tokenizer_new(&w, g, &e), codes[i]);
        gguf_close(g);
        buf_deinit(&b);
        fixture_deinit(&f);
    }
}

/* Whatever the text, the count is the same with and without room, and every id is one. */
static void random_text(void **state)
{
    (void)state;
    const uint64_t seed = rng_entropy();
    print_message("seed %llu\n", (unsigned long long)seed);
    struct rng rng;
    rng_seed(&rng, seed);
    struct tokenizer *w = make(true, NULL, 0);
    for (int round = 0; round < 3000; round++) {
        char text[800];
        size_t n = 0;
        while (n + 4 <= sizeof text && rng_below(&rng, 100)) {
            uint32_t c = (uint32_t)rng_below(&rng, rng_below(&rng, 2) ? 0x250 : 0x110000);
            if (c >= 0xd800 && c < 0xe000)
                c = 0x302a + c % 6; /* marks that are not Mn have an order of their own */
            n += utf8_encode(c, text + n);
        }
        int32_t ids[3200];
        size_t with = 0, without = 0;
        struct err e;
        assert_int_equal(tokenizer_encode(w, text, n, ids, 3200, &with, &e), 0);
        assert_int_equal(tokenizer_encode(w, text, n, NULL, 0, &without, &e), 0);
        assert_int_equal(with, without);
        for (size_t i = 0; i < with; i++)
            assert_true(ids[i] >= UNK && ids[i] < N_VOCABULARY && ids[i] != 2 && ids[i] != 3);
    }
    tokenizer_free(w);
}

static void classes(void **state)
{
    (void)state;
    assert_int_equal(unicode_class_of(0x61d), UNICODE_LETTER);        /* punctuation of 14.0 */
    assert_int_equal(unicode_class_of(0x61b), UNICODE_PUNCTUATION);   /* of 1.1 */
    assert_int_equal(unicode_class_of(0x8e2), UNICODE_LETTER);        /* format of 9.0 */
    assert_int_equal(unicode_class_of(0x1734), UNICODE_MARK);         /* Mc today */
    assert_int_equal(unicode_class_of(0x111c9), UNICODE_PUNCTUATION); /* Mn today */
    assert_int_equal(unicode_class_of(0x2b81f), UNICODE_CJK);
    assert_int_equal(unicode_class_of(0x2b820), UNICODE_LETTER);  /* the gap */
    assert_int_equal(unicode_class_of('$'), UNICODE_PUNCTUATION); /* a symbol by category */
    assert_int_equal(unicode_class_of(0x20ac), UNICODE_LETTER);   /* € stays a symbol */
    assert_int_equal(unicode_class_of(0xac00), UNICODE_LETTER);   /* Hangul */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),
        cmocka_unit_test(longest_word),
        cmocka_unit_test(cased),
        cmocka_unit_test(pairs_and_special_tokens),
        cmocka_unit_test(counts_past_the_room),
        cmocka_unit_test(refuses_bad_utf8),
        cmocka_unit_test(refuses_bad_vocabularies),
        cmocka_unit_test(random_text),
        cmocka_unit_test(classes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
