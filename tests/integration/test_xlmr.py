"""XLM-R models from a Hugging Face folder to vectors: ids as `tokenizers` gives them, vectors as the
papers' formulas give them (xlmr_tiny.py), a context of 8,192, and what the converter refuses."""

import random

import numpy as np
import pytest
import xlmr_tiny
from kithtest import VARIANT, run_program

SANITIZED = VARIANT != "release"
STEP = 10 if SANITIZED else 1  # of the recorded lines


def convert(folder, out, *options):
    done = run_program("kith-convert", folder, out, *options)
    assert done.returncode == 0, done.stderr
    return out


def tokenize(model, lines):
    """Of bytes: as many lines of ids as there are lines, and what was said."""
    path = model.with_suffix(".txt")
    path.write_bytes(lines)
    return run_program("kith-engine", "--model", model, "--threads", 1, "--tokenize-file", path)


def ids_of(model, texts):
    done = tokenize(model, "".join(t + "\n" for t in texts).encode())
    assert done.returncode == 0, done.stderr
    rows = [[int(i) for i in row.split(" ")] for row in done.stdout.split("\n")[:-1]]
    assert len(rows) == len(texts)
    return rows


def vector_of(model, text, *options):
    done = run_program("kith-engine", "--model", model, "--threads", 2, "--embed", text, *options)
    assert done.returncode == 0, done.stderr
    return np.array([float(x) for x in done.stdout.split()])


def one_vocabulary(tmp_path_factory, name, tokenizer):
    folder = tmp_path_factory.mktemp(name)
    xlmr_tiny.write_folder(folder / "model", tokenizer=tokenizer)
    return convert(folder / "model", folder / "model.gguf", "--type", "f32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return one_vocabulary(tmp_path_factory, "metaspace", None)


@pytest.fixture(scope="module")
def split_model(tmp_path_factory):
    return one_vocabulary(tmp_path_factory, "split", xlmr_tiny.split_form(xlmr_tiny.tokenizer_json()))


@pytest.mark.parametrize("form", ["ids", "split"])
def test_ids_are_those_of_tokenizers(form, model, split_model):
    rows = xlmr_tiny.golden_lines()[::STEP]
    got = ids_of(split_model if form == "split" else model, [row["text"] for row in rows])
    for row, ids in zip(rows, got):
        assert ids == row.get(form, row["ids"]), row["text"]


def test_text_is_never_a_control_token(model):
    for ids in ids_of(model, ["<s>", "a</s>b", "<unk><pad> <mask>"]):
        assert ids[0] == 0 and ids[-1] == 2
        assert not set(ids[1:-1]) & {0, 1, 2, 6001}


def test_refuses_what_is_not_utf_8(model):
    done = tokenize(model, b"good\nbad \xc3(\nworse \xed\xa0\x80\n")
    assert done.returncode == 1
    assert [bool(row) for row in done.stdout.split("\n")[:-1]] == [True, False, False]
    assert "line 2: not UTF-8: the byte at offset 4" in done.stderr
    assert "line 3: not UTF-8: the byte at offset 6" in done.stderr


@pytest.mark.parametrize("pooling,prefix", [("mean", ""), ("cls", "roberta.")])
def test_vectors_are_those_of_the_formulas(pooling, prefix, tmp_path):
    tensors = xlmr_tiny.write_folder(tmp_path / "model", pooling=pooling, prefix=prefix)
    rng = random.Random(1)
    rows = [row for row in xlmr_tiny.golden_lines() if 3 <= len(row["ids"]) <= 512 and "\0" not in row["text"]]
    rows = rng.sample(rows, 3 if SANITIZED else 8)
    for kind, least in (("f32", 0.9999), ("f16", 0.9999), ("q8_0", 0.999)):
        out = convert(tmp_path / "model", tmp_path / f"{kind}.gguf", "--type", kind)
        for row in rows:
            want = xlmr_tiny.forward(tensors, row["ids"], pooling)
            assert want @ vector_of(out, row["text"]) >= least, (kind, row["text"])


def test_a_context_of_8192(tmp_path):
    """bge-m3's shape of positions: 8,194 rows, two of them never read."""
    tensors = xlmr_tiny.write_folder(tmp_path / "model", n_positions=8194,
                                      config={"num_attention_heads": 1})
    out = convert(tmp_path / "model", tmp_path / "long.gguf", "--type", "f32")
    per_word = len(ids_of(out, ["a b"])[0]) - len(ids_of(out, ["a"])[0])
    text = " ".join("ab"[i % 2] for i in range((1000 if SANITIZED else 8190) // per_word))
    ids = ids_of(out, [text])[0]
    assert SANITIZED or 8000 < len(ids) <= 8192
    want = xlmr_tiny.forward(tensors, ids, "mean", heads=1)
    assert want @ vector_of(out, text) >= 0.9999
    done = run_program("kith-engine", "--model", out, "--embed", "word " * 9000)
    assert done.returncode == 1 and "the model takes 8192" in done.stderr


def lower_case(tokenizer):
    tokenizer["normalizer"]["normalizers"].append({"type": "Lowercase"})


def byte_fallback(tokenizer):
    tokenizer["model"]["byte_fallback"] = True


def no_frame(tokenizer):
    tokenizer["post_processor"] = None


def plain_added(tokenizer):
    tokenizer["added_tokens"].append({"id": 9, "content": "x", "special": False})


def broken_map(tokenizer):
    tokenizer["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "!!!!"


def whole_text(tokenizer):
    tokenizer["pre_tokenizer"]["split"] = False


@pytest.mark.parametrize("change,message", [
    (lower_case, "the normalizer 'Lowercase' at its place"), (byte_fallback, "without byte_fallback"),
    (no_frame, "the template '<s> $A </s>'"), (plain_added, "the added token 'x' is not special"),
    (broken_map, "not base64"), (whole_text, "must be Metaspace"),
], ids=lambda v: getattr(v, "__name__", ""))
def test_refuses_what_it_would_not_tokenize_alike(change, message, tmp_path):
    tokenizer = xlmr_tiny.tokenizer_json()
    change(tokenizer)
    xlmr_tiny.write_folder(tmp_path / "model", tokenizer=tokenizer)
    done = run_program("kith-convert", tmp_path / "model", tmp_path / "out.gguf")
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_refuses_padding_past_the_positions(tmp_path):
    xlmr_tiny.write_folder(tmp_path / "model", config={"pad_token_id": 600})
    done = run_program("kith-convert", tmp_path / "model", tmp_path / "out.gguf")
    assert done.returncode == 1 and "'pad_token_id' is 600, with 514 position embeddings" in done.stderr


def test_another_tokenizer_is_named(tmp_path, model):
    """A file that says it is another kind is refused with its name and the kinds that are known."""
    data = model.read_bytes()
    key = b"tokenizer.ggml.model" + (8).to_bytes(4, "little") + (2).to_bytes(8, "little")
    assert data.count(key + b"t5") == 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(key + b"t5", key + b"zz"))
    done = run_program("kith-engine", "--model", other, "--tokenize", "x")
    assert done.returncode == 2 and "the tokenizer is 'zz'; known here are 'bert', 't5'" in done.stderr
