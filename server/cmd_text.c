/* The engine's commands: texts to vectors, and the texts kept in vector sets. */
#include "server/data.h"
#include "server/vset.h"

/* EMBED's options stand before or after the texts; what stands after TEXTS is text whatever it
 * says: EMBED [FORMAT FP32 | FORMAT VALUES] [TRUNCATE] [TEXTS] text [text ...] [same options]
 * Where an option may stand, FORMAT and a word that is no format is a mistake, not two texts.
 */
struct embed {
    int first, n; /* n 0: nothing to embed */
    int bad;      /* the argument after FORMAT that is none, or 0 */
    bool fp32, truncate;
};

static int parse_option(const struct slice *argv, int at, int end, struct embed *o)
{
    if (at < end && slice_is(argv[at], "TRUNCATE")) {
        o->truncate = true;
        return 1;
    }
    if (at + 1 < end && slice_is(argv[at], "FORMAT") &&
        (slice_is(argv[at + 1], "FP32") || slice_is(argv[at + 1], "VALUES"))) {
        o->fp32 = slice_is(argv[at + 1], "FP32");
        return 2;
    }
    return 0;
}

static struct embed parse_embed(const struct slice *argv, int argc)
{
    struct embed o = {.first = 1};
    int end = argc;
    for (int used; (used = parse_option(argv, o.first, end, &o)) > 0; o.first += used)
        ;
    if (o.first < end && slice_is(argv[o.first], "TEXTS")) {
        o.first++;
        o.n = end - o.first;
        return o;
    }
    if (o.first + 1 < end && slice_is(argv[o.first], "FORMAT"))
        o.bad = o.first + 1;
    for (int used = 1; used > 0 && !o.bad; end -= used) {
        used = end - 1 > o.first ? parse_option(argv, end - 1, end, &o) : 0;
        if (used == 0 && end - 2 > o.first && slice_is(argv[end - 2], "FORMAT")) {
            used = parse_option(argv, end - 2, end, &o);
            o.bad = used ? 0 : end - 1;
        }
    }
    o.n = o.bad ? 0 : end - o.first;
    return o;
}

static void embed_texts(const struct slice *argv, int argc, struct command_texts *out)
{
    struct embed o = parse_embed(argv, argc);
    if (o.n > 0)
        *out = (struct command_texts){
            .first = &argv[o.first], .n = (uint32_t)o.n, .truncate = o.truncate};
}

static enum command_result run_embed(struct client *c)
{
    struct embed o = parse_embed(c->argv, c->argc);
    const struct embedding *m = c->embedding;
    if (o.bad) {
        reply_invalid(c, "FORMAT", o.bad,
                      "FP32 or VALUES; texts that read like options stand after TEXTS");
        return COMMAND_DONE;
    }
    if (o.n <= 0) {
        resp_error(c->out, "ERR EMBED takes at least one text after its options");
        return COMMAND_DONE;
    }
    if (!m || m->code != 0) {
        resp_error(c->out, m && m->message ? m->message : "ENGINE the texts were not embedded");
        return COMMAND_DONE;
    }
    resp_array(c->out, m->n);
    for (uint32_t i = 0; i < m->n; i++) {
        const float *v = m->vectors + (size_t)i * m->dim;
        if (o.fp32) {
            resp_bulk(c->out, v, m->dim * sizeof *v);
            continue;
        }
        resp_array(c->out, m->dim);
        for (uint32_t j = 0; j < m->dim; j++)
            resp_double(c->out, (double)v[j]);
    }
    return COMMAND_DONE;
}

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
     "Returns the vector of each text, as numbers or as little-endian float32 blobs.",
     "[FORMAT FP32 | FORMAT VALUES] [TRUNCATE] [TEXTS] text [text ...]"},
    {"vtext", 3, CMD_READONLY, 1, 1, 1, run_vtext, NULL, NULL, "engine", "kith 0.1.0", "O(1)",
     "Returns the text an element was added with, or nil.", "key element"},
    {0},
};
