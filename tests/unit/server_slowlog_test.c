/* The slow log and the totals of commands and errors. */
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "server/config.h"
#include "server/net_private.h"
#include "server/slowlog.h"
#include "tests/unit/unit.h"

static struct config *config;
static struct connection conn = {.peer = "127.0.0.1:1234"};

static void note(struct slowlog *s, int64_t us, const char *line)
{
    static char copy[8192];
    static struct slice argv[64];
    char *save = NULL;
    snprintf(copy, sizeof copy, "%s", line);
    conn.client.argc = 0;
    conn.client.argv = argv;
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[conn.client.argc++] = slice_of(w);
    slowlog_note(s, &conn.client, us);
}

static void print_entry(void *arg, const struct slowlog_entry *e)
{
    struct buf *out = arg;
    buf_printf(out, "%llu:%lld", (unsigned long long)e->id, (long long)e->us);
    for (int i = 0; i < e->argc; i++) {
        assert_int_equal(strlen(e->argv[i]), e->argv_bytes[i]);
        buf_printf(out, " %s", e->argv[i]);
    }
    buf_printf(out, " %s %s\n", e->address, e->name);
}

static void assert_log(struct slowlog *s, int64_t n, const char *want)
{
    struct buf out;
    buf_init(&out);
    slowlog_each(s, n, NULL, print_entry, &out);
    buf_u8(&out, 0);
    assert_string_equal(out.data, want);
    buf_deinit(&out);
}

static void slow_commands_are_kept_newest_first(void **state)
{
    (void)state;
    struct slowlog *s = slowlog_new(config);
    atomic_store(&config->slowlog_slower_than_us, 100);
    atomic_store(&config->slowlog_max_len, 2);
    conn.name = "ann";
    note(s, 99, "GET fast");
    note(s, 100, "GET a");
    note(s, 101, "GET b");
    note(s, 500, "SET c d");
    assert_log(s, -1, "2:500 SET c d 127.0.0.1:1234 ann\n1:101 GET b 127.0.0.1:1234 ann\n");
    assert_log(s, 1, "2:500 SET c d 127.0.0.1:1234 ann\n");
    assert_int_equal(slowlog_len(s), 2);
    atomic_store(&config->slowlog_slower_than_us, -1);
    note(s, 1000000, "GET e");
    assert_int_equal(slowlog_len(s), 2);
    slowlog_reset(s);
    assert_log(s, -1, "");
    conn.name = NULL;
    slowlog_free(s);
}

static void secrets_and_long_arguments_are_cut_and_notes_added(void **state)
{
    (void)state;
    struct slowlog *s = slowlog_new(config);
    atomic_store(&config->slowlog_slower_than_us, 0);
    atomic_store(&config->slowlog_max_len, 10);
    note(s, 1, "AUTH ann secret");
    note(s, 2, "hello 3 AUTH ann secret");
    note(s, 3, "config SET timeout 1 RequirePass secret");
    assert_log(s, -1,
               "2:3 config SET timeout 1 RequirePass (redacted) 127.0.0.1:1234 \n"
               "1:2 hello 3 (redacted) (redacted) (redacted) 127.0.0.1:1234 \n"
               "0:1 AUTH (redacted) (redacted) 127.0.0.1:1234 \n");
    slowlog_reset(s);
    char line[400] = "SET ";
    memset(line + 4, 'x', 200);
    note(s, 1, line);
    memset(line + 4 + 128, '\0', 1);
    char want[sizeof line + 64];
    snprintf(want, sizeof want, "3:1 %s... (72 more bytes) 127.0.0.1:1234 \n", line);
    assert_log(s, -1, want);
    slowlog_reset(s);
    note(s, 1,
         "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 "
         "31 32 33");
    assert_log(s, -1,
               "4:1 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 "
               "27 28 29 30 ... (3 more arguments) 127.0.0.1:1234 \n");
    slowlog_reset(s);
    client_note(&conn.client, "looked at %d", 7); /* behind whatever was cut */
    note(s, 1, "VSIM v");
    note(s, 2,
         "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 "
         "31 32");
    assert_log(s, -1,
               "6:2 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 "
               "27 28 29 30 ... (2 more arguments) [looked at 7] 127.0.0.1:1234 \n"
               "5:1 VSIM v [looked at 7] 127.0.0.1:1234 \n");
    slowlog_reset(s);
    memset(line, 'y', 199);
    line[199] = '\0';
    client_note(&conn.client, "%s", line);
    note(s, 1, "GET a");
    line[CLIENT_NOTE_BYTES] = '\0';
    snprintf(want, sizeof want, "7:1 GET a [%s] 127.0.0.1:1234 \n", line);
    assert_log(s, -1, want);
    conn.client.note[0] = '\0';
    for (long n = 1; n < 6; n++) { /* out of memory: nothing is kept, nothing is lost */
        mem_fail_after(n);
        note(s, 1, "SET a b");
        mem_fail_after(0);
    }
    slowlog_free(s);
}

enum { THREADS = 4, ROUNDS = 20000 };
static const struct command rows[8] = {{.name = "a"}, {.name = "b"}};

static void *count_some(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++)
        command_stats_note(&rows[i % 8], 3, i % 16 == 0);
    return NULL;
}

struct totals {
    uint64_t rows, calls, us, failed;
};

static void add_up(void *arg, const struct command *c, uint64_t calls, uint64_t us,
                   uint64_t failed)
{
    struct totals *t = arg;
    assert_true(c >= rows && c < rows + 8);
    t->rows++;
    t->calls += calls;
    t->us += us;
    t->failed += failed;
}

static void totals_add_up_over_threads(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_some, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    struct totals t = {0};
    command_stats_each(add_up, &t);
    assert_int_equal(t.rows, 8);
    assert_int_equal(t.calls, THREADS * ROUNDS);
    assert_int_equal(t.us, 3 * THREADS * ROUNDS);
    assert_int_equal(t.failed, THREADS * ROUNDS / 16);
    command_stats_reset();
    t = (struct totals){0};
    command_stats_each(add_up, &t);
    assert_int_equal(t.rows, 0);
}

struct codes {
    uint64_t n, total, err, other;
};

static void look_at_code(void *arg, const char *code, uint64_t count)
{
    struct codes *c = arg;
    c->n++;
    c->total += count;
    if (strcmp(code, "ERR") == 0)
        c->err += count;
    if (strcmp(code, "OTHER") == 0)
        c->other += count;
}

static void error_codes_are_bounded(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++) {
        char code[64];
        snprintf(code, sizeof code, "CODE%d", i);
        error_stats_note(slice_of("ERR"));
        error_stats_note(slice_of(code));
    }
    error_stats_note(slice_of("AVERYLONGCODETHATNOBODYEVERUSES"));
    struct codes c = {0};
    error_stats_each(look_at_code, &c);
    assert_true(c.n <= 64);
    assert_int_equal(c.err, 1000);
    assert_int_equal(c.total, 2001);
    assert_true(c.other > 900);
    command_stats_reset();
    c = (struct codes){0};
    error_stats_each(look_at_code, &c);
    assert_int_equal(c.n, 0);
}

static int enter(void **state)
{
    (void)state;
    return config_new(&config, NULL);
}

static int leave(void **state)
{
    (void)state;
    config_free(config);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slow_commands_are_kept_newest_first),
        cmocka_unit_test(secrets_and_long_arguments_are_cut_and_notes_added),
        cmocka_unit_test(totals_add_up_over_threads),
        cmocka_unit_test(error_codes_are_bounded),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
