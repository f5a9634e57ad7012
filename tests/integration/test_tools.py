"""The tools an operator has in the fingers: redis-cli and redis-benchmark."""

import os
import pty
import shutil
import subprocess
import threading

import pytest

from kithtest import PATIENCE, SLOWER, wait_until


@pytest.fixture
def cli(server):
    program = shutil.which("redis-cli")
    if not program:
        pytest.skip("redis-cli is not installed (package redis-tools)")

    def run(*words, stdin=None, check=True):
        done = subprocess.run(
            [program, "-p", str(server.port), *map(str, words)],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30 * PATIENCE,
        )
        assert not check or done.returncode == 0, done
        return done.stdout

    run.program = program
    return run


@pytest.mark.parametrize("version", [[], ["-3"]], ids=["resp2", "resp3"])
def test_one_shot_commands(cli, version):
    assert cli(*version, "SET", "k", "v w") == "OK\n"
    assert cli(*version, "GET", "k") == "v w\n"
    assert cli(*version, "INCR", "n") == "1\n"
    assert cli(*version, "GET", "none") == "\n"
    assert cli(*version, "VADD", "v", "VALUES", 2, 1, 0, "e").strip() in ("1", "true", "(true)")
    assert cli(*version, "VSIM", "v", "ELE", "e", "WITHSCORES").split() == ["e", "1"]
    assert "unknown command" in cli(*version, "NOSUCH", check=False)
    assert "redis_version" in cli(*version, "INFO", "server")
    assert cli("-n", 5, *version, "DBSIZE") == "0\n"


def test_terminal_output(cli):
    assert cli("--no-raw", "MGET", "none", "x") == "1) (nil)\n2) (nil)\n"
    assert cli("--no-raw", "-3", "VISMEMBER", "v", "e") == "(false)\n"
    cli("VADD", "v", "VALUES", 2, 1, 0, "e")
    assert cli("--no-raw", "-3", "VSIM", "v", "ELE", "e", "WITHSCORES") == '1# "e" => (double) 1\n'
    assert cli("--json", "VINFO", "v").startswith('{"quant-type":"int8",')


def test_commands_from_a_pipe(cli):
    lines = "".join(f"SET key:{i} {i}\n" for i in range(50))
    assert cli(stdin=lines) == "OK\n" * 50
    assert cli(stdin="MULTI\nINCR n\nINCR n\nEXEC\n") == "OK\nQUEUED\nQUEUED\n1\n2\n"


def test_mass_insertion(cli):
    stream = b"".join(b"*3\r\n$3\r\nSET\r\n$4\r\nk%03d\r\n$1\r\nv\r\n" % i for i in range(500))
    out = cli("--pipe", stdin=stream.decode())
    assert "errors: 0, replies: 500" in out


def test_scan(cli):
    cli(stdin="".join(f"SET key:{i} {i}\n" for i in range(300)))
    assert set(cli("--scan").split()) == {f"key:{i}" for i in range(300)}
    assert set(cli("--scan", "--pattern", "key:1?").split()) == {f"key:{i}" for i in range(10, 20)}
    assert "Biggest string found" in cli("--bigkeys").replace("Biggest  string", "Biggest string")


def stream(cli, words, enough):
    """Reads a command that does not end until enough(text), then ends it. On a terminal of its
    own, or it would keep its output in a buffer."""
    ours, theirs = pty.openpty()
    p = subprocess.Popen(
        [cli.program, *map(str, words)], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text = []

    def read():
        try:
            while data := os.read(ours, 4096):
                text.append(data.decode())
        except OSError:
            pass  # the other side has ended

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: enough("".join(text)), what=f"redis-cli {words}")
    finally:
        p.terminate()
        p.wait()
        reader.join()
        os.close(ours)
    return "".join(text)


def test_stat(cli, server):
    text = stream(cli, ["-p", server.port, "--stat", "-i", "0.2"], lambda t: t.count("\n") >= 4)
    assert "------- data ------" in text and "keys" in text
    row = text.splitlines()[2].split()
    assert row[0] == "0" and row[1].endswith(("B", "K", "M", "G")), text


def test_monitor(cli, server):
    def seen(text):
        if "OK" in text:
            cli("SET", "watched", "1")
        return '"SET" "watched" "1"' in text

    stream(cli, ["-p", server.port, "MONITOR"], seen)


def test_latency(cli, server):
    stream(cli, ["-p", server.port, "--latency"], lambda t: "min:" in t)
    assert float(cli("--latency", "-i", "0.2", "--raw").split()[0]) >= 0


def test_password_and_url(cli, make_server):
    s = make_server("--requirepass", "secret")
    base = [cli.program, "-p", str(s.port)]
    out = subprocess.run([*base, "PING"], capture_output=True, text=True).stdout
    assert "NOAUTH" in out
    out = subprocess.run([*base, "-a", "secret", "--no-auth-warning", "PING"], capture_output=True)
    assert out.stdout == b"PONG\n"
    url = f"redis://default:secret@127.0.0.1:{s.port}/2"
    out = subprocess.run([cli.program, "-u", url, "DBSIZE"], capture_output=True, text=True)
    assert out.stdout == "0\n"


def test_shutdown(cli, make_server):
    s = make_server()
    subprocess.run([cli.program, "-p", str(s.port), "SHUTDOWN"], check=True, timeout=30 * PATIENCE)
    assert s.wait() == 0


@pytest.mark.parametrize(
    "words",
    [
        ["-t", "ping_inline,ping_mbulk,set,get,incr,mset"],
        ["-t", "set,get", "-P", "50", "-r", "1000"],
        ["-t", "set,get", "-3", "-d", "5000"],
        ["VSIM", "v", "VALUES", "3", "1", "2", "3", "COUNT", "5"],
        ["VADD", "w", "VALUES", "3", "1", "2", "3", "__rand_int__"],
    ],
    ids=lambda w: " ".join(w)[:24],
)
def test_benchmark(server, words):
    program = shutil.which("redis-benchmark")
    if not program:
        pytest.skip("redis-benchmark is not installed (package redis-tools)")
    with server.wire() as w:
        w.cmds([("VADD", "v", "VALUES", 3, 1, 2, i, i) for i in range(100)])
    n = 2000 // SLOWER
    done = subprocess.run(
        [program, "-p", str(server.port), "-n", str(n), "-c", "20", "--csv", *words],
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
    )
    assert done.returncode == 0, done
    text = done.stdout + done.stderr
    assert "rror" not in text and "WARN" not in text, text
    rows = [x for x in done.stdout.splitlines() if x.startswith('"') and "rps" not in x]
    assert rows and all(float(row.split('","')[1]) > 0 for row in rows), done.stdout
