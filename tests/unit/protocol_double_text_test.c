/* Doubles as text: the forms Redis writes, and for random ones that they read back and that no
 * shorter decimal, and no nearer one of that length, would. */
#include <math.h>
#include <string.h>

#include "protocol/double_text.h"
#include "tests/unit/unit.h"

static const char *text_of(double v)
{
    static char text[DOUBLE_TEXT_MAX + 1];
    size_t n = double_text(text, v);
    assert_true(n > 0 && n <= DOUBLE_TEXT_MAX);
    text[n] = '\0';
    return text;
}

static void forms_are_those_of_redis(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } rows[] = {{0, "0"},
                {-0.0, "-0"},
                {1, "1"},
                {-3, "-3"},
                {0.1, "0.1"},
                {-0.5, "-0.5"},
                {1.5, "1.5"},
                {100, "100"},
                {1e18, "1000000000000000000"},
                {4611686018427387904.0, "4611686018427387904"},
                {-4611686018427388928.0, "-4611686018427389000"},
                {1e21, "1e+21"},
                {1e22, "1e+22"},
                {-1.5e300, "-1.5e+300"},
                {1.0 / 3, "0.3333333333333333"},
                {2.2360680103302002, "2.2360680103302"},
                {0.8944271802902222, "0.8944271802902222"},
                {9007199254740991.5, "9007199254740992"},
                {4503599627370495.5, "4503599627370495.5"},
                {123456.789, "123456.789"},
                {0.001, "0.001"},
                {1e-5, "0.00001"},
                {1.5e-5, "0.000015"},
                {1e-6, "0.000001"},
                {1e-7, "1e-7"},
                {1.25e-7, "1.25e-7"},
                {5e-324, "5e-324"},
                {1.7976931348623157e308, "1.7976931348623157e+308"},
                {2.2250738585072014e-308, "2.2250738585072014e-308"},
                {INFINITY, "inf"},
                {-INFINITY, "-inf"},
                {NAN, "nan"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_string_equal(text_of(rows[i].v), rows[i].text);
}

/* The digits of a text, without the zeros around them, as a number. */
static uint64_t digits_of(const char *text, int *n)
{
    uint64_t v = 0;
    int zeros = 0;
    *n = 0;
    for (; *text && *text != 'e'; text++) {
        if (*text == '0')
            zeros++;
        if (*text < '1' || *text > '9')
            continue;
        for (; zeros && v; zeros--, ++*n)
            v *= 10;
        zeros = 0;
        v = v * 10 + (uint64_t)(*text - '0');
        ++*n;
    }
    return v;
}

/* printf rounds right and takes as many digits as it is told: the fewest that read back. */
static void check_against_printf(double v)
{
    char plain[64];
    int precision = 0, n, expected_n;
    do
        snprintf(plain, sizeof plain, "%.*e", precision, v);
    while (strtod(plain, NULL) != v && ++precision < 17);
    const char *text = text_of(v);
    if (strtod(text, NULL) != v)
        fail_msg("%s is not %.17g", text, v);
    uint64_t expected = digits_of(plain, &expected_n), got = digits_of(text, &n);
    if (n > expected_n)
        fail_msg("%s is longer than %s", text, plain);
    if (n == expected_n && got != expected)
        fail_msg("%s is not the nearest: %s", text, plain);
}

static void random_ones_are_shortest_and_nearest(void **state)
{
    (void)state;
    uint64_t seed = unit_seed();
    struct rng r;
    rng_seed(&r, seed);
    for (int i = 0; i < 60000; i++) {
        uint64_t bits = rng_next(&r);
        double v;
        switch (i % 4) {
        case 0: /* a component */
            v = (double)(float)((double)(bits >> 11) * 0x1p-53 * 4 - 2);
            break;
        case 1: /* a similarity */
            v = (double)(bits >> 11) * 0x1p-53;
            break;
        case 2: /* every magnitude of the fast way, and some beyond */
            v = (double)(bits >> 11) * exp2((double)(int)(bits & 127) - 130);
            break;
        default:
            memcpy(&v, &bits, sizeof v);
        }
        if (!isfinite(v) || v == 0 || (fabs(v) < 0x1p62 && v == trunc(v)))
            continue;
        check_against_printf(v);
    }
}

static void neighbours_of_powers_are_told_apart(void **state)
{
    (void)state;
    for (int e = -60; e <= 60; e++) {
        double two = exp2(e), ten = pow(10, e / 4);
        for (int i = 0; i < 4; i++) {
            double v =
                i < 2 ? nextafter(two, i ? 0 : INFINITY) : nextafter(ten, i == 2 ? 0 : 1e99);
            if (v != trunc(v))
                check_against_printf(v);
        }
        if (two != trunc(two))
            check_against_printf(two);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_are_those_of_redis),
        cmocka_unit_test(random_ones_are_shortest_and_nearest),
        cmocka_unit_test(neighbours_of_powers_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
