"""A tiny XLM-R encoder as a Hugging Face folder, and its forward pass in numpy as the oracle.

The tokenizer is the recorded one (tools/golden_xlmr.py), the weights come from a fixed seed: two
layers, 64 features, 4 heads. The pass is written from the papers (Vaswani et al. 2017, section 3;
Devlin et al. 2019, section 3; Liu et al. 2019 for positions that begin at padding + 1), in double
precision, and shares nothing with the engine.
"""

import json
import lzma
import math
import pathlib
import struct

import numpy as np

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "xlmr"
WIDTH, HEADS, INNER, LAYERS, PAD, EPS = 64, 4, 128, 2, 1, 1e-5


def tokenizer_json():
    return json.loads(lzma.decompress((GOLDEN / "tokenizer.json.xz").read_bytes()))


def golden_lines():
    text = lzma.decompress((GOLDEN / "lines.jsonl.xz").read_bytes()).decode()
    return [json.loads(row) for row in text.split("\n") if row]


def split_form(tokenizer):
    """The other published form: WhitespaceSplit before Metaspace, no Replace."""
    other = dict(tokenizer)
    other["normalizer"] = tokenizer["normalizer"]["normalizers"][0]
    other["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, tokenizer["pre_tokenizer"]]}
    return other


def weights(n_vocab, n_positions):
    """Every tensor by its Hugging Face name, float32, from raw bits of a fixed generator."""
    bits = np.random.PCG64(20240229)

    def uniform(*shape):
        raw = bits.random_raw(math.prod(shape)) >> np.uint64(40)
        return (raw.astype(np.float32) / np.float32(1 << 23) - 1).reshape(shape)

    def linear(name, n_in, n_out):
        t[f"{name}.weight"] = uniform(n_out, n_in) * np.float32(2 / math.sqrt(n_in))
        t[f"{name}.bias"] = uniform(n_out) * np.float32(0.1)

    def norm(name):
        t[f"{name}.weight"] = 1 + uniform(WIDTH) * np.float32(0.2)
        t[f"{name}.bias"] = uniform(WIDTH) * np.float32(0.2)

    t = {"embeddings.word_embeddings.weight": uniform(n_vocab, WIDTH),
         "embeddings.position_embeddings.weight": uniform(n_positions, WIDTH) * np.float32(0.5),
         "embeddings.token_type_embeddings.weight": uniform(1, WIDTH) * np.float32(0.5)}
    norm("embeddings.LayerNorm")
    for i in range(LAYERS):
        base = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{base}.attention.self.{part}", WIDTH, WIDTH)
        linear(f"{base}.attention.output.dense", WIDTH, WIDTH)
        norm(f"{base}.attention.output.LayerNorm")
        linear(f"{base}.intermediate.dense", WIDTH, INNER)
        linear(f"{base}.output.dense", INNER, WIDTH)
        norm(f"{base}.output.LayerNorm")
    return t


def write_safetensors(path, tensors, prefix=""):
    header, at, blobs = {}, 0, []
    for name, array in tensors.items():
        data = array.astype("<f4").tobytes()
        header[prefix + name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        blobs.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_folder(folder, n_positions=514, pooling="mean", tokenizer=None, prefix="", config=None):
    """Makes the folder and returns its tensors."""
    folder = pathlib.Path(folder)
    tokenizer = tokenizer or tokenizer_json()
    n_vocab = len(tokenizer["model"]["vocab"])
    (folder / "1_Pooling").mkdir(parents=True)
    settings = {
        "model_type": "xlm-roberta", "hidden_act": "gelu", "position_embedding_type": "absolute",
        "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "max_position_embeddings": n_positions, "vocab_size": n_vocab,
        "type_vocab_size": 1, "layer_norm_eps": EPS, "pad_token_id": PAD}
    settings.update(config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "<s>", "mask_token": "<mask>"}))
    (folder / "modules.json").write_text(json.dumps([
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({
        "pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}))
    tensors = weights(n_vocab, n_positions)
    write_safetensors(folder / "model.safetensors", tensors, prefix)
    return tensors


def forward(tensors, ids, pooling, heads=HEADS):
    """The normalised vector of one text."""
    t = {name: array.astype(np.float64) for name, array in tensors.items()}
    erf = np.vectorize(math.erf)

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred ** 2).mean(axis=1, keepdims=True) + EPS)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    n = len(ids)
    h = t["embeddings.word_embeddings.weight"][ids]
    h = h + t["embeddings.position_embeddings.weight"][PAD + 1:PAD + 1 + n]
    h = norm("embeddings.LayerNorm", h + t["embeddings.token_type_embeddings.weight"][0])
    for i in range(LAYERS):
        base = f"encoder.layer.{i}"
        q, k, v = (linear(f"{base}.attention.self.{part}", h).reshape(n, heads, -1).transpose(1, 0, 2)
                   for part in ("query", "key", "value"))
        mixed = np.empty_like(q)
        for head in range(heads):
            for at in range(0, n, 512):
                scores = q[head, at:at + 512] @ k[head].T / math.sqrt(WIDTH // heads)
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                mixed[head, at:at + 512] = scores / scores.sum(axis=1, keepdims=True) @ v[head]
        a = linear(f"{base}.attention.output.dense", mixed.transpose(1, 0, 2).reshape(n, WIDTH))
        h = norm(f"{base}.attention.output.LayerNorm", h + a)
        up = linear(f"{base}.intermediate.dense", h)
        up = up * 0.5 * (1 + erf(up / math.sqrt(2)))
        h = norm(f"{base}.output.LayerNorm", h + linear(f"{base}.output.dense", up))
    pooled = h.mean(axis=0) if pooling == "mean" else h[0]
    return pooled / np.linalg.norm(pooled)
