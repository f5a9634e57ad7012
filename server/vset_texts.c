/* The texts of a set that are not in the store yet: kept or forgotten since the last
 * checkpoint.
 *
 * A reader looks here first, then among those the checkpoint under way is writing, then in the
 * store. `blob` NULL means forgotten. Two spare entries are reserved before a change begins, so
 * that the change itself cannot fail. */
#include "base/hash.h"
#include "base/mem.h"
#include "server/blob.h"
#include "server/vset_parts.h"

struct text_entry {
    struct dict_node node; /* first */
    uint32_t slot;
    struct blob *blob;
};

enum { ENTRY_COST = 64 };

static bool same_slot(const struct dict_node *n, const void *key)
{
    return ((const struct text_entry *)n)->slot == *(const uint32_t *)key;
}

static struct text_entry *find(const struct texts *t, uint32_t slot)
{
    return (struct text_entry *)dict_find(&t->by_slot, hash_mix(slot), same_slot, &slot);
}

void texts_init(struct texts *t)
{
    dict_init(&t->by_slot);
    t->bytes = 0;
}

static void free_entry(void *arg, struct dict_node *n)
{
    (void)arg;
    struct text_entry *entry = (struct text_entry *)n;
    blob_unref(entry->blob);
    mem_free(entry);
}

void texts_deinit(struct texts *t)
{
    dict_each(&t->by_slot, free_entry, NULL);
    dict_deinit(&t->by_slot);
    t->bytes = 0;
}

int texts_reserve(struct vset *v, struct err *e)
{
    while (v->n_spare_texts < 2) {
        struct text_entry *entry = mem_alloc(sizeof *entry);
        if (!entry)
            return err_set(e, KITH_ENOMEM, "out of memory for a text");
        *entry = (struct text_entry){0};
        v->spare_texts[v->n_spare_texts++] = entry;
    }
    /* The first insert into an empty table allocates; later growth may fail harmlessly. */
    if (!v->texts.by_slot.table[0]) {
        struct text_entry *probe = v->spare_texts[0];
        if (dict_insert(&v->texts.by_slot, &probe->node) != 0)
            return err_set(e, KITH_ENOMEM, "out of memory for a text");
        dict_remove(&v->texts.by_slot, &probe->node);
    }
    return 0;
}

static void set_entry(struct vset *v, uint32_t slot, struct blob *blob)
{
    struct text_entry *entry = find(&v->texts, slot);
    if (entry) {
        v->texts.bytes -= entry->blob ? entry->blob->n : 0;
        blob_unref(entry->blob);
    } else {
        entry = v->spare_texts[--v->n_spare_texts];
        entry->slot = slot;
        entry->node.hash = hash_mix(slot);
        (void)dict_insert(&v->texts.by_slot, &entry->node);
        v->texts.bytes += ENTRY_COST;
    }
    entry->blob = blob;
    v->texts.bytes += blob ? blob->n : 0;
}

void texts_keep(struct vset *v, uint32_t slot, struct blob *text)
{
    set_entry(v, slot, text);
}

void texts_forget(struct vset *v, uint32_t slot)
{
    set_entry(v, slot, NULL);
}

int texts_get(struct vset *v, uint32_t slot, struct buf *out, struct err *e)
{
    struct text_entry *entry = find(&v->texts, slot);
    if (!entry)
        entry = find(&v->texts_frozen, slot);
    if (!entry)
        return store_get(v->options.store, STORE_BLOBS, v->id, slot, out, e);
    if (!entry->blob)
        return KITH_ENOTFOUND;
    buf_append(out, entry->blob->data, entry->blob->n);
    return out->failed ? err_set(e, KITH_ENOMEM, "out of memory for a text") : 0;
}

struct writing {
    struct vset *v;
    struct store_write *w;
    int rc;
    struct err *e;
};

static void write_entry(void *arg, struct dict_node *n)
{
    struct writing *x = arg;
    const struct text_entry *entry = (const struct text_entry *)n;
    if (x->rc != 0)
        return;
    x->rc = entry->blob ? store_put(x->w, STORE_BLOBS, x->v->id, entry->slot, entry->blob->data,
                                    entry->blob->n, x->e)
                        : store_delete(x->w, STORE_BLOBS, x->v->id, entry->slot, x->e);
}

int texts_write(struct vset *v, struct store_write *w, struct err *e)
{
    /* The frozen table is not changed by anyone until settle. */
    struct writing x = {v, w, 0, e};
    dict_each(&v->texts_frozen.by_slot, write_entry, &x);
    return x.rc;
}

static void merge_entry(void *arg, struct dict_node *n)
{
    struct vset *v = arg;
    struct text_entry *entry = (struct text_entry *)n;
    if (find(&v->texts, entry->slot)) {
        free_entry(NULL, n); /* forgotten or kept anew meanwhile */
        return;
    }
    v->texts.bytes += ENTRY_COST + (entry->blob ? entry->blob->n : 0);
    (void)dict_insert(&v->texts.by_slot, n);
}

void texts_merge_back(struct vset *v)
{
    if (dict_count(&v->texts.by_slot) == 0) {
        struct texts swap = v->texts;
        v->texts = v->texts_frozen;
        v->texts_frozen = swap;
        return;
    }
    dict_each(&v->texts_frozen.by_slot, merge_entry, v);
    mem_free(v->texts_frozen.by_slot.table[0]);
    mem_free(v->texts_frozen.by_slot.table[1]);
    texts_init(&v->texts_frozen);
}
