#pragma once
/* The bodies of two HTTP interfaces that turn texts into vectors, built and read.
 *
 *   openai   POST {url}/v1/embeddings   {"model", "input": [...], "encoding_format": "float"}
 *            {"data": [{"index": 0, "embedding": [...]}, ...], "usage": {"prompt_tokens": 9}}
 *   ollama   POST {url}/api/embed       {"model", "input": [...], "truncate": false}
 *            {"embeddings": [[...], ...], "prompt_eval_count": 9}
 *
 * Nothing of an answer is believed: an answer is n vectors of dim finite numbers, each scaled
 * to length 1, or an error that says what came and what was expected. It knows no sockets. This
 * is the door to jansson here. Thread: no shared state. */

#include <stdbool.h>

#include "base/bytes.h"
#include "base/error.h"

enum remote_style { REMOTE_OPENAI, REMOTE_OLLAMA };

struct remote_model {
    enum remote_style style;
    const char *name;
    uint32_t dim;
    bool send_dimensions; /* asks for vectors of dim numbers, of a model that can cut them */
    const char *secret;   /* never in a message; may be NULL */
};

const char *remote_style_name(enum remote_style style);
int remote_style_parse(const char *name, enum remote_style *style, struct err *e);

/* Appends the address to send to. An OpenAI URL may end in /v1, as its clients take it. */
void remote_api_address(enum remote_style style, const char *url, struct buf *to);
/* The identity of vectors from that model: the XXH3-128 of style NUL name NUL dim, in hex. */
int remote_api_hash(const struct remote_model *m, char out[33], struct err *e);

/* Appends the body for n texts, which must be UTF-8. */
int remote_api_request(const struct remote_model *m, const struct slice *texts, uint32_t n,
                       bool truncate, struct buf *to, struct err *e);
/* No honest answer of n vectors is longer. */
size_t remote_api_answer_limit(const struct remote_model *m, uint32_t n);
/* vectors: n x dim, row-major, in the order of the texts, whatever the order in the body;
 * without meaning on failure. n_tokens: what the body says, else 0. KITH_EPROTO, KITH_ENOMEM.
 */
int remote_api_answer(const struct remote_model *m, struct slice body, uint32_t n,
                      float *vectors, uint32_t *n_tokens, struct err *e);
/* What a body says of a failure, for people: printable ASCII, at most size - 1 bytes. */
void remote_api_complaint(const struct remote_model *m, struct slice body, char *out,
                          size_t size);
