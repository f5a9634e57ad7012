/* The averages of a set, and what follows from them. All of it is arithmetic on a few numbers
 * under a lock of a few nanoseconds; nothing here looks at a set. */
#include "server/recall.h"

#include <math.h>
#include <stddef.h>

#include "base/mem.h"
#include "server/recall_parts.h"

const uint32_t recall_grid[RECALL_GRID] = {25, 50, 100, 200, 400, 800, 1600};
_Static_assert(RECALL_GRID <= sizeof((struct recall_figures){0}.grid) /
                                  sizeof((struct recall_figures){0}.grid[0]),
               "figures show all of the grid");

/* A window of w weighs the last samples like a mean of the last 2w - 1. */
static const double WINDOW = 100;
/* Below this weight an asked-for ef is worth calibrating for. */
static const double KNOWN_WEIGHT = 8;
/* The margin: with weight w an ef must come closer to 1 than asked, by this much over w of what
 * is left, and by half at most. It can always be reached, and goes away as samples come. */
static const double MARGIN = 4, MARGIN_MAX = 0.5;

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct recall *list;

struct recall *recall_new(void)
{
    struct recall *r = mem_calloc(1, sizeof *r);
    if (r)
        pthread_mutex_init(&r->lock, NULL);
    return r;
}

void recall_free(struct recall *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&list_lock);
    if (r->listed) {
        *(r->previous ? &r->previous->next : &list) = r->next;
        if (r->next)
            r->next->previous = r->previous;
    }
    pthread_mutex_unlock(&list_lock);
    pthread_mutex_destroy(&r->lock);
    mem_free(r);
}

static void put_on_list(struct recall *r)
{
    pthread_mutex_lock(&list_lock);
    if (!r->listed) {
        r->listed = true;
        r->next = list;
        if (list)
            list->previous = r;
        list = r;
    }
    pthread_mutex_unlock(&list_lock);
}

static void average_add(struct recall_average *a, double value, double weight)
{
    a->weight = fmin(a->weight + weight, WINDOW);
    a->value += (value - a->value) * weight / a->weight;
}

void recall_fold(struct recall *r, const struct recall_sample *sample)
{
    put_on_list(r);
    pthread_mutex_lock(&r->lock);
    if (!isnan(sample->own))
        average_add(&r->own, sample->own, sample->weight);
    for (int i = 0; i < RECALL_GRID; i++)
        average_add(&r->grid[i], sample->grid[i], sample->weight);
    r->n_samples++;
    pthread_mutex_unlock(&r->lock);
}

bool recall_wants_calibration(struct recall *r)
{
    pthread_mutex_lock(&r->lock);
    bool wants = atomic_load(&r->asked) && r->grid[0].weight < KNOWN_WEIGHT;
    pthread_mutex_unlock(&r->lock);
    return wants;
}

uint32_t recall_ef(struct recall *r, double target)
{
    double found[RECALL_GRID], best = 0;
    pthread_mutex_lock(&r->lock);
    double weight = r->grid[0].weight;
    for (int i = 0; i < RECALL_GRID; i++)
        found[i] = best = fmax(best, r->grid[i].value); /* a larger ef finds no less */
    pthread_mutex_unlock(&r->lock);
    if (weight < KNOWN_WEIGHT)
        atomic_store(&r->asked, true);
    if (weight == 0)
        return RECALL_EF_UNKNOWN;
    target += (1 - target) * fmin(MARGIN / weight, MARGIN_MAX);
    if (found[0] >= target)
        return recall_grid[0];
    for (int i = 1; i < RECALL_GRID; i++)
        if (found[i] >= target) {
            double below = log(recall_grid[i - 1]), above = log(recall_grid[i]);
            double part = (target - found[i - 1]) / (found[i] - found[i - 1]);
            return (uint32_t)ceil(exp(below + part * (above - below)) - 1e-6);
        }
    return recall_grid[RECALL_GRID - 1];
}

void recall_figures(struct recall *r, struct recall_figures *out)
{
    *out = (struct recall_figures){.n_grid = RECALL_GRID};
    pthread_mutex_lock(&r->lock);
    out->recall_at_10 = r->own.weight > 0 ? r->own.value : NAN;
    out->n_samples = r->n_samples;
    for (int i = 0; i < RECALL_GRID; i++) {
        out->grid[i].ef = recall_grid[i];
        out->grid[i].recall = r->grid[i].weight > 0 ? r->grid[i].value : NAN;
    }
    pthread_mutex_unlock(&r->lock);
}

void recall_totals(struct recall_totals *out)
{
    double sum = 0;
    *out = (struct recall_totals){.mean = NAN, .worst = NAN};
    pthread_mutex_lock(&list_lock);
    for (struct recall *r = list; r; r = r->next) {
        pthread_mutex_lock(&r->lock);
        out->n_samples += r->n_samples;
        if (r->own.weight > 0) {
            out->n_sets++;
            sum += r->own.value;
            out->worst = fmin(out->worst, r->own.value); /* of NAN and a number: the number */
        }
        pthread_mutex_unlock(&r->lock);
    }
    pthread_mutex_unlock(&list_lock);
    if (out->n_sets > 0)
        out->mean = sum / (double)out->n_sets;
}
