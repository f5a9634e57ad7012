/* sentence-transformers' part of the folder: modules.json, the modules' own config.json, and
 * config_sentence_transformers.json. What modules are there and in which order decides what
 * becomes of the tokens' vectors. */

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "tools/hf_parts.h"

static const struct {
    const char *legacy, *mode;
    enum hf_pooling pooling;
} poolings[] = {
    {"pooling_mode_mean_tokens", "mean", HF_POOLING_MEAN},
    {"pooling_mode_cls_token", "cls", HF_POOLING_CLS},
    {"pooling_mode_lasttoken", "lasttoken", HF_POOLING_LAST},
};
enum { N_POOLINGS = sizeof poolings / sizeof *poolings };

static int load_module(json_t **out, const char *dir, const char *sub, char *name,
                       struct err *e)
{
    if (snprintf(name, HF_PATH_BYTES, "%s/config.json", sub) >= HF_PATH_BYTES)
        return err_set(e, KITH_EINVAL, "modules.json: path too long");
    return hf_json_load(out, dir, name, e);
}

/* Which poolings a config asks for: `mode` by name, or a truth value for each. */
static unsigned asked_poolings(const json_t *config, enum hf_pooling *pooling)
{
    const json_t *mode = json_object_get(config, "pooling_mode");
    const char *text = json_string_value(mode);
    unsigned n = 0;
    if (mode) {
        for (size_t i = 0; i < N_POOLINGS && text; i++)
            if (strcmp(poolings[i].mode, text) == 0) {
                *pooling = poolings[i].pooling;
                n++;
            }
        return n;
    }
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)config, key, v)
    {
        if (!json_is_true(v) || strncmp(key, "pooling_mode_", 13) != 0)
            continue;
        n++;
        *pooling = HF_POOLING_UNKNOWN;
        for (size_t i = 0; i < N_POOLINGS; i++)
            if (strcmp(key, poolings[i].legacy) == 0)
                *pooling = poolings[i].pooling;
    }
    return n;
}

static int read_pooling(struct hf_model *m, const char *dir, const char *sub, struct err *e)
{
    char name[HF_PATH_BYTES];
    json_t *config;
    int rc = load_module(&config, dir, sub, name, e);
    if (rc)
        return rc;
    enum hf_pooling pooling = HF_POOLING_UNKNOWN;
    unsigned n = asked_poolings(config, &pooling);
    bool without_prompt = json_is_false(json_object_get(config, "include_prompt"));
    json_decref(config);
    if (n != 1 || pooling == HF_POOLING_UNKNOWN)
        return err_set(e, KITH_EUNSUPPORTED,
                       "%s: mean, CLS or last-token pooling can be converted, and one", name);
    if (without_prompt)
        return err_set(
            e, KITH_EUNSUPPORTED,
            "%s: 'include_prompt' is false; a prompt that is left out of the pooling "
            "cannot be converted",
            name);
    m->pooling = pooling;
    m->head = HF_HEAD_NONE;
    return 0;
}

static int read_dense(struct hf_model *m, const char *dir, const char *sub, struct err *e)
{
    char name[HF_PATH_BYTES];
    if (m->family != HF_GEMMA_EMBEDDING || m->n_dense == HF_DENSE_MAX || m->normalize ||
        m->pooling == HF_POOLING_UNKNOWN || strlen(sub) >= HF_MODULE_PATH_BYTES)
        return err_set(e, KITH_EUNSUPPORTED,
                       "modules.json: the Dense layer '%.64s' cannot be converted; two behind "
                       "the pooling of an EmbeddingGemma model can",
                       sub);
    json_t *config;
    int rc = load_module(&config, dir, sub, name, e);
    if (rc)
        return rc;
    struct hf_dense *d = &m->dense[m->n_dense++];
    snprintf(d->dir, sizeof d->dir, "%s", sub);
    const char *activation = hf_text(config, "activation_function");
    if ((rc = hf_need_count(config, "in_features", NULL, &d->in, e)) ||
        (rc = hf_need_count(config, "out_features", NULL, &d->out, e)))
        err_wrap(e, "%.128s", sub);
    else if (!json_is_false(json_object_get(config, "bias")) || !activation ||
             strcmp(activation, "torch.nn.modules.linear.Identity") != 0 ||
             hf_is_true(config, "use_residual"))
        rc =
            err_set(e, KITH_EUNSUPPORTED,
                    "%s: a Dense layer without bias, residual and activation (Identity) can be "
                    "converted",
                    name);
    json_decref(config);
    uint32_t before = m->n_dense == 1 ? m->n_embd : m->dense[m->n_dense - 2].out;
    if (!rc && d->in != before)
        rc = err_set(e, KITH_EFORMAT, "%s: 'in_features' is %u; %u go into it", name, d->in,
                     before);
    return rc;
}

/* The two tokens whose logits are compared. */
static int read_logit_score(struct hf_model *m, const char *dir, const char *sub, struct err *e)
{
    char name[HF_PATH_BYTES];
    json_t *config;
    int rc = load_module(&config, dir, sub, name, e);
    if (rc)
        return rc;
    json_int_t yes = -1, no = -1;
    const json_t *v = json_object_get(config, "true_token_id");
    if (json_is_integer(v))
        yes = json_integer_value(v);
    v = json_object_get(config, "false_token_id");
    if (json_is_integer(v))
        no = json_integer_value(v);
    json_decref(config);
    if (yes < 0 || no < 0 || yes >= m->n_vocab || no >= m->n_vocab)
        return err_set(
            e, KITH_EUNSUPPORTED,
            "%s: 'true_token_id' is %lld and 'false_token_id' %lld; two of %u tokens "
            "are needed",
            name, (long long)yes, (long long)no, m->n_vocab);
    m->yes = (int32_t)yes;
    m->no = (int32_t)no;
    m->pooling = HF_POOLING_RANK;
    return 0;
}

static int read_module(struct hf_model *m, const char *dir, const char *kind, const char *path,
                       struct err *e)
{
    if (strcmp(kind, "Pooling") == 0)
        return read_pooling(m, dir, path, e);
    if (strcmp(kind, "Dense") == 0)
        return read_dense(m, dir, path, e);
    if (strcmp(kind, "LogitScore") == 0)
        return read_logit_score(m, dir, path, e);
    if (strcmp(kind, "Normalize") == 0)
        m->normalize = true;
    else if (strcmp(kind, "Transformer") != 0)
        return err_set(e, KITH_EUNSUPPORTED, "modules.json: '%.64s' cannot be converted", kind);
    return 0;
}

static int read_list(struct hf_model *m, const char *dir, struct err *e)
{
    if (!hf_has_file(dir, "modules.json"))
        return 0;
    json_t *modules;
    int rc = hf_json_load(&modules, dir, "modules.json", e);
    if (rc)
        return rc;
    size_t i;
    json_t *v;
    json_array_foreach(modules, i, v)
    {
        const char *type = hf_text(v, "type"), *path = hf_text(v, "path");
        const char *last = type ? strrchr(type, '.') : NULL;
        last = last ? last + 1 : type;
        if (!last || !path)
            rc = err_set(e, KITH_EFORMAT, "modules.json: module %zu has no type or path", i);
        else
            rc = read_module(m, dir, last, path, e);
        if (rc)
            break;
    }
    json_decref(modules);
    return rc;
}

/* --- what the folder and the user say together --- */

static int choose_pooling(struct hf_model *m, const char *dir, enum hf_pooling asked,
                          struct err *e)
{
    if (m->pooling == HF_POOLING_UNKNOWN && m->head != HF_HEAD_NONE)
        m->pooling = HF_POOLING_RANK;
    if (asked != HF_POOLING_UNKNOWN && m->pooling != HF_POOLING_UNKNOWN && asked != m->pooling)
        return err_set(e, KITH_EINVAL,
                       "--pooling asks for another pooling than the files of %s say", dir);
    if (asked != HF_POOLING_UNKNOWN)
        m->pooling = asked;
    bool decoder = m->family == HF_QWEN3 || m->family == HF_GEMMA_EMBEDDING;
    if (decoder && m->pooling == HF_POOLING_UNKNOWN)
        return err_set(e, KITH_EINVAL,
                       "%s has no modules.json; --pooling last says that it is an embedding "
                       "model, --pooling rank a reranker",
                       dir);
    if (m->pooling != HF_POOLING_RANK)
        return 0;
    if (m->family == HF_QWEN3)
        m->head = HF_HEAD_YES_NO;
    if (m->head == HF_HEAD_NONE)
        return err_set(
            e, KITH_EUNSUPPORTED,
            "%s is no reranker: that is a model for the classification of sequences, "
            "or one of qwen3",
            dir);
    return 0;
}

/* Qwen3's rerankers answer "yes" or "no" to a question that has its own form, with these tokens
 * of dialogue in it. */
static int find_answers(struct hf_model *m, struct err *e)
{
    static const char *const needed[] = {"<|im_start|>", "<|im_end|>"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (hf_find_token(m, needed[i]) < 0)
            return err_set(e, KITH_EFORMAT, "the vocabulary has no '%s', as a reranker's must",
                           needed[i]);
    if (m->yes < 0)
        m->yes = hf_find_token(m, "yes");
    if (m->no < 0)
        m->no = hf_find_token(m, "no");
    if (m->yes < 0 || m->no < 0 || m->yes == m->no)
        return err_set(e, KITH_EFORMAT,
                       "the vocabulary has no token '%s', as a reranker's must",
                       m->yes < 0 ? "yes" : "no");
    return 0;
}

/* --- prompts --- */

/* The first of the names that is there and not empty. */
static int take_prompt(const json_t *prompts, const char *const names[], char **out,
                       struct err *e)
{
    for (size_t i = 0; names[i]; i++) {
        const json_t *v = json_object_get(prompts, names[i]);
        const char *text = json_string_value(v);
        if (v && !text)
            return err_set(e, KITH_EFORMAT,
                           "config_sentence_transformers.json: the prompt '%s' is no text",
                           names[i]);
        if (!text || !*text)
            continue;
        *out = mem_strdup(text);
        return *out ? 0 : err_set(e, KITH_ENOMEM, "out of memory for a prompt");
    }
    return 0;
}

static int read_prompts(struct hf_model *m, const char *dir, struct err *e)
{
    static const char file[] = "config_sentence_transformers.json";
    static const char *const query[] = {"query", NULL};
    static const char *const document[] = {"document", "passage", "corpus", NULL};
    if (!hf_has_file(dir, file))
        return 0;
    json_t *config;
    int rc = hf_json_load(&config, dir, file, e);
    if (rc)
        return rc;
    const json_t *prompts = json_object_get(config, "prompts");
    rc = take_prompt(prompts, query, &m->query_prompt, e);
    if (!rc)
        rc = take_prompt(prompts, document, &m->document_prompt, e);
    json_decref(config);
    return rc;
}

int hf_read_modules(struct hf_model *m, const char *dir, enum hf_pooling asked, struct err *e)
{
    int rc = read_list(m, dir, e);
    if (!rc && m->family == HF_GEMMA_EMBEDDING && m->n_dense > 0 &&
        m->dense[m->n_dense - 1].out != m->n_embd)
        rc =
            err_set(e, KITH_EUNSUPPORTED,
                    "modules.json: the last Dense layer gives %u features; only %u, as many as "
                    "the model has, can be converted",
                    m->dense[m->n_dense - 1].out, m->n_embd);
    if (!rc)
        rc = choose_pooling(m, dir, asked, e);
    if (!rc && m->head == HF_HEAD_YES_NO)
        rc = find_answers(m, e);
    return rc ? rc : read_prompts(m, dir, e);
}
