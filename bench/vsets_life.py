"""The parts of bench/vsets.py about a set that lives: memory, restart, filters, churn."""

import itertools
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np

from vsets_data import FOLDER, K, exact, recall, unit
from vsets_recall import GRID, TARGET, operating_ef, sweep
from vsets_servers import KEY, LOAD, Kith, forget_cached

MIB = 1 << 20


# --- memory -------------------------------------------------------------------------------------


def memory_text(m, n):
    return (f"{m['total'] / n:6.0f} bytes an element: process {m['process'] / MIB:.0f} MiB, "
            f"data.mdb {m['store_file'] / MIB:.0f} MiB, cached {m['store_cached'] / MIB:.0f}, live "
            f"{m['store_live'] / MIB:.0f}; with the log's pages {m['with_log'] / n:.0f}")


def show_memory(bench, when, n, m):
    print(f"  {when:36} {memory_text(m, n)}", flush=True)
    bench.row("memory", who="kith", when=when, n=n, **{k: round(v / n, 1) for k, v in m.items()})


def run_memory(bench):
    """Counted: the resident memory of the server's processes but for their mappings of the data
    folder, and the pages of data.mdb that the page cache holds. Shown beside it: with the pages
    of the log, and how much of data.mdb is live, the rest being pages to be used again."""
    data, n = bench.data(), bench.n
    kith = bench.get("kith", data, n)
    kith.save()
    built = kith.memory()
    show_memory(bench, "after loading and a checkpoint", n, built)
    kith.search(200)
    kith.save()
    used = kith.memory()
    show_memory(bench, "and 1,000 searches", n, used)
    kith.server.stop()
    forget_cached(kith.server.data)
    kith.server.start(timeout=120)
    kith.search(200)
    kith.truth(20)
    again = kith.memory()
    show_memory(bench, "started anew, searches, exact scans", n, again)
    if "hnswlib" in bench.args.peers:
        # Its memory does not depend on ef_construction, the time to build it does.
        quick = 16 if n > 200_000 else 200
        m = bench.get("hnswlib", data, n, quick).memory()
        print(f"  hnswlib, f32: {m['total'] / n:.0f} bytes an element")
        bench.row("memory", who="hnswlib", when="built", n=n, total=m["total"] / n)
    if bench.redis:
        some = min(n, 100_000)
        m = bench.get("Redis", data, some).memory()
        print(f"  Redis, Q8, {some} elements: {m['total'] / some:.0f} bytes an element")
        bench.row("memory", who="Redis", when="built", n=some, total=m["total"] / some)
    if n < 1_000_000:
        print("  (the goal, 620 bytes an element, is for 1,000,000: --n 1000000)")
        return
    bench.figure(f"memory of {n} x {data.dim} in Q8, all told, as loaded", built["total"] / n,
                 "bytes an element", 620, at_least=False)
    bench.figure(f"memory of {n} x {data.dim} in Q8, all told, started anew",
                 again["total"] / n, "bytes an element", 620, at_least=False)


# --- restart ------------------------------------------------------------------------------------


def ask(kith):
    with kith.server.wire(timeout=600) as w:
        return w.cmd("VSIM", KEY, "FP32", kith.data.rows()[17].tobytes(), "COUNT", K, "EF", 200)


def first_answer_s(kith, expected):
    """From the start of the program to the answer of a search, which must be as before (where
    one is expected). The answer is of the graph that was linked before, and of the elements that
    were not linked yet."""
    start = time.perf_counter()
    kith.server.spawn()
    while True:
        try:
            found = ask(kith)
            break
        except OSError:
            if kith.server.process.poll() is not None:
                raise SystemExit(f"the server ended:\n{kith.server.log()}") from None
            time.sleep(0.0005)
    seconds = time.perf_counter() - start
    if not isinstance(found, list) or found[0] != b"e17" or (expected and found != expected):
        raise SystemExit(f"the first answer is {found!r}, it was {expected!r}")
    return seconds


def kill_while_adding(kith, first, n):
    """kill -9 when about half of further rows are in."""
    before = kith.cmd("VCARD", KEY)
    words = [LOAD, "add", "--port", kith.port, "--key", KEY, "--vectors", kith.data.base, "--dim",
             kith.data.dim, "--first", first, "--n", n, "--pipeline", 512]
    words += [w for word in kith.add_words for w in ("--extra", word)]
    adding = subprocess.Popen([str(w) for w in words], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    while kith.cmd("VCARD", KEY) < before + n // 2 and adding.poll() is None:
        time.sleep(0.002)
    kith.server.kill()
    adding.wait()


def run_restart(bench):
    n = bench.n
    more = max(1000, n // 20)
    data = bench.data()
    kith = bench.get("kith", data, n)
    answer = ask(kith)
    out = {}
    kith.server.stop()
    out["clean stop"] = first_answer_s(kith, answer)
    kith.server.stop()
    forget_cached(kith.server.data)
    out["clean stop, nothing cached"] = first_answer_s(kith, answer)
    kith.server.kill()
    out["kill -9 at rest"] = first_answer_s(kith, answer)
    kill_while_adding(kith, n, more)
    out["kill -9 while adding"] = first_answer_s(kith, None)
    bench.drop("kith", data=(data.name, data.dim))
    for what, seconds in out.items():
        print(f"  {what:28} {seconds:7.3f} s to the first answer")
        bench.row("restart", n=n, dim=data.dim, what=what, seconds=seconds)
    bench.figure(f"restart of {n} x {data.dim}, clean, first answer", out["clean stop"], "s", 1,
                 at_least=False)
    bench.figure(f"restart of {n} x {data.dim} after kill -9, first answer",
                 max(out["kill -9 at rest"], out["kill -9 while adding"]), "s", 1, at_least=False)


# --- filters ------------------------------------------------------------------------------------

SELECTIVITIES = [0.5, 0.1, 0.01, 0.001, 0.0001]
N_FILTERED = 200
NONE = np.iinfo(np.uint32).max
spelling = itertools.count(1)


def attribute_columns(data, n):
    """Two numbers from 0 to 9,999 for each element, each value equally often: `r` at random, `c`
    by the place along a direction of the space, so that matches lie together and most queries
    are far from them."""
    rng = np.random.default_rng(5)
    direction = rng.standard_normal(data.dim).astype(np.float32)
    place = np.empty(n, np.int64)
    place[np.argsort(unit(data.rows()[:n]) @ direction)] = np.arange(n)
    return {"r": rng.permutation(n) * 10_000 // n, "c": place * 10_000 // n}


def write_attributes(path, columns):
    lines = (f'{{"r":{r},"c":{c},"kind":"passage"}}\n' for r, c in zip(*columns.values()))
    path.write_text("".join(lines))


def filtered(contender, ef, where, truth, extra=()):
    """One filter asked of one contender: figures with recall and short answers."""
    extra = ("FILTER", where, *extra)
    rate = contender.search(ef, extra=extra, n=N_FILTERED)["rate"]
    out = contender.search(ef, extra=extra, n=N_FILTERED,
                           rounds=min(20, max(1, round(rate / N_FILTERED / 2))))
    due = (truth != NONE).sum(1)
    got = (out["found"] != NONE).sum(1)
    out["recall"], out["n_short"] = recall(out["found"], truth), int((got < due).sum())
    return out


def first_us(contender, ef, where, extra=()):
    """The median time of a filter's first use: it is spelled in ways not seen before."""
    times = []
    for i in range(9):
        spelled = f"{where} and {next(spelling)} > 0"
        times.append(contender.search(ef, extra=("FILTER", spelled, *extra), n=1)["p50_us"])
    return statistics.median(times)


def alternate(contender, ef, where, truth, rounds):
    """What the server chooses, with ef and with none named, beside TRUTH, in alternating rounds:
    the figures of the first rounds, with medians of p50_us and the first uses in first_us."""
    ways = {"asked": (ef, ()), "no EF": (0, ()), "TRUTH": (0, ("TRUTH",))}
    runs = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (own_ef, extra) in ways.items():
            runs[way].append(filtered(contender, own_ef, where, truth, extra))
    for way, (own_ef, extra) in ways.items():
        first = runs[way][0]
        first["p50_us"] = statistics.median(r["p50_us"] for r in runs[way])
        first["first_us"] = first_us(contender, own_ef, where, extra)
    return [runs[way][0] for way in ways]


def show_filter(bench, words, **by):
    line = f"  {words['field']} {100 * words['selectivity']:6g} % {words['n_matches']:8}"
    for who, r in by.items():
        if not r:
            continue
        line += f"  {r['recall']:7.4f} {r['n_short']:5} {r['p50_us']:8.1f}"
        line += f" {r['first_us']:8.1f}" if "first_us" in r else ""
        bench.row("filter", who=who.replace("_", " "), **words,
                  **{k: r.get(k) for k in ("ef", "recall", "n_short", "rate", "p50_us", "p99_us",
                                           "first_us")})
    print(line, flush=True)


def load_with_attributes(bench, data, n, columns):
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = pathlib.Path(folder) / "attributes"
        write_attributes(path, columns)
        kith, redis = Kith(), None
        done = kith.load(data, n=n, attributes=path)
        print(f"  kith with attributes: linked {n / done['linked_s']:.0f}/s")
        if bench.redis and n <= 200_000:
            redis = bench.get("Redis", data, n)
            redis.tool("attributes", data.base, "--n", n, "--attributes", path)
    return kith, redis


def run_filter(bench):
    data, n = bench.data(), bench.n
    columns = attribute_columns(data, n)
    kith, redis = load_with_attributes(bench, data, n, columns)
    ids, queries = np.arange(n), data.query_rows()[:N_FILTERED]
    everything = exact(data, ids)
    ef = operating_ef(kith, everything, sweep(kith, everything)) or GRID[-1]
    print(f"  EF {ef}, which finds {TARGET} without a filter; {N_FILTERED} queries; us: median, and "
          f"median of first uses of a filter")
    columns_text = f"  {'recall':>7} {'short':>5} {'us':>8}"
    print(f"  {'':18}  {f'kith, EF {ef}':>31}  {'kith, no EF':>31}  {'kith, TRUTH':>31}"
          f"  {'Redis' if redis else '':>22}\n  {'filter':>9} {'matches':>8}"
          + 3 * (columns_text + f" {'first':>8}") + (columns_text if redis else ""))
    recalls, shorts, ratios, first_ratios = [], 0, [], []
    for field, column in columns.items():
        for part in SELECTIVITIES:
            where, mask = f".{field} < {round(part * 10_000)}", column < round(part * 10_000)
            words = {"field": field, "selectivity": part, "n_matches": int(mask.sum())}
            truth = exact(data, ids[mask], queries=queries)
            asked, plain, scan = alternate(kith, ef, where, truth, bench.args.rounds)
            other = filtered(redis, ef, where, truth) if redis else None
            show_filter(bench, words, kith=asked, kith_no_EF=plain, kith_TRUTH=scan, Redis=other)
            recalls.append(asked["recall"])
            shorts += asked["n_short"] + plain["n_short"]
            for way in (asked, plain):
                ratios.append(scan["p50_us"] / way["p50_us"])
                first_ratios.append(scan["first_us"] / way["first_us"])
    kith.close()
    bench.figure(f"filtered VSIM, 50 % to 0.01 %, {n} x {data.dim}, worst recall", min(recalls),
                 "recall@10", TARGET)
    bench.figure("filtered VSIM, short answers", shorts, "answers", 0, at_least=False)
    # Equal times differ by a few percent from run to run.
    bench.figure("filtered VSIM beside the exact scan of the matches, worst", min(ratios), "times",
                 0.95)
    bench.figure("the same, filters asked for the first time", min(first_ratios), "times", 0.9)


# --- churn --------------------------------------------------------------------------------------

CHURN_ROUNDS = 10


def churn_round(kith, live, number, n):
    """Removes a tenth of the live rows and adds as many new ones; the live rows after it."""
    rng = np.random.default_rng([7, number])
    tenth = n // 10
    out = rng.choice(len(live), tenth, replace=False)
    new = np.arange(n + number * tenth, n + (number + 1) * tenth)
    removed = kith.remove(live[out])
    added = kith.load(kith.data, ids=new)
    live = np.concatenate([np.delete(live, out), new])
    return live, tenth / removed["acknowledged_s"], tenth / added["linked_s"]


def state(bench, kith, live, ef, what):
    truth = exact(kith.data, live)
    out = kith.search(ef, rounds=1)
    kith.save()
    m = kith.memory()
    row = {"what": what, "n": len(live), "ef": ef, "recall": recall(out["found"], truth),
           "rate": out["rate"], "memory": m["total"], "file": m["store_file"],
           "live": m["store_live"], "process": m["process"], "with_log": m["with_log"]}
    bench.row("churn", **row)
    print(f"  {what:26} recall {row['recall']:.4f} at ef {ef}, {out['rate']:6.0f}/s; "
          f"{memory_text(m, len(live))}", flush=True)
    return row


def run_churn(bench):
    n = bench.n
    data = bench.data()
    kith = Kith()
    kith.load(data, n=n)
    live = np.arange(n)
    truth = exact(data, live)
    ef = operating_ef(kith, truth, sweep(kith, truth)) or GRID[-1]
    state(bench, kith, live, ef, "built")
    for number in range(CHURN_ROUNDS):
        live, removed, added = churn_round(kith, live, number, n)
        churned = state(bench, kith, live, ef,
                        f"round {number + 1:2} (-{removed:.0f}/s +{added:.0f}/s)")
    kith.close()
    fresh_kith = Kith()
    fresh_kith.load(data, ids=np.sort(live))
    fresh = state(bench, fresh_kith, live, ef, "the same, built anew")
    fresh_kith.close()
    bench.figure(f"churn of {n} x {data.dim}, 10 x 10 %: recall lost beside a fresh build",
                 100 * (fresh["recall"] - churned["recall"]), "points", 0.5, at_least=False)
    for field in ("memory", "file", "live"):
        bench.figure(f"churn: {field} beside a fresh build", churned[field] / fresh[field],
                     "times", 1.1, at_least=False)
