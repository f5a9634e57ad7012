#!/usr/bin/env python3
"""Vector sets beside their peers: recall against speed, adding, memory, churn, filters, restart.

Each figure is printed beside its goal. kith runs with its defaults (Q8, M 16, EF 200, appendfsync
always) and is asked over TCP; hnswlib, faiss and usearch run in process with f32 and one thread;
Redis' vector sets (Q8) where --redis or KITH_REDIS names a redis-server that has them. All see the
same floats; recall is against the exact nearest by the original floats (bench/vsets_data.py says
what the data is).

    build/venv/bin/python bench/vsets.py                     100,000 vectors, all parts and peers
    build/venv/bin/python bench/vsets.py --quick             20,000
    build/venv/bin/python bench/vsets.py --n 1000000 --only add,memory,restart
"""

import argparse
import csv
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

import vsets_data as data_files  # noqa: E402
from vsets_life import run_churn, run_filter, run_memory, run_restart  # noqa: E402
from vsets_recall import run_add, run_recall  # noqa: E402
from vsets_servers import BIN, Kith, Peer, Redis, redis_version  # noqa: E402

PARTS = {"add": run_add, "recall": run_recall, "memory": run_memory, "restart": run_restart,
         "filter": run_filter, "churn": run_churn}
PEERS = ["hnswlib", "faiss", "usearch"]


class Bench:
    """What the parts share: arguments, the contenders that stand loaded, and the report."""

    def __init__(self, args):
        self.args, self.n = args, args.n
        self.loaded = {}  # (name, data, dim, n, ef_construction): contender
        self.loads = {}  # the same keys: what building or loading told
        self.figures, self.tables = [], {}

    # --- contenders

    def data(self, name="manifold", dim=384):
        """The manifold in 384 dimensions has rows enough for every part that will run."""
        parts = self.args.only
        spare = self.n if "churn" in parts else self.n // 10 if "restart" in parts else 0
        return data_files.text(self.n) if name == "text" else data_files.manifold(
            self.n + max(1000, spare if dim == 384 else 0), dim)

    def get(self, name, data, n, ef_construction=200):
        """A contender that holds the first n rows; made once. loads has what making it told."""
        key = name, data.name, data.dim, n, ef_construction
        if key not in self.loaded:
            if name in PEERS:
                self.loaded[key] = Peer(name, data, n, ef_construction)
                self.loads[key] = self.loaded[key].build()
            else:
                self.loaded[key] = Kith() if name == "kith" else Redis(self.args.redis)
                self.loads[key] = self.loaded[key].load(data, n=n)
        return self.loaded[key]

    def get_together(self, names, data, n):
        """Peers whose building is not measured, built side by side."""
        made = {name: Peer(name, data, n) for name in names}
        for peer in made.values():
            peer.send("build")
        for name, peer in made.items():
            peer.answer()
            self.loaded[name, data.name, data.dim, n, 200] = peer
        return made

    def load_figures(self, name, data, n):
        """What making it told, of get()."""
        self.get(name, data, n)
        return self.loads[name, data.name, data.dim, n, 200]

    def drop(self, *names, data=None):
        """Closes contenders: those of these names (none: all)."""
        for key in list(self.loaded):
            if (not names or key[0] in names) and (data is None or key[1:3] == data):
                self.loaded.pop(key).close()

    @property
    def redis(self):
        return self.args.redis is not None

    # --- the report

    def row(self, table, **fields):
        self.tables.setdefault(table, []).append(fields)

    def figure(self, what, value, unit, goal, at_least=True):
        met = None if value is None else (value >= goal if at_least else value <= goal)
        self.figures.append({"figure": what, "value": value, "unit": unit,
                             "goal": ("at least " if at_least else "at most ") + f"{goal:g}",
                             "met": {None: "not measured", True: "met", False: "missed"}[met]})
        self.show(self.figures[-1])

    @staticmethod
    def show(f):
        value = "-" if f["value"] is None else f"{f['value']:.4g}"
        print(f"  >> {f['figure']}: {value} {f['unit']} (goal: {f['goal']}): {f['met']}",
              flush=True)

    def write(self):
        self.args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in [*self.tables.items(), ("figures", self.figures)]:
            if not rows:
                continue
            with (self.args.out / f"vsets-{name}.csv").open("w", newline="") as f:
                fields = list(dict.fromkeys(k for row in rows for k in row))
                writer = csv.DictWriter(f, fields)
                writer.writeheader()
                writer.writerows(rows)
        import vsets_plot

        vsets_plot.plot(self)


def first_line(*words):
    try:
        out = subprocess.run(words, capture_output=True, text=True, cwd=ROOT).stdout
    except OSError:
        return "?"
    return (out.splitlines() or ["?"])[0]


def package(name):
    return first_line("dpkg-query", "-W", "-f", "${Version}", name)


def describe(args):
    from importlib import metadata

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                if line.startswith("model name")), platform.processor())
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "").split()
    isa = " ".join(f for f in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f in flags)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"{cpu} ({isa}), {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
          f"load {os.getloadavg()[0]:.2f}")
    print(f"kith {first_line('git', 'describe', '--always', '--dirty')}, "
          f"{first_line('gcc', '--version')}; hnswlib {package('libhnswlib-dev')}, "
          f"faiss {metadata.version('faiss-cpu')}, usearch {metadata.version('usearch')}, "
          f"Redis {args.redis_version or 'none with vector sets (--redis, KITH_REDIS)'}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="20,000 vectors, few rounds")
    parser.add_argument("--only", default=",".join(PARTS), help="parts: " + ", ".join(PARTS))
    parser.add_argument("--data", default="manifold,text", help="of the recall part")
    parser.add_argument("--dims", default="384,128,1536",
                        help="of the manifold in the recall part; those but 384 are measured with "
                             "a fifth of the vectors, beside hnswlib alone")
    parser.add_argument("--peers", default=",".join(PEERS), help="libraries in process")
    parser.add_argument("--redis", type=pathlib.Path, default=os.environ.get("KITH_REDIS"),
                        help="a redis-server with vector sets; none: an empty word")
    parser.add_argument("--rounds", type=int, help="alternating rounds (5; --quick 3)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "bench")
    args = parser.parse_args()
    if args.quick:
        args.n = 20_000
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.only, args.data = args.only.split(","), args.data.split(",")
    args.dims = [int(d) for d in args.dims.split(",") if d]
    args.peers = [p for p in args.peers.split(",") if p]
    unknown = [p for p in args.only if p not in PARTS] + [p for p in args.peers if p not in PEERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if args.redis is None or str(args.redis) in ("", "."):
        args.redis = shutil.which("redis-server")
    data_files.FOLDER.mkdir(parents=True, exist_ok=True)
    args.redis_version = redis_version(args.redis) if args.redis else None
    if not args.redis_version:
        args.redis = None
    return args


def main():
    args = parse()
    missing = [p for p in ("kith-server", "bench-vsets-load", "peer-hnswlib")
               if not (BIN / p).exists()]
    if missing:
        sys.exit(f"{', '.join(missing)} are not built: make bench-vsets")
    bench, start = Bench(args), time.monotonic()
    describe(args)
    try:
        for name, part in PARTS.items():
            if name in args.only:
                print(f"\n==> {name}, {args.n} vectors", flush=True)
                began = time.monotonic()
                part(bench)
                print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    finally:
        bench.drop()
    print(f"\nall figures ({time.monotonic() - start:.0f} s, load {os.getloadavg()[0]:.2f})")
    for f in bench.figures:
        bench.show(f)
    bench.write()
    print(f"CSV and PNG files are in {args.out}")


if __name__ == "__main__":
    main()
