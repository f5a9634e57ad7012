#include "tools/hf_model.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/mem.h"

enum { JSON_MAX_BYTES = 64 << 20, MAX_DIMENSION = 1 << 22, PATH_BYTES = 4096 };

static const struct hf_special specials[HF_N_SPECIALS] = {
    {"unk_token", "tokenizer.ggml.unknown_token_id", "[UNK]", -1},
    {"sep_token", "tokenizer.ggml.seperator_token_id", "[SEP]", -1},
    {"pad_token", "tokenizer.ggml.padding_token_id", "[PAD]", -1},
    {"cls_token", "tokenizer.ggml.cls_token_id", "[CLS]", -1},
    {"mask_token", "tokenizer.ggml.mask_token_id", "[MASK]", -1},
    {"bos_token", "tokenizer.ggml.bos_token_id", "", -1},
    {"eos_token", "tokenizer.ggml.eos_token_id", "", -1},
};

/* XLM-R's names, where tokenizer_config.json says nothing. */
static const char *const xlmr_specials[HF_N_SPECIALS] = {"<unk>",  "</s>", "<pad>", "<s>",
                                                         "<mask>", "<s>",  "</s>"};

static int path_in(char path[PATH_BYTES], const char *dir, const char *name, struct err *e)
{
    if (snprintf(path, PATH_BYTES, "%s/%s", dir, name) >= PATH_BYTES)
        return err_set(e, KITH_EINVAL, "path too long: %s/%s", dir, name);
    return 0;
}

static bool has_file(const char *dir, const char *name)
{
    char path[PATH_BYTES];
    return path_in(path, dir, name, NULL) == 0 && file_exists(path);
}

static int load_json(json_t **out, const char *dir, const char *name, struct err *e)
{
    char path[PATH_BYTES];
    int rc = path_in(path, dir, name, e);
    struct buf text;
    buf_init(&text);
    if (!rc)
        rc = file_read_whole(path, JSON_MAX_BYTES, &text, e);
    if (!rc) {
        json_error_t where;
        *out = json_loadb(text.data ? text.data : "", text.len, 0, &where);
        if (!*out)
            rc = err_set(e, KITH_EFORMAT, "%s, line %d: %s", path, where.line, where.text);
    }
    buf_deinit(&text);
    return rc;
}

/* --- config.json --- */

static int need_count(const json_t *config, const char *key, uint32_t *v, struct err *e)
{
    const json_t *j = json_object_get(config, key);
    if (!json_is_integer(j) || json_integer_value(j) < 1 ||
        json_integer_value(j) > MAX_DIMENSION)
        return err_set(e, KITH_EFORMAT, "config.json: '%s' must be a count from 1 to %d", key,
                       MAX_DIMENSION);
    *v = (uint32_t)json_integer_value(j);
    return 0;
}

/* Refuses a setting that is there and is not the one value that we compute. */
static int need_text(const json_t *config, const char *key, const char *only, struct err *e)
{
    const json_t *j = json_object_get(config, key);
    const char *s = json_string_value(j);
    if (j && (!s || strcmp(s, only) != 0))
        return err_set(e, KITH_EUNSUPPORTED, "config.json: '%s' is '%s'; '%s' can be converted",
                       key, s ? s : "(no text)", only);
    return 0;
}

/* Which of the two families it is, and what the second has of its own. */
static int read_family(struct hf_model *m, const json_t *config, struct err *e)
{
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (!type || strcmp(type, "xlm-roberta") != 0)
        return need_text(config, "model_type", "bert", e);
    m->tokenizer = HF_UNIGRAM;
    const json_t *pad = json_object_get(config, "pad_token_id");
    json_int_t id = pad ? json_integer_value(pad) : 1;
    if (id < 0 || id + 1 >= (json_int_t)m->n_ctx || (pad && !json_is_integer(pad)))
        return err_set(e, KITH_EFORMAT,
                       "config.json: 'pad_token_id' is %lld, with %u position embeddings",
                       (long long)id, m->n_ctx);
    m->unused_positions = (uint32_t)id + 1;
    m->n_ctx -= m->unused_positions;
    for (int i = 0; i < HF_N_SPECIALS; i++)
        snprintf(m->specials[i].text, sizeof m->specials[i].text, "%s", xlmr_specials[i]);
    return 0;
}

static int read_config(struct hf_model *m, const char *dir, struct err *e)
{
    json_t *config;
    int rc = load_json(&config, dir, "config.json", e);
    if (rc)
        return rc;
    if ((rc = need_text(config, "hidden_act", "gelu", e)) ||
        (rc = need_text(config, "position_embedding_type", "absolute", e)) ||
        (rc = need_count(config, "num_hidden_layers", &m->n_layers, e)) ||
        (rc = need_count(config, "hidden_size", &m->n_embd, e)) ||
        (rc = need_count(config, "num_attention_heads", &m->n_heads, e)) ||
        (rc = need_count(config, "intermediate_size", &m->n_ff, e)) ||
        (rc = need_count(config, "max_position_embeddings", &m->n_ctx, e)) ||
        (rc = need_count(config, "vocab_size", &m->n_vocab, e)) ||
        (rc = need_count(config, "type_vocab_size", &m->n_types, e)) ||
        (rc = read_family(m, config, e))) {
        json_decref(config);
        return rc;
    }
    const json_t *eps = json_object_get(config, "layer_norm_eps");
    m->norm_eps = (float)(json_is_number(eps) ? json_number_value(eps) : 1e-12);
    if (!(m->norm_eps > 0 && m->norm_eps < 1))
        rc = err_set(e, KITH_EFORMAT, "config.json: 'layer_norm_eps' is %g",
                     (double)m->norm_eps);
    else if (m->n_embd % m->n_heads)
        rc = err_set(e, KITH_EFORMAT, "config.json: %u features do not divide into %u heads",
                     m->n_embd, m->n_heads);
    json_decref(config);
    return rc;
}

/* --- the vocabulary --- */

static int put_token(struct hf_model *m, const char *text, size_t n, int64_t id, struct err *e)
{
    if (id < 0 || id >= (int64_t)m->n_vocab)
        return err_set(e, KITH_EFORMAT, "token '%.*s' has id %lld; config.json says %u tokens",
                       (int)(n > 64 ? 64 : n), text, (long long)id, m->n_vocab);
    if (m->tokens[id])
        return strncmp(m->tokens[id], text, n) == 0 && m->tokens[id][n] == '\0'
                   ? 0
                   : err_set(e, KITH_EFORMAT, "tokens '%s' and '%.*s' have the same id %lld",
                             m->tokens[id], (int)(n > 64 ? 64 : n), text, (long long)id);
    m->tokens[id] = mem_alloc(n + 1);
    if (!m->tokens[id])
        return err_set(e, KITH_ENOMEM, "out of memory for the vocabulary");
    memcpy(m->tokens[id], text, n);
    m->tokens[id][n] = '\0';
    return 0;
}

static bool is_type(const json_t *object, const char *type)
{
    const char *s = json_string_value(json_object_get(object, "type"));
    return s && strcmp(s, type) == 0;
}

/* A normalizer must be BERT's own; its settings go into the model. */
static int read_normalizer(struct hf_model *m, const json_t *normalizer, struct err *e)
{
    if (!is_type(normalizer, "BertNormalizer"))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the normalizer is no BertNormalizer");
    if (!json_is_true(json_object_get(normalizer, "clean_text")) ||
        !json_is_true(json_object_get(normalizer, "handle_chinese_chars")))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: clean_text and handle_chinese_chars must be true");
    m->lower = json_is_true(json_object_get(normalizer, "lowercase"));
    const json_t *strip = json_object_get(normalizer, "strip_accents");
    m->strip_accents = json_is_boolean(strip) ? json_is_true(strip) : m->lower;
    return 0;
}

static int read_wordpiece(struct hf_model *m, const json_t *model, struct err *e)
{
    const char *prefix = json_string_value(json_object_get(model, "continuing_subword_prefix"));
    const json_t *max_chars = json_object_get(model, "max_input_chars_per_word");
    if ((json_object_get(model, "type") && !is_type(model, "WordPiece")) || !prefix ||
        strcmp(prefix, "##") != 0 || (max_chars && json_integer_value(max_chars) != 100))
        return err_set(
            e, KITH_EUNSUPPORTED,
            "tokenizer.json: the model must be WordPiece with the prefix '##' and at "
            "most 100 characters a word");
    const json_t *vocab = json_object_get(model, "vocab");
    if (!json_is_object(vocab))
        return err_set(e, KITH_EFORMAT, "tokenizer.json: the model has no vocab");
    const char *text;
    json_t *id;
    json_object_foreach((json_t *)(uintptr_t)vocab, text, id)
    {
        int rc = put_token(m, text, strlen(text),
                           json_is_integer(id) ? json_integer_value(id) : -1, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int read_added_tokens(struct hf_model *m, const json_t *added, struct err *e)
{
    size_t i;
    json_t *v;
    json_array_foreach(added, i, v)
    {
        const char *text = json_string_value(json_object_get(v, "content"));
        const json_t *id = json_object_get(v, "id");
        if (!text || !json_is_integer(id))
            return err_set(e, KITH_EFORMAT, "tokenizer.json: added token %zu has no text or id",
                           i);
        int rc = put_token(m, text, strlen(text), json_integer_value(id), e);
        if (rc)
            return rc;
        if (json_is_true(json_object_get(v, "special")))
            m->control[json_integer_value(id)] = true;
    }
    return 0;
}

/* --- Unigram --- */

static int decode_base64(const char *text, unsigned char **out, size_t *n_out, struct err *e)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = strlen(text), at = 0;
    while (n > 0 && text[n - 1] == '=')
        n--;
    unsigned char *bytes = mem_alloc(n);
    if (!bytes)
        return err_set(e, KITH_ENOMEM, "out of memory for the charsmap");
    uint32_t bits = 0;
    for (size_t i = 0; i < n; i++) {
        const char *digit = strchr(digits, text[i]);
        if (!digit) {
            mem_free(bytes);
            return err_set(e, KITH_EFORMAT,
                           "tokenizer.json: precompiled_charsmap is not base64 at %zu", i);
        }
        bits = bits << 6 | (uint32_t)(digit - digits);
        if (i % 4 != 0)
            bytes[at++] = (unsigned char)(bits >> (6 - 2 * (i % 4)));
    }
    *out = bytes;
    *n_out = at;
    return 0;
}

/* One step of the normalizer, in the order in which they are spoken here: the charsmap first.
 */
static int read_unigram_step(struct hf_model *m, const json_t *step, struct err *e)
{
    const char *map = json_string_value(json_object_get(step, "precompiled_charsmap"));
    if (is_type(step, "Precompiled") && map && !m->charsmap && !m->merge_spaces)
        return decode_base64(map, &m->charsmap, &m->charsmap_bytes, e);
    const char *pattern =
        json_string_value(json_object_get(json_object_get(step, "pattern"), "Regex"));
    const char *content = json_string_value(json_object_get(step, "content"));
    if (is_type(step, "Replace") && pattern && strcmp(pattern, " {2,}") == 0 && content &&
        (strcmp(content, " ") == 0 || strcmp(content, "\xe2\x96\x81") == 0)) {
        m->merge_spaces = true;
        return 0;
    }
    if (is_type(step, "Strip") && json_is_true(json_object_get(step, "strip_right")) &&
        (m->charsmap || m->merge_spaces)) {
        m->outer_spaces = false;
        return 0;
    }
    const char *type = json_string_value(json_object_get(step, "type"));
    return err_set(e, KITH_EUNSUPPORTED,
                   "tokenizer.json: the normalizer '%s' at its place cannot be converted; "
                   "Precompiled, then Replace of ' {2,}' and Strip can",
                   type ? type : "(no type)");
}

static int read_unigram_normalizer(struct hf_model *m, const json_t *normalizer, struct err *e)
{
    m->outer_spaces = true;
    if (!normalizer || json_is_null(normalizer))
        return 0;
    if (!is_type(normalizer, "Sequence"))
        return read_unigram_step(m, normalizer, e);
    size_t i;
    json_t *v;
    json_array_foreach(json_object_get(normalizer, "normalizers"), i, v)
    {
        int rc = read_unigram_step(m, v, e);
        if (rc)
            return rc;
    }
    return 0;
}

/* Metaspace, alone or behind WhitespaceSplit. */
static int read_metaspace(struct hf_model *m, const json_t *pre, struct err *e)
{
    const json_t *list = json_object_get(pre, "pretokenizers");
    if (is_type(pre, "Sequence") && json_array_size(list) == 2 &&
        is_type(json_array_get(list, 0), "WhitespaceSplit")) {
        m->merge_spaces = true;
        m->outer_spaces = false;
        pre = json_array_get(list, 1);
    }
    const char *mark = json_string_value(json_object_get(pre, "replacement"));
    const char *scheme = json_string_value(json_object_get(pre, "prepend_scheme"));
    const json_t *old = json_object_get(pre, "add_prefix_space");
    if (!is_type(pre, "Metaspace") || !mark || strcmp(mark, "\xe2\x96\x81") != 0 ||
        json_is_false(json_object_get(pre, "split")))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the pre-tokenizer must be Metaspace with U+2581 that "
                       "splits, alone or behind WhitespaceSplit");
    m->space_prefix = scheme ? strcmp(scheme, "never") != 0 : !old || json_is_true(old);
    bool always = m->space_prefix && (!scheme || strcmp(scheme, "always") == 0);
    if (!m->outer_spaces && (!m->merge_spaces || !always))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: spaces at the ends are stripped, but others are not "
                       "merged or no space is put before the text; that cannot be converted");
    return 0;
}

static int read_unigram(struct hf_model *m, const json_t *model, struct err *e)
{
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *unk = json_object_get(model, "unk_id");
    if (!is_type(model, "Unigram") || !json_is_array(vocab) || !json_is_integer(unk) ||
        json_is_true(json_object_get(model, "byte_fallback")))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the model must be Unigram with a vocab and an unk_id, "
                       "and without byte_fallback");
    m->scores = mem_calloc(m->n_vocab, sizeof *m->scores);
    if (!m->scores)
        return err_set(e, KITH_ENOMEM, "out of memory for %u scores", m->n_vocab);
    size_t i;
    json_t *v;
    json_array_foreach(vocab, i, v)
    {
        const char *text = json_string_value(json_array_get(v, 0));
        const json_t *score = json_array_get(v, 1);
        if (!text || !json_is_number(score))
            return err_set(e, KITH_EFORMAT, "tokenizer.json: piece %zu has no text or score",
                           i);
        int rc = put_token(m, text, strlen(text), (int64_t)i, e);
        if (rc)
            return rc;
        m->scores[i] = (float)json_number_value(score);
    }
    json_int_t id = json_integer_value(unk);
    if (id < 0 || id >= (json_int_t)m->n_vocab || !m->tokens[id] ||
        strcmp(m->tokens[id], m->specials[HF_UNK].text) != 0)
        return err_set(e, KITH_EFORMAT, "tokenizer.json: unk_id %lld is not the token '%s'",
                       (long long)id, m->specials[HF_UNK].text);
    return 0;
}

static bool names_token(const json_t *part, const char *token)
{
    const char *id =
        json_string_value(json_object_get(json_object_get(part, "SpecialToken"), "id"));
    return id && strcmp(id, token) == 0;
}

/* <s> text </s>, which is what the file will say. */
static int read_frame(struct hf_model *m, const json_t *processor, struct err *e)
{
    const json_t *single = json_object_get(processor, "single");
    if (!is_type(processor, "TemplateProcessing") || json_array_size(single) != 3 ||
        !names_token(json_array_get(single, 0), m->specials[HF_BOS].text) ||
        !json_object_get(json_array_get(single, 1), "Sequence") ||
        !names_token(json_array_get(single, 2), m->specials[HF_EOS].text))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the post-processor must be the template '%s $A %s'",
                       m->specials[HF_BOS].text, m->specials[HF_EOS].text);
    return 0;
}

/* Hugging Face cuts these out of the text before anything else, which nobody does here. */
static int refuse_plain_added(const json_t *added, struct err *e)
{
    size_t i;
    json_t *v;
    json_array_foreach(added, i, v)
    {
        const char *text = json_string_value(json_object_get(v, "content"));
        if (!json_is_true(json_object_get(v, "special")))
            return err_set(e, KITH_EUNSUPPORTED,
                           "tokenizer.json: the added token '%s' is not special, and cannot be "
                           "converted",
                           text ? text : "(no text)");
    }
    return 0;
}

static int read_unigram_json(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    const json_t *added = json_object_get(tokenizer, "added_tokens");
    int rc;
    if ((rc = read_unigram_normalizer(m, json_object_get(tokenizer, "normalizer"), e)) ||
        (rc = read_metaspace(m, json_object_get(tokenizer, "pre_tokenizer"), e)) ||
        (rc = read_unigram(m, json_object_get(tokenizer, "model"), e)) ||
        (rc = read_frame(m, json_object_get(tokenizer, "post_processor"), e)) ||
        (rc = refuse_plain_added(added, e)))
        return rc;
    return read_added_tokens(m, added, e);
}

static int read_tokenizer_json(struct hf_model *m, const char *dir, struct err *e)
{
    json_t *tokenizer;
    int rc = load_json(&tokenizer, dir, "tokenizer.json", e);
    if (rc)
        return rc;
    if (m->tokenizer == HF_UNIGRAM)
        rc = read_unigram_json(m, tokenizer, e);
    else if (!(rc = read_normalizer(m, json_object_get(tokenizer, "normalizer"), e)) &&
             !(rc = read_wordpiece(m, json_object_get(tokenizer, "model"), e)))
        rc = read_added_tokens(m, json_object_get(tokenizer, "added_tokens"), e);
    json_decref(tokenizer);
    return rc;
}

/* The older form: a token a line, the line number is the id. */
static int read_vocab_txt(struct hf_model *m, const char *dir, struct err *e)
{
    char path[PATH_BYTES];
    struct buf text;
    buf_init(&text);
    int rc = path_in(path, dir, "vocab.txt", e);
    if (!rc)
        rc = file_read_whole(path, JSON_MAX_BYTES, &text, e);
    int64_t id = 0;
    for (size_t at = 0; !rc && at < text.len; id++) {
        const char *line = text.data + at;
        const char *end = memchr(line, '\n', text.len - at);
        size_t n = end ? (size_t)(end - line) : text.len - at;
        at += n + 1;
        rc = put_token(m, line, n && line[n - 1] == '\r' ? n - 1 : n, id, e);
    }
    buf_deinit(&text);
    return rc;
}

/* tokenizer_config.json: the special tokens' names, and, without tokenizer.json, the
 * normalizer. */
static int read_tokenizer_config(struct hf_model *m, const char *dir, bool with_normalizer,
                                 struct err *e)
{
    json_t *config;
    int rc = load_json(&config, dir, "tokenizer_config.json", e);
    if (rc)
        return rc;
    for (int i = 0; i < HF_N_SPECIALS; i++) {
        const json_t *v = json_object_get(config, m->specials[i].name);
        const char *s =
            json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
        if (s && strlen(s) < sizeof m->specials[i].text)
            memcpy(m->specials[i].text, s, strlen(s) + 1);
    }
    if (with_normalizer) {
        const json_t *lower = json_object_get(config, "do_lower_case");
        const json_t *strip = json_object_get(config, "strip_accents");
        m->lower = lower ? json_is_true(lower) : true;
        m->strip_accents = json_is_boolean(strip) ? json_is_true(strip) : m->lower;
    }
    json_decref(config);
    return 0;
}

/* Those without which the tokenizer cannot work, a bit each. */
static unsigned needed_specials(const struct hf_model *m)
{
    return m->tokenizer == HF_UNIGRAM ? 1u << HF_UNK | 1u << HF_BOS | 1u << HF_EOS
                                      : 1u << HF_UNK | 1u << HF_SEP | 1u << HF_CLS;
}

static int find_specials(struct hf_model *m, struct err *e)
{
    for (int i = 0; i < HF_N_SPECIALS; i++) {
        struct hf_special *s = &m->specials[i];
        if (i >= HF_BOS && m->tokenizer == HF_WORDPIECE)
            break;
        for (uint32_t t = 0; t < m->n_vocab && s->id < 0; t++)
            if (m->tokens[t] && strcmp(m->tokens[t], s->text) == 0)
                s->id = (int32_t)t;
        if (s->id >= 0)
            m->control[s->id] = true;
        else if (needed_specials(m) >> i & 1)
            return err_set(e, KITH_EFORMAT, "the vocabulary has no %s '%s'", s->name, s->text);
    }
    return 0;
}

static int read_vocabulary(struct hf_model *m, const char *dir, struct err *e)
{
    m->tokens = mem_calloc(m->n_vocab, sizeof *m->tokens);
    m->control = mem_calloc(m->n_vocab, sizeof *m->control);
    if (!m->tokens || !m->control)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", m->n_vocab);
    bool modern = has_file(dir, "tokenizer.json");
    if (!modern && m->tokenizer == HF_WORDPIECE && !has_file(dir, "vocab.txt"))
        return err_set(e, KITH_ENOTFOUND, "%s has neither tokenizer.json nor vocab.txt", dir);
    if (!modern && m->tokenizer == HF_UNIGRAM)
        return err_set(e, KITH_ENOTFOUND, "%s has no tokenizer.json", dir);
    m->lower = m->strip_accents = true;
    int rc = 0;
    if (has_file(dir, "tokenizer_config.json"))
        rc = read_tokenizer_config(m, dir, !modern, e);
    if (!rc)
        rc = modern ? read_tokenizer_json(m, dir, e) : read_vocab_txt(m, dir, e);
    return rc ? rc : find_specials(m, e);
}

/* --- pooling --- */

static int read_pooling(struct hf_model *m, const char *dir, const char *sub, struct err *e)
{
    char name[PATH_BYTES];
    if (snprintf(name, sizeof name, "%s/config.json", sub) >= (int)sizeof name)
        return err_set(e, KITH_EINVAL, "modules.json: path too long");
    json_t *config;
    int rc = load_json(&config, dir, name, e);
    if (rc)
        return rc;
    bool mean = false, cls = false, other = false;
    const char *key;
    json_t *v;
    json_object_foreach(config, key, v)
    {
        if (!json_is_true(v) || strncmp(key, "pooling_mode_", 13) != 0)
            continue;
        if (strcmp(key, "pooling_mode_mean_tokens") == 0)
            mean = true;
        else if (strcmp(key, "pooling_mode_cls_token") == 0)
            cls = true;
        else
            other = true;
    }
    const char *mode = json_string_value(json_object_get(config, "pooling_mode"));
    if (mode) {
        mean = strcmp(mode, "mean") == 0;
        cls = strcmp(mode, "cls") == 0;
        other = !mean && !cls;
    }
    json_decref(config);
    if (other || mean == cls)
        return err_set(e, KITH_EUNSUPPORTED,
                       "%s: mean or CLS pooling can be converted, and one", name);
    m->pooling = mean ? HF_POOLING_MEAN : HF_POOLING_CLS;
    return 0;
}

static int read_modules(struct hf_model *m, const char *dir, struct err *e)
{
    if (!has_file(dir, "modules.json"))
        return 0;
    json_t *modules;
    int rc = load_json(&modules, dir, "modules.json", e);
    if (rc)
        return rc;
    size_t i;
    json_t *v;
    json_array_foreach(modules, i, v)
    {
        const char *type = json_string_value(json_object_get(v, "type"));
        const char *path = json_string_value(json_object_get(v, "path"));
        const char *last = type ? strrchr(type, '.') : NULL;
        last = last ? last + 1 : type;
        if (!last || !path)
            rc = err_set(e, KITH_EFORMAT, "modules.json: module %zu has no type or path", i);
        else if (strcmp(last, "Pooling") == 0)
            rc = read_pooling(m, dir, path, e);
        else if (strcmp(last, "Normalize") == 0)
            m->normalize = true;
        else if (strcmp(last, "Transformer") != 0)
            rc = err_set(e, KITH_EUNSUPPORTED, "modules.json: '%s' cannot be converted", last);
        if (rc)
            break;
    }
    json_decref(modules);
    return rc;
}

int hf_model_open(struct hf_model *m, const char *dir, struct err *e)
{
    memset(m, 0, sizeof *m);
    memcpy(m->specials, specials, sizeof specials);
    int rc = read_config(m, dir, e);
    if (!rc)
        rc = read_vocabulary(m, dir, e);
    if (!rc)
        rc = read_modules(m, dir, e);
    if (rc)
        hf_model_close(m);
    return rc;
}

void hf_model_close(struct hf_model *m)
{
    for (uint32_t i = 0; m->tokens && i < m->n_vocab; i++)
        mem_free(m->tokens[i]);
    mem_free(m->tokens);
    mem_free(m->control);
    mem_free(m->scores);
    mem_free(m->charsmap);
    memset(m, 0, sizeof *m);
}
