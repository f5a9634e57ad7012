/* Byte-level BPE on a vocabulary of a few merges, one rule a test; merging against the plain
 * way on random tables; frames; what is long; damaged files and no memory. (That the ids are
 * those of published tokenizers is what tests/integration/test_bpe.py asserts.) */

#include <string.h>

#include "base/hash.h"
#include "engine/bpe_merge.h"
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

/* The fixture with a key or two more (NULL: none). */
static struct tokenizer *make(const char *pre, const char *key, uint32_t value,
                              const char *key2, uint32_t value2)
{
    struct fixture f;
    fixture_init(&f);
    fixture_bpe_vocabulary(&f, pre);
    if (key)
        fixture_u32(&f, key, value);
    if (key2)
        fixture_u32(&f, key2, value2);
    return open_with(&f);
}

/* The text's tokens in one line, as the file has them. */
static const char *tokens(const struct tokenizer *t, const char *text)
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
        length += (size_t)snprintf(line + length, sizeof line - length, "%s%.*s", i ? " " : "",
                                   (int)bytes, piece);
    }
    return line;
}

static void rules(void **state)
{
    (void)state;
    struct tokenizer *t = make("gpt-2", NULL, 0, NULL, 0);
    assert_string_equal(tokens(t, ""), "");
    assert_string_equal(tokens(t, "hello"), "hello");
    assert_string_equal(tokens(t, " hello hell"), SPACED "hello " SPACED " hell");
    assert_string_equal(tokens(t, "aab"), "aa b"); /* the lowest rank, not the first way */
    assert_string_equal(tokens(t, "bab"), "ba b");
    assert_string_equal(tokens(t, "aaaaa"), "aaaa a"); /* the leftmost of equals */
    assert_string_equal(tokens(t, "aaa"), "aa a");
    assert_string_equal(tokens(t, "\xc3\xa9"), "\xc3\x83\xc2\xa9");
    assert_string_equal(tokens(t, "e\xcc\x81"), "e \xc3\x8c \xc4\xa3"); /* not composed */
    assert_string_equal(tokens(t, "it's"), "i t 's");
    assert_string_equal(tokens(t, "world"), "wor l d"); /* no merge makes it */
    assert_string_equal(tokens(t, "a\n"), "a \xc4\x8a");
    assert_string_equal(tokens(t, "12"), "12");
    assert_int_equal(tokenizer_unk(t), -1);
    tokenizer_free(t);
}

static void settings(void **state)
{
    (void)state;
    struct tokenizer *t = make("qwen2", NULL, 0, NULL, 0);
    assert_string_equal(tokens(t, "e\xcc\x81"), "\xc3\x83\xc2\xa9"); /* composed */
    assert_string_equal(tokens(t, "12"), "1 2");
    assert_string_equal(tokens(t, "world"), "wor l d");
    tokenizer_free(t);
    t = make("qwen2", "tokenizer.ggml.normalizer.nfc", 0, "tokenizer.ggml.ignore_merges", 1);
    assert_string_equal(tokens(t, "e\xcc\x81"), "e \xc3\x8c \xc4\xa3");
    assert_string_equal(tokens(t, "world"), "world");
    tokenizer_free(t);
    t = make("gpt-2", "tokenizer.ggml.normalizer.nfc", 1, "tokenizer.ggml.add_space_prefix", 1);
    assert_string_equal(tokens(t, "hello"), SPACED "hello");
    assert_string_equal(tokens(t, " hello"), SPACED "hello");
    assert_string_equal(tokens(t, "e\xcc\x81"), SPACED " \xc3\x83\xc2\xa9");
    assert_string_equal(tokens(t, ""), "");
    tokenizer_free(t);
}

static void text_is_no_control_token(void **state)
{
    (void)state;
    struct tokenizer *t = make("qwen2", "tokenizer.ggml.ignore_merges", 1, NULL, 0);
    assert_string_equal(tokens(t, "<|endoftext|>"), "< | e n d o f t e x t | >");
    assert_string_equal(tokens(t, "<|im_start|>"), "< | i m _ s t a r t | >");
    assert_string_equal(tokens(t, "<unk>"), "< u n k >");
    tokenizer_free(t);
}

static void user_defined_tokens(void **state)
{
    (void)state;
    struct tokenizer *t = make("gpt-2", NULL, 0, NULL, 0);
    assert_string_equal(tokens(t, "<tool>"), "<tool>");
    assert_string_equal(tokens(t, "a<tool>b"), "a <tool> b");
    assert_string_equal(tokens(t, "<tool>sa"), "<tool>s a"); /* the longest */
    assert_string_equal(tokens(t, "<<tool><tool"), "< <tool> < t o o l");
    assert_string_equal(tokens(t, "a <tool> hello"), "a " SPACED " <tool> " SPACED "hello");
    tokenizer_free(t);
}

static void counts_past_the_room(void **state)
{
    (void)state;
    struct tokenizer *t = make("gpt-2", NULL, 0, NULL, 0);
    int32_t ids[3] = {-7, -7, -7};
    size_t n;
    struct err e;
    assert_int_equal(tokenizer_encode(t, "a<tool>a", 8, ids, 2, &n, &e), 0);
    assert_int_equal(n, 3);
    assert_int_equal(ids[1], BPE_TOOL);
    assert_int_equal(ids[2], -7);
    assert_int_equal(tokenizer_encode(t, "ab ab", 5, NULL, 0, &n, &e), 0);
    assert_int_equal(n, 3);
    assert_int_equal(tokenizer_encode(t, "ab \xc3(", 5, ids, 3, &n, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "offset 3"));
    tokenizer_free(t);
}

/* --- frames --- */

static void check_frame(struct tokenizer *t, int32_t before, int32_t after)
{
    const struct tokenizer_frame *f = tokenizer_frame(t);
    assert_int_equal(f->n_before, before >= 0);
    assert_int_equal(f->n_after, after >= 0);
    assert_true(before < 0 || f->before[0] == before);
    assert_true(after < 0 || f->after[0] == after);
}

static void frames(void **state)
{
    (void)state;
    static const char bos[] = "tokenizer.ggml.bos_token_id",
                      eos[] = "tokenizer.ggml.eos_token_id";
    static const char cls[] = "tokenizer.ggml.cls_token_id",
                      sep[] = "tokenizer.ggml.seperator_token_id";
    struct tokenizer *t = make("gpt-2", bos, BPE_END, eos, BPE_END);
    check_frame(t, -1, -1);
    assert_false(tokenizer_pair_frame(t)->known);
    assert_string_equal(tokenizer_model(t), "gpt2");
    assert_int_equal(tokenizer_n_vocab(t), BPE_N);
    tokenizer_free(t);
    t = make("llama-bpe", bos, BPE_START, eos, BPE_END);
    check_frame(t, BPE_START, -1);
    tokenizer_free(t);
    t = make("qwen2", "tokenizer.ggml.add_eos_token", 1, eos, BPE_END);
    check_frame(t, -1, BPE_END);
    tokenizer_free(t);
    t = make("roberta-bpe", bos, BPE_START, eos, BPE_END);
    check_frame(t, BPE_START, BPE_END);
    const struct tokenizer_pair_frame *p = tokenizer_pair_frame(t);
    assert_true(p->known && p->n_before == 1 && p->n_between == 2 && p->n_after == 1);
    assert_int_equal(p->before[0], BPE_START);
    assert_int_equal(p->between[0], BPE_END);
    assert_int_equal(p->between[1], BPE_END);
    assert_int_equal(p->after[0], BPE_END);
    tokenizer_free(t);
    t = make("modern-bert", cls, BPE_START, sep, BPE_END);
    check_frame(t, BPE_START, BPE_END);
    assert_true(tokenizer_pair_frame(t)->known);
    assert_int_equal(tokenizer_pair_frame(t)->n_between, 1);
    tokenizer_free(t);
}

/* A Qwen embedding model of a file that does not say how a text ends. */
static void frame_of_a_last_token_pooler(void **state)
{
    (void)state;
    for (uint32_t pooling = 1; pooling <= 3; pooling += 2)
        for (int flag = 0; flag < 2; flag++) {
            struct fixture f;
            fixture_init(&f);
            fixture_bpe_vocabulary(&f, "qwen2");
            fixture_string(&f, "general.architecture", "qwen3");
            fixture_u32(&f, "qwen3.pooling_type", pooling);
            fixture_u32(&f, "tokenizer.ggml.eos_token_id", BPE_START);
            if (flag)
                fixture_u32(&f, "tokenizer.ggml.add_eos_token", 0);
            struct tokenizer *t = open_with(&f);
            check_frame(t, -1, pooling == 3 && !flag ? BPE_END : -1);
            tokenizer_free(t);
        }
}

static void special_tokens(void **state)
{
    (void)state;
    struct tokenizer *t = make("gpt-2", NULL, 0, NULL, 0);
    struct err e;
    int32_t id = -7;
    assert_int_equal(tokenizer_special(t, "<|im_start|>", 12, &id, &e), 0);
    assert_int_equal(id, BPE_START);
    assert_int_equal(tokenizer_special(t, "<|endoftext|>", 13, &id, &e), 0);
    assert_int_equal(id, BPE_END);
    assert_int_equal(tokenizer_special(t, "hello", 5, &id, &e), KITH_ENOTFOUND);
    assert_int_equal(tokenizer_special(t, "<tool>", 6, &id, &e), KITH_ENOTFOUND);
    assert_int_equal(tokenizer_special(t, "", 0, &id, &e), KITH_ENOTFOUND);
    assert_int_equal(tokenizer_special(t, "<nope>", 6, &id, &e), KITH_ENOTFOUND);
    assert_non_null(strstr(e.message, "'<nope>'"));
    assert_int_equal(id, BPE_END);
    tokenizer_free(t);
}

/* --- merging against the plain way --- */

enum { PLAIN_SYMBOLS = 6, PLAIN_MERGES = 60, PLAIN_LENGTH = 700 };

struct plain_merge {
    int32_t left, right;
    uint32_t rank;
    int32_t to;
};

/* Looks at all pairs each time, and at all merges for each. */
static size_t plain(const struct plain_merge *m, size_t n_merges, int32_t *ids, size_t n)
{
    for (;;) {
        uint32_t best = UINT32_MAX;
        size_t at = 0;
        int32_t to = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t k = 0; k < n_merges; k++)
                if (m[k].left == ids[i] && m[k].right == ids[i + 1] && m[k].rank < best) {
                    best = m[k].rank;
                    at = i;
                    to = m[k].to;
                }
        if (best == UINT32_MAX)
            return n;
        ids[at] = to;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void agrees_with_the_plain_way(void **state)
{
    (void)state;
    struct rng rng;
    struct bpe_scratch scratch = {0};
    struct err e;
    rng_seed(&rng, unit_seed());
    for (int round = 0; round < 60; round++) {
        struct plain_merge m[PLAIN_MERGES];
        struct bpe_table table;
        int32_t symbols = 1 + (int32_t)rng_below(&rng, PLAIN_SYMBOLS), made = symbols;
        size_t n_merges = 0;
        assert_int_equal(bpe_table_init(&table, &e), 0);
        for (size_t i = 0; i < PLAIN_MERGES; i++) {
            struct plain_merge one = {(int32_t)rng_below(&rng, (uint64_t)made),
                                      (int32_t)rng_below(&rng, (uint64_t)made),
                                      /* Equal ranks: the leftmost must win. */
                                      (uint32_t)rng_below(&rng, round % 2 ? 10 : 100000), made};
            bool known = false;
            for (size_t k = 0; k < n_merges; k++)
                known |= m[k].left == one.left && m[k].right == one.right;
            if (known)
                continue;
            made++;
            m[n_merges++] = one;
            assert_int_equal(bpe_table_add(&table, one.left, one.right, one.rank, one.to, &e),
                             0);
        }
        for (int i = 0; i < 12; i++) {
            int32_t ids[PLAIN_LENGTH], want[PLAIN_LENGTH];
            size_t n = rng_below(&rng, i < 8 ? 45 : PLAIN_LENGTH);
            for (size_t k = 0; k < n; k++)
                ids[k] = want[k] = (int32_t)rng_below(&rng, (uint64_t)symbols);
            size_t n_want = plain(m, n_merges, want, n);
            assert_int_equal(bpe_merge(&table, &scratch, ids, &n, &e), 0);
            assert_int_equal(n, n_want);
            assert_memory_equal(ids, want, n * sizeof *ids);
        }
        bpe_table_deinit(&table);
    }
    bpe_scratch_deinit(&scratch);
}

/* Megabytes in one word: done at once, or this test never ends. */
static void long_words(void **state)
{
    (void)state;
    enum { LONG = 1 << 20 };
    struct tokenizer *t = make("qwen2", NULL, 0, NULL, 0);
    char *text = malloc(LONG);
    size_t n;
    struct err e;
    memset(text, 'a', LONG);
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    assert_int_equal(n, LONG / 8);
    for (size_t i = 0; i < LONG; i++)
        text[i] = "helohalb"[hash_mix(i) % 8];
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    assert_true(n > LONG / 8 && n < LONG);
    memset(text, ' ', LONG);
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    memset(text, '<', LONG); /* each may begin a user-defined token */
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
    assert_int_equal(n, LONG);
    for (size_t i = 0; i + 2 <= LONG; i += 2)
        memcpy(text + i, "\xcc\x81", 2); /* marks, in one run to compose */
    assert_int_equal(tokenizer_encode(t, text, LONG, NULL, 0, &n, &e), 0);
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

static void refuses_what_it_does_not_know(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    fixture_bpe_vocabulary(&f, "bloom");
    refuse(&f, KITH_EUNSUPPORTED, "the pre-tokenizer is 'bloom'; known here are llama-bpe, ");
    fixture_init(&f);
    fixture_bpe_vocabulary(&f, "qwen");
    refuse(&f, KITH_EUNSUPPORTED, ", default");
    fixture_init(&f);
    fixture_bpe_vocabulary(&f, NULL);
    refuse(&f, KITH_ENOTFOUND, "tokenizer.ggml.pre");
}

static void refuses_bad_vocabularies(void **state)
{
    (void)state;
    static const char *const few[] = {"a", "b", "ab"};
    static const char *const bad[] = {"a b", "b a"};
    static const char *const whole[] = {"ab"};
    struct fixture f;
    fixture_init(&f);
    fixture_string(&f, "tokenizer.ggml.model", "gpt2");
    fixture_string(&f, "tokenizer.ggml.pre", "gpt-2");
    fixture_strings(&f, "tokenizer.ggml.tokens", few, 3);
    refuse(&f, KITH_EFORMAT, "no token for the byte 0x00");
    for (int i = 0; i < 3; i++) {
        fixture_init(&f);
        fixture_string(&f, "tokenizer.ggml.model", "gpt2");
        fixture_string(&f, "tokenizer.ggml.pre", "gpt-2");
        fixture_strings(&f, "tokenizer.ggml.tokens", few, 3);
        fixture_u32(&f, "tokenizer.ggml.unknown_token_id", 2);
        if (i < 2)
            fixture_strings(&f, "tokenizer.ggml.merges", i ? whole : bad, i ? 1 : 2);
        refuse(&f, i < 2 ? KITH_EFORMAT : KITH_ENOTFOUND,
               i == 0   ? "number 1, 'b a', is not two tokens that make a third"
               : i == 1 ? "number 0, 'ab'"
                        : "tokenizer.ggml.merges");
    }
    fixture_init(&f);
    fixture_bpe_vocabulary(&f, "llama-bpe");
    refuse(&f, KITH_EFORMAT, "'tokenizer.ggml.bos_token_id'");
}

static const char attack[] = "hello world  e\xcc\x81\xc3\xa9 aaaaaaaa <tool>s <|im_start|>\r\n"
                             "12345 it's \xe4\xb8\xad\xf0\x9f\x98\x80 ...";

static void survives_flips(void **state)
{
    (void)state;
    struct buf b = {0};
    fixture_bpe(&b, "qwen2");
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
    fixture_bpe(&b, "qwen2");
    memset(text, 'a', sizeof text);
    memcpy(text + 1000, " e\xcc\x81", 4);
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
    assert_true(n > 20);
    gguf_close(g);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),
        cmocka_unit_test(settings),
        cmocka_unit_test(text_is_no_control_token),
        cmocka_unit_test(user_defined_tokens),
        cmocka_unit_test(counts_past_the_room),
        cmocka_unit_test(frames),
        cmocka_unit_test(frame_of_a_last_token_pooler),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(agrees_with_the_plain_way),
        cmocka_unit_test(long_words),
        cmocka_unit_test(refuses_what_it_does_not_know),
        cmocka_unit_test(refuses_bad_vocabularies),
        cmocka_unit_test(survives_flips),
        cmocka_unit_test(survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
