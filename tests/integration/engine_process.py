"""kith-engine with the test in its server's place (protocol/engine_wire.md)."""

import itertools
import socket
import struct
import subprocess

from kithtest import BIN, PATIENCE, SANITIZER_REPORT, Wire, _environment


class EngineWire(Wire):
    """The server's end of the socket pair."""

    def __init__(self, sock, timeout=60.0):
        self.sock = sock
        self.sock.settimeout(timeout * PATIENCE)
        self.buffer = bytearray()
        self.raw = b""
        self._raw = bytearray()


class EngineError(str):
    """ERROR's message; code is INVALID, BUSY or INTERNAL."""

    def __new__(cls, code, message):
        self = super().__new__(cls, message)
        self.code = code
        return self


def pairs(words):
    words = [w.decode() for w in words]
    return dict(zip(words[::2], words[1::2], strict=True))


class Engine:
    """A running kith-engine. `ready` is what READY said, or None and `failure` has FAIL's words."""

    def __init__(self, folder, *options, env=None):
        ours, its = socket.socketpair()
        self.log_path = folder / f"engine-{ours.fileno()}.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [str(BIN / "kith-engine"), "--fd", str(its.fileno()), *map(str, options)],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), **(env or {})},
            )
        its.close()
        self.wire = EngineWire(ours)
        self.ids = itertools.count(1)
        self.waiting = {}
        self.ready = self.failure = None
        try:
            first = self.wire.read()
        except ConnectionError:
            raise AssertionError(f"the engine ended at start: {self.log()}") from None
        if first[0] == b"READY":
            self.ready = pairs(first[1:])
        else:
            assert first[0] == b"FAIL", first
            self.failure = first[1].decode()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def send(self, *texts, flags="-"):
        """EMBED; returns its id."""
        n = next(self.ids)
        self.wire.send("EMBED", n, flags, *texts)
        return n

    def answer(self, n):
        """The answer to request n: rows of floats, an EngineError, or a PONG's words. Answers to
        others that come before it are kept for their turn."""
        while n not in self.waiting:
            kind, of, *rest = self.wire.read()
            of = int(of)
            assert of not in self.waiting, f"two answers to {of}"
            if kind == b"ERROR":
                self.waiting[of] = EngineError(rest[0].decode(), rest[1].decode())
            elif kind == b"VECTORS":
                n_texts, dim, self.tokens = map(int, rest[:3])
                numbers = struct.unpack(f"<{n_texts * dim}f", rest[3])
                self.waiting[of] = [numbers[i * dim : (i + 1) * dim] for i in range(n_texts)]
            elif kind == b"SCORES":
                self.waiting[of] = list(struct.unpack(f"<{int(rest[0])}f", rest[2]))
            else:
                assert kind == b"PONG", kind
                self.waiting[of] = [int(w) for w in rest[:4]], pairs(rest[4:])
        return self.waiting.pop(n)

    def embed(self, *texts, flags="-"):
        return self.answer(self.send(*texts, flags=flags))

    def rerank(self, query, *documents, flags="-"):
        n = next(self.ids)
        self.wire.send("RERANK", n, flags, query, *documents)
        return self.answer(n)

    def ping(self):
        """(queued, batches, tokens, texts), {what more it says}"""
        n = next(self.ids)
        self.wire.send("PING", n)
        return self.answer(n)

    def close(self, status=0):
        """Ends the stream, as a server does that stops."""
        self.wire.close()
        try:
            got = self.process.wait(60 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the engine did not end: {self.log()}") from None
        assert not SANITIZER_REPORT.search(self.log()), self.log()
        assert got == status, (got, self.log())
