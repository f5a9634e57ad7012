"""Models behind HTTP: right vectors from both interfaces, whatever order and company they have,
and from an endpoint that fails, hangs, lies or goes away a clear error in time; the key stays
secret; a fallback answers only where it gives the same vectors."""

import json
import os
import socket
import subprocess
import threading

import numpy as np
import pytest

import fake_remote
import models_tiny
from engine_process import Engine, EngineError
from fake_remote import FakeRemote, vector_of
from kithtest import BIN, Q8_MODEL, ReplyError, free_port, run_program, wait_until

DIM = 8
NEVER_MS = 3_600_000
KEY = "sk-kith-0123456789-secret"


@pytest.fixture
def fake():
    server = FakeRemote(DIM)
    yield server
    server.close()


@pytest.fixture
def start(tmp_path):
    """start(fake or url, "--option", ...) -> an Engine, closed with status 0 at the end."""
    engines = []

    def begin(endpoint, *options, style="openai", dim=DIM, model="nomic", timeout_ms=NEVER_MS):
        url = endpoint if isinstance(endpoint, str) else endpoint.url
        words = ["--remote", style, "--url", url, "--remote-model", model, "--dim", dim]
        engine = Engine(tmp_path, *words, "--timeout-ms", timeout_ms, *options)
        engines.append(engine)
        return engine

    yield begin
    for engine in engines:
        if engine.process.poll() is None:
            engine.close()


def right(rows, texts, dim=DIM):
    expected = [np.array(vector_of(t, dim)) / 3 for t in texts]
    return np.allclose(rows, expected, atol=1e-6)


def failed(answer, *words, code="INTERNAL"):
    assert isinstance(answer, EngineError), answer
    assert answer.code == code, answer
    for word in words:
        assert word in answer, (word, answer)


# --- what is right --------------------------------------------------------------------------------


def test_ready_needs_no_endpoint(start):
    url = f"http://127.0.0.1:{free_port()}"
    engine = start(url, "--context", 512, "--query-prompt", "query: ", "--document-prompt", "doc: ")
    ready = engine.ready
    assert ready["kind"] == "remote" and ready["tasks"] == "embed"
    assert (ready["name"], ready["dim"], ready["context"]) == ("nomic", str(DIM), "512")
    assert ready["path"] == url + "/v1/embeddings"
    assert (ready["query-prompt"], ready["document-prompt"]) == ("query: ", "doc: ")
    assert {ready[k] for k in ("type", "precision", "kernels")} == {"remote"}
    assert (ready["bytes"], ready["dims"]) == ("0", "")
    same = start("http://127.0.0.1:9/v1", "--context", 64).ready["hash"]
    assert same == ready["hash"], "the identity is not where it is"
    others = [start(url, style="ollama"), start(url, dim=9), start(url, model="other")]
    hashes = {ready["hash"], *(o.ready["hash"] for o in others)}
    assert len(hashes) == 4 and all(len(h) == 32 for h in hashes)


@pytest.mark.parametrize("style", ["openai", "ollama"])
def test_vectors(fake, start, style):
    engine = start(fake, style=style)
    texts = ["one", "two words", 'odd "quotes" \n \\ \x00 ä 🙂', "x" * 100_000]
    assert right(engine.embed(*texts), texts)
    request = fake.requests[0]
    assert request.path == {"openai": "/v1/embeddings", "ollama": "/api/embed"}[style]
    assert request.query["model"] == "nomic" and request.query["input"] == texts
    assert "dimensions" not in request.query and "Authorization" not in request.headers
    if style == "openai":
        assert request.query["encoding_format"] == "float" and "truncate" not in request.query
    else:
        assert request.query["truncate"] is False
        engine.embed("a", flags="t")
        assert fake.requests[1].query["truncate"] is True
    assert engine.tokens > 0
    (queued, batches, tokens, n_texts), more = engine.ping()
    assert (queued, batches) == (0, len(fake.requests)) and n_texts >= 4 and tokens > 0
    assert more["breaker"] == "closed" and more["fallback"] == "none"


def test_roles_put_the_prompts_before(fake, start):
    engine = start(fake, "--query-prompt", "query: ", "--document-prompt", "", "--send-dimensions")
    assert right(engine.embed("a", "b", flags="q"), ["query: a", "query: b"])
    assert right(engine.embed("a", flags="dt"), ["a"])
    assert right(engine.embed("a"), ["a"])
    assert fake.requests[0].query["dimensions"] == DIM


def test_index_is_honoured(fake, start):
    engine = start(fake)
    fake.always = fake_remote.changed(lambda a: a["data"].reverse())
    assert right(engine.embed("a", "b", "c"), ["a", "b", "c"])


def hold(engine, fake):
    """One request that the endpoint has and does not answer before it is released."""
    fake.once.append(fake_remote.hang)
    n = engine.send("held")
    wait_until(lambda: fake.count() == 1, what="the first request")
    return n


def test_requests_share_calls_and_keep_their_vectors(fake, start):
    engine = start(fake, "--parallel", 1, "--batch-texts", 16)
    held = hold(engine, fake)
    requests = {}
    for i in range(30):
        texts = [f"{i} {k}" for k in range(i % 4 + 1)]
        requests[engine.send(*texts)] = texts
    large = [f"large {k}" for k in range(200)]
    requests[engine.send(*large)] = large
    (queued, *_), _ = engine.ping()
    assert queued == 32
    fake.released.set()
    assert right(engine.answer(held), ["held"])
    for n, texts in requests.items():
        assert right(engine.answer(n), texts)
    calls = fake.texts()
    n_texts = sum(len(t) for t in requests.values())
    assert all(len(c) <= 16 for c in calls)
    assert len(calls) <= 1 + n_texts / 16 * 1.5, "they are full"
    assert sorted(t for c in calls for t in c) == sorted(["held", *sum(requests.values(), [])])


def test_a_small_request_rides_beside_a_large_one(fake, start):
    engine = start(fake, "--parallel", 1, "--batch-texts", 16)
    held = hold(engine, fake)
    large = engine.send(*[f"large {k}" for k in range(500)])
    small = engine.send("small")
    engine.ping()  # it has read both
    fake.released.set()
    engine.answer(held)
    assert right(engine.answer(small), ["small"])
    assert len(engine.answer(large)) == 500
    assert "small" in fake.texts()[1], "in the next call"


def test_calls_run_in_parallel_up_to_the_limit(fake, start):
    engine = start(fake, "--parallel", 3, "--batch-texts", 1)
    fake.always = fake_remote.hang
    n = engine.send(*[str(i) for i in range(10)])
    wait_until(lambda: fake.count() == 3, what="three requests")
    engine.ping()
    assert fake.count() == 3
    fake.released.set()
    assert right(engine.answer(n), [str(i) for i in range(10)])


def test_wrong_texts_never_leave(fake, start):
    engine = start(fake)
    failed(engine.embed("a", ""), "text 2 is empty", code="INVALID")
    failed(engine.embed(b"a\xff"), "text 1", "UTF-8", "offset 1", code="INVALID")
    failed(engine.rerank("q", "d"), "no scores", code="INVALID")
    assert fake.count() == 0


def test_a_full_queue_is_an_answer(fake, start):
    engine = start(fake, "--parallel", 1, "--queue-tokens", 1000)
    held = hold(engine, fake)
    waiting = engine.send("x" * 7000)
    failed(engine.embed("y" * 2000), "8000", code="BUSY")
    fake.released.set()
    assert right(engine.answer(waiting), ["x" * 7000])
    engine.answer(held)
    assert right(engine.embed("y" * 2000), ["y" * 2000]), "there is room again"


# --- what passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        fake_remote.status(500),
        fake_remote.status(502, b"<html>Bad Gateway</html>"),
        fake_remote.status(503),
        fake_remote.status(408),
        fake_remote.status(429),
        fake_remote.close_at_once,
        fake_remote.cut,
    ],
    ids=["500", "502", "503", "408", "429", "close", "cut"],
)
def test_failures_that_pass(fake, start, fault):
    """Three times, which is what --retries is without being given."""
    engine = start(fake)
    fake.once.extend([fault] * 3)
    assert right(engine.embed("a", "b"), ["a", "b"])
    assert fake.texts() == [["a", "b"]] * 4
    assert engine.ping()[1]["retries"] == "3"
    fake.always = fault
    failed(engine.embed("c"), fake.url)
    # A kept connection that is closed before a byte came is opened anew without a pause.
    again = 1 if fault is fake_remote.close_at_once else 0
    assert fake.count() == 8 + again, "and no more often"
    gaps = np.diff([r.at for r in fake.requests[4 + again :]])
    assert all(gaps >= [0.05, 0.1, 0.2]), "each pause is at least half of twice the last one"


def test_endpoint_that_comes_up(start):
    port = free_port()
    engine = start(f"http://127.0.0.1:{port}", "--retries", 100)
    n = engine.send("a")
    wait_until(lambda: int(engine.ping()[1]["retries"]) >= 2, what="two failures")
    fake = FakeRemote(DIM, port=port)
    try:
        assert right(engine.answer(n), ["a"])
    finally:
        fake.close()


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured(fake, start, code):
    engine = start(fake)
    fake.once.append(fake_remote.status(code, Retry_After="1"))
    first = engine.send("a")
    wait_until(lambda: engine.ping()[1]["retries"] == "1", what="the 429")
    second = engine.send("b")
    assert right(engine.answer(first), ["a"]) and right(engine.answer(second), ["b"])
    assert all(r.at - fake.requests[0].at >= 1 for r in fake.requests[1:]), "nobody came earlier"


def test_retry_after_past_the_timeout(fake, start):
    """It would be in vain to wait for it."""
    engine = start(fake, timeout_ms=30_000)
    fake.once.append(fake_remote.status(429, b'{"error":{"message":"slow down"}}', Retry_After="3000"))
    failed(engine.embed("a"), "HTTP 429", "slow down", "pause of 3000000 ms")
    failed(engine.embed("b"), "HTTP 429", "slow down")
    assert fake.count() == 1, "nor did b knock"


# --- what does not ---------------------------------------------------------------------------------


def numbers(*row):
    return fake_remote.changed(lambda a: a["data"][1].update(embedding=list(row)))


LIES = {
    "html": (fake_remote.status(200, b"<html>Welcome</html>"), ["not JSON", "<html>Welcome"]),
    "empty": (fake_remote.status(200), ["not JSON"]),
    "json": (fake_remote.status(200, b'{"data": [1, 2'), ["not JSON"]),
    "other": (fake_remote.status(200, b'{"ok": true}'), ["'data' is missing"]),
    "no content": (fake_remote.status(204), ["HTTP 204", "expected 200"]),
    "count": (fake_remote.changed(lambda a: a.update(data=a["data"][:1])), ["has 1 vectors, expected 2"]),
    "more": (fake_remote.changed(lambda a: a["data"].append(a["data"][0])), ["has 3 vectors, expected 2"]),
    "dim": (numbers(1, 2, 3), ["vector 2: got 3 dimensions, expected 8"]),
    "nan": (numbers(*[float("nan")] * DIM), ["not JSON"]),
    "null": (numbers(1, None, *[1] * 6), ["number 2 is null"]),
    "text": (numbers("1", *[1] * 7), ["number 1 is a string"]),
    "large": (numbers(1e300, *[1] * 7), ["number 1 is 1e+300"]),
    "zero": (numbers(*[0] * DIM), ["all zeros"]),
    "index twice": (fake_remote.changed(lambda a: a["data"][1].update(index=0)), ["'index'", "each of 0 to 1 once"]),
    "index outside": (fake_remote.changed(lambda a: a["data"][1].update(index=2)), ["'index'"]),
    "index missing": (fake_remote.changed(lambda a: a["data"].insert(1, {"embedding": a["data"].pop()["embedding"]})), ["'index' is missing"]),
    "huge": (fake_remote.huge, ["longer than"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(fake, start, lie):
    """An error that says where, what came and what was expected; not asked twice; and the next
    request is answered as if nothing had been."""
    behave, words = LIES[lie]
    engine = start(fake)
    fake.once.append(behave)
    status = "HTTP 204" if lie == "no content" else "HTTP 200"
    failed(engine.embed("a", "b"), f"{fake.url}/v1/embeddings", status, "expected", *words)
    assert fake.count() == 1
    assert fake.sent_bytes < 50 << 20, "it was read to no end"
    assert right(engine.embed("a"), ["a"])


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
def test_refusals_are_not_repeated(fake, start, code):
    engine = start(fake)
    body = json.dumps({"error": {"message": "no such model 'nomic'"}}).encode()
    fake.once.append(fake_remote.status(code, body))
    kind = "INVALID" if code in (400, 413, 422) else "INTERNAL"
    failed(engine.embed("a"), fake.url, f"HTTP {code}", "no such model", "expected 200", code=kind)
    assert fake.count() == 1
    assert right(engine.embed("a"), ["a"])


def test_a_refused_text_fails_its_own_request_only(fake, start):
    engine = start(fake, "--parallel", 1)
    held = hold(engine, fake)
    fake.always = fake_remote.refuses("bad")
    good = [engine.send(f"good {i}", f"more {i}") for i in range(5)]
    bad = engine.send("fine", "bad")
    good += [engine.send("good 5", "more 5")]
    fake.released.set()
    engine.answer(held)
    for i, n in enumerate(good):
        assert right(engine.answer(n), [f"good {i}", f"more {i}"])
    failed(engine.answer(bad), "cannot embed 'bad'", code="INVALID")


def test_redirects_are_not_followed(fake, start):
    other = FakeRemote(DIM)
    try:
        engine = start(fake)
        for code in (301, 302, 307, 308):
            fake.once.append(fake_remote.status(code, Location=other.url + "/v1/embeddings"))
            failed(engine.embed("a"), f"HTTP {code}", "redirects are not followed")
        assert other.count() == 0
    finally:
        other.close()


@pytest.mark.parametrize("fault", [fake_remote.hang, fake_remote.trickle], ids=["hang", "trickle"])
def test_no_answer_in_time(fake, start, fault):
    """All of the texts, in the calls and behind them, get their error; the server's PING gets its
    PONG meanwhile; an answer that comes later goes nowhere."""
    engine = start(fake, "--parallel", 1, timeout_ms=1000)
    fake.always = fault
    asked = [engine.send(f"{i}", "x") for i in range(5)]
    wait_until(lambda: fake.count() >= 1, what="a request")
    assert engine.ping()[0][0] == 5
    for n in asked:
        failed(engine.answer(n), fake.url, "1000 ms", "expected")
    fake.always = None
    fake.released.set()
    assert right(wait_until(lambda: vectors_or_none(engine.embed("later"))), ["later"])


def vectors_or_none(answer):
    return None if isinstance(answer, EngineError) else answer


def test_retries_end_with_the_timeout(fake, start):
    engine = start(fake, "--retries", 100, timeout_ms=1000)
    fake.always = fake_remote.status(500, b"out of order")
    failed(engine.embed("a"), fake.url, "HTTP 500", "out of order")
    assert 2 <= fake.count() <= 12


def test_breaker(start):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    engine = start(url, "--retries", 0)
    for i in range(5):
        failed(engine.embed("a"), url, "no HTTP status", "Failed to connect")
    assert engine.ping()[1]["breaker"] == "open"
    fake = FakeRemote(DIM, port=port)
    try:
        answer = engine.embed("a")
        # It is open for a second, which a slow machine may have spent.
        if isinstance(answer, EngineError):
            failed(answer, url, "5 requests in a row", "left alone", "Failed to connect")
            assert fake.count() == 0, "it did not knock"
        rows = wait_until(lambda: vectors_or_none(engine.embed("a")), what="the probe")
        assert right(rows, ["a"])
        assert engine.ping()[1]["breaker"] == "closed"
        assert "is left alone for 1000 ms" in engine.log() and "answers again" in engine.log()
    finally:
        fake.close()


def test_breaker_sends_one_probe(fake, start):
    engine = start(fake, "--retries", 0)
    fake.always = fake_remote.status(500)
    for i in range(5):
        failed(engine.embed("a"), "HTTP 500")
    fake.always = fake_remote.hang

    def probing():
        """The id of the request that went as the probe, None where it was refused."""
        n = engine.send("probe")
        wait_until(lambda: fake.count() == 6 or (engine.ping() and n in engine.waiting), what="its way")
        return n if n not in engine.waiting else failed(engine.answer(n), "left alone")

    probe = wait_until(probing, what="the probe")
    assert engine.ping()[1]["breaker"] == "half-open"
    for i in range(3):
        failed(engine.embed("others"), "left alone")
    fake.released.set()
    assert right(engine.answer(probe), ["probe"])
    assert fake.count() == 6
    assert right(engine.embed("a"), ["a"])


def test_end_with_work_under_way(fake, start):
    engine = start(fake)
    fake.always = fake_remote.hang
    for i in range(10):
        engine.send(*map(str, range(100)))
    wait_until(lambda: fake.count() == 4, what="requests")
    engine.close(status=0)


def test_random_faults(fake, start):
    """Many requests at an endpoint that fails in every way: each gets its own vectors or an error,
    once."""
    rng = np.random.default_rng(17)
    engine = start(fake, "--batch-texts", 8, "--retries", 2, timeout_ms=20_000)
    faults = [
        None, None, None, None, fake_remote.status(500), fake_remote.status(429), fake_remote.cut,
        fake_remote.close_at_once, LIES["count"][0], LIES["html"][0], fake_remote.refuses("7"),
    ]
    fake.once.extend(faults[i] for i in rng.integers(len(faults), size=300))
    asked = {}
    for i in range(200):
        texts = [f"{i} {k}" for k in range(rng.integers(1, 12))]
        asked[engine.send(*texts)] = texts
    n_right = 0
    for n, texts in asked.items():
        answer = engine.answer(n)
        if isinstance(answer, EngineError):
            assert fake.url in answer
        else:
            assert right(answer, texts)
            n_right += 1
    assert n_right > 0
    assert engine.ping()[0][0] == 0, "none is left behind"


# --- the key and the certificate -------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def test_key_is_sent_and_never_shown(fake, start, key_file):
    engine = start(fake, "--key-file", key_file)
    engine.embed("a")
    assert fake.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    echo = f"the key {KEY} is wrong"
    fake.once.append(fake_remote.status(401, json.dumps({"error": {"message": echo}}).encode()))
    fake.once.append(fake_remote.status(403, echo.encode()))
    fake.once.append(fake_remote.status(200, echo.encode()))
    answers = [engine.embed("a") for _ in range(3)]
    for answer in answers:
        failed(answer, "the key ***")
        assert KEY not in answer and KEY[:12] not in answer
    engine.close()
    assert KEY[:12] not in engine.log() and "open to others" not in engine.log()
    assert not any(KEY in v for v in engine.ready.values())


def test_key_file_open_to_others_is_warned_of(fake, start, key_file):
    key_file.chmod(0o640)
    engine = start(fake, "--key-file", key_file)
    assert right(engine.embed("a"), ["a"])
    assert "open to others" in engine.log() and str(key_file) in engine.log()


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"two words", b"two\nlines\n", b"\xff\xfe", b"x" * 5000],
    ids=["empty", "blank", "words", "lines", "binary", "long"],
)
def test_key_files_that_hold_no_key(start, key_file, content):
    key_file.write_bytes(content)
    engine = start("http://127.0.0.1:9", "--key-file", key_file)
    assert "must hold one line" in engine.failure and "two" not in engine.failure
    engine.close(status=2)


def test_key_goes_encrypted_or_not_far(start, key_file, tmp_path):
    far = "http://192.0.2.1:8080"
    engine = start(far, "--key-file", key_file)
    assert "--insecure-key" in engine.failure and "https" in engine.failure
    engine.close(status=2)
    assert start(far, "--key-file", key_file, "--insecure-key").ready
    assert start("https://192.0.2.1", "--key-file", key_file).ready
    for near in ("localhost", "127.3.4.5", "[::1]"):
        assert start(f"http://{near}:9", "--key-file", key_file).ready
    assert start(far).ready, "without a key there is nothing to show"
    engine = start("http://127.0.0.1:9", "--key-file", tmp_path / "none")
    assert "cannot read the key file" in engine.failure
    engine.close(status=2)


def test_certificates_are_checked(start, tmp_path):
    certificate, private = tmp_path / "cert.pem", tmp_path / "private.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", private, "-out", certificate, "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )
    fake = FakeRemote(DIM, certificate=(certificate, private))
    try:
        failed(start(fake).embed("a"), fake.url, "ertificate")
        assert fake.count() == 0, "no text was shown to a stranger"
        assert right(start(fake, "--ca-file", certificate).embed("a"), ["a"])
        other_name = fake.url.replace("127.0.0.1", "localhost")
        failed(start(other_name, "--ca-file", certificate).embed("a"), "ertificate")
        assert fake.count() == 1
    finally:
        fake.close()


# --- the fallback ----------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path_factory, model):
    """MiniLM behind Ollama's interface: a second kith-engine computes."""
    local = Engine(tmp_path_factory.mktemp("real"), "--model", model, "--threads", 1)
    lock = threading.Lock()

    def vectors(texts):
        with lock:
            return [[2.5 * x for x in row] for row in local.embed(*texts)]

    server = FakeRemote(384, vectors=vectors)
    yield server
    server.close()
    local.close()


def fallback_is(engine, state):
    return engine.ping()[1]["fallback"] == state


def down(fake):
    fake.always = fake_remote.status(503)


def test_fallback_answers_in_place_of_its_twin(real, start, model):
    engine = start(real, "--fallback", model, "--retries", 1, "--threads", 1,
                   "--query-prompt", "query: ", style="ollama", dim=384, model="minilm")
    wait_until(lambda: fallback_is(engine, "trusted"), what="the comparison")
    remote = engine.embed("a text", flags="q")
    assert engine.ping()[1]["fallback-texts"] == "0"
    down(real)
    local = engine.embed("a text", "another", flags="q")
    assert np.dot(remote[0], local[0]) > 0.99, "with the same prompt"
    assert np.isclose(np.linalg.norm(local[0]), 1, atol=1e-4)
    assert engine.ping()[1]["fallback-texts"] == "2"
    assert "the fallback answers" in engine.log()
    for i in range(6):  # past the breaker's opening too
        assert len(engine.embed(f"text {i}")) == 1
    assert engine.ping()[1]["breaker"] == "open"
    failed(engine.embed("word " * 1000), "tokens", code="INVALID")
    real.always = None
    before = real.count()

    def remote_answers():
        engine.embed("x")
        return engine.ping()[1]["breaker"] == "closed"

    wait_until(remote_answers, what="the endpoint to be asked again")
    assert real.count() > before and "answers again in the fallback's place" in engine.log()


def test_fallback_of_another_model_is_refused(start, model):
    """A model that gives other vectors, as any other would: its answers would be wrong ones."""
    fake = FakeRemote(384)
    try:
        engine = start(fake, "--fallback", model, "--retries", 0, "--threads", 1, dim=384)
        wait_until(lambda: fallback_is(engine, "refused"), what="the comparison")
        assert "the fallback is refused: least cosine" in engine.log()
        down(fake)
        failed(engine.embed("a"), "HTTP 503")
        assert engine.ping()[1]["fallback-texts"] == "0"
    finally:
        fake.close()


def test_fallback_that_nobody_compared_is_not_used(real, start, model):
    """Also when the endpoint was never up; it is compared as soon as it is."""
    down(real)
    engine = start(real, "--fallback", model, "--retries", 0, "--threads", 1, style="ollama", dim=384)
    failed(engine.embed("a"), "HTTP 503")
    wait_until(lambda: fallback_is(engine, "unchecked"), what="the comparison to fail")
    failed(engine.embed("a"), "HTTP 503")
    real.always = None
    wait_until(lambda: vectors_or_none(engine.embed("a")), what="the endpoint")
    wait_until(lambda: fallback_is(engine, "trusted"), what="the comparison")


def test_fallback_must_have_the_dimensions_and_be_a_model(start, model, tmp_path):
    engine = start("http://127.0.0.1:9", "--fallback", model)
    assert "has 384 dimensions, --dim says 8" in engine.failure
    engine.close(status=2)
    engine = start("http://127.0.0.1:9", "--fallback", tmp_path / "none.gguf")
    assert "--fallback" in engine.failure and "none.gguf" in engine.failure
    engine.close(status=2)


# --- the program -----------------------------------------------------------------------------------

WORDS = ["--remote", "openai", "--url", "http://127.0.0.1:9", "--remote-model", "m", "--dim", "8"]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "--model or --remote"),
        (["--remote", "cohere"], "openai or ollama"),
        (WORDS[:6], "--dim"),
        (WORDS[:4] + WORDS[6:], "--remote-model"),
        (WORDS[:2] + WORDS[4:], "--url"),
        (WORDS[:7] + ["0"], "1 to"),
        (WORDS + ["--model", "x.gguf"], "--model"),
        (["--model", "x.gguf", "--dim", "8"], "--remote"),
        (["--model", "x.gguf", "--insecure-key"], "--remote"),
        (WORDS + ["--retries", "-1"], "0 to 100"),
        (WORDS + ["--timeout-ms", "0"], "1 to"),
        (WORDS + ["--query-prompt", "x" * 3000], "2048"),
        (WORDS + ["--tokenize", "x"], "--embed"),
        (WORDS + ["--rerank", "x", "--document", "y"], "--embed"),
        (WORDS + ["--embed", "x", "--role", "judge"], "query or document"),
        (["--model", "x.gguf", "--rerank", "x"], "--document"),
        (["--model", "x.gguf", "--document", "x"], "--rerank"),
        (["--model", "x.gguf", "--role", "query"], "--embed"),
        (["--model", "x.gguf", "--embed", "x", "--tokenize", "x"], "at a time"),
        (WORDS + ["--surprise", "x"], "--surprise"),
        (WORDS + ["--url"], "takes a value"),
    ],
)
def test_wrong_command_lines(words, said):
    run = run_program("kith-engine", *words)
    assert run.returncode == 2 and said in run.stderr, run.stderr


@pytest.mark.parametrize(
    "url, said",
    [
        ("127.0.0.1:9", "http://HOST"),
        ("ftp://127.0.0.1", "http://HOST"),
        ("file:///etc/passwd", "http://HOST"),
        ("", "http://HOST"),
        ("http://", "http://HOST"),
        ("http://127.0.0.1:9/?key=x", "no query"),
        ("http://127.0.0.1:9/#x", "no fragment"),
        (f"http://me:{KEY}@127.0.0.1:9", "--key-file"),
        ("http://127.0.0.1/" + "x" * 300, "200"),
    ],
)
def test_wrong_urls(url, said):
    run = run_program("kith-engine", *WORDS[:3], url, *WORDS[4:], "--embed", "x")
    assert run.returncode == 2 and said in run.stderr and KEY not in run.stderr, run.stderr


def test_one_vector_for_people(fake):
    words = [w.replace("http://127.0.0.1:9", fake.url) for w in WORDS]
    run = run_program("kith-engine", *words, "--embed", "a", "--role", "query", "--query-prompt", "q: ")
    assert run.returncode == 0, run.stderr
    assert right([[float(x) for x in run.stdout.split()]], ["q: a"])
    fake.always = fake_remote.status(404, b"not here")
    run = run_program("kith-engine", *words, "--embed", "a")
    assert run.returncode == 1 and "HTTP 404: not here" in run.stderr and run.stdout == ""


@pytest.mark.parametrize(
    "message",
    [
        ["EMBED", 1, "x", "text"], ["EMBED", 1, "qd", "text"], ["EMBED", 1, "tt", "text"], ["EMBED", 1, "", "text"],
        ["EMBED", 1, "t-", "text"], ["EMBED", 1, "-"], ["EMBED", "one", "-", "text"], ["RERANK", 1, "-", "query"],
        ["RERANK", 1, "q", "query", "document"], ["SCORE", 1],
    ],
    ids=lambda m: " ".join(map(str, m)),
)
def test_words_that_the_wire_does_not_have(fake, start, message):
    engine = start(fake)
    engine.wire.send(*message)
    assert engine.wire.closed()
    assert "engine_wire.md" in engine.log()
    engine.close(status=1)


def test_the_local_backend_on_the_wire(tmp_path, model):
    engine = Engine(tmp_path, "--model", model, "--threads", 1)
    assert engine.ready["kind"] == "local" and engine.ready["tasks"] == "embed"
    assert int(engine.ready["bytes"]) > 1 << 20 and engine.ready["dims"] == ""
    plain = engine.embed("a", "b")
    assert np.allclose(engine.embed("a", "b", flags="td"), plain), "a model without prompts"
    failed(engine.rerank("query", "document"), "gives vectors", code="INVALID")
    failed(engine.embed("word " * 1000), "tokens", code="INVALID")
    assert len(engine.embed("word " * 1000, flags="tq")) == 1
    assert engine.ping()[1] == {}
    engine.close()


def converted(tmp_path, name, prompts=None):
    folder, out = tmp_path / name, tmp_path / f"{name}.gguf"
    models_tiny.write_folder(name, folder)
    if prompts:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    run = run_program("kith-convert", folder, out, "--type", "f32")
    assert run.returncode == 0, run.stderr
    return out


def test_scores_of_a_local_reranker_on_the_wire(tmp_path):
    engine = Engine(tmp_path, "--model", converted(tmp_path, "bert-reranker"), "--threads", 1)
    assert engine.ready["tasks"] == "rerank"
    rows = [(p, s) for p, s in zip(models_tiny.pairs(), models_tiny.golden("bert-reranker")["scores"])]
    query = rows[0][0][0]
    documents = [p[1] for p, _ in rows if p[0] == query]
    expected = [float(np.ravel(s)[0]) for p, s in rows if p[0] == query]
    assert len(documents) >= 2
    assert np.allclose(engine.rerank(query, *documents), expected, atol=1e-3)
    failed(engine.embed("text"), "RERANK", code="INVALID")
    failed(engine.rerank("query", "word " * 5000), "tokens", code="INVALID")
    assert len(engine.rerank("query", "word " * 5000, flags="t")) == 1
    engine.close()


def test_roles_of_a_local_model_on_the_wire(tmp_path):
    """q and d are the text behind the model's own words."""
    model = converted(tmp_path, "bert", {"query": "query: ", "document": "passage: "})
    engine = Engine(tmp_path, "--model", model, "--threads", 1)
    assert (engine.ready["query-prompt"], engine.ready["document-prompt"]) == ("query: ", "passage: ")
    for flag, prompt in (("q", "query: "), ("d", "passage: ")):
        (by_role,), (by_hand,), (plain,) = (
            engine.embed("a ship", flags=flag), engine.embed(prompt + "a ship"), engine.embed("a ship"))
        assert np.allclose(by_role, by_hand, atol=1e-6) and not np.allclose(by_role, plain, atol=1e-3)
    run = run_program("kith-engine", "--model", model, "--embed", "a ship", "--role", "document", "--threads", 1)
    assert np.allclose([float(x) for x in run.stdout.split()], by_hand, atol=1e-5)
    engine.close()


# --- behind the server -----------------------------------------------------------------------------


def remote_program(folder, *words):
    """An engine-path that is kith-engine with a remote model, whatever it is given."""
    path = folder / "remote-engine"
    path.write_text("#!/bin/sh\nexec " + " ".join(f"'{w}'" for w in [BIN / "kith-engine", *words]) + "\n")
    path.chmod(0o755)
    return path


def test_a_set_of_a_remote_model(real, make_server, tmp_path):
    """The server cannot tell it from a local one: VADD and VSIM by text, all of it after a restart,
    an error while the endpoint is away, and another model's vectors refused."""
    words = ["--remote", "ollama", "--url", real.url, "--remote-model", "minilm", "--dim", 384, "--retries", 0]
    path = remote_program(tmp_path, *words)
    s = make_server("--embedder", Q8_MODEL, "--engine-path", path)
    s.wait_engine()
    texts = ["a ship on the sea", "a cat on the roof", "stock prices fell sharply"]
    with s.wire(timeout=60) as w:
        for i, text in enumerate(texts):
            assert w.cmd("VADD", "v", "TEXT", text, f"e{i}") == 1
        assert w.cmd("VSIM", "v", "TEXT", "a boat in the ocean", "COUNT", 1) == [b"e0"]
        real.always = fake_remote.status(500)
        error = w.cmd("VADD", "v", "TEXT", "lost", "e9")
        assert isinstance(error, ReplyError) and real.url in error and "HTTP 500" in error
        assert w.cmd("VISMEMBER", "v", "e9") == 0 and w.cmd("SET", "k", 1) == "OK"
        real.always = None
    s.restart()
    s.wait_engine()
    with s.wire(timeout=60) as w:
        assert w.cmd("VSIM", "v", "TEXT", "markets and shares", "COUNT", 1) == [b"e2"]
    s.stop()
    remote_program(tmp_path, *[w if w != "minilm" else "another" for w in words])
    s.start()
    s.wait_engine()
    with s.wire(timeout=60) as w:
        error = w.cmd("VSIM", "v", "TEXT", "markets", "COUNT", 1)
        assert isinstance(error, ReplyError) and "minilm" in error and "another" in error, error
