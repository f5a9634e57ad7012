#!/usr/bin/env python3
"""ping, set and get beside redis-server, by redis-benchmark, in alternating rounds.

Both servers append to their log (`appendfsync everysec`), run with their defaults otherwise, and
are measured by the same redis-benchmark with 50 clients, with and without pipelining. Printed are
medians of requests a second and the median of the ratios round by round.

    build/venv/bin/python bench/redis_compare.py --csv build/bench/redis.csv --png build/bench/redis.png
"""

import argparse
import csv
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kithtest import Server, free_port, wait_until  # noqa: E402

TESTS = ["ping_mbulk", "set", "get"]
REQUESTS = {1: 100_000, 16: 1_000_000}


class Redis:
    """redis-server with the same durability."""

    def __init__(self, folder):
        self.port = free_port()
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--dir", folder, "--appendonly", "yes",
             "--appendfsync", "everysec", "--save", ""], stdout=subprocess.DEVNULL)
        wait_until(lambda: subprocess.run(["redis-cli", "-p", str(self.port), "ping"],
                                          capture_output=True).stdout == b"PONG\n", what="redis")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def run(port, test, pipeline):
    """One redis-benchmark run: requests a second and p50 in ms."""
    out = subprocess.run(
        ["redis-benchmark", "-p", str(port), "-c", "50", "-n", str(REQUESTS[pipeline]), "-P",
         str(pipeline), "-t", test, "--csv"], capture_output=True, text=True, check=True).stdout
    row = next(csv.reader([out.splitlines()[-1]]))
    return float(row[1]), float(row[4])


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4))
    for axis, pipeline in zip(axes, REQUESTS):
        some = [r for r in rows if r["pipeline"] == pipeline]
        for i, r in enumerate(some):
            axis.bar(i - 0.2, r["kith_rps"], 0.4, color="C0", label="kith" if i == 0 else None)
            axis.bar(i + 0.2, r["redis_rps"], 0.4, color="C1",
                     label="redis-server" if i == 0 else None)
            axis.text(i, max(r["kith_rps"], r["redis_rps"]), f"{r['ratio']:.2f}x", ha="center",
                      va="bottom")
        axis.set_xticks(range(len(some)), [r["test"] for r in some])
        axis.set_title(f"50 clients, pipeline {pipeline}")
        axis.set_ylabel("requests a second")
        axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
        axis.legend(loc="upper center", ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--png", type=pathlib.Path)
    args = parser.parse_args()
    if not shutil.which("redis-benchmark") or not shutil.which("redis-server"):
        sys.exit("redis-benchmark and redis-server are needed: make deps-test")
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        kith = Server(a, "--appendfsync", "everysec").start()
        redis = Redis(b)
        results = {}
        for _ in range(args.rounds):
            for pipeline in REQUESTS:
                for test in TESTS:
                    for name, port in (("kith", kith.port), ("redis", redis.port)):
                        results.setdefault((pipeline, test, name), []).append(
                            run(port, test, pipeline))
        kith.stop()
        redis.stop()
    print(f"redis-benchmark, 50 clients, appendfsync everysec, medians of {args.rounds} rounds")
    print(f"{'pipeline':>8} {'test':<11}{'kith/s':>10}{'p50 ms':>8}{'redis/s':>10}{'p50 ms':>8}"
          f"{'ratio':>7}")
    rows = []
    for pipeline in REQUESTS:
        for test in TESTS:
            k, r = results[pipeline, test, "kith"], results[pipeline, test, "redis"]
            row = {"pipeline": pipeline, "test": test,
                   "kith_rps": statistics.median(x for x, _ in k),
                   "kith_p50_ms": statistics.median(y for _, y in k),
                   "redis_rps": statistics.median(x for x, _ in r),
                   "redis_p50_ms": statistics.median(y for _, y in r),
                   "ratio": statistics.median(x / y for (x, _), (y, _) in zip(k, r))}
            rows.append(row)
            print(f"{pipeline:8} {test:<11}{row['kith_rps']:10.0f}{row['kith_p50_ms']:8.3f}"
                  f"{row['redis_rps']:10.0f}{row['redis_p50_ms']:8.3f}{row['ratio']:7.2f}")
    if args.csv:
        with args.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    if args.png:
        plot(rows, args.png)


if __name__ == "__main__":
    main()
