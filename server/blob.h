#pragma once
/* A counted byte string: the value of a string key, the text of an element. What is shared (a
 * checkpoint may be writing it) is never changed; a lone holder may append in place.
 * Thread: the count is atomic; the bytes are immutable while shared. */

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

struct blob {
    _Atomic uint32_t refs;
    size_t n, cap;
    char data[];
};

struct blob *blob_new(const void *p, size_t n); /* NULL when out of memory */
struct blob *blob_ref(struct blob *b);
void blob_unref(struct blob *b); /* NULL is fine */
/* b with the bytes appended: b itself when nobody else holds it, else a copy (and b is
 * released). NULL when out of memory; then b is kept. */
struct blob *blob_append(struct blob *b, const void *p, size_t n);

static inline struct slice blob_slice(const struct blob *b)
{
    return (struct slice){.p = b->data, .n = b->n};
}
