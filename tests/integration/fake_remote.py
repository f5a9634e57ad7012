"""An HTTP endpoint that gives vectors as OpenAI's and Ollama's interfaces do, and misbehaves when
it is told to. It listens on 127.0.0.1 alone."""

import collections
import hashlib
import http.server
import json
import math
import socket
import ssl
import threading
import time


def vector_of(text, dim):
    """The same vector for the same text, of length 3, so that nobody gets it right by copying."""
    bytes_ = b"".join(hashlib.sha256(f"{i} {text}".encode()).digest() for i in range(dim // 16 + 1))
    numbers = [int.from_bytes(bytes_[2 * i : 2 * i + 2], "little") - 32768 for i in range(dim)]
    length = math.sqrt(sum(x * x for x in numbers))
    return [3 * x / length for x in numbers]


Request = collections.namedtuple("Request", "path query headers at")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(self.path, json.loads(raw), dict(self.headers), time.monotonic())
        server = self.server
        with server.lock:
            server.requests.append(request)
            behave = server.once.popleft() if server.once else server.always
        try:
            (behave or honest)(self, request)
        except (ConnectionError, socket.timeout, ssl.SSLError):
            self.close_connection = True

    def reply(self, status, body, headers=(), length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class FakeRemote(http.server.ThreadingHTTPServer):
    """once: what the next requests meet, one each, then `always` (None: an honest answer).
    Both are functions of (handler, request); those below make them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, dim=8, vectors=None, port=0, certificate=None):
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.requests = []
        self.once = collections.deque()
        self.always = None
        self.released = threading.Event()
        self.sent_bytes = 0
        self.vectors = vectors or (lambda texts: [vector_of(t, dim) for t in texts])
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            scheme = "https"
        self.port = self.server_port
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def handle_error(self, request, client_address):
        pass  # a client that left is no news

    def texts(self):
        with self.lock:
            return [r.query["input"] for r in self.requests]

    def count(self):
        with self.lock:
            return len(self.requests)

    def close(self):
        self.released.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


def body_of(handler, request):
    """An honest answer, before it is text."""
    vectors = handler.server.vectors(request.query["input"])
    tokens = sum(len(t.split()) for t in request.query["input"])
    if request.path == "/api/embed":
        return {"model": request.query["model"], "embeddings": vectors, "prompt_eval_count": tokens}
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def honest(handler, request):
    handler.reply(200, json.dumps(body_of(handler, request)).encode())


def status(code, body=b"", **headers):
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda handler, request: handler.reply(code, body, named)


def changed(change):
    """An honest answer after change(answer)."""

    def behave(handler, request):
        answer = body_of(handler, request)
        answer = change(answer) or answer
        handler.reply(200, json.dumps(answer).encode())

    return behave


def refuses(word, code=400):
    """Refuses a request that has the text; honest to others."""

    def behave(handler, request):
        if any(word in t for t in request.query["input"]):
            handler.reply(code, json.dumps({"error": f"cannot embed '{word}'"}).encode())
        else:
            honest(handler, request)

    return behave


def hang(handler, request):
    """No answer before the endpoint is released, then an honest one."""
    handler.server.released.wait()
    honest(handler, request)


def trickle(handler, request):
    """A space a moment, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.released.wait(0.02):
        handler.wfile.write(b" ")


def close_at_once(handler, request):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut(handler, request):
    body = json.dumps(body_of(handler, request)).encode()
    handler.reply(200, body[: len(body) // 2], length=len(body))
    handler.close_connection = True
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def huge(handler, request):
    """Spaces without an end."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    while not handler.server.released.is_set():
        handler.wfile.write(b" " * 65536)
        handler.server.sent_bytes += 65536
