"""What the crash tests share: a server that is started and killed in milliseconds, a RESP client
that needs no library, and the figures shown at the end of a run. What a client may expect to find
afterwards is in model.py."""

import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kithtest
from kithtest import LONG, PATIENCE, SANITIZER_REPORT, VARIANT, run_program

SEED = int(os.environ.get("KITH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

# Small files and frequent checkpoints, so that segments are made, filled and removed all the time.
SMALL = [
    "--log-segment-bytes",
    "1mb",
    "--checkpoint-log-bytes",
    "1mb",
    "--checkpoint-interval",
    "1",
]


figures = []


def say(text):
    """A line for the end of the run (conftest.py)."""
    figures.append(f"{text} (KITH_SEED={SEED})")
    print(text)


def repeat(short, long):
    """How often: `short` in make test, `long` with KITH_LONG=1; less under a sanitizer."""
    return max(2, (long if LONG else short) // {"release": 1, "asan": 3, "tsan": 10}[VARIANT])


def new_folder(name, disk=True):
    """A folder that stays when the test fails; see Server.__exit__. Where a killed process is all that
    happens the page cache is as good as the disk, so many short runs may take place in memory."""
    memory = None
    if not disk and os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 1 << 30:
        memory = "/dev/shm"
    return Path(tempfile.mkdtemp(prefix=f"kith-{name}-", dir=memory))


class Error(str):
    """An error reply."""


class Gone(Exception):
    """The server closed the connection."""


class NotReady(Exception):
    """The server ended instead of starting; .code and .log say how."""

    def __init__(self, code, log):
        super().__init__(f"the server did not start: exit status {code}\n{log}")
        self.code, self.log = code, log


def pack(*args):
    out = [b"*%d\r\n" % len(args)]
    for a in args:
        if isinstance(a, str):
            a = a.encode()
        elif isinstance(a, int):
            a = b"%d" % a
        out.append(b"$%d\r\n%s\r\n" % (len(a), a))
    return b"".join(out)


class Incomplete(Exception):
    pass


def parse(buf, at):
    """One RESP2 reply of buf from `at`: (value, end)."""
    end = buf.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, line = buf[at], bytes(buf[at + 1 : end])
    at = end + 2
    if kind == 43:  # +
        return line, at
    if kind == 45:  # -
        return Error(line.decode(errors="replace")), at
    if kind == 58:  # :
        return int(line), at
    n = int(line)
    if n < 0:
        return None, at
    if kind == 36:  # $
        if len(buf) < at + n + 2:
            raise Incomplete
        return bytes(buf[at : at + n]), at + n + 2
    assert kind == 42, f"no RESP: {bytes(buf[at - 20:at])!r}"
    values = []
    for _ in range(n):
        v, at = parse(buf, at)
        values.append(v)
    return values, at


class Conn:
    def __init__(self, path, timeout=60):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout * PATIENCE)
        self.sock.connect(path)
        self.buf = bytearray()

    def close(self):
        self.sock.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise Gone from e

    def receive(self):
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError as e:
            raise Gone from e
        if not data:
            raise Gone
        self.buf += data

    def replies(self):
        """All complete replies that are here, without waiting."""
        out, at = [], 0
        try:
            while at < len(self.buf):
                v, at = parse(self.buf, at)
                out.append(v)
        except Incomplete:
            pass
        del self.buf[:at]
        return out

    def drain(self, take):
        """The server is dead: what it had sent before, and the end."""
        try:
            while True:
                take(self.replies())
                self.receive()
        except Gone:
            take(self.replies())
        self.close()

    def read(self, n):
        out, at = [], 0
        while len(out) < n:
            try:
                v, at = parse(self.buf, at)
                out.append(v)
            except Incomplete:
                self.receive()
        del self.buf[:at]
        return out

    def call(self, *args):
        self.send(pack(*args))
        return self.read(1)[0]

    def many(self, commands):
        """The replies of a pipeline, in pieces that no buffer limit minds."""
        out = []
        for i in range(0, len(commands), 500):
            part = commands[i : i + 500]
            self.send(b"".join(pack(*c) for c in part))
            out += self.read(len(part))
        return out

    def ok(self, *args):
        reply = self.call(*args)
        assert not isinstance(reply, Error), f"{args[:3]} was answered: {reply}"
        return reply


class Server(kithtest.Server):
    """A kith-server on a Unix socket, started and killed in milliseconds. As a context manager it
    removes its folder when all went well, and keeps and names it when not.

    Log and socket are beside the data (folder/server.log, folder/s), so that neither a fault
    injected below the data directory nor a full disk there reaches them."""

    def __init__(self, folder, *options, data=None, user=None, **kw):
        super().__init__(folder, "--unixsocket", f"{folder}/s", *options, port=0, **kw)
        self.user = user
        if data:
            self.data = Path(data)

    def command_line(self):
        as_user = ["setpriv", f"--reuid={self.user}", "--clear-groups"] if self.user else []
        return as_user + super().command_line()

    def start(self, timeout=30.0):
        self.spawn()
        end = time.monotonic() + timeout * PATIENCE
        while True:
            if self.process.poll() is not None:
                self.check_end()
                raise NotReady(self.process.returncode, self.log())
            try:
                c = self.connect()
                reply = c.call("PING")
                c.close()
                if reply == b"PONG":
                    return self
            except (OSError, Gone):
                pass
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the server does not answer after {timeout} s:\n{self.log()}")
            time.sleep(0.001)

    def connect(self):
        return Conn(f"{self.folder}/s")

    def check_end(self):
        """After the end: no sanitizer's report, no death by a signal that nobody sent."""
        text = self.log()
        found = SANITIZER_REPORT.search(text)
        assert not found, f"a sanitizer reports:\n{text[found.start() : found.start() + 6000]}"
        code = self.process.returncode
        assert code >= 0 or code == -signal.SIGKILL, f"the server died of signal {-code}:\n{text}"

    def end(self, sig=signal.SIGKILL):
        """Sends the signal; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.wait(60)
        self.check_end()
        return code

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.running:
            self.kill()
        if kind is None:
            shutil.rmtree(self.folder)
        else:
            print(f"kept for a look: {self.folder}")


def check(data):
    """kith-check: (exit status, output)."""
    p = run_program("kith-check", data)
    assert p.returncode >= 0, f"kith-check died of signal {-p.returncode}: {p.stderr}"
    assert not SANITIZER_REPORT.search(p.stderr), p.stderr
    return p.returncode, p.stdout + p.stderr
