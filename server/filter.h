#pragma once
/* FILTER expressions: compiled once, then asked of the attributes of each element.
 *
 *   or  := and {("or"|"||") and}      and := cmp {("and"|"&&") cmp}
 *   cmp := add {(">"|">="|"<"|"<="|"=="|"!="|"in") add}
 *   add := mul {("+"|"-") mul}        mul := pow {("*"|"/"|"%") pow}     pow := un ["**" pow]
 *   un  := ("!"|"not") un | atom      atom := number | string | null | [tuple] | .field | (or)
 *
 * as Redis 8 has them. A field that is missing, or whose value is an object, makes the whole
 * expression false, whatever stands around it. What the operators do with each type of value is
 * filter_apply's (filter_program.h); filter_compile.c lists what Redis' parser lets pass by
 * accident and this one refuses.
 *
 * A compiled filter never changes: any number of threads may ask it. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

enum { FILTER_MAX_BYTES = 65535, FILTER_DEPTH_MAX = 100, FILTER_FIELDS_MAX = 256 };

struct filter;

/* KITH_EINVAL: the message is what Redis says, "syntax error in FILTER expression near: TAIL"
 * (TAIL is all of it where the place is the end), followed by what was expected, where (bytes,
 * from 1), and the expression around it with a caret before the place. KITH_ELIMIT: longer,
 * nested deeper or with more different fields than the limits above. KITH_ENOMEM. */
int filter_compile(struct filter **out, struct slice text, struct err *e);
void filter_free(struct filter *f); /* f may be NULL */
/* Whether the element with these encoded attributes matches. Allocates nothing. n = 0: none,
 * which matches nothing. */
bool filter_match(const struct filter *f, const void *attributes, size_t n);
