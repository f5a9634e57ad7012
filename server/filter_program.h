#pragma once
/* The compiled form of a filter, shared by filter_compile.c, which makes it, and
 * filter_match.c, which runs it.
 *
 * Every operator's result is a number, so registers are doubles; an instruction names its
 * operands where they lie (a register, a field of the element, a constant) and nothing is
 * copied to a stack. All fields are looked up before the first instruction: one that is missing
 * settles the answer, and after that `and` and `or` may skip their right side, because nothing
 * in it can fail any more. */

#include "server/attributes.h"
#include "server/filter.h"

enum filter_op {
    FILTER_OR,  /* a is true: to = 1, go on at b */
    FILTER_AND, /* a is false: to = 0, go on at b */
    FILTER_TRUTH,
    FILTER_NOT,
    FILTER_GT,
    FILTER_GE,
    FILTER_LT,
    FILTER_LE,
    FILTER_EQ,
    FILTER_NE,
    FILTER_IN, /* those up to here give 0 or 1 */
    FILTER_ADD,
    FILTER_SUB,
    FILTER_MUL,
    FILTER_DIV,
    FILTER_MOD,
    FILTER_POW
};

/* At one level of nesting a comparison, a sum, a product and a power can wait for their right
 * sides, each with its left one in a register. */
enum { FILTER_REGISTERS = 4 * (FILTER_DEPTH_MAX + 1) + 1 };

enum filter_kind { FILTER_REGISTER, FILTER_FIELD, FILTER_CONSTANT };
static inline uint32_t filter_operand(enum filter_kind kind, uint32_t index)
{
    return (uint32_t)kind << 30 | index;
}
static inline enum filter_kind filter_kind(uint32_t operand)
{
    return (enum filter_kind)(operand >> 30);
}
static inline uint32_t filter_index(uint32_t operand)
{
    return operand & 0x3fffffff;
}

struct filter_code {
    uint16_t op, to;
    uint32_t a, b;
};

struct filter_field {
    struct slice name;
    uint32_t hash;
};

struct filter {
    char *text; /* fields, strings and tuples point into it */
    size_t n_text;
    struct buf code;      /* struct filter_code */
    struct buf fields;    /* struct filter_field, each name once */
    struct buf constants; /* struct attribute_value */
    struct buf items;     /* u64: tuples, packed as attributes are; constants.items are offsets
                             until compiling has ended */
    uint32_t result;      /* an operand */
};

/* What the operators do; of one operand: a. Strings that are no numbers, null and tuples count
 * as 0 in numbers. */
double filter_apply(enum filter_op op, const struct attribute_value *a,
                    const struct attribute_value *b);
