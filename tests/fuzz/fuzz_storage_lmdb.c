/* The walk over an LMDB data file, fed with any file. What must hold: no crash, whatever the
 * pages say; every entry it reports lies inside the file; noting findings and stopping at the
 * first agree on whether there is one. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "storage/lmdb_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int see_entry(void *arg, int fd, const struct lmdb_table *table, const void *key,
                     size_t key_bytes, uint64_t offset, size_t bytes, struct err *e)
{
    (void)fd, (void)table, (void)key, (void)key_bytes, (void)e;
    size_t n = *(const size_t *)arg;
    if (offset > n || bytes > n - offset)
        abort();
    return 0;
}

static void count(void *arg, const char *where, const char *what)
{
    (void)where, (void)what;
    ++*(uint64_t *)arg;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static int fd = -1;
    static char path[64];
    struct err e;
    if (fd < 0) {
        fd = memfd_create("lmdb", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (fd < 0 || ftruncate(fd, 0) != 0 || file_pwrite_all(fd, data, n, 0, &e) != 0)
        abort();
    struct lmdb_summary summary;
    uint64_t noted = 0;
    struct lmdb_check_options notes = {
        .note = count, .note_arg = &noted, .entry = see_entry, .entry_arg = &n};
    struct lmdb_check_options first = {.entry = see_entry, .entry_arg = &n};
    int findings = lmdb_check(path, &notes, &summary, &e);
    int rc = lmdb_check(path, &first, &summary, &e);
    if (findings == 0 && rc != 0)
        abort();
    if (findings > 0 && rc == 0 && summary.n_lost == 0)
        abort();
    return 0;
}
