/* Any bytes as a filter. What must hold: it is refused with a message of one line, or compiles
 * and answers the same twice about every kind of element; and in parentheses it answers as
 * before. */

#include <stdint.h>
#include <stdlib.h>

#include "server/attributes.h"
#include "server/filter.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char *const documents[] = {
    "{}",
    "{\"a\":1,\"b\":\"x\",\"c\":null,\"d\":[1,\"x\",null,[2]],\"e\":\"12\",\"year\":1984}",
    "{\"a\":\"\",\"b\":[],\"c\":{},\"d\":-0.5,\"e\":true,\"year\":\"1984\"}",
};
enum { DOCUMENTS = sizeof documents / sizeof *documents };
static struct buf encoded[DOCUMENTS];

static unsigned answers(const struct filter *f)
{
    unsigned bits = 0;
    for (size_t i = 0; i < DOCUMENTS; i++)
        bits |= (unsigned)filter_match(f, encoded[i].data, encoded[i].len) << i;
    return bits;
}

static void check_message(const struct err *e)
{
    if (!e->message[0] || strpbrk(e->message, "\r\n") || strlen(e->message) > 440)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct filter *f, *again;
    struct err e = {0};
    struct slice text = {.p = (const char *)data, .n = n};
    for (size_t i = 0; i < DOCUMENTS && !encoded[i].len; i++)
        if (attributes_encode(slice_of(documents[i]), &encoded[i], &e))
            abort();
    if (filter_compile(&f, text, &e)) {
        check_message(&e);
        return 0;
    }
    struct buf nested = {0};
    unsigned first = answers(f);
    if (first != answers(f))
        abort();
    buf_append_str(&nested, "(");
    buf_append(&nested, data, n);
    buf_append_str(&nested, ")");
    if (filter_compile(&again, (struct slice){.p = nested.data, .n = nested.len}, &e) == 0) {
        if (answers(again) != first)
            abort();
        filter_free(again);
    } else if (e.code != KITH_ELIMIT) {
        abort();
    }
    filter_free(f);
    buf_deinit(&nested);
    return 0;
}
