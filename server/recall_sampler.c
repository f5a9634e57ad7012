/* The thread that measures.
 *
 * One sample: the exact 10 nearest by a scan in pieces, each in an epoch bracket of its own, so
 * that nobody who waits for readers waits for a whole scan; then walks at the query's own ef
 * and at those of the grid, up to the first that finds all 10 (a larger one is taken to find
 * them too). A walk's recall is the share of its 10 best that are no farther than the exact
 * 10th: a tie is no miss.
 *
 * The set may change meanwhile. A sample is thrown away when that could be taken for a miss, or
 * hide one:
 *   - one of the exact 10 is gone at the end, or is another vector (removed, updated): the
 *     walks could not find it;
 *   - a walk found one that is nearer than the exact 10th and not among them: it was added
 *     after the scan had passed, and would stand for one that was missed.
 * An element that is added and not found, or removed and not among the 10, changes nothing. So
 * a set under steady writing is sampled too; asking for no change at all (vset_changes) would
 * leave out just the sets whose recall is in doubt. vset_changes saves the last look where
 * nothing changed.
 *
 * Pace: what a sample took of the thread's CPU time it rests for (100 / cost - 1) times. The
 * priority is low but not the lowest: a thread that stands in an epoch and never gets to run
 * would hold up all that wait for readers to leave.
 *
 * Offers wait in a short queue, one of a set at most, so that a busy set leaves room to the
 * others; what finds it full is dropped: this is a sample. */
#include <math.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/epoch.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/random.h"
#include "index/vectors.h"
#include "server/recall_parts.h"
#include "server/vset.h"

enum {
    QUEUE = 32,
    NICE = 10,
    PIECE = 4096,        /* slots of a scan in one bracket */
    PIECE_FULL = 256,    /* full vectors, which have to be unpacked one by one */
    POOL = 4 * RECALL_K, /* candidates that are ordered by full vectors, where there are any */
    OFFER_PAUSE_US = 20000,
    LOOK_US = 1000000, /* how often a resting sampler looks for dropped sets */
    CALIBRATIONS = 32, /* of its own vectors a set is asked about */
    GUESSES = 64       /* slots tried for one that holds a vector */
};
static const double CALIBRATION_WEIGHT = 0.25;

struct offer {
    struct vset *set;
    float *vector; /* NULL: some vector of the set */
    uint32_t ef;
    unsigned calibrations; /* still to be made */
};

struct work;
struct recall_sampler {
    pthread_t thread;
    struct work *work; /* the thread's */
    _Atomic bool stop;
    _Atomic unsigned n_queued;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake;
    struct offer queue[QUEUE]; /* a ring */
    unsigned first;
    double cost_percent;
};

/* --- offers --- */

static bool put_offer(struct recall_sampler *s, const struct offer *o)
{
    pthread_mutex_lock(&s->lock);
    unsigned n = atomic_load(&s->n_queued);
    bool taken = n < QUEUE && s->cost_percent > 0 && !atomic_load(&s->stop);
    if (taken) {
        s->queue[(s->first + n) % QUEUE] = *o;
        atomic_store(&s->n_queued, n + 1);
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
    return taken;
}

/* The set may make another offer, in a moment. */
static void end_offer(struct offer *o)
{
    struct recall *r = vset_recall(o->set);
    atomic_store(&r->next_offer_us, clock_mono_us() + OFFER_PAUSE_US);
    atomic_store(&r->waiting, false);
    mem_free(o->vector);
    vset_unref(o->set);
}

void recall_offer(struct recall_sampler *s, struct vset *v, const float *vector, uint32_t ef)
{
    struct recall *r = vset_recall(v);
    bool idle = false;
    if (!s || atomic_load_explicit(&r->waiting, memory_order_relaxed) ||
        atomic_load_explicit(&s->n_queued, memory_order_relaxed) == QUEUE ||
        clock_mono_us() < atomic_load_explicit(&r->next_offer_us, memory_order_relaxed) ||
        !atomic_compare_exchange_strong(&r->waiting, &idle, true))
        return;
    struct offer o = {.set = vset_ref(v), .ef = ef};
    o.vector = mem_dup(vector, vset_params(v)->index.dim * sizeof *vector);
    if (!o.vector || !put_offer(s, &o))
        end_offer(&o);
}

/* --- one sample --- */

struct work {
    struct recall_sampler *sampler;
    struct index_scratch *scratch;
    struct rng rng;
    struct buf stored; /* one vector of the set */
    uint32_t slots[PIECE];
    float distances[PIECE];

    /* of this sample */
    struct vset *set;
    const float *vector;
    uint32_t self; /* the slot the query came from, or INDEX_SLOT_NONE */
    struct index_hit truth[RECALL_K];
    uint32_t n_truth;
    bool newcomer; /* a walk found what the scan has not seen */
};

/* Worth going on: neither the sampler nor the set is at its end. */
static bool going(const struct work *w)
{
    return !atomic_load(&w->sampler->stop) && !vset_dropped(w->set);
}

static float *stored_vector(struct work *w)
{
    buf_clear(&w->stored);
    return (float *)(void *)buf_reserve(&w->stored,
                                        vset_params(w->set)->index.dim * sizeof(float));
}

/* The distances by full vectors, where there are any; NAN stays. Inside an epoch. */
static int full_distances(struct work *w, uint32_t n, struct err *e)
{
    const struct index_params *p = &vset_params(w->set)->index;
    float *stored = stored_vector(w);
    if (!stored)
        return err_set(e, KITH_ENOMEM, "out of memory for a vector");
    for (uint32_t i = 0; i < n; i++) {
        if (isnan(w->distances[i]))
            continue;
        int rc = vset_vector(w->set, w->slots[i], stored, e);
        if (rc && rc != KITH_ENOTFOUND)
            return rc;
        w->distances[i] = rc ? NAN : vector_distance(p->metric, w->vector, stored, p->dim);
    }
    return 0;
}

/* The distances of the first n of w->slots; NAN where there is none, and for the element the
 * query came from. Inside an epoch. */
static int slot_distances(struct work *w, uint32_t n, struct err *e)
{
    const struct index_query q = {.vector = w->vector};
    int rc = index_distances(vset_index(w->set), w->scratch, &q, w->slots, n, w->distances, e);
    for (uint32_t i = 0; i < n; i++)
        if (w->slots[i] == w->self)
            w->distances[i] = NAN;
    if (rc == 0 && vset_params(w->set)->keep != VSET_KEEP_NONE)
        rc = full_distances(w, n, e);
    return rc;
}

/* Puts a hit into its place among the k best. */
static void keep_best(struct index_hit *best, uint32_t *n, struct index_hit hit)
{
    if (*n == RECALL_K && !(hit.distance < best[*n - 1].distance))
        return;
    uint32_t at = *n < RECALL_K ? (*n)++ : *n - 1;
    for (; at > 0 && hit.distance < best[at - 1].distance; at--)
        best[at] = best[at - 1];
    best[at] = hit;
}

/* The exact nearest. False when it was broken off. */
static bool scan(struct work *w, struct err *e)
{
    struct index *x = vset_index(w->set);
    uint32_t piece = vset_params(w->set)->keep == VSET_KEEP_NONE ? PIECE : PIECE_FULL;
    uint32_t n_slots = index_slots(x);
    w->n_truth = 0;
    for (uint32_t from = 0; from < n_slots; from += piece) {
        uint32_t n = n_slots - from < piece ? n_slots - from : piece;
        for (uint32_t i = 0; i < n; i++)
            w->slots[i] = from + i;
        epoch_enter();
        int rc = slot_distances(w, n, e);
        epoch_exit();
        if (rc || !going(w))
            return false;
        for (uint32_t i = 0; i < n; i++)
            if (!isnan(w->distances[i]))
                keep_best(w->truth, &w->n_truth,
                          (struct index_hit){w->slots[i], w->distances[i]});
    }
    return w->n_truth > 0;
}

static bool in_truth(const struct work *w, uint32_t slot)
{
    for (uint32_t i = 0; i < w->n_truth; i++)
        if (w->truth[i].slot == slot)
            return true;
    return false;
}

static double score(struct work *w, const struct index_hit *hits, uint32_t n)
{
    float farthest = w->truth[w->n_truth - 1].distance;
    uint32_t found = 0;
    for (uint32_t i = 0; i < n; i++) {
        found += hits[i].distance <= farthest;
        w->newcomer |= hits[i].distance < farthest && !in_truth(w, hits[i].slot);
    }
    return fmin(found, w->n_truth) / w->n_truth;
}

/* The recall of the walk with this ef; negative when it failed. */
static double walk(struct work *w, uint32_t ef, struct err *e)
{
    struct index_hit hits[POOL + 1], best[RECALL_K];
    uint32_t n_best = 0;
    uint32_t k = vset_params(w->set)->keep == VSET_KEEP_NONE ? RECALL_K : POOL;
    if (w->self != INDEX_SLOT_NONE)
        k++; /* itself is found too, and not counted */
    const struct index_query q = {.vector = w->vector, .k = k, .ef = ef};
    epoch_enter();
    int64_t n = index_search(vset_index(w->set), w->scratch, &q, hits, e);
    for (int64_t i = 0; i < n; i++)
        w->slots[i] = hits[i].slot;
    int rc = n < 0 ? (int)n : slot_distances(w, (uint32_t)n, e);
    epoch_exit();
    if (rc)
        return -1;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(w->distances[i]))
            keep_best(best, &n_best, (struct index_hit){w->slots[i], w->distances[i]});
    return score(w, best, n_best);
}

/* Whether the exact nearest are still there and what they were. */
static bool truth_holds(struct work *w, struct err *e)
{
    for (uint32_t i = 0; i < w->n_truth; i++)
        w->slots[i] = w->truth[i].slot;
    epoch_enter();
    int rc = slot_distances(w, w->n_truth, e);
    epoch_exit();
    for (uint32_t i = 0; rc == 0 && i < w->n_truth; i++)
        if (w->distances[i] != w->truth[i].distance)
            return false;
    return rc == 0;
}

/* own_ef: of the search the query came from, or 0. False: nothing is to be counted. */
static bool measure(struct work *w, uint32_t own_ef, struct recall_sample *sample,
                    struct err *e)
{
    uint64_t changes = vset_changes(w->set);
    w->newcomer = false;
    sample->own = NAN;
    if (!scan(w, e))
        return false;
    double found = 0;
    for (int i = 0; i < RECALL_GRID; i++) {
        if (found < 1)
            found = walk(w, recall_grid[i], e);
        if (found < 0 || !going(w))
            return false;
        sample->grid[i] = found;
    }
    if (own_ef > 0 && (sample->own = walk(w, own_ef, e)) < 0)
        return false;
    return !w->newcomer && (vset_changes(w->set) == changes || truth_holds(w, e));
}

/* A vector of the set, taken by chance. */
static float *pick_vector(struct work *w, struct err *e)
{
    uint32_t n_slots = index_slots(vset_index(w->set));
    float *stored = NULL;
    for (int i = 0; i < GUESSES && n_slots > 0 && !stored; i++) {
        w->self = (uint32_t)rng_below(&w->rng, n_slots);
        stored = stored_vector(w);
        epoch_enter();
        if (stored && vset_vector(w->set, w->self, stored, e))
            stored = NULL;
        epoch_exit();
    }
    return stored ? mem_dup(stored, vset_params(w->set)->index.dim * sizeof *stored) : NULL;
}

/* Makes one sample of an offer. */
static void take(struct work *w, struct offer *o)
{
    struct recall_sample sample = {.weight = o->vector ? 1 : CALIBRATION_WEIGHT};
    struct err e = {0};
    w->set = o->set;
    w->self = INDEX_SLOT_NONE;
    float *picked = o->vector ? NULL : pick_vector(w, &e);
    w->vector = o->vector ? o->vector : picked;
    if (w->vector && measure(w, o->vector ? o->ef : 0, &sample, &e))
        recall_fold(vset_recall(o->set), &sample);
    mem_free(picked);
    if (e.code == KITH_ECORRUPT)
        log_warning("sampling the recall of vector set %u: %s", vset_id(o->set), e.message);
}

/* --- the thread --- */

static int64_t thread_cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void wait_until(struct recall_sampler *s, int64_t us)
{
    const struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    pthread_cond_timedwait(&s->wake, &s->lock, &t);
}

/* Takes an offer whose set was dropped out of the queue: it would keep the set's memory for as
 * long as it waits. Its lock held; given back for a moment. */
static bool end_dropped(struct recall_sampler *s)
{
    unsigned n = atomic_load(&s->n_queued), i = 0;
    while (i < n && !vset_dropped(s->queue[(s->first + i) % QUEUE].set))
        i++;
    if (i == n)
        return false;
    struct offer gone = s->queue[(s->first + i) % QUEUE];
    for (; i + 1 < n; i++)
        s->queue[(s->first + i) % QUEUE] = s->queue[(s->first + i + 1) % QUEUE];
    atomic_store(&s->n_queued, n - 1);
    pthread_mutex_unlock(&s->lock);
    end_offer(&gone);
    pthread_mutex_lock(&s->lock);
    return true;
}

/* Rests until `used` microseconds from `start` on are no more than their share. */
static void rest(struct recall_sampler *s, int64_t start, int64_t used)
{
    pthread_mutex_lock(&s->lock);
    while (!atomic_load(&s->stop)) {
        double share = s->cost_percent > 0 ? 100 / s->cost_percent : 1;
        int64_t now = clock_mono_us(), until = start + (int64_t)((double)used * share);
        if (now >= until)
            break;
        if (end_dropped(s))
            continue;
        wait_until(s, until < now + LOOK_US ? until : now + LOOK_US);
    }
    pthread_mutex_unlock(&s->lock);
}

/* Waits for an offer; false when stopping. */
static bool next_offer(struct recall_sampler *s, struct offer *o)
{
    pthread_mutex_lock(&s->lock);
    while (!atomic_load(&s->stop) && (atomic_load(&s->n_queued) == 0 || s->cost_percent <= 0)) {
        if (atomic_load(&s->n_queued) == 0)
            pthread_cond_wait(&s->wake, &s->lock);
        else if (!end_dropped(s))
            wait_until(s, clock_mono_us() + LOOK_US);
    }
    bool going_on = !atomic_load(&s->stop);
    if (going_on) {
        *o = s->queue[s->first];
        s->first = (s->first + 1) % QUEUE;
        atomic_fetch_sub(&s->n_queued, 1);
    }
    pthread_mutex_unlock(&s->lock);
    return going_on;
}

/* An offer that was taken is followed by calibrations where the set wants them. They go to the
 * queue's end, one by one: other sets have their turn in between. */
static void follow_up(struct recall_sampler *s, struct offer *o)
{
    struct offer again = {.set = o->set,
                          .calibrations = o->vector ? CALIBRATIONS : o->calibrations - 1};
    if (!vset_dropped(o->set) && again.calibrations > 0 &&
        recall_wants_calibration(vset_recall(o->set)) && put_offer(s, &again))
        mem_free(o->vector);
    else
        end_offer(o);
}

static void *sampler_main(void *arg)
{
    struct recall_sampler *s = arg;
    struct offer o;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
    while (next_offer(s, &o)) {
        int64_t start = clock_mono_us(), cpu = thread_cpu_us();
        take(s->work, &o);
        follow_up(s, &o);
        rest(s, start, thread_cpu_us() - cpu);
    }
    return NULL;
}

static void free_sampler(struct recall_sampler *s)
{
    if (s->work) {
        index_scratch_free(s->work->scratch);
        buf_deinit(&s->work->stored);
    }
    mem_free(s->work);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

int recall_sampler_start(struct recall_sampler **out, double cost_percent, struct err *e)
{
    struct recall_sampler *s = mem_calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return err_set(e, KITH_ENOMEM, "out of memory");
    s->cost_percent = cost_percent;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->work = mem_calloc(1, sizeof *s->work);
    if (!s->work || !(s->work->scratch = index_scratch_new())) {
        free_sampler(s);
        return err_set(e, KITH_ENOMEM, "out of memory");
    }
    s->work->sampler = s;
    rng_seed(&s->work->rng, rng_entropy());
    int rc = pthread_create(&s->thread, NULL, sampler_main, s);
    if (rc) {
        free_sampler(s);
        return err_set_errno(e, rc, "cannot start the thread that samples recall");
    }
    *out = s;
    return 0;
}

void recall_sampler_stop(struct recall_sampler *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->stop, true);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    for (unsigned n = atomic_load(&s->n_queued); n > 0; n--) {
        end_offer(&s->queue[s->first]);
        s->first = (s->first + 1) % QUEUE;
    }
    free_sampler(s);
}

void recall_sampler_configure(struct recall_sampler *s, double cost_percent)
{
    pthread_mutex_lock(&s->lock);
    s->cost_percent = cost_percent;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}
