#pragma once
/* The inside of re-embedding, shared by reembed.c (jobs and their thread), reembed_batch.c
 * (what is taken and stored in one stay in the shard) and reembed_ask.c (the model). No other
 * file includes it. */

#include <pthread.h>
#include <sys/queue.h>

#include "base/bytes.h"
#include "server/models.h"
#include "server/reembed.h"
#include "server/reembed_names.h"
#include "server/vset.h"

enum {
    REEMBED_TEXTS = 64,              /* of one request to the model */
    REEMBED_TEXT_BYTES = 256 * 1024, /* and about so many bytes of them */
    REEMBED_ENTRIES = 256            /* of one batch, most of them without a text */
};

/* The shard's lock guards it; what never changes is read without. Only the thread frees it. */
struct reembed_job {
    TAILQ_ENTRY(reembed_job) next;
    uint32_t db, live_id, successor_id; /* set numbers: another set is another number */
    struct slice key, hidden;           /* never change, as what follows */
    bool truncate;
    struct vset_model model;
    uint32_t dim;
    bool over;   /* the thread frees it when it comes by */
    bool failed; /* kept to be looked at; `drop`: its successor is still there */
    bool drop;
    char error[ERR_MESSAGE_MAX];
    /* What is still to be looked at: slots of the successor from sweep_at (after a restart: it
     * may hold what the set lost meanwhile), then slots of the set from scan_at, then names. */
    uint32_t sweep_at, sweep_end, scan_at, scan_end;
    struct reembed_names again;
    bool from_start; /* names were not remembered: all of it once more */
    struct reembed_pace pace;
    bool holding;
    int64_t hold_until_us, no_hold_before_us, retry_us;
    uint64_t n_texts;
    int64_t started_us;
};

struct reembed_entry {
    size_t name_at, text_at; /* in the batch's bytes */
    size_t name_n, text_n;
    int text; /* the number of its text in the request; -1: it needs no vector */
};

struct reembed_batch {
    struct buf bytes;
    struct reembed_entry entries[REEMBED_ENTRIES];
    uint32_t n, n_texts;
    bool complete; /* nothing is left to be looked at */
};

static inline struct slice reembed_entry_name(const struct reembed_batch *b, uint32_t i)
{
    return (struct slice){b->bytes.data + b->entries[i].name_at, b->entries[i].name_n};
}

static inline struct slice reembed_entry_text(const struct reembed_batch *b, uint32_t i)
{
    return (struct slice){b->bytes.data + b->entries[i].text_at, b->entries[i].text_n};
}

/* --- reembed_batch.c; shard's lock held --- */

/* The set and its successor as they are now; false: one of them is gone. */
bool reembed_sets(struct shard *s, const struct reembed_job *job, struct vset **live,
                  struct vset **successor);
/* What differs between the two, up to a batch of it. Nothing is changed. KITH_EINVAL: an
 * element cannot be embedded; others: damage, memory. */
int reembed_take(struct shard *s, struct reembed_job *job, struct reembed_batch *b,
                 struct err *e);
/* What was taken is taken again. */
void reembed_put_back(struct reembed_job *job, const struct reembed_batch *b);
/* Makes the successor as the set is, for the elements of the batch; vectors of `from_dim`
 * floats each. Elements that have changed meanwhile are left to who noted that. KITH_EBUSY:
 * nothing was done, try again. */
int reembed_put(struct shard *s, struct reembed_job *job, const struct reembed_batch *b,
                const float *vectors, uint32_t from_dim, struct err *e);
/* The successor takes the place of the set. KITH_EBUSY as above. */
int reembed_switch(struct shard *s, struct reembed_job *job, struct err *e);
/* The successor is deleted. KITH_EBUSY as above. */
int reembed_drop(struct shard *s, const struct reembed_job *job, struct err *e);

/* --- reembed_ask.c --- */

/* Outlives whoever is told: an answer may come when the thread has ended. */
struct reembed_inbox {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    uint32_t refs;
    bool stop, news;
};

struct reembed_asked {
    struct reembed_inbox *inbox;
    bool done, abandoned; /* the inbox's lock */
    int code;
    char message[ERR_MESSAGE_MAX];
    uint32_t n, dim;
    float *vectors;
    char hash[33], pooling[16];
};

/* NULL: out of memory. */
struct reembed_inbox *reembed_inbox_new(void);
/* With its lock; gives the lock back. */
void reembed_inbox_unref(struct reembed_inbox *in);
void reembed_inbox_tell(struct reembed_inbox *in, bool stop);
/* Until a time (INT64_MAX: for ever) or the next news. With the lock. */
void reembed_inbox_wait(struct reembed_inbox *in, int64_t until_us);

enum reembed_model { REEMBED_MODEL_HERE, REEMBED_MODEL_UNKNOWN, REEMBED_MODEL_GONE };

/* Models are told apart by what they are, so a model that was loaded anew under another name
 * is found, and another file under the old name is not taken for it. */
enum reembed_model reembed_find_model(struct models *models, const struct reembed_job *job);
/* Sends the batch's texts; NULL when out of memory. */
struct reembed_asked *reembed_ask(struct models *models, struct reembed_inbox *inbox,
                                  const struct reembed_job *job, const struct reembed_batch *b);
void reembed_asked_free(struct reembed_asked *a);
