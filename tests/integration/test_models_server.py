"""Several models at once: loaded, listed, unloaded, put away and brought back; which of them a text
goes to; a model that fails costs its own requests and nothing else."""

import contextlib
import json
import math
import os
import pathlib
import random
import signal
import struct
import threading

import pytest

from fake_engine import score_of, vector_of
from kithtest import (
    BIN, F16_MODEL, F32_MODEL, Q8_MODEL, ReplyError, encode, run_program, scaled, together, wait_until,
)

NEVER_MS = 3_600_000
FAKE_ENGINE = pathlib.Path(__file__).with_name("fake_engine.py")
FILES = {"f32": F32_MODEL, "f16": F16_MODEL, "q8": Q8_MODEL}
MB = 1 << 20


@pytest.fixture(scope="session", autouse=True)
def files():
    for path in FILES.values():
        if not path.exists():
            pytest.fail(f"{path} is missing: run tools/model.sh f32 f16 q8_0")


@pytest.fixture
def start(make_server):
    """start(option, ...) -> a server that never gives an engine up for being slow."""

    def run(*options, **keywords):
        return make_server("--engine-timeout-ms", NEVER_MS, *options, **keywords)

    return run


@pytest.fixture
def fakes(start, tmp_path):
    """fakes.write(name, key=value ...) -> path of a model for the fake engine; fakes.start()."""

    class Fakes:
        @staticmethod
        def write(name, **what):
            path = tmp_path / f"{name}.fake"
            path.write_text(json.dumps({"name": name, "dim": 8, **what}))
            return path

        @staticmethod
        def start(*options, **keywords):
            env = {"KITH_ENGINE": str((BIN / "kith-engine").resolve())}
            return start("--engine-path", FAKE_ENGINE, *options, env=env, **keywords)

    return Fakes


@contextlib.contextmanager
def connected(server, protocol=None):
    with server.wire(protocol, timeout=120) as w:
        yield w


def ok(reply):
    assert reply == "OK", reply


def error(reply, *words):
    assert isinstance(reply, ReplyError), reply
    for word in words:
        assert str(word) in reply, reply
    return reply


def pairs(reply):
    """A map, or the flat array it is in RESP2, with text for keys and values."""
    if not isinstance(reply, dict):
        reply = dict(zip(reply[::2], reply[1::2]))
    text = lambda x: x.decode() if isinstance(x, bytes) else x  # noqa: E731
    return {text(k): text(v) for k, v in reply.items()}


def listed(w):
    return {m["name"]: m for m in map(pairs, w.cmd("MODEL", "LIST"))}


def info(w, name):
    return pairs(w.cmd("MODEL", "INFO", name))


def state(w, name):
    return info(w, name)["state"]


def wait_state(w, name, wanted):
    wait_until(lambda: state(w, name) == wanted, 60, f"model {name} to be {wanted}")


def floats(blob):
    return struct.unpack(f"<{len(blob) // 4}f", blob)


def embed(w, text, *options):
    reply = w.cmd("EMBED", "FORMAT", "FP32", *options, "TEXTS", text)
    assert not isinstance(reply, ReplyError), reply
    return floats(reply[0])


_by_program = {}


def by_program(path, text):
    """What kith-engine --embed says of it."""
    if (path, text) not in _by_program:
        p = run_program("kith-engine", "--model", path, "--embed", text)
        assert p.returncode == 0, p.stderr
        _by_program[path, text] = [float(x) for x in p.stdout.split()]
    return _by_program[path, text]


def close(a, b, within=2e-6):
    return len(a) == len(b) and all(abs(x - y) <= within for x, y in zip(a, b))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def load_all(w):
    for name, path in FILES.items():
        ok(w.cmd("MODEL", "LOAD", name, path))


def model_hash(w, key):
    return pairs(w.cmd("VINFO", key))["model-hash"]


# --- the life of a model --------------------------------------------------------------------------


def test_load_list_default_unload(start, protocol):
    s = start()
    with connected(s, protocol) as w:
        assert w.cmd("MODEL", "LIST") == []
        assert w.cmd("MODEL", "DEFAULT") is None
        error(w.cmd("EMBED", "text"), "ENGINE no embedding model", "MODEL LOAD")
        load_all(w)
        models = listed(w)
        assert list(models) == ["f32", "f16", "q8"]
        assert all(m["state"] == "ready" and m["dim"] == 384 for m in models.values())
        assert all(m["tasks"] == "embed" and m["bytes"] > MB for m in models.values())
        assert [m["default"] for m in models.values()] == [1, 0, 0], "the first one"
        assert w.cmd("MODEL", "DEFAULT") == b"f32"
        ok(w.cmd("MODEL", "DEFAULT", "q8"))
        assert w.cmd("MODEL", "DEFAULT") == b"q8"
        i = info(w, "f16")
        assert i["path"] == str(F16_MODEL) and i["type"] == "F16" and i["arch"] == "bert"
        assert i["context"] == 512 and i["pooling"] == "mean" and i["model"] == "all-MiniLM-L6-v2"
        assert len(i["hash"]) == 32 and i["threads"] >= 1 and i["last-error"] == ""
        error(w.cmd("MODEL", "UNLOAD", "q8"), "is the default")
        pid = info(w, "f32")["pid"]
        ok(w.cmd("MODEL", "UNLOAD", "f32"))
        assert not os.path.exists(f"/proc/{pid}"), "its process has ended"
        assert list(listed(w)) == ["f16", "q8"]
        error(w.cmd("EMBED", "MODEL", "f32", "text"), "no model 'f32'", "f16, q8", "MODEL LOAD f32")
        ok(w.cmd("MODEL", "UNLOAD", "f16"))
        ok(w.cmd("MODEL", "UNLOAD", "q8"))
        assert w.cmd("MODEL", "LIST") == [] and w.cmd("MODEL", "DEFAULT") is None
        error(w.cmd("EMBED", "text"), "ENGINE no embedding model")


def test_each_embeds_as_its_file_does(start):
    s = start("--embedder", Q8_MODEL)
    text = "The quick brown fox jumps over the lazy dog"
    with connected(s) as w:
        load_all(w)
        for name, path in FILES.items():
            assert close(embed(w, text, "MODEL", name), by_program(path, text)), name
        assert close(embed(w, text), by_program(Q8_MODEL, text)), "the default is --embedder"
        assert close(embed(w, text, "MODEL", "default"), by_program(Q8_MODEL, text))
        assert close(embed(w, text, "MODEL", "all-MiniLM-L6-v2"), by_program(Q8_MODEL, text)), (
            "by the name in the file"
        )
        assert not close(embed(w, text, "MODEL", "f32"), embed(w, text, "MODEL", "q8"))


def test_wrong_loads(start, tmp_path):
    s = start()
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "m", Q8_MODEL))
        ok(w.cmd("MODEL", "LOAD", "m", Q8_MODEL)), "as it is"
        error(w.cmd("MODEL", "LOAD", "m", F16_MODEL), "registered already", Q8_MODEL, "MODEL UNLOAD m")
        error(w.cmd("MODEL", "LOAD", "m", Q8_MODEL, "THREADS", 1), "THREADS or PRECISION")
        error(w.cmd("MODEL", "LOAD", "bad name", Q8_MODEL), "invalid model name", "1 to 63")
        error(w.cmd("MODEL", "LOAD", "", Q8_MODEL), "invalid model name")
        error(w.cmd("MODEL", "LOAD", "x" * 64, Q8_MODEL), "invalid model name")
        error(w.cmd("MODEL", "LOAD", "n", Q8_MODEL, "PRECISION", "f16"), "auto, f32, int8 or bf16")
        error(w.cmd("MODEL", "LOAD", "n", Q8_MODEL, "FAST"), "'FAST' is no option")
        error(w.cmd("MODEL", "LOAD", "n", tmp_path / "none.gguf"), "none.gguf", "No such file")
        error(w.cmd("MODEL", "UNLOAD", "n"), "no model 'n'")
        error(w.cmd("MODEL", "DEFAULT", "n"), "no model 'n'")
        error(w.cmd("MODEL", "INFO", "n"), "no model 'n'")
        assert list(listed(w)) == ["m"]
        w.cmd("MULTI")
        error(w.cmd("MODEL", "LOAD", "n", F16_MODEL), "not allowed inside a transaction")
        w.cmd("DISCARD")
        (s.folder / "near.gguf").symlink_to(F16_MODEL)
        ok(w.cmd("MODEL", "LOAD", "near", "near.gguf"))
        ok(w.cmd("MODEL", "LOAD", "near", "near.gguf"))
        assert info(w, "near")["path"] == str(s.folder / "near.gguf"), "from the server's directory"
        ok(w.cmd("MODEL", "LOAD", "n", F16_MODEL, "THREADS", 1, "PRECISION", "f32", "DEFAULT"))
        assert info(w, "n")["threads"] == 1 and w.cmd("MODEL", "DEFAULT") == b"n"


def test_a_damaged_file_leaves_nothing_behind(start, tmp_path):
    s = start()
    good = Q8_MODEL.read_bytes()
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "good", Q8_MODEL))
        before = (s.data / "models.conf").read_bytes()
        cases = [
            ("no model", b"this is no model\n" * 10, ["GGUF"]),
            ("cut in the tensors", good[: len(good) // 2], ["tensor"]),
            ("empty", b"", []),
        ]
        for name, data, words in cases:
            path = tmp_path / "bad.gguf"
            path.write_bytes(data)
            error(w.cmd("MODEL", "LOAD", "bad", path), "model 'bad': ", "could not be loaded", *words)
            assert list(listed(w)) == ["good"], name
            assert (s.data / "models.conf").read_bytes() == before, name
            error(w.cmd("EMBED", "MODEL", "bad", "text"), "no model 'bad'")
        path.write_bytes(good)
        ok(w.cmd("MODEL", "LOAD", "bad", path)), "the name is free"
    assert "could not be loaded" in s.log()


def test_the_message_of_fail_arrives_whole(fakes):
    s = fakes.start()
    message = "tensor 'blk.0.attn_q.weight' has 3 dimensions, 2 are right " + "x" * 300
    with connected(s) as w:
        reply = w.cmd("MODEL", "LOAD", "m", fakes.write("m", fail=message))
        error(reply, message)


# --- across restarts ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_what_was_loaded_comes_back(start, how):
    s = start("--embedder", Q8_MODEL)
    text = "durable"
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "f32", F32_MODEL, "THREADS", 1))
        ok(w.cmd("MODEL", "LOAD", "f16", F16_MODEL))
        ok(w.cmd("MODEL", "DEFAULT", "f32"))
        ok(w.cmd("MODEL", "UNLOAD", "f16"))
        w.cmd("VADD", "set", "TEXT", text, "e")
    s.come_back(how)
    with connected(s) as w:
        assert list(listed(w)) == ["default", "f32"]
        assert w.cmd("MODEL", "DEFAULT") == b"f32"
        assert close(embed(w, text), by_program(F32_MODEL, text)), "a request waits for the load"
        assert w.cmd("VSIM", "set", "TEXT", text) == [b"e"]
        assert info(w, "f32")["threads"] == 1
        ok(w.cmd("MODEL", "UNLOAD", "default"))  # the settings' own
    s.come_back(how)
    with connected(s) as w:
        assert list(listed(w)) == ["f32"]
        ok(w.cmd("MODEL", "LOAD", "default", F16_MODEL))
    s.come_back(how)
    with connected(s) as w:
        assert listed(w)["default"]["path"] == str(F16_MODEL), "what was done last counts"
        assert "replaced by MODEL LOAD" not in s.log(), "the settings' file was unloaded by name"


def test_another_path_in_the_settings_is_another_model(start):
    s = start("--model", "m", Q8_MODEL, "--model", "n", F16_MODEL)
    with connected(s) as w:
        wait_state(w, "m", "ready")
        ok(w.cmd("MODEL", "DEFAULT", "n"))
        ok(w.cmd("MODEL", "UNLOAD", "m"))
    s.stop()
    s.options[s.options.index(str(Q8_MODEL))] = str(F32_MODEL)
    s.start()
    with connected(s) as w:
        assert listed(w)["m"]["path"] == str(F32_MODEL)


def test_a_models_conf_that_is_not_understood(start):
    s = start()
    s.stop()
    conf = s.data / "models.conf"
    for text, words in [
        ("model m /p\nmodel bad! /p\n", ["models.conf:2", "invalid model name 'bad!'"]),
        ("# fine\n\nodel m /p\n", ["models.conf:3", "'odel'"]),
        ("model m /p\nmodel m /q\n", ["models.conf:2", "twice"]),
        ("ready m dim 4\n", ["models.conf:1"]),
        ('model "m /p\n', ["models.conf:1", "quotes"]),
    ]:
        conf.write_text(text)
        s.spawn()
        assert s.wait() == 1
        for word in words:
            assert word in s.log(), s.log()
    conf.write_text("")
    s.start()


def test_a_full_disk_loads_nothing(start):
    """models.conf cannot be written: the answer says so and the model is not there."""
    s = start()
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "a", Q8_MODEL))
        blocker = s.data / f"models.conf.tmp-{s.pid}"
        blocker.mkdir()
        error(w.cmd("MODEL", "LOAD", "b", F16_MODEL), "models.conf")
        assert list(listed(w)) == ["a"]
        error(w.cmd("MODEL", "UNLOAD", "a"), "models.conf")
        error(w.cmd("MODEL", "DEFAULT", "a"), "models.conf")
        assert len(embed(w, "it stays")) == 384
        blocker.rmdir()
        ok(w.cmd("MODEL", "LOAD", "b", F16_MODEL))
        ok(w.cmd("MODEL", "UNLOAD", "b"))


# --- the settings ---------------------------------------------------------------------------------


def test_models_of_the_settings_file(start, tmp_path):
    odd = tmp_path / "with space.gguf"
    odd.symlink_to(F16_MODEL)
    text = f'# mine\nmodel one {Q8_MODEL} THREADS 1\nmodel two "{odd}" DEFAULT PRECISION f32\n'
    s = start("--model", "three", F32_MODEL, file=text)
    with connected(s) as w:
        assert list(listed(w)) == ["one", "two", "three"]
        assert w.cmd("MODEL", "DEFAULT") == b"two"
        wait_state(w, "two", "ready")
        assert info(w, "two")["precision"] == "f32" and info(w, "two")["path"] == str(odd)
        ok(w.cmd("CONFIG", "REWRITE"))
    written = s.config_path.read_text()
    assert written.startswith(text), "the lines of the file stay as they are"
    assert written.count("model ") == 3 and f"model three {F32_MODEL}" in written
    del s.options[s.options.index("--model") :]
    s.restart()
    with connected(s) as w:
        assert list(listed(w)) == ["one", "two", "three"]
        ok(w.cmd("CONFIG", "REWRITE"))
    assert s.config_path.read_text() == written


@pytest.mark.parametrize(
    "words, says",
    [
        (["m"], "a name and a path"),
        (["bad!", "/p"], "invalid model name"),
        (["m", "/p", "THREADS", "x"], "invalid THREADS"),
        (["m", "/p", "--model", "m", "/q"], "two models 'm'"),
        (["default", "/p", "--embedder", "/q"], "two models 'default'"),
    ],
)
def test_wrong_models_in_the_settings(start, words, says):
    s = start("--model", *words, start=False)
    s.spawn()
    assert s.wait() == 1
    assert says in s.log()


# --- which model a text goes to -------------------------------------------------------------------


def test_a_set_keeps_its_model(start):
    s = start()
    text = "a set remembers"
    with connected(s) as w:
        load_all(w)
        ok(w.cmd("MODEL", "DEFAULT", "q8"))
        assert w.cmd("VADD", "plain", "TEXT", text, "e", "NOQUANT") == 1
        for name in ("f32", "f16"):
            assert w.cmd("VADD", name, "TEXT", text, "e", "NOQUANT", "MODEL", name) == 1
        for name, path in [("plain", Q8_MODEL), ("f32", F32_MODEL), ("f16", F16_MODEL)]:
            assert w.cmd("VADD", name, "TEXT", "second", "f", "NOQUANT") == 1
            assert w.cmd("VMADD", name, "NOQUANT", "TEXT", 2, "g", "third", "h", "fourth") == 2
            for element, words in [("e", text), ("f", "second"), ("g", "third"), ("h", "fourth")]:
                got = [float(x) for x in w.cmd("VEMB", name, element)]
                assert close(got, by_program(path, words), 1e-5), (name, element)
            assert w.cmd("VSIM", name, "TEXT", "second", "COUNT", 1) == [b"f"]
            assert w.cmd("VSIM", name, "TEXTS", 2, "third", "third", "COUNT", 1) == [b"g"]
            score = float(w.cmd("VSIM", name, "TEXT", text, "COUNT", 1, "WITHSCORES")[1])
            assert score > 0.999999, (name, score)
        wrong = w.cmd("VADD", "f32", "TEXT", text, "x", "NOQUANT", "MODEL", "f16")
        error(wrong, info(w, "f32")["hash"], info(w, "f16")["hash"], "cannot be compared")
        error(w.cmd("VSIM", "f32", "TEXT", text, "MODEL", "q8"), "cannot be compared")
        error(w.cmd("VMADD", "f32", "NOQUANT", "MODEL", "q8", "TEXT", 1, "x", "t"), "cannot be compared")
        assert w.cmd("VCARD", "f32") == 4
        ok(w.cmd("MODEL", "UNLOAD", "f16"))
        error(w.cmd("VSIM", "f16", "TEXT", text), "cannot be compared", "MODEL LOAD")
        ok(w.cmd("MODEL", "LOAD", "again", F16_MODEL)), "found by its hash, whatever its name"
        assert w.cmd("VSIM", "f16", "TEXT", "second", "COUNT", 1) == [b"f"]
        assert w.cmd("VADD", "f", "FP32", struct.pack("<384f", *embed(w, text, "MODEL", "f32")), "e") == 1
        score = w.cmd("VSIM", "f", "TEXT", text, "MODEL", "f32", "WITHSCORES")
        assert float(score[1]) > 0.999, "MODEL, where the set has none"


def test_options_that_go_with_text(start):
    s = start("--embedder", Q8_MODEL)
    with connected(s) as w:
        error(w.cmd("VADD", "v", "VALUES", 2, 1, 2, "e", "MODEL", "default"), "goes with TEXT")
        error(w.cmd("VMADD", "v", "MODEL", "default", "VALUES", 1, 2, "e", 1, 2), "goes with TEXT")
        error(w.cmd("VADD", "v", "TEXT", "t", "e", "MODEL", "none"), "no model 'none'")
        assert w.cmd("VADD", "v", "TEXT", "t", "e", "SETATTR", '{"a":1}', "MODEL", "default") == 1
        assert w.cmd("VSIM", "v", "TEXT", "t", "FILTER", ".a == 1", "MODEL", "default") == [b"e"]
        error(w.cmd("VSIM", "v", "TEXT", "t", "MODEL"), "invalid MODEL")
        error(w.cmd("VSIM", "v", "ELE", "e", "MODEL", "default"), "'MODEL' is no option")
        assert w.cmd("EXISTS", "none") == 0


def test_vcreate_with_any_model(start):
    s = start("--embedder", Q8_MODEL)
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "f16", F16_MODEL))
        ok(w.cmd("VCREATE", "v", "MODEL", "f16", "QUANT", "F32"))
        assert model_hash(w, "v") == info(w, "f16")["hash"]
        assert w.cmd("VADD", "v", "TEXT", "text", "e") == 1
        assert close([float(x) for x in w.cmd("VEMB", "v", "e")], by_program(F16_MODEL, "text"), 1e-5)
        error(w.cmd("VCREATE", "w", "MODEL", "none"), "ERR invalid MODEL", "none")
        error(w.cmd("VCREATE", "w", "MODEL", "f16", "DIM", 128), "ERR invalid DIM", "384", "128")


def programs(rng, n):
    """Commands on one key, of which it depends on those before which model a text needs."""
    models = list(FILES)
    for i in range(n):
        kind = rng.randrange(10)
        text = f"text {rng.randrange(8)}"
        if kind < 4:
            yield ["VADD", None, "TEXT", text, f"e{i % 5}", "NOQUANT"]
        elif kind < 5:
            yield ["VADD", None, "TEXT", text, f"e{i % 5}", "NOQUANT", "MODEL", rng.choice(models)]
        elif kind < 6:
            yield ["DEL", None]
        elif kind < 7:
            yield ["VCREATE", None, "QUANT", "F32", "MODEL", rng.choice(models)]
        elif kind < 8:
            yield ["VMADD", None, "NOQUANT", "TEXT", 2, f"e{i % 5}", text, "x", text + " more"]
        else:
            yield ["VSIM", None, "TEXT", text, "WITHSCORES", "TRUTH"]


def of_key(program, key):
    return [[key if a is None else a for a in command] for command in program]


def test_a_pipeline_does_what_single_commands_do(start):
    """Sets that are made and replaced while the texts of later commands are read and embedded
    already."""
    s = start()
    seed = int(os.environ.get("KITH_SEED", random.SystemRandom().randrange(1 << 30)))
    print("seed", seed)
    rng = random.Random(seed)
    with connected(s) as w:
        load_all(w)
        ok(w.cmd("MODEL", "DEFAULT", "f16"))
        for round_ in range(scaled(12, 3)):
            program = list(programs(rng, 30))
            w.cmd("DEL", "one", "all")
            single = [w.cmd(*c) for c in of_key(program, "one")]
            together_ = w.cmds(of_key(program, "all"))
            for command, a, b in zip(program, single, together_):
                if command[0] == "VSIM" and not isinstance(a, ReplyError):
                    assert not isinstance(b, ReplyError), (seed, round_, command, b)
                    a = sorted((n, round(float(x), 4)) for n, x in zip(a[::2], a[1::2]))
                    b = sorted((n, round(float(x), 4)) for n, x in zip(b[::2], b[1::2]))
                    assert all(x[0] == y[0] and abs(x[1] - y[1]) < 2e-4 for x, y in zip(a, b)), (
                        seed, round_, command)
                    assert len(a) == len(b)
                else:
                    assert a == b, (seed, round_, command)
            if w.cmd("EXISTS", "one"):
                assert model_hash(w, "one") == model_hash(w, "all")
                for element in w.cmd("VRANGE", "one", "-", "+"):
                    a, b = ([float(x) for x in w.cmd("VEMB", k, element)] for k in ("one", "all"))
                    assert close(a, b, 1e-5), (seed, round_, element)


def test_a_pipeline_of_texts_still_batches(start):
    s = start("--embedder", Q8_MODEL)
    n = scaled(400, 100)

    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "f16", F16_MODEL))
        first = int(s.info("engine")["engine_batches"])
        w.send_bytes(b"".join(encode("VADD", "new", "TEXT", f"text {i}", i) for i in range(n)))
        assert [w.read() for _ in range(n)] == [1] * n
        assert info(w, "default")["texts"] == n
        wait_until(lambda: info(w, "default")["tokens"] >= n * 3, what="a PONG")
        assert int(s.info("engine")["engine_batches"]) - first <= n / 4, "they share batches"

        # The first command makes the set, with a model that those behind it do not name.
        ok(w.cmd("MODEL", "DEFAULT", "f16"))
        requests = [encode("VADD", "late", "TEXT", "first", "first", "MODEL", "default")]
        requests += [encode("VADD", "late", "TEXT", f"text {i}", i) for i in range(n)]
        before = batches_of_default(s, w)
        w.send_bytes(b"".join(requests))
        assert [w.read() for _ in range(n + 1)] == [1] * (n + 1)
        assert model_hash(w, "late") == info(w, "default")["hash"]
        ok(w.cmd("MODEL", "DEFAULT", "default"))
        texts = info(w, "default")["texts"]
        assert texts == 2 * n + 2, "embedded anew, once each (and one of batches_of_default)"
        after = batches_of_default(s, w)
        assert after - before <= n / 4 + 2, "and in batches again"


def batches_of_default(s, w):
    """The running total of batches of the model `default`, after the next PONG."""
    was = w.cmd("MODEL", "DEFAULT").decode()
    ok(w.cmd("MODEL", "DEFAULT", "default"))
    tokens = int(s.info("engine")["engine_tokens"])
    w.cmd("EMBED", "some words")
    wait_until(lambda: int(s.info("engine")["engine_tokens"]) > tokens, what="a PONG")
    batches = int(s.info("engine")["engine_batches"])
    ok(w.cmd("MODEL", "DEFAULT", was))
    return batches


def test_a_transaction_cannot_embed_anew(start):
    """The text was embedded when it was queued; the set is made by another model within the
    transaction, and refuses it."""
    s = start("--embedder", Q8_MODEL)
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "f16", F16_MODEL))
        w.cmd("MULTI")
        w.cmd("VADD", "v", "TEXT", "a", "a", "MODEL", "f16")
        w.cmd("VADD", "v", "TEXT", "b", "b")
        w.cmd("VCARD", "v")
        added, refused, count = w.cmd("EXEC")
        assert added == 1 and count == 1
        error(refused, "cannot be compared")


# --- memory ---------------------------------------------------------------------------------------


def test_the_least_recently_used_is_put_away(fakes):
    s = fakes.start("--engine-memory-limit", "250mb")
    with connected(s) as w:
        for name in "abc":
            ok(w.cmd("MODEL", "LOAD", name, fakes.write(name, bytes=100 * MB)))
        wait_state(w, "a", "away")
        wait_until(lambda: info(w, "a")["pid"] == 0, what="its process to end")
        assert listed(w)["a"]["bytes"] == 0
        assert state(w, "b") == state(w, "c") == "ready"
        a = embed(w, "text", "MODEL", "a")
        assert close(a, vector_of(b"text", "", info(w, "a")["hash"], 8)), "it came back for this"
        wait_state(w, "b", "away")
        assert info(w, "a")["returns"] == 1 and info(w, "a")["restarts"] == 0
        embed(w, "text", "MODEL", "c")
        embed(w, "text", "MODEL", "b")
        wait_state(w, "a", "away")
        ok(w.cmd("CONFIG", "SET", "engine-memory-limit", "150mb"))
        wait_state(w, "c", "away")
        wait_until(
            lambda: int(s.info("engine")["engine_memory_used"]) == 100 * MB, what="one to be left"
        )
        # What is away is found by its hash, and by VCREATE, also after a restart.
        w.cmd("VADD", "of_a", "TEXT", "x", "e", "MODEL", "a")
        wait_state(w, "b", "away")
        embed(w, "text", "MODEL", "b")
        wait_state(w, "a", "away")
        assert w.cmd("VADD", "of_a", "TEXT", "y", "f") == 1
        wait_state(w, "b", "away")
        ok(w.cmd("VCREATE", "of_c", "MODEL", "c"))
        assert state(w, "c") == "ready"
    s.restart()
    with connected(s) as w:
        assert sorted(m["state"] for m in listed(w).values()).count("away") >= 1
        assert w.cmd("VADD", "of_a", "TEXT", "z", "g") == 1
        assert model_hash(w, "of_a") == info(w, "a")["hash"]


def test_busy_models_stay(fakes, tmp_path):
    hold = tmp_path / "hold"
    s = fakes.start("--engine-memory-limit", "150mb")
    with connected(s) as w, connected(s) as other:
        ok(w.cmd("MODEL", "LOAD", "busy", fakes.write("busy", bytes=100 * MB, hold=str(hold))))
        hold.write_text("")
        w.send("EMBED", "MODEL", "busy", "text")
        wait_until(lambda: "queued=1" in s.info("engine")["model_busy"], what="a text under way")
        ok(other.cmd("MODEL", "LOAD", "next", fakes.write("next", bytes=100 * MB)))
        embed(other, "text", "MODEL", "next")
        assert state(other, "busy") == "ready", "it has something to do"
        hold.unlink()
        assert len(w.read()) == 1, "and it did it"
        wait_until(
            lambda: sorted(m["state"] for m in listed(other).values()) == ["away", "ready"],
            what="one of them to go",
        )


def test_larger_than_all_may_be(fakes, tmp_path):
    s = fakes.start("--engine-memory-limit", "150mb")
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "small", fakes.write("small", bytes=10 * MB)))
        big = fakes.write("big", bytes=151 * MB)
        error(w.cmd("MODEL", "LOAD", "big", big), "'big' takes", 151 * MB, 150 * MB)
        sparse = tmp_path / "sparse.gguf"
        with open(sparse, "wb") as f:
            f.truncate(200 * MB)
        error(w.cmd("MODEL", "LOAD", "big", sparse), "'big' takes", 200 * MB, 150 * MB)
        assert list(listed(w)) == ["small"] and state(w, "small") == "ready"
        ok(w.cmd("CONFIG", "SET", "engine-memory-limit", "160mb"))
        ok(w.cmd("MODEL", "LOAD", "big", big))
        ok(w.cmd("CONFIG", "SET", "engine-memory-limit", "100mb"))
        wait_state(w, "big", "refused")
        error(w.cmd("EMBED", "MODEL", "big", "text"), "ENGINE model 'big' takes", 151 * MB, 100 * MB)
        assert len(embed(w, "text", "MODEL", "small")) == 8
    s.restart()
    with connected(s) as w:
        w.cmd("EMBED", "MODEL", "big", "text")  # brings it; how large it is shows when it is there
        wait_state(w, "big", "refused")
        error(w.cmd("EMBED", "MODEL", "big", "text"), "ENGINE model 'big' takes")
        ok(w.cmd("CONFIG", "SET", "engine-memory-limit", "1gb"))
        assert len(embed(w, "text", "MODEL", "big")) == 8


def test_real_models_are_put_away_and_come_back(start):
    """The limit is what one of them takes, as the system counts it, and a bit."""
    s = start()
    text = "there and back again"
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "f32", F32_MODEL))
        embed(w, text)
        one = listed(w)["f32"]["bytes"]
        ok(w.cmd("CONFIG", "SET", "engine-memory-limit", one + 8 * MB))
        for name in ("f16", "q8", "f32", "f16"):
            if name not in listed(w):
                ok(w.cmd("MODEL", "LOAD", name, FILES[name]))
            assert close(embed(w, text, "MODEL", name), by_program(FILES[name], text)), name
        wait_until(
            lambda: int(s.info("engine")["engine_memory_used"]) <= one + 8 * MB, what="room"
        )
        states = [m["state"] for m in listed(w).values()]
        assert "away" in states and "ready" in states


# --- failures -------------------------------------------------------------------------------------


def test_one_that_is_killed_leaves_the_other(start):
    s = start()
    with connected(s) as w, connected(s) as other:
        ok(w.cmd("MODEL", "LOAD", "a", Q8_MODEL))
        ok(w.cmd("MODEL", "LOAD", "b", F16_MODEL))
        pid, other_pid = info(w, "a")["pid"], info(w, "b")["pid"]
        os.kill(pid, signal.SIGSTOP)
        w.send("EMBED", "MODEL", "a", "lost")
        wait_until(lambda: "queued=1" in s.info("engine")["model_a"], what="a text under way")
        assert len(embed(other, "text", "MODEL", "b")) == 384
        os.kill(pid, signal.SIGKILL)
        error(w.read(), "ENGINE ", "model 'a'", "signal 9")
        assert close(embed(w, "text", "MODEL", "b"), by_program(F16_MODEL, "text"))
        wait_state(w, "a", "ready")
        assert close(embed(w, "text", "MODEL", "a"), by_program(Q8_MODEL, "text"))
        assert info(w, "a")["restarts"] == 1 and info(w, "a")["last-error"] == "signal 9"
        assert info(w, "b")["pid"] == other_pid and info(w, "b")["restarts"] == 0


def test_a_file_cut_short_under_its_model(start, tmp_path):
    # A sanitizer would report the SIGBUS, which is what is asked for here.
    s = start(env={name: os.environ.get(name, "") + ":handle_sigbus=0"
                   for name in ("ASAN_OPTIONS", "TSAN_OPTIONS")})
    path = tmp_path / "model.gguf"
    path.write_bytes(F16_MODEL.read_bytes())
    text = "the ground is gone"
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "cut", path))
        ok(w.cmd("MODEL", "LOAD", "whole", Q8_MODEL))
        os.truncate(path, 4096)
        reply = w.cmd("EMBED", "MODEL", "cut", "FORMAT", "FP32", text)
        if isinstance(reply, ReplyError):
            error(reply, "ENGINE ", "model 'cut'")
        else:
            assert close(floats(reply[0]), by_program(F16_MODEL, text)), "it had its own copy"
            os.kill(info(w, "cut")["pid"], signal.SIGKILL)
        wait_until(lambda: "could not be loaded" in info(w, "cut")["last-error"], 60, "the next start")
        error(w.cmd("EMBED", "MODEL", "cut", text), "ENGINE ")
        assert close(embed(w, text, "MODEL", "whole"), by_program(Q8_MODEL, text))
        assert info(w, "whole")["restarts"] == 0
        path.write_bytes(F16_MODEL.read_bytes())
        wait_state(w, "cut", "ready")
        assert close(embed(w, text, "MODEL", "cut"), by_program(F16_MODEL, text))


def test_another_file_under_the_same_name(fakes):
    """The set's vectors are never mixed with those of what came into the place of its model."""
    s = fakes.start()
    path = fakes.write("m", note=1)
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "m", path))
        ok(w.cmd("MODEL", "LOAD", "n", fakes.write("n")))
        w.cmd("VADD", "v", "TEXT", "a", "a")
        old = info(w, "m")["hash"]
        fakes.write("m", note=2)
        os.kill(info(w, "m")["pid"], signal.SIGKILL)
        wait_until(lambda: info(w, "m")["hash"] != old, 60, "the other file")
        error(w.cmd("VADD", "v", "TEXT", "b", "b"), old, info(w, "m")["hash"], "cannot be compared")
        error(w.cmd("VSIM", "v", "TEXT", "a"), "cannot be compared")
        assert w.cmd("VCARD", "v") == 1


def test_a_load_keeps_nobody_waiting(fakes, tmp_path):
    go = tmp_path / "go"
    s = fakes.start("--embedder", Q8_MODEL)
    slow = fakes.write("slow", wait=str(go))
    with connected(s) as w, connected(s) as second, connected(s) as third:
        w.send("MODEL", "LOAD", "slow", slow)
        w.send("PING")  # behind it
        wait_until(lambda: "slow" in listed(third), what="the load to begin")
        second.send("MODEL", "LOAD", "slow", slow)  # joins the first
        assert third.cmd("PING") == "PONG" and len(embed(third, "text")) == 384
        assert state(third, "slow") == "loading"
        third.send("EMBED", "FORMAT", "FP32", "MODEL", "slow", "text")  # waits for it
        go.write_text("")
        ok(w.read())
        assert w.read() == "PONG"
        ok(second.read())
        assert len(third.read()[0]) == 4 * 8
        assert list(listed(w)) == ["default", "slow"]


def test_a_client_that_leaves_while_its_model_loads(fakes, tmp_path):
    go = tmp_path / "go"
    s = fakes.start()
    slow = fakes.write("slow", wait=str(go))
    for _ in range(3):
        with s.wire() as w:
            w.send("MODEL", "LOAD", "slow", slow)
            wait_until(lambda: "slow" in listed_of(s), what="the load to begin")
    with connected(s) as w:
        w.send("MODEL", "LOAD", "slow", slow)
        with connected(s) as other:
            ok(other.cmd("MODEL", "UNLOAD", "slow"))
        error(w.read(), "'slow' was unloaded")
        go.write_text("")
        ok(w.cmd("MODEL", "LOAD", "slow", slow))


def listed_of(s):
    with s.wire() as w:
        return listed(w)


def test_loads_unloads_and_texts_at_once(start):
    """Every reply is a vector of the model that was asked, or an error that says why not."""
    s = start("--embedder", Q8_MODEL, "--io-threads", 2)
    stop = threading.Event()
    counts = {"vectors": 0, "errors": 0, "changes": 0}
    right = {name: by_program(path, "same text") for name, path in FILES.items()}

    def change():
        try:
            with connected(s) as w:
                for i in range(scaled(12, 3)):
                    name = ["f32", "f16"][i % 2]
                    ok(w.cmd("MODEL", "LOAD", name, FILES[name]))
                    ok(w.cmd("MODEL", "DEFAULT", name if i % 3 else "default"))
                    ok(w.cmd("MODEL", "DEFAULT", "default"))
                    ok(w.cmd("MODEL", "UNLOAD", name))
                    counts["changes"] += 1
        finally:
            stop.set()

    def ask(name):
        with connected(s) as w:
            while not stop.is_set():
                r = w.cmd("EMBED", "FORMAT", "FP32", "MODEL", name, "same text")
                if isinstance(r, ReplyError):
                    assert r.startswith("ENGINE ") or "no model" in r, r
                    counts["errors"] += 1
                    stop.wait(0.002)
                else:
                    assert close(floats(r[0]), right.get(name, right["q8"])), name
                    counts["vectors"] += 1

    together([change] + [lambda n=n: ask(n) for n in ("f32", "f16", "default", "default")])
    assert counts["vectors"] > 0 and counts["changes"] == scaled(12, 3)
    assert list(listed_of(s)) == ["default"]


def test_many_clients_load_the_same(start):
    s = start("--io-threads", 2)

    def load():
        with connected(s) as w:
            ok(w.cmd("MODEL", "LOAD", "m", Q8_MODEL))
            assert len(embed(w, "text", "MODEL", "m")) == 384

    together([load] * 8)
    assert list(listed_of(s)) == ["m"]
    assert s.log().count("started with process id") == 1


# --- roles, dimensions, reranking -----------------------------------------------------------------


def test_roles(fakes):
    s = fakes.start()
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "m", fakes.write("m", **{"query-prompt": "query: "})))
        assert pairs(info(w, "m")["prompts"]) == {"query": "query: "}
        h = info(w, "m")["hash"]
        for options, role in [([], ""), (["QUERY"], "q"), (["DOCUMENT"], "d")]:
            assert close(embed(w, "t", *options), vector_of(b"t", role, h, 8)), role
        assert close(floats(w.cmd("EMBED", "t", "QUERY", "FORMAT", "FP32")[0]), vector_of(b"t", "q", h, 8))
        assert len(w.cmd("EMBED", "query", "document")) == 2, "words are texts"
        assert len(w.cmd("EMBED", "QUERY")) == 1 and len(w.cmd("EMBED", "TEXTS", "QUERY", "MODEL", "x")) == 3
        error(w.cmd("EMBED", "QUERY", "DOCUMENT", "TEXTS", "t"), "ERR EMBED takes QUERY or DOCUMENT, not both")
        w.cmd("VADD", "v", "TEXT", "t", "e", "NOQUANT")
        assert close([float(x) for x in w.cmd("VEMB", "v", "e")], vector_of(b"t", "d", h, 8), 1e-5)
        w.cmd("VMADD", "v", "NOQUANT", "TEXT", 1, "f", "t")
        assert close([float(x) for x in w.cmd("VEMB", "v", "f")], vector_of(b"t", "d", h, 8), 1e-5)
        want = (1 + cosine(vector_of(b"t", "q", h, 8), vector_of(b"t", "d", h, 8))) / 2
        for question in (["TEXT", "t"], ["TEXTS", 1, "t"]):
            score = float(w.cmd("VSIM", "v", *question, "WITHSCORES", "COUNT", 1)[1])
            assert abs(score - want) < 1e-4 or question[0] == "TEXTS", "asked as a query"


def test_shorter_vectors(fakes):
    s = fakes.start()
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "m", fakes.write("m", dim=16, dims="4,6-8")))
        ok(w.cmd("MODEL", "LOAD", "plain", fakes.write("plain", dim=16)))
        h = info(w, "m")["hash"]
        assert info(w, "m")["dims"] == "4,6-8"

        def shorter(text, role, n):
            v = vector_of(text.encode(), role, h, 16)[:n]
            length = math.sqrt(sum(x * x for x in v))
            return [x / length for x in v]

        for n in (4, 6, 7, 8, 16):
            assert close(embed(w, "t", "DIM", n), shorter("t", "", n)), n
        for n in (0, 1, 5, 9, 15, 17, "x", -4):
            error(w.cmd("EMBED", "DIM", n, "t"), "invalid DIM", "4,6-8 or 16", n)
        error(w.cmd("EMBED", "MODEL", "plain", "DIM", 8, "t"), "invalid DIM", "of 16 dimensions")
        ok(w.cmd("VCREATE", "v", "MODEL", "m", "DIM", 6, "QUANT", "F32"))
        ok(w.cmd("VCREATE", "v", "MODEL", "m", "DIM", 6, "QUANT", "F32")), "as it is"
        error(w.cmd("VCREATE", "x", "MODEL", "m", "DIM", 5), "invalid DIM", "4,6-8 or 16", 5)
        error(w.cmd("VCREATE", "x", "MODEL", "plain", "DIM", 8), "invalid DIM")
        assert w.cmd("VDIM", "v") == 6
        assert w.cmd("VADD", "v", "TEXT", "a", "a") == 1
        assert w.cmd("VMADD", "v", "TEXT", 2, "b", "b", "c", "c") == 2
        for e in "abc":
            assert close([float(x) for x in w.cmd("VEMB", "v", e)], shorter(e, "d", 6), 1e-5)
        for question in (["TEXT", "b"], ["TEXTS", 1, "b"]):
            reply = w.cmd("VSIM", "v", *question, "WITHSCORES", "TRUTH", "COUNT", 3)
            scores = dict(zip(reply[::2], map(float, reply[1::2])))
            want = (1 + cosine(shorter("b", "q", 6), shorter("b", "d", 6))) / 2
            assert question[0] == "TEXTS" or abs(scores[b"b"] - want) < 1e-5
        w.cmd("VADD", "own", "FP32", struct.pack("<6f", 1, 2, 3, 4, 5, 6), "e")
        error(w.cmd("VADD", "own", "TEXT", "a", "a"), "dimension mismatch"), "it is no model's"
    s.restart()
    with connected(s) as w:
        assert w.cmd("VADD", "v", "TEXT", "d", "d") == 1, "the set remembers"
        assert close([float(x) for x in w.cmd("VEMB", "v", "d")], shorter("d", "d", 6), 1e-5)


def test_rerank(fakes, protocol):
    s = fakes.start("--embedder", Q8_MODEL)
    query = "red green blue"
    documents = ["nothing", "red green", "red", "red green blue", "green"]
    with connected(s, protocol) as w:
        wait_state(w, "default", "ready")
        error(w.cmd("RERANK", query, *documents), "ENGINE no reranker", "MODEL LOAD")
        ok(w.cmd("MODEL", "LOAD", "r", fakes.write("r", dim=0, tasks="rerank")))
        logits = [score_of(query.encode(), d.encode()) for d in documents]
        order = sorted(range(5), key=lambda i: (-logits[i], i))
        for options, n, score in [
            ([], 5, lambda x: 1 / (1 + math.exp(-x))),
            (["RAW"], 5, lambda x: x),
            (["COUNT", 2, "RAW"], 2, lambda x: x),
            (["MODEL", "r", "TRUNCATE", "COUNT", 99, "TEXTS"], 5, lambda x: 1 / (1 + math.exp(-x))),
        ]:
            reply = w.cmd("RERANK", *options, query, *documents)
            assert [r[0] for r in reply] == order[:n], options
            assert all(abs(float(x) - score(logits[i])) < 1e-6 for i, x in reply), options
        assert len(w.cmd("RERANK", "count", "2", "q")) == 2, "options are in capitals"
        assert len(w.cmd("RERANK", "TEXTS", "COUNT", "2", "q")) == 2
        error(w.cmd("RERANK", "q"), "wrong number of arguments")
        error(w.cmd("RERANK", "RAW", "q"), "at least one document")
        error(w.cmd("RERANK", "COUNT", "x", "q", "d"), "invalid COUNT")
        error(w.cmd("RERANK", "COUNT", 0, "q", "d"), "invalid COUNT")
        error(w.cmd("RERANK", "MODEL", "default", "q", "d"), "'default' makes vectors")
        error(w.cmd("EMBED", "MODEL", "r", "t"), "'r' reranks and makes no vectors")
        error(w.cmd("VADD", "v", "TEXT", "t", "e", "MODEL", "r"), "'r' reranks")
        error(w.cmd("VCREATE", "v", "MODEL", "r"), "invalid MODEL", "reranks")
        error(w.cmd("MODEL", "DEFAULT", "r"), "'r' reranks")
        assert w.cmd("MODEL", "DEFAULT") == b"default"
        assert listed(w)["r"]["tasks"] == "rerank"


def test_a_reranker_is_no_default(fakes):
    s = fakes.start()
    with connected(s) as w:
        ok(w.cmd("MODEL", "LOAD", "r", fakes.write("r", dim=0, tasks="rerank")))
        assert w.cmd("MODEL", "DEFAULT") is None
        error(w.cmd("EMBED", "text"), "ENGINE no embedding model")
        ok(w.cmd("MODEL", "LOAD", "both", fakes.write("both", tasks="embed,rerank")))
        assert w.cmd("MODEL", "DEFAULT") == b"both"
        assert len(embed(w, "text")) == 8
        assert len(w.cmd("RERANK", "MODEL", "both", "q", "d")) == 1


# --- what is said ---------------------------------------------------------------------------------


def test_info_and_docs(start, protocol):
    s = start("--embedder", Q8_MODEL)
    with connected(s, protocol) as w:
        ok(w.cmd("MODEL", "LOAD", "other", F16_MODEL))
        embed(w, "three texts", "MODEL", "other")
        wait_state(w, "default", "ready")
        i = s.info("engine")
        assert i["engine_enabled"] == "1" and i["engine_model"] == "all-MiniLM-L6-v2"
        assert i["engine_up"] == "1" and i["engine_model_dim"] == "384"
        fields = dict(f.split("=") for f in i["model_other"].split(","))
        assert fields["state"] == "ready" and fields["dim"] == "384" and fields["default"] == "0"
        assert fields["requests"] == "1" and fields["texts"] == "1"
        assert int(fields["bytes"]) == int(info(w, "other")["bytes"]) or int(fields["bytes"]) > MB
        assert int(i["engine_memory_limit"]) > 0
        assert any("LOAD name path" in x for x in w.cmd("MODEL", "HELP"))
        error(w.cmd("MODEL", "NONE"), "unknown subcommand")
        docs = pairs(w.cmd("COMMAND", "DOCS", "model"))["model"]
        assert b"model|load" in pairs_keys(docs, "subcommands")


def pairs_keys(docs, key):
    value = pairs(docs)[key]
    keys = value if isinstance(value, dict) else value[::2]
    return [k if isinstance(k, bytes) else k.encode() for k in keys]
