#pragma once
/* How a vector stands in a command's arguments: FP32 blob | VALUES n v1 .. vn | TEXT text, and
 * what it must be to go into a set or to be compared with what is there. Also the search memory
 * of a thread.
 *
 * Used by cmd_vadd.c, cmd_vset.c, cmd_vsim.c and cmd_text.c. Thread: the client's, with the
 * shard entered. */

#include <stdbool.h>
#include <stdint.h>

#include "server/client.h"
#include "server/vset.h"

struct vector_arg {
    const float *values; /* dim floats, in the command's arena or the embedding's */
    uint32_t dim;
    const struct slice *text; /* of TEXT, else NULL */
    struct vset_model model;  /* of TEXT: the engine's */
    int next;                 /* the argument after it */
};

/* Parses argv[at] and what follows. False: the error was replied. For TEXT the client's
 * embedding must be there. */
bool vector_arg_parse(struct client *c, int at, struct vector_arg *out);
/* The two forms by themselves, where a command says once which one all of its vectors have:
 * blob is what follows FP32, the n numbers begin at argv[at]. element: named in errors, empty:
 * nobody is. Only values, dim and next are set. */
bool vector_arg_parse_blob(struct client *c, int at, struct slice element,
                           struct vector_arg *out);
bool vector_arg_parse_numbers(struct client *c, int at, int64_t n, struct slice element,
                              struct vector_arg *out);
/* The third, where a command has several texts: argv[at] is number `text`, from 0, of those
 * that its texts hook gave. Also sets text and model. */
bool vector_arg_take_text(struct client *c, int at, uint32_t text, struct slice element,
                          struct vector_arg *out);

/* REDUCE dim, where argv[*at] is that word: *dim is set and *at moved on; else *dim is 0.
 * False: the error was replied. */
bool vector_arg_reduce(struct client *c, int *at, uint32_t *dim);
/* Puts the projection of the vector to `dim` dimensions in its place. */
bool vector_arg_project(struct client *c, struct vector_arg *a, uint32_t dim);

/* Whether the vector may ask this set: the same model where both have one, and the set's
 * dimension; for a set made with REDUCE also the dimension before it, then it is projected.
 * False: the error was replied. */
bool vector_arg_fits(struct client *c, struct vector_arg *a, struct vset *v);
/* The model's part of that: a vector that came from no text fits every set. */
bool vector_arg_model_fits(struct client *c, const struct vector_arg *a, struct vset *v);

/* The texts hook of commands whose argv[2] may be TEXT and whose options follow it. */
void vector_arg_texts(const struct slice *argv, int argc, struct command_texts *out);

/* The search memory of this thread; NULL when out of memory. Freed when the thread ends. */
struct index_scratch *thread_scratch(void);
