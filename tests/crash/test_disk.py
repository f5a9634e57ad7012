"""A disk that is full, read-only or not ours; a directory that is in use."""

import os
import shutil
import subprocess

import pytest
from crashlib import SMALL, Error, NotReady, Server, check, new_folder
from kithtest import BIN, run_program, wait_until

MB = 1 << 20


class Disk:
    """A small file system of its own: a tmpfs, or an ext4 image on a loop device."""

    def __init__(self, kind, size):
        self.folder = new_folder("disk")
        self.mount = self.folder / "mnt"
        self.mount.mkdir()
        if kind == "tmpfs":
            words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.mount)]
        else:
            image = self.folder / "image"
            with open(image, "wb") as f:
                f.truncate(size)
            if not shutil.which("mkfs.ext4"):
                self.skip("there is no mkfs.ext4")
            made = subprocess.run(
                ["mkfs.ext4", "-q", "-F", "-m", "0", image],
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                self.skip(f"mkfs.ext4: {made.stderr}")
            words = ["mount", "-o", "loop", str(image), str(self.mount)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.skip(f"cannot mount a {kind} here: {done.stderr.strip()}")

    def skip(self, why):
        shutil.rmtree(self.folder)
        pytest.skip(why)

    def fill(self, leave=0):
        """A ballast file that leaves so many bytes."""
        with open(self.mount / "ballast", "ab") as f:
            while True:
                room = shutil.disk_usage(self.mount).free - leave
                if room <= 0:
                    break
                try:
                    f.write(b"x" * min(room, 65536))
                    f.flush()
                except OSError:
                    break

    def free(self):
        (self.mount / "ballast").unlink()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.mount)], check=False)
        shutil.rmtree(self.folder)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request):
    with Disk(request.param, 64 * MB) as d:
        yield d


def value(n):
    return b"v" * 50000 + b";%d" % n


def write_until_refused(conn, n):
    """Numbered writes until one is refused; the number of the first that was, and the reason."""
    while True:
        reply = conn.call("SET", b"k%d" % (n % 40), value(n))
        if isinstance(reply, Error):
            return n, reply
        assert reply == b"OK"
        n += 1


def read_all(conn, n):
    """Everything that was acknowledged, and nothing that was refused: n writes were taken."""
    for k in range(min(n, 40)):
        newest = n - 1 - (n - 1 - k) % 40
        assert conn.call("GET", b"k%d" % k) == value(newest), f"k{k} of {n}"


def test_full_disk(disk):
    options = [*SMALL[:2], "--checkpoint-log-bytes", "1gb", "--checkpoint-interval", "3600"]
    with Server(new_folder("full"), *options, data=disk.mount / "data") as s:
        s.start()
        conn, other = s.connect(), s.connect()
        conn.ok("VADD", "set", "VALUES", 3, 1, 2, 3, "e")
        disk.fill(leave=8 * MB)
        n, why = write_until_refused(conn, 0)
        assert why.startswith("MISCONF") and "No space left" in why, why
        assert n > 40
        # A small write may still fit into what the log has; then not that either.
        small = 0
        while conn.call("SET", "small", small) == b"OK":
            small += 1
        # Reads go on, and writes stay refused, also those of others.
        read_all(conn, n)
        assert other.call("VSIM", "set", "VALUES", 3, 1, 2, 3) == [b"e"]
        assert other.call("SET", "x", value(0)).startswith("MISCONF")
        assert "No space left" in s.info("persistence")["writes_refused"]
        # A checkpoint says why it cannot be made; nothing is lost by it.
        saved = conn.call("SAVE")
        assert not isinstance(saved, Error) or "No space" in saved or "Input/output" in saved, saved
        # Killed with a full disk, it comes back with a full disk.
        s.kill()
        s.start()
        conn = s.connect()
        read_all(conn, n)
        assert conn.call("VSIM", "set", "VALUES", 3, 1, 2, 3) == [b"e"]
        assert conn.call("GET", "small") == (b"%d" % (small - 1) if small else None)
        n, why = write_until_refused(conn, n)
        assert why.startswith("MISCONF"), why
        # Writes come back by themselves when there is room.
        disk.free()
        wait_until(
            lambda: conn.call("SET", b"k%d" % (n % 40), value(n)) == b"OK", 10, "writes to return"
        )
        n += 1
        assert s.info("persistence")["writes_refused"] == ""
        conn.ok("SAVE")
        read_all(conn, n)
        s.kill()
        s.start()
        read_all(s.connect(), n)
        s.stop()
        code, said = check(s.data)
        assert code == 0, said


def test_full_disk_during_checkpoint(disk):
    options = [
        "--log-segment-bytes",
        "16mb",
        "--checkpoint-log-bytes",
        "1gb",
        "--checkpoint-interval",
        "3600",
    ]
    with Server(new_folder("full"), *options, data=disk.mount / "data") as s:
        s.start()
        conn = s.connect()
        for n in range(60):
            conn.ok("SET", b"k%d" % (n % 40), value(n))
        disk.fill(leave=MB)  # the log's segment has room, the store has not
        saved = conn.call("SAVE")
        assert isinstance(saved, Error), saved
        assert "No space" in saved or "Input/output" in saved, saved
        assert s.info("persistence")["rdb_last_bgsave_status"] == "err"
        for n in range(60, 90):
            conn.ok("SET", b"k%d" % (n % 40), value(n))
        read_all(conn, 90)
        s.kill()
        s.start()
        conn = s.connect()
        read_all(conn, 90)
        disk.free()
        conn.ok("SAVE")
        assert s.info("persistence")["rdb_last_bgsave_status"] == "ok"
        read_all(conn, 90)
        s.stop()
        s.start()
        read_all(s.connect(), 90)
        s.stop()
        code, said = check(s.data)
        assert code == 0, said


def test_room_of_a_large_write_is_given_back():
    """What one thread reserved of the log and did not need does not make others' segments larger."""
    with Server(new_folder("room"), *SMALL[:2], "--io-threads", "4") as s:
        s.start()
        conns = [s.connect() for _ in range(8)]
        for c in conns:
            c.ok("SET", "large", b"v" * (8 * MB))
        for n in range(600):  # more than the large segment has room for
            conns[n % 8].ok("SET", "small", value(n))
        sizes = {p.name: p.stat().st_size for p in sorted((s.data / "wal").glob("*.wal"))}
        assert list(sizes.values())[-1] == MB, sizes
        s.stop()


def refused(server, *words):
    """The server does not start, with status 1 and a message that has these words."""
    with pytest.raises(NotReady) as e:
        server.start()
    assert e.value.code == 1, e.value
    for word in words:
        assert word in e.value.log, f"{word!r} is not in {e.value.log}"


def test_directory_in_use():
    with Server(new_folder("use"), *SMALL) as s:
        s.start()
        s.connect().ok("SET", "a", 1)
        second = Server(new_folder("use2"), data=s.data)
        with second:
            refused(second, str(s.data), "in use")
        code, said = check(s.data)
        assert code == 2 and "running" in said, said
        assert s.connect().ok("GET", "a") == b"1"
        s.stop()
        with Server(new_folder("use3"), data=s.data) as again:
            again.start()
            assert again.connect().ok("GET", "a") == b"1"
            again.stop()


def test_read_only_file_system(disk):
    data = disk.mount / "data"
    with Server(new_folder("full"), *SMALL, data=data) as s:
        s.start()
        s.connect().ok("SET", "a", 1)
        s.kill()
        remount = ["mount", "-o", "remount,ro", str(disk.mount)]
        done = subprocess.run(remount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"cannot remount: {done.stderr}")
        refused(s, str(data), "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(disk.mount)], check=True)
        s.start()
        assert s.connect().ok("GET", "a") == b"1"
        s.stop()


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to become somebody else"
)
@pytest.mark.parametrize("place", ["", "wal", "store", "store/data.mdb", "wal/durable"])
def test_missing_permission(place, monkeypatch):
    folder = new_folder("permission")
    os.chmod(folder, 0o777)
    with Server(folder, *SMALL) as s:
        program = folder / "kith-server"
        shutil.copy(BIN / "kith-server", program)
        s.program = program
        s.start()
        s.connect().ok("SET", "a", 1)
        s.connect().ok("SAVE")
        s.connect().ok("SET", "b", 2)
        s.kill()
        for root, dirs, names in os.walk(s.data):
            for name in [".", *dirs, *names]:
                os.chown(os.path.join(root, name), 65534, 65534)
        os.unlink(folder / "s")
        locked = s.data / place
        mode = locked.stat().st_mode
        os.chmod(locked, 0)
        os.chown(locked, 0, 0)
        s.user = 65534
        refused(s, "Permission denied", str(s.data))
        os.chmod(locked, mode)
        os.chown(locked, 65534, 65534)
        s.start()
        assert s.connect().ok("MGET", "a", "b") == [b"1", b"2"]
        s.stop()


def test_no_directory():
    with Server(new_folder("none"), *SMALL) as s:
        s.data.write_text("a file")
        refused(s, str(s.data))
        os.unlink(s.data)
        for what in (s.data, s.folder):
            p = run_program("kith-check", what)
            assert p.returncode == 2 and str(what) in p.stderr, p
