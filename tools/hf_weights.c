/* The safetensors files of a folder: one, or the shards of an index. */

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "tools/hf_json.h"
#include "tools/hf_tensors.h"

/* Whether the shard is among the first n that the index names. */
static bool is_named(const char *const *names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

/* The different files of {"weight_map": {"tensor": "file"}}. */
static int list_shards(const json_t *index, const char *names[HF_SHARDS_MAX], size_t *n,
                       struct err *e)
{
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return err_set(e, KITH_EFORMAT, "model.safetensors.index.json has no weight_map");
    const char *tensor;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, v)
    {
        const char *name = json_string_value(v);
        if (!name || !*name || strchr(name, '/'))
            return err_set(e, KITH_EFORMAT,
                           "model.safetensors.index.json: tensor '%.128s' is in no file of the "
                           "folder",
                           tensor);
        if (is_named(names, *n, name))
            continue;
        if (*n == HF_SHARDS_MAX)
            return err_set(e, KITH_ELIMIT,
                           "model.safetensors.index.json names more than %d files",
                           HF_SHARDS_MAX);
        names[(*n)++] = name;
    }
    return 0;
}

static int open_files(struct hf_weights *w, const char *dir, const char *const *names, size_t n,
                      struct err *e)
{
    w->files = mem_calloc(n, sizeof *w->files);
    if (!w->files)
        return err_set(e, KITH_ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) {
        char path[HF_PATH_BYTES];
        int rc = hf_path(path, dir, names[i], e);
        if (!rc)
            rc = safetensors_open(&w->files[i], path, e);
        if (rc)
            return rc;
        w->n++;
    }
    return 0;
}

static int open_shards(struct hf_weights *w, const char *dir, struct err *e)
{
    const char *names[HF_SHARDS_MAX];
    size_t n = 0;
    json_t *index;
    int rc = hf_json_load(&index, dir, "model.safetensors.index.json", e);
    if (rc)
        return rc;
    rc = list_shards(index, names, &n, e);
    if (!rc)
        rc = open_files(w, dir, names, n, e);
    json_decref(index);
    return rc;
}

int hf_weights_open(struct hf_weights *w, const struct hf_model *m, const char *dir,
                    struct err *e)
{
    static const char *const whole[] = {"model.safetensors"};
    memset(w, 0, sizeof *w);
    int rc;
    if (!hf_has_file(dir, whole[0]) && hf_has_file(dir, "model.safetensors.index.json"))
        rc = open_shards(w, dir, e);
    else
        rc = open_files(w, dir, whole, 1, e);
    for (unsigned i = 0; i < m->n_dense && !rc; i++) {
        char name[HF_MODULE_PATH_BYTES + 32], path[HF_PATH_BYTES];
        snprintf(name, sizeof name, "%s/model.safetensors", m->dense[i].dir);
        rc = hf_path(path, dir, name, e);
        if (!rc)
            rc = safetensors_open(&w->dense[i], path, e);
        if (!rc)
            w->n_dense++;
    }
    if (rc)
        hf_weights_close(w);
    return rc;
}

void hf_weights_close(struct hf_weights *w)
{
    for (size_t i = 0; i < w->n; i++)
        safetensors_close(&w->files[i]);
    for (unsigned i = 0; i < w->n_dense; i++)
        safetensors_close(&w->dense[i]);
    mem_free(w->files);
    memset(w, 0, sizeof *w);
}
