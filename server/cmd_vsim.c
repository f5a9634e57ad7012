/* VSIM and VRECOMMEND: the elements most similar to vectors, elements or texts.
 *
 * A command is in two halves. The first reads the arguments with the shard entered, where
 * elements can be found, and takes a count of the set. The second searches and replies; it
 * needs the set alone, so it runs with the shard left, perhaps on another thread
 * (client_offload). */
#include <stdio.h>

#include "base/clock.h"
#include "server/data.h"
#include "server/net.h"
#include "server/recall.h"
#include "server/search_args.h"
#include "server/server.h"
#include "server/shard_parts.h"
#include "server/vector_args.h"

enum { LONG_SCAN_BYTES = 32 << 20, LONG_WALK_EF = 2000 };

static void reply_results(struct client *c, const struct search_args *s,
                          const struct vset_answer *a)
{
    bool both = s->with_scores && s->with_attributes;
    if (c->out.proto == 3 && (s->with_scores || s->with_attributes))
        resp_map(c->out, a->n);
    else
        resp_array(c->out, (size_t)a->n * (1 + (size_t)s->with_scores + s->with_attributes));
    for (uint32_t i = 0; i < a->n; i++) {
        const struct vset_found *f = &a->found[i];
        resp_bulk(c->out, a->text.data + f->name_at, f->name_bytes);
        if (both && c->out.proto == 3)
            resp_array(c->out, 2);
        if (s->with_scores)
            resp_double(c->out, f->score);
        if (s->with_attributes && f->has_attributes)
            resp_bulk(c->out, a->text.data + f->attributes_at, f->attributes_bytes);
        else if (s->with_attributes)
            resp_null(c->out);
    }
}

/* What the measured recall of the set says about an unfiltered walk with this ef; negative:
 * nothing. Between the points of the grid it is interpolated. */
static double expected_recall(const struct search_args *s, const struct vset_account *how)
{
    struct recall_figures f;
    if (how->scanned)
        return 1;
    if (!s->offer || !how->walked)
        return -1;
    recall_figures(vset_recall(s->set), &f);
    double below = -1, below_ef = 0;
    for (uint32_t i = 0; i < f.n_grid; i++) {
        double recall = f.grid[i].recall, ef = f.grid[i].ef;
        if (!(recall >= 0))
            continue;
        if (ef >= how->ef)
            return below < 0
                       ? (ef > how->ef ? -1 : recall)
                       : below + (recall - below) * (how->ef - below_ef) / (ef - below_ef);
        below = recall;
        below_ef = ef;
    }
    return below;
}

static void reply_explained(struct client *c, const struct search_args *s,
                            const struct vset_answer *a, int64_t microseconds)
{
    const struct vset_account *how = &a->account;
    char reason[320];
    vset_account_reason(how, reason, sizeof reason);
    double recall = expected_recall(s, how);
    resp_map(c->out, 10);
    resp_bulk_str(c->out, "plan");
    resp_bulk_str(c->out, vset_account_plan(how));
    resp_bulk_str(c->out, "reason");
    resp_bulk_str(c->out, reason);
    resp_bulk_str(c->out, "ef");
    resp_int(c->out, how->ef);
    resp_bulk_str(c->out, "visits");
    resp_int(c->out, (int64_t)how->n_visits);
    resp_bulk_str(c->out, "filter-asked");
    resp_int(c->out, (int64_t)how->filter_asked);
    resp_bulk_str(c->out, "filter-passed");
    resp_int(c->out, (int64_t)how->filter_passed);
    resp_bulk_str(c->out, "selectivity-estimate");
    if (how->share >= 0)
        resp_double(c->out, how->share);
    else
        resp_null(c->out);
    resp_bulk_str(c->out, "recall-estimate");
    if (recall >= 0)
        resp_double(c->out, recall);
    else
        resp_null(c->out);
    resp_bulk_str(c->out, "microseconds");
    resp_int(c->out, microseconds);
    resp_bulk_str(c->out, "results");
    reply_results(c, s, a);
}

static void note(struct client *c, const struct vset_account *how)
{
    if (how->share >= 0)
        client_note(c, "%s: the filter passes %.3g %% of %u elements, %llu vectors looked at",
                    vset_account_plan(how), how->share * 100, how->n_elements,
                    (unsigned long long)how->n_visits);
    else
        client_note(c, "%s: ef %u, %llu vectors looked at", vset_account_plan(how), how->ef,
                    (unsigned long long)how->n_visits);
}

/* The second half. */
static void search_and_reply(struct client *c, void *arg)
{
    struct search_args *s = arg;
    struct store *store = c->server->shard->store;
    struct index_scratch *scratch = thread_scratch();
    struct vset_answer a = {0};
    struct err e = {0};
    int64_t start_us = clock_mono_us();
    int rc = scratch ? vset_search(s->set, &s->q, scratch, c->arena, &a, &e)
                     : err_set(&e, KITH_ENOMEM, "out of memory for the search");
    if (rc == 0 && (!store_healthy(store) || !vset_healthy(s->set)))
        rc = err_set(&e, KITH_ECORRUPT, "the data file is damaged, see the log and kith-check");
    note(c, &a.account);
    if (vset_gone(s->set))
        resp_array(c->out, 0); /* as if the key had been gone before */
    else if (rc != 0)
        reply_err(c, &e);
    else if (s->explain)
        reply_explained(c, s, &a, clock_mono_us() - start_us);
    else
        reply_results(c, s, &a);
    if (rc == 0 && s->offer && a.account.walked)
        recall_offer(c->server->recall, s->set, s->q.vectors, a.account.ef);
    vset_answer_deinit(&a);
    filter_free(s->filter);
    vset_unref(s->set);
}

/* Whether it may well keep a thread for more than some milliseconds: a scan of megabytes, or a
 * walk many times as wide as usual. */
static bool takes_long(const struct search_args *s)
{
    const struct vset_query *q = &s->q;
    const struct index_params *p = &vset_params(s->set)->index;
    bool scan = q->exact || q->filter || p->kind == INDEX_FLAT;
    uint64_t bytes = (uint64_t)vset_count(s->set) * index_code_stride(p) * q->n_vectors;
    uint64_t wide = (uint64_t)(q->ef > q->count ? q->ef : q->count) * q->n_vectors;
    return (scan && bytes > LONG_SCAN_BYTES) || wide > LONG_WALK_EF || q->has_radius;
}

static enum command_result run_search(struct client *c,
                                      bool (*parse)(struct client *c, struct vset *set,
                                                    struct search_args *a))
{
    struct key *k;
    if (!data_find_type(c, c->argv[1], OBJECT_VSET, &k))
        return COMMAND_DONE;
    if (!k) {
        resp_array(c->out, 0); /* before any argument is looked at, as Redis does */
        return COMMAND_DONE;
    }
    if (vector_arg_texts_again(c, k->vset))
        return COMMAND_TEXTS;
    struct search_args *s = arena_alloc(c->arena, sizeof *s);
    if (!s) {
        resp_error(c->out, "OOM out of memory for the search");
        return COMMAND_DONE;
    }
    if (!parse(c, k->vset, s))
        return COMMAND_DONE;
    vset_ref(s->set);
    if (s->no_thread) {
        worker_leave_shard(c);
        search_and_reply(c, s);
        return COMMAND_DONE;
    }
    return takes_long(s) ? client_offload_long(c, search_and_reply, s)
                         : client_offload(c, search_and_reply, s);
}

static enum command_result run_vsim(struct client *c)
{
    return run_search(c, search_args_vsim);
}

static enum command_result run_vrecommend(struct client *c)
{
    return run_search(c, search_args_vrecommend);
}

#define OPTIONS                                                                                \
    "[WITHSCORES] [WITHATTRIBS] [COUNT num] [EPSILON delta] "                                  \
    "[EF search-exploration-factor | EF AUTO recall] [FILTER expression] "                     \
    "[FILTER-EF max-filtering-effort] [TRUTH] [NOTHREAD] [RESCORE candidates] "                \
    "[MMR lambda] [RADIUS distance] [OFFSET num] [EXPLAIN]"

const struct command search_commands[] = {
    {"vsim", -4, CMD_READONLY, 1, 1, 1, run_vsim, search_args_texts, NULL, "vector_set",
     "8.0.0", "O(log N) with N the elements of the set",
     "Returns the elements most similar to a vector, an element or a text, or to several of "
     "them. Scores: COSINE 1 - distance / 2, L2 1 / (1 + distance), IP the inner product; "
     "EPSILON keeps scores of at least 1 - delta. With FILTER as many are returned as there "
     "are, up to COUNT. A text is embedded by the model that made the set's vectors; MODEL "
     "names "
     "it where the set has none of its own.",
     "key <ELE element | FP32 blob | VALUES num vector [vector ...] | TEXT text | "
     "VECS num item [item ...] | TEXTS num text [text ...]> [TRUNCATE] "
     "[MODEL model] "
     "[COMBINE RRF | COMBINE MAX | COMBINE AVG] " OPTIONS},
    {"vrecommend", -5, CMD_READONLY, 1, 1, 1, run_vrecommend, NULL, NULL, "vector_set",
     "kith 0.1.0", "O(log N) with N the elements of the set",
     "Returns the elements most similar to the mean of the positive examples and, with "
     "negative ones, as far again from their mean: avg(pos) + (avg(pos) - avg(neg)). The "
     "examples themselves are left out.",
     "key POS num element [element ...] [NEG num element [element ...]] " OPTIONS},
    {0},
};
