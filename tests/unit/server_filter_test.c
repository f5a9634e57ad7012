/* Filters: what Redis answered row by row, what kith means to do differently, random
 * expressions against a plain evaluator, the texts of errors, and limits. */

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/attributes.h"
#include "server/filter.h"
#include "tests/unit/server_filter_rows.h"
#include "tests/unit/unit.h"

static enum answer ask(const char *text, const char *json)
{
    struct buf encoded = {0};
    struct filter *f;
    struct err e = {0};
    int rc = filter_compile(&f, slice_of(text), &e);
    if (rc) {
        assert_int_equal(rc, KITH_EINVAL);
        assert_null(f);
        assert_int_equal(strncmp(e.message, "syntax error in FILTER expression near: ", 40), 0);
        assert_null(strpbrk(e.message, "\r\n"));
        return REFUSED;
    }
    assert_int_equal(attributes_encode(slice_of(json), &encoded, &e), 0);
    bool match = filter_match(f, encoded.data, encoded.len);
    assert_false(filter_match(f, NULL, 0));
    filter_free(f);
    buf_deinit(&encoded);
    return match ? YES : NO;
}

static void rows_agree(const struct row *row, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        enum answer got = ask(row[i].filter, documents[row[i].document]);
        if (got != row[i].answer)
            fail_msg("%s on %s: %d, not %d", row[i].filter, documents[row[i].document], got,
                     row[i].answer);
    }
}

static void answers_as_redis_does(void **state)
{
    (void)state;
    rows_agree(rows, sizeof rows / sizeof *rows);
}

/* What Redis' parser lets pass by accident is refused, what it refuses by accident is taken,
 * and escapes of the JSON are decoded. */
static void differs_where_it_means_to(void **state)
{
    (void)state;
    static const struct row own[] = {
        {0, "1 not", REFUSED},
        {0, "1 !", REFUSED},
        {0, "1 2 +", REFUSED},
        {0, "1 ()", REFUSED},
        {0, ".", REFUSED},
        {0, ".year not in [1984]", REFUSED},
        {0, "!!1", YES},
        {0, "not not .bad", NO},
        {0, "not!not 0", YES},
        {0, "!!!!!!1", YES},
        {0, "1e-5 < 1", YES},
        {0, "1e+2 == 100", YES},
        {0, "(.none == null)", YES},
        {0, "null== .none", YES},
        {11, ".u == 'A'", YES},
    };
    rows_agree(own, sizeof own / sizeof *own);
}

static void the_last_of_two_names_counts(void **state)
{
    (void)state;
    assert_int_equal(ask(".a == 2", "{\"a\":1,\"a\":2}"), YES);
    assert_int_equal(ask("\"\xc3\xa4\" == .a and .\x62 == 1", "{\"a\":\"\\u00e4\",\"b\":1}"),
                     YES);
}

/* --- random expressions and a plain evaluator --- */

enum { NAMES = 4, TEXT_MAX = 4000 };

struct twin {
    struct rng rng;
    double values[NAMES]; /* of the fields .n0, .n1, ... */
    char text[TEXT_MAX];
    size_t n;
};

static void put(struct twin *t, const char *word)
{
    size_t n = strlen(word);
    assert_true(t->n + n < TEXT_MAX);
    memcpy(t->text + t->n, word, n + 1);
    t->n += n;
}

static const struct {
    const char *word;
    int precedence;
} twin_operators[] = {{" or ", 0}, {"||", 0}, {" and ", 1}, {"&&", 1}, {">", 2},  {">=", 2},
                      {"<", 2},    {"<=", 2}, {"==", 2},    {"!=", 2}, {"+ ", 3}, {" - ", 3},
                      {"*", 4},    {"/", 4},  {"%", 4},     {"**", 5}};

static double twin_apply(const char *word, double a, double b)
{
    switch (word[strspn(word, " ")]) {
    case 'o':
    case '|':
        return a != 0 || b != 0;
    case 'a':
    case '&':
        return a != 0 && b != 0;
    case '>':
        return word[1] == '=' ? a >= b : a > b;
    case '<':
        return word[1] == '=' ? a <= b : a < b;
    case '=':
        return a == b;
    case '!':
        return a != b;
    case '+':
        return a + b;
    case '-':
        return a - b;
    case '/':
        return a / b;
    case '%':
        return fmod(a, b);
    default:
        return word[1] == '*' ? pow(a, b) : a * b;
    }
}

/* Writes an expression whose operators bind at least this tightly and returns its value. */
static double twin_expression(struct twin *t, int lowest, int depth)
{
    char word[32];
    uint64_t kind = rng_below(&t->rng, depth > 0 ? 10 : 3);
    if (kind < 2) {
        size_t name = (size_t)rng_below(&t->rng, NAMES);
        snprintf(word, sizeof word, ".n%zu", name);
        put(t, word);
        return t->values[name];
    }
    if (kind == 2) {
        int value = (int)rng_below(&t->rng, 5) - 2;
        snprintf(word, sizeof word, "%d", value);
        put(t, word);
        return value;
    }
    if (kind == 3) {
        put(t, rng_below(&t->rng, 2) ? "!" : "not ");
        return twin_expression(t, 6, depth - 1) == 0;
    }
    size_t n = sizeof twin_operators / sizeof *twin_operators,
           i = (size_t)rng_below(&t->rng, n);
    int precedence = twin_operators[i].precedence;
    bool paren = precedence < lowest;
    if (paren)
        put(t, "(");
    bool right_first = precedence == 5; /* it leans to the right */
    double a = twin_expression(t, precedence + right_first, depth - 1);
    put(t, " ");
    put(t, twin_operators[i].word);
    double b = twin_expression(t, precedence + !right_first, depth - 1);
    if (paren)
        put(t, ")");
    return twin_apply(twin_operators[i].word, a, b);
}

static void agrees_with_the_twin(void **state)
{
    (void)state;
    struct twin *t = mem_alloc(sizeof *t);
    rng_seed(&t->rng, unit_seed());
    for (int round = 0; round < 20000; round++) {
        char json[128];
        for (int i = 0; i < NAMES; i++)
            t->values[i] = (double)rng_below(&t->rng, 7) - 3;
        snprintf(json, sizeof json, "{\"n3\":%g,\"n1\":%g,\"n0\":%g,\"n2\":%g}", t->values[3],
                 t->values[1], t->values[0], t->values[2]);
        t->n = 0;
        double value = twin_expression(t, 0, 1 + (int)rng_below(&t->rng, 6));
        if (ask(t->text, json) != (value != 0 ? YES : NO))
            fail_msg("%s on %s is not %g", t->text, json, value);
    }
    mem_free(t);
}

/* --- errors --- */

static void errors_show_the_place(void **state)
{
    (void)state;
    static const struct {
        const char *filter, *message;
    } cases[] = {
        {".year >>< 3", ">< 3 (a value was expected at 8: .year >^>< 3)"},
        {".year >", ".year > (a value was expected at 8: .year >^)"},
        {"", " (a value was expected at 1: ^)"},
        {".a 5", "5 (an operator was expected at 4: .a ^5)"},
        {".a = 5", "= 5 (an operator was expected ('==' compares) at 4: .a ^= 5)"},
        {".a AND 1", "AND 1 (an operator was expected (words are in lower case) at 4: "
                     ".a ^AND 1)"},
        {".a == true", "true (a value was expected (true is 1) at 7: .a == ^true)"},
        {".a not in [1]", "not in [1] (an operator was expected (it is written: not (a in b)) "
                          "at 4: .a ^not in [1])"},
        {"(1", "(1 (this '(' is not closed at 1: ^(1)"},
        {"1)", ") (this ')' closes nothing at 2: 1^))"},
        {"1 == \"x", "\"x (this string is not closed at 6: 1 == ^\"x)"},
        {"1 in [1 2]", "2] (',' or ']' was expected at 9: 1 in [1 ^2])"},
        {"1 in [1,.a]", ".a] (a number, a string or ']' was expected at 9: 1 in [1,^.a])"},
        {"1\r\n\x01", "\\x01 (an operator was expected at 4: 1  ^\\x01)"},
        {".\xc3\xa4", "\xc3\xa4 (the name of a field was expected at 2: .^\xc3\xa4)"},
        {"\xff", "\\xff (a value was expected at 1: ^\\xff)"},
        {"1e", "1e (a digit of the exponent was expected at 3: 1e^)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct filter *f;
        struct err e = {0};
        assert_int_equal(filter_compile(&f, slice_of(cases[i].filter), &e), KITH_EINVAL);
        assert_string_equal(e.message + 40, cases[i].message);
    }
}

/* Of a long expression the error shows what stands around the place. */
static void errors_stay_short(void **state)
{
    (void)state;
    struct buf text = {0};
    for (int i = 0; i < 100; i++)
        buf_append_str(&text, "\"\xe6\x97\xa5\" == .field and ");
    buf_append_str(&text, "? ");
    for (int i = 0; i < 100; i++)
        buf_append_str(&text, "and .field == \"\xe6\x97\xa5\"");
    struct filter *f;
    struct err e = {0};
    assert_int_equal(filter_compile(&f, (struct slice){text.data, text.len}, &e), KITH_EINVAL);
    assert_non_null(strstr(e.message, "and ^? and .field"));
    assert_non_null(strstr(e.message, "near: ? and .field"));
    assert_true(strlen(e.message) < 400);
    assert_string_equal(e.message + strlen(e.message) - 4, "...)");
    text.len = 0;
    for (int i = 0; i < 300; i++)
        buf_append_str(&text, "\xfe\x01");
    assert_int_equal(filter_compile(&f, (struct slice){text.data, text.len}, &e), KITH_EINVAL);
    assert_true(strlen(e.message) < 400);
    assert_string_equal(e.message + strlen(e.message) - 4, "...)");
    buf_deinit(&text);
}

/* --- limits --- */

static int compile_repeated(const char *open, const char *middle, const char *close, int n)
{
    struct buf text = {0};
    struct filter *f;
    struct err e = {0};
    for (int i = 0; i < n; i++)
        buf_append_str(&text, open);
    buf_append_str(&text, middle);
    for (int i = 0; i < n; i++)
        buf_append_str(&text, close);
    int rc = filter_compile(&f, (struct slice){text.data, text.len}, &e);
    assert_int_equal(rc != 0, e.message[0] != '\0');
    if (!rc) {
        struct buf encoded = {0};
        assert_int_equal(attributes_encode(slice_of("{\"a\":1}"), &encoded, &e), 0);
        assert_true(filter_match(f, encoded.data, encoded.len));
        buf_deinit(&encoded);
    }
    filter_free(f);
    buf_deinit(&text);
    return rc;
}

static void nesting_and_length_are_limited(void **state)
{
    (void)state;
    assert_int_equal(compile_repeated("(", ".a", ")", 100), 0);
    assert_int_equal(compile_repeated("(", ".a", ")", 101), KITH_ELIMIT);
    assert_int_equal(compile_repeated("(", "", "", 60000), KITH_ELIMIT);
    assert_int_equal(compile_repeated(".a**", ".a", "", 100), 0);
    assert_int_equal(compile_repeated(".a**", ".a", "", 101), KITH_ELIMIT);
    /* As many registers as nesting can take: four left sides wait at each level. */
    assert_int_equal(
        compile_repeated("!!.a == !!.a + !!.a * !!.a * (", ".a > 0", " - .a + .a)", 100), 0);
    assert_int_equal(
        compile_repeated("!.a or .a >= .a - .a + .a * .a * .a / .a * (", "1 and .a", ")", 50),
        0);
    assert_int_equal(compile_repeated("!", ".a", "", 60000), 0);
    assert_int_equal(compile_repeated(".a and ", ".a", "", 9000), 0);
    assert_int_equal(compile_repeated("", ".a", "+1", 30000), 0);
    assert_int_equal(compile_repeated(" ", ".a", "", 65533), 0);
    assert_int_equal(compile_repeated(" ", ".a", "", 65534), KITH_ELIMIT);
}

static void fields_are_limited(void **state)
{
    (void)state;
    for (int n = 256; n <= 257; n++) {
        struct buf text = {0};
        struct filter *f;
        struct err e = {0};
        for (int i = 0; i < n; i++)
            buf_printf(&text, "%s.f%d", i ? " or " : "", i);
        buf_append_str(&text, " or .f0 or .f255");
        assert_int_equal(filter_compile(&f, (struct slice){text.data, text.len}, &e),
                         n == 256 ? 0 : KITH_ELIMIT);
        filter_free(f);
        buf_deinit(&text);
    }
}

static void running_out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    bool done = false;
    for (long n = 1; !done; n++) {
        struct filter *f;
        struct err e = {0};
        mem_fail_after(n);
        int rc = filter_compile(&f, slice_of(".a > 1 and (.b in [1,2] or .c ** 2 == .d)"), &e);
        mem_fail_after(0);
        done = rc == 0;
        assert_true(done ? f != NULL : rc == KITH_ENOMEM && f == NULL && e.message[0]);
        filter_free(f);
        assert_true(n < 100);
    }
}

/* Damaged attributes match nothing that needs what is gone, and nothing is read past them. */
static void damaged_attributes_are_no_danger(void **state)
{
    (void)state;
    struct rng rng;
    struct buf encoded = {0};
    struct filter *f;
    struct err e = {0};
    rng_seed(&rng, unit_seed());
    assert_int_equal(filter_compile(&f, slice_of(".a in .t or .s in .t or 'x' in .s"), &e), 0);
    assert_int_equal(
        attributes_encode(slice_of("{\"a\":1,\"t\":[1,\"x\",\"\\n\"],\"s\":\"\\u0041x\"}"),
                          &encoded, &e),
        0);
    for (int round = 0; round < 100000; round++) {
        char *copy = mem_dup(encoded.data, encoded.len);
        size_t n = rng_below(&rng, 3) ? encoded.len : rng_below(&rng, encoded.len);
        for (uint64_t i = rng_below(&rng, 4); i > 0; i--)
            copy[rng_below(&rng, encoded.len)] = (char)rng_next(&rng);
        copy = mem_realloc(copy, n ? n : 1);
        (void)filter_match(f, copy, n);
        mem_free(copy);
    }
    filter_free(f);
    buf_deinit(&encoded);
}

static void tells_its_speed(void **state)
{
    (void)state;
    enum { ROUNDS = 1000000 };
    struct buf encoded = {0};
    struct filter *f;
    struct err e = {0};
    assert_int_equal(
        attributes_encode(slice_of("{\"year\":1994,\"genre\":\"x\",\"title\":\"y\","
                                   "\"rating\":8.5,\"tags\":[\"a\",\"b\"]}"),
                          &encoded, &e),
        0);
    int64_t start = clock_mono_ns();
    for (int i = 0; i < ROUNDS / 10; i++) {
        assert_int_equal(filter_compile(&f, slice_of(".year > 1990 and .genre == \"x\""), &e),
                         0);
        filter_free(f);
    }
    int64_t compiled = clock_mono_ns();
    assert_int_equal(filter_compile(&f, slice_of(".year > 1990 and .genre == \"x\""), &e), 0);
    int matches = 0;
    for (int i = 0; i < ROUNDS; i++)
        matches += filter_match(f, encoded.data, encoded.len);
    int64_t end = clock_mono_ns();
    assert_int_equal(matches, ROUNDS);
    printf("compile %.0f ns, match %.1f ns\n", (double)(compiled - start) / (ROUNDS / 10.),
           (double)(end - compiled) / ROUNDS);
    filter_free(f);
    buf_deinit(&encoded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_as_redis_does),
        cmocka_unit_test(differs_where_it_means_to),
        cmocka_unit_test(the_last_of_two_names_counts),
        cmocka_unit_test(agrees_with_the_twin),
        cmocka_unit_test(errors_show_the_place),
        cmocka_unit_test(errors_stay_short),
        cmocka_unit_test(nesting_and_length_are_limited),
        cmocka_unit_test(fields_are_limited),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
        cmocka_unit_test(damaged_attributes_are_no_danger),
        cmocka_unit_test(tells_its_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
