"""Vector sets against a model in numpy: thousands of random changes and questions, recall, and
searches while others write."""

import random
import threading
import time

import numpy as np
import pytest

from kithtest import LONG, PATIENCE, ReplyError, scaled, wait_until


def cosine_scores(matrix, query):
    """1 - (1 - cosine) / 2 of each row."""
    norms = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)
    return (1 + matrix @ query / np.where(norms == 0, 1, norms)) / 2


class Model:
    """What the set must hold."""

    def __init__(self):
        self.vectors = {}

    def best(self, query, count):
        names = list(self.vectors)
        scores = cosine_scores(np.array([self.vectors[n] for n in names]), query)
        order = np.argsort(-scores)[:count]
        return [(names[i], scores[i]) for i in order], dict(zip(names, scores))


def check_search(found, model, query, count, slack):
    """The same number of results, each with its right score, and none much worse than the
    model's at that place: names may only differ where the scores are as good as equal."""
    expected, scores = model.best(query, count)
    assert len(found) == len(expected)
    names = [n for n, _ in found]
    assert len(set(names)) == len(names), "one element twice"
    for (name, score), (_, best) in zip(found, expected):
        assert abs(score - scores[name]) <= slack, (name, score, scores[name])
        assert scores[name] >= best - 2 * slack, (name, scores[name], best)


@pytest.mark.parametrize("quant, slack", [("NOQUANT", 2e-5), ("Q8", 0.01)])
@pytest.mark.parametrize("seed", range(1, 30 if LONG else 3))
def test_random_changes_against_the_model(server, quant, slack, seed):
    rng = np.random.default_rng(seed)
    pick = random.Random(seed)
    dim = int(rng.integers(2, 40))
    model = Model()
    names = [b"e%d" % i for i in range(scaled(300, 80))]
    with server.wire(3) as w:
        for step in range(scaled(2500, 400)):
            where = f"seed {seed}, step {step}, dim {dim}"
            name = pick.choice(names)
            action = pick.random()
            if action < 0.5 or not model.vectors:
                v = rng.standard_normal(dim).astype(np.float32) * pick.choice([1, 0.01, 100])
                new = w.cmd("VADD", "v", "FP32", v.tobytes(), name, quant)
                assert new is (name not in model.vectors), where
                model.vectors[name] = v
            elif action < 0.75:
                assert w.cmd("VREM", "v", name) is (name in model.vectors), where
                model.vectors.pop(name, None)
            elif action < 0.85:
                got = w.cmd("VEMB", "v", name)
                if name in model.vectors:
                    v = model.vectors[name]
                    tolerance = 1e-6 if quant == "NOQUANT" else 0.01
                    assert np.abs(np.array(got) - v).max() <= tolerance * np.abs(v).max(), where
                else:
                    assert got is None, where
            elif action < 0.9:
                assert w.cmd("VCARD", "v") == len(model.vectors), where
                assert w.cmd("VISMEMBER", "v", name) is (name in model.vectors), where
            else:
                q = rng.standard_normal(dim).astype(np.float32)
                count = pick.choice([1, 5, 50, 1000])
                found = w.cmd(
                    "VSIM", "v", "FP32", q.tobytes(), "WITHSCORES", "TRUTH", "COUNT", count
                )
                check_search(list(found.items()), model, q, count, slack)
            if not model.vectors:
                assert w.cmd("EXISTS", "v") == 0, where
        members = set(w.cmd("VRANDMEMBER", "v", len(names)))
        assert members == set(model.vectors)


def fill(wire, key, vectors, *options):
    """Names are the row numbers."""
    for at in range(0, len(vectors), 1000):
        part = vectors[at : at + 1000]
        replies = wire.cmds(
            [("VADD", key, "FP32", v.tobytes(), at + i, *options) for i, v in enumerate(part)]
        )
        bad = [r for r in replies if isinstance(r, ReplyError)]
        assert not bad, bad[0]


def wait_linked(server, timeout=60):
    wait_until(
        lambda: server.info("vectors")["vectors_unlinked"] == "0", timeout, "all to be linked"
    )


def recall(wire, key, queries, count, *options):
    hits = 0
    for q in queries:
        found = set(wire.cmd("VSIM", key, "FP32", q.tobytes(), "COUNT", count, *options))
        truth = wire.cmd("VSIM", key, "FP32", q.tobytes(), "COUNT", count, "TRUTH")
        assert len(truth) == count
        hits += len(found & set(truth))
    return hits / (len(queries) * count)


@pytest.mark.timeout(300 * PATIENCE)
@pytest.mark.parametrize("quant", ["Q8", "NOQUANT"])
def test_recall(make_server, quant):
    """20,000 x 64 with clusters, as embeddings have, searched by the graph and exactly."""
    n, dim = scaled(20000, 2000), 64
    rng = np.random.default_rng(17)
    centres = rng.standard_normal((50, dim))
    rows = centres[rng.integers(0, 50, n)] + 0.7 * rng.standard_normal((n, dim))
    rows = rows.astype(np.float32)
    s = make_server("--appendfsync", "no", "--link-threads", 2)
    with s.wire(timeout=120) as w:
        fill(w, "v", rows, quant)
        wait_linked(s, 120)
        queries = rows[rng.integers(0, n, scaled(200, 30))]
        queries = queries + 0.3 * rng.standard_normal(queries.shape).astype(np.float32)
        assert recall(w, "v", queries, 10) >= 0.95
        # A third goes, another third is replaced: the graph must stay as good.
        for at in range(0, n // 3, 1000):
            names = range(at, min(at + 1000, n // 3))
            assert set(w.cmds([("VREM", "v", i) for i in names])) == {1}
        rows[n // 3 : 2 * n // 3] = rng.standard_normal((2 * n // 3 - n // 3, dim))
        replies = w.cmds(
            [
                ("VADD", "v", "FP32", rows[i].tobytes(), i, quant)
                for i in range(n // 3, 2 * n // 3)
            ]
        )
        assert set(replies) == {0}
        wait_linked(s, 120)
        assert recall(w, "v", queries, 10) >= 0.95
        assert w.cmd("VCARD", "v") == n - n // 3


def test_element_is_never_hidden_while_it_is_updated(server):
    """Searches for an element that is replaced all the time always find it."""
    rng = np.random.default_rng(3)
    dim = 16
    base = rng.standard_normal((scaled(2000, 400), dim)).astype(np.float32)
    target = np.zeros(dim, np.float32)
    target[0] = 100
    stop = threading.Event()
    problems, updates = [], [0]

    def update():
        with server.wire() as w:
            while not stop.is_set():
                v = target + rng.standard_normal(dim).astype(np.float32)
                reply = w.cmd("VADD", "v", "FP32", v.tobytes(), "target")
                if reply != 0:
                    problems.append(f"VADD replied {reply}")
                    return
                updates[0] += 1

    with server.wire() as w:
        fill(w, "v", base)
        w.cmd("VADD", "v", "FP32", target.tobytes(), "target")
        t = threading.Thread(target=update)
        t.start()
        until = time.monotonic() + 1.5
        searches = 0
        try:
            # So long, and until something did happen at the same time.
            while (time.monotonic() < until or min(searches, updates[0]) < 20) and not problems:
                for options in ([], ["TRUTH"]):
                    found = w.cmd("VSIM", "v", "FP32", target.tobytes(), "COUNT", 1, *options)
                    assert found == [b"target"], f"hidden at search {searches} {options}"
                    assert w.cmd("VISMEMBER", "v", "target") == 1
                    assert w.cmd("VCARD", "v") == len(base) + 1
                    searches += 1
        finally:
            stop.set()
            t.join()
    assert not problems, problems


def test_added_element_is_found_at_once(server):
    """Before it is linked into the graph, from another connection."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((scaled(2000, 300), 8)).astype(np.float32)
    with server.wire() as writer, server.wire() as reader:
        for i, v in enumerate(rows):
            writer.cmd("VADD", "v", "FP32", v.tobytes(), i, "NOQUANT")
            found = reader.cmd("VSIM", "v", "FP32", v.tobytes(), "COUNT", 1)
            assert found == [b"%d" % i]


def test_removed_element_is_not_found_again(server):
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((scaled(1500, 300), 8)).astype(np.float32)
    with server.wire() as writer, server.wire() as reader:
        fill(writer, "v", rows)
        for i in range(0, len(rows), 2):
            assert writer.cmd("VREM", "v", i) == 1
            found = reader.cmd("VSIM", "v", "FP32", rows[i].tobytes(), "COUNT", 3)
            assert b"%d" % i not in found
            assert writer.cmd("VSIM", "v", "ELE", i).startswith("ERR element not found in set")


@pytest.mark.timeout(300 * PATIENCE)
def test_searches_while_others_write(server):
    """Four clients search, two add, replace and remove. Every reply is sound; at the end the set
    holds exactly what the writers left."""
    dim, seconds = 24, 3
    stop = threading.Event()
    problems = []
    counts = {"searches": 0, "changes": 0}
    left = [{}, {}]

    def guarded(body):
        def run(*args):
            try:
                body(*args)
            except Exception as e:
                problems.append(repr(e))
                stop.set()

        return run

    @guarded
    def write(me):
        rng = np.random.default_rng(100 + me)
        pick = random.Random(me)
        with server.wire() as w:
            while not stop.is_set():
                batch, after = [], dict(left[me])
                for _ in range(20):
                    name = f"w{me}:{pick.randrange(2000)}"
                    if pick.random() < 0.7:
                        v = rng.standard_normal(dim).astype(np.float32)
                        batch.append(("VADD", "v", "FP32", v.tobytes(), name))
                        after[name] = v
                    else:
                        batch.append(("VREM", "v", name))
                        after.pop(name, None)
                for r in w.cmds(batch):
                    assert r in (0, 1), r
                left[me] = after
                counts["changes"] += len(batch)

    @guarded
    def search(me):
        rng = np.random.default_rng(200 + me)
        with server.wire(3) as w:
            while not stop.is_set():
                q = rng.standard_normal(dim).astype(np.float32)
                words = ["TRUTH"] if me == 0 else []
                reply = w.cmd("VSIM", "v", "FP32", q.tobytes(), "WITHSCORES", "COUNT", 20, *words)
                assert isinstance(reply, dict), reply
                scores = list(reply.values())
                assert scores == sorted(scores, reverse=True)
                assert len(reply) == 20 and all(-1e-3 <= s <= 1.001 for s in scores)
                counts["searches"] += 1

    with server.wire() as w:
        rng = np.random.default_rng(1)
        fixed = rng.standard_normal((500, dim)).astype(np.float32)
        fill(w, "v", fixed)
        threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        threads += [threading.Thread(target=search, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        stop.wait(seconds)
        wait_until(lambda: problems or (counts["searches"] > 50 and counts["changes"] > 100))
        stop.set()
        for t in threads:
            t.join()
        assert not problems, problems
        expected = {str(i) for i in range(500)} | set(left[0]) | set(left[1])
        assert w.cmd("VCARD", "v") == len(expected)
        names = {n.decode() for n in w.cmd("VRANDMEMBER", "v", 100000)}
        assert names == expected
        wait_linked(server)
        for part in left:
            for name, v in list(part.items())[:100]:
                found = w.cmd("VSIM", "v", "FP32", v.tobytes(), "COUNT", 1, "TRUTH")
                assert found == [name.encode()]


def test_search_in_a_set_that_is_deleted(server):
    """DEL, FLUSHALL and RENAME while searches run: they end with results or with none."""
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((scaled(1000, 200), 16)).astype(np.float32)
    stop = threading.Event()
    problems, n = [], [0]

    def search():
        with server.wire() as w:
            while not stop.is_set():
                reply = w.cmd("VSIM", "v", "FP32", rows[0].tobytes(), "COUNT", 5)
                n[0] += 1
                if not isinstance(reply, list):
                    problems.append(reply)
                    return

    threads = [threading.Thread(target=search) for _ in range(3)]
    for t in threads:
        t.start()
    with server.wire() as w:
        for i in range(scaled(40, 10)):
            fill(w, "v", rows)
            w.cmd(*[("DEL", "v"), ("FLUSHALL",), ("RENAME", "v", "other"), ("SET", "v", 1)][i % 3])
    wait_until(lambda: problems or n[0] > 10)
    stop.set()
    for t in threads:
        t.join()
    assert not problems, problems


def test_many_small_sets(server):
    """A set of a few elements costs kilobytes."""
    n = scaled(2000, 200)
    before = int(server.info("memory")["used_memory"])
    with server.wire() as w:
        w.cmds([("VADD", f"v{i}", "VALUES", 4, 1, 2, 3, i, "e") for i in range(n)])
        assert w.cmd("DBSIZE") == n
        assert w.cmd("VSIM", f"v{n // 2}", "ELE", "e") == [b"e"]
        used = int(server.info("memory")["used_memory"]) - before
        assert used < n * 24 * 1024, used
        w.cmd("FLUSHALL")


def test_large_dimension(server):
    rng = np.random.default_rng(2)
    dim = 4096
    rows = rng.standard_normal((30, dim)).astype(np.float32)
    with server.wire(3) as w:
        fill(w, "v", rows)
        for i in (0, 29):
            scores = w.cmd("VSIM", "v", "FP32", rows[i].tobytes(), "WITHSCORES")
            assert max(scores, key=scores.get) == b"%d" % i
        assert "1 to" in w.cmd("VADD", "w", "FP32", bytes(4 << 20), "e"), "and not any number"
