#pragma once
/* Lines of a settings file: cut into words, quoted back. And the doors config.c and
 * config_file.c have for each other. Inside the config module only. */

#include <stdbool.h>

#include "base/bytes.h"
#include "base/error.h"

struct config;

enum { CONFIG_WORDS_MAX = 64 };

/* Cuts a line into words as redis.conf has them: "double quotes" with \n \r \t \b \a \xHH,
 * 'single quotes' with \', plain words. The words' bytes are appended to store, which must not
 * be changed while they are used. Returns how many, 0 for an empty or comment line. */
int config_split_line(struct slice line, struct buf *store,
                      struct slice words[CONFIG_WORDS_MAX], struct err *e);
/* Appends the word so that config_split_line reads it back. */
void config_quote_word(struct buf *out, struct slice word);

/* config.c's: one setting from a file or an option. */
int config_apply(struct config *c, struct slice name, const struct slice *words, int n,
                 struct err *e);
void config_set_file(struct config *c, char *path); /* takes path */
bool config_given(const struct config *c, int setting);
