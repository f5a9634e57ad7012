"""The engine process dies, hangs, cannot start, is missing: the server lives, clients get an
answer, and the engine comes back."""

import os
import signal
import struct
import threading

import pytest

from kithtest import ROOT, ReplyError, encode, scaled, wait_until

NEVER_MS = 3_600_000
"""An engine-timeout-ms that does not end an engine on a slow machine, and that no test waits for."""


@pytest.fixture
def own_text_server(make_server, model):
    s = make_server("--embedder", model, "--engine-timeout-ms", NEVER_MS)
    s.wait_engine()
    return s


def drain(wire, n):
    replies = []
    for _ in range(n):
        replies.append(wire.read())
    return replies


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT], ids=["kill", "abort"])
def test_engine_killed_in_the_middle_of_a_big_batch(own_text_server, number):
    s = own_text_server
    pid = s.engine_pid()
    n = 60
    with s.wire(timeout=60) as w, s.wire() as other:
        w.cmd("SET", "k", "v")
        text = "many words make a long text " * 15
        w.send_bytes(b"".join(encode("EMBED", *[f"{text} {i} {j}" for j in range(20)]) for i in range(n)))
        w.send("GET", "k")
        wait_until(lambda: int(s.info("engine")["engine_queued"]) >= n // 2, what="a big batch")
        os.kill(pid, number)
        replies = drain(w, n)  # at once, and not after engine-timeout-ms
        failed = [r for r in replies if isinstance(r, ReplyError)]
        assert failed and all(r.startswith("ENGINE ") for r in failed), failed[:1]
        assert w.read() == b"v", "the commands behind it run"
        assert other.cmd("PING") == "PONG"
        assert s.wait_engine() != pid
        assert len(w.cmd("EMBED", "and again")) == 1
        assert int(s.info("engine")["engine_restarts"]) >= 1


def test_writes_by_text_are_all_or_nothing_when_the_engine_dies(own_text_server):
    """Every VADD TEXT that was acknowledged is there, every one refused is not."""
    s = own_text_server
    n = scaled(400, 60)
    with s.wire(timeout=60) as w:
        w.send_bytes(b"".join(encode("VADD", "v", "TEXT", f"element {i} " * 30, i) for i in range(n)))
        first = w.read()
        os.kill(s.engine_pid(), signal.SIGKILL)
        replies = [first] + drain(w, n - 1)
        added = {i for i, r in enumerate(replies) if r == 1}
        assert all(r == 1 or r.startswith("ENGINE ") for r in replies)
        for i in range(n):
            assert w.cmd("VISMEMBER", "v", i) == (i in added)


def test_engine_killed_again_and_again(own_text_server):
    """Clients keep asking; each gets a vector or an ENGINE error, never silence."""
    s = own_text_server
    stop = threading.Event()
    counts = {"vectors": 0, "errors": 0}
    problems = []

    def ask():
        try:
            with s.wire(timeout=30) as w:
                while not stop.is_set():
                    r = w.cmd("EMBED", "FORMAT", "FP32", "some text")
                    if isinstance(r, ReplyError):
                        assert r.startswith("ENGINE "), r
                        counts["errors"] += 1
                        stop.wait(0.01)
                    else:
                        assert len(r[0]) == 1536
                        counts["vectors"] += 1
        except Exception as e:
            problems.append(repr(e))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for t in threads:
        t.start()
    for _ in range(3):
        pid = s.wait_engine()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: s.engine_pid() != pid, what="the death to be noticed")
    s.wait_engine()
    had = counts["vectors"]
    wait_until(lambda: counts["vectors"] > had or problems, what="a vector after the last restart")
    stop.set()
    for t in threads:
        t.join()
    assert not problems, problems
    assert int(s.info("engine")["engine_restarts"]) >= 3


def test_engine_stopped(make_server, model):
    """SIGSTOP: it answers nothing. After engine-timeout-ms it is killed and started again."""
    s = make_server("--embedder", model, "--engine-timeout-ms", NEVER_MS)
    pid = s.wait_engine()
    os.kill(pid, signal.SIGSTOP)
    with s.wire(timeout=60) as w, s.wire() as other:
        assert other.cmd("CONFIG", "SET", "engine-timeout-ms", 1000) == "OK"
        w.send("EMBED", "text")
        w.send("SET", "behind", 1)
        assert other.cmd("SET", "k", 1) == "OK", "others are not held up"
        error = w.read()
        assert isinstance(error, ReplyError) and error.startswith("ENGINE "), error
        # The next one is given its time to load, whatever the machine is busy with.
        assert other.cmd("CONFIG", "SET", "engine-timeout-ms", NEVER_MS) == "OK"
        assert w.read() == "OK"
        new = s.wait_engine()
        assert new != pid
        assert len(w.cmd("EMBED", "text")) == 1
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the old engine to be gone")


def test_server_without_an_engine(server, protocol):
    with server.wire(protocol) as w:
        w.cmd("VADD", "v", "VALUES", 2, 1, 2, "e")
        for request in (
            ["EMBED", "text"],
            ["VADD", "v", "TEXT", "text", "f"],
            ["VADD", "new", "TEXT", "text", "f"],
            ["VSIM", "v", "TEXT", "text"],
        ):
            error = w.cmd(*request)
            assert error.startswith("ENGINE no embedding model is loaded"), error
            assert "--embedder" in error, "what would be right"
        assert w.cmd("EXISTS", "new") == 0
        assert w.cmd("VSIM", "v", "ELE", "e") == [b"e"]
        assert server.info("engine")["engine_enabled"] == "0"


def test_engine_ends_with_the_server(own_text_server):
    """Also when the server is killed: no engine is left behind."""
    pid = own_text_server.engine_pid()
    own_text_server.kill()
    wait_until(lambda: not alive(pid), what="the engine to end")
    own_text_server.start()
    pid = own_text_server.wait_engine()
    own_text_server.stop()
    wait_until(lambda: not alive(pid), what="the engine to end")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_stop_while_the_engine_hangs(own_text_server):
    """A hanging engine must not hold up the end of the server."""
    os.kill(own_text_server.engine_pid(), signal.SIGSTOP)
    with own_text_server.wire() as w:
        w.send("EMBED", "text")
        wait_until(
            lambda: own_text_server.info("engine")["engine_queued"] == "1", what="the text to wait"
        )
        own_text_server.stop()  # and not when engine-timeout-ms is over


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text


def hostile_files(model):
    """Files that are no embedding model, each wrong in another way."""
    good = model.read_bytes()
    header = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
    yield "empty", b""
    yield "text", b"this is no model\n" * 10
    yield "old version", struct.pack("<4sIQQ", b"GGUF", 1, 0, 0)
    yield "no metadata", header
    yield "cut in the header", good[:100]
    yield "cut in the metadata", good[:5000]
    yield "cut in the tensors", good[: len(good) // 2]
    yield "huge counts", struct.pack("<4sIQQ", b"GGUF", 3, 1 << 62, 1 << 62)
    yield "huge string", struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 63) + b"x" * 100
    yield "other architecture", struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_string(
        b"general.architecture"
    ) + struct.pack("<I", 8) + gguf_string(b"nothing-known")
    flipped = bytearray(good)
    flipped[24:24 + 4096] = bytes(b ^ 0x55 for b in flipped[24:24 + 4096])
    yield "flipped", bytes(flipped)


def refused(s):
    """What the server says of the engine, and EMBED's answer."""
    wait_until(lambda: s.info("engine")["engine_last_error"] != "", what="the engine's complaint")
    with s.wire(timeout=30) as w:
        error = w.cmd("EMBED", "text")
        assert w.cmd("SET", "k", 1) == "OK" and w.cmd("GET", "k") == b"1"
        assert w.cmd("VADD", "v", "VALUES", 2, 1, 2, "e") in (0, 1)
    return s.info("engine")["engine_last_error"], error


def test_hostile_model_files(make_server, model, tmp_path):
    """The server starts, the log says why, EMBED says why, everything else works."""
    path = tmp_path / "bad.gguf"
    s = make_server("--embedder", path, start=False)
    for name, data in hostile_files(model):
        path.write_bytes(data)
        s.start()
        reason, error = refused(s)
        assert isinstance(error, ReplyError) and error.startswith("ENGINE "), (name, error)
        assert "signal" not in reason, f"{name}: the engine crashed: {reason}"
        assert len(reason) > 10 and reason[:60] in error, (name, reason, error)
        assert str(path) in s.log() or "bad.gguf" in s.log(), (name, s.log())
        s.stop()


def test_language_model_is_no_embedder(make_server):
    """A real GGUF, of the wrong kind."""
    path = ROOT.parent / "shared" / "data" / "stories260K.gguf"
    if not path.exists():
        pytest.skip("no language model at hand (shared/data/stories260K.gguf)")
    s = make_server("--embedder", path)
    reason, error = refused(s)
    assert "llama" in reason and reason[:60] in error


def test_missing_model_and_missing_engine(make_server, model, tmp_path):
    s = make_server("--embedder", tmp_path / "none.gguf")
    reason, error = refused(s)
    assert "none.gguf" in reason and "none.gguf" in error
    s = make_server("--embedder", model, "--engine-path", tmp_path / "no-engine")
    reason, error = refused(s)
    assert "no-engine" in reason and error.startswith("ENGINE ")


def test_model_that_appears_later(make_server, model, tmp_path):
    """The next start finds it, without a restart of the server."""
    path = tmp_path / "model.gguf"
    s = make_server("--embedder", path)
    refused(s)
    os.link(model, path) if os.stat(model).st_dev == os.stat(tmp_path).st_dev else path.symlink_to(model)
    s.wait_engine(timeout=25)
    with s.wire() as w:
        assert len(w.cmd("EMBED", "text")) == 1


def test_a_full_queue_is_an_answer(make_server, model):
    """Past engine-queue-tokens a client gets BUSY at once, not an endless list."""
    s = make_server(
        "--embedder", model, "--engine-queue-tokens", 1024, "--engine-timeout-ms", NEVER_MS
    )
    os.kill(s.wait_engine(), signal.SIGSTOP)
    with s.wire(timeout=60) as w, s.wire(timeout=60) as other:
        n = 40
        w.send_bytes(encode("EMBED", "x" * 1000) * n)
        wait_until(lambda: int(s.info("engine")["engine_queued"]) > 0, what="a queue")
        error = other.cmd("EMBED", "y" * 9000)
        assert error.startswith("BUSY "), error
        os.kill(s.engine_pid(), signal.SIGCONT)
        replies = drain(w, n)
        assert all(not isinstance(r, ReplyError) or r.startswith(("BUSY ", "ERR ")) for r in replies)
        wait_until(lambda: s.info("engine")["engine_queued"] == "0", what="the queue to empty")
        assert len(other.cmd("EMBED", "fits again")) == 1


def test_two_precisions_agree(make_server, model):
    """int8 and f32 of the same file give nearly the same vectors."""
    vectors = []
    for precision in ("int8", "f32"):
        s = make_server("--embedder", model, "--engine-precision", precision)
        s.wait_engine()
        assert s.info("engine")["engine_precision"] == precision
        with s.wire() as w:
            blob = w.cmd("EMBED", "FORMAT", "FP32", "the same text")[0]
            vectors.append(struct.unpack("<384f", blob))
        s.stop()
    assert sum(a * b for a, b in zip(*vectors)) > 0.99
