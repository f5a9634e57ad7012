/* Giving the room of free pages back.
 *
 * A checkpoint that rewrites the links of a growing index frees as many pages as it writes, and
 * LMDB keeps free pages in the file for later. They cost disk, and worse, memory: they were
 * written a moment ago, so the page cache holds them beside the pages that are in use. A hole
 * punched in the file takes both away, and LMDB needs no word of it: a free page is never read
 * before it is written, and the file's length stays.
 *
 * Which pages: those that LMDB itself may reuse in its next transaction, that is, those freed
 * by a transaction before the newest. The newest commit and the one before it, to which LMDB
 * falls back when the last meta page is torn, stay whole. What is free is read from the newest
 * commit's own list of free pages (LMDB's table 0: transaction -> count, then page numbers).
 *
 * What the newest commit freed can go after the next one; a caller that has nothing more to
 * write learns of it (left_bytes) and may make an empty one.
 *
 * Runs shorter than TRIM_RUN_PAGES are left alone: a hole each would make the file a sieve, and
 * they are the first that LMDB takes again. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "storage/lmdb_check.h"
#include "storage/store.h"
#include "storage/store_guard.h"
#include "storage/store_internal.h"

enum { TRIM_RUN_PAGES = 8, FREE_TABLE = 0 };

struct free_pages {
    struct store *s;
    MDB_txn *txn;
    MDB_cursor *cursor;
    uint64_t *pages;
    size_t n, cap;
    uint64_t n_later; /* pages that the newest commit freed */
    bool no_memory;
};

static bool take(struct free_pages *f, const char *p, uint64_t n)
{
    if (f->n + n > f->cap) {
        size_t cap = f->cap * 2 > f->n + n ? f->cap * 2 : f->n + (size_t)n;
        uint64_t *pages = mem_realloc_n(f->pages, cap, sizeof *pages);
        if (!pages) {
            f->no_memory = true;
            return false;
        }
        f->pages = pages;
        f->cap = cap;
    }
    memcpy(f->pages + f->n, p, (size_t)n * sizeof *f->pages);
    f->n += (size_t)n;
    return true;
}

static int do_collect(void *arg)
{
    struct free_pages *f = arg;
    MDB_val key, value;
    int rc = mdb_txn_begin(f->s->env->mdb, NULL, MDB_RDONLY, &f->txn);
    if (rc == 0)
        rc = mdb_cursor_open(f->txn, FREE_TABLE, &f->cursor);
    if (rc != 0)
        return rc;
    uint64_t newest = mdb_txn_id(f->txn);
    MDB_cursor_op op = MDB_FIRST;
    while ((rc = mdb_cursor_get(f->cursor, &key, &value, op)) == 0) {
        op = MDB_NEXT;
        if (key.mv_size != sizeof(uint64_t) || value.mv_size < sizeof(uint64_t))
            return MDB_CORRUPTED;
        uint64_t n = load_u64(value.mv_data);
        if (n > value.mv_size / sizeof(uint64_t) - 1)
            return MDB_CORRUPTED;
        if (load_u64(key.mv_data) >= newest)
            f->n_later += n;
        else if (!take(f, (const char *)value.mv_data + sizeof(uint64_t), n))
            break;
    }
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int do_leave(void *arg)
{
    struct free_pages *f = arg;
    if (f->cursor)
        mdb_cursor_close(f->cursor);
    if (f->txn)
        mdb_txn_abort(f->txn);
    return 0;
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int punch(int fd, uint64_t page, uint64_t n)
{
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)(page * LMDB_PAGE_BYTES), (off_t)(n * LMDB_PAGE_BYTES));
}

static int punch_runs(struct free_pages *f, int fd, uint64_t n_file_pages, struct err *e)
{
    if (f->n == 0)
        return 0;
    qsort(f->pages, f->n, sizeof *f->pages, by_number);
    for (size_t i = 0, end; i < f->n; i = end) {
        for (end = i + 1; end < f->n && f->pages[end] == f->pages[end - 1] + 1; end++)
            ;
        /* The two meta pages are never free; a list that says so is damaged. A page past the
         * end of the file was allocated and freed without being written. */
        if (f->pages[i] < 2)
            return err_set(e, KITH_ECORRUPT, "%s: the page of a meta record is listed as free",
                           f->s->path);
        if (f->pages[i] >= n_file_pages)
            break;
        if (end - i < TRIM_RUN_PAGES || punch(fd, f->pages[i], end - i) == 0)
            continue;
        if (errno == EOPNOTSUPP)
            return KITH_EUNSUPPORTED;
        return err_set_errno(e, errno, "cannot give free pages of %s back", f->s->path);
    }
    return 0;
}

/* Whether the file holds more room than its pages in use and `slack`. */
static bool worth_it(const struct free_pages *f, const struct stat *st, uint64_t slack)
{
    uint64_t free_bytes = (f->n + f->n_later) * LMDB_PAGE_BYTES;
    uint64_t file_bytes = (uint64_t)st->st_size, held = (uint64_t)st->st_blocks * 512;
    uint64_t live = file_bytes > free_bytes ? file_bytes - free_bytes : 0;
    return held > live + slack;
}

int store_trim(struct store *s, uint64_t slack_bytes, uint64_t *left_bytes, struct err *e)
{
    *left_bytes = 0;
    if (!atomic_load(&s->healthy))
        return store_unhealthy(s, e);
    /* Readers of an environment that broke may stand on older commits. */
    if (s->env->next || s->env->fatal || s->old.txn)
        return 0;
    struct free_pages f = {.s = s};
    int rc = store_convert(s, guarded(do_collect, &f), e, "cannot read the free pages");
    guarded(do_leave, &f);
    int fd = -1;
    struct stat st;
    if (rc == 0 && f.no_memory)
        rc = err_set(e, KITH_ENOMEM, "out of memory for the list of free pages");
    if (rc == 0 && ((fd = open(s->path, O_RDWR | O_CLOEXEC)) < 0 || fstat(fd, &st) != 0))
        rc = err_set_errno(e, errno, "cannot open %s", s->path);
    if (rc == 0 && worth_it(&f, &st, slack_bytes)) {
        rc = punch_runs(&f, fd, (uint64_t)st.st_size / LMDB_PAGE_BYTES, e);
        if (rc == 0)
            *left_bytes = f.n_later * LMDB_PAGE_BYTES;
        else if (rc == KITH_EUNSUPPORTED)
            rc = 0; /* a file system that keeps what it was given */
    }
    if (fd >= 0)
        close(fd);
    mem_free(f.pages);
    return rc;
}
