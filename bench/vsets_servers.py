"""The contenders of bench/vsets.py: servers asked over TCP (kith, Redis) and libraries in process
(hnswlib, faiss, usearch), all behind build() or load() and search(); and what they hold in memory.
"""

import ctypes
import json
import mmap
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kithtest import BIN, Server, Wire, free_port, wait_until  # noqa: E402
from vsets_data import FOLDER, K, N_QUERIES  # noqa: E402

LOAD, KEY, IN_FLIGHT = BIN / "bench-vsets-load", "set", 512


def read_found(path):
    return np.fromfile(path, np.uint32).reshape(-1, K)


def run_json(words):
    """Runs a program that ends with a line of JSON; its progress goes to our terminal."""
    done = subprocess.run([str(w) for w in words], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"{words[0]} {words[1]} ended with {done.returncode}")
    return json.loads(done.stdout)


# --- over TCP -----------------------------------------------------------------------------------


class Tcp:
    """A server that speaks RESP on self.port, with one set."""

    name = port = data = None
    add_words = search_words = ()
    linked_word = ()

    def tool(self, mode, vectors, *words):
        return run_json([LOAD, mode, "--port", self.port, "--key", KEY, "--vectors", vectors,
                         "--dim", self.data.dim, "--note", f"{self.name} {mode}s", *words])

    def load(self, data, n=None, ids=None, attributes=None):
        """Adds the first n rows, or ids, as e<row>; the tool's figures and `curve`, the pairs
        (acknowledged, seconds)."""
        self.data = data
        words = ["--pipeline", IN_FLIGHT, *self.linked_word]
        words += [w for word in self.add_words for w in ("--extra", word)]
        words += ["--attributes", attributes] if attributes else []
        with tempfile.NamedTemporaryFile(dir=FOLDER) as f:
            done = self._write("add", [*words, "--curve", f.name], n, ids)
            rows = pathlib.Path(f.name).read_text().splitlines()[1:]
        done["curve"] = [(int(a), float(b)) for a, b in (row.split(",") for row in rows)]
        return done

    def remove(self, ids):
        return self._write("remove", [*self.linked_word], None, ids)

    def _write(self, mode, words, n, ids):
        with tempfile.NamedTemporaryFile(dir=FOLDER) as f:
            if ids is not None:
                np.asarray(ids, np.uint32).tofile(f.name)
                words = [*words, "--ids", f.name]
            elif n:
                words = [*words, "--n", n]
            return self.tool(mode, self.data.base, *words)

    def search(self, ef, rounds=1, connections=1, extra=(), n=N_QUERIES):
        """The first n queries, `rounds` times; {rate, p50_us, p99_us, short, found: ids}.
        ef 0: none is named."""
        with tempfile.NamedTemporaryFile(dir=FOLDER) as f:
            words = ["--count", K, "--n", n, "--rounds", rounds, "--connections", connections,
                     "--out", f.name]
            words += ["--ef", ef] if ef else []
            words += [w for word in (*self.search_words, *extra) for w in ("--extra", word)]
            out = self.tool("search", self.data.queries, *words)
            out["found"] = read_found(f.name)
        return out

    def truth(self, n=N_QUERIES):
        return self.search(0, extra=("TRUTH",), n=n)


class Kith(Tcp):
    """kith-server with its defaults: appendfsync always. Its folder goes when it is closed."""

    name = "kith"
    linked_word = ("--linked",)

    def __init__(self, *options, add_words=("Q8", "EF", "200", "M", "16")):
        self.add_words = add_words
        self.folder = tempfile.TemporaryDirectory(dir=FOLDER, prefix="kith-")
        self.server = Server(self.folder.name, *options).start()
        self.port = self.server.port

    def cmd(self, *words, timeout=600):
        with self.server.wire(timeout=timeout) as w:
            return w.cmd(*words)

    def save(self):
        """A checkpoint, so that memory and file are at rest: what it freed the server gives back
        by itself, a moment after it."""
        reply = self.cmd("SAVE")
        if reply != "OK":
            sys.exit(f"SAVE answered {reply!r}")
        time.sleep(3)

    def memory(self):
        return all_told(self.server.pid, self.server.data)

    def close(self):
        self.server.kill()
        self.folder.cleanup()


class Redis(Tcp):
    """Redis with its vector sets, in memory only (no append-only file, no snapshots)."""

    name = "Redis"

    def __init__(self, program, add_words=("Q8", "EF", "200", "M", "16")):
        self.add_words = add_words
        self.port = free_port()
        self.folder = tempfile.TemporaryDirectory(dir=FOLDER, prefix="redis-")
        self.process = subprocess.Popen(
            [str(program), "--port", str(self.port), "--dir", self.folder.name, "--save", "",
             "--appendonly", "no"], stdout=subprocess.DEVNULL)
        wait_until(self._serves, what="redis")

    def _serves(self):
        try:
            with Wire(self.port) as w:
                return w.cmd("PING") == "PONG"
        except OSError:
            return False

    def memory(self):
        return {"total": all_told(self.process.pid, None)["total"]}

    def close(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


class RedisNoThread(Tcp):
    """The same Redis asked with NOTHREAD: it then searches on its main thread."""

    name = "Redis, NOTHREAD"
    search_words = ("NOTHREAD",)

    def __init__(self, redis):
        self.port, self.data = redis.port, redis.data


def redis_version(program):
    """"8.8.0", or None where the program has no vector sets."""
    out = subprocess.run([str(program), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"v=(\S+)", out)
    server = Redis(program)
    with Wire(server.port) as w:
        has = w.cmd("VCARD", "none") == 0
    server.close()
    return found[1] if found and has else None


# --- in process ---------------------------------------------------------------------------------


class Peer:
    """A program that builds and searches with one thread, told by lines on its standard input."""

    def __init__(self, name, data, n, ef_construction=200):
        self.name, self.data = name, data
        command = {
            "hnswlib": [BIN / "peer-hnswlib"],
            "faiss": [sys.executable, ROOT / "bench" / "vsets_peer.py", "faiss"],
            "usearch": [sys.executable, ROOT / "bench" / "vsets_peer.py", "usearch"],
        }[name]
        words = [*command, data.base, data.queries, data.dim, n, 16, ef_construction]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen([str(w) for w in words], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=env)

    def send(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def tell(self, *words):
        self.send(*words)
        return self.answer()

    def build(self):
        return self.tell("build")

    def search(self, ef, rounds=1):
        with tempfile.NamedTemporaryFile(dir=FOLDER) as f:
            out = self.tell("search", ef, rounds, f.name)
            out["found"] = read_found(f.name)
        return out

    def memory(self):
        """Anonymous memory: the floats it was given are a mapped file and not counted."""
        return {"total": status_bytes(self.process.pid, "RssAnon")}

    def close(self):
        self.process.kill()
        self.process.wait()


# --- memory -------------------------------------------------------------------------------------


def status_bytes(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def cached_bytes(path):
    """The bytes of a file that are in the page cache (mincore)."""
    size = path.stat().st_size
    if size == 0:
        return 0
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    place = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.argtypes = [*place, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [*place]
    libc.mincore.argtypes = [*place, ctypes.c_void_p]
    seen = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as f:
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, f.fileno(), 0)
    if at in (None, ctypes.c_void_p(-1).value):
        sys.exit(f"cannot map {path}")
    bad = libc.mincore(at, size, seen)
    libc.munmap(at, size)
    if bad:
        sys.exit(f"mincore of {path} failed")
    return int((np.frombuffer(seen, np.uint8) & 1).sum()) * mmap.PAGESIZE


def resident_bytes(pid, data):
    """Resident memory of a process, but for mappings of files below `data`."""
    total, counts = 0, True
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$", line)
        if head:
            counts = data is None or not head[1].startswith(str(data))
        elif line.startswith("Rss:") and counts:
            total += int(line.split()[1]) * 1024
    return total


def family(pid):
    """The process and those it started."""
    pids = [pid]
    for one in pids:
        for task in pathlib.Path(f"/proc/{one}/task").iterdir():
            pids += [int(p) for p in (task / "children").read_text().split()]
    return pids


def all_told(pid, data):
    """What a server takes of the machine's memory, each page once. total: the resident memory of
    its processes without what they map of the data folder, and what the page cache holds of the
    data file, mapped or not. with_log: and what it holds of the log, whose segments were written
    and, where they wait for use, filled with zeros; a kernel short of memory drops those."""
    out = {"process": sum(resident_bytes(p, data) for p in family(pid))}
    if data is None:
        return {**out, "total": out["process"]}
    store = data / "store" / "data.mdb"
    out["store_cached"] = cached_bytes(store)
    out["total"] = out["process"] + out["store_cached"]
    out["with_log"] = out["total"] + sum(cached_bytes(p) for p in (data / "wal").iterdir())
    out["store_file"] = store.stat().st_blocks * 512  # the room it takes; free pages are holes
    out["store_live"] = lmdb_live_bytes(store)
    return out


def lmdb_live_bytes(path):
    """The bytes of the pages that LMDB's trees use now; the rest of the file is free pages. Read
    from the newer meta page and the records of the named tables in the main tree's leaf. Only
    true while no checkpoint runs."""
    page_bytes = 4096
    db = struct.Struct("<IHHQQQQQ")  # pad flags depth branch leaf overflow entries root
    with path.open("rb") as f:
        metas = []
        for number in (0, 1):
            f.seek(number * page_bytes + 16 + 24)
            raw = f.read(2 * db.size + 16)
            metas.append((struct.unpack_from("<QQ", raw, 2 * db.size)[1], raw))
        raw = max(metas, key=lambda m: m[0])[1]
        free, main = db.unpack_from(raw, 0), db.unpack_from(raw, db.size)
        pages = 2 + sum(free[3:6]) + sum(main[3:6])
        if main[7] == 2**64 - 1:
            return pages * page_bytes
        if main[2] != 1:
            sys.exit(f"{path}: more named tables than one page holds")
        f.seek(main[7] * page_bytes)
        leaf = f.read(page_bytes)
        lower = struct.unpack_from("<H", leaf, 12)[0]
        for at in struct.unpack_from(f"<{(lower - 16) // 2}H", leaf, 16):
            _, _, flags, key_bytes = struct.unpack_from("<HHHH", leaf, at)
            if flags & 2:  # a table's record
                pages += sum(db.unpack_from(leaf, at + 8 + key_bytes)[3:6])
    return pages * page_bytes


def forget_cached(folder):
    """Asks the kernel to drop the cached pages of the files below a folder."""
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
