"""What a server must answer to the vector set commands: a model in Python and numpy.

Oracle(redis=False).call(argv, protocol) changes the model and returns what the reply must be, to
be held against the bytes that came with problem(expected, raw). The model was proven against
Redis 8.8 itself (tests/README.md says how): where kith means to differ, DIFFERENCES says so and
why, and nowhere else.

What replies leave open:
  scores     tolerances, below; equal scores may come in any order
  VRANDMEMBER, VLINKS, VINFO's uids and levels: properties instead of values
  VSIM without TRUTH: exact when EF reaches over the whole set, else only what came is checked
"""

import json
import math
import re

import numpy as np

import vset_filter
from vset_filter import NULL, BadExpression

# The most that a score may be off: float32 sums; and for int8 one code more or less in a
# component whose value lies on the border of two codes.
SCORE_SLACK = {"f32": 3e-5, "f16": 2e-3, "int8": 0.009, "bin": 1e-6}
NAME_MAX = 65535
DIM_MAX = 65536
COUNT_MAX = 2**63 - 1
RANDOM_MAX = (2**32 - 1) // 4

DIFFERENCES = {
    "json": "SETATTR and VSETATTR take a JSON object and nothing else: Redis stores any bytes, "
    "and what is no JSON never matches a filter, silently",
    "missing value": "an option of VSIM without its value is told so; for Redis it is no option",
    "vector kind": "a vector that is none of ELE, FP32, VALUES is told so by name; Redis has that "
    "text too, but never comes to it",
    "empty attribute": "an empty attribute, which SETATTR can give to a new element, matches no "
    "filter; in Redis it matches those that ask for no field",
    "finite": "components must be finite as float32, and so must the length; Redis takes them "
    "and every score is then no number",
    "name": f"names have at most {NAME_MAX} bytes; more is refused",
    "filter grammar": "operands and operators stand in the order of the grammar: Redis takes "
    "'5 not' and refuses 'not not 5', '1e-5' and '(.a == null)'",
    "filter-ef 0": "0 means no bound, as Redis' documentation says; its code refuses it",
    "random count": "VRANDMEMBER refuses a count whose reply could not be held; Redis crashes "
    "(until 8.10) or runs out of memory",
    "json twice": "of two fields of one name the last counts, as everywhere else; in Redis the "
    "first",
    "json escapes": "\\uXXXX, \\b, \\f and escaped field names mean what JSON says; Redis takes "
    "the backslash away and leaves the rest",
    "attributes count": "VINFO counts the attributes there are; Redis (until 8.10) forgets those "
    "that came with CAS, and counts below zero when they go",
    "large count": "COUNT and FILTER-EF go up to 4294967295, more than any set has elements",
    "reduce overflow": "REDUCE 4294967296 is too large; Redis takes it for 0, which is none",
}


# --- replies ------------------------------------------------------------------------------------


def typed(raw):
    """A reply as a tree of (kind, value): what a client library hides stays visible."""
    value, at = _typed(raw, 0)
    assert at == len(raw), "more than one reply"
    return value


def _typed(raw, at):
    end = raw.index(b"\r\n", at)
    kind, rest, at = raw[at : at + 1].decode(), raw[at + 1 : end], end + 2
    if kind in "+-,":
        return (kind, rest), at
    if kind == ":":
        return (kind, int(rest)), at
    if kind == "#":
        return (kind, rest == b"t"), at
    if kind == "_":
        return (kind, None), at
    if kind == "$":
        n = int(rest)
        return ((kind, None), at) if n < 0 else ((kind, raw[at : at + n]), at + n + 2)
    if kind in "*~>%":
        n = int(rest)
        if n < 0:
            return (kind, None), at
        items = []
        for _ in range(2 * n if kind == "%" else n):
            item, at = _typed(raw, at)
            items.append(item)
        return (kind, list(zip(items[::2], items[1::2])) if kind == "%" else items), at
    raise AssertionError(f"not a reply: {kind}{rest!r}")


class Check:
    """A part of a reply that is held against a rule and not a value."""

    def problem(self, got):
        raise NotImplementedError


class Error(Check):
    def __init__(self, start):
        self.start = start

    def problem(self, got):
        text = got[1].decode("utf-8", "replace") if got[0] == "-" else ""
        if not text.lower().startswith(self.start.lower()):
            return f"expected an error that begins {self.start!r}"

    def __repr__(self):
        return f"-{self.start}..."


def arity_error(name):
    return Error(f"ERR wrong number of arguments for '{name.lower()}' command")


WRONG_TYPE = Error("WRONGTYPE Operation against a key holding the wrong kind of value")


class Near(Check):
    """A double: RESP3's own type, RESP2's bulk string."""

    def __init__(self, value, protocol, slack):
        self.value, self.protocol, self.slack = float(value), protocol, slack

    def problem(self, got):
        if got[0] != ("," if self.protocol == 3 else "$"):
            return "not a double"
        number = vset_filter.strtod(got[1])
        if number is None:
            return f"{got[1]!r} is no number"
        if not (abs(number - self.value) <= self.slack or number == self.value):
            return f"{number} instead of {self.value} +- {self.slack}"

    def __repr__(self):
        return f"~{self.value}"


class Rule(Check):
    def __init__(self, rule, what):
        self.problem, self.what = rule, what

    def __repr__(self):
        return self.what


def match(expected, got):
    if isinstance(expected, Check):
        return expected.problem(got)
    kind, value = expected
    if kind != got[0]:
        return f"type {got[0]} instead of {kind}"
    if kind not in "*%~" or value is None or got[1] is None:
        return None if value == got[1] else f"{got[1]!r} instead of {value!r}"
    if len(value) != len(got[1]):
        return f"{len(got[1])} items instead of {len(value)}"
    for i, (e, g) in enumerate(zip(value, got[1])):
        pairs = zip(e, g) if kind == "%" else [(e, g)]
        for x, y in pairs:
            if p := match(x, y):
                return f"item {i}: {p}"
    return None


def problem(expected, raw):
    return match(expected, typed(raw))


def integer(n):
    return (":", n)


def bulk(b):
    return ("$", b)


def array(items):
    return ("*", list(items))


def boolean(protocol, b):
    return ("#", b) if protocol == 3 else (":", int(b))


def null(protocol):
    return ("_", None) if protocol == 3 else ("$", None)


def null_array(protocol):
    return ("_", None) if protocol == 3 else ("*", None)


def mapping(protocol, pairs):
    pairs = list(pairs)
    return ("%", pairs) if protocol == 3 else ("*", [x for pair in pairs for x in pair])


EMPTY = array([])


# --- arguments ----------------------------------------------------------------------------------


class Refused(Exception):
    """The reply is an error that begins so."""

    def __init__(self, text):
        super().__init__(text)
        self.reply = text if isinstance(text, Check) else Error(text)


def to_int(word):
    """As Redis reads integers: nothing but digits, no leading zero, 64 bits; None otherwise."""
    if not re.fullmatch(rb"0|-?[1-9][0-9]{0,18}", word):
        return None
    n = int(word)
    return n if -(2**63) <= n < 2**63 else None


def to_double(word):
    """As Redis reads doubles: strtod's forms, no spaces, no NaN, nothing out of range."""
    if not word or word[:1] in b" \t\n\v\f\r":
        return None
    v = vset_filter.strtod(word)
    if v is None or math.isnan(v):
        return None
    digits = re.match(rb"[+-]?(0[xX])?[0-9.]*", word).group()
    out_of_range = math.isinf(v) and b"i" not in word.lower()
    return None if out_of_range or (v == 0 and re.search(rb"[1-9]", digits)) else v


def is_word(arg, word):
    return arg.upper() == word.encode()


# --- the model ----------------------------------------------------------------------------------


class Element:
    def __init__(self, code, vector, attribute, expires=False):
        self.code, self.vector, self.attribute = code, vector, attribute
        self.expires = expires


class Code:
    """A vector as the set keeps it: unit holds the decoded vector of length about 1. given: the
    vector before it was projected, if it was: where its sums nearly cancel out, what is left is
    noise of float32, and nothing can be said about it."""

    def __init__(self, quant, vector, redis, given=None):
        v = np.asarray(vector, np.float32).astype(np.float64)
        self.norm = float(np.sqrt(np.sum(v * v)))
        unit = v / self.norm if self.norm > 0 else v
        self.noise = 0.0
        if given is not None and np.any(given):
            length = np.linalg.norm(np.asarray(given, np.float64))
            self.noise = 4e-7 * length * math.sqrt(len(given)) / (self.norm or 1e-300)
            if self.noise > 1e-3 or (quant == "bin" and np.min(np.abs(unit)) <= self.noise):
                self.noise = math.inf
        self.range = 0.0
        if quant == "int8":
            largest = float(np.max(np.abs(unit)))
            if largest > 0:
                scaled = unit * (127.0 / largest)
                self.bytes = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
                self.range = largest if redis else 127.0 / float(np.linalg.norm(self.bytes))
                unit = self.bytes * self.range / 127.0
            else:
                self.bytes = np.zeros_like(unit)
        elif quant == "bin":
            self.bytes = unit > 0
            unit = np.where(self.bytes, 1.0, -1.0)
        elif quant == "f16":
            unit = unit.astype(np.float16).astype(np.float64)
        self.unit = unit
        self.quant = quant

    def decoded(self):
        """What VEMB gives back."""
        return self.unit if self.quant == "bin" else self.unit * self.norm


def project(vector, to):
    v = np.asarray(vector, np.float32).astype(np.float64)
    n = len(v)
    i, j = np.arange(to)[:, None], np.arange(n)[None, :]
    signs = np.where(np.bitwise_count(i & j) % 2 == 0, 1.0, -1.0)
    return (signs @ v / np.sqrt(n)).astype(np.float32)


class Query:
    """What is asked: as a code of the set, and in full."""

    def __init__(self, s, vector=None, given=None, redis=False, code=None, full=None):
        self.code = code or Code(s.quant, vector, redis, given)
        self.full = s.kept(full) if full else None
        if vector is not None and full is None:
            self.full = Code("f32", vector, redis, given)


class Set:
    def __init__(self, dim, quant, m, projection=0, **more):
        self.dim, self.quant, self.m, self.projection = dim, quant, m, projection
        self.elements = {}
        self.metric, self.kind, self.keep, self.ef, self.declared = (
            more.get(k, v)
            for k, v in [
                ("metric", "COSINE"),
                ("kind", "HNSW"),
                ("keep", "NONE"),
                ("ef", None),
                ("declared", False),
            ]
        )

    def parameters(self):
        return {k: v for k, v in vars(self).items() if k != "elements"}

    def kept(self, element):
        """The element as its full vector has it, or its code where none is kept."""
        if self.keep == "NONE":
            return element.code
        return Code("f32" if self.keep == "F32" else "f16", element.vector, False)

    def scores(self, query, full=False):
        """name -> (score, slack) of all elements. full: by the full vectors, where there are."""
        sides = {n: self.kept(e) if full else e.code for n, e in self.elements.items()}
        if not sides:
            return {}
        dots = np.array([c.unit for c in sides.values()]) @ query.unit
        return {
            n: self.scored(query, c, float(dot)) for (n, c), dot in zip(sides.items(), dots)
        }

    def score(self, a, b):
        return self.scored(a, b, float(a.unit @ b.unit))

    def scored(self, a, b, dot):
        """(score, slack) from the product of two units."""
        if a.quant == b.quant == "bin":
            dot /= self.dim
        slack = max(SCORE_SLACK[a.quant], SCORE_SLACK[b.quant]) + a.noise + b.noise
        if self.metric == "COSINE":
            return min(max((1 + dot) / 2, 0), 1), slack
        both = a.norm * b.norm
        if self.metric == "IP":
            return both * dot, 2 * slack * both + 1e-6
        square = a.norm**2 + b.norm**2 - 2 * both * dot
        off = 4 * slack * both + 1e-6 * (a.norm**2 + b.norm**2)
        near, middle, far = (
            1 / (1 + math.sqrt(max(x, 0))) for x in (square - off, square, square + off)
        )
        return middle, max(near - middle, middle - far) + 1e-6


ARITY = {
    "VADD": -5,
    "VSIM": -4,
    "VREM": 3,
    "VCARD": 2,
    "VDIM": 2,
    "VEMB": -3,
    "VLINKS": -3,
    "VINFO": 2,
    "VSETATTR": 4,
    "VGETATTR": 3,
    "VRANDMEMBER": -2,
    "VISMEMBER": 3,
    "VRANGE": -4,
    "VCREATE": -4,
    "VMADD": -6,
    "VGET": -4,
    "VRECOMMEND": -5,
}
VCREATE_WORDS = {
    b"METRIC": ("metric", {b"COSINE": "COSINE", b"L2": "L2", b"IP": "IP"}),
    b"INDEX": ("kind", {b"HNSW": "HNSW", b"FLAT": "FLAT"}),
    b"QUANT": ("quant", {b"F32": "f32", b"F16": "f16", b"Q8": "int8", b"BIN": "bin"}),
    b"KEEP": ("keep", {b"NONE": "NONE", b"F32": "F32", b"F16": "F16"}),
}
QUANTS = {b"NOQUANT": "f32", b"Q8": "int8", b"BIN": "bin"}


def no_constant(text):
    raise ValueError(f"{text} is not JSON")


class Oracle:
    """The model. redis: it describes Redis 8.8, else kith."""

    def __init__(self, redis=False):
        self.redis = redis
        self.keys = {}
        """name -> Set, or bytes of a string"""
        self.seen = dict.fromkeys(DIFFERENCES, 0)
        """How often each difference mattered."""

    def differs(self, what):
        """True where kith's way is the right one; counts."""
        assert what in DIFFERENCES
        if not self.redis:
            self.seen[what] += 1
        return not self.redis

    def report(self):
        lines = ["what differs from Redis 8.8 on purpose, and how often it was met:"]
        lines += [f"  {n:6}  {k}: {DIFFERENCES[k]}" for k, n in self.seen.items()]
        return "\n".join(lines)

    def call(self, argv, protocol):
        argv = [a if isinstance(a, bytes) else str(a).encode() for a in argv]
        name = argv[0].decode().upper()
        arity = ARITY[name]
        if len(argv) != arity if arity > 0 else len(argv) < -arity:
            return arity_error(name)
        try:
            return getattr(self, name.lower())(argv, protocol)
        except Refused as e:
            return e.reply

    def find(self, key):
        s = self.keys.get(key)
        if isinstance(s, bytes):
            raise Refused(WRONG_TYPE)
        return s

    def find_element(self, argv):
        s = self.find(argv[1])
        return s.elements.get(argv[2]) if s else None

    # --- writing

    def parse_vector(self, argv, at, reduce=False, asks=False):
        """(vector, dimensions to reduce to, next argument). asks: it is VSIM's."""
        bad = Refused("ERR invalid vector specification")
        to = 0
        if reduce and len(argv) > at + 2 and is_word(argv[at], "REDUCE"):
            to = to_int(argv[at + 1])
            if to is None or to <= 0:
                raise bad
            if to >= 2**32 and not self.differs("reduce overflow"):
                to %= 2**32
            at += 2
        if len(argv) < at + 2:
            raise bad
        if is_word(argv[at], "FP32"):
            blob = argv[at + 1]
            if len(blob) < 4 or len(blob) % 4 or len(blob) // 4 > DIM_MAX:
                raise bad
            vector, at = np.frombuffer(blob, "<f4"), at + 2
        elif is_word(argv[at], "VALUES"):
            n = to_int(argv[at + 1])
            if n is None or not 1 <= n <= DIM_MAX or len(argv) < at + 2 + n:
                raise bad
            numbers = [to_double(a) for a in argv[at + 2 : at + 2 + n]]
            if None in numbers:
                raise bad
            with np.errstate(over="ignore"):
                vector = np.array(numbers, np.float64).astype(np.float32)
            at += 2 + n
        elif asks and self.differs("vector kind"):
            raise Refused("ERR vector type must be ELE, FP32 or VALUES")
        else:
            raise bad
        if not np.all(np.isfinite(vector)) and self.differs("finite"):
            raise bad
        self.check_length(vector)
        if to > len(vector):
            raise bad
        return vector, to, at

    def check_length(self, vector):
        length = np.linalg.norm(vector.astype(np.float64))
        if not length < np.finfo(np.float32).max and self.differs("finite"):
            raise Refused("ERR invalid vector specification")

    def check_name(self, name):
        if len(name) > NAME_MAX and self.differs("name"):
            raise Refused("ERR")

    def check_json(self, text):
        if self.fields_of(text) is None and self.differs("json"):
            raise Refused("ERR")

    def add_option(self, option, rest, o):
        """One option that VADD and VMADD have in common: False when it is none of them. o: the
        options so far; rest: what follows."""
        w = option.upper()
        valued = (b"EF", b"M") if self.redis else (b"EF", b"M", b"EX", b"PX")
        if w in QUANTS:
            o["quant"] = QUANTS[w]
        elif w in valued:
            value = next(rest, None)
            if value is None:
                return False
            n = to_int(value)
            if w in (b"EF", b"M"):
                low, high = (1, 1000000) if w == b"EF" else (4, 4096)
                if n is None or not low <= n <= high:
                    raise Refused(f"ERR invalid {w.decode()}")
                o[w.decode().lower()] = n
            elif n is None:
                raise Refused("ERR value is not an integer or out of range")
            elif n <= 0 or n * (1000 if w == b"EX" else 1) + 10**13 >= 2**63:
                raise Refused("ERR invalid expire time in")
            elif o.get("expires"):
                raise Refused("ERR an element is given one time")
            else:
                o["expires"] = True
        else:
            return w == b"CAS"
        return True

    def vadd(self, argv, protocol):
        vector, reduce, at = self.parse_vector(argv, 2, reduce=True)
        if at == len(argv):
            raise Refused(arity_error("VADD"))
        o, attribute = {}, None
        rest = iter(argv[at + 1 :])
        for option in rest:
            if option.upper() == b"SETATTR":
                attribute = next(rest, None)
                if attribute is None:
                    raise Refused("ERR invalid option after element")
            elif not self.add_option(option, rest, o):
                raise Refused("ERR invalid option after element")
        s, given, vector = self.place(self.find(argv[1]), vector, reduce, o)
        self.check_name(argv[at])
        if attribute:
            self.check_json(attribute)
        self.keys[argv[1]] = s
        return boolean(protocol, self.put(s, argv[at], vector, given, attribute, o))

    def put(self, s, name, vector, given, attribute, o):
        """Adds or replaces; True when it is new. attribute: None keeps what there is."""
        old = s.elements.get(name)
        if old is not None:
            attribute = old.attribute if attribute is None else attribute or None
        code = Code(s.quant, vector, self.redis, given)
        s.elements[name] = Element(code, vector, attribute, "expires" in o)
        return old is None

    def place(self, s, vector, reduce, o):
        """(the set, or one to be made; the vector before projection, or None; the vector)"""
        quant, m = o.get("quant"), o.get("m")
        if s is None:
            more = {"ef": o.get("ef", 200)}
            if not reduce:
                return Set(len(vector), quant or "int8", m or 16, **more), None, vector
            s = Set(reduce, quant or "int8", m or 16, len(vector), **more)
            return s, vector, project(vector, reduce)
        if not s.declared:
            quant, m = quant or "int8", m or 16
        if quant and s.quant != quant:
            raise Refused("ERR asked quantization mismatch with existing vector set")
        if m and s.m != m:
            raise Refused("ERR asked M value mismatch with existing vector set")
        if s.dim != (reduce if s.projection else len(vector)):
            raise Refused(
                f"ERR Vector dimension mismatch - got {len(vector)} but set has {s.dim}"
            )
        if reduce and not s.projection:
            raise Refused("ERR cannot add projection to existing set without projection")
        if not s.projection:
            return s, None, vector
        self.check_projection(s, vector)
        return s, vector, project(vector, s.dim)

    def check_projection(self, s, vector):
        if len(vector) != s.projection:
            raise Refused(
                "ERR Input dimension mismatch for projection - "
                f"got {len(vector)} but projection expects {s.projection}"
            )

    def vmadd(self, argv, protocol):
        at, reduce, o = 2, 0, {}
        if is_word(argv[2], "REDUCE"):
            reduce = to_int(argv[3])
            if reduce is None or not 1 <= reduce <= DIM_MAX:
                raise Refused("ERR invalid vector specification")
            at = 4
        rest = iter(argv[at:])
        for option in rest:
            at = len(argv) - rest.__length_hint__() - 1
            if option.upper() in (b"FP32", b"VALUES"):
                break
            if not self.add_option(option, rest, o):
                raise Refused("ERR invalid option before FP32, VALUES or TEXT")
        else:
            raise Refused("ERR VMADD takes FP32, VALUES or TEXT")
        records = self.records(argv, at, reduce)
        s = self.find(argv[1])
        if any(len(v) != len(records[0][1]) for _, v, _ in records):
            raise Refused("ERR Vector dimension mismatch - got ")
        placed = []
        for name, vector, attribute in records:
            s, given, vector = self.place(s, vector, reduce, o)
            placed.append((name, vector, given, attribute))
        self.keys[argv[1]] = s
        return integer(sum(self.put(s, *p, o) for p in placed))

    def records(self, argv, at, reduce):
        """[(name, vector, attribute or None)]"""
        blobs = is_word(argv[at], "FP32")
        after = at + (2 if blobs else 3)
        n = to_int(argv[at + 1]) if after <= len(argv) else None
        if n is None or not 1 <= n <= len(argv):
            raise Refused("ERR VMADD takes the number of elements after")
        dim = 1 if blobs else to_int(argv[at + 2])
        if dim is None or not 1 <= dim <= DIM_MAX:
            raise Refused("ERR invalid vector specification: ")
        left, each = len(argv) - after, 1 + dim
        attributes = left > 0 and is_word(argv[after], "ATTRS") and left - 1 == n * (each + 1)
        if attributes:
            after, each = after + 1, each + 1
        elif left != n * each:
            raise Refused(f"ERR VMADD announces {n} elements")
        found = []
        for i in range(after, len(argv), each):
            head = [b"FP32"] if blobs else [b"VALUES", argv[at + 2]]
            vector, _, _ = self.parse_vector(head + argv[i + 1 : i + 1 + dim], 0)
            self.check_name(argv[i])
            attribute = argv[i + each - 1] if attributes else None
            if attribute:
                self.check_json(attribute)
            if reduce > len(vector):
                raise Refused("ERR invalid vector specification: ")
            found.append((argv[i], vector, attribute))
        return found

    def vcreate(self, argv, protocol):
        o = {"quant": "int8", "m": 16, "ef": 200, "metric": "COSINE", "kind": "HNSW"}
        o |= {"keep": "NONE", "dim": 0}
        links = False
        for i in range(2, len(argv), 2):
            w = argv[i].upper()
            if i + 1 == len(argv):
                raise Refused("ERR VCREATE option '")
            n = to_int(argv[i + 1])
            if w in VCREATE_WORDS:
                name, words = VCREATE_WORDS[w]
                o[name] = words.get(argv[i + 1].upper())
                if o[name] is None:
                    raise Refused(f"ERR invalid {w.decode()}")
            elif w in (b"DIM", b"M", b"EF"):
                low, high = {b"DIM": (1, DIM_MAX), b"M": (4, 4096), b"EF": (1, 1000000)}[w]
                if n is None or not low <= n <= high:
                    raise Refused(f"ERR invalid {w.decode()}")
                o[w.decode().lower()] = n
                links |= w != b"DIM"
            elif w == b"MODEL":
                o["model"] = True
            else:
                raise Refused("ERR invalid VCREATE option")
        if o["kind"] == "FLAT" and links:
            raise Refused("ERR M and EF belong to INDEX HNSW")
        if o.pop("model", False):
            raise Refused("ERR invalid MODEL: ")
        if o["dim"] == 0:
            raise Refused("ERR VCREATE takes DIM")
        s = self.find(argv[1])
        new = Set(o.pop("dim"), o.pop("quant"), o.pop("m"), declared=True, **o)
        if s is None:
            self.keys[argv[1]] = new
        elif s.parameters() != new.parameters():
            raise Refused("ERR the key exists already: a set made by")
        return ("+", b"OK")

    def vrem(self, argv, protocol):
        s = self.find(argv[1])
        found = s is not None and s.elements.pop(argv[2], None) is not None
        if found and not s.elements and not s.declared:
            del self.keys[argv[1]]
        return boolean(protocol, found)

    def vsetattr(self, argv, protocol):
        e = self.find_element(argv)
        if e is None:
            return boolean(protocol, False)
        if argv[3]:
            self.check_json(argv[3])
        e.attribute = argv[3] or None
        return boolean(protocol, True)

    # --- reading

    def vgetattr(self, argv, protocol):
        e = self.find_element(argv)
        return null(protocol) if e is None or e.attribute is None else bulk(e.attribute)

    def vismember(self, argv, protocol):
        return boolean(protocol, self.find_element(argv) is not None)

    def vcard(self, argv, protocol):
        s = self.find(argv[1])
        return integer(len(s.elements) if s else 0)

    def vdim(self, argv, protocol):
        s = self.find(argv[1])
        if s is None:
            raise Refused("ERR key does not exist")
        return integer(s.dim)

    def vemb(self, argv, protocol):
        if any(not is_word(a, "RAW") for a in argv[3:]):
            raise Refused("ERR invalid option")
        e = self.find_element(argv)
        if e is None:
            return null(protocol)
        if len(argv) > 3:
            return self.raw_code(e.code, protocol)
        return self.vector(self.keys[argv[1]], e, protocol)

    def vector(self, s, e, protocol):
        kept = s.kept(e)
        exact = kept.decoded()
        largest = float(np.max(np.abs(exact))) or 1.0
        # Half a step of quantization was taken into account by quantizing; one code may differ.
        slack = largest * {"f32": 1e-6, "f16": 1e-3, "int8": 1.01 / 127, "bin": 0}[kept.quant]
        slack += e.code.noise * (e.code.norm or 1.0)
        return array(Near(x, protocol, slack) for x in exact)

    def vget(self, argv, protocol):
        n = to_int(argv[2])
        if n is None or not 1 <= n <= len(argv) - 3:
            raise Refused("ERR VGET takes the number of elements")
        fields = [b"VECTOR", b"ATTRS", b"TEXT", b"TTL"]
        wanted = {a.upper() for a in argv[3 + n :]}
        if not wanted <= set(fields):
            raise Refused("ERR VGET has the fields VECTOR, ATTRS, TEXT and TTL")
        wanted = wanted or set(fields)
        s = self.find(argv[1])

        def one(name):
            e = s.elements.get(name) if s else None
            if e is None:
                return null(protocol)
            far = Rule(lambda got: None if got[0] == ":" and got[1] > 1000 else "no time", "ttl")
            values = {
                b"VECTOR": self.vector(s, e, protocol),
                b"ATTRS": null(protocol) if e.attribute is None else bulk(e.attribute),
                b"TEXT": null(protocol),
                b"TTL": far if e.expires else integer(-1),
            }
            pairs = [(bulk(f.lower()), values[f]) for f in fields if f in wanted]
            return mapping(protocol, pairs)

        return array(map(one, argv[3 : 3 + n]))

    def raw_code(self, code, protocol):
        def blob(got):
            if got[0] != "$" or got[1] is None:
                return "not a bulk string"
            if code.noise == math.inf:
                return None
            if code.quant == "int8":
                codes = np.frombuffer(got[1], np.int8).astype(np.float64)
                if len(codes) != len(code.bytes) or np.any(np.abs(codes - code.bytes) > 1):
                    return f"codes {codes} instead of {code.bytes}"
            elif code.quant == "bin":
                words = -(-len(code.bytes) // 64) * 8
                bits = np.packbits(code.bytes, bitorder="little").tobytes()
                if got[1] != bits.ljust(words, b"\0"):
                    return f"bits {got[1]!r} instead of {bits!r}"
            else:
                kind, slack = ("<f2", 1e-3) if code.quant == "f16" else ("<f4", 1e-6)
                found = np.frombuffer(got[1], kind).astype(np.float64)
                off = np.abs(found - code.unit) if len(found) == len(code.unit) else math.inf
                if np.any(off > slack + code.noise):
                    return f"components {found} instead of {code.unit}"

        def length(got):
            # Redis says 1 where a vector has no length.
            values = [code.norm, 1.0] if code.norm == 0 else [code.norm]
            problems = [Near(v, protocol, v * (1e-5 + code.noise)).problem(got) for v in values]
            return None if None in problems else problems[0]

        parts = [("+", code.quant.encode()), Rule(blob, "the code"), Rule(length, "the length")]
        if code.quant == "int8":
            # One code more or less changes kith's range by this much in small dimensions.
            slack = math.inf if code.noise == math.inf else 0.02 * code.range
            parts.append(Near(code.range, protocol, slack))
        return array(parts)

    def vlinks(self, argv, protocol):
        if len(argv) > 4 or (len(argv) == 4 and not is_word(argv[3], "WITHSCORES")):
            raise Refused(arity_error("VLINKS"))
        e = self.find_element(argv)
        if e is None:
            return null(protocol)
        s = self.keys[argv[1]]

        def level(got, scored, most):
            as_map = scored and protocol == 3
            if got[0] != ("%" if as_map else "*"):
                return f"a level is of type {got[0]}"
            pairs = got[1]
            if scored and not as_map:
                pairs = list(zip(pairs[::2], pairs[1::2]))
            elif not scored:
                pairs = [(x, None) for x in pairs]
            names = [x[1] for x, _ in pairs]
            if len(set(names)) != len(names) or len(names) > most or argv[2] in names:
                return f"links {names}"
            for (kind, name), score in pairs:
                if kind != "$" or name not in s.elements:
                    return f"{name!r} is not in the set"
                right, slack = s.score(e.code, s.elements[name].code)
                if scored and (p := Near(right, protocol, slack).problem(score)):
                    return f"score of {name!r}: {p}"

        def levels(got):
            if got[0] != "*" or not got[1]:
                return "no array of levels"
            for i, one in enumerate(got[1]):
                most = s.m if i < len(got[1]) - 1 else 2 * s.m
                if p := level(one, len(argv) == 4, most):
                    return p

        return Rule(levels, f"levels of links within {len(s.elements)} elements")

    def vinfo(self, argv, protocol):
        s = self.find(argv[1])
        if s is None:
            return null_array(protocol)
        with_attribute = sum(e.attribute is not None for e in s.elements.values())
        wanted = [
            ("quant-type", s.quant),
            ("hnsw-m", s.m),
            ("vector-dim", s.dim),
            ("projection-input-dim", s.projection),
            ("size", len(s.elements)),
            ("max-level", None),
            ("attributes-count", with_attribute),
            ("vset-uid", None),
            ("hnsw-max-node-uid", None),
        ]

        def rule(got):
            if got[0] != ("%" if protocol == 3 else "*"):
                return f"type {got[0]}"
            items = got[1]
            pairs = items if protocol == 3 else list(zip(items[::2], items[1::2]))
            if len(pairs) < len(wanted) or (self.redis and len(pairs) > len(wanted)):
                return f"{len(pairs)} fields"
            for (k, v), (name, value) in zip(pairs, wanted):
                if k != ("+", name.encode()):
                    return f"field {k} instead of {name}"
                if isinstance(value, str):
                    value = ("+", value.encode())
                    if v != value:
                        return f"{name} is {v} instead of {value}"
                elif name == "attributes-count" and not self.differs("attributes count"):
                    continue
                elif v[0] != ":" or v[1] < 0 or (value is not None and v[1] != value):
                    return f"{name} is {v} instead of {value}"

        return Rule(rule, f"fields {wanted}")

    def vrandmember(self, argv, protocol):
        if len(argv) > 3:
            raise Refused(arity_error("VRANDMEMBER"))
        n = 1
        if len(argv) == 3:
            n = to_int(argv[2])
            if n is None:
                raise Refused("ERR COUNT value is not an integer")
            if n == 0:
                return EMPTY
        s = self.find(argv[1])
        if s is None or not s.elements:
            return null(protocol) if len(argv) == 2 else EMPTY
        if n < -RANDOM_MAX and self.differs("random count"):
            raise Refused("ERR COUNT value is out of range")
        members = s.elements

        def one(got):
            if got[0] != "$" or got[1] not in members:
                return f"{got} is no member"

        if len(argv) == 2:
            return Rule(one, "a member")

        def many(got):
            if got[0] != "*":
                return f"type {got[0]}"
            if len(got[1]) != (-n if n < 0 else min(n, len(members))):
                return f"{len(got[1])} members"
            if n > 0 and len(set(got[1])) != len(got[1]):
                return "one member twice"
            return next((p for p in map(one, got[1]) if p), None)

        return Rule(many, f"{n} of {len(members)} members")

    def vrange(self, argv, protocol):
        if len(argv) > 5:
            raise Refused(arity_error("VRANGE"))
        count = -1
        if len(argv) == 5:
            count = to_int(argv[4])
            if count is None:
                raise Refused("ERR invalid COUNT value")
        for word, which in ((argv[2], "start"), (argv[3], "end")):
            if word not in (b"-", b"+") and not (len(word) > 1 and word[:1] in b"[("):
                raise Refused(f"ERR invalid {which} range format")
        if argv[2] == b"+" or argv[3] == b"-":
            raise Refused("ERR '-' can only be used as first argument, '+' only as second")
        s = self.find(argv[1])
        if s is None:
            return EMPTY
        low, high = argv[2], argv[3]
        names = [
            n
            for n in sorted(s.elements)
            if (low == b"-" or n > low[1:] or (n == low[1:] and low[:1] == b"["))
            and (high == b"+" or n < high[1:] or (n == high[1:] and high[:1] == b"["))
        ]
        return array(map(bulk, names if count < 0 else names[:count]))

    # --- searching

    def fields_of(self, text):
        """An attribute's fields as filters see them; None when it is not a JSON object."""
        text = text.decode("utf-8", "surrogateescape")
        if self.redis:
            text = re.sub(
                r"\\(.)", lambda m: m[0] if m[1] in 'nrt\\"' else m[1], text, flags=re.DOTALL
            )
        try:
            text.encode("utf-8")
            value = json.loads(text, object_pairs_hook=Pairs, parse_constant=no_constant)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, Pairs):
            return None
        names = [k for k, _ in value]
        if len(set(names)) != len(names):
            if not self.differs("json twice"):
                value = value[::-1]
        if "\\u" in text or "\\b" in text or "\\f" in text:
            self.differs("json escapes")
        return {to_bytes_text(k): self.value_of(v) for k, v in value}

    def value_of(self, v):
        """A JSON value in the filter's world; None where it has no place there."""
        if v is None:
            return NULL
        if isinstance(v, (bool, int, float)):
            return to_float(v)
        if isinstance(v, str):
            return to_bytes_text(v)
        if isinstance(v, Pairs):
            return None
        items = tuple(map(self.value_of, v))
        return None if None in items else items

    def vsim(self, argv, protocol):
        s = self.find(argv[1])
        if s is None:
            return EMPTY
        if is_word(argv[2], "ELE"):
            if argv[3] not in s.elements:
                raise Refused("ERR element not found in set")
            at, e = 4, s.elements[argv[3]]
            query = Query(s, e.vector, full=e) if s.keep != "NONE" else Query(s, code=e.code)
        else:
            vector, _, at = self.parse_vector(argv, 2, asks=True)
            given = None
            if s.projection and len(vector) != s.dim:
                self.check_projection(s, vector)
                given, vector = vector, project(vector, s.dim)
            if len(vector) != s.dim:
                raise Refused(
                    f"ERR Vector dimension mismatch - got {len(vector)} but set has {s.dim}"
                )
            query = Query(s, vector, given, redis=self.redis)
        return self.search(s, query, self.search_options(argv, at, s), protocol)

    def vrecommend(self, argv, protocol):
        s = self.find(argv[1])
        if s is None:
            return EMPTY
        if not is_word(argv[2], "POS"):
            raise Refused("ERR syntax error in VRECOMMEND command")
        named, at = self.examples(argv, 3, s)
        vector = self.mean(s, named)
        length = np.linalg.norm(vector)
        if at < len(argv) and is_word(argv[at], "NEG"):
            against, at = self.examples(argv, at + 1, s)
            mean = self.mean(s, against)
            length = 2 * length + np.linalg.norm(mean)
            vector = 2 * vector - mean
            named = named + against
        o = self.search_options(argv, at, s, "VRECOMMEND")
        o["exclude"] = set(named)
        return self.search(s, Query(s, vector, [length, 0, 0, 0]), o, protocol)

    def examples(self, argv, at, s):
        """(names, next argument)"""
        n = to_int(argv[at]) if at < len(argv) else None
        word = argv[at - 1].decode().upper()
        if n is None or not 1 <= n < 2**31 or n > len(argv) - at - 1:
            raise Refused(f"ERR invalid {word}")
        names = argv[at + 1 : at + 1 + n]
        if any(name not in s.elements for name in names):
            raise Refused("ERR element not found in set")
        return names, at + 1 + n

    def mean(self, s, names):
        """Of directions where only they count. A vector of zeros has none and adds nothing, even
        where its binary code has a sign for every component."""
        codes = [s.kept(s.elements[n]) for n in names]
        length = math.sqrt(s.dim)
        units = [c.unit * (c.norm > 0) / length if c.quant == "bin" else c.unit for c in codes]
        if s.metric != "COSINE":
            units = [u * c.norm for u, c in zip(units, codes)]
        return np.mean(units, axis=0)

    def search_options(self, argv, at, s, command="VSIM"):
        o = {"count": 10, "epsilon": None, "ef": 100, "filter": None, "filter_ef": None}
        o |= {"scores": False, "attributes": False, "truth": False, "explain": False}
        o |= {"radius": None, "offset": 0, "mmr": None, "rescore": None, "exclude": set()}
        flags = {b"WITHSCORES": "scores", b"WITHATTRIBS": "attributes", b"TRUTH": "truth"}
        valued = [b"COUNT", b"EPSILON", b"EF", b"FILTER", b"FILTER-EF"]
        if not self.redis:
            flags[b"EXPLAIN"] = "explain"
            valued += [b"RADIUS", b"OFFSET", b"MMR", b"RESCORE"]
        counted = False
        rest = iter(argv[at:])
        for word in rest:
            w = word.upper()
            if w in flags or w == b"NOTHREAD":
                o[flags.get(w, "nothing")] = True
                continue
            value = next(rest, None) if w in valued else None
            if value is None:
                if w in valued and self.differs("missing value"):
                    raise Refused(f"ERR invalid {w.decode()}")
                raise Refused(f"ERR syntax error in {command} command")
            counted |= w == b"COUNT"
            if w == b"FILTER":
                o["filter"] = self.compile(value)
            elif w in (b"EPSILON", b"RADIUS", b"MMR"):
                o[w.decode().lower()] = self.double_option(s, w, value)
            elif w == b"EF" and value.upper() == b"AUTO" and not self.redis:
                d = to_double(next(rest, b""))
                if d is None or not 0 < d <= 1:
                    raise Refused("ERR invalid EF AUTO")
                o["ef"] = 0  # not known: nothing is said about what is found
            else:
                o[w.decode().lower().replace("-", "_")] = self.integer_option(w, value)
        if o["radius"] is not None and not counted:
            o["count"] = COUNT_MAX
        if o["mmr"] is not None and o["count"] > 1000:
            raise Refused("ERR invalid MMR")
        if o["rescore"] and (s.keep == "NONE" or o["rescore"] < o["count"] < COUNT_MAX):
            raise Refused("ERR invalid RESCORE")
        return o

    def double_option(self, s, w, value):
        d = to_double(value)
        if w == b"EPSILON":
            good = d is not None and d > 0
        elif w == b"MMR":
            good = d is not None and 0 <= d <= 1
        else:
            low, high = {"COSINE": (0, 2), "L2": (0, math.inf), "IP": (-math.inf, math.inf)}[
                s.metric
            ]
            good = d is not None and low <= d <= high
        if not good:
            raise Refused(f"ERR invalid {w.decode()}")
        return d

    def integer_option(self, w, value):
        n = to_int(value)
        if n == 0 and w == b"FILTER-EF" and self.differs("filter-ef 0"):
            return COUNT_MAX
        low = 0 if w in (b"OFFSET", b"RESCORE") else 1
        high = {b"EF": 1000000, b"RESCORE": 1000000, b"OFFSET": 2**32 - 1}.get(w, COUNT_MAX)
        if w in (b"COUNT", b"FILTER-EF") and n is not None and n >= 2**32:
            high = 2**32 - 1 if self.differs("large count") else high
        if n is None or not low <= n <= high:
            raise Refused(f"ERR invalid {w.decode()}")
        return n

    def compile(self, text):
        text = text.decode("latin-1")
        programs = []
        for redis in (True, False):
            try:
                programs.append(vset_filter.compile(text, redis))
            except BadExpression:
                programs.append(None)
        if (programs[0] is None) != (programs[1] is None):
            self.differs("filter grammar")
        program = programs[0] if self.redis else programs[1]
        if program is None:
            raise Refused("ERR syntax error in FILTER expression near:")
        return program

    def matches(self, element, program):
        if element.attribute is None:
            return False
        if element.attribute == b"" and self.differs("empty attribute"):
            return False
        # No field is found in what is no JSON, but an expression may ask for none.
        return vset_filter.run(program, self.fields_of(element.attribute) or {})

    def search(self, s, query, o, protocol):
        """right: name -> the scores it may have, the first being the one it goes by."""
        scores = [s.scores(query.code)]
        exact_scores = s.keep == "NONE" or o["rescore"] == 0
        if s.keep != "NONE" and (o["truth"] or o["rescore"] != 0):
            full = s.scores(query.full, full=True)
            scores = [full] if o["truth"] else [full, scores[0]]
        right = {
            n: [part[n] for part in scores]
            for n, e in s.elements.items()
            if n not in o["exclude"] and (o["filter"] is None or self.matches(e, o["filter"]))
        }
        edge = max(self.edges(s, o))
        skip, count = o["offset"], o["count"]
        sure = sum(all(x > edge + slack for x, slack in both) for both in right.values())
        maybe = sum(any(x >= edge - slack for x, slack in both) for both in right.values())
        least, most = (min(count, max(0, n - skip)) for n in (sure, maybe))
        reach = o["ef"] and max(o["ef"], count + skip) >= len(s.elements)
        if o["filter"] is not None and o["filter_ef"] is not None:
            reach = reach and o["filter_ef"] >= len(s.elements)
        exact = o["truth"] or (bool(reach) and exact_scores)
        best = sorted((both[0] for both in right.values()), reverse=True)[skip:]
        bounds = (least, most, exact, best)

        def rule(got):
            if o["explain"]:
                got, p = self.explained(got, protocol)
                if p:
                    return p
            return self.found(got, s, o, right, bounds, protocol)

        shown = sorted(right.items(), key=lambda x: -x[1][0][0])[: skip + min(count, 30)]
        return Rule(rule, f"{least} to {most} of {shown}")

    EXPLAINED = ["plan", "reason", "ef", "visits", "filter-asked", "filter-passed"]
    EXPLAINED += ["selectivity-estimate", "recall-estimate", "microseconds", "results"]

    def explained(self, got, protocol):
        if got[0] != ("%" if protocol == 3 else "*"):
            return got, f"type {got[0]}"
        pairs = got[1] if protocol == 3 else list(zip(got[1][::2], got[1][1::2]))
        if [k for k, _ in pairs] != [bulk(n.encode()) for n in self.EXPLAINED]:
            return got, f"fields {[k for k, _ in pairs]}"
        return pairs[-1][1], None

    def edges(self, s, o):
        """The scores below which nothing may be found."""
        yield -math.inf
        if self.redis or o["epsilon"] is not None:
            yield 1 - (2.0 if o["epsilon"] is None else o["epsilon"])
        if (r := o["radius"]) is not None:
            yield {"COSINE": 1 - r / 2, "L2": 1 / (1 + r) if r >= 0 else 0, "IP": r}[s.metric]

    def found(self, got, s, o, right, bounds, protocol):
        least, most, exact, best = bounds
        extra = o["scores"] + o["attributes"]
        as_map = protocol == 3 and extra > 0
        if got[0] != ("%" if as_map else "*"):
            return f"type {got[0]}"
        if as_map:
            rows = [[k, *(v[1] if extra == 2 else [v])] for k, v in got[1]]
            if extra == 2 and any(v[0] != "*" or len(v[1]) != 2 for _, v in got[1]):
                return "a value of the map is not an array of two"
        else:
            n = 1 + extra
            if len(got[1]) % n:
                return f"{len(got[1])} items"
            rows = [got[1][i : i + n] for i in range(0, len(got[1]), n)]
        if len(rows) > most or (exact and len(rows) < least):
            return f"{len(rows)} results instead of {least} to {most}"
        if len({r[0] for r in rows}) != len(rows):
            return "one element twice"
        last = math.inf
        for i, row in enumerate(rows):
            kind, name = row[0]
            if kind != "$" or name not in right:
                return f"{name!r} is not in the set, or does not match"
            mine, slack = right[name][0]
            if o["scores"]:
                problems = [Near(x, protocol, off).problem(row[1]) for x, off in right[name]]
                if None not in problems:
                    return f"score of {name!r}: {problems[0]}"
                score = float(row[1][1])
                if score > last and o["mmr"] is None:
                    return "worse before better"
                last = score
            if exact and o["mmr"] is None and mine + slack < best[i][0] - best[i][1]:
                return f"place {i}: {name!r} with {mine}, but there is {best[i][0]}"
            if o["attributes"]:
                a = s.elements[name].attribute
                if p := match(null(protocol) if a is None else bulk(a), row[-1]):
                    return f"attribute of {name!r}: {p}"
        return None


class Pairs(list):
    """A JSON object, in order and with its doubles."""


def to_bytes_text(text):
    """One character a byte, as filters are compiled."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def to_float(v):
    try:
        return float(v)
    except OverflowError:
        return math.copysign(math.inf, v)
