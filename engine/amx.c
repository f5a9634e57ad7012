#include "engine/amx.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/mem.h"
#include "base/random.h"

/* Two whole tiles of rows and a rest, a whole chunk of blocks and a rest. */
enum {
    PANEL_MAX = 32,
    ROWS = 37,
    BLOCKS = 5,
    PANELS = 2,
    N_IN = BLOCKS * INT8_BLOCK,
    WIDTH = PANELS * PANEL_MAX,
    BLOCK_FLOATS = PANEL_MAX * (INT8_BLOCK / (int)sizeof(float) + 1),
    SEED = 4,
    PATIENCE_S = 10
};
enum child_status { RIGHT, WRONG, NO_THREAD };

struct trial {
    const struct product_kernels *tiles;
    uint8_t codes[ROWS][N_IN];
    struct int8_range ranges[ROWS];
    float side[ROWS][N_SIDE];
    float panels[PANELS * BLOCKS * BLOCK_FLOATS]; /* blocks as kernels.h draws them */
    float side_weights[PANELS * N_SIDE * PANEL_MAX];
    float expected[ROWS][WIDTH], got[ROWS][WIDTH];
};

bool amx_announced(void)
{
#if defined(__x86_64__)
    enum { TILE = 1 << 24, INT8 = 1 << 25 }; /* leaf 7, EDX */
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILE) && (d & INT8);
#else
    return false;
#endif
}

int amx_permit(void)
{
#if defined(__x86_64__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 0 : errno;
#else
    return ENOSYS;
#endif
}

static void multiply(const struct product_kernels *k, struct trial *t, float (*c)[WIDTH])
{
    const struct int8_rows rows = {&t->codes[0][0], N_IN, t->ranges, 1, t->side};
    k->int8(&rows, 0, ROWS, t->panels, BLOCKS, PANELS, t->side_weights, c[0], WIDTH);
}

static void trial_fill(struct trial *t)
{
    struct rng rng;
    rng_seed(&rng, SEED);
    for (int r = 0; r < ROWS; r++) {
        for (int k = 0; k < N_IN; k++)
            t->codes[r][k] = (uint8_t)(1 + rng_below(&rng, 255));
        t->ranges[r].scale = 0.01f;
        t->side[r][SIDE_BIAS] = 1;
    }
    for (int b = 0; b < PANELS * BLOCKS; b++) {
        float *block = t->panels + b * BLOCK_FLOATS;
        int8_t *weights = (int8_t *)block;
        for (int i = 0; i < PANEL_MAX * INT8_BLOCK; i++)
            weights[i] = (int8_t)((int)rng_below(&rng, 255) - 127);
        for (int j = 0; j < PANEL_MAX; j++)
            block[PANEL_MAX * INT8_BLOCK / (int)sizeof(float) + j] =
                0.001f * (float)(1 + rng_below(&rng, 8));
    }
    for (int i = 0; i < PANELS * N_SIDE * PANEL_MAX; i++)
        t->side_weights[i] = (float)rng_unit(&rng);
}

static enum child_status try_once(struct trial *t)
{
    memset(t->got, 0, sizeof t->got);
    multiply(t->tiles, t, t->got);
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < WIDTH; j++)
            if (!(fabsf(t->got[r][j] - t->expected[r][j]) <=
                  1e-4f * (1 + fabsf(t->expected[r][j]))))
                return WRONG;
    return RIGHT;
}

static void *try_on_a_thread(void *arg)
{
    return try_once(arg) == RIGHT ? arg : NULL;
}

/* The child. It may have been made of a process with threads, so it asks for no memory but a
 * thread's; what it inherits of handlers would only get in the way. */
static enum child_status try_all(struct trial *t)
{
    static const int deadly[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGALRM};
    pthread_t thread;
    void *right = NULL;
    prctl(PR_SET_DUMPABLE, 0); /* no core file of a death that is looked for */
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
        signal(deadly[i], SIG_DFL);
    alarm(PATIENCE_S);
    if (try_once(t) != RIGHT)
        return WRONG;
    if (pthread_create(&thread, NULL, try_on_a_thread, t) || pthread_join(thread, &right))
        return NO_THREAD;
    return right ? RIGHT : WRONG;
}

static int try_in_a_child(struct trial *t, struct err *e)
{
    int status;
    pid_t pid = fork(), got;
    if (pid < 0)
        return err_set(e, KITH_EUNSUPPORTED, "no process to try AMX's tiles in: %s",
                       strerror(errno));
    if (pid == 0)
        _exit(try_all(t));
    do
        got = waitpid(pid, &status, 0);
    while (got < 0 && errno == EINTR);
    if (got != pid)
        return err_set(e, KITH_EUNSUPPORTED, "AMX was tried, and the outcome is lost");
    if (WIFSIGNALED(status))
        return err_set(e, KITH_EUNSUPPORTED,
                       "AMX is announced, but a program that used tiles was ended by signal %d "
                       "(%s)",
                       WTERMSIG(status), strsignal(WTERMSIG(status)));
    switch (WEXITSTATUS(status)) {
    case RIGHT:
        return 0;
    case WRONG:
        return err_set(e, KITH_EUNSUPPORTED, "AMX is announced, but its products are wrong");
    default:
        return err_set(e, KITH_EUNSUPPORTED, "AMX could not be tried on a thread");
    }
}

int amx_check(const struct amx_steps *steps, struct err *e)
{
    if (!steps->announced())
        return err_set(e, KITH_EUNSUPPORTED, "this processor has no AMX");
    int refused = steps->permit();
    if (refused)
        return err_set(e, KITH_EUNSUPPORTED,
                       "AMX is announced, but the kernel does not permit it: %s",
                       strerror(refused));
    if (steps->tiles->panel != PANEL_MAX || steps->oracle->panel != PANEL_MAX)
        return err_set(e, KITH_EUNSUPPORTED, "AMX is tried on panels of %d columns",
                       (int)PANEL_MAX);
    struct trial *t = mem_alloc_aligned(64, (sizeof *t + 63) / 64 * 64);
    if (!t)
        return err_set(e, KITH_ENOMEM, "out of memory for a trial of AMX");
    memset(t, 0, sizeof *t);
    t->tiles = steps->tiles;
    trial_fill(t);
    multiply(steps->oracle, t, t->expected);
    int rc = try_in_a_child(t, e);
    mem_free(t);
    return rc;
}
