"""kill -9 (and SIGTERM) under load, at random moments, over and over on the same data.

In each cycle writers send all kinds of writes, pipelined and one at a time, readers look at what
the writers do, checkpoints run, segments of the log are made and removed, and vectors are linked.
Then the server is killed, started again (sometimes killed while it starts), and everything is
compared: nothing acknowledged may be missing, nothing a reader saw may be gone, and every database
must be exactly a state it had between two operations of its writer."""

import itertools
import random
import select
import signal
import threading
import time

from crashlib import SEED, SMALL, Error, Gone, Server, check, new_folder, pack, repeat, say
from model import Writer, good, observe

N_WRITERS = 4


class Reader:
    """Looks at the writers' databases and remembers the newest operation it saw the effect of."""

    def __init__(self, rng, writers):
        self.rng, self.writers = rng, writers

    def connect(self, server):
        self.conn = server.connect()
        self.waiting = []  # of each reply to come: the writer it is about

    def send_more(self):
        out = []
        while len(self.waiting) < 12:
            w = self.rng.choice(self.writers)
            what = self.rng.choice(
                (
                    ("MGET", *[b"k%d" % self.rng.randrange(60) for _ in range(8)]),
                    ("MGET", "tail0", "tail1", "tail2", "tail3", "large"),
                    ("VRANDMEMBER", "qset", 20),
                    ("VRANDMEMBER", "fset", -20),
                    ("VSIM", "fset", "VALUES", 16, *[1] * 16, "COUNT", 20),
                    ("VSIM", "qset", "VALUES", 16, *range(16), "COUNT", 20, "TRUTH"),
                )
            )
            out += [pack("SELECT", w.db), pack(*what)]
            self.waiting += [None, w]
        if out:
            self.conn.send(b"".join(out))

    def take(self, replies):
        for r in replies:
            w = self.waiting.pop(0)
            if w is None:
                assert r == b"OK"
                continue
            for value in good(r) or ():
                number = value.rsplit(b";", 1)[-1] if value and b";" in value else b""
                if number:
                    w.seen = max(w.seen, int(number))

    def drain(self):
        self.conn.drain(self.take)


class Control:
    """Now and then asks for a checkpoint or changes a setting."""

    def __init__(self, rng):
        self.rng = rng

    def connect(self, server):
        self.conn = server.connect()
        self.waiting = 0

    def send_more(self):
        if self.waiting == 0 and self.rng.random() < 0.02:
            self.conn.send(pack(self.rng.choice(("BGSAVE", "SAVE"))))
            self.waiting = 1

    def take(self, replies):
        for r in replies:
            assert not isinstance(r, Error) or "already in progress" in r, r
            self.waiting = 0

    def drain(self):
        self.conn.close()


def load(server, clients, seconds, sig):
    """Runs the clients until the server, signalled after `seconds`, is gone."""
    timer = threading.Timer(seconds, server.process.send_signal, (sig,))
    poll = select.epoll()
    at = {}
    for c in clients:
        c.connect(server)
        at[c.conn.sock.fileno()] = c
        poll.register(c.conn.sock.fileno(), select.EPOLLIN)
    timer.start()
    try:
        for c in clients:
            c.send_more()
        while server.process.poll() is None:
            for fd, _ in poll.poll(0.05):
                c = at[fd]
                try:
                    c.conn.receive()
                    c.take(c.conn.replies())
                    c.send_more()
                except Gone:
                    poll.unregister(fd)
    except Gone:
        pass
    finally:
        timer.join()
        poll.close()
    server.process.wait(60)
    for c in clients:
        c.drain()


def start_at_last(server, rng):
    """Starts the server; in one of five cycles it is killed in the middle of it, up to three times."""
    tries = rng.choice((0, 0, 0, 0, rng.randrange(1, 4)))
    for _ in range(tries):
        timer = threading.Timer(rng.random() * 0.015, lambda: server.process.kill())
        server.spawn()
        timer.start()
        server.process.wait(60)
        timer.join()
        server.check_end()
    server.start()


def options(rng):
    fsync = rng.choice(("always", "everysec", "always", "no"))
    tail = rng.choice(("16", "64", "4096"))
    threads = rng.choice(("1", "2"))
    return SMALL + ["--appendfsync", fsync, "--vset-tail-max", tail, "--io-threads", threads]


def run_cycles(n_cycles, seed, seconds):
    rng = random.Random(seed)
    writers = [
        Writer(seed, db, window=(1, 30, 4, 100)[db], big=(0, 0, 20000, 0)[db])
        for db in range(N_WRITERS)
    ]
    readers = [Reader(rng, writers) for _ in range(2)]
    totals = {"acknowledged": 0, "survived unacknowledged": 0, "seen": 0, "terms": 0, "kills": 0}
    folder = new_folder("kill")
    words = SMALL
    server = Server(folder, *words)
    base = list(server.options)
    with server:
        start_at_last(server, rng)
        for cycle in itertools.count():
            if totals["kills"] == n_cycles:
                break
            print(f"cycle {cycle} of seed {seed}, options {words}")
            sig = signal.SIGTERM if rng.random() < 0.08 else signal.SIGKILL
            before = sum(w.acknowledged for w in writers)
            load(server, writers + readers + [Control(rng)], rng.random() * seconds, sig)
            server.check_end()
            if sig == signal.SIGTERM:
                totals["terms"] += 1
                assert server.process.returncode == 0, server.log()
            else:
                totals["kills"] += 1
            totals["acknowledged"] += sum(w.acknowledged for w in writers) - before
            totals["seen"] += sum(w.seen > w.acknowledged for w in writers)
            if cycle % 10 == 9:
                code, said = check(server.data)
                assert code == 0, f"kith-check after cycle {cycle}:\n{said}"
            words = options(rng)
            server.options = base + words
            start_at_last(server, rng)
            conn = server.connect()
            for w in writers:
                totals["survived unacknowledged"] += w.settle(
                    observe(conn, w.db, search=cycle % 5 == 0)
                )
            conn.close()
        server.stop()
        code, said = check(server.data)
        assert code == 0, said
    return totals


def test_kill_under_load():
    n, seed, start = repeat(300, 3000), SEED, time.time()
    print(f"KITH_SEED={seed}")
    totals = run_cycles(n, seed, seconds=0.15)
    say(
        f"{totals['kills']} kills and {totals['terms']} stops under load in {time.time() - start:.0f} s: "
        f"{totals['acknowledged']} acknowledged writes, 0 lost, 0 taken back, 0 failed starts"
    )
    assert totals["acknowledged"] > n


def test_expired_keys_stay_gone():
    """A time to live is an absolute time in the log: it goes on while the server is dead."""
    rng = random.Random(SEED)
    with Server(new_folder("expire"), *SMALL) as server:
        server.start()
        for _ in range(repeat(6, 40)):
            conn = server.connect()
            conn.ok("FLUSHALL")
            lives, ends = [rng.randrange(1, 400) for _ in range(300)], {}
            for i, ms in enumerate(lives):
                before = time.time() * 1000
                conn.ok("SET", b"t%d" % i, b"v", "PX", ms)
                ends[i] = (before + ms, time.time() * 1000 + ms)
            time.sleep(rng.random() * 0.2)
            seen = conn.ok("MGET", *[b"t%d" % i for i in ends])
            conn.close()
            server.kill()
            start_at_last(server, rng)
            conn = server.connect()
            before = time.time() * 1000
            found = conn.ok("MGET", *[b"t%d" % i for i in ends])
            after = time.time() * 1000
            for i, (low, high) in ends.items():
                assert found[i] is None or before <= high + 2, f"t{i} came back after its time"
                assert found[i] == b"v" or after >= low - 2, f"t{i} went before its time"
                assert found[i] is None or seen[i] is not None, f"t{i} was gone and is back"
            conn.close()
        server.stop()


def test_long_runs_between_kills():
    """Fewer kills, longer loads: several checkpoints and segments between two."""
    n = repeat(8, 60)
    print(f"KITH_SEED={SEED}")
    totals = run_cycles(n, SEED + 1, seconds=2.5)
    say(f"{n} kills after longer loads: {totals['acknowledged']} acknowledged writes, 0 lost")
