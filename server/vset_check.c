/* What must hold in a vector set, and its digest. Both walk all of it with the owner's lock. */
#include "base/epoch.h"
#include "base/hash.h"
#include "server/vset_parts.h"

/* What is wrong with the element of a slot, or NULL. Inside a bracket. */
static const char *check_element(struct vset *v, uint32_t slot, struct buf *name,
                                 struct err *why)
{
    struct index_code code;
    uint32_t found;
    buf_clear(name);
    const struct elem *el = elem_at(v, slot, why);
    if (!el || !elem_live(el) || !vset_name(v, slot, name, why))
        return why->message[0] ? why->message : "an element of the table is not live";
    if (table_find(v, (struct slice){name->data, name->len}, &found, why) != 0)
        return why->message;
    if (found != slot)
        return "two elements have the same name, or the recorded hash of one is wrong";
    if (index_code(v->index, slot, &code, why) != 0)
        return why->message;
    struct records *kept = vset_array(v, ARRAY_KEPT);
    if (kept && !records_at(kept, slot, why))
        return why->message;
    return vset_expires_at(v, slot) < 0 ? "an element has a time before 1970" : NULL;
}

static int64_t check_elements(struct vset *v, void (*note)(void *, const char *), void *arg)
{
    int64_t findings = 0;
    struct buf name;
    struct table_walk w = {0};
    buf_init(&name);
    epoch_enter();
    for (uint32_t slot; (slot = table_next(&v->table, &w)) != INDEX_SLOT_NONE;) {
        struct err why = {0};
        const char *what = check_element(v, slot, &name, &why);
        if (what) {
            findings++;
            note(arg, what);
        }
    }
    epoch_exit();
    buf_deinit(&name);
    return findings;
}

static int64_t check_texts(struct vset *v, void (*note)(void *, const char *), void *arg)
{
    int64_t findings = 0;
    struct buf text;
    buf_init(&text);
    for (uint32_t slot = 0; slot < v->next_slot; slot++) {
        struct err why = {0};
        if (!elems_has_text(v, slot))
            continue;
        buf_clear(&text);
        if (texts_get(v, slot, &text, &why) != 0) {
            findings++;
            note(arg, why.message[0] ? why.message : "the text of an element is missing");
        }
    }
    buf_deinit(&text);
    return findings;
}

static int64_t check_counts(struct vset *v, void (*note)(void *, const char *), void *arg)
{
    int64_t findings = 0;
    uint32_t n_attributes = 0, n_expiring = 0;
    struct table_walk w = {0};
    epoch_enter();
    for (uint32_t slot; (slot = table_next(&v->table, &w)) != INDEX_SLOT_NONE;) {
        n_attributes += elems_attributes(v, slot) != 0;
        n_expiring += vset_expires_at(v, slot) != 0;
    }
    epoch_exit();
    if (n_attributes != v->n_attributes || n_expiring != v->times.n_expiring) {
        findings++;
        note(arg, "the counts of attributes and times are wrong");
    }
    if (v->table.n != vset_count(v)) {
        findings++;
        note(arg, "the table of names does not hold every element");
    }
    if (!vset_healthy(v)) {
        findings++;
        note(arg, "the times of elements are damaged");
    }
    return findings;
}

int64_t vset_check(struct vset *v, void (*note)(void *, const char *), void *arg, struct err *e)
{
    pthread_mutex_lock(&v->owner);
    int64_t findings = check_elements(v, note, arg) + check_texts(v, note, arg);
    int64_t n = attributes_check(v, note, arg, e);
    findings += n > 0 ? n : 0;
    findings += check_counts(v, note, arg) + order_check(v, note, arg);
    pthread_mutex_unlock(&v->owner);
    return n < 0 ? n : findings;
}

/* --- digest --- */

static void append_kept(struct vset *v, uint32_t slot, struct buf *b, struct err *e, int *rc)
{
    struct records *kept = vset_array(v, ARRAY_KEPT);
    const char *p = kept ? records_at(kept, slot, e) : NULL;
    if (p)
        buf_append(b, p, kept->stride);
    else if (kept)
        *rc = KITH_ECORRUPT;
}

static void append_attributes(struct vset *v, uint32_t slot, struct buf *b, struct err *e,
                              int *rc)
{
    size_t n;
    const void *p = vset_attributes(v, slot, &n);
    buf_u8(b, p != NULL);
    if (p)
        buf_bytes(b, p, n);
    buf_u64(b, (uint64_t)vset_expires_at(v, slot));
    if (!vset_healthy(v))
        *rc = err_set(e, KITH_ECORRUPT, "attributes or times of vector set %u are damaged",
                      v->id);
}

/* Name, code, kept vector, attributes, time and text of an element. Inside a bracket. */
static int append_element(struct vset *v, uint32_t slot, struct buf *b, struct err *e)
{
    struct index_code code;
    if (!vset_name(v, slot, b, e))
        return KITH_ECORRUPT;
    int rc = index_code(v->index, slot, &code, e);
    if (rc != 0)
        return rc;
    buf_u32(b, (uint32_t)b->len);
    buf_append(b, code.bytes, code.n_bytes);
    buf_f32(b, code.norm);
    append_kept(v, slot, b, e, &rc);
    append_attributes(v, slot, b, e, &rc);
    if (rc == 0 && (rc = texts_get(v, slot, b, e)) == KITH_ENOTFOUND)
        rc = 0;
    return rc == 0 && b->failed ? err_set(e, KITH_ENOMEM, "out of memory") : rc;
}

int vset_digest(struct vset *v, int64_t now_ms, uint64_t out[2], struct err *e)
{
    struct buf b;
    struct table_walk w = {0};
    int rc = 0;
    buf_init(&b);
    out[0] = out[1] = 0;
    pthread_mutex_lock(&v->owner);
    epoch_enter();
    for (uint32_t slot; rc == 0 && (slot = table_next(&v->table, &w)) != INDEX_SLOT_NONE;) {
        int64_t expires = vset_expires_at(v, slot);
        if (expires && expires <= now_ms)
            continue;
        buf_clear(&b);
        rc = append_element(v, slot, &b, e);
        out[0] ^= hash64_seed(b.data, b.len, 1);
        out[1] ^= hash64_seed(b.data, b.len, 2);
    }
    epoch_exit();
    pthread_mutex_unlock(&v->owner);
    buf_deinit(&b);
    return rc;
}
