/* One stay in the shard: what differs between a set and its successor, and making it not
 * differ. All of re-embedding is this comparison: a new set, a change of a writer, what a
 * restart left half done. So nothing has to be remembered that a crash could take, and taking
 * an element once too often costs a look at it. */
#include "base/clock.h"
#include "base/epoch.h"
#include "base/mem.h"
#include "server/attributes.h"
#include "server/effect.h"
#include "server/engine_model.h"
#include "server/reembed_parts.h"
#include "server/shard_parts.h"
#include "server/successor.h"

enum { STAY_US = 2000, LOOKS_PER_CLOCK = 32 };

bool reembed_sets(struct shard *s, const struct reembed_job *job, struct vset **live,
                  struct vset **successor)
{
    struct key *k = keyspace_find_raw(s->keyspace, job->db, job->key);
    struct key *h = keyspace_find_raw(s->keyspace, KEYSPACE_HIDDEN_DB, job->hidden);
    if (!k || k->type != OBJECT_VSET || k->set_id != job->live_id || !h ||
        h->type != OBJECT_VSET || h->set_id != job->successor_id)
        return false;
    *live = k->vset;
    *successor = h->vset;
    return true;
}

/* --- one element --- */

enum verdict { VERDICT_SAME, VERDICT_REMOVE, VERDICT_ATTRIBUTES, VERDICT_EMBED };

/* An element of both sets. */
struct look {
    struct vset *live, *successor;
    uint32_t slot, its_slot; /* INDEX_SLOT_NONE: there is none */
    int64_t expire_ms;
    bool has_attributes;
    struct buf text, json, its_text;
    enum verdict verdict;
};

static void look_init(struct look *x, struct vset *live, struct vset *successor)
{
    *x = (struct look){.live = live, .successor = successor};
    buf_init(&x->text);
    buf_init(&x->json);
    buf_init(&x->its_text);
}

static void look_deinit(struct look *x)
{
    buf_deinit(&x->text);
    buf_deinit(&x->json);
    buf_deinit(&x->its_text);
}

/* Whatever its time: what has expired goes from both by effects. */
static int find(struct vset *v, struct slice name, uint32_t *slot, struct err *e)
{
    int rc = vset_find(v, name, 0, slot, e);
    if (rc != KITH_ENOTFOUND)
        return rc;
    *slot = INDEX_SLOT_NONE;
    return 0;
}

/* Time and attributes of the element, and whether its twin has the same. Inside a bracket. */
static int compare_rest(struct look *x, bool *same_time, bool *same_attributes, struct err *e)
{
    const void *a, *b = NULL;
    size_t n, n_b = 0;
    int64_t its_time = 0;
    int rc = vset_read_attributes(x->live, x->slot, &a, &n, e);
    if (rc == 0)
        rc = vset_read_expiry(x->live, x->slot, &x->expire_ms, e);
    if (rc == 0 && x->its_slot != INDEX_SLOT_NONE)
        rc = vset_read_attributes(x->successor, x->its_slot, &b, &n_b, e);
    if (rc == 0 && x->its_slot != INDEX_SLOT_NONE)
        rc = vset_read_expiry(x->successor, x->its_slot, &its_time, e);
    if (rc != 0)
        return rc;
    x->has_attributes = a != NULL;
    buf_clear(&x->json);
    struct slice json = n > 0 && a ? attributes_json(a, n) : (struct slice){0};
    buf_append(&x->json, json.p, json.n);
    *same_time = x->expire_ms == its_time;
    *same_attributes =
        (a != NULL) == (b != NULL) && n == n_b && (n == 0 || memcmp(a, b, n) == 0);
    return x->json.failed ? err_set(e, KITH_ENOMEM, "out of memory for attributes") : 0;
}

static int same_text(struct look *x, bool *same, struct err *e)
{
    buf_clear(&x->its_text);
    int rc = vset_text(x->successor, x->its_slot, &x->its_text, e);
    *same = rc == 0 && slice_equal((struct slice){x->text.data, x->text.len},
                                   (struct slice){x->its_text.data, x->its_text.len});
    return rc == KITH_ENOTFOUND ? 0 : rc;
}

static int look_at(struct look *x, struct slice name, struct err *e)
{
    bool same = false, same_time = false, same_attributes = false;
    int rc = find(x->live, name, &x->slot, e);
    if (rc == 0)
        rc = find(x->successor, name, &x->its_slot, e);
    if (rc != 0)
        return rc;
    if (x->slot == INDEX_SLOT_NONE) {
        x->verdict = x->its_slot == INDEX_SLOT_NONE ? VERDICT_SAME : VERDICT_REMOVE;
        return 0;
    }
    buf_clear(&x->text);
    rc = vset_text(x->live, x->slot, &x->text, e);
    if (rc == KITH_ENOTFOUND)
        return err_set(e, KITH_EINVAL,
                       "element '%.*s' has no text (VADD gave it a vector): VREEMBED needs the "
                       "text of every element",
                       slice_shown(name), name.p);
    if (rc == 0) {
        epoch_enter();
        rc = compare_rest(x, &same_time, &same_attributes, e);
        epoch_exit();
    }
    if (rc == 0 && x->its_slot != INDEX_SLOT_NONE)
        rc = same_text(x, &same, e);
    if (rc != 0)
        return rc;
    /* Attributes that are an empty text can be given to a new element only. */
    bool can_set = same_attributes || !x->has_attributes || x->json.len > 0;
    x->verdict = !same || !same_time || !can_set ? VERDICT_EMBED
                 : same_attributes               ? VERDICT_SAME
                                                 : VERDICT_ATTRIBUTES;
    return 0;
}

/* --- taking --- */

struct taking {
    struct reembed_job *job;
    struct reembed_batch *b;
    struct look look;
    struct buf name;
    int64_t until_us;
    uint64_t n_looks;
};

static bool full(const struct reembed_batch *b)
{
    return b->n == REEMBED_ENTRIES || b->n_texts == REEMBED_TEXTS ||
           b->bytes.len > REEMBED_TEXT_BYTES;
}

static bool time_is_up(struct taking *t)
{
    return ++t->n_looks % LOOKS_PER_CLOCK == 0 && clock_mono_us() > t->until_us;
}

/* The element of t->name into the batch, where something is to be done for it. */
static int take_one(struct taking *t, struct err *e)
{
    struct reembed_batch *b = t->b;
    int rc = look_at(&t->look, (struct slice){t->name.data, t->name.len}, e);
    if (rc != 0 || t->look.verdict == VERDICT_SAME)
        return rc;
    bool embed = t->look.verdict == VERDICT_EMBED;
    struct reembed_entry entry = {.name_at = b->bytes.len, .name_n = t->name.len, .text = -1};
    buf_append(&b->bytes, t->name.data, t->name.len);
    entry.text_at = b->bytes.len;
    if (embed) {
        entry.text = (int)b->n_texts;
        entry.text_n = t->look.text.len;
        buf_append(&b->bytes, t->look.text.data, t->look.text.len);
    }
    if (b->bytes.failed)
        return err_set(e, KITH_ENOMEM, "out of memory for texts");
    b->n_texts += embed;
    b->entries[b->n++] = entry;
    return 0;
}

/* The elements of a set from a slot on. */
static int take_slots(struct taking *t, struct vset *v, uint32_t *at, uint32_t end,
                      struct err *e)
{
    int rc = 0;
    while (rc == 0 && *at < end && !full(t->b) && !time_is_up(t)) {
        uint32_t slot = *at;
        buf_clear(&t->name);
        epoch_enter();
        bool live = vset_live(v, slot);
        if (live && !vset_name(v, slot, &t->name, e))
            rc = KITH_ECORRUPT;
        epoch_exit();
        if (t->name.failed)
            return err_set(e, KITH_ENOMEM, "out of memory for a name");
        if (live && rc == 0)
            rc = take_one(t, e);
        if (rc == 0)
            ++*at;
    }
    return rc;
}

static int take_names(struct taking *t, uint64_t *taken, struct err *e)
{
    int rc = 0;
    while (rc == 0 && t->job->again.n > 0 && !full(t->b) && !time_is_up(t)) {
        buf_clear(&t->name);
        if (!reembed_names_take(&t->job->again, &t->name))
            return err_set(e, KITH_ENOMEM, "out of memory for a name");
        rc = take_one(t, e);
        ++*taken;
    }
    return rc;
}

static void begin_again(struct reembed_job *job, struct vset *live, struct vset *successor)
{
    job->from_start = false;
    job->sweep_at = job->scan_at = 0;
    job->sweep_end = vset_slots(successor);
    job->scan_end = vset_slots(live);
    job->pace = (struct reembed_pace){0};
}

/* Writers wait when few elements are left, for some seconds at most: then they are let go and
 * the job goes on without. */
static void pace(struct reembed_job *job, uint64_t taken)
{
    enum { HOLD_US = 5 * 1000000, REST_US = 5 * 1000000 };
    int64_t now_us = clock_mono_us();
    bool few = reembed_pace_step(&job->pace, taken, job->again.n);
    if (job->holding && now_us > job->hold_until_us) {
        job->holding = false;
        job->no_hold_before_us = now_us + REST_US;
    } else if (!job->holding && few && now_us >= job->no_hold_before_us) {
        job->holding = true;
        job->hold_until_us = now_us + HOLD_US;
    }
}

int reembed_take(struct shard *s, struct reembed_job *job, struct reembed_batch *b,
                 struct err *e)
{
    struct vset *live, *successor;
    if (!reembed_sets(s, job, &live, &successor))
        return err_set(e, KITH_ENOTFOUND, "the set or its successor is gone");
    if (job->from_start)
        begin_again(job, live, successor);
    struct taking t = {.job = job, .b = b, .until_us = clock_mono_us() + STAY_US};
    uint64_t taken = 0;
    look_init(&t.look, live, successor);
    buf_init(&t.name);
    buf_clear(&b->bytes);
    b->n = b->n_texts = 0;
    int rc = take_slots(&t, successor, &job->sweep_at, job->sweep_end, e);
    if (rc == 0)
        rc = take_slots(&t, live, &job->scan_at, job->scan_end, e);
    bool scanned = job->sweep_at >= job->sweep_end && job->scan_at >= job->scan_end;
    if (rc == 0 && scanned)
        rc = take_names(&t, &taken, e);
    b->complete = rc == 0 && scanned && b->n == 0 && job->again.n == 0;
    if (rc == 0 && scanned && !b->complete)
        pace(job, taken);
    buf_deinit(&t.name);
    look_deinit(&t.look);
    return rc;
}

void reembed_put_back(struct reembed_job *job, const struct reembed_batch *b)
{
    for (uint32_t i = 0; i < b->n && !job->from_start; i++)
        if (!reembed_names_add(&job->again, reembed_entry_name(b, i)))
            job->from_start = true;
    if (job->from_start)
        reembed_names_clear(&job->again);
}

/* --- putting --- */

/* What the effects on an entry take in the log at most: it is removed, and added. */
static int entry_bytes(struct vset *live, const struct reembed_job *job,
                       const struct reembed_batch *b, uint32_t i, size_t *bytes, struct err *e)
{
    const struct reembed_entry *x = &b->entries[i];
    const void *attributes;
    uint32_t slot;
    size_t n = 0;
    int rc = find(live, reembed_entry_name(b, i), &slot, e);
    epoch_enter();
    if (rc == 0 && slot != INDEX_SLOT_NONE)
        rc = vset_read_attributes(live, slot, &attributes, &n, e);
    epoch_exit();
    size_t vector = x->text >= 0 ? job->dim * sizeof(float) : 0;
    *bytes += 2 * (EFFECT_OVERHEAD_BYTES + job->hidden.n + x->name_n) + x->text_n + n + vector;
    return rc;
}

static int remove_twin(struct shard *s, const struct reembed_job *job, struct slice name,
                       struct err *e)
{
    struct effect f = {
        .op = EFFECT_VREM, .db = KEYSPACE_HIDDEN_DB, .key = job->hidden, .value = name};
    return effect_do(s, &f, e);
}

static int set_twin_attributes(struct shard *s, const struct reembed_job *job,
                               struct slice name, const struct look *x, struct err *e)
{
    struct slice json = {x->json.data, x->json.len};
    struct effect f = {.op = EFFECT_VSETATTR,
                       .db = KEYSPACE_HIDDEN_DB,
                       .key = job->hidden,
                       .value = name,
                       .attributes = &json};
    return effect_do(s, &f, e);
}

/* A twin that is there goes first, so that nothing of it is kept. */
static int make_twin(struct shard *s, const struct reembed_job *job, struct slice name,
                     const struct look *x, const float *vector, struct err *e)
{
    struct slice json = {x->json.data, x->json.len}, text = {x->text.data, x->text.len};
    int rc = x->its_slot != INDEX_SLOT_NONE ? remove_twin(s, job, name, e) : 0;
    struct effect f = {.op = EFFECT_VADD,
                       .db = KEYSPACE_HIDDEN_DB,
                       .key = job->hidden,
                       .value = name,
                       .expire_ms = x->expire_ms,
                       .dim = job->dim,
                       .vector = vector,
                       .model = &job->model,
                       .text = &text,
                       .attributes = x->has_attributes ? &json : NULL};
    return rc == 0 ? effect_do(s, &f, e) : rc;
}

struct putting {
    struct look look;
    const float *vectors;
    float *cut; /* room for a vector that is shorter than the model's */
    uint32_t from_dim;
};

static int put_one(struct shard *s, const struct reembed_job *job,
                   const struct reembed_batch *b, uint32_t i, struct putting *p, struct err *e)
{
    struct look *x = &p->look;
    int text = b->entries[i].text;
    struct slice name = reembed_entry_name(b, i);
    int rc = look_at(x, name, e);
    if (rc != 0 || x->verdict == VERDICT_SAME)
        return rc;
    if (x->verdict == VERDICT_REMOVE)
        return remove_twin(s, job, name, e);
    if (x->verdict == VERDICT_ATTRIBUTES)
        return set_twin_attributes(s, job, name, x, e);
    /* Another text than was embedded: the change was noted and is taken again. */
    if (text < 0 ||
        !slice_equal((struct slice){x->text.data, x->text.len}, reembed_entry_text(b, i)))
        return 0;
    const float *vector = p->vectors + (size_t)text * p->from_dim;
    if (p->cut) {
        engine_vector_cut(vector, job->dim, p->cut);
        vector = p->cut;
    }
    return make_twin(s, job, name, x, vector, e);
}

int reembed_put(struct shard *s, struct reembed_job *job, const struct reembed_batch *b,
                const float *vectors, uint32_t from_dim, struct err *e)
{
    struct vset *live, *successor;
    size_t bytes = 0;
    if (!reembed_sets(s, job, &live, &successor))
        return err_set(e, KITH_ENOTFOUND, "the set or its successor is gone");
    if (index_tail_full(vset_index(successor)))
        return err_set(e, KITH_EBUSY, "vectors wait to be linked");
    int rc = 0;
    for (uint32_t i = 0; i < b->n && rc == 0; i++)
        rc = entry_bytes(live, job, b, i, &bytes, e);
    if (rc == 0)
        rc = shard_admit_background(s, bytes, e);
    struct putting p = {.vectors = vectors, .from_dim = from_dim};
    if (rc == 0 && b->n_texts > 0 && from_dim != job->dim &&
        !(p.cut = mem_alloc_n(job->dim, sizeof *p.cut)))
        rc = err_set(e, KITH_ENOMEM, "out of memory for a vector");
    look_init(&p.look, live, successor);
    for (uint32_t i = 0; i < b->n && rc == 0; i++)
        rc = put_one(s, job, b, i, &p, e);
    look_deinit(&p.look);
    mem_free(p.cut);
    return rc;
}

/* --- the end --- */

int reembed_switch(struct shard *s, struct reembed_job *job, struct err *e)
{
    struct effect f = {.op = EFFECT_VSWITCH, .db = job->db, .key = job->key};
    int rc = shard_admit_background(s, effect_bytes(&f), e);
    return rc == 0 ? effect_do(s, &f, e) : rc;
}

int reembed_drop(struct shard *s, const struct reembed_job *job, struct err *e)
{
    struct effect f = {.op = EFFECT_DEL, .db = KEYSPACE_HIDDEN_DB, .key = job->hidden};
    struct key *h = keyspace_find_raw(s->keyspace, KEYSPACE_HIDDEN_DB, job->hidden);
    if (!h || h->set_id != job->successor_id)
        return 0;
    if (shard_admit(s, effect_bytes(&f) + RESERVE_SLACK_BYTES, e) != 0)
        return err_set(e, KITH_EBUSY, "the log cannot be written now");
    return effect_do(s, &f, e);
}
