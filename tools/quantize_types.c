#include "tools/quantize_types.h"

#include <stdlib.h>
#include <string.h>

enum { LAYERS_MAX = 1 << 16 };

static const struct quantize_recipe recipes[] = {
    {"f32", TENSOR_F32, QUANTIZE_PURE, 0},        {"f16", TENSOR_F16, QUANTIZE_PURE, 1},
    {"bf16", TENSOR_BF16, QUANTIZE_PURE, 32},     {"q8_0", TENSOR_Q8_0, QUANTIZE_PURE, 7},
    {"q4_0", TENSOR_Q4_0, QUANTIZE_PURE, 2},      {"q4_1", TENSOR_Q4_1, QUANTIZE_PURE, 3},
    {"q5_0", TENSOR_Q5_0, QUANTIZE_PURE, 8},      {"q5_1", TENSOR_Q5_1, QUANTIZE_PURE, 9},
    {"q4_k", TENSOR_Q4_K, QUANTIZE_PURE, 14},     {"q5_k", TENSOR_Q5_K, QUANTIZE_PURE, 16},
    {"q6_k", TENSOR_Q6_K, QUANTIZE_PURE, 18},     {"iq4_nl", TENSOR_IQ4_NL, QUANTIZE_PURE, 25},
    {"q4_k_s", TENSOR_Q4_K, QUANTIZE_SMALL, 14},  {"q4_k_m", TENSOR_Q4_K, QUANTIZE_MEDIUM, 15},
    {"q5_k_m", TENSOR_Q5_K, QUANTIZE_MEDIUM, 17},
};

const struct quantize_recipe *quantize_recipe_find(const char *name)
{
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++)
        if (strcmp(recipes[i].name, name) == 0)
            return &recipes[i];
    return NULL;
}

int64_t quantize_layer_of(const char *name, const char **what)
{
    *what = name;
    if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9')
        return -1;
    char *end;
    unsigned long layer = strtoul(name + 4, &end, 10);
    if (*end != '.' || layer >= LAYERS_MAX)
        return -1;
    *what = end + 1;
    return (int64_t)layer;
}

static bool stays_f32(const struct tensor *t)
{
    static const char *const kept[] = {"_norm", "position_embd", "token_types", "ffn_gate_inp"};
    size_t n = strlen(t->name);
    if (t->n_dims < 2 || n < 7 || strcmp(t->name + n - 7, ".weight") != 0)
        return true;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (strstr(t->name, kept[i]))
            return true;
    return false;
}

/* The layers that a medium mix gives more bits. */
static bool favoured(int64_t layer, int64_t n)
{
    return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
}

static enum tensor_type mixed_type(const struct quantize_recipe *r,
                                   const struct quantize_model *m, const struct tensor *t)
{
    const char *what;
    int64_t layer = quantize_layer_of(t->name, &what);
    if (strcmp(t->name, m->has_output ? "output.weight" : "token_embd.weight") == 0)
        return TENSOR_Q6_K;
    bool v = strcmp(what, "attn_v.weight") == 0, down = strcmp(what, "ffn_down.weight") == 0;
    if (layer < 0)
        return r->type;
    if (r->mix == QUANTIZE_SMALL)
        return (v && layer < 4) || (down && layer < m->n_layers / 8) ? TENSOR_Q5_K : r->type;
    if (strcmp(what, "attn_qkv.weight") == 0)
        return r->type == TENSOR_Q4_K ? TENSOR_Q5_K : TENSOR_Q6_K;
    return (v || down) && favoured(layer, m->n_layers) ? TENSOR_Q6_K : r->type;
}

static enum tensor_type fitting_type(enum tensor_type type, uint64_t ne0)
{
    if (ne0 % tensor_block_elements(type) != 0)
        type = type == TENSOR_Q4_K   ? TENSOR_Q5_0
               : type == TENSOR_Q5_K ? TENSOR_Q5_1
               : type == TENSOR_Q6_K ? TENSOR_Q8_0
                                     : TENSOR_F16;
    return ne0 % tensor_block_elements(type) != 0 ? TENSOR_F16 : type;
}

enum tensor_type quantize_type_of(const struct quantize_recipe *r,
                                  const struct quantize_model *m, const struct tensor *t)
{
    if (stays_f32(t))
        return TENSOR_F32;
    enum tensor_type type = r->mix == QUANTIZE_PURE ? r->type : mixed_type(r, m, t);
    return fitting_type(type, t->ne[0]);
}
