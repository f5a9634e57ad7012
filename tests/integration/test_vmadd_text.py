"""VMADD ... TEXT: many texts, one request to the engine, all of them stored or none."""

import os
import signal

import numpy as np
import pytest

from kithtest import F16_MODEL, WAYS_BACK, ReplyError, scaled, wait_until

TEXTS = {
    "cat": "A cat sleeps on the warm windowsill.",
    "bank": "The central bank raised interest rates again.",
    "rain": "Heavy rain is expected over the weekend.",
    "odd": "tab\there, Zürich, 日本, \U0001f600\x00 end",
}


def flat(pairs):
    return [x for pair in pairs.items() for x in pair]


def vector(reply):
    return np.array([float(x) for x in reply], np.float32)


@pytest.fixture
def text_wire(text_server, protocol):
    with text_server.wire(protocol) as w:
        yield w


def embeds(server):
    info = server.info("engine")
    return int(info["engine_requests"]), int(info["engine_texts"])


def test_texts_in_one_request(text_wire, text_server):
    before = embeds(text_server)
    assert text_wire.cmd("VMADD", "v", "TEXT", 4, *flat(TEXTS)) == 4
    after = embeds(text_server)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 4)
    for name, text in TEXTS.items():
        assert text_wire.cmd("VTEXT", "v", name) == text.encode()
        made = vector(text_wire.cmd("EMBED", "TEXTS", text)[0])
        assert float(vector(text_wire.cmd("VEMB", "v", name)) @ made) > 0.999, name
    assert text_wire.cmd("VSIM", "v", "TEXT", "a sleeping kitten", "COUNT", 1) == [b"cat"]
    assert text_wire.cmd("VMADD", "v", "TEXT", 2, "cat", "another cat", "new", "x") == 1
    assert text_wire.cmd("VTEXT", "v", "cat") == b"another cat"
    info = text_wire.cmd("VINFO", "v")
    info = info if isinstance(info, dict) else dict(zip(info[::2], info[1::2]))
    engine = text_server.info("engine")
    assert info["model-hash"].decode() == engine["engine_model_hash"] != ""
    assert info["vector-dim"] == 384


def test_attributes_and_options(text_wire):
    words = ["a", "one text", '{"n":1}', "b", "another", "", "ATTRS", "a third", '{"n":3}']
    options = ["TRUNCATE", "NOQUANT", "EF", 50, "M", 8, "EX", 1000]
    assert text_wire.cmd("VMADD", "v", *options, "TEXT", 3, "ATTRS", *words) == 3
    assert text_wire.cmd("VGETATTR", "v", "a") == b'{"n":1}'
    assert text_wire.cmd("VGETATTR", "v", "b") == b""
    assert text_wire.cmd("VGETATTR", "v", "ATTRS") == b'{"n":3}'
    assert text_wire.cmd("VSIM", "v", "TEXT", "one", "FILTER", ".n > 1") == [b"ATTRS"]
    assert text_wire.cmd("VMADD", "w", "TEXT", 1, "ATTRS", "text of an element of that name") == 1
    assert text_wire.cmd("VMADD", "w", "TEXT", 1, "TEXT", "TRUNCATE") == 1
    assert text_wire.cmd("VMADD", "w", "CAS", "TEXT", 1, "FP32", "VALUES") == 1
    assert sorted(text_wire.cmd("VRANGE", "w", "-", "+")) == [b"ATTRS", b"FP32", b"TEXT"]
    assert text_wire.cmd("VMADD", "r", "REDUCE", 50, "TEXT", 2, "a", "one", "b", "two") == 2
    assert text_wire.cmd("VDIM", "r") == 50
    assert text_wire.cmd("VSIM", "r", "TEXT", "one", "COUNT", 1) == [b"a"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["TEXT", 2, "a", "x"], "VMADD announces 2 elements, so 4 arguments must follow"),
        (["TEXT", 0, "a", "x"], "number of elements after TEXT, 1 or more"),
        (["TEXT", "x", "a", "x"], "number of elements after TEXT, 1 or more"),
        (["BAD", "TEXT", 1, "a", "x"], "invalid option before FP32, VALUES or TEXT: 'BAD'"),
        (["TRUNCATE", "FP32", 1, "a", "abcd"], "TRUNCATE goes with TEXT"),
        (["TEXT", 2, "a", "fine", "b", ""], "element 'b': text 2 is empty"),
        (["TEXT", 2, "a", b"\xff", "b", "fine"], "element 'a': text 1"),
        (["TEXT", 2, "ATTRS", "a", "x", "{}", "b", "y", "{bad"], "element 'b'"),
        (["TEXT", 2, "a", "x", "b" * 70000, "y"], "has a name of 70000 bytes"),
        (["REDUCE", 400, "TEXT", 2, "a", "x", "b", "y"], "REDUCE to 400 dimensions"),
        (["TEXT", 2, "a", "x", "b", "word " * 3000], "element 'b': text 2 has 3002 tokens"),
    ],
    ids=lambda w: str(w)[:30] if isinstance(w, str) else "",
)
def test_what_is_refused(text_wire, words, said):
    error = text_wire.cmd("VMADD", "v", *words)
    assert isinstance(error, ReplyError) and error.startswith("ERR") and said in error, error
    assert text_wire.cmd("EXISTS", "v") == 0


def test_too_long_with_truncate(text_wire):
    text = "word " * 3000
    assert text_wire.cmd("VMADD", "v", "TRUNCATE", "TEXT", 2, "a", "x", "b", text) == 2
    assert text_wire.cmd("VTEXT", "v", "b") == text.encode()


def test_dimensions_and_models_that_do_not_fit(text_wire, make_server, model):
    text_wire.cmd("VADD", "plain", "VALUES", 3, 1, 2, 3, "e")
    error = text_wire.cmd("VMADD", "plain", "TEXT", 1, "t", "x")
    assert error == "ERR Vector dimension mismatch - got 384 but set has 3"
    text_wire.cmd("SET", "string", "x")
    assert text_wire.cmd("VMADD", "string", "TEXT", 1, "t", "x").startswith("WRONGTYPE")
    s = make_server("--embedder", model)
    s.wait_engine()
    with s.wire() as w:
        assert w.cmd("VMADD", "v", "TEXT", 1, "a", "x") == 1
    s.stop()
    s.options[1] = str(F16_MODEL)
    s.start()
    s.wait_engine()
    with s.wire() as w:
        assert "cannot be compared" in w.cmd("VMADD", "v", "TEXT", 2, "b", "x", "c", "y")
        assert w.cmd("VCARD", "v") == 1


def test_in_a_transaction(text_wire):
    replies = text_wire.cmds(
        [
            ("MULTI",),
            ("VMADD", "v", "TEXT", 2, "a", "one text", "b", "two"),
            ("VTEXT", "v", "b"),
            ("VMADD", "v", "TEXT", 2, "c", "x", "d", ""),
            ("VCARD", "v"),
            ("EXEC",),
        ]
    )
    added, text, refused, n = replies[5]
    assert added == 2 and text == b"two" and "element 'd'" in refused and n == 2


def test_a_server_without_an_engine(server, protocol):
    with server.wire(protocol) as w:
        one = w.cmd("VADD", "v", "TEXT", "x", "a")
        assert w.cmd("VMADD", "v", "TEXT", 1, "a", "x") == one
        assert one.startswith("ENGINE")


def test_an_engine_that_loads_dies_or_is_full(make_server, model):
    """The request waits for a model that is being loaded; an engine that dies under it or has no
    room costs it an error, and nothing of it is stored."""
    s = make_server("--embedder", model, "--engine-queue-tokens", 1024)
    with s.wire() as w, s.wire() as other:
        first = w.cmd("VMADD", "v", "TEXT", 1, "a", "x")
        pid = s.wait_engine()
        if "still loading" in str(first):  # longer than a request waits, on a slow machine
            first = w.cmd("VMADD", "v", "TEXT", 1, "a", "x")
        assert first == 1
        os.kill(pid, signal.SIGSTOP)
        try:
            w.send("VMADD", "v", "TEXT", 2, "b", "text " * 400, "c", "y")
            wait_until(lambda: s.info("engine")["engine_queued"] == "1", what="it to wait")
            words = [x for i in range(40) for x in (f"n{i}", "text " * 400)]
            assert other.cmd("VMADD", "v", "TEXT", 40, *words).startswith("BUSY")
        finally:
            os.kill(pid, signal.SIGKILL)
        assert w.read().startswith("ENGINE")
        assert w.cmd("VCARD", "v") == 1
        s.wait_engine()
        wait_until(lambda: w.cmd("VMADD", "v", "TEXT", 1, "d", "z") == 1, what="the new engine")


@pytest.mark.parametrize("how", WAYS_BACK)
def test_what_was_acknowledged_is_there(make_server, model, how):
    s = make_server("--embedder", model)
    s.wait_engine()
    n = scaled(300, 60)
    with s.wire(timeout=60) as w:
        words = [x for i in range(n) for x in (f"e{i}", f"text number {i}", f'{{"i":{i}}}')]
        assert w.cmd("VMADD", "v", "TEXT", n, "ATTRS", *words) == n
        before = w.cmd("DEBUG", "DIGEST-VALUE", "v")
    s.come_back(how)
    with s.wire() as w:
        assert w.cmd("VCARD", "v") == n
        assert w.cmd("DEBUG", "DIGEST-VALUE", "v") == before
        for i in (0, n // 2, n - 1):
            assert w.cmd("VTEXT", "v", f"e{i}") == b"text number %d" % i
            assert w.cmd("VGETATTR", "v", f"e{i}") == b'{"i":%d}' % i
