#pragma once
/* The graph: its records, its search, and the jobs that change it.
 *
 *   links, a slot's level 0:    { u32 count | u32 upper | u32 slots[2m] }
 *   upper, one (slot, level):   { u32 slot | u32 next | u32 count | u32 slots[m] }
 *
 * upper and next are a record's number + 1, 0 for none; the chain of a slot goes from level 1
 * up to its level. A free upper record has slot INDEX_SLOT_NONE.
 *
 * Invariant: every link has its twin (a in the list of b, at the same level, exactly when b is
 * in that of a). So those who point at a slot are those it points at, and a removal finds them
 * without a search, a scan or a second list. What it costs and what was rejected: hnsw_link.c.
 */

#include "index/state.h"

struct hnsw_list {
    _Atomic uint32_t *count, *slots;
    uint32_t max;
};

enum { LINKS_HEADER_BYTES = 8, UPPER_HEADER_BYTES = 12 };

/* The list of a slot at a level. Returns 1, 0 where it has none, or a negative code. Inside an
 * epoch or as the owner. */
int hnsw_list_at(struct index *x, unsigned level, uint32_t slot, struct hnsw_list *out,
                 struct err *e);
/* As hnsw_list_at, for writing: good until the next writable of its array. Owner. */
int hnsw_list_writable(struct index *x, unsigned level, uint32_t slot, struct hnsw_list *out,
                       struct err *e);
/* Copies the links that are below n; returns how many. */
uint32_t hnsw_list_read(const struct hnsw_list *l, uint32_t n, uint32_t *out);
bool hnsw_list_has(const struct hnsw_list *l, uint32_t slot);

/* hnsw_graph.c: owner. */
int hnsw_upper_new(struct index *x, uint32_t slot, unsigned level, struct err *e);
int hnsw_upper_free(struct index *x, uint32_t slot, struct err *e);
/* Adds the link a - b; both have room. */
int hnsw_join(struct index *x, unsigned level, uint32_t a, uint32_t b, struct err *e);
int hnsw_part(struct index *x, unsigned level, uint32_t a, uint32_t b, struct err *e);
/* Takes a slot out of all its neighbours' lists and empties its own. */
int hnsw_detach(struct index *x, uint32_t slot, unsigned level, struct err *e);
/* Another entry point than slot, which is about to leave. */
int hnsw_entry_without(struct index *x, uint32_t slot, struct err *e);

/* hnsw_search.c. Inside an epoch. */
/* Walks from `from` towards q at one level, to the nearest it can find; *best is a key. */
int hnsw_greedy(struct index *x, struct index_scratch *s, const struct code_query *q,
                unsigned level, uint32_t n, uint64_t *best, struct err *e);
/* Algorithm 2: leaves the ef nearest accepted of what it met in s->far. `from` is a key. The
 * visited set is the caller's to begin. query may be NULL: accepts what is linked. */
int hnsw_search_layer(struct index *x, struct index_scratch *s, const struct code_query *q,
                      unsigned level, uint32_t n, size_t ef, uint64_t from,
                      const struct index_query *query, struct err *e);
/* The way down from the entry point to a level; *best is a key. Returns 0 and the level where
 * the walk began in *top, 1 when the graph is empty, or a negative code. */
int hnsw_descend(struct index *x, struct index_scratch *s, const struct code_query *q,
                 unsigned level, uint32_t n, uint64_t *best, unsigned *top, struct err *e);
int hnsw_search(struct index *x, struct index_scratch *s, const struct code_query *q, size_t k,
                size_t ef, const struct index_query *query, struct err *e);

/* hnsw_link.c, hnsw_unlink.c: a job, from its claim (lock held) to its commit. */
struct link_edge {
    uint32_t a, b;
    unsigned level;
    float distance;
    /* b's list was full: its hash when it was read, and whom it would give up, best choice
     * first (a itself: it would rather not). */
    bool full;
    uint64_t list_hash;
    uint32_t n_victims;
    uint32_t victims[4];
};

enum link_kind { LINK_INSERT, LINK_REMOVE };

struct link_job {
    struct link_job *next;
    uint64_t start;
    enum link_kind kind;
    uint32_t slot;
    uint64_t entry; /* seen when it was prepared */
    struct link_edge *edges;
    size_t n_edges, cap_edges;
    struct keys pairs;
    struct slot_list members;
};

void link_job_free(struct link_job *j);
int link_job_add(struct link_job *j, const struct link_edge *edge, struct err *e);
/* How many links a slot asks for at a level. */
uint32_t link_wanted(const struct index *x, unsigned level);
/* Plans up to m links of a slot at a level from the sorted candidates in s->list. */
int link_plan_level(struct index *x, struct index_scratch *s, struct link_job *j, uint32_t slot,
                    unsigned level, uint32_t m, struct err *e);
/* Makes a planned link true if it still can be. */
int link_connect(struct index *x, struct index_scratch *s, struct link_edge *edge, bool insist,
                 struct err *e);
int link_prepare(struct index *x, struct index_scratch *s, struct link_job *j, struct err *e);
int link_commit(struct index *x, struct index_scratch *s, struct link_job *j, struct err *e);
int unlink_prepare(struct index *x, struct index_scratch *s, struct link_job *j, struct err *e);
/* meta: the slot's. */
int unlink_commit(struct index *x, struct index_scratch *s, struct link_job *j, uint32_t meta,
                  struct err *e);
