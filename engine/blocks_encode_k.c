/* Floats to blocks of 256 elements: Q4_K, Q5_K, Q6_K.
 *
 * A superblock is coded in two steps. First each small group (32 elements, 16 for Q6_K) finds
 * the scale, and the offset where the type has one, that fit it best on their own: for some
 * twenty scales around the plain one the codes are fixed, and with fixed codes the best scale
 * is a weighted least-squares fit with a closed form. The weight of an element is x^2: large
 * weights of a matrix move its outputs most. The fit of least weighted error wins.
 *
 *   with an offset:   minimise  sum w (s q + b - x)^2   over s and b, b <= 0
 *                     s = (W XQ - Q X) / D,  b = (QQ X - Q XQ) / D,  D = W QQ - Q^2
 *                     where W = sum w, Q = sum w q, QQ = sum w q^2, X = sum w x,
 *                     XQ = sum w x q; where b > 0 came out, b = 0 and s = XQ / QQ
 *   without one:      s = XQ / QQ, which leaves sum w x^2 - XQ^2 / QQ
 *
 * Then the groups' scales and offsets become small integers below one half-precision scale, and
 * the codes are chosen anew for what those integers really say.
 *
 * Sums are doubles in a fixed order, so that the same values give the same bytes. */

#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "engine/blocks.h"
#include "engine/half.h"

enum {
    OFFSET_GROUP = 32,
    N_OFFSET_GROUPS = SUPERBLOCK_ELEMENTS / OFFSET_GROUP,
    PLAIN_GROUP = 16,
    N_PLAIN_GROUPS = SUPERBLOCK_ELEMENTS / PLAIN_GROUP,
    MOST_6_BITS = 63,
    SEARCH_STEPS = 10 /* to either side, each a tenth of a code */
};

static double rounded_half(double v)
{
    return (double)half_to_f32(half_from_f32((float)v));
}

static int nearest(double v, int least, int most)
{
    return v <= least ? least : v >= most ? most : (int)lrint(v);
}

/* --- a group with an offset --- */

struct fit {
    double scale, offset; /* x ~ scale * q - offset, both at least 0 */
};

/* The best fit for the codes 0 .. most that x - low, multiplied by inverse, gives; returns its
 * weighted error. */
static double fit_codes(const float *x, double low, double inverse, int most, struct fit *f)
{
    double w_ = 0, q_ = 0, qq = 0, x_ = 0, xq = 0, error = 0;
    int codes[OFFSET_GROUP];
    for (int i = 0; i < OFFSET_GROUP; i++) {
        double v = (double)x[i], w = v * v,
               q = codes[i] = nearest((v - low) * inverse, 0, most);
        w_ += w;
        q_ += w * q;
        qq += w * q * q;
        x_ += w * v;
        xq += w * v * q;
    }
    double d = w_ * qq - q_ * q_, b = 0;
    f->scale = qq > 0 ? xq / qq : 0;
    if (d > 1e-12 * w_ * qq) {
        b = (qq * x_ - q_ * xq) / d;
        if (b < 0)
            f->scale = (w_ * xq - q_ * x_) / d;
        else
            b = 0;
    }
    if (f->scale < 0)
        f->scale = 0;
    f->offset = -b;
    for (int i = 0; i < OFFSET_GROUP; i++) {
        double v = (double)x[i], miss = f->scale * codes[i] + b - v;
        error += v * v * miss * miss;
    }
    return error;
}

static struct fit fit_with_offset(const float *x, int most)
{
    double low = 0, high = (double)x[0];
    for (int i = 0; i < OFFSET_GROUP; i++) {
        low = (double)x[i] < low ? (double)x[i] : low;
        high = (double)x[i] > high ? (double)x[i] : high;
    }
    if (high <= low)
        return (struct fit){0, -low};
    struct fit best = {0}, f;
    double least = INFINITY;
    for (int k = -SEARCH_STEPS; k <= SEARCH_STEPS; k++) {
        double error = fit_codes(x, low, (most + 0.1 * k) / (high - low), most, &f);
        if (error < least) {
            least = error;
            best = f;
        }
    }
    return best;
}

/* Scales and offsets as block_k_scales reads them. */
static void pack_k_scales(const int *scales, const int *offsets, unsigned char *p)
{
    for (int j = 0; j < 4; j++) {
        p[j] = (unsigned char)(scales[j] | scales[j + 4] >> 4 << 6);
        p[j + 4] = (unsigned char)(offsets[j] | offsets[j + 4] >> 4 << 6);
        p[j + 8] = (unsigned char)((scales[j + 4] & 15) | (offsets[j + 4] & 15) << 4);
    }
}

/* The 6-bit integers of n values below *d, which is rounded to a half. */
static void integers_below(const double *values, double *d, int *integers)
{
    double largest = 0;
    for (int j = 0; j < N_OFFSET_GROUPS; j++)
        largest = values[j] > largest ? values[j] : largest;
    *d = rounded_half(largest / MOST_6_BITS);
    for (int j = 0; j < N_OFFSET_GROUPS; j++)
        integers[j] = *d > 0 ? nearest(values[j] / *d, 0, MOST_6_BITS) : 0;
}

/* One superblock with codes 0 .. most; returns what follows it. */
static unsigned char *encode_offset_block(const float *x, int most, unsigned char *p)
{
    double scales[N_OFFSET_GROUPS], offsets[N_OFFSET_GROUPS], d, dmin;
    int s[N_OFFSET_GROUPS], m[N_OFFSET_GROUPS];
    for (int j = 0; j < N_OFFSET_GROUPS; j++) {
        struct fit f = fit_with_offset(x + OFFSET_GROUP * j, most);
        scales[j] = f.scale;
        offsets[j] = f.offset;
    }
    integers_below(scales, &d, s);
    integers_below(offsets, &dmin, m);
    store_u16(p, half_from_f32((float)d));
    store_u16(p + 2, half_from_f32((float)dmin));
    pack_k_scales(s, m, p + 4);
    bool fifth = most > 15;
    unsigned char *high = p + 16, *nibbles = fifth ? high + 32 : high;
    memset(high, 0, (size_t)(nibbles - high) + 128);
    for (int j = 0; j < N_OFFSET_GROUPS; j++)
        for (int l = 0; l < OFFSET_GROUP; l++) {
            double scale = d * s[j], v = (double)x[OFFSET_GROUP * j + l] + dmin * m[j];
            int code = scale > 0 ? nearest(v / scale, 0, most) : 0;
            unsigned char *q = nibbles + 32 * (j / 2) + l;
            *q = (unsigned char)(*q | (code & 15) << 4 * (j % 2));
            if (fifth)
                high[l] = (unsigned char)(high[l] | code >> 4 << j);
        }
    return nibbles + 128;
}

void block_encode_q4_k(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += SUPERBLOCK_ELEMENTS)
        p = encode_offset_block(x, 15, p);
}

void block_encode_q5_k(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += SUPERBLOCK_ELEMENTS)
        p = encode_offset_block(x, 31, p);
}

/* --- a group without one --- */

static double fit_scale(const float *x)
{
    double largest = 0, best = 0, most = -1;
    for (int i = 0; i < PLAIN_GROUP; i++)
        if (fabs((double)x[i]) > fabs(largest))
            largest = (double)x[i];
    if (largest == 0)
        return 0;
    for (int k = -SEARCH_STEPS; k <= SEARCH_STEPS; k++) {
        double inverse = -(32 + 0.1 * k) / largest, xq = 0, qq = 0;
        for (int i = 0; i < PLAIN_GROUP; i++) {
            double v = (double)x[i], w = v * v, q = nearest(v * inverse, -32, 31);
            xq += w * v * q;
            qq += w * q * q;
        }
        if (qq > 0 && xq * xq / qq > most) {
            most = xq * xq / qq;
            best = xq / qq;
        }
    }
    return best;
}

static void encode_q6_k_block(const float *x, unsigned char *p)
{
    double scales[N_PLAIN_GROUPS], largest = 0;
    for (int j = 0; j < N_PLAIN_GROUPS; j++) {
        scales[j] = fit_scale(x + PLAIN_GROUP * j);
        if (fabs(scales[j]) > fabs(largest))
            largest = scales[j];
    }
    double d = rounded_half(largest / -128);
    memset(p, 0, 192);
    for (int j = 0; j < N_PLAIN_GROUPS; j++) {
        int s = d == 0 ? 0 : nearest(scales[j] / d, -128, 127);
        p[192 + j] = (unsigned char)(int8_t)s;
        for (int l = 0; l < PLAIN_GROUP; l++) {
            int at = PLAIN_GROUP * j + l, half = at / 128, k = at % 128 / 32, byte = at % 32;
            int code = s == 0 ? 32 : 32 + nearest((double)x[at] / (d * s), -32, 31);
            unsigned char *low = p + 64 * half + byte + 32 * (k % 2);
            unsigned char *high = p + 128 + 32 * half + byte;
            *low = (unsigned char)(*low | (code & 15) << 4 * (k / 2));
            *high = (unsigned char)(*high | code >> 4 << 2 * k);
        }
    }
    store_u16(p + 208, half_from_f32((float)d));
}

void block_encode_q6_k(const float *x, size_t n, unsigned char *p)
{
    for (size_t b = 0; b < n; b++, x += SUPERBLOCK_ELEMENTS, p += 210)
        encode_q6_k_block(x, p);
}
