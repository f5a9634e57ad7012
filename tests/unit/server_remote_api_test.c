/* Request bodies as the two interfaces take them, and answers: honest ones in any order, and
 * every lie by itself. */

#include "unit.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "server/remote_api.h"

static const struct remote_model openai = {
    .style = REMOTE_OPENAI, .name = "m \"1\"", .dim = 2, .secret = "sk-s3cret"};
static const struct remote_model ollama = {.style = REMOTE_OLLAMA, .name = "m", .dim = 2};

static int read_answer(const struct remote_model *m, const char *body, uint32_t n,
                       float *vectors, uint32_t *n_tokens, struct err *e)
{
    /* Its own allocation: a read past the end is found by the sanitizer. */
    char *copy = malloc(strlen(body) + 1);
    memcpy(copy, body, strlen(body));
    copy = realloc(copy, strlen(body) ? strlen(body) : 1);
    int rc = remote_api_answer(m, (struct slice){copy, strlen(body)}, n, vectors, n_tokens, e);
    free(copy);
    return rc;
}

static void assert_near(float a, double b)
{
    if (!(fabs((double)a - b) < 1e-6))
        fail_msg("%g is not %g", (double)a, b);
}

static void addresses(void **state)
{
    (void)state;
    static const struct {
        enum remote_style style;
        const char *url, *address;
    } rows[] = {
        {REMOTE_OPENAI, "http://h:1", "http://h:1/v1/embeddings"},
        {REMOTE_OPENAI, "http://h:1//", "http://h:1/v1/embeddings"},
        {REMOTE_OPENAI, "https://h/v1", "https://h/v1/embeddings"},
        {REMOTE_OPENAI, "https://h/v1/", "https://h/v1/embeddings"},
        {REMOTE_OPENAI, "https://h/deep/path", "https://h/deep/path/v1/embeddings"},
        {REMOTE_OLLAMA, "http://h:1/", "http://h:1/api/embed"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf b = {0};
        remote_api_address(rows[i].style, rows[i].url, &b);
        buf_u8(&b, 0);
        assert_string_equal(b.data, rows[i].address);
        buf_deinit(&b);
    }
}

static void identity_is_of_style_model_and_dim(void **state)
{
    (void)state;
    static const struct remote_model rows[] = {
        {.style = REMOTE_OPENAI, .name = "m", .dim = 384},
        {.style = REMOTE_OLLAMA, .name = "m", .dim = 384},
        {.style = REMOTE_OPENAI, .name = "n", .dim = 384},
        {.style = REMOTE_OPENAI, .name = "m", .dim = 38},
    };
    enum { N = sizeof rows / sizeof *rows };
    char hashes[N][33];
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(remote_api_hash(&rows[i], hashes[i], NULL), 0);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(hashes[i], hashes[k]);
    }
    /* Stored in sets: it must never become another. XXH3-128 of "openai\0m\0" "384". */
    assert_string_equal(hashes[0], "51155866cf153ddd3372fb4b6903bd4c");
}

static json_t *request(const struct remote_model *m, const struct slice *texts, uint32_t n,
                       bool truncate)
{
    struct buf b = {0};
    struct err e = {0};
    assert_int_equal(remote_api_request(m, texts, n, truncate, &b, &e), 0);
    json_t *root = json_loadb(b.data, b.len, JSON_ALLOW_NUL, NULL);
    assert_non_null(root);
    buf_deinit(&b);
    return root;
}

static void requests(void **state)
{
    (void)state;
    static const char odd[] = "\"quoted\" \\ \n \0 \x01 \xc3\xa4 \xf0\x9f\x99\x82 </script>";
    const struct slice texts[] = {{odd, sizeof odd - 1}, {"", 0}, {"plain", 5}};
    json_t *root = request(&openai, texts, 3, true);
    assert_string_equal(json_string_value(json_object_get(root, "model")), "m \"1\"");
    assert_string_equal(json_string_value(json_object_get(root, "encoding_format")), "float");
    assert_int_equal(json_object_size(root), 3);
    const json_t *input = json_object_get(root, "input");
    assert_int_equal(json_array_size(input), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *s = json_array_get(input, i);
        assert_int_equal(json_string_length(s), texts[i].n);
        assert_memory_equal(json_string_value(s), texts[i].p, texts[i].n);
    }
    json_decref(root);
    for (int truncate = 0; truncate < 2; truncate++) {
        struct remote_model cut = ollama;
        cut.send_dimensions = true;
        root = request(&cut, texts, 1, truncate);
        assert_int_equal(json_is_true(json_object_get(root, "truncate")), truncate);
        assert_true(json_is_boolean(json_object_get(root, "truncate")));
        assert_int_equal(json_integer_value(json_object_get(root, "dimensions")), 2);
        assert_int_equal(json_object_size(root), 4);
        json_decref(root);
    }
    struct buf b = {0};
    struct err e = {0};
    const struct slice broken = {"\xff", 1};
    assert_int_not_equal(remote_api_request(&openai, &broken, 1, false, &b, &e), 0);
    assert_non_null(strstr(e.message, "UTF-8"));
    buf_deinit(&b);
}

static void honest_answers(void **state)
{
    (void)state;
    float v[6];
    uint32_t tokens = 7;
    struct err e = {0};
    /* Out of order, of any length, with more keys than are known. */
    assert_int_equal(
        read_answer(&openai,
                    " {\"object\":\"list\",\"data\":["
                    "{\"index\":2,\"embedding\":[0,-1e-3],\"object\":\"embedding\"},"
                    "{\"index\":0,\"embedding\":[3,4.0]},"
                    "{\"index\":1,\"embedding\":[1e30,0]}],"
                    "\"usage\":{\"prompt_tokens\":12,\"total_tokens\":12}} ",
                    3, v, &tokens, &e),
        0);
    assert_int_equal(tokens, 12);
    const double expected[] = {0.6, 0.8, 1, 0, 0, -1};
    for (int i = 0; i < 6; i++)
        assert_near(v[i], expected[i]);
    /* No index at all: in the order of the texts. */
    assert_int_equal(read_answer(&openai,
                                 "{\"data\":[{\"embedding\":[0,2]},{\"embedding\":[2,0]}]}", 2,
                                 v, &tokens, &e),
                     0);
    assert_int_equal(tokens, 0);
    assert_near(v[1], 1);
    assert_near(v[2], 1);
    assert_int_equal(read_answer(&ollama,
                                 "{\"model\":\"m\",\"embeddings\":[[0,2],[-2,0]],"
                                 "\"prompt_eval_count\":5}",
                                 2, v, &tokens, &e),
                     0);
    assert_int_equal(tokens, 5);
    assert_near(v[1], 1);
    assert_near(v[2], -1);
    assert_int_equal(read_answer(&ollama, "{\"embeddings\":[[3e-160,4e-160],[0,1e-320]]}", 2, v,
                                 &tokens, &e),
                     0);
    assert_near(v[0], 0.6);
    assert_near(v[1], 0.8);
    assert_near(v[3], 1);
}

/* One wrong thing each, and words that the error must have. */
static const struct {
    const struct remote_model *model;
    uint32_t n;
    const char *body, *words[3];
} lies[] = {
    {&openai, 1, "", {"not JSON", "expected 1 vectors of 2 numbers"}},
    {&openai, 1, "<html><body>It works!</body></html>", {"not JSON", "<html>"}},
    {&openai, 1, "{\"data\":[{\"index\":0,\"embedding\":[1,2]}]", {"not JSON", "byte"}},
    {&openai, 1, "{\"data\":[{\"index\":0,\"embedding\":[1,NaN]}]}", {"not JSON"}},
    {&openai,
     1,
     "{\"data\":[{\"index\":0,\"embedding\":[1,1e999]}]}",
     {"not JSON", "overflow"}},
    {&openai, 1, "{\"data\":[{\"index\":0,\"embedding\":[1,2]}]} x", {"not JSON"}},
    {&openai, 1, "{\"data\":[],\"data\":[]}", {"not JSON", "duplicate"}},
    {&openai, 1, "[1,2]", {"an array", "expected an object"}},
    {&openai, 1, "7", {"not JSON"}},
    {&openai, 1, "{}", {"'data' is missing", "expected an array of 1 vectors"}},
    {&openai, 1, "{\"data\":{}}", {"'data' is an object"}},
    {&openai, 1, "{\"data\":[]}", {"'data' has 0 vectors", "expected 1"}},
    {&openai,
     1,
     "{\"data\":[{\"embedding\":[1,2]},{\"embedding\":[1,2]}]}",
     {"'data' has 2 vectors", "expected 1"}},
    {&openai, 1, "{\"data\":[7]}", {"item 1", "an integer", "expected an object"}},
    {&openai, 1, "{\"data\":[{\"index\":0}]}", {"vector 1 is missing"}},
    {&openai, 1, "{\"data\":[{\"embedding\":\"AACAPwAAgD8=\"}]}", {"vector 1 is a string"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[1]}]}", {"got 1 dimensions, expected 2"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[1,2,3]}]}", {"got 3 dimensions, expected 2"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[]}]}", {"got 0 dimensions, expected 2"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[1,\"2\"]}]}", {"number 2 is a string"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[null,2]}]}", {"number 1 is null"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[1,[2]]}]}", {"number 2 is an array"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[true,2]}]}", {"number 1 is true"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[1,1e39]}]}", {"1e+39", "finite"}},
    {&openai, 1, "{\"data\":[{\"embedding\":[0,-0.0]}]}", {"all zeros"}},
    {&openai, 1, "{\"data\":[{\"index\":1,\"embedding\":[1,2]}]}", {"'index'", "0 to 0"}},
    {&openai, 1, "{\"data\":[{\"index\":-1,\"embedding\":[1,2]}]}", {"'index'", "(-1)"}},
    {&openai, 1, "{\"data\":[{\"index\":\"0\",\"embedding\":[1,2]}]}", {"'index' is a string"}},
    {&openai, 1, "{\"data\":[{\"index\":0.0,\"embedding\":[1,2]}]}", {"'index' is a fraction"}},
    {&openai,
     1,
     "{\"data\":[{\"index\":9223372036854775807,\"embedding\":[1,2]}]}",
     {"'index'"}},
    {&openai,
     2,
     "{\"data\":[{\"index\":0,\"embedding\":[1,2]},{\"index\":0,\"embedding\":[1,2]}]}",
     {"item 2", "each of 0 to 1 once"}},
    {&openai,
     2,
     "{\"data\":[{\"index\":1,\"embedding\":[1,2]},{\"embedding\":[1,2]}]}",
     {"item 2", "'index' is missing"}},
    {&openai,
     2,
     "{\"data\":[{\"embedding\":[1,2]},{\"index\":1,\"embedding\":[1,2]}]}",
     {"item 2", "'index'"}},
    {&openai, 1, "{\"embeddings\":[[1,2]]}", {"'data' is missing"}},
    {&ollama, 1, "{\"embedding\":[1,2]}", {"'embeddings' is missing"}},
    {&ollama, 1, "{\"embeddings\":[1,2]}", {"'embeddings' has 2 vectors, expected 1"}},
    {&ollama, 2, "{\"embeddings\":[1,2]}", {"vector 1 is an integer"}},
    {&ollama,
     2,
     "{\"embeddings\":[[1,2],[1,2,3]]}",
     {"vector 2: got 3 dimensions, expected 2"}},
    {&ollama, 2, "{\"embeddings\":[[1,2],[0,0]]}", {"vector 2 is all zeros"}},
    {&ollama, 1, "{\"error\":\"model not found\"}", {"'embeddings' is missing"}},
};

static void every_lie_by_itself(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        float v[4];
        uint32_t tokens = 9;
        struct err e = {0};
        if (read_answer(lies[i].model, lies[i].body, lies[i].n, v, &tokens, &e) != KITH_EPROTO)
            fail_msg("taken: %s", lies[i].body);
        assert_int_equal(tokens, 0);
        for (size_t k = 0; k < 3 && lies[i].words[k]; k++)
            if (!strstr(e.message, lies[i].words[k]))
                fail_msg("%s: '%s' lacks '%s'", lies[i].body, e.message, lies[i].words[k]);
    }
}

static void deep_nesting_is_no_crash(void **state)
{
    (void)state;
    enum { DEEP = 200000 };
    char *body = malloc(DEEP + 1);
    float v[2];
    uint32_t tokens;
    struct err e = {0};
    memset(body, '[', DEEP);
    body[DEEP] = '\0';
    assert_int_equal(read_answer(&openai, body, 1, v, &tokens, &e), KITH_EPROTO);
    free(body);
}

/* An honest answer, written as wastefully as is usual, is within the limit. */
static void limit_fits_honest_answers(void **state)
{
    (void)state;
    struct remote_model m = {.style = REMOTE_OPENAI, .name = "m", .dim = 1024};
    struct buf b = {0};
    for (uint32_t i = 0; i < 3; i++) {
        buf_append_str(&b, "    {\n      \"object\": \"embedding\",\n      \"index\": 1,\n");
        for (uint32_t k = 0; k < m.dim; k++)
            buf_printf(&b, "        %.17g,\n", -1.2345678901234567e-300);
    }
    assert_true(b.len < remote_api_answer_limit(&m, 3));
    assert_true(remote_api_answer_limit(&m, 3) < 3 * 1024 * 100);
    buf_deinit(&b);
}

static void complaints(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"{\"error\":{\"message\":\"no such model\",\"code\":404}}", "no such model"},
        {"{\"error\":\"input too long\"}", "input too long"},
        {"{\"message\":\"m\"}", "m"},
        {"{\"detail\":\"d\"}", "d"},
        {"{\"detail\":[1]}", "{\"detail\":[1]}"},
        {"<h1>Bad\r\nGateway</h1>\x1b[31m\xff", "<h1>Bad  Gateway</h1> [31m "},
        {"", ""},
        {"{\"error\":\"wrong key sk-s3cret, sk-s3cret\"}", "wrong key *********, *********"},
        {"wrong key sk-s3cret", "wrong key *********"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char out[64];
        remote_api_complaint(&openai, (struct slice){rows[i][0], strlen(rows[i][0])}, out,
                             sizeof out);
        assert_string_equal(out, rows[i][1]);
    }
    char out[8]; /* the secret is hidden before the text is cut */
    remote_api_complaint(&openai, slice_of("1234sk-s3cret"), out, sizeof out);
    assert_string_equal(out, "1234***");
}

static void survives_failed_allocations(void **state)
{
    (void)state;
    const struct slice texts[] = {{"one", 3}, {"two", 3}};
    json_set_alloc_funcs(mem_alloc, mem_free);
    int rc = -1;
    for (long nth = 1; rc; nth++) {
        struct buf b = {0};
        struct err e = {0};
        mem_fail_after(nth);
        rc = remote_api_request(&openai, texts, 2, false, &b, &e);
        mem_fail_after(0);
        assert_true(rc == 0 || rc == KITH_ENOMEM);
        buf_deinit(&b);
        assert_true(nth < 1000);
    }
    rc = -1;
    for (long nth = 1; rc; nth++) {
        float v[4];
        uint32_t tokens;
        struct err e = {0};
        mem_fail_after(nth);
        rc = read_answer(&openai,
                         "{\"data\":[{\"index\":0,\"embedding\":[1,2.5]},"
                         "{\"index\":1,\"embedding\":[1,2]}]}",
                         2, v, &tokens, &e);
        mem_fail_after(0);
        assert_true(rc != KITH_EINVAL);
        assert_true(nth < 1000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses),
        cmocka_unit_test(identity_is_of_style_model_and_dim),
        cmocka_unit_test(requests),
        cmocka_unit_test(honest_answers),
        cmocka_unit_test(every_lie_by_itself),
        cmocka_unit_test(deep_nesting_is_no_crash),
        cmocka_unit_test(limit_fits_honest_answers),
        cmocka_unit_test(complaints),
        cmocka_unit_test(survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
