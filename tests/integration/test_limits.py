"""Memory: past maxmemory writes are refused and reads go on."""

import numpy as np
import pytest

from kithtest import ReplyError, scaled, wait_until


@pytest.mark.measures_memory
def test_maxmemory_refuses_writes_and_serves_reads(make_server, protocol):
    s = make_server("--maxmemory", "20mb", "--appendfsync", "no")
    with s.wire(protocol, timeout=60) as w:
        w.cmd("VADD", "v", "VALUES", 3, 1, 2, 3, "e")
        written = 0
        while True:
            reply = w.cmd("SET", f"k{written}", bytes(100000))
            if reply != "OK":
                break
            written += 1
            assert written < 1000, "the limit never came"
        assert reply.startswith("OOM ") and "maxmemory" in reply
        assert 100 < written < 260, written
        for request in (
            ["SET", "x", 1],
            ["MSET", "x", 1],
            ["APPEND", "k0", "x"],
            ["INCR", "n"],
            ["VADD", "v", "VALUES", 3, 1, 2, 3, "f"],
        ):
            assert w.cmd(*request).startswith("OOM "), request
        assert w.cmd("GET", "k0") == bytes(100000)
        assert w.cmd("VSIM", "v", "ELE", "e") == [b"e"]
        assert w.cmd("DBSIZE") == written + 1
        transaction = w.cmds([("MULTI",), ("SET", "x", 1), ("EXEC",)])
        assert any(isinstance(r, ReplyError) for r in transaction) and w.cmd("EXISTS", "x") == 0
        assert w.cmd("EXPIRE", "k0", 1000) == 1, "what frees or changes little is allowed"
        assert w.cmd("DEL", *[f"k{i}" for i in range(written // 2)]) == written // 2

        def again():
            return w.cmd("SET", "x", 1) == "OK"

        wait_until(again, what="room after DEL")
        assert int(s.info("memory")["maxmemory"]) == 20 << 20


@pytest.mark.measures_memory
def test_maxmemory_counts_vectors(make_server):
    s = make_server("--maxmemory", "24mb", "--appendfsync", "no")
    rng = np.random.default_rng(3)
    with s.wire(timeout=60) as w:
        n = 0
        refused = None
        while refused is None and n < 60000:
            rows = rng.standard_normal((500, 128)).astype(np.float32)
            replies = w.cmds([("VADD", "v", "FP32", r.tobytes(), n + i) for i, r in enumerate(rows)])
            bad = [r for r in replies if isinstance(r, ReplyError)]
            refused = bad[0] if bad else None
            n += len(rows) - len(bad)
        assert refused and refused.startswith("OOM "), refused
        assert w.cmd("VCARD", "v") == n
        assert len(w.cmd("VSIM", "v", "ELE", 0)) == 10
        assert w.cmd("FLUSHALL") == "OK"
        wait_until(lambda: w.cmd("SET", "k", 1) == "OK", what="room after FLUSHALL")


@pytest.mark.measures_memory
def test_memory_is_given_back(make_server):
    """Filling and emptying again and again ends where it began."""
    s = make_server("--appendfsync", "no", "--checkpoint-interval", 1)
    with s.wire(timeout=60) as w:
        for _ in range(scaled(8, 3)):
            w.cmds([("SET", f"k{i}", bytes(5000)) for i in range(2000)])
            w.cmds([("VADD", "v", "FP32", bytes(60) + b"\0\0\x80?", i) for i in range(500)])
            wait_until(
                lambda: int(s.info("memory")["used_memory"]) > 2000 * 5000, what="the count"
            )
            w.cmd("FLUSHALL")
        w.cmd("SAVE")
        wait_until(
            lambda: int(s.info("memory")["used_memory"]) < 8 << 20, what="the memory to be free"
        )
        assert w.cmd("DBSIZE") == 0


def test_slow_writers_wait_for_the_linkers(make_server):
    """A full tail makes writers wait; nobody gets an error, nothing is lost."""
    s = make_server("--vset-tail-max", 16, "--link-threads", 1, "--appendfsync", "no")
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((scaled(3000, 500), 32)).astype(np.float32)
    with s.wire(timeout=120) as w:
        replies = w.cmds([("VADD", "v", "FP32", r.tobytes(), i) for i, r in enumerate(rows)])
        assert set(replies) == {1}
        assert w.cmd("VCARD", "v") == len(rows)
        # Within a transaction there is no waiting: it waits at its beginning or goes through.
        transaction = [("MULTI",)]
        transaction += [("VADD", "v", "FP32", r.tobytes(), f"t{i}") for i, r in enumerate(rows[:40])]
        replies = w.cmds([*transaction, ("EXEC",)])[-1]
        added = sum(r == 1 for r in replies)
        assert w.cmd("VCARD", "v") == len(rows) + added
        assert added == 40, [r for r in replies if r != 1][:1]
