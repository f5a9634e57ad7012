#pragma once
/* Glob patterns as Redis users write them: * ? [abc] [^abc] [a-z] and \ before a plain
 * character. Time is at most pattern times text, also for hostile patterns: only the last star
 * is ever tried again. Thread: no shared state. */

#include <stdbool.h>

#include "base/bytes.h"

bool glob_match(struct slice pattern, struct slice text, bool ignore_case);
