#pragma once
/* A model on another machine, or in another program, behind an HTTP interface: OpenAI's or
 * Ollama's (server/remote_api.h).
 *
 * A request is answered with all its vectors or with an error that names the address, the HTTP
 * status and what was expected, within timeout_ms without the endpoint having answered
 * anything; a request that waits behind others which are answered waits longer. Nothing of the
 * key is logged. The endpoint need not be up when this opens.
 *
 * Owns: a thread. Thread: see engine_backend.h; results come on that thread or the fallback's.
 */

#include "engine/embedder.h"
#include "server/engine_backend.h"
#include "server/remote_api.h"

struct remote_options {
    enum remote_style style;
    const char *url, *model;
    const char *key_file, *ca_file;             /* NULL: none; the system's */
    const char *query_prompt, *document_prompt; /* before such texts; NULL: nothing */
    uint32_t dim, context;                      /* context 0: not known */
    bool send_dimensions, insecure_key;
    int64_t timeout_ms;
    unsigned retries, batch_texts, parallel;
    uint64_t queue_bytes;             /* of texts that wait; past that: KITH_EBUSY */
    const char *fallback;             /* a model file, or NULL */
    struct embedder_options embedder; /* of the fallback */
};

void remote_defaults(struct remote_options *o);
int remote_backend_open(struct engine_backend *out, const struct remote_options *o,
                        struct err *e);
