"""Every architecture from a Hugging Face folder to vectors and scores: kith-convert, then kith-engine,
against what transformers computes of the same tiny models (models_tiny.py, tests/golden/models)."""

import re
import socket
import subprocess

import models_tiny
import numpy as np
import pytest
from kithtest import BIN, PATIENCE, VARIANT, encode, run_program

TYPES = ("f32", "f16", "q8_0")
# Type, options of the engine, least cosine. With 64 features and sharp attention the 8 bits of the
# activations (q8_0 without an option) cost more than in any real model.
FORMS = {"f32": ("f32", (), 0.9999), "f16": ("f16", (), 0.9999), "q8_0": ("q8_0", (), 0.999),
         "q8_0-f32": ("q8_0", ("--precision", "f32"), 0.999)}
STEP = 1 if VARIANT == "release" else 6  # of the texts and pairs


class Engine:
    """A kith-engine of one's own behind a socket pair (protocol/engine_wire.md)."""

    def __init__(self, model, *options):
        ours, theirs = socket.socketpair()
        command = [BIN / "kith-engine", "--model", model, "--fd", theirs.fileno(), "--threads", 2, *options]
        self.process = subprocess.Popen([str(c) for c in command], pass_fds=[theirs.fileno()],
                                        stderr=subprocess.PIPE)
        theirs.close()
        ours.settimeout(60 * PATIENCE)
        self.socket, self.stream, self.n = ours, ours.makefile("rb"), 0
        first = self.read()
        if first[0] != b"READY":
            self.close()
        assert first[0] == b"READY", first
        self.ready = dict(zip(first[1::2], first[2::2]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.stream.close()
        self.socket.close()
        self.process.communicate(timeout=60 * PATIENCE)

    def read(self):
        head = self.stream.readline()
        assert head[:1] == b"*", head
        words = []
        for _ in range(int(head[1:])):
            size = int(self.stream.readline()[1:])
            words.append(self.stream.read(size + 2)[:-2])
        return words

    def embed(self, texts):
        """One request: n vectors."""
        self.n += 1
        self.socket.sendall(encode("EMBED", self.n, "-", *texts))
        answer = self.read()
        assert answer[0] == b"VECTORS", answer
        return np.frombuffer(answer[5], "<f4").reshape(int(answer[2]), int(answer[3]))


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """A function from a model's name and a type to its GGUF file, each made once."""
    made, root = {}, tmp_path_factory.mktemp("models")

    def get(name, kind="f32"):
        folder = root / name
        if not folder.exists():
            models_tiny.write_folder(name, folder)
        if (name, kind) not in made:
            out = root / f"{name}.{kind}.gguf"
            more = ["--pooling", "rank"] if name == "qwen3-reranker" else []
            done = run_program("kith-convert", folder, out, "--type", kind, *more)
            assert done.returncode == 0, done.stderr
            made[name, kind] = out
        return made[name, kind]

    return get


def text_rows(name):
    """Of every text: its number, itself, its ids and its vector."""
    golden = models_tiny.golden(name)
    at = golden["offsets"]
    rows = [(i, text, golden["ids"][at[i]:at[i + 1]].tolist(), golden["vectors"][i])
            for i, text in enumerate(models_tiny.texts())]
    assert len(rows) >= 35 and max(len(ids) for _, _, ids, _ in rows) >= 200
    return rows[::STEP]


@pytest.mark.parametrize("name", models_tiny.EMBEDDERS)
def test_ids_are_those_of_tokenizers(name, convert):
    model = convert(name)
    for _, text, ids, _ in text_rows(name):
        done = run_program("kith-engine", "--model", model, "--threads", 1, "--tokenize", text)
        assert done.returncode == 0, done.stderr
        got = [int(i) for i in re.findall(r"^(\d+)\t", done.stdout, re.MULTILINE)]
        assert got == ids, text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", models_tiny.EMBEDDERS)
def test_vectors_are_those_of_transformers(name, form, convert):
    kind, options, least = FORMS[form]
    rows = text_rows(name)
    with Engine(convert(name, kind), *options) as engine:
        assert engine.ready[b"dim"] == b"%d" % models_tiny.WIDTH
        batch = engine.embed([text for _, text, _, _ in rows])
        single = np.concatenate([engine.embed([text]) for _, text, _, _ in rows])
    want = np.stack([vector for *_, vector in rows])
    cosines = (batch * want).sum(axis=1)
    worst = int(cosines.argmin())
    assert cosines[worst] >= least, (cosines[worst], rows[worst][1])
    assert np.abs(batch - single).max() <= 1e-5


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", models_tiny.RERANKERS)
def test_scores_are_those_of_transformers(name, kind, convert):
    model = convert(name, kind)
    want = models_tiny.golden(name)["scores"]
    want = want[:, 0] - want[:, 1] if want.ndim == 2 else want  # "yes" over "no"
    by_query = {}
    for (query, document), score in zip(models_tiny.pairs(), want):
        by_query.setdefault(query, []).append((document, score))
    for query, rows in list(by_query.items())[::STEP]:
        words = [word for document, _ in rows for word in ("--document", document)]
        done = run_program("kith-engine", "--model", model, "--threads", 2, "--rerank", query, *words)
        assert done.returncode == 0, done.stderr
        got = np.array([float(line) for line in done.stdout.split()])
        scores = np.array([score for _, score in rows])
        assert got.shape == scores.shape
        # The scores of a model spread over some units; near zero their digits say little.
        allowed = {"f32": 1e-3, "f16": 3e-2, "q8_0": 0.25}[kind] * np.maximum(1, np.abs(scores))
        assert (np.abs(got - scores) <= allowed).all(), (query, got, scores)


@pytest.mark.parametrize("name", models_tiny.EMBEDDERS)
def test_the_same_folder_gives_the_same_bytes(name, convert, tmp_path):
    again = tmp_path / "again.gguf"
    first = convert(name, "f16")
    done = run_program("kith-convert", first.parent / name, again, "--type", "f16")
    assert done.returncode == 0 and again.read_bytes() == first.read_bytes()
