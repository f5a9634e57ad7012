/* The payload of a log record, any bytes. What must hold: decoding stays inside the record,
 * ends, no parameters of a set come out that no set can have, and what was decoded encodes to a
 * record that decodes to as many effects, which encode to the same bytes. */

#include <stdint.h>
#include <stdlib.h>

#include "server/effect.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static uint64_t decode(const void *p, size_t n, struct buf *again, bool *failed)
{
    struct reader r = reader_of(p, n);
    struct effect f;
    struct effect_storage storage;
    uint64_t count = 0;
    read_u8(&r); /* the version */
    while (effect_decode(&r, &f, &storage)) {
        count++;
        if (f.params && !vset_params_valid(f.params))
            abort();
        if (again)
            effect_encode(again, &f);
    }
    *failed = r.failed;
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct buf first, second;
    bool failed;
    buf_init(&first);
    buf_init(&second);
    uint64_t count = decode(data, n, &first, &failed);
    if (first.len > 0 && (decode(first.data, first.len, &second, &failed) != count || failed))
        abort();
    if (first.len != second.len || (first.len && memcmp(first.data, second.data, first.len)))
        abort();
    buf_deinit(&first);
    buf_deinit(&second);
    return 0;
}
