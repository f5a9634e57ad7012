/* How a request is read.
 *
 * hiredis' reader holds the buffer and walks the arrays. Its object functions are ours: they
 * build no reply tree but put each argument straight into the arena of the request, so that a
 * steady stream of commands allocates nothing.
 *
 *   fed bytes ──► hiredis' buffer ──┬─ first byte '*' ──► its walk ──► create_array,
 * create_string (buf, pos, len)   └─ any other ──────► inline_next ─► split into words
 *
 * The reader was made for replies, from a server one trusts. Three things are added for
 * requests from strangers:
 *
 * - It accepts counts up to INT_MAX, lengths up to SIZE_MAX, nested arrays, integers, null and
 *   status lines. create_* refuse them by returning NULL, which stops the walk.
 * - It calls create_string when the whole bulk has arrived. An announced length must be refused
 *   before that, so after each walk that ended for want of bytes check_header looks at the one
 * line the walk stands at. Everything before it has been through create_*; so each header is
 * checked once a feed, and a long argument that comes in many pieces costs no second look at
 * its bytes.
 * - It frees its buffer on an error. The text for the client is therefore chosen by our
 * functions before they return NULL, or from the reader's own message where the walk itself
 * refused.
 *
 * The reader moves the rest of its buffer to the front whenever a request ends 1 KiB or more
 * into it. The caller feeds at most some tens of KiB at a time, which keeps those moves inside
 * the first cache level. */

#include "protocol/resp_read.h"

#include <ctype.h>
#include <limits.h>
#include <string.h>

#include <hiredis/read.h>
#include <hiredis/sds.h>

enum {
    HEADER_MAX = 64,           /* of a line that holds one number; 22 would do */
    ARGV_FIRST = 16,           /* slots before the arguments have shown that they exist */
    COMPACT_BYTES = 1024,      /* of parsed inline commands before the rest is moved */
    BUFFER_KEEP_BYTES = 65536, /* of an empty buffer; above it the memory goes back */
    FEED_LIMIT = INT_MAX - 65536
};

struct resp_reader {
    redisReader *hiredis;
    const struct resp_limits *limits; /* during resp_reader_next */
    struct resp_request *request;     /* during resp_reader_next */
    int expected;                     /* arguments of the array under way, 0 outside of one */
    size_t wanted;
    struct err why; /* set by the functions that refuse */
};

void resp_request_init(struct resp_request *q)
{
    memset(q, 0, sizeof *q);
    arena_init(&q->arena);
}

void resp_request_reset(struct resp_request *q)
{
    arena_reset(&q->arena);
    q->argv = NULL;
    q->argc = 0;
    q->argv_cap = 0;
    q->bytes = 0;
}

void resp_request_deinit(struct resp_request *q)
{
    arena_deinit(&q->arena);
    memset(q, 0, sizeof *q);
}

/* Makes room for one argument more. The array doubles as arguments come: what a client only
 * announces takes no memory. */
static bool grow_argv(struct resp_request *q, int announced)
{
    if (q->argc < q->argv_cap)
        return true;
    int cap = q->argv_cap ? q->argv_cap * 2 : ARGV_FIRST;
    if (cap > announced)
        cap = announced;
    struct slice *argv = arena_alloc(&q->arena, (size_t)cap * sizeof *argv);
    if (!argv)
        return false;
    if (q->argc)
        memcpy(argv, q->argv, (size_t)q->argc * sizeof *argv);
    q->argv = argv;
    q->argv_cap = cap;
    return true;
}

static void *refuse(struct resp_reader *r, int code, const char *what)
{
    err_set(&r->why, code, "Protocol error: %s", what);
    return NULL;
}

static void *refuse_type(struct resp_reader *r, char byte)
{
    err_set(&r->why, KITH_EPROTO, "Protocol error: expected '$', got '%c'", byte);
    return NULL;
}

static void *refuse_memory(struct resp_reader *r)
{
    err_set(&r->why, KITH_ENOMEM, "out of memory while reading a request");
    return NULL;
}

/* Whether an argument of n bytes may follow; else the refusal is noted. */
static bool bulk_allowed(struct resp_reader *r, size_t n)
{
    const struct resp_limits *l = r->limits;
    if (!l->authenticated && n > RESP_BULK_MAX_UNAUTHENTICATED)
        return refuse(r, KITH_ELIMIT, "unauthenticated bulk length");
    if (n > l->max_bulk_bytes || n > RESP_BULK_MAX)
        return refuse(r, KITH_ELIMIT, "invalid bulk length");
    if (n > l->max_request_bytes || r->request->bytes > l->max_request_bytes - n)
        return refuse(r, KITH_ELIMIT, "request is larger than client-query-buffer-limit");
    return true;
}

static char byte_of_type(int type)
{
    switch (type) {
    case REDIS_REPLY_ARRAY:
        return '*';
    case REDIS_REPLY_INTEGER:
        return ':';
    case REDIS_REPLY_STATUS:
        return '+';
    default:
        return '-';
    }
}

static void *create_array(const redisReadTask *task, int n)
{
    struct resp_reader *r = task->privdata;
    if (task->parent)
        return refuse_type(r, '*');
    if (n > RESP_ARGS_MAX)
        return refuse(r, KITH_ELIMIT, "invalid multibulk length");
    if (n > RESP_ARGS_MAX_UNAUTHENTICATED && !r->limits->authenticated)
        return refuse(r, KITH_ELIMIT, "unauthenticated multibulk length");
    r->expected = n;
    return r;
}

static void *create_string(const redisReadTask *task, char *p, size_t n)
{
    struct resp_reader *r = task->privdata;
    struct resp_request *q = r->request;
    if (task->type != REDIS_REPLY_STRING)
        return refuse_type(r, byte_of_type(task->type));
    if (!bulk_allowed(r, n))
        return NULL;
    if (!grow_argv(q, r->expected))
        return refuse_memory(r);
    const char *copy = arena_dup(&q->arena, p, n);
    if (!copy)
        return refuse_memory(r);
    q->argv[q->argc++] = (struct slice){.p = copy, .n = n};
    q->bytes += n;
    return r;
}

static void *create_integer(const redisReadTask *task, long long v)
{
    (void)v;
    return refuse_type(task->privdata, ':');
}

static void *create_nil(const redisReadTask *task)
{
    if (task->type == REDIS_REPLY_STRING)
        return refuse(task->privdata, KITH_EPROTO, "invalid bulk length");
    return refuse_type(task->privdata, '*');
}

static void free_nothing(void *object)
{
    (void)object; /* what was created is the request's */
}

static redisReplyObjectFunctions object_functions = {.createString = create_string,
                                                     .createArray = create_array,
                                                     .createInteger = create_integer,
                                                     .createNil = create_nil,
                                                     .freeObject = free_nothing};

struct resp_reader *resp_reader_new(void)
{
    struct resp_reader *r = mem_calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->hiredis = redisReaderCreateWithFunctions(&object_functions);
    if (!r->hiredis) {
        mem_free(r);
        return NULL;
    }
    r->hiredis->privdata = r;
    r->hiredis->maxbuf = BUFFER_KEEP_BYTES;
    return r;
}

void resp_reader_free(struct resp_reader *r)
{
    if (!r)
        return;
    redisReaderFree(r->hiredis);
    mem_free(r);
}

/* hiredis' strings grow by 1 MiB at a time, which copies a long argument over and over where
 * the allocator cannot move pages. So the room doubles here: never more than has come already.
 */
static void make_room(struct resp_reader *r, size_t n)
{
    redisReader *h = r->hiredis;
    if (h->len < SDS_MAX_PREALLOC || sdsavail(h->buf) >= n)
        return;
    size_t more = r->wanted < h->len ? r->wanted : h->len;
    sds larger = sdsMakeRoomFor(h->buf, more > n ? more : n);
    if (larger)
        h->buf = larger;
}

int resp_reader_feed(struct resp_reader *r, const void *p, size_t n)
{
    if (n > FEED_LIMIT || r->hiredis->len > FEED_LIMIT - n)
        return KITH_ELIMIT;
    make_room(r, n);
    return redisReaderFeed(r->hiredis, p, n) == REDIS_OK ? 0 : KITH_ENOMEM;
}

size_t resp_reader_buffered(const struct resp_reader *r)
{
    return r->hiredis->len - r->hiredis->pos;
}

size_t resp_reader_spare(const struct resp_reader *r)
{
    return r->hiredis->buf ? sdsavail(r->hiredis->buf) : 0;
}

size_t resp_reader_wanted(const struct resp_reader *r)
{
    return r->wanted;
}

/* No array has begun. The walk that only looked for a type byte leaves a task without type. */
static bool between_requests(const redisReader *h)
{
    return h->ridx < 0 || (h->ridx == 0 && h->rstack[0].type < 0);
}

bool resp_reader_idle(const struct resp_reader *r)
{
    return r->hiredis->err == 0 && between_requests(r->hiredis) &&
           r->hiredis->pos == r->hiredis->len;
}

/* Gives back what a large request made the buffer grow to. */
static void trim_buffer(redisReader *h)
{
    if (h->pos != h->len || sdslen(h->buf) + sdsavail(h->buf) <= BUFFER_KEEP_BYTES)
        return;
    sds fresh = sdsempty();
    if (!fresh)
        return;
    sdsfree(h->buf);
    h->buf = fresh;
    h->pos = 0;
    h->len = 0;
}

/* Takes n bytes as parsed, for those that the walk does not see. */
static void consume(redisReader *h, size_t n)
{
    h->pos += n;
    if (h->pos < COMPACT_BYTES || h->pos < h->len - h->pos)
        return;
    sdsrange(h->buf, (int)h->pos, -1);
    h->pos = 0;
    h->len = sdslen(h->buf);
}

/* The number of a header line, as strict as Redis: no sign but '-', no leading zero. */
static bool parse_number(const char *p, size_t n, int64_t *v)
{
    bool negative = n > 1 && p[0] == '-';
    size_t i = negative ? 1 : 0;
    if (n == 0 || n - i > 18 || (p[i] == '0' && n > 1))
        return false;
    int64_t sum = 0;
    for (; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return false;
        sum = sum * 10 + (p[i] - '0');
    }
    *v = negative ? -sum : sum;
    return true;
}

/* The length of the line at p without its CR LF, or -1 when its end is not there yet. */
static ssize_t line_length(const char *p, size_t n)
{
    for (const char *at = p; n >= 2;) {
        const char *cr = memchr(at, '\r', n - 1 - (size_t)(at - p));
        if (!cr)
            return -1;
        if (cr[1] == '\n')
            return cr - p;
        at = cr + 1;
        if ((size_t)(at - p) >= n - 1)
            return -1;
    }
    return -1;
}

/* The walk stopped for want of bytes: looks at the line it stands at. False when it is refused.
 */
static bool check_header(struct resp_reader *r)
{
    redisReader *h = r->hiredis;
    r->wanted = 0;
    if (h->ridx < 0 || h->rstack[h->ridx].type < 0)
        return true;
    const redisReadTask *task = &h->rstack[h->ridx];
    if (task->parent && task->type != REDIS_REPLY_STRING)
        return refuse_type(r, byte_of_type(task->type));
    size_t left = h->len - h->pos;
    ssize_t n = line_length(h->buf + h->pos, left);
    if (n < 0) {
        if (left <= HEADER_MAX)
            return true;
        return refuse(r, KITH_EPROTO,
                      task->parent ? "too big bulk count string"
                                   : "too big mbulk count string");
    }
    int64_t bulk;
    if (!parse_number(h->buf + h->pos, (size_t)n, &bulk) || bulk < 0)
        return refuse(r, KITH_EPROTO, "invalid bulk length");
    if (!bulk_allowed(r, (size_t)bulk))
        return false;
    r->wanted = (size_t)n + 2 + (size_t)bulk + 2 - left;
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool is_space(char c)
{
    return isspace((unsigned char)c) || c == '\0';
}

/* One escape of a double-quoted word at p (after the backslash); returns the bytes it took.
 * hiredis quotes bytes in its messages the same way. */
static size_t unescape(const char *p, const char *end, char *out)
{
    if (end - p >= 3 && *p == 'x' && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0) {
        *out = (char)(hex_digit(p[1]) * 16 + hex_digit(p[2]));
        return 3;
    }
    static const char from[] = "nrtba", to[] = "\n\r\t\b\a";
    const char *at = memchr(from, *p, sizeof from - 1);
    *out = at ? to[at - from] : *p;
    return 1;
}

/* The text for what the walk itself refused; it names the byte only in its message. */
static void translate_error(struct resp_reader *r)
{
    const char *said = r->hiredis->errstr, *quote = strchr(said, '"');
    if (r->hiredis->err == REDIS_ERR_OOM) {
        refuse_memory(r);
    } else if (!r->expected) {
        refuse(r, KITH_EPROTO, "invalid multibulk length");
    } else if (strstr(said, "integer")) {
        refuse_type(r, ':');
    } else if (strstr(said, "ulti-bulk")) {
        refuse_type(r, '*');
    } else if (strstr(said, "type byte") && quote) {
        char byte = quote[1];
        if (byte == '\\')
            unescape(quote + 2, quote + strlen(quote), &byte);
        refuse_type(r, byte);
    } else {
        refuse(r, KITH_EPROTO, "invalid bulk length");
    }
}

/* One word of an inline command, which may hold quoted parts, into out (large enough for the
 * rest of the line). Returns where it ends, or NULL when its quotes do not match. */
static const char *inline_word(const char *p, const char *end, char *out, size_t *n)
{
    char quote = 0;
    *n = 0;
    for (; p < end; p++) {
        if (!quote && is_space(*p))
            break;
        if (!quote && (*p == '"' || *p == '\'')) {
            quote = *p;
        } else if (quote && *p == quote) {
            if (p + 1 < end && !is_space(p[1]))
                return NULL;
            quote = 0;
        } else if (quote == '"' && *p == '\\' && p + 1 < end) {
            p += unescape(p + 1, end, &out[(*n)++]);
        } else if (quote == '\'' && *p == '\\' && p + 1 < end && p[1] == '\'') {
            out[(*n)++] = *++p;
        } else {
            out[(*n)++] = *p;
        }
    }
    return quote ? NULL : p;
}

/* Splits one line into the arguments of q. */
static bool inline_split(struct resp_reader *r, const char *p, size_t n)
{
    struct resp_request *q = r->request;
    const char *end = p + n;
    char *out = arena_alloc(&q->arena, n + 1);
    if (!out)
        return refuse_memory(r);
    for (;;) {
        while (p < end && is_space(*p))
            p++;
        if (p == end)
            return true;
        if (!grow_argv(q, INT_MAX))
            return refuse_memory(r);
        size_t word;
        p = inline_word(p, end, out, &word);
        if (!p)
            return refuse(r, KITH_EPROTO, "unbalanced quotes in request");
        q->argv[q->argc++] = (struct slice){.p = out, .n = word};
        q->bytes += word;
        out += word;
    }
}

static enum resp_status inline_next(struct resp_reader *r)
{
    redisReader *h = r->hiredis;
    const char *p = h->buf + h->pos;
    size_t left = h->len - h->pos;
    const char *newline = memchr(p, '\n', left);
    size_t n = newline ? (size_t)(newline - p) : left;
    if (n > RESP_INLINE_MAX) {
        refuse(r, KITH_ELIMIT, "too big inline request");
        return RESP_ERROR;
    }
    if (!newline)
        return RESP_INCOMPLETE;
    size_t line = n && p[n - 1] == '\r' ? n - 1 : n;
    bool ok = inline_split(r, p, line);
    consume(h, n + 1);
    return ok ? RESP_REQUEST : RESP_ERROR;
}

/* "*-1" and the like ask for nothing: the line is skipped. */
static enum resp_status skip_negative(struct resp_reader *r)
{
    redisReader *h = r->hiredis;
    const char *p = h->buf + h->pos + 1;
    size_t left = h->len - h->pos - 1;
    ssize_t n = line_length(p, left);
    if (n < 0 && left <= HEADER_MAX)
        return RESP_INCOMPLETE;
    int64_t count;
    if (n < 0 || !parse_number(p, (size_t)n, &count)) {
        refuse(r, KITH_EPROTO, "invalid multibulk length");
        return RESP_ERROR;
    }
    consume(h, (size_t)n + 3);
    return RESP_REQUEST; /* of no arguments */
}

static enum resp_status array_next(struct resp_reader *r)
{
    redisReader *h = r->hiredis;
    void *whole = NULL;
    if (redisReaderGetReply(h, &whole) != REDIS_OK) {
        if (r->why.code == 0)
            translate_error(r);
        return RESP_ERROR;
    }
    if (!whole)
        return check_header(r) ? RESP_INCOMPLETE : RESP_ERROR;
    r->expected = 0;
    r->wanted = 0;
    trim_buffer(h);
    return RESP_REQUEST;
}

static enum resp_status next_of_any_kind(struct resp_reader *r)
{
    redisReader *h = r->hiredis;
    if (!between_requests(h))
        return array_next(r);
    size_t left = h->len - h->pos;
    if (left == 0)
        return RESP_INCOMPLETE;
    if (h->buf[h->pos] != '*')
        return inline_next(r);
    if (left == 1)
        return RESP_INCOMPLETE;
    return h->buf[h->pos + 1] == '-' ? skip_negative(r) : array_next(r);
}

enum resp_status resp_reader_next(struct resp_reader *r, const struct resp_limits *limits,
                                  struct resp_request *q, struct err *e)
{
    r->limits = limits;
    r->request = q;
    enum resp_status status = RESP_ERROR;
    if (r->why.code == 0) {
        do
            status = next_of_any_kind(r);
        while (status == RESP_REQUEST && q->argc == 0);
    }
    if (status == RESP_ERROR)
        err_set(e, r->why.code, "%s", r->why.message);
    return status;
}
