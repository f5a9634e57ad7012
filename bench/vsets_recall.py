"""The parts of bench/vsets.py about a set as it stands: recall against speed, and adding."""

import statistics

import numpy as np

from vsets_data import Progress, exact, manifold, recall
from vsets_servers import Kith, RedisNoThread

TARGET = 0.95
GRID = [10, 20, 40, 60, 80, 100, 150, 200, 300, 450, 700]
ROUND_SECONDS = 1.0


def measure(contender, truth, ef, rounds=1, **how):
    """One search of all queries; its figures with recall and ef."""
    out = contender.search(ef, rounds=rounds, **how)
    out["recall"], out["ef"] = recall(out["found"], truth), ef
    return out


def sweep(contender, truth):
    """Points of growing ef until nothing more is found."""
    points = []
    rate = contender.search(GRID[0])["rate"]  # warms
    for ef in GRID:
        points.append(measure(contender, truth, ef, rounds_for(rate / 2)))
        rate = points[-1]["rate"]
        gain = points[-1]["recall"] - (points[-2]["recall"] if len(points) > 1 else 0)
        if points[-1]["recall"] > 0.995 or (points[-1]["recall"] > TARGET and gain < 0.0005):
            break
    return points


def operating_ef(contender, truth, points, target=TARGET):
    """The smallest ef that reaches the target, by bisection between the points; None where none
    of them does."""
    above = next((i for i, p in enumerate(points) if p["recall"] >= target), None)
    if above is None:
        return None
    high = points[above]["ef"]
    low = points[above - 1]["ef"] if above else high - 1
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        if measure(contender, truth, middle)["recall"] >= target:
            high = middle
        else:
            low = middle
    return high


def rounds_for(rate):
    return max(1, round(ROUND_SECONDS * rate / 1000))


def check_names(n_rows=5000, n=200):
    """Recall counted from names must be the same against the exact answers computed here and
    against TRUTH, on a set that keeps the floats; both see the same elements."""
    data = manifold(n_rows, 384)
    kith = Kith(add_words=("NOQUANT",))
    kith.load(data, n=n_rows)
    here = exact(data, np.arange(n_rows))[:n]
    there = kith.truth(n)["found"]
    found = kith.search(20, n=n)["found"]
    kith.close()
    a, b = recall(found, here), recall(found, there)
    print(f"  a set of {n_rows} floats: recall by names {a:.4f} against the exact answers, {b:.4f} "
          f"against TRUTH; TRUTH itself {recall(there, here):.4f}")
    if abs(a - b) > 0.002 or recall(there, here) < 0.999:
        raise SystemExit("recall is not counted right: these must be equal")


# --- recall against speed -----------------------------------------------------------------------


def contenders(bench, data, n, peers, redis):
    found = {"kith": bench.get("kith", data, n)}
    if redis:
        found["Redis"] = bench.get("Redis", data, n)
    if "hnswlib" in peers:
        found["hnswlib"] = bench.get("hnswlib", data, n)
    return {**found, **bench.get_together([p for p in peers if p != "hnswlib"], data, n)}


def show_sweep(bench, data, n, name, points):
    for p in points:
        bench.row("recall", data=data.name, dim=data.dim, n=n, who=name, kind="sweep",
                  ef=p["ef"], recall=round(p["recall"], 5), rate=p["rate"], p50_us=p["p50_us"],
                  p99_us=p["p99_us"])
    print(f"  {name:9}" + " ".join(f"{p['ef']:>3}:{p['recall']:.3f}/{p['rate']:.0f}"
                                   for p in points), flush=True)


def race(all_of, efs, rates, rounds):
    """Alternating rounds, everyone at the ef of its own; name: [figures]. kith is asked by eight
    connections, too, and Redis with NOTHREAD, too."""
    racers = {name: (c, {}) for name, c in all_of.items() if efs[name]}
    if "kith" in racers:
        racers["kith, 8 connections"] = (all_of["kith"], {"connections": 8})
    if "Redis" in racers:
        racers["Redis, NOTHREAD"] = (RedisNoThread(all_of["Redis"]), {})
        racers["Redis, 8 connections"] = (all_of["Redis"], {"connections": 8})
    out = {name: [] for name in racers}
    bar = Progress("alternating rounds", rounds)
    for number in range(rounds):
        bar.at(number)
        for name, (contender, how) in racers.items():
            base = name.split(",")[0]
            out[name].append(contender.search(efs[base], rounds=rounds_for(rates[base]), **how))
    bar.end()
    return out


def median(runs, field):
    values = [r[field] for r in runs if r[field] is not None]
    return statistics.median(values) if values else None


def ratio(a, b):
    """The median of the ratios of rates round by round."""
    return statistics.median(x["rate"] / y["rate"] for x, y in zip(a, b))


def show_race(bench, data, n, runs, efs, truth):
    print(f"  at recall@10 {TARGET}: median of {len(runs['kith'])} alternating rounds")
    print(f"  {'':22}{'ef':>5}{'recall':>8}{'rate/s':>9}{'p50 us':>9}{'p99 us':>9}")
    for name, r in runs.items():
        ef = efs[name.split(",")[0]]
        row = {"ef": ef, "recall": round(recall(r[0]["found"], truth), 5),
               "rate": median(r, "rate"), "p50_us": median(r, "p50_us"),
               "p99_us": median(r, "p99_us")}
        bench.row("recall", data=data.name, dim=data.dim, n=n, who=name, kind="at target", **row)
        p50, p99 = (f"{v:9.1f}" if v else f"{'-':>9}" for v in (row["p50_us"], row["p99_us"]))
        print(f"  {name:22}{ef:5}{row['recall']:8.4f}{row['rate']:9.0f}{p50}{p99}")


def recall_of(bench, data, n, peers, redis):
    all_of = contenders(bench, data, n, peers, redis)
    truth = exact(data, np.arange(n))
    print(f"  {data.name} {n} x {data.dim}, ef:recall/queries a second")
    points = {}
    for name, contender in all_of.items():
        points[name] = sweep(contender, truth)
        show_sweep(bench, data, n, name, points[name])
    ceilings = {name: recall(all_of[name].truth(100)["found"], truth[:100])
                for name in ("kith", "Redis") if name in all_of}
    print("  exact scan of the codes (TRUTH): " +
          ", ".join(f"{name} {r:.4f}" for name, r in ceilings.items()))
    efs = {name: operating_ef(c, truth, points[name]) for name, c in all_of.items()}
    rates = {name: next((p["rate"] for p in points[name] if p["ef"] >= (efs[name] or 0)),
                        points[name][-1]["rate"]) for name in all_of}
    what = f"{data.name} {n} x {data.dim}"
    if not efs["kith"]:
        bench.figure(f"VSIM, recall, {what}", points["kith"][-1]["recall"], "recall@10", TARGET)
        return
    runs = race(all_of, efs, rates, bench.args.rounds)
    show_race(bench, data, n, runs, efs, truth)
    if runs.get("hnswlib"):
        bench.figure(f"VSIM over TCP beside hnswlib, {what}", ratio(runs["kith"], runs["hnswlib"]),
                     "times", 1.3)
    for name in ("Redis", "Redis, NOTHREAD"):
        if runs.get(name):
            bench.figure(f"VSIM beside {name}, {what}", ratio(runs["kith"], runs[name]), "times",
                         5)
    bench.figure(f"VSIM, 8 connections beside 1, {what}",
                 ratio(runs["kith, 8 connections"], runs["kith"]), "times", 1.8)


def run_recall(bench):
    check_names()
    few = [p for p in bench.args.peers if p == "hnswlib"]
    if "manifold" in bench.args.data:
        for dim in bench.args.dims:
            full = dim == 384
            n = bench.n if full else bench.n // 5
            data = bench.data("manifold", dim)
            recall_of(bench, data, n, bench.args.peers if full else few, bench.redis and full)
            bench.drop("faiss", "usearch")
            if not full:
                bench.drop(data=("manifold", dim))
    if "text" in bench.args.data:
        data = bench.data("text")
        recall_of(bench, data, len(data.rows()), bench.args.peers, bench.redis)
        bench.drop(data=("text", data.dim))


# --- adding -------------------------------------------------------------------------------------


def add_rates(n, done, tail=4096):
    """(acknowledged, linked, acknowledged while a tail of that length had room), all a second."""
    in_tail, seconds = [mark for mark in done["curve"] if mark[0] <= tail][-1]
    return n / done["acknowledged_s"], n / done["linked_s"], in_tail / seconds


def add_once(data, n, *options):
    """A fresh server."""
    kith = Kith(*options)
    done = kith.load(data, n=n)
    kith.close()
    return add_rates(n, done)


def run_add(bench):
    data, n = bench.data(), bench.n
    large = n > 200_000  # once is enough, and the peers would take an hour
    rounds = 1 if large else 3
    runs = [add_rates(n, bench.load_figures("kith", data, n))]
    runs += [add_once(data, n) for _ in range(rounds - 1)]
    wide = [add_once(data, min(n, 100_000), "--vset-tail-max", 1_000_000) for _ in range(rounds)]
    acknowledged, linked, in_tail = (statistics.median(r[i] for r in runs) for i in range(3))
    room = statistics.median(r[0] for r in wide)
    print(f"  kith, one connection, 512 in flight, appendfsync always, median of {rounds}")
    print(f"  default tail      acknowledged {acknowledged:8.0f}/s   linked {linked:8.0f}/s   the "
          f"first 4,096 acknowledged {in_tail:8.0f}/s")
    print(f"  tail of 1,000,000 acknowledged {room:8.0f}/s   linked "
          f"{statistics.median(r[1] for r in wide):8.0f}/s")
    bench.row("add", who="kith", n=n, dim=data.dim, linked_rate=linked,
              acknowledged_rate=acknowledged, tail_rate=in_tail, wide_tail_rate=room)
    if "hnswlib" in bench.args.peers and not large:
        build = n / bench.load_figures("hnswlib", data, n)["seconds"]
        print(f"  hnswlib, one thread, in memory: {build:.0f}/s")
        bench.row("add", who="hnswlib", n=n, dim=data.dim, linked_rate=build)
        bench.figure(f"VADD until linked beside hnswlib's build, {n} x {data.dim}",
                     linked / build, "times", 1.5)
    if bench.redis and not large:
        rate = n / bench.load_figures("Redis", data, n)["linked_s"]
        print(f"  Redis, pipelined, no append-only file: {rate:.0f}/s")
        bench.row("add", who="Redis", n=n, dim=data.dim, linked_rate=rate)
    bench.figure("VADD acknowledged while the default tail has room", in_tail, "a second", 20_000)
