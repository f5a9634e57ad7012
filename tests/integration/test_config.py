"""Settings: from a file, from the command line, at run time, and back into the file."""

import socket

import pytest
import redis

from kithtest import ReplyError, Wire, run_program

FILE = """\
# A comment at the beginning.

maxclients 321
# about the next line
slowlog-max-len 64
slowlog-max-len 65

requirepass "a \\"quoted\\" word"
   timeout   0
"""


def test_get_and_set(make_server, protocol):
    s = make_server()
    with s.client(protocol=protocol, decode_responses=True) as r:
        everything = r.config_get("*")
        assert len(everything) > 30 and everything["port"] == str(s.port)
        assert everything["dir"] == str(s.data) and everything["appendfsync"] == "always"
        assert r.config_get("slowlog-*", "TIMEOUT").keys() == {
            "slowlog-log-slower-than",
            "slowlog-max-len",
            "timeout",
        }
        assert r.config_get("nosuch*") == {}
        assert r.config_set("maxmemory", "100mb")
        assert r.config_get("maxmemory") == {"maxmemory": "104857600"}
        assert r.execute_command("CONFIG SET", "timeout", 7, "slowlog-max-len", 9)
        assert r.config_get("timeout", "slowlog-max-len") == {
            "timeout": "7",
            "slowlog-max-len": "9",
        }
        for changeable, value in [
            ("appendfsync", "everysec"),
            ("loglevel", "debug"),
            ("checkpoint-interval", "17"),
            ("vset-tail-max", "100"),
            ("engine-timeout-ms", "777"),
            ("client-output-buffer-limit", "normal 1048576 0 0"),
            ("tcp-keepalive", "60"),
            ("protected-mode", "no"),
            ("proto-max-bulk-len", "1048576"),
        ]:
            assert r.config_set(changeable, value)
            assert r.config_get(changeable) == {changeable: value}


@pytest.mark.parametrize(
    "words, told",
    [
        (["nosuchsetting", 1], ["nosuchsetting"]),
        (["maxclint", 1], ["maxclint", "did you mean 'maxclients'"]),
        (["maxclients", 0], ["maxclients", "between 1 and 1000000"]),
        (["maxclients", "many"], ["maxclients", "integer"]),
        (["maxclients", ""], ["maxclients", "integer"]),
        (["maxclients", "9999999999999999999999"], ["maxclients", "integer"]),
        (["maxmemory", "1tb"], ["maxmemory", "memory value"]),
        (["maxmemory", "-1"], ["maxmemory", "memory value"]),
        (["appendfsync", "sometimes"], ["appendfsync", "always, everysec, no"]),
        (["port", 7000], ["port", "immutable"]),
        (["dir", "/tmp"], ["dir", "immutable"]),
        (["daemonize", "yes"], ["daemonize", "no"]),
        (["maxmemory-policy", "allkeys-lru"], ["maxmemory-policy", "noeviction"]),
        (["appendonly", "no"], ["appendonly", "yes"]),
        (["timeout", 1, "timeout", 2], ["timeout", "duplicate"]),
        (["timeout", 1, "nosuch", 2], ["nosuch"]),
    ],
    ids=lambda w: " ".join(map(str, w)),
)
def test_set_errors_say_what_would_be_right(server, words, told):
    with server.wire(3) as w:
        before = w.cmd("CONFIG", "GET", "*")
        error = w.cmd("CONFIG", "SET", *words)
        assert isinstance(error, ReplyError) and error.startswith("ERR ")
        for part in told:
            assert part in error, error
        assert w.cmd("CONFIG", "GET", "*") == before, "all or none"


def test_settings_take_effect(make_server):
    s = make_server()
    with s.wire() as w:
        w.cmd("CONFIG", "SET", "slowlog-log-slower-than", 0)
        w.cmd("SET", "k", "seen")
        assert any(b"seen" in e[3] for e in w.cmd("SLOWLOG", "GET"))
        w.cmd("CONFIG", "SET", "proto-max-bulk-len", 1 << 20)
        w.send_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % ((1 << 20) + 1))
        assert w.read().startswith("ERR Protocol error") and w.closed()


def test_file_then_options(make_server):
    s = make_server("--maxclients", 44, file=FILE)
    with s.client(password='a "quoted" word', decode_responses=True) as r:
        got = r.config_get("maxclients", "slowlog-max-len", "requirepass")
        assert got == {
            "maxclients": "44",
            "slowlog-max-len": "65",
            "requirepass": 'a "quoted" word',
        }


def test_rewrite_keeps_comments_and_order(make_server):
    s = make_server("--loglevel", "debug", file=FILE)
    with s.client(password='a "quoted" word', decode_responses=True) as r:
        r.config_set("slowlog-max-len", 66)
        r.config_set("maxmemory", "3mb")
        r.config_set("requirepass", "new # word\t")
        assert r.config_rewrite()
        first = s.config_path.read_text()
        assert r.config_rewrite()
        assert s.config_path.read_text() == first, "a second one changes nothing"
    lines = first.splitlines()
    assert lines[:5] == [
        "# A comment at the beginning.",
        "",
        "maxclients 321",
        "# about the next line",
        "slowlog-max-len 66",
    ]
    assert "   timeout   0" in lines, "what did not change stays as it was written"
    assert "loglevel debug" in lines and "maxmemory 3145728" in lines
    assert not any(x.startswith("slowlog-max-len 65") for x in lines)
    s.options.clear()
    s.restart()
    with s.client(password="new # word\t", decode_responses=True) as r:
        got = r.config_get("maxmemory", "slowlog-max-len", "loglevel", "maxclients")
        assert set(got.values()) == {"3145728", "66", "debug", "321"}


def test_rewrite_without_a_file(server):
    with pytest.raises(redis.ResponseError, match="running without a config file"):
        server.client().config_rewrite()


def test_included_file(make_server, tmp_path):
    (tmp_path / "more.conf").write_text("maxclients 77\n")
    s = make_server(file=f"maxclients 5\ninclude {tmp_path}/more.conf\n")
    assert s.client(decode_responses=True).config_get("maxclients") == {"maxclients": "77"}


def test_a_file_of_redis_is_understood(make_server):
    """The settings of a usual redis.conf that kith shares with it."""
    s = make_server(
        file="""
bind 127.0.0.1 -::1
protected-mode yes
tcp-backlog 511
timeout 0
tcp-keepalive 300
daemonize no
loglevel notice
logfile ""
databases 16
save 3600 1 300 100
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
client-output-buffer-limit normal 0 0 0
client-output-buffer-limit replica 256mb 64mb 60
slowlog-log-slower-than 10000
"""
    )
    assert s.client().ping()


@pytest.mark.parametrize(
    "text, told",
    [
        ("nosuch 1\n", ["kith.conf:1", "nosuch"]),
        ("\n\nmaxclint 5\n", ["kith.conf:3", "did you mean 'maxclients'"]),
        ("maxclients\n", ["kith.conf:1", "maxclients takes one value"]),
        ("maxclients 1 2\n", ["kith.conf:1", "maxclients takes one value"]),
        ("maxclients x\n", ["kith.conf:1", "maxclients", "integer"]),
        ('requirepass "open\n', ["kith.conf:1", "unbalanced quotes"]),
        ("include /no/such/file\n", ["/no/such/file"]),
        ("include kith.conf\n", ["deep"]),
        ("daemonize yes\n", ["daemonize", "foreground"]),
        ("appendonly no\n", ["appendonly", "yes"]),
        ("\x00\x01\x02\n", ["kith.conf:1"]),
    ],
    ids=lambda v: v.strip()[:30] if isinstance(v, str) else "",
)
def test_bad_files(make_server, text, told):
    s = make_server(start=False, file=text)
    s.spawn()
    assert s.wait() == 1
    for part in told:
        assert part in s.log(), s.log()


@pytest.mark.parametrize(
    "words, told",
    [
        (["--nosuch", "1"], ["nosuch"]),
        (["--maxclint", "1"], ["did you mean 'maxclients'"]),
        (["--port", "70000"], ["--port", "0 and 65535"]),
        (["--port"], ["port takes one value"]),
        (["--port", "1", "2"], ["port takes one value"]),
        (["nofile.conf"], ["nofile.conf"]),
        (["-x"], ["-x"]),
        (["--"], ["--"]),
        (["--engine-precision", "half"], ["auto, f32, int8, bf16"]),
        (["--bind", "999.1.1.1", "--port", "1"], ["999.1.1.1"]),
        (["--dir", "/proc/none", "--port", "0"], ["/proc/none"]),
        (["--logfile", "/no/such/folder/log"], ["/no/such/folder/log"]),
    ],
    ids=lambda w: " ".join(w),
)
def test_bad_command_lines(tmp_path, words, told):
    done = run_program("kith-server", *words, cwd=tmp_path)
    assert done.returncode == 1, done
    for part in told:
        assert part in done.stderr, done.stderr


@pytest.mark.parametrize("program", ["kith-server", "kith-engine", "kith-convert", "kith-check", "kith-import", "kith-quantize"])
def test_help_and_version(program):
    done = run_program(program, "--help")
    assert done.returncode == 0 and len(done.stdout) > 100 and not done.stderr
    assert "sage" in done.stdout.splitlines()[0]
    done = run_program(program, "--version")
    assert done.returncode == 0 and program in done.stdout and "0.1" in done.stdout


def test_help_lists_every_setting(server):
    text = run_program("kith-server", "--help").stdout
    with server.wire(3) as w:
        for name in w.cmd("CONFIG", "GET", "*"):
            assert f"--{name.decode()} " in text


def test_protected_mode(make_server):
    """From another address without a password: told why, then closed."""
    s = make_server("--bind", "0.0.0.0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            address = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no address but localhost")
    with Wire(s.port, host=address) as w:
        reply = w.read()
        assert reply.startswith("DENIED") and "protected" in reply and w.closed()
    with s.wire() as w:
        assert w.cmd("PING") == "PONG"
        w.cmd("CONFIG", "SET", "requirepass", "secret")
    with Wire(s.port, host=address) as w:
        assert w.cmd("PING").startswith("NOAUTH") and w.cmd("AUTH", "secret") == "OK"
