/* SentencePiece BPE on a vocabulary of a few pieces, one rule a test; the cuts between
 * stretches against one merge over all; frames; what is long; damaged files and no memory.
 * (That the ids are those of published tokenizers is what tests/integration/test_bpe.py
 * asserts.) */

#include <math.h>
#include <string.h>

#include "engine/spm.h"
#include "engine/tokenizer.h"
#include "tests/unit/engine_bpe_fixture.h"
#include "tests/unit/unit.h"

static struct tokenizer *open_with(struct fixture *f)
{
    struct gguf *g = fixture_open(f);
    struct tokenizer *t = NULL;
    struct err e = {0};
    assert_non_null(g);
    if (tokenizer_new(&t, g, &e))
        fail_msg("%s", e.message);
    gguf_close(g);
    return t;
}

static struct tokenizer *make(const char *key, uint32_t value, const char *key2,
                              uint32_t value2)
{
    struct fixture f;
    fixture_init(&f);
    fixture_spm_vocabulary(&f, spm_pieces, SPM_N);
    if (key)
        fixture_u32(&f, key, value);
    if (key2)
        fixture_u32(&f, key2, value2);
    return open_with(&f);
}

/* The text's pieces in one line, U+2581 as _. */
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
        for (size_t k = 0; k < bytes; k++) {
            bool mark = bytes - k >= 3 && memcmp(piece + k, MARK, 3) == 0;
            line[length++] = mark ? '_' : piece[k];
            k += mark ? 2 : 0;
        }
        line[length] = '\0';
    }
    return line;
}

static void rules(void **state)
{
    (void)state;
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    assert_string_equal(pieces(t, ""), "");
    assert_string_equal(pieces(t, "a"), "_a");
    assert_string_equal(pieces(t, "ab"), "_ab");
    assert_string_equal(pieces(t, "abc"), "_ abc"); /* ab, then abc: higher than _a */
    assert_string_equal(pieces(t, "bcab"), "_ bc ab");
    assert_string_equal(pieces(t, "ab ab"), "_ab _ab");
    assert_string_equal(pieces(t, "aab"), "_a ab");
    assert_string_equal(pieces(t, "caaa"), "_ c aaa"); /* equal scores: from the left */
    assert_string_equal(pieces(t, "caaaa"), "_ c aaa a");
    assert_string_equal(pieces(t, "c a"), "_ c_a"); /* a piece may reach over a space */
    assert_string_equal(pieces(t, "\xc3\xa9"), "_ <0xC3> <0xA9>");
    assert_string_equal(pieces(t, "a\nb"), "_a <0x0A> b");
    assert_string_equal(pieces(t, "\xe4\xb8\xad"), "_ \xe4\xb8\xad");
    assert_string_equal(pieces(t, "xyzb"), "_ <unk> b"); /* neighbours are one */
    assert_string_equal(pieces(t, "xbx"), "_ <unk> b <unk>");
    assert_string_equal(pieces(t, "\xc3\xa8"), "_ <unk>"); /* not all of its bytes */
    assert_string_equal(pieces(t, MARK "a"), "_ _a");
    assert_int_equal(tokenizer_unk(t), SPM_UNK);
    tokenizer_free(t);
}

static void spaces(void **state)
{
    (void)state;
    struct tokenizer *t = make("tokenizer.ggml.add_space_prefix", 0, NULL, 0);
    assert_string_equal(pieces(t, "ab"), "ab");
    assert_string_equal(pieces(t, " ab "), "_ab _");
    assert_string_equal(pieces(t, "ab  ab   ab"), "ab __ ab ___ ab"); /* user-defined */
    assert_string_equal(pieces(t, "ab " MARK "ab"), "ab __ ab");
    assert_string_equal(pieces(t, "    "), "___ _");
    tokenizer_free(t);
    t = make("tokenizer.ggml.remove_extra_whitespaces", 1, NULL, 0);
    assert_string_equal(pieces(t, " ab "), "_ab");
    assert_string_equal(pieces(t, " "), "");
    assert_string_equal(pieces(t, "a a"), "_a _a");
    tokenizer_free(t);
}

static void text_is_no_control_token(void **state)
{
    (void)state;
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    assert_string_equal(pieces(t, "<s>"), "_ < s>"); /* s> is higher than <s */
    assert_string_equal(pieces(t, "<unk>"), "_ < <unk> >");
    assert_string_equal(pieces(t, "<0x0A>"), "_ < <unk> >");
    assert_string_equal(pieces(t, "never"), "_ <unk>");
    assert_string_equal(pieces(t, "a<t>b"), "_a <t> _ b");
    tokenizer_free(t);
}

/* Merges beside the scores: their order counts. */
static void merges_of_the_file(void **state)
{
    (void)state;
    static const char *const merges[] = {"b c", MARK " a", "a b"};
    struct fixture f;
    fixture_init(&f);
    fixture_spm_vocabulary(&f, spm_pieces, SPM_N);
    fixture_strings(&f, "tokenizer.ggml.merges", merges, 3);
    struct tokenizer *t = open_with(&f);
    assert_string_equal(pieces(t, "abc ab"), "_a bc _a b");
    tokenizer_free(t);
    /* One that makes a control token is left out; one that makes none is a lie. */
    static const char *const others[][1] = {{"<s >"}, {"a c"}};
    for (int i = 0; i < 2; i++) {
        struct err e;
        fixture_init(&f);
        fixture_spm_vocabulary(&f, spm_pieces, SPM_N);
        fixture_strings(&f, "tokenizer.ggml.merges", others[i], 1);
        struct gguf *g = fixture_open(&f);
        assert_int_equal(tokenizer_new(&t, g, &e), i ? KITH_EFORMAT : 0);
        gguf_close(g);
        if (i) {
            assert_non_null(strstr(e.message, "not two tokens that make a third"));
            continue;
        }
        assert_string_equal(pieces(t, "<s>"), "_ < s >");
        tokenizer_free(t);
    }
}

static void frames(void **state)
{
    (void)state;
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    const struct tokenizer_frame *f = tokenizer_frame(t);
    assert_int_equal(f->n_before, 1);
    assert_int_equal(f->before[0], SPM_BOS);
    assert_int_equal(f->n_after, 0);
    assert_false(tokenizer_pair_frame(t)->known);
    assert_string_equal(tokenizer_model(t), "llama");
    int32_t id;
    struct err e;
    assert_int_equal(tokenizer_special(t, "</s>", 4, &id, &e), 0);
    assert_int_equal(id, SPM_EOS);
    assert_int_equal(tokenizer_special(t, "<t>", 3, &id, &e), KITH_ENOTFOUND);
    tokenizer_free(t);
    t = make("tokenizer.ggml.add_bos_token", 0, "tokenizer.ggml.add_eos_token", 1);
    f = tokenizer_frame(t);
    assert_int_equal(f->n_before, 0);
    assert_int_equal(f->n_after, 1);
    assert_int_equal(f->after[0], SPM_EOS);
    tokenizer_free(t);
    struct fixture file;
    fixture_init(&file);
    fixture_spm_vocabulary(&file, spm_pieces, SPM_N);
    fixture_string(&file, "general.architecture", "gemma-embedding");
    t = open_with(&file);
    assert_int_equal(tokenizer_frame(t)->n_after, 1);
    assert_int_equal(tokenizer_frame(t)->after[0], SPM_EOS);
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

/* --- against the plain way: the whole text is one sequence, every pair looked up by its text
 * ---
 */

enum { PLAIN_PIECES = 40, PLAIN_LENGTH = 1500, PLAIN_FIRST = 1 };

static const char *const letters[] = {"a", "b", "c", "\xc3\xa9", "\xe4\xb8\xad", MARK};
enum { N_LETTERS = sizeof letters / sizeof *letters };

static int32_t find_piece(const struct spm_piece *v, int n, const char *s, size_t bytes)
{
    for (int i = PLAIN_FIRST; i < n; i++)
        if (strlen(v[i].text) == bytes && memcmp(v[i].text, s, bytes) == 0)
            return i;
    return -1;
}

static size_t plain(const struct spm_piece *v, int n_pieces, const char *text, size_t bytes,
                    int32_t *ids)
{
    static size_t at[PLAIN_LENGTH * 4 + 1];
    size_t n = 0;
    uint32_t c;
    for (size_t i = 0; i < bytes; i += utf8_decode(text + i, bytes - i, &c))
        at[n++] = i;
    at[n] = bytes;
    for (;;) {
        size_t best = n;
        float score = -INFINITY;
        for (size_t i = 0; i + 1 < n; i++) {
            int32_t id = find_piece(v, n_pieces, text + at[i], at[i + 2] - at[i]);
            if (id >= 0 && v[id].score > score) {
                best = i;
                score = v[id].score;
            }
        }
        if (best == n)
            break;
        memmove(at + best + 1, at + best + 2, (n - best - 1) * sizeof *at);
        n--;
    }
    for (size_t i = 0; i < n; i++)
        ids[i] = find_piece(v, n_pieces, text + at[i], at[i + 1] - at[i]);
    return n;
}

static void agrees_with_the_plain_way(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, unit_seed());
    static char texts[PLAIN_PIECES][96], text[PLAIN_LENGTH * 4];
    static int32_t want[PLAIN_LENGTH * 4], got[PLAIN_LENGTH * 4];
    for (int round = 0; round < 40; round++) {
        struct spm_piece v[PLAIN_PIECES] = {{"<unk>", 0, 2}};
        int n = PLAIN_FIRST;
        for (int i = 0; i < N_LETTERS; i++)
            v[n++] = (struct spm_piece){letters[i], -1000, 1};
        while (n < PLAIN_PIECES) {
            /* Two pieces together, so that most can be made. */
            const char *a = v[PLAIN_FIRST + (int)rng_below(&rng, (uint64_t)n - 1)].text;
            const char *b = v[PLAIN_FIRST + (int)rng_below(&rng, (uint64_t)n - 1)].text;
            if (strlen(a) + strlen(b) >= 40)
                continue;
            snprintf(texts[n], sizeof texts[n], "%s%s", a, b);
            if (find_piece(v, n, texts[n], strlen(texts[n])) >= 0)
                continue;
            v[n] =
                (struct spm_piece){texts[n], -(float)rng_below(&rng, round % 2 ? 4 : 1000), 1};
            n++;
        }
        struct fixture f;
        fixture_init(&f);
        fixture_spm_vocabulary(&f, v, PLAIN_PIECES);
        fixture_u32(&f, "tokenizer.ggml.add_space_prefix", 0);
        fixture_u32(&f, "tokenizer.ggml.add_bos_token", 0);
        struct tokenizer *t = open_with(&f);
        for (int i = 0; i < 6; i++) {
            size_t bytes = 0, chars = rng_below(&rng, i ? 120 : PLAIN_LENGTH), n_got;
            struct err e;
            while (chars--) {
                const char *letter = letters[rng_below(&rng, N_LETTERS)];
                memcpy(text + bytes, letter, strlen(letter));
                bytes += strlen(letter);
            }
            size_t n_want = plain(v, PLAIN_PIECES, text, bytes, want);
            assert_int_equal(
                tokenizer_encode(t, text, bytes, got, PLAIN_LENGTH * 4, &n_got, &e), 0);
            assert_int_equal(n_got, n_want);
            assert_memory_equal(got, want, n_got * sizeof *got);
        }
        tokenizer_free(t);
    }
}

/* Megabytes in one stretch: done at once, or this test never ends. */
static void long_stretches(void **state)
{
    (void)state;
    enum { LONG = 1 << 20 };
    struct tokenizer *t = make(NULL, 0, NULL, 0);
    char *text = malloc(LONG);
    size_t n;
    struct err e;
    memset(text, 'a', LONG);
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    assert_true(n > LONG / 3 && n < LONG / 2);
    memset(text, ' ', LONG);
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    memset(text, '<', LONG); /* each may begin a user-defined token */
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    assert_int_equal(n, LONG + 1);
    memset(text, 'x', LONG);
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    assert_int_equal(n, 2);
    free(text);
    tokenizer_free(t);
}

/* --- files that lie --- */

static void refuse(struct fixture *f, int code, const char *said)
{
    struct gguf *g = fixture_open(f);
    struct tokenizer *t;
    struct err e = {0};
    assert_non_null(g);
    assert_int_equal(tokenizer_new(&t, g, &e), code);
    if (!strstr(e.message, said))
        fail_msg("'%s' does not say '%s'", e.message, said);
    gguf_close(g);
}

static void refuses_bad_vocabularies(void **state)
{
    (void)state;
    static const char *const few[] = {"<unk>", "a"};
    struct spm_piece v[SPM_N];
    struct fixture f;
    memcpy(v, spm_pieces, sizeof v);
    v[7].score = NAN;
    fixture_init(&f);
    fixture_spm_vocabulary(&f, v, SPM_N);
    refuse(&f, KITH_EFORMAT, "number 7 is not finite");
    static char longest[SPM_MAX_PIECE + 2];
    memset(longest, 'x', SPM_MAX_PIECE + 1);
    v[7] = (struct spm_piece){longest, -1, 1};
    fixture_init(&f);
    fixture_spm_vocabulary(&f, v, SPM_N);
    refuse(&f, KITH_ELIMIT, "token 7 has 513 bytes");
    fixture_init(&f);
    fixture_string(&f, "tokenizer.ggml.model", "llama");
    fixture_strings(&f, "tokenizer.ggml.tokens", few, 2);
    refuse(&f, KITH_ENOTFOUND, "tokenizer.ggml.scores");
    fixture_init(&f);
    fixture_spm_vocabulary(&f, spm_pieces, SPM_N);
    fixture_string(&f, "tokenizer.ggml.precompiled_charsmap", "");
    refuse(&f, KITH_EUNSUPPORTED, "precompiled_charsmap");
}

static const char attack[] = "ab  abc aaaa \xc3\xa9\xe4\xb8\xad\n xyz<t><s></s>" MARK " a";

static void survives_flips(void **state)
{
    (void)state;
    struct buf b = {0};
    fixture_spm(&b);
    size_t refused = 0, taken = 0;
    for (size_t i = 0; i < b.len; i++)
        for (int flip = 1; flip < 256; flip = flip == 1 ? 0x81 : flip == 0x81 ? 0xff : 256) {
            struct gguf *g = NULL;
            struct tokenizer *t = NULL;
            struct err e;
            b.data[i] = (char)(b.data[i] ^ flip);
            if (gguf_open_memory(&g, b.data, b.len, &e) || tokenizer_new(&t, g, &e)) {
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
    static char text[3000];
    fixture_spm(&b);
    memset(text, 'a', sizeof text); /* one stretch */
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
    assert_true(n > 13);
    gguf_close(g);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),
        cmocka_unit_test(spaces),
        cmocka_unit_test(text_is_no_control_token),
        cmocka_unit_test(merges_of_the_file),
        cmocka_unit_test(frames),
        cmocka_unit_test(counts_past_the_room),
        cmocka_unit_test(agrees_with_the_plain_way),
        cmocka_unit_test(long_stretches),
        cmocka_unit_test(refuses_bad_vocabularies),
        cmocka_unit_test(survives_flips),
        cmocka_unit_test(survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
