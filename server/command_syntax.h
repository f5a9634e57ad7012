#pragma once
/* The syntax column of a command row, read into the tree that COMMAND DOCS calls `arguments`.
 *
 *   key [NX | XX] [EX seconds | KEEPTTL] [element ...] <a | b>
 *
 * Capital words are tokens, others values; a token takes the value after it. [ ] is optional, <
 * > groups, | separates alternatives, and "x [x ...]" is x many times. Rows are the house's
 * own, so what does not follow this is printed as plain words. Thread: no shared state. */

#include <stdbool.h>

#include "base/mem.h"
#include "protocol/resp_write.h"

struct syntax;

/* The tree lives in the arena. NULL for an empty syntax and when out of memory. */
struct syntax *syntax_parse(struct arena *a, const char *text);
/* Writes the array of arguments. has_keys: values called key are keys of the first key spec. */
void syntax_put(const struct syntax *s, struct resp_out out, bool has_keys);
