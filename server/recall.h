#pragma once
/* A set's measured recall: how many of the exact 10 nearest the walk of the graph finds, as
 * seen on a trickle of the queries people really ask, and the ef that a wanted recall takes.
 *
 * One struct recall belongs to each vector set. Now and then a search offers its query
 * (recall_offer, cheap, never waits); the sampler, one thread of low priority for the whole
 * server, answers it exactly and by the walk at each ef of a grid, and folds what it finds into
 * exponential averages, in which about the last 200 samples count. It takes at most
 * recall-sample-cost percent of one core and leaves sets alone that nobody searches.
 *
 * What is exact: a scan of the codes, or of the full vectors where the set keeps them; so where
 * it does not, this is the recall of the walk and not of the quantization.
 *
 * A set that is asked for an ef (recall_ef) before much was measured is calibrated: the sampler
 * takes some of its own vectors as queries and leaves the element itself out. They count a
 * quarter of a real query.
 *
 * Thread: any; locks of its own. Files: recall.c keeps the averages, recall_sampler.c measures.
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct vset;
struct recall;
struct recall_sampler;

struct recall *recall_new(void); /* NULL when out of memory */
void recall_free(struct recall *r);

/* Starts and stops the thread. cost_percent: 0 turns sampling off. Stop it before the sets'
 * shard is closed; nobody offers any more then. */
int recall_sampler_start(struct recall_sampler **out, double cost_percent, struct err *e);
void recall_sampler_stop(struct recall_sampler *s); /* NULL is allowed */
void recall_sampler_configure(struct recall_sampler *s, double cost_percent);

/* After an unfiltered walk with this ef. Keeps a count of v and a copy of the vector (dim
 * floats of the set) when it takes the offer; drops it when another of this set waits, the last
 * was taken a moment ago, or too many wait. Not inside an epoch bracket; s may be NULL. */
void recall_offer(struct recall_sampler *s, struct vset *v, const float *vector, uint32_t ef);

/* The ef that reaches the wanted recall@10, from what was measured: between grid points by
 * interpolation over log ef, with a margin for few samples; before there are any a safe
 * RECALL_EF_UNKNOWN. The largest of the grid where even that falls short: then recall_figures
 * shows what it reaches. target in (0, 1]. */
enum { RECALL_EF_UNKNOWN = 400 };
uint32_t recall_ef(struct recall *r, double target);

struct recall_figures {
    double
        recall_at_10; /* of the walks as they were asked (their own ef); NAN before the first */
    uint64_t n_samples; /* queries measured, the set's own vectors among them */
    struct {
        uint32_t ef;
        double recall; /* NAN where not measured */
    } grid[8];
    uint32_t n_grid;
};
void recall_figures(struct recall *r, struct recall_figures *out);

/* Of all sets of the process. */
struct recall_totals {
    uint64_t n_sets; /* with at least one query measured */
    uint64_t n_samples;
    double mean, worst; /* of the sets' recall_at_10; NAN before the first */
};
void recall_totals(struct recall_totals *out);
