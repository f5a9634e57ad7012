"""The papers say what the programs do: pages made of the tables are the current ones, and the
sessions that the README shows go as it shows them.

A session is a fenced block of the kind `redis-cli`:

    > COMMAND words
    the answer as redis-cli prints it to a pipe
    ...                        any number of lines
    begins with...             any rest of the line

A line that begins with `#` is a comment. Sessions of one page run on one server, in order.
"""

import re
import shlex
import shutil
import subprocess

import pytest

from kithtest import PATIENCE, ROOT, run_program


@pytest.mark.parametrize("page", ["commands", "configuration"])
def test_generated_pages_are_current(page):
    written = (ROOT / "docs" / f"{page}.md").read_text()
    made = run_program("kith-docs", page)
    assert made.returncode == 0 and made.stdout == written, f"docs/{page}.md is old: run make docs"


def test_every_command_and_setting_is_in_the_pages(server):
    commands = (ROOT / "docs" / "commands.md").read_text()
    settings = (ROOT / "docs" / "configuration.md").read_text()
    with server.wire(3) as w:
        for name in w.cmd("COMMAND", "LIST"):
            words = name.decode().upper().replace("|", " ")
            assert re.search(rf"^#+ {re.escape(words)}$", commands, re.M), words
        for name in w.cmd("CONFIG", "GET", "*"):
            assert f"`{name.decode()}`" in settings, name


def sessions(text):
    """Steps of every redis-cli block: (line number, command, expected lines)."""
    inside, steps = False, []
    for number, line in enumerate(text.splitlines(), 1):
        if not inside:
            inside = line.strip() == "```redis-cli"
        elif line.strip() == "```":
            inside = False
        elif line.startswith("> "):
            steps.append((number, line[2:].strip(), []))
        elif steps and not line.startswith("#"):
            steps[-1][2].append(line.rstrip())
    return steps


def matches(expected, lines):
    """`...` alone stands for any lines, within a line for any characters."""
    if not expected:
        return not lines
    if expected[0].strip() == "...":
        return any(matches(expected[1:], lines[i:]) for i in range(len(lines) + 1))
    if not lines:
        return False
    pattern = ".*".join(re.escape(part) for part in expected[0].split("..."))
    return re.fullmatch(pattern, lines[0]) is not None and matches(expected[1:], lines[1:])


def test_the_replayer_can_tell():
    assert matches(["a", "...", "0.7..."], ["a", "x", "y", "0.71"])
    assert matches(["..."], []) and matches([], [])
    assert not matches(["a"], ["b"]) and not matches(["a"], ["a", "b"]) and not matches([], ["a"])
    assert not matches(["0.7..."], ["0.81"])
    steps = sessions("x\n```redis-cli\n> SET a 1\nOK\n# why\n> GET a\n1\n```\n> no\n```sh\n> no\n```")
    assert steps == [(3, "SET a 1", ["OK"]), (6, "GET a", ["1"])]


@pytest.mark.parametrize("page", ["README.md", "docs/vector-sets.md", "docs/operations.md", "docs/design.md"])
def test_sessions_go_as_shown(make_server, model, page):
    path = ROOT / page
    steps = sessions(path.read_text()) if path.exists() else []
    if not steps:
        missing = path.exists() and page == "README.md"
        assert not missing, "the README shows no session (a block ```redis-cli)"
        return
    program = shutil.which("redis-cli")
    if not program:
        pytest.skip("redis-cli is not installed (package redis-tools)")
    s = make_server("--embedder", model)
    s.wait_engine()
    for number, command, expected in steps:
        done = subprocess.run(
            [program, "-p", str(s.port), *shlex.split(command)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=30 * PATIENCE,
        )
        lines = done.stdout.rstrip("\n").split("\n") if done.stdout.strip("\n") else []
        while expected and not expected[-1]:
            expected.pop()
        assert matches(expected, lines), f"{page}:{number}: {command}\nanswered {lines}"


def test_python_blocks_of_the_readme_run(make_server, model):
    """Its Python is run as it stands, against a server on the port it names."""
    path = ROOT / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)
    assert blocks, "the README shows no Python"
    s = make_server("--embedder", model)
    s.wait_engine()
    for block in blocks:
        assert "port=6379" in block, "the README names the default port"
        exec(compile(block.replace("6379", str(s.port)), "README.md", "exec"), {})


def test_pages_named_exist():
    """Links within the repository lead somewhere."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
    missing = []
    for page in pages:
        if not page.exists():
            continue
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                missing.append(f"{page.relative_to(ROOT)}: {target}")
    assert not missing, missing
