/* The table of architectures, and what follows from a description alone. */

#include "engine/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/model_architecture.h"

static const struct architecture architectures[] = {
    {.name = "bert",
     .position = POSITION_LEARNED,
     .norm = NORM_LAYER,
     .activation = ACTIVATION_GELU,
     .pooling = POOLING_MEAN,
     .post_norm = true,
     .embd_norm = true,
     .linear_bias = true,
     .norm_bias = true,
     .may_rank = true},
    {.name = "nomic-bert",
     .position = POSITION_ROTARY,
     .norm = NORM_LAYER,
     .activation = ACTIVATION_SILU,
     .pooling = POOLING_MEAN,
     .gated = true,
     .post_norm = true,
     .embd_norm = true,
     .norm_bias = true,
     .rotary_base = 1000},
    {.name = "jina-bert-v2",
     .position = POSITION_ALIBI,
     .norm = NORM_LAYER,
     .activation = ACTIVATION_GELU,
     .pooling = POOLING_MEAN,
     .gated = true,
     .post_norm = true,
     .embd_norm = true,
     .norm_bias = true,
     .may_rank = true,
     .alibi_bias = 8},
    {.name = "modern-bert",
     .position = POSITION_ROTARY,
     .norm = NORM_LAYER,
     .activation = ACTIVATION_GELU,
     .pooling = POOLING_MEAN,
     .gated = true,
     .embd_norm = true,
     .output_norm = true,
     .first_attn_in_absent = true,
     .rotary_base = 160000,
     .rotary_base_window = 10000,
     .window_period = 3,
     .first_sees_all = true},
    {.name = "gemma-embedding",
     .position = POSITION_ROTARY,
     .norm = NORM_RMS,
     .activation = ACTIVATION_GELU_TANH,
     .pooling = POOLING_MEAN,
     .gated = true,
     .branch_norm = true,
     .output_norm = true,
     .head_norm = true,
     .scale_embd = true,
     .rotary_base = 1000000,
     .rotary_base_window = 10000,
     .window_period = 6},
    {.name = "qwen3",
     .position = POSITION_ROTARY,
     .norm = NORM_RMS,
     .activation = ACTIVATION_SILU,
     .pooling = POOLING_LAST,
     .gated = true,
     .causal = true,
     .output_norm = true,
     .head_norm = true,
     .may_rank = true,
     .rotary_base = 1000000},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

const struct architecture *architecture_find(const char *name, size_t n)
{
    for (size_t i = 0; i < N_ARCHITECTURES; i++)
        if (strlen(architectures[i].name) == n && memcmp(architectures[i].name, name, n) == 0)
            return &architectures[i];
    return NULL;
}

void model_architectures(char *out, size_t n)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < N_ARCHITECTURES && used < n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%s", i ? ", " : "",
                                 architectures[i].name);
}

uint32_t model_dim(const struct model *m)
{
    if (m->pooling == POOLING_RANK)
        return 1;
    return m->n_dense ? (uint32_t)m->dense[m->n_dense - 1].matrix.n_rows : m->n_embd;
}

float model_alibi_slope(const struct model *m, uint32_t head)
{
    uint32_t power = 1;
    while (power * 2 <= m->n_heads)
        power *= 2;
    double step = (double)m->alibi_bias / power;
    double exponent = head < power ? step * (head + 1) : step / 2 * (2 * (head - power) + 1);
    return (float)exp2(-exponent);
}

void model_weights(const struct model *m, struct model_weights *out)
{
    size_t bytes[TENSOR_TYPES_END] = {0};
    *out = (struct model_weights){.quantized = true};
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct model_layer *l = &m->layers[i];
        const struct model_matrix *const matrices[] = {&l->q,    &l->k,  &l->v,   &l->o,
                                                       &l->gate, &l->up, &l->down};
        for (size_t k = 0; k < sizeof matrices / sizeof *matrices; k++) {
            const struct tensor *t = matrices[k]->w;
            if (!t)
                continue;
            bytes[t->type] += t->bytes / t->ne[1] * matrices[k]->n_rows;
            if (tensor_block_elements(t->type) == 1)
                out->quantized = false;
        }
    }
    int n_types = 0;
    for (int t = 0; t < TENSOR_TYPES_END; t++) {
        n_types += bytes[t] > 0;
        if (bytes[t] > bytes[out->type])
            out->type = (enum tensor_type)t;
    }
    out->mixed = n_types > 1;
}

void model_unbind(struct model *m)
{
    mem_free(m->layers);
    m->layers = NULL;
}

const char *model_precision_name(enum model_precision precision)
{
    static const char *const names[] = {[MODEL_AUTO] = "auto",
                                        [MODEL_F32] = "f32",
                                        [MODEL_INT8] = "int8",
                                        [MODEL_BF16] = "bf16"};
    return names[precision];
}
