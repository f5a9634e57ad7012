"""Searches on search threads: order, the others' turn, leaving and stopping meanwhile, the gate.

DEBUG SLEEP seconds SEARCH is a search that always goes to a search thread.
"""

import random
import struct
import threading
import time
from functools import partial

import pytest

from kithtest import ReplyError, encode, scaled, together, wait_until

DIM = 16


def sleep(seconds):
    return ("DEBUG", "SLEEP", seconds, "SEARCH")


def offloaded(server):
    return int(server.info("stats")["searches_offloaded"])


def wait_offloaded(server, n):
    wait_until(lambda: offloaded(server) >= n, what=f"{n} searches on search threads")


def vector(rng):
    return struct.pack(f"<{DIM}f", *(rng.gauss(0, 1) for _ in range(DIM)))


def fill(server, rng, n, key="v"):
    with server.wire() as w:
        added = w.cmds(("VADD", key, "FP32", vector(rng), f"e{i}") for i in range(n))
        assert added == [1] * n


def test_commands_behind_a_search_wait_for_it(make_server):
    server = make_server()
    with server.wire() as w, server.wire() as other:
        start = time.monotonic()
        w.send_bytes(b"".join(encode(*c) for c in [sleep(0.5), ("INCR", "n"), sleep(0.01)]))
        w.send_bytes(b"".join(encode(*c) for c in [("INCR", "n"), ("ECHO", "x"), ("GET", "n")]))
        wait_offloaded(server, 1)
        n = other.cmd("GET", "n")
        if time.monotonic() - start < 0.5:
            assert n is None
        assert [w.read() for _ in range(6)] == ["OK", 1, "OK", 2, b"x", b"2"]
        assert offloaded(server) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_the_others_go_on_meanwhile(make_server, threads):
    """Also when more searches are out than there are search threads."""
    server = make_server("--io-threads", threads, "--search-threads", 2)
    slow = [server.wire() for _ in range(4)]
    start = time.monotonic()
    for w in slow:
        w.send(*sleep(15))
    wait_offloaded(server, 4)
    with server.wire() as w:
        assert w.cmds([("SET", "k", "v"), ("GET", "k")]) == ["OK", b"v"]
        assert int(server.info("server")["search_threads"]) == 2
    assert time.monotonic() - start < 15
    server.kill()
    for w in slow:
        w.close()


def test_without_search_threads_they_run_in_place(make_server):
    server = make_server("--search-threads", 0)
    with server.wire() as w:
        assert w.cmds([sleep(0.01), ("PING",)]) == ["OK", "PONG"]
    assert server.info("server")["search_threads"] == "0" and offloaded(server) == 0


def test_forced_onto_one_thread_they_run_in_place(make_server):
    server = make_server()
    with server.wire() as w:
        assert w.cmd("CONFIG", "SET", "vset-force-single-threaded-execution", "yes") == "OK"
        assert w.cmds([sleep(0.01), ("PING",)]) == ["OK", "PONG"]
        assert offloaded(server) == 0
        assert w.cmd("CONFIG", "SET", "vset-force-single-threaded-execution", "no") == "OK"
        assert w.cmd(*sleep(0)) == "OK" and offloaded(server) == 1


def test_inside_a_transaction_they_run_in_place(make_server):
    server = make_server()
    with server.wire() as w:
        w.cmds([("MULTI",), sleep(0.001), ("INCR", "n")])
        assert w.cmd("EXEC") == ["OK", 1]
    assert offloaded(server) == 0


def test_its_time_and_note_are_in_the_slow_log(make_server):
    server = make_server("--slowlog-log-slower-than", 40_000)
    with server.wire() as w:
        assert w.cmds([sleep("0.06"), ("PING",)]) == ["OK", "PONG"]
        entries = w.cmd("SLOWLOG", "GET", -1)
        entry = next(e for e in entries if e[3][:2] == [b"DEBUG", b"SLEEP"])
        assert entry[2] >= 60_000
        assert entry[3] == [b"DEBUG", b"SLEEP", b"0.06", b"SEARCH", b"[slept 0.06 s]"]
        stats = w.cmd("INFO", "commandstats").decode()
        line = next(s for s in stats.split("\r\n") if s.startswith("cmdstat_debug|sleep:"))
        fields = dict(f.split("=") for f in line.split(":")[1].split(","))
        assert fields["calls"] == "1" and int(fields["usec"]) >= 60_000


def test_a_client_that_wants_no_reply_gets_none(make_server):
    server = make_server()
    with server.wire() as w:
        w.send_bytes(encode("CLIENT", "REPLY", "SKIP") + encode(*sleep(0.01)) + encode("ECHO", "a"))
        assert w.read() == b"a"
        w.send_bytes(encode("CLIENT", "REPLY", "OFF") + encode(*sleep(0.01)))
        w.send_bytes(encode("CLIENT", "REPLY", "ON"))
        assert w.read() == "OK"
        assert w.cmd("PING") == "PONG"
    assert offloaded(server) == 2


def test_a_monitor_that_searches_keeps_its_lines_whole(make_server):
    server = make_server("--io-threads", 2)
    with server.wire() as m, server.wire() as w:
        assert m.cmd("MONITOR") == "OK"
        m.send(*sleep(0.05))
        wait_offloaded(server, 1)
        w.cmds([("ECHO", "x" * 1000)] * 100)
        lines = []
        while len(lines) < 101:
            lines += [s for s in [m.read()] if s == "OK" or "ECHO" in s]
        assert lines.count("OK") == 1
        assert sum(s.endswith('"ECHO" "' + "x" * 1000 + '"') for s in lines) == 100


@pytest.mark.parametrize("threads", [1, 2])
def test_a_client_killed_during_its_search(make_server, threads):
    server = make_server("--io-threads", threads)
    with server.wire() as w:
        for _ in range(scaled(20, 5)):
            victim = server.wire()
            number = victim.cmd("CLIENT", "ID")
            before = offloaded(server)
            victim.send_bytes(encode(*sleep(0.05)) + encode("INCR", "n") * 3)
            wait_offloaded(server, before + 1)
            killed = w.cmd("CLIENT", "KILL", "ID", number)
            if killed == 1 and victim.closed():
                assert w.cmd("GET", "n") is None
            victim.close()
            w.cmd("DEL", "n")
        wait_until(lambda: w.cmd("CLIENT", "LIST").count(b"id=") == 1, what="them to be gone")


def leave_during_searches(server, rng, until):
    while time.monotonic() < until:
        try:
            with server.wire() as w:
                for _ in range(rng.randrange(1, 6)):
                    what = rng.randrange(5)
                    if what == 0:
                        w.send(*sleep(rng.random() * 0.01))
                    elif what == 1:
                        w.send("VSIM", "v", "FP32", vector(rng), "COUNT", rng.randrange(1, 50))
                    elif what == 2:
                        w.send_bytes(encode("VSIM", "v", "ELE", "e1", "TRUTH") * rng.randrange(1, 30))
                    elif what == 3:
                        w.send("VADD", "v", "FP32", vector(rng), f"e{rng.randrange(500)}")
                    else:
                        w.send("CLIENT", "KILL", "ID", rng.randrange(1, 3000))
                if rng.random() < 0.5:
                    w.read()
        except OSError:
            pass


@pytest.mark.parametrize("threads", [1, 2])
def test_clients_that_leave_during_searches(make_server, threads):
    server = make_server("--io-threads", threads, "--search-threads", 2)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    fill(server, random.Random(seed), 500)
    until = time.monotonic() + 3
    rngs = [random.Random(seed + i) for i in range(6)]
    together([partial(leave_during_searches, server, r, until) for r in rngs])
    with server.wire() as w:
        wait_until(lambda: w.cmd("CLIENT", "LIST").count(b"id=") == 1, what="them to be gone")
    server.stop()


def test_dropping_the_set_during_searches(make_server):
    """A search keeps what it searches."""
    server = make_server("--search-threads", 2)
    rng = random.Random(5)
    stop = threading.Event()

    def search():
        mine = random.Random(6)
        with server.wire() as w:
            while not stop.is_set():
                reply = w.cmd("VSIM", "v", "FP32", vector(mine), "COUNT", 10)
                assert isinstance(reply, list), reply

    searchers = [threading.Thread(target=search) for _ in range(4)]
    for t in searchers:
        t.start()
    try:
        with server.wire() as w:
            for i in range(scaled(30, 5)):
                fill(server, rng, 100)
                assert w.cmd("DEL", "v") == 1 if i % 2 else w.cmd("FLUSHALL") == "OK"
    finally:
        stop.set()
        for t in searchers:
            t.join()
    server.stop()


def test_stopping_lets_a_search_reply(make_server):
    server = make_server()
    with server.wire() as w:
        w.send_bytes(encode(*sleep(0.5)) + encode("INCR", "n"))
        wait_offloaded(server, 1)
        start = time.monotonic()
        server.signal(15)
        try:
            replies = [w.read(), w.read()]
            assert replies == ["OK", 1] and w.closed()
        except ConnectionError:  # what drains is given five seconds
            assert time.monotonic() - start > 4.5
    assert server.wait() == 0


def test_stopping_waits_for_a_search_that_nobody_waits_for(make_server):
    server = make_server("--io-threads", 2, "--search-threads", 1)
    with server.wire() as gone:
        gone.send(*sleep(0.5))
        wait_offloaded(server, 1)
    with server.wire() as late:  # a second one, behind it in the queue
        late.send(*sleep(0.1))
        wait_offloaded(server, 2)
    server.stop()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_results_as_alone(make_server, threads):
    server = make_server("--io-threads", threads, "--search-threads", 3)
    rng = random.Random(8)
    fill(server, rng, 1000)
    wait_until(lambda: int(server.info("keyspace").get("unlinked_vectors", 0)) == 0)
    queries = [
        ("VSIM", "v", "FP32", vector(rng), "COUNT", 20, "WITHSCORES")
        + (("TRUTH",) if i % 2 else ("EF", 1000))
        for i in range(50)
    ]
    with server.wire() as w:
        alone = w.cmds(queries)
    wrong = []

    def ask(seed):
        mine = random.Random(seed)
        with server.wire() as w:
            for _ in range(scaled(40, 8)):
                some = [mine.randrange(len(queries)) for _ in range(mine.randrange(1, 6))]
                if w.cmds([queries[i] for i in some]) != [alone[i] for i in some]:
                    wrong.append(some)

    together([partial(ask, i) for i in range(8)])
    assert not wrong
    assert offloaded(server) > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_no_search_shows_what_a_crash_takes_back(make_server, threads):
    """Replies wait for the log also when the search ran beside the writes it saw."""
    for _ in range(scaled(6, 1)):
        server = make_server("--io-threads", threads, "--appendfsync", "always")
        shown, lock = set(), threading.Lock()
        ready = threading.Barrier(6)

        def write():
            rng = random.Random(1)
            with server.wire() as w:
                for i in range(200):
                    w.cmd("VADD", "v", "FP32", vector(rng), f"first{i}")
                ready.wait()
                try:
                    for i in range(1 << 20):  # never reads
                        w.send("VADD", "v", "FP32", vector(rng), f"e{i}")
                except OSError:
                    pass

        def search(seed):
            rng = random.Random(seed)
            with server.wire() as w:
                ready.wait()
                try:
                    while True:
                        reply = w.cmd("VSIM", "v", "FP32", vector(rng), "COUNT", 1 << 20)
                        assert not isinstance(reply, ReplyError), reply
                        with lock:
                            shown.update(reply)
                except OSError:
                    pass

        clients = [threading.Thread(target=search, args=(i,)) for i in range(4)]
        clients.append(threading.Thread(target=write))
        for t in clients:
            t.start()
        ready.wait()
        wait_until(lambda: len(shown) > 1000, 30, "a thousand elements to be shown")
        server.kill()
        for t in clients:
            t.join()
        server.start()
        names = sorted(shown)
        with server.wire() as w:
            there = w.cmds(("VISMEMBER", "v", name) for name in names)
        assert [n for n, is_there in zip(names, there) if not is_there] == []
        server.stop()
