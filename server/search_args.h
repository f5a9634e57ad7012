#pragma once
/* The arguments of VSIM and VRECOMMEND, as a question for vset_search.
 *
 * Thread: the client's, with the shard entered: elements become vectors here, so that what
 * follows needs the set alone. */

#include <stdbool.h>

#include "server/client.h"
#include "server/filter.h"
#include "server/vset_search.h"

enum { SEARCH_VECTORS_MAX = 64, SEARCH_MMR_COUNT_MAX = 1000 };

struct search_args {
    struct vset *set;
    struct vset_query q;
    struct filter *filter; /* q.filter, owned */
    bool with_scores, with_attributes, explain, ef_auto, no_thread;
    double target; /* of EF AUTO */
    bool offer;    /* the vector is worth sampling: one, and no filter */
};

/* argv[2] and what follows. False: the error was replied, and nothing is held. */
bool search_args_vsim(struct client *c, struct vset *set, struct search_args *a);
bool search_args_vrecommend(struct client *c, struct vset *set, struct search_args *a);

/* The texts hook of VSIM: TEXT text and TEXTS n text .., with TRUNCATE and MODEL among the
 * options. */
void search_args_texts(const struct slice *argv, int argc, struct command_texts *out);
