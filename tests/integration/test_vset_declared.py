"""What kith adds to vector sets: VCREATE, VMADD, VGET, elements that expire; and what of it is
there again after a crash."""

import itertools
import struct

import pytest

from kithtest import ReplyError, wait_until


def blob(*v):
    return struct.pack(f"<{len(v)}f", *v)


def values(*v):
    return ["VALUES", len(v), *v]


def pairs(reply):
    """A map in either protocol."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2]))


def numbers(vector):
    return [float(x) for x in vector]


METRICS = ("COSINE", "L2", "IP")
QUANTS = {"F32": "f32", "F16": "f16", "Q8": "int8", "BIN": "bin"}


@pytest.mark.parametrize("metric, quant", list(itertools.product(METRICS, QUANTS)))
@pytest.mark.parametrize("index", ["HNSW", "FLAT"])
def test_vcreate_takes_every_combination(wire, metric, quant, index):
    words = ["DIM", 3, "METRIC", metric, "QUANT", quant, "INDEX", index, "KEEP", "F32"]
    assert wire.cmd("VCREATE", "v", *words) == "OK"
    assert wire.cmd("VADD", "v", *values(3, 4, 12), "e") == 1, "no option need be repeated"
    assert wire.cmd("VADD", "v", *values(-1, 0, 5), "f") == 1
    info = pairs(wire.cmd("VINFO", "v"))
    got = [info[k] for k in ("quant-type", "metric", "index", "keep", "declared")]
    assert got == [QUANTS[quant], metric, index, "f32", 1]
    assert numbers(wire.cmd("VEMB", "v", "e")) == [3, 4, 12], "kept as it came"
    assert wire.cmd("VSIM", "v", *values(3, 4, 12), "COUNT", 1) == [b"e"]


def test_a_declared_set_is_a_key_with_nothing_in_it(wire, protocol):
    wire.cmd("VCREATE", "v", "DIM", 4)
    assert wire.cmd("TYPE", "v") == "vectorset"
    assert wire.cmd("VCARD", "v") == 0 and wire.cmd("VDIM", "v") == 4
    assert wire.cmd("VRANDMEMBER", "v") is None
    assert wire.cmd("VRANDMEMBER", "v", 3) == wire.cmd("VRANGE", "v", "-", "+") == []
    assert wire.cmd("VSIM", "v", *values(1, 2, 3, 4)) == []
    wire.cmd("VADD", "v", *values(1, 2, 3, 4), "e")
    assert wire.cmd("VREM", "v", "e") == 1
    assert wire.cmd("EXISTS", "v") == 1, "it stays when its last element goes"
    assert wire.cmd("DEL", "v") == 1


def test_a_set_may_be_declared_again_as_it_is(wire):
    words = ["VCREATE", "v", "DIM", 4, "QUANT", "F16", "M", 8]
    assert wire.cmd(*words) == "OK"
    wire.cmd("VADD", "v", *values(1, 2, 3, 4), "e")
    digest = wire.cmd("DEBUG", "DIGEST")
    assert wire.cmd(*words) == "OK"
    assert wire.cmd("DEBUG", "DIGEST") == digest
    for other in (["DIM", 5], ["QUANT", "Q8"], ["M", 16], ["EF", 100], ["KEEP", "F32"]):
        assert wire.cmd(*words, *other).startswith("ERR the key exists already"), other


def test_vcreate_by_the_engines_model(text_server, protocol):
    engine = text_server.info("engine")
    name, dim = engine["engine_model"], int(engine["engine_model_dim"])
    with text_server.wire(protocol) as w:
        assert w.cmd("VCREATE", "v", "MODEL", name) == "OK"
        assert w.cmd("VCREATE", "v", "MODEL", name, "DIM", dim) == "OK"
        assert w.cmd("VDIM", "v") == dim
        info = pairs(w.cmd("VINFO", "v"))
        assert info["model"].decode() == name
        assert info["model-hash"].decode() == engine["engine_model_hash"]
        assert w.cmd("VADD", "v", "TEXT", "words", "e") == 1
        assert w.cmd("VCREATE", "w", "MODEL", "other").startswith("ERR invalid MODEL")
        assert w.cmd("VCREATE", "w", "MODEL", name, "DIM", 3).startswith("ERR invalid DIM")
        assert w.cmd("VADD", "r", "REDUCE", 32, "TEXT", "words", "e") == 1
        assert w.cmd("VDIM", "r") == 32
        assert w.cmd("VSIM", "r", "TEXT", "words") == [b"e"]
        assert w.cmd("VTEXT", "r", "e") == b"words"


def test_vmadd_counts_what_is_new(wire):
    two = ["a", blob(1, 2, 3), "b", blob(3, 2, 1)]
    assert wire.cmd("VMADD", "v", "NOQUANT", "FP32", 2, *two) == 2
    assert wire.raw == b":2\r\n"
    assert wire.cmd("VMADD", "v", "NOQUANT", "FP32", 3, *two, "c", blob(0, 0, 1)) == 1
    assert wire.cmd("VMADD", "v", "NOQUANT", "VALUES", 2, 3, "c", 1, 0, 0, "d", 0, 1, 0) == 1
    assert numbers(wire.cmd("VEMB", "v", "c")) == [1, 0, 0]
    assert wire.cmd("VMADD", "v", "NOQUANT", "FP32", 2, "e", blob(1, 1, 1), "e", blob(2, 0, 0)) == 1
    assert numbers(wire.cmd("VEMB", "v", "e")) == [2, 0, 0], "the last one counts"
    assert wire.cmd("VCARD", "v") == 5


def test_vmadd_with_attributes_and_a_word_as_a_name(wire):
    wire.cmd("VMADD", "v", "FP32", 2, "ATTRS", "a", blob(1, 2), '{"x":1}', "b", blob(2, 1), "")
    assert wire.cmd("VGETATTR", "v", "a") == b'{"x":1}'
    wire.cmd("VMADD", "v", "VALUES", 1, 2, "ATTRS", "a", 1, 2, '{"x":2}')
    assert wire.cmd("VGETATTR", "v", "a") == b'{"x":2}'
    wire.cmd("VMADD", "v", "FP32", 1, "a", blob(1, 2))
    assert wire.cmd("VGETATTR", "v", "a") == b'{"x":2}', "without ATTRS they stay"
    assert wire.cmd("VMADD", "v", "FP32", 1, "ATTRS", blob(1, 2)) == 1, "an element named ATTRS"
    assert wire.cmd("VMADD", "v", "VALUES", 1, 2, "FP32", 1, 2) == 1
    assert wire.cmd("VRANGE", "v", "-", "+") == [b"ATTRS", b"FP32", b"a", b"b"]


def test_vmadd_projects(wire):
    wire.cmd("VADD", "one", "REDUCE", 2, *values(1, 2, 3), "a", "NOQUANT")
    wire.cmd("VADD", "one", "REDUCE", 2, *values(4, 5, 7), "b", "NOQUANT")
    many = ["a", blob(1, 2, 3), "b", blob(4, 5, 7)]
    assert wire.cmd("VMADD", "many", "REDUCE", 2, "NOQUANT", "FP32", 2, *many) == 2
    assert wire.cmd("VMADD", "one", "REDUCE", 2, "NOQUANT", "FP32", 2, *many) == 0
    for element in "ab":
        assert wire.cmd("VEMB", "one", element) == wire.cmd("VEMB", "many", element)
    assert pairs(wire.cmd("VINFO", "many"))["projection-input-dim"] == 3


def test_vmadd_under_a_long_name_and_in_exec(wire):
    """The log's reservation counts the key once for each element."""
    key, n = "k" * 5000, 2000
    words = [w for i in range(n) for w in (f"e{i}", blob(i + 1, 1))]
    assert wire.cmd("VMADD", key, "FP32", n, *words) == n
    wire.cmd("MULTI")
    wire.cmd("VMADD", key, "FP32", n, *words)
    wire.cmd("VMADD", "other", "FP32", n, *words)
    assert wire.cmd("EXEC") == [0, n]
    assert wire.cmd("VCARD", key) == wire.cmd("VCARD", "other") == n


def test_vget(wire, protocol):
    wire.cmd("VADD", "v", *values(1, 2), "a", "NOQUANT", "SETATTR", '{"x":1}', "EX", 100)
    wire.cmd("VADD", "v", *values(2, 1), "VECTOR", "NOQUANT")
    a, none, b = wire.cmd("VGET", "v", 3, "a", "none", "VECTOR")
    assert none is None
    a, b = pairs(a), pairs(b)
    assert list(a) == list(b) == [b"vector", b"attrs", b"text", b"ttl"]
    assert (numbers(a[b"vector"]), a[b"attrs"], a[b"text"]) == ([1, 2], b'{"x":1}', None)
    assert 1 <= a[b"ttl"] <= 100
    assert (numbers(b[b"vector"]), b[b"attrs"], b[b"ttl"]) == ([2, 1], None, -1)
    (only,) = wire.cmd("VGET", "v", 1, "VECTOR", "ttl", "ATTRS")
    assert wire.raw == (
        b"*1\r\n*4\r\n$5\r\nattrs\r\n$-1\r\n$3\r\nttl\r\n:-1\r\n"
        if protocol == 2
        else b"*1\r\n%2\r\n$5\r\nattrs\r\n_\r\n$3\r\nttl\r\n:-1\r\n"
    )
    assert wire.cmd("VGET", "none", 2, "a", "b") == [None, None]


def test_an_element_whose_time_has_come_is_nowhere(wire):
    for name, time in (("gone", ["PX", 30]), ("stays", ["EX", 1000]), ("ever", [])):
        words = [*values(1, 2), name, "SETATTR", '{"x":1}', *time]
        assert wire.cmd("VADD", "v", *words) == 1
    wait_until(lambda: wire.cmd("VISMEMBER", "v", "gone") in (0, False))
    assert wire.cmd("VRANGE", "v", "-", "+") == [b"ever", b"stays"]
    assert {wire.cmd("VRANDMEMBER", "v") for _ in range(50)} == {b"ever", b"stays"}
    assert wire.cmd("VGET", "v", 1, "gone") == [None]
    for words in (["VEMB", "v", "gone"], ["VLINKS", "v", "gone"], ["VGETATTR", "v", "gone"]):
        assert wire.cmd(*words) is None
    assert wire.cmd("VSETATTR", "v", "gone", "{}") == wire.cmd("VREM", "v", "gone") == 0
    assert wire.cmd("VADD", "v", *values(1, 2), "gone") == 1, "and is new when it comes again"
    assert wire.cmd("VGETATTR", "v", "gone") is None
    wait_until(lambda: wire.cmd("VCARD", "v") == 3)


def test_a_new_time_replaces_the_old_one(wire):
    wire.cmd("VADD", "v", *values(1, 2), "e", "EX", 100)
    wire.cmd("VADD", "v", *values(1, 2), "e")
    assert pairs(wire.cmd("VGET", "v", 1, "e", "TTL")[0]) == {b"ttl": -1}
    wire.cmd("VMADD", "v", "PX", 500000, "FP32", 1, "e", blob(1, 2))
    assert pairs(wire.cmd("VGET", "v", 1, "e", "TTL")[0])[b"ttl"] in range(200, 501)


def test_the_last_element_to_expire_takes_an_undeclared_set_with_it(wire):
    wire.cmd("VADD", "v", *values(1, 2), "e", "PX", 20)
    wire.cmd("VCREATE", "d", "DIM", 2)
    wire.cmd("VADD", "d", *values(1, 2), "e", "PX", 20)
    wait_until(lambda: wire.cmd("EXISTS", "v") == 0 and wire.cmd("VCARD", "d") == 0)
    assert wire.cmd("EXISTS", "d") == 1
    assert wire.cmd("VADD", "v", *values(1, 2, 3), "e", "BIN") == 1, "a set anew"


@pytest.mark.parametrize("reload", ["kill", "checkpoint"])
def test_all_of_it_survives(make_server, reload):
    s = make_server()
    with s.wire(3) as w:
        w.cmd("VCREATE", "d", "DIM", 3, "METRIC", "L2", "QUANT", "F16", "KEEP", "F16", "M", 8)
        words = ["a", blob(1, 2, 3), '{"x":1}', "b", blob(3, 2, 1), ""]
        w.cmd("VMADD", "d", "FP32", 2, "ATTRS", *words)
        w.cmd("VADD", "d", *values(1, 1, 1), "timed", "EX", 1000)
        w.cmd("VSETATTR", "d", "b", '{"y":"z"}')
        w.cmd("VADD", "p", "REDUCE", 2, *values(1, 2, 3), "e", "BIN")
        w.cmd("VCREATE", "empty", "DIM", 5, "INDEX", "FLAT")
        if reload == "checkpoint":
            assert w.cmd("SAVE") == "OK"
        before = everything(w)
    s.kill()
    s.start()
    with s.wire(3) as w:
        assert everything(w) == before
        assert w.cmd("VADD", "p", "REDUCE", 2, *values(3, 2, 1), "f", "BIN") == 1
        assert not isinstance(w.cmd("VADD", "d", *values(3, 2, 1), "f"), ReplyError)


def everything(w):
    changing = ("vset-uid", "memory-bytes", "unlinked", "max-level", "hnsw-max-node-uid")
    infos = [w.cmd("VINFO", key) for key in ("d", "p", "empty")]
    return [
        [{k: v for k, v in info.items() if k not in changing} for info in infos],
        w.cmd("VGET", "d", 3, "a", "b", "timed", "VECTOR", "ATTRS"),
        w.cmd("VGET", "p", 1, "e", "VECTOR"),
        w.cmd("VRANGE", "d", "-", "+"),
        w.cmd("DEBUG", "DIGEST"),
    ]
