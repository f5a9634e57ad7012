"""Tiny models of every architecture as Hugging Face folders: one as each family is published, with
its own names of keys and tensors, a tokenizer of its kind, and weights from a fixed seed.

What transformers computes of them is recorded in tests/golden/models (tools/golden_models.py), so
the tests need neither it nor torch. Nothing here knows how a model is computed.
"""

import json
import lzma
import math
import pathlib
import struct

import numpy as np
import xlmr_tiny

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models"
WIDTH, HEAD, INNER, CONTEXT, WINDOW = 64, 32, 128, 512, 16
SHARP = 3.0  # of attention: with less all texts give nearly the same vector
UNUSED = 8  # ids past the last token, as padded vocabularies have them

NFC = {"type": "NFC"}
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def golden_json(name):
    return json.loads(lzma.decompress((GOLDEN / name).read_bytes()))


def golden(name):
    """ids, offsets (text i is ids[offsets[i]:offsets[i + 1]]) and vectors or scores of a model."""
    return np.load(GOLDEN / f"{name}.npz")


def texts():
    return golden_json("texts.json.xz")["texts"]


def pairs():
    return golden_json("texts.json.xz")["pairs"]


# --- tokenizers ---------------------------------------------------------------------------------


def added(text, token_id, special=True, **more):
    return {"id": token_id, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special, **more}


def template(single, pair, **ids):
    """ "[CLS] $A [SEP]" as TemplateProcessing has it."""
    def items(words):
        kind, out = 0, []
        for word in words.split():
            kind = 1 if word == "$B" else kind
            name = {"$A": "A", "$B": "B"}.get(word)
            out.append({"Sequence": {"id": name, "type_id": kind}} if name
                       else {"SpecialToken": {"id": word, "type_id": kind}})
        return out

    return {"type": "TemplateProcessing", "single": items(single), "pair": items(pair),
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()}}


def wordpiece():
    tokens = golden_json("wordpiece.json.xz")
    ids = {t: i for i, t in enumerate(tokens)}
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(t, ids[t]) for t in specials],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]",
                                   **{"[CLS]": ids["[CLS]"], "[SEP]": ids["[SEP]"]}),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids}}


def byte_bpe(first, last, normalizer, pre_tokenizer, post_processor, pairs_of_merges=False):
    """Byte-level BPE: special tokens before and (with whether they are special) behind the trained ones."""
    trained = golden_json("bpe.json.xz")
    tokens = [*first, *trained["tokens"], *(t for t, _ in last)]
    ids = {t: i for i, t in enumerate(tokens)}
    merges = [m.split(" ") for m in trained["merges"]] if pairs_of_merges else trained["merges"]
    plain = {t for t, special in last if not special}
    model_vocab = {t: i for t, i in ids.items() if t in first or t in trained["tokens"]}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(t, ids[t], special=t not in plain) for t in [*first, *(t for t, _ in last)]],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor(ids),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
                  "vocab": model_vocab, "merges": merges}}


def byte_level(**more):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **more}


def roberta():
    return byte_bpe(
        ["<s>", "<pad>", "</s>", "<unk>"], [("<mask>", True)], None, byte_level(),
        lambda ids: {"type": "RobertaProcessing", "sep": ["</s>", ids["</s>"]], "cls": ["<s>", ids["<s>"]],
                     "trim_offsets": True, "add_prefix_space": False})


def modern():
    last = [("[UNK]", True), ("[CLS]", True), ("[SEP]", True), ("[PAD]", True), ("[MASK]", True),
            ("|||IP_ADDRESS|||", False), ("   ", False)]
    return byte_bpe(
        [], last, NFC, byte_level(),
        lambda ids: template("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]",
                             **{"[CLS]": ids["[CLS]"], "[SEP]": ids["[SEP]"]}), pairs_of_merges=True)


def qwen(ends):
    """ends: <|endoftext|> is put behind a text."""
    last = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
            ("<think>", False), ("</think>", False)]
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}

    def processor(ids):
        bytes_only = byte_level(trim_offsets=False, use_regex=False)
        if not ends:
            return bytes_only
        end = "<|endoftext|>"
        return {"type": "Sequence", "processors": [
            bytes_only, template(f"$A {end}", f"$A {end} $B {end}", **{end: ids[end]})]}

    return byte_bpe([], last, NFC, {"type": "Sequence", "pretokenizers": [
        split, byte_level(trim_offsets=False, use_regex=False)]}, processor, pairs_of_merges=not ends)


def gemma():
    """SentencePiece's BPE: every cut of each piece into two is a merge, the best piece's first."""
    pieces = golden_json("spm.json.xz")
    first = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    ids = {t: i for i, t in enumerate([*first, *pieces])}
    merges = []
    for piece in pieces:
        merges += [[piece[:at], piece[at:]] for at in range(1, len(piece))
                   if piece[:at] in ids and piece[at:] in ids]
    plain = [t for t in pieces if t in ("\n\n", "\u2581\u2581")]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(t, ids[t]) for t in first[:4]] + [added(t, ids[t], special=False) for t in plain],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                          "invert": False},
        "post_processor": template("<bos> $A <eos>", "<bos> $A <eos> $B <eos>",
                                   **{"<bos>": ids["<bos>"], "<eos>": ids["<eos>"]}),
        "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                  "vocab": ids, "merges": merges}}


def n_tokens(tokenizer):
    """One more than the largest id."""
    vocab = tokenizer["model"]["vocab"]
    largest = len(vocab) - 1 if isinstance(vocab, list) else max(vocab.values())
    return 1 + max([largest, *(t["id"] for t in tokenizer["added_tokens"])])


# --- weights ------------------------------------------------------------------------------------


class Weights(dict):
    """Tensors by their Hugging Face names, float32, from raw bits of a fixed generator."""

    def __init__(self, seed):
        self.bits = np.random.PCG64(seed)

    def uniform(self, name, *shape, scale=1.0, around=0.0):
        raw = self.bits.random_raw(math.prod(shape)) >> np.uint64(40)
        values = raw.astype(np.float32) / np.float32(1 << 23) - 1
        self[name] = (np.float32(around) + values * np.float32(scale)).reshape(shape)

    def linear(self, name, n_in, n_out, bias=True, scale=2.0):
        self.uniform(f"{name}.weight", n_out, n_in, scale=scale / math.sqrt(n_in))
        if bias:
            self.uniform(f"{name}.bias", n_out, scale=0.05)

    def norm(self, name, width=WIDTH, bias=True, around=1.0):
        self.uniform(f"{name}.weight", width, scale=0.2, around=around)
        if bias:
            self.uniform(f"{name}.bias", width, scale=0.05)


def bert_weights(seed, n_vocab, n_positions, n_types, prefix="", layers=2, head=None):
    w = Weights(seed)
    w.uniform(f"{prefix}embeddings.word_embeddings.weight", n_vocab, WIDTH)
    w.uniform(f"{prefix}embeddings.position_embeddings.weight", n_positions, WIDTH, scale=0.5)
    w.uniform(f"{prefix}embeddings.token_type_embeddings.weight", n_types, WIDTH, scale=0.3)
    w.norm(f"{prefix}embeddings.LayerNorm")
    for i in range(layers):
        base = f"{prefix}encoder.layer.{i}"
        for part in ("query", "key", "value"):
            w.linear(f"{base}.attention.self.{part}", WIDTH, WIDTH, scale=SHARP)
        w.linear(f"{base}.attention.output.dense", WIDTH, WIDTH, scale=SHARP)
        w.norm(f"{base}.attention.output.LayerNorm")
        w.linear(f"{base}.intermediate.dense", WIDTH, INNER)
        w.linear(f"{base}.output.dense", INNER, WIDTH)
        w.norm(f"{base}.output.LayerNorm")
    if head == "pooler":
        w.linear("bert.pooler.dense", WIDTH, WIDTH)
        w.linear("classifier", WIDTH, 1, scale=4)
    if head == "classifier":
        w.linear("classifier.dense", WIDTH, WIDTH)
        w.linear("classifier.out_proj", WIDTH, 1, scale=4)
    return w


def nomic_weights(seed, n_vocab):
    w = Weights(seed)
    w.uniform("embeddings.word_embeddings.weight", n_vocab, WIDTH)
    w.uniform("embeddings.token_type_embeddings.weight", 2, WIDTH, scale=0.3)
    w.norm("emb_ln")
    for i in range(2):
        base = f"encoder.layers.{i}"
        w.linear(f"{base}.attn.Wqkv", WIDTH, 3 * WIDTH, bias=False, scale=SHARP)
        w.linear(f"{base}.attn.out_proj", WIDTH, WIDTH, bias=False, scale=SHARP)
        w.linear(f"{base}.mlp.fc11", WIDTH, INNER, bias=False)
        w.linear(f"{base}.mlp.fc12", WIDTH, INNER, bias=False)
        w.linear(f"{base}.mlp.fc2", INNER, WIDTH, bias=False)
        w.norm(f"{base}.norm1")
        w.norm(f"{base}.norm2")
    return w


def jina_weights(seed, n_vocab, qk_norm):
    w = Weights(seed)
    w.uniform("embeddings.word_embeddings.weight", n_vocab, WIDTH)
    w.uniform("embeddings.token_type_embeddings.weight", 2, WIDTH, scale=0.3)
    w.norm("embeddings.LayerNorm")
    for i in range(2):
        base = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            w.linear(f"{base}.attention.self.{part}", WIDTH, WIDTH, scale=SHARP)
        w.linear(f"{base}.attention.output.dense", WIDTH, WIDTH, scale=SHARP)
        w.norm(f"{base}.attention.output.LayerNorm")
        if qk_norm:
            w.norm(f"{base}.attention.self.layer_norm_q")
            w.norm(f"{base}.attention.self.layer_norm_k")
            w.norm(f"{base}.layer_norm_1")
            w.linear(f"{base}.mlp.up_gated_layer", WIDTH, 2 * INNER, bias=False)
            w.linear(f"{base}.mlp.down_layer", INNER, WIDTH)
            w.norm(f"{base}.layer_norm_2")
        else:
            w.linear(f"{base}.mlp.gated_layers", WIDTH, 2 * INNER, bias=False)
            w.linear(f"{base}.mlp.wo", INNER, WIDTH)
            w.norm(f"{base}.mlp.layernorm")
    return w


def modern_weights(seed, n_vocab, layers=4):
    w = Weights(seed)
    w.uniform("embeddings.tok_embeddings.weight", n_vocab, WIDTH)
    w.norm("embeddings.norm", bias=False)
    for i in range(layers):
        if i:
            w.norm(f"layers.{i}.attn_norm", bias=False)
        w.linear(f"layers.{i}.attn.Wqkv", WIDTH, 3 * WIDTH, bias=False)
        w.linear(f"layers.{i}.attn.Wo", WIDTH, WIDTH, bias=False)
        w.norm(f"layers.{i}.mlp_norm", bias=False)
        w.linear(f"layers.{i}.mlp.Wi", WIDTH, 2 * INNER, bias=False)
        w.linear(f"layers.{i}.mlp.Wo", INNER, WIDTH, bias=False)
    w.norm("final_norm", bias=False)
    return w


def decoder_weights(seed, n_vocab, layers, heads, kv_heads, gemma_norms=False, prefix=""):
    w = Weights(seed)
    around = 0.0 if gemma_norms else 1.0
    scale = 1 / math.sqrt(WIDTH) if gemma_norms else 1.0  # Gemma multiplies it by sqrt(width)
    w.uniform(f"{prefix}embed_tokens.weight", n_vocab, WIDTH, scale=scale)
    for i in range(layers):
        base = f"{prefix}layers.{i}"
        w.linear(f"{base}.self_attn.q_proj", WIDTH, heads * HEAD, bias=False, scale=SHARP)
        w.linear(f"{base}.self_attn.k_proj", WIDTH, kv_heads * HEAD, bias=False, scale=SHARP)
        w.linear(f"{base}.self_attn.v_proj", WIDTH, kv_heads * HEAD, bias=False, scale=SHARP)
        w.linear(f"{base}.self_attn.o_proj", heads * HEAD, WIDTH, bias=False, scale=SHARP)
        w.norm(f"{base}.self_attn.q_norm", HEAD, bias=False, around=around)
        w.norm(f"{base}.self_attn.k_norm", HEAD, bias=False, around=around)
        w.linear(f"{base}.mlp.gate_proj", WIDTH, INNER, bias=False)
        w.linear(f"{base}.mlp.up_proj", WIDTH, INNER, bias=False)
        w.linear(f"{base}.mlp.down_proj", INNER, WIDTH, bias=False)
        w.norm(f"{base}.input_layernorm", bias=False, around=around)
        w.norm(f"{base}.post_attention_layernorm", bias=False, around=around)
        if gemma_norms:
            w.norm(f"{base}.pre_feedforward_layernorm", bias=False, around=around)
            w.norm(f"{base}.post_feedforward_layernorm", bias=False, around=around)
    w.norm(f"{prefix}norm", bias=False, around=around)
    return w


# --- folders ------------------------------------------------------------------------------------


def write_safetensors(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    header, at, blobs = {}, 0, []
    for name, array in tensors.items():
        data = array.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        blobs.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_shards(folder, tensors, n=3):
    names = list(tensors)
    where = {name: f"model-{i * n // len(names) + 1:05}-of-{n:05}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(where.values())):
        write_safetensors(folder / shard, {k: v for k, v in tensors.items() if where[k] == shard})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def write_modules(folder, pooling, dense=()):
    """modules.json and what it names; dense: (in, out) of each layer."""
    st = "sentence_transformers.models."
    modules = [{"type": st + "Transformer", "path": ""}, {"type": st + "Pooling", "path": "1_Pooling"}]
    modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    write_json(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": WIDTH, "include_prompt": True,
        **{f"pooling_mode_{m}": m == modes[pooling] for m in modes.values()}})
    w = Weights(99)
    for i, (n_in, n_out) in enumerate(dense, 2):
        w.clear()
        w.linear("linear", n_in, n_out, bias=False)
        write_safetensors(folder / f"{i}_Dense" / "model.safetensors", w)
        write_json(folder / f"{i}_Dense" / "config.json", {
            "in_features": n_in, "out_features": n_out, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity"})
        modules.append({"type": st + "Dense", "path": f"{i}_Dense"})
    n = len(modules)
    modules.append({"type": st + "Normalize", "path": f"{n}_Normalize"})
    write_json(folder / "modules.json", [{"idx": i, "name": str(i), **m} for i, m in enumerate(modules)])


def bert_config(model_type, architecture, n_vocab, n_positions, n_types, eps=1e-12, **more):
    return {"model_type": model_type, "architectures": [architecture], "hidden_act": "gelu",
            "position_embedding_type": "absolute", "num_hidden_layers": 2, "hidden_size": WIDTH,
            "num_attention_heads": WIDTH // HEAD, "intermediate_size": INNER,
            "max_position_embeddings": n_positions, "vocab_size": n_vocab, "type_vocab_size": n_types,
            "layer_norm_eps": eps, **more}


ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def bert(folder):
    tokenizer = wordpiece()
    n = n_tokens(tokenizer)
    write_modules(folder, "cls")
    return tokenizer, bert_config("bert", "BertModel", n, CONTEXT, 2), bert_weights(211, n, CONTEXT, 2)


def bert_reranker(folder):
    tokenizer = wordpiece()
    n = n_tokens(tokenizer)
    config = bert_config("bert", "BertForSequenceClassification", n, CONTEXT, 2, **ONE_LABEL)
    return tokenizer, config, bert_weights(12, n, CONTEXT, 2, "bert.", head="pooler")


def roberta_model(folder):
    tokenizer = roberta()
    n = n_tokens(tokenizer)
    write_modules(folder, "mean")
    config = bert_config("roberta", "RobertaModel", n, CONTEXT + 2, 1, 1e-5, pad_token_id=1)
    return tokenizer, config, bert_weights(413, n, CONTEXT + 2, 1)


def roberta_reranker(folder):
    tokenizer = roberta()
    n = n_tokens(tokenizer)
    config = bert_config("roberta", "RobertaForSequenceClassification", n, CONTEXT + 2, 1, 1e-5,
                         pad_token_id=1, **ONE_LABEL)
    return tokenizer, config, bert_weights(14, n, CONTEXT + 2, 1, "roberta.", head="classifier")


def xlmr_reranker(folder):
    tokenizer = xlmr_tiny.tokenizer_json()
    n = n_tokens(tokenizer)
    config = bert_config("xlm-roberta", "XLMRobertaForSequenceClassification", n, CONTEXT + 2, 1, 1e-5,
                         pad_token_id=1, **ONE_LABEL)
    return tokenizer, config, bert_weights(15, n, CONTEXT + 2, 1, "roberta.", head="classifier")


def nomic(folder):
    tokenizer = wordpiece()
    n = n_tokens(tokenizer) + UNUSED
    write_modules(folder, "mean")
    write_json(folder / "config_sentence_transformers.json", {"prompts": {
        "query": "search_query: ", "document": "search_document: ", "clustering": "clustering: "}})
    config = {"model_type": "nomic_bert", "architectures": ["NomicBertModel"], "n_embd": WIDTH, "n_layer": 2,
              "n_head": WIDTH // HEAD, "n_inner": INNER, "n_positions": 4 * CONTEXT,
              "max_trained_positions": CONTEXT, "vocab_size": n, "type_vocab_size": 2,
              "layer_norm_epsilon": 1e-12, "activation_function": "swiglu", "qkv_proj_bias": False,
              "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False, "causal": False,
              "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
              "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "use_rms_norm": False}
    return tokenizer, config, nomic_weights(16, n)


def jina(folder, qk_norm=False):
    tokenizer = roberta() if qk_norm else wordpiece()
    n = n_tokens(tokenizer)
    write_modules(folder, "mean")
    config = bert_config("bert", "JinaBertForMaskedLM", n, CONTEXT, 2)
    config.update(position_embedding_type="alibi", feed_forward_type="geglu", emb_pooler="mean")
    return tokenizer, config, jina_weights(17 + qk_norm, n, qk_norm)


def jina_qk(folder):
    return jina(folder, qk_norm=True)


def modernbert(folder):
    tokenizer = modern()
    n = n_tokens(tokenizer)
    write_modules(folder, "cls")
    config = {"model_type": "modernbert", "architectures": ["ModernBertModel"], "hidden_size": WIDTH,
              "intermediate_size": INNER, "num_hidden_layers": 4, "num_attention_heads": WIDTH // HEAD,
              "hidden_activation": "gelu", "max_position_embeddings": CONTEXT, "vocab_size": n,
              "norm_eps": 1e-5, "norm_bias": False, "attention_bias": False, "mlp_bias": False,
              "global_attn_every_n_layers": 3, "local_attention": WINDOW, "global_rope_theta": 160000.0,
              "local_rope_theta": 10000.0, "position_embedding_type": "absolute", "pad_token_id": n - 4,
              "cls_token_id": n - 6, "sep_token_id": n - 5, "bos_token_id": n - 6, "eos_token_id": n - 5}
    return tokenizer, config, modern_weights(19, n)


def gemma_embedding(folder):
    tokenizer = gemma()
    n = n_tokens(tokenizer)
    write_modules(folder, "mean", dense=[(WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH)])
    write_json(folder / "config_sentence_transformers.json", {"prompts": {
        "query": "task: search result | query: ", "document": "title: none | text: "}})
    config = {"model_type": "gemma3_text", "architectures": ["Gemma3TextModel"], "hidden_size": WIDTH,
              "intermediate_size": INNER, "num_hidden_layers": 7, "num_attention_heads": 4,
              "num_key_value_heads": 1, "head_dim": HEAD, "hidden_activation": "gelu_pytorch_tanh",
              "max_position_embeddings": CONTEXT, "vocab_size": n, "rms_norm_eps": 1e-6,
              "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None,
              "attention_bias": False, "query_pre_attn_scalar": HEAD, "sliding_window": WINDOW,
              "_sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None,
              "use_bidirectional_attention": True, "matryoshka_dims": [32, 64], "pad_token_id": 0,
              "bos_token_id": 2, "eos_token_id": 1,
              "layer_types": [("full" if i == 5 else "sliding") + "_attention" for i in range(7)]}
    return tokenizer, config, decoder_weights(20, n, 7, 4, 1, gemma_norms=True)


def qwen3_config(n, **more):
    return {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": WIDTH,
            "intermediate_size": INNER, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": HEAD, "hidden_act": "silu",
            "max_position_embeddings": 2 * CONTEXT, "vocab_size": n, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000, "rope_scaling": None, "attention_bias": False, "sliding_window": None,
            "use_sliding_window": False, "tie_word_embeddings": True, **more}


def qwen3(folder):
    tokenizer = qwen(ends=True)
    n = n_tokens(tokenizer) + UNUSED
    write_modules(folder, "last")
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "Query:", "document": ""}})
    return tokenizer, qwen3_config(n), decoder_weights(21, n, 3, 4, 2)


def qwen3_reranker(folder):
    tokenizer = qwen(ends=False)
    n = n_tokens(tokenizer) + UNUSED
    w = decoder_weights(22, n, 3, 4, 2, prefix="model.")
    w.uniform("lm_head.weight", n, WIDTH, scale=0.5)
    return tokenizer, qwen3_config(n, tie_word_embeddings=False), w


EMBEDDERS = {"bert": bert, "roberta": roberta_model, "nomic-bert": nomic, "jina-bert-v2": jina,
             "jina-bert-v2-qk": jina_qk, "modern-bert": modernbert, "gemma-embedding": gemma_embedding,
             "qwen3": qwen3}
RERANKERS = {"bert-reranker": bert_reranker, "roberta-reranker": roberta_reranker,
             "xlmr-reranker": xlmr_reranker, "qwen3-reranker": qwen3_reranker}
SPECIALS = {
    "bert": {}, "roberta": {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>",
                            "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
    "modern-bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]",
                    "unk_token": "[UNK]"},
    "gemma-embedding": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}}


def write_folder(name, folder, change=None):
    """Makes the folder of a model; change(parts) may alter parts["tokenizer"], ["config"], ["tensors"] before
    they are written."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, config, tensors = {**EMBEDDERS, **RERANKERS}[name](folder)
    parts = {"tokenizer": tokenizer, "config": config, "tensors": tensors, "folder": folder}
    if change:
        change(parts)
    write_json(folder / "tokenizer.json", parts["tokenizer"])
    write_json(folder / "config.json", parts["config"])
    family = name.removesuffix("-reranker").removesuffix("-qk")
    write_json(folder / "tokenizer_config.json", SPECIALS.get("roberta" if name == "jina-bert-v2-qk" else family, {}))
    if name == "qwen3-reranker":
        write_shards(folder, parts["tensors"])
    else:
        write_safetensors(folder / "model.safetensors", parts["tensors"])
    return parts
