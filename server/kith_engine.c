/* kith-engine: the process that turns text into vectors. server/engine_service.h has the side
 * of it that kith-server talks to, server/engine_backend.h what is behind; here are its start
 * and the modes for people.
 *
 * The process ends with its server: at the end of the stream, and by a signal of the kernel
 * should the server die while this side is busy. */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/program.h"
#include "engine/kernels.h"
#include "engine/tokenizer.h"
#include "server/engine_options.h"
#include "server/engine_service.h"
#include "server/local_backend.h"

enum { EXIT_USAGE = 2, EXIT_NO_MODEL = 2 };

/* --- vectors and scores for people --- */

struct printed {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const char *between; /* two numbers */
    bool done;
    struct err e;
};

static void print_values(void *arg, const struct backend_result *result)
{
    struct printed *p = arg;
    const size_t n = result->code ? 0 : (size_t)result->n * result->dim;
    for (size_t i = 0; i < n; i++)
        printf("%s%.9g", i ? p->between : "", (double)result->values[i]);
    if (n)
        putchar('\n');
    pthread_mutex_lock(&p->lock);
    p->done = true;
    if (result->code)
        err_set(&p->e, result->code, "%s", result->message);
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static int compute_once(const struct engine_backend *b, const struct engine_options *o,
                        struct err *e)
{
    struct printed p = {.lock = PTHREAD_MUTEX_INITIALIZER,
                        .changed = PTHREAD_COND_INITIALIZER,
                        .between = o->rerank ? "\n" : " "};
    struct slice text = slice_of(o->embed ? o->embed : "");
    const struct backend_request request = {.texts = o->rerank ? o->documents : &text,
                                            .n = o->rerank ? o->n_documents : 1,
                                            .role = o->role,
                                            .done = print_values,
                                            .arg = &p};
    if (o->rerank)
        b->rerank(b->self, slice_of(o->rerank), &request);
    else
        b->embed(b->self, &request);
    pthread_mutex_lock(&p.lock);
    while (!p.done)
        pthread_cond_wait(&p.changed, &p.lock);
    pthread_mutex_unlock(&p.lock);
    *e = p.e;
    return p.e.code;
}

/* --- tokens for people --- */

/* The ids of a text in their frame, in memory that the caller frees. */
static int encode_framed(const struct tokenizer *t, const char *text, size_t n_bytes,
                         int32_t **ids, size_t *n_ids, struct err *e)
{
    const struct tokenizer_frame *frame = tokenizer_frame(t);
    size_t n = 0;
    *ids = NULL;
    int rc = tokenizer_encode(t, text, n_bytes, NULL, 0, &n, e);
    if (rc)
        return rc;
    *n_ids = frame->n_before + n + frame->n_after;
    *ids = mem_alloc_n(*n_ids, sizeof **ids);
    if (!*ids)
        return err_set(e, KITH_ENOMEM, "out of memory for %zu tokens", n);
    memcpy(*ids, frame->before, frame->n_before * sizeof **ids);
    rc = tokenizer_encode(t, text, n_bytes, *ids + frame->n_before, n, &n, e);
    memcpy(*ids + frame->n_before + n, frame->after, frame->n_after * sizeof **ids);
    return rc;
}

static int tokenize_once(struct embedder *m, const char *text, struct err *e)
{
    const struct tokenizer *t = embedder_tokenizer(m);
    size_t n = 0, n_text;
    int32_t *ids;
    int rc = encode_framed(t, text, strlen(text), &ids, &n, e);
    for (size_t i = 0; i < n && !rc; i++) {
        const char *piece = tokenizer_token(t, ids[i], &n_text);
        printf("%d\t%.*s\n", ids[i], (int)n_text, piece);
    }
    mem_free(ids);
    return rc;
}

/* A line that cannot be tokenized gives an empty one, and is named on standard error. */
static int tokenize_lines(struct embedder *m, FILE *from, struct err *e)
{
    char *line = NULL;
    size_t capacity = 0, n_lines = 0, n_refused = 0;
    for (ssize_t length; (length = getline(&line, &capacity, from)) >= 0;) {
        size_t n = 0, bytes = (size_t)length;
        int32_t *ids;
        struct err why = {0};
        n_lines++;
        if (bytes > 0 && line[bytes - 1] == '\n')
            bytes--;
        if (encode_framed(embedder_tokenizer(m), line, bytes, &ids, &n, &why)) {
            fprintf(stderr, "kith-engine: line %zu: %s\n", n_lines, why.message);
            n_refused++;
            n = 0;
        }
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i ? " " : "", ids[i]);
        putchar('\n');
        mem_free(ids);
    }
    free(line);
    return n_refused == 0
               ? 0
               : err_set(e, KITH_EINVAL, "%zu of %zu lines have no tokens", n_refused, n_lines);
}

static int tokenize_file(struct embedder *m, const char *path, struct err *e)
{
    FILE *from = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (!from)
        return err_set_errno(e, errno, "cannot read %s", path);
    int rc = tokenize_lines(m, from, e);
    if (!rc && ferror(from))
        rc = err_set(e, KITH_EIO, "cannot read %s to its end", path);
    if (from != stdin)
        fclose(from);
    return rc;
}

/* --- the program --- */

static int open_backend(struct engine_backend *b, const struct engine_options *o, struct err *e)
{
    if (o->is_remote)
        return remote_backend_open(b, &o->remote, e);
    return local_backend_open(b, o->model, &o->embedder, e);
}

static bool is_socket(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

static int serve(const struct engine_options *o)
{
    /* The parent may have died before the request to be told; its socket then ends at once. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file of packed weights may be larger than is allowed */
    if (!is_socket(o->fd)) {
        fprintf(stderr,
                "kith-engine: descriptor %d is no socket; kith-server starts this program, "
                "--help says what else it does\n",
                o->fd);
        return EXIT_USAGE;
    }
    struct engine_backend backend;
    struct err e = {0};
    if (open_backend(&backend, o, &e)) {
        engine_service_fail(o->fd, e.message);
        return EXIT_NO_MODEL;
    }
    return engine_service_run(o->fd, &backend);
}

static int run_once(const struct engine_options *o)
{
    struct engine_backend b;
    struct err e = {0};
    signal(SIGXFSZ, SIG_IGN);
    log_set_level(LOG_WARNING); /* who asks for a vector wants to read no more */
    if (open_backend(&b, o, &e)) {
        fprintf(stderr, "kith-engine: %s\n", e.message);
        return EXIT_NO_MODEL;
    }
    int rc = o->tokenize_file ? tokenize_file(local_backend_embedder(&b), o->tokenize_file, &e)
             : o->tokenize    ? tokenize_once(local_backend_embedder(&b), o->tokenize, &e)
                              : compute_once(&b, o, &e);
    b.close(b.self);
    if (rc)
        fprintf(stderr, "kith-engine: %s\n", e.message);
    return rc ? 1 : 0;
}

/* While there are no threads, since it may fork. A wrong KITH_KERNELS is told by who loads a
 * model with it. */
static void choose_kernels(void)
{
    const struct engine_kernels *kernels;
    engine_kernels(&kernels, NULL);
    if (*engine_kernels_refused())
        log_warning("%s; computing without it", engine_kernels_refused());
}

int main(int argc, char **argv)
{
    if (program_answers(argc, argv, "kith-engine", engine_options_help))
        return 0;
    struct engine_options o;
    struct err e = {0};
    if (engine_options_parse(&o, argc, argv, &e)) {
        fprintf(stderr, "kith-engine: %s (see --help)\n", e.message);
        if (is_socket(o.fd)) /* whoever started it with the options asks there */
            engine_service_fail(o.fd, e.message);
        return EXIT_USAGE;
    }
    log_open(NULL, "engine");
    choose_kernels();
    bool people = o.embed || o.rerank || o.tokenize || o.tokenize_file;
    int status = people ? run_once(&o) : serve(&o);
    engine_options_deinit(&o);
    return status;
}
