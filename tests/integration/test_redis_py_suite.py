"""redis-py's own vector set tests, unchanged, from the source package of the version that
tools/requirements.txt pins (`make deps-test` fetches it): its client's every reply and its every
option, sync and asyncio, in both protocols."""

import os
import subprocess
import sys
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor

import pytest

from kithtest import PATIENCE, ROOT

SUITE = ROOT / "build" / "redis-py"
FILES = ["tests/test_vsets.py", "tests/test_asyncio/test_vsets.py"]

KNOWN = {
    # The name of a case: why it cannot pass.
}


def run_suite(port, protocol, report):
    """pytest's output; its results lie in `report`."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES]
    words += ["--redis-url", f"redis://127.0.0.1:{port}/0", "--protocol", str(protocol)]
    words += ["-o", f"timeout={30 * PATIENCE}", "-W", "ignore", f"--junitxml={report}"]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        words, cwd=SUITE, env=env, capture_output=True, text=True, timeout=250 * PATIENCE
    )
    return done.stdout + done.stderr


def outcomes(report):
    """name -> "passed", "skipped" or what went wrong"""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [c for c in case if c.tag in ("failure", "error", "skipped")]
        found[name] = f"{bad[0].tag}: {bad[0].get('message')}" if bad else "passed"
    return found


@pytest.mark.timeout(300 * PATIENCE)
def test_redis_py_suite(make_server, tmp_path):
    """Both protocols side by side, each with a server of its own, as the suite empties it."""
    assert (SUITE / FILES[0]).exists(), f"{SUITE} is missing: run tools/deps.sh test"
    for name, why in KNOWN.items():
        print(f"known: {name}: {why}")
    servers = {protocol: make_server("--appendfsync", "no") for protocol in (2, 3)}
    with ThreadPoolExecutor() as pool:
        runs = {
            protocol: pool.submit(run_suite, s.port, protocol, tmp_path / f"resp{protocol}.xml")
            for protocol, s in servers.items()
        }
    for protocol, run in runs.items():
        output, report = run.result(), tmp_path / f"resp{protocol}.xml"
        assert report.exists(), output[-4000:]
        found = outcomes(report)
        bad = {n: o for n, o in found.items() if o != "passed"}
        unexpected = "\n".join(f"{n}: {o}" for n, o in bad.items() if n not in KNOWN)
        assert not unexpected, f"RESP{protocol}, {len(bad)} of {len(found)}:\n{unexpected}"
        assert len(found) > 120, f"only {len(found)} cases ran: {output[-4000:]}"
        assert not KNOWN.keys() - bad.keys(), "a known case passes: take it from the list"
