/* kith-import: files of text into a vector set of a running server.
 *
 * Reads front to back (import_read), cuts (import_text), and hands each document's chunks to
 * the store (import_store), which skips what is unchanged and keeps several batches on the way.
 * An id may come once in all files: which of two records it names would else depend on their
 * order, and a second run would never come to rest. */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/dict.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/program.h"
#include "tools/import_read.h"
#include "tools/import_store.h"
#include "tools/import_text.h"

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_SKIPPED, EXIT_INTERRUPTED = 130 };
enum {
    DRY_RUN_CHUNKS = 10,
    DRY_RUN_BYTES = 200,
    BAR_WIDTH = 30,
    BAR_EVERY_US = 100000,
    WAIT_MS = 60000,
    FRAME_TOKENS = 2, /* what a model puts around each text */
    ENDED = 1         /* of callbacks: stop reading; why is in the importer */
};

static const char help[] =
    "usage: kith-import [options] KEY PATH...\n"
    "\n"
    "Reads JSONL, CSV, and texts or Markdown (files, or folders of them), cuts them into\n"
    "chunks, and has a running kith-server embed and store them in the vector set KEY.\n"
    "What is stored already and has not changed is skipped: to go on after an interruption,\n"
    "or to bring a set up to date, run the same command again.\n"
    "\n"
    "  --host HOST          default 127.0.0.1\n"
    "  --port N             default 6379\n"
    "  --socket PATH        a Unix socket instead\n"
    "  --user NAME, --password WORD   to log in; the password also from $KITH_PASSWORD\n"
    "\n"
    "  --format F           auto (by the file's name; default), jsonl, csv or text\n"
    "  --id FIELD           default: id, or _id\n"
    "  --text FIELD         default: text, content or body, the first there is\n"
    "  --attributes LIST    fields that become attributes, with commas; all (default), none\n"
    "  --on-error A         stop (default) at a bad record, or skip it and say so at the end\n"
    "\n"
    "  --chunk MODE         sentences (default), tokens, headings (Markdown sections), none\n"
    "  --chunk-tokens N     the most tokens of a chunk, estimated; default: what the model "
    "takes\n"
    "  --overlap N          tokens of a chunk's end that the next begins with, in whole\n"
    "                       sentences or words; default 0, at most half of a chunk\n"
    "\n"
    "  --model NAME         the server's model that embeds (MODEL LIST); default: the one "
    "that\n"
    "                       made the set's vectors, else the server's default\n"
    "  --batch N            chunks of one request, default 64\n"
    "  --connections N      requests on the way at once, default 4\n"
    "  --dry-run            print the first chunks and store nothing\n"
    "  --embed-only         embed all chunks and store nothing: what the engine alone takes\n"
    "  --quiet              no progress and no table\n"
    "\n"
    "Elements are named ID#1, ID#2 ..., or ID with --chunk none; the ID of a text is its\n"
    "path. Exit status: 0 all is stored, 1 it failed, 2 wrong use, 3 all but skipped records\n"
    "is stored, 130 interrupted.\n";

enum format { FORMAT_AUTO, FORMAT_JSONL, FORMAT_CSV, FORMAT_TEXT };

struct input {
    char *path;
    enum format format;
    size_t bytes;
};

struct inputs {
    struct input *list;
    size_t n, cap;
    size_t n_ignored; /* files of folders that are of no known kind */
    uint64_t bytes;
};

struct settings {
    struct import_options store;
    struct import_fields fields;
    struct chunk_options chunk;
    enum format format;
    const char **attribute_names;
    bool skip, dry_run, quiet;
};

/* An id and where it was. */
struct seen {
    struct dict_node node; /* first */
    const char *file;
    size_t line, n;
    char id[];
};

struct importer {
    struct settings set;
    struct inputs inputs;
    struct import_store *store;
    struct dict seen;
    struct import_chunk *chunks; /* of the document that is being cut */
    size_t n_chunks, chunks_cap;
    const struct import_record *record;
    uint64_t n_records, n_cut, n_skipped, bytes_before, bytes_now;
    struct buf skipped; /* a line for each */
    int64_t start_us, drawn_us;
    bool bar;
    struct err e;
};

static volatile int interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

/* --- progress --- */

static void clear_bar(const struct importer *m)
{
    if (m->bar && m->drawn_us)
        fputs("\r\033[K", stderr);
}

static void draw(void *arg)
{
    struct importer *m = arg;
    int64_t now = clock_mono_us();
    if (!m->bar || now - m->drawn_us < BAR_EVERY_US)
        return;
    m->drawn_us = now;
    const struct import_counts *c = import_store_counts(m->store);
    double seconds = (double)(now - m->start_us) / 1e6 + 1e-9;
    double part = m->inputs.bytes ? (double)m->bytes_now / (double)m->inputs.bytes : 1;
    part = part > 1 ? 1 : part;
    int full = (int)(part * BAR_WIDTH);
    fprintf(stderr, "\r\033[K[%.*s%*s] %3.0f %%  %llu stored, %llu unchanged, %.0f/s", full,
            "##############################", BAR_WIDTH - full, "", part * 100,
            (unsigned long long)c->stored, (unsigned long long)c->unchanged,
            (double)(c->stored + c->unchanged) / seconds);
    if (part > 0.01 && seconds > 1) {
        int left = (int)(seconds / part - seconds);
        fprintf(stderr, ", %d:%02d left", left / 60, left % 60);
    }
    fflush(stderr);
}

/* --- bad records --- */

static int on_bad(void *arg, const char *file, size_t line, const char *what)
{
    struct importer *m = arg;
    if (!m->set.skip) {
        err_set(&m->e, KITH_EINVAL, "%s:%zu: %s", file, line, what);
        return ENDED;
    }
    m->n_skipped++;
    buf_printf(&m->skipped, "%s:%zu: %s\n", file, line, what);
    return 0;
}

static int on_refused(void *arg, const char *file, size_t line, const char *what)
{
    char message[ERR_MESSAGE_MAX];
    snprintf(message, sizeof message, "the server refuses it: %s", what);
    return on_bad(arg, file, line, message);
}

/* --- a record --- */

struct seen_key {
    struct slice id;
};

static bool seen_equal(const struct dict_node *n, const void *key)
{
    const struct seen *s = (const struct seen *)n;
    const struct seen_key *k = key;
    return slice_equal((struct slice){.p = s->id, .n = s->n}, k->id);
}

/* 0: it is new; else what on_bad said, or ENDED. */
static int check_id(struct importer *m, const struct import_record *r, bool *is_new)
{
    uint64_t hash = hash64(r->id.p, r->id.n);
    struct seen_key key = {.id = r->id};
    struct seen *s = (struct seen *)dict_find(&m->seen, hash, seen_equal, &key);
    *is_new = s == NULL;
    if (s) {
        char what[256];
        snprintf(what, sizeof what, "the id '%.*s' was there before: %s:%zu",
                 slice_shown(r->id), r->id.p, s->file, s->line);
        return on_bad(m, r->file, r->line, what);
    }
    s = mem_alloc(sizeof *s + r->id.n);
    if (s) {
        *s = (struct seen){.node.hash = hash, .file = r->file, .line = r->line, .n = r->id.n};
        memcpy(s->id, r->id.p, r->id.n);
    }
    if (!s || dict_insert(&m->seen, &s->node) != 0) {
        mem_free(s);
        err_set(&m->e, KITH_ENOMEM, "out of memory for an id");
        return ENDED;
    }
    return 0;
}

static int add_chunk(void *arg, const struct chunk *chunk)
{
    struct importer *m = arg;
    const struct import_record *r = m->record;
    bool numbered = m->set.chunk.mode != CHUNK_NONE;
    struct import_chunk *list =
        mem_grow(m->chunks, m->n_chunks, &m->chunks_cap, 16, sizeof *list);
    if (list)
        m->chunks = list;
    char number[32] = "";
    if (numbered)
        snprintf(number, sizeof number, "#%zu", m->n_chunks + 1);
    struct import_chunk c = {.file = r->file, .line = r->line};
    size_t n = r->id.n + strlen(number) + 1;
    c.name = mem_alloc(n);
    if (c.name)
        snprintf(c.name, n, "%.*s%s", (int)r->id.n, r->id.p, number);
    c.text = (struct slice){.p = mem_dup(chunk->text.p, chunk->text.n), .n = chunk->text.n};
    c.attributes = json_copy(r->attributes);
    bool ok = list && c.name && c.text.p && c.attributes;
    if (ok && chunk->heading.n > 0)
        ok = json_object_set_new(c.attributes, "heading",
                                 json_stringn(chunk->heading.p, chunk->heading.n)) == 0;
    if (!ok) {
        mem_free(c.name);
        mem_free((void *)c.text.p);
        json_decref(c.attributes);
        err_set(&m->e, KITH_ENOMEM, "out of memory for a chunk");
        return ENDED;
    }
    m->chunks[m->n_chunks++] = c;
    return 0;
}

static void drop_chunks(struct importer *m)
{
    for (size_t i = 0; i < m->n_chunks; i++) {
        mem_free(m->chunks[i].name);
        mem_free((void *)m->chunks[i].text.p);
        json_decref(m->chunks[i].attributes);
    }
    m->n_chunks = 0;
}

/* The first chunks, as they would be stored. */
static int show_chunks(struct importer *m)
{
    int rc = 0;
    for (size_t i = 0; i < m->n_chunks && rc == 0; i++) {
        const struct import_chunk *c = &m->chunks[i];
        char *attributes = json_dumps(c->attributes, JSON_COMPACT);
        size_t shown = c->text.n < DRY_RUN_BYTES ? c->text.n : DRY_RUN_BYTES;
        while (shown < c->text.n && (c->text.p[shown] & 0xC0) == 0x80)
            shown--;
        printf("%s  %zu bytes, about %zu tokens\n  %s\n  %.*s%s\n", c->name, c->text.n,
               text_tokens(c->text), attributes ? attributes : "", (int)shown, c->text.p,
               shown < c->text.n ? " ..." : "");
        free(attributes);
        rc = m->n_cut - m->n_chunks + i + 1 >= DRY_RUN_CHUNKS ? ENDED : 0;
    }
    drop_chunks(m);
    return rc;
}

static int store_chunks(struct importer *m, const struct import_record *r)
{
    char *id = mem_alloc(r->id.n + 1);
    if (!id) {
        drop_chunks(m);
        err_set(&m->e, KITH_ENOMEM, "out of memory for an id");
        return ENDED;
    }
    memcpy(id, r->id.p, r->id.n);
    id[r->id.n] = '\0';
    struct err e = {0};
    int rc = import_store_document(m->store, id, m->set.chunk.mode != CHUNK_NONE, m->chunks,
                                   m->n_chunks, &e);
    m->n_chunks = 0;
    mem_free(id);
    if (rc && !m->e.code)
        m->e = e;
    return rc || interrupted ? ENDED : 0;
}

static int on_record(void *arg, const struct import_record *r)
{
    struct importer *m = arg;
    bool is_new;
    int rc = check_id(m, r, &is_new);
    if (rc || !is_new)
        return rc;
    if (m->set.chunk.mode == CHUNK_HEADINGS && json_object_get(r->attributes, "heading"))
        return on_bad(m, r->file, r->line,
                      "the field 'heading' is what --chunk headings writes; leave it out with "
                      "--attributes");
    m->record = r;
    m->n_records++;
    m->bytes_now = m->bytes_before + r->end;
    if (text_chunks(r->text, &m->set.chunk, add_chunk, m) != 0) {
        drop_chunks(m);
        if (!m->e.code)
            err_set(&m->e, KITH_ENOMEM, "out of memory for headings");
        return ENDED;
    }
    m->n_cut += m->n_chunks;
    if (m->n_chunks == 0)
        return on_bad(m, r->file, r->line, "the text has nothing but white space");
    return m->set.dry_run ? show_chunks(m) : store_chunks(m, r);
}

/* --- files --- */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcasecmp(s + n - k, end) == 0;
}

static enum format format_of(const char *path)
{
    static const struct {
        const char *end;
        enum format format;
    } kinds[] = {{".jsonl", FORMAT_JSONL},  {".ndjson", FORMAT_JSONL}, {".csv", FORMAT_CSV},
                 {".txt", FORMAT_TEXT},     {".text", FORMAT_TEXT},    {".md", FORMAT_TEXT},
                 {".markdown", FORMAT_TEXT}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (ends_with(path, kinds[i].end))
            return kinds[i].format;
    return FORMAT_AUTO;
}

static int add_file(struct importer *m, const char *path, size_t bytes, bool named)
{
    enum format known = format_of(path);
    enum format format = m->set.format != FORMAT_AUTO ? m->set.format : known;
    /* Of a folder only what has a known name, and of the asked format, is taken. */
    if (!named && (known == FORMAT_AUTO || known != format)) {
        m->inputs.n_ignored++;
        return 0;
    }
    struct inputs *in = &m->inputs;
    struct input *list = mem_grow(in->list, in->n, &in->cap, 64, sizeof *list);
    char *copy = mem_strdup(path);
    in->list = list ? list : in->list;
    if (!list || !copy) {
        mem_free(copy);
        return err_set(&m->e, KITH_ENOMEM, "out of memory for paths");
    }
    format = format == FORMAT_AUTO ? FORMAT_TEXT : format;
    list[in->n++] = (struct input){.path = copy, .format = format, .bytes = bytes};
    in->bytes += bytes;
    return 0;
}

static int add_path(struct importer *m, const char *path, bool named);

/* In the order of names, so that two runs read alike. */
static int add_folder(struct importer *m, const char *path)
{
    struct dirent **list;
    int n = scandir(path, &list, NULL, alphasort), rc = 0;
    if (n < 0)
        return err_set_errno(&m->e, errno, "%s", path);
    for (int i = 0; i < n; i++) {
        char *inside = NULL;
        bool hidden = list[i]->d_name[0] == '.';
        if (rc == 0 && !hidden) {
            const char *slash = ends_with(path, "/") ? "" : "/";
            if (asprintf(&inside, "%s%s%s", path, slash, list[i]->d_name) < 0)
                rc = err_set(&m->e, KITH_ENOMEM, "out of memory for a path");
            else
                rc = add_path(m, inside, false);
            free(inside);
        }
        free(list[i]);
    }
    free(list);
    return rc;
}

static int add_path(struct importer *m, const char *path, bool named)
{
    struct stat st;
    /* A link to a folder may lead back to where we are. */
    if ((named ? stat(path, &st) : lstat(path, &st)) != 0)
        return err_set_errno(&m->e, errno, "%s", path);
    if (!named && S_ISLNK(st.st_mode) && (stat(path, &st) != 0 || !S_ISREG(st.st_mode))) {
        m->inputs.n_ignored++;
        return 0;
    }
    if (S_ISDIR(st.st_mode))
        return add_folder(m, path);
    if (S_ISREG(st.st_mode))
        return add_file(m, path, (size_t)st.st_size, named);
    if (!named) {
        m->inputs.n_ignored++;
        return 0;
    }
    return err_set(&m->e, KITH_EINVAL, "%s is neither a file nor a folder", path);
}

static int read_file(struct importer *m, const struct input *in)
{
    const struct import_sink sink = {.record = on_record, .bad = on_bad, .arg = m};
    struct file_map map;
    if (in->bytes == 0)
        return on_bad(m, in->path, 1, "the file is empty");
    if (file_map_open(&map, in->path, &m->e) != 0)
        return ENDED;
    struct slice bytes = {.p = map.data, .n = map.bytes};
    int rc;
    if (in->format == FORMAT_JSONL)
        rc = import_read_jsonl(in->path, bytes, &m->set.fields, &sink);
    else if (in->format == FORMAT_CSV)
        rc = import_read_csv(in->path, bytes, &m->set.fields, &sink);
    else
        rc = import_read_text(in->path, bytes, &sink);
    file_map_close(&map);
    m->bytes_before += in->bytes;
    m->bytes_now = m->bytes_before;
    return rc;
}

/* --- the whole --- */

/* The size of a chunk, where it was not said, is what the model takes. */
static int size_chunks(struct importer *m)
{
    struct chunk_options *c = &m->set.chunk;
    const struct import_model *model = m->store ? import_store_model(m->store) : NULL;
    size_t most = model && model->context > FRAME_TOKENS ? model->context - FRAME_TOKENS : 0;
    if (c->n_tokens == 0)
        c->n_tokens = most;
    if (model && c->n_tokens > most)
        return err_set(&m->e, KITH_EINVAL,
                       "--chunk-tokens %zu: the model '%s' takes %zu, of its context of %u",
                       c->n_tokens, model->name, most, model->context);
    if (c->overlap > c->n_tokens / 2)
        return err_set(&m->e, KITH_EINVAL, "--overlap %zu is more than half of a chunk of %zu",
                       c->overlap, c->n_tokens);
    return 0;
}

static void read_all(struct importer *m)
{
    for (size_t i = 0; i < m->inputs.n && !interrupted; i++)
        if (read_file(m, &m->inputs.list[i]) != 0)
            break;
    /* What is on the way is waited for also when something went wrong. */
    if (m->store && !m->set.dry_run) {
        struct err e = {0};
        if (m->e.code)
            interrupted = 1;
        bool failed = m->e.code != 0;
        if (import_store_finish(m->store, &e) != 0 && !failed && !m->e.code)
            m->e = e;
    }
}

static void print_table(const struct importer *m, uint64_t tokens, double seconds)
{
    const struct import_counts *c = import_store_counts(m->store);
    printf("read       %llu records of %zu file%s", (unsigned long long)m->n_records,
           m->inputs.n, m->inputs.n == 1 ? "" : "s");
    if (m->inputs.n_ignored)
        printf(" (%zu other files of the folders are of no known kind)", m->inputs.n_ignored);
    printf("\nchunks     %llu\n%-10s %llu\n", (unsigned long long)m->n_cut,
           m->set.store.embed_only ? "embedded" : "stored", (unsigned long long)c->stored);
    if (c->split)
        printf("           (%llu of them in pieces, for the model does not take more)\n",
               (unsigned long long)c->split);
    printf("unchanged  %llu\nremoved    %llu\nskipped    %llu\n",
           (unsigned long long)c->unchanged, (unsigned long long)c->removed,
           (unsigned long long)m->n_skipped);
    /* The server hears from its engine now and then, of a short run perhaps too late. */
    if (tokens > 0)
        printf("tokens/s   %.0f\n", (double)tokens / (seconds > 0 ? seconds : 1));
    printf("seconds    %.2f\n", seconds);
}

static int report(struct importer *m, bool stopped, uint64_t tokens, double seconds)
{
    clear_bar(m);
    if (!m->set.quiet && !m->set.dry_run && m->store)
        print_table(m, tokens, seconds);
    fflush(stdout);
    if (m->skipped.len > 0)
        fprintf(stderr, "kith-import: skipped:\n%.*s", (int)m->skipped.len, m->skipped.data);
    if (m->e.code) {
        fprintf(stderr, "kith-import: %s\n", m->e.message);
        return EXIT_FAILED;
    }
    if (stopped) {
        fprintf(stderr, "kith-import: interrupted; what is stored stays, and the same command "
                        "goes on from there\n");
        return EXIT_INTERRUPTED;
    }
    return m->n_skipped ? EXIT_SKIPPED : EXIT_DONE;
}

static int run(struct importer *m)
{
    bool needs_server =
        !m->set.dry_run || (m->set.chunk.n_tokens == 0 && m->set.chunk.mode != CHUNK_NONE);
    uint64_t before = 0, after = 0;
    bool stopped = false;
    m->start_us = clock_mono_us();
    if (needs_server && import_store_open(&m->store, &m->set.store, &m->e) != 0)
        return report(m, interrupted, 0, 0);
    if (size_chunks(m) == 0) {
        if (m->store)
            before = import_store_tokens(m->store);
        m->start_us = clock_mono_us();
        read_all(m);
        stopped = interrupted && !m->e.code;
        if (m->store)
            after = import_store_tokens(m->store);
    }
    double seconds = (double)(clock_mono_us() - m->start_us) / 1e6;
    return report(m, stopped, after > before ? after - before : 0, seconds);
}

static void free_seen(void *arg, struct dict_node *n)
{
    (void)arg;
    mem_free(n);
}

/* dict_each reads a node's successor before it calls. */
static void importer_deinit(struct importer *m)
{
    import_store_free(m->store);
    dict_each(&m->seen, free_seen, NULL);
    dict_deinit(&m->seen);
    for (size_t i = 0; i < m->inputs.n; i++)
        mem_free(m->inputs.list[i].path);
    mem_free(m->inputs.list);
    mem_free(m->chunks);
    mem_free((void *)m->set.attribute_names);
    buf_deinit(&m->skipped);
}

/* --- options --- */

enum option_code {
    OPT_HOST = 256,
    OPT_PORT,
    OPT_SOCKET,
    OPT_USER,
    OPT_PASSWORD,
    OPT_FORMAT,
    OPT_ID,
    OPT_TEXT,
    OPT_ATTRIBUTES,
    OPT_ON_ERROR,
    OPT_CHUNK,
    OPT_CHUNK_TOKENS,
    OPT_OVERLAP,
    OPT_BATCH,
    OPT_CONNECTIONS,
    OPT_DRY_RUN,
    OPT_EMBED_ONLY,
    OPT_QUIET,
    OPT_MODEL
};

static const struct option options[] = {{"host", 1, NULL, OPT_HOST},
                                        {"port", 1, NULL, OPT_PORT},
                                        {"socket", 1, NULL, OPT_SOCKET},
                                        {"user", 1, NULL, OPT_USER},
                                        {"password", 1, NULL, OPT_PASSWORD},
                                        {"format", 1, NULL, OPT_FORMAT},
                                        {"id", 1, NULL, OPT_ID},
                                        {"text", 1, NULL, OPT_TEXT},
                                        {"attributes", 1, NULL, OPT_ATTRIBUTES},
                                        {"on-error", 1, NULL, OPT_ON_ERROR},
                                        {"chunk", 1, NULL, OPT_CHUNK},
                                        {"chunk-tokens", 1, NULL, OPT_CHUNK_TOKENS},
                                        {"overlap", 1, NULL, OPT_OVERLAP},
                                        {"batch", 1, NULL, OPT_BATCH},
                                        {"connections", 1, NULL, OPT_CONNECTIONS},
                                        {"dry-run", 0, NULL, OPT_DRY_RUN},
                                        {"embed-only", 0, NULL, OPT_EMBED_ONLY},
                                        {"quiet", 0, NULL, OPT_QUIET},
                                        {"model", 1, NULL, OPT_MODEL},
                                        {0}};

static bool number_option(const char *name, const char *s, long low, long high, long *out)
{
    char *end;
    errno = 0;
    *out = strtol(s, &end, 10);
    if (errno == 0 && end != s && *end == '\0' && *out >= low && *out <= high)
        return true;
    fprintf(stderr, "kith-import: --%s takes %ld to %ld, not '%s'\n", name, low, high, s);
    return false;
}

/* The place of the word among words, which end with NULL. */
static bool word_option(const char *name, const char *s, const char *const *words, int *out)
{
    for (int i = 0; words[i]; i++)
        if (strcmp(s, words[i]) == 0) {
            *out = i;
            return true;
        }
    fprintf(stderr, "kith-import: --%s takes", name);
    for (int i = 0; words[i]; i++)
        fprintf(stderr, "%s %s", i == 0 ? "" : words[i + 1] ? "," : " or", words[i]);
    fprintf(stderr, ", not '%s'\n", s);
    return false;
}

/* Cuts the list at its commas, in place. */
static bool attributes_option(struct settings *s, char *list)
{
    s->fields.all = strcmp(list, "all") == 0;
    s->fields.n = 0;
    if (s->fields.all || strcmp(list, "none") == 0)
        return true;
    mem_free((void *)s->attribute_names);
    s->attribute_names = mem_alloc_n(strlen(list) + 1, sizeof *s->attribute_names);
    if (!s->attribute_names)
        return false;
    for (char *rest = list, *name; (name = strsep(&rest, ","));)
        if (name[0])
            s->attribute_names[s->fields.n++] = name;
    s->fields.names = s->attribute_names;
    return true;
}

static bool number_into(struct settings *s, int option, const char *value)
{
    long v = 0;
    bool ok = true;
    if (option == OPT_PORT && (ok = number_option("port", value, 1, 65535, &v)))
        s->store.address.port = (int)v;
    if (option == OPT_CHUNK_TOKENS &&
        (ok = number_option("chunk-tokens", value, 1, 1 << 20, &v)))
        s->chunk.n_tokens = (size_t)v;
    if (option == OPT_OVERLAP && (ok = number_option("overlap", value, 0, 1 << 19, &v)))
        s->chunk.overlap = (size_t)v;
    if (option == OPT_BATCH && (ok = number_option("batch", value, 1, 10000, &v)))
        s->store.n_batch = (unsigned)v;
    if (option == OPT_CONNECTIONS && (ok = number_option("connections", value, 1, 256, &v)))
        s->store.n_connections = (unsigned)v;
    return ok;
}

static bool take_option(struct settings *s, int option, char *value)
{
    static const char *const formats[] = {"auto", "jsonl", "csv", "text", NULL};
    static const char *const modes[] = {"tokens", "sentences", "headings", "none", NULL};
    static const char *const actions[] = {"stop", "skip", NULL};
    int word = 0;
    bool ok = true;
    switch (option) {
    case OPT_HOST:
        s->store.address.host = value;
        break;
    case OPT_SOCKET:
        s->store.address.unix_path = value;
        break;
    case OPT_USER:
        s->store.address.user = value;
        break;
    case OPT_PASSWORD:
        s->store.address.password = value;
        break;
    case OPT_MODEL:
        s->store.model = value;
        break;
    case OPT_ID:
        s->fields.id = value;
        break;
    case OPT_TEXT:
        s->fields.text = value;
        break;
    case OPT_DRY_RUN:
        s->dry_run = true;
        break;
    case OPT_EMBED_ONLY:
        s->store.embed_only = true;
        break;
    case OPT_QUIET:
        s->quiet = true;
        break;
    case OPT_ATTRIBUTES:
        return attributes_option(s, value);
    case OPT_FORMAT:
        ok = word_option("format", value, formats, &word);
        s->format = (enum format)word;
        break;
    case OPT_CHUNK:
        ok = word_option("chunk", value, modes, &word);
        s->chunk.mode = (enum chunk_mode)word;
        break;
    case OPT_ON_ERROR:
        ok = word_option("on-error", value, actions, &word);
        s->skip = word == 1;
        break;
    case OPT_PORT:
    case OPT_CHUNK_TOKENS:
    case OPT_OVERLAP:
    case OPT_BATCH:
    case OPT_CONNECTIONS:
        return number_into(s, option, value);
    default:
        return false; /* getopt_long said why */
    }
    return ok;
}

static bool parse(struct importer *m, int argc, char **argv)
{
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (!take_option(&m->set, option, optarg))
            return false;
    if (argc - optind < 2) {
        fputs(help, stderr);
        return false;
    }
    m->set.store.key = argv[optind++];
    m->set.store.split = m->set.chunk.mode != CHUNK_NONE;
    return true;
}

int main(int argc, char **argv)
{
    if (program_answers(argc, argv, "kith-import", help))
        return EXIT_DONE;
    struct importer m = {.set = {.store = {.address = {.host = "127.0.0.1",
                                                       .port = 6379,
                                                       .password = getenv("KITH_PASSWORD")},
                                           .n_batch = 64,
                                           .n_connections = 4,
                                           .wait_ms = WAIT_MS,
                                           .bad = on_refused,
                                           .progress = draw,
                                           .arg = &m,
                                           .stop = &interrupted},
                                 .fields.all = true,
                                 .chunk.mode = CHUNK_SENTENCES}};
    dict_init(&m.seen);
    buf_init(&m.skipped);
    int status = EXIT_USAGE;
    if (parse(&m, argc, argv)) {
        struct sigaction on = {.sa_handler = on_signal,
                               .sa_flags = SA_RESTART | (int)SA_RESETHAND};
        sigaction(SIGINT, &on, NULL);
        sigaction(SIGTERM, &on, NULL);
        signal(SIGPIPE, SIG_IGN);
        m.bar = !m.set.quiet && !m.set.dry_run && isatty(2);
        int rc = 0;
        while (rc == 0 && optind < argc)
            rc = add_path(&m, argv[optind++], true);
        status = rc ? report(&m, false, 0, 0) : run(&m);
    }
    importer_deinit(&m);
    return status;
}
