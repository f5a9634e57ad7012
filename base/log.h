#pragma once
/* The program's own log: lines for the operator, to stderr or a file.
 *
 * Only programs and the server room log; libraries return errors. A line is
 * `pid:role date time.ms level message`, coloured where stderr is a terminal.
 * Thread: any; a line is written with one system call. */

enum log_level { LOG_DEBUG, LOG_INFO, LOG_NOTICE, LOG_WARNING, LOG_ERROR };

/* path NULL or "" means stderr. Returns 0 or a negative code (the file could not be opened). */
int log_open(const char *path, const char *role);
/* Opens the file of log_open again, which was moved away (log rotation); lines of other threads
 * go to the old or the new file, never elsewhere. Nothing to do for stderr. */
int log_reopen(const char *path);
void log_set_level(enum log_level level);
int log_level_parse(const char *name); /* the level, or KITH_EINVAL */
const char *log_level_name(enum log_level level);

void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_notice(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
