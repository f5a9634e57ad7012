/* Who may be in an answer.
 *
 * A filter is asked of an element's attributes, which lie anywhere in memory: some tens of
 * nanoseconds, more than the distance costs. So its answers are kept as bits, one a slot, when
 * that has paid for itself: an exact scan asks of every slot anyway and leaves its bits behind;
 * walks add up what they would have saved with bits (on the same state of the set), and once
 * that is what making them costs, they are made. So they never cost more than was spent
 * already, however the filters and writes come.
 *
 * Bits are bound to vset_changes as it was before the first element was asked, and are kept
 * only when it is still the same after the last. A change counts when it can be seen already,
 * so bits of one count are never older than what that count promises. Within one epoch bracket
 * a slot is not given out again: a bit cannot come to stand for another element. */
#include "base/random.h"
#include "server/attributes.h"
#include "server/filter.h"
#include "server/search_parts.h"

enum { SAMPLE = 400, ASK_BATCH = 4096 };

static bool matches(const struct admission *a, uint32_t slot)
{
    size_t n;
    const void *attributes = vset_attributes(a->set, slot, &n);
    return attributes && filter_match(a->filter, attributes, n);
}

static bool expired(const struct admission *a, uint32_t slot)
{
    if (!a->has_expired)
        return false;
    int64_t at = vset_expires_at(a->set, slot);
    return at != 0 && at <= a->now_ms;
}

bool admission_accept(void *arg, uint32_t slot)
{
    struct admission *a = arg;
    if (a->filter) {
        a->n_asked++;
        if (!(a->bits ? match_bits_get(a->bits, slot) : matches(a, slot)))
            return false;
        a->n_passed++;
    }
    return !expired(a, slot);
}

bool admission_needed(const struct admission *a)
{
    return a->filter || a->has_expired;
}

/* For those who choose slots themselves: one that is being filled must not be looked into. */
bool admission_slot(struct admission *a, uint32_t slot)
{
    return vset_live(a->set, slot) && admission_accept(a, slot);
}

static uint32_t slots_of(const struct search *s)
{
    return index_slots(s->index);
}

static bool live_match(const struct admission *a, uint32_t slot)
{
    return vset_live(a->set, slot) && matches(a, slot);
}

/* The share of the elements that pass, from slots drawn at random. The generator begins with
 * the same number each time: what is not a function of the set cannot be explained. */
static double sample_share(struct search *s)
{
    uint32_t n = slots_of(s), drawn = n < SAMPLE ? n : SAMPLE, passed = 0;
    struct rng r;
    rng_seed(&r, n);
    for (uint32_t i = 0; i < drawn; i++)
        passed += live_match(&s->admission, drawn == n ? i : (uint32_t)rng_below(&r, n));
    s->admission.n_asked += drawn;
    s->admission.n_passed += passed;
    /* None among the drawn: half of one. */
    double hits = passed ? (double)passed : 0.5;
    double share = hits / (double)drawn * (double)n / (double)s->count;
    return share < 1 ? share : 1;
}

int search_filter_bits(struct search *s, struct err *e)
{
    if (s->bits || !s->admission.filter)
        return 0;
    uint32_t n = slots_of(s);
    struct match_bits *bits = match_bits_new(n);
    if (!bits)
        return err_set(e, KITH_ENOMEM, "out of memory for the elements that pass a filter");
    int rc = 0;
    for (uint32_t first = 0; rc == 0 && first < n; first += ASK_BATCH) {
        uint32_t end = n - first < ASK_BATCH ? n : first + ASK_BATCH;
        for (uint32_t slot = first; slot < end; slot++) {
            if (live_match(&s->admission, slot)) {
                bits->words[slot / 64] |= UINT64_C(1) << (slot % 64);
                bits->n_matches++;
            }
        }
        rc = search_breathe(s, end - first, e);
    }
    if (rc != 0) {
        match_bits_unref(bits);
        return rc;
    }
    s->admission.n_asked += n;
    s->admission.n_passed += bits->n_matches;
    s->bits = bits;
    s->admission.bits = bits;
    double share = (double)bits->n_matches / (double)s->count;
    s->share = share < 1 ? share : 1;
    if (vset_changes(s->set) == s->changes) {
        struct search_memo *m = vset_memo(s->set);
        search_memo_note_bits(m, s->q->filter_text, s->changes, bits);
        search_memo_note_share(m, s->q->filter_text, s->changes, s->count, s->share);
    }
    return 0;
}

int search_filter_begin(struct search *s, struct err *e)
{
    const struct vset_query *q = s->q;
    s->admission = (struct admission){
        .set = s->set, .filter = q->filter, .now_ms = q->now_ms, .has_expired = q->has_expired};
    s->share = 1;
    s->bits = NULL;
    s->few = q->filter && q->filter_ef && q->filter_ef < q->count && !q->exact;
    if (s->few)
        s->admission.filter = NULL;
    if (!s->admission.filter || s->count == 0)
        return 0;
    struct search_memo *m = vset_memo(s->set);
    struct memo_facts facts;
    search_memo_find(m, q->filter_text, s->changes, s->count, &facts);
    if (facts.bits) {
        s->bits = facts.bits;
        s->admission.bits = facts.bits;
        s->account->used_bits = true;
        double share = (double)facts.bits->n_matches / (double)s->count;
        s->share = share < 1 ? share : 1;
        return 0;
    }
    s->share = facts.share;
    if (q->paged || facts.regret_us >= search_bits_us(s))
        return search_filter_bits(s, e);
    if (s->share < 0) {
        s->share = sample_share(s);
        search_memo_note_share(m, q->filter_text, s->changes, s->count, s->share);
    }
    return 0;
}

void search_filter_few(struct search *s, struct hit_list *lists)
{
    s->admission.filter = s->q->filter;
    for (uint32_t i = 0; i < s->q->n_vectors; i++) {
        uint32_t kept = 0;
        for (uint32_t j = 0; j < lists[i].n; j++)
            if (admission_accept(&s->admission, lists[i].v[j].slot))
                lists[i].v[kept++] = lists[i].v[j];
        lists[i].n = kept;
    }
}

void search_filter_end(struct search *s)
{
    struct vset_account *a = s->account;
    a->filter_asked += s->admission.n_asked;
    a->filter_passed += s->admission.n_passed;
    a->share = s->admission.filter && !s->few ? s->share : -1;
    if (!s->bits && s->regret_us > 0)
        search_memo_note_regret(vset_memo(s->set), s->q->filter_text, s->changes, s->regret_us);
    match_bits_unref(s->bits);
    s->bits = NULL;
    s->admission.bits = NULL;
}
