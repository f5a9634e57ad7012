#pragma once
/* Texts to the token sequences that a model computes: the model's words before a text
 * (engine/profile.h), the tokenizer's frame around it, two texts as one pair, and what happens
 * when that is longer than the context.
 *
 *   text   frame.before  prompt text               frame.after
 *   pair   pair.before   query  pair.between  document  pair.after
 *   pair   of a model with a template: the template, its control tokens as tokens, and all text
 *          between two of those cut as one, so that ids are those of the whole prompt
 *
 * A sequence that the context does not hold is refused, or, where the caller asked for it, cut:
 * the end of a text, of a pair the longer of the two first (with a template, the document). An
 * empty text is refused; one of nothing but spaces has the tokens of the frame. No text writes
 * a control token.
 *
 * Owns: nothing of the tokenizer and the profile, which must outlive it. Thread: immutable
 * after init; sequences belong to their caller. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct tokenizer;
struct profile;
struct framing_part;

enum embedder_role { EMBEDDER_PLAIN, EMBEDDER_QUERY, EMBEDDER_DOCUMENT };

struct framing {
    const struct tokenizer *tokenizer;
    const struct profile *profile;
    uint32_t n_ctx;
    struct framing_part *parts; /* of the template; NULL: none */
    uint32_t n_parts;
};

/* Errors: KITH_EFORMAT where the context holds no text, KITH_ENOMEM. */
int framing_init(struct framing *f, const struct tokenizer *t, const struct profile *p,
                 uint32_t n_ctx, struct err *e);
void framing_deinit(struct framing *f);
/* Whether pairs can be framed: a model that ranks must. */
bool framing_has_pairs(const struct framing *f);

/* The sequences of a request as they are made. */
struct sequences {
    int32_t *ids;
    size_t n_ids, capacity;
    uint32_t *offsets, *splits; /* n + 1 and n; splits: the tokens before those of type 1 */
    uint32_t n;
};

int sequences_init(struct sequences *q, uint32_t n_most, struct err *e);
void sequences_deinit(struct sequences *q);

/* Each appends one sequence; `number` is what errors call the text or the document. Errors:
 * KITH_EINVAL, KITH_ELIMIT, KITH_ENOMEM. */
int framing_add_text(const struct framing *f, enum embedder_role role, struct slice text,
                     uint32_t number, bool truncate, struct sequences *q, struct err *e);
int framing_add_pair(const struct framing *f, struct slice query, struct slice document,
                     uint32_t number, bool truncate, struct sequences *q, struct err *e);
