/* tokenizer.json of a Unigram model, as SentencePiece's are written. */

#include <string.h>

#include "base/mem.h"
#include "tools/hf_parts.h"

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
    const char *map = hf_text(step, "precompiled_charsmap");
    if (hf_is_type(step, "Precompiled") && map && !m->charsmap && !m->merge_spaces)
        return decode_base64(map, &m->charsmap, &m->charsmap_bytes, e);
    const char *pattern = hf_text(json_object_get(step, "pattern"), "Regex");
    const char *content = hf_text(step, "content");
    if (hf_is_type(step, "Replace") && pattern && strcmp(pattern, " {2,}") == 0 && content &&
        (strcmp(content, " ") == 0 || strcmp(content, "\xe2\x96\x81") == 0)) {
        m->merge_spaces = true;
        return 0;
    }
    if (hf_is_type(step, "Strip") && hf_is_true(step, "strip_right") &&
        (m->charsmap || m->merge_spaces)) {
        m->outer_spaces = false;
        return 0;
    }
    const char *type = hf_text(step, "type");
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
    if (!hf_is_type(normalizer, "Sequence"))
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
    if (hf_is_type(pre, "Sequence") && json_array_size(list) == 2 &&
        hf_is_type(json_array_get(list, 0), "WhitespaceSplit")) {
        m->merge_spaces = true;
        m->outer_spaces = false;
        pre = json_array_get(list, 1);
    }
    const char *mark = hf_text(pre, "replacement");
    const char *scheme = hf_text(pre, "prepend_scheme");
    const json_t *old = json_object_get(pre, "add_prefix_space");
    if (!hf_is_type(pre, "Metaspace") || !mark || strcmp(mark, "\xe2\x96\x81") != 0 ||
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

static int read_pieces(struct hf_model *m, const json_t *model, struct err *e)
{
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *unk = json_object_get(model, "unk_id");
    if (!hf_is_type(model, "Unigram") || !json_is_array(vocab) || !json_is_integer(unk) ||
        hf_is_true(model, "byte_fallback"))
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the model must be Unigram with a vocab and an unk_id, "
                       "and without byte_fallback");
    size_t i;
    json_t *v;
    json_array_foreach(vocab, i, v)
    {
        const char *text = json_string_value(json_array_get(v, 0));
        const json_t *score = json_array_get(v, 1);
        if (!text || !json_is_number(score))
            return err_set(e, KITH_EFORMAT, "tokenizer.json: piece %zu has no text or score",
                           i);
        int rc = hf_put_token(m, text, strlen(text), (int64_t)i, e);
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

int hf_read_unigram(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    int rc = read_unigram_normalizer(m, json_object_get(tokenizer, "normalizer"), e);
    if (!rc)
        rc = read_metaspace(m, json_object_get(tokenizer, "pre_tokenizer"), e);
    return rc ? rc : read_pieces(m, json_object_get(tokenizer, "model"), e);
}
