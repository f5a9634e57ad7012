/* Any bytes as JSONL, CSV and text, and what comes of them cut in every way. What must hold:
 * every record has an id and a text that is UTF-8, every chunk lies in the text, behind the one
 * before it and with nothing but white space between them (unless they overlap), is trimmed,
 * and has no more estimated tokens than were asked for. The first byte chooses the limits. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "tools/import_read.h"
#include "tools/import_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct cutting {
    struct slice text;
    struct chunk_options options;
    size_t begin, end; /* of the last chunk */
    size_t n;
};

static void require(int holds)
{
    if (!holds)
        abort();
}

/* A chunk of no tokens is white space, of which there is none. */
static void require_blank(struct slice text, size_t from, size_t to)
{
    if (from < to)
        require(text_tokens((struct slice){.p = text.p + from, .n = to - from}) == 0);
}

static int look(void *arg, const struct chunk *c)
{
    struct cutting *k = arg;
    size_t begin = (size_t)(c->text.p - k->text.p), end = begin + c->text.n;
    require(c->text.p >= k->text.p && end <= k->text.n && c->text.n > 0);
    require(utf8_valid_prefix(c->text.p, c->text.n) == c->text.n);
    require(utf8_valid_prefix(c->heading.p, c->heading.n) == c->heading.n);
    require(!strchr(" \t\n\r", c->text.p[0]) || c->text.p[0] == '\0');
    if (k->n > 0)
        require(begin > k->begin && end > k->end);
    if (k->options.overlap == 0)
        require(begin >= k->end);
    require_blank(k->text, k->end, begin);
    if (k->options.mode != CHUNK_NONE)
        require(text_tokens(c->text) <= k->options.n_tokens);
    k->begin = begin;
    k->end = end;
    k->n++;
    return 0;
}

static void cut_all(struct slice text, unsigned choice)
{
    for (int mode = CHUNK_TOKENS; mode <= CHUNK_NONE; mode++)
        for (unsigned half = 0; half < 2; half++) {
            struct cutting k = {.text = text};
            k.options.mode = (enum chunk_mode)mode;
            k.options.n_tokens = 1 + choice % 40;
            k.options.overlap = half ? k.options.n_tokens / 2 : 0;
            require(text_chunks(text, &k.options, look, &k) == 0);
            require_blank(text, k.end, text.n);
        }
}

static int on_record(void *arg, const struct import_record *r)
{
    require(r->id.n > 0 && r->text.n > 0 && json_is_object(r->attributes) && r->line > 0);
    require(utf8_valid_prefix(r->id.p, r->id.n) == r->id.n);
    require(utf8_valid_prefix(r->text.p, r->text.n) == r->text.n);
    char *dump = json_dumps(r->attributes, JSON_COMPACT);
    require(dump != NULL);
    free(dump);
    cut_all(r->text, *(const unsigned *)arg);
    return 0;
}

static int on_bad(void *arg, const char *file, size_t line, const char *what)
{
    (void)arg;
    require(file[0] && line > 0 && what[0]);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2)
        return 0;
    unsigned choice = data[0];
    struct import_fields fields = {.all = true};
    const struct import_sink sink = {.record = on_record, .bad = on_bad, .arg = &choice};
    /* In memory of exactly its length, so that a step outside is seen. */
    char *exact = mem_dup(data + 1, n - 1);
    struct slice bytes = {.p = exact, .n = n - 1};
    import_read_jsonl("f", bytes, &fields, &sink);
    import_read_csv("f", bytes, &fields, &sink);
    import_read_text("f", bytes, &sink);
    mem_free(exact);
    return 0;
}
