#pragma once
/* The table of settings, and one value: parsed, applied, printed. Inside the config module
 * only; others use config.h. Thread: the table is constant; the caller holds the config's lock
 * for setting_apply and setting_print. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct config;

enum setting_type {
    SETTING_INT,
    SETTING_BYTES, /* with units: k 1000, kb 1024, m, mb, g, gb */
    SETTING_OCTAL,
    SETTING_WORD,         /* one of words; stored as its index */
    SETTING_STRING,       /* one of words where there are some; stored as text */
    SETTING_OUTPUT_LIMIT, /* Redis' `class hard soft seconds`; the hard limit of class normal */
    SETTING_MODELS,       /* a model (model_spec.h); each line adds one to the text */
    SETTING_FIXED         /* understood because operators' files have it; has one value here */
};

enum setting_flag {
    SETTING_CHANGEABLE = 1 << 0,
    SETTING_LIST = 1 << 1 /* several words, kept joined by spaces */
};

struct setting {
    const char *name;
    enum setting_type type;
    unsigned flags;
    size_t offset;            /* into struct config; unused for SETTING_FIXED */
    const char *fallback;     /* the default, as one would write it */
    int64_t min, max;         /* of numbers */
    const char *const *words; /* NULL-terminated; FIXED without words accepts anything */
    const char *group, *help;
};

extern const struct setting settings[]; /* ends with a NULL name */
int settings_count(void);
const struct setting *
setting_find(struct slice name); /* ASCII case ignored; NULL when unknown */
/* The name that was probably meant, or NULL when none is near. */
const char *setting_nearest(struct slice name);

struct setting_value {
    int64_t number;
    char *text;   /* SETTING_STRING: owned until applied */
    bool nothing; /* a correct value that changes nothing (FIXED, another class' limit) */
};
/* n words to a value; the message of an error says what is allowed. */
int setting_parse(const struct setting *s, const struct slice *words, int n,
                  struct setting_value *out, struct err *e);
void setting_value_deinit(struct setting_value *v);
/* Takes the text out of v. */
void setting_apply(struct config *c, const struct setting *s, struct setting_value *v);
/* Appends the current value as CONFIG GET shows it. */
void setting_print(struct config *c, const struct setting *s, struct buf *out);
/* Whether v is the current value. */
bool setting_is(struct config *c, const struct setting *s, const struct setting_value *v);
