"""redis-py as programs use it: sync and asyncio, both protocols, pools, pipelines, transactions."""

import asyncio
import threading

import pytest
import redis
import redis.asyncio

from kithtest import scaled


def connect(server, protocol, **options):
    return server.client(protocol=protocol, **options)


def test_default_handshake_names_the_library(server):
    """The client as it comes out of the box, with nothing chosen."""
    with redis.Redis(port=server.port, client_name="plain") as r:
        assert r.ping() is True
        me = r.client_info()
        assert me["name"] == "plain"
        assert me["lib-name"] == "redis-py" and me["lib-ver"] == redis.__version__
        assert r.echo(b"\x00\xff") == b"\x00\xff"


def test_chosen_protocol_is_spoken(server, protocol):
    with connect(server, protocol) as r:
        assert int(r.client_info()["resp"]) == protocol


def test_strings(server, protocol):
    with connect(server, protocol, decode_responses=True) as r:
        assert r.set("a", "é") is True
        assert r.get("a") == "é"
        assert r.strlen("a") == 2
        assert r.append("a", "x") == 3
        assert r.set("a", "y", nx=True) is None
        assert r.set("a", "y", get=True) == "éx"
        assert r.mset({"n": 5, "m": 6}) is True
        assert r.mget("n", "none", "m") == ["5", None, "6"]
        assert r.incr("n") == 6 and r.decr("n", 10) == -4
        assert r.getdel("n") == "-4" and r.exists("n") == 0
        with pytest.raises(redis.ResponseError, match="not an integer"):
            r.incr("a")


def test_keys_and_times(server, protocol):
    with connect(server, protocol, decode_responses=True) as r:
        r.set("a", 1, ex=10000)
        assert 9000 < r.ttl("a") <= 10000 and 9000000 < r.pttl("a") <= 10000000
        assert r.persist("a") is True and r.ttl("a") == -1
        assert r.expire("a", 5000, nx=True) and not r.expire("a", 5000, nx=True)
        assert r.rename("a", "b") is True and r.type("b") == "string"
        assert r.ttl("b") > 0
        assert r.randomkey() == "b"
        assert r.keys("*") == ["b"] and r.dbsize() == 1
        assert r.delete("b", "none") == 1 and r.ttl("b") == -2


def test_scan_returns_every_key_that_stays(server):
    with connect(server, 3, decode_responses=True) as r:
        stay = {f"stay:{i}" for i in range(scaled(3000, 500))}
        with r.pipeline(transaction=False) as p:
            for k in stay:
                p.set(k, 1)
            p.execute()
        seen = set()
        cursor = None
        while cursor != 0:
            cursor, keys = r.scan(cursor or 0, count=50)
            seen.update(keys)
            # The table grows and shrinks meanwhile.
            r.mset({f"more:{len(seen)}:{i}": 1 for i in range(30)})
            r.delete(*[f"more:{len(seen)}:{i}" for i in range(25)])
        assert stay <= seen
        assert set(r.scan_iter(match="stay:1*", count=100)) == {k for k in stay if k[5] == "1"}
        assert list(r.scan_iter(_type="vectorset")) == []


def test_sixteen_databases(server, protocol):
    clients = [connect(server, protocol, db=i) for i in range(16)]
    for i, r in enumerate(clients):
        r.set("who", i)
    assert [int(r.get("who")) for r in clients] == list(range(16))
    clients[3].flushdb()
    assert clients[3].dbsize() == 0 and clients[4].dbsize() == 1
    keyspace = clients[0].info("keyspace")
    assert "db15" in keyspace and "db3" not in keyspace
    with pytest.raises(redis.ResponseError, match="DB index is out of range"):
        connect(server, protocol, db=16).ping()


def test_pipeline_is_a_transaction_by_default(server, protocol):
    with connect(server, protocol) as r:
        with r.pipeline() as p:
            p.set("a", "word").incr("a").incr("b").get("a")
            replies = p.execute(raise_on_error=False)
        assert replies[0] is True and isinstance(replies[1], redis.ResponseError)
        assert replies[2:] == [1, b"word"]
        with r.pipeline() as p:
            p.set("never", 1)
            p.execute_command("NOSUCH")
            with pytest.raises(redis.ResponseError, match="unknown command"):
                p.execute()
        assert r.get("never") is None


def test_plain_pipeline(server, protocol):
    with connect(server, protocol) as r:
        n = scaled(5000, 500)
        with r.pipeline(transaction=False) as p:
            for i in range(n):
                p.set(f"k{i}", i)
                p.get(f"k{i}")
            replies = p.execute()
        assert replies[1::2] == [b"%d" % i for i in range(n)]


def test_optimistic_locking_counts_right(server):
    """Several threads add one by WATCH, GET, MULTI, SET, EXEC; every addition counts."""
    threads, each = 4, scaled(100, 20)
    retries = []
    all_have_read = threading.Barrier(threads)

    def add():
        with connect(server, 3) as r:
            for i in range(each):
                with r.pipeline() as p:
                    first = i == 0
                    while True:
                        try:
                            p.watch("n")
                            value = int(p.get("n") or 0)
                            if first:  # so that they collide at least once
                                first = False
                                all_have_read.wait()
                            p.multi()
                            p.set("n", value + 1)
                            p.execute()
                            break
                        except redis.WatchError:
                            retries.append(1)

    workers = [threading.Thread(target=add) for _ in range(threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert int(server.client().get("n")) == threads * each
    assert len(retries) >= threads - 1


@pytest.mark.parametrize(
    "change",
    [
        ("SET", "w", "2"),
        ("APPEND", "w", "2"),
        ("DEL", "w"),
        ("EXPIRE", "w", "100"),
        ("RENAME", "other", "w"),
        ("RENAME", "w", "elsewhere"),
        ("FLUSHDB",),
        ("FLUSHALL",),
        ("GETDEL", "w"),
    ],
    ids=lambda c: "-".join(c),
)
def test_watch_notices(server, protocol, change):
    with server.wire(protocol) as a, server.wire() as b:
        a.cmds([("MSET", "w", 1, "other", 1), ("WATCH", "w"), ("MULTI",), ("SET", "x", 1)])
        b.cmd(*change)
        reply = a.cmd("EXEC")
        assert a.raw == (b"*-1\r\n" if protocol == 2 else b"_\r\n"), reply
        assert a.cmd("EXISTS", "x") == 0


@pytest.mark.parametrize(
    "gone", [("DEL", "w"), ("FLUSHDB",), ("RENAME", "w", "x"), ("GETDEL", "w"), ("EXPIRE", "w", 0)]
)
def test_watch_notices_what_came_and_went(server, gone):
    """The key was not there at WATCH and is not at EXEC, but it was in between."""
    with server.wire() as a, server.wire() as b:
        a.cmds([("WATCH", "w", "other"), ("MULTI",), ("SET", "y", 1)])
        b.cmds([("SET", "w", 1), gone])
        a.cmd("EXEC")
        assert a.raw == b"*-1\r\n"
        a.cmds([("WATCH", "w"), ("MULTI",), ("SET", "y", 1)])
        b.cmds([("SET", "w", 1), gone, ("DEBUG", "RELOAD")])
        a.cmd("EXEC")
        assert a.raw == b"*-1\r\n", "also across a reload"
        a.cmds([("WATCH", "w"), ("MULTI",), ("SET", "y", 1)])
        assert a.cmd("EXEC") == ["OK"]


def test_watch_ignores_what_changes_nothing(server):
    with server.wire() as a, server.wire() as b:
        a.cmd("SET", "w", 1)
        a.cmd("WATCH", "w", "missing")
        b.cmds([("SET", "w", 2, "NX"), ("GET", "w"), ("DEL", "missing"), ("SET", "v", 1)])
        assert a.cmds([("MULTI",), ("SET", "x", 1), ("EXEC",)])[-1] == ["OK"]
        a.cmds([("WATCH", "w"), ("UNWATCH",)])
        b.cmd("SET", "w", 3)
        assert a.cmds([("MULTI",), ("GET", "w"), ("EXEC",)])[-1] == [b"3"]


def test_watch_sees_a_vector_set_change(server):
    with server.wire() as a, server.wire() as b:
        a.cmds([("VADD", "v", "VALUES", 2, 1, 0, "e"), ("WATCH", "v"), ("MULTI",), ("PING",)])
        b.cmd("VADD", "v", "VALUES", 2, 0, 1, "e")
        a.cmd("EXEC")
        assert a.raw == b"*-1\r\n"


def test_watch_sees_an_expiry(server, poll):
    with server.wire() as a, server.wire() as b:
        a.cmds([("SET", "w", 1, "PX", 30), ("WATCH", "w"), ("MULTI",), ("SET", "x", 1)])
        poll(lambda: b.cmd("EXISTS", "w") == 0, what="the key to expire")
        a.cmd("EXEC")
        assert a.raw == b"*-1\r\n"


def test_pool_shares_connections(server, protocol):
    pool = redis.BlockingConnectionPool(port=server.port, protocol=protocol, max_connections=4)
    r = redis.Redis(connection_pool=pool)
    r.set("n", 0)
    n = scaled(50, 10)

    def work():
        for _ in range(n):
            r.incr("n")

    workers = [threading.Thread(target=work) for _ in range(12)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert int(r.get("n")) == 12 * n
    pool.disconnect()


def test_client_reconnects_after_being_killed(server, protocol):
    with connect(server, protocol) as r, connect(server, protocol) as other:
        me = r.client_id()
        assert other.client_kill_filter(_id=me) == 1
        assert r.ping() is True
        assert r.client_id() != me


@pytest.mark.asyncio
async def test_asyncio(server, protocol):
    async with redis.asyncio.Redis(
        port=server.port, protocol=protocol, decode_responses=True
    ) as r:
        assert await r.ping() is True
        await asyncio.gather(*(r.incr("n") for _ in range(100)))
        assert await r.get("n") == "100"
        async with r.pipeline(transaction=True) as p:
            assert await p.set("a", 1).incr("a").execute() == [True, 2]
        async with r.pipeline(transaction=False) as p:
            for i in range(500):
                p.set(f"k{i}", i)
            assert await p.execute() == [True] * 500
        assert len([k async for k in r.scan_iter(match="k*")]) == 500


@pytest.mark.asyncio
async def test_asyncio_optimistic_locking(server):
    async with redis.asyncio.Redis(port=server.port) as r:

        async def add():
            def body(p):
                p.multi()
                p.incr("n")

            for _ in range(20):
                await r.transaction(body, "n")

        await asyncio.gather(*(add() for _ in range(5)))
        assert int(await r.get("n")) == 100


def test_vector_commands_of_the_client(server, protocol):
    """redis-py's own vector set methods."""
    with connect(server, protocol, decode_responses=True) as r:
        v = r.vset()
        assert v.vadd("v", [1.0, 0.0, 0.0], "x") == 1
        assert v.vadd("v", [0.0, 1.0, 0.0], "y") == 1
        assert v.vadd("v", b"\x00\x00\x80?\x00\x00\x80?\x00\x00\x00\x00", "xy") == 1
        assert v.vcard("v") == 3 and v.vdim("v") == 3
        assert v.vsim("v", "x", count=2) == ["x", "xy"]
        scores = v.vsim("v", [1.0, 0.0, 0.0], with_scores=True)
        assert scores["x"] == pytest.approx(1, abs=0.01)
        assert scores["y"] == pytest.approx(0.5, abs=0.01)
        assert v.vemb("v", "y") == pytest.approx([0, 1, 0], abs=0.01)
        raw = v.vemb("v", "y", raw=True)
        assert raw["quantization"] == "int8" and raw["l2"] == pytest.approx(1)
        assert v.vinfo("v")["quant-type"] == "int8"
        assert v.vrandmember("v") in ("x", "y", "xy")
        assert v.vrem("v", "x") == 1 and v.vrem("v", "x") == 0
        assert v.vcard("v") == 2
