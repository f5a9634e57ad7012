/* Whether tiles are believed: each way in which a processor, a kernel or a virtual machine may
 * fail to keep what it announces ends in an error and not in the end of the program. */

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/amx.h"
#include "tests/unit/unit.h"

enum { PANEL = 32, BLOCK_BYTES = PANEL * (INT8_BLOCK + (int)sizeof(float)) };

/* The formula, for panels as wide as AVX-512's. */
static float element(const struct int8_rows *a, uint32_t r, const char *panel,
                     uint32_t n_blocks, const float *side_weights, uint32_t j)
{
    float y = 0;
    for (uint32_t b = 0; b < n_blocks; b++, panel += BLOCK_BYTES) {
        int32_t sum = 0;
        float scale;
        memcpy(&scale, panel + PANEL * INT8_BLOCK + j * sizeof scale, sizeof scale);
        for (uint32_t k = 0; k < INT8_BLOCK; k++)
            sum += a->codes[r * a->stride + b * INT8_BLOCK + k] *
                   (int8_t)panel[k / 4 * 4 * PANEL + 4 * j + k % 4];
        y += scale * (float)sum;
    }
    y *= a->ranges[r].scale;
    for (uint32_t t = 0; t < N_SIDE; t++)
        y += a->side[r][t] * side_weights[t * PANEL + j];
    return y;
}

static void right(const struct int8_rows *a, uint32_t first, uint32_t n_rows,
                  const void *panels, uint32_t n_blocks, uint32_t n_panels,
                  const float *side_weights, float *c, size_t c_stride)
{
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t j = 0; j < n_panels * PANEL; j++)
            c[r * c_stride + j] =
                element(a, first + r, (const char *)panels + j / PANEL * n_blocks * BLOCK_BYTES,
                        n_blocks, side_weights + j / PANEL * N_SIDE * PANEL, j % PANEL);
}

#define PRODUCT(name)                                                                          \
    static void name(const struct int8_rows *a, uint32_t first, uint32_t n_rows,               \
                     const void *panels, uint32_t n_blocks, uint32_t n_panels,                 \
                     const float *side_weights, float *c, size_t c_stride)
#define PASS_ON a, first, n_rows, panels, n_blocks, n_panels, side_weights, c, c_stride

static bool on_first_thread(void)
{
    return syscall(SYS_gettid) == getpid();
}

/* The least that can be wrong. */
PRODUCT(wrong_in_the_last)
{
    right(PASS_ON);
    c[(n_rows - 1) * c_stride + n_panels * PANEL - 1] += 0.01f;
}

PRODUCT(no_number)
{
    right(PASS_ON);
    c[0] = __builtin_nanf("");
}

PRODUCT(does_nothing)
{
    (void)a, (void)first, (void)n_rows, (void)panels, (void)n_blocks, (void)n_panels;
    (void)side_weights, (void)c, (void)c_stride;
}

PRODUCT(dies)
{
    right(PASS_ON);
    raise(SIGILL);
}

PRODUCT(dies_on_another_thread)
{
    right(PASS_ON);
    if (!on_first_thread())
        raise(SIGILL);
}

PRODUCT(wrong_on_another_thread)
{
    right(PASS_ON);
    if (!on_first_thread())
        c[0] += 1;
}

static int asked;

static bool yes(void)
{
    return true;
}

static bool no(void)
{
    return false;
}

static int permitted(void)
{
    asked++;
    return 0;
}

static int not_permitted(void)
{
    asked++;
    return EPERM;
}

static const struct product_kernels oracle = {.panel = PANEL, .int8 = right};

static int check(bool (*announced)(void), int (*permit)(void), const struct product_kernels *k,
                 struct err *e)
{
    const struct amx_steps steps = {announced, permit, k, &oracle};
    memset(e, 0, sizeof *e);
    return amx_check(&steps, e);
}

static void believed_when_right(void **state)
{
    (void)state;
    struct err e;
    assert_int_equal(check(yes, permitted, &oracle, &e), 0);
#if KITH_EMULATED_ISAS
    const struct engine_kernels *k;
    assert_int_equal(engine_kernels_named(&k, "amx", &e), 0);
    assert_int_equal(check(yes, permitted, k->product, &e), 0);
#endif
}

static void refused(const struct product_kernels *k, const char *why)
{
    struct err e;
    assert_int_equal(check(yes, permitted, k, &e), KITH_EUNSUPPORTED);
    if (!strstr(e.message, why))
        fail_msg("'%s' does not say '%s'", e.message, why);
}

static void survives_the_signal(void **state)
{
    (void)state;
    refused(&(struct product_kernels){.panel = PANEL, .int8 = dies}, "signal 4");
    refused(&(struct product_kernels){.panel = PANEL, .int8 = dies_on_another_thread},
            "signal 4");
    /* A handler of this process does not hide it. */
    signal(SIGILL, SIG_IGN);
    refused(&(struct product_kernels){.panel = PANEL, .int8 = dies}, "signal 4");
    signal(SIGILL, SIG_DFL);
}

static void sees_wrong_products(void **state)
{
    (void)state;
    refused(&(struct product_kernels){.panel = PANEL, .int8 = wrong_in_the_last}, "wrong");
    refused(&(struct product_kernels){.panel = PANEL, .int8 = wrong_on_another_thread},
            "wrong");
    refused(&(struct product_kernels){.panel = PANEL, .int8 = no_number}, "wrong");
    refused(&(struct product_kernels){.panel = PANEL, .int8 = does_nothing}, "wrong");
}

static void asks_in_order(void **state)
{
    (void)state;
    struct product_kernels never = {.panel = PANEL, .int8 = dies};
    struct err e;
    asked = 0;
    assert_int_equal(check(no, permitted, &never, &e), KITH_EUNSUPPORTED);
    assert_non_null(strstr(e.message, "no AMX"));
    assert_int_equal(asked, 0);
    assert_int_equal(check(yes, not_permitted, &never, &e), KITH_EUNSUPPORTED);
    assert_non_null(strstr(e.message, "not permit"));
    assert_int_equal(asked, 1);
}

/* What was found out about this machine is what is used. */
static void the_table_follows(void **state)
{
    (void)state;
    const struct engine_kernels *k;
    struct err e = {0};
    int rc = engine_kernels_named(&k, "amx", &e);
    if (!amx_announced() || rc == 0)
        assert_string_equal(engine_kernels_refused(), "");
    else
        assert_string_not_equal(engine_kernels_refused(), "");
    printf("amx %s%s\n", rc ? e.message : "is used", engine_kernels_refused());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(believed_when_right), cmocka_unit_test(survives_the_signal),
        cmocka_unit_test(sees_wrong_products), cmocka_unit_test(asks_in_order),
        cmocka_unit_test(the_table_follows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
