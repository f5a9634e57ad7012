#pragma once
/* How a vector stands in a command's arguments: FP32 blob | VALUES n v1 .. vn | TEXT text, and
 * what it must be to go into a set or to be compared with what is there. Also the search memory
 * of a thread.
 *
 * Used by cmd_vadd.c, cmd_vset.c, cmd_vsim.c and search_args.c. Thread: the client's, with the
 * shard entered. */

#include <stdbool.h>
#include <stdint.h>

#include "server/client.h"
#include "server/vset.h"

struct vector_arg {
    const float *values; /* dim floats, in the command's arena or the embedding's */
    uint32_t dim;
    const struct slice *text; /* of TEXT, else NULL */
    struct vset_model model;  /* of TEXT: the one that made it */
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
 * dimension; for a set made with REDUCE also the dimension before it, then it is projected; and
 * for a set of a model's shorter vectors those of its texts, which are cut.
 * False: the error was replied. */
bool vector_arg_fits(struct client *c, struct vector_arg *a, struct vset *v);
/* The model's part of that: a vector that came from no text fits every set. */
bool vector_arg_model_fits(struct client *c, const struct vector_arg *a, struct vset *v);

/* A vector of TEXT that is longer than those of the set, of the same model, is cut to their
 * dimension where the model allows it; others are left as they are. */
bool vector_arg_cut_to_set(struct client *c, struct vector_arg *a, struct vset *v);
/* Whether the texts of the command were embedded by another model than it needs now that the
 * set (NULL: there is none) is known for sure; then its result is COMMAND_TEXTS. Never inside a
 * transaction, nor where the command names its model: there the set refuses the vector. */
bool vector_arg_texts_again(struct client *c, struct vset *v);

/* For texts hooks: looks for TRUNCATE and MODEL among the options from argv[at] to `end`; those
 * of with_value (NULL-terminated) have an argument that is none. */
void vector_arg_text_options(const struct slice *argv, int at, int end,
                             const char *const *with_value, struct command_texts *out);

/* The search memory of this thread; NULL when out of memory. Freed when the thread ends. */
struct index_scratch *thread_scratch(void);
