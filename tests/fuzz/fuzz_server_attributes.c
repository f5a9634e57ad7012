/* Any bytes as JSON, and any bytes as encoded attributes. What must hold: what is taken is kept
 * byte for byte and can be read whole, what is refused appends nothing, and reading stays
 * inside the bytes whatever they are: as they came, and with a byte of a good encoding changed
 * (the input's last two say which). */

#include <stdint.h>
#include <stdlib.h>

#include "base/mem.h"
#include "server/attributes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void touch(struct slice s)
{
    volatile char sum = 0;
    for (size_t i = 0; i < s.n; i++)
        sum = (char)(sum + s.p[i]);
}

static void walk(const void *encoded, size_t n, struct slice name)
{
    struct attribute_value v = attributes_find(encoded, n, name, attribute_name_hash(name));
    if (v.type == ATTRIBUTE_STRING || v.type == ATTRIBUTE_TUPLE)
        touch(v.string);
    for (uint32_t i = 0; i < v.n_items; i++) {
        struct attribute_value item = attribute_item(&v, i);
        if (item.type == ATTRIBUTE_STRING)
            touch(item.string);
    }
}

static void read_all(const void *encoded, size_t n)
{
    static const char *const names[] = {"", "a", "b", "c", "d", "year", "tags"};
    touch(attributes_json(encoded, n));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        walk(encoded, n, slice_of(names[i]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct buf out = {0};
    struct err e = {0};
    struct slice json = {.p = (const char *)data, .n = n};
    read_all(data, n);
    int rc = attributes_encode(json, &out, &e);
    if (rc && (out.len > 0 || !e.message[0]))
        abort();
    if (rc == 0) {
        if (attributes_bytes(out.data, out.len) != out.len ||
            !slice_equal(attributes_json(out.data, out.len), json))
            abort();
        /* In memory of exactly its length, so that a step outside is seen. */
        char *exact = mem_dup(out.data, out.len);
        read_all(exact, out.len);
        exact[data[n - 1] * 7 % out.len] ^= (char)data[n / 2];
        read_all(exact, out.len);
        mem_free(exact);
    }
    buf_deinit(&out);
    return 0;
}
