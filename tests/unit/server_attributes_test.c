/* Attributes: values of every kind, JSON that must be refused with its place, random objects
 * against what they were made from, damaged encodings, limits. */

#include <locale.h>
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/attributes.h"
#include "server/number.h"
#include "tests/unit/unit.h"

static struct attribute_value find(const struct buf *encoded, const char *name)
{
    struct slice s = slice_of(name);
    return attributes_find(encoded->data, encoded->len, s, attribute_name_hash(s));
}

static void encode(struct buf *encoded, const char *json)
{
    struct err e = {0};
    buf_clear(encoded);
    if (attributes_encode(slice_of(json), encoded, &e))
        fail_msg("%s: %s", json, e.message);
    struct slice again = attributes_json(encoded->data, encoded->len);
    assert_true(slice_equal(again, slice_of(json)));
    assert_int_equal(attributes_bytes(encoded->data, encoded->len), encoded->len);
}

static void assert_string(const struct attribute_value *v, const char *bytes, size_t n)
{
    assert_int_equal(v->type, ATTRIBUTE_STRING);
    assert_int_equal(v->string.n, n);
    assert_memory_equal(v->string.p, bytes, n);
}

static void every_kind_of_value_is_found(void **state)
{
    (void)state;
    struct buf encoded = {0};
    encode(&encoded,
           " {\"i\":17,\"d\" : -0.5e-3,\"t\":true,\"f\":false,\"n\":null,\"s\":\"plain\","
           "\"\":\"unnamed\",\"o\":{\"i\":[{}]},\"e\":[],"
           "\"a\":[1,\"two\",null,true,[3,[\"4\"]],\"\\t5\"],\"x\":[1,{}]}\n");
    assert_true(find(&encoded, "i").number == 17);
    assert_true(find(&encoded, "d").number == -0.5e-3);
    assert_true(find(&encoded, "t").number == 1);
    assert_int_equal(find(&encoded, "f").type, ATTRIBUTE_NUMBER);
    assert_true(find(&encoded, "f").number == 0);
    assert_int_equal(find(&encoded, "n").type, ATTRIBUTE_NULL);
    assert_int_equal(find(&encoded, "o").type, ATTRIBUTE_OTHER);
    assert_int_equal(find(&encoded, "x").type, ATTRIBUTE_OTHER);
    assert_int_equal(find(&encoded, "none").type, ATTRIBUTE_NONE);
    struct attribute_value s = find(&encoded, "s"), a = find(&encoded, "a"),
                           empty = find(&encoded, "e"), unnamed = find(&encoded, "");
    assert_string(&s, "plain", 5);
    assert_string(&unnamed, "unnamed", 7);
    assert_int_equal(empty.type, ATTRIBUTE_TUPLE);
    assert_int_equal(empty.n_items, 0);
    assert_int_equal(a.type, ATTRIBUTE_TUPLE);
    assert_int_equal(a.n_items, 6);
    struct attribute_value items[7];
    for (uint32_t i = 0; i < 7; i++)
        items[i] = attribute_item(&a, i);
    assert_true(items[0].number == 1);
    assert_string(&items[1], "two", 3);
    assert_int_equal(items[2].type, ATTRIBUTE_NULL);
    assert_true(items[3].number == 1);
    assert_int_equal(items[4].type, ATTRIBUTE_TUPLE);
    assert_int_equal(items[4].n_items, 0);
    assert_string(&items[5], "\t5", 2);
    assert_int_equal(items[6].type, ATTRIBUTE_NONE);
    assert_int_equal(attribute_item(&items[4], 0).type, ATTRIBUTE_NONE);
    assert_int_equal(attribute_item(&s, 0).type, ATTRIBUTE_NONE);
    buf_deinit(&encoded);
}

static void escapes_are_decoded(void **state)
{
    (void)state;
    static const struct {
        const char *json, *bytes;
        size_t n;
    } cases[] = {
        {"{\"v\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", "\"\\/\b\f\n\r\t", 8},
        {"{\"v\":\"\\u0041\\u00e4\\u20AC\"}", "A\xc3\xa4\xe2\x82\xac", 6},
        {"{\"v\":\"\\ud83d\\ude00!\"}", "\xf0\x9f\x98\x80!", 5},
        {"{\"v\":\"\\u0000\"}", "", 1},
        {"{\"v\":\"a\\u0000b\"}", "a\0b", 3},
        {"{\"v\":\"before \\n after \xc3\xa4 and \\t on\"}",
         "before \n after \xc3\xa4 and \t on", 26},
        {"{\"v\":\"\\n\"}", "\n", 1},
        {"{\"v\":\"\\n\\n\\n\"}", "\n\n\n", 3},
        {"{\"\\u0076\":\"\xf4\x8f\xbf\xbf\x7f\"}", "\xf4\x8f\xbf\xbf\x7f", 5},
        {"{\"z\":\"\\n1\",\"v\":\"\\t2\",\"y\":\"\\n3\"}", "\t2", 2},
    };
    struct buf encoded = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        encode(&encoded, cases[i].json);
        struct attribute_value v = find(&encoded, "v");
        assert_string(&v, cases[i].bytes, cases[i].n);
    }
    buf_deinit(&encoded);
}

/* What stands behind "attributes must be a JSON object: ". */
static void refusals_name_the_place(void **state)
{
    (void)state;
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"", "expected '{' at byte 1, found the end"},
        {"  ", "expected '{' at byte 3, found the end"},
        {"[]", "expected '{' at byte 1, found '['"},
        {"12", "expected '{' at byte 1, found '1'"},
        {"\"a\"", "expected '{' at byte 1, found '\"'"},
        {"{", "expected '\"' before a name at byte 2, found the end"},
        {"{a:1}", "expected '\"' before a name at byte 2, found 'a'"},
        {"{'a':1}", "expected '\"' before a name at byte 2, found '''"},
        {"{\"a\" 1}", "expected ':' at byte 6, found '1'"},
        {"{\"a\"", "expected ':' at byte 5, found the end"},
        {"{\"a\":}", "expected a value at byte 6, found '}'"},
        {"{\"a\":", "expected a value at byte 6, found the end"},
        {"{\"a\":1", "expected ',' or '}' at byte 7, found the end"},
        {"{\"a\":1 \"b\":2}", "expected ',' or '}' at byte 8, found '\"'"},
        {"{\"a\":1,}", "expected '\"' before a name at byte 8, found '}'"},
        {"{\"a\":1}}", "expected nothing more at byte 8, found '}'"},
        {"{} x", "expected nothing more at byte 4, found 'x'"},
        {"{\"a\":tru}", "expected true, false or null at byte 6, found 't'"},
        {"{\"a\":nul", "expected true, false or null at byte 6, found 'n'"},
        {"{\"a\":True}", "expected a value at byte 6, found 'T'"},
        {"{\"a\":+1}", "expected a value at byte 6, found '+'"},
        {"{\"a\":.5}", "expected a value at byte 6, found '.'"},
        {"{\"a\":-}", "expected a digit at byte 7, found '}'"},
        {"{\"a\":01}", "expected ',' or '}' at byte 7, found '1'"},
        {"{\"a\":1.}", "expected a digit after '.' at byte 8, found '}'"},
        {"{\"a\":1e}", "expected a digit of the exponent at byte 8, found '}'"},
        {"{\"a\":1e+}", "expected a digit of the exponent at byte 9, found '}'"},
        {"{\"a\":0x1}", "expected ',' or '}' at byte 7, found 'x'"},
        {"{\"a\":NaN}", "expected a value at byte 6, found 'N'"},
        {"{\"a\":Infinity}", "expected a value at byte 6, found 'I'"},
        {"{\"a\":\"b}", "expected '\"' at the end of a string at byte 9, found the end"},
        {"{\"a\":\"b\n\"}", "expected an escape (\\n, \\u000a) instead of a control character "
                            "at byte 8, found byte 0x0a"},
        {"{\"a\":\"\\x\"}",
         "expected one of \" \\ / b f n r t u after a backslash at byte 8, found 'x'"},
        {"{\"a\":\"\\",
         "expected one of \" \\ / b f n r t u after a backslash at byte 8, found the end"},
        {"{\"a\":\"\\u12g4\"}",
         "expected four hexadecimal digits after \\u at byte 11, found 'g'"},
        {"{\"a\":\"\\ud800\"}", "expected the second half of a surrogate pair (\\udc00 to "
                                "\\udfff) at byte 13, found '\"'"},
        {"{\"a\":\"\\ud800\\u0041\"}",
         "expected the second half of a surrogate pair (dc00 to dfff) at byte 15, found '0'"},
        {"{\"a\":\"\\udc00\"}",
         "expected a character or the first half of a surrogate pair at byte 9, found 'd'"},
        {"{\"a\":\"\xff\"}", "expected UTF-8 at byte 7, found byte 0xff"},
        {"{\"a\":\"\xed\xa0\x80\"}", "expected UTF-8 at byte 7, found byte 0xed"},
        {"{\"a\":[1,]}", "expected a value at byte 9, found ']'"},
        {"{\"a\":[1 2]}", "expected ',' or ']' at byte 9, found '2'"},
        {"{\"a\":[1", "expected ',' or '}' at byte 8, found the end"},
        {"{\"a\":[\"x\"", "expected ',' or ']' at byte 10, found the end"},
        {"{\"a\":[1}", "expected ',' or ']' at byte 8, found '}'"},
        {"{\"a\":[[1,]]}", "expected a value at byte 10, found ']'"},
        {"{\"a\":[[1}]]}", "expected ',' or ']' at byte 9, found '}'"},
        {"{\"a\":{\"b\":[{\"c\":1]}]}}", "expected ',' or '}' at byte 18, found ']'"},
        {"{\"a\":{\"b\" 1}}", "expected ':' at byte 11, found '1'"},
        {"{\"a\":{\"b\":1,}}", "expected '\"' before a name at byte 13, found '}'"},
        {"{\"a\":{\"b\":\"\x01\"}}", "expected an escape (\\n, \\u000a) instead of a control "
                                     "character at byte 12, found byte 0x01"},
        {"{\"a\":1 /* no */}", "expected ',' or '}' at byte 8, found '/'"},
        {"\xef\xbb\xbf{}", "expected '{' at byte 1, found byte 0xef"},
    };
    struct buf out = {0};
    buf_append_str(&out, "kept");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        assert_int_equal(attributes_encode(slice_of(cases[i].json), &out, &e), KITH_EINVAL);
        assert_int_equal(strncmp(e.message, "attributes must be a JSON object: ", 34), 0);
        assert_string_equal(e.message + 34, cases[i].message);
        assert_int_equal(out.len, 4);
    }
    /* A NUL is a byte like another, not an end. */
    struct err e = {0};
    assert_int_equal(attributes_encode((struct slice){"{\"a\":1}\0", 8}, &out, &e),
                     KITH_EINVAL);
    assert_int_equal(attributes_encode((struct slice){"{\"a\":\"\0\"}", 9}, &out, &e),
                     KITH_EINVAL);
    buf_deinit(&out);
}

/* --- numbers --- */

static void numbers_are_those_of_strtod(void **state)
{
    (void)state;
    struct rng rng;
    struct buf encoded = {0};
    rng_seed(&rng, unit_seed());
    for (int round = 0; round < 100000; round++) {
        char number[80], json[100];
        int digits = (int)rng_below(&rng, 22), at = (int)rng_below(&rng, 4) - 1;
        uint64_t bits = rng_next(&rng);
        double any;
        memcpy(&any, &bits, sizeof any);
        if (round % 3 == 0)
            snprintf(number, sizeof number, "%.*g", digits, isfinite(any) ? any : (double)bits);
        else if (round % 3 == 1)
            snprintf(number, sizeof number, "%s%llu.%0*llue%d", at < 0 ? "-" : "",
                     (unsigned long long)(bits >> rng_below(&rng, 64)), digits,
                     (unsigned long long)rng_below(&rng, 1000),
                     (int)rng_below(&rng, 700) - 350);
        else
            snprintf(number, sizeof number, "%.*f", digits,
                     (double)(int64_t)bits / (double)(UINT64_C(1) << rng_below(&rng, 64)));
        snprintf(json, sizeof json, "{\"v\":%s}", number);
        encode(&encoded, json);
        double got = find(&encoded, "v").number, want = strtod(number, NULL);
        if (memcmp(&got, &want, sizeof got) != 0)
            fail_msg("%s is %.17g, not %.17g", number, got, want);
    }
    encode(&encoded, "{\"v\":-0,\"w\":1e999,\"x\":-1e999,\"y\":1e-999}");
    assert_true(signbit(find(&encoded, "v").number));
    assert_true(find(&encoded, "w").number == HUGE_VAL);
    assert_true(find(&encoded, "x").number == -HUGE_VAL);
    assert_true(find(&encoded, "y").number == 0);
    buf_deinit(&encoded);
}

/* A process whose numbers have commas reads them as any other. Where the machine has no such
 * locale this asks nothing. */
static void the_locale_does_not_matter(void **state)
{
    (void)state;
    static const char *const with_comma[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "it_IT.UTF-8"};
    for (size_t i = 0; i < sizeof with_comma / sizeof *with_comma; i++)
        if (setlocale(LC_NUMERIC, with_comma[i]))
            break;
    const char *many = "0.123456789012345678901234567890";
    assert_true(number_decimal("1.5", "1.5" + 3) == 1.5);
    assert_true(number_decimal(many, many + strlen(many)) > 0.12);
    assert_true(number_of_text("1.5", 3) == 1.5);
    setlocale(LC_NUMERIC, "C");
    assert_true(number_of_text("1.5x", 4) == 0);
    assert_true(number_of_text("1\0", 2) == 0);
    assert_true(number_of_text("", 0) == 0);
    char ones[300];
    memset(ones, '1', sizeof ones);
    assert_true(number_of_text(ones, 255) > 1e250);
    assert_true(number_of_text(ones, 256) == 0);
}

/* --- many fields --- */

/* Objects of any size with repeated names, against a list in which the last one counts. */
static void agrees_with_a_list(void **state)
{
    (void)state;
    enum { NAMES = 600 };
    struct rng rng;
    struct buf json = {0}, encoded = {0};
    rng_seed(&rng, unit_seed());
    for (int round = 0; round < 300; round++) {
        double values[NAMES];
        bool there[NAMES] = {false};
        size_t names = 1 + (size_t)rng_below(&rng, round % 2 ? NAMES : 20);
        size_t n = (size_t)rng_below(&rng, 800);
        buf_clear(&json);
        for (size_t i = 0; i < n; i++) {
            size_t name = (size_t)rng_below(&rng, names);
            values[name] = (double)rng_below(&rng, 1000);
            there[name] = true;
            buf_printf(&json, rng_below(&rng, 2) ? "%s\"n%zu\":%g" : "%s\"\\u006e%zu\": %g",
                       i ? "," : "{", name, values[name]);
        }
        buf_append(&json, n ? "}" : "{}", n ? 2 : 3);
        encode(&encoded, json.data);
        for (size_t i = 0; i < NAMES; i++) {
            char name[16];
            snprintf(name, sizeof name, "n%zu", i);
            struct attribute_value v = find(&encoded, name);
            assert_int_equal(v.type, there[i] ? ATTRIBUTE_NUMBER : ATTRIBUTE_NONE);
            if (there[i])
                assert_true(v.number == values[i]);
        }
    }
    buf_deinit(&json);
    buf_deinit(&encoded);
}

/* --- limits and damage --- */

static int encode_nested(const char *open, const char *middle, const char *close, int n)
{
    struct buf json = {0}, encoded = {0};
    struct err e = {0};
    buf_append_str(&json, "{\"a\":");
    for (int i = 0; i < n; i++)
        buf_append_str(&json, open);
    buf_append_str(&json, middle);
    for (int i = 0; i < n; i++)
        buf_append_str(&json, close);
    buf_append_str(&json, "}");
    int rc = attributes_encode((struct slice){json.data, json.len}, &encoded, &e);
    assert_int_equal(rc == 0, e.message[0] == '\0');
    assert_int_equal(rc == 0, encoded.len > 0);
    buf_deinit(&json);
    buf_deinit(&encoded);
    return rc;
}

static void nesting_and_length_are_limited(void **state)
{
    (void)state;
    /* The object itself is the first level. */
    assert_int_equal(encode_nested("[", "", "]", 63), 0);
    assert_int_equal(encode_nested("[", "", "]", 64), KITH_ELIMIT);
    assert_int_equal(encode_nested("{\"b\":", "1", "}", 63), 0);
    assert_int_equal(encode_nested("{\"b\":", "1", "}", 64), KITH_ELIMIT);
    assert_int_equal(encode_nested("[{\"b\":1,\"c\":", "[]", ",\"d\":2},3]", 31), 0);
    assert_int_equal(encode_nested("[{\"b\":1,\"c\":", "[]", ",\"d\":2},3]", 32), KITH_ELIMIT);
    assert_int_equal(encode_nested("[", "", "", 30000), KITH_ELIMIT);
    assert_int_equal(encode_nested("", "[1", ",1]", 1), 0);
    assert_int_equal(encode_nested("", "\"", "x", 1), KITH_EINVAL);
    /* One field: 16 bytes in front, 16 for it, and the JSON: 8 and what is in the quotes. */
    struct buf json = {0}, encoded = {0};
    struct err e = {0};
    for (size_t n = ATTRIBUTES_MAX_BYTES - 32; n <= ATTRIBUTES_MAX_BYTES - 31; n++) {
        buf_clear(&json);
        buf_append_str(&json, "{\"a\":\"");
        while (json.len < n - 2)
            buf_u8(&json, 'x');
        buf_append_str(&json, "\"}");
        assert_int_equal(json.len, n);
        int rc = attributes_encode((struct slice){json.data, json.len}, &encoded, &e);
        assert_int_equal(rc, n == ATTRIBUTES_MAX_BYTES - 32 ? 0 : KITH_ELIMIT);
    }
    assert_int_equal(encoded.len, ATTRIBUTES_MAX_BYTES);
    assert_int_equal(attributes_encode((struct slice){json.data, (size_t)-1}, &encoded, &e),
                     KITH_ELIMIT);
    buf_deinit(&json);
    buf_deinit(&encoded);
}

static void running_out_of_memory_appends_nothing(void **state)
{
    (void)state;
    struct buf out = {0};
    struct err e = {0};
    mem_fail_after(1);
    assert_int_equal(attributes_encode(slice_of("{\"a\":1}"), &out, &e), KITH_ENOMEM);
    mem_fail_after(0);
    assert_int_equal(out.len, 0);
    buf_deinit(&out);
}

static void appends_behind_what_is_there(void **state)
{
    (void)state;
    struct buf out = {0};
    struct err e = {0};
    buf_append_str(&out, "abc");
    assert_int_equal(attributes_encode(slice_of("{\"a\":[1,\"\\n\"],\"b\":\"x\"}"), &out, &e),
                     0);
    size_t first = attributes_bytes(out.data + 3, out.len - 3);
    assert_int_equal(first, out.len - 3);
    assert_int_equal(attributes_encode(slice_of("{}"), &out, &e), 0);
    /* What stands behind does not matter. */
    assert_int_equal(attributes_bytes(out.data + 3, out.len - 3), first);
    struct attribute_value v = attributes_find(out.data + 3, out.len - 3, slice_of("b"),
                                               attribute_name_hash(slice_of("b")));
    assert_string(&v, "x", 1);
    assert_memory_equal(out.data, "abc", 3);
    buf_deinit(&out);
}

static void walk(const char *encoded, size_t n)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "none"};
    struct slice json = attributes_json(encoded, n);
    uint64_t sum = 0;
    for (size_t i = 0; i < json.n; i++)
        sum += (unsigned char)json.p[i];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct slice name = slice_of(names[i]);
        struct attribute_value v = attributes_find(encoded, n, name, attribute_name_hash(name));
        for (size_t j = 0; j < v.string.n; j++)
            sum += (unsigned char)v.string.p[j];
        for (uint32_t j = 0; j < v.n_items; j++) {
            struct attribute_value item = attribute_item(&v, j);
            for (size_t k = 0; k < item.string.n; k++)
                sum += (unsigned char)item.string.p[k];
        }
    }
    assert_true(sum < UINT64_MAX);
}

/* Under the address sanitizer a read past the end is the failure. */
static void damage_is_never_followed_outside(void **state)
{
    (void)state;
    struct rng rng;
    struct buf encoded = {0};
    rng_seed(&rng, unit_seed());
    for (int round = 0; round < 20000; round++) {
        encode(&encoded, round % 2
                             ? "{\"a\":[1,\"x\",\"\\n\"],\"b\":\"y\",\"c\":\"\\u0041\",\"d\":4}"
                             : "{\"a\":1,\"b\":[],\"c\":{},\"d\":[[]],\"e\":null}");
        size_t n = rng_below(&rng, 3) ? encoded.len : rng_below(&rng, encoded.len);
        for (uint64_t i = 1 + rng_below(&rng, 4); i > 0; i--)
            encoded.data[rng_below(&rng, encoded.len)] = (char)rng_next(&rng);
        char *copy = mem_alloc(n ? n : 1);
        memcpy(copy, encoded.data, n);
        walk(copy, n);
        mem_free(copy);
    }
    encode(&encoded, "{\"a\":1}");
    encoded.data[4] = 2; /* a version to come */
    assert_int_equal(attributes_bytes(encoded.data, encoded.len), 0);
    assert_int_equal(find(&encoded, "a").type, ATTRIBUTE_NONE);
    assert_int_equal(attributes_json(encoded.data, encoded.len).n, 0);
    assert_int_equal(attributes_bytes(NULL, 0), 0);
    buf_deinit(&encoded);
}

static void tells_its_speed(void **state)
{
    (void)state;
    enum { ROUNDS = 300000 };
    const char *json =
        "{\"year\": 1994, \"genre\": \"drama\", \"rating\": 8.5, \"title\": \"The "
        "Shawshank\", \"tags\": [\"prison\", \"hope\"]}";
    struct buf encoded = {0};
    struct err e = {0};
    int64_t start = clock_mono_ns();
    for (int i = 0; i < ROUNDS; i++) {
        encoded.len = 0;
        assert_int_equal(attributes_encode(slice_of(json), &encoded, &e), 0);
    }
    printf("%zu bytes of JSON: %.0f ns, %zu bytes encoded\n", strlen(json),
           (double)(clock_mono_ns() - start) / ROUNDS, encoded.len);
    buf_deinit(&encoded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_value_is_found),
        cmocka_unit_test(escapes_are_decoded),
        cmocka_unit_test(refusals_name_the_place),
        cmocka_unit_test(numbers_are_those_of_strtod),
        cmocka_unit_test(the_locale_does_not_matter),
        cmocka_unit_test(agrees_with_a_list),
        cmocka_unit_test(nesting_and_length_are_limited),
        cmocka_unit_test(running_out_of_memory_appends_nothing),
        cmocka_unit_test(appends_behind_what_is_there),
        cmocka_unit_test(damage_is_never_followed_outside),
        cmocka_unit_test(tells_its_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
