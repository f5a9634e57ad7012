"""Text in, neighbours out: VADD TEXT, VSIM TEXT, VTEXT and EMBED with the real model."""

import contextlib
import json
import os
import signal
import struct

import numpy as np
import pytest

from kithtest import F16_MODEL, F32_MODEL, ROOT, VARIANT, ReplyError, encode, scaled, wait_until

SENTENCES = {
    "cat": "A cat sleeps on the warm windowsill.",
    "dog": "The puppy chased a ball across the garden.",
    "bank": "The central bank raised interest rates again.",
    "code": "The compiler reports an error in the source file.",
    "rain": "Heavy rain is expected over the weekend.",
}


def vector(reply):
    """One vector of EMBED, in either format and protocol."""
    if isinstance(reply, bytes):
        return np.frombuffer(reply, "<f4")
    return np.array([float(x) for x in reply], dtype=np.float32)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def text_wire(text_server, protocol):
    with text_server.wire(protocol) as w:
        yield w


@pytest.fixture
def library(text_wire):
    for name, text in SENTENCES.items():
        assert text_wire.cmd("VADD", "docs", "TEXT", text, name) in (1, True)
    return text_wire


# --- EMBED ---------------------------------------------------------------------------------------


def test_vectors_are_those_of_sentence_transformers(text_server):
    """The golden vectors, through the whole server, all texts in one pipeline."""
    golden = ROOT / "tests" / "golden"
    lines = [json.loads(x) for x in (golden / "embeddings.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in lines[1:]]
    expected = np.fromfile(golden / "embeddings.f16", "<f2").reshape(len(texts), -1)
    step = max(1, len(texts) // scaled(300, 20))
    with text_server.wire() as w:
        replies = w.cmds([("EMBED", "FORMAT", "FP32", t) for t in texts[::step]])
    for text, reply, row in zip(texts[::step], replies, expected[::step].astype(np.float32)):
        assert not isinstance(reply, ReplyError), (text, reply)
        assert cosine(vector(reply[0]), row) > 0.99, text


def test_embed_formats(text_wire, protocol):
    dim = 384
    plain = text_wire.cmd("EMBED", "some text")
    assert len(plain) == 1 and len(plain[0]) == dim
    assert isinstance(plain[0][0], bytes if protocol == 2 else float)
    blob = text_wire.cmd("EMBED", "FORMAT", "FP32", "some text")
    assert len(blob) == 1 and len(blob[0]) == 4 * dim
    assert np.abs(vector(plain[0]) - vector(blob[0])).max() < 1e-6
    assert np.linalg.norm(vector(blob[0])) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "words, texts",
    [
        (["a", "b", "c"], 3),
        (["TEXTS", "a", "b"], 2),
        (["FORMAT", "FP32", "TEXTS", "a", "b"], 2),
        (["a", "b", "FORMAT", "FP32"], 2),
        (["a", "FORMAT", "VALUES", "TRUNCATE"], 1),
        (["TRUNCATE", "FORMAT", "FP32", "a"], 1),
        (["a", "TRUNCATE"], 1),
        (["format", "fp32", "texts", "a"], 1),
        (["TEXTS", "FORMAT", "FP32"], 2),
        (["TEXTS", "TRUNCATE"], 1),
        (["TRUNCATE", "TEXTS", "TEXTS"], 1),
        (["FORMAT", "FP32", "FORMAT", "VALUES", "a"], 1),
        (["FORMAT"], 1),
        (["a", "FORMAT"], 2),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_embed_options(text_wire, words, texts):
    reply = text_wire.cmd("EMBED", *words)
    assert isinstance(reply, list) and len(reply) == texts, reply


def test_embed_in_no_known_format(text_wire):
    for words in (["FORMAT", "f16", "a"], ["a", "b", "format", "f16"], ["a", "FORMAT", "f16", "TRUNCATE"]):
        error = text_wire.cmd("EMBED", *words)
        assert error.startswith("ERR invalid FORMAT: 'f16', it takes FP32 or VALUES"), error


def test_embed_without_text(text_wire):
    for words in (["FORMAT", "FP32"], ["TRUNCATE"], ["TEXTS"], ["FORMAT", "VALUES", "TEXTS"]):
        assert text_wire.cmd("EMBED", *words) == "ERR EMBED takes at least one text after its options"
    assert text_wire.cmd("EMBED").startswith("ERR wrong number of arguments")


def test_texts_of_one_command_keep_their_order(text_wire):
    texts = list(SENTENCES.values())
    together = text_wire.cmd("EMBED", "FORMAT", "FP32", *texts)
    for text, blob in zip(texts, together):
        alone = text_wire.cmd("EMBED", "FORMAT", "FP32", text)[0]
        assert cosine(vector(alone), vector(blob)) > 0.999


# --- VADD TEXT, VSIM TEXT, VTEXT ------------------------------------------------------------------


def test_search_by_meaning(library):
    for question, expected in [
        ("a sleeping kitten", b"cat"),
        ("young dog playing outside", b"dog"),
        ("monetary policy", b"bank"),
        ("syntax mistake in a program", b"code"),
        ("weather forecast", b"rain"),
    ]:
        assert library.cmd("VSIM", "docs", "TEXT", question, "COUNT", 1) == [expected], question


def test_text_and_vector_mean_the_same(library):
    """A set filled by text can be asked with EMBED's vector, and the other way round."""
    blob = library.cmd("EMBED", "FORMAT", "FP32", "the economy")[0]
    by_text = library.cmd("VSIM", "docs", "TEXT", "the economy")
    assert library.cmd("VSIM", "docs", "FP32", blob) == by_text
    kept = vector(library.cmd("VEMB", "docs", "bank"))
    made = vector(library.cmd("EMBED", SENTENCES["bank"])[0])
    assert cosine(kept, made) > 0.999


def test_vtext(library):
    for name, text in SENTENCES.items():
        assert library.cmd("VTEXT", "docs", name) == text.encode()
    odd = "tab\there, Zürich, 日本, \U0001f600\x00 end"
    library.cmd("VADD", "docs", "TEXT", odd, "odd")
    assert library.cmd("VTEXT", "docs", "odd") == odd.encode()
    library.cmd("VADD", "docs", "TEXT", "another text", "odd")
    assert library.cmd("VTEXT", "docs", "odd") == b"another text"
    library.cmd("VADD", "docs", "FP32", bytes(4) + struct.pack("<f", 1) * 383, "odd")
    assert library.cmd("VTEXT", "docs", "odd") is None, "the new vector came without a text"
    library.cmd("VREM", "docs", "cat")
    assert library.cmd("VTEXT", "docs", "cat") is None
    assert library.cmd("VTEXT", "docs", "none") is None
    assert library.cmd("VTEXT", "docs").startswith("ERR wrong number of arguments")


def test_long_text_is_kept_whole(text_wire):
    text = "word " * 60000
    assert text_wire.cmd("VADD", "docs", "TEXT", text, "e", "TRUNCATE") in (1, True)
    assert text_wire.cmd("VTEXT", "docs", "e") == text.encode()


def test_options_of_text_forms(library):
    assert library.cmd("VADD", "nq", "TEXT", "some", "e", "NOQUANT", "M", 8, "EF", 50) in (1, True)
    assert library.cmd("VSIM", "nq", "TEXT", "some", "WITHSCORES", "COUNT", 3, "TRUTH", "TRUNCATE")
    assert library.cmd("VADD", "docs", "VALUES", 3, 1, 2, 3, "e") == (
        "ERR Vector dimension mismatch - got 3 but set has 384"
    )
    assert library.cmd("VSIM", "docs", "VALUES", 1, 1, "TRUNCATE") == (
        "ERR Vector dimension mismatch - got 1 but set has 384"
    )
    library.cmd("VADD", "plain", "VALUES", 3, 1, 2, 3, "e")
    assert library.cmd("VADD", "plain", "TEXT", "x", "t") == (
        "ERR Vector dimension mismatch - got 384 but set has 3"
    )
    assert library.cmd("VADD", "docs", "TEXT", "x").startswith("ERR wrong number of arguments")
    error = library.cmd("VADD", "docs", "TEXT", "x", "e", "BAD")
    assert error.startswith("ERR invalid option after element: 'BAD'"), error
    assert library.cmd("VSIM", "none", "TEXT", "x") == []


def test_vinfo_names_the_model(library, text_server, protocol):
    reply = library.cmd("VINFO", "docs")
    if protocol == 2:
        reply = dict(zip(reply[::2], reply[1::2]))
    engine = text_server.info("engine")
    assert reply["model"].decode() == engine["engine_model"]
    assert reply["model-hash"].decode() == engine["engine_model_hash"] != ""
    assert int(engine["engine_model_dim"]) == reply["vector-dim"] == 384


# --- what is refused -------------------------------------------------------------------------------


def requests_with(text):
    return [["EMBED", text], ["VADD", "v", "TEXT", text, "e"], ["VSIM", "docs", "TEXT", text]]


def test_too_long_text_names_both_lengths(library, text_server):
    context = int(text_server.info("engine")["engine_model_context"])
    n = context * 3
    for request in requests_with("word " * n):
        error = library.cmd(*request)
        assert isinstance(error, ReplyError) and error.startswith("ERR "), error
        numbers = [int(x) for x in "".join(c if c.isdigit() else " " for c in error).split()]
        assert n + 2 in numbers and context in numbers, error
        assert "truncat" in error.lower(), error
    if VARIANT != "release":
        return  # whole contexts take long under a sanitizer
    for request in requests_with("word " * n):
        reply = library.cmd(*request, "TRUNCATE")
        assert not isinstance(reply, ReplyError), reply
    full = vector(library.cmd("EMBED", "TRUNCATE", "word " * n)[0])
    cut = vector(library.cmd("EMBED", "word " * (context - 2))[0])
    assert cosine(full, cut) > 0.9999, "TRUNCATE keeps the beginning"
    assert isinstance(library.cmd("EMBED", "word " * (context - 1)), ReplyError)


def test_empty_text(library):
    for request in requests_with(""):
        error = library.cmd(*request)
        assert isinstance(error, ReplyError) and "empty" in error, error
    assert library.cmd("EXISTS", "v") == 0
    assert len(library.cmd("EMBED", " ")) == 1, "a blank is a text"


def test_invalid_utf8(library):
    for bad in (b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf", b"\x80"):
        for request in requests_with(b"text " + bad):
            error = library.cmd(*request)
            assert isinstance(error, ReplyError) and "UTF-8" in error, (bad, error)
    assert library.cmd("EXISTS", "v") == 0
    assert library.cmd("PING") == "PONG"


def test_one_bad_text_of_many_is_named(library):
    error = library.cmd("EMBED", "good", "fine", b"\xff", "well")
    assert isinstance(error, ReplyError) and "3" in error, error


@pytest.mark.parametrize("other", [F16_MODEL, F32_MODEL], ids=["f16", "f32"])
def test_set_refuses_the_vectors_of_another_model(make_server, model, other):
    if not other.exists():
        pytest.fail(f"{other} is missing: run tools/model.sh f32 f16 q8_0")
    s = make_server("--embedder", model)
    s.wait_engine()
    with s.wire() as w:
        assert w.cmd("VADD", "docs", "TEXT", "hello", "e") == 1
        info = w.cmd("VINFO", "docs")
    old = dict(zip(info[::2], info[1::2]))["model-hash"].decode()
    s.stop()
    s.options[1] = str(other)
    s.start()
    s.wait_engine()
    new = s.info("engine")["engine_model_hash"]
    assert new != old
    with s.wire() as w:
        for request in (["VADD", "docs", "TEXT", "x", "f"], ["VSIM", "docs", "TEXT", "x"]):
            error = w.cmd(*request)
            assert isinstance(error, ReplyError), error
            assert old in error and new in error and "cannot be compared" in error
        assert w.cmd("VCARD", "docs") == 1
        assert w.cmd("VSIM", "docs", "ELE", "e") == [b"e"], "what needs no model goes on"
        assert w.cmd("VTEXT", "docs", "e") == b"hello"
        assert w.cmd("VADD", "new", "TEXT", "x", "e") == 1, "a new set takes the new model"


# --- order and batches ------------------------------------------------------------------------------


@contextlib.contextmanager
def engine_held(server):
    """The engine computes nothing meanwhile. It is a process of its own that is stopped."""
    pid = server.engine_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_queued(server, n):
    wait_until(lambda: int(server.info("engine")["engine_queued"]) == n, what=f"{n} texts to wait")


def test_pipeline_is_answered_in_order(text_server, protocol):
    """Every command of a pipeline sees those before it, also while texts are computed."""
    n = scaled(200, 40)
    before = text_server.info("engine")
    requests = []
    for i in range(n):
        requests += [("VADD", "v", "TEXT", f"number {i}", i), ("VCARD", "v"), ("ECHO", i)]
    with text_server.wire(protocol, timeout=60) as w:
        # An idle engine starts with the first text it gets, and how many come next in time is a
        # race. So it begins when all of them are there.
        with engine_held(text_server):
            w.send_bytes(b"".join(encode(*r) for r in requests))
            wait_queued(text_server, n)
        replies = [w.read() for _ in requests]
    assert replies[1::3] == list(range(1, n + 1))
    assert replies[2::3] == [b"%d" % i for i in range(n)]
    after = text_server.info("engine")
    texts = int(after["engine_texts"]) - int(before["engine_texts"])
    # How many share a batch is the engine's race between reading and computing; that they do is
    # the unit test of its scheduler.
    assert texts == n


def test_slow_command_does_not_hold_up_others(text_server):
    """While one client's long pipeline is computed, another is served at once."""
    with text_server.wire(timeout=60) as busy, text_server.wire() as other:
        n = scaled(200, 20)
        with engine_held(text_server):
            for i in range(n):
                busy.send("EMBED", "FORMAT", "FP32", "a text of some length " * 10 + str(i))
            wait_queued(text_server, n)
            assert other.cmds([("INCR", "n")] * 50) == list(range(1, 51))
            assert [other.cmd("INCR", "n") for _ in range(5)] == list(range(51, 56))
        assert all(len(busy.read()[0]) == 1536 for _ in range(n))


def test_text_commands_in_a_transaction(text_wire):
    replies = text_wire.cmds(
        [
            ("MULTI",),
            ("VADD", "v", "TEXT", "one text", "a"),
            ("SET", "k", "x"),
            ("VSIM", "v", "TEXT", "one text", "COUNT", 1),
            ("EMBED", "FORMAT", "FP32", "one text"),
            ("VTEXT", "v", "a"),
            ("VADD", "v", "TEXT", "", "b"),
            ("EXEC",),
        ]
    )
    assert replies[1:7] == ["QUEUED"] * 6
    added, ok, found, embedded, text, refused = replies[7]
    assert added in (1, True) and ok == "OK" and found == [b"a"] and text == b"one text"
    assert len(embedded[0]) == 1536
    assert "empty" in refused


def test_discarded_text_commands(text_wire):
    text_wire.cmds([("MULTI",), ("VADD", "v", "TEXT", "one text", "a"), ("DISCARD",)])
    assert text_wire.cmd("EXISTS", "v") == 0
    text_wire.cmds([("WATCH", "w"), ("MULTI",), ("VADD", "v", "TEXT", "one text", "a")])
    text_wire.cmd("RESET")
    assert text_wire.cmd("EXISTS", "v") == 0


def test_many_texts_in_one_command(text_wire):
    n = scaled(500, 50)
    reply = text_wire.cmd("EMBED", "FORMAT", "FP32", *[f"text number {i}" for i in range(n)])
    assert len(reply) == n and len(set(reply)) == n


def test_redis_py_with_text(text_server, protocol):
    with text_server.client(protocol=protocol, decode_responses=True) as r:
        with r.pipeline(transaction=False) as p:
            for name, text in SENTENCES.items():
                p.execute_command("VADD", "docs", "TEXT", text, name)
            assert p.execute() == [1] * len(SENTENCES)
        assert r.execute_command("VSIM", "docs", "TEXT", "an animal", "COUNT", 2)[0] in (
            "cat",
            "dog",
        )
        assert r.vset().vsim("docs", "cat", count=1) == ["cat"]
