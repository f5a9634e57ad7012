/* A model as someone asks for it: files and remote models, read, written and read again, what
 * is refused, and what the child is told. */

#include "server/model_spec.h"

#include <string.h>
#include <unistd.h>

#include "server/config_file.h"
#include "tests/unit/unit.h"

/* Words of a line, as a settings file has them. */
static int read_line(struct model_spec *s, const char *line, struct err *e)
{
    struct slice words[CONFIG_WORDS_MAX];
    struct buf store = {0};
    int n = config_split_line((struct slice){line, strlen(line)}, &store, words, e);
    assert_true(n > 0);
    int rc = model_spec_read(s, words, n, e);
    buf_deinit(&store);
    return rc;
}

static void expect_arguments(const struct model_spec *s, const char *expected)
{
    struct model_arguments a;
    char line[2048] = "";
    model_spec_arguments(s, "auto", 3, &a);
    for (int i = 0; a.words[i]; i++)
        snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s", i ? " " : "",
                 a.words[i]);
    assert_string_equal(line, expected);
}

static void files(void **state)
{
    (void)state;
    struct model_spec s;
    struct err e;
    assert_int_equal(read_line(&s, "mini /models/a.gguf", &e), 0);
    assert_int_equal(s.kind, MODEL_FILE);
    assert_false(s.is_default);
    expect_arguments(&s, "--model /models/a.gguf --threads 3 --precision auto");
    assert_int_equal(read_line(&s, "mini a.gguf THREADS 1 DEFAULT PRECISION int8", &e), 0);
    assert_true(s.is_default);
    expect_arguments(&s, "--model a.gguf --threads 1 --precision int8");
    assert_int_equal(model_spec_make_absolute(&s, &e), 0);
    assert_int_equal(s.source[0], '/');
    assert_non_null(strstr(s.source, "/a.gguf"));
}

static void remote_models(void **state)
{
    (void)state;
    struct model_spec s;
    struct err e;
    assert_int_equal(
        read_line(&s, "nomic ollama+http://127.0.0.1:11434#nomic-embed-text DIM 768", &e), 0);
    assert_int_equal(s.kind, MODEL_REMOTE);
    expect_arguments(&s, "--remote ollama --url http://127.0.0.1:11434 --remote-model "
                         "nomic-embed-text --dim 768 --threads 3 --precision auto");
    assert_int_equal(
        read_line(&s,
                  "big openai+https://api.example/v1#org/model DIM 256 KEY-FILE keys/one "
                  "SEND-DIMENSIONS QUERY-PROMPT \"query: \" FALLBACK b.gguf THREADS 2",
                  &e),
        0);
    assert_int_equal(model_spec_make_absolute(&s, &e), 0);
    char here[1024], expected[2048];
    assert_non_null(getcwd(here, sizeof here));
    snprintf(expected, sizeof expected,
             "--remote openai --url https://api.example/v1 --remote-model org/model --dim 256 "
             "--query-prompt query:  --key-file %.500s/keys/one --fallback %.500s/b.gguf "
             "--send-dimensions --threads 2 --precision auto",
             here, here);
    expect_arguments(&s, expected);
}

/* What is written reads as the same model. */
static void written_and_read(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "a /x/y.gguf",
        "a \"/x y/\\\"z\\\".gguf\" DEFAULT THREADS 0 PRECISION f32",
        "a ollama+http://[::1]:1#m DIM 8 DOCUMENT-PROMPT \"title: none | text: \" RETRIES 0 "
        "PARALLEL 2 BATCH-TEXTS 9 TIMEOUT-MS 100 CONTEXT 512 CA-FILE /ca SEND-DIMENSIONS",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct model_spec s, again, other;
        struct err e;
        struct buf out = {0};
        assert_int_equal(read_line(&s, lines[i], &e), 0);
        model_spec_write(&s, &out);
        buf_u8(&out, '\0');
        assert_int_equal(read_line(&again, out.data, &e), 0);
        assert_true(model_spec_same(&s, &again));
        assert_int_equal(s.is_default, again.is_default);
        other = again;
        other.threads++;
        assert_false(model_spec_same(&s, &other));
        other = again;
        other.remote[0][0] ^= 1;
        assert_false(model_spec_same(&s, &other));
        buf_deinit(&out);
    }
}

static void refusals_say_why(void **state)
{
    (void)state;
    static const struct {
        const char *line, *message;
    } rows[] = {
        {"a", "a name and a path or STYLE+URL#MODEL"},
        {"a/b\\c x", "invalid model name"},
        {"a x DIM 3", "'DIM' is no option of a model file: DEFAULT, THREADS n"},
        {"a x THREADS", "THREADS takes a value"},
        {"a x PRECISION int4", "auto, f32, int8 or bf16, not 'int4'"},
        {"a ollama+http://h DIM 3", "has no #MODEL"},
        {"a ollama+http://h# DIM 3", "has no #MODEL"},
        {"a openai+http://h#m", "needs DIM n"},
        {"a openai+http://h#m DIM", "DIM takes a value"},
        {"a openai+http://h#m DIM 3 KEY secret", "'KEY' is no option of a model: DEFAULT"},
        {"a openai+http://h#m DIM \"\"", "invalid DIM: 1 to 1023 bytes"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct model_spec s;
        struct err e = {0};
        assert_int_equal(read_line(&s, rows[i].line, &e), KITH_EINVAL);
        if (!strstr(e.message, rows[i].message))
            fail_msg("%s: %s", rows[i].line, e.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files),
        cmocka_unit_test(remote_models),
        cmocka_unit_test(written_and_read),
        cmocka_unit_test(refusals_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
