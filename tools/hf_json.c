#include "tools/hf_json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/file.h"

int hf_path(char path[HF_PATH_BYTES], const char *dir, const char *name, struct err *e)
{
    if (snprintf(path, HF_PATH_BYTES, "%s/%s", dir, name) >= HF_PATH_BYTES)
        return err_set(e, KITH_EINVAL, "path too long: %s/%s", dir, name);
    return 0;
}

bool hf_has_file(const char *dir, const char *name)
{
    char path[HF_PATH_BYTES];
    return hf_path(path, dir, name, NULL) == 0 && file_exists(path);
}

int hf_json_load(json_t **out, const char *dir, const char *name, struct err *e)
{
    char path[HF_PATH_BYTES];
    int rc = hf_path(path, dir, name, e);
    struct buf text;
    buf_init(&text);
    if (!rc)
        rc = file_read_whole(path, HF_JSON_MAX_BYTES, &text, e);
    if (!rc) {
        json_error_t where;
        *out = json_loadb(text.data ? text.data : "", text.len, 0, &where);
        if (!*out)
            rc = err_set(e, KITH_EFORMAT, "%s, line %d: %s", path, where.line, where.text);
    }
    buf_deinit(&text);
    return rc;
}

static bool is_absent(const json_t *v)
{
    return !v || json_is_null(v);
}

static int take_count(const json_t *j, const char *key, uint32_t *v, struct err *e)
{
    if (!json_is_integer(j) || json_integer_value(j) < 1 ||
        json_integer_value(j) > HF_DIMENSION_MAX)
        return err_set(e, KITH_EFORMAT, "config.json: '%s' must be a count from 1 to %d", key,
                       HF_DIMENSION_MAX);
    *v = (uint32_t)json_integer_value(j);
    return 0;
}

int hf_need_count(const json_t *config, const char *key, const char *key2, uint32_t *v,
                  struct err *e)
{
    const json_t *j = json_object_get(config, key);
    if (is_absent(j) && key2 && json_object_get(config, key2))
        return take_count(json_object_get(config, key2), key2, v, e);
    return take_count(j, key, v, e);
}

int hf_want_count(const json_t *config, const char *key, uint32_t otherwise, uint32_t *v,
                  struct err *e)
{
    const json_t *j = json_object_get(config, key);
    *v = otherwise;
    return is_absent(j) ? 0 : take_count(j, key, v, e);
}

int hf_want_number(const json_t *config, const char *key, double otherwise, float *v,
                   struct err *e)
{
    const json_t *j = json_object_get(config, key);
    double number = is_absent(j) ? otherwise : json_is_number(j) ? json_number_value(j) : NAN;
    *v = (float)number;
    if (!(*v > 0) || !isfinite(*v))
        return err_set(e, KITH_EFORMAT, "config.json: '%s' must be a number above 0", key);
    return 0;
}

int hf_need_text(const json_t *config, const char *key, const char *only, struct err *e)
{
    const json_t *j = json_object_get(config, key);
    const char *s = json_string_value(j);
    if (!is_absent(j) && (!s || strcmp(s, only) != 0))
        return err_set(e, KITH_EUNSUPPORTED, "config.json: '%s' is '%s'; '%s' can be converted",
                       key, s ? s : "(no text)", only);
    return 0;
}

int hf_need_bool(const json_t *config, const char *key, bool only, struct err *e)
{
    const json_t *j = json_object_get(config, key);
    if (!is_absent(j) && !(only ? json_is_true(j) : json_is_false(j)))
        return err_set(e, KITH_EUNSUPPORTED,
                       "config.json: '%s' is %s; only a model where it is %s can be converted",
                       key, json_is_boolean(j) ? only ? "false" : "true" : "no truth value",
                       only ? "true" : "false");
    return 0;
}

int hf_need_absent(const json_t *config, const char *key, const char *why, struct err *e)
{
    if (!is_absent(json_object_get(config, key)))
        return err_set(e, KITH_EUNSUPPORTED, "config.json: '%s' is set; %s", key, why);
    return 0;
}

const char *hf_text(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

bool hf_is_true(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

bool hf_is_type(const json_t *object, const char *type)
{
    const char *s = hf_text(object, "type");
    return s && strcmp(s, type) == 0;
}
