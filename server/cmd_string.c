/* Commands on strings. */
#include <inttypes.h>
#include <stdio.h>

#include "server/data.h"

enum { STRING_MAX_BYTES = 512 * 1024 * 1024 };

static void reply_string(struct client *c, const struct key *k)
{
    if (k)
        resp_bulk(c->out, k->string->data, k->string->n);
    else
        resp_null(c->out);
}

static bool too_long(struct client *c, size_t n)
{
    if (n <= STRING_MAX_BYTES)
        return false;
    resp_error(c->out, "ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    return true;
}

/* --- SET --- */

enum { SET_NX = 1, SET_XX = 2, SET_GET = 4, SET_KEEPTTL = 8, SET_EXPIRE = 16 };

struct set_options {
    unsigned flags;
    int64_t expire_ms;
};

/* The absolute time of EX, PX, EXAT or PXAT; false (and an error replied) when it is no such.
 */
static bool parse_expire(struct client *c, struct slice unit, struct slice value, int64_t *ms)
{
    int64_t v;
    if (!arg_int(value, &v)) {
        reply_not_integer(c);
        return false;
    }
    bool seconds = slice_is(unit, "EX") || slice_is(unit, "EXAT");
    bool relative = slice_is(unit, "EX") || slice_is(unit, "PX");
    if (v <= 0 || (seconds && __builtin_mul_overflow(v, 1000, &v)) ||
        (relative && __builtin_add_overflow(v, data_now_ms(c), &v))) {
        resp_errorf(c->out, "ERR invalid expire time in '%s' command", c->command->name);
        return false;
    }
    *ms = v;
    return true;
}

static const char *expire_unit(struct slice word)
{
    static const char *const units[] = {"EX", "PX", "EXAT", "PXAT"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (slice_is(word, units[i]))
            return units[i];
    return NULL;
}

static bool parse_set_options(struct client *c, struct set_options *o)
{
    int time_at = 0; /* its value is looked at last, as Redis does */
    const char *time_unit = NULL;
    *o = (struct set_options){0};
    for (int i = 3; i < c->argc; i++) {
        struct slice a = c->argv[i];
        bool more = i + 1 < c->argc;
        bool keep = o->flags & SET_KEEPTTL; /* a word said twice is no conflict */
        const char *unit = expire_unit(a);
        if (slice_is(a, "NX") && !(o->flags & SET_XX)) {
            o->flags |= SET_NX;
        } else if (slice_is(a, "XX") && !(o->flags & SET_NX)) {
            o->flags |= SET_XX;
        } else if (slice_is(a, "GET")) {
            o->flags |= SET_GET;
        } else if (slice_is(a, "KEEPTTL") && !time_at) {
            o->flags |= SET_KEEPTTL;
        } else if (unit && more && !keep && (!time_unit || time_unit == unit)) {
            o->flags |= SET_EXPIRE;
            time_unit = unit;
            time_at = i++;
        } else {
            reply_syntax_error(c);
            return false;
        }
    }
    return !time_at || parse_expire(c, c->argv[time_at], c->argv[time_at + 1], &o->expire_ms);
}

static enum command_result run_set(struct client *c)
{
    struct set_options o;
    if (!parse_set_options(c, &o))
        return COMMAND_DONE;
    struct key *k = data_find_for_write(c, c->argv[1]);
    struct slice old = {0};
    bool had = k != NULL;
    if (o.flags & SET_GET) {
        if (k && k->type != OBJECT_STRING) {
            reply_wrong_type(c);
            return COMMAND_DONE;
        }
        /* Kept beside the key, which the effect below may replace. */
        if (k) {
            old = (struct slice){arena_dup(c->arena, k->string->data, k->string->n),
                                 k->string->n};
            if (!old.p) {
                resp_error(c->out, "OOM out of memory for the old value");
                return COMMAND_DONE;
            }
        }
    }
    bool blocked = ((o.flags & SET_NX) && had) || ((o.flags & SET_XX) && !had);
    if (!blocked) {
        int64_t expire_ms = o.expire_ms;
        if (o.flags & SET_KEEPTTL)
            expire_ms = had ? k->expire_ms : 0;
        bool past = (o.flags & SET_EXPIRE) && expire_ms <= data_now_ms(c);
        bool done = !past ? data_set(c, c->argv[1], c->argv[2], expire_ms)
                    : had ? data_delete(c, c->argv[1])
                          : true;
        if (!done)
            return COMMAND_DONE;
    }
    if (o.flags & SET_GET) {
        if (old.p)
            resp_bulk(c->out, old.p, old.n);
        else
            resp_null(c->out);
    } else if (blocked) {
        resp_null(c->out);
    } else {
        resp_ok(c->out);
    }
    return COMMAND_DONE;
}

/* --- reading --- */

static enum command_result run_get(struct client *c)
{
    struct key *k;
    if (data_find_type(c, c->argv[1], OBJECT_STRING, &k))
        reply_string(c, k);
    return COMMAND_DONE;
}

static enum command_result run_mget(struct client *c)
{
    resp_array(c->out, (size_t)c->argc - 1);
    for (int i = 1; i < c->argc; i++) {
        struct key *k = data_find(c, c->argv[i]);
        reply_string(c, k && k->type == OBJECT_STRING ? k : NULL);
    }
    return COMMAND_DONE;
}

static enum command_result run_strlen(struct client *c)
{
    struct key *k;
    if (data_find_type(c, c->argv[1], OBJECT_STRING, &k))
        resp_int(c->out, k ? (int64_t)k->string->n : 0);
    return COMMAND_DONE;
}

/* --- changing --- */

static enum command_result run_mset(struct client *c)
{
    if (c->argc % 2 == 0) {
        resp_error(c->out, "ERR wrong number of arguments for 'mset' command");
        return COMMAND_DONE;
    }
    for (int i = 1; i < c->argc; i += 2)
        if (!data_set(c, c->argv[i], c->argv[i + 1], 0))
            return COMMAND_DONE;
    resp_ok(c->out);
    return COMMAND_DONE;
}

static enum command_result run_getdel(struct client *c)
{
    struct key *k;
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_STRING, &k))
        return COMMAND_DONE;
    struct blob *value = k ? blob_ref(k->string) : NULL;
    if (!k || data_delete(c, c->argv[1])) {
        if (value)
            resp_bulk(c->out, value->data, value->n);
        else
            resp_null(c->out);
    }
    blob_unref(value);
    return COMMAND_DONE;
}

static enum command_result run_append(struct client *c)
{
    struct key *k;
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_STRING, &k))
        return COMMAND_DONE;
    size_t n = (k ? k->string->n : 0) + c->argv[2].n;
    if (too_long(c, n))
        return COMMAND_DONE;
    struct effect f = {.op = EFFECT_APPEND, .key = c->argv[1], .value = c->argv[2]};
    if (data_do(c, &f))
        resp_int(c->out, (int64_t)n);
    return COMMAND_DONE;
}

static enum command_result add_to(struct client *c, int64_t by)
{
    struct key *k;
    if (!data_find_type_for_write(c, c->argv[1], OBJECT_STRING, &k))
        return COMMAND_DONE;
    int64_t v = 0;
    if (k && !arg_int(blob_slice(k->string), &v)) {
        reply_not_integer(c);
        return COMMAND_DONE;
    }
    if (__builtin_add_overflow(v, by, &v)) {
        resp_error(c->out, "ERR increment or decrement would overflow");
        return COMMAND_DONE;
    }
    char text[32];
    int n = snprintf(text, sizeof text, "%" PRId64, v);
    if (data_set(c, c->argv[1], (struct slice){text, (size_t)n}, k ? k->expire_ms : 0))
        resp_int(c->out, v);
    return COMMAND_DONE;
}

static enum command_result run_incr(struct client *c)
{
    return add_to(c, 1);
}

static enum command_result run_decr(struct client *c)
{
    return add_to(c, -1);
}

static enum command_result run_incrby(struct client *c)
{
    int64_t by;
    if (arg_int(c->argv[2], &by))
        return add_to(c, by);
    reply_not_integer(c);
    return COMMAND_DONE;
}

static enum command_result run_decrby(struct client *c)
{
    int64_t by;
    if (!arg_int(c->argv[2], &by)) {
        reply_not_integer(c);
        return COMMAND_DONE;
    }
    if (by == INT64_MIN) { /* its opposite is no int64_t */
        resp_error(c->out, "ERR decrement would overflow");
        return COMMAND_DONE;
    }
    return add_to(c, -by);
}

const struct command string_commands[] = {
    {"set", -3, CMD_WRITE | CMD_DENYOOM, 1, 1, 1, run_set, NULL, NULL, "string", "1.0.0",
     "O(1)", "Sets the string value of a key, whatever it held before, and its time to live.",
     "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | "
     "PXAT unix-time-milliseconds | KEEPTTL]"},
    {"get", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_get, NULL, NULL, "string", "1.0.0", "O(1)",
     "Returns the string value of a key.", "key"},
    {"mget", -2, CMD_READONLY | CMD_FAST, 1, -1, 1, run_mget, NULL, NULL, "string", "1.0.0",
     "O(N) with N the number of keys", "Returns the string values of several keys.",
     "key [key ...]"},
    {"mset", -3, CMD_WRITE | CMD_DENYOOM, 1, -1, 2, run_mset, NULL, NULL, "string", "1.0.1",
     "O(N) with N the number of keys", "Sets the string values of several keys as one change.",
     "key value [key value ...]"},
    {"getdel", 2, CMD_WRITE | CMD_FAST, 1, 1, 1, run_getdel, NULL, NULL, "string", "6.2.0",
     "O(1)", "Returns the string value of a key and deletes the key.", "key"},
    {"incr", 2, CMD_WRITE | CMD_DENYOOM | CMD_FAST, 1, 1, 1, run_incr, NULL, NULL, "string",
     "1.0.0", "O(1)", "Adds one to the integer value of a key; a missing key counts as 0.",
     "key"},
    {"incrby", 3, CMD_WRITE | CMD_DENYOOM | CMD_FAST, 1, 1, 1, run_incrby, NULL, NULL, "string",
     "1.0.0", "O(1)", "Adds a number to the integer value of a key; a missing key counts as 0.",
     "key increment"},
    {"decr", 2, CMD_WRITE | CMD_DENYOOM | CMD_FAST, 1, 1, 1, run_decr, NULL, NULL, "string",
     "1.0.0", "O(1)", "Takes one from the integer value of a key; a missing key counts as 0.",
     "key"},
    {"decrby", 3, CMD_WRITE | CMD_DENYOOM | CMD_FAST, 1, 1, 1, run_decrby, NULL, NULL, "string",
     "1.0.0", "O(1)",
     "Takes a number from the integer value of a key; a missing key counts as 0.",
     "key decrement"},
    {"append", 3, CMD_WRITE | CMD_DENYOOM | CMD_FAST, 1, 1, 1, run_append, NULL, NULL, "string",
     "2.0.0", "O(1) amortised",
     "Appends to the string value of a key, which is made if missing.", "key value"},
    {"strlen", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_strlen, NULL, NULL, "string", "2.2.0",
     "O(1)", "Returns the length of the string value of a key in bytes.", "key"},
    {0},
};
