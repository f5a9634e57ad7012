"""Remote models in the server: MODEL LOAD name STYLE+URL#MODEL, and what a client sees of them."""

import math
import re
import struct

import pytest

import fake_remote
from fake_remote import FakeRemote, vector_of
from kithtest import ReplyError

DIM = 8
NEVER_MS = 3_600_000


@pytest.fixture
def fake():
    server = FakeRemote(DIM)
    yield server
    server.close()


@pytest.fixture
def start(make_server):
    return lambda *options: make_server("--engine-timeout-ms", NEVER_MS, *options)


def source(fake, style="ollama"):
    return f"{style}+{fake.url}#nomic-embed-text"


def embedded(wire, *words):
    (blob,) = wire.cmd("EMBED", *words)
    return struct.unpack(f"<{DIM}f", blob)


def refused(reply, why):
    """That the reply is an error which says so."""
    assert isinstance(reply, ReplyError), reply
    assert re.search(why, reply), reply


def near(got, text):
    expected = vector_of(text, DIM)
    length = math.sqrt(sum(x * x for x in expected))
    return sum(a * b for a, b in zip(got, expected)) / length > 0.99999


@pytest.mark.parametrize("style", ["ollama", "openai"])
def test_a_remote_model_is_a_model(start, fake, style):
    server = start()
    w = server.wire(timeout=60)
    assert w.cmd("MODEL", "LOAD", "far", source(fake, style), "DIM", DIM, "QUERY-PROMPT", "query: ",
                 "CONTEXT", 100) == "OK"
    assert near(embedded(w, "MODEL", "far", "FORMAT", "FP32", "TEXTS", "a cat"), "a cat")
    assert near(embedded(w, "MODEL", "far", "QUERY", "FORMAT", "FP32", "TEXTS", "a cat"), "query: a cat")
    info = w.cmd("MODEL", "INFO", "far")
    facts = dict(zip(info[::2], info[1::2]))
    assert facts[b"kernels"] == b"remote" and facts[b"dim"] == DIM and facts[b"context"] == 100
    assert facts[b"prompts"] == [b"query", b"query: "]

    assert w.cmd("VCREATE", "docs", "DIM", DIM, "MODEL", "far") == "OK"
    words = [x for i in range(40) for x in (f"e{i}", f"text number {i}")]
    assert w.cmd("VMADD", "docs", "TEXT", 40, *words) == 40
    # The document is without the query's words: its own vector is nearest to itself as a vector.
    assert w.cmd("VSIM", "docs", "VALUES", DIM, *vector_of("text number 7", DIM), "COUNT", 1) == [b"e7"]


def test_it_comes_back_after_a_restart(start, fake, tmp_path):
    fallback = tmp_path / "none.gguf"
    server = start()
    w = server.wire(timeout=60)
    assert w.cmd("MODEL", "LOAD", "far", source(fake), "DIM", DIM, "RETRIES", 2) == "OK"
    hash_of = dict(zip(*[iter(w.cmd("MODEL", "INFO", "far"))] * 2))[b"hash"]
    assert w.cmd("VADD", "docs", "TEXT", "a cat", "c", "MODEL", "far") == 1
    server.restart()
    w = server.wire(timeout=60)
    assert w.cmd("VADD", "docs", "TEXT", "a dog", "d") == 1  # the set's own model
    assert dict(zip(*[iter(w.cmd("MODEL", "INFO", "far"))] * 2))[b"hash"] == hash_of
    refused(w.cmd("MODEL", "LOAD", "near", source(fake), "DIM", DIM, "FALLBACK", fallback), "none.gguf")


def test_every_option_at_once(start, fake, tmp_path):
    key, fallback = tmp_path / "key", tmp_path / "none.gguf"
    key.write_text("secret\n")
    key.chmod(0o600)
    server = start()
    w = server.wire(timeout=60)
    words = ["DIM", DIM, "CONTEXT", 100, "QUERY-PROMPT", "q: ", "DOCUMENT-PROMPT", "d: ", "KEY-FILE", key,
             "CA-FILE", key, "TIMEOUT-MS", 20000, "RETRIES", 1, "BATCH-TEXTS", 2, "PARALLEL", 1,
             "SEND-DIMENSIONS", "THREADS", 1, "PRECISION", "f32", "FALLBACK", fallback]
    refused(w.cmd("MODEL", "LOAD", "far", source(fake), *words), "none.gguf")
    assert w.cmd("PING") == "PONG", "and the server is there"


def test_a_line_of_the_settings(start, fake):
    server = start("--model", "far", source(fake), "DIM", DIM)
    w = server.wire(timeout=60)
    assert near(embedded(w, "FORMAT", "FP32", "TEXTS", "first"), "first")


def test_lies_reach_the_client_as_errors(start, fake):
    server = start()
    w = server.wire(timeout=60)
    assert w.cmd("MODEL", "LOAD", "far", source(fake), "DIM", DIM, "RETRIES", 0) == "OK"
    fake.once.append(fake_remote.status(200, b"<html>a login page</html>"))
    refused(w.cmd("VADD", "docs", "TEXT", "a cat", "c", "MODEL", "far"), r"ENGINE.*127\.0\.0\.1")
    assert w.cmd("EXISTS", "docs") == 0
    fake.once.append(fake_remote.changed(lambda a: {**a, "embeddings": [[1.0, 2.0]]}))
    refused(w.cmd("VADD", "docs", "TEXT", "a cat", "c", "MODEL", "far"), "2.*8")
    assert w.cmd("VADD", "docs", "TEXT", "a cat", "c", "MODEL", "far") == 1


@pytest.mark.parametrize("words, why", [
    (["ollama+http://127.0.0.1:1", "DIM", 8], "no #MODEL"),
    (["ollama+http://127.0.0.1:1#m"], "needs DIM"),
    (["ollama+http://127.0.0.1:1#m", "DIM", "many"], "--dim"),
    (["ollama+ftp://127.0.0.1:1#m", "DIM", 8], "http"),
    (["openai+http://127.0.0.1:1#m", "DIM", 8, "KEY", "secret"], "'KEY' is no option"),
    (["openai+http://127.0.0.1:1#m", "DIM", 8, "KEY-FILE", "/nowhere/key"], "/nowhere/key"),
])
def test_wrong_loads_say_why(start, words, why):
    w = start().wire(timeout=60)
    refused(w.cmd("MODEL", "LOAD", "far", *words), why)
    assert w.cmd("MODEL", "LIST") == []
