#pragma once
/* A small BERT model as a GGUF file in memory, for tests that need a whole one and for the
 * fuzzers' seeds: one layer, a few dozen tokens, weights from a fixed seed. Tests change single
 * parts of it to see that the change is refused. */

#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/random.h"
#include "engine/gguf.h"
#include "engine/tensor.h"

struct fixture {
    struct buf keys, infos, data;
    uint64_t n_keys, n_tensors;
    uint32_t version;
    struct rng rng;
};

struct fixture_shape {
    uint32_t n_embd, n_heads, n_ff, n_ctx, n_layers;
};

static const char *const fixture_tokens[] = {
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "\xe2\x96\x81the",
    "\xe2\x96\x81token",
    "ization",
    "s",
    "\xe2\x96\x81vector",
    "\xe2\x96\x81is",
    "\xe2\x96\x81"
    "e",
    "\xe2\x96\x81.",
    "\xe2\x96\x81,",
    "\xe2\x96\x81[",
    "\xe2\x96\x81]",
    "\xe2\x96\x81"
    "cls",
    "\xe2\x96\x81\xe4\xb8\xad",
    "\xe2\x96\x81"
    "a",
    "b",
    "c",
    "\xe2\x96\x81"
    "ab",
};
enum { FIXTURE_N_TOKENS = sizeof fixture_tokens / sizeof *fixture_tokens };

static inline void fixture_init(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    f->version = 3;
    rng_seed(&f->rng, 1);
}

static inline void fixture_deinit(struct fixture *f)
{
    buf_deinit(&f->keys);
    buf_deinit(&f->infos);
    buf_deinit(&f->data);
}

static inline void fixture_text(struct buf *b, const char *s)
{
    buf_u64(b, strlen(s));
    buf_append(b, s, strlen(s));
}

static inline void fixture_key(struct fixture *f, const char *key, uint32_t type)
{
    fixture_text(&f->keys, key);
    buf_u32(&f->keys, type);
    f->n_keys++;
}

static inline void fixture_u32(struct fixture *f, const char *key, uint32_t v)
{
    fixture_key(f, key, GGUF_U32);
    buf_u32(&f->keys, v);
}

static inline void fixture_f32(struct fixture *f, const char *key, float v)
{
    fixture_key(f, key, GGUF_F32);
    buf_f32(&f->keys, v);
}

static inline void fixture_string(struct fixture *f, const char *key, const char *v)
{
    fixture_key(f, key, GGUF_STRING);
    fixture_text(&f->keys, v);
}

static inline void fixture_strings(struct fixture *f, const char *key, const char *const *v,
                                   size_t n)
{
    fixture_key(f, key, GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_STRING);
    buf_u64(&f->keys, n);
    for (size_t i = 0; i < n; i++)
        fixture_text(&f->keys, v[i]);
}

/* Values in [-0.5, 0.5); F32 or Q8_0. ne1 0 means a vector. */
static inline void fixture_tensor(struct fixture *f, const char *name, enum tensor_type type,
                                  uint64_t ne0, uint64_t ne1)
{
    fixture_text(&f->infos, name);
    buf_u32(&f->infos, ne1 ? 2 : 1);
    buf_u64(&f->infos, ne0);
    if (ne1)
        buf_u64(&f->infos, ne1);
    buf_u32(&f->infos, (uint32_t)type);
    buf_u64(&f->infos, f->data.len);
    f->n_tensors++;
    uint64_t n = ne0 * (ne1 ? ne1 : 1);
    for (uint64_t i = 0; i < n; i++) {
        if (type == TENSOR_F32) {
            buf_f32(&f->data, (float)rng_unit(&f->rng) - 0.5f);
            continue;
        }
        if (i % 32 == 0) {
            buf_u8(&f->data, 0x04); /* the half 0x1c04, about 0.0039 */
            buf_u8(&f->data, 0x1c);
        }
        buf_u8(&f->data, (uint8_t)rng_below(&f->rng, 255));
    }
    while (f->data.len % 32)
        buf_u8(&f->data, 0);
}

static inline void fixture_finish(struct fixture *f, struct buf *out)
{
    buf_append(out, "GGUF", 4);
    buf_u32(out, f->version);
    buf_u64(out, f->n_tensors);
    buf_u64(out, f->n_keys);
    buf_append(out, f->keys.data, f->keys.len);
    buf_append(out, f->infos.data, f->infos.len);
    while (out->len % 32)
        buf_u8(out, 0);
    buf_append(out, f->data.data, f->data.len);
}

static inline void fixture_bert_keys(struct fixture *f, const struct fixture_shape *s)
{
    fixture_string(f, "general.architecture", "bert");
    fixture_string(f, "general.name", "fixture");
    fixture_u32(f, "bert.block_count", s->n_layers);
    fixture_u32(f, "bert.embedding_length", s->n_embd);
    fixture_u32(f, "bert.attention.head_count", s->n_heads);
    fixture_u32(f, "bert.feed_forward_length", s->n_ff);
    fixture_u32(f, "bert.context_length", s->n_ctx);
    fixture_f32(f, "bert.attention.layer_norm_epsilon", 1e-12f);
    fixture_u32(f, "bert.pooling_type", 1);
}

static inline void fixture_model_keys(struct fixture *f, const struct fixture_shape *s)
{
    fixture_bert_keys(f, s);
    fixture_string(f, "tokenizer.ggml.model", "bert");
    fixture_strings(f, "tokenizer.ggml.tokens", fixture_tokens, FIXTURE_N_TOKENS);
    fixture_key(f, "tokenizer.ggml.token_type", GGUF_ARRAY);
    buf_u32(&f->keys, GGUF_I32);
    buf_u64(&f->keys, FIXTURE_N_TOKENS);
    for (uint32_t i = 0; i < FIXTURE_N_TOKENS; i++)
        buf_u32(&f->keys, i < 5 ? 3 : 1);
    fixture_u32(f, "tokenizer.ggml.unknown_token_id", 1);
    fixture_u32(f, "tokenizer.ggml.cls_token_id", 2);
    fixture_u32(f, "tokenizer.ggml.seperator_token_id", 3);
}

static inline void fixture_model_tensors(struct fixture *f, const struct fixture_shape *s,
                                         enum tensor_type type)
{
    static const struct {
        const char *name;
        bool in_ff, rows, rows_ff;
    } parts[] = {
        {"attn_q.weight", false, true, false},
        {"attn_q.bias", false, false, false},
        {"attn_k.weight", false, true, false},
        {"attn_k.bias", false, false, false},
        {"attn_v.weight", false, true, false},
        {"attn_v.bias", false, false, false},
        {"attn_output.weight", false, true, false},
        {"attn_output.bias", false, false, false},
        {"attn_output_norm.weight", false, false, false},
        {"attn_output_norm.bias", false, false, false},
        {"ffn_up.weight", false, true, true},
        {"ffn_up.bias", true, false, false},
        {"ffn_down.weight", true, true, false},
        {"ffn_down.bias", false, false, false},
        {"layer_output_norm.weight", false, false, false},
        {"layer_output_norm.bias", false, false, false},
    };
    fixture_tensor(f, "token_embd.weight", type, s->n_embd, FIXTURE_N_TOKENS);
    fixture_tensor(f, "position_embd.weight", TENSOR_F32, s->n_embd, s->n_ctx);
    fixture_tensor(f, "token_types.weight", TENSOR_F32, s->n_embd, 2);
    fixture_tensor(f, "token_embd_norm.weight", TENSOR_F32, s->n_embd, 0);
    fixture_tensor(f, "token_embd_norm.bias", TENSOR_F32, s->n_embd, 0);
    for (uint32_t l = 0; l < s->n_layers; l++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%u.%s", l, parts[i].name);
            fixture_tensor(f, name, parts[i].rows ? type : TENSOR_F32,
                           parts[i].in_ff ? s->n_ff : s->n_embd,
                           !parts[i].rows     ? 0
                           : parts[i].rows_ff ? s->n_ff
                                              : s->n_embd);
        }
}

static inline void fixture_model(struct buf *out, const struct fixture_shape *s,
                                 enum tensor_type type)
{
    struct fixture f;
    fixture_init(&f);
    fixture_model_keys(&f, s);
    fixture_model_tensors(&f, s, type);
    fixture_finish(&f, out);
    fixture_deinit(&f);
}
