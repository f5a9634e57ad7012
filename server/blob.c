#include "server/blob.h"

#include "base/mem.h"

static struct blob *blob_with_capacity(size_t cap)
{
    if (cap > SIZE_MAX - sizeof(struct blob))
        return NULL;
    struct blob *b = mem_alloc(sizeof *b + cap);
    if (b) {
        atomic_init(&b->refs, 1);
        b->n = 0;
        b->cap = cap;
    }
    return b;
}

struct blob *blob_new(const void *p, size_t n)
{
    struct blob *b = blob_with_capacity(n);
    if (b) {
        if (n)
            memcpy(b->data, p, n);
        b->n = n;
    }
    return b;
}

struct blob *blob_ref(struct blob *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void blob_unref(struct blob *b)
{
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1)
        mem_free(b);
}

struct blob *blob_append(struct blob *b, const void *p, size_t n)
{
    size_t need;
    if (__builtin_add_overflow(b->n, n, &need))
        return NULL;
    if (atomic_load_explicit(&b->refs, memory_order_acquire) != 1 || b->cap < need) {
        size_t cap = need < SIZE_MAX / 2 ? need * 2 : need;
        struct blob *copy = blob_with_capacity(cap);
        if (!copy)
            return NULL;
        memcpy(copy->data, b->data, b->n);
        copy->n = b->n;
        blob_unref(b);
        b = copy;
    }
    memcpy(b->data + b->n, p, n);
    b->n = need;
    return b;
}
