/* The names of a set in order, for VRANGE: made when it is first asked for, kept up to date
 * from then on, in memory only.
 *
 *   blocks ──► [ block ][ block ][ block ] …       in order
 *                 └──► n, up to 512 slots          in order of their names
 *
 * A name is found by bisecting the blocks by their first slots, then the block. A block that is
 * full is split in two; one that together with its neighbour is less than half full is joined
 * to it. Some 6 bytes an element, and an insert moves 1 KB and half of the pointers to blocks.
 *
 * Names are compared in their elements. Making the order of a million names that way would miss
 * the cache at each comparison, so it sorts 16 bytes of each name, those behind what all names
 * begin with, and looks at the elements only where these are the same.
 *
 * When an update fails (no memory, a damaged name) the order is dropped, and made again when it
 * is asked for again. Rejected: a tree, which takes four times the memory and a cache miss for
 * each name that is read out. */
#include <endian.h>
#include <stdlib.h>

#include "base/epoch.h"
#include "base/mem.h"
#include "server/vset_parts.h"

enum { BLOCK_SLOTS = 512, BLOCK_FILL = 384, JOIN_AT = 256 };

struct order_block {
    uint32_t n;
    uint32_t slots[BLOCK_SLOTS];
};

struct order {
    struct order_block **blocks;
    uint32_t n_blocks;
    size_t cap;
};

struct position {
    uint32_t block, at;
};

void order_free(struct order *o)
{
    if (!o)
        return;
    for (uint32_t i = 0; i < o->n_blocks; i++)
        mem_free(o->blocks[i]);
    mem_free(o->blocks);
    mem_free(o);
}

static void drop(struct vset *v)
{
    order_free(v->order);
    v->order = NULL;
}

size_t order_bytes(const struct order *o)
{
    return o ? sizeof *o + o->cap * sizeof *o->blocks + o->n_blocks * sizeof **o->blocks : 0;
}

/* --- making it --- */

struct sort_key {
    uint64_t high, low; /* 16 bytes of the name as one number */
    uint32_t slot;
};

struct sorting {
    struct vset *v;
    struct sort_key *keys;
    uint32_t n;
    struct buf name;
    int rc;
    struct err *e;
};

static int compare_names(struct sorting *x, uint32_t a, uint32_t b)
{
    int result = 0;
    buf_clear(&x->name);
    if (x->rc != 0)
        return 0;
    if (!vset_name(x->v, a, &x->name, x->e)) {
        x->rc = KITH_ECORRUPT;
    } else if (x->name.failed) {
        x->rc = err_set(x->e, KITH_ENOMEM, "out of memory for the order of names");
    } else {
        const struct elem *el = elem_at(x->v, b, x->e);
        struct slice name = {x->name.data, x->name.len};
        x->rc = el ? elems_name_compare(x->v, el, name, &result, x->e) : KITH_ECORRUPT;
    }
    return -result;
}

static int compare_keys(const void *left, const void *right, void *arg)
{
    const struct sort_key *a = left, *b = right;
    if (a->high != b->high)
        return a->high < b->high ? -1 : 1;
    if (a->low != b->low)
        return a->low < b->low ? -1 : 1;
    return compare_names(arg, a->slot, b->slot);
}

static uint32_t prefix_n(const struct elem *el)
{
    return el->name_n < ELEM_PREFIX ? el->name_n : ELEM_PREFIX;
}

/* The slots of all elements, as they lie, and how many bytes all names begin with, of those
 * that lie in the elements. */
static int find_slots(struct sorting *x, uint32_t *common)
{
    const struct elem *first = NULL;
    uint32_t found = 0;
    *common = 0;
    for (uint32_t slot = 0; slot < x->v->next_slot && found < x->n; slot++) {
        const struct elem *el = elem_at(x->v, slot, x->e);
        if (!el)
            return KITH_ECORRUPT;
        if (!elem_live(el))
            continue;
        if (!first) {
            first = el;
            *common = prefix_n(el);
        }
        uint32_t n = prefix_n(el) < *common ? prefix_n(el) : *common, same = 0;
        while (same < n && el->prefix[same] == first->prefix[same])
            same++;
        *common = same;
        x->keys[found++].slot = slot;
    }
    return found == x->n
               ? 0
               : err_set(x->e, KITH_ECORRUPT, "%u of %u names were found", found, x->n);
}

static int make_keys(struct sorting *x)
{
    uint32_t common;
    int rc = find_slots(x, &common);
    for (uint32_t i = 0; rc == 0 && i < x->n; i++) {
        const struct elem *el = elem_at(x->v, x->keys[i].slot, x->e);
        if (!el)
            return KITH_ECORRUPT;
        char bytes[16] = {0};
        uint32_t n = prefix_n(el) - common;
        memcpy(bytes, el->prefix + common, n < sizeof bytes ? n : sizeof bytes);
        x->keys[i].high = be64toh(load_u64(bytes));
        x->keys[i].low = be64toh(load_u64(bytes + 8));
    }
    return rc;
}

static struct order_block *block_after(struct order *o, uint32_t at)
{
    struct order_block **blocks = mem_grow(o->blocks, o->n_blocks, &o->cap, 4, sizeof *blocks);
    if (!blocks)
        return NULL;
    o->blocks = blocks;
    struct order_block *b = mem_alloc(sizeof *b);
    if (!b)
        return NULL;
    b->n = 0;
    memmove(o->blocks + at + 1, o->blocks + at, (o->n_blocks - at) * sizeof *o->blocks);
    o->blocks[at] = b;
    o->n_blocks++;
    return b;
}

static int fill(struct order *o, const struct sorting *x)
{
    struct order_block *b = NULL;
    for (uint32_t i = 0; i < x->n; i++) {
        if (!b || b->n == BLOCK_FILL)
            b = block_after(o, o->n_blocks);
        if (!b)
            return err_set(x->e, KITH_ENOMEM, "out of memory for the order of names");
        b->slots[b->n++] = x->keys[i].slot;
    }
    return 0;
}

static int make(struct vset *v, struct err *e)
{
    struct sorting x = {.v = v, .n = v->table.n, .e = e};
    struct order *o = mem_calloc(1, sizeof *o);
    x.keys = mem_alloc_n(x.n ? x.n : 1, sizeof *x.keys);
    buf_init(&x.name);
    int rc = o && x.keys ? 0 : err_set(e, KITH_ENOMEM, "out of memory for the order of names");
    epoch_enter();
    if (rc == 0 && x.n > 0 && (rc = make_keys(&x)) == 0) {
        qsort_r(x.keys, x.n, sizeof *x.keys, compare_keys, &x);
        rc = x.rc;
    }
    epoch_exit();
    if (rc == 0)
        rc = fill(o, &x);
    if (rc == 0)
        v->order = o;
    else
        order_free(o);
    mem_free(x.keys);
    buf_deinit(&x.name);
    return rc;
}

/* --- finding and changing --- */

static int compare_at(struct vset *v, uint32_t slot, struct slice name, int *result,
                      struct err *e)
{
    const struct elem *el = elem_at(v, slot, e);
    return el ? elems_name_compare(v, el, name, result, e) : KITH_ECORRUPT;
}

/* The first place whose name is not before the given one, or, `past`, is after it; the last
 * block's end where there is none. Inside a bracket. */
static int seek(struct vset *v, struct slice name, bool past, struct position *out,
                struct err *e)
{
    const struct order *o = v->order;
    uint32_t low = 0, high = o->n_blocks;
    int result, rc;
    *out = (struct position){0};
    while (low < high) { /* the first block that begins at or behind the place */
        uint32_t middle = low + (high - low) / 2;
        if ((rc = compare_at(v, o->blocks[middle]->slots[0], name, &result, e)) != 0)
            return rc;
        if (result < 0 || (past && result == 0))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return 0;
    out->block = low - 1; /* so it lies in the block before, or is that one's end */
    const struct order_block *b = o->blocks[out->block];
    low = 1;
    high = b->n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((rc = compare_at(v, b->slots[middle], name, &result, e)) != 0)
            return rc;
        if (result < 0 || (past && result == 0))
            low = middle + 1;
        else
            high = middle;
    }
    out->at = low;
    return 0;
}

/* As seek, for the owner who changes something there; drops the order when it fails. */
static bool find(struct vset *v, struct slice name, struct position *out)
{
    epoch_enter();
    int rc = seek(v, name, false, out, NULL);
    epoch_exit();
    if (rc != 0)
        drop(v);
    return rc == 0;
}

static bool split(struct order *o, struct position *p)
{
    struct order_block *upper = block_after(o, p->block + 1);
    if (!upper)
        return false;
    struct order_block *lower = o->blocks[p->block];
    upper->n = lower->n / 2;
    lower->n -= upper->n;
    memcpy(upper->slots, lower->slots + lower->n, upper->n * sizeof *upper->slots);
    if (p->at > lower->n) {
        p->at -= lower->n;
        p->block++;
    }
    return true;
}

void order_add(struct vset *v, uint32_t slot, struct slice name)
{
    struct order *o = v->order;
    struct position p;
    if (!o || !find(v, name, &p))
        return;
    if ((o->n_blocks == 0 && !block_after(o, 0)) ||
        (o->blocks[p.block]->n == BLOCK_SLOTS && !split(o, &p))) {
        drop(v);
        return;
    }
    struct order_block *b = o->blocks[p.block];
    memmove(b->slots + p.at + 1, b->slots + p.at, (b->n - p.at) * sizeof *b->slots);
    b->slots[p.at] = slot;
    b->n++;
}

/* The place where the slot stands; false, and the order is dropped, when it does not. */
static bool find_slot(struct vset *v, uint32_t slot, struct slice name, struct position *out)
{
    if (!find(v, name, out))
        return false;
    const struct order *o = v->order;
    /* The end of a block is the beginning of the next. */
    if (out->block < o->n_blocks && out->at == o->blocks[out->block]->n)
        *out = (struct position){out->block + 1, 0};
    bool there = out->block < o->n_blocks && o->blocks[out->block]->slots[out->at] == slot;
    if (!there)
        drop(v);
    return there;
}

void order_replace(struct vset *v, uint32_t old, uint32_t slot, struct slice name)
{
    struct position p;
    if (v->order && find_slot(v, old, name, &p))
        v->order->blocks[p.block]->slots[p.at] = slot;
}

static void remove_block(struct order *o, uint32_t at)
{
    mem_free(o->blocks[at]);
    o->n_blocks--;
    memmove(o->blocks + at, o->blocks + at + 1, (o->n_blocks - at) * sizeof *o->blocks);
}

void order_remove(struct vset *v, uint32_t slot, struct slice name)
{
    struct position p;
    struct order *o = v->order;
    if (!o || !find_slot(v, slot, name, &p))
        return;
    struct order_block *b = o->blocks[p.block];
    b->n--;
    memmove(b->slots + p.at, b->slots + p.at + 1, (b->n - p.at) * sizeof *b->slots);
    struct order_block *next = p.block + 1 < o->n_blocks ? o->blocks[p.block + 1] : NULL;
    if (b->n == 0) {
        remove_block(o, p.block);
    } else if (next && b->n + next->n <= JOIN_AT) {
        memcpy(b->slots + b->n, next->slots, next->n * sizeof *next->slots);
        b->n += next->n;
        remove_block(o, p.block + 1);
    }
}

/* --- asking --- */

static int bounds(struct vset *v, const struct vset_bound *from, const struct vset_bound *to,
                  struct position *first, struct position *end, struct err *e)
{
    int rc = 0;
    *first = (struct position){0};
    *end = (struct position){v->order->n_blocks, 0};
    if (!from->all)
        rc = seek(v, from->name, from->open, first, e);
    if (rc == 0 && !to->all)
        rc = seek(v, to->name, !to->open, end, e);
    return rc;
}

int64_t vset_range(struct vset *v, int64_t now_ms, const struct vset_bound *from,
                   const struct vset_bound *to, uint32_t limit, uint32_t *slots, struct err *e)
{
    struct position p, end;
    uint32_t n = 0;
    pthread_mutex_lock(&v->owner);
    int rc = v->order ? 0 : make(v, e);
    epoch_enter();
    if (rc == 0)
        rc = bounds(v, from, to, &p, &end, e);
    const struct order *o = v->order;
    while (rc == 0 && n < limit && p.block < o->n_blocks &&
           (p.block < end.block || (p.block == end.block && p.at < end.at))) {
        const struct order_block *b = o->blocks[p.block];
        if (p.at == b->n) {
            p = (struct position){p.block + 1, 0};
            continue;
        }
        uint32_t slot = b->slots[p.at++];
        int64_t expires;
        rc = vset_read_expiry(v, slot, &expires, e);
        if (rc == 0 && (!expires || expires > now_ms))
            slots[n++] = slot;
    }
    epoch_exit();
    pthread_mutex_unlock(&v->owner);
    return rc == 0 ? (int64_t)n : rc;
}

int64_t order_check(struct vset *v, void (*note)(void *, const char *), void *arg)
{
    int64_t findings = 0;
    struct buf name;
    buf_init(&name);
    uint32_t n = 0, before = INDEX_SLOT_NONE;
    epoch_enter();
    for (uint32_t i = 0; v->order && i < v->order->n_blocks; i++) {
        const struct order_block *b = v->order->blocks[i];
        n += b->n;
        for (uint32_t k = 0; k < b->n; k++) {
            int result = 1;
            buf_clear(&name);
            if (before != INDEX_SLOT_NONE &&
                (!vset_name(v, before, &name, NULL) ||
                 compare_at(v, b->slots[k], (struct slice){name.data, name.len}, &result,
                            NULL) != 0 ||
                 result <= 0)) {
                findings++;
                note(arg, "the order of names is wrong");
            }
            before = b->slots[k];
        }
    }
    epoch_exit();
    buf_deinit(&name);
    if (v->order && n != v->table.n) {
        findings++;
        note(arg, "the order of names does not hold every name");
    }
    return findings;
}
