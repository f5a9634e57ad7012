"""Random vector set commands, right ones and wrong ones: the whole grammar in any order, for
test_vset_oracle.py. All of it comes from one seeded random.Random."""

import random
import struct

LONGEST = 2**63 - 1

# What each key is made with, when a command makes it: most calls keep to it.
PROFILES = {
    b"plain": {"dim": 4, "quant": b"NOQUANT"},
    b"q8": {"dim": 6, "quant": b"Q8"},
    b"default": {"dim": 3, "quant": None},
    b"bin": {"dim": 70, "quant": b"BIN"},
    b"m8": {"dim": 2, "quant": b"NOQUANT", "m": 8},
    b"reduced": {"dim": 9, "quant": b"NOQUANT", "reduce": 5},
    b"reduced q8": {"dim": 20, "quant": b"Q8", "reduce": 8},
    b"one": {"dim": 1, "quant": None},
    b"": {"dim": 5, "quant": b"NOQUANT"},
    b"\x00\xff\r\n": {"dim": 4, "quant": None},
    b"k" * 70000: {"dim": 4, "quant": b"Q8", "m": 4},
}
# Keys that VCREATE makes, each time in another way.
DECLARED = {b"made %d" % i: {"dim": 4, "quant": None} for i in range(5)}
STRING_KEY, NO_KEY = b"a string", b"no key"

NAMES = [b"e%d" % i for i in range(24)]
NAMES += [b"", b"\x00", b"\r\n", b"\xff\xfe", b"\xc3\xa9", b"[x", b"(x", b"-", b"+", b"e1\x00"]
NAMES += [b"n" * n for n in (1, 27, 28, 29, 56, 300, 65535)]
TOO_LONG = b"N" * 70000
ABSENT = [b"absent", b"e", b"E1", b"e1 ", b"n" * 55]

INTEGERS = [b"1", b"2", b"3", b"5", b"10", b"100", b"1000"]
ODD_INTEGERS = [b"0", b"-1", b"-3", b"", b"x", b"1.5", b"1e2", b"+1", b"01", b" 1", b"1 ", b"-0"]
ODD_INTEGERS += [b"9223372036854775807", b"9223372036854775808", b"99999999999999999999"]
ODD_INTEGERS += [b"4294967296", b"2147483648", b"1000000", b"1000001", b"0x10", b"\x00", b"1\x00"]
HUGE_NEGATIVE = [b"-9223372036854775808", b"-9223372036854775809", b"-4000000000000"]

GOOD_NUMBERS = [b"0x10", b"+1", b".5", b"5.", b"1e+5", b"1E-5", b"-0", b"00012", b"1e0"]
BAD_NUMBERS = [b"nan", b"NaN", b"-nan", b"1e400", b"-1e400", b"1e-400", b" 1", b"1 ", b"", b"x"]
BAD_NUMBERS += [b"1_0", b"+-1", b"1e", b"0b1", b"1d", b"--1", b"1,5", b"1\x00"]
NOT_FINITE = [b"inf", b"-inf", b"infinity", b"1e39", b"-1e300"]

GOOD_JSON = [
    b"{}",
    b'{"year": 1984, "name": "The Matrix"}',
    b'{"year":1999.5,"tags":["a","b"],"on":true}',
    b'{"year":"2001","name":"","on":false,"none":null}',
    b'{"age":-3,"year":0,"tags":[1,2,3]}',
    b' {"age" : 1e2 , "name" : "it\'s" , "tags" : [ ] } ',
    b'{"name":"a\\"b\\\\c\\nd","year":2024,"inner":{"x":[1]}}',
    '{"name":"\u00e9\u4e16","año":1,"year":10}'.encode(),
    b'{"a-b":5,"a_b":6,"0":7,"year":2020,"tags":["x",null,true,false,5]}',
    b'{"year":1e400,"age":0.1}',
    b'{"tags":"substring of this","name":"sub"}',
    b'{"in":1,"and":2,"null":3,"year":3}',
    b'{"year":1000000,"age":99999999999999999999}',
    b"{\"name\":\"" + b"n" * 3000 + b"\",\"year\":5}",
]
OTHER_JSON = [
    b'{"year":1,"year":2}',
    b'{"name":"\\u0041\\u00e9","year":7}',
    b'{"name":"\\/x\\b","age":1}',
    b'{"\\u0061ge":44,"year":8}',
    b'{"tags":[[1,2],3],"year":9}',
    b'{"tags":[{"x":1}],"year":9}',
]
BAD_JSON = [b"x", b"{", b'{"year"', b"[1,2]", b"5", b'"s"', b"null", b"{year:1984}", b"\xff", b" "]
BAD_JSON += [b"{'year':1}", b'{,"year":1}', b'{"year" 1}', b"\x00", b"not json at all"]
# Redis' filters find fields in these; they are for servers that check.
LOOSE_JSON = [b'{"year":1', b'{"year":1}x', b'{"year":1,}', b'{"year":01}', b'{"on":tru}']
LOOSE_JSON += [b'{"year":+1}', b'{"year":.5}', b'{"year":NaN}', b'{"tags":[1,]}', b'{"year":1}{}']
LOOSE_JSON += [b'{"name":"a\nb"}', b'{"name":"\\x"}', b'{"year":1.}', b'{"year":0x10}']

FIELDS = [b".year", b".age", b".name", b".tags", b".on", b".none", b".inner", b".missing", b".a-b"]
FIELDS += [b".a_b", b".0", b".in", b".null"]
ATOMS = [b"1984", b"2000", b"-3", b"0", b"1.5", b"1e2", b".5", b"null", b"'The Matrix'", b'"sub"']
ATOMS += [b"''", b"'5'", b"'x\\'y'", b"[1,2,3]", b"['a', 'b']", b"[]", b"[1, 'a',]", b"[ -1 ]"]
ATOMS += [b"'0x10'", b"'inf'", b"'a'", b"true", b"\"\xc3\xa9\"", b"' 7'"]
BINARY = [b"==", b"!=", b">", b">=", b"<", b"<=", b"in", b"and", b"or", b"&&", b"||", b"+", b"-"]
BINARY += [b"*", b"/", b"%", b"**"]
BROKEN_FILTERS = [b"", b" ", b"foo", b"1 2", b"(1", b"1)", b"()", b"1 +", b"+ 1", b"== 1", b"."]
BROKEN_FILTERS += [b".year =", b".year = 1", b"'open", b"[1", b"[1 2]", b"[[1]]", b"[.a]", b"1.2.3"]
BROKEN_FILTERS += [b".a.b", b"1e-5 < 2", b"5 not", b"not not 5", b"!!1", b"1 2 +", b"and", b"\xff"]
BROKEN_FILTERS += [b".year > 1 AND 1", b"#", b"1e", b"in", b"'a' in", b"$x", b"nul", b"null null"]
BROKEN_FILTERS += [b"a" * 3000, b"(" * 90, b"[-]", b".year & 1", b"{}", b"1 and and 2", b"- 1"]

WORDS = [b"", b"BAD", b"COUNT", b"WITHSCORES", b"SETATTR", b"REDUCE", b"FP32", b"ELE", b"NX", b"\x00"]


class Generator:
    """redis: leaves out what Redis does not have, and what it survives only as something that no
    model can follow."""

    def __init__(self, rng, redis=False, quants=(b"NOQUANT", b"Q8", b"BIN")):
        self.r = rng
        self.redis = redis
        self.quants = list(quants)
        self.seen_blobs = []
        self.profiles = PROFILES if redis else PROFILES | DECLARED

    def chance(self, p):
        return self.r.random() < p

    def case(self, word):
        """Command words are taken in any case."""
        if self.chance(0.8):
            return word
        return bytes(self.r.choice([c, c ^ 32]) if chr(c).isalpha() else c for c in word)

    def key(self):
        x = self.r.random()
        if x < 0.04:
            return STRING_KEY
        if x < 0.09:
            return NO_KEY
        return self.r.choice(list(self.profiles))

    def name(self):
        if self.chance(0.01):
            return TOO_LONG
        return self.r.choice(NAMES)

    def member(self):
        return self.r.choice(ABSENT) if self.chance(0.1) else self.name()

    def odd_integer(self):
        return self.r.choice(ODD_INTEGERS)

    def integer(self, odd=0.1):
        return self.odd_integer() if self.chance(odd) else self.r.choice(INTEGERS)

    def component(self):
        x = self.r.random()
        if x < 0.3:
            return float(self.r.randint(-5, 5))
        scale = 1.0 if x < 0.9 else self.r.choice([1e-6, 1e6, 1e-20, 1e15])
        return self.r.gauss(0, 1) * scale

    def components(self, dim):
        if self.chance(0.02):
            return [0.0] * dim
        if self.chance(0.1) and self.seen_blobs:
            same = self.r.choice(self.seen_blobs)
            if len(same) == dim:
                return same
        v = [self.component() for _ in range(dim)]
        self.seen_blobs = self.seen_blobs[-50:] + [v]
        return v

    def vector(self, dim, odd=0.06):
        """FP32 blob or VALUES n v.., sometimes broken."""
        v = self.components(dim)
        if self.chance(0.5):
            blob = struct.pack(f"<{dim}f", *v)
            if self.chance(odd):
                if not self.redis and self.chance(0.4):
                    bad = self.r.choice([float("nan"), float("inf"), float("-inf")])
                    v[self.r.randrange(dim)] = bad
                    blob = struct.pack(f"<{dim}f", *v)
                else:
                    blob = self.r.choice([b"", b"123", blob[:-1], blob + b"x", blob[:3]])
            return [self.case(b"FP32"), blob]
        words = [repr(x).encode() for x in v]
        n = str(dim).encode()
        if self.chance(0.2):
            words[self.r.randrange(dim)] = self.r.choice(GOOD_NUMBERS)
        if self.chance(odd):
            x = self.r.random()
            at = self.r.randrange(dim)
            if x < 0.4:
                words[at] = self.r.choice(BAD_NUMBERS)
            elif x < 0.55 and not self.redis:
                words[at] = self.r.choice(NOT_FINITE)
            elif x < 0.75:
                n = self.r.choice([self.odd_integer(), b"65537", str(dim + 1).encode()])
            else:
                words.pop()
        return [self.case(b"VALUES"), n, *words]

    def json(self):
        x = self.r.random()
        if x < 0.7:
            return self.r.choice(GOOD_JSON)
        if x < 0.8:
            return self.r.choice(OTHER_JSON)
        if x < 0.88:
            return b""
        return self.r.choice(BAD_JSON if self.redis else BAD_JSON + LOOSE_JSON)

    def profile(self, key):
        return self.profiles.get(key, PROFILES[b"default"])

    def odd_dim(self, dim):
        return dim if not self.chance(0.05) else self.r.choice([1, 2, 3, dim + 1, dim * 2, 33])

    def vadd(self):
        key = self.key()
        p = self.profile(key)
        words = [self.case(b"VADD"), key]
        reduce = p.get("reduce")
        if self.chance(0.04):
            reduce = self.r.choice([None, 1, 5, 100])
        if reduce:
            n = self.odd_integer() if self.chance(0.03) else str(reduce).encode()
            words += [self.case(b"REDUCE"), n]
        words += self.vector(self.odd_dim(p["dim"]))
        if self.chance(0.98):
            words.append(self.name())
        options = []
        quant = p["quant"]
        if self.chance(0.04):
            quant = self.r.choice([None, *self.quants])
        if quant:
            options.append([quant])
        if m := p.get("m", self.r.choice([None, 16]) if self.chance(0.1) else None):
            options.append([b"M", str(m).encode()])
        if self.chance(0.02):
            options.append([b"M", self.integer(0.5)])
        if self.chance(0.35):
            options.append([b"SETATTR", self.json()])
        if self.chance(0.2):
            options.append([b"EF", self.integer(0.05)])
        if self.chance(0.15):
            options.append([b"CAS"])
        return words + self.mixed(options + self.expiry())

    def expiry(self):
        """Times that do not come during the test, and wrong ones."""
        if self.redis or self.chance(0.9):
            return []
        word = self.r.choice([b"EX", b"PX"])
        if self.chance(0.2):
            return [[word, self.r.choice([b"0", b"-5", b"x", b"9223372036854775807"])]]
        return [[word, b"100000" if word == b"EX" else b"100000000"]]

    def vmadd(self):
        key = self.key()
        p = self.profile(key)
        words = [self.case(b"VMADD"), key]
        if "reduce" in p or self.chance(0.03):
            words += [self.case(b"REDUCE"), str(p.get("reduce", 2)).encode()]
        options = []
        quant = self.r.choice([None, *self.quants]) if self.chance(0.04) else p["quant"]
        if quant:
            options.append([quant])
        if "m" in p:
            options.append([b"M", str(p["m"]).encode()])
        if self.chance(0.2):
            options.append([b"EF", self.integer(0.05)])
        words += self.mixed(options + self.expiry())
        dim, n = self.odd_dim(p["dim"]), self.r.randint(1, 8)
        blobs, attributes = self.chance(0.5), self.chance(0.4)
        words += [self.case(b"FP32" if blobs else b"VALUES"), str(n).encode()]
        if not blobs:
            words.append(str(dim).encode())
        if attributes:
            words.append(self.case(b"ATTRS"))
        for i in range(n):
            vector = self.components(dim)
            if self.chance(0.004):
                vector = [3e38] * dim
            words.append(self.name())
            if blobs:
                words.append(struct.pack(f"<{dim}f", *vector))
            else:
                words += [repr(x).encode() for x in vector]
            if attributes:
                words.append(self.r.choice(GOOD_JSON + [b""]))
        if self.chance(0.1):
            at = self.r.randrange(2, len(words))
            bad = [*ODD_INTEGERS, *NOT_FINITE, *BAD_JSON[:3], b"ATTRS", TOO_LONG]
            words[at : at + self.r.randint(0, 1)] = [self.r.choice(bad)]
        if self.chance(0.03):
            words.pop()
        return words

    def vcreate(self):
        key = self.key() if self.chance(0.3) else self.r.choice(list(DECLARED))
        dim = str(self.profile(key)["dim"] if self.chance(0.9) else 7).encode()
        options = [[b"DIM", self.integer(0.5) if self.chance(0.05) else dim]]
        choices = {
            b"METRIC": [b"COSINE", b"L2", b"IP"],
            b"INDEX": [b"HNSW", b"FLAT"],
            b"QUANT": [b"F32", b"F16", b"Q8", b"BIN"],
            b"KEEP": [b"NONE", b"F32", b"F16"],
            b"M": [b"4", b"16", b"100"],
            b"EF": [b"50", b"200"],
        }
        for word, values in choices.items():
            if self.chance(0.15 if word in (b"M", b"EF") else 0.5):
                wrong = [*ODD_INTEGERS, b"COSINE", b"INT8", b"NOQUANT", b"3", b"4097"]
                values = wrong if self.chance(0.03) else values
                options.append([word, self.case(self.r.choice(values))])
        if self.chance(0.02):
            options.append([b"MODEL", b"some model"])
        return [self.case(b"VCREATE"), key, *self.mixed(options)]

    def vget(self):
        n = self.r.randint(1, 5)
        words = [self.case(b"VGET"), self.key(), str(n).encode()]
        words += [self.member() for _ in range(n)]
        fields = [b"VECTOR", b"ATTRS", b"TEXT", b"TTL"]
        words += [self.case(f) for f in self.r.sample(fields, self.r.randint(0, 4))]
        if self.chance(0.05):
            words[2] = self.odd_integer()
        if self.chance(0.03):
            words.append(self.r.choice(WORDS))
        return words

    def mixed(self, options):
        """Options in any order, some twice, some wrong, the last one perhaps cut off."""
        if options and self.chance(0.1):
            options.append(self.r.choice(options))
        if self.chance(0.03):
            options.append([self.r.choice(WORDS)])
        self.r.shuffle(options)
        words = [self.case(o[0]) if i == 0 else w for o in options for i, w in enumerate(o)]
        if self.chance(0.02) and words:
            words.pop()
        return words

    def filter(self, depth=0):
        x = self.r.random()
        if depth == 0 and x < 0.08:
            return self.r.choice(BROKEN_FILTERS)
        if depth == 0 and x < 0.5:
            return self.r.choice(FIELDS) + b" " + self.r.choice(BINARY[:7]) + b" " + self.atom()
        if depth > 3 or x < 0.3:
            return self.atom()
        if x < 0.4:
            return self.r.choice([b"not ", b"!", b"! "]) + b"(" + self.filter(depth + 1) + b")"
        if x < 0.5:
            return b"(" + self.filter(depth + 1) + b")"
        op = self.r.choice(BINARY)
        gap = self.r.choice([b" ", b"  ", b"\n"])
        text = self.filter(depth + 1) + gap + op + gap + self.filter(depth + 1)
        if depth == 0 and self.chance(0.1):
            at = self.r.randrange(len(text))
            text = text[:at] + self.r.choice([b"", b" ", b"(", b")", b"'", b"+", b"1"]) + text[at + 1 :]
        return text

    def atom(self):
        return self.r.choice(FIELDS if self.chance(0.5) else ATOMS)

    def vsim(self):
        key = self.key()
        p = self.profile(key)
        words = [self.case(b"VSIM"), key]
        x = self.r.random()
        if x < 0.4:
            words += [self.case(b"ELE"), self.member()]
        elif x < 0.97:
            dim = p["dim"]
            if "reduce" in p and self.chance(0.3):
                dim = p["reduce"]
            words += self.vector(self.odd_dim(dim))
        else:
            words += [self.r.choice(WORDS + [b"REDUCE"]), self.r.choice(WORDS)]
        return words + self.mixed(self.search_options())

    def search_options(self):
        options = []
        for chance, word in [(0.6, b"WITHSCORES"), (0.4, b"WITHATTRIBS"), (0.3, b"TRUTH"), (0.1, b"NOTHREAD")]:
            if self.chance(chance):
                options.append([word])
        for chance, word in [(0.5, b"COUNT"), (0.2, b"EF"), (0.1, b"FILTER-EF")]:
            if self.chance(chance):
                options.append([word, self.integer(0.08)])
        if self.chance(0.2):
            number = self.r.choice([b"0.1", b"0.2", b"0.5", b"1", b"2", b"0.001", b"1e300", b"inf"])
            if self.chance(0.15):
                number = self.r.choice([b"0", b"-1", *BAD_NUMBERS])
            options.append([b"EPSILON", number])
        if self.chance(0.45):
            options.append([b"FILTER", self.filter()])
        return options if self.redis else options + self.our_search_options()

    def our_search_options(self):
        options = []
        choices = [
            (0.08, b"RADIUS", [b"0.1", b"0.5", b"1", b"2", b"0", b"-1", b"100", b"x", b"nan"]),
            (0.1, b"OFFSET", [b"0", b"1", b"2", b"5", b"100", b"-1", b"x"]),
            (0.06, b"MMR", [b"0", b"0.3", b"0.5", b"1", b"1.1", b"-0.1", b"x"]),
            (0.06, b"RESCORE", [b"0", b"10", b"100", b"1", b"-1", b"1000001"]),
        ]
        for chance, word, values in choices:
            if self.chance(chance):
                options.append([word, self.r.choice(values)])
        if self.chance(0.03):
            options.append([b"EF", b"AUTO", self.r.choice([b"0.9", b"1", b"0", b"x"])])
        if self.chance(0.06):
            options.append([b"EXPLAIN"])
        return options

    def vrecommend(self):
        words = [self.case(b"VRECOMMEND"), self.key()]
        for word, chance in ((b"POS", 0.99), (b"NEG", 0.5)):
            if self.chance(chance):
                n = self.r.randint(1, 3)
                number = self.odd_integer() if self.chance(0.03) else str(n).encode()
                words += [self.case(word), number, *(self.known() for _ in range(n))]
        return words + self.mixed(self.search_options())

    def known(self):
        """An element that is likely there."""
        return self.member() if self.chance(0.1) else self.r.choice(NAMES[:24])

    def of_key(self, command, odd=0.04):
        words = [self.case(command), self.key()]
        if self.chance(odd):
            words.append(self.r.choice(WORDS))
        if self.chance(odd / 2):
            words = words[:1]
        return words

    def of_member(self, command, *options):
        words = [self.case(command), self.key(), self.member()]
        for o in options:
            if self.chance(0.4):
                words.append(self.case(o))
        if self.chance(0.04):
            words.append(self.r.choice(WORDS))
        if self.chance(0.02):
            words = words[: self.r.randrange(1, 3)]
        return words

    def vrem(self):
        return self.of_member(b"VREM")

    def vcard(self):
        return self.of_key(b"VCARD")

    def vdim(self):
        return self.of_key(b"VDIM")

    def vinfo(self):
        return self.of_key(b"VINFO")

    def vemb(self):
        return self.of_member(b"VEMB", b"RAW")

    def vlinks(self):
        return self.of_member(b"VLINKS", b"WITHSCORES")

    def vgetattr(self):
        return self.of_member(b"VGETATTR")

    def vismember(self):
        return self.of_member(b"VISMEMBER")

    def vsetattr(self):
        words = [self.case(b"VSETATTR"), self.key(), self.member(), self.json()]
        if self.chance(0.03):
            words = words[: self.r.randrange(1, 4)]
        if self.chance(0.02):
            words.append(self.r.choice(WORDS))
        return words

    def vrandmember(self):
        words = [self.case(b"VRANDMEMBER"), self.key()]
        if self.chance(0.85):
            x = self.r.random()
            if x < 0.7:
                words.append(str(self.r.randint(-40, 60)).encode())
            elif x < 0.95 or self.redis:
                words.append(self.odd_integer())
            else:
                words.append(self.r.choice(HUGE_NEGATIVE))
        if self.chance(0.03):
            words.append(self.r.choice(WORDS))
        return words

    def bound(self):
        x = self.r.random()
        if x < 0.3:
            return self.r.choice([b"-", b"+"])
        if x < 0.38:
            return self.r.choice([b"", b"[", b"(", b"e1", b"--", b"{e", b"\x00"])
        return self.r.choice([b"[", b"("]) + (self.member() or b"e")

    def vrange(self):
        low, high = self.bound(), self.bound()
        if self.chance(0.6):
            low = b"-" if low == b"+" else low
            high = b"+" if high == b"-" else high
        words = [self.case(b"VRANGE"), self.key(), low, high]
        if self.chance(0.5):
            words.append(self.r.choice([b"-1", b"-7", b"0", b"1", b"2", b"10", self.integer(0.5)]))
        if self.chance(0.02):
            words.append(self.r.choice(WORDS))
        if self.chance(0.02):
            words = words[: self.r.randrange(1, 4)]
        return words

    def command(self, name):
        return getattr(self, name.lower())()

    def change(self):
        """Something that keeps the data in motion."""
        x = self.r.random()
        if not self.redis and x < 0.15:
            return self.vmadd() if x < 0.1 else self.vcreate()
        if x < 0.7:
            return self.vadd()
        return self.vrem() if x < 0.85 else self.vsetattr()


def seeded(seed):
    return random.Random(seed)
