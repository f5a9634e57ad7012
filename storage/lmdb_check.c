/* The walk. Pages are read with pread, so that a bad sector is an error and not a signal, and a
 * file that is cut meanwhile is a short read. A bitmap of one bit a page holds who was seen; it
 * is allocated only after the meta page's size was held against the file's.
 *
 * Why lost pages (in no tree and not free) are counted but no error: every wrong page number
 * inside a tree or the free list points to a page that is also somewhere else, unless pages can
 * be lost; LMDB loses none, and if a version of it ever did, refusing the whole store would be
 * the worse answer. kith-check tells of them. */
#include "storage/lmdb_check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"

/* The format: page = { u64 number | u16 pad | u16 flags | u16 lower, u16 upper or u32 n_pages
 * }, then u16 node offsets up to `lower`, free space, nodes from `upper` on. node = { u16 lo |
 * u16 hi | u16 flags | u16 key bytes | key | data }: in a branch lo, hi and flags are the
 * child's number, in a leaf lo and hi are the data's size. */
enum {
    PAGE_HEADER = 16,
    PAGE_BRANCH = 1,
    PAGE_LEAF = 2,
    PAGE_OVERFLOW = 4,
    PAGE_META = 8,
    NODE_HEADER = 8,
    NODE_BIG = 1,
    NODE_TABLE = 2,
    KEY_BYTES_MAX = 511,
    DEPTH_MAX = 32,
    DB_BYTES = 48,
    DB_INTEGER_KEY = 8,
    META_MAGIC = (int)0xBEEFC0DE,
    META_VERSION = 1,
    META_BYTES = 136,
    /* A transaction of ours dirties fewer pages than this, so the file is never shorter by more
     * (LMDB does not write pages at the end that were freed again in the same transaction). */
    PAGES_UNWRITTEN_MAX = 131072 * 17
};

static const uint64_t NO_PAGE = UINT64_MAX;

/* One tree's record: MDB_db. */
struct tree {
    char name[16];
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
};

struct meta {
    uint64_t txnid, last_page;
    struct tree free, main;
};

struct walk {
    const struct lmdb_check_options *options;
    const char *path;
    struct err *e;
    struct lmdb_summary *out;
    int fd;
    int findings;
    int rc; /* an error that ends the walk: a finding without `note`, i/o, memory */
    uint64_t file_pages, n_pages;
    unsigned char *seen;
    struct meta meta;
    char *pages; /* DEPTH_MAX + 1 pages: one a level */
};

/* What one tree's walk counts, and what its parent level demands. */
struct count {
    const struct tree *tree;
    struct lmdb_table *table; /* NULL for the free list and the main tree */
    uint64_t branch_pages, leaf_pages, overflow_pages, entries;
    char last_key[KEY_BYTES_MAX + 1];
    size_t last_key_bytes;
    bool any_key;
};

uint64_t lmdb_key_hash(const void *key, size_t bytes)
{
    return hash64(key, bytes);
}

/* Returns false, so that a check can return it. */
__attribute__((format(printf, 3, 4))) static bool bad(struct walk *w, uint64_t page,
                                                      const char *format, ...)
{
    char what[180], where[ERR_MESSAGE_MAX - 190];
    va_list ap;
    va_start(ap, format);
    vsnprintf(what, sizeof what, format, ap);
    va_end(ap);
    snprintf(where, sizeof where, "%.280s: page %llu", w->path, (unsigned long long)page);
    w->findings++;
    if (w->options->note)
        w->options->note(w->options->note_arg, where, what);
    else
        w->rc = err_set(w->e, KITH_ECORRUPT, "%s: %s", where, what);
    return false;
}

static bool read_page(struct walk *w, uint64_t page, void *to)
{
    if (page >= w->file_pages)
        return bad(w, page, "lies after the end of the file");
    ssize_t got = file_pread_all(w->fd, to, LMDB_PAGE_BYTES, page * LMDB_PAGE_BYTES, w->e);
    if (got == LMDB_PAGE_BYTES)
        return true;
    if (got >= 0)
        return bad(w, page, "the file became shorter");
    w->rc = (int)got;
    return false;
}

/* Marks n pages as seen; false when one is out of range or was seen before. */
static bool claim_pages(struct walk *w, uint64_t page, uint64_t n, const char *who)
{
    if (page < 2 || page >= w->n_pages || n > w->n_pages - page)
        return bad(w, page, "%s: no page of the file has this number", who);
    for (uint64_t p = page; p < page + n; p++) {
        unsigned char bit = (unsigned char)(1u << (p & 7));
        if (w->seen[p >> 3] & bit)
            return bad(w, p, "%s: the page is used twice, or used and free", who);
        w->seen[p >> 3] |= bit;
    }
    return true;
}

static void load_tree(struct tree *t, const char *p, const char *name)
{
    snprintf(t->name, sizeof t->name, "%s", name);
    t->flags = load_u16(p + 4);
    t->depth = load_u16(p + 6);
    t->branch_pages = load_u64(p + 8);
    t->leaf_pages = load_u64(p + 16);
    t->overflow_pages = load_u64(p + 24);
    t->entries = load_u64(p + 32);
    t->root = load_u64(p + 40);
}

static bool load_meta(struct walk *w, unsigned i, struct meta *m)
{
    char page[LMDB_PAGE_BYTES];
    if (!read_page(w, i, page))
        return false;
    const char *p = page + PAGE_HEADER, *dbs = p + 24;
    if (load_u64(page) != i || load_u16(page + 10) != PAGE_META)
        return bad(w, i, "is no meta page");
    if (load_u32(p) != (uint32_t)META_MAGIC)
        return bad(w, i, "the meta page's magic is damaged");
    if (load_u32(p + 4) != META_VERSION)
        return bad(w, i, "data version %u, ours is %d", load_u32(p + 4), META_VERSION);
    if (load_u64(p + 8) != 0)
        return bad(w, i, "asks for a fixed address");
    if (load_u32(dbs) != LMDB_PAGE_BYTES)
        return bad(w, i, "page size %u", load_u32(dbs));
    load_tree(&m->free, dbs, "free");
    load_tree(&m->main, dbs + DB_BYTES, "main");
    if (m->free.flags != DB_INTEGER_KEY || m->main.flags != 0)
        return bad(w, i, "unknown flags");
    m->last_page = load_u64(p + 24 + 2 * DB_BYTES);
    m->txnid = load_u64(p + 32 + 2 * DB_BYTES);
    if (m->last_page < 1 || m->last_page >= w->file_pages + PAGES_UNWRITTEN_MAX)
        return bad(w, i, "the last page is %llu, the file has %llu",
                   (unsigned long long)m->last_page, (unsigned long long)w->file_pages);
    return true;
}

/* LMDB writes transaction n to meta page n % 2 and takes the page with the larger number. A
 * number that was changed would silently give the older state, so they must follow each other.
 */
static bool choose_meta(struct walk *w)
{
    struct meta m[2];
    if (!load_meta(w, 0, &m[0]) || !load_meta(w, 1, &m[1]))
        return false;
    if (m[0].txnid == 0 && m[1].txnid == 0) {
        w->meta = m[0];
        return true;
    }
    if ((m[0].txnid & 1) != 0 || (m[1].txnid & 1) != 1)
        return bad(w, m[0].txnid & 1 ? 0 : 1,
                   "the transaction's number belongs to the other page");
    int newest = m[0].txnid < m[1].txnid;
    if (m[newest].txnid - m[!newest].txnid != 1)
        return bad(w, (uint64_t)newest, "transaction %llu does not follow %llu",
                   (unsigned long long)m[newest].txnid, (unsigned long long)m[!newest].txnid);
    w->meta = m[newest];
    return true;
}

/* Keys compare as LMDB compares them: the free list's as numbers, all others as bytes. */
static int compare_keys(const struct count *c, const char *a, size_t na, const char *b,
                        size_t nb)
{
    if (c->tree->flags & DB_INTEGER_KEY) {
        uint64_t x = load_u64(a), y = load_u64(b);
        return x < y ? -1 : x > y;
    }
    int d = memcmp(a, b, na < nb ? na : nb);
    return d ? d : na < nb ? -1 : na > nb;
}

struct bounds {
    const char *low, *high; /* low <= key < high; NULL: none */
    size_t low_bytes, high_bytes;
};

/* Holds the page's frame: kind, offsets, and nodes that tile it. */
static bool check_frame(struct walk *w, uint64_t number, const char *page, int kind,
                        unsigned *n_nodes)
{
    unsigned lower = load_u16(page + 12), upper = load_u16(page + 14);
    if (load_u64(page) != number)
        return bad(w, number, "says it is page %llu", (unsigned long long)load_u64(page));
    if (load_u16(page + 10) != kind)
        return bad(w, number, "is of kind %u, not %d", load_u16(page + 10), kind);
    if (lower <= PAGE_HEADER || (lower & 1) || lower > upper || upper > LMDB_PAGE_BYTES)
        return bad(w, number, "bounds %u and %u", lower, upper);
    unsigned n = (lower - PAGE_HEADER) / 2;
    uint64_t starts[LMDB_PAGE_BYTES / 64] = {0};
    size_t tiled = 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned at = load_u16(page + PAGE_HEADER + 2 * (size_t)i);
        if (at < upper || (at & 1) || at > LMDB_PAGE_BYTES - NODE_HEADER)
            return bad(w, number, "node %u begins at %u", i, at);
        if (starts[at / 64] >> (at % 64) & 1)
            return bad(w, number, "two nodes begin at %u", at);
        starts[at / 64] |= (uint64_t)1 << (at % 64);
        const char *node = page + at;
        size_t bytes = NODE_HEADER + (size_t)load_u16(node + 6);
        if (kind == PAGE_LEAF)
            bytes += load_u16(node + 4) & NODE_BIG
                         ? 8
                         : load_u16(node) | (size_t)load_u16(node + 2) << 16;
        bytes += bytes & 1;
        if (bytes > LMDB_PAGE_BYTES - at)
            return bad(w, number, "node %u runs over the page", i);
        tiled += bytes;
    }
    if (tiled != LMDB_PAGE_BYTES - upper)
        return bad(w, number, "its nodes take %zu bytes of %u", tiled, LMDB_PAGE_BYTES - upper);
    *n_nodes = n;
    return true;
}

static bool check_key(struct walk *w, struct count *c, uint64_t number, const char *key,
                      size_t n, const struct bounds *b)
{
    if (n == 0 || n > KEY_BYTES_MAX || ((c->tree->flags & DB_INTEGER_KEY) && n != 8))
        return bad(w, number, "a key of %zu bytes", n);
    if ((b->low && compare_keys(c, key, n, b->low, b->low_bytes) < 0) ||
        (b->high && compare_keys(c, key, n, b->high, b->high_bytes) >= 0))
        return bad(w, number, "a key is outside its parent's bounds");
    return true;
}

/* Pages of an overflow run. Ours have exactly what the value needs; LMDB's free list may keep a
 * longer run, so there the run's own header is read. */
static bool claim_overflow(struct walk *w, struct count *c, uint64_t page, size_t bytes)
{
    uint64_t n = (PAGE_HEADER - 1 + bytes) / LMDB_PAGE_BYTES + 1;
    if (c->tree == &w->meta.free) {
        char header[LMDB_PAGE_BYTES];
        if (page < 2 || page >= w->n_pages)
            return bad(w, page, "no page of the file has this number");
        if (!read_page(w, page, header))
            return false;
        if (load_u64(header) != page || load_u16(header + 10) != PAGE_OVERFLOW ||
            load_u32(header + 12) < n)
            return bad(w, page, "the free list's overflow page is damaged");
        n = load_u32(header + 12);
    }
    if (page > w->file_pages || n > w->file_pages - page)
        return bad(w, page, "a value runs over the end of the file");
    c->overflow_pages += n;
    return claim_pages(w, page, n, c->tree->name);
}

static bool check_free_value(struct walk *w, uint64_t number, uint64_t offset, size_t bytes)
{
    char block[LMDB_PAGE_BYTES];
    if (bytes < 8 || bytes % 8)
        return bad(w, number, "a list of free pages of %zu bytes", bytes);
    uint64_t n = 0, before = NO_PAGE;
    for (uint64_t i = 0; i <= n; i++) {
        size_t at = (size_t)(i * 8 % sizeof block);
        if (at == 0) {
            size_t want =
                bytes - (size_t)i * 8 < sizeof block ? bytes - (size_t)i * 8 : sizeof block;
            ssize_t got = file_pread_all(w->fd, block, want, offset + i * 8, w->e);
            if (got < 0)
                w->rc = (int)got;
            if (got != (ssize_t)want)
                return got < 0 ? false : bad(w, number, "the file became shorter");
        }
        uint64_t v = load_u64(block + at);
        if (i == 0) {
            n = v;
            if (n > bytes / 8 - 1)
                return bad(w, number, "a list of %llu free pages in %zu bytes",
                           (unsigned long long)n, bytes);
            continue;
        }
        if (v >= before)
            return bad(w, number, "free pages out of order");
        before = v;
        if (!claim_pages(w, v, 1, "free"))
            return false;
        w->out->n_free++;
    }
    return true;
}

static bool walk_tree(struct walk *w, const struct tree *t, struct lmdb_table *table);

static bool check_named_tree(struct walk *w, uint64_t number, const char *key, size_t key_bytes,
                             const char *record)
{
    struct lmdb_summary *out = w->out;
    if (out->n_tables == LMDB_TABLES_MAX || key_bytes >= sizeof out->tables[0].name)
        return bad(w, number, "an unknown table");
    struct lmdb_table *table = &out->tables[out->n_tables++];
    memcpy(table->name, key, key_bytes);
    table->name[key_bytes] = '\0';
    struct tree t;
    load_tree(&t, record, table->name);
    if (t.flags != 0)
        return bad(w, number, "table %s has flags %u", table->name, t.flags);
    return walk_tree(w, &t, table);
}

/* The data of one leaf node. */
static bool check_data(struct walk *w, struct count *c, uint64_t number, const char *page,
                       const char *node)
{
    unsigned flags = load_u16(node + 4);
    size_t key_bytes = load_u16(node + 6);
    size_t bytes = load_u16(node) | (size_t)load_u16(node + 2) << 16;
    const char *key = node + NODE_HEADER, *data = key + key_bytes;
    uint64_t offset = number * LMDB_PAGE_BYTES + (uint64_t)(data - page);
    if (c->tree == &w->meta.main) {
        if (flags != NODE_TABLE || bytes != DB_BYTES)
            return bad(w, number, "the main tree holds something that is no table");
        return check_named_tree(w, number, key, key_bytes, data);
    }
    if (flags & ~(unsigned)NODE_BIG)
        return bad(w, number, "a node with flags %u", flags);
    if (flags & NODE_BIG) {
        uint64_t first = load_u64(data);
        if (!claim_overflow(w, c, first, bytes))
            return false;
        offset = first * LMDB_PAGE_BYTES + PAGE_HEADER;
    }
    if (c->tree == &w->meta.free)
        return check_free_value(w, number, offset, bytes);
    c->table->n_entries++;
    c->table->key_sum += lmdb_key_hash(key, key_bytes);
    if (w->options->entry) {
        struct err why = {0};
        int rc = w->options->entry(w->options->entry_arg, w->fd, c->table, key, key_bytes,
                                   offset, bytes, &why);
        if (rc == KITH_ECORRUPT)
            return bad(w, offset / LMDB_PAGE_BYTES, "%s", why.message);
        if (rc != 0) {
            w->rc = err_set(w->e, rc, "%s", why.message);
            return false;
        }
    }
    return true;
}

static bool walk_leaf(struct walk *w, struct count *c, uint64_t number, const char *page,
                      unsigned n, const struct bounds *b)
{
    bool ok = true;
    for (unsigned i = 0; i < n && w->rc == 0; i++) {
        const char *node = page + load_u16(page + PAGE_HEADER + 2 * (size_t)i);
        const char *key = node + NODE_HEADER;
        size_t bytes = load_u16(node + 6);
        if (!check_key(w, c, number, key, bytes, b))
            return false;
        if (c->any_key && compare_keys(c, c->last_key, c->last_key_bytes, key, bytes) >= 0)
            return bad(w, number, "keys out of order");
        memcpy(c->last_key, key, bytes);
        c->last_key_bytes = bytes;
        c->any_key = true;
        c->entries++;
        if (c->tree == &w->meta.free && load_u64(key) > w->meta.txnid)
            return bad(w, number, "pages freed by a transaction yet to come");
        ok = check_data(w, c, number, page, node) && ok;
    }
    return ok;
}

static bool walk_page(struct walk *w, struct count *c, uint64_t number, unsigned level,
                      const struct bounds *b)
{
    /* The main tree is one leaf whose entries are trees of their own: its page is kept apart.
     */
    unsigned own = c->tree == &w->meta.main ? DEPTH_MAX : level;
    char *page = w->pages + (size_t)own * LMDB_PAGE_BYTES;
    bool leaf = level + 1 == c->tree->depth;
    unsigned n = 0;
    if (!claim_pages(w, number, 1, c->tree->name) || !read_page(w, number, page) ||
        !check_frame(w, number, page, leaf ? PAGE_LEAF : PAGE_BRANCH, &n))
        return false;
    if (leaf) {
        c->leaf_pages++;
        return walk_leaf(w, c, number, page, n, b);
    }
    c->branch_pages++;
    bool ok = true;
    struct bounds inner = {.low = b->low, .low_bytes = b->low_bytes};
    for (unsigned i = 0; i < n && w->rc == 0; i++) {
        const char *node = page + load_u16(page + PAGE_HEADER + 2 * (size_t)i);
        uint64_t child = load_u16(node) | (uint64_t)load_u16(node + 2) << 16 |
                         (uint64_t)load_u16(node + 4) << 32;
        inner.high = b->high;
        inner.high_bytes = b->high_bytes;
        if (i + 1 < n) {
            const char *next = page + load_u16(page + PAGE_HEADER + 2 * (size_t)(i + 1));
            inner.high = next + NODE_HEADER;
            inner.high_bytes = load_u16(next + 6);
            if (!check_key(
                    w, c, number, inner.high, inner.high_bytes,
                    &(struct bounds){inner.low, b->high, inner.low_bytes, b->high_bytes}))
                return false;
        }
        ok = walk_page(w, c, child, level + 1, &inner) && ok;
        inner.low = inner.high;
        inner.low_bytes = inner.high_bytes;
    }
    return ok;
}

static bool walk_tree(struct walk *w, const struct tree *t, struct lmdb_table *table)
{
    struct count c = {.tree = t, .table = table};
    bool ok = true;
    if ((t->root == NO_PAGE) != (t->depth == 0) ||
        t->depth > (t == &w->meta.main ? 1 : DEPTH_MAX))
        return bad(w, t->root, "the root of tree %s, with depth %u", t->name, t->depth);
    if (t->root != NO_PAGE)
        ok = walk_page(w, &c, t->root, 0, &(struct bounds){0});
    if (!ok || w->rc != 0)
        return false;
    if (c.entries != t->entries || c.branch_pages != t->branch_pages ||
        c.leaf_pages != t->leaf_pages || c.overflow_pages != t->overflow_pages)
        return bad(w, t->root,
                   "tree %s has %llu entries on %llu + %llu + %llu pages, not %llu on "
                   "%llu + %llu + %llu",
                   t->name, (unsigned long long)c.entries, (unsigned long long)c.branch_pages,
                   (unsigned long long)c.leaf_pages, (unsigned long long)c.overflow_pages,
                   (unsigned long long)t->entries, (unsigned long long)t->branch_pages,
                   (unsigned long long)t->leaf_pages, (unsigned long long)t->overflow_pages);
    return true;
}

static void count_lost(struct walk *w)
{
    uint64_t seen = 0;
    for (uint64_t i = 0; i < w->n_pages / 8 + 1; i++)
        seen += (uint64_t)__builtin_popcount(w->seen[i]);
    w->out->n_lost = w->n_pages - 2 - seen;
    if (w->out->n_lost && w->options->note && w->findings == 0) {
        char what[96];
        snprintf(what, sizeof what, "%llu pages are in no tree and not free",
                 (unsigned long long)w->out->n_lost);
        w->options->note(w->options->note_arg, w->path, what);
        w->findings++;
    }
}

static void walk_file(struct walk *w)
{
    if (!choose_meta(w))
        return;
    w->out->txnid = w->meta.txnid;
    w->out->n_pages = w->n_pages = w->meta.last_page + 1;
    w->out->empty = w->meta.txnid == 0 && w->meta.main.root == NO_PAGE;
    w->seen = mem_calloc((size_t)(w->n_pages / 8 + 1), 1);
    w->pages = mem_alloc((DEPTH_MAX + 1) * (size_t)LMDB_PAGE_BYTES);
    if (!w->seen || !w->pages) {
        w->rc = err_set(w->e, KITH_ENOMEM, "out of memory checking %s", w->path);
        return;
    }
    bool ok = walk_tree(w, &w->meta.free, NULL);
    if (w->rc == 0)
        ok = walk_tree(w, &w->meta.main, NULL) && ok;
    if (w->rc == 0 && ok)
        count_lost(w);
}

int lmdb_check(const char *path, const struct lmdb_check_options *options,
               struct lmdb_summary *out, struct err *e)
{
    struct walk w = {.options = options, .path = path, .e = e, .out = out};
    *out = (struct lmdb_summary){0};
    w.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (w.fd < 0)
        return err_set_errno(e, errno, "cannot open %s", path);
    struct stat st;
    if (fstat(w.fd, &st) != 0)
        w.rc = err_set_errno(e, errno, "cannot stat %s", path);
    w.file_pages = (uint64_t)st.st_size / LMDB_PAGE_BYTES;
    if (w.rc == 0)
        walk_file(&w);
    mem_free(w.seen);
    mem_free(w.pages);
    close(w.fd);
    return w.rc != 0 ? w.rc : w.findings;
}
