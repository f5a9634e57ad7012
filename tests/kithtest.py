"""What the Python tests share: a server of one's own (Server), a client that sees every byte
(Wire), and polling instead of sleeping (wait_until).

No test may fail because the machine is slow. A time-out only ends the wait for what never comes,
so it is long (PATIENCE); what must happen "at once" or "meanwhile" is shown by the order of things,
or by something that would take far longer otherwise.

Environment: KITH_BIN (the programs' folder, default build/bin) and KITH_VARIANT (release, asan,
tsan): the sanitizers make programs slower, so time-outs grow and repetition counts shrink.
"""

import concurrent.futures
import functools
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import redis

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("KITH_BIN", ROOT / "build" / "bin")).resolve()
VARIANT = os.environ.get("KITH_VARIANT", "release")
LONG = os.environ.get("KITH_LONG", "") not in ("", "0")
MODELS = ROOT / "build" / "models"
Q8_MODEL = MODELS / "all-MiniLM-L6-v2.q8_0.gguf"
F16_MODEL = MODELS / "all-MiniLM-L6-v2.f16.gguf"
F32_MODEL = MODELS / "all-MiniLM-L6-v2.f32.gguf"

SLOWER = {"release": 1, "asan": 4, "tsan": 8}[VARIANT]
"""How much longer than the release build a program may take."""

PATIENCE = 6 * SLOWER
"""How much longer than on a quiet machine a test waits before it gives up: the speed of a shared
machine varies several times. Every `timeout` below is multiplied by it."""

SANITIZER_REPORT = re.compile(
    r"ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|ThreadSanitizer: |runtime error: "
    r"|SUMMARY: (Address|Thread|Leak|UndefinedBehavior)Sanitizer"
)


def scaled(count, least=1):
    """A repetition count, smaller under a sanitizer."""
    return max(least, count // SLOWER)


def wait_until(condition, timeout=10.0, what=None, step=0.01):
    """Polls until condition() is true and returns what it returned. An exception from condition()
    is not caught."""
    until = time.monotonic() + timeout * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"waited {timeout * PATIENCE:.0f} s in vain for {what or condition}")
        time.sleep(step)


def together(calls):
    """Runs each in a thread of its own until all are done; what one of them raised is raised."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as threads:
        for done in [threads.submit(call) for call in calls]:
            done.result()


# --- a client that sees every byte --------------------------------------------------------------


class Simple(str):
    """A simple string: +OK."""


class ReplyError(str):
    """An error reply, without its '-'."""


class Push(list):
    """A RESP3 push message."""


class Double(float):
    """A RESP3 double, which remembers how it was written."""

    def __new__(cls, text):
        self = super().__new__(cls, text)
        self.text = text
        return self


class NullArray:
    """RESP2's *-1, which is not $-1."""

    def __repr__(self):
        return "NULL_ARRAY"


NULL_ARRAY = NullArray()


def encode(*args):
    """One request as clients send it."""
    out = [b"*%d\r\n" % len(args)]
    for a in args:
        if isinstance(a, str):
            a = a.encode("utf-8", "surrogateescape")
        elif not isinstance(a, (bytes, bytearray, memoryview)):
            a = str(a).encode()
        out.append(b"$%d\r\n" % len(a))
        out.append(bytes(a))
        out.append(b"\r\n")
    return b"".join(out)


class Wire:
    """A plain socket that sends bytes and reads replies with their types. `raw` of the last reply
    holds its exact bytes."""

    def __init__(self, port=None, path=None, host="127.0.0.1", timeout=20.0, protocol=None):
        if path:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(timeout * PATIENCE)
            self.sock.connect(str(path))
        else:
            self.sock = socket.create_connection((host, port), timeout=timeout * PATIENCE)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.raw = b""
        self._raw = bytearray()
        if protocol:
            reply = self.cmd("HELLO", protocol)
            assert not isinstance(reply, ReplyError), reply

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send_bytes(self, data):
        self.sock.sendall(data)

    def send(self, *args):
        self.sock.sendall(encode(*args))

    def cmd(self, *args):
        self.send(*args)
        return self.read()

    def cmds(self, requests):
        """Pipelines: sends all, reads all."""
        requests = list(requests)
        self.sock.sendall(b"".join(encode(*r) for r in requests))
        return [self.read() for _ in requests]

    def read(self):
        self._raw = bytearray()
        value = self._value()
        self.raw = bytes(self._raw)
        return value

    def closed(self):
        """Waits for the end of the stream; True when nothing came before it."""
        if self.buffer:
            return False
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def _fill(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.buffer += data

    def _line(self):
        start = 0
        while True:
            end = self.buffer.find(b"\r\n", start)
            if end >= 0:
                break
            start = max(0, len(self.buffer) - 1)
            self._fill()
        line = bytes(self.buffer[:end])
        self._raw += self.buffer[: end + 2]
        del self.buffer[: end + 2]
        return line

    def _bytes(self, n):
        while len(self.buffer) < n + 2:
            self._fill()
        data = bytes(self.buffer[:n])
        assert self.buffer[n : n + 2] == b"\r\n", "a bulk string without its end"
        self._raw += self.buffer[: n + 2]
        del self.buffer[: n + 2]
        return data

    def _value(self):
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return Simple(rest.decode("utf-8", "replace"))
        if kind == b"-":
            return ReplyError(rest.decode("utf-8", "replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._bytes(int(rest))
        if kind == b"*":
            return NULL_ARRAY if rest == b"-1" else [self._value() for _ in range(int(rest))]
        if kind == b"_":
            return None
        if kind == b"#":
            return rest == b"t"
        if kind == b",":
            return Double(rest.decode())
        if kind == b"%":
            return {_key(self._value()): self._value() for _ in range(int(rest))}
        if kind == b"~":
            return [self._value() for _ in range(int(rest))]
        if kind == b">":
            return Push(self._value() for _ in range(int(rest)))
        if kind == b"=":
            return self._bytes(int(rest))[4:]
        if kind == b"(":
            return int(rest)
        raise AssertionError(f"not a reply: {line!r}")


def _key(value):
    return tuple(value) if isinstance(value, list) else value


# --- a server of one's own ----------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def _environment():
    env = dict(os.environ)
    env.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:exitcode=99")
    env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    env.setdefault("TSAN_OPTIONS", "halt_on_error=1:exitcode=66")
    return env


WAYS_BACK = ["reload", "restart", "kill"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """kith-server in a folder of its own: data below `folder`/data, standard error in
    `folder`/server.log (one file over all restarts). Options are words: Server(folder,
    "--io-threads", 2). Nothing runs until start().

    file: the text of a settings file, written to `folder`/kith.conf and given first.
    """

    def __init__(self, folder, *options, port=None, file=None, env=None, program="kith-server"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.log_path = self.folder / "server.log"
        self.options = [str(o) for o in options]
        self.config_path = self.folder / "kith.conf" if file is not None else None
        if file is not None:
            self.config_path.write_text(file)
        self.program = BIN / program
        self.env = env or {}
        self.port = free_port() if port is None else port
        self._choose_port = port is None
        self.process = None
        self._clients = []
        self._log_from = 0

    # --- running

    def command_line(self):
        words = [str(self.program)]
        if self.config_path:
            words.append(str(self.config_path))
        words += ["--port", str(self.port), "--dir", str(self.data)]
        return words + self.options

    def spawn(self):
        """Starts the program without waiting for it to serve."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        with open(self.log_path, "ab") as log:
            self._log_from = log.tell()
            self.process = subprocess.Popen(
                self.command_line(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), **self.env},
                cwd=self.folder,
            )
        return self

    def start(self, timeout=20.0):
        """Starts the program and waits until it serves. Returns self."""
        for attempt in range(4):
            self.spawn()
            try:
                wait_until(self._serves_or_ended, timeout, "the server to serve")
            except AssertionError:
                self.kill()
                raise AssertionError(f"the server did not come up:\n{self.log()}") from None
            if self.process.poll() is None:
                return self
            # Another program may have taken the port between choosing and binding it.
            if not (self._choose_port and "in use" in self.log() and attempt < 3):
                break
            self.port = free_port()
        raise AssertionError(
            f"the server ended with {self.process.returncode} at start:\n{self.log()}"
        )

    def _serves_or_ended(self):
        if self.process.poll() is not None:
            return True
        try:
            with self.wire(timeout=5.0) as w:
                w.send("PING")
                w.read()
                return True
        except (OSError, ConnectionError):
            return False

    def wire(self, protocol=None, timeout=20.0):
        """A plain socket to it."""
        if self.port == 0:
            return Wire(path=self.unixsocket(), protocol=protocol, timeout=timeout)
        return Wire(self.port, protocol=protocol, timeout=timeout)

    def unixsocket(self):
        return self.options[self.options.index("--unixsocket") + 1]

    def client(self, **options):
        """A redis-py client; closed by stop() and kill()."""
        options.setdefault("socket_timeout", 30.0 * PATIENCE)
        c = redis.Redis(port=self.port, **options)
        self._clients.append(c)
        return c

    def _close_clients(self):
        for c in self._clients:
            c.close()
        self._clients.clear()

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=30.0):
        """Waits until the program has ended by itself; its exit status."""
        try:
            return self.process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end:\n{self.log()}") from None

    def stop(self, timeout=30.0):
        """SIGTERM, wait; the exit status. Anything but 0, or a sanitizer's report, is an
        AssertionError that shows the log."""
        self._close_clients()
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        status = self.wait(timeout)
        self.check_log()
        assert status == 0, f"exit status {status}:\n{self.log()}"
        return status

    def kill(self):
        """SIGKILL, as a power cut for the program (not for the machine)."""
        self._close_clients()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self, timeout=20.0):
        self.stop()
        return self.start(timeout)

    def come_back(self, how, timeout=20.0):
        """One of WAYS_BACK: in the program that runs, or in a new one, from what is on the disk."""
        if how == "reload":
            with self.wire(timeout=timeout) as w:
                assert w.cmd("DEBUG", "RELOAD") == "OK"
        elif how == "restart":
            self.restart()
        else:
            self.kill()
            self.start()

    # --- what it says

    def log(self, whole=False):
        """What it wrote to standard output and error since its last start, or ever."""
        try:
            with open(self.log_path, "rb") as f:
                if not whole:
                    f.seek(self._log_from)
                return f.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def check_log(self):
        """No sanitizer may have spoken."""
        text = self.log(whole=True)
        found = SANITIZER_REPORT.search(text)
        assert not found, f"a sanitizer reports:\n{text[found.start() : found.start() + 8000]}"

    def info(self, section="everything"):
        """INFO as a dict of strings."""
        with self.wire() as w:
            reply = w.cmd("INFO", section)
        lines = (line.split(":", 1) for line in reply.decode().split("\r\n") if ":" in line)
        return {k: v for k, v in lines}

    def wait_engine(self, timeout=30.0):
        """Waits until the engine answers; its process id."""

        def up():
            i = self.info("engine")
            return i.get("engine_up") == "1" and int(i["engine_pid"])

        return wait_until(up, timeout, "the engine", step=0.02)

    def engine_pid(self):
        return int(self.info("engine").get("engine_pid", 0))


running = []
"""The servers of all Makers, for whoever wants to show their logs."""


class Maker:
    """Makes servers below a folder; finish() stops those that still run, and fails when one did
    not end in order or a sanitizer spoke."""

    def __init__(self, folder):
        self.folder = folder
        self.made = []

    def __call__(self, *options, start=True, **keywords):
        s = Server(self.folder / f"server{len(self.made)}", *options, **keywords)
        self.made.append(s)
        running.append(s)
        return s.start() if start else s

    def finish(self):
        problems = []
        for s in self.made:
            try:
                if s.running:
                    s.stop()
                s.check_log()
            except AssertionError as e:
                problems.append(str(e))
            finally:
                if s.running:
                    s.kill()
                running.remove(s)
        if not problems:
            shutil.rmtree(self.folder, ignore_errors=True)
        assert not problems, "\n".join(problems)


def run_program(name, *args, timeout=60.0, env=None, **options):
    """Runs one of the programs to its end; CompletedProcess with text output."""
    return subprocess.run(
        [str(BIN / name), *map(str, args)],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        capture_output=True,
        text=True,
        timeout=timeout * PATIENCE,
        env={**_environment(), **(env or {})},
        **options,
    )
