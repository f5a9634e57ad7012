#pragma once
/* Numbers in text, as strtod reads them in the C locale, whatever locale the process has. It
 * does not say what a number looks like: JSON and filters have grammars of their own and check
 * them first. Thread: any. */

#include <stddef.h>

/* The value of [-]digits[.digits][(e|E)[+|-]digits], already checked, from p to end, rounded
 * to the nearest double. *end must be readable and no byte that a number could go on with. */
double number_decimal(const char *p, const char *end);
/* What strtod makes of a whole text ("12", " 0x1f", "inf"); 0 where it does not take all of
 * it, or where the text is longer than 255 bytes, as Redis has it in filters. */
double number_of_text(const char *p, size_t n);
