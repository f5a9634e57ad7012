#include "tests/unit/unit_dir.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    unit_dir_make(dir);
    return 0;
}

static void path_of(char *out, size_t n, const char *name)
{
    snprintf(out, n, "%s/%s", dir, name);
}

static void test_whole_files(void **state)
{
    (void)state;
    char path[128];
    struct err e;
    struct buf b;
    buf_init(&b);
    path_of(path, sizeof path, "a");
    assert_int_equal(file_write_whole(path, "first", 5, &e), 0);
    assert_int_equal(file_write_whole(path, "second!", 7, &e), 0);
    assert_int_equal(file_read_whole(path, 100, &b, &e), 0);
    assert_int_equal(b.len, 7);
    assert_memory_equal(b.data, "second!", 7);
    assert_int_equal(file_read_whole(path, 6, &b, &e), KITH_ELIMIT);
    assert_int_equal(file_read_whole("/nowhere/at/all", 6, &b, &e), KITH_ENOTFOUND);
    assert_non_null(strstr(e.message, "/nowhere/at/all"));
    assert_int_equal(file_read_whole(dir, 6, &b, &e), KITH_EINVAL);
    buf_deinit(&b);
    assert_int_equal(file_write_whole(path, "", 0, &e), 0);
    buf_init(&b);
    assert_int_equal(file_read_whole(path, 6, &b, &e), 0); /* an empty one is empty */
    assert_int_equal(b.len, 0);
    buf_deinit(&b);
    assert_int_equal(file_write_whole(path, "second!", 7, &e), 0);
    struct file_map m;
    assert_int_equal(file_map_open(&m, path, &e), 0);
    assert_int_equal(m.bytes, 7);
    file_map_close(&m);
}

static void replace(const char *path, char letter, size_t n, struct err *e)
{
    char piece[1000];
    struct file_replacement r;
    int rc = file_replace_begin(&r, path, n, 0640, e);
    memset(piece, letter, sizeof piece);
    for (size_t done = 0; rc == 0 && done < n; done += sizeof piece)
        rc = file_replace_append(&r, piece, sizeof piece, e);
    if (rc == 0)
        rc = file_replace_commit(&r, e);
    file_replace_cancel(&r);
    e->code = rc;
}

static void test_replacements(void **state)
{
    (void)state;
    char path[128], temporary[140];
    struct err e = {0};
    struct buf b = {0};
    struct file_replacement r, second;
    path_of(path, sizeof path, "replaced");
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    /* What a killed writer left is longer, and goes. */
    assert_int_equal(file_write_whole(temporary, path, sizeof path, &e), 0);
    assert_int_equal(truncate(temporary, 100000), 0);
    assert_int_equal(file_replace_begin(&r, path, 8, 0640, &e), 0);
    assert_int_equal(file_replace_append(&r, "one", 3, &e), 0);
    assert_false(file_exists(path));
    assert_int_equal(file_replace_begin(&second, path, 8, 0640, &e), KITH_EBUSY);
    file_replace_cancel(&second);
    assert_int_equal(file_replace_append(&r, "two", 3, &e), 0);
    assert_int_equal(file_replace_commit(&r, &e), 0);
    file_replace_cancel(&r);
    assert_false(file_exists(temporary));
    assert_int_equal(file_read_whole(path, 64, &b, &e), 0);
    assert_int_equal(b.len, 6);
    assert_memory_equal(b.data, "onetwo", 6);
    assert_int_equal(file_replace_begin(&r, path, 8, 0640, &e), 0);
    assert_int_equal(file_replace_append(&r, "three", 5, &e), 0);
    file_replace_cancel(&r);
    assert_false(file_exists(temporary));
    buf_clear(&b);
    assert_int_equal(file_read_whole(path, 64, &b, &e), 0);
    assert_memory_equal(b.data, "onetwo", 6);
    buf_deinit(&b);
}

/* Every file that ever had the name is that of one writer, and whole: also where one of them
 * opened the temporary file just before another renamed it. */
static void test_replacements_at_once(void **state)
{
    (void)state;
    enum { N_WRITERS = 4, ROUNDS = 1500, BYTES = 20000 };
    char path[128];
    struct err e = {0};
    pid_t pids[N_WRITERS];
    path_of(path, sizeof path, "contended");
    for (int i = 0; i < N_WRITERS; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] != 0)
            continue;
        for (int round = 0; round < ROUNDS; round++) {
            struct file_map m;
            replace(path, (char)('a' + i), BYTES, &e);
            if ((e.code != 0 && e.code != KITH_EBUSY) || file_map_open(&m, path, &e))
                continue;
            const char *p = m.data;
            if (m.bytes != BYTES || p[0] != p[BYTES - 1] || memcmp(p, p + 1, BYTES - 1) != 0)
                _exit(1);
            file_map_close(&m);
        }
        _exit(0);
    }
    for (int i = 0; i < N_WRITERS; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
}

static void test_directories(void **state)
{
    (void)state;
    char path[128];
    struct err e;
    path_of(path, sizeof path, "x/y/z");
    assert_int_equal(file_make_dirs(path, &e), 0);
    assert_int_equal(file_make_dirs(path, &e), 0);
    path_of(path, sizeof path, "plain");
    assert_int_equal(file_write_whole(path, "", 0, &e), 0);
    assert_true(file_make_dirs(path, &e) < 0);
}

static void test_lock_has_one_holder(void **state)
{
    (void)state;
    char path[128];
    struct err e;
    path_of(path, sizeof path, "lock");
    int fd = file_lock(path, &e);
    assert_true(fd >= 0);
    pid_t child = fork();
    if (child == 0) {
        struct err why;
        char pid[32];
        snprintf(pid, sizeof pid, "%d", (int)getppid());
        int rc = file_lock(path, &why);
        _exit(rc == KITH_EBUSY && strstr(why.message, pid) ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    file_unlock(fd);
    fd = file_lock(path, &e);
    assert_true(fd >= 0);
    file_unlock(fd);
}

static void test_errors(void **state)
{
    (void)state;
    struct err e;
    assert_int_equal(err_set_errno(&e, 28, "write of %d bytes", 5), KITH_ENOSPC);
    assert_string_equal(e.message, "write of 5 bytes: No space left on device");
    assert_int_equal(err_wrap(&e, "log %s", "x"), KITH_ENOSPC);
    assert_string_equal(e.message, "log x: write of 5 bytes: No space left on device");
    assert_int_equal(err_set(NULL, KITH_EIO, "nowhere"), KITH_EIO);
    char long_text[2000];
    memset(long_text, 'a', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    err_set(&e, KITH_EIO, "%s", long_text);
    err_wrap(&e, "%s", long_text);
    assert_int_equal(strlen(e.message), ERR_MESSAGE_MAX - 1);
    assert_string_equal(err_name(KITH_ENOSPC), "no space");
    assert_string_equal(err_name(-9999), "unknown");
}

static void test_log_lines(void **state)
{
    (void)state;
    char path[128];
    struct buf b;
    buf_init(&b);
    path_of(path, sizeof path, "log");
    assert_int_equal(log_open(path, "test"), 0);
    log_info("one %d", 1);
    log_debug("hidden");
    log_set_level(LOG_DEBUG);
    log_debug("shown");
    log_set_level(LOG_INFO);
    log_open(NULL, "test");
    assert_int_equal(file_read_whole(path, 4096, &b, NULL), 0);
    buf_append(&b, "", 1);
    assert_non_null(strstr(b.data, "verbose one 1\n"));
    assert_null(strstr(b.data, "hidden"));
    assert_non_null(strstr(b.data, "debug shown\n"));
    assert_int_equal(log_level_parse("warning"), LOG_WARNING);
    assert_true(log_level_parse("loud") < 0);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_files),
        cmocka_unit_test(test_replacements),
        cmocka_unit_test(test_replacements_at_once),
        cmocka_unit_test(test_directories),
        cmocka_unit_test(test_lock_has_one_holder),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_log_lines),
    };
    return cmocka_run_group_tests(tests, make_dir, NULL);
}
