"""What the commands of vector sets refuse: the beginning of each error is Redis' where Redis has
the case, in both protocols, and nothing has changed after any of them."""

import struct

import pytest

from kithtest import ReplyError

INVALID = "ERR invalid vector specification"
WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
QUANT = "ERR asked quantization mismatch with existing vector set"
M = "ERR asked M value mismatch with existing vector set"
DIM = "ERR Vector dimension mismatch"
OPTION = "ERR invalid option after element"
LONGEST_NAME = 65535


def blob(*v):
    return struct.pack(f"<{len(v)}f", *v)


def values(*v):
    return ["VALUES", len(v), *v]


def arity(command):
    return f"ERR wrong number of arguments for '{command}' command"


V3 = values(1, 2, 3)

# Words after the command, and how the error begins. The keys are those of `world`.
VADD = [
    ([], arity("vadd")),
    (["v"], arity("vadd")),
    (["v", "FP32", blob(1, 2, 3)], arity("vadd")),
    (["v", "VALUES", 3, 1, 2, 3], arity("vadd")),
    (["v", "REDUCE", 2, *V3], arity("vadd")),
    (["v", "REDUCE", 2, "FP32"], INVALID),
    (["v", "BAD", blob(1, 2, 3), "e"], INVALID + ": 'BAD' is none of FP32, VALUES and TEXT"),
    (["v", "FP32", b"", "e"], INVALID + ": an FP32 blob of 0 bytes"),
    (["v", "FP32", b"12345", "e"], INVALID + ": an FP32 blob of 5 bytes"),
    (["v", "FP32", blob(1, float("nan"), 3), "e"], INVALID + ": component 2 is not a number"),
    (["v", "FP32", blob(1, 2, float("inf")), "e"], INVALID + ": component 3 is infinite"),
    (["v", *values(1, "-inf", 3), "e"], INVALID + ": component 2 is infinite"),
    (["v", *values(1, 2, "nan"), "e"], INVALID + ": component 3 is 'nan', not a number"),
    (["v", *values("1e300", 2, 3), "e"], INVALID + ": component 1 is infinite"),
    (["v", *values("3e38", "3e38", 3), "e"], INVALID + ": its length is 4.24264e+38"),
    (["v", *values(1, "x", 3), "e"], INVALID + ": component 2 is 'x', not a number"),
    (["v", "VALUES", "x", 1, 2, 3, "e"], INVALID + ": VALUES takes a count first, 1 to 65536, not 'x'"),
    (["v", "VALUES", 0, "e", "f"], INVALID + ": 0 dimensions"),
    (["v", "VALUES", -3, 1, 2, 3, "e"], INVALID + ": -3 dimensions, 1 to 65536"),
    (["v", "VALUES", 4, 1, 2, 3], INVALID + ": VALUES announces 4 components, 3 arguments follow"),
    (["v", "VALUES", 1 << 30, 1, "e"], INVALID + ": 1073741824 dimensions"),
    (["v", "VALUES", 1 << 70, 1, "e"], INVALID + ": VALUES takes a count first"),
    (["v", "REDUCE", 0, *V3, "e"], INVALID + ": REDUCE takes a number of dimensions"),
    (["v", "REDUCE", -1, *V3, "e"], INVALID + ": REDUCE takes a number of dimensions"),
    (["v", "REDUCE", "x", *V3, "e"], INVALID + ": REDUCE takes a number of dimensions"),
    (["v", "REDUCE", 4, *V3, "e"], INVALID + ": REDUCE to 4 dimensions, but the vector has 3"),
    (["none", "REDUCE", 4, *V3, "e"], INVALID + ": REDUCE to 4 dimensions, but the vector has 3"),
    (["v", *V3, "e", "BAD"], OPTION + ": 'BAD' is none of CAS, NOQUANT"),
    (["v", *V3, "e", "EF"], OPTION + ": 'EF' takes a value"),
    (["v", *V3, "e", "M"], OPTION + ": 'M' takes a value"),
    (["v", *V3, "e", "SETATTR"], OPTION + ": 'SETATTR' takes a value"),
    (["v", *V3, "e", "EX"], OPTION + ": 'EX' takes a value"),
    (["v", *V3, "e", "TRUNCATE"], OPTION + ": 'TRUNCATE' goes with TEXT"),
    (["v", *V3, "e", "EF", 0], "ERR invalid EF"),
    (["v", *V3, "e", "EF", 1000001], "ERR invalid EF"),
    (["v", *V3, "e", "EF", "x"], "ERR invalid EF"),
    (["v", *V3, "e", "M", 3], "ERR invalid M"),
    (["v", *V3, "e", "M", 4097], "ERR invalid M"),
    (["v", *V3, "e", "M", "x"], "ERR invalid M"),
    (["v", *V3, "e", "EX", 0], "ERR invalid expire time in 'vadd' command"),
    (["v", *V3, "e", "PX", -1], "ERR invalid expire time in 'vadd' command"),
    (["v", *V3, "e", "EX", 1 << 62], "ERR invalid expire time in 'vadd' command"),
    (["v", *V3, "e", "EX", "x"], "ERR value is not an integer or out of range"),
    (["v", *V3, "e", "EX", 9, "PX", 9], "ERR an element is given one time"),
    (["v", *V3, "e", "NOQUANT"], QUANT + ": asked NOQUANT, the set has Q8"),
    (["v", *V3, "e", "BIN"], QUANT),
    (["v", *V3, "e", "M", 32], M + ": asked 32, the set has 16"),
    (["v", *values(1, 2), "e"], DIM + " - got 2 but set has 3"),
    (["v", *values(1, 2), "e", "M", 32], M),
    (["v", *values(1, 2), "e", "M", 32, "BIN"], QUANT),
    (["v", "REDUCE", 3, *V3, "e"], "ERR cannot add projection to existing set without projection"),
    (["v", "REDUCE", 2, *V3, "e"], "ERR cannot add projection to existing set without projection"),
    (["v", "REDUCE", 2, *values(1, 2), "e"], DIM + " - got 2 but set has 3"),
    (["reduced", *V3, "e"], f"{DIM} - got 3 but set has 2: it takes REDUCE 2 and vectors of 3"),
    (["reduced", *values(1, 2), "e"], DIM + " - got 2 but set has 2: it takes REDUCE 2 and"),
    (["reduced", "REDUCE", 1, *V3, "e"], DIM + " - got 3 but set has 2: it takes REDUCE 2 and"),
    (
        ["reduced", "REDUCE", 2, *values(1, 2, 3, 4), "e"],
        "ERR Input dimension mismatch for projection - got 4 but projection expects 3",
    ),
    (["v", *V3, "e", "SETATTR", "x"], "ERR attributes"),
    (["v", *V3, "e", "SETATTR", "[1]"], "ERR attributes"),
    (["v", *V3, "e", "SETATTR", '{"a":1'], "ERR attributes"),
    (["v", *V3, "x", "SETATTR", '{"a":}'], "ERR attributes"),
    (["none", *V3, "e", "SETATTR", '{"a":}'], "ERR attributes"),
    (["v", *V3, "n" * (LONGEST_NAME + 1)], "ERR "),
    (["str", *V3, "e"], WRONGTYPE),
    (["str", *V3, "e", "BAD"], OPTION),
    (["str", "BAD", 3, "e"], INVALID),
    (["declared", *V3, "e", "Q8"], QUANT + ": asked Q8, the set has NOQUANT"),
    (["declared", *V3, "e", "M", 16], M),
    (["declared", *values(1, 2), "e"], DIM + " - got 2 but set has 3"),
]

VMADD = [
    (["v"], arity("vmadd")),
    (["v", "FP32", 1, "e"], arity("vmadd")),
    (["v", "CAS", "Q8", "CAS", "CAS"], "ERR VMADD takes FP32, VALUES or TEXT and the elements"),
    (["v", "BAD", "FP32", 1, "e", blob(1, 2, 3)], "ERR invalid option before FP32, VALUES or TEXT"),
    (["v", "SETATTR", "{}", "FP32", 1, "e", blob(1, 2, 3)], "ERR invalid option before FP32"),
    (["v", "TEXT", 1, "e", "text"], "ENGINE no embedding model is loaded"),
    (["v", "M", 3, "FP32", 1, "e", blob(1, 2, 3)], "ERR invalid M"),
    (["v", "EF", 0, "FP32", 1, "e", blob(1, 2, 3)], "ERR invalid EF"),
    (["v", "EX", 0, "FP32", 1, "e", blob(1, 2, 3)], "ERR invalid expire time in 'vmadd' command"),
    (["v", "FP32", 0, "e", blob(1, 2, 3)], "ERR VMADD takes the number of elements after FP32"),
    (["v", "FP32", "x", "e", blob(1, 2, 3)], "ERR VMADD takes the number of elements after FP32"),
    (["v", "VALUES", -1, 3, "e", 1, 2, 3], "ERR VMADD takes the number of elements after VALUES"),
    (["v", "VALUES", 1, 0, "e", 1, 2, 3], INVALID + ": VMADD takes the number of dimensions"),
    (["v", "FP32", 2, "e", blob(1, 2, 3)], "ERR VMADD announces 2 elements, so 4 arguments"),
    (["v", "FP32", 1, "ATTRS", "e", blob(1, 2, 3)], "ERR VMADD announces 1 elements, so 2"),
    (["v", "VALUES", 1, 3, "e", 1, 2], "ERR VMADD announces 1 elements, so 4 arguments"),
    (["v", "FP32", 1 << 20, "e", blob(1, 2, 3)], "ERR VMADD "),
    (
        ["v", "FP32", 2, "e", blob(1, 2, 3), "f", blob(1, 2)],
        DIM + " - got 2 but set has 3: element 'f'",
    ),
    (
        ["none", "FP32", 2, "e", blob(1, 2, 3), "f", blob(1, 2)],
        DIM + " - got 2 but set has 3: element 'f'",
    ),
    (["v", "FP32", 1, "e", blob(1, 2)], DIM + " - got 2 but set has 3"),
    (
        ["v", "FP32", 2, "e", blob(1, 2, 3), "f", blob(1, 2, float("inf"))],
        INVALID + ": element 'f': component 3 is infinite",
    ),
    (
        ["v", "VALUES", 2, 3, "e", 1, 2, 3, "f", 1, 2, "x"],
        INVALID + ": element 'f': component 3 is 'x', not a number",
    ),
    (
        ["v", "FP32", 2, "ATTRS", "e", blob(1, 2, 3), "{}", "f", blob(1, 2, 3), "{"],
        "ERR element 'f': attributes",
    ),
    (
        ["v", "FP32", 2, "e", blob(1, 2, 3), "n" * (LONGEST_NAME + 1), blob(1, 2, 3)],
        "ERR element 'nnnn",
    ),
    (
        ["v", "FP32", 2, "e", blob(1, 2, 3), "f", blob(3e38, 3e38, 0)],
        INVALID + ": element 'f': its length is",
    ),
    (["v", "NOQUANT", "FP32", 1, "e", blob(1, 2, 3)], QUANT),
    (["v", "REDUCE", 2, "FP32", 1, "e", blob(1, 2, 3)], "ERR cannot add projection"),
    (["none", "REDUCE", 4, "FP32", 1, "e", blob(1, 2, 3)], INVALID + ": element 'e': REDUCE to 4"),
    (["reduced", "FP32", 1, "e", blob(1, 2, 3)], DIM + " - got 3 but"),
    (["str", "FP32", 1, "e", blob(1, 2, 3)], WRONGTYPE),
]

VCREATE = [
    (["none", "DIM"], arity("vcreate")),
    (["none", "M", 16], "ERR VCREATE takes DIM, or a MODEL"),
    (["none", "DIM", 0], "ERR invalid DIM"),
    (["none", "DIM", 1 << 30], "ERR invalid DIM"),
    (["none", "DIM", "x"], "ERR invalid DIM"),
    (["none", "DIM", 3, "METRIC"], "ERR VCREATE option 'METRIC' has no value"),
    (["none", "DIM", 3, "METRIC", "L3"], "ERR invalid METRIC: COSINE or L2 or IP, not 'L3'"),
    (["none", "DIM", 3, "INDEX", "TREE"], "ERR invalid INDEX: HNSW or FLAT, not 'TREE'"),
    (["none", "DIM", 3, "QUANT", "F8"], "ERR invalid QUANT: F32 or F16 or Q8 or BIN, not 'F8'"),
    (["none", "DIM", 3, "KEEP", "ALL"], "ERR invalid KEEP: NONE or F32 or F16, not 'ALL'"),
    (["none", "DIM", 3, "M", 3], "ERR invalid M"),
    (["none", "DIM", 3, "EF", 0], "ERR invalid EF"),
    (["none", "DIM", 3, "INDEX", "FLAT", "M", 16], "ERR M and EF belong to INDEX HNSW"),
    (["none", "DIM", 3, "BAD", 3], "ERR invalid VCREATE option 'BAD'"),
    (["none", "MODEL", "m"], "ERR invalid MODEL: no model 'm' is registered (there is: none)"),
    (["v", "DIM", 3], "ERR the key exists already: a set made by VADD, DIM 3 METRIC COSINE"),
    (["declared", "DIM", 3], "ERR the key exists already: a set made by VCREATE, DIM 3"),
    (["declared", "DIM", 4, "QUANT", "F32", "M", 8], "ERR the key exists already"),
    (["str", "DIM", 3], WRONGTYPE),
]

OTHERS = [
    (["VREM", "v"], arity("vrem")),
    (["VREM", "v", "x", "y"], arity("vrem")),
    (["VREM", "str", "x"], WRONGTYPE),
    (["VSETATTR", "v", "x"], arity("vsetattr")),
    (["VSETATTR", "str", "x", "{}"], WRONGTYPE),
    (["VSETATTR", "v", "x", "{"], "ERR attributes"),
    (["VSETATTR", "v", "x", "1"], "ERR attributes"),
    (["VSETATTR", "v", "x", "{} x"], "ERR attributes"),
    (["VGETATTR", "v"], arity("vgetattr")),
    (["VGETATTR", "str", "x"], WRONGTYPE),
    (["VCARD"], arity("vcard")),
    (["VCARD", "str"], WRONGTYPE),
    (["VDIM", "str"], WRONGTYPE),
    (["VDIM", "none"], "ERR key does not exist"),
    (["VEMB", "v"], arity("vemb")),
    (["VEMB", "v", "x", "BAD"], "ERR invalid option"),
    (["VEMB", "str", "x", "BAD"], "ERR invalid option"),
    (["VEMB", "str", "x"], WRONGTYPE),
    (["VLINKS", "v"], arity("vlinks")),
    (["VLINKS", "v", "x", "BAD"], arity("vlinks")),
    (["VLINKS", "str", "x", "BAD"], arity("vlinks")),
    (["VLINKS", "v", "x", "WITHSCORES", "y"], arity("vlinks")),
    (["VLINKS", "str", "x"], WRONGTYPE),
    (["VINFO"], arity("vinfo")),
    (["VINFO", "str"], WRONGTYPE),
    (["VISMEMBER", "v"], arity("vismember")),
    (["VISMEMBER", "str", "x"], WRONGTYPE),
    (["VRANDMEMBER", "v", 1, 2], arity("vrandmember")),
    (["VRANDMEMBER", "v", "x"], "ERR COUNT value is not an integer"),
    (["VRANDMEMBER", "v", 1 << 63], "ERR COUNT value is not an integer"),
    (["VRANDMEMBER", "v", -(1 << 63)], "ERR COUNT value is out of range"),
    (["VRANDMEMBER", "str", "x"], "ERR COUNT value is not an integer"),
    (["VRANDMEMBER", "str", 1], WRONGTYPE),
    (["VRANGE", "v", "-"], arity("vrange")),
    (["VRANGE", "v", "-", "+", 1, 2], arity("vrange")),
    (["VRANGE", "v", "-", "+", "x"], "ERR invalid COUNT value: 'x', it takes a whole number"),
    (["VRANGE", "v", "x", "+"], "ERR invalid start range format: 'x', it takes [name, (name"),
    (["VRANGE", "v", "[", "+"], "ERR invalid start range format"),
    (["VRANGE", "v", "", "+"], "ERR invalid start range format"),
    (["VRANGE", "v", "-", "x"], "ERR invalid end range format"),
    (["VRANGE", "v", "-", "("], "ERR invalid end range format"),
    (["VRANGE", "v", "+", "+"], "ERR '-' can only be used as first argument, '+' only as second"),
    (["VRANGE", "v", "-", "-"], "ERR '-' can only be used as first argument, '+' only as second"),
    (["VRANGE", "str", "x", "+"], "ERR invalid start range format"),
    (["VRANGE", "none", "-", "x"], "ERR invalid end range format"),
    (["VRANGE", "str", "-", "+"], WRONGTYPE),
    (["VGET", "v", 1], arity("vget")),
    (["VGET", "v", 0, "x"], "ERR VGET takes the number of elements, 1 to the 1 that follow"),
    (["VGET", "v", "x", "x"], "ERR VGET takes the number of elements"),
    (["VGET", "v", 2, "x"], "ERR VGET takes the number of elements, 1 to the 1 that follow"),
    (["VGET", "v", 1, "x", "BAD"], "ERR VGET has the fields VECTOR, ATTRS, TEXT and TTL, not"),
    (["VGET", "str", 1, "x"], WRONGTYPE),
]

CASES = (
    [(["VADD", *words], error) for words, error in VADD]
    + [(["VMADD", *words], error) for words, error in VMADD]
    + [(["VCREATE", *words], error) for words, error in VCREATE]
    + OTHERS
)


def name_of(case):
    return " ".join(str(w)[:16] for w in case[0])


@pytest.fixture
def world(wire):
    for words in (
        ["SET", "str", "s"],
        ["VADD", "v", *V3, "x", "SETATTR", '{"a":1}'],
        ["VADD", "v", *values(3, 2, 1), "y"],
        ["VADD", "reduced", "REDUCE", 2, *V3, "x"],
        ["VCREATE", "declared", "DIM", 3, "QUANT", "F32", "M", 8],
        ["VADD", "declared", *V3, "x"],
    ):
        assert not isinstance(wire.cmd(*words), ReplyError), words
    return wire


def everything(wire):
    """All a client can see of the sets, and the digest of everything."""
    keys = ("v", "reduced", "declared", "none")
    return [
        wire.cmd(*words)
        for key in keys
        for words in (
            ["TYPE", key],
            ["VCARD", key],
            ["VRANGE", key, "-", "+"],
            ["VGET", key, 3, "x", "y", "e"],
            ["VDIM", key],
        )
    ] + [wire.cmd("DBSIZE"), wire.cmd("DEBUG", "DIGEST")]


@pytest.mark.parametrize("words, error", CASES, ids=map(name_of, CASES))
def test_an_error_says_what_is_wrong_and_changes_nothing(world, words, error):
    before = everything(world)
    reply = world.cmd(*words)
    assert isinstance(reply, ReplyError), reply
    assert reply.startswith(error)
    assert everything(world) == before


QUEUED = [case for case in CASES if "wrong number" not in case[1]]


@pytest.mark.parametrize("words, error", QUEUED[::12], ids=map(name_of, QUEUED[::12]))
def test_an_error_inside_exec_leaves_the_others(world, words, error):
    world.cmd("MULTI")
    world.cmd("SET", "before", 1)
    assert world.cmd(*words) == "QUEUED"
    world.cmd("SET", "after", 1)
    replies = world.cmd("EXEC")
    assert replies[0] == replies[2] == "OK"
    assert replies[1].startswith(error)
    assert world.cmd("EXISTS", "before", "after") == 2


def test_a_vmadd_that_fails_makes_no_key(wire):
    wire.cmd("VMADD", "none", "FP32", 2, "e", blob(1, 2), "f", blob(1, float("nan")))
    assert wire.raw.startswith(b"-ERR invalid vector specification: element 'f'")
    assert wire.cmd("EXISTS", "none") == 0
