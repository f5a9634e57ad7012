#!/usr/bin/env python3
"""Records what transformers computes of tiny models of every architecture, for the engine to be held to.

    python3 -m venv V && V/bin/pip install torch transformers tokenizers safetensors numpy
    V/bin/python tools/golden_models.py train      vocabularies, from the texts of this repository
    V/bin/python tools/golden_models.py record     vectors and scores, for the vocabularies as they are;
                                                   record NAME ... only those of some models

The models are those of tests/integration/models_tiny.py; their weights are made anew from a seed
whenever they are needed and stored nowhere. tests/golden/models/ then has

    wordpiece.json.xz, bpe.json.xz, spm.json.xz   tokens (and merges) of three kinds of tokenizers
    texts.json.xz    {"texts": [...], "pairs": [[query, document], ...]}
    NAME.npz         ids and offsets (text i is ids[offsets[i]:offsets[i + 1]]), and vectors (float32, of
                     length 1) or scores (float64); of the qwen3 reranker the logits of "yes" and "no"

All passes are transformers' own, attention "eager", float32, one text at a time, from the folder as
kith-convert reads it; ids are those of Hugging Face's `tokenizers`. transformers has no
jina-embeddings-v2: its pass is written here in torch from the model's description (M. Guenther et al.,
Jina Embeddings 2, 2023, section 4: BERT after O. Press et al., ALiBi without causality, and N. Shazeer's
GEGLU), and its second form, with norms on queries and keys, from its published modules.
"""

import json
import lzma
import math
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))

import models_tiny  # noqa: E402
import numpy as np  # noqa: E402

N_WORDPIECE, N_BPE, N_SPM = 1500, 1500, 1200
LARGEST_COSINE = 0.94  # of two texts; vectors that are all alike would prove nothing

LANGUAGES = [
    "Der schnelle braune Fuchs springt \u00fcber den faulen Hund, und niemand wei\u00df, warum.",
    "Le c\u0153ur a ses raisons que la raison ne conna\u00eet point ; \u00e9crit \u00e0 No\u00ebl.",
    "El ni\u00f1o corri\u00f3 por la ma\u00f1ana hacia la estaci\u00f3n. \u00bfLleg\u00f3 a tiempo?",
    "A \u00e1rvore mais antiga da regi\u00e3o n\u00e3o tem frutos h\u00e1 cem anos.",
    "\u0412 \u043d\u0430\u0447\u0430\u043b\u0435 \u043e\u0441\u0435\u043d\u0438 \u043f\u0442\u0438\u0446\u044b \u0443\u043b\u0435\u0442\u0430\u044e\u0442 \u043d\u0430 \u044e\u0433, \u0430 \u0440\u0435\u043a\u0438 \u0441\u0442\u0430\u043d\u043e\u0432\u044f\u0442\u0441\u044f \u0445\u043e\u043b\u043e\u0434\u043d\u044b\u043c\u0438.",
    "\u0397 \u03b8\u03ac\u03bb\u03b1\u03c3\u03c3\u03b1 \u03b5\u03af\u03bd\u03b1\u03b9 \u03ae\u03c1\u03b5\u03bc\u03b7 \u03c4\u03bf \u03c0\u03c1\u03c9\u03af.",
    "\u6771\u4eac\u306e\u6625\u306f\u685c\u304c\u3068\u3066\u3082\u7f8e\u3057\u3044\u3067\u3059\u3002\u30ab\u30bf\u30ab\u30ca\u3082\u66f8\u304d\u307e\u3059\u3002",
    "\u5411\u91cf\u6570\u636e\u5e93\u628a\u6587\u5b57\u53d8\u6210\u6570\u5b57\uff0c\u7136\u540e\u5bfb\u627e\u6700\u8fd1\u7684\u90bb\u5c45\u3002",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\ub3c4 \ubca1\ud130\uac00 \ub429\ub2c8\ub2e4.",
    "\u0627\u0644\u0645\u0643\u062a\u0628\u0629 \u0645\u0641\u062a\u0648\u062d\u0629 \u0645\u0646 \u0627\u0644\u0635\u0628\u0627\u062d \u062d\u062a\u0649 \u0627\u0644\u0645\u0633\u0627\u0621.",
    "\u05e9\u05dc\u05d5\u05dd \u05dc\u05db\u05d5\u05dc\u05dd, \u05d4\u05d9\u05d5\u05dd \u05d9\u05e4\u05d4 \u05de\u05d0\u05d5\u05d3.",
    "\u092f\u0939 \u0935\u093e\u0915\u094d\u092f \u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u0932\u093f\u0916\u093e \u0917\u092f\u093e \u0939\u0948\u0964",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e44\u0e21\u0e48\u0e21\u0e35\u0e0a\u0e48\u0e2d\u0e07\u0e27\u0e48\u0e32\u0e07\u0e23\u0e30\u0e2b\u0e27\u0e48\u0e32\u0e07\u0e04\u0e33",
    "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144 \u2014 wszystkie polskie litery.",
    "T\u00fcrkiye'de \u0130stanbul'un bo\u011faz\u0131 \u0131\u015f\u0131l \u0131\u015f\u0131l parl\u0131yor.",
]
SHORT = [
    "a", "I", ".", "?!", "42", "Hello, world!", "e\u0301te\u0301 nai\u0308ve \u1e69\u0323",
    "  spaces   at   both ends  ", "tabs\tand\nnew\n\nlines\r\n\r\nof two kinds",
    "it's we'll THEY'VE don't I'D", "1234567 3.14159 1,000,000 0x1F 2024-02-29", "yes", "no", "yes yes no no",
    "\U0001f600 \U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea flags and faces", "\u212b \ufb01 \u00bd \u2167 \uff21",
    "for (size_t i = 0; i < n; i++) sum += a[i] * b[i];", "def f(x):\n    return x if x < 2 else f(x - 1)",
    "SELECT name, count(*) FROM users WHERE age >= 21 GROUP BY name;", "MixedCase camelCaseName SCREAMING_CASE kebab-case",
]
QUERIES = [
    "what is a vector database", "how are texts cut into tokens", "vogel fliegen im herbst", "sum of a product",
    "who restarts the engine", "\u6625\u306e\u82b1",
]


def store(name, value):
    path = models_tiny.GOLDEN / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(json.dumps(value, ensure_ascii=False).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def prose():
    """Paragraphs of this repository's pages, in order."""
    pages = [ROOT / "docs" / "design.md", *sorted(ROOT.glob("*/README.md"))]
    text = "\n\n".join(p.read_text() for p in pages)
    return [" ".join(p.split()) for p in text.split("\n\n") if len(p) > 80 and "|" not in p and "```" not in p]


# --- the vocabularies ---------------------------------------------------------------------------


def train():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    recorded = [json.loads(row) for row in (ROOT / "tests" / "golden" / "embeddings.jsonl").read_text().splitlines()]
    corpus = [row["text"] for row in recorded if "text" in row] + prose() + (LANGUAGES + SHORT) * 4
    corpus += ["yes no yes no"] * 50

    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=N_WORDPIECE, special_tokens=specials))
    vocab = t.get_vocab()
    store("wordpiece.json.xz", sorted(vocab, key=vocab.get))

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=N_BPE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(t.to_str())["model"]
    store("bpe.json.xz", {"tokens": sorted(model["vocab"], key=model["vocab"].get),
                          "merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]})

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="never")
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=N_SPM))
    vocab = t.get_vocab()
    pieces = sorted((p for p in vocab if "\0" not in p), key=vocab.get)  # SentencePiece has none
    first = ["\n", "\u2581", "\n\n", "\u2581\u2581"]  # as user-defined pieces come first in Gemma's
    store("spm.json.xz", first + [p for p in pieces if p not in first])


def write_texts():
    paragraphs = prose()
    numbers = " ".join(str(i * i) for i in range(60))
    long = [" ".join(paragraphs[:3])[:900], " ".join(LANGUAGES)[:400], " ".join(LANGUAGES[7:])[:300], numbers]
    documents = [LANGUAGES[4], paragraphs[1][:300], paragraphs[7][:200], LANGUAGES[6], "yes", SHORT[16]]
    store("texts.json.xz", {"texts": SHORT + LANGUAGES + long,
                            "pairs": [[q, d] for q in QUERIES for d in documents]})


# --- passes -------------------------------------------------------------------------------------


def jina_pass(tensors, config, ids, qk_norm):
    import torch

    t = {k: torch.from_numpy(v).double() for k, v in tensors.items()}
    n, heads, width = len(ids), config["num_attention_heads"], config["hidden_size"]
    functional = torch.nn.functional

    def linear(name, x):
        return functional.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))

    def norm(name, x):
        return functional.layer_norm(x, (width,), t[f"{name}.weight"], t[f"{name}.bias"], config["layer_norm_eps"])

    def split(x):
        return x.view(n, heads, width // heads).transpose(0, 1)

    assert heads & (heads - 1) == 0
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)], dtype=torch.double)
    at = torch.arange(n)
    bias = -slopes[:, None, None] * (at[None, :] - at[:, None]).abs().double()
    h = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.token_type_embeddings.weight"][0]
    h = norm("embeddings.LayerNorm", h)
    for i in range(config["num_hidden_layers"]):
        base = f"encoder.layer.{i}"
        q, k, v = (linear(f"{base}.attention.self.{p}", h) for p in ("query", "key", "value"))
        if qk_norm:
            q, k = norm(f"{base}.attention.self.layer_norm_q", q), norm(f"{base}.attention.self.layer_norm_k", k)
        scores = split(q) @ split(k).transpose(1, 2) / math.sqrt(width // heads) + bias
        mixed = (scores.softmax(-1) @ split(v)).transpose(0, 1).reshape(n, width)
        a = norm(f"{base}.attention.output.LayerNorm", h + linear(f"{base}.attention.output.dense", mixed))
        if qk_norm:
            a = norm(f"{base}.layer_norm_1", h + a)
            up, gate = linear(f"{base}.mlp.up_gated_layer", a).chunk(2, -1)
            h = norm(f"{base}.layer_norm_2", a + linear(f"{base}.mlp.down_layer", up * functional.gelu(gate)))
        else:
            gate, up = linear(f"{base}.mlp.gated_layers", a).chunk(2, -1)
            h = norm(f"{base}.mlp.layernorm", a + linear(f"{base}.mlp.wo", up * functional.gelu(gate)))
    return h


def nomic_config(config):
    from transformers import NomicBertConfig

    return NomicBertConfig(
        vocab_size=config["vocab_size"], hidden_size=config["n_embd"], num_hidden_layers=config["n_layer"],
        num_attention_heads=config["n_head"], intermediate_size=config["n_inner"],
        max_position_embeddings=config["n_positions"], type_vocab_size=config["type_vocab_size"],
        layer_norm_eps=config["layer_norm_epsilon"], hidden_act="silu",
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])})


def load(kind, folder, config):
    """A model of transformers from a folder; every weight must have found its place."""
    import torch
    import transformers

    more = {"config": nomic_config(config)} if config["model_type"] == "nomic_bert" else {}
    model, info = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **more)
    missing = [k for k in info["missing_keys"] if "pooler" not in k]
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def hidden_states(name, folder, parts):
    """A function from ids to one row a token."""
    import torch

    config = parts["config"]
    if name.startswith("jina"):
        return lambda ids: jina_pass(parts["tensors"], config, ids, name.endswith("qk"))
    model = load("AutoModel", folder, config)
    return lambda ids: model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[0]


def pool(folder, rows):
    """What sentence-transformers' modules make of the rows."""
    import torch
    from safetensors.torch import load_file

    modes = json.loads((folder / "1_Pooling" / "config.json").read_text())
    if modes["pooling_mode_mean_tokens"]:
        vector = rows.mean(0)
    else:
        vector = rows[0] if modes["pooling_mode_cls_token"] else rows[-1]
    for dense in sorted(folder.glob("*_Dense")):
        vector = torch.nn.functional.linear(vector, load_file(dense / "model.safetensors")["linear.weight"])
    return torch.nn.functional.normalize(vector, dim=0).float().numpy()


def rerank_prompt(query, document):
    return ("<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
            "Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n"
            "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
            f"<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def rank(name, folder, parts, tokenizer):
    import torch

    causal = name.startswith("qwen3")
    model = load("AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification", folder, parts["config"])
    scores, rows = [], []
    for query, document in models_tiny.pairs():
        e = tokenizer.encode(rerank_prompt(query, document)) if causal else tokenizer.encode(query, document)
        inputs = {"input_ids": torch.tensor([e.ids]), "attention_mask": torch.ones(1, len(e.ids))}
        if not causal and parts["config"]["type_vocab_size"] > 1:
            inputs["token_type_ids"] = torch.tensor([e.type_ids])
        logits = model(**inputs).logits[0]
        scores.append([float(logits[-1, tokenizer.token_to_id(w)]) for w in ("yes", "no")] if causal
                      else float(logits[0]))
        rows.append(e.ids)
    return rows, np.array(scores, np.float64)


def embed(name, folder, parts, tokenizer):
    rows_of = hidden_states(name, folder, parts)
    rows = [tokenizer.encode(text).ids for text in models_tiny.texts()]
    vectors = np.stack([pool(folder, rows_of(ids)) for ids in rows])
    cosines = vectors @ vectors.T - np.eye(len(vectors))
    print(f"    cosine of two texts: mean {cosines.mean():.3f}, largest {cosines.max():.3f}")
    assert cosines.max() < LARGEST_COSINE, "the vectors are too much alike"
    return rows, vectors


def record(names):
    import torch
    import transformers
    from tokenizers import Tokenizer

    transformers.logging.set_verbosity_error()
    if not names:
        write_texts()
    with torch.no_grad():
        for name in names or [*models_tiny.EMBEDDERS, *models_tiny.RERANKERS]:
            with tempfile.TemporaryDirectory() as scratch:
                folder = pathlib.Path(scratch)
                parts = models_tiny.write_folder(name, folder)
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
                ranks = name in models_tiny.RERANKERS
                rows, out = (rank if ranks else embed)(name, folder, parts, tokenizer)
            path = models_tiny.GOLDEN / f"{name}.npz"
            lengths = [len(r) for r in rows]
            np.savez_compressed(path, ids=np.concatenate(rows).astype(np.int32),
                                offsets=np.cumsum([0, *lengths]).astype(np.int32),
                                **{"scores" if ranks else "vectors": out})
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes, {min(lengths)} to {max(lengths)} tokens")
            if ranks:
                print(f"    scores {out.min():.3f} to {out.max():.3f}, deviation {out.std():.3f}")


def main():
    if sys.argv[1:] == ["train"]:
        train()
    elif sys.argv[1:2] == ["record"]:
        record(sys.argv[2:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
