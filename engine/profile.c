#include "engine/profile.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/gguf.h"
#include "engine/model.h"

/* Models that are published without these words in their files. The first row that fits counts:
 * the architecture, and each of the words in the name, whatever their case. */
struct known {
    const char *arch;
    const char *words[3];
    const char *query, *document;
    const char *dims; /* "range": from 32 to the model's own */
};

#define PASSAGES "Represent this sentence for searching relevant passages: "

static const struct known known_models[] = {
    {"nomic-bert", {"v1.5"}, "search_query: ", "search_document: ", "64,128,256,512"},
    {"nomic-bert", {0}, "search_query: ", "search_document: ", ""},
    {"gemma-embedding",
     {0},
     "task: search result | query: ",
     "title: none | text: ",
     "128,256,512"},
    {"qwen3",
     {0},
     "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
     "Query:",
     "",
     "range"},
    {"modern-bert", {"modernbert-embed"}, "search_query: ", "search_document: ", "256"},
    {"bert",
     {"e5", "instruct"},
     "Instruct: Given a web search query, retrieve relevant passages "
     "that answer the query\nQuery: ",
     "",
     ""},
    {"bert", {"e5"}, "query: ", "passage: ", ""},
    {"bert", {"bge", "en", "v1.5"}, PASSAGES, "", ""},
    {"bert", {"mxbai", "embed"}, PASSAGES, "", "range"},
    {"bert", {"arctic-embed", "v2"}, "query: ", "", "256"},
    {"bert", {"arctic-embed", "v1.5"}, PASSAGES, "", "256"},
    {"bert", {"arctic-embed"}, PASSAGES, "", ""},
};

static const char qwen3_rerank[] =
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
    "and "
    "the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n"
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that "
    "answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n";

/* Whether `word` stands in the name as a word of its own: what is around it is no letter and no
 * digit, but that a word may go on in digits ("e5" is no word of "base5", but of "e5-base"). */
static bool has_word(const char *name, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = name; *at; at++) {
        size_t i = 0;
        while (i < n && tolower((unsigned char)at[i]) == word[i])
            i++;
        if (i == n && (at == name || !isalnum((unsigned char)at[-1])) &&
            !isalnum((unsigned char)at[n]))
            return true;
    }
    return false;
}

static const struct known *find_known(const char *arch, const char *name)
{
    for (size_t i = 0; i < sizeof known_models / sizeof *known_models; i++) {
        const struct known *k = &known_models[i];
        bool fits = strcmp(k->arch, arch) == 0;
        for (int w = 0; w < 3 && k->words[w] && fits; w++)
            fits = has_word(name, k->words[w]);
        if (fits)
            return k;
    }
    return NULL;
}

/* The key's text, or `otherwise` where there is no key; both NULL: none. */
static int load_text(const struct gguf *g, const char *key, const char *otherwise, char **out,
                     struct err *e)
{
    const char *s;
    size_t n;
    int rc = gguf_get_string(g, key, &s, &n, e);
    if (rc && rc != KITH_ENOTFOUND)
        return rc;
    if (rc == KITH_ENOTFOUND) {
        s = otherwise;
        n = s ? strlen(s) : 0;
    }
    if (!s)
        return 0;
    if (memchr(s, 0, n))
        return err_set(e, KITH_EFORMAT, "key '%s' has a byte of zero in its text", key);
    *out = mem_alloc(n + 1);
    if (!*out)
        return err_set(e, KITH_ENOMEM, "out of memory for '%s'", key);
    memcpy(*out, s, n);
    (*out)[n] = '\0';
    return 0;
}

static int load_dims(struct profile *p, const struct gguf *g, const struct known *k,
                     uint32_t dim, struct err *e)
{
    static const char key[] = "kith.matryoshka.dims";
    struct gguf_array a;
    int rc = gguf_get_array(g, key, &a, e);
    if (rc == KITH_ENOTFOUND) {
        if (k && strcmp(k->dims, "range") == 0 && dim > 32)
            snprintf(p->dims, sizeof p->dims, "32-%" PRIu32, dim);
        else if (k && strcmp(k->dims, "range") != 0)
            snprintf(p->dims, sizeof p->dims, "%s", k->dims);
        return 0;
    }
    size_t used = 0;
    int64_t v;
    while (!rc && a.left > 0) {
        if (!gguf_array_int(&a, &v) || v < 1 || v > dim || used + 12 > sizeof p->dims)
            return err_set(e, KITH_EFORMAT,
                           "key '%s' holds some numbers of 1 to %" PRIu32 ", the dimensions of "
                           "the model; this one does not",
                           key, dim);
        if (v < dim)
            used += (size_t)snprintf(p->dims + used, sizeof p->dims - used, "%s%" PRId64,
                                     used ? "," : "", v);
    }
    return rc;
}

int profile_load(struct profile *p, const struct gguf *g, const struct model *m,
                 const char *name, struct err *e)
{
    *p = (struct profile){0};
    bool ranks = m->pooling == POOLING_RANK;
    const struct known *k = ranks ? NULL : find_known(m->arch, name);
    int rc;
    if ((rc = load_text(g, "kith.prompt.query", k ? k->query : "", &p->query_prompt, e)) ||
        (rc = load_text(g, "kith.prompt.document", k ? k->document : "", &p->document_prompt,
                        e)) ||
        (rc = load_dims(p, g, k, model_dim(m), e)))
        goto fail;
    if (ranks && (rc = load_text(g, "tokenizer.chat_template.rerank",
                                 m->causal ? qwen3_rerank : NULL, &p->rerank_template, e)))
        goto fail;
    if (p->rerank_template &&
        (!strstr(p->rerank_template, "{query}") || !strstr(p->rerank_template, "{document}"))) {
        rc = err_set(e, KITH_EFORMAT,
                     "key 'tokenizer.chat_template.rerank' must have {query} and {document}");
        goto fail;
    }
    return 0;
fail:
    profile_deinit(p);
    return rc;
}

void profile_deinit(struct profile *p)
{
    mem_free(p->query_prompt);
    mem_free(p->document_prompt);
    mem_free(p->rerank_template);
    *p = (struct profile){0};
}
