/* The decisions about models: who is put away for whom, what a READY means, what a line says.
 */
#include <math.h>
#include <string.h>

#include "base/random.h"
#include "server/config_file.h"
#include "server/engine_model.h"
#include "server/model_spec.h"
#include "server/models_plan.h"
#include "tests/unit/unit.h"

/* --- memory --- */

static struct models_plan_row row(uint64_t bytes, int64_t used_us, bool idle)
{
    return (struct models_plan_row){
        .bytes = bytes, .used_us = used_us, .runs = true, .idle = idle};
}

static void the_least_recently_used_go_first(void **state)
{
    (void)state;
    struct models_plan_row all[] = {row(40, 3, true), row(30, 1, true), row(20, 2, true)};
    assert_int_equal(models_plan_room(all, 3, 3, 0, 90), 90); /* what fits stays */
    assert_false(all[0].away || all[1].away || all[2].away);
    assert_int_equal(models_plan_room(all, 3, 3, 0, 89), 60);
    assert_true(all[1].away && !all[0].away && !all[2].away);
    assert_int_equal(models_plan_room(all, 3, 3, 50, 90), 90); /* 140: both older ones */
    assert_true(all[1].away && all[2].away && !all[0].away);
    assert_int_equal(models_plan_room(all, 3, 3, 50, 89), 50);
    assert_true(all[0].away);
    assert_int_equal(models_plan_room(all, 3, 0, 50, 10),
                     90); /* the kept one stays, whatever */
    assert_true(!all[0].away && all[1].away && all[2].away);
}

static void busy_ones_and_those_without_a_process_are_left_alone(void **state)
{
    (void)state;
    struct models_plan_row all[] = {row(40, 1, false), row(30, 2, true), row(20, 3, true)};
    all[1].runs = false;
    assert_int_equal(models_plan_room(all, 3, 3, 0, 50), 40); /* 60 run, and 30 do not */
    assert_true(!all[0].away && !all[1].away && all[2].away);
    assert_int_equal(models_plan_room(all, 3, 3, 0, 10), 40); /* past the limit, for now */
    assert_int_equal(models_plan_room(all, 0, 0, 7, 5), 7);
}

/* Against the plain statement of it: no idle one that goes was used later than an idle one that
 * stays, one fewer would be too many, and the sum is that of those that stay. */
static void any_set_of_models(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, 20);
    for (int round = 0; round < 20000; round++) {
        enum { MAX = 9 };
        struct models_plan_row all[MAX];
        size_t n = rng_below(&rng, MAX + 1), keep = rng_below(&rng, MAX + 1);
        uint64_t limit = rng_below(&rng, 300), newcomer = rng_below(&rng, 60), stays = newcomer;
        for (size_t i = 0; i < n; i++) {
            all[i] = row(rng_below(&rng, 60), (int64_t)rng_below(&rng, 1000) * 16 + (int64_t)i,
                         rng_below(&rng, 3) > 0);
            all[i].runs = rng_below(&rng, 4) > 0;
        }
        uint64_t total = models_plan_room(all, n, keep, newcomer, limit);
        bool candidate_stays = false;
        int64_t newest_gone = -1;
        uint64_t newest_bytes = 0;
        for (size_t i = 0; i < n; i++) {
            bool may_go = i != keep && all[i].runs && all[i].idle;
            assert_true(!all[i].away || may_go);
            if (all[i].runs && !all[i].away)
                stays += all[i].bytes;
            candidate_stays |= may_go && !all[i].away;
            if (all[i].away && all[i].used_us > newest_gone) {
                newest_gone = all[i].used_us;
                newest_bytes = all[i].bytes;
            }
        }
        assert_int_equal(total, stays);
        assert_true(total <= limit || !candidate_stays);
        assert_true(newest_gone < 0 || total + newest_bytes > limit);
        for (size_t i = 0; i < n; i++)
            if (i != keep && all[i].runs && all[i].idle && !all[i].away)
                assert_true(all[i].used_us > newest_gone);
    }
}

/* --- READY --- */

static bool read_words(struct engine_model *m, const char *const *words)
{
    struct slice slices[64];
    int n = 0;
    for (; words[n]; n++)
        slices[n] = slice_of(words[n]);
    return engine_model_read(m, slices, n);
}

struct pairs {
    int n;
    char text[40][300];
    struct slice words[40];
};

static void take_pair(void *arg, const char *key, const char *value)
{
    struct pairs *p = arg;
    snprintf(p->text[p->n++], sizeof p->text[0], "%s", key);
    snprintf(p->text[p->n++], sizeof p->text[0], "%s", value);
}

static void a_model_is_read_and_written_back(void **state)
{
    (void)state;
    const char *const words[] = {"name",      "e5",      "hash",
                                 "00ff",      "pooling", "mean",
                                 "arch",      "bert",    "dim",
                                 "384",       "context", "512",
                                 "dims",      "128,256", "query-prompt",
                                 "query: ",   "tasks",   "embed,rerank",
                                 "bytes",     "123456",  "document-prompt",
                                 "passage: ", "threads", "2",
                                 "x",         "y",       NULL};
    struct engine_model m, again;
    assert_true(read_words(&m, words));
    assert_string_equal(m.prompt_query, "query: ");
    assert_int_equal(m.tasks, ENGINE_EMBED | ENGINE_RERANK);
    assert_int_equal(m.bytes, 123456);
    static struct pairs p;
    engine_model_write(&m, take_pair, &p);
    for (int i = 0; i < p.n; i++)
        p.words[i] = slice_of(p.text[i]);
    assert_true(engine_model_read(&again, p.words, p.n));
    assert_memory_equal(&m, &again, sizeof m);
}

static void what_is_no_model(void **state)
{
    (void)state;
    struct engine_model m;
    const char *const old[] = {"hash", "00", "dim", "4", NULL};
    const char *const no_hash[] = {"dim", "4", NULL};
    const char *const no_dim[] = {"hash", "00", "dim", "-4", NULL};
    const char *const reranker[] = {"hash", "00", "tasks", "rerank", NULL};
    const char *const other[] = {"hash", "00", "dim", "4", "tasks", "translate", NULL};
    assert_true(read_words(&m, old));
    assert_int_equal(m.tasks, ENGINE_EMBED); /* where nothing is said */
    assert_false(read_words(&m, no_hash));
    assert_false(read_words(&m, no_dim));
    assert_true(read_words(&m, reranker));
    assert_int_equal(m.tasks, ENGINE_RERANK);
    assert_false(read_words(&m, other));
}

static void dimensions_that_are_allowed(void **state)
{
    (void)state;
    static const struct {
        const char *dims;
        uint32_t n;
        bool allowed;
    } rows[] = {{"", 768, true},          {"", 256, false},          {"", 0, false},
                {"128,256", 128, true},   {"128,256", 256, true},    {"128,256", 255, false},
                {"128,256", 768, true},   {"32-512", 32, true},      {"32-512", 512, true},
                {"32-512", 31, false},    {"32-512", 513, false},    {"32-1024", 769, false},
                {"64,128-256", 64, true}, {"64,128-256", 65, false}, {"64,128-256", 200, true},
                {"x,-,64-", 64, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct engine_model m = {.dim = 768};
        snprintf(m.dims, sizeof m.dims, "%s", rows[i].dims);
        if (engine_model_allows_dim(&m, rows[i].n) != rows[i].allowed)
            fail_msg("'%s' and %u", rows[i].dims, rows[i].n);
    }
}

static void a_cut_vector_has_length_1(void **state)
{
    (void)state;
    const float v[] = {3, -4, 12, 84}, zeros[] = {0, 0, 5};
    float out[4];
    engine_vector_cut(v, 2, out);
    assert_true(fabsf(out[0] - 0.6f) < 1e-6f && fabsf(out[1] + 0.8f) < 1e-6f);
    engine_vector_cut(v, 4, out);
    assert_true(fabsf(out[3] - 84 / 85.0f) < 1e-3f);
    engine_vector_cut(zeros, 2, out);
    assert_true(out[0] == 0 && out[1] == 0);
}

/* --- a model's line --- */

static int read_line(struct model_spec *s, const char *line, struct err *e)
{
    struct slice words[CONFIG_WORDS_MAX];
    struct buf store;
    buf_init(&store);
    int n = config_split_line(slice_of(line), &store, words, e);
    int rc = model_spec_read(s, words, n, e);
    buf_deinit(&store);
    return rc;
}

static void a_line_is_read_and_written_back(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "minilm /models/a.gguf", "a.b_c:d/e-9 \"/with space/\\\"m\\\".gguf\" THREADS 3",
        "m p DEFAULT THREADS 0 PRECISION int8", "m p PRECISION f32"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct model_spec s, again;
        struct err e = {0};
        struct buf out;
        buf_init(&out);
        assert_int_equal(read_line(&s, lines[i], &e), 0);
        model_spec_write(&s, &out);
        buf_u8(&out, '\0');
        assert_int_equal(read_line(&again, out.data, &e), 0);
        assert_memory_equal(&s, &again, sizeof s);
        buf_deinit(&out);
    }
}

static void lines_that_are_refused(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"m", "a name and a path"},
        {"\"\" p", "1 to 63 letters"},
        {"with\\space p", "1 to 63 letters"},
        {"a123456789012345678901234567890123456789012345678901234567890123 p", "1 to 63"},
        {"m \"\"", "invalid path"},
        {"m p FAST", "'FAST' is no option"},
        {"m p THREADS", "takes a value"},
        {"m p THREADS -1", "'-1'"},
        {"m p THREADS 2000", "to 1024"},
        {"m p PRECISION f16", "auto, f32, int8 or bf16, not 'f16'"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct model_spec s;
        struct err e = {0};
        if (read_line(&s, rows[i][0], &e) == 0 || !strstr(e.message, rows[i][1]))
            fail_msg("%s: %s", rows[i][0], e.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_recently_used_go_first),
        cmocka_unit_test(busy_ones_and_those_without_a_process_are_left_alone),
        cmocka_unit_test(any_set_of_models),
        cmocka_unit_test(a_model_is_read_and_written_back),
        cmocka_unit_test(what_is_no_model),
        cmocka_unit_test(dimensions_that_are_allowed),
        cmocka_unit_test(a_cut_vector_has_length_1),
        cmocka_unit_test(a_line_is_read_and_written_back),
        cmocka_unit_test(lines_that_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
