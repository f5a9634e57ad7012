/* What expires: keys, and elements of vector sets. Nothing goes because the clock says so; it
 * goes by an effect, so that a restart and a replica see the same. Until then what is past its
 * time is not shown: finding and searching look at the time themselves.
 *
 * Keys and elements are removed by the timer, a bounded number each time. A set that is looked
 * at gives up to EXPIRE_PER_ACCESS of its elements first, so that counts of small sets are
 * exact at once. A command that only reads has reserved no room in the log, so these removals
 * are a record of their own there; in one that writes they go along in the slack of its
 * reservation. */
#include "base/clock.h"
#include "base/mem.h"
#include "server/effect.h"
#include "server/shard_parts.h"

enum {
    KEYS_PER_TURN = 500,
    ELEMENTS_PER_TURN = 1000,
    ELEMENTS_PER_ACCESS = 32,
    SETS_PER_TURN = 1000,
    TURN_US = 5000,
    TURN_BYTES = 4 * 1024 * 1024,
    ACCESS_BYTES = 128 * 1024,
    SPARE_BYTES = 1024 /* of an effect besides its names */
};
_Static_assert((int)ACCESS_BYTES * 2 <= (int)RESERVE_SLACK_BYTES,
               "a command's reservation has room for what expires while it runs");

static void expire_keys(struct shard *s)
{
    struct err e;
    if (!keyspace_expired(s->keyspace, s->now_ms) || shard_admit(s, TURN_BYTES, &e) != 0)
        return; /* they are not shown to anyone; they go when the log can be written again */
    size_t room = TURN_BYTES - SPARE_BYTES;
    for (int i = 0; i < KEYS_PER_TURN; i++) {
        struct key *k = keyspace_expired(s->keyspace, s->now_ms);
        if (!k || k->name_n > room || s->effects.len > room - k->name_n)
            break;
        struct effect f = {.op = EFFECT_DEL, .db = k->db, .key = key_name(k)};
        char *name = mem_dup(k->name, k->name_n); /* applying frees the key */
        if (!name)
            break;
        f.key.p = name;
        int rc = effect_do(s, &f, &e);
        mem_free(name);
        if (rc != 0)
            break;
        s->expired_keys++;
    }
    shard_leave(s);
}

struct removal {
    struct shard *s;
    int64_t until_us;
    size_t room; /* what the effects of the command may come to */
    struct buf key, element;
};

/* Removes up to max elements of a set whose time has come; false when it stopped before the
 * last of them. The set, and its key, may be gone after it. */
static bool remove_due(struct removal *r, struct vset *v, uint32_t max)
{
    struct shard *s = r->s;
    struct key *k = vset_key(v);
    struct effect f = {.op = EFFECT_VREM, .db = k->db};
    buf_clear(&r->key);
    buf_append(&r->key, k->name, k->name_n); /* applying may free the key */
    if (r->key.failed)
        return false;
    f.key = (struct slice){r->key.data, r->key.len};
    for (uint32_t i = 0; i < max; i++) {
        struct err e;
        buf_clear(&r->element);
        if (vset_dropped(v) || !vset_expired(v, s->now_ms, &r->element))
            return true;
        f.value = (struct slice){r->element.data, r->element.len};
        if (s->effects.len + f.key.n + f.value.n + SPARE_BYTES > r->room ||
            (i % 64 == 63 && clock_mono_us() > r->until_us) || effect_do(s, &f, &e) != 0)
            return false;
        s->expired_elements++;
    }
    return false;
}

static void removal_deinit(struct removal *r)
{
    buf_deinit(&r->key);
    buf_deinit(&r->element);
}

void shard_expiry_watch(struct shard *s, struct vset *v)
{
    vset_queue_push(&s->expiring, v);
}

/* One turn round the sets that have elements with a time. True when there was more to do. */
static bool expire_elements(struct shard *s)
{
    struct removal r = {
        .s = s, .until_us = clock_mono_us() + TURN_US, .room = TURN_BYTES - SPARE_BYTES};
    struct vset *first = NULL;
    bool more = false, admitted = false;
    struct err e;
    for (int i = 0; !more && i < SETS_PER_TURN && s->expiring.first != first; i++) {
        struct vset *v = vset_queue_pop(&s->expiring);
        int64_t next = vset_dropped(v) ? INT64_MAX : vset_next_expiry(v);
        if (next <= s->now_ms) {
            if (!admitted && shard_admit(s, TURN_BYTES, &e) != 0)
                next = -1; /* they go when the log can be written again */
            else
                more = !remove_due(&r, v, ELEMENTS_PER_TURN);
            admitted |= next >= 0;
        }
        if (next != INT64_MAX) {
            vset_queue_push(&s->expiring, v);
            first = first ? first : v;
        }
        vset_unref(v);
        if (next < 0)
            break;
    }
    if (admitted)
        shard_leave(s);
    removal_deinit(&r);
    return more;
}

bool shard_expire(struct shard *s)
{
    expire_keys(s);
    return expire_elements(s);
}

void shard_expire_elements(struct shard *s, struct vset *v)
{
    struct removal r = {.s = s, .until_us = INT64_MAX};
    struct err e;
    if (vset_next_expiry(v) > s->now_ms)
        return;
    if (s->reserved == 0) {
        if (shard_admit(s, ACCESS_BYTES, &e) != 0)
            return;
        r.room = ACCESS_BYTES;
        (void)remove_due(&r, v, ELEMENTS_PER_ACCESS);
        shard_leave(s);
    } else if (s->expiry_bytes < ACCESS_BYTES) {
        size_t before = s->effects.len;
        r.room = before + ACCESS_BYTES - s->expiry_bytes;
        (void)remove_due(&r, v, ELEMENTS_PER_ACCESS);
        s->expiry_bytes += s->effects.len - before;
    }
    removal_deinit(&r);
}
