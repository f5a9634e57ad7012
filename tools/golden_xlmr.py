#!/usr/bin/env python3
"""Records what Hugging Face's `tokenizers` gives for an XLM-R tokenizer, for the engine to be held to.

    python3 -m venv V && V/bin/pip install sentencepiece tokenizers protobuf
    V/bin/python tools/golden_xlmr.py train CORPUS.txt tests/golden/xlmr
    V/bin/python tools/golden_xlmr.py record tests/golden/xlmr [N_LINES [MORE.txt]]

train makes a Unigram model of 6,000 pieces with sentencepiece (nmt_nfkc, coverage 0.9995) from any
multilingual text, and writes it in the form of XLM-R (<s> <pad> </s> <unk> first, <mask> last):

    tokenizer.json.xz   Precompiled, Replace of several spaces, Metaspace, Unigram

record writes lines made from a fixed seed with their ids, with one line of JSON each:

    lines.jsonl.xz      {"text": "...", "ids": [0, ..., 2], "split": [0, ..., 2]}

"split" is there where the other form of published tokenizers, Precompiled, WhitespaceSplit and
Metaspace, gives other ids. Lines hold any character but the newline, and no special token's text,
which Hugging Face would take for the token. MORE.txt adds lines of its own before the made ones.
"""

import json
import lzma
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "integration"))

from xlmr_tiny import split_form  # noqa: E402

N_PIECES = 6000
N_LINES = 2000
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

FIXED = [
    "", " ", "   ", "a", " a", "a ", "  a  b  ", "\t", "\r", "a\r\tb", "\u00a0", "a\u00a0\u3000b\u2003c",
    "\u200b", "x\u200b", "\u200bx", "x\u0085y", "\u0085", "\u2581", "\u2581a\u2581b", "a \u2581 b", "\u2581\u2581",
    "\x00", "\x00a", "a\x00b", "\x01", "\x7f\x9f", "a\x0bb\x0cc", "\ufeffa", "a\ufffdb", "\ue000\U000f0000",
    "e\u0301", "e\u0323\u0302", "a\u030a\u0301", "\u1e9b\u0323", "\ufb01\u0301", "\uff21\u0301", "\u00b2\u200d",
    "\u0301\u0302", " \u0301", "o\u0308\u0304", "\u0600\u0661", "\u1100\u1161\u11a8", "\ud55c\uae00", "\u0915\u093c",
    "\u0e01\u0e33", "\ufdfa", "\u2460\u2167\u00bd\u33a5", "\uff76\uff9e", "\u30ab\u3099", "\u212b\u2126",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea",
    "\U0001f44d\U0001f3fd", "\u2603\ufe0f", "z\u0351\u036b\u0343\u036a\u0302algo", "=" * 300, "a" * 5000,
    "\u4e2d" * 3000, "\u0e01" * 900 + "\u0e33" * 900, "ab" * 2500, "\U00010348" * 700, " " * 4000 + "x",
    "[CLS] is no token here", "< s > < /s >", "<0x41>", "&lt;unk&gt;",
    "for (size_t i = 0; i < n; i++) sum += a[i] * b[i];",
    "def f(x: int) -> int:\treturn x if x < 2 else f(x - 1) + f(x - 2)",
    "SELECT name, count(*) FROM users WHERE age >= 21 GROUP BY name;",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\"}}", "\\frac{a}{b} + \\sqrt{x^2 + y^2} = z",
    "a_b_c __init__ camelCaseName SCREAMING_CASE kebab-case", "https://example.org/path?query=1&other=two#part",
]

RANGES = [  # first, last, how often
    (0x20, 0x7e, 8), (0xa0, 0x17f, 4), (0x250, 0x36f, 3), (0x370, 0x5ff, 4), (0x600, 0x6ff, 3),
    (0x900, 0xdff, 3), (0xe00, 0xeff, 2), (0x1100, 0x11ff, 2), (0x1e00, 0x1fff, 2), (0x2000, 0x2bff, 4),
    (0x3000, 0x30ff, 3), (0x4e00, 0x9fff, 3), (0xac00, 0xd7a3, 2), (0xf900, 0xfdff, 2), (0xfe00, 0xffff, 3),
    (0x1d400, 0x1d7ff, 1), (0x1f000, 0x1faff, 3), (0x1, 0x9f, 1), (0x10000, 0x10ffff, 1),
]


def read(path):
    return lzma.decompress(pathlib.Path(path).read_bytes()).decode()


def write(path, text):
    path = pathlib.Path(path)
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{path}: {path.stat().st_size} bytes")


def train(corpus, out):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    prefix = str(out / "trained")
    sentencepiece.SentencePieceTrainer.train(
        input=corpus, model_prefix=prefix, vocab_size=N_PIECES, model_type="unigram",
        character_coverage=0.9995, input_sentence_size=60000, shuffle_input_sentence=True)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(pathlib.Path(prefix + ".model").read_bytes())
    for suffix in (".model", ".vocab"):
        pathlib.Path(prefix + suffix).unlink()
    pieces = [(s, 0.0) for s in SPECIALS[:4]]
    pieces += [(p.piece, p.score) for p in model.pieces[3:]] + [(SPECIALS[4], 0.0)]
    t = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    t.normalizer = normalizers.Sequence([
        normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap),
        normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    t.add_special_tokens([AddedToken(s, special=True, normalized=False, lstrip=s == "<mask>")
                          for s in SPECIALS])
    write(out / "tokenizer.json.xz", json.dumps(json.loads(t.to_str()), ensure_ascii=False))


def character(rng):
    first, last, _ = rng.choices(RANGES, [r[2] for r in RANGES])[0]
    c = rng.randint(first, last)
    return " " if 0xd800 <= c < 0xe000 or c == 0x0a else chr(c)


def line(rng, pieces):
    """Words of the vocabulary, of any characters, of one script with marks, numbers and spaces."""
    parts = []
    for _ in range(rng.choice((1, 3, 6, 10, 16))):
        kind = rng.random()
        if kind < 0.55:
            parts.append("".join(rng.choice(pieces) for _ in range(rng.randint(1, 4))).replace("\u2581", " "))
        elif kind < 0.75:
            parts.append("".join(character(rng) for _ in range(rng.randint(1, 9))))
        elif kind < 0.85:
            first = rng.choice((0x41, 0x61, 0xc0, 0x391, 0x430, 0x5d0, 0x627, 0x905, 0xe01, 0x3042, 0x4e00, 0xac00))
            parts.append("".join(chr(first + rng.randint(0, 25)) + chr(rng.randint(0x300, 0x36f)) * rng.randint(0, 2)
                                 for _ in range(rng.randint(1, 7))))
        elif kind < 0.95:
            parts.append(rng.choice(("%d", "%05.2f", "0x%x", "%e", "a[%d];", "$%d", "v%d.0")) % rng.randint(0, 99999))
        else:
            parts.append(rng.choice(" \t\u00a0\u3000\u200b\u200d\u2028") * rng.randint(1, 4))
        parts.append(rng.choice(("", " ", " ", " ", "  ")))
    return "".join(parts)


def record(out, n_lines, more):
    from tokenizers import Tokenizer

    recorded = json.loads(read(out / "tokenizer.json.xz"))
    one = Tokenizer.from_str(json.dumps(recorded))
    other = Tokenizer.from_str(json.dumps(split_form(recorded)))
    rng = random.Random(20240229)
    pieces = [p for p, _ in recorded["model"]["vocab"][4:-1]]
    texts = FIXED + [t for t in more if not any(s in t for s in SPECIALS)][:n_lines // 2]
    while len(texts) < n_lines:
        text = line(rng, pieces)
        if "\n" not in text and not any(s in text for s in SPECIALS):
            texts.append(text)
    rows = []
    for text in texts:
        row = {"text": text, "ids": one.encode(text).ids}
        split = other.encode(text).ids
        if split != row["ids"]:
            row["split"] = split
        rows.append(json.dumps(row))
    print(f"{len(texts)} lines, {sum(len(json.loads(r)['ids']) for r in rows)} ids")
    write(out / "lines.jsonl.xz", "\n".join(rows) + "\n")


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "train":
        train(sys.argv[2], pathlib.Path(sys.argv[3]))
    elif 3 <= len(sys.argv) <= 5 and sys.argv[1] == "record":
        more = pathlib.Path(sys.argv[4]).read_text().splitlines() if len(sys.argv) == 5 else []
        record(pathlib.Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else N_LINES, more)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
