"""The vector set commands, reply by reply, in both protocols."""

import struct

import pytest

from kithtest import ReplyError


def blob(*values):
    return struct.pack(f"<{len(values)}f", *values)


def values(*v):
    return ["VALUES", len(v), *v]


def scores_of(reply):
    """WITHSCORES in either protocol as a dict in the order of the reply."""
    if isinstance(reply, dict):
        return reply
    return {k: float(v) for k, v in zip(reply[::2], reply[1::2])}


AXES = {"x": (1, 0, 0), "y": (0, 1, 0), "xy": (1, 1, 0), "-x": (-1, 0, 0)}


@pytest.fixture(params=["NOQUANT", "Q8"])
def quant(request):
    return request.param


@pytest.fixture
def axes(wire, quant):
    for name, v in AXES.items():
        wire.cmd("VADD", "v", *values(*v), name, quant)
        assert wire.raw in (b":1\r\n", b"#t\r\n")
    return wire


def test_vadd_answers_whether_it_is_new(wire, protocol):
    wire.cmd("VADD", "v", *values(1, 2), "e")
    assert wire.raw == (b":1\r\n" if protocol == 2 else b"#t\r\n")
    wire.cmd("VADD", "v", *values(2, 1), "e")
    assert wire.raw == (b":0\r\n" if protocol == 2 else b"#f\r\n")
    assert [float(x) for x in wire.cmd("VEMB", "v", "e")] == pytest.approx([2, 1], rel=0.02)
    assert wire.cmd("TYPE", "v") == "vectorset"


def test_vadd_takes_both_forms_and_options_in_any_order(wire):
    options = (["EF", 50], ["M", 8], ["CAS"], ["NOQUANT"])
    for i in range(24):
        order = sorted(range(4), key=lambda k: (i * (k + 3) * 7) % 11)
        words = [w for k in order for w in options[k]]
        vector = ["FP32", blob(1, i, 2)] if i % 2 else values(1, i, 2)
        assert not isinstance(wire.cmd("vadd", "v", *vector, f"e{i}", *words), ReplyError)
    assert wire.cmd("VCARD", "v") == 24


def test_scores(axes):
    """Score = 1 - (1 - cosine) / 2."""
    got = scores_of(axes.cmd("VSIM", "v", *values(2, 0, 0), "WITHSCORES"))
    assert list(got) == [b"x", b"xy", b"y", b"-x"]
    expected = [1, (1 + 0.5**0.5) / 2, 0.5, 0]
    assert list(got.values()) == pytest.approx(expected, abs=0.005)
    by_element = scores_of(axes.cmd("VSIM", "v", "ELE", "x", "WITHSCORES"))
    assert list(by_element) == list(got)
    assert by_element[b"x"] == pytest.approx(1, abs=1e-4), "the element itself comes first"


def test_withscores_is_a_map_in_resp3(axes, protocol):
    reply = axes.cmd("VSIM", "v", "ELE", "x", "WITHSCORES", "COUNT", 2)
    assert axes.raw[:1] == (b"*" if protocol == 2 else b"%")
    assert len(reply) == (4 if protocol == 2 else 2)
    assert axes.cmd("VSIM", "v", "ELE", "x", "COUNT", 2) == [b"x", b"xy"]
    assert axes.raw[:1] == b"*"


def test_vsim_options(axes):
    assert axes.cmd("VSIM", "v", "ELE", "x", "COUNT", 1) == [b"x"]
    assert len(axes.cmd("VSIM", "v", "ELE", "x", "COUNT", 1000)) == 4
    assert axes.cmd("VSIM", "v", "FP32", blob(0, 3, 0), "EPSILON", "0.2") == [b"y", b"xy"]
    assert axes.cmd("VSIM", "v", "ELE", "x", "EF", 500, "TRUTH", "NOTHREAD")[0] == b"x"
    assert axes.cmd("vsim", "v", "ele", "x", "withscores", "count", "1")


@pytest.mark.parametrize(
    "words, error",
    [
        (["ELE", "none"], "ERR element not found in set"),
        (["ELE", "x", "COUNT", 0], "ERR invalid COUNT"),
        (["ELE", "x", "COUNT", -1], "ERR invalid COUNT"),
        (["ELE", "x", "COUNT", "x"], "ERR invalid COUNT"),
        (["ELE", "x", "COUNT"], "ERR invalid COUNT"),
        (["ELE", "x", "EF", 0], "ERR invalid EF"),
        (["ELE", "x", "EF", 1000001], "ERR invalid EF"),
        (["ELE", "x", "EPSILON", 0], "ERR invalid EPSILON"),
        (["ELE", "x", "EPSILON", "nan"], "ERR invalid EPSILON"),
        (["ELE", "x", "EPSILON"], "ERR invalid EPSILON"),
        (["ELE", "x", "BAD"], "ERR syntax error in VSIM command"),
        (["BAD", "x"], "ERR vector type must be ELE, FP32 or VALUES"),
        (["FP32", blob(1, 2)], "ERR Vector dimension mismatch - got 2 but set has 3"),
        (values(1, 2, 3, 4), "ERR Vector dimension mismatch - got 4 but set has 3"),
        (["FP32", b"12345"], "ERR invalid vector specification"),
        (["FP32", b""], "ERR invalid vector specification"),
        (["VALUES", 4, 1, 2], "ERR invalid vector specification"),
        (["VALUES", "x", 1, 2], "ERR invalid vector specification"),
        (["VALUES", -1, 1, 2], "ERR invalid vector specification"),
        (["VALUES", 3, 1, "x", 2], "ERR invalid vector specification"),
    ],
)
def test_vsim_errors(axes, words, error):
    assert axes.cmd("VSIM", "v", *words).startswith(error)
    assert axes.cmd("VCARD", "v") == 4


@pytest.mark.parametrize(
    "words, error",
    [
        ([*values(1, 2), "e"], "ERR Vector dimension mismatch - got 2 but set has 3"),
        ([*values(1, 2, 3), "e", "BAD"], "ERR invalid option after element"),
        ([*values(1, 2, 3), "e", "EF", 0], "ERR invalid EF"),
        ([*values(1, 2, 3), "e", "M", 3], "ERR invalid M"),
        ([*values(1, 2, 3), "e", "M"], "ERR invalid option after element"),
        ([*values(1, 2, 3), "e", "M", 32], "ERR asked M value mismatch with existing vector set"),
        (["FP32", b"123", "e"], "ERR invalid vector specification"),
        (["BAD", b"1234", "e"], "ERR invalid vector specification"),
        (["VALUES", 3, 1, 2, 3], "ERR wrong number of arguments for 'vadd' command"),
        (["VALUES", 0, "e"], "ERR invalid vector specification"),
        (["VALUES", 3, 1, 2, "e"], "ERR invalid vector specification"),
        (["VALUES", 99999999999999999999, "e"], "ERR invalid vector specification"),
    ],
)
def test_vadd_errors(axes, quant, words, error):
    if error.startswith(("ERR asked M", "ERR Vector dimension")):
        words = [*words, quant]
    assert axes.cmd("VADD", "v", *words).startswith(error)
    assert axes.cmd("VISMEMBER", "v", "e") in (0, False)
    assert axes.cmd("VCARD", "v") == 4


def test_quantization_must_match(axes, quant):
    other = "Q8" if quant == "NOQUANT" else "NOQUANT"
    assert axes.cmd("VADD", "v", *values(1, 2, 3), "e", other) == (
        "ERR asked quantization mismatch with existing vector set: "
        f"asked {other}, the set has {quant}"
    )


def test_bad_first_vadd_makes_no_key(wire):
    for words in ([*values("nan", 1), "e"], [*values(1, 2), "e", "BAD"], ["FP32", b"123", "e"]):
        assert isinstance(wire.cmd("VADD", "fresh", *words), ReplyError)
    assert wire.cmd("EXISTS", "fresh") == 0


def test_missing_key_and_missing_element(axes, protocol):
    null = b"$-1\r\n" if protocol == 2 else b"_\r\n"
    no = b":0\r\n" if protocol == 2 else b"#f\r\n"
    for request, raw in [
        (["VSIM", "none", "ELE", "x"], b"*0\r\n"),
        (["VSIM", "none", "nonsense", "x", "COUNT"], b"*0\r\n"),
        (["VSIM", "none", "ELE", "x", "WITHSCORES"], b"*0\r\n"),
        (["VREM", "none", "x"], no),
        (["VREM", "v", "none"], no),
        (["VCARD", "none"], b":0\r\n"),
        (["VDIM", "none"], b"-ERR key does not exist\r\n"),
        (["VEMB", "none", "x"], null),
        (["VEMB", "v", "none"], null),
        (["VEMB", "v", "none", "RAW"], null),
        (["VINFO", "none"], b"*-1\r\n" if protocol == 2 else b"_\r\n"),
        (["VRANDMEMBER", "none"], null),
        (["VRANDMEMBER", "none", 5], b"*0\r\n"),
        (["VISMEMBER", "none", "x"], no),
        (["VISMEMBER", "v", "none"], no),
        (["VTEXT", "none", "x"], null),
        (["VTEXT", "v", "none"], null),
        (["VTEXT", "v", "x"], null),
    ]:
        axes.cmd(*request)
        assert axes.raw == raw, request


def test_wrong_type(wire):
    wire.cmd("SET", "s", "string")
    wire.cmd("VADD", "v", *values(1, 2), "e")
    wrong = "WRONGTYPE Operation against a key holding the wrong kind of value"
    for request in [
        ["VADD", "s", *values(1, 2), "e"],
        ["VSIM", "s", "ELE", "e"],
        ["VREM", "s", "e"],
        ["VCARD", "s"],
        ["VDIM", "s"],
        ["VEMB", "s", "e"],
        ["VINFO", "s"],
        ["VRANDMEMBER", "s"],
        ["VISMEMBER", "s", "e"],
        ["VTEXT", "s", "e"],
        ["GET", "v"],
        ["APPEND", "v", "x"],
        ["INCR", "v"],
        ["STRLEN", "v"],
        ["GETDEL", "v"],
        ["SET", "v", "x", "GET"],
    ]:
        assert wire.cmd(*request) == wrong, request
    assert wire.cmd("MGET", "v", "s") == [None, b"string"]
    assert wire.cmd("SET", "v", "x") == "OK", "SET replaces whatever was there"


def test_vemb_raw(wire, protocol):
    wire.cmd("VADD", "f", *values(3, 4, 0), "e", "NOQUANT")
    name, code, norm = wire.cmd("VEMB", "f", "e", "RAW")
    assert wire.raw.startswith(b"*3\r\n+f32\r\n")
    assert struct.unpack("<3f", code) == pytest.approx((0.6, 0.8, 0))
    assert (name, float(norm)) == ("f32", pytest.approx(5))
    wire.cmd("VADD", "q", *values(3, 4, 0), "e")
    name, code, norm, span = wire.cmd("VEMB", "q", "e", "raw")
    assert wire.raw.startswith(b"*4\r\n+int8\r\n")
    restored = [c * float(span) / 127 * float(norm) for c in struct.unpack("3b", code)]
    assert restored == pytest.approx([3, 4, 0], abs=0.05)
    assert wire.cmd("VEMB", "q", "e", "BAD") == "ERR invalid option: 'BAD', it takes RAW"
    assert wire.cmd("VEMB", "q", "e", "RAW", "x") == "ERR invalid option: 'x', it takes RAW"


def test_vemb_gives_back_what_was_put_in(axes, quant):
    for name, v in AXES.items():
        got = [float(x) for x in axes.cmd("VEMB", "v", name)]
        assert got == pytest.approx(v, abs=1e-6 if quant == "NOQUANT" else 0.01)


def test_vinfo(axes, quant, protocol):
    reply = axes.cmd("VINFO", "v")
    if protocol == 2:
        reply = dict(zip(reply[::2], reply[1::2]))
    assert list(reply)[:9] == [
        "quant-type",
        "hnsw-m",
        "vector-dim",
        "projection-input-dim",
        "size",
        "max-level",
        "attributes-count",
        "vset-uid",
        "hnsw-max-node-uid",
    ]
    assert reply["quant-type"] == ("f32" if quant == "NOQUANT" else "int8")
    assert (reply["hnsw-m"], reply["vector-dim"], reply["size"]) == (16, 3, 4)


def test_vrandmember(axes):
    names = {n.encode() for n in AXES}
    assert {axes.cmd("VRANDMEMBER", "v") for _ in range(200)} == names
    assert axes.cmd("VRANDMEMBER", "v", 0) == []
    two = axes.cmd("VRANDMEMBER", "v", 2)
    assert len(set(two)) == 2 and set(two) <= names
    assert sorted(axes.cmd("VRANDMEMBER", "v", 100)) == sorted(names), "distinct: no more than all"
    many = axes.cmd("VRANDMEMBER", "v", -50)
    assert len(many) == 50 and set(many) <= names
    for bad in ("x", "", "1.5", "9223372036854775808"):
        assert axes.cmd("VRANDMEMBER", "v", bad) == f"ERR COUNT value is not an integer: '{bad}'"
    for least in (-9223372036854775808, -9223372036854775807, -4000000000000):
        assert axes.cmd("VRANDMEMBER", "v", least).startswith("ERR COUNT value is out of range")
    assert len(axes.cmd("VRANDMEMBER", "v", 9223372036854775807)) == 4
    assert axes.cmd("VRANDMEMBER", "v", 1, 2).startswith("ERR wrong number of arguments")
    assert axes.cmd("PING") == "PONG"


def test_last_vrem_takes_the_key(axes):
    for name in AXES:
        assert axes.cmd("EXISTS", "v") == 1
        assert axes.cmd("VREM", "v", name) in (1, True)
    assert axes.cmd("EXISTS", "v") == 0
    axes.cmd("VADD", "v", *values(1, 2, 3, 4), "e")
    assert axes.cmd("VDIM", "v") == 4, "a new set, with a dimension of its own"


def test_keys_commands_on_a_set(axes):
    assert axes.cmd("RENAME", "v", "w") == "OK"
    assert axes.cmd("VCARD", "w") == 4 and axes.cmd("VCARD", "v") == 0
    assert axes.cmd("EXPIRE", "w", 100) == 1 and 98 <= axes.cmd("TTL", "w") <= 100
    assert axes.cmd("SCAN", 0, "TYPE", "vectorset") == [b"0", [b"w"]]
    assert axes.cmd("VSIM", "w", "ELE", "x", "COUNT", 1) == [b"x"]
    assert axes.cmd("DEL", "w") == 1
    assert axes.cmd("VSIM", "w", "ELE", "x") == []


def test_in_a_transaction(wire):
    replies = wire.cmds(
        [
            ("MULTI",),
            ("VADD", "v", *values(1, 0), "a"),
            ("VADD", "v", *values(0, 1), "b"),
            ("VSIM", "v", "ELE", "a"),
            ("VADD", "v", *values(1, 2, 3), "c"),
            ("VREM", "v", "a"),
            ("VCARD", "v"),
            ("EXEC",),
        ]
    )[-1]
    assert replies[2] == [b"a", b"b"], "what was added is found within the transaction"
    assert replies[3].startswith("ERR Vector dimension mismatch")
    assert replies[5] == 1


def test_binary_and_long_names(wire):
    names = [b"", b"\x00", b"\r\n", b"\xff" * 3, b"n" * 10000]
    for i, name in enumerate(names):
        assert wire.cmd("VADD", b"\x00set\r\n", *values(1, i), name) in (1, True)
    assert set(wire.cmd("VSIM", b"\x00set\r\n", *values(1, 1))) == set(names)
    for name in names:
        assert wire.cmd("VISMEMBER", b"\x00set\r\n", name) in (1, True)
        assert wire.cmd("VREM", b"\x00set\r\n", name) in (1, True)


def test_zero_vector(wire):
    """It has no direction; it is kept and given back, and breaks no search."""
    assert wire.cmd("VADD", "v", *values(0, 0), "zero") in (1, True)
    wire.cmd("VADD", "v", *values(1, 0), "one")
    assert [float(x) for x in wire.cmd("VEMB", "v", "zero")] == [0, 0]
    assert b"one" in wire.cmd("VSIM", "v", *values(1, 0))
    assert len(wire.cmd("VSIM", "v", *values(0, 0))) == 2


def test_extreme_components(wire):
    assert "its length is" in wire.cmd("VADD", "v", *values(3e38, 3e38), "e", "NOQUANT")
    for v in [(2e38, 2e38), (1e-40, 0), (-3e38, 1e-45)]:
        assert wire.cmd("VADD", "v", *values(*v), str(v), "NOQUANT") in (1, True), v
    scores = scores_of(wire.cmd("VSIM", "v", *values(1, 1), "WITHSCORES"))
    assert all(0 <= s <= 1.0001 for s in scores.values()), scores
    assert scores[str((2e38, 2e38)).encode()] == pytest.approx(1, abs=1e-3)
