/* A model file of any bytes: opened, walked, bound, its tokenizer loaded and used, and, where
 * all that succeeds, one forward pass of the reference. Whatever the bytes, nothing may be read
 * or written outside, leak, or take more memory than the file justifies.
 *
 * The seeds are the model of tests/unit/engine_fixture.h: whole, cut, and with single wrong
 * parts; and a tensor of random blocks of each type. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "engine/gguf.h"
#include "engine/model.h"
#include "engine/wordpiece.h"

enum { MAX_WORK = 1 << 22, MAX_IDS = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Sums every row of small tensors: the reads are the point. */
static void read_tensors(const struct gguf *g)
{
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct tensor *t = gguf_tensor_at(g, i);
        if (gguf_tensor(g, t->name) != t)
            abort();
        float *row = malloc((size_t)t->ne[0] * sizeof *row);
        if (!row)
            continue;
        tensor_row_f32(t, 0, row);
        tensor_row_f32(t, t->ne[1] * t->ne[2] * t->ne[3] - 1, row);
        free(row);
    }
}

static void forward(const struct gguf *g, const struct wordpiece *w)
{
    struct model b;
    struct err e;
    if (model_bind(&b, g, &e))
        return;
    int32_t ids[MAX_IDS] = {0};
    size_t n = 0;
    if (w)
        wordpiece_encode(w, "the vector is ab", 16, ids, MAX_IDS, &n, &e);
    uint32_t n_tokens = n < 1 ? 1 : n > MAX_IDS ? MAX_IDS : (uint32_t)n;
    uint64_t work = (uint64_t)b.n_embd * (b.n_embd + b.n_ff) * b.n_layers;
    float *out = malloc(b.n_embd * sizeof *out);
    if (out && work <= MAX_WORK)
        model_reference_forward(&b, ids, n_tokens < b.n_ctx ? n_tokens : b.n_ctx, UINT32_MAX,
                                out, &e);
    free(out);
    model_unbind(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g;
    struct wordpiece *w = NULL;
    struct err e;
    if (gguf_open_memory(&g, data, size, &e))
        return 0;
    read_tensors(g);
    if (wordpiece_new(&w, g, &e))
        w = NULL;
    forward(g, w);
    wordpiece_free(w);
    gguf_close(g);
    return 0;
}
