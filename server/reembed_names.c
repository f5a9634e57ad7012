#include "server/reembed_names.h"

#include "base/hash.h"
#include "base/mem.h"

/* More than that is as well found by looking at the whole set again. */
enum { NAMES_BYTES_MAX = 64 << 20 };

struct reembed_name {
    struct dict_node node; /* first */
    struct reembed_name *next;
    uint32_t n;
    char name[];
};

static struct slice slice_of_name(const struct reembed_name *x)
{
    return (struct slice){x->name, x->n};
}

static bool same_name(const struct dict_node *n, const void *key)
{
    return slice_equal(slice_of_name((const struct reembed_name *)n),
                       *(const struct slice *)key);
}

void reembed_names_init(struct reembed_names *q)
{
    *q = (struct reembed_names){0};
    dict_init(&q->by_name);
}

void reembed_names_clear(struct reembed_names *q)
{
    for (struct reembed_name *x = q->first, *next; x; x = next) {
        next = x->next;
        mem_free(x);
    }
    dict_deinit(&q->by_name);
    reembed_names_init(q);
}

void reembed_names_deinit(struct reembed_names *q)
{
    reembed_names_clear(q);
}

bool reembed_names_add(struct reembed_names *q, struct slice name)
{
    uint64_t hash = hash64(name.p, name.n);
    if (dict_find(&q->by_name, hash, same_name, &name))
        return true;
    size_t bytes = sizeof(struct reembed_name) + name.n;
    struct reembed_name *x = q->bytes + bytes > NAMES_BYTES_MAX ? NULL : mem_alloc(bytes);
    if (!x)
        return false;
    *x = (struct reembed_name){.node.hash = hash, .n = (uint32_t)name.n};
    if (name.n)
        memcpy(x->name, name.p, name.n);
    if (dict_insert(&q->by_name, &x->node) != 0) {
        mem_free(x);
        return false;
    }
    if (q->last)
        q->last->next = x;
    else
        q->first = x;
    q->last = x;
    q->n++;
    q->bytes += bytes;
    return true;
}

bool reembed_names_take(struct reembed_names *q, struct buf *out)
{
    struct reembed_name *x = q->first;
    if (!x)
        return false;
    buf_append(out, x->name, x->n);
    if (out->failed)
        return false;
    q->first = x->next;
    if (!q->first)
        q->last = NULL;
    dict_remove(&q->by_name, &x->node);
    q->n--;
    q->bytes -= sizeof *x + x->n;
    mem_free(x);
    return true;
}

bool reembed_pace_step(struct reembed_pace *p, uint64_t taken, uint64_t left)
{
    if (taken < p->lap_left) {
        p->lap_left -= taken;
    } else {
        p->laps++;
        p->lap_left = left;
    }
    uint64_t few = REEMBED_FEW_MOST;
    if (p->laps <= 6)
        few = (uint64_t)REEMBED_FEW << (p->laps - 1);
    return left <= few || p->laps >= REEMBED_LAPS;
}
