#pragma once
/* What the files of the registry share (models.c, models_keeper.c, models_file.c). Nobody else
 * includes this. models.c opens with how it works. */

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "server/models.h"

struct model {
    TAILQ_ENTRY(model) next;
    struct models *registry;
    struct model_spec spec;   /* fixed */
    struct engine_link *link; /* fixed; closed by the keeper when users is 0 */

    /* Under the registry's lock. */
    struct engine_model known; /* what READY last said; hash "": nothing yet */
    uint64_t last_bytes;       /* what it took when it last ran; 0: not known */
    int64_t used_us;           /* when it was last asked, or got ready */
    unsigned users;            /* threads that are inside link, not under the lock */
    bool configured;           /* by the settings: models.conf need not name it */
    bool is_new;               /* a LOAD under way made it: it goes when that fails */
    bool leaving;              /* being unloaded: nobody finds it any more */
    char refusal[256];         /* why it must not run; "" */
};
TAILQ_HEAD(model_list, model);

enum change_kind { CHANGE_LOAD, CHANGE_UNLOAD, CHANGE_DEFAULT };

/* One MODEL LOAD, UNLOAD or DEFAULT, from its ticket to its result. */
struct change {
    TAILQ_ENTRY(change) next;
    enum change_kind kind;
    uint64_t ticket;
    struct model *model; /* NULL: it is gone, or none was meant */
    bool make_default;
    bool begun; /* of a LOAD: the model was asked to come */
    bool done;
    struct err result; /* code 0: it was made */
};
TAILQ_HEAD(change_list, change);

/* A model of the settings that was unloaded at run time. */
struct unloaded {
    SLIST_ENTRY(unloaded) next;
    char name[MODEL_NAME_MAX + 1];
    char source[MODEL_SOURCE_MAX + 1];
};
SLIST_HEAD(unloaded_list, unloaded);

struct models {
    char *program, *precision;
    bool packed_cache;
    int64_t threads, batch_tokens, batch_wait_us, queue_tokens, timeout_ms;
    char path[PATH_MAX]; /* of models.conf */
    struct waitlist *waiters;
    pthread_t keeper;
    _Atomic unsigned n_models;

    pthread_mutex_t lock; /* guards all that follows; before a link's lock */
    pthread_cond_t look;  /* the keeper has something to look at */
    bool changed, closing;
    bool facts_dirty; /* models.conf does not have what READY last said */
    struct model_list list;
    struct change_list changes;
    struct unloaded_list unloaded;
    uint64_t next_ticket, limit;
    char default_name[MODEL_NAME_MAX + 1]; /* "": the first that embeds */
    bool default_chosen;                   /* at run time */
};

/* --- models.c; with the lock held --- */
struct model *model_find(struct models *m, struct slice name); /* by its registered name */
/* The one a text without a model is for; NULL: there is none. */
struct model *model_default(struct models *m);
/* Makes one and puts it at the end of the list, away. */
int model_register(struct models *m, const struct model_spec *spec, struct model **out,
                   struct err *e);
/* Resident bytes of its process now, 0 when there is none. */
uint64_t model_bytes(struct model *d, const struct engine_stats *stats);
/* The bytes of the model's file, 0 when it cannot be seen. */
uint64_t model_file_bytes(const struct model_spec *spec);
int model_too_large(const struct model_spec *spec, uint64_t bytes, uint64_t limit,
                    struct err *e);
void models_look(struct models *m); /* sends the keeper to look */

/* --- models_keeper.c --- */
void *models_keeper_main(void *models);
/* Before d starts: puts away what must go for it. The lock is held. */
void models_make_room(struct models *m, struct model *d);

/* --- models_file.c --- */
/* Registers what the settings and the file say, in that order. Before the keeper runs. */
int models_file_load(struct models *m, const struct model_spec *configured, int n,
                     struct err *e);
/* The file as it should be now, into out; the lock is held. */
void models_file_compose(struct models *m, struct buf *out);
