"""What kith's vector sets have beyond Redis', against numpy: metrics, kept vectors, expiry,
RADIUS, pages, diversity, several vectors, recommendations, filters that keep their promise, and
all of it after a kill."""

import time

import numpy as np
import pytest

import vset_numpy
from kithtest import WAYS_BACK, scaled, wait_until

METRICS = ["COSINE", "L2", "IP"]


def values(*v):
    return ["VALUES", len(v), *v]


def sample(seed, n, dim, clusters=20):
    """Clustered rows of different lengths, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim))
    rows = centres[rng.integers(0, clusters, n)] + 0.6 * rng.standard_normal((n, dim))
    return rng, rows.astype(np.float32)


def fill(wire, key, rows, options=(), attributes=None, at=0):
    """Names are the row numbers."""
    for first in range(0, len(rows), 1000):
        words = []
        for i, row in enumerate(rows[first : first + 1000], first + at):
            words += [str(i), row.tobytes()]
            if attributes:
                words.append(attributes(i))
        n = min(1000, len(rows) - first)
        mark = ["ATTRS"] if attributes else []
        reply = wire.cmd("VMADD", key, *options, "FP32", n, *mark, *words)
        assert reply == n, reply


def wait_linked(server, timeout=60):
    wait_until(
        lambda: server.info("vectors")["vectors_unlinked"] == "0", timeout, "all to be linked"
    )


def search(wire, key, query, *options):
    """[(row, score)]"""
    vector = ["FP32", np.asarray(query, np.float32).tobytes()]
    reply = wire.cmd("VSIM", key, *vector, *options, "WITHSCORES")
    assert isinstance(reply, dict), reply
    return [(int(name), float(score)) for name, score in reply.items()]


def recall(wire, key, rng, rows, *options):
    """The share of the nearest ten that searches with these options find."""
    hits = 0
    for _ in range(60):
        query = rows[rng.integers(len(rows))] + 0.3 * rng.standard_normal(rows.shape[1])
        truth = {row for row, _ in search(wire, key, query, "TRUTH")}
        hits += len(truth & {row for row, _ in search(wire, key, query, *options)})
    return hits / 600


def check_order(found, right, slack=1e-4):
    """found: [(row, score)]; right: the score of each row. Sorted, right scores, and none that is
    not found is better than the last."""
    shown = [s for _, s in found]
    assert shown == sorted(shown, reverse=True)
    assert len({row for row, _ in found}) == len(found)
    for row, score in found:
        assert score == pytest.approx(right[row], abs=slack * max(1, abs(right[row]))), row
    order = np.sort(right)[::-1][: len(found)]
    assert shown == pytest.approx(list(order), abs=slack * max(1, np.max(np.abs(order))))


@pytest.fixture
def wire(server):
    with server.wire(3, timeout=60) as w:
        yield w


# --- metrics, quantizations, indexes ------------------------------------------------------------


@pytest.mark.parametrize("index", ["HNSW", "FLAT"])
@pytest.mark.parametrize("metric", METRICS)
def test_metric_is_exact(wire, metric, index):
    """TRUTH is what numpy says, to the last place."""
    rng, rows = sample(1, 400, 16)
    assert wire.cmd("VCREATE", "v", "DIM", 16, "METRIC", metric, "INDEX", index, "QUANT", "F32")
    fill(wire, "v", rows)
    for _ in range(20):
        query = rng.standard_normal(16).astype(np.float32)
        right = vset_numpy.scores(metric, rows, query)
        check_order(search(wire, "v", query, "TRUTH", "COUNT", 25), right)
        check_order(search(wire, "v", query, "EF", 400, "COUNT", 25), right)
    # An element is its own nearest where the metric says so.
    if metric != "IP":
        assert wire.cmd("VSIM", "v", "ELE", "17", "COUNT", 1) == [b"17"]


@pytest.mark.parametrize("quant, slack", [("F16", 1e-3), ("Q8", 0.01), ("BIN", None)])
@pytest.mark.parametrize("metric", METRICS)
def test_quantized_metric(wire, metric, quant, slack):
    """Scores are near the exact ones; those of BIN are those of the signs."""
    rng, rows = sample(2, 300, 64)
    assert wire.cmd("VCREATE", "v", "DIM", 64, "METRIC", metric, "QUANT", quant) == "OK"
    fill(wire, "v", rows)
    for _ in range(10):
        query = rng.standard_normal(64).astype(np.float32)
        found = search(wire, "v", query, "TRUTH", "COUNT", 300)
        assert len(found) == 300
        if quant != "BIN":
            right = vset_numpy.scores(metric, rows, query)
            length = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
            for row, score in found:
                # The error of a cosine, brought to the metric.
                allowed = slack * (2 * length[row] if metric == "IP" else 2)
                assert abs(score - right[row]) <= allowed, (row, score, right[row])
        elif metric == "COSINE":
            signs = np.where(rows > 0, 1.0, -1.0)
            right = (1 + signs @ np.where(query > 0, 1.0, -1.0) / 64) / 2
            for row, score in found:
                assert score == pytest.approx(right[row], abs=1e-6)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("metric", METRICS)
def test_recall_by_metric(make_server, metric):
    n, dim = scaled(5000, 800), 32
    s = make_server("--appendfsync", "no")
    rng, rows = sample(3, n, dim)
    with s.wire(3, timeout=60) as w:
        assert w.cmd("VCREATE", "v", "DIM", dim, "METRIC", metric) == "OK"
        fill(w, "v", rows)
        wait_linked(s, 120)
        assert recall(w, "v", rng, rows) >= 0.95


def test_unlike_vectors_are_refused(wire):
    assert wire.cmd("VCREATE", "v", "DIM", 3, "METRIC", "L2", "KEEP", "F32") == "OK"
    assert wire.cmd("VCREATE", "v", "KEEP", "F32", "METRIC", "L2", "DIM", 3) == "OK", "the same"
    assert wire.cmd("VCREATE", "v", "DIM", 3).startswith("ERR the key exists already")
    assert wire.cmd("VADD", "v", *values(1, 2), "e").startswith("ERR Vector dimension mismatch")
    assert wire.cmd("VADD", "v", *values(1, 2, 3), "e", "BIN").startswith("ERR asked quant")
    assert wire.cmd("VADD", "v", *values(1, 2, 3), "e") is True
    assert wire.cmd("VREM", "v", "e") is True
    assert wire.cmd("EXISTS", "v") == 1, "a declared set stays"


# --- full vectors -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep, slack", [("F32", 0), ("F16", 1e-3)])
def test_kept_vectors(wire, keep, slack):
    """VEMB gives back what came; TRUTH is exact though the codes are bits."""
    rng, rows = sample(4, 500, 48)
    assert wire.cmd("VCREATE", "v", "DIM", 48, "QUANT", "BIN", "KEEP", keep) == "OK"
    fill(wire, "v", rows)
    for i in (0, 77, 499):
        got = np.array(wire.cmd("VEMB", "v", i))
        assert np.max(np.abs(got - rows[i])) <= slack * np.max(np.abs(rows[i]))
    for _ in range(10):
        query = rng.standard_normal(48).astype(np.float32)
        right = vset_numpy.scores("COSINE", rows, query)
        check_order(search(wire, "v", query, "TRUTH", "COUNT", 20), right, max(slack, 1e-5))


@pytest.mark.timeout(300)
def test_rescore(make_server):
    """A walk over bits that is ordered by full vectors finds what a walk over bits alone does
    not; what cannot be rescored is refused."""
    n, dim = scaled(4000, 800), 64
    s = make_server("--appendfsync", "no")
    rng, rows = sample(5, n, dim, clusters=5)
    with s.wire(3, timeout=60) as w:
        assert w.cmd("VCREATE", "v", "DIM", dim, "QUANT", "BIN", "KEEP", "F32") == "OK"
        fill(w, "v", rows)
        wait_linked(s, 120)
        hits = {"codes": 0, "rescored": 0}
        for _ in range(40):
            query = rows[rng.integers(n)] + 0.3 * rng.standard_normal(dim)
            right = vset_numpy.scores("COSINE", rows, np.asarray(query, np.float32))
            truth = {row for row, _ in search(w, "v", query, "TRUTH")}
            assert truth == set(vset_numpy.best(right, 10))
            hits["codes"] += len(truth & {r for r, _ in search(w, "v", query, "RESCORE", 0)})
            found = search(w, "v", query, "EF", 600, "RESCORE", 600)
            hits["rescored"] += len(truth & {row for row, _ in found})
            assert [x for _, x in found] == pytest.approx([right[row] for row, _ in found], abs=1e-5)
        assert hits["rescored"] >= 0.95 * 400 and hits["rescored"] > hits["codes"], hits
        assert w.cmd("VSIM", "v", "ELE", 0, "RESCORE", 5).startswith("ERR invalid RESCORE")
        w.cmd("VADD", "codes only", *values(1, 2), "e")
        reply = w.cmd("VSIM", "codes only", "ELE", "e", "RESCORE", 100)
        assert reply.startswith("ERR invalid RESCORE")


# --- RADIUS, pages ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exact", [True, False])
def test_radius(server, wire, metric, exact):
    """All that is near enough and nothing else; no more than COUNT where that is given."""
    rng, rows = sample(6, 600, 8)
    assert wire.cmd("VCREATE", "v", "DIM", 8, "METRIC", metric, "QUANT", "F32") == "OK"
    fill(wire, "v", rows)
    wait_linked(server)
    words = ["TRUTH"] if exact else []
    for _ in range(15):
        query = rng.standard_normal(8).astype(np.float32)
        right = vset_numpy.scores(metric, rows, query)
        order = np.sort(right)[::-1]
        # Between two scores, so that rounding decides nothing.
        edge = float(order[40] + order[41]) / 2
        radius = {"COSINE": 2 - 2 * edge, "L2": 1 / edge - 1, "IP": edge}[metric]
        inside = {int(i) for i in np.flatnonzero(right > edge)}
        found = search(wire, "v", query, "RADIUS", radius, *words)
        assert {row for row, _ in found} <= inside
        assert len(found) >= (41 if exact else 39)
        check_order(search(wire, "v", query, "RADIUS", radius, "COUNT", 7, "TRUTH"), right)
        assert search(wire, "v", query, "RADIUS", radius, "OFFSET", 41, "TRUTH") == []


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("page", [1, 7, 30, 250])
def test_pages(server, wire, exact, page):
    """Pages of one question do not overlap, leave no gap, and are in order."""
    n = 1200
    rng, rows = sample(7, n, 12)
    wire.cmd("VCREATE", "v", "DIM", 12, "QUANT", "F32")
    fill(wire, "v", rows, attributes=lambda i: '{"i":%d}' % i)
    wait_linked(server)
    query = rng.standard_normal(12)
    words = ["TRUTH"] if exact else []
    last = 400 if page < 100 else n + page
    seen = []
    for offset in range(0, min(last, 30 * page), page):
        part = search(wire, "v", query, "OFFSET", offset, "COUNT", page, *words)
        assert len(part) == min(page, max(0, n - offset)), offset
        seen += part
    assert len({row for row, _ in seen}) == len(seen), "one element on two pages"
    if exact:
        check_order(seen, vset_numpy.scores("COSINE", rows, query))
    elif len(seen) == n:
        assert {row for row, _ in seen} == set(range(n)), "every element is on a page"
    again = search(wire, "v", query, "OFFSET", page, "COUNT", page, *words)
    assert again == seen[page : 2 * page], "the same page is the same"
    some = search(wire, "v", query, "OFFSET", 10, "COUNT", 10, "TRUTH", "FILTER", ".i < 15")
    assert len(some) == 5


# --- diversity, several vectors, recommendations ------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weight", [0, 0.3, 0.7, 1])
def test_diversity(wire, metric, weight):
    """Of a set that is no larger than the pool: what MMR in numpy chooses."""
    rng, rows = sample(8, 60, 10, clusters=4)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wire.cmd("VCREATE", "v", "DIM", 10, "METRIC", metric, "QUANT", "F32", "KEEP", "F32")
    fill(wire, "v", rows)
    for _ in range(5):
        query = rng.standard_normal(10).astype(np.float32)
        query /= np.linalg.norm(query)
        right = vset_numpy.scores(metric, rows, query)
        expected = vset_numpy.mmr(metric, rows, right, weight, 15)
        found = search(wire, "v", query, "MMR", weight, "COUNT", 15, "TRUTH")
        assert [row for row, _ in found] == expected
        assert [x for _, x in found] == pytest.approx([right[i] for i in expected], abs=1e-5)
    assert wire.cmd("VSIM", "v", "ELE", 0, "MMR", 1.5).startswith("ERR invalid MMR")
    assert wire.cmd("VSIM", "v", "ELE", 0, "MMR", 0.5, "RADIUS", 1).startswith("ERR invalid MMR")


@pytest.mark.parametrize("metric", METRICS)
def test_several_vectors(wire, metric):
    """RRF, MAX and AVG over the whole set, so that every list holds every element."""
    n, dim = 200, 10
    rng, rows = sample(9, n, dim)
    wire.cmd("VCREATE", "v", "DIM", dim, "METRIC", metric, "QUANT", "F32")
    fill(wire, "v", rows)
    for _ in range(5):
        queries = [rng.standard_normal(dim).astype(np.float32) for _ in range(2)] + [rows[7]]
        words = ["VECS", 3, "FP32", queries[0].tobytes(), *values(*queries[1].tolist()), "ELE", 7]
        each = np.array([vset_numpy.scores(metric, rows, q) for q in queries])
        ranks = vset_numpy.rrf([vset_numpy.best(s, n) for s in each])
        right = {
            "MAX": each.max(axis=0),
            "AVG": each.mean(axis=0),
            "RRF": np.array([ranks[i] for i in range(n)]),
        }
        for how in ("RRF", "MAX", "AVG"):
            reply = wire.cmd(
                "VSIM", "v", *words, "COMBINE", how, "COUNT", n, "TRUTH", "WITHSCORES"
            )
            found = [(int(k), float(v)) for k, v in reply.items()]
            assert len(found) == n
            check_order(found, right[how], 1e-4 if how != "RRF" else 2e-3)
        plain = wire.cmd("VSIM", "v", *words, "COUNT", n, "TRUTH")
        assert len(plain) == n, "RRF is the default"
    assert wire.cmd("VSIM", "v", "ELE", 1, "COMBINE", "MAX").startswith("ERR invalid COMBINE")
    assert wire.cmd("VSIM", "v", "VECS", 2, "ELE", 1).startswith("ERR invalid vector spec")
    assert wire.cmd("VSIM", "v", "VECS", 0, "ELE", 1).startswith("ERR invalid vector spec")
    assert wire.cmd("VSIM", "v", "VECS", 2, "ELE", 1, "ELE", "no").startswith("ERR element not")


@pytest.mark.parametrize("metric", METRICS)
def test_recommendations(wire, metric):
    """avg(pos) + (avg(pos) - avg(neg)), without the examples."""
    n, dim = 300, 12
    rng, rows = sample(10, n, dim)
    wire.cmd("VCREATE", "v", "DIM", dim, "METRIC", metric, "QUANT", "F32")
    fill(wire, "v", rows, attributes=lambda i: '{"even":%d}' % (i % 2 == 0))
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "COSINE" else rows
    for n_pos, n_neg in [(1, 0), (3, 0), (2, 2), (1, 4)]:
        names = [int(i) for i in rng.permutation(n)[: n_pos + n_neg]]
        pos, neg = names[:n_pos], names[n_pos:]
        query = units[pos].mean(axis=0)
        if neg:
            query = 2 * query - units[neg].mean(axis=0)
        right = vset_numpy.scores(metric, rows, query)
        right[names] = -1e9
        words = ["POS", n_pos, *pos] + (["NEG", n_neg, *neg] if neg else [])
        reply = wire.cmd("VRECOMMEND", "v", *words, "WITHSCORES", "TRUTH", "COUNT", 20)
        check_order([(int(k), float(v)) for k, v in reply.items()], right)
        even = wire.cmd("VRECOMMEND", "v", *words, "FILTER", ".even", "COUNT", 500, "TRUTH")
        assert {int(k) for k in even} == set(range(0, n, 2)) - set(names)
    assert wire.cmd("VRECOMMEND", "v", "POS", 1, "no such").startswith("ERR element not found")
    assert wire.cmd("VRECOMMEND", "v", "NEG", 1, 1).startswith("ERR syntax error in VRECOMMEND")
    assert wire.cmd("VRECOMMEND", "none", "POS", 1, 1) == []


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8", "BIN"])
def test_recommendation_by_zeros(wire, quant):
    """A vector of zeros has no direction and adds nothing to a mean of them, even where its code
    has a sign for every component."""
    _, rows = sample(12, 100, 24)
    rows[7] = 0
    wire.cmd("VCREATE", "v", "DIM", 24, "QUANT", quant)
    fill(wire, "v", rows)
    options = ["WITHSCORES", "TRUTH", "COUNT", 100]
    alone = wire.cmd("VRECOMMEND", "v", "POS", 1, 5, *options)
    beside = wire.cmd("VRECOMMEND", "v", "POS", 2, 7, 5, *options)
    assert alone.pop(b"7") is not None and len(beside) == 98
    assert beside == pytest.approx(alone, abs=1e-6)


# --- how it was found ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
def test_explain(server, protocol):
    rng, rows = sample(11, 2000, 8)
    with server.wire(3) as w:
        fill(w, "v", rows, attributes=lambda i: '{"i":%d}' % i)
        wait_linked(server)
    with server.wire(protocol) as w:

        def explained(*words):
            reply = w.cmd("VSIM", "v", "ELE", 5, *words, "EXPLAIN")
            if protocol == 2:
                reply = dict(zip(reply[::2], reply[1::2]))
            return {k.decode(): v for k, v in reply.items()}

        e = explained("COUNT", 3)
        assert list(e) == [
            "plan",
            "reason",
            "ef",
            "visits",
            "filter-asked",
            "filter-passed",
            "selectivity-estimate",
            "recall-estimate",
            "microseconds",
            "results",
        ]
        assert e["results"] == w.cmd("VSIM", "v", "ELE", 5, "COUNT", 3)
        assert e["visits"] > 0 and e["microseconds"] >= 0 and e["reason"]
        assert e["filter-asked"] == 0 and e["selectivity-estimate"] is None
        e = explained("TRUTH", "COUNT", 3)
        assert e["plan"] == b"scan" and e["visits"] == 2000
        e = explained("FILTER", ".i < 200", "WITHSCORES")
        assert 0.01 < float(e["selectivity-estimate"]) < 0.5
        assert len(e["results"]) == (20 if protocol == 2 else 10)


@pytest.mark.timeout(300)
def test_a_filtered_walk_keeps_more_by_default(make_server):
    """Unless EF says how many; on a set that is large enough to be walked."""
    s = make_server("--appendfsync", "no")
    rng, rows = sample(14, 9000, 8)
    with s.wire(3, timeout=60) as w:
        fill(w, "v", rows, ("EF", 20), attributes=lambda i: '{"i":%d}' % i)
        wait_linked(s, 240)
        every = ("FILTER", ".i >= 0")
        for words, ef in [((), 100), (every, 140), ((*every, "EF", 57), 57), (("EF", 57), 57)]:
            e = w.cmd("VSIM", "v", "ELE", 5, *words, "EXPLAIN")
            assert (e[b"plan"], e[b"ef"]) == (b"walk", ef), e


@pytest.mark.timeout(300)
def test_ef_by_wanted_recall(make_server):
    """EF AUTO 0.95 finds at least that much of what TRUTH finds, from the first search on."""
    n, dim = scaled(4000, 800), 32
    s = make_server("--appendfsync", "no")
    rng, rows = sample(12, n, dim)
    with s.wire(3, timeout=60) as w:
        fill(w, "v", rows)
        wait_linked(s, 120)
        assert recall(w, "v", rng, rows, "EF", "AUTO", 0.95) >= 0.95
        for bad in (0, 1.1, "x", ""):
            assert w.cmd("VSIM", "v", "ELE", 1, "EF", "AUTO", bad).startswith("ERR invalid EF")


# --- filters ------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_filtered_searches_return_what_there_is(make_server):
    """min(COUNT, elements that match), whatever share of the set that is, and at least 95 % of
    them the right ones."""
    n, dim = scaled(20000, 2000), 32
    s = make_server("--appendfsync", "no", "--link-threads", 2)
    rng, rows = sample(13, n, dim, clusters=50)
    # near: matches lie together, in a corner of the space; far: they lie anywhere.
    direction = rng.standard_normal(dim)
    near = np.empty(n, int)
    near[np.argsort(-(rows @ direction))] = np.arange(n)
    far = rng.permutation(n)
    with s.wire(3, timeout=120) as w:
        attributes = lambda i: '{"near":%d,"far":%d,"name":"e%d"}' % (near[i], far[i], i)  # noqa: E731
        fill(w, "v", rows, attributes=attributes)
        wait_linked(s, 200)
        asked = 0
        hits = wanted = 0
        for share in (0.5, 0.1, 0.02, 0.005, 0.001, 0.0005, 0.0001):
            least = int(n * share)
            for field, ranks in (("near", near), ("far", far)):
                matching = {int(i) for i in np.flatnonzero(ranks < least)}
                for count in (1, 10, 200):
                    query = rows[rng.integers(n)] + 0.3 * rng.standard_normal(dim)
                    words = ["FILTER", f".{field} < {least}", "COUNT", count]
                    found = search(w, "v", query, *words)
                    where = f"share {share}, field {field}, count {count}"
                    assert len(found) == min(count, len(matching)), where
                    assert {row for row, _ in found} <= matching, where
                    truth = search(w, "v", query, *words, "TRUTH")
                    assert len(truth) == len(found), where
                    hits += len({row for row, _ in truth} & {row for row, _ in found})
                    wanted += len(truth)
                    asked += 1
        assert hits >= 0.95 * wanted, (hits, wanted)
        assert search(w, "v", rows[0], "FILTER", ".far < 0") == []
        assert search(w, "v", rows[0], "FILTER", ".none == 1", "COUNT", 5) == []
        # The filter is asked of what is there now.
        w.cmd("VSETATTR", "v", "3", '{"far":-5}')
        assert [row for row, _ in search(w, "v", rows[0], "FILTER", ".far < 0")] == [3]
        w.cmd("VREM", "v", "3")
        assert search(w, "v", rows[0], "FILTER", ".far < 0") == []


# --- expiry -------------------------------------------------------------------------------------


def now_ms(wire):
    seconds, micro = wire.cmd("TIME")
    return int(seconds) * 1000 + int(micro) // 1000


def test_elements_expire(server, wire):
    """By the server's clock; what is gone is gone for every command."""
    for i in range(30):
        words = ["PX", 250] if i % 3 == 0 else ["EX", 1000] if i % 3 == 1 else []
        assert wire.cmd("VADD", "v", *values(1, i), i, *words, "SETATTR", '{"i":1}') is True
    far, never = wire.cmd("VGET", "v", 2, 1, 2, "TTL")
    assert 0 < far[b"ttl"] <= 1000 and never[b"ttl"] == -1
    wait_until(lambda: wire.cmd("VISMEMBER", "v", 0) is False, 10, "element 0 to expire")
    wait_until(lambda: wire.cmd("VCARD", "v") == 20, 10, "all of them to expire")
    left = {b"%d" % i for i in range(30) if i % 3}
    assert set(wire.cmd("VSIM", "v", *values(1, 1), "COUNT", 50)) == left
    assert set(wire.cmd("VSIM", "v", *values(1, 1), "COUNT", 50, "TRUTH")) == left
    assert set(wire.cmd("VSIM", "v", *values(1, 1), "COUNT", 50, "FILTER", ".i == 1")) == left
    assert set(wire.cmd("VRANGE", "v", "-", "+")) == left
    assert set(wire.cmd("VRANDMEMBER", "v", 50)) == left
    assert wire.cmd("VGET", "v", 1, 0) == [None]
    assert wire.cmd("VEMB", "v", 0) is None and wire.cmd("VGETATTR", "v", 0) is None
    assert wire.cmd("VREM", "v", 0) is False
    assert wire.cmd("VSETATTR", "v", 0, '{"a":1}') is False
    assert wire.cmd("VSIM", "v", "ELE", 0).startswith("ERR element not found in set")
    assert wire.cmd("VADD", "v", *values(5, 5), 0) is True, "it is new again"
    assert wire.cmd("VGETATTR", "v", 0) is None, "and has nothing of the old one"
    info = wire.cmd("VINFO", "v")
    assert info["attributes-count"] == 20 and info["size"] == 21


def test_update_gives_an_element_another_time(wire):
    wire.cmd("VADD", "v", *values(1, 2), "dropped", "PX", 200)
    wire.cmd("VADD", "v", *values(1, 2), "dropped")
    wire.cmd("VADD", "v", *values(1, 2), "longer", "PX", 200)
    wire.cmd("VADD", "v", *values(1, 2), "longer", "EX", 1000)
    wire.cmd("VADD", "v", *values(1, 2), "attributes", "PX", 200)
    wire.cmd("VSETATTR", "v", "attributes", '{"a":1}')
    wire.cmd("VADD", "v", *values(1, 2), "clock", "PX", 400)
    wait_until(lambda: wire.cmd("VISMEMBER", "v", "clock") is False, 10, "the time to pass")
    members = [wire.cmd("VISMEMBER", "v", n) for n in ("dropped", "longer", "attributes")]
    assert members == [True, True, False], "attributes leave the time as it is"


def test_last_element_expires(wire):
    """The key goes with it, and stays where VCREATE made it."""
    wire.cmd("VADD", "plain", *values(1, 2), "e", "PX", 100)
    wire.cmd("VCREATE", "declared", "DIM", 2)
    wire.cmd("VADD", "declared", *values(1, 2), "e", "PX", 100)
    wait_until(lambda: wire.cmd("EXISTS", "plain") == 0, 10, "the key to go")
    wait_until(lambda: wire.cmd("VCARD", "declared") == 0, 10, "the element to go")
    assert wire.cmd("EXISTS", "declared") == 1
    assert wire.cmd("VMADD", "plain", "EX", 1000, "VALUES", 2, 3, "a", 1, 2, 3, "b", 3, 2, 1) == 2
    assert [g[b"ttl"] > 900 for g in wire.cmd("VGET", "plain", 2, "a", "b", "TTL")] == [True] * 2
    for bad in ("0", "-1", "x", "9223372036854775807"):
        reply = wire.cmd("VADD", "bad", *values(1, 2), "e", "EX", bad)
        assert reply.startswith("ERR"), bad
    assert wire.cmd("EXISTS", "bad") == 0


def test_expiry_goes_on_while_the_server_is_down(make_server):
    s = make_server("--checkpoint-interval", 1)
    with s.wire(3) as w:
        for i in range(50):
            w.cmd("VADD", "v", *values(1, i), i, *(["PX", 300] if i % 2 else []))
            w.cmd("VADD", "w", *values(1, i), i, "EX", 1000)
        until = now_ms(w) + 300
    s.kill()
    s.start()
    with s.wire(3) as w:
        wait_until(lambda: now_ms(w) > until, 10, "the time to pass")
        assert w.cmd("VSIM", "v", *values(1, 1), "COUNT", 100, "TRUTH")
        assert {int(n) % 2 for n in w.cmd("VSIM", "v", *values(1, 1), "COUNT", 100)} == {0}
        wait_until(lambda: w.cmd("VCARD", "v") == 25, 10, "they are removed")
        assert w.cmd("VCARD", "w") == 50
        assert 900 < w.cmd("VGET", "w", 1, 3, "TTL")[0][b"ttl"] <= 1000


# --- all of it after a kill ---------------------------------------------------------------------

MADE = [
    ["METRIC", "L2", "QUANT", "F32"],
    ["METRIC", "IP", "QUANT", "Q8", "KEEP", "F16"],
    ["METRIC", "COSINE", "QUANT", "BIN", "KEEP", "F32"],
    ["METRIC", "COSINE", "QUANT", "F16", "INDEX", "FLAT"],
    ["METRIC", "L2", "QUANT", "BIN", "M", 8, "EF", 50],
]
PASSING = {"max-level", "unlinked", "memory-bytes", "recall-at-10", "recall-samples"}
PASSING |= {"recall-by-ef", "hnsw-max-node-uid"}


@pytest.mark.parametrize("how", WAYS_BACK)
def test_everything_is_kept(make_server, how):
    """Every kind of set, with attributes, times, updates and removals, answers as before."""
    s = make_server("--checkpoint-interval", 1)
    dim = 24
    rng, rows = sample(14, 200, dim)
    keys = [f"made{i}" for i in range(len(MADE))] + ["bin", "plain", "reduced", "empty"]

    def answers(w):
        found = {}
        for key in keys:
            ask = rows[3].tobytes()
            for words in (["TRUTH"], ["TRUTH", "FILTER", ".i > 50 and .odd"]):
                # All of them, as the last of some may have equals.
                all_of_it = [*words, "COUNT", 500, "WITHSCORES", "WITHATTRIBS"]
                reply = w.cmd("VSIM", key, "FP32", ask, *all_of_it)
                found[key, words[-1]] = {n: attribute for n, (_, attribute) in reply.items()}
                found[key, words[-1], "scores"] = {n: score for n, (score, _) in reply.items()}
            names = w.cmd("VRANGE", key, "-", "+")
            found[key, "names"] = names
            found[key, "attributes"] = [w.cmd("VGETATTR", key, n) for n in names]
            found[key, "vectors"] = [w.cmd("VEMB", key, n) for n in names[:50]]
            ttl = w.cmd("VGET", key, len(names), *names, "TTL") if names else []
            found[key, "expire"] = [t[b"ttl"] >= 0 for t in ttl]
            info = w.cmd("VINFO", key)
            found[key, "info"] = {k: v for k, v in info.items() if k not in PASSING}
        return found

    with s.wire(3) as w:
        for key, options in zip(keys, MADE):
            assert w.cmd("VCREATE", key, "DIM", dim, *options) == "OK"
        assert w.cmd("VCREATE", "empty", "DIM", dim, "METRIC", "IP") == "OK"
        options = {"bin": ["BIN"], "reduced": ["REDUCE", 10, "NOQUANT"]}
        for key in keys[:-1]:
            attributes = lambda i: '{"i":%d,"odd":%d}' % (i, i % 2) if i % 4 else ""  # noqa: E731
            fill(w, key, rows[:150], options.get(key, []), attributes)
            fill(w, key, rows[150:], options.get(key, []), at=150)
            far = [*options.get(key, []), "EX", 10000]
            assert w.cmd("VMADD", key, *far, "FP32", 1, "timed", rows[9].tobytes()) == 1
            for i in range(0, 150, 7):
                assert w.cmd("VREM", key, i) is True
            for i in range(1, 150, 7):
                w.cmd("VSETATTR", key, i, '{"i":%d,"odd":1,"changed":true}' % i)
            for i in range(2, 150, 7):
                words = [*options.get(key, []), "FP32", 1, i, rows[i + 1].tobytes()]
                assert w.cmd("VMADD", key, *words) == 0
        before = answers(w)
        digest = w.cmd("DEBUG", "DIGEST")
    s.come_back(how)
    with s.wire(3) as w:
        after = answers(w)
        assert before.keys() == after.keys()
        for what, reply in before.items():
            if "scores" in what:
                reply = pytest.approx(reply, abs=1e-6, rel=1e-6)
            assert after[what] == reply, what
        assert w.cmd("DEBUG", "DIGEST") == digest
        assert w.cmd("VADD", "made0", "FP32", rows[0].tobytes(), "new") is True
