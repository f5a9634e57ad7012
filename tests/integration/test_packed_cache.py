"""The file of packed weights beside a model: written by the first start, mapped by later ones, and
never in the way of either. The format is attacked by tests/unit/engine_packed_cache_test.c."""

import os
import pathlib
import re
import shutil
import signal
import struct
import tempfile

import pytest
from kithtest import BIN, F16_MODEL, F32_MODEL, Q8_MODEL, run_program, wait_until

TEXT = "kept beside the model"
NOBODY = 65534


def put(source, folder, name="model.gguf"):
    path = folder / name
    shutil.copyfile(source, path)
    return path


def beside(path):
    return sorted(p.name for p in path.parent.iterdir() if p != path and p.name.startswith(path.name))


def the_file(path):
    name, = beside(path)
    return path.parent / name


def embed(s, *words):
    with s.wire() as w:
        reply = w.cmd("EMBED", *words, "FORMAT", "FP32", TEXT)
    assert isinstance(reply, list), reply
    return struct.unpack("<384f", reply[0])


def vector_of(path):
    """Without any file of packed weights."""
    done = run_program("kith-engine", "--model", path, "--packed-cache", "no", "--embed", TEXT)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return tuple(float(x) for x in done.stdout.split())


def same(a, b):
    return len(a) == len(b) == 384 and all(struct.pack("<f", x) == struct.pack("<f", y) for x, y in zip(a, b))


def private_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(re.search(r"Private_Dirty:\s+(\d+) kB", text)[1])


@pytest.mark.parametrize("source", [Q8_MODEL, F32_MODEL], ids=["q8_0", "f32"])
def test_written_once_then_mapped(make_server, tmp_path, source):
    path = put(source, tmp_path)
    want = vector_of(path)
    assert beside(path) == []
    s = make_server("--embedder", path, "--engine-threads", 1)
    s.wait_engine()
    assert re.search(r"weights packed in \d+ ms, written in \d+ ms to .*\.packed and mapped", s.log())
    precision = "int8" if source == Q8_MODEL else "f32"
    kernels = s.info("engine")["engine_kernels"]
    assert beside(path) == [f"model.gguf.{kernels}-{precision}.packed"]
    first = the_file(path).stat()
    assert same(embed(s), want)
    for _ in range(2):
        s.restart()
        s.wait_engine()
        assert f"weights mapped from {the_file(path)}" in s.log() and "packed in" not in s.log()
        assert same(embed(s), want)
    # An engine that is killed comes back the same way.
    pid = s.wait_engine()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: s.wait_engine() != pid, what="another engine")
    assert same(embed(s), want)
    last = the_file(path).stat()
    assert (first.st_ino, first.st_mtime_ns) == (last.st_ino, last.st_mtime_ns), "it was left alone"


@pytest.mark.measures_memory
def test_memory_is_not_of_the_process(make_server, tmp_path):
    path = put(F32_MODEL, tmp_path)
    used = []
    for word in ("no", "yes", "yes"):  # in memory, written and moved over, mapped
        s = make_server("--embedder", path, "--engine-packed-cache", word, "--engine-threads", 1)
        pid = s.wait_engine()
        embed(s)
        used.append(private_bytes(pid))
        s.stop()
    weights = the_file(path).stat().st_size
    assert used[1] < used[0] - weights / 2 and used[2] < used[0] - weights / 2, used


def test_switched_off(make_server, tmp_path):
    path = put(Q8_MODEL, tmp_path)
    s = make_server("--embedder", path, "--engine-packed-cache", "no")
    s.wait_engine()
    assert re.search(r"weights packed in \d+ ms\n", s.log()) and beside(path) == []
    with s.wire() as w:
        assert w.cmd("CONFIG", "GET", "engine-packed-cache") == [b"engine-packed-cache", b"no"]
    # Nor is one read that is there.
    run_program("kith-engine", "--model", path, "--embed", TEXT)
    the_file(path).write_bytes(b"nonsense")
    s.restart()
    s.wait_engine()
    assert "packed in" in s.log() and "mapped" not in s.log()
    assert the_file(path).read_bytes() == b"nonsense"


def test_damaged(make_server, tmp_path):
    path = put(Q8_MODEL, tmp_path)
    want = vector_of(path)
    s = make_server("--embedder", path)
    s.wait_engine()
    packed = the_file(path)
    whole = packed.read_bytes()
    for name, data, said in (
        ("a bit", whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:], "its checksum is wrong"),
        ("its end", whole[:-4096], "instead of"),
        ("all of it", b"", "cut short"),
        ("its sense", b"x" * len(whole), "no file of packed weights"),
    ):
        s.stop()
        packed.unlink()  # the old map stays whole for who has it
        packed.write_bytes(data)
        s.start()
        s.wait_engine()
        assert f"{packed} are not used: it" in s.log() and said in s.log(), name
        assert "written in" in s.log() and same(embed(s), want), name
        assert packed.read_bytes() == whole, "the same as before"
    s.restart()
    s.wait_engine()
    assert "weights mapped" in s.log() and "not used" not in s.log()


def test_another_model_in_its_place(make_server, tmp_path):
    """F16 and F32 weights of one model: the same shapes, kernels and precision."""
    path = put(F16_MODEL, tmp_path)
    s = make_server("--embedder", path)
    s.wait_engine()
    old = embed(s)
    s.stop()
    packed = the_file(path)
    size = packed.stat().st_size
    os.replace(put(F32_MODEL, tmp_path, "new"), path)
    want = vector_of(path)
    assert not same(old, want)
    s.start()
    s.wait_engine()
    assert "it was made of another model file" in s.log() and "warning" not in s.log()
    assert same(embed(s), want)
    assert the_file(path) == packed and packed.stat().st_size == size
    s.restart()
    s.wait_engine()
    assert "weights mapped" in s.log() and same(embed(s), want)


def test_many_at_once(make_server, tmp_path):
    path = put(Q8_MODEL, tmp_path)
    want = vector_of(path)
    models = [word for n in "abcd" for word in ("--model", n, path, "THREADS", 1)]
    s = make_server(*models)
    for _ in range(2):
        wait_until(lambda: s.log().count(": weights ") == 4, 60, "the models")
        for n in "abcd":
            assert same(embed(s, "MODEL", n), want)
        packed = the_file(path)  # and nothing else
        s.restart()
    wait_until(lambda: s.log().count(f"weights mapped from {packed}") == 4, 60, "the models")


def test_something_in_the_way(make_server, tmp_path):
    path = put(Q8_MODEL, tmp_path)
    want = vector_of(path)
    s = make_server("--embedder", path)
    s.wait_engine()
    s.stop()
    packed = the_file(path)
    packed.unlink()
    pathlib.Path(f"{packed}.tmp").mkdir()
    for _ in range(2):
        s.start()
        s.wait_engine()
        assert s.log().count("packed weights stay in memory") == 1 and f"not kept in {packed}" in s.log()
        assert "Is a directory" in s.log() and same(embed(s), want)
        assert not packed.exists()
        s.stop()


def test_read_only_directory():
    """As a user who may not write there, since root may; with a copy of the program, whose own
    folder that user may not see."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kith-read-only-"))
    try:
        path = put(Q8_MODEL, folder)
        program = folder / "kith-engine"
        shutil.copy(BIN / "kith-engine", program)
        want = vector_of(path)
        folder.chmod(0o555)
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        done = run_program(program, "--model", path, "--embed", TEXT, cwd="/", **user)
        assert done.returncode == 0, done.stderr
        assert same(tuple(float(x) for x in done.stdout.split()), want)
        assert done.stderr.count("\n") == 1 and "Permission denied" in done.stderr, done.stderr
        assert beside(path) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_wrong_words(tmp_path):
    done = run_program("kith-engine", "--model", "x", "--packed-cache", "maybe", "--embed", TEXT)
    assert done.returncode == 2 and "--packed-cache takes yes or no, not 'maybe'" in done.stderr
    done = run_program("kith-server", "--engine-packed-cache", "maybe", cwd=tmp_path)
    assert done.returncode == 1 and "engine-packed-cache" in done.stderr + done.stdout
