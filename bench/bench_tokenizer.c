/* Tokenizers alone: tokens and bytes a second of one core (the time it worked, so that others
 * on the machine count little) over the lines of a text file, for each model file that is
 * named. With --ids, what tools/golden_bpe.py holds against other programs: the ids of
 * each text of a file whose texts end with NUL, a line each. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/mem.h"
#include "engine/gguf.h"
#include "engine/tokenizer.h"

enum { TEXT_MAX_BYTES = 1 << 30, SECONDS = 2, ROUNDS = 5 };

struct work {
    struct buf text;
    int32_t *ids; /* room for the tokens of the longest text */
    size_t room;
};

static int64_t core_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int encode(const struct tokenizer *t, struct work *w, const char *s, size_t n,
                  size_t *n_ids, struct err *e)
{
    int rc = tokenizer_encode(t, s, n, w->ids, w->room, n_ids, e);
    if (rc || *n_ids <= w->room)
        return rc;
    int32_t *ids = mem_realloc_n(w->ids, *n_ids, sizeof *ids);
    if (!ids)
        return err_set(e, KITH_ENOMEM, "out of memory for %zu tokens", *n_ids);
    w->ids = ids;
    w->room = *n_ids;
    return tokenizer_encode(t, s, n, w->ids, w->room, n_ids, e);
}

/* One walk over the texts that end with `end`; prints their ids where asked to. */
static int walk(const struct tokenizer *t, struct work *w, char end, bool print,
                size_t *n_tokens, struct err *e)
{
    *n_tokens = 0;
    for (size_t at = 0; at < w->text.len;) {
        const char *s = w->text.data + at, *stop = memchr(s, end, w->text.len - at);
        size_t n_ids, n = stop ? (size_t)(stop - s) : w->text.len - at;
        int rc = encode(t, w, s, n, &n_ids, e);
        if (rc)
            return err_wrap(e, "the text at byte %zu", at), rc;
        for (size_t i = 0; print && i < n_ids; i++)
            printf("%s%d", i ? " " : "", w->ids[i]);
        if (print)
            putchar('\n');
        *n_tokens += n_ids;
        at += n + 1;
    }
    return 0;
}

static int measure(const struct tokenizer *t, struct work *w, const char *name, double load_ms,
                   struct err *e)
{
    double best = 0;
    size_t n_tokens = 0;
    for (int round = 0; round < ROUNDS; round++) {
        int64_t start = core_ns(), now;
        unsigned walks = 0;
        do {
            int rc = walk(t, w, '\n', false, &n_tokens, e);
            if (rc)
                return rc;
            walks++;
            now = core_ns();
        } while (now - start < SECONDS * 1000000000LL / ROUNDS);
        double speed = walks / ((double)(now - start) * 1e-9);
        best = speed > best ? speed : best;
    }
    printf("%-36s %-6s %8.0f %10zu %12.0f %8.1f\n", name, tokenizer_model(t), load_ms, n_tokens,
           best * (double)n_tokens, best * (double)w->text.len * 1e-6);
    return 0;
}

static int run(const char *model, struct work *w, bool ids, struct err *e)
{
    struct gguf *g;
    struct tokenizer *t;
    size_t n_tokens;
    int rc = gguf_open(&g, model, e);
    if (rc)
        return rc;
    int64_t start = core_ns();
    rc = tokenizer_new(&t, g, e);
    gguf_close(g);
    if (rc)
        return err_wrap(e, "%s", model), rc;
    double load_ms = (double)(core_ns() - start) * 1e-6;
    const char *name = strrchr(model, '/');
    rc = ids ? walk(t, w, '\0', true, &n_tokens, e)
             : measure(t, w, name ? name + 1 : model, load_ms, e);
    tokenizer_free(t);
    return rc;
}

int main(int argc, char **argv)
{
    bool ids = argc == 4 && strcmp(argv[1], "--ids") == 0;
    if (argc < 3 || (argv[1][0] == '-' && !ids)) {
        fputs("usage: bench-tokenizer TEXT MODEL.gguf...\n"
              "       bench-tokenizer --ids TEXTS MODEL.gguf\n",
              stderr);
        return 2;
    }
    struct work w = {0};
    struct err e;
    int first = ids ? 2 : 1;
    int rc = file_read_whole(argv[first], TEXT_MAX_BYTES, &w.text, &e);
    if (!rc && !ids)
        printf("%-36s %-6s %8s %10s %12s %8s\n", "model", "kind", "load ms", "tokens",
               "tokens/s", "MB/s");
    for (int i = first + 1; i < argc && !rc; i++)
        rc = run(argv[i], &w, ids, &e);
    if (rc)
        fprintf(stderr, "bench-tokenizer: %s\n", e.message);
    buf_deinit(&w.text);
    mem_free(w.ids);
    return rc ? 1 : 0;
}
