#!/usr/bin/env python3
"""Records what Hugging Face's `tokenizers` gives for BPE tokenizers, for the engine to be held to.

    python3 -m venv V && V/bin/pip install sentencepiece tokenizers protobuf
    V/bin/python tools/golden_bpe.py train TEXTS tests/golden/bpe
    V/bin/python tools/golden_bpe.py record tests/golden/bpe
    V/bin/python tools/golden_bpe.py check TEXTS N build/bin/bench-tokenizer

TEXTS is any file of multilingual texts and code that end with NUL each. train makes two
vocabularies: byte-level BPE with `tokenizers` (Qwen2's pre-tokenizer), and BPE with byte fallback
with sentencepiece (as Llama 2's):

    vocabularies.json.xz   {"byte": {"tokens": [...], "merges": ["a b", ...]}, "spm": [[piece, score], ...]}

record writes lines made from a fixed seed, with the ids that each published form of tokenizer
(`oracles` below: normalizer, pre-tokenizer, model and added tokens as the models' tokenizer.json have
them) gives, without its frame:

    lines.jsonl.xz         {"text": "...", "gpt-2": [...], "qwen2": [...], "llama": [...], ...}

A form that gives the same as that of bpe_tiny.BASES is left out of its line. No line has a newline or a special token's text, which Hugging Face would take for the token.
check compares N texts, half of them of TEXTS and half made, newlines and all, for every form with the
ids of the engine.
"""

import json
import lzma
import pathlib
import random
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))
sys.path.insert(0, str(ROOT / "tools"))

import bpe_tiny  # noqa: E402
import golden_xlmr  # noqa: E402

N_BYTE, N_SPM, N_LINES, SEED = 5000, 3000, 2000, 20240229

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (r"[^\r\n\p{L}\p{N}]?" + UPPER + "*" + LOWER + "+END" + r"|[^\r\n\p{L}\p{N}]?" + UPPER + "+" + LOWER + "*END"
         r"|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT_4O = CASED.replace("END", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("NUMBER", r"\p{N}{1,3}")
TEKKEN = CASED.replace("END", "").replace("NUMBER", r"\p{N}")
DEEPSEEK = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]
DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
           r"\p{N}+", "[0-9][0-9][0-9]"]

FIXED = [
    "'s'S'\u017f'T'll'LL'Ve're'RE'm'M'd'D", "it's IT'S can't CAN'T we'll WE'LL I've", "x's 's", "''s", "1's 2'ſ",
    "a1b22c333d4444 55555", "\u0661\u0662\u0663 \u00b2\u00b3\u00bd\u2167", "HTTPServer XMLHttpRequest iPhone \u01c5abc \u01c5ABC",
    "e\u0301E\u0301 \u0301a \u0301A \u0301\u0301B", "\u02b0A\u02b0a \u4e2dA\u4e2da \u5b57AB\u5b57", "\u00aa\u00baA a\u00aa",
    "a  b   c    d", "  a", "   ", "a   ", "\ta\t\tb", "\r\r a\r \rb", "a \r b", "a\r\r\rb", "\r", " \r", "\r ",
    "\u3000a\u00a0b\u2003\u2003c", "\u0085\u0085a", "\x0b\x0ca", "... !!! ?!\r\r x", " ...", "a...b", "/// a/b //\r/ \\/",
    "$$ ++ ^^ `` || ~~ <> == _-_", "\u3001\u3002\uff01\uff1f \u00ab\u00bb", "\U0001f600\U0001f469\u200d\U0001f4bb x\U0001f600",
    "\u200b\u200ba \u200b", "\u200d\u200d1", "\ufeffa", "\ue000\U000f0000 \uffff", "\u0378\u0379a \U0001ccf0\U0001ccf1 \U00011de0\U00011de1a",
    "\u1c89\u1c8a \ua7cb\ua7da \U00010d50\U00010d70 \U000105c0", "\u0915\u094d\u0937\u093f \u0e01\u0e33\u0e49", "\u3042\u30a2\u4e00\u9fa5\u9fa6\u3400 \u30fb",
    "cafe\u0301 \u1e9b\u0323 \u212b\u2126 \u1100\u1161\u11a8", "e\u0323\u0302\u0301 q\u0307\u0323 \u0f73\u0f71", "\u0958 \u2adc \ufb1d",
    "\u0301\u0302", "\ud55c\uae00\u11a8", "\u0b47\u0b3e \u09c7\u09be", "a\u0338=\u0338>\u0338", "a\u0300\u0300\u0316\u0316" * 30,
    "<tool_call>x</tool_call> <think>\u0338", "<tool_call", "<<think>>", "|||EMAIL_ADDRESS||| ||||EMAIL_ADDRESS|||", "a" + " " * 60 + "b",
    "<table>a</table>", "\u2581\u2581a\u2581 \u2581", "<0x41><0x0A>", "=" * 400, "a" * 3000, "ab" * 1500, "\u4e2d" * 900, "aA" * 700,
    "\u4e2dA" * 300, "\U00010348" * 300, "1" * 500, " " * 700 + "x", "\r" * 300, "!" * 999,
]


def texts_of(path):
    return pathlib.Path(path).read_bytes().decode().split("\0")[:-1]


# --- the oracles ---


def tokens_of(form):
    from tokenizers import AddedToken
    return ([AddedToken(t, special=True, normalized=False) for t in form.get("control", [])],
            [AddedToken(t, special=False, normalized=t.startswith("|") or t[:1] == " ") for t in form.get("user", [])])


def byte_oracle(v, name):
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    merges = [tuple(m.split(" ")) for m in v["merges"]]
    vocab = {t: i for i, t in enumerate(v["tokens"])}
    t = Tokenizer(models.BPE(vocab, merges, ignore_merges=name in ("llama-bpe", "tekken")))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = {"qwen2": [QWEN2], "qwen35": [QWEN35], "llama-bpe": [LLAMA], "gpt-4o": [GPT_4O], "tekken": [TEKKEN],
              "deepseek-v3": DEEPSEEK, "default": DEFAULT}
    if name in splits:
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r), "isolated") for r in splits[name]] + [plain])
    elif name == "starcoder":
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt_2])
    else:
        t.pre_tokenizer = gpt_2
    if name in ("qwen2", "qwen35", "modern-bert"):
        t.normalizer = normalizers.NFC()
    special, added = tokens_of(bpe_tiny.BYTE_FORMS[name])
    t.add_special_tokens(special)
    t.add_tokens(added)
    return t


def spm_oracle(v, name):
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    pieces = bpe_tiny.spm_pieces(v, name)
    vocab = {p: i for i, (p, _) in enumerate(pieces)}
    t = Tokenizer(models.BPE(vocab, bpe_tiny.text_merges(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "\u2581")
    if name.startswith("gemma"):
        t.normalizer = replace
        t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")])
    t.add_tokens(tokens_of(bpe_tiny.SPM_FORMS[name])[1])
    return t


def oracles(v):
    made = {name: byte_oracle(v["byte"], name) for name in bpe_tiny.BYTE_FORMS}
    return {**made, **{name: spm_oracle(v, name) for name in bpe_tiny.SPM_FORMS}}


def sentencepiece_of(v):
    """SentencePiece itself, with the recorded pieces."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for i, (piece, score) in enumerate(v["spm"]):
        kind = {0: bpe_tiny.UNKNOWN, 1: bpe_tiny.CONTROL, 2: bpe_tiny.CONTROL}.get(i, bpe_tiny.BYTE if i < 259 else bpe_tiny.NORMAL)
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def spelled_out():
    """Texts that Hugging Face would take for control tokens."""
    return {t for form in bpe_tiny.BYTE_FORMS.values() for t in form["control"]} | {"<unk>", "<s>", "</s>"}


# --- the three commands ---


def train(texts, out):
    import sentencepiece
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from sentencepiece import sentencepiece_model_pb2

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=N_BYTE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    made = json.loads(t.to_str())["model"]
    tokens = sorted(made["vocab"], key=made["vocab"].get)
    merges = [" ".join(m) for m in made["merges"]]
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for text in texts for line in text.split("\n") if 0 < len(line) < 1000),
            model_prefix=f"{folder}/m", vocab_size=N_SPM, model_type="bpe", byte_fallback=True, character_coverage=0.995,
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            allow_whitespace_only_pieces=True, input_sentence_size=60000, shuffle_input_sentence=True, minloglevel=2)
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(pathlib.Path(f"{folder}/m.model").read_bytes())
    pieces = [(p.piece, p.score) for p in model.pieces]
    golden_xlmr.write(out / "vocabularies.json.xz", json.dumps(
        {"byte": {"tokens": tokens, "merges": merges}, "spm": pieces}, ensure_ascii=False))


def lines(rng, texts, v, n):
    """Fixed ones, then made ones, half of all from texts where there are any."""
    pieces = [p for p, _ in v["spm"][259:]] + [" " + s for s in bpe_tiny.BYTE_FORMS["qwen2"]["user"]] + ["|||EMAIL_ADDRESS|||", "<table>"]
    found = FIXED + golden_xlmr.FIXED
    while len(found) < n:
        found.append(rng.choice(texts)[:2000] if texts and rng.random() < 0.5 else golden_xlmr.line(rng, pieces)[:36])
    return [t for t in found if not any(s in t for s in spelled_out())]


def record(out):
    v = bpe_tiny.vocabularies()
    rng = random.Random(SEED)
    made = oracles(v)
    rows = []
    for text in lines(rng, [], v, N_LINES):
        row = {"text": text.replace("\n", "\r")}
        for name, t in made.items():
            ids = t.encode(row["text"], add_special_tokens=False).ids
            if ids != bpe_tiny.ids_of(row, name):
                row[name] = ids
        rows.append(json.dumps(row, separators=(",", ":"), ensure_ascii=False))
    print(f"{len(rows)} lines")
    golden_xlmr.write(out / "lines.jsonl.xz", "\n".join(rows) + "\n")


def check(texts, n, program):
    v = bpe_tiny.vocabularies()
    rng = random.Random()
    some = [t for t in lines(rng, texts, v, n) if "\0" not in t]
    some += ["\n".join(rng.sample(some, 3)) for _ in range(n // 10)]
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "texts").write_bytes(b"".join(t.encode() + b"\0" for t in some))
        for name, t in oracles(v).items():
            bpe_tiny.FORMS[name](folder / "model.gguf", name, v)
            done = subprocess.run([program, "--ids", folder / "texts", folder / "model.gguf"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            wrong = []
            other = sentencepiece_of(v) if name == "llama" else None
            for text, got in zip(some, done.stdout.split("\n"), strict=False):
                want = t.encode(text, add_special_tokens=False).ids
                if other and other.encode(text) != want:
                    print(f"  SentencePiece differs: {text!r}\n    {other.encode(text)}")
                    want = other.encode(text)
                if want != [int(i) for i in got.split()]:
                    wrong.append((text, want, got))
            print(f"{name}: {len(some)} texts, {len(wrong)} differ")
            for text, want, got in sorted(wrong, key=lambda w: len(w[0]))[:3]:
                print(f"  {text!r}\n    {' '.join(map(str, want))[:300]}\n    {got[:300]}")
            bad += len(wrong)
    return bad


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "train":
        train(texts_of(sys.argv[2]), pathlib.Path(sys.argv[3]))
    elif len(sys.argv) == 3 and sys.argv[1] == "record":
        record(pathlib.Path(sys.argv[2]))
    elif len(sys.argv) == 5 and sys.argv[1] == "check":
        sys.exit(1 if check(texts_of(sys.argv[2]), int(sys.argv[3]), sys.argv[4]) else 0)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
