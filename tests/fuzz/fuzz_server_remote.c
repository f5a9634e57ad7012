/* Any bytes as the answer of a remote model. The first byte says the interface, how many texts
 * were asked for and of how many dimensions; the rest is the body. What must hold: it is taken
 * and gives that many finite vectors of length 1, the same ones twice, or it is refused with a
 * message of one line; a complaint made of it is printable and fits. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "server/remote_api.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { TEXTS_MAX = 8, DIM_MAX = 8 };

static void check_vectors(const float *v, uint32_t n, uint32_t dim)
{
    for (uint32_t i = 0; i < n; i++) {
        double squares = 0;
        for (uint32_t k = 0; k < dim; k++)
            squares += (double)v[i * dim + k] * (double)v[i * dim + k];
        if (!(fabs(squares - 1) < 1e-5))
            abort();
    }
}

static void check_line(const char *text, size_t size)
{
    if (strlen(text) >= size)
        abort();
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0)
        return 0;
    const struct remote_model m = {.style = data[0] & 1 ? REMOTE_OLLAMA : REMOTE_OPENAI,
                                   .name = "m",
                                   .dim = 1 + (data[0] >> 1) % DIM_MAX,
                                   .secret = "key"};
    const uint32_t n_texts = 1 + (data[0] >> 4) % TEXTS_MAX;
    const struct slice body = {.p = (const char *)data + 1, .n = n - 1};
    float vectors[TEXTS_MAX * DIM_MAX], again[TEXTS_MAX * DIM_MAX];
    uint32_t n_tokens = 0;
    struct err e = {0};
    int rc = remote_api_answer(&m, body, n_texts, vectors, &n_tokens, &e);
    if (rc) {
        if (rc != KITH_EPROTO || e.code != rc || !e.message[0] || n_tokens)
            abort();
        check_line(e.message, 300);
    } else {
        check_vectors(vectors, n_texts, m.dim);
        if (remote_api_answer(&m, body, n_texts, again, &n_tokens, &e) ||
            memcmp(vectors, again, sizeof(float) * n_texts * m.dim) != 0)
            abort();
    }
    char complaint[64];
    remote_api_complaint(&m, body, complaint, sizeof complaint);
    check_line(complaint, sizeof complaint);
    if (strstr(complaint, "key"))
        abort();
    return 0;
}
