"""VREEMBED: a set gets another model's vectors in the background and in one step, whatever happens
meanwhile: writers, searches, kills, models that die, the set's end.

Most of it runs with the fake engine, whose vectors tell text and model, so that every vector of a
set can be held against a model in memory; what only real models have is tested with them."""

import json
import os
import pathlib
import random
import signal
import threading
import time

import numpy as np
import pytest

from fake_engine import vector_of
from kithtest import (
    BIN, F32_MODEL, Q8_MODEL, ReplyError, run_program, scaled, together, wait_until,
)

NEVER_MS = 3_600_000
FAKE_ENGINE = pathlib.Path(__file__).with_name("fake_engine.py")
DIM = {"old": 8, "new": 12}


def pairs(reply):
    if not isinstance(reply, dict):
        reply = dict(zip(reply[::2], reply[1::2]))
    text = lambda x: x.decode() if isinstance(x, bytes) else x  # noqa: E731
    return {text(k): text(v) for k, v in reply.items()}


def ok(reply):
    assert reply == "OK", reply


def error(reply, *words):
    assert isinstance(reply, ReplyError), reply
    for word in words:
        assert word in reply, reply


def job(w, key="v"):
    """The fields of VINFO about it, without their prefix."""
    info = pairs(w.cmd("VINFO", key))
    return {k[len("reembed-") :]: v for k, v in info.items() if k.startswith("reembed-")}


def wait_done(w, key="v"):
    def over():
        j = job(w, key)
        assert j["state"] != "failed", j
        return j["state"] == "none"

    wait_until(over, 60, "the job to end")


def wait_failed(w, key="v"):
    return wait_until(lambda: job(w, key)["state"] == "failed" and job(w, key), 60, "it to fail")


class Fakes:
    """Two models, old and new; answers of one that is held come when it is let go."""

    def __init__(self, folder):
        self.folder = folder
        self.paths, self.hashes = {}, {}
        for name, dim in DIM.items():
            what = {"name": f"the {name} one", "dim": dim, "dims": f"4,{dim}",
                    "hold": str(folder / f"hold-{name}")}
            self.paths[name] = folder / f"{name}.fake"
            self.paths[name].write_text(json.dumps(what))

    def options(self, *names):
        return [x for n in names or ("old", "new") for x in ("--model", n, self.paths[n])]

    def hold(self, name="new"):
        (self.folder / f"hold-{name}").write_text("")

    def let_go(self, name="new"):
        (self.folder / f"hold-{name}").unlink(missing_ok=True)


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


@pytest.fixture
def start(make_server, fakes):
    def run(*options, names=("old", "new"), **keywords):
        env = {"KITH_ENGINE": str((BIN / "kith-engine").resolve())}
        s = make_server(
            "--engine-path", FAKE_ENGINE, "--engine-timeout-ms", NEVER_MS,
            *fakes.options(*names), *options, env=env, **keywords,
        )
        learn(s, fakes)
        return s

    yield run
    fakes.let_go("old")
    fakes.let_go("new")


def learn(s, fakes):
    """Waits until the models are ready."""
    with s.wire() as w:

        def ready():
            models = [pairs(m) for m in w.cmd("MODEL", "LIST")]
            return all(m["state"] == "ready" for m in models) and models

        for m in wait_until(ready, 30, "the models"):
            fakes.hashes[m["name"]] = pairs(w.cmd("MODEL", "INFO", m["name"]))["hash"]


@pytest.fixture
def s(start):
    return start("--io-threads", 2)


@pytest.fixture
def w(s):
    with s.wire(3, timeout=60) as w:
        yield w


# --- the model in memory ---


class Oracle(dict):
    """name -> (text, attributes or None, seconds to live or None)."""

    def put(self, w, name, text, attributes=None, ex=None, key="v"):
        words = ["VADD", key, "TEXT", text, name]
        words += ["SETATTR", attributes] if attributes is not None else []
        words += ["EX", ex] if ex else []
        if name in self and not attributes:  # none given: it keeps them; an empty text: none
            attributes = self[name][1] if attributes is None else None
        reply = w.cmd(*words)
        assert reply == (name not in self), reply
        self[name] = (text, attributes, ex)

    def attributes(self, w, name, attributes, key="v"):
        assert w.cmd("VSETATTR", key, name, attributes) == (name in self)
        if name in self:
            self[name] = (self[name][0], attributes or None, self[name][2])

    def remove(self, w, name, key="v"):
        assert w.cmd("VREM", key, name) == (name in self)
        self.pop(name, None)


def check(w, oracle, model, fakes, dim=None, key="v"):
    dim = dim or DIM[model]
    names = [n.decode() for n in w.cmd("VRANGE", key, "-", "+")]
    assert names == sorted(oracle)
    assert w.cmd("VCARD", key) == len(oracle)
    info = pairs(w.cmd("VINFO", key))
    assert (info["model-hash"], info["vector-dim"]) == (fakes.hashes[model], dim)
    for name, (text, attributes, ex) in oracle.items():
        got = pairs(w.cmd("VGET", key, 1, name)[0])
        assert got["text"] == text, name
        assert got["attrs"] == attributes, name
        assert (got["ttl"] > 0) == bool(ex), name
        made = vector_of(text.encode(), "d", fakes.hashes[model], DIM[model])[:dim]
        made = np.array(made) / np.linalg.norm(made)
        vector = np.array(w.cmd("VEMB", key, name), float)
        assert float(vector @ made) / np.linalg.norm(vector) > 0.9999, name


def fill(w, oracle, n, key="v", kind="e"):
    for i in range(n):
        oracle.put(
            w, f"{kind}{i}", f"text {i} of {kind}",
            attributes=json.dumps({"n": i}) if i % 3 == 0 else "" if i % 3 == 1 else None,
            ex=100_000 if i % 5 == 0 else None, key=key,
        )


def filled(w, n, key="v"):
    oracle = Oracle()
    ok(w.cmd("VCREATE", key, "MODEL", "old", "QUANT", "F32"))
    fill(w, oracle, n, key)
    return oracle


# --- what comes out ---


def test_a_set_gets_the_new_models_vectors(s, w, fakes):
    oracle = filled(w, 150)
    check(w, oracle, "old", fakes)
    before = pairs(w.cmd("VINFO", "v"))
    ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
    wait_done(w)
    check(w, oracle, "new", fakes)
    after = pairs(w.cmd("VINFO", "v"))
    for same in ("size", "quant-type", "hnsw-m", "declared", "attributes-count", "expiring"):
        assert before[same] == after[same], same
    # Texts go to the set's model, whichever is the default.
    oracle.put(w, "later", "a text of later")
    check(w, oracle, "new", fakes)
    assert w.cmd("VSIM", "v", "TEXT", "a text", "COUNT", 10) and job(w)["state"] == "none"
    s.restart()
    learn(s, fakes)
    with s.wire(3) as again:
        check(again, oracle, "new", fakes)


def test_parameters_stay(w, fakes):
    words = "METRIC L2 QUANT F16 KEEP F32 M 8 EF 77".split()
    ok(w.cmd("VCREATE", "v", "MODEL", "old", *words))
    ok(w.cmd("VCREATE", "flat", "MODEL", "old", "INDEX", "FLAT"))
    for key in ("v", "flat"):
        assert w.cmd("VADD", key, "TEXT", "a text", "e") == 1
    w.cmd("PEXPIRE", "v", 10_000_000)
    for key in ("v", "flat"):
        before = pairs(w.cmd("VINFO", key))
        ok(w.cmd("VREEMBED", key, "MODEL", "new"))
        wait_done(w, key)
        after = pairs(w.cmd("VINFO", key))
        for same in ("quant-type", "hnsw-m", "metric", "index", "keep", "ef-construction", "declared"):
            assert before[same] == after[same], (key, same)
        assert after["vector-dim"] == DIM["new"]
    assert 0 < w.cmd("PTTL", "v") <= 10_000_000
    # And of a set that VADD made: it goes with its last element.
    assert w.cmd("VADD", "made", "TEXT", "a text", "e", "MODEL", "old", "NOQUANT") == 1
    ok(w.cmd("VREEMBED", "made", "MODEL", "new"))
    wait_done(w, "made")
    assert w.cmd("VREM", "made", "e") == 1
    assert w.cmd("EXISTS", "made") == 0


def test_shorter_vectors_and_back(w, fakes):
    oracle = filled(w, 20)
    for model, dim in (("new", 4), ("new", 12), ("old", 4), ("old", 8)):
        ok(w.cmd("VREEMBED", "v", "MODEL", model, "DIM", dim))
        wait_done(w)
        check(w, oracle, model, fakes, dim)
        oracle.put(w, "more", f"text of {model} and {dim}")
        check(w, oracle, model, fakes, dim)


def test_an_empty_set(w, fakes):
    ok(w.cmd("VCREATE", "v", "MODEL", "old"))
    ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
    wait_done(w)
    assert (w.cmd("VCARD", "v"), w.cmd("VDIM", "v")) == (0, DIM["new"])


def test_real_models(make_server):
    """The same vectors, and so the same digest, as of a set that the new model made."""
    s = make_server("--embedder", Q8_MODEL, "--model", "big", F32_MODEL,
                    "--engine-timeout-ms", NEVER_MS)
    texts = {f"e{i}": f"number {i * 7} about topic {i % 9}" for i in range(70)}
    with s.wire(3, timeout=120) as w:
        wait_until(lambda: all(pairs(m)["state"] == "ready" for m in w.cmd("MODEL", "LIST")), 60)
        for key, model in (("v", "default"), ("u", "big")):
            words = [x for name, text in texts.items() for x in (name, text, '{"a":1}')]
            assert w.cmd("VMADD", key, "MODEL", model, "TEXT", len(texts), "ATTRS", *words) == 70
        before = w.cmd("VSIM", "v", "TEXT", "number seven", "WITHSCORES")
        assert w.cmd("DEBUG", "DIGEST-VALUE", "v") != w.cmd("DEBUG", "DIGEST-VALUE", "u")
        ok(w.cmd("VREEMBED", "v", "MODEL", "big"))
        wait_done(w)
        assert w.cmd("DEBUG", "DIGEST-VALUE", "v") == w.cmd("DEBUG", "DIGEST-VALUE", "u")
        asked = ("TEXT", "number seven", "WITHSCORES", "TRUTH")
        assert w.cmd("VSIM", "v", *asked) == w.cmd("VSIM", "u", *asked) != before
        # A text that the model cannot take whole ends the job, unless it may be cut.
        assert w.cmd("VADD", "v", "TEXT", "word " * 3000, "long", "TRUNCATE") == 1
        ok(w.cmd("VREEMBED", "v", "MODEL", "default"))
        why = wait_failed(w)["error"]
        assert why.startswith("element 'long': text") and "3002 tokens" in why, why
        assert "TRUNCATE" in why
        assert int(s.info("vectors")["vectors"]) == 141
        ok(w.cmd("VREEMBED", "v", "MODEL", "default", "TRUNCATE"))
        wait_done(w)
        assert w.cmd("VTEXT", "v", "long") == b"word " * 3000


# --- what is refused ---


def test_what_is_refused(s, w, fakes):
    error(w.cmd("VREEMBED", "none", "MODEL", "new"), "ERR no such key")
    error(w.cmd("VREEMBED", "none", "CANCEL"), "ERR no such key")
    w.cmd("SET", "string", "x")
    error(w.cmd("VREEMBED", "string", "MODEL", "new"), "WRONGTYPE")
    filled(w, 3)
    error(w.cmd("VREEMBED", "v", "CANCEL"), "no re-embedding of this key is under way")
    error(w.cmd("VREEMBED", "v", "MODEL", "nope"), "invalid MODEL", "'nope'", "old, new")
    error(w.cmd("VREEMBED", "v", "MODEL"), "'MODEL' has no value")
    error(w.cmd("VREEMBED", "v", "DIM", 4), "takes MODEL and its name, or CANCEL")
    error(w.cmd("VREEMBED", "v", "FAST"), "invalid VREEMBED option 'FAST'")
    error(w.cmd("VREEMBED", "v", "MODEL", "new", "DIM", 5), "invalid DIM", "4", "12", "not 5")
    error(w.cmd("VREEMBED", "v", "MODEL", "new", "DIM", "x"), "invalid DIM")
    error(w.cmd("VREEMBED", "v", "MODEL", "old"), "8 dimensions already: there is nothing to do")
    assert w.cmd("VADD", "v", "VALUES", 8, *range(8), "bare") == 1
    error(w.cmd("VREEMBED", "v", "MODEL", "new"), "needs the text of every element",
          "1 of 4 have none, 'bare' among them")
    assert w.cmd("VADD", "r", "REDUCE", 4, "TEXT", "a text", "e", "MODEL", "old") == 1
    error(w.cmd("VREEMBED", "r", "MODEL", "new"), "REDUCE")
    ok(w.cmd("MULTI"))
    error(w.cmd("VREEMBED", "v", "MODEL", "new"), "not allowed inside a transaction")
    w.cmd("DISCARD")
    assert int(s.info("vectorsets")["reembeddings_running"]) == 0
    assert int(s.info("vectors")["vector_sets"]) == 2


def test_a_text_is_asked_for_until_the_end(w, fakes):
    """Also after a restart, which counts the texts anew."""
    filled(w, 200)
    fakes.hold()
    ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
    assert w.cmd("VADD", "v", "VALUES", 8, *range(8), "bare") == 1
    fakes.let_go()
    why = wait_failed(w)["error"]
    assert "element 'bare' has no text" in why, why
    assert w.cmd("VCARD", "v") == 201
    ok(w.cmd("DEBUG", "RELOAD"))
    error(w.cmd("VREEMBED", "v", "MODEL", "new"), "1 of 201 have none, 'bare' among them")
    assert w.cmd("VREM", "v", "bare") == 1
    ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
    wait_done(w)


def test_one_job_a_set_and_some_at_a_time(s, w, fakes):
    for i in range(9):
        ok(w.cmd("VCREATE", f"v{i}", "MODEL", "old"))
        assert w.cmd("VADD", f"v{i}", "TEXT", f"text {i}", "e") == 1
    fakes.hold()
    for i in range(8):
        ok(w.cmd("VREEMBED", f"v{i}", "MODEL", "new"))
        error(w.cmd("VREEMBED", f"v{i}", "MODEL", "new"), "already", "CANCEL")
    error(w.cmd("VREEMBED", "v8", "MODEL", "new"), "8 vector sets are being re-embedded")
    assert int(s.info("vectorsets")["reembeddings_running"]) == 8
    ok(w.cmd("VREEMBED", "v3", "CANCEL"))
    ok(w.cmd("VREEMBED", "v8", "MODEL", "new"))
    fakes.let_go()
    for i in (0, 1, 2, 4, 5, 6, 7, 8):
        wait_done(w, f"v{i}")
        assert w.cmd("VDIM", f"v{i}") == DIM["new"]
    assert w.cmd("VDIM", "v3") == DIM["old"]


# --- meanwhile ---


def held(w, fakes, n=200):
    """A job that has stored its first batch, and waits for the second's vectors."""
    oracle = filled(w, n)
    ok(w.cmd("MODEL", "DEFAULT", "old"))
    fakes.hold()
    ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
    return oracle


def test_nobody_sees_the_successor(s, w, fakes):
    oracle = held(w, fakes)
    w.cmd("SET", "string", "x")
    j = job(w)
    assert (j["state"], j["model"], j["total"]) == ("running", "new", 200), j
    assert w.cmd("DBSIZE") == 2
    assert sorted(w.cmd("KEYS", "*")) == [b"string", b"v"]
    assert sorted(w.cmd("SCAN", 0, "COUNT", 1000)[1]) == [b"string", b"v"]
    assert {w.cmd("RANDOMKEY") for _ in range(50)} == {b"string", b"v"}
    keyspace = s.info("keyspace")
    assert list(keyspace) == ["db0"] and keyspace["db0"].startswith("keys=2,")
    vectors = s.info("vectors")
    assert (int(vectors["vector_sets"]), int(vectors["vectors"])) == (1, 200)
    error(w.cmd("SELECT", 16), "out of range")
    assert pairs(w.cmd("VINFO", "v"))["memory-bytes"] > 0
    check(w, oracle, "old", fakes)
    ok(w.cmd("FLUSHALL"))
    assert int(s.info("vectorsets")["reembeddings_running"]) in (0, 1)
    fakes.let_go()
    wait_until(lambda: int(s.info("vectorsets")["reembeddings_running"]) == 0, 30)
    s.stop()
    assert "0 keys, 0 vector sets" in run_program("kith-check", s.data).stdout


class Writer(threading.Thread):
    """Changes elements of its own in every way, until told to stop."""

    def __init__(self, s, kind, seed):
        super().__init__()
        self.s, self.kind, self.rng = s, kind, random.Random(seed)
        self.oracle, self.stopping, self.failure = Oracle(), False, None
        self.n = 0

    def run(self):
        try:
            with self.s.wire(3, timeout=120) as w:
                while not self.stopping:
                    self.one(w)
                    self.n += 1
        except BaseException as e:  # noqa: BLE001
            self.failure = e

    def one(self, w):
        rng = self.rng
        name = f"{self.kind}{rng.randrange(60)}"
        what = rng.random()
        if what < 0.5:
            self.oracle.put(w, name, f"text {rng.random()}", rng.choice([None, "", '{"a":2}']),
                            rng.choice([None, None, 100_000]))
        elif what < 0.6 and name in self.oracle:
            # Goes by itself, soon or when it is looked at.
            assert w.cmd("VADD", "v", "TEXT", "short", name, "PX", 1) == 0
            wait_until(lambda: w.cmd("VISMEMBER", "v", name) == 0, 30)
            del self.oracle[name]
        elif what < 0.8:
            self.oracle.attributes(w, name, rng.choice(["", '{"b":%d}' % rng.randrange(99)]))
        else:
            self.oracle.remove(w, name)


@pytest.mark.parametrize("seed", range(2))
def test_writers_and_searches(s, w, fakes, seed):
    """Jobs there and back while others write and search: nothing is lost, no search comes back
    short, none sees vectors of both models."""
    rocks = filled(w, 200)
    ok(w.cmd("VCREATE", "rocks", "MODEL", "old", "QUANT", "F32"))
    writers = [Writer(s, kind, seed) for kind in "xyz"]
    stop = threading.Event()
    seen = {"old": 0, "new": 0}

    def expected(model):
        made = {n: np.array(vector_of(t.encode(), "d", fakes.hashes[model], DIM[model]))
                for n, (t, _, _) in rocks.items()}
        return {n: (1 + float(v @ made["e0"])) / 2 for n, v in made.items()}

    scores = {m: expected(m) for m in DIM}

    def search():
        try:
            search_on()
        finally:
            stop.set()

    def search_on():
        with s.wire(3, timeout=120) as c:
            while not stop.is_set():
                found = c.cmd("VSIM", "v", "TEXT", "a text", "COUNT", 100)
                assert not isinstance(found, ReplyError) and len(found) == 100, found
                found = c.cmd("VSIM", "v", "ELE", "e0", "COUNT", 1000, "WITHSCORES", "TRUTH")
                assert isinstance(found, dict), found
                found = {k.decode(): v for k, v in found.items()}
                # A search of more than there are returns as many as there were when it began.
                assert len(found) >= len(rocks)
                kept = [n for n in rocks if n in found]
                of = [m for m in DIM if all(abs(found[n] - scores[m][n]) < 1e-4 for n in kept)]
                assert len(of) == 1, "vectors of neither model, or of both"
                seen[of[0]] += 1

    def drive():
        try:
            for model in scaled(3, 1) * ["new", "old"]:
                ok(w.cmd("VREEMBED", "v", "MODEL", model))
                wait_done(w)
                before = seen[model]
                wait_until(lambda: seen[model] > before or stop.is_set(), 60, "a search")
        finally:
            stop.set()
            for t in writers:
                t.stopping = True

    def slow_down():
        """The models answer now and then only, so that much is written between."""
        rng = random.Random(seed)
        while not stop.is_set():
            for model in DIM:
                fakes.hold(model)
            time.sleep(rng.random() * 0.05)
            for model in DIM:
                fakes.let_go(model)
            time.sleep(rng.random() * 0.03)

    for t in writers:
        t.start()
    try:
        together([drive, slow_down, search, search])
    finally:
        for t in writers:
            t.join()
    for t in writers:
        assert t.failure is None, t.failure
        assert t.n > 0
        rocks.update(t.oracle)
    check(w, rocks, "old", fakes)
    ok(w.cmd("DEBUG", "RELOAD"))
    check(w, rocks, "old", fakes)
    s.stop()
    assert "clean" in run_program("kith-check", s.data).stdout
    assert "2 keys, 2 vector sets" in run_program("kith-check", s.data).stdout


def test_every_kind_of_change_is_taken(w, fakes):
    oracle = held(w, fakes)
    oracle.put(w, "e0", "another text of e0")
    oracle.put(w, "e199", "another text of e199", ex=50_000)
    oracle.attributes(w, "e1", '{"x":1}')
    oracle.attributes(w, "e198", "")
    oracle.remove(w, "e2")
    oracle.remove(w, "e197")
    oracle.put(w, "fresh", "a new text")
    # Gone and come again: what it had does not live on.
    oracle.remove(w, "e3")
    oracle.put(w, "e3", "text 3 of e", attributes="")
    ok(w.cmd("MULTI"))
    w.cmd("VREM", "v", "e4")
    w.cmd("VSETATTR", "v", "e5", '{"y":2}')
    assert w.cmd("EXEC") == [True, True]
    del oracle["e4"]
    oracle["e5"] = (oracle["e5"][0], '{"y":2}', oracle["e5"][2])
    check(w, oracle, "old", fakes)
    fakes.let_go()
    wait_done(w)
    check(w, oracle, "new", fakes)


def blocked(s):
    return int(s.info("clients")["blocked_clients"])


def asked(s):
    """Requests that the new model has not answered."""
    words = dict(x.split("=", 1) for x in s.info("engine")["model_new"].split(","))
    return int(words["queued"])


def start_held(s, w, fakes):
    """A job whose first batch, of a small set the last one, is with the model and stays there."""
    fakes.hold()
    before = asked(s)
    ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
    wait_until(lambda: asked(s) == before + 1, 30, "the texts to be sent")


def test_writers_wait_for_the_last_elements_and_no_longer(s, w, fakes):
    """A small set is at its last elements at once. Its writers wait; who cannot wait does not."""
    oracle = filled(w, 10)
    for end in ("let go", "cancelled", "dead", "too long"):
        start_held(s, w, fakes)
        with s.wire(3, timeout=60) as other:
            other.send("VADD", "v", "TEXT", f"text when {end}", "late", "MODEL", "old")
            wait_until(lambda: blocked(s) == 1, 30, "the writer to wait")
            assert w.cmd("VSIM", "v", "ELE", "e0", "COUNT", 3)
            if end == "let go":
                fakes.let_go()
                # The vector was made by the model that the set no longer has, by name.
                error(other.read(), "cannot be compared")
                wait_done(w)
                check(w, oracle, "new", fakes)
                ok(w.cmd("VREEMBED", "v", "MODEL", "old"))
                wait_done(w)
                continue
            if end == "cancelled":
                ok(w.cmd("VREEMBED", "v", "CANCEL"))
            elif end == "dead":
                os.kill(pairs(w.cmd("MODEL", "INFO", "new"))["pid"], signal.SIGKILL)
            assert other.read() == ("late" not in oracle)
            oracle["late"] = (f"text when {end}", None, None)
            check(w, oracle, "old", fakes)
        if end == "cancelled":
            continue  # the next one need not wait for the answer that nobody wants any more
        fakes.let_go()
        wait_done(w)
        check(w, oracle, "new", fakes)
        ok(w.cmd("VREEMBED", "v", "MODEL", "old"))
        wait_done(w)
        wait_until(lambda: asked(s) == 0, 30)


def test_a_text_without_a_model_follows_the_set(s, w, fakes):
    """It was embedded by the old model while it waited, and is embedded again."""
    oracle = filled(w, 10)
    start_held(s, w, fakes)
    with s.wire(3, timeout=60) as other:
        other.send("VADD", "v", "TEXT", "a late text", "late")
        wait_until(lambda: blocked(s) == 1, 30, "the writer to wait")
        fakes.let_go()
        assert other.read() == 1
        oracle["late"] = ("a late text", None, None)
    check(w, oracle, "new", fakes)


def test_searches_that_began_before_the_switch(start, fakes):
    """A search that waited for its thread while the set was replaced, and checkpoints made,
    answers from the set it began with, in full."""
    s = start("--search-threads", 1, "--io-threads", 1)
    with s.wire(3, timeout=60) as w, s.wire(3, timeout=60) as a, s.wire(3, timeout=60) as b:
        oracle = filled(w, 150)
        ok(w.cmd("SAVE"))
        fakes.hold()
        ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
        a.send("DEBUG", "SLEEP", scaled(4, 2), "SEARCH")
        # RADIUS is never answered on an I/O thread.
        b.send("VSIM", "v", "ELE", "e0", "RADIUS", 2, "COUNT", 1000, "WITHSCORES")
        wait_until(lambda: int(s.info("stats")["searches_offloaded"]) >= 2, 30, step=0.005)
        fakes.let_go()
        wait_done(w)
        for i in range(3):
            w.cmd("SET", "k", i)
            ok(w.cmd("SAVE"))
        found = b.read()
        assert isinstance(found, dict) and len(found) == len(oracle), found
        made = {n: np.array(vector_of(t.encode(), "d", fakes.hashes["old"], 8))
                for n, (t, _, _) in oracle.items()}
        for name, score in found.items():
            right = (1 + float(made[name.decode()] @ made["e0"])) / 2
            assert abs(score - right) < 1e-4, name
        ok(a.read())
        check(w, oracle, "new", fakes)


# --- ends ---


@pytest.mark.parametrize(
    "words",
    [["DEL", "v"], ["FLUSHDB"], ["FLUSHALL"], ["RENAME", "v", "u"], ["RENAME", "k", "v"],
     ["SET", "v", "x"], ["PEXPIRE", "v", "1"], ["VREEMBED", "v", "CANCEL"]],
    ids=lambda words: " ".join(words),
)
@pytest.mark.parametrize("how", ["live", "kill"])
def test_the_successor_goes_with_its_set(s, w, fakes, words, how):
    oracle = held(w, fakes, 70)
    w.cmd("SET", "k", "x")
    ok(w.cmd("SAVE"))
    reply = w.cmd(*words)
    assert not isinstance(reply, ReplyError), reply
    renamed = words == ["RENAME", "v", "u"]
    if words[0] == "PEXPIRE":
        wait_until(lambda: w.cmd("EXISTS", "v") == 0 and int(s.info("vectors")["vectors"]) == 0, 30)
    if how == "kill":
        s.kill()
        fakes.let_go()
        s.start()
        learn(s, fakes)
        assert "re-embedding" not in s.log()
    else:
        fakes.let_go()
        wait_until(lambda: int(s.info("vectorsets")["reembeddings_running"]) == 0, 30)
    with s.wire(3) as again:
        left = 70 if renamed or "CANCEL" in words else 0
        assert int(s.info("vectors")["vectors"]) == left
        if left:
            check(again, oracle, "old", fakes, key="u" if renamed else "v")
        # A set that is made anew under the name is another set.
        again.cmd("DEL", "v")
        oracle = filled(again, 5)
        assert job(again)["state"] == "none"
        ok(again.cmd("VREEMBED", "v", "MODEL", "new"))
        wait_done(again)
        check(again, oracle, "new", fakes)
    s.stop()
    out = run_program("kith-check", s.data).stdout
    assert "clean" in out and f"{2 if renamed else 1} vector set" in out, out


def test_the_last_element_goes(s, w, fakes):
    assert w.cmd("VADD", "v", "TEXT", "a text", "e", "MODEL", "old") == 1
    fakes.hold()
    ok(w.cmd("VREEMBED", "v", "MODEL", "new"))
    ok(w.cmd("MULTI"))
    w.cmd("VREM", "v", "e")
    assert w.cmd("EXEC") == [True]
    assert w.cmd("EXISTS", "v") == 0
    fakes.let_go()
    wait_until(lambda: int(s.info("vectorsets")["reembeddings_running"]) == 0, 30)
    assert w.cmd("EXISTS", "v") == 0
    assert int(s.info("vectors")["vector_sets"]) == 0


def test_a_model_that_dies_only_delays(w, fakes):
    oracle = held(w, fakes)
    os.kill(pairs(w.cmd("MODEL", "INFO", "new"))["pid"], signal.SIGKILL)
    oracle.put(w, "e7", "changed meanwhile")
    wait_until(lambda: job(w)["error"], 30, "the reason to be shown")
    assert job(w)["state"] == "running"
    fakes.let_go()
    wait_done(w)
    check(w, oracle, "new", fakes)


def test_a_model_that_is_unloaded_ends_it(s, w, fakes):
    oracle = held(w, fakes)
    ok(w.cmd("MODEL", "UNLOAD", "new"))
    why = wait_failed(w)["error"]
    assert "not registered any more" in why and fakes.hashes["new"] in why, why
    check(w, oracle, "old", fakes)
    wait_until(lambda: "hidden" and int(s.info("vectors")["vector_sets"]) == 1, 10)
    s.stop()
    assert "1 keys, 1 vector sets, 200 elements" in run_program("kith-check", s.data).stdout


# --- restarts ---


def part_of(w, fakes, least):
    """Lets the job store some and holds it again; how many it has."""
    fakes.let_go()
    try:
        wait_until(lambda: job(w)["done"] >= least or job(w)["state"] == "none", 60, step=0.001)
    finally:
        fakes.hold()
    return job(w)["done"]


@pytest.mark.parametrize("how", ["kill", "restart", "reload"])
def test_it_goes_on_after_a_restart(start, fakes, how):
    s = start("--checkpoint-interval", 1)
    with s.wire(3, timeout=60) as w:
        oracle = held(w, fakes, 800)  # far more than what slips through until the last hold
    for round_ in range(3):
        with s.wire(3, timeout=60) as w:
            part_of(w, fakes, 64 * (round_ + 1))
            if job(w)["state"] == "none":
                break
            # What changed is found after the restart by looking.
            oracle.put(w, f"e{round_}", f"another text {round_}")
            oracle.attributes(w, f"e{round_ + 10}", '{"z":%d}' % round_)
            oracle.remove(w, f"e{round_ + 20}")
            done = job(w)["done"]
        if how == "reload":
            s.come_back(how)
        else:
            s.kill() if how == "kill" else s.stop()
            out = run_program("kith-check", s.data).stdout
            assert "clean" in out, out
            s.start()
            learn(s, fakes)
            assert f"re-embedding of key 'v' of database 0 goes on: " in s.log()
        with s.wire(3, timeout=60) as w:
            assert job(w)["state"] == "running" and job(w)["done"] >= done - 1
            check(w, oracle, "old", fakes)
    fakes.let_go()
    with s.wire(3, timeout=60) as w:
        wait_done(w)
        check(w, oracle, "new", fakes)
    s.stop()
    out = run_program("kith-check", s.data).stdout
    assert "clean" in out and f"1 keys, 1 vector sets, {len(oracle)} elements" in out, out


def test_kills_at_any_moment(start, fakes):
    """The answers come as they like; the set has one model's vectors or the other's, whole."""
    rng = random.Random(5)
    s = start("--checkpoint-interval", 1)
    with s.wire(3, timeout=60) as w:
        oracle = filled(w, 300)
    for round_ in range(scaled(5, 2)):
        with s.wire(3, timeout=60) as w:
            have = "new" if w.cmd("VDIM", "v") == DIM["new"] else "old"
            if job(w)["state"] != "running":
                ok(w.cmd("VREEMBED", "v", "MODEL", "old" if have == "new" else "new"))
            oracle.put(w, f"e{round_}", f"another text {rng.random()}")
            time.sleep(rng.random() * 0.25)
        s.kill()
        out = run_program("kith-check", s.data).stdout
        assert "clean" in out, out
        s.start()
        learn(s, fakes)
        with s.wire(3, timeout=60) as w:
            assert w.cmd("VCARD", "v") == len(oracle)
            if job(w)["state"] == "none":
                have = "new" if w.cmd("VDIM", "v") == DIM["new"] else "old"
                check(w, oracle, have, fakes)
    with s.wire(3, timeout=60) as w:
        wait_done(w)
        have = "new" if w.cmd("VDIM", "v") == DIM["new"] else "old"
        check(w, oracle, have, fakes)


def test_a_model_that_is_not_there_after_a_restart(start, fakes):
    s = start()
    with s.wire(3, timeout=60) as w:
        oracle = held(w, fakes)
    s.stop()
    at = s.options.index(str(fakes.paths["new"]))
    del s.options[at - 2 : at + 1]
    s.start()
    learn(s, fakes)
    with s.wire(3, timeout=60) as w:
        assert "not registered any more" in wait_failed(w)["error"]
        check(w, oracle, "old", fakes)
    assert "failed: model 'the new one'" in s.log()
    s.stop()
    assert "1 keys, 1 vector sets, 200 elements" in run_program("kith-check", s.data).stdout


@pytest.mark.measures_memory
def test_a_full_memory_ends_it(w, fakes):
    oracle = held(w, fakes)
    ok(w.cmd("CONFIG", "SET", "maxmemory", 1000))
    wait_until(lambda: w.cmd("SET", "x", "x").startswith("OOM "), 10, "memory to be short")
    fakes.let_go()
    assert "maxmemory" in wait_failed(w)["error"]
    ok(w.cmd("CONFIG", "SET", "maxmemory", 0))
    check(w, oracle, "old", fakes)
