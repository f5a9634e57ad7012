#pragma once
/* Walks an LMDB data file with code of our own, before LMDB sees it. For the storage room only.
 *
 * LMDB has no page checksums and trusts every number in its file, so a damaged one makes it
 * abort, crash, or give a wrong answer. This walk reads the meta pages and all branch and leaf
 * pages (not the overflow pages, which hold the values and have checksums of their own) and
 * holds them to the format of LMDB 0.9 (data version 1, 64 bits):
 *
 *   - both meta pages: magic, version, page size, flags, transaction numbers that follow each
 * other;
 *   - every page: its own number, its kind, bounds, nodes that tile the page exactly;
 *   - every tree: keys in order and between the parent's separators, the depth, and the counts
 * of entries and pages of each kind that the tree's record gives;
 *   - every page belongs to one tree or to the list of free pages, and to one place in it. So a
 *     page number that was changed to that of a stale page is found: the stale page is also
 * free.
 *
 * A key is 8 bytes in every table of ours; the walk sums a hash of the keys of each table,
 * which the store compares with the sum it wrote, so that a changed key is found without
 * reading values. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { LMDB_PAGE_BYTES = 4096, LMDB_TABLES_MAX = 8 };

struct lmdb_table {
    char name[16];
    uint64_t n_entries;
    uint64_t key_sum; /* of lmdb_key_hash of every key */
};

struct lmdb_summary {
    bool empty; /* nothing was ever committed */
    uint64_t txnid;
    uint64_t n_pages, n_free, n_lost; /* up to the last one used; lost: in no tree, not free */
    uint32_t n_tables;
    struct lmdb_table tables[LMDB_TABLES_MAX];
};

/* One entry of a table: its value lies in the file at `offset`. */
typedef int lmdb_entry_fn(void *arg, int fd, const struct lmdb_table *table, const void *key,
                          size_t key_bytes, uint64_t offset, size_t bytes, struct err *e);
typedef void lmdb_note_fn(void *arg, const char *where, const char *what);

struct lmdb_check_options {
    lmdb_note_fn *note; /* with it findings are noted and the walk goes on; else the first is
                           returned as KITH_ECORRUPT */
    void *note_arg;
    lmdb_entry_fn *entry; /* may be NULL */
    void *entry_arg;
};

uint64_t lmdb_key_hash(const void *key, size_t bytes);

/* Returns the number of findings, or a negative code. */
int lmdb_check(const char *path, const struct lmdb_check_options *options,
               struct lmdb_summary *out, struct err *e);
