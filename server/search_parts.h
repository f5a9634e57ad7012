#pragma once
/* The inside of a search, shared by vset_search.c (the whole), search_filter.c (who may be in
 * the answer), search_plan.c (walk or scan) and search_gather.c (the candidates). No other file
 * includes it.
 *
 * A struct search is one attempt at one question: it lives on one thread, and what it makes is
 * in the command's arena. It stands inside an epoch bracket, which a long scan leaves and
 * enters again now and then (search_breathe). What was found before is looked at again then
 * (search_verify), because a slot may have come to hold another element. */

#include <stdbool.h>
#include <stdint.h>

#include "server/search_combine.h"
#include "server/search_memo.h"
#include "server/vset_search.h"

/* Who may be in the answer, and how often that was asked. */
struct admission {
    struct vset *set;
    const struct filter *filter;   /* NULL: every element */
    const struct match_bits *bits; /* what the filter says, where it is known */
    int64_t now_ms;
    bool has_expired;
    uint64_t n_asked, n_passed; /* of the filter */
};

struct search {
    struct vset *set;
    const struct vset_query *q;
    const struct vset_params *params;
    struct index *index;
    struct index_scratch *scratch;
    struct arena *arena;
    struct vset_account *account;
    struct admission admission;
    uint64_t changes; /* vset_changes when it began */
    uint32_t count;   /* vset_count then */
    double share;     /* of the elements that may be in the answer, estimated; 1: no filter */
    struct match_bits *bits; /* a reference, or NULL */
    double regret_us;        /* what the bits, which it has not, would have spared it */
    float *row;              /* room for a vector, once needed */
    bool few;                /* the filter is asked of filter_ef nearest alone */
    bool held;               /* the set is held: nothing changes */
    bool breathed;           /* the bracket of the beginning was left */
    uint32_t work;           /* since the bracket was entered */
    uint64_t seen;           /* replacements that are in `late` or before the search */
    uint32_t *late;          /* slots that replaced others meanwhile */
    uint32_t n_late, cap_late;
    bool drained; /* of those that were kept too few are there still */
};

/* --- vset_search.c --- */
/* Takes the slots of new replacements into `late`. KITH_EBUSY: there were too many. */
int search_note_late(struct search *s, struct err *e);
/* Leaves the bracket for a moment when enough was done in it: `work` vectors scanned or filters
 * asked. Pointers into the set are invalid then, and slots to be verified. */
int search_breathe(struct search *s, uint32_t work, struct err *e);

/* --- search_filter.c --- */
/* As index_query.accept; arg is a struct admission. */
bool admission_accept(void *arg, uint32_t slot);
/* The same of a slot that the index has not given: false where it holds no element. */
bool admission_slot(struct admission *a, uint32_t slot);
/* Whether admission_accept need be asked at all. */
bool admission_needed(const struct admission *a);
/* What is known of the filter, or found out on a sample; and the bits, where making them pays.
 */
int search_filter_begin(struct search *s, struct err *e);
/* Makes the bits where they are not known, and leaves them to the searches that follow. */
int search_filter_bits(struct search *s, struct err *e);
/* Of `few`: takes out of each list what does not match. */
void search_filter_few(struct search *s, struct hit_list *lists);
/* Tells the memory what this search cost; gives the bits back. */
void search_filter_end(struct search *s);

/* --- search_plan.c --- */
enum search_how { SEARCH_WALK, SEARCH_SCAN };
struct search_plan {
    enum search_how how;
    uint32_t max_visits; /* of a walk; 0: no bound */
};
/* For the k best of every query vector by a walk that keeps ef candidates. */
struct search_plan search_plan(struct search *s, uint32_t k, uint32_t ef);
/* What asking the filter of every slot is expected to cost. */
double search_bits_us(const struct search *s);

/* --- search_gather.c --- */
/* The k best of every query vector, or, with k = 0, all that are near enough; in order. They
 * are not cut to the query's bounds otherwise. lists: n_vectors. */
int search_gather(struct search *s, uint32_t k, uint32_t ef, struct hit_list *lists,
                  struct err *e);
/* Puts a slot into its place in every list, where it may be in the answer. */
/* The distances of n slots to query vector i, by full vectors or by codes; NAN: gone. */
int search_distances(struct search *s, uint32_t i, bool full, const uint32_t *slots, uint32_t n,
                     float *out, struct err *e);
int search_add_slot(struct search *s, uint32_t slot, uint32_t k, struct hit_list *lists,
                    struct err *e);
/* After the bracket was left: takes out what may not be in the answer any more and looks again
 * at the distances of the rest. KITH_EBUSY: of the k a list had too few are left. */
int search_verify(struct search *s, uint32_t k, struct hit_list *lists, struct err *e);
/* Puts the distances of full vectors into the first n of each list and orders them by those. */
int search_rescore(struct search *s, uint32_t n, struct hit_list *lists, struct err *e);
/* Whether a distance keeps the query's EPSILON and RADIUS. */
bool search_near_enough(const struct search *s, float distance);
void hits_sort(struct index_hit *v, uint32_t n);
