#include "engine/tensor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

size_t tensor_block_elements(enum tensor_type type)
{
    const struct block_type *b = block_type(type);
    return b ? b->elements : 0;
}

size_t tensor_block_bytes(enum tensor_type type)
{
    const struct block_type *b = block_type(type);
    return b ? b->bytes : 0;
}

const char *tensor_type_name(enum tensor_type type)
{
    const struct block_type *b = block_type(type);
    return b ? b->name : "unknown";
}

void tensor_type_list(char *out, size_t n)
{
    enum tensor_type type;
    const struct block_type *b;
    size_t used = 0;
    for (size_t i = 0; (b = block_type_at(i, &type)) && used < n; i++) {
        const char *joint = i == 0 ? "" : block_type_at(i + 1, &type) ? ", " : " and ";
        used += (size_t)snprintf(out + used, n - used, "%s%s", joint, b->name);
    }
}

static int refuse_type(uint32_t id, struct err *e)
{
    char list[128];
    bool removed = false;
    const char *name = block_foreign_name(id, &removed);
    if (removed)
        return err_set(e, KITH_EUNSUPPORTED,
                       "type %u (%s) was removed from GGUF: make the file anew from the model",
                       id, name);
    tensor_type_list(list, sizeof list);
    return err_set(e, KITH_EUNSUPPORTED, "type %u (%s) is not computed here; %s are", id,
                   name ? name : "unknown", list);
}

int tensor_row_bytes(enum tensor_type type, uint64_t ne0, size_t *bytes, struct err *e)
{
    size_t elements = tensor_block_elements(type);
    if (elements == 0)
        return refuse_type((uint32_t)type, e);
    if (ne0 % elements)
        return err_set(e, KITH_EFORMAT,
                       "a row of %llu elements is no multiple of the %zu of a %s block",
                       (unsigned long long)ne0, elements, tensor_type_name(type));
    if (mem_mul_overflows(ne0 / elements, tensor_block_bytes(type), bytes))
        return err_set(e, KITH_EFORMAT, "a row of %llu elements overflows",
                       (unsigned long long)ne0);
    return 0;
}

void tensor_row_f32(const struct tensor *t, uint64_t row, float *out)
{
    const struct block_type *type = block_type(t->type);
    size_t n = (size_t)t->ne[0] / type->elements;
    type->decode((const unsigned char *)t->data + row * n * type->bytes, n, out);
}

/* To the nearest integer, ties to even, for magnitudes below 2^22; plain arithmetic, which the
 * compiler makes vectors of. */
static float nearest(float v)
{
    const float shift = 0x1.8p23f;
    return v + shift - shift;
}

/* The sum of squares that codes of this scale miss. */
static float missed(const float *x, float scale)
{
    float inverse = 1.0f / scale, sums[4] = {0};
    for (int i = 0; i < BLOCK_ELEMENTS; i += 4)
        for (int j = 0; j < 4; j++) {
            float miss = x[i + j] - scale * nearest(x[i + j] * inverse);
            sums[j] += miss * miss;
        }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

/* Values on a grid fit a scale that is a whole part of the grid's step best: they then all miss
 * their codes by the same, and one of the parts makes that small. Any fraction of the step from
 * the finest that 127 codes reach is tried, down to a third of that. */
static float best_scale(const float *x, float largest, float step)
{
    float best = largest / 127.0f, least = step > 0x1p-100f ? missed(x, best) : 0;
    int finest = least > 0 ? (int)(127.0f * step / largest) : 0;
    for (int k = finest; k > finest / 3; k--) {
        float scale = step / (float)k, miss = missed(x, scale);
        if (miss < least) {
            least = miss;
            best = scale;
        }
    }
    return best;
}

static void quantize(const float *x, float step, int8_t *codes, float *scale)
{
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < BLOCK_ELEMENTS; i++) {
        float magnitude = fabsf(x[i]);
        finite = finite && isfinite(magnitude);
        largest = magnitude > largest ? magnitude : largest;
    }
    if (!finite || largest < 0x1p-100f) { /* no code says so, or too small to divide by */
        memset(codes, 0, BLOCK_ELEMENTS);
        *scale = finite ? 0 : NAN;
        return;
    }
    *scale = best_scale(x, largest, step);
    float inverse = 1.0f / *scale;
    for (int i = 0; i < BLOCK_ELEMENTS; i++) {
        float code = nearest(x[i] * inverse);
        codes[i] = (int8_t)(code > 127 ? 127 : code < -127 ? -127 : code);
    }
}

void tensor_row_int8(const struct tensor *t, uint64_t row, int8_t *codes, float *scales)
{
    const struct block_type *type = block_type(t->type);
    size_t n = (size_t)t->ne[0], bytes = n / type->elements * type->bytes;
    const unsigned char *p = (const unsigned char *)t->data + row * bytes;
    size_t step = type->elements < BLOCK_ELEMENTS ? BLOCK_ELEMENTS : type->elements;
    float values[SUPERBLOCK_ELEMENTS];
    for (size_t i = 0; i < n; i += step, p += step / type->elements * type->bytes) {
        if (type->codes && type->codes(p, codes + i, &scales[i / BLOCK_ELEMENTS]))
            continue;
        type->decode(p, step / type->elements, values);
        for (size_t j = 0; j < step; j += BLOCK_ELEMENTS)
            quantize(values + j, type->step ? type->step(p, (int)(j / BLOCK_ELEMENTS)) : 0,
                     codes + i + j, &scales[(i + j) / BLOCK_ELEMENTS]);
    }
}
