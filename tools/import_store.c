#include "tools/import_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "tools/import_server.h"
#include "tools/import_text.h"

enum { RETRY_FIRST_MS = 50, RETRY_MOST_MS = 2000, POLL_MS = 100 };

/* A list of chunks that owns them. */
struct chunks {
    struct import_chunk *list;
    size_t n, cap;
};

/* A document whose chunks are not looked up yet. */
struct document {
    char *id;
    bool numbered;
    size_t n; /* its chunks, in `unasked`, behind those of the documents before it */
};

struct lane {
    redisContext *c;
    struct chunks batch; /* on the way; empty: free */
    uint64_t sequence;
};

struct import_store {
    struct import_options o;
    struct import_model model;
    struct import_counts counts;
    redisContext *ask;
    struct lane *lanes;
    struct document *documents;
    size_t n_documents, documents_cap;
    struct chunks unasked, ready, again; /* again: of batches that were refused */
    size_t again_most;                   /* a batch of those has at most so many */
    uint64_t sequence;
};

static void chunk_free(struct import_chunk *c)
{
    mem_free(c->name);
    mem_free((void *)c->text.p);
    json_decref(c->attributes);
}

static void chunks_free(struct chunks *c)
{
    for (size_t i = 0; i < c->n; i++)
        chunk_free(&c->list[i]);
    mem_free(c->list);
    *c = (struct chunks){0};
}

/* Takes the chunk also when it fails. */
static int chunks_add(struct chunks *to, struct import_chunk *c, struct err *e)
{
    struct import_chunk *list = mem_grow(to->list, to->n, &to->cap, 64, sizeof *list);
    if (!list) {
        chunk_free(c);
        return err_set(e, KITH_ENOMEM, "out of memory for chunks");
    }
    to->list = list;
    to->list[to->n++] = *c;
    return 0;
}

/* --- the model --- */

static int wait_for_engine(struct import_store *s, struct err *e)
{
    int64_t until = clock_mono_us() + s->o.wait_ms * 1000;
    int rc;
    const char *key = s->o.embed_only ? NULL : s->o.key;
    while ((rc = import_model_find(s->ask, s->o.model, key, &s->model, e)) == 0) {
        if (*s->o.stop || clock_mono_us() > until)
            return err_set(e, KITH_ECLOSED, "the server's embedding engine is not up");
        clock_sleep_us(POLL_MS * 1000);
    }
    return rc < 0 ? rc : 0;
}

uint64_t import_store_tokens(struct import_store *s)
{
    return import_model_tokens(s->ask, &s->model);
}

static int open_parts(struct import_store *s, struct err *e)
{
    int rc = server_connect(&s->o.address, &s->ask, e);
    if (rc || (rc = wait_for_engine(s, e)))
        return rc;
    if (!(s->lanes = mem_calloc(s->o.n_connections, sizeof *s->lanes)))
        return err_set(e, KITH_ENOMEM, "out of memory for connections");
    for (unsigned i = 0; i < s->o.n_connections && rc == 0; i++)
        rc = server_connect(&s->o.address, &s->lanes[i].c, e);
    return rc;
}

int import_store_open(struct import_store **out, const struct import_options *o, struct err *e)
{
    struct import_store *s = mem_calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory");
    s->o = *o;
    int rc = open_parts(s, e);
    if (rc) {
        import_store_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void import_store_free(struct import_store *s)
{
    if (!s)
        return;
    for (unsigned i = 0; s->lanes && i < s->o.n_connections; i++) {
        chunks_free(&s->lanes[i].batch);
        if (s->lanes[i].c)
            redisFree(s->lanes[i].c);
    }
    if (s->ask)
        redisFree(s->ask);
    for (size_t i = 0; i < s->n_documents; i++)
        mem_free(s->documents[i].id);
    chunks_free(&s->unasked);
    chunks_free(&s->ready);
    chunks_free(&s->again);
    mem_free(s->documents);
    mem_free(s->lanes);
    mem_free(s);
}

const struct import_model *import_store_model(const struct import_store *s)
{
    return &s->model;
}

const struct import_counts *import_store_counts(const struct import_store *s)
{
    return &s->counts;
}

/* --- pieces, and what is sent of a chunk --- */

struct outgoing {
    struct request q;
    struct buf names; /* of pieces, and numbers */
    char **owned;     /* strings that live until the request is appended */
    size_t n_owned, owned_cap;
    const struct import_chunk *chunk;
    size_t n_pieces, piece;
    bool embed_only, failed;
};

static const char *own(struct outgoing *o, char *p)
{
    char **owned = mem_grow(o->owned, o->n_owned, &o->owned_cap, 64, sizeof *owned);
    if (!owned || !p) {
        mem_free(p);
        o->failed = true;
        return "";
    }
    o->owned = owned;
    o->owned[o->n_owned++] = p;
    return p;
}

/* With as many digits as numbers need: 0.1 stays 0.1, unless 15 digits are too few for one of
 * them. To be freed with free(). */
static char *dump_json(const json_t *j, size_t flags)
{
    char *brief = json_dumps(j, flags | JSON_REAL_PRECISION(15));
    json_t *again = brief ? json_loads(brief, JSON_ALLOW_NUL, NULL) : NULL;
    bool same = again && json_equal(again, j);
    json_decref(again);
    if (same)
        return brief;
    free(brief);
    return json_dumps(j, flags | JSON_REAL_PRECISION(17));
}

/* The attributes as they are stored: piece 1 has the hash and the number of all. */
static const char *attributes_of(struct outgoing *o)
{
    json_t *all = json_copy(o->chunk->attributes);
    if (!all)
        return own(o, NULL);
    if (o->piece == 1)
        json_object_set_new(all, "_hash", json_string(o->chunk->hash));
    if (o->piece == 1 && o->n_pieces > 1)
        json_object_set_new(all, "_pieces", json_integer((json_int_t)o->n_pieces));
    char *dump = dump_json(all, JSON_COMPACT);
    char *copy = dump ? mem_strdup(dump) : NULL;
    free(dump);
    json_decref(all);
    return own(o, copy);
}

static int count_piece(void *arg, const struct chunk *c)
{
    (void)c;
    ((struct outgoing *)arg)->n_pieces++;
    return 0;
}

static int put_piece(void *arg, const struct chunk *c)
{
    struct outgoing *o = arg;
    o->piece++;
    if (o->embed_only) {
        request_put(&o->q, c->text.p, c->text.n);
        return 0;
    }
    char number[32] = "";
    if (o->piece > 1)
        snprintf(number, sizeof number, ".%zu", o->piece);
    size_t n = strlen(o->chunk->name) + strlen(number) + 1;
    char *name = mem_alloc(n);
    if (name)
        snprintf(name, n, "%s%s", o->chunk->name, number);
    request_put_str(&o->q, own(o, name));
    request_put(&o->q, c->text.p, c->text.n);
    request_put_str(&o->q, attributes_of(o));
    return 0;
}

static void each_piece(struct outgoing *o, const struct import_chunk *c,
                       int (*fn)(void *arg, const struct chunk *c))
{
    struct chunk_options cut = {.mode = c->piece_tokens ? CHUNK_SENTENCES : CHUNK_NONE,
                                .n_tokens = c->piece_tokens};
    if (text_chunks(c->text, &cut, fn, o) != 0)
        o->failed = true;
}

/* VMADD key MODEL name TEXT n ATTRS, or EMBED, of the whole batch. */
static int send_batch(struct import_store *s, struct lane *lane, struct err *e)
{
    struct outgoing o = {.embed_only = s->o.embed_only};
    size_t n = 0;
    for (size_t i = 0; i < lane->batch.n; i++) {
        o.n_pieces = 0;
        each_piece(&o, &lane->batch.list[i], count_piece);
        n += o.n_pieces;
    }
    char count[32];
    snprintf(count, sizeof count, "%zu", n);
    if (o.embed_only) {
        const char *const words[] = {"EMBED",  "MODEL", s->model.alias, "DOCUMENT",
                                     "FORMAT", "FP32",  "TEXTS"};
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            request_put_str(&o.q, words[i]);
    } else {
        const char *const words[] = {"VMADD", s->o.key, "MODEL", s->model.alias,
                                     "TEXT",  count,    "ATTRS"};
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            request_put_str(&o.q, words[i]);
    }
    for (size_t i = 0; i < lane->batch.n; i++) {
        o.chunk = &lane->batch.list[i];
        o.n_pieces = o.piece = 0;
        each_piece(&o, o.chunk, count_piece);
        each_piece(&o, o.chunk, put_piece);
    }
    o.q.failed |= o.failed;
    int rc = request_append(&o.q, lane->c, e);
    for (size_t i = 0; i < o.n_owned; i++)
        mem_free(o.owned[i]);
    mem_free(o.owned);
    lane->sequence = s->sequence++;
    return rc ? rc : server_flush(lane->c, e);
}

/* --- answers --- */

static void progress(struct import_store *s)
{
    if (s->o.progress)
        s->o.progress(s->o.arg);
}

static bool starts(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

/* Sends the batch again until the engine is there and has room. The reply then, or NULL. */
static redisReply *insist(struct import_store *s, struct lane *lane, struct err *e)
{
    int64_t until = clock_mono_us() + s->o.wait_ms * 1000, pause_ms = RETRY_FIRST_MS;
    for (;;) {
        void *r = NULL;
        if (redisGetReply(lane->c, &r) != REDIS_OK || !r) {
            server_lost(lane->c, e);
            return NULL;
        }
        redisReply *reply = r;
        bool later = reply->type == REDIS_REPLY_ERROR &&
                     (starts(reply->str, "BUSY ") || starts(reply->str, "ENGINE ") ||
                      starts(reply->str, "LOADING "));
        if (!later || *s->o.stop || clock_mono_us() > until)
            return reply;
        freeReplyObject(reply);
        s->counts.retries++;
        clock_sleep_us(pause_ms * 1000);
        pause_ms = pause_ms * 2 < RETRY_MOST_MS ? pause_ms * 2 : RETRY_MOST_MS;
        progress(s);
        if (send_batch(s, lane, e) != 0)
            return NULL;
    }
}

/* Whether the refusal says that the text has more tokens than the model takes. */
static bool too_long(const char *message, unsigned *has, unsigned *takes)
{
    const char *at = strstr(message, " tokens, the model takes ");
    if (!at || sscanf(at, " tokens, the model takes %u", takes) != 1)
        return false;
    while (at > message && at[-1] >= '0' && at[-1] <= '9')
        at--;
    return sscanf(at, "%u", has) == 1 && *takes > 0;
}

/* The batch was refused: halves of it go out again, and of one chunk pieces. */
static int refused(struct import_store *s, struct chunks *batch, const char *message,
                   struct err *e)
{
    int rc = 0;
    if (batch->n > 1) {
        size_t half = (batch->n + 1) / 2;
        if (s->again.n == 0 || half < s->again_most)
            s->again_most = half;
        for (size_t i = 0; i < batch->n; i++) {
            int added = chunks_add(&s->again, &batch->list[i], e);
            rc = rc ? rc : added;
        }
        batch->n = 0;
        return rc;
    }
    struct import_chunk *c = &batch->list[0];
    unsigned has, takes;
    if (s->o.split && too_long(message, &has, &takes)) {
        unsigned was = c->piece_tokens ? c->piece_tokens : (unsigned)text_tokens(c->text);
        unsigned next = (unsigned)((uint64_t)was * takes / has);
        next -= next / 8;
        next = next < was ? next : was - 1;
        if (next > 0) {
            s->counts.split += c->piece_tokens == 0;
            c->piece_tokens = next;
            c->alone = true;
            batch->n = 0;
            return chunks_add(&s->again, c, e);
        }
    }
    if (s->o.bad(s->o.arg, c->file, c->line, message) != 0)
        rc = err_set(e, KITH_EINVAL, "%s", message);
    chunk_free(c);
    batch->n = 0;
    return rc;
}

/* Waits for the answer of the lane's batch; the lane is free then. */
static int settle(struct import_store *s, struct lane *lane, struct err *e)
{
    redisReply *r = insist(s, lane, e);
    if (!r)
        return e->code ? e->code : KITH_EIO;
    int rc = 0;
    if (r->type != REDIS_REPLY_ERROR)
        s->counts.stored += lane->batch.n;
    else if (starts(r->str, "ERR "))
        rc = refused(s, &lane->batch, r->str + strlen("ERR "), e);
    else
        rc = err_set(e, KITH_EIO, "the server refuses: %s", r->str);
    freeReplyObject(r);
    for (size_t i = 0; i < lane->batch.n; i++)
        chunk_free(&lane->batch.list[i]);
    lane->batch.n = 0;
    progress(s);
    return rc;
}

/* The lane whose batch was sent first, or NULL when all are free. */
static struct lane *oldest(struct import_store *s)
{
    struct lane *first = NULL;
    for (unsigned i = 0; i < s->o.n_connections; i++) {
        struct lane *l = &s->lanes[i];
        if (l->batch.n > 0 && (!first || l->sequence < first->sequence))
            first = l;
    }
    return first;
}

static int free_lane(struct import_store *s, struct lane **out, struct err *e)
{
    for (unsigned i = 0; i < s->o.n_connections; i++)
        if (s->lanes[i].batch.n == 0) {
            *out = &s->lanes[i];
            return 0;
        }
    *out = oldest(s);
    return settle(s, *out, e);
}

/* Moves up to `most` chunks from the front of `from` to a lane and sends them. */
static int dispatch(struct import_store *s, struct chunks *from, size_t most, struct err *e)
{
    struct lane *lane;
    int rc = free_lane(s, &lane, e);
    if (rc)
        return rc;
    size_t n = 0;
    while (n < from->n && n < most && rc == 0 && !(n > 0 && from->list[n].alone)) {
        bool alone = from->list[n].alone;
        rc = chunks_add(&lane->batch, &from->list[n++], e);
        if (alone)
            break;
    }
    memmove(from->list, from->list + n, (from->n - n) * sizeof *from->list);
    from->n -= n;
    return rc ? rc : send_batch(s, lane, e);
}

/* Sends batches while there are more than `rest` chunks ready. */
static int send_ready(struct import_store *s, size_t rest, struct err *e)
{
    int rc = 0;
    while (rc == 0 && !*s->o.stop && (s->again.n > 0 || s->ready.n > rest)) {
        if (s->again.n > 0)
            rc = dispatch(s, &s->again, s->again_most ? s->again_most : 1, e);
        else
            rc = dispatch(s, &s->ready, s->o.n_batch, e);
    }
    return rc;
}

/* --- what is there already --- */

/* NUMBER or NUMBER.PIECE behind "ID#"; false for the name of something else. */
static bool parse_suffix(const char *p, size_t n, size_t *number, size_t *piece)
{
    size_t *into = number, at = 0;
    *number = *piece = 0;
    for (; at < n; at++) {
        if (p[at] == '.' && into == number && *number > 0) {
            into = piece;
        } else if (p[at] < '0' || p[at] > '9' || *into > SIZE_MAX / 16 ||
                   (p[at] == '0' && *into == 0)) {
            return false;
        } else {
            *into = *into * 10 + (size_t)(p[at] - '0');
        }
    }
    return *number > 0 && (into == number || *piece > 1);
}

static void hash_chunk(struct import_store *s, struct import_chunk *c, struct buf *scratch)
{
    char *attributes = json_dumps(c->attributes, JSON_COMPACT | JSON_SORT_KEYS);
    scratch->len = 0;
    buf_bytes(scratch, s->model.hash, strlen(s->model.hash));
    buf_bytes(scratch, attributes ? attributes : "", attributes ? strlen(attributes) : 0);
    buf_bytes(scratch, c->text.p, c->text.n);
    snprintf(c->hash, sizeof c->hash, "%016llx",
             (unsigned long long)hash64(scratch->data, scratch->len));
    free(attributes);
}

/* Whether the stored attributes are those of this very chunk; of how many pieces it is. */
static bool same(const struct import_chunk *c, const redisReply *r, size_t *n_pieces)
{
    *n_pieces = 1;
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 2 || !r->element[1]->str)
        return false;
    json_t *stored = json_loadb(r->element[1]->str, r->element[1]->len, JSON_ALLOW_NUL, NULL);
    const char *hash = json_string_value(json_object_get(stored, "_hash"));
    json_int_t pieces = json_integer_value(json_object_get(stored, "_pieces"));
    bool is = hash && strcmp(hash, c->hash) == 0;
    if (pieces > 1)
        *n_pieces = (size_t)pieces;
    json_decref(stored);
    return is;
}

static int ask_all(struct import_store *s, struct err *e)
{
    int rc = 0;
    struct buf bound;
    buf_init(&bound);
    for (size_t i = 0; i < s->n_documents && rc == 0; i++) {
        if (!s->documents[i].numbered)
            continue;
        bound.len = 0;
        buf_printf(&bound, "[%s#", s->documents[i].id);
        size_t n = bound.len;
        buf_printf(&bound, "(%s#:", s->documents[i].id); /* ':' comes behind '9' */
        struct request q = {0};
        request_put_str(&q, "VRANGE");
        request_put_str(&q, s->o.key);
        request_put(&q, bound.data, n);
        request_put(&q, bound.data + n, bound.len - n);
        q.failed |= bound.failed;
        rc = request_append(&q, s->ask, e);
    }
    buf_deinit(&bound);
    char count[32];
    struct request q = {0};
    request_put_str(&q, "VGET");
    request_put_str(&q, s->o.key);
    snprintf(count, sizeof count, "%zu", s->unasked.n);
    request_put_str(&q, count);
    for (size_t i = 0; i < s->unasked.n; i++)
        request_put_str(&q, s->unasked.list[i].name);
    request_put_str(&q, "ATTRS");
    return rc ? (request_free(&q), rc) : request_append(&q, s->ask, e);
}

/* What the set has of the documents; the caller frees the replies. */
struct found {
    redisReply **names; /* of each document, NULL where they were not asked for */
    redisReply *attributes;
};

static void found_free(struct found *f, size_t n)
{
    for (size_t i = 0; f->names && i < n; i++)
        if (f->names[i])
            freeReplyObject(f->names[i]);
    if (f->attributes)
        freeReplyObject(f->attributes);
    mem_free(f->names);
}

static int read_all(struct import_store *s, struct found *f, struct err *e)
{
    if (!(f->names = mem_calloc(s->n_documents + 1, sizeof(redisReply *))))
        return err_set(e, KITH_ENOMEM, "out of memory for replies");
    for (size_t i = 0; i < s->n_documents; i++)
        if (s->documents[i].numbered && !(f->names[i] = server_reply(s->ask, e)))
            return e->code;
    if (!(f->attributes = server_reply(s->ask, e)))
        return e->code;
    if (f->attributes->elements != s->unasked.n)
        return err_set(e, KITH_EPROTO, "VGET gave %zu of %zu elements", f->attributes->elements,
                       s->unasked.n);
    return 0;
}

static int append_rem(struct import_store *s, const redisReply *name, size_t *n, struct err *e)
{
    struct request q = {0};
    request_put_str(&q, "VREM");
    request_put_str(&q, s->o.key);
    request_put(&q, name->str, name->len);
    ++*n;
    return request_append(&q, s->ask, e);
}

/* Decides on each chunk of one document, and removes what it does not have: chunks behind its
 * last, pieces behind a chunk's last, and all pieces of a chunk that is stored anew. */
static int sort_out(struct import_store *s, const struct document *d, struct import_chunk *c,
                    redisReply **attributes, const redisReply *names, struct err *e)
{
    size_t prefix = strlen(d->id) + 1, n_names = names ? names->elements : 0, n_removed = 0;
    size_t *counts = mem_calloc(2 * (d->n + 1), sizeof *counts);
    size_t *pieces = counts ? counts + d->n + 1 : NULL; /* those there are, by chunk number */
    size_t number, piece;
    int rc = counts ? 0 : err_set(e, KITH_ENOMEM, "out of memory for a document");
    for (size_t i = 0; i < n_names && rc == 0; i++) {
        const redisReply *name = names->element[i];
        if (parse_suffix(name->str + prefix, name->len - prefix, &number, &piece) &&
            number <= d->n)
            pieces[number]++;
    }
    for (size_t i = 0; i < d->n; i++) {
        size_t n = 1;
        bool keep =
            rc == 0 && same(&c[i], attributes[i], &n) && (!d->numbered || pieces[i + 1] >= n);
        if (rc == 0)
            counts[i + 1] = keep ? n : 0;
        if (keep) {
            s->counts.unchanged++;
            chunk_free(&c[i]);
        } else {
            int added = chunks_add(&s->ready, &c[i], e);
            rc = rc ? rc : added;
        }
    }
    for (size_t i = 0; i < n_names && rc == 0; i++) {
        const redisReply *name = names->element[i];
        if (!parse_suffix(name->str + prefix, name->len - prefix, &number, &piece))
            continue;
        if (number > d->n || (piece > 1 && piece > counts[number])) {
            rc = append_rem(s, name, &n_removed, e);
            s->counts.removed += piece == 0;
        }
    }
    for (size_t i = 0; i < n_removed && rc == 0; i++) {
        redisReply *r = server_reply(s->ask, e);
        rc = r ? 0 : e->code;
        if (r)
            freeReplyObject(r);
    }
    mem_free(counts);
    return rc;
}

static void forget_documents(struct import_store *s)
{
    for (size_t i = 0; i < s->n_documents; i++)
        mem_free(s->documents[i].id);
    s->n_documents = 0;
}

/* Asks for all that is not asked for yet. */
static int look_up(struct import_store *s, struct err *e)
{
    if (s->unasked.n == 0)
        return 0;
    struct found f = {0};
    int rc = ask_all(s, e);
    if (!rc)
        rc = read_all(s, &f, e);
    size_t at = 0;
    for (size_t i = 0; i < s->n_documents && rc == 0; i++) {
        struct document *d = &s->documents[i];
        rc = sort_out(s, d, s->unasked.list + at, f.attributes->element + at, f.names[i], e);
        at += d->n;
    }
    for (; at < s->unasked.n; at++)
        chunk_free(&s->unasked.list[at]);
    s->unasked.n = 0;
    found_free(&f, s->n_documents);
    forget_documents(s);
    progress(s);
    return rc;
}

/* --- from outside --- */

int import_store_document(struct import_store *s, const char *id, bool numbered,
                          struct import_chunk *chunks, size_t n, struct err *e)
{
    struct buf scratch;
    buf_init(&scratch);
    struct chunks *to = s->o.embed_only ? &s->ready : &s->unasked;
    int rc = 0;
    for (size_t i = 0; i < n; i++) {
        hash_chunk(s, &chunks[i], &scratch);
        int added = chunks_add(to, &chunks[i], e);
        rc = rc ? rc : added;
    }
    if (scratch.failed)
        rc = err_set(e, KITH_ENOMEM, "out of memory for a hash");
    buf_deinit(&scratch);
    if (rc == 0 && !s->o.embed_only) {
        struct document *list =
            mem_grow(s->documents, s->n_documents, &s->documents_cap, 64, sizeof *list);
        char *copy = mem_strdup(id);
        s->documents = list ? list : s->documents;
        if (!list || !copy) {
            mem_free(copy);
            return err_set(e, KITH_ENOMEM, "out of memory for a document");
        }
        list[s->n_documents++] = (struct document){.id = copy, .numbered = numbered, .n = n};
        if (s->unasked.n >= s->o.n_batch)
            rc = look_up(s, e);
    }
    return rc ? rc : send_ready(s, s->o.n_batch - 1, e);
}

int import_store_finish(struct import_store *s, struct err *e)
{
    int rc = *s->o.stop ? 0 : look_up(s, e);
    struct lane *l = NULL;
    do {
        if (rc == 0)
            rc = send_ready(s, 0, e);
        if (rc == 0 && (l = oldest(s)))
            rc = settle(s, l, e);
    } while (rc == 0 && (l || (!*s->o.stop && s->again.n > 0)));
    return rc;
}
