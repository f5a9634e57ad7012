"""Elements whose time has come go by themselves, by what the log says and not by the clock of whoever
reads it."""

import time

from kithtest import run_program, scaled, wait_until

V = ("VALUES", 3, 1, 2, 3)


def info(w, key):
    words = w.cmd("VINFO", key)
    return dict(zip(words[::2], words[1::2]))


def wait_gone(server, key):
    """Without looking at the key, which would help."""
    with server.wire() as w:
        wait_until(lambda: w.cmd("DBSIZE") == 0, what=f"{key} to go")


def test_sets_go_without_being_looked_at(server):
    with server.wire() as w:
        n = scaled(3000, 300)
        w.cmds([("VADD", "many", *V, f"e{i}", "PX", 1 + i % 200) for i in range(n)])
        w.cmds([("VADD", f"few:{i}", *V, "e", "PX", 100 + i) for i in range(100)])
    wait_gone(server, "everything")


def test_a_set_that_was_renamed_expires_under_its_new_name(server):
    with server.wire() as w:
        w.cmd("VADD", "a", *V, "x", "PX", 400)
        assert w.cmd("RENAME", "a", "b") == "OK"
        assert w.cmd("VADD", "a", *V, "stays") == 1
        wait_until(lambda: w.cmd("DBSIZE") == 1, what="b to go")
        assert w.cmd("VRANGE", "a", "-", "+") == [b"stays"]


def test_small_sets_are_exact_at_once(server):
    with server.wire() as w:
        for i in range(scaled(40, 10)):
            w.cmd("DEL", "s")
            w.cmds([("VADD", "s", *V, f"e{k}", "PX", 1) for k in range(8)])
            w.cmd("VADD", "s", *V, "stays", "SETATTR", '{"a":1}')
            time.sleep(0.002)
            what = (
                (("VCARD", "s"), 1),
                (("VRANGE", "s", "-", "+"), [b"stays"]),
                (("VRANDMEMBER", "s", 10), [b"stays"]),
                (("VSIM", "s", *V), [b"stays"]),
                (("VISMEMBER", "s", "e3"), 0),
                (("VADD", "s", *V, "e3"), 1),
                (("VREM", "s", "e3"), 0),
                (("VSETATTR", "s", "e3", "{}"), 0),
            )[i % 8]
            assert w.cmd(*what[0]) == what[1], what
            w.cmds([("VADD", "t", *V, f"e{k}", "PX", 1) for k in range(8)])
            time.sleep(0.002)
            assert w.cmd(*(("EXISTS", "t"), ("DEL", "t"), ("VCARD", "t"))[i % 3]) == 0


def test_what_an_expired_element_had_does_not_live_on(server):
    """With more of them due than one look at the set removes."""
    with server.wire() as w:
        names = [f"e{i}" for i in range(300)]
        w.cmds([("VADD", "s", *V, e, "PX", 1, "SETATTR", '{"old":1}') for e in names])
        time.sleep(0.002)
        replies = w.cmds([("VADD", "s", *V, e) for e in reversed(names)])
        assert replies == [1] * 300
        assert w.cmds([("VGETATTR", "s", e) for e in names]) == [None] * 300
        assert w.cmd("VCARD", "s") == 300
        assert info(w, "s")["attributes-count"] == 0


def test_in_a_transaction(server):
    with server.wire() as w:
        for reading in (True, False):
            w.cmd("DEL", "s")
            w.cmds([("VADD", "s", *V, f"e{k}", "PX", 1) for k in range(50)])
            w.cmd("VADD", "s", *V, "stays")
            time.sleep(0.002)
            w.cmd("MULTI")
            w.cmd("VCARD", "s")
            w.cmd("VCARD", "s")
            w.cmd("VRANGE", "s", "-", "+")
            if not reading:
                w.cmd("VADD", "s", *V, "e3")
            replies = w.cmd("EXEC")
            assert replies[1:3] == [1, [b"stays"]]
            assert reading or replies[3] == 1


def test_what_went_is_gone_after_a_kill(make_server):
    s = make_server("--appendfsync", "no")
    with s.wire() as w:
        w.cmd("VCREATE", "declared", "DIM", 3)
        for i in range(scaled(200, 50)):
            key = ("s", "declared")[i % 2]
            more = ("SETATTR", '{"i":%d}' % i) if i % 3 else ()
            w.cmd("VADD", key, *V, f"e{i}", *(("PX", 1 + i % 7) if i % 5 else ()), *more)
        w.cmd("VADD", "all", *V, "e", "PX", 1)
        time.sleep(0.01)
        names = [w.cmd("VRANGE", k, "-", "+") for k in ("s", "declared", "all")]
        counts = [info(w, k) for k in ("s", "declared")]
        assert names[2] == []
        assert w.cmd("EXISTS", "all") == 0
        before = w.cmd("DEBUG", "DIGEST")
    s.kill()
    s.start()
    with s.wire() as w:
        assert [w.cmd("VRANGE", k, "-", "+") for k in ("s", "declared", "all")] == names
        assert w.cmd("EXISTS", "all") == 0
        for k, c in zip(("s", "declared"), counts):
            now = info(w, k)
            assert [now[x] for x in ("size", "attributes-count")] == [
                c[x] for x in ("size", "attributes-count")
            ]
        assert w.cmd("DEBUG", "DIGEST") == before
        w.cmds([("VREM", "declared", e) for e in names[1]])
        assert w.cmd("VCARD", "declared") == 0
        assert w.cmd("EXISTS", "declared") == 1
        assert w.cmd("DEBUG", "RELOAD") == "OK"
        assert w.cmd("VSIM", "declared", *V) == []
    s.stop()
    found = run_program("kith-check", s.data)
    assert found.returncode == 0, found.stdout + found.stderr
