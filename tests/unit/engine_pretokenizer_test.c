/* The pre-tokenizers on texts whose cuts Hugging Face's `tokenizers` gave for the expressions
 * that the header names; on random characters against what every walk must keep; the classes
 * of characters; and composition against utf8proc over whole texts. (That the ids behind them
 * are right for 2,000 lines is what tests/integration/test_bpe.py asserts.) */

#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "engine/nfc.h"
#include "engine/pretokenizer.h"
#include "engine/unicode.h"
#include "tests/unit/unit.h"

/* The words of a text with bars between them, by each of the pre-tokenizers. */
static const struct {
    const char *names, *words;
} cases[] = {
    {"llama-bpe qwen2 qwen35", "it|'\xc5\xbf|'S"},
    {"gpt-4o", "it'\xc5\xbf|'S"},
    {"gpt-2 starcoder", "it|'|\xc5\xbf|'|S"},
    {"llama-bpe qwen2 qwen35 tekken deepseek-v3", "Don|'t| WE|'LL| '|\xc5\xbf"
                                                  "a| '|x"},
    {"gpt-4o", "Don't| WE'LL| '|\xc5\xbf"
               "a| '|x"},
    {"gpt-2 starcoder", "Don|'t| WE|'|LL| '|\xc5\xbf"
                        "a| '|x"},
    {"default", "Don|'|t| WE|'|LL| |'|\xc5\xbf"
                "a| |'|x"},
    {"llama-bpe gpt-4o deepseek-v3 default", "a|123|456|7| |\xd9\xa1\xd9\xa2| |\xc2\xbd"},
    {"qwen2 qwen35 tekken starcoder", "a|1|2|3|4|5|6|7| |\xd9\xa1|\xd9\xa2| |\xc2\xbd"},
    {"gpt-2", "a|1234567| \xd9\xa1\xd9\xa2| \xc2\xbd"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken deepseek-v3",
     " | two|\t|\tways|\n\n| | on| \r\n| end|  \n| "},
    {"gpt-2 starcoder default", " | two|\t|\t|ways|\n\n | on| \r\n| end|  \n "},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder deepseek-v3 default", "\n\n"},
    {"llama-bpe qwen2 qwen35 deepseek-v3", "x|..| /?!\n\n|//|b| $+=`~| a|_b"},
    {"gpt-4o tekken", "x|..| /?!\n\n//|b| $+=`~| a|_b"},
    {"gpt-2 starcoder", "x|..| /?!|\n|\n|//|b| $+=`~| a|_|b"},
    {"default", "x|..| |/?!|\n\n|//|b| |$+=|`|~| a|_|b"},
    {"llama-bpe qwen2 qwen35 gpt-2 starcoder default",
     "HTTPServer| iPhone| \xc7\x85| \xe4\xb8\xad"
     "AB| \xca\xb0"
     "A"},
    {"gpt-4o tekken", "HTTPServer| i|Phone| \xc7\x85| \xe4\xb8\xad|AB| \xca\xb0|A"},
    {"deepseek-v3", "HTTPServer| iPhone| \xc7\x85| |\xe4\xb8\xad|AB| \xca\xb0"
                    "A"},
    {"llama-bpe qwen2", "e|\xcc\x81"
                        "A|\xcc\x81| \xcc\x81|b| \xe0\xa4\x95|\xe0\xa5\x8d\xe0\xa4\xb7"},
    {"qwen35 deepseek-v3", "e\xcc\x81"
                           "A\xcc\x81| \xcc\x81"
                           "b| \xe0\xa4\x95\xe0\xa5\x8d\xe0\xa4\xb7"},
    {"gpt-4o tekken", "e\xcc\x81|A\xcc\x81| \xcc\x81"
                      "b| \xe0\xa4\x95\xe0\xa5\x8d\xe0\xa4\xb7"},
    {"gpt-2 starcoder default",
     "e|\xcc\x81|A|\xcc\x81| \xcc\x81|b| \xe0\xa4\x95|\xe0\xa5\x8d|\xe0\xa4\xb7"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder default",
     "\xe4\xb8\x80\xe9\xbe\xa5\xe9\xbe\xa6\xe3\x81\x82\xe3\x83\xbc|\xef\xbc\x81\xe3\x80\x81|x"},
    {"deepseek-v3", "\xe4\xb8\x80\xe9\xbe\xa5|\xe9\xbe\xa6|\xe3\x81\x82\xe3\x83\xbc|"
                    "\xef\xbc\x81\xe3\x80\x81|x"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder default",
     "\xe2\x80\x8b\xe2\x80\x8b|a|\xe2\x80\x8d|1|\xee\x80\x80"},
    {"deepseek-v3", "\xe2\x80\x8b|\xe2\x80\x8b"
                    "a|\xe2\x80\x8d|1|\xee\x80\x80"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken deepseek-v3", "\xc2\xa0|\xe3\x80\x80"
                                                         "a|\xe2\x80\xa8 |\xc2\x85"
                                                         "b"},
    {"gpt-2 starcoder default", "\xc2\xa0|\xe3\x80\x80|a|\xe2\x80\xa8 |\xc2\x85|b"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder default",
     "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb| \xf0\x9f\x98\x80|z"},
    {"deepseek-v3", "\xf0\x9f\x91\xa9|\xe2\x80\x8d|\xf0\x9f\x92\xbb| \xf0\x9f\x98\x80|z"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 default",
     "\xf0\x9c\xb3\xb0|\xe1\xb2\x89\xe1\xb2\x8a| \xf0\x91\xb7\xa0| \xe0\xa2\x97"},
    {"starcoder deepseek-v3",
     "\xf0\x9c\xb3\xb0|\xe1\xb2\x89\xe1\xb2\x8a| |\xf0\x91\xb7\xa0| \xe0\xa2\x97"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken deepseek-v3", "!a| !|1| .|B|,c| --| '"},
    {"gpt-2 starcoder", "!|a| !|1| .|B|,|c| --| '"},
    {"default", "!|a| |!|1| |.|B|,|c| |--| |'"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder deepseek-v3 default", ""},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder deepseek-v3 default", "'"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder deepseek-v3 default", "'| s"},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken gpt-2 starcoder deepseek-v3 default", " "},
    {"llama-bpe qwen2 qwen35 gpt-4o tekken default", "1| |2| | |3"},
    {"gpt-2", "1| 2| | 3"},
    {"starcoder deepseek-v3", "1| |2|  |3"},
};

static const struct pretokenizer *find(const char *name)
{
    const struct pretokenizer *p = pretokenizer_find(name, strlen(name));
    assert_non_null(p);
    return p;
}

static void check(const char *name, const char *words)
{
    char text[256], got[512] = "";
    size_t n = 0, length = 0, n_word;
    const char *word;
    for (const char *s = words; *s; s++)
        if (*s != '|')
            text[n++] = *s;
    struct pretokens w = pretokens_of(find(name), text, n);
    while (pretokens_next(&w, &word, &n_word))
        length += (size_t)snprintf(got + length, sizeof got - length, "%s%.*s",
                                   length ? "|" : "", (int)n_word, word);
    if (strcmp(got, words) != 0)
        fail_msg("%s: '%s' is not '%s'", name, got, words);
}

static void cuts_as_the_expressions(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char names[128];
        snprintf(names, sizeof names, "%s", cases[i].names);
        for (char *rest = names, *name; (name = strsep(&rest, " "));)
            check(name, cases[i].words);
    }
}

/* Words are never empty, never end inside a character, and are the whole text. */
static void covers_random_text(void **state)
{
    (void)state;
    static const uint32_t common[] = {' ',  ' ',  '\n',  '\r',   '\t',   '\'',  's',     'l',
                                      'A',  'b',  '1',   '.',    '/',    0x301, 0x4e2d,  0x2b0,
                                      0x85, 0xa0, 0x660, 0x3042, 0x200b, 0x1c5, 0x1f600, '$'};
    struct rng rng;
    rng_seed(&rng, unit_seed());
    for (int round = 0; round < 4000; round++) {
        char text[400];
        size_t n = 0, n_word, total = 0;
        while (n + 4 <= sizeof text && rng_below(&rng, 60)) {
            uint32_t c = rng_below(&rng, 8) ? common[rng_below(&rng, sizeof common / 4)]
                                            : (uint32_t)rng_below(&rng, 0x110000);
            if (c < 0xd800 || c >= 0xe000)
                n += utf8_encode(c, text + n);
        }
        const char *word;
        const char *name;
        for (size_t i = 0; (name = pretokenizer_name(i)); i++) {
            struct pretokens w = pretokens_of(find(name), text, n);
            total = 0;
            while (pretokens_next(&w, &word, &n_word)) {
                assert_ptr_equal(word, text + total);
                assert_true(n_word > 0);
                assert_int_equal(utf8_valid_prefix(word, n_word), n_word);
                total += n_word;
            }
            assert_int_equal(total, n);
        }
    }
}

static void kinds(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 128; c++)
        assert_int_equal(unicode_ascii_kinds[c], unicode_kind_of(c));
    assert_int_equal(unicode_kind_of(0x1c5), UNICODE_UPPER); /* title case */
    assert_int_equal(unicode_kind_of(0x2b0), UNICODE_CASELESS);
    assert_int_equal(unicode_kind_of(0x903), UNICODE_COMBINING); /* a spacing mark */
    assert_int_equal(unicode_kind_of(0xbd), UNICODE_NUMBER);
    assert_int_equal(unicode_kind_of(0x85), UNICODE_BLANK);
    assert_int_equal(unicode_kind_of(0x200b), UNICODE_REST);
    assert_int_equal(unicode_kind_of(0x1ccf0), UNICODE_NUMBER);   /* of Unicode 16.0 */
    assert_int_equal(unicode_kind_of(0x2ebf0), UNICODE_CASELESS); /* of 15.1 */
    assert_int_equal(unicode_kind_of(0x378), UNICODE_REST);       /* not assigned */
}

/* --- composition --- */

/* What is called inert is: alone it is its own form, and nothing before it changes it. */
static void inert_characters(void **state)
{
    (void)state;
    static uint8_t second[0x110000];
    uint32_t parts[UNICODE_DECOMPOSED_MAX];
    for (uint32_t c = 0; c < 0x110000; c++) {
        unsigned n = c < 0xd800 || c >= 0xe000 ? unicode_decompose(c, parts) : 0;
        for (unsigned i = 1; i < n; i++)
            second[parts[i]] = 1;
    }
    for (uint32_t c = 0; c < 0x110000; c++) {
        if ((c >= 0xd800 && c < 0xe000) || !nfc_is_inert(c))
            continue;
        unsigned n = unicode_decompose(c, parts);
        if (second[c] || unicode_combining_class(c) || unicode_compose(parts, n) != 1 ||
            parts[0] != c)
            fail_msg("U+%04X is not inert", c);
    }
}

static void compose(const char *text, size_t n, struct buf *out)
{
    buf_init(out);
    nfc_normalise(out, text, n);
    assert_false(out->failed);
}

static void check_composed(const char *text, const char *want)
{
    struct buf got;
    compose(text, strlen(text), &got);
    buf_u8(&got, 0);
    assert_string_equal(got.data, want);
    buf_deinit(&got);
}

static void composes(void **state)
{
    (void)state;
    check_composed("cafe\xcc\x81!", "caf\xc3\xa9!");
    check_composed("\xe2\x84\xab", "\xc3\x85"); /* the angstrom sign */
    check_composed("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"); /* Hangul */
    check_composed("a\xcc\x84\xcc\xa3", "\xe1\xba\xa1\xcc\x84");            /* in order */
    check_composed("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"); /* excluded: stays apart */
    assert_int_equal(nfc_prefix("abc\xc3\xa9 \xe4\xb8\xad", 9), 9);
    assert_int_equal(nfc_prefix("abcde\xcc\x81x", 8), 4);
}

/* Against utf8proc's own walk over the whole text. */
static void agrees_with_utf8proc(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, unit_seed());
    for (int round = 0; round < 4000; round++) {
        char text[1024];
        size_t n = 0;
        while (n + 8 <= sizeof text && rng_below(&rng, 80)) {
            static const uint32_t marks[] = {0x300,  0x301,  0x316, 0x323, 0x338, 0x345, 0x3099,
                                             0x1161, 0x11a8, 0x93c, 0xf71, 0x9be, 'e',   'q'};
            uint64_t kind = rng_below(&rng, 4);
            uint32_t c = kind < 2    ? marks[rng_below(&rng, sizeof marks / sizeof *marks)]
                         : kind == 2 ? (uint32_t)rng_below(&rng, 0x3100)
                                     : (uint32_t)rng_below(&rng, 0x30000);
            if (c && (c < 0xd800 || c >= 0xe000))
                n += utf8_encode(c, text + n);
        }
        struct buf got;
        compose(text, n, &got);
        utf8proc_uint8_t *want;
        utf8proc_ssize_t length =
            utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &want,
                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        assert_int_equal(length, got.len);
        if (length)
            assert_memory_equal(got.data, want, got.len);
        free(want);
        buf_deinit(&got);
    }
}

/* A page of marks in the worst order is done at once. */
static void long_runs_of_marks(void **state)
{
    (void)state;
    enum { MARKS = 300000 };
    char *text = malloc(1 + 2 * MARKS);
    struct buf got;
    text[0] = 'q';
    for (size_t i = 0; i < MARKS; i++)
        memcpy(text + 1 + 2 * i, i % 2 ? "\xcc\xa3" : "\xcc\x87", 2);
    compose(text, 1 + 2 * MARKS, &got);
    assert_int_equal(got.len, 1 + 2 * MARKS);
    assert_memory_equal(got.data + 1, "\xcc\xa3\xcc\xa3", 4); /* below before above */
    assert_memory_equal(got.data + got.len - 4, "\xcc\x87\xcc\x87", 4);
    buf_deinit(&got);
    free(text);
}

static void composing_survives_failed_allocations(void **state)
{
    (void)state;
    static char text[400];
    long n = 1;
    bool failed = true;
    text[0] = 'a';
    for (size_t i = 0; i < 150; i++)
        memcpy(text + 1 + 2 * i, "\xcc\x81", 2);
    for (; failed && n < 100; n++) {
        struct buf got = {0};
        mem_fail_after(n);
        nfc_normalise(&got, text, 301);
        mem_fail_after(0);
        failed = got.failed;
        buf_deinit(&got);
    }
    assert_false(failed);
    assert_true(n > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_as_the_expressions),
        cmocka_unit_test(covers_random_text),
        cmocka_unit_test(kinds),
        cmocka_unit_test(inert_characters),
        cmocka_unit_test(composes),
        cmocka_unit_test(agrees_with_utf8proc),
        cmocka_unit_test(long_runs_of_marks),
        cmocka_unit_test(composing_survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
