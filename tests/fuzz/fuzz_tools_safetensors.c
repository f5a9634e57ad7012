/* Any bytes as a safetensors file. What must hold: an error has a message; where the file
 * opens, each tensor lies inside it, has as many bytes as its type and shape ask for, overlaps
 * none before it, and is found by its name. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "tools/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int holds)
{
    if (!holds)
        abort();
}

static void look(const struct safetensors *s)
{
    const unsigned char *begin = (const unsigned char *)s->map.data, *at = begin + 8;
    unsigned sum = 0;
    for (size_t i = 0; i < s->n; i++) {
        const struct safetensor *t = &s->entries[i];
        require(t->data >= at && t->bytes <= s->map.bytes - (size_t)(t->data - begin));
        at = t->data + t->bytes;
        require(t->n_dims <= SAFETENSORS_DIMS_MAX && strlen(t->dtype) < sizeof t->dtype);
        uint64_t elements = 1;
        for (unsigned d = 0; d < t->n_dims; d++)
            elements *= t->shape[d];
        require(elements ? t->bytes % elements == 0 && t->bytes / elements <= 8
                         : t->bytes == 0);
        require(safetensors_find(s, t->name) != NULL);
        for (size_t k = 0; k < t->bytes; k++)
            sum += t->data[k];
    }
    require(sum < UINT32_MAX); /* every byte was read */
    require(!safetensors_find(s, "no tensor is called so"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char path[64];
    struct safetensors s;
    struct err e = {0};
    int fd = memfd_create("safetensors", MFD_CLOEXEC);
    require(fd >= 0 && file_pwrite_all(fd, data, n, 0, &e) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (safetensors_open(&s, path, &e))
        require(e.message[0] != '\0');
    else {
        look(&s);
        safetensors_close(&s);
    }
    close(fd);
    return 0;
}
