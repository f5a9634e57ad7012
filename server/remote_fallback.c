#include "server/remote_fallback.h"

#include <stdatomic.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/local_backend.h"

/* Of several kinds, so that another model, another pooling and a missing prompt all show. */
static const char *const probe_texts[] = {
    "The ship left the harbour before the storm came in.",
    "How do I reset the password of my account?",
    "def add(a, b):\n    return a + b",
    "Der Zug nach M\xc3\xbcnchen f\xc3\xa4hrt um acht Uhr ab.",
    "7",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen; without it "
    "there would be neither food nor air for animals.",
};
enum { N_PROBES = sizeof probe_texts / sizeof *probe_texts };

struct remote_fallback {
    struct engine_backend local;
    uint32_t dim;
    struct slice probes[N_PROBES];
    atomic_int state; /* enum fallback_state */
    _Atomic uint64_t n_texts;
    float *remote; /* of the check under way */
};

int remote_fallback_open(struct remote_fallback **out, const char *path,
                         const struct embedder_options *options, uint32_t dim, struct err *e)
{
    struct remote_fallback *f = mem_calloc(1, sizeof *f);
    if (!f)
        return err_set(e, KITH_ENOMEM, "out of memory");
    f->dim = dim;
    for (uint32_t i = 0; i < N_PROBES; i++)
        f->probes[i] = slice_of(probe_texts[i]);
    int rc = local_backend_open(&f->local, path, options, e);
    if (rc) {
        err_wrap(e, "--fallback");
        goto fail;
    }
    const uint32_t has = embedder_info(local_backend_embedder(&f->local))->dim;
    if (has != dim) {
        rc = err_set(e, KITH_EINVAL, "--fallback %s has %u dimensions, --dim says %u", path,
                     has, dim);
        goto fail_local;
    }
    *out = f;
    return 0;
fail_local:
    f->local.close(f->local.self);
fail:
    mem_free(f);
    return rc;
}

void remote_fallback_close(struct remote_fallback *f)
{
    if (!f)
        return;
    f->local.close(f->local.self);
    mem_free(f->remote);
    mem_free(f);
}

enum fallback_state remote_fallback_state(const struct remote_fallback *f)
{
    return (enum fallback_state)atomic_load(&f->state);
}

const char *remote_fallback_state_name(const struct remote_fallback *f)
{
    static const char *const names[] = {"unchecked", "checking", "trusted", "refused"};
    return names[remote_fallback_state(f)];
}

uint64_t remote_fallback_texts(const struct remote_fallback *f)
{
    return atomic_load(&f->n_texts);
}

/* --- the check --- */

const struct slice *remote_fallback_begin_check(struct remote_fallback *f, uint32_t *n)
{
    if (remote_fallback_state(f) != FALLBACK_UNCHECKED)
        return NULL;
    atomic_store(&f->state, FALLBACK_CHECKING);
    *n = N_PROBES;
    return f->probes;
}

static void compare(void *arg, const struct backend_result *local)
{
    struct remote_fallback *f = arg;
    double worst = 1;
    if (local->code) {
        log_warning("the fallback cannot be compared with the remote model: %s",
                    local->message);
        atomic_store(&f->state, FALLBACK_UNCHECKED);
        return;
    }
    for (size_t i = 0; i < N_PROBES; i++) {
        double cosine = 0;
        for (size_t k = 0; k < f->dim; k++)
            cosine += (double)f->remote[i * f->dim + k] * (double)local->values[i * f->dim + k];
        worst = cosine < worst ? cosine : worst;
    }
    const bool same = worst >= REMOTE_FALLBACK_COSINE;
    if (same)
        log_notice("the fallback gives the remote model's vectors: least cosine of %d texts "
                   "%.4f; it answers when the remote model does not",
                   N_PROBES, worst);
    else
        log_error("the fallback is refused: least cosine of %d texts to the remote model's "
                  "vectors %.4f, at least %.2f is needed",
                  N_PROBES, worst, REMOTE_FALLBACK_COSINE);
    atomic_store(&f->state, same ? FALLBACK_TRUSTED : FALLBACK_REFUSED);
}

void remote_fallback_check(struct remote_fallback *f, const float *remote)
{
    const struct backend_request request = {
        .texts = f->probes, .n = N_PROBES, .done = compare, .arg = f};
    if (remote && !f->remote)
        f->remote = mem_alloc_n((size_t)N_PROBES * f->dim, sizeof *f->remote);
    if (!remote || !f->remote) {
        atomic_store(&f->state, FALLBACK_UNCHECKED);
        return;
    }
    memcpy(f->remote, remote, (size_t)N_PROBES * f->dim * sizeof *f->remote);
    f->local.embed(f->local.self, &request);
}

void remote_fallback_embed(struct remote_fallback *f, const struct backend_request *request)
{
    atomic_fetch_add(&f->n_texts, request->n);
    f->local.embed(f->local.self, request);
}
