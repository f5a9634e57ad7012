"""Fixtures: servers and clients. See tests/README.md."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import kithtest  # noqa: E402
from kithtest import PATIENCE, Q8_MODEL, VARIANT, Maker, wait_until  # noqa: E402

LOG_SHOWN = 6000


def pytest_report_header():
    return f"kith programs: {kithtest.BIN} ({kithtest.VARIANT})"


def pytest_collection_modifyitems(items):
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(60 * PATIENCE))
        if item.get_closest_marker("measures_memory") and VARIANT != "release":
            why = "a sanitizer's allocator does not tell how much is in use"
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what its servers said."""
    report = (yield).get_result()
    if report.failed:
        for s in kithtest.running:
            report.sections.append((f"log of {s.folder}", s.log(whole=True)[-LOG_SHOWN:]))


@pytest.fixture
def make_server(tmp_path):
    """make_server("--option", value, ...) -> a started Server of this test's own."""
    maker = Maker(tmp_path)
    yield maker
    maker.finish()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    """One server without an engine for all tests that change no setting of it."""
    maker = Maker(tmp_path_factory.mktemp("shared"))
    # Every checkpoint is one more chance of a fault, so there are many.
    yield maker("--io-threads", 2, "--checkpoint-interval", 1)
    maker.finish()


def emptied(shared):
    with shared.wire() as w:
        assert w.cmd("FLUSHALL") == "OK"
    yield shared
    assert shared.running, "the shared server has ended"


@pytest.fixture
def server(shared_server):
    """The shared server, empty."""
    yield from emptied(shared_server)


@pytest.fixture(scope="session")
def model():
    if not Q8_MODEL.exists():
        pytest.fail(f"{Q8_MODEL} is missing: run tools/model.sh f32 f16 q8_0")
    return Q8_MODEL


@pytest.fixture(scope="session")
def shared_text_server(tmp_path_factory, model):
    maker = Maker(tmp_path_factory.mktemp("text"))
    s = maker("--embedder", model, "--io-threads", 2, "--engine-timeout-ms", 600_000)
    s.wait_engine()
    yield s
    maker.finish()


@pytest.fixture
def text_server(shared_text_server):
    """A server with the default model, empty."""
    yield from emptied(shared_text_server)


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request):
    return request.param


@pytest.fixture
def wire(server, protocol):
    """A plain socket to the shared server, in each protocol."""
    with server.wire(protocol) as w:
        yield w


@pytest.fixture
def poll():
    return wait_until
