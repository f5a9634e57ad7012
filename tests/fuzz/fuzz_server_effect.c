/* The payload of a log record, any bytes. What must hold: decoding stays inside the record,
 * ends, and what was decoded whole encodes to a record that decodes to the same number of
 * effects. */

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
        if (again)
            effect_encode(again, &f);
    }
    *failed = r.failed;
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct buf again;
    bool failed;
    buf_init(&again);
    uint64_t count = decode(data, n, &again, &failed);
    if (again.len > 0 && decode(again.data, again.len, NULL, &failed) != count)
        abort();
    if (again.len > 0 && failed)
        abort();
    buf_deinit(&again);
    return 0;
}
