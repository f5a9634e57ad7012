/* tokenizer.json of a BPE model: byte-level as GPT-2 has it, and SentencePiece's form.
 *
 * Byte-level BPE merges by rank, and so does GGUF's `gpt2`: merges are taken as they are. What
 * cuts a text into words before that is a regular expression in tokenizer.json and a name in
 * GGUF; only those whose name is known can be converted.
 *
 * SentencePiece's BPE has a score for each piece instead, and so has GGUF's `llama`: of two
 * neighbouring pairs the one whose joint piece has the higher score is joined first, the left
 * one where they are equal. Hugging Face writes it as a list of merges, every cut of each piece
 * into two, sorted by score. The list goes into the file, where the engine takes it; for other
 * programs scores are found again from the ranks: pieces whose merges are mixed in the list had
 * the same score. */

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tools/hf_parts.h"

/* A float holds no larger ranks. */
enum { N_BYTES = 256, PRE_MAX_BYTES = 512, MERGES_MAX = 1 << 24 };

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define UPPER "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" SPACES

/* The expressions by which a text is split before byte-level BPE. */
static const struct {
    const char *pattern;
    bool whole_words; /* a word that is a token is taken without merging */
    const char *pre;
} splits[] = {
    {CONTRACTION WORD "|\\p{N}" REST, false, "qwen2"},
    {CONTRACTION WORD "|\\p{N}{1,3}" REST, true, "llama-bpe"},
    {CONTRACTION WORD "|\\p{N}{1,3}" REST, false, "dbrx"},
    {UPPER "*" LOWER "+" CONTRACTION "?|" UPPER "+" LOWER "*" CONTRACTION "?|\\p{N}{1,3}"
           "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES,
     false, "gpt-4o"},
};

/* --- merges --- */

struct merge {
    const char *left, *right;
    size_t n_left, n_right;
};

/* Both forms: "left right" and ["left", "right"]. */
static int take_merge(const json_t *v, size_t i, struct merge *g, struct err *e)
{
    const char *text = json_string_value(v);
    const char *space = text ? strchr(text, ' ') : NULL;
    if (text && space && space > text && space[1] && !strchr(space + 1, ' ')) {
        *g = (struct merge){text, space + 1, (size_t)(space - text), strlen(space + 1)};
        return 0;
    }
    g->left = json_string_value(json_array_get(v, 0));
    g->right = json_string_value(json_array_get(v, 1));
    if (json_array_size(v) != 2 || !g->left || !g->right || !*g->left || !*g->right ||
        strchr(g->left, ' ') || strchr(g->right, ' '))
        return err_set(e, KITH_EFORMAT,
                       "tokenizer.json: merge %zu is neither 'left right' nor two strings "
                       "without spaces",
                       i);
    g->n_left = strlen(g->left);
    g->n_right = strlen(g->right);
    return 0;
}

static int64_t id_of(const json_t *vocab, const char *text, size_t n)
{
    const json_t *id = json_object_getn(vocab, text, n);
    return json_is_integer(id) ? json_integer_value(id) : -1;
}

/* The tokens of both sides and of the whole; all must be there. *joined is the merge as GGUF
 * has it, the caller's. */
static int resolve_merge(const struct hf_model *m, const json_t *vocab, const struct merge *g,
                         size_t i, int64_t ids[3], char **joined, struct err *e)
{
    char *text = mem_alloc(g->n_left + g->n_right + 2);
    if (!text)
        return err_set(e, KITH_ENOMEM, "out of memory for the merges");
    memcpy(text, g->left, g->n_left);
    memcpy(text + g->n_left, g->right, g->n_right);
    ids[0] = id_of(vocab, g->left, g->n_left);
    ids[1] = id_of(vocab, g->right, g->n_right);
    ids[2] = id_of(vocab, text, g->n_left + g->n_right);
    for (int k = 0; k < 3; k++)
        if (ids[k] < 0 || ids[k] >= m->n_vocab) {
            mem_free(text);
            return err_set(e, KITH_EFORMAT,
                           "tokenizer.json: merge %zu, '%.*s' and '%.*s', has a side or a "
                           "result that is no token",
                           i, (int)(g->n_left > 64 ? 64 : g->n_left), g->left,
                           (int)(g->n_right > 64 ? 64 : g->n_right), g->right);
        }
    memmove(text + g->n_left + 1, text + g->n_left, g->n_right);
    text[g->n_left] = ' ';
    text[g->n_left + 1 + g->n_right] = '\0';
    *joined = text;
    return 0;
}

/* The ranks of the merges that make one token. */
struct run {
    uint32_t token, first, last;
};

/* runs: of each token, or NULL. */
static int read_merges(struct hf_model *m, const json_t *model, struct run *runs, struct err *e)
{
    const json_t *merges = json_object_get(model, "merges");
    const json_t *vocab = json_object_get(model, "vocab");
    if (!json_is_array(merges))
        return err_set(e, KITH_EFORMAT, "tokenizer.json: the model has no merges");
    size_t n = json_array_size(merges);
    if (n > MERGES_MAX)
        return err_set(e, KITH_ELIMIT, "tokenizer.json has %zu merges; %d are possible", n,
                       MERGES_MAX);
    m->merges = mem_calloc(n ? n : 1, sizeof *m->merges);
    if (!m->merges)
        return err_set(e, KITH_ENOMEM, "out of memory for %zu merges", n);
    for (size_t i = 0; i < n; i++) {
        struct merge g = {0};
        int64_t ids[3] = {0};
        int rc = take_merge(json_array_get(merges, i), i, &g, e);
        if (!rc)
            rc = resolve_merge(m, vocab, &g, i, ids, &m->merges[m->n_merges], e);
        if (rc)
            return rc;
        m->n_merges++;
        if (runs && runs[ids[2]].first > runs[ids[2]].last)
            runs[ids[2]].first = (uint32_t)i;
        if (runs)
            runs[ids[2]].last = (uint32_t)i;
    }
    return 0;
}

/* --- byte-level BPE --- */

/* How GPT-2 writes a byte as a character: those that can be seen stand for themselves, the
 * others follow from U+0100 on. */
static size_t write_byte(unsigned byte, char out[3])
{
    unsigned c = byte;
    if (!((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae)) {
        c = 0x100;
        for (unsigned b = 0; b < byte; b++)
            c += !((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae);
    }
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

/* With all of them nothing is ever unknown. */
static int need_all_bytes(const json_t *vocab, struct err *e)
{
    for (unsigned b = 0; b < N_BYTES; b++) {
        char text[3];
        if (id_of(vocab, text, write_byte(b, text)) < 0)
            return err_set(
                e, KITH_EUNSUPPORTED,
                "tokenizer.json: the byte 0x%02x has no token; only a vocabulary with "
                "all bytes can be converted",
                b);
    }
    return 0;
}

/* Nothing, or NFC. */
static int read_nfc(struct hf_model *m, const json_t *normalizer, struct err *e)
{
    if (!normalizer || json_is_null(normalizer))
        return 0;
    const json_t *list = json_object_get(normalizer, "normalizers");
    if (hf_is_type(normalizer, "Sequence") && json_array_size(list) <= 1) {
        if (json_array_size(list) == 0)
            return 0;
        normalizer = json_array_get(list, 0);
    }
    if (!hf_is_type(normalizer, "NFC")) {
        const char *type = hf_text(normalizer, "type");
        return err_set(e, KITH_EUNSUPPORTED,
                       "tokenizer.json: the normalizer '%.64s' cannot be converted with "
                       "byte-level BPE; NFC or none can",
                       type ? type : "(no type)");
    }
    m->nfc = true;
    return 0;
}

/* GPT-2's own expression is part of ByteLevel; GGUF names it after the models that have it. */
static const char *gpt2_name(const struct hf_model *m)
{
    switch (m->family) {
    case HF_BERT:
        return "roberta-bpe";
    case HF_JINA_BERT_V2:
        return "jina-v2-code";
    case HF_MODERN_BERT:
        return "modern-bert";
    default:
        return "gpt-2";
    }
}

static int refuse_pre(const json_t *pre, struct err *e)
{
    char *text = json_dumps(pre, JSON_ENCODE_ANY | JSON_COMPACT);
    int rc = err_set(e, KITH_EUNSUPPORTED,
                     "tokenizer.json: the pre-tokenizer %.*s is not known; those of gpt-2, "
                     "starcoder, qwen2, llama-bpe, dbrx and gpt-4o can be converted",
                     PRE_MAX_BYTES / 2, text ? text : "(nothing)");
    free(text); /* jansson's */
    return rc;
}

/* A Split by a known expression, then ByteLevel without one. */
static const char *split_name(const json_t *split, const json_t *bytes, bool whole_words)
{
    const char *pattern = hf_text(json_object_get(split, "pattern"), "Regex");
    const char *behavior = hf_text(split, "behavior");
    if (!hf_is_type(split, "Split") || !pattern || !behavior ||
        strcmp(behavior, "Isolated") != 0 || hf_is_true(split, "invert") ||
        !json_is_false(json_object_get(bytes, "use_regex")))
        return NULL;
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++)
        if (splits[i].whole_words == whole_words && strcmp(splits[i].pattern, pattern) == 0)
            return splits[i].pre;
    return NULL;
}

/* ByteLevel alone, which has GPT-2's expression; digits apart and then that; or a Split. */
static int read_pre(struct hf_model *m, const json_t *pre, bool whole_words, struct err *e)
{
    const json_t *list = json_object_get(pre, "pretokenizers");
    const json_t *first = json_array_get(list, 0), *bytes = pre;
    if (hf_is_type(pre, "Sequence") && json_array_size(list) == 2)
        bytes = json_array_get(list, 1);
    bool gpt2 = !whole_words && !json_is_false(json_object_get(bytes, "use_regex"));
    if (!hf_is_type(bytes, "ByteLevel"))
        return refuse_pre(pre, e);
    if (bytes == pre)
        m->pre = gpt2 ? gpt2_name(m) : NULL;
    else if (hf_is_type(first, "Digits") && hf_is_true(first, "individual_digits"))
        m->pre = gpt2 ? "starcoder" : NULL;
    else
        m->pre = split_name(first, bytes, whole_words);
    m->space_prefix = hf_is_true(bytes, "add_prefix_space");
    /* With an expression in front the space would be put before each of its words. */
    if (!m->pre || (m->space_prefix && bytes != pre))
        return refuse_pre(pre, e);
    return 0;
}

static int read_byte_bpe(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    const json_t *model = json_object_get(tokenizer, "model");
    int rc = read_nfc(m, json_object_get(tokenizer, "normalizer"), e);
    if (!rc)
        rc = read_pre(m, json_object_get(tokenizer, "pre_tokenizer"),
                      hf_is_true(model, "ignore_merges"), e);
    if (!rc)
        rc = hf_read_vocab(m, json_object_get(model, "vocab"), e);
    if (!rc)
        rc = need_all_bytes(json_object_get(model, "vocab"), e);
    return rc ? rc : read_merges(m, model, NULL, e);
}

/* --- SentencePiece's BPE --- */

static int compare_runs(const void *a, const void *b)
{
    const struct run *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

/* Tokens whose ranks overlap get one score; the earlier the ranks, the higher. */
static void score_runs(struct hf_model *m, struct run *runs)
{
    size_t n = 0;
    for (uint32_t t = 0; t < m->n_vocab; t++)
        if (runs[t].first <= runs[t].last)
            runs[n++] = runs[t];
    qsort(runs, n, sizeof *runs, compare_runs);
    uint32_t group = 0, last = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && runs[i].first > last)
            group++;
        if (i == 0 || runs[i].last > last)
            last = runs[i].last;
        m->scores[runs[i].token] = -(float)group;
    }
}

/* A plain added token is taken out of the text before anything is merged. Where merges make it
 * too (of spaces, which are U+2581 by then), theirs must come first, or a text could be cut in
 * another way. The first of SentencePiece's own pieces has the same score and may stand among
 * them. */
static int check_added_first(struct hf_model *m, const json_t *added, const struct run *runs,
                             struct err *e)
{
    const char *late = NULL;
    uint32_t last = 0, n_before = 0;
    size_t i;
    json_t *v;
    json_array_foreach(added, i, v)
    {
        json_int_t id = json_integer_value(json_object_get(v, "id"));
        if (hf_is_true(v, "special") || id < 0 || id >= m->n_vocab || !m->tokens[id])
            continue;
        m->types[id] = HF_TOKEN_USER_DEFINED;
        if (runs[id].first <= runs[id].last && runs[id].last >= last) {
            late = m->tokens[id];
            last = runs[id].last;
        }
    }
    for (uint32_t t = 0; t < m->n_vocab && late; t++)
        n_before += m->types[t] != HF_TOKEN_USER_DEFINED && runs[t].first <= runs[t].last &&
                    runs[t].last < last;
    if (n_before > 1)
        return err_set(
            e, KITH_EUNSUPPORTED,
            "tokenizer.json: the added token '%.64s' is also made by merge %u, behind "
            "those of %u other tokens; only one whose merges come first can be "
            "converted",
            late, last, n_before);
    return 0;
}

static int read_scored_merges(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    const json_t *model = json_object_get(tokenizer, "model");
    struct run *runs = mem_alloc_n(m->n_vocab, sizeof *runs);
    if (!runs)
        return err_set(e, KITH_ENOMEM, "out of memory for %u scores", m->n_vocab);
    for (uint32_t t = 0; t < m->n_vocab; t++)
        runs[t] = (struct run){t, 1, 0}; /* empty */
    int rc = read_merges(m, model, runs, e);
    if (!rc)
        rc = check_added_first(m, json_object_get(tokenizer, "added_tokens"), runs, e);
    if (!rc)
        score_runs(m, runs);
    mem_free(runs);
    return rc;
}

static bool is_replace_space(const json_t *v)
{
    const char *from = hf_text(json_object_get(v, "pattern"), "String");
    const char *to = hf_text(v, "content");
    return hf_is_type(v, "Replace") && from && strcmp(from, " ") == 0 && to &&
           strcmp(to, "\xe2\x96\x81") == 0;
}

/* A Split at spaces finds none: the normalizer has replaced them. */
static bool is_split_space(const json_t *v)
{
    const char *at = hf_text(json_object_get(v, "pattern"), "String");
    return hf_is_type(v, "Split") && at && strcmp(at, " ") == 0;
}

static int read_spm_bpe(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    const json_t *pre = json_object_get(tokenizer, "pre_tokenizer");
    if (!is_replace_space(json_object_get(tokenizer, "normalizer")) ||
        (pre && !json_is_null(pre) && !is_split_space(pre)))
        return err_set(
            e, KITH_EUNSUPPORTED,
            "tokenizer.json: with SentencePiece's BPE the normalizer must be a "
            "Replace of ' ' by U+2581, and the pre-tokenizer none or a Split at ' '");
    const json_t *model = json_object_get(tokenizer, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    int rc = hf_read_vocab(m, vocab, e);
    static const char digits[] = "0123456789ABCDEF";
    for (unsigned b = 0; b < N_BYTES && !rc; b++) {
        const char text[] = {'<', '0', 'x', digits[b >> 4], digits[b & 15], '>'};
        int64_t id = id_of(vocab, text, sizeof text);
        if (id < 0)
            rc = err_set(e, KITH_EUNSUPPORTED,
                         "tokenizer.json: byte_fallback is true, but there is no token "
                         "'<0x%02X>'",
                         b);
        else
            m->types[id] = HF_TOKEN_BYTE;
    }
    const char *unk = hf_text(model, "unk_token");
    if (!rc && (!unk || strcmp(unk, m->specials[HF_UNK].text) != 0))
        rc = err_set(e, KITH_EFORMAT, "tokenizer.json: the unk_token is '%.64s', not '%s'",
                     unk ? unk : "(none)", m->specials[HF_UNK].text);
    return rc ? rc : read_scored_merges(m, tokenizer, e);
}

/* --- both --- */

int hf_read_bpe(struct hf_model *m, const json_t *tokenizer, struct err *e)
{
    static const char *const none[] = {"dropout", "continuing_subword_prefix",
                                       "end_of_word_suffix"};
    const json_t *model = json_object_get(tokenizer, "model");
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        const json_t *v = json_object_get(model, none[i]);
        const char *text = json_string_value(v);
        bool empty = !v || json_is_null(v) || (text && !*text) ||
                     (json_is_number(v) && !(json_number_value(v) > 0));
        if (!empty)
            return err_set(e, KITH_EUNSUPPORTED,
                           "tokenizer.json: a BPE model with '%s' cannot be converted",
                           none[i]);
    }
    return m->tokenizer == HF_SPM_BPE ? read_spm_bpe(m, tokenizer, e)
                                      : read_byte_bpe(m, tokenizer, e);
}
