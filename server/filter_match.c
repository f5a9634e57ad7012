#include <math.h>

#include "server/filter_program.h"
#include "server/number.h"

static inline double value_number(const struct attribute_value *v)
{
    if (v->type == ATTRIBUTE_NUMBER)
        return v->number;
    return v->type == ATTRIBUTE_STRING ? number_of_text(v->string.p, v->string.n) : 0;
}

static inline bool value_truth(const struct attribute_value *v)
{
    switch (v->type) {
    case ATTRIBUTE_NUMBER:
        return v->number != 0;
    case ATTRIBUTE_STRING:
        return v->string.n > 0;
    case ATTRIBUTE_NULL:
        return false;
    default:
        return true;
    }
}

/* Strings by their bytes, null equals null alone, and all else as numbers: so "10" equals 10,
 * and a tuple equals 0. */
static bool value_equal(const struct attribute_value *a, const struct attribute_value *b)
{
    if (a->type == ATTRIBUTE_STRING && b->type == ATTRIBUTE_STRING)
        return slice_equal(a->string, b->string);
    if (a->type == ATTRIBUTE_NULL || b->type == ATTRIBUTE_NULL)
        return a->type == b->type;
    return value_number(a) == value_number(b);
}

/* Membership in a tuple; a string in a string. */
static bool value_in(const struct attribute_value *a, const struct attribute_value *b)
{
    if (b->type == ATTRIBUTE_TUPLE) {
        for (uint32_t i = 0; i < b->n_items; i++) {
            struct attribute_value item = attribute_item(b, i);
            if (value_equal(a, &item))
                return true;
        }
        return false;
    }
    if (a->type != ATTRIBUTE_STRING || b->type != ATTRIBUTE_STRING)
        return false;
    return a->string.n == 0 || memmem(b->string.p, b->string.n, a->string.p, a->string.n);
}

double filter_apply(enum filter_op op, const struct attribute_value *a,
                    const struct attribute_value *b)
{
    switch (op) {
    case FILTER_OR:
        return value_truth(a) || value_truth(b);
    case FILTER_AND:
        return value_truth(a) && value_truth(b);
    case FILTER_TRUTH:
        return value_truth(a);
    case FILTER_NOT:
        return !value_truth(a);
    case FILTER_GT:
        return value_number(a) > value_number(b);
    case FILTER_GE:
        return value_number(a) >= value_number(b);
    case FILTER_LT:
        return value_number(a) < value_number(b);
    case FILTER_LE:
        return value_number(a) <= value_number(b);
    case FILTER_EQ:
        return value_equal(a, b);
    case FILTER_NE:
        return !value_equal(a, b);
    case FILTER_IN:
        return value_in(a, b);
    case FILTER_ADD:
        return value_number(a) + value_number(b);
    case FILTER_SUB:
        return value_number(a) - value_number(b);
    case FILTER_MUL:
        return value_number(a) * value_number(b);
    case FILTER_DIV:
        return value_number(a) / value_number(b);
    case FILTER_MOD:
        return fmod(value_number(a), value_number(b));
    case FILTER_POW:
        return pow(value_number(a), value_number(b));
    }
    return 0;
}

/* One run: the element's fields and the registers. Only what a filter uses is ever touched. */
struct run {
    const struct attribute_value *constants;
    double registers[FILTER_REGISTERS];
    struct attribute_value fields[FILTER_FIELDS_MAX];
};

/* The operand; a register's number is put into *held. */
static inline const struct attribute_value *value_of(const struct run *r, uint32_t operand,
                                                     struct attribute_value *held)
{
    switch (filter_kind(operand)) {
    case FILTER_FIELD:
        return &r->fields[filter_index(operand)];
    case FILTER_CONSTANT:
        return &r->constants[filter_index(operand)];
    default:
        held->type = ATTRIBUTE_NUMBER;
        held->number = r->registers[filter_index(operand)];
        return held;
    }
}

static bool fields_found(const struct filter *f, struct run *r, const void *attributes,
                         size_t n)
{
    const struct filter_field *fields = (const struct filter_field *)f->fields.data;
    size_t n_fields = f->fields.len / sizeof *fields;
    if (n_fields == 0)
        return attributes_bytes(attributes, n) > 0;
    for (size_t i = 0; i < n_fields; i++) {
        r->fields[i] = attributes_find(attributes, n, fields[i].name, fields[i].hash);
        if (r->fields[i].type == ATTRIBUTE_NONE || r->fields[i].type == ATTRIBUTE_OTHER)
            return false;
    }
    return true;
}

bool filter_match(const struct filter *f, const void *attributes, size_t n)
{
    struct run r;
    struct attribute_value held_a, held_b;
    if (n == 0 || !fields_found(f, &r, attributes, n))
        return false;
    r.constants = (const struct attribute_value *)f->constants.data;
    const struct filter_code *code = (const struct filter_code *)f->code.data;
    size_t n_code = f->code.len / sizeof *code;
    for (size_t i = 0; i < n_code; i++) {
        const struct filter_code *c = &code[i];
        const struct attribute_value *a = value_of(&r, c->a, &held_a);
        if (c->op == FILTER_OR || c->op == FILTER_AND) {
            bool truth = value_truth(a);
            if (truth == (c->op == FILTER_OR)) {
                r.registers[c->to] = truth;
                i = c->b - 1;
            }
            continue;
        }
        const struct attribute_value *b =
            c->op > FILTER_NOT ? value_of(&r, c->b, &held_b) : NULL;
        r.registers[c->to] = filter_apply((enum filter_op)c->op, a, b);
    }
    return value_truth(value_of(&r, f->result, &held_a));
}
