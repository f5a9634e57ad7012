#include "engine/tensor.h"

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/half.h"

enum { Q8_0_ELEMENTS = 32, Q8_0_BYTES = 34 };

size_t tensor_block_elements(enum tensor_type type)
{
    switch (type) {
    case TENSOR_F32:
    case TENSOR_F16:
    case TENSOR_BF16:
        return 1;
    case TENSOR_Q8_0:
        return Q8_0_ELEMENTS;
    }
    return 0;
}

size_t tensor_block_bytes(enum tensor_type type)
{
    switch (type) {
    case TENSOR_F32:
        return 4;
    case TENSOR_F16:
    case TENSOR_BF16:
        return 2;
    case TENSOR_Q8_0:
        return Q8_0_BYTES;
    }
    return 0;
}

const char *tensor_type_name(enum tensor_type type)
{
    switch (type) {
    case TENSOR_F32:
        return "F32";
    case TENSOR_F16:
        return "F16";
    case TENSOR_BF16:
        return "BF16";
    case TENSOR_Q8_0:
        return "Q8_0";
    }
    return "unknown";
}

int tensor_row_bytes(enum tensor_type type, uint64_t ne0, size_t *bytes, struct err *e)
{
    size_t elements = tensor_block_elements(type);
    if (elements == 0)
        return err_set(e, KITH_EUNSUPPORTED, "tensor type %d is not computed here", (int)type);
    if (ne0 % elements)
        return err_set(e, KITH_EFORMAT,
                       "a row of %llu elements is no multiple of the %zu of a %s block",
                       (unsigned long long)ne0, elements, tensor_type_name(type));
    if (mem_mul_overflows(ne0 / elements, tensor_block_bytes(type), bytes))
        return err_set(e, KITH_EFORMAT, "a row of %llu elements overflows",
                       (unsigned long long)ne0);
    return 0;
}

static void row_q8_0(const unsigned char *p, size_t n, float *out)
{
    for (size_t b = 0; b < n / Q8_0_ELEMENTS; b++, p += Q8_0_BYTES) {
        float scale = half_to_f32(load_u16(p));
        for (size_t i = 0; i < Q8_0_ELEMENTS; i++)
            out[b * Q8_0_ELEMENTS + i] = scale * (float)(int8_t)p[2 + i];
    }
}

void tensor_row_f32(const struct tensor *t, uint64_t row, float *out)
{
    size_t n = (size_t)t->ne[0];
    size_t bytes = n / tensor_block_elements(t->type) * tensor_block_bytes(t->type);
    const unsigned char *p = (const unsigned char *)t->data + row * bytes;
    switch (t->type) {
    case TENSOR_F32:
        memcpy(out, p, bytes);
        break;
    case TENSOR_F16:
        for (size_t i = 0; i < n; i++)
            out[i] = half_to_f32(load_u16(p + 2 * i));
        break;
    case TENSOR_BF16:
        for (size_t i = 0; i < n; i++)
            out[i] = half_bf16_to_f32(load_u16(p + 2 * i));
        break;
    case TENSOR_Q8_0:
        row_q8_0(p, n, out);
        break;
    }
}
