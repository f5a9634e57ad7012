"""What has gone wrong in other vector sets, and must not here: each test is a defect that another
implementation had or has."""

import random
import struct
import threading

import numpy as np
import pytest

from kithtest import WAYS_BACK, ReplyError, run_program, scaled, wait_until

LEAST = -(2**63)


def blob(*values):
    return struct.pack(f"<{len(values)}f", *values)


def values(*v):
    return ["VALUES", len(v), *v]


def info(wire, key):
    reply = wire.cmd("VINFO", key)
    return dict(zip(reply[::2], reply[1::2])) if isinstance(reply, list) else reply


def emb(wire, key, name):
    return [float(x) for x in wire.cmd("VEMB", key, name)]


class Crowd:
    """Threads that each repeat something until the first has done it `rounds` times, or one of
    them fails; what they raised is raised by join()."""

    def __init__(self, server):
        self.server, self.problems, self.stop = server, [], threading.Event()
        self.threads = []

    def add(self, step, rounds=None):
        def run():
            try:
                with self.server.wire(3) as w:
                    i = 0
                    while not self.stop.is_set() and (rounds is None or i < rounds):
                        step(w, i)
                        i += 1
            except Exception as e:  # told by join()
                self.problems.append(e)
            if rounds is not None or self.problems:
                self.stop.set()

        self.threads.append(threading.Thread(target=run))

    def join(self):
        for t in self.threads:
            t.start()
        for t in self.threads:
            t.join()
        if self.problems:
            raise self.problems[0]


def test_removals_race_searches(server):
    """Elements and whole keys go while searches by element, with filters and attributes are under
    way: every reply is sound, and no element has another's attribute."""
    dim, n = 8, 300
    rng = np.random.default_rng(11)
    rows = rng.standard_normal((n, dim)).astype(np.float32)

    def add(w, i):
        name = f"e{i % n}"
        reply = w.cmd(
            "VADD", "v", "FP32", rows[i % n].tobytes(), name, "SETATTR", f'{{"n":{i % n}}}'
        )
        assert reply in (True, False), reply

    def remove(w, i):
        assert w.cmd("VREM", "v", f"e{i * 7 % n}") in (True, False)
        if i % 100 == 99:
            assert w.cmd("DEL", "v") in (0, 1)

    def change(w, i):
        k = i * 13 % n
        assert w.cmd("VSETATTR", "v", f"e{k}", f'{{"n":{k},"more":{i}}}') in (True, False)

    def search(w, i):
        words = ["ELE", f"e{i % n}"] if i % 2 else ["FP32", rows[i % n].tobytes()]
        if i % 3 == 0:
            words += ["FILTER", f".n < {i % n} or .more > 5"]
        reply = w.cmd("VSIM", "v", *words, "WITHATTRIBS", "WITHSCORES", "COUNT", 20)
        if isinstance(reply, ReplyError):
            assert reply.startswith("ERR element not found in set")
            return
        for name, (score, attribute) in dict(reply).items():
            assert -1e-3 <= score <= 1.001
            assert attribute.startswith(b'{"n":%d' % int(name[1:])), (name, attribute)

    crowd = Crowd(server)
    crowd.add(add)
    crowd.add(remove)
    crowd.add(change)
    crowd.add(search, scaled(1500, 300))
    crowd.add(search)
    crowd.join()


def test_graph_survives_removals_of_near_copies(server):
    """Many equal and nearly equal vectors with few links each, removed in random order: the
    removal that finds its neighbours gone, or linked to itself, is the one that crashes."""
    r = random.Random(5)
    for round in range(scaled(6, 2)):
        names = [f"e{i}" for i in range(200)]
        with server.wire() as w:
            rows = [[i % 3, 1, 1e-6 * i * (round % 2)] for i in range(len(names))]
            options = ["M", 4, "NOQUANT", "EF", 1]
            adds = [["VADD", "v", *values(*v), n, *options] for n, v in zip(names, rows)]
            assert set(w.cmds(adds)) == {1}
            r.shuffle(names)
            while names:
                gone = [names.pop() for _ in range(min(5, len(names)))]
                requests = [["VREM", "v", n] for n in gone]
                requests += [["VSIM", "v", "ELE", n, "COUNT", 500] for n in names[:3]]
                requests += [["VSIM", "v", *values(1, 1, 0), "COUNT", 500, "TRUTH"]]
                *replies, found = w.cmds(requests)
                assert replies[: len(gone)] == [1] * len(gone)
                assert sorted(found) == sorted(n.encode() for n in names)
            assert w.cmd("EXISTS", "v") == 0


@pytest.mark.parametrize("how", WAYS_BACK)
@pytest.mark.parametrize("emptied", [False, True])
def test_empty_set_is_read_back(make_server, how, emptied):
    """A set without elements: searched, asked and filled after it came back from disk."""
    s = make_server("--checkpoint-interval", 1)
    with s.wire() as w:
        assert w.cmd("VCREATE", "v", "DIM", 3, "QUANT", "BIN") == "OK"
        if emptied:
            for i in range(20):
                assert w.cmd("VADD", "v", *values(1, i, 2), i) == 1
            for i in range(20):
                assert w.cmd("VREM", "v", i) == 1
    s.come_back(how)
    with s.wire() as w:
        assert w.cmd("EXISTS", "v") == 1
        for words in (values(1, 2, 3), [*values(1, 2, 3), "TRUTH"], [*values(1, 2, 3), "EF", 1]):
            assert w.cmd("VSIM", "v", *words) == []
        assert w.cmd("VSIM", "v", "ELE", "e").startswith("ERR element not found in set")
        assert w.cmd("VCARD", "v") == 0 and w.cmd("VDIM", "v") == 3
        assert w.cmd("VRANDMEMBER", "v") is None and w.cmd("VRANDMEMBER", "v", 5) == []
        assert w.cmd("VRANGE", "v", "-", "+") == []
        assert info(w, "v")["size"] == 0
        assert w.cmd("VREM", "v", "e") == 0
        assert w.cmd("VADD", "v", *values(1, 2, 3), "e") == 1
        assert w.cmd("VSIM", "v", *values(1, 2, 3)) == [b"e"]


def test_large_reduce(server):
    """REDUCE as large as dimensions go: no product of two of them may overflow."""
    rng = np.random.default_rng(6)
    for dim, to in [(65536, 65536), (65536, 1), (65535, 65534), (4097, 4096), (3, 3)]:
        v = rng.standard_normal(dim).astype(np.float32)
        with server.wire() as w:
            w.cmd("DEL", "v")
            words = ["REDUCE", to, "FP32", v.tobytes(), "e", "NOQUANT"]
            assert w.cmd("VADD", "v", *words) == 1
            assert w.cmd("VDIM", "v") == to
            assert info(w, "v")["projection-input-dim"] == dim
            assert w.cmd("VSIM", "v", "FP32", v.tobytes()) == [b"e"]
            got = np.array(emb(w, "v", "e"))
            rows = rng.integers(0, to, 5)
            signs = np.where(np.bitwise_count(rows[:, None] & np.arange(dim)) % 2 == 0, 1.0, -1.0)
            right = signs @ v.astype(np.float64) / np.sqrt(dim)
            assert got[rows] == pytest.approx(right, abs=2e-4 * np.linalg.norm(right) + 1e-4)
    with server.wire() as w:
        for bad in (5, 65536, 65537, 2**31, 2**32, 2**32 + 2, 2**63 - 1, 0, -1, LEAST, "x"):
            reply = w.cmd("VADD", "other", "REDUCE", bad, *values(1, 2, 3, 4), "e")
            assert reply.startswith("ERR invalid vector specification"), (bad, reply)
        assert w.cmd("EXISTS", "other") == 0


def test_cas_counts_attributes(server):
    """However an attribute comes and goes, VINFO counts those that are there."""
    with server.wire() as w:
        for i in range(10):
            w.cmd("VADD", "v", *values(1, i), i, "CAS", "SETATTR", '{"a":1}')
        assert info(w, "v")["attributes-count"] == 10
        w.cmd("VADD", "v", *values(2, 2), 0, "CAS", "SETATTR", '{"a":2}')
        w.cmd("VADD", "v", *values(2, 2), 1, "CAS")
        assert info(w, "v")["attributes-count"] == 10
        w.cmd("VADD", "v", *values(2, 2), 2, "SETATTR", "")
        w.cmd("VSETATTR", "v", 3, "")
        w.cmd("VSETATTR", "v", 3, "")
        w.cmd("VREM", "v", 4)
        w.cmd("VADD", "v", *values(2, 2), 4, "CAS")
        assert info(w, "v")["attributes-count"] == 7
        w.cmd("DEBUG", "RELOAD")
        assert info(w, "v")["attributes-count"] == 7
        for i in range(9):
            w.cmd("VREM", "v", i)
        assert info(w, "v")["attributes-count"] == 1


def test_least_count_of_vrandmember(server):
    """The number whose negative is none."""
    with server.wire() as w:
        w.cmd("VADD", "v", *values(1, 2), "e")
        assert w.cmd("VRANDMEMBER", "v", LEAST).startswith("ERR COUNT value is out of range")
        assert w.cmd("VRANDMEMBER", "v", LEAST + 1).startswith("ERR COUNT value is out of range")
        assert w.cmd("VRANDMEMBER", "none", LEAST) == []
        assert w.cmd("VRANDMEMBER", "v", -3) == [b"e"] * 3
        assert w.cmd("VRANGE", "v", "-", "+", LEAST) == [b"e"]


@pytest.mark.parametrize("how", WAYS_BACK)
def test_update_is_kept(make_server, how):
    """The second VADD of an element, with and without attributes, and VSETATTR alone."""
    s = make_server("--checkpoint-interval", 1)
    with s.wire() as w:
        for name in "abcd":
            w.cmd("VADD", "v", *values(1, 0), name, "NOQUANT", "SETATTR", '{"old":1}')
        w.cmd("VADD", "v", *values(0, 2), "a", "NOQUANT")
        w.cmd("VADD", "v", *values(0, 3), "b", "NOQUANT", "SETATTR", '{"new":1}')
        w.cmd("VADD", "v", *values(0, 4), "c", "NOQUANT", "SETATTR", "")
        w.cmd("VSETATTR", "v", "d", '{"set":1}')
        before = w.cmd("DEBUG", "DIGEST")
    s.come_back(how)
    with s.wire() as w:
        assert w.cmd("DEBUG", "DIGEST") == before
        vectors = {n: emb(w, "v", n) for n in "abcd"}
        expected = {"a": [0, 2], "b": [0, 3], "c": [0, 4], "d": [1, 0]}
        for name, v in expected.items():
            assert vectors[name] == pytest.approx(v, abs=1e-6), name
        attributes = [w.cmd("VGETATTR", "v", n) for n in "abcd"]
        assert attributes == [b'{"old":1}', b'{"new":1}', None, b'{"set":1}']
        assert info(w, "v")["attributes-count"] == 3
        assert w.cmd("VCARD", "v") == 4


def test_del_of_a_large_set_stops_nobody(make_server):
    """DEL answers before the set's data is gone from the store, and others are served meanwhile:
    they see the key gone at once, and can make it again. At the end nothing of it is left."""
    s = make_server("--appendfsync", "no", "--checkpoint-interval", 1)
    n, dim = scaled(20000, 2000), 32
    rows = np.random.default_rng(7).standard_normal((n, dim)).astype(np.float32)
    with s.wire(timeout=60) as w, s.wire() as other:
        for at in range(0, n, 1000):
            words = [x for i in range(at, min(at + 1000, n)) for x in (str(i), rows[i].tobytes())]
            assert w.cmd("VMADD", "v", "FP32", len(words) // 2, *words) == len(words) // 2
        assert w.cmd("SAVE") == "OK"
        w.send("DEL", "v")
        other.send("PING")
        assert other.read() == "PONG"
        assert w.read() == 1
        assert other.cmd("EXISTS", "v") == 0
        assert other.cmd("VADD", "v", *values(1, 2), "e") == 1
        assert w.cmd("VSIM", "v", "ELE", "e") == [b"e"]
        before = w.cmd("DEBUG", "DIGEST")
        assert w.cmd("SAVE") == "OK"
        assert w.cmd("DEBUG", "DIGEST") == before
    s.stop()
    found = run_program("kith-check", s.data)
    assert found.returncode == 0, found.stdout + found.stderr
    s.start()
    with s.wire() as w:
        assert w.cmd("DEBUG", "DIGEST") == before


def test_same_element_by_many_at_once(server):
    """First VADDs of one new element from many connections: one is told that it is new."""
    n = 6
    for round in range(scaled(60, 15)):
        replies = []
        barrier = threading.Barrier(n)

        def add(w, i, me):
            barrier.wait()
            replies.append(w.cmd("VADD", "v", *values(1, me, round), f"e{round}", "CAS"))

        crowd = Crowd(server)
        for me in range(n):
            crowd.add(lambda w, i, me=me: add(w, i, me), 1)
        # Nobody is told to stop before it has had its turn.
        crowd.stop.set = lambda: None
        crowd.join()
        assert sorted(replies) == [False] * (n - 1) + [True]
    with server.wire() as w:
        assert w.cmd("VCARD", "v") == scaled(60, 15)


def test_search_is_refused_without_a_leak_or_a_change(server):
    """An option that is wrong after a filter that was compiled, thousands of times."""
    with server.wire() as w:
        w.cmd("VADD", "v", *values(1, 2), "e", "SETATTR", '{"a":1}')
        before = w.cmd("DEBUG", "DIGEST")
        filter = "(.a == 1 and .b in [1,2,3]) or " * 50 + ".c"
        first = None
        for i in range(scaled(3000, 300)):
            reply = w.cmd("VSIM", "v", "ELE", "e", "FILTER", filter, "FILTER", ".a", "COUNT", 0)
            assert reply.startswith("ERR invalid COUNT")
            if i == 200:
                first = int(server.info("memory")["used_memory"])
        # What the checkpoints that come by themselves take meanwhile is given back.
        wait_until(
            lambda: int(server.info("memory")["used_memory"]) < first + (1 << 20),
            what=f"no more than at the beginning ({first} bytes)",
        )
        assert w.cmd("DEBUG", "DIGEST") == before


def test_attributes_of_sets_that_come_and_go(server):
    """An element that is removed and added anew has nothing of the old one; nor has a key."""
    with server.wire() as w:
        w.cmd("VADD", "v", *values(1, 2), "e", "SETATTR", '{"a":1}')
        w.cmd("VADD", "v", *values(2, 1), "f")
        w.cmd("VREM", "v", "e")
        w.cmd("VADD", "v", *values(1, 2), "e")
        assert w.cmd("VGETATTR", "v", "e") is None
        assert w.cmd("VSIM", "v", "ELE", "e", "FILTER", ".a == 1") == []
        w.cmd("VSETATTR", "v", "e", '{"a":2}')
        w.cmd("DEL", "v")
        w.cmd("VADD", "v", *values(1, 2, 3), "e")
        assert w.cmd("VGETATTR", "v", "e") is None
        assert info(w, "v")["attributes-count"] == 0


def test_shared_server_keeps_its_memory(server):
    """Sets that are emptied give their memory back."""
    with server.wire() as w:

        def used():
            return int(server.info("memory")["used_memory"])

        def fill_and_empty():
            row = [["FP32", blob(*[i + 1] * 64), i] for i in range(200)]
            w.cmds(["VADD", "v", *words, "SETATTR", '{"a":[1,2,3]}'] for words in row)
            w.cmds(["VREM", "v", i] for i in range(200))

        fill_and_empty()
        before = used()
        for _ in range(scaled(10, 3)):
            fill_and_empty()
        wait_until(lambda: used() < before + (1 << 20), 20, "memory to be given back")
