#include "server/engine_options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

const char engine_options_help[] =
    "usage: kith-engine --model FILE.gguf [options]\n"
    "       kith-engine --remote openai|ollama --url URL --remote-model NAME --dim N "
    "[options]\n"
    "\n"
    "Turns texts into vectors for kith-server, which starts it and talks to it over a\n"
    "socket (protocol/engine_wire.md). These modes are for people:\n"
    "\n"
    "  --embed TEXT           prints the vector of TEXT, a number a word\n"
    "  --role query|document  puts the model's prompt for a query or a document before it\n"
    "  --rerank QUERY         prints the raw score of each document for QUERY, a line each\n"
    "  --document TEXT        a document of --rerank; may be given many times\n"
    "  --tokenize TEXT        prints TEXT's tokens, a line each: id, tab, piece\n"
    "  --tokenize-file FILE   takes each line of FILE ('-': standard input) as a text and\n"
    "                         prints its tokens' ids in a line\n"
    "\n"
    "  --fd N                 the socket's descriptor (default 3)\n"
    "\n"
    "a model of this machine:\n"
    "  --model FILE.gguf      the model; kith-convert makes one\n"
    "  --threads N            of the compute pool (default 0: one a processor)\n"
    "  --precision P          auto, f32, int8 or bf16 (default auto: int8 where weights\n"
    "                         are quantized, bf16 where they are BF16 and the processor has\n"
    "                         AVX512_BF16)\n"
    "  --packed-cache yes|no  keep packed weights in FILE.gguf.KERNELS-PRECISION.packed, so "
    "that\n"
    "                         the next start maps them (default yes)\n"
    "  --batch-tokens N       most tokens of one batch (default 2048)\n"
    "  --batch-wait-us N      longest wait for company after a shared batch (default 300)\n"
    "  --queue-tokens N       most tokens that may wait (default 1048576; of a remote model\n"
    "                         8 bytes count as one); also --max-queue-tokens\n"
    "\n"
    "a model behind HTTP:\n"
    "  --remote STYLE         openai (URL/v1/embeddings) or ollama (URL/api/embed)\n"
    "  --url URL              http:// or https://, of openai with or without /v1\n"
    "  --remote-model NAME    the model's name there\n"
    "  --dim N                the dimensions of its vectors\n"
    "  --send-dimensions      asks for vectors of --dim dimensions\n"
    "  --context N            the tokens it takes, where known (default 0: not known)\n"
    "  --query-prompt TEXT, --document-prompt TEXT\n"
    "                         put before queries and documents (default nothing)\n"
    "  --key-file FILE        has the key, in a line\n"
    "  --insecure-key         sends it over http:// to another machine too\n"
    "  --ca-file FILE         certificates to trust instead of the system's\n"
    "  --timeout-ms N         longest wait for an answer, retries included (default 10000)\n"
    "  --retries N            of an HTTP request (default 3)\n"
    "  --batch-texts N        most texts of an HTTP request (default 64)\n"
    "  --parallel N           most HTTP requests at a time (default 4)\n"
    "  --fallback FILE.gguf   a model of this machine that answers in its place, if it gives\n"
    "                         the same vectors; takes --threads, --precision and\n"
    "                         --packed-cache\n"
    "\n"
    "  --version, --help\n";

enum { BYTES_A_TOKEN = 8, PROMPT_MAX_BYTES = 2048, DIM_MAX = 65536 };

/* --- values --- */

static int parse_count(const char *name, const char *text, int64_t min, int64_t max, int64_t *v,
                       struct err *e)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno || end == text || *end || n < min || n > max)
        return err_set(e, KITH_EINVAL,
                       "%s takes a number from %" PRId64 " to %" PRId64 ", not '%s'", name, min,
                       max, text);
    *v = n;
    return 0;
}

static int parse_precision(const char *text, enum model_precision *precision, struct err *e)
{
    for (int i = MODEL_AUTO; i <= MODEL_BF16; i++)
        if (strcmp(text, model_precision_name((enum model_precision)i)) == 0) {
            *precision = (enum model_precision)i;
            return 0;
        }
    return err_set(e, KITH_EINVAL, "--precision takes auto, f32, int8 or bf16, not '%s'", text);
}

static int parse_yes_no(const char *name, const char *text, bool *yes, struct err *e)
{
    *yes = strcmp(text, "yes") == 0;
    return *yes || strcmp(text, "no") == 0
               ? 0
               : err_set(e, KITH_EINVAL, "%s takes yes or no, not '%s'", name, text);
}

static int parse_role(const char *text, enum backend_role *role, struct err *e)
{
    if (strcmp(text, "query") == 0)
        *role = BACKEND_QUERY;
    else if (strcmp(text, "document") == 0)
        *role = BACKEND_DOCUMENT;
    else
        return err_set(e, KITH_EINVAL, "--role takes query or document, not '%s'", text);
    return 0;
}

/* --- options --- */

/* Those of the modes for people; *known says whether it was one. */
static int parse_mode(struct engine_options *o, const char *name, const char *value,
                      bool *known, struct err *e)
{
    const struct {
        const char *name, **to;
    } modes[] = {{"--embed", &o->embed},
                 {"--rerank", &o->rerank},
                 {"--tokenize", &o->tokenize},
                 {"--tokenize-file", &o->tokenize_file}};
    *known = true;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (strcmp(name, modes[i].name) == 0) {
            *modes[i].to = value;
            return 0;
        }
    if (strcmp(name, "--role") == 0)
        return parse_role(value, &o->role, e);
    if (strcmp(name, "--document") == 0) {
        o->documents[o->n_documents++] = slice_of(value);
        return 0;
    }
    *known = false;
    return 0;
}

static int parse_local(struct engine_options *o, const char *name, const char *value,
                       bool *known, struct err *e)
{
    struct embedder_options *m = &o->embedder;
    int64_t n = 0;
    int rc = 0;
    *known = true;
    if (strcmp(name, "--model") == 0) {
        o->model = value;
    } else if (strcmp(name, "--precision") == 0) {
        rc = parse_precision(value, &m->precision, e);
    } else if (strcmp(name, "--packed-cache") == 0) {
        rc = parse_yes_no(name, value, &m->packed_cache, e);
    } else if (strcmp(name, "--threads") == 0) {
        rc = parse_count(name, value, 0, 1024, &n, e);
        m->n_threads = (unsigned)n;
    } else if (strcmp(name, "--batch-tokens") == 0) {
        rc = parse_count(name, value, 1, 1 << 24, &n, e);
        m->batch_tokens = (uint32_t)n;
    } else if (strcmp(name, "--batch-wait-us") == 0) {
        rc = parse_count(name, value, 0, 1000000, &n, e);
        m->batch_wait_us = n;
    } else if (strcmp(name, "--queue-tokens") == 0 || strcmp(name, "--max-queue-tokens") == 0) {
        rc = parse_count(name, value, 1, INT32_MAX, &n, e);
        m->max_queue_tokens = (uint64_t)n;
        o->remote.queue_bytes = (uint64_t)n * BYTES_A_TOKEN;
    } else {
        *known = false;
    }
    return rc;
}

static int parse_prompt(const char *name, const char *value, const char **to, struct err *e)
{
    *to = value;
    return strlen(value) <= PROMPT_MAX_BYTES
               ? 0
               : err_set(e, KITH_EINVAL, "%s takes at most %d bytes", name, PROMPT_MAX_BYTES);
}

/* What takes no value. */
static bool parse_flag(struct engine_options *o, const char *name)
{
    if (strcmp(name, "--insecure-key") == 0)
        o->remote.insecure_key = true;
    else if (strcmp(name, "--send-dimensions") == 0)
        o->remote.send_dimensions = true;
    else
        return false;
    o->any_remote = true;
    return true;
}

static int parse_remote(struct engine_options *o, const char *name, const char *value,
                        bool *known, struct err *e)
{
    struct remote_options *r = &o->remote;
    const struct {
        const char *name, **to;
    } words[] = {{"--url", &r->url},
                 {"--remote-model", &r->model},
                 {"--key-file", &r->key_file},
                 {"--ca-file", &r->ca_file},
                 {"--fallback", &r->fallback}};
    int64_t n = 0;
    int rc = 0;
    *known = true;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(name, words[i].name) == 0) {
            *words[i].to = value;
            return 0;
        }
    if (strcmp(name, "--remote") == 0) {
        o->is_remote = true;
        rc = remote_style_parse(value, &r->style, e);
    } else if (strcmp(name, "--query-prompt") == 0) {
        rc = parse_prompt(name, value, &r->query_prompt, e);
    } else if (strcmp(name, "--document-prompt") == 0) {
        rc = parse_prompt(name, value, &r->document_prompt, e);
    } else if (strcmp(name, "--dim") == 0) {
        rc = parse_count(name, value, 1, DIM_MAX, &n, e);
        r->dim = (uint32_t)n;
    } else if (strcmp(name, "--context") == 0) {
        rc = parse_count(name, value, 0, INT32_MAX, &n, e);
        r->context = (uint32_t)n;
    } else if (strcmp(name, "--timeout-ms") == 0) {
        rc = parse_count(name, value, 1, 3600000, &r->timeout_ms, e);
    } else if (strcmp(name, "--retries") == 0) {
        rc = parse_count(name, value, 0, 100, &n, e);
        r->retries = (unsigned)n;
    } else if (strcmp(name, "--batch-texts") == 0) {
        rc = parse_count(name, value, 1, 4096, &n, e);
        r->batch_texts = (unsigned)n;
    } else if (strcmp(name, "--parallel") == 0) {
        rc = parse_count(name, value, 1, 256, &n, e);
        r->parallel = (unsigned)n;
    } else {
        *known = false;
    }
    return rc;
}

static int parse_option(struct engine_options *o, const char *name, const char *value,
                        struct err *e)
{
    bool known;
    int rc = parse_mode(o, name, value, &known, e);
    if (!known)
        rc = parse_local(o, name, value, &known, e);
    if (!known && strcmp(name, "--fd") == 0) {
        int64_t n = 0;
        rc = parse_count(name, value, 0, 65535, &n, e);
        o->fd = (int)n;
        known = true;
    }
    if (!known) {
        rc = parse_remote(o, name, value, &known, e);
        o->any_remote |= known;
    }
    return known ? rc : err_set(e, KITH_EINVAL, "unknown option '%s'", name);
}

static int check(const struct engine_options *o, struct err *e)
{
    const int modes = !!o->embed + !!o->rerank + !!o->tokenize + !!o->tokenize_file;
    if (!o->model && !o->is_remote)
        return err_set(e, KITH_EINVAL, "--model or --remote is needed");
    if (o->model && o->any_remote)
        return err_set(e, KITH_EINVAL,
                       "--model is a model of this machine; it does not go with --remote and "
                       "the options of remote models");
    if (o->is_remote && (!o->remote.url || !o->remote.model || !o->remote.dim))
        return err_set(e, KITH_EINVAL, "--remote needs --url, --remote-model and --dim");
    if (o->is_remote && !*o->remote.model)
        return err_set(e, KITH_EINVAL, "--remote-model takes a name");
    if (o->is_remote && (o->tokenize || o->tokenize_file || o->rerank))
        return err_set(
            e, KITH_EINVAL,
            "a remote model takes --embed; its tokens and scores are not known here");
    if (modes > 1)
        return err_set(e, KITH_EINVAL,
                       "one of --embed, --rerank, --tokenize and --tokenize-file at a time");
    if (o->role != BACKEND_PLAIN && !o->embed)
        return err_set(e, KITH_EINVAL, "--role goes with --embed");
    if (!o->rerank != !o->n_documents)
        return err_set(e, KITH_EINVAL, "--rerank and --document go together");
    return 0;
}

int engine_options_parse(struct engine_options *o, int argc, char **argv, struct err *e)
{
    memset(o, 0, sizeof *o);
    o->fd = 3;
    embedder_defaults(&o->embedder);
    remote_defaults(&o->remote);
    o->documents = mem_calloc((size_t)argc, sizeof *o->documents);
    int rc = o->documents ? 0 : err_set(e, KITH_ENOMEM, "out of memory");
    for (int i = 1; i < argc && !rc; i++) {
        if (parse_flag(o, argv[i]))
            continue;
        rc = i + 1 == argc ? err_set(e, KITH_EINVAL, "%s takes a value", argv[i])
                           : parse_option(o, argv[i], argv[i + 1], e);
        i++;
    }
    o->remote.embedder = o->embedder;
    if (!rc)
        rc = check(o, e);
    if (rc)
        engine_options_deinit(o);
    return rc;
}

void engine_options_deinit(struct engine_options *o)
{
    mem_free(o->documents);
    o->documents = NULL;
}
