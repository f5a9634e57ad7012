/* The Unigram tokenizer on a vocabulary of a few pieces, one rule a test; against a plain
 * Viterbi over the whole word on random vocabularies and words longer than its window; on
 * damaged files and without memory. (That the ids are those of a published tokenizer is what
 * tests/integration/test_xlmr.py asserts.) */

#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/tokenizer.h"
#include "engine/unigram.h"
#include "tests/unit/engine_unigram_fixture.h"
#include "tests/unit/unit.h"

static struct gguf *open_fixture(struct fixture *f)
{
    struct buf b = {0};
    struct gguf *g;
    struct err e;
    fixture_finish(f, &b);
    fixture_deinit(f);
    assert_int_equal(gguf_open_memory(&g, b.data, b.len, &e), 0);
    buf_deinit(&b);
    return g;
}

/* What the fixture says, with a flag or two of one's own (NULL: none). */
static struct tokenizer *make(const char *flag, uint32_t value, const char *flag2,
                              uint32_t value2)
{
    struct fixture f;
    struct buf map = {0};
    struct err e = {0};
    struct tokenizer *t = NULL;
    fixture_init(&f);
    fixture_unigram_vocabulary(&f, unigram_pieces, UNIGRAM_N);
    charsmap_build(&map);
    fixture_bytes(&f, "tokenizer.ggml.precompiled_charsmap", map.data, map.len);
    buf_deinit(&map);
    if (flag)
        fixture_u32(&f, flag, value);
    if (flag2)
        fixture_u32(&f, flag2, value2);
    struct gguf *g = open_fixture(&f);
    if (tokenizer_new(&t, g, &e))
        fail_msg("%s", e.message);
    gguf_close(g);
    return t;
}

/* The text's pieces in one line, U+2581 as _ and unknown ones as ?. */
static const char *pieces(const struct tokenizer *t, const char *text)
{
    static char line[4096];
    int32_t ids[512];
    size_t n, length = 0;
    struct err e;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), ids, 512, &n, &e), 0);
    assert_true(n <= 512);
    line[0] = '\0';
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = tokenizer_token(t, ids[i], &bytes);
        if (i)
            line[length++] = ' ';
        if (ids[i] == UNIGRAM_UNK) {
            piece = "?";
            bytes = 1;
        } else if (bytes >= 3 && memcmp(piece, MARK, 3) == 0) {
            line[length++] = '_';
            piece += 3;
            bytes -= 3;
        }
        memcpy(line + length, piece, bytes);
        line[length += bytes] = '\0';
    }
    return line;
}

static void rules(void **state)
{
    (void)state;
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    assert_string_equal(pieces(t, ""), "");
    assert_string_equal(pieces(t, "  "), "");
    assert_string_equal(pieces(t, "\x01"), "");
    assert_string_equal(pieces(t, "ab"), "_ab");
    assert_string_equal(pieces(t, "  ab   ab "), "_ab _ab");
    assert_string_equal(pieces(t, "abc"), "_a bc"); /* -10.5, before _ab c with -11 */
    assert_string_equal(pieces(t, "babc"), "_ b abc");
    assert_string_equal(pieces(t, "zz\xc3\xbcz b"), "_ ? _ b"); /* neighbours are one */
    assert_string_equal(pieces(t, "zbz"), "_ ? b ?");
    assert_string_equal(pieces(t, "<s>"), "_ < s >"); /* never the token */
    assert_string_equal(pieces(t, "<unk>"), "_ < ? >");
    assert_string_equal(pieces(t, "never"), "_ ?");
    assert_string_equal(pieces(t, "buser"), "_ b user"); /* score 0, whatever the file says */
    assert_string_equal(pieces(t, MARK "a" MARK "b"), "_a _ b");
    assert_string_equal(pieces(t, "x" MARK), "_ ? _"); /* no piece reaches over a mark */
    tokenizer_free(t);
}

static void normalises(void **state)
{
    (void)state;
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    assert_string_equal(pieces(t, "A"), "_a");
    assert_string_equal(pieces(t, "e\xcc\x81"), "_ \xc3\xa9");
    assert_string_equal(pieces(t, "a\xe2\x80\x8b"
                                  "a\xe3\x80\x80\ta"),
                        "_a _a _a");
    assert_string_equal(pieces(t, "a\r\na"), "_a _a"); /* one cluster, one space */
    assert_string_equal(pieces(t, "\xef\xac\x81"), "_ fi");
    assert_string_equal(pieces(t, "\xe2\x91\xa0"), "_ 1");
    assert_string_equal(pieces(t, "a\x01"
                                  "b"),
                        "_ab");
    assert_string_equal(pieces(t, "\xef\xb7\xba"), "_a bc _a _a bc _ aa _a bc");
    /* A cluster of five bytes is replaced whole by its shortest key; one of six is not. */
    assert_string_equal(pieces(t, "e\xcc\x81\xcc\xa3"
                                  "b"),
                        "_ \xc3\xa9 b");
    assert_string_equal(pieces(t, "e\xcc\x81\xcc\xa3\xcc\xa3\xcc\xa3"
                                  "b"),
                        "_ ? b");
    assert_string_equal(pieces(t, "\xc2\x85"
                                  "a\xc2\x85"
                                  "b"),
                        "_a _ b"); /* white space that the map leaves */
    tokenizer_free(t);
}

static void spaces(void **state)
{
    (void)state;
    struct tokenizer *t = make("tokenizer.ggml.normalizer.outer_spaces", 1, NULL, 0);
    assert_string_equal(pieces(t, ""), "");
    assert_string_equal(pieces(t, "  "), "_");
    assert_string_equal(pieces(t, "  a   ab "), "_a _ab _");
    tokenizer_free(t);
    t = make("tokenizer.ggml.remove_extra_whitespaces", 0, NULL, 0);
    assert_string_equal(pieces(t, "  a  ab "), "_ _a _ _ab _");
    tokenizer_free(t);
    t = make("tokenizer.ggml.remove_extra_whitespaces", 0, "tokenizer.ggml.add_space_prefix",
             0);
    assert_string_equal(pieces(t, "ab a"), "a b _a");
    tokenizer_free(t);
    t = make("tokenizer.ggml.add_space_prefix", 0, NULL, 0);
    assert_string_equal(pieces(t, " ab  a "), "a b _a");
    tokenizer_free(t);
}

static void frames(void **state)
{
    (void)state;
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    const struct tokenizer_frame *f = tokenizer_frame(t);
    assert_int_equal(f->n_before, 0);
    assert_int_equal(f->n_after, 1);
    assert_int_equal(f->after[0], UNIGRAM_EOS);
    assert_string_equal(tokenizer_model(t), "t5");
    assert_false(tokenizer_pair_frame(t)->known);
    tokenizer_free(t);
    t = make("tokenizer.ggml.add_bos_token", 1, NULL, 0);
    const struct tokenizer_pair_frame *p = tokenizer_pair_frame(t);
    assert_true(p->known && p->n_before == 1 && p->n_between == 2 && p->n_after == 1);
    assert_int_equal(p->before[0], UNIGRAM_BOS);
    assert_int_equal(p->between[0], UNIGRAM_EOS);
    assert_int_equal(p->between[1], UNIGRAM_EOS);
    assert_int_equal(p->after[0], UNIGRAM_EOS);
    tokenizer_free(t);
    t = make("tokenizer.ggml.add_bos_token", 1, "tokenizer.ggml.add_eos_token", 0);
    f = tokenizer_frame(t);
    assert_int_equal(f->n_before, 1);
    assert_int_equal(f->before[0], UNIGRAM_BOS);
    assert_int_equal(f->n_after, 0);
    assert_int_equal(tokenizer_n_vocab(t), UNIGRAM_N);
    assert_int_equal(tokenizer_unk(t), UNIGRAM_UNK);
    tokenizer_free(t);
}

static void counts_past_the_room(void **state)
{
    (void)state;
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    int32_t ids[3] = {-7, -7, -7};
    size_t n;
    struct err e;
    assert_int_equal(tokenizer_encode(t, "ab ab ab", 8, ids, 2, &n, &e), 0);
    assert_int_equal(n, 3);
    assert_int_equal(ids[2], -7);
    assert_int_equal(tokenizer_encode(t, "ab ab", 5, NULL, 0, &n, &e), 0);
    assert_int_equal(n, 2);
    assert_int_equal(tokenizer_encode(t, "ab \xc3(", 5, ids, 3, &n, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "offset 3"));
    tokenizer_free(t);
}

/* --- against the plain way --- */

enum { PLAIN_PIECES = 40, PLAIN_BYTES = 9000 };

struct plain_place {
    double score;
    int32_t id;
    size_t length;
};

/* The best cut of one word, over one array for all of it. */
static size_t plain(const struct unigram_piece *vocabulary, uint32_t n, const char *word,
                    size_t bytes, int32_t *ids)
{
    static struct plain_place places[PLAIN_BYTES + 8];
    double least = 0;
    for (uint32_t i = 0; i < n; i++)
        least = (double)vocabulary[i].score < least ? (double)vocabulary[i].score : least;
    memset(places, 0, (bytes + 1) * sizeof *places);
    uint32_t c;
    for (size_t at = 0; at < bytes; at += utf8_decode(word + at, bytes - at, &c)) {
        size_t one = utf8_decode(word + at, bytes - at, &c);
        bool known = false;
        for (size_t length = 1; length <= 64 && at + length <= bytes; length++) {
            int32_t id = -1;
            for (uint32_t i = n; i-- > UNIGRAM_FIRST;)
                if (strlen(vocabulary[i].text) == length &&
                    memcmp(vocabulary[i].text, word + at, length) == 0)
                    id = (int32_t)i;
            double score = id < 0 ? least - 10 : (double)vocabulary[id].score;
            if (id < 0 && (length != one || known))
                continue;
            known |= length == one;
            struct plain_place *p = &places[at + length];
            if (!p->length || score + places[at].score > p->score)
                *p = (struct plain_place){score + places[at].score, id < 0 ? UNIGRAM_UNK : id,
                                          length};
        }
    }
    size_t count = 0;
    for (size_t at = bytes; at > 0; at -= places[at].length)
        if (count == 0 || places[at].id != UNIGRAM_UNK || ids[count - 1] != UNIGRAM_UNK)
            ids[count++] = places[at].id;
    for (size_t i = 0; i < count / 2; i++) {
        int32_t swap = ids[i];
        ids[i] = ids[count - 1 - i];
        ids[count - 1 - i] = swap;
    }
    return count;
}

static size_t random_word(struct rng *rng, char *word, size_t most, unsigned alphabet)
{
    static const char *const letters[] = {
        "a", "b", "\xc3\xa9", "\xe4\xb8\xad", "c", "\xf0\x90\x8d\x88"};
    size_t n = 0, bytes = 1 + (size_t)rng_below(rng, most - 4);
    while (n < bytes) {
        const char *letter = letters[rng_below(rng, alphabet)];
        memcpy(word + n, letter, strlen(letter));
        n += strlen(letter);
    }
    return n;
}

static void agrees_with_the_plain_way(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, unit_seed());
    static char texts[PLAIN_PIECES][64], word[PLAIN_BYTES + 8];
    static int32_t want[PLAIN_BYTES], got[PLAIN_BYTES];
    for (int round = 0; round < 25; round++) {
        struct unigram_piece v[PLAIN_PIECES] = {
            {"<s>", 0, 3}, {"<pad>", 0, 3}, {"</s>", 0, 3}, {"<unk>", 0, 2}};
        unsigned alphabet = 1 + (unsigned)rng_below(&rng, 6);
        /* Few scores make many ties, which the first start must win. */
        unsigned n_scores = rng_below(&rng, 2) ? 2 : 1000;
        for (uint32_t i = UNIGRAM_FIRST; i < PLAIN_PIECES; i++) {
            size_t n = random_word(&rng, texts[i], 5 + rng_below(&rng, 50), alphabet);
            texts[i][n] = '\0';
            v[i] =
                (struct unigram_piece){texts[i], -1 - (float)rng_below(&rng, n_scores) / 7, 1};
        }
        struct fixture f;
        struct tokenizer *t = NULL;
        struct err e = {0};
        fixture_init(&f);
        fixture_unigram_vocabulary(&f, v, PLAIN_PIECES);
        fixture_u32(&f, "tokenizer.ggml.add_space_prefix", 0);
        struct gguf *g = open_fixture(&f);
        if (tokenizer_new(&t, g, &e))
            fail_msg("%s", e.message);
        gguf_close(g);
        for (int i = 0; i < 4; i++) {
            size_t bytes = random_word(&rng, word,
                                       i == 0   ? 100
                                       : i == 3 ? PLAIN_BYTES
                                                : 6000,
                                       alphabet);
            size_t n = 0, n_want = plain(v, PLAIN_PIECES, word, bytes, want);
            assert_int_equal(tokenizer_encode(t, word, bytes, got, PLAIN_BYTES, &n, &e), 0);
            assert_int_equal(n, n_want);
            assert_memory_equal(got, want, n * sizeof *got);
        }
        tokenizer_free(t);
    }
}

/* --- files that lie --- */

static void refuse(struct fixture *f, int code, const char *said)
{
    struct gguf *g = open_fixture(f);
    struct tokenizer *t;
    struct err e = {0};
    assert_int_equal(tokenizer_new(&t, g, &e), code);
    if (!strstr(e.message, said))
        fail_msg("'%s' does not say '%s'", e.message, said);
    gguf_close(g);
}

static void refuses_other_kinds(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    fixture_string(&f, "tokenizer.ggml.model", "rwkv");
    refuse(&f, KITH_EUNSUPPORTED,
           "the tokenizer is 'rwkv'; known here are 'bert', 't5', "
           "'gpt2', 'llama'");
}

static void refuses_bad_scores(void **state)
{
    (void)state;
    struct unigram_piece v[UNIGRAM_N];
    struct fixture f;
    memcpy(v, unigram_pieces, sizeof v);
    v[5].score = NAN;
    fixture_init(&f);
    fixture_unigram_vocabulary(&f, v, UNIGRAM_N);
    refuse(&f, KITH_EFORMAT, "number 5 is not finite");
    fixture_init(&f);
    fixture_string(&f, "tokenizer.ggml.model", "t5");
    fixture_strings(&f, "tokenizer.ggml.tokens", fixture_tokens, FIXTURE_N_TOKENS);
    refuse(&f, KITH_ENOTFOUND, "tokenizer.ggml.scores");
    static char longest[UNIGRAM_MAX_PIECE + 2];
    memset(longest, 'x', UNIGRAM_MAX_PIECE + 1);
    v[5] = (struct unigram_piece){longest, -1, 1};
    fixture_init(&f);
    fixture_unigram_vocabulary(&f, v, UNIGRAM_N);
    refuse(&f, KITH_ELIMIT, "token 5 has 513 bytes");
}

static void refuse_map(const void *map, size_t n, const char *said)
{
    struct fixture f;
    fixture_init(&f);
    fixture_unigram_vocabulary(&f, unigram_pieces, UNIGRAM_N);
    fixture_bytes(&f, "tokenizer.ggml.precompiled_charsmap", map, n);
    struct gguf *g = open_fixture(&f);
    struct tokenizer *t;
    struct err e = {0};
    assert_int_not_equal(tokenizer_new(&t, g, &e), 0);
    if (!strstr(e.message, said))
        fail_msg("'%s' does not say '%s'", e.message, said);
    gguf_close(g);
}

static void refuses_bad_charsmaps(void **state)
{
    (void)state;
    struct buf map = {0};
    charsmap_build(&map);
    refuse_map(map.data, 0, "0 bytes");
    refuse_map(map.data, 3, "3 bytes");
    refuse_map(map.data, sizeof(uint32_t) * (CHARSMAP_UNITS + 1), "strings that end with NUL");
    refuse_map(map.data, map.len - 1, "strings that end with NUL");
    map.data[0] = (char)(map.data[0] + 1);
    refuse_map(map.data, map.len, "a multiple of 4");
    map.data[0] = (char)(map.data[0] - 1);
    char *strings = map.data + 4 * (CHARSMAP_UNITS + 1);
    strings[1] = '\xff';
    refuse_map(map.data, map.len, "not UTF-8");
    strings[1] = ' ';
    for (size_t i = 1; i <= CHARSMAP_UNITS; i++)
        if (map.data[4 * i + 3] & 0x80)
            map.data[4 * i + 1] = '\x7f'; /* each value past the strings */
    refuse_map(map.data, map.len, "names no replacement");
    buf_deinit(&map);
}

/* Other writers give the charsmap as strings of one character each. */
static void takes_a_charsmap_of_characters(void **state)
{
    (void)state;
    for (int raw = 0; raw < 2; raw++) {
        struct fixture f;
        struct buf map = {0};
        struct tokenizer *t;
        struct err e = {0};
        fixture_init(&f);
        fixture_unigram_vocabulary(&f, unigram_pieces, UNIGRAM_N);
        charsmap_build(&map);
        fixture_key(&f, "tokenizer.ggml.precompiled_charsmap", GGUF_ARRAY);
        buf_u32(&f.keys, GGUF_STRING);
        buf_u64(&f.keys, map.len);
        for (size_t i = 0; i < map.len; i++) {
            char utf8[4] = {map.data[i]};
            size_t n = raw ? 1 : utf8_encode((unsigned char)map.data[i], utf8);
            buf_u64(&f.keys, n);
            buf_append(&f.keys, utf8, n);
        }
        buf_deinit(&map);
        struct gguf *g = open_fixture(&f);
        if (tokenizer_new(&t, g, &e))
            fail_msg("%s", e.message);
        gguf_close(g);
        assert_string_equal(pieces(t, "A\xe3\x80\x80\xef\xac\x81"), "_a _ fi");
        tokenizer_free(t);
    }
}

/* A frame token that is asked for must be there. */
static void refuses_a_frame_without_its_token(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    fixture_string(&f, "tokenizer.ggml.model", "t5");
    fixture_strings(&f, "tokenizer.ggml.tokens", fixture_tokens, FIXTURE_N_TOKENS);
    fixture_key(&f, "tokenizer.ggml.scores", GGUF_ARRAY);
    buf_u32(&f.keys, GGUF_F32);
    buf_u64(&f.keys, FIXTURE_N_TOKENS);
    for (uint32_t i = 0; i < FIXTURE_N_TOKENS; i++)
        buf_f32(&f.keys, -1);
    fixture_u32(&f, "tokenizer.ggml.add_bos_token", 1);
    refuse(&f, KITH_EFORMAT, "'tokenizer.ggml.add_bos_token' is true");
}

static const char attack[] = "A\xe3\x80\x80 e\xcc\x81 \xef\xac\x81 zz user \xef\xb7\xba"
                             "abcabcaaaa\xe2\x91\xa0\x01\r\n<s> \xe4\xb8\xad";

/* Every id is one of the vocabulary, whatever was flipped. */
static void survives_flips(void **state)
{
    (void)state;
    struct buf b = {0};
    fixture_unigram(&b);
    size_t refused = 0, taken = 0;
    for (size_t i = 0; i < b.len; i++)
        for (int flip = 1; flip < 256; flip = flip == 1 ? 0x81 : flip == 0x81 ? 0xff : 256) {
            struct gguf *g;
            struct tokenizer *t;
            struct err e;
            b.data[i] = (char)(b.data[i] ^ flip);
            if (gguf_open_memory(&g, b.data, b.len, &e)) {
                refused++;
            } else {
                if (tokenizer_new(&t, g, &e)) {
                    refused++;
                } else {
                    int32_t ids[256];
                    size_t n = 0;
                    taken++;
                    assert_int_equal(
                        tokenizer_encode(t, attack, sizeof attack - 1, ids, 256, &n, &e), 0);
                    for (size_t k = 0; k < n && k < 256; k++)
                        assert_true(ids[k] >= 0 && (uint32_t)ids[k] < tokenizer_n_vocab(t));
                    tokenizer_free(t);
                }
                gguf_close(g);
            }
            b.data[i] = (char)(b.data[i] ^ flip);
        }
    print_message("%zu refused, %zu taken\n", refused, taken);
    assert_true(refused > 100 && taken > 100);
    buf_deinit(&b);
}

static void survives_failed_allocations(void **state)
{
    (void)state;
    struct buf b = {0};
    struct gguf *g;
    struct err e;
    static char text[20000];
    fixture_unigram(&b);
    memset(text, 'a', sizeof text); /* "a", "aa", "aaaa": nothing is decided before the end */
    assert_int_equal(gguf_open_memory(&g, b.data, b.len, &e), 0);
    int rc = KITH_ENOMEM;
    long n = 1;
    for (; rc == KITH_ENOMEM && n < 1000; n++) {
        struct tokenizer *t = NULL;
        size_t n_ids;
        mem_fail_after(n);
        rc = tokenizer_new(&t, g, &e);
        if (!rc)
            rc = tokenizer_encode(t, text, sizeof text, NULL, 0, &n_ids, &e);
        mem_fail_after(0);
        tokenizer_free(t);
    }
    assert_int_equal(rc, 0);
    assert_true(n > 15);
    gguf_close(g);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),
        cmocka_unit_test(normalises),
        cmocka_unit_test(spaces),
        cmocka_unit_test(frames),
        cmocka_unit_test(counts_past_the_room),
        cmocka_unit_test(agrees_with_the_plain_way),
        cmocka_unit_test(refuses_other_kinds),
        cmocka_unit_test(refuses_bad_scores),
        cmocka_unit_test(refuses_bad_charsmaps),
        cmocka_unit_test(takes_a_charsmap_of_characters),
        cmocka_unit_test(refuses_a_frame_without_its_token),
        cmocka_unit_test(survives_flips),
        cmocka_unit_test(survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
