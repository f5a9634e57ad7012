#pragma once
/* Reads tests/golden/embeddings.jsonl and .f16 (tools/golden_embeddings.py writes them): 300
 * texts with the token ids and the vectors that sentence-transformers gives. Tests run from the
 * root of the repository. */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/half.h"

enum { GOLDEN_MAX_TEXTS = 512, GOLDEN_DIM = 384, GOLDEN_MAX_IDS = 512 };

struct golden_text {
    char *text;
    size_t n_bytes;
    int32_t ids[GOLDEN_MAX_IDS];
    uint32_t n_ids;
    float vector[GOLDEN_DIM];
};

struct golden {
    struct golden_text *texts;
    uint32_t n;
};

static inline uint32_t golden_hex4(const char *p)
{
    char digits[5] = {p[0], p[1], p[2], p[3], 0};
    return (uint32_t)strtoul(digits, NULL, 16);
}

/* The JSON string after the quote at p, as UTF-8; returns what follows its closing quote. */
static inline const char *golden_string(const char *p, struct buf *out)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    while (*p != '"') {
        if (*p != '\\') {
            buf_append(out, p++, 1);
            continue;
        }
        p++;
        if (*p != 'u') {
            buf_append(out, values + (strchr(names, *p++) - names), 1);
            continue;
        }
        uint32_t c = golden_hex4(p + 1);
        p += 5;
        if (c >= 0xd800 && c < 0xdc00) {
            c = 0x10000 + ((c - 0xd800) << 10) + (golden_hex4(p + 2) - 0xdc00);
            p += 6;
        }
        char utf8[4];
        buf_append(out, utf8, utf8_encode(c, utf8));
    }
    return p + 1;
}

static inline bool golden_line(const char *line, struct golden_text *t)
{
    struct buf text;
    buf_init(&text);
    const char *p = strstr(line, "{\"text\": \"");
    if (!p)
        return false;
    p = golden_string(p + 10, &text);
    t->n_bytes = text.len;
    t->text = text.data;
    p = strchr(p, '[');
    while (p && *p != ']' && t->n_ids < GOLDEN_MAX_IDS) {
        char *end;
        t->ids[t->n_ids++] = (int32_t)strtol(p + 1, &end, 10);
        p = end;
    }
    return p && *p == ']';
}

static inline void golden_close(struct golden *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        mem_free(g->texts[i].text);
    mem_free(g->texts);
}

/* False when the files are missing or not what they should be. */
static inline bool golden_open(struct golden *g)
{
    struct buf lines, vectors;
    buf_init(&lines);
    buf_init(&vectors);
    g->n = 0;
    g->texts = mem_calloc(GOLDEN_MAX_TEXTS, sizeof *g->texts);
    bool good = g->texts &&
                !file_read_whole("tests/golden/embeddings.jsonl", 1u << 24, &lines, NULL) &&
                !file_read_whole("tests/golden/embeddings.f16", 1u << 24, &vectors, NULL);
    buf_u8(&lines, 0);
    char *rest = lines.data;
    if (good)
        strsep(&rest, "\n"); /* about the recording */
    for (char *line; good && (line = strsep(&rest, "\n")) && *line && g->n < GOLDEN_MAX_TEXTS;)
        good = golden_line(line, &g->texts[g->n++]);
    good = good && vectors.len == (size_t)g->n * GOLDEN_DIM * 2;
    for (uint32_t i = 0; good && i < g->n; i++)
        for (size_t d = 0; d < GOLDEN_DIM; d++)
            g->texts[i].vector[d] =
                half_to_f32(load_u16(vectors.data + (i * (size_t)GOLDEN_DIM + d) * 2));
    buf_deinit(&lines);
    buf_deinit(&vectors);
    return good;
}
