"""kith-import beside the embedding alone: how much longer a new set takes than EMBED of the same
chunks through the same connections (`kith-import --embed-only`), in alternating rounds, and how
long a second run takes that finds all of it there. The goal is 10 %.

usage: import_speed.py [--passages 5000] [--rounds 3] [--csv FILE] [FILE ...]

The passages are cut from the files (default: all Markdown of this project and, where it is, the
CISI collection in ../shared/data) at sentence ends, 100 to 200 tokens each. Where there are not as
many, they come again with their sentences in another order."""

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from kithtest import Q8_MODEL, Server, run_program  # noqa: E402


def sentences(files):
    text = "\n\n".join(Path(f).read_text(errors="replace") for f in files)
    text = re.sub(r"^\.[A-Z]( \d+)?$", "\n", text, flags=re.M)
    found = (" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s|\n\n", text))
    return [s for s in found if 20 < len(s) < 600]


def passages(files, n):
    """n of about 130 words, which are 100 to 200 tokens."""
    rng, pool, made = random.Random(1), sentences(files), []
    while len(made) < n:
        words = []
        for s in pool:
            words += s.split()
            if len(words) >= 90:
                made.append(" ".join(words[:140]))
                words = []
        rng.shuffle(pool)
    return made[:n]


def run(port, key, path, *options):
    done = run_program("kith-import", "--port", port, "--chunk", "none", *options, key, path, timeout=3600)
    assert done.returncode == 0, done.stderr
    table = dict(line.split(None, 1) for line in done.stdout.splitlines())
    # A run that finds all of it there embeds nothing and has no rate.
    return float(table["seconds"]), float(table.get("tokens/s", 0))


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--passages", type=int, default=5000)
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--csv")
    parse.add_argument("files", nargs="*")
    o = parse.parse_args()
    cisi = ROOT.parent / "shared" / "data" / "cisi" / "CISI.ALL"
    files = o.files or [*sorted(ROOT.glob("*/*.md")), *([cisi] if cisi.exists() else [])]
    seconds = {"embed": [], "import": [], "again": []}
    tokens = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "passages.jsonl"
        rows = [{"id": i, "text": t} for i, t in enumerate(passages(files, o.passages))]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        server = Server(Path(folder) / "server", "--embedder", Q8_MODEL).start()
        server.wait_engine()
        try:
            for i in range(o.rounds):
                for what, target in ("embed", "none"), ("import", f"v{i}"), ("again", f"v{i}"):
                    only = ["--embed-only"] if what == "embed" else []
                    took, rate = run(server.port, target, path, *only)
                    seconds[what].append(took)
                    print(f"round {i + 1} of {o.rounds}: {what} {took:.1f} s", file=sys.stderr)
                    if only:
                        tokens.append(took * rate / o.passages)
        finally:
            server.stop()
    print(f"{o.passages} passages of {statistics.mean(tokens):.0f} tokens, {o.rounds} rounds")
    base = statistics.median(seconds["embed"])
    rows = []
    for what, taken in seconds.items():
        median = statistics.median(taken)
        print(f"  {what:8} {median:8.2f} s  {o.passages / median:10.0f} passages/s  {median / base:6.3f}")
        rows.append(f"{what},{o.passages},{median:.3f},{median / base:.4f}\n")
    if o.csv:
        Path(o.csv).write_text("what,passages,seconds,beside embed\n" + "".join(rows))


if __name__ == "__main__":
    main()
