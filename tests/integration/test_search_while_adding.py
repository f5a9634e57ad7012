"""A search that asks for more than there is: whatever is added meanwhile, it has every element that
was there all the time."""

import threading

from kithtest import scaled

STABLE = 300


def test_what_was_there_is_there(make_server):
    server = make_server("--io-threads", 2)
    w = server.wire()
    for i in range(STABLE):
        assert w.cmd("VADD", "s", "VALUES", 3, 1, -0.001 * i, 0.5, f"stable{i}") == 1
    stable = {b"stable%d" % i for i in range(STABLE)}
    done = threading.Event()

    def add():
        """Elements nearer to the query than all that stay; removed again, so that the set is small."""
        with server.wire(timeout=60) as a:
            for round_ in range(100_000):
                if done.is_set():
                    return
                names = [f"new{round_}.{i}" for i in range(100)]
                for name in names:
                    a.send("VADD", "s", "VALUES", 3, 1, 1, 1, name)
                for name in names:
                    a.send("VREM", "s", name)
                for _ in range(2 * len(names)):
                    assert a.read() == 1

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(scaled(1500, 100)):
            found = w.cmd("VSIM", "s", "VALUES", 3, 1, 1, 1, "COUNT", 100_000)
            missing = stable - set(found)
            assert not missing, (len(found), sorted(missing)[:5])
    finally:
        done.set()
        thread.join()
