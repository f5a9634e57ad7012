/* Texts and pairs to token sequences: prompts, frames, what is cut where, templates, and that
 * no text writes a control token. And what a profile takes from a file and from the table. */

#include "engine/framing.h"

#include <string.h>

#include "base/mem.h"
#include "engine/model.h"
#include "engine/profile.h"
#include "engine/tokenizer.h"
#include "tests/unit/engine_fixture.h"
#include "tests/unit/unit.h"

/* The ids that the tests speak of. */
enum { CLS = 2, SEP, MARK, A, B, C, QUERY, COLON };

static const char *const tokens[] = {
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "<|mark|>",
    "\xe2\x96\x81"
    "a",
    "\xe2\x96\x81"
    "b",
    "\xe2\x96\x81"
    "c",
    "\xe2\x96\x81query",
    "\xe2\x96\x81:",
};
enum { N_TOKENS = sizeof tokens / sizeof *tokens };

static struct tokenizer *tokenizer;

static struct gguf *open_file(struct fixture *f)
{
    struct buf b = {0};
    struct gguf *g;
    struct err e = {0};
    fixture_finish(f, &b);
    fixture_deinit(f);
    if (gguf_open_memory(&g, b.data, b.len, &e))
        fail_msg("%s", e.message);
    buf_deinit(&b);
    return g;
}

static int set_up(void **state)
{
    (void)state;
    struct fixture f;
    struct err e = {0};
    fixture_init(&f);
    fixture_string(&f, "tokenizer.ggml.model", "bert");
    fixture_strings(&f, "tokenizer.ggml.tokens", tokens, N_TOKENS);
    fixture_key(&f, "tokenizer.ggml.token_type", GGUF_ARRAY);
    buf_u32(&f.keys, GGUF_I32);
    buf_u64(&f.keys, N_TOKENS);
    for (uint32_t i = 0; i < N_TOKENS; i++)
        buf_u32(&f.keys, i <= MARK ? 3 : 1);
    fixture_u32(&f, "tokenizer.ggml.unknown_token_id", 1);
    fixture_u32(&f, "tokenizer.ggml.cls_token_id", CLS);
    fixture_u32(&f, "tokenizer.ggml.seperator_token_id", SEP);
    struct gguf *g = open_file(&f);
    if (tokenizer_new(&tokenizer, g, &e))
        fail_msg("%s", e.message);
    gguf_close(g);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

static struct slice text(const char *s)
{
    return (struct slice){s, strlen(s)};
}

static void expect(const struct sequences *q, uint32_t i, const int32_t *ids, uint32_t n,
                   uint32_t split)
{
    assert_int_equal(q->offsets[i + 1] - q->offsets[i], n);
    assert_memory_equal(q->ids + q->offsets[i], ids, n * sizeof *ids);
    assert_int_equal(q->splits[i], split);
}

#define EXPECT(q, i, split, ...)                                                               \
    expect(q, i, (const int32_t[]){__VA_ARGS__},                                               \
           (uint32_t)(sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t)), split)

static char query_words[] = "query: ", no_words[] = "";
static struct profile prompted = {.query_prompt = query_words, .document_prompt = no_words};

static void roles_have_their_words(void **state)
{
    (void)state;
    struct framing f;
    struct sequences q;
    struct err e;
    assert_int_equal(framing_init(&f, tokenizer, &prompted, 6, &e), 0);
    assert_int_equal(sequences_init(&q, 5, &e), 0);
    assert_int_equal(framing_add_text(&f, EMBEDDER_PLAIN, text("a b"), 1, false, &q, &e), 0);
    assert_int_equal(framing_add_text(&f, EMBEDDER_QUERY, text("a b"), 2, false, &q, &e), 0);
    assert_int_equal(framing_add_text(&f, EMBEDDER_DOCUMENT, text("c"), 3, false, &q, &e), 0);
    /* The words are part of what must fit, and stay when the text is cut. */
    assert_int_equal(framing_add_text(&f, EMBEDDER_QUERY, text("a b c"), 4, false, &q, &e),
                     KITH_EINVAL);
    assert_string_equal(e.message, "text 4 has 7 tokens, the model takes 6: shorten it or give "
                                   "TRUNCATE");
    q.n_ids = q.offsets[q.n];
    assert_int_equal(framing_add_text(&f, EMBEDDER_QUERY, text("a b c"), 4, true, &q, &e), 0);
    assert_int_equal(framing_add_text(&f, EMBEDDER_PLAIN, text("<|mark|>"), 5, true, &q, &e),
                     0);
    EXPECT(&q, 0, UINT32_MAX, CLS, A, B, SEP);
    EXPECT(&q, 1, UINT32_MAX, CLS, QUERY, COLON, A, B, SEP);
    EXPECT(&q, 2, UINT32_MAX, CLS, C, SEP);
    EXPECT(&q, 3, UINT32_MAX, CLS, QUERY, COLON, A, B, SEP);
    for (uint32_t i = q.offsets[4]; i < q.offsets[5]; i++)
        assert_int_not_equal(q.ids[i], MARK); /* a text is a text */
    sequences_deinit(&q);

    assert_int_equal(sequences_init(&q, 1, &e), 0);
    assert_int_equal(framing_add_text(&f, EMBEDDER_QUERY, text("a\xff"), 1, false, &q, &e),
                     KITH_EINVAL);
    assert_non_null(strstr(e.message, "text 1"));
    assert_non_null(strstr(e.message, "offset 1 ")); /* of the text, not of words and text */
    assert_int_equal(framing_add_text(&f, EMBEDDER_QUERY, text(""), 1, false, &q, &e),
                     KITH_EINVAL);
    assert_string_equal(e.message, "text 1 is empty");
    sequences_deinit(&q);
    framing_deinit(&f);
    assert_int_equal(framing_init(&f, tokenizer, &prompted, 2, &e), KITH_EFORMAT);
}

static void pairs_lose_of_the_longer(void **state)
{
    (void)state;
    struct framing f;
    struct sequences q;
    struct err e;
    assert_int_equal(framing_init(&f, tokenizer, &prompted, 7, &e), 0); /* four pieces */
    assert_true(framing_has_pairs(&f));
    assert_int_equal(sequences_init(&q, 6, &e), 0);
    assert_int_equal(framing_add_pair(&f, text("a"), text("b c"), 1, false, &q, &e), 0);
    assert_int_equal(framing_add_pair(&f, text("a"), text("b c b c"), 2, false, &q, &e),
                     KITH_EINVAL);
    assert_non_null(strstr(e.message, "document 2 has 8 tokens, the model takes 7"));
    q.n_ids = q.offsets[q.n];
    assert_int_equal(framing_add_pair(&f, text("a"), text("b c b c"), 2, true, &q, &e), 0);
    assert_int_equal(framing_add_pair(&f, text("a b c a b c"), text("b"), 3, true, &q, &e), 0);
    assert_int_equal(framing_add_pair(&f, text("a b a b a b c c c c"),
                                      text("c c c c c c c c c"), 4, true, &q, &e),
                     0);
    assert_int_equal(framing_add_pair(&f, text("a b"), text("b c"), 5, false, &q, &e), 0);
    EXPECT(&q, 0, 3, CLS, A, SEP, B, C, SEP);
    EXPECT(&q, 1, 3, CLS, A, SEP, B, C, B, SEP);
    EXPECT(&q, 2, 5, CLS, A, B, C, SEP, B, SEP);
    EXPECT(&q, 3, 4, CLS, A, B, SEP, C, C, SEP);
    EXPECT(&q, 4, 4, CLS, A, B, SEP, B, C, SEP);
    assert_int_equal(framing_add_pair(&f, text(""), text("b"), 6, false, &q, &e), KITH_EINVAL);
    assert_string_equal(e.message, "the query is empty");
    assert_int_equal(framing_add_pair(&f, text("a"), text(""), 6, false, &q, &e), KITH_EINVAL);
    assert_string_equal(e.message, "document 6 is empty");
    sequences_deinit(&q);
    framing_deinit(&f);
}

/* The fixture's kind has no space in its pieces, so a template shows in its ids. */
static char words[] = "<|mark|>query: {query}<|none|>{document} a<|mark|>";

static void templates_have_control_tokens(void **state)
{
    (void)state;
    struct profile p = {
        .query_prompt = no_words, .document_prompt = no_words, .rerank_template = words};
    struct framing f;
    struct sequences q;
    struct err e;
    assert_int_equal(framing_init(&f, tokenizer, &p, 40, &e), 0);
    assert_int_equal(sequences_init(&q, 3, &e), 0);
    assert_int_equal(framing_add_pair(&f, text("b"), text("<|mark|> c"), 1, false, &q, &e), 0);
    const int32_t *ids = q.ids;
    uint32_t n = q.offsets[1], marks = 0;
    assert_int_equal(ids[0], MARK);
    assert_int_equal(ids[1], QUERY);
    assert_int_equal(ids[2], COLON);
    assert_int_equal(ids[3], B);
    assert_int_equal(ids[n - 3], C);
    assert_int_equal(ids[n - 2], A);
    assert_int_equal(ids[n - 1], MARK);
    for (uint32_t i = 0; i < n; i++)
        marks += ids[i] == MARK;
    assert_int_equal(marks, 2); /* the template's, not the document's */
    sequences_deinit(&q);
    framing_deinit(&f);

    /* A document of 1,000 pieces, and one that is no use cutting. */
    static char longest[3000];
    for (size_t i = 0; i + 2 < sizeof longest; i += 2)
        memcpy(longest + i, "c ", 2);
    assert_int_equal(framing_init(&f, tokenizer, &p, 30, &e), 0);
    assert_int_equal(sequences_init(&q, 2, &e), 0);
    assert_int_equal(framing_add_pair(&f, text("b"), text(longest), 1, false, &q, &e),
                     KITH_EINVAL);
    assert_non_null(strstr(e.message, "document 1 has "));
    q.n_ids = 0;
    assert_int_equal(framing_add_pair(&f, text("b"), text(longest), 1, true, &q, &e), 0);
    assert_in_range(q.offsets[1], 28, 30);
    assert_int_equal(q.ids[q.offsets[1] - 1], MARK);
    assert_int_equal(framing_add_pair(&f, text(longest), text("c"), 2, true, &q, &e),
                     KITH_EINVAL);
    assert_non_null(strstr(e.message, "the query and the model's words have "));
    sequences_deinit(&q);
    framing_deinit(&f);
}

/* --- profiles --- */

static void load(struct profile *p, struct fixture *f, const char *arch, enum pooling pooling,
                 const char *name)
{
    struct gguf *g = open_file(f);
    struct model m = {.n_embd = 512, .pooling = pooling, .causal = strcmp(arch, "qwen3") == 0};
    struct err e = {0};
    snprintf(m.arch, sizeof m.arch, "%s", arch);
    if (profile_load(p, g, &m, name, &e))
        fail_msg("%s", e.message);
    gguf_close(g);
}

static void known_models_have_profiles(void **state)
{
    (void)state;
    static const struct {
        const char *arch, *name, *query, *document, *dims;
    } rows[] = {
        {"bert", "all-MiniLM-L6-v2", "", "", ""},
        {"bert", "Multilingual-E5-small", "query: ", "passage: ", ""},
        {"bert", "base5-test", "", "", ""},
        {"bert", "bge-m3", "", "", ""},
        {"bert", "BAAI bge-small-en-v1.5",
         "Represent this sentence for searching relevant passages: ", "", ""},
        {"bert", "mxbai-embed-large-v1",
         "Represent this sentence for searching relevant passages: ", "", "32-512"},
        {"bert", "snowflake-arctic-embed-l-v2.0", "query: ", "", "256"},
        {"nomic-bert", "nomic-embed-text-v1", "search_query: ", "search_document: ", ""},
        {"nomic-bert", "nomic-embed-text-v1.5",
         "search_query: ", "search_document: ", "64,128,256,512"},
        {"gemma-embedding", "x",
         "task: search result | query: ", "title: none | text: ", "128,256,512"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct fixture f;
        struct profile p;
        fixture_init(&f);
        load(&p, &f, rows[i].arch, POOLING_MEAN, rows[i].name);
        assert_string_equal(p.query_prompt, rows[i].query);
        assert_string_equal(p.document_prompt, rows[i].document);
        assert_string_equal(p.dims, rows[i].dims);
        assert_null(p.rerank_template);
        profile_deinit(&p);
    }
}

static void the_file_says_it_first(void **state)
{
    (void)state;
    struct fixture f;
    struct profile p;
    fixture_init(&f);
    fixture_string(&f, "kith.prompt.query", "Q ");
    fixture_string(&f, "kith.prompt.document", "");
    fixture_key(&f, "kith.matryoshka.dims", GGUF_ARRAY);
    buf_u32(&f.keys, GGUF_U32);
    buf_u64(&f.keys, 3);
    buf_u32(&f.keys, 512); /* its own dimension is no truncation */
    buf_u32(&f.keys, 100);
    buf_u32(&f.keys, 50);
    load(&p, &f, "bert", POOLING_MEAN, "e5-base");
    assert_string_equal(p.query_prompt, "Q ");
    assert_string_equal(p.document_prompt, "");
    assert_string_equal(p.dims, "100,50");
    profile_deinit(&p);

    fixture_init(&f);
    load(&p, &f, "qwen3", POOLING_RANK, "Qwen3-Reranker-0.6B");
    assert_string_equal(p.query_prompt, "");
    assert_non_null(strstr(p.rerank_template, "{document}"));
    profile_deinit(&p);
}

static void a_profile_that_lies_is_refused(void **state)
{
    (void)state;
    static const int64_t bad[] = {0, 513};
    struct model m = {.arch = "bert", .n_embd = 512, .pooling = POOLING_RANK};
    struct profile p;
    struct err e;
    for (int i = 0; i < 2; i++) {
        struct fixture f;
        fixture_init(&f);
        fixture_key(&f, "kith.matryoshka.dims", GGUF_ARRAY);
        buf_u32(&f.keys, GGUF_U32);
        buf_u64(&f.keys, 1);
        buf_u32(&f.keys, (uint32_t)bad[i]);
        struct gguf *g = open_file(&f);
        struct model wide = {.arch = "bert", .n_embd = 512, .pooling = POOLING_MEAN};
        assert_int_equal(profile_load(&p, g, &wide, "x", &e), KITH_EFORMAT);
        assert_non_null(strstr(e.message, "kith.matryoshka.dims"));
        gguf_close(g);
    }
    struct fixture f;
    fixture_init(&f);
    fixture_string(&f, "tokenizer.chat_template.rerank", "{query} alone");
    struct gguf *g = open_file(&f);
    assert_int_equal(profile_load(&p, g, &m, "x", &e), KITH_EFORMAT);
    assert_non_null(strstr(e.message, "{document}"));
    gguf_close(g);
}

/* Every allocation of a profile, a framing and their sequences fails once. */
static void survives_failed_allocations(void **state)
{
    (void)state;
    struct model m = {.arch = "bert", .n_embd = 512, .pooling = POOLING_RANK};
    struct fixture file;
    struct err e;
    fixture_init(&file);
    fixture_string(&file, "tokenizer.chat_template.rerank", words);
    struct gguf *g = open_file(&file);
    long n = 1;
    for (int rc = KITH_ENOMEM; rc; n++) {
        struct profile p;
        struct framing f = {0};
        struct sequences q = {0};
        mem_fail_after(n);
        if (!(rc = profile_load(&p, g, &m, "x", &e)) &&
            !(rc = framing_init(&f, tokenizer, &p, 40, &e)) &&
            !(rc = sequences_init(&q, 1, &e)))
            rc = framing_add_pair(&f, text("a"), text("b"), 1, false, &q, &e);
        mem_fail_after(0);
        assert_true(rc == 0 || rc == KITH_ENOMEM);
        sequences_deinit(&q);
        framing_deinit(&f);
        profile_deinit(&p);
    }
    assert_true(n > 6);
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(roles_have_their_words),
        cmocka_unit_test(pairs_lose_of_the_longer),
        cmocka_unit_test(templates_have_control_tokens),
        cmocka_unit_test(known_models_have_profiles),
        cmocka_unit_test(the_file_says_it_first),
        cmocka_unit_test(a_profile_that_lies_is_refused),
        cmocka_unit_test(survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
