#include "tools/hf_keys.h"

#include <stdio.h>
#include <string.h>

enum { KEY_BYTES = 96 };

/* A key of the architecture: "bert.block_count". */
static const char *key_of(const struct hf_model *m, const char *name, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%s.%s", m->arch, name);
    return key;
}

static void put_u32(struct gguf_write *w, const struct hf_model *m, const char *name,
                    uint32_t v)
{
    char key[KEY_BYTES];
    gguf_write_u32(w, key_of(m, name, key), v);
}

static void put_f32(struct gguf_write *w, const struct hf_model *m, const char *name, float v)
{
    char key[KEY_BYTES];
    gguf_write_f32(w, key_of(m, name, key), v);
}

/* --- the architecture --- */

static void write_attention(struct gguf_write *w, const struct hf_model *m)
{
    char key[KEY_BYTES];
    put_u32(w, m, "attention.head_count", m->n_heads);
    if (m->family == HF_GEMMA_EMBEDDING || m->family == HF_QWEN3) {
        put_u32(w, m, "attention.head_count_kv", m->n_kv_heads);
        put_u32(w, m, "attention.key_length", m->head_dim);
        put_u32(w, m, "attention.value_length", m->head_dim);
    }
    put_f32(w, m,
            m->rms_norm ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
            m->norm_eps);
    gguf_write_bool(w, key_of(m, "attention.causal", key), m->causal);
    if (m->window) {
        put_u32(w, m, "attention.sliding_window", m->window);
        put_u32(w, m, "attention.sliding_window_pattern", m->window_pattern);
    }
}

static void write_rope(struct gguf_write *w, const struct hf_model *m)
{
    char key[KEY_BYTES];
    if (m->rope_base > 0)
        put_f32(w, m, "rope.freq_base", m->rope_base);
    if (m->rope_base_local > 0)
        put_f32(w, m, "rope.freq_base_swa", m->rope_base_local);
    if (m->rope_factor > 1 || m->rope_factor < 1) {
        gguf_write_string(w, key_of(m, "rope.scaling.type", key), "linear");
        put_f32(w, m, "rope.scaling.factor", m->rope_factor);
    }
}

/* How Qwen3's rerankers are asked, as their model card has it, with its own instruction. */
static const char rerank_template[] =
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    "provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n"
    "<|im_start|>user\n"
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n"
    "<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n";

static void write_head(struct gguf_write *w, const struct hf_model *m)
{
    char key[KEY_BYTES];
    if (m->head == HF_HEAD_NONE)
        return;
    gguf_write_strings_begin(w);
    if (m->head == HF_HEAD_YES_NO) {
        gguf_write_strings_add(w, "yes", 3);
        gguf_write_strings_add(w, "no", 2);
    } else {
        gguf_write_strings_add(w, "LABEL_0", 7);
    }
    gguf_write_array_end(w, key_of(m, "classifier.output_labels", key));
}

static void write_dense(struct gguf_write *w, const struct hf_model *m)
{
    for (unsigned i = 0; i < m->n_dense; i++) {
        char name[32];
        snprintf(name, sizeof name, "dense_%u_feat_in", i + 2);
        put_u32(w, m, name, m->dense[i].in);
        snprintf(name, sizeof name, "dense_%u_feat_out", i + 2);
        put_u32(w, m, name, m->dense[i].out);
    }
}

static void write_general(struct gguf_write *w, const struct hf_model *m, const char *name,
                          enum tensor_type type)
{
    static const struct {
        enum tensor_type type;
        uint32_t file_type;
    } file_types[] = {{TENSOR_F32, 0}, {TENSOR_F16, 1}, {TENSOR_Q8_0, 7}};
    gguf_write_string(w, "general.architecture", m->arch);
    gguf_write_string(w, "general.type", "model");
    gguf_write_string(w, "general.name", name);
    for (size_t i = 0; i < sizeof file_types / sizeof *file_types; i++)
        if (file_types[i].type == type)
            gguf_write_u32(w, "general.file_type", file_types[i].file_type);
    gguf_write_u32(w, "general.quantization_version", 2);
    put_u32(w, m, "block_count", m->n_layers);
    put_u32(w, m, "context_length", m->n_ctx);
    put_u32(w, m, "embedding_length", m->n_embd);
    put_u32(w, m, "feed_forward_length", m->n_ff);
    write_attention(w, m);
    write_rope(w, m);
    if (m->pooling != HF_POOLING_UNKNOWN)
        put_u32(w, m, "pooling_type", (uint32_t)m->pooling);
    write_head(w, m);
    write_dense(w, m);
}

/* What sentence-transformers knows of a model and GGUF has no key for. */
static void write_own(struct gguf_write *w, const struct hf_model *m)
{
    if (m->query_prompt)
        gguf_write_string(w, "kith.prompt.query", m->query_prompt);
    if (m->document_prompt)
        gguf_write_string(w, "kith.prompt.document", m->document_prompt);
    if (m->n_matryoshka == 0)
        return;
    gguf_write_u32s_begin(w);
    for (unsigned i = 0; i < m->n_matryoshka; i++)
        gguf_write_u32s_add(w, m->matryoshka[i]);
    gguf_write_array_end(w, "kith.matryoshka.dims");
}

/* --- the tokenizer --- */

/* A WordPiece token's text as GGUF has it: word-initial ones after U+2581, continuations
 * without '##', bracketed ones as they are. */
static void add_wordpiece(struct gguf_write *w, const char *token)
{
    char marked[1024];
    size_t n = strlen(token);
    if (n > 2 && token[0] == '#' && token[1] == '#') {
        gguf_write_strings_add(w, token + 2, n - 2);
    } else if ((n > 1 && token[0] == '[' && token[n - 1] == ']') || n + 3 > sizeof marked) {
        gguf_write_strings_add(w, token, n);
    } else {
        memcpy(marked, "\xe2\x96\x81", 3);
        memcpy(marked + 3, token, n);
        gguf_write_strings_add(w, marked, n + 3);
    }
}

static void write_wordpiece(struct gguf_write *w, const struct hf_model *m)
{
    gguf_write_string(w, "tokenizer.ggml.model", "bert");
    gguf_write_string(w, "tokenizer.ggml.pre", "bert-bge");
    gguf_write_bool(w, "tokenizer.ggml.normalizer.lowercase", m->lower);
    gguf_write_bool(w, "tokenizer.ggml.normalizer.strip_accents", m->strip_accents);
}

static void write_scores(struct gguf_write *w, const struct hf_model *m)
{
    gguf_write_f32s_begin(w);
    for (uint32_t i = 0; i < m->n_vocab; i++)
        gguf_write_f32s_add(w, m->scores[i]);
    gguf_write_array_end(w, "tokenizer.ggml.scores");
}

static void write_unigram(struct gguf_write *w, const struct hf_model *m)
{
    gguf_write_string(w, "tokenizer.ggml.model", "t5");
    gguf_write_string(w, "tokenizer.ggml.pre", "default");
    gguf_write_bool(w, "tokenizer.ggml.add_space_prefix", m->space_prefix);
    gguf_write_bool(w, "tokenizer.ggml.remove_extra_whitespaces", m->merge_spaces);
    gguf_write_bool(w, "tokenizer.ggml.normalizer.outer_spaces", m->outer_spaces);
    if (m->charsmap_bytes)
        gguf_write_u8s(w, "tokenizer.ggml.precompiled_charsmap", m->charsmap,
                       m->charsmap_bytes);
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_write_bool(w, "tokenizer.ggml.add_eos_token", true);
    write_scores(w, m);
}

static void write_bpe(struct gguf_write *w, const struct hf_model *m)
{
    bool bytes = m->tokenizer == HF_BYTE_BPE;
    gguf_write_string(w, "tokenizer.ggml.model", bytes ? "gpt2" : "llama");
    gguf_write_string(w, "tokenizer.ggml.pre", bytes ? m->pre : "default");
    gguf_write_bool(w, "tokenizer.ggml.add_space_prefix", m->space_prefix);
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", m->add_bos);
    gguf_write_bool(w, "tokenizer.ggml.add_eos_token", m->add_eos);
    if (bytes)
        gguf_write_bool(w, "tokenizer.ggml.normalizer.nfc", m->nfc);
    else
        write_scores(w, m);
    gguf_write_strings_begin(w);
    for (size_t i = 0; i < m->n_merges; i++)
        gguf_write_strings_add(w, m->merges[i], strlen(m->merges[i]));
    gguf_write_array_end(w, "tokenizer.ggml.merges");
}

static void write_tokens(struct gguf_write *w, const struct hf_model *m)
{
    gguf_write_strings_begin(w);
    for (uint32_t i = 0; i < m->n_vocab; i++) {
        char unused[32];
        snprintf(unused, sizeof unused, "[PAD%u]", i);
        const char *token = m->tokens[i] ? m->tokens[i] : unused;
        if (m->tokenizer == HF_WORDPIECE)
            add_wordpiece(w, token);
        else
            gguf_write_strings_add(w, token, strlen(token));
    }
    gguf_write_array_end(w, "tokenizer.ggml.tokens");
    gguf_write_i32s_begin(w);
    for (uint32_t i = 0; i < m->n_vocab; i++)
        gguf_write_i32s_add(w, m->types[i]);
    gguf_write_array_end(w, "tokenizer.ggml.token_type");
}

static void write_tokenizer(struct gguf_write *w, const struct hf_model *m)
{
    if (m->n_types)
        gguf_write_u32(w, "tokenizer.ggml.token_type_count", m->n_types);
    if (m->tokenizer == HF_WORDPIECE)
        write_wordpiece(w, m);
    else if (m->tokenizer == HF_UNIGRAM)
        write_unigram(w, m);
    else
        write_bpe(w, m);
    if (m->head == HF_HEAD_POOLER || m->head == HF_HEAD_CLASSIFIER)
        gguf_write_bool(w, "tokenizer.ggml.add_sep_token", m->add_sep);
    if (m->head == HF_HEAD_YES_NO)
        gguf_write_string(w, "tokenizer.chat_template.rerank", rerank_template);
    write_tokens(w, m);
    for (int i = 0; i < HF_N_SPECIALS; i++)
        if (m->specials[i].id >= 0)
            gguf_write_u32(w, m->specials[i].key, (uint32_t)m->specials[i].id);
}

void hf_keys_write(struct gguf_write *w, const struct hf_model *m, const char *name,
                   enum tensor_type type)
{
    write_general(w, m, name, type);
    write_own(w, m);
    write_tokenizer(w, m);
}
