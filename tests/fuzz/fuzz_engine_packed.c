/* A file of packed weights of any bytes, as they are and then signed: the checksum is made
 * right and the versions of the file and of kith these, or nothing else would ever be looked
 * at. What is accepted has every matrix inside it, aligned, and outliers that are inputs, all
 * different.
 *
 * The seeds are the file of tests/unit/engine_packed_fixture.h: whole, cut, and with single
 * wrong parts. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/hash.h"
#include "base/version.h"
#include "tests/unit/engine_packed_fixture.h"

enum {
    VERSION_AT = 8,
    KITH_AT = 56,
    KITH_BYTES = 16,
    CHECKSUM_BYTES = 8,
    N = PACKED_FIXTURE_MATRICES
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_matrix(const struct packed_matrix *m, const char *file, size_t size)
{
    const char *at = m->data;
    uint64_t sum = 0;
    if (at < file || (size_t)(at - file) > size || m->bytes > size - (size_t)(at - file) ||
        (at - file) % PACKED_CACHE_ALIGNMENT)
        abort();
    for (size_t i = 0; i < m->bytes; i++)
        sum += (unsigned char)at[i]; /* the reads are the point */
    for (uint32_t t = 0; t < m->n_outliers; t++) {
        if (m->outliers[t] >= m->n_in)
            abort();
        for (uint32_t before = 0; before < t; before++)
            if (m->outliers[before] == m->outliers[t])
                abort();
    }
    if (sum == UINT64_MAX)
        abort();
}

static void read_file(const char *file, size_t size)
{
    struct packed_matrix m[N];
    struct err e = {0};
    packed_fixture_shapes(m);
    int rc = packed_cache_read(file, size, &packed_fixture_identity, m, N, &e);
    if (rc != 0 && (rc != e.code || !*e.message))
        abort();
    for (int i = 0; i < N; i++) {
        if ((rc == 0) != (m[i].data != NULL))
            abort();
        if (rc == 0)
            check_matrix(&m[i], file, size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_file((const char *)data, size);
    if (size < PACKED_FIXTURE_HEAD + CHECKSUM_BYTES)
        return 0;
    char *file = malloc(size);
    if (!file)
        return 0;
    memcpy(file, data, size);
    store_u32(file + VERSION_AT, PACKED_CACHE_VERSION);
    memset(file + KITH_AT, 0, KITH_BYTES);
    memcpy(file + KITH_AT, KITH_VERSION, strlen(KITH_VERSION));
    store_u64(file + size - CHECKSUM_BYTES, hash64(file, size - CHECKSUM_BYTES));
    read_file(file, size);
    free(file);
    return 0;
}
