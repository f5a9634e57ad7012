/* The engine's commands: texts to vectors, texts to scores, and the texts kept in vector sets.
 */
#include <math.h>
#include <stdlib.h>

#include "server/data.h"
#include "server/engine_model.h"
#include "server/vset.h"

/* --- EMBED --- */

/* EMBED's options stand before or after the texts; what stands after TEXTS is text whatever it
 * says: EMBED [FORMAT FP32 | FORMAT VALUES] [TRUNCATE] [MODEL model] [DIM dim] [QUERY |
 * DOCUMENT] [TEXTS] text [text ...] [same options] Where an option may stand, FORMAT and a word
 * that is no format is a mistake, not two texts. MODEL, DIM, QUERY and DOCUMENT are also words
 * that texts consist of: they are options in capitals only, and only where a text is left.
 */
struct embed {
    int first, n; /* n 0: nothing to embed */
    int bad;      /* the argument after FORMAT that is none, or 0 */
    int dim;      /* the argument after DIM, or 0 */
    bool fp32, truncate, query, document;
    struct slice model; /* empty: the default */
};

static bool is_capitals(struct slice a, const char *word)
{
    return slice_equal(a, slice_of(word));
}

/* The option at argv[at], before `end`, in the order that can be seen at both ends of the
 * texts. Returns how many arguments it takes, 0: it is none. */
static int parse_option(const struct slice *argv, int at, int end, struct embed *o)
{
    struct slice word = at < end ? argv[at] : (struct slice){.p = "", .n = 0};
    bool value = at + 1 < end;
    if (slice_is(word, "TRUNCATE")) {
        o->truncate = true;
    } else if (is_capitals(word, "QUERY")) {
        o->query = true;
    } else if (is_capitals(word, "DOCUMENT")) {
        o->document = true;
    } else if (value && slice_is(word, "FORMAT") &&
               (slice_is(argv[at + 1], "FP32") || slice_is(argv[at + 1], "VALUES"))) {
        o->fp32 = slice_is(argv[at + 1], "FP32");
        return 2;
    } else if (value && is_capitals(word, "MODEL")) {
        o->model = argv[at + 1];
        return 2;
    } else if (value && is_capitals(word, "DIM")) {
        o->dim = at + 1;
        return 2;
    } else {
        return 0;
    }
    return 1;
}

/* An option whose last argument is argv[end - 1], behind a text. */
static int parse_trailing(const struct slice *argv, int first, int end, struct embed *o)
{
    int used = end - 2 > first ? parse_option(argv, end - 2, end, o) : 0;
    if (used == 2)
        return 2;
    if (end - 2 > first && slice_is(argv[end - 2], "FORMAT")) {
        o->bad = end - 1;
        return 0;
    }
    return end - 1 > first ? parse_option(argv, end - 1, end, o) : 0;
}

static struct embed parse_embed(const struct slice *argv, int argc)
{
    struct embed o = {.first = 1};
    int end = argc;
    for (;;) {
        struct embed with = o;
        int used = parse_option(argv, o.first, end, &with);
        bool word_of_texts = used > 0 && !slice_is(argv[o.first], "TRUNCATE") &&
                             !slice_is(argv[o.first], "FORMAT");
        if (used == 0 || (word_of_texts && o.first + used == end))
            break;
        o = with;
        o.first += used;
    }
    if (o.first < end && slice_is(argv[o.first], "TEXTS")) {
        o.first++;
        o.n = end - o.first;
        return o;
    }
    if (o.first + 1 < end && slice_is(argv[o.first], "FORMAT"))
        o.bad = o.first + 1;
    for (int used = 1; used > 0 && !o.bad; end -= used)
        used = parse_trailing(argv, o.first, end, &o);
    o.n = o.bad ? 0 : end - o.first;
    return o;
}

static void embed_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    struct embed o = parse_embed(argv, argc);
    if (o.n > 0 && !(o.query && o.document))
        *out = (struct command_texts){.first = &argv[o.first],
                                      .n = (uint32_t)o.n,
                                      .truncate = o.truncate,
                                      .role = o.query      ? ENGINE_ROLE_QUERY
                                              : o.document ? ENGINE_ROLE_DOCUMENT
                                                           : ENGINE_ROLE_NONE,
                                      .model = o.model};
}

/* Whether the command has its answer; else the error was replied. */
static bool answered(struct client *c)
{
    const struct embedding *m = c->embedding;
    if (m && m->code == 0)
        return true;
    resp_error(c->out, m && m->message ? m->message : "ENGINE the texts were not embedded");
    return false;
}

/* DIM's value, or the model's own dimension. */
static bool parse_dim(struct client *c, const struct embed *o, uint32_t *dim)
{
    const struct engine_model *model = c->embedding->model;
    char allowed[160];
    int64_t n;
    *dim = c->embedding->dim;
    if (!o->dim)
        return true;
    if (arg_int(c->argv[o->dim], &n) && n > 0 && n <= UINT32_MAX &&
        engine_model_allows_dim(model, (uint32_t)n)) {
        *dim = (uint32_t)n;
        return true;
    }
    engine_model_dims_text(model, allowed, sizeof allowed);
    resp_errorf(c->out,
                "ERR invalid DIM: model '%s' makes vectors of %s dimensions, not '%.*s'",
                model->name, allowed, slice_shown(c->argv[o->dim]), c->argv[o->dim].p);
    return false;
}

static enum command_result run_embed(struct client *c)
{
    struct embed o = parse_embed(c->argv, c->argc);
    const struct embedding *m = c->embedding;
    uint32_t dim;
    if (o.bad) {
        reply_invalid(c, "FORMAT", o.bad,
                      "FP32 or VALUES; texts that read like options stand after TEXTS");
        return COMMAND_DONE;
    }
    if (o.n <= 0) {
        resp_error(c->out, "ERR EMBED takes at least one text after its options");
        return COMMAND_DONE;
    }
    if (o.query && o.document) {
        resp_error(c->out, "ERR EMBED takes QUERY or DOCUMENT, not both: a text is the one or "
                           "the other; those words as texts stand after TEXTS");
        return COMMAND_DONE;
    }
    if (!answered(c) || !parse_dim(c, &o, &dim))
        return COMMAND_DONE;
    float *shorter = dim < m->dim ? arena_alloc(c->arena, dim * sizeof *shorter) : NULL;
    if (dim < m->dim && !shorter) {
        resp_error(c->out, "OOM out of memory for the vector");
        return COMMAND_DONE;
    }
    resp_array(c->out, m->n);
    for (uint32_t i = 0; i < m->n; i++) {
        const float *v = m->vectors + (size_t)i * m->dim;
        if (shorter) {
            engine_vector_cut(v, dim, shorter);
            v = shorter;
        }
        if (o.fp32) {
            resp_bulk(c->out, v, dim * sizeof *v);
            continue;
        }
        resp_array(c->out, dim);
        for (uint32_t j = 0; j < dim; j++)
            resp_double(c->out, (double)v[j]);
    }
    return COMMAND_DONE;
}

/* --- RERANK --- */

/* RERANK [MODEL model] [TRUNCATE] [RAW] [COUNT n] [TEXTS] query document [document ...]
 * The options stand before the texts, in capitals: a query may be any word. */
struct rerank {
    int first, n; /* the query and its documents */
    int count;    /* the argument after COUNT, or 0 */
    bool truncate, raw;
    struct slice model;
};

static struct rerank parse_rerank(const struct slice *argv, int argc)
{
    struct rerank o = {.first = 1};
    for (; o.first < argc; o.first++) {
        struct slice a = argv[o.first];
        if (is_capitals(a, "TRUNCATE"))
            o.truncate = true;
        else if (is_capitals(a, "RAW"))
            o.raw = true;
        else if (is_capitals(a, "MODEL") && o.first + 1 < argc)
            o.model = argv[++o.first];
        else if (is_capitals(a, "COUNT") && o.first + 1 < argc)
            o.count = ++o.first;
        else
            break;
    }
    if (o.first < argc && is_capitals(argv[o.first], "TEXTS"))
        o.first++;
    o.n = argc - o.first;
    return o;
}

static bool parse_count(const struct slice *argv, const struct rerank *o, int64_t *count)
{
    *count = INT64_MAX;
    return !o->count || (arg_int(argv[o->count], count) && *count >= 1);
}

static void rerank_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    struct rerank o = parse_rerank(argv, argc);
    int64_t count;
    if (o.n >= 2 && parse_count(argv, &o, &count))
        *out = (struct command_texts){.first = &argv[o.first],
                                      .n = (uint32_t)o.n,
                                      .truncate = o.truncate,
                                      .task = ENGINE_RERANK,
                                      .model = o.model};
}

struct ranked {
    float logit;
    uint32_t index;
};

static int best_first(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static bool rank(struct client *c, const struct embedding *m, struct ranked **out)
{
    struct ranked *all = arena_alloc(c->arena, m->n * sizeof *all);
    if (!all) {
        resp_error(c->out, "OOM out of memory for the scores");
        return false;
    }
    for (uint32_t i = 0; i < m->n; i++) {
        if (!isfinite(m->vectors[i])) {
            resp_errorf(c->out, "ENGINE model '%s' gave document %u no finite score",
                        m->model->name, i);
            return false;
        }
        all[i] = (struct ranked){.logit = m->vectors[i], .index = i};
    }
    qsort(all, m->n, sizeof *all, best_first);
    *out = all;
    return true;
}

static enum command_result run_rerank(struct client *c)
{
    struct rerank o = parse_rerank(c->argv, c->argc);
    struct ranked *all;
    int64_t count;
    if (!parse_count(c->argv, &o, &count)) {
        reply_invalid(c, "COUNT", o.count, "a whole number from 1");
        return COMMAND_DONE;
    }
    if (o.n < 2) {
        resp_error(c->out,
                   "ERR RERANK takes a query and at least one document after its options");
        return COMMAND_DONE;
    }
    if (!answered(c) || !rank(c, c->embedding, &all))
        return COMMAND_DONE;
    uint32_t n = c->embedding->n;
    if (count < n)
        n = (uint32_t)count;
    resp_array(c->out, n);
    for (uint32_t i = 0; i < n; i++) {
        double logit = (double)all[i].logit;
        resp_array(c->out, 2);
        resp_int(c->out, all[i].index);
        resp_double(c->out, o.raw ? logit : 1 / (1 + exp(-logit)));
    }
    return COMMAND_DONE;
}

/* --- VTEXT --- */

static enum command_result run_vtext(struct client *c)
{
    struct key *k;
    if (!data_find_type(c, c->argv[1], OBJECT_VSET, &k))
        return COMMAND_DONE;
    struct err e = {0};
    struct buf text;
    buf_init(&text);
    uint32_t slot;
    int rc = k ? vset_find(k->vset, c->argv[2], data_now_ms(c), &slot, &e) : KITH_ENOTFOUND;
    if (rc == 0)
        rc = vset_text(k->vset, slot, &text, &e);
    if (rc == 0)
        resp_bulk(c->out, text.data, text.len);
    else if (rc == KITH_ENOTFOUND)
        resp_null(c->out);
    else
        reply_err(c, &e);
    buf_deinit(&text);
    return COMMAND_DONE;
}

const struct command text_commands[] = {
    {"embed", -2, 0, 0, 0, 0, run_embed, embed_texts, NULL, "engine", "kith 0.1.0",
     "O(N) with N the tokens of the texts",
     "Returns the vector of each text, as numbers or as little-endian float32 blobs, made by "
     "the "
     "default model or the one named. DIM cuts the vectors of a model that allows it; QUERY "
     "and "
     "DOCUMENT put the model's own prompt before the texts. MODEL, DIM, QUERY and DOCUMENT are "
     "options in capitals only; what stands after TEXTS is text.",
     "[FORMAT FP32 | FORMAT VALUES] [TRUNCATE] [MODEL model] [DIM dim] [QUERY | DOCUMENT] "
     "[TEXTS] "
     "text [text ...]"},
    {"rerank", -3, 0, 0, 0, 0, run_rerank, rerank_texts, NULL, "engine", "kith 0.1.0",
     "O(N) with N the tokens of the documents and, for each of them, of the query",
     "Returns the documents' numbers, from 0, and how well they answer the query, the best "
     "first: "
     "pairs of number and score. A score is 1 / (1 + exp(-logit)), with RAW the model's logit. "
     "Without MODEL the first registered model that reranks is asked. Options are read in "
     "capitals; what stands after TEXTS is text.",
     "[MODEL model] [TRUNCATE] [RAW] [COUNT num] [TEXTS] query document [document ...]"},
    {"vtext", 3, CMD_READONLY, 1, 1, 1, run_vtext, NULL, NULL, "engine", "kith 0.1.0", "O(1)",
     "Returns the text an element was added with, or nil.", "key element"},
    {0},
};
