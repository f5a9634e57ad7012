/* Full vectors beside the codes, for sets that were declared to keep them: to rescore what the
 * codes found, and to give back what was given. One record a slot, written before the slot is
 * published and not again before it was handed back, so readers need no lock. */
#include "base/mem.h"
#include "index/vectors.h"
#include "server/vset_parts.h"

uint32_t kept_stride(const struct vset_params *p)
{
    switch (p->keep) {
    case VSET_KEEP_F32:
        return p->index.dim * (uint32_t)sizeof(float);
    case VSET_KEEP_F16:
        return p->index.dim * (uint32_t)sizeof(uint16_t);
    case VSET_KEEP_NONE:
        break;
    }
    return 0;
}

int kept_write(struct vset *v, uint32_t slot, const float *vector, struct err *e)
{
    struct records *kept = vset_array(v, ARRAY_KEPT);
    uint32_t dim = v->params.index.dim;
    if (!kept)
        return 0;
    char *p = records_writable(kept, slot, e);
    if (!p)
        return e->code;
    if (v->params.keep == VSET_KEEP_F32) {
        memcpy(p, vector, (size_t)dim * sizeof *vector);
        return 0;
    }
    float *unit = mem_alloc_n(dim, sizeof *unit);
    if (!unit)
        return err_set(e, KITH_ENOMEM, "out of memory for a vector");
    vector_normalise(vector, dim, unit);
    vector_to_half(unit, dim, (uint16_t *)(void *)p);
    mem_free(unit);
    return 0;
}

int vset_vector(struct vset *v, uint32_t slot, float *out, struct err *e)
{
    struct records *kept = vset_array(v, ARRAY_KEPT);
    uint32_t dim = v->params.index.dim;
    if (!kept)
        return index_vector(v->index, slot, out, e);
    struct index_code code;
    int rc = index_code(v->index, slot, &code, e); /* also whether there is an element at all */
    const char *p = rc == 0 ? records_at(kept, slot, e) : NULL;
    if (!p)
        return rc ? rc : KITH_ECORRUPT;
    if (v->params.keep == VSET_KEEP_F32) {
        memcpy(out, p, (size_t)dim * sizeof *out);
        return 0;
    }
    vector_from_half((const uint16_t *)(const void *)p, dim, out);
    for (uint32_t i = 0; i < dim; i++)
        out[i] *= code.norm;
    return 0;
}
