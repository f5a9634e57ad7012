#pragma once
/* Time. Wall time in milliseconds since 1970 for expiry and records that outlive the process,
 * monotonic time for measuring. Thread: any. */

#include <stdint.h>

int64_t clock_wall_ms(void);
int64_t clock_wall_us(void);
int64_t clock_mono_us(void);
int64_t clock_mono_ns(void);
void clock_sleep_us(int64_t us);
