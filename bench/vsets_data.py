"""The vectors that bench/vsets.py measures with, as files of f32 rows that every program reads.

manifold  z ~ N(0, 1/48)^48, x = A z + 0.05 N(0, 1)^dim with A fixed, N(0, 1) entries: data of low
          intrinsic dimension in a high one, as embeddings are. Rows come in blocks of 10,000, each
          with a generator of its own, so that the first n rows are the same whatever n is.
text      passages of 2 to 4 sentences from the documentation of the machine (manual pages,
          /usr/share/doc, Python's docstrings, comments of C headers), embedded by kith itself.

Queries are drawn as the vectors are and are not among them. Files stay in build/bench/vsets/.
"""

import ast
import gzip
import pathlib
import random
import re
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kithtest import Q8_MODEL, Server, encode  # noqa: E402

FOLDER = ROOT / "build" / "bench" / "vsets"
LATENT, NOISE, BLOCK, SEED = 48, 0.05, 10_000, 1
N_QUERIES, K = 1000, 10
TEXT_DIM = 384


class Progress:
    """A bar on a terminal, once a second has passed."""

    def __init__(self, what, total):
        self.what, self.total, self.start, self.shown = what, total, time.monotonic(), 0.0

    def at(self, done):
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.start < 1 or now - self.shown < 0.2:
            return
        self.shown = now
        part = done / max(1, self.total)
        print(f"\r  {self.what:24.24} [{'#' * int(40 * part):40}] {100 * part:3.0f} % "
              f"{now - self.start:4.0f} s\033[K", end="", file=sys.stderr, flush=True)

    def end(self):
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class Data:
    """base: a file with at least n rows; queries: one with N_QUERIES rows."""

    def __init__(self, name, dim, base, queries):
        self.name, self.dim, self.base, self.queries = name, dim, base, queries

    def rows(self):
        return np.memmap(self.base, np.float32, "r").reshape(-1, self.dim)

    def query_rows(self):
        return np.fromfile(self.queries, np.float32).reshape(-1, self.dim)


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def write_whole(path, parts):
    """Writes a file under another name first, so that a half-written one is never taken."""
    half = path.with_suffix(".half")
    with half.open("wb") as f:
        for part in parts:
            f.write(part)
    half.rename(path)


# --- the generator ------------------------------------------------------------------------------


def manifold_block(dim, block, rows):
    basis = np.random.default_rng([SEED, dim]).standard_normal((LATENT, dim), np.float32)
    rng = np.random.default_rng([SEED, dim, 1 + block])
    z = rng.standard_normal((rows, LATENT), np.float32) / np.float32(np.sqrt(LATENT))
    return z @ basis + np.float32(NOISE) * rng.standard_normal((rows, dim), np.float32)


def manifold(n, dim):
    """n rows or more; a file that has fewer gets the missing blocks."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    base, queries = FOLDER / f"manifold-{dim}.f32", FOLDER / f"manifold-{dim}-queries.f32"
    with base.open("ab") as f:
        have, blocks = f.tell() // (BLOCK * dim * 4), -(-n // BLOCK)
        bar = Progress(f"making {n} x {dim}", blocks)
        if have < blocks:
            f.truncate(have * BLOCK * dim * 4)  # an interrupted run leaves a part of a block
        for block in range(have, blocks):
            f.write(manifold_block(dim, block, BLOCK).tobytes())
            bar.at(block)
        bar.end()
    if not queries.exists():
        write_whole(queries, [manifold_block(dim, 1 << 30, N_QUERIES).tobytes()])
    return Data("manifold", dim, base, queries)


# --- real text ----------------------------------------------------------------------------------

MAN_MARKUP = re.compile(r"\\f[BIRP]|\\f\(..|\\s[-+]?\d|\\[&|^/,]|\\c")
MAN_REQUEST = re.compile(r"^[.'](?:B|I|BR|BI|IB|IR|RB|RI|SM|SB)\s+(.*)$")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\"'`])")
C_COMMENT = re.compile(r"/\*(.*?)\*/", re.S)


def man_paragraphs(text):
    """Running text of a page, with its requests as ends of paragraphs."""
    out = []
    for line in text.splitlines():
        font = MAN_REQUEST.match(line)
        if font:
            line = font[1].replace('"', "")
        elif line[:1] in (".", "'"):
            line = ""
        out.append(MAN_MARKUP.sub("", line).replace("\\-", "-").replace("\\(bu", "")
                   .replace("\\e", "\\"))
    return "\n".join(out)


def docstrings(text):
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(d for d in found if d)


def comments(text):
    return "\n\n".join(re.sub(r"^[\s*]+", "", c, flags=re.M) for c in C_COMMENT.findall(text))


SOURCES = [
    ("/usr/share/man", re.compile(r"/man/man\d/[^/]*\.gz$"), man_paragraphs),
    ("/usr/share/doc", re.compile(r"(changelog|NEWS|README|TODO|\.txt|\.md|\.rst|\.html)"),
     lambda text: re.sub(r"<[^>]{1,200}>", " ", text)),
    ("/usr/lib", re.compile(r"python3.*\.py$"), docstrings),
    (str(ROOT / "build" / "venv" / "lib"), re.compile(r"\.py$"), docstrings),
    ("/usr/include", re.compile(r"\.h(pp)?$"), comments),
]


def read_text(path):
    try:
        if path.stat().st_size > 2_000_000:
            return ""
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8", "ignore")
    except (OSError, EOFError, gzip.BadGzipFile):
        return ""


def passages_of(text):
    """Runs of 2 to 4 sentences of a paragraph, 12 to 90 words of mostly letters."""
    for paragraph in re.split(r"\n\s*\n", text):
        sentences = SENTENCE.split(" ".join(paragraph.split()))
        at = 0
        while at + 2 <= len(sentences):
            take = 2
            while take < 4 and len(" ".join(sentences[at:at + take]).split()) < 30:
                take += 1
            passage = " ".join(sentences[at:at + take])
            at += take
            letters = sum(c.isalpha() or c == " " for c in passage)
            if 12 <= len(passage.split()) <= 90 and letters > 0.8 * len(passage):
                yield passage


def near_duplicate_key(passage):
    """Licences and templates come again with other names and numbers in them."""
    words = re.findall(r"[a-z]{4,}", passage.lower())
    return " ".join(words[:8]), " ".join(words[-8:])


def collect(n):
    """n passages, in an order of their own; fewer where the machine has not so many."""
    starts, ends, out = set(), set(), []
    files = sorted(path for top, pattern, _ in SOURCES if pathlib.Path(top).is_dir()
                   for path in pathlib.Path(top).rglob("*") if pattern.search(str(path)))
    random.Random(SEED).shuffle(files)
    bar = Progress("collecting passages", n)
    for path in files:
        if not path.is_file() or path.is_symlink():
            continue
        plain = next(f for top, pattern, f in SOURCES
                     if str(path).startswith(top) and pattern.search(str(path)))
        for passage in passages_of(plain(read_text(path))):
            start, end = near_duplicate_key(passage)
            if start in starts or end in ends:
                continue
            starts.add(start)
            ends.add(end)
            out.append(passage)
        bar.at(min(len(out), n))
        if len(out) >= 2 * n:
            break
    bar.end()
    random.Random(SEED).shuffle(out)
    return out[:n]


def embed(passages, path):
    """The vectors of passages, one row each, by kith's EMBED."""
    batch = 64

    def rows(server):
        bar = Progress("embedding passages", len(passages))
        with server.wire(timeout=300) as wire:
            sent = at = 0
            while at < len(passages):
                while sent < len(passages) and sent - at < 4 * batch:
                    wire.send_bytes(encode("EMBED", "FORMAT", "FP32", "TRUNCATE", "TEXTS",
                                           *passages[sent:sent + batch]))
                    sent += batch
                reply = wire.read()
                if not isinstance(reply, list):
                    sys.exit(f"EMBED answered {reply!r}")
                yield b"".join(reply)
                at += batch
                bar.at(at)
        bar.end()

    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        server = Server(folder, "--embedder", Q8_MODEL, "--engine-timeout-ms", 60000).start()
        server.wait_engine()
        write_whole(path, rows(server))
        server.stop()


def text(n):
    """n rows, or as many as the machine has text for."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    base, queries = FOLDER / f"text-{n}.f32", FOLDER / f"text-{n}-queries.f32"
    if not base.exists() or not queries.exists():
        passages = collect(n + N_QUERIES)
        (FOLDER / f"text-{n}.txt").write_text("\n".join(passages) + "\n")
        embed(passages[:N_QUERIES], queries)
        embed(passages[N_QUERIES:], base)
    return Data("text", TEXT_DIM, base, queries)


# --- exact answers ------------------------------------------------------------------------------


def exact(data, ids, k=K, mask=None, queries=None):
    """The ids of the k nearest by cosine over the original floats, best first, one row a query.
    ids: the rows that are in the set. mask: (queries x ids) or (ids) booleans, who may answer."""
    q = unit(data.query_rows() if queries is None else queries)
    rows = data.rows()
    best = np.full((len(q), k), np.iinfo(np.uint32).max, np.uint32)
    score = np.full((len(q), k), -np.inf, np.float32)
    bar = Progress("exact answers", len(ids))
    step = 50_000
    for at in range(0, len(ids), step):
        part = np.asarray(ids[at:at + step])
        s = q @ unit(rows[part]).T
        if mask is not None:
            s = np.where(mask[..., at:at + step], s, -np.inf)
        both = np.concatenate([score, s], 1)
        names = np.concatenate([best, np.broadcast_to(part.astype(np.uint32), s.shape)], 1)
        top = np.argpartition(-both, min(k, both.shape[1] - 1), 1)[:, :k]
        score = np.take_along_axis(both, top, 1)
        best = np.take_along_axis(names, top, 1)
        bar.at(at)
    bar.end()
    order = np.argsort(-score, 1)
    best, score = np.take_along_axis(best, order, 1), np.take_along_axis(score, order, 1)
    best[score == -np.inf] = np.iinfo(np.uint32).max
    return best


def recall(found, truth):
    """The part of the exact answers that was found. Rows of truth with fewer answers than columns
    are filled up with the largest u32, as short replies are; those do not count."""
    none = np.iinfo(np.uint32).max
    hits = sum(len(np.intersect1d(f[f != none], t[t != none])) for f, t in zip(found, truth))
    return hits / max(1, int((truth != none).sum()))
