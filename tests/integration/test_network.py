"""The network and the dispatcher: order, bounds, fairness, leaving at any point, stopping."""

import os
import random
import socket
import threading
import time
from functools import partial

import pytest

from kithtest import ReplyError, encode, scaled, together, wait_until


def drain(sock):
    """Reads and forgets until the other side closes."""
    try:
        while sock.recv(1 << 20):
            pass
    except OSError:
        pass


def test_ten_thousand_commands_in_one_write(server):
    n = 10_000
    with server.wire() as w:
        data = encode("INCR", "n") * n
        sender = threading.Thread(target=w.send_bytes, args=(data,))
        sender.start()
        assert [w.read() for _ in range(n)] == list(range(1, n + 1))
        sender.join()


def test_one_byte_at_a_time(server):
    with server.wire() as w:
        for byte in encode("ECHO", b"a\r\n\0b") + b'ECHO "a b"\r\n' + encode("PING"):
            w.send_bytes(bytes([byte]))
        assert [w.read() for _ in range(3)] == [b"a\r\n\0b", b"a b", "PONG"]


def test_a_long_argument(server):
    value = random.Random(7).randbytes(1 << 20) * scaled(64, 8)
    with server.wire() as w:
        assert w.cmd("SET", "long", value) == "OK"
        assert w.cmd("GET", "long") == value
        assert w.cmd("DEL", "long") == 1


def test_slow_commands_of_one_client_leave_the_others_their_turn(make_server):
    server = make_server("--io-threads", 1)
    with server.wire() as slow, server.wire() as quick:
        number = slow.cmd("CLIENT", "ID")
        start = time.monotonic()
        slow.send_bytes(encode("DEBUG", "SLEEP", "0.1") * 200)
        assert slow.read() == "OK"
        for _ in range(5):
            assert quick.cmd("PING") == "PONG"
        assert time.monotonic() - start < 20  # which is what all of them take
        assert quick.cmd("CLIENT", "KILL", "ID", number) == 1


def test_a_client_that_does_not_read_is_closed(make_server):
    server = make_server("--client-output-buffer-limit", "2mb")
    with server.wire() as lazy, server.wire() as w:
        w.cmd("SET", "k", "x" * 1_000_000)
        lazy.send_bytes(encode("GET", "k") * 50)
        wait_until(lambda: w.cmd("CLIENT", "LIST").count(b"id=") == 1, what="it to be closed")
        drain(lazy.sock)
        assert w.cmd("PING") == "PONG"


def test_an_idle_client_is_closed_and_too_many_are_refused(make_server):
    server = make_server("--maxclients", 3)
    with server.wire() as w, server.wire() as control:
        assert control.cmd("CONFIG", "SET", "timeout", 1) == "OK"
        assert w.closed()
    server.restart()
    wires = [server.wire()]
    wait_until(lambda: wires[0].cmd("CLIENT", "LIST").count(b"id=") == 1, what="it to be alone")
    wires += [server.wire() for _ in range(2)]
    assert [w.cmd("PING") for w in wires] == ["PONG"] * 3
    with server.wire() as w:
        assert w.read() == "ERR max number of clients reached"
        assert w.closed()
    for w in wires:
        w.close()


def test_a_half_closed_client_gets_its_replies(server):
    with server.wire() as w:
        w.send_bytes(encode("SET", "k", "v") + encode("GET", "k"))
        w.sock.shutdown(socket.SHUT_WR)
        assert [w.read(), w.read()] == ["OK", b"v"]
        assert w.closed()


def test_replies_keep_their_order_around_texts(text_server):
    """A text waits for the engine; what was sent behind it waits for the text."""
    n = scaled(300, 30)
    with text_server.wire() as w:
        w.cmd("SET", "n", 0)
        requests = []
        for i in range(n):
            requests.append(("VADD", "v", "TEXT", f"the text number {i}", f"e{i}"))
            requests.append(("INCR", "n"))
        replies = w.cmds(requests)
        assert replies[0::2] == [1] * n
        assert replies[1::2] == list(range(1, n + 1))
        w.send_bytes(encode("VCARD", "v") + encode("MULTI"))
        w.send_bytes(encode("VADD", "v", "TEXT", "one more", "more") + encode("EXEC"))
        assert [w.read() for _ in range(4)] == [n, "OK", "QUEUED", [1]]


def test_a_refusal_keeps_its_place_behind_a_text(text_server):
    with text_server.wire() as w:
        w.send_bytes(encode("VADD", "v", "TEXT", "a text", "e") + b"*1\r\n+x\r\n")
        assert w.read() == 1
        assert w.read() == "ERR Protocol error: expected '$', got '+'"
        assert w.closed()


def test_without_an_engine_texts_are_refused_in_order(server):
    with server.wire() as w:
        replies = w.cmds([("INCR", "n"), ("VADD", "v", "TEXT", "a", "e"), ("INCR", "n")])
        assert (replies[0], replies[2]) == (1, 2)
        assert isinstance(replies[1], ReplyError) and replies[1].startswith("ENGINE no ")


def test_monitor_shows_what_runs_until_reset(server):
    with server.wire() as m, server.wire() as w:
        assert m.cmd("MONITOR") == "OK"
        w.cmd("ECHO", b'a"\x01b')
        assert m.read().endswith('"ECHO" "a\\"\\x01b"')
        m.send("RESET")
        while m.read() != "RESET":
            pass
        w.cmd("PING")
        assert m.cmd("ECHO", "mine") == b"mine"


def leave_somewhere(server, rng, until):
    """One client after the other that leaves in the middle of something."""
    while time.monotonic() < until:
        try:
            with server.wire() as w:
                what = rng.randrange(7)
                if what == 0:
                    w.send_bytes(encode("SET", "k", "x" * rng.randrange(100_000)) * 20)
                elif what == 1:
                    w.send_bytes(encode("GET", "k") * rng.randrange(1, 300))
                elif what == 2:
                    w.send_bytes(rng.randbytes(rng.randrange(1, 2000)))
                elif what == 3:
                    w.cmd("CLIENT", "SETNAME", f"n{what}")
                    w.cmd("CLIENT", "LIST")
                elif what == 4:
                    w.cmd("CLIENT", "KILL", "ID", rng.randrange(1, 5000))
                elif what == 5:
                    w.send_bytes(encode("WATCH", "k") + encode("MULTI") + encode("INCR", "q"))
                    w.send_bytes(encode("EXEC")[: rng.randrange(1, 14)])
                else:
                    w.send_bytes(encode("MONITOR") + encode("INCR", "z") * 100)
        except OSError:
            pass


@pytest.mark.parametrize("threads", [1, 2])
def test_clients_that_leave_at_any_point(make_server, threads):
    server = make_server("--io-threads", threads)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    until = time.monotonic() + 3
    rngs = [random.Random(seed + i) for i in range(4)]
    together([partial(leave_somewhere, server, r, until) for r in rngs])

    def alone():
        with server.wire() as w:
            return w.cmd("CLIENT", "LIST").count(b"id=") == 1

    wait_until(alone, what="the others to be gone")
    with server.wire() as w:
        assert b"blocked_clients:0\r\n" in w.cmd("INFO", "clients")


def test_stopping_lets_replies_drain(make_server):
    """All that was received is run and answered, over many turns of the connection: the sleeps
    make each longer than a turn."""
    server = make_server()
    n = 100
    with server.wire() as w:
        w.send_bytes((encode("INCR", "n") + encode("DEBUG", "SLEEP", "0.005")) * n)
        assert w.read() == 1  # the batch was read
        server.signal(15)
        assert [w.read() for _ in range(2 * n - 1)] == [
            reply for i in range(2, n + 1) for reply in ("OK", i)
        ] + ["OK"]
        assert w.closed()
    assert server.wait() == 0


def looks(server):
    """How often a thread looked for the next request before it slept, found or in vain."""
    stats = server.info("stats")
    return int(stats["busy_polls"]) + int(stats["busy_polls_in_vain"])


def test_a_thread_looks_for_the_next_request_before_it_sleeps(make_server):
    """Each PING is one round in which something came, and so one look, found or in vain (the
    last may still be going on). Replies do not depend on it."""
    server = make_server("--busy-poll-us", 0)
    with server.wire() as w:
        assert [w.cmd("PING") for _ in range(50)] == ["PONG"] * 50
        assert looks(server) == 0
        if os.sysconf("SC_NPROCESSORS_ONLN") == 1:
            return  # the only processor is left to the others
        assert w.cmd("CONFIG", "SET", "busy-poll-us", 1000) == "OK"
        assert [w.cmd("PING") for _ in range(50)] == ["PONG"] * 50
        wait_until(lambda: looks(server) >= 50, what="50 looks for the next request")
        assert "1000" in str(w.cmd("CONFIG", "SET", "busy-poll-us", 1001))
        assert w.cmd("CONFIG", "GET", "busy-poll-us") == [b"busy-poll-us", b"1000"]


def test_no_thread_looks_while_another_has_its_request(make_server):
    """Nor right after the other's answer. The few looks there are come from INFO."""
    server = make_server("--busy-poll-us", 1000, "--io-threads", 1)
    with server.wire() as w:
        before = looks(server)
        for _ in range(20):
            assert w.cmd("DEBUG", "SLEEP", 0.002, "SEARCH") == "OK"
        assert looks(server) - before < 10
