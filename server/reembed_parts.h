#pragma once
/* The inside of re-embedding, shared by reembed.c (jobs and their thread) and reembed_batch.c
 * (what is taken and stored in one stay in the shard). No other file includes it. */

#include <pthread.h>
#include <sys/queue.h>

#include "base/bytes.h"
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
