#pragma once
/* Searching a vector set: one question in, one answer out, no RESP and no client.
 *
 * A search is answered by a walk of the set's graph or by an exact scan of what passes its
 * filter, whichever is expected to cost less (search_plan.c); a filtered walk that came short
 * is followed by the scan, so that a filtered search returns min(count, elements that match).
 *
 * Distances are the index's (index/index.h). Scores, more is better:
 *   COSINE  1 - distance / 2, in [0, 1], as Redis has them
 *   L2      1 / (1 + Euclidean distance), in (0, 1]
 *   IP      the inner product: any number
 * Ties are ordered by slot.
 *
 * Several query vectors are answered one by one and their lists combined (search_combine.h).
 * Sets that keep full vectors order their candidates by those (`rescore`). Diversity
 * (search_diverse.h) is chosen from a pool several times as large as what is asked for.
 *
 * An element that is updated while a search runs is never missing from its answer and never in
 * it twice; one whose time has come is never in it. Pages (`paged`) of one question neither
 * overlap nor leave a gap while the set does not change: see vset_search.c.
 *
 * Thread: any, with a scratch of its own, a count of the set (vset_ref), no lock, outside of
 * any epoch bracket. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "index/index.h"
#include "server/vset.h"

struct filter;

enum vset_combine { VSET_COMBINE_RRF, VSET_COMBINE_MAX, VSET_COMBINE_AVG };

struct vset_query {
    const float *vectors; /* n_vectors x dim of the set, row-major */
    uint32_t n_vectors;
    enum vset_combine combine;
    uint32_t count;  /* how many at most; 0 (with `near` only): all that are near enough */
    uint32_t offset; /* how many of the best to leave out first */
    bool paged;      /* the question comes in pages: offset counts in one fixed order */
    uint32_t ef;
    bool exact; /* everything is looked at; on full vectors where the set keeps them */
    bool has_epsilon, has_radius, has_mmr;
    double
        epsilon; /* keeps a score of at least 1 - epsilon (COSINE: distance / 2 <= epsilon) */
    /* Keeps what is this near: COSINE 1 - cosine <= radius, L2 Euclidean distance <= radius, IP
     * inner product >= radius. With several vectors both bounds ask for one that is near. */
    double radius;
    double mmr; /* lambda: 1 is nearness alone, 0 is difference from the others alone */
    const struct filter *filter; /* or NULL */
    struct slice filter_text;    /* what it was compiled from: what is learnt goes by it */
    /* Most vectors a filtered walk looks at before the scan takes over; 0: as many as pay.
     * Below count it bounds the answer itself, as it does in Redis: of so many nearest elements
     * those that match are returned. */
    uint32_t filter_ef;
    uint32_t rescore;            /* candidates ordered by full vectors; 0: by codes alone */
    const struct slice *exclude; /* names to leave out */
    uint32_t n_exclude;
    int64_t now_ms;   /* elements whose time has come by then are left out */
    bool has_expired; /* there may be such elements (vset_next_expiry) */
    bool with_attributes;
};

struct vset_found {
    uint32_t slot;
    double score;
    size_t name_at, name_bytes; /* in the answer's text */
    size_t attributes_at, attributes_bytes;
    bool has_attributes;
};

/* Why an answer was found as it was. */
enum vset_why {
    VSET_WHY_EMPTY, /* nothing to search */
    VSET_WHY_TRUTH, /* the exact answer was asked for */
    VSET_WHY_FLAT,  /* the set has no graph */
    VSET_WHY_COST   /* the one that was expected to cost less */
};
/* Why a walk was followed by a scan. */
enum vset_then { VSET_THEN_NOTHING, VSET_THEN_CUT, VSET_THEN_SHORT };

/* How the answer was found. */
struct vset_account {
    bool walked, scanned;
    enum vset_why why;
    enum vset_then then;
    uint32_t n_elements;
    double walk_us, scan_us; /* what they were expected to cost */
    uint32_t ef;             /* of the last walk; 0 when there was none */
    uint64_t n_visits;       /* vectors looked at */
    uint64_t filter_asked;   /* elements the filter was asked of */
    uint64_t filter_passed;
    double share;   /* estimated, of the elements that pass the filter; negative: no filter */
    bool used_bits; /* the slots that pass were known already */
    bool overtaken; /* updates came in between, and were looked at again */
};
/* "walk", "scan" or "walk, then scan". */
const char *vset_account_plan(const struct vset_account *a);
/* A sentence, with the numbers. */
void vset_account_reason(const struct vset_account *a, char *out, size_t n);

struct vset_answer {
    struct vset_found *found; /* best first; in the arena */
    uint32_t n;
    struct buf text; /* names and attributes (JSON) */
    struct vset_account account;
};

/* dim, count and bounds must make sense (the caller's parser sees to it). What is not in
 * a->text lives in the arena. Errors: KITH_ENOMEM, KITH_ECORRUPT; a must be deinited in any
 * case. */
int vset_search(struct vset *v, const struct vset_query *q, struct index_scratch *scratch,
                struct arena *arena, struct vset_answer *a, struct err *e);
void vset_answer_deinit(struct vset_answer *a);

double vset_score(enum index_metric metric, float distance);
