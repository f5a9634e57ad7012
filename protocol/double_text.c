/* How the shortest decimal is found.
 *
 * A double x = m * 2^e stands for all numbers nearer to it than to its neighbours: x plus and
 * minus half a unit of its last place. Multiplied by 10^k so that its whole part has 17 digits,
 * that interval is a few units wide and holds whole numbers. As long as it holds a multiple of
 * ten, the last digit can go; at the end the number left that is nearest to x is taken.
 *
 * For what replies are full of (similarities, components: 1e-5 to 2^53) all of this is exact in
 * 128 bits, and takes a fifth of the time of printf's 17 digits. Everything else, very small
 * and very large, is printed with more and more digits until it reads back: slow, and the
 * oracle of the fast way in the tests.
 *
 * Where the mantissa is a power of two the interval below is only half as wide; the fast way
 * leaves those few numbers to the slow one. */

#include "protocol/double_text.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__extension__ typedef unsigned __int128 wide;

enum { DIGITS_MAX = 17, MANTISSA_BITS = 52, EXPONENT_BIAS = 1075 };

/* x = digits * 10^exponent, digits without a zero at its end. */
struct decimal {
    uint64_t digits;
    int exponent;
};

static const uint64_t powers[] = {1,
                                  10,
                                  100,
                                  1000,
                                  10000,
                                  100000,
                                  1000000,
                                  10000000,
                                  100000000,
                                  1000000000,
                                  10000000000,
                                  100000000000,
                                  1000000000000,
                                  10000000000000,
                                  100000000000000,
                                  1000000000000000,
                                  10000000000000000,
                                  100000000000000000};

static wide power_of_ten(int k)
{
    return k <= DIGITS_MAX ? powers[k] : (wide)powers[DIGITS_MAX] * powers[k - DIGITS_MAX];
}

/* The number of digits before the point, less one, of 1e-5 <= x < 2^53. */
static int magnitude(double x)
{
    static const double small[] = {1e-1, 1e-2, 1e-3, 1e-4, 1e-5};
    int n = 0;
    if (x < 1) {
        while (x < small[n])
            n++;
        return -n - 1;
    }
    while (x >= (double)powers[n + 1])
        n++;
    return n;
}

static bool shortest_fast(double x, struct decimal *out)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint64_t fraction = bits & ((UINT64_C(1) << MANTISSA_BITS) - 1);
    int e = (int)(bits >> MANTISSA_BITS) - EXPONENT_BIAS;
    if (!(x >= 1e-5) || !(x < 9007199254740992.0) || fraction == 0)
        return false;
    /* x * 10^k = scaled / 2^shift, and half a unit of the last place is half / 2^shift. */
    int k = DIGITS_MAX - 1 - magnitude(x), shift = 1 - e;
    wide half = power_of_ten(k), mask = ((wide)1 << shift) - 1;
    wide scaled = (fraction | UINT64_C(1) << MANTISSA_BITS) * 2 * half;
    /* The whole numbers strictly inside: its ends read back only where m is even. */
    uint64_t low = (uint64_t)((scaled - half) >> shift) + 1;
    uint64_t high = (uint64_t)((scaled + half + mask) >> shift) - 1;
    uint64_t whole = (uint64_t)(scaled >> shift);
    int dropped = 0;
    while ((low + 9) / 10 <= high / 10) {
        low = (low + 9) / 10;
        high /= 10;
        dropped++;
    }
    uint64_t ten = powers[dropped];
    wide over = scaled - ((wide)(whole - whole % ten) << shift), tie = ((wide)ten << shift) / 2;
    uint64_t nearest = whole / ten;
    nearest += over > tie || (over == tie && nearest % 2 == 1);
    nearest = nearest < low ? low : nearest > high ? high : nearest;
    *out = (struct decimal){.digits = nearest, .exponent = dropped - k};
    return true;
}

static struct decimal shortest_slow(double x)
{
    char text[DOUBLE_TEXT_MAX];
    for (int precision = 0; precision < DIGITS_MAX; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, x);
        if (strtod(text, NULL) == x)
            break;
    }
    struct decimal d = {0};
    const char *p = text;
    int after_point = 0;
    for (bool point = false; *p && *p != 'e'; p++) {
        if (*p < '0' || *p > '9') { /* the point, or what the locale has for it */
            point = true;
            continue;
        }
        d.digits = d.digits * 10 + (uint64_t)(*p - '0');
        after_point += point;
    }
    d.exponent = (*p ? atoi(p + 1) : 0) - after_point;
    for (; d.digits != 0 && d.digits % 10 == 0; d.digits /= 10)
        d.exponent++;
    return d;
}

static size_t put_digits(char *out, uint64_t v)
{
    char reversed[20];
    size_t n = 0;
    do {
        reversed[n++] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    for (size_t i = 0; i < n; i++)
        out[i] = reversed[n - 1 - i];
    return n;
}

/* Digits with zeros behind, a point among them or zeros before them, as long as that is not
 * much longer than the digits; else with an exponent. */
static size_t put_decimal(char *out, struct decimal d)
{
    char digits[20];
    size_t n = put_digits(digits, d.digits);
    int power = d.exponent + (int)n - 1; /* of the first digit */
    char *p = out;
    if (d.exponent >= 0 && power < (int)n + 7) {
        memcpy(p, digits, n);
        memset(p + n, '0', (size_t)d.exponent);
        return n + (size_t)d.exponent;
    }
    if (d.exponent < 0 && (d.exponent > -7 || abs(power) < 4)) {
        if (power < 0) {
            *p++ = '0';
            *p++ = '.';
            memset(p, '0', (size_t)(-power - 1));
            p += -power - 1;
            memcpy(p, digits, n);
            return (size_t)(p - out) + n;
        }
        size_t before = (size_t)power + 1;
        memcpy(p, digits, before);
        p[before] = '.';
        memcpy(p + before + 1, digits + before, n - before);
        return n + 1;
    }
    *p++ = digits[0];
    if (n > 1) {
        *p++ = '.';
        memcpy(p, digits + 1, n - 1);
        p += n - 1;
    }
    *p++ = 'e';
    *p++ = power < 0 ? '-' : '+';
    return (size_t)(p - out) + put_digits(p, (uint64_t)abs(power));
}

size_t double_text(char out[DOUBLE_TEXT_MAX], double v)
{
    if (isnan(v)) {
        memcpy(out, "nan", 3);
        return 3;
    }
    size_t sign = signbit(v) ? 1 : 0;
    double x = fabs(v);
    out[0] = '-';
    if (isinf(v)) {
        memcpy(out + sign, "inf", 3);
        return sign + 3;
    }
    if (x <= 4611686018427387904.0 && x == (double)(uint64_t)x)
        return sign + put_digits(out + sign, (uint64_t)x);
    struct decimal d;
    if (!shortest_fast(x, &d))
        d = shortest_slow(x);
    return sign + put_decimal(out + sign, d);
}
