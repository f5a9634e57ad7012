#include "server/engine_model.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The keys that are text, with their place in the struct. */
static const struct text_key {
    const char *key;
    size_t offset, size;
} text_keys[] = {
#define TEXT(key, member)                                                                      \
    {                                                                                          \
        key, offsetof(struct engine_model, member), sizeof((struct engine_model *)0)->member   \
    }
    TEXT("name", name),
    TEXT("hash", hash),
    TEXT("pooling", pooling),
    TEXT("arch", arch),
    TEXT("type", type),
    TEXT("precision", precision),
    TEXT("kernels", kernels),
    TEXT("dims", dims),
    TEXT("query-prompt", prompt_query),
    TEXT("document-prompt", prompt_document),
#undef TEXT
};
enum { N_TEXT_KEYS = sizeof text_keys / sizeof *text_keys };

/* A task that this server does not know is one it will not ask for. */
static unsigned read_tasks(struct slice list)
{
    unsigned tasks = 0;
    struct slice part;
    while (slice_cut(&list, ',', &part)) {
        if (slice_is(part, "embed"))
            tasks |= ENGINE_EMBED;
        else if (slice_is(part, "rerank"))
            tasks |= ENGINE_RERANK;
    }
    return tasks;
}

static void read_pair(struct engine_model *m, struct slice key, struct slice value)
{
    uint64_t number = 0;
    for (int i = 0; i < N_TEXT_KEYS; i++)
        if (slice_is(key, text_keys[i].key)) {
            snprintf((char *)m + text_keys[i].offset, text_keys[i].size, "%.*s",
                     (int)(value.n < text_keys[i].size ? value.n : text_keys[i].size - 1),
                     value.p);
            return;
        }
    if (slice_is(key, "tasks"))
        m->tasks = read_tasks(value);
    else if (!slice_count(value, &number))
        return;
    else if (slice_is(key, "bytes"))
        m->bytes = number;
    else if (number > UINT32_MAX)
        return;
    else if (slice_is(key, "dim"))
        m->dim = (uint32_t)number;
    else if (slice_is(key, "context"))
        m->context = (uint32_t)number;
    else if (slice_is(key, "threads"))
        m->threads = (uint32_t)number;
}

bool engine_model_read(struct engine_model *m, const struct slice *words, int n)
{
    *m = (struct engine_model){.tasks = ENGINE_EMBED};
    for (int i = 0; i + 1 < n; i += 2)
        read_pair(m, words[i], words[i + 1]);
    return m->hash[0] != '\0' && m->tasks != 0 && (m->dim > 0 || !(m->tasks & ENGINE_EMBED));
}

void engine_model_write(const struct engine_model *m,
                        void (*fn)(void *arg, const char *key, const char *value), void *arg)
{
    char number[24];
    for (int i = 0; i < N_TEXT_KEYS; i++) {
        const char *text = (const char *)m + text_keys[i].offset;
        if (*text)
            fn(arg, text_keys[i].key, text);
    }
    fn(arg, "tasks", engine_tasks_word(m->tasks));
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"dim", m->dim}, {"context", m->context}, {"threads", m->threads}, {"bytes", m->bytes}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(number, sizeof number, "%" PRIu64, numbers[i].value);
        fn(arg, numbers[i].key, number);
    }
}

const char *engine_tasks_word(unsigned tasks)
{
    static const char *const words[] = {"", "embed", "rerank", "embed,rerank"};
    return words[tasks & (ENGINE_EMBED | ENGINE_RERANK)];
}

bool engine_model_allows_dim(const struct engine_model *m, uint32_t n)
{
    struct slice list = slice_of(m->dims), part;
    if (n == m->dim)
        return n > 0;
    if (n == 0 || n > m->dim)
        return false;
    while (slice_cut(&list, ',', &part)) {
        const char *dash = memchr(part.p, '-', part.n);
        struct slice low = {.p = part.p, .n = dash ? (size_t)(dash - part.p) : part.n};
        struct slice high = low;
        if (dash)
            high = (struct slice){.p = dash + 1, .n = part.n - low.n - 1};
        uint64_t from, to;
        if (slice_count(low, &from) && slice_count(high, &to) && n >= from && n <= to)
            return true;
    }
    return false;
}

void engine_model_dims_text(const struct engine_model *m, char *out, size_t size)
{
    snprintf(out, size, "%s%s%" PRIu32, m->dims, m->dims[0] ? " or " : "", m->dim);
}

void engine_vector_cut(const float *vector, uint32_t n, float *out)
{
    double squares = 0;
    for (uint32_t i = 0; i < n; i++)
        squares += (double)vector[i] * (double)vector[i];
    double scale = squares > 0 ? 1 / sqrt(squares) : 1;
    for (uint32_t i = 0; i < n; i++)
        out[i] = (float)((double)vector[i] * scale);
}
