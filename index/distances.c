/* Queries, and the distances of given slots: for those who choose the slots themselves (an
 * exact answer about the few that pass a filter, one candidate of several searches).
 *
 * Codes are asked for some time before they are needed, as in a scan (flat.c), for the slots
 * that come in order are one. */
#include <math.h>

#include "index/state.h"

enum { BATCH = 16 };

int index_live_code(struct index *x, uint32_t slot, const struct code **out, struct err *e)
{
    *out = slot < index_n_slots(x) ? index_code_at(x, slot, e) : NULL;
    if (slot < index_n_slots(x) && !*out)
        return index_damage(e);
    if (!*out || code_meta_state(code_meta_load(*out)) == CODE_FREE)
        return err_set(e, KITH_ENOTFOUND, "slot %u holds no vector", slot);
    return 0;
}

int index_make_query(struct index *x, struct index_scratch *s, const struct index_query *q,
                     struct code_query *out, struct err *e)
{
    const struct code *c;
    int rc = scratch_fit(s, x->params.dim, index_batch_size(x), e);
    if (rc != 0)
        return rc;
    if (q->vector) {
        code_query_vector(out, &x->params, q->vector, s->query_row);
        return 0;
    }
    if ((rc = index_live_code(x, q->slot, &c, e)) == 0)
        code_query_code(out, &x->params, c, s->query_row);
    return rc;
}

/* Asks for the codes of slots[*ahead] up to, not including, slots[end]. */
static void prefetch_codes(struct index *x, const uint32_t *slots, uint32_t *ahead,
                           uint32_t end, uint32_t n_slots)
{
    for (; *ahead < end; ++*ahead) {
        uint32_t slot = slots[*ahead];
        const struct code *c = slot < n_slots ? index_code_at(x, slot, NULL) : NULL;
        if (c)
            index_prefetch(c, 0, x->arrays.codes->stride);
    }
}

int index_distances(struct index *x, struct index_scratch *s, const struct index_query *q,
                    const uint32_t *slots, uint32_t n, float *out, struct err *e)
{
    struct code_query query;
    uint32_t n_slots = index_n_slots(x), lead = index_scan_lead(x), ahead = 0;
    int rc = index_make_query(x, s, q, &query, e);
    if (rc != 0)
        return rc;
    for (uint32_t first = 0; first < n; first += BATCH) {
        const struct code *codes[BATCH];
        float distances[BATCH];
        uint32_t at[BATCH], live = 0, end = n - first < BATCH ? n : first + BATCH;
        prefetch_codes(x, slots, &ahead, n - end < lead ? n : end + lead, n_slots);
        for (uint32_t i = first; i < end; i++) {
            out[i] = NAN;
            if (slots[i] >= n_slots)
                continue;
            const struct code *c = index_code_at(x, slots[i], e);
            if (!c)
                return index_damage(e);
            enum code_state state = code_meta_state(code_meta_load(c));
            if (state != CODE_TAIL && state != CODE_LINKED)
                continue;
            codes[live] = c;
            at[live++] = i;
        }
        code_distances(&query, codes, live, distances);
        for (uint32_t i = 0; i < live; i++)
            out[at[i]] = distances[i];
    }
    return 0;
}

uint32_t index_slots(struct index *x)
{
    return index_n_slots(x);
}
