/* Commands on keys of any type, and on whole databases. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "server/commands_shared.h"
#include "server/data.h"
#include "server/glob.h"
#include "server/reembed.h"
#include "server/server.h"
#include "server/shard_parts.h"

static const char *type_name(const struct key *k)
{
    return !k ? "none" : k->type == OBJECT_STRING ? "string" : "vectorset";
}

static enum command_result run_dbsize(struct client *c)
{
    resp_int(c->out, (int64_t)keyspace_count(data_keyspace(c), c->db));
    return COMMAND_DONE;
}

static enum command_result run_type(struct client *c)
{
    resp_simple(c->out, type_name(data_find(c, c->argv[1])));
    return COMMAND_DONE;
}

static enum command_result run_exists(struct client *c)
{
    int64_t n = 0;
    for (int i = 1; i < c->argc; i++)
        n += data_find(c, c->argv[i]) != NULL;
    resp_int(c->out, n);
    return COMMAND_DONE;
}

static enum command_result run_del(struct client *c)
{
    int64_t n = 0;
    for (int i = 1; i < c->argc; i++) {
        if (!data_find_for_write(c, c->argv[i]))
            continue;
        if (!data_delete(c, c->argv[i]))
            return COMMAND_DONE;
        n++;
    }
    resp_int(c->out, n);
    return COMMAND_DONE;
}

static enum command_result run_rename(struct client *c)
{
    if (!data_find_for_write(c, c->argv[1])) {
        resp_error(c->out, "ERR no such key");
        return COMMAND_DONE;
    }
    struct effect f = {
        .op = EFFECT_RENAME, .key = c->argv[1], .to_db = c->db, .to_key = c->argv[2]};
    if (data_do(c, &f))
        resp_ok(c->out);
    return COMMAND_DONE;
}

static enum command_result run_randomkey(struct client *c)
{
    struct keyspace *ks = data_keyspace(c);
    /* Expired keys that the timer has not reached yet are passed over; when there seem to be
     * only those, the answer is none. */
    for (int tries = 0; tries < 100; tries++) {
        struct key *k = keyspace_random(ks, c->db);
        if (!k)
            break;
        if (!k->expire_ms || k->expire_ms > data_now_ms(c)) {
            resp_bulk(c->out, k->name, k->name_n);
            return COMMAND_DONE;
        }
    }
    resp_null(c->out);
    return COMMAND_DONE;
}

/* --- time to live --- */

enum { IF_NX = 1, IF_XX = 2, IF_GT = 4, IF_LT = 8 };

static bool parse_expire_flags(struct client *c, unsigned *flags)
{
    *flags = 0;
    for (int i = 3; i < c->argc; i++) {
        struct slice a = c->argv[i];
        unsigned flag = slice_is(a, "NX")   ? IF_NX
                        : slice_is(a, "XX") ? IF_XX
                        : slice_is(a, "GT") ? IF_GT
                        : slice_is(a, "LT") ? IF_LT
                                            : 0;
        if (!flag) {
            resp_errorf(c->out, "ERR Unsupported option %.*s", slice_shown(a), a.p);
            return false;
        }
        *flags |= flag;
    }
    if ((*flags & IF_NX) && (*flags & ~(unsigned)IF_NX)) {
        resp_error(c->out,
                   "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if ((*flags & IF_GT) && (*flags & IF_LT)) {
        resp_error(c->out, "ERR GT and LT options at the same time are not compatible");
        return false;
    }
    return true;
}

static enum command_result expire_key(struct client *c, bool seconds, bool relative)
{
    int64_t at;
    unsigned flags;
    if (!parse_expire_flags(c, &flags))
        return COMMAND_DONE;
    if (!arg_int(c->argv[2], &at)) {
        reply_not_integer(c);
        return COMMAND_DONE;
    }
    if ((seconds && __builtin_mul_overflow(at, 1000, &at)) ||
        (relative && __builtin_add_overflow(at, data_now_ms(c), &at))) {
        resp_errorf(c->out, "ERR invalid expire time in '%s' command", c->command->name);
        return COMMAND_DONE;
    }
    struct key *k = data_find_for_write(c, c->argv[1]);
    int64_t now = k ? k->expire_ms : 0;
    /* A key without a time counts as one that lives for ever. */
    bool change = k && !((flags & IF_NX) && now) && !((flags & IF_XX) && !now) &&
                  !((flags & IF_GT) && (!now || at <= now)) &&
                  !((flags & IF_LT) && now && at >= now);
    if (!change) {
        resp_int(c->out, 0);
        return COMMAND_DONE;
    }
    bool done =
        at <= data_now_ms(c) ? data_delete(c, c->argv[1]) : data_expire(c, c->argv[1], at);
    if (done)
        resp_int(c->out, 1);
    return COMMAND_DONE;
}

static enum command_result run_expire(struct client *c)
{
    return expire_key(c, true, true);
}

static enum command_result run_pexpire(struct client *c)
{
    return expire_key(c, false, true);
}

static enum command_result run_expireat(struct client *c)
{
    return expire_key(c, true, false);
}

static enum command_result run_pexpireat(struct client *c)
{
    return expire_key(c, false, false);
}

static enum command_result run_persist(struct client *c)
{
    struct key *k = data_find_for_write(c, c->argv[1]);
    bool had = k && k->expire_ms;
    if (!had || data_expire(c, c->argv[1], 0))
        resp_int(c->out, had);
    return COMMAND_DONE;
}

static void reply_ttl(struct client *c, int64_t unit_ms)
{
    struct key *k = data_find(c, c->argv[1]);
    int64_t left = !k ? -2 : !k->expire_ms ? -1 : k->expire_ms - data_now_ms(c);
    resp_int(c->out, left < 0 ? left : (left + unit_ms / 2) / unit_ms);
}

static enum command_result run_ttl(struct client *c)
{
    reply_ttl(c, 1000);
    return COMMAND_DONE;
}

static enum command_result run_pttl(struct client *c)
{
    reply_ttl(c, 1);
    return COMMAND_DONE;
}

/* --- listing --- */

struct listing {
    struct client *c;
    struct slice pattern, type;
    bool match_all;
    struct buf bulks; /* the replies, since their count comes first */
    uint64_t n;
};

static void list_key(void *arg, struct key *k)
{
    struct listing *l = arg;
    if (k->expire_ms && k->expire_ms <= data_now_ms(l->c))
        return;
    if (!l->match_all && !glob_match(l->pattern, key_name(k), false))
        return;
    if (l->type.p && !slice_is(l->type, type_name(k)))
        return;
    resp_bulk((struct resp_out){&l->bulks, l->c->out.proto}, k->name, k->name_n);
    l->n++;
}

static enum command_result reply_listing(struct client *c, struct listing *l)
{
    if (l->bulks.failed) {
        resp_error(c->out, "OOM out of memory for the reply");
    } else {
        resp_array(c->out, (size_t)l->n);
        buf_append(c->out.to, l->bulks.data, l->bulks.len);
    }
    buf_deinit(&l->bulks);
    return COMMAND_DONE;
}

static enum command_result run_keys(struct client *c)
{
    struct listing l = {
        .c = c, .pattern = c->argv[1], .match_all = slice_equal(c->argv[1], slice_of("*"))};
    keyspace_each(data_keyspace(c), c->db, list_key, &l);
    return reply_listing(c, &l);
}

static bool parse_scan(struct client *c, struct listing *l, int64_t *count)
{
    for (int i = 2; i < c->argc; i += 2) {
        bool more = i + 1 < c->argc;
        if (more && slice_is(c->argv[i], "MATCH")) {
            l->pattern = c->argv[i + 1];
            l->match_all = slice_equal(l->pattern, slice_of("*"));
        } else if (more && slice_is(c->argv[i], "COUNT")) {
            if (!arg_int(c->argv[i + 1], count)) {
                reply_not_integer(c);
                return false;
            }
            if (*count < 1) {
                reply_syntax_error(c);
                return false;
            }
        } else if (more && slice_is(c->argv[i], "TYPE")) {
            l->type = c->argv[i + 1];
        } else {
            reply_syntax_error(c);
            return false;
        }
    }
    return true;
}

static enum command_result run_scan(struct client *c)
{
    char digits[24], *end;
    struct slice a = c->argv[1];
    uint64_t cursor = 0;
    bool valid = a.n > 0 && a.n < sizeof digits && a.p[0] >= '0' && a.p[0] <= '9';
    if (valid) {
        memcpy(digits, a.p, a.n);
        digits[a.n] = '\0';
        errno = 0;
        cursor = strtoull(digits, &end, 10);
        valid = *end == '\0' && errno == 0;
    }
    if (!valid) {
        resp_error(c->out, "ERR invalid cursor");
        return COMMAND_DONE;
    }
    struct listing l = {.c = c, .match_all = true};
    int64_t count = 10;
    if (!parse_scan(c, &l, &count))
        return COMMAND_DONE;
    /* As many buckets as keys were asked for, and not many more when most are empty. */
    int64_t buckets = count > INT64_MAX / 10 ? INT64_MAX : count * 10;
    do
        cursor = keyspace_scan(data_keyspace(c), c->db, cursor, list_key, &l);
    while (cursor && --buckets > 0 && l.n < (uint64_t)count);
    resp_array(c->out, 2);
    resp_bulkf(c->out, "%llu", (unsigned long long)cursor);
    return reply_listing(c, &l);
}

/* --- whole databases --- */

static enum command_result flush(struct client *c, uint32_t db)
{
    if (c->argc > 2 ||
        (c->argc == 2 && !slice_is(c->argv[1], "SYNC") && !slice_is(c->argv[1], "ASYNC"))) {
        reply_syntax_error(c);
        return COMMAND_DONE;
    }
    struct effect f = {.op = EFFECT_FLUSH, .db = db};
    struct err e = {0};
    if (effect_do(c->server->shard, &f, &e) == 0)
        resp_ok(c->out);
    else
        reply_err(c, &e);
    return COMMAND_DONE;
}

static enum command_result run_flushdb(struct client *c)
{
    return flush(c, c->db);
}

static enum command_result run_flushall(struct client *c)
{
    return flush(c, EFFECT_ALL_DBS);
}

/* --- MEMORY and DEBUG --- */

static enum command_result run_memory_usage(struct client *c)
{
    if (c->argc != 3 && !(c->argc == 5 && slice_is(c->argv[3], "SAMPLES"))) {
        reply_syntax_error(c);
        return COMMAND_DONE;
    }
    struct key *k = data_find(c, c->argv[2]);
    if (!k) {
        resp_null(c->out);
        return COMMAND_DONE;
    }
    size_t n = key_memory_bytes(k);
    if (k->type == OBJECT_VSET) {
        struct vset_info info;
        struct reembed_view reembed;
        vset_info(k->vset, &info);
        reembed_look(data_reembed(c), k, &reembed);
        n += info.memory_bytes + reembed.memory_bytes;
    }
    resp_int(c->out, (int64_t)n);
    return COMMAND_DONE;
}

static void reply_digest(struct client *c, const uint64_t digest[2])
{
    char hex[41];
    snprintf(hex, sizeof hex, "00000000%016llx%016llx", (unsigned long long)digest[0],
             (unsigned long long)digest[1]);
    resp_simple(c->out, hex);
}

static enum command_result run_debug_digest(struct client *c)
{
    uint64_t digest[2];
    struct err e = {0};
    if (shard_digest(c->server->shard, digest, &e) != 0)
        reply_err(c, &e);
    else
        reply_digest(c, digest);
    return COMMAND_DONE;
}

/* Of a key that is not there: zeros, as Redis has it. */
static enum command_result run_debug_digest_value(struct client *c)
{
    struct err e = {0};
    uint64_t(*digests)[2] = arena_alloc(c->arena, (size_t)c->argc * sizeof *digests);
    if (!digests) {
        resp_error(c->out, "OOM out of memory for the digests");
        return COMMAND_DONE;
    }
    for (int i = 2; i < c->argc; i++) {
        struct key *k = keyspace_find(data_keyspace(c), c->db, c->argv[i], data_now_ms(c));
        digests[i][0] = digests[i][1] = 0;
        if (k && shard_digest_value(c->server->shard, k, digests[i], &e) != 0) {
            reply_err(c, &e);
            return COMMAND_DONE;
        }
    }
    resp_array(c->out, (uint64_t)c->argc - 2);
    for (int i = 2; i < c->argc; i++)
        reply_digest(c, digests[i]);
    return COMMAND_DONE;
}

static enum command_result run_debug_reload(struct client *c)
{
    struct err e = {0};
    switch (shard_reload(c->server->shard, c, &e)) {
    case 0:
        return COMMAND_WAIT;
    case 1:
        resp_ok(c->out);
        return COMMAND_DONE;
    default:
        reply_err(c, &e);
        return COMMAND_DONE;
    }
}

static const struct command memory_subcommands[] = {
    {"usage", -3, CMD_READONLY, 2, 2, 1, run_memory_usage, NULL, NULL, "server", "4.0.0",
     "O(1)", "Returns the bytes of memory a key takes.", "key [SAMPLES count]"},
    {0},
};

static const struct command debug_subcommands[] = {
    {"sleep", -3, CMD_ADMIN, 0, 0, 0, debug_sleep, NULL, NULL, "server", "1.0.0", "O(1)",
     "Stops the connection's I/O thread, or with SEARCH a search thread, for some seconds.",
     "seconds [SEARCH]"},
    {"digest", 2, CMD_ADMIN | CMD_READONLY, 0, 0, 0, run_debug_digest, NULL, NULL, "server",
     "1.0.0", "O(N) with N all elements of all keys",
     "Returns a digest of all data: equal data gives equal digests.", ""},
    {"digest-value", -3, CMD_ADMIN | CMD_READONLY, 2, -1, 1, run_debug_digest_value, NULL, NULL,
     "server", "5.0.0", "O(N) with N the elements of the keys",
     "Returns a digest of the value of each key, zeros for one that is not there.",
     "key [key ...]"},
    {"reload", 2, CMD_ADMIN | CMD_READONLY | CMD_NO_MULTI, 0, 0, 0, run_debug_reload, NULL,
     NULL, "server", "1.0.0", "O(N) with N the number of keys",
     "Makes a checkpoint and loads all data from it again.", ""},
    {0},
};

const struct command key_commands[] = {
    {"dbsize", 1, CMD_READONLY | CMD_FAST, 0, 0, 0, run_dbsize, NULL, NULL, "server", "1.0.0",
     "O(1)", "Returns the number of keys of the database.", ""},
    {"keys", 2, CMD_READONLY, 0, 0, 0, run_keys, NULL, NULL, "generic", "1.0.0",
     "O(N) with N the number of keys", "Returns all names of keys that match a pattern.",
     "pattern"},
    {"scan", -2, CMD_READONLY, 0, 0, 0, run_scan, NULL, NULL, "generic", "2.8.0",
     "O(1) a call, O(N) for a whole walk",
     "Walks the names of keys a few at a time; a key present all the while is returned.",
     "cursor [MATCH pattern] [COUNT count] [TYPE type]"},
    {"type", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_type, NULL, NULL, "generic", "1.0.0",
     "O(1)", "Returns what a key holds: string, vectorset or none.", "key"},
    {"exists", -2, CMD_READONLY | CMD_FAST, 1, -1, 1, run_exists, NULL, NULL, "generic",
     "1.0.0", "O(N) with N the number of keys", "Counts how many of the keys exist.",
     "key [key ...]"},
    {"del", -2, CMD_WRITE, 1, -1, 1, run_del, NULL, NULL, "generic", "1.0.0",
     "O(N) with N the number of keys", "Deletes keys; returns how many there were.",
     "key [key ...]"},
    {"unlink", -2, CMD_WRITE | CMD_FAST, 1, -1, 1, run_del, NULL, NULL, "generic", "4.0.0",
     "O(N) with N the number of keys",
     "Deletes keys; the memory of large ones is freed in the background, as with DEL.",
     "key [key ...]"},
    {"rename", 3, CMD_WRITE, 1, 2, 1, run_rename, NULL, NULL, "generic", "1.0.0", "O(1)",
     "Renames a key; what the new name held is deleted.", "key newkey"},
    {"expire", -3, CMD_WRITE | CMD_FAST, 1, 1, 1, run_expire, NULL, NULL, "generic", "1.0.0",
     "O(1)", "Sets a key's time to live in seconds.", "key seconds [NX | XX | GT | LT]"},
    {"pexpire", -3, CMD_WRITE | CMD_FAST, 1, 1, 1, run_pexpire, NULL, NULL, "generic", "2.6.0",
     "O(1)", "Sets a key's time to live in milliseconds.",
     "key milliseconds [NX | XX | GT | LT]"},
    {"expireat", -3, CMD_WRITE | CMD_FAST, 1, 1, 1, run_expireat, NULL, NULL, "generic",
     "1.2.0", "O(1)", "Sets when a key expires, in seconds since 1970.",
     "key unix-time-seconds [NX | XX | GT | LT]"},
    {"pexpireat", -3, CMD_WRITE | CMD_FAST, 1, 1, 1, run_pexpireat, NULL, NULL, "generic",
     "2.6.0", "O(1)", "Sets when a key expires, in milliseconds since 1970.",
     "key unix-time-milliseconds [NX | XX | GT | LT]"},
    {"persist", 2, CMD_WRITE | CMD_FAST, 1, 1, 1, run_persist, NULL, NULL, "generic", "2.2.0",
     "O(1)", "Takes a key's time to live away.", "key"},
    {"ttl", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_ttl, NULL, NULL, "generic", "1.0.0",
     "O(1)",
     "Returns a key's time to live in seconds; -1: it has none, -2: there is no such key.",
     "key"},
    {"pttl", 2, CMD_READONLY | CMD_FAST, 1, 1, 1, run_pttl, NULL, NULL, "generic", "2.6.0",
     "O(1)", "Returns a key's time to live in milliseconds; -1 and -2 as with TTL.", "key"},
    {"randomkey", 1, CMD_READONLY, 0, 0, 0, run_randomkey, NULL, NULL, "generic", "1.0.0",
     "O(1)", "Returns the name of a random key.", ""},
    {"flushdb", -1, CMD_WRITE, 0, 0, 0, run_flushdb, NULL, NULL, "server", "1.0.0",
     "O(N) with N the number of keys", "Deletes all keys of the database.", "[ASYNC | SYNC]"},
    {"flushall", -1, CMD_WRITE, 0, 0, 0, run_flushall, NULL, NULL, "server", "1.0.0",
     "O(N) with N the number of keys", "Deletes all keys of all databases.", "[ASYNC | SYNC]"},
    {"memory", -2, CMD_READONLY, 0, 0, 0, NULL, NULL, memory_subcommands, "server", "4.0.0",
     "O(1)", "Answers questions about memory.", ""},
    {"debug", -2, CMD_ADMIN, 0, 0, 0, NULL, NULL, debug_subcommands, "server", "1.0.0", "O(1)",
     "Commands for tests and operators.", ""},
    {0},
};
