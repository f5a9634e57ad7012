#!/usr/bin/env python3
"""Records what sentence-transformers gives for 300 texts, for the engine's tests to be held to.

    python3 -m venv V && V/bin/pip install sentence-transformers
    V/bin/python tools/golden_embeddings.py MODEL_DIR tests/golden

MODEL_DIR is the Hugging Face folder of all-MiniLM-L6-v2. Two files are written:

    embeddings.jsonl   first a line about the recording, then a line a text:
                       {"text": "...", "ids": [101, ..., 102]}, ASCII with \\u escapes
    embeddings.f16     the vectors, a row a text, little-endian half precision

The vectors come from the float32 weights, L2-normalised, each text encoded alone and nothing
truncated (max_seq_length is set to the model's 512 positions). Half precision moves a cosine by
less than 1e-6, far below what the tests ask. The texts are made from a fixed seed, so a second
run writes the same texts; the vectors may differ in the last bit between versions of PyTorch.
"""

import hashlib
import json
import pathlib
import random
import sys

N_TEXTS = 300
CONTEXT = 512

FIXED = [
    "This is an example sentence",
    "a",
    "I",
    ".",
    "?!",
    "0",
    "Hello, world!",
    "HELLO, WORLD!",
    "hello world",
    "  leading and trailing space  ",
    "tabs\tand\nnew\r\nlines",
    "The quick brown fox jumps over the lazy dog.",
    "the QUICK Brown fOX JUMPS over THE lazy DOG",
    "How do I restore a backup to another machine?",
    "What is the capital of France?",
    "Paris is the capital of France.",
    "It isn't what you don't know that gets you into trouble; it's what you know for sure.",
    "e-mail: someone@example.org, https://example.org/path?query=1&other=two#part",
    "Call +1 (555) 010-9999 before 17:30 on 2024-02-29.",
    "3.14159 26535 89793 23846 26433 83279 50288 41971",
    "1,000,000 is 10^6; 0x7fff is 32767; 1e-12 is small",
    "v1.2.3-rc.4+build.5",
    "C'était déjà l'été: où êtes-vous, garçon?",
    "Crème brûlée, jalapeño, smörgåsbord, naïve façade, Ångström, São Paulo, İstanbul",
    "Fußball und Straße; Übermut tut selten gut",
    "Zażółć gęślą jaźń",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Árvíztűrő tükörfúrógép",
    "Þetta er íslenska; Ðetta líka",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "ΟΔΥΣΣΕΥΣ και Πηνελόπη",
    "עברית נכתבת מימין לשמאל",
    "שָׁלוֹם עֲלֵיכֶם",
    "اللغة العربية تكتب من اليمين إلى اليسار",
    "مَرْحَبًا بِكُمْ",
    "mixed עברית and العربية in one English line",
    "हिन्दी में एक छोटा वाक्य",
    "তুমি কেমন আছো?",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "这是一个中文句子。",
    "資料庫把向量放在鄰居旁邊",
    "日本語の文章です。カタカナとひらがな。",
    "東京tower2024年",
    "한국어 문장입니다.",
    "tiếng Việt có nhiều dấu",
    "emoji 😀 😃 😄 in a line",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumb",
    "🚀🚀🚀",
    "☃ ☕ ♥ ✓ → ∑ √ ∞ ≠ ½ ² ™ © ®",
    "“curly” ‘quotes’ — dashes – and … dots",
    "«guillemets» ‹single› „low“ ‚quotes‘",
    "zero\u200bwidth\u200djoiner\u00adsoft hyphen",
    "no\u00a0break\u2003em space\u3000ideographic",
    "control\x00 \x01\x02 bell\x07 escape\x1b[31mred\x7f",
    "replacement \ufffd character",
    "private \ue000 use",
    "e\u0301 is \u00e9, a\u030a is \u00e5, o\u0308\u0304 is \u022b",
    "z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031ealgo text",
    "\u0301\u0302\u0303",
    "fi ligature \ufb01, full width \uff21\uff22\uff23, roman \u2163",
    "\u1e9b\u0323 long s with dots",
    "musical \U0001d15e notes \U0001d165\U0001d16d",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 and 𝕕𝕠𝕦𝕓𝕝𝕖",
    "x" * 400,
    "word " + "supercalifragilistic" * 20 + " end",
    "y" * 100,
    "y" * 101,
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "for (size_t i = 0; i < n; i++) sum += a[i] * b[i];",
    "def f(x: int) -> int:\n    return x if x < 2 else f(x - 1) + f(x - 2)\n",
    "SELECT name, count(*) FROM users WHERE age >= 21 GROUP BY name HAVING count(*) > 1;",
    "<html><body class=\"x\">&amp; &lt;b&gt;</body></html>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\"}}",
    "$ git log --oneline | head -n 5 && echo 'done'",
    "\\frac{a}{b} + \\sqrt{x^2 + y^2} = z",
    "a_b_c __init__ camelCaseName PascalCase SCREAMING_CASE kebab-case",
    "[brackets] (parentheses) {braces} <angles> |bars| ~tilde~ `ticks` ^caret^",
    "[ CLS ] is not a token here",
    "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    "........",
    "lorem ipsum dolor sit amet, consectetur adipiscing elit",
]

SUBJECTS = """the library|a small team|the old engineer|every reader|the night train|our neighbour
her grandmother|the committee|a young doctor|the river|this database|the translator|a stray dog
the orchestra|their teacher|the lighthouse keeper|a careful gardener|the compiler|my brother
the museum""".replace("\n", "|").split("|")
VERBS = """keeps|measures|forgets|repairs|describes|follows|collects|compares|questions|finds
remembers|replaces|carries|paints|watches|divides|explains|misses|protects|counts""".replace(
    "\n", "|").split("|")
OBJECTS = """the nearest vectors|a box of letters|seven kinds of bread|the index of names
an unusual melody|the broken bridge|last year's weather|the price of copper|a map of the coast
the first snow|two hundred manuscripts|the shape of a leaf|an apology|the light of distant stars
a recipe for soup|the rules of chess|old photographs|the memory of the war|a bag of seeds
the meaning of the word""".replace("\n", "|").split("|")
ENDINGS = """in winter|without a sound|near the harbour|for no good reason|before breakfast
as if nothing had happened|with great care|in a foreign language|every single day|after the storm
on the second floor|under the table|according to the report|despite the noise|once again
""".strip().replace("\n", "|").split("|")


def sentence(rng):
    s = " ".join(rng.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, ENDINGS))
    return s[0].upper() + s[1:] + rng.choice([".", ".", ".", "!", "?", ";"])


def of_length(rng, tokenizer, n):
    """A text of exactly n tokens, [CLS] and [SEP] counted."""
    words = []
    while True:
        more = words + sentence(rng).split()
        if len(tokenizer(" ".join(more))["input_ids"]) > n:
            break
        words = more
    while len(tokenizer(" ".join(words))["input_ids"]) < n:
        words.append("and")
    text = " ".join(words)
    assert len(tokenizer(text)["input_ids"]) == n
    return text


def make_texts(tokenizer):
    rng = random.Random(20240229)
    texts = list(FIXED)
    texts += [of_length(rng, tokenizer, n) for n in (255, 256, 257, 511, 512, 512)]
    texts.append("\u6f22" * (CONTEXT - 2))  # exactly the limit, a token a character
    texts += [of_length(rng, tokenizer, n) for n in (3, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128)]
    mixed = "éàüñøçšžАБВγδεאבגابج中文字かなカナ한글ไทย😀🚀☃½™-_.,;:!?/()[]{}0123456789"
    while len(texts) < N_TEXTS - 120:
        words = ["".join(rng.choice(mixed) for _ in range(rng.randint(1, 8))) if rng.random() < 0.4
                 else rng.choice(rng.choice((SUBJECTS, VERBS, OBJECTS))) for _ in range(8)]
        texts.append(" ".join(words))
    while len(texts) < N_TEXTS:
        texts.append(" ".join(sentence(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 5)))))
    assert len(set(texts)) == N_TEXTS
    return texts


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    import numpy
    import sentence_transformers
    import torch

    model_dir, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    model = sentence_transformers.SentenceTransformer(str(model_dir), device="cpu")
    model.max_seq_length = CONTEXT
    model = model.float()
    texts = make_texts(model.tokenizer)
    ids = [model.tokenizer(t)["input_ids"] for t in texts]
    assert max(map(len, ids)) == CONTEXT
    vectors = numpy.stack([
        model.encode(t, normalize_embeddings=True, show_progress_bar=False) for t in texts])
    about = {
        "model": "all-MiniLM-L6-v2",
        "model_sha256": hashlib.sha256((model_dir / "model.safetensors").read_bytes()).hexdigest(),
        "n_texts": len(texts),
        "dim": int(vectors.shape[1]),
        "sentence_transformers": sentence_transformers.__version__,
        "torch": torch.__version__,
    }
    with open(out / "embeddings.jsonl", "w", encoding="ascii") as f:
        f.write(json.dumps(about) + "\n")
        for text, row in zip(texts, ids):
            f.write(json.dumps({"text": text, "ids": row}) + "\n")
    vectors.astype("<f2").tofile(out / "embeddings.f16")
    print(f"{len(texts)} texts, {sum(map(len, ids))} tokens, longest {max(map(len, ids))}")


if __name__ == "__main__":
    main()
