"""Damaged copies of a data directory: flipped bits, zeroed, noised and swapped pages, cut files,
deleted files, in the log and in the store, of a server that was stopped and of one that was killed.

A damaged directory may be refused at start, with a message that names the damage; or some questions
may be answered by an error; or everything is as it was, where the damage met nothing of value. Never
may the process die of a signal, and never may an answer be wrong."""

import collections
import os
import random
import shutil
import signal

import pytest
from crashlib import SEED, SMALL, Error, Gone, NotReady, Server, check, new_folder, repeat, say
from model import DIM, VECTOR_WORDS, Writer

PAGE = 4096
DBS = (0, 1, 5)


class Original:
    """A data directory and everything it answers."""

    def __init__(self, killed):
        self.folder = new_folder("damage", disk=False)
        rng = random.Random(7)
        self.server = s = Server(self.folder, *SMALL, "--checkpoint-interval", "3600")
        s.start()
        writers = [Writer("damage", db, 50, big=3000, short=False) for db in (0, 1)]
        self.write(writers, 900)
        conn = s.connect()
        conn.ok("SELECT", 5)
        conn.many([self.vadd(i) for i in range(800)])
        conn.many([("VREM", "fset", b"e%d" % rng.randrange(800)) for _ in range(100)])
        conn.ok("SAVE")
        conn.ok("SET", "after", "the checkpoint")
        self.write(writers, 1000)
        if not killed:
            conn.ok("SAVE")
            self.write(writers, 1100)
        else:
            conn.many([self.vadd(i) for i in range(800, 900)])
        if killed:
            s.kill()
        else:
            s.stop()
        self.data = self.folder / "data"
        for name in ("kith.lock", "store/owner", "store/lock.mdb", "wal/lock"):
            assert (self.data / name).exists(), name
        self.answers = self.ask_copy()
        assert not any(isinstance(a, Error) for _, a in self.answers.values())
        self.sizes = {}
        for root, _, names in os.walk(self.data):
            for name in names:
                path = os.path.relpath(os.path.join(root, name), self.data)
                self.sizes[path] = used_bytes(self.data / path)

    def write(self, writers, upto):
        for w in writers:
            w.connect(self.server)
            while w.acknowledged < upto:
                w.send_more()
                w.conn.receive()
                w.take(w.conn.replies())
            while w.pending:
                w.conn.receive()
                w.take(w.conn.replies())
            w.conn.close()

    @staticmethod
    def vadd(i):
        return ("VADD", "fset", "VALUES", DIM, *VECTOR_WORDS[i], b"e%d" % i, "NOQUANT")

    def copy(self):
        to = new_folder("damaged", disk=False)
        shutil.copytree(self.data, to / "data")
        return to

    def ask_copy(self):
        with Server(self.copy(), *SMALL) as s:
            s.start()
            conn = s.connect()
            answers = ask(conn, questions(conn))
            again = ask(conn, [q for q, _ in answers.values()])
            assert answers == again, "a server contradicts itself"
            s.stop()
        return answers


def used_bytes(path):
    """Up to the last byte that is not zero: a segment of the log is mostly empty room."""
    data = path.read_bytes().rstrip(b"\0")
    return len(data)


def questions(conn):
    """Everything that can be asked of the data, as (database, command)."""
    out = []
    for db in DBS:
        conn.ok("SELECT", db)
        keys = sorted(conn.ok("KEYS", "*"))
        out += [(db, q) for q in (("DBSIZE",), ("KEYS", "*"))]
        # What was written last may have emptied it.
        out += [(db, ("EXISTS", *keys))] if keys else []
        for k in keys:
            out += [(db, ("TYPE", k)), (db, ("PTTL", k))]
            if conn.ok("TYPE", k) == b"string":
                out += [(db, ("GET", k)), (db, ("STRLEN", k))]
                continue
            elements = sorted(conn.ok("VRANDMEMBER", k, 100000))
            out += [(db, (name, k)) for name in ("VCARD", "VDIM")]
            out += [(db, ("VEMB", k, e)) for e in elements]
            out += [(db, ("VGETATTR", k, e)) for e in elements]
            out += [(db, ("VGET", k, len(elements), *elements, "TTL"))] if elements else []
            out.append((db, ("VRANGE", k, "-", "+")))
            out += [(db, ("VISMEMBER", k, b"e%d" % i)) for i in range(0, 900, 9)]
            for i in range(6):
                words = ("VSIM", k, "VALUES", DIM, *VECTOR_WORDS[i], "WITHSCORES", "COUNT", 12)
                out += [(db, (*words, "TRUTH")), (db, (*words, "EF", 1000))]
                out += [(db, (*words, "TRUTH", "WITHATTRIBS", "FILTER", ".n > 300"))]
        out.append((db, ("GET", "no such key")))
    return out


def ask(conn, asked):
    """{number: ((database, command), answer)}"""
    commands = []
    for db, q in asked:
        commands += [("SELECT", db), q]
    answers = conn.many(commands)[1::2]
    for i, (_, q) in enumerate(asked):
        if q[0] == "KEYS" and not isinstance(answers[i], Error):
            answers[i] = sorted(answers[i])
        if q[0] == "PTTL" and not isinstance(answers[i], Error):
            answers[i] = answers[i] > 0  # the exact time is compared by the kill tests
        if q[0] == "VGET" and not isinstance(answers[i], Error):
            answers[i] = [fields[1] > 0 for fields in answers[i]]
    return {i: ((db, q), a) for i, ((db, q), a) in enumerate(zip(asked, answers))}


def differences(expected, got):
    """(number of error replies, wrong answers)."""
    errors, wrong = [], []
    for i, (question, answer) in expected.items():
        a = got[i][1]
        if isinstance(a, Error):
            errors.append(str(a))
        elif a != answer:
            wrong.append(
                f"{question[0]}: {str(question[1])[:90]}: {str(a)[:150]} instead of {str(answer)[:150]}"
            )
    return errors, wrong


@pytest.fixture(scope="module", params=["stopped", "killed"])
def original(request):
    o = Original(request.param == "killed")
    yield o
    shutil.rmtree(o.folder)


# --- damage -------------------------------------------------------------------------------------


def choose_file(rng, o):
    logs = sorted(p for p in o.sizes if p.endswith(".wal") and o.sizes[p] > 64)
    p = rng.random()
    if p < 0.55:
        return "store/data.mdb"
    if p < 0.90 and logs:
        return rng.choice(logs)
    if p < 0.96:
        return "wal/durable"
    return rng.choice(sorted(o.sizes))


def damage(rng, o, data):
    """Damages one file of a copy; says how."""
    path = choose_file(rng, o)
    file, size = data / path, o.sizes[path]
    whole = file.stat().st_size
    kind = rng.choices(
        ("flip", "zero", "noise", "swap", "cut", "delete", "byte"), (40, 14, 12, 10, 10, 3, 11)
    )[0]
    if path == "wal/durable" or size < 2 * PAGE:
        kind = rng.choice(("flip", "noise", "cut", "delete", "zero"))
    if size == 0:
        kind = "delete"
    if kind == "delete":
        file.unlink()
        return f"delete {path}"
    if kind == "cut":
        at = rng.randrange(size) if rng.random() < 0.7 else rng.randrange(whole // PAGE + 1) * PAGE
        os.truncate(file, min(at, whole))
        return f"cut {path} at {at} of {whole}"
    with open(file, "r+b") as f:
        if kind in ("flip", "byte"):
            at = rng.randrange(size)
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(
                bytes([byte ^ (1 << rng.randrange(8))])
                if kind == "flip"
                else bytes([rng.randrange(256)])
            )
            return f"{kind} {path} at {at} of {size}"
        a = rng.randrange((size + PAGE - 1) // PAGE) * PAGE
        n = min(PAGE, whole - a)
        if kind == "swap":
            b = rng.randrange(size // PAGE) * PAGE
            f.seek(a)
            one = f.read(n)
            f.seek(b)
            two = f.read(PAGE)
            f.seek(a)
            f.write(two[:n])
            f.seek(b)
            f.write(one)
            return f"swap {path} pages at {a} and {b} of {size}"
        f.seek(a)
        f.write(b"\0" * n if kind == "zero" else rng.randbytes(n))
        return f"{kind} {path} page at {a} of {size}"


def trial(o, number):
    """One damaged copy: (what was done, outcome)."""
    rng = random.Random(f"{SEED}/{number}")
    folder = o.copy()
    with Server(folder, *SMALL, "--io-threads", "2") as s:
        what = damage(rng, o, s.data)
        with_check = rng.random() < 0.25
        found = check(s.data) if with_check else None
        outcome, detail = attempt(o, s, what)
        if found and outcome in ("refused", "errors"):
            assert found[0] != 0, f"{what}: the server says {detail}, kith-check says {found[1]}"
        return what, outcome, detail


def attempt(o, s, what):
    try:
        s.start()
    except NotReady as e:
        assert e.code == 1, f"{what}: {e}"
        line = next(x for x in e.log.splitlines() if "cannot start" in x)
        return "refused", line.split("cannot start: ")[1].replace(str(s.data), "")
    try:
        conn = s.connect()
        got = ask(conn, [q for q, _ in o.answers.values()])
    except Gone:
        s.wait(10)
        s.check_end()
        raise AssertionError(f"{what}: the server went away:\n{s.log()}") from None
    errors, wrong = differences(o.answers, got)
    assert (
        not wrong
    ), f"{what}: {len(wrong)} silent wrong answers, such as {wrong[:3]}; errors {errors[:2]}"
    code = s.end(signal.SIGTERM)
    assert code in (0, 2), f"{what}: {code}\n{s.log()}"
    return ("errors", errors[0]) if errors else ("equal", "")


def test_damaged_copies(original):
    n = repeat(500, 2500)
    print(f"KITH_SEED={SEED}")
    outcomes, said = collections.Counter(), collections.Counter()
    for i in range(n):
        what, outcome, detail = trial(original, i)
        print(i, what, outcome, detail[:160])
        outcomes[what.split(" ")[0], outcome] += 1
        said[outcome] += 1
    say(f"{n} damaged copies, 0 crashes, 0 wrong answers: {dict(said)}")
    for row, count in sorted(outcomes.items()):
        print(count, *row)
    assert said["refused"] + said["errors"] > n / 4, "the damage does not meet anything"


LOST = [
    # what is lost, what the message names; None: nothing of value
    (["wal"], "wal"),
    (["wal/durable", "wal/*.wal"], "wal"),
    (["wal/*.wal"], "wal"),
    (["store"], "wal"),
    (["store/made", "store/data.mdb"], "wal"),
    (["store/data.mdb"], "data.mdb"),
    (["kith.lock", "store/owner", "store/lock.mdb", "wal/lock"], None),
]


@pytest.mark.parametrize("names, named", LOST)
def test_lost_files(original, names, named):
    """Whole parts of the directory are gone."""
    with Server(original.copy(), *SMALL) as s:
        for name in names:
            for path in s.data.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        outcome, said = attempt(original, s, f"without {names}")
        assert outcome == ("refused" if named else "equal") and (named or "") in said, said
        if names[0].startswith("wal") and not (s.data / "wal/durable").exists():
            # Who knows that the log is lost for good may say so.
            assert check(s.data)[0] != 0
            (s.data / "wal/abandoned").touch()
            s.start()
            conn = s.connect()
            conn.ok("SELECT", 5)  # the one that no writer empties
            assert conn.ok("DBSIZE") > 0
            s.kill()
            assert not (s.data / "wal/abandoned").exists()
            s.start()
            s.stop()
