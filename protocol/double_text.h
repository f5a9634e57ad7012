#pragma once
/* A double as the shortest decimal that reads back as itself, in the form Redis writes:
 * "3", "-0.1", "2.2360680103302", "1e-7", "1.5e+300", "inf", "-inf", "nan". Thread: any. */

#include <stddef.h>

enum { DOUBLE_TEXT_MAX = 32 };

/* Returns the length; no NUL. */
size_t double_text(char out[DOUBLE_TEXT_MAX], double v);
