#pragma once
/* What the readers of a Hugging Face folder share: its JSON files, and values that are checked
 * before they are used. An error names the file, the key, what came and what would be right. It
 * knows nothing of models. Thread: any. */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { HF_PATH_BYTES = 4096, HF_JSON_MAX_BYTES = 64 << 20, HF_DIMENSION_MAX = 1 << 22 };

int hf_path(char path[HF_PATH_BYTES], const char *dir, const char *name, struct err *e);
bool hf_has_file(const char *dir, const char *name);
/* The file as JSON; *out is the caller's (json_decref). */
int hf_json_load(json_t **out, const char *dir, const char *name, struct err *e);

/* A count from 1 to HF_DIMENSION_MAX under one of two keys (key2 may be NULL), of config.json.
 */
int hf_need_count(const json_t *config, const char *key, const char *key2, uint32_t *v,
                  struct err *e);
/* The same, or `otherwise` where the key is missing or null. */
int hf_want_count(const json_t *config, const char *key, uint32_t otherwise, uint32_t *v,
                  struct err *e);
/* A positive finite number, or `otherwise` where the key is missing or null. */
int hf_want_number(const json_t *config, const char *key, double otherwise, float *v,
                   struct err *e);
/* Refuses a setting that is there and is not the one value that is computed. */
int hf_need_text(const json_t *config, const char *key, const char *only, struct err *e);
int hf_need_bool(const json_t *config, const char *key, bool only, struct err *e);
/* Refuses a setting that is there and not null; `why` ends the sentence. */
int hf_need_absent(const json_t *config, const char *key, const char *why, struct err *e);

/* The value of a string member, or NULL. */
const char *hf_text(const json_t *object, const char *key);
bool hf_is_true(const json_t *object, const char *key);
/* Whether the member "type" is this. */
bool hf_is_type(const json_t *object, const char *type);
