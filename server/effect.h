#pragma once
/* Effects: what happened, as bytes. The payload of a log record is one or more effects, and
 * that is all a restart or a replica needs: they hold no question, only the answer (a vector,
 * not a text to embed; an absolute time, not a time to live).
 *
 *   record  = version u8 (1), then effects
 *   effect  = op u8, db varint, key bytes, then by op:
 *     SET     value bytes, expire varint (ms since 1970, 0: never)
 *     APPEND  value bytes
 *     DEL
 *     EXPIRE  expire varint
 *     RENAME  to db varint, to key bytes
 *     FLUSH   (db 255: all databases; the key is empty)
 *     VADD    element bytes, made u8 [params], model 3 x bytes, text u8 [bytes],
 *             attributes u8 [bytes], expire varint, dim varint, dim x f32
 *     VREM    element bytes
 *     VCREATE params, model 3 x bytes
 *     VSETATTR element bytes, attributes bytes
 *     VSWITCH (the set's successor takes its place, see successor.h)
 *   params = kind u8, quant u8, metric u8, keep u8, declared u8, dim varint, m varint,
 *            ef varint, projection varint
 *   bytes = varint length, then the bytes
 *
 * A new version of the record adds ops or fields under a new version number; old ones stay
 * readable. effect_do is the one way to change data: it applies to memory and, when that went
 * well, encodes. */

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "server/vset.h"

enum effect_op {
    EFFECT_SET = 1,
    EFFECT_APPEND = 2,
    EFFECT_DEL = 3,
    EFFECT_EXPIRE = 4,
    EFFECT_RENAME = 5,
    EFFECT_FLUSH = 6,
    EFFECT_VADD = 7,
    EFFECT_VREM = 8,
    EFFECT_VCREATE = 9,
    EFFECT_VSETATTR = 10,
    EFFECT_VSWITCH = 11
};

enum {
    EFFECT_VERSION = 1,
    EFFECT_ALL_DBS = 255,
    EFFECT_OVERHEAD_BYTES = 512,
    EFFECT_ARG_BYTES = 32
};

struct effect {
    enum effect_op op;
    uint32_t db, to_db;
    struct slice key, value; /* value: of SET and APPEND; the element of V* */
    struct slice to_key;
    int64_t expire_ms; /* of keys, and of the element of VADD (0: never) */
    /* VADD: what to make the set with when there is none (else not looked at, and not encoded);
     * VCREATE. */
    const struct vset_params *params;
    uint32_t dim;
    const void *vector;             /* dim x f32, perhaps unaligned */
    const struct vset_model *model; /* NULL: none */
    const struct slice *text;       /* NULL: none */
    const struct slice *attributes; /* JSON; VADD: NULL leaves those there are; empty: none */
    /* What applying found out. */
    bool added, made;
};

void effect_encode(struct buf *to, const struct effect *f);
/* No effect takes more bytes than this. */
size_t effect_bytes(const struct effect *f);

/* Decodes the next effect of a record (after its version byte); false at the end or when
 * damaged (then r->failed). The strings point into the record; params, model, text and
 * attributes use the caller's storage. */
struct effect_storage {
    struct vset_params params;
    struct vset_model model;
    struct slice text, attributes;
};
bool effect_decode(struct reader *r, struct effect *f, struct effect_storage *storage);

struct shard;
/* Applies and encodes. On an error nothing changed and nothing was encoded. Shard's lock held.
 */
int effect_do(struct shard *s, struct effect *f, struct err *e);
