"""kith-import with real files, the real server and the real model."""

import csv
import json
import os
import pty
import re
import signal
import subprocess

import pytest

from kithtest import BIN, PATIENCE, VARIANT, run_program, scaled, wait_until

pytestmark = pytest.mark.skipif(
    VARIANT == "tsan",
    reason="the tool has one thread, and an engine under TSan takes seconds for each text",
)

WORDS = "the archive of an old library keeps letters maps and ledgers about ships that came to port".split()


def passage(seed, n=30):
    return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 1)) % len(WORDS)] for i in range(n)) + f" {seed}."


def import_into(server, key, *args, status=0, **options):
    """The table of a run as a dict."""
    run = run_program("kith-import", "--port", server.port, key, *args, **options)
    assert run.returncode == status, run.stdout + run.stderr
    lines = [x.split(None, 1) for x in run.stdout.splitlines() if x and not x.startswith(" ")]
    table = {k: v for k, v in lines}
    table["stderr"] = run.stderr
    return table


def counts(table):
    return [int(table[k]) for k in ("stored", "unchanged", "removed", "skipped")]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return path


def names(w, key):
    return [n.decode() for n in w.cmd("VRANGE", key, "-", "+")]


def attributes(w, key, name):
    a = json.loads(w.cmd("VGETATTR", key, name))
    assert re.fullmatch("[0-9a-f]{16}", a.pop("_hash")), a
    return a


@pytest.fixture
def wire(text_server):
    with text_server.wire(timeout=60) as w:
        yield w


# --- formats -------------------------------------------------------------------------------------


def test_jsonl(text_server, wire, tmp_path):
    rows = [
        {"id": "a", "text": "One text, Zürich.", "year": 1979, "tags": ["x", "y"], "ok": True},
        {"id": 7, "content": "Another text.", "score": 0.1, "exact": 0.30000000000000004},
        {"_id": "c", "body": "A third \U0001f600 text.", "none": None},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n\n"), newline="")
    table = import_into(text_server, "v", path)
    assert counts(table) == [3, 0, 0, 0] and table["read"] == "3 records of 1 file"
    assert names(wire, "v") == ["7#1", "a#1", "c#1"]
    assert wire.cmd("VTEXT", "v", "a#1") == "One text, Zürich.".encode()
    assert attributes(wire, "v", "a#1") == {"year": 1979, "tags": ["x", "y"], "ok": True}
    assert b'"score":0.1' in wire.cmd("VGETATTR", "v", "7#1")
    assert attributes(wire, "v", "7#1") == {"score": 0.1, "exact": 0.30000000000000004}
    assert wire.cmd("VSIM", "v", "TEXT", "text", "FILTER", ".year > 1970") == [b"a#1"]
    assert counts(import_into(text_server, "v", path)) == [0, 3, 0, 0]


def test_csv(text_server, wire, tmp_path):
    rows = [
        ["id", "title", "text", "year", "code"],
        ["1", 'say "yes", twice', "line one\r\nline two, and more", "1999", "007"],
        ["2", "", 'quote " inside', "-2.5e3", "+1"],
        ["3", "x,y", "last", "12345678901234567890", ""],
    ]
    path = tmp_path / "rows.csv"
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows(rows)
    assert counts(import_into(text_server, "v", path)) == [3, 0, 0, 0]
    assert wire.cmd("VTEXT", "v", "1#1") == b"line one\r\nline two, and more"
    assert wire.cmd("VTEXT", "v", "2#1") == b'quote " inside'
    assert attributes(wire, "v", "1#1") == {"title": 'say "yes", twice', "year": 1999, "code": "007"}
    assert attributes(wire, "v", "2#1") == {"title": "", "year": -2500.0, "code": "+1"}
    assert attributes(wire, "v", "3#1")["year"] == "12345678901234567890"
    path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    assert counts(import_into(text_server, "v", path)) == [0, 3, 0, 0], "no newline at the end"


def test_named_fields_and_no_chunks(text_server, wire, tmp_path):
    rows = [{"key": f"k{i}", "say": passage(i), "a": i, "b": "b", "_c": 1} for i in range(5)]
    path = write_jsonl(tmp_path / "rows.txt", rows)
    options = ["--format", "jsonl", "--id", "key", "--text", "say", "--chunk", "none"]
    import_into(text_server, "v", *options, "--attributes", "a,b", path)
    assert names(wire, "v") == [f"k{i}" for i in range(5)]
    assert attributes(wire, "v", "k3") == {"a": 3, "b": "b"}
    assert counts(import_into(text_server, "v", *options, "--attributes", "none", path)) == [5, 0, 0, 0]
    assert attributes(wire, "v", "k3") == {}
    table = import_into(text_server, "w", *options, path, status=1)
    assert "rows.txt:1: field '_c': names that begin with '_' are kept" in table["stderr"]


def test_folder(text_server, wire, tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.md").write_text("# Title\n\nSome words.\n")
    (folder / "a.txt").write_text("Plain words.")
    (folder / "deep" / "c.markdown").write_text("Deep words.")
    (folder / "deep" / "photo.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("not read")
    write_jsonl(folder / "deep" / "rows.jsonl", [{"id": "r", "text": "row"}])
    run = run_program("kith-import", "--port", text_server.port, "v", folder)
    assert run.returncode == 0 and "(1 other files of the folders" in run.stdout, run.stdout
    assert names(wire, "v") == sorted(
        [f"{folder}/{n}#1" for n in ("a.txt", "b.md", "deep/c.markdown")] + ["r#1"]
    )


# --- chunks --------------------------------------------------------------------------------------


def bare(text):
    return "".join(text.split())


def chunks(w, key, name):
    n = len([x for x in names(w, key) if x.startswith(name + "#")])
    return [w.cmd("VTEXT", key, f"{name}#{i + 1}").decode() for i in range(n)]


LONG = " ".join(
    f"Sentence {i} says: {passage(i, i % 60 + 3)} \u201cReally?\u201d 日本語の文です。次の文！ End" for i in range(30)
) + "\n\n" + "x" * 3000 + " " + "字" * 400


@pytest.mark.parametrize("mode", ["tokens", "sentences", "headings"])
@pytest.mark.parametrize("limit", [40, None])
def test_every_character_is_in_a_chunk(text_server, wire, tmp_path, mode, limit):
    text = "Before.\n# One\n" + LONG + "\n## Two ##\n```\n# no heading\n```\n# Three\nend\n"
    path = tmp_path / "long.txt"
    path.write_text(text)
    words = ["--chunk", mode, *(["--chunk-tokens", limit] if limit else [])]
    assert import_into(text_server, "v", *words, path)["stored"] != "0"
    found = chunks(wire, "v", str(path))
    assert "".join(bare(c) for c in found) == bare(text)
    assert all(c == c.strip() for c in found)
    # EMBED without TRUNCATE refuses what the model does not take.
    assert len(wire.cmd("EMBED", "FORMAT", "FP32", "TEXTS", *found)) == len(found)
    if limit:
        assert all(len(c) <= 4 * limit for c in found if " " not in c)
        assert all(len(c.split()) <= limit for c in found)


def test_sentences_stay_whole_and_overlap(text_server, wire, tmp_path):
    sentences = [f"This is sentence number {i} of the text." for i in range(60)]
    path = tmp_path / "s.txt"
    path.write_text(" ".join(sentences))
    import_into(text_server, "v", "--chunk-tokens", 60, path)
    found = chunks(wire, "v", str(path))
    assert len(found) > 10 and all(re.fullmatch(r"(This is [^.]+\.\s?)+", c) for c in found)
    import_into(text_server, "o", "--chunk-tokens", 60, "--overlap", 25, path)
    over = chunks(wire, "o", str(path))
    assert len(over) > len(found)
    for before, after in zip(over, over[1:]):
        first = re.match(r"This[^.]+\.", after)[0]
        assert before.endswith(first) or first in before, (before, after)
    import_into(text_server, "t", "--chunk", "tokens", "--chunk-tokens", 20, "--overlap", 6, path)
    by_words = chunks(wire, "t", str(path))
    assert all(set(c.split()) <= set(path.read_text().split()) for c in by_words)
    assert all(a.split()[-1] in b.split() for a, b in zip(by_words, by_words[1:]))


def test_headings(text_server, wire, tmp_path):
    path = tmp_path / "h.md"
    path.write_text("intro\n\n# A\none\n## B ##\ntwo\n### C\n~~~\n# code\n~~~\n## D\nfour\n# E\nfive")
    import_into(text_server, "v", "--chunk", "headings", path)
    paths = [attributes(wire, "v", f"{path}#{i}").get("heading") for i in range(1, 7)]
    assert paths == [None, "A", "A > B", "A > B > C", "A > D", "E"]
    assert wire.cmd("VTEXT", "v", f"{path}#4") == b"### C\n~~~\n# code\n~~~"


def test_what_the_estimate_misses_is_stored_in_pieces(text_server, wire, tmp_path):
    """Letters of one word are counted by fours; a model may make a token of each."""
    hard = " ".join("qzxj" for _ in range(450))
    path = write_jsonl(
        tmp_path / "r.jsonl",
        [{"id": i, "text": hard if i == 5 else passage(i)} for i in range(12)],
    )
    table = import_into(text_server, "v", path)
    assert counts(table) == [12, 0, 0, 0]
    pieces = [n for n in names(wire, "v") if n.startswith("5#1")]
    first = json.loads(wire.cmd("VGETATTR", "v", "5#1"))
    assert first["_pieces"] == len(pieces) > 1
    order = ["5#1"] + [f"5#1.{i + 2}" for i in range(len(pieces) - 1)]
    assert bare("".join(wire.cmd("VTEXT", "v", n).decode() for n in order)) == bare(hard)
    assert counts(import_into(text_server, "v", path)) == [0, 12, 0, 0]
    wire.cmd("VREM", "v", order[-1])
    assert counts(import_into(text_server, "v", path)) == [1, 11, 0, 0], "a piece was missing"
    write_jsonl(path, [{"id": i, "text": passage(i)} for i in range(12)])
    import_into(text_server, "v", path)
    assert [n for n in names(wire, "v") if n.startswith("5#1")] == ["5#1"]
    write_jsonl(path, [{"id": 5, "text": hard}])
    table = import_into(text_server, "w", "--chunk", "none", path, status=1)
    assert "r.jsonl:1: the server refuses it" in table["stderr"] and "tokens" in table["stderr"]


# --- again ---------------------------------------------------------------------------------------


def test_changed_and_shorter_documents(text_server, wire, tmp_path):
    path = tmp_path / "d.txt"
    sentences = [f"This is sentence number {i} of the text." for i in range(40)]
    path.write_text(" ".join(sentences))
    words = ["--chunk-tokens", 40, path]
    n = int(import_into(text_server, "v", *words)["stored"])
    assert n > 8
    neighbours = [f"{path}#3#1", f"{path}#99x", f"{path}#0", f"{path}", f"{path}#1.1"]
    for name in neighbours:
        wire.cmd("VADD", "v", "TEXT", "not of this document", name)
    path.write_text(" ".join([*sentences[:-1], "The last sentence is another."]))
    assert counts(import_into(text_server, "v", *words)) == [1, n - 1, 0, 0]
    path.write_text(" ".join(sentences[:9]))
    stored, unchanged, removed, _ = counts(import_into(text_server, "v", *words))
    assert stored + unchanged == n - removed and removed > 5 and stored <= 1
    left = set(names(wire, "v"))
    assert left == {f"{path}#{i + 1}" for i in range(n - removed)} | set(neighbours)


def test_killed_in_the_middle(make_server, model, tmp_path):
    s = make_server("--embedder", model)
    s.wait_engine()
    n = scaled(600, 100)
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": i, "text": passage(i, 120)} for i in range(n)])
    command = [str(BIN / "kith-import"), "--port", str(s.port), "--batch", "8", "v", str(path)]
    tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with s.wire() as w:
        wait_until(lambda: w.cmd("VCARD", "v") >= 24, 30, "the first batches", step=0.001)
        tool.kill()
        tool.communicate()
        s.kill()
        s.start()
    s.wait_engine()
    with s.wire() as w:
        had = w.cmd("VCARD", "v")
        assert had >= 24
        stored, unchanged, removed, skipped = counts(import_into(s, "v", path))
        assert unchanged >= had and stored + unchanged == n and removed == skipped == 0
        assert counts(import_into(s, "v", path)) == [0, n, 0, 0]
        assert w.cmd("VCARD", "v") == n
        assert w.cmd("VTEXT", "v", "11#1") == passage(11, 120).encode()


def test_interrupted(text_server, wire, tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": i, "text": passage(i, 120)} for i in range(2000)])
    command = [BIN / "kith-import", "--port", str(text_server.port), "--batch", "4", "v", path]
    tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: wire.cmd("VCARD", "v") >= 8, 30, "the first batches", step=0.001)
    tool.send_signal(signal.SIGINT)
    out, err = tool.communicate(timeout=60 * PATIENCE)
    assert tool.returncode == 130 and "the same command goes on" in err, (out, err)
    stored = int(re.search(r"stored +(\d+)", out)[1])
    assert stored == wire.cmd("VCARD", "v"), "what was on the way was waited for"


def test_an_engine_that_dies_is_waited_for(make_server, model, tmp_path):
    s = make_server("--embedder", model)
    pid = s.wait_engine()
    n = scaled(300, 60)
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": i, "text": passage(i, 120)} for i in range(n)])
    command = [BIN / "kith-import", "--port", str(s.port), "--batch", "8", "v", path]
    tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with s.wire() as w:
        wait_until(lambda: w.cmd("VCARD", "v") >= 8, 30, "the first batch", step=0.001)
        os.kill(pid, signal.SIGKILL)
        out, err = tool.communicate(timeout=60 * PATIENCE)
        assert tool.returncode == 0, (out, err)
        assert w.cmd("VCARD", "v") == n


# --- what is refused -----------------------------------------------------------------------------

BAD_LINES = [
    (b'{"id":"x","text":', "no JSON, byte"),
    (b'["x"]', "no JSON object"),
    (b'{"id":"x","text":"y"} z', "no JSON, byte"),
    (b'{"text":"no id"}', "there is no field 'id' or '_id'"),
    (b'{"id":"x"}', "there is no field 'text' or 'content' or 'body'"),
    (b'{"id":"x","text":7}', "field 'text' is no string"),
    (b'{"id":1.5,"text":"y"}', "field 'id' is no string and no whole number"),
    (b'{"id":"","text":"y"}', "the id is empty"),
    (b'{"id":"x","text":" \\n"}', "the text is empty"),
    (b'{"id":"x","text":"\xff"}', "byte 19 is not valid UTF-8"),
    (b'{"id":"good","text":"again"}', "the id 'good' was there before"),
    (b'{"id":"x","id":"y","text":"z"}', "duplicate"),
    (b'{"id":"x\\u0000","text":"z"}', "NUL"),
]


@pytest.mark.parametrize("line, said", BAD_LINES, ids=[said[:25] for _, said in BAD_LINES])
def test_bad_lines(text_server, wire, tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"id":"good","text":"fine"}\n' + line + b'\n{"id":"last","text":"well"}\n')
    table = import_into(text_server, "v", path, status=1)
    assert "bad.jsonl:2: " in table["stderr"] and said in table["stderr"], table["stderr"]
    table = import_into(text_server, "w", "--on-error", "skip", path, status=3)
    assert counts(table) == [2, 0, 0, 1]
    assert "bad.jsonl:2: " in table["stderr"] and said in table["stderr"], table["stderr"]
    assert names(wire, "w") == ["good#1", "last#1"]


@pytest.mark.parametrize(
    "row, said",
    [
        (b"x,one,two", "the row has 3 fields, the header 2"),
        (b"x", "the row has 1 fields, the header 2"),
        (b'x,o"ne', "a quote stands inside of a field"),
        (b'x,"one"two', "text stands behind the quote"),
        (b"x,\xc3", "not valid UTF-8"),
    ],
)
def test_bad_rows(text_server, tmp_path, row, said):
    path = tmp_path / "bad.csv"
    path.write_bytes(b'id,text\r\na,"fi\nne"\r\n' + row + b"\r\nb,well\r\n")
    table = import_into(text_server, "v", path, status=1)
    assert "bad.csv:4: " in table["stderr"] and said in table["stderr"], table["stderr"]
    table = import_into(text_server, "w", "--on-error", "skip", path, status=3)
    assert counts(table) == [2, 0, 0, 1]
    for header in (b"id,body,id\n", b"id,words\n", b'id,"text\n'):
        path.write_bytes(header + b"a,b\n")
        table = import_into(text_server, "v", "--on-error", "skip", path, status=3)
        assert counts(table) == [0, 0, 0, 1] and "bad.csv:1: " in table["stderr"]


def test_refused_by_the_server_is_named(text_server, wire, tmp_path):
    rows = [{"id": i, "text": passage(i), "a": "x" * (40000 if i == 77 else 5)} for i in range(100)]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    table = import_into(text_server, "v", "--on-error", "skip", path, status=3)
    assert counts(table) == [99, 0, 0, 1]
    assert "r.jsonl:78: the server refuses it: element '77#1'" in table["stderr"]
    assert wire.cmd("VCARD", "v") == 99
    assert "r.jsonl:78: " in import_into(text_server, "w", path, status=1)["stderr"]


def test_servers_that_are_not_there_or_refuse(server, text_server, make_server, tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": "a", "text": "one"}])
    run = run_program("kith-import", "--port", 1, "v", path)
    assert run.returncode == 1 and "cannot connect to 127.0.0.1:1: " in run.stderr
    assert "no embedding model" in import_into(server, "v", path, status=1)["stderr"]
    with text_server.wire() as w:
        w.cmd("SET", "string", "x")
        assert "WRONGTYPE" in import_into(text_server, "string", path, status=1)["stderr"]
        w.cmd("VADD", "plain", "VALUES", 2, 1, 2, "x")
        assert "dimension" in import_into(text_server, "plain", path, status=1)["stderr"]
    assert "No such file" in import_into(text_server, "v", tmp_path / "none", status=1)["stderr"]


def test_password_and_unix_socket(make_server, model, tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": "a", "text": "one"}])
    s = make_server("--embedder", model, "--unixsocket", tmp_path / "s", start=False)
    s.start()
    s.wait_engine()
    run = run_program("kith-import", "--socket", tmp_path / "s", "v", path)
    assert run.returncode == 0, run.stderr
    with s.wire() as w:
        assert w.cmd("VCARD", "v") == 1
        assert w.cmd("CONFIG", "SET", "requirepass", "secret") == "OK"
    assert "NOAUTH" in import_into(s, "v", path, status=1)["stderr"]
    assert "cannot log in" in import_into(s, "v", "--password", "x", path, status=1)["stderr"]
    assert counts(import_into(s, "v", "--password", "secret", path)) == [0, 1, 0, 0]
    assert counts(import_into(s, "v", path, env={"KITH_PASSWORD": "secret"})) == [0, 1, 0, 0]


# --- without storing, and how it looks -----------------------------------------------------------


def test_dry_run_and_embed_only(text_server, wire, tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": i, "text": passage(i)} for i in range(40)])
    run = run_program("kith-import", "--port", 1, "--dry-run", "--chunk-tokens", 50, "v", path)
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"^\d+#1  \d+ bytes, about \d+ tokens$", run.stdout, re.M)) == 10
    run = run_program("kith-import", "--port", text_server.port, "--embed-only", "v", path)
    assert run.returncode == 0 and re.search("embedded +40", run.stdout), run.stdout
    assert wire.cmd("EXISTS", "v") == 0


def test_quiet_and_progress(text_server, tmp_path):
    n = scaled(300, 40)
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": i, "text": passage(i)} for i in range(n)])
    run = run_program("kith-import", "--port", text_server.port, "--quiet", "v", path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    leader, follower = pty.openpty()
    command = [BIN / "kith-import", "--port", str(text_server.port), "--batch", "8", "w", path]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, timeout=60 * PATIENCE)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.returncode == 0 and re.search(rb"stored +%d\n" % n, done.stdout), done.stdout
    assert re.search(r"\[#* *\] +\d+ %  \d+ stored, \d+ unchanged, \d+/s", shown), shown


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["v"],
        ["--chunk", "pages", "v", "x"],
        ["--batch", "0", "v", "x"],
        ["--port", "x", "v", "x"],
        ["--on-error", "panic", "v", "x"],
        ["--bad", "v", "x"],
    ],
)
def test_wrong_use(words):
    run = run_program("kith-import", *words)
    assert run.returncode == 2 and run.stderr and not run.stdout


def test_sizes_that_cannot_be(text_server, tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": "a", "text": "one"}])
    error = import_into(text_server, "v", "--chunk-tokens", 5000, path, status=1)["stderr"]
    assert "--chunk-tokens 5000: the model" in error and "takes 510" in error
    words = ["--chunk-tokens", 50, "--overlap", 26]
    assert "more than half" in import_into(text_server, "v", *words, path, status=1)["stderr"]
