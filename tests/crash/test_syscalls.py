"""SIGKILL, EIO, ENOSPC and short writes at every system call that changes the data directory.

A scripted run (start in an empty directory, writes, SAVE, more writes, BGSAVE, deletes, SHUTDOWN) is
made once to count its calls, then once more for each call and each kind of fault, with fault.c
preloaded. Whatever happens, a start without the fault must succeed and show every acknowledged
operation, perhaps the one that was under way, and nothing else.

What a failed call may do (storage/wal.h): a failed sync of the log ends the process with status 3; a
failed write of it is tried again; no room is an error reply, after which the operation has not
happened; a failed checkpoint is tried again, the data being safe in the log."""

import collections
import copy
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from crashlib import (
    LONG,
    SEED,
    SMALL,
    VARIANT,
    Error,
    Gone,
    NotReady,
    Server,
    check,
    new_folder,
    pack,
    say,
)
from model import Operations, Writer, observe

WRITES = ("write", "pwrite64", "writev", "pwritev")
SYNCS = ("fsync", "fdatasync")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    out = tmp_path_factory.mktemp("fault") / "fault.so"
    source = Path(__file__).with_name("fault.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [
            compiler,
            "-std=gnu11",
            "-D_GNU_SOURCE",
            "-Wall",
            "-Wextra",
            "-O1",
            "-shared",
            "-fPIC",
            "-o",
            out,
            source,
            "-ldl",
        ],
        check=True,
    )
    return out


def script():
    """The steps: an operation of the model, or a command that changes nothing."""
    ops = Operations("syscalls", 0)
    for n_ops, after in ((12, "SAVE"), (10, "BGSAVE"), (12, "SAVE"), (8, None)):
        for _ in range(n_ops):
            yield ops.next()
        for _ in range(2):  # fills segments
            ops.n += 1
            commands, change = ops.set(ops.n)
            commands[0] = (*commands[0][:2], b"v" * 300000 + b";%d" % ops.n)
            value = commands[0][2]
            key = commands[0][1]
            yield ops.n, commands, lambda db, key=key, value=value: db.__setitem__(
                key, (value, 0)
            ) or b"OK"
        ops.n += 1
        yield (ops.n, *ops.delete(ops.n))
        if after:
            yield None, [(after,)], None
    ops.n += 1
    yield (ops.n, *ops.flush(ops.n))
    for _ in range(5):
        yield ops.next()


def later_script():
    """A few steps for a server that recovered from a kill."""
    ops = Operations("later", 0)
    ops.n = 1000
    return (
        [ops.next() for _ in range(8)]
        + [(None, [("SAVE",)], None)]
        + [ops.next() for _ in range(3)]
    )


class Run:
    """One run of the script with one fault; with `after` on a copy of what that run left behind."""

    def __init__(self, library, at, kind, times=1, after=None, fsync="always"):
        self.folder = new_folder("syscall", disk=False)
        self.steps = list(script())
        self.writer = Writer("syscalls", 0, window=1)
        if after:
            shutil.copytree(after.folder / "data", self.folder / "data")
            self.writer = copy.deepcopy(after.writer)
            self.steps = later_script()
        self.calls_path = self.folder / "calls"
        env = {
            "LD_PRELOAD": str(library),
            "KITH_FAULT_DIR": str(self.folder / "data"),
            "KITH_FAULT_AT": str(at),
            "KITH_FAULT_KIND": kind,
            "KITH_FAULT_TIMES": str(times),
            "KITH_FAULT_LOG": str(self.calls_path),
        }
        if VARIANT == "asan":
            env["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
        self.server = Server(
            self.folder, *SMALL, "--checkpoint-interval", "3600", "--appendfsync", fsync, env=env
        )
        self.errors = []

    def calls(self):
        """{number: (name, path)}, in the order of their numbers. One may be missing: that of a thread
        which had its number and was not yet heard when the process ended."""
        try:
            lines = self.calls_path.read_text().splitlines()
        except FileNotFoundError:
            return {}
        numbered = sorted((int(x.split(" ")[0]), x.split(" ")[1:]) for x in lines)
        return {n: (name, re.sub(r"-\d+$", "", path)) for n, (name, path) in numbered}

    def play(self):
        w, server = self.writer, self.server
        try:
            server.start()
        except NotReady as e:
            return f"no start, {e.code}"
        try:
            conn = server.connect()
            if w.pending:
                w.settle(observe(conn, 0))
            for n, commands, change in self.steps:
                if n is not None:
                    w.pending = [(n, commands, change)]
                conn.send(b"".join(pack(*c) for c in commands))
                reply = conn.read(len(commands))[-1]
                refused = isinstance(reply, Error) and not reply.startswith("ERR no such key")
                if refused:
                    self.errors.append(str(reply))
                    assert reply.startswith(("MISCONF", "ERR", "EXECABORT")), reply
                elif n is not None:
                    assert reply == change(w.model), f"operation {n}, {commands[-1][:2]}: {reply}"
                w.pending = []
                if n is not None:
                    w.acknowledged = n
            # It is refused while its checkpoint fails. After a failed sync of the log, too, until the
            # server, which ends by itself then, has come to that.
            for _ in range(1000):
                self.errors.append(str(conn.call("SHUTDOWN")))
                assert "SHUTDOWN" in self.errors[-1], self.errors
                time.sleep(0.01)
            raise AssertionError(f"SHUTDOWN is refused 1000 times: {self.errors[-1]}")
        except Gone:
            server.wait(30)
        server.check_end()
        return f"ended, {server.process.returncode}"

    def verify(self):
        s = self.server
        s.env = {}
        s.start()
        conn = s.connect()
        self.writer.settle(observe(conn, 0))
        # It takes writes again.
        conn.ok("SET", "after", "1")
        conn.close()
        s.stop()
        code, said = check(s.data)
        assert code == 0, said


def one(library, at, kind, times=1, after=None, fsync="always"):
    run = Run(library, at, kind, times, after, fsync)
    with run.server:
        end = run.play()
        calls = run.calls()
        name, path = calls.get(at, (None, None))
        print(f"{kind} at {at} ({name} {path}): {end}; errors {run.errors}")
        run.verify()
        return end, name, path, run.errors, calls


def allowed_end(kind, name, path, end):
    """What a single fault may do to the process."""
    if kind in ("before", "after", "half"):
        # The run that met its call is dead; one with fewer calls ended well.
        return end in ("no start, -9", "ended, -9") or name is None and end == "ended, 0"
    log_sync = name in SYNCS and re.fullmatch(r"/wal(/\d+\.wal)?", path or "")
    if log_sync and kind != "short":  # never tried again as if nothing had happened
        return end in ("ended, 3", "no start, 1")
    if end in ("ended, 0", "no start, 1"):
        return True
    return end == "ended, 2"  # the last checkpoint failed; the log has everything


def points(calls, rng):
    """(number, kind) of all faults worth trying."""
    out = []
    for n, (name, _) in calls.items():
        kinds = ["before", "after", "EIO", "ENOSPC"]
        if name in WRITES:
            kinds += ["half", "short"]
        out += [(n, k) for k in kinds]
    share = {"release": 1, "asan": 0.2, "tsan": 0.02}[VARIANT] * (5 if LONG else 1)
    return out if share >= 1 else rng.sample(out, int(len(out) * share))


def test_every_call(library):
    print(f"KITH_SEED={SEED}")
    rng = random.Random(SEED)
    end, _, _, errors, calls = one(library, 0, "before")
    assert end == "ended, 0" and errors == []
    tried, table = 0, collections.Counter()
    for at, kind in points(calls, rng):
        end, name, path, errors, _ = one(library, at, kind)
        assert allowed_end(kind, name, path, end), f"{kind} at {at} ({name} {path}): {end}"
        tried += 1
        place = re.sub(r"\d+", "N", path or "")
        said = re.sub(r"\S*/data/", "", errors[0]) if errors else ""
        table[kind, name, place, end, re.sub(r"\d+", "N", said)[:110]] += 1
    for row, n in sorted(table.items(), key=str):
        print(n, *row)
    say(
        f"{len(calls)} calls change the data directory; {tried} faults tried, 0 lost, every start worked"
    )


def first_write_into_newest_segment(calls):
    newest = [n for n, c in calls.items() if c[0] == "rename" and c[1].endswith(".wal")][-1]
    return next(
        n
        for n, (name, path) in calls.items()
        if n > newest and name in WRITES and path.endswith(".wal")
    )


def torn_run(library):
    """A run that was killed half way through that write, and the calls of a recovery from it. The
    numbers of calls are not quite the same in each run, since several threads make them: a kill
    that hit another call is made again."""
    for _ in range(20):
        at = first_write_into_newest_segment(one(library, 0, "before")[4])
        before = Run(library, at, "half")
        if before.play() == "ended, -9":
            end, _, _, errors, calls = one(library, 0, "before", after=before)
            assert end == "ended, 0" and errors == []
            if any(name == "truncate" for name, _ in calls.values()):
                return before, calls
        if before.server.running:
            before.server.kill()
        shutil.rmtree(before.folder)
    raise AssertionError("the tail was not torn once in 20 kills")


def test_every_call_of_a_recovery(library):
    """The same for a server that starts on what a kill in the middle of a large record left: a torn
    tail, several segments, a checkpoint."""
    rng = random.Random(SEED)
    before, calls = torn_run(library)
    with before.server:
        tried = 0
        for at, kind in points(calls, rng):
            end, name, path, errors, _ = one(library, at, kind, after=before)
            assert allowed_end(kind, name, path, end), f"{kind} at {at} ({name} {path}): {end}"
            tried += 1
    say(f"{len(calls)} calls of a recovery and a short life; {tried} faults tried, 0 lost")


def test_every_write_of_the_log_everysec(library):
    """With appendfsync everysec the threads that serve clients write the log themselves, and replies
    leave before it is synced: what a killed process had written is still there."""
    rng = random.Random(SEED)
    calls = one(library, 0, "before", fsync="everysec")[4]
    log = [(n, k) for n, k in points(calls, rng) if calls[n][1].startswith("/wal/0")]
    for at, kind in log:
        end, name, path, _, _ = one(library, at, kind, fsync="everysec")
        assert allowed_end(kind, name, path, end), f"{kind} at {at} ({name} {path}): {end}"
    say(f"appendfsync everysec: {len(log)} faults in the log tried, 0 lost")


def test_faults_that_last(library):
    """From some call on everything fails for a while: 30 calls, or to the end of the run."""
    rng = random.Random(SEED)
    calls = one(library, 0, "before")[4]
    first = next(
        n
        for n, c in calls.items()
        if re.fullmatch(r"/wal/\d+\.wal", c[1]) and c[0] == "pwrite64"
    )
    for at in rng.sample(
        range(first, len(calls)), 100 if LONG else 12 if VARIANT == "release" else 2
    ):
        for kind, times in (("ENOSPC", 30), ("EIO", 30)):
            end = one(library, at, kind, times)[0]
            assert end in ("ended, 0", "ended, 2", "ended, 3"), end


@pytest.mark.skipif(
    VARIANT != "release" or not shutil.which("strace"), reason="needs strace and a release build"
)
def test_no_call_is_missed(library):
    """fault.c counts what strace sees."""
    run = Run(library, 0, "before")
    trace = run.folder / "trace"
    names = (
        "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,msync,fallocate,ftruncate,truncate,"
    )
    names += "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,open,openat,creat,sync_file_range,link,linkat"
    strace = ["strace", "-f", "-qq", "-y", "-s", "256", "-o", str(trace), "-e", f"trace={names}"]
    words = run.server.command_line()
    run.server.command_line = lambda: strace + words
    with run.server:
        assert run.play() == "ended, 0"
        seen = collections.Counter()
        data = str(run.server.data)
        for line in trace.read_text().splitlines():
            m = re.match(r"\d+ +(\w+)\((.*)", line)
            if not m or data not in m[2] or "resumed" in line or "server.log" in m[2]:
                continue
            if m[1] in ("open", "openat") and "O_CREAT" not in line and "O_TRUNC" not in line:
                continue
            seen[{"mkdirat": "mkdir", "open": "openat"}.get(m[1], m[1])] += 1
        counted = collections.Counter(name for name, _ in run.calls().values())
        print(dict(counted))
        assert seen == counted
