#include "server/config_table.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/config.h"
#include "server/model_spec.h"

#define AT(member) .offset = offsetof(struct config, member)
#define INT(member, from, to) .type = SETTING_INT, AT(member), .min = (from), .max = (to)
#define BYTES(member, from, to) .type = SETTING_BYTES, AT(member), .min = (from), .max = (to)
#define STRING(member) .type = SETTING_STRING, AT(member)
#define WORD(member, list) .type = SETTING_WORD, AT(member), .words = (list)
#define FIXED(list) .type = SETTING_FIXED, .words = (list)
#define LIVE .flags = SETTING_CHANGEABLE

#define MB(n) ((n)*INT64_C(1048576))

static const char *const yes_only[] = {"yes", NULL};
static const char *const no_only[] = {"no", NULL};
static const char *const no_yes[] = {"no", "yes", NULL};
static const char *const noeviction_only[] = {"noeviction", NULL};
static const char *const fsync_words[] = {"always", "everysec", "no", NULL};
static const char *const level_words[] = {"debug",   "verbose", "notice",
                                          "warning", "error",   NULL};
static const char *const precision_words[] = {"auto", "f32", "int8", "bf16", NULL};

/* Redis' names where Redis has the setting, so that an operator's file and fingers work. */
const struct setting settings[] = {
    {.name = "bind",
     STRING(bind),
     .flags = SETTING_LIST,
     .fallback = "127.0.0.1 -::1",
     .group = "network",
     .help = "addresses to listen on; a leading - skips one this machine does not have"},
    {.name = "port",
     INT(port, 0, 65535),
     .fallback = "6379",
     .group = "network",
     .help = "TCP port; 0 listens on no TCP port"},
    {.name = "protected-mode",
     WORD(protected_mode, no_yes),
     LIVE,
     .fallback = "yes",
     .group = "network",
     .help = "without requirepass, serve only clients of this machine"},
    {.name = "tcp-backlog",
     INT(tcp_backlog, 1, 65535),
     .fallback = "511",
     .group = "network",
     .help = "connections the kernel may hold before they are accepted"},
    {.name = "tcp-keepalive",
     INT(tcp_keepalive_s, 0, 86400),
     LIVE,
     .fallback = "300",
     .group = "network",
     .help = "seconds between keep-alive probes; 0 sends none"},
    {.name = "timeout",
     INT(timeout_s, 0, INT32_MAX),
     LIVE,
     .fallback = "0",
     .group = "network",
     .help = "close a client idle for this many seconds; 0 never does"},
    {.name = "unixsocket",
     STRING(unixsocket),
     .fallback = "",
     .group = "network",
     .help = "path of a Unix socket to listen on as well"},
    {.name = "unixsocketperm",
     .type = SETTING_OCTAL,
     AT(unixsocketperm),
     .max = 0777,
     .fallback = "0",
     .group = "network",
     .help = "octal mode of the Unix socket; 0 leaves what the umask gives"},

    {.name = "maxclients",
     INT(maxclients, 1, 1000000),
     LIVE,
     .fallback = "10000",
     .group = "clients",
     .help = "connections served at once"},
    {.name = "requirepass",
     STRING(requirepass),
     LIVE,
     .fallback = "",
     .group = "clients",
     .help = "password for AUTH; empty asks for none"},
    {.name = "proto-max-bulk-len",
     BYTES(proto_max_bulk_len, MB(1), MB(1024)),
     LIVE,
     .fallback = "512mb",
     .group = "clients",
     .help = "longest single argument"},
    {.name = "client-query-buffer-limit",
     BYTES(client_query_buffer_limit, MB(1), INT64_MAX),
     LIVE,
     .fallback = "1gb",
     .group = "clients",
     .help = "longest unfinished request of one client"},
    {.name = "client-output-buffer-limit",
     .type = SETTING_OUTPUT_LIMIT,
     AT(client_output_buffer_limit),
     .flags = SETTING_CHANGEABLE | SETTING_LIST,
     .max = INT64_MAX,
     .fallback = "normal 1gb 0 0",
     .group = "clients",
     .help = "class, hard limit, 0 0: close a client that leaves more unread; 0 has no limit"},

    {.name = "daemonize",
     FIXED(no_only),
     .fallback = "no",
     .group = "process",
     .help = "kith stays in the foreground, as service managers want it"},
    {.name = "databases",
     INT(databases, 1, 16),
     .fallback = "16",
     .group = "process",
     .help = "numbered databases for SELECT"},
    {.name = "io-threads",
     INT(io_threads, 1, 64),
     .fallback = "1",
     .group = "process",
     .help = "threads that serve connections and run commands"},
    {.name = "search-threads",
     INT(search_threads, -1, 1024),
     .fallback = "-1",
     .group = "process",
     .help = "threads for searches while other clients wait; -1: one a processor, 0: none"},
    {.name = "busy-poll-us",
     INT(busy_poll_us, 0, 1000),
     .fallback = "50",
     LIVE,
     .group = "process",
     .help = "how long a thread that served looks for the next request before it sleeps"},
    {.name = "logfile",
     STRING(logfile),
     .fallback = "",
     .group = "process",
     .help = "file for the log; empty writes to standard error; SIGHUP opens it again"},
    {.name = "loglevel",
     WORD(loglevel, level_words),
     LIVE,
     .fallback = "notice",
     .group = "process",
     .help = "least important line that is logged"},
    {.name = "pidfile",
     STRING(pidfile),
     .fallback = "",
     .group = "process",
     .help = "file that holds the process id while the server runs"},
    {.name = "slowlog-log-slower-than",
     INT(slowlog_slower_than_us, -1, INT64_MAX),
     LIVE,
     .fallback = "10000",
     .group = "process",
     .help = "microseconds from which a command is in SLOWLOG; 0 logs all, -1 none"},
    {.name = "slowlog-max-len",
     INT(slowlog_max_len, 0, 1000000),
     LIVE,
     .fallback = "128",
     .group = "process",
     .help = "commands SLOWLOG keeps"},

    {.name = "dir",
     STRING(dir),
     .fallback = ".",
     .group = "data",
     .help = "directory of the data; one server at a time"},
    {.name = "appendonly",
     FIXED(yes_only),
     .fallback = "yes",
     .group = "data",
     .help = "every change goes through the log; there is no mode without"},
    {.name = "appendfsync",
     WORD(appendfsync, fsync_words),
     LIVE,
     .fallback = "always",
     .group = "data",
     .help = "always: replies wait for the disk; everysec and no: the last second, or more, "
             "may be lost in a power cut"},
    {.name = "save",
     FIXED(NULL),
     .flags = SETTING_LIST,
     .fallback = "",
     .group = "data",
     .help = "accepted and not used: checkpoints follow checkpoint-interval"},
    {.name = "checkpoint-interval",
     INT(checkpoint_interval_s, 1, 31536000),
     LIVE,
     .fallback = "300",
     .group = "data",
     .help = "seconds between checkpoints"},
    {.name = "checkpoint-log-bytes",
     BYTES(checkpoint_log_bytes, MB(1), INT64_MAX),
     LIVE,
     .fallback = "64mb",
     .group = "data",
     .help = "log written since the last checkpoint that starts one"},
    {.name = "log-segment-bytes",
     BYTES(log_segment_bytes, MB(1), MB(1024)),
     .fallback = "64mb",
     .group = "data",
     .help = "size of a file of the log; its room on the disk is taken when it is made"},
    {.name = "checkpoint-dirty-limit",
     BYTES(checkpoint_dirty_limit, MB(8), MB(384)),
     LIVE,
     .fallback = "256mb",
     .group = "data",
     .help = "changed memory at which a checkpoint starts and writers slow down"},
    {.name = "maxmemory",
     BYTES(maxmemory, 0, INT64_MAX),
     LIVE,
     .fallback = "0",
     .group = "data",
     .help = "memory past which writes are refused; 0 has no limit"},
    {.name = "maxmemory-policy",
     FIXED(noeviction_only),
     .fallback = "noeviction",
     .group = "data",
     .help = "kith never drops data to make room"},

    {.name = "link-threads",
     INT(link_threads, 0, 64),
     .fallback = "0",
     .group = "index",
     .help = "threads that link new vectors into graphs; 0: one for every two processors"},
    {.name = "recall-sample-cost",
     INT(recall_sample_cost, 0, 50),
     LIVE,
     .fallback = "1",
     .group = "index",
     .help = "percent of one core spent on measuring the recall of searches; 0 turns it off"},
    {.name = "vset-force-single-threaded-execution",
     WORD(vset_force_single_threaded, no_yes),
     LIVE,
     .fallback = "no",
     .group = "index",
     .help = "searches stay on the thread that serves the connection"},
    {.name = "vset-tail-max",
     INT(vset_tail_max, 16, 1000000),
     LIVE,
     .fallback = "4096",
     .group = "index",
     .help = "vectors of one set waiting to be linked before its writers wait"},

    {.name = "embedder",
     STRING(embedder),
     .fallback = "",
     .group = "engine",
     .help = "GGUF model that turns text into vectors, loaded as the model `default`"},
    {.name = "model",
     .type = SETTING_MODELS,
     AT(models),
     .flags = SETTING_LIST,
     .fallback = "",
     .group = "engine",
     .help =
         "another model: NAME PATH [DEFAULT] [THREADS n] [PRECISION p]; each line adds one"},
    {.name = "engine-memory-limit",
     BYTES(engine_memory_limit, 0, INT64_MAX),
     LIVE,
     .fallback = "0",
     .group = "engine",
     .help =
         "memory of all models together: past it the least recently used are put away until "
         "they are asked again; 0: half of the machine's"},
    {.name = "engine-path",
     STRING(engine_path),
     .fallback = "",
     .group = "engine",
     .help = "the kith-engine program; empty takes the one beside kith-server"},
    {.name = "engine-threads",
     INT(engine_threads, 0, 1024),
     .fallback = "0",
     .group = "engine",
     .help = "compute threads of the engine; 0: one a processor"},
    {.name = "engine-precision",
     STRING(engine_precision),
     .words = precision_words,
     .fallback = "auto",
     .group = "engine",
     .help = "how matrices are multiplied; auto: int8 where the weights are quantized, bf16 "
             "where they are BF16 and the processor has AVX512_BF16"},
    {.name = "engine-packed-cache",
     WORD(engine_packed_cache, no_yes),
     .fallback = "yes",
     .group = "engine",
     .help = "keep a model's packed weights in a file beside it, which later starts map"},
    {.name = "engine-batch-tokens",
     INT(engine_batch_tokens, 512, 1048576),
     .fallback = "2048",
     .group = "engine",
     .help = "tokens computed together at most"},
    {.name = "engine-batch-wait-us",
     INT(engine_batch_wait_us, 0, 1000000),
     .fallback = "300",
     .group = "engine",
     .help = "longest wait of a text for company, after a batch that was shared"},
    {.name = "engine-queue-tokens",
     INT(engine_queue_tokens, 1024, INT32_MAX),
     .fallback = "1048576",
     .group = "engine",
     .help = "tokens waiting at most; past it clients get a BUSY error"},
    {.name = "engine-timeout-ms",
     INT(engine_timeout_ms, 100, 3600000),
     LIVE,
     .fallback = "5000",
     .group = "engine",
     .help = "an engine silent for this long is killed and started again"},
    {.name = NULL},
};

int settings_count(void)
{
    return (int)(sizeof settings / sizeof *settings) - 1;
}

const struct setting *setting_find(struct slice name)
{
    for (const struct setting *s = settings; s->name; s++)
        if (slice_is(name, s->name))
            return s;
    return NULL;
}

/* Levenshtein distance of at most 63 characters. */
static unsigned edit_distance(const char *a, struct slice b)
{
    unsigned row[64];
    if (b.n >= 64)
        return 64;
    for (unsigned j = 0; j <= b.n; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= b.n; j++) {
            unsigned above = row[j], best = diagonal + (a[i - 1] != b.p[j - 1]);
            if (above + 1 < best)
                best = above + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = above;
            row[j] = best;
        }
    }
    return row[b.n];
}

const char *setting_nearest(struct slice name)
{
    const char *best = NULL;
    unsigned least = (unsigned)(name.n / 3) + 2;
    for (const struct setting *s = settings; s->name; s++) {
        unsigned d = edit_distance(s->name, name);
        if (d < least) {
            least = d;
            best = s->name;
        }
    }
    return best;
}

/* --- parsing --- */

static bool parse_number(struct slice text, int base, int64_t *v, struct slice *rest)
{
    char copy[32], *end;
    if (text.n == 0 || text.n >= sizeof copy)
        return false;
    memcpy(copy, text.p, text.n);
    copy[text.n] = '\0';
    if (copy[0] != '-' && (copy[0] < '0' || copy[0] > '9'))
        return false;
    errno = 0;
    long long parsed = strtoll(copy, &end, base);
    if (end == copy || errno != 0)
        return false;
    *v = parsed;
    size_t used = (size_t)(end - copy);
    *rest = (struct slice){.p = text.p + used, .n = text.n - used};
    return true;
}

static int parse_bytes(struct slice text, int64_t *v, struct err *e)
{
    static const struct {
        const char *unit;
        int64_t bytes;
    } units[] = {{"", 1},           {"b", 1},
                 {"k", 1000},       {"kb", 1024},
                 {"m", 1000000},    {"mb", 1024 * 1024},
                 {"g", 1000000000}, {"gb", 1024 * 1024 * 1024}};
    struct slice rest;
    if (parse_number(text, 10, v, &rest) && *v >= 0)
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (slice_is(rest, units[i].unit) && !__builtin_mul_overflow(*v, units[i].bytes, v))
                return 0;
    return err_set(e, KITH_EINVAL,
                   "argument must be a memory value, such as 1048576, 100mb or 2gb");
}

static int check_range(const struct setting *s, int64_t v, struct err *e)
{
    if (v >= s->min && v <= s->max)
        return 0;
    if (s->max == INT64_MAX)
        return err_set(e, KITH_EINVAL, "argument must be at least %" PRId64, s->min);
    return err_set(e, KITH_EINVAL,
                   s->type == SETTING_OCTAL
                       ? "argument must be between %" PRIo64 " and %" PRIo64 " inclusive"
                       : "argument must be between %" PRId64 " and %" PRId64 " inclusive",
                   s->min, s->max);
}

static int word_index(const struct setting *s, struct slice text)
{
    for (int i = 0; s->words[i]; i++)
        if (slice_is(text, s->words[i]))
            return i;
    return -1;
}

static int refuse_word(const struct setting *s, struct err *e)
{
    char list[128] = "";
    size_t n = 0;
    for (int i = 0; s->words[i] && n < sizeof list; i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", s->words[i]);
    if (s->type == SETTING_FIXED)
        return err_set(e, KITH_EINVAL, "argument must be %s: %s", list, s->help);
    return err_set(e, KITH_EINVAL, "argument(s) must be one of the following: %s", list);
}

static int parse_text(const struct setting *s, const struct slice *words, int n,
                      struct setting_value *out, struct err *e)
{
    struct buf joined;
    buf_init(&joined);
    for (int i = 0; i < n; i++) {
        if (memchr(words[i].p, '\0', words[i].n) != NULL) {
            buf_deinit(&joined);
            return err_set(e, KITH_EINVAL, "argument must not contain a zero byte");
        }
        if (i > 0)
            buf_u8(&joined, ' ');
        buf_append(&joined, words[i].p, words[i].n);
    }
    buf_u8(&joined, '\0');
    if (joined.failed) {
        buf_deinit(&joined);
        return err_set(e, KITH_ENOMEM, "out of memory");
    }
    if (s->words && word_index(s, slice_of(joined.data)) < 0) {
        buf_deinit(&joined);
        return refuse_word(s, e);
    }
    out->text = joined.data;
    return 0;
}

/* Redis' four words a class; several classes may stand in one value, as CONFIG GET there prints
 * them. The classes that kith has no clients of are understood and left alone. */
static int parse_output_limit(const struct setting *s, const struct slice *words, int n,
                              struct setting_value *out, struct err *e)
{
    if (n == 1) /* CONFIG SET gives everything as one argument */
        return parse_bytes(words[0], &out->number, e);
    if (n % 4 != 0)
        return err_set(e, KITH_EINVAL,
                       "argument must be `normal HARD 0 0`, such as normal 256mb 0 0");
    out->nothing = true;
    for (int i = 0; i < n; i += 4) {
        int64_t hard, soft, seconds;
        struct slice rest;
        if (!slice_is(words[i], "normal") && !slice_is(words[i], "replica") &&
            !slice_is(words[i], "slave") && !slice_is(words[i], "pubsub"))
            return err_set(e, KITH_EINVAL, "the class must be normal, replica or pubsub");
        int rc = parse_bytes(words[i + 1], &hard, e);
        if (rc == 0)
            rc = parse_bytes(words[i + 2], &soft, e);
        if (rc != 0)
            return rc;
        if (!parse_number(words[i + 3], 10, &seconds, &rest) || rest.n != 0 || seconds < 0)
            return err_set(e, KITH_EINVAL, "the fourth word must be seconds");
        if (!slice_is(words[i], "normal"))
            continue;
        if (soft != 0 || seconds != 0)
            return err_set(e, KITH_EINVAL,
                           "class normal has a hard limit only; write `normal HARD 0 0`");
        out->number = hard;
        out->nothing = false;
    }
    return check_range(s, out->number, e);
}

/* One model, in the form it is written in; nothing at all is none. */
static int parse_model(const struct slice *words, int n, struct setting_value *out,
                       struct err *e)
{
    struct model_spec spec;
    struct buf text;
    buf_init(&text);
    int rc = n == 1 && words[0].n == 0 ? 0 : model_spec_read(&spec, words, n, e);
    if (rc == 0 && words[0].n > 0)
        model_spec_write(&spec, &text);
    buf_u8(&text, '\0');
    if (rc == 0 && text.failed)
        rc = err_set(e, KITH_ENOMEM, "out of memory");
    if (rc == 0)
        out->text = text.data;
    else
        buf_deinit(&text);
    return rc;
}

int setting_parse(const struct setting *s, const struct slice *words, int n,
                  struct setting_value *out, struct err *e)
{
    *out = (struct setting_value){0};
    if (n == 0 || (n > 1 && !(s->flags & SETTING_LIST)))
        return err_set(e, KITH_EINVAL, "%s takes one value, not %d", s->name, n);
    struct slice rest;
    int rc = 0;
    switch (s->type) {
    case SETTING_INT:
    case SETTING_OCTAL:
        if (!parse_number(words[0], s->type == SETTING_OCTAL ? 8 : 10, &out->number, &rest) ||
            rest.n != 0)
            return err_set(e, KITH_EINVAL, "argument couldn't be parsed into an integer");
        return check_range(s, out->number, e);
    case SETTING_BYTES:
        rc = parse_bytes(words[0], &out->number, e);
        return rc ? rc : check_range(s, out->number, e);
    case SETTING_OUTPUT_LIMIT:
        return parse_output_limit(s, words, n, out, e);
    case SETTING_WORD:
        out->number = word_index(s, words[0]);
        return out->number < 0 ? refuse_word(s, e) : 0;
    case SETTING_STRING:
        return parse_text(s, words, n, out, e);
    case SETTING_MODELS:
        return parse_model(words, n, out, e);
    case SETTING_FIXED:
        out->nothing = true;
        return s->words && word_index(s, words[0]) < 0 ? refuse_word(s, e) : 0;
    }
    return err_set(e, KITH_EINVAL, "no such type");
}

void setting_value_deinit(struct setting_value *v)
{
    mem_free(v->text);
    v->text = NULL;
}

/* --- the current value ---------------------------------------------------------------------
 */

static _Atomic int64_t *number_at(struct config *c, const struct setting *s)
{
    return (_Atomic int64_t *)(void *)((char *)c + s->offset);
}

static _Atomic int *word_at(struct config *c, const struct setting *s)
{
    return (_Atomic int *)(void *)((char *)c + s->offset);
}

static char **text_at(struct config *c, const struct setting *s)
{
    return (char **)(void *)((char *)c + s->offset);
}

/* Adds the line to those there are; a value without text takes all of them away. Out of memory:
 * they are as they were, and the model is not there, which the start says. */
static void add_line(char **text, struct setting_value *v)
{
    if (v->text && *text && **text) {
        size_t n = strlen(*text) + strlen(v->text) + 2;
        char *joined = mem_alloc(n);
        if (!joined)
            return;
        snprintf(joined, n, "%s\n%s", *text, v->text);
        mem_free(v->text);
        v->text = joined;
    }
    mem_free(*text);
    *text = v->text;
    v->text = NULL;
}

static bool has_line(const char *text, struct slice line)
{
    for (const char *p = text; *p;) {
        struct slice one = {.p = p, .n = strcspn(p, "\n")};
        if (slice_equal(one, line))
            return true;
        p += one.n + (p[one.n] != '\0');
    }
    return line.n == 0 && *text == '\0';
}

void setting_apply(struct config *c, const struct setting *s, struct setting_value *v)
{
    if (v->nothing)
        return;
    switch (s->type) {
    case SETTING_INT:
    case SETTING_BYTES:
    case SETTING_OCTAL:
    case SETTING_OUTPUT_LIMIT:
        atomic_store(number_at(c, s), v->number);
        break;
    case SETTING_WORD:
        atomic_store(word_at(c, s), (int)v->number);
        break;
    case SETTING_STRING:
        mem_free(*text_at(c, s));
        *text_at(c, s) = v->text;
        v->text = NULL;
        break;
    case SETTING_MODELS:
        add_line(text_at(c, s), v);
        break;
    case SETTING_FIXED:
        break;
    }
}

void setting_print(struct config *c, const struct setting *s, struct buf *out)
{
    switch (s->type) {
    case SETTING_INT:
    case SETTING_BYTES:
        buf_printf(out, "%" PRId64, atomic_load(number_at(c, s)));
        break;
    case SETTING_OCTAL:
        buf_printf(out, "%" PRIo64, (uint64_t)atomic_load(number_at(c, s)));
        break;
    case SETTING_OUTPUT_LIMIT:
        buf_printf(out, "normal %" PRId64 " 0 0", atomic_load(number_at(c, s)));
        break;
    case SETTING_WORD:
        buf_append_str(out, s->words[atomic_load(word_at(c, s))]);
        break;
    case SETTING_STRING:
    case SETTING_MODELS:
        buf_append_str(out, *text_at(c, s));
        break;
    case SETTING_FIXED:
        buf_append_str(out, s->fallback);
        break;
    }
}

bool setting_is(struct config *c, const struct setting *s, const struct setting_value *v)
{
    if (v->nothing)
        return true;
    switch (s->type) {
    case SETTING_INT:
    case SETTING_BYTES:
    case SETTING_OCTAL:
    case SETTING_OUTPUT_LIMIT:
        return atomic_load(number_at(c, s)) == v->number;
    case SETTING_WORD:
        return atomic_load(word_at(c, s)) == (int)v->number;
    case SETTING_STRING:
        return strcmp(*text_at(c, s), v->text) == 0;
    case SETTING_MODELS:
        return has_line(*text_at(c, s), slice_of(v->text));
    case SETTING_FIXED:
        break;
    }
    return true;
}
