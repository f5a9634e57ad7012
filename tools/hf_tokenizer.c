/* The vocabulary of any kind of tokenizer, the special tokens, what stands around a text; and
 * WordPiece, which is the shortest of the kinds. */

#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/mem.h"
#include "tools/hf_parts.h"

static const struct hf_special specials[HF_N_SPECIALS] = {
    {"unk_token", "tokenizer.ggml.unknown_token_id", "", -1},
    {"sep_token", "tokenizer.ggml.seperator_token_id", "", -1},
    {"pad_token", "tokenizer.ggml.padding_token_id", "", -1},
    {"cls_token", "tokenizer.ggml.cls_token_id", "", -1},
    {"mask_token", "tokenizer.ggml.mask_token_id", "", -1},
    {"bos_token", "tokenizer.ggml.bos_token_id", "", -1},
    {"eos_token", "tokenizer.ggml.eos_token_id", "", -1},
};

/* The names where tokenizer_config.json says nothing: BERT's and XLM-R's. BPE has none. */
static const char *const usual_names[][HF_N_SPECIALS] = {
    [HF_WORDPIECE] = {"[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "", ""},
    [HF_UNIGRAM] = {"<unk>", "</s>", "<pad>", "<s>", "<mask>", "<s>", "</s>"},
    [HF_BYTE_BPE] = {"", "", "", "", "", "", ""},
    [HF_SPM_BPE] = {"<unk>", "", "<pad>", "", "", "", ""},
};

/* --- the vocabulary --- */

int hf_put_token(struct hf_model *m, const char *text, size_t n, int64_t id, struct err *e)
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
    m->types[id] = HF_TOKEN_NORMAL;
    return 0;
}

int32_t hf_find_token(const struct hf_model *m, const char *text)
{
    for (uint32_t t = 0; t < m->n_vocab && *text; t++)
        if (m->tokens[t] && strcmp(m->tokens[t], text) == 0)
            return (int32_t)t;
    return -1;
}

int hf_read_vocab(struct hf_model *m, const json_t *vocab, struct err *e)
{
    if (!json_is_object(vocab))
        return err_set(e, KITH_EFORMAT, "tokenizer.json: the model has no vocab");
    const char *text;
    json_t *id;
    json_object_foreach((json_t *)(uintptr_t)vocab, text, id)
    {
        int rc = hf_put_token(m, text, strlen(text),
                              json_is_integer(id) ? json_integer_value(id) : -1, e);
        if (rc)
            return rc;
    }
    return 0;
}

/* An added token is cut out of the text by Hugging Face before anything else. A special one is
 * never meant in a text here; a plain one only the two kinds of BPE cut out, and just where it
 * stands. */
static int check_added(const struct hf_model *m, const json_t *token, const char *text,
                       struct err *e)
{
    if (hf_is_true(token, "special"))
        return 0;
    if (m->tokenizer == HF_WORDPIECE || m->tokenizer == HF_UNIGRAM)
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the added token '%s' is not special, and cannot be "
                       "converted",
                       text);
    if (hf_is_true(token, "lstrip") || hf_is_true(token, "rstrip") ||
        hf_is_true(token, "single_word"))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the added token '%s' takes spaces or only whole words, "
                       "and cannot be converted",
                       text);
    return 0;
}

static int read_added_tokens(struct hf_model *m, const json_t *added, struct err *e)
{
    size_t i;
    json_t *v;
    json_array_foreach(added, i, v)
    {
        const char *text = hf_text(v, "content");
        const json_t *id = json_object_get(v, "id");
        if (!text || !json_is_integer(id))
            return err_set(e, KITH_EFORMAT, "tokenizer.json: added token %zu has no text or id",
                           i);
        int rc = check_added(m, v, text, e);
        if (!rc)
            rc = hf_put_token(m, text, strlen(text), json_integer_value(id), e);
        if (rc)
            return rc;
        m->types[json_integer_value(id)] =
            hf_is_true(v, "special") ? HF_TOKEN_CONTROL : HF_TOKEN_USER_DEFINED;
    }
    return 0;
}

/* The older form: a token a line, the line number is the id. */
static int read_vocab_txt(struct hf_model *m, const char *dir, struct err *e)
{
    char path[HF_PATH_BYTES];
    struct buf text;
    buf_init(&text);
    int rc = hf_path(path, dir, "vocab.txt", e);
    if (!rc)
        rc = file_read_whole(path, HF_JSON_MAX_BYTES, &text, e);
    int64_t id = 0;
    for (size_t at = 0; !rc && at < text.len; id++) {
        const char *line = text.data + at;
        const char *end = memchr(line, '\n', text.len - at);
        size_t n = end ? (size_t)(end - line) : text.len - at;
        at += n + 1;
        rc = hf_put_token(m, line, n && line[n - 1] == '\r' ? n - 1 : n, id, e);
    }
    buf_deinit(&text);
    return rc;
}

/* --- what stands around a text --- */

/* Of one text, [bos] A [eos], and of two, [bos] A [eos] [sep] B [eos]; NULL: not there. */
struct frame {
    const char *bos, *eos, *sep;
    bool pair; /* the form of two is known */
};

static const char *special_of(const json_t *item)
{
    return hf_text(json_object_get(item, "SpecialToken"), "id");
}

static bool is_sequence(const json_t *item, const char *which)
{
    const char *id = hf_text(json_object_get(item, "Sequence"), "id");
    return id && strcmp(id, which) == 0;
}

static bool same(const char *a, const char *b)
{
    return a ? b && strcmp(a, b) == 0 : !b;
}

/* Takes a special token at *at, if one is there. */
static const char *take_special(const json_t *list, size_t *at)
{
    const char *id = special_of(json_array_get(list, *at));
    *at += id != NULL;
    return id;
}

static bool parse_template(const json_t *processor, struct frame *f)
{
    const json_t *single = json_object_get(processor, "single");
    const json_t *pair = json_object_get(processor, "pair");
    size_t at = 0;
    f->bos = take_special(single, &at);
    if (!is_sequence(json_array_get(single, at++), "A"))
        return false;
    f->eos = take_special(single, &at);
    if (at != json_array_size(single))
        return false;
    at = 0;
    bool ok = same(take_special(pair, &at), f->bos);
    ok = ok && is_sequence(json_array_get(pair, at++), "A");
    ok = ok && (!f->eos || same(take_special(pair, &at), f->eos));
    f->sep = take_special(pair, &at);
    ok = ok && is_sequence(json_array_get(pair, at++), "B");
    f->pair = ok && same(take_special(pair, &at), f->eos) && at == json_array_size(pair);
    return true;
}

/* Whether the post-processor is of a form that is understood. */
static bool parse_processor(const json_t *processor, struct frame *f)
{
    if (!processor || json_is_null(processor) || hf_is_type(processor, "ByteLevel"))
        return true;
    if (hf_is_type(processor, "TemplateProcessing"))
        return parse_template(processor, f);
    if (hf_is_type(processor, "BertProcessing") || hf_is_type(processor, "RobertaProcessing")) {
        f->bos = json_string_value(json_array_get(json_object_get(processor, "cls"), 0));
        f->eos = json_string_value(json_array_get(json_object_get(processor, "sep"), 0));
        f->sep = hf_is_type(processor, "RobertaProcessing") ? f->eos : NULL;
        f->pair = true;
        return f->bos && f->eos;
    }
    /* A sequence where ByteLevel, which only moves offsets, stands beside one other. */
    const json_t *list = json_object_get(processor, "processors");
    if (!hf_is_type(processor, "Sequence") || !json_is_array(list))
        return false;
    const json_t *one = NULL;
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        if (hf_is_type(v, "ByteLevel"))
            continue;
        if (one)
            return false;
        one = v;
    }
    return !hf_is_type(one, "Sequence") && parse_processor(one, f);
}

static int take_text(struct hf_special *s, const char *text, struct err *e)
{
    if (strlen(text) >= sizeof s->text)
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the post-processor's token '%.64s...' is too long",
                       text);
    memcpy(s->text, text, strlen(text) + 1);
    return 0;
}

/* WordPiece and Unigram models have tokens before and after that are theirs by name. */
static int check_named_frame(const struct hf_model *m, const struct frame *f, const char *bos,
                             const char *eos, struct err *e)
{
    if (!same(f->bos, bos) || !same(f->eos, eos))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the post-processor must be the template '%s $A %s'",
                       bos, eos);
    if (m->head != HF_HEAD_NONE && !f->pair)
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the post-processor has no template of two texts like "
                       "'%s $A %s $B %s'",
                       bos, eos, eos);
    return 0;
}

static int read_frame(struct hf_model *m, const json_t *processor, struct err *e)
{
    struct frame f = {0};
    if (!parse_processor(processor, &f)) {
        const char *type = hf_text(processor, "type");
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the post-processor '%.64s' is no template of one token "
                       "at most before and one after the text",
                       type ? type : "(no type)");
    }
    struct hf_special *s = m->specials;
    int rc = 0;
    if (m->tokenizer == HF_WORDPIECE) {
        m->add_bos = m->add_eos = true;
        if (processor && !json_is_null(processor))
            rc = check_named_frame(m, &f, s[HF_CLS].text, s[HF_SEP].text, e);
    } else if (m->tokenizer == HF_UNIGRAM) {
        m->add_bos = m->add_eos = true;
        rc = check_named_frame(m, &f, s[HF_BOS].text, s[HF_EOS].text, e);
    } else {
        m->add_bos = f.bos != NULL;
        m->add_eos = f.eos != NULL;
        if (f.bos)
            rc = take_text(&s[HF_BOS], f.bos, e);
        if (!rc && f.eos)
            rc = take_text(&s[HF_EOS], f.eos, e);
        if (!rc && m->head != HF_HEAD_NONE)
            rc = check_named_frame(m, &f, s[HF_BOS].text, s[HF_EOS].text, e);
    }
    m->add_sep = f.sep != NULL;
    return !rc && f.sep && m->tokenizer != HF_WORDPIECE ? take_text(&s[HF_SEP], f.sep, e) : rc;
}

/* --- WordPiece --- */

/* A normalizer must be BERT's own; its settings go into the model. */
static int read_bert_normalizer(struct hf_model *m, const json_t *normalizer, struct err *e)
{
    if (!hf_is_type(normalizer, "BertNormalizer"))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the normalizer is no BertNormalizer");
    if (!hf_is_true(normalizer, "clean_text") ||
        !hf_is_true(normalizer, "handle_chinese_chars"))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: clean_text and handle_chinese_chars must be true");
    m->lower = hf_is_true(normalizer, "lowercase");
    const json_t *strip = json_object_get(normalizer, "strip_accents");
    m->strip_accents = json_is_boolean(strip) ? json_is_true(strip) : m->lower;
    return 0;
}

static int read_wordpiece(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    int rc = read_bert_normalizer(m, json_object_get(tokenizer, "normalizer"), e);
    if (rc)
        return rc;
    const json_t *model = json_object_get(tokenizer, "model");
    const char *prefix = hf_text(model, "continuing_subword_prefix");
    const json_t *max_chars = json_object_get(model, "max_input_chars_per_word");
    if (!prefix || strcmp(prefix, "##") != 0 ||
        (max_chars && json_integer_value(max_chars) != 100))
        return err_set(
            e, KITH_EUNSUPPORTED,
            "tokenizer.json: the model must be WordPiece with the prefix '##' and at "
            "most 100 characters a word");
    return hf_read_vocab(m, json_object_get(model, "vocab"), e);
}

/* --- all kinds --- */

static int choose_kind(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    const json_t *model = json_object_get(tokenizer, "model");
    const char *type = hf_text(model, "type");
    if (!type || strcmp(type, "WordPiece") == 0)
        m->tokenizer = HF_WORDPIECE;
    else if (strcmp(type, "Unigram") == 0)
        m->tokenizer = HF_UNIGRAM;
    else if (strcmp(type, "BPE") == 0)
        m->tokenizer = hf_is_true(model, "byte_fallback") ? HF_SPM_BPE : HF_BYTE_BPE;
    else
        return err_set(
            e, KITH_EUNSUPPORTED,
            "tokenizer.json: the model is '%.64s'; WordPiece, Unigram and BPE can be "
            "converted",
            type);
    return 0;
}

/* tokenizer_config.json: the special tokens' names, and, without tokenizer.json, the
 * normalizer. */
static int read_tokenizer_config(struct hf_model *m, const char *dir, bool with_normalizer,
                                 struct err *e)
{
    json_t *config;
    int rc = hf_json_load(&config, dir, "tokenizer_config.json", e);
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

static int read_kind(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    switch (m->tokenizer) {
    case HF_WORDPIECE:
        return read_wordpiece(m, tokenizer, e);
    case HF_UNIGRAM:
        return hf_read_unigram(m, tokenizer, e);
    default:
        return hf_read_bpe(m, tokenizer, e);
    }
}

/* Those without which the tokenizer cannot work, a bit each. */
static unsigned needed_specials(const struct hf_model *m)
{
    if (m->tokenizer == HF_WORDPIECE)
        return 1u << HF_UNK | 1u << HF_SEP | 1u << HF_CLS;
    return (m->tokenizer == HF_BYTE_BPE ? 0 : 1u << HF_UNK) | (m->add_bos ? 1u << HF_BOS : 0) |
           (m->add_eos ? 1u << HF_EOS : 0) | (m->add_sep ? 1u << HF_SEP : 0);
}

static int find_specials(struct hf_model *m, struct err *e)
{
    for (int i = 0; i < HF_N_SPECIALS; i++) {
        struct hf_special *s = &m->specials[i];
        if (i >= HF_BOS && m->tokenizer == HF_WORDPIECE)
            break;
        s->id = hf_find_token(m, s->text);
        if (s->id >= 0)
            m->types[s->id] = HF_TOKEN_CONTROL;
        else if (needed_specials(m) >> i & 1)
            return err_set(e, KITH_EFORMAT, "the vocabulary has no %s '%s'", s->name, s->text);
    }
    if (m->specials[HF_UNK].id >= 0 &&
        (m->tokenizer == HF_UNIGRAM || m->tokenizer == HF_SPM_BPE))
        m->types[m->specials[HF_UNK].id] = HF_TOKEN_UNKNOWN;
    return 0;
}

static int read_tokens(struct hf_model *m, const char *dir, const json_t *tokenizer,
                       struct err *e)
{
    memcpy(m->specials, specials, sizeof specials);
    for (int i = 0; i < HF_N_SPECIALS; i++)
        snprintf(m->specials[i].text, sizeof m->specials[i].text, "%s",
                 usual_names[m->tokenizer][i]);
    int rc = 0;
    if (hf_has_file(dir, "tokenizer_config.json"))
        rc = read_tokenizer_config(m, dir, !tokenizer, e);
    if (!rc)
        rc = tokenizer ? read_kind(m, tokenizer, e) : read_vocab_txt(m, dir, e);
    if (!rc)
        rc = read_frame(m, json_object_get(tokenizer, "post_processor"), e);
    if (!rc)
        rc = read_added_tokens(m, json_object_get(tokenizer, "added_tokens"), e);
    if (!rc)
        rc = find_specials(m, e);
    return rc;
}

int hf_read_tokenizer(struct hf_model *m, const char *dir, struct err *e)
{
    m->tokens = mem_calloc(m->n_vocab, sizeof *m->tokens);
    m->types = mem_calloc(m->n_vocab, sizeof *m->types);
    m->scores = mem_calloc(m->n_vocab, sizeof *m->scores);
    if (!m->tokens || !m->types || !m->scores)
        return err_set(e, KITH_ENOMEM, "out of memory for %u tokens", m->n_vocab);
    memset(m->types, HF_TOKEN_UNUSED, m->n_vocab);
    m->lower = m->strip_accents = true;
    json_t *tokenizer = NULL;
    int rc = 0;
    if (hf_has_file(dir, "tokenizer.json")) {
        rc = hf_json_load(&tokenizer, dir, "tokenizer.json", e);
        if (!rc)
            rc = choose_kind(m, tokenizer, e);
    } else if (!hf_has_file(dir, "vocab.txt")) {
        rc = err_set(e, KITH_ENOTFOUND, "%s has neither tokenizer.json nor vocab.txt", dir);
    }
    if (!rc)
        rc = read_tokens(m, dir, tokenizer, e);
    json_decref(tokenizer);
    return rc;
}
