"""What a client should not have sent: the error names the argument and what is right, nothing has
changed, and the connection goes on."""

import random
import struct

import pytest

from kithtest import ReplyError, encode, scaled

NAN = struct.pack("<f", float("nan"))
INFINITE = struct.pack("<f", float("inf"))
ONE = struct.pack("<f", 1.0)


@pytest.fixture
def w(server, protocol):
    with server.wire(protocol) as wire:
        assert wire.cmd("VADD", "v", "VALUES", 3, 1, 2, 3, "e") in (1, True)
        yield wire
        assert wire.cmd("PING") == "PONG", "the connection goes on"
        assert wire.cmd("VCARD", "v") == 1, "nothing has changed"


TABLE = [
    ("not a number", ["FP32", ONE + NAN + ONE], ["component 2", "not a number", "finite"]),
    ("infinite", ["FP32", ONE + ONE + INFINITE], ["component 3", "infinite", "finite"]),
    ("nan in words", ["VALUES", 3, 1, "nan", 2], ["component 2", "nan"]),
    ("inf in words", ["VALUES", 3, "inf", 1, 2], ["component 1", "infinite", "finite"]),
    ("-inf in words", ["VALUES", 3, 1, 1, "-inf"], ["component 3", "infinite", "finite"]),
    ("too large for a float", ["VALUES", 3, "1e39", 1, 2], ["component 1", "infinite"]),
    ("no number", ["VALUES", 3, 1, "two", 3], ["component 2", "'two'", "not a number"]),
    ("an empty word", ["VALUES", 3, 1, "", 3], ["component 2", "not a number"]),
    ("a number and more", ["VALUES", 3, "1x", 1, 2], ["component 1", "'1x'"]),
    ("too few dimensions", ["VALUES", 2, 1, 2], ["got 2", "set has 3"]),
    ("too many dimensions", ["FP32", ONE * 4], ["got 4", "set has 3"]),
    ("half a float", ["FP32", ONE * 2 + b"x"], ["9 bytes", "multiple of 4"]),
    ("no bytes", ["FP32", b""], ["0 bytes", "multiple of 4", "not empty"]),
    ("no dimensions", ["VALUES", 0], ["0 dimensions", "1 to"]),
    ("negative dimensions", ["VALUES", -3, 1, 2, 3], ["-3 dimensions", "1 to"]),
    ("an absurd dimension", ["VALUES", 1 << 40, 1, 2, 3], ["1 to"]),
    ("more announced than sent", ["VALUES", 300, 1, 2, 3], ["300", "arguments follow"]),
    ("no count", ["VALUES", "three", 1, 2, 3], ["VALUES takes a count"]),
]


@pytest.mark.parametrize("vector, told", [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_vectors(w, vector, told):
    for request in (["VADD", "v", *vector, "new"], ["VSIM", "v", *vector]):
        error = w.cmd(*request)
        assert isinstance(error, ReplyError) and error.startswith("ERR "), error
        if "announces" in error or "arguments follow" in told:
            continue
        for part in told:
            assert part in error, error


def test_an_error_does_not_run_away_with_the_clients_bytes(w):
    """Errors quote what came; neither line ends nor megabytes of it may get into the reply."""
    for bad in (b"\r\n+OK\r\n", b"x" * 1000000, b"\x00\x1b[2J"):
        for request in (
            [bad],
            ["CONFIG", bad],
            ["CONFIG", "SET", bad, 1],
            ["EXPIRE", "k", 1, bad],
            ["HELLO", 3, bad],
            ["CLIENT", "SETINFO", bad, "x"],
            ["CLIENT", "KILL", "TYPE", bad],
            ["VADD", "v", "VALUES", 3, 1, bad, 2, "e"],
            ["VSIM", "v", "ELE", bad],
        ):
            error = w.cmd(*request)
            assert isinstance(error, ReplyError), request[0]
            assert len(w.raw) < 600 and w.raw.count(b"\r\n") == 1, w.raw[:200]


def test_key_and_element_sizes(w):
    for n in (0, 1, 511, 512, 65535):
        name = b"k" * n
        assert w.cmd("VADD", name, "VALUES", 1, 1, name) in (1, True)
        assert w.cmd("SET", name + b"s", name) == "OK"
        assert w.cmd("VISMEMBER", name, name) in (1, True)
    error = w.cmd("VADD", "fresh", "VALUES", 1, 1, b"k" * 65536)
    assert "65536 bytes" in error and "65535" in error, error
    assert w.cmd("EXISTS", "fresh") == 0 and w.cmd("SET", b"k" * 70000, "v") == "OK"


def random_bytes(rng):
    """Something between a request and noise."""
    pick = rng.random()
    if pick < 0.2:
        return rng.randbytes(rng.randrange(1, 200))
    words = [
        rng.choice(
            [b"VADD", b"VSIM", b"SET", b"EXEC", b"MULTI", b"CONFIG", b"GET", b"v", b"TEXT", b"FP32"]
            + [b"VALUES", b"3", b"-1", b"\x00" * 12, b"TRUTH", b"SCAN", b"CLIENT", b"LIST", b""]
        )
        for _ in range(rng.randrange(1, 9))
    ]
    if words[0].upper() in (b"CONFIG", b"CLIENT"):
        words[1:] = [b"x"]
    data = bytearray(encode(*words))
    if pick > 0.6:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def test_noise(server):
    """Random and half-right bytes on many connections: the server stays, and a client that
    behaves notices nothing."""
    rng = random.Random(12)
    with server.wire() as good:
        for _ in range(scaled(300, 60)):
            with server.wire() as w:
                try:
                    for _ in range(rng.randrange(1, 6)):
                        w.send_bytes(random_bytes(rng))
                except (BrokenPipeError, ConnectionResetError):
                    pass
            good.cmd("SET", "k", "v")
            assert good.cmd("GET", "k") == b"v"
    assert server.running


@pytest.mark.parametrize("request_words", [["VADD", "v", "TEXT"], ["EMBED"], ["VSIM", "v", "TEXT"]])
def test_bad_text(text_server, request_words):
    with text_server.wire() as wire:
        wire.cmd("VADD", "v", "TEXT", "a text", "e")
        tail = ["f"] if request_words[0] == "VADD" else []
        for text, told in [(b"", "empty"), (b"\xff\xfe", "UTF-8"), (b"word " * 2000, "2002")]:
            error = wire.cmd(*request_words, text, *tail)
            assert isinstance(error, ReplyError) and told in error, error
        assert wire.cmd("VCARD", "v") == 1 and wire.cmd("PING") == "PONG"
