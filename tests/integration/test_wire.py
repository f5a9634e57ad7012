"""The protocol byte by byte, and what the server does with clients that misbehave."""

import os
import random
import re
import socket
import stat
import threading
import time
from functools import partial

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kithtest import NULL_ARRAY, ReplyError, Simple, Wire, encode, scaled, together, wait_until


def test_inline_commands(server):
    with server.wire() as w:
        w.send_bytes(b"SET key 'a value'\r\nget key\r\n  ECHO \"\\x00\\xff\"  \nPING\r\n")
        assert [w.read() for _ in range(4)] == ["OK", b"a value", b"\x00\xff", "PONG"]


def test_bytes_one_at_a_time(server, protocol):
    with server.wire(protocol) as w:
        stream = encode("SET", "k", b"\r\n$3\r\n") + b"PING x\r\n" + encode("GET", "k")
        for i in range(len(stream)):
            w.send_bytes(stream[i : i + 1])
        assert [w.read() for _ in range(3)] == ["OK", b"x", b"\r\n$3\r\n"]


def test_random_cuts(server):
    """A stream of requests cut into random pieces answers as one sent whole."""
    rng = random.Random(3)
    n = scaled(800, 200)
    stream = b"".join(encode("ECHO", rng.randbytes(rng.choice([0, 1, 50, 3000]))) for _ in range(n))
    replies = []
    for cuts in (False, True):
        with server.wire() as w:

            def send(w=w, cuts=cuts):
                at = 0
                while at < len(stream):
                    step = rng.choice([1, 2, 7, 100, 5000, 70000]) if cuts else len(stream)
                    w.send_bytes(stream[at : at + step])
                    at += step

            sender = threading.Thread(target=send)
            sender.start()
            replies.append([w.read() for _ in range(n)])
            sender.join()
    assert replies[0] == replies[1]


def test_ten_thousand_pipelined(server, protocol):
    n = scaled(10000, 2000)
    with server.wire(protocol) as w:
        replies = w.cmds([("INCR", "n") for _ in range(n)])
        assert replies == list(range(1, n + 1))


def test_pipelining_without_reading_first(server):
    """Client libraries send a whole pipeline before they read; the server must not stop reading."""
    value = b"v" * 10000
    n = scaled(3000, 500)
    with server.wire() as w:
        w.cmd("SET", "k", value)
        w.send_bytes(encode("GET", "k") * n)
        w.send("ECHO", "end")
        for _ in range(n):
            assert w.read() == value
        assert w.read() == b"end"


def test_huge_and_binary_arguments(server, protocol):
    rng = random.Random(5)
    with server.wire(protocol, timeout=60) as w:
        for size in (0, 1, 16 * 1024, 65536, 1 << 20, scaled(16 << 20, 4 << 20)):
            value = rng.randbytes(size)
            assert w.cmd("SET", b"\x00key\r\n", value) == "OK"
            assert w.cmd("GET", b"\x00key\r\n") == value
            assert w.cmd("STRLEN", b"\x00key\r\n") == size
        many = [b"%d" % i for i in range(100000)]
        assert w.cmd("DEL", *many) == 0


def test_double_and_null_forms(server):
    with server.wire(2) as two, server.wire(3) as three:
        two.cmd("GET", "none")
        three.cmd("GET", "none")
        assert (two.raw, three.raw) == (b"$-1\r\n", b"_\r\n")
        two.cmd("VADD", "v", "VALUES", 2, 3, 4, "e", "NOQUANT")
        assert two.cmd("VINFO", "none") is NULL_ARRAY and three.cmd("VINFO", "none") is None
        assert isinstance(two.cmd("VEMB", "v", "e")[0], bytes)
        assert isinstance(three.cmd("VEMB", "v", "e")[0], float)
        two.cmd("VISMEMBER", "v", "e")
        three.cmd("VISMEMBER", "v", "e")
        assert (two.raw, three.raw) == (b":1\r\n", b"#t\r\n")


@pytest.mark.parametrize(
    "sent, error",
    [
        (b"*1\r\n:4\r\n", "ERR Protocol error: expected '$', got ':'"),
        (b"*1\r\n$-5\r\n", "ERR Protocol error: invalid bulk length"),
        (b"*1\r\n$600000000\r\n", "ERR Protocol error: invalid bulk length"),
        (b"*2000000\r\n", "ERR Protocol error: invalid multibulk length"),
        (b"*a\r\n", "ERR Protocol error: invalid multibulk length"),
        (b"PING 'x\r\n", "ERR Protocol error: unbalanced quotes in request"),
        (b"P" * 70000, "ERR Protocol error: too big inline request"),
    ],
    ids=lambda v: v[:12].decode().strip() if isinstance(v, bytes) else "",
)
def test_protocol_error_is_told_then_the_connection_ends(server, sent, error):
    with server.wire() as w:
        w.send_bytes(encode("SET", "before", 1) + sent)
        assert w.read() == "OK", "what came before the error counts"
        assert w.read() == error
        assert w.closed()
    with server.wire() as w:
        assert w.cmd("GET", "before") == b"1"


def test_http_is_cut_off(server):
    """A page in a browser must not be able to send commands."""
    with server.wire() as w:
        w.send_bytes(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nSET stolen 1\r\n")
        assert w.closed()
    with server.wire() as w:
        assert w.cmd("EXISTS", "stolen") == 0


def test_limits_before_authentication(make_server):
    """Who has not said the password cannot make the server hold much."""
    s = make_server("--requirepass", "secret")
    for sent in (b"*100\r\n", b"*1\r\n$100000\r\n"):
        with s.wire() as w:
            w.send_bytes(sent)
            assert w.read().startswith("ERR Protocol error: unauthenticated")
            assert w.closed()
    with s.wire() as w:
        assert w.cmd("AUTH", "secret") == "OK"
        assert w.cmd("SET", "k", b"x" * 100000) == "OK"
        assert w.cmd("DEL", *range(100)) == 0


def test_authentication(make_server, protocol):
    s = make_server("--requirepass", "secret")
    with s.wire() as w:
        for request in (["PING"], ["GET", "k"], ["CONFIG", "GET", "*"], ["VSIM", "v", "ELE", "e"]):
            assert w.cmd(*request) == "NOAUTH Authentication required."
        assert w.cmd("HELLO", 3).startswith("NOAUTH HELLO must be called")
        for wrong in (["secreT"], [""], ["default", "x"], ["other", "secret"], ["secret" * 9]):
            assert w.cmd("AUTH", *wrong).startswith("WRONGPASS")
        assert w.cmd("PING").startswith("NOAUTH")
        hello = w.cmd("HELLO", protocol, "AUTH", "default", "secret", "SETNAME", "me")
        assert not isinstance(hello, ReplyError)
        assert w.cmd("CLIENT", "GETNAME") == b"me"
        assert w.cmd("RESET") == "RESET"
        assert w.cmd("PING").startswith("NOAUTH")
        assert w.cmd("AUTH", "default", "secret") == "OK"
        assert w.cmd("CONFIG", "SET", "requirepass", "") == "OK"
        with s.wire() as other:
            assert other.cmd("PING") == "PONG"
            assert other.cmd("AUTH", "x").startswith("ERR AUTH <password> called without")
    assert s.client().config_set("requirepass", "again")
    with pytest.raises(redis.AuthenticationError):
        s.client(password="x", protocol=protocol, retry=Retry(NoBackoff(), 0)).ping()
    assert s.client(password="again", protocol=protocol).ping()


def test_client_reply(server):
    with server.wire() as w:
        w.send("CLIENT", "REPLY", "OFF")
        w.cmds([])
        w.send("SET", "k", 1)
        w.send("NOSUCH")
        assert w.cmd("CLIENT", "REPLY", "ON") == "OK"
        assert w.cmd("GET", "k") == b"1"
        w.send("CLIENT", "REPLY", "SKIP")
        w.send("INCR", "k")
        assert w.cmd("GET", "k") == b"2"
        w.send("CLIENT", "REPLY", "SKIP")
        w.send("CLIENT", "REPLY", "SKIP")
        w.send("ECHO", "unheard")
        assert w.cmd("ECHO", "heard") == b"heard"


def test_reset_forgets_the_session(server):
    with server.wire(3) as w:
        w.cmds([("SELECT", 3), ("CLIENT", "SETNAME", "me"), ("SET", "k", 1), ("WATCH", "k")])
        w.cmds([("MULTI",), ("SET", "k", 2)])
        assert w.cmd("RESET") == "RESET"
        assert w.cmd("EXEC") == "ERR EXEC without MULTI"
        assert w.cmd("GET", "k") is None and w.raw == b"$-1\r\n", "database 0 and RESP2 again"
        assert w.cmd("CLIENT", "GETNAME") is None
        w.cmd("SELECT", 3)
        assert w.cmd("GET", "k") == b"1"


def test_quit(server):
    with server.wire() as w:
        w.send_bytes(encode("SET", "k", 1) + encode("QUIT") + encode("SET", "k", 2))
        assert [w.read(), w.read()] == ["OK", "OK"]
        assert w.closed()
    with server.wire() as w:
        assert w.cmd("GET", "k") == b"1"


def test_monitor(server, protocol):
    with server.wire(protocol) as watcher, server.wire() as w:
        assert watcher.cmd("MONITOR") == "OK"
        w.cmd("SET", "k\x00", 'a"b\n')
        w.cmd("SELECT", 5)
        w.cmds([("MULTI",), ("GET", "k"), ("EXEC",)])
        w.cmd("AUTH", "a secret")
        w.cmd("ECHO", "end")
        lines = []
        while not lines or '"end"' not in lines[-1]:
            line = watcher.read()
            assert isinstance(line, Simple)
            lines.append(line)
        form = r'\d+\.\d{6} \[(\d+) 127\.0\.0\.1:\d+\] (.*)$'
        seen = [re.match(form, line).groups() for line in lines]
        assert ("0", r'"SET" "k\x00" "a\"b\n"') in seen
        assert ("5", '"GET" "k"') in seen
        assert not any("secret" in line for line in lines), "passwords are not shown"
        assert watcher.cmd("RESET") in ("RESET",)
        w.cmd("ECHO", "unseen")
        assert watcher.cmd("PING") == "PONG", "RESET ended the feed"


def test_client_list_and_kill(server):
    with server.wire(3) as w, server.wire() as other, server.wire() as watcher:
        mine, theirs = w.cmd("CLIENT", "ID"), other.cmd("CLIENT", "ID")
        other.cmd("CLIENT", "SETNAME", "the-other")
        other.cmd("SELECT", 7)
        listing = w.cmd("CLIENT", "LIST").decode()
        line = next(x for x in listing.splitlines() if x.startswith(f"id={theirs} "))
        fields = dict(f.split("=", 1) for f in line.split())
        assert (fields["name"], fields["db"], fields["resp"]) == ("the-other", "7", "2")
        assert len(w.cmd("CLIENT", "LIST", "ID", mine, theirs).splitlines()) == 2
        assert w.cmd("CLIENT", "LIST", "TYPE", "replica") == b""
        watcher.cmd("MONITOR")
        assert w.cmd("CLIENT", "KILL", "ID", theirs) == 1
        assert other.closed()
        assert w.cmd("CLIENT", "KILL", fields["addr"]) == "ERR No such client"
        assert w.cmd("CLIENT", "KILL", "ID", mine, "SKIPME", "no") == 1
        assert w.closed(), "after its reply"


def test_client_kill_reaches_a_client_that_waits(make_server, model):
    """One that waits for the engine is gone at once, and its answer with it."""
    s = make_server("--embedder", model)
    os.kill(s.wait_engine(), 19)  # SIGSTOP: the answer never comes
    with s.wire() as waiting, s.wire() as w:
        me = waiting.cmd("CLIENT", "ID")
        waiting.send("EMBED", "some text")
        wait_until(lambda: s.info("engine")["engine_queued"] != "0", what="the text to be queued")
        assert w.cmd("CLIENT", "KILL", "ID", me) == 1
        assert waiting.closed()
        assert w.cmd("PING") == "PONG"
        os.kill(s.engine_pid(), 18)
        wait_until(lambda: s.info("engine")["engine_queued"] == "0", what="the answer")
        assert w.cmd("PING") == "PONG"


def test_client_disconnects_with_work_under_way(make_server, model):
    s = make_server("--embedder", model)
    s.wait_engine()
    for i in range(scaled(30, 8)):
        w = s.wire()
        w.send_bytes(encode("EMBED", f"text {i}") * 5 + encode("VADD", "v", "TEXT", "x", i))
        w.close()
    wait_until(lambda: s.info("engine")["engine_queued"] == "0", what="the engine to be idle")
    wait_until(lambda: s.info("clients")["connected_clients"] == "1", what="all to be gone")


def test_maxclients(make_server):
    s = make_server("--maxclients", 4)
    wires = [s.wire()]
    wait_until(lambda: wires[0].cmd("CLIENT", "LIST").count(b"id=") == 1, what="it to be alone")
    wires += [s.wire() for _ in range(3)]
    assert [w.cmd("PING") for w in wires] == ["PONG"] * 4
    with s.wire() as one_more:
        assert one_more.read() == "ERR max number of clients reached"
        assert one_more.closed()
    wires.pop().close()

    def in_again():
        try:
            with s.wire() as w:
                return w.cmd("PING") == "PONG"
        except OSError:  # refused and closed before it asked
            return False

    wait_until(in_again, what="the place to be free")
    assert wires[0].cmd("CONFIG", "SET", "maxclients", 10) == "OK"
    wires += [s.wire() for _ in range(4)]
    assert [w.cmd("PING") for w in wires] == ["PONG"] * len(wires)
    assert int(s.info("stats")["rejected_connections"]) >= 1
    for w in wires:
        w.close()


def test_client_that_does_not_read_is_closed(make_server):
    """Past its output buffer limit; the others are served all the while."""
    s = make_server("--client-output-buffer-limit", "normal", "8mb", 0, 0)
    with s.wire() as w, s.wire() as lazy:
        w.cmd("SET", "big", b"x" * (1 << 20))
        me = lazy.cmd("CLIENT", "ID")
        lazy.send_bytes(encode("GET", "big") * 64)

        def gone():
            assert w.cmd("PING") == "PONG"
            return f"id={me} ".encode() not in w.cmd("CLIENT", "LIST")

        wait_until(gone, what="the lazy client to be closed")
        # One that reads gets as much as it likes.
        assert [len(r) for r in w.cmds([("GET", "big")] * 4)] == [1 << 20] * 4


def test_monitor_that_does_not_read_is_closed(make_server):
    s = make_server("--client-output-buffer-limit", "normal", "1mb", 0, 0)
    with s.wire() as w, s.wire() as lazy:
        me = lazy.cmd("CLIENT", "ID")
        lazy.cmd("MONITOR")
        value = b"v" * 60000

        def gone():
            w.cmds([("ECHO", value)] * 20)
            return f"id={me} ".encode() not in w.cmd("CLIENT", "LIST")

        wait_until(gone, timeout=20, what="the monitor to be closed")


def test_idle_client_is_closed(make_server):
    s = make_server("--timeout", 1)
    with s.wire() as idle:
        assert idle.cmd("PING") == "PONG"
        start = time.monotonic()
        assert idle.closed()
        assert time.monotonic() - start > 0.5


def test_unix_socket(make_server, tmp_path, protocol):
    path = tmp_path / "kith.sock"
    s = make_server("--unixsocket", path, "--unixsocketperm", "700")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with redis.Redis(unix_socket_path=str(path), protocol=protocol) as r:
        assert r.set("k", 1) and r.client_info()["addr"] == f"{path}:0"
    s.stop()
    assert not path.exists()


def test_unix_socket_alone(make_server, tmp_path):
    path = tmp_path / "kith.sock"
    s = make_server("--unixsocket", path, port=0)
    with s.wire() as w:
        assert w.cmd("PING") == "PONG"
    s.restart()
    with Wire(path=path) as w:
        assert w.cmd("PING") == "PONG"


def test_unix_socket_left_behind_by_a_crash(make_server, tmp_path):
    path = tmp_path / "kith.sock"
    s = make_server("--unixsocket", path)
    s.kill()
    assert path.exists()
    s.start()
    with Wire(path=path) as w:
        assert w.cmd("PING") == "PONG"


def test_two_io_threads_agree(server):
    """Clients land on both threads; what one writes the other reads at once."""
    wires = [server.wire() for _ in range(8)]
    threads = {
        dict(f.split("=", 1) for f in w.cmd("CLIENT", "INFO").decode().split())["io-thread"]
        for w in wires
    }
    assert threads == {"0", "1"}
    rng = random.Random(9)
    for i in range(scaled(2000, 300)):
        writer, reader = rng.sample(wires, 2)
        assert writer.cmd("SET", "k", i) == "OK"
        assert reader.cmd("GET", "k") == b"%d" % i
    for w in wires:
        w.close()


def test_counters_from_both_threads(server):
    def count(n):
        with server.wire() as w:
            for _ in range(n // 50):
                w.cmds([("INCR", "n")] * 50)

    n = scaled(5000, 500) // 50 * 50
    together([partial(count, n)] * 6)
    with server.wire() as w:
        assert int(w.cmd("GET", "n")) == 6 * n


def test_half_closed_client_gets_its_replies(server):
    """printf ... | nc closes its sending side before it has read."""
    with server.wire() as w:
        w.send_bytes(encode("SET", "k", "v") + encode("GET", "k"))
        w.sock.shutdown(socket.SHUT_WR)
        assert [w.read(), w.read()] == ["OK", b"v"]
        assert w.closed()


def test_command_table(server):
    with server.wire(3) as w:
        n = w.cmd("COMMAND", "COUNT")
        listed = {x.decode() for x in w.cmd("COMMAND", "LIST")}
        assert {"client|kill", "config|get", "debug|sleep"} <= listed
        names = {x for x in listed if "|" not in x}
        assert len(names) == n == len(w.cmd("COMMAND"))
        assert {"vadd", "vsim", "vtext", "embed", "get", "exec"} <= names
        docs = w.cmd("COMMAND", "DOCS")
        assert {k.decode() for k in docs} == names
        assert all(d[b"summary"] and d[b"group"] and d[b"since"] for d in docs.values())
        info = w.cmd("COMMAND", "INFO", "vadd", "nosuch", "get")
        assert info[0][0] == b"vadd" and info[0][1] == -5 and info[1] is None
        assert "write" in info[0][2] and "readonly" in info[2][2]
        assert w.cmd("COMMAND", "GETKEYS", "MSET", "a", 1, "b", 2) == [b"a", b"b"]
        vset = w.cmd("COMMAND", "LIST", "FILTERBY", "PATTERN", "v*")
        assert b"vsim" in vset and b"get" not in vset


def test_every_command_checks_its_arity(server):
    """The whole table: one word too few and, where the number is fixed, one too many."""
    with server.wire(3) as w:
        for row in w.cmd("COMMAND"):
            name, arity = row[0].decode(), row[1]
            for n in {abs(arity) - 1, arity + 1 if arity > 0 else abs(arity) - 1} - {0}:
                if row[9] and n < 2:
                    continue
                if name in ("client", "config", "command", "module", "debug", "memory", "slowlog"):
                    continue
                reply = w.cmd(name, *["x"] * (n - 1))
                assert reply == f"ERR wrong number of arguments for '{name}' command", reply


def test_info_and_module_list(server, protocol):
    with server.client(protocol=protocol) as r:
        info = r.info()
        assert info["redis_version"].startswith("8.") and info["role"] == "master"
        assert info["process_id"] == server.pid
        assert set(r.info("memory")) > {"used_memory", "maxmemory"}
        assert "cmdstat_info" in r.info("commandstats")
        modules = r.execute_command("MODULE", "LIST")
        assert b"vectorset" in str(modules).encode()
    with server.wire() as w:
        assert b"# Server" in w.cmd("INFO", "server")
        assert b"# Server" not in w.cmd("INFO", "keyspace", "nosuch")


def test_slowlog(make_server):
    s = make_server("--slowlog-log-slower-than", 0)
    r = s.client()
    r.set("k", "v" * 300)
    entries = r.slowlog_get(128)
    found = next(e for e in entries if e["command"].startswith(b"SET k "))
    assert found["duration"] >= 0 and b"more bytes" in found["command"]
    assert r.slowlog_len() > 0
    r.config_set("slowlog-log-slower-than", -1)
    r.slowlog_reset()
    assert r.slowlog_len() == 0
    r.config_set("slowlog-log-slower-than", 50000)
    r.execute_command("DEBUG", "SLEEP", "0.06")
    assert b"DEBUG SLEEP 0.06" in [e["command"] for e in r.slowlog_get()]


def test_resetstat(server):
    with server.client() as r:
        r.get("x")
        assert r.info("stats")["total_commands_processed"] > 1
        r.config_resetstat()
        assert r.info("stats")["total_commands_processed"] <= 2
        assert "cmdstat_get" not in r.info("commandstats")


def test_memory_usage(server):
    with server.wire() as w:
        assert w.cmd("MEMORY", "USAGE", "none") is None
        w.cmd("SET", "k", b"x" * 100000)
        assert 100000 < w.cmd("MEMORY", "USAGE", "k") < 110000
        w.cmd("VADD", "v", "VALUES", 2, 1, 2, "e")
        assert 0 < w.cmd("MEMORY", "USAGE", "v") < 65536, "a small set stays small"
