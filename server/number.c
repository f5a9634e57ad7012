/* Short decimals are exact in one step: digits below 2^53 and a power of ten up to 10^22 are
 * both doubles without error, so one multiplication or division rounds once and rightly
 * (Clinger, How to Read Floating Point Numbers Accurately, 1990, section 3). The rest goes to
 * strtod_l, which is right always and ten times slower. */
#include "server/number.h"

#include <locale.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_MAX = 255, DIGITS_MAX = 18, EXPONENT_MAX = 9999 };

static locale_t c_locale;

static void make_locale(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* static in glibc: cannot fail */
}

static double read_in_c_locale(const char *p, char **end)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_locale);
    return strtod_l(p, end, c_locale);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Takes digits into *mantissa; how many of them counted (zeros in front do not). */
static int take_digits(const char **p, const char *end, uint64_t *mantissa, int n)
{
    for (; *p < end && is_digit(**p); ++*p) {
        if (n < DIGITS_MAX)
            *mantissa = *mantissa * 10 + (uint64_t)(**p - '0');
        if (n > 0 || **p != '0')
            n++;
    }
    return n;
}

static int take_exponent(const char *p, const char *end)
{
    bool negative = false;
    int exponent = 0;
    if (p < end && (*p == '-' || *p == '+'))
        negative = *p++ == '-';
    for (; p < end && is_digit(*p); p++)
        if (exponent < EXPONENT_MAX)
            exponent = exponent * 10 + (*p - '0');
    return negative ? -exponent : exponent;
}

double number_decimal(const char *start, const char *end)
{
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                    1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                    1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char *p = start;
    uint64_t mantissa = 0;
    bool negative = *p == '-';
    p += negative;
    int n = take_digits(&p, end, &mantissa, 0), exponent = 0;
    if (p < end && *p == '.') {
        const char *fraction = ++p;
        n = take_digits(&p, end, &mantissa, n);
        exponent = fraction - p < -EXPONENT_MAX ? -EXPONENT_MAX : (int)(fraction - p);
    }
    if (p < end && (*p == 'e' || *p == 'E'))
        exponent += take_exponent(p + 1, end);
    if (n > DIGITS_MAX || mantissa > (UINT64_C(1) << 53) || exponent > 22 || exponent < -22)
        return read_in_c_locale(start, NULL);
    double value = (double)mantissa;
    value = exponent < 0 ? value / powers[-exponent] : value * powers[exponent];
    return negative ? -value : value;
}

double number_of_text(const char *p, size_t n)
{
    char copy[TEXT_MAX + 1], *end;
    if (n == 0 || n > TEXT_MAX)
        return 0;
    memcpy(copy, p, n);
    copy[n] = '\0';
    double value = read_in_c_locale(copy, &end);
    return end == copy + n ? value : 0;
}
