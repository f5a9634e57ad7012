"""BPE tokenizers, byte-level and SentencePiece's: the recorded ids of `tokenizers` for each published
form (tools/golden_bpe.py), the frames, and what survives kith-quantize."""

import bpe_tiny
import pytest
from kithtest import VARIANT, run_program

STEP = 1 if VARIANT == "release" else 10  # of the recorded lines


def tokenize(model, lines):
    path = model.with_suffix(".txt")
    path.write_bytes(lines)
    return run_program("kith-engine", "--model", model, "--threads", 1, "--tokenize-file", path)


def ids_of(model, texts):
    done = tokenize(model, "".join(t + "\n" for t in texts).encode())
    assert done.returncode == 0, done.stderr
    rows = [[int(i) for i in row.split(" ") if i] for row in done.stdout.split("\n")[:-1]]
    assert len(rows) == len(texts)
    return rows


@pytest.fixture(scope="module")
def vocabularies():
    return bpe_tiny.vocabularies()


@pytest.fixture(scope="module")
def golden():
    return bpe_tiny.golden_lines()[::STEP]


@pytest.mark.parametrize("name", bpe_tiny.FORMS)
def test_ids_are_those_of_tokenizers(name, vocabularies, golden, tmp_path):
    model = tmp_path / "model.gguf"
    before, after = bpe_tiny.FORMS[name](model, name, vocabularies)
    assert len(golden) > 100
    for row, ids in zip(golden, ids_of(model, [row["text"] for row in golden])):
        assert ids == before + bpe_tiny.ids_of(row, name) + after, row["text"]


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_text_is_never_a_control_token(name, vocabularies, tmp_path):
    model = tmp_path / "model.gguf"
    before, after = bpe_tiny.FORMS[name](model, name, vocabularies)
    n = len(vocabularies["byte"]["tokens"])
    controls = {0, 1, 2} if name == "llama" else {n, n + 1, n + 2}
    texts = ["<|im_start|>", "a<|endoftext|>b", "</s>", "<s><unk>", "<0x0A>", "x <|im_end|> y"]
    for ids in ids_of(model, texts):
        inner = ids[len(before):len(ids) - len(after)]
        assert inner and not set(inner) & controls


def test_refuses_what_is_not_utf_8(vocabularies, tmp_path):
    for name in ("gpt-2", "llama"):
        model = tmp_path / f"{name}.gguf"
        bpe_tiny.FORMS[name](model, name, vocabularies)
        done = tokenize(model, b"good\nbad \xc3(\nworse \xed\xa0\x80\n")
        assert done.returncode == 1
        assert [bool(row) for row in done.stdout.split("\n")[:-1]] == [True, False, False]
        assert "line 2: not UTF-8: the byte at offset 4" in done.stderr
        assert "line 3: not UTF-8: the byte at offset 6" in done.stderr


@pytest.mark.parametrize("name", ["qwen2", "gemma"])
def test_a_quantized_file_has_the_same_tokenizer(name, vocabularies, golden, tmp_path):
    """kith-quantize copies the keys that it does not know."""
    model, small = tmp_path / "model.gguf", tmp_path / "small.gguf"
    bpe_tiny.FORMS[name](model, name, vocabularies)
    done = run_program("kith-quantize", model, small, "--type", "q8_0")
    assert done.returncode == 0, done.stderr
    texts = [row["text"] for row in golden[:200]]
    assert ids_of(small, texts) == ids_of(model, texts)


def test_refuses_a_pre_tokenizer_that_it_does_not_know(vocabularies, tmp_path):
    model = tmp_path / "model.gguf"
    bpe_tiny.write_byte_form(model, "gpt-2", vocabularies)
    data = model.read_bytes().replace(b"\x05\0\0\0\0\0\0\0gpt-2", b"\x05\0\0\0\0\0\0\0bloom", 1)
    model.write_bytes(data)
    done = tokenize(model, b"a\n")
    assert done.returncode != 0
    assert "the pre-tokenizer is 'bloom'; known here are llama-bpe," in done.stderr and "default" in done.stderr
