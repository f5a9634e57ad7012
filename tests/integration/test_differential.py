"""The same thousands of seeded random commands to kith and to Debian's redis-server, valid and
invalid ones; every reply must have the same bytes.

Where Redis leaves the answer open (the order of KEYS, the choice of RANDOMKEY, the steps of SCAN,
the milliseconds of a time to live) a comparison of that command's own stands for equality of
bytes. What differs on purpose is in INTENDED and is printed.
"""

import random
import shutil
import subprocess

import pytest

from kithtest import LONG, NULL_ARRAY, Maker, ReplyError, Simple, Wire, encode, free_port, scaled, wait_until

INTENDED = {
    # The first words of a request: why its reply differs from that of Redis 7.0.
    ("CLIENT", "SETINFO"): "came with Redis 7.2",
    ("CLIENT", "NO-TOUCH"): "came with Redis 7.2",
    ("COMMAND", "GETKEYS", "PING"): "the arity is that of Redis 7.2 and later",
    ("HELLO",): "names this server's version and connection",
    ("CLIENT", "ID"): "numbers differ",
    ("SCAN", ""): "an empty word is no cursor",
    ("SCAN", "-1"): "a negative number is no cursor",
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not installed: nothing to compare with")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    with open(folder / "log", "wb") as log:
        p = subprocess.Popen(
            [program, "--port", str(port), "--save", "", "--dir", str(folder)],
            stdout=log,
            stderr=log,
        )

    def serves():
        assert p.poll() is None, (folder / "log").read_text()
        try:
            with Wire(port) as w:
                return w.cmd("PING") == "PONG"
        except OSError:
            return False

    wait_until(serves, 10, "redis-server")
    print(f"\ncompared with {version.split(' sha')[0]}; intended differences:")
    for words, why in INTENDED.items():
        print(f"  {' '.join(words)}: {why}")
    print(f"  inside MULTI, refused: {b' '.join(sorted(NOT_IN_MULTI)).decode()}")
    yield port
    p.terminate()
    p.wait()


@pytest.fixture(scope="module")
def own_server(tmp_path_factory):
    """One that does not wait for the disk at every reply, so that more commands can be compared."""
    maker = Maker(tmp_path_factory.mktemp("differential"))
    yield maker("--appendfsync", "no", "--checkpoint-interval", 1)
    maker.finish()


@pytest.fixture
def server(own_server):
    return own_server


# --- random requests ---------------------------------------------------------------------------

# They look into the whole server and are refused inside a transaction; Redis queues them.
NOT_IN_MULTI = {b"CONFIG", b"DEBUG"}
KEYS = [b"a", b"b", b"c", b"key:1", b"key:2", b"", b"\x00\xff\r\n", b"\xc3\xa9", b"k" * 300]
VALUES = [
    b"",
    b"x",
    b"0",
    b"-1",
    b"17",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"3.5",
    b" 1",
    b"1 ",
    b"+1",
    b"01",
    b"-0",
    b"\r\n",
    b"\x00",
    b"word" * 50,
]
NUMBERS = [b"0", b"1", b"-1", b"100", b"1000", b"5000000000", b"abc", b"", b"1.5", b"1e3"] + [
    b"9223372036854775807",
    b"-9223372036854775808",
    b"99999999999999999999",
]
PATTERNS = [b"*", b"key:*", b"?", b"[ab]", b"[^a]", b"[a-c]", b"k*", b"\\*", b"nothing", b"", b"*a*"]
FAR = [b"100", b"100000", b"4000000000"]  # times to live that do not end during the test
FAR_AT = [b"4000000000", b"4100000000"]
PAST = [b"1", b"1000"]
OPTIONS = [b"NX", b"XX", b"GET", b"KEEPTTL", b"nx", b"gT", b"LT", b"", b"EX", b"wrong"]


class Writer:
    """Makes requests. Each method of COMMANDS returns one."""

    def __init__(self, rng):
        self.r = rng

    def key(self):
        return self.r.choice(KEYS)

    def value(self):
        return self.r.choice(VALUES)

    def some(self, make, least, most):
        return [make() for _ in range(self.r.randint(least, most))]

    def set(self):
        out = [b"SET", self.key(), self.value()]
        while self.r.random() < 0.45:
            pick = self.r.random()
            if pick < 0.5:
                out.append(self.r.choice(OPTIONS[:4]))
            elif pick < 0.8:
                unit = self.r.choice([b"EX", b"PX", b"ex"])
                far = [b"100", b"4000"] if unit != b"PX" else [b"100000", b"4000000"]
                out += [unit, self.r.choice(far + NUMBERS[6:10] + [b"0", b"-5"])]
            elif pick < 0.9:
                out += [b"EXAT", self.r.choice(FAR_AT + [b"0", b"9223372036854775807"])]
            else:
                out.append(self.r.choice(OPTIONS))
        return out

    def expire(self):
        name = self.r.choice([b"EXPIRE", b"PEXPIRE", b"EXPIREAT", b"PEXPIREAT"])
        times = {
            b"EXPIRE": [b"100", b"5000", b"0", b"-1"],
            b"PEXPIRE": [b"100000", b"5000000", b"0", b"-1"],
            b"EXPIREAT": FAR_AT + PAST,
            b"PEXPIREAT": [t + b"000" for t in FAR_AT] + PAST,
        }[name]
        # Not 1 s or 1000 ms from now: that would end during the test.
        odd = [b"abc", b"", b"1.5", b"9223372036854775807", b"-9223372036854775808"]
        out = [name, self.key(), self.r.choice(times + times + odd)]
        while self.r.random() < 0.35:
            out.append(self.r.choice([b"NX", b"XX", b"GT", b"LT", b"lt", b"bad", b""]))
        return out

    def scan(self):
        out = [b"SCAN", self.r.choice([b"0"] * 5 + [b"x", b"1x", b"99999999999999999999999"])]
        for _ in range(self.r.randint(0, 2)):
            out += self.r.choice(
                [
                    [b"MATCH", self.r.choice(PATTERNS)],
                    [b"COUNT", self.r.choice([b"100000", b"0", b"-1", b"x"])],
                    [b"TYPE", self.r.choice([b"string", b"STRING", b"list"])],
                    [b"MATCH"],
                    [b"other", b"1"],
                ]
            )
        # One step must reach the end, or the steps would have to be compared.
        return out if b"COUNT" in out else out + [b"COUNT", b"100000"]

    def wrong(self):
        """A command that is none, or has too few or too many words."""
        if self.r.random() < 0.3:
            return [self.r.choice([b"NOSUCH", b"", b"GETT", b"\x00", b"x" * 200])] + self.some(
                self.value, 0, 3
            )
        if self.r.random() < 0.2:
            return self.r.choice(
                [
                    [b"CLIENT", b"NOSUCH"],
                    [b"CLIENT"],
                    [b"CONFIG", b"nosuch", b"x"],
                    [b"CLIENT", b"KILL"],
                    [b"CLIENT", b"REPLY", b"x"],
                    [b"CLIENT", b"SETNAME", b"a b"],
                    [b"CLIENT", b"KILL", b"ID", b"x"],
                    [b"CLIENT", b"KILL", b"1.2.3.4:5"],
                    [b"CLIENT", b"NO-EVICT", b"x"],
                    [b"COMMAND", b"nosuch"],
                    [b"COMMAND", b"GETKEYS"],
                    [b"COMMAND", b"GETKEYS", b"SET", b"k", b"v"],
                    [b"COMMAND", b"GETKEYS", b"MSET", b"k", b"v", b"l", b"w"],
                    [b"COMMAND", b"GETKEYS", b"nosuch", b"x"],
                    [b"SLOWLOG", b"GET", b"x"],
                    [b"SLOWLOG", b"nosuch"],
                    [b"SHUTDOWN", b"bad"],
                    [b"SHUTDOWN", b"ABORT"],
                    [b"HELLO", b"x"],
                    [b"HELLO", b"9"],
                    [b"HELLO", b"2", b"bad"],
                    [b"AUTH", b"x"],
                    [b"AUTH", b"x", b"y"],
                    [b"AUTH", b"x", b"y", b"z"],
                    [b"AUTH", b"default", b"anything"],
                    [b"DEBUG"],
                    [b"MEMORY", b"USAGE"],
                    [b"MEMORY", b"nosuch"],
                    [b"MODULE", b"nosuch"],
                    [b"CONFIG", b"SET", b"nosuch-setting", b"1"],
                    [b"CONFIG", b"SET", b"maxclients"],
                    [b"CONFIG", b"GET"],
                    [b"CONFIG", b"GET", b"nosuch-setting"],
                    [b"CONFIG", b"SET", b"timeout", b"-1"],
                    [b"CONFIG", b"SET", b"timeout", b"0", b"timeout", b"1"],
                    [b"CONFIG", b"SET", b"appendfsync", b"sometimes"],
                    [b"CONFIG", b"SET", b"maxmemory", b"much"],
                    [b"CONFIG", b"SET", b"port2", b"much"],
                    [b"CONFIG", b"REWRITE"],
                    [b"FLUSHALL", b"bad"],
                    [b"FLUSHDB", b"SYNC", b"ASYNC"],
                ]
            )
        name = self.r.choice(
            b"GET SET MGET MSET GETDEL INCR INCRBY DECR DECRBY APPEND STRLEN DEL UNLINK EXISTS TYPE "
            b"RENAME EXPIRE TTL PTTL PERSIST KEYS SCAN DBSIZE RANDOMKEY MULTI WATCH UNWATCH DISCARD "
            b"ECHO PING SELECT LASTSAVE RESET".split()
        )
        few = self.r.choice([0, 0, 1])
        if name in (b"PING", b"LASTSAVE", b"RESET", b"DBSIZE", b"RANDOMKEY", b"MULTI", b"UNWATCH"):
            few = 5
        if name == b"DISCARD":
            few = 5
        if few == 1 and name in (b"MGET", b"DEL", b"UNLINK", b"EXISTS", b"WATCH", b"KEYS", b"SCAN"):
            few = 0
        return [name] + self.some(self.key, few, few)

    def request(self):
        k, v, r = self.key, self.value, self.r
        makers = [
            (20, self.set),
            (10, lambda: [b"GET", k()]),
            (5, lambda: [b"MGET"] + self.some(k, 1, 4)),
            (4, lambda: [b"MSET"] + sum(([k(), v()] for _ in range(r.randint(1, 3))), [])),
            (1, lambda: [b"MSET", k(), v(), k()]),
            (4, lambda: [b"GETDEL", k()]),
            (6, lambda: [r.choice([b"INCR", b"DECR"]), k()]),
            (6, lambda: [r.choice([b"INCRBY", b"DECRBY"]), k(), r.choice(NUMBERS)]),
            (6, lambda: [b"APPEND", k(), v()]),
            (4, lambda: [b"STRLEN", k()]),
            (5, lambda: [r.choice([b"DEL", b"UNLINK", b"del"])] + self.some(k, 1, 3)),
            (4, lambda: [b"EXISTS"] + self.some(k, 1, 4)),
            (3, lambda: [b"TYPE", k()]),
            (4, lambda: [b"RENAME", k(), k()]),
            (12, self.expire),
            (4, lambda: [b"PERSIST", k()]),
            (5, lambda: [b"TTL", k()]),
            (5, lambda: [b"PTTL", k()]),
            (3, lambda: [b"KEYS", r.choice(PATTERNS)]),
            (4, self.scan),
            (3, lambda: [b"DBSIZE"]),
            (2, lambda: [b"RANDOMKEY"]),
            (4, lambda: [b"SELECT", r.choice([b"0", b"0", b"1", b"15", b"16", b"-1", b"x", b""])]),
            (9, lambda: [b"MULTI"]),
            (8, lambda: [b"EXEC"]),
            (2, lambda: [b"DISCARD"]),
            (4, lambda: [b"WATCH"] + self.some(k, 1, 2)),
            (1, lambda: [b"UNWATCH"]),
            (1, lambda: [r.choice([b"FLUSHDB", b"FLUSHALL"])] + r.choice([[], [b"ASYNC"], [b"SYNC"]])),
            (2, lambda: [b"ECHO", v()]),
            (2, lambda: [b"PING"] + self.some(v, 0, 2)),
            (1, lambda: [b"CLIENT", b"SETNAME", r.choice([b"me", b"", b"a b", b"\n"])]),
            (1, lambda: [b"CLIENT", b"GETNAME"]),
            (10, self.wrong),
        ]
        return r.choices([m for _, m in makers], [n for n, _ in makers])[0]()


# --- comparing ---------------------------------------------------------------------------------


def same_value(request, ours, theirs):
    """Whether two parsed replies of one request agree where Redis leaves the answer open."""
    name = request[0].upper()
    if type(ours) is not type(theirs):
        return name == b"RANDOMKEY" and None not in (ours, theirs)
    if name in (b"TTL", b"PTTL") and isinstance(ours, int):
        near = 2 if name == b"TTL" else 2000
        return (ours < 0) == (theirs < 0) and abs(ours - theirs) <= (near if ours >= 0 else 0)
    if name == b"KEYS" and isinstance(ours, list):
        return sorted(ours) == sorted(theirs)
    if name == b"SCAN" and isinstance(ours, list):
        return ours[0] == theirs[0] and sorted(ours[1]) == sorted(theirs[1])
    if name == b"RANDOMKEY":
        return (ours is None) == (theirs is None)
    if name == b"LASTSAVE":
        return True
    if name == b"CONFIG" and isinstance(ours, ReplyError):
        # The texts of kith name the setting and what is allowed; Redis' begin is kept.
        return ours.split()[0] == theirs.split()[0]
    return ours == theirs


def compare(request, queued, ours, theirs):
    (value, raw), (expected, expected_raw) = ours, theirs
    if raw == expected_raw:
        return True
    if request[0].upper() == b"EXEC" and isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) == len(queued) and all(
            same_value(q, a, b) for q, a, b in zip(queued, value, expected)
        )
    return same_value(request, value, expected)


def dump(wire):
    """Everything: databases, keys, values, whether they will end."""
    out = []
    for db in range(16):
        wire.cmd("SELECT", db)
        for key in sorted(wire.cmd("KEYS", "*")):
            out.append((db, key, wire.cmd("GET", key), wire.cmd("TTL", key) >= 0))
    return out


def run(seed, n, server, peer, protocol):
    rng = random.Random(seed)
    writer = Writer(rng)
    queued, trail = [], []
    with server.wire(protocol) as a, Wire(peer, protocol=protocol) as b:
        for w in (a, b):
            w.cmd("FLUSHALL")
        in_multi = False
        for i in range(n):
            request = writer.request()
            while in_multi and request[0] in NOT_IN_MULTI:
                request = writer.request()
            if in_multi and rng.random() < 0.15:
                request = [b"EXEC"]
            trail.append(request)
            ours = a.cmd(*request), a.raw
            theirs = b.cmd(*request), b.raw
            assert compare(request, queued, ours, theirs), (
                f"seed {seed}, request {i}, RESP{protocol}: {request}\n kith  {ours[1][:500]!r}\n "
                f"redis {theirs[1][:500]!r}\nqueued {queued}\nbefore: {trail[-6:]}"
            )
            name = request[0].upper()
            if name == b"RESET":
                a.cmd("HELLO", protocol), b.cmd("HELLO", protocol)
            if theirs[0] == "QUEUED":
                queued.append(request)
            elif name in (b"MULTI", b"EXEC", b"DISCARD", b"RESET") and theirs[1][:1] != b"-":
                queued.clear()
                in_multi = name == b"MULTI"
            elif name == b"EXEC":
                queued.clear()
                in_multi = False
        for w in (a, b):
            w.cmd("DISCARD")
        assert dump(a) == dump(b), f"seed {seed}: the data differ"


@pytest.mark.parametrize("seed", range(40 if LONG else 3))
def test_random_commands(server, peer, protocol, seed):
    run(seed, scaled(4000, 500), server, peer, protocol)


def test_fresh_random_commands(server, peer, protocol):
    """A seed nobody has seen; it is in the message when this fails."""
    run(random.SystemRandom().randrange(1 << 32), scaled(4000, 500), server, peer, protocol)


def test_two_clients_watch_each_other(server, peer):
    """Interleaved transactions of two clients on few keys end alike."""
    rng = random.Random(7)
    ours = [server.wire(), server.wire()]
    theirs = [Wire(peer), Wire(peer)]
    for w in (ours[0], theirs[0]):
        w.cmd("FLUSHALL")
    aborted = 0
    for _ in range(scaled(4000, 800)):
        who = rng.randrange(2)
        key = rng.choice([b"a", b"b"])
        request = rng.choice(
            [
                [b"WATCH", key],
                [b"MULTI"],
                [b"EXEC"],
                [b"EXEC"],
                [b"DISCARD"],
                [b"SET", key, b"1"],
                [b"SET", key, b"1", b"NX"],
                [b"DEL", key],
                [b"INCR", key],
                [b"EXPIRE", key, b"1000"],
                [b"PERSIST", key],
                [b"RENAME", b"a", b"b"],
                [b"SELECT", rng.choice([b"0", b"0", b"1"])],
                [b"FLUSHDB"],
                [b"GET", key],
            ]
        )
        for w in (ours[who], theirs[who]):
            w.cmd(*request)
        assert ours[who].raw == theirs[who].raw, request
        aborted += ours[who].raw == b"*-1\r\n"
    assert aborted > 5
    for w in ours + theirs:
        w.close()


def test_a_time_that_has_passed(server, peer, protocol):
    """SET with a time in the past is left out above: Redis counts the key until somebody looks."""
    for options in [["EXAT", 1], ["PXAT", 1], ["EXAT", 1, "GET"], ["PXAT", 1, "NX"]]:
        replies = []
        for w in (server.wire(protocol), Wire(peer, protocol=protocol)):
            w.cmds([("DEL", "k"), ("SET", "k", "old")] if "NX" not in options else [("DEL", "k")])
            w.cmd("SET", "k", "v", *options)
            replies.append((w.raw, w.cmd("GET", "k"), w.cmd("EXISTS", "k")))
            w.cmd("FLUSHALL")
            w.close()
        assert replies[0] == replies[1], options


def test_protocol_errors_have_the_same_text(server, peer):
    """What is no request: the same message, then the end of the connection."""
    for sent in [
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$x\r\n",
        b"*99999999999\r\n",
        b"*x\r\n",
        b"*2\r\n$4\r\nPING\r\nPING\r\n",
        b"*1\r\n$99999999999\r\n",
        b'set a "unbalanced\r\n',
        b"set a 'unbalanced\r\n",
        b"$" * 70000,
    ]:
        replies = []
        for port in (server.port, peer):
            with Wire(port, timeout=3) as w:
                w.send_bytes(sent)
                try:
                    reply = w.read()
                    replies.append((reply, w.closed()))
                except ConnectionError:
                    replies.append("closed")
                except TimeoutError:
                    replies.append("silent")
        assert replies[0] == replies[1], (sent[:60], replies)


def test_not_an_error_in_either(server, peer):
    """Empty requests, empty lines, and odd but valid inline commands."""
    for sent in [
        b"\r\nPING\r\n",
        b"*0\r\nPING\r\n",
        b"*-1\r\nPING\r\n",
        b"*-99999999999999\r\nPING\r\n",
        b"  PING   x \r\n",
        b"PING\n",
        b"ECHO \"a\\x41\\n\\\"b\"\r\n",
        b"ECHO 'a\\'b'\r\n",
        b"ECHO \"\"\r\n",
        b"SET a b\r\nGET a\r\n"[9:],
        b"\t\r\n\r\n*1\r\n$4\r\nping\r\n",
    ]:
        replies = []
        for port in (server.port, peer):
            with Wire(port) as w:
                w.send_bytes(sent)
                w.read()
                replies.append(w.raw)
        assert replies[0] == replies[1], (sent, replies)


def test_intended_differences_are_still_there(server, peer):
    """An entry of INTENDED that is no longer true must go."""
    arguments = {
        ("CLIENT", "SETINFO"): ["LIB-NAME", "x"],
        ("CLIENT", "NO-TOUCH"): ["on"],
    }
    for words in INTENDED:
        with server.wire() as a, Wire(peer) as b:
            request = [*words, *arguments.get(words, [])]
            a.cmd(*request), b.cmd(*request)
            assert a.raw != b.raw, words


def test_refused_inside_multi(server, peer):
    """NOT_IN_MULTI, of which Debian's redis-server has DEBUG switched off."""
    with server.wire() as a, Wire(peer) as b:
        a.cmd("MULTI"), b.cmd("MULTI")
        words = ["CONFIG", "GET", "maxmemory"]
        assert a.cmd(*words) == "ERR Command not allowed inside a transaction"
        assert b.cmd(*words) == "QUEUED"
        assert a.cmd("EXEC").startswith("EXECABORT")


def test_large_pipeline_is_the_same(server, peer):
    rng = random.Random(11)
    writer = Writer(rng)
    avoid = {b"MULTI", b"EXEC", b"TTL", b"PTTL", b"KEYS", b"SCAN", b"RANDOMKEY", b"RESET"}
    avoid |= {b"LASTSAVE", b"CONFIG", b"MONITOR"}
    requests = []
    while len(requests) < scaled(10000, 2000):
        q = writer.request()
        if q[0].upper() not in avoid:
            requests.append(q)
    raws = []
    for port in (server.port, peer):
        with Wire(port) as w:
            w.cmd("FLUSHALL")
            w.send_bytes(b"".join(encode(*q) for q in requests))
            raw = []
            for _ in requests:
                w.read()
                raw.append(w.raw)
            raws.append(raw)
    for q, ours, theirs in zip(requests, *raws):
        assert ours == theirs, q


def test_replies_have_types():
    """The comparison itself can tell what it must."""
    assert not same_value([b"GET", b"k"], b"x", Simple("x"))
    assert not same_value([b"EXEC"], NULL_ARRAY, None)
    assert not same_value([b"TTL", b"k"], 5, -1)
    assert same_value([b"TTL", b"k"], 5, 6)
    assert not same_value([b"KEYS", b"*"], [b"a"], [b"b"])
