#pragma once
/* The records of files, for kith-import: JSONL, CSV with a header row (RFC 4180), and texts.
 *
 * Every line, row or file gives one call: a record, or what is wrong with it and where. Blank
 * lines between records are none. A byte order mark before a file is skipped.
 *
 * A record's id and text are the named fields; other fields become attributes. Those of JSONL
 * keep their types. A field of CSV that is written as JSON writes a number of at most 15 digits
 * becomes one, so that filters can compare it; all others are strings. Names that begin with
 * an underscore are kept for kith-import and refused. Thread: no state. */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/bytes.h"

struct import_fields {
    const char *id;           /* NULL: "id", or "_id" */
    const char *text;         /* NULL: "text", "content" or "body", the first there is */
    const char *const *names; /* of attributes, n of them */
    size_t n;
    bool all; /* every other field is an attribute */
};

struct import_record {
    const char *file;
    size_t line;       /* from 1 */
    size_t end;        /* the bytes of the file that were read with it */
    struct slice id;   /* valid during the call, as are text and attributes */
    struct slice text; /* valid UTF-8, more than white space */
    json_t *attributes;
};

/* What is not 0 ends the reading and is returned by it. */
struct import_sink {
    int (*record)(void *arg, const struct import_record *r);
    int (*bad)(void *arg, const char *file, size_t line, const char *what);
    void *arg;
};

int import_read_jsonl(const char *file, struct slice bytes, const struct import_fields *f,
                      const struct import_sink *sink);
int import_read_csv(const char *file, struct slice bytes, const struct import_fields *f,
                    const struct import_sink *sink);
/* The whole file is one record whose id is its path. */
int import_read_text(const char *file, struct slice bytes, const struct import_sink *sink);
