#pragma once
/* A model as someone asked for it: its name, where it comes from and how it is to run. One
 * form, read from MODEL LOAD's arguments, from `model` lines of the settings file and from
 * models.conf:
 *
 *   name path [DEFAULT] [THREADS n] [PRECISION auto|f32|int8]
 *   name openai+URL#model | ollama+URL#model DIM n [the same] [options of remote models]
 *
 * A kind says what the source is: a file of this machine, or a model behind an HTTP endpoint,
 * whose options are those of kith-engine --remote. What a kind needs of its child stands in the
 * child's arguments (model_spec_arguments), and the registry looks at nothing else. Knows no
 * engine and no registry. Thread: no shared state. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

enum {
    MODEL_NAME_MAX = 63,
    MODEL_SOURCE_MAX = 4095,
    MODEL_THREADS_MAX = 1024,
    MODEL_REMOTE_OPTIONS = 12,
    MODEL_REMOTE_VALUE_MAX = 1023,
    MODEL_ARGUMENTS_MAX = 16 + 2 * MODEL_REMOTE_OPTIONS
};

enum model_kind { MODEL_FILE, MODEL_REMOTE };

struct model_spec {
    enum model_kind kind;
    char name[MODEL_NAME_MAX + 1];
    char source[MODEL_SOURCE_MAX + 1]; /* a path, or style+URL#model as it was given */
    /* MODEL_REMOTE: an option's value by its number in model_spec.c; "": not given. */
    char remote[MODEL_REMOTE_OPTIONS][MODEL_REMOTE_VALUE_MAX + 1];
    char precision[8]; /* "": engine-precision */
    int threads;       /* -1: engine-threads */
    bool is_default;
};

#define MODEL_NAMES_ALLOWED "1 to 63 letters, digits and ._:/- are allowed"

bool model_name_valid(struct slice name);
/* The message of an error says what came and what is allowed. */
int model_spec_read(struct model_spec *s, const struct slice *words, int n, struct err *e);
/* The words again, quoted where a settings file needs it, without an end of line. */
void model_spec_write(const struct model_spec *s, struct buf *out);
/* The same model run in the same way; DEFAULT is not part of it. */
bool model_spec_same(const struct model_spec *a, const struct model_spec *b);

/* A path that begins elsewhere is one from this process's directory; after it the spec means
 * the same in any. KITH_ELIMIT: it does not fit. */
int model_spec_make_absolute(struct model_spec *s, struct err *e);

/* What is put on the child's command line. */
struct model_arguments {
    const char *words[MODEL_ARGUMENTS_MAX]; /* NULL-terminated; point into s and what follows */
    char threads[24], style[16], url[MODEL_SOURCE_MAX + 1];
};
/* precision and threads: of the settings, for what the spec leaves open. */
void model_spec_arguments(const struct model_spec *s, const char *precision, int64_t threads,
                          struct model_arguments *out);
