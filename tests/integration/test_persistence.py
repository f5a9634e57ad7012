"""What was there before a stop is there after it, and after DEBUG RELOAD. (Crashes are in
tests/crash.)"""

import random
import signal
import threading
import time

import numpy as np
import pytest

from kithtest import BIN, ReplyError, Server, run_program, scaled, wait_until


def digest(server):
    with server.wire(timeout=60) as w:
        return w.cmd("DEBUG", "DIGEST")


def fill(server, seed=1):
    """Keys of every kind in several databases; returns what to ask and what must come."""
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    questions = []
    with server.wire(timeout=60) as w:
        for db in (0, 3, 15):
            w.cmd("SELECT", db)
            requests = []
            for i in range(scaled(300, 60)):
                key = rng.randbytes(rng.choice([0, 1, 20, 300])) + b":%d" % i
                requests.append(("SET", key, rng.randbytes(rng.choice([0, 1, 100, 20000]))))
                if i % 5 == 0:
                    requests.append(("APPEND", key, rng.randbytes(50)))
                if i % 7 == 0:
                    requests.append(("EXPIRE", key, 10000))
                if i % 6 == 0:
                    requests.append(("SET", key, "again", "PXAT", 4000000000000 + i))
                    requests.append(("INCR", b"count:%d" % (i % 4)))
                if i % 11 == 0:
                    requests.append(("DEL", key))
                if i % 13 == 0:
                    requests.append(("RENAME", key, b"renamed:%d" % i))
                questions += [(db, "GET", key), (db, "EXISTS", key)]
            w.cmds(requests)
            for quant, dim in (("NOQUANT", 7), ("Q8", 20)):
                key = f"set:{quant}"
                vectors = numbers.standard_normal((scaled(400, 60), dim)).astype(np.float32)
                requests = [
                    ("VADD", key, "FP32", v.tobytes(), f"e{i}", quant, "M", 8)
                    for i, v in enumerate(vectors)
                ]
                requests += [("VREM", key, f"e{i}") for i in range(0, len(vectors), 9)]
                replies = w.cmds(requests)
                assert not any(isinstance(r, ReplyError) for r in replies)
                questions += [(db, "VEMB", key, f"e{i}", "RAW") for i in range(0, len(vectors), 7)]
                questions += [
                    (db, "VSIM", key, "FP32", v.tobytes(), "TRUTH", "WITHSCORES")
                    for v in vectors[:5]
                ]
                questions += [(db, "VCARD", key), (db, "VDIM", key), (db, "TYPE", key)]
            questions += fill_declared(w, db, rng, numbers)
            questions.append((db, "DBSIZE"))
    return [(q, ask(server, q)) for q in questions]


DECLARED = (
    ("declared:empty", ("DIM", 5)),
    ("declared:bin", ("DIM", 9, "QUANT", "BIN", "KEEP", "F32")),
    ("declared:l2", ("DIM", 9, "METRIC", "L2", "QUANT", "F16", "KEEP", "F16", "M", 6)),
    ("declared:ip", ("DIM", 9, "METRIC", "IP", "INDEX", "FLAT", "QUANT", "F32")),
)


def fill_declared(w, db, rng, numbers):
    """Sets with all that elements may have; one of them stays empty."""
    questions = []
    for key, how in DECLARED:
        assert w.cmd("VCREATE", key, *how) == "OK"
        requests, n = [], scaled(120, 30) if key != "declared:empty" else 0
        for i, v in enumerate(numbers.standard_normal((n, 9)).astype(np.float32)):
            json = b'{"n":%d,"s":"%s"}' % (i, b"x" * rng.choice([0, 10, 3000]))
            more = ("SETATTR", (json, b"")[i % 5 == 0]) if i % 3 else ()
            more += ("PX", 3600000 + i) if i % 4 == 0 else ()
            requests.append(("VADD", key, "FP32", v.tobytes(), b"e" * (i % 70) + b"%d" % i, *more))
        requests += [r[:5] for r in requests[::6]]  # attributes stay, times go
        requests += [("VSETATTR", key, r[4], b'{"again":1}') for r in requests[:n:7]]
        requests += [("VREM", key, r[4]) for r in requests[:n:11]]
        replies = w.cmds(requests)
        assert not any(isinstance(r, ReplyError) for r in replies)
        names = sorted({r[4] for r in requests[:n]})
        questions += [(db, "VGETATTR", key, e) for e in names]
        questions += [(db, "VEMB", key, e) for e in names[::7]]
        questions.append((db, "VRANGE", key, "-", "+"))
        if n:
            query = ("VSIM", key, "FP32", v.tobytes(), "TRUTH", "WITHSCORES", "WITHATTRIBS")
            questions += [(db, *query), (db, *query, "FILTER", ".n > 20")]
        else:
            questions.append((db, "VSIM", key, "VALUES", 5, 1, 2, 3, 4, 5))
        questions += [(db, "VCARD", key), (db, "VDIM", key)]
    return questions


def ask(server, question):
    with server.wire() as w:
        w.cmd("SELECT", question[0])
        w.cmd(*question[1:])
        return w.raw


def check(server, answers):
    with server.wire(timeout=60) as w:
        for question, raw in answers:
            w.cmd("SELECT", question[0])
            w.cmd(*question[1:])
            assert w.raw == raw, question[:3]


STOPS = {
    "sigterm": lambda s: s.signal(signal.SIGTERM),
    "sigint": lambda s: s.signal(signal.SIGINT),
    "shutdown": lambda s: tell(s, "SHUTDOWN"),
    "shutdown-nosave": lambda s: tell(s, "SHUTDOWN", "NOSAVE"),
    "save-then-kill": lambda s: (tell(s, "SAVE"), s.kill()),
    "kill": lambda s: s.kill(),
}


def tell(server, *words):
    with server.wire(timeout=60) as w:
        w.send(*words)
        try:
            return w.read()
        except (ConnectionError, OSError):
            return None


@pytest.mark.parametrize("how", STOPS)
def test_everything_survives(make_server, how):
    s = make_server()
    answers = fill(s)
    before = digest(s)
    STOPS[how](s)
    status = s.wait()
    if "kill" not in how:
        assert status == 0, s.log()
        assert ("final checkpoint" in s.log()) == (how != "shutdown-nosave")
    s.start()
    assert digest(s) == before
    check(s, answers)
    s.restart()
    assert digest(s) == before, "and after a second one"
    check(s, answers)
    s.stop()
    found = run_program("kith-check", s.data)
    assert found.returncode == 0, found.stdout + found.stderr


def test_reload(make_server):
    s = make_server()
    answers = fill(s)
    before = digest(s)
    for _ in range(3):
        with s.wire(timeout=60) as w:
            assert w.cmd("DEBUG", "RELOAD") == "OK"
        assert digest(s) == before
    check(s, answers)
    with s.wire() as w:
        w.cmd("SET", "after", 1)
        assert w.cmd("VADD", "set:Q8", "FP32", bytes(76) + b"\x00\x00\x80?", "new", "M", 8) == 1
    assert digest(s) != before
    s.restart()
    assert ask(s, (0, "GET", "after")) == b"$1\r\n1\r\n"


def test_digest_tells_data_apart(server):
    def after(*requests):
        with server.wire() as w:
            w.cmd("FLUSHALL")
            w.cmds(requests)
            return w.cmd("DEBUG", "DIGEST")

    v = ("VADD", "v", "VALUES", 2, 1, 2, "e")
    seen = {
        after(),
        after(("SET", "k", "v")),
        after(("SET", "k", "w")),
        after(("SET", "l", "v")),
        after(("SET", "k", "v"), ("EXPIREAT", "k", 4000000000)),
        after(("SELECT", 1), ("SET", "k", "v")),
        after(v),
        after(("VADD", "v", "VALUES", 2, 1, 3, "e")),
        after(("VADD", "v", "VALUES", 2, 1, 2, "f")),
        after((*v, "NOQUANT")),
        after((*v, "M", 8)),
        after((*v, "SETATTR", '{"a":1}')),
        after((*v, "SETATTR", '{"a":2}')),
        after((*v, "SETATTR", "")),
        after((*v, "EX", 1000)),
        after(("VCREATE", "v", "DIM", 2)),
        after(("VCREATE", "v", "DIM", 2, "METRIC", "L2")),
        after(("VCREATE", "v", "DIM", 2), v),
        after(("VCREATE", "v", "DIM", 2, "KEEP", "F32"), v),
        after(("VCREATE", "v", "DIM", 2, "INDEX", "FLAT"), v),
    }
    assert len(seen) == 20
    assert after(v) == after((*v, "SETATTR", '{"a":1}'), ("VSETATTR", "v", "e", ""))
    assert after(v, ("SET", "a", 1)) == after(("SET", "a", 0), v, ("INCR", "a"))


def test_reload_while_others_work(make_server):
    """Clients wait a moment; none sees an error or loses a write."""
    s = make_server("--io-threads", 2, "--appendfsync", "no")
    stop = threading.Event()
    problems, counts = [], [0, 0, 0]

    def work(me):
        try:
            with s.wire(timeout=60) as w:
                while not stop.is_set():
                    counts[me] += 1
                    assert w.cmd("INCR", f"n{me}") == counts[me]
                    r = w.cmd("VADD", "v", "VALUES", 3, me, counts[me], 1, f"{me}:{counts[me]}")
                    assert r == 1, r
                    assert w.cmd("VISMEMBER", "v", f"{me}:{counts[me]}") == 1
                    r = w.cmd("VSIM", "v", "ELE", f"{me}:{counts[me]}", "COUNT", 5)
                    assert isinstance(r, list) and len(set(r)) == min(5, len(r)) > 0, r
        except Exception as e:
            problems.append(repr(e))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    with s.wire(timeout=60) as w:
        for _ in range(scaled(10, 3)):
            wait_until(lambda n=sum(counts): sum(counts) > n + 5 or problems, what="some work")
            assert w.cmd("DEBUG", "RELOAD") == "OK"
    stop.set()
    for t in threads:
        t.join()
    assert not problems, problems
    assert ask(s, (0, "VCARD", "v")) == b":%d\r\n" % sum(counts)


def test_expiry_goes_on_across_a_restart(make_server):
    s = make_server()
    now = int(time.time() * 1000)
    with s.wire() as w:
        w.cmd("SET", "short", 1, "PX", 300)
        w.cmd("SET", "long", 1, "PXAT", now + 1000000)
        w.cmd("VADD", "v", "VALUES", 2, 1, 2, "e")
        w.cmd("PEXPIREAT", "v", now + 2000000)
        w.cmd("SET", "kept", 1, "EX", 10000)
        w.cmd("PERSIST", "kept")
    s.stop()
    wait_until(lambda: time.time() * 1000 > now + 320, what="the time to pass")
    s.start()
    with s.wire() as w:
        assert w.cmd("EXISTS", "short") == 0
        wait_until(lambda: w.cmd("DBSIZE") == 3, what="the expired key to go")
        for key, at in (("long", now + 1000000), ("v", now + 2000000)):
            before = time.time() * 1000
            left = w.cmd("PTTL", key)
            assert at - time.time() * 1000 - 5 <= left <= at - before + 5, key
        assert w.cmd("TTL", "kept") == -1


def test_expired_keys_go_without_being_asked_for(server):
    with server.wire() as w:
        w.cmds([("SET", f"k{i}", 1, "PX", 20) for i in range(200)])
        w.cmd("SET", "stays", 1)
        wait_until(lambda: w.cmd("DBSIZE") == 1, what="the keys to go")
        assert int(server.info("stats")["expired_keys"]) >= 200


def test_texts_survive(make_server, model):
    s = make_server("--embedder", model)
    s.wait_engine()
    with s.wire() as w:
        for i in range(20):
            w.cmd("VADD", "docs", "TEXT", f"text number {i}", i)
        w.cmd("VADD", "docs", "TEXT", "another", 3)
        w.cmd("VREM", "docs", 4)
        info = w.cmd("VINFO", "docs")
    s.kill()
    for stop in (s.stop, s.kill):
        s.start()
        with s.wire() as w:
            assert w.cmd("VTEXT", "docs", 5) == b"text number 5"
            assert w.cmd("VTEXT", "docs", 3) == b"another" and w.cmd("VTEXT", "docs", 4) is None
            again = w.cmd("VINFO", "docs")
            old, new = (dict(zip(x[::2], x[1::2])) for x in (info, again))
            assert all(old[k] == new[k] for k in ("model", "model-hash", "size"))
            s.wait_engine()
            assert w.cmd("VSIM", "docs", "TEXT", "text number 7", "COUNT", 1) == [b"7"]
            w.cmd("SAVE")
        stop()


def test_set_goes_on_growing_after_restarts(make_server):
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((scaled(1500, 300), 16)).astype(np.float32)
    s = make_server("--appendfsync", "no")
    third = len(rows) // 3
    for part in range(3):
        with s.wire(timeout=60) as w:
            names = range(part * third, (part + 1) * third)
            replies = w.cmds([("VADD", "v", "FP32", rows[i].tobytes(), i) for i in names])
            assert set(replies) == {1}
        s.restart() if part != 1 else (s.kill(), s.start())
    with s.wire(timeout=60) as w:
        assert w.cmd("VCARD", "v") == 3 * third
        hits = 0
        for i in range(0, 3 * third, 10):
            found = w.cmd("VSIM", "v", "FP32", rows[i].tobytes(), "COUNT", 1)
            hits += found == [b"%d" % i]
        assert hits >= 0.99 * len(range(0, 3 * third, 10))


def test_save_and_lastsave(make_server):
    s = make_server("--checkpoint-interval", 1000)
    with s.wire() as w:
        first = w.cmd("LASTSAVE")
        w.cmd("SET", "k", "v")
        assert int(s.info("persistence")["rdb_changes_since_last_save"]) == 1
        assert w.cmd("SAVE") == "OK"
        assert w.cmd("LASTSAVE") >= first
        assert s.info("persistence")["rdb_changes_since_last_save"] == "0"
        w.cmd("SET", "k", "w")
        assert w.cmd("BGSAVE") == "Background saving started"
        wait_until(
            lambda: s.info("persistence")["rdb_changes_since_last_save"] == "0", what="BGSAVE"
        )


def test_checkpoint_comes_by_itself(make_server):
    s = make_server("--checkpoint-interval", 1)
    with s.wire() as w:
        w.cmd("SET", "k", "v")
        wait_until(
            lambda: s.info("persistence")["rdb_changes_since_last_save"] == "0",
            what="the checkpoint",
        )


def test_log_does_not_grow_without_bound(make_server):
    """Writing the same keys over and over leaves no more than the settings allow."""
    s = make_server("--appendfsync", "no", "--checkpoint-log-bytes", "1mb")
    with s.wire(timeout=60) as w:
        for _ in range(scaled(20, 8)):
            before = int(s.info("persistence")["rdb_saves"])
            assert set(w.cmds([("SET", f"k{j}", bytes(10000)) for j in range(150)])) == {"OK"}
            wait_until(
                lambda n=before: int(s.info("persistence")["rdb_saves"]) > n,
                what="a checkpoint because of 1.5 MB of log",
            )
    size = sum(f.stat().st_size for f in s.data.rglob("*") if f.is_file())
    assert size < 100e6, size


def test_directory_in_use(make_server):
    s = make_server()
    second = Server(s.folder / "second", "--dir", s.data)
    second.data = s.data
    second.spawn()
    assert second.wait() == 1
    assert str(s.data) in second.log() and "use" in second.log(), second.log()
    with s.wire() as w:
        assert w.cmd("SET", "k", 1) == "OK"


def test_port_in_use(make_server):
    s = make_server()
    second = Server(s.folder / "second", port=s.port)
    second.spawn()
    assert second.wait() == 1
    assert str(s.port) in second.log() and "in use" in second.log(), second.log()
    with s.wire() as w:
        assert w.cmd("PING") == "PONG"


def test_check_refuses_a_directory_in_use(make_server):
    s = make_server()
    found = run_program("kith-check", s.data)
    assert found.returncode == 2, found


def test_check_and_server_refuse_what_is_no_data(tmp_path):
    (tmp_path / "file").write_text("no directory")
    found = run_program("kith-check", tmp_path / "file")
    assert found.returncode == 2 and (found.stdout + found.stderr).strip()
    s = Server(tmp_path / "server")
    s.data = tmp_path / "file"
    s.spawn()
    assert s.wait() == 1 and str(tmp_path / "file") in s.log(), s.log()


def test_damage_is_told_and_not_served(make_server):
    """A flipped bit in the store is an error, never a wrong answer."""
    s = make_server()
    value = random.Random(4).randbytes(50000)
    with s.wire() as w:
        w.cmd("SET", "k", value)
        w.cmd("SAVE")
    s.stop()
    files = [f for f in s.data.rglob("*") if f.is_file()]
    file = max(files, key=lambda f: f.read_bytes().count(value[:64]))
    data = bytearray(file.read_bytes())
    at = data.find(value[1000:1064])
    assert at > 0, "the value is not where the test looks for it"
    data[at] ^= 1
    file.write_bytes(data)
    found = run_program("kith-check", s.data)
    assert found.returncode == 1 and len(found.stdout.strip()) > 10, found
    s.spawn()
    wait_until(lambda: not s.running or "ready" in s.log(), what="the start")
    if s.running:
        with s.wire() as w:
            reply = w.cmd("GET", "k")
            assert isinstance(reply, ReplyError), "damaged bytes were served"
        s.kill()
    else:
        assert s.wait() == 1 and "damage" in s.log(), s.log()


def test_save_in_a_transaction_and_in_a_pipeline(server):
    with server.wire() as w:
        replies = w.cmds([("SET", "a", 1), ("SAVE",), ("SET", "a", 2), ("BGSAVE",), ("GET", "a")])
        assert replies == ["OK", "OK", "OK", "Background saving started", b"2"]
        replies = w.cmds([("MULTI",), ("SAVE",), ("EXEC",)])
        assert isinstance(replies[1], ReplyError) and replies[2].startswith("EXECABORT")


def test_pidfile(make_server, tmp_path):
    path = tmp_path / "kith.pid"
    s = make_server("--pidfile", path)
    assert int(path.read_text()) == s.pid
    s.stop()
    assert not path.exists()


def test_log_file_is_opened_again(make_server, tmp_path):
    path = tmp_path / "kith.log"
    s = make_server("--logfile", path)
    path.rename(tmp_path / "old.log")
    s.signal(signal.SIGHUP)
    wait_until(path.exists, what="the new file")
    wait_until(lambda: "opened again" in path.read_text(), what="its first line")
    assert "ready" in (tmp_path / "old.log").read_text()


def test_programs_are_there():
    for name in ("kith-server", "kith-engine", "kith-convert", "kith-check", "kith-import", "kith-quantize", "kith-docs"):
        assert (BIN / name).exists(), name
