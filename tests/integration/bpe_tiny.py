"""The recorded BPE vocabularies (tools/golden_bpe.py) as GGUF files, one for each published form of
tokenizer: the vocabulary and the keys that such a model's file has, around an encoder of zeros that
only makes it a whole model. Nothing here knows the engine or the converter."""

import json
import lzma
import pathlib
import struct

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "bpe"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

SPACES = [" " * n for n in range(24, 1, -1)]

# What stands behind the recorded tokens of the byte-level vocabulary: control tokens, then tokens
# that a text may spell; and the frame, before and after.
BYTE_FORMS = {
    "gpt-2": {"control": ["<|endoftext|>"], "bos": 0, "eos": 0},
    "qwen2": {"control": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "user": ["<tool_call>", "</tool_call>", "<think>"],
              "bos": 0, "eos": 0, "keys": {"add_eos_token": True}, "after": 0},
    "qwen35": {"control": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "user": ["<think>"], "eos": 2},
    "llama-bpe": {"control": ["<|begin_of_text|>", "<|eot_id|>"], "bos": 0, "eos": 1, "before": 0},
    "roberta-bpe": {"control": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "bos": 0, "eos": 2, "unk": 3, "cls": 0, "sep": 2,
                    "before": 0, "after": 2},
    "modern-bert": {"control": ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"], "user": ["|||EMAIL_ADDRESS|||"] + SPACES,
                    "cls": 0, "sep": 1, "unk": 4, "before": 0, "after": 1},
    "starcoder": {"control": ["<|endoftext|>"], "bos": 0, "eos": 0},
    "gpt-4o": {"control": ["<|endoftext|>"], "bos": 0, "eos": 0},
    "tekken": {"control": ["<unk>", "<s>", "</s>"], "bos": 1, "eos": 2, "unk": 0, "before": 1},
    "deepseek-v3": {"control": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], "bos": 0, "eos": 1,
                    "keys": {"add_bos_token": True}, "before": 0},
    "default": {"control": ["<|endoftext|>"], "bos": 0, "eos": 0},
}

GEMMA_USER = ["<table>", "</table>"] + [s.replace(" ", "\u2581") for s in SPACES]

# The same of the SentencePiece vocabulary, <unk> <s> </s> first.
SPM_FORMS = {
    "llama": {"keys": {"add_eos_token": False}, "before": [1], "after": []},
    "llama-merges": {"merges": True, "before": [1], "after": []},
    "gemma": {"user": GEMMA_USER, "keys": {"add_space_prefix": False, "add_eos_token": True}, "before": [1], "after": [2]},
    "gemma-merges": {"merges": True, "user": GEMMA_USER, "keys": {"add_space_prefix": False}, "before": [1], "after": []},
}


def read(name):
    return lzma.decompress((GOLDEN / name).read_bytes()).decode()


def vocabularies():
    return json.loads(read("vocabularies.json.xz"))


def golden_lines():
    return [json.loads(row) for row in read("lines.jsonl.xz").split("\n") if row]


# Where a line has no ids of a form, they are those of this one.
BASES = {**{name: "gpt-2" for name in BYTE_FORMS}, "llama-merges": "llama", "gemma-merges": "gemma"}


def ids_of(row, name):
    return row.get(name, row.get(BASES.get(name)))


def all_merges(pieces):
    """Every pair of pieces that makes a third, the best piece first, as converters to tokenizer.json
    write it for a SentencePiece model."""
    known = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        ways = [(a, b) for a, b in ways if a in known and b in known]
        merges += [(score, a, b) for a, b in sorted(ways, key=lambda w: (known[w[0]], known[w[1]]))]
    merges.sort(key=lambda m: (m[0], len(m[1]), len(m[2])), reverse=True)
    return [(a, b) for _, a, b in merges]


def text_merges(pieces):
    """all_merges of what text may become."""
    return all_merges([(p, s) for p, s in pieces[3:] if not (len(p) == 6 and p.startswith("<0x"))])


def spm_pieces(v, name):
    """The pieces of a form: user-defined ones have score 0, so that their merges come first, and those
    that the vocabulary did not have stand last."""
    user = SPM_FORMS[name].get("user", [])
    pieces = [(p, 0.0 if p in user else s) for p, s in v["spm"]]
    return pieces + [(u, 0.0) for u in user if u not in {p for p, _ in pieces}]


class Gguf:
    """A GGUF file, written key by key."""

    def __init__(self):
        self.keys, self.infos, self.data = [], [], 0

    @staticmethod
    def string(s):
        b = s.encode()
        return struct.pack("<Q", len(b)) + b

    def key(self, name, kind, value):
        self.keys.append(self.string(name) + struct.pack("<I", kind) + value)

    def u32(self, name, v):
        self.key(name, 4, struct.pack("<I", v))

    def f32(self, name, v):
        self.key(name, 6, struct.pack("<f", v))

    def flag(self, name, v):
        self.key(name, 7, bytes([v]))

    def text(self, name, v):
        self.key(name, 8, self.string(v))

    def strings(self, name, v):
        self.key(name, 9, struct.pack("<IQ", 8, len(v)) + b"".join(map(self.string, v)))

    def numbers(self, name, kind, v):
        self.key(name, 9, struct.pack("<IQ", kind, len(v)) + struct.pack(f"<{len(v)}{'f' if kind == 6 else 'i'}", *v))

    def zeros(self, name, *shape):
        n = 4
        for d in shape:
            n *= d
        self.infos.append(self.string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, self.data))
        self.data += (n + 31) // 32 * 32

    def write(self, path):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.infos), len(self.keys)) + b"".join(self.keys + self.infos)
        head += b"\0" * (-len(head) % 32)
        path.write_bytes(head + b"\0" * self.data)


WIDTH, INNER, CONTEXT = 64, 64, 64


def add_encoder(g, n_vocab):
    g.text("general.architecture", "bert")
    for key, v in (("block_count", 1), ("embedding_length", WIDTH), ("attention.head_count", 2),
                   ("feed_forward_length", INNER), ("context_length", CONTEXT), ("pooling_type", 1)):
        g.u32("bert." + key, v)
    g.f32("bert.attention.layer_norm_epsilon", 1e-5)
    g.zeros("token_embd.weight", WIDTH, n_vocab)
    g.zeros("position_embd.weight", WIDTH, CONTEXT)
    g.zeros("token_types.weight", WIDTH, 2)
    norms = ["token_embd_norm"] + [f"blk.0.{n}" for n in ("attn_output_norm", "layer_output_norm")]
    for n in norms:
        g.zeros(n + ".weight", WIDTH)
        g.zeros(n + ".bias", WIDTH)
    for part, n_in, n_out in (("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH, WIDTH), ("attn_v", WIDTH, WIDTH),
                              ("attn_output", WIDTH, WIDTH), ("ffn_up", WIDTH, INNER), ("ffn_down", INNER, WIDTH)):
        g.zeros(f"blk.0.{part}.weight", n_in, n_out)
        g.zeros(f"blk.0.{part}.bias", n_out)


def add_keys(g, form):
    for key, v in form.get("keys", {}).items():
        g.flag("tokenizer.ggml." + key, v)


def write_byte_form(path, name, v=None):
    """The model of a form of BYTE_FORMS. Returns its frame: ids before and after a text."""
    v, form = (v or vocabularies())["byte"], BYTE_FORMS[name]
    n, control, user = len(v["tokens"]), form["control"], form.get("user", [])
    g = Gguf()
    add_encoder(g, n + len(control) + len(user))
    g.text("tokenizer.ggml.model", "gpt2")
    g.text("tokenizer.ggml.pre", name)
    g.strings("tokenizer.ggml.tokens", v["tokens"] + control + user)
    g.numbers("tokenizer.ggml.token_type", 5, [NORMAL] * n + [CONTROL] * len(control) + [USER_DEFINED] * len(user))
    g.strings("tokenizer.ggml.merges", v["merges"])
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("cls", "cls"), ("sep", "seperator")):
        if key in form:
            g.u32(f"tokenizer.ggml.{name}_token_id", n + form[key])
    add_keys(g, form)
    g.write(path)
    return [[n + form[side]] if side in form else [] for side in ("before", "after")]


def write_spm_form(path, name, v=None):
    """The same of SPM_FORMS."""
    v, form = v or vocabularies(), SPM_FORMS[name]
    pieces, user = spm_pieces(v, name), form.get("user", [])
    tokens = [p for p, _ in pieces]
    types = [USER_DEFINED if t in user else NORMAL for t in tokens]
    types[:259] = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    g = Gguf()
    add_encoder(g, len(tokens))
    g.text("tokenizer.ggml.model", "llama")
    g.strings("tokenizer.ggml.tokens", tokens)
    g.numbers("tokenizer.ggml.scores", 6, [s for _, s in pieces])
    g.numbers("tokenizer.ggml.token_type", 5, types)
    if form.get("merges"):
        g.strings("tokenizer.ggml.merges", [" ".join(m) for m in text_merges(pieces)])
    for key, i in (("unknown", 0), ("bos", 1), ("eos", 2)):
        g.u32(f"tokenizer.ggml.{key}_token_id", i)
    add_keys(g, form)
    g.write(path)
    return [form["before"], form["after"]]


FORMS = {**{name: write_byte_form for name in BYTE_FORMS}, **{name: write_spm_form for name in SPM_FORMS}}
