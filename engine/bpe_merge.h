#pragma once
/* Byte-pair merging: of the pairs of neighbours that the table knows the one of the lowest
 * rank, the leftmost of equals, becomes one token, until the table knows none.
 *
 *   R. Sennrich, B. Haddow and A. Birch, Neural Machine Translation of Rare Words with Subword
 *   Units (2016), section 3.2.
 *
 * It knows ids and ranks; what a token's text is, and where a word begins and ends, is for
 * engine/bpe.h and engine/spm.h. Time: n log n for n tokens. Thread: a filled table is
 * immutable; a scratch has one owner. Errors: KITH_ENOMEM. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { BPE_NO_RANK = UINT32_MAX };

struct bpe_pair {
    int32_t left, right;
    uint32_t rank; /* UINT32_MAX: the slot is empty */
    int32_t to;
};

struct bpe_table {
    struct bpe_pair *slots;
    uint32_t mask; /* slots - 1 */
    uint32_t n;
};

int bpe_table_init(struct bpe_table *t, struct err *e);
void bpe_table_deinit(struct bpe_table *t);
/* The first of two equal pairs keeps the place. rank < UINT32_MAX. */
int bpe_table_add(struct bpe_table *t, int32_t left, int32_t right, uint32_t rank, int32_t to,
                  struct err *e);

/* Memory for long words, kept from one to the next. */
struct bpe_scratch {
    uint32_t *block;
    size_t capacity; /* in numbers */
};

void bpe_scratch_deinit(struct bpe_scratch *s);

/* Merges the n ids in place and returns how many are left in *n. */
int bpe_merge(const struct bpe_table *t, struct bpe_scratch *s, int32_t *ids, size_t *n,
              struct err *e);
