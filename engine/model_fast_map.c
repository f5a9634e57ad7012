/* Packed weights out of a file, and into one. The module packed_cache has the format; here it
 * is filled with what a model's shape says. */

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/model_fast_internal.h"
#include "engine/packed_cache.h"

static struct packed_identity identity_of(const struct engine_kernels *kernels,
                                          enum model_precision precision, const char *hash)
{
    return (struct packed_identity){.model = hash,
                                    .kernels = kernels->name,
                                    .precision = model_precision_name(precision),
                                    .panel = kernels->product->panel};
}

static int set_path(struct model_packed *p, const struct engine_kernels *kernels,
                    enum model_precision precision, struct err *e)
{
    int n = snprintf(p->path, sizeof p->path, "%s.%s-%s.packed", p->model_path, kernels->name,
                     model_precision_name(precision));
    return n >= 0 && (size_t)n < sizeof p->path
               ? 0
               : err_set(e, KITH_EINVAL, "the path of the model file is too long");
}

/* What the file has to hold, for matrices whose shapes are known. */
static struct packed_matrix *list(struct model_fast *f, struct err *e)
{
    const uint32_t n = fast_n_matrices(f->m);
    struct packed_matrix *out = mem_calloc(n, sizeof *out);
    if (!out) {
        err_set(e, KITH_ENOMEM, "out of memory for the list of packed weights");
        return NULL;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct fast_matrix *m = fast_matrix_at(f, i);
        out[i] = (struct packed_matrix){
            .n_in = m->n_in,
            .n_out = m->n_out,
            .precision = (uint32_t)m->precision,
            .n_outliers = m->precision == MODEL_INT8 ? OUTLIERS_MAX : 0,
            .bytes = fast_matrix_bytes(m, f->kernels->product),
            .data = m->block,
        };
        memcpy(out[i].outliers, m->outliers, sizeof m->outliers);
    }
    return out;
}

/* The matrices lie in the map from now on. */
static void place(struct model_fast *f, const struct packed_matrix *list)
{
    for (uint32_t i = 0; i < fast_n_matrices(f->m); i++) {
        struct fast_matrix *m = fast_matrix_at(f, i);
        m->n_outliers = list[i].n_outliers;
        memcpy(m->outliers, list[i].outliers, sizeof m->outliers);
        if (!m->mapped)
            mem_free(m->block);
        fast_matrix_place(m, f->kernels->product, (void *)(uintptr_t)list[i].data, true);
    }
}

static int read_map(struct model_fast *f, const struct file_map *map, const char *hash,
                    struct err *e)
{
    const struct packed_identity id = identity_of(f->kernels, f->precision, hash);
    struct packed_matrix *matrices = list(f, e);
    int rc = matrices ? packed_cache_read(map->data, map->bytes, &id, matrices,
                                          fast_n_matrices(f->m), e)
                      : KITH_ENOMEM;
    if (rc == 0)
        place(f, matrices);
    mem_free(matrices);
    return rc;
}

int model_fast_map(struct model_fast **out, const struct model *m,
                   enum model_precision precision, struct model_packed *packed, struct err *e)
{
    const struct engine_kernels *kernels;
    enum model_precision resolved;
    struct model_fast *f = NULL;
    struct file_map map = {0};
    int rc = engine_kernels(&kernels, e);
    if (rc == 0)
        rc = fast_resolve(&resolved, m, kernels, precision, e);
    if (rc == 0)
        rc = set_path(packed, kernels, resolved, e);
    if (rc == 0)
        rc = file_map_open(&map, packed->path, e);
    if (rc == 0)
        rc = fast_begin(&f, m, precision, e);
    for (uint32_t i = 0; rc == 0 && i < fast_n_matrices(m); i++) {
        const struct fast_source source = fast_source_at(m, i);
        rc = fast_matrix_shape(f, fast_matrix_at(f, i), fast_precision_at(f, i), &source, e);
    }
    if (rc == 0)
        rc = read_map(f, &map, packed->model_hash, e);
    if (rc != 0) {
        model_fast_free(f);
        file_map_close(&map);
        return rc;
    }
    packed->bytes = map.bytes;
    f->packed = map;
    *out = f;
    return 0;
}

/* From the file as it was written: another process may have put its own there since, which is
 * as good, where it is whole. */
static int move_into(struct model_fast *f, struct model_packed *packed, struct err *e)
{
    struct file_map map;
    int rc = file_map_open(&map, packed->path, e);
    if (rc == 0)
        rc = read_map(f, &map, packed->model_hash, e);
    if (rc != 0) {
        file_map_close(&map);
        return rc;
    }
    packed->bytes = map.bytes;
    f->packed = map;
    mem_trim();
    return 0;
}

int model_fast_save(struct model_fast *f, struct model_packed *packed, struct err *e)
{
    const struct packed_identity id = identity_of(f->kernels, f->precision, packed->model_hash);
    struct packed_matrix *matrices = list(f, e);
    struct stat st;
    int rc = matrices ? set_path(packed, f->kernels, f->precision, e) : KITH_ENOMEM;
    /* Who may read the model may read what was made of it, and nobody else. */
    mode_t mode = stat(packed->model_path, &st) == 0 ? st.st_mode & 0666 : 0600;
    if (rc == 0)
        rc = packed_cache_write(packed->path, mode | S_IRUSR | S_IWUSR, &id, matrices,
                                fast_n_matrices(f->m), e);
    mem_free(matrices);
    return rc != 0 ? rc : move_into(f, packed, e);
}
