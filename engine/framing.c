#include "engine/framing.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "engine/profile.h"
#include "engine/tokenizer.h"

enum {
    SPECIAL_BYTES = 64, /* the longest name of a control token that a template may have */
    CUTS_MAX = 64,
    WHAT_BYTES = 32
};

/* --- sequences -----------------------------------------------------------------------------
 */

int sequences_init(struct sequences *q, uint32_t n_most, struct err *e)
{
    *q = (struct sequences){0};
    q->offsets = mem_alloc_n((size_t)n_most + 1, sizeof *q->offsets);
    q->splits = mem_alloc_n(n_most, sizeof *q->splits);
    if (!q->offsets || !q->splits) {
        sequences_deinit(q);
        return err_set(e, KITH_ENOMEM, "out of memory for %u texts", n_most);
    }
    q->offsets[0] = 0;
    return 0;
}

void sequences_deinit(struct sequences *q)
{
    mem_free(q->ids);
    mem_free(q->offsets);
    mem_free(q->splits);
    *q = (struct sequences){0};
}

static int make_room(struct sequences *q, size_t n, struct err *e)
{
    if (n <= q->capacity - q->n_ids)
        return 0;
    size_t capacity = q->capacity ? q->capacity * 2 : 256;
    while (capacity < q->n_ids + n)
        capacity *= 2;
    int32_t *ids = mem_realloc_n(q->ids, capacity, sizeof *ids);
    if (!ids)
        return err_set(e, KITH_ENOMEM, "out of memory for the texts' tokens");
    q->ids = ids;
    q->capacity = capacity;
    return 0;
}

/* Ids that stand in every sequence; there is room for them. */
static void put_ids(struct sequences *q, const int32_t *ids, uint32_t n)
{
    memcpy(q->ids + q->n_ids, ids, n * sizeof *ids);
    q->n_ids += n;
}

/* The ids since the last sequence are one. */
static int end_sequence(struct sequences *q, uint32_t split, struct err *e)
{
    if (q->n_ids > INT32_MAX)
        return err_set(e, KITH_ELIMIT, "the texts have too many tokens");
    q->splits[q->n] = split;
    q->offsets[++q->n] = (uint32_t)q->n_ids;
    return 0;
}

/* --- texts ---------------------------------------------------------------------------------
 */

/* Appends the first `room` ids of the text at most, and leaves room for `more` behind; *n is
 * how many the text has. Most texts have no more tokens than bytes; where a normaliser made
 * more of it, room for a whole context is enough: past that the tokenizer only counts. */
static int encode(const struct framing *f, struct slice text, size_t room, size_t more,
                  struct sequences *q, size_t *n, struct err *e)
{
    size_t most = text.n < room ? text.n : room;
    for (;;) {
        int rc = make_room(q, most + more, e);
        if (!rc)
            rc = tokenizer_encode(f->tokenizer, text.p, text.n, q->ids + q->n_ids, most, n, e);
        if (rc)
            return rc;
        if (*n <= most || most == room)
            break;
        most = *n < room ? *n : room;
    }
    q->n_ids += *n < room ? *n : room;
    return 0;
}

static int check_text(struct slice text, const char *what, struct err *e)
{
    if (text.n == 0)
        return err_set(e, KITH_EINVAL, "%s is empty", what);
    size_t valid = utf8_valid_prefix(text.p, text.n);
    if (valid != text.n)
        return err_set(e, KITH_EINVAL, "%s: not UTF-8: the byte at offset %zu breaks the rules",
                       what, valid);
    return 0;
}

static int too_long(const struct framing *f, const char *what, size_t n, struct err *e)
{
    return err_set(e, KITH_EINVAL,
                   "%s has %zu tokens, the model takes %u: shorten it or give TRUNCATE", what,
                   n, f->n_ctx);
}

static const char *prompt_of(const struct framing *f, enum embedder_role role)
{
    return role == EMBEDDER_QUERY      ? f->profile->query_prompt
           : role == EMBEDDER_DOCUMENT ? f->profile->document_prompt
                                       : "";
}

static int add_prompted(const struct framing *f, struct slice text, const char *what,
                        bool truncate, struct sequences *q, struct err *e)
{
    const struct tokenizer_frame *frame = tokenizer_frame(f->tokenizer);
    const size_t n_frame = frame->n_before + frame->n_after, room = f->n_ctx - n_frame;
    size_t n;
    int rc = make_room(q, n_frame, e);
    if (rc)
        return rc;
    put_ids(q, frame->before, frame->n_before);
    if ((rc = encode(f, text, room, frame->n_after, q, &n, e)))
        return err_wrap(e, "%s", what), rc;
    if (n > room && !truncate)
        return too_long(f, what, n + n_frame, e);
    put_ids(q, frame->after, frame->n_after);
    return end_sequence(q, UINT32_MAX, e);
}

int framing_add_text(const struct framing *f, enum embedder_role role, struct slice text,
                     uint32_t number, bool truncate, struct sequences *q, struct err *e)
{
    char what[WHAT_BYTES];
    snprintf(what, sizeof what, "text %u", number);
    int rc = check_text(text, what, e);
    if (rc)
        return rc;
    const char *prompt = prompt_of(f, role);
    if (!prompt[0])
        return add_prompted(f, text, what, truncate, q, e);
    struct buf joined;
    buf_init(&joined);
    buf_append(&joined, prompt, strlen(prompt));
    buf_append(&joined, text.p, text.n);
    rc = joined.failed
             ? err_set(e, KITH_ENOMEM, "out of memory for %s", what)
             : add_prompted(f, (struct slice){joined.data, joined.len}, what, truncate, q, e);
    buf_deinit(&joined);
    return rc;
}

/* --- pairs ---------------------------------------------------------------------------------
 */

/* Of n_query and n_document tokens those that fit into room, the longer text cut first. */
static void share(size_t room, size_t *n_query, size_t *n_document)
{
    size_t half = room / 2;
    if (*n_query + *n_document <= room)
        return;
    if (*n_query <= half)
        *n_document = room - *n_query;
    else if (*n_document <= room - half)
        *n_query = room - *n_document;
    else
        *n_query = half, *n_document = room - half;
}

static int add_framed_pair(const struct framing *f, struct slice query, struct slice document,
                           const char *what, bool truncate, struct sequences *q, struct err *e)
{
    const struct tokenizer_pair_frame *frame = tokenizer_pair_frame(f->tokenizer);
    const size_t n_frame = frame->n_before + frame->n_between + frame->n_after,
                 room = f->n_ctx - n_frame;
    size_t n_query, n_document, start = q->n_ids;
    int rc = make_room(q, n_frame, e);
    if (rc)
        return rc;
    put_ids(q, frame->before, frame->n_before);
    size_t query_at = q->n_ids;
    if ((rc = encode(f, query, room, n_frame, q, &n_query, e)))
        return err_wrap(e, "the query"), rc;
    size_t document_at = q->n_ids;
    if ((rc = encode(f, document, room, n_frame, q, &n_document, e)))
        return err_wrap(e, "%s", what), rc;
    if (n_query + n_document > room && !truncate) {
        rc = too_long(f, what, n_query + n_document + n_frame, e);
        return err_wrap(e, "with the query"), rc;
    }
    share(room, &n_query, &n_document);
    /* The document stands where there was room to cut it; now it goes behind what is between.
     */
    size_t behind = query_at + n_query + frame->n_between;
    memmove(q->ids + behind, q->ids + document_at, n_document * sizeof *q->ids);
    q->n_ids = query_at + n_query;
    put_ids(q, frame->between, frame->n_between);
    q->n_ids += n_document;
    put_ids(q, frame->after, frame->n_after);
    return end_sequence(q, (uint32_t)(behind - start), e);
}

/* --- pairs in a template -------------------------------------------------------------------
 */

enum part_kind { PART_TOKEN, PART_TEXT, PART_QUERY, PART_DOCUMENT };

struct framing_part {
    enum part_kind kind;
    int32_t id;        /* PART_TOKEN */
    struct slice text; /* PART_TEXT: of the profile's template */
};

/* The length of the control token that the template has at `at`; 0: none begins there. */
static size_t special_at(const struct tokenizer *t, const char *at, int32_t *id)
{
    if (*at != '<')
        return 0;
    const char *end = memchr(at, '>', strnlen(at, SPECIAL_BYTES));
    size_t n = end ? (size_t)(end - at) + 1 : 0;
    return n && tokenizer_special(t, at, n, id, NULL) == 0 ? n : 0;
}

static size_t part_at(const struct framing *f, const char *at, struct framing_part *part)
{
    static const char query[] = "{query}", document[] = "{document}";
    size_t n;
    *part = (struct framing_part){.kind = PART_TEXT, .text = {at, 1}};
    if (strncmp(at, query, sizeof query - 1) == 0) {
        part->kind = PART_QUERY;
        return sizeof query - 1;
    }
    if (strncmp(at, document, sizeof document - 1) == 0) {
        part->kind = PART_DOCUMENT;
        return sizeof document - 1;
    }
    if ((n = special_at(f->tokenizer, at, &part->id)) > 0) {
        part->kind = PART_TOKEN;
        return n;
    }
    return 1;
}

static int compile_template(struct framing *f, struct err *e)
{
    const char *at = f->profile->rerank_template;
    size_t n = strlen(at);
    f->parts = mem_alloc_n(n, sizeof *f->parts);
    if (!f->parts)
        return err_set(e, KITH_ENOMEM, "out of memory for a template of %zu bytes", n);
    while (*at) {
        struct framing_part part;
        struct framing_part *last = f->n_parts ? &f->parts[f->n_parts - 1] : NULL;
        size_t used = part_at(f, at, &part);
        if (part.kind == PART_TEXT && last && last->kind == PART_TEXT)
            last->text.n += used;
        else
            f->parts[f->n_parts++] = part;
        at += used;
    }
    return 0;
}

/* The ids of text between two control tokens, behind the others, all of them. */
static int flush(const struct framing *f, struct buf *run, struct sequences *q, struct err *e)
{
    size_t n = 0;
    if (run->failed)
        return err_set(e, KITH_ENOMEM, "out of memory for a pair of texts");
    int rc = run->len == 0
                 ? 0
                 : encode(f, (struct slice){run->data, run->len}, SIZE_MAX, 0, q, &n, e);
    buf_clear(run);
    return rc;
}

static int encode_template(const struct framing *f, struct slice query, struct slice document,
                           struct buf *run, struct sequences *q, struct err *e)
{
    for (uint32_t i = 0; i < f->n_parts; i++) {
        const struct framing_part *part = &f->parts[i];
        struct slice text = part->kind == PART_QUERY      ? query
                            : part->kind == PART_DOCUMENT ? document
                                                          : part->text;
        int rc = 0;
        if (part->kind != PART_TOKEN) {
            buf_append(run, text.p, text.n);
        } else if (!(rc = flush(f, run, q, e)) && !(rc = make_room(q, 1, e))) {
            put_ids(q, &part->id, 1);
        }
        if (rc)
            return rc;
    }
    return flush(f, run, q, e);
}

/* Fewer bytes of a document, whole characters, for a sequence that is `over` tokens too long.
 */
static size_t cut(struct slice document, size_t over)
{
    size_t n = document.n > over ? document.n - over : 0;
    while (n > 0 && n < document.n && ((unsigned char)document.p[n] & 0xc0) == 0x80)
        n--;
    return n;
}

/* A document that is cut loses a byte for each token too many, until it fits: what a token
 * costs depends on its neighbours, so that nothing better is certain. The last cuts are
 * coarser. */
static int add_template_pair(const struct framing *f, struct slice query, struct slice document,
                             const char *what, bool truncate, struct sequences *q,
                             struct err *e)
{
    size_t start = q->n_ids;
    struct buf run;
    buf_init(&run);
    int rc = 0;
    for (int cuts = 0;; cuts++) {
        q->n_ids = start;
        if ((rc = encode_template(f, query, document, &run, q, e)))
            break;
        size_t n = q->n_ids - start;
        if (n <= f->n_ctx) {
            rc = end_sequence(q, UINT32_MAX, e);
            break;
        }
        if (!truncate) {
            rc = too_long(f, what, n, e);
            err_wrap(e, "with the query and the model's words");
            break;
        }
        if (document.n == 0) {
            rc = err_set(e, KITH_EINVAL,
                         "the query and the model's words have %zu tokens, the model takes %u: "
                         "shorten it",
                         n, f->n_ctx);
            break;
        }
        size_t over = n - f->n_ctx;
        document.n = cut(document, cuts < CUTS_MAX ? over : over + document.n / 8 + 1);
    }
    buf_deinit(&run);
    return rc;
}

bool framing_has_pairs(const struct framing *f)
{
    return f->parts || tokenizer_pair_frame(f->tokenizer)->known;
}

int framing_add_pair(const struct framing *f, struct slice query, struct slice document,
                     uint32_t number, bool truncate, struct sequences *q, struct err *e)
{
    char what[WHAT_BYTES];
    snprintf(what, sizeof what, "document %u", number);
    int rc = check_text(query, "the query", e);
    if (!rc)
        rc = check_text(document, what, e);
    if (rc)
        return rc;
    return f->parts ? add_template_pair(f, query, document, what, truncate, q, e)
                    : add_framed_pair(f, query, document, what, truncate, q, e);
}

/* --- */

int framing_init(struct framing *f, const struct tokenizer *t, const struct profile *p,
                 uint32_t n_ctx, struct err *e)
{
    const struct tokenizer_frame *frame = tokenizer_frame(t);
    const struct tokenizer_pair_frame *pair = tokenizer_pair_frame(t);
    *f = (struct framing){.tokenizer = t, .profile = p, .n_ctx = n_ctx};
    if (n_ctx <= frame->n_before + frame->n_after ||
        (pair->known && n_ctx <= pair->n_before + pair->n_between + pair->n_after))
        return err_set(e, KITH_EFORMAT, "a context of %u tokens holds no text", n_ctx);
    return p->rerank_template ? compile_template(f, e) : 0;
}

void framing_deinit(struct framing *f)
{
    mem_free(f->parts);
    *f = (struct framing){0};
}
