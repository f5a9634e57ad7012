#pragma once
/* What the searches of one vector set have learnt about its filters: for each of the last few
 * filter texts the share of the elements that pass it, and, once that has paid for itself,
 * which slots do, as one bit a slot.
 *
 * A share is an estimate: it is used while it is fresh and measured anew when the set has
 * changed much. Bits are exact: they are given out only for the very state of the set they were
 * made of (vset_changes), so the first change of the set drops them all. Why keep them: a
 * filter comes again and again with other vectors, and asking it of every element is nearly all
 * that an exact answer costs.
 *
 * Memory: at most MEMO_FILTERS texts of at most MEMO_TEXT_BYTES and one bit a slot for each.
 *
 * Thread: any; a lock of its own, held for a few loads. Bits are counted references, so that a
 * search may use them while another drops them. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

enum { MEMO_FILTERS = 16, MEMO_TEXT_BYTES = 4096 };

struct search_memo;
struct search_memo *search_memo_new(void);
void search_memo_free(struct search_memo *m); /* NULL is allowed */
size_t search_memo_bytes(struct search_memo *m);

/* The slots that pass a filter; made by one thread, then never changed. */
struct match_bits {
    _Atomic uint32_t refs;
    uint32_t n_slots, n_matches;
    uint64_t words[]; /* bit slot % 64 of word slot / 64 */
};
struct match_bits *match_bits_new(uint32_t n_slots); /* all 0, one reference; NULL: no memory */
void match_bits_unref(struct match_bits *b);         /* NULL is allowed */

static inline bool match_bits_get(const struct match_bits *b, uint32_t slot)
{
    return slot < b->n_slots && (b->words[slot / 64] >> (slot % 64) & 1);
}

/* What is known of a filter. */
struct memo_facts {
    double share; /* of the live elements that pass, as last measured; negative: not known */
    /* What searches on the very state of the set spent, in microseconds, that they had not with
     * bits: what making them may cost. */
    double regret_us;
    struct match_bits *bits; /* a reference of the caller's, or NULL */
};

/* changes: vset_changes of the set now; count: its elements. Facts of a filter never seen
 * before: share -1, no regret, no bits. */
void search_memo_find(struct search_memo *m, struct slice filter, uint64_t changes,
                      uint32_t count, struct memo_facts *out);
/* The share was measured (on a sample or on all) when the set had made so many changes. */
void search_memo_note_share(struct search_memo *m, struct slice filter, uint64_t changes,
                            uint32_t count, double share);
void search_memo_note_regret(struct search_memo *m, struct slice filter, uint64_t changes,
                             double us);
/* Bits made while vset_changes stayed at `changes`; takes a reference of its own. */
void search_memo_note_bits(struct search_memo *m, struct slice filter, uint64_t changes,
                           struct match_bits *bits);
