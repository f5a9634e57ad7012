"""The model of what a client may expect to find after the server's end, one of *prefixes*.

One connection (a Writer) owns one database and numbers its operations 1, 2, 3... The server runs
them in order, so whatever happens to the process, the database must afterwards be exactly the state
after the first k operations for some k with

    newest acknowledged <= k <= newest sent   and   newest seen by any reader <= k

and an operation (also a transaction or an MSET) is never half there.
"""

import random
import time
from collections import namedtuple

from crashlib import Error, pack

DIM = 16
_rng = random.Random(1)
VECTORS = [[_rng.gauss(0, 1) for _ in range(DIM)] for _ in range(1021)]
VECTOR_WORDS = [[b"%.6f" % x for x in v] for v in VECTORS]


def vector_number(db, n):
    return (db * 7919 + n * 31) % len(VECTORS)


def vector_is(reply, number, quantized):
    """Whether a VEMB reply is VECTORS[number], as exactly as the set keeps it."""
    v = VECTORS[number]
    if not isinstance(reply, list) or len(reply) != DIM:
        return False
    slack = 1.1 * max(abs(x) for x in v) / 127 if quantized else 2e-5 * DIM
    return all(abs(float(r) - x) <= slack for r, x in zip(reply, v))


def cosine_score(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    na, nb = sum(x * x for x in a) ** 0.5, sum(x * x for x in b) ** 0.5
    return (1 + dot / (na * nb)) / 2


# --- the model ----------------------------------------------------------------------------------
#
# A database is {key: (value, expire_ms)}; a value is bytes, or for a vector set
# {element: (number of its vector, its attributes or None)}. The sets fset and fset2 keep floats,
# others are quantized; dset is declared, so it may be empty. In xset every element has a time:
# {element: Due(number, attributes, when it was asked for in ms, its time to live in ms)}; nobody
# waits for the reply of anything that depends on which of them are still there. An operation is
# (number, commands, change): change(db) does to the dict what the commands do to the database
# and returns the reply of the last command.

Due = namedtuple("Due", "number attributes asked_ms px")


class Operations:
    """Makes the numbered operations of one writer; the same seed makes the same list. short:
    elements of xset may live for less than a second."""

    def __init__(self, seed, db, big=0, short=True):
        self.short = short
        self.rng = random.Random(f"{seed}/{db}")
        self.db, self.n, self.big = db, 0, big
        # (share, what makes it)
        self.kinds = [
            (30, self.set),
            (6, self.incrby),
            (6, self.append),
            (6, self.delete),
            (5, self.expire),
            (5, self.mset),
            (6, self.transaction),
            (3, self.rename),
            (27, self.vadd),
            (4, self.vrem),
            (5, self.vsetattr),
            (2, self.vcreate),
            (4, self.vadd_expiring),
            (0.2, self.drop_set),
            (0.08, self.flush),
            (0.9, self.large),
        ]
        self.shares = [k[0] for k in self.kinds]

    def next(self):
        self.n += 1
        make = self.rng.choices(self.kinds, self.shares)[0][1]
        commands, change = make(self.n)
        return self.n, commands, change

    def key(self):
        return b"k%d" % self.rng.randrange(60)

    def value(self, n):
        size = self.rng.randrange(1, 200) + (self.rng.randrange(self.big) if self.big else 0)
        return b"v" * size + b";%d" % n

    def set(self, n):
        key, value = self.key(), self.value(n)

        def change(db):
            db[key] = (value, 0)
            return b"OK"

        return [("SET", key, value)], change

    def large(self, n):
        value = b"v" * (1 << self.rng.randrange(10, 19)) + b";%d" % n

        def change(db):
            db[b"large"] = (value, 0)
            return b"OK"

        return [("SET", b"large", value)], change

    def incrby(self, n):
        def change(db):
            v, expire = db.get(b"count", (b"0", 0))
            db[b"count"] = (b"%d" % (int(v) + n), expire)
            return int(v) + n

        return [("INCRBY", b"count", n)], change

    def append(self, n):
        key, piece = b"tail%d" % self.rng.randrange(4), b"+;%d" % n

        def change(db):
            v, expire = db.get(key, (b"", 0))
            db[key] = (v + piece, expire)
            return len(v) + len(piece)

        return [("APPEND", key, piece)], change

    def delete(self, n):
        key = self.key() if n % 4 else b"tail%d" % self.rng.randrange(4)
        return [("DEL", key)], lambda db: int(db.pop(key, None) is not None)

    def expire(self, n):
        key = self.key()
        at = int(time.time() * 1000) + 3600_000 + n if n % 8 else 1  # 1: long past, it goes

        def change(db):
            if key not in db:
                return 0
            if at == 1:
                del db[key]
            else:
                db[key] = (db[key][0], at)
            return 1

        return [("PEXPIREAT", key, at)], change

    def mset(self, n):
        keys = sorted({self.key() for _ in range(5)})
        value = self.value(n)

        def change(db):
            for k in keys:
                db[k] = (value, 0)
            return b"OK"

        return [("MSET", *[x for k in keys for x in (k, value)])], change

    def transaction(self, n):
        parts = [self.set(n), self.incrby(n), self.vadd(n), self.delete(n), self.append(n)]
        self.rng.shuffle(parts)

        def change(db):
            return [p[1](db) for p in parts]

        return [("MULTI",)] + [c for p in parts for c in p[0]] + [("EXEC",)], change

    def rename(self, n):
        # Of keys whose names say nothing of their type's use; a set takes its elements along.
        pairs = [(self.key(), self.key()), (b"fset", b"fset2"), (b"fset2", b"fset")]
        source, target = pairs[self.rng.choices(range(3), (20, 1, 1))[0]]

        def change(db):
            if source not in db:
                return Error("ERR no such key")
            db[target] = db.pop(source)
            return b"OK"

        return [("RENAME", source, target)], change

    def vadd(self, n):
        key = (b"qset", b"fset")[self.rng.randrange(2)]
        # Now and then an element that is there gets another vector.
        element = b"e;%d" % n if self.rng.random() < 0.8 else b"same%d" % self.rng.randrange(40)
        how = ("NOQUANT",) if key == b"fset" else ()
        return self.adding(n, key, element, how)

    def adding(self, n, key, element, how):
        number, attributes = vector_number(self.db, n), self.attributes(n)
        if attributes is not None:
            how = (*how, "SETATTR", attributes)

        def change(db):
            v, expire = db.get(key, ({}, 0))
            v = dict(v)
            added = element not in v
            before = None if added else v[element][1]
            # An empty text takes attributes away, but a new element has it as its attributes.
            now = before if attributes is None else attributes if attributes or added else None
            v[element] = (number, now)
            db[key] = (v, expire)
            return int(added)

        return [("VADD", key, "VALUES", DIM, *VECTOR_WORDS[number], element, *how)], change

    def attributes(self, n):
        """None: not given. Short ones, long ones, now and then an empty one."""
        kind = self.rng.random()
        if kind < 0.4:
            return None
        if kind < 0.5:
            return b""
        padding = self.rng.randrange(4000 if kind > 0.97 else 60)
        return b'{"n":%d,"s":"%s"}' % (n, b"x" * padding)

    def element(self, n):
        if self.rng.random() < 0.3:
            return b"same%d" % self.rng.randrange(40)
        return b"e;%d" % self.rng.randrange(max(1, n - 300), n + 1)

    def vsetattr(self, n):
        key = (b"qset", b"fset", b"dset")[self.rng.randrange(3)]
        element, attributes = self.element(n), self.attributes(n) or b""

        def change(db):
            v, expire = db.get(key, ({}, 0))
            if element not in v:
                return 0
            db[key] = ({**v, element: (v[element][0], attributes or None)}, expire)
            return 1

        return [("VSETATTR", key, element, attributes)], change

    def vcreate(self, n):
        """dset is declared, if it is not there, and an element added to it, at once."""
        element = self.element(n)
        commands, add = self.adding(n, b"dset", element, ())

        def change(db):
            db.setdefault(b"dset", ({}, 0))
            return [b"OK", add(db)]

        create = ("VCREATE", b"dset", "DIM", DIM, "KEEP", "F16")
        return [("MULTI",), create, *commands, ("EXEC",)], change

    def vadd_expiring(self, n):
        number, attributes = vector_number(self.db, n), self.attributes(n)
        px = self.rng.randrange(5, 1500)
        if self.rng.random() < 0.3 or not self.short:
            px = 3600_000
        element, asked_ms = b"x;%d" % n, int(time.time() * 1000)
        how = () if attributes is None else ("SETATTR", attributes)

        def change(db):
            v, expire = db.get(b"xset", ({}, 0))
            db[b"xset"] = ({**v, element: Due(number, attributes, asked_ms, px)}, expire)
            return 1

        words = VECTOR_WORDS[number]
        return [("VADD", b"xset", "VALUES", DIM, *words, element, "PX", px, *how)], change

    def vrem(self, n):
        key = (b"qset", b"fset", b"dset")[self.rng.randrange(3)]
        element = self.element(n)

        def change(db):
            v, expire = db.get(key, ({}, 0))
            if element not in v:
                return 0
            v = {e: x for e, x in v.items() if e != element}
            if v or key == b"dset":
                db[key] = (v, expire)
            else:
                del db[key]
            return 1

        return [("VREM", key, element)], change

    def drop_set(self, n):
        key = (b"qset", b"fset", b"fset2", b"dset")[n % 4]
        return [("DEL", key)], lambda db: int(db.pop(key, None) is not None)

    def flush(self, n):
        def change(db):
            db.clear()
            return b"OK"

        return [("FLUSHDB",)], change


class Writer:
    """One connection, one database: sends operations, checks every reply against the model, and
    knows which states are allowed after the server's end."""

    def __init__(self, seed, db, window, big=0, short=True):
        self.operations = Operations(seed, db, big, short)
        self.db, self.window = db, window
        self.model = {}  # after the newest acknowledged operation
        self.pending = []  # sent, not acknowledged
        self.acknowledged = self.seen = 0
        self.conn = None
        self.dead_ms = float("inf")  # the server applied nothing after it
        self.half = 0  # replies of the oldest pending operation that are here

    def connect(self, server):
        self.conn = server.connect()
        self.conn.ok("SELECT", self.db)
        self.half = 0

    def send_more(self):
        out = []
        while len(self.pending) < self.window:
            op = self.operations.next()
            self.pending.append(op)
            out += [pack(*c) for c in op[1]]
        if out:
            self.conn.send(b"".join(out))

    def take(self, replies):
        for r in replies:
            n, commands, change = self.pending[0]
            self.half += 1
            if self.half < len(commands):
                assert r in (b"OK", b"QUEUED"), f"{commands[self.half - 1][:2]} was answered: {r}"
                continue
            expected = change(self.model)
            assert r == expected, (
                f"operation {n} of database {self.db}, {commands[-1][:3]}, was answered {str(r)[:200]!r}, "
                f"expected {str(expected)[:200]!r}"
            )
            self.pending.pop(0)
            self.acknowledged = n
            self.half = 0

    def drain(self):
        """The server is dead: what it had sent before still counts as acknowledged."""
        self.conn.drain(self.take)
        self.dead_ms = time.time() * 1000

    def settle(self, observed):
        """Finds the k whose state is what was observed and goes on from there. Returns how many
        unacknowledged operations survived."""
        def same(k):
            return matches(self.model.get(k), observed.get(k), observed.times, self.dead_ms)

        differs = {k for k in self.model.keys() | observed.keys() if not same(k)}
        first = describe(self.model, observed, differs)
        self.model, changed = Tracked(self.model), 0
        newest = self.acknowledged
        if not differs and self.acknowledged >= self.seen:
            changed = -1
        for n, _, change in self.pending if changed == 0 else ():
            self.model.touched.clear()
            change(self.model)
            newest = n
            for k in self.model.touched:
                if same(k):
                    differs.discard(k)
                else:
                    differs.add(k)
            if not differs and n >= self.seen:
                changed = -1
                break
        assert changed == -1, (
            f"database {self.db} is no state between operation {self.acknowledged} (acknowledged), "
            f"{self.seen} (seen by a reader) and {newest} (sent): {first}"
        )
        survived = newest - self.acknowledged if newest > self.acknowledged else 0
        # Numbers go on; those that are lost were never acknowledged.
        self.acknowledged, self.pending = self.operations.n, []
        self.seen = 0
        self.model = without_expired(dict(self.model), observed)
        return survived


class Tracked(dict):
    """A dict that remembers which keys were set or removed."""

    def __init__(self, of):
        super().__init__(of)
        self.touched = set()

    def __setitem__(self, k, v):
        self.touched.add(k)
        super().__setitem__(k, v)

    def __delitem__(self, k):
        self.touched.add(k)
        super().__delitem__(k)

    def pop(self, k, *default):
        self.touched.add(k)
        return super().pop(k, *default)

    def clear(self):
        self.touched |= self.keys()
        super().clear()


class Observed(dict):
    """What observe found, between two times in ms."""


def is_expiring(value):
    return isinstance(value, dict) and any(isinstance(x, Due) for x in value.values())


def expiring_matches(elements, seen, times, dead_ms):
    """Whether what was seen is what the clock left of elements that were all asked for before
    they were applied, and applied before dead_ms."""
    first, last = times
    for e, x in seen.items():
        due = elements.get(e)
        if due is None or x[:2] != due[:2] or first > dead_ms + due.px + 50:
            return False
        if abs(x.ttl - (due.asked_ms + due.px - first) / 1000) > 60:
            return False
    return all(e in seen or x.asked_ms + x.px <= last + 2 for e, x in elements.items())


def without_expired(model, observed):
    """What the clock took away stays away."""
    if b"xset" in model:
        there = observed.get(b"xset", ({},))[0]
        v = {e: x for e, x in model[b"xset"][0].items() if e in there}
        model[b"xset"] = (v, 0)
        if not v:
            del model[b"xset"]
    return model


def matches(model, observed, times, dead_ms):
    if model is not None and is_expiring(model[0]):
        seen = {} if observed is None else observed[0]
        return expiring_matches(model[0], seen, times, dead_ms)
    if model is None or observed is None:
        return model is observed
    (value, expire), (seen, low, high) = model, observed
    if expire == 0:
        return value == seen and low is None
    return value == seen and low is not None and low - 2 <= expire <= high + 2


def describe(model, observed, keys):
    def short(x):
        if x is None:
            return "nothing"
        v = x[0]
        if isinstance(v, dict):
            v = f"a set of {len(v)}"
        return f"{str(v)[-60:]} ({x[1:]})"

    out = []
    for k in sorted(keys)[:4]:
        a, b = model.get(k), observed.get(k)
        text = f"{k!r} is {short(b)}, last acknowledged {short(a)}"
        if a and b and isinstance(a[0], dict) and isinstance(b[0], dict):
            text += f"; missing {sorted(a[0].keys() - b[0].keys())[:5]}"
            text += f", not expected {sorted(b[0].keys() - a[0].keys())[:5]}"
            text += f", other elements {[e for e in a[0] if e in b[0] and a[0][e] != b[0][e]][:5]}"
        out.append(text)
    return f"{len(keys)} keys differ from the newest acknowledged state: " + "; ".join(out)


class Damage(Exception):
    """An answer was an error reply: not a wrong answer, but not the data either."""


def good(reply):
    if isinstance(reply, Error):
        raise Damage(reply)
    return reply


def observe(conn, db, search=True):
    """Everything of one database: {key: (value, earliest expiry, latest expiry)}. Raises Damage when
    an answer is an error, AssertionError when answers contradict each other."""
    good(conn.call("SELECT", db))
    first = time.time() * 1000
    keys = good(conn.call("KEYS", "*"))
    assert len(set(keys)) == len(keys), "KEYS names a key twice"
    n = good(conn.call("DBSIZE"))
    assert n == len(keys) or (b"xset" in keys and n == len(keys) - 1), "DBSIZE and KEYS disagree"
    out = Observed()
    types = conn.many([("TYPE", k) for k in keys])
    before = time.time() * 1000
    ttls = conn.many([("PTTL", k) for k in keys])
    after = time.time() * 1000
    strings = [k for k, t in zip(keys, types) if good(t) == b"string"]
    values = dict(zip(strings, conn.many([("GET", k) for k in strings])))
    for k, t, ttl in zip(keys, types, ttls):
        good(ttl)
        if k == b"xset" and (t == b"none" or ttl == -2):
            continue  # its last element expired just now
        assert t in (b"string", b"vectorset"), f"{k} is a {t}"
        assert ttl != -2, f"{k} vanished"
        low, high = (None, None) if ttl == -1 else (before + ttl, after + ttl)
        if t == b"string":
            value = good(values[k])
        else:
            value = observe_expiring(conn, k) if k == b"xset" else observe_set(conn, k, search)
        out[k] = (value, low, high)
    out.times = (first, time.time() * 1000)
    return out


Seen = namedtuple("Seen", "number attributes ttl")


def observe_expiring(conn, key):
    """Elements may go between any two commands."""
    elements = good(conn.call("VRANGE", key, "-", "+"))
    assert elements == sorted(set(elements)), f"{key}: VRANGE is not in order"
    vectors = conn.many([("VEMB", key, e) for e in elements])
    attributes = conn.many([("VGETATTR", key, e) for e in elements])
    ttls = conn.many([("VGET", key, 1, e, "TTL") for e in elements])
    out = {}
    for e, v, a, t in zip(elements, vectors, attributes, ttls):
        if good(v) is None or good(t)[0] is None:
            continue
        number = number_of(v, True)
        assert number is not None, f"{key} {e}: no vector of ours: {v}"
        out[e] = Seen(number, good(a), t[0][1])
    return out


def observe_set(conn, key, search):
    quantized = not key.startswith(b"fset")
    n = good(conn.call("VCARD", key))
    assert good(conn.call("VDIM", key)) == DIM
    # A count larger than the set: every element once.
    elements = good(conn.call("VRANDMEMBER", key, n + 10))
    assert len(elements) == n == len(set(elements)), f"{key}: VCARD {n}, {len(elements)} elements"
    assert sorted(elements) == good(conn.call("VRANGE", key, "-", "+")), f"{key}: VRANGE"
    vectors = conn.many([("VEMB", key, e) for e in elements])
    attributes = conn.many([("VGETATTR", key, e) for e in elements])
    out = {}
    for e, v, a in zip(elements, vectors, attributes):
        out[e] = (number_of(good(v), quantized), good(a))
        assert out[e][0] is not None, f"{key} {e}: no vector of ours: {v}"
    with_attributes = sum(x[1] is not None for x in out.values())
    info = good(conn.call("VINFO", key))
    counted = info[info.index(b"attributes-count") + 1]
    assert counted == with_attributes, f"{key}: {counted} attributes, {with_attributes} found"
    if search and elements:
        observe_search(conn, key, out, quantized)
    return out


_first = {}
for _i, _v in enumerate(VECTORS):
    _first.setdefault(round(_v[0], 1), []).append(_i)


def number_of(reply, quantized):
    x = float(reply[0]) if isinstance(reply, list) and reply else 99
    for step in (0, -0.1, 0.1):
        for i in _first.get(round(x + step, 1), ()):
            if vector_is(reply, i, quantized):
                return i
    return None


def observe_search(conn, key, elements, quantized):
    """Searches must find what is there and nothing else."""
    picks = random.Random(len(elements)).sample(sorted(elements), min(3, len(elements)))
    slack = 0.02 if quantized else 1e-4
    for e in picks:
        words = VECTOR_WORDS[elements[e][0]]
        for how in (("TRUTH",), ()):
            r = good(conn.call("VSIM", key, "VALUES", DIM, *words, "WITHSCORES", "COUNT", 10, *how))
            names, scores = r[0::2], [float(x) for x in r[1::2]]
            want = min(10, len(elements))
            assert len(names) == want or (
                not how and names
            ), f"{key}: {len(names)} of {want} found {how}"
            assert len(set(names)) == len(names), f"{key}: found twice"
            for name, score in zip(names, scores):
                assert name in elements, f"{key}: VSIM found {name}, which is not there"
                exact = cosine_score(VECTORS[elements[e][0]], VECTORS[elements[name][0]])
                assert abs(exact - score) < slack, f"{key}: VSIM {name} {score}, exact {exact}"
            assert scores[0] > 1 - slack, f"{key}: VSIM does not find {e} itself {how}: {scores}"
