/* The settings: files as redis.conf has them, options, CONFIG GET/SET/REWRITE, and the
 * refusals. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/random.h"
#include "server/config.h"
#include "server/config_file.h"
#include "server/config_table.h"
#include "server/glob.h"
#include "tests/unit/unit_dir.h"

static char folder[64];
static char path[128];

static void write_file(const char *text)
{
    struct err e = {0};
    assert_int_equal(file_write_whole(path, text, strlen(text), &e), 0);
}

static struct config *load(int rc_wanted, struct err *e, int argc, char **argv)
{
    struct config *c = NULL;
    assert_int_equal(config_new(&c, e), 0);
    int rc = config_load(c, argc, argv, e);
    if (rc != rc_wanted)
        fail_msg("config_load gave %d (%s), not %d", rc, e->message, rc_wanted);
    return c;
}

static struct config *load_text(int rc_wanted, struct err *e, const char *text)
{
    write_file(text);
    char *argv[] = {path};
    return load(rc_wanted, e, 1, argv);
}

struct got {
    char name[64], value[256];
    int n;
};

static void keep(void *arg, const char *name, const char *value)
{
    struct got *g = arg;
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->value, sizeof g->value, "%s", value);
    g->n++;
}

static const char *value_of(struct config *c, const char *name)
{
    static struct got g;
    g.n = 0;
    struct slice pattern = slice_of(name);
    config_get(c, &pattern, 1, keep, &g);
    assert_int_equal(g.n, 1);
    return g.value;
}

static void defaults_are_the_ones_documented(void **state)
{
    (void)state;
    struct err e = {0};
    struct config *c = load(0, &e, 0, NULL);
    assert_int_equal(c->port, 6379);
    assert_string_equal(config_word(c, "appendfsync"), "always");
    assert_string_equal(config_word(c, "loglevel"), "notice");
    assert_string_equal(c->bind, "127.0.0.1 -::1");
    assert_int_equal(c->checkpoint_dirty_limit, 256 << 20);
    assert_int_equal(c->client_output_buffer_limit, 1 << 30);
    assert_string_equal(value_of(c, "save"), "");
    assert_string_equal(value_of(c, "appendonly"), "yes");
    assert_true(config_protected(c));
    /* Every default must be a value its own row accepts, and come back as it is shown. */
    for (const struct setting *s = settings; s->name; s++)
        value_of(c, s->name);
    config_free(c);
}

static void a_file_of_redis_form_is_read(void **state)
{
    (void)state;
    struct err e = {0};
    struct config *c = load_text(0, &e,
                                 "# a comment\n\n  PORT 7000\r\n"
                                 "bind 127.0.0.1 ::1 # \n"
                                 "requirepass \"a b\\x21\\\"\\n\"\n"
                                 "unixsocket '/tmp/it\\'s'\n"
                                 "maxmemory 100mb\nproto-max-bulk-len 1g\nunixsocketperm 770\n"
                                 "appendonly yes\nsave 3600 1 300 100\nsave \"\"\n"
                                 "client-output-buffer-limit normal 64mb 0 0\n"
                                 "client-output-buffer-limit pubsub 32mb 8mb 60\n"
                                 "loglevel WARNING");
    assert_int_equal(c->port, 7000);
    assert_string_equal(c->bind, "127.0.0.1 ::1 #");
    assert_string_equal(c->requirepass, "a b!\"\n");
    assert_string_equal(c->unixsocket, "/tmp/it's");
    assert_int_equal(c->maxmemory, 100 << 20);
    assert_int_equal(c->proto_max_bulk_len, 1000000000);
    assert_int_equal(c->unixsocketperm, 0770);
    assert_string_equal(value_of(c, "unixsocketperm"), "770");
    assert_int_equal(c->client_output_buffer_limit, 64 << 20);
    assert_string_equal(config_word(c, "loglevel"), "warning");
    assert_false(config_protected(c));
    assert_string_equal(config_file(c), path);
    config_free(c);
}

static void options_win_over_the_file(void **state)
{
    (void)state;
    struct err e = {0};
    write_file("port 7000\nio-threads 3\n");
    char *argv[] = {path, "--port", "7001", "--bind", "127.0.0.1", "-::1", "--requirepass", ""};
    struct config *c = load(0, &e, 8, argv);
    assert_int_equal(c->port, 7001);
    assert_int_equal(c->io_threads, 3);
    assert_string_equal(c->bind, "127.0.0.1 -::1");
    config_free(c);
}

static void a_file_may_include_another(void **state)
{
    (void)state;
    struct err e = {0};
    char other[160], text[200];
    snprintf(other, sizeof other, "%s/other.conf", folder);
    assert_int_equal(file_write_whole(other, "port 7002\n", 10, &e), 0);
    snprintf(text, sizeof text, "port 7000\ninclude %s\n", other);
    struct config *c = load_text(0, &e, text);
    assert_int_equal(c->port, 7002);
    config_free(c);
    snprintf(text, sizeof text, "include %s\n", path);
    config_free(load_text(KITH_ELIMIT, &e, text)); /* includes itself */
    unlink(other);
}

static void wrong_lines_are_refused_with_a_reason(void **state)
{
    (void)state;
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"port 70000", "between 0 and 65535"},
        {"port abc", "couldn't be parsed into an integer"},
        {"port 12abc", "couldn't be parsed into an integer"},
        {"port", "takes one value, not 0"},
        {"port 1 2", "takes one value, not 2"},
        {"prot 1", "did you mean 'port'"},
        {"checkpoint-intervall 3", "did you mean 'checkpoint-interval'"},
        {"hz 10", "unknown setting 'hz'"},
        {"maxmemory 1xb", "memory value"},
        {"maxmemory 99999999999gb", "memory value"},
        {"maxmemory -1", "memory value"},
        {"appendfsync sometimes", "always, everysec, no"},
        {"appendonly no", "there is no mode without"},
        {"maxmemory-policy allkeys-lru", "never drops data"},
        {"daemonize yes", "foreground"},
        {"requirepass \"open", "unbalanced quotes"},
        {"requirepass \"a\"b", "unbalanced quotes"},
        {"unixsocketperm 888", "couldn't be parsed"},
        {"client-output-buffer-limit normal 0 8mb 60", "hard limit only"},
        {"client-output-buffer-limit normal 0", "HARD 0 0"},
        {"engine-precision f16", "auto, f32, int8, bf16"},
        {"checkpoint-dirty-limit 1gb", "between"},
        {"include /nowhere/at/all", "/nowhere/at/all"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        char text[200];
        struct config *c = NULL;
        snprintf(text, sizeof text, "# first\n%s\n", cases[i].line);
        write_file(text);
        assert_int_equal(config_new(&c, &e), 0);
        char *argv[] = {path};
        assert_int_not_equal(config_load(c, 1, argv, &e), 0);
        if (!strstr(e.message, cases[i].says) || !strstr(e.message, "kith.conf:2"))
            fail_msg("`%s` was refused with: %s", cases[i].line, e.message);
        config_free(c);
    }
    struct err e = {0};
    char *argv[] = {"--port", "7", "--nonsense", "1"};
    config_free(load(KITH_EINVAL, &e, 4, argv));
    assert_non_null(strstr(e.message, "option --nonsense"));
}

static void count_change(void *arg, const char *name)
{
    (void)name;
    ++*(int *)arg;
}

static int set(struct config *c, struct err *e, int *changes, const char *const *words, int n)
{
    struct slice pairs[8];
    for (int i = 0; i < n; i++)
        pairs[i] = slice_of(words[i]);
    return config_set(c, pairs, n / 2, count_change, changes, e);
}

static void set_is_all_or_nothing(void **state)
{
    (void)state;
    struct err e = {0};
    struct config *c = load(0, &e, 0, NULL);
    int changes = 0;
    const char *good[] = {"maxclients", "50", "APPENDFSYNC", "everysec"};
    assert_int_equal(set(c, &e, &changes, good, 4), 0);
    assert_int_equal(changes, 2);
    assert_int_equal(c->maxclients, 50);
    assert_string_equal(config_word(c, "appendfsync"), "everysec");
    const char *bad[] = {"maxclients", "60", "requirepass", "x", "timeout", "never"};
    assert_int_equal(set(c, &e, &changes, bad, 6), KITH_EINVAL);
    assert_string_equal(e.message,
                        "CONFIG SET failed (possibly related to argument 'timeout') - "
                        "argument couldn't be parsed into an integer");
    assert_int_equal(changes, 2);
    assert_int_equal(c->maxclients, 50);
    assert_string_equal(c->requirepass, "");
    const char *twice[] = {"timeout", "1", "timeout", "2"};
    assert_int_equal(set(c, &e, &changes, twice, 4), KITH_EINVAL);
    assert_non_null(strstr(e.message, "duplicate parameter"));
    const char *fixed[] = {"port", "1"};
    assert_int_equal(set(c, &e, &changes, fixed, 2), KITH_EINVAL);
    assert_non_null(strstr(e.message, "can't set immutable config"));
    const char *unknown[] = {"maxclient", "1"};
    assert_int_equal(set(c, &e, &changes, unknown, 2), KITH_EINVAL);
    assert_non_null(strstr(e.message, "did you mean 'maxclients'"));
    const char *list[] = {"client-output-buffer-limit", "normal 1mb 0 0", "save", ""};
    assert_int_equal(set(c, &e, &changes, list, 4), 0);
    assert_int_equal(c->client_output_buffer_limit, 1 << 20);
    config_free(c);
}

static void rewrite_keeps_what_people_wrote(void **state)
{
    (void)state;
    struct err e = {0};
    struct config *c = load_text(0, &e,
                                 "# my server\nport 7000\n\n# limits\nmaxclients 100\n"
                                 "maxclients 200\nsave 3600 1\n"
                                 "client-output-buffer-limit pubsub 32mb 8mb 60\n");
    assert_int_equal(chmod(path, 0600), 0);
    int changes = 0;
    const char *words[] = {"maxclients", "300", "requirepass", "two words\"", "timeout", "0"};
    assert_int_equal(set(c, &e, &changes, words, 6), 0);
    assert_int_equal(config_rewrite(c, &e), 0);
    struct buf text;
    for (int round = 0; round < 2; round++) { /* the second must change nothing */
        buf_init(&text);
        assert_int_equal(file_read_whole(path, 4096, &text, &e), 0);
        buf_u8(&text, 0);
        assert_string_equal(text.data, "# my server\nport 7000\n\n# limits\nmaxclients 300\n"
                                       "save 3600 1\n"
                                       "client-output-buffer-limit pubsub 32mb 8mb 60\n"
                                       "\n# Added by CONFIG REWRITE\n"
                                       "requirepass \"two words\\\"\"\n");
        buf_deinit(&text);
        assert_int_equal(config_rewrite(c, &e), 0);
    }
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600); /* it holds the password */
    config_free(c);
    char *argv[] = {path};
    c = load(0, &e, 1, argv);
    assert_string_equal(c->requirepass, "two words\"");
    assert_int_equal(c->maxclients, 300);
    config_free(c);
    c = load(0, &e, 0, NULL);
    assert_int_equal(config_rewrite(c, &e), KITH_ENOTFOUND);
    config_free(c);
}

static void any_text_survives_quoting(void **state)
{
    (void)state;
    uint64_t seed = rng_entropy();
    print_message("seed %llu\n", (unsigned long long)seed);
    struct rng rng;
    rng_seed(&rng, seed);
    for (int round = 0; round < 5000; round++) {
        char word[40];
        size_t n = rng_below(&rng, sizeof word);
        for (size_t i = 0; i < n; i++)
            word[i] = (char)rng_next(&rng);
        struct buf line, store;
        struct slice words[CONFIG_WORDS_MAX];
        buf_init(&line);
        buf_init(&store);
        buf_append_str(&line, "name ");
        config_quote_word(&line, (struct slice){word, n});
        assert_int_equal(
            config_split_line((struct slice){line.data, line.len}, &store, words, NULL), 2);
        assert_true(slice_equal(words[1], (struct slice){word, n}));
        buf_clear(&store); /* and any bytes at all are read or refused, in bounds */
        char *exact = mem_dup(word, n + 1);
        config_split_line((struct slice){exact, n}, &store, words, NULL);
        mem_free(exact);
        buf_deinit(&store);
        buf_deinit(&line);
    }
}

static void get_takes_globs(void **state)
{
    (void)state;
    struct err e = {0};
    struct config *c = load(0, &e, 0, NULL);
    struct got g = {.n = 0};
    struct slice all[] = {slice_of("*"), slice_of("port")};
    config_get(c, all, 2, keep, &g);
    assert_int_equal(g.n, settings_count());
    g.n = 0;
    struct slice some = slice_of("SLOWLOG-*");
    config_get(c, &some, 1, keep, &g);
    assert_int_equal(g.n, 2);
    config_free(c);
    static const struct {
        const char *pattern, *text;
        bool matches;
    } globs[] = {{"a*c", "abc", true},
                 {"a*c", "abcd", false},
                 {"[^a]x", "bx", true},
                 {"[^a]x", "ax", false},
                 {"[a-c]", "b", true},
                 {"\\*", "*", true},
                 {"\\*", "a", false},
                 {"h?llo", "hallo", true},
                 {"*", "", true},
                 {"", "", true},
                 {"", "a", false},
                 {"[abc", "c", true},
                 {"*a*a*a*b", "aaaaa", false},
                 {"[c-a]", "b", true},
                 {"[", "a", false}};
    for (size_t i = 0; i < sizeof globs / sizeof *globs; i++)
        if (glob_match(slice_of(globs[i].pattern), slice_of(globs[i].text), false) !=
            globs[i].matches)
            fail_msg("%s on %s", globs[i].pattern, globs[i].text);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    write_file("port 7000\nrequirepass \"a b\"\nbind 127.0.0.1 ::1\n");
    char *argv[] = {path, "--dir", "here"};
    for (long n = 1;; n++) {
        struct config *c = NULL;
        struct err e = {0};
        mem_fail_after(n);
        int rc = config_new(&c, &e);
        if (rc == 0)
            rc = config_load(c, 3, argv, &e);
        mem_fail_after(0);
        config_free(c);
        if (rc == 0)
            break;
        assert_int_equal(rc, KITH_ENOMEM);
        assert_true(n < 1000);
    }
}

static int enter(void **state)
{
    (void)state;
    unit_dir_make(folder);
    snprintf(path, sizeof path, "%s/kith.conf", folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_ones_documented),
        cmocka_unit_test(a_file_of_redis_form_is_read),
        cmocka_unit_test(options_win_over_the_file),
        cmocka_unit_test(a_file_may_include_another),
        cmocka_unit_test(wrong_lines_are_refused_with_a_reason),
        cmocka_unit_test(set_is_all_or_nothing),
        cmocka_unit_test(rewrite_keeps_what_people_wrote),
        cmocka_unit_test(any_text_survives_quoting),
        cmocka_unit_test(get_takes_globs),
        cmocka_unit_test(running_out_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, enter, NULL);
}
