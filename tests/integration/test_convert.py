"""What kith-convert refuses, by name and with what would be right, and what it writes of a folder
beside tensors. Vectors are test_models.py's and test_xlmr.py's."""

import json
import struct

import models_tiny
import numpy as np
import pytest
from kithtest import run_program


def converted(tmp_path, name, change=None, *options):
    models_tiny.write_folder(name, tmp_path / "model", change)
    return run_program("kith-convert", tmp_path / "model", tmp_path / "out.gguf", *options)


def refused(tmp_path, name, change, *messages, options=()):
    done = converted(tmp_path, name, change, *options)
    assert done.returncode == 1, "was converted"
    for message in messages:
        assert message in done.stderr, done.stderr
    assert not (tmp_path / "out.gguf").exists()


def set_config(**values):
    return lambda parts: parts["config"].update(values)


def read_keys(path):
    """Every key of a GGUF file; arrays as lists."""
    data, at = path.read_bytes(), 24
    sizes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def number(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize(form)
        return value

    def text():
        nonlocal at
        n = number("Q")
        at += n
        return data[at - n:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner = number("I")
            return [value(inner) for _ in range(number("Q"))]
        return number(sizes[kind])

    assert data[:4] == b"GGUF"
    keys = {}
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        name = text()
        keys[name] = value(number("I"))
    return keys


@pytest.mark.parametrize("name,values,message", [
    ("bert", {"model_type": "mamba"}, "'model_type' is 'mamba'; 'bert', 'roberta', 'xlm-roberta', 'nomic_bert', "
                                      "'modernbert', 'gemma3_text' and 'qwen3' can be converted"),
    ("bert", {"hidden_act": "relu"}, "'hidden_act' is 'relu'; 'gelu' can be converted"),
    ("bert", {"position_embedding_type": "relative_key"}, "'position_embedding_type' is 'relative_key'"),
    ("bert", {"hidden_size": 0}, "'hidden_size' must be a count"),
    ("bert", {"num_attention_heads": 5}, "64 features do not divide into 5 heads"),
    ("bert-reranker", {"id2label": {"0": "a", "1": "b", "2": "c"}}, "the classifier has 3 labels"),
    ("nomic-bert", {"moe_every_n_layers": 2}, "a model with experts"),
    ("nomic-bert", {"qkv_proj_bias": True}, "'qkv_proj_bias' is true"),
    ("nomic-bert", {"activation_function": "geglu"}, "'activation_function' is 'geglu'; 'swiglu'"),
    ("nomic-bert", {"rotary_emb_fraction": 0.5}, "'rotary_emb_fraction' is 0.5"),
    ("jina-bert-v2", {"feed_forward_type": "reglu"}, "'feed_forward_type' is 'reglu'; 'geglu'"),
    ("modern-bert", {"norm_bias": True}, "'norm_bias' is true"),
    ("modern-bert", {"layer_types": ["sliding_attention"] * 4}, "layer 0 is 'sliding_attention'"),
    ("modern-bert", {"architectures": ["ModernBertForSequenceClassification"]}, "cross-encoders of BERT"),
    ("gemma-embedding", {"use_bidirectional_attention": False}, "only embedding models"),
    ("gemma-embedding", {"query_pre_attn_scalar": 256}, "'query_pre_attn_scalar' is 256; 32"),
    ("gemma-embedding", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "scaled by 8"),
    ("gemma-embedding", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is set"),
    ("gemma-embedding", {"matryoshka_dims": [32, 65]}, "a matryoshka dimension is 65, of a model of 64"),
    ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "the rope scaling is 'yarn'; 'default' and "
                                                                        "'linear'"),
    ("qwen3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6}}, "the rope scaling is 'longrope'"),
    ("qwen3", {"use_sliding_window": True}, "'use_sliding_window' is true"),
    ("qwen3", {"attention_bias": True}, "'attention_bias' is true"),
    ("qwen3", {"num_key_value_heads": 3}, "4 heads do not share 3"),
], ids=lambda v: next(iter(v)) if isinstance(v, dict) else None)
def test_refuses_a_config(name, values, message, tmp_path):
    refused(tmp_path, name, set_config(**values), "config.json", message)


def drop(tensor):
    return lambda parts: parts["tensors"].pop(tensor)


def add(tensor, *shape):
    return lambda parts: parts["tensors"].update({tensor: np.zeros(shape, np.float32)})


@pytest.mark.parametrize("name,change,message", [
    ("qwen3", drop("layers.1.mlp.up_proj.weight"), "no tensor 'layers.1.mlp.up_proj.weight' of [128, 64]"),
    ("modern-bert", drop("layers.2.attn_norm.weight"), "no tensor 'layers.2.attn_norm.weight' of [64]"),
    ("bert-reranker", drop("classifier.bias"), "no tensor 'classifier.bias' of [1]"),
    ("gemma-embedding", add("layers.0.self_attn.k_proj.weight", 64, 64),
     "has 2 dimensions, [64, 64]; [32, 64] is expected"),
    ("nomic-bert", add("encoder.layers.0.attn.Wqkv.weight", 3 * 64), "has 1 dimensions, [1, 192]; [192, 64]"),
    ("nomic-bert", add("encoder.layers.0.mlp.fc2.bias", 64), "'encoder.layers.0.mlp.fc2.bias' has no place"),
    ("bert", add("encoder.layer.2.output.dense.bias", 64), "no place in a bert model of 2 layers"),
    ("qwen3", add("layers.0.self_attn.q_proj.lora_A.weight", 8, 64), "and would be lost"),
], ids=["matrix", "norm", "head", "shape", "vector", "bias", "layer", "lora"])
def test_names_the_tensor(name, change, message, tmp_path):
    refused(tmp_path, name, change, message)


def test_heads_of_other_tasks_are_left_out(tmp_path):
    def change(parts):
        add("cls.predictions.transform.dense.weight", 64, 64)(parts)
        add("pooler.dense.weight", 64, 64)(parts)
        add("embeddings.position_ids", 1, 512)(parts)

    assert converted(tmp_path, "bert", change).returncode == 0


def in_tokenizer(*path, to):
    def change(parts):
        at = parts["tokenizer"]
        for step in path[:-1]:
            at = at[step]
        if to is None:
            at.pop(path[-1])
        else:
            at[path[-1]] = to

    return change


def plain_token(**flags):
    def change(parts):
        parts["tokenizer"]["added_tokens"].append(
            models_tiny.added("zzz", parts["config"]["vocab_size"] - 1, special=False, **flags))

    return change


def low_token(parts):
    """A plain added token that merges make behind others."""
    merge = parts["tokenizer"]["model"]["merges"][-1]
    text = "".join(merge)
    parts["tokenizer"]["added_tokens"].append(
        models_tiny.added(text, parts["tokenizer"]["model"]["vocab"][text], special=False))


@pytest.mark.parametrize("name,change,message", [
    ("qwen3", in_tokenizer("pre_tokenizer", "pretokenizers", 0, "pattern", to={"Regex": "\\w+"}),
     "is not known; those of gpt-2, starcoder, qwen2, llama-bpe, dbrx and gpt-4o"),
    ("roberta", in_tokenizer("pre_tokenizer", to={"type": "Whitespace"}), "the pre-tokenizer {\"type\":\"Whitespace\"}"),
    ("qwen3", in_tokenizer("model", "ignore_merges", to=True), "the pre-tokenizer"),
    ("qwen3", in_tokenizer("normalizer", to={"type": "Lowercase"}), "the normalizer 'Lowercase'"),
    ("qwen3", in_tokenizer("model", "merges", to=["a b c"]), "merge 0 is neither"),
    ("qwen3", in_tokenizer("model", "merges", to=[["q", "zzzz"]]), "merge 0, 'q' and 'zzzz', has a side"),
    ("qwen3", in_tokenizer("model", "vocab", "\u0100", to=None), "the byte 0x00 has no token"),
    ("qwen3", in_tokenizer("model", "end_of_word_suffix", to="</w>"), "'end_of_word_suffix'"),
    ("qwen3", in_tokenizer("model", "dropout", to=0.1), "'dropout'"),
    ("qwen3", plain_token(lstrip=True), "the added token 'zzz' takes spaces"),
    ("bert", in_tokenizer("model", "type", to="WordLevel"), "the model is 'WordLevel'"),
    ("bert", in_tokenizer("post_processor", "single", to=[{"Sequence": {"id": "A"}}]), "the template '[CLS] $A [SEP]'"),
    ("bert-reranker", in_tokenizer("post_processor", "pair", to=[]), "no template of two texts"),
    ("modern-bert", in_tokenizer("post_processor", to={"type": "Mystery"}), "the post-processor 'Mystery'"),
    ("gemma-embedding", in_tokenizer("normalizer", to=None), "a Replace of ' ' by U+2581"),
    ("gemma-embedding", in_tokenizer("model", "vocab", "<0x41>", to=None), "no token '<0x41>'"),
    ("gemma-embedding", low_token, "only one whose merges come first"),
], ids=["pattern", "pre", "whole-words", "normalizer", "three", "merge", "byte", "suffix", "dropout", "lstrip",
        "kind", "frame", "pair", "post", "space", "byte-token", "late-token"])
def test_refuses_what_it_would_not_tokenize_alike(name, change, message, tmp_path):
    refused(tmp_path, name, change, "tokenizer.json", message)


def in_json(file, **values):
    def change(parts):
        path = parts["folder"] / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def no_modules(parts):
    (parts["folder"] / "modules.json").unlink()


def more_modules(kind):
    def change(parts):
        path = parts["folder"] / "modules.json"
        path.write_text(json.dumps(json.loads(path.read_text())[:2] + [
            {"type": f"sentence_transformers.models.{kind}", "path": "3_" + kind}]))

    return change


@pytest.mark.parametrize("name,change,message", [
    ("bert", in_json("1_Pooling/config.json", pooling_mode_mean_tokens=True), "pooling can be converted, and one"),
    ("bert", in_json("1_Pooling/config.json", pooling_mode="max"), "mean, CLS or last-token pooling"),
    ("bert", in_json("1_Pooling/config.json", include_prompt=False), "'include_prompt' is false"),
    ("bert", more_modules("Dense"), "the Dense layer '3_Dense'"),
    ("bert", more_modules("LSTM"), "'LSTM' cannot be converted"),
    ("gemma-embedding", in_json("2_Dense/config.json", bias=True), "without bias, residual and activation"),
    ("gemma-embedding", in_json("2_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh"),
     "without bias, residual and activation"),
    ("gemma-embedding", in_json("3_Dense/config.json", in_features=32), "'in_features' is 32; 128 go into it"),
    ("gemma-embedding", in_json("3_Dense/config.json", out_features=32), "gives 32 features; only 64"),
    ("qwen3", no_modules, "--pooling last says that it is an embedding model"),
], ids=["two", "max", "prompt", "dense", "lstm", "bias", "activation", "in", "out", "no-modules"])
def test_refuses_modules(name, change, message, tmp_path):
    refused(tmp_path, name, change, message)


def test_pooling_must_fit_the_folder(tmp_path):
    refused(tmp_path, "bert", None, "another pooling", options=("--pooling", "mean"))
    refused(tmp_path, "nomic-bert", no_modules, "is no reranker", options=("--pooling", "rank"))
    done = run_program("kith-convert", tmp_path, tmp_path / "x", "--pooling", "max")
    assert done.returncode == 2 and "--pooling takes mean, cls, last or rank" in done.stderr


def test_a_shard_that_is_missing(tmp_path):
    models_tiny.write_folder("qwen3-reranker", tmp_path / "model")
    shard = next((tmp_path / "model").glob("model-00002-*"))
    shard.unlink()
    done = run_program("kith-convert", tmp_path / "model", tmp_path / "out.gguf", "--pooling", "rank")
    assert done.returncode == 1 and shard.name in done.stderr
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    done = run_program("kith-convert", tmp_path / "model", tmp_path / "out.gguf", "--pooling", "rank")
    assert done.returncode == 1 and "tensor 'a' is in no file of the folder" in done.stderr


def test_a_logit_score_names_the_answers(tmp_path):
    """A reranker as sentence-transformers stores it says itself what it is, and which tokens count."""
    def change(parts):
        models_tiny.write_json(parts["folder"] / "modules.json", [
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore", "path": "1_LogitScore"}])
        vocab = parts["tokenizer"]["model"]["vocab"]
        models_tiny.write_json(parts["folder"] / "1_LogitScore" / "config.json",
                               {"true_token_id": vocab["yes"], "false_token_id": vocab["no"]})

    assert converted(tmp_path, "qwen3-reranker", change).returncode == 0
    plain = run_program("kith-convert", tmp_path / "model", tmp_path / "other.gguf", "--pooling", "rank")
    assert plain.returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    (tmp_path / "model" / "1_LogitScore" / "config.json").write_text('{"true_token_id": 99999, "false_token_id": 1}')
    done = run_program("kith-convert", tmp_path / "model", tmp_path / "bad.gguf")
    assert done.returncode == 1 and "'true_token_id' is 99999" in done.stderr


@pytest.mark.parametrize("name,expected", [
    ("bert", {"bert.pooling_type": 2, "tokenizer.ggml.model": "bert", "bert.attention.causal": False}),
    ("roberta", {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "roberta-bpe", "bert.context_length": 512,
                 "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.normalizer.nfc": False}),
    ("roberta-reranker", {"bert.pooling_type": 4, "tokenizer.ggml.add_sep_token": True,
                          "bert.classifier.output_labels": ["LABEL_0"]}),
    ("bert-reranker", {"bert.pooling_type": 4, "tokenizer.ggml.add_sep_token": False}),
    ("nomic-bert", {"nomic-bert.context_length": 512, "nomic-bert.rope.freq_base": 1000.0,
                    "kith.prompt.query": "search_query: ", "kith.prompt.document": "search_document: "}),
    ("jina-bert-v2-qk", {"tokenizer.ggml.pre": "jina-v2-code", "general.architecture": "jina-bert-v2"}),
    ("modern-bert", {"modern-bert.attention.sliding_window": 16, "modern-bert.attention.sliding_window_pattern": 3,
                     "modern-bert.rope.freq_base": 160000.0, "modern-bert.rope.freq_base_swa": 10000.0,
                     "tokenizer.ggml.pre": "modern-bert", "tokenizer.ggml.normalizer.nfc": True}),
    ("gemma-embedding", {"gemma-embedding.attention.head_count_kv": 1, "gemma-embedding.attention.key_length": 32,
                         "gemma-embedding.attention.sliding_window_pattern": 6, "tokenizer.ggml.model": "llama",
                         "gemma-embedding.dense_2_feat_out": 128, "kith.matryoshka.dims": [32, 64],
                         "tokenizer.ggml.add_space_prefix": False, "kith.prompt.document": "title: none | text: "}),
    ("qwen3", {"qwen3.pooling_type": 3, "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": False,
               "tokenizer.ggml.add_eos_token": True, "qwen3.attention.causal": True, "kith.prompt.query": "Query:"}),
])
def test_keys(name, expected, tmp_path):
    assert converted(tmp_path, name).returncode == 0
    keys = read_keys(tmp_path / "out.gguf")
    assert {k: keys.get(k) for k in expected} == expected
    if name in ("bert", "qwen3"):
        assert "kith.prompt.document" not in keys and "kith.matryoshka.dims" not in keys
    n = len(keys["tokenizer.ggml.tokens"])
    assert len(keys["tokenizer.ggml.token_type"]) == n


def test_types_of_tokens(tmp_path):
    assert converted(tmp_path, "qwen3").returncode == 0
    keys = read_keys(tmp_path / "out.gguf")
    types = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]))
    assert types["<|im_start|>"] == 3 and types["<think>"] == 4 and types["yes"] == 1
    assert keys["tokenizer.ggml.token_type"][-models_tiny.UNUSED:] == [5] * models_tiny.UNUSED
    assert keys["tokenizer.ggml.tokens"][keys["tokenizer.ggml.eos_token_id"]] == "<|endoftext|>"


def test_scores_keep_the_order_of_merges(tmp_path):
    assert converted(tmp_path, "gemma-embedding").returncode == 0
    keys = read_keys(tmp_path / "out.gguf")
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]))
    made = [scores[m.replace(" ", "")] for m in keys["tokenizer.ggml.merges"]]
    assert len(made) > 500 and all(a >= b for a, b in zip(made, made[1:])) and made[0] == 0
    types = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]))
    assert types["<0x00>"] == 6 and types["<unk>"] == 2 and types["\u2581\u2581"] == 4
