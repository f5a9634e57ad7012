#pragma once
/* How a vector stands in a command's arguments: FP32 blob | VALUES n v1 .. vn | TEXT text.
 * Used by cmd_vector.c and cmd_text.c. */

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
/* Whether the vector may go into or ask this set: same dimension, same model when both have
 * one. False: the error was replied. */
bool vector_arg_fits(struct client *c, const struct vector_arg *a, struct vset *v);
/* The texts hook of commands whose argv[2] may be TEXT. */
void vector_arg_texts(const struct slice *argv, int argc, struct command_texts *out);

/* The search memory of this thread; NULL when out of memory. Freed when the thread ends. */
struct index_scratch *thread_scratch(void);
