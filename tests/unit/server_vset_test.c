/* A vector set against a plain model: adds, updates, attributes, times, removals, in any order,
 * with checkpoints that take their time or fail, sets opened again from the store, and memory
 * that runs out anywhere. */
#include "tests/unit/unit_dir.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/epoch.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "server/attributes.h"
#include "server/vset.h"

enum { NAMES = 150, STEPS = 15000, DIM = 6, SET_ID = 3, VERIFY_EVERY = 40, NAME_BYTES = 400 };

struct model {
    bool exists;
    float vector[DIM];
    int attributes; /* 0: none, 1: the empty text, else a number that json_of writes out */
    int text;       /* 0: none */
    int64_t expire_ms;
};

struct world {
    char dir[64];
    struct store *store;
    struct vset_options options;
    struct vset_params params;
    struct vset *v;
    struct index_scratch *scratch;
    struct rng r;
    int64_t now_ms;
    uint64_t log_index;
    struct model now[NAMES], frozen[NAMES], stored[NAMES];
    bool is_frozen, is_stored;
};

static void nothing(void *arg, struct vset *v)
{
    (void)arg;
    (void)v;
}

/* Names of many lengths, some the beginning of others, some with a NUL inside. */
static struct slice name_of(uint32_t i, char out[NAME_BYTES])
{
    static const size_t lengths[] = {1, 3, 27, 28, 29, 30, 56, 57, 100, 399};
    size_t n = lengths[i % 10];
    memset(out, 'a' + (int)(i % 3), NAME_BYTES);
    if (i % 7 == 0 && n > 3)
        out[n / 2] = '\0';
    for (size_t k = 0, v = i; k < n && k < 4; k++, v /= 16)
        out[n - 1 - k] = "0123456789abcdef"[v % 16];
    return (struct slice){out, n == 1 ? 2 : n}; /* two bytes hold any i below 256 */
}

static struct slice json_of(int attributes, char out[9000])
{
    if (attributes <= 1)
        return (struct slice){"", 0};
    int n = snprintf(out, 9000, "{\"n\":%d,\"s\":\"", attributes);
    int more = attributes % 5 == 0 ? attributes * 37 % 8000 : attributes % 200;
    memset(out + n, 'x', (size_t)more);
    n += more;
    n += snprintf(out + n, 9000 - (size_t)n, "\"}");
    return (struct slice){out, (size_t)n};
}

static struct slice text_of(int text, char out[64])
{
    return (struct slice){out, (size_t)snprintf(out, 64, "text %d", text)};
}

static void world_open(struct world *w, enum vset_keep keep, enum index_kind kind)
{
    struct err e;
    rng_seed(&w->r, unit_seed());
    unit_dir_make(w->dir);
    assert_int_equal(store_open(&w->store, w->dir, &(struct store_options){0}, &e), 0);
    w->options = (struct vset_options){
        .store = w->store, .tail_max = 64, .on_work = nothing, .on_dirty = nothing};
    w->params = (struct vset_params){
        .index = {.kind = kind, .quant = INDEX_INT8, .dim = DIM, .m = 4, .ef_construction = 20},
        .keep = keep,
        .declared = true};
    w->scratch = index_scratch_new();
    w->now_ms = 1000;
    assert_int_equal(vset_new(&w->v, SET_ID, &w->params, NULL, &w->options, &e), 0);
}

static void world_close(struct world *w)
{
    if (w->is_frozen)
        vset_settle(w->v, false);
    vset_unref(w->v);
    epoch_synchronize();
    store_close(w->store);
    index_scratch_free(w->scratch);
    unit_remove(w->dir);
}

/* --- what must hold --- */

static void note(void *arg, const char *what)
{
    (void)arg;
    printf("finding: %s\n", what);
}

static bool alive(const struct world *w, const struct model *m)
{
    return m->exists && (!m->expire_ms || m->expire_ms > w->now_ms);
}

static void check_element(struct world *w, uint32_t i)
{
    const struct model *m = &w->now[i];
    char name[NAME_BYTES], json[9000], text[64];
    float vector[DIM];
    uint32_t slot;
    struct err e;
    size_t n;
    struct buf b;
    int rc = vset_find(w->v, name_of(i, name), w->now_ms, &slot, &e);
    assert_int_equal(rc, alive(w, m) ? 0 : KITH_ENOTFOUND);
    rc = vset_find(w->v, name_of(i, name), 0, &slot, &e);
    assert_int_equal(rc, m->exists ? 0 : KITH_ENOTFOUND);
    if (!m->exists)
        return;
    buf_init(&b);
    epoch_enter();
    assert_true(vset_name(w->v, slot, &b, &e));
    assert_true(slice_equal((struct slice){b.data, b.len}, name_of(i, name)));
    const void *p = vset_attributes(w->v, slot, &n);
    assert_int_equal(p != NULL, m->attributes != 0);
    if (p)
        assert_true(slice_equal(attributes_json(p, n), json_of(m->attributes, json)));
    assert_int_equal(vset_expires_at(w->v, slot), m->expire_ms);
    assert_int_equal(vset_vector(w->v, slot, vector, &e), 0);
    float tolerance = w->params.keep == VSET_KEEP_NONE  ? 0.15f
                      : w->params.keep == VSET_KEEP_F16 ? 0.02f
                                                        : 0.0f;
    for (int k = 0; k < DIM; k++)
        assert_true(fabsf(vector[k] - m->vector[k]) <= tolerance);
    epoch_exit();
    buf_clear(&b);
    rc = vset_text(w->v, slot, &b, &e);
    assert_int_equal(rc, m->text ? 0 : KITH_ENOTFOUND);
    if (m->text)
        assert_true(slice_equal((struct slice){b.data, b.len}, text_of(m->text, text)));
    buf_deinit(&b);
}

static void check_info(struct world *w)
{
    struct vset_info info;
    uint32_t n = 0, attributes = 0, expiring = 0;
    for (uint32_t i = 0; i < NAMES; i++) {
        n += w->now[i].exists;
        attributes += w->now[i].exists && w->now[i].attributes;
        expiring += w->now[i].exists && w->now[i].expire_ms;
    }
    vset_info(w->v, &info);
    assert_int_equal(info.count, n);
    assert_int_equal(info.n_attributes, attributes);
    assert_int_equal(info.n_expiring, expiring);
}

static int by_name(const void *a, const void *b)
{
    char x[NAME_BYTES], y[NAME_BYTES];
    struct slice left = name_of(*(const uint32_t *)a, x),
                 right = name_of(*(const uint32_t *)b, y);
    int c = memcmp(left.p, right.p, left.n < right.n ? left.n : right.n);
    return c ? c : (left.n > right.n) - (left.n < right.n);
}

static bool within(uint32_t i, const struct vset_bound *b, uint32_t at, bool from)
{
    int c = b->all ? 0 : by_name(&i, &at);
    return b->all || (from ? c > 0 : c < 0) || (c == 0 && !b->open);
}

static void check_range(struct world *w)
{
    uint32_t from_i = (uint32_t)rng_below(&w->r, NAMES),
             to_i = (uint32_t)rng_below(&w->r, NAMES);
    char from_name[NAME_BYTES], to_name[NAME_BYTES], name[NAME_BYTES];
    struct vset_bound from = {name_of(from_i, from_name), rng_below(&w->r, 2),
                              rng_below(&w->r, 2)};
    struct vset_bound to = {name_of(to_i, to_name), rng_below(&w->r, 2), rng_below(&w->r, 2)};
    uint32_t limit = (uint32_t)rng_below(&w->r, NAMES + 10), want[NAMES], n = 0;
    uint32_t slots[NAMES + 10];
    struct err e;
    for (uint32_t i = 0; i < NAMES; i++)
        if (alive(w, &w->now[i]) && within(i, &from, from_i, true) &&
            within(i, &to, to_i, false))
            want[n++] = i;
    qsort(want, n, sizeof *want, by_name);
    n = n < limit ? n : limit;
    assert_int_equal(vset_range(w->v, w->now_ms, &from, &to, limit, slots, &e), n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot;
        assert_int_equal(vset_find(w->v, name_of(want[i], name), 0, &slot, &e), 0);
        assert_int_equal(slots[i], slot);
    }
}

static void check_random(struct world *w)
{
    uint32_t slots[NAMES * 2], alive_n = 0, want = 1 + (uint32_t)rng_below(&w->r, NAMES);
    for (uint32_t i = 0; i < NAMES; i++)
        alive_n += alive(w, &w->now[i]);
    uint32_t n = vset_random(w->v, w->now_ms, want, true, slots);
    assert_int_equal(n, want < alive_n ? want : alive_n);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < i; k++)
            assert_int_not_equal(slots[i], slots[k]);
    n = vset_random(w->v, w->now_ms, want, false, slots);
    assert_int_equal(n, alive_n ? want : 0);
}

static void verify(struct world *w)
{
    struct err e;
    for (uint32_t i = 0; i < NAMES; i++)
        check_element(w, i);
    check_info(w);
    check_range(w);
    check_random(w);
    assert_int_equal(vset_check(w->v, note, NULL, &e), 0);
    int64_t next = INT64_MAX;
    for (uint32_t i = 0; i < NAMES; i++)
        if (w->now[i].exists && w->now[i].expire_ms && w->now[i].expire_ms < next)
            next = w->now[i].expire_ms;
    assert_true(vset_next_expiry(w->v) <= next);
}

/* --- what is done --- */

static void change(struct world *w, uint32_t i, bool failing)
{
    struct model m = w->now[i];
    char name[NAME_BYTES], json[9000], text[64];
    struct slice json_slice, text_slice;
    bool sets = rng_below(&w->r, 2);
    m.exists = true;
    for (int k = 0; k < DIM; k++)
        m.vector[k] = (float)rng_unit(&w->r) * 2 - 1;
    if (!w->now[i].exists)
        m.attributes = 0;
    int given = rng_below(&w->r, 4) == 0 ? 1 : 2 + (int)rng_below(&w->r, 1000);
    if (sets)
        m.attributes = given > 1 ? given : w->now[i].exists ? 0 : 1;
    m.text = rng_below(&w->r, 3) == 0 ? 1 + (int)rng_below(&w->r, 100) : 0;
    m.expire_ms = rng_below(&w->r, 3) == 0 ? w->now_ms + 1 + (int64_t)rng_below(&w->r, 500) : 0;
    json_slice = json_of(given, json);
    text_slice = text_of(m.text, text);
    struct vset_element element = {.name = name_of(i, name),
                                   .vector = m.vector,
                                   .text = m.text ? &text_slice : NULL,
                                   .attributes = sets ? &json_slice : NULL,
                                   .expire_ms = m.expire_ms};
    bool added = false;
    struct err e;
    uint64_t changes = vset_changes(w->v), replacements = vset_replacements(w->v);
    if (failing)
        mem_fail_after(1 + (long)rng_below(&w->r, 12));
    int rc = vset_add(w->v, &element, &added, &e);
    mem_fail_after(0);
    assert_true(rc == 0 || (failing && rc == KITH_ENOMEM));
    if (rc != 0)
        return;
    assert_int_equal(added, !w->now[i].exists);
    assert_true(vset_changes(w->v) > changes);
    uint32_t slot, replaced;
    assert_int_equal(vset_find(w->v, element.name, 0, &slot, &e), 0);
    assert_int_equal(vset_replacements(w->v) - replacements, !added);
    if (!added) {
        assert_true(vset_replacement(w->v, replacements, &replaced));
        assert_int_equal(replaced, slot);
    }
    w->now[i] = m;
}

static void set_attributes(struct world *w, uint32_t i, bool failing)
{
    char name[NAME_BYTES], json[9000];
    struct err e;
    int given = rng_below(&w->r, 4) == 0 ? 0 : 2 + (int)rng_below(&w->r, 1000);
    if (failing)
        mem_fail_after(1 + (long)rng_below(&w->r, 6));
    int rc = vset_set_attributes(w->v, name_of(i, name), json_of(given, json), &e);
    mem_fail_after(0);
    if (rc == 0)
        w->now[i].attributes = given;
    else
        assert_int_equal(rc, failing && w->now[i].exists ? KITH_ENOMEM
                             : rc == KITH_ENOMEM         ? rc
                                                         : KITH_ENOTFOUND);
    assert_true(rc != 0 || w->now[i].exists);
}

static void take_away(struct world *w, uint32_t i, bool failing)
{
    char name[NAME_BYTES];
    struct err e;
    if (failing)
        mem_fail_after(1 + (long)rng_below(&w->r, 4));
    int rc = vset_remove(w->v, name_of(i, name), &e);
    mem_fail_after(0);
    if (!w->now[i].exists)
        assert_int_equal(rc, KITH_ENOTFOUND);
    else if (rc == 0)
        w->now[i].exists = false;
    else
        assert_true(failing && rc == KITH_ENOMEM);
}

static uint32_t index_of(const struct slice *name)
{
    char other[NAME_BYTES];
    for (uint32_t i = 0; i < NAMES; i++)
        if (slice_equal(*name, name_of(i, other)))
            return i;
    fail();
    return 0;
}

/* Time passes, and what is due goes, each by its name, the earliest first. */
static void expire(struct world *w)
{
    struct buf b;
    buf_init(&b);
    w->now_ms += (int64_t)rng_below(&w->r, 100);
    int64_t last = 0;
    while (vset_expired(w->v, w->now_ms, &b)) {
        struct slice name = {b.data, b.len};
        uint32_t i = index_of(&name);
        assert_true(w->now[i].exists && w->now[i].expire_ms);
        assert_true(w->now[i].expire_ms <= w->now_ms && w->now[i].expire_ms >= last);
        last = w->now[i].expire_ms;
        assert_int_equal(vset_remove(w->v, name, NULL), 0);
        w->now[i].exists = false;
        buf_clear(&b);
    }
    for (uint32_t i = 0; i < NAMES; i++)
        assert_true(!w->now[i].exists || alive(w, &w->now[i]));
    assert_true(vset_next_expiry(w->v) > w->now_ms);
    buf_deinit(&b);
}

static void link_some(struct world *w)
{
    struct err e;
    for (uint64_t n = rng_below(&w->r, 40); n > 0; n--)
        if (vset_link(w->v, w->scratch, &e) <= 0)
            break;
}

static void freeze(struct world *w)
{
    struct err e;
    assert_int_equal(vset_freeze(w->v, &e), 0);
    memcpy(w->frozen, w->now, sizeof w->now);
    w->is_frozen = true;
}

static void settle(struct world *w, bool commit)
{
    struct store_write *write;
    struct err e;
    assert_int_equal(store_begin(w->store, &write, &e), 0);
    assert_int_equal(vset_write(w->v, write, &e), 0);
    if (commit) {
        assert_int_equal(store_commit(write, 1, ++w->log_index, &e), 0);
        assert_int_equal(store_refresh(w->store, &e), 0);
        memcpy(w->stored, w->frozen, sizeof w->now);
        w->is_stored = true;
    } else {
        store_abort(write);
    }
    vset_settle(w->v, commit);
    if (commit)
        store_refreshed(w->store);
    w->is_frozen = false;
}

/* The set is put away and opened as of its last checkpoint. */
static void reopen(struct world *w)
{
    struct err e;
    if (w->is_frozen)
        settle(w, rng_below(&w->r, 2));
    if (!w->is_stored)
        return;
    bool whole = memcmp(w->now, w->stored, sizeof w->now) == 0;
    uint64_t before[2], after[2];
    assert_int_equal(vset_digest(w->v, w->now_ms, before, &e), 0);
    vset_unref(w->v);
    epoch_synchronize();
    if (rng_below(&w->r, 2)) { /* with memory that runs out first */
        mem_fail_after(1 + (long)rng_below(&w->r, 30));
        int rc = vset_load(&w->v, SET_ID, &w->options, &e);
        mem_fail_after(0);
        assert_true(rc == 0 || rc == KITH_ENOMEM || rc == KITH_ECORRUPT);
        if (rc == 0) {
            vset_unref(w->v);
            epoch_synchronize();
        }
    }
    assert_int_equal(vset_load(&w->v, SET_ID, &w->options, &e), 0);
    memcpy(w->now, w->stored, sizeof w->now);
    assert_int_equal(vset_digest(w->v, w->now_ms, after, &e), 0);
    if (whole)
        assert_memory_equal(before, after, sizeof before);
    assert_true(vset_params(w->v)->declared);
    verify(w);
}

static void step(struct world *w)
{
    uint32_t i = (uint32_t)rng_below(&w->r, NAMES);
    bool failing = rng_below(&w->r, 3) == 0;
    switch (rng_below(&w->r, 40)) {
    case 0:
        link_some(w);
        break;
    case 1:
        expire(w);
        break;
    case 2:
        if (w->is_frozen)
            settle(w, rng_below(&w->r, 4) != 0);
        else
            freeze(w);
        break;
    case 3:
        if (rng_below(&w->r, 10) == 0)
            reopen(w);
        break;
    default:
        if (rng_below(&w->r, 3) == 0)
            take_away(w, i, failing);
        else if (rng_below(&w->r, 3) == 0)
            set_attributes(w, i, failing);
        else
            change(w, i, failing);
    }
}

static void run_model(enum vset_keep keep, enum index_kind kind)
{
    struct world *w = calloc(1, sizeof *w);
    world_open(w, keep, kind);
    for (int i = 0; i < STEPS; i++) {
        step(w);
        if (i % VERIFY_EVERY == 0)
            verify(w);
    }
    for (uint32_t i = 0; i < NAMES; i++) /* to the last one, and an empty set comes back */
        take_away(w, i, false);
    if (w->is_frozen)
        settle(w, true);
    freeze(w);
    settle(w, true);
    reopen(w);
    assert_int_equal(vset_count(w->v), 0);
    world_close(w);
    free(w);
}

static void test_model(void **state)
{
    (void)state;
    run_model(VSET_KEEP_NONE, INDEX_HNSW);
}

static void test_model_keeping_f32(void **state)
{
    (void)state;
    run_model(VSET_KEEP_F32, INDEX_HNSW);
}

static void test_model_keeping_f16_flat(void **state)
{
    (void)state;
    run_model(VSET_KEEP_F16, INDEX_FLAT);
}

/* --- many --- */

/* The table of names is split, and the order of names too, only when there are thousands. */
enum { MANY = 150000, MANY_STEP = 7 };

static struct slice many_name(uint32_t i, char out[NAME_BYTES])
{
    return (struct slice){out,
                          (size_t)snprintf(out, NAME_BYTES, "%s:%08u", i % 2 ? "x" : "xy", i)};
}

static void many_add(struct world *w, uint32_t i)
{
    char name[NAME_BYTES];
    bool added;
    const float vector[DIM] = {1, (float)i};
    struct vset_element x = {.name = many_name(i, name), .vector = vector};
    assert_int_equal(vset_add(w->v, &x, &added, NULL), 0);
    assert_true(added);
}

/* All elements whose number is a multiple of `of`, in order of their names: those of "x" first,
 * each by its number. */
static void many_check(struct world *w, uint32_t n, uint32_t of, uint32_t *slots)
{
    const struct vset_bound all = {.all = true};
    char name[NAME_BYTES];
    uint32_t slot, at = 0;
    struct err e;
    assert_int_equal(vset_range(w->v, 0, &all, &all, MANY, slots, &e), vset_count(w->v));
    for (uint32_t odd = 1; odd < 2; odd--)
        for (uint32_t i = 0; i < n; i++) {
            if (i % 2 != odd)
                continue;
            int rc = vset_find(w->v, many_name(i, name), 0, &slot, &e);
            assert_int_equal(rc, i % of ? KITH_ENOTFOUND : 0);
            if (rc == 0)
                assert_int_equal(slot, slots[at++]);
        }
    assert_int_equal(at, vset_count(w->v));
    assert_int_equal(vset_check(w->v, note, NULL, &e), 0);
}

static void test_many(void **state)
{
    (void)state;
    struct world *w = calloc(1, sizeof *w);
    uint32_t *slots = calloc(MANY, sizeof *slots);
    char name[NAME_BYTES];
    struct vset_info info;
    world_open(w, VSET_KEEP_NONE, INDEX_FLAT);
    /* The number of an element and of its turn have no common factor with each other. */
    for (uint32_t turn = 0; turn < MANY; turn++) {
        many_add(w, (uint32_t)((uint64_t)turn * 7919 % MANY));
        if (turn == 100)
            vset_range(w->v, 0, &(struct vset_bound){.all = true},
                       &(struct vset_bound){.all = true}, 1, slots, NULL);
        if (turn % 5000 == 4999) { /* a code of 20 bytes, an element of 48, names and order */
            vset_info(w->v, &info);
            assert_true(info.memory_bytes < (20 + 48 + 12 + 7) * (turn + 1) + 300000);
        }
    }
    many_check(w, MANY, 1, slots);
    for (uint32_t i = 0; i < MANY; i++)
        if (i % MANY_STEP)
            assert_int_equal(vset_remove(w->v, many_name(i, name), NULL), 0);
    many_check(w, MANY, MANY_STEP, slots);
    uint32_t n = vset_random(w->v, 0, 50, true, slots);
    assert_int_equal(n, 50);
    /* Slots of both kinds are drawn alike. */
    uint64_t drawn = 0;
    for (int i = 0; i < 200000; i++) {
        assert_int_equal(vset_random(w->v, 0, 1, false, slots), 1);
        drawn += slots[0] % 2;
    }
    assert_in_range(drawn, 90000, 110000);
    world_close(w);
    free(slots);
    free(w);
}

/* An element whose time is put off again and again leaves no trace, and the others expire. */
static void test_times_put_off(void **state)
{
    (void)state;
    struct world *w = calloc(1, sizeof *w);
    struct buf name;
    struct vset_info before, after;
    const float vector[DIM] = {1};
    bool added;
    buf_init(&name);
    world_open(w, VSET_KEEP_NONE, INDEX_FLAT);
    struct vset_element x = {.name = slice_of("due"), .vector = vector, .expire_ms = 5000};
    assert_int_equal(vset_add(w->v, &x, &added, NULL), 0);
    x.name = slice_of("put off");
    for (int i = 0; i < 20000; i++) {
        x.expire_ms = 100000 + i;
        assert_int_equal(vset_add(w->v, &x, &added, NULL), 0);
        while (vset_link(w->v, w->scratch, NULL) > 0) {
        }
        if (i == 1000)
            vset_info(w->v, &before);
    }
    vset_info(w->v, &after);
    assert_true(after.memory_bytes <= before.memory_bytes);
    assert_int_equal(after.n_expiring, 2);
    assert_int_equal(vset_next_expiry(w->v), 5000);
    assert_false(vset_expired(w->v, 4999, &name));
    assert_true(vset_expired(w->v, 5000, &name));
    assert_true(slice_equal((struct slice){name.data, name.len}, slice_of("due")));
    assert_int_equal(vset_remove(w->v, slice_of("due"), NULL), 0);
    assert_false(vset_expired(w->v, 119998, &name));
    assert_int_equal(vset_next_expiry(w->v), 119999);
    assert_true(vset_expired(w->v, 119999, &name));
    buf_deinit(&name);
    world_close(w);
    free(w);
}

/* --- readers without a lock --- */

/* One thread changes the set, one links, one makes checkpoints, two search and look at names
 * and attributes of every slot: what they read must belong together. */

enum { CROWD = 60, CROWD_STEPS = 6000 };

struct crowd {
    struct world w;
    _Atomic bool stop;
    _Atomic uint64_t n_read, n_wrong;
};

static struct slice crowd_name(uint32_t i, char out[NAME_BYTES])
{
    return (struct slice){out, (size_t)snprintf(out, NAME_BYTES, "element number %u%*s", i,
                                                (int)(i % 3) * 20, "")};
}

static struct slice crowd_json(struct rng *r, uint32_t i, char out[9000])
{
    int padding = (int)rng_below(r, rng_below(r, 20) == 0 ? 5000 : 150);
    int n = snprintf(out, 9000, "{\"k\":%u,\"p\":\"%*s\"}", i, padding, "");
    return (struct slice){out, (size_t)n};
}

struct looking {
    struct crowd *c;
    struct buf name;
};

static bool look(void *arg, uint32_t slot)
{
    struct looking *l = arg;
    struct err e = {0};
    unsigned number = 0;
    size_t n;
    const struct slice k = {"k", 1};
    buf_clear(&l->name);
    const void *p = vset_attributes(l->c->w.v, slot, &n);
    bool named = vset_name(l->c->w.v, slot, &l->name, &e);
    buf_append(&l->name, "", 1);
    if (p && n > 0 && named) {
        struct attribute_value value = attributes_find(p, n, k, attribute_name_hash(k));
        bool right = attributes_bytes(p, n) == n && value.type == ATTRIBUTE_NUMBER &&
                     sscanf(l->name.data, "element number %u", &number) == 1 &&
                     value.number == (double)number;
        atomic_fetch_add(&l->c->n_wrong, !right);
        atomic_fetch_add(&l->c->n_read, 1);
    }
    return true;
}

static void *reader_main(void *arg)
{
    struct crowd *c = arg;
    struct looking l = {.c = c};
    struct index_scratch *scratch = index_scratch_new();
    struct index_hit hits[10];
    float vector[DIM] = {1, 2, 3};
    struct index_query q = {.vector = vector, .k = 10, .ef = 50, .accept = look, .arg = &l};
    buf_init(&l.name);
    while (!atomic_load(&c->stop)) {
        q.exact = !q.exact;
        epoch_enter();
        if (index_search(vset_index(c->w.v), scratch, &q, hits, NULL) < 0)
            atomic_fetch_add(&c->n_wrong, 1);
        epoch_exit();
    }
    buf_deinit(&l.name);
    index_scratch_free(scratch);
    return NULL;
}

static void *linker_main(void *arg)
{
    struct crowd *c = arg;
    struct index_scratch *scratch = index_scratch_new();
    while (!atomic_load(&c->stop))
        if (vset_link(c->w.v, scratch, NULL) < 0)
            atomic_fetch_add(&c->n_wrong, 1);
    index_scratch_free(scratch);
    return NULL;
}

static void *checkpoint_main(void *arg)
{
    struct crowd *c = arg;
    struct store_write *write;
    for (bool commit = true; !atomic_load(&c->stop); commit = !commit) {
        int rc = vset_freeze(c->w.v, NULL);
        rc |= store_begin(c->w.store, &write, NULL);
        rc |= vset_write(c->w.v, write, NULL);
        if (commit) {
            rc |= store_commit(write, 1, ++c->w.log_index, NULL);
            rc |= store_refresh(c->w.store, NULL);
        } else {
            store_abort(write);
        }
        vset_settle(c->w.v, commit);
        if (commit)
            store_refreshed(c->w.store);
        atomic_fetch_add(&c->n_wrong, rc != 0);
    }
    return NULL;
}

static void crowd_change(struct crowd *c, struct rng *r, bool exists[CROWD])
{
    char name[NAME_BYTES], json[9000];
    uint32_t i = (uint32_t)rng_below(r, CROWD);
    float vector[DIM];
    for (int k = 0; k < DIM; k++)
        vector[k] = (float)rng_unit(r);
    struct slice attributes = crowd_json(r, i, json);
    struct vset_element x = {.name = crowd_name(i, name),
                             .vector = vector,
                             .attributes = rng_below(r, 2) ? &attributes : NULL};
    uint64_t what = rng_below(r, 10);
    bool added;
    if (what == 0 && exists[i])
        assert_int_equal(vset_remove(c->w.v, x.name, NULL), 0);
    else if (what < 5 && exists[i])
        assert_int_equal(vset_set_attributes(c->w.v, x.name, attributes, NULL), 0);
    else
        assert_int_equal(vset_add(c->w.v, &x, &added, NULL), 0);
    exists[i] = !(what == 0 && exists[i]);
}

static void test_readers_without_a_lock(void **state)
{
    (void)state;
    struct crowd *c = calloc(1, sizeof *c);
    struct rng r;
    bool exists[CROWD] = {false};
    void *(*const mains[])(void *) = {reader_main, reader_main, linker_main, checkpoint_main};
    pthread_t threads[4];
    struct err e;
    world_open(&c->w, VSET_KEEP_NONE, INDEX_HNSW);
    rng_seed(&r, rng_next(&c->w.r));
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, mains[i], c), 0);
    for (int i = 0; i < CROWD_STEPS || atomic_load(&c->n_read) < CROWD_STEPS; i++)
        crowd_change(c, &r, exists);
    atomic_store(&c->stop, true);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&c->n_wrong), 0);
    assert_true(vset_healthy(c->w.v));
    assert_int_equal(vset_check(c->w.v, note, NULL, &e), 0);
    world_close(&c->w);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_model_keeping_f32),
        cmocka_unit_test(test_model_keeping_f16_flat),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_times_put_off),
        cmocka_unit_test(test_readers_without_a_lock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
