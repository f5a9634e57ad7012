"""Every vector set command against a model in Python: a thousand random calls each, in both
protocols, right and wrong ones, the replies with their types, and nothing changed by an error.

KITH_SEED repeats a run. KITH_ORACLE_PORT asks another server on that port instead (which is
emptied!); the model itself was proven so against Redis 8.8, see tests/README.md.
"""

import os
import random

import pytest

import vset_oracle
from kithtest import LONG, Maker, ReplyError, Wire, scaled
from vset_oracle import Oracle
from vset_random import STRING_KEY, Generator

SEED = int(os.environ.get("KITH_SEED", 0)) or random.SystemRandom().randrange(1, 2**31)
PORT = int(os.environ.get("KITH_ORACLE_PORT", 0))
CALLS = scaled(10000 if LONG else 1000, 150)

READERS = ["VSIM", "VCARD", "VDIM", "VEMB", "VLINKS", "VINFO", "VGETATTR", "VRANDMEMBER"]
READERS += ["VISMEMBER", "VRANGE"]
WRITERS = ["VADD", "VREM", "VSETATTR"]
OURS = ["VCREATE", "VMADD", "VGET", "VRECOMMEND"]


class Peer:
    """The server asked, whichever it is."""

    def __init__(self, port):
        self.wires = {p: Wire(port, protocol=p) for p in (2, 3)}
        info = self.wires[2].cmd("INFO", "server").decode()
        self.is_kith = "kith_version" in info
        assert self.is_kith or PORT, "the server just started does not say that it is kith"
        digest = self.wires[2].cmd("DEBUG", "DIGEST")
        self.has_digest = not isinstance(digest, ReplyError)

    def digest(self):
        return self.wires[2].cmd("DEBUG", "DIGEST") if self.has_digest else None

    def close(self):
        for w in self.wires.values():
            w.close()


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    if PORT:
        peer = Peer(PORT)
        yield peer
        peer.close()
        return
    maker = Maker(tmp_path_factory.mktemp("oracle"))
    server = maker("--appendfsync", "no", "--checkpoint-interval", 1)
    peer = Peer(server.port)
    yield peer
    peer.close()
    maker.finish()


@pytest.fixture(scope="module")
def oracle(peer):
    o = Oracle(redis=not peer.is_kith)
    print(f"\nseed {SEED}: KITH_SEED={SEED} repeats it; against", end=" ")
    print("kith" if peer.is_kith else "Redis")
    yield o
    print("\n" + o.report())


def shown(words):
    return " ".join(repr(w)[1:] if len(w) < 90 else f"'{w[:20]!r}...{len(w)} bytes'" for w in words)


class Run:
    """Sends the generator's commands and compares."""

    def __init__(self, peer, oracle, name):
        self.peer, self.oracle = peer, oracle
        self.r = random.Random(f"{SEED} {name}")
        self.g = Generator(self.r, redis=oracle.redis)
        self.steps = 0
        wire = peer.wires[2]
        assert wire.cmd("FLUSHALL") == "OK"
        oracle.keys.clear()
        wire.cmd("SET", STRING_KEY, "x")
        oracle.keys[STRING_KEY] = b"x"
        for _ in range(scaled(300, 120)):
            if not oracle.redis and self.g.chance(0.1):
                self.one(self.g.vcreate(), self.r.choice([2, 3]))
            self.one(self.g.vadd(), self.r.choice([2, 3]))

    def one(self, words, protocol):
        """One call; True when the reply was an error."""
        self.steps += 1
        expected = self.oracle.call(words, protocol)
        wire = self.peer.wires[protocol]
        try:
            reply = wire.cmd(*words)
        except OSError as e:
            raise AssertionError(f"seed {SEED}, step {self.steps}: {e} at {shown(words)}") from e
        if p := vset_oracle.problem(expected, wire.raw):
            raise AssertionError(
                f"seed {SEED}, step {self.steps}, RESP{protocol}: {shown(words)}\n"
                f"  {p}\n  expected {str(expected)[:2000]}\n  got      {wire.raw[:2000]!r}"
            )
        return isinstance(reply, ReplyError)

    def checked(self, words, protocol):
        """One call of a writer: what was refused has changed nothing."""
        before = self.peer.digest()
        if self.one(words, protocol):
            after = self.peer.digest()
            assert before == after, f"seed {SEED}: refused, and yet: {shown(words)}"

    def audit(self):
        """The whole data against the model."""
        for key, s in list(self.oracle.keys.items()):
            if isinstance(s, bytes):
                continue
            for words in (["VRANGE", key, "-", "+"], ["VINFO", key], ["VCARD", key]):
                self.one([w if isinstance(w, bytes) else w.encode() for w in words], 3)
            for name in list(s.elements):
                self.one([b"VEMB", key, name], 2)
                self.one([b"VGETATTR", key, name], 2)


def skip_ours(oracle, name):
    if oracle.redis and name in OURS:
        pytest.skip(f"Redis has no {name}")


@pytest.mark.parametrize("name", READERS + ["VGET", "VRECOMMEND"])
def test_reader(peer, oracle, name):
    skip_ours(oracle, name)
    run = Run(peer, oracle, name)
    for _ in range(CALLS):
        words = run.g.command(name)
        run.one(words, 2)
        run.one(words, 3)
        if run.g.chance(0.1):
            run.one(run.g.change(), run.r.choice([2, 3]))


@pytest.mark.parametrize("name", WRITERS + ["VCREATE", "VMADD"])
def test_writer(peer, oracle, name):
    skip_ours(oracle, name)
    run = Run(peer, oracle, name)
    for i in range(CALLS):
        for protocol in (2, 3):
            run.checked(run.g.command(name), protocol)
        if run.g.chance(0.3 if name != "VADD" else 0.05):
            run.one(run.g.change(), run.r.choice([2, 3]))
    run.audit()


def test_deleted_to_the_last(peer, oracle):
    """The key goes with its last element, and a new set is free to be another."""
    run = Run(peer, oracle, "emptied")
    for _ in range(3):
        for key, s in list(run.oracle.keys.items()):
            if isinstance(s, bytes):
                continue
            if s.declared:
                assert peer.wires[2].cmd("DEL", key) == 1
                del oracle.keys[key]
                continue
            names = list(s.elements)
            run.r.shuffle(names)
            for name in names:
                run.one([b"VREM", key, name], run.r.choice([2, 3]))
            for words in ([b"VCARD", key], [b"VDIM", key], [b"VSIM", key, b"ELE", b"x"]):
                run.one(words, 3)
        assert peer.wires[2].cmd("DBSIZE") == 1
        for _ in range(scaled(100, 30)):
            run.one(run.g.vadd(), run.r.choice([2, 3]))


# For each difference the requests that show it, in a set of the name v. A difference that is no
# longer there makes its requests fail, as the model then expects what is not so.
ALONE = [["VADD", "v", "VALUES", 2, 1, 2, "e", "SETATTR", '{"year":1,"age":2,"tags":["a"]}']]
EXAMPLES = {
    "json": [*ALONE, ["VSETATTR", "v", "e", "no json"]],
    "missing value": [*ALONE, ["VSIM", "v", "ELE", "e", "COUNT"]],
    "vector kind": [*ALONE, ["VSIM", "v", "BAD", "e"]],
    "empty attribute": [
        ["VADD", "v", "VALUES", 2, 1, 2, "e", "SETATTR", ""],
        ["VGETATTR", "v", "e"],
        ["VSIM", "v", "ELE", "e", "FILTER", "1 == 1"],
    ],
    "finite": [["VADD", "v", "VALUES", 2, "inf", 2, "e"]],
    "name": [["VADD", "v", "VALUES", 2, 1, 2, b"n" * 65536]],
    "filter grammar": [
        *ALONE,
        ["VSIM", "v", "ELE", "e", "FILTER", "5 not"],
        ["VSIM", "v", "ELE", "e", "FILTER", "not not .year"],
        ["VSIM", "v", "ELE", "e", "FILTER", ".year > 1e-5"],
        ["VSIM", "v", "ELE", "e", "FILTER", "(.year != null)"],
    ],
    "filter-ef 0": [*ALONE, ["VSIM", "v", "ELE", "e", "FILTER", ".year", "FILTER-EF", 0]],
    "random count": [*ALONE, ["VRANDMEMBER", "v", -(2**63)]],
    "json twice": [
        ["VADD", "v", "VALUES", 2, 1, 2, "e", "SETATTR", '{"a":1,"a":2}'],
        ["VSIM", "v", "ELE", "e", "FILTER", ".a == 2"],
        ["VSIM", "v", "ELE", "e", "FILTER", ".a == 1"],
    ],
    "json escapes": [
        ["VADD", "v", "VALUES", 2, 1, 2, "e", "SETATTR", '{"a":"\\u0041","\\u0062":1}'],
        ["VSIM", "v", "ELE", "e", "FILTER", ".a == 'A'"],
        ["VSIM", "v", "ELE", "e", "FILTER", ".a == 'u0041'"],
        ["VSIM", "v", "ELE", "e", "FILTER", ".b == 1"],
    ],
    "attributes count": [
        *ALONE,
        ["VADD", "v", "VALUES", 2, 2, 1, "f", "CAS", "SETATTR", '{"a":1}'],
        ["VINFO", "v"],
    ],
    "large count": [*ALONE, ["VSIM", "v", "ELE", "e", "COUNT", 2**40]],
    "reduce overflow": [["VADD", "v", "REDUCE", 2**32, "VALUES", 2, 1, 2, "e"]],
}


@pytest.mark.parametrize("difference", vset_oracle.DIFFERENCES)
def test_difference_is_there(peer, oracle, difference):
    if oracle.redis and difference == "random count":
        pytest.skip("Redis ends at this")
    run = Run(peer, oracle, difference)
    before = oracle.seen[difference]
    for protocol in (2, 3):
        peer.wires[2].cmd("DEL", "v")
        oracle.keys.pop(b"v", None)
        for words in EXAMPLES[difference]:
            run.one([w if isinstance(w, bytes) else str(w).encode() for w in words], protocol)
    assert oracle.redis or oracle.seen[difference] > before
