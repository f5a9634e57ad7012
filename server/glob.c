#include "server/glob.h"

static unsigned char fold(unsigned char c, bool ignore_case)
{
    return ignore_case && c >= 'A' && c <= 'Z' ? (unsigned char)(c + 32) : c;
}

/* Matches one character against the pattern's element at *at and moves *at past it. An unclosed
 * class ends with the pattern. */
static bool match_one(struct slice p, size_t *at, unsigned char c, bool ignore_case)
{
    size_t i = *at;
    unsigned char head = (unsigned char)p.p[i++];
    if (head == '\\' && i < p.n)
        head = (unsigned char)p.p[i++];
    else if (head == '?') {
        *at = i;
        return true;
    } else if (head == '[') {
        bool negate = i < p.n && p.p[i] == '^', found = false;
        if (negate)
            i++;
        c = fold(c, ignore_case);
        while (i < p.n && p.p[i] != ']') {
            if (p.p[i] == '\\' && i + 1 < p.n)
                i++;
            unsigned char low = fold((unsigned char)p.p[i], ignore_case), high = low;
            if (i + 2 < p.n && p.p[i + 1] == '-' && p.p[i + 2] != ']') {
                high = fold((unsigned char)p.p[i + 2], ignore_case);
                i += 2;
            }
            if (low > high) {
                unsigned char swap = low;
                low = high;
                high = swap;
            }
            found |= c >= low && c <= high;
            i++;
        }
        *at = i < p.n ? i + 1 : i;
        return found != negate;
    }
    *at = i;
    return fold(head, ignore_case) == fold(c, ignore_case);
}

bool glob_match(struct slice pattern, struct slice text, bool ignore_case)
{
    size_t p = 0, t = 0;
    size_t star = SIZE_MAX, star_text = 0; /* where to go on when the rest does not match */
    while (t < text.n) {
        if (p < pattern.n && pattern.p[p] == '*') {
            star = ++p;
            star_text = t;
            continue;
        }
        if (p < pattern.n && match_one(pattern, &p, (unsigned char)text.p[t], ignore_case)) {
            t++;
            continue;
        }
        if (star == SIZE_MAX)
            return false;
        p = star;
        t = ++star_text;
    }
    while (p < pattern.n && pattern.p[p] == '*')
        p++;
    return p == pattern.n;
}
