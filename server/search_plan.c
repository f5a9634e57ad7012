/* Walk or scan: what each is expected to cost, in microseconds.
 *
 *   scan  every slot that may pass is looked at once, in order: the code's bytes at the speed
 *         memory streams. With a filter whose answers are not known it is first asked of every
 *         slot.
 *   walk  as many codes and questions to the filter as index_walk_cost says. A question asked
 * of anyone waits for two or three lines of memory, so it costs ten of those asked in order.
 *
 * The times are of one core of a machine of 2022 (100,000 vectors of 128 dimensions, int8, 60
 * bytes of attributes) and need only be right to each other: near the break-even either choice
 * is good, and away from it a factor of two does not matter.
 *
 * A filtered walk is stopped where it has looked at half as many codes again as were expected
 * and has cost what the scan is expected to, were every code a question too (as where a filter
 * goes with the vectors, and rejects what is near). Then the scan answers, and leaves its bits
 * behind: a wrong guess is paid for once. */
#include <math.h>

#include "server/search_parts.h"

static const double VISITS_MIN = 512, EXPECTED_MORE = 1.5;

static const double SCAN_VECTOR_US = 0.005;     /* besides its bytes */
static const double SCAN_BYTE_US = 1 / 16000.0; /* 16 GB/s */
static const double SCAN_FILTER_US = 0.035;     /* a question asked in the order of slots */
static const double SCAN_BITS_US = 0.0002;      /* a slot whose bit is known */
static const double WALK_VECTOR_US = 0.016;     /* a unit of index_walk_cost */
static const double WALK_BYTE_US = 1 / 11000.0;
static const double WALK_FILTER_US = 0.3; /* a question asked of anyone */
static const double WALK_BITS_US = 0.005;

static double code_bytes_of(const struct search *s)
{
    return (double)index_code_stride(&s->params->index);
}

double search_bits_us(const struct search *s)
{
    return SCAN_FILTER_US * (double)index_slots(s->index);
}

static double scan_us(const struct search *s, bool bits)
{
    double vector = SCAN_VECTOR_US + SCAN_BYTE_US * code_bytes_of(s);
    double us = s->share * (double)s->count * vector * s->q->n_vectors;
    if (!s->admission.filter)
        return us;
    return us + (bits ? SCAN_BITS_US * (double)index_slots(s->index) : search_bits_us(s));
}

static double code_us(const struct search *s)
{
    return WALK_VECTOR_US + WALK_BYTE_US * code_bytes_of(s);
}

static double ask_us(const struct search *s, bool bits)
{
    return !s->admission.filter ? 0 : bits ? WALK_BITS_US : WALK_FILTER_US;
}

static struct index_cost walk_cost(const struct search *s, uint32_t k, uint32_t ef)
{
    double passing = s->share * (double)s->count / (double)index_slots(s->index);
    return index_walk_cost(s->index, k, ef, s->admission.filter ? passing : 1);
}

static double walk_us(const struct search *s, struct index_cost c, bool bits)
{
    return (c.codes * code_us(s) + c.accepts * ask_us(s, bits)) * s->q->n_vectors;
}

static uint32_t most_visits(const struct search *s, struct index_cost c, bool bits)
{
    double expected = c.codes * EXPECTED_MORE;
    double paid = scan_us(s, bits) / (code_us(s) + ask_us(s, bits));
    double most = fmax(fmax(expected, paid), VISITS_MIN);
    if (s->q->filter_ef && s->q->filter_ef < most)
        return s->q->filter_ef;
    return most < UINT32_MAX ? (uint32_t)most : UINT32_MAX;
}

struct search_plan search_plan(struct search *s, uint32_t k, uint32_t ef)
{
    struct vset_account *a = s->account;
    const struct vset_query *q = s->q;
    struct search_plan p = {SEARCH_SCAN, 0};
    bool bits = s->bits != NULL;
    struct index_cost c = walk_cost(s, k, ef);
    a->n_elements = s->count;
    a->scan_us = scan_us(s, bits);
    a->walk_us = walk_us(s, c, bits);
    if (q->exact || s->params->index.kind == INDEX_FLAT) {
        a->why = q->exact ? VSET_WHY_TRUTH : VSET_WHY_FLAT;
        return p;
    }
    a->why = VSET_WHY_COST;
    if (a->scan_us < a->walk_us)
        return p;
    p.how = SEARCH_WALK;
    if (s->admission.filter) {
        p.max_visits = most_visits(s, c, bits);
        if (!bits)
            s->regret_us += a->walk_us - fmin(walk_us(s, c, true), scan_us(s, true));
    }
    return p;
}
