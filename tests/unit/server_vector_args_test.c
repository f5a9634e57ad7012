/* Vectors in the arguments of commands: the forms, what is refused and how it is said, the
 * projection of REDUCE, and which texts go to the engine before VADD runs. */
#include <string.h>

#include "server/command.h"
#include "server/vector_args.h"
#include "tests/unit/unit.h"

enum { ARGS_MAX = 64 };

/* A client without a connection: arguments, an arena and a place for replies. */
struct fixture {
    struct client c;
    struct arena arena;
    struct buf reply;
    struct slice argv[ARGS_MAX];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    arena_init(&f->arena);
    buf_init(&f->reply);
    f->c.arena = &f->arena;
    f->c.argv = f->argv;
    f->c.out = (struct resp_out){.to = &f->reply, .proto = 2};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    arena_deinit(&f->arena);
    buf_deinit(&f->reply);
    free(f);
    return 0;
}

/* The words, ended by NULL, as the command's arguments. */
static void say(struct fixture *f, const char *const *words)
{
    f->c.argc = 0;
    buf_clear(&f->reply);
    for (; words[f->c.argc]; f->c.argc++)
        f->argv[f->c.argc] = slice_of(words[f->c.argc]);
}
#define SAY(f, ...) say(f, (const char *const[]){__VA_ARGS__, NULL})

static void assert_refused(struct fixture *f, const char *error)
{
    buf_u8(&f->reply, 0);
    if (strncmp(f->reply.data, error, strlen(error)) != 0)
        fail_msg("got '%s', not '%s'", f->reply.data, error);
}

static void values_become_floats(void **state)
{
    struct fixture *f = *state;
    struct vector_arg a;
    SAY(f, "VADD", "k", "values", "3", "1", "-2.5", "1e-3", "e");
    assert_true(vector_arg_parse(&f->c, 2, &a));
    assert_int_equal(a.dim, 3);
    assert_int_equal(a.next, 7);
    assert_true(a.values[0] == 1.0f && a.values[1] == -2.5f && a.values[2] == 1e-3f);
    assert_null(a.text);
    assert_int_equal(f->reply.len, 0);
}

static void a_blob_may_lie_anywhere(void **state)
{
    struct fixture *f = *state;
    char bytes[13];
    const float v[3] = {1, 2, -3};
    struct vector_arg a;
    memcpy(bytes + 1, v, sizeof v);
    SAY(f, "VADD", "k", "FP32", "", "e");
    f->argv[3] = (struct slice){.p = bytes + 1, .n = sizeof v};
    assert_true(vector_arg_parse(&f->c, 2, &a));
    assert_int_equal(a.dim, 3);
    assert_int_equal(a.next, 4);
    assert_memory_equal(a.values, v, sizeof v);
    for (size_t n = 0; n < sizeof v; n++) { /* every length that is none of a vector */
        if (n % 4 == 0 && n > 0)
            continue;
        buf_clear(&f->reply);
        f->argv[3].n = n;
        assert_false(vector_arg_parse(&f->c, 2, &a));
        assert_refused(f, "-ERR invalid vector specification: an FP32 blob of ");
    }
}

static void what_is_wrong_is_named(void **state)
{
    struct fixture *f = *state;
    struct vector_arg a;
    SAY(f, "VADD", "k", "VALUES", "2", "1", "inf", "e");
    assert_false(vector_arg_parse(&f->c, 2, &a));
    assert_refused(f, "-ERR invalid vector specification: component 2 is infinite");
    SAY(f, "VADD", "k", "VALUES", "2", "1", "two", "e");
    assert_false(vector_arg_parse(&f->c, 2, &a));
    assert_refused(f, "-ERR invalid vector specification: component 2 is 'two', not a number");
    SAY(f, "VADD", "k", "VALUES", "9223372036854775807", "1");
    assert_false(vector_arg_parse(&f->c, 2, &a));
    assert_refused(f,
                   "-ERR invalid vector specification: 9223372036854775807 dimensions, 1 to");
    SAY(f, "VADD", "k", "VALUES");
    assert_false(vector_arg_parse(&f->c, 2, &a));
    assert_refused(f, "-ERR invalid vector specification: a vector is FP32");
    SAY(f, "VMADD", "k", "1", "x");
    assert_false(vector_arg_parse_numbers(&f->c, 2, 2, slice_of("name"), &a));
    assert_refused(f, "-ERR invalid vector specification: element 'name': component 2 is 'x'");
    SAY(f, "VADD", "k", "TEXT", "words", "e");
    assert_false(vector_arg_parse(&f->c, 2, &a)); /* nobody has embedded it */
    assert_refused(f, "-ENGINE ");
}

static void reduce_comes_before_the_vector(void **state)
{
    struct fixture *f = *state;
    struct vector_arg a;
    uint32_t dim;
    int at = 2;
    SAY(f, "VADD", "k", "VALUES", "1", "5", "REDUCE");
    assert_true(vector_arg_reduce(&f->c, &at, &dim));
    assert_true(at == 2 && dim == 0);
    SAY(f, "VADD", "k", "reduce", "2", "VALUES", "4", "1", "2", "3", "4", "e");
    assert_true(vector_arg_reduce(&f->c, &at, &dim));
    assert_true(at == 4 && dim == 2);
    assert_true(vector_arg_parse(&f->c, at, &a));
    assert_true(vector_arg_project(&f->c, &a, dim));
    /* Rows 0 and 1 of the Hadamard matrix over the root of 4. */
    assert_int_equal(a.dim, 2);
    assert_float_equal(a.values[0], (1 + 2 + 3 + 4) / 2.0, 1e-6);
    assert_float_equal(a.values[1], (1 - 2 + 3 - 4) / 2.0, 1e-6);
    assert_false(vector_arg_project(&f->c, &a, 3));
    assert_refused(f, "-ERR invalid vector specification: REDUCE to 3 dimensions");
    static const char *const wrong[] = {"0", "-1", "x", "", "4294967297"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        at = 2;
        SAY(f, "VADD", "k", "REDUCE", wrong[i], "VALUES", "1", "1", "e");
        assert_false(vector_arg_reduce(&f->c, &at, &dim));
        assert_refused(f, "-ERR invalid vector specification: REDUCE takes a number");
    }
}

static struct command_texts texts_of(struct fixture *f)
{
    struct command_texts t = {0};
    command_by_name(f->argv[0])->texts(f->argv, f->c.argc, &t);
    return t;
}

static void the_text_is_found_and_truncate_is_an_option(void **state)
{
    struct fixture *f = *state;
    SAY(f, "VADD", "k", "TEXT", "words", "e");
    struct command_texts t = texts_of(f);
    assert_true(t.n == 1 && t.first == &f->argv[3] && !t.truncate);
    SAY(f, "VADD", "k", "REDUCE", "10", "text", "words", "e", "M", "8", "TRUNCATE");
    t = texts_of(f);
    assert_true(t.n == 1 && t.first == &f->argv[5] && t.truncate);
    SAY(f, "VADD", "k", "TEXT", "words", "TRUNCATE"); /* an element of that name */
    t = texts_of(f);
    assert_true(t.n == 1 && !t.truncate);
    SAY(f, "VADD", "k", "TEXT", "words", "e", "SETATTR", "TRUNCATE");
    t = texts_of(f);
    assert_true(t.n == 1 && !t.truncate);
    SAY(f, "VADD", "k", "VALUES", "1", "TEXT");
    assert_int_equal(texts_of(f).n, 0);
    SAY(f, "VADD", "k", "REDUCE", "2", "VALUES", "1", "1", "e");
    assert_int_equal(texts_of(f).n, 0);
}

/* Every allocation that fails is an error, and nothing leaks (ASan). */
static void memory_may_run_out(void **state)
{
    struct fixture *f = *state;
    static char many[64 * 1024];
    struct vector_arg a;
    SAY(f, "VADD", "k", "FP32", "", "e");
    f->argv[3] = (struct slice){.p = many, .n = sizeof many};
    mem_fail_after(1);
    bool ok = vector_arg_parse(&f->c, 2, &a);
    mem_fail_after(0);
    assert_false(ok);
    assert_true(vector_arg_parse(&f->c, 2, &a));
    arena_reset(&f->arena);
    assert_true(vector_arg_parse(&f->c, 2, &a));
    mem_fail_after(1);
    ok = vector_arg_project(&f->c, &a, 9000);
    mem_fail_after(0);
    assert_false(ok);
}

static int enter(void **state)
{
    (void)state;
    command_init();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(values_become_floats, setup, teardown),
        cmocka_unit_test_setup_teardown(a_blob_may_lie_anywhere, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_wrong_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(reduce_comes_before_the_vector, setup, teardown),
        cmocka_unit_test_setup_teardown(the_text_is_found_and_truncate_is_an_option, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(memory_may_run_out, setup, teardown),
    };
    return cmocka_run_group_tests(tests, enter, NULL);
}
