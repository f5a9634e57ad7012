/* What a search is expected to cost, from what was measured on 100,000 vectors of 384
 * dimensions (manifold, clusters and random of bench-index; m 16, ef 10 to 100, selectivity 1
 * to 0.0001; one core of a server of 2024).
 *
 * A walk that keeps e elements of those that pass a share s of the filter looks at as many
 * codes as a walk without filter that keeps e / s: what a filter rejects is walked through all
 * the same. So recall rises as selectivity falls (manifold, ef 100: 0.89 at 1; 0.96, 0.9985
 * and 1.0 at 0.5, 0.1 and 0.01), and there is nothing to mend, only a price. Where the recall
 * of a walk without filter is enough, ef * s^0.65 finds as much (random: ef * s^0.9).
 *
 *   e / s              10     100    1,000   10,000   100,000
 *   manifold          497   2,725   18,307   70,583   100,000      codes looked at
 *   clusters                1,279   13,808   72,838   100,000
 *   random                  3,201   23,667   91,111   100,000
 *   here              455   2,887   20,207   83,300   100,000
 *
 * that is n (1 - exp(-2.8 m (e / s)^0.9 / n)), and the way down. Each candidate, about 2 e / s
 * of them, goes through a heap that is large when much is rejected: another 0.7, 2 and 4.7
 * codes where candidates are 2, 4 and 20 % of all, here 10 times the root of that share.
 *
 * Times of a code: 16, 33, 88 and 132 ns in a walk and 8, 14, 42 and 92 in a scan for 60 (bin),
 * 396 (int8), 780 (f16) and 1,548 bytes (f32). */
#include <math.h>

#include "index/state.h"

static double walk_code_ns(double bytes)
{
    return 12 + 0.08 * bytes;
}

static double scan_code_ns(double bytes)
{
    return 4 + 0.05 * bytes;
}

static double share(double selectivity)
{
    return selectivity > 1e-9 ? (selectivity < 1 ? selectivity : 1) : 1e-9;
}

struct index_cost index_walk_cost(struct index *x, uint32_t k, uint32_t ef, double selectivity)
{
    double n = (double)index_n_slots(x), s = share(selectivity), way_down = 100;
    double met = (double)(ef > k ? ef : k) / s;
    double candidates = 2 * met < n ? 2 * met : n;
    double codes = n > 0 ? n * -expm1(-2.8 * (double)x->params.m * pow(met, 0.9) / n) : 0;
    struct index_cost cost = {.codes = codes + way_down};
    if (s < 1) {
        cost.codes += n > 0 ? candidates * 10 * sqrt(candidates / n) : 0;
        cost.accepts = candidates;
    }
    return cost;
}

struct index_cost index_scan_cost(struct index *x, double selectivity)
{
    double n = (double)index_n_slots(x), s = share(selectivity);
    double bytes = (double)x->arrays.codes->stride, unit = walk_code_ns(bytes);
    double all = scan_code_ns(bytes), some = s * unit, head = 5;
    if (s >= 1)
        return (struct index_cost){.codes = n * all / unit};
    return (struct index_cost){.codes = n * (head + (some < all ? some : all)) / unit,
                               .accepts = n};
}
